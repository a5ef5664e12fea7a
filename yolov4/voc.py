"""Average precision by the rules of PASCAL VOC: 11 points (VOC2007) and area (VOC2010 on), from XML or label files.
Source: VOCevaldet.m and VOCap.m of the VOC2007 and VOC2012 devkits; boxes as Darknet's `detector valid` gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from yolov4.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from yolov4.metrics import average_precision, best_overlaps, first_finds, rank_by_class
from yolov4.result import Record, Settings

MIN_OVERLAP, MAX_EDGE = 0.5, 1e9
EDGES = ("xmin", "ymin", "xmax", "ymax")


class Truths(NamedTuple):
    """The objects of one image."""

    boxes: Tensor  # (m, 4) float64 xyxy in pixels of the devkit: counted from 1, the last pixel is within
    labels: Tensor  # (m,) int64
    difficult: Tensor  # (m,) bool


@dataclass(frozen=True, kw_only=True)
class VocResult:
    """What `evaluate_voc` counted.  Arrays are (C,), one value a class."""

    ap07: np.ndarray  # 0..1, mean of the best precision at 11 recalls; nan for a class without truths
    ap10: np.ndarray  # 0..1, area under the curve; nan likewise
    truths: np.ndarray  # those that are not difficult
    difficult: np.ndarray
    images: int
    source: str  # where the truths are from
    settings: Settings

    @property
    def map07(self) -> float:
        return _mean(self.ap07)

    @property
    def map10(self) -> float:
        return _mean(self.ap10)

    @property
    def protocol(self) -> str:
        """What was measured, and why it is not Darknet's figure."""
        return (
            f"VOC devkit: IoU >= {MIN_OVERLAP:g} in pixels, first and last both within a box; AP07 at 11 recalls, "
            f"AP10 area under the curve, mean over the {(self.truths > 0).sum()} classes with truths; "
            f"{self.settings}; truths from {self.source}. Darknet's figure differs: IoU > 0.5 without "
            "the extra pixel, a class without truths counts as 0, and a detection that overlaps both goes to a truth "
            "before a difficult object."
        )

    def table(self, names: Sequence[str]) -> str:
        """A line a class, the means, and the protocol."""
        width = max(16, *map(len, names))
        row = f"{{:{width}}} {{:>9}} {{:>9}} {{:>9}} {{:>9}}"
        columns = (names, self.truths, self.difficult, _percent(self.ap07), _percent(self.ap10))
        lines = [row.format(*values) for values in zip(*columns, strict=True)]
        means = _percent((self.map07, self.map10))
        total = row.format("VOC mAP", self.truths.sum(), self.difficult.sum(), *means)
        return "\n".join([row.format("class", "truths", "difficult", "AP07 %", "AP10 %"), *lines, total, self.protocol])

    def to_json(self, names: Sequence[str]) -> dict:
        """Everything as plain values, ready for json.dump; None for the AP of a class without truths."""
        keys = ("name", "ap07", "ap10", "truths", "difficult")
        columns = (names, _plain(self.ap07), _plain(self.ap10), self.truths.tolist(), self.difficult.tolist())
        classes = [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]
        map07, map10 = _plain(np.array((self.map07, self.map10)))
        return {"map07": map07, "map10": map10, "images": self.images, "protocol": self.protocol, "classes": classes}


def evaluate_voc(records: Sequence[Record], names: Sequence[str], settings: Settings) -> VocResult:
    """The devkit's AP of the detections in `metrics.Evaluator.records`.

    names: of the classes, as in the XML.  Truths: `read_truths`.  Raises ValueError for XML that cannot be used.
    """
    truths, source = read_truths(records, names)
    found = [(devkit_boxes(record), record.detections.labels, record.detections.scores) for record in records]
    boxes, groups, labels, scores = _join(found, len(names))
    truth_boxes, truth_groups, truth_labels, difficult = _join(truths, len(names))
    overlap, truth = best_overlaps(boxes, groups, truth_boxes, truth_groups)
    matched = overlap >= MIN_OVERLAP
    # index m means no truth; a detection on a difficult object is neither right nor wrong
    ignored = matched & torch.cat((difficult.bool(), torch.tensor([False])))[truth]
    ranked = rank_by_class((~ignored).nonzero()[:, 0], labels, scores)
    hits = first_finds(truth[ranked], matched[ranked])
    curves = hits.split(torch.bincount(labels[ranked], minlength=len(names)).tolist())
    counts, hard = (torch.bincount(truth_labels[difficult == kind], minlength=len(names)).numpy() for kind in (0, 1))
    ap07, ap10 = (
        np.array([_average_precision(*each, points) for each in zip(curves, counts.tolist(), strict=True)])
        for points in (11, 0)
    )
    return VocResult(ap07=ap07, ap10=ap10, truths=counts, difficult=hard, images=len(records), source=source,
                     settings=settings)  # fmt: skip


def devkit_boxes(record: Record) -> Tensor:
    """Boxes of the detections, (n, 4) float64 xyxy, counted from 1 and cut to the image as `detector valid` does."""
    size = torch.tensor(record.image_size * 2, dtype=torch.float64)
    return (record.detections.boxes.double() + 1).clamp(min=1).minimum(size)


def annotation_path(image_path: Path) -> Path:
    """The XML of an image: in `Annotations` beside its folder `JPEGImages` (or `images`)."""
    return image_path.parent.parent / "Annotations" / f"{image_path.stem}.xml"


def has_annotations(records: Sequence[Record]) -> bool:
    """Whether every image has VOC's XML."""
    return all(record.path is not None and annotation_path(record.path).exists() for record in records)


def read_truths(records: Sequence[Record], names: Sequence[str]) -> tuple[list[Truths], str]:
    """Truths of each image, and where they are from: the XML of `annotation_path` if every image has one and it names
    any class of names, else the labels and difficult objects of the record.  Raises ValueError for broken XML."""
    if has_annotations(records):
        objects = [read_annotation(annotation_path(record.path)) for record in records]
        others = {name for rows in objects for name, *_ in rows} - set(names)
        truths = [_known(rows, {name: index for index, name in enumerate(names)}) for rows in objects]
        if any(len(each.labels) for each in truths):
            left_out = f" (without {', '.join(sorted(others))}, which the network does not know)" if others else ""
            return truths, f"the XML files of {len(records)} images{left_out}"
    return [_labelled(record) for record in records], "the label files and the list of difficult objects, if any"


def read_annotation(path: Path) -> list[tuple[str, bool, list[float]]]:
    """Name, difficult, xmin, ymin, xmax, ymax (pixels from 1) of the objects in a VOC XML, in its order.
    Raises ValueError for what is none."""
    try:
        rows = [
            (
                item.findtext("name").strip(),
                int(item.findtext("difficult", "0")) == 1,
                [float(item.find("bndbox").find(edge).text) for edge in EDGES],
            )
            for item in ElementTree.parse(path, ElementTree.XMLParser(target=_Plain())).getroot().iter("object")
        ]
        if not all(abs(edge) < MAX_EDGE for _, _, edges in rows for edge in edges):  # of nan too
            raise ValueError("an edge that is no pixel")
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: found no usable XML ({error}), expected objects with name and bndbox") from error
    return rows


class _Plain(ElementTree.TreeBuilder):
    """Elements of XML that declares nothing: no entity can grow, or name a file."""

    def doctype(self, *_) -> None:
        raise ValueError("a DOCTYPE, which VOC's have not")


def _known(rows: list[tuple[str, bool, list[float]]], indices: dict[str, int]) -> Truths:
    rows = [(indices[name], difficult, edges) for name, difficult, edges in rows if name in indices]
    labels, difficult, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return Truths(boxes, torch.tensor(labels, dtype=torch.long), torch.tensor(difficult, dtype=torch.bool))


def _labelled(record: Record) -> Truths:
    rows = torch.cat((record.labels, record.difficult)).double()
    boxes = cxcywh_to_xyxy(rows[:, 1:]) * torch.tensor(record.image_size * 2)
    difficult = torch.arange(len(rows)) >= len(record.labels)
    return Truths(boxes + 1, rows[:, 0].long(), difficult)  # + 1: voc_label counts from 0, the devkit from 1


def _join(parts: list[tuple[Tensor, ...]], classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of all images: boxes (n, 4) cxcywh with the devkit's extra pixel, a number for each pair of image and class,
    labels, and the last column."""
    nothing = torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.long), torch.zeros(0)
    boxes, labels, last = (torch.cat(columns) for columns in zip(nothing, *parts, strict=True))
    groups = torch.cat((nothing[1], *(number * classes + part[1] for number, part in enumerate(parts))))
    boxes = xyxy_to_cxcywh(boxes + boxes.new_tensor((0, 0, 1, 1)))
    return boxes, groups, labels, last


def _average_precision(hits: Tensor, truths: int, points: int) -> float:
    return average_precision(hits, truths, points) if truths else np.nan


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _percent(values) -> list[str]:
    return ["-" if np.isnan(value) else f"{value * 100:.2f}" for value in values]


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]
