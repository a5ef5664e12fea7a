"""VOC and COCO conversion against label text of Darknet (golden/voc2012_100), small data sets made
by hand, hostile files, and the download of VOC."""
# ruff: noqa: F401, F811 (a fixture of another file)

import hashlib
import io
import json
import tarfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from test_files import server

from yolov4 import data, labels
from yolov4.cfg import read_data, read_names
from yolov4.labels import EDGES, VOC_NAMES, convert_coco, convert_voc, guess_format

# name, difficult, xmin, ymin, xmax, ymax in an image of 200 x 100
CAT, HARD_DOG = ("cat", 0, 11, 21, 111, 71), ("dog", 1, 1, 1, 200, 100)
FLAT, TEXT = ("dog", 0, 5, 5, 5, 9), ("dog", 0, "a", 5, 5, 9)
CAT_TEXT = "7 0.3 0.45 0.5 0.5\n"


def add_image(folder, name, *objects, suffix=".jpg", xml=None):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "JPEGImages" / (name + suffix)).write_bytes(b"picture")
    body = ""
    for label, difficult, *edges in objects:
        box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(EDGES, edges, strict=True))
        part = "<part><name>head</name><bndbox/></part>"
        body += f"<object><name>{label}</name>{part}<difficult>{difficult}</difficult>"
        body += f"<bndbox>{box}</bndbox></object>"
    text = f"<annotation><size><width>200</width><height>100</height></size>{body}</annotation>"
    (folder / "Annotations" / f"{name}.xml").write_text(text if xml is None else xml)


def add_set(folder, name, *images):
    (folder / f"ImageSets/Main/{name}.txt").write_text("".join(f"{image}\n" for image in images))


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


def stems(path):
    return [Path(line).stem for line in path.read_text().splitlines()]


def test_lists_of_the_devkit(devkit):
    convert_voc(devkit)
    assert stems(devkit / "train.txt") == ["2007_0", "2007_1", "2012_0", "2012_1"]
    assert stems(devkit / "train.all.txt") == ["2007_0", "2007_1", "2007_2", "2012_0", "2012_1"]
    assert not (devkit / "2007_cat_train.txt").exists()
    images = data.read_image_list(devkit / "2012_train.txt")
    assert images == [devkit / "VOC2012/JPEGImages/2012_0.jpg"]
    assert data.label_path(images[0]).read_text() == CAT_TEXT
    settings = read_data(devkit / "voc.data")
    assert read_names(settings["names"]) == VOC_NAMES and settings["classes"] == "20"
    assert [Path(settings[key]).stem for key in ("train", "valid")] == ["train", "2007_test"]
    before = files_of(devkit)
    convert_voc(devkit)
    assert files_of(devkit) == before  # a second run changes nothing


def test_difficult_list_goes_with_the_image_list(devkit):
    convert_voc(devkit)
    difficult = data.read_image_list(devkit / "difficult_2007_test.txt")
    assert [path.stem for path in difficult] == stems(devkit / "2007_test.txt")
    assert data.label_path(difficult[0]).read_text().split()[0] == "11"
    assert convert_voc(devkit, keep_difficult=True).boxes["dog"] == 5
    assert data.read_labels(data.label_path(difficult[0])).shape == (0, 5)
    (image,) = data.read_image_list(devkit / "2007_test.txt")
    assert data.read_labels(data.label_path(image))[:, 0].tolist() == [7, 11]


@pytest.mark.parametrize("links", [True, False])
def test_out_leaves_the_source_alone(devkit, tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(Path, "symlink_to", Mock(side_effect=OSError))
    before = files_of(devkit)
    convert_voc(devkit, tmp_path / "out")
    assert files_of(devkit) == before
    images = data.read_image_list(tmp_path / "out/train.txt")
    assert all(tmp_path / "out" in path.parents for path in images)
    assert images[0].read_bytes() == b"picture"
    assert data.read_labels(data.label_path(images[0])).shape == (1, 5)


def test_what_is_wrong_is_named_and_left_out(tmp_path):
    folder = tmp_path / "mine"
    add_image(folder, "good", CAT, FLAT, ("unicorn", 0, 1, 1, 9, 9), suffix=".png")
    add_image(folder, "broken", xml="<annotation><size>")
    add_image(folder, "nosize", CAT, xml="<annotation/>")
    add_image(folder, "gone", CAT)
    (folder / "JPEGImages/gone.jpg").unlink()
    add_image(folder, "negative")
    add_image(folder, "edge", TEXT, CAT)
    for name in ("evil.jpg", "evil.xml"):
        (tmp_path / name).write_text("<a><size><width>9</width><height>9</height></size></a>")
    sets = "good", "broken", "nosize", "gone", "negative", "../../evil", "edge"
    add_set(folder, "train", *sets)
    found = convert_voc(folder)
    assert [path.name for path in found.lists["train"]] == ["good.png", "negative.jpg", "edge.jpg"]
    assert (folder / "labels/edge.txt").read_text() == CAT_TEXT
    assert not (tmp_path / "evil.txt").exists()
    assert (folder / "labels/good.txt").read_text() == CAT_TEXT
    assert (folder / "labels/negative.txt").read_text() == ""
    assert found.other_names == {"unicorn": 1}
    places = [Path(problem.split(":")[0]).stem for problem in found.problems]
    assert places == ["good", "broken", "nosize", "gone", "evil", "edge"]
    assert set(found.problems) <= set(found.report())


def test_xml_with_entities_is_refused(tmp_path):
    text = "<annotation><size><width>9</width><height>9</height></size></annotation>"
    (tmp_path / "a.xml").write_text(f'<!DOCTYPE a [<!ENTITY e "h">]>{text}')
    with pytest.raises(ValueError, match=r"a\.xml: "):
        labels.read_annotation(tmp_path / "a.xml")


def test_chosen_sets_and_names(devkit):
    found = convert_voc(devkit, sets=["2012_train"], names=["dog", "cat"])
    assert list(found.lists) == ["2012_train", "train", "train.all"]
    assert (devkit / "VOC2012/labels/2012_0.txt").read_text().startswith("1 ")
    found = convert_voc(devkit, sets=["2012_cat_train"])  # its lines have a second column
    assert [path.stem for path in found.lists["2012_cat_train"]] == ["2012_0"]
    assert convert_voc(devkit, names="auto").names == ["cat", "dog"]
    for folder, sets in ((devkit, ["2010_val"]), (devkit / "VOC2007/JPEGImages", None)):
        with pytest.raises(ValueError, match="found no set"):
            convert_voc(folder, sets=sets)


def test_labels_as_darknet_byte_for_byte(shared, tmp_path):
    convert_voc(shared / "datasets/voc2012_100/VOCdevkit", tmp_path)
    for kind, expected in (("labels", 100), ("difficult", 23)):
        golden = sorted((shared / "golden/voc2012_100" / kind).glob("*.txt"))
        written = {path.name: path for path in (tmp_path / "VOC2012" / kind).glob("*.txt")}
        assert len(golden) == expected and len(written) == 100
        assert all(written.pop(path.name).read_bytes() == path.read_bytes() for path in golden)
        assert all(path.read_bytes() == b"" for path in written.values())


def test_blood_cells(shared, tmp_path):
    found = convert_voc(shared / "datasets/bccd/BCCD", tmp_path, names=["RBC", "WBC", "Platelets"])
    counts = {name: len(paths) for name, paths in found.lists.items()}
    assert counts == {"test": 72, "train": 205, "trainval": 292, "val": 87}
    assert sum(found.boxes.values()) == 4888 - 2 and len(found.problems) == 2


BOX = {"image_id": 7, "category_id": 17, "bbox": [20, 10, 100, 50], "iscrowd": 0}
BOX_TEXT = "0 0.35 0.35 0.5 0.5\n"  # in an image of 200 x 100
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]  # 17 comes first


def image(number, name):
    return {"id": number, "file_name": name, "width": 200, "height": 100}


def add_coco(root, name, images, annotations, categories=CATEGORIES, folder=None):
    """annotations/instances_NAME.json, and the pictures in NAME or `folder`"""
    path = root / f"annotations/instances_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(dataset))
    for entry in images:
        picture = root / (folder or name) / entry["file_name"]
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(b"picture")
    return path


def test_cocos_own_layout(tmp_path):
    root = tmp_path / "COCO"
    images = [image(7, "7.jpg"), image(8, "8.jpg")]
    add_coco(root, "train2017", images, [BOX, {**BOX, "iscrowd": 1}])
    add_coco(root, "val2017", [image(7, "9.jpg")], [{**BOX, "category_id": 18}])
    before = set(root.rglob("*"))
    assert guess_format([root]) == "coco" and guess_format([tmp_path]) == "voc"
    found = convert_coco([root], tmp_path / "out")
    assert set(root.rglob("*")) == before  # the source stays as it is
    lists = [data.read_image_list(tmp_path / f"out/{name}.txt") for name in found.lists]
    assert [[path.name for path in each] for each in lists] == [["7.jpg", "8.jpg"], ["9.jpg"]]
    assert lists[0][0].samefile(root / "train2017/7.jpg")
    texts = [data.label_path(path).read_text() for each in lists for path in each]
    assert texts == [BOX_TEXT, "", BOX_TEXT.replace("0 ", "1 ", 1)]  # an empty image is listed
    assert found.boxes == {"cat": 1, "dog": 1} and not found.problems
    assert "2 boxes; 1 crowds left out" in found.report()
    options = read_data(tmp_path / "out/coco.data")
    assert read_names(options["names"]) == ["cat", "dog"]
    assert [Path(options[key]).stem for key in ("train", "valid")] == ["train2017", "val2017"]


@pytest.mark.parametrize(("folder", "file_name"), [
    ("images", "a.jpg"), ("images/default", "a.jpg"), (".", "images/a.jpg"), (".", "sub/a.jpg"),
    ("default", "images/a.jpg"), (".", "images\\x/a.jpg"),
])  # fmt: skip
def test_exports_of_other_tools(tmp_path, folder, file_name):
    """Of CVAT and Label Studio: the label is where training looks for it."""
    name = file_name.replace("\\", "/")
    path = add_coco(tmp_path / "in", "default", [image(7, name)], [BOX], folder=folder)
    path.write_text(path.read_text().replace(name, file_name.replace("\\", "\\\\")))
    if folder == "default":
        (tmp_path / "in/default/images/a.jpg").rename(tmp_path / "in/default/a.jpg")
    before = sorted((tmp_path / "in").rglob("*"))
    convert_coco([path], tmp_path / "images/out")
    (listed,) = data.read_image_list(tmp_path / "images/out/default.txt")
    assert listed.read_bytes() == b"picture" and data.label_path(listed).read_text() == BOX_TEXT
    assert sorted((tmp_path / "in").rglob("*")) == before  # nothing is written through the link


def test_roboflows_folders_and_categories_by_name(tmp_path):
    """Sets are called as their folders; a category has another number in each file."""
    other = [{"id": 17, "name": "dog"}, {"id": 30, "name": "owl"}]
    for folder, categories in (("train", CATEGORIES), ("valid", other)):
        images = [image(7, "7.jpg")]
        path = add_coco(tmp_path, "x", images, [BOX], categories, folder=f"in/{folder}")
        path.rename(tmp_path / "in" / folder / labels.EXPORT)
    found = convert_coco([tmp_path / "in"], tmp_path / "out")
    assert found.names == ["cat", "dog", "owl"]
    texts = [data.label_path(found.lists[name][0]).read_text() for name in ("train", "valid")]
    assert [text[0] for text in texts] == ["0", "1"]
    found = convert_coco([tmp_path / "in"], tmp_path / "out", names=["dog"])
    assert found.other_names == {"cat": 1} and found.boxes == {"dog": 1}


BAD_NAMES = [
    "a.png", "../../evil.jpg", "images/../../evil.jpg", "/etc/evil.jpg", "C:\\evil.jpg", 3, "",
    "b\n/etc/passwd", "b\0.jpg", "\ud800.jpg", "b" * 300, "gone.jpg",
]  # fmt: skip
BAD_IMAGES = [{"id": []}, {"id": 7}, {"width": 0}, {"height": float("nan")}, {"width": 10**400}]
BAD_IMAGES += [{"file_name": name} for name in BAD_NAMES]
BAD_BOXES = [{"image_id": 9}, {"image_id": [7]}, {"category_id": 3}, {"category_id": {}}]
BAD_BOXES += [{"bbox": box} for box in (
    None, [1, 2, 0, 5], [1, 2, 5, -5], [200, 2, 5, 5], [-5, 2, 5, 5], [1, 2, 5],
    [1, 2, float("nan"), 5], [1, 2, 10**400, 5],
)]  # fmt: skip


@pytest.mark.parametrize("changes", BAD_IMAGES, ids=lambda changes: repr(changes)[:30])
def test_an_image_that_cannot_be_used_is_left_out_with_its_boxes(tmp_path, changes):
    images, boxes = [image(7, "a.jpg"), image(8, "b.jpg")], [BOX, {**BOX, "image_id": 8}]
    path = add_coco(tmp_path / "deep/COCO", "train", images, boxes)
    for name in ("evil.jpg", "deep/evil.jpg"):
        (tmp_path / name).write_bytes(b"picture")
    images[1] |= changes
    dataset = {"images": images, "annotations": boxes, "categories": CATEGORIES}
    path.write_text(json.dumps(dataset))
    found = convert_coco([tmp_path / "deep/COCO"], tmp_path / "deep/out")
    assert [each.name for each in found.lists["train"]] == ["a.jpg"] and found.problems
    assert all("\n" not in problem for problem in found.problems)
    assert not [*tmp_path.glob("*.txt"), *tmp_path.glob("deep/*.txt")]


@pytest.mark.parametrize("changes", BAD_BOXES, ids=lambda changes: repr(changes)[:30])
def test_a_box_that_cannot_be_used_is_named_and_left_out(tmp_path, changes):
    path = add_coco(tmp_path, "train", [image(7, "a.jpg")], [{**BOX, **changes}, BOX])
    found = convert_coco([tmp_path], tmp_path / "out")
    assert len(found.problems) == 1 and found.problems[0].startswith(f"{path}: annotation 1: ")
    assert data.label_path(found.lists["train"][0]).read_text() == BOX_TEXT


def test_voc_is_downloaded_from_the_mirror_and_unpacked(server, tmp_path, monkeypatch):
    from torchvision.datasets import voc

    table, archives, source = {}, {}, tmp_path / "source"
    for key, (folder, name, _) in labels.ARCHIVES.items():
        add_image(source / folder, f"{key}_0", CAT)
        add_set(source / folder, name, f"{key}_0")
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for part in (f"JPEGImages/{key}_0.jpg", f"Annotations/{key}_0.xml", "ImageSets"):
                tar.add(source / folder / part, f"VOCdevkit/{folder}/{part}")
        content = server.files[f"{key}.tar"] = stream.getvalue()
        archives[key] = folder, name, len(content)
        md5 = hashlib.md5(content).hexdigest()
        table[key] = {"url": server.address + "gone", "filename": f"{key}.tar", "md5": md5}
    monkeypatch.setattr(voc, "DATASET_YEAR_DICT", table)
    monkeypatch.setattr(labels, "ARCHIVES", archives)
    monkeypatch.setattr(labels, "MIRROR", server.address)
    for _ in range(2):
        labels.download_voc(tmp_path)
    assert [name for name, _ in server.asked[1::2]] == [f"{key}.tar" for key in archives]
    devkit = tmp_path / "VOCdevkit"
    for archive in devkit.glob("*.tar"):
        archive.unlink()
    labels.download_voc(devkit)
    assert len(server.asked) == 6  # what is there is not downloaded again
    convert_voc(tmp_path)
    assert (devkit / "VOC2007/labels/2007-test_0.txt").read_text() == CAT_TEXT
