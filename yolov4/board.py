"""TensorBoard as a view of a training: `tensorboard --logdir runs` shows what results.csv and the folder hold.
Source: torch.utils.tensorboard."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolov4 import curves
from yolov4.result import Record
from yolov4.updates import Update

THRESHOLDS = np.arange(127) / 127  # of a curve: what TensorBoard shows well


class Board:
    """Writes events into a folder.  Raises ValueError where the package tensorboard is not installed."""

    def __init__(self, folder: str | Path, iteration: int = 0):
        """iteration: where a run goes on; what an earlier process wrote after it is hidden."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "--tensorboard: the package tensorboard is not here, expected it from `pip install tensorboard`"
            ) from None
        self.writer = SummaryWriter(str(folder), purge_step=iteration + 1 if iteration else None)

    def log(self, iteration: int, update: Update, heads: Sequence[int], speed: float, mean_ap: float | None) -> None:
        """One iteration.  heads: layer numbers; speed: images a second; mean_ap: 0..1, None where not measured."""
        scalars = {"loss": update.loss, "rate": update.rate, "images_per_second": speed}
        for head, terms in zip(heads, update.heads, strict=True):
            for term in ("class_loss", "iou_loss", "average_iou"):
                scalars[f"{term}/head_{head}"] = getattr(terms, term)
        if mean_ap is not None:
            scalars["mAP"] = mean_ap
        for name, value in scalars.items():
            self.writer.add_scalar(name, float(value), iteration)

    def picture(self, iteration: int, name: str, image: np.ndarray) -> None:
        """image: uint8 (H, W, 3) BGR"""
        self.writer.add_image(name, image[..., ::-1].copy(), iteration, dataformats="HWC")

    def evaluated(
        self, iteration: int, records: Sequence[Record], names: Sequence[str], iou_thresh: float = 0.5
    ) -> None:
        """The precision-recall curve of each class that has truths."""
        matches = curves.match(records, len(names), iou_thresh)
        true, false = curves.positives(matches, THRESHOLDS)
        missed = matches.truths[:, None] - true
        for label in matches.truths.nonzero()[0]:
            tp, fp, fn = true[label], false[label], missed[label]
            precision = np.divide(tp, tp + fp, out=np.ones(len(tp)), where=tp + fp > 0)
            self.writer.add_pr_curve_raw(
                f"precision_recall/{names[label]}", tp, fp, np.zeros_like(tp), fn, precision, tp / (tp + fn),
                iteration, len(THRESHOLDS),
            )  # fmt: skip
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
