"""Kills trainings at random moments, saving included, and resumes them: `python tests/power_cut.py
--kills 50`, with `--processes 2` two that train together and die with their launcher.  Weights,
momentum and results.csv have to be, byte for byte, those of a run that was never stopped."""

import argparse
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

import torch
from test_training import assert_same_state, settings, without_pictures, write_cfg, write_pictures

from yolov4.training import Training
from yolov4.weights import load_checkpoint

# children are forked by a server that has imported torch and nothing else: a process in which
# autograd has run cannot be forked
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["yolov4.training"])
# what a child dies at, when it does not die by the clock
MOMENTS = ("fsync", "replace", "link", "open")


def train(work, name, die_at=None, subdivisions=1, environment=()):
    """Starts or resumes a run.  die_at: ("replace", 3) kills the group at the 3rd os.replace."""
    os.environ.update(environment)
    if environment:
        sys.stderr = (work / f"rank{environment['RANK']}.txt").open("w")
    torch.set_num_threads(1)
    without_pictures(setattr)
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
    recipe = settings(work, eval_every=0, save_every=4, subdivisions=subdivisions)
    Training(recipe, folder, (folder / "last.pt").exists(), lambda line: None).run()


def launch(processes, *arguments):
    """A process group of its own, with so many processes of `train` that find each other."""
    os.setpgid(0, 0)  # its number is that of the launcher
    if processes == 1:
        return train(*arguments)
    ranks = start_ranks(processes, *arguments, context=multiprocessing.get_context("fork"))
    for rank in ranks:
        rank.join()
    sys.exit(max(abs(rank.exitcode) for rank in ranks))


def ranks_of(processes) -> list[dict]:
    """The variables that torchrun sets for each of so many processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def start_ranks(processes, work, name, die_at=None, context=SERVER):
    """Processes of `train` that find each other, of which the first writes."""
    arguments = (work, name, die_at, processes)
    ranks = [context.Process(target=train, args=(*arguments, e)) for e in ranks_of(processes)]
    for rank in ranks:
        rank.start()
    return ranks


def run_once(work, name, die_at=None, seconds=None, processes=1):
    """Trains in children, all killed after `seconds` -> the exit code (-9: killed)."""
    child = SERVER.Process(target=launch, args=(processes, work, name, die_at))
    child.start()
    child.join(seconds)
    if child.is_alive():
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
    return child.exitcode


def outcome(folder: Path) -> tuple:
    """last.pt, and what is compared as it is: weights, iterations and losses."""
    with (folder / "results.csv").open() as file:
        rows = [(row["iteration"], row["loss"]) for row in csv.DictReader(file)]
    weights = (folder / f"{folder.name}_last.weights").read_bytes()
    return load_checkpoint(folder / "last.pt"), weights, rows


def power_cuts(work: Path, kills: int, iterations: int, seed: int, processes: int = 1) -> list[str]:
    """Kills `kills` times in runs of so many iterations -> one line per run.  AssertionError if a
    resumed run is not the one that was never stopped, or cannot resume."""
    rng, lines, done = random.Random(seed), [], 0
    write_cfg(work, iterations=iterations)
    start = time.perf_counter()
    assert run_once(work, "whole", processes=processes) == 0
    length, (state, *wanted) = time.perf_counter() - start, outcome(work / "runs/whole")
    while done < kills:
        name, killed = f"killed{len(lines)}", []
        last, code = work / "runs" / name / "last.pt", None
        while code != 0:
            if last.exists() and load_checkpoint(last)["iteration"] == iterations:
                break  # the last save came before the kill
            die_at = seconds = None
            if done < kills and len(killed) < 8:
                by_clock = rng.random() < 0.4
                seconds = rng.uniform(0.1, 1.0) * length if by_clock else None
                die_at = None if by_clock else (rng.choice(MOMENTS), rng.randrange(1, 30))
            code = run_once(work, name, die_at, seconds, processes)
            if code:
                assert code == -signal.SIGKILL, f"{name} after {killed}: exit code {code}"
                done += 1
                killed.append(f"{seconds:.2f} s" if seconds else "{} {}".format(*die_at))
        lines.append(f"{name}: killed at {', '.join(killed) or 'no moment'}, the same in the end")
        found, *others = outcome(last.parent)
        assert_same_state(state, found)
        assert others == wanted, lines[-1]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag, default in (("kills", 50), ("iterations", 40), ("seed", 0), ("processes", 1)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(power_cuts(write_pictures(Path(folder) / "work"), **vars(arguments))))
    print("every run resumed to the bits of the one that was not killed")


if __name__ == "__main__":
    main()
