"""Trainings and weights that go through both Darknets and back: AlexeyAB's and hank-ai's.
Run by hand: `DARKNET=PATH DARKNET_HANK=PATH python -m pytest tests/test_both_darknets.py`;
it builds nothing, and is skipped without the paths."""

import os
import re
import struct
import subprocess
import sys

import pytest
from conftest import ROOT

from yolov4.weights import load_network

PROGRAMS = {name: os.environ.get(name) for name in ("DARKNET", "DARKNET_HANK")}
RECIPES = {  # flags of `yolov4 train`: Darknet's own recipe, and one with keys of no Darknet
    "darknet": ["--max-batches", "60"],
    "voc-v5-ema": ["--recipe", "voc-v5-ema", "--max-batches", "60", "--batch", "16",
                   "--subdivisions", "1", "--learning-rate", "0.02", "--amp", "off"],
}  # fmt: skip


def run(*command, cwd, stdin=None):
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, input=stdin, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="session", params=RECIPES)
def trained(request, tmp_path_factory):
    """A run on drawn shapes -> its folder, and the .data file, with labels beside the images."""
    work = tmp_path_factory.mktemp("both")
    yolov4 = [sys.executable, "-m", "yolov4"]
    run(sys.executable, ROOT / "data/shapes/make_shapes.py", "--out", "s", "--images", 60, cwd=work)
    run(*yolov4, "labels", "s", "--out", "d", "--beside", cwd=work)
    flags = ["--data", "d/voc.data", "--cfg", "shapes", "--name", "x", "--workers", 0]
    run(*yolov4, "train", *flags, *RECIPES[request.param], cwd=work)
    (work / "backup").mkdir()
    return work


@pytest.mark.parametrize("name", PROGRAMS)
def test_both_darknets_measure_train_and_hand_back(trained, name):
    program = PROGRAMS[name]
    if not program:
        pytest.skip(f"needs the path of a program in {name}")
    weights = trained / "runs/x/x_last.weights"
    files = trained / "d/voc.data", trained / "runs/x/x.cfg", weights
    quiet = ["-nocolour"] if "HANK" in name else []
    theirs = run(program, "detector", "map", *files, *quiet, cwd=trained)
    found = re.search(r"mean average precision \(mAP@0.50\)\s*=\s*([\d.]+)", theirs)
    ours = run(sys.executable, "-m", "yolov4", "detector", "map", *files, cwd=trained)
    here = re.search(r"\(mAP@0.50\) = ([\d.]+)", ours)
    # hank-ai's resizes by OpenCV; AlexeyAB's without OpenCV decodes JPEG files by itself
    assert float(found[1]) == pytest.approx(float(here[1]), abs=0.03), theirs[-2000:]
    # trained on there: some more iterations from our file, and back
    text = files[1].read_text().replace("max_batches=60", "max_batches=63")
    (trained / "x.cfg").write_text(re.sub("(mosaic|random)=1", r"\1=0", text))
    data = files[0].read_text().replace("backup = backup", f"backup = {trained}/backup")
    (trained / "x.data").write_text(data)
    command = program, "detector", "train", "x.data", "x.cfg", weights, "-dont_show", *quiet
    log = run(*command, cwd=trained, stdin="yes\n")
    back = trained / "backup/x_final.weights"
    assert struct.unpack("<3iq", back.read_bytes()[:20]) == (0, 2, 5, 63 * 16)
    if re.search(r"\bnan\b", log):
        pytest.skip("-Ofast makes NaN of logits below -88, which so short a training leaves")
    model, _ = load_network(back, trained / "x.cfg")
    assert model.seen // model.net.batch == 63
    again = run(
        sys.executable, "-m", "yolov4", "train", "--data", "d/voc.data", "--cfg", "x.cfg",
        "--weights", back, "--max-batches", 65, "--workers", 0, "--eval-every", 0, cwd=trained,
    )  # fmt: skip
    assert "starts at iteration 63 of 65" in again
