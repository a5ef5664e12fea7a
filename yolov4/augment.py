"""Augmentation: crop with jitter, flip, HSV, mosaic, mixup, blur, noise; drawing apart from applying.
Source: Darknet's src/data.c (load_data_detection, OpenCV), src/image_opencv.cpp (image_data_augmentation).

Images: uint8 (H, W, 3) BGR.  Labels: float32 (n, 5), class, cx, cy, w, h, relative.  Sizes: (width, height).
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

Array, Size, Border = np.ndarray, tuple[int, int], tuple[int, int, int, int]
Sample = tuple[Array, Array]  # image, labels


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


def crop_flip_hsv(image: Array, labels: Array, params: CropParams, size: Size) -> Sample:
    """Cuts the rectangle of `params` out of the image, resizes it to `size`, flips it, changes its colours.

    params: CropParams or its eight values.  Returns the image and the labels of at least a pixel of `size`.
    """
    params = CropParams(*params)
    image_size = image.shape[1], image.shape[0]
    rectangle = _rectangle(params, image_size)
    image = cv2.resize(_cut_out(image, *rectangle), tuple(size), interpolation=cv2.INTER_LINEAR)
    if params.flip:
        image = cv2.flip(image, 1)
    if (params.hue, params.saturation, params.exposure) != (0, 1, 1):
        image = _change_colours(image, params)
    return image, _move_labels(labels, rectangle, image_size, params.flip, size)


def mosaic(parts: Sequence[tuple[Array, Array, CropParams]], cut: Size, size: Size, bound: bool) -> Sample:
    """Four images in one picture of `size`, cut at `cut` = (x, y).  Returns image and labels.

    parts: four (image, labels, params) in the order top left, top right, bottom left, bottom right.
    bound: cut boxes to their tile (Darknet's `mosaic_bound`), not only to the picture.
    """
    tiles = [crop_flip_hsv(*part, size) for part in parts]
    borders = [empty_border(params, image.shape[1::-1], size) for image, _, params in parts]
    return join_tiles(tiles, borders, cut, bound)


def join_tiles(tiles: Sequence[Sample], borders: Sequence[Border], cut: Size, bound: bool) -> Sample:
    """The mosaic of four augmented (image, labels) of one size, with the `empty_border` of each."""
    height, width = tiles[0][0].shape[:2]
    picture, joined = np.empty_like(tiles[0][0]), []
    for corner, ((image, labels), border) in enumerate(zip(tiles, borders, strict=True)):
        left, right, x = _tile_span(corner % 2, cut[0], width, border[:2])
        top, bottom, y = _tile_span(corner // 2, cut[1], height, border[2:])
        picture[top:bottom, left:right] = image[y : y + bottom - top, x : x + right - left]
        cx, w, keep_x = _fit_axis(labels[:, 1], labels[:, 3], (left, right), left - x, width, bound)
        cy, h, keep_y = _fit_axis(labels[:, 2], labels[:, 4], (top, bottom), top - y, height, bound)
        joined.append(np.stack((labels[:, 0], cx, cy, w, h), 1)[keep_x & keep_y])
    return picture, np.concatenate(joined)


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


def gaussian_noise(image: Array, sigma: int, rng: Generator) -> Array:
    """Adds normal noise of `sigma` grey levels (0..127).  Darknet draws it unsigned: it only brightens."""
    if sigma <= 0:
        return image
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(min(sigma, 127))
    return cv2.add(image, np.clip(np.rint(noise), 0, 255).astype(np.uint8))


def empty_border(params: CropParams, image_size: Size, size: Size) -> Border:
    """Left, right, top, bottom pixels of the augmented image that lie beyond the source."""
    params = CropParams(*params)
    left, top, _, _ = _rectangle(params, image_size)
    sides = (int(params.pright), left) if params.flip else (left, int(params.pright))
    shown = [max(0, -p * size[0] // image_size[0]) for p in sides]
    return *shown, *(max(0, -p * size[1] // image_size[1]) for p in (top, int(params.pbot)))


def push_to_corner(params: CropParams, corner: int) -> CropParams:
    """Sums the offsets of an axis on the side away from the corner (0 top left, 1 top right, 2, 3 below)."""
    params = CropParams(*params)
    horizontal, vertical = params.pleft + params.pright, params.ptop + params.pbot
    at_left = (corner % 2 == 0) != bool(params.flip)  # the flip comes after the crop
    pleft, pright = (0, horizontal) if at_left else (horizontal, 0)
    ptop, pbot = (0, vertical) if corner < 2 else (vertical, 0)
    return params._replace(pleft=pleft, pright=pright, ptop=ptop, pbot=pbot)


def draw_crop(rng: Generator, net, head, image_size: Size, size: Size) -> CropParams:
    """CropParams for a source of `image_size`.  net: flip, hue, ..., letter_box; head: jitter, resize."""
    draws = rng.random(2, dtype=np.float32)  # `resize` draws once for left and top, once for right and bottom
    pleft, pright = (_draw_offset(rng, image_size[0], head, draw) for draw in draws)
    ptop, pbot = (_draw_offset(rng, image_size[1], head, draw) for draw in draws)
    if net.letter_box:
        ratio = np.float32(size[0]) / np.float32(size[1])
        border_x = max(0, (image_size[1] * ratio - image_size[0]) / 2)
        border_y = max(0, (image_size[0] / ratio - image_size[1]) / 2)
        pleft, pright = int(pleft - border_x), int(pright - border_x)
        ptop, pbot = int(ptop - border_y), int(pbot - border_y)
    flip = bool(net.flip) and rng.random() < 0.5
    colours = rng.uniform(-net.hue, net.hue), draw_factor(rng, net.saturation), draw_factor(rng, net.exposure)
    return CropParams(pleft, pright, ptop, pbot, flip, *colours)


def draw_factor(rng: Generator, limit: float) -> float:
    """Uniform in 1..limit, inverted with probability 1/2 (Darknet's rand_scale)."""
    factor = 1 + rng.random() * (limit - 1)
    return factor if rng.random() < 0.5 else 1 / factor


def draw_cut(rng: Generator, size: Size) -> Size:
    """Where a mosaic is cut: (x, y), uniform in 20..80 % of width and height, whole pixels."""
    fifth, rest = np.float32(0.2), 1 - np.float32(0.2)
    return tuple(int(rng.integers(int(side * fifth), int(side * rest), endpoint=True)) for side in size)


def draw_effects(rng: Generator, net) -> tuple[int, int]:
    """Amounts for `blur` (none, background, all: 1/3 each) and `gaussian_noise` (on: 1/2)."""
    amount = (0, 1, net.blur)[rng.integers(3)] if net.blur else 0
    return amount, net.gaussian_noise if net.gaussian_noise and rng.random() < 0.5 else 0


def _rectangle(params, image_size):
    left, top = int(params.pleft), int(params.ptop)
    width, height = image_size[0] - left - int(params.pright), image_size[1] - top - int(params.pbot)
    if min(width, height, image_size[0] - left, image_size[1] - top) <= 0:
        return 0, 0, *image_size  # Darknet resets an invalid crop, but pright and pbot stay for the mosaic
    return left, top, width, height


def _cut_out(image, left, top, width, height):
    rows, columns = image.shape[:2]
    x0, y0 = max(left, 0), max(top, 0)
    inside = image[y0 : max(y0, min(top + height, rows)), x0 : max(x0, min(left + width, columns))]
    if inside.shape[:2] == (height, width):
        return inside
    mean = cv2.mean(image)
    if inside.size == 0:
        return np.full((height, width, 3), np.rint(mean[:3]), np.uint8)
    above, before = y0 - top, x0 - left
    below, after = height - above - inside.shape[0], width - before - inside.shape[1]
    return cv2.copyMakeBorder(inside, above, below, before, after, cv2.BORDER_CONSTANT, value=mean)


def _change_colours(image, params):
    levels = np.arange(256, dtype=np.float32)
    hue = levels + np.float32(179 * params.hue)  # clipped at 0 and 255, not wrapped, as 8-bit OpenCV does
    table = (hue, levels * np.float32(params.saturation), levels * np.float32(params.exposure))
    table = np.clip(np.rint(np.stack(table, 1)), 0, 255).astype(np.uint8)  # (256, 3)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table[:, None])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def _move_labels(labels, rectangle, image_size, flip, size):
    """Labels after crop and flip, as correct_boxes and fill_truth_detection do, in float32."""
    labels = np.asarray(labels, np.float32).reshape(-1, 5)
    centre, half = labels[:, 1:3], labels[:, 3:] / 2
    keep = (centre != 0).any(1) & (centre + half >= 0).all(1) & (centre - half <= 1).all(1)
    scale = np.float32(rectangle[2:]) / np.float32(image_size)
    offset = np.float32(rectangle[:2]) / np.float32(image_size) / scale
    low, high = (centre - half) / scale - offset, (centre + half) / scale - offset  # (n, 2)
    if flip:
        low[:, 0], high[:, 0] = 1 - high[:, 0], 1 - low[:, 0]
    low, high = low.clip(0, 1), high.clip(0, 1)
    centre, sides = (low + high) / 2, high - low
    keep &= (sides >= 1 / np.float32(size)).all(1) & (centre > 0).all(1)
    return np.concatenate((labels[:, :1], centre, sides), 1)[keep]


def _tile_span(second, cut, side, border):
    """One axis of a tile: start and stop in the mosaic, start in its image (past the empty border)."""
    if second:
        return cut, side, min(cut, border[0])
    return 0, cut, side - cut - min(side - cut, border[1])


def _fit_axis(centre, length, span, shift, side, bound):
    """One axis of the boxes of a tile, moved by `shift` pixels: centre, length (relative) which to keep."""
    centre = centre + np.float32(shift / side)
    low, high = ((centre + sign * length / 2) * side for sign in (-1, 1))
    low, high = low.astype(np.int32), high.astype(np.int32)  # Darknet truncates
    if bound:
        low, high = np.maximum(low, span[0]), np.minimum(high, span[1])
        centre, length = np.float32((low + high) / 2 / side), np.float32((high - low) / side)
    else:
        before, after = np.float32(np.minimum(low, 0) / side), np.float32(np.maximum(high - side, 0) / side)
        centre, length = centre - (before + after) / 2, length + before - after
    return centre, length, (centre > 0) & (centre < 1) & (length > np.float32(1 / side)) & (length < 1)


def _draw_offset(rng, side, head, resize_draw):
    """Pixels cut off one side: uniform in +-jitter, then the share of `resize`; sums truncated as in C."""
    side, jitter, resize = np.float32(side), np.float32(head.jitter), np.float32(head.resize)
    reach = int(side * jitter)
    offset = int(rng.random(dtype=np.float32) * (2 * reach) - reach)
    lowest = int(side * (1 - 1 / min(resize, 1 / resize)) / 2)
    highest = int(side * (1 - 1 / max(resize, 1 / resize)) / 2) if resize >= 1 else 0  # < 1 only shrinks
    return int(offset + resize_draw * (highest - lowest) + lowest)
