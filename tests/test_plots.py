"""Boxes and text are seen and stay inside the picture; the chart shows what results.csv says."""

import csv
import re
from itertools import product

import cv2
import numpy as np
import pytest
import torch
from conftest import make_record

from yolov4 import metrics, plots
from yolov4.decoding import Detections
from yolov4.plots import class_colour, draw_detections


def detections(*boxes) -> Detections:
    scores = torch.linspace(0.9, 0.5, len(boxes))
    return Detections(torch.tensor(boxes, dtype=torch.float32), scores, torch.arange(len(boxes)))


def test_the_box_is_where_it_should_be():
    image = np.zeros((200, 300, 3), np.uint8)
    drawn = draw_detections(image, detections((50, 60, 150, 160)), ["cat"])
    assert not image.any()  # a copy
    assert tuple(drawn[160, 100]) == tuple(drawn[100, 50]) == class_colour(0)
    assert not drawn[100, 100].any() and not drawn[170:].any() and not drawn[:, 160:].any()
    labels = np.array([[1, 0.5, 0.5, 0.5, 0.25]], np.float32)
    drawn = plots.draw_labels(np.zeros((200, 400, 3), np.uint8), labels, ["cat", "\u732b"])
    assert tuple(drawn[125, 200]) == tuple(drawn[100, 100]) == class_colour(1)


def test_boxes_of_any_kind_on_any_picture():
    boxes = (-500, -500, 900, 900), (290, 190, 299, 199), (0, 0, 1, 1), (1e9, 1e9, 2e9, 2e9)
    for box, size in product(boxes, [(200, 300), (9, 12), (1, 1)]):
        image = np.zeros((*size, 3), np.uint8)
        drawn = draw_detections(image, detections(box), ["a rather long name of a class"])
        assert drawn.shape == image.shape and drawn.any()


def test_text_of_boxes_on_each_other_can_be_read():
    image, box, names = np.zeros((200, 300, 3), np.uint8), (50, 60, 250, 190), ["cat", "dog", "cow"]
    drawn = draw_detections(image, detections(box, box, box), names)
    plate = (draw_detections(image, detections(box), names)[40:60] == class_colour(0)).all(-1).sum()
    for label in range(3):
        assert (drawn == class_colour(label)).all(-1).sum() > plate / 2


def test_names_of_any_script_are_drawn_where_a_font_has_them():
    def drawn(name: str) -> bytes:
        image = np.zeros((200, 300, 3), np.uint8)
        return draw_detections(image, detections((50, 60, 150, 160)), [name]).tobytes()

    known = ["class 0", "\u043a\u043e\u0442", "\u0441\u043e\u043d", "Fu\xdf"]
    assert len({drawn(name) for name in known}) == 4
    assert drawn("\uffff") == drawn("\u043a\uffff") == drawn("class 0")  # no font has the last
    for name in ("\u732b", "\u732b \u043a"):  # Chinese, if a font here has it
        assert (drawn(name) == drawn("class 0")) == (plots.drawable([name]) == ["class 0"])


def test_chart_takes_names_of_any_script_and_no_formula(tmp_path, recwarn):
    write_results(tmp_path / "results.csv", 3, {})
    for name in ("\u043a\u043e\u0442", "$a$ \\b_$", *plots.drawable(["\u732b", "\uffff"])):
        plots.training_chart(tmp_path / "results.csv", tmp_path / "chart.png", name)
    assert not recwarn.list  # of missing letters


def test_lines_are_as_wide_as_the_picture_needs():
    def widths(side: int, texts) -> list[int]:
        boxes = np.array([(0.1, 0.3, 0.4, 0.9), (0.6, 0.3, 0.9, 0.9)]) * side
        picture = np.zeros((side, side, 3), np.uint8)
        row = plots.draw_boxes(picture, boxes, [(9, 9, 9), (7, 7, 7)], texts)[round(side * 0.6)]
        return [int((row == each).all(1).sum()) // 2 for each in ((9, 9, 9), (7, 7, 7))]

    small, large = widths(64, ["a", "a"])[0], widths(2000, ["a", "a"])[0]
    assert 2 <= small < large
    for side in (64, 2000):
        thick, thin = widths(side, ["", None])
        assert 2 <= thin <= thick / 1.5


def plates(boxes, size=(300, 400)):
    """(n, 4) xyxy of the texts' plates: what a text changes in a picture of these boxes"""
    colours = [(0, 0, 40 + index) for index in range(len(boxes))]
    empty, found = np.zeros((*size, 3), np.uint8), []
    full = plots.draw_boxes(empty, boxes, colours, ["name"] * len(boxes))
    bare = plots.draw_boxes(empty, boxes, colours, [""] * len(boxes))
    for colour in colours:
        y, x = ((full == colour).all(2) & (bare != colour).any(2)).nonzero()
        found.append((x.min(), y.min(), x.max(), y.max()))
    return np.array(found)


@pytest.mark.parametrize(
    "boxes",
    [
        [(100, 100, 140, 140), (100, 80, 140, 96)],  # one where the text of the other would be
        [(100, 0, 140, 30), (200, 270, 240, 299)],  # at the top and at the bottom
        [(0, 100, 30, 130), (370, 100, 399, 130)],  # at the sides
        [(50, 50, 350, 250), (100, 100, 120, 120), (100, 86, 120, 96)],  # on a large one
    ],
)
def test_texts_do_not_cover_objects_where_there_is_room(boxes):
    small = [box for box in boxes if box[2] - box[0] < 100]
    for left, top, right, bottom in plates(boxes):
        for x1, y1, x2, y2 in small:
            assert right <= x1 or x2 <= left or bottom <= y1 or y2 <= top


def write_results(path, count: int, maps: dict) -> None:
    rows = ((i, 1000 / i, 0.001, maps.get(i, ""), 50 / i, 0) for i in range(1, count + 1))
    with path.open("w", newline="") as file:
        file.write("iteration,loss,rate,map,class_loss_139,iou_loss_139\n")
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_chart_of_none_few_and_many_rows(tmp_path, count):
    maps = {4: 0.5, 8: 0.75, 12: 0.75, 16: 0.25}
    write_results(tmp_path / "results.csv", count, maps)
    plots.training_chart(tmp_path / "results.csv", tmp_path / "chart.svg", "run")
    assert (tmp_path / "chart.svg").exists() == bool(count)
    if count == 40:  # of equals the last, whose weights are kept
        assert "mAP 25.0%, best 75.0% at 12 " in (tmp_path / "chart.svg").read_text()


@pytest.mark.parametrize("loss", [(2.2, 2.6), (0.5, 20), (1200, 1201), (1e-3, 1e4)])
def test_loss_axis_has_plain_numbers(tmp_path, loss):
    write_results(tmp_path / "results.csv", 0, {})
    with (tmp_path / "results.csv").open("a") as file:
        file.writelines(f"{i},{value},0.001,,50,0\n" for i, value in enumerate(loss))
    plots.training_chart(tmp_path / "results.csv", tmp_path / "chart.svg")
    texts = re.findall("<!-- ([0-9.]+) -->", (tmp_path / "chart.svg").read_text())
    inside = {text for text in texts if loss[0] <= float(text) <= loss[1]}
    assert len(inside) >= 2


def test_long_training_keeps_its_last_row_and_every_map(tmp_path):
    count, maps = 2 * plots.POINTS + 1, {2: 0.5, 77: 0.25}
    write_results(tmp_path / "results.csv", count, maps)
    columns = plots.read_results(tmp_path / "results.csv")
    iterations, measured = columns["iteration"], np.isfinite(columns["map"])
    assert len(iterations) < count and iterations[-1] == count
    assert dict(zip(iterations[measured], columns["map"][measured], strict=True)) == maps


def test_at_most_so_many_mistakes_are_named_missed_ones_first(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 100, 3), np.uint8))
    drawn = []
    monkeypatch.setattr(plots, "draw_boxes", lambda *rest: drawn.append(rest))
    found = [(0, 0.9 - 0.01 * index, 40 + 10 * (index % 5)) for index in range(15)]
    each = make_record(found, [(0, 0), (0, 20)], path=tmp_path / "a.png")
    plots.draw_mistakes(each, metrics.pair(each), ["x"])
    texts = drawn[0][3]
    assert len([text for text in texts if text]) == plots.PLATES
    assert all(texts[: plots.PLATES]) and all(text == "" for text in texts[plots.PLATES :])


def test_mistakes_are_drawn_where_they_are(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 100, 3), np.uint8))
    each = make_record([(0, 0.9, 10), (0, 0.8, 60)], [(0, 12), (0, 30)], path=tmp_path / "a.png")
    image = plots.draw_mistakes(each, metrics.pair(each), ["x"])  # 6.4 times as large

    def lines(left: float, colour) -> int:
        return (image[40, round(left * 6.4) - 6 : round(left * 6.4) + 6] == colour).all(1).sum()

    right = lines(12, plots.TRUTH), lines(10, plots.FOUND)
    wrong = lines(30, plots.TRUTH), lines(60, plots.FOUND)
    assert 0 < right[0] == right[1] < wrong[0] == wrong[1]


def test_of_a_crowd_the_first_are_named():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 198, (5000, 2))
    boxes, image = np.c_[corners, corners + 2], np.zeros((200, 200, 3), np.uint8)

    def drawn(named):
        texts = ["cell"] * named + [""] * (5000 - named)
        return plots.draw_boxes(image, boxes, [class_colour(0)] * 5000, texts)

    assert np.array_equal(drawn(5000), drawn(200))
    assert not np.array_equal(drawn(200), drawn(100))
