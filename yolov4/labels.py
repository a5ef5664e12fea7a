"""Data sets of any tool -> Darknet's label files, image lists, .names and .data; download of VOC.
Source: Darknet's scripts/voc_label.py, scripts/get_coco_dataset.sh; cocodataset.org (format-data);
the exports of CVAT, Roboflow, Label Studio, LabelImg and makesense.

`convert` reads VOC XML, COCO JSON, YOLO labels (with a .data, a data.yaml or a list of classes) and
lists with boxes.  It changes nothing of them and writes into `out`:
  FOLDER/images, JPEGImages   a link to each folder of images
  FOLDER/labels/NAME.txt      objects; of VOC those that are not difficult
  FOLDER/difficult/NAME.txt   of VOC the difficult ones
  SET.txt, train.txt ...      image lists
  difficult_SET.txt           of VOC, for Darknet's `difficult=`
  KIND.data, KIND.names       KIND is voc, coco or yolo
"""

import json
import os
import re
import shutil
import tarfile
import zlib
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from yolov4.cfg import read_data, read_names
from yolov4.data import (
    BOXES,
    IMAGES,
    IN_PIXELS,
    label_path,
    label_rows,
    load_image,
    outline_box,
    read_image_list,
)
from yolov4.files import (
    CONFIGS,
    WRITTEN,
    Remote,
    download,
    fresh,
    locate,
    read_bounded,
    read_lines,
    read_text,
    regular,
    replacing,
)  # fmt: skip

JOINED = {  # of the VOC devkit, as Darknet's script joins them
    "train": ("2007_train", "2007_val", "2012_train", "2012_val"),
    "train.all": ("2007_train", "2007_val", "2007_test", "2012_train", "2012_val"),
}
PAIRS = "train 2007_test", "2012_train 2012_val", "2007_train 2007_val", "trainval test"
KIND = re.compile(r"(?<![a-z])(trainval|train|val|test)")  # in the name of a set or of its folder
CLASS_LISTS = "_darknet.labels", "classes.txt", "labels.txt", "*.names"
EDGES = "xmin", "ymin", "xmax", "ymax"
ARCHIVES = {  # key of torchvision's table: folder, set, bytes
    "2007": ("VOC2007", "trainval", 460_032_000),
    "2007-test": ("VOC2007", "test", 451_020_800),
    "2012": ("VOC2012", "trainval", 1_999_639_040),
}
MIRROR = "https://data.pjreddie.com/files/"  # torchvision's address, in Oxford, is often down
YAML = ".yaml", ".yml"
NO_SETS = "names", "backup", "classes", "difficult", "results", "eval"  # keys of a .data file
NAMED = 5  # places of a problem that are named
LARGEST = 1e9  # pixels
MAX_XML = 1 << 24  # bytes: some 60,000 objects
SIDES = "width", "height"
NO_IMAGE = "images that are not there, or several of that name"


class Tree:
    """The files below a folder, found again by the names that annotations have for them."""

    def __init__(self, root, skip):
        self.root, self.files, self.named = root, [], defaultdict(list)
        seen = {os.path.realpath(skip)}  # links may lead in circles
        for folder, below, names in os.walk(root, followlinks=True):
            below[:] = sorted(name for name in below if name[0] != ".")
            if (real := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(real)
            self.files += [Path(folder, name) for name in sorted(names) if name[0] != "."]
        for file in self.files:
            for name in {file.name.lower(), file.stem.lower()}:
                self.named[name].append(file)

    def having(self, *patterns):
        """Files by pattern, those of the first pattern first."""
        return [file for pattern in patterns for file in self.files if file.match(pattern)]

    def find(self, written, near, suffixes=IMAGES):
        """The file that `written` means: a path of any system, or a name with or without suffix.
        Of several the one that shares most with it, then with the path `near`; None if unclear."""
        name, *above = (*PureWindowsPath(written.split("?d=")[-1].lower()).parts[::-1], "")
        near, ranked = {*near.parts, "images", "JPEGImages"}, defaultdict(list)
        for file in self.named[name] or self.named[unquote(name)]:
            if file.suffix.lower() in suffixes:
                folders = map(str.lower, file.parts[-2::-1])
                alike = sum(map(str.__eq__, folders, above))
                ranked[alike, len(near.intersection(file.parts))].append(file)
        best = ranked[max(ranked, default=None)]
        return best[0] if len(best) == 1 else None

    def folders(self, file):
        """The names of the folders between the root and a file."""
        return file.relative_to(self.root).parts[:-1] if self.root in file.parents else ()

    def set_of(self, file):
        """The set that a file belongs to: its innermost folder that is called so, else `all`."""
        folders = reversed(self.folders(file))
        return next((name for name in folders if KIND.search(name.lower())), "all")


class Conversion(Tree):
    """The files of a data set, what was read from them and written to `out`.  kind: voc, coco or
    yolo; what: in words.

    sets: name -> images; objects: image -> (class name, difficult, relative cx, cy, w, h) of each;
    names, boxes: of the classes; problems: what was left out or changed -> where."""

    def __init__(self, root, out, beside=None):
        super().__init__(root, out)
        self.out, self.beside, self.kind, self.what = out, beside, "yolo", "YOLO labels"
        self.sets, self.objects, self.problems = defaultdict(list), {}, defaultdict(list)
        self.names, self.boxes, self.places, self.data = [], Counter(), {}, None

    def report(self):
        """The summary, one string per line; the first says all in short."""
        sets = ", ".join(f"{name} {len(images)}" for name, images in self.sets.items())
        boxes = f"{self.boxes.total()} boxes of {len(self.names)} classes"
        lines = [f"{self.root}: {self.what}; images: {sets}; {boxes}; written: {self.data}"]
        lines += [f"  {name:<18} {self.boxes[name]:>6} boxes" for name in self.names]
        for what, places in self.problems.items():
            shown = ", ".join(map(str, places[:NAMED]))
            lines.append(f"{len(places)} {what}: {shown}{' ...' * (len(places) > NAMED)}")
        return lines

    @contextmanager
    def leaving_out(self, what, where):
        """Counts a problem, instead of an error, where something is not as it should be."""
        try:
            yield
        except Exception as error:
            self.problems[what].append(where or error)

    def write(self, path, lines):
        path = fresh(self.out / path, self.out)
        path.write_bytes(os.fsencode("".join(f"{line}\n" for line in lines)))
        return path

    def place(self, image):
        """The path of an image in `out`, where its folder is linked to."""
        folder = image.parent
        if folder not in self.places:
            tags = [name for name in self.folders(image) if name not in ("images", "JPEGImages")]
            home = self.out.joinpath(*tags or [self.root.name])
            kind = "JPEGImages" if folder.name == "JPEGImages" else "images"
            kind = "" if self.beside else kind
            # labels never go beside the images that are read
            while home / kind in (folder, *self.places.values()):
                home = home.with_name(f"{home.name}_2")
            home.mkdir(parents=True, exist_ok=True)
            self.places[folder] = home / kind
            if not self.beside:
                link(folder, home / kind)
        place = self.places[folder] / image.name
        if self.beside and not place.exists():
            self.beside(image.resolve(), place)
        return place

    def label(self, place, folder):
        """The label file of an image in `out`."""
        if not self.beside:
            folder = place.parents[1] / folder
        elif folder == "labels":
            return place.with_suffix(".txt")
        return place.parent / folder / f"{place.stem}.txt"

    def finish(self, names=None, keep_difficult=False):
        """Splits the sets and writes everything.  names: of the classes, else those in use."""
        for images in self.sets.values():
            images[:] = [image for image in images if image in self.objects]
        found = Counter(name for objects in self.objects.values() for name, *_ in objects)
        self.names = list(names or self.names or sorted(found))
        names_file = self.out / f"{self.kind}.names"
        with replacing(names_file) as beside:
            beside.write_text("".join(f"{name}\n" for name in self.names), "utf-8", newline="\n")
        for name in found.keys() - self.names:
            self.problems["objects of no class"].append(f"{name} ({found[name]})")
        for image, objects in self.objects.items():
            place, rows = self.place(image), {"labels": [], "difficult": []}
            for name, difficult, box in objects:
                if name in self.names:
                    apart = difficult and not keep_difficult
                    row = " ".join(map(str, (self.names.index(name), *box)))
                    rows["difficult" if apart else "labels"].append(row)
                    if apart:
                        self.problems["difficult objects, kept apart"].append(image.name)
                    else:
                        self.boxes[name] += 1
            for folder in rows if self.kind == "voc" else ["labels"]:
                self.write(self.label(place, folder), rows[folder])
        if not self.boxes.total():
            found = f"{self.root}: {self.what}: no boxes"
            expected = "expected VOC XML, COCO JSON or YOLO labels, and their images"
            problems = self.report()[1 + len(self.names) :]
            raise ValueError("; ".join([f"{found}, {expected}", *problems]))
        if all(max(box) > 2 for objects in self.objects.values() for *_, box in objects):
            raise ValueError(f"{self.root}: {IN_PIXELS}")
        train, valid = self._split()
        for name, images in self.sets.items():
            places = [self.place(image) for image in images]
            self.write(f"{name}.txt", places)
            if self.kind == "voc":
                apart = (self.label(place, "difficult") for place in places)
                self.write(f"difficult_{name}.txt", apart)
        lines = [
            f"{WRITTEN} labels",
            f"classes = {len(self.names)}",
            f"train = {self.out / train}.txt",
            f"valid = {self.out / valid}.txt",
            f"names = {names_file}",
            "backup = backup",
        ]
        if self.kind == "voc":
            lines.append(f"# difficult = {self.out / f'difficult_{valid}'}.txt")
        self.data = self.write(f"{self.kind}.data", lines)
        return self

    def _split(self):
        """The names of the sets for training and validation.  Several of a kind are joined; where
        there is none for validation, a hash of the file names takes every tenth image for it."""
        sets, kinds = self.sets, defaultdict(list)
        for name in sets:
            if kind := KIND.search(name.lower()):
                kinds[kind[0]].append(name)
        for name, members in JOINED.items():
            if joined := [image for member in members for image in sets.get(member, ())]:
                sets[name] = joined
        for train, valid in map(str.split, PAIRS):
            if train in sets and valid in sets:
                return train, valid
        train, valid = kinds["train"] or kinds["trainval"], kinds["val"] or kinds["test"]
        if train and valid:
            return self._join("train", train), self._join("valid", valid)
        tenth = [image for image in self.objects if _hashed(image) < 0.1]
        if not any(map(self.objects.get, tenth)):
            tenth = [min(filter(self.objects.get, self.objects), key=_hashed)]
        sets["train"] = sorted(self.objects.keys() - tenth or tenth)
        sets["valid"] = sorted(tenth)
        self.what += ", one set: every tenth image is for validation"
        return "train", "valid"

    def _join(self, name, members):
        """The name of the only set of `members`, else of one with the images of all of them."""
        if len(members) == 1:
            return members[0]
        self.sets[name] = [image for member in members for image in self.sets[member]]
        return name


def _hashed(image):
    """A number in 0..1 that depends on the file name alone."""
    return zlib.crc32(image.name.encode("utf-8", "replace")) / 2**32


def hard_link(source, target):
    """A second name of a file, which no program sees through; a copy on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link(source, target):
    """Makes `target` show the images of a folder: a link, or a copy where none is allowed."""
    source = source.resolve()
    if target.resolve() == source:
        return
    if target.is_symlink():
        target.unlink()
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_copy_missing)


def _copy_missing(source, target):
    if not Path(target).exists():
        shutil.copyfile(source, target)


def image_size(image, sides):
    """Width and height as numbers; of the image itself where they are none."""
    with suppress(TypeError, ValueError, OverflowError):
        size = [round(float(side)) for side in sides]
        if 0 < min(size) <= max(size) < LARGEST:
            return size
    return load_image(image).shape[1::-1]


def read_voc(found, wanted=None):
    """XML, in the sets of ImageSets/Main where there are such, else of folders by their names."""
    lists = {}
    for file in found.having("ImageSets/Main/*.txt"):
        folder = file.parents[2]
        year = "" if folder == found.root else f"{folder.name.removeprefix('VOC')}_"
        lists[year + file.stem] = file
    if missing := set(wanted or ()) - lists.keys():
        raise ValueError(f"{found.root}: no set {', '.join(missing)}, there are {', '.join(lists)}")
    # person_train and so on repeat the images for each class
    plain = [name for name in lists if not re.search("[^0-9]_(train|val|trainval|test)$", name)]
    written = [
        (name, line, lists[name].parents[2] / "JPEGImages")
        for name in wanted or plain or lists
        for line in read_lines(lists[name])
    ] or [("", file.stem, file) for file in found.having("*.xml")]
    for name, line, near in written:
        image = found.find(line, near) or found.find(re.sub(r"\s+-?\d+$", "", line), near)
        if not image:
            found.problems[NO_IMAGE].append(line)
            continue
        with found.leaving_out("images without usable annotations", None):
            if image not in found.objects:
                xml = found.find(image.stem, image, [".xml"]) or image.with_suffix(".xml")
                found.objects[image] = _voc_objects(found, image, xml)
            found.sets[name or found.set_of(image)].append(image)


def _voc_objects(found, image, path):
    """Class name, difficult, box of each object in an XML."""
    sides, objects = read_annotation(path, found.problems)
    (width, height), rows = image_size(image, sides), []
    for name, difficult, (xmin, ymin, xmax, ymax) in objects:
        if xmin < xmax and ymin < ymax:
            # Darknet's script: one pixel off the centre, because VOC counts from 1
            cx, cy = (xmin + xmax) / 2 - 1, (ymin + ymax) / 2 - 1
            box = cx / width, cy / height, (xmax - xmin) / width, (ymax - ymin) / height
            rows.append((name, difficult, box))
        else:
            found.problems["boxes of zero size"].append(f"{path}: {name}")
    return rows


def read_annotation(path, problems=None):
    """A VOC XML: width and height of the image as they are written, and a list of its objects:
    class name, difficult, [xmin, ymin, xmax, ymax] in pixels that count from 1.

    Raises ValueError for a file that is no such XML, and for an object without a name or a box,
    which goes to `problems` if there is such a dict of lists."""
    from defusedxml import ElementTree  # training alone does without it

    try:
        root = ElementTree.fromstring(read_bounded(path, MAX_XML), forbid_dtd=True)
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: found no usable XML ({error})") from None
    objects = []
    for number, item in enumerate(root.iter("object"), 1):
        try:
            edges = [float(item.findtext(f"bndbox/{edge}")) for edge in EDGES]
            name = item.findtext("name").strip()
            if not all(abs(edge) < LARGEST for edge in edges) or len(name.splitlines()) != 1:
                raise ValueError  # nan is not below either
            difficult = item.findtext("difficult", "").strip().lower() in ("1", "true")
            objects.append((name, difficult, edges))
        except (AttributeError, TypeError, ValueError):
            problem = f"{path}: object {number}"
            if problems is None:
                raise ValueError(f"{problem}: found no name or box, expected both") from None
            problems["objects without a name or a box"].append(problem)
    return [root.findtext(f"size/{side}") for side in SIDES], objects


def read_json(path):
    """Images, annotations, and {category id: class name} in the order of the ids, of a COCO JSON.
    Raises ValueError for anything else."""
    try:
        dataset = json.loads(regular(path).read_bytes(), object_hook=_without_outline)
        images, annotations = dataset["images"], dataset["annotations"]
        if not all(isinstance(entry, dict) for entry in (*images, *annotations)):
            raise ValueError("no lists of objects")
        categories = dataset["categories"]
        used = {str(entry.get("category_id")) for entry in annotations}
        above = {entry.get("supercategory") for entry in categories} - {None}
        named = [
            (entry["id"], entry["name"].strip())
            for entry in categories
            if str(entry["id"]) in used or entry["name"] not in above
        ]
        classes = dict(sorted(named))
        if len(classes) < len(named) or any(len(n.splitlines()) != 1 for n in classes.values()):
            raise ValueError("categories without an id or a name of their own")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        expected = "expected images, annotations, categories"
        raise ValueError(f"{path}: found no COCO JSON ({str(error)[:80]}), {expected}") from None
    return images, annotations, classes


def _without_outline(entry):
    if entry.get("bbox"):
        entry.pop("segmentation", None)  # most of the file
    return entry


def read_coco(found, path, images, annotations, classes):
    """One COCO JSON; its set is that of its name, else of its folder."""
    name = path.stem.removeprefix("instances_")
    name = name if KIND.search(name.lower()) else found.set_of(path)
    found.names += [each for each in classes.values() if each not in found.names]
    known = {}  # by id: image, width, height; None where it is left out
    for count, entry in enumerate(images, 1):
        image, key = found.find(str(entry.get("file_name")), path.with_name(name)), entry.get("id")
        where = f"{path}: image {count}: {str(entry)[:120]}"
        if not image:
            found.problems[NO_IMAGE].append(where)
        with found.leaving_out("images without an id and a file of their own", where):
            if image in found.objects or key in known:
                raise ValueError
            known[key] = image and (image, *image_size(image, map(entry.get, SIDES)))
            if image:
                found.objects[image] = []
                found.sets[name].append(image)
    for count, entry in enumerate(annotations, 1):
        where = f"{path}: annotation {count}: {str(entry)[:120]}"
        if entry.get("iscrowd") == 1:
            found.problems["crowds"].append(where)
            continue
        with found.leaving_out("annotations without image, class or box in the image", where):
            if not (image := known[entry["image_id"]]):
                continue
            (image, width, height), class_name = image, classes[entry["category_id"]]
            if entry.get("bbox"):
                x, y, w, h = map(float, entry["bbox"])
                cx, cy = x + w / 2, y + h / 2
            else:
                points = [each for part in entry["segmentation"] for each in part]
                cx, cy, w, h = outline_box(points[::2], points[1::2])
            inside = abs(2 * cx - width) < width + w and abs(2 * cy - height) < height + h
            if not (inside and 0 < w < LARGEST and 0 < h < LARGEST):
                raise ValueError
            box = cx / width, cy / height, w / width, h / height
            found.objects[image].append((class_name, False, box))


def read_yaml(path):
    """An ultralytics data set, or None for other YAML.  Raises ValueError for what is no YAML, and
    for lists in lists, as text perhaps without end."""
    import yaml  # training alone does without it

    text = read_text(path)
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no YAML: {' '.join(str(error).split())[:120]}") from None
    fits = isinstance(data, dict) and isinstance(data.get("train"), str | list)
    if not fits or not isinstance(data.get("names"), dict | list):
        return None
    for key in ("path", "train", "val", "test", "names"):
        if any(isinstance(each, list | dict | set) for each in _entries(data.get(key))):
            raise ValueError(f"{path}: {key}: found a list in it, expected text")
    if isinstance(data["names"], dict) and len({*map(type, data["names"])}) > 1:
        raise ValueError(f"{path}: names: found numbers of several kinds")
    return data


def _entries(value):
    """Those of a list or of a dict, else the only one."""
    value = [*value.values()] if isinstance(value, dict) else value
    return value if isinstance(value, list) else [value]


def read_yolo(found, given, source=None):
    """Label files, in the sets of a .data or .yaml file, else of folders by their names; or a list
    with boxes behind each image."""
    suffix, lists, base, boxed = source and source.suffix.lower(), {}, source, {}
    if suffix == ".data":
        lists = read_data(source)
        if "names" in lists:
            found.names = read_names(lists["names"])
        lists = {key: value for key, value in lists.items() if key not in NO_SETS}
    elif suffix in YAML:
        lists = read_yaml(source)
        names, home = lists["names"], locate(str(lists.get("path") or "."), source)
        names = names if isinstance(names, dict) else dict(enumerate(names))
        found.names = [str(names[key]).strip() for key in sorted(names)]
        base = home / source.name if home.is_dir() else source
        lists = {key: lists.get(key) for key in ("train", "val", "test")}
    elif suffix == ".txt":
        for line in read_lines(source):
            boxes = BOXES.search(line)
            image = _absolute(locate(line[: boxes and boxes.start()], source))
            found.sets["all"].append(image)
            if boxes:
                boxed[image] = boxes[0].split()
    else:
        for file in found.files:
            if file.suffix.lower() in IMAGES:
                found.sets[found.set_of(file)].append(file)
    for name, entries in lists.items():
        for entry in map(str, filter(None, _entries(entries))):
            place = base.parent / entry if "*" in entry else locate(entry, base)
            if "*" in entry or place.exists():
                found.sets[name] += map(_absolute, read_image_list(place))
    files, rows = found.having(*CLASS_LISTS), {}
    found.names = given or found.names or (read_names(files[0]) if files else [])
    for image in {image: None for images in found.sets.values() for image in images}:
        with found.leaving_out("images without usable labels", None):
            rows[image] = [*_boxes(image, boxed[image])] if image in boxed else _rows(found, image)
    if not found.names:
        most = max((label for own in rows.values() for label, *_ in own), default=-1)
        found.names = [*map(str, range(most + 1))]
    for image, own in rows.items():
        found.objects[image] = objects = []
        for label, *box in own:
            with found.leaving_out("boxes of a class without a name", f"{image}: {label}"):
                objects.append((found.names[label], False, box))


def _rows(found, image):
    """Class, cx, cy, w, h of each object in the label file of an image, wherever that lies."""
    if not image.is_file():
        raise ValueError(f"{image}: no such file")
    path = label_path(image)
    path = path if path.exists() else found.find(image.stem, image, [".txt"])
    if not path:
        found.problems["images without a label file, taken as without objects"].append(image)
        return []
    return [row for _, row in label_rows(path)]


def _boxes(image, groups):
    """The same from x1,y1,x2,y2,class."""
    height, width = load_image(image).shape[:2]
    for group in groups:
        x1, y1, x2, y2, label = map(float, group.split(",")[:5])
        cx, cy, w, h = outline_box((x1, x2), (y1, y2))
        yield int(label), cx / width, cy / height, w / width, h / height


def _absolute(path):
    return Path(os.path.abspath(path))


def convert(sources, out=None, *, sets=None, names=None, keep_difficult=False, beside=None):
    """Converts a data set -> `Conversion`; what cannot be used is left out, counted and named.

    sources: a folder; or a .data or .yaml file, a list with boxes, JSON files, and after these the
    folder at or below which their images are, default: the file's.  out: default data/FOLDER.
    sets: of VOC, default: all.  names: of the classes, [] for those in use; default: those of the
    source, of a VOC devkit its 20.  keep_difficult: difficult objects of VOC count as others.
    beside: hard_link or shutil.copyfile, for images and labels in one folder, as Darknet has them.
    Raises ValueError if there is nothing to convert, OSError if a file cannot be written."""
    files = [_absolute(source) for source in sources]
    for file in files:
        if not file.exists():
            raise ValueError(f"{file}: no such file or folder")
    folder = files[-1] if files[-1].is_dir() else files[0].parent
    if folder.name == "annotations":
        folder = folder.parent
    out = _absolute(out or f"data/{folder.name}")
    if os.path.realpath(out) == os.path.realpath(folder):
        raise ValueError(f"{out}: is the source, expected another --out")
    found, parsed = Conversion(folder, out, beside), []
    whole = files[0].is_dir()
    files = found.files if whole else files

    def having(*suffixes):
        return [file for file in files if file.suffix.lower() in suffixes]

    yolo = [*having(".data"), *filter(read_yaml, having(*YAML))]
    yolo += [] if whole else having(".txt")
    jsons = [] if yolo else having(".json")
    for file in [file for file in jsons if file.stem.startswith("instances_")] or jsons:
        with found.leaving_out("JSON files of another kind", None):
            parsed.append((file, *read_json(file)))
    if yolo:
        found.what += f" by {yolo[0].name}"
        read_yolo(found, names, yolo[0])
    elif parsed:
        found.kind, found.what = "coco", "COCO JSON"
        for each in parsed:
            read_coco(found, *each)
    elif having(".xml"):
        found.kind, found.what = "voc", "VOC XML"
        read_voc(found, sets)
        if names is None and "/VOC20" in str([*found.objects]):
            names = read_names(CONFIGS / "voc.names")
    else:
        read_yolo(found, names)
    return found.finish(names, keep_difficult)


def download_voc(root):
    """Downloads and unpacks VOC 2007 (trainval, test) and 2012 (trainval), unless they are there.

    root: VOCdevkit, or the folder that holds it.  Raises ValueError or OSError."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT  # takes a second

    devkit = _absolute(root)
    if devkit.name != "VOCdevkit":
        devkit /= "VOCdevkit"
    for key, (folder, name, size) in ARCHIVES.items():
        listed = devkit / folder / f"ImageSets/Main/{name}.txt"
        images = devkit / folder / "JPEGImages"
        if listed.exists() and all(
            (images / f"{stem}.jpg").exists() for stem in read_lines(listed)
        ):
            continue
        known = DATASET_YEAR_DICT[key]
        urls = known["url"], MIRROR + known["filename"]
        archive = download(Remote(urls, size, known["md5"]), devkit / known["filename"])
        print(f"{archive}: unpacking", flush=True)
        with tarfile.open(archive) as tar:
            tar.extractall(devkit.parent, filter="data")
