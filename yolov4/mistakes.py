"""What a network missed and what it saw where nothing is: by image, the worst first, and drawn.
No source: the views of this project."""

from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np

from yolov4.curves import Pairing
from yolov4.data import load_image
from yolov4.plots import ascii_name, draw_boxes
from yolov4.result import Record

SIDE = 640  # pixels of the longer side of a drawn image
TRUTH, FOUND = (255, 160, 0), (0, 140, 255)  # blue and orange, BGR: apart for the colour-blind too


def find(record: Record, pairing: Pairing) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the missed truths and of the false detections; a truth found as another class is both."""
    truths, labels = record.labels[:, 0].long().numpy(), record.detections.labels.numpy()[pairing.detections]
    right = (pairing.truths >= 0) & (np.append(truths, -1)[pairing.truths] == labels)
    return np.delete(np.arange(len(truths)), pairing.truths[right]), pairing.detections[~right]


def worst(records: Sequence[Record], pairings: Sequence[Pairing], count: int) -> list[tuple[Record, Pairing]]:
    """The images with the most mistakes, the first of equals first; none without a mistake, none without a path."""
    pairs = [pair for pair in zip(records, pairings, strict=True) if pair[0].path is not None]
    totals = [sum(map(len, find(*pair))) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda index: -totals[index])
    return [pairs[index] for index in order[:count] if totals[index]]


def draw(record: Record, pairing: Pairing, names: Sequence[str]) -> np.ndarray:
    """The record's image, uint8 (H, W, 3) BGR, its longer side SIDE pixels, with truths in blue and detections in
    orange; what is missed or false has a thick line and says so.  Raises ValueError for an image that cannot be read.
    """
    image = load_image(record.path)
    enlarged = SIDE / max(image.shape[:2])
    size = [max(1, round(side * enlarged)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if enlarged < 1 else cv2.INTER_LINEAR)
    missed, false = find(record, pairing)
    width, height = size
    truths, labels = record.labels.double().numpy(), record.detections.labels.tolist()
    low, high = truths[:, 1:3] - truths[:, 3:] / 2, truths[:, 1:3] + truths[:, 3:] / 2
    boxes = np.concatenate((low, high), 1) * (width, height, width, height)
    scale = np.divide(size, record.image_size)
    found = record.detections.boxes.double().numpy() * (*scale, *scale)
    right = np.setdiff1d(pairing.detections, false)
    image = draw_boxes(image, boxes, [TRUTH] * len(boxes), [""] * len(boxes))
    image = draw_boxes(image, found[right], [FOUND] * len(right), [""] * len(right))
    texts = [f"missed {ascii_name(names, int(truths[index, 0]))}" for index in missed]
    texts += [f"false {ascii_name(names, labels[i])} {record.detections.scores[i] * 100:.0f}%" for i in false]
    wrong = np.concatenate((boxes[missed], found[false]))
    return draw_boxes(image, wrong, [TRUTH] * len(missed) + [FOUND] * len(false), texts, weight=2)


def describe(record: Record, pairing: Pairing, names: Sequence[str]) -> str:
    """`missed 2 cat, 1 dog; false 1 cat`"""
    missed, false = find(record, pairing)
    labels = {"missed": record.labels[missed, 0].long(), "false": record.detections.labels[false]}
    counts = {kind: Counter(names[label] for label in each.tolist()).most_common() for kind, each in labels.items()}
    lists = {kind: ", ".join(f"{count} {name}" for name, count in each) for kind, each in counts.items()}
    return "; ".join(f"{kind} {found}" for kind, found in lists.items() if found)
