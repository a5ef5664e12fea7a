"""COCO's AP and AR, and the results file that its server takes.  The figures come from faster-coco-eval: those of
pycocotools to the last digit, in a fifth of the time.  Source: cocodataset.org (format-results, detection-eval)."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from yolov4.boxes import cxcywh_to_xyxy, xyxy_to_xywh
from yolov4.files import read_text
from yolov4.result import Record, Settings

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,,backpack,umbrella,,,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,,dining table,,,toilet,,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
CATEGORIES = {name: number for number, name in enumerate(NAMES.split(","), 1) if name}  # the 80 names -> 1..90
SPELLINGS = {  # of Darknet's coco.names -> COCO's
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant",
    "diningtable": "dining table", "tvmonitor": "tv",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CocoTruths:
    """What to compare with, and how images and classes are called there."""

    dataset: dict  # as COCO's JSON: images, annotations, categories
    image_ids: list[int]  # of the records, in order
    category_ids: list[int | None]  # of the classes; None for a class that the JSON does not have
    source: str  # where the truths are from


@dataclass(frozen=True, kw_only=True)
class CocoResult:
    """What `evaluate_coco` measured: ratios 0..1, nan where there is nothing to find."""

    figures: dict[str, float]  # FIGURES
    ap: np.ndarray  # (C,), AP of each class
    images: int
    source: str  # where the truths are from
    settings: Settings

    @property
    def protocol(self) -> str:
        """What was measured, and why it is not Darknet's figure."""
        return (
            "COCO: AP is the mean over IoU >= 0.50, 0.55 ... 0.95 at 101 recalls, over the "
            f"{np.isfinite(self.ap).sum()} classes with truths, of the 100 best detections of a class in an image; "
            "s, m, l: objects below 32 x 32 pixels, up to 96 x 96, above; AR1, AR10, AR100: recall with so many "
            f"detections; {self.settings}; truths from {self.source}. Darknet's figure is nearest to "
            "AP50, but takes the area under the curve, all detections, and 0 for a class without truths."
        )

    def table(self, names: Sequence[str]) -> str:
        """The twelve figures and the protocol; the classes are in `to_json`."""
        parts = [f"{key} {_percent(value)}" for key, value in self.figures.items()]
        half = len(parts) // 2
        return "\n".join(("COCO %  " + "  ".join(parts[:half]), " " * 8 + "  ".join(parts[half:]), self.protocol))

    def to_json(self, names: Sequence[str]) -> dict:
        """Everything as plain values, ready for json.dump; None where there is nothing to find."""
        classes = [{"name": name, "ap": _plain(ap)} for name, ap in zip(names, self.ap.tolist(), strict=True)]
        figures = {key: _plain(value) for key, value in self.figures.items()}
        return {**figures, "images": self.images, "protocol": self.protocol, "classes": classes}


def labelled_truths(records: Sequence[Record], names: Sequence[str]) -> CocoTruths:
    """Truths of the label files, in pixels; difficult objects, which COCO does not know, are left out."""
    image_ids, category_ids = number_images([record.path for record in records]), number_classes(names)
    images = [
        {"id": number, "width": record.image_size[0], "height": record.image_size[1], "file_name": str(record.path)}
        for number, record in zip(image_ids, records, strict=True)
    ]
    annotations = []
    for number, record in zip(image_ids, records, strict=True):
        sizes = torch.tensor(record.image_size * 2)
        boxes = xyxy_to_xywh(cxcywh_to_xyxy(record.labels[:, 1:].double())) * sizes
        for label, box in zip(record.labels[:, 0].long().tolist(), boxes.tolist(), strict=True):
            annotations.append({"image_id": number, "category_id": category_ids[label], "bbox": box})
    categories = [{"id": number, "name": name} for number, name in zip(category_ids, names, strict=True)]
    dataset = {"images": images, "annotations": _complete(annotations), "categories": categories}
    return CocoTruths(
        dataset=dataset, image_ids=image_ids, category_ids=category_ids, source="the label files, area = width x height"
    )


def json_truths(path: str | Path, records: Sequence[Record], names: Sequence[str]) -> CocoTruths:
    """Truths of a COCO JSON; images are found by file name, classes by name.

    Raises ValueError for a file that is none, for an image that it does not have, and where it has no class of names.
    """
    try:
        dataset = json.loads(read_text(path))
        known = {image["file_name"]: image["id"] for image in dataset["images"]}
        numbers = {category["name"]: category["id"] for category in dataset["categories"]}
        for number, each in enumerate(dataset["annotations"], 1):
            each["id"] = number  # the library takes a match with number 0 for none
            each.setdefault("area", each["bbox"][2] * each["bbox"][3])  # other tools leave these two out
            each.setdefault("iscrowd", 0)
            _check_numbers([each["image_id"], each["category_id"], each["iscrowd"]], int)
            _check_numbers([*each["bbox"], each["area"]], (int, float), 5)
        _check_numbers([*known.values(), *numbers.values()], int)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        found = f"{path}: found no COCO JSON ({str(error)[:80]})"
        raise ValueError(f"{found}, expected images, annotations, categories") from None
    image_ids = [_find_image(path, known, record.path) for record in records]
    if len(set(image_ids)) < len(image_ids):
        raise ValueError(f"{path}: found images of it twice in the list, expected each once")
    category_ids = [numbers.get(name, numbers.get(SPELLINGS.get(name))) for name in names]
    found = sum(number is not None for number in category_ids)
    if not found:
        raise ValueError(f"{path}: found none of the classes {', '.join(names[:3])} ..., expected their names")
    source = f"{path}: {len(records)} of {len(known)} images, {found} of {len(numbers)} categories"
    return CocoTruths(dataset=dataset, image_ids=image_ids, category_ids=category_ids, source=source)


def number_images(paths: Sequence[Path | None]) -> list[int]:
    """000000000139.jpg -> 139, as COCO; where a name is no number, or not the only one, all count from 1 in order."""
    stems = [path.stem if path else "" for path in paths]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    return numbers if len(set(numbers)) == len(paths) else list(range(1, len(paths) + 1))


def number_classes(names: Sequence[str]) -> list[int]:
    """COCO's numbers (1..90) where the names are its 80, however spelt; else 1, 2, 3 ..."""
    spelt = [SPELLINGS.get(name, name) for name in names]
    official = sorted(spelt) == sorted(CATEGORIES)
    return [CATEGORIES[name] for name in spelt] if official else list(range(1, len(spelt) + 1))


def detection_entries(records: Sequence[Record], truths: CocoTruths) -> list[dict]:
    """Detections as COCO's server takes them, boxes cut to the image (as Darknet's `detector valid` does) and rounded
    to 1/1000 pixel, scores to 6 digits; classes without a category are left out."""
    counts = [len(record.detections.labels) for record in records]
    sizes = torch.tensor([record.image_size * 2 for record in records], dtype=torch.float64).reshape(-1, 4)
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*(each.detections for each in records), strict=True))
    boxes = boxes.double().clamp(min=0).minimum(sizes.repeat_interleave(torch.tensor(counts).long(), 0))
    boxes = xyxy_to_xywh(boxes).numpy().round(3).tolist()
    scores = scores.double().numpy().round(6).tolist()
    images = [number for number, count in zip(truths.image_ids, counts, strict=True) for _ in range(count)]
    categories = [truths.category_ids[label] for label in labels.tolist()]
    return [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(images, categories, boxes, scores, strict=True)
        if category is not None
    ]


def evaluate_coco(entries: list[dict], truths: CocoTruths, settings: Settings) -> CocoResult:
    """COCO's figures of `detection_entries`.  Raises ValueError where the library is missing."""
    COCO, COCOeval = find_library()
    with contextlib.redirect_stdout(io.StringIO()):  # the libraries talk
        truth, found = COCO(), COCO()
        truth.dataset = truths.dataset
        found.dataset = {**truths.dataset, "annotations": _complete(entries)}
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        known = sorted({number for number in truths.category_ids if number is not None})
        evaluation.params.imgIds, evaluation.params.catIds = sorted(set(truths.image_ids)), known
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [float(value) if value >= 0 else np.nan for value in evaluation.stats[: len(FIGURES)]]
    # (IoU, recall, class, area, detections): of all areas, with 100 detections
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    by_category = {number: precision[:, :, index].mean() for index, number in enumerate(known)}
    ap = np.array([by_category.get(number, -1.0) for number in truths.category_ids])
    figures = dict(zip(FIGURES, stats, strict=True))
    return CocoResult(figures=figures, ap=np.where(ap < 0, np.nan, ap), images=len(truths.image_ids),
                      source=truths.source, settings=settings)  # fmt: skip


def find_library():
    """COCO and COCOeval of faster-coco-eval, or of pycocotools, whose interface and figures it has.
    Raises ValueError where there is neither."""
    with contextlib.suppress(ModuleNotFoundError):
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError:
        message = "coco: found no faster-coco-eval, expected it after `pip install faster-coco-eval`"
        raise ValueError(message) from None
    return COCO, COCOeval


def _complete(annotations: list[dict]) -> list[dict]:
    """With what the library needs of each; it takes a match with number 0 for none, so they count from 1."""
    return [
        {**each, "id": number, "area": each["bbox"][2] * each["bbox"][3], "iscrowd": 0}
        for number, each in enumerate(annotations, 1)
    ]


def _check_numbers(values: list, kind: type | tuple[type, ...], count: int | None = None) -> None:
    """What the library reads in C has to be numbers of a size that C has."""
    if len(values) != (count or len(values)) or not all(isinstance(v, kind) and abs(v) < 1e15 for v in values):
        raise ValueError(f"{str(values)[:40]} where numbers have to be")


def _find_image(source: str | Path, known: dict[str, int], path: Path) -> int:
    """By file name, or by as many of its folders as the JSON has."""
    ends = ("/".join(path.parts[start:]) for start in reversed(range(len(path.parts))))
    number = next((known[end] for end in ends if end in known), None)
    if number is None:
        raise ValueError(f"{source}: found no image {path.name}, expected every image that is evaluated")
    return number


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value * 100:.2f}"


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value
