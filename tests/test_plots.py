"""Boxes and text are seen and stay inside the picture; the chart shows what results.csv says."""

import csv
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


def test_mistakes_are_drawn_where_they_are(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 100, 3), np.uint8))
    each = make_record([(0, 0.9, 10), (0, 0.8, 60)], [(0, 12), (0, 30)], path=tmp_path / "a.png")
    image = plots.draw_mistakes(each, metrics.pair(each), ["x"])  # 6.4 times as large

    def lines(left: float, colour) -> int:
        return (image[40, round(left * 6.4) - 6 : round(left * 6.4) + 6] == colour).all(1).sum()

    right = lines(12, plots.TRUTH), lines(10, plots.FOUND)
    wrong = lines(30, plots.TRUTH), lines(60, plots.FOUND)
    assert 0 < right[0] == right[1] < wrong[0] == wrong[1]


def drawn_with(name):
    image = np.full((240, 320, 3), 90, np.uint8)
    return draw_detections(image, detections((100, 100, 200, 200)), [name])


def test_names_in_any_script_are_drawn_and_others_are_numbers():
    assert (drawn_with("платформа") != drawn_with("class 0")).any()
    assert (drawn_with("Fußgänger") != drawn_with("Fussganger")).any()
    nothing_has_it = "\U0003fffd"
    assert (drawn_with(nothing_has_it) == drawn_with("class 0")).all()
    assert plots.shown_names(["a", nothing_has_it, "ж"]) == ["a", "class 1", "ж"]
    with plots.fonts(["a", "ж"]) as _:
        figure = plots.confusion(np.eye(3, dtype=int), ["a", "ж"])
    assert "ж" in [tick.get_text() for tick in figure.axes[0].get_xticklabels()]


def test_no_text_is_written_over_a_small_object():
    image = np.full((480, 640, 3), 90, np.uint8)
    small = [(60 * n + 20, 186, 60 * n + 40, 196) for n in range(9)]  # where the text would be
    drawn = draw_detections(image, detections((20, 200, 600, 400), *small), ["one long name"] * 10)
    for left, top, right, bottom in small:
        assert (drawn[top + 3 : bottom - 2, left + 3 : right - 2] == 90).all()


def test_lines_are_wider_in_large_pictures_and_never_below_two_pixels():
    widths = []
    for size in ((48, 64), (480, 640), (2160, 3840)):
        box = size[1] // 4, size[0] // 4, size[1] * 3 // 4, size[0] * 3 // 4
        drawn = draw_detections(np.zeros((*size, 3), np.uint8), detections(box), ["a"])
        widths.append(int(drawn[size[0] // 2, : size[1] // 2].any(1).sum()))
    assert 2 <= widths[0] <= widths[1] < widths[2]
