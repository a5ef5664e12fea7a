"""COCO's figures and results file: by hand, and against pycocotools on real detections.
Source: pycocotools, the reference implementation; cocodataset.org for the format of results."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from yolov4.checkpoint import load_network
from yolov4.coco import (
    FIGURES,
    detection_entries,
    evaluate_coco,
    find_library,
    json_truths,
    labelled_truths,
    number_classes,
    number_images,
)
from yolov4.decoding import Detections
from yolov4.evaluation import collect
from yolov4.metrics import Evaluator
from yolov4.result import Settings

SETTINGS = Settings(size=(416, 416))
SIZE = (200, 100)
NAMES = ["cat", "dog"]
BOX = (20.0, 10.0, 120.0, 60.0)  # xyxy; relative: cx .35, cy .35, w .5, h .5
LABEL = (0.35, 0.35, 0.5, 0.5)


def detections(*rows) -> Detections:
    """rows: label, score, x1, y1, x2, y2 in pixels"""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(values[:, 2:], values[:, 1], values[:, 0].long())


def records(*images):
    """images: (path, detections, rows of labels)"""
    evaluator = Evaluator(len(NAMES), SETTINGS)
    for path, found, labels in images:
        evaluator.add(found, torch.tensor(labels, dtype=torch.float32).reshape(-1, 5), SIZE, path=Path(path))
    return evaluator.records


def coco_json(path: Path, images, categories, annotations=()) -> Path:
    """images, categories: {name: id}; annotations: (image id, category id, box xywh)"""
    rows = [
        {"id": n, "image_id": image, "category_id": category, "bbox": list(box), "area": 1.0, "iscrowd": 0}
        for n, (image, category, box) in enumerate(annotations, 1)
    ]
    images = [{"id": n, "file_name": name, "width": 200, "height": 100} for name, n in images.items()]
    categories = [{"id": n, "name": name} for name, n in categories.items()]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": rows}))
    return path


def reference(dataset: dict, results: Path) -> list[float]:
    """pycocotools as its demo calls it"""
    pycocotools = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth = pycocotools.COCO()
    truth.dataset = dataset
    truth.createIndex()
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(str(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def test_real_detections_equal_pycocotools(shared, tmp_path):
    folder, material = shared / "models/yolov3-tiny", shared / "datasets/coco128_val"
    model = load_network(folder / "yolov3-tiny.weights", folder / "yolov3-tiny.cfg")[0]
    names = (material / "coco.names").read_text().strip().splitlines()
    evaluator = collect(model, sorted((material / "images").glob("*.jpg")))
    truths = labelled_truths(evaluator.records, names)
    entries = detection_entries(evaluator.records, truths)
    result = evaluate_coco(entries, truths, evaluator.settings)
    images, annotations = [], []
    for record in evaluator.records:
        width, height = record.image_size
        images.append({"id": int(record.path.stem), "width": width, "height": height})
        for line in (material / "labels" / f"{record.path.stem}.txt").read_text().splitlines():
            label, cx, cy, w, h = map(float, line.split())
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            annotations.append({"id": len(annotations) + 1, "image_id": images[-1]["id"], "bbox": box, "iscrowd": 0,
                                "category_id": int(label) + 7, "area": box[2] * box[3]})  # fmt: skip
    results = [
        {"image_id": int(record.path.stem), "category_id": label + 7, "score": round(score, 6),
         "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]}
        for record in evaluator.records
        for (x1, y1, x2, y2), score, label in zip(
            record.detections.boxes.clamp(torch.zeros(4), torch.tensor(record.image_size * 2)).double().tolist(),
            record.detections.scores.tolist(), record.detections.labels.tolist(), strict=True)
    ]  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(results))
    categories = [{"id": n + 7, "name": name} for n, name in enumerate(names)]
    wanted = reference({"images": images, "annotations": annotations, "categories": categories, "info": {}},
                       tmp_path / "r.json")  # fmt: skip
    assert len(entries) == len(results) > 10000 and wanted[0] > 0.1
    np.testing.assert_allclose([result.figures[key] for key in FIGURES], wanted, atol=1e-6)
    # the file that is written, read by the reference, gives the very figures that are printed
    (tmp_path / "r.json").write_text(json.dumps(entries))
    np.testing.assert_allclose(list(result.figures.values()), reference(truths.dataset, tmp_path / "r.json"), atol=1e-9)
    assert np.nanmean(result.ap) == pytest.approx(result.figures["AP"], abs=1e-9)


def test_figures_by_hand(capsys):
    # IoU 0.82 of a box that is medium (5000 pixels): found at 0.50 ... 0.80, 7 of 10 thresholds; nothing small or large
    shorter = (20, 10, 120, 51)
    images = records(("a.jpg", detections((0, 0.9, *shorter), (1, 0.9, *BOX)), [(0, *LABEL)]))
    truths = labelled_truths(images, NAMES)
    result = evaluate_coco(detection_entries(images, truths), truths, SETTINGS)
    figures = result.figures
    for key in ("AP", "APm", "AR1", "AR100", "ARm"):
        assert figures[key] == pytest.approx(0.7)
    assert (figures["AP50"], figures["AP75"]) == (pytest.approx(1), pytest.approx(1))
    assert all(math.isnan(figures[key]) for key in ("APs", "APl", "ARs", "ARl"))
    assert result.ap[0] == pytest.approx(0.7) and math.isnan(result.ap[1])
    assert capsys.readouterr().out == ""
    table, plain = result.table(NAMES), result.to_json(NAMES)
    assert "APs -" in table and "label files" in table and "416x416" in table and "1 classes with truths" in table
    assert plain["APs"] is None and plain["classes"][1] == {"name": "dog", "ap": None}
    json.dumps(plain, allow_nan=False)


def test_nothing_found_and_nothing_to_find():
    images = records(("a.jpg", detections(), [(0, *LABEL)]))
    truths = labelled_truths(images, NAMES)
    assert evaluate_coco(detection_entries(images, truths), truths, SETTINGS).figures["AP"] == 0
    images = records(("a.jpg", detections((0, 0.9, *BOX)), []))
    truths = labelled_truths(images, NAMES)
    assert math.isnan(evaluate_coco(detection_entries(images, truths), truths, SETTINGS).figures["AP"])


def test_the_first_truth_and_the_first_detection_count():
    images = records(("a.jpg", detections((0, 0.9, *BOX)), [(0, *LABEL)]))
    truths = labelled_truths(images, NAMES)
    assert evaluate_coco(detection_entries(images, truths), truths, SETTINGS).figures["AP"] == pytest.approx(1)


def test_entries_are_cut_to_the_image_and_rounded():
    images = records(("000000000139.jpg", detections((1, 1 / 3, -5, 10.12345, 250, 60)), []))
    assert detection_entries(images, labelled_truths(images, NAMES)) == [
        {"image_id": 139, "category_id": 2, "bbox": [0, 10.123, 200, 49.877], "score": 0.333333}
    ]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["000000000139.jpg", "000000000285.jpg"], [139, 285]),
        (["2007_000027.jpg", "2007_000032.jpg"], [1, 2]),  # int() would take the underscore
        (["a/7.jpg", "b/7.jpg"], [1, 2]),
        (["7.jpg", "x y.jpg", "ü.jpg"], [1, 2, 3]),
        (["²³.jpg"], [1]),
    ],
)
def test_any_file_name_has_a_number(names, numbers):
    assert number_images([Path(name) for name in names]) == numbers


def test_names_of_coco_have_its_numbers(shared):
    names = (shared / "datasets/coco128_val/coco.names").read_text().strip().splitlines()
    numbers = number_classes(names)
    assert numbers == sorted(set(numbers)) and (len(numbers), numbers[0], numbers[-1]) == (80, 1, 90)
    gaps = set(range(1, 91)) - set(numbers)
    assert gaps == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert dict(zip(names, numbers, strict=True))["tvmonitor"] == 72
    assert number_classes(names[:79]) == list(range(1, 80))
    assert number_classes(NAMES) == [1, 2]


def test_json_has_its_own_numbers_areas_and_categories(tmp_path):
    found = detections((0, 0.9, *BOX), (1, 0.8, *BOX))
    images = records(("x/images/b.jpg", found, []), ("x/images/c.jpg", detections(), []))
    path = coco_json(tmp_path / "t.json", {"images/b.jpg": 31, "c.jpg": 5, "d.jpg": 6}, {"cow": 1, "cat": 9},
                     [(31, 9, (20, 10, 100, 50)), (6, 9, (0, 0, 5, 5))])  # fmt: skip
    truths = json_truths(path, images, NAMES)
    assert (truths.image_ids, truths.category_ids) == ([31, 5], [9, None])
    entries = detection_entries(images, truths)
    assert [(each["image_id"], each["category_id"]) for each in entries] == [(31, 9)]  # no dog there
    result = evaluate_coco(entries, truths, SETTINGS)
    # d.jpg is not in the list, so not missed; the area of 1 pixel is the JSON's, not the box's
    assert result.figures["AP"] == result.figures["APs"] == pytest.approx(1) and math.isnan(result.figures["APm"])
    assert "2 of 3 images, 1 of 2 categories" in result.protocol


def test_json_may_spell_darknets_names_as_coco(tmp_path):
    path = coco_json(tmp_path / "t.json", {"a.jpg": 1}, {"couch": 63, "tv": 72, "sofa bed": 1})
    images = records(("a.jpg", detections(), []))
    assert json_truths(path, images, ["sofa", "tvmonitor"]).category_ids == [63, 72]


def test_json_that_does_not_fit_is_named(tmp_path):
    path = coco_json(tmp_path / "t.json", {"a.jpg": 1}, {"cat": 1})
    one = ("a.jpg", detections(), [])
    with pytest.raises(ValueError, match=r"t\.json: found no image b\.jpg"):
        json_truths(path, records(("b.jpg", detections(), [])), NAMES)
    with pytest.raises(ValueError, match=r"t\.json: found none of the classes pig"):
        json_truths(path, records(one), ["pig", "hen"])
    with pytest.raises(ValueError, match=r"t\.json: found images of it twice"):
        json_truths(path, records(one, one), NAMES)
    for text in ("no JSON", "[]", '{"images": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"t\.json: found no COCO JSON"):
            json_truths(path, records(one), NAMES)


def test_without_the_library_it_says_how_to_get_it(monkeypatch):
    for name in ("faster_coco_eval", "pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="pip install faster-coco-eval"):
        find_library()
