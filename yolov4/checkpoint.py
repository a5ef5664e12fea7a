"""Trained networks on disk: .pt checkpoints with everything to go on, and networks from whatever file holds them.
No source: .weights is Darknet's (weights.py), the .pt is this project's own."""

from pathlib import Path
from typing import Any

import torch

from yolov4.files import replacing
from yolov4.model import Darknet
from yolov4.runs import is_checkpoint
from yolov4.weights import VERSION, load_weights

KEYS = {"cfg", "names", "model", "ema", "iteration", "seen"}


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """state: cfg (text), names, model, ema (or None), iteration, seen, and what else training needs to go on; tensors
    and plain values only, so that `torch.load(weights_only=True)` reads it."""
    with replacing(path) as beside:
        torch.save(state, beside)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Raises ValueError for what is no checkpoint of this project."""
    if not is_checkpoint(path):
        raise ValueError(f"{path}: is no .pt checkpoint, expected one that train.py wrote (or .weights with its cfg)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile zip brings
        raise ValueError(f"{path}: cannot be read as a checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise ValueError(f"{path}: is no checkpoint of this project, expected the keys {', '.join(sorted(KEYS))}")
    return state


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
    model = Darknet.from_cfg(cfg) if cfg is not None else Darknet.from_cfg(text=state["cfg"])
    try:
        model.load_state_dict((ema and state["ema"]) or state["model"])
    except RuntimeError as error:
        raise ValueError(f"{weights}: does not fit {cfg or 'its cfg'}: {str(error).splitlines()[-1].strip()}") from None
    model.seen, model.weights_version = state["seen"], tuple(state.get("version", VERSION))
    return model, state["names"]
