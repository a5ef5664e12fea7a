#!/usr/bin/env python3
"""Speed of training samples: one process against decoding alone, where a sample's time goes, workers, the cache.
Samples, half of them mosaics, are those of a seed; the calls take turns, so that load from elsewhere is shared."""

import argparse
import time
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import torch
from common import ROOT, machine, medians, table, timed

from yolov4 import augment, batches, draws, pictures
from yolov4.cfg import read_cfg
from yolov4.data import load_image, read_image_list
from yolov4.memory import keep_freed_memory

STAGES = {  # the rest of a sample's time is Python's own, the mosaic and the planes
    "read and decode": (pictures, "load_image"),
    "crop, border and resize": (augment, "_resized"),
    "colours": (augment, "_change_colours"),
    "flip": (cv2, "flip"),
    "draws": (draws, "draw_crop"),
    "labels": (augment, "_move_labels"),
    "labels of mosaics": (augment, "_fit_axis"),
}


def main() -> None:
    arguments = parse_arguments()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory()  # as in a worker
    print(machine())
    sections = read_cfg(ROOT / "cfg/yolov4-voc.cfg")
    net = replace(sections.net, width=arguments.size, height=arguments.size, batch=16, subdivisions=1)
    recipe = net, replace(sections.sections[-1], random=0)
    paths, size = read_image_list(arguments.list), (arguments.size, arguments.size)
    print(f"{len(paths)} pictures, {arguments.size}x{arguments.size}, seed {arguments.seed}\n")
    print(one_process(paths, recipe, size, arguments), end="\n\n")
    print(stages(paths, recipe, size, arguments), end="\n\n")
    print(over_workers(paths, recipe, arguments), end="\n\n")
    print(reduced(paths))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of training samples, mosaics as in cfg/yolov4-voc.cfg.")
    parser.add_argument("list", help="of photographs, an image path a line")
    parser.add_argument("--size", type=int, default=416, help="of the network input (default %(default)s)")
    parser.add_argument("--samples", type=int, default=200, help="of each turn (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="turns (default %(default)s)")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="(default 0 1 2)")
    parser.add_argument("--cache", type=float, default=1.0, help="its GB where there is one (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def one_process(paths, recipe, size, arguments) -> str:
    """Table of images and samples a second, in turns."""
    plain = batches.TrainingSet(paths, *recipe, arguments.seed)
    cached = batches.TrainingSet(paths, *recipe, arguments.seed, arguments.cache)
    indices = range(arguments.samples)
    drawn = sum(len(plain[index, size].files) for index in indices) / len(indices)
    decode, resize, ours, kept = (
        "decoding alone, images/s", "decoding and resizing, images/s",
        f"samples/s, {drawn:.2f} images a sample", f"samples/s, --cache {arguments.cache:g}",
    )  # fmt: skip
    calls = {
        decode: lambda: [load_image(path) for path in paths],
        resize: lambda: [cv2.resize(load_image(path), size) for path in paths],
        ours: lambda: [plain[index, size] for index in indices],
        kept: lambda: [cached[index, size] for index in indices],
    }
    seconds = medians(calls, arguments.repeats)
    rates = {name: (len(paths) if "images/s" in name else len(indices)) / seconds[name] for name in calls}
    rows = [(name, f"{rate:.0f}", f"{rate / rates[resize]:.3f}", f"{drawn * rate / rates[resize]:.2f}"
             if "samples/s" in name else "") for name, rate in rates.items()]  # fmt: skip
    return table(["one process, one thread", "rate", "of decoding and resizing", "image by image"], rows)


def stages(paths, recipe, size, arguments) -> str:
    """Table of the microseconds of a sample."""
    samples = batches.TrainingSet(paths, *recipe, arguments.seed)
    with timed(STAGES) as spent:
        for index in range(2 * arguments.samples):
            if index == arguments.samples:  # the first half warms up
                spent.clear()
                start = time.perf_counter()
            samples[index, size]
        whole = time.perf_counter() - start
    spent["the rest: joining, planes, Python"] = whole - sum(spent.values())
    rows = [(name, f"{seconds / arguments.samples * 1e6:.0f}", f"{seconds / whole:.1%}")
            for name, seconds in spent.most_common()]  # fmt: skip
    return table(["where a sample's time goes", "us", "share"], rows)


def over_workers(paths, recipe, arguments) -> str:
    """Table of samples a second that arrive in mini-batches of 16, after the first one of each worker."""
    rows, count = [], max(2 * arguments.samples // 16, 1)
    for workers in arguments.workers:
        found = []
        for cache in (0.0, arguments.cache):
            first = max(2 * workers, 1) if not cache else max(count, 2 * workers)  # a cache has to fill
            loader = batches.training_batches(
                paths, *recipe, arguments.seed, 0, first + count, workers, cache=cache
            )  # fmt: skip
            arriving = iter(loader)
            sum(1 for _ in islice(arriving, first))
            start = time.perf_counter()
            found.append(16 * sum(1 for _ in arriving) / (time.perf_counter() - start))
            del arriving, loader
        rows.append((workers, *(f"{rate:.0f}" for rate in found)))
    return table(["workers", "samples/s", f"with --cache {arguments.cache:g}"], rows)


def reduced(paths) -> str:
    """Table of decoding at half the scale, then resizing to 3/8 of the sides, against decoding in full."""
    contents, rows = [np.fromfile(path, np.uint8) for path in paths], []
    differences, calls = [], {}
    for name, flag in (("in full", cv2.IMREAD_COLOR), ("at half the scale", cv2.IMREAD_REDUCED_COLOR_2)):
        calls[name] = lambda flag=flag: [cv2.imdecode(content, flag) for content in contents]
    for full, half in zip(*(call() for call in calls.values()), strict=True):
        small = full.shape[1] * 3 // 8, full.shape[0] * 3 // 8
        differences.append(cv2.absdiff(cv2.resize(full, small), cv2.resize(half, small)).ravel())
    differences = np.concatenate(differences)
    found = ["", f"{differences.mean():.1f}, above 2: {(differences > 2).mean():.0%}, at most {differences.max()}"]
    for (name, seconds), difference in zip(medians(calls, 5).items(), found, strict=True):
        rows.append((name, f"{len(paths) / seconds:.0f}", difference))
    return table(["decoding", "images/s", "grey levels of difference, mean"], rows)


if __name__ == "__main__":
    main()
