"""Augmentation: crop with jitter, flip, HSV, mosaic, mixup, blur, noise, applied as drawn.
Source: Darknet's src/data.c (load_data_detection, OpenCV), src/image_opencv.cpp (image_data_augmentation).

Images: uint8 (H, W, 3) BGR.  Labels: float32 (n, 5), class, cx, cy, w, h, relative.  Sizes: (width, height).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

Array, Size, Border = np.ndarray, tuple[int, int], tuple[int, int, int, int]
Window = tuple[int, int, int, int]  # left, top, width, height
Sample = tuple[Array, Array]  # image, labels
STEP = 64  # OpenCV takes so many pixels of a row out of HSV together; it rounds what is left over another way


class CropParams(NamedTuple):
    """Pixels of the source cut off each side (negative adds a border), flip, hue shift, colour factors."""

    pleft: int = 0
    pright: int = 0
    ptop: int = 0
    pbot: int = 0
    flip: bool = False
    hue: float = 0.0
    saturation: float = 1.0
    exposure: float = 1.0


class Part(NamedTuple):
    """A source with all that will be done to it."""

    image: Array
    labels: Array
    params: CropParams
    blur: int = 0
    noise: Array | None = None  # uint8, of the augmented image's shape


def crop_flip_hsv(image: Array, labels: Array, params: CropParams, size: Size) -> Sample:
    """Cuts the rectangle of `params` out of the image, resizes it to `size`, flips it, changes its colours.

    params: CropParams or its eight values.  Returns the image and the labels of at least a pixel of `size`.
    """
    return augmented(Part(image, labels, params), size)


def augmented(part: Part, size: Size) -> Sample:
    """The image of `size` that a part becomes, and its labels."""
    part = part._replace(params=CropParams(*part.params))
    labels = _move_labels(part, size)
    return _pixels(part, labels, size, (0, 0, *size)), labels


def mosaic(parts: Sequence[Part], cut: Size, size: Size, bound: bool) -> Sample:
    """Four images in one picture of `size`, cut at `cut` = (x, y).  Returns image and labels.

    parts: four Part, or (image, labels, params), in the order top left, top right, bottom left, bottom right.
    bound: cut boxes to their tile (Darknet's `mosaic_bound`), not only to the picture.
    """
    picture, moved, spans = np.empty((size[1], size[0], 3), np.uint8), [], []
    for corner, (image, labels, params, *effects) in enumerate(parts):
        part = Part(image, labels, CropParams(*params), *effects)
        border = empty_border(part.params, image.shape[1::-1], size)
        left, right, x = _tile_span(corner % 2, cut[0], size[0], border[:2])
        top, bottom, y = _tile_span(corner // 2, cut[1], size[1], border[2:])
        moved.append(_move_labels(part, size))
        spans += [(left, right, left - x, top, bottom, top - y)] * len(moved[-1])
        if left < right and top < bottom:
            picture[top:bottom, left:right] = _pixels(part, moved[-1], size, (x, y, right - left, bottom - top))
    labels, spans = np.concatenate(moved), np.array(spans, np.int32).reshape(-1, 6)
    cx, w, keep_x = _fit_axis(labels[:, 1], labels[:, 3], *spans[:, :3].T, size[0], bound)
    cy, h, keep_y = _fit_axis(labels[:, 2], labels[:, 4], *spans[:, 3:].T, size[1], bound)
    return picture, np.stack((labels[:, 0], cx, cy, w, h), 1)[keep_x & keep_y]


def mixup(a: Sample, b: Sample, share: float = 0.5) -> Sample:
    """Blends two (image, labels) of one size, with a `share` of the first; keeps the labels of both."""
    return cv2.addWeighted(a[0], share, b[0], 1 - share, 0), np.concatenate((a[1], b[1]))


def blur(image: Array, labels: Array, amount: int) -> Array:
    """Gaussian blur: amount 0 none, 1 the background only (kernel 17, objects stay sharp), else its size."""
    height, width = image.shape[:2]
    if amount > 1:  # never wider than an eighth of the smallest object; none in a picture without objects
        smallest = (labels[:, 3:] * (width, height)).min() if len(labels) else 0
        amount = min(amount, int(smallest) // 8)
    if amount == 0:
        return image
    blurred = cv2.GaussianBlur(image, (17, 17) if amount == 1 else (amount // 2 * 2 + 1,) * 2, 0)
    if amount == 1:
        corners = np.concatenate((labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 3:]), 1)
        for left, top, w, h in (corners * (width, height, width, height)).astype(int):
            left, top = max(left, 0), max(top, 0)
            blurred[top : top + h, left : left + w] = image[top : top + h, left : left + w]
    return blurred


def empty_border(params: CropParams, image_size: Size, size: Size) -> Border:
    """Left, right, top, bottom pixels of the augmented image that lie beyond the source."""
    params = CropParams(*params)
    left, top, _, _ = _rectangle(params, image_size)
    sides = (int(params.pright), left) if params.flip else (left, int(params.pright))
    shown = [max(0, -p * size[0] // image_size[0]) for p in sides]
    return *shown, *(max(0, -p * size[1] // image_size[1]) for p in (top, int(params.pbot)))


def _rectangle(params, image_size):
    left, top = int(params.pleft), int(params.ptop)
    width, height = image_size[0] - left - int(params.pright), image_size[1] - top - int(params.pbot)
    if min(width, height, image_size[0] - left, image_size[1] - top) <= 0:
        return 0, 0, *image_size  # Darknet resets an invalid crop, but pright and pbot stay for the mosaic
    return left, top, width, height


def _pixels(part: Part, labels: Array, size: Size, window: Window) -> Array:
    """The `window` of the image of `size` that a part becomes; labels: those of that image, for the blur."""
    left, top, width, height = window
    if part.blur:  # looks beyond the window
        whole = blur(_changed(part.image, part.params, size, (0, 0, *size)), labels, part.blur)
        pixels = whole[top : top + height, left : left + width]
    else:
        pixels = _changed(part.image, part.params, size, window)
    return pixels if part.noise is None else cv2.add(pixels, part.noise[top : top + height, left : left + width])


def _changed(image, params, size, window):
    """Only what lies in the window is flipped and coloured, and the columns that make its steps those of the whole."""
    left, top, width, height = window
    first, last = left // STEP * STEP, min(math.ceil((left + width) / STEP) * STEP, size[0])
    start, stop = (size[0] - last, size[0] - first) if params.flip else (first, last)
    pixels = _resized(image, params, size, (stop, top + height))[top:, start:]
    if params.flip:
        pixels = cv2.flip(pixels, 1)
    if params[5:] != (0, 1, 1):
        pixels = _change_colours(pixels, params)
    return pixels[:, left - first : left - first + width]


def _resized(image, params, size, end):
    """The rectangle at `size`, computed up to `end`."""
    left, top, *sides = _rectangle(params, image.shape[1::-1])
    scales = [new / old for new, old in zip(size, sides, strict=True)]
    needed = (int((stop - 0.5) / scale + 0.5) + 1 for stop, scale in zip(end, scales, strict=True))
    cut = _cut_out(image, left, top, *map(min, needed, sides))
    return cv2.resize(cut, None, fx=scales[0], fy=scales[1], interpolation=cv2.INTER_LINEAR)[: end[1], : end[0]]


def _cut_out(image, left, top, width, height):
    rows, columns = image.shape[:2]
    x0, y0 = max(left, 0), max(top, 0)
    inside = image[y0 : max(y0, min(top + height, rows)), x0 : max(x0, min(left + width, columns))]
    if inside.shape[:2] == (height, width):
        return inside
    mean = cv2.reduce(image, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).sum((0, 1)) / (rows * columns)  # as cv2.mean, faster
    if inside.size == 0:
        return np.full((height, width, 3), np.rint(mean), np.uint8)
    above, before = y0 - top, x0 - left
    below, after = height - above - inside.shape[0], width - before - inside.shape[1]
    return cv2.copyMakeBorder(inside, above, below, before, after, cv2.BORDER_CONSTANT, value=mean)


def _change_colours(image, params):
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    hue = cv2.add(hue, float(179 * params.hue))  # clipped at 0 and 255, not wrapped, as 8-bit OpenCV does
    saturation = cv2.convertScaleAbs(saturation, alpha=params.saturation)
    value = cv2.convertScaleAbs(value, alpha=params.exposure)
    return cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2BGR)


def _move_labels(part, size):
    """Labels after crop and flip, as correct_boxes and fill_truth_detection do, in float32."""
    labels, image_size = np.asarray(part.labels, np.float32).reshape(-1, 5), part.image.shape[1::-1]
    rectangle, image_size = np.float32(_rectangle(part.params, image_size)), np.float32(image_size)
    centre, half = labels[:, 1:3], labels[:, 3:] / 2
    edges = np.stack((centre - half, centre + half))  # (2, n, 2)
    keep = centre.any(1) & (edges[1] >= 0).all(1) & (edges[0] <= 1).all(1)
    scale = rectangle[2:] / image_size
    edges = edges / scale - rectangle[:2] / image_size / scale
    if part.params.flip:
        edges[..., 0] = 1 - edges[::-1, :, 0]
    low, high = edges.clip(0, 1)
    centre, sides = (low + high) / 2, high - low
    keep &= (sides >= 1 / np.float32(size)).all(1) & (centre > 0).all(1)
    return np.concatenate((labels[:, :1], centre, sides), 1)[keep]


def _tile_span(second, cut, side, border):
    """One axis of a tile: start and stop in the mosaic, start in its image (past the empty border)."""
    if second:
        return cut, side, min(cut, border[0])
    return 0, cut, side - cut - min(side - cut, border[1])


def _fit_axis(centre, length, start, stop, shift, side, bound):
    """One axis of boxes, each moved by `shift` pixels to its tile from `start` to `stop`, all (n,).
    Returns centre and length, relative, and which to keep."""
    centre = centre + np.float32(shift / side)
    low, high = ((centre + sign * length / 2) * side for sign in (-1, 1))
    low, high = low.astype(np.int32), high.astype(np.int32)  # Darknet truncates
    if bound:
        low, high = np.maximum(low, start), np.minimum(high, stop)
        centre, length = np.float32((low + high) / 2 / side), np.float32((high - low) / side)
    else:
        before, after = np.float32(np.minimum(low, 0) / side), np.float32(np.maximum(high - side, 0) / side)
        centre, length = centre - (before + after) / 2, length + before - after
    return centre, length, (centre > 0) & (centre < 1) & (length > np.float32(1 / side)) & (length < 1)
