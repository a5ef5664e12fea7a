"""What is random in augmentation: crops, colours, cuts, effects; applied by `augment`.
Source: Darknet's src/data.c (load_data_detection, rand_scale)."""

import numpy as np
from numpy.random import Generator

from yolov4.augment import Array, CropParams, Size


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


def draw_noise(rng: Generator, size: Size, sigma: int) -> Array | None:
    """What is added to an image of `size`: normal noise of `sigma` grey levels (0..127), uint8 (H, W, 3); 0: none.
    Darknet draws it unsigned: it only brightens."""
    if sigma <= 0:
        return None
    noise = rng.standard_normal((size[1], size[0], 3), dtype=np.float32) * np.float32(min(sigma, 127))
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


def _draw_offset(rng, side, head, resize_draw):
    """Pixels cut off one side: uniform in +-jitter, then the share of `resize`; sums truncated as in C."""
    side, jitter, resize = np.float32(side), np.float32(head.jitter), np.float32(head.resize)
    reach = int(side * jitter)
    offset = int(rng.random(dtype=np.float32) * (2 * reach) - reach)
    lowest = int(side * (1 - 1 / min(resize, 1 / resize)) / 2)
    highest = int(side * (1 - 1 / max(resize, 1 / resize)) / 2) if resize >= 1 else 0  # < 1 only shrinks
    return int(offset + resize_draw * (highest - lowest) + lowest)
