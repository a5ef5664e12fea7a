"""Augmentation against Darknet (golden/augment.npz), by hand, and tiles against whole pictures.
Source of the golden file: Darknet's src/data.c, load_data_detection, built with OpenCV 4.6."""

from collections import namedtuple
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from yolov4 import augment
from yolov4.augment import CropParams

GOLDEN = np.load(Path(__file__).parent / "golden" / "augment.npz")
NONE = np.zeros((0, 5), np.float32)
Part = namedtuple("Part", "image labels params blur noise")


def assert_same_picture(image_bgr, golden_rgb):
    difference = np.abs(image_bgr[..., ::-1].transpose(2, 0, 1).astype(int) - golden_rgb)
    assert difference.max() <= 2
    assert (difference > 0).mean() <= 0.002


def assert_same_set(labels, golden, tolerance):
    labels, golden = list(labels), list(golden)
    assert len(labels) == len(golden)
    for row in golden:
        distances = [np.abs(row - other).max() for other in labels]
        assert min(distances) <= tolerance
        labels.pop(int(np.argmin(distances)))


def labels_of(*rows):
    return np.array(rows, np.float32).reshape(-1, 5)


def picture(width=64, height=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("case", range(6))
def test_single_as_darknet(case):
    keys = "source", "labels", "params"
    source, labels, params = (GOLDEN[f"single{case}_{key}"] for key in keys)
    before = source.copy(), labels.copy()
    image, moved = augment.crop_flip_hsv(source, labels, params, (128, 96))
    assert_same_picture(image, GOLDEN[f"single{case}_image"])
    assert_same_set(moved, GOLDEN[f"single{case}_truths"], 1e-5)
    assert (source == before[0]).all() and (labels == before[1]).all()


@pytest.mark.parametrize("case", range(3))
def test_mosaic_as_darknet(case):
    keys = "source", "labels", "params"
    parts = [tuple(GOLDEN[f"mosaic{case}_{key}{tile}"] for key in keys) for tile in range(4)]
    cut, bound = GOLDEN[f"mosaic{case}_cut"].tolist(), bool(GOLDEN[f"mosaic{case}_bound"])
    image, labels = augment.mosaic(parts, cut, (128, 128), bound)
    assert_same_picture(image, GOLDEN[f"mosaic{case}_image"])
    assert_same_set(labels, GOLDEN[f"mosaic{case}_truths"], 1 / 128 + 1e-5)


def test_crop_moves_and_cuts_boxes():
    # 100 x 50 source, left half cut away: x doubles and shifts by one
    image = picture(100, 50)
    labels = labels_of([1, 0.75, 0.5, 0.1, 0.2], [2, 0.5, 0.5, 0.2, 0.2], [3, 0.2, 0.5, 0.2, 0.2])
    for flip, x in ((False, 0.1), (True, 0.9)):
        params = CropParams(pleft=50, flip=flip)
        _, moved = augment.crop_flip_hsv(image, labels, params, (50, 50))
        wanted = [[1, 0.5, 0.5, 0.2, 0.2], [2, x, 0.5, 0.2, 0.2]]
        np.testing.assert_allclose(moved, wanted, atol=1e-6)


def test_boxes_below_a_pixel_are_dropped_by_axis():
    thin, low = 0.9 / 64, 0.9 / 32
    sides = (1 / 64, 1 / 32), (thin, 0.5), (0.5, low)
    labels = labels_of(*([index, 0.5, 0.5, *each] for index, each in enumerate(sides)))
    _, kept = augment.crop_flip_hsv(picture(), labels, CropParams(), (64, 32))
    assert kept[:, 0].tolist() == [0]


def test_labels_without_a_box_or_outside():
    params = CropParams(5, 6, 7, 8, True, 0.1, 1.2, 0.8)
    image, moved = augment.crop_flip_hsv(picture(), NONE, params, (32, 32))
    assert image.shape == (32, 32, 3) and moved.shape == (0, 5) and moved.dtype == np.float32
    wrong = labels_of([0, 0, 0, 0.5, 0.5], [1, 1.5, 0.5, 0.2, 0.2], [2, 0.5, -0.3, 0.2, 0.2])
    # nor where a border shows what lies outside
    for params in (CropParams(), CropParams(-64, -64, -48, -48)):
        assert len(augment.crop_flip_hsv(picture(), wrong, params, (32, 32))[1]) == 0


def test_invalid_crop_is_reset():
    image = picture(40, 30)
    for params in (CropParams(30, 20, 0, 0), CropParams(0, 0, 30, -10)):
        assert (augment.crop_flip_hsv(image, NONE, params, (40, 30))[0] == image).all()
    # the reset forgets left and top only: the mosaic still hides the border of pright
    assert augment.empty_border(CropParams(50, -20, 0, -15), (40, 30), (80, 60)) == (0, 40, 0, 30)


def test_mosaic_joins_at_the_cut_and_hides_the_border():
    greys = (10, 20, 30, 40)
    parts = [(np.full((20, 20, 3), grey, np.uint8), NONE, CropParams()) for grey in greys]
    image, labels = augment.mosaic(parts, (8, 14), (40, 20), False)
    assert labels.shape == (0, 5) and image.shape == (20, 40, 3)
    blocks = image[:14, :8], image[:14, 8:], image[14:, :8], image[14:, 8:]
    assert [np.unique(block[..., 0]).tolist() for block in blocks] == [[10], [20], [30], [40]]
    # a border of 10 pixels on the right of the top left image: its tile ends where the image does
    source = np.zeros((20, 20, 3), np.uint8) + 255 * (np.arange(20) == 19).astype(np.uint8)[:, None]
    parts[0] = (source, NONE, CropParams(pleft=10, pright=-10))
    assert (augment.mosaic(parts, (8, 14), (20, 20), False)[0][:14, 7] == 255).all()


def test_mosaic_boxes_are_bound_to_picture_or_tile():
    whole = labels_of([0, 0.5, 0.5, 0.5, 0.5])
    parts = [(picture(40, 40), whole, CropParams())] + [(picture(40, 40), NONE, CropParams())] * 3
    # the tile shows columns 10.., rows 20.. of the first: box 10..30, 10..30 is at 0..20, -10..10
    free = augment.mosaic(parts, (30, 20), (40, 40), False)[1]
    np.testing.assert_allclose(free, [[0, 0.25, 0.125, 0.5, 0.25]], atol=1e-6)
    bound = augment.mosaic(parts, (15, 20), (40, 40), True)[1]  # shown from column 25: box -15..5
    np.testing.assert_allclose(bound, [[0, 2.5 / 40, 5 / 40, 5 / 40, 10 / 40]], atol=1e-6)


def test_mosaic_drops_boxes_as_darknet():
    empty = [(picture(40, 40), NONE, CropParams())] * 3

    def kept(box, params=()):
        parts = [(picture(40, 40), labels_of([0, *box]), CropParams(*params)), *empty]
        return len(augment.mosaic(parts, (20, 20), (40, 40), False)[1])

    # left by -6.9..0.3, cut to -0.9..0.3: wider than a pixel, but its centre is outside
    assert kept([16.7 / 40, 0.75, 7.2 / 40, 0.25]) == 0
    assert kept([16.9 / 40, 0.75, 7.6 / 40, 0.25]) == 0
    assert kept([17.4 / 40, 0.75, 8.2 / 40, 0.25]) == 1
    assert kept([0.5, 0.5, 3, 3], (0, -40, 0, -40)) == 0  # as large as the picture


def test_blur_keeps_objects_sharp_and_spares_small_ones():
    image, labels = picture(96, 96), labels_of([0, 0.5, 0.5, 0.5, 0.5])
    background = augment.blur(image, labels, 1)
    assert (background[24:72, 24:72] == image[24:72, 24:72]).all()
    assert (background[:20] == cv2.GaussianBlur(image, (17, 17), 0)[:20]).all()
    for amount, kernel in ((5, 5), (31, 7)):  # 48 / 8 = 6
        blurred = cv2.GaussianBlur(image, (kernel, kernel), 0)
        assert (augment.blur(image, labels, amount) == blurred).all()
    assert (augment.blur(image, NONE, 5) == image).all()
    assert (augment.blur(image, labels, 0) == image).all()


def plainly(part, size):
    """The augmented picture step by step, each of them on the whole."""
    (rows, columns), reach, mean = part.image.shape[:2], 1000, cv2.mean(part.image)
    left, right, top, bottom = (int(value) for value in part.params[:4])
    padded = cv2.copyMakeBorder(part.image, *[reach] * 4, cv2.BORDER_CONSTANT, value=mean)
    cut = padded[reach + top : reach + rows - bottom, reach + left : reach + columns - right]
    image = cv2.resize(cut, size)
    image = cv2.flip(image, 1) if part.params.flip else image
    if part.params[5:] != (0, 1, 1):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.float32)
        hsv = hsv * np.float32((1, *part.params[6:])) + np.float32((179 * part.params.hue, 0, 0))
        image = cv2.cvtColor(np.clip(np.rint(hsv), 0, 255).astype(np.uint8), cv2.COLOR_HSV2BGR)
    labels = augment.crop_flip_hsv(part.image, part.labels, part.params, size)[1]
    image = augment.blur(image, labels, part.blur)
    return image if part.noise is None else cv2.add(image, part.noise)


def random_part(rng, size, sides):
    grain = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = cv2.resize(grain, sides, interpolation=cv2.INTER_CUBIC)
    image = cv2.add(image, rng.integers(0, 30, image.shape, dtype=np.uint8))
    crop = [int(rng.integers(-r, r)) for r in (int(0.45 * side) for side in sides) for _ in "ab"]
    colours = rng.uniform(-0.1, 0.1), *rng.uniform(0.6, 1.6, 2)
    plain = rng.random() < 0.2
    params = CropParams(*crop, bool(rng.random() < 0.5), *((0, 1, 1) if plain else colours))
    noise = rng.integers(0, 60, (*size[::-1], 3), dtype=np.uint8)
    rows = np.concatenate((rng.integers(0, 9, (3, 1)), rng.uniform(0.2, 0.8, (3, 4))), 1)
    blur = int(rng.choice([0, 0, 1, 7]))
    return Part(image, np.float32(rows), params, blur, noise if rng.random() < 0.3 else None)


def assert_same_tiles(parts, cut, size):
    """Places of the tiles as in darknet.md, each taken from its whole picture."""
    found, _ = augment.mosaic(parts, cut, size, False)
    for corner, part in enumerate(parts):
        left, right, top, bottom = augment.empty_border(part.params, part.image.shape[1::-1], size)
        (x0, x1), (y0, y1) = ((0, cut[axis]) if not second else (cut[axis], size[axis])
                              for axis, second in enumerate((corner % 2, corner // 2)))  # fmt: skip
        x = min(cut[0], left) if corner % 2 else size[0] - cut[0] - min(size[0] - cut[0], right)
        y = min(cut[1], top) if corner // 2 else size[1] - cut[1] - min(size[1] - cut[1], bottom)
        expected = plainly(part, size)[y : y + y1 - y0, x : x + x1 - x0]
        assert (found[y0:y1, x0:x1] == expected).all(), (corner, part.params, part.blur)


@pytest.mark.parametrize("size", [(416, 416), (160, 96), (100, 70)])
@pytest.mark.parametrize("seed", range(3))
def test_a_tile_is_computed_only_where_it_is_seen(size, seed):
    rng = np.random.default_rng(seed)
    for _ in range(4):
        sides = [int(side) for side in rng.integers(60, 500, 2)] if seed else [2 * s for s in size]
        parts = [random_part(rng, size, sides) for _ in range(4)]
        if seed == 0:  # a half of each side: OpenCV then takes means of four pixels
            parts = [p._replace(params=CropParams(0, 0, 0, 0, *p.params[4:])) for p in parts]
        cut = [int(rng.integers(side // 5, side * 4 // 5)) for side in size]
        for each in (cut, (0, cut[1]), size):  # in the last two some tiles have no size
            assert_same_tiles(parts, each, size)


NET = SimpleNamespace(flip=1, hue=0.1, saturation=1.5, exposure=1.5, letter_box=0)


def drawn(net=NET, size=(416, 416), image_size=(500, 375), count=3000, **head):
    head = SimpleNamespace(**{"jitter": 0.3, "resize": 1.0, **head})
    rng = np.random.default_rng(1)
    return np.array([augment.draw_crop(rng, net, head, image_size, size) for _ in range(count)])


def test_draws_of_jitter_flip_and_colours():
    params = drawn()
    for column, limit in ((0, 150), (1, 150), (2, 112), (3, 112)):  # 375 * 0.3 = 112.5, truncated
        assert -limit <= params[:, column].min() < -limit + 5
        assert limit - 5 < params[:, column].max() <= limit and abs(params[:, column].mean()) < 6
    assert 0.46 < params[:, 4].mean() < 0.54
    assert np.abs(params[:, 5]).max() <= 0.1 and np.abs(params[:, 5].mean()) < 0.01
    for column in (6, 7):
        assert params[:, column].min() >= 1 / 1.5 and params[:, column].max() <= 1.5
        assert 0.46 < (params[:, column] > 1).mean() < 0.54


@pytest.mark.parametrize(("resize", "low", "high"), [(1.5, -125, 83), (0.5, -250, 0), (1.0, 0, 0)])
def test_draws_of_resize(resize, low, high):
    params = drawn(jitter=0.0, resize=resize)
    assert low - 1 <= params[:, 0].min() <= low + 2 and high - 2 <= params[:, 0].max() <= high
    near, far = params[:, [0, 2]] / (500, 375), params[:, [1, 3]] / (500, 375)
    for one_draw in (near, far):  # for left and top, for right and bottom
        np.testing.assert_allclose(one_draw[:, 0], one_draw[:, 1], atol=0.006)
    assert high == low or abs(np.corrcoef(near[:, 0], far[:, 0])[0, 1]) < 0.1


def test_letter_box_widens_to_the_network():
    net = SimpleNamespace(**{**vars(NET), "letter_box": 1})
    assert (drawn(net, jitter=0.0, count=5)[:, :4] == (0, 0, -62, -62)).all()
    assert (drawn(net, size=(416, 208), jitter=0.0, count=5)[:, :4] == (-125, -125, 0, 0)).all()


def test_draws_of_cut_blur_and_noise():
    rng = np.random.default_rng(0)
    cuts = np.array([augment.draw_cut(rng, (160, 416)) for _ in range(4000)])
    assert cuts.min(0).tolist() == [32, 83] and cuts.max(0).tolist() == [128, 332]
    net = SimpleNamespace(blur=7, gaussian_noise=30)
    effects = [augment.draw_effects(rng, net) for _ in range(3000)]
    assert {blur for blur, _ in effects} == {0, 1, 7} and {noise for _, noise in effects} == {0, 30}
    assert 0.3 < np.mean([blur == 1 for blur, _ in effects]) < 0.37
    noise = augment.draw_noise(rng, (200, 100), 20)  # only brightens: the negative half is cut off
    assert noise.shape == (100, 200, 3) and 0.48 < (noise == 0).mean() < 0.54
    assert abs(noise[noise > 0].mean() - 20 * np.sqrt(2 / np.pi)) < 0.6


def test_push_to_corner():
    for corner, flip in product(range(4), (False, True)):
        across = (-3, 0) if corner % 2 != flip else (0, -3)
        down = (5, 0) if corner // 2 else (0, 5)
        pushed = augment.push_to_corner((7, -10, 2, 3, flip, 0.1, 1.2, 1.3), corner)
        assert pushed == (*across, *down, flip, 0.1, 1.2, 1.3)
