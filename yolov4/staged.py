"""Layers that behave by the stage of training: CmBN over the mini-batches of a batch, DropBlock that grows.
Source: YOLOv4, section 3.3; Darknet's src/blas_kernels.cu (fast_v_cbn_kernel), dropout_layer_kernels.cu."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

FULL = 0.85  # of max_batches: from then on blocks have their whole size and probability


def set_stage(model: nn.Module, grown: float, mini_batch: int) -> None:
    """Tells all layers where training stands.  grown: 0..1, see `growth`; mini_batch: of this batch, from 0."""
    for module in model.modules():
        if isinstance(module, DropBlock):
            module.grown = grown
        elif isinstance(module, CrossBatchNorm):
            module.mini_batch = mini_batch


def growth(iteration: int, max_batches: int) -> float:
    """The share of a block's size and probability in an iteration counted from 1."""
    done = iteration - 1  # what Darknet counts
    return done / (max_batches * FULL) if done < max_batches * FULL else 1.0


class CrossBatchNorm(nn.BatchNorm2d):
    """batch_normalize=2 (CmBN): mini-batch n of a batch has the mean of the statistics of mini-batches 1..n."""

    def __init__(self, channels: int, **options):
        super().__init__(channels, **options)
        self.mini_batch = 0
        self.averages: tuple[Tensor, Tensor] | None = None  # of x and x^2, (C,) each

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            mean, variance = self._statistics(x.float())
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        inverse = (variance + self.eps).rsqrt()
        return NormaliseByGiven.apply(x, mean, inverse, self.weight, self.bias, lambda means: means)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        count = x.numel() // x.shape[1]
        mean = x.mean((0, 2, 3))
        squares = x.square().sum((0, 2, 3)) / max(count - 1, 1)
        fresh = (mean, squares.maximum(mean.square()))
        if self.mini_batch == 0 or self.averages is None:
            self.averages = fresh
        else:
            share = 1 / (self.mini_batch + 1)
            self.averages = tuple(old.lerp(new, share) for old, new in zip(self.averages, fresh, strict=True))
        mean, squares = self.averages
        return mean, (squares - mean.square()).clamp(min=0)


class NormaliseByGiven(torch.autograd.Function):
    """(x - mean) * inverse * weight + bias; mean and inverse (C,) are those of x and of what `average` joins with it.

    average: means over x (2, C) -> over all of it.  CmBN's gives them back: the gradient takes mean and inverse for
    those of x alone, as cuDNN does in Darknet, although other mini-batches have their part in them.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor,
        average: Callable[[Tensor], Tensor],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, mean, inverse, weight)
        ctx.average = average
        normalised = (x.float() - _wide(mean)) * _wide(inverse)
        return (normalised * _wide(weight) + _wide(bias)).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, weight = ctx.saved_tensors
        gradient = gradient.float()
        normalised = (x.float() - _wide(mean)) * _wide(inverse)
        bias_gradient = gradient.sum((0, 2, 3))
        weight_gradient = (gradient * normalised).sum((0, 2, 3))
        count = x.numel() // x.shape[1]
        common, along = ctx.average(torch.stack((bias_gradient, weight_gradient)) / count)
        back = gradient - _wide(common) - normalised * _wide(along)
        return (back * _wide(weight * inverse)).to(x.dtype), None, None, weight_gradient, bias_gradient, None


class DropBlock(nn.Module):
    """[dropout] dropblock=1: in every channel of every image at most one square of cells becomes 0.

    probability, and the square's side (`size` cells, or `relative` to the layer) are those of the end of training;
    until then they are times `grown`.  What is left is scaled by the share of the image that is left.
    """

    def __init__(self, probability: float, size: int, relative: float):
        super().__init__()
        self.probability, self.size, self.relative, self.grown = probability, size, relative, 1.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = self._keep(torch.rand(x.shape, device=x.device))  # (B, C, h, w)
        left = kept.sum((1, 2, 3), keepdim=True).clamp(min=1)
        return x * kept * (kept[0].numel() / left).to(x.dtype)

    def _keep(self, draws: Tensor) -> Tensor:
        """draws (B, C, h, w) in 0..1 -> the same shape, False in the blocks."""
        height, width = draws.shape[2:]
        side = self.relative * min(height, width) if self.relative else self.size
        block = max(1, min(int(side * self.grown), height, width))
        lowest, place = draws.flatten(2).min(2)  # (B, C)
        hit = lowest < self.probability * self.grown / block**2
        row, column = (
            _into(at, side - block)[..., None, None] for at, side in ((place // width, height), (place % width, width))
        )
        rows = torch.arange(height, device=draws.device)[:, None] - row  # (B, C, h, 1)
        columns = torch.arange(width, device=draws.device) - column  # (B, C, 1, w)
        inside = (rows >= 0) & (rows < block) & (columns >= 0) & (columns < block)
        return ~(inside & hit[..., None, None])


def _into(first: Tensor, last: int) -> Tensor:
    """First cells of blocks: beyond the last that fits they start anew from the other side."""
    return torch.where(first > last, first - last, first).clamp(0, last)


def _wide(channels: Tensor) -> Tensor:
    return channels[:, None, None]  # (C, 1, 1)
