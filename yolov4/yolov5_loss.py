"""The yolov5-style loss: targets matched by ratio of sides, in neighbouring cells too; autograd.
Source: the formulas of YOLOv5 as published; CIoU arXiv:1911.08287."""

import math

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from yolov4.boxes import box_iou, to_device
from yolov4.decoding import by_anchor, decode_boxes
from yolov4.loss import HeadTerms, LossTerms, flat_indices, reduce_max

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
        targets = targets.to("cpu", torch.float32)
        with torch.autocast(logits[0].device.type, enabled=False):
            pairs = zip(logits, self.heads, strict=True)
            terms = [_head_terms(*each, targets) for each in pairs]
        loss = sum(each.cost for each in terms)
        total = NOMINAL_BATCH * (loss - loss.detach()) + loss.detach()
        return LossTerms(total, [HeadTerms(*(term.detach() for term in each)) for each in terms])


def match(head, targets, grid):
    """Target assignment: every anchor whose sides are less than 4 times longer or shorter, in the
    cell of the target's centre; where the head reaches so far (scale_x_y >= 2) also in the nearest
    cell beside it and the nearest above or below.

    targets (T, 6); grid (rows, columns).  Returns (5, n): target, image, anchor, row, column.
    """
    size = torch.tensor(grid[::-1])
    ratio = targets[:, None, 4:] * size * head.stride / torch.tensor(head.anchors)  # (T, A, 2)
    matching = torch.maximum(ratio, 1 / ratio).amax(2) < MAX_RATIO
    target, anchor = matching.nonzero(as_tuple=True)
    centres = targets[target, 2:4] * size
    cells = centres.long().clamp(min=0).minimum(size - 1)  # (n, 2) column, row
    if head.scale_x_y >= 2:
        step = torch.where(centres - cells < 0.5, -1, 1)
        cells = torch.cat([cells + step * torch.tensor(way) for way in ((0, 0), (1, 0), (0, 1))])
        inside = ((cells >= 0) & (cells < size)).all(1)
        cells, anchor, target = cells[inside], anchor.repeat(3)[inside], target.repeat(3)[inside]
    return torch.stack((target, targets[target, 0].long(), anchor, cells[:, 1], cells[:, 0]))


def prior_biases(head):
    """(A * (5 + C),): initial biases before a head, for 8 objects in 640 x 640 pixels."""
    biases = torch.zeros(len(head.anchors), 5 + head.classes)
    biases[:, 4] = math.log(8 / (640 / head.stride) ** 2)
    biases[:, 5:] = math.log(0.6 / (head.classes - 0.99))
    return biases.flatten()


def _head_terms(logits, head, targets):
    """Of one head, with gradient; `cost` is its loss."""
    targets = targets[(targets[:, 1] >= 0) & (targets[:, 1] < head.classes)]
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
    reduce_max(objectness.view(-1), flat_indices(cells, head, grid), overlap)
    own = matched[:, 1, None] == torch.arange(head.classes, device=device)
    classes = own * (1 - head.label_smooth_eps) + head.label_smooth_eps / 2
    box_loss = head.iou_normalizer * distance.sum() / count
    other = head.obj_normalizer * binary_cross_entropy_with_logits(
        values[..., 4].float(), objectness
    )
    class_sum = binary_cross_entropy_with_logits(answers[:, 5:], classes, reduction="sum")
    other = other + head.cls_normalizer * class_sum / (count * head.classes)
    loss, average_iou = box_loss + other, box_iou(boxes, matched[:, 2:]).sum() / count
    return HeadTerms(box_loss, other, loss, average_iou, loss.new_full((), len(number)), loss)
