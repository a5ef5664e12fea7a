"""Anchors for a data set by k-means with 1 - IoU as the distance; `python -m yolov4.anchors LIST --cfg X.cfg`.
Source: YOLOv2 (arXiv 1612.08242) section 2, Darknet's src/detector.c, calc_anchors; the seeding is k-means++."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolov4.cfg import read_cfg
from yolov4.data import label_path, load_image, read_image_list, read_labels
from yolov4.sections import Network, Yolo

FITTED = 20_000  # boxes that k-means looks at, drawn from the seed; all of them are measured
RESTARTS, ROUNDS = 10, 300
ADVICE = """\
New anchors help where the boxes are unlike COCO's (all tiny, all long) and the network is trained from the backbone's
weights (conv.137) or from nothing. They do not help, and may cost accuracy, where the heads are trained already: those
weights belong to their anchors, and a fine-tuning starts with every box wrong. So nothing here computes them by itself.
Darknet's own advice is to change anchors only if you know what you do: then mask= should give anchors below 30x30 to
the finest head, below 60x60 to the next, the rest to the last, and filters= before a head has to be (classes + 5) *
anchors of its mask. This command changes anchors= only; a box whose best anchor is in no mask is trained by no head."""


def box_sizes(paths: Sequence[Path], size: tuple[int, int], letter_box: bool = False) -> np.ndarray:
    """Width and height of all labelled boxes in pixels of the network input, (n, 2) float64.

    size: (width, height) of the input.  letter_box: images keep their aspect, for which each has to be read.
    """
    rows = []
    for path in paths:
        boxes = read_labels(label_path(path))[:, 3:].astype(float)
        fitted = np.array(size, float)
        if letter_box and len(boxes):
            image_size = np.array(load_image(path).shape[1::-1])
            fitted = image_size * (fitted / image_size).min()
        rows.append(boxes * fitted)
    sizes = np.concatenate(rows) if rows else np.zeros((0, 2))
    return sizes[(sizes > 0).all(1)]


def size_iou(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """IoU of boxes on one centre.  sizes (n, 2), anchors (k, 2), width and height in one unit -> (n, k)"""
    shared = np.minimum(sizes[:, None], anchors[None]).prod(2)
    return shared / (sizes.prod(1)[:, None] + anchors.prod(1)[None] - shared)


def kmeans_anchors(sizes: np.ndarray, count: int, seed: int = 0, restarts: int = RESTARTS) -> np.ndarray:
    """The anchors (count, 2) with the highest mean IoU of all restarts, from the smallest area to the largest.
    sizes (n, 2) > 0.  Raises ValueError for fewer different boxes than anchors."""
    different = len(np.unique(sizes, axis=0))
    if not 1 <= count <= different:
        raise ValueError(f"{count} anchors from {different} different boxes, expected at least as many boxes")
    rng = np.random.default_rng(seed)
    if len(sizes) > FITTED:
        sizes = sizes[rng.choice(len(sizes), FITTED, replace=False)]
    found = [_kmeans(sizes, _seeds(sizes, count, rng)) for _ in range(restarts)]
    best = max(found, key=lambda anchors: size_iou(sizes, anchors).max(1).mean())
    return best[best.prod(1).argsort(kind="stable")]


def describe(sizes: np.ndarray, anchors: np.ndarray, masks: Sequence[Sequence[int]]) -> str:
    """Mean IoU and recall of anchors (N, 2) on sizes (n, 2), and how many boxes fall to each head."""
    iou = size_iou(sizes, anchors)
    best, owner = iou.max(1), iou.argmax(1)
    lines = [f"mean IoU {best.mean():.4f}, IoU > 0.5 for {(best > 0.5).mean():.1%} of {len(sizes)} boxes"]
    for number, mask in enumerate(masks, 1):
        pairs = " ".join(f"{width:g},{height:g}" for width, height in anchors[list(mask)])
        lines.append(f"  head {number}: {np.isin(owner, mask).mean():6.1%} of the boxes, anchors {pairs}")
    left = sorted(set(range(len(anchors))) - {index for mask in masks for index in mask})
    if masks and left:
        pairs = " ".join(f"{width:g},{height:g}" for width, height in anchors[left])
        lines.append(f"  no head: {np.isin(owner, left).mean():6.1%} of the boxes, anchors {pairs}")
    return "\n".join(lines)


def with_anchors(network: Network, text: str, anchors: np.ndarray) -> str:
    """Text of the network's cfg with other values of anchors= in each [yolo] and every other line as it was."""
    lines = text.splitlines(keepends=True)
    value = ", ".join(f"{width:g},{height:g}" for width, height in anchors)
    for yolo in heads(network):
        if len(yolo.anchors) != len(anchors):
            raise ValueError(f"{network.name}: {len(yolo.anchors)} anchors, but {len(anchors)} new, expected as many")
        index = yolo.lines["anchors"] - 1
        key, line = lines[index].split("=")[0], lines[index]
        lines[index] = f"{key}={value}" + line[len(line.rstrip("\r\n")) :]
    return "".join(lines)


def heads(network: Network) -> list[Yolo]:
    return [section for section in network.sections if isinstance(section, Yolo)]


def _seeds(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes that are far from each other: each is drawn by the square of its distance from those before"""
    anchors = sizes[rng.integers(len(sizes))][None]
    while len(anchors) < count:
        weights = np.square(1 - size_iou(sizes, anchors).max(1)).clip(1e-12)
        weights[size_iou(sizes, anchors).max(1) == 1] = 0
        anchors = np.concatenate((anchors, sizes[rng.choice(len(sizes), p=weights / weights.sum())][None]))
    return anchors


def _kmeans(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    for _ in range(ROUNDS):
        owner = size_iou(sizes, anchors).argmax(1)
        counts = np.bincount(owner, minlength=len(anchors))
        sums = np.stack([np.bincount(owner, column, len(anchors)) for column in sizes.T], 1)
        following = np.where(counts[:, None] > 0, sums / counts.clip(1)[:, None], anchors)
        if np.array_equal(following, anchors):
            break
        anchors = following
    return anchors


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        "python -m yolov4.anchors", description="Computes anchors for a list of images.", epilog=ADVICE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("list", help="list of images; labels as for training")
    parser.add_argument("--size", help="WIDTHxHEIGHT of the network input (default: the cfg's)")
    parser.add_argument("--num", type=int, help="anchors (default: the cfg's, else 9)")
    parser.add_argument("--cfg", help="the network whose anchors are compared")
    parser.add_argument("--out", help="write the cfg there with the new anchors (rounded to whole pixels)")
    parser.add_argument("--seed", type=int, default=0)
    return parser, parser.parse_args()


def main() -> None:
    parser, arguments = parse_arguments()
    if not (arguments.cfg or arguments.size) or (arguments.out and not arguments.cfg):
        parser.error("expected --cfg or --size, and --cfg with --out")
    try:
        _run(arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"anchors: {error}")


def _run(arguments: argparse.Namespace) -> None:
    network = read_cfg(arguments.cfg) if arguments.cfg else None
    own = (network.net.width, network.net.height) if network else None
    size = _parse_size(arguments.size) if arguments.size else own
    if arguments.out and size != own:
        raise ValueError(f"--size {arguments.size}, but {arguments.cfg} has {own[0]}x{own[1]}, expected the same")
    yolos = heads(network) if network else []
    old = np.array(yolos[0].anchors) if yolos else None
    count = arguments.num or (len(old) if yolos else 9)
    sizes = box_sizes(read_image_list(arguments.list), size, bool(network and network.net.letter_box))
    if not len(sizes):
        raise ValueError(f"{arguments.list}: found 0 boxes, expected label files with boxes")
    new = kmeans_anchors(sizes, count, arguments.seed).round().clip(1)
    masks = [yolo.mask or tuple(range(len(old))) for yolo in yolos]
    if yolos:
        print(f"{arguments.cfg}: {describe(sizes, old, masks)}")
    print(f"new, for {size[0]}x{size[1]}: {describe(sizes, new, masks if yolos and count == len(old) else [])}")
    print("anchors = " + ", ".join(f"{width:g},{height:g}" for width, height in new) + f"\n\n{ADVICE}")
    if arguments.out:
        text = with_anchors(network, Path(arguments.cfg).read_bytes().decode(), new)
        Path(arguments.out).write_text(text, encoding="utf-8", newline="")
        print(f"\nwritten: {arguments.out}")


def _parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"--size {text}, expected WIDTHxHEIGHT as 416x416")
    return int(width), int(height)


if __name__ == "__main__":
    main()
