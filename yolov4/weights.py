"""Darknet's .weights files <-> a model: checked before anything is copied, byte for byte on the way back.
Source: Darknet's src/parser.c, load_weights_upto and save_weights_upto."""

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from yolov4.files import replacing
from yolov4.layers import Add, Implicit
from yolov4.model import Darknet

VERSION = (0, 2, 5)  # what Darknet writes
MOST_CLASSES = 10_000  # that a file is taken for: YOLO9000 has 9,418
Groups = list[tuple[int, list[Tensor]]]  # index of a layer, its tensors in the order of the file


@dataclass(frozen=True)
class LoadedWeights:
    """What a file held: images seen in training, the header's version, and how many layers of how many; of another
    number of classes: that number, and how many layers before the heads were left out for it."""

    seen: int
    version: tuple[int, int, int]
    layers: int
    of: int
    classes: int | None = None
    left_out: int = 0

    def __str__(self) -> str:
        text = f"loaded {self.layers} of {self.of} layers"
        if self.classes:
            text += f" of {self.classes} classes; the {self.left_out} before the heads start fresh"
        return text if self.layers + self.left_out == self.of else f"{text}, the rest keeps its values"


def load_weights(model: Darknet, path: str | Path, other_classes: bool = False) -> LoadedWeights:
    """Reads a .weights file into the model; a file that ends after a layer is partial and fine (yolov4.conv.137).

    other_classes: a file of another number of classes is fine too; the convolutions before the heads keep their values.
    Raises ValueError, and leaves the model as it was, for anything else that does not fit.
    """
    path = Path(path)
    version, seen, header = _read_header(path)
    groups = _parameter_groups(model)
    skipped = set()
    if path.stat().st_size - header != 4 * sum(_floats(groups)):
        everything, groups = groups, _loaded_groups(model, groups)
        skipped = {index for index, _ in everything} - {index for index, _ in groups}
    classes, parts = _read_body(model, path, header, groups, other_classes)
    left_out = 0
    with torch.no_grad():
        for (_, tensors), part in zip(groups, parts, strict=False):
            sizes = [tensor.numel() for tensor in tensors]
            if len(part) != sum(sizes):
                left_out += 1
                continue
            for tensor, values in zip(tensors, part.split(sizes), strict=True):
                tensor.copy_(values.view(tensor.shape))
    model.weights_version, model.seen = version, 0 if classes else seen
    layers = len(model.plan) if len(parts) == len(groups) else groups[len(parts) - 1][0] + 1
    layers -= left_out + sum(index < layers for index in skipped)
    return LoadedWeights(seen, version, layers, len(model.plan), classes, left_out)


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


def _parameter_groups(model: Darknet) -> Groups:
    """(index of the layer, its tensors in the order of the file) of every layer that has any"""
    groups: Groups = []
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


def _loaded_groups(model: Darknet, groups: Groups) -> Groups:
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
            advice = f" (`python cvt2darknet.py {path}` writes one)" if signature == b"PK\x03\x04" else ""
            raise ValueError(f"{path}: is {kind}, expected a Darknet .weights file{advice}")
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


def _read_body(
    model: Darknet, path: Path, header: int, groups: Groups, other_classes: bool
) -> tuple[int | None, tuple[Tensor, ...]]:
    """(the file's number of classes where it is another than the model's, the values of each group that it holds)"""
    size = path.stat().st_size - header
    readings = [] if size % 4 else _readings(model, groups, size // 4)
    if readings:
        values = torch.from_numpy(np.fromfile(path, "<f4", offset=header))
        split = [(classes, values.split(sizes)) for classes, sizes in readings]
        readings = [(classes, parts) for classes, parts in split if not classes or _variances_hold(groups, parts)]
    if len(readings) != 1 or (readings[0][0] and not other_classes):
        raise ValueError(_misfit(model, path, size, groups, [classes for classes, _ in readings]))
    classes, parts = readings[0]
    for (layer, _), part in zip(groups, parts, strict=False):
        if not part.isfinite().all():
            raise ValueError(f"{path}: holds values in layer {layer} that are no numbers, expected trained weights")
    return classes, parts


def _readings(model: Darknet, groups: Groups, floats: int) -> list[tuple[int | None, list[int]]]:
    """How a body may be cut: (None, floats of each group), or where that does not fit (classes, floats of each group)
    for every other number of classes that makes it end after a group."""
    own = _floats(groups)
    ends = list(accumulate(own))
    if floats in ends:
        return [(None, own[: ends.index(floats) + 1])]
    before = {head.index - 1: head.classes for head in model.heads if head.index}
    if not all(isinstance(model.layers[index], nn.Sequential) for index in before):
        return []
    a_class = [
        size // (5 + before[index]) if index in before else 0 for (index, _), size in zip(groups, own, strict=True)
    ]
    found = []
    for count, end in enumerate(ends, 1):
        per_class = sum(a_class[:count])
        more, rest = divmod(floats - end, per_class) if per_class else (0, 1)
        if not rest and 0 < (classes := model.heads[0].classes + more) <= MOST_CLASSES:
            found.append((classes, [size + more * each for size, each in zip(own[:count], a_class, strict=False)]))
    return found


def _variances_hold(groups: Groups, parts: tuple[Tensor, ...]) -> bool:
    """Whether no rolling variance is negative (by more than a denormal, which some real files hold), as many are where
    a file is cut in the wrong places."""
    for (_, tensors), part, floats in zip(groups, parts, _floats(groups), strict=False):
        filters = len(tensors[0])
        if len(tensors) == 5 and len(part) == floats and (part[3 * filters : 4 * filters] < -1e-6).any():
            return False
    return True


def _floats(groups: Groups) -> list[int]:
    return [sum(tensor.numel() for tensor in tensors) for _, tensors in groups]


def _misfit(model: Darknet, path: Path, size: int, groups: Groups, classes: list[int]) -> str:
    """Why a body of `size` bytes does not fit, in one sentence.  classes: what it may be of."""
    ends = np.cumsum([0, *_floats(groups)])
    name, floats, expected = model.network.name, size // 4, int(ends[-1])
    found = f"{path}: holds {floats:,} floats" + (f" and {size % 4} bytes" if size % 4 else "")
    if classes:
        return (
            f"{found}, weights of {' or '.join(map(str, classes))} classes, but {name} has {model.heads[0].classes} "
            f"classes ({expected:,} floats); take the cfg of the weights, or train from them: `train.py --weights` "
            "loads all but the heads"
        )
    if floats >= expected:
        return f"{found}, too long for {name}, expected {expected:,}"
    group = int(np.searchsorted(ends, floats, side="right")) - 1
    layer, end = groups[group][0], int(ends[group + 1])
    return f"{found}, cut in layer {layer} of {name}, expected {end:,} up to its end or {expected:,} in all"
