"""cvt2darknet.py as a user calls it: there, back, and proven by OpenCV's own reader of .weights."""

import re
import shutil

import numpy as np
import pytest
import torch
from conftest import SHARED, settled

from yolov4 import Darknet, decode, export
from yolov4.cfg import format_cfg
from yolov4.networks import build
from yolov4.weights import load_checkpoint, save_checkpoint


@pytest.fixture
def cvt(call):
    """cvt(*arguments) runs the script -> what it printed, errors too."""

    def run(*arguments, code=0):
        found, *printed = call("cvt2darknet.py", *arguments)
        assert found == code
        return "".join(printed)

    return run


@pytest.fixture
def run(tmp_path):
    """A run of the small network as train.py leaves it, with averaged weights."""
    network = build("shapes")
    model = settled(Darknet(network, torch.Generator().manual_seed(0)))
    model(torch.rand(2, 3, network.net.height, network.net.width))
    values = model.state_dict()
    state = {
        "cfg": format_cfg(*network[:2]), "names": ["circle", "square", "triangle"], "model": values,
        "ema": {key: value * 0.5 for key, value in values.items()}, "iteration": 10, "seen": 160,
    }  # fmt: skip
    save_checkpoint(tmp_path / "runs/try/last.pt", state)
    (tmp_path / "runs/try/settings.json").write_text("{}")
    return tmp_path / "runs/try"


def test_there_and_back_keeps_every_value_the_names_and_what_was_seen(cvt, run, tmp_path):
    out = tmp_path / "out/net.weights"
    assert "160 images seen" in cvt(run / "last.pt", out)
    assert out.with_suffix(".names").read_text() == "circle\nsquare\ntriangle\n"
    cvt(out, tmp_path / "back.pt")
    back, first = load_checkpoint(tmp_path / "back.pt"), load_checkpoint(run / "last.pt")
    assert (back["seen"], back["iteration"], back["names"]) == (160, 10, first["names"])
    for key, value in first["model"].items():
        assert torch.equal(back["model"][key], value) or "num_batches" in key, key
    cvt(tmp_path / "back.pt", tmp_path / "again.weights")
    assert (tmp_path / "again.weights").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"names": [1, 2, 3]}, "name 1"),
        ({"names": ["a", "b", "c\nd"]}, "name 'c"),
        ({"names": ["a"]}, "1 names"),
        ({"version": (-1, 2, 5)}, "version"),
        ({"model": {"layers.0.0.weight": torch.tensor(1e300, dtype=torch.float64)}}, "layer 0"),
        ({"model": {"layers.0.0.weight": torch.zeros(1).expand(1 << 40)}}, "layer 0"),
        ({"version": 5}, "version 5"),
        ({"version": (0, "2", 5)}, "version"),
        ({"seen": 1 << 80}, "seen"),
        ({"iteration": -1}, "iteration"),
        ({"cfg": "[net]\nwidth=8\nheight=8\n[maxpool]\nsize=1", "model": {}, "ema": None}, "yolo"),
    ],
)
def test_a_checkpoint_of_other_values_is_one_sentence(cvt, run, changes, found):
    path = run / "last.pt"
    save_checkpoint(path, load_checkpoint(path) | changes)
    printed = cvt(path, run / "x.weights", code=1)
    assert re.search(rf"last\.pt.*{found}", printed) and printed.count("\n") == 1


@pytest.mark.parametrize("part", ["model", "ema"])
def test_a_checkpoint_with_non_finite_values_is_refused_with_the_layer(run, part):
    state = load_checkpoint(run / "last.pt")
    state[part]["layers.0.1.running_var"][0] = torch.nan
    save_checkpoint(run / "last.pt", state)
    with pytest.raises(ValueError, match=r"last\.pt: .*layer 0\.1\.running_var has non-finite"):
        load_checkpoint(run / "last.pt")


def test_without_arguments_the_newest_run_is_converted(cvt, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "taking the newest run" in cvt()
    assert (run / "try.weights").exists() and (run / "try.cfg").exists()
    shutil.rmtree(run)
    cvt(code=1)


def test_ema_writes_the_averaged_weights_and_upto_a_backbone(cvt, run, tmp_path):
    options = {"plain": (), "ema": ("--ema",), "part": ("--upto", 12)}
    for name, flags in options.items():
        cvt(run / "last.pt", tmp_path / f"{name}.weights", *flags)
    paths = (tmp_path / f"{name}.weights" for name in options)
    plain, ema, part = (np.fromfile(path, "<f4", offset=20) for path in paths)
    assert np.array_equal(ema, plain * np.float32(0.5))
    assert len(part) < len(plain) and np.array_equal(part, plain[: len(part)])
    save_checkpoint(run / "last.pt", load_checkpoint(run / "last.pt") | {"ema": None})
    assert "last.pt: " in cvt(run / "last.pt", tmp_path / "x.weights", "--ema", code=1)


def test_verify_reads_again_and_finds_predictions_that_differ(cvt, run, tmp_path, monkeypatch):
    printed = cvt(run / "last.pt", tmp_path / "net.weights", "--verify")
    assert "bytes again" in printed
    assert float(re.search(r"scores on noise is (\S+)", printed)[1]) < 1e-6

    def shifted(logits, head):
        decoded = decode(logits, head)
        return decoded._replace(boxes=decoded.boxes + 0.01)

    monkeypatch.setattr(export, "decode", shifted)
    assert "differ by 0.01" in cvt(run / "last.pt", tmp_path / "net.weights", "--verify", code=1)


@pytest.mark.parametrize("name", ["yolov3-tiny", "yolo-fastest-1.0-xl-voc"])
def test_real_weights_pass_through_unchanged(cvt, name, shared, tmp_path):
    source = shared / f"models/{name}/{name}.weights"
    cvt(source, tmp_path / "net.pt")
    picture = SHARED / "images/dog.jpg"
    printed = cvt(tmp_path / "net.pt", tmp_path / "net.weights", "--verify", picture)
    assert (tmp_path / "net.weights").read_bytes() == source.read_bytes()
    assert "dog.jpg" in printed


def test_wrong_files_are_refused(cvt, run, tmp_path):
    torch.save([], tmp_path / "x.pt")
    last = run / "last.pt"
    for source, made in (("x.pt", "y.weights"), (last, "net.onnx"), (last, last)):
        cvt(tmp_path / source, tmp_path / made, code=1)
