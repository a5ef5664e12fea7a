"""Mish in pieces is Mish: value and gradient against torch's own in float64, at every size, layout and extreme."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from yolov4 import mish
from yolov4.mish import Mish, normalise_and_mish

EXTREMES = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 88.8, -88.8, 104.0, -104.0, 1e38, -1e38])


def both_ways(x, gradient, function):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    y.backward(gradient)
    return y.detach(), x.grad


@pytest.fixture(params=[1, 7, 1 << 17])
def piece(request, monkeypatch):
    """Sizes of a piece, so that the last one is full, partial, or the only one"""
    monkeypatch.setattr(mish, "PIECE", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 1, 1), (0, 2, 3, 3)])
def test_value_and_gradient(piece, shape, layout, dtype):
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(shape, generator=generator)).to(dtype, memory_format=layout)
    gradient = torch.randn(shape, generator=generator).to(dtype)  # of another layout than x
    found = both_ways(x, gradient, Mish())
    wanted = both_ways(x.double(), gradient.double(), F.mish)
    for one, other in zip(found, wanted, strict=True):
        assert one.stride() == x.stride() and one.dtype == dtype
        rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]  # once: all before it is float32
        torch.testing.assert_close(one.double(), other, rtol=rounding, atol=3e-6)


def test_extremes_stay_finite_and_right():
    found, slope = both_ways(EXTREMES, torch.ones(len(EXTREMES)), Mish())
    wanted, wanted_slope = both_ways(EXTREMES.double(), torch.ones(len(EXTREMES)).double(), F.mish)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope.double(), wanted_slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradient_it_overwrites_with_the_same_values(dtype):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = Mish()(x.clone().requires_grad_())
    with torch.no_grad():
        y = Mish()(x)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(y, kept)


def test_with_gradient_its_input_stays():
    x = torch.randn(64, requires_grad=True)
    before = x.detach().clone()
    Mish()(x * 1).sum().backward()
    assert torch.equal(x, before)


@pytest.mark.parametrize("make", [lambda x: x[:, ::2], lambda x: x.double(), lambda x: x.half()])
def test_other_layouts_and_types_are_torchs(make):
    x = make(torch.randn(4, 6, 3, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(Mish()(x), F.mish(x))
    with torch.no_grad():
        assert torch.equal(Mish()(x), F.mish(x))


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="older ones export as they compile")
def test_an_exported_graph_has_the_operator_mish():
    program = torch.onnx.export(Mish().eval(), (torch.randn(2, 3),), dynamo=True, opset_version=18, verbose=False)
    assert [node.op_type for node in program.model_proto.graph.node] == ["Mish"]


def layer_of(channels: int) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(1)
    normalisation = nn.BatchNorm2d(channels, eps=1e-5, momentum=0.01)
    for values in (normalisation.weight, normalisation.bias):
        nn.init.normal_(values, generator=generator)
    return normalisation


def channels_last(*shape: int) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return (3 * x + 1).to(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float32, 1e-5, 2e-6), (torch.bfloat16, 0.02, 0.004)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 8, 1, 2), (2, 64, 40, 40)])
def test_normalised_it_is_batch_normalisation_then_mish(piece, shape, dtype, rtol, atol):
    x, normalisation = channels_last(*shape).detach().to(dtype).requires_grad_(), layer_of(shape[1])
    wide = x.detach().double().requires_grad_()
    reference = layer_of(shape[1]).double()
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    y, wanted = normalise_and_mish(x, normalisation), F.mish(reference(wide))
    gradient = gradient.to(dtype)
    y.backward(gradient)
    wanted.backward(gradient.double())
    pairs = [(y, wanted), (x.grad, wide.grad)]
    pairs += [
        (found.grad, other.grad)
        for found, other in zip(normalisation.parameters(), reference.parameters(), strict=True)
    ]
    pairs += list(zip(normalisation.buffers(), reference.buffers(), strict=True))  # rolling averages and the count
    for found, other in pairs:
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(found.double(), other.double(), rtol=rtol, atol=atol * max(scale, 1))


@pytest.mark.parametrize(
    "x, change",
    [
        (channels_last(2, 3, 4, 4), lambda layer: layer.eval()),
        (channels_last(2, 3, 4, 4), lambda layer: nn.SyncBatchNorm.convert_sync_batchnorm(layer)),
        (channels_last(2, 3, 4, 4).detach(), lambda layer: layer),
        (channels_last(2, 3, 4, 4).half(), lambda layer: layer),
        (torch.randn(2, 3, 4, 4, requires_grad=True), lambda layer: layer),
        (channels_last(2, 3, 4, 4), lambda _: nn.Identity()),
    ],
)
def test_everything_else_takes_two_steps(x, change):
    assert normalise_and_mish(x, change(layer_of(3))) is None
