"""The yolov5-style loss: truths matched by the ratio of sides, in neighbouring cells too, and gradients by autograd.
Source: the formulas of YOLOv5 as published; CIoU arXiv:1911.08287."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from yolov4.assign import Positives, flat_places
from yolov4.boxes import box_iou
from yolov4.decoding import decode_places, head_values
from yolov4.loss import HeadTerms, LossTerms, some_heads
from yolov4.overlaps import reduce_rows
from yolov4.sections import Head, Net
from yolov4.transfer import sent

MAX_RATIO = 4  # of a side of a truth to that of an anchor, and the other way round: (2 sigmoid)^2 reaches no further
NOMINAL_BATCH = 64  # the rates of these recipes are for the summed gradient of so many images, however many there are


class Yolov5Loss:
    """loss(logits, targets) -> LossTerms, as DarknetLoss; the value is per image, the gradient that of 64 images.

    logits: one a head, (B, A * (5 + C), h, w), of any float type; computed in float32.
    targets: (T, 6) image index, class, cx, cy, w, h, relative; any number; impossible classes are passed over; on the
    host, as for DarknetLoss.
    Gains are the heads' iou_normalizer, obj_normalizer, cls_normalizer (see recipe.py), smoothing label_smooth_eps;
    the other keys of Darknet's loss have no effect.
    """

    def __init__(self, heads: Sequence[Head], net: Net):
        self.heads = some_heads(heads)

    def __call__(self, logits: Sequence[Tensor], targets: Tensor) -> LossTerms:
        targets = targets.to("cpu", torch.float32)
        with torch.autocast(logits[0].device.type, enabled=False):
            found = [_head_loss(each, head, targets) for each, head in zip(logits, self.heads, strict=True)]
        loss = sum(loss for loss, _ in found)
        return LossTerms(NOMINAL_BATCH * (loss - loss.detach()) + loss.detach(), [terms for _, terms in found])


def match(head: Head, targets: Tensor, grid: tuple[int, int]) -> Positives:
    """Which predictions of a head answer for which truths: of every anchor with sides less than 4 times longer or
    shorter, the one in the cell of the truth's centre; where the head reaches so far (scale_x_y >= 2) also those in
    the nearest cell beside it and the nearest above or below.

    targets (T, 6) with possible classes; grid (rows, columns).
    """
    h, w = grid
    size = targets.new_tensor((w, h))
    ratio = targets[:, None, 4:] * size * head.stride / targets.new_tensor(head.anchors)  # (T, A, 2)
    truth, anchor = (torch.maximum(ratio, 1 / ratio).amax(2) < MAX_RATIO).nonzero(as_tuple=True)
    chosen = targets[truth]
    centres = chosen[:, 2:4] * size
    cells = centres.long().clamp(targets.new_zeros(2).long(), size.long() - 1)  # (n, 2) column, row
    if head.scale_x_y >= 2:
        steps = torch.where(centres - cells < 0.5, -1, 1)
        beside, below = steps * steps.new_tensor((1, 0)), steps * steps.new_tensor((0, 1))
        cells = torch.cat((cells, cells + beside, cells + below))
        inside = ((cells >= 0) & (cells < size)).all(1)
        cells, anchor, chosen = cells[inside], anchor.repeat(3)[inside], chosen.repeat(3, 1)[inside]
    places = (chosen[:, 0].long(), anchor, cells[:, 1], cells[:, 0])
    return Positives(places, chosen[:, 2:], chosen[:, 1].long())


def prior_biases(head: Head) -> Tensor:
    """(A * (5 + C),), what the biases before a head start from: some 8 objects in 640 x 640 pixels, classes alike."""
    biases = torch.zeros(len(head.anchors), 5 + head.classes)
    biases[:, 4] = math.log(8 / (640 / head.stride) ** 2)
    biases[:, 5:] = math.log(0.6 / (head.classes - 0.99))
    return biases.flatten()


def _head_loss(logits: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, HeadTerms]:
    targets = targets[(targets[:, 1] >= 0) & (targets[:, 1] < head.classes)]
    h, w = logits.shape[2:]
    values = head_values(logits, head)  # (B, A, h, w, 5 + C)
    positives = match(head, targets, (h, w)).to(logits.device)
    answers, count = values[positives.places].float(), max(len(positives.classes), 1)  # (n, 5 + C)
    boxes = decode_places(answers, positives.places, (w, h), head)
    boxes = torch.cat((boxes[:, :2], boxes[:, 2:].clamp(min=1e-7)), 1)  # a side that vanished has no aspect
    # CIoU changes under unequal scaling: cells, not relative
    cells = sent(torch.tensor((w, h, w, h)), boxes.device)
    away = 1 - box_iou(boxes * cells, positives.truths * cells, "ciou")  # (n,)
    objectness = boxes.new_zeros(values.shape[:-1])  # (B, A, h, w)
    places = flat_places(positives.places, objectness.shape)
    reduce_rows(objectness.view(-1), places, (1 - away.detach()).clamp(min=0), "amax")
    eps = head.label_smooth_eps
    own = positives.classes[:, None] == torch.arange(head.classes, device=boxes.device)
    classes = own * (1 - eps) + eps / 2
    box_loss = head.iou_normalizer * away.sum() / count
    other = head.obj_normalizer * binary_cross_entropy_with_logits(values[..., 4].float(), objectness)
    class_sum = binary_cross_entropy_with_logits(answers[:, 5:], classes, reduction="sum")
    other = other + head.cls_normalizer * class_sum / (count * head.classes)
    loss = box_loss + other
    average_iou = box_iou(boxes.detach(), positives.truths).sum() / count
    terms = (box_loss, other, loss, average_iou, loss.new_full((), len(positives.classes)), loss)
    return loss, HeadTerms(*(term.detach() for term in terms))
