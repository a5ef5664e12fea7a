"""What detect.py leaves: pictures and videos with boxes, labels for training, Darknet's .json.
Source: Darknet's src/network.c, detection_to_json, for the keys."""

import json
from collections.abc import Sequence
from pathlib import Path

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
        self.folder, self.names, self.save_txt, self.json_path = Path(folder), names, save_txt, json_path
        self.sources = {Path(source).resolve() for source in sources}
        self.stems: set[str] = set()
        self.frames: list[dict] = []
        (self.folder / "labels" if save_txt else self.folder).mkdir(parents=True, exist_ok=True)

    def place(self, source: str, suffix: str) -> Path:
        """The path for the output of a source."""
        name = f"camera{source}" if source.isdigit() else Path(source.split("?")[0]).stem
        number, stem = 1, name
        while stem.lower() in self.stems or (self.folder / f"{stem}{suffix}").resolve() in self.sources:
            number += 1
            stem = f"{name}_{number}"
        self.stems.add(stem.lower())  # some file systems know no capitals
        return self.folder / f"{stem}{suffix}"

    def add(self, source: str, stem: str, image_size: tuple[int, int], detections: Detections) -> None:
        """One picture or frame: keeps it for the .json, writes its labels where asked."""
        if self.json_path:
            self.frames.append(darknet_json(len(self.frames) + 1, source, self.names, image_size, detections))
        if self.save_txt:
            text = label_lines(image_size, detections)
            (self.folder / "labels" / f"{stem}.txt").write_text(text, encoding="utf-8")

    def close(self) -> None:
        if self.json_path:
            Path(self.json_path).write_text(json.dumps(self.frames, indent=1, ensure_ascii=False), encoding="utf-8")


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


def video_writer(path: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    if not writer.isOpened():
        raise ValueError(
            f"{path}: OpenCV cannot write an mp4 of {size[0]}x{size[1]} here, expected an OpenCV with FFmpeg"
        )
    return writer


def _relative_cxcywh(image_size: tuple[int, int], corners: np.ndarray) -> np.ndarray:
    low, high = corners[:, :2], corners[:, 2:]
    return np.concatenate(((low + high) / 2, high - low), 1) / (*image_size, *image_size)
