#!/usr/bin/env python3
"""Where an evaluation's time goes: the network, decoding and suppression, counting, waiting for pictures.
The network's share is its time alone, on pictures already read, over that of all, in one run and one process."""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from common import machine, seeded_network, table, timed

from yolov4 import Darknet, detections_from_logits, evaluation, load_weights, predict
from yolov4.data import label_path, load_image, read_image_list
from yolov4.evaluation import collect
from yolov4.memory import keep_freed_memory
from yolov4.metrics import Evaluator
from yolov4.predict import Detector, resize_image

CHUNK = 50  # images of a turn: of the evaluation, then of the network alone
THRESH = 0.005  # val.py's


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Milliseconds an image of an evaluation as val.py does it, by part.")
    parser.add_argument("--cfg", nargs="+", default=["cfg/yolov4.cfg"], help="default: cfg/yolov4.cfg")
    parser.add_argument("--weights", nargs="+", default=[], help="of the first cfgs (default: drawn ones)")
    parser.add_argument("--images", metavar="LIST", help="photographs with labels (default: drawn ones)")
    parser.add_argument("--count", type=int, default=1000, help="images, the list again and again (default 1000)")
    candidates = "of drawn weights: detections of an image before suppression (default: 10 100)"
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 100], help=candidates)
    parser.add_argument("--size", type=int, default=416, help="width and height (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default %(default)s)")
    return parser.parse_args()


def draw_pictures(folder: Path, count: int = 100) -> list[Path]:
    """JPEGs of 500 x 375 with soft noise, and two labels each."""
    generator = np.random.default_rng(0)
    for number in range(count):
        noise = generator.integers(0, 256, (47, 63, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        cv2.imwrite(str(path), cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC))
        label_path(path).write_text("0 0.3 0.4 0.2 0.3\n0 0.7 0.5 0.3 0.5\n")
    return sorted(folder.glob("*.jpg"))


@torch.no_grad()
def drawn_network(cfg: str, size: int, candidates: int, picture: Path) -> Darknet:
    """Weights from a seed, the biases before its heads set so that a picture has about so many candidates."""
    model = seeded_network(cfg, size)
    pixels = resize_image(load_image(picture), (size, size))[None]
    model.set_head_biases(lambda head: torch.zeros(len(head.anchors), 5 + head.classes).flatten())
    logits, low, high = model(pixels), -40.0, 10.0
    for _ in range(30):
        middle = (low + high) / 2
        shifts = [head_shift(head, middle) for head in model.heads]
        shifted = [each + shift[:, None, None] for each, shift in zip(logits, shifts, strict=True)]
        found = len(detections_from_logits(shifted, model.heads, (416, 416), THRESH, 0)[0].scores)
        low, high = (low, middle) if found > candidates else (middle, high)
    model.set_head_biases(lambda head: head_shift(head, low))
    return model


def head_shift(head, objectness: float) -> torch.Tensor:
    """Of a head's logits: objectness, and -3 for the classes, so that few of a prediction count."""
    shift = torch.zeros(len(head.anchors), 5 + head.classes)
    shift[:, 4], shift[:, 5:] = objectness, -3
    return shift.flatten()


class Turns:
    """The network alone, on pictures already read, takes turns with an evaluation: as many images after every CHUNK."""

    def __init__(self, model: Darknet, paths: list[Path], batch: int):
        self.detector, self.batch, self.seconds, self.images = Detector.from_model(model), batch, 0.0, 0
        self.chunk = min(CHUNK, len(paths))
        start = time.perf_counter()
        read = [self.detector._read(path)[1] for path in paths]
        self.reading = (time.perf_counter() - start) / len(paths)  # seconds an image, by one thread
        batches = [torch.stack(read[at : at + batch]) for at in range(0, len(read) - batch + 1, batch)]
        self.again = itertools.cycle(each.to(memory_format=torch.channels_last) for each in batches)
        self.take(2 * batch)
        self.seconds, self.images = 0.0, 0

    @torch.no_grad()
    def take(self, images: int) -> None:
        start = time.perf_counter()
        for pixels in itertools.islice(self.again, images // self.batch):
            self.detector.network(pixels)
        self.seconds += time.perf_counter() - start
        self.images += images

    def beside(self, add: Callable) -> Callable:
        """Evaluator.add, and a turn after every CHUNK images."""

        def call(evaluator: Evaluator, *args, **kwargs):
            add(evaluator, *args, **kwargs)
            if evaluator.images % self.chunk == 0:
                self.take(self.chunk)

        return call


def measure(model: Darknet, paths: list[Path], batch: int) -> tuple[str, ...]:
    """One row: detections an image; ms an image in all, of the network alone, its share, and of the parts."""
    turns = Turns(model, paths[:CHUNK], batch)
    parts = {"network": (Darknet, "forward"), "decoding": (predict, "detections_from_logits"),
             "suppression": (evaluation, "suppress"), "counting": (Evaluator, "add")}  # fmt: skip
    with timed(parts) as seconds, patch.object(Evaluator, "add", turns.beside(Evaluator.add)):
        start = time.perf_counter()
        evaluator = collect(turns.detector, paths, batch=batch, thresh=THRESH)
        passed = time.perf_counter() - start - turns.seconds
        start = time.perf_counter()
        evaluator.result()
        result = time.perf_counter() - start
    seconds["network"] -= turns.seconds
    rest, alone = passed - sum(seconds.values()), turns.seconds * len(paths) / turns.images
    kept = sum(len(record.detections.scores) for record in evaluator.records) / len(paths)
    whole = passed + result
    columns = (whole, alone, *(seconds[part] for part in parts), rest, result)
    ms = [f"{value / len(paths) * 1e3:.1f}" for value in columns]
    return (f"{kept:.0f}", *ms[:2], f"{alone / whole:.1%}", *ms[2:], f"{turns.reading * 1e3:.1f}")


def main() -> None:
    arguments = parse_arguments()
    keep_freed_memory()  # as val.py
    with tempfile.TemporaryDirectory() as folder:
        photographs = read_image_list(arguments.images) if arguments.images else draw_pictures(Path(folder))
        paths = list(itertools.islice(itertools.cycle(photographs), arguments.count))
        rows = []
        for cfg, weights in itertools.zip_longest(arguments.cfg, arguments.weights):
            for candidates in [None] if weights else arguments.candidates:
                if weights:
                    model = seeded_network(cfg, arguments.size)
                    load_weights(model, weights)
                else:
                    model = drawn_network(cfg, arguments.size, candidates, photographs[0])
                label = f"{Path(cfg).stem}, {'trained' if weights else f'{candidates} candidates'}"
                rows.append((label, *measure(model, paths, arguments.batch)))
    print(f"{len(paths)} images at {arguments.size}, batch {arguments.batch}; {machine()}")
    print("ms an image; reading is one thread's, and in `waiting, rest` too\n")
    header = ("network", "detections", "in all", "network alone", "its share", "network", "decoding", "suppression",
              "counting", "waiting, rest", "result", "reading")  # fmt: skip
    print(table(header, rows))


if __name__ == "__main__":
    main()
