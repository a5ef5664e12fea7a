"""CmBN and DropBlock against loops over values; how both learn where training stands.
Source: Darknet's src/blas_kernels.cu (fast_v_cbn_kernel), dropout_layer_kernels.cu, batchnorm_layer.c."""

import math

import pytest
import torch

from yolov4.model import Darknet
from yolov4.staged import CrossBatchNorm, DropBlock, growth, set_stage

CFG = """
[net]
batch=4
width=32
height=32
channels=3
max_batches=100
[convolutional]
batch_normalize={normalise}
filters=4
size=3
stride=4
pad=1
activation=leaky
[dropout]
{dropout}
"""


def model(normalise="1", dropout="dropblock=1"):
    return Darknet.from_cfg(text=CFG.format(normalise=normalise, dropout=dropout))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cross_norm(channels=2):
    module = CrossBatchNorm(channels, eps=1e-5, momentum=0.01)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([1.5, -0.5]))
        module.bias.copy_(torch.tensor([0.2, 0.1]))
    return module


def test_cmbn_is_the_loop_over_mini_batches():
    """The averages of mini-batches 1..n normalise; the rolling averages take every one of them."""
    module, mean_average, square_average = cross_norm(), 0.0, 0.0
    rolling_mean, rolling_variance = 0.0, 1.0
    for number in range(3):
        x = random(2, 2, 3, 2, seed=number) * (number + 1) + number
        values = x[:, 1].flatten().tolist()
        mean = sum(values) / 12
        squares = max(sum(v * v for v in values) / 11, mean * mean)
        mean_average = (mean_average * number + mean) / (number + 1)
        square_average = (square_average * number + squares) / (number + 1)
        variance = max(square_average - mean_average**2, 0)
        rolling_mean = 0.99 * rolling_mean + 0.01 * mean_average
        rolling_variance = 0.99 * rolling_variance + 0.01 * variance
        set_stage(module, 1.0, number)
        expected = (x[:, 1] - mean_average) / math.sqrt(variance + 1e-5) * -0.5 + 0.1
        torch.testing.assert_close(module(x)[:, 1].detach(), expected, rtol=1e-5, atol=1e-5)
    assert module.running_mean[1].item() == pytest.approx(rolling_mean, rel=1e-5)
    assert module.running_var[1].item() == pytest.approx(rolling_variance, rel=1e-5)


def test_cmbn_forgets_the_batch_before():
    module, x = cross_norm(), random(2, 2, 3, 2)
    first = module(x)
    set_stage(module, 1.0, 1)
    module(x + 5)
    set_stage(module, 1.0, 0)
    assert torch.equal(module(x), first)


def test_cmbn_has_cudnns_gradient_for_the_statistics_it_used():
    """Darknet hands cuDNN the averaged statistics; the formula for a batch of its own follows, on those."""
    module = cross_norm()
    module(random(2, 2, 3, 2))
    set_stage(module, 1.0, 1)
    x, gradient = (random(2, 2, 3, 2, seed=1) + 1).requires_grad_(), random(2, 2, 3, 2, seed=2)
    module(x).backward(gradient)
    mean, squares = module.averages
    inverse = 1 / math.sqrt(squares[0] - mean[0] ** 2 + 1e-5)
    normalised = (x[:, 0].detach() - mean[0]) * inverse
    dy = gradient[:, 0]
    expected = 1.5 * inverse * (dy - dy.mean() - normalised * (dy * normalised).mean())
    torch.testing.assert_close(x.grad[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert module.weight.grad[0].item() == pytest.approx((dy * normalised).sum().item(), rel=1e-4)
    assert module.bias.grad[0].item() == pytest.approx(dy.sum().item(), rel=1e-4)


def test_one_mini_batch_of_cmbn_is_nearly_batch_normalisation():
    """Not quite: the mean of squares is over n - 1, that of the values over n."""
    x, plain = random(8, 2, 16, 16) * 2 + 1, torch.nn.BatchNorm2d(2)
    module = CrossBatchNorm(2)
    torch.testing.assert_close(module(x), plain(x), rtol=2e-3, atol=2e-3)
    assert not torch.equal(module(x), plain(x))
    mean, variance = module.running_mean[:, None, None], module.running_var[:, None, None]
    torch.testing.assert_close(module.eval()(x), (x - mean) / (variance + 1e-5).sqrt())


def test_both_spellings_make_cmbn():
    assert isinstance(model("2").layers[0][1], CrossBatchNorm)
    assert isinstance(model("1\ncbn=1").layers[0][1], CrossBatchNorm)
    assert type(model("1\ncbn=0").layers[0][1]) is torch.nn.BatchNorm2d


def loop_of_dropblock(draws, probability, block):
    """Darknet's kernel, channel by channel -> what is kept."""
    kept = torch.ones(draws.shape, dtype=torch.bool)
    height, width = draws.shape[2:]
    for image in range(draws.shape[0]):
        for channel in range(draws.shape[1]):
            values = draws[image, channel].flatten().tolist()
            place = min(range(len(values)), key=values.__getitem__)
            if values[place] >= probability / block**2:
                continue
            row, column = divmod(place, width)
            row, column = (
                at - (side - block) if at > side - block else at for at, side in ((row, height), (column, width))
            )
            row, column = max(0, min(row, height - block)), max(0, min(column, width - block))
            kept[image, channel, row : row + block, column : column + block] = False
    return kept


@pytest.mark.parametrize(("height", "width"), [(9, 6), (5, 5), (8, 11)])
@pytest.mark.parametrize(("grown", "block"), [(1.0, 4), (0.6, 2), (0.1, 1)])
def test_dropblock_is_the_loop_over_channels(height, width, grown, block):
    module, draws = DropBlock(0.9, 4, 0.0), torch.rand(4, 16, height, width)
    module.grown = grown
    expected = loop_of_dropblock(draws, 0.9 * grown, block)
    assert torch.equal(module._keep(draws), expected)
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
    sizes = {
        "": (7, 0), "dropblock_size_abs=3": (3, 0), "dropblock_size_rel=0.5": (0, 0.5),
        "dropblock_size_abs=3\ndropblock_size_rel=0.5": (3, 0), "dropblock_size_abs=20": (8, 0),
    }  # fmt: skip
    for keys, (size, relative) in sizes.items():
        module = model(dropout=f"dropblock=1\n{keys}").layers[1]
        assert (module.size, module.relative) == (size, relative), keys


def test_dropblock_starts_with_nothing_and_is_full_after_85_percent():
    assert [growth(iteration, 100) for iteration in (1, 18, 86, 100)] == [0, 0.2, 1, 1]
    network, ones = model(), torch.ones(2, 4, 8, 8)
    set_stage(network, 0.0, 0)
    assert torch.equal(network.layers[1](ones), ones)
    assert torch.equal(network.eval().layers[1](ones), ones)
