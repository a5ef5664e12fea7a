"""From lists and label files to mini-batches: reading, the report before training, training samples, batches.
Source: Darknet's src/data.c (load_data_detection, read_boxes), utils.c (replace_image_to_label), detector.c.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from yolov4 import augment

NO_IMAGE, BAD_IMAGE = "images that do not exist", "files that are no image"
NO_LABELS, BAD_BOX = "images without a label file", "boxes out of range"
BAD_CLASS, TINY = "boxes of an unknown class", "boxes below one pixel of the network (not trained)"


def label_path(image_path):
    """An image's label file: the last folder `JPEGImages` or `images` becomes `labels`, or beside the image.
    The first of the two that exists, else the first.  Never replaces inside a name."""
    path = Path(image_path)
    beside, folders = path.with_suffix(".txt"), path.parts[:-1]
    for index in reversed(range(len(folders))):
        if folders[index] in ("JPEGImages", "images"):
            apart = Path(*folders[:index], "labels", *folders[index + 1 :], beside.name)
            return beside if beside.exists() and not apart.exists() else apart
    return beside


def read_image_list(path):
    """Image paths of a list file, a line each; relative to the file's folder, else to the current one."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8-sig").replace("\\", "/").splitlines()
    images = [Path(line.strip()) for line in lines if line.strip()]
    if not images:
        raise ValueError(f"{path}: found no image path, expected one a line")
    beside = [path.parent / image for image in images]  # an absolute image stays as it is
    return [b if b.exists() or not a.exists() else a for a, b in zip(images, beside, strict=True)]


def read_labels(path):
    """Labels, float32 (n, 5): class, cx, cy, w, h, relative; none where there is no file (as Darknet).
    Raises ValueError with file and line of anything else."""
    rows = [row for _, row in _label_rows(Path(path))] if Path(path).exists() else []
    return np.array(rows, np.float32).reshape(-1, 5)


def load_image(path):
    """The picture, uint8 (H, W, 3) BGR, turned as its EXIF says.  ValueError if it cannot be read."""
    # cv2.imread fails on names beyond ASCII under Windows
    content = np.fromfile(path, np.uint8) if Path(path).is_file() else np.zeros(0, np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise ValueError(f"{path}: found {content.size} bytes that OpenCV cannot decode, expected an image")
    return image


@dataclass
class DatasetReport:
    """What `inspect` found.  usable: images that exist and look like images; boxes: count of each class id;
    findings: what is wrong -> the paths or `file:line: found ...` of it."""

    source: str
    names: list
    usable: list = field(default_factory=list)
    empty: int = 0
    boxes: Counter = field(default_factory=Counter)
    findings: dict = field(default_factory=lambda: defaultdict(list))

    def lines(self):
        """The report for the screen, one string a line."""
        usable, boxes = len(self.usable), sum(self.boxes.values())
        labelled = usable - self.empty - len(self.findings.get(NO_LABELS, []))
        head = f"{self.source}: {usable} images, {labelled} with boxes, {self.empty} empty, {boxes} boxes"
        counts = [f"  {name:<16} {self.boxes[index]:>7}" for index, name in enumerate(self.names)]
        notes = (f"  {len(found)} {what}, the first: {found[0]}" for what, found in self.findings.items())
        return [head, *counts, *notes]

    def check(self):
        """Raises ValueError where training or evaluation would be in vain."""
        for what in (NO_IMAGE, BAD_CLASS):
            if found := self.findings.get(what):
                raise ValueError(f"{self.source}: found {len(found)} {what}, expected none: {found[0]}")
        if not self.boxes:
            first = self.findings.get(NO_LABELS, ["every label file is empty"])[0]
            raise ValueError(f"{self.source}: found 0 boxes, expected label files with boxes: {first}")


def inspect(paths, names, size, source="images"):
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


class TrainingSet(Dataset):
    """Augmented samples.  All that is random in sample i comes from (seed, i), whoever loads it, and when.
    paths: images, drawn with replacement; net, head: Darknet's keys of [net] and the last [yolo]."""

    def __init__(self, paths, net, head, seed):
        if net.mosaic and net.letter_box:
            raise ValueError("[net]: found mosaic=1 with letter_box=1, expected only one of them")
        self.paths, self.net, self.head, self.seed = [str(path) for path in paths], net, head, seed

    def __getitem__(self, key):
        """key: (index, (width, height)).  Image uint8 (3, H, W) RGB, labels float32 (n, 5), image files."""
        index, size = key
        rng = np.random.default_rng((self.seed, index))
        count = 1 if rng.random() < 0.5 else 4 if self.net.mosaic else 2 if self.net.mixup else 1
        parts = [self._part(rng, size, corner if count == 4 else None) for corner in range(count)]
        tiles, borders, files = zip(*parts, strict=True)
        if count == 4:
            cut = augment.draw_cut(rng, size)
            image, labels = augment.join_tiles(tiles, borders, cut, self.net.mosaic_bound)
        else:
            image, labels = augment.mixup(*tiles) if count == 2 else tiles[0]
        image = np.stack(cv2.split(image)[::-1])  # (3, H, W), RGB
        return torch.from_numpy(image), torch.from_numpy(labels), list(files)

    def _part(self, rng, size, corner):
        path = self.paths[rng.integers(len(self.paths))]
        image, labels = load_image(path), read_labels(label_path(path))
        image_size = image.shape[1::-1]
        params = augment.draw_crop(rng, self.net, self.head, image_size, size)
        blur, noise = augment.draw_effects(rng, self.net)
        if corner is not None and rng.random() < 0.5:
            params = augment.push_to_corner(params, corner)
        image, labels = augment.crop_flip_hsv(image, labels, params, size)
        image = augment.gaussian_noise(augment.blur(image, labels, blur), noise, rng)
        return (image, labels), augment.empty_border(params, image_size, size), path


def collate(samples):
    """Images uint8 (B, 3, H, W), targets float32 (T, 6): image index, class, cx, cy, w, h, files."""
    images, labels, files = zip(*samples, strict=True)
    owners = torch.repeat_interleave(torch.arange(len(labels)), torch.tensor([len(rows) for rows in labels]))
    return torch.stack(images), torch.cat((owners[:, None].float(), torch.cat(labels)), 1), list(files)


def training_size(net, head, iteration, seed):
    """(width, height) of an iteration: the network's, or with `random` another every ten iterations."""
    if not head.random:
        return net.width, net.height
    limit, block = 1.4 if head.random == 1 else head.random, iteration // 10
    factor = augment.draw_factor(np.random.default_rng((seed, block)), limit)
    if block == 0 or block * 10 > net.max_batches - 100:
        factor = limit  # the largest first (is there enough memory?) and last (for the rolling averages)
    step = net.resize_step
    width, height = (math.floor(factor * side / step + 1.5) * step for side in (net.width, net.height))
    if factor < 1 and (width > net.width or height > net.height):
        return net.width, net.height
    return width, height


class MiniBatches:
    """Batch sampler: the lists of (sample index, size) of this rank's mini-batches, iterations start..end-1.
    Iteration t has the samples t * batch ... in `subdivisions` mini-batches, in equal runs over the ranks."""

    def __init__(self, net, head, seed, start, end, rank=0, world=1):
        subdivisions = max(net.subdivisions, world)
        if net.batch % subdivisions or subdivisions % world:
            found = f"batch={net.batch}, subdivisions={subdivisions}, {world} processes"
            raise ValueError(f"[net]: found {found}, expected each to be a multiple of the next")
        self.net, self.head, self.seed, self.iterations = net, head, seed, range(start, end)
        self.rows, self.runs = net.batch // subdivisions, subdivisions // world
        self.first = rank * self.runs * self.rows

    def __len__(self):
        return len(self.iterations) * self.runs

    def __iter__(self):
        for iteration in self.iterations:
            size = training_size(self.net, self.head, iteration, self.seed)
            for start in range(self.first, self.first + self.runs * self.rows, self.rows):
                first = iteration * self.net.batch + start
                yield [(index, size) for index in range(first, first + self.rows)]


def training_batches(paths, net, head, seed, start, end, workers, rank=0, world=1, pin_memory=False):
    """DataLoader of `collate`d mini-batches, iterations start..end-1, from `workers` processes (or 0)."""
    options = {"num_workers": workers, "persistent_workers": workers > 0, "worker_init_fn": _one_thread}
    options |= {"batch_sampler": MiniBatches(net, head, seed, start, end, rank, world), "collate_fn": collate}
    return DataLoader(TrainingSet(paths, net, head, seed), pin_memory=pin_memory, **options)


def _one_thread(_):
    cv2.setNumThreads(0)  # the workers are the parallelism


def _label_rows(path):
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            class_id, *box = line.split()
            row = [int(class_id), *map(float, box)]
        except ValueError:
            row = []
        if len(row) != 5 or row[0] < 0 or not all(map(math.isfinite, row)):
            raise ValueError(f'{path}:{number}: found "{line.strip()}", expected "class cx cy w h"')
        yield number, row


def _inspect_labels(path, size, report):
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
