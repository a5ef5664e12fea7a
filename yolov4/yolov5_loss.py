"""The yolov5-style loss: targets matched by ratio of sides, in neighbouring cells too; autograd.
Source: the formulas of YOLOv5 as published; CIoU arXiv:1911.08287."""

import math

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from yolov4.boxes import box_iou, to_device
from yolov4.decoding import by_anchor, decode_boxes
from yolov4.loss import (
    HeadTerms,
    LossTerms,
    centre_cells,
    flat_indices,
    per_head,
    reduce_max,
    wanted_classes,
)

MAX_RATIO = 4  # of a target's side to an anchor's, or inverse: (2 sigmoid)^2 reaches no further
NOMINAL_BATCH = 64  # these recipes' rates are for the summed gradient of 64 images, always


class Yolov5Loss:
    """loss(logits, targets) -> LossTerms, as DarknetLoss; value per image, gradient of 64 images.

    logits: one per head, (B, A * (5 + C), h, w), of any float type; computed in float32.
    targets: (T, 6) image index, class, cx, cy, w, h, relative; impossible classes are passed over.
    Gains are the heads' iou_normalizer, obj_normalizer, cls_normalizer (see recipe.py), smoothing
    is label_smooth_eps; other keys of Darknet's loss have no effect.
    """

    def __init__(self, heads, net=None):
        self.heads = heads

    def __call__(self, logits, targets):
        terms = per_head(_head_terms, logits, self.heads, targets)
        loss = sum(each.cost for each in terms)
        total = NOMINAL_BATCH * (loss - loss.detach()) + loss.detach()
        return LossTerms(total, [HeadTerms(*(term.detach() for term in each)) for each in terms])


def match(head, targets, grid):
    """Target assignment: every anchor whose sides are less than 4 times longer or shorter, in the
    cell of the target's centre; where the head reaches so far (scale_x_y >= 2) also in the nearest
    cell beside it and the nearest above or below.

    targets (T, 6); grid (rows, columns).  Returns (5, n): target, image, anchor, row, column.
    """
    size = torch.tensor(grid)[:, None]  # (2, 1)
    pixels = targets[:, None, 4:] * torch.tensor(head.input_size(*grid))
    ratio = pixels / torch.tensor(head.anchors)
    matching = torch.maximum(ratio, 1 / ratio).amax(2) < MAX_RATIO  # (T, A)
    found = centre_cells(matching, targets, grid)
    if head.scale_x_y >= 2:
        centres = targets[found[0]][:, [3, 2]].T * size  # (2, n) row, column
        steps = torch.where(centres - found[3:] < 0.5, -1, 1)
        beside, above = found.clone(), found.clone()
        beside[4] += steps[1]
        above[3] += steps[0]
        found = torch.cat((found, beside, above), 1)
        found = found[:, ((found[3:] >= 0) & (found[3:] < size)).all(0)]
    return found


def prior_biases(head):
    """(A * (5 + C),): initial biases before a head, for 8 objects in 640 x 640 pixels."""
    biases = torch.zeros(len(head.anchors), 5 + head.classes)
    biases[:, 4] = math.log(8 / (640 / head.stride) ** 2)
    biases[:, 5:] = math.log(0.6 / (head.classes - 0.99))
    return biases.flatten()


def _head_terms(logits, head, targets):
    """HeadTerms of one head, with gradient; `cost` is its loss."""
    device, grid = logits.device, logits.shape[2:]
    number, *cells = to_device(match(head, targets, grid), device)
    matched, values = to_device(targets, device)[number], by_anchor(logits, head)
    answers, count = values[tuple(cells)].float(), max(len(number), 1)  # (n, 5 + C)
    boxes = decode_boxes(answers, head, grid, cells[1:])
    boxes = torch.cat((boxes[:, :2], boxes[:, 2:].clamp(min=1e-7)), 1)  # 0 / 0 has no aspect
    # CIoU changes under unequal scaling: in cells, not relative
    scale = to_device(torch.tensor((*grid[::-1], *grid[::-1])), device)
    distance = 1 - box_iou(boxes * scale, matched[:, 2:] * scale, "ciou")  # (n,)
    objectness = boxes.new_zeros(values.shape[:-1])  # (B, A, h, w)
    overlap = (1 - distance.detach()).clamp(min=0)
    reduce_max(objectness.view(-1), flat_indices(cells, values.shape), overlap)
    _, classes = wanted_classes(matched[:, 1:2], head)
    box_loss = head.iou_normalizer * distance.sum() / count
    other = head.obj_normalizer * binary_cross_entropy_with_logits(
        values[..., 4].float(), objectness
    )
    class_sum = binary_cross_entropy_with_logits(answers[:, 5:], classes, reduction="sum")
    other = other + head.cls_normalizer * class_sum / (count * head.classes)
    loss, average_iou = box_loss + other, box_iou(boxes, matched[:, 2:]).sum() / count
    return HeadTerms(box_loss, other, loss, average_iou, loss.new_full((), len(number)), loss)
