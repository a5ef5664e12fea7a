#!/usr/bin/env python3
"""What the loss costs: milliseconds, operations and waits for the device, over objects, classes and batch.
A loss is its value and the gradient of the logits; its share is of a step: forward and backward of the network."""

import argparse
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from unittest.mock import patch

import torch
from common import machine, medians, table
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yolov4 import Darknet, DarknetLoss
from yolov4.cfg import read_cfg
from yolov4.recipe import with_yolov5_heads
from yolov4.sections import Head
from yolov4.yolov5_loss import Yolov5Loss

OBJECTS = (0, 10, 100, 200, 500)  # an image
STATES = (("darknet", True), ("darknet", False), ("yolov5", True))  # loss, whether the network is fresh
WAITING = {"new_tensor", "as_tensor"}  # copy from the host and wait; what copies to it raises an error on "meta"
NOT_LAUNCHED = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "lift_fresh", "_unsafe_view"}


class Waits(TorchFunctionMode):
    """Counts calls that make a tensor of the device from values of the host, and wait for it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += getattr(function, "__name__", "") in WAITING and result.is_meta
        return result


class Launches(TorchDispatchMode):
    """Counts the operations that a device is given, and the copies to it."""

    def __init__(self):
        super().__init__()
        self.launched, self.copies = Counter(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        flat = tree_leaves((args, result))
        there = [each.is_meta for each in flat if isinstance(each, torch.Tensor)]
        name = function.__name__.partition(".")[0]
        if any(there) and name in ("_to_copy", "copy_") and not all(there):
            self.copies += 1
        elif any(there) and not function.is_view and name not in NOT_LAUNCHED:
            self.launched[name] += 1
        return result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Milliseconds of the loss, and its share of a training step.")
    parser.add_argument("--cfg", default="cfg/yolov4.cfg", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=416, help="width and height (default %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8], help="images (default 2 8)")
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 80, 1000], help="default: 20 80 1000")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; their median counts (default %(default)s)")
    parser.add_argument("--no-step", action="store_true", help="without the training step, which takes longest")
    return parser.parse_args()


def draw_targets(images: int, objects: int, classes: int) -> torch.Tensor:
    """(images * objects, 6): the more objects the smaller, sides from 8 pixels of 416 to 2 / sqrt(objects)."""
    generator = torch.Generator().manual_seed(objects)
    targets = torch.rand(images * objects, 6, generator=generator)
    targets[:, 0] = torch.arange(len(targets)) % images
    targets[:, 1] = (targets[:, 1] * classes).floor()
    least, most = 8 / 416, min(0.9, 2 / max(objects, 1) ** 0.5)
    targets[:, 4:] = least * (most / least) ** targets[:, 4:]
    return targets


def draw_logits(heads: list[Head], images: int, size: int, fresh: bool) -> list[torch.Tensor]:
    """fresh: about 0, so that every class has half a chance; else most predictions are sure that there is nothing."""
    generator, found = torch.Generator().manual_seed(0), []
    for head in heads:
        shape = images, len(head.anchors), head.box_values + 1 + head.classes, size // head.stride, size // head.stride
        logits = torch.randn(shape, generator=generator) * 0.3
        if not fresh:
            logits[:, :, head.box_values :] = logits[:, :, head.box_values :] * 6 - 6
        found.append(logits.flatten(1, 2).contiguous(memory_format=torch.channels_last).requires_grad_())
    return found


def loss_call(loss: Callable, logits: list[torch.Tensor], targets: torch.Tensor) -> Callable:
    def call():
        terms = loss(logits, targets)
        return torch.autograd.grad(terms.total, logits)

    return call


def step_call(model: Darknet, images: int, size: int) -> Callable:
    """Forward and backward of the network with the loss of 10 objects an image, as training does them."""
    pixels = torch.rand(images, model.net.channels, size, size).to(memory_format=torch.channels_last)
    loss, targets = DarknetLoss(model.heads, model.net), draw_targets(images, 10, model.heads[0].classes)
    return lambda: loss(model(pixels), targets).total.backward()


def operations(loss: Callable, logits: list[torch.Tensor], targets: torch.Tensor) -> str:
    """Of one call for logits of a device: operations launched, copies to it, waits for it.

    The device is "meta", whose tensors have no values: whatever the host would wait for is an error there.
    """
    call = loss_call(loss, [each.detach().to("meta").requires_grad_() for each in logits], targets)
    # autocast does not know that device
    with patch("torch.autocast", lambda *_, **__: nullcontext()), Waits() as waits, Launches() as launches:
        call()
    return f"{sum(launches.launched.values())} / {launches.copies} / {waits.count}"


def main() -> None:
    arguments = parse_arguments()
    network = read_cfg(arguments.cfg)
    model = Darknet(network, torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    kinds = {"darknet": (DarknetLoss, model.heads), "yolov5": (Yolov5Loss, Darknet(with_yolov5_heads(network)).heads)}
    print(f"{arguments.cfg} at {arguments.size}; {machine()}\n")
    batches = [] if arguments.no_step else arguments.batches
    steps = medians({images: step_call(model, images, arguments.size) for images in batches}, 1)
    rows, counted = [], []
    for images, classes, (name, fresh) in product(arguments.batches, arguments.classes, STATES):
        kind, heads = kinds[name]
        heads = [replace(head, classes=classes) for head in heads]
        loss, logits = kind(heads, model.net), draw_logits(heads, images, arguments.size, fresh)
        targets = [draw_targets(images, objects, classes) for objects in OBJECTS]
        seconds = medians({len(each): loss_call(loss, logits, each) for each in targets}, arguments.repeats)
        label = f"{name}, {'fresh' if fresh else 'trained'}", images, classes
        rows.append((*label, *(shown(value, steps.get(images)) for value in seconds.values())))
        if classes == arguments.classes[0] and not (fresh and name == "darknet"):  # the same for all classes and logits
            counted.append((name, images, *(operations(loss, logits, each) for each in targets)))
    objects = [f"{n} objects" for n in OBJECTS]
    print("ms (share of a step)\n" + table(("loss, network", "images", "classes", *objects), rows))
    print("\noperations launched / copies to the device / waits for it")
    print(table(("loss", "images", *objects), counted))
    for images, value in steps.items():
        print(f"a step of {images} images: {value:.2f} s")


def shown(seconds: float, step: float | None) -> str:
    return f"{seconds * 1e3:.1f}" + (f" ({seconds / step:.1%})" if step else "")


if __name__ == "__main__":
    main()
