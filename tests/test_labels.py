"""Data sets of all tools -> labels: against label text of Darknet (golden/voc2012_100); one data
set in the layout of each tool, as in ../shared/cases; hostile files; the download of VOC."""
# ruff: noqa: F401, F811 (a fixture of another file)

import hashlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from conftest import draw
from test_files import server

from yolov4 import data, labels
from yolov4.cfg import read_data, read_names
from yolov4.files import CONFIGS
from yolov4.labels import EDGES, convert

VOC_NAMES = read_names(CONFIGS / "voc.names")

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


@pytest.mark.parametrize("links", [True, False])
def test_lists_of_the_devkit(devkit, tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(Path, "symlink_to", Mock(side_effect=OSError))
    source, out = files_of(devkit), tmp_path / "out"
    found = convert([tmp_path], out)
    assert files_of(devkit) == source  # only read
    assert stems(out / "train.txt") == ["2007_0", "2007_1", "2012_0", "2012_1"]
    assert stems(out / "train.all.txt") == ["2007_0", "2007_1", "2007_2", "2012_0", "2012_1"]
    assert not (out / "2007_cat_train.txt").exists()
    images = data.read_image_list(out / "2012_train.txt")
    assert images == [out / "VOCdevkit/VOC2012/JPEGImages/2012_0.jpg"]
    assert images[0].read_bytes() == b"picture"
    assert data.label_path(images[0]).read_text() == CAT_TEXT
    settings = read_data(found.data)
    assert read_names(settings["names"]) == VOC_NAMES and settings["classes"] == "20"
    assert [Path(settings[key]).stem for key in ("train", "valid")] == ["train", "2007_test"]
    before = files_of(out)
    convert([tmp_path], out)
    assert files_of(out) == before  # a second run changes nothing


def test_difficult_list_goes_with_the_image_list(devkit, tmp_path):
    out = tmp_path / "out"
    found = convert([devkit], out)
    difficult = data.read_image_list(out / "difficult_2007_test.txt")
    assert [path.stem for path in difficult] == stems(out / "2007_test.txt")
    assert data.label_path(difficult[0]).read_text().split()[0] == "11"
    assert len(found.problems["difficult objects, kept apart"]) == 5
    assert convert([devkit], out, keep_difficult=True).boxes["dog"] == 5
    assert data.read_labels(data.label_path(difficult[0])).shape == (0, 5)
    (image,) = data.read_image_list(out / "2007_test.txt")
    assert data.read_labels(data.label_path(image))[:, 0].tolist() == [7, 11]


def test_what_is_wrong_is_named_and_left_out(tmp_path):
    folder = tmp_path / "mine"
    add_image(folder, "good", CAT, FLAT, ("unicorn", 0, 1, 1, 9, 9), suffix=".PNG")
    add_image(folder, "broken", xml="<annotation><size>")
    add_image(folder, "nosize", CAT, xml="<annotation/>")  # and its image is no picture
    add_image(folder, "gone", CAT)
    (folder / "JPEGImages/gone.jpg").unlink()
    add_image(folder, "negative")
    add_image(folder, "edge", TEXT, CAT)
    for name in ("evil.jpg", "evil.xml"):
        (tmp_path / name).write_text("<a><size><width>9</width><height>9</height></size></a>")
    sets = "good", "broken", "nosize", "gone", "negative", "../../evil", "edge"
    add_set(folder, "train", *sets)
    found = convert([folder], tmp_path / "out", names=VOC_NAMES)
    listed = [path.name for path in found.objects]
    assert listed == ["good.PNG", "negative.jpg", "edge.jpg"]
    texts = [data.label_path(found.place(image)).read_text() for image in found.objects]
    assert texts == [CAT_TEXT, "", CAT_TEXT]
    assert not list(tmp_path.rglob("evil.txt"))
    report = "\n".join(found.report())
    assert all(re.search(rf"[/ ]{name}\b", report) for name in ("broken", "nosize", "gone", "edge"))
    assert "evil" in report and "unicorn (1)" in report


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_entities_is_refused(tmp_path, encoding):
    text = "<annotation><size><width>9</width><height>9</height></size></annotation>"
    text = f'<!DOCTYPE a [<!ENTITY e "h">]>{text}'
    (tmp_path / "a.xml").write_text(text, encoding=encoding)
    with pytest.raises(ValueError, match=r"a\.xml: "):
        labels.read_annotation(tmp_path / "a.xml")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize("text", [
    f"{BOMB}train: .\nnames: *a39", f"{BOMB}train: *a39\nnames: [a]",
    f"{BOMB}path: *a39\ntrain: .\nnames: [a]",
    "train: &a [*a]\nnames: [a]", "train: .\nnames: {0: a, x: b}", f"train: {'[' * 9999}",
    "train: .\nnames: [2020-99-99]",
], ids=range(7))  # fmt: skip
def test_yaml_that_is_no_text_is_one_sentence(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^\S+data\.yaml: [^\n]+$"):
        convert([tmp_path / "data.yaml"], tmp_path / "out")


def test_an_object_whose_name_is_no_line_is_left_out(tmp_path):
    names = (CAT[0] + "\ndog", *CAT[1:]), ("", *CAT[1:])
    add_image(tmp_path / "mine", "a", CAT, *names)
    add_set(tmp_path / "mine", "train", "a")
    found = convert([tmp_path / "mine"], tmp_path / "out")
    assert found.names == [CAT[0]] and "2 objects without a name" in "\n".join(found.report())


def test_xml_beyond_its_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "MAX_XML", 99)
    (tmp_path / "a.xml").write_text(f"<annotation>{' ' * 99}</annotation>")
    with pytest.raises(ValueError, match=r"a\.xml: has more than 99 bytes"):
        labels.read_annotation(tmp_path / "a.xml")


def test_chosen_sets_and_names(devkit, tmp_path):
    out = tmp_path / "out"
    found = convert([devkit], out, sets=["2012_train"], names=["dog", "cat"])
    assert {"train", "valid", "2012_train"} <= set(found.sets) and "2007_train" not in found.sets
    assert (out / "VOC2012/labels/2012_0.txt").read_text().startswith("1 ")
    found = convert([devkit], out, sets=["2012_cat_train"])  # its lines have a second column
    assert [path.stem for path in found.sets["2012_cat_train"]] == ["2012_0"]
    assert convert([devkit], out, names=[]).names == ["cat", "dog"]
    with pytest.raises(ValueError, match="no set 2010_val"):
        convert([devkit], out, sets=["2010_val"])
    with pytest.raises(ValueError, match="no boxes"):
        convert([devkit / "VOC2007/JPEGImages"], out)


def test_labels_as_darknet_byte_for_byte(shared, tmp_path):
    convert([shared / "datasets/voc2012_100/VOCdevkit"], tmp_path)
    for kind, expected in (("labels", 100), ("difficult", 23)):
        golden = sorted((shared / "golden/voc2012_100" / kind).glob("*.txt"))
        written = {path.name: path for path in (tmp_path / "VOC2012" / kind).glob("*.txt")}
        assert len(golden) == expected and len(written) == 100
        assert all(written.pop(path.name).read_bytes() == path.read_bytes() for path in golden)
        assert all(path.read_bytes() == b"" for path in written.values())


def test_blood_cells(shared, tmp_path):
    found = convert([shared / "datasets/bccd/BCCD"], tmp_path)
    counts = {name: len(paths) for name, paths in found.sets.items()}
    assert counts == {"test": 72, "train": 205, "trainval": 292, "val": 87}
    assert found.names == ["Platelets", "RBC", "WBC"]
    assert found.boxes.total() == 4888 - 2 and len(found.problems["boxes of zero size"]) == 2


# one data set in the layouts of many tools: pictures 0..5 for training, 6 and 7 for validation
SIZE, NAMES = (160, 128), ("circle", "square", "Кот (1)")
OBJECTS = ((0, 62, 25, 99, 57), (2, 10, 1, 36, 21), (1, 80, 64, 120, 128))  # class, edges in pixels
RELATIVE = (
    "0 0.503125 0.3203125 0.23125 0.25\n2 0.14375 0.0859375 0.1625 0.15625\n1 0.625 0.75 0.25 0.5\n"
)
YOLO_TEXT = RELATIVE.encode()


def picture(path, number):
    """Every picture has its own colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*SIZE[::-1], 3), 20 * number + 10, np.uint8)
    cv2.imencode(Path(path.name.lower()).suffix.replace("jfif", "jpg"), image)[1].tofile(path)
    return path


def xml(path, size="<width>160</width><height>128</height>", difficult="0"):
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(
        f"<object><name>{NAMES[label]}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(EDGES, edges, strict=True))
        + "</bndbox></object>"
        for label, *edges in OBJECTS
    )
    text = f"<annotation><size>{size}</size>{body}</annotation>"
    path.write_text(text, encoding="utf-8")


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def coco(path, numbers, file_name, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": n, "file_name": file_name.format(n), "width": 160, "height": 128} for n in numbers
    ]
    boxes = [
        {"id": 1, "image_id": n, "category_id": label, "iscrowd": 0,
         "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": []}
        for n in numbers for label, x1, y1, x2, y2 in OBJECTS
    ]  # fmt: skip
    categories = [{"id": n, "name": name, "supercategory": "shape"} for n, name in enumerate(NAMES)]
    for entry in images if changes.get("no_size") else ():
        del entry["width"], entry["height"]
    for entry in boxes if changes.get("outline") else ():
        x, y, w, h = entry.pop("bbox")
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h], [x, y + h]]
    if changes.get("text_ids"):
        for entry in (*images, *boxes):
            entry.update(
                {
                    k: f"{entry[k]:06}"
                    for k in ("id", "image_id")
                    if k in entry and (k != "id" or entry in images)
                }
            )
    categories += changes.get("categories", [])
    dataset = {"images": images, "annotations": boxes, "categories": categories}
    path.write_text(json.dumps(dataset), encoding="utf-8")


def sets(number):
    return "train" if number < 6 else "valid"


def write_layout(root, layout):
    """Writes the data set as a tool exports it."""
    for n in range(8):
        one = sets(n)
        match layout:
            case "voc devkit" | "voc with suffixes" | "cvat voc" | "cvat voc, one set":
                picture(root / f"JPEGImages/my photo ({n}).jpg", n)
                xml(root / f"Annotations/my photo ({n}).xml")
                name = {"voc devkit": {"train": "train", "valid": "val"}[one],
                        "voc with suffixes": {"train": "train", "valid": "test"}[one],
                        "cvat voc": {"train": "Train", "valid": "Validation"}[one],
                        "cvat voc, one set": "default"}[layout]  # fmt: skip
                line = {"voc devkit": "  -1", "voc with suffixes": ".jpg"}.get(layout, "")
                path = root / f"ImageSets/Main/{name}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    file.write(f"my photo ({n}){line}\n")
            case "labelimg voc":
                picture(root / f"IMG_{n}.JPG", n)
                xml(root / f"IMG_{n}.xml", size="<width>160.0</width><height>128.0</height>")
            case "label studio voc":
                picture(root / f"images/{n}.webp", n)
                xml(root / f"Annotations/{n}.xml", size="", difficult="Unspecified")
            case "roboflow voc":
                picture(root / f"{one}/{n}_jpg.rf.0a1b.jpg", n)
                xml(root / f"{one}/{n}_jpg.rf.0a1b.xml", size="<width>0</width><height>0</height>",
                    difficult="")  # fmt: skip
            case "cvat yolo":
                picture(root / f"obj_{one}_data/frame_{n}.PNG", n)
                text(root / f"obj_{one}_data/frame_{n}.txt", YOLO_TEXT)
            case "roboflow darknet":
                picture(root / f"{one}/{n}.jpg", n)
                text(root / f"{one}/{n}.txt", YOLO_TEXT)
                text(root / f"{one}/_darknet.labels", "\n".join(NAMES))
            case "yaml" | "yaml, names by number":
                picture(root / f"{one}/images/{n}.bmp", n)
                text(root / f"{one}/labels/{n}.txt", YOLO_TEXT)
            case "ultralytics":
                picture(root / f"images/{one}/{n}.tif", n)
                text(root / f"labels/{one}/{n}.txt", YOLO_TEXT)
            case "label studio yolo" | "labelimg yolo" | "makesense":
                folders = {"label studio yolo": ("images", "labels"), "labelimg yolo": (".", "."),
                           "makesense": ("photos", "labels_my-project_2024")}[layout]  # fmt: skip
                picture(root / folders[0] / f"{n}.jpeg", n)
                text(root / folders[1] / f"{n}.txt", YOLO_TEXT)
                listed = "labels.txt" if layout == "makesense" else "classes.txt"
                text(root / listed, "\n".join(NAMES).encode("utf-16"))
            case "coco" | "coco roboflow" | _:
                folder = {"coco": f"{one}2017", "coco roboflow": one}.get(layout, "images")
                picture(root / folder / f"{n}.jpg", n)
    match layout:
        case "cvat yolo":
            text(root / "obj.names", "\n".join(NAMES))
            lists = "Train = data/Train.txt\nValidation = data/Validation.txt\n"
            lines = f"classes = 3\n{lists}names = data/obj.names\nbackup = backup/\n"
            text(root / "obj.data", lines)
            for one, name in (("train", "Train"), ("valid", "Validation")):
                lines = [f"data/obj_{one}_data/frame_{n}.PNG\n" for n in range(8) if sets(n) == one]
                text(root / f"{name}.txt", "".join(lines))
        case "yaml":
            names = json.dumps(NAMES, ensure_ascii=False)
            text(root / "data.yaml", f"train: ../train/images\nval: ../valid/images\n"
                 f"test: ../test/images\n\nnc: 3\nnames: {names}\n")  # fmt: skip
        case "yaml, names by number":
            names = "".join(f"  {n}: {name}\n" for n, name in enumerate(NAMES))
            text(root / "data.yaml", f"path: .\ntrain: [train/images/*.bmp]\nval: valid.txt\n"
                 f"names:\n{names}")  # fmt: skip
            text(root / "valid.txt", "./valid/images/6.bmp\n./valid/images/7.bmp\n")
        case "ultralytics":
            text(root / "x.names", "\n".join(NAMES))
        case "coco":
            for one, numbers in (("train", range(6)), ("valid", range(6, 8))):
                name = {"train": "train2017", "valid": "val2017"}[one]
                coco(root / f"annotations/instances_{name}.json", numbers, "{}.jpg")
            text(root / "annotations/captions_val2017.json", '{"images": [], "annotations": []}')
            (root / "valid2017").rename(root / "val2017")
        case "coco roboflow":
            for one, numbers in (("train", range(6)), ("valid", range(6, 8))):
                above = [{"id": 9, "name": "shape", "supercategory": "none"}]
                coco(root / f"{one}/_annotations.coco.json", numbers, "{}.jpg", categories=above)
        case "coco without sizes":
            coco(root / "annotations/instances_default.json", range(8), "{}.jpg", no_size=True)
        case "coco with text ids":
            coco(root / "result.json", range(8), "images\\{}.jpg", text_ids=True)
        case "coco of outlines":
            coco(root / "result.json", range(8), "C:\\data\\{}.jpg", outline=True)
        case "coco of label studio":
            coco(root / "result.json", range(8), "/data/upload/1/{}.jpg")
        case "coco of local files":
            coco(root / "result.json", range(8), "/data/local-files/?d=some%20where/{}.jpg")


SPLIT = ("voc devkit, voc with suffixes, cvat voc, roboflow voc, cvat yolo, roboflow darknet, "
         "yaml, yaml; names by number, ultralytics, coco, coco roboflow")  # fmt: skip
WHOLE = ("cvat voc; one set, labelimg voc, label studio voc, label studio yolo, labelimg yolo, "
         "makesense, coco without sizes, coco with text ids, coco of outlines, "
         "coco of label studio, coco of local files")  # fmt: skip
LAYOUTS = [name.replace(";", ",") for name in (SPLIT + ", " + WHOLE).split(", ")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_data_set(tmp_path, layout):
    root = tmp_path / "export of a tool (1)"
    write_layout(root, layout)
    before = files_of(root)
    found = convert([root], tmp_path / "out")
    assert files_of(root) == before and not list(root.rglob("*.part"))
    options = read_data(found.data)
    assert read_names(options["names"]) == sorted(NAMES) == list(NAMES)
    lists = [data.read_image_list(options[key]) for key in ("train", "valid")]
    numbers = [sorted(int(data.load_image(path)[0, 0, 0]) // 20 for path in each) for each in lists]
    if layout.replace(",", ";") in SPLIT.split(", "):
        assert numbers == [[0, 1, 2, 3, 4, 5], [6, 7]]
    else:
        assert sorted(numbers[0] + numbers[1]) == [*range(8)] and all(numbers)
        assert "every tenth image" in found.report()[0]
    expected = np.array([line.split() for line in RELATIVE.splitlines()], np.float32)
    if found.kind == "voc":
        expected[:, 1:3] -= np.float32((1 / 160, 1 / 128))  # VOC counts from 1
    for path in (*lists[0], *lists[1]):
        assert data.read_labels(data.label_path(path)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("layout", ["voc devkit", "coco", "labelimg yolo"])
@pytest.mark.parametrize("beside", [labels.hard_link, shutil.copyfile])
def test_images_and_labels_in_one_folder(tmp_path, layout, beside):
    """As every Darknet finds them: hank-ai's follows symbolic links, and looks beside the image."""
    write_layout(tmp_path / "in", layout)
    before = files_of(tmp_path / "in")
    found = convert([tmp_path / "in"], tmp_path / "out", beside=beside)
    for _ in range(2):  # again over what is there
        convert([tmp_path / "in"], tmp_path / "out", beside=beside)
    assert files_of(tmp_path / "in") == before
    options = read_data(found.data)
    paths = [path for key in ("train", "valid") for path in data.read_image_list(options[key])]
    assert len(paths) == 8
    for path in paths:
        assert not path.is_symlink() and path.resolve() == path
        assert path.stat().st_nlink == (2 if beside is labels.hard_link else 1)
        assert len(path.with_suffix(".txt").read_text().splitlines()) == 3


def test_the_tenth_for_validation_stays_when_images_are_added(tmp_path):
    chosen = []
    for count in (200, 300):
        root = tmp_path / str(count)
        for n in range(count):
            text(root / f"{n}.txt", YOLO_TEXT)
            text(root / f"{n}.jpg", b"picture")
        text(root / "classes.txt", "\n".join(NAMES))
        found = convert([root], tmp_path / f"out{count}")
        chosen.append({path.name for path in found.sets["valid"]})
        assert not {*found.sets["valid"]} & {*found.sets["train"]}
    old = {name for name in chosen[1] if int(name.partition(".")[0]) < 200}
    assert old == chosen[0] and 10 < len(old) < 32


@pytest.mark.parametrize("extra", ["", ",0"])
def test_a_list_with_boxes_is_converted(tmp_path, extra):
    """Of Tianxiaomo's and argusswift's ports."""
    boxes = " ".join(f"{x1},{y1},{x2},{y2},{label}{extra}" for label, x1, y1, x2, y2 in OBJECTS)
    for n in range(2):
        picture(tmp_path / f"obj/{n}.jpg", n)
    text(tmp_path / "train.txt", f"obj/0.jpg {boxes}\nobj/1.jpg {boxes}\n")
    with pytest.raises(ValueError, match="yolov4 labels"):
        data.read_image_list(tmp_path / "train.txt")
    found = convert([tmp_path / "train.txt"], tmp_path / "out", names=NAMES)
    labels_of = [data.label_path(found.place(image)).read_bytes() for image in found.objects]
    assert labels_of == [YOLO_TEXT] * 2


def test_images_of_one_name_belong_to_the_annotation_that_is_near(tmp_path):
    """Two cameras number their pictures alike; a name that is not unique is left out and named."""
    for camera in "ab":
        picture(tmp_path / f"in/{camera}/images/1.jpg", 1)
    text(tmp_path / "in/a/labels/1.txt", YOLO_TEXT)
    text(tmp_path / "in/b/labels/1.txt", b"1 .5 .5 .5 .5\n")
    text(tmp_path / "in/classes.txt", "\n".join(NAMES))
    found = convert([tmp_path / "in"], tmp_path / "out")
    read = {
        path.parts[-3]: data.label_path(found.place(path)).read_text() for path in found.objects
    }
    assert read == {"a": RELATIVE, "b": "1 0.5 0.5 0.5 0.5\n"}
    coco(tmp_path / "in/result.json", [1], "{}.jpg")
    (tmp_path / "in/a/labels/1.txt").unlink()
    with pytest.raises(ValueError, match=r"several of that name.*\n?.*1\.jpg"):
        convert([tmp_path / "in"], tmp_path / "out")


@pytest.mark.parametrize("layout", ["labelimg yolo", "coco of label studio", "labelimg voc"])
def test_no_boxes_is_an_error(tmp_path, layout):
    write_layout(tmp_path / "in", layout)
    for path in (tmp_path / "in").rglob("*"):
        if path.suffix in (".txt", ".xml", ".json") and path.name != "classes.txt":
            path.unlink()
    with pytest.raises(ValueError, match="no boxes"):
        convert([tmp_path / "in"], tmp_path / "out")


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


def test_crowds_are_left_out_and_an_empty_image_is_listed(tmp_path):
    images = [image(7, "7.jpg"), image(8, "8.jpg")]
    add_coco(tmp_path / "COCO", "train2017", images, [BOX, {**BOX, "iscrowd": 1}])
    add_coco(tmp_path / "COCO", "val2017", [image(7, "9.jpg")], [{**BOX, "category_id": 18}])
    found = convert([tmp_path / "COCO"], tmp_path / "out")
    lists = [
        data.read_image_list(tmp_path / f"out/{name}.txt") for name in ("train2017", "val2017")
    ]
    texts = [data.label_path(path).read_text() for each in lists for path in each]
    assert texts == [BOX_TEXT, "", BOX_TEXT.replace("0 ", "1 ", 1)]
    assert found.boxes == {"cat": 1, "dog": 1} and list(found.problems) == ["crowds"]


def test_categories_go_by_name(tmp_path):
    """A category has another number in each file; a name that is not wanted is counted."""
    other = [{"id": 17, "name": "dog"}, {"id": 30, "name": "owl"}]
    for folder, categories in (("train", CATEGORIES), ("valid", other)):
        images = [image(7, "7.jpg")]
        path = add_coco(tmp_path, "x", images, [BOX], categories, folder=f"in/{folder}")
        path.rename(tmp_path / "in" / folder / "_annotations.coco.json")
    found = convert([tmp_path / "in"], tmp_path / "out")
    assert found.names == ["cat", "dog", "owl"]
    read = [data.label_path(found.place(image)).read_text()[0] for image in found.objects]
    assert read == ["0", "1"]
    found = convert([tmp_path / "in"], tmp_path / "out", names=["dog"])
    assert found.problems["objects of no class"] == ["cat (1)"] and found.boxes == {"dog": 1}


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
    found = convert([tmp_path / "deep/COCO"], tmp_path / "deep/out")
    assert [each.name for each in found.objects] == ["a.jpg"] and found.problems
    assert all("\n" not in line for line in found.report())
    assert not [*tmp_path.glob("*.txt"), *tmp_path.glob("deep/*.txt")]


@pytest.mark.parametrize("changes", BAD_BOXES, ids=lambda changes: repr(changes)[:30])
def test_a_box_that_cannot_be_used_is_named_and_left_out(tmp_path, changes):
    path = add_coco(tmp_path, "train", [image(7, "a.jpg")], [{**BOX, **changes}, BOX])
    found = convert([tmp_path], tmp_path / "out")
    ((problem,),) = found.problems.values()
    assert problem.startswith(f"{path}: annotation 1: ")
    assert data.label_path(found.place(next(iter(found.objects)))).read_text() == BOX_TEXT


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
    convert([devkit], tmp_path / "out")
    label = tmp_path / "out/VOC2007/labels/2007-test_0.txt"
    assert label.read_text() == CAT_TEXT


def test_a_data_set_is_not_converted_onto_itself(tmp_path):
    draw(tmp_path / "a.png").with_suffix(".txt").write_text("0 .5 .5 .5 .5\n")
    text(tmp_path / "train.txt", "a.png\n")
    text(tmp_path / "x.data", "classes=1\ntrain=train.txt\n")
    before = files_of(tmp_path)
    for source in (tmp_path / "x.data", tmp_path):
        with pytest.raises(ValueError, match="is the source"):
            convert([source], tmp_path)
    assert files_of(tmp_path) == before


def test_labels_follow_no_link_and_pictures_stay(tmp_path):
    """A label that is a hard link, a folder of labels that leads elsewhere, a folder of images."""
    source, mine, out = tmp_path / "d/a.png", tmp_path / "mine", tmp_path / "out"
    draw(source).with_suffix(".txt").write_text("0 .5 .5 .5 .5\n")
    (out / "d/labels").mkdir(parents=True)
    draw(out / "d/images/a.png", grey=7)
    before = (out / "d/images/a.png").read_bytes()
    mine.mkdir()
    (mine / "a.txt").write_text("mine")
    (out / "d/labels/a.txt").hardlink_to(mine / "a.txt")
    convert([source.parent], out)
    assert (out / "d/labels/a.txt").read_text() == "0 0.5 0.5 0.5 0.5\n"
    assert (out / "d/images/a.png").read_bytes() == before
    shutil.rmtree(out / "d/labels")
    (out / "d/labels").symlink_to(mine)
    with pytest.raises(ValueError, match="d/labels: leads to"):
        convert([source.parent], out)
    assert [path.name for path in mine.iterdir()] == ["a.txt"]
    assert (mine / "a.txt").read_text() == "mine"
