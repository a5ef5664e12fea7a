"""Mish, x * tanh(softplus(x)), on a CPU: one exponential, over pieces that stay in the cache.
Source: arXiv 1908.08681.  With t = 1 / (1 + e^x), tanh(softplus(x)) is 2 / (1 + t^2) - 1: no value overflows."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIECE = 1 << 17  # values a thread takes at a time: fewer cost calls, more leave the cache


class Mish(nn.Module):
    """x of any shape -> the same shape; torch's own kernels but for float32 on a CPU.
    Where no gradient is asked it overwrites x, as activations with inplace=True do."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and not torch.onnx.is_in_onnx_export():
            t = torch.sigmoid(-x)
            return x * (2 / (1 + t * t) - 1)  # which a compiler makes one loop of
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling() or not _is_dense(x):
            return F.mish(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return PiecewiseMish.apply(x)
        _forward(x, x)
        return x


class PiecewiseMish(torch.autograd.Function):
    """Of float32 on a CPU.  Keeps x alone for the way back."""

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
        if gradient.stride() != x.stride():
            gradient = torch.empty_like(x).copy_(gradient)
        back = torch.empty_like(x)
        _backward(x, gradient, back)
        return back


def _forward(x: Tensor, y: Tensor) -> None:
    """Fills y, which may be x."""
    one = x.new_ones(())
    for x_, y_, t in _pieces(x, y):
        torch.neg(x_, out=y_)
        torch.sigmoid(y_, out=t)
        torch.addcmul(one, t, t, out=t)  # 1 + t^2
        y_.addcdiv_(y_, t, value=-2)  # -x + 2 x / (1 + t^2)


def _backward(x: Tensor, gradient: Tensor, back: Tensor) -> None:
    """Fills back with gradient * (T + x s (1 - T^2)), where T is the tanh and s = 1 - t the logistic of x."""
    minus_one, one = x.new_tensor(-1.0), x.new_ones(())
    for x_, gradient_, back_, t in _pieces(x, gradient, back):
        torch.neg(x_, out=back_)
        torch.sigmoid(back_, out=t)
        torch.addcmul(x_, x_, t, value=-1, out=back_)  # x s
        torch.addcmul(one, t, t, out=t)
        torch.addcdiv(minus_one, one, t, value=2, out=t)  # T
        torch.ops.aten.tanh_backward.grad_input(back_, t, grad_input=back_)
        back_.add_(t).mul_(gradient_)


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Values of dense tensors of equal strides in the order of memory, piece by piece; behind them as much room."""
    piece = PIECE * torch.get_num_threads()
    flat = [tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    room = tensors[0].new_empty(min(piece, tensors[0].numel()))
    for parts in zip(*(values.split(piece) for values in flat), strict=True):
        yield *parts, room[: len(parts[0])]
