"""The VOC tool against label text (../shared/golden/voc2012_100) and a small VOCdevkit made by hand.
Source of what is expected: Darknet's scripts/voc_label.py and src/detector.c (the list of `difficult=`)."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from yolov4 import data

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
SCRIPT = ROOT / "data" / "voc0712" / "voc_label.py"
NAMES = SCRIPT.with_name("voc.names").read_text().split()
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")

spec = importlib.util.spec_from_file_location("voc_label", SCRIPT)
voc_label = importlib.util.module_from_spec(spec)
spec.loader.exec_module(voc_label)

# name, difficult, xmin, ymin, xmax, ymax in an image of 200 x 100
CAT, HARD_DOG, FLAT = ("cat", 0, 11, 21, 111, 71), ("dog", 1, 1, 1, 200, 100), ("dog", 0, 5, 5, 5, 9)
CAT_TEXT = "7 0.3 0.45 0.5 0.5\n"


def add_image(folder, name, *objects, suffix=".jpg", xml=None):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "JPEGImages" / (name + suffix)).write_bytes(b"picture")
    body = ""
    for label, difficult, *edges in objects:
        box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))
        part = "<part><name>head</name><bndbox/></part>"
        body += f"<object><name>{label}</name>{part}<difficult>{difficult}</difficult>"
        body += f"<bndbox>{box}</bndbox></object>"
    text = f"<annotation><size><width>200</width><height>100</height></size>{body}</annotation>"
    (folder / "Annotations" / f"{name}.xml").write_text(text if xml is None else xml)


def add_set(folder, name, *images):
    (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{image}\n" for image in images))


@pytest.fixture
def devkit(tmp_path):
    root = tmp_path / "VOCdevkit"
    for year in ("2007", "2012"):
        folder = root / f"VOC{year}"
        for index in range(3):
            add_image(folder, f"{year}_{index}", CAT, HARD_DOG)
        add_set(folder, "train", f"{year}_0")
        add_set(folder, "val", f"{year}_1")
        add_set(folder, "cat_train", f"{year}_0  1")
    add_set(root / "VOC2007", "test", "2007_2")
    return root


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_of(path):
    return [Path(line).stem for line in path.read_text().splitlines()]


def test_lists_of_the_devkit(devkit):
    voc_label.convert(devkit, names=NAMES)
    assert names_of(devkit / "train.txt") == ["2007_0", "2007_1", "2012_0", "2012_1"]
    assert names_of(devkit / "train.all.txt") == ["2007_0", "2007_1", "2007_2", "2012_0", "2012_1"]
    assert names_of(devkit / "2007_test.txt") == ["2007_2"] and not (devkit / "2007_cat_train.txt").exists()
    images = data.read_image_list(devkit / "2012_train.txt")
    assert images == [devkit / "VOC2012" / "JPEGImages" / "2012_0.jpg"]
    assert data.label_path(images[0]).read_text() == CAT_TEXT
    settings = dict(line.split(" = ") for line in (devkit / "voc.data").read_text().splitlines())
    assert settings["classes"] == "20" and Path(settings["names"]).read_text().split() == NAMES
    assert (settings["train"], settings["valid"]) == (f"{devkit}/train.txt", f"{devkit}/2007_test.txt")


def test_difficult_list_goes_with_the_image_list(devkit):
    voc_label.convert(devkit, names=NAMES)
    difficult = data.read_image_list(devkit / "difficult_2007_test.txt")
    assert [path.stem for path in difficult] == names_of(devkit / "2007_test.txt")
    assert data.label_path(difficult[0]).read_text().split()[0] == "11"
    counts, _ = voc_label.convert(devkit, names=NAMES, keep_difficult=True)
    assert data.read_labels(data.label_path(difficult[0])).shape == (0, 5) and counts.boxes["dog"] == 5
    labels = data.read_labels(data.label_path(data.read_image_list(devkit / "2007_test.txt")[0]))
    assert labels[:, 0].tolist() == [7, 11]


def test_second_run_changes_nothing(devkit):
    voc_label.convert(devkit, names=NAMES)
    before = files_of(devkit)
    voc_label.convert(devkit, names=NAMES)
    assert files_of(devkit) == before


def test_out_leaves_the_source_alone(devkit, tmp_path, monkeypatch):
    before = files_of(devkit)
    voc_label.convert(devkit, tmp_path / "linked", names=NAMES)

    def no_links(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    voc_label.convert(devkit, tmp_path / "copied", names=NAMES)
    assert files_of(devkit) == before
    for name in ("linked", "copied"):
        images = data.read_image_list(tmp_path / name / "train.txt")
        assert all(path.read_bytes() == b"picture" and tmp_path / name in path.parents for path in images)
        assert data.read_labels(data.label_path(images[0])).shape == (1, 5)
    assert (tmp_path / "linked" / "VOC2007" / "JPEGImages").is_symlink()


def test_what_is_wrong_is_named_and_left_out(tmp_path):
    folder = tmp_path / "mine"
    add_image(folder, "good", CAT, FLAT, ("unicorn", 0, 1, 1, 9, 9), suffix=".png")
    add_image(folder, "broken", xml="<annotation><size>")
    add_image(folder, "nosize", CAT, xml="<annotation/>")
    add_image(folder, "gone", CAT)
    (folder / "JPEGImages" / "gone.jpg").unlink()
    add_image(folder, "negative")
    add_set(folder, "train", "good", "broken", "nosize", "gone", "negative")
    converter, lists = voc_label.convert(folder, names=NAMES)
    assert [path.name for path in lists["train"]] == ["good.png", "negative.jpg"]
    assert (folder / "labels" / "good.txt").read_text() == CAT_TEXT
    assert (folder / "labels" / "negative.txt").read_text() == "" and converter.other_names == {"unicorn": 1}
    places = [Path(problem.split(":")[0]).stem for problem in converter.problems]
    assert places == ["good", "broken", "nosize", "gone"]
    assert "object 2 (dog): found a box of zero size" in converter.problems[0]
    summary = "\n".join(voc_label.report(converter, lists))
    assert "4 problems" in summary and "not a class: unicorn, 1 objects" in summary
    assert converter.problems[0] in summary


def test_chosen_sets_and_names(devkit):
    _, lists = voc_label.convert(devkit, wanted=["2012_train"], names=["dog", "cat"])
    assert list(lists) == ["2012_train", "train", "train.all"]
    assert (devkit / "VOC2012" / "labels" / "2012_0.txt").read_text().startswith("1 ")
    assert names_of(devkit / "2012_train.txt") == ["2012_0"]
    # a set of one class has a second column: "2012_0  1"
    _, lists = voc_label.convert(devkit, wanted=["2012_cat_train"], names=NAMES)
    assert [path.stem for path in lists["2012_cat_train"]] == ["2012_0"]
    converter, _ = voc_label.convert(devkit, names="auto")
    assert converter.names == ["cat", "dog"]
    with pytest.raises(ValueError, match="found no set 2010_val"):
        voc_label.convert(devkit, wanted=["2010_val"], names=NAMES)


def test_command_line(devkit, tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)

    done = run(devkit, "--out", tmp_path / "out", "--sets", "2007_train", "2007_val")
    assert done.returncode == 0 and "2 boxes, 2 difficult" in done.stdout
    failed = run(tmp_path / "out")
    assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1 and "no VOC folder" in failed.stderr
    assert run(devkit, "--names", tmp_path / "none").returncode == 1


@needs_shared
def test_labels_as_darknet_byte_for_byte(tmp_path):
    voc_label.convert(SHARED / "datasets" / "voc2012_100" / "VOCdevkit", tmp_path, names=NAMES)
    for golden_name, expected in (("labels", 100), ("difficult", 23)):
        golden = sorted((SHARED / "golden" / "voc2012_100" / golden_name).glob("*.txt"))
        written = {path.name: path for path in (tmp_path / "VOC2012" / golden_name).glob("*.txt")}
        assert len(golden) == expected and len(written) == 100
        assert all(written.pop(path.name).read_bytes() == path.read_bytes() for path in golden)
        assert all(path.read_bytes() == b"" for path in written.values())
    paths = data.read_image_list(tmp_path / "train.txt")
    assert len(paths) == 100 and data.load_image(paths[0]).ndim == 3


@needs_shared
def test_blood_cells(tmp_path):
    names = ["RBC", "WBC", "Platelets"]
    converter, lists = voc_label.convert(SHARED / "datasets" / "bccd" / "BCCD", tmp_path, names=names)
    assert {name: len(paths) for name, paths in lists.items()} == {"test": 72, "train": 205, "trainval": 292, "val": 87}
    assert sum(converter.boxes.values()) == 4888 - 2 and len(converter.problems) == 2
    assert "trainval.txt\nvalid" in (tmp_path / "voc.data").read_text()
