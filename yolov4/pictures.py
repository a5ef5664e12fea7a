"""The pictures of a list with their labels, whoever asks: decoded pictures stay in memory up to a bound.
No source: Darknet decodes an image whenever it is drawn."""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.heap import BufferWrapper

import numpy as np

from yolov4.data import label_path, load_image, read_labels

MAX_GB = 1_000_000


class Pictures:
    """Images and labels of paths.  Labels are read once in each process; a cache holds pictures for all of them.
    cache: its GB, 0 for none."""

    def __init__(self, paths: Sequence[str], cache: float = 0.0):
        if not 0 <= cache <= MAX_GB:
            raise ValueError(f"--cache: found {cache} GB, expected 0..{MAX_GB}")
        self.labels = {}
        self.cache = Cache(dict.fromkeys(paths), int(cache * 1e9)) if cache else None

    def __call__(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """The image, uint8 (H, W, 3) BGR, and its labels, float32 (n, 5); neither is to be changed.
        ValueError or OSError where a file cannot be read."""
        image = self.cache.get(path) if self.cache else None
        if image is None:
            image = load_image(path)
            if self.cache:
                self.cache.put(path, image)
        if path not in self.labels:
            self.labels[path] = read_labels(label_path(path))
        return image, self.labels[path]


class Cache:
    """Pictures in memory that all processes share which get this object when they start.  It fills as pictures come
    and keeps what it has: drawn at random, no picture is likelier to come again than another.  Memory is taken as it
    fills.  Its place is /dev/shm or, where that has not the room, the folder of temporary files.
    names: of the pictures it may get; room: bytes."""

    def __init__(self, names: Sequence[str], room: int):
        self.slots, self.room = {name: slot for slot, name in enumerate(names)}, room
        self.buffer, self.index = BufferWrapper(room), BufferWrapper(24 * len(self.slots))
        self.used = multiprocessing.Value("q", 0)  # bytes; its lock is that of the index too
        self._places()[:] = 0

    def get(self, name: str) -> np.ndarray | None:
        """The picture, not to be written to, or None."""
        with self.used.get_lock():
            start, height, width = self._places()[self.slots[name]].tolist()
        return self._picture(start, height, width) if height else None

    def put(self, name: str, image: np.ndarray) -> None:
        """Keeps the picture if there is room for it and no process keeps it already."""
        place = self._places()[self.slots[name]]
        with self.used.get_lock():
            start, end = self.used.value, self.used.value + image.size
            if end > self.room or place.any():
                return
            place[2], self.used.value = image.shape[1], end  # without a height it is not there yet
        picture = self._picture(start, *image.shape[:2])
        picture.flags.writeable = True
        picture[:] = image
        with self.used.get_lock():
            place[:2] = start, image.shape[0]

    def _places(self) -> np.ndarray:
        """int64 (names, 3): start, height, width."""
        return np.frombuffer(self.index.create_memoryview(), np.int64, 3 * len(self.slots)).reshape(-1, 3)

    def _picture(self, start: int, height: int, width: int) -> np.ndarray:
        size = 3 * height * width
        picture = np.frombuffer(self.buffer.create_memoryview(), np.uint8, size, start).reshape(height, width, 3)
        picture.flags.writeable = False
        return picture
