"""Which predictions answer for which truths.
Source: Darknet's src/yolo_layer.c, process_batch, the loop over truths."""

from typing import NamedTuple

import torch
from torch import Tensor

from yolov4.boxes import box_iou
from yolov4.sections import GaussianHead, Head


class Positives(NamedTuple):
    """Pairs of a prediction and a truth it answers for, in the order of the truths."""

    places: tuple[Tensor, ...]  # image, anchor of the mask, row, column; (n,) each
    truths: Tensor  # (n, 4) cxcywh relative
    classes: Tensor  # (n,) int64


def assign(head: Head, targets: Tensor, grid: tuple[int, int]) -> Positives:
    """Which predictions of a head answer for which truths: in the cell of the truth's centre (or yolo_point), the best
    anchor of all if it is one of this head's, and every other of this head's whose IoU (iou_thresh_kind) is above
    iou_thresh.

    targets (T, 6) with possible classes; grid (rows, columns).
    """
    h, w = grid
    anchors = targets.new_tensor(head.all_anchors) / (targets.new_tensor((w, h)) * head.stride)  # (N, 2) relative
    anchors = torch.cat((torch.zeros_like(anchors), anchors), 1)  # at the origin, as the truths below
    shapes = torch.cat((torch.zeros_like(targets[:, 4:]), targets[:, 4:]), 1)
    best = box_iou(anchors[None], shapes[:, None]).argmax(1)  # (T,)
    mask = torch.tensor(head.mask, device=targets.device)
    answers = best[:, None] == mask  # (T, A)
    if head.iou_thresh < 1:
        answers = answers | (box_iou(anchors[mask][None], shapes[:, None], head.iou_thresh_kind) > head.iou_thresh)
    truth, anchor = answers.nonzero(as_tuple=True)
    chosen = targets[truth]
    # a centre on the right or lower border is in the last cell
    points = chosen[:, 2:4] + (head.shift * chosen[:, 4:] if isinstance(head, GaussianHead) else 0)
    column, row = (points[:, 0] * w).long().clamp(0, w - 1), (points[:, 1] * h).long().clamp(0, h - 1)
    return Positives((chosen[:, 0].long(), anchor, row, column), chosen[:, 2:], chosen[:, 1].long())


def rank_in_place(places: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    """How many earlier positives have the same place, (n,)."""
    flat = flat_places(places, shape)
    _, group, counts = flat.unique(return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    first = counts.cumsum(0) - counts
    rounds = torch.empty_like(flat)
    rounds[order] = torch.arange(len(flat), device=flat.device) - first[group[order]]
    return rounds


def flat_places(places: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    """Indices (n,) into the flattened tensor of that shape."""
    flat = places[0]
    for index, length in zip(places[1:], shape[1:], strict=True):
        flat = flat * length + index
    return flat
