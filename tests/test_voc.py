"""AP of the VOC devkit: by hand, and against its MATLAB rule in plain loops, on random and on real detections.
Source: VOCevaldet.m, VOCap.m."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import ROOT
from slow_voc import slow_voc

from yolov4.checkpoint import load_network
from yolov4.decoding import Detections
from yolov4.evaluation import collect
from yolov4.metrics import Evaluator
from yolov4.result import Settings
from yolov4.voc import EDGES, devkit_boxes, evaluate_voc, read_annotation

SETTINGS = Settings(size=(416, 416))
NAMES = ["cat", "dog", "cow", "owl"]
SIZE = (60, 50)


def detections(*rows) -> Detections:
    """rows: label, score, xmin, ymin, xmax, ymax of the devkit, which counts from 1"""
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return Detections(values[:, 2:] - 1, values[:, 1], values[:, 0].long())


def labels(*rows) -> torch.Tensor:
    """rows: label, xmin, ymin, xmax, ymax of the devkit -> as voc_label writes them"""
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    low, high = values[:, 1:3] - 1, values[:, 3:] - 1
    return torch.cat((values[:, :1], (low + high) / 2 / torch.tensor(SIZE), (high - low) / torch.tensor(SIZE)), 1)


def xml(path: Path, truths, names=NAMES) -> None:
    """truths: label, difficult, xmin, ymin, xmax, ymax"""
    root = ElementTree.Element("annotation")
    for label, difficult, *edges in truths:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = names[label]
        ElementTree.SubElement(item, "difficult").text = str(int(difficult))
        box = ElementTree.SubElement(item, "bndbox")
        for edge, value in zip(EDGES, edges, strict=True):
            ElementTree.SubElement(box, edge).text = str(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path)


def one_image(found, *truths, hard=()):
    """AP07, AP10 of class 0"""
    evaluator = Evaluator(len(NAMES), SETTINGS)
    evaluator.add(found, labels(*truths), SIZE, labels(*hard))
    result = evaluate_voc(evaluator.records, NAMES, SETTINGS)
    return result.ap07[0], result.ap10[0]


def random_images(random, count):
    """Boxes on a coarse grid, scores of few values: ties of IoU, of scores, and IoU of exactly a half."""
    images = []
    for _ in range(count):
        corners = random.integers(1, 4, (random.integers(0, 7), 2)) * 10
        truths = [
            (int(random.integers(3)), bool(random.random() < 0.3), int(x), int(y), int(x + w), int(y + h))
            for (x, y), (w, h) in zip(corners, random.choice([9, 14, 19], corners.shape), strict=True)
        ]
        rows = []
        for _ in range(random.integers(0, 15)):
            box = list(truths[random.integers(len(truths))][2:]) if truths else [5, 5, 20, 20]
            box[2:] = [int(min(max(a + random.choice([-5, 0, 0, 5, 10]), 1), 50)) for a in box[2:]]
            rows.append((int(random.integers(4)), float(random.choice([0.25, 0.5, 0.75])), *box))
        images.append((sorted(rows, key=lambda row: -row[1]), truths))
    return images


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_loops_of_the_devkit(seed, tmp_path):
    images = random_images(np.random.default_rng(seed), 40)
    evaluator = Evaluator(4, SETTINGS)
    for number, (rows, truths) in enumerate(images):
        xml(tmp_path / f"Annotations/{number}.xml", truths)
        evaluator.add(detections(*rows), labels(), SIZE, path=tmp_path / f"JPEGImages/{number}.jpg")
    result = evaluate_voc(evaluator.records, NAMES, SETTINGS)
    ap07, ap10 = slow_voc(images, 4)
    assert 0.05 < np.nanmean(ap10) < 0.9 and np.isnan(ap10[3])  # the case is worth something
    np.testing.assert_allclose(result.ap07, ap07, atol=1e-9)
    np.testing.assert_allclose(result.ap10, ap10, atol=1e-9)
    assert result.truths.sum() + result.difficult.sum() == sum(len(truths) for _, truths in images)


def test_real_detections_equal_the_loops_of_the_devkit(shared, tmp_path):
    photographs = shared / "datasets/voc2012_100/VOCdevkit/VOC2012"
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / name).symlink_to(photographs / name)
    (tmp_path / "labels").symlink_to(shared / "golden/voc2012_100/labels")
    folder = shared / "models/yolo-fastest-1.0-xl-voc"
    model = load_network(next(folder.glob("*.weights")), next(folder.glob("*.cfg")))[0]
    names = (ROOT / "data/voc0712/voc.names").read_text().split()
    evaluator = collect(model, sorted((tmp_path / "JPEGImages").glob("*.jpg")))
    images = []
    for record in evaluator.records:
        width, height = record.image_size
        rows = [
            (label, score, max(x1 + 1, 1), max(y1 + 1, 1), min(x2 + 1, width), min(y2 + 1, height))
            for (x1, y1, x2, y2), score, label in zip(*(part.tolist() for part in record.detections), strict=True)
        ]
        objects = ElementTree.parse(photographs / "Annotations" / f"{record.path.stem}.xml").findall("object")
        truths = [
            (names.index(each.findtext("name")), each.findtext("difficult") == "1",
             *(int(each.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")))
            for each in objects
        ]  # fmt: skip
        images.append((rows, truths))
    result = evaluate_voc(evaluator.records, names, evaluator.settings)
    ap07, ap10 = slow_voc(images, 20)
    np.testing.assert_allclose(result.ap07, ap07, atol=1e-6)
    np.testing.assert_allclose(result.ap10, ap10, atol=1e-6)
    assert (result.truths.sum(), result.difficult.sum()) == (235, 38)
    # the labels beside, which are those objects less the difficult ones, give the same but for these
    from_labels = [record._replace(path=None) for record in evaluator.records]
    plain = evaluate_voc(from_labels, names, evaluator.settings)
    assert (plain.truths.sum(), plain.difficult.sum()) == (235, 0)
    easy = result.difficult == 0
    np.testing.assert_allclose(plain.ap10[easy], result.ap10[easy], atol=1e-6)
    assert (plain.ap10[~easy] <= result.ap10[~easy] + 1e-9).all() and plain.map10 < result.map10


def test_an_overlap_of_one_half_with_the_extra_pixel_is_a_match():
    # 10 x 20 pixels of 20 x 20; without the extra pixel it would be 9 * 19 of 19 * 19, below a half
    assert one_image(detections((0, 0.9, 1, 1, 10, 20)), (0, 1, 1, 20, 20)) == (1, 1)
    assert one_image(detections((0, 0.9, 1, 1, 9, 20)), (0, 1, 1, 20, 20)) == (0, 0)


def test_the_best_overlap_of_all_decides_even_if_it_is_difficult():
    hard, truth = (0, 1, 1, 20, 20), (0, 1, 1, 20, 16)
    # on the difficult one: ignored, though it would do for the truth
    assert one_image(detections((0, 0.9, 1, 1, 20, 20)), truth, hard=[hard]) == (0, 0)
    rows = detections((0, 0.9, 1, 1, 20, 20), (0, 0.8, 1, 1, 20, 16))
    assert one_image(rows, truth, hard=[hard]) == (1, 1)  # and the second is not a second choice behind a wrong one


def test_two_detections_of_one_truth_are_one_right_and_one_wrong():
    box, other = (1, 1, 20, 20), (31, 31, 50, 50)
    rows = detections((0, 0.9, *box), (0, 0.8, *box), (0, 0.7, *other))
    ap07, ap10 = one_image(rows, (0, *box), (0, *other))
    # precision 1 up to recall 1/2, 2/3 up to 1
    assert (ap07, ap10) == (pytest.approx((6 + 5 * 2 / 3) / 11), pytest.approx(0.5 + 0.5 * 2 / 3))


def test_a_class_without_truths_has_no_ap_and_is_not_in_the_mean():
    box = (1, 1, 20, 20)
    evaluator = Evaluator(4, SETTINGS)
    assert np.isnan(evaluate_voc([], NAMES, SETTINGS).map07)
    evaluator.add(detections((0, 0.9, *box), (1, 0.9, *box)), labels((0, *box)), SIZE, labels((1, *box)))
    evaluator.add(detections(), labels((2, *box)), SIZE)
    result = evaluate_voc(evaluator.records, NAMES, SETTINGS)
    np.testing.assert_equal(result.ap10, [1, np.nan, 0, np.nan])
    assert result.map07 == result.map10 == 0.5
    assert result.to_json(NAMES)["classes"][1] == {
        "name": "dog", "ap07": None, "ap10": None, "truths": 0, "difficult": 1
    }  # fmt: skip
    table = result.table(NAMES)
    assert "50.00" in table and "over the 2 classes with truths" in table and "416x416" in table


def test_detections_are_cut_to_the_image():
    evaluator = Evaluator(4, SETTINGS)
    evaluator.add(detections((0, 0.9, -5, -3, 99, 99)), labels(), SIZE)
    assert devkit_boxes(evaluator.records[0]).tolist() == [[1, 1, 60, 50]]


def test_xml_counts_where_every_image_has_one_that_names_a_class(tmp_path):
    box = (1, 1, 20, 20)
    evaluator = Evaluator(4, SETTINGS)
    for number in range(2):
        evaluator.add(detections((0, 0.9, *box)), labels((0, *box)), SIZE, path=tmp_path / f"JPEGImages/{number}.jpg")
    xml(tmp_path / "Annotations/0.xml", [(0, True, *box), (1, False, *box)])
    assert "label files" in evaluate_voc(evaluator.records, NAMES, SETTINGS).source  # the second has none
    xml(tmp_path / "Annotations/1.xml", [(0, False, *box)])
    result = evaluate_voc(evaluator.records, ["cat", "pig", "cow", "owl"], SETTINGS)
    assert (result.truths.tolist(), result.difficult.tolist()) == ([1, 0, 0, 0], [1, 0, 0, 0])
    assert "XML files of 2 images (without dog" in result.source
    assert "label files" in evaluate_voc(evaluator.records, list("0123"), SETTINGS).source


@pytest.mark.parametrize("text", ["no XML", "<a><object><name>cat</name></object></a>", "<a><object/></a>"])
def test_broken_xml_is_named(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.xml: found no usable XML"):
        read_annotation(tmp_path / "a.xml")
