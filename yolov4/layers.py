"""The layers that torch.nn does not have as Darknet means them, and its activations by name.
Source: Darknet's src/*_layer.c, blas_kernels.cu; Mish arXiv:1908.08681; YOLOv4, section 3.3."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from yolov4.graph import convolution_padding

PIECE = 1 << 17  # values of Mish per thread at a time: fewer cost calls, more leave the cache
FULL = 0.85  # of max_batches: from then on dropped blocks have their whole size and probability


class Mish(nn.Module):
    """x * tanh(softplus(x)), any shape.  Overwrites x where no gradient is asked for.

    On a CPU it has one exponential and works in pieces that stay in the cache: training is 15 %
    faster, inference 16 to 57 %.  With t = sigmoid(-x) it is x * (2 / (1 + t^2) - 1), which never
    overflows.  bfloat16 is computed in float32.
    """

    def forward(self, x):
        if torch.compiler.is_compiling() and not torch.onnx.is_in_onnx_export():
            t = torch.sigmoid(-x)
            return x * (2 / (1 + t * t) - 1)  # which the compiler makes one loop of
        if not _in_pieces(x, torch.contiguous_format, torch.channels_last):
            return F.mish(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return PiecewiseMish.apply(x)
        return _mish(x, x)


class PiecewiseMish(torch.autograd.Function):
    """Saves x for backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return _mish(x, torch.empty_like(x))

    @staticmethod
    def backward(ctx, gradient):
        return _mish_gradient(*ctx.saved_tensors, gradient, torch.tensor(-1.0), torch.tensor(0.0))


class NormalisedMish(torch.autograd.Function):
    """Batch norm in training, then Mish, of x (B, C, h, w) in channels last.

    Saves x for backward alone, not the normalised values too: training is 13 % faster and needs
    0.3 GiB less.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, norm):
        running, ctx.eps = (norm.running_mean, norm.running_var), norm.eps
        y, mean, inverse = torch.native_batch_norm(
            x, -weight, -bias, *running, True, norm.momentum, norm.eps
        )
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        return _mish(y, y, negated=True)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, bias, mean, inverse = ctx.saved_tensors
        scale = -weight * inverse
        gradient = _mish_gradient(x, gradient, scale, -bias - mean * scale)
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse, True, ctx.eps, (True, True, True)
        )
        return *gradients, None


def _mish(x, y, negated=False):
    """Fills y, which may be x, with Mish of x, or of -x."""
    for x_, y_, t in _pieces((x,), y, scratch=1):
        minus = x_ if negated else torch.neg(x_, out=y_)
        torch.sigmoid(minus, out=t)
        torch.addcmul(t.new_ones(()), t, t, out=t)  # 1 + t^2
        torch.addcdiv(minus, minus, t, value=-2, out=y_)
    return y


def _mish_gradient(x, gradient, scale, shift):
    """The gradient with respect to Mish's input, -(x * scale + shift), both () or (C,).
    It is gradient * (T + input s (1 - T^2)), where T is the tanh and s = 1 - t the logistic."""
    output = torch.empty_like(x)
    if gradient.stride() != x.stride():
        gradient = torch.empty_like(x).copy_(gradient)
    one = scale.new_ones(())
    for x_, gradient_, y_, t, minus in _pieces((x, gradient), output, scratch=2):
        by_channel = (-1, scale.numel())
        torch.addcmul(shift, x_.view(by_channel), scale, out=minus.view(by_channel))
        torch.sigmoid(minus, out=t)
        torch.addcmul(minus, minus, t, value=-1, out=y_)  # -input s
        torch.addcmul(one, t, t, out=t)
        torch.addcdiv(-one, one, t, value=2, out=t)  # T
        torch.ops.aten.tanh_backward.grad_input(y_, t, grad_input=y_)
        torch.sub(t, y_, out=y_).mul_(gradient_)
    return output


def _pieces(inputs, output, scratch):
    """Pieces of tensors (B, C, h, w) of equal strides in the order of memory, whole pixels of all
    channels, then `scratch` buffers of the same size.  All are float32: bfloat16 is copied, and the
    output written back."""
    flat = [each.as_strided((each.numel(),), (1,)) for each in (*inputs, output)]
    channels = output.shape[1]
    size = max(PIECE * torch.get_num_threads() // channels, 1) * channels
    buffers = torch.empty(len(flat) + scratch, min(size, output.numel()))
    for *pieces, target in zip(*(values.split(size) for values in flat), strict=True):
        free = list(buffers[:, : len(target)])
        copied = target.dtype != torch.float32
        wide = [free.pop().copy_(piece) if copied else piece for piece in pieces]
        filled = free.pop() if copied else target
        yield [*wide, filled, *free[:scratch]]
        if copied:
            target.copy_(filled)


def _in_pieces(x, *layouts):
    known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.ndim == 4
    dense = known and any(x.is_contiguous(memory_format=layout) for layout in layouts)
    return dense and not torch.compiler.is_compiling()


class ConvolutionLayer(nn.Sequential):
    """Convolution, batch norm or nothing, activation."""

    def __init__(self, section, channels, activation):
        normalised = section.batch_normalize
        norm = CrossBatchNorm if normalised == 2 else nn.BatchNorm2d
        super().__init__(
            nn.Conv2d(
                channels, section.filters, section.size, section.stride,
                convolution_padding(section) * section.dilation, section.dilation, section.groups,
                bias=not normalised,
            ),
            norm(section.filters, eps=1e-5, momentum=0.01) if normalised else nn.Identity(),
            ACTIVATIONS[activation](),
        )  # fmt: skip

    def forward(self, x):
        convolution, norm, activation = self
        x = convolution(x)
        known = type(norm) is nn.BatchNorm2d and isinstance(activation, Mish)
        training = norm.training and x.requires_grad
        if known and training and _in_pieces(x, torch.channels_last):
            norm.num_batches_tracked.add_(1)
            return NormalisedMish.apply(x, norm.weight, norm.bias, norm)
        return activation(norm(x))


def set_stage(model, grown, mini_batch):
    """Tells all layers where training is.  grown: 0..1, see `growth`; mini_batch: of the batch,
    from 0."""
    for module in model.modules():
        if isinstance(module, DropBlock):
            module.grown = grown
        elif isinstance(module, CrossBatchNorm):
            module.mini_batch = mini_batch


def growth(iteration, max_batches):
    """The share of a dropped block's size and probability in an iteration, counted from 1."""
    return min((iteration - 1) / (max_batches * FULL), 1.0)  # Darknet counts from 0


class CrossBatchNorm(nn.BatchNorm2d):
    """batch_normalize=2 (CmBN): mini-batch n of a batch has the mean of the statistics of its
    mini-batches 1..n.  Source: Darknet's fast_v_cbn_kernel."""

    mini_batch = 0
    statistics = None  # mean of x, mean of x^2, (1, C, 1, 1) each

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        wide, axes, shape = x.detach().float(), (0, 2, 3), (1, -1, 1, 1)
        mean = wide.mean(axes, keepdim=True)
        squares = wide.square().sum(axes, keepdim=True) / max(x.numel() // x.shape[1] - 1, 1)
        fresh = mean, squares.maximum(mean.square())
        if self.mini_batch:
            share = partial(torch.lerp, weight=1 / (self.mini_batch + 1))
            fresh = tuple(map(share, self.statistics, fresh))
        self.statistics = mean, squares = fresh
        variance = (squares - mean.square()).clamp(min=0)
        self.running_mean.lerp_(mean.flatten(), self.momentum)
        self.running_var.lerp_(variance.flatten(), self.momentum)
        inverse = (variance + self.eps).rsqrt()
        weight, bias = self.weight.view(shape), self.bias.view(shape)
        return NormaliseByGiven.apply(x, mean, inverse, weight, bias)


class NormaliseByGiven(torch.autograd.Function):
    """(x - mean) * inverse * weight + bias, each but x (1, C, 1, 1).  The gradient takes mean and
    inverse for those of x alone, as cuDNN does in Darknet, although other mini-batches have their
    part in them."""

    @staticmethod
    def forward(ctx, x, mean, inverse, weight, bias):
        ctx.save_for_backward(x, mean, inverse, weight)
        return ((x.float() - mean) * inverse * weight + bias).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, mean, inverse, weight = ctx.saved_tensors
        gradient, count = gradient.float(), x.numel() // x.shape[1]
        normalised = (x.float() - mean) * inverse
        bias_gradient = gradient.sum((0, 2, 3), keepdim=True)
        weight_gradient = (gradient * normalised).sum((0, 2, 3), keepdim=True)
        gradient = gradient - bias_gradient / count - normalised * (weight_gradient / count)
        x_gradient = (gradient * (weight * inverse)).to(x.dtype)
        return x_gradient, None, None, weight_gradient, bias_gradient


class DropBlock(nn.Module):
    """[dropout] dropblock=1: in every channel of every image at most one square of cells becomes 0.

    probability, and the square's side (`size` cells, or `relative` to the layer) are those of the
    end of training; until then they are times `grown`.  What is left is scaled by the share of the
    image that is left.  Source: Darknet's dropout_layer_kernels.cu.
    """

    grown = 1.0

    def __init__(self, probability, size, relative):
        super().__init__()
        self.probability, self.size, self.relative = probability, size, relative

    def forward(self, x):
        if not self.training:
            return x
        kept = self.keep(torch.rand(x.shape, device=x.device))  # (B, C, h, w)
        left = kept.sum((1, 2, 3), keepdim=True).clamp(min=1)
        return x * kept * (kept[0].numel() / left).to(x.dtype)

    def keep(self, draws):
        """draws (B, C, h, w) in 0..1 -> the same shape, False in the blocks."""
        height, width = draws.shape[2:]
        block = self.relative * min(height, width) if self.relative else self.size
        block = max(1, min(int(block * self.grown), height, width))
        lowest, place = draws.flatten(2).min(2, keepdim=True)  # (B, C, 1)
        inside = []
        for first, side in ((place // width, height), (place % width, width)):
            last = side - block
            # beyond the last cell that a block fits at, it starts anew from the other side
            first = torch.where(first > last, first - last, first).clamp(0, last)
            offset = torch.arange(side, device=draws.device) - first  # (B, C, side)
            inside.append((offset >= 0) & (offset < block))
        hit = lowest < self.probability * self.grown / block**2
        rows, columns = inside
        return ~((rows & hit)[..., None] & columns[:, :, None])


class MaxPool(nn.MaxPool2d):
    """Max pooling with Darknet's padding, of both sides together: an odd one has a cell more at the
    right and bottom."""

    def forward(self, x):
        before = self.padding // 2
        windows, even = (
            [(side + padding - self.kernel_size) // self.stride for side in x.shape[2:]]
            for padding in (self.padding, 2 * before)
        )
        if windows != even:
            x = F.pad(x, (before, before + 1) * 2, value=float("-inf"))
            before = 0
        return F.max_pool2d(x, self.kernel_size, self.stride, before)


class Concatenate(nn.Module):
    """[route]: channels one after the other; of each source the slice `group_id` of `groups`."""

    def __init__(self, groups, group_id):
        super().__init__()
        self.groups, self.group_id = groups, group_id

    def forward(self, *sources):
        if self.groups > 1:
            sources = [source.chunk(self.groups, 1)[self.group_id] for source in sources]
        return sources[0] if len(sources) == 1 else torch.cat(sources, 1)


class Add(nn.Module):
    """[shortcut]: the previous layer plus others, in the channels that both have; with weights if
    the section has them."""

    def __init__(self, section, channels, sources):
        super().__init__()
        self.normalization = section.weights_normalization
        self.activation = ACTIVATIONS[section.activation]()
        per_source = {"none": 0, "per_channel": channels}.get(section.weights_type, 1)
        self.weight = nn.Parameter(torch.ones(sources, per_source)) if per_source else None

    def forward(self, x, *others):
        channels = x.shape[1]
        sources = [x, *(other[:, :channels] for other in others)]
        if self.weight is not None:
            weights = self.weight
            if self.normalization != "none":
                softmax = self.normalization == "softmax"
                weights = (weights - weights.amax(0)).exp() if softmax else weights.relu()
                weights = weights / (weights.sum(0) + 1e-4)
            weights = weights[:, :, None, None]  # (sources, 1 or C, 1, 1)
            sources = [x * w[: x.shape[1]] for x, w in zip(sources, weights, strict=True)]
        total, *others = sources
        for other in others:
            shared = other.shape[1]
            part = total[:, :shared] + other
            # the rest of the previous layer's channels passes unchanged
            total = part if shared == channels else torch.cat((part, total[:, shared:]), 1)
        return self.activation(total)


class Scale(nn.Sequential):
    """[scale_channels], [sam]: another layer times the previous one, which has a factor per
    channel, cell or value; then an activation."""

    def forward(self, factors, scaled):
        return super().forward(scaled * factors)


class Reorganise(nn.Module):
    """[reorg3d]: the cells of a window become channels, all channels of the first cell first.

    `old`, [reorg]: the same after the values in memory are read as (C / s^2, s H, s W).
    """

    def __init__(self, stride, old):
        super().__init__()
        self.stride, self.old = stride, old

    def forward(self, x):
        s, (batch, channels, height, width) = self.stride, x.shape
        after = (batch, channels * s * s, height // s, width // s)
        if self.old:
            channels, height, width = channels // s**2, height * s, width * s
        windows = x.reshape(batch, channels, height // s, s, width // s, s)
        return windows.permute(0, 3, 5, 1, 2, 4).reshape(after)


class HardMish(nn.Module):
    """Darknet's hard_mish: x above 0, x^2 / 2 + x in -2..0, else 0."""

    def forward(self, x):
        return torch.where(x > 0, x, torch.where(x > -2, x * x / 2 + x, 0.0))


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
    "hard_mish": HardMish,
}
