"""Which files belong together, and what a run writes.  Source: how Darknet names its weights."""

import json
import os
import sys

import pytest

from yolov4.networks import build
from yolov4.runs import RunFolder, run_folder, validation_list
from yolov4.weights import network_files, newest_run


@pytest.fixture
def weights(tmp_path):
    for name in ("x_best.weights", "x.cfg", "x.names"):
        (tmp_path / name).write_text("something")
    return tmp_path / "x_best.weights"


def test_files_beside_weights(weights):
    files = network_files(str(weights))
    assert (files.cfg.name, files.names.name) == ("x.cfg", "x.names")
    (weights.parent / "x_best.cfg").write_text("[net]")
    assert network_files(str(weights)).cfg.name == "x_best.cfg"
    for path in weights.parent.glob("*.cfg"):
        path.unlink()
    with pytest.raises(ValueError, match=r"x_best\.cfg, x\.cfg"):
        network_files(str(weights))
    with pytest.raises(ValueError, match="expected --weights too"):
        network_files(None, "x.cfg")


def test_the_newest_run_and_what_it_names(tmp_path):
    with pytest.raises(ValueError, match="found no training run"):
        newest_run(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        settings = {"valid": str(tmp_path / "valid.txt")}
        (tmp_path / name / "settings.json").write_text(json.dumps(settings))
        for file in (f"{name}_last.weights", "last.pt"):
            (tmp_path / name / file).touch()
    assert newest_run(tmp_path) == run_folder(tmp_path, None) == tmp_path / "b"
    assert run_folder(tmp_path, "a") == tmp_path / "a"
    with pytest.raises(ValueError, match="expected --images"):
        validation_list(tmp_path / "a")
    (tmp_path / "valid.txt").touch()
    assert validation_list(tmp_path / "a") == tmp_path / "valid.txt"


def test_rows_after_the_iteration_are_dropped_on_resume(tmp_path):
    def written(iteration):
        return RunFolder(tmp_path / "run", build("shapes"), ["a"], {}, iteration)

    run, path = written(0), tmp_path / "run/results.csv"
    for iteration in (1, 2, 3):
        run.log({"iteration": iteration, "loss": 0.123456789, "map": None})
    run.close()
    with path.open("a") as file:
        file.write("4,0.1")  # killed here
    written(2).close()
    assert path.read_text().splitlines() == ["iteration,loss,map", "1,0.123457,", "2,0.123457,"]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no regular file"):
        written(2)


def test_tensorboard_has_the_scalars(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made = tmp_path / "run", build("shapes"), ["a"], {"tensorboard": True}
    run = RunFolder(*made)
    for iteration, loss, mean_ap in ((7, 1.5, None), (8, 2.5, 0.25)):
        run.log({"iteration": iteration, "loss": loss, "map": mean_ap})
    run.close()
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    loss, mean_ap = ([(e.step, e.value) for e in events.Scalars(n)] for n in ("loss", "map"))
    assert loss == [(7, 1.5), (8, 2.5)] and mean_ap == [(8, 0.25)]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        RunFolder(*made)
