"""Trains on the shapes for long and watches its memory and its open files: `python tests/soak.py --minutes 60`.
Fails where the last tenth of the time holds more than 2 % more memory than the second tenth, or more open files."""

import argparse
import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GROWTH = 0.02  # of the memory, at most


class Sample(NamedTuple):
    """What a process and its descendants hold."""

    memory: int  # resident, bytes; what they share counts in each
    files: int  # open


def sample(process: int) -> Sample:
    """Of a process and its descendants, from /proc."""
    here = Path(f"/proc/{process}")
    try:
        memory = int((here / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files = sum(1 for _ in (here / "fd").iterdir())
        children = (here / f"task/{process}/children").read_text().split()
    except OSError:  # it has just ended
        return Sample(0, 0)
    below = [sample(int(child)) for child in children]
    return Sample(memory + sum(each.memory for each in below), files + sum(each.files for each in below))


def start(work: Path, workers: int) -> subprocess.Popen:
    """A training without end that saves, draws and evaluates often."""
    shapes = work / "shapes"
    for command in (
        ["data/shapes/make_shapes.py", "--out", shapes],
        ["data/voc0712/voc_label.py", shapes, "--names", shapes / "shapes.names", "--out", work],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    flags = ["--data", work / "voc.data", "--cfg", "cfg/shapes.cfg", "--runs", work / "runs", "--name", "soak"]
    flags += ["--device", "cpu", "--max-batches", 10**6, "--save-every", 50, "--eval-every", 500, "--workers", workers]
    with (work / "errors").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "train.py", *map(str, flags)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors
        )


def watch(process: subprocess.Popen, work: Path, minutes: float) -> list[Sample]:
    """A sample a second, counted from the first checkpoint, and a line a minute."""
    results, samples, every = work / "runs/soak/results.csv", [], 60
    while not (work / "runs/soak/last.pt").exists() and process.poll() is None:
        time.sleep(1)
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < minutes * 60:
        time.sleep(1)
        samples.append(sample(process.pid))
        if len(samples) % every == 0:
            with results.open() as file:
                iteration = sum(1 for _ in csv.reader(file)) - 1
            memory = statistics.median(each.memory for each in samples[-every:])
            files = max(each.files for each in samples[-every:])
            print(f"minute {len(samples) // every:>3}: {memory / 2**20:8.1f} MiB, at most {files} files, "
                  f"iteration {iteration}", flush=True)  # fmt: skip
    return samples


def verdict(samples: list[Sample]) -> tuple[bool, str]:
    """Whether the last tenth holds what the second one held (the first is the start), and the figures."""
    tenth = len(samples) // 10
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]
    before, after = (statistics.median(each.memory for each in part) / 2**20 for part in (early, late))
    files = [max(each.files for each in part) for part in (early, late)]
    text = f"memory {before:.1f} -> {after:.1f} MiB ({after / before - 1:+.2%}), files {files[0]} -> {files[1]}"
    return after <= before * (1 + GROWTH) and files[1] <= files[0], text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        process = start(work, arguments.workers)
        try:
            samples = watch(process, work, arguments.minutes)
            process.send_signal(signal.SIGTERM)
            ended = process.wait(timeout=300)
        finally:
            process.kill()
        flat, text = verdict(samples) if len(samples) >= 10 else (False, "it ended at once")
        if ended:
            text += "\n" + (work / "errors").read_text()[-2000:]
    print(f"{'flat' if flat and not ended else 'NOT FLAT'} over {len(samples) / 60:.0f} minutes: {text}")
    sys.exit(not flat or bool(ended))


if __name__ == "__main__":
    main()
