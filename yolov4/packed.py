"""Convolutions of a network for detecting on a CPU, their weights laid out once as oneDNN wants them.
Source: the operators that torch's own compiler puts in the place of Conv2d (torch._inductor, mkldnn_fusion)."""

import torch
from torch import Tensor, nn

from yolov4.model import Darknet


class PackedConv2d(nn.Module):
    """A convolution without gradient; float32 (B, C, h, w) on the CPU.  Conv2d lays out its weights at every call."""

    def __init__(self, convolution: nn.Conv2d, input_shape: tuple[int, int, int]):
        super().__init__()
        self.window = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
        weight = convolution.weight.detach().contiguous()
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.window, (1, *input_shape))
        self.bias = convolution.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.window, "none", [], "")


def pack(model: Darknet) -> None:
    """Packs the convolutions of a fused network on the CPU, which then only detects: it is neither copied nor saved.
    The outputs are the same.  Does nothing where torch was built without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return
    for layer, module in zip(model.plan, model.layers, strict=True):
        if isinstance(module, nn.Sequential) and isinstance(module[0], nn.Conv2d):
            module[0] = PackedConv2d(module[0], layer.input_shape)
