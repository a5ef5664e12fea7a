"""Anchors by k-means: separable clusters are found, IoU as worked by hand, the cfg changes in its anchors only.
Source: none; the cases are this project's."""

import re
import sys

import cv2
import numpy as np
import pytest

from yolov4 import anchors
from yolov4.blueprint import cfg_text
from yolov4.cfg import parse_cfg


def test_iou_of_sizes_by_hand():
    iou = anchors.size_iou(np.array([[10.0, 20], [30, 30]]), np.array([[10.0, 20], [20, 10], [60, 30]]))
    np.testing.assert_allclose(iou, [[1, 100 / 300, 200 / 1800], [200 / 900, 200 / 900, 900 / 1800]])


@pytest.mark.parametrize("seed", range(4))
def test_separable_clusters_are_found(seed):
    centres = np.array([[10.0, 40], [50, 30], [200, 210]])
    rng = np.random.default_rng(seed)
    parts = [centre * rng.uniform(0.95, 1.05, (count, 2)) for centre, count in zip(centres, (5, 60, 300), strict=True)]
    found = anchors.kmeans_anchors(np.concatenate(parts), 3, seed)
    np.testing.assert_allclose(found, [part.mean(0) for part in parts])  # by area, whatever the counts


def test_as_many_anchors_as_boxes_are_the_boxes():
    sizes = np.array([[8.0, 8], [4, 4], [100, 3], [4, 4]])
    np.testing.assert_array_equal(anchors.kmeans_anchors(sizes, 3), [[4, 4], [8, 8], [100, 3]])
    with pytest.raises(ValueError, match="4 anchors from 3 different boxes"):
        anchors.kmeans_anchors(sizes, 4)


def test_a_seed_gives_the_same_anchors_and_more_anchors_fit_better():
    sizes = np.exp(np.random.default_rng(0).normal(3, 1, (400, 2)))
    np.testing.assert_array_equal(anchors.kmeans_anchors(sizes, 5, 1), anchors.kmeans_anchors(sizes, 5, 1))
    means = [anchors.size_iou(sizes, anchors.kmeans_anchors(sizes, k)).max(1).mean() for k in (1, 3, 6, 9)]
    assert means == sorted(means)


def test_description_by_hand():
    sizes = np.array([[10.0, 10], [10, 10], [20, 20], [40, 10]])
    lines = anchors.describe(sizes, np.array([[10, 10], [20, 20], [90, 90]]), [(1,), (2,)]).splitlines()
    # IoU 1, 1, 1, and of 40 x 10 with 20 x 20: 200 / 600, the best
    assert lines[0] == "mean IoU 0.8333, IoU > 0.5 for 75.0% of 4 boxes"
    assert "head 1:  50.0%" in lines[1] and "head 2:   0.0%" in lines[2] and "no head:  50.0%" in lines[3]


@pytest.mark.parametrize(("letter_box", "wanted"), [(False, (50, 20)), (True, (50, 10))])
def test_box_sizes_are_in_pixels_of_the_network(tmp_path, letter_box, wanted):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 200, 3), np.uint8))
    (tmp_path / "a.txt").write_text("0 .5 .5 .5 .2\n")
    np.testing.assert_allclose(anchors.box_sizes([tmp_path / "a.png"], (100, 100), letter_box), [wanted])


@pytest.fixture
def data(tmp_path):
    """A list of one image whose labels are six kinds of boxes, and a cfg with comments and Windows' line ends"""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    sides = (0.05, 0.1, 0.2, 0.4, 0.6, 0.9)
    (tmp_path / "a.txt").write_text("".join(f"0 .5 .5 {side} {side}\n" for side in sides))
    (tmp_path / "list.txt").write_text("a.png\n")
    text = "# a comment \u00e9\r\n" + cfg_text("yolov4-tiny", "test").replace("\n", "\r\n")
    (tmp_path / "old.cfg").write_bytes(text.encode())
    return tmp_path


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["anchors", *map(str, arguments)])
    anchors.main()


def test_command_writes_a_cfg_that_differs_in_its_anchors_only(data, monkeypatch, capsys):
    run(monkeypatch, data / "list.txt", "--cfg", data / "old.cfg", "--out", data / "new.cfg")
    old, new = ((data / name).read_bytes().decode() for name in ("old.cfg", "new.cfg"))
    assert old != new and re.sub("anchors=.*?\r", "\r", old) == re.sub("anchors=.*?\r", "\r", new)
    wanted = tuple((float(side), float(side)) for side in (21, 42, 83, 166, 250, 374))  # of 416, whole pixels
    yolos = anchors.heads(parse_cfg(new))
    assert len(yolos) == 2 and all(yolo.anchors == wanted for yolo in yolos)
    printed = capsys.readouterr().out
    assert printed.count("mean IoU") == 2 and "New anchors help" in printed and "no head" in printed


def test_command_says_in_one_line_what_does_not_fit(data, monkeypatch):
    arguments = (data / "list.txt", "--cfg", data / "old.cfg", "--out", data / "new.cfg")
    for more, found in (("--size=320x320", "has 416x416"), ("--size=wide", "WIDTHxHEIGHT"), ("--num=3", "6 anchors")):
        with pytest.raises(SystemExit, match=found):
            run(monkeypatch, *arguments, more)
    assert not (data / "new.cfg").exists()
