#!/usr/bin/env python3
"""How long it takes until something happens: --help, imports, loading yolov4.weights, the first detection.
Every figure is of a fresh process; a bare `import torch` takes turns with them, as most of the time is that."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, machine, medians, table

from yolov4 import Darknet, save_weights

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import yolov4": ["-c", "import yolov4"],
    "detect.py --help": ["detect.py", "--help"],
    "val.py --help": ["val.py", "--help"],
    "train.py --help": ["train.py", "--help"],
    "import torch": ["-c", "import torch"],
    "import yolov4.predict": ["-c", "import yolov4.predict"],
}
PARTS = ("import yolov4.predict", "build the network", "load the weights", "fuse it", "first detection", "second")
PROGRAM = """
import json, sys, time
marks = [time.perf_counter()]
import numpy, yolov4, yolov4.predict
marks.append(time.perf_counter())
model = yolov4.Darknet.from_cfg(sys.argv[1])
marks.append(time.perf_counter())
yolov4.load_weights(model, sys.argv[2])
marks.append(time.perf_counter())
detector = yolov4.Detector.__new__(yolov4.Detector)
detector._prepare_model(model, None, yolov4.predict.choose_device("cpu"), None)
marks.append(time.perf_counter())
for _ in range(2):
    detector(numpy.zeros((375, 500, 3), numpy.uint8))
    marks.append(time.perf_counter())
print(json.dumps([after - before for before, after in zip(marks, marks[1:])]))
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seconds until something happens, each in a fresh process.")
    parser.add_argument("--cfg", default="cfg/yolov4.cfg", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; their median counts (default %(default)s)")
    return parser.parse_args()


def run(arguments: list[str]) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


def main() -> None:
    arguments = parse_arguments()
    calls = {name: lambda words=words: run(words) for name, words in COMMANDS.items()}
    seconds, parts = medians(calls, arguments.repeats), []
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "network.weights")
        save_weights(Darknet.from_cfg(arguments.cfg), weights)
        for _ in range(arguments.repeats + 1):  # the first warms up
            parts.append(json.loads(run(["-c", PROGRAM, arguments.cfg, weights])))
    median = [statistics.median(column) for column in zip(*parts[1:], strict=True)]
    print(f"{arguments.cfg}, seconds, median of {arguments.repeats} fresh processes; {machine()}\n")
    print(table(("a process", "s"), [(name, f"{value:.2f}") for name, value in seconds.items()]))
    rows = [(name, f"{value:.2f}") for name, value in zip(PARTS, median, strict=True)]
    print("\n" + table(("a detection, step by step", "s"), [*rows, ("build + load + fuse", f"{sum(median[1:4]):.2f}")]))


if __name__ == "__main__":
    main()
