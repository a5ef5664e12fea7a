"""AP by the rules of PASCAL VOC's devkit and of COCO, from the records of one evaluation.
Source: VOCevaldet.m, VOCap.m of the VOC2007 and VOC2012 devkits; faster-coco-eval for COCO."""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from yolov4.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh, xyxy_to_xywh
from yolov4.files import finite, read_text, regular, replacing
from yolov4.labels import read_annotation
from yolov4.metrics import average_precisions, best_overlaps, by_class

VOC_OVERLAP = 0.5
COCO_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl",
                "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # fmt: skip
SPELLINGS = {  # of Darknet's coco.names -> COCO's
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch",
    "pottedplant": "potted plant", "diningtable": "dining table", "tvmonitor": "tv",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a protocol measured: ratios in 0..1, NaN where there is nothing to find."""

    figures: dict[str, float]
    classes: dict[str, np.ndarray]  # (C,) each
    images: int
    protocol: str  # what was measured, and why it is not Darknet's figure

    def table(self, names):
        """One line per class, the figures, the protocol."""
        row = f"{{:{max(16, *map(len, names))}}}" + " {:>9}" * len(self.classes)
        lines = [row.format("class", *self.classes)]
        for name, *values in zip(names, *self.classes.values(), strict=True):
            lines.append(row.format(name, *map(_shown, values)))
        figures = [f"{key} {_shown(value)}" for key, value in self.figures.items()]
        lines += ["  ".join(part) for part in (figures[:6], figures[6:]) if part]
        return "\n".join([*lines, textwrap.fill(self.protocol, 100)])

    def to_json(self, names):
        """Everything as plain values, ready for json.dump; None for NaN and infinities."""
        rows = zip(names, *(each.tolist() for each in self.classes.values()), strict=True)
        classes = [dict(zip(("name", *self.classes), row, strict=True)) for row in rows]
        own = {"images": self.images, "protocol": self.protocol, "classes": classes}
        return finite(self.figures | own)


def _shown(value):
    return f"{value:.2%}".replace("nan%", "-") if isinstance(value, float) else value


def evaluate_voc(records, names, settings):
    """The devkit's AP by the rules of 2007 and of 2010.

    names: of the classes, as in the XML.  Raises ValueError for XML that cannot be used.
    """
    targets, source = _voc_targets(records, names)
    matches, start = [], 0
    for record, rows in zip(records, targets, strict=True):
        # counted from 1 and cut to the image, as `darknet detector valid` writes them
        size = torch.tensor(record.image_size * 2, dtype=torch.float64)
        boxes = (record.detections.boxes.double() + 1).clamp(min=1).minimum(size)
        labels, target = (
            record.detections.labels,
            torch.cat((rows[:, :1], _widened(rows[:, 2:])), 1),
        )
        overlap, index = best_overlaps(_widened(boxes), labels, target)
        matched = overlap >= VOC_OVERLAP
        # a detection on a difficult object is neither right nor wrong
        ignored = matched & torch.cat((rows[:, 1] > 0, torch.tensor([False])))[index]
        matches.append((~ignored, record.detections.scores, labels, index + start, matched))
        start += len(rows)
    label, hard = torch.cat(targets)[:, :2].long().T
    objects, difficult = (
        torch.bincount(label[hard == kind], minlength=len(names)).numpy() for kind in (0, 1)
    )
    matches = by_class(*map(torch.cat, zip(*matches, strict=True)), objects)
    ap07, ap10 = (
        np.where(objects > 0, average_precisions(matches, points), np.nan) for points in (11, 0)
    )
    return Figures(
        figures={"map07": np.nanmean(ap07), "map10": np.nanmean(ap10)},
        classes={"ap07": ap07, "ap10": ap10, "objects": objects, "difficult": difficult},
        images=len(records),
        protocol=f"VOC devkit: IoU >= {VOC_OVERLAP:g} in pixels, first and last both within a box; "
        "AP07 at 11 recalls, AP10 area under the curve, mean over the "
        f"{(objects > 0).sum()} classes with ground truth; {settings}; ground truth from {source}. "
        "Darknet's figure differs: IoU > 0.5 without the extra pixel, 0 for a class without ground "
        "truth, and a detection on both an ordinary and a difficult object is matched with the "
        "ordinary one.",
    )


def _widened(boxes):
    """(n, 4) xyxy in pixels -> cxcywh with the devkit's extra pixel: the last one is within."""
    return xyxy_to_cxcywh(boxes + boxes.new_tensor((0, 0, 1, 1)))


def annotations(records):
    """VOC's XML of each image, in `Annotations` beside its folder; [] unless all are there."""
    images = [record.path for record in records if record.path]
    paths = [path.parent.parent / "Annotations" / f"{path.stem}.xml" for path in images]
    return paths if len(paths) == len(records) and all(path.exists() for path in paths) else []


def _voc_targets(records, names):
    """Of each image (m, 6) class, difficult, xyxy in pixels from 1; and where that is from: the
    XML if every image has one and it names any of the classes, else the labels."""
    rows = [
        [
            (names.index(name), hard, *box)
            for name, hard, box in read_annotation(path)[1]
            if name in names
        ]
        for path in annotations(records)
    ]
    if any(rows):
        targets = [torch.tensor(each, dtype=torch.float64).reshape(-1, 6) for each in rows]
        return targets, f"the XML files of {len(records)} images"
    targets = []
    for record in records:
        labels = torch.cat((record.labels, record.difficult)).double()
        hard = torch.arange(len(labels))[:, None] >= len(record.labels)
        # the label files count pixels from 0
        boxes = cxcywh_to_xyxy(labels[:, 1:]) * torch.tensor(record.image_size * 2) + 1
        targets.append(torch.cat((labels[:, :1], hard, boxes), 1))
    return targets, "the label files and the list of difficult objects, if any"


def evaluate_coco(records, names, settings, ground_truth=None, results=None):
    """COCO's AP and AR.

    ground_truth: a COCO JSON, else the label files are taken.  results: file for COCO's server.
    Raises ValueError for a JSON that does not fit the records.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    dataset, image_ids, category_ids, source = (
        read_coco(ground_truth, records, names) if ground_truth else coco_labels(records, names)
    )
    entries = coco_detections(records, image_ids, category_ids)
    if results:
        with replacing(results) as path:
            path.write_text(json.dumps(entries), encoding="utf-8")
    known = sorted(set(category_ids) - {None})
    found = {**dataset, "annotations": _complete(entries)}
    evaluation = COCOeval_faster(COCO(dataset), COCO(found), "bbox")
    evaluation.params.imgIds, evaluation.params.catIds = sorted(image_ids), known
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # (IoU, recall, class, area, detections): of all areas, with 100 detections
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    by_category = {number: precision[:, :, index].mean() for index, number in enumerate(known)}
    ap = np.array([by_category.get(number, -1) for number in category_ids])
    stats, ap = (np.where(each < 0, np.nan, each) for each in (np.array(evaluation.stats), ap))
    return Figures(
        figures=dict(zip(COCO_FIGURES, stats.tolist(), strict=False)),
        classes={"ap": ap},
        images=len(records),
        protocol="COCO: AP is the mean over IoU >= 0.50, 0.55 ... 0.95 at 101 recalls, over the "
        f"{np.isfinite(ap).sum()} classes with ground truth, of the 100 best detections of a class "
        "in an image; s, m, l: objects below 32 x 32 pixels, up to 96 x 96, above; AR1, AR10, "
        f"AR100: recall with so many detections; {settings}; ground truth from {source}. Darknet's "
        "figure is nearest to AP50, but takes the area under the curve, all detections, and 0 for "
        "a class without ground truth.",
    )


def coco_labels(records, names):
    """The label files as COCO's JSON, its numbers of images and classes, and where it is from.
    Difficult objects, which COCO does not know, are left out."""
    images, annotations = [], []
    for number, record in enumerate(records, 1):
        width, height = size = record.image_size
        file = {"id": number, "file_name": str(record.path), "width": width, "height": height}
        images.append(file)
        boxes = xyxy_to_xywh(cxcywh_to_xyxy(record.labels[:, 1:].double())) * torch.tensor(size * 2)
        annotations += [
            {"image_id": number, "category_id": int(label) + 1, "bbox": box}
            for label, box in zip(record.labels[:, 0], boxes.tolist(), strict=True)
        ]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    dataset = {"images": images, "annotations": _complete(annotations), "categories": categories}
    ids = ([each["id"] for each in part] for part in (images, categories))
    return dataset, *ids, "the label files, area = width x height"


def read_coco(path, records, names):
    """The same from a COCO JSON; images are found by file name, classes by name (None: not there).

    Raises ValueError for another file, an image that it does not have, and where no class is known.
    """
    try:
        dataset = json.loads(read_text(path))
        images = {Path(image["file_name"]).name: image["id"] for image in dataset["images"]}
        categories = {category["name"]: category["id"] for category in dataset["categories"]}
        dataset["annotations"] = rows = _complete(dataset["annotations"])
        # the library reads these in C
        ids = [[row["image_id"], row["category_id"], row["iscrowd"]] for row in rows]
        _check_numbers("i", [*np.ravel(ids), *images.values(), *categories.values()])
        _check_numbers("if", np.reshape([[*row["bbox"], row["area"]] for row in rows], (-1, 5)))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a COCO JSON ({str(error)[:80]})") from None
    image_ids = [images.get(record.path.name) for record in records]
    if None in image_ids or len(set(image_ids)) < len(image_ids):
        raise ValueError(f"{path}: expected to have every image of the list by name, each once")
    category_ids = [categories.get(name, categories.get(SPELLINGS.get(name))) for name in names]
    found = len(names) - category_ids.count(None)
    if not found:
        raise ValueError(f"{path}: has none of the classes {', '.join(names[:3])} ...")
    return dataset, image_ids, category_ids, f"{path}: {found} of {len(categories)} categories"


def coco_detections(records, image_ids, category_ids):
    """As COCO's server takes them: boxes cut to the image, as `darknet detector valid`, in 1/1000
    pixel, scores to 6 digits; classes without a category are left out."""
    entries = []
    for image, record in zip(image_ids, records, strict=True):
        boxes, scores, labels = record.detections.numpy()
        boxes = np.clip(boxes.astype(float), 0, record.image_size * 2)
        boxes[:, 2:] -= boxes[:, :2]
        columns = labels, boxes.round(3).tolist(), scores.astype(float).round(6).tolist()
        entries += [
            {"image_id": image, "category_id": category_ids[label], "bbox": box, "score": score}
            for label, box, score in zip(*columns, strict=True)
            if category_ids[label] is not None
        ]
    return entries


def _complete(annotations):
    """With all that the library needs; numbers start at 1, since it takes 0 for no match."""
    return [
        {"area": each["bbox"][2] * each["bbox"][3], "iscrowd": 0, **each, "id": number}
        for number, each in enumerate(annotations, 1)
    ]


def _check_numbers(kinds, values):
    values = np.asarray(values)
    if values.size and (values.dtype.kind not in kinds or not (abs(values) < 1e15).all()):
        raise ValueError("ids, boxes, areas that are not numbers")


def check(wanted, coco_json=None):
    """Raises ValueError or OSError for what would fail only after the pass over the images."""
    if "coco" in wanted:
        try:
            import faster_coco_eval  # noqa: F401
        except ModuleNotFoundError:
            message = "COCO metrics need faster-coco-eval: pip install faster-coco-eval"
            raise ValueError(message) from None
    if coco_json:
        regular(coco_json).open().close()


def measure(
    evaluator, names, wanted=(), *, iou_thresh=0.5, points=0, coco_json=None, coco_results=None
):
    """The results of `wanted`, of darknet, voc, coco; each has table(names) and to_json(names).

    Nothing wanted: darknet, and voc where there is VOC's XML or a list of difficult objects.
    iou_thresh, points: of darknet.  coco_json: COCO's ground truth, else that of the label files.
    coco_results: file for COCO's server.  Raises ValueError for ground truth that does not fit.
    """
    records, settings, results = evaluator.records, evaluator.settings, {}
    if not wanted:
        wanted = {"darknet", "voc"} if settings.difficult or annotations(records) else {"darknet"}
    if "darknet" in wanted:
        results["darknet"] = evaluator.result(iou_thresh, points)
    if "voc" in wanted:
        results["voc"] = evaluate_voc(records, names, settings)
    if "coco" in wanted:
        results["coco"] = evaluate_coco(records, names, settings, coco_json, coco_results)
    return results


def to_json(results, names):
    """Plain values, ready for json.dump: Darknet's at the top, the others below their names."""
    plain = {name: result.to_json(names) for name, result in results.items()}
    return {**plain.pop("darknet", {}), **plain}
