#!/usr/bin/env python3
"""What each part of YOLOv4's recipe brings: `python benchmarks/ablation.py` trains, measures and prints a table.
Source: YOLOv4, tables 2 to 5; the variants are changed sections of one cfg."""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from tqdm import tqdm

from yolov4.cfg import format_cfg, read_cfg, read_data
from yolov4.files import replacing
from yolov4.runs import one_line_errors
from yolov4.sections import Convolutional, Dropout, Network, Section, Shortcut, Yolo
from yolov4.settings import Settings

RESULT = "ablation.json"  # of a run: mAP@.50 and @.75
Change = Callable[[Network], Network]


def net(**keys) -> Change:
    return lambda network: network._replace(net=replace(network.net, **keys))


def each(kind: type[Section], where: Callable[[Section], bool] = lambda section: True, **keys) -> Change:
    def changed(section: Section) -> Section:
        return replace(section, **keys) if isinstance(section, kind) and where(section) else section

    return lambda network: network._replace(sections=tuple(map(changed, network.sections)))


def dropblock(network: Network) -> Network:
    """Blocks of up to 3 cells before the convolution of each head's logits."""
    sections, places = [], []
    for index, (section, after) in enumerate(zip(network.sections, [*network.sections[1:], None], strict=True)):
        if isinstance(after, Yolo):
            sections.append(Dropout(dropblock=True, dropblock_size_abs=3, probability=0.1))
        places.append(len(sections))
        for key in {"layers", "from_"} & vars(section).keys():
            found = getattr(section, key)
            moved = places[found % index] if isinstance(found, int) else tuple(places[r % index] for r in found)
            section = replace(section, **{key: moved})
        sections.append(section)
    return network._replace(sections=tuple(sections))


BASE = (net(mosaic=False), each(Yolo, iou_loss="mse", iou_normalizer=0.75, iou_thresh=1.0, label_smooth_eps=0.0))
MOSAIC = (*BASE, net(mosaic=True))
CIOU = (*MOSAIC, each(Yolo, iou_loss="ciou", iou_normalizer=0.07))
REFERENCE = (*CIOU, each(Yolo, iou_thresh=0.213))
QUARTERS = (*REFERENCE, net(subdivisions=4))
# the attacks begin after burn-in and look up rolling averages, which have to be settled by then
LATE = (*REFERENCE, lambda network: net(burn_in=network.net.max_batches // 2)(network))
VARIANTS = {
    "base: no mosaic, squared error, one anchor a truth": BASE,
    "+ mosaic": MOSAIC,
    "+ CIoU instead of squared error": CIOU,
    "+ all anchors with IoU > 0.213 = the reference": REFERENCE,
    "reference, EMA": REFERENCE,
    "reference, 4 mini-batches": QUARTERS,
    "reference, 4 mini-batches, CmBN": (
        *QUARTERS, each(Convolutional, lambda section: section.batch_normalize, batch_normalize=2)),
    "reference, DropBlock": (*REFERENCE, dropblock),
    "reference, weighted shortcuts": (
        *REFERENCE, each(Shortcut, weights_type="per_channel", weights_normalization="softmax")),
    "reference, burn-in of half the training": LATE,
    "the same, self-adversarial training after it": (*LATE, net(adversarial_lr=0.05)),
}  # fmt: skip


class Run(NamedTuple):
    settings: Settings
    valid: str
    folder: Path


def train(run: Run) -> None:
    """Trains, or goes on, and leaves mAP@.50 and @.75 in a file; nothing where it was stopped."""
    import torch  # in the processes that train

    from yolov4.evaluation import collect
    from yolov4.training import Training
    from yolov4.updates import NonFiniteLoss

    torch.set_num_threads(1)
    figures: list[float] = []  # none where it diverges
    with contextlib.redirect_stderr(io.StringIO()):  # no bar a process
        training = Training(run.settings, run.folder, (run.folder / "last.pt").exists(), say=lambda line: None)
        with contextlib.suppress(NonFiniteLoss):
            training.run()
            if training.progress.iteration < training.net.max_batches:
                return
            evaluator = collect(training.ema.model or training.model, run.valid)
            figures = [evaluator.result(iou).map for iou in (0.5, 0.75)]
    with replacing(run.folder / RESULT) as beside:
        beside.write_text(json.dumps(figures))


def planned(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Run]]]:
    """(name, a run for each seed) of the variants; those that change nothing in this cfg are left out."""
    data, length, seen = read_data(arguments.data), arguments.max_batches, set()
    schedule = net(max_batches=length, steps=(length * 8 // 10, length * 9 // 10), burn_in=length // 10)
    original = schedule(read_cfg(arguments.cfg))
    names = Path(arguments.data).stem, Path(arguments.cfg).stem, str(length)
    folder = Path(arguments.runs) / "-".join(names)
    folder.mkdir(parents=True, exist_ok=True)
    for name, changes in VARIANTS.items():
        network, ema = original, 0.99 * name.endswith("EMA")
        for change in changes:
            network = change(network)
        text = format_cfg(network.net, network.sections)
        if (text, ema) not in seen and arguments.only in name:
            cfg = folder / ("_".join(re.findall(r"\w+", name)) + ".cfg")
            cfg.write_text(text)
            settings = Settings(cfg=str(cfg), train=data["train"], names=data["names"], ema=ema)
            seeds = range(arguments.seeds)
            yield name, [Run(replace(settings, seed=s), data["valid"], folder / f"{cfg.stem}-{s}") for s in seeds]
        seen.add((text, ema))


def row(name: str, runs: list[Run]) -> str:
    """Of a markdown table: mean and (lowest to highest) of the runs that are done and did not diverge."""
    results = [json.loads((run.folder / RESULT).read_text()) for run in runs if (run.folder / RESULT).exists()]
    numbers = [result for result in results if result]
    cells = [f"{mean(r):.1%} ({min(r):.1%} to {max(r):.1%})" for r in zip(*numbers, strict=True)] or ["", ""]
    diverged = f", {len(results) - len(numbers)} diverged" if len(numbers) < len(results) else ""
    return f"| {name} | {len(results)}{diverged} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} Run again it goes on where it stopped.")
    parser.add_argument("--data", default="cfg/shapes.data", help="with train, valid, names (default %(default)s)")
    parser.add_argument("--cfg", default="cfg/shapes.cfg", help="the whole recipe (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default %(default)s)")
    parser.add_argument("--max-batches", type=int, default=300, help="iterations of a run (default %(default)s)")
    parser.add_argument("--only", default="", metavar="WORDS", help="variants whose name has these")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each (default %(default)s)")
    parser.add_argument("--runs", default="runs/ablation", help="where they are kept (default %(default)s)")
    arguments = parser.parse_args()
    with one_line_errors("ablation.py"):
        variants = list(planned(arguments))
        todo = [run for seed in zip(*(runs for _, runs in variants), strict=True) for run in seed]
        todo = [run for run in todo if not (run.folder / RESULT).exists()]
        own_group = getattr(os, "setpgrp", None)  # Ctrl-C is for this process, which asks the others to stop and save
        with multiprocessing.get_context("spawn").Pool(arguments.jobs, own_group, maxtasksperchild=1) as pool:
            for _ in tqdm(pool.imap_unordered(train, todo), total=len(todo), unit="runs"):
                pass
    print("\n".join(["| | runs | mAP@.50 | mAP@.75 |", "|---|---|---|---|", *(row(*each) for each in variants)]))


if __name__ == "__main__":
    main()
