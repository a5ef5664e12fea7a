"""Layers against loops over values, formulas and float64: pooling to Mish, CmBN and DropBlock.
Source: Darknet's src/*_layer.c, blas.c, blas_kernels.cu, activations.h."""

import math

import pytest
import torch
from torch.nn import functional as F

from yolov4 import layers
from yolov4.cfg import Convolutional, Shortcut
from yolov4.layers import ACTIVATIONS, CrossBatchNorm, DropBlock, Mish, growth, set_stage
from yolov4.model import Darknet


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pool", [(2, 2, 1), (2, 1, 1), (2, 2, 0), (3, 2, 2), (5, 1, 4), (4, 2, 3)])
@pytest.mark.parametrize(("height", "width"), [(7, 10), (8, 5)])
def test_maxpool_is_the_loop_over_windows(pool, height, width):
    size, stride, padding = pool
    x = -random(2, 3, height, width).abs() - 1  # all negative: a border of zeros would win
    rows, columns = ((side + padding - size) // stride + 1 for side in (height, width))
    expected = torch.empty(2, 3, rows, columns)
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride - padding // 2, column * stride - padding // 2
            window = x[:, :, max(top, 0) : top + size, max(left, 0) : left + size]
            expected[:, :, row, column] = window.amax((2, 3))
    assert torch.equal(layers.MaxPool(size, stride, padding)(x), expected)


@pytest.mark.parametrize("normalisation", ["none", "relu", "avg_relu", "softmax"])
@pytest.mark.parametrize("weights_type", ["none", "per_feature", "per_layer", "per_channel"])
def test_shortcut_is_the_loop_over_sources(weights_type, normalisation):
    keys = {"weights_type": weights_type, "weights_normalization": normalisation}
    section = Shortcut(from_=(-3, -4), activation="leaky", **keys)
    module = layers.Add(section, channels=4, sources=3)
    sources = [random(2, channels, 2, 3, seed=channels) for channels in (4, 2, 6)]
    if weights_type != "none":
        module.weight.data = random(3, 4 if weights_type == "per_channel" else 1)
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
    torch.testing.assert_close(module(*sources).detach(), F.leaky_relu(expected, 0.1))


def test_route_takes_its_group_of_every_source():
    first, second = random(1, 4, 2, 2), random(1, 6, 2, 2, seed=1)
    halves = torch.cat((first[:, 2:], second[:, 3:]), 1)
    assert torch.equal(layers.Concatenate(1, 0)(first, second), torch.cat((first, second), 1))
    assert torch.equal(layers.Concatenate(2, 1)(first, second), halves)
    assert torch.equal(layers.Concatenate(2, 0)(first), first[:, :2])


def test_scale_channels_and_sam_multiply():
    """A factor per channel, cell or value; the activation comes after the product."""
    scaled = torch.tensor([[[[1.0, 2.0]], [[3.0, -4.0]]]])  # (1, 2, 1, 2)
    per_channel, per_cell = torch.tensor([[[[2.0]], [[10.0]]]]), torch.tensor([[[[2.0, 10.0]]]])
    names = ("linear", "leaky", "relu")
    linear, leaky, relu = (layers.Scale(ACTIVATIONS[name]()) for name in names)
    assert linear(per_channel, scaled).flatten().tolist() == [2, 4, 30, -40]
    assert leaky(per_cell, scaled).flatten().tolist() == [2, 20, 6, -4]
    assert relu(scaled, scaled.clone()).flatten().tolist() == [1, 4, 9, 16]


def loop_of_reorg(x, shape, stride):
    """Darknet's loop over a shape (C, H, W) that it takes the values for, not always theirs."""
    channels, height, width = shape
    few, flat = channels // stride**2, x.reshape(len(x), -1)
    out = torch.empty_like(flat)
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                column, row = i * stride + k // few % stride, j * stride + k // few // stride
                index = column + width * stride * (row + height * stride * (k % few))
                out[:, i + width * (j + height * k)] = flat[:, index]
    return out


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("channels", "height", "width", "stride"), [(8, 4, 6, 2), (9, 3, 6, 3), (4, 2, 2, 1)]
)
def test_reorg_is_darknets_loop(old, channels, height, width, stride):
    x = random(2, channels, height, width)
    after = (channels * stride**2, height // stride, width // stride)
    expected = loop_of_reorg(x, (channels, height, width) if old else after, stride)
    assert torch.equal(layers.Reorganise(stride, old)(x), expected.view(2, *after))


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


def test_activations_are_darknets_formulas():
    points = [-30.0, -6.5, -2.0, -1.9, -0.3, 0.0, 0.4, 2.5, 7.0, 30.0]
    for name, activation in ACTIVATIONS.items():
        expected = torch.tensor([FORMULAS[name](x) for x in points])
        found = activation()(torch.tensor(points))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


EXTREMES = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 88.8, -88.8, 104.0, -104.0, 1e38, -1e38])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 1, 10), (0, 2, 3, 3), (2, 8, 99, 99)])
def test_mish_has_the_value_and_gradient_of_float64(shape, layout, dtype):
    x = EXTREMES.view(shape) if shape == (1, 1, 1, 10) else 4 * random(*shape)
    x = x.to(dtype, memory_format=layout).requires_grad_()
    exact, gradient = x.detach().double().requires_grad_(), random(*shape, seed=1).to(dtype)
    y, expected = Mish()(x), F.mish(exact)
    y.backward(gradient)  # of another layout than x
    expected.backward(gradient.double())
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]  # once: the rest is float32
    for found, wanted in ((y, expected), (x.grad, exact.grad)):
        assert found.stride() == x.stride() and found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=3e-6)
    with torch.no_grad():  # overwrites, with the same values
        again = x.detach().clone(memory_format=torch.preserve_format)
        assert torch.equal(Mish()(again), y) and torch.equal(again, y)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 8, 1, 2), (2, 64, 40, 40)])
def test_convolution_with_mish_is_float64s_in_training(shape, dtype, rtol):
    """Batch norm and Mish as one function: value, gradients, running statistics."""
    section = Convolutional(batch_normalize=1, filters=shape[1])
    layer = layers.ConvolutionLayer(section, shape[1], "mish")
    layer[0].weight.data = torch.eye(shape[1], dtype=dtype)[..., None, None]
    for seed, values in enumerate((layer[1].weight, layer[1].bias)):
        values.data = random(*values.shape, seed=seed)
    exact = torch.nn.BatchNorm2d(shape[1], eps=1e-5, momentum=0.01).double()
    exact.load_state_dict(layer[1].state_dict())
    x = (3 * random(*shape) + 1).to(dtype, memory_format=torch.channels_last).requires_grad_()
    wide, gradient = x.detach().double().requires_grad_(), random(*shape, seed=2).to(dtype)
    y, expected = layer(x), F.mish(exact(wide))
    y.backward(gradient)
    expected.backward(gradient.double())
    found = (y, x.grad, *(each.grad for each in layer[1].parameters()), *layer[1].buffers())
    wanted = (expected, wide.grad, *(each.grad for each in exact.parameters()), *exact.buffers())
    for one, other in zip(found, wanted, strict=True):
        atol = rtol / 5 * max(float(other.detach().abs().max()), 1)
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)


def model(normalise="1", dropout="dropblock=1"):
    text = f"[net] width=32 height=32 [convolutional] batch_normalize={normalise} filters=4 "
    text += f"size=3 stride=4 pad=1 activation=leaky [dropout] {dropout}"
    return Darknet.from_cfg(text=text.replace(" ", "\n"))


def cross_norm():
    module = CrossBatchNorm(2, eps=1e-5, momentum=0.01)
    module.weight.data, module.bias.data = torch.tensor([1.5, -0.5]), torch.tensor([0.2, 0.1])
    return module


def test_cmbn_is_the_loop_over_mini_batches():
    """The mean of the statistics of mini-batches 1..n normalises; running statistics take it."""
    module, mean_so_far, squares_so_far = cross_norm(), 0.0, 0.0
    running_mean, running_variance = 0.0, 1.0
    for number in range(3):
        x = random(2, 2, 3, 2, seed=number) * (number + 1) + number
        values = x[:, 1].flatten().tolist()
        mean = sum(values) / 12
        squares = max(sum(v * v for v in values) / 11, mean * mean)
        mean_so_far = (mean_so_far * number + mean) / (number + 1)
        squares_so_far = (squares_so_far * number + squares) / (number + 1)
        variance = max(squares_so_far - mean_so_far**2, 0)
        running_mean = 0.99 * running_mean + 0.01 * mean_so_far
        running_variance = 0.99 * running_variance + 0.01 * variance
        set_stage(module, 1.0, number)
        expected = (x[:, 1] - mean_so_far) / math.sqrt(variance + 1e-5) * -0.5 + 0.1
        torch.testing.assert_close(module(x)[:, 1].detach(), expected, rtol=1e-5, atol=1e-5)
    assert module.running_mean[1].item() == pytest.approx(running_mean, rel=1e-5)
    assert module.running_var[1].item() == pytest.approx(running_variance, rel=1e-5)
    set_stage(module, 1.0, 0)  # the next batch starts anew
    assert torch.equal(module(x), cross_norm()(x))


def test_cmbn_has_cudnns_gradient_for_the_statistics_it_used():
    """Darknet gives cuDNN the joined statistics, and it takes them for those of x."""
    module = cross_norm()
    module(random(2, 2, 3, 2))
    set_stage(module, 1.0, 1)
    x, gradient = (random(2, 2, 3, 2, seed=1) + 1).requires_grad_(), random(2, 2, 3, 2, seed=2)
    module(x).backward(gradient)
    mean, squares = (values.flatten()[0] for values in module.statistics)
    inverse = 1 / math.sqrt(squares - mean**2 + 1e-5)
    normalised, dy = (x[:, 0].detach() - mean) * inverse, gradient[:, 0]
    expected = 1.5 * inverse * (dy - dy.mean() - normalised * (dy * normalised).mean())
    torch.testing.assert_close(x.grad[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert module.weight.grad[0].item() == pytest.approx((dy * normalised).sum().item(), rel=1e-4)
    assert module.bias.grad[0].item() == pytest.approx(dy.sum().item(), rel=1e-4)


def test_both_spellings_make_cmbn():
    kinds = [type(model(keys).layers[0][1]) for keys in ("2", "1 cbn=1", "1 cbn=0")]
    assert kinds == [CrossBatchNorm, CrossBatchNorm, torch.nn.BatchNorm2d]


@pytest.mark.parametrize(("height", "width"), [(9, 6), (5, 5)])
@pytest.mark.parametrize(("grown", "block"), [(1.0, 4), (0.6, 2), (0.1, 1)])
def test_dropblock_is_darknets_loop_over_channels(height, width, grown, block):
    module, draws = DropBlock(0.9, 4, 0.0), torch.rand(4, 16, height, width)
    module.grown, expected = grown, torch.ones(draws.shape, dtype=torch.bool)
    for values, kept in zip(draws.flatten(0, 1), expected.flatten(0, 1), strict=True):
        if values.min() < 0.9 * grown / block**2:
            row, column = divmod(int(values.argmin()), width)
            row -= (height - block) * (row > height - block)
            column -= (width - block) * (column > width - block)
            row, column = min(row, height - block), min(column, width - block)
            kept[row : row + block, column : column + block] = False
    assert torch.equal(module.keep(draws), expected)
    assert 0 < (~expected).sum() < expected.numel()


def test_dropblock_scales_each_image_by_what_is_left_of_it():
    torch.manual_seed(0)
    x = torch.ones(3, 16, 8, 8, requires_grad=True)
    y = DropBlock(0.9, 4, 0.0)(x)
    for image in y:
        left = (image != 0).sum()
        assert 0 < left < 1024 and (1024 - left) % 16 == 0
        torch.testing.assert_close(image.max(), 1024 / left)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # the same blocks, the same scale


def test_dropblock_sizes_are_darknets():
    for keys, expected in (
        ("", (7, 0)), ("dropblock_size_abs=3", (3, 0)), ("dropblock_size_rel=0.5", (0, 0.5)),
        ("dropblock_size_abs=3 dropblock_size_rel=0.5", (3, 0)), ("dropblock_size_abs=20", (8, 0)),
    ):  # fmt: skip
        module = model(dropout=f"dropblock=1 {keys}").layers[1]
        assert (module.size, module.relative) == expected, keys


def test_dropblock_starts_with_nothing_and_is_full_after_85_percent():
    assert [growth(iteration, 100) for iteration in (1, 18, 86, 100)] == [0, 0.2, 1, 1]
    network, ones = model(), torch.ones(2, 4, 8, 8)
    set_stage(network, 0.0, 0)
    assert torch.equal(network.layers[1](ones), ones)
    assert torch.equal(network.eval().layers[1](ones), ones)
