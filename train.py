#!/usr/bin/env python3
"""Trains a network on a list of images: `python train.py --data cfg/voc.data --cfg cfg/yolov4-voc.cfg`."""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

from yolov4.cfg import read_data
from yolov4.downloads import PRETRAINED, download
from yolov4.recipe import read_recipe
from yolov4.runs import new_run_folder, one_line_errors, run_folder, run_settings
from yolov4.sections import Net
from yolov4.settings import Settings

CFG, DATA, WEIGHTS = "cfg/yolov4-voc.cfg", "cfg/voc.data", "pretrain/yolov4.conv.137"
MADE_BY = {  # lists that a .data file of the project names
    DATA: "`python data/voc0712/voc_label.py VOCDEVKIT --out data/voc0712` makes it; with --download it "
    "brings VOC 2007 and 2012 too",
    "cfg/coco.data": "`python data/coco/coco_label.py COCO` makes it of a folder with annotations, train2017, val2017",
    "cfg/shapes.data": "`python data/shapes/make_shapes.py` draws it and says what comes next",
}
POLICIES = get_args(get_type_hints(Net)["policy"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f"Trains a network. Without flags: {CFG} on {DATA} from {WEIGHTS} with Darknet's loss. "
        "The cfg rules where no flag and no recipe says otherwise."
    )
    for add in (add_files, add_recipe, add_running):
        add(parser)
    arguments = parser.parse_args(recipe_flags(parser) + sys.argv[1:])
    if arguments.resume is not None:
        changed = [key for key, value in vars(arguments).items() if value != parser.get_default(key)]
        if wrong := sorted(set(changed) - {"resume", "runs", "name", "device", "workers", "cache"}):
            parser.error(f"--resume goes on as the run was started, expected no --{wrong[0].replace('_', '-')} with it")
    return arguments


def recipe_flags(parser: argparse.ArgumentParser) -> list[str]:
    """The flags that a recipe stands for, but for those that the user's own put aside."""
    given, _ = parser.parse_known_args()
    if given.recipe is None:
        return []
    try:
        flags = read_recipe(given.recipe).train
    except (ValueError, OSError) as error:
        parser.error(str(error))
    aside = ({"epochs"} if given.max_batches else set()) | ({"weights"} if given.cfg else set())
    return [f"--{key.replace('_', '-')}={value}" for key, value in flags.items() if key not in aside]


def add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files").add_argument
    add("--data", default=DATA, help="Darknet's .data file (default %(default)s)")
    add("--cfg", help=f"the network and its recipe (default {CFG})")
    add("--weights", help=f".weights to start from, whole or partial (default: {WEIGHTS} without --cfg, else none)")
    add("--recipe", help="a file of flags and keys, by path or as cfg/NAME.recipe; flags beside it count more")
    add("--download", action="store_true", help=f"bring the weights if they are missing: {', '.join(PRETRAINED)}")
    add("--clear", action="store_true", help="start at iteration 0 whatever the weights have seen")
    add("--freeze", type=int, default=0, metavar="N", help="the first N layers keep their weights")
    add("--name", help="the run's folder in --runs (default: the recipe's or the cfg's name)")
    add("--runs", default="runs", help="where runs are kept (default %(default)s)")
    add("--resume", nargs="?", const="", metavar="RUN", help="go on with a run (default: the newest)")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("instead of the cfg's")
    add = group.add_argument
    add("--batch", type=int, help="images of one update, of all processes together; whatever their number is, the "
        "learning rate is for one update")  # fmt: skip
    add("--subdivisions", type=int, help="mini-batches an update is cut into: more need less memory")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--max-batches", type=int, help="iterations")
    length.add_argument("--epochs", type=float, help="the same, in passes over the images")
    add("--learning-rate", type=float)
    add("--policy", choices=POLICIES, help="of the rate; onecycle: half a cosine after burn-in")
    add("--loss", choices=("darknet", "yolov5"), default="darknet", help="yolov5: truths matched by the "
        "ratio of sides, autograd; the heads and the cfg are changed to fit (default %(default)s)")  # fmt: skip
    add("--width", type=int, help="of the network input, pixels")
    add("--height", type=int)
    add("--ema", type=float, nargs="?", const=0.9999, default=0.0, metavar="DECAY",
        help="keep a running average of the weights (decay %(const)s if none is given)")  # fmt: skip


def add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("running").add_argument
    add("--device", help="cuda, cuda:1, mps, cpu (default: the best there is)")
    add("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision")
    add("--sync-bn", action="store_true", help="with torchrun: batch normalisation over all processes' mini-batches")
    add("--workers", type=int, help="processes that prepare images (default: a core each, 8 at most)")
    add("--cache", type=float, metavar="GB", help="memory in which decoded images are kept for all workers (default: "
        "none; with torchrun each process has its own)")  # fmt: skip
    add("--seed", type=int, default=0)
    add("--eval-every", type=int, metavar="N", help="iterations between evaluations, 0: only at the end (default: 4 "
        "epochs and at least 100 iterations, after burn-in, as Darknet)")  # fmt: skip
    add("--deterministic", action="store_true", help="the same weights from the same seed on a GPU too, only slower")
    add("--save-every", type=int, default=100, metavar="N", help="iterations between checkpoints (default 100)")
    add("--tensorboard", action="store_true", help="write events for TensorBoard into the run's folder")
    add("--patience", type=int, default=0, metavar="N", help="stop after N evaluations without a better mAP")


def prepared(arguments: argparse.Namespace) -> Settings:
    """Settings of a new run; says what is missing and which commands bring it."""
    cfg = arguments.cfg or CFG
    weights = arguments.weights or (None if arguments.cfg else WEIGHTS)
    data = read_data(arguments.data)
    if "train" not in data or "names" not in data:
        raise ValueError(
            f"{arguments.data}: has no {'names' if 'train' in data else 'train'}, expected train and names"
        )
    missing = []
    if arguments.data in MADE_BY and not Path(data["train"]).exists():
        missing.append(f"{data['train']} is missing: {MADE_BY[arguments.data]}")
    absent = PRETRAINED.get(Path(weights).name) if weights and not Path(weights).exists() else None
    if absent and not arguments.download:
        missing.append(f"{weights} is missing: --download brings it, or by hand\n{absent.by_hand(weights)}")
    if missing:
        raise ValueError("\n".join(missing))
    if absent:
        download(absent, weights)
    workers = min(8, os.cpu_count() or 1) if arguments.workers is None else arguments.workers
    from_flags = {f.name: getattr(arguments, f.name) for f in fields(Settings) if hasattr(arguments, f.name)}
    from_data = {key: data.get(key) for key in ("train", "valid", "names", "difficult")}
    return Settings(**from_flags | from_data | {"cfg": cfg, "weights": weights, "workers": workers})


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("train.py"):
        if arguments.resume is not None:
            folder = run_folder(arguments.runs, arguments.resume or arguments.name)
            given = {
                key: getattr(arguments, key)
                for key in ("device", "workers", "cache")
                if getattr(arguments, key) is not None
            }
            settings = Settings(**run_settings(folder) | given)
        else:
            settings = prepared(arguments)
            folder = new_run_folder(arguments.runs, arguments.name or Path(settings.recipe or settings.cfg).stem)
        from yolov4.training import Training  # after the checks: torch takes seconds to import
        from yolov4.updates import NonFiniteLoss

        try:
            training = Training(settings, folder, resume=arguments.resume is not None)
            training.run()
        except NonFiniteLoss as error:
            raise ValueError(f"{error}; {folder}/last.pt, if there, is from before") from None
        training.say(
            f"{folder}: chart.png, results.csv, {folder.name}_last.weights, {folder.name}_best.weights, last.pt"
        )


if __name__ == "__main__":
    sys.exit(main())
