"""Boxes and text stay inside the picture and can be seen; the chart is a picture of what the rows say.
Source: none; the views of this project."""

import csv
import itertools

import cv2
import numpy as np
import pytest
import torch

from yolov4 import plots
from yolov4.decoding import Detections
from yolov4.plots import class_colour, contact_sheet, draw_detections, draw_labels, training_chart


def detections(*boxes) -> Detections:
    count = len(boxes)
    scores = torch.linspace(0.9, 0.5, count) if count else torch.zeros(0)
    return Detections(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), scores, torch.arange(count))


def test_the_box_is_where_it_should_be():
    image = np.zeros((200, 300, 3), np.uint8)
    drawn = draw_detections(image, detections((50, 60, 150, 160)), ["cat"])
    assert not image.any()  # a copy
    assert tuple(drawn[160, 100]) == class_colour(0) and tuple(drawn[100, 50]) == class_colour(0)
    assert not drawn[100, 100].any() and not drawn[170:].any() and not drawn[:, 160:].any()


@pytest.mark.parametrize("box", [(-500, -500, 900, 900), (290, 190, 299, 199), (0, 0, 1, 1), (1e9, 1e9, 2e9, 2e9)])
@pytest.mark.parametrize("size", [(300, 200), (12, 9), (1, 1)])
def test_boxes_of_any_kind_on_any_picture(box, size):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    drawn = draw_detections(image, detections(box), ["a rather long name of a class"])
    assert drawn.shape == image.shape and drawn.any()


def test_text_of_boxes_on_each_other_can_be_read():
    image = np.zeros((200, 300, 3), np.uint8)
    drawn = draw_detections(image, detections(*[(50, 60, 250, 190)] * 3), ["cat", "dog", "cow"])
    colours = {tuple(pixel) for pixel in drawn.reshape(-1, 3)}
    assert {class_colour(0), class_colour(1), class_colour(2)} <= colours
    one = draw_detections(image, detections((50, 60, 250, 190)), ["cat"])
    plate = (one[40:60, 50:110] == class_colour(0)).all(-1).sum()
    for label in (1, 2):
        assert (drawn == class_colour(label)).all(-1).sum() > plate / 2


def test_labels_are_relative():
    labels = np.array([[1, 0.5, 0.5, 0.5, 0.25]], np.float32)
    drawn = draw_labels(np.zeros((200, 400, 3), np.uint8), labels, ["cat", "dog"])
    assert tuple(drawn[125, 200]) == class_colour(1) and tuple(drawn[100, 100]) == class_colour(1)
    assert not draw_labels(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 5), np.float32), []).any()


def test_a_name_beyond_ascii_is_drawn_as_a_number():
    image = np.zeros((200, 300, 3), np.uint8)
    chinese = draw_detections(image, detections((50, 60, 150, 160)), ["\u732b"])
    numbered = draw_detections(image, detections((50, 60, 150, 160)), ["class 0"])
    np.testing.assert_array_equal(chinese, numbered)


def test_colours_differ_and_stay():
    colours = [np.array(class_colour(label)) for label in range(20)]
    assert min(np.abs(a - b).sum() for a, b in itertools.combinations(colours, 2)) > 40
    assert class_colour(3) == class_colour(3)


def test_contact_sheet_shows_every_picture():
    images = [np.full((30 + 10 * i, 60, 3), 50 + i, np.uint8) for i in range(5)]
    sheet = contact_sheet(images, side=64)
    assert sheet.shape == (2 * 64, 3 * 64, 3)
    assert all((sheet == 50 + i).all(-1).sum() > 500 for i in range(5))


def rows(count: int) -> list[dict]:
    return [
        {"iteration": i, "loss": 1000 / i, "rate": 0.001, "map": 0.5 if i % 10 == 0 else ""}
        for i in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_chart_of_few_and_many_rows(tmp_path, count):
    training_chart(rows(count), tmp_path / "chart.png", "run")
    picture = cv2.imread(str(tmp_path / "chart.png"))
    assert picture.shape[0] > 400 and picture.std() > 5


def test_chart_from_the_file_equals_that_from_its_rows(tmp_path):
    with (tmp_path / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["iteration", "loss", "rate", "map"])
        writer.writeheader()
        writer.writerows(rows(20))
    training_chart(tmp_path / "results.csv", tmp_path / "a.png", "run")
    training_chart(rows(20), tmp_path / "b.png", "run")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png")), cv2.imread(str(tmp_path / "b.png")))


def test_chart_names_the_iteration_whose_weights_are_kept(tmp_path):
    maps = {4: 0.5, 8: 0.75, 12: 0.75, 16: 0.25}
    training_chart([row | {"map": maps.get(row["iteration"], "")} for row in rows(20)], tmp_path / "chart.svg", "run")
    said = (tmp_path / "chart.svg").read_text()
    assert "mAP 25.0 %, best 75.0 % at 12 " in said


def test_chart_of_a_long_training_shows_some_rows_the_last_and_all_with_a_map(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "POINTS", 10)
    maps = {33: 0.5, 60: 0.25}
    with (tmp_path / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["iteration", "loss", "rate", "map"])
        writer.writeheader()
        writer.writerows(row | {"map": maps.get(row["iteration"], "")} for row in rows(95))
    numbers = [int(row["iteration"]) for row in plots.read_results(tmp_path / "results.csv")]
    assert numbers == sorted([*range(5, 96, 10), 33, 60])
    training_chart(tmp_path / "results.csv", tmp_path / "chart.svg")
    assert "iteration 95, " in (tmp_path / "chart.svg").read_text()
    (tmp_path / "results.csv").write_text("")
    assert plots.read_results(tmp_path / "results.csv") == []


def test_a_loss_that_is_no_number_is_left_out(tmp_path):
    odd = [
        {"iteration": i, "loss": loss, "rate": "", "map": ""} for i, loss in enumerate(("5", "nan", "inf", "0", "4"))
    ]
    training_chart(odd, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").exists()


def test_no_rows_no_chart(tmp_path):
    training_chart([], tmp_path / "chart.png")
    assert not (tmp_path / "chart.png").exists()


def test_chart_shows_the_loss_terms_of_each_head(tmp_path):
    heads = [row | {"class_loss_139": 50 / row["iteration"], "iou_loss_139": 0} for row in rows(20)]
    training_chart(rows(20), tmp_path / "plain.png")
    training_chart(heads, tmp_path / "terms.png")
    training_chart([row | {"iou_loss_139": 3} for row in heads], tmp_path / "more.png")
    plain, terms, more = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("plain", "terms", "more"))
    assert terms.shape[0] > plain.shape[0] and terms.shape == more.shape and (terms != more).any()
