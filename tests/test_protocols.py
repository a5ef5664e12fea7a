"""AP of the VOC devkit and of COCO: by hand, against the devkit in loops, against pycocotools.
Source: VOCevaldet.m, VOCap.m; pycocotools, the reference implementation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_map import slow_voc

from yolov4 import protocols
from yolov4.decoding import Detections
from yolov4.evaluation import collect
from yolov4.labels import EDGES
from yolov4.metrics import Evaluator, Settings
from yolov4.protocols import evaluate_coco, evaluate_voc
from yolov4.weights import load_network

SETTINGS = Settings(size=(416, 416))
NAMES = ["cat", "dog", "cow", "owl"]
SIZE = (60, 50)
SQUARE = (1, 1, 20, 20)


def detections(*rows) -> Detections:
    """rows: label, score, xmin, ymin, xmax, ymax of the devkit, which counts from 1"""
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return Detections(values[:, 2:] - 1, values[:, 1], values[:, 0].long())


def labels(*rows) -> torch.Tensor:
    """rows: label, xmin, ymin, xmax, ymax of the devkit -> as the label files have them"""
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    low, high = values[:, 1:3] - 1, values[:, 3:] - 1
    size = torch.tensor(SIZE)
    return torch.cat((values[:, :1], (low + high) / 2 / size, (high - low) / size), 1)


def xml(path: Path, truths) -> None:
    """truths: label, difficult, xmin, ymin, xmax, ymax"""
    text = "<size><width>60</width><height>50</height></size>"
    for label, hard, *edges in truths:
        text += f"<object><name>{NAMES[label]}</name><difficult>{int(hard)}</difficult><bndbox>"
        text += "".join(f"<{key}>{edge}</{key}>" for key, edge in zip(EDGES, edges, strict=True))
        text += "</bndbox></object>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{text}</annotation>")


def one_image(found, *truths, hard=()):
    """AP07, AP10 of class 0"""
    evaluator = Evaluator(len(NAMES), SETTINGS)
    evaluator.add(found, labels(*truths), SIZE, labels(*hard))
    result = evaluate_voc(evaluator.records, NAMES, SETTINGS)
    return result.classes["ap07"][0], result.classes["ap10"][0]


def random_images(random, count):
    """Boxes on a coarse grid, few scores: ties of IoU, of scores, and IoU of exactly a half."""
    images = []
    for _ in range(count):
        corners = random.integers(1, 4, (random.integers(0, 7), 2)) * 10
        sides = random.choice([9, 14, 19], corners.shape)
        edges = np.concatenate((corners, corners + sides), 1).tolist()
        truths = [(int(random.integers(3)), bool(random.random() < 0.3), *box) for box in edges]
        rows = []
        for _ in range(random.integers(0, 15)):
            box = list(truths[random.integers(len(truths))][2:]) if truths else [5, 5, 20, 20]
            box[2:] = [int(min(max(a + random.choice([-5, 0, 0, 5, 10]), 1), 50)) for a in box[2:]]
            rows.append((int(random.integers(4)), float(random.choice([0.25, 0.5, 0.75])), *box))
        images.append((sorted(rows, key=lambda row: -row[1]), truths))
    return images


@pytest.mark.parametrize("seed", range(3))
def test_voc_equals_the_loops_of_the_devkit(seed, tmp_path):
    images = random_images(np.random.default_rng(seed), 40)
    evaluator = Evaluator(4, SETTINGS)
    for number, (rows, truths) in enumerate(images):
        xml(tmp_path / f"Annotations/{number}.xml", truths)
        evaluator.add(detections(*rows), labels(), SIZE, path=tmp_path / f"JPEGImages/{number}.jpg")
    result = evaluate_voc(evaluator.records, NAMES, SETTINGS).classes
    ap07, ap10 = slow_voc(images, 4)
    assert 0.05 < np.nanmean(ap10) < 0.9 and np.isnan(ap10[3])  # else the case shows nothing
    np.testing.assert_allclose(result["ap07"], ap07, atol=1e-9)
    np.testing.assert_allclose(result["ap10"], ap10, atol=1e-9)
    assert (result["objects"] + result["difficult"]).sum() == sum(len(rows) for _, rows in images)


def test_voc_by_hand():
    # 10 x 20 pixels of 20 x 20 match; without the extra pixel 9 * 19 of 19 * 19 would not
    assert one_image(detections((0, 0.9, 1, 1, 10, 20)), (0, *SQUARE)) == (1, 1)
    assert one_image(detections((0, 0.9, 1, 1, 9, 20)), (0, *SQUARE)) == (0, 0)
    # cut to the image of 60 x 50
    assert one_image(detections((0, 0.9, -99, -99, 99, 99)), (0, 1, 1, 60, 50)) == (1, 1)
    # two detections of one object are one right and one wrong: precision 1 to recall 1/2, then 2/3
    other = (31, 31, 50, 50)
    rows = detections((0, 0.9, *SQUARE), (0, 0.8, *SQUARE), (0, 0.7, *other))
    ap07, ap10 = one_image(rows, (0, *SQUARE), (0, *other))
    assert (ap07, ap10) == (pytest.approx((6 + 5 * 2 / 3) / 11), pytest.approx(0.5 + 0.5 * 2 / 3))


def test_voc_ignores_what_overlaps_a_difficult_object_most():
    hard, truth = (0, *SQUARE), (0, 1, 1, 20, 16)
    assert one_image(detections((0, 0.9, *SQUARE)), truth, hard=[hard]) == (0, 0)
    rows = detections((0, 0.9, *SQUARE), (0, 0.8, 1, 1, 20, 16))
    assert one_image(rows, truth, hard=[hard]) == (1, 1)


def test_a_class_without_ground_truth_has_no_voc_ap_and_is_not_in_the_mean():
    evaluator = Evaluator(4, SETTINGS)
    found = detections((0, 0.9, *SQUARE), (1, 0.9, *SQUARE))
    evaluator.add(found, labels((0, *SQUARE)), SIZE, labels((1, *SQUARE)))
    evaluator.add(detections(), labels((2, *SQUARE)), SIZE)
    result = evaluate_voc(evaluator.records, NAMES, SETTINGS)
    np.testing.assert_equal(result.classes["ap10"], [1, np.nan, 0, np.nan])
    assert result.figures == {"map07": 0.5, "map10": 0.5} and "50.00" in result.table(NAMES)
    wanted = {"name": "dog", "ap07": None, "ap10": None, "objects": 0, "difficult": 1}
    assert result.to_json(NAMES)["classes"][1] == wanted


def test_xml_counts_where_every_image_has_one_that_names_a_class(tmp_path):
    evaluator = Evaluator(4, SETTINGS)
    for number in range(2):
        path = tmp_path / f"JPEGImages/{number}.jpg"
        evaluator.add(detections((0, 0.9, *SQUARE)), labels((0, *SQUARE)), SIZE, path=path)

    def counts(names=NAMES):
        classes = evaluate_voc(evaluator.records, names, SETTINGS).classes
        return classes["objects"].tolist(), classes["difficult"].tolist()

    xml(tmp_path / "Annotations/0.xml", [(0, True, *SQUARE), (1, False, *SQUARE)])
    assert counts() == ([2, 0, 0, 0], [0] * 4)  # the second has none
    xml(tmp_path / "Annotations/1.xml", [(0, False, *SQUARE)])
    assert counts(["cat", "pig", "cow", "owl"]) == ([1, 0, 0, 0], [1, 0, 0, 0])
    assert counts(list("0123")) == ([2, 0, 0, 0], [0] * 4)


def reference(dataset: dict, results: Path) -> list[float]:
    """pycocotools as its demo calls it"""
    coco, cocoeval = map(pytest.importorskip, ("pycocotools.coco", "pycocotools.cocoeval"))
    truth = coco.COCO()
    truth.dataset = dataset
    truth.createIndex()
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(str(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def test_coco_of_real_detections_equals_pycocotools(shared, tmp_path):
    folder, material = shared / "models/yolov3-tiny", shared / "datasets/coco128_val"
    model = load_network(folder / "yolov3-tiny.weights", folder / "yolov3-tiny.cfg")[0]
    names = (material / "coco.names").read_text().strip().splitlines()
    evaluator = collect(model, sorted((material / "images").glob("*.jpg"))[:50])
    sent = tmp_path / "sent.json"
    result = evaluate_coco(evaluator.records, names, evaluator.settings, results=sent)
    images, annotations, categories = [], [], list(range(1, len(names) + 1))
    for number, record in enumerate(evaluator.records, 1):
        width, height = record.image_size
        images.append({"id": number, "width": width, "height": height})
        for line in (material / "labels" / f"{record.path.stem}.txt").read_text().splitlines():
            label, cx, cy, w, h = map(float, line.split())
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            entry = {"image_id": number, "category_id": categories[int(label)], "bbox": box}
            extra = {"id": len(annotations) + 1, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append(entry | extra)
    categories = [{"id": number} for number in categories]
    dataset = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
    wanted = reference(dataset, sent)
    assert len(json.loads(sent.read_text())) > 4000 and wanted[0] > 0.1
    np.testing.assert_allclose(list(result.figures.values()), wanted, atol=1e-6)
    assert np.nanmean(result.classes["ap"]) == pytest.approx(wanted[0], abs=1e-6)


BOX = (20.0, 10.0, 120.0, 60.0)  # xyxy of 200 x 100
LABEL = (0, 0.35, 0.35, 0.5, 0.5)  # the same, relative


def records(*images):
    """images: (path, rows of detections label, score, x1, y1, x2, y2 in pixels, rows of labels)"""
    evaluator = Evaluator(2, SETTINGS)
    for path, rows, truths in images:
        values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
        found = Detections(values[:, 2:], values[:, 1], values[:, 0].long())
        truths = torch.tensor(truths, dtype=torch.float32).reshape(-1, 5)
        evaluator.add(found, truths, (200, 100), path=Path(path))
    return evaluator.records


def test_coco_by_hand(capsys):
    # IoU 0.82 of a box that is medium (5000 pixels): found at 0.50 ... 0.80, 7 of 10 thresholds
    rows = [(0, 0.9, 20, 10, 120, 51), (1, 0.9, *BOX)]
    result = evaluate_coco(records(("a.jpg", rows, [LABEL])), NAMES[:2], SETTINGS)
    for key in ("AP", "APm", "AR1", "AR100", "ARm"):
        assert result.figures[key] == pytest.approx(0.7)
    assert result.figures["AP50"] == pytest.approx(1) and capsys.readouterr().out == ""
    assert all(math.isnan(result.figures[key]) for key in ("APs", "APl", "ARs", "ARl"))
    plain = result.to_json(NAMES[:2])
    assert "APs -" in result.table(NAMES[:2]) and plain["APs"] is None
    assert [each["ap"] for each in plain["classes"]] == [pytest.approx(0.7), None]


def test_coco_of_nothing_and_of_the_first():
    found = [(0, 0.9, *BOX)]
    for rows, truths, ap in (([], [LABEL], 0), (found, [], math.nan), (found, [LABEL], 1)):
        result = evaluate_coco(records(("a.jpg", rows, truths)), NAMES[:2], SETTINGS)
        assert result.figures["AP"] == pytest.approx(ap, nan_ok=True)


def coco_json(path: Path, images, categories, annotations=()) -> Path:
    """images, categories: {name: id}; annotations: (image id, category id, box xywh), of 1 pixel"""
    keys = ("image_id", "category_id", "bbox", "area")
    content = {
        "images": [{"id": number, "file_name": name} for name, number in images.items()],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": [dict(zip(keys, (*row, 1.0), strict=True)) for row in annotations],
    }
    path.write_text(json.dumps(content))
    return path


def test_coco_results_are_cut_to_the_image_and_rounded(tmp_path):
    images = records(("000000000139.jpg", [(1, 1 / 3, -5, 10.12345, 250, 60)], []))
    path = coco_json(tmp_path / "t.json", {"000000000139.jpg": 139}, {"cat": 17, "dog": 18})
    evaluate_coco(images, NAMES[:2], SETTINGS, path, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == [
        {"image_id": 139, "category_id": 18, "bbox": [0, 10.123, 200, 49.877], "score": 0.333333}
    ]


def test_a_coco_json_has_its_own_numbers_areas_and_categories(tmp_path):
    found = [(0, 0.9, *BOX), (1, 0.8, *BOX)]
    images = records(("x/images/b.jpg", found, []), ("x/images/c.jpg", [], []))
    files, categories = {"images/b.jpg": 31, "c.jpg": 5, "d.jpg": 6}, {"couch": 1, "cat": 9}
    rows = [(31, 9, (20, 10, 100, 50)), (6, 9, (0, 0, 5, 5))]
    path = coco_json(tmp_path / "t.json", files, categories, rows)
    _, image_ids, category_ids, _ = protocols.read_coco(path, images, ["cat", "dog", "sofa"])
    assert (image_ids, category_ids) == ([31, 5], [9, None, 1])  # COCO's name of the sofa is couch
    result = evaluate_coco(images, NAMES[:2], SETTINGS, path)
    # d.jpg is not in the list, so not missed; the area of 1 pixel is the JSON's, not the box's
    assert result.figures["AP"] == result.figures["APs"] == pytest.approx(1)
    assert math.isnan(result.figures["APm"])


def test_a_coco_json_that_does_not_fit_is_an_error(tmp_path):
    path, one = coco_json(tmp_path / "t.json", {"a.jpg": 1}, {"cat": 1}), ("a.jpg", [], [])
    for images, names in (([("b.jpg", [], [])], NAMES), ([one], ["pig"]), ([one, one], NAMES)):
        with pytest.raises(ValueError, match=r"t\.json: "):
            protocols.read_coco(path, records(*images), names)
    coco_json(path, {"a.jpg": 1}, {}, [(1, 1, [1, 2, 3, "4"])])
    for text in (path.read_text(), "no JSON", "[]", '{"images": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"t\.json: not a COCO JSON"):
            protocols.read_coco(path, records(one), NAMES)
