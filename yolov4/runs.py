"""What val.py and detect.py share: the newest run, the files beside weights, errors as one line.
No source: the layout of runs/NAME/ is this project's own."""

import contextlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yolov4.cfg import read_data
from yolov4.files import read_text

COMMON_NAMES = ("coco.names", "obj.names")  # how users of Darknet call them


@dataclass(frozen=True)
class NetworkFiles:
    """Which files make a network.  A .pt checkpoint and an .onnx hold cfg and names themselves: then both may
    be None."""

    weights: Path
    cfg: Path | None
    names: Path | None
    run: Path | None = None  # the training run they are of, if that is how they were found

    def __str__(self) -> str:
        names = self.names or ("the names in it" if holds_cfg(self.weights) else "no .names file, so class numbers")
        return f"weights {self.weights}, cfg {self.cfg or 'in it'}, {names}"


@contextlib.contextmanager
def one_line_errors(script: str) -> Iterator[None]:
    """Turns ValueError and OSError into one line on stderr and exit code 1, Ctrl-C into exit code 130."""
    try:
        yield
    except (ValueError, OSError) as error:
        named = isinstance(error, OSError) and error.filename and error.strerror
        message = f"{str(error.filename)[:300]}: {error.strerror}" if named else str(error)
        print(f"{script}: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        sys.exit(130)


def is_checkpoint(weights: str | Path) -> bool:
    """Whether a file is a .pt checkpoint (a zip), by its content."""
    with Path(weights).open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def is_onnx(weights: str | Path) -> bool:
    """Whether a file is an exported network, by its suffix: the format has no mark."""
    return Path(weights).suffix.lower() == ".onnx"


def holds_cfg(weights: str | Path) -> bool:
    """Whether a file holds cfg and names itself."""
    return is_checkpoint(weights) or is_onnx(weights)


def network_files(
    weights: str | None = None,
    cfg: str | None = None,
    names: str | None = None,
    root: str | Path = "runs",
    exported: bool = False,
) -> NetworkFiles:
    """The files that were named; the cfg and names beside the weights where they were not; without weights the newest
    run's.  exported: an .onnx will do too.  Raises ValueError where weights or cfg cannot be found."""
    run = None
    if weights is None:
        if cfg is not None:
            raise ValueError(f"{cfg}: a cfg without weights, expected --weights too")
        run = newest_run(root)
        weights = run_weights(run)
    weights = Path(weights)
    if is_onnx(weights) and not exported:
        raise ValueError(f"{weights}: is an exported network, which detect.py runs, expected .weights or .pt here")
    whole = holds_cfg(weights)
    if cfg is None and not whole:
        cfg = _beside(weights, ".cfg")
        if cfg is None:
            stems = ", ".join(f"{stem}.cfg" for stem in _stems(weights))
            raise ValueError(f"{weights}: found no {stems} beside it, expected one, or --cfg")
    if names is None and not whole:
        names = _beside(weights, ".names") or _beside(Path(cfg), ".names") or _common_names(weights.parent)
    return NetworkFiles(weights, cfg and Path(cfg), names and Path(names), run)


def newest_run(root: str | Path = "runs") -> Path:
    """The run folder whose weights were written last.  Raises ValueError if there is none."""
    found = [path for kind in ("best", "last") for path in Path(root).glob(f"*/*_{kind}.weights")]
    found = [path for path in found if (path.parent / "settings.json").exists()]
    if not found:
        raise ValueError(
            f"{root}: found no training run (NAME/settings.json with NAME/NAME_best.weights), "
            "expected one from `python train.py`, or --weights"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


def run_weights(run: Path) -> Path:
    """A run's best weights, or its last where there are no best."""
    return next(path for kind in ("best", "last") for path in sorted(run.glob(f"*_{kind}.weights")))


def run_settings(run: Path) -> dict:
    """A run's settings.json."""
    path = run / "settings.json"
    try:
        settings = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: {error.msg}, expected JSON") from None
    except RecursionError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: found no settings, expected those that train.py wrote")
    return settings


def validation_list(run: Path) -> Path:
    """The list of a run's validation images.  Raises ValueError if the run has none, or if it is gone."""
    settings = run_settings(run)
    path = settings.get("valid") or (read_data(settings["data"]).get("valid") if settings.get("data") else None)
    if not path:
        raise ValueError(f"{run / 'settings.json'}: names no validation list, expected `valid`, or --images")
    if not Path(path).exists():
        raise ValueError(f"{path}: is gone, expected the validation list of {run}, or --images")
    return Path(path)


def _stems(path: Path) -> list[str]:
    """x_best -> x_best, x; x_4000 -> x_4000, x, as Darknet names its weights"""
    shorter = re.sub(r"_(best|last|final|ema|\d+)$", "", path.stem)
    return list(dict.fromkeys((path.stem, shorter)))


def _beside(path: Path, suffix: str) -> Path | None:
    """The file of the same stem; or the only one whose stem goes on, as x-416.cfg for x.weights"""
    exact = [path.with_name(stem + suffix) for stem in _stems(path)]
    if found := [each for each in exact if each.exists()]:
        return found[0]
    alike = sorted(each for each in path.parent.glob(f"*{suffix}") if each.stem.startswith(_stems(path)[-1]))
    return alike[0] if len(alike) == 1 else None


def _common_names(folder: Path) -> Path | None:
    found = sorted(folder.glob("*.names"))
    return found[0] if len(found) == 1 and found[0].name in COMMON_NAMES else None


def new_run_folder(root: str | Path, name: str) -> Path:
    """ROOT/NAME, or ROOT/NAME-2 and so on where that is taken; it is not made yet."""
    numbered = (Path(root) / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists())


def run_folder(root: str | Path, run: str | None) -> Path:
    """The folder of a run to go on with: by its path or name, without either the newest that has a checkpoint."""
    if run:
        found = [path for path in (Path(run), Path(root) / run) if (path / "last.pt").exists()]
    else:
        found = sorted((p.parent for p in Path(root).glob("*/last.pt")), key=lambda p: -(p / "last.pt").stat().st_mtime)
    if not found:
        raise ValueError(f"{run or root}: holds no last.pt, expected the folder of a run to go on with")
    return found[0]
