"""Kills trainings by the command line at their system calls, where strace is installed, else by the
clock, and resumes them: `python tests/system_calls.py --kills 62`.  Weights, momentum, losses and
mAP have to be those of a run that was never killed, and its files have to be there."""

import argparse
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from test_training import ROOT, assert_same_state, write_cfg, write_pictures

from yolov4.weights import load_checkpoint

STRACE = shutil.which("strace")
CALLS = "%file,write,fsync,ftruncate,lseek"
NEW = "--data tiny.data --cfg tiny.cfg --eval-every 4 --save-every 3 --workers 0 --device cpu"


def train(folder, *strace, seconds=None):
    """Starts or resumes a run, under strace where it has options -> the exit code."""
    resumes = (folder / "last.pt").exists()
    if not resumes:
        shutil.rmtree(folder, ignore_errors=True)
    flags = ["--resume", folder] if resumes else [*NEW.split(), "--name", folder.name]
    command = [sys.executable, ROOT / "train.py", *flags, "--runs", folder.parent]
    prefix = [STRACE, "-f", "-qq", *strace] if strace else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*prefix, *command], cwd=folder.parents[1], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        out = process.communicate(timeout=seconds or 600)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out = process.communicate()[0]
    assert process.returncode in (0, -signal.SIGKILL), out
    return process.returncode


def moments(trace, folder) -> dict[str, list[int]]:
    """System call -> how many there were before the run's folder was touched, and in all."""
    counts, found = defaultdict(int), {}
    lines = trace.read_text(errors="replace").splitlines()
    main, inside = lines[0].split()[0], False
    for line in lines:
        match = re.match(rf"{main} +(\w+)\(", line)
        if match:
            counts[match[1]] += 1
            inside |= str(folder) in line
            if inside:
                found.setdefault(match[1], [counts[match[1]], 0])[1] = counts[match[1]]
    return found


def outcome(folder) -> tuple:
    """last.pt, and what is compared as it is."""
    with (folder / "results.csv").open() as file:
        rows = [(row["iteration"], row["loss"], row["map"]) for row in csv.DictReader(file)]
    kinds = [(folder / f"{folder.name}_{kind}.weights").read_bytes() for kind in ("last", "best")]
    names = {path.name.removeprefix(folder.name) for path in folder.iterdir()}
    state = load_checkpoint(folder / "last.pt")
    return state, names, rows, kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag, default in (("kills", 62), ("iterations", 10), ("seed", 0)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    given = parser.parse_args()
    rng, done, number = random.Random(given.seed), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        work = write_pictures(Path(temporary) / "work")
        write_cfg(work, iterations=given.iterations)
        whole, trace, start = work / "runs/whole", work / "trace", time.perf_counter()
        assert train(whole, *(["-e", f"trace={CALLS}", "-o", trace] if STRACE else [])) == 0
        length = time.perf_counter() - start
        wanted, calls = outcome(whole), moments(trace, whole) if STRACE else {}
        while done < given.kills:
            number += 1
            folder, killed, code = work / f"runs/killed{number}", [], 1
            while code:
                strace, seconds = [], None
                if len(killed) < 6 and STRACE:
                    call = rng.choice(sorted(calls))
                    when = rng.randint(*calls[call])
                    inject = f"inject={call}:signal=KILL:when={when}"
                    strace = ["-e", f"trace={call}", "-e", inject, "-o", os.devnull]
                elif len(killed) < 6:
                    call, when = "clock", rng.uniform(0.3, 1) * length
                    seconds = when
                code = train(folder, *strace, seconds=seconds)
                killed += [f"{call} {when:.4g}"] if code else []
            done += len(killed)
            state, *others = outcome(folder)
            assert_same_state(wanted[0], state)
            assert others == list(wanted[1:]), killed
            print(f"killed at {', '.join(killed) or 'no moment'}: the same in the end", flush=True)
    print(f"every run resumed to the bits of the one that was not killed ({done} kills)")


if __name__ == "__main__":
    main()
