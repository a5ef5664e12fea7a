"""Darknet's loss: its hand-written deltas, given to autograd as the gradient they are.
Source: Darknet's src/yolo_layer.c (process_batch, delta_yolo_class, forward_yolo_layer), gaussian_yolo_layer.c."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolov4.assign import Positives, assign, rank_in_place
from yolov4.boxes import box_iou
from yolov4.decoding import Decoded, decode
from yolov4.regression import box_deltas
from yolov4.sections import GaussianHead, Head, Net

CLASS_MATCH = 0.25  # a prediction can only be spared as a negative if some class is more probable than this


class HeadTerms(NamedTuple):
    """What Darknet prints for a yolo layer, as scalars without gradient; the losses are those of an image."""

    iou_loss: Tensor  # sum of squares of the box deltas
    class_loss: Tensor  # of the objectness and class deltas
    total_loss: Tensor
    average_iou: Tensor  # over the positives
    count: Tensor  # positives
    cost: Tensor  # of the whole mini-batch


class LossTerms(NamedTuple):
    """total: the value is Darknet's loss (mean cost of the heads, an image), the gradient is -delta / images."""

    total: Tensor
    heads: list[HeadTerms]


class Deltas(NamedTuple):
    """Minus the gradient with respect to a head's values, by part; filled in place."""

    boxes: Tensor  # (B, A, h, w, 4), or 8: those of the uncertainties behind
    objectness: Tensor  # (B, A, h, w)
    classes: Tensor  # (B, A, h, w, C)


class DarknetLoss:
    """loss(logits, targets) -> LossTerms, in float32 whatever the logits are.

    logits: one a head, (B, A * (5 + C), h, w).
    targets: (T, 6) image index, class, cx, cy, w, h, relative; any number; impossible classes are passed over.
    """

    def __init__(self, heads: Sequence[Head], net: Net):
        self.heads, self.net = some_heads(heads), net

    def __call__(self, logits: Sequence[Tensor], targets: Tensor) -> LossTerms:
        images, targets = len(logits[0]), targets.to(logits[0].device, torch.float32)
        with torch.autocast(logits[0].device.type, enabled=False):
            heads = [head_deltas(each, head, targets) for each, head in zip(logits, self.heads, strict=True)]
            pull = pulled(logits, [delta for delta, _ in heads])
            value = torch.stack([terms.cost for _, terms in heads]).mean() / images
            return LossTerms(pull - pull.detach() + value, [terms for _, terms in heads])


def some_heads(heads: Sequence[Head]) -> tuple[Head, ...]:
    if not heads:
        raise ValueError("the network has no [yolo] layer, expected at least one to compute a loss")
    return tuple(heads)


def pulled(logits: Sequence[Tensor], deltas: Sequence[Tensor]) -> Tensor:
    """A scalar of which only the gradient counts, not the value: minus the deltas of each head, over the images."""
    return -sum((each.float() * delta).sum() for each, delta in zip(logits, deltas, strict=True)) / len(logits[0])


@torch.no_grad()
def head_deltas(logits: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, HeadTerms]:
    """Darknet's delta of one head with respect to its logits, (B, A * (5 + C), h, w), not divided by images."""
    decoded = decode(logits, head)
    targets = targets[(targets[:, 1] >= 0) & (targets[:, 1] < head.classes)]
    deltas = Deltas(
        decoded.boxes.new_zeros(*decoded.objectness.shape, head.box_values),
        -head.obj_normalizer * decoded.objectness,
        torch.zeros_like(decoded.classes),
    )
    _spare_overlapping(deltas, decoded, head, targets)
    positives = assign(head, targets, decoded.objectness.shape[2:])
    _add_boxes(deltas, decoded, head, positives)
    rounds = rank_in_place(positives.places, decoded.objectness.shape)
    for number in range(int(rounds.max()) + 1 if len(rounds) else 0):  # truths in one place: one after the other
        chosen = rounds == number
        places, classes = tuple(p[chosen] for p in positives.places), positives.classes[chosen]
        _set_objectness(deltas, decoded, head, places, classes)
        _set_classes(deltas, decoded, head, places, classes)
    if head.iou_thresh < 1 or isinstance(head, GaussianHead):
        average_boxes(deltas)
    return of_logits(deltas, logits, head), _terms(deltas, decoded, head, positives)


def of_logits(deltas: Deltas, logits: Tensor, head: Head) -> Tensor:
    """The parts put together, with respect to the logits (B, A * (5 + C), h, w)."""
    boxes = deltas.boxes.unflatten(-1, (-1, 4)).transpose(-1, -2).flatten(-2)  # an uncertainty behind its value
    delta = torch.cat((boxes, deltas.objectness[..., None], deltas.classes), -1)  # (B, A, h, w, 5 + C) or 9 + C
    delta = delta.permute(0, 1, 4, 2, 3).reshape(logits.shape)
    if head.new_coords:  # Darknet's delta is with respect to the output of the logistic layer before the head
        probabilities = logits.float().sigmoid()
        delta = delta * probabilities * (1 - probabilities)
    return delta


def _spare_overlapping(deltas: Deltas, decoded: Decoded, head: Head, targets: Tensor) -> None:
    """Predictions that overlap a truth by more than ignore_thresh are no negatives; above truth_thresh, positives."""
    for image in range(len(decoded.boxes)):
        truths = targets[targets[:, 0] == image]
        matching = (decoded.classes[image] > CLASS_MATCH).any(-1)  # of any class, not the truth's
        considered = matching if head.truth_thresh >= 1 else torch.ones_like(matching)
        anchors, rows, columns = considered.nonzero(as_tuple=True)
        places = (torch.full_like(anchors, image), anchors, rows, columns)
        if not len(truths) or not len(anchors):
            continue
        iou, best = box_iou(decoded.boxes[places][:, None], truths[None, :, 2:]).max(1)
        spared = matching[considered] & (iou > head.ignore_thresh)
        at = tuple(p[spared] for p in places)
        if head.objectness_smooth and isinstance(head, GaussianHead):
            deltas.objectness[at] = head.obj_normalizer * (iou[spared].square() - decoded.objectness[at])
            _set_classes(deltas, decoded, head, at, truths[best[spared], 1].long())
        elif head.objectness_smooth:
            towards = head.obj_normalizer * (iou[spared] - decoded.objectness[at])
            deltas.objectness[at] = torch.maximum(deltas.objectness[at], towards)
        else:
            deltas.objectness[at] = 0
        if head.truth_thresh < 1:
            found = iou > head.truth_thresh
            _answer(deltas, decoded, head, tuple(p[found] for p in places), truths[best[found]], iou[found])


def _answer(deltas: Deltas, decoded: Decoded, head: Head, at: tuple[Tensor, ...], truths: Tensor, iou: Tensor) -> None:
    """Predictions that overlap a truth by more than truth_thresh: positives wherever they are.  All (n,) or (n, 6)."""
    classes = truths[:, 1].long()
    target = iou.square() if head.objectness_smooth else torch.ones_like(iou)
    deltas.objectness[at] = head.obj_normalizer * (target - decoded.objectness[at])
    _set_classes(deltas, decoded, head, at, classes)
    if head.objectness_smooth:
        own = (*at, classes)
        deltas.classes[own] = class_multipliers(head, iou)[classes] * (target - decoded.classes[own])
    _add_boxes(deltas, decoded, head, Positives(at, truths[:, 2:], classes))


def _add_boxes(deltas: Deltas, decoded: Decoded, head: Head, positives: Positives) -> None:
    """Box deltas of all truths in a place add up."""
    multipliers = class_multipliers(head, decoded.boxes)[positives.classes, None]
    delta = box_deltas(decoded, positives.places, positives.truths, head, multipliers)
    deltas.boxes.index_put_(positives.places, delta, accumulate=True)


def _set_objectness(deltas: Deltas, decoded: Decoded, head: Head, places: tuple[Tensor, ...], classes: Tensor) -> None:
    towards = class_multipliers(head, decoded.boxes)[classes] * head.obj_normalizer * (1 - decoded.objectness[places])
    if head.objectness_smooth and not isinstance(head, GaussianHead):  # the target is the IoU where there is one
        current = deltas.objectness[places]
        towards = torch.where(current == 0, towards, current)
    deltas.objectness[places] = towards


def _set_classes(deltas: Deltas, decoded: Decoded, head: Head, places: tuple[Tensor, ...], classes: Tensor) -> None:
    """places are distinct, (n,) each; classes (n,)."""
    probabilities, current = decoded.classes[places], deltas.classes[places]  # (n, C)
    own = torch.nn.functional.one_hot(classes, head.classes).bool()
    targets = own * (1 - head.label_smooth_eps) + head.label_smooth_eps / 2
    multiplier = class_multipliers(head, probabilities)[classes, None]
    if head.focal_loss:
        true = probabilities[own][:, None] + 1e-15
        factor = -(1 - true) * (2 * true * true.log() + true - 1) * 0.5
        fresh = (own.float() - probabilities) * factor
    else:
        fresh = targets - probabilities
        if head.counters_per_class:
            fresh = torch.where(own, fresh * multiplier * head.cls_normalizer, fresh)
    # of a second truth in this place only its own class is set, the others stay
    second = (current[own] != 0)[:, None]
    only_own = torch.where(own, (targets - probabilities) * multiplier, current)
    deltas.classes[places] = torch.where(second, only_own, fresh)


def average_boxes(deltas: Deltas) -> None:
    """Divides box deltas by the number of classes that answer in their place."""
    places = deltas.boxes.any(-1).nonzero(as_tuple=True)
    classes = (deltas.classes[places] > 0).sum(-1)
    divisor = torch.where(deltas.objectness[places] != 0, classes.clamp(min=1), 1)
    deltas.boxes[places] /= divisor[:, None]


def _terms(deltas: Deltas, decoded: Decoded, head: Head, positives: Positives) -> HeadTerms:
    images, count = len(decoded.boxes), decoded.boxes.new_tensor(len(positives.classes))
    boxes = decoded.boxes[positives.places]
    other = head.obj_normalizer * (deltas.objectness.square().sum() + deltas.classes.square().sum())
    total = deltas.boxes.square().sum() + other / head.obj_normalizer
    kind = "giou" if head.iou_loss == "giou" else "iou"
    away = (1 - box_iou(boxes, positives.truths, kind)).sum() / count.clamp(min=1)
    cost = total if head.iou_loss == "mse" or isinstance(head, GaussianHead) else head.iou_normalizer * away + other
    average_iou = box_iou(boxes, positives.truths).sum() / count.clamp(min=1)
    return HeadTerms((total - other) / images, other / images, total / images, average_iou, count, cost)


def class_multipliers(head: Head, like: Tensor) -> Tensor:
    """(C,): the largest of counters_per_class / the class' own, at most max_delta; ones without the key."""
    if not head.counters_per_class:
        return like.new_ones(head.classes)
    counters = like.new_tensor(head.counters_per_class).clamp(min=1)
    return (counters.max() / counters).clamp(max=head.max_delta)
