"""detect.py and val.py as they are called: files, folders, lists, videos, runs, and what goes wrong.
Source: golden/detections_real; Darknet's keys of the .json."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from real_detections import REAL_MODELS, photograph, unmatched_detections

from yolov4.cfg import parse_cfg
from yolov4.model import Darknet
from yolov4.weights import save_weights

CFG = """[net]
width=32
height=32
[convolutional]
filters=7
size=1
stride=32
activation=linear
[yolo]
mask=0
anchors=16,16
classes=2
num=1
"""


@pytest.fixture
def call(root, monkeypatch, tmp_path, capsys):
    """call("detect", *arguments) -> exit code, stdout, stderr; runs in tmp_path."""
    monkeypatch.syspath_prepend(root)
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        try:
            __import__(script).main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def weights(tmp_path):
    """Weights that find class 0 in the middle half of everything, with cfg and names beside them."""
    model = Darknet(parse_cfg(CFG))
    with torch.no_grad():
        model.layers[0][0].weight.zero_()
        model.layers[0][0].bias.copy_(torch.tensor([0, 0, 0, 0, 9, 9, -9.0]))
    folder = tmp_path / "net"
    folder.mkdir()
    save_weights(model, folder / "x_best.weights", seen=0)
    (folder / "x.cfg").write_text(CFG)
    (folder / "x.names").write_text("cat\ndog\n")
    return folder / "x_best.weights"


def picture(path, width=80, height=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    return path


def video(path, frames: int):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(frames):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    return path


@pytest.fixture
def run_folder(weights, tmp_path):
    """A training run with a validation list of ten pictures."""
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    for path in weights.parent.iterdir():
        path.rename(folder / path.name)
    for number in range(10):
        picture(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "valid.txt").write_text("".join(f"images/{number}.png\n" for number in range(10)))
    settings = {"cfg": "x.cfg", "valid": str(tmp_path / "valid.txt"), "difficult": None}
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def test_help_is_quick(root):
    for script in ("detect", "val"):
        code = f"import sys, {script}; sys.argv = ['x', '--help']\ntry: {script}.main()\n"
        code += "finally: assert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "--weights" in done.stdout, done.stderr


def test_a_picture_is_drawn_saved_and_described(call, weights, tmp_path):
    code, out, _ = call("detect", picture(tmp_path / "a.png"), "--weights", weights, "--save-txt", "--json", "o.json")
    assert code == 0 and "x.cfg" in out and "cat: 100%" in out
    assert cv2.imread("runs/detect/a.jpg").std() > 1
    label, *box = (tmp_path / "runs/detect/labels/a.txt").read_text().split()
    assert label == "0" and [float(value) for value in box] == pytest.approx([0.5] * 4, abs=1e-5)
    (frame,) = json.loads((tmp_path / "o.json").read_text())
    assert list(frame) == ["frame_id", "filename", "objects"] and frame["frame_id"] == 1
    (found,) = frame["objects"]
    assert found["name"] == "cat" and found["class_id"] == 0 and found["confidence"] > 0.99
    assert found["relative_coordinates"] == pytest.approx(
        {"center_x": 0.5, "center_y": 0.5, "width": 0.5, "height": 0.5}
    )


def test_folders_lists_and_globs_find_the_same(call, weights, tmp_path):
    for name in ("a.png", "b.jpg"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.md").write_text("no picture")
    (tmp_path / "list.txt").write_text("in/a.png\nin/b.jpg\n")
    for number, source in enumerate(("in", "list.txt", "in/*.[pj]*g")):
        code, _, _ = call("detect", source, "--weights", weights, "--out", f"out{number}", "--batch", 2)
        assert code == 0
        assert sorted(path.name for path in (tmp_path / f"out{number}").iterdir()) == ["a.jpg", "b.jpg"]


def test_one_name_twice_gives_two_files(call, weights, tmp_path):
    sources = [picture(tmp_path / folder / name) for folder in "ab" for name in ("x.jpg", "x.png")]
    code, _, _ = call("detect", *sources, "--weights", weights, "--out", "out", "--save-txt")
    assert code == 0
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.jpg")) == ["x", "x_2", "x_3", "x_4"]
    assert len(list((tmp_path / "out/labels").iterdir())) == 4


def test_a_source_is_never_written_over(call, weights, tmp_path):
    source = picture(tmp_path / "out" / "x.jpg")
    before = source.read_bytes()
    assert call("detect", source, "--weights", weights, "--out", "out")[0] == 0
    assert source.read_bytes() == before and (tmp_path / "out/x_2.jpg").exists()


def test_what_is_no_image_is_named_and_skipped(call, weights, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    (tmp_path / "bad.mp4").write_text("no video")
    sources = [
        tmp_path / "bad.jpg",
        tmp_path / "bad.mp4",
        tmp_path / "gone.jpg",
        picture(tmp_path / "good.png"),
    ]
    code, _, err = call("detect", *sources, "--weights", weights, "--out", "out")
    assert code == 1
    assert all(name in err for name in ("bad.jpg", "bad.mp4", "gone.jpg")) and "good.png" not in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.jpg"]


def test_a_video_comes_back_as_long(call, weights, tmp_path):
    source = video(tmp_path / "v.mp4", 7)
    code, out, _ = call("detect", source, "--weights", weights, "--out", "out", "--json", "o.json", "--batch", 3)
    assert code == 0 and "7 frames" in out
    capture = cv2.VideoCapture(str(tmp_path / "out/v.mp4"))
    assert sum(capture.read()[0] for _ in range(9)) == 7
    assert [frame["frame_id"] for frame in json.loads((tmp_path / "o.json").read_text())] == list(range(1, 8))


@pytest.mark.parametrize("model", REAL_MODELS, ids=lambda model: model.folder)
def test_real_photographs_as_darknet(call, shared, golden, tmp_path, model):
    cfg, weights = model.files(shared)
    wanted = golden(model.detections)
    sources = [photograph(shared, each["image"]) for each in wanted]
    code, _, err = call(
        "detect",
        *sources,
        "--cfg",
        cfg,
        "--weights",
        weights,
        "--thresh",
        0.05,
        "--out",
        "out",
        "--json",
        "o.json",
    )
    assert code == 0, err
    frames = json.loads((tmp_path / "o.json").read_text())
    for each, frame in zip(wanted, frames, strict=True):
        assert unmatched_detections(model, each, frame["objects"]) == [], frame["filename"]


def test_without_arguments_the_newest_run(call, run_folder, tmp_path):
    code, out, _ = call("detect")
    assert code == 0 and "x_best.weights" in out and out.count("cat: 100%") == 8
    code, out, _ = call("val", "--json", "result.json")
    assert code == 0 and "x_best.weights" in out and "valid.txt" in out and "mAP@0.50" in out
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["map"], result["classes"][0]["name"], result["images"]) == (0.5, "cat", 10)


@pytest.mark.parametrize("script", ["detect", "val"])
def test_without_a_run_it_says_what_is_missing(call, script):
    code, _, err = call(script)
    assert code == 1 and "python train.py" in err and err.count("\n") == 1


@pytest.mark.parametrize("script", ["detect", "val"])
def test_weights_without_images_is_a_usage_error(call, weights, script):
    assert call(script, "--weights", weights)[0] == 2


def test_val_reads_data_files(call, run_folder, tmp_path):
    (tmp_path / "x.data").write_text("classes=2\nvalid = valid.txt\nnames = runs/x/x.names\n")
    weights = run_folder / "x_best.weights"
    code, out, _ = call("val", "--data", "x.data", "--weights", weights, "--points", 11, "--iou-thresh", 0.75)
    assert code == 0 and "11 recall points" in out and "cat" in out
    code, _, err = call("val", "--images", "gone.txt", "--weights", weights)
    assert code == 1 and "gone.txt" in err and err.count("\n") == 1


def test_val_gives_all_protocols_from_one_pass(call, run_folder, tmp_path):
    arguments = ("--protocols", "darknet", "voc", "coco", "--json", "all.json", "--coco-results", "sent.json")
    code, out, _ = call("val", *arguments)
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines() if "Darknet's figure" in line] == ["VOC devkit", "COCO"]
    assert "darknet detector map: IoU > 0.5" in out
    result = json.loads((tmp_path / "all.json").read_text())
    assert (result["map"], result["voc"]["map10"], result["coco"]["AP50"]) == (0.5, 1.0, pytest.approx(1))
    sent = json.loads((tmp_path / "sent.json").read_text())
    # 0.png is picture 0; the box is the middle half of 80 x 60, of class cat, the first
    assert [each["image_id"] for each in sent] == list(range(10))
    assert all(each["category_id"] == 1 and each["bbox"] == pytest.approx([20, 15, 40, 30], abs=0.01) for each in sent)
    code, out, _ = call("val", "--protocols", "voc", "--json", "voc.json")
    assert code == 0 and "mAP@0.50" not in out and list(json.loads((tmp_path / "voc.json").read_text())) == ["voc"]


def test_val_gives_voc_by_itself_only_where_difficult_objects_are_known(call, run_folder):
    assert "VOC devkit" not in call("val")[1]
    code, out, _ = call("val", "--difficult", "valid.txt")
    assert code == 0 and "VOC devkit" in out and "COCO" not in out


def test_val_says_what_is_wrong_with_coco_before_the_pass(call, run_folder, monkeypatch):
    assert call("val", "--coco-results", "x.json")[0] == 2
    monkeypatch.setattr("yolov4.evaluation.collect", None)
    code, _, err = call("val", "--protocols", "coco", "--coco-json", "gone.json")
    assert code == 1 and "gone.json" in err and err.count("\n") == 1
    for name in ("faster_coco_eval", "pycocotools.coco"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = call("val", "--protocols", "coco")
    assert code == 1 and "pip install faster-coco-eval" in err and err.count("\n") == 1
