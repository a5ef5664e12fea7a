"""Darknet's command lines: the lines that scripts read, against those of the compiled program.
Source: golden/command_lines holds what AlexeyAB's Darknet (CPU, without OpenCV) printed on .png
copies of the same photographs, which it decodes as OpenCV does."""

import json
import re
import shutil
import sys
from io import StringIO

import cv2
import numpy as np
import pytest
from conftest import ROOT, draw
from test_cli import greys
from test_evaluation import CFG, make_sure_model
from test_video import write_video

from yolov4.networks import cfg_text
from yolov4.weights import save_weights

GOLDEN = ROOT / "tests/golden/command_lines"
TINY = "coco.data", "yolov3-tiny.cfg", "yolov3-tiny.weights"


@pytest.fixture
def tiny(shared, tmp_path):
    for name in ("yolov3-tiny.cfg", "yolov3-tiny.weights", "coco.names"):
        shutil.copy(shared / "models/yolov3-tiny" / name, tmp_path)
    text = "classes=80\ntrain=list.txt\nvalid=list.txt\nnames=coco.names\nbackup=backup\n"
    (tmp_path / "coco.data").write_text(text)
    return tmp_path


def as_png(source, target):
    target.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(target), cv2.imread(str(source)))


def test_detector_test_prints_darknets_lines(tiny, shared, call, monkeypatch):
    for name in ("dog", "person"):
        as_png(shared / f"images/{name}.jpg", tiny / f"{name}.png")
    monkeypatch.setattr(sys, "stdin", StringIO("dog.png\nperson.png\n"))
    flags = ["-thresh", ".25", "-ext_output", "-dont_show", "-out", "result.json", "-save_labels"]
    code, out, err = call("detector", "test", *TINY, *flags)
    assert (code, err) == (0, "")
    time = re.compile(r"in [\d.]+ milli")
    assert time.sub("", out) == time.sub("", (GOLDEN / "test.txt").read_text()).rstrip("\n")
    expected, found = (
        json.loads(path.read_text()) for path in (GOLDEN / "result.json", tiny / "result.json")
    )
    for darknet, here in zip(expected, found, strict=True):
        assert here.keys() == darknet.keys() and here["filename"] == darknet["filename"]
        key = lambda each: (each["class_id"], each["confidence"])  # noqa: E731
        pairs = zip(*(sorted(each["objects"], key=key) for each in (darknet, here)), strict=True)
        for one, other in pairs:
            assert one.keys() == other.keys() and one["name"] == other["name"]
            assert other["confidence"] == pytest.approx(one["confidence"], abs=1e-3)
            box, same = (list(each["relative_coordinates"].values()) for each in (one, other))
            assert same == pytest.approx(box, abs=1e-3)
    rows = np.array([line.split() for line in (tiny / "dog.txt").read_text().splitlines()], float)
    labelled = [[1, .5129, .5564, .4298, .4321], [2, .7508, .2211, .2891, .1538],
                [7, .7550, .2224, .1304, .1163], [16, .3297, .6405, .3365, .5172]]  # fmt: skip
    assert rows[rows[:, 0].argsort()] == pytest.approx(np.array(labelled), abs=2e-4)
    assert cv2.imread(str(tiny / "predictions.jpg")) is not None


def test_detector_map_prints_darknets_table(tiny, shared, call):
    source = shared / "datasets/coco128_val"
    for path in sorted(source.glob("images/*.jpg")):
        as_png(path, tiny / f"png/{path.stem}.png")
        shutil.copy(source / f"labels/{path.stem}.txt", tiny / "png")
    lines = (f"png/{path.stem}.png" for path in sorted(source.glob("images/*.jpg")))
    (tiny / "list.txt").write_text("\n".join(lines))
    code, out, err = call("detector", "map", *TINY, "-iou_thresh", ".75", "-points", 11)
    assert (code, err) == (0, "")
    expected = (GOLDEN / "map.txt").read_text().partition("\nSet -points")[0].splitlines()
    out = out.splitlines()[1:]
    # Darknet counts the area below its curve in float32
    mean = [float(lines[-1].split()[5].strip(",")) for lines in (expected, out)]
    assert mean[1] == pytest.approx(mean[0], abs=1e-6) and out[:-1] == expected[1:-1]


@pytest.fixture
def small(tmp_path):
    """A network that finds class 0 in the middle half of everything, and a .data file."""
    save_weights(make_sure_model(), tmp_path / "x.weights", seen=640)
    (tmp_path / "x.cfg").write_text(CFG)
    (tmp_path / "x.names").write_text("cat\ndog\n")
    for number in range(4):
        path = draw(tmp_path / f"{number}.png", grey=10 * number)
        path.with_suffix(".txt").write_text("0 .5 .5 .5 .5\n1 .2 .2 .1 .3\n")
    (tmp_path / "list.txt").write_text("".join(f"{number}.png\n" for number in range(4)))
    text = "classes=2\ntrain=list.txt\nvalid=list.txt\nnames=x.names\nbackup=kept\n"
    (tmp_path / "x.data").write_text(text)
    return tmp_path


def test_detector_demo_writes_the_video(small, call):
    source = write_video(small / "v.avi", 5)
    flags = ("-out_filename", "out.mp4", "-dont_show", "-mjpeg_port", "8090", "-ext_output")
    words, before = (
        ("detector", "demo", "x.data", "x.cfg", "x.weights", source),
        source.read_bytes(),
    )
    code, _, err = call(*words, *flags)
    assert code == 0 and "-ext_output, -mjpeg_port" in err and err.count("\n") == 1
    assert call(*words, *flags)[0] == 0  # replaces its own
    assert greys(small / "out.mp4") == pytest.approx([1, 2, 3, 4, 5], abs=1.5)
    code, _, err = call(*words, "-out_filename", source, "-dont_show")
    assert code == 1 and "v.avi: " in err and source.read_bytes() == before


def test_detector_test_keeps_a_picture_of_others(small, call):
    picture = draw(small / "predictions.jpg", grey=7)
    before, words = picture.read_bytes(), ("test", "x.data", "x.cfg", "x.weights", "0.png")
    code, out, err = call("detector", *words, "-dont_show")
    assert code == 1 and "cat: 100%" in out and "predictions.jpg: " in err
    assert picture.read_bytes() == before
    picture.unlink()
    for _ in range(2):
        assert call("detector", *words, "-dont_show")[0] == 0


def test_detector_calc_anchors_and_partial(small, call):
    flags = ("-num_of_clusters", 2, "-width", 416, "-height", 416)
    code, out, _ = call("detector", "calc_anchors", "x.data", *flags)
    assert code == 0 and "anchors =  42,125, 208,208" in out and "avg IoU = 99.44 %" in out
    assert (small / "anchors.txt").read_text() == " 42,125, 208,208"
    assert call("partial", "x.cfg", "x.weights", "part.weights", 1)[0] == 0
    whole, part = ((small / f"{name}.weights").read_bytes() for name in ("x", "part"))
    assert part[:20] == bytes((0, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, *[0] * 8))  # seen 0
    assert part[20:] == whole[20 : len(part)] and 20 < len(part) <= len(whole)


def test_detector_train_logs_every_iteration_as_darknet(small, call):
    text = cfg_text("shapes", "", classes=2, batch=2, max_batches=3)
    (small / "t.cfg").write_text(text)
    code, out, err = call("detector", "train", "x.data", "t.cfg", "-map", "-dont_show", "-clear")
    assert (code, err) == (0, ""), err
    line = (
        r"^ (\d+): [\d.]+, [\d.]+ avg loss, [\d.]+ rate, [\d.]+ seconds, (\d+) images, [\d.]+ hours"
    )
    assert re.findall(line, out, re.M) == [("1", "2"), ("2", "4"), ("3", "6")]
    assert (small / "kept/t/t_last.weights").exists()


@pytest.mark.parametrize("words", ["", "test", "draw x.data x.cfg", "map x.data"])
def test_wrong_use_is_one_line(small, call, words):
    code, _, err = call("detector", *words.split())
    assert code == 1 and err.count("\n") == 1 and "calc_anchors" in err
