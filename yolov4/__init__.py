"""YOLOv4 in PyTorch, exact to Darknet: its networks, its loss, its detections, its files.
Every name is imported where it is first used, so that `import yolov4` costs nothing."""

import importlib
import os

_HOME = {
    "Darknet": "model", "load_weights": "weights", "save_weights": "weights", "decode": "decoding",
    "detections_from_logits": "decoding", "Decoded": "decoding", "Detections": "decoding",
    "DarknetLoss": "loss", "learning_rate": "schedule", "Detector": "detector",
    "evaluate": "evaluation", "augment": "augment", "read_cfg": "cfg", "parse_cfg": "cfg",
    "format_cfg": "cfg",
}  # fmt: skip
__all__ = [*_HOME, "train"]
__version__ = "0.1.0"
# of an image; OpenCV reads it when it is imported
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))


def train(**options):
    """Trains like the command `yolov4 train` with these flags: data="x.data", max_batches=100,
    clear=True ... Returns the run's folder.  Raises ValueError for what does not fit."""
    from yolov4 import cli

    return cli.train(cli.as_words(options))


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'yolov4' has no attribute {name!r}")
    module = importlib.import_module(f"yolov4.{_HOME[name]}")
    return module if name == _HOME[name] else getattr(module, name)


def __dir__():
    return globals().keys() | _HOME
