"""What detect does: images, frames of videos and cameras in; images, videos, .json, labels out.
Source: Darknet's src/demo.c, for streams; src/network.c, detection_to_json, for the .json."""

import json
import math
import os
import queue
import re
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from glob import glob
from itertools import count, tee
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import cv2
import numpy as np
import torch
from tqdm import tqdm

from yolov4.boxes import relative_boxes
from yolov4.data import label_path, read_image_list
from yolov4.detector import WORKERS, about
from yolov4.files import IMAGES, MARK, VIDEOS, finite, foreign, fresh, regular, utf8_path
from yolov4.plots import draw_detections, write_picture

CODECS = "avc1", "vp09", "mp4v"  # H.264 and VP9 play in browsers
FRAME = re.compile(r"_\d{6,}$")  # ends the names of what belongs to one
DISPLAYS = {"DISPLAY", "WAYLAND_DISPLAY"}
PAUSE = 1.0  # seconds before a stream that broke off is opened again


def expand(source):
    """The files of a folder, a .txt list or a glob, in order; of `-` the lines of the standard
    input; anything else alone.  Raises ValueError for an empty folder or list."""
    path = Path(source)
    if source == "-":
        return [line.strip() for line in sys.stdin if line.strip()]
    if path.is_dir():
        files = [str(each) for each in path.iterdir() if each.suffix.lower() in IMAGES + VIDEOS]
        if not files:
            raise ValueError(f"{source}: no images or videos found")
        return sorted(files)
    if path.suffix.lower() == ".txt":
        return list(map(str, read_image_list(path)))
    return [source] if path.exists() else sorted(glob(source, recursive=True)) or [source]


def is_stream(source):
    """Whether it has frames: a camera's number, a video or an address of no image."""
    suffix = Path(urlsplit(source).path).suffix.lower()
    return source.isdecimal() or suffix in VIDEOS or ("://" in source and suffix not in IMAGES)


class Frame(NamedTuple):
    """One frame of `Video`."""

    number: int  # from 1, in the source: 1, 6, 11 with every=5
    image: np.ndarray  # uint8 (H, W, 3) BGR


class Video:
    """Every `every`-th Frame of a video, a camera's number or an address, read by a thread.

    A file gives all of them in order, `ahead` of them decoded in advance.  A live source (a camera,
    an address of no file) gives the newest; where it breaks off it is tried again for `reconnect`
    seconds, and say(line) tells.  `fault` says where reading ended too early, else it is None.
    rate: frames per second; size: (width, height); length: frames to come, None if not known.
    Raises ValueError if it cannot be opened.
    """

    def __init__(self, source, every=1, ahead=8, reconnect=60.0, say=print):
        self.source, self.every, self.reconnect, self.say = source, every, reconnect, say
        camera = source.isdecimal()
        self.place = int(source) if camera else source
        if not camera:
            regular(source)
        with utf8_path(source) as name:
            self.capture = cv2.VideoCapture(self.place if camera else name)
        opened, image = self.capture.read()
        if not opened:
            raise ValueError(f"{source}: OpenCV finds no frame, expected a video or a camera")
        rate, frames = map(self.capture.get, (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if 0.01 <= rate <= 1000 else 25.0
        self.size = image.shape[1::-1]
        self.length = math.ceil(frames / every) if frames > 0 else None
        self.seconds = frames / self.rate  # of the whole file
        suffix = Path(urlsplit(source).path).suffix.lower()
        self.live = self.length is None and suffix not in IMAGES + VIDEOS
        self.number, self.fault = 1, None  # number of the last frame read
        self.frames = queue.Queue(ahead)  # then None; room for both after close()
        self.frames.put(Frame(1, image))
        self.closed = threading.Event()
        # a dead stream blocks OpenCV for half a minute; the process does not wait for a daemon
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def __iter__(self):
        return iter(self.frames.get, None)

    def close(self):
        """Ends the reading; what was decoded ahead is dropped."""
        self.closed.set()
        self._drop()
        self.thread.join(timeout=2)

    def _drop(self):
        with suppress(queue.Empty):
            while True:
                self.frames.get_nowait()

    def _read(self):
        reached = 0.0  # seconds
        try:
            while not self.closed.is_set():
                there, image = self.capture.read()
                if there:
                    self.number += 1
                    reached = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 + 1 / self.rate
                    if (self.number - 1) % self.every == 0:
                        if self.live:
                            self._drop()
                        self.frames.put(Frame(self.number, image))
                elif not self._continues(reached):
                    break
        finally:
            self.capture.release()
            self.frames.put(None)

    def _continues(self, reached):
        """Whether a live source came back in time.  fault: what is wrong with the end."""
        where = f"{self.source}: broke off after frame {self.number}"
        if not self.live:
            if self.seconds - reached > max(1, self.seconds / 50):
                place = f"at {reached:.1f} of {self.seconds:.1f} s"
                self.fault = f"{where}, {place}, as if cut or damaged; what came is kept"
            return False
        self.say(f"{where}; trying again for {self.reconnect:g} s")
        until = time.monotonic() + self.reconnect
        while time.monotonic() < until and not self.closed.wait(PAUSE):
            if self.capture.open(self.place) and self.capture.grab():
                self.number += 1
                self.say(f"{self.source}: came back")
                return True
        self.fault = f"{where}, not back within {self.reconnect:g} s; what came is kept"
        return False


class Output:
    """Files of one call of detect.  Sources of one name get NAME, NAME_2; none is written over.

    folder: of the images and videos, with labels/ for save_txt, crops/ for save_crops; names: of
    the classes; inputs: files that are read, of which and of whose labels none is written over.
    Raises ValueError where a .json or labels of a data set would be.
    """

    def __init__(self, folder, names, inputs, save_txt, json_path, save_crops=False):
        self.folder, self.names, self.stems = Path(folder), names, set()
        self.crops = save_crops
        self.labels = self.folder / "labels" if save_txt else None
        read = [path for path in map(Path, inputs) if path.name]
        self.taken = set(map(os.path.realpath, [*read, *map(label_path, read)]))
        if save_txt and any((self.folder / name).exists() for name in ("images", "JPEGImages")):
            raise ValueError(
                f"{folder}: is a data set, whose labels are there: expected another --out"
            )
        if json_path and (os.path.realpath(json_path) in self.taken or foreign(Path(json_path))):
            raise ValueError(
                f"{json_path}: is read here or written by others, expected another .json"
            )
        (self.labels or self.folder).mkdir(parents=True, exist_ok=True)
        options = "w", -1, "utf-8", "backslashreplace"  # as JSON writes such characters
        self.json = json_path and Path(json_path).open(*options)  # noqa: SIM115
        self.before = "[\n"  # what comes before the next record

    def place(self, source, suffix):
        """The path for the output of a source."""
        name = f"camera{source}" if source.isdecimal() else Path(source).stem
        if "://" in source:  # the name shows no user, password or key
            address = urlsplit(source)
            name = Path(address.path).stem or address.hostname
        for number in count(1):
            path = self.folder / f"{name}{f'_{number}' if number > 1 else ''}{suffix}"
            stem, video = path.stem.lower(), suffix == ".mp4"  # some file systems ignore case
            base = stem if video else FRAME.sub("", stem)
            taken = stem in self.stems or (base, not video) in self.stems
            if self.labels:  # a label is of an earlier call where its picture is
                label = self.labels / f"{path.stem}{'_000001' if video else ''}.txt"
                taken |= label.exists() and not path.exists()
            if not (taken or os.path.realpath(path) in self.taken or foreign(path)):
                self.stems |= {stem, (base, video)}
                return fresh(path, self.folder)

    def add(self, source, stem, image, detections, frame):
        """Writes one image, or the frame of that number: its record in the .json, which has
        Darknet's keys, its labels for training, its objects as images."""
        image_size = image.shape[1::-1]
        if self.json:
            keys = ("center_x", "center_y", "width", "height")
            found = _rows(detections, detections.boxes.double(), image_size)  # not clipped
            objects = [
                {
                    "class_id": label,
                    "name": self.names[label],
                    "relative_coordinates": dict(zip(keys, box, strict=True)),
                    "confidence": score,
                }
                for label, box, score in found
            ]
            record = {"frame_id": frame, "filename": source, "objects": objects}
            self.json.write(self.before + json.dumps(finite(record), ensure_ascii=False))
            self.before = ",\n"
        if self.labels:
            text = label_text(detections, image_size)
            fresh(self.labels / f"{stem}.txt", self.folder).write_text(text)
        for number, (name, _, box) in enumerate(detections if self.crops else (), 1):
            edges = zip(box, image_size * 2, strict=True)
            left, top, right, bottom = (round(min(max(0, edge), side)) for edge, side in edges)
            crop = image[top:bottom, left:right]
            if crop.size:
                place = "crops", re.sub(r"[^\w .-]", "_", name), f"{stem}_{number}.jpg"
                write_picture(fresh(self.folder.joinpath(*place), self.folder), crop)

    def close(self):
        if self.json:
            try:
                with self.json:
                    self.json.write("[]\n" if self.before == "[\n" else "\n]\n")
            except OSError as error:  # of a full disk, without a name
                raise OSError(error.errno, error.strerror, self.json.name) from None


def label_text(detections, image_size):
    """A label file, `class cx cy w h`: predictions with their best class, clipped to the image."""
    _, best = np.unique(detections.prediction, return_index=True)  # they fall by score
    found = detections[np.sort(best)]
    limits = torch.tensor((*image_size, *image_size))
    boxes = torch.minimum(found.boxes.double().clamp(min=0), limits)
    return "".join(
        f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"
        for label, (x, y, w, h), _ in _rows(found, boxes, image_size)
        if w > 0 and h > 0
    )


def _rows(found, boxes, image_size):
    """Class, box cxcywh relative to the image, score of each; boxes: (n, 4) xyxy, pixels."""
    columns = found.labels, relative_boxes(boxes, image_size), found.scores
    return zip(*(column.tolist() for column in columns), strict=True)


class VideoFile:
    """An .mp4 of frames uint8 (H, W, 3) BGR, resized to size = (width, height); rate per second.
    codec: of CODECS, None for the first that OpenCV writes here.
    Raises ValueError if it cannot be written, from close() if frames are missing."""

    def __init__(self, path, rate, size, codec=None):
        self.path, self.size, self.frames, self.writer = path, size, 0, cv2.VideoWriter()
        for name in [codec] if codec else CODECS:
            with utf8_path(path) as file:
                if self.writer.open(file, cv2.VideoWriter_fourcc(*name), rate, size):
                    break
        else:
            raise ValueError(f"{path}: OpenCV cannot write an mp4 of {size[0]}x{size[1]} here")

    def write(self, image, upto):
        """Repeats the image until the video has `upto` frames, in the place of dropped ones."""
        fitting = cv2.resize(image, self.size)
        for _ in range(upto - self.frames):
            self.writer.write(fitting)
        self.frames = upto

    def close(self):
        self.writer.release()
        with self.path.open("ab") as file:
            file.write(MARK)
        # OpenCV's writer does not tell of a full disk
        with utf8_path(self.path) as name:
            found = int(cv2.VideoCapture(name).get(cv2.CAP_PROP_FRAME_COUNT))
        if found != self.frames:
            raise ValueError(f"{self.path}: {found} of {self.frames} frames written; disk full?")


class Closed(KeyboardInterrupt):
    """The user has seen enough: closed the window, or ended a video by Ctrl-C."""


class Session:
    """One call of detect.  given: its options; say, complain: take a line.  `failed` counts the
    sources that could not be read to their end."""

    def __init__(self, given, detector, output, say=print, complain=print):
        self.given, self.detector, self.output = given, detector, output
        self.say, self.complain, self.show = say, complain, given.show
        # Qt ends the process where it finds no display
        if self.show and sys.platform == "linux" and not DISPLAYS & os.environ.keys():
            self.show = complain("--show: no display here")
        self.failed, self.numbers = 0, count(1)  # numbers: of the images
        names, self.classes = list(detector.names), set()
        for name in given.classes or ():
            if name not in names and not (name.isdecimal() and int(name) < len(names)):
                raise ValueError(f"--classes {name}: expected one of {', '.join(names)}")
            self.classes.add(names.index(name) if name in names else int(name))

    def images(self, sources):
        def items():
            for prediction in self.stream(sources, on_error=self.skip):
                source = prediction.source
                found = (f"{name}: {score * 100:.0f}%" for name, score, _ in prediction.detections)
                time = f"{prediction.milliseconds:.0f} ms"
                with self.alone(source):
                    path, number = self.output.place(source, ".jpg"), next(self.numbers)
                    line = f"{source}: {', '.join(found) or 'nothing'}  ({time}) -> {path}"
                    write = partial(write_picture, path)
                    yield prediction, source, path.stem, number, write, line

        self.save(items(), WORKERS, "images", len(sources), 0, self.alone)

    def video(self, source):
        """A video, or a live source, which Ctrl-C ends.  Returns the path of the result."""
        given, every, path = self.given, self.given.every, None
        options = every, 8 + (given.batch or 0), given.reconnect, self.say
        frames = milliseconds = 0

        def items():
            nonlocal frames, milliseconds
            numbered, again = tee(video)
            predictions = self.stream((frame.image for frame in again), live=video.live)
            for (number, _), prediction in zip(numbered, predictions, strict=True):
                frames, milliseconds = frames + 1, milliseconds + prediction.milliseconds
                write = partial(file.write, upto=(number - 1) // every + 1)
                yield prediction, source, f"{path.stem}_{number:06}", number, write, ""

        try:
            with self.alone(source), closing(Video(source, *options)) as video:
                path = self.output.place(source, ".mp4")
                with closing(VideoFile(path, video.rate / every, video.size, given.codec)) as file:
                    self.save(items(), 1, "frames", video.length, 1, nullcontext)
                if video.fault:
                    self.skip(video.fault)
        except KeyboardInterrupt:
            raise Closed from None
        finally:
            if frames:
                time = f"{milliseconds / frames:.0f} ms"
                self.say(f"{source}: {frames} frames  ({time} each) -> {path}")
        return path

    def stream(self, sources, **options):
        given, wanted = self.given, self.classes
        for each in self.detector.stream(sources, given.thresh, given.nms, given.batch, **options):
            found = each.detections
            chosen = [label in wanted for label in found.labels.tolist()]
            yield each._replace(detections=found[chosen]) if wanted else each

    def save(self, items, workers, unit, total, wait, item):
        """Draws items (prediction, source, stem, number, write, line to say) and writes them, in
        threads while the network runs.  wait: milliseconds of --show, or 0.  item(source): the
        context of one."""
        pending = deque()

        def draw(image, found, write):
            drawn = draw_detections(image, found, self.detector.names)
            write(drawn)
            return drawn

        def show(drawn):
            try:
                cv2.imshow("yolov4 detect", drawn)
                if cv2.waitKey(wait) & 0xFF in (27, ord("q")):
                    raise Closed
            except cv2.error:
                self.show = self.complain("--show: this OpenCV opens no windows")

        def finish(most):
            """In order, each as soon as it is there, until at most so many are pending."""
            while pending and (len(pending) > most or pending[0][1].done()):
                source, future, line = pending.popleft()
                bar.update()
                with item(source):
                    drawn = future.result()
                    if line:
                        self.say(line)
                    if self.show:
                        show(drawn)

        bar = tqdm(total=total, unit=f" {unit}", leave=False, disable=None)  # on a terminal only
        with ThreadPoolExecutor(workers) as pool, bar:
            for prediction, source, stem, number, write, line in items:
                image, found = prediction.image, prediction.detections
                with item(source):
                    self.output.add(source, stem, image, found, number)
                    pending.append((source, pool.submit(draw, image, found, write), line))
                finish(0 if self.show else 2 * workers)
            finish(0)

    @contextmanager
    def alone(self, source):
        """What fails here costs this source alone."""
        try:
            yield
        except Exception as error:
            self.skip(about(source, error))

    def skip(self, reason):
        self.failed += 1
        self.complain(reason)
