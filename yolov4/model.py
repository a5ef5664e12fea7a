"""The executor: sections -> an nn.Module from images to the logits of each head.  `python -m yolov4.model CFG` prints it.
Source: Darknet's forward_*_layer functions; the batch normalisation is that of its GPU build."""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from yolov4.cfg import Convolutional, Dropout, Maxpool, Network, Route, Shortcut, Upsample, Yolo, parse_cfg, read_cfg
from yolov4.plan import IMAGE, Layer, convolution_padding, find_heads, maxpool_window, plan_layers

ACTIVATIONS = {
    "linear": nn.Identity,
    "leaky": partial(nn.LeakyReLU, 0.1, inplace=True),
    "mish": nn.Mish,
    "swish": partial(nn.SiLU, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": partial(nn.GELU, approximate="tanh"),
    "hard_mish": lambda: HardMish(),
}


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
        """Fresh weights as Darknet draws them: uniform in +-sqrt(2 / fan_in), biases 0, scales 1."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                bound = (2 / module.weight[0].numel()) ** 0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _build(self, layer: Layer) -> nn.Module:
        match layer.section:
            case Convolutional():
                following = self.plan[layer.index + 1].section if layer.index + 1 < len(self.plan) else None
                # the logistic before a new_coords head belongs to decode
                linear = isinstance(following, Yolo) and following.new_coords
                return convolution(layer.section, layer.input_shape[0], "linear" if linear else layer.section.activation)
            case Maxpool():
                return MaxPool(*maxpool_window(layer.section))
            case Route():
                return Concatenate(layer.section.groups, layer.section.group_id)
            case Shortcut():
                return Add(layer.section, layer.output_shape[0], len(layer.sources))
            case Upsample(stride=stride):
                return nn.Upsample(scale_factor=stride, mode="nearest")
            case Dropout(probability=probability):
                return nn.Dropout(probability)
            case Yolo():
                return nn.Identity()


def convolution(section: Convolutional, channels: int, activation: str) -> nn.Sequential:
    """Convolution, batch normalisation or nothing, activation."""
    normalised = section.batch_normalize
    dilation = section.dilation if section.size > 1 else 1
    return nn.Sequential(
        nn.Conv2d(
            channels, section.filters, section.size, section.stride, convolution_padding(section) * dilation,
            dilation, section.groups, bias=not normalised,
        ),
        nn.BatchNorm2d(section.filters, eps=1e-5, momentum=0.01) if normalised else nn.Identity(),
        ACTIVATIONS[activation](),
    )  # fmt: skip


class MaxPool(nn.Module):
    """Max pooling with Darknet's padding, which may be one cell more at the right and the bottom."""

    def __init__(self, size: int, stride: int, padding: int):
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        before = self.padding // 2
        missing = [  # cells that the last window needs beyond the image
            (side + self.padding - self.size) // self.stride * self.stride + self.size - side - before
            for side in x.shape[:1:-1]
        ]
        if any(m != before for m in missing):
            x = F.pad(x, (before, max(missing[0], 0), before, max(missing[1], 0)), value=float("-inf"))
            before = 0
        return F.max_pool2d(x, self.size, self.stride, before)


class Concatenate(nn.Module):
    """[route]: channels one after the other; of each source the slice `group_id` of `groups`."""

    def __init__(self, groups: int, group_id: int):
        super().__init__()
        self.groups, self.group_id = groups, group_id

    def forward(self, *sources: Tensor) -> Tensor:
        if self.groups > 1:
            sources = [source.chunk(self.groups, 1)[self.group_id] for source in sources]
        return sources[0] if len(sources) == 1 else torch.cat(sources, 1)


class Add(nn.Module):
    """[shortcut]: the previous layer plus others, of which only the channels that both have count; weights if asked."""

    def __init__(self, section: Shortcut, channels: int, sources: int):
        super().__init__()
        self.normalization = section.weights_normalization
        self.activation = ACTIVATIONS[section.activation]()
        per_source = {"none": 0, "per_channel": channels}.get(section.weights_type, 1)
        self.weight = nn.Parameter(torch.ones(sources, per_source)) if per_source else None

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        weights = None if self.weight is None else self._normalised()[:, :, None, None]  # (sources, 1 or C, 1, 1)
        total = x if weights is None else x * weights[0]
        for number, other in enumerate(others, 1):
            shared = min(other.shape[1], x.shape[1])
            part = other[:, :shared]
            if weights is not None:
                part = part * weights[number][:shared]
            # the rest of the previous layer's channels passes unchanged
            total = total + part if shared == x.shape[1] else torch.cat((total[:, :shared] + part, total[:, shared:]), 1)
        return self.activation(total)

    def _normalised(self) -> Tensor:
        match self.normalization:
            case "none":
                return self.weight
            case "softmax":
                positive = (self.weight - self.weight.amax(0)).exp()
            case _:
                positive = self.weight.relu()
        return positive / (positive.sum(0) + 1e-4)


class HardMish(nn.Module):
    """Darknet's hard_mish: x above 0, x^2 / 2 + x in -2..0, else 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.where(x > -2, x * x / 2 + x, 0.0))


def summary(model: Darknet) -> str:
    """A table of the layers with parameters and BFLOPs, and their totals."""
    rows = [f"{'':>4} {'layer':14} {'filters':>7} {'size/stride':>11} {'input':>17} -> {'output':17} {'parameters':>10} {'BFLOPs':>7}"]
    for layer in model.plan:
        section = layer.section
        window = f"{section.size}x{section.size}/{section.stride}" if hasattr(section, "size") else ""
        kind = {"route": "route " + ",".join(map(str, layer.sources))}.get(section.kind, section.kind)
        (c, h, w), (out_c, out_h, out_w) = layer.input_shape, layer.output_shape
        rows.append(
            f"{layer.index:4} {kind:14} {getattr(section, 'filters', ''):>7} {window:>11} {f'{w} x {h} x {c}':>17} -> "
            f"{f'{out_w} x {out_h} x {out_c}':17} {layer.parameters or '':>10} {layer.flops / 1e9 or '':>7.3f}".rstrip()
            if layer.flops
            else f"{layer.index:4} {kind:14} {'':>7} {window:>11} {f'{w} x {h} x {c}':>17} -> {out_w} x {out_h} x {out_c}"
        )
    parameters, flops = sum(p.numel() for p in model.parameters()), sum(layer.flops for layer in model.plan)
    size = f"{model.net.width} x {model.net.height}"
    return "\n".join([*rows, f"{len(model.plan)} layers, {parameters:,} parameters, {flops / 1e9:.2f} BFLOPs at {size}"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m yolov4.model", description="Prints the layers of a Darknet .cfg.")
    parser.add_argument("cfg")
    try:
        print(summary(Darknet.from_cfg(parser.parse_args().cfg)))
    except (OSError, ValueError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
