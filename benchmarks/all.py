#!/usr/bin/env python3
"""All benchmarks one after the other, each in a process of its own; some twenty minutes on two cores."""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNS = (
    "inference.py --compile",
    "inference.py --size 608 --repeats 8",
    "inference.py --batch 8 --repeats 5",
    "inference.py --cfg cfg/yolov4-tiny.cfg --repeats 40",
    "training.py",
    "loss.py",
    "data.py {images}",
    "evaluation.py --images {images} --count 200",
    "start.py",
    "growth.py --images {images}",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs every benchmark and prints their tables.")
    parser.add_argument("images", metavar="LIST", help="photographs with labels, for data, evaluation and growth")
    images = Path(parser.parse_args().images).resolve()
    for run in RUNS:
        script, *options = run.split()
        print(f"\n## benchmarks/{run.format(images=images)}\n", flush=True)
        options = [option.format(images=images) for option in options]
        subprocess.run([sys.executable, HERE / script, *options], check=True, cwd=HERE.parent)


if __name__ == "__main__":
    main()
