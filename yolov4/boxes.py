"""Box formats, IoU and its gradient, non-maximum suppression, of every kind that Darknet has.
Source: Darknet's src/box.c; GIoU arXiv:1902.09630, DIoU and CIoU arXiv:1911.08287."""

import math

import torch
from torch import Tensor

BLOCK = 512  # boxes that nms decides on at once: memory grows with boxes * BLOCK


def to_device(tensor, device):
    """A tensor of the host on `device`, without waiting for the device as `new_tensor` does."""
    if device.type == "cuda":  # copies from page-locked memory are asynchronous
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def corners(boxes):
    """(..., 4) cxcywh -> (left, top), (right, bottom), (..., 2) each"""
    half = boxes[..., 2:] / 2
    return boxes[..., :2] - half, boxes[..., :2] + half


def cxcywh_to_xyxy(boxes):
    """(..., 4) cxcywh -> xyxy"""
    return torch.cat(corners(boxes), -1)


def xyxy_to_cxcywh(boxes):
    """(..., 4) xyxy -> cxcywh"""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def xyxy_to_xywh(boxes):
    """(..., 4) xyxy -> left, top, width, height"""
    return torch.cat((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), -1)


def relative_boxes(boxes, image_size):
    """(..., 4) xyxy in pixels of an image of (width, height) -> cxcywh relative to it"""
    return xyxy_to_cxcywh(boxes) / boxes.new_tensor((*image_size, *image_size))


def box_iou(a: Tensor, b: Tensor, kind: str = "iou", exponent: float = 0.6) -> Tensor:
    """IoU of boxes that broadcast: a, b (..., 4), both cxcywh in one unit.  Returns (...).

    iou in [0, 1]; giou, ciou in [-1, 1]; diou is IoU - (d^2 / c^2)^exponent, with d the distance
    of the centres and c the diagonal of the enclosing box.  DIoU and CIoU change under unequal
    scaling: Darknet computes them on relative boxes.
    """
    (low_a, high_a), (low_b, high_b) = corners(a), corners(b)
    sides = torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)
    intersection = _area(sides.clamp(min=0))
    union = _area(a[..., 2:]) + _area(b[..., 2:]) - intersection
    iou = torch.where(intersection > 0, intersection / union, 0.0)
    if kind == "iou":
        return iou
    enclosing = torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)
    if kind == "giou":
        area = _area(enclosing)
        return torch.where(area > 0, iou - (area - union) / area, iou)
    diagonal = enclosing.square().sum(-1)
    distance = (a[..., :2] - b[..., :2]).square().sum(-1) / diagonal
    if kind == "diou":
        return torch.where(diagonal > 0, iou - distance.pow(exponent), iou)
    _, aspect, alpha = _aspect(a, b, iou)
    return torch.where(diagonal > 0, iou - distance - aspect * alpha, iou)


def iou_gradient(boxes, targets, kind):
    """Darknet's gradient of an IoU with respect to boxes, pair by pair, not what autograd gives.

    boxes, targets: (n, 4) cxcywh relative -> (n, 4) dx, dy, dw, dh.  Kept as it is there: w, h are
    not halved, the DIoU part has the other sign on w, h, and the IoU part is left out where the
    boxes are apart.
    """
    size, target_size, offset = boxes[:, 2:], targets[:, 2:], targets[:, :2] - boxes[:, :2]
    (low, high), (target_low, target_high) = corners(boxes), corners(targets)
    sides = torch.minimum(high, target_high) - torch.maximum(low, target_low)  # < 0: the gap
    apart = (sides <= 0).any(1, keepdim=True)
    intersection = _area(sides)[:, None]
    union = _area(size)[:, None] + _area(target_size)[:, None] - intersection
    enclosing = torch.maximum(high, target_high) - torch.minimum(low, target_low)
    inside = torch.stack((low - target_low, target_high - high))  # of the target, by edge (2, n, 2)
    outer = (inside < 0).float()  # edges of the enclosing box; the others are the intersection's

    def by_edge(lengths):  # an edge that moves changes an area by the length of the other side
        return torch.stack((-lengths, lengths)).flip(2)

    d_intersection = (inside > 0) * by_edge(sides)
    d_union = by_edge(size) - d_intersection
    d_low, d_high = edges = torch.where(
        union > 0, (union * d_intersection - intersection * d_union) / union.square(), 0.0
    )
    if kind == "giou":
        area = _area(enclosing)[:, None]
        outside = (area * d_union - union * outer * by_edge(enclosing)) / area.square()
        d_low, d_high = torch.where(apart, outside, edges + outside)
    gradient = torch.cat((d_low + d_high, d_high - d_low), 1)
    if kind in ("iou", "giou"):
        return gradient
    diagonal = enclosing.square().sum(1, keepdim=True)
    distance = offset.square().sum(1, keepdim=True)
    d_centre = 2 * offset * diagonal - 2 * enclosing * (outer[1] - outer[0]) * distance
    d_size = enclosing * (outer[1] + outer[0]) * distance
    extra = torch.cat((d_centre, d_size), 1) / diagonal.square()
    if kind == "ciou":
        angle, _, alpha = _aspect(boxes, targets, _area(sides) / union[:, 0])
        factor = (alpha * 8 / math.pi**2 * angle)[:, None]
        extra[:, 2:] += factor * torch.cat((size[:, 1:], -size[:, :1]), 1)
    return torch.where(apart, extra, gradient + extra)


def _area(sides):
    """(..., 2) -> (...); the gradient of `prod` would wait for the device."""
    return sides[..., 0] * sides[..., 1]


def _aspect(a, b, iou):
    """CIoU's difference of angles, its square in 0..1, and the weight of that, all (...)."""
    angle = torch.atan(b[..., 2] / b[..., 3]) - torch.atan(a[..., 2] / a[..., 3])
    aspect = 4 / math.pi**2 * angle.square()
    return angle, aspect, (aspect / (1 - iou + aspect + 1e-6)).detach()


def nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    thresh: float,
    kind: str = "default",
    beta: float = 0.6,
) -> Tensor:
    """Greedy suppression within each class, in the order of scores.

    boxes (n, 4) cxcywh relative, scores (n,), labels (n,).  A box goes if a better one that stays
    overlaps it by more than thresh: IoU (default), IoU - (d^2 / c^2)^0.6 (greedynms),
    IoU - (d^2 / c^2)^beta (diounms).  Returns the indices (k,) of what stays, by falling score.
    """
    iou_kind = "iou" if kind == "default" else "diou"
    exponent = beta if kind == "diounms" else 0.6
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, and by falling score within it
    boxes, labels = boxes[order], labels[order]
    keep = torch.ones_like(labels, dtype=torch.bool)
    for start in range(0, len(order), BLOCK):
        block = slice(start, start + BLOCK)
        begin = int(torch.searchsorted(labels, labels[start]))  # of the class, maybe blocks before
        pairs = (labels[begin : block.stop, None] == labels[block]) & keep[begin : block.stop, None]
        better, worse = pairs.triu(begin - start + 1).nonzero(as_tuple=True)
        better, worse = better + begin, worse + start
        overlap = box_iou(boxes[better], boxes[worse], iou_kind, exponent) > thresh
        better, worse = better[overlap], worse[overlap]
        # "stays unless a better one that stays overlaps it" has one solution, found in as many
        # rounds as the longest chain of suppressions: a few in practice
        while True:
            stays = torch.ones_like(keep[block])
            stays[worse[keep[better]] - start] = False
            if torch.equal(stays, keep[block]):
                break
            keep[block] = stays
    kept = order[keep]
    return kept[scores[kept].argsort(descending=True, stable=True)]
