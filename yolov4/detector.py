"""Images in, detections out: Darknet's resize, and a fused network behind `Detector`.
Source: Darknet's src/image.c (resize_image, letterbox_image) and src/detector.c (test_detector)."""

import copy
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count, islice, repeat
from math import ceil
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from yolov4.boxes import xyxy_to_cxcywh
from yolov4.cfg import names_of_classes
from yolov4.data import as_seen, keep_freed_memory, load_image
from yolov4.decoding import Detections, detections_from_logits, fitted_size, suppressed
from yolov4.export import OnnxNetwork, OtherNetwork
from yolov4.model import HALVES, Darknet
from yolov4.plots import draw_detections
from yolov4.weights import is_onnx, load_network, network_files

OVERLAP = 0.2  # of neighbouring tiles, of their length
TILES = 8  # at a time
WORKERS = min(8, os.cpu_count() or 1)  # threads that read and resize images
STARTING = Lock()  # one of these threads at a time


def read_image(source):
    """A path, an address, a PIL image, or an array uint8 (H, W, 3) BGR, (H, W) or (H, W, 1) grey or
    (H, W, 4) BGRA -> uint8 (H, W, 3) BGR.  Raises ValueError for all else."""
    if isinstance(source, str | Path):
        return load_image(source)
    if hasattr(source, "getexif"):
        from PIL import ImageOps  # who has such an image has PIL

        source = np.asarray(ImageOps.exif_transpose(source).convert("RGB"))[..., ::-1]
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.size:
        match source.shape:
            case _, _, 3:
                return source
            case (_, _) | (_, _, 1):
                return cv2.cvtColor(source, cv2.COLOR_GRAY2BGR)
            case _, _, 4:
                return cv2.cvtColor(source, cv2.COLOR_BGRA2BGR)
    raise ValueError(
        f"image: found {getattr(source, 'dtype', 'a')} "
        f"{getattr(source, 'shape', type(source).__name__)}, expected a path, an address, a PIL "
        "image or a numpy array: uint8 (H, W, 3) BGR, (H, W) grey or (H, W, 4) BGRA"
    )


def resize_image(image, size):
    """Bilinear on floats with aligned corners.  uint8 (H, W, 3) BGR, size (w, h) ->
    float32 (3, h, w) RGB in 0..1."""

    def resized(pixels, height):
        return nn.functional.interpolate(
            pixels, (height, width), mode="bilinear", align_corners=True
        )

    width, height = size
    pixels = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None].float()
    if pixels.shape[2:] != (height, width):
        # Darknet's oddity: one pixel wide is the last column, where aligned corners take the first
        pixels = pixels[..., -(height == 1) :, -(width == 1) :]
        source, pixels = pixels, resized(pixels, height)
        # another: where rounding puts the last row below the image's, its second part is missing
        rows, steps = len(image) - 1, height - 1
        last = np.float32(rows) / max(1, steps) * steps
        if (row := int(last)) < rows and steps:
            pixels[:, :, -1:] = resized(source[:, :, row : row + 1], 1) * float(1 - (last - row))
    return pixels[0].div_(255)


def letterbox_image(image, size):
    """As `resize_image`, but with the aspect kept: centred, the rest grey (0.5)."""
    fitted = fitted_size(image.shape[1::-1], size)
    x, y = np.subtract(size, fitted).tolist()
    borders = x // 2, x - x // 2, y // 2, y - y // 2  # left, right, top, bottom
    return nn.functional.pad(resize_image(image, fitted), borders, value=0.5)


def choose_device(name=None):
    """The device of that name, or number of a GPU; None: cuda, else mps, else cpu.  Raises
    ValueError if missing."""
    gpus = torch.cuda.device_count()
    known = ["cuda"] * bool(gpus) + [f"cuda:{index}" for index in range(gpus)]
    known += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    name = known[0] if name is None else f"cuda:{name}" if str(name).isdigit() else str(name)
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
        options = {"triton.cudagraphs" if device.type == "cuda" else "freezing": True}
        faster = torch.compile(model.requires_grad_(False), options=options)
        images = torch.zeros(1, *model.plan[0].input_shape, dtype=dtype, device=device)
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


class Found(Detections):
    """What a Detector found: Detections that can be drawn."""

    def plot(self, image) -> np.ndarray:
        """A copy of the image, as a Detector takes it, with boxes: uint8 (H, W, 3) BGR."""
        return draw_detections(read_image(image), self, self.names)


class Prediction(NamedTuple):
    """One image of `Detector.stream`."""

    source: Any  # as it was given
    image: np.ndarray  # uint8 (H, W, 3) BGR
    detections: Found
    milliseconds: float  # of network and decoding, shared evenly within a batch


class Detector:
    """A network ready to detect.  Threads may share it.

    weights: .weights with its cfg, a .pt checkpoint, an .onnx (see `export.OnnxNetwork`) or a
    network in memory, which it takes over.  One of cfg and weights is enough, in the first
    place too: a missing cfg is found beside the weights as `network_files` does, X.weights beside
    X.cfg; without both, it is the newest run's network.
    names: a list, a .names file, or None for those in the weights or beside them.
    device: see `choose_device`.  letter_box: None for the cfg's.  compiled: see `for_inference`.
    half: "bf16" or "fp16".  tiles: (columns, rows) of overlapping parts that are looked at besides
    the whole image, for small objects; "auto" for parts of about the network's size.
    Raises ValueError for what does not fit.
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
        tiles: tuple[int, int] | str | None = None,
    ):
        if half not in (None, *HALVES):
            raise ValueError(f"half: found {half}, expected one of {', '.join(HALVES)}")
        if weights is None or str(weights).endswith(".cfg"):  # the only one, or swapped
            cfg, weights = weights, cfg
        if isinstance(weights, Darknet | OtherNetwork):
            model = weights
        else:
            if cfg is None and weights and Path(weights).suffix in ("", ".cfg"):
                cfg, weights = weights, Path(weights).with_suffix(".weights")
            weights, cfg, beside, _ = network_files(weights, cfg)
            if is_onnx(weights):
                if cfg or compiled or half == "fp16" or str(device) not in ("None", "cpu"):
                    raise ValueError(
                        f"{weights}: expected no cfg, compiler, fp16 or device but the CPU"
                    )
                model, device = OnnxNetwork(weights, half), "cpu"
                found = model.names
            else:
                model, found = load_network(weights, cfg)
            names = names or found or beside
        self.net, self.heads, self.device = model.net, model.heads, choose_device(device)
        self.letter_box = self.net.letter_box if letter_box is None else letter_box
        self.names = names_of_classes(names, self.heads[-1].classes, weights or "names")
        self.network, self.tiles, self.spare = model, tiles, None
        if isinstance(model, Darknet):
            dtype = HALVES.get(half, torch.float32)
            if half == "fp16":
                self.spare = for_inference(copy.deepcopy(model), self.device)
            network = for_inference(model, self.device, compiled, dtype)
            self.network = lambda images: network(images.to(dtype))

    @classmethod
    def from_model(cls, model: Darknet, names=None, **options) -> "Detector":
        """From a copy of a model in memory, on its device unless the options name another."""
        options.setdefault("device", next(model.parameters()).device)
        return cls(None, copy.deepcopy(model), names, **options)

    def __repr__(self) -> str:
        return (
            f"Detector({self.net.width}x{self.net.height}, {len(self.names)} classes, "
            f"{getattr(self.network, 'engine', self.device)})"
        )

    def __call__(
        self, images, thresh: float = 0.25, nms_thresh: float = 0.45, batch: int | None = None
    ) -> list[Found]:
        """images: one as `read_image` takes it, or a list or an iterator of these.  Returns one
        Detections per image, on the CPU.  Raises ValueError for what is no image."""
        sources = images if isinstance(images, list | tuple | Iterator) else [images]
        return [each.detections for each in self.stream(sources, thresh, nms_thresh, batch)]

    def stream(
        self,
        sources: Iterable,
        thresh: float = 0.25,
        nms_thresh: float = 0.45,
        batch: int | None = None,
        on_error: Callable[[Exception], None] | None = None,
        live: bool = False,
    ) -> Iterator[Prediction]:
        """Predictions one by one, in order; images are read and resized in threads.

        batch: None is 8 on a GPU and for an .onnx, else 1.  on_error(error): called for an image
        that cannot be read or predicted, which is then left out; None: the error is raised.  live:
        takes the next image only when the last is done, in batches of 1.
        """
        if not (0 <= thresh <= 1 and 0 <= nms_thresh <= 1):
            raise ValueError(f"thresh {thresh}, nms_thresh {nms_thresh}: expected both in 0..1")
        gpu = self.device.type == "cuda" and not live
        several = gpu or isinstance(self.network, OnnxNetwork)
        batch = 1 if live else batch or (8 if several else 1)
        # the network takes all cores of a CPU: reading meanwhile costs it more than waiting for it
        ahead = 2 * batch + WORKERS if gpu else 0
        images = self._read_ahead(sources, 1 if live else max(batch, WORKERS), ahead, on_error)
        while group := list(islice(images, batch)):
            yield from self._predict_each(group, on_error, thresh, nms_thresh)

    def read(self, source):
        """A source, its image (H, W, 3), the corners of its tiles, those for the network
        (k, 3, h, w)."""
        image, size = read_image(source), self.heads[0].size
        fit = letterbox_image if self.letter_box else resize_image
        corners = tile_corners(image.shape[1::-1], size, self.tiles)
        pixels = as_seen(image, self.net.channels)
        parts = [fit(pixels[top:bottom, left:right], size) for left, top, right, bottom in corners]
        return source, image, corners, torch.stack(parts)[:, : self.net.channels]

    def _read_ahead(self, sources, at_once, ahead, on_error):
        """Starts on `at_once` more images whenever no more than `ahead` are waiting."""
        with ThreadPoolExecutor(WORKERS, "", _take_one_core) as pool:
            started = ((source, pool.submit(self.read, source)) for source in sources)
            waiting = deque(islice(started, at_once))
            while waiting:
                source, future = waiting.popleft()
                try:
                    yield future.result()
                except Exception as error:
                    if on_error is None:
                        raise
                    on_error(about(source, error))
                if len(waiting) <= ahead:
                    waiting.extend(islice(started, at_once))

    def _predict_each(self, group, on_error, *thresholds):
        """Of a batch that fails, one by one."""
        try:
            return self._predict(group, *thresholds)
        except Exception as error:
            if on_error is None:
                raise
            if len(group) == 1:
                on_error(about(group[0][0], error))
                return ()
        return chain.from_iterable(
            self._predict_each([each], on_error, *thresholds) for each in group
        )

    @torch.no_grad()
    def _predict(self, group, *thresholds):
        sources, images, corners, pixels = zip(*group, strict=True)
        start = perf_counter()
        pixels = torch.cat(pixels).to(self.device, memory_format=torch.channels_last)
        sizes, found = ((x2 - x1, y2 - y1) for x1, y1, x2, y2 in chain(*corners)), []
        for part in pixels.split(TILES if self.tiles else len(pixels)):
            options = list(islice(sizes, len(part))), *thresholds, self.letter_box
            if isinstance(self.network, OtherNetwork):
                found += self.network.detections(part, *options)
            else:
                found += detections_from_logits(self._logits(part), self.heads, *options)
        found = map(Detections.cpu, found)  # waits for the GPU
        found = [self._joined(own, found, thresholds[1]) for own in corners]
        milliseconds = (perf_counter() - start) * 1000 / len(group)
        return map(Prediction, sources, images, found, repeat(milliseconds))

    def _logits(self, images):
        """Of images (k, 3, h, w); in float32 from the first that overflow float16."""
        spare, logits = self.spare, self.network(images)
        if spare and not all(each.isfinite().all() for each in logits):
            warnings.warn("half fp16: values beyond its range, going on in float32")
            self.network, self.spare, logits = spare, None, spare(images)
        return logits

    def _joined(self, corners, found, nms_thresh):
        """The detections of an image from those of its tiles, the next in the iterator `found`."""
        parts = [
            (each.boxes + torch.tensor(own[:2] * 2), each.scores, each.labels, each.prediction + n)
            for own, each, n in zip(corners, found, count(0, 1 << 32), strict=False)
        ]
        found = Found(*map(torch.cat, zip(*parts, strict=True)), self.names)
        if len(parts) == 1:
            return found
        return suppressed(found, xyxy_to_cxcywh(found.boxes), nms_thresh, self.heads[-1])


def about(source, error):
    """The error, in one line and with the name of the source."""
    if str(source) in str(error):
        return error
    reason = str(error) if isinstance(error, ValueError | OSError) else repr(error)
    return ValueError(f"{source}: {' '.join(reason.split())[:200]}")


def tile_corners(size, network_size, tiles):
    """Corners x1, y1, x2, y2 in pixels of the whole image and of its tiles; see `Detector`."""
    if tiles == "auto":
        tiles = map(ceil, np.divide(size, network_size))
    across, down = (
        [(int(start), int(start) + length) for start in np.linspace(0, side - length, number)]
        for side, number in zip(size, tiles or (1, 1), strict=True)
        for length in [ceil(side / (number - OVERLAP * (number - 1)))]
    )
    found = [(left, top, right, bottom) for top, bottom in down for left, right in across]
    return list(dict.fromkeys([(0, 0, *size), *found]))


def _take_one_core():
    """For threads that resize: the teams that they would wake keep the cores for a while, and
    val.py took 28 % longer.  torch.set_num_threads sets this thread's number, and that of threads
    to come: another thread sets that back."""
    with STARTING, ThreadPoolExecutor(1) as other:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        other.submit(torch.set_num_threads, threads)
