"""detect.py and val.py as they are called: files, folders, lists, videos, runs, and what goes wrong.
Source: golden/detections_real; Darknet's keys of the .json."""

import argparse
import gc
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from real_detections import REAL_MODELS, photograph, unmatched_detections

from yolov4.cfg import parse_cfg
from yolov4.inference import for_inference
from yolov4.model import HALVES, Darknet
from yolov4.output import Output, VideoFile
from yolov4.predict import Detector
from yolov4.session import Session, behind
from yolov4.sources import is_live
from yolov4.video import Video
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
    """Ten frames a second, which fade from black by 6 grey levels a frame."""
    code = cv2.VideoWriter_fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), code, 10, (64, 48))
    for number in range(1, frames + 1):
        writer.write(np.full((48, 64, 3), 6 * number, np.uint8))
    writer.release()
    return path


def greys(path) -> list[float]:
    """The grey of each frame's corner, in levels of 6: numbers of the frames that `video` wrote."""
    capture, found = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        found.append(frame[1][-4:, -4:].mean() / 6)
    return found


@contextmanager
def broadcast(connections: list[list[int]]):
    """Address of an http server that sends frames of these greys as MJPEG, a list a connection, then cuts it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if not connections:
                return self.send_error(503)
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for grey in connections.pop(0):
                jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), grey, np.uint8))[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/yard.mjpg?key=1"
        server.shutdown()
        thread.join()


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


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_both_scripts_take_half_precision(call, run_folder, monkeypatch, half):
    types = []

    def watched(model, device, compiled, dtype):
        types.append(dtype)
        return for_inference(model, device, compiled, dtype)

    monkeypatch.setattr("yolov4.predict.for_inference", watched)
    for script, expected in (("detect", "cat: 100%"), ("val", "100.00")):
        code, out, err = call(script, "--half", half, "--device", "cpu")
        assert code == 0 and expected in out, err
    assert types == [HALVES[half]] * 2


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


def test_a_folder_has_a_bar_on_a_terminal_and_its_lines_stay_whole(call, weights, tmp_path, monkeypatch):
    for number in range(5):
        picture(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "2.png").write_text("no picture")
    _, plain, err = call("detect", "in", "--weights", weights, "--batch", 2)
    assert err.count("\n") == 1 and "%|" not in err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, out, err = call("detect", "in", "--weights", weights)
    assert "0/5" in err and re.sub(r"\(\d+ ms\)", "", out) == re.sub(r"\(\d+ ms\)", "", plain)
    assert "%|" not in call("detect", tmp_path / "in/1.png", "--weights", weights)[2]


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
    source = video(tmp_path / "v.mp4", 30)
    code, out, _ = call("detect", source, "--weights", weights, "--out", "out", "--json", "o.json", "--batch", 3)
    assert code == 0 and "30 frames" in out
    assert greys(tmp_path / "out/v.mp4") == pytest.approx(range(1, 31), abs=1.5)
    assert [frame["frame_id"] for frame in json.loads((tmp_path / "o.json").read_text())] == list(range(1, 31))


def test_every_fourth_frame_has_its_number_and_the_video_lasts_as_long(call, weights, tmp_path):
    source = video(tmp_path / "v.mp4", 30)
    code, out, _ = call(
        "detect", source, "--weights", weights, "--out", "out", "--json", "o.json", "--save-txt", "--every", 4
    )
    assert code == 0 and "8 frames" in out
    wanted = list(range(1, 31, 4))
    assert greys(tmp_path / "out/v.mp4") == pytest.approx(wanted, abs=1.5)
    assert cv2.VideoCapture(str(tmp_path / "out/v.mp4")).get(cv2.CAP_PROP_FPS) == 2.5
    assert [frame["frame_id"] for frame in json.loads((tmp_path / "o.json").read_text())] == wanted
    assert sorted(path.stem for path in (tmp_path / "out/labels").iterdir()) == [f"v_{n:06}" for n in wanted]
    assert call("detect", source, "--weights", weights, "--every", 0)[0] == 2


def test_a_cut_video_is_kept_to_where_it_ends(call, weights, tmp_path):
    whole = video(tmp_path / "v.avi", 40).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    code, out, err = call("detect", tmp_path / "cut.avi", tmp_path / "v.avi", "--weights", weights, "--out", "out")
    kept = len(greys(tmp_path / "out/cut.mp4"))
    assert code == 1 and 5 < kept < 35 and f"{kept} frames" in out and "40 frames" in out
    assert err.count("\n") == 1 and f"cut.avi: ends after frame {kept}, at {kept / 10} of 4.0 s" in err


def test_a_stream_that_breaks_off_is_opened_again(call, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("yolov4.video.FIRST_PAUSE", 0.01)
    arguments = ("--weights", weights, "--out", "out", "--json", "o.json", "--reconnect", 0.1)
    with broadcast([[60] * 5, [], [120] * 6]) as address:
        code, out, err = call("detect", address, *arguments)
    # the sixth frame shows that the stream is back
    assert out.count("broke off after frame") == 2 and "broke off after frame 5; trying again for 0.1 s" in out
    assert code == 1 and err.count("\n") == 1 and "broke off after frame 11 and did not come back within 0.1 s" in err
    found = greys(tmp_path / "out/yard.mp4")
    assert found[0] == pytest.approx(10, abs=0.9) and found[-1] == pytest.approx(20, abs=0.9)
    numbers = [frame["frame_id"] for frame in json.loads((tmp_path / "o.json").read_text())]
    assert numbers[-1] == 11 == len(found) and numbers == sorted(set(numbers))


def test_the_end_of_a_file_is_no_break_wherever_it_lies():
    live = ["rtsp://user:secret@yard:554/stream1", "http://yard/video?key=1.mp4", "http://yard:8080", "7"]
    files = ["https://example.org/a.MP4?key=1", "http://yard/snapshot.jpg", "a.mp4", "C:/7.avi"]
    assert [is_live(source) for source in live + files] == [True] * 4 + [False] * 4


def test_an_address_names_its_video_without_the_password(tmp_path):
    output = Output(tmp_path, [], [], False, None)
    addresses = ("rtsp://me:secret@yard:554", "rtsp://me:secret@yard/gate?key=1", "0")
    assert [output.place(source, ".mp4").name for source in addresses] == ["yard.mp4", "gate.mp4", "camera0.mp4"]


def test_a_live_source_gives_the_newest_frame_and_a_file_all(tmp_path):
    with broadcast([list(range(6, 246, 6))]) as address:
        live, file = Video(address, reconnect=0), Video(str(video(tmp_path / "v.mp4", 40)), ahead=2)
        frames = iter(live)
        first = next(frames).number
        live.thread.join()
        rest = [frame.number for frame in frames]
        assert rest == [40] or (first == 40 and not rest)  # the reader may have ended before the first was asked for
    numbers, ahead = zip(*((frame.number, len(file.waiting)) for frame in file), strict=True)
    assert numbers == tuple(range(1, 41)) and max(ahead) <= 2
    assert "broke off after frame 40" in live.fault and file.fault is None


def test_pauses_grow_to_a_limit_and_a_closed_stream_waits_no_longer(monkeypatch):
    monkeypatch.setattr("yolov4.video.LAST_PAUSE", 3.0)
    with broadcast([[60] * 5]) as address:
        live, pauses = Video(address, reconnect=1000, say=lambda line: None), []

    def wait(pause: float) -> bool:
        pauses.append(pause)
        return len(pauses) == 6 and (live.closed.set() or True)

    monkeypatch.setattr(live.closed, "wait", wait)
    assert [frame.number for frame in live][-1] == 5
    assert pauses == [0.5, 1, 2, 3, 3, 3] and live.fault is None


def test_memory_and_handles_stay_flat(weights, tmp_path):
    sources = [str(picture(tmp_path / "in" / f"{number}.png")) for number in range(180)]
    output, held = Output(tmp_path / "out", ["cat", "dog"], sources, True, tmp_path / "o.json"), []
    given = argparse.Namespace(thresh=0.25, nms=0.45, batch=4, show=False)
    session = Session(given, Detector(weights.with_name("x.cfg"), weights, device="cpu"), output)
    tracemalloc.start()
    for part in (sources[:60], sources[60:]):
        session.run(part)
        gc.collect()
        held.append((tracemalloc.get_traced_memory()[0], sum(1 for _ in Path("/dev/fd").iterdir())))
    tracemalloc.stop()
    assert held[1][0] - held[0][0] < 60_000  # bytes: the records of 120 pictures have 140,000, their pixels 1,700,000
    assert held[1][1] == held[0][1]


def test_results_come_in_order_while_later_ones_are_worked_out():
    begun = threading.Barrier(3, timeout=5)

    def work(number: int) -> int:
        begun.wait()  # the first results need the third to have begun
        return number * number

    assert list(behind(work, range(6), workers=3, waiting=3)) == [(n, n * n) for n in range(6)]


def test_what_cannot_be_written_ends_the_call_with_one_line(call, weights, tmp_path, monkeypatch):
    sources = [picture(tmp_path / "in" / f"{number}.png") for number in range(4)]
    (tmp_path / "out" / "1.jpg").mkdir(parents=True)
    code, out, err = call("detect", *sources, "--weights", weights, "--out", "out", "--json", "o.json")
    assert code == 1 and err.count("\n") == 1 and "1.jpg" in err and "0.png: cat" in out
    assert json.loads((tmp_path / "o.json").read_text())[0]["filename"] == str(sources[0])


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_ends_a_live_stream_and_keeps_its_video(root, weights, tmp_path):
    with broadcast([[60] * 400 for _ in range(4)]) as address:
        command = [sys.executable, root / "detect.py", address, "--weights", weights, "--json", "o.json"]
        process = subprocess.Popen(
            map(str, command), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        lines = iter(process.stdout.readline, "")
        assert any("broke off" in line for line in lines)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and err == "" and "frames  (" in out
    frames = json.loads((tmp_path / "o.json").read_text())
    # frames that came too fast were dropped (on a busy machine all); the video repeats others in their place
    last = frames[-1]["frame_id"] if frames else 0
    assert len(greys(tmp_path / "runs/detect/yard.mp4")) == last


def test_a_video_that_did_not_reach_the_disk_is_noticed(tmp_path):
    file = VideoFile(tmp_path / "v.mp4", 10, (64, 48))
    file.write(np.zeros((48, 64, 3), np.uint8), upto=3)
    file.writer.release()
    os.truncate(tmp_path / "v.mp4", 100)
    with pytest.raises(ValueError, match=r"v\.mp4: holds 0 of the 3 frames written"):
        file.close()


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
