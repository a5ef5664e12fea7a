"""The executor: sections -> an nn.Module from images to the logits of each head; `python -m yolov4.model CFG`.
Source: Darknet's forward_*_layer functions; the batch normalisation is that of its GPU build."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from yolov4 import sections as known
from yolov4.cfg import parse_cfg, read_cfg
from yolov4.layers import Add, Concatenate, Implicit, MaxPool, Reorganise, Scale, convolution
from yolov4.plan import IMAGE, Layer, find_heads, maxpool_window, plan_layers
from yolov4.sections import Convolutional, Dropout, Head, Network, Route, Yolo
from yolov4.staged import DropBlock

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # half precision, as the scripts name it


class Darknet(nn.Module):
    """A network as its sections say.

    images: (B, 3, H, W) float, RGB 0..1, H and W multiples of the largest stride; any size, not only that of [net].
    Returns a list with the logits of each head, (B, A * (5 + C), h, w), always before the logistic.
    `frozen`: layers up to this index get no gradient (Darknet's stopbackward).
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
        """Folds batch normalisation into the convolutions, for inference; returns self."""
        self.eval()
        for module in self.layers:
            if isinstance(module, nn.Sequential) and isinstance(module[1], nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
        return self

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights as Darknet has them: uniform in +-sqrt(2 / fan_in); scales 1; biases, rolling averages 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                bound = (2 / module.weight[0].numel()) ** 0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.running_var)
            elif isinstance(module, Implicit):
                module.reset_parameters(generator)

    def set_head_biases(self, biases: Callable[[Head], Tensor]) -> None:
        """biases: head -> those of the convolution before it, (A * (5 + C),)."""
        with torch.no_grad():
            for head in self.heads:
                self.layers[head.index - 1][0].bias.copy_(biases(head))

    def _build(self, layer: Layer) -> nn.Module:
        match layer.section:
            case Convolutional():
                following = self.plan[layer.index + 1].section if layer.index + 1 < len(self.plan) else None
                # the logistic before a new_coords head belongs to decode
                linear = isinstance(following, Yolo) and following.new_coords
                return convolution(
                    layer.section, layer.input_shape[0], "linear" if linear else layer.section.activation
                )
            case known.Maxpool():
                return MaxPool(*maxpool_window(layer.section))
            case Route():
                return Concatenate(layer.section.groups, layer.section.group_id)
            case known.Shortcut():
                return Add(layer.section, layer.output_shape[0], len(layer.sources))
            case known.Upsample(stride=stride):
                return nn.Upsample(scale_factor=stride, mode="nearest")
            case Dropout(probability=probability):
                return self._dropblock(layer) if layer.section.dropblock else nn.Dropout(probability)
            case known.Avgpool():
                return nn.AdaptiveAvgPool2d(1)
            case known.ScaleChannels(activation=activation) | known.Sam(activation=activation):
                return Scale(activation)
            case known.Reorg(stride=stride) | known.Reorg3d(stride=stride):
                return Reorganise(stride, old=isinstance(layer.section, known.Reorg))
            case known.Implicit() as section:
                return Implicit(section.filters, section.atoms, section.mean, section.std)
            case Yolo():
                return nn.Identity()

    def _dropblock(self, layer: Layer) -> DropBlock:
        """Cells count where both sizes are given, and are 7 where none is; no more than the layer has."""
        section, relative = layer.section, layer.section.dropblock_size_rel
        size = min(section.dropblock_size_abs, *layer.input_shape[1:]) or (0 if relative else 7)
        return DropBlock(section.probability, size, 0.0 if size else relative)


def summary(model: Darknet) -> str:
    """A table of the layers: window, shapes, floats in .weights, BFLOPs; and the totals."""
    lines = [_row("", "layer", "filters", "size/stride", "input", "output", "floats", "BFLOPs")]
    for layer in model.plan:
        section = layer.section
        kind = "route " + ",".join(map(str, layer.sources)) if isinstance(section, Route) else section.kind
        window = f"{section.size}x{section.size}/{section.stride}" if hasattr(section, "size") else ""
        (c, h, w), (out_c, out_h, out_w) = layer.input_shape, layer.output_shape
        cost = f"{layer.flops / 1e9:.3f}" if layer.flops else ""
        shapes = f"{w} x {h} x {c}", f"{out_w} x {out_h} x {out_c}"
        lines.append(
            _row(layer.index, kind, getattr(section, "filters", ""), window, *shapes, layer.parameters or "", cost)
        )
    parameters, floats = sum(p.numel() for p in model.parameters()), sum(layer.parameters for layer in model.plan)
    cost = f"{sum(layer.flops for layer in model.plan) / 1e9:.2f} BFLOPs at {model.net.width} x {model.net.height}"
    return "\n".join(
        [*lines, f"{len(model.plan)} layers, {parameters:,} parameters ({floats:,} floats in .weights), {cost}"]
    )


def _row(index, kind, filters, window, before, after, floats, cost) -> str:
    row = f"{index:>4} {kind:15} {filters:>7} {window:>11} {before:>17} -> {after:17} {floats:>10} {cost:>7}"
    return row.rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m yolov4.model", description="Prints the layers of a Darknet .cfg.")
    parser.add_argument("cfg")
    try:
        print(summary(Darknet.from_cfg(parser.parse_args().cfg)))
    except (OSError, ValueError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
