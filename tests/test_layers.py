"""Layers worked out by loops and formulas: maxpool, shortcut, route, reorg, scales, activations, dropout.
Source: Darknet's src/maxpool_layer.c, blas.c (shortcut_multilayer_cpu, reorg_cpu), activations.h."""

import math

import pytest
import torch

from yolov4.blueprint import build
from yolov4.layers import ACTIVATIONS, Add, Concatenate, Implicit, MaxPool, Reorganise, Scale
from yolov4.model import Darknet
from yolov4.sections import Dropout, Shortcut


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("size", "stride", "padding"), [
    (2, 2, 1), (2, 1, 1), (2, 2, 0), (3, 2, 2), (3, 1, 2), (5, 1, 4), (13, 1, 12), (3, 2, 0), (3, 2, 1),
    (4, 2, 3),
])  # fmt: skip
@pytest.mark.parametrize(("height", "width"), [(7, 10), (8, 5), (13, 13)])
def test_maxpool_is_the_loop_over_windows(size, stride, padding, height, width):
    x = -random(2, 3, height, width) - 1  # all negative: a border of zeros would win
    shape = [(side + padding - size) // stride + 1 for side in (height, width)]
    if min(shape) < 1:
        pytest.skip("the window is larger than the image")
    expected = torch.empty(2, 3, *shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            top, left = row * stride - padding // 2, column * stride - padding // 2
            window = x[:, :, max(top, 0) : top + size, max(left, 0) : left + size]
            expected[:, :, row, column] = window.amax((2, 3))
    assert torch.equal(MaxPool(size, stride, padding)(x), expected)


@pytest.mark.parametrize("normalisation", ["none", "relu", "avg_relu", "softmax"])
@pytest.mark.parametrize("weights_type", ["none", "per_feature", "per_layer", "per_channel"])
def test_shortcut_is_the_loop_over_sources(weights_type, normalisation):
    section = Shortcut(from_=(-3, -4), weights_type=weights_type, weights_normalization=normalisation)
    module = Add(section, channels=4, sources=3)
    sources = [random(2, channels, 2, 3, seed=channels) for channels in (4, 2, 6)]  # as many, fewer, more channels
    if weights_type != "none":
        with torch.no_grad():
            module.weight.copy_(torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(1)))
        assert module.weight.shape == (3, 4 if weights_type == "per_channel" else 1)
    expected = torch.zeros(2, 4, 2, 3)
    for channel in range(4):
        weights = [1.0, 1.0, 1.0]
        if weights_type != "none":
            weights = [float(row[channel % len(row)]) for row in module.weight.detach()]
            if normalisation == "softmax":
                weights = [math.exp(weight - max(weights)) for weight in weights]
            elif normalisation != "none":
                weights = [max(weight, 0.0) for weight in weights]
            total = sum(weights) + 1e-4 if normalisation != "none" else 1.0
            weights = [weight / total for weight in weights]
        for source, weight in zip(sources, weights, strict=True):
            if channel < source.shape[1]:
                expected[:, channel] += weight * source[:, channel]
    torch.testing.assert_close(module(*sources).detach(), expected)


def test_shortcut_applies_its_activation():
    module = Add(Shortcut(from_=(-2,), activation="leaky"), channels=1, sources=2)
    total = module(torch.full((1, 1, 1, 1), -3.0), torch.full((1, 1, 1, 1), 1.0))
    assert total.item() == pytest.approx(-0.2)


def test_route_takes_its_group_of_every_source():
    first, second = random(1, 4, 2, 2), random(1, 6, 2, 2, seed=1)
    assert torch.equal(Concatenate(1, 0)(first, second), torch.cat((first, second), 1))
    assert torch.equal(Concatenate(2, 1)(first, second), torch.cat((first[:, 2:], second[:, 3:]), 1))
    assert torch.equal(Concatenate(2, 0)(first), first[:, :2])


def test_scale_channels_and_sam_multiply():
    """A factor a channel, a cell, a value; the activation comes after the product."""
    scaled = torch.tensor([[[[1.0, 2.0]], [[3.0, -4.0]]]])  # (1, 2, 1, 2)
    a_channel, a_cell = torch.tensor([[[[2.0]], [[10.0]]]]), torch.tensor([[[[2.0, 10.0]]]])
    assert Scale("linear")(a_channel, scaled).flatten().tolist() == [2, 4, 30, -40]
    assert Scale("leaky")(a_cell, scaled).flatten().tolist() == [2, 20, 6, -4]
    assert Scale("relu")(scaled, scaled.clone()).flatten().tolist() == [1, 4, 9, 16]


def loop_of_reorg(x, shape, stride):
    """Darknet's loop over a shape (C, H, W) that it takes the values for, which is not always theirs."""
    channels, height, width = shape
    few = channels // stride**2
    flat, out = x.reshape(len(x), -1), torch.empty(x.numel() // len(x))
    images = []
    for image in flat:
        for k in range(channels):
            for j in range(height):
                for i in range(width):
                    column, row = i * stride + k // few % stride, j * stride + k // few // stride
                    place = column + width * stride * (row + height * stride * (k % few))
                    out[i + width * (j + height * k)] = image[place]
        images.append(out.clone())
    return torch.stack(images)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(("channels", "height", "width", "stride"), [(8, 4, 6, 2), (9, 3, 6, 3), (4, 2, 2, 1)])
def test_reorg_is_darknets_loop(old, channels, height, width, stride):
    x = random(2, channels, height, width)
    after = (channels * stride**2, height // stride, width // stride)
    expected = loop_of_reorg(x, (channels, height, width) if old else after, stride)
    assert torch.equal(Reorganise(stride, old)(x), expected.view(2, *after))


def test_implicit_learns_from_all_images_and_reads_none():
    module = Implicit(filters=3, atoms=2, mean=5.0, std=0.5)
    module.reset_parameters(torch.Generator().manual_seed(0))
    assert 4.5 <= module.weight.min() < module.weight.max() <= 5.5
    out = module(torch.full((4, 1, 7, 7), float("nan")))
    assert out.shape == (4, 3, 2, 1) and torch.equal(out[3], module.weight)
    out.sum().backward()
    assert (module.weight.grad == 4).all()


GATED = """
[net]
width=32
height=32
channels=3
[convolutional]
filters=8
size=3
stride=2
pad=1
activation=linear
[avgpool]
[convolutional]
filters={filters}
activation=logistic
[scale_channels]
from=0
[reorg]
stride={stride}
[implicit]
filters={implicit}
[scale_channels]
from=-2
"""


def test_gates_have_the_shape_of_what_they_scale_and_cost_nothing():
    model = Darknet.from_cfg(text=GATED.format(filters=8, stride=2, implicit=32))
    assert [layer.output_shape for layer in model.plan] == [
        (8, 16, 16), (8, 1, 1), (8, 1, 1), (8, 16, 16), (32, 8, 8), (32, 1, 1), (32, 8, 8)
    ]  # fmt: skip
    assert [layer.parameters for layer in model.plan] == [8 * 28, 0, 72, 0, 0, 32, 0]
    assert [layer.flops > 0 for layer in model.plan] == [True, False, True, False, False, False, False]


@pytest.mark.parametrize(("keys", "message"), [
    ({"filters": 4}, r"cfg:16: \[scale_channels\] has 1 x 1 x 4 factors, expected 1 x 1 x 8"),
    ({"stride": 3}, r"cfg:18: \[reorg\] stride=3 does not divide 16 x 16 x 8"),
    ({"implicit": 31}, r"cfg:22: \[scale_channels\] has 1 x 1 x 31 factors, expected 1 x 1 x 32"),
])  # fmt: skip
def test_gates_that_do_not_fit_name_their_line(keys, message):
    with pytest.raises(ValueError, match=message):
        Darknet.from_cfg(text=GATED.format(**{"filters": 8, "stride": 2, "implicit": 32} | keys))


FORMULAS = {
    "linear": lambda x: x,
    "logistic": lambda x: 1 / (1 + math.exp(-x)),
    "leaky": lambda x: x if x > 0 else 0.1 * x,
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0),
    "relu6": lambda x: min(max(x, 0), 6),
    "tanh": math.tanh,
    "elu": lambda x: x if x >= 0 else math.exp(x) - 1,
    "selu": lambda x: 1.0507 * (x if x >= 0 else 1.6732 * (math.exp(x) - 1)),
    "gelu": lambda x: 0.5 * x * (1 + math.tanh(0.797885 * x + 0.035677 * x**3)),
    "hard_mish": lambda x: x if x > 0 else x * x / 2 + x if x > -2 else 0,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_darknets_formula(name):
    points = [-30.0, -6.5, -2.0, -1.9, -0.3, 0.0, 0.4, 2.5, 7.0, 30.0]
    found = ACTIVATIONS[name]()(torch.tensor(points))
    torch.testing.assert_close(found, torch.tensor([FORMULAS[name](x) for x in points]), rtol=1e-4, atol=1e-5)


def test_dropout_only_acts_in_training():
    network = build("shapes")
    sections = (network.sections[0], Dropout(probability=0.5), *network.sections[1:2])
    model = Darknet(network._replace(sections=sections))
    ones = torch.ones(1, 16, 8, 8)
    assert (model.layers[1](ones) == 0).any()
    assert torch.equal(model.eval().layers[1](ones), ones)
