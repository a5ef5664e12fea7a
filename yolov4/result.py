"""What an evaluation found: mAP, counts, the table of classes, and the settings behind them.
Source: Darknet's src/detector.c, validate_detector_map, for the meaning of every figure."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from yolov4.decoding import Detections

COLUMNS = ("truths", "AP %", "TP", "FP", "precision", "recall", "F1", "IoU %")


class Record(NamedTuple):
    """One image of an evaluation, for other protocols and for reports."""

    path: Path | None  # None where none was given
    image_size: tuple[int, int]  # width, height
    detections: Detections  # by falling score, equals as they came
    labels: Tensor  # (n, 5) class, cx, cy, w, h, relative
    difficult: Tensor  # (m, 5), as labels; m = 0 where no list was given


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the detections were made; it is printed with every result."""

    size: tuple[int, int]  # width, height of the network input, pixels
    letter_box: bool = False
    thresh: float = 0.005
    nms_thresh: float = 0.45
    confidence: float = 0.25  # above it a detection counts for TP, FP, precision, recall, F1 and average IoU
    difficult: bool = False  # whether a list of difficult objects was given

    def __str__(self) -> str:
        width, height = self.size
        fitted = "letterboxed" if self.letter_box else "stretched"
        return f"images {fitted} to {width}x{height}; thresh {self.thresh:g}, nms {self.nms_thresh:g}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `metrics.Evaluator.result` counted.  Arrays are (C,), one value a class; ratios 0..1, 0 where 0 / 0."""

    ap: np.ndarray  # a class without truths has 0 and still counts in the mean, as in Darknet
    truths: np.ndarray
    tp: np.ndarray  # at settings.confidence
    fp: np.ndarray
    iou_sum: np.ndarray  # over the true positives
    detections: int  # above settings.thresh
    images: int
    iou_thresh: float
    points: int
    settings: Settings

    @property
    def map(self) -> float:
        return float(self.ap.mean())

    @property
    def precision(self) -> float:
        return float(_ratio(self.tp.sum(), self.tp.sum() + self.fp.sum()))

    @property
    def recall(self) -> float:
        return float(_ratio(self.tp.sum(), self.truths.sum()))

    @property
    def f1(self) -> float:
        return float(_ratio(2 * self.tp.sum(), self.tp.sum() + self.fp.sum() + self.truths.sum()))

    @property
    def average_iou(self) -> float:
        """Over all confident detections: a false positive counts as 0, as in Darknet."""
        return float(_ratio(self.iou_sum.sum(), self.tp.sum() + self.fp.sum()))

    @property
    def class_precision(self) -> np.ndarray:
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def class_recall(self) -> np.ndarray:
        return _ratio(self.tp, self.truths)

    @property
    def class_f1(self) -> np.ndarray:
        return _ratio(2 * self.tp, self.tp + self.fp + self.truths)

    @property
    def class_average_iou(self) -> np.ndarray:
        return _ratio(self.iou_sum, self.tp + self.fp)

    @property
    def protocol(self) -> str:
        """One sentence: what was measured, and with which settings."""
        settings = self.settings
        curve = f"{self.points} recall points" if self.points else "area under the curve"
        return (
            f"darknet detector map: IoU > {self.iou_thresh:g}, {curve}, mean over {len(self.ap)} classes; "
            f"{settings}; TP to IoU at confidence > "
            f"{settings.confidence:g}; difficult objects {'from their list' if settings.difficult else 'not listed'}."
        )

    def table(self, names: list[str]) -> str:
        """A line a class, the totals, and the protocol."""
        width = max(16, *(len(name) for name in names))
        rows = [f"{'class':{width}} " + " ".join(f"{column:>9}" for column in COLUMNS)]
        columns = (self.truths, self.ap, self.tp, self.fp, self.class_precision, self.class_recall, self.class_f1,
                   self.class_average_iou)  # fmt: skip
        rows += [_row(name, width, values) for name, values in zip(names, zip(*columns, strict=True), strict=True)]
        totals = (self.truths.sum(), self.map, self.tp.sum(), self.fp.sum(), self.precision, self.recall, self.f1,
                  self.average_iou)  # fmt: skip
        name = f"mAP@{self.iou_thresh:.2f}"
        rows.append(_row(name, width, totals) + f"   {self.images} images, {self.detections} detections")
        return "\n".join([*rows, self.protocol])

    def to_json(self, names: list[str]) -> dict:
        """Everything as plain values, ready for json.dump."""
        columns = {
            "name": names, "ap": self.ap, "truths": self.truths, "tp": self.tp, "fp": self.fp,
            "precision": self.class_precision, "recall": self.class_recall, "f1": self.class_f1,
            "average_iou": self.class_average_iou,
        }  # fmt: skip
        lists = (np.asarray(column).tolist() for column in columns.values())
        classes = [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
        totals = {key: getattr(self, key) for key in ("map", "precision", "recall", "f1", "average_iou")}
        counts = {key: getattr(self, key) for key in ("images", "detections", "iou_thresh", "points", "protocol")}
        return {**totals, **counts, "settings": asdict(self.settings), "classes": classes}


def _ratio(a, b) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.shape(b)), where=np.asarray(b) > 0)


def _row(name: str, width: int, values: tuple) -> str:
    truths, ap, tp, fp, *ratios, iou = values
    shown = " ".join(f"{ratio:9.2f}" for ratio in (*ratios, iou * 100))
    return f"{name:{width}} {truths:9} {ap * 100:9.2f} {tp:9} {fp:9} {shown}"
