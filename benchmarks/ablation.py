#!/usr/bin/env python3
"""What each part of YOLOv4's recipe brings: trains variants of one cfg through train.py, measures
them through val.py, prints a table.  Run again it resumes.  Source: YOLOv4, tables 2 to 5."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean

from common import ROOT, table

import yolov4
from yolov4.cfg import Convolutional, Dropout, Network, Section, Shortcut, Yolo

Change = Callable[[Network], Network]


def net(**keys) -> Change:
    return lambda network: network._replace(net=replace(network.net, **keys))


def each(kind: type[Section], **keys) -> Change:
    """Changes all sections of a kind, but for convolutions without batch normalization."""

    def changed(section: Section) -> Section:
        normalized = getattr(section, "batch_normalize", True)
        return replace(section, **keys) if isinstance(section, kind) and normalized else section

    return lambda network: network._replace(sections=tuple(map(changed, network.sections)))


def dropblock(network: Network) -> Network:
    """Blocks of up to 3 cells before the convolution of each head's logits."""
    sections, moved = [], []
    for index, section in enumerate(network.sections):
        if isinstance((*network.sections, None)[index + 1], Yolo):
            sections.append(Dropout(dropblock=True, dropblock_size_abs=3, probability=0.1))
        moved.append(len(sections))
        for key in {"layers", "from_"} & vars(section).keys():
            section = replace(
                section, **{key: tuple(moved[r % index] for r in getattr(section, key))}
            )
        sections.append(section)
    return network._replace(sections=tuple(sections))


BASE = (net(mosaic=False), each(Yolo, iou_loss="mse", iou_normalizer=0.75, iou_thresh=1.0))
MOSAIC = (*BASE, net(mosaic=True))
CIOU = (*MOSAIC, each(Yolo, iou_loss="ciou", iou_normalizer=0.07))
REFERENCE = (*CIOU, each(Yolo, iou_thresh=0.213))
QUARTERS = (*REFERENCE, net(subdivisions=4))
# attacks begin after burn-in and use running statistics, which have to be settled by then
LATE = (*REFERENCE, lambda network: net(burn_in=network.net.max_batches // 2)(network))
WEIGHTED = each(Shortcut, weights_type="per_channel", weights_normalization="softmax")
VARIANTS = {
    "base: no mosaic, squared error, one anchor per target": BASE,
    "+ mosaic": MOSAIC,
    "+ CIoU instead of squared error": CIOU,
    "+ all anchors with IoU > 0.213 = the reference": REFERENCE,
    "reference, EMA": REFERENCE,
    "reference, 4 mini-batches": QUARTERS,
    "reference, 4 mini-batches, CmBN": (*QUARTERS, each(Convolutional, batch_normalize=2)),
    "reference, DropBlock": (*REFERENCE, dropblock),
    "reference, weighted shortcuts": (*REFERENCE, WEIGHTED),
    "reference, burn-in of half the training": LATE,
    "the same, self-adversarial training after it": (*LATE, net(adversarial_lr=0.05)),
}


def run(script: str, *flags: object) -> bool:
    command = [*map(str, (sys.executable, ROOT / script, *flags))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return not subprocess.run(command, env=environment, cwd=ROOT, capture_output=True).returncode


def measured(job: tuple[str, Path, str, int]) -> list[float]:
    """data, cfg, variant, seed -> mAP@.50 and @.75 of one training; none where it diverged."""
    data, cfg, variant, seed = job
    name, ema = f"{cfg.stem}-{seed}", variant.endswith("EMA")
    folder = cfg.parent / name
    flags = ["--data", data, "--cfg", cfg, "--name", name, "--seed", seed, "--workers", 0]
    flags += ["--eval-every", 0, *(["--ema", 0.99] if ema else [])]
    resume = ["--resume", folder] if (folder / "last.pt").exists() else flags
    if not (result := folder / "ablation.json").exists():
        run("train.py", "--runs", cfg.parent, *resume)
        flags = ["--data", data, "--weights", folder / f"{name}_{'ema' if ema else 'last'}.weights"]
        folder.mkdir(exist_ok=True)
        results = [folder / f"{iou}.json" for iou in (0.5, 0.75)]
        done = [run("val.py", *flags, "--iou-thresh", r.stem, "--json", r) for r in results]
        figures = [json.loads(r.read_text())["map"] for r in results] if all(done) else []
        result.write_text(json.dumps(figures))
    return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cfg/shapes.data", help="default: %(default)s")
    parser.add_argument("--cfg", default="cfg/shapes.cfg", help="the recipe (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default 3)")
    parser.add_argument("--max-batches", type=int, default=300, help="iterations (default 300)")
    parser.add_argument("--only", default="", metavar="WORDS", help="variants with these words")
    arguments = parser.parse_args()
    length = arguments.max_batches
    folder = ROOT / f"runs/ablation/{Path(arguments.data).stem}-{Path(arguments.cfg).stem}-{length}"
    folder.mkdir(parents=True, exist_ok=True)
    schedule = {"steps": (length * 8 // 10, length * 9 // 10), "burn_in": length // 10}
    original, jobs = yolov4.read_cfg(arguments.cfg), {}
    for variant, changes in VARIANTS.items():
        if arguments.only in variant:
            network = net(max_batches=length, **schedule)(original)
            for change in changes:
                network = change(network)
            cfg = folder / ("_".join(re.findall(r"\w+", variant)) + ".cfg")
            cfg.write_text(yolov4.format_cfg(network.net, network.sections))
            jobs[variant] = [(arguments.data, cfg, variant, s) for s in range(arguments.seeds)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = {variant: pool.map(measured, each) for variant, each in jobs.items()}
        rows = []
        for variant, figures in found.items():
            done = [each for each in figures if each]
            cells = [
                f"{mean(r):.1%} ({min(r):.1%} to {max(r):.1%})" for r in zip(*done, strict=True)
            ]
            rows.append((variant, f"{len(done)} of {arguments.seeds}", *(cells or ["", ""])))
    print(table(("", "runs", "mAP@.50", "mAP@.75"), rows))


if __name__ == "__main__":
    main()
