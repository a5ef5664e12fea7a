"""Whole trainings by train.py, as real processes where a process can be killed."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from yolov4 import Darknet, data, load_weights, plots, report
from yolov4.recipe import Settings
from yolov4.runs import resumed_settings
from yolov4.training import NonFiniteLoss, Training
from yolov4.weights import load_checkpoint, network_files, save_checkpoint

CFG = """
[net] batch=4 subdivisions={subdivisions} width=32 height=32 channels=3 saturation=1.5
exposure=1.5 hue=.1 mosaic=1 learning_rate={rate} burn_in=4 max_batches={iterations} policy=steps
steps=40,50 scales=.5,.5
[convolutional] batch_normalize=1 filters=8 size=3 stride=4 pad=1 activation=mish
[dropout] probability=.2
[convolutional] batch_normalize=1 filters=16 size=3 stride=4 pad=1 activation=leaky
[convolutional] filters=14 activation=linear
[yolo] mask=0,1 anchors=8,8,16,16 num=2 classes=2 iou_loss=ciou iou_thresh=0.213 jitter=.3
resize=1.5 random={random}
""".replace(" ", "\n")


def without_pictures(setattr):
    """Training draws no charts, which take seconds."""
    setattr(plots, "training_chart", lambda table, picture, title: picture.write_bytes(b""))
    setattr(report, "write_data", lambda *_: None)


@pytest.fixture
def work(tmp_path, monkeypatch):
    without_pictures(monkeypatch.setattr)
    return write_pictures(tmp_path)


def write_pictures(folder, count=8):
    """A folder with pictures of one bright square each, their labels, lists and names."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    paths = [folder / "images" / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        image = generator.integers(0, 90, (40, 60, 3), dtype=np.uint8)
        left, top = generator.integers(2, 20, 2)
        image[top : top + 16, left : left + 20] = (60, 200, 250) if number % 2 else (250, 80, 60)
        cv2.imwrite(str(path), image)
        box = ((left + 10) / 60, (top + 8) / 40, 20 / 60, 16 / 40)
        path.with_suffix(".txt").write_text(f"{number % 2} " + " ".join(map(str, box)) + "\n")
    (folder / "list.txt").write_text("\n".join(map(str, paths)))
    (folder / "tiny.names").write_text("blue\nyellow\n")
    (folder / "tiny.data").write_text("train=list.txt\nvalid=list.txt\nnames=tiny.names\n")
    write_cfg(folder)
    return folder


def write_cfg(folder, subdivisions=1, rate=0.002, iterations=60, random=1):
    text = CFG.format(subdivisions=subdivisions, rate=rate, iterations=iterations, random=random)
    (folder / "tiny.cfg").write_text(text)


def started(work, *flags, launcher=(sys.executable,), runs="runs"):
    """train.py in a session of its own."""
    given = ["--data", "tiny.data", "--cfg", "tiny.cfg", "--eval-every", 0, "--name", "run"]
    given += ["--runs", work / runs, "--device", "cpu", *flags]
    command = map(str, [*launcher, ROOT / "train.py", *given])
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": work}
    options["preexec_fn"] = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # under nohup too
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen([*command], env=environment, start_new_session=True, **options)


def settings(work, **changes):
    files = {"cfg": "tiny.cfg", "train": "list.txt", "valid": "list.txt", "names": "tiny.names"}
    paths = {key: str(work / name) for key, name in files.items()}
    return Settings(**paths | {"device": "cpu"} | changes)


def training(work, name="run", say=lambda line: None, resume=False, **changes):
    return Training(settings(work, **changes), work / "runs" / name, resume, say)


def trained(work, name, *arguments, **changes):
    """A training in this process -> its last weights."""
    training(work, name, *arguments, **changes).run()
    return (work / "runs" / name / f"{name}_last.weights").read_bytes()


def rows(folder):
    return list(csv.DictReader((folder / "results.csv").open()))


def wait_for(condition, process):
    limit = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def assert_same_state(one, two):
    """Of two last.pt: the same weights, momentum and scale of gradients."""
    assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])
    momenta = (state["optimiser"]["state"].values() for state in (one, two))
    for a, b in zip(*momenta, strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    assert one["scaler"] == two["scaler"]


@pytest.mark.parametrize("options", [{"amp": "fp16"}, {"loss": "yolov5", "ema": 0.9}])
def test_resumed_is_never_stopped_bit_for_bit(work, options):
    """In float16 steps are skipped until the scale fits: a run that forgot it would skip anew."""
    write_cfg(work, iterations=12)
    whole = trained(work, "whole", valid=None, save_every=6, **options)
    (work / "runs/resumed").mkdir()
    (work / "runs/whole/previous.pt").rename(work / "runs/resumed/last.pt")
    assert trained(work, "resumed", resume=True, valid=None, **options) == whole
    states = [load_checkpoint(work / f"runs/{name}/last.pt") for name in ("whole", "resumed")]
    assert_same_state(*states)
    assert "amp" not in options or states[0]["scaler"]["scale"] < 2**16


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_what_ends_a_run_leaves_a_checkpoint_and_says_how_to_resume(work, number):
    """Ctrl-C on a terminal, or a cluster's SIGTERM, reaches the processes that load data too;
    SIGKILL ends one of these alone."""
    write_cfg(work, iterations=100000)
    killed = number == signal.SIGKILL
    process = started(work, "--save-every", 5 if killed else 100000, "--workers", 2)
    wait_for((work / "runs/run" / ("last.pt" if killed else "train_batch3.jpg")).exists, process)
    if killed:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), number)
    else:
        os.killpg(process.pid, number)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == killed and "Traceback" not in errors, out + errors
    said = (
        "" if number == signal.SIGHUP else f"--resume {work / 'runs/run'}"
    )  # the terminal is gone
    assert said in (errors if killed else out)
    assert ("another process died" in errors) == killed
    state = load_checkpoint(work / "runs/run/last.pt")
    assert state["iteration"] >= 3 and state["seen"] == 4 * state["iteration"]


@pytest.mark.parametrize("listener", ["| true", ">&- 2>&-"])
def test_a_run_that_nobody_listens_to_goes_on(tmp_path, listener):
    """`| tee log` ends by the same Ctrl-C, before the training says so and saves."""
    work = write_pictures(tmp_path)
    write_cfg(work, iterations=2)
    command = f"{sys.executable} {ROOT}/train.py --data tiny.data --cfg tiny.cfg --device cpu"
    script = f"{command} --workers 0 {listener}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", script], cwd=work, capture_output=True, timeout=100)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    assert load_checkpoint(work / "runs/tiny/last.pt")["iteration"] == 2


def test_a_non_finite_loss_stops_with_all_that_helps(work):
    write_cfg(work, rate="1e9")
    with pytest.raises(NonFiniteLoss) as caught:
        trained(work, "run", save_every=1, workers=1)
    iteration = load_checkpoint(work / "runs/run/last.pt")["iteration"]
    for part in ("loss", "rate", "class_loss", ".png", f"at iteration {iteration + 1}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_overflowing_gradients_stop_before_anything_changes(work, amp):
    run = training(work, valid=None, amp=amp)
    run.model.layers[0][0].weight.register_hook(lambda gradient: gradient * float("inf"))
    before = [parameter.clone() for parameter in run.model.parameters()]
    message = "iteration 33, " if amp == "fp16" else r"iteration 1, .*\.png"
    with pytest.raises(NonFiniteLoss, match=message):
        run.run()
    assert all(torch.equal(*pair) for pair in zip(before, run.model.parameters(), strict=True))


def test_from_weights_training_starts_where_they_stand(work):
    write_cfg(work, iterations=6)
    trained(work, "first", eval_every=0)
    weights = str(work / "runs/first/first_last.weights")
    with pytest.raises(ValueError, match="at iteration 6 of 6, expected less; --clear"):
        training(work, weights=weights)
    trained(work, "fourth", weights=weights, clear=True, eval_every=0)
    write_cfg(work, iterations=8)
    said = []
    trained(work, "second", said.append, weights=weights, eval_every=0)
    assert any("24 images seen; starts at iteration 6 of 8" in line for line in said)
    assert [row["iteration"] for row in rows(work / "runs/second")] == ["7", "8"]


def test_a_run_leaves_what_it_should_and_learns(tmp_path):
    work = write_pictures(tmp_path)
    write_cfg(work, iterations=300, random=0)
    trained(work, "run", eval_every=100, ema=0.99)
    folder = work / "runs/run"
    expected = {f"train_batch{number}.jpg" for number in (1, 2, 3)}
    expected |= {f"run_{kind}.weights" for kind in ("last", "best", "ema")}
    expected |= {"run.cfg", "run.names", "settings.json", "results.csv", "chart.png"}
    expected |= {"last.pt", "previous.pt", "data.png", "report"}
    assert {path.name for path in folder.iterdir()} == expected
    table = rows(folder)
    assert [row["iteration"] for row in table if row["map"]] == ["100", "200", "300"]
    assert float(table[-1]["loss"]) < 0.5 * float(table[0]["loss"])
    model = Darknet.from_cfg(folder / "run.cfg")
    assert load_weights(model, folder / "run_best.weights").seen in (400, 800, 1200)


def test_the_seed_decides_and_the_number_of_workers_does_not(work):
    write_cfg(work, iterations=5, subdivisions=2)
    runs = [trained(work, f"run{n}", seed=3, eval_every=0, workers=n) for n in (0, 1, 2)]
    assert runs[0] == runs[1] == runs[2] != trained(work, "other", seed=4, eval_every=0)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_stays_near_and_finite(work, amp):
    write_cfg(work, iterations=60, random=0)
    trained(work, "mixed", valid=None, amp=amp)
    write_cfg(work, iterations=5, random=0)
    trained(work, "exact", valid=None)
    tables = (rows(work / "runs" / name) for name in ("mixed", "exact"))
    mixed, exact = ([float(row["loss"]) for row in table] for table in tables)
    assert mixed[:5] == pytest.approx(exact, rel=0.05)
    assert len(mixed) == 60 and np.isfinite(mixed).all()
    state = load_checkpoint(work / "runs/mixed/last.pt")["model"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_patience_stops_and_says_so(work, monkeypatch):
    write_cfg(work, iterations=20)
    measured = iter([0.5, 0.6, 0.55, 0.6, 0.4, 0.3, 0.9])

    def collect(*_, **__):
        result = SimpleNamespace(map=next(measured))
        return SimpleNamespace(result=lambda: result, records=[])

    monkeypatch.setattr("yolov4.training.collect", collect)
    monkeypatch.setattr("yolov4.report.write", lambda *_, **__: None)
    said = []
    trained(work, "run", said.append, eval_every=2, patience=2)
    assert any("stopped at iteration 12 of 20 after 2 evaluations" in line for line in said)
    assert load_checkpoint(work / "runs/run/last.pt")["iteration"] == 12


def test_images_that_vanish_are_replaced_until_they_are_too_many(tmp_path, monkeypatch):
    without_pictures(monkeypatch.setattr)
    work, said = write_pictures(tmp_path, 120), []
    run, other = (training(work, n, said.append, valid=None, workers=1) for n in "ab")
    (work / "images/3.png").unlink()
    run.run()
    assert sum("3.png" in line and "another image takes its place" in line for line in said) == 1
    for path in (work / "images").glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"of 120 images cannot be read any more"):
        other.run()


def test_a_full_disk_keeps_the_checkpoint_and_says_so(tmp_path):
    path, (_, most) = tmp_path / "last.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    state = {"cfg": "", "names": [], "model": {"a": torch.zeros(200_000)}, "ema": None, "seen": 4}
    save_checkpoint(path, state | {"iteration": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        with pytest.raises(OSError, match=r"File too large.*last\.pt"):
            save_checkpoint(path, state | {"iteration": 2}, keep=tmp_path / "previous.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert load_checkpoint(path)["iteration"] == 1 and list(tmp_path.iterdir()) == [path]


def test_a_broken_checkpoint_offers_the_one_before(work):
    write_cfg(work, iterations=4)
    trained(work, "run", eval_every=0, save_every=2)
    folder = work / "runs/run"
    content = bytearray((folder / "last.pt").read_bytes())
    weight = load_checkpoint(folder / "last.pt")["model"]["layers.0.1.running_var"]
    content[content.index(weight.numpy().tobytes()) + 6] ^= 1
    (folder / "last.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"previous\.pt"):
        training(work, resume=True)
    (folder / "previous.pt").rename(folder / "last.pt")
    trained(work, "run", resume=True, eval_every=0)
    assert load_checkpoint(folder / "last.pt")["iteration"] == 4


def test_where_a_run_was_made_stays_in_its_settings(root, tmp_path, monkeypatch):
    """settings.json names the files that --resume reads again; nothing else of a run does."""
    monkeypatch.setattr("socket.gethostname", lambda: "telltale")
    work = write_pictures(tmp_path / "telltale")
    write_cfg(work, iterations=2)
    trained(work, "run", ema=0.9)
    held = {path.name: path.read_bytes() for path in work.glob("runs/run/**/*") if path.is_file()}
    assert {"last.pt", "run_ema.weights", "report.html", "results.csv", "chart.png"} <= held.keys()
    secrets = b"telltale", bytes(Path.home()) + b"/", bytes(root / "yolov4")
    found = {name for name, content in held.items() if any(each in content for each in secrets)}
    assert found == {"settings.json"}


def test_a_full_memory_takes_more_subdivisions_and_the_run_goes_on(work):
    """It ends, and resumes, with the weights of a run that had as many from the start."""
    write_cfg(work, iterations=8, subdivisions=2)
    expected = trained(work, "expected", eval_every=0)
    write_cfg(work, iterations=8)
    said = []
    run = training(work, "run", said.append, eval_every=0, save_every=4)

    def full(_, arguments, output):
        if len(output) > 2 and run.model.training:
            raise torch.OutOfMemoryError

    run.model.layers[-2].register_forward_hook(full)
    run.run()
    folder = work / "runs/run"
    assert (folder / "run_last.weights").read_bytes() == expected
    assert len([line for line in said if "out of memory" in line]) == 1
    assert "subdivisions=2\n" in (folder / "run.cfg").read_text()
    (folder / "previous.pt").rename(folder / "last.pt")
    assert trained(work, "run", resume=True, eval_every=0) == expected


@pytest.mark.parametrize("part", ["model", "optimiser", "scaler"])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(work, part):
    write_cfg(work, iterations=2)
    trained(work, "run", eval_every=0)
    path = work / "runs/run/last.pt"
    save_checkpoint(path, load_checkpoint(path) | {part: {"scale": torch.zeros(3)}})
    with pytest.raises(ValueError, match=f"last.pt: its {part} does not fit"):
        training(work, "run", resume=True, eval_every=0, amp="fp16")


def no_gpu_memory(*_):
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("full", [no_gpu_memory, lambda *_: torch.empty(1 << 60)])
def test_one_image_without_memory_ends_with_a_sentence(work, full):
    run = training(work, valid=None, subdivisions=2)
    run.model.layers[-2].register_forward_hook(full)
    with pytest.raises(ValueError, match="out of memory with mini-batches of 1 images"):
        run.run()


def test_the_fewest_subdivisions_are_looked_for_on_a_gpu_alone(work, call):
    flags = "--data tiny.data --cfg tiny.cfg --subdivisions auto --device cpu"
    code, _, errors = call("train.py", *flags.split())
    assert code == 1 and "--subdivisions auto: found cpu" in errors


def test_what_cannot_be_evaluated_is_left_out_or_reported(work, monkeypatch):
    """A cut picture and a class that does not exist; then the whole list."""
    write_cfg(work, iterations=6)
    said = []
    run = training(work, say=said.append, eval_every=2)
    log = run._log

    def break_more(*arguments):
        iteration = run.progress.iteration
        if iteration == 2:
            picture = work / "images/0.png"
            picture.write_bytes(picture.read_bytes()[:900])
            (work / "images/1.txt").write_text("7 .5 .5 .5 .5\n")
        if iteration == 4:
            (work / "list.txt").unlink()
        return log(*arguments)

    monkeypatch.setattr("yolov4.training.UNREADABLE", 1)
    monkeypatch.setattr(run, "_log", break_more)
    run.run()
    found = [row["map"] for row in rows(work / "runs/run")]
    assert found[1] and not any(found[2:])
    result = next(line for line in said if line.startswith("iteration 2: mAP"))
    assert "2 images left out" in result
    assert all(
        any(name in line and "left out" in line for line in said) for name in ("0.png", "1.txt")
    )
    assert sum("could not be evaluated" in line and "list.txt" in line for line in said) == 2
    assert not (work / "runs/run/report").exists()  # of an older evaluation


def test_a_run_whose_validation_images_all_break_ends_with_their_names(work, monkeypatch):
    write_cfg(work, iterations=4)
    (work / "valid").mkdir()
    write_pictures(work / "valid", 2)
    said, valid = [], str(work / "valid/list.txt")
    run = training(work, say=said.append, eval_every=2, valid=valid)
    log = run._log

    def break_all(*arguments):
        for path in (work / "valid/images").glob("*.png"):
            path.write_bytes(b"" if run.progress.iteration > 2 else path.read_bytes())
        return log(*arguments)

    monkeypatch.setattr(run, "_log", break_all)
    run.run()
    assert sum("0 bytes" in line and "left out" in line for line in said) == 2
    assert any("without mAP" in line and "2 images, none of which" in line for line in said)


def test_a_run_that_ends_while_it_is_evaluated_is_resumed_with_the_evaluation(work, monkeypatch):
    write_cfg(work, iterations=4)
    whole = trained(work, "whole", eval_every=2)
    (work / "runs/whole/report/report.html").unlink()

    def die(*_, **__):
        raise KeyboardInterrupt

    for count in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("yolov4.training.collect", die)
            training(work, resume=count > 1, eval_every=2).run()
        assert load_checkpoint(work / "runs/run/last.pt")["iteration"] == 2
    assert trained(work, "run", resume=True, eval_every=2) == whole
    tables = [[(r["loss"], r["map"]) for r in rows(work / "runs" / n)] for n in ("whole", "run")]
    assert tables[0] == tables[1] and tables[0][1][1]
    trained(work, "whole", resume=True, eval_every=2)  # finished, but without its report
    assert (work / "runs/whole/report/report.html").exists()


def test_data_that_does_not_come_ends_a_run_that_resumes_bit_for_bit(work, monkeypatch):
    write_cfg(work, iterations=8, subdivisions=2)
    whole = trained(work, "whole", valid=None, workers=1)
    monkeypatch.setattr("yolov4.data.DATA_LIMIT", 2)
    original, run = data.TrainingSet.__getitem__, training(work, valid=None, workers=1)

    def hang(self, key):
        if key[0] >= 18:  # the second mini-batch of iteration 5
            time.sleep(100)
        return original(self, key)

    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"hangs.*--resume"):
        patch.setattr(data.TrainingSet, "__getitem__", hang)
        run.run()
    assert load_checkpoint(work / "runs/run/last.pt")["iteration"] == 4
    assert trained(work, "run", resume=True, valid=None, workers=1) == whole


def test_sigterm_ends_a_wait_for_a_worker_that_hangs(work):
    write_cfg(work, iterations=100000)
    process = started(work, "--save-every", 100000, "--workers", 1)
    wait_for((work / "runs/run/train_batch3.jpg").exists, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGSTOP)
    os.kill(process.pid, signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "--resume" in out, out + errors
    assert load_checkpoint(work / "runs/run/last.pt")["iteration"] >= 2


def test_a_folder_belongs_to_one_training(work):
    """Two that start at once get two folders; one that runs cannot be resumed by another."""
    write_cfg(work, iterations=100000)
    processes = [started(work, "--save-every", 1, "--workers", 0) for _ in range(2)]
    try:
        for process, name in zip(processes, ("run", "run-2"), strict=True):
            wait_for((work / "runs" / name / "last.pt").exists, process)
        command = [sys.executable, ROOT / "train.py", "--resume", work / "runs/run"]
        second = subprocess.run(command, capture_output=True, text=True, cwd=work, timeout=100)
        number = (work / "runs/run/.lock").read_text()
        assert int(number) in {process.pid for process in processes}
        assert second.returncode == 1 and f"process {number}" in second.stderr
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    training(work, resume=True)  # the lock died with its process


def test_a_renamed_run_keeps_its_name_and_its_own_best_weights(work):
    write_cfg(work, iterations=8)
    run = training(work, eval_every=2, save_every=2)
    run.updater.update, update = lambda *each: run._stop(0, 0) or update(*each), run.updater.update
    run.run()
    (work / "runs/run").rename(work / "runs/renamed")
    training(work, "renamed", resume=True, eval_every=2).run()
    found = {path.name for path in (work / "runs/renamed").glob("*.weights")}
    assert found == {"run_last.weights", "run_best.weights"}
    assert network_files(root=work / "runs").weights.name == "run_best.weights"


def test_a_list_that_changed_is_said_when_a_run_is_resumed(work):
    write_cfg(work, iterations=4)
    trained(work, "run", eval_every=0)
    lines = (work / "list.txt").read_text().splitlines()
    for changed in (lines, lines[::-1], lines[:-1]):
        (work / "list.txt").write_text("\n".join(changed))
        said = []
        training(work, say=said.append, resume=True, valid=None)
        assert any("list.txt: has other images" in line for line in said) == (changed != lines)


@pytest.mark.parametrize("change", [
    lambda text: "\ufeff" + text,
    lambda text: text.replace(",", ";"),
    lambda text: "".join(line.rstrip() + ",1\r\n" for line in text.splitlines()),
    lambda text: "".join(line.rpartition(",")[0] + "\r\n" for line in text.splitlines()),
    lambda text: text.replace("\r\n", "\r"),
    lambda text: text.replace(".", ","),
])  # fmt: skip
def test_results_that_another_program_changed_are_set_aside(work, change):
    write_cfg(work, iterations=6)
    trained(work, "run", valid=None, save_every=3)
    folder, said = work / "runs/run", []
    (folder / "previous.pt").rename(folder / "last.pt")
    table = folder / "results.csv"
    text = change(table.read_bytes().decode())
    table.write_bytes(text.encode())
    trained(work, "run", said.append, True, valid=None)
    assert [row["iteration"] for row in rows(folder)] == ["4", "5", "6"]
    assert (folder / "results.csv.old").read_bytes() == text.encode()
    assert sum("results.csv.old" in line for line in said) == 1


def test_settings_that_another_program_changed_are_set_aside(work):
    write_cfg(work, iterations=2)
    (work / "tiny.data").write_text(f"train={work}/list.txt\nnames={work}/tiny.names\n")
    given = {"valid": None, "ema": 0.9, "seed": 3, "data": str(work / "tiny.data")}
    trained(work, "run", **given)
    folder, said = work / "runs/run", []
    assert resumed_settings(folder, said.append) == settings(work, **given) and not said
    found = json.loads((folder / "settings.json").read_text()) | {"note": 1}
    del found["ema"], found["train"]
    (folder / "settings.json").write_text("\ufeff" + json.dumps(found))
    assert resumed_settings(folder, said.append) == settings(work, **given)
    assert (folder / "settings.json.old").exists() and len(said) == 1
    other = {"seed": "3", "train": None, "save_every": None, "ema": [0.9], "name": "../../x"}
    (folder / "settings.json").write_text(json.dumps(found | other, indent=1) + "\n")
    assert resumed_settings(folder, said.append) == settings(work, **given) and len(said) == 2
    training(work, resume=True, **given)
    assert (folder / "x.cfg").exists()  # in the folder
