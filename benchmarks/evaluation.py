#!/usr/bin/env python3
"""Milliseconds per image of an evaluation, and how much of it is the network alone."""

import argparse
import tempfile
from pathlib import Path

import torch
from common import ROOT, machine, medians, seeded_network, table
from training import draw_pictures

import yolov4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "images", nargs="?", metavar="LIST", help="labelled photographs (default: drawn)"
    )
    parser.add_argument("--cfg", default=str(ROOT / "cfg/yolov4.cfg"), help="default: %(default)s")
    parser.add_argument("--weights", help="default: drawn ones, which find nothing")
    parser.add_argument("--size", type=int, default=416, help="width and height of drawn weights")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder, cfg, weights = Path(name), arguments.cfg, arguments.weights
        if weights is None:
            model = seeded_network(cfg, arguments.size)
            cfg, weights = folder / "x.cfg", folder / "x.weights"
            cfg.write_text(yolov4.format_cfg(model.net, model.sections))
            yolov4.save_weights(model, weights, seen=0)
        images = Path(arguments.images) if arguments.images else draw_pictures(folder, 1)
        count = len(images.read_text().split())
        model = yolov4.Darknet.from_cfg(cfg)
        yolov4.load_weights(model, weights)
        detector = yolov4.Detector(cfg, weights, device="cpu")
        pixels = torch.rand(1, 3, model.net.height, model.net.width)
        pixels = pixels.to(memory_format=torch.channels_last)
        calls = {
            "an evaluation": lambda: yolov4.evaluate(model, images),
            "the network alone": lambda: [detector.network(pixels) for _ in range(count)],
        }
        seconds = medians(calls, arguments.repeats)
        rows = [(label, f"{each / count * 1e3:.1f}", f"{seconds['the network alone'] / each:.1%}")
                for label, each in seconds.items()]  # fmt: skip
        print(table((f"{count} images", "ms per image", "network"), rows))


if __name__ == "__main__":
    main()
