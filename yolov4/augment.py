"""Augmentation as Darknet draws and applies it: crop with jitter, flip, HSV, mosaic, mixup, blur.
Source: Darknet's src/data.c (load_data_detection), src/image_opencv.cpp (image_data_augmentation).

Images: uint8 (H, W, 3) BGR.  Labels: float32 (n, 5), class, cx, cy, w, h, relative.  A part is a
source with what will be done to it: (image, labels, params), and optionally the amount of blur and
the noise."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

Size = tuple[int, int]  # width, height
Labelled = tuple[np.ndarray, np.ndarray]  # image, labels

STEP = 64  # OpenCV converts so many pixels of a row from HSV together and rounds the rest otherwise


class CropParams(NamedTuple):
    """Pixels of the source cut off each side (negative adds a border), flip, hue shift, factors."""

    pleft: int = 0
    pright: int = 0
    ptop: int = 0
    pbot: int = 0
    flip: bool = False
    hue: float = 0.0
    saturation: float = 1.0
    exposure: float = 1.0


def draw_crop(rng, net, head, image_size, size):
    """Parameters for a source of image_size.  net: flip, hue, ..., letter_box; head: jitter, ..."""
    draws = rng.random(2, dtype=np.float32)  # `resize` draws for left and top, for right and bottom
    crop = [_draw_offset(rng, side, head, draw) for side in image_size for draw in draws]
    if net.letter_box:
        (width, height), ratio = image_size, np.divide(*size, dtype=np.float32)
        borders = np.repeat((height * ratio - width, width / ratio - height), 2).clip(0) / 2
        crop = (np.float32(crop) - borders).astype(int).tolist()
    flip = bool(net.flip) and rng.random() < 0.5
    hue = rng.uniform(-net.hue, net.hue)
    factors = [draw_factor(rng, limit) for limit in (net.saturation, net.exposure)]
    return CropParams(*crop, flip, hue, *factors)


def _draw_offset(rng, side, head, resize_draw):
    """Pixels cut off one side: uniform in +-jitter, then the share of `resize`, truncated."""
    side, resize = np.float32(side), np.float32(head.resize)
    reach = int(side * np.float32(head.jitter))
    offset = int(rng.random(dtype=np.float32) * (2 * reach) - reach)
    lowest = int(side * (1 - 1 / min(resize, 1 / resize)) / 2)
    highest = max(0, int(side * (1 - 1 / resize) / 2))
    return int(offset + resize_draw * (highest - lowest) + lowest)


def draw_factor(rng, limit):
    """Uniform in 1..limit, inverted with probability 1/2 (Darknet's rand_scale)."""
    factor = 1 + rng.random() * (limit - 1)
    return factor if rng.random() < 0.5 else 1 / factor


def draw_cut(rng, size):
    """Where a mosaic is cut: (x, y), uniform in 20..80 % of width and height, whole pixels."""
    low = np.float32(0.2)
    ends = ((int(side * low), int(side * (1 - low))) for side in size)
    return tuple(int(rng.integers(*each, endpoint=True)) for each in ends)


def draw_effects(rng, net):
    """Amounts for `blur` (none, background, all: 1/3 each) and `gaussian_noise` (on: 1/2)."""
    amount = (0, 1, net.blur)[rng.integers(3)] if net.blur else 0
    return amount, net.gaussian_noise if net.gaussian_noise and rng.random() < 0.5 else 0


def draw_noise(rng, size, sigma):
    """Normal noise of `sigma` grey levels to add, uint8 (H, W, 3); None for 0.
    Darknet draws it unsigned: it only brightens."""
    if sigma <= 0:
        return None
    noise = rng.standard_normal((*size[::-1], 3), dtype=np.float32) * np.float32(min(sigma, 127))
    return np.rint(noise).clip(0, 255).astype(np.uint8)


def push_to_corner(params, corner):
    """Sums the offsets of an axis on the side away from a corner (0 top left, 1 top right ...)."""
    pleft, pright, ptop, pbot, flip, *_ = params
    pair = [0, pleft + pright]
    if (corner % 2 == 0) == bool(flip):  # the flip comes after the crop
        pair.reverse()
    rows = (0, ptop + pbot) if corner < 2 else (ptop + pbot, 0)
    return CropParams(*pair, *rows, *params[4:])


def crop_flip_hsv(
    image: np.ndarray,
    labels: np.ndarray,
    params: tuple,
    size: Size,
    amount: int = 0,
    noise: np.ndarray | None = None,
) -> Labelled:
    """Cuts the rectangle of `params` out of the image, resizes it to `size`, flips it, changes its
    colours, blurs it and adds noise.  params: CropParams or its eight values; noise: uint8, of the
    result's shape.  Returns the image, and the labels that are a pixel or more."""
    params = CropParams(*params)
    labels = _move_labels(labels, params, image.shape[1::-1], size)
    return _pixels(image, labels, params, size, (0, 0, *size), amount, noise), labels


def mosaic(parts: Sequence[tuple], cut: Size, size: Size, bound: bool) -> Labelled:
    """Four images in one picture of `size`, cut at `cut` = (x, y).  Returns image and labels.

    parts: top left, top right, bottom left, bottom right.  bound: cut boxes to their tile
    (Darknet's `mosaic_bound`), not only to the picture."""
    picture, moved, tiles = np.empty((*size[::-1], 3), np.uint8), [], []
    for corner, (image, labels, params, *effects) in enumerate(parts):
        params, image_size = CropParams(*params), image.shape[1::-1]
        labels = _move_labels(labels, params, image_size, size)
        left, right, top, bottom = empty_border(params, image_size, size)
        x0, x1, x = _tile_span(corner % 2, cut[0], size[0], left, right)
        y0, y1, y = _tile_span(corner // 2, cut[1], size[1], top, bottom)
        if x0 < x1 and y0 < y1:
            window = x0 - x, y0 - y, x1 - x, y1 - y
            picture[y0:y1, x0:x1] = _pixels(image, labels, params, size, window, *effects)
        moved.append(labels)
        tiles.append(((x0, y0), (x1, y1), (x, y)))
    start, stop, shift = np.repeat(tiles, list(map(len, moved)), 0).swapaxes(0, 1)  # (n, 2) each
    labels, sides = np.concatenate(moved), np.array(size)
    centre, length = labels[:, 1:3] + np.float32(shift / sides), labels[:, 3:]
    edges = ((centre + sign * length / 2) * np.float32(size) for sign in (-1, 1))
    low, high = (edge.astype(np.int32) for edge in edges)  # Darknet truncates
    if bound:
        low, high = np.maximum(low, start), np.minimum(high, stop)
        centre, length = np.float32((low + high) / 2 / sides), np.float32((high - low) / sides)
    else:
        before = np.float32(np.minimum(low, 0) / sides)
        after = np.float32(np.maximum(high - sides, 0) / sides)
        centre, length = centre - (before + after) / 2, length + before - after
    keep = (centre > 0) & (centre < 1) & (length > np.float32(1 / sides)) & (length < 1)
    return picture, np.concatenate((labels[:, :1], centre, length), 1)[keep.all(1)]


def _tile_span(second, cut, side, before, after):
    """One axis of a tile: start and stop in the mosaic, and how far its image is moved there: to
    its own corner, but no further than its border allows."""
    if second:
        return cut, side, max(0, cut - before)
    return 0, cut, min(0, cut + after - side)


def mixup(a, b, share=0.5):
    """Blends two (image, labels) of one size, with a `share` of the first; keeps all labels."""
    return cv2.addWeighted(a[0], share, b[0], 1 - share, 0), np.concatenate((a[1], b[1]))


def blur(image, labels, amount):
    """Gaussian blur: amount 0 none, 1 the background only (objects stay sharp), else its size."""
    size = image.shape[1::-1]
    if amount > 1:  # at most an eighth of the smallest object; none in an image without objects
        smallest = (labels[:, 3:] * size).min() if len(labels) else 0
        amount = min(amount, int(smallest) // 8)
    if amount == 0:
        return image
    kernel = 17 if amount == 1 else amount // 2 * 2 + 1
    blurred = cv2.GaussianBlur(image, (kernel, kernel), 0)
    if amount == 1:
        corners = np.concatenate((labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 3:]), 1)
        for left, top, w, h in (corners * (size * 2)).astype(int).clip(0):
            inside = np.s_[top : top + h, left : left + w]
            blurred[inside] = image[inside]
    return blurred


def empty_border(params, image_size, size):
    """Left, right, top, bottom pixels of the augmented image that lie beyond the source."""
    left, top, _, _ = _rectangle(params, image_size)
    right, bottom = int(params.pright), int(params.pbot)
    if params.flip:
        left, right = right, left
    offsets = (0, left), (0, right), (1, top), (1, bottom)
    return tuple(max(0, -offset * size[axis] // image_size[axis]) for axis, offset in offsets)


def _rectangle(params, image_size):
    """Left, top, width, height."""
    left, right, top, bottom = map(int, params[:4])
    across, down = image_size[0] - left, image_size[1] - top
    if min(across - right, down - bottom, across, down) <= 0:
        return 0, 0, *image_size  # Darknet resets it, but pright and pbot stay for the mosaic
    return left, top, across - right, down - bottom


def _pixels(image, labels, params, size, window, amount=0, noise=None):
    """The window (left, top, right, bottom) of the augmented image of `size`.  Computing the window
    alone makes 22 to 38 % more samples/s.  labels: of the whole image, for the blur."""
    left, top, right, bottom = window
    inside = np.s_[top:bottom, left:right]
    # the blur looks beyond the window
    pixels = _changed(image, params, size, (0, 0, *size) if amount else window)
    if amount:
        pixels = blur(pixels, labels, amount)[inside]
    return pixels if noise is None else cv2.add(pixels, noise[inside])


def _changed(image, params, size, window):
    """Crop, resize, flip and colours of a window, in the columns of whole STEPs around it."""
    left, top, right, bottom = window
    first, last = left // STEP * STEP, min(-(-right // STEP) * STEP, size[0])
    start, stop = (size[0] - last, size[0] - first) if params.flip else (first, last)
    x, y, *sides = _rectangle(params, image.shape[1::-1])
    scales = np.divide(size, sides)
    needed = ((np.array((stop, bottom)) - 0.5) / scales + 0.5).astype(int) + 1
    cut = _cut_out(image, x, y, *np.minimum(needed, sides))
    pixels = cv2.resize(cut, None, fx=scales[0], fy=scales[1])[top:bottom, start:stop]
    if params.flip:
        pixels = cv2.flip(pixels, 1)
    if params[5:] != (0, 1, 1):
        hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV))
        hue = cv2.add(hue, float(179 * params.hue))  # clipped, not wrapped, as 8-bit OpenCV
        saturation = cv2.convertScaleAbs(saturation, alpha=params.saturation)
        value = cv2.convertScaleAbs(value, alpha=params.exposure)
        pixels = cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2BGR)
    return pixels[:, left - first : right - first]


def _cut_out(image, left, top, width, height):
    """A rectangle, filled with the mean colour where it lies beyond the image."""
    rows, columns = image.shape[:2]
    right, bottom, x, y = left + width, top + height, max(left, 0), max(top, 0)
    inside = image[y : max(y, bottom), x : max(x, right)]
    if inside.shape[:2] == (height, width):
        return inside
    sums = cv2.reduce(image, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)  # as cv2.mean, but faster
    mean = sums.sum((0, 1)) / (rows * columns)
    if inside.size == 0:
        return np.full((height, width, 3), np.rint(mean), np.uint8)
    borders = y - top, max(bottom - rows, 0), x - left, max(right - columns, 0)
    return cv2.copyMakeBorder(inside, *borders, cv2.BORDER_CONSTANT, value=mean)


def _move_labels(labels, params, image_size, size):
    """Labels after crop and flip, as correct_boxes and fill_truth_detection do, in float32."""
    labels = np.asarray(labels, np.float32).reshape(-1, 5)
    rectangle = np.float32(_rectangle(params, image_size)).reshape(2, 2)
    corner, sides = rectangle / np.float32(image_size)
    centre, half = labels[:, 1:3], labels[:, 3:] / 2
    edges = np.stack((centre - half, centre + half))  # (2, n, 2)
    keep = centre.any(1) & (edges[1] >= 0).all(1) & (edges[0] <= 1).all(1)
    edges = edges / sides - corner / sides
    if params.flip:
        edges[..., 0] = 1 - edges[::-1, :, 0]
    low, high = edges.clip(0, 1)
    centre, lengths = (low + high) / 2, high - low
    keep &= (lengths >= 1 / np.float32(size)).all(1) & (centre > 0).all(1)
    return np.concatenate((labels[:, :1], centre, lengths), 1)[keep]
