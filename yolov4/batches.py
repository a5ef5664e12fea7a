"""Training samples and the mini-batches of each iteration, drawn from (seed, number) alone.
Source: Darknet's src/data.c (load_data_detection) and src/detector.c (train_detector, the sizes)."""

import math
import signal
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from yolov4 import augment, draws
from yolov4.augment import Part
from yolov4.memory import keep_freed_memory
from yolov4.pictures import Pictures
from yolov4.sections import Net, Yolo

Size = tuple[int, int]  # width, height
MAX_PIXELS = 1 << 28  # of an image with the border that is put around it
TRIES = 20  # images drawn for one place in a sample before it stays empty


class Sample(NamedTuple):
    """An augmented picture.  In a mini-batch, `collate` has joined them."""

    image: Tensor  # uint8 (3, H, W) RGB; joined (B, 3, H, W)
    labels: Tensor  # float32 (n, 5) class, cx, cy, w, h; joined (T, 6) with the image's index in front
    files: list  # of the picture; joined a list for each picture
    faults: list[tuple[str, str]]  # images that another took the place of, and why


class TrainingSet(Dataset):
    """Augmented samples.  All that is random in sample i comes from (seed, i), whoever loads it, and when.
    An image that cannot be read is replaced by the next that sample i draws.
    paths: images, drawn with replacement; net, head: Darknet's keys of [net] and the last [yolo];
    cache: GB of memory for decoded images."""

    def __init__(self, paths: Sequence[str | Path], net: Net, head: Yolo, seed: int, cache: float = 0.0):
        if net.mosaic and net.letter_box:
            raise ValueError("[net]: found mosaic=1 with letter_box=1, expected only one of them")
        self.paths, self.net, self.head, self.seed = [str(path) for path in paths], net, head, seed
        self.pictures = Pictures(self.paths, cache)

    def __getitem__(self, key: tuple[int, Size]) -> Sample:
        """key: (index, (width, height))"""
        index, size = key
        rng, faults = np.random.default_rng((self.seed, index)), []
        image, labels, files = self._picture(rng, size, faults)
        if self.net.mixup_share and rng.random() < self.net.mixup_share:
            other, others, more = self._picture(rng, size, faults)
            image, labels = augment.mixup((image, labels), (other, others), rng.beta(8, 8))
            files += more
        planes = np.empty((3, *image.shape[:2]), np.uint8)
        cv2.split(image, list(planes[::-1]))  # (3, H, W), RGB
        return Sample(torch.from_numpy(planes), torch.from_numpy(labels), files, faults)

    def _picture(self, rng: np.random.Generator, size: Size, faults: list) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """An image, a mosaic or two images blended, with labels and files; uint8 (H, W, 3) BGR."""
        count = 1 if rng.random() < 0.5 else 4 if self.net.mosaic else 2 if self.net.mixup else 1
        drawn = [self._part(rng, size, corner if count == 4 else None, faults) for corner in range(count)]
        parts, files = zip(*drawn, strict=True)
        if count == 4:
            image, labels = augment.mosaic(parts, draws.draw_cut(rng, size), size, self.net.mosaic_bound)
        else:
            samples = [augment.augmented(part, size) for part in parts]
            image, labels = augment.mixup(*samples) if count == 2 else samples[0]
        return image, labels, list(files)

    def _part(self, rng: np.random.Generator, size: Size, corner: int | None, faults: list) -> tuple[Part, str]:
        for _ in range(TRIES):
            path = self.paths[rng.integers(len(self.paths))]
            try:
                return self._drawn(rng, path, size, corner), path
            except (ValueError, OSError) as error:
                faults.append((path, str(error)))
        nothing = np.zeros((size[1], size[0], 3), np.uint8), np.zeros((0, 5), np.float32)
        return Part(*nothing, augment.CropParams()), path

    def _drawn(self, rng: np.random.Generator, path: str, size: Size, corner: int | None) -> Part:
        image, labels = self.pictures(path)
        image_size = image.shape[1::-1]
        params = draws.draw_crop(rng, self.net, self.head, image_size, size)
        cut = image_size[0] - params.pleft - params.pright, image_size[1] - params.ptop - params.pbot
        if cut[0] * cut[1] > MAX_PIXELS:  # letter_box makes a square of the longer side
            raise ValueError(f"{path}: a crop of {cut[0]}x{cut[1]} pixels, expected at most {MAX_PIXELS:,}")
        blur, noise = draws.draw_effects(rng, self.net)
        if corner is not None and rng.random() < 0.5:
            params = draws.push_to_corner(params, corner)
        return Part(image, labels, params, blur, draws.draw_noise(rng, size, noise))


def collate(samples: Sequence[Sample]) -> Sample:
    """Samples of one size -> a mini-batch."""
    images, labels, files, faults = zip(*samples, strict=True)
    owners = torch.repeat_interleave(torch.arange(len(labels)), torch.tensor([len(rows) for rows in labels]))
    targets = torch.cat((owners[:, None].float(), torch.cat(labels)), 1)
    return Sample(torch.stack(images), targets, list(files), list(chain.from_iterable(faults)))


def training_size(net: Net, head: Yolo, iteration: int, seed: int) -> Size:
    """(width, height) of an iteration: the network's, or with `random` another every ten iterations."""
    if not head.random:
        return net.width, net.height
    limit, block = _limit(head), iteration // 10
    factor = draws.draw_factor(np.random.default_rng((seed, block)), limit)
    if block == 0 or block * 10 > net.max_batches - 100:
        factor = limit  # the largest first (is there enough memory?) and last (for the rolling averages)
    return _resized(net, factor)


def _limit(head: Yolo) -> float:
    """The largest factor of `random`; the smallest is 1 / this."""
    return 1.4 if head.random == 1 else head.random


def _resized(net: Net, factor: float) -> Size:
    step = net.resize_step
    width, height = (math.floor(factor * side / step + 1.5) * step for side in (net.width, net.height))
    if factor < 1 and (width > net.width or height > net.height):
        return net.width, net.height
    return width, height


def mini_batch_images(net: Net, head: Yolo, images: int, size: Size) -> int:
    """Images in a mini-batch that has `images` at the largest size: with dynamic_minibatch more where they are smaller,
    as many as have the pixels of those; less a fifth if that is still more than `images`."""
    if not (net.dynamic_minibatch and head.random):
        return images
    most = images * math.prod(_resized(net, _limit(head))) // math.prod(size)
    fewer = int(most * 0.8)
    return fewer if fewer > images else max(most, 1)


class MiniBatches:
    """Batch sampler: the lists of (sample index, size) of this rank's mini-batches, iterations start..end-1.
    Iteration t has the samples t * batch ... in `subdivisions` mini-batches, in equal runs over the ranks.  With
    dynamic_minibatch the numbers leave room for the most images that a mini-batch may have; update and learning rate
    are those of the mean over all images, however many there are, as in Darknet."""

    def __init__(self, net: Net, head: Yolo, seed: int, start: int, end: int, rank: int = 0, world: int = 1):
        subdivisions = max(net.subdivisions, world)
        if net.batch % subdivisions or subdivisions % world:
            found = f"batch={net.batch}, subdivisions={subdivisions}, {world} processes"
            raise ValueError(f"[net]: found {found}, expected each to be a multiple of the next")
        self.net, self.head, self.seed, self.iterations = net, head, seed, range(start, end)
        self.rows, self.runs = net.batch // subdivisions, subdivisions // world
        self.first, self.subdivisions = rank * self.runs, subdivisions
        self.room = self.rows
        if net.dynamic_minibatch and head.random:
            small, large = (math.prod(_resized(net, factor)) for factor in sorted((_limit(head), 1 / _limit(head))))
            self.room = self.rows * large // small

    def __len__(self) -> int:
        return len(self.iterations) * self.runs

    def __iter__(self) -> Iterator[list[tuple[int, Size]]]:
        for iteration in self.iterations:
            size = training_size(self.net, self.head, iteration, self.seed)
            images = mini_batch_images(self.net, self.head, self.rows, size)
            for number in range(self.first, self.first + self.runs):
                first = (iteration * self.subdivisions + number) * self.room
                yield [(index, size) for index in range(first, first + images)]


def training_batches(
    paths: Sequence[str | Path], net: Net, head: Yolo, seed: int, start: int, end: int, workers: int,
    rank: int = 0, world: int = 1, pin_memory: bool = False, cache: float = 0.0,
) -> DataLoader:  # fmt: skip
    """DataLoader of mini-batches as `collate` makes them, iterations start..end-1, from `workers` processes (or 0),
    which share `cache` GB of decoded images."""
    options = {"num_workers": workers, "persistent_workers": workers > 0, "worker_init_fn": _start_worker}
    options |= {"batch_sampler": MiniBatches(net, head, seed, start, end, rank, world), "collate_fn": collate}
    return DataLoader(TrainingSet(paths, net, head, seed, cache), pin_memory=pin_memory, **options)


def _start_worker(_: int) -> None:
    keep_freed_memory()
    cv2.setNumThreads(0)  # the workers are the parallelism
    for number in (signal.SIGINT, signal.SIGTERM):  # for the main process, which ends its iteration and then stops
        signal.signal(number, signal.SIG_IGN)
