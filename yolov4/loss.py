"""Darknet's loss: its hand-written deltas, given to autograd as the gradient they are.
Source: Darknet's src/yolo_layer.c (process_batch, delta_yolo_class, forward_yolo_layer), gaussian_yolo_layer.c."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolov4.assign import Positives, assign, in_rounds
from yolov4.boxes import box_iou
from yolov4.decoding import Places, Predictions
from yolov4.deltas import Deltas, average_boxes, of_logits, pulled
from yolov4.overlaps import best_overlaps
from yolov4.regression import box_deltas
from yolov4.sections import GaussianHead, Head, Net
from yolov4.transfer import sent

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


class DarknetLoss:
    """loss(logits, targets) -> LossTerms, in float32 whatever the logits are.

    logits: one a head, (B, A * (5 + C), h, w).
    targets: (T, 6) image index, class, cx, cy, w, h, relative; any number; impossible classes are passed over.  From
    the host, where a loader leaves them, nothing here waits for the logits' device.
    """

    def __init__(self, heads: Sequence[Head], net: Net):
        self.heads, self.net = some_heads(heads), net

    def __call__(self, logits: Sequence[Tensor], targets: Tensor) -> LossTerms:
        targets = targets.to("cpu", torch.float32)
        with torch.autocast(logits[0].device.type, enabled=False):
            heads = [head_deltas(each, head, targets) for each, head in zip(logits, self.heads, strict=True)]
            value = torch.stack([terms.cost for _, terms in heads]).mean() / len(logits[0])
            return LossTerms(pulled(value, [delta for delta, _ in heads], logits), [terms for _, terms in heads])


def some_heads(heads: Sequence[Head]) -> tuple[Head, ...]:
    if not heads:
        raise ValueError("the network has no [yolo] layer, expected at least one to compute a loss")
    return tuple(heads)


@torch.no_grad()
def head_deltas(logits: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, HeadTerms]:
    """Darknet's delta of one head with respect to its logits, (B, A * (5 + C), h, w), not divided by images.

    What the truths decide alone is worked out on the host, where they are, and sent.
    """
    predictions, deltas = Predictions(logits, head), Deltas.zeros(logits, head)
    targets = targets[(targets[:, 1] >= 0) & (targets[:, 1] < head.classes)]
    positives, rounds = in_rounds(assign(head, targets, logits.shape[2:]), predictions.objectness.shape)
    positives = positives.to(logits.device)
    deltas.objectness.copy_(-head.obj_normalizer * predictions.objectness)
    _spare_overlapping(deltas, predictions, targets)
    _add_boxes(deltas, predictions, positives)
    in_turn = positives.split(rounds)  # truths in one place: one after the other
    for those in in_turn:
        _set_objectness(deltas, predictions, those)
        _set_classes(deltas, predictions, those)
    answering = ... if _others_answer(head) else in_turn[0].places  # where boxes and classes may have deltas
    if head.iou_thresh < 1 or isinstance(head, GaussianHead):
        average_boxes(deltas, answering)
    return of_logits(deltas, logits, head), _terms(deltas, predictions, positives, answering)


def _others_answer(head: Head) -> bool:
    """Whether predictions answer for truths that they are not assigned to, but overlap."""
    return head.truth_thresh < 1 or (head.objectness_smooth and isinstance(head, GaussianHead))


def _spare_overlapping(deltas: Deltas, predictions: Predictions, targets: Tensor) -> None:
    """Predictions that overlap a truth by more than ignore_thresh are no negatives; above truth_thresh, positives."""
    head, objectness = predictions.head, predictions.objectness
    iou, best = best_overlaps(predictions, targets, which=_others_answer(head))
    spared = (predictions.most_probable() > CLASS_MATCH) & (iou > head.ignore_thresh)  # any class, not the truth's
    if head.objectness_smooth and isinstance(head, GaussianHead):
        towards = head.obj_normalizer * (iou.square() - objectness)
        _set_classes(deltas, predictions, _overlapping(spared, targets, best))
    elif head.objectness_smooth:
        towards = torch.maximum(deltas.objectness, head.obj_normalizer * (iou - objectness))
    else:
        towards = torch.zeros_like(objectness)
    deltas.objectness.copy_(torch.where(spared, towards, deltas.objectness))
    if head.truth_thresh < 1:
        _answer(deltas, predictions, _overlapping(iou > head.truth_thresh, targets, best), iou)


def _overlapping(found: Tensor, targets: Tensor, best: Tensor) -> Positives:
    """found (B, A, h, w): which predictions answer for their best truths.  How many they are, only the device knows:
    here the host waits for it."""
    places = found.nonzero(as_tuple=True)
    truths = sent(targets, found.device)[best[places]]
    return Positives(places, truths[:, 2:], truths[:, 1].long())


def _answer(deltas: Deltas, predictions: Predictions, positives: Positives, iou: Tensor) -> None:
    """Predictions that overlap a truth by more than truth_thresh: positives wherever they are.  iou (B, A, h, w)."""
    head, (places, _, classes) = predictions.head, positives
    target = iou[places].square() if head.objectness_smooth else torch.ones_like(iou[places])
    deltas.objectness[places] = head.obj_normalizer * (target - predictions.objectness[places])
    _set_classes(deltas, predictions, positives)
    if head.objectness_smooth:
        probabilities = predictions.classes(places).gather(1, classes[:, None])[:, 0]
        deltas.classes[(*places, classes)] = _multipliers(head, classes) * (target - probabilities)
    _add_boxes(deltas, predictions, positives)


def _add_boxes(deltas: Deltas, predictions: Predictions, positives: Positives) -> None:
    """Box deltas of all truths in a place add up."""
    multipliers = _multipliers(predictions.head, positives.classes)
    delta = box_deltas(predictions, positives.places, positives.truths, multipliers)
    deltas.boxes.index_put_(positives.places, delta, accumulate=True)


def _set_objectness(deltas: Deltas, predictions: Predictions, positives: Positives) -> None:
    head, places = predictions.head, positives.places
    towards = head.obj_normalizer * (1 - predictions.objectness[places])
    towards = _multipliers(head, positives.classes) * towards
    if head.objectness_smooth and not isinstance(head, GaussianHead):  # the target is the IoU where there is one
        current = deltas.objectness[places]
        towards = torch.where(current == 0, towards, current)
    deltas.objectness[places] = towards


def _set_classes(deltas: Deltas, predictions: Predictions, positives: Positives) -> None:
    """The places are distinct."""
    head, (places, _, classes) = predictions.head, positives
    probabilities, current = predictions.classes(places), deltas.classes[places]  # (n, C)
    own = classes[:, None] == torch.arange(head.classes, device=classes.device)
    targets = own * (1 - head.label_smooth_eps) + head.label_smooth_eps / 2
    multiplier = _multipliers(head, classes)[:, None]
    if head.focal_loss:
        true = probabilities.gather(1, classes[:, None]) + 1e-15
        factor = -(1 - true) * (2 * true * true.log() + true - 1) * 0.5
        fresh = (own.float() - probabilities) * factor
    else:
        fresh = targets - probabilities
        if head.counters_per_class:
            fresh = torch.where(own, fresh * multiplier * head.cls_normalizer, fresh)
    # of a second truth in this place only its own class is set, the others stay
    second = current.gather(1, classes[:, None]) != 0
    only_own = torch.where(own, (targets - probabilities) * multiplier, current)
    deltas.classes[places] = torch.where(second, only_own, fresh)


def _terms(deltas: Deltas, predictions: Predictions, positives: Positives, answering: Places) -> HeadTerms:
    head, images, count = predictions.head, len(predictions.boxes), len(positives.classes)
    classes = deltas.classes[answering].square().sum()
    other = head.obj_normalizer * (deltas.objectness.square().sum() + classes)
    total = deltas.boxes[answering].square().sum() + other / head.obj_normalizer
    boxes = predictions.boxes[positives.places]
    overlap = iou = box_iou(boxes, positives.truths)
    if head.iou_loss == "giou":
        overlap = box_iou(boxes, positives.truths, "giou")
    away = (1 - overlap).sum() / max(count, 1)
    cost = total if head.iou_loss == "mse" or isinstance(head, GaussianHead) else head.iou_normalizer * away + other
    found = (total - other) / images, other / images, total / images, iou.sum() / max(count, 1)
    return HeadTerms(*found, total.new_full((), count), cost)


def _multipliers(head: Head, classes: Tensor) -> Tensor:
    """(n,), of the truths' classes (n,)."""
    if not head.counters_per_class:
        return torch.ones_like(classes, dtype=torch.float32)
    return sent(class_multipliers(head), classes.device)[classes]


def class_multipliers(head: Head) -> Tensor:
    """(C,): the largest of counters_per_class / the class' own, at most max_delta."""
    counters = torch.tensor(head.counters_per_class, dtype=torch.float32).clamp(min=1)
    return (counters.max() / counters).clamp(max=head.max_delta)
