"""Kills trainings at random moments, saving included, and resumes them: `python tests/power_cut.py --kills 50`, and
with `--processes 2` two that train together, which die with their launcher.  In the end weights, momentum and
results.csv have to be, byte for byte, those of a run that was never stopped."""

import argparse
import contextlib
import csv
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from fuzz_readers import tiny  # noqa: E402
from test_training import settings, write_cfg, write_pictures  # noqa: E402

from yolov4 import datareport, runfolder  # noqa: E402
from yolov4.checkpoint import load_checkpoint  # noqa: E402
from yolov4.training import Training  # noqa: E402

FORK = multiprocessing.get_context("fork")  # torch is imported once
MOMENTS = ("fsync", "replace", "link", "open")  # what a child dies at, when it does not die by the clock


def train(work: Path, name: str, save_every: int, die_at: tuple[str, int] | None, subdivisions: int = 1) -> None:
    """One process: starts or resumes a run; kills its group before a system call of a kind, counted from 1."""
    torch.set_num_threads(1)
    runfolder.plots.training_chart = lambda table, picture, title: picture.write_bytes(b"")  # pictures take seconds
    datareport.write = lambda *_: None
    if die_at:
        kind, left = die_at
        original = getattr(os, kind)

        def deadly(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os.killpg(0, signal.SIGKILL)
            return original(*arguments, **options)

        setattr(os, kind, deadly)
    folder = work / "runs" / name
    resume = (folder / "last.pt").exists()
    recipe = settings(work, eval_every=0, save_every=save_every, subdivisions=subdivisions)
    Training(recipe, folder, resume, say=lambda line: None).run()


def launch(processes: int, *arguments) -> None:
    """A process group of its own, with so many processes of `train` that find each other as under torchrun."""
    os.setpgid(0, 0)  # its number is that of the launcher
    if processes == 1:
        return train(*arguments)
    ranks = start_ranks(processes, *arguments)
    for rank in ranks:
        rank.join()
    sys.exit(max(abs(rank.exitcode) for rank in ranks))


def start_ranks(processes: int, *arguments) -> list[multiprocessing.Process]:
    """Processes of `train`, of which the first writes (and dies where that is asked)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    ranks = []
    for rank in range(processes):
        os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(FORK.Process(target=train, args=(*arguments, processes)))
        ranks[-1].start()
    for key in (*address, "RANK", "LOCAL_RANK"):
        del os.environ[key]
    return ranks


def run_once(work: Path, name: str, save_every: int, die_at=None, seconds: float | None = None, processes=1) -> int:
    """Trains in children, all killed after some seconds if that is asked -> the exit code (-9: killed)."""
    child = FORK.Process(target=launch, args=(processes, work, name, save_every, die_at))
    child.start()
    child.join(seconds)
    if child.is_alive() and seconds is not None:
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
    return child.exitcode


def outcome(folder: Path) -> dict:
    state = load_checkpoint(folder / "last.pt")
    with (folder / "results.csv").open() as file:
        rows = [(row["iteration"], row["loss"]) for row in csv.DictReader(file)]
    momentum = [each["momentum_buffer"] for each in state["optimiser"]["state"].values()]
    weights = (folder / f"{folder.name}_last.weights").read_bytes()
    return {"weights": weights, "momentum": momentum, "rows": rows, "model": list(state["model"].values())}


def same(one: dict, other: dict) -> bool:
    tensors = zip(one["momentum"] + one["model"], other["momentum"] + other["model"], strict=True)
    return all(one[key] == other[key] for key in ("weights", "rows")) and all(torch.equal(*pair) for pair in tensors)


def power_cuts(work: Path, kills: int, iterations: int, seed: int, processes: int = 1) -> list[str]:
    """Kills `kills` times in runs of so many iterations -> what happened, a line a run.  AssertionError if a resumed
    run is another than the one that was not stopped, or cannot go on."""
    rng, lines, done = random.Random(seed), [], 0
    tiny()
    write_cfg(work, iterations=iterations)
    start = time.perf_counter()
    assert run_once(work, "whole", 5, processes=processes) == 0
    length, wanted = time.perf_counter() - start, outcome(work / "runs/whole")
    while done < kills:
        name, killed = f"killed{len(lines)}", []
        while True:
            die_at = seconds = None
            if done < kills and len(killed) < 8:
                by_clock = rng.random() < 0.4
                seconds = rng.uniform(0.1, 1.0) * length if by_clock else None
                die_at = None if by_clock else (rng.choice(MOMENTS), rng.randrange(1, 30))
            last = work / "runs" / name / "last.pt"
            if last.exists() and load_checkpoint(last)["iteration"] == iterations:  # killed after all was done
                break
            code = run_once(work, name, 5, die_at, seconds, processes)
            if code == 0:
                break
            assert code == -signal.SIGKILL, f"{name} after {killed}: exit code {code}, expected to be killed or to end"
            done += 1
            killed.append(f"{seconds:.2f} s" if seconds else f"{die_at[0]} {die_at[1]}")
        assert same(wanted, outcome(work / "runs" / name)), (
            f"{name}, killed at {', '.join(killed)}, is not the run that was never stopped"
        )
        lines.append(f"{name}: killed at {', '.join(killed) or 'no moment'}; the same weights, momentum and results")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        with contextlib.suppress(BrokenPipeError):
            print("\n".join(power_cuts(Path(folder), **vars(arguments))))


if __name__ == "__main__":
    main()
