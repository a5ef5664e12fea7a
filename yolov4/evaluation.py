"""mAP of a model on a list of images, as `darknet detector map` measures it.
Source: Darknet's src/detector.c, validate_detector_map."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from yolov4.data import IN_PIXELS, label_path, read_image_list, read_labels
from yolov4.detector import Detector
from yolov4.metrics import Evaluator, Result, Settings
from yolov4.model import Darknet

Images = str | Path | Sequence[str | Path]  # a list file, or paths


def evaluate(
    model: Darknet | Detector, images: Images, iou_thresh: float = 0.5, points: int = 0, **options
) -> Result:
    """mAP, AP, precision and recall; `options` are those of `collect`.

    iou_thresh: a detection matches a ground-truth box of its class above it.  points: 0 for the
    area under the curve, else the recall points (11, 101).  Raises ValueError as `collect`.
    """
    return collect(model, images, **options).result(iou_thresh, points)


def collect(
    model: Darknet | Detector,
    images: Images,
    *,
    difficult: Images | None = None,
    batch: int | None = None,
    thresh: float = 0.005,
    nms_thresh: float = 0.45,
    confidence: float = 0.25,
    progress: bool = False,
    on_error: Callable[[Exception], None] | None = None,
) -> Evaluator:
    """Detects on all images once; `.result(iou_thresh, points)` then counts, as often as wanted.

    model: a Darknet is copied and stays as it is; a Detector has its own device and letter box.
    images: their labels are where `label_path` says; an image without a label file counts as empty.
    difficult: a list as long as images, whose labels are the difficult objects.  progress: a bar,
    on a terminal.  on_error(error): called for an unreadable image or label file and for a class
    that the network does not have; the image is then left out.  None: the error is raised.
    Raises ValueError for a list without any box or any image that can be read.
    """
    detector = model if isinstance(model, Detector) else Detector.from_model(model)
    classes = len(detector.names)
    name = images if isinstance(images, str | Path) else "images"
    paths, targets = _labelled(images, classes, on_error)
    files = list(map(label_path, paths))
    if not any(map(len, targets.values())):
        where = f", expected labels as in {files[0]}" if files else ""
        raise ValueError(f"{name}: found 0 boxes in {len(paths)} images{where}")
    if (torch.cat([*targets.values()])[:, 1:].amax(1) > 2).all():
        raise ValueError(f"{name}: {IN_PIXELS}")
    if missing := [file for file in files if not os.path.exists(file)]:
        warnings.warn(
            f"{len(missing)} of {len(paths)} images have no label file and count as empty; the "
            f"first would be {missing[0]}"
        )
    others, hard = _labelled(difficult, classes, None) if difficult else (paths, {})
    if len(others) != len(paths):
        raise ValueError(f"difficult: {len(others)} images, expected {len(paths)}")
    hard = {path: hard.get(other) for path, other in zip(paths, others, strict=True)}
    settings = Settings(
        size=detector.heads[0].size, letter_box=detector.letter_box, thresh=thresh,
        nms_thresh=nms_thresh, confidence=confidence, difficult=bool(difficult),
    )  # fmt: skip
    evaluator = Evaluator(classes, settings)
    readable = [path for path in paths if path in targets]
    predictions = detector.stream(readable, thresh, nms_thresh, batch, on_error)
    bar = tqdm(
        predictions, "mAP", len(readable), False, unit="images", disable=not progress or None
    )
    for each in bar:
        path, size = each.source, each.image.shape[1::-1]
        evaluator.add(each.detections, targets[path], size, hard[path], path)
    if not evaluator.records:
        raise ValueError(f"{name}: found {len(paths)} images, none of which can be read")
    return evaluator


def _labelled(images, classes, on_error):
    """Paths, and labels (n, 5) by path, of those that can be read."""
    listed = isinstance(images, str | Path)
    paths, labels = read_image_list(images) if listed else list(map(Path, images)), {}
    for path in paths:
        try:
            file = label_path(path)
            each = torch.from_numpy(read_labels(file))
            if (each[:, 0] >= classes).any():
                raise ValueError(f"{file}: class {each[:, 0].max():g}, expected 0..{classes - 1}")
            labels[path] = each
        except (ValueError, OSError) as error:
            if on_error is None:
                raise
            on_error(error)
    return paths, labels
