"""One call of detect.py: pictures in batches, videos and streams frame by frame; draws, saves, prints.
No source: Darknet takes one picture at a time, and a video by another command."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby, tee
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from yolov4.output import Output, VideoFile, write_picture
from yolov4.plots import draw_detections
from yolov4.predict import WORKERS, Detector, Prediction
from yolov4.progress import announce
from yolov4.sources import is_stream
from yolov4.video import Frame, Video

FEW = 2  # pictures that need no progress bar
Item, Result = TypeVar("Item"), TypeVar("Result")


def behind(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, waiting: int
) -> Iterator[tuple[Item, Result]]:
    """(item, function(item)) in order; the function runs in threads while the next items come, for at most `waiting`
    items at once.  However it ends, what was begun is finished."""
    with ThreadPoolExecutor(workers) as pool:
        pending = deque()
        for item in items:
            pending.append((item, pool.submit(function, item)))
            while pending and (len(pending) > waiting or pending[0][1].done()):
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()


class Session:
    """What detect.py's arguments ask for, with a detector; `failed` counts the sources that could not be read, or not
    to their end."""

    def __init__(self, arguments, detector: Detector, output: Output):
        self.arguments, self.detector, self.output = arguments, detector, output
        self.failed = self.read = 0

    def run(self, sources: list[str]) -> None:
        """Everything in order; ends early where the user closes the window."""
        groups = ((streams, list(group)) for streams, group in groupby(sources, is_stream))
        for streams, group in groups:
            going = all(map(self.video, group)) if streams else self.pictures(group)
            if not going:
                break

    def pictures(self, sources: list[str]) -> bool:
        """Pictures one after the other; False where the user has seen enough"""
        waiting = 0 if self.arguments.show else 2 * WORKERS
        with self.bar("pictures", len(sources), shown=len(sources) > FEW) as bar:

            def skip(_, error: Exception) -> None:
                self.skip(f"{error}; skipped")
                bar.update()

            places = self.placed(self.stream(sources, on_error=skip))
            for (path, prediction), drawn in behind(self.save_picture, places, WORKERS, waiting):
                announce(f"{self.line(prediction)} -> {path}")
                bar.update()
                if not self.shown(drawn, wait=0):
                    return False
        return True

    def placed(self, predictions: Iterable[Prediction]) -> Iterator[tuple[Path, Prediction]]:
        """Each with the path of its picture; boxes go to the .json and the labels here, in order"""
        for prediction in predictions:
            path = self.output.place(prediction.source, ".jpg")
            self.read += 1
            size = prediction.image.shape[1::-1]
            self.output.add(prediction.source, path.stem, size, prediction.detections, self.read)
            yield path, prediction

    def save_picture(self, place: tuple[Path, Prediction]) -> np.ndarray:
        path, prediction = place
        drawn = draw_detections(prediction.image, prediction.detections, self.detector.names)
        write_picture(path, drawn)
        return drawn

    def line(self, prediction: Prediction) -> str:
        found = zip(prediction.detections.labels.tolist(), prediction.detections.scores.tolist(), strict=True)
        text = ", ".join(f"{self.detector.names[label]}: {score * 100:.0f}%" for label, score in found)
        return f"{prediction.source}: {text or 'nothing'}  ({prediction.milliseconds:.0f} ms)"

    def video(self, source: str) -> bool:
        """A video or what is live, which Ctrl-C ends; False where the user has seen enough"""
        given = self.arguments
        try:
            video = Video(source, given.every, max(8, given.batch or 0), given.reconnect, announce)
        except ValueError as error:
            self.skip(f"{error}; skipped")
            return True
        path = self.output.place(source, ".mp4")
        frames, milliseconds, going = 0, 0.0, True
        with (
            closing(video),
            closing(VideoFile(path, video.rate / given.every, video.size)) as file,
            self.bar("frames", video.length) as bar,
        ):

            def save(item: tuple[Frame, Prediction]) -> np.ndarray:
                (number, _), prediction = item
                drawn = draw_detections(prediction.image, prediction.detections, self.detector.names)
                file.write(drawn, upto=(number - 1) // given.every + 1)
                return drawn

            analysed = self.analysed(video, source, path.stem)
            try:
                for (_, prediction), drawn in behind(save, analysed, 1, 0 if given.show else 4):
                    frames, milliseconds = frames + 1, milliseconds + prediction.milliseconds
                    bar.update()
                    going = self.shown(drawn, wait=1)
                    if not going:
                        break
            except KeyboardInterrupt:
                going = False
        if video.fault and going:
            self.skip(video.fault)
        announce(f"{source}: {frames} frames  ({milliseconds / max(frames, 1):.0f} ms each) -> {path}")
        return going

    def analysed(self, video: Video, source: str, stem: str) -> Iterator[tuple[Frame, Prediction]]:
        """Each frame with what was found; boxes go to the .json and the labels here, in order"""
        frames, again = tee(video)
        predictions = self.stream((frame.image for frame in again), live=video.live)
        for frame, prediction in zip(frames, predictions, strict=True):
            size = frame.image.shape[1::-1]
            self.output.add(source, f"{stem}_{frame.number:06}", size, prediction.detections, frame.number)
            yield frame, prediction

    def stream(self, sources: Iterable, **options) -> Iterator[Prediction]:
        given = self.arguments
        return self.detector.stream(sources, given.thresh, given.nms, given.batch, **options)

    def bar(self, unit: str, total: int | None, shown: bool = True) -> tqdm:
        """On a terminal only"""
        return tqdm(total=total, unit=f" {unit}", leave=False, dynamic_ncols=True, disable=None if shown else True)

    def skip(self, reason: str) -> None:
        self.failed += 1
        tqdm.write(f"detect.py: {reason}", file=sys.stderr)

    def shown(self, image: np.ndarray, wait: int) -> bool:
        """Shows it if asked, `wait` milliseconds or (0) until a key; False after q, Esc"""
        if not self.arguments.show:
            return True
        cv2.imshow("detect.py", image)
        return cv2.waitKey(wait) & 0xFF not in (27, ord("q"))
