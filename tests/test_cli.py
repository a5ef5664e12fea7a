"""The commands as a user calls them: what they write, their exit codes, what goes wrong.
Source: golden/detections_real; Darknet's keys of the .json."""
# ruff: noqa: F401, F811 (a fixture of another file)

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from unittest.mock import Mock

import cv2
import fuzz
import numpy as np
import pytest
from conftest import ROOT, draw
from real_detections import REAL_MODELS, photograph, unmatched_detections
from test_evaluation import CFG, make_sure_model
from test_files import server
from test_video import write_video

import yolov4
from yolov4 import cli, darknet, detector, files
from yolov4.cfg import read_cfg
from yolov4.model import Darknet
from yolov4.networks import build, cfg_text
from yolov4.recipe import Settings
from yolov4.video import Output
from yolov4.weights import save_weights


@pytest.fixture
def weights(tmp_path):
    """Weights that find class 0 in the middle half of everything, beside their cfg and names."""
    folder = tmp_path / "runs/x"
    save_weights(make_sure_model(), folder / "x_best.weights", seen=0)
    (folder / "x.cfg").write_text(CFG)
    (folder / "x.names").write_text("cat\ndog\n")
    return folder / "x_best.weights"


@pytest.fixture
def run_folder(weights, tmp_path):
    """A run with ten validation images, each with a cat where the weights find it."""
    pictures = [draw(tmp_path / f"images/{number}.png") for number in range(10)]
    for path in pictures:
        path.with_suffix(".txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "valid.txt").write_text("\n".join(map(str, pictures)))
    settings = {"cfg": "x.cfg", "valid": str(tmp_path / "valid.txt"), "difficult": None}
    (weights.parent / "settings.json").write_text(json.dumps(settings))
    return weights.parent


def greys(path) -> list[float]:
    """Each frame's grey, in levels of 6: the numbers of the frames that `write_video` wrote."""
    capture, found = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        found.append(frame[1][-4:, -4:].mean() / 6)
    return found


def frame_ids(path) -> list[int]:
    return [frame["frame_id"] for frame in json.loads(path.read_text())]


@pytest.mark.parametrize("script", ["train", "val", "detect", "cvt2darknet", "export"])
def test_scripts_name_themselves(call, script):
    code, _, err = call(f"{script}.py", "--cfg", "gone.cfg", "--runs", "gone")
    assert code == 1 and err.startswith(f"{script}.py: ") and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [
    "detect --weights x.weights", "val --weights x.weights", "detect a.png --every 0", "cfg",
    "train --epochs 3 --max-batches 3", "train --resume --batch 3",
    "anchors list.txt", "nothing", "cfg shapes --all x", "cfg shapes --classes 2 --names x",
])  # fmt: skip
def test_usage_errors(call, arguments):
    code, _, err = call(*arguments.split())
    assert code == 2 and err.startswith("usage: yolov4")


def test_warnings_and_ctrl_c_are_one_line(call, monkeypatch):
    def interrupted(*_):
        warnings.warn("mind the gap", stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr("yolov4.runs.new_settings", interrupted)
    assert call("train") == (130, "", "yolov4 train: mind the gap\nyolov4 train: interrupted\n")


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RecursionError("a\nb")])
@pytest.mark.parametrize("command", [
    "train", "val", "detect", "convert", "export", "anchors", "labels", "cfg", "detector", "partial"
])  # fmt: skip
def test_an_unexpected_error_is_one_line(call, monkeypatch, command, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(cli, "new_parser", fails)
    monkeypatch.setattr(darknet, "detector", fails)
    monkeypatch.setattr(darknet, "partial", fails)
    code, out, err = call(command)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.match(rf"yolov4 {command}: unexpected {type(error).__name__} at \w+:\d+: ", err)
    with pytest.raises(type(error)):
        call(command, "--traceback")


def test_an_error_without_a_message_is_named(call, monkeypatch):
    monkeypatch.setattr("yolov4.cli.new_parser", Mock(side_effect=TimeoutError))
    assert call("train") == (1, "", "yolov4 train: TimeoutError()\n")


def test_an_image_is_drawn_saved_and_described(call, weights, tmp_path):
    source = draw(tmp_path / "a.png")
    code, out, _ = call("detect", source, "--weights", weights, "--save-txt", "--json", "o.json")
    assert code == 0 and "x.cfg" in out and "cat: 100%" in out
    assert cv2.imread("runs/detect/a.jpg").std() > 1
    label, *box = (tmp_path / "runs/detect/labels/a.txt").read_text().split()
    assert label == "0" and [float(value) for value in box] == pytest.approx([0.5] * 4, abs=1e-5)
    (frame,) = json.loads((tmp_path / "o.json").read_text())
    assert (frame["frame_id"], frame["objects"][0]["name"]) == (1, "cat")


def test_unreadable_sources_are_named_and_skipped(call, weights, tmp_path):
    for name in ("bad.jpg", "bad.mp4"):
        (tmp_path / name).write_text("nothing")
    cut = write_video(tmp_path / "cut.avi", 40)
    os.truncate(cut, cut.stat().st_size // 2)
    good = [draw(tmp_path / "in" / f"{number}.png") for number in range(3)]
    sources = ["bad.jpg", good[0], "bad.mp4", *good[1:], "gone.jpg", "cut.avi"]
    arguments = ("--weights", weights, "--out", "out", "--json", "o.json", "--batch", 2)
    code, out, err = call("detect", *sources, *arguments)
    assert code == 1 and err.count("\n") == 4
    assert all(name in err for name in ("bad.jpg", "bad.mp4", "gone.jpg"))
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"0", "1", "2", "cut"}
    kept = len(greys(tmp_path / "out/cut.mp4"))
    assert 5 < kept < 35 and f"{kept} frames" in out
    assert frame_ids(tmp_path / "o.json") == [1, 2, 3, *range(1, kept + 1)]


def test_each_bad_source_costs_itself_alone(weights, tmp_path):
    """Links in a loop, names too long, pixels without end, a side that no JPEG has."""
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "bomb.png").write_bytes(fuzz.png(32000, 32000))
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((1, 100000, 3), np.uint8))
    (tmp_path / "none").mkdir()
    good = [draw(tmp_path / f"{number}.png") for number in range(2)]
    os.truncate(write_video(tmp_path / "cut.avi", 2), 400)
    bad = "a" * 300 + ".png", "loop.png", "bomb.png", "wide.png", "none", "gone.txt", "cut.avi"
    command = [sys.executable, ROOT / "detect.py", good[0], *bad, good[1], "--weights", weights]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.count("cat: 100%") == 2
    assert done.stderr.count("\n") == len(bad) and all(name in done.stderr for name in bad)
    assert "MAX_IMAGE_PIXELS" in done.stderr


def test_reading_predicting_and_drawing_fail_alone(call, weights, tmp_path, monkeypatch):
    def failing_at(name, function):
        def fails(*each):
            if f"/{name}.png" in str(each[0] if isinstance(each[0], str) else each[1]):
                raise MemoryError
            return function(*each)

        return fails

    sources = [str(draw(tmp_path / f"{name}.png")) for name in ("read", "a", "predict", "b", "add")]
    monkeypatch.setattr(detector, "read_image", failing_at("read", detector.read_image))
    predict = failing_at("predict", detector.Detector._predict)
    monkeypatch.setattr(detector.Detector, "_predict", predict)
    monkeypatch.setattr(Output, "add", failing_at("add", Output.add))
    code, out, err = call("detect", *sources, "--weights", weights, "--batch", 4)
    assert code == 1 and out.count("cat: 100%") == 2 and err.count("MemoryError") == 3
    assert all(f"{name}.png: " in err for name in ("read", "predict", "add"))


def test_a_video_of_an_absurd_rate(call, shared, weights):
    source = shared / "cases/reliability/rate_tiny.avi"
    code, out, err = call("detect", source, "--weights", weights)
    assert code == 0 and "40 frames" in out, err
    source = draw(Path("a.png"))
    code, out, err = call("detect", shared / "cases/reliability/rate_tiny.avi", source,
                          "--weights", weights, "--every", 1000000)  # fmt: skip
    assert code == 1 and "rate_tiny.avi: " in err and err.count("\n") == 1 and "cat: 100%" in out


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_names_are_bytes_and_show_no_control_characters(call, weights, tmp_path):
    name = os.fsdecode(b"\xe9\x1b[31m")
    picture = draw(tmp_path / "a.png").rename(tmp_path / f"{name}.png")
    write_video(tmp_path / "v.avi", 3).rename(tmp_path / f"{name}.avi")
    picture.with_suffix(".txt").write_text("0 .5 .5 .5 .5\n")
    weights.with_name("x.names").write_text("c\x07at\ndog\n")
    (tmp_path / "list.txt").write_bytes(os.fsencode(picture.name))
    sources = ("list.txt", f"{name}.avi", f"{name}.gone")
    files = ("--weights", weights, "--out", name, "--json", "o.json", "--save-txt")
    code, out, err = call("detect", *sources, *files)
    shown = r"\xe9\x1b[31m"
    assert code == 1 and rf"{shown}.png: c\x07at: 100%" in out and f"{shown}.gone: " in err
    assert not {"\x1b", "\x07"} & {*out, *err}
    written = {path.name for path in Path(name).iterdir()}
    assert written == {f"{name}.jpg", f"{name}_2.mp4", "labels"}
    frames = json.loads((tmp_path / "o.json").read_text())
    assert {each["filename"] for each in frames} == {picture.name, f"{name}.avi"}
    (tmp_path / "t.cfg").write_text(cfg_text("shapes", "", classes=2, batch=2, max_batches=1))
    (tmp_path / "x.data").write_text("train=list.txt\nvalid=list.txt\nnames=runs/x/x.names\n")
    flags = ("--data", "x.data", "--cfg", "t.cfg", "--workers", 0, "--name", name)
    code, out, err = call("train", *flags)
    assert code == 0 and "\x1b" not in out and (tmp_path / "runs" / name / "chart.png").exists()
    assert (tmp_path / "runs" / name / "report/report.html").exists(), err
    assert call("labels", "x.data", "--out", f"l{name}")[0] == 0
    assert call("val", "--data", f"l{name}/yolo.data", "--weights", weights)[0] == 0


@pytest.mark.parametrize("every", [1, 4])
def test_a_video_lasts_as_long(call, weights, tmp_path, every):
    source, wanted = write_video(tmp_path / "v.mp4", 30), list(range(1, 31, every))
    arguments = ("--weights", weights, "--out", "out", "--json", "o.json", "--every", every)
    code, out, _ = call("detect", source, *arguments, "--save-txt", "--batch", 3)
    assert code == 0 and f"{len(wanted)} frames" in out
    assert greys(tmp_path / "out/v.mp4") == pytest.approx(wanted, abs=1.5)
    assert cv2.VideoCapture(str(tmp_path / "out/v.mp4")).get(cv2.CAP_PROP_FPS) == 10 / every
    assert frame_ids(tmp_path / "o.json") == wanted
    names = {path.stem for path in (tmp_path / "out/labels").iterdir()}
    assert names == {f"v_{number:06}" for number in wanted}


@pytest.mark.parametrize("source", ["in", "v.avi"])
def test_q_closes_the_window_and_ends_the_call(call, weights, tmp_path, monkeypatch, source):
    for number in range(3):
        draw(tmp_path / "in" / f"{number}.png")
    write_video(tmp_path / "v.avi", 4)
    keys = iter([ord("x"), ord("q")])
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "imshow", lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys))
    arguments = ("--weights", weights, "--show", "--json", "o.json")
    assert call("detect", source, "in", *arguments)[0] == 0
    assert frame_ids(tmp_path / "o.json") == [1, 2]


def test_a_full_disk_ends_the_call_with_one_line(call, weights, tmp_path):
    sources = [draw(tmp_path / "in" / f"{number}.png") for number in range(4)]
    (tmp_path / "out" / "1.jpg").mkdir(parents=True)
    arguments = ("--weights", weights, "--out", "out", "--json", "o.json")
    code, out, err = call("detect", *sources, *arguments)
    assert code == 1 and err.count("\n") == 1 and "1.jpg" in err and "0.png: cat" in out
    assert json.loads((tmp_path / "o.json").read_text())[0]["filename"] == str(sources[0])


def test_ctrl_c_keeps_the_video_up_to_there(weights, tmp_path):
    source, out = write_video(tmp_path / "v.avi", 3000), tmp_path / "o.json"
    files = ("--weights", weights, "--json", out)
    command = [sys.executable, ROOT / "detect.py", source, "in", *files]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, **pipes)
    while process.poll() is None and not (out.exists() and out.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == "" and "frames  (" in printed
    written, numbers = len(greys(tmp_path / "runs/detect/v.mp4")), frame_ids(out)
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) < 3000
    assert written in (len(numbers), len(numbers) - 1)  # stopped between the two


@pytest.mark.parametrize("model", REAL_MODELS, ids=lambda model: model.folder)
def test_real_photographs_as_darknet(call, shared, golden, tmp_path, model):
    cfg, weights = model.files(shared)
    wanted = golden(model.detections)
    sources = [photograph(shared, each["image"]) for each in wanted]
    files = ("--cfg", cfg, "--weights", weights, "--out", "out", "--json", "o.json")
    code, _, err = call("detect", *sources, *files, "--thresh", 0.05)
    assert code == 0, err
    frames = json.loads((tmp_path / "o.json").read_text())
    for each, frame in zip(wanted, frames, strict=True):
        assert unmatched_detections(model, each, frame["objects"]) == [], frame["filename"]


def test_without_arguments_the_newest_run(call, run_folder, tmp_path):
    code, out, _ = call("detect", "--half", "bf16")
    assert code == 0 and "x_best.weights" in out and out.count("cat: 100%") == 8
    code, out, _ = call("val", "--json", "result.json", "--report", "report")
    assert code == 0 and "x_best.weights" in out and "valid.txt" in out and "mAP@0.50" in out
    assert "VOC devkit" not in out and (tmp_path / "report/report.html").exists()
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["map"], result["classes"][0]["name"], result["images"]) == (0.5, "cat", 10)


def test_val_reads_data_files(call, run_folder, tmp_path):
    (tmp_path / "x.data").write_text("classes=2\nvalid = valid.txt\nnames = my.names\n")
    (tmp_path / "my.names").write_text("lion\nwolf\n")
    files = ("--data", "x.data", "--weights", run_folder / "x_best.weights")
    code, out, _ = call("val", *files, "--points", 11, "--iou-thresh", 0.75)
    assert code == 0 and "11 recall points" in out and "lion" in out
    code, out, _ = call("val", *files, "--difficult", "valid.txt")
    assert code == 0 and "VOC devkit" in out and "COCO" not in out
    (tmp_path / "x.data").write_text("classes=2\n")
    code, _, err = call("val", *files)
    assert code == 1 and "x.data: " in err and err.count("\n") == 1


def test_val_leaves_out_what_cannot_be_read(call, run_folder, tmp_path):
    (tmp_path / "images/3.png").write_text("nothing")
    (tmp_path / "images/4.txt").write_text("7 .5 .5 .5 .5\n")
    with (tmp_path / "valid.txt").open("a") as file:
        file.write(f"\n{'a' * 300}.png")
    code, out, err = call("val", "--json", "r.json", "--report", "report")
    assert code == 1 and err.count("\n") == 4 and "4.txt: class 7" in err and "3.png" in err
    assert "a.png: no such image" in err
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 8
    assert (tmp_path / "report/report.html").exists()
    (tmp_path / "x.data").write_text("valid=valid.txt\nnames=runs/x/x.names\n")
    words = "map", "x.data", run_folder / "x.cfg", run_folder / "x_best.weights"
    code, out, err = call("detector", *words)
    assert code == 1 and "TP = 8" in out and err.count("\n") == 2 and "3.png" in err


def test_val_gives_all_protocols_from_one_pass(call, run_folder, tmp_path, monkeypatch):
    protocols = ("--protocols", "darknet", "voc", "coco")
    code, out, _ = call("val", *protocols, "--json", "all.json", "--coco-results", "sent.json")
    assert code == 0 and "darknet detector map: IoU > 0.5" in out
    result = json.loads((tmp_path / "all.json").read_text())
    figures = result["map"], result["voc"]["map10"], result["coco"]["AP50"]
    assert figures == (0.5, 1.0, pytest.approx(1))
    sent = json.loads((tmp_path / "sent.json").read_text())
    assert [each["image_id"] for each in sent] == list(range(1, 11))
    assert {each["category_id"] for each in sent} == {1}
    middle = pytest.approx([20, 15, 40, 30], abs=0.01)  # the middle half of 80 x 60
    assert all(each["bbox"] == middle for each in sent)
    monkeypatch.setattr("yolov4.evaluation.collect", None)  # is checked before the pass
    code, _, err = call("val", "--protocols", "coco", "--coco-json", "gone.json")
    assert code == 1 and "gone.json" in err and err.count("\n") == 1


def started(call, monkeypatch, *flags) -> Settings:
    """The settings with which `train` would start a run."""
    runs = []
    monkeypatch.setattr("yolov4.training.Training", lambda *each: runs.append(each) or 1 / 0)
    assert "ZeroDivisionError" in call("train", *flags)[2]
    return runs[0][0]


def test_flags_override_the_recipe_which_overrides_defaults(call, monkeypatch, tmp_path):
    (tmp_path / "x.data").write_text("train=list.txt\nnames=x.names\n")
    flags = "data=x.data\ncfg=a_b.cfg\nepochs=3\nlearning_rate=0.5\nbatch=8\nweights=w.weights\n"
    (tmp_path / "my.recipe").write_text(f"[train]\n{flags}")
    found = started(call, monkeypatch, "--recipe", "my.recipe", "--batch", 4, "--seed", 0)
    assert (found.cfg, found.data, found.epochs, found.batch) == ("a_b.cfg", "x.data", 3, 4)
    assert (found.learning_rate, found.weights, found.seed) == (0.5, "w.weights", 0)
    more = ("--max-batches", 9, "--cfg", "c.cfg", "--ema", "--workers", 0)
    found = started(call, monkeypatch, "--recipe", "my.recipe", *more)
    assert (found.epochs, found.max_batches, found.cfg, found.weights) == (None, 9, "c.cfg", None)
    assert (found.ema, found.workers, found.loss, found.amp) == (0.9999, 0, "darknet", "off")


def test_resume_takes_the_settings_of_the_run(call, monkeypatch, run_folder):
    (run_folder / "last.pt").touch()
    old = {"cfg": "x.cfg", "train": "l.txt", "names": "x.names", "batch": 8, "workers": 3}
    (run_folder / "settings.json").write_text(json.dumps(old))
    found = started(call, monkeypatch, "--resume", "--workers", 0)
    assert (found.cfg, found.batch, found.workers) == ("x.cfg", 8, 0)


def test_missing_files_are_listed_with_the_commands_that_make_them(call, monkeypatch, tmp_path):
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg/voc.data").write_text("train=gone.txt\nnames=x.names\n")
    code, _, err = call("train")
    assert (
        code == 1
        and "yolov4 labels VOCDEVKIT" in err
        and "yolov4.conv.137 is missing: --download" in err
    )
    brought = []
    monkeypatch.setattr(files, "PRETRAINED", {"a.conv.1": Mock(by_hand=str)})
    monkeypatch.setattr(files, "download", lambda *each: brought.append(each))
    (tmp_path / "x.data").write_text("train=gone.txt\nnames=x.names\n")
    flags = ("--data", "x.data", "--weights", "a.conv.1", "--download")
    started(call, monkeypatch, *flags)
    assert [name for _, name in brought] == ["a.conv.1"]
    monkeypatch.setenv("WORLD_SIZE", "2")  # several processes must not download one file
    code, _, err = call("train", *flags)
    assert code == 1 and "a.conv.1 is missing: download it first without torchrun" in err
    assert len(brought) == 1


def test_cfg_writes_and_prints_networks(call, tmp_path):
    (tmp_path / "my.names").write_text("a\nb\nc\n")
    sizes = "4,5, 6,7, 8,9, 10,11, 12,13, 14,15.5"
    flags = ("--names", "my.names", "--width", 64, "--max-batches", 100, "--anchors", sizes)
    assert call("cfg", "yolov4-tiny", *flags, "--out", "my.cfg")[0] == 0
    network = read_cfg(tmp_path / "my.cfg")
    assert (network.net.width, network.net.max_batches, network.net.steps) == (64, 100, (80, 90))
    assert network.sections[-1].classes == 3 and network.sections[-1].anchors[-1] == (14, 15.5)
    text = (tmp_path / "my.cfg").read_text()
    assert "yolov4-tiny --names my.names --width 64" in text.splitlines()[0]
    assert call("cfg", "yolov4-tiny", *flags)[1].endswith(text.partition("\n")[2])
    assert "38 layers" in call("cfg", "my.cfg")[1]
    assert call("cfg", "--all", ".")[0] == 0 and (tmp_path / "yolov4.cfg").exists()


def test_anchors_are_fitted_written_and_plotted(call, run_folder, tmp_path):
    files = ("--cfg", run_folder / "x.cfg", "--out", "new.cfg", "--plot", "data.png")
    (tmp_path / "images/9.txt").write_text("0 .5 .5 .25 .5\n")
    code, out, err = call("anchors", "valid.txt", *files)
    assert code == 0 and "anchors = 8,16, 16,16" in out, err
    assert read_cfg(tmp_path / "new.cfg").sections[-1].anchors == ((8, 16), (16, 16))
    assert (tmp_path / "data.png").exists()


def test_labels_writes_a_data_set_that_is_not_voc_by_its_names(call, shared, tmp_path):
    code, out, _ = call("labels", shared / "datasets/voc2012_100", "--out", "voc")
    assert code == 0 and (tmp_path / "voc/2012_trainval.txt").exists() and "20 classes" in out
    picture = draw(tmp_path / "deep/pictures/a.jpg")
    image, box = {"id": 3, "file_name": "a.jpg", "width": 80, "height": 60}, [0, 0, 40, 30]
    boxes = [{"image_id": 3, "category_id": 5, "bbox": box}]
    parts = {"images": [image], "annotations": boxes, "categories": [{"id": 5, "name": "cat"}]}
    (tmp_path / "my.json").write_text(json.dumps(parts))
    assert call("labels", "my.json", "deep", "--out", "coco")[0] == 0
    assert (tmp_path / "coco/pictures/labels/a.txt").read_text() == "0 0.25 0.25 0.5 0.5\n"
    picture.unlink()
    code, _, err = call("labels", "my.json", "deep", "--out", "coco")
    assert code == 1 and "no boxes" in err and "a.jpg" in err and err.count("\n") == 1


def test_sources_from_the_standard_input_and_the_web(call, weights, tmp_path, monkeypatch, server):
    good = draw(tmp_path / "some where/a.png")
    server.files["b.png"] = good.read_bytes()
    lines = f"{good}\n{server.address}b.png\n{server.address}gone.png\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code, out, err = call("detect", "-", "--weights", weights, "--out", "out")
    assert code == 1 and out.count("cat: 100%") == 2 and "gone.png" in err and err.count("\n") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.jpg", "b.jpg"}
    assert call("detect", "**/*.png", "--weights", weights)[1].count("cat: 100%") == 1


def test_every_call_of_detect_has_a_folder_of_its_own(call, weights, tmp_path):
    source = draw(tmp_path / "a.png")
    for _ in range(2):
        assert call("detect", source, "--weights", weights)[0] == 0
    assert (tmp_path / "runs/detect/a.jpg").exists() and (tmp_path / "runs/detect-2/a.jpg").exists()


@pytest.mark.parametrize("arguments", [
    "detect --thresh 50", "detect --nms -1", "detect --nms 2", "detect --tiles 2",
    "detect --tiles 0x2", "detect --batch 0", "detect --reconnect nan", "train --save-every 0",
    "train --patience -1", "train --epochs inf", "train --learning-rate 1e300", "train --ema 2",
    "train --seed -1", "train --seed 9223372036854775808", "train --workers -1", "train --cache -1",
    "train --width 0", "convert --upto 0", "cfg --classes -3", "anchors --num 99999999999",
    "train --workers 100000", "train --device nonsense", "val --device cpu:5",
    "detect --tiles 1000x1000", "anchors --size 64", "cfg --anchors nan,1", "cfg --anchors 1,2,3",
])  # fmt: skip
def test_values_out_of_range_are_usage_errors(call, arguments):
    code, _, err = call(*arguments.split())
    assert code == 2 and f"argument {arguments.split()[1]}: " in err and ": expected " in err


@pytest.mark.parametrize(("flags", "found"), [
    ("yolov4 --width 33", "33"), ("yolov4-tiny --anchors 1,2", "1 anchors"), ("nope", "'nope'"),
])  # fmt: skip
def test_values_that_fit_no_network_are_usage_errors(call, flags, found):
    code, _, err = call("cfg", *flags.split())
    assert code == 2 and found in err and "expected" in err


def test_classes_crops_and_tiles(call, weights, tmp_path):
    source = draw(tmp_path / "a.png")
    arguments = (source, "--weights", weights, "--out")
    code, out, _ = call("detect", *arguments, "one", "--save-crops", "--classes", "cat", "1")
    assert code == 0 and "cat: 100%" in out
    assert cv2.imread("one/crops/cat/a_1.jpg").shape == (30, 40, 3)  # the middle half of 80 x 60
    code, out, _ = call("detect", *arguments, "two", "--save-crops", "--classes", "dog")
    assert code == 0 and "nothing" in out and not (tmp_path / "two/crops").exists()
    code, _, err = call("detect", *arguments, "three", "--classes", "horse")
    assert code == 1 and "expected one of cat, dog" in err
    assert call("detect", *arguments, "four", "--tiles", "2x2")[1].count("cat: 100%") == 5
    # 32 x 32 is the network's size: 3 x 2 tiles of 80 x 60
    assert call("detect", *arguments, "five", "--tiles")[1].count("cat: 100%") == 7


def test_without_names_80_classes_are_those_of_coco_and_the_cfg_is_found(call, tmp_path):
    save_weights(Darknet(build("yolov4-tiny")), tmp_path / "yolov4-tiny.weights", seen=0)
    source = draw(tmp_path / "a.png")
    code, out, err = call(
        "detect", source, "--weights", "yolov4-tiny.weights", "--classes", "tvmonitor"
    )
    assert code == 0 and "yolov4-tiny.cfg" in out and "coco.names" in err and err.count("\n") == 1
    code, _, err = call("detect", source, "--weights", "yolov4-csp.weights")
    assert code == 1 and "--download" in err


@pytest.mark.parametrize("kind", ["folder", "yaml", "onnx"])
def test_val_takes_any_data_set_and_an_onnx(call, run_folder, tmp_path, kind):
    (tmp_path / "images/classes.txt").write_text("cat\ndog\n")
    yaml = f"path: {tmp_path}\ntrain: images\nval: [images]\nnames: [cat, dog]\n"
    (tmp_path / "set.yaml").write_text(yaml)
    weights, data = run_folder / "x_best.weights", "set.yaml" if kind == "yaml" else "images"
    if kind == "onnx":
        assert call("export", weights, "x.onnx")[0] == 0
        data, weights = "set.yaml", "x.onnx"
    code, out, err = call("val", "--data", data, "--weights", weights, "--json", "r.json")
    assert code == 0 and "YOLO labels" in out, err
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["map"] == 0.5 and result["images"] == (10 if kind != "folder" else 1)


def test_training_in_a_thread_with_a_chart_that_cannot_be_written(tmp_path, monkeypatch):
    """As in a notebook or a web server, with chart.png open in a viewer that locks it."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        draw(tmp_path / f"set/{number}.png", grey=50 * number)
        (tmp_path / f"set/{number}.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "set/classes.txt").write_text("cat\n")
    (tmp_path / "t.cfg").write_text(cfg_text("shapes", "", classes=1, batch=2, max_batches=2))
    (tmp_path / "runs/mine/chart.png/full").mkdir(parents=True)
    monkeypatch.setattr("yolov4.runs.new_run_folder", lambda root, name: Path(root, name))
    folders = []
    options = {"data": "set", "cfg": "t.cfg", "workers": 0, "name": "mine", "save_every": 1}
    with pytest.warns(UserWarning, match=r"chart\.png"):
        thread = threading.Thread(target=lambda: folders.append(yolov4.train(**options)))
        thread.start()
        thread.join()
    assert folders == [Path("runs/mine")] and (folders[0] / "mine_last.weights").exists()


def test_training_stops_at_a_mistyped_key_unless_lenient(call, run_folder, tmp_path):
    text = cfg_text("shapes", "", classes=2, batch=2, max_batches=1).replace("mosaic", "mosiac")
    (tmp_path / "t.cfg").write_text(text)
    (tmp_path / "x.data").write_text("train=valid.txt\nnames=runs/x/x.names\n")
    flags = ("--data", "x.data", "--cfg", "t.cfg", "--workers", 0)
    code, _, err = call("train", *flags)
    assert code == 1 and "[net] mosiac=1" in err and "did you mean mosaic" in err
    code, _, err = call("train", *flags, "--lenient", "--seed", 2**63 - 1)
    assert code == 0 and "did you mean mosaic" in err
    code, out, err = call("cfg", "t.cfg")
    assert code == 0 and "did you mean mosaic" in err and "71 layers" in out


def test_a_run_on_a_grey_network_of_an_odd_size(call, run_folder, tmp_path):
    """Trained, measured, converted, exported; its cfg is read by every Darknet but for its size."""
    text = cfg_text("shapes", "", classes=2, batch=2, max_batches=2)
    text = text.replace("channels=3", "channels=1").replace("height=128", "height=74")
    (tmp_path / "t.cfg").write_text(text.replace("width=160", "width=106"))
    (tmp_path / "x.data").write_text("train=valid.txt\nvalid=valid.txt\nnames=runs/x/x.names\n")
    flags = ("--data", "x.data", "--cfg", "t.cfg", "--workers", 0, "--policy", "onecycle")
    code, _, err = call("train", *flags)
    assert code == 0 and "106x74 is no multiple of 32" in err
    written = (tmp_path / "runs/t/t.cfg").read_text()
    assert "# yolov4: policy=onecycle\n" in written and "\npolicy=constant\n" in written
    assert read_cfg(tmp_path / "runs/t/t.cfg").net.policy == "onecycle"
    last = tmp_path / "runs/t/t_last.weights"
    code, out, err = call("convert", last, "t.pt")
    assert code == 0, err
    code, out, err = call("convert", "t.pt", "t.weights", "--verify", "--data", "x.data")
    assert code == 0 and out.count("mAP@0.50") == 2, err
    assert (tmp_path / "t.weights").read_bytes() == last.read_bytes()
    assert float(re.search(r"scores on \S+ is (\S+)", out)[1]) < 1e-5
    assert call("export", last, "t.onnx")[0] == 0
    tables = [call("val", "--data", "x.data", "--weights", each)[1] for each in (last, "t.onnx")]
    assert tables[0].partition("class ")[2] == tables[1].partition("class ")[2] != ""


def test_detect_writes_over_nothing_that_is_not_its_own(call, weights, tmp_path):
    """Pictures, videos, labels, links; what an earlier call wrote is replaced."""
    source, mine = draw(tmp_path / "d/images/a.png"), draw(tmp_path / "out/a.jpg", grey=7)
    label, before = tmp_path / "d/labels/a.txt", mine.read_bytes()
    label.parent.mkdir()
    label.write_text("0 .1 .1 .1 .1\n")
    (tmp_path / "out/w.mp4").write_text("mine")
    for name in "v", "w":
        write_video(tmp_path / f"{name}.avi", 2)
        draw(tmp_path / f"{name}_000001.png")
    files = ("--weights", weights, "--save-txt", "--out")
    for _ in range(2):
        sources = source, "v.avi", "v_000001.png", "w_000001.png", "w.avi"
        assert call("detect", *sources, *files, "out")[0] == 0
        written = {path.stem for path in (tmp_path / "out/labels").iterdir()}
        assert written == {
            "a_2", "v_000001", "v_000002", "v_000001_2", "w_000001", "w_2_000001", "w_2_000002",
        }  # fmt: skip
    assert mine.read_bytes() == before and (tmp_path / "out/w.mp4").read_text() == "mine"
    for flags in (
        ["d"],
        ["new", "--json", source],
        ["new", "--json", label],
        ["new", "--json", mine],
    ):
        code, _, err = call("detect", source, *files, *flags)
        assert code == 1 and err.count("\n") == 1, flags
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/labels").symlink_to(label.parent)
    assert call("detect", source, *files, "linked")[0] == 1
    assert label.read_text() == "0 .1 .1 .1 .1\n" and mine.read_bytes() == before


def test_detect_keeps_labels_and_crops_of_others(call, weights, tmp_path):
    """A label is its own where the picture of an earlier call is; a full disk is named."""
    source, crop = draw(tmp_path / "a.png"), draw(tmp_path / "out/crops/cat/b_1.jpg", grey=7)
    label, before = tmp_path / "out/labels/a.txt", crop.read_bytes()
    label.parent.mkdir()
    label.write_text("0 .1 .1 .1 .1\n")
    files = ("--weights", weights, "--out", "out")
    for _ in range(2):
        assert call("detect", source, *files, "--save-txt")[0] == 0
    assert label.read_text() == "0 .1 .1 .1 .1\n"
    assert {path.name for path in label.parent.iterdir()} == {"a.txt", "a_2.txt"}
    code, out, err = call("detect", draw(tmp_path / "b.png"), source, *files, "--save-crops")
    assert code == 1 and "b_1.jpg: " in err and err.count("\n") == 1 and "a.png: cat" in out
    assert crop.read_bytes() == before
    if Path("/dev/full").exists():
        code, _, err = call("detect", source, *files, "--json", "/dev/full")
        assert code == 1 and "/dev/full: No space" in err


@pytest.mark.parametrize("arguments", [
    "val --json images/3.txt", "val --json valid.txt", "val --json runs/x/x_best.weights",
    "val --protocols coco --coco-results images/3.txt", "cfg shapes --out valid.txt",
    "anchors valid.txt --cfg runs/x/x.cfg --out valid.txt", "cfg shapes --out x.data",
    "partial o.cfg runs/x/x_best.weights o.cfg 1",
])  # fmt: skip
def test_what_is_read_is_not_written(call, run_folder, tmp_path, arguments):
    (tmp_path / "x.data").write_text("mine")
    (tmp_path / "images/9.txt").write_text("0 .5 .5 .25 .5\n")
    (tmp_path / "o.cfg").write_text(f"{files.WRITTEN} cfg\n{CFG}")
    path = next(tmp_path / word for word in arguments.split()[::-1] if (tmp_path / word).is_file())
    before = path.read_bytes()
    code, _, err = call(*arguments.split())
    assert code == 1 and path.name in err and err.count("\n") == 1
    assert path.read_bytes() == before


def test_tools_replace_what_they_wrote_and_nothing_else(call, run_folder, tmp_path):
    """A second call does as the first; a file of others in its place is kept, unless forced."""
    (tmp_path / "images/9.txt").write_text("0 .5 .5 .25 .5\n")
    report = tmp_path / "report"
    fit = f"anchors valid.txt --cfg {run_folder}/x.cfg --out n.cfg --plot p.jpg"
    assert call("convert", run_folder / "x_best.weights", "x.pt")[0] == 0
    for arguments, path in (
        ("val --report report", report / "f1.png"), ("cfg shapes --out s.cfg", tmp_path / "s.cfg"),
        ("cfg --all all", tmp_path / "all/yolov4.cfg"), (fit, tmp_path / "n.cfg"),
        (fit, tmp_path / "p.jpg"), ("convert x.pt y.weights", tmp_path / "y.cfg"),
        ("convert x.pt y.weights", tmp_path / "y.names"),
        ("labels images --out set", tmp_path / "set/yolo.names"),
    ):  # fmt: skip
        for _ in range(2):
            code, _, err = call(*arguments.split())
            assert code == 0, (arguments, err)
        if path.suffix == ".names":
            path.with_suffix(".data" if "labels" in arguments else ".cfg").unlink()
        path.write_bytes(b"mine\n")
        code, _, err = call(*arguments.split())
        assert code == 1 and path.name in err and path.read_bytes() == b"mine\n", arguments
        assert call(*arguments.split(), "--force")[0] == 0 and path.read_bytes() != b"mine\n"
    cfg = tmp_path / "n.cfg"
    cfg.write_text(re.sub("(anchors *= *)", r"\g<1>1", cfg.read_text()))  # others, of ours
    assert call("anchors", "valid.txt", "--cfg", cfg, "--out", cfg)[0] == 0


def test_upto_is_darknets_partial(call, run_folder, tmp_path):
    files = run_folder / "x.cfg", run_folder / "x_best.weights"
    assert call("convert", files[1], "a.conv.1", "--upto", 1)[0] == 0
    assert call("partial", *files, "b.conv.1", 1)[0] == 0
    content = (tmp_path / "a.conv.1").read_bytes()
    assert content == (tmp_path / "b.conv.1").read_bytes() and content[12:20] == bytes(8)


def test_a_program_may_call_commands_thousands_of_times():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    for _ in range(3000):
        cli.make_printable(stream)
    stream.write("\x1bx")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\x1bx"
