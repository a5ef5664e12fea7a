"""VOC XML and COCO JSON -> Darknet's label files, image lists, .names and .data; download of VOC.
Source: Darknet's scripts/voc_label.py, scripts/get_coco_dataset.sh; cocodataset.org (format-data).

VOC: a VOCdevkit with VOC2007, VOC2012 ... (sets: 2007_train ...), or one such folder (train ...).
Written beside the VOC folders, or into `out`, which then links JPEGImages:
  VOC2012/labels/NAME.txt     objects that are not difficult; with keep_difficult all of them
  VOC2012/difficult/NAME.txt  the difficult ones
  2012_train.txt ...          image lists; train.txt, train.all.txt join them as Darknet's script
  difficult_2012_train.txt    for Darknet's `difficult=`
  voc.data, voc.names
COCO: a folder with annotations/instances_*.json and train2017 ..., an export with a
_annotations.coco.json in train, valid ..., or JSON files and the folder of their images.  In `out`:
  train2017/images            a link to the images
  train2017/labels/NAME.txt   empty where an image has no boxes; crowds are left out
  train2017.txt ..., coco.data, coco.names (classes in the order of the category ids)
"""

import json
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath
from xml.etree import ElementTree

from yolov4.files import Remote, download

VOC_NAMES = """aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse
motorbike person pottedplant sheep sofa train tvmonitor""".split()  # noqa: SIM905
SETS = "train", "val", "trainval", "test"
JOINED = {
    "train": ("2007_train", "2007_val", "2012_train", "2012_val"),
    "train.all": ("2007_train", "2007_val", "2007_test", "2012_train", "2012_val"),
}
PAIRS = (  # for training and validation in voc.data: the first pair that is there
    "train 2007_test", "2012_train 2012_val", "2007_train 2007_val", "trainval test", "train test",
    "train val",
)  # fmt: skip
SUFFIXES = ".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp"
EDGES = "xmin", "ymin", "xmax", "ymax"
ARCHIVES = {  # key of torchvision's table: folder, set, bytes
    "2007": ("VOC2007", "trainval", 460_032_000),
    "2007-test": ("VOC2007", "test", 451_020_800),
    "2012": ("VOC2012", "trainval", 1_999_639_040),
}
MIRROR = "https://data.pjreddie.com/files/"  # torchvision's address, in Oxford, is often down
EXPORT = "_annotations.coco.json"
LARGEST = 1e9  # pixels


class Conversion:
    """What was written, counted and left out.  kind: voc or coco; aside: words for `skipped`."""

    def __init__(self, kind, out, aside):
        self.kind, self.out, self.aside = kind, Path(os.path.abspath(out)), aside
        self.names, self.lists, self.problems, self.skipped = [], {}, [], 0
        self.boxes, self.other_names = Counter(), Counter()

    def report(self):
        """The summary, one string per line."""
        lines = [
            f"{name + '.txt':<20} {len(paths):>6} images" for name, paths in self.lists.items()
        ]
        lines += [f"  {name:<18} {self.boxes[name]:>6} boxes" for name in self.names]
        lines.append(f"{sum(self.boxes.values())} boxes{self.aside.format(self.skipped)}")
        lines += [f"not a class: {name}, {n} objects" for name, n in self.other_names.items()]
        lines += self.problems[:20]
        if self.problems:
            lines.append(f"{len(self.problems)} problems in all; what they name was left out")
        return [*lines, f"written: {self.out / self.kind}.data"]

    def add(self, rows, name, box, count=True):
        """Adds an object to the rows of a label file if it has one of the names; box: relative cx,
        cy, w, h."""
        if name not in self.names:
            self.other_names[name] += 1
            return False
        rows.append(" ".join(map(str, (self.names.index(name), *box))))
        if count:
            self.boxes[name] += 1
        return True

    def write(self, path, lines):
        path = self.out / path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{line}\n" for line in lines)
        path.write_text(text, encoding="utf-8", newline="\n")

    def write_data(self, train, valid, difficult="", comment=""):
        """Writes the lists, the names, and the .data for two of the lists."""
        for name, paths in self.lists.items():
            self.write(f"{name}.txt", paths)
        self.write(f"{self.kind}.names", self.names)
        lines = (
            f"classes = {len(self.names)}", f"train = {self.out / train}.txt",
            f"valid = {self.out / valid}.txt", difficult,
            f"names = {self.out / self.kind}.names", "backup = backup", comment,
        )  # fmt: skip
        self.write(f"{self.kind}.data", filter(None, lines))

    def link(self, source, target):
        """Makes `target` show the images of a folder: a link, or a copy where none is allowed."""
        source, target = source.resolve(), self.out / target
        if target.exists() and target.resolve() == source:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            target.unlink()
        try:
            target.symlink_to(source, target_is_directory=True)
        except OSError:
            shutil.copytree(source, target, dirs_exist_ok=True)


def convert_voc(root, out=None, sets=None, names=None, keep_difficult=False):
    """Converts VOC annotations; what cannot be used is left out, counted and named in the report.

    sets: their names, else those of SETS.  names: of the classes, or "auto"; default: VOC's 20.
    Raises ValueError if there is nothing to convert, OSError if a file cannot be written."""
    found = _voc_sets(Path(os.path.abspath(root)), sets)
    folders = {folder for folder, _ in found.values()}
    result = Conversion("voc", out or min(folders).parent, ", {} difficult objects")
    images = {}  # (VOC folder, name): file, objects
    for key in dict.fromkeys((folder, stem) for folder, stems in found.values() for stem in stems):
        try:
            images[key] = _voc_image(*key, result.problems)
        except ValueError as error:
            result.problems.append(f"{error}, image left out")
    if names == "auto":
        names = sorted({name for _, objects in images.values() for name, *_ in objects})
    result.names = list(names or VOC_NAMES)
    for (folder, stem), (_, objects) in images.items():
        rows = {"labels": [], "difficult": []}
        for name, difficult, box in objects:
            kind = "difficult" if difficult and not keep_difficult else "labels"
            if result.add(rows[kind], name, box, kind == "labels"):
                result.skipped += difficult
        for kind, lines in rows.items():
            result.write(f"{folder.name}/{kind}/{stem}.txt", lines)
    for folder in folders:
        result.link(folder / "JPEGImages", f"{folder.name}/JPEGImages")
    lists = result.lists
    for name, (folder, stems) in found.items():
        files = [images[folder, stem][0] for stem in stems if (folder, stem) in images]
        lists[name] = [result.out / folder.name / "JPEGImages" / file for file in files]
        apart = (result.out / folder.name / "difficult" / file for file in files)
        result.write(f"difficult_{name}.txt", apart)
    for name, members in JOINED.items():
        if joined := [path for member in members for path in lists.get(member, ())]:
            lists[name] = joined
    pairs = [pair.split() for pair in PAIRS] + [[next(iter(lists))] * 2]
    train, valid = next(pair for pair in pairs if set(pair) <= set(lists))
    result.write_data(train, valid, f"# difficult = {result.out / f'difficult_{valid}'}.txt")
    return result


def _voc_sets(root, wanted):
    """{set name: (VOC folder, image names)}"""
    root = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    single, found = (root / "Annotations").is_dir(), {}
    for path in sorted(root.glob(f"{'' if single else 'VOC*/'}ImageSets/Main/*.txt")):
        folder = path.parents[2]
        name = path.stem if single else f"{folder.name.removeprefix('VOC')}_{path.stem}"
        if (name in wanted) if wanted else (path.stem in SETS):
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            found[name] = folder, [line.split()[0] for line in lines if line.strip()]
    missing = [name for name in wanted or () if name not in found]
    if missing or not found:
        expected = "expected ImageSets/Main/*.txt in it, or in VOC2007 ... in it"
        raise ValueError(f"{root}: found no set {' '.join(missing or SETS)}, {expected}")
    return found


def _voc_image(folder, name, problems):
    """The file name of an image, and its objects: class name, difficult, box as in a label file."""
    paths = [folder / "JPEGImages" / (name + suffix) for suffix in SUFFIXES]
    image, objects = next(filter(os.path.isfile, paths), None), []
    if not image or _below(name) != name:
        raise ValueError(f"{paths[0]}: found no such image")
    path = folder / "Annotations" / f"{name}.xml"
    size, found = read_annotation(path, problems)
    if not size:
        raise ValueError(f"{path}: found no size of the image")
    for class_name, difficult, (xmin, ymin, xmax, ymax) in found:
        if xmin < xmax and ymin < ymax:
            # Darknet's script: one pixel off the centre, because VOC counts from 1
            box = (xmin + xmax) / 2 - 1, (ymin + ymax) / 2 - 1, xmax - xmin, ymax - ymin
            box = [value / side for value, side in zip(box, size * 2, strict=True)]
            objects.append((class_name, difficult, box))
        else:
            problems.append(f"{path}: {class_name}: found a box of zero size, left out")
    return image.name, objects


def read_annotation(path, problems=None):
    """A VOC XML: (width, height) of the image or None, and a list of its objects: class name,
    difficult, (xmin, ymin, xmax, ymax) in pixels that count from 1.

    Raises ValueError for a file that is no such XML, and for an object without a name or a box,
    which goes to `problems` if there is such a list."""
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: found no usable XML ({error})") from None
    try:
        size = int(root.findtext("size/width")), int(root.findtext("size/height"))
    except (TypeError, ValueError):
        size = 0, 0
    objects = []
    for number, item in enumerate(root.iter("object"), 1):
        try:
            edges = [float(item.findtext(f"bndbox/{edge}")) for edge in EDGES]
            if not all(abs(edge) < LARGEST for edge in edges):  # nor nan
                raise ValueError
            difficult = int(item.findtext("difficult", "0")) == 1
            objects.append((item.findtext("name").strip(), difficult, tuple(edges)))
        except (AttributeError, TypeError, ValueError):
            problem = f"{path}: object {number}: found no name or box, expected both"
            if problems is None:
                raise ValueError(problem) from None
            problems.append(problem)
    return size if 0 < min(size) <= max(size) < LARGEST else None, objects


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, *_):  # no entity can grow, or name a file
        raise ValueError("a DOCTYPE")


def download_voc(root):
    """Downloads and unpacks VOC 2007 (trainval, test) and 2012 (trainval), unless they are there.

    root: VOCdevkit, or the folder that holds it.  Raises ValueError or OSError."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT  # takes a second

    root = Path(os.path.abspath(root))
    devkit = root if root.name == "VOCdevkit" else root / "VOCdevkit"
    for key, (folder, name, size) in ARCHIVES.items():
        listed = devkit / folder / "ImageSets" / "Main" / f"{name}.txt"
        stems = listed.read_text().split() if listed.exists() else [""]
        if all((devkit / folder / "JPEGImages" / f"{stem}.jpg").exists() for stem in stems):
            continue
        known = DATASET_YEAR_DICT[key]
        remote = Remote((known["url"], MIRROR + known["filename"]), size, known["md5"])
        archive = download(remote, devkit / known["filename"])
        print(f"{archive}: unpacking", flush=True)
        with tarfile.open(archive) as tar:
            tar.extractall(devkit.parent, filter="data")


def guess_format(sources):
    """coco where there are JSON files of it, else voc."""
    files = [file for source in sources for file in _json_files(Path(source))]
    return "coco" if any(file.suffix == ".json" for file in files) else "voc"


def convert_coco(sources, out, images=None, names=None):
    """Converts COCO annotations; what cannot be used is left out, counted and named in the report.

    sources: folders or JSON files.  images: folder at or below which the images are, else found.
    names: of the classes, default: the JSON's categories.  Raises ValueError if there is nothing to
    convert, OSError if a file cannot be read or written."""
    sets = {}
    for path in (path for source in sources for path in _json_files(Path(os.path.abspath(source)))):
        exported = path.name == EXPORT
        name = path.parent.name if exported else path.stem.removeprefix("instances_")
        if name in sets:
            raise ValueError(f"{path}: found a second set {name}, expected each once")
        nested = exported or path.parent.name == "annotations"
        folder = Path(os.path.abspath(images or (path.parents[1] if nested else path.parent)))
        sets[name] = path, folder, *_read_json(path)
    if not sets:
        raise ValueError(f"{sources}: found no annotations/instances_*.json and no */{EXPORT}")
    result = Conversion("coco", out, "; {} crowds left out")
    categories = (name for *_, classes in sets.values() for name in classes.values())
    result.names = list(dict.fromkeys(categories) if names in (None, "auto") else names)
    for name, parts in sets.items():
        result.lists[name] = _convert_set(result, name, *parts)
    names = [*sets]
    train = next((name for name in names if name.startswith("train")), names[0])
    valid = [name for kind in ("val", "test") for name in names if name.startswith(kind)] or [train]
    comment = f"# val.py --protocols coco --coco-json {sets[valid[0]][0]}"
    result.write_data(train, valid[0], comment=comment)
    return result


def _json_files(source):
    if not source.is_dir():
        return [source]
    return sorted(source.glob("annotations/instances_*.json")) or sorted(source.glob(f"*/{EXPORT}"))


def _read_json(path):
    """Images, annotations, and {category id: class name} in the order of the ids."""
    try:
        dataset = json.loads(path.read_text("utf-8-sig"), object_hook=_without_outline)
        images, annotations = dataset["images"], dataset["annotations"]
        named = [(entry["id"], entry["name"].strip()) for entry in dataset["categories"]]
        classes = dict(sorted(named))
        if len(classes) < len(named) or any(len(n.splitlines()) != 1 for n in classes.values()):
            raise ValueError("categories without an id or a name of their own")
        if not all(isinstance(entry, dict) for entry in (*images, *annotations)):
            raise ValueError("no lists of objects")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        expected = "expected images, annotations, categories"
        raise ValueError(f"{path}: found no COCO JSON ({str(error)[:80]}), {expected}") from None
    return images, annotations, classes


def _without_outline(entry):
    entry.pop("segmentation", None)  # most of the file
    return entry


def _convert_set(result, name, path, root, images, annotations, classes):
    """Writes the labels of one set; returns the images for its list."""
    files = [_below(str(entry.get("file_name"))) for entry in images]
    folders = root / name, root / "images" / name, root / "images", root
    folder = next((f for f in folders if any(os.path.isfile(f / file) for file in files)), None)
    if not folder:
        raise ValueError(f"{root}: found none of the {len(files)} images of {name} (--images)")
    result.link(folder, f"{name}/images")
    known, labels, listed = {}, {}, []  # by id: width, height, label file; None where left out
    for count, (entry, file) in enumerate(zip(images, files, strict=True), 1):
        key, sides = entry.get("id"), [entry.get("width"), entry.get("height")]
        label = PurePosixPath(name, "labels", file).with_suffix(".txt")
        numbers = all(isinstance(side, int | float) and 0 < side < LARGEST for side in sides)
        new = isinstance(key, int) and key not in known and label not in labels
        if numbers and new and os.path.isfile(folder / file):
            known[key], labels[label] = (*sides, label), []
            listed.append(result.out / name / "images" / file)
            continue
        if isinstance(key, int):
            known.setdefault(key, None)
        expected = f"expected an id and a file in {folder} of its own, width, height"
        problem = f"{path}: image {count}: found {str(entry)[:120]}, {expected}, left out"
        result.problems.append(problem)
    for count, entry in enumerate(annotations, 1):
        try:
            image = known.get(entry["image_id"], ())
            if image is None or entry.get("iscrowd") == 1:
                result.skipped += image is not None
                continue
            (width, height, label), class_name = image, classes[entry["category_id"]]
            x, y, w, h = map(float, entry["bbox"])
            if not (0 < w < LARGEST and 0 < h < LARGEST and -w < x < width and -h < y < height):
                raise ValueError
            box = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
            result.add(labels[label], class_name, box)
        except (LookupError, TypeError, ValueError, OverflowError):
            expected = "expected an image and a category of this file, and a bbox in the image"
            problem = f"{path}: annotation {count}: found {str(entry)[:120]}, {expected}, left out"
            result.problems.append(problem)
    for label, rows in labels.items():
        result.write(label, rows)
    return listed


def _below(name):
    """What of a path lies below a folder of images: all after a last folder `images`; empty if it
    leads elsewhere, or if no line of a list can hold it."""
    parts = PureWindowsPath(name).parts  # knows both kinds of separators
    starts = [n for n, part in enumerate(parts[:-1], 1) if part in ("images", "JPEGImages")]
    below = PureWindowsPath(*parts[max(starts, default=0) :])
    elsewhere = below.anchor or ".." in parts or name.splitlines() != [name.strip()]
    return "" if elsewhere else below.as_posix()
