"""Which predictions answer for which truths.
Source: Darknet's src/yolo_layer.c, process_batch, the loop over truths."""

from typing import NamedTuple

import torch
from torch import Tensor

from yolov4.boxes import box_iou
from yolov4.sections import GaussianHead, Head
from yolov4.transfer import sent


class Positives(NamedTuple):
    """Pairs of a prediction and a truth it answers for."""

    places: tuple[Tensor, ...]  # image, anchor of the mask, row, column; (n,) each
    truths: Tensor  # (n, 4) cxcywh relative
    classes: Tensor  # (n,) int64

    def to(self, device: torch.device) -> "Positives":
        indices = sent(torch.stack((*self.places, self.classes)), device)
        return Positives(tuple(indices[:-1]), sent(self.truths, device), indices[-1])

    def split(self, sizes: list[int]) -> list["Positives"]:
        """One after the other, so many in each."""
        places = zip(*(index.split(sizes) for index in self.places), strict=True)
        parts = zip(places, self.truths.split(sizes), self.classes.split(sizes), strict=True)
        return [Positives(*each) for each in parts]


def assign(head: Head, targets: Tensor, grid: tuple[int, int]) -> Positives:
    """Which predictions of a head answer for which truths, in the order of the truths: in the cell of the truth's
    centre (or yolo_point), the best anchor of all if it is one of this head's, and every other of this head's whose IoU
    (iou_thresh_kind) is above iou_thresh.

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


def in_rounds(positives: Positives, shape: torch.Size) -> tuple[Positives, list[int]]:
    """Those of the first truth of every place, then those of the second, and so on: places of a round are distinct.

    shape: (B, A, h, w).  Returns the positives in that order, and how many there are in each round, of which there is
    at least one.
    """
    flat = flat_places(positives.places, shape)
    by_place = flat.argsort(stable=True)
    _, counts = flat[by_place].unique_consecutive(return_counts=True)
    rank = torch.arange(len(flat)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # in its place
    by_round = rank.argsort(stable=True)
    order, rounds = by_place[by_round], rank[by_round].unique_consecutive(return_counts=True)[1].tolist() or [0]
    places = tuple(index[order] for index in positives.places)
    return Positives(places, positives.truths[order], positives.classes[order]), rounds


def flat_places(places: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    """Indices (n,) into the flattened tensor of that shape."""
    flat = places[0]
    for index, length in zip(places[1:], shape[1:], strict=True):
        flat = flat * length + index
    return flat
