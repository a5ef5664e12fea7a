"""Photographs in, detections out: Darknet's own resize, and a Detector for pictures, files and streams of them.
Source: Darknet's src/image.c (resize_image, letterbox_image) and src/detector.c (test_detector)."""

import copy
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Barrier
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from yolov4.cfg import names_of_classes
from yolov4.checkpoint import load_network
from yolov4.data import load_image
from yolov4.decoding import Detections, detections_from_logits, fitted_size
from yolov4.inference import for_inference
from yolov4.model import HALVES, Darknet
from yolov4.runs import is_onnx
from yolov4.runtime import OnnxNetwork

Source = str | Path | np.ndarray
WORKERS = min(8, os.cpu_count() or 1)  # threads that read and resize pictures while the network runs


class Prediction(NamedTuple):
    """One picture of `Detector.stream`."""

    source: Source  # as it was given
    image: np.ndarray  # uint8 (H, W, 3) BGR
    detections: Detections
    milliseconds: float  # of network and decoding, shared evenly within a batch


def resize_image(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 (H, W, 3) BGR -> float32 (3, h, w) RGB 0..1, size = (w, h): bilinear on floats with corners aligned."""
    width, height = size
    pixels = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    if pixels.shape[2:] != (height, width):
        # Darknet's oddity: one pixel wide is the last column, where aligned corners would take the first
        rows = pixels[:, :, -1:] if height == 1 else pixels
        pixels = F.interpolate(
            rows[..., -1:] if width == 1 else rows, (height, width), mode="bilinear", align_corners=True
        )
    return pixels[0].div_(255)


def letterbox_image(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """As `resize_image`, but keeping the aspect: centred, the rest grey (0.5)."""
    (width, height), fitted = size, fitted_size(image.shape[1::-1], size)
    left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    boxed = torch.full((3, height, width), 0.5)
    boxed[:, top : top + fitted[1], left : left + fitted[0]] = resize_image(image, fitted)
    return boxed


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name; None: cuda, else mps, else cpu.  Raises ValueError for one that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        return torch.device(next(kind for kind, there in available.items() if there))
    kind, _, index = str(name).partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not available.get(kind) or (index and not (index.isdigit() and int(index) < count)):
        there = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"device {name}: not found here, expected one of {there}")
    return torch.device(name)


class Detector:
    """A network ready to detect: fused, on its device (found by itself: cuda, mps, cpu).

    cfg may be None where weights is a .pt checkpoint, and has to be for an .onnx by export.py, which ONNX Runtime runs
    on the CPU.  names: a list, a .names file, or None for those in the weights, else class numbers.  letter_box: None
    takes the cfg's.  compiled: by torch.compile, see `for_inference`.  half: "bf16" or "fp16", of weights and values.
    Raises ValueError for what does not fit.
    """

    def __init__(
        self, cfg=None, weights=None, names=None, device=None, letter_box: bool | None = None, compiled: bool = False,
        half: str | None = None,
    ):  # fmt: skip
        if half not in (None, *HALVES):
            raise ValueError(f"half: found {half}, expected one of {', '.join(HALVES)}")
        if is_onnx(weights):
            if cfg is not None or device not in (None, "cpu") or compiled or half:
                raise ValueError(
                    f"{weights}: holds its cfg and runs on the CPU, expected no other cfg, device, compiler, precision"
                )
            model, device = OnnxNetwork(weights), "cpu"
            found = model.names
        else:
            model, found = load_network(weights, cfg)
        names = found if names is None else names
        self._prepare_model(model, names, choose_device(device), letter_box, compiled, HALVES.get(half, torch.float32))

    @classmethod
    def from_model(cls, model: Darknet, names=None, device=None, letter_box: bool | None = None) -> "Detector":
        """From a model in memory, which stays as it is: the detector has a fused copy.  device None: the model's."""
        detector = cls.__new__(cls)
        device = next(model.parameters()).device if device is None else choose_device(device)
        detector._prepare_model(copy.deepcopy(model), names, device, letter_box)
        return detector

    def __call__(
        self,
        images: Source | Sequence[Source],
        thresh: float = 0.25,
        nms_thresh: float = 0.45,
        batch: int | None = None,
    ) -> list[Detections]:
        """images: a path, an array uint8 (H, W, 3) BGR, or a list of these -> one Detections each, on the CPU.

        Raises ValueError for a file that is no image and for an array of another shape or type.
        """
        sources = [images] if isinstance(images, Source) else images
        return [prediction.detections for prediction in self.stream(sources, thresh, nms_thresh, batch)]

    def stream(
        self,
        sources: Iterable[Source],
        thresh: float = 0.25,
        nms_thresh: float = 0.45,
        batch: int | None = None,
        on_error: Callable[[Source, Exception], None] | None = None,
        live: bool = False,
    ) -> Iterator[Prediction]:
        """Predictions one by one, in order; the pictures of a batch are read and resized in threads, on a GPU while the
        network runs.

        batch: None is 8 on a GPU and 1 elsewhere.  on_error(source, error) is called for a picture that cannot be
        read, which is then left out; without it the error is raised.  live: one at a time, none is read ahead.
        """
        on_gpu = self.device.type == "cuda"
        batch = 1 if live else batch or (8 if on_gpu else 1)
        if live:
            at_once, ahead = 1, 0
        elif on_gpu:
            at_once, ahead = batch, 2 * batch + WORKERS
        else:  # the network takes all cores: a picture that is read meanwhile holds it up for longer than that takes
            at_once, ahead = max(batch, WORKERS), 0
        prepared = self._read_ahead(sources, at_once, ahead, on_error)
        try:
            while group := list(islice(prepared, batch)):
                yield from self._predict(group, thresh, nms_thresh)
        finally:
            prepared.close()

    def _prepare_model(
        self, model: Darknet | OnnxNetwork, names, device: torch.device, letter_box: bool | None,
        compiled: bool = False, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.device, self.dtype, self.net, self.heads = device, dtype, model.net, model.heads
        self.letter_box = self.net.letter_box if letter_box is None else letter_box
        self.names = names_of_classes(names, self.heads[-1].classes)
        self.network = for_inference(model, device, compiled, dtype) if isinstance(model, Darknet) else model

    def _read(self, source: Source) -> tuple[np.ndarray, Tensor]:
        image = source if isinstance(source, np.ndarray) else load_image(source)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"image: {image.dtype} {image.shape}, expected uint8 (H, W, 3) BGR as OpenCV gives it")
        fit = letterbox_image if self.letter_box else resize_image
        return image, fit(image, (self.net.width, self.net.height))

    def _read_ahead(
        self, sources: Iterable[Source], at_once: int, ahead: int, on_error
    ) -> Iterator[tuple[Source, np.ndarray, Tensor]]:
        """Begins with `at_once` more pictures whenever no more than `ahead` are begun with."""
        pool, pending, sources = _lone_threads(), deque(), iter(sources)
        try:
            while True:
                for source in islice(sources, at_once if len(pending) <= ahead else 0):
                    pending.append((source, pool.submit(self._read, source)))
                if not pending:
                    return
                source, future = pending.popleft()
                try:
                    image, pixels = future.result()
                except (ValueError, OSError) as error:
                    if on_error is None:
                        raise
                    on_error(source, error)
                else:
                    yield source, image, pixels
        finally:
            pool.shutdown(cancel_futures=True)

    @torch.no_grad()
    def _predict(self, group: list[tuple[Source, np.ndarray, Tensor]], thresh: float, nms_thresh: float):
        sources, images, pixels = zip(*group, strict=True)
        start = time.perf_counter()
        # by the order in memory that they have, which is the network's too
        batch = torch.stack([each.permute(1, 2, 0) for each in pixels]).permute(0, 3, 1, 2).to(self.device, self.dtype)
        sizes = [image.shape[1::-1] for image in images]
        if isinstance(self.network, OnnxNetwork):
            found = self.network.detections(batch, sizes, thresh, nms_thresh, self.letter_box)
        else:
            logits = self.network(batch)
            found = detections_from_logits(logits, self.heads, sizes, thresh, nms_thresh, self.letter_box)
        found = [Detections(*(values.cpu() for values in each)) for each in found]
        milliseconds = (time.perf_counter() - start) * 1000 / len(group)
        return [Prediction(*each, milliseconds) for each in zip(sources, images, found, strict=True)]


def _lone_threads() -> ThreadPoolExecutor:
    """Threads whose torch operations take a core each: the teams that a resize would wake keep the cores for a while.
    torch has one number of threads for each thread, and the one set last is what new threads begin with."""
    team, ready = torch.get_num_threads(), Barrier(WORKERS + 1)

    def alone() -> None:
        torch.get_num_threads()  # the first look takes over the number of the process
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(WORKERS, initializer=alone)
    try:
        for _ in range(WORKERS):
            pool.submit(ready.wait)
        ready.wait()
    finally:
        ready.abort()  # after Ctrl-C none of them waits on, which would keep the process from its end
        torch.set_num_threads(team)
    return pool
