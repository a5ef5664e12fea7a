"""Where a training stands and what it shows of itself; requests to stop.
Source: Darknet's src/detector.c, train_detector, what it prints after each iteration."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader
from tqdm import tqdm

from yolov4.updates import Update


@dataclass
class Progress:
    """Where a training stands, besides weights and optimiser; -1: not yet."""

    iteration: int = 0
    best_map: float = -1.0
    last_map: float = -1.0
    waited: int = 0  # evaluations since the best
    average_loss: float = -1.0  # nine tenths of the last and one of the new, as Darknet prints it

    def advance(self, update: Update) -> None:
        self.iteration += 1
        self.average_loss = 0.9 * self.average_loss + 0.1 * update.loss if self.average_loss >= 0 else update.loss

    def measured(self, mean_ap: float) -> bool:
        """Takes the mAP of an evaluation, 0..1; whether it is the best so far."""
        self.last_map = mean_ap
        best = mean_ap >= self.best_map
        self.best_map, self.waited = (mean_ap, 0) if best else (self.best_map, self.waited + 1)
        return best

    def line(self, update: Update, speed: float, data_share: float) -> str:
        """Terms, rate, images a second, share of the time that was spent waiting for data."""
        parts = {part: sum(getattr(head, f"{part}_loss") for head in update.heads) for part in ("class", "iou")}
        terms = "".join(f", {part} {loss:.2f}" for part, loss in parts.items())
        overlap = "/".join(f"{head.average_iou:.2f}" for head in update.heads)
        mean_ap = f", mAP {self.last_map:.2%}" if self.last_map >= 0 else ""
        return (
            f"loss {update.loss:.2f} (avg {self.average_loss:.2f}{terms}), IoU {overlap}, rate {update.rate:.3g}, "
            f"{speed:.1f} img/s, {data_share:.0%} waiting for data{mean_ap}"
        )


def darknet_log(update: Update, layers: list[int]) -> str:
    """The heads of an update in the words of Darknet's log, a line a yolo layer."""
    return "\n".join(
        f"Region {layer} Avg (IOU: {terms.average_iou:.6f}), count: {terms.count:g}, "
        f"class_loss = {terms.class_loss:.6f}, iou_loss = {terms.iou_loss:.6f}, total_loss = {terms.total_loss:.6f}"
        for layer, terms in zip(layers, update.heads, strict=True)
    )


def announce(line: str) -> None:
    """Prints above the progress bar, and at once where the output is a file."""
    tqdm.write(line)
    sys.stdout.flush()


class Timed:
    """An iterator over a DataLoader that adds up the seconds it made its reader wait."""

    def __init__(self, loader: DataLoader):
        self.iterator, self.seconds = iter(loader), 0.0

    def __iter__(self) -> "Timed":
        return self

    def __next__(self):
        start = time.perf_counter()
        try:
            return next(self.iterator)
        finally:
            self.seconds += time.perf_counter() - start

    def close(self) -> None:
        """Ends the processes of a DataLoader, which SIGTERM does not end: else Python may wait for them at its exit."""
        if hasattr(self.iterator, "_shutdown_workers"):
            self.iterator._shutdown_workers()

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Faults:
    """Training images that could not be read any more: each is said once.  Raises ValueError where more than LIMIT of
    `images`, the length of the list, are among them."""

    LIMIT = 0.01

    def __init__(self, images: int, say: Callable[[str], None]):
        self.images, self.say, self.files = images, say, set()

    def add(self, faults: Iterable[tuple[str, str]]) -> None:
        """faults: image, why; another image has taken its place."""
        for path, reason in faults:
            if path in self.files:
                continue
            self.files.add(path)
            self.say(f"{reason}; another image takes its place ({len(self.files)} of {self.images} so far)")
        if len(self.files) > self.LIMIT * self.images:
            found = f"{len(self.files)} of {self.images} images cannot be read any more, the last: {path}"
            raise ValueError(f"{found}; expected at most {self.LIMIT:.0%}: is the disk still there?")


@contextlib.contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[list[int]]:
    """A list that is filled when SIGINT (Ctrl-C) or SIGTERM asks to stop; a second one stops at once."""
    requests: list[int] = []

    def request(number: int, _) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        say("stopping after this iteration; once more stops at once")

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
