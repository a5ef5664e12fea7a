"""Whole trainings by train.py, as real processes where a process can be killed."""

import csv
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from yolov4 import Darknet, load_weights
from yolov4.runfolder import RunFolder
from yolov4.settings import Settings
from yolov4.training import Training

CFG = """
[net]
batch=4
subdivisions={subdivisions}
width=32
height=32
channels=3
saturation=1.5
exposure=1.5
hue=.1
mosaic=1
learning_rate={rate}
burn_in=4
max_batches={iterations}
policy=steps
steps=40,50
scales=.5,.5
[convolutional]
batch_normalize=1
filters=8
size=3
stride=4
pad=1
activation=mish
[dropout]
probability=.2
[convolutional]
batch_normalize=1
filters=16
size=3
stride=4
pad=1
activation=leaky
[convolutional]
filters=14
activation=linear
[yolo]
mask=0,1
anchors=8,8, 16,16
num=2
classes=2
iou_loss=ciou
iou_thresh=0.213
jitter=.3
resize=1.5
random={random}
"""


@pytest.fixture
def work(tmp_path):
    return write_pictures(tmp_path)


def write_pictures(tmp_path, count=8):
    """A folder with pictures of one bright square each, their labels, lists and names."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        image = generator.integers(0, 90, (40, 60, 3), dtype=np.uint8)
        left, top = generator.integers(2, 20, 2)
        image[top : top + 16, left : left + 20] = (60, 200, 250) if number % 2 else (250, 80, 60)
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
        box = ((left + 10) / 60, (top + 8) / 40, 20 / 60, 16 / 40)
        path.with_suffix(".txt").write_text(f"{number % 2} " + " ".join(map(str, box)) + "\n")
        paths.append(str(path))
    (tmp_path / "list.txt").write_text("\n".join(paths))
    (tmp_path / "tiny.names").write_text("blue\nyellow\n")
    (tmp_path / "tiny.data").write_text("classes=2\ntrain=list.txt\nvalid=list.txt\nnames=tiny.names\n")
    write_cfg(tmp_path)
    return tmp_path


def write_cfg(folder, subdivisions=1, rate=0.002, iterations=60, random=1):
    text = CFG.format(subdivisions=subdivisions, rate=rate, iterations=iterations, random=random)
    (folder / "tiny.cfg").write_text(text)


def command(root, work, *flags, launcher=(sys.executable,)):
    return [*launcher, str(root / "train.py"), "--runs", str(work / "runs"), "--device", "cpu", *map(str, flags)]


def started(root, work, *flags, **options):
    given = ["--data", work / "tiny.data", "--cfg", work / "tiny.cfg", "--workers", 0]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(root, work, *([] if "--resume" in flags else given), *flags), cwd=work, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def finished(root, work, *flags, code=0):
    process = started(root, work, *flags)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == code, out + errors
    return out, errors


def settings(work, **changes):
    base = {key: str(work / f"{name}") for key, name in
            (("cfg", "tiny.cfg"), ("train", "list.txt"), ("valid", "list.txt"), ("names", "tiny.names"))}  # fmt: skip
    return Settings(**base | {"device": "cpu"} | changes)


def trained(work, name, **changes):
    """A training in this process -> its last weights."""
    Training(settings(work, **changes), work / "runs" / name, say=lambda line: None).run()
    return (work / "runs" / name / f"{name}_last.weights").read_bytes()


def wait_for(condition, process):
    limit = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_killed_and_resumed_is_never_stopped_bit_for_bit(root, work):
    write_cfg(work, iterations=120)
    finished(root, work, "--name", "whole", "--save-every", 10, "--eval-every", 0)
    process = started(root, work, "--name", "killed", "--save-every", 10, "--eval-every", 0)
    wait_for((work / "runs/killed/last.pt").exists, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    out, _ = finished(root, work, "--resume", work / "runs/killed")
    assert "resuming" in out and "of 120" in out
    whole, killed = (torch.load(work / f"runs/{name}/last.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(whole["model"][key], killed["model"][key]) for key in whole["model"])
    buffers = [state["optimiser"]["state"][0]["momentum_buffer"] for state in (whole, killed)]
    assert torch.equal(*buffers)
    weights = [(work / f"runs/{name}/{name}_last.weights").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    with (work / "runs/killed/results.csv").open() as file:
        iterations = [int(row["iteration"]) for row in csv.DictReader(file)]
    assert iterations == list(range(1, 121))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_saves_and_says_how_to_go_on(root, work, number):
    """Ctrl-C on a terminal, or a cluster's SIGTERM, reaches the processes that load data too."""
    write_cfg(work, iterations=100000)
    flags = ["--name", "run", "--save-every", 100000, "--eval-every", 0, "--workers", 2]
    process = started(root, work, *flags, start_new_session=True)
    wait_for((work / "runs/run/train_batch3.jpg").exists, process)
    os.killpg(process.pid, number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"--resume {work / 'runs/run'}" in out and "Traceback" not in errors
    state = torch.load(work / "runs/run/last.pt", weights_only=True)
    assert state["iteration"] >= 3 and state["seen"] == 4 * state["iteration"]


def test_a_loss_that_is_no_number_stops_with_all_that_helps(root, work):
    write_cfg(work, rate="1e9")
    # with a worker process, which has to end too
    _, errors = finished(root, work, "--name", "run", "--save-every", 1, "--eval-every", 0, "--workers", 1, code=1)
    for part in ("the loss is", "at iteration", "rate", "class_loss", ".png", "last.pt"):
        assert part in errors
    state = torch.load(work / "runs/run/last.pt", weights_only=True)
    assert f"at iteration {state['iteration'] + 1} " in errors


def test_from_weights_training_goes_on_where_they_stand(root, work, monkeypatch):
    monkeypatch.chdir(work)
    write_cfg(work, iterations=6)
    trained(work, "first", eval_every=0)
    weights = str(work / "runs/first/first_last.weights")
    said = []
    write_cfg(work, iterations=8)
    Training(settings(work, weights=weights, eval_every=0), work / "runs/second", say=said.append).run()
    assert any("24 images seen, so on from iteration 6 of 8" in line for line in said)
    rows = list(csv.DictReader((work / "runs/second/results.csv").open()))
    assert [row["iteration"] for row in rows] == ["7", "8"]
    write_cfg(work, iterations=6)
    with pytest.raises(ValueError, match="at iteration 6 of 6, expected less; --clear"):
        Training(settings(work, weights=weights), work / "runs/third", say=said.append)
    Training(settings(work, weights=weights, clear=True, eval_every=0), work / "runs/fourth", say=said.append).run()


def test_a_run_leaves_what_it_should_and_learns(root, work):
    write_cfg(work, iterations=300, random=0)
    said = []
    Training(settings(work, eval_every=100, ema=0.99), work / "runs/run", say=said.append).run()
    names = {path.name for path in (work / "runs/run").iterdir()}
    pictures = {f"train_batch{number}.jpg" for number in (1, 2, 3)}
    weights = {f"run_{kind}.weights" for kind in ("last", "best", "ema")}
    others = {
        "run.cfg",
        "run.names",
        "settings.json",
        "results.csv",
        "chart.png",
        "last.pt",
        "previous.pt",
        "data.png",
        "report",
    }
    assert names == others | weights | pictures
    rows = list(csv.DictReader((work / "runs/run/results.csv").open()))
    assert [row["iteration"] for row in rows if row["map"]] == ["100", "200", "300"]
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    model = Darknet.from_cfg(work / "runs/run/run.cfg")
    assert load_weights(model, work / "runs/run/run_best.weights").seen in (400, 800, 1200)


def test_the_seed_decides(work):
    write_cfg(work, iterations=5)
    first = trained(work, "a", seed=3, eval_every=0)
    assert first == trained(work, "b", seed=3, eval_every=0)
    assert first != trained(work, "c", seed=4, eval_every=0)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_stays_near(work, amp):
    write_cfg(work, iterations=5, random=0)
    trained(work, "exact", eval_every=0)
    trained(work, "mixed", eval_every=0, amp=amp)
    rows = [list(csv.DictReader((work / f"runs/{name}/results.csv").open())) for name in ("exact", "mixed")]
    for exact, mixed in zip(*rows, strict=True):
        assert float(mixed["loss"]) == pytest.approx(float(exact["loss"]), rel=0.05)


def test_flags_stand_above_the_cfg(work):
    write_cfg(work, iterations=60)
    run = Training(settings(work, epochs=15, batch=8, subdivisions=2, policy="onecycle"), work / "runs/run", say=print)
    net = run.net
    assert (net.max_batches, net.batch, net.subdivisions, net.policy) == (15, 8, 2, "onecycle")
    assert net.steps == (10, 12) and net.burn_in == 2


def test_missing_data_and_weights_name_the_commands_that_bring_them(root, work):
    for folder in ("cfg", "data/voc0712"):
        (work / folder).mkdir(parents=True)
    (work / "cfg/voc.data").write_text("train=data/voc0712/train.txt\nnames=data/voc0712/voc.names\n")
    done = subprocess.run([sys.executable, str(root / "train.py")], cwd=work, capture_output=True, text=True)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 4 and "voc_label.py" in lines[0] and "yolov4.conv.137 is missing: --download" in lines[1]


def test_an_unknown_flag_is_an_error(root, work):
    done = subprocess.run(
        [sys.executable, str(root / "train.py"), "--epoch-count", "3"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "--epoch-count" in done.stderr


def test_names_and_classes_have_to_agree(work):
    (work / "tiny.names").write_text("blue\n")
    with pytest.raises(ValueError, match=r"1 names, but .*tiny\.cfg has 2 classes"):
        Training(settings(work), work / "runs/run", say=print)


def test_patience_stops_and_says_so(work, monkeypatch):
    from yolov4 import training

    write_cfg(work, iterations=100)
    measured = iter([0.5, 0.6, 0.55, 0.6, 0.4, 0.3, 0.9])

    def collected(*_, **__):
        result = SimpleNamespace(map=next(measured))
        return SimpleNamespace(result=lambda: result, records=[])

    monkeypatch.setattr(training, "collect", collected)
    monkeypatch.setattr(RunFolder, "report", lambda _: None)
    said = []
    Training(settings(work, eval_every=5, patience=2), work / "runs/run", say=said.append).run()
    assert any("stopped at iteration 30 of 100 after 2 evaluations without a better mAP than 60.00%" in s for s in said)
    assert torch.load(work / "runs/run/last.pt", weights_only=True)["iteration"] == 30


def test_resume_takes_no_other_recipe(root, work):
    done = subprocess.run(
        [sys.executable, str(root / "train.py"), "--resume", "--batch", "3"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "expected no --batch" in done.stderr


def test_out_of_memory_advises_subdivisions(work, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    run = Training(settings(work), work / "runs/run", say=lambda line: None)
    monkeypatch.setattr(run.updater, "update", exhausted)
    with pytest.raises(ValueError, match=r"out of memory with 4 images .* of 32x32, .*more --subdivisions"):
        run.run()
