"""Every protocol on the detections of one pass: Darknet's own reading, the VOC devkit's, COCO's.
Source: yolov4/metrics.py, voc.py, coco.py, which say whose rules they follow."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from yolov4.coco import CocoResult, detection_entries, evaluate_coco, find_library, json_truths, labelled_truths
from yolov4.files import replacing
from yolov4.metrics import Evaluator
from yolov4.result import Result
from yolov4.voc import VocResult, evaluate_voc, has_annotations

Measured = dict[str, Result | VocResult | CocoResult]


def check(wanted: Collection[str], coco_json: str | None = None) -> None:
    """Raises ValueError or OSError for what would fail only after the pass over the images."""
    if "coco" in wanted:
        find_library()
    if coco_json:
        Path(coco_json).open().close()


def measure(
    evaluator: Evaluator,
    names: Sequence[str],
    wanted: Collection[str] = (),
    *,
    iou_thresh: float = 0.5,
    points: int = 0,
    coco_json: str | None = None,
    coco_results: str | None = None,
) -> Measured:
    """The results of `wanted`, of darknet, voc, coco; each has table(names) and to_json(names).

    Nothing wanted: darknet, and voc where there is VOC's XML or a list of difficult objects.  iou_thresh, points: of
    darknet.  coco_json: COCO's truths, else those of the label files.  coco_results: where to write the detections for
    COCO's server.  Raises ValueError for truths that do not fit.
    """
    records, settings = evaluator.records, evaluator.settings
    if not wanted:
        wanted = ("darknet", "voc") if settings.difficult or has_annotations(records) else ("darknet",)
    results: Measured = {}
    if "darknet" in wanted:
        results["darknet"] = evaluator.result(iou_thresh, points)
    if "voc" in wanted:
        results["voc"] = evaluate_voc(records, names, settings)
    if "coco" in wanted:
        truths = json_truths(coco_json, records, names) if coco_json else labelled_truths(records, names)
        entries = detection_entries(records, truths)
        if coco_results:
            with replacing(coco_results) as path:
                path.write_text(json.dumps(entries), encoding="utf-8")
        results["coco"] = evaluate_coco(entries, truths, settings)
    return results


def to_json(results: Measured, names: Sequence[str]) -> dict:
    """Plain values, ready for json.dump: Darknet's at the top, the others below their names."""
    plain = {name: result.to_json(names) for name, result in results.items()}
    return {**plain.pop("darknet", {}), **plain}
