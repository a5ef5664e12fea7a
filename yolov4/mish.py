"""Mish, x * tanh(softplus(x)), on a CPU: one exponential, over pieces that stay in the cache, in float32.
Source: arXiv 1908.08681.  With t = 1 / (1 + e^x), tanh(softplus(x)) is 2 / (1 + t^2) - 1: no value overflows."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TYPES = (torch.float32, torch.bfloat16)  # of x; what is computed is float32
PIECE = 1 << 17  # values a thread takes at a time: fewer cost calls, more leave the cache


class Mish(nn.Module):
    """x of any shape -> the same shape; torch's own kernels but for float32 and bfloat16 on a CPU.
    Where no gradient is asked it overwrites x, as activations with inplace=True do."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and not torch.onnx.is_in_onnx_export():
            t = torch.sigmoid(-x)
            return x * (2 / (1 + t * t) - 1)  # which a compiler makes one loop of
        if not _takes_pieces(x) or not (x.is_contiguous() or _is_channels_last(x)):
            return F.mish(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return PiecewiseMish.apply(x)
        _forward(x, x)
        return x


class PiecewiseMish(torch.autograd.Function):
    """Keeps x for the way back."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        _forward(x, y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        back = torch.empty_like(x)
        _backward(x, _laid_out_as(x, gradient), back, torch.tensor(-1.0), torch.tensor(0.0))
        return back


def normalise_and_mish(x: Tensor, normalisation: nn.BatchNorm2d) -> Tensor | None:
    """Mish of the batch normalisation of x (B, C, h, w) in training; None where it has to be done in two steps.
    It keeps x alone, where the two keep the normalised values too, and computes these again on the way back."""
    known = type(normalisation) is nn.BatchNorm2d and normalisation.training
    if not (known and torch.is_grad_enabled() and x.requires_grad and _takes_pieces(x) and _is_channels_last(x)):
        return None
    normalisation.num_batches_tracked.add_(1)
    averages = normalisation.running_mean, normalisation.running_var
    parameters = normalisation.weight, normalisation.bias
    return NormalisedMish.apply(x, *parameters, *averages, normalisation.momentum, normalisation.eps)


class NormalisedMish(torch.autograd.Function):
    """Of x (B, C, h, w), channels last, by weight, bias, running mean and variance, all (C,); momentum, eps."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, *settings) -> Tensor:
        *averages, momentum, eps = settings
        y, mean, inverse = torch.native_batch_norm(x, -weight, -bias, *averages, True, momentum, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.eps = eps
        for minus, y_, t in _pieces((y,), y):
            _of_minus(minus, y_, t)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        scale = -weight * inverse
        back = torch.empty_like(x)
        _backward(x, _laid_out_as(x, gradient), back, scale, -bias - mean * scale)
        back = torch.ops.aten.native_batch_norm_backward(
            back, x, weight, None, None, mean, inverse, True, ctx.eps, (True, True, True)
        )
        return *back, None, None, None, None


def _forward(x: Tensor, y: Tensor) -> None:
    """Fills y, which may be x."""
    for x_, y_, t in _pieces((x,), y):
        _of_minus(torch.neg(x_, out=y_), y_, t)


def _of_minus(minus: Tensor, y: Tensor, t: Tensor) -> None:
    """y, which may be `minus`, becomes Mish of -minus; t: room for as much."""
    torch.sigmoid(minus, out=t)
    torch.addcmul(t.new_ones(()), t, t, out=t)  # 1 + t^2
    torch.addcdiv(minus, minus, t, value=-2, out=y)


def _backward(x: Tensor, gradient: Tensor, back: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Fills back with the gradient with respect to Mish's input, which is -(x * scale + shift), both () or (C,).
    It is gradient * (T + input s (1 - T^2)), where T is the tanh and s = 1 - t the logistic of the input."""
    minus_one, one = scale.new_tensor(-1.0), scale.new_ones(())
    for x_, gradient_, back_, t, minus in _pieces((x, gradient), back, rooms=2):
        by_channel = (-1, scale.numel())
        torch.addcmul(shift, x_.view(by_channel), scale, out=minus.view(by_channel))
        torch.sigmoid(minus, out=t)
        torch.addcmul(minus, minus, t, value=-1, out=back_)  # -input s
        torch.addcmul(one, t, t, out=t)
        torch.addcdiv(minus_one, one, t, value=2, out=t)  # T
        torch.ops.aten.tanh_backward.grad_input(back_, t, grad_input=back_)
        torch.sub(t, back_, out=back_).mul_(gradient_)


def _takes_pieces(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in TYPES and not torch.compiler.is_compiling()


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _laid_out_as(x: Tensor, gradient: Tensor) -> Tensor:
    return gradient if gradient.stride() == x.stride() else torch.empty_like(x).copy_(gradient)


def _pieces(inputs: tuple[Tensor, ...], output: Tensor, rooms: int = 1) -> Iterator[tuple[Tensor, ...]]:
    """Values of dense tensors of equal strides in the order of memory, piece by piece, whole pixels of all channels;
    behind them `rooms` tensors of as many.  All are float32: of a narrower tensor copies, the output's written back."""
    pixel = output.shape[1] if output.ndim > 1 else 1
    piece = max(PIECE * torch.get_num_threads() // max(pixel, 1), 1) * max(pixel, 1)
    flat = [tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in (*inputs, output)]
    room = torch.empty(len(flat) + rooms, min(piece, output.numel()))
    for *parts, target in zip(*(values.split(piece) for values in flat), strict=True):
        near = list(room[:, : len(target)])
        wide = [part if part.dtype == torch.float32 else near.pop().copy_(part) for part in parts]
        filled = target if target.dtype == torch.float32 else near.pop()
        yield *wide, filled, *near[:rooms]
        if filled is not target:
            target.copy_(filled)
