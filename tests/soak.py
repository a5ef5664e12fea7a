"""Trains on the shapes for long and watches memory and open files: `tests/soak.py --minutes 60`.
Fails where the last tenth of the time holds 2 % more memory than the second, or more open files."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GROWTH = 0.02  # of the memory, at most


def held(process: int) -> tuple[int, int]:
    """Resident bytes and open files of a process and its descendants; shared bytes count twice."""
    here = Path(f"/proc/{process}")
    try:
        memory = int((here / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files = len(list((here / "fd").iterdir()))
        children = (here / f"task/{process}/children").read_text().split()
    except OSError:  # it has just ended
        return 0, 0
    below = [held(int(child)) for child in children]
    return memory + sum(m for m, _ in below), files + sum(f for _, f in below)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        shapes = f"{work}/shapes"
        label = f"data/voc0712/voc_label.py {shapes} --names {shapes}/shapes.names --out {work}"
        for made in (f"data/shapes/make_shapes.py --out {shapes}", label):
            subprocess.run([sys.executable, *made.split()], cwd=ROOT, check=True)
        # without end; saves, draws and evaluates often
        train = f"train.py --data {work}/voc.data --cfg cfg/shapes.cfg --runs {work}/runs"
        train += " --name soak --device cpu --max-batches 1000000 --save-every 50 --eval-every 500"
        train += f" --workers {arguments.workers}"
        process = subprocess.Popen([sys.executable, *train.split()], cwd=ROOT)
        while not Path(work, "runs/soak/last.pt").exists() and process.poll() is None:
            time.sleep(1)
        samples, end = [], time.monotonic() + 60 * arguments.minutes
        while process.poll() is None and time.monotonic() < end:
            time.sleep(1)
            samples.append(held(process.pid))
        alive = process.poll() is None
        process.terminate()
        ended_well = process.wait(timeout=300) == 0
    tenth = len(samples) // 10  # the first tenth is the start
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]
    before, after = (statistics.median(m for m, _ in part) for part in (early, late))
    opened, open_now = (max(f for _, f in part) for part in (early, late))
    flat = alive and ended_well and after <= before * (1 + GROWTH) and open_now <= opened
    verdict = f"{'flat' if flat else 'NOT FLAT'} over {len(samples) // 60} minutes"
    memory = f"memory {before / 2**20:.1f} -> {after / 2**20:.1f} MiB"
    print(f"{verdict}: {memory}, files {opened} -> {open_now}")
    sys.exit(not flat)


if __name__ == "__main__":
    main()
