"""Lists, labels and images, the report before training, samples and their share among processes.
Source of what is expected: Darknet's src/data.c, src/utils.c, src/detector.c, cases by hand."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from yolov4 import data

NET = {"width": 96, "height": 64, "resize_step": 32, "batch": 8, "subdivisions": 4,
       "max_batches": 1000, "hue": 0.1, "saturation": 1.5, "exposure": 1.5, "blur": 0,
       "gaussian_noise": 0, "flip": 1, "letter_box": 0, "mosaic": 1, "mixup": 0,
       "mixup_share": 0.0, "mosaic_bound": 0, "channels": 3}  # fmt: skip


def net_of(**keys):
    return SimpleNamespace(**{**NET, **keys})


def head_of(**keys):
    return SimpleNamespace(**{"jitter": 0.2, "resize": 1.3, "random": 0, **keys})


@pytest.fixture
def folder(tmp_path):
    """Five images of their own grey; 0 has two boxes, 1 none, 2 no label file, 3 and 4 one each."""
    first = "0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.2 0.2\n"
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index, text in enumerate([first, "", None, "2 .5 .5 .9 .9\n", "1 .6 .6 .3 .3"]):
        grey = np.full((40, 60, 3), 40 * index + 20, np.uint8)
        cv2.imwrite(str(tmp_path / f"images/{index}.png"), grey)
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
    image = tmp_path / "images/a/JPEGImages/my.images.JPG"
    apart = tmp_path / "images/a/labels/my.images.txt"
    assert data.label_path(image) == apart  # neither exists
    beside = touch(image.with_suffix(".txt"))
    assert data.label_path(str(image)) == beside
    touch(apart)
    assert data.label_path(image) == apart
    assert data.label_path("images/val2017/1.jpeg") == Path("labels/val2017/1.txt")
    for image in ("my_images/images.jpg", "JPEGImages2/x.jpg"):
        assert data.label_path(image) == Path(image).with_suffix(".txt")


@pytest.mark.parametrize("what", ["folder", "glob", "list", "utf-16", "moved"])
def test_a_list_may_be_a_folder_or_a_glob(tmp_path, what):
    wanted = [touch(tmp_path / f"data/a/b/{name}") for name in ("1.JPG", "2 (1).webp", "ц.jfif")]
    touch(tmp_path / "data/a/b/notes.txt")
    source = {"folder": tmp_path / "data", "glob": tmp_path / "data/*/b/[!n]*"}.get(what)
    if not source:
        source = tmp_path / "data/list.txt"
        above = {"moved": "C:\\Users\\me\\set\\a\\b\\"}.get(what, "./a/b/")
        text = "".join(f"{above}{path.name}\n" for path in wanted)
        source.write_text(text, encoding="utf-16" if what == "utf-16" else "utf-8")
    assert data.read_image_list(source) == wanted


def test_image_list(tmp_path, monkeypatch):
    here, there = tmp_path / "lists", tmp_path / "now"
    for path in (here / "both.jpg", there / "both.jpg", there / "sub/only.jpg"):
        touch(path)
    monkeypatch.chdir(there)
    absolute = touch(tmp_path / "é ü.jpg")
    text = f"\ufeffboth.jpg\r\n\r\n  sub\\only.jpg \n{absolute}\nnowhere.jpg"
    (here / "train.txt").write_text(text, encoding="utf-8", newline="")
    images = data.read_image_list(here / "train.txt")
    assert images == [here / "both.jpg", Path("sub/only.jpg"), absolute, Path("nowhere.jpg")]
    for wrong in ("\n \n", "/\n", "1" * 300 + ".jpg\n"):
        (here / "wrong.txt").write_text(wrong)
        with pytest.raises(ValueError, match=r"wrong\.txt: found"):
            data.read_image_list(here / "wrong.txt")


def test_labels(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n3 0.5 0.25 1e-1 0.2\r\n\r\n0 1 1 1 1")
    labels = data.read_labels(path)
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels, [[3, 0.5, 0.25, 0.1, 0.2], [0, 1, 1, 1, 1]])
    path.write_text("")
    assert data.read_labels(path).shape == data.read_labels(tmp_path / "none.txt").shape == (0, 5)


def test_wrong_label_row_is_named(tmp_path):
    wrong = "1 .5 .5 .5|1 .5 .5 .5 .5 0.9|car .5 .5 .5 .5|1.5 0 0 1 1|-1 0 0 1 1|0 nan 0 1 1"
    for row in wrong.split("|"):
        (tmp_path / "a.txt").write_text(f"0 .5 .5 .1 .1\n\n{row}\n")
        with pytest.raises(ValueError, match=rf'a\.txt:3: found "{row}"'):
            data.read_labels(tmp_path / "a.txt")


def test_load_image_kinds(tmp_path):
    for shape, value in (((4, 6), 7), ((4, 6, 3), (1, 2, 3)), ((4, 6, 4), (1, 2, 3, 9))):
        path = tmp_path / "ünï.png"
        cv2.imencode(".png", np.full(shape, value, np.uint8))[1].tofile(path)
        image = data.load_image(path)
        assert image.shape == (4, 6, 3) and image.dtype == np.uint8
        assert image[0, 0].tolist() == ([7, 7, 7] if len(shape) == 2 else [1, 2, 3])
    with pytest.raises(ValueError, match=r"gone\.jpg: "):
        data.load_image(tmp_path / "gone.jpg")


def test_report_counts(folder, paths):
    bad, four = folder / "images/5.png", folder / "labels/4.txt"
    bad.write_bytes(b"no image")
    four.write_text("1 0.6 0.6 0.3 0.3\n0 0.5 0.5 0.01 0.5\n0 1.2 0.5 0.1 0.1")
    report = data.inspect([*paths, bad], ["a", "b", "c"], (96, 64), "train.txt")
    assert report.usable == paths and report.empty == 1 and report.boxes == {0: 3, 1: 2, 2: 1}
    lines = report.lines()
    assert lines[0] == "train.txt: 5 images, 3 with boxes, 1 empty, 6 boxes"
    assert lines[4].strip() == "counters_per_class=3,2,1"  # ready to paste into a [yolo]
    places = {what: str(found[0]) for what, found in report.findings.items()}
    assert places.pop(data.NO_LABELS) == str(folder / "labels/2.txt")
    assert places.pop("files that are no image") == str(bad)
    assert places.pop("boxes below one pixel of the network (not trained)").startswith(f"{four}:2:")
    assert places.pop("boxes out of range").startswith(f"{four}:3:") and not places
    report.check()


def test_report_refuses_what_cannot_be_trained(folder, paths):
    three = folder / "labels/3.txt"
    for images, names, found in (
        ([*paths, folder / "x.jpg"], "abc", f"found 1 {data.NO_IMAGE}: {folder}/x.jpg"),
        (paths, "ab", f"found 1 {data.BAD_CLASS}: {three}:1: found class 2"),
        (paths[1:3], "abc", "found 0 boxes"),
    ):
        with pytest.raises(ValueError) as error:
            data.inspect(images, names, (96, 64), "train.txt").check()
        assert str(error.value).startswith(f"train.txt: {found}")


def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]


VARIANTS = [{}, {"mosaic": 0, "mixup": 1}, {"mosaic": 0}, {"blur": 5, "gaussian_noise": 9}]


@pytest.mark.parametrize("keys", VARIANTS)
def test_sample_depends_on_seed_and_index_only(paths, keys):
    def samples(indices, **options):
        found = data.TrainingSet(paths, net_of(**keys), head_of(), **{"seed": 3} | options)
        return [found[index, (96, 64)] for index in indices]

    forward = samples(range(12))
    assert all(map(same, forward, samples(reversed(range(12)))[::-1]))
    assert all(map(same, forward, samples(range(12), cache=1e-5)))  # one image of five fits
    assert not any(map(same, forward, samples(range(12), seed=4)))
    image, labels, files, _ = forward[0]
    assert image.shape == (3, 64, 96) and image.dtype == torch.uint8 and image.is_contiguous()
    assert labels.dtype == torch.float32 and set(files) <= set(map(str, paths))


def test_how_many_images_a_sample_is_made_of(paths):
    def share(count, **keys):
        training_set = data.TrainingSet(paths, net_of(**keys), head_of(), seed=0)
        counts = [len(training_set[index, (32, 32)].files) for index in range(200)]
        assert set(counts) == {1, count}
        return counts.count(count) / 200

    assert 0.4 < share(4) < 0.6 and 0.4 < share(4, mixup=1) < 0.6
    assert 0.4 < share(2, mosaic=0, mixup=1) < 0.6 and share(1, mosaic=0) == 1
    with pytest.raises(ValueError, match="mosaic=1"):
        data.TrainingSet(paths, net_of(letter_box=1), head_of(), seed=0)


def test_sample_without_augmentation_is_the_image_in_rgb(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.25 0.5")
    net = net_of(mosaic=0, flip=0, hue=0, saturation=1, exposure=1)
    head = head_of(jitter=0, resize=1)
    sample = data.TrainingSet([tmp_path / "a.png"], net, head, 0)[5, (64, 32)]
    assert np.array_equal(sample.image.numpy(), image[..., ::-1].transpose(2, 0, 1))
    assert sample.labels.tolist() == [[1, 0.5, 0.5, 0.25, 0.5]]
    assert sample.files == [str(tmp_path / "a.png")]


def test_sizes_of_random():
    assert data.training_size(net_of(), head_of(), 17, 0) == (96, 64)
    net, head = net_of(width=416, height=416), head_of(random=1)
    sizes = [data.training_size(net, head, iteration, 0) for iteration in range(1000)]
    assert all(len(set(sizes[start : start + 10])) == 1 for start in range(0, 1000, 10))
    assert sizes[0] == (608, 608)  # round(1.4 * 13 + 1) * 32
    assert set(sizes[910:]) == {(608, 608)} and len(set(sizes[:910])) >= 8
    # the smallest: round(13 / 1.4 + 1) * 32; what v < 1 would make larger than 416 becomes 416
    assert min(sizes)[0] == 320
    assert all(width == height and width % 32 == 0 for width, height in sizes)
    few = {data.training_size(net, head_of(random=1.02), each, 0)[0] for each in range(10, 800)}
    assert few == {416, 448}  # a factor below one never grows: 0.99 * 13 + 1.5 is more than 14
    assert data.training_size(net, head_of(random=2), 3, 0) == (864, 864)
    # 96 * 1.4 / 64 + 1 = 3.1
    assert data.training_size(net_of(resize_step=64), head, 0, 0) == (192, 128)


def batches(net, *arguments, **options):
    found = data.mini_batches(net, head_of(), 0, *arguments, **options)
    return [[index for index, _ in keys] for keys in found]


def test_mini_batches_are_consecutive():
    assert batches(net_of(), 3, 5) == [[n, n + 1] for n in range(24, 40, 2)]
    assert batches(net_of(), 5, 5) == []
    assert batches(net_of(), 0, 10)[12:] == batches(net_of(), 3, 10)  # resumed = never stopped


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_each_iteration(world):
    ranks = [batches(net_of(), 1, 3, rank=rank, world=world) for rank in range(world)]
    runs = len(ranks[0]) // 2
    for iteration in range(2):
        rows = [row for rank in ranks for row in rank[iteration * runs : (iteration + 1) * runs]]
        start = 8 * (iteration + 1)
        assert [index for row in rows for index in row] == list(range(start, start + 8))
    assert all(len(rank) == max(4, world) // world * 2 for rank in ranks)


@pytest.mark.parametrize(("subdivisions", "world"), [(3, 1), (4, 3)])
def test_batch_that_cannot_be_cut(subdivisions, world):
    with pytest.raises(ValueError, match=rf"batch=8, subdivisions={subdivisions}, {world} proc"):
        batches(net_of(subdivisions=subdivisions), 0, 1, world=world)


def test_workers_ranks_and_the_cache_give_the_same_samples(paths):
    def load(start, end, workers=0, **options):
        net, head = net_of(), head_of()
        return list(data.training_batches(paths, net, head, 7, start, end, workers, **options))

    alone = load(0, 2)
    assert len(alone) == 8 and alone[0][0].shape == (2, 3, 64, 96)
    images, targets, files, _ = alone[1]
    assert images.dtype == torch.uint8 and set(targets[:, 0].tolist()) <= {0, 1}
    sample = data.TrainingSet(paths, net_of(), head_of(), 7)[3, (96, 64)]
    assert torch.equal(images[1], sample.image) and files[1] == sample.files
    assert torch.equal(targets[targets[:, 0] == 1, 1:], sample.labels)
    halves = [load(0, 2, rank=rank, world=2) for rank in range(2)]
    sharded = [*halves[0][:2], *halves[1][:2], *halves[0][2:], *halves[1][2:]]
    for other in (load(0, 2, workers=2), load(0, 2, workers=2, cache=1), sharded):
        assert all(map(same, alone, other))
    assert all(map(same, alone[4:], load(1, 2)))


def test_cached_images_are_not_read_again(paths, monkeypatch):
    training_set = data.TrainingSet(paths, net_of(), head_of(), 0, cache=1)
    monkeypatch.setattr(data, "load_image", None)
    assert not any(training_set[index, (32, 32)].faults for index in range(9))


def test_a_share_of_samples_is_blended_with_another_one(paths):
    keys = {"mosaic": 0, "hue": 0, "saturation": 1, "exposure": 1}
    nets = [net_of(**keys, mixup_share=share) for share in (0.0, 1)]
    plain, blended = (data.TrainingSet(paths, net, head_of(), 3) for net in nets)
    for index in range(10):
        one, blend = plain[index, (96, 64)], blended[index, (96, 64)]
        assert len(blend.files) == 2 and blend.files[0] == one.files[0]
        assert torch.equal(blend.labels[: len(one.labels)], one.labels)
        levels = [40 * int(path[-5]) + 20 for path in blend.files]
        assert min(levels) - 1 <= blend.image.float().median() <= max(levels) + 1


def test_rows_of_polygons_are_taken_as_their_boxes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1 0.5 0.5 0.2 0.1\n0 .1 .2 .5 .3 .3 .6\n2 .1 .1 .1 .3 .5 .3 .5 .1\n")
    with pytest.warns(UserWarning, match="polygons"):
        labels = data.read_labels(path)
    wanted = [[1, 0.5, 0.5, 0.2, 0.1], [0, 0.3, 0.4, 0.4, 0.4], [2, 0.3, 0.2, 0.4, 0.2]]
    assert labels == pytest.approx(np.array(wanted), abs=1e-6)
    path.write_text("0 .5 .5 .2 .1 .9\n")  # a confidence behind the box
    with pytest.raises(ValueError, match=r"a\.txt:1"):
        data.read_labels(path)


def test_copies_of_images_are_counted_within_and_between_the_lists(paths, tmp_path):
    copies = [tmp_path / f"{number}.png" for number in range(2)]
    for copy in copies:
        copy.write_bytes(paths[3].read_bytes())
    assert data.duplicates(paths[:2] + paths[:1], paths[2:]) == []  # a list may repeat an image
    lines = data.duplicates([*paths, copies[0]], [copies[1], paths[0]])
    assert [line.split(" ")[0] for line in lines] == ["1", "2"]
    assert f"{paths[3]} = {copies[0]}" in lines[0] and "training and in validation" in lines[1]


def test_boxes_in_pixels_are_an_error_and_small_ones_advice(folder, paths):
    for number in (0, 3, 4):
        (folder / f"labels/{number}.txt").write_text("0 30 20 10 8\n1 12.5 9 4 3\n")
    report = data.inspect(paths, "abc", (96, 64))
    with pytest.raises(ValueError, match="pixels"):
        report.check()
    (folder / "labels/0.txt").write_text("0 .5 .5 .02 .04\n" * 9)  # 1.92 x 2.56 of 96 x 64
    report = data.inspect(paths, "abc", (96, 64))
    report.check()
    assert "--width 320 --height 224" in report.lines()[-1]


def test_a_network_of_one_channel_sees_grey(paths):
    colours = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    cv2.imwrite(str(paths[0]), colours)
    plain = {"hue": 0.0, "saturation": 1.0, "exposure": 1.0, "mosaic": 0, "flip": 0, "channels": 1}
    head = head_of(jitter=0.0, resize=1.0)
    for cache in (0.0, 1.0):
        sample = data.TrainingSet(paths[:1], net_of(**plain), head, 0, cache)[0, (96, 64)]
        grey = cv2.cvtColor(colours, cv2.COLOR_BGR2GRAY)
        assert sample.image.shape == (1, 64, 96) and (sample.image[0].numpy() == grey).all()
    coloured = data.TrainingSet(paths, net_of(channels=1), head_of(), 0)[3, (96, 64)]
    assert coloured.image.shape == (1, 64, 96)  # mosaic, hue and all


@pytest.mark.parametrize(
    ("megabytes", "workers", "ahead"), [(64, 8, 2), (12, 8, 1), (5, 3, 1), (2, 0, None)]
)
def test_mini_batches_fit_into_shared_memory(paths, monkeypatch, megabytes, workers, ahead):
    """Of 1 MB each; one is trained on and one received."""
    net, head = net_of(batch=4, subdivisions=1, width=320, height=273), head_of(random=0)
    free = SimpleNamespace(free=megabytes * 1_050_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        loader = data.training_batches(paths, net, head, 0, 0, 1, 8)
    assert (loader.num_workers, loader.prefetch_factor) == (workers, ahead)
    assert sum("--shm-size" in str(each.message) for each in found) == (megabytes < 64)
