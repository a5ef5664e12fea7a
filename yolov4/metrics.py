"""From detections and truths to a Result, as `darknet detector map` counts: matching, average precision.
Source: Darknet's src/detector.c, validate_detector_map."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from yolov4.boxes import box_iou, relative_boxes
from yolov4.decoding import Detections
from yolov4.result import Record, Result, Settings

BLOCK = 16384  # detections that are compared with the truths at once


class Evaluator:
    """Collects detections and truths image by image; then `result` for any IoU and points from the one pass."""

    def __init__(self, classes: int, settings: Settings):
        self.classes, self.settings, self.images = classes, settings, 0
        self.records: list[Record] = []
        self._detections: list[tuple[Tensor, ...]] = []  # of an image: boxes cxcywh relative, groups, scores
        self._truths: list[tuple[Tensor, ...]] = []  # boxes, groups
        self._difficult: list[tuple[Tensor, ...]] = []

    def add(
        self,
        detections: Detections,
        labels: Tensor,
        image_size: tuple[int, int],
        difficult: Tensor | None = None,
        path=None,
    ):
        """One image.

        detections: in the pixels of image_size = (width, height), in any order; where two are on one truth, the first
        of them counts as TP.  labels, difficult: (n, 5) class, cx, cy, w, h, relative.  path: the image's Path,
        for its record.  Raises ValueError for a class >= classes.
        """
        boxes = relative_boxes(detections.boxes, image_size)
        self._detections.append((boxes, self._groups(detections.labels), detections.scores))
        self._truths.append((labels[:, 1:], self._groups(labels[:, 0].long())))
        if difficult is not None:
            self._difficult.append((difficult[:, 1:], self._groups(difficult[:, 0].long())))
        by_score = detections.scores.argsort(descending=True, stable=True)
        ranked = Detections(*(values[by_score] for values in detections))
        self.records.append(Record(path, image_size, ranked, labels, labels[:0] if difficult is None else difficult))
        self.images += 1
        self.__dict__.pop("_matches", None)

    def result(self, iou_thresh: float = 0.5, points: int = 0) -> Result:
        """points: 0 for the area under the curve, else the recall points (11, 101).  Raises ValueError for others."""
        if points < 0 or points == 1 or not 0 <= iou_thresh < 1:
            raise ValueError(
                f"points {points}, iou_thresh {iou_thresh}, expected points 0 or > 1 and iou_thresh in 0..1"
            )
        labels, scores, truth_labels, overlap, truth, difficult_overlap = self._matches
        found = overlap > iou_thresh
        # Darknet's oddity: an unmatched detection on a difficult object leaves the curve, but is still counted as FP
        ranked = rank_by_class((found | (difficult_overlap <= iou_thresh)).nonzero()[:, 0], labels, scores)
        hits = first_finds(truth[ranked], found[ranked])
        per_class, truths = self._count(labels[ranked]), self._count(truth_labels)
        parts = zip(hits.split(per_class.tolist()), truths.tolist(), strict=True)
        confident = scores > self.settings.confidence
        # Darknet's oddity: whoever comes first in the list has found the truth, confident or not
        positive = first_finds(truth, found) & confident
        return Result(
            ap=np.array([average_precision(part, count, points) for part, count in parts]),
            truths=truths.numpy(), tp=self._count(labels[positive]).numpy(),
            fp=self._count(labels[confident & ~positive]).numpy(),
            iou_sum=self._count(labels[positive], overlap[positive].double()).numpy(),
            detections=len(ranked), images=self.images, iou_thresh=iou_thresh, points=points, settings=self.settings,
        )  # fmt: skip

    @cached_property
    def _matches(self) -> tuple[Tensor, ...]:
        """Of all detections labels, scores; labels of all truths; the best IoU with a truth, that truth, and the best
        IoU with a difficult object.  No threshold has its say here."""
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
        boxes, groups, scores = _join(self._detections, (*nothing, torch.zeros(0)))
        truth_boxes, truth_groups = _join(self._truths, nothing)
        overlap, truth = best_overlaps(boxes, groups, truth_boxes, truth_groups)
        difficult_overlap, _ = best_overlaps(boxes, groups, *_join(self._difficult, nothing))
        return groups % self.classes, scores, truth_groups % self.classes, overlap, truth, difficult_overlap

    def _groups(self, labels: Tensor) -> Tensor:
        """Detections and truths can meet only within one image and class: a number for each such pair."""
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.classes:
            raise ValueError(f"class {labels.max():g}, expected 0..{self.classes - 1}")
        return self.images * self.classes + labels

    def _count(self, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        return torch.bincount(labels, weights, self.classes)


def best_overlaps(boxes: Tensor, groups: Tensor, truth_boxes: Tensor, truth_groups: Tensor) -> tuple[Tensor, Tensor]:
    """The truth of the same group with the highest IoU, the first of equals.

    boxes (n, 4), truth_boxes (m, 4), cxcywh in one unit; groups (n,), truth_groups (m,) int64.
    Returns IoU (n,), 0 where there is none, and the index of the truth (n,), m where there is none.
    """
    order = truth_groups.argsort(stable=True)
    sorted_groups = truth_groups[order]
    best, index = boxes.new_zeros(len(boxes)), torch.full((len(boxes),), len(truth_boxes))
    for start in range(0, len(boxes), BLOCK):
        block = slice(start, start + BLOCK)
        first = torch.searchsorted(sorted_groups, groups[block])
        counts = torch.searchsorted(sorted_groups, groups[block], right=True) - first
        row = torch.arange(len(counts)).repeat_interleave(counts)  # (pairs,), of this block
        place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]  # of the pair within its row
        truth = order[first[row] + place]
        overlap = box_iou(boxes[block][row], truth_boxes[truth])
        best[block].scatter_reduce_(0, row, overlap, "amax")
        winners = (overlap == best[block][row]) & (overlap > 0)
        index[block].scatter_reduce_(0, row[winners], truth[winners], "amin")
    return best, index


def rank_by_class(rows: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """rows (m,) of labels (n,), scores (n,), in order -> by class, by falling score within it, equals as they were."""
    rows = rows[scores[rows].argsort(descending=True, stable=True)]
    return rows[labels[rows].argsort(stable=True)]


def first_finds(truth: Tensor, found: Tensor) -> Tensor:
    """truth (n,) int64: which truth a detection is on; found (n,) bool: whether it is.  A truth is found once:
    returns (n,) bool, True for the first detection of each."""
    rows = found.nonzero()[:, 0]
    _, first = np.unique(truth[rows].numpy(), return_index=True)
    finds = torch.zeros_like(found)
    finds[rows[torch.from_numpy(first)]] = True
    return finds


def average_precision(hits: Tensor, truths: int, points: int = 0) -> float:
    """hits (n,) bool, the detections of a class by falling score; truths: how many there are to find.

    points 0: the area under the curve of the best precision at each recall or beyond; else the mean of that precision
    at so many recalls, evenly from 0 to 1.  In 0..1; 0 without truths or hits.
    """
    if not truths or not len(hits):
        return 0.0
    found = hits.double().cumsum(0)
    recall = found / truths
    precision = found / torch.arange(1, len(hits) + 1)
    best = precision.flip(0).cummax(0).values.flip(0)
    if points == 0:
        return float((recall.diff(prepend=recall.new_zeros(1)) * best).sum())
    # k * 0.1 and not k / 10, which differ in the last bit: so does the compiled Darknet, and recalls are k / 10 often
    wanted = torch.from_numpy(np.linspace(0, 1, points))
    return float(torch.cat((best, best.new_zeros(1)))[torch.searchsorted(recall, wanted)].mean())


def _join(parts: list[tuple[Tensor, ...]], nothing: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.cat(columns) for columns in zip(nothing, *parts, strict=True)]
