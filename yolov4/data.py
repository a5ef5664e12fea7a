"""Lists, labels, images as files, and the report on them before training.
Source: Darknet's src/data.c (get_paths, read_boxes), src/utils.c (replace_image_to_label)."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from yolov4.files import read_text

MAX_CLASS, MAX_VALUE = 1 << 24, 1e9  # of a label: whole numbers, and areas, that float32 still holds
MAX_NAME = 255  # bytes, as file systems have it
NO_IMAGE, BAD_IMAGE = "images that do not exist", "files that are no image"
NO_LABELS, BAD_BOX = "images without a label file", "boxes out of range"
BAD_CLASS, TINY = "boxes of an unknown class", "boxes below one pixel of the network (not trained)"


def label_path(image_path: str | Path) -> Path:
    """An image's label file: the last folder `JPEGImages` or `images` becomes `labels`, or beside the image.
    The first of the two that exists, else the first.  Never replaces inside a name."""
    path = Path(image_path)
    beside, folders = path.with_suffix(".txt"), path.parts[:-1]
    for index in reversed(range(len(folders))):
        if folders[index] in ("JPEGImages", "images"):
            apart = Path(*folders[:index], "labels", *folders[index + 1 :], beside.name)
            return beside if beside.exists() and not apart.exists() else apart
    return beside


def read_image_list(path: str | Path) -> list[Path]:
    """Image paths of a list file, a line each; relative to the file's folder, else to the current one."""
    path = Path(path)
    lines = read_text(path).replace("\\", "/").splitlines()
    images = [Path(line.strip()) for line in lines if line.strip()]
    if not images or not all(image.name for image in images):
        raise ValueError(f"{path}: found {'a folder' if images else 'no image path'}, expected an image path a line")
    endless = [str(image) for image in images if any(len(part.encode()) > MAX_NAME for part in image.parts)]
    if endless:
        raise ValueError(f"{path}: found {endless[0][:40]}..., expected names of at most {MAX_NAME} bytes in a path")
    beside = [path.parent / image for image in images]  # an absolute image stays as it is
    return [b if b.exists() or not a.exists() else a for a, b in zip(images, beside, strict=True)]


def read_labels(path: str | Path) -> np.ndarray:
    """Labels, float32 (n, 5): class, cx, cy, w, h, relative; none where there is no file (as Darknet).
    Raises ValueError with file and line of anything else."""
    rows = [row for _, row in _label_rows(Path(path))] if Path(path).exists() else []
    return np.array(rows, np.float32).reshape(-1, 5)


def load_image(path: str | Path) -> np.ndarray:
    """The picture, uint8 (H, W, 3) BGR, turned as its EXIF says.  ValueError if it cannot be read."""
    # cv2.imread fails on names beyond ASCII under Windows
    content = np.fromfile(path, np.uint8) if Path(path).is_file() else np.zeros(0, np.uint8)
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except cv2.error as error:  # too many pixels, a format that is switched off
        raise ValueError(f"{path}: OpenCV cannot decode it ({error.err}), expected an image") from None
    if image is None:
        raise ValueError(f"{path}: found {content.size} bytes that OpenCV cannot decode, expected an image")
    return image


@dataclass
class DatasetReport:
    """What `inspect` found.  usable: images that exist and look like images; boxes: count of each class id;
    findings: what is wrong -> the paths or `file:line: found ...` of it."""

    source: str
    names: list[str]
    usable: list[Path] = field(default_factory=list)
    empty: int = 0
    boxes: Counter[int] = field(default_factory=Counter)
    findings: dict[str, list] = field(default_factory=lambda: defaultdict(list))

    def lines(self) -> list[str]:
        """The report for the screen, one string a line."""
        usable, boxes = len(self.usable), sum(self.boxes.values())
        labelled = usable - self.empty - len(self.findings.get(NO_LABELS, []))
        head = f"{self.source}: {usable} images, {labelled} with boxes, {self.empty} empty, {boxes} boxes"
        counts = [f"  {name:<16} {self.boxes[index]:>7}" for index, name in enumerate(self.names)]
        notes = (f"  {len(found)} {what}, the first: {found[0]}" for what, found in self.findings.items())
        counters = f"  counters_per_class={','.join(str(self.boxes[index]) for index in range(len(self.names)))}"
        return [head, *counts, counters, *notes]

    def check(self) -> None:
        """Raises ValueError where training or evaluation would be in vain."""
        for what in (NO_IMAGE, BAD_CLASS):
            if found := self.findings.get(what):
                raise ValueError(f"{self.source}: found {len(found)} {what}, expected none: {found[0]}")
        if not self.boxes:
            first = self.findings.get(NO_LABELS, ["every label file is empty"])[0]
            raise ValueError(f"{self.source}: found 0 boxes, expected label files with boxes: {first}")


def inspect(
    paths: Iterable[str | Path], names: Sequence[str], size: tuple[int, int], source: str | Path = "images"
) -> DatasetReport:
    """Looks at all images and labels without decoding: a file is an image if its first bytes say so.
    names: of the classes; size: (width, height) of the network; source: what the report calls the list."""
    report = DatasetReport(str(source), list(names))
    for path in map(Path, paths):
        if not path.is_file():
            report.findings[NO_IMAGE].append(path)
        elif not cv2.haveImageReader(str(path)):
            report.findings[BAD_IMAGE].append(path)
        else:
            report.usable.append(path)
            _inspect_labels(label_path(path), size, report)
    return report


def _label_rows(path: Path) -> Iterator[tuple[int, list[float]]]:
    for number, line in enumerate(read_text(path, "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            class_id, *box = line.split()
            row = [int(class_id), *map(float, box)]
        except ValueError:
            row = []
        if len(row) != 5 or not 0 <= row[0] <= MAX_CLASS or not all(abs(value) <= MAX_VALUE for value in row[1:]):
            raise ValueError(f'{path}:{number}: found "{line.strip()[:60]}", expected "class cx cy w h"')
        yield number, row


def _inspect_labels(path: Path, size: tuple[int, int], report: DatasetReport) -> None:
    if not path.exists():
        report.findings[NO_LABELS].append(path)
        return
    rows = list(_label_rows(path))
    report.empty += not rows
    for number, (class_id, *box) in rows:
        where, classes = f"{path}:{number}: found", len(report.names)
        report.boxes[class_id] += 1
        if class_id >= classes:
            report.findings[BAD_CLASS].append(f"{where} class {class_id}, expected 0..{classes - 1}")
        if not all(0 < value <= 1 for value in box):
            report.findings[BAD_BOX].append(f"{where} {box}, expected values in 0..1")
        elif box[2] * size[0] < 1 or box[3] * size[1] < 1:
            report.findings[TINY].append(f"{where} {box[2]} {box[3]}, expected at least a pixel")
