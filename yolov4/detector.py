"""Images in, detections out: Darknet's resize, and a fused network behind `Detector`.
Source: Darknet's src/image.c (resize_image, letterbox_image) and src/detector.c (test_detector)."""

import copy
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from yolov4.cfg import names_of_classes
from yolov4.data import keep_freed_memory, load_image
from yolov4.decoding import Detections, detections_from_logits, fitted_size
from yolov4.export import OnnxNetwork
from yolov4.model import HALVES, Darknet
from yolov4.weights import is_onnx, load_network

Source = str | Path | np.ndarray
WORKERS = min(8, os.cpu_count() or 1)  # threads that read and resize images


def resize_image(image, size):
    """Bilinear on floats with aligned corners.  uint8 (H, W, 3) BGR, size (w, h) ->
    float32 (3, h, w) RGB in 0..1."""
    width, height = size
    pixels = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None].float()
    if pixels.shape[2:] != (height, width):
        # Darknet's oddity: one pixel wide is the last column, where aligned corners take the first
        pixels = pixels[:, :, -1 if height == 1 else 0 :, -1 if width == 1 else 0 :]
        pixels = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=True)
    return pixels[0].div_(255)


def letterbox_image(image, size):
    """As `resize_image`, but with the aspect kept: centred, the rest grey (0.5)."""
    fitted = fitted_size(image.shape[1::-1], size)
    x, y = np.subtract(size, fitted).tolist()
    borders = x // 2, x - x // 2, y // 2, y - y // 2  # left, right, top, bottom
    return F.pad(resize_image(image, fitted), borders, value=0.5)


def choose_device(name=None):
    """The device of that name; None: cuda, else mps, else cpu.  Raises ValueError if missing."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    known = ["cuda", *gpus] if gpus else []
    known += ["mps", "cpu"] if torch.backends.mps.is_available() else ["cpu"]
    name = str(name or known[0])
    if name not in known:
        raise ValueError(f"device {name}: not found, expected one of {', '.join(known)}")
    return torch.device(name)


@torch.no_grad()
def for_inference(model, device, compiled=False, dtype=torch.float32):
    """Fuses the model in place, channels last, and packs it for a CPU or compiles it.

    Returns images (B, C, h, w) of dtype, channels last -> logits of each head, of dtype; call it
    without gradient, and neither copy nor save it.  compiled: torch.compile, here and not at the
    first images, for one minute; outputs on a GPU last until the next call (CUDA graphs).
    Raises ValueError without a C++ compiler.
    """
    keep_freed_memory()
    model.fuse().to(device, dtype, memory_format=torch.channels_last)
    if compiled:
        gpu = device.type == "cuda"
        options = {"mode": "reduce-overhead"} if gpu else {"options": {"freezing": True}}
        faster = torch.compile(model.requires_grad_(False), **options)
        net = model.net
        images = torch.zeros(1, net.channels, net.height, net.width, dtype=dtype, device=device)
        try:
            faster(images.to(memory_format=torch.channels_last))
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"torch.compile: {reason}, expected g++ or clang++") from None
        return faster
    packs = device.type == "cpu" and dtype != torch.float16 and torch.backends.mkldnn.is_available()
    if packs and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        for layer, module in zip(model.plan, model.layers, strict=True):
            if isinstance(module, nn.Sequential) and isinstance(module[0], nn.Conv2d):
                module[0] = PackedConv2d(module[0], layer.input_shape)
    return model


class PackedConv2d(nn.Module):
    """A Conv2d on the CPU, without gradient: weights are laid out for oneDNN once instead of at
    every call (bfloat16 +13 %, float32 +1 %).  Source: torch._inductor, mkldnn_fusion."""

    def __init__(self, conv, input_shape):
        super().__init__()
        self.window = conv.padding, conv.stride, conv.dilation, conv.groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.contiguous(), *self.window, (1, *input_shape)
        )
        self.bias = conv.bias

    def forward(self, x):
        """(B, C, h, w) -> (B, filters, h', w')"""
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.window, "none", [], ""
        )


class Prediction(NamedTuple):
    """One image of `Detector.stream`."""

    source: Source  # as it was given
    image: np.ndarray  # uint8 (H, W, 3) BGR
    detections: Detections
    milliseconds: float  # of network and decoding, shared evenly within a batch


class Detector:
    """A network ready to detect.

    weights: .weights with its cfg, a .pt checkpoint, an .onnx (which ONNX Runtime runs on the CPU)
    or a Darknet model, which it takes over; cfg may be None but for .weights.
    names: a list, a .names file, or None for those in the weights, else class numbers.
    device: see `choose_device`.  letter_box: None for the cfg's.  compiled: see `for_inference`.
    half: "bf16" or "fp16".  Raises ValueError for what does not fit.
    """

    def __init__(
        self,
        cfg=None,
        weights=None,
        names=None,
        device=None,
        letter_box: bool | None = None,
        compiled: bool = False,
        half: str | None = None,
    ):
        dtypes, found = {None: torch.float32, **HALVES}, None
        if half not in dtypes:
            raise ValueError(f"half: found {half}, expected one of {', '.join(HALVES)}")
        if isinstance(weights, Darknet):
            model = weights
        elif is_onnx(weights):
            if cfg or compiled or half or device not in (None, "cpu"):
                raise ValueError(
                    f"{weights}: expected no cfg, compiler, half or device but the CPU"
                )
            model, device = OnnxNetwork(weights), "cpu"
            found = model.names
        else:
            model, found = load_network(weights, cfg)
        self.net, self.heads, self.device = model.net, model.heads, choose_device(device)
        self.letter_box = self.net.letter_box if letter_box is None else letter_box
        self.names = names_of_classes(names or found, self.heads[-1].classes)
        self.network, self.dtype = model, dtypes[half]
        if isinstance(model, Darknet):
            self.network = for_inference(model, self.device, compiled, self.dtype)

    @classmethod
    def from_model(cls, model: Darknet, names=None, **options) -> "Detector":
        """From a copy of a model in memory, on its device unless the options name another."""
        options = {"device": next(model.parameters()).device, **options}
        return cls(None, copy.deepcopy(model), names, **options)

    def __call__(
        self,
        images: Source | Sequence[Source],
        thresh: float = 0.25,
        nms_thresh: float = 0.45,
        batch: int | None = None,
    ) -> list[Detections]:
        """images: a path, an array uint8 (H, W, 3) BGR, or a list of these.  Returns one Detections
        per image, on the CPU.  Raises ValueError for what is no image."""
        sources = [images] if isinstance(images, Source) else images
        return [each.detections for each in self.stream(sources, thresh, nms_thresh, batch)]

    def stream(
        self,
        sources: Iterable[Source],
        thresh: float = 0.25,
        nms_thresh: float = 0.45,
        batch: int | None = None,
        on_error: Callable[[Exception], None] | None = None,
        live: bool = False,
    ) -> Iterator[Prediction]:
        """Predictions one by one, in order; images are read and resized in threads.

        batch: None is 8 on a GPU, else 1.  on_error(error): called for an image that cannot be
        read, which is then left out; None: the error is raised.  live: takes the next image only
        when the last is done, in batches of 1.
        """
        gpu = self.device.type == "cuda" and not live
        batch = 1 if live else batch or (8 if gpu else 1)
        # the network takes all cores of a CPU: reading meanwhile costs it more than waiting for it
        ahead = 2 * batch + WORKERS if gpu else 0
        images = self._read_ahead(sources, 1 if live else max(batch, WORKERS), ahead, on_error)
        while group := list(islice(images, batch)):
            yield from self._predict(group, thresh, nms_thresh)

    def _read(self, source):
        """A source, its image (H, W, 3) and the network's (3, h, w)."""
        image = source if isinstance(source, np.ndarray) else load_image(source)
        if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
            found = f"{image.dtype} {image.shape}"
            raise ValueError(f"image: found {found}, expected uint8 (H, W, 3) BGR")
        fit = letterbox_image if self.letter_box else resize_image
        return source, image, fit(image, (self.net.width, self.net.height))

    def _read_ahead(self, sources, at_once, ahead, on_error):
        """Starts on `at_once` more images whenever no more than `ahead` are waiting."""
        threads = torch.get_num_threads()  # of this thread; those that resize take one core each:
        # the teams that they would wake keep the cores for a while, and val.py took 28 % longer
        try:
            with ThreadPoolExecutor(WORKERS, "", torch.set_num_threads, (1,)) as pool:
                started = (pool.submit(self._read, source) for source in sources)
                waiting = deque(islice(started, at_once))
                while waiting:
                    try:
                        read = waiting.popleft().result()
                    except (ValueError, OSError) as error:
                        if on_error is None:
                            raise
                        on_error(error)
                    else:
                        yield read
                    if len(waiting) <= ahead:
                        waiting.extend(islice(started, at_once))
        finally:
            torch.set_num_threads(threads)  # also of threads to come

    @torch.no_grad()
    def _predict(self, group, *thresholds):
        sources, images, pixels = zip(*group, strict=True)
        start = time.perf_counter()
        pixels = torch.stack([each.permute(1, 2, 0) for each in pixels])  # (B, h, w, 3)
        pixels = pixels.permute(0, 3, 1, 2).to(self.device, self.dtype)  # channels last
        options = [image.shape[1::-1] for image in images], *thresholds, self.letter_box
        if isinstance(self.network, OnnxNetwork):
            found = self.network.detections(pixels, *options)
        else:
            found = detections_from_logits(self.network(pixels), self.heads, *options)
        found = [each.cpu() for each in found]  # waits for the GPU
        milliseconds = (time.perf_counter() - start) * 1000 / len(group)
        return map(Prediction, sources, images, found, repeat(milliseconds))
