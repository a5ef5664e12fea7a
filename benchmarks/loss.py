#!/usr/bin/env python3
"""Milliseconds of Darknet's loss (value and gradient of the logits) over objects, and its share of
a training step without an optimiser."""

import argparse

import torch
from common import ROOT, machine, medians, seeded_network, table

import yolov4


def draw_targets(images: int, objects: int, classes: int) -> torch.Tensor:
    """(images * objects, 6): the more objects, the smaller."""
    generator = torch.Generator().manual_seed(objects)
    targets = torch.rand(images * objects, 6, generator=generator)
    targets[:, 0] = torch.arange(len(targets)) % images
    targets[:, 1] = (targets[:, 1] * classes).floor()
    least, most = 8 / 416, min(0.9, 2 / max(objects, 1) ** 0.5)
    targets[:, 4:] = least * (most / least) ** targets[:, 4:]
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", default=str(ROOT / "cfg/yolov4.cfg"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=416, help="width and height (default 416)")
    parser.add_argument("--batch", type=int, default=2, help="images (default 2)")
    parser.add_argument(
        "--objects", type=int, nargs="+", default=[0, 10, 100, 500], help="per image"
    )
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default 15)")
    arguments = parser.parse_args()
    model = (
        seeded_network(arguments.cfg, arguments.size).train().to(memory_format=torch.channels_last)
    )
    loss, classes = yolov4.DarknetLoss(model.heads, model.net), model.heads[0].classes
    images = torch.rand(arguments.batch, model.net.channels, arguments.size, arguments.size)
    images = images.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logits = [torch.randn(each.shape, generator=generator) * 2 - 6 for each in model(images)]
    logits = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in logits]

    def call(objects: int):
        targets = draw_targets(arguments.batch, objects, classes)
        return lambda: torch.autograd.grad(loss(logits, targets).total, logits)

    calls = {str(objects): call(objects) for objects in arguments.objects}
    calls["step"] = lambda: loss(
        model(images), draw_targets(arguments.batch, 10, classes)
    ).total.backward()
    seconds = medians(calls, arguments.repeats)
    step = seconds.pop("step")
    print(f"{machine()}\n{arguments.cfg} at {arguments.size}, batch {arguments.batch}")
    print(f"a step takes {step:.2f} s")
    rows = [(name, f"{each * 1e3:.1f}", f"{each / step:.1%}") for name, each in seconds.items()]
    print(table(("objects per image", "ms", "of a step"), rows))


if __name__ == "__main__":
    main()
