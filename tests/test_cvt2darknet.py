"""cvt2darknet.py as a user calls it: there, back, and proven by OpenCV's own reader of .weights."""

import re
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import SHARED, settled

import cvt2darknet
from yolov4 import Darknet, decode
from yolov4.blueprint import build
from yolov4.cfg import format_cfg
from yolov4.checkpoint import load_checkpoint, load_network, save_checkpoint
from yolov4.verify import check_bytes


@pytest.fixture
def cvt(monkeypatch, capsys):
    """cvt(*arguments) runs the script in this process -> what it printed, errors too."""

    def call(*arguments, code=None):
        monkeypatch.setattr(sys, "argv", ["cvt2darknet.py", *map(str, arguments)])
        if code is None:
            cvt2darknet.main()
        else:
            with pytest.raises(SystemExit) as stopped:
                cvt2darknet.main()
            assert stopped.value.code == code
        return "".join(capsys.readouterr())

    return call


@pytest.fixture
def run(tmp_path):
    """A run of the small network as train.py leaves it, with settled rolling averages and an average of weights."""
    network = build("shapes")
    model = settled(Darknet(network, torch.Generator().manual_seed(0)))
    model(torch.rand(2, 3, network.net.height, network.net.width))
    state = {
        "cfg": format_cfg(*network[:2]), "names": ["circle", "square", "triangle"], "model": model.state_dict(),
        "ema": {key: value * 0.5 for key, value in model.state_dict().items()}, "iteration": 10, "seen": 160,
    }  # fmt: skip
    folder = tmp_path / "runs" / "try"
    save_checkpoint(folder / "last.pt", state)
    (folder / "settings.json").write_text("{}")
    return folder


def test_there_and_back_keeps_every_value_the_names_and_what_was_seen(cvt, run, tmp_path):
    out = tmp_path / "out" / "net.weights"
    printed = cvt(run / "last.pt", out)
    assert "160 images seen" in printed
    assert (tmp_path / "out" / "net.names").read_text() == "circle\nsquare\ntriangle\n"
    cvt(out, tmp_path / "back.pt")
    back, first = load_checkpoint(tmp_path / "back.pt"), load_checkpoint(run / "last.pt")
    assert (back["seen"], back["iteration"], back["names"]) == (160, 10, first["names"])
    for key, value in first["model"].items():
        assert torch.equal(back["model"][key], value) or "num_batches" in key, key
    cvt(tmp_path / "back.pt", tmp_path / "again.weights")
    assert (tmp_path / "again.weights").read_bytes() == out.read_bytes()


def test_without_arguments_the_newest_run_is_converted(cvt, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = cvt()
    assert "taking the newest run" in printed and (run / "try.weights").exists() and (run / "try.cfg").exists()
    shutil.rmtree(run)
    assert "expected the folder of a run" in cvt(code=1)


def test_ema_is_what_is_written_with_ema(cvt, run, tmp_path):
    cvt(run / "last.pt", tmp_path / "plain.weights")
    cvt(run / "last.pt", tmp_path / "ema.weights", "--ema")
    plain, ema = (np.fromfile(tmp_path / f"{name}.weights", "<f4", offset=20) for name in ("plain", "ema"))
    assert np.array_equal(ema, plain * np.float32(0.5))
    state = load_checkpoint(run / "last.pt") | {"ema": None}
    save_checkpoint(run / "last.pt", state)
    assert "no running average" in cvt(run / "last.pt", tmp_path / "x.weights", "--ema", code=1)


def test_upto_writes_a_backbone_that_loads(cvt, run, tmp_path):
    cvt(run / "last.pt", tmp_path / "net.conv.12", "--upto", 12)
    whole = tmp_path / "whole.weights"
    cvt(run / "last.pt", whole)
    part = (tmp_path / "net.conv.12").read_bytes()
    assert whole.read_bytes().startswith(part) and len(part) < whole.stat().st_size


@pytest.mark.skipif(not hasattr(cv2.dnn, "readNetFromDarknet"), reason="OpenCV 5 has no Darknet importer")
def test_verify_reads_again_and_runs_opencv(cvt, run, tmp_path):
    printed = cvt(run / "last.pt", tmp_path / "net.weights", "--verify")
    assert "bytes again" in printed
    assert float(re.search(r"objectness on noise is (\S+)", printed)[1]) < 1e-4


@pytest.mark.skipif(not hasattr(cv2.dnn, "readNetFromDarknet"), reason="OpenCV 5 has no Darknet importer")
def test_verify_finds_predictions_that_differ(cvt, run, tmp_path, monkeypatch):
    from yolov4 import verify

    def shifted(logits, head):
        decoded = decode(logits, head)
        return decoded._replace(boxes=decoded.boxes + 0.01)

    monkeypatch.setattr(verify, "decode", shifted)
    assert "differ by 0.01" in cvt(run / "last.pt", tmp_path / "net.weights", "--verify", code=1)


def test_verify_finds_values_that_differ(cvt, run, tmp_path):
    cvt(run / "last.pt", tmp_path / "net.weights")
    model, _ = load_network(run / "last.pt")
    with torch.no_grad():
        model.layers[0][0].weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(ValueError, match=r"layers\.0\.0\.weight differs from the source"):
        check_bytes(tmp_path / "net.cfg", tmp_path / "net.weights", model)


@pytest.mark.parametrize("name", ["yolov3-tiny/yolov3-tiny", "yolo-fastest-1.0-xl-voc/yolo-fastest-1.0-xl-voc"])
def test_real_weights_pass_through_unchanged(cvt, name, shared, tmp_path):
    weights = shared / "models" / f"{name}.weights"
    cvt(weights, tmp_path / "net.pt")
    printed = cvt(tmp_path / "net.pt", tmp_path / "net.weights", "--verify", SHARED / "images/dog.jpg")
    assert (tmp_path / "net.weights").read_bytes() == weights.read_bytes()
    if hasattr(cv2.dnn, "readNetFromDarknet"):
        assert "dog.jpg" in printed


def test_wrong_targets_are_refused(cvt, run, tmp_path):
    assert "expected .weights or .pt" in cvt(run / "last.pt", tmp_path / "net.onnx", code=1)
    assert "is the source itself" in cvt(run / "last.pt", run / "last.pt", code=1)
    (tmp_path / "x.pt").write_bytes(b"<html>not found</html>")
    assert "x.pt" in cvt(tmp_path / "x.pt", tmp_path / "y.weights", code=1)
