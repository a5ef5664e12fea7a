"""Anchors for a data set by k-means with 1 - IoU as the distance, and how well anchors fit boxes.
Source: YOLOv2 (arXiv 1612.08242) section 2, Darknet's src/detector.c (calc_anchors); k-means++."""

import re

import numpy as np

from yolov4.cfg import Yolo
from yolov4.data import label_path, load_image, read_image_list, read_labels

FITTED = 20_000  # boxes that k-means uses, drawn from the seed; all of them are measured
RESTARTS, ROUNDS = 10, 300


def box_sizes(paths, size, letter_box):
    """Width and height of all labelled boxes in pixels of the network input, (n, 2) float64.
    size: (width, height) of the input.  letter_box: images keep their aspect, so each is read."""
    rows = []
    for path in paths:
        boxes, fitted = read_labels(label_path(path))[:, 3:], np.array(size)  # float32, integers
        if letter_box and len(boxes):
            image_size = np.array(load_image(path).shape[1::-1])
            fitted = image_size * (fitted / image_size).min()
        rows.append(boxes * fitted)  # float64
    sizes = np.concatenate(rows)
    return sizes[(sizes > 0).all(1)]


def size_iou(sizes, anchors):
    """IoU of boxes with one centre.  sizes (n, 2), anchors (k, 2), width and height -> (n, k)"""
    shared = np.minimum(sizes[:, None], anchors).prod(2)
    return shared / (sizes.prod(1)[:, None] + anchors.prod(1) - shared)


def kmeans_anchors(sizes, count, seed=0):
    """The anchors (count, 2) with the highest mean IoU of all restarts, by rising area.
    sizes (n, 2) > 0.  Raises ValueError for fewer different boxes than anchors."""
    different = len(np.unique(sizes, axis=0))
    if count > different:
        raise ValueError(f"{count} anchors from {different} different boxes, expected more boxes")
    rng = np.random.default_rng(seed)
    if len(sizes) > FITTED:
        sizes = rng.choice(sizes, FITTED, replace=False)
    found = [_kmeans(sizes, count, rng) for _ in range(RESTARTS)]
    best = max(found, key=lambda anchors: size_iou(sizes, anchors).max(1).mean())
    return best[best.prod(1).argsort(kind="stable")]


def _kmeans(sizes, count, rng):
    anchors = rng.choice(sizes, 1)
    while len(anchors) < count:  # boxes far from each other: drawn by squared distance
        iou = size_iou(sizes, anchors).max(1)
        weights = np.where(iou == 1, 0, np.square(1 - iou).clip(1e-12))
        drawn = rng.choice(sizes, 1, p=weights / weights.sum())
        anchors = np.concatenate((anchors, drawn))
    for _ in range(ROUNDS):
        owner, before = size_iou(sizes, anchors).argmax(1), anchors
        counts = np.bincount(owner, minlength=count)[:, None]
        sums = np.stack([np.bincount(owner, column, count) for column in sizes.T], 1)
        anchors = np.where(counts > 0, sums / counts.clip(1), anchors)
        if np.array_equal(anchors, before):
            break
    return anchors


def heads(network):
    return [section for section in network.sections if isinstance(section, Yolo)]


def as_text(anchors):
    return ", ".join(f"{width:g},{height:g}" for width, height in anchors)


def describe(sizes, anchors, masks):
    """Mean IoU and recall of anchors (N, 2) on sizes (n, 2), and each head's share of the boxes."""
    iou = size_iou(sizes, anchors)
    best, owner = iou.max(1), iou.argmax(1)
    recall = f"{(best > 0.5).mean():.1%} of {len(sizes)} boxes"
    lines = [f"mean IoU {best.mean():.4f}, IoU > 0.5 for {recall}"]
    groups = {f"head {number}": list(mask) for number, mask in enumerate(masks, 1)}
    groups["no head"] = sorted(set(range(len(anchors))).difference(*masks)) if masks else []
    for label, mask in groups.items():
        if mask:
            share = f"{np.isin(owner, mask).mean():6.1%} of the boxes"
            lines.append(f"  {label}: {share}, anchors {as_text(anchors[mask])}")
    return "\n".join(lines)


def with_anchors(network, text, anchors):
    """The text of the network's cfg with new anchors in each [yolo], every other line as it was."""
    if any(len(yolo.anchors) != len(anchors) for yolo in heads(network)):
        raise ValueError(f"{network.name}: has not {len(anchors)} anchors, as many as the new ones")
    return re.sub(r"(?m)^(\s*anchors\s*=)[^\r\n]*", rf"\g<1>{as_text(anchors)}", text)


def fit(image_list, network=None, size=None, count=None, seed=0):
    """Anchors (count, 2) in whole pixels for the boxes of a list, their mean IoU, and lines that
    compare them with the network's.  size and count: the network's by default, else 9 anchors."""
    yolos = heads(network) if network else []
    old = np.array(yolos[0].anchors) if yolos else np.zeros((9, 2))
    size, count = size or (network.net.width, network.net.height), count or len(old)
    letter_box = network and network.net.letter_box
    sizes = box_sizes(read_image_list(image_list), size, letter_box)
    if not len(sizes):
        raise ValueError(f"{image_list}: found 0 boxes, expected label files with boxes")
    new = kmeans_anchors(sizes, count, seed).round().clip(1)
    masks = [yolo.mask or range(len(old)) for yolo in yolos]
    lines = [f"{network.name}: {describe(sizes, old, masks)}"] if yolos else []
    described = describe(sizes, new, masks if count == len(old) else [])
    lines += [f"new, for {size[0]}x{size[1]}: {described}", f"anchors = {as_text(new)}"]
    return new, size_iou(sizes, new).max(1).mean(), lines
