"""The executor: sections -> an nn.Module from images to the logits of each head.
Source: Darknet's forward_*_layer functions; batch norm is that of its GPU build."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from yolov4 import cfg
from yolov4.cfg import Head, Network, Yolo, parse_cfg, read_cfg
from yolov4.graph import IMAGE, find_heads, maxpool_window, plan_layers
from yolov4.layers import (
    ACTIVATIONS,
    Add,
    Concatenate,
    ConvolutionLayer,
    DropBlock,
    MaxPool,
    Reorganise,
    Scale,
)

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # half precision, as the scripts name it


class Darknet(nn.Module):
    """The network of a .cfg.

    images: (B, 3, H, W) float, RGB 0..1, H and W multiples of the largest stride; any size, not
    only that of [net].  Returns the logits of each head, (B, A * (5 + C), h, w), always before the
    logistic.  `frozen`: layers up to this index get no gradient (Darknet's stopbackward).
    """

    def __init__(self, network: Network, generator: torch.Generator | None = None):
        super().__init__()
        self.network = network
        self.plan = plan_layers(network)
        self.heads = find_heads(network, self.plan)
        self.layers = nn.ModuleList(self._build(layer) for layer in self.plan)
        self.frozen = IMAGE
        self.reset_parameters(generator)

    @classmethod
    def from_cfg(cls, path: str | Path | None = None, *, text: str | None = None) -> "Darknet":
        """Builds the network of a .cfg file, or of its text."""
        return cls(parse_cfg(text) if text is not None else read_cfg(path))

    @property
    def net(self):
        return self.network.net

    @property
    def sections(self):
        return self.network.sections

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs, logits = {IMAGE: images}, []
        with_gradient = torch.is_grad_enabled()
        for layer, module in zip(self.plan, self.layers, strict=True):
            with torch.set_grad_enabled(with_gradient and layer.index > self.frozen):
                output = module(*(outputs[source] for source in layer.sources))
            outputs[layer.index] = output
            if isinstance(layer.section, Yolo):
                logits.append(output)
            for source in layer.frees:
                del outputs[source]
        return logits

    def fuse(self) -> "Darknet":
        """Folds batch norm into the convolutions, for inference; returns self."""
        self.eval()
        for module in self.layers:
            if isinstance(module, ConvolutionLayer) and not isinstance(module[1], nn.Identity):
                module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
        return self

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights as Darknet has them: uniform in +-sqrt(2 / fan_in); scales 1; biases and
        running statistics 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                bound = (2 / module.weight[0].numel()) ** 0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.running_var)

    def set_head_biases(self, biases: Callable[[Head], Tensor]) -> None:
        """biases: head -> those of the convolution before it, (A * (5 + C),)."""
        with torch.no_grad():
            for head in self.heads:
                self.layers[head.index - 1][0].bias.copy_(biases(head))

    def _build(self, layer):
        match section := layer.section:
            case cfg.Convolutional(activation=activation):
                # the logistic before a new_coords head belongs to decode
                following = self.plan[layer.index + 1 : layer.index + 2]
                if following and getattr(following[0].section, "new_coords", False):
                    activation = "linear"
                return ConvolutionLayer(section, layer.input_shape[0], activation)
            case cfg.Maxpool():
                return MaxPool(*maxpool_window(section))
            case cfg.Route():
                return Concatenate(section.groups, section.group_id)
            case cfg.Shortcut():
                return Add(section, layer.output_shape[0], len(layer.sources))
            case cfg.Upsample(stride=stride):
                return nn.Upsample(scale_factor=stride, mode="nearest")
            case cfg.Dropout(probability=probability, dropblock=False):
                return nn.Dropout(probability)
            case cfg.Dropout(probability=probability, dropblock_size_rel=relative):
                # cells count where both sizes are given, and are 7 where none is
                size = min(section.dropblock_size_abs, *layer.input_shape[1:])
                size = size or (0 if relative else 7)
                return DropBlock(probability, size, 0.0 if size else relative)
            case cfg.Avgpool():
                return nn.AdaptiveAvgPool2d(1)
            case cfg.ScaleChannels(activation=activation) | cfg.Sam(activation=activation):
                return Scale(ACTIVATIONS[activation]())
            case cfg.Reorg(stride=stride) | cfg.Reorg3d(stride=stride):
                return Reorganise(stride, old=isinstance(section, cfg.Reorg))
            case Yolo():
                return nn.Identity()


def summary(model):
    """A table of the layers: window, shapes, floats in .weights, BFLOPs; and the totals."""
    lines = [
        f"{'':4} {'layer':15} {'filters':>7} {'size/stride':>11} {'input':>17} -> {'output':17} "
        f"{'floats':>10} {'BFLOPs':>7}"
    ]
    for layer in model.plan:
        section, kind = layer.section, layer.section.kind
        if kind == "route":
            kind += " " + ",".join(map(str, layer.sources))
        sized, filters = hasattr(section, "size"), getattr(section, "filters", "")
        window = f"{section.size}x{section.size}/{section.stride}" if sized else ""
        inside, outside = (
            f"{w} x {h} x {c}" for c, h, w in (layer.input_shape, layer.output_shape)
        )
        cost = f"{layer.flops / 1e9:.3f}" if layer.flops else ""
        lines.append(
            f"{layer.index:4} {kind:15} {filters:>7} {window:>11} {inside:>17} -> {outside:17} "
            f"{layer.parameters or '':>10} {cost:>7}"
        )
    parameters = sum(p.numel() for p in model.parameters())
    floats = sum(layer.parameters for layer in model.plan)
    flops = sum(layer.flops for layer in model.plan)
    lines.append(
        f"{len(model.plan)} layers, {parameters:,} parameters ({floats:,} floats in .weights), "
        f"{flops / 1e9:.2f} BFLOPs at {model.net.width} x {model.net.height}"
    )
    return "\n".join(line.rstrip() for line in lines)
