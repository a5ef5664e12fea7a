"""Image lists, labels, the report before training, training samples and mini-batches.
Source: Darknet's src/data.c (get_paths, read_boxes, load_data_detection), src/detector.c."""

import ctypes
import glob
import hashlib
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from yolov4 import augment
from yolov4.files import IMAGES, locate, read_lines, read_text, utf8_path

LARGEST = 1 << 24  # value in a label: what float32 holds exactly
MAX_PIXELS = 1 << 28  # of an image with the border that is put around it
TRIES = 20  # images drawn for one place in a sample before it stays empty
NO_IMAGE, NO_LABELS = "images that do not exist", "images without a label file"
BAD_CLASS = "boxes of an unknown class"
IN_PIXELS = "every box has values above 2, as if in pixels, expected 0..1 of the image's sides"
SMALL = 8  # pixels of the network input
HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # the terminal was closed; not under Windows
STOPS = {signal.SIGINT, signal.SIGTERM, HANGUP}  # ask a training to stop
DATA_LIMIT = 300  # seconds that a mini-batch is waited for
BOXES = re.compile(r"(\s+-?[\d.]+(,-?[\d.]+){4,})+$")  # x1,y1,x2,y2,class ... behind an image


def keep_freed_memory():
    """From here on this process keeps the memory it frees (glibc's mallopt): a fresh page costs a
    fault.  On two cores training has 41 % more images/s, and an evaluation never takes the 200 to
    310 ms per image that some took instead of 160."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def label_path(image_path):
    """An image's label file: the last folder `JPEGImages` or `images` becomes `labels`, or beside
    the image.  The first of the two that exists, else the first."""
    beside = Path(image_path).with_suffix(".txt")
    for folder in beside.parents:
        if folder.name in ("JPEGImages", "images"):
            apart = folder.with_name("labels") / beside.relative_to(folder)
            return beside if os.path.exists(beside) and not os.path.exists(apart) else apart
    return beside


def read_image_list(path):
    """Image paths: of a list, one per line and resolved by `locate`; of a folder and all below it;
    of a glob.  Raises ValueError where there are none, and for lists with boxes in them."""
    pattern = f"{glob.escape(str(path))}/**" if Path(path).is_dir() else str(path)
    if glob.has_magic(pattern) and not os.path.isfile(path):
        found = sorted(glob.glob(pattern, recursive=True))
        images = [Path(file) for file in found if file.lower().endswith(IMAGES)]
    else:
        images = [locate(name, path) for name in read_lines(path)]
    sizes = [len(os.fsencode(image.name)) for image in images]
    if not 0 < min(sizes, default=0) < 256:
        raise ValueError(f"{path}: found no image path or one without a usable name")
    if BOXES.search(str(images[0])):
        raise ValueError(
            f"{path}: a list with boxes behind each image (x1,y1,x2,y2,class), expected image "
            f"paths alone; `yolov4 labels {path} --out FOLDER` converts it"
        )
    return images


def outline_box(x, y):
    """cx, cy, w, h of the box around points."""
    left, top, right, bottom = min(x), min(y), max(x), max(y)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def read_labels(path):
    """Labels, float32 (n, 5): class, cx, cy, w, h, relative; none where there is no file, as in
    Darknet.  Raises ValueError with file and line for anything else."""
    rows = [row for _, row in label_rows(path)] if os.path.exists(path) else []
    return np.array(rows, np.float32).reshape(-1, 5)


def label_rows(path):
    """(line, [class, cx, cy, w, h]) of each object."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if values := line.split():
            try:
                row = [int(values[0]), *map(float, values[1:])]
            except ValueError:
                row = []
            if len(row) > 6 and len(row) % 2:  # class, x, y, x, y, ...
                warnings.warn("label rows with polygons: taken as their boxes")
                row = [row[0], *outline_box(row[1::2], row[2::2])]
            if len(row) != 5 or row[0] < 0 or not all(abs(value) <= LARGEST for value in row):
                raise ValueError(
                    f'{path}:{number}: found "{line.strip()[:60]}", expected "class cx cy w h"'
                )
            yield number, row


def load_image(path):
    """The image of a file or an address (http://, https://), uint8 (H, W, 3) BGR, turned as its
    EXIF says.  ValueError if it cannot be read."""
    if str(path).startswith(("http://", "https://")):
        try:
            with urlopen(path, timeout=30) as reply:
                content = np.frombuffer(reply.read(MAX_PIXELS), np.uint8)
        except Exception as error:  # of many classes, whatever a server brings
            raise ValueError(f"{path}: cannot be downloaded: {error}") from None
    elif os.path.isfile(path):
        content = np.fromfile(path, np.uint8)  # cv2.imread needs ASCII under Windows
    else:
        raise ValueError(f"{path}: no such image (`python detect.py` takes folders and globs too)")
    image, reason = None, ""
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except cv2.error as error:  # empty, too many pixels, a format that is switched off
        reason = f" ({error.err})"
    if image is None:
        raise ValueError(f"{path}: found {content.size} bytes that OpenCV cannot decode{reason}")
    return image


def as_seen(image, channels):
    """The image, uint8 (H, W, 3); for a network of one channel with the grey three times."""
    if channels == 3:
        return image
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


class DatasetReport:
    """What `inspect` found.  usable: images that exist and look like images; empty: count of label
    files without boxes; boxes: count of each class; in_pixels: every box has a value above 2;
    sides: longer one of each box, in pixels of the network input of `size`;
    findings: what is wrong -> the paths or `file:line: found ...` of it."""

    def __init__(self, source, names, size):
        self.source, self.names, self.size = source, names, size
        self.usable, self.empty, self.boxes, self.in_pixels = [], 0, Counter(), True
        self.sides, self.findings = [], defaultdict(list)

    def lines(self):
        """The report for the screen, one string per line."""
        usable, counts = len(self.usable), [self.boxes[index] for index in range(len(self.names))]
        labelled = usable - self.empty - len(self.findings.get(NO_LABELS, []))
        head = f"{usable} images, {labelled} with boxes, {self.empty} empty"
        lines = [f"{self.source}: {head}, {self.boxes.total()} boxes"]
        lines += (f"  {name:<16} {n:>7}" for name, n in zip(self.names, counts, strict=True))
        lines.append(f"  counters_per_class={','.join(map(str, counts))}")
        lines += (f"  {len(f)} {what}, the first: {f[0]}" for what, f in self.findings.items())
        if 0 < (side := np.median(self.sides or [0])) < SMALL:
            width, height = (math.ceil(each * SMALL / side / 32) * 32 for each in self.size)
            lines.append(
                f"  most boxes are below {SMALL} pixels of the network input: a larger one "
                f"(--width {width} --height {height}), or --tiles in val and detect, finds more"
            )
        return lines

    def check(self):
        """Raises ValueError if the data cannot be trained on or evaluated."""
        for what in (NO_IMAGE, BAD_CLASS):
            if found := self.findings.get(what):
                raise ValueError(f"{self.source}: found {len(found)} {what}: {found[0]}")
        if not self.boxes:
            first = self.findings.get(NO_LABELS, ["every label file is empty"])[0]
            raise ValueError(f"{self.source}: found 0 boxes, expected labels with boxes: {first}")
        if self.in_pixels:
            raise ValueError(f"{self.source}: {IN_PIXELS}")


def inspect(paths, names, size, source="images"):
    """Looks at all images and labels without decoding: first bytes tell whether a file is an image.
    names: of the classes; size: of the network input; source: what the report calls the list."""
    report = DatasetReport(source, names, size)
    findings = report.findings
    for path in paths:
        if not os.path.isfile(path):
            findings[NO_IMAGE].append(path)
            continue
        with utf8_path(path) as name:
            readable = cv2.haveImageReader(name)
        if not readable:
            findings["files that are no image"].append(path)
            continue
        report.usable.append(path)
        labels = label_path(path)
        if not labels.exists():
            findings[NO_LABELS].append(labels)
            continue
        rows = list(label_rows(labels))
        report.empty += not rows
        for number, (label, *box) in rows:
            where = f"{labels}:{number}: found"
            report.boxes[label] += 1
            report.in_pixels &= max(box) > 2
            pixels = box[2] * size[0], box[3] * size[1]
            report.sides.append(max(pixels))
            if label >= len(names):
                findings[BAD_CLASS].append(f"{where} class {label}, expected 0..{len(names) - 1}")
            if not all(0 < value <= 1 for value in box):
                findings["boxes out of range"].append(f"{where} {box}, expected values in 0..1")
            elif min(pixels) < 1:
                findings["boxes below one pixel of the network (not trained)"].append(
                    f"{where} {box[2]} {box[3]}"
                )
    return report


def duplicates(train, valid=()):
    """Lines on images of equal content: copies within a list, and images in both."""
    sizes = {path: path.stat().st_size for path in (*train, *valid)}
    counts, groups = Counter(sizes.values()), defaultdict(lambda: ([], []))
    for number, images in enumerate((train, valid)):
        for path in dict.fromkeys(images):
            alone = counts[sizes[path]] == 1
            same = path if alone else hashlib.md5(path.read_bytes()).digest()
            groups[same][number].append(path)
    found = {
        "images with copies in their list": [g for both in groups.values() for g in both if g[1:]],
        "images both in training and in validation": [a + b for a, b in groups.values() if a and b],
    }
    return [f"{len(f)} {what}, the first: {f[0][0]} = {f[0][1]}" for what, f in found.items() if f]


class Sample(NamedTuple):
    """An augmented image.  In a mini-batch, `collate` has joined them."""

    image: Tensor  # uint8 (3, H, W) RGB; joined (B, 3, H, W)
    labels: Tensor  # float32 (n, 5); joined (T, 6) with the index of the image in front
    files: list  # of the image; joined one list per image
    faults: list[tuple[str, str]]  # images replaced by another, and why


class TrainingSet(Dataset):
    """Augmented samples, key (index, size).  All randomness of sample i comes from (seed, i).

    paths: images, drawn with replacement; net, head: [net] and the last [yolo]; cache: GB for
    decoded images, which fork shares with the workers.  An image that cannot be read is replaced by
    the next one that the sample draws."""

    def __init__(self, paths, net, head, seed, cache=0.0):
        if net.mosaic and net.letter_box:
            raise ValueError("[net]: mosaic=1 cannot be combined with letter_box=1")
        self.paths, self.net, self.head, self.seed = [str(path) for path in paths], net, head, seed
        self.images, self.labels, room = {}, {}, cache * 1e9
        for path in dict.fromkeys(self.paths) if cache else ():
            try:
                image = as_seen(load_image(path), net.channels)
            except (ValueError, OSError):  # reported when it is drawn
                continue
            room -= image.nbytes
            if room < 0:
                break
            self.images[path] = image

    def __getitem__(self, key):
        index, size = key
        rng, faults = np.random.default_rng((self.seed, index)), []
        image, labels, files = self._picture(rng, size, faults)
        if self.net.mixup_share and rng.random() < self.net.mixup_share:
            *other, more = self._picture(rng, size, faults)
            image, labels = augment.mixup((image, labels), other, rng.beta(8, 8))
            files += more
        planes = np.empty((3, *image.shape[:2]), np.uint8)
        cv2.split(image, list(planes[::-1]))  # (3, H, W), RGB
        planes = planes[: self.net.channels]
        return Sample(torch.from_numpy(planes), torch.from_numpy(labels), files, faults)

    def _picture(self, rng, size, faults):
        """An image, a mosaic or two images blended: uint8 (H, W, 3) BGR, labels, files."""
        net = self.net
        count = 1 if rng.random() < 0.5 else 4 if net.mosaic else 2 if net.mixup else 1
        parts, files = [], []
        for corner in range(count):
            path, image, labels, params = self._draw(rng, size, faults)
            amount, sigma = augment.draw_effects(rng, net)
            if count == 4 and rng.random() < 0.5:
                params = augment.push_to_corner(params, corner)
            parts.append((image, labels, params, amount, augment.draw_noise(rng, size, sigma)))
            files.append(path)
        if count == 4:
            cut = augment.draw_cut(rng, size)
            return *augment.mosaic(parts, cut, size, net.mosaic_bound), files
        samples = [augment.crop_flip_hsv(*part[:3], size, *part[3:]) for part in parts]
        return *(augment.mixup(*samples) if count == 2 else samples[0]), files

    def _draw(self, rng, size, faults):
        """A path, its image and labels, and the parameters of its crop."""
        for _ in range(TRIES):
            path = self.paths[rng.integers(len(self.paths))]
            try:
                image = self.images.get(path)
                if image is None:
                    image = as_seen(load_image(path), self.net.channels)
                if path not in self.labels:  # read once: 15 % more samples/s with --cache
                    self.labels[path] = read_labels(label_path(path))
                height, width = image.shape[:2]
                params = augment.draw_crop(rng, self.net, self.head, (width, height), size)
                width, height = width - sum(params[:2]), height - sum(params[2:4])
                if width * height > MAX_PIXELS:  # letter_box makes a square of the longer side
                    raise ValueError(f"{path}: a crop of {width}x{height} pixels is too large")
                return path, image, self.labels[path], params
            except (ValueError, OSError) as error:
                faults.append((path, str(error)))
        empty = np.zeros((*size[::-1], 3), np.uint8)
        return path, empty, np.zeros((0, 5), np.float32), augment.CropParams()


def collate(samples):
    """Samples of one size -> a mini-batch."""
    images, labels, files, faults = zip(*samples, strict=True)
    targets = torch.cat([pad(rows, (1, 0), value=index) for index, rows in enumerate(labels)])
    return Sample(torch.stack(images), targets, files, [fault for each in faults for fault in each])


def training_size(net, head, iteration, seed):
    """Input size of an iteration: the network's, or with `random` another every ten iterations."""
    size, step = (net.width, net.height), net.resize_step
    if not head.random:
        return size
    limit, block = 1.4 if head.random == 1 else head.random, iteration // 10
    factor = augment.draw_factor(np.random.default_rng((seed, block)), limit)
    if block == 0 or block * 10 > net.max_batches - 100:
        factor = limit  # the largest first (does it fit?) and last (for the running statistics)
    drawn = tuple(math.floor(factor * side / step + 1.5) * step for side in size)
    return size if factor < 1 and np.greater(drawn, size).any() else drawn


def mini_batches(net, head, seed, start, end, rank=0, world=1):
    """Keys of this rank's mini-batches in iterations start..end-1.  Iteration t has the samples
    t * batch ... in `subdivisions` mini-batches, in equal runs over the ranks."""
    subdivisions = max(net.subdivisions, world)
    if net.batch % subdivisions or subdivisions % world:
        raise ValueError(
            f"[net]: batch={net.batch}, subdivisions={subdivisions}, {world} processes: "
            "each has to be a multiple of the next"
        )
    rows, share = net.batch // subdivisions, net.batch // world
    for iteration in range(start, end):
        size = training_size(net, head, iteration, seed)
        begin = iteration * net.batch + rank * share
        for first in range(begin, begin + share, rows):
            yield [(index, size) for index in range(first, first + rows)]


def training_batches(
    paths, net, head, seed, start, end,
    workers, rank = 0, world = 1, pin_memory = False, cache = 0.0,
):  # fmt: skip
    """Mini-batches of iterations start..end-1 as `collate` makes them, from `workers` processes, or
    fewer where shared memory is small; to be iterated once.  RuntimeError after DATA_LIMIT."""
    sides = training_size(net, head, 0, seed)  # the largest
    size = net.batch // max(net.subdivisions, world) * net.channels * math.prod(sides)
    if cache and workers and multiprocessing.get_start_method() != "fork":
        warnings.warn("--cache needs workers that are forked: no images are cached")
        cache = 0.0
    return DataLoader(
        TrainingSet(paths, net, head, seed, cache), collate_fn=collate,
        batch_sampler=mini_batches(net, head, seed, start, end, rank, world),
        worker_init_fn=_start_worker, pin_memory=pin_memory,
        **(in_shared_memory(workers, size, world) if workers else {}),
    )  # fmt: skip


def in_shared_memory(workers, size, world):
    """DataLoader's options for so many workers, or fewer where mini-batches of `size` bytes for
    `world` processes do not fit into /dev/shm: who cannot hand over a mini-batch is never done."""
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else math.inf
    places, ahead = free // (size * world) - 2, 2  # one is trained on, one is being received
    if places < workers * ahead:
        fewer, ahead = max(0, min(workers, int(places))), 1
        warnings.warn(
            f"/dev/shm: {free / 1e6:.0f} MB free, mini-batches have {size / 1e6:.1f} MB: {fewer} "
            f"instead of {workers} workers prepare images; Docker's --shm-size gives more"
        )
        workers = fewer
    options = {"persistent_workers": True, "prefetch_factor": ahead, "timeout": DATA_LIMIT}
    return {"num_workers": workers, **options} if workers else {}


def _start_worker(_):
    keep_freed_memory()
    cv2.setNumThreads(0)  # the workers are the parallelism
    for number in STOPS:  # for the main process, which ends the iteration
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = lambda *_: None  # the main process may end in the middle of taking a batch
