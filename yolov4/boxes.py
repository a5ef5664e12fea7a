"""IoU of every kind and non-maximum suppression of every kind, as Darknet computes them.
Source: Darknet's src/box.c; GIoU arXiv:1902.09630, DIoU and CIoU arXiv:1911.08287."""

import math

import torch
from torch import Tensor

BLOCK = 512  # boxes that nms compares at once: memory grows with boxes * BLOCK


def box_iou(a: Tensor, b: Tensor, kind: str = "iou", exponent: float = 0.6) -> Tensor:
    """IoU of boxes that broadcast: a, b (..., 4), both cxcywh in one unit.  Returns (...).

    iou in [0, 1]; giou, ciou in [-1, 1]; diou is IoU - (d^2 / c^2)^exponent, with d the distance of the centres and c
    the diagonal of the enclosing box.  DIoU and CIoU change under unequal scaling: Darknet uses relative boxes.
    """
    half_a, half_b = a[..., 2:] / 2, b[..., 2:] / 2
    low_a, high_a, low_b, high_b = a[..., :2] - half_a, a[..., :2] + half_a, b[..., :2] - half_b, b[..., :2] + half_b
    intersection = _area((torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0))
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
    difference = torch.atan(b[..., 2] / b[..., 3]) - torch.atan(a[..., 2] / a[..., 3])
    aspect = 4 / math.pi**2 * difference.square()
    alpha = (aspect / (1 - iou + aspect + 1e-6)).detach()  # a weight: no gradient goes through it
    return torch.where(diagonal > 0, iou - distance - aspect * alpha, iou)


def _area(sides: Tensor) -> Tensor:
    """(..., 2) -> (...); the gradient of `prod` would wait for the device."""
    return sides[..., 0] * sides[..., 1]


def iou_gradient(boxes: Tensor, truths: Tensor, kind: str) -> Tensor:
    """Darknet's gradient of an IoU with respect to boxes, pair by pair.

    boxes, truths: (n, 4) cxcywh relative -> (n, 4) dx, dy, dw, dh.  Written by hand in Darknet and kept as it is: w, h
    are not halved, the DIoU part has another sign on w, h, and where the boxes are apart the IoU part is left out.  It
    is not what autograd gives.
    """
    size = boxes[:, 2:]
    low, high = boxes[:, :2] - size / 2, boxes[:, :2] + size / 2  # (left, top), (right, bottom)
    truth_low, truth_high = truths[:, :2] - truths[:, 2:] / 2, truths[:, :2] + truths[:, 2:] / 2
    sides = torch.minimum(high, truth_high) - torch.maximum(low, truth_low)  # of the intersection; negative: the gap
    intersection = sides.prod(1, keepdim=True)
    union = size.prod(1, keepdim=True) + truths[:, 2:].prod(1, keepdim=True) - intersection
    apart = (sides <= 0).any(1, keepdim=True)
    enclosing = torch.maximum(high, truth_high) - torch.minimum(low, truth_low)
    reach = torch.stack((low < truth_low, high > truth_high)).float()  # edges of the enclosing box

    d_intersection = _edges(low > truth_low, high < truth_high, sides)
    d_union = _edges(1, 1, size) - d_intersection
    edges = torch.where(union > 0, (union * d_intersection - intersection * d_union) / union.square(), 0.0)
    if kind == "giou":
        area = enclosing.prod(1, keepdim=True)
        outside = (area * d_union - union * _edges(*reach, enclosing)) / area.square()
        edges = torch.where(apart, outside, edges + outside)
    gradient = torch.cat((edges[0] + edges[1], edges[1] - edges[0]), 1)
    if kind not in ("diou", "ciou"):
        return gradient
    extra = _distance_gradient(boxes, truths, enclosing, reach)
    if kind == "ciou":
        extra[:, 2:] += _aspect_gradient(size, truths[:, 2:], intersection / union)
    return torch.where(apart, extra, gradient + extra)


def _edges(low, high, sides: Tensor) -> Tensor:
    """Moving an edge changes an area by the length of that edge, which is the other side: (2, n, 2), of the low edges,
    then of the high ones; low, high (n, 2) are factors."""
    lengths = sides.flip(1)
    return torch.stack((low * -lengths, high * lengths))


def _distance_gradient(boxes: Tensor, truths: Tensor, enclosing: Tensor, reach: Tensor) -> Tensor:
    """(n, 4), of minus the squared distance of the centres over the squared diagonal of the enclosing box."""
    diagonal = enclosing.square().sum(1, keepdim=True)
    offset = truths[:, :2] - boxes[:, :2]
    distance = offset.square().sum(1, keepdim=True)
    position = 2 * offset * diagonal - 2 * enclosing * (reach[1] - reach[0]) * distance
    return torch.cat((position, enclosing * (reach[1] + reach[0]) * distance), 1) / diagonal.square()


def _aspect_gradient(size: Tensor, truth_size: Tensor, iou: Tensor) -> Tensor:
    """(n, 2), of minus CIoU's term for unequal aspects."""
    angle = torch.atan(truth_size[:, :1] / truth_size[:, 1:]) - torch.atan(size[:, :1] / size[:, 1:])
    aspect = 4 / math.pi**2 * angle.square()
    alpha = aspect / (1 - iou + aspect + 1e-6)
    return alpha * 8 / math.pi**2 * angle * torch.cat((size[:, 1:], -size[:, :1]), 1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) cxcywh -> xyxy"""
    half = boxes[..., 2:] / 2
    return torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> cxcywh"""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def relative_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(..., 4) xyxy in pixels of an image of (width, height) -> cxcywh relative to it"""
    return xyxy_to_cxcywh(boxes) / boxes.new_tensor((*image_size, *image_size))


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> x, y of the upper left corner, w, h"""
    return torch.cat((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), -1)


def nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, thresh: float, kind: str = "default", beta: float = 0.6
) -> Tensor:
    """Greedy suppression within each class, in the order of scores.

    boxes (n, 4) cxcywh relative, scores (n,), labels (n,).  A box goes if a better one that stays overlaps it by more
    than thresh: IoU (default), IoU - (d^2 / c^2)^0.6 (greedynms), IoU - (d^2 / c^2)^beta (diounms).
    Returns the indices (k,) of what stays, by falling score.
    """
    iou_kind, exponent = {"default": ("iou", 0.6), "greedynms": ("diou", 0.6), "diounms": ("diou", beta)}[kind]
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, and by falling score within it
    boxes, labels = boxes[order], labels[order]
    keep = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for start in range(0, len(order), BLOCK):
        block = slice(start, start + BLOCK)
        # only the first class of a block can have boxes in earlier blocks
        earlier = (keep[:start] & (labels[:start] == labels[start])).nonzero()[:, 0]
        if len(earlier):
            overlap = box_iou(boxes[earlier][:, None], boxes[block][None], iou_kind, exponent) > thresh
            keep[block] &= ~(overlap & (labels[block] == labels[start])).any(0)
        keep[block] = _greedy(boxes[block], labels[block], keep[block], thresh, iou_kind, exponent)
    kept = order[keep]
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _greedy(boxes: Tensor, labels: Tensor, candidates: Tensor, thresh: float, kind: str, exponent: float) -> Tensor:
    """Which of the candidates stay, all in the order of their scores.

    "Stays unless a better one that stays overlaps it" has one solution; repeating it from any start reaches it after
    as many rounds as the longest chain of suppressions, a few in practice.
    """
    better, worse = (labels[:, None] == labels).triu(1).nonzero(as_tuple=True)  # pairs that can meet
    overlap = box_iou(boxes[better], boxes[worse], kind, exponent) > thresh
    better, worse = better[overlap], worse[overlap]
    keep = candidates
    while True:
        following = candidates.clone()
        following[worse[keep[better]]] = False
        if torch.equal(following, keep):
            return keep
        keep = following
