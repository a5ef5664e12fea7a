"""Matches detections with ground truth; mAP as `darknet detector map`, curves, confusion.
Source: Darknet's src/detector.c, validate_detector_map; the curve is that of the VOC devkit."""

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from yolov4.boxes import box_iou, relative_boxes
from yolov4.decoding import Detections
from yolov4.files import finite

THRESHOLDS = np.arange(1000) / 1000  # confidences at which F1 is measured


class Record(NamedTuple):
    """One image of an evaluation."""

    path: Path | None
    image_size: tuple[int, int]  # width, height
    detections: Detections  # by falling score, equal ones in Darknet's order
    labels: Tensor  # (m, 5) class, cx, cy, w, h, relative: the ground truth
    difficult: Tensor  # (k, 5) likewise; k = 0 where no list was given


class Matches(NamedTuple):
    """The detections of one class in all images, by falling score, and what there is to find."""

    scores: Tensor  # (n,)
    hits: Tensor  # (n,) bool: the first to find its ground-truth box
    objects: int  # ground-truth boxes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the detections were made; printed with every result."""

    size: tuple[int, int]  # width, height of the network input, pixels
    letter_box: bool = False
    thresh: float = 0.005
    nms_thresh: float = 0.45
    confidence: float = 0.25  # above it, a detection counts for TP, FP, the ratios and average IoU
    difficult: bool = False  # whether a list of difficult objects was given

    def __str__(self):
        fitted, (width, height) = "letterboxed" if self.letter_box else "stretched", self.size
        return (
            f"images {fitted} to {width}x{height}; thresh {self.thresh:g}, nms {self.nms_thresh:g}"
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `Evaluator.result` counted.  Arrays are (C,), one value per class; ratios 0..1."""

    ap: np.ndarray  # a class without ground truth has 0 and counts in the mean, as in Darknet
    objects: np.ndarray  # ground-truth boxes
    tp: np.ndarray  # at settings.confidence
    fp: np.ndarray
    iou_sum: np.ndarray  # over the true positives
    precision: float  # of all classes together, at settings.confidence
    recall: float
    f1: float
    average_iou: float
    images: int
    iou_thresh: float
    points: int
    settings: Settings
    matches: list[Matches]  # one per class; without detections on difficult objects

    @property
    def map(self):
        return float(self.ap.mean())

    @property
    def detections(self):
        """How many are above settings.thresh."""
        return sum(len(each.scores) for each in self.matches)

    @property
    def protocol(self):
        """One sentence: what was measured, and with which settings."""
        settings = self.settings
        curve = f"{self.points} recall points" if self.points else "area under the curve"
        difficult = "from their list" if settings.difficult else "not listed"
        return (
            f"darknet detector map: IoU > {self.iou_thresh:g}, {curve}, mean over {len(self.ap)} "
            f"classes; {settings}; TP to IoU at confidence > {settings.confidence:g}; difficult "
            f"objects {difficult}."
        )

    def rows(self, names):
        """The table of the classes as plain values; the last row is that of all classes."""
        counts = (self.objects, self.tp, self.fp, self.iou_sum)
        objects, tp, fp, iou_sum = (np.append(each, each.sum()) for each in counts)
        columns = {"ap": np.append(self.ap, self.map), "objects": objects, "tp": tp, "fp": fp}
        columns |= _ratios(objects, tp, fp, iou_sum)
        names = [*names, f"mAP@{self.iou_thresh:.2f}"]
        rows = zip(names, *(each.tolist() for each in columns.values()), strict=True)
        return [dict(zip(("name", *columns), row, strict=True)) for row in rows]

    def table(self, names):
        """One line per class, the totals, and the protocol."""
        width = max(16, *map(len, names))
        heads = "  objects      AP %        TP        FP precision    recall        F1     IoU %"
        lines = [f"{'class':{width}} {heads}"]
        lines += [
            f"{row['name']:{width}} {row['objects']:9} {row['ap'] * 100:9.2f} {row['tp']:9} "
            f"{row['fp']:9} {row['precision']:9.2f} {row['recall']:9.2f} {row['f1']:9.2f} "
            f"{row['average_iou'] * 100:9.2f}"
            for row in self.rows(names)
        ]
        lines[-1] += f"   {self.images} images, {self.detections} detections"
        return "\n".join([*lines, textwrap.fill(self.protocol, 100)])

    def to_json(self, names):
        """Everything as plain values, ready for json.dump; None for NaN and infinities."""
        keys = ("map", "precision", "recall", "f1", "average_iou", "images", "detections",
                "iou_thresh", "points", "protocol")  # fmt: skip
        values = {key: getattr(self, key) for key in keys}
        own = {"settings": asdict(self.settings), "classes": self.rows(names)[:-1]}
        return finite(values | own)


def _ratios(objects, tp, fp, iou_sum):
    """0 where 0 / 0.  A false positive counts as an IoU of 0, as in Darknet."""
    found = np.maximum(1, tp + fp)
    return {
        "precision": tp / found,
        "recall": tp / np.maximum(1, objects),
        "f1": 2 * tp / np.maximum(1, tp + fp + objects),
        "average_iou": iou_sum / found,
    }


class Evaluator:
    """Takes the images of one pass; `result` then counts for any IoU threshold and recalls."""

    def __init__(self, classes, settings):
        self.classes, self.settings = classes, settings
        self.records: list[Record] = []
        self._matches = []  # tensors of each image, in the order of Darknet's list
        self._objects = np.zeros(classes, int)

    def add(self, detections, labels, image_size, difficult=None, path=None):
        """One image.

        detections: in pixels of image_size = (width, height); `prediction` gives their order in
        Darknet's list.  labels, difficult: (n, 5) class, cx, cy, w, h, relative.
        """
        difficult = labels[:0] if difficult is None else difficult
        found = detections[(detections.prediction * self.classes + detections.labels).argsort()]
        boxes = relative_boxes(found.boxes, image_size)
        overlap, index = best_overlaps(boxes, found.labels, labels)
        hard, _ = best_overlaps(boxes, found.labels, difficult)
        index += self._objects.sum()
        self._matches.append((found.labels, found.scores, overlap, index, hard))
        self._objects = self._objects + self._count(labels[:, 0].long())
        found = found[found.scores.argsort(descending=True, stable=True)]
        self.records.append(Record(path, image_size, found, labels, difficult))

    def result(self, iou_thresh=0.5, points=0):
        """points: 0 for the area under the curve, else how many recalls.  Raises ValueError."""
        if points < 0 or points == 1 or not 0 <= iou_thresh <= 1:
            raise ValueError(f"points {points}, IoU {iou_thresh}, expected 0 or > 1, and 0 to 1")
        labels, scores, overlap, index, hard = map(torch.cat, zip(*self._matches, strict=True))
        matched = overlap > iou_thresh
        # Darknet's oddity: on a difficult object it leaves the curve, but still counts as FP
        counted = matched | (hard <= iou_thresh)
        matches = by_class(counted, scores, labels, index, matched, self._objects)
        confident = scores > self.settings.confidence
        # Darknet's oddity: the first in the list finds the object, confident or not
        positive = first_hits(index, matched) & confident
        counts = {
            "objects": self._objects,
            "tp": self._count(labels[positive]),
            "fp": self._count(labels[confident & ~positive]),
            "iou_sum": self._count(labels[positive], overlap[positive].double()),
        }
        totals = _ratios(*(each.sum() for each in counts.values()))
        return Result(
            ap=average_precisions(matches, points), **counts, **totals, matches=matches,
            images=len(self.records), iou_thresh=iou_thresh, points=points, settings=self.settings,
        )  # fmt: skip

    def _count(self, labels, weights=None):
        return torch.bincount(labels, weights, self.classes).numpy()


def best_overlaps(boxes, labels, targets):
    """The ground-truth box of its class that each detection of an image overlaps most.

    boxes (n, 4) cxcywh, labels (n,), targets (m, 5) class, cx, cy, w, h in the same unit.
    Returns IoU (n,), 0 for none, and the index in targets (n,), the first of equals.
    """
    overlap = box_iou(boxes[:, None], targets[None, :, 1:]) * (labels[:, None] == targets[:, 0])
    return torch.cat((overlap, overlap.new_zeros(len(boxes), 1)), 1).max(1)


def first_hits(index, matched):
    """index (n,): the ground-truth box of each detection; matched (n,) bool: whether it finds it.
    Returns (n,) bool: the first to find each box."""
    hits = torch.zeros_like(matched)
    hits[np.unique(index.where(matched, -1).numpy(), return_index=True)[1]] = True
    return hits & matched


def by_class(counted, scores, labels, index, matched, objects):
    """Of detections (n,) those that are counted; objects (C,): ground-truth boxes of each class."""
    order = scores.argsort(descending=True, stable=True)
    order = order[counted[order]]
    hits, labels = first_hits(index[order], matched[order]), labels[order]
    classes = ((labels == label, int(count)) for label, count in enumerate(objects))
    return [Matches(scores[order][own], hits[own], count) for own, count in classes]


def precision_recall(hits, objects):
    """Of `Matches`: recall (n,), and the best precision at this recall or beyond (n,)."""
    found = hits.double().cumsum(0)
    precision = found / torch.arange(1, len(hits) + 1)
    return found / max(1, objects), precision.flip(0).cummax(0).values.flip(0)


def precision_at_recalls(hits, objects, points):
    """That precision (points,) at recalls from 0 to 1; 0 beyond the last one reached."""
    recall, precision = precision_recall(hits, objects)
    # k * 0.1 as the compiled Darknet, which differs from k / 10 in the last bit, as recalls may be
    wanted = torch.from_numpy(np.linspace(0, 1, points))
    return torch.cat((precision, precision.new_zeros(1)))[torch.searchsorted(recall, wanted)]


def average_precision(hits, objects, points=0):
    """Area under the curve of `Matches`, or mean at so many recalls; 0 if nothing is to find."""
    if points:
        return float(precision_at_recalls(hits, objects, points).mean())
    recall, precision = precision_recall(hits, objects)
    return float((recall.diff(prepend=recall.new_zeros(1)) * precision).sum())


def average_precisions(matches, points=0):
    """(C,)"""
    return np.array([average_precision(each.hits, each.objects, points) for each in matches])


def f1_scores(matches):
    """F1 above each of THRESHOLDS: (C, T), and the mean (T,) of the classes with ground truth."""
    rows = []
    for scores, hits, objects in matches:
        # the place of a threshold among falling scores is the number of those above it
        tp, positives = (
            np.searchsorted(-each.numpy(), -THRESHOLDS) for each in (scores[hits], scores)
        )
        rows.append(2 * tp / np.maximum(1, positives + objects))
    return np.array(rows), np.mean(rows, 0, where=[[each.objects > 0] for each in matches])


class Pairing(NamedTuple):
    """The confident detections of one image, one to one with its ground truth."""

    detections: np.ndarray  # (k,) int64, indices; without those on difficult objects
    missed: np.ndarray  # indices of the ground-truth boxes that are not found as their class
    false: np.ndarray  # indices of the detections that find no box of their class
    classes: tuple[np.ndarray, np.ndarray]  # of ground truth and detection, -1 where one is missing


def pair(record, confidence=0.25, iou_thresh=0.5):
    """Pairs detections with ground truth where IoU > iou_thresh: equal classes first, each by
    falling IoU.  So a second class on an object that is found is a false box, and no confusion."""
    found = record.detections[record.detections.scores > confidence]  # the first ones
    boxes, objects = relative_boxes(found.boxes, record.image_size), record.labels[:, 0].long()
    overlap = box_iou(boxes[:, None], record.labels[None, :, 1:])  # (k, m)
    rank = (overlap + (found.labels[:, None] == objects)).where(overlap > iou_thresh, 0).numpy()
    targets = np.full(len(found), -1)
    while rank.max(initial=0):
        row, column = np.unravel_index(rank.argmax(), rank.shape)
        targets[row], rank[row], rank[:, column] = column, 0, 0
    hard, _ = best_overlaps(boxes, found.labels, record.difficult)
    chosen = np.flatnonzero((targets >= 0) | (hard <= iou_thresh).numpy())
    targets, labels, every = targets[chosen], found.labels.numpy()[chosen], np.arange(len(objects))
    unfound, wanted = np.setdiff1d(every, targets), np.append(objects, -1)[targets]
    missed = np.setdiff1d(every, targets[wanted == labels])
    classes = np.append(wanted, objects[unfound]), np.append(labels, np.full(len(unfound), -1))
    return Pairing(chosen, missed, chosen[wanted != labels], classes)


def confusion(pairings, classes):
    """(C + 1, C + 1) int64: rows are ground truth, columns detections; the last row has boxes on no
    object, the last column missed objects."""
    matrix = np.zeros((classes + 1, classes + 1), int)
    for pairing in pairings:
        np.add.at(matrix, pairing.classes, 1)
    return matrix
