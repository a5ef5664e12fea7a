"""Trained networks on disk: Darknet's .weights, byte for byte, and .pt checkpoints; their proof;
which files belong together.
Source: Darknet's src/parser.c, load_weights_upto and save_weights_upto; OpenCV's importer."""

import glob
import os
import re
import struct
import tempfile
import zipfile
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from yolov4.cfg import parse_cfg
from yolov4.files import own_file, regular, replacing
from yolov4.model import Darknet

VERSION = (0, 2, 5)  # what Darknet writes
ORDER = (  # of a layer's tensors in the file: convolution 0, batch norm 1; of a shortcut
    "1.bias", "1.weight", "1.running_mean", "1.running_var", "0.bias", "0.weight", "weight"
)  # fmt: skip
COMMON_NAMES = ("coco.names", "obj.names")  # as users of Darknet call them
KINDS = {
    b"PK\x03\x04": "a .pt checkpoint (`python cvt2darknet.py {}` writes its .weights)",
    b"[": "a .cfg",
    b"<": "an HTML or XML page: the download failed",
}


@dataclass(frozen=True)
class LoadedWeights:
    """What a file held: images seen in training, how many layers of how many, and of weights of
    another number of classes that number; then the convolutions before the heads are left out."""

    seen: int
    layers: int
    of: int
    classes: int | None = None

    def __str__(self):
        text, missing = f"loaded {self.layers} of {self.of} layers", self.of - self.layers
        if self.classes:
            return f"{text} of {self.classes} classes; the {missing} before the heads start fresh"
        return f"{text}, the rest keeps its values" if missing else text


def load_weights(model: Darknet, path: str | Path, other_classes: bool = False) -> LoadedWeights:
    """Reads a .weights file into the model.  A partial file, which ends after a layer, is fine
    (yolov4.conv.137).  other_classes: a whole file of another number of classes is fine too; the
    convolutions before the heads keep their values.

    Raises ValueError, and leaves the model as it was, for anything else.
    """
    path, name = Path(path), model.network.name
    version, seen, header = _read_header(path)
    ends = [header + 4 * end for end in accumulate(layer.parameters for layer in model.plan)]
    size, whole, layers, classes, heads = path.stat().st_size, ends[-1], len(ends), None, {}
    if size in ends and size != whole:
        layers = ends.index(size) + 1
    elif size != whole:
        # layer before a head -> its logits per anchor
        heads = {head.index - 1: 5 + head.classes for head in model.heads}
        per_class = sum(4 * model.plan[i].parameters // logits for i, logits in heads.items())
        more, rest = divmod(size - whole, per_class) if per_class else (0, 1)
        own = model.heads[0].classes if heads else 0
        classes = 0 if rest else own + more
        if classes < 1:
            expected = f"{whole:,} for {name}, or fewer at the end of a layer"
            raise ValueError(f"{path}: has {size:,} bytes, expected {expected}")
        if not other_classes:
            found = f"holds weights of {classes} classes, but {name} has {own} classes"
            raise ValueError(f"{path}: {found}; train.py --weights loads all but the heads")
    tensors = [each for each in _tensors(model) if each[0] < layers]
    sizes = [
        tensor.numel() // heads[layer] * (heads[layer] + more) if layer in heads else tensor.numel()
        for layer, _, tensor in tensors
    ]
    parts = torch.from_numpy(np.fromfile(path, "<f4", offset=header)).split(sizes)
    for (layer, key, _), part in zip(tensors, parts, strict=True):
        # a cut file may have the length of other classes: weights stand where variances should, of
        # which real ones may be below 0 by a denormal
        if not part.isfinite().all() or (heads and key == "1.running_var" and part.min() < -1e-6):
            raise ValueError(f"{path}: layer {layer} has non-finite values or negative variances")
    for (layer, _, tensor), part in zip(tensors, parts, strict=True):
        if layer not in heads:
            tensor.copy_(part.view(tensor.shape))
    model.weights_version, model.seen = version, 0 if classes else seen
    return LoadedWeights(seen, layers - len(heads), len(ends), classes)


def save_weights(
    model: Darknet, path: str | Path, seen: int | None = None, upto: int | None = None
) -> None:
    """Writes the model as .weights; what was at `path` stays until the file is whole.

    seen: images seen in training; None writes what was loaded, or 0.  upto: only so many first
    layers and seen 0, as Darknet's `partial` writes yolov4.conv.137.  The header's version is else
    that of the file loaded, or Darknet's.
    Raises ValueError for non-finite values and for a fused model.
    """
    if upto is not None and not 0 < upto <= len(model.plan):
        raise ValueError(f"{path}: found upto={upto}, expected 1..{len(model.plan)} layers")
    version = getattr(model, "weights_version", VERSION)
    seen = getattr(model, "seen", 0) if seen is None else seen
    if upto:
        version, seen = VERSION, 0
    with replacing(path) as beside, beside.open("wb") as file:
        file.write(_header(version, seen))
        for layer, _, tensor in _tensors(model):
            if upto is None or layer < upto:
                if not tensor.isfinite().all():
                    raise ValueError(f"{path}: layer {layer} has non-finite values; not written")
                file.write(tensor.float().cpu().contiguous().numpy())


def _tensors(model):
    """(layer, name, tensor) in the order of the file"""
    for layer, module in zip(model.plan, model.layers, strict=True):
        state = module.state_dict()
        found = [(layer.index, name, state[name]) for name in ORDER if name in state]
        if sum(tensor.numel() for *_, tensor in found) != layer.parameters:
            raise ValueError("the model is fused, expected one that still has its batch norm")
        yield from found


def _read_header(path):
    """version, seen, length of the header in bytes"""
    with regular(path).open("rb") as file:
        start = file.read(20)
    if len(start) < 20:
        raise ValueError(f"{path}: has {len(start)} bytes, expected a header and weights")
    version = struct.unpack("<3i", start[:12])
    if not (0 <= version[0] < 100 and 0 <= version[1] < 100):
        kinds = (kind for mark, kind in KINDS.items() if start.lstrip().startswith(mark))
        kind = next(kinds, "of an unknown format").format(path)
        raise ValueError(f"{path}: is {kind}, expected a Darknet .weights file")
    kind = "<" + _seen_format(version)
    (seen,) = struct.unpack_from(kind, start, 12)
    if seen < 0:
        raise ValueError(f"{path}: has seen {seen} images, expected 0 or more")
    return version, seen, 12 + struct.calcsize(kind)


def _header(version, seen):
    try:
        return struct.pack("<3i" + _seen_format(version), *version, seen)
    except (struct.error, TypeError, LookupError):
        raise ValueError(f"version {version} and seen {seen}, expected as in Darknet") from None


def _seen_format(version):
    return "q" if version[0] * 10 + version[1] >= 2 else "i"


PREVIOUS = "previous.pt"  # the checkpoint before last.pt, in the same folder
KEYS = {
    "cfg": str, "names": list, "model": dict, "ema": dict | None, "iteration": int, "seen": int
}  # fmt: skip


def save_checkpoint(path, state, keep=None):
    """state: cfg (text), names, model, ema (or None), iteration, seen, and what resuming needs, in
    tensors and plain values.  keep: where the file that was there before goes."""
    with replacing(path, keep) as beside, beside.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's message of a full disk has neither disk nor file
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def load_checkpoint(path):
    """Raises ValueError for anything but a checkpoint of this project."""
    if not is_checkpoint(path):
        raise ValueError(f"{path}: is no .pt checkpoint, expected one by train.py")
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads past a flipped bit
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong, the file is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if wrong := [key for key, kind in KEYS.items() if not isinstance(state.get(key), kind)]:
            raise ValueError(f"no {', '.join(wrong)} of train.py")
        _header(state.setdefault("version", VERSION), state["seen"])
        if min(state["seen"], state["iteration"], *state["version"]) < 0:
            raise ValueError("version, seen or iteration below 0")
        size = Path(path).stat().st_size
        for key, tensor in (*state["model"].items(), *(state["ema"] or {}).items()):
            if tensor.nbytes > size or not tensor.float().isfinite().all():
                name = key.replace("layers.", "layer ")
                raise ValueError(f"{name} has non-finite values, or more than the file")
    except Exception as error:  # whatever a damaged or hostile zip brings
        reason = str(error).partition("\n")[0][:160] or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a checkpoint: {reason}") from None
    return state


def last_checkpoint(folder):
    """That of folder/last.pt.  Raises ValueError as `load_checkpoint`, and then names the previous
    one if that is whole."""
    try:
        return load_checkpoint(folder / "last.pt")
    except ValueError as error:
        try:
            iteration = load_checkpoint(folder / PREVIOUS)["iteration"]
        except (ValueError, OSError):
            raise error from None
        offer = f"{folder / PREVIOUS} is whole, of iteration {iteration}: rename it to last.pt"
        raise ValueError(f"{error}; {offer} to resume from there") from None


def load_network(weights, cfg=None, ema=True):
    """The network of .weights with its cfg, or of a .pt checkpoint (detected from the file's
    contents), and the class names, None where the file has none.

    ema: take the averaged weights of a checkpoint where it has them.  model.seen: images seen in
    training.  Raises ValueError for what does not fit, and for .weights of only the first layers.
    """
    if is_onnx(weights):
        raise ValueError(f"{weights}: runs in detect and val only, expected .weights or .pt")
    state = load_checkpoint(weights) if is_checkpoint(weights) else None
    if not (cfg or state):
        raise ValueError(f"{weights}: a .weights file without its cfg, expected both")
    model = (
        Darknet.from_cfg(cfg) if cfg else Darknet(parse_cfg(state["cfg"], f"{weights}, its cfg"))
    )
    if not model.heads:
        raise ValueError(f"{model.network.name}: has no [yolo], expected one or more")
    if not state:
        loaded = load_weights(model, weights)
        if loaded.layers < loaded.of:
            raise ValueError(f"{weights}: {loaded.layers} of {loaded.of} layers, expected all")
        return model, None
    try:
        model.load_state_dict((ema and state.get("ema")) or state["model"])
    except Exception as error:  # of other shapes, or no tensors
        reason = str(error).splitlines()[-1].strip()[:200]
        raise ValueError(f"{weights}: does not fit {cfg or 'its cfg'}: {reason}") from None
    model.seen, model.weights_version = state["seen"], tuple(state["version"])
    return model, state["names"]


def is_checkpoint(weights):
    """Whether a file is a .pt checkpoint (a zip), by its content."""
    with regular(weights).open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def is_onnx(weights):
    """Whether a file is an exported network, by its suffix: the format has no mark."""
    return Path(weights).suffix.lower() == ".onnx"


def holds_cfg(weights):
    """Whether a file holds cfg and names itself."""
    return is_checkpoint(weights) or is_onnx(weights)


class NetworkFiles(NamedTuple):
    """The files of one network.  A .pt checkpoint and an .onnx hold cfg and names themselves."""

    weights: Path
    cfg: Path | None
    names: Path | None
    run: Path | None = None  # the run folder, where the weights were found in the newest

    def __str__(self):
        own = "the names in it" if holds_cfg(self.weights) else "no .names file"
        return f"weights {self.weights}, cfg {self.cfg or 'in it'}, {self.names or own}"


def network_files(weights=None, cfg=None, names=None, root="runs"):
    """The given files; missing cfg and names from beside the weights, a cfg also from the project's
    own; without weights the newest run's.  Raises ValueError where weights or cfg are missing."""
    run = None
    if weights is None:
        if cfg is not None:
            raise ValueError(f"{cfg}: a cfg without weights, expected --weights too")
        run = newest_run(root)
        # of a folder that was renamed and resumed by older versions, both names
        kinds = (run.glob(f"*_{kind}.weights") for kind in ("best", "last"))
        weights = next(filter(None, map(list, kinds)))
        weights = max(weights, key=os.path.getmtime)
    weights = Path(weights)
    cfg = cfg and own_file(cfg, ".cfg")
    if not holds_cfg(weights):
        own = own_file(_stems(weights)[-1], ".cfg")
        cfg = cfg or _beside(weights, ".cfg") or (own if own.is_file() else None)
        if cfg is None:
            stems = ", ".join(f"{stem}.cfg" for stem in _stems(weights))
            raise ValueError(f"{weights}: found no {stems} beside it, expected one, or --cfg")
        common = [path for name in COMMON_NAMES if (path := weights.with_name(name)).exists()]
        common = common[0] if len(common) == 1 else None
        names = names or _beside(weights, ".names") or _beside(Path(cfg), ".names") or common
    return NetworkFiles(weights, cfg and Path(cfg), names and Path(names), run)


def _stems(path):
    """x_best -> x_best, x; x_4000 -> x_4000, x, as Darknet names its weights"""
    shorter = re.sub(r"_(best|last|final|ema|\d+)$", "", path.stem)
    return list(dict.fromkeys((path.stem, shorter)))


def _beside(path, suffix):
    """The file of the same stem, else the only one that starts with it: x-416.cfg for x.weights"""
    stems = _stems(path)
    exact = [each for stem in stems if (each := path.with_name(stem + suffix)).exists()]
    alike = list(path.parent.glob(f"{glob.escape(stems[-1])}*{suffix}"))
    return exact[0] if exact else alike[0] if len(alike) == 1 else None


def newest_run(root="runs"):
    """The run folder whose weights were written last.  Raises ValueError if there is none."""
    found = [path for kind in ("best", "last") for path in Path(root).glob(f"*/*_{kind}.weights")]
    if not found:
        raise ValueError(f"{root}: found no training run, expected one from train.py, or --weights")
    return max(found, key=os.path.getmtime).parent


def check_bytes(cfg, weights, model):
    """Reads the file into a fresh network, compares every tensor with the model's, writes it again
    and compares bytes.  Returns a sentence; raises ValueError for any difference."""
    again = Darknet.from_cfg(cfg)
    loaded = load_weights(again, weights)
    for (layer, name, found), (*_, wanted) in zip(_tensors(again), _tensors(model), strict=True):
        if layer < loaded.layers and not torch.equal(found, wanted.float().cpu()):
            raise ValueError(f"{weights}: {name} of layer {layer} differs from the source")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.weights"
        save_weights(again, copy, upto=loaded.layers if loaded.layers < loaded.of else None)
        content = copy.read_bytes()
    if content != Path(weights).read_bytes():
        raise ValueError(f"{weights}: has other bytes when it is written again")
    return (
        f"{weights}: {loaded}, every value as in the source, the same {len(content):,} bytes again"
    )


def largest_difference(found, expected):
    """Of two arrays of one shape, values above 1 relative to themselves.  Equal infinities (boxes
    of an untrained network) do not differ; NaN differs without bound."""
    with np.errstate(invalid="ignore"):
        apart = np.where(found == expected, 0, np.abs(found - expected))
        apart = apart / np.maximum(1, np.abs(expected))
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0))
