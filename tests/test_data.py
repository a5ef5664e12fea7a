"""Reading of lists, labels and images, the report before training, samples.
Source of what is expected: Darknet's src/data.c, src/utils.c, and cases worked by hand."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from yolov4 import batches as batching
from yolov4 import data

SHARED = Path(__file__).parents[1].parent / "shared"
COLOURS = {"hue": 0.1, "saturation": 1.5, "exposure": 1.5, "blur": 0, "gaussian_noise": 0}
NET = {**COLOURS, "flip": 1, "letter_box": 0, "mosaic": 1, "mixup": 0, "mixup_share": 0.0, "mosaic_bound": 0}


def net_of(**keys):
    return SimpleNamespace(**{**NET, **keys})


def head_of(**keys):
    return SimpleNamespace(**{"jitter": 0.2, "resize": 1.3, "random": 0, **keys})


@pytest.fixture
def folder(tmp_path):
    """Five images of their own grey; 0 has two boxes, 1 an empty label file, 2 none, 3 and 4 one box each."""
    labels = [
        "0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.2 0.2\n",
        "",
        None,
        "2 0.5 0.5 0.9 0.9\n",
        "1 0.6 0.6 0.3 0.3",
    ]
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index, text in enumerate(labels):
        cv2.imwrite(str(tmp_path / f"images/{index}.png"), np.full((40, 60, 3), 40 * index + 20, np.uint8))
        if text is not None:
            (tmp_path / f"labels/{index}.txt").write_text(text)
    return tmp_path


@pytest.fixture
def paths(folder):
    return sorted((folder / "images").iterdir())


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_label_path_takes_the_folder_whose_file_exists(tmp_path):
    image = tmp_path / "images" / "a" / "JPEGImages" / "my.images.JPG"
    apart = tmp_path / "images" / "a" / "labels" / "my.images.txt"
    assert data.label_path(image) == apart  # neither exists
    beside = touch(image.with_suffix(".txt"))
    assert data.label_path(str(image)) == beside
    touch(apart)
    assert data.label_path(image) == apart
    assert data.label_path("images/val2017/1.jpeg") == Path("labels/val2017/1.txt")


def test_label_path_never_replaces_inside_a_name():
    for image in ("my_images/images.jpg", "JPEGImages2/x.jpg", "a/images.png"):
        assert data.label_path(image) == Path(image).with_suffix(".txt")


def test_image_list(tmp_path, monkeypatch):
    here, there = tmp_path / "lists", tmp_path / "now"
    for path in (here / "both.jpg", there / "both.jpg", there / "sub" / "only.jpg"):
        touch(path)
    monkeypatch.chdir(there)
    absolute = touch(tmp_path / "é ü.jpg")
    text = f"\ufeffboth.jpg\r\n\r\n  sub\\only.jpg \n{absolute}\nnowhere.jpg"
    (here / "train.txt").write_text(text, encoding="utf-8", newline="")
    images = data.read_image_list(here / "train.txt")
    assert images == [here / "both.jpg", Path("sub/only.jpg"), absolute, here / "nowhere.jpg"]
    (here / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt: found no image path"):
        data.read_image_list(here / "empty.txt")


def test_labels(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n3 0.5 0.25 1e-1 0.2\r\n\r\n0 1 1 1 1")
    labels = data.read_labels(path)
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels, [[3, 0.5, 0.25, 0.1, 0.2], [0, 1, 1, 1, 1]])
    path.write_text("")
    assert data.read_labels(path).shape == data.read_labels(tmp_path / "none.txt").shape == (0, 5)


@pytest.mark.parametrize(
    "row",
    ["1 0.5 0.5 0.5", "1 .5 .5 .5 .5 0.9", "car .5 .5 .5 .5", "1.5 0 0 1 1", "-1 0 0 1 1", "0 nan 0 1 1"],
)
def test_wrong_label_row_is_named(tmp_path, row):
    path = tmp_path / "a.txt"
    path.write_text(f"0 .5 .5 .1 .1\n\n{row}\n")
    with pytest.raises(ValueError) as error:
        data.read_labels(path)
    assert str(error.value) == f'{path}:3: found "{row}", expected "class cx cy w h"'


def test_load_image_kinds(tmp_path):
    for shape, value in (((4, 6), 7), ((4, 6, 3), (1, 2, 3)), ((4, 6, 4), (1, 2, 3, 9))):
        path = tmp_path / "ünï.png"
        cv2.imencode(".png", np.full(shape, value, np.uint8))[1].tofile(path)
        image = data.load_image(path)
        assert image.shape == (4, 6, 3) and image.dtype == np.uint8
        assert image[0, 0].tolist() == ([7, 7, 7] if len(shape) == 2 else [1, 2, 3])
    for content in (b"", b"no image at all"):
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=rf"bad\.jpg: found {len(content)} bytes"):
            data.load_image(tmp_path / "bad.jpg")
    with pytest.raises(ValueError, match=r"gone\.jpg"):
        data.load_image(tmp_path / "gone.jpg")


def test_report_counts(folder, paths):
    (folder / "images" / "5.png").write_bytes(b"no image")
    (folder / "labels" / "4.txt").write_text("1 0.6 0.6 0.3 0.3\n0 0.5 0.5 0.01 0.5\n0 1.2 0.5 0.1 0.1")
    report = data.inspect([*paths, folder / "images" / "5.png"], ["a", "b", "c"], (96, 64), "train.txt")
    assert report.usable == paths and report.empty == 1 and report.boxes == {0: 3, 1: 2, 2: 1}
    lines = report.lines()
    assert lines[0] == "train.txt: 5 images, 3 with boxes, 1 empty, 6 boxes"
    assert [line.split() for line in lines[1:4]] == [["a", "3"], ["b", "2"], ["c", "1"]]
    assert lines[4].strip() == "counters_per_class=3,2,1"  # ready to paste into a [yolo]
    notes = "\n".join(lines[5:])
    assert f"1 {data.NO_LABELS}, the first: {folder / 'labels' / '2.txt'}" in notes
    assert f"1 {data.BAD_IMAGE}, the first: {folder / 'images' / '5.png'}" in notes
    assert f"1 {data.TINY}, the first: {folder / 'labels' / '4.txt'}:2:" in notes
    assert f"1 {data.BAD_BOX}, the first: {folder / 'labels' / '4.txt'}:3: found [1.2, 0.5" in notes
    report.check()


def test_report_refuses_what_cannot_be_trained(folder, paths):
    def problem(paths, names=("a", "b", "c")):
        with pytest.raises(ValueError) as error:
            data.inspect(paths, names, (96, 64), "train.txt").check()
        return str(error.value)

    assert "found 1 images that do not exist" in problem([*paths, folder / "x.jpg"])
    assert str(folder / "x.jpg") in problem([*paths, folder / "x.jpg"])
    assert f"{folder / 'labels' / '3.txt'}:1: found class 2, expected 0..1" in problem(paths, "ab")
    assert problem(paths[1:3]).startswith("train.txt: found 0 boxes") and "2.txt" in problem(paths[1:3])
    assert "every label file is empty" in problem(paths[1:2])


def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]


@pytest.mark.parametrize("keys", [{}, {"mosaic": 0, "mixup": 1}, {"mosaic": 0}, {"blur": 5, "gaussian_noise": 9}])
def test_sample_depends_on_seed_and_index_only(paths, keys):
    training_set = batching.TrainingSet(paths, net_of(**keys), head_of(), seed=3)
    forward = [training_set[index, (96, 64)] for index in range(12)]
    backward = [training_set[index, (96, 64)] for index in reversed(range(12))][::-1]
    assert all(map(same, forward, backward))
    image, labels, files, _ = forward[0]
    assert image.shape == (3, 64, 96) and image.dtype == torch.uint8 and image.is_contiguous()
    assert labels.shape[1] == 5 and labels.dtype == torch.float32 and set(files) <= set(map(str, paths))
    other = batching.TrainingSet(paths, net_of(**keys), head_of(), seed=4)
    assert not any(same(other[index, (96, 64)], forward[index]) for index in range(12))


def test_how_many_images_a_sample_is_made_of(paths):
    def share(count, **keys):
        training_set = batching.TrainingSet(paths, net_of(**keys), head_of(), seed=0)
        counts = [len(training_set[index, (32, 32)][2]) for index in range(200)]
        assert set(counts) == {1, count}
        return counts.count(count) / 200

    assert 0.4 < share(4) < 0.6 and 0.4 < share(4, mixup=1) < 0.6 and 0.4 < share(2, mosaic=0, mixup=1) < 0.6
    assert share(1, mosaic=0) == 1
    with pytest.raises(ValueError, match="mosaic=1 with letter_box=1"):
        batching.TrainingSet(paths, net_of(letter_box=1), head_of(), seed=0)


def test_sample_without_augmentation_is_the_picture_in_rgb(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.25 0.5")
    net = net_of(mosaic=0, flip=0, hue=0, saturation=1, exposure=1)
    sample = batching.TrainingSet([tmp_path / "a.png"], net, head_of(jitter=0, resize=1), 0)[5, (64, 32)]
    assert np.array_equal(sample[0].numpy(), image[..., ::-1].transpose(2, 0, 1))
    assert sample[1].tolist() == [[1, 0.5, 0.5, 0.25, 0.5]] and sample[2] == [str(tmp_path / "a.png")]


def test_images_are_drawn_uniformly_with_replacement(paths):
    training_set = batching.TrainingSet(paths, net_of(mosaic=0), head_of(), seed=0)
    files = [training_set[index, (32, 32)][2][0] for index in range(500)]
    assert all(70 < files.count(str(path)) < 130 for path in paths)


def test_collate():
    def sample(rows):
        return torch.zeros(3, 4, 6, dtype=torch.uint8), torch.rand(rows, 5), [f"{rows}.jpg"], []

    samples = [sample(2), sample(0), sample(1)]
    images, targets, files, _ = batching.collate(samples)
    assert images.shape == (3, 3, 4, 6) and images.dtype == torch.uint8
    assert targets.shape == (3, 6) and targets.dtype == torch.float32 and targets[:, 0].tolist() == [0, 0, 2]
    assert torch.equal(targets[:2, 1:], samples[0][1]) and files == [["2.jpg"], ["0.jpg"], ["1.jpg"]]
    assert batching.collate([sample(0)])[1].shape == (0, 6)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/datasets/coco128_val")
def test_report_of_coco128():
    root = SHARED / "datasets" / "coco128_val"
    names = (root / "coco.names").read_text().splitlines()
    report = data.inspect(sorted((root / "images").glob("*.jpg")), names, (416, 416))
    report.check()
    assert len(report.usable) == 128 and sum(report.boxes.values()) == 898


def test_a_line_of_a_list_that_no_file_can_be_named_is_one_sentence(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\n" + "1" * 300 + ".jpg\n")
    with pytest.raises(ValueError, match=r"list\.txt: found 1{40}\.\.\., expected names of at most 255 bytes"):
        data.read_image_list(tmp_path / "list.txt")
