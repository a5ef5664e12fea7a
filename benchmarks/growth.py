#!/usr/bin/env python3
"""Time of a training iteration over batch, size, objects, classes and workers, beside the work that each adds.
Writes a plot and prints the same as a table."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

from common import ROOT, machine, medians, table
from training import Step

from yolov4.batches import training_batches
from yolov4.cfg import read_cfg
from yolov4.data import read_image_list
from yolov4.figures import new_figure
from yolov4.memory import keep_freed_memory
from yolov4.networks import yolov4
from yolov4.runs import one_line_errors

BASE = {"size": 416, "batch": 2, "objects": 10, "classes": 80}
VALUES = {
    "batch": (1, 2, 4, 8),
    "size": (256, 320, 416, 512, 608),
    "objects": (0, 10, 100, 200, 500),
    "classes": (1, 20, 80, 1000),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How the time of an iteration of yolov4 grows.")
    parser.add_argument("--images", metavar="LIST", help="photographs with labels, to see what workers bring")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--repeats", type=int, default=3, help="iterations at each value (default %(default)s)")
    parser.add_argument("--out", default="runs/growth.png", help="default: %(default)s")
    return parser.parse_args()


def measured(key: str, repeats: int) -> Iterator[tuple[int, float, float]]:
    """(value, seconds of an iteration, FLOPs) of each value of one key, the others as in BASE"""
    for value in VALUES[key]:
        at = BASE | {key: value}
        step = Step(yolov4(classes=at.pop("classes")), **at)
        yield value, medians({"step": step}, repeats)["step"], step.flops


def with_workers(images: str, workers: int, iterations: int = 12) -> float:
    """Median seconds from one iteration of yolov4-tiny to the next, its samples with mosaic, 16 an iteration"""
    network = read_cfg(ROOT / "cfg/yolov4-tiny.cfg")
    step = Step(network, size=416, batch=16, objects=0)
    net = replace(step.model.net, mosaic=True)
    batches = training_batches(read_image_list(images), net, step.model.network.sections[-1], 0, 0, iterations, workers)
    ends = []
    for number, batch in enumerate(islice(batches, iterations), 1):
        step.updater.update(number, [batch[:3]])
        ends.append(time.perf_counter())
    return median(after - before for before, after in pairwise(ends[2:]))


def draw(found: dict[str, list[tuple[int, float, float]]], out: Path) -> None:
    """Seconds over each key, and what they would be if they grew with the FLOPs from the first value on"""
    figure = new_figure(3.2 * len(found), 3.2)
    for axes, (key, points) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        values, seconds, work = zip(*points, strict=True)
        axes.plot(values, seconds, "o-", label="measured")
        if work[0]:
            axes.plot(values, [seconds[0] * flops / work[0] for flops in work], ":", label="as the FLOPs")
        axes.set(xlabel=key, ylim=(0, 1.15 * max(seconds)), title=f"s an iteration over {key}")
        axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main() -> None:
    arguments = parse_arguments()
    keep_freed_memory()
    with one_line_errors("growth.py"):
        found = {key: list(measured(key, arguments.repeats)) for key in VALUES}
        if arguments.images:
            found["workers"] = [(count, with_workers(arguments.images, count), 0) for count in arguments.workers]
        draw(found, Path(arguments.out))
    print(machine())
    print(f"yolov4 at {BASE}; workers: yolov4-tiny at 416, 16 samples with mosaic an iteration")
    rows = [
        (key, value, f"{seconds:.2f}", f"{seconds / points[0][1]:.2f}", f"{flops / points[0][2]:.2f}" if flops else "")
        for key, points in found.items()
        for value, seconds, flops in points
    ]
    print(table(("", "value", "s an iteration", "of the first", "FLOPs of the first"), rows))
    print(arguments.out)


if __name__ == "__main__":
    main()
