"""Darknet's detections by the real models, and what counts as the same.
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


SIZES = {"yolov3-tiny": "", "yolo-fastest-1.0-xl-voc": "", "yolov4-tiny-apple": "-416"}
REAL_MODELS = [RealModel(f, f"detections_real/{f}{s}.thresh05.json") for f, s in SIZES.items()]
# One detection depends on the JPEG decoder: with the pixels of Darknet's own (stb_image) the
# network gives 0.5352 as Darknet does, with libjpeg's, at most 3 grey levels away, 0.5516.
DECODER_MATTERS = {("yolo-fastest-1.0-xl-voc", "horses.jpg"): 0.02}


def photograph(shared: Path, name: str) -> Path:
    return next(shared.glob(f"images/**/{Path(name).name}"))


def unmatched_detections(model: RealModel, wanted: dict, objects: list[dict]) -> list[dict]:
    """Those without a partner: class equal, confidence within 0.01, box within 0.005.

    wanted: an entry of the golden file; objects: those of the .json.  What is within 0.01 of the
    threshold of 0.05 may come and go.
    """
    tolerance = DECODER_MATTERS.get((model.folder, Path(wanted["image"]).name), 0.01)
    keys = ("center_x", "center_y", "width", "height")
    left, lonely = [{**each, **each["relative_coordinates"]} for each in objects], []

    def same(a: dict, b: dict) -> bool:
        near = all(abs(a[key] - b[key]) <= 0.005 for key in keys)
        confident = abs(a["confidence"] - b["confidence"]) <= tolerance
        return a["class_id"] == b["class_id"] and near and confident

    for each in wanted["detections"]:
        if partner := next((other for other in left if same(each, other)), None):
            left.remove(partner)
        else:
            lonely.append(each)
    return [each for each in lonely + left if each["confidence"] > 0.06]
