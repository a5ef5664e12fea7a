"""The cache of decoded pictures: the same pictures with it and without, never more memory than allowed, one for all
processes.  Source of what is expected: pictures drawn here."""

import multiprocessing

import cv2
import numpy as np
import pytest
import torch
from test_batches import head_of, net_of
from test_training import finished, trained, write_cfg, write_pictures

from yolov4 import batches, data, pictures
from yolov4.pictures import Cache, Pictures

SIDES = ((40, 60), (30, 20), (64, 48), (10, 90), (33, 77))
BYTES = [3 * rows * columns for rows, columns in SIDES]


@pytest.fixture
def paths(tmp_path):
    """Five pictures of their own size and grain with a box each."""
    rng = np.random.default_rng(0)
    for index, sides in enumerate(SIDES):
        cv2.imwrite(str(tmp_path / f"{index}.png"), rng.integers(0, 256, (*sides, 3), dtype=np.uint8))
        (tmp_path / f"{index}.txt").write_text(f"{index} 0.5 0.5 0.5 0.5")
    return [str(path) for path in sorted(tmp_path.glob("*.png"))]


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded."""
    seen = []
    monkeypatch.setattr(pictures, "load_image", lambda path: seen.append(path) or data.load_image(path))
    return seen


def assert_right(found, path):
    image, labels = found
    assert np.array_equal(image, data.load_image(path)) and np.array_equal(labels, data.read_labels(path[:-3] + "txt"))


def test_a_picture_in_the_cache_is_decoded_once(paths, decoded):
    for cache, times in ((1e-3, 1), (0.0, 3)):
        decoded.clear()
        source = Pictures(paths, cache)
        for path in paths * 3:
            assert_right(source(path), path)
        assert sorted(decoded) == sorted(paths * times)


@pytest.mark.parametrize("room", [1, BYTES[1] - 1, BYTES[1], BYTES[0] + BYTES[1], sum(BYTES) - 1, sum(BYTES)])
def test_no_more_is_kept_than_there_is_room(paths, room, decoded):
    source = Pictures(paths, room / 1e9)
    for path in paths * 2:
        assert_right(source(path), path)
        assert source.cache.used.value <= room == source.cache.room
    kept = [path for path in paths if source.cache.get(path) is not None]
    assert source.cache.used.value == sum(BYTES[paths.index(path)] for path in kept)
    assert sorted(decoded) == sorted(paths + [path for path in paths if path not in kept])
    assert {1: 0, BYTES[1]: 1, sum(BYTES): 5}.get(room, len(kept)) == len(kept)
    assert room < BYTES[0] or paths[0] in kept  # the first that fits


def test_a_picture_that_two_processes_bring_is_kept_once(paths):
    cache = Cache(paths, 10**6)
    for _ in range(2):
        cache.put(paths[0], data.load_image(paths[0]))
    assert cache.used.value == BYTES[0] and cache.get(paths[1]) is None
    with pytest.raises(ValueError, match="read-only"):
        cache.get(paths[0])[0] = 0


def test_a_list_may_name_a_picture_twice_and_pictures_that_are_none(paths, tmp_path, decoded):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad, gone = str(tmp_path / "bad.png"), str(tmp_path / "gone.png")
    source = Pictures([*paths, paths[0], bad, gone], 1e-3)
    for path in (paths[0], paths[0]):
        assert_right(source(path), path)
    assert decoded == paths[:1]
    for path in (bad, gone) * 2:
        with pytest.raises(ValueError, match=r"(bad|gone)\.png"):
            source(path)
    assert source.cache.used.value == BYTES[0]


def test_labels_are_read_once(paths, monkeypatch):
    seen = []
    monkeypatch.setattr(pictures, "read_labels", lambda path: seen.append(path) or data.read_labels(path))
    source = Pictures(paths)
    for path in paths * 3:
        assert_right(source(path), path)
    assert len(seen) == len(paths)


@pytest.mark.parametrize("cache", [-1.0, float("nan"), float("inf"), 1e9])
def test_a_cache_of_no_size_that_there_is(cache):
    with pytest.raises(ValueError, match=r"--cache: found .* GB, expected 0\.\.1000000"):
        Pictures(["a.png"], cache)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_fill_one_cache_and_give_the_same_samples(paths, method):
    """Whatever way the processes start; what they decode, the main process finds too."""
    default = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        arguments = paths, net_of(), head_of(), 7, 0, 6
        expected = list(batches.training_batches(*arguments, workers=0))
        loader = batches.training_batches(*arguments, workers=2, cache=1e-3)
        found = list(loader)
        del loader._iterator  # ends the workers
    finally:
        multiprocessing.set_start_method(default, force=True)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a.image, b.image) and torch.equal(a.labels, b.labels) and a.files == b.files
    cache = loader.dataset.pictures.cache
    assert cache.used.value == sum(BYTES)
    assert all(np.array_equal(cache.get(path), data.load_image(path)) for path in paths)


def test_a_training_with_a_cache_comes_to_the_same_weights(tmp_path, decoded):
    work = write_pictures(tmp_path)
    write_cfg(work, iterations=4)
    plain = trained(work, "plain", valid=None)
    assert len(decoded) > 8
    decoded.clear()
    assert trained(work, "cached", valid=None, cache=1e-3) == plain and len(decoded) <= 8


def test_the_flag_of_the_cache_reaches_it(root, tmp_path):
    _, errors = finished(root, write_pictures(tmp_path), "--name", "run", "--cache", -1, code=1)
    assert "train.py: --cache: found -1.0 GB, expected 0..1000000" in errors
