"""Darknet's results for the real models: where they lie, and what counts as the same detections.
Source: ../shared/golden/README.md, detections_real."""

from pathlib import Path
from typing import NamedTuple


class RealModel(NamedTuple):
    folder: str
    detections: str  # golden file

    def files(self, shared: Path) -> tuple[Path, Path]:
        """cfg, weights"""
        folder = shared / "models" / self.folder
        return next(folder.glob("*.cfg")), next(folder.glob("*.weights"))


REAL_MODELS = [
    RealModel("yolov3-tiny", "detections_real/yolov3-tiny.thresh05.json"),
    RealModel("yolo-fastest-1.0-xl-voc", "detections_real/yolo-fastest-1.0-xl-voc.thresh05.json"),
    RealModel("yolov4-tiny-apple", "detections_real/yolov4-tiny-apple-416.thresh05.json"),
]

# One detection depends on the JPEG decoder: with the pixels of Darknet's own (stb_image) the network gives 0.5352 as
# Darknet does, with libjpeg's, which differ by 3 grey levels at most, 0.5516.
DECODER_MATTERS = {("yolo-fastest-1.0-xl-voc", "horses.jpg"): 0.02}


def photograph(shared: Path, name: str) -> Path:
    return next(shared.glob(f"images/**/{Path(name).name}"))


def unmatched_detections(model: RealModel, wanted: dict, objects: list[dict]) -> list[dict]:
    """What has no partner in the other: class equal, confidence within 0.01, box within 0.005.

    wanted: an entry of the golden file; objects: those of Darknet's .json.  What is within 0.01 of the threshold of
    0.05 may come and go.
    """
    tolerance = DECODER_MATTERS.get((model.folder, Path(wanted["image"]).name), 0.01)
    left, lonely = [{**each, **each["relative_coordinates"]} for each in objects], []
    for each in wanted["detections"]:
        partner = next((other for other in left if _same(each, other, tolerance)), None)
        if partner is None:
            lonely.append(each)
        else:
            left.remove(partner)
    return [each for each in lonely + left if each["confidence"] > 0.06]


def _same(a: dict, b: dict, tolerance: float) -> bool:
    keys = ("center_x", "center_y", "width", "height")
    near = abs(a["confidence"] - b["confidence"]) <= tolerance and all(abs(a[key] - b[key]) <= 0.005 for key in keys)
    return near and a["class_id"] == b["class_id"]
