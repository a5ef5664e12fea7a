"""Proof that a .weights file is what it should be: read again, byte for byte, and run by OpenCV's Darknet importer.
Source: OpenCV's dnn module (4.x; OpenCV 5 has no Darknet importer) as the independent reader."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from yolov4.decoding import decode
from yolov4.model import Darknet
from yolov4.weights import load_weights, save_weights


def check_bytes(cfg: str | Path, weights: str | Path, model: Darknet) -> str:
    """Reads the file into a fresh network, compares every tensor with the model's, writes it again and compares bytes.
    Returns a sentence; raises ValueError for any difference."""
    again = Darknet.from_cfg(cfg)
    loaded = load_weights(again, weights)
    if loaded.layers == loaded.of:
        wanted = model.state_dict()
        for name, tensor in again.state_dict().items():
            if tensor.is_floating_point() and not torch.equal(tensor, wanted[name].float().cpu()):
                raise ValueError(f"{weights}: {name} differs from the source, expected the same values")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.weights"
        save_weights(again, copy, upto=None if loaded.layers == loaded.of else loaded.layers)
        if copy.read_bytes() != Path(weights).read_bytes():
            raise ValueError(f"{weights}: written again it has other bytes, expected the same")
    return f"{weights}: {loaded}, every value as in the source, the same {Path(weights).stat().st_size:,} bytes again"


def opencv_difference(cfg: str | Path, weights: str | Path, images: Tensor) -> float | None:
    """The largest difference between our predictions and those of OpenCV's importer.

    images: (1, 3, h, w) float RGB 0..1 of the cfg's size.  Compared are objectness and boxes relative to the network
    input (boxes larger than that, relative to themselves).  None where OpenCV has no importer; ValueError where the
    importer refuses the file.
    """
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        return None
    model = Darknet.from_cfg(cfg).eval()
    load_weights(model, weights)
    with torch.no_grad():
        ours = [decode(logits, head) for logits, head in zip(model(images), model.heads, strict=True)]
    try:
        net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
        net.setInput(images.numpy())
        theirs = net.forward([f"yolo_{head.index}" for head in model.heads])
    except cv2.error as error:
        raise ValueError(f"{cfg}: OpenCV {cv2.__version__} cannot run it: {error.err}") from None
    differences = []
    for decoded, rows in zip(ours, theirs, strict=True):
        # OpenCV goes through the cells row by row, and through the anchors of each
        boxes = decoded.boxes[0].permute(1, 2, 0, 3).reshape(-1, 4)
        objectness = decoded.objectness[0].permute(1, 2, 0).reshape(-1, 1)
        expected = torch.cat((boxes, objectness), 1).numpy()
        found = rows.reshape(len(expected), -1)[:, :5]
        differences.append(largest_difference(found, expected))
    return max(differences)


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Of two arrays of one shape, values above 1 relative to themselves.  Equal infinities (boxes of an untrained
    network) do not differ, what is no number does without bound."""
    with np.errstate(invalid="ignore"):
        away = np.where(found == expected, 0, np.abs(found - expected)) / np.maximum(1, np.abs(expected))
    return float(np.nan_to_num(away, nan=np.inf).max(initial=0))
