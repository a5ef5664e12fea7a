"""A network made ready to detect: fused, channels last, in half precision if asked, and packed for a CPU or compiled.
Source: the operators that torch's own compiler puts in the place of Conv2d (torch._inductor, mkldnn_fusion)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from yolov4.model import Darknet


def for_inference(
    model: Darknet, device: torch.device, compiled: bool = False, dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], list[Tensor]]:
    """images (B, C, h, w) of dtype, channels last, without gradient -> logits of each head, of dtype.  It takes the
    model over, which then only detects, and is neither copied nor saved.

    compiled: by torch.compile, which takes a minute here instead of at the first images; on a GPU with CUDA graphs,
    whose outputs last until the next call.  Raises ValueError where it cannot be done, for want of a C++ compiler.
    """
    model.fuse().to(device, dtype, memory_format=torch.channels_last)
    if not compiled:
        if device.type == "cpu":
            pack(model)
        return model
    options = {"mode": "reduce-overhead"} if device.type == "cuda" else {"options": {"freezing": True}}
    faster = torch.compile(model.requires_grad_(False), **options)
    images = torch.zeros(1, model.net.channels, model.net.height, model.net.width, device=device, dtype=dtype)
    try:
        with torch.no_grad():
            faster(images.to(memory_format=torch.channels_last))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"torch.compile: {reason}, expected a compiler that torch can use (g++, clang++)") from None
    return faster


def pack(model: Darknet) -> None:
    """Packs the convolutions of a fused network on the CPU; the outputs are the same.  Does nothing where oneDNN does
    not compute in the network's type, or is not there."""
    dtype = next(model.parameters()).dtype
    known = torch.backends.mkldnn.is_available() and (
        dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
    if not known:
        return
    for layer, module in zip(model.plan, model.layers, strict=True):
        if isinstance(module, nn.Sequential) and isinstance(module[0], nn.Conv2d):
            module[0] = PackedConv2d(module[0], layer.input_shape)


class PackedConv2d(nn.Module):
    """A convolution without gradient; (B, C, h, w) on the CPU.  Conv2d lays out its weights at every call,
    here they are laid out once as oneDNN wants them."""

    def __init__(self, convolution: nn.Conv2d, input_shape: tuple[int, int, int]):
        super().__init__()
        self.window = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
        weight = convolution.weight.detach().contiguous()
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.window, (1, *input_shape))
        self.bias = convolution.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.window, "none", [], "")
