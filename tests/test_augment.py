"""Augmentation against Darknet's results (golden/augment.npz), cases worked by hand, tiles against whole pictures.
Source of the golden file: Darknet's src/data.c, load_data_detection, built with OpenCV 4.6."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolov4 import augment
from yolov4.augment import CropParams, Part

GOLDEN = np.load(Path(__file__).parent / "golden" / "augment.npz")
NONE = np.zeros((0, 5), np.float32)


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
    source, labels, params = (GOLDEN[f"single{case}_{part}"] for part in ("source", "labels", "params"))
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


def test_no_change_at_all():
    labels = labels_of([3, 0.5, 0.5, 0.25, 0.5])
    image, moved = augment.crop_flip_hsv(picture(), labels, CropParams(), (64, 48))
    assert (image == picture()).all() and np.array_equal(moved, labels)


def test_crop_moves_and_cuts_boxes():
    # 100 x 50 source, left half cut away: x doubles and shifts by one
    image = picture(100, 50)
    labels = labels_of([1, 0.75, 0.5, 0.1, 0.2], [2, 0.5, 0.5, 0.2, 0.2], [3, 0.2, 0.5, 0.2, 0.2])
    _, moved = augment.crop_flip_hsv(image, labels, CropParams(pleft=50), (50, 50))
    np.testing.assert_allclose(moved, [[1, 0.5, 0.5, 0.2, 0.2], [2, 0.1, 0.5, 0.2, 0.2]], atol=1e-6)
    _, flipped = augment.crop_flip_hsv(image, labels, CropParams(pleft=50, flip=True), (50, 50))
    np.testing.assert_allclose(flipped, [[1, 0.5, 0.5, 0.2, 0.2], [2, 0.9, 0.5, 0.2, 0.2]], atol=1e-6)


def test_boxes_below_a_pixel_are_dropped_by_axis():
    thin, low = 0.9 / 64, 0.9 / 32
    labels = labels_of([0, 0.5, 0.5, 1 / 64, 1 / 32], [1, 0.5, 0.5, thin, 0.5], [2, 0.5, 0.5, 0.5, low])
    _, kept = augment.crop_flip_hsv(picture(), labels, CropParams(), (64, 32))
    assert kept[:, 0].tolist() == [0]


def test_labels_without_a_box_or_outside():
    params = CropParams(5, 6, 7, 8, True, 0.1, 1.2, 0.8)
    image, moved = augment.crop_flip_hsv(picture(), NONE, params, (32, 32))
    assert image.shape == (32, 32, 3) and moved.shape == (0, 5) and moved.dtype == np.float32
    wrong = labels_of([0, 0, 0, 0.5, 0.5], [1, 1.5, 0.5, 0.2, 0.2], [2, 0.5, -0.3, 0.2, 0.2])
    for params in (CropParams(), CropParams(-64, -64, -48, -48)):  # nor where a border shows what lies outside
        assert len(augment.crop_flip_hsv(picture(), wrong, params, (32, 32))[1]) == 0


def test_border_is_the_mean_colour():
    image = np.full((40, 40, 3), (10, 100, 200), np.uint8)
    image[:20] = (30, 120, 220)
    padded, _ = augment.crop_flip_hsv(image, NONE, CropParams(pleft=-40), (80, 40))
    assert (padded[:, :40] == (20, 110, 210)).all() and (padded[:, 40:] == image).all()


def test_invalid_crop_is_reset():
    image = picture(40, 30)
    for params in (CropParams(30, 20, 0, 0), CropParams(0, 0, 30, -10)):
        assert (augment.crop_flip_hsv(image, NONE, params, (40, 30))[0] == image).all()
    # the reset forgets left and top only: the mosaic still hides the border of pright
    assert augment.empty_border(CropParams(50, -20, 0, -15), (40, 30), (80, 60)) == (0, 40, 0, 30)


def test_crop_outside_of_the_picture_is_all_mean():
    image = picture(40, 30)
    for params in (CropParams(-40, 40), CropParams(-40, 60), CropParams(0, 0, -30, 45)):
        outside, _ = augment.crop_flip_hsv(image, NONE, params, (40, 30))
        assert (outside == np.rint(image.mean((0, 1)))).all()


def test_mosaic_joins_at_the_cut_and_hides_the_border():
    colours = [(10, 0, 0), (20, 0, 0), (30, 0, 0), (40, 0, 0)]
    parts = [(np.full((20, 20, 3), colour, np.uint8), NONE, CropParams()) for colour in colours]
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
    # the tile shows columns 10.., rows 20.. of the first: its box 10..30, 10..30 lies at 0..20, -10..10
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
    assert kept([16.9 / 40, 0.75, 7.6 / 40, 0.25]) == 0 and kept([17.4 / 40, 0.75, 8.2 / 40, 0.25]) == 1
    assert kept([0.5, 0.5, 3, 3], (0, -40, 0, -40)) == 0  # as large as the picture


def test_mixup_is_half_and_half_and_keeps_all_labels():
    a = np.full((8, 8, 3), 100, np.uint8), labels_of([0, 0.5, 0.5, 1, 1])
    b = np.full((8, 8, 3), 200, np.uint8), labels_of([1, 0.5, 0.5, 0.5, 0.5], [2, 0.5, 0.5, 0.25, 0.25])
    image, labels = augment.mixup(a, b)
    assert (image == 150).all() and labels[:, 0].tolist() == [0, 1, 2]


def test_blur_keeps_objects_sharp_and_spares_small_ones():
    image, labels = picture(96, 96), labels_of([0, 0.5, 0.5, 0.5, 0.5])
    background = augment.blur(image, labels, 1)
    assert (background[24:72, 24:72] == image[24:72, 24:72]).all()
    assert (background[:20] == cv2.GaussianBlur(image, (17, 17), 0)[:20]).all()
    assert (augment.blur(image, labels, 5) == cv2.GaussianBlur(image, (5, 5), 0)).all()
    assert (augment.blur(image, labels, 31) == cv2.GaussianBlur(image, (7, 7), 0)).all()  # 48 / 8 = 6
    assert (augment.blur(image, NONE, 5) == image).all() and (augment.blur(image, labels, 0) == image).all()


def test_noise_is_added_and_cut_off_at_white():
    image, noise = picture(), np.full((48, 64, 3), 100, np.uint8)
    noisy, _ = augment.augmented(Part(image, NONE, CropParams(), noise=noise), (64, 48))
    assert (noisy == np.minimum(image.astype(int) + 100, 255)).all()


def plainly(part, size):
    """The augmented picture step by step, each of them on the whole."""
    rows, columns = part.image.shape[:2]
    left, right, top, bottom = (int(value) for value in part.params[:4])
    reach = 1000
    padded = cv2.copyMakeBorder(part.image, *[reach] * 4, cv2.BORDER_CONSTANT, value=cv2.mean(part.image))
    cut = padded[reach + top : reach + rows - bottom, reach + left : reach + columns - right]
    image = cv2.resize(cut, size)
    if part.params.flip:
        image = cv2.flip(image, 1)
    if part.params[5:] != (0, 1, 1):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.float32)
        hsv = hsv * np.float32((1, *part.params[6:])) + np.float32((179 * part.params.hue, 0, 0))
        image = cv2.cvtColor(np.clip(np.rint(hsv), 0, 255).astype(np.uint8), cv2.COLOR_HSV2BGR)
    labels = augment.crop_flip_hsv(part.image, part.labels, part.params, size)[1]
    image = augment.blur(image, labels, part.blur)
    return image if part.noise is None else cv2.add(image, part.noise)


def random_part(rng, size, sides):
    image = cv2.resize(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8), sides, interpolation=cv2.INTER_CUBIC)
    image = cv2.add(image, rng.integers(0, 30, image.shape, dtype=np.uint8))
    reach = [int(0.45 * side) for side in (sides[0], sides[0], sides[1], sides[1])]
    colours = [rng.uniform(-0.1, 0.1), *rng.uniform(0.6, 1.6, 2)] if rng.random() < 0.8 else [0.0, 1.0, 1.0]
    params = CropParams(*(int(rng.integers(-r, r)) for r in reach), bool(rng.random() < 0.5), *colours)
    noise = rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8) if rng.random() < 0.3 else None
    labels = labels_of(*np.concatenate((rng.integers(0, 9, (3, 1)), rng.uniform(0.2, 0.8, (3, 4))), 1))
    return Part(image, labels, params, int(rng.choice([0, 0, 1, 7])), noise)


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
@pytest.mark.parametrize("seed", range(6))
def test_a_tile_is_computed_only_where_it_is_seen(size, seed):
    rng = np.random.default_rng(seed)
    for _ in range(5):
        sides = (2 * size[0], 2 * size[1]) if seed == 0 else tuple(map(int, rng.integers(60, 500, 2)))
        parts = [random_part(rng, size, sides) for _ in range(4)]
        if seed == 0:  # a half of each side: OpenCV then takes means of four pixels
            parts = [part._replace(params=part.params._replace(pleft=0, pright=0, ptop=0, pbot=0)) for part in parts]
        assert_same_tiles(parts, [int(rng.integers(side // 5, side * 4 // 5)) for side in size], size)


def test_a_tile_of_no_size_is_left_out():
    part, size = random_part(np.random.default_rng(0), (96, 64), (80, 70)), (96, 64)
    for cut in ((0, 30), (96, 64), (0, 0), (50, 64)):
        assert_same_tiles([part] * 4, cut, size)


def test_colours_are_rounded_as_a_table_of_the_levels_would_be():
    rng, levels = np.random.default_rng(0), np.arange(256, dtype=np.uint8)[None]
    for factor in (*rng.uniform(0.3, 3, 300), 0.5, 1.5, 2.5):
        table = np.clip(np.rint(levels * np.float32(factor)), 0, 255)
        assert (cv2.convertScaleAbs(levels, alpha=factor) == table).all()
