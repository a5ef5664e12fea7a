"""Darknet's .weights files <-> a model: checked before anything is copied, byte for byte on the way back.
Source: Darknet's src/parser.c, load_weights_upto and save_weights_upto."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from yolov4.files import replacing
from yolov4.layers import Add, Implicit
from yolov4.model import Darknet

VERSION = (0, 2, 5)  # what Darknet writes


@dataclass(frozen=True)
class LoadedWeights:
    """What a file held: images seen in training, the header's version, and how many layers of how many."""

    seen: int
    version: tuple[int, int, int]
    layers: int
    of: int

    def __str__(self) -> str:
        rest = "" if self.layers == self.of else ", the rest keeps its values"
        return f"loaded {self.layers} of {self.of} layers{rest}"


def load_weights(model: Darknet, path: str | Path) -> LoadedWeights:
    """Reads a .weights file into the model; a file that ends after a layer is partial and fine (yolov4.conv.137).

    Raises ValueError, and leaves the model as it was, for anything else that does not fit.
    """
    path = Path(path)
    version, seen, header = _read_header(path)
    size = path.stat().st_size - header
    groups = _parameter_groups(model)
    skipped = set()
    if size != 4 * sum(t.numel() for _, tensors in groups for t in tensors):
        everything, groups = groups, _loaded_groups(model, groups)
        skipped = {index for index, _ in everything} - {index for index, _ in groups}
    ends = np.cumsum([0] + [sum(t.numel() for t in tensors) for _, tensors in groups])
    floats = size // 4
    if size % 4 or floats not in ends[1:]:
        raise ValueError(_misfit(model, path, size, ends, groups))
    values = torch.from_numpy(np.fromfile(path, "<f4", offset=header))
    if not values.isfinite().all():
        layer = groups[int(np.searchsorted(ends, int((~values.isfinite()).nonzero()[0]), side="right")) - 1][0]
        raise ValueError(f"{path}: holds values in layer {layer} that are no numbers, expected trained weights")
    loaded = int(np.searchsorted(ends, floats))
    start = 0
    with torch.no_grad():
        for tensor in (t for _, tensors in groups[:loaded] for t in tensors):
            tensor.copy_(values[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()
    model.weights_version, model.seen = version, seen
    layers = len(model.plan) if loaded == len(groups) else groups[loaded - 1][0] + 1
    return LoadedWeights(seen, version, layers - sum(index < layers for index in skipped), len(model.plan))


def save_weights(model: Darknet, path: str | Path, seen: int | None = None, upto: int | None = None) -> None:
    """Writes the model as .weights, beside the place first and then renamed.

    seen: images seen in training; None writes what was loaded, or 0.  upto: only the first layers, as
    yolov4.conv.137 holds 137.  The header's version is that of the file loaded, else Darknet's own.
    Raises ValueError, and keeps what was there before, for values that are no numbers.
    """
    if upto is not None and not 0 < upto <= len(model.plan):
        raise ValueError(f"{path}: upto={upto}, expected 1..{len(model.plan)}, the layers of the network")
    version = getattr(model, "weights_version", VERSION)
    seen = getattr(model, "seen", 0) if seen is None else seen
    with replacing(path) as beside, beside.open("wb") as file:
        np.array(version, "<i4").tofile(file)
        np.array([seen], "<i8" if version[0] * 10 + version[1] >= 2 else "<i4").tofile(file)
        for index, tensors in _parameter_groups(model):
            if upto is None or index < upto:
                for tensor in tensors:
                    if not tensor.isfinite().all():
                        raise ValueError(f"{path}: layer {index} became values that are no numbers; not written")
                    tensor.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False).tofile(file)


def _parameter_groups(model: Darknet) -> list[tuple[int, list[Tensor]]]:
    """(index of the layer, its tensors in the order of the file) of every layer that has any"""
    groups: list[tuple[int, list[Tensor]]] = []
    for index, module in enumerate(model.layers):
        if isinstance(module, Add | Implicit) and module.weight is not None:
            groups.append((index, [module.weight]))
        elif isinstance(module, nn.Sequential):
            convolution, normalisation = module[0], module[1]
            if isinstance(normalisation, nn.BatchNorm2d):
                n = normalisation
                groups.append((index, [n.bias, n.weight, n.running_mean, n.running_var, convolution.weight]))
            elif model.plan[index].section.batch_normalize:
                raise ValueError("the model is fused, expected one that still has its batch normalisation")
            else:
                groups.append((index, [convolution.bias, convolution.weight]))
    return groups


def _loaded_groups(model: Darknet, groups: list[tuple[int, list[Tensor]]]) -> list[tuple[int, list[Tensor]]]:
    """What a file holds by the cfg's dontload and dontloadscales; one that training wrote is complete all the same."""
    sections, kept = model.sections, []
    for index, tensors in groups:
        if not getattr(sections[index], "dontload", False):
            short = len(tensors) == 5 and sections[index].dontloadscales
            kept.append((index, [tensors[0], tensors[4]] if short else tensors))
    return kept


def _read_header(path: Path) -> tuple[tuple[int, int, int], int, int]:
    """version, seen, length of the header in bytes"""
    with path.open("rb") as file:
        start = file.read(64)
    kinds = {b"PK\x03\x04": "a .pt checkpoint or a zip", b"\x80": "a pickled checkpoint", b"[net]": "a .cfg"}
    for signature, kind in kinds.items():
        if start.startswith(signature):
            raise ValueError(f"{path}: is {kind}, expected a Darknet .weights file")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path}: is an HTML page, expected a Darknet .weights file: the download went wrong")
    if len(start) < 16:
        raise ValueError(f"{path}: has {len(start)} bytes, expected a header of 16 or 20 and weights after it")
    version = tuple(int(v) for v in np.frombuffer(start[:12], "<i4"))
    if not (0 <= version[0] < 100 and 0 <= version[1] < 100):
        found = ".".join(map(str, version))
        raise ValueError(f"{path}: starts with version {found}, expected 0.1.0 to 0.2.5: not a Darknet .weights file")
    wide = version[0] * 10 + version[1] >= 2
    if wide and len(start) < 20:
        raise ValueError(f"{path}: has {len(start)} bytes, expected a header of 20 and weights after it")
    seen = int(np.frombuffer(start[12:20] if wide else start[12:16], "<i8" if wide else "<i4")[0])
    return version, seen, 20 if wide else 16


def _misfit(model: Darknet, path: Path, size: int, ends: np.ndarray, groups: list[tuple[int, list[Tensor]]]) -> str:
    """Why a body of `size` bytes does not fit, in one sentence."""
    name, floats, expected = model.network.name, size // 4, int(ends[-1])
    found = f"{path}: holds {floats:,} floats" + (f" and {size % 4} bytes" if size % 4 else "")
    classes = _classes_of(model, floats - expected)
    if not size % 4 and classes:
        return (
            f"{found}, weights of {classes} classes, but {name} has {model.heads[0].classes} classes "
            f"({expected:,} floats); take the cfg of the weights, or their first layers alone (cvt2darknet.py --upto)"
        )
    if floats >= expected:
        return f"{found}, too long for {name}, expected {expected:,}"
    group = int(np.searchsorted(ends, floats, side="right")) - 1
    layer, end = groups[group][0], int(ends[group + 1])
    return f"{found}, cut in layer {layer} of {name}, expected {end:,} up to its end or {expected:,} in all"


def _classes_of(model: Darknet, more: int) -> int | None:
    """The number of classes that would make the network's weights `more` floats longer, if there is one."""
    before = [(head, model.layers[head.index - 1]) for head in model.heads if head.index]
    convolutions = [(head, layer[0]) for head, layer in before if isinstance(layer, nn.Sequential)]
    per_class = sum(len(head.anchors) * (layer.weight[0].numel() + 1) for head, layer in convolutions)
    if not per_class or more % per_class or more == 0:
        return None
    classes = model.heads[0].classes + more // per_class
    return classes if classes > 0 else None
