"""Frames of videos, cameras and addresses, decoded in a thread: all of a file in order, the newest of what is live.
No source: Darknet's demo.c decodes in a thread too, but ends where a stream breaks off."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from yolov4.sources import is_camera, is_live

FIRST_PAUSE, LAST_PAUSE = 0.5, 10.0  # seconds before a stream is tried again


class Frame(NamedTuple):
    """One frame of `Video`."""

    number: int  # from 1, as the source counts: with every=5 it is 1, 6, 11
    image: np.ndarray  # uint8 (H, W, 3) BGR


class Video:
    """Every `every`-th Frame of a video, a camera's number or an address.  Raises ValueError if it does not open.

    A file gives its frames in order, `ahead` of them decoded in advance.  What is live gives the newest frame whenever
    it is asked; where it breaks off it is tried again for `reconnect` seconds, after longer and longer pauses, and
    say(line) tells of it.  A bad end is no error: `fault` says where it was.
    live: a camera, or an address of no file and no known length; rate: frames a second; size: (width, height);
    length: how many frames will come, None if not known.
    """

    def __init__(
        self,
        source: str,
        every: int = 1,
        ahead: int = 8,
        reconnect: float = 60.0,
        say: Callable[[str], None] = print,
    ):
        self.source, self.every, self.reconnect, self.say = source, every, reconnect, say
        self.capture = self._open()
        opened, image = self.capture.read()
        if not opened:
            self.capture.release()
            raise ValueError(f"{source}: found no frame that OpenCV can read, expected a video or a camera's number")
        rate, count = self.capture.get(cv2.CAP_PROP_FPS), int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if 0 < rate <= 1000 else 25.0
        self.size = image.shape[1::-1]
        self.live = is_live(source) and count <= 0
        self.length = -(-count // every) if count > 0 and not self.live else None
        self.seconds = count / self.rate if self.length else 0.0  # of the whole file
        self.fault: str | None = None
        self.number, self.reached = 1, 0.0  # of the last frame read; seconds
        self.waiting = deque([Frame(1, image)], maxlen=1 if self.live else None)
        self.room = 1 if self.live else ahead
        self.changed, self.closed, self.ended = threading.Condition(), threading.Event(), False
        self.thread = threading.Thread(target=self._run, daemon=True)  # a dead stream blocks OpenCV for half a minute

    def __iter__(self) -> Iterator[Frame]:
        self.thread.start()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.ended)
                if not self.waiting:
                    return
                frame = self.waiting.popleft()
                self.changed.notify_all()
            yield frame

    def close(self) -> None:
        """Ends the reading; what was decoded ahead is dropped."""
        with self.changed:
            self.closed.set()
            self.changed.notify_all()
        if self.thread.ident:
            self.thread.join(timeout=2)

    def _run(self) -> None:
        try:
            for frame in self._frames():
                with self.changed:
                    self.changed.wait_for(lambda: self.live or len(self.waiting) < self.room or self.closed.is_set())
                    self.waiting.append(frame)  # drops an older one where the source is live
                    self.changed.notify_all()
        except cv2.error as error:
            self.fault = f"{self.source}: OpenCV cannot read on after frame {self.number} ({error.err})"
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()
            self.capture.release()

    def _frames(self) -> Iterator[Frame]:
        """All that are wanted after the first; the others are not even decoded to pixels"""
        while not self.closed.is_set():
            wanted = self.number % self.every == 0
            there, image = self.capture.read() if wanted else (self.capture.grab(), None)
            if there:
                self.number += 1
                self.reached = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if wanted:
                    yield Frame(self.number, image)
            elif not self.live:
                self._check_end()
                return
            elif not self._reopen():
                return

    def _open(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(int(self.source) if is_camera(self.source) else self.source)

    def _reopen(self) -> bool:
        """Whether a live source came back in time"""
        broken, pause = time.monotonic(), FIRST_PAUSE
        where = f"{self.source}: broke off after frame {self.number}"
        if self.reconnect:
            self.say(f"{where}; trying again for {self.reconnect:g} s")
        while time.monotonic() - broken + pause <= self.reconnect and not self.closed.wait(pause):
            self.capture.release()
            self.capture = self._open()
            if self.capture.grab():
                self.number += 1
                self.say(f"{self.source}: came back after {time.monotonic() - broken:.1f} s")
                return True
            pause = min(2 * pause, LAST_PAUSE)
        if not self.closed.is_set():
            self.fault = f"{where} and did not come back within {self.reconnect:g} s; what came is kept"
        return False

    def _check_end(self) -> None:
        """A whole file ends within a second, or a fiftieth, of its length"""
        reached = self.reached + 1 / self.rate
        if self.seconds - reached > max(1, self.seconds / 50):
            self.fault = (f"{self.source}: ends after frame {self.number}, at {reached:.1f} of {self.seconds:.1f} s, "
                          "as if cut or damaged; what came is kept")  # fmt: skip
