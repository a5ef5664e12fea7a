"""Trained networks on disk: .pt checkpoints with everything to go on, and networks from whatever file holds them.
No source: .weights is Darknet's (weights.py), the .pt is this project's own."""

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from yolov4.cfg import parse_cfg
from yolov4.files import replacing
from yolov4.model import Darknet
from yolov4.runs import is_checkpoint
from yolov4.weights import VERSION, load_weights

PREVIOUS = "previous.pt"  # the checkpoint before last.pt, in the same folder
Weights = (dict, OrderedDict)
KEYS = {"cfg": str, "names": list, "model": Weights, "ema": (*Weights, type(None)), "iteration": int, "seen": int}


def save_checkpoint(path: str | Path, state: dict[str, Any], keep: str | Path | None = None) -> None:
    """state: cfg (text), names, model, ema (or None), iteration, seen, and what else training needs to go on; tensors
    and plain values only, so that `torch.load(weights_only=True)` reads it.  keep: where the file before goes to."""
    with replacing(path, keep) as beside, beside.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own words for a full disk name neither disk nor file
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Raises ValueError for what is no checkpoint of this project."""
    if not is_checkpoint(path):
        raise ValueError(f"{path}: is no .pt checkpoint, expected one that train.py wrote (or .weights with its cfg)")
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile zip brings
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path}: cannot be read as a checkpoint: {reason}") from None
    if not isinstance(state, dict) or not state.keys() >= KEYS.keys():
        raise ValueError(f"{path}: is no checkpoint of this project, expected the keys {', '.join(sorted(KEYS))}")
    for key, kind in KEYS.items():
        tensors = state[key].items() if isinstance(state[key], Weights) else ()
        named = all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors)
        if not isinstance(state[key], kind) or not named:
            raise ValueError(f"{path}: {key} is no value of a checkpoint of this project, expected one by train.py")
    return state


def last_checkpoint(folder: Path) -> dict[str, Any]:
    """Of folder/last.pt.  Raises ValueError as `load_checkpoint`; it offers the previous one where that is whole."""
    try:
        return load_checkpoint(folder / "last.pt")
    except ValueError as error:
        try:
            iteration = load_checkpoint(folder / PREVIOUS)["iteration"]
        except (ValueError, OSError):
            raise error from None
        offer = f"{folder / PREVIOUS} is whole, of iteration {iteration}: rename it to last.pt to go on from there"
        raise ValueError(f"{error}; {offer}") from None


def _check_archive(path: str | Path) -> None:
    """torch reads past a flipped bit, and unpacks what is packed; this does neither."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, expected a file as torch.save writes it")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong, the file is damaged")


def load_network(
    weights: str | Path, cfg: str | Path | None = None, ema: bool = True
) -> tuple[Darknet, list[str] | None]:
    """A whole network from .weights with its cfg, or from a .pt checkpoint (told by the content) -> model, names.

    ema: take the rolling average of a checkpoint where it has one.  names: None where the file holds none.
    model.seen: the images seen in training.  Raises ValueError for what does not fit, and for .weights of only the
    first layers.
    """
    if not is_checkpoint(weights):
        if cfg is None:
            raise ValueError(f"{weights}: a .weights file without its cfg, expected both")
        model = Darknet.from_cfg(cfg)
        loaded = load_weights(model, weights)
        if loaded.layers < loaded.of:
            raise ValueError(f"{weights}: holds {loaded.layers} of {loaded.of} layers of {cfg}, expected all")
        return model, None
    state = load_checkpoint(weights)
    model = Darknet.from_cfg(cfg) if cfg is not None else Darknet(parse_cfg(state["cfg"], f"{weights}, its cfg"))
    try:
        model.load_state_dict((ema and state["ema"]) or state["model"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise ValueError(f"{weights}: does not fit {cfg or 'its cfg'}: {reason}") from None
    model.seen, model.weights_version = state["seen"], tuple(state.get("version", VERSION))
    return model, state["names"]
