"""runs/NAME/: the files of a training, what it logs and how it resumes.
Source: the names of weights and chart are those that Darknet's users know."""

import csv
import json
import os
from pathlib import Path

import cv2

from yolov4 import plots
from yolov4.cfg import format_cfg
from yolov4.files import read_text, replacing
from yolov4.weights import PREVIOUS, save_checkpoint, save_weights

SHOWN_BATCHES = 3  # first mini-batches that are drawn
FORMATS = {"iteration": "d", "images_per_second": ".4g", "data_share": ".3f", "map": ".6f"}


def run_settings(run):
    """A run's settings.json.  Raises ValueError for what is no JSON."""
    path = run / "settings.json"
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: {error.msg}, expected JSON") from None


def validation_list(run):
    """The list of a run's validation images.  Raises ValueError if there is none."""
    path = run_settings(run).get("valid")
    if not path or not Path(path).exists():
        raise ValueError(f"{run}: its validation list is {path or 'not named'}, expected --images")
    return Path(path)


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


class RunFolder:
    """The files of one run.  iteration: where it resumes; later rows of results.csv are dropped."""

    def __init__(self, path, network, names, settings, iteration=0):
        self.path, self.name, self.names, self.board = path, path.name, names, None
        path.mkdir(parents=True, exist_ok=True)
        if settings.get("tensorboard"):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError("--tensorboard needs a package: pip install tensorboard") from None
            self.board = SummaryWriter(str(path / "tensorboard"), purge_step=iteration + 1)
        self.cfg = format_cfg(network.net, network.sections)
        self._write(f"{self.name}.cfg", self.cfg)
        self._write(f"{self.name}.names", "".join(f"{name}\n" for name in names))
        self._write("settings.json", json.dumps(settings, indent=1) + "\n")
        self._write("results.csv", self._rows_up_to(iteration))
        self.results = (path / "results.csv").open("a", newline="", encoding="utf-8")

    def _write(self, name, text):
        with replacing(self.path / name) as beside:
            beside.write_text(text, encoding="utf-8", newline="")

    def _rows_up_to(self, iteration):
        """Header and rows of results.csv up to an iteration; a kill may leave half a row."""
        path = self.path / "results.csv"
        if not iteration or not path.exists():
            return ""
        header, *rows = path.read_bytes().decode().splitlines(keepends=True) or [""]
        whole = (row for row in rows if row.endswith("\n"))
        return header + "".join(row for row in whole if int(row.split(",")[0]) <= iteration)

    def log(self, row):
        """Adds a row to results.csv: iteration, loss, ... by column; None where not measured."""
        known = {column: value for column, value in row.items() if value is not None}
        writer = csv.DictWriter(self.results, row)
        if not self.results.tell():
            writer.writeheader()
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
        with replacing(self.path / "chart.png") as beside:
            plots.training_chart(self.path / "results.csv", beside, self.name)

    def save_weights(self, kind, model, seen):
        """Writes NAME_KIND.weights."""
        save_weights(model, self.path / f"{self.name}_{kind}.weights", seen)

    def save_picture(self, iteration, images, targets):
        """Draws augmented training images with their boxes, in the first iterations.
        images: uint8 (B, 3, H, W) RGB; targets: (T, 6)."""
        if iteration > SHOWN_BATCHES:
            return
        drawn = []
        for number, image in enumerate(images[:16]):
            pixels = image.flip(0).permute(1, 2, 0).numpy()  # (H, W, 3) BGR
            scale = max(1, 480 // pixels.shape[1])  # or names hide the objects of small networks
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            labels = targets[targets[:, 0] == number][:, 1:].numpy()
            drawn.append(plots.draw_labels(pixels, labels, self.names))
        sheet = plots.contact_sheet(drawn, side=480)
        cv2.imwrite(str(self.path / f"train_batch{iteration}.jpg"), sheet)

    def close(self):
        self.results.close()
        if self.board:
            self.board.close()
