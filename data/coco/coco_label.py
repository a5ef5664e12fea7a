"""COCO JSON -> Darknet's labels and lists: `python coco_label.py COCO [--out DIR]`.  Standard library only.
Source: cocodataset.org (format-data); Darknet's scripts/get_coco_dataset.sh for what train.py then reads.

COCO holds annotations/instances_*.json and train2017, val2017; or it is an export of other tools, with a
_annotations.coco.json in train, valid, ...; or JSON files are given, and --images FOLDER where their images are.
A set is called as its JSON (train2017) or its folder (train).  Written into --out, the source stays as it is:
  train2017/images            a link to the images
  train2017/labels/NAME.txt   class cx cy w h; empty where an image has no boxes; crowds are left out
  train2017.txt ...           lists of images
  coco.data, coco.names       what Darknet's commands read; classes count from 0 in the order of category ids
"""

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "voc0712"))
from voc_label import link_images, write  # noqa: E402

ROBOFLOW = "_annotations.coco.json"
LARGEST = 1e9  # pixels
PARTS = ("images", "annotations", "categories")


def find_sets(sources, images=None):
    """The JSON files among files and folders: {set name: (JSON file, folder at or below which its images are)}.
    ValueError if there are none, or two of one name."""
    found = {}
    for source in (Path(os.path.abspath(source)) for source in sources):
        files = [source]
        if source.is_dir():
            files = sorted(source.glob("annotations/instances_*.json")) or sorted(source.glob(f"*/{ROBOFLOW}"))
        if not files:
            expected = f"annotations/instances_*.json or */{ROBOFLOW} in it"
            raise ValueError(f"{source}: found no COCO JSON, expected {expected}, or JSON files and --images")
        for path in files:
            folder, roboflow = path.parent, path.name == ROBOFLOW
            name = folder.name if roboflow else path.stem.removeprefix("instances_")
            if name in (*found, "", ".", ".."):
                raise ValueError(f"{path}: found a set called {name!r}, expected each by a name of its own")
            nested = roboflow or folder.name == "annotations"
            found[name] = path, Path(os.path.abspath(images)) if images else folder.parent if nested else folder
    return found


def read_json(path):
    """The file's images, annotations, categories, lists of dicts.  Outlines are dropped while it is read: they are
    most of it.  ValueError if it is no COCO JSON."""
    try:
        dataset = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=without_outline)
        parts = [dataset[key] for key in PARTS]
        if not all(isinstance(part, list) and all(isinstance(each, dict) for each in part) for part in parts):
            raise ValueError(f"{', '.join(PARTS)} are no lists of objects")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        found = f"{path}: found no COCO JSON ({str(error)[:80]})"
        raise ValueError(f"{found}, expected {', '.join(PARTS)}") from None
    return dict(zip(PARTS, parts, strict=True))


def without_outline(entry):
    entry.pop("segmentation", None)
    return entry


def read_categories(path, categories):
    """{category id: class name} in the order of the ids.  ValueError if one cannot be used, or an id is there twice."""
    names = {}
    for number, entry in enumerate(categories, 1):
        key, name = entry.get("id"), entry.get("name")
        if type(key) is not int or key in names or not is_line(name):
            found = f"id {str(key)[:20]!r}, name {str(name)[:40]!r}"
            raise ValueError(f"{path}: category {number}: found {found}, expected a number of its own, and a name")
        names[key] = name.strip()
    return dict(sorted(names.items()))


def is_line(value):
    """Whether a value is text that a line of a UTF-8 file can hold."""
    if not isinstance(value, str) or "\0" in value or value.encode(errors="ignore").decode() != value:
        return False
    return bool(value.strip()) and len(value.splitlines()) == 1


def is_number(value):
    """Whether a value is a number of a size that pixels have; nan is not."""
    return type(value) in (int, float) and abs(value) < LARGEST


def relative_name(file_name):
    """A `file_name` below the folder of the images: what follows its last folder `images`.  ValueError if it leads
    elsewhere, or if no line of a list can hold it."""
    text = file_name.replace("\\", "/") if isinstance(file_name, str) else ""
    parts = PurePosixPath(text).parts
    starts = [index + 1 for index, part in enumerate(parts[:-1]) if part in ("images", "JPEGImages")]
    name = "/".join(parts[max(starts, default=0) :])
    usable = is_line(name) and name == name.strip() and len(name.encode()) <= 200
    if not usable or ".." in parts or PureWindowsPath(name).anchor:
        raise ValueError(f"found file_name {str(file_name)[:60]!r}, expected an image below the folder of the images")
    return name


def read_image(entry):
    """(id, name below the folder of the images, (width, height)) of an entry of "images".  Raises ValueError."""
    size = entry.get("width"), entry.get("height")
    if type(entry.get("id")) is not int:
        raise ValueError(f"found id {str(entry.get('id'))[:20]!r}, expected a whole number")
    if not all(is_number(side) and side > 0 for side in size):
        raise ValueError(f"found a size of {str(size)[:60]}, expected width and height in pixels")
    return entry["id"], relative_name(entry.get("file_name")), size


def convert_box(width, height, x, y, w, h):
    """Relative cx, cy, w, h of COCO's box: left, top, width, height in pixels, counted from 0."""
    return (x + w / 2) / width, (y + h / 2) / height, w / width, h / height


def find_folder(root, name, files):
    """The folder at or below `root` that has images of the set `name`.  Raises ValueError if there is none."""
    folders = (root / name, root / "images" / name, root / "images", root)
    found = next((folder for folder in folders if any((folder / file).is_file() for file in files)), None)
    if found is None:
        raise ValueError(f"{root}: found none of the {len(files)} images of {name}, expected them there (--images)")
    return found


class Converter:
    """Converts sets one after the other; counts, and collects the problems."""

    def __init__(self, names, out):
        self.names, self.out, self.problems, self.crowds = names, out, [], 0
        self.boxes, self.other_names = Counter(), Counter()

    def convert(self, name, path, root, dataset):
        """Writes the labels of a set and its list; returns the images in the list."""
        images = self._images(path, dataset["images"])
        folder = find_folder(root, name, [image[0] for image in images.values() if image])
        for number, image in images.items():
            if image and not (folder / image[0]).is_file():
                self.problems.append(f"{folder / image[0]}: found no such image, image left out")
                images[number] = None
        rows = self._rows(path, dataset, images)
        link_images(folder, self.out / name / "images")
        for number, lines in rows.items():
            write((self.out / name / "labels" / images[number][0]).with_suffix(".txt"), "".join(lines))
        listed = [self.out / name / "images" / images[number][0] for number in rows]
        write(self.out / f"{name}.txt", "".join(f"{image}\n" for image in listed))
        return listed

    def _images(self, path, entries):
        """{id: (name, size), or None where the image is left out}"""
        images, taken = {}, set()
        for count, entry in enumerate(entries, 1):
            try:
                number, name, size = read_image(entry)
                label = PurePosixPath(name).with_suffix("")
                if number in images or label in taken:
                    raise ValueError(f"found id {number}, {name} a second time, expected each id and name once")
                images[number] = name, size
                taken.add(label)
            except ValueError as error:
                if type(entry.get("id")) is int:
                    images.setdefault(entry["id"], None)
                self.problems.append(f"{path}: image {count}: {error}, image left out")
        return images

    def _rows(self, path, dataset, images):
        """{id of an image: lines of its labels}"""
        classes = read_categories(path, dataset["categories"])
        rows = {number: [] for number, image in images.items() if image}
        for count, entry in enumerate(dataset["annotations"], 1):
            number, category, box = (entry.get(key) for key in ("image_id", "category_id", "bbox"))
            known = type(number) is int and number in images
            if known and not images[number]:
                continue  # was left out, and said so
            if entry.get("iscrowd") == 1:
                self.crowds += 1
                continue
            where = f"{path}: annotation {count}: found"
            if not known:
                self.problems.append(f"{where} image_id {str(number)[:20]!r}, which no image has, left out")
            elif type(category) is not int or category not in classes:
                self.problems.append(f"{where} category_id {str(category)[:20]!r}, which no category has, left out")
            elif (wrong := wrong_box(box, *images[number][1])) is not None:
                self.problems.append(f"{where} {wrong} ({classes[category]} in {images[number][0]}), left out")
            elif classes[category] not in self.names:
                self.other_names[classes[category]] += 1
            else:
                values = self.names.index(classes[category]), *convert_box(*images[number][1], *box)
                rows[number].append(" ".join(map(str, values)) + "\n")
                self.boxes[classes[category]] += 1
        return rows


def wrong_box(box, width, height):
    """What is wrong with a `bbox` in an image of that size; None where it can be used."""
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        return f"bbox {str(box)[:60]}, expected four numbers"
    x, y, w, h = box
    if not (w > 0 and h > 0):
        return "a box of zero size"
    return None if x < width and y < height and x + w > 0 and y + h > 0 else "a box outside the image"


def data_text(sets, names, out):
    """The text of coco.data: trains on the first set called train..., validates on val... or else test..."""
    first = next(iter(sets))
    train = next((name for name in sets if name.startswith("train")), first)
    valid = next((name for kind in ("val", "test") for name in sets if name.startswith(kind)), train)
    return (
        f"classes = {len(names)}\ntrain = {out / train}.txt\nvalid = {out / valid}.txt\n"
        f"names = {out / 'coco.names'}\nbackup = backup\n# val.py --protocols coco --coco-json {sets[valid][0]}\n"
    )


def convert(sources, out=HERE, images=None, names=None):
    """Writes labels and lists; returns (Converter, {list name: images}).  names: of classes, else the JSON's.
    ValueError if there is nothing to convert, OSError if a file cannot be read or written."""
    sets, out = find_sets(sources, images), Path(os.path.abspath(out))
    datasets = {name: read_json(path) for name, (path, _) in sets.items()}
    if not names:
        named = [read_categories(sets[name][0], dataset["categories"]) for name, dataset in datasets.items()]
        names = list(dict.fromkeys(name for each in named for name in each.values()))
    converter = Converter(names, out)
    lists = {name: converter.convert(name, *place, datasets.pop(name)) for name, place in sets.items()}
    write(out / "coco.names", "".join(f"{name}\n" for name in names))
    write(out / "coco.data", data_text(sets, names, out))
    return converter, lists


def report(converter, lists, shown=20):
    """The summary, a string a line."""
    lines = [f"{name + '.txt':<20} {len(paths):>6} images" for name, paths in lists.items()]
    lines += [f"  {name:<18} {converter.boxes[name]:>6} boxes" for name in converter.names]
    lines.append(f"{sum(converter.boxes.values())} boxes; {converter.crowds} crowds left out")
    lines += [f"not a class: {name}, {count} objects" for name, count in converter.other_names.items()]
    lines += converter.problems[:shown]
    if converter.problems:
        lines.append(f"{len(converter.problems)} problems in all; what they name was left out")
    return [*lines, f"written: {converter.out / 'coco.data'}"]


def main():
    """Reads the command line; exit code 1 with one sentence if nothing can be converted."""
    parser = argparse.ArgumentParser(description="COCO's annotations -> Darknet labels and lists")
    parser.add_argument("sources", nargs="+", metavar="COCO", help="folder with annotations/, or JSON files")
    parser.add_argument("--images", type=Path, help="folder at or below which the images are; default: found")
    parser.add_argument(
        "--names", type=Path, help="file of class names, in their order; default: the JSON's categories"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: that of this tool)")
    arguments = parser.parse_args()
    try:
        names = arguments.names and arguments.names.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        names = [name.strip() for name in names or () if name.strip()]
        result = convert(arguments.sources, arguments.out, arguments.images, names)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        sys.exit(str(error))
    print("\n".join(report(*result)))


if __name__ == "__main__":
    main()
