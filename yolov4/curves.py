"""What stands behind a mAP: precision over recall, F1 over confidence, which class is taken for which.
Source: PASCAL VOC development kit (precision-recall); difficult objects as in Darknet's validate_detector_map."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from yolov4.boxes import box_iou, relative_boxes
from yolov4.metrics import best_overlaps, first_finds
from yolov4.result import Record

THRESHOLDS = np.arange(1000) / 1000  # confidences at which F1 is looked at
RECALLS = np.arange(101) / 100


class Matches(NamedTuple):
    """The detections of all images by falling score; those on difficult objects are left out."""

    scores: np.ndarray  # (n,) 0..1
    labels: np.ndarray  # (n,) int64
    hits: np.ndarray  # (n,) bool: whether it is the first to find its truth
    truths: np.ndarray  # (C,) int64: how many there are to find


class Pairing(NamedTuple):
    """The confident detections of one image, one to one with its truths."""

    detections: np.ndarray  # (k,) int64, indices; those on difficult objects are left out
    truths: np.ndarray  # (k,) int64: the truth that each is on, of whatever class; -1 for none


def match(records: Sequence[Record], classes: int, iou_thresh: float = 0.5) -> Matches:
    """Each detection with the truth of its class and image that it overlaps most, by more than iou_thresh."""
    boxes, groups = _join([_relative(record) for record in records], [r.detections.labels for r in records], classes)
    truths, truth_groups = _join([r.labels[:, 1:] for r in records], [r.labels[:, 0] for r in records], classes)
    hard = _join([r.difficult[:, 1:] for r in records], [r.difficult[:, 0] for r in records], classes)
    overlap, truth = best_overlaps(boxes, groups, truths, truth_groups)
    found = overlap > iou_thresh
    scores = torch.cat([torch.zeros(0), *(record.detections.scores for record in records)])
    counted = (found | (best_overlaps(boxes, groups, *hard)[0] <= iou_thresh)).nonzero()[:, 0]
    order = counted[scores[counted].argsort(descending=True, stable=True)]
    hits = first_finds(truth[order], found[order])
    counts = torch.bincount(truth_groups % classes, minlength=classes)
    labels = groups[order] % classes
    return Matches(scores[order].double().numpy(), labels.numpy(), hits.numpy(), counts.numpy())


def precision_recall(matches: Matches, label: int) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision) of a class, (n + 1,) each, from recall 0: the best precision at this recall or beyond, so
    that the area under it is the AP."""
    hits = matches.hits[matches.labels == label]
    found = hits.cumsum()
    precision = np.maximum.accumulate((found / np.arange(1, len(hits) + 1))[::-1])[::-1]
    recall = found / max(1, matches.truths[label])
    return np.concatenate(([0.0], recall)), np.concatenate((precision[:1] if len(hits) else [0.0], precision))


def mean_precision(matches: Matches) -> np.ndarray:
    """(101,): precision at RECALLS, the mean of the classes that have truths; 0 beyond the last recall of a class."""
    rows = []
    for label in matches.truths.nonzero()[0]:
        recall, precision = precision_recall(matches, label)
        places = np.searchsorted(recall, RECALLS)
        rows.append(np.append(precision, 0.0)[places])
    return np.mean(rows, 0) if rows else np.zeros(len(RECALLS))


def positives(matches: Matches, thresholds: np.ndarray = THRESHOLDS) -> tuple[np.ndarray, np.ndarray]:
    """(true positives, false positives), (C, T) each, of the detections with a score above each of T thresholds."""

    def above(wanted: np.ndarray) -> np.ndarray:
        parts = (np.sort(matches.scores[wanted & (matches.labels == c)]) for c in range(len(matches.truths)))
        return np.stack([len(scores) - np.searchsorted(scores, thresholds, side="right") for scores in parts])

    return above(matches.hits), above(~matches.hits)


def f1_scores(matches: Matches, thresholds: np.ndarray = THRESHOLDS) -> tuple[np.ndarray, np.ndarray]:
    """F1 of each class (C, T), and the mean of the classes that have truths (T,)."""
    true, false = positives(matches, thresholds)
    f1 = 2 * true / np.maximum(1, true + false + matches.truths[:, None])
    known = matches.truths > 0
    return f1, f1[known].mean(0) if known.any() else np.zeros(len(thresholds))


def best_threshold(matches: Matches) -> tuple[float, float]:
    """(confidence above which the mean F1 is highest, the lowest of equals; that F1)."""
    _, mean = f1_scores(matches)
    return float(THRESHOLDS[mean.argmax()]), float(mean.max())


def pair(record: Record, confidence: float = 0.25, iou_thresh: float = 0.5) -> Pairing:
    """Pairs detections with truths one to one where IoU > iou_thresh: equal classes first, then the others, each by
    falling IoU.  So a second class on a found object is a false box, and no confusion."""
    chosen = (record.detections.scores > confidence).nonzero()[:, 0]
    boxes, labels = _relative(record)[chosen], record.detections.labels[chosen]
    overlap = box_iou(boxes[:, None], record.labels[None, :, 1:])  # (k, truths)
    rank = overlap + (labels[:, None] == record.labels[None, :, 0])
    rows, columns = (overlap > iou_thresh).nonzero(as_tuple=True)
    order = rank[rows, columns].argsort(descending=True, stable=True)
    truths, free = np.full(len(chosen), -1), np.ones(len(record.labels), bool)
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if truths[row] < 0 and free[column]:
            truths[row], free[column] = column, False
    on_hard = box_iou(boxes[:, None], record.difficult[None, :, 1:]) > iou_thresh
    ignored = (on_hard & (labels[:, None] == record.difficult[None, :, 0])).any(1).numpy() & (truths < 0)
    return Pairing(chosen.numpy()[~ignored], truths[~ignored])


def confusion(records: Sequence[Record], pairings: Sequence[Pairing], classes: int) -> np.ndarray:
    """(C + 1, C + 1) int64: rows are truths, columns detections; the last row holds false boxes, where there is no
    truth, the last column missed truths."""
    matrix = np.zeros((classes + 1, classes + 1), int)
    for record, pairing in zip(records, pairings, strict=True):
        truths = record.labels[:, 0].long().numpy()
        found = pairing.truths >= 0
        rows = np.where(found, np.append(truths, classes)[pairing.truths], classes)
        np.add.at(matrix, (rows, record.detections.labels.numpy()[pairing.detections]), 1)
        missed = np.delete(truths, pairing.truths[found])
        np.add.at(matrix, (missed, classes), 1)
    return matrix


def _relative(record: Record) -> Tensor:
    """Boxes of the detections, (n, 4) cxcywh relative"""
    return relative_boxes(record.detections.boxes, record.image_size)


def _join(boxes: list[Tensor], labels: list[Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Boxes of all images (n, 4), and a number (n,) for each pair of image and class"""
    groups = [image * classes + each.long() for image, each in enumerate(labels)]
    return torch.cat([torch.zeros(0, 4), *boxes]), torch.cat([torch.zeros(0, dtype=torch.long), *groups])
