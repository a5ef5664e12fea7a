"""The report: one page without a network, every picture in it, every name escaped, the same figures in every file.
Source: none; the views of this project."""

import base64
import csv
import json
import shutil
import subprocess
import warnings
from html.parser import HTMLParser
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from test_curves import record

from yolov4 import curves, datareport, figures, mistakes, report
from yolov4.blueprint import build
from yolov4.metrics import Evaluator
from yolov4.plots import training_chart
from yolov4.result import Settings

ODD = ['<script>alert("x")</script>', "R&D $x$", "\u732b", "_" + "long" * 20]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """The tags, attributes and texts of a page"""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def evaluation(folder, classes: int):
    """Three images of 100 x 100 pixels, one of them without a mistake, and the result on them"""
    rows = [([(0, 0.9, 0)], [(0, 0)]), ([(1, 0.8, 50)], [(0, 0), (1, 52)]), ([(0, 0.7, 20), (0, 0.6, 80)], [(1, 20)])]
    records = []
    for index, row in enumerate(rows):
        path = folder / f"a & b < {index}.png"
        cv2.imwrite(str(path), np.full((100, 100, 3), 90, np.uint8))
        records.append(record(*row, path=path))
    evaluator = Evaluator(classes, Settings(size=(32, 32)))
    for each in records:
        evaluator.add(each.detections, each.labels, each.image_size)
    return records, evaluator.result()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, page, result) of a report with a run; no figure may warn, of missing letters or of anything else"""
    folder = tmp_path_factory.mktemp("report")
    run = folder / "r&n"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps({"cfg": "<a>.cfg", "amp": None}), encoding="utf-8")
    rows = [{"iteration": i, "loss": 9 / i, "rate": 0.1, "map": "", "class_loss_3": 8 / i} for i in (1, 2)]
    training_chart(rows, run / "chart.png")
    cv2.imwrite(str(run / "train_batch1.jpg"), np.zeros((9, 9, 3), np.uint8))
    records, result = evaluation(folder, len(ODD))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = report.write(folder / "out", records, result, ODD, notes=["VOC <2010>"], run=run)
    return folder / "out", Page(path), result


def test_every_picture_is_in_the_page_and_can_be_seen(written):
    _, page, _ = written
    images = page.of("img")
    assert len(images) == 3 + 2 + 2  # figures, images with mistakes, the run
    for image in images:
        kind, content = image["src"].split(",", 1)
        assert kind in ("data:image/png;base64", "data:image/jpeg;base64") and image["alt"].strip()
        data = base64.b64decode(content, validate=True)
        assert data.startswith(b"\x89PNG" if "png" in kind else b"\xff\xd8")
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None


def test_page_needs_no_network_and_no_script(written):
    _, page, _ = written
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    assert "http:" not in page.source and "https:" not in page.source and "url(" not in page.source
    assert any("default-src 'none'" in meta.get("content", "") for meta in page.of("meta"))


def test_names_are_escaped_and_whole(written):
    _, page, _ = written
    for name in (*ODD, "VOC <2010>", "<a>.cfg"):
        assert name in page.texts
    assert any(text.startswith("a & b < 2.png: missed 1 R&D $x$; false 2 <script>") for text in page.texts)


def test_page_has_headings_and_tables_that_can_be_read_aloud(written):
    _, page, _ = written
    assert len(page.of("h1")) == 1 and len(page.of("h2")) == 5 and page.of("html")[0]["lang"] == "en"
    assert len(page.of("table")) == len(page.of("caption"))
    assert all(cell["scope"] in ("col", "row") for cell in page.of("th"))


def test_files_say_the_same(written):
    folder, page, result = written
    with (folder / "ap.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ODD
    np.testing.assert_allclose([float(row["ap"]) for row in rows], result.ap)
    values = json.loads((folder / "ap.json").read_text(encoding="utf-8"))
    assert values["map"] == result.map and values["protocol"] in "".join(page.texts)
    assert (folder / "ap.txt").read_text(encoding="utf-8") == result.table(ODD) + "\n\nVOC <2010>\n"
    matrix = list(csv.reader((folder / "confusion.csv").open(newline="", encoding="utf-8")))
    assert matrix[1] == [ODD[0], "1", "0", "0", "0", "1"] and matrix[2][1:] == ["1", "1", "0", "0", "0"]
    assert f"{result.ap[0]:.2%}" in page.texts


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_shows_it(written, tmp_path):
    folder, _, _ = written
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
             "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}",
             f"screenshot={tmp_path / 'page.png'}", "window-size=800,600")  # fmt: skip
    command = [CHROMIUM, *(f"--{flag}" for flag in flags), (folder / "report.html").as_uri()]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert cv2.imread(str(tmp_path / "page.png")).std() > 5


def test_mistakes_are_drawn_where_they_are(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 100, 3), np.uint8))
    each = record([(0, 0.9, 10), (0, 0.8, 60)], [(0, 12), (0, 30)], path=tmp_path / "a.png")
    image = mistakes.draw(each, curves.pair(each), ["x"])  # 6.4 times as large
    assert image.shape == (640, 640, 3)

    def lines(left: float, colour) -> int:
        return (image[40, round(left * 6.4) - 6 : round(left * 6.4) + 6] == colour).all(1).sum()

    assert (
        lines(12, mistakes.TRUTH) == lines(10, mistakes.FOUND) < lines(30, mistakes.TRUTH) == lines(60, mistakes.FOUND)
    )
    assert lines(10, mistakes.FOUND) > 0
    assert mistakes.describe(each, curves.pair(each), ["x"]) == "missed 1 x; false 1 x"


def test_report_of_many_classes_and_of_nothing_found(tmp_path):
    records, result = evaluation(tmp_path, 80)
    report.write(tmp_path / "many", records, result, [f"class {i}" for i in range(80)])
    empty = [each._replace(detections=type(each.detections)(*(v[:0] for v in each.detections))) for each in records]
    evaluator = Evaluator(2, Settings(size=(32, 32)))
    for each in empty:
        evaluator.add(each.detections, each.labels, each.image_size)
    page = Page(report.write(tmp_path / "none", empty, evaluator.result(), ["a", "b"]))
    assert not any("best" in text for text in page.texts)


def test_letters_that_the_font_lacks_and_formulas():
    assert figures.texts(["cat", "\u732b", "$x$", "_a", "\u043a\u043e\u0442"]) == [
        "cat", "class 1", r"\$x\$", " _a", "\u043a\u043e\u0442",
    ]  # fmt: skip


def test_every_single_box_is_seen_in_the_data_report():
    figure = figures.data(np.array([[0, 0.5, 0.5, 0.1, 0.1]]), np.array([[40.0, 40]]), [], ["a"])
    mesh = figure.axes[1].collections[0]
    colours = mesh.to_rgba(mesh.get_array().compressed() if np.ma.isMA(mesh.get_array()) else mesh.get_array())
    assert colours[:, :3].min() < 0.9  # not white on white


def test_data_report_of_many_images_is_of_some(tmp_path, monkeypatch):
    images = [tmp_path / f"{index}.jpg" for index in range(7)]
    seen = []
    monkeypatch.setattr(datareport, "SHOWN", 3)
    monkeypatch.setattr(figures, "data", lambda *arguments: seen.append(arguments[-1]) or figures.new_figure(1, 1))
    datareport.write(tmp_path / "data.png", images, ["a"], build("shapes"))
    assert seen == ["3 of 7 images"]


@pytest.mark.parametrize("boxes", ["", "0 .5 .5 .2 .3\n2 .1 .9 .1 .1\n"])
def test_data_report_from_files(tmp_path, boxes):
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((20, 40, 3), np.uint8))
    (tmp_path / "a.txt").write_text(boxes)
    datareport.write(tmp_path / "data.png", [tmp_path / "a.jpg"], ["a", "b", "c"], build("shapes"))
    assert cv2.imread(str(tmp_path / "data.png")).std() > 5


def test_tensorboard_has_the_scalars_pictures_and_curves(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from yolov4.board import Board

    terms = SimpleNamespace(class_loss=torch.tensor(3.0), iou_loss=2.0, average_iou=0.5)
    board = Board(tmp_path)
    board.log(7, SimpleNamespace(loss=1.5, rate=0.1, heads=[terms]), [16], 12.0, 0.25)
    board.picture(7, "train_batch7", np.full((8, 9, 3), (255, 0, 0), np.uint8))
    board.evaluated(7, [record([(0, 0.9, 0)], [(0, 0)])], ["a", "b"])
    board.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    values = {key: (event.step, event.value) for key in events.Tags()["scalars"] for event in events.Scalars(key)}
    assert values["loss"] == (7, 1.5) and values["class_loss/head_16"] == (7, 3) and values["mAP"] == (7, 0.25)
    (picture,) = events.Images("train_batch7")
    image = cv2.imdecode(np.frombuffer(picture.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (8, 9, 3) and (image == (255, 0, 0)).all()
    assert events.Tags()["tensors"] == ["precision_recall/a"]


def test_without_tensorboard_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    import sys

    from yolov4.board import Board

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install tensorboard"):
        Board(tmp_path)
