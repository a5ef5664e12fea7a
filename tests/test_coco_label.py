"""The COCO tool: there and back with real labels, a small COCO made by hand, and hostile files.
Source of what is expected: cocodataset.org (format-data), and the package's own readers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from yolov4 import data
from yolov4.blueprint import project_files
from yolov4.cfg import read_data, read_names
from yolov4.coco import CATEGORIES, json_truths, labelled_truths
from yolov4.decoding import Detections
from yolov4.result import Record

SCRIPT = ROOT / "data" / "coco" / "coco_label.py"
spec = importlib.util.spec_from_file_location("coco_label", SCRIPT)
coco_label = importlib.util.module_from_spec(spec)
spec.loader.exec_module(coco_label)

CAT = {"image_id": 7, "category_id": 17, "bbox": [20, 10, 100, 50], "iscrowd": 0, "segmentation": [[0, 1]]}
CAT_TEXT = "0 0.35 0.35 0.5 0.5\n"  # in an image of 200 x 100
CATEGORY = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]  # 17 comes first


def image(number, name, width=200, height=100):
    return {"id": number, "file_name": name, "width": width, "height": height}


def add_set(root, name, images, annotations, categories=CATEGORY, folder=None):
    """annotations/instances_NAME.json, and the pictures in NAME or `folder`"""
    path = root / "annotations" / f"instances_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    for entry in images:
        picture = root / (folder or name) / entry["file_name"]
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(b"picture")
    return path


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "COCO"
    add_set(root, "train2017", [image(7, "7.jpg"), image(8, "8.jpg")], [CAT, {**CAT, "iscrowd": 1}])
    add_set(root, "val2017", [image(7, "9.jpg")], [{**CAT, "category_id": 18}])
    return root


def test_labels_to_json_and_back_are_the_same(shared, tmp_path):
    material = shared / "datasets" / "coco128_val"
    names = read_names(material / "coco.names")
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    pictures = sorted((material / "images").glob("*.jpg"))
    records = []
    for picture in pictures:
        rows = torch.from_numpy(data.read_labels(data.label_path(picture)))
        size = cv2.imread(str(picture)).shape[1::-1]
        records.append(Record(picture, size, nothing, rows, torch.zeros(0, 5)))
    dataset = labelled_truths(records, names).dataset
    (tmp_path / "val.json").write_text(json.dumps(dataset))
    converter, lists = coco_label.convert([tmp_path / "val.json"], tmp_path / "out", images=material / "images")
    assert not converter.problems and converter.names == names and len(lists["val"]) == len(pictures) == 128
    for listed, record in zip(data.read_image_list(tmp_path / "out/val.txt"), records, strict=True):
        assert listed.samefile(record.path)
        np.testing.assert_allclose(data.read_labels(data.label_path(listed)), record.labels.numpy(), rtol=0, atol=1e-6)
    options = read_data(tmp_path / "out/coco.data")
    report = data.inspect(data.read_image_list(options["train"]), read_names(options["names"]), (416, 416))
    assert sum(report.boxes.values()) == len(dataset["annotations"]) and data.NO_LABELS not in report.findings


def test_cocos_own_layout_is_found(coco, tmp_path):
    before = set(coco.rglob("*"))
    converter, lists = coco_label.convert([coco], tmp_path / "out")
    assert set(coco.rglob("*")) == before  # the source stays as it is
    train, val = (data.read_image_list(tmp_path / f"out/{name}.txt") for name in ("train2017", "val2017"))
    assert [path.name for path in train] == ["7.jpg", "8.jpg"] and [path.name for path in val] == ["9.jpg"]
    assert train[0].samefile(coco / "train2017/7.jpg")
    texts = [data.label_path(path).read_text() for path in (*train, *val)]
    assert texts == [CAT_TEXT, "", CAT_TEXT.replace("0 ", "1 ", 1)]  # an image without boxes is in the list
    assert (converter.crowds, converter.boxes, converter.problems) == (1, {"cat": 1, "dog": 1}, [])
    assert "2 boxes; 1 crowds left out" in coco_label.report(converter, lists)
    assert read_names(tmp_path / "out/coco.names") == ["cat", "dog"]
    options = read_data(tmp_path / "out/coco.data")
    assert [Path(options[key]).stem for key in ("train", "valid")] == ["train2017", "val2017"]
    truths = coco / "annotations/instances_val2017.json"
    assert f"--coco-json {truths}" in (tmp_path / "out/coco.data").read_text()
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    record = Record(val[0], (200, 100), nothing, torch.zeros(0, 5), torch.zeros(0, 5))
    assert json_truths(truths, [record], ["cat", "dog"]).image_ids == [7]


def test_cocos_categories_are_dense_and_cfg_names_what_is_written(tmp_path):
    root, categories = tmp_path / "COCO", [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    boxes = [{**CAT, "category_id": number} for number in (90, 1, 12 + 1)]
    add_set(root, "train2017", [image(7, "7.jpg")], boxes, categories[::-1])
    add_set(root, "val2017", [image(7, "7.jpg")], [], categories)
    coco_label.convert([root], tmp_path / "data/coco")
    label = data.label_path(data.read_image_list(tmp_path / "data/coco/train2017.txt")[0])
    assert data.read_labels(label)[:, 0].tolist() == [79, 0, 11]
    options = dict(line.split("=") for line in project_files()["coco.data"].splitlines())
    assert all((tmp_path / options[key]).exists() for key in ("train", "valid", "names"))
    assert len(read_names(tmp_path / options["names"])) == int(options["classes"]) == 80


@pytest.mark.parametrize(("folder", "file_name"), [
    ("images", "a.jpg"), ("images/default", "a.jpg"), (".", "images/a.jpg"), (".", "sub/a.jpg"),
    ("default", "images/a.jpg"), (".", "images\\x/a.jpg"),
])  # fmt: skip
def test_exports_of_other_tools(tmp_path, folder, file_name):
    """CVAT, Label Studio: the label is where training looks for it, and nothing is written through the link"""
    name = file_name.replace("\\", "/")
    path = add_set(tmp_path / "in", "default", [image(7, name)], [CAT], folder=folder)
    path.write_text(path.read_text().replace(name, file_name.replace("\\", "\\\\")))
    if folder == "default":
        (tmp_path / "in/default/images/a.jpg").rename(tmp_path / "in/default/a.jpg")
    before = sorted((tmp_path / "in").rglob("*"))
    _, lists = coco_label.convert([path], tmp_path / "images/out")
    (listed,) = data.read_image_list(tmp_path / "images/out/default.txt")
    assert [listed] == lists["default"] and listed.read_bytes() == b"picture"
    assert data.label_path(listed).read_text() == CAT_TEXT and sorted((tmp_path / "in").rglob("*")) == before


def test_roboflows_folders_and_categories_by_name(tmp_path):
    """the sets are called as their folders; a category has another number in each file"""
    for folder, categories in (("train", CATEGORY), ("valid", [{"id": 17, "name": "dog"}, {"id": 30, "name": "owl"}])):
        path = add_set(tmp_path, "x", [image(7, "7.jpg")], [CAT], categories, folder=f"in/{folder}")
        path.rename(tmp_path / "in" / folder / "_annotations.coco.json")
    converter, lists = coco_label.convert([tmp_path / "in"], tmp_path / "out")
    assert converter.names == ["cat", "dog", "owl"]
    assert [data.label_path(lists[name][0]).read_text()[0] for name in ("train", "valid")] == ["0", "1"]
    assert f"valid = {tmp_path}/out/valid.txt" in (tmp_path / "out/coco.data").read_text()
    converter, _ = coco_label.convert([tmp_path / "in"], tmp_path / "out", names=["dog"])
    assert converter.other_names == {"cat": 1} and converter.boxes == {"dog": 1}


WRONG_IMAGES = [
    ({"id": "8"}, "found id '8'"), ({"id": True}, "found id 'True'"), ({"id": 7}, "id 7, b.jpg a second time"),
    ({"file_name": "a.png"}, "id 8, a.png a second time"), ({"file_name": "../../evil.jpg"}, "'../../evil.jpg'"),
    ({"file_name": "images/../../evil.jpg"}, "evil.jpg"), ({"file_name": "/etc/evil.jpg"}, "'/etc/evil.jpg'"),
    ({"file_name": "C:\\evil.jpg"}, "evil.jpg"), ({"file_name": "b\n/etc/passwd"}, "file_name"),
    ({"file_name": "b\0.jpg"}, "file_name"), ({"file_name": "\ud800.jpg"}, "file_name"), ({"file_name": 3}, "'3'"),
    ({"file_name": "b" * 201}, "file_name"), ({"file_name": ""}, "file_name ''"), ({"width": 0}, "a size of (0, 100)"),
    ({"height": float("nan")}, "a size of (200, nan)"), ({"width": 10**400}, "a size"), ({"width": "9"}, "a size"),
    ({"file_name": "gone.jpg"}, "gone.jpg: found no such image"),
]  # fmt: skip
WRONG_BOXES = [
    ({"image_id": 9}, "image_id '9', which no image has"), ({"image_id": [7]}, "image_id '[7]'"),
    ({"category_id": 3}, "category_id '3', which no category has"), ({"category_id": {}}, "category_id '{}'"),
    ({"bbox": [1, 2, 0, 5]}, "a box of zero size"), ({"bbox": [1, 2, 5, -5]}, "a box of zero size"),
    ({"bbox": [200, 2, 5, 5]}, "a box outside the image"), ({"bbox": [-5, 2, 5, 5]}, "a box outside"),
    ({"bbox": [1, 2, float("nan"), 5]}, "expected four numbers"), ({"bbox": [1, 2, 5]}, "expected four numbers"),
    ({"bbox": [1, 2, 10**400, 5]}, "expected four numbers"), ({"bbox": "1234"}, "expected four numbers"),
    ({"bbox": None}, "bbox None, expected"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG_IMAGES, ids=lambda value: str(value)[:30])
def test_an_image_that_cannot_be_used_is_left_out_with_its_boxes(tmp_path, changes, message):
    root = tmp_path / "deep" / "COCO"
    path = add_set(root, "train", [image(7, "a.jpg"), image(8, "b.jpg")], [CAT, {**CAT, "image_id": 8}])
    for name in ("evil.jpg", "deep/evil.jpg"):
        (tmp_path / name).write_bytes(b"picture")
    dataset = json.loads(path.read_text())
    dataset["images"][1] |= changes
    path.write_text(json.dumps(dataset))
    converter, lists = coco_label.convert([root], tmp_path / "deep/out")
    assert [each.name for each in lists["train"]] == ["a.jpg"] and message in converter.problems[0]
    assert not [*tmp_path.glob("*.txt"), *tmp_path.glob("deep/*.txt")]
    assert data.read_image_list(tmp_path / "deep/out/train.txt") == lists["train"]


@pytest.mark.parametrize(("changes", "message"), WRONG_BOXES, ids=lambda value: str(value)[:30])
def test_a_box_that_cannot_be_used_is_named_and_left_out(tmp_path, changes, message):
    add_set(tmp_path, "train", [image(7, "a.jpg")], [{**CAT, **changes}, CAT])
    converter, lists = coco_label.convert([tmp_path], tmp_path / "out")
    assert len(converter.problems) == 1 and message in converter.problems[0]
    assert "annotation 1: found" in converter.problems[0] and "\n" not in converter.problems[0]
    assert data.label_path(lists["train"][0]).read_text() == CAT_TEXT
    assert "1 problems in all" in coco_label.report(converter, lists)[-2]


@pytest.mark.parametrize(("text", "message"), [
    ("no JSON", "found no COCO JSON"), ("[]", "found no COCO JSON"), ('{"images": []}', "found no COCO JSON"),
    ('{"images": {}, "annotations": [], "categories": []}', "no lists of objects"), ("[" * 100000, "found no COCO"),
    ('{"images": [3], "annotations": [], "categories": []}', "no lists of objects"), ("\udcff", "found no COCO JSON"),
    ('{"images": [], "annotations": [], "categories": []}', "found none of the 0 images"),
    ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "category 1: found id '1', name 'None'"),
    ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "category 2"),
    ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a\\nb"}]}', "category 1"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"^.*x\.json: |: found none of") as caught:
        coco_label.convert([path], tmp_path / "out")
    assert message in str(caught.value) and len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_command_line(coco, tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)

    files = [coco / f"annotations/instances_{name}2017.json" for name in ("train", "val")]
    done = run(*files, "--images", coco, "--out", tmp_path / "out")
    assert done.returncode == 0 and "train2017.txt             2 images" in done.stdout, done.stderr
    for wrong in ([tmp_path], [files[0], files[0]], [tmp_path / "none.json"], [files[0], "--images", tmp_path / "out"]):
        failed = run(*wrong, "--out", tmp_path / "other")
        assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1, failed.stderr
        assert not (tmp_path / "other/coco.data").exists()
