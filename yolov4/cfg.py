"""Text of a .cfg <-> typed sections; .data and .names files.
Source: Darknet's src/parser.c and src/option_list.c."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from yolov4 import sections as known
from yolov4.files import read_text
from yolov4.sections import Anchors, Net, Network, Section, kind_name

KINDS = {kind_name(c): c for c in (
    Net, known.Convolutional, known.Maxpool, known.Route, known.Shortcut, known.Upsample, known.Dropout, known.Yolo,
    known.GaussianYolo, known.Avgpool, known.ScaleChannels, known.Sam, known.Reorg, known.Reorg3d, known.Implicit,
)}  # fmt: skip

# Keys that are written even where they hold the default: other readers have other defaults.
ALWAYS_WRITTEN = {
    "batch", "subdivisions", "width", "height", "channels", "momentum", "decay", "learning_rate", "max_batches",
    "policy", "filters", "size", "stride", "pad", "activation", "classes", "num", "ignore_thresh", "truth_thresh",
    "random",
}  # fmt: skip

# Keys of upstream files that change nothing here, with the reason.
YOLO = {
    "max": "every truth of an image counts", "show_details": "what Darknet prints",
    "bias_match": "only [region]", "rescore": "only [region]", "softmax": "only [region]",
    "absolute": "only [region]", "thresh": "only [region]", "coords": "always 4",
    "beta1": "Darknet does not read it, only beta_nms",
}  # fmt: skip
WITHOUT_EFFECT = {
    "net": {
        "angle": "only classifiers rotate", "aspect": "only classifiers", "max_crop": "only classifiers",
        "min_crop": "only classifiers", "label_smooth_eps": "detectors take the key of [yolo]",
        "inputs": "follows from width, height, channels", "seq_scales": "only for recurrent networks",
        "time_steps": "only for recurrent networks", "max_chart_loss": "the chart scales itself",
        "optimized_memory": "memory of Darknet's GPU build", "use_cuda_graph": "Darknet's GPU build",
        "workspace_size_limit_mb": "memory of Darknet's GPU build", "loss_scale": "see --amp",
        "attention": "windows that Darknet opens", "max_epochs": "Darknet does not read it, only max_batches",
    },
    "convolutional": {"flipped": "only old classifiers"},
    "yolo": YOLO | {"uc_normalizer": "only [Gaussian_yolo]"},
    "gaussian_yolo": YOLO,
}  # fmt: skip

# Keys that are an error unless 0, with the reason.
REFUSED = {
    "net": {
        "cutmix": "Darknet has it for classifiers alone: use mosaic=1",
    },
    "gaussian_yolo": dict.fromkeys(("new_coords", "focal_loss"), "only [yolo] has it"),
}
Options = dict[str, tuple[str, int]]  # key -> text of its value, line
MAX_NUMBER = 1e12  # no value of any key is larger, so that sums and products of them stay numbers
# What a number may be, for keys whose other values would only fail later, or not at all.
LIMITS = {
    "batch": (1, 65536), "subdivisions": (1, 65536), "width": (0, 32768), "height": (0, 32768), "channels": (0, 1024),
    "momentum": (0, 1), "decay": (0, 1), "saturation": (0, 100), "exposure": (0, 100), "hue": (0, 1), "blur": (0, 1001),
    "gaussian_noise": (0, 127), "max_batches": (0, 1e9), "step": (1, 1e9), "resize_step": (1, 4096),
    "sgdr_mult": (1, 100), "ema_alpha": (0, 1), "stride": (1, 4096), "groups": (1, 1 << 20), "dilation": (1, 256),
    "probability": (0, 1), "classes": (1, 1 << 20), "num": (1, 1 << 16), "jitter": (0, 10), "resize": (0.01, 100),
    "random": (0, 10), "max_delta": (0, MAX_NUMBER), "scale_x_y": (0.01, 100), "burn_in_momentum": (0, 1),
    "mixup_share": (0, 1), "final_fraction": (0, 1),
}  # fmt: skip


def parse_cfg(text: str, name: str = "cfg") -> Network:
    """Text of a .cfg -> typed sections.  `name` stands in messages.
    Raises ValueError `name:line: ...` for what is not supported, mistyped or not a value of its key."""
    found = raw_sections(text, name)
    if not found or found[0][0] not in ("net", "network"):
        raise ValueError(
            f"{name}: starts with [{found[0][0][:40] if found else ''}], expected [net]: not a Darknet .cfg"
        )
    net, *sections = (_section(*each, name) for each in [("net", *found[0][1:]), *found[1:]])
    if net.policy == "steps" and len(net.steps) != len(net.scales):
        line = net.lines.get("steps", net.lines[""])
        raise ValueError(f"{name}:{line}: {len(net.steps)} steps and {len(net.scales)} scales, expected as many")
    return Network(net, tuple(sections), name)


def raw_sections(text: str, name: str) -> list[tuple[str, int, Options]]:
    """Text in the form of a .cfg -> (kind, line of the header, key -> (value, line)) of each section."""
    found: list[tuple[str, int, Options]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#")[0].split(";")[0].strip()
        if line.startswith("["):
            found.append((line.strip("[]").strip().lower(), number, {}))
        elif "=" in line and found:
            key, value = (part.strip() for part in line.split("=", 1))
            found[-1][2].setdefault(key.lower(), (value, number))  # the first of two counts, as in Darknet
        elif line:
            raise ValueError(f"{name}:{number}: found {line[:40]!r}, expected [section] or key=value")
    return found


def read_cfg(path: str | Path) -> Network:
    """Reads a .cfg file; see `parse_cfg`."""
    return parse_cfg(read_text(path), str(path))


def format_cfg(net: Net, sections: tuple[Section, ...]) -> str:
    """Typed sections -> text of a .cfg that `parse_cfg` reads back to equal sections."""
    return "\n\n".join(_format_section(section) for section in (net, *sections)) + "\n"


def read_data(path: str | Path) -> dict[str, str]:
    """Reads a .data file.  Paths in train, valid, difficult, names, backup are resolved against the file's folder
    where they exist there, as users move such folders; else they stay relative to the current one, as in Darknet."""
    path, options = Path(path), {}
    for number, raw in enumerate(read_text(path).splitlines(), 1):
        line = raw.split("#")[0].strip()
        if line and "=" not in line:
            raise ValueError(f"{path}:{number}: found {line[:40]!r}, expected key = value")
        if line:
            key, value = (part.strip() for part in line.split("=", 1))
            options[key] = value
    for key in {"train", "valid", "difficult", "names", "backup"} & options.keys():
        value = options[key].replace("\\", "/")
        options[key] = str(path.parent / value) if (path.parent / value).exists() else value
    return options


def read_names(path: str | Path) -> list[str]:
    """Class names, one a line."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def names_of_classes(names: str | Path | Iterable[str] | None, classes: int, where: str | Path = "names") -> list[str]:
    """Those of a file, or those given, or the numbers of the classes where none are.  Raises ValueError, which names
    the file or else `where`, if they are not as many as the classes."""
    in_file = isinstance(names, str | Path)
    found = read_names(names) if in_file else list(names or map(str, range(classes)))
    if len(found) != classes:
        where = names if in_file else where
        raise ValueError(f"{where}: {len(found)} names, but the network has {classes} classes, expected as many")
    return found


def _section(kind: str, line: int, options: Options, name: str) -> Section:
    values = section_values(kind, line, options, name)
    missing = [f.name.rstrip("_") for f in fields(KINDS[kind]) if f.name in ("layers", "from_", "anchors")]
    for key in missing:
        if key not in options:
            raise ValueError(f"{name}:{line}: [{kind}] has no {key}, expected one")
    return KINDS[kind](**values)


def section_values(kind: str, line: int, options: Options, name: str) -> dict:
    """The fields of a section that its options give, by name, and `lines`; see `raw_sections`."""
    if kind not in KINDS:
        raise ValueError(f"{name}:{line}: [{kind[:40]}] is not supported, expected one of {', '.join(KINDS)}")
    hints = _hints(kind)
    values, lines = {}, {"": line}
    if kind == "convolutional" and "cbn" in options:  # another way to write batch_normalize=2
        cbn, number = options.pop("cbn")
        options |= {} if cbn == "0" else {"batch_normalize": ("2", number)}
    for key, (value, number) in options.items():
        lines[key] = number
        if value != "0" and key in REFUSED.get(kind, ()):
            raise ValueError(f"{name}:{number}: [{kind}] {key}={value[:60]}, expected 0: {REFUSED[kind][key]}")
        if key in hints:
            try:
                values["from_" if key == "from" else key] = _checked(key, _value(value, hints[key]))
            except ValueError as error:
                raise ValueError(f"{name}:{number}: [{kind}] {key}={value[:60]}, expected {error}") from None
        elif key not in WITHOUT_EFFECT.get(kind, ()) and key not in REFUSED.get(kind, ()):
            close = difflib.get_close_matches(key, [*hints, *WITHOUT_EFFECT.get(kind, ())], 1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name}:{number}: [{kind}] key {key[:40]} is not supported{hint}")
    return values | {"lines": lines}


@cache
def _hints(kind: str) -> dict[str, type]:
    return {key.rstrip("_"): hint for key, hint in get_type_hints(KINDS[kind]).items() if key != "lines"}


def _value(text: str, hint: type):
    """Text of a value -> the type of its field; a ValueError says what was expected."""
    if get_origin(hint) is Literal:
        allowed = {str(value): value for value in get_args(hint)}
        if text not in allowed:
            raise ValueError("one of " + ", ".join(allowed))
        return allowed[text]
    if hint == Anchors:
        numbers = _value(text, tuple[float, ...])
        if len(numbers) % 2:
            raise ValueError(f"pairs of width, height, not {len(numbers)} numbers")
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))
    if get_origin(hint) is tuple:
        return tuple(_value(part.strip(), get_args(hint)[0]) for part in text.strip(", ").split(","))
    if hint is bool:
        if text not in ("0", "1"):
            raise ValueError("0 or 1")
        return text == "1"
    try:
        value = hint(text)
    except ValueError:
        value = math.nan
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise ValueError("a whole number" if hint is int else "a number") from None
    return value


def _checked(key: str, value):
    """The value, or a ValueError that says its range."""
    low, high = LIMITS.get(key, (-MAX_NUMBER, MAX_NUMBER))
    if key in LIMITS and not low <= value <= high:
        raise ValueError(f"{low:g}..{high:g}")
    if key == "anchors" and any(min(anchor) <= 0 for anchor in value):
        raise ValueError("widths and heights above 0")
    return value


def _format_section(section: Section) -> str:
    def text(value) -> str:
        if isinstance(value, tuple):
            return (", " if value and isinstance(value[0], tuple) else ",").join(map(text, value))
        return f"{value:.9g}" if isinstance(value, float) else str(int(value) if isinstance(value, bool) else value)

    keys = (f for f in fields(section) if f.name != "lines")
    written = (f for f in keys if f.name in ALWAYS_WRITTEN or getattr(section, f.name) != f.default)
    lines = (f"{f.name.rstrip('_')}={text(getattr(section, f.name))}" for f in written)
    return "\n".join([f"[{section.kind}]", *lines])
