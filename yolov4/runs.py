"""runs/NAME/: the files of a training, what it logs and how it resumes.
Source: the names of weights and chart are those that Darknet's users know."""

import csv
import json
import os
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import get_type_hints

import cv2

from yolov4 import plots
from yolov4.cfg import check_size, format_cfg, read_data
from yolov4.files import (
    CONFIGS,
    WRITTEN,
    locate,
    own_file,
    pretrained,
    read_bounded,
    read_text,
    replacing,
)
from yolov4.labels import convert
from yolov4.recipe import CFG, DATA, WEIGHTS, Settings
from yolov4.weights import PREVIOUS, load_checkpoint, save_checkpoint, save_weights

MADE_BY = {  # how to make the lists of the project's own .data files
    "voc": "`yolov4 labels VOCDEVKIT --out data/voc0712` makes it; with --download it downloads "
    "VOC 2007 and 2012 too",
    "coco": "`yolov4 labels COCO --out data/coco` makes it from a folder with annotations, "
    "train2017, val2017",
    "shapes": "`python data/shapes/make_shapes.py` draws its images, `yolov4 labels "
    "data/shapes/VOCshapes --out data/shapes` makes it",
}
FILES = {"cfg", "train", "valid", "names", "difficult", "data", "weights", "recipe"}  # in Settings
SHOWN_BATCHES = 3  # first mini-batches that are drawn
FORMATS = {"iteration": "d", "images_per_second": ".4g", "data_share": ".3f", "map": ".6f"}


def run_settings(run):
    """A run's settings.json.  Raises ValueError for what is no JSON object."""
    path = run / "settings.json"
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: {error.msg}, expected JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found no keys, expected a JSON object")
    return found


def resumed_settings(run, say=print):
    """The Settings of a run to resume.  What another program took out of its settings.json, or gave
    another type, comes from last.pt and the .data file; the rest is kept as settings.json.old."""
    path, given, kinds = run / "settings.json", run_settings(run), get_type_hints(Settings)
    content, known = path.read_bytes(), kinds.keys()
    found = {key: given[key] for key in known & given.keys() if _fits(given[key], kinds[key])}
    expected = {key: given[key] for key in given if key == "name" or key in found}
    if expected.keys() - {"name"} != known or content != _json(expected).encode():
        set_aside(path, content, say)
    if known - found.keys():
        with suppress(ValueError, OSError, KeyError):  # `Training` tells what is wrong with last.pt
            found = load_checkpoint(run / "last.pt")["settings"] | found
            found = data_options(found["data"], say=say) | found
        found = {key: f"{path} without {key}" for key in ("cfg", "train", "names")} | found
    return Settings(**{key: found[key] for key in known & found.keys()})


def _fits(value, kind):
    return isinstance(value, kind) or (isinstance(value, int) and isinstance(0.5, kind))


def set_aside(path, content, say):
    Path(f"{path}.old").write_bytes(content)
    say(f"{path}: was changed by another program; kept as {path.name}.old, the run goes on")


def _json(settings):
    return json.dumps(settings, indent=1) + "\n"


def validation_list(run):
    """The list of a run's validation images.  Raises ValueError if there is none."""
    path = run_settings(run).get("valid")
    if not path or not Path(path).exists():
        raise ValueError(f"{run}: its validation list is {path or 'not named'}, expected --images")
    return Path(path)


def data_options(source, root="runs", say=print):
    """What a .data file says; any other data set is converted to one, below `root`, and `say` tells
    what it is taken for.  See `labels.convert`."""
    source = Path(source) if Path(source).is_dir() else own_file(source, ".data")
    if source.suffix != ".data":
        full = source.absolute()
        if "WORLD_SIZE" in os.environ:  # processes, which must not write one file at once
            raise ValueError(
                f"{source}: `yolov4 labels {full}` first writes its .data for torchrun"
            )
        number = zlib.crc32(os.fsencode(full))  # folders are often called the same
        found = convert([source], Path(root, "data", f"{full.stem}-{number:08x}"))
        say("\n".join(line for line in found.report() if line[0] != " "))
        source = found.data
    return read_data(source)


def new_settings(flags, say=print):
    """Settings of a new run; names the missing files and the commands that make them."""
    source, weights = flags.get("data", DATA), None if "cfg" in flags else WEIGHTS
    weights = flags.get("weights") or (weights and str(locate(weights, CONFIGS / "x")))
    data, missing = data_options(source, flags.get("runs", "runs"), say), []
    if not {"train", "names"} <= data.keys():
        raise ValueError(f"{source}: expected train = LIST and names = FILE")
    how = MADE_BY.get(Path(source).stem)
    if how and not Path(data["train"]).exists():
        missing.append(f"{data['train']} is missing: {how}")
    missing.append(pretrained(weights, flags.get("download")))
    if any(missing):
        raise ValueError("\n".join(filter(None, missing)))
    given = {"workers": min(8, os.cpu_count() or 1), "cfg": CFG, **flags}
    given |= {key: data.get(key) for key in ("train", "valid", "names", "difficult")}
    given |= {"data": str(source), "weights": weights}
    return Settings(**{key: given[key] for key in get_type_hints(Settings).keys() & given})


def new_run_folder(root, name):
    """ROOT/NAME, or ROOT/NAME-2 and so on where that is taken; it is not made yet."""
    folder, number = Path(root) / name, 1
    while folder.exists():
        number += 1
        folder = Path(root) / f"{name}-{number}"
    return folder


def run_folder(root, run):
    """The folder of a run to resume, by path or name; without either the newest checkpoint's."""
    folders = (Path(run), Path(root) / run) if run else Path(root).glob("*")
    found = [path for folder in folders if (path := folder / "last.pt").exists()]
    if not found:
        raise ValueError(f"{run or root}: holds no last.pt, expected the folder of a run to resume")
    return (found[0] if run else max(found, key=os.path.getmtime)).parent


def hold(path):
    """An open file that holds this process' number and, as long as that lives, a lock.
    Raises ValueError with the number of the process that has it."""
    file = path.open("a+")
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 20)  # the locked byte: others may read the number
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by workers
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise ValueError(f"{path.parent}: process {file.read()} trains in it") from None
    except OSError:  # a file system without locks
        pass
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


class RunFolder:
    """The files of one run, in a folder that no other process trains in.

    iteration: where it resumes; later rows of results.csv are dropped.  fresh: another training may
    have taken the folder meanwhile, then it is the next one.  A renamed or copied folder keeps the
    run's name.  Raises ValueError where another process trains in it."""

    def __init__(self, path, network, names, settings, iteration=0, fresh=False, say=print):
        first = path
        while True:
            try:
                path.mkdir(parents=True, exist_ok=not fresh)
                break
            except FileExistsError:
                path = new_run_folder(first.parent, first.name)
        self.path, self.names, self.say, self.board, self.name = path, names, say, None, path.name
        self.lock = hold(path / ".lock")
        with suppress(ValueError, OSError):
            self.name = Path(str(run_settings(path).get("name", ""))).name or path.name
        for left in path.glob(".*.part*"):  # of processes that were killed
            left.unlink()
        if settings.get("tensorboard"):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError("--tensorboard needs a package: pip install tensorboard") from None
            self.board = SummaryWriter(str(path / "tensorboard"), purge_step=iteration + 1)
        check_size(network.net, path)
        self.write_cfg(network)
        self._write(f"{self.name}.names", "".join(f"{name}\n" for name in names))
        self._write("settings.json", _json({"name": self.name, **settings}))
        rows = self._rows_up_to(iteration)
        self.columns = rows.partition("\n")[0].strip()
        self._write("results.csv", rows)
        self.results = (path / "results.csv").open("r+", newline="", encoding="utf-8")
        self.results.seek(0, os.SEEK_END)

    def write_cfg(self, network):
        """Writes NAME.cfg, which the next last.pt holds too."""
        self.cfg = format_cfg(network.net, network.sections)
        self._write(f"{self.name}.cfg", f"{WRITTEN} train\n{self.cfg}")

    def _write(self, name, text):
        with replacing(self.path / name) as beside:
            beside.write_text(text, encoding="utf-8", newline="")

    def _rows_up_to(self, iteration):
        """Header and rows of results.csv up to an iteration; a kill may leave half a row.  A file
        that another program changed is set aside."""
        path = self.path / "results.csv"
        if not iteration or not path.exists():
            return ""
        self.found = read_bounded(path)
        try:
            header, *rows = self.found.decode().splitlines(keepends=True) or [""]
            if rows and not rows[-1].endswith("\n"):
                rows.pop()
            if {row.count(",") for row in rows} - {header.count(",")}:
                raise ValueError
            return header + "".join(row for row in rows if int(row.split(",")[0]) <= iteration)
        except ValueError:  # of semicolons, UTF-16, more cells; `log` finds other columns
            set_aside(path, self.found, self.say)
            return ""

    def log(self, row, again=False):
        """Adds a row to results.csv: iteration, loss, ... by column; None where not measured.
        again: in place of the row before, with its mAP."""
        known = {column: value for column, value in row.items() if value is not None}
        writer, columns = csv.DictWriter(self.results, row), ",".join(row)
        if columns != self.columns:
            if self.columns:  # more or fewer of them
                set_aside(self.path / "results.csv", self.found, self.say)
                self.results.truncate(self.results.seek(0))
            writer.writeheader()
            self.columns = columns
        if not again:
            self.start = self.results.tell()
        self.results.seek(self.start)
        writer.writerow({name: format(known[name], FORMATS.get(name, ".6g")) for name in known})
        for column, value in known.items() if self.board else ():
            self.board.add_scalar(column, value, row["iteration"])

    def save(self, model, state, averaged):
        """Writes NAME_last.weights, NAME_ema.weights (averaged), last.pt and the chart.
        state: of last.pt, without cfg and names.  The last.pt before becomes previous.pt."""
        self.results.flush()
        self.save_weights("last", model, state["seen"])
        if averaged is not None:
            self.save_weights("ema", averaged, state["seen"])
        # after the weights: what a whole last.pt promises is there
        state |= {"cfg": self.cfg, "names": self.names}
        save_checkpoint(self.path / "last.pt", state, keep=self.path / PREVIOUS)
        if not self.results.tell():  # no row to draw yet
            return
        try:
            with replacing(self.path / "chart.png") as beside:
                plots.training_chart(self.path / "results.csv", beside, self.name)
        except OSError as error:  # open in a viewer, under Windows
            warnings.warn(f"{error.filename}: {error.strerror}")

    def save_weights(self, kind, model, seen):
        """Writes NAME_KIND.weights."""
        save_weights(model, self.path / f"{self.name}_{kind}.weights", seen)

    def save_picture(self, iteration, images, targets):
        """Draws augmented training images with their boxes, in the first iterations.
        images: uint8 (B, 3, H, W) RGB; targets: (T, 6)."""
        if iteration > SHOWN_BATCHES:
            return
        drawn = []
        for number, image in enumerate(images[:16].expand(-1, 3, -1, -1)):
            pixels = image.flip(0).permute(1, 2, 0).numpy()  # (H, W, 3) BGR
            scale = max(1, 480 // pixels.shape[1])  # or names hide the objects of small networks
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            labels = targets[targets[:, 0] == number][:, 1:].numpy()
            drawn.append(plots.draw_labels(pixels, labels, self.names))
        sheet = plots.contact_sheet(drawn, side=480)
        plots.write_picture(self.path / f"train_batch{iteration}.jpg", sheet)

    def close(self):
        self.results.close()
        if self.board:
            self.board.close()
        self.lock.close()
        (self.path / ".lock").unlink(missing_ok=True)
