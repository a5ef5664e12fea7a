"""runs/NAME/: what a training leaves behind, from the settings at its start to the chart and the weights at its end.
No source: names of weights and chart are those that Darknet's users know."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import cv2
from torch import Tensor

from yolov4 import plots, report
from yolov4.cfg import format_cfg
from yolov4.checkpoint import PREVIOUS, save_checkpoint
from yolov4.files import replacing
from yolov4.model import Darknet
from yolov4.result import Record, Result
from yolov4.sections import Network, Yolo
from yolov4.settings import Settings
from yolov4.updates import Update
from yolov4.weights import save_weights

PICTURES = 3  # first mini-batches that are drawn
SHOWN_TERMS = (
    "average_iou",
    "count",
    "class_loss",
    "iou_loss",
    "total_loss",
)  # a head's, as in Darknet's log


class RunFolder:
    """The files of one run.  `iteration`: what of results.csv counts when a run goes on."""

    def __init__(self, path: Path, network: Network, names: list[str], settings: Settings, iteration: int = 0):
        self.path, self.name, self.names, self.network = path, path.name, names, network
        path.mkdir(parents=True, exist_ok=True)
        self._text(f"{self.name}.cfg", format_cfg(network.net, network.sections))
        self._text(f"{self.name}.names", "".join(f"{name}\n" for name in names))
        self._text("settings.json", json.dumps(asdict(settings), indent=1) + "\n")
        heads = [index for index, section in enumerate(network.sections) if isinstance(section, Yolo)]
        self.columns = ["iteration", "loss", "rate", "images_per_second", "data_share", "map"]
        self.heads, self.board, self.evaluation = heads, None, None
        if settings.tensorboard:
            from yolov4.board import Board

            self.board = Board(path / "tensorboard", iteration)
        self.columns += [f"{term}_{head}" for head in heads for term in SHOWN_TERMS]
        rows = self.rows(iteration)
        with replacing(path / "results.csv") as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        self.results = (path / "results.csv").open("a", newline="", encoding="utf-8")
        self.writer = csv.DictWriter(self.results, self.columns)

    @property
    def checkpoint(self) -> Path:
        return self.path / "last.pt"

    def weights(self, kind: str) -> Path:
        return self.path / f"{self.name}_{kind}.weights"

    def rows(self, iteration: int) -> list[dict[str, str]]:
        """The rows of results.csv up to an iteration."""
        path = self.path / "results.csv"
        if not iteration or not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            complete = (row for row in csv.DictReader(file) if row["iteration"].isdigit() and None not in row.values())
            return [row for row in complete if int(row["iteration"]) <= iteration]

    def log(self, iteration: int, update: Update, speed: float, data_share: float, mean_ap: float | None) -> None:
        """One row of results.csv."""
        values = [iteration, f"{update.loss:.6g}", f"{update.rate:.6g}", f"{speed:.4g}", f"{data_share:.3f}"]
        values.append("" if mean_ap is None else f"{mean_ap:.6f}")
        values += [f"{getattr(head, term):.6g}" for head in update.heads for term in SHOWN_TERMS]
        self.writer.writerow(dict(zip(self.columns, values, strict=True)))
        if self.board:
            self.board.log(iteration, update, self.heads, speed, mean_ap)

    def evaluated(self, iteration: int, records: list[Record], result: Result) -> None:
        """Keeps the newest evaluation for the report."""
        self.evaluation = records, result
        if self.board:
            self.board.evaluated(iteration, records, self.names)

    def report(self) -> Path | None:
        """Writes report/ of the newest evaluation, where there was one, and returns its page."""
        return self.evaluation and report.write(self.path / "report", *self.evaluation, self.names, run=self.path)

    def save(self, model: Darknet, state: dict, averaged: Darknet | None) -> None:
        """last.pt, NAME_last.weights, NAME_ema.weights where there is an average, and the chart.  A new
        last.pt makes the one before previous.pt."""
        self.results.flush()
        save_weights(model, self.weights("last"), state["seen"])
        if averaged is not None:
            save_weights(averaged, self.weights("ema"), state["seen"])
        save_checkpoint(self.checkpoint, state, keep=self.path / PREVIOUS)  # last: where it is, the weights are too
        with replacing(self.path / "chart.png") as beside:
            plots.training_chart(self.path / "results.csv", beside, self.name)

    def save_best(self, model: Darknet, seen: int) -> None:
        save_weights(model, self.weights("best"), seen)

    def save_picture(self, iteration: int, images: Tensor, targets: Tensor) -> None:
        """A sheet of augmented training images with their boxes."""
        if iteration > PICTURES:
            return
        drawn = []
        for number, image in enumerate(images[:16]):
            pixels = cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR)
            larger = max(1, 480 // pixels.shape[1])  # names do not hide the objects of small networks
            pixels = cv2.resize(pixels, None, fx=larger, fy=larger, interpolation=cv2.INTER_NEAREST)
            labels = targets[targets[:, 0] == number][:, 1:].numpy()
            drawn.append(plots.draw_labels(pixels, labels, self.names))
        sheet = plots.contact_sheet(drawn, side=480)
        cv2.imwrite(str(self.path / f"train_batch{iteration}.jpg"), sheet)
        if self.board:
            self.board.picture(iteration, "training images", sheet)

    def close(self) -> None:
        self.results.close()
        if self.board:
            self.board.close()

    def _text(self, name: str, text: str) -> None:
        with replacing(self.path / name) as beside:
            beside.write_text(text, encoding="utf-8")
