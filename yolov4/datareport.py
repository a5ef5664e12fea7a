"""A data set as a picture: classes, box sizes against the anchors, positions; `python -m yolov4.datareport LIST`.
No source: `data.inspect` says in words what is wrong with it."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolov4 import figures
from yolov4.anchors import box_sizes, heads
from yolov4.cfg import read_cfg, read_names
from yolov4.data import label_path, read_image_list, read_labels
from yolov4.files import replacing
from yolov4.sections import Network

SHOWN = 5000  # images at most, so that a training need not wait


def write(path: str | Path, images: Sequence[Path], names: Sequence[str], network: Network) -> None:
    """Draws the labels of images to path (.png); sizes are in pixels of the network's input, as its anchors are.
    Of more than SHOWN images it takes every second, third, ... and says so."""
    total, images = len(images), images[:: max(1, math.ceil(len(images) / SHOWN))]
    title = f"{total} images" if len(images) == total else f"{len(images)} of {total} images"
    rows = [read_labels(label_path(image)) for image in images]
    labels = np.concatenate([np.zeros((0, 5), np.float32), *rows])
    sizes = box_sizes(images, (network.net.width, network.net.height), network.net.letter_box)
    yolos = heads(network)
    anchors = [np.array([yolo.anchors[i] for i in yolo.mask or range(len(yolo.anchors))]) for yolo in yolos]
    with replacing(path) as beside:
        figures.data(labels, sizes, anchors, names, title).savefig(beside, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser("python -m yolov4.datareport", description="Draws what a data set is like.")
    parser.add_argument("list", help="list of images; labels as for training")
    parser.add_argument("--names", required=True, help="file with a class name a line")
    parser.add_argument("--cfg", required=True, help="the network: its size and anchors")
    parser.add_argument("--out", default="data.png", help="default %(default)s")
    arguments = parser.parse_args()
    try:
        images = read_image_list(arguments.list)
        write(arguments.out, images, read_names(arguments.names), read_cfg(arguments.cfg))
    except (OSError, ValueError) as error:
        sys.exit(f"datareport: {error}")
    print(f"{arguments.out}: the boxes of {len(images)} images")


if __name__ == "__main__":
    main()
