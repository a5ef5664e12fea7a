"""Sources, frames of files and live streams, and what is written: names, videos, .json, labels.
Source of the keys of the .json: Darknet's src/network.c, detection_to_json."""

import http.server
import json
import math
import os
import threading
from contextlib import closing, contextmanager

import cv2
import numpy as np
import pytest
import torch

from yolov4.decoding import Detections
from yolov4.video import Output, Video, VideoFile, expand


def write_video(path, frames: int):
    """Ten frames per second, brighter by 6 grey levels each."""
    code = cv2.VideoWriter_fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), code, 10, (64, 48))
    for number in range(1, frames + 1):
        writer.write(np.full((48, 64, 3), 6 * number % 256, np.uint8))
    writer.release()
    return path


@contextmanager
def broadcast(*connections: range):
    """Address of a server that sends frames of these greys as MJPEG, then breaks the connection."""
    left = list(connections)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if not left:
                return self.send_error(503)
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for grey in left.pop(0):
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


def test_folders_lists_and_globs_find_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("b.jpg", "a.PNG", "notes.md", "x[1].mp4"):
        (tmp_path / "in" / name).touch()
    files = [f"in{os.sep}{name}" for name in ("a.PNG", "b.jpg", "x[1].mp4")]
    (tmp_path / "list.txt").write_text("\n".join(files))
    for source in ("in", "list.txt", "in/*.[jPm][pN]*"):
        assert expand(source) == files
    for source in (files[2], "rtsp://yard/?a=*", "0", "gone.jpg"):
        assert expand(source) == [source]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"^none: "):
        expand("none")


def test_outputs_never_write_over_each_other_or_a_source(tmp_path):
    output = Output(tmp_path, [], [tmp_path / "x.jpg"], False, None)
    sources = ["a/x.jpg", "b/X_2.png", "rtsp://me:secret@yard:1", "http://yard/gate?key=1", "0"]
    names = [output.place(source, ".jpg").name for source in sources]
    assert names == ["x_2.jpg", "X_2_2.jpg", "yard.jpg", "gate.jpg", "camera0.jpg"]


def test_json_and_labels(tmp_path):
    """Labels are clipped to the image, each prediction with its best class; the .json has all."""
    boxes = torch.tensor([[-10.0, 10, 50, 120], [-20, -20, -5, -5], [-10, 10, 50, 120]])
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.75]), torch.tensor([1, 0, 0]),
                       torch.tensor([7, 2, 7]))  # fmt: skip
    with closing(Output(tmp_path, ["cat", "dog"], [], True, tmp_path / "o.json")) as output:
        output.add("v.mp4", "v_3", np.zeros((100, 100, 3), np.uint8), found, 3)
        output.add("ü.png", "b", np.zeros((100, 100, 3), np.uint8), found[:0], 4)
    assert (tmp_path / "labels/v_3.txt").read_text() == "1 0.250000 0.550000 0.500000 0.900000\n"
    assert (tmp_path / "labels/b.txt").read_text() == ""
    first, second = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    assert (first["frame_id"], first["filename"], len(first["objects"])) == (3, "v.mp4", 3)
    place = {"center_x": 0.2, "center_y": 0.65, "width": 0.6, "height": 1.1}
    assert first["objects"][2] == {"class_id": 0, "name": "cat", "confidence": 0.75,
                                   "relative_coordinates": pytest.approx(place)}  # fmt: skip
    assert second == {"frame_id": 4, "filename": "ü.png", "objects": []}
    with closing(Output(tmp_path, ["cat"], [], False, tmp_path / "o.json", True)) as output:
        boxes, image = torch.tensor([[-math.inf, 0, math.inf, 9]]), np.zeros((9, 9, 3), np.uint8)
        found = Detections(boxes, torch.ones(1), torch.zeros(1).long(), names=["cat"])
        output.add("a", "a", image, found, 1)
    assert cv2.imread(str(tmp_path / "crops/cat/a_1.jpg")).shape == (9, 9, 3)
    text = (tmp_path / "o.json").read_text()
    (record,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["objects"][0]["relative_coordinates"]["width"] is None
    Output(tmp_path, [], [], False, tmp_path / "o.json").close()
    assert json.loads((tmp_path / "o.json").read_text()) == []


def test_a_written_video_repeats_frames_and_notices_a_full_disk(tmp_path):
    file = VideoFile(tmp_path / "v.mp4", 10, (64, 48))
    file.write(np.full((48, 64, 3), 60, np.uint8), upto=3)
    file.write(np.full((96, 128, 3), 120, np.uint8), upto=4)
    file.close()
    greys = [frame.image.mean() for frame in Video(str(tmp_path / "v.mp4"))]
    assert greys == pytest.approx([60, 60, 60, 120], abs=6)
    os.truncate(tmp_path / "v.mp4", 100)
    with pytest.raises(ValueError, match=r"v\.mp4: 0 of 4 frames"):
        file.close()


def test_a_file_can_be_closed_before_its_end(tmp_path):
    with closing(Video(str(write_video(tmp_path / "v.mp4", 30)), ahead=2)) as video:
        assert next(iter(video)).number == 1
    assert not video.thread.is_alive() and video.number < 10 and video.fault is None


def test_a_live_source_gives_the_newest_frame():
    with broadcast(range(6, 246, 6)) as address:
        video = Video(address, reconnect=0)
        video.thread.join()
    assert [frame.number for frame in video] == [40]
    assert video.live and "broke off after frame 40" in video.fault


def test_a_stream_that_breaks_off_is_opened_again(monkeypatch):
    monkeypatch.setattr("yolov4.video.PAUSE", 0.01)
    lines = []
    with broadcast(range(60, 65), range(0), range(120, 126)) as address:
        video = Video(address, reconnect=0.5, say=lines.append)
        frames = list(video)
    assert sum("broke off" in line for line in lines) == 2
    assert frames[-1].number == 11 and frames[-1].image.mean() == pytest.approx(125, abs=1)
    assert "broke off after frame 11" in video.fault


def test_a_closed_stream_is_not_waited_for():
    with broadcast(range(60, 65)) as address:
        video = Video(address, reconnect=1000, say=lambda _: None)
        while video.number < 5:
            video.thread.join(0.01)
        video.close()
    assert not video.thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none in folders")
def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="no regular file"):
        Video(str(tmp_path / "a.mp4"))
