"""Darknet's loss: its hand-written deltas, given to autograd as the gradient, and SAT's attack.
Source: Darknet's src/yolo_layer.c, process_batch, delta_yolo_box; YOLOv4 (arXiv:2004.10934) 3.3."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from yolov4.boxes import box_iou, iou_gradient, to_device
from yolov4.cfg import Head, Net
from yolov4.decoding import (
    box_outputs,
    by_anchor,
    class_scores,
    decode,
    decode_boxes,
    relative_anchors,
)

CLASS_MATCH = 0.25  # only predictions with some class more probable than this can be ignored
SEEN = 0.25  # objectness * class probability above which the attack sees an object
SERIAL = 8000  # box deltas that torch adds by one thread
BLOCK = 1 << 17  # pairs of a target and a cell compared at once: bounds the memory of crowds


class HeadTerms(NamedTuple):
    """What Darknet prints for a yolo layer, scalars without gradient; losses are per image."""

    iou_loss: Tensor  # sum of squares of the box deltas
    class_loss: Tensor  # of the objectness and class deltas
    total_loss: Tensor
    average_iou: Tensor  # over the positives
    count: Tensor  # positives
    cost: Tensor  # of the whole mini-batch


class LossTerms(NamedTuple):
    """total: Darknet's loss (mean cost of the heads, per image), with gradient -delta / images."""

    total: Tensor
    heads: list[HeadTerms]


class DarknetLoss:
    """loss(logits, targets) -> LossTerms, in float32 whatever the logits are.

    logits: one per head, (B, A * (5 + C), h, w).
    targets: (T, 6) image index, class, cx, cy, w, h, relative; impossible classes are passed over.
    With targets on the host, where a loader leaves them, nothing here waits for the device.
    """

    def __init__(self, heads: Sequence[Head], net: Net | None = None):
        self.heads = heads

    def __call__(self, logits: Sequence[Tensor], targets: Tensor) -> LossTerms:
        deltas, terms = zip(*per_head(_head_deltas, logits, self.heads, targets), strict=True)
        cost = torch.stack([each.cost for each in terms]).mean() / len(logits[0])
        return LossTerms(_AttachGradient.apply(cost, deltas, *logits), list(terms))


def per_head(compute, logits, heads, targets):
    """[compute(logits, head, targets)] of every head, with the targets on the host, in float32,
    and only those whose class the head has."""
    targets = targets.to("cpu", torch.float32)
    known = [targets[(targets[:, 1] >= 0) & (targets[:, 1] < head.classes)] for head in heads]
    return [compute(*each) for each in zip(logits, heads, known, strict=True)]


class _AttachGradient(torch.autograd.Function):
    """apply(value, deltas, *logits) -> value, with -delta / images as its gradient with respect to
    the logits; NaN where any logit is non-finite, even one that the loss does not look at."""

    @staticmethod
    def forward(ctx, value, deltas, *logits):
        ctx.deltas = deltas
        return value + 0 * sum(each.sum(dtype=torch.float32) for each in logits)

    @staticmethod
    def backward(ctx, gradient):
        deltas, ctx.deltas = ctx.deltas, None  # in place: those of 9,000 classes fill the memory
        return None, None, *(delta.mul_(-gradient / len(delta)) for delta in deltas)


@torch.no_grad()
def _head_deltas(logits, head, targets):
    """Darknet's delta of one head with respect to its logits, (B, A * (5 + C), h, w), summed over
    images: minus the gradient; and HeadTerms.  What depends on targets (T, 6) alone is computed on
    the host."""
    values, grid = by_anchor(logits, head), logits.shape[2:]  # (B, A, h, w, 5 + C)
    assigned = assign_targets(head, targets, grid)
    groups, sizes = _without_collisions(assigned, targets, values.shape)
    positives, groups = (to_device(each, logits.device) for each in (assigned, groups))
    weights = torch.ones(head.classes)
    if head.counters_per_class:  # rare classes count more
        counters = torch.tensor(head.counters_per_class, dtype=torch.float32).clamp(min=1)
        weights = (counters.max() / counters).clamp(max=head.max_delta)
    ground_truth = torch.cat((targets, weights[targets[:, 1].long(), None]), 1)
    ground_truth = to_device(ground_truth, logits.device)  # (T, 7)
    boxes, objectness = decode_boxes(values, head, grid), values[..., 4].float().sigmoid()
    whole = torch.zeros_like(logits, dtype=torch.float32)
    delta = by_anchor(whole, head)  # views, filled in place
    delta_boxes, delta_objectness, delta_classes = delta[..., :4], delta[..., 4], delta[..., 5:]

    def add_boxes(cells, matched):
        found = _box_deltas(boxes[cells], matched[:, 2:6], cells[1], head, grid)
        # NaN and inf (the logarithm of a zero width) give no gradient
        found = (found * (head.iou_normalizer * matched[:, 6:])).nan_to_num(0, 0, 0)
        if head.iou_loss != "mse":
            found = found.clamp(-head.max_delta, head.max_delta)
        # by threads the deltas of one prediction would add up in any order: few at once go by one
        for *these, part in zip(*(each.split(SERIAL) for each in (*cells, found)), strict=True):
            delta_boxes.index_put_(tuple(these), part, accumulate=True)

    def set_classes(cells, matched):
        probabilities = values[..., 5:][cells].float().sigmoid()  # few: most are never needed
        delta_classes[cells] = _class_deltas(probabilities, delta_classes[cells], matched, head)

    # negatives: all but those that overlap a target well and are sure of any class
    iou = best_iou(boxes, head, targets, ground_truth)
    ignored = values[..., 5:].amax(-1).float().sigmoid() > CLASS_MATCH
    ignored &= iou > head.ignore_thresh
    negative, kept = -head.obj_normalizer * objectness, 0.0
    if head.objectness_smooth:
        kept = torch.maximum(negative, head.obj_normalizer * (iou - objectness))
    delta_objectness.copy_(torch.where(ignored, kept, negative))

    # positives by overlap
    if head.truth_thresh < 1 and len(targets):  # here the host waits for the device
        cells = (iou > head.truth_thresh).nonzero(as_tuple=True)
        pairs = box_iou(boxes[cells][:, None], ground_truth[:, 2:6])
        pairs[cells[0][:, None] != ground_truth[:, 0]] = -1
        matched, wanted = ground_truth[pairs.argmax(1)], torch.ones_like(iou[cells])
        set_classes(cells, matched)
        if head.objectness_smooth:
            own, wanted = matched[:, 1].long(), iou[cells].square()
            probability = values[(*cells, 5 + own)].float().sigmoid()
            delta_classes[(*cells, own)] = matched[:, 6] * (wanted - probability)
        delta_objectness[cells] = head.obj_normalizer * (wanted - objectness[cells])
        add_boxes(cells, matched)

    # positives by assignment; box deltas of targets with one prediction add up
    cells, matched = tuple(positives[1:]), ground_truth[positives[0]]
    add_boxes(cells, matched)
    for number, *group in groups.split(sizes, 1):
        group, these = tuple(group), ground_truth[number]
        towards = these[:, 6] * (head.obj_normalizer * (1 - objectness[group]))
        if head.objectness_smooth:  # where the IoU is the target it stays
            current = delta_objectness[group]
            towards = torch.where(current == 0, towards, current)
        delta_objectness[group] = towards
        set_classes(group, these)

    changed = ... if head.truth_thresh < 1 else tuple(groups[1:, : sizes[0]])
    if head.iou_thresh < 1:
        _average_boxes(delta, changed)
    terms = _terms(delta, changed, boxes[cells], matched[:, 2:6], head)
    return _delta_wrt_logits(whole, logits, head), terms


def assign_targets(head, targets, grid):
    """Target assignment: ground-truth boxes to anchors and cells, in the order of the targets.

    A target goes to the cell of its centre: to the best anchor of all, if it is one of this head's,
    and to every other one of this head whose IoU (iou_thresh_kind) is above iou_thresh.
    targets (T, 6); grid (rows, columns).  Returns (5, n): target, image, anchor, row, column.
    """
    anchors = pad(relative_anchors(head.all_anchors, head, grid), (2, 0))  # (N, 4), centred at 0
    shapes = pad(targets[:, None, 4:], (2, 0))  # (T, 1, 4)
    best, mask = box_iou(anchors, shapes).argmax(1), torch.tensor(head.mask)
    chosen = best[:, None] == mask  # (T, A)
    if head.iou_thresh < 1:
        iou = box_iou(anchors[mask], shapes, head.iou_thresh_kind)
        chosen |= iou > head.iou_thresh
    return centre_cells(chosen, targets, grid)


def centre_cells(chosen, targets, grid):
    """Chosen pairs (T, A) of a target and an anchor -> (5, n) as `assign_targets` gives them."""
    target, anchor = chosen.nonzero(as_tuple=True)
    size = torch.tensor(grid)
    # a centre on the right or lower border is in the last cell
    cells = (targets[target][:, [3, 2]] * size).long().clamp(min=0).minimum(size - 1)
    return torch.stack((target, targets[target, 0].long(), anchor, *cells.T))


def _without_collisions(positives, targets, shape):
    """The positives (5, n) in groups in which no prediction is written twice: those of the first
    target of every prediction, then of the second, and so on.  shape: (B, A, h, w, 5 + C).
    Returns the positives in that order and the groups' sizes, at least one.

    Of the targets of one prediction and class only the first three and the last three are there:
    those between write what the third wrote, unless a probability is exactly 0 and another 1.
    """
    flat = flat_indices(positives[1:], shape)
    alike = flat * shape[4] + targets[positives[0], 1].long()
    some = (_rank(alike) < 3) | (_rank(alike.flip(0)).flip(0) < 3)
    rank = _rank(flat[some])
    return positives[:, some][:, rank.argsort(stable=True)], rank.bincount().tolist() or [0]


def _rank(keys):
    """How many equal ones are before each key (n,)"""
    order = keys.argsort(stable=True)
    _, counts = keys[order].unique_consecutive(return_counts=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(keys).index_put_((order,), torch.arange(len(keys)) - first)


def flat_indices(cells, shape):
    """Indices (n,) along each of the first dimensions of `shape` -> (n,) into them, flattened."""
    flat = 0
    for indices, length in zip(cells, shape, strict=False):
        flat = flat * length + indices
    return flat


def best_iou(boxes, head, targets, ground_truth):
    """The highest IoU of each prediction with a target of its image, exact where it is above
    ignore_thresh or truth_thresh, (B, A, h, w).

    boxes (B, A, h, w, 4); targets (T, 6), on the host and (ground_truth) on the boxes' device.
    """
    images, anchors, *grid, _ = boxes.shape
    pairs = to_device(_near_cells(head, targets, grid), boxes.device)
    boxes = boxes.permute(0, 2, 3, 1, 4).flatten(0, 2)  # (B * h * w, A, 4)
    best = boxes.new_zeros(boxes.shape[:2])
    for cell, number in pairs.split(BLOCK, 1):
        reduce_max(best, cell, box_iou(boxes[cell], ground_truth[number, None, 2:6]))
    return best.view(images, *grid, anchors).permute(0, 3, 1, 2)


def _near_cells(head, targets, grid):
    """Cells in which a prediction can reach an IoU with a target that counts, and some more.

    An IoU is above t only if in each direction the centres are less than (1 - t) / 2t sides of the
    target apart: so far, if the prediction contains it and ends where it ends.  Comparing these
    pairs alone is 2.7 times faster than all pairs at 10 objects per image, 12 times at 100.
    Returns (2, n): index into (B, h, w), target.
    """
    iou = max(min(head.ignore_thresh, head.truth_thresh), 1e-9)
    reach = targets[:, 4:] * (1 - iou) / (2 * iou)
    margin = head.scale_x_y / 2 + 0.01  # of a box's centre to its cell's, in cells, and rounding
    columns, rows = (
        (torch.arange(n) + 0.5 - targets[:, axis + 2, None] * n).abs()
        <= reach[:, axis, None] * n + margin
        for axis, n in enumerate(grid[::-1])
    )  # (T, w), (T, h)
    number, row = rows.nonzero(as_tuple=True)
    pair, column = columns[number].nonzero(as_tuple=True)
    number, row = number[pair], row[pair]
    return torch.stack(((targets[number, 0].long() * grid[0] + row) * grid[1] + column, number))


def reduce_max(into, rows, values):
    """Raises rows (n,) of `into` (m, ...) to the highest of their values (n, ...).

    scatter_reduce_ is an error on a GPU with --deterministic; this one warns that it is in beta.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "index_reduce")
        into.index_reduce_(0, rows, values, "amax")


def _box_deltas(boxes, targets, anchor, head, grid):
    """Minus the gradient with respect to the box outputs, (n, 4), not yet weighted.

    boxes, targets (n, 4) cxcywh relative; anchor (n,) of the head; grid (rows, columns).
    """
    (centres, sizes), (target_centres, target_sizes) = boxes.split(2, 1), targets.split(2, 1)
    anchors = to_device(relative_anchors(head.anchors, head, grid), boxes.device)[anchor]
    if head.iou_loss == "mse":  # small targets count more
        ratios = sizes / anchors, target_sizes / anchors
        now, wanted = (r.sqrt() / 2 if head.new_coords else r.log() for r in ratios)
        offset = (target_centres - centres) * to_device(torch.tensor(grid[::-1]), boxes.device)
        weight = 2 - target_sizes.prod(1, keepdim=True)
        return torch.cat((offset, wanted - now), 1) * weight
    # a zero side counts as 1: Darknet's way around a division by 0
    nonzero = torch.where(sizes == 0, 1.0, sizes)
    delta = iou_gradient(torch.cat((centres, nonzero), 1), targets, head.iou_loss)
    if not head.new_coords:
        delta[:, 2:] = delta[:, 2:] * sizes / anchors  # the derivative of exp; x, y have none
    return delta


def _class_deltas(probabilities, current, matched, head):
    """Deltas of the classes (n, C) of n different predictions.

    probabilities, current: (n, C), current deltas; matched: (n, 7), targets and their weights.
    """
    classes, weight = matched[:, 1:2].long(), matched[:, 6:]  # (n, 1)
    own, smooth = wanted_classes(classes, head)
    delta = towards = smooth - probabilities
    if head.focal_loss:
        true = probabilities.gather(1, classes) + 1e-15
        factor = -(1 - true) * (2 * true * true.log() + true - 1) * 0.5
        delta = (own.float() - probabilities) * factor
    elif head.counters_per_class:
        delta = torch.where(own, towards * weight * head.cls_normalizer, towards)
    # of a second target of a prediction only its own class is set, the others stay
    second = current.gather(1, classes) != 0
    return torch.where(second, torch.where(own, towards * weight, current), delta)


def wanted_classes(classes, head):
    """classes (n, 1) -> which of all is the own one, and the smoothed probabilities, (n, C) each"""
    own = classes == torch.arange(head.classes, device=classes.device)
    return own, own * (1 - head.label_smooth_eps) + head.label_smooth_eps / 2


def _average_boxes(delta, cells):
    """Divides box deltas in delta (B, A, h, w, 5 + C) by the number of classes with positive delta,
    for different predictions."""
    classes = (delta[..., 5:][cells] > 0).sum(-1)
    divisor = torch.where(delta[..., 4][cells] != 0, classes.clamp(min=1), 1)
    delta[..., :4][cells] /= divisor[..., None]


def _delta_wrt_logits(delta, logits, head):
    """(B, A * (5 + C), h, w).  With new_coords Darknet's delta is that of the logistic layer before
    the head, which is part of the decoding here."""
    if not head.new_coords:
        return delta
    probabilities = logits.float().sigmoid()
    return delta * probabilities * (1 - probabilities)


def _terms(delta, changed, boxes, targets, head):
    """changed: cells with deltas of boxes and classes; boxes, targets (n, 4) of the positives."""
    images, count = len(delta), max(len(boxes), 1)
    classes = delta[..., 5:][changed].square().sum()
    other = head.obj_normalizer * (delta[..., 4].square().sum() + classes)
    total = delta[..., :4][changed].square().sum() + other / head.obj_normalizer
    iou, cost = box_iou(boxes, targets), total
    if head.iou_loss != "mse":
        overlap = box_iou(boxes, targets, "giou") if head.iou_loss == "giou" else iou
        cost = head.iou_normalizer * ((1 - overlap).sum() / count) + other
    losses = (total - other) / images, other / images, total / images
    return HeadTerms(*losses, iou.sum() / count, total.new_full((), len(boxes)), cost)


def attack_loss(logits, heads):
    """A scalar of which only the gradient counts: minus the deltas of the attack / images."""
    deltas = [attack_deltas(*each) for each in zip(logits, heads, strict=True)]
    return _AttachGradient.apply(deltas[0].new_zeros(()), deltas, *logits)


@torch.no_grad()
def attack_deltas(logits, head):
    """Darknet's delta of one head in self-adversarial training, shaped as its logits.

    Without targets: where the network sees an object, its classes go to 0, the others to 1 and the
    box outputs to 0; objectness goes to 0 everywhere.  Large predictions count more.
    """
    decoded, whole = decode(logits, head), torch.zeros_like(logits, dtype=torch.float32)
    delta, scores = by_anchor(whole, head), class_scores(decoded)
    scale = decoded.boxes[..., 2:].prod(-1, keepdim=True).sqrt()  # (B, A, h, w, 1)
    some = (scores > SEEN).any(-1, keepdim=True)
    wanted = torch.where(some & (scores < SEEN), 1.0, decoded.classes)
    wanted = torch.where(scores > SEEN, 0.0, wanted)
    delta[..., :4] = -scale * box_outputs(by_anchor(logits, head), head) * some
    delta[..., 4] = -scale[..., 0] * head.obj_normalizer * decoded.objectness
    delta[..., 5:] = scale * (wanted - decoded.classes)
    if head.iou_thresh < 1:
        _average_boxes(delta, ...)
    return _delta_wrt_logits(whole, logits, head).nan_to_num(0, 0, 0)  # of sides that overflow


def attack_rate(iteration, net):
    """How far the deltas move an image in an iteration counted from 1; 0 up to burn_in."""
    done = iteration - 1  # Darknet counts from 0
    return net.adversarial_lr * done / net.max_batches if done > net.burn_in else 0.0


def attacked_images(images, gradient, rate):
    """images (B, 3, H, W) in 0..1 moved against their gradient of `attack_loss`; None: unchanged"""
    if gradient is None:
        return images
    return images.sub(gradient.nan_to_num(0, 0, 0), alpha=rate).clamp(0, 1)
