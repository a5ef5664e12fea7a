"""The pictures of shapes: the same for a seed, true boxes, a VOC layout that can be converted."""

import importlib.util

import numpy as np
import pytest
from conftest import ROOT

from yolov4 import data
from yolov4.labels import convert

SCRIPT = ROOT / "data" / "shapes" / "make_shapes.py"

spec = importlib.util.spec_from_file_location("make_shapes", SCRIPT)
make_shapes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_shapes)


def test_same_seed_same_files(tmp_path):
    for name, seed, count in (("a", 1, 10), ("b", 1, 20), ("c", 2, 10)):
        make_shapes.make_shapes(tmp_path / name, count, seed)

    def contents(name, images=10):
        parts = (tmp_path / name).glob("[AJ]*/*")
        return {path.name: path.read_bytes() for path in parts if int(path.stem[-5:]) < images}

    assert len(contents("a")) == 20 and contents("a") == contents("b")
    assert contents("a") != contents("c")


@pytest.mark.parametrize("kind", make_shapes.NAMES)
@pytest.mark.parametrize("side", [20, 33])
def test_shape_fills_its_box(kind, side):
    picture = np.zeros((80, 90, 3), np.uint8)
    make_shapes.draw_shape(picture, kind, 17, 11, side, (255, 255, 255))
    rows, columns = np.nonzero(picture[..., 0] > 127)
    assert abs(columns.min() - 17) <= 1 and abs(columns.max() - (17 + side - 1)) <= 1
    # the tip of a triangle is thin
    assert abs(rows.min() - 11) <= 2 and abs(rows.max() - (11 + side - 1)) <= 1


def test_objects_lie_in_the_picture_and_hardly_overlap():
    counts, shared = [], 0
    for index in range(60):
        picture, objects = make_shapes.make_picture(np.random.default_rng((0, index)), 160, 128)
        assert picture.shape == (128, 160, 3) and picture.dtype == np.uint8
        counts.append(len(objects))
        masks = np.zeros((len(objects), 128, 160), bool)
        for mask, (_, xmin, ymin, xmax, ymax) in zip(masks, objects, strict=True):
            assert 1 <= xmin < xmax <= 160 and 1 <= ymin < ymax <= 128
            mask[ymin - 1 : ymax, xmin - 1 : xmax] = True
        for one in range(len(masks)):
            for other in range(one):
                common = (masks[one] & masks[other]).sum()
                assert common <= 0.1 * min(masks[one].sum(), masks[other].sum())
                shared += common > 0
    assert min(counts) == 0 and max(counts) == 5 and shared > 0
    assert {item[0] for item in objects} <= set(make_shapes.NAMES)


def test_the_way_to_training(tmp_path):
    make_shapes.make_shapes(tmp_path / "VOCshapes", 20, size=(96, 64))
    found = convert([tmp_path / "VOCshapes"], tmp_path / "lists")
    assert not any(found.problems.values()) and tuple(found.names) == make_shapes.NAMES
    train, valid = (data.read_image_list(tmp_path / f"lists/{n}.txt") for n in ("train", "val"))
    assert len(train) == 16 and len(valid) == 4 and data.load_image(train[0]).shape == (64, 96, 3)
    report = data.inspect(train + valid, make_shapes.NAMES, (96, 64))
    report.check()
    assert not report.findings and set(report.boxes) == {0, 1, 2}


def test_impossible_request_is_a_usage_error(call, tmp_path):
    code, _, err = call("data/shapes/make_shapes.py", "--out", tmp_path, "--size", 20, 20)
    assert code == 2 and "expected 5 of 48 x 48" in err
