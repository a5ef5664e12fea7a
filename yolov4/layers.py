"""The layers that torch.nn does not have as Darknet means them, and the activations by Darknet's names.
Source: Darknet's src/maxpool_layer.c, shortcut_layer.c, route_layer.c, scale_channels_layer.c,
sam_layer.c, reorg_layer.c, reorg_old_layer.c, representation_layer.c, activations.h."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolov4.mish import Mish, normalise_and_mish
from yolov4.plan import convolution_padding
from yolov4.sections import Convolutional, GateActivation, Shortcut
from yolov4.staged import CrossBatchNorm

ACTIVATIONS = {
    "linear": nn.Identity,
    "leaky": partial(nn.LeakyReLU, 0.1, inplace=True),
    "mish": Mish,
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


class ConvolutionLayer(nn.Sequential):
    """Convolution, batch normalisation or nothing, activation."""

    def forward(self, x: Tensor) -> Tensor:
        convolution, normalisation, activation = self
        x, y = convolution(x), None
        if isinstance(activation, Mish):
            y = normalise_and_mish(x, normalisation)
        return activation(normalisation(x)) if y is None else y


def convolution(section: Convolutional, channels: int, activation: str) -> ConvolutionLayer:
    normalised = section.batch_normalize
    normalisation = CrossBatchNorm if section.batch_normalize == 2 else nn.BatchNorm2d
    dilation = section.dilation if section.size > 1 else 1
    return ConvolutionLayer(
        nn.Conv2d(
            channels, section.filters, section.size, section.stride, convolution_padding(section) * dilation,
            dilation, section.groups, bias=not normalised,
        ),
        normalisation(section.filters, eps=1e-5, momentum=0.01) if normalised else nn.Identity(),
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
            total = (
                total + part if shared == x.shape[1] else torch.cat((total[:, :shared] + part, total[:, shared:]), 1)
            )
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


class Scale(nn.Module):
    """[scale_channels], [sam]: another layer times the previous one, a factor a channel, a cell or a value."""

    def __init__(self, activation: GateActivation):
        super().__init__()
        self.activation = ACTIVATIONS[activation]()

    def forward(self, factors: Tensor, scaled: Tensor) -> Tensor:
        return self.activation(scaled * factors)


class Reorganise(nn.Module):
    """[reorg3d]: the cells of a window become channels, all channels of the first cell first.

    `old`, [reorg]: the same after the values in memory are read as (C / s^2, s H, s W).
    """

    def __init__(self, stride: int, old: bool):
        super().__init__()
        self.stride, self.old = stride, old

    def forward(self, x: Tensor) -> Tensor:
        s, (batch, channels, height, width) = self.stride, x.shape
        after = (batch, channels * s * s, height // s, width // s)
        if self.old:
            channels, height, width = channels // s**2, height * s, width * s
        windows = x.reshape(batch, channels, height // s, s, width // s, s)
        return windows.permute(0, 3, 5, 1, 2, 4).reshape(after)


class Implicit(nn.Module):
    """[implicit]: learnt values that depend on no input; (filters, atoms, 1) an image."""

    def __init__(self, filters: int, atoms: int, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std
        self.weight = nn.Parameter(torch.full((filters, atoms, 1), mean))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.uniform_(self.weight, self.mean - self.std, self.mean + self.std, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.expand(x.shape[0], -1, -1, -1)
