"""The report: a page that loads nothing, with every picture in it and every name escaped; the same
figures in every file."""

import base64
import csv
import html
import json
import re
import warnings

import cv2
import numpy as np
import pytest
from conftest import draw, make_record

from yolov4 import report
from yolov4.metrics import Evaluator, Settings
from yolov4.networks import build

ODD = ['<script>alert("x")</script>', "R&D $x", "\u732b", "_long name"]


def evaluation(folder, classes: int, found: bool = True):
    """Three images of 100 x 100 pixels, one of them without a mistake"""
    rows = [([(0, 0.9, 0)], [(0, 0)]), ([(1, 0.8, 50)], [(0, 0), (1, 52)])]
    rows += [([(0, 0.7, 20), (0, 0.6, 80)], [(1, 20)])]
    evaluator = Evaluator(classes, Settings(size=(32, 32)))
    for index, (detections, truths) in enumerate(rows):
        path = draw(folder / f"a & b < {index}.png", (100, 100))
        each = make_record(detections if found else [], truths)
        evaluator.add(each.detections, each.labels, each.image_size, path=path)
    return evaluator.records, evaluator.result()


def test_report_with_a_run(tmp_path):
    run, folder = tmp_path / "r&n", tmp_path / "out"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps({"cfg": "x/<a>.cfg", "amp": None}))
    for name in ("chart.png", "train_batch1.jpg"):
        draw(run / name)
    records, result = evaluation(tmp_path, len(ODD))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of missing letters, or anything else
        path = report.write(folder, records, result, ODD, notes=["VOC <2010>"], run=run)
    page = path.read_text(encoding="utf-8")
    images = re.findall(r'<img src="data:image/(png|jpeg);base64,([^"]+)" alt="[^"]+', page)
    assert len(images) == 3 + 2 + 2  # figures, images with mistakes, the run
    for kind, content in images:
        start = b"\x89PNG" if kind == "png" else b"\xff\xd8"
        assert base64.b64decode(content, validate=True).startswith(start)
    assert not re.search("<(script|link|iframe|object|a)[ >]", page) and page.count("src=") == 7
    assert "default-src 'none'" in html.unescape(page)
    texts = [html.unescape(text) for text in re.split("<[^>]*>", page)]
    assert {*ODD, "VOC <2010>", "<a>.cfg", f"{result.ap[0]:.2%}"} <= set(texts)
    assert any("a & b < 2.png: 1 missed, 2 false" in text for text in texts)
    with (folder / "ap.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ODD
    np.testing.assert_allclose([float(row["ap"]) for row in rows], result.ap)
    assert json.loads((folder / "ap.json").read_text())["classes"] == result.to_json(ODD)["classes"]
    assert (folder / "ap.txt").read_text("utf-8") == result.table(ODD) + "\n\nVOC <2010>\n"
    matrix = list(csv.reader((folder / "confusion.csv").open(newline="", encoding="utf-8")))
    assert ["".join(row[1:3]) for row in matrix[1:]] == ["10", "11", "00", "00", "10"]


@pytest.mark.parametrize(("classes", "found"), [(80, True), (2, False)])
def test_report_of_many_classes_and_of_nothing_found(tmp_path, classes, found):
    records, result = evaluation(tmp_path, classes, found)
    names = [f"class {i}" for i in range(classes)]
    page = report.write(tmp_path / "out", records, result, names).read_text(encoding="utf-8")
    assert ("is best at" in page) == found


def test_picture_of_a_data_set(tmp_path):
    paths = [draw(tmp_path / f"{index}.jpg", (40, 20)) for index in range(7)]
    for path in paths:
        path.with_suffix(".txt").write_text("0 .5 .5 .2 .3\n2 .1 .9 .1 .1\n")
    report.write_data(tmp_path / "data.png", paths, ["a", "b", "c"], build("shapes"))
    assert cv2.imread(str(tmp_path / "data.png")).std() > 5
