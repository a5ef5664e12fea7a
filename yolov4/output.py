"""What detect.py leaves: pictures and videos with boxes, labels for training, Darknet's .json.
Source: Darknet's src/network.c, detection_to_json, for the keys; src/detector.c, that it grows as results come."""

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from yolov4.decoding import Detections


class Output:
    """Files of one call of detect.py.  Two sources of one name get NAME and NAME_2; a source is never written over."""

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        sources: Sequence[str],
        save_txt: bool,
        json_path: str | None,
    ):
        self.folder, self.names, self.save_txt = Path(folder), names, save_txt
        self.sources = {Path(source).resolve() for source in sources}
        self.stems: set[str] = set()
        (self.folder / "labels" if save_txt else self.folder).mkdir(parents=True, exist_ok=True)
        self.json = Path(json_path).open("w", encoding="utf-8") if json_path else None  # noqa: SIM115
        self.frames = 0

    def place(self, source: str, suffix: str) -> Path:
        """The path for the output of a source."""
        address = urlsplit(source) if "://" in source else None  # whose password belongs in no name
        name = (Path(address.path).stem or address.hostname or "stream") if address else Path(source).stem
        name = f"camera{name}" if source.isdigit() else name
        number, stem = 1, name
        while stem.lower() in self.stems or (self.folder / f"{stem}{suffix}").resolve() in self.sources:
            number += 1
            stem = f"{name}_{number}"
        self.stems.add(stem.lower())  # some file systems know no capitals
        return self.folder / f"{stem}{suffix}"

    def add(self, source: str, stem: str, image_size: tuple[int, int], detections: Detections, frame: int) -> None:
        """One picture or frame, which has this number in its source: a line of the .json, its labels where asked."""
        if self.json:
            record = darknet_json(frame, source, self.names, image_size, detections)
            self.json.write((",\n" if self.frames else "[\n") + json.dumps(record, ensure_ascii=False))
            self.frames += 1
        if self.save_txt:
            text = label_lines(image_size, detections)
            (self.folder / "labels" / f"{stem}.txt").write_text(text, encoding="utf-8")

    def close(self) -> None:
        if self.json:
            with self.json:
                self.json.write("\n]\n" if self.frames else "[]\n")


def darknet_json(
    frame: int, source: str, names: Sequence[str], image_size: tuple[int, int], detections: Detections
) -> dict:
    """One frame as `darknet detector test -out` has it; boxes may reach beyond the picture."""
    keys = ("center_x", "center_y", "width", "height")
    boxes = _relative_cxcywh(image_size, detections.boxes.double().numpy()).tolist()
    objects = [
        {"class_id": label, "name": names[label], "relative_coordinates": dict(zip(keys, box, strict=True)),
         "confidence": score}
        for label, box, score in zip(detections.labels.tolist(), boxes, detections.scores.tolist(), strict=True)
    ]  # fmt: skip
    return {"frame_id": frame, "filename": source, "objects": objects}


def label_lines(image_size: tuple[int, int], detections: Detections) -> str:
    """Lines `class cx cy w h` as training reads them: cut at the edges of the picture, a box with its best class."""
    corners = detections.boxes.double().numpy()
    _, best = np.unique(corners, axis=0, return_index=True)  # classes of one prediction share its box
    clipped = _relative_cxcywh(image_size, corners.clip(0, (*image_size, *image_size)))
    rows = ((detections.labels[row].item(), clipped[row]) for row in sorted(best) if clipped[row, 2:].min() > 0)
    return "".join(f"{label} " + " ".join(f"{value:.6f}" for value in box) + "\n" for label, box in rows)


def write_picture(path: Path, image: np.ndarray) -> None:
    """Encodes by the suffix; a path beyond ASCII is fine under Windows too."""
    encoded, content = cv2.imencode(path.suffix, image)
    if not encoded:
        raise ValueError(f"{path}: OpenCV cannot encode {path.suffix}, expected another suffix")
    content.tofile(path)


class VideoFile:
    """An .mp4 of frames uint8 (H, W, 3) BGR; those of another size are scaled.  rate: a second; size: (width, height).
    Raises ValueError where OpenCV cannot write one, from close() where not all frames got there."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int]):
        self.path, self.size, self.frames = path, size, 0
        self.writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
        if not self.writer.isOpened():
            raise ValueError(
                f"{path}: OpenCV cannot write an mp4 of {size[0]}x{size[1]} here, expected an OpenCV with FFmpeg"
            )

    def write(self, image: np.ndarray, upto: int) -> None:
        """Writes the image until there are `upto` frames: more than once where some were dropped before it."""
        fitting = image if image.shape[1::-1] == self.size else cv2.resize(image, self.size)
        for _ in range(upto - self.frames):
            self.writer.write(fitting)
        self.frames = upto

    def close(self) -> None:
        self.writer.release()
        capture = cv2.VideoCapture(str(self.path))  # OpenCV's writer does not tell of a full disk
        found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        if found != self.frames:
            raise ValueError(f"{self.path}: holds {found} of the {self.frames} frames written; is the disk full?")


def _relative_cxcywh(image_size: tuple[int, int], corners: np.ndarray) -> np.ndarray:
    low, high = corners[:, :2], corners[:, 2:]
    return np.concatenate(((low + high) / 2, high - low), 1) / (*image_size, *image_size)
