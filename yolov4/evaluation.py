"""mAP of a model on a list of images, as `darknet detector map` measures it.
Source: Darknet's src/detector.c, validate_detector_map."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from yolov4.boxes import nms, relative_boxes
from yolov4.data import label_path, read_image_list, read_labels
from yolov4.decoding import Detections
from yolov4.metrics import Evaluator
from yolov4.model import Darknet
from yolov4.predict import Detector
from yolov4.result import Result, Settings
from yolov4.sections import Head

Images = str | Path | Sequence[str | Path]


def evaluate(model: Darknet, images: Images, iou_thresh: float = 0.5, points: int = 0, **options) -> Result:
    """mAP and all that goes with it; `options` are those of `collect`, which makes one pass for several results.

    iou_thresh: a detection finds a truth of its class above it.  points: 0 for the area under the curve, else the
    recall points (11, 101).  The model stays as it is, its mode included.  Raises ValueError as `collect`.
    """
    return collect(model, images, **options).result(iou_thresh, points)


def collect(
    model: Darknet | Detector,
    images: Images,
    *,
    difficult: Images | None = None,
    batch: int | None = None,
    device: str | None = None,
    letter_box: bool | None = None,
    thresh: float = 0.005,
    nms_thresh: float = 0.45,
    progress: bool = False,
) -> Evaluator:
    """Detects on all images once; `.result(iou_thresh, points)` of what it returns counts, as often as wanted.

    model: stays as it is; a Detector has its own device and letter box.
    images: a list file or paths; labels where `data.label_path` says, an image without is a negative one.
    difficult: a list (or paths) as long as images, whose labels are the difficult objects.  device: None is the
    model's.  letter_box: None is the cfg's.  progress: a bar, on a terminal.  Raises ValueError for a list without any
    box, an unreadable image, a class the network does not have.
    """
    paths, head = _paths(images), model.heads[-1]
    truths = [_labels(path, head.classes) for path in paths]
    if not any(map(len, truths)):
        first = label_path(paths[0]) if paths else "no image at all"
        raise ValueError(f"{_name(images)}: found 0 boxes in {len(paths)} images, expected labels as in {first}")
    _warn_of_missing(paths)
    difficult_truths = _difficult_truths(difficult, len(paths), head.classes)
    detector = model if isinstance(model, Detector) else Detector.from_model(model, None, device, letter_box)
    size = (model.net.width, model.net.height)
    settings = Settings(size=size, letter_box=detector.letter_box, thresh=thresh, nms_thresh=nms_thresh,
                        difficult=difficult is not None)  # fmt: skip
    evaluator = Evaluator(head.classes, settings)
    predictions = tqdm(detector.stream(paths, thresh, 0, batch), "mAP", len(paths), unit="images", leave=False,
                       disable=None if progress else True)  # fmt: skip
    for prediction, labels, hard in zip(predictions, truths, difficult_truths, strict=True):
        image_size = prediction.image.shape[1::-1]
        found = suppress(prediction.detections, image_size, head, nms_thresh)
        evaluator.add(found, labels, image_size, hard, prediction.source)
    return evaluator


def suppress(candidates: Detections, image_size: tuple[int, int], head: Head, nms_thresh: float) -> Detections:
    """Candidates before suppression -> what stays, in the order of Darknet's list instead of by falling score.

    Darknet sorts its predictions by each class in turn, so in the end by the last class, equals by the last but one,
    and so on; of two detections on one truth the first in that list is its TP.
    """
    boxes = relative_boxes(candidates.boxes, image_size)
    kept = torch.arange(len(boxes))
    if nms_thresh:
        kept = nms(boxes, candidates.scores, candidates.labels, nms_thresh, head.nms_kind, head.beta_nms)
    # the classes of one prediction share its box
    predictions, owner = torch.unique(candidates.boxes, dim=0, return_inverse=True)
    probabilities = torch.zeros(len(predictions), head.classes)  # (predictions, C)
    probabilities[owner, candidates.labels] = candidates.scores
    order = torch.from_numpy(np.lexsort(-probabilities.numpy().T))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    kept = kept[(place[owner[kept]] * head.classes + candidates.labels[kept]).argsort()]
    return Detections(*(values[kept] for values in candidates))


def _paths(images: Images) -> list[Path]:
    return read_image_list(images) if isinstance(images, str | Path) else [Path(path) for path in images]


def _name(images: Images) -> str:
    return str(images) if isinstance(images, str | Path) else "images"


def _labels(image_path: Path, classes: int) -> torch.Tensor:
    labels = torch.from_numpy(read_labels(label_path(image_path)))
    if len(labels) and labels[:, 0].max() >= classes:
        raise ValueError(f"{label_path(image_path)}: class {labels[:, 0].max():g}, expected 0..{classes - 1}")
    return labels


def _difficult_truths(difficult: Images | None, count: int, classes: int) -> list[torch.Tensor | None]:
    if difficult is None:
        return [None] * count
    truths = [_labels(path, classes) for path in _paths(difficult)]
    if len(truths) != count:
        raise ValueError(f"{_name(difficult)}: {len(truths)} images, expected {count}, one for each image")
    return truths


def _warn_of_missing(paths: list[Path]) -> None:
    missing = [path for path in paths if not label_path(path).exists()]
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(paths)} images have no label file and count as empty, the first would be "
            f"{label_path(missing[0])}",
            stacklevel=3,
        )
