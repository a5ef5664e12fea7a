"""Anchors by k-means: separable clusters are found, IoU by hand, only anchors change in the cfg."""

import re

import cv2
import numpy as np
import pytest

from yolov4 import anchors
from yolov4.cfg import parse_cfg, read_cfg
from yolov4.networks import cfg_text


def test_iou_of_sizes_by_hand():
    sizes, others = np.array([[10.0, 20], [30, 30]]), np.array([[10.0, 20], [20, 10], [60, 30]])
    wanted = [[1, 100 / 300, 200 / 1800], [200 / 900, 200 / 900, 900 / 1800]]
    np.testing.assert_allclose(anchors.size_iou(sizes, others), wanted)


@pytest.mark.parametrize("seed", range(4))
def test_separable_clusters_are_found(seed):
    rng, clusters = np.random.default_rng(seed), (((10, 40), 5), ((50, 30), 60), ((200, 210), 300))
    parts = [np.array(centre) * rng.uniform(0.95, 1.05, (n, 2)) for centre, n in clusters]
    found = anchors.kmeans_anchors(np.concatenate(parts), 3, seed)
    np.testing.assert_allclose(found, [part.mean(0) for part in parts])  # by area


def test_as_many_anchors_as_boxes_are_the_boxes():
    sizes = np.array([[8.0, 8], [4, 4], [100, 3], [4, 4]])
    np.testing.assert_array_equal(anchors.kmeans_anchors(sizes, 3), [[4, 4], [8, 8], [100, 3]])
    with pytest.raises(ValueError, match="4 anchors from 3 different boxes"):
        anchors.kmeans_anchors(sizes, 4)


@pytest.mark.parametrize(("letter_box", "wanted"), [(False, (50, 20)), (True, (50, 10))])
def test_box_sizes_are_in_pixels_of_the_network(tmp_path, letter_box, wanted):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 200, 3), np.uint8))
    (tmp_path / "a.txt").write_text("0 .5 .5 .5 .2\n")
    found = anchors.box_sizes([tmp_path / "a.png"], (100, 100), letter_box)
    np.testing.assert_allclose(found, [wanted])


@pytest.fixture
def data(tmp_path):
    """A list of one image with six kinds of boxes; a cfg with a comment and Windows' line ends."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    sides = (0.05, 0.1, 0.2, 0.4, 0.6, 0.9)
    (tmp_path / "a.txt").write_text("".join(f"0 .5 .5 {side} {side}\n" for side in sides))
    (tmp_path / "list.txt").write_text("a.png\n")
    text = "# a comment \u00e9\r\n" + cfg_text("yolov4-tiny", "test").replace("\n", "\r\n")
    (tmp_path / "old.cfg").write_bytes(text.encode())
    return tmp_path


def test_new_anchors_change_their_lines_alone(data):
    network, text = read_cfg(data / "old.cfg"), (data / "old.cfg").read_bytes().decode()
    found, overlap, lines = anchors.fit(data / "list.txt", network)
    assert found[:, 0].tolist() == [21, 42, 83, 166, 250, 374]  # of 416, whole pixels
    assert "\n".join(lines).count("mean IoU") == 2 and f"mean IoU {overlap:.4f}" in lines[1]
    new = anchors.with_anchors(network, text, found)
    assert new != text
    assert re.sub("anchors=.*?\r", "\r", new) == re.sub("anchors=.*?\r", "\r", text)
    assert all(np.array_equal(yolo.anchors, found) for yolo in anchors.heads(parse_cfg(new)))
    with pytest.raises(ValueError, match=r"old\.cfg: "):
        anchors.with_anchors(network, text, found[:3])
