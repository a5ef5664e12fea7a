"""Nothing is lost: images that vanish, disks that fill, checkpoints that break, power that goes, numbers at the edge.
Source of what is expected: docs/reliability.md."""

import csv
import multiprocessing
import os
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import power_cut
import pytest
import torch
from fuzz_readers import TINY
from test_training import finished, settings, started, trained, wait_for, write_cfg, write_pictures

from yolov4 import batches as batching
from yolov4 import files
from yolov4.cfg import parse_cfg
from yolov4.checkpoint import load_checkpoint, save_checkpoint
from yolov4.files import replacing
from yolov4.model import Darknet
from yolov4.progress import Faults
from yolov4.training import Training
from yolov4.updates import NonFiniteLoss
from yolov4.weights import save_weights


@pytest.fixture
def work(tmp_path):
    return write_pictures(tmp_path)


def test_an_image_that_vanishes_is_replaced_the_same_way_whoever_loads_it(work):
    network = parse_cfg((work / "tiny.cfg").read_text())
    paths = sorted((work / "images").glob("*.png"))
    paths[2].unlink()
    paths[5].write_bytes(b"\x89PNG")

    def samples(order):
        training_set = batching.TrainingSet(paths, network.net, network.sections[-1], 0)
        return {index: training_set[index, (32, 32)] for index in order}

    forward, backward = samples(range(30)), samples(reversed(range(30)))
    assert all(torch.equal(forward[i].image, backward[i].image) for i in forward)
    assert all(forward[i].faults == backward[i].faults for i in forward)
    assert {path for i in forward for path, _ in forward[i].faults} == {str(paths[2]), str(paths[5])}
    used = {path for i in forward for path in forward[i].files}
    assert used == {str(path) for number, path in enumerate(paths) if number not in (2, 5)}


def test_faults_are_said_once_and_stop_above_one_percent():
    said = []
    faults = Faults(200, said.append)
    for _ in range(3):
        faults.add([("a.jpg", "a.jpg: gone"), ("b.jpg", "b.jpg: gone")])
    assert said == [f"{name}: gone; another image takes its place ({n} of 200 so far)"
                    for n, name in enumerate(("a.jpg", "b.jpg"), 1)]  # fmt: skip
    with pytest.raises(ValueError, match=r"3 of 200 images cannot be read any more, the last: c\.jpg; .* 1%"):
        faults.add([("c.jpg", "c.jpg: gone")])


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_vanish_in_a_run(tmp_path, workers):
    work = write_pictures(tmp_path, 120)
    write_cfg(work, iterations=120)
    said = []
    run = Training(settings(work, valid=None, workers=workers), work / "runs/run", say=said.append)
    (work / "images/3.png").unlink()
    run.run()
    assert sum("3.png" in line and "another image takes its place (1 of 120 so far)" in line for line in said) == 1
    (work / "images/3.png").write_bytes((work / "images/5.png").read_bytes())
    run = Training(settings(work, valid=None, workers=workers), work / "runs/run2", say=said.append)
    for path in (work / "images").glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"of 120 images cannot be read any more") as caught:
        run.run()
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()  # else Python waits for them at its exit


def test_a_worker_that_dies_is_one_sentence(root, work):
    write_cfg(work, iterations=100000)
    process = started(root, work, "--name", "run", "--save-every", 5, "--eval-every", 0, "--workers", 1)
    wait_for((work / "runs/run/last.pt").exists, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors, errors
    assert "a process that prepares images died" in errors.splitlines()[-1]
    assert load_checkpoint(work / "runs/run/last.pt")


STATE = {"cfg": "", "names": [], "model": {"a": torch.zeros(200_000)}, "ema": None, "iteration": 1, "seen": 4}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB, or the test is skipped (it takes root)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_checkpoint_and_says_so(small_disk):
    path = small_disk / "last.pt"
    save_checkpoint(path, STATE, keep=small_disk / "previous.pt")
    (small_disk / "fill").write_bytes(bytes(900_000))
    with pytest.raises(OSError, match=r"No space left.*before is kept.*last\.pt") as caught:
        save_checkpoint(path, STATE | {"iteration": 2}, keep=small_disk / "previous.pt")
    assert "\n" not in str(caught.value)
    assert load_checkpoint(path)["iteration"] == 1
    assert not list(small_disk.glob(".*"))
    (small_disk / "fill").unlink()
    save_checkpoint(path, STATE | {"iteration": 2}, keep=small_disk / "previous.pt")
    assert [load_checkpoint(small_disk / name)["iteration"] for name in ("previous.pt", "last.pt")] == [1, 2]


@pytest.mark.parametrize("step", ["mkdir", "open", "replace"])
def test_a_folder_that_takes_nothing_is_one_sentence(tmp_path, monkeypatch, step):
    """Root writes into read-only folders too, so each step refuses in turn."""
    path = tmp_path / "a.txt"
    path.write_text("before")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os if step == "replace" else Path, step, refuse)
    with pytest.raises(OSError, match=r"could not be written \(Permission denied\); what was there before is kept"):  # noqa: SIM117
        with replacing(path) as beside:
            os.close(os.open(beside, os.O_CREAT | os.O_WRONLY))
    monkeypatch.undo()
    assert path.read_text() == "before" and [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_broken_checkpoint_offers_the_one_before(root, work):
    write_cfg(work, iterations=8)
    trained(work, "run", eval_every=0, save_every=4)
    folder = work / "runs/run"
    assert [load_checkpoint(folder / name)["iteration"] for name in ("previous.pt", "last.pt")] == [4, 8]
    content = bytearray((folder / "last.pt").read_bytes())
    weight = load_checkpoint(folder / "last.pt")["model"]["layers.0.1.running_var"]
    content[content.index(weight.numpy().tobytes()) + 6] ^= 1
    (folder / "last.pt").write_bytes(content)
    _, errors = finished(root, work, "--resume", folder, code=1)
    assert len(errors.strip().splitlines()) == 1
    assert "previous.pt is whole, of iteration 4: rename it to last.pt to go on from there" in errors
    (folder / "previous.pt").rename(folder / "last.pt")
    finished(root, work, "--resume", folder)
    assert load_checkpoint(folder / "last.pt")["iteration"] == 8


def test_a_text_file_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(files, "MAX_TEXT", 1 << 20)
    with pytest.raises(ValueError, match="/dev/zero: has more than 1,048,576 bytes, expected a text file"):
        files.read_text("/dev/zero")


def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_been(work):
    assert len(power_cut.power_cuts(work, kills=5, iterations=20, seed=1)) >= 1


def test_two_processes_killed_with_their_launcher_go_on_as_if_nothing_had_been(work):
    assert len(power_cut.power_cuts(work, kills=2, iterations=12, seed=2, processes=2)) >= 1


@pytest.mark.parametrize("victim", [0, 1])
def test_of_two_processes_one_that_dies_alone_ends_the_other_with_a_sentence(work, victim, capfd):
    write_cfg(work, iterations=100000)
    ranks = power_cut.start_ranks(2, work, "run", 2, None)
    wait_for((work / "runs/run/last.pt").exists, SimpleNamespace(poll=lambda: ranks[0].exitcode))
    ranks[victim].kill()
    ranks[1 - victim].join(60)
    assert ranks[1 - victim].exitcode == 1
    assert "another process died (" in capfd.readouterr().err
    assert load_checkpoint(work / "runs/run/last.pt")["iteration"] >= 2


def test_a_kill_while_it_resumes_keeps_the_results(work):
    write_cfg(work, iterations=8)
    assert power_cut.run_once(work, "run", 4, ("replace", 8)) == -signal.SIGKILL
    before = (work / "runs/run/results.csv").read_text()
    assert power_cut.run_once(work, "run", 4, ("replace", 5)) == -signal.SIGKILL
    rows = list(csv.DictReader((work / "runs/run/results.csv").open()))
    assert [row["iteration"] for row in rows] == ["1", "2", "3", "4"] and before.startswith("iteration")


def test_the_number_of_workers_changes_nothing(work):
    write_cfg(work, iterations=12, subdivisions=2)
    runs = [trained(work, f"run{workers}", eval_every=0, workers=workers) for workers in (0, 1, 2)]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_stays_a_number_for_200_iterations(work, amp):
    write_cfg(work, iterations=200)
    trained(work, "run", valid=None, amp=amp)
    rows = list(csv.DictReader((work / "runs/run/results.csv").open()))
    assert len(rows) == 200 and all(np.isfinite(float(value)) for row in rows for value in row.values() if value)
    state = load_checkpoint(work / "runs/run/last.pt")["model"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_resumed_float16_is_never_stopped_bit_for_bit(work):
    """The first steps are skipped until the scale of the gradients fits, so a run that forgot it would skip anew."""
    write_cfg(work, iterations=12)
    whole = trained(work, "whole", valid=None, save_every=6, amp="fp16")
    (work / "runs/resumed").mkdir()
    (work / "runs/whole/previous.pt").rename(work / "runs/resumed/last.pt")
    Training(settings(work, valid=None, amp="fp16"), work / "runs/resumed", True, say=lambda line: None).run()
    assert (work / "runs/resumed/resumed_last.weights").read_bytes() == whole
    states = [load_checkpoint(work / f"runs/{name}/last.pt") for name in ("whole", "resumed")]
    assert states[0]["scaler"] == states[1]["scaler"] and states[0]["scaler"]["scale"] < 2**16
    momentum = [[each["momentum_buffer"] for each in state["optimiser"]["state"].values()] for state in states]
    assert all(torch.equal(*pair) for pair in zip(*momentum, strict=True))


def overflowing(work, **changes):
    """A training whose loss is a number, but no gradient."""
    run = Training(settings(work, valid=None, **changes), work / "runs/run", say=lambda line: None)
    run.model.layers[0][0].weight.register_hook(lambda gradient: gradient * float("inf"))
    return run


def test_float16_whose_gradient_never_fits_stops_and_has_changed_nothing(work):
    run = overflowing(work, amp="fp16")
    before = [parameter.clone() for parameter in run.model.parameters()]
    with pytest.raises(NonFiniteLoss, match=r"no gradient fits into float16 any more at iteration 33 .*--amp bf16"):
        run.run()
    assert all(torch.equal(*pair) for pair in zip(before, run.model.parameters(), strict=True))


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_gradient_that_is_no_number_stops_before_it_changes_anything(work, amp):
    run = overflowing(work, amp=amp)
    before = [parameter.clone() for parameter in run.model.parameters()]
    with pytest.raises(NonFiniteLoss, match=r"the loss is [\d.]+, its gradient no number, at iteration 1 .*\.png"):
        run.run()
    assert all(torch.equal(*pair) for pair in zip(before, run.model.parameters(), strict=True))


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    model, path = Darknet(parse_cfg(TINY)), tmp_path / "a.weights"
    save_weights(model, path)
    before = path.read_bytes()
    model.layers[0][1].running_var[2] = float("nan")
    with pytest.raises(ValueError, match=r"a\.weights: layer 0 became values that are no numbers; not written"):
        save_weights(model, path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.weights"] and path.read_bytes() == before


def test_where_a_run_was_made_stays_in_its_settings(tmp_path, monkeypatch):
    """settings.json names the files that --resume reads again; nothing else of a run does."""
    monkeypatch.setattr(socket, "gethostname", lambda: "telltale")
    work = write_pictures(tmp_path / "telltale")
    write_cfg(work, iterations=2)
    Training(settings(work, ema=0.9), work / "runs/run", say=lambda line: None).run()
    held = {path.name: path.read_bytes() for path in (work / "runs/run").rglob("*") if path.is_file()}
    assert {"last.pt", "run_best.weights", "run_ema.weights", "report.html", "results.csv", "chart.png"} <= held.keys()
    secrets = [b"telltale", str(Path.home()).encode() + b"/", str(Path(batching.__file__).parent).encode()]
    found = {name for name, content in held.items() if any(secret in content for secret in secrets)}
    assert found == {"settings.json"}


def test_a_long_thin_picture_in_a_letter_box_is_refused_before_it_allocates(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((1, 90000, 3), np.uint8))
    network = parse_cfg(TINY.replace("mosaic=1", "letter_box=1"))
    sample = batching.TrainingSet([tmp_path / "a.png"], network.net, network.sections[-1], 0)[0, (32, 32)]
    assert len(sample.faults) == batching.TRIES and "pixels, expected at most" in sample.faults[0][1]
