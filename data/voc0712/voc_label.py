"""VOC XML -> Darknet's labels and lists: `python voc_label.py VOCDEVKIT [--out DIR]`.  Standard library only
(--download: see download.py).
Source: Darknet's scripts/voc_label.py (the same numbers but for the last digit: divided, not times 1 / size).

VOCDEVKIT holds VOC2007, VOC2012 ... (sets: 2007_train ...), or is one such folder itself (sets: train ...).
Written beside the VOC folders, or into --out where the source must not change (it then links JPEGImages):
  VOC2012/labels/NAME.txt     objects that are not difficult; with --keep-difficult all of them
  VOC2012/difficult/NAME.txt  the difficult ones
  2012_train.txt ...          lists of images; train.txt, train.all.txt as upstream joins them
  difficult_2012_train.txt    for Darknet's `difficult=`: paths whose label files hold the difficult objects
  voc.data, voc.names         what Darknet's commands read
"""

import argparse
import contextlib
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

SETS = ("train", "val", "trainval", "test")
JOINED = {
    "train": ("2007_train", "2007_val", "2012_train", "2012_val"),
    "train.all": ("2007_train", "2007_val", "2007_test", "2012_train", "2012_val"),
}
YEARS = (("train", "2007_test"), ("2012_train", "2012_val"), ("2007_train", "2007_val"))
# what voc.data trains on and validates on: the first pair that is there
PAIRS = (*YEARS, ("trainval", "test"), ("train", "test"), ("train", "val"))
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp")


def find_sets(root, wanted=None):
    """The set files below `root`: {set name: (VOC folder, image names)}.
    wanted: set names, else those of SETS are taken.  ValueError if one is missing or there are none."""
    root = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    single = (root / "Annotations").is_dir()
    folders = [root] if single else sorted(path.parent for path in root.glob("VOC*/Annotations"))
    if not folders:
        raise ValueError(f"{root}: found no VOC folder, expected VOC2007, VOC2012 or Annotations in it")
    found = {}
    for folder in folders:
        for path in sorted((folder / "ImageSets" / "Main").glob("*.txt")):
            name = path.stem if single else f"{folder.name.removeprefix('VOC')}_{path.stem}"
            if (name in wanted) if wanted else (path.stem in SETS):
                lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
                found[name] = folder, [line.split()[0] for line in lines if line.strip()]
    if missing := sorted(set(wanted or ()) - set(found)):
        raise ValueError(f"{root}: found no set {missing[0]} in ImageSets/Main, expected {missing[0]}.txt")
    if not found:
        raise ValueError(f"{root}: found no set in ImageSets/Main, expected one of {', '.join(SETS)}")
    return found


def convert_box(width, height, xmin, ymin, xmax, ymax):
    """Relative cx, cy, w, h of a VOC box in pixels."""
    # upstream's: one pixel off the centre, because VOC counts from 1
    cx, cy = (xmin + xmax) / 2 - 1, (ymin + ymax) / 2 - 1
    return cx / width, cy / height, (xmax - xmin) / width, (ymax - ymin) / height


def read_annotation(path, problems):
    """Yields (class name, difficult, (cx, cy, w, h)) of an XML; what has to be left out goes to `problems`.
    Raises ValueError if the file cannot be used at all."""
    try:
        if b"<!DOCTYPE" in (content := path.read_bytes()):  # no entity can grow, or name a file
            raise ValueError("a DOCTYPE, which VOC's have not")
        root = ElementTree.fromstring(content)
        size = [int(root.find("size").find(side).text) for side in ("width", "height")]
    except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: found no usable XML with the size of the image ({error})") from error
    if not 0 < min(size) <= max(size) < 1e9:
        raise ValueError(f"{path}: found an image of {size[0]} x {size[1]} pixels, expected its true size")
    for number, item in enumerate(root.iter("object"), 1):
        try:
            name = item.findtext("name").strip()
            edges = [float(item.find("bndbox").find(key).text) for key in ("xmin", "ymin", "xmax", "ymax")]
            difficult = int(item.findtext("difficult", "0")) == 1
        except (AttributeError, TypeError, ValueError):
            problems.append(f"{path}: object {number}: found no name or box, expected both")
            continue
        if not (-1e9 < edges[0] < edges[2] < 1e9 and -1e9 < edges[1] < edges[3] < 1e9):
            problems.append(f"{path}: object {number} ({name}): found a box of zero size, left out")
        else:
            yield name, difficult, convert_box(*size, *edges)


class Converter:
    """Converts each image once, whatever sets it is in; counts, and collects the problems."""

    def __init__(self, names, out, keep_difficult):
        self.names, self.out, self.keep_difficult = names, out, keep_difficult
        self.done, self.problems, self.difficult = {}, [], 0
        self.boxes, self.other_names = Counter(), Counter()

    def image(self, folder, name):
        """Writes the labels of an image.  Returns its path in the output, or None if it is left out."""
        if (folder, name) not in self.done:
            try:
                self.done[folder, name] = self._convert(folder, name)
            except ValueError as error:
                self.done[folder, name] = None
                self.problems.append(f"{error}, image left out")
        return self.done[folder, name]

    def _convert(self, folder, name):
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name or len(name) > 200:
            raise ValueError(f"{folder}: found {name[:60]!r} in a set, expected the name of an image in JPEGImages")
        candidates = [folder / "JPEGImages" / (name + suffix) for suffix in SUFFIXES]
        image = next((path for path in candidates if path.exists()), None)
        if image is None:
            raise ValueError(f"{candidates[0]}: found no such image")
        rows = {"labels": [], "difficult": []}
        annotation = folder / "Annotations" / f"{name}.xml"
        for class_name, difficult, box in read_annotation(annotation, self.problems):
            if class_name not in self.names:
                self.other_names[class_name] += 1
                continue
            kind = "difficult" if difficult and not self.keep_difficult else "labels"
            rows[kind].append(" ".join(map(str, (self.names.index(class_name), *box))) + "\n")
            self.boxes[class_name] += kind == "labels"
            self.difficult += difficult
        target = self.out / folder.name
        for kind, lines in rows.items():
            write(target / kind / f"{name}.txt", "".join(lines))
        return target / "JPEGImages" / image.name


def write(path, text):
    """Writes UTF-8 with plain newlines; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def link_images(source, target):
    """Makes the path `target` show the images of the folder `source`: a link, or a copy where none is allowed."""
    source = source.resolve()
    if target.exists() and target.resolve() == source:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        shutil.copytree(source, target, dirs_exist_ok=True)


def write_lists(sets, converter):
    """Writes the list of each set and the joined ones; returns {list name: images}."""
    lists = {name: [converter.image(folder, i) for i in ids] for name, (folder, ids) in sets.items()}
    lists = {name: [path for path in paths if path] for name, paths in lists.items()}
    for name, paths in lists.items():
        entries = [path.parent.parent / "difficult" / path.name for path in paths]
        write(converter.out / f"difficult_{name}.txt", "".join(f"{path}\n" for path in entries))
    for name, members in JOINED.items():
        if joined := [path for member in members for path in lists.get(member, [])]:
            lists[name] = joined
    for name, paths in lists.items():
        write(converter.out / f"{name}.txt", "".join(f"{path}\n" for path in paths))
    return lists


def data_text(lists, names, out):
    """The text of voc.data."""
    only = next(iter(lists))
    train, valid = next((pair for pair in PAIRS if set(pair) <= set(lists)), (only, only))
    return (
        f"classes = {len(names)}\ntrain = {out / train}.txt\nvalid = {out / valid}.txt\n"
        f"# difficult = {out / f'difficult_{valid}'}.txt\nnames = {out / 'voc.names'}\nbackup = backup\n"
    )


def names_in(sets):
    """The class names in the annotations of the sets, sorted."""
    found = set()
    for path in {folder / "Annotations" / f"{name}.xml" for folder, names in sets.values() for name in names}:
        with contextlib.suppress(ValueError):  # the conversion reports it
            found |= {class_name for class_name, _, _ in read_annotation(path, [])}
    return sorted(found)


def convert(root, out=None, wanted=None, names=None, keep_difficult=False):
    """Writes labels and lists; returns (Converter, {list name: images}).  names: a list, or "auto".
    ValueError if there is nothing to convert, OSError if the output cannot be written."""
    sets = find_sets(Path(os.path.abspath(root)), wanted)
    folders = {folder for folder, _ in sets.values()}
    out = Path(os.path.abspath(out)) if out else min(folders).parent
    names = names_in(sets) if names == "auto" else names
    for folder in folders:
        link_images(folder / "JPEGImages", out / folder.name / "JPEGImages")
    converter = Converter(names, out, keep_difficult)
    lists = write_lists(sets, converter)
    write(out / "voc.names", "".join(f"{name}\n" for name in names))
    write(out / "voc.data", data_text(lists, names, out))
    return converter, lists


def report(converter, lists, shown=20):
    """The summary, a string a line."""
    lines = [f"{name + '.txt':<20} {len(paths):>6} images" for name, paths in lists.items()]
    lines += [f"  {name:<18} {converter.boxes[name]:>6} boxes" for name in converter.names]
    lines.append(f"{sum(converter.boxes.values())} boxes, {converter.difficult} difficult objects")
    lines += [f"not a class: {name}, {count} objects" for name, count in converter.other_names.items()]
    lines += converter.problems[:shown]
    if converter.problems:
        lines.append(f"{len(converter.problems)} problems in all; what they name was left out")
    return [*lines, f"written: {converter.out / 'voc.data'}"]


def main():
    """Reads the command line; exit code 1 with one sentence if nothing can be converted."""
    parser = argparse.ArgumentParser(description="VOC annotations -> Darknet labels and lists")
    parser.add_argument("vocdevkit", type=Path, help="folder with VOC2007, VOC2012 ..., or one of them")
    parser.add_argument("--download", action="store_true", help="first bring VOC 2007 and 2012 there: 2.9 GB")
    parser.add_argument("--sets", nargs="+", help="such as 2012_train 2007_test; default: all found")
    parser.add_argument("--names", help="file of class names, or auto; default: the 20 of VOC")
    parser.add_argument("--out", type=Path, help="folder to write to; default: beside the VOC folders")
    parser.add_argument("--keep-difficult", action="store_true", help="difficult objects count as others")
    arguments = parser.parse_args()
    try:
        if arguments.download:
            from download import download_voc  # needs more than the standard library

            download_voc(arguments.vocdevkit)
        names = arguments.names or Path(__file__).with_name("voc.names")
        if names != "auto":
            names = Path(names).read_text(encoding="utf-8-sig", errors="replace").splitlines()
            names = [name.strip() for name in names if name.strip()]
        result = convert(arguments.vocdevkit, arguments.out, arguments.sets, names, arguments.keep_difficult)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on with a download")
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror} (--out DIR leaves the data as they are)")
    except ValueError as error:
        sys.exit(str(error))
    print("\n".join(report(*result)))


if __name__ == "__main__":
    main()
