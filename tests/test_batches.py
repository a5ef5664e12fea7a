"""Sizes of `random`, mini-batches and their share among processes: independent of workers, ranks, history.
Source of what is expected: Darknet's src/detector.c, train_detector, and cases worked by hand."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from yolov4 import augment, draws
from yolov4 import batches as batching

COLOURS = {"hue": 0.1, "saturation": 1.5, "exposure": 1.5, "blur": 0, "gaussian_noise": 0}
SIZES = {"width": 96, "height": 64, "resize_step": 32, "batch": 8, "subdivisions": 4, "max_batches": 1000,
         "dynamic_minibatch": 0}  # fmt: skip
NET = {**COLOURS, **SIZES, "flip": 1, "letter_box": 0, "mosaic": 1, "mixup": 0, "mixup_share": 0.0, "mosaic_bound": 0}


def net_of(**keys):
    return SimpleNamespace(**{**NET, **keys})


def head_of(**keys):
    return SimpleNamespace(**{"jitter": 0.2, "resize": 1.3, "random": 0, **keys})


@pytest.fixture
def paths(tmp_path):
    """Five images of their own grey with a box each."""
    for index in range(5):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((40, 60, 3), 40 * index + 20, np.uint8))
        (tmp_path / f"{index}.txt").write_text(f"{index} 0.5 0.5 0.5 0.5")
    return sorted(tmp_path.glob("*.png"))


def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]


def test_size_without_random():
    assert batching.training_size(net_of(), head_of(), 17, 0) == (96, 64)


def test_sizes_of_random():
    net, head = net_of(width=416, height=416), head_of(random=1)
    sizes = [batching.training_size(net, head, iteration, 0) for iteration in range(1000)]
    assert all(len(set(sizes[start : start + 10])) == 1 for start in range(0, 1000, 10))
    assert sizes[0] == (608, 608)  # round(1.4 * 13 + 1) * 32
    assert set(sizes[910:]) == {(608, 608)} and len(set(sizes[:910])) >= 8
    # the smallest: round(13 / 1.4 + 1) * 32; what v < 1 would make larger than 416 becomes 416
    assert min(sizes)[0] == 320 and all(width == height and width % 32 == 0 for width, height in sizes)
    assert batching.training_size(net, head_of(random=2), 3, 0) == (864, 864)
    assert batching.training_size(net_of(resize_step=64), head, 0, 0) == (192, 128)  # 96 * 1.4 / 64 + 1 = 3.1


def test_size_below_one_never_grows(monkeypatch):
    monkeypatch.setattr(draws, "draw_factor", lambda rng, limit: 0.99)
    assert batching.training_size(net_of(width=416, height=416), head_of(random=1), 50, 0) == (416, 416)
    for factor, side in ((0.8, 352), (0.83, 384)):  # 13 * factor + 1 = 11.4, 11.79
        monkeypatch.setattr(draws, "draw_factor", lambda rng, limit, factor=factor: factor)
        assert batching.training_size(net_of(width=416, height=416), head_of(random=1), 50, 0) == (side, side)


def batches(net, *arguments, **options):
    return [[index for index, _ in rows] for rows in batching.MiniBatches(net, head_of(), 0, *arguments, **options)]


def test_mini_batches_are_consecutive():
    assert batches(net_of(), 3, 5) == [[n, n + 1] for n in range(24, 40, 2)]
    assert len(batching.MiniBatches(net_of(), head_of(), 0, 3, 5)) == 8 and batches(net_of(), 5, 5) == []
    assert batches(net_of(), 0, 10)[12:] == batches(net_of(), 3, 10)  # resumed = never stopped


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_each_iteration(world):
    net = net_of()
    ranks = [batches(net, 1, 3, rank=rank, world=world) for rank in range(world)]
    runs = len(ranks[0]) // 2
    for iteration in range(2):
        rows = [row for rank in ranks for row in rank[iteration * runs : (iteration + 1) * runs]]
        assert [index for row in rows for index in row] == list(range(8 * (iteration + 1), 8 * (iteration + 2)))
    assert all(len(rank) == max(4, world) // world * 2 for rank in ranks)


@pytest.mark.parametrize(("side", "images"), [
    (608, 8), (576, 8), (544, 9), (512, 11), (480, 9), (416, 13), (320, 22),
])  # fmt: skip
def test_mini_batches_grow_where_pictures_shrink(side, images):
    """8 * 608^2 / side^2, or 0.8 of that if it is more than 8: 9.99 -> 9 (7.2 is not), 12.8 -> 12 (9.6 is) -> 9."""
    net, head = net_of(width=416, height=416, dynamic_minibatch=1), head_of(random=1)
    assert batching.mini_batch_images(net, head, 8, (side, side)) == images
    for unchanged in (net_of(width=416, height=416), head), (net, head_of(random=0)):
        assert batching.mini_batch_images(*unchanged, 8, (side, side)) == 8


def test_no_sample_is_drawn_twice_whatever_the_mini_batches_hold():
    net, head = net_of(width=416, height=416, dynamic_minibatch=1), head_of(random=1)
    found = list(batching.MiniBatches(net, head, 0, 0, 300))
    assert {len(rows) for rows in found} == {
        batching.mini_batch_images(net, head, 2, size) for rows in found for _, size in rows[:1]
    }
    assert min(map(len, found)) == 2 and max(map(len, found)) >= 5
    indices = [index for rows in found for index, _ in rows]
    assert len(set(indices)) == len(indices)
    assert found[40:] == list(batching.MiniBatches(net, head, 0, 10, 300))  # resumed = never stopped
    ranks = [list(batching.MiniBatches(net, head, 0, 0, 300, rank, 2)) for rank in range(2)]
    assert sorted(map(str, found)) == sorted(str(rows) for rank in ranks for rows in rank)


def test_batch_that_cannot_be_cut():
    with pytest.raises(ValueError, match="found batch=8, subdivisions=3, 1 processes"):
        batching.MiniBatches(net_of(subdivisions=3), head_of(), 0, 0, 1)
    with pytest.raises(ValueError, match="found batch=8, subdivisions=4, 3 processes"):
        batching.MiniBatches(net_of(), head_of(), 0, 0, 1, world=3)


def test_workers_and_ranks_give_the_same_samples(paths):
    def load(start, end, workers=0, **options):
        return list(batching.training_batches(paths, net_of(), head_of(), 7, start, end, workers, **options))

    alone = load(0, 2)
    assert len(alone) == 8 and alone[0][0].shape == (2, 3, 64, 96)
    with_workers = load(0, 2, workers=2)
    halves = [load(0, 2, rank=rank, world=2) for rank in range(2)]
    sharded = [*halves[0][:2], *halves[1][:2], *halves[0][2:], *halves[1][2:]]
    assert all(map(same, alone, with_workers)) and all(map(same, alone, sharded))
    assert all(map(same, alone[4:], load(1, 2)))


def test_a_share_of_samples_is_blended_with_another_one(paths):
    """mixup_share=1: every sample is a blend, its boxes those of both; 0: as if there were no such key."""
    plain, none, all_ = (
        batching.TrainingSet(paths, net_of(mosaic=0, mixup_share=share, hue=0, saturation=1, exposure=1), head_of(), 3)
        for share in (0, 0.0, 1)
    )
    for index in range(10):
        a, b, blend = (each[index, (96, 64)] for each in (plain, none, all_))
        assert same(a, b)
        assert len(blend.files) == 2 and blend.files[0] == a.files[0]
        assert torch.equal(blend.labels[: len(a.labels)], a.labels) and len(blend.labels) >= len(a.labels)
        levels = [40 * int(path[-5]) + 20 for path in blend.files]
        assert min(levels) - 1 <= blend.image.float().median() <= max(levels) + 1


def test_a_quarter_of_the_first_in_a_blend():
    a, b = (np.full((4, 4, 3), grey, np.uint8) for grey in (0, 200))
    none = np.zeros((0, 5), np.float32)
    assert augment.mixup((a, none), (b, none), 0.25)[0].ravel().tolist() == [150] * 48
