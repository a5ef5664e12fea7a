"""Darknet's .cfg, .data and .names files <-> typed sections with Darknet's keys and defaults.
Source: the parse_* functions of Darknet's src/parser.c, and src/option_list.c."""

import difflib
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin

from yolov4.files import CONFIGS, locate, own_file, read_lines, read_text

Activation = Literal[
    "logistic", "linear", "leaky", "mish", "swish", "relu", "relu6", "elu", "selu", "gelu", "tanh",
    "hard_mish",
]  # fmt: skip
IouKind = Literal["iou", "giou", "diou", "ciou"]
Anchors = tuple[tuple[float, float], ...]
frozen = dataclass(frozen=True, kw_only=True)


class Ignored(UserWarning, ValueError):
    """A key that is passed over, but would change a training, or is nearly one that would: an error
    where a network is to be trained."""


@frozen
class Section:
    """One [section]; `lines` maps a key (or "" for the header) to its line in the file."""

    lines: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    def __init_subclass__(cls):
        cls.kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()  # scale_channels


@frozen
class Net(Section):
    batch: int = 1  # images of one update
    subdivisions: int = 1  # mini-batches the batch is cut into
    width: int = 0
    height: int = 0
    channels: int = 3
    momentum: float = 0.9
    decay: float = 0.0001
    saturation: float = 1.0
    exposure: float = 1.0
    hue: float = 0.0
    flip: bool = True
    blur: int = 0
    gaussian_noise: int = 0
    mixup: int = 0
    mosaic: bool = False
    mosaic_bound: bool = False
    letter_box: bool = False
    learning_rate: float = 0.001
    learning_rate_min: float = 0.00001
    burn_in: int = 0
    power: float = 4.0
    max_batches: int = 0
    policy: Literal[
        "constant", "step", "steps", "exp", "poly", "sig", "sigmoid", "sgdr", "onecycle"
    ] = "constant"
    steps: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    step: int = 1
    scale: float = 1.0
    gamma: float = 1.0
    sgdr_cycle: int = 0  # 0: max_batches
    sgdr_mult: int = 2
    # not Darknet's, which passes over these keys and over policy=onecycle
    final_fraction: float = 0.01  # of learning_rate, at the end of policy=onecycle
    nesterov: bool = False
    burn_in_momentum: float = 0.0  # momentum at the start of burn-in; 0: momentum
    burn_in_bias_rate: float = 0.0  # learning rate of biases at the start of burn-in; 0: the same
    mixup_share: float = 0.0  # of samples, mosaics included, that are blended with another one
    # Darknet's again
    resize_step: int = 32
    ema_alpha: float = 0.0
    adversarial_lr: float = 0.0  # self-adversarial training: how far images move, at the end


@frozen
class Convolutional(Section):
    batch_normalize: Literal[0, 1, 2] = 0  # 2 (also cbn=1): cross mini-batch normalisation
    filters: int = 1
    size: int = 1
    groups: int = 1
    dilation: int = 1
    stride: int = 1
    pad: bool = False  # padding = size // 2
    padding: int = 0
    activation: Activation = "logistic"
    stopbackward: int = 0  # no gradient for this layer and all before it in the first iterations


@frozen
class Maxpool(Section):
    size: int = 0  # 0: stride
    stride: int = 1
    padding: int = -1  # of both sides together; -1: size - 1


@frozen
class Route(Section):
    layers: tuple[int, ...]
    groups: int = 1
    group_id: int = 0


@frozen
class Shortcut(Section):
    from_: tuple[int, ...]  # the key is `from`
    activation: Activation = "linear"
    weights_type: Literal["none", "per_feature", "per_layer", "per_channel"] = "none"
    weights_normalization: Literal["none", "relu", "avg_relu", "softmax"] = "none"


@frozen
class Upsample(Section):
    stride: int = 2


@frozen
class Dropout(Section):
    probability: float = 0.2
    dropblock: bool = False  # one block per channel; size and probability grow during training
    dropblock_size_rel: float = 0.0  # of the layer's width and height
    dropblock_size_abs: int = 0  # cells; 7 where neither is given


@frozen
class Yolo(Section):
    mask: tuple[int, ...] = ()  # empty: all anchors
    anchors: Anchors
    classes: int = 20
    num: int = 1
    jitter: float = 0.2
    resize: float = 1.0
    random: float = 0.0
    ignore_thresh: float = 0.5
    truth_thresh: float = 1.0
    iou_thresh: float = 1.0
    iou_thresh_kind: IouKind = "iou"
    iou_loss: Literal["mse", IouKind] = "mse"
    iou_normalizer: float = 0.75
    obj_normalizer: float = 1.0
    cls_normalizer: float = 1.0
    max_delta: float = float("inf")
    label_smooth_eps: float = 0.0
    objectness_smooth: bool = False
    focal_loss: bool = False
    counters_per_class: tuple[float, ...] = ()
    scale_x_y: float = 1.0
    new_coords: bool = False
    nms_kind: Literal["default", "greedynms", "diounms"] = "default"
    beta_nms: float = 0.6


@frozen
class Avgpool(Section):
    pass


@frozen
class ScaleChannels(Section):
    from_: int  # the layer that the previous one scales
    scale_wh: bool = False  # one factor per cell; else one per channel
    activation: Activation = "linear"


@frozen
class Sam(Section):
    from_: int
    activation: Activation = "linear"


@frozen
class Reorg(Section):
    stride: int = 1


@frozen
class Reorg3d(Section):
    stride: int = 1


KINDS = {section.kind: section for section in Section.__subclasses__()}


@frozen
class Head(Yolo):
    """A [yolo] in its place: `anchors` (A, 2) are those of its mask, in pixels of the network."""

    all_anchors: Anchors  # (N, 2)
    index: int  # of the layer, counted from 0 after [net]
    stride: int  # pixels of the network input per cell
    size: tuple[int, int] = ()  # (width, height) of the network input,
    cells: tuple[int, int] = ()  # where it has so many (columns, rows)

    def input_size(self, rows: int, columns: int) -> tuple[int, int]:
        """(width, height) of the network input with this grid: the cfg's, which the stride may not
        divide; any other is a multiple of the stride."""
        own = self.cells == (columns, rows)
        return self.size if own else (columns * self.stride, rows * self.stride)


class Network(NamedTuple):
    """What a .cfg says: [net], then the layers in order, and the file's name for messages."""

    net: Net
    sections: tuple[Section, ...]
    name: str = "cfg"

    def where(self, section, key=""):
        """`x.cfg:14: [yolo]`: the line of a section's key, or of its header, for messages."""
        line = section.lines.get(key, section.lines.get("", 0))
        return f"{self.name}:{line}: [{section.kind}]"


# Keys that are written even where they hold the default: other readers have other defaults.
ALWAYS_WRITTEN = (
    "batch subdivisions width height channels momentum decay learning_rate max_batches policy "
    "filters size stride pad activation classes num ignore_thresh truth_thresh random"
)
WITHOUT_EFFECT = {  # keys of upstream files that change nothing here
    "net": (
        "angle aspect max_crop min_crop label_smooth_eps "  # only classifiers
        "seq_scales time_steps "  # only recurrent networks
        "optimized_memory workspace_size_limit_mb use_cuda_graph loss_scale "  # Darknet's GPU build
        "attention max_chart_loss "  # Darknet's windows and chart
        "inputs max_epochs "  # follows from width, height; not read
        "b1 b2 eps augment_speed sequential_subdivisions "  # with adam, track only
    ),
    "convolutional": "flipped",  # only old classifiers
    "yolo": (
        "bias_match rescore softmax absolute thresh coords "  # only [region]
        "uc_normalizer max show_details beta1"  # [Gaussian_yolo]; no limit here; printing; not read
    ),
}
NOT_SUPPORTED = (  # keys that Darknet reads, an error unless 0
    "xnor binary bin_output share_index sway rotate stretch stretch_sway assisted_excitation "
    "antialiasing stride_x stride_y maxpool_depth out_channels maxpool_zero_nonmax reverse dot "
    "angle coordconv dontload dontloadscales map yolo_point embedding_layer"
)
NOT_TRAINED = (  # keys that Darknet reads in training only
    "adam cutmix train_only_bn track contrastive unsupervised equidistant_point grad_centr clip "
    "badlabels_rejection_percentage weights_reject_freq onlyforward dont_update burnin_update"
)
HINTS = {
    "cutmix": ": Darknet has it for classifiers alone, use mosaic=1",
    "train_only_bn": ": use --freeze",
}
SHORT = {"network": "net", "conv": "convolutional", "max": "maxpool", "avg": "avgpool"}
PRIVATE = "# yolov4: "  # before a key that no Darknet knows, or that its policy does not use
NOT_DARKNETS = "final_fraction nesterov burn_in_momentum burn_in_bias_rate mixup_share"
OF_POLICY = {  # keys that only these policies use
    "steps": "steps",
    "scales": "steps",
    "step": "step sigmoid sig",
    "scale": "step",
    "gamma": "exp sigmoid sig",
    "sgdr_cycle": "sgdr",
    "sgdr_mult": "sgdr",
}
KNOWN_NAMES = {80: "coco.names", 20: "voc.names"}
DATA_KEYS = "classes", "train", "valid", "names", "backup", "difficult", "test", "results", "eval"
DATA_ALIASES = {"training": "train", "val": "valid", "validation": "valid"}  # of CVAT's subsets
# Numbers that would only fail later, or not at all, are refused when read; those of other keys
# beyond 1e12.
RANGES = {
    key: limits
    for keys, limits in {
        "momentum burn_in_momentum decay hue ema_alpha probability": (0, 1),
        "mixup_share final_fraction": (0, 1),
        "saturation exposure jitter random blur gaussian_noise": (0, 100),
        "ignore_thresh truth_thresh": (0, 100),
        "resize scale_x_y": (0.01, 100),
        "width height channels size": (0, 32768),
        "dilation sgdr_mult": (1, 256),
        "batch subdivisions stride groups classes num": (1, 65536),
        "resize_step": (1, 1024),
        "filters step": (1, 1e9),
        "sgdr_cycle max_batches burn_in": (0, 1e9),
        "anchors": (1e-3, 1e6),
    }.items()
    for key in keys.split()
}


@contextmanager
def strict(lenient=False):
    """Keys that would change a training are errors in it, unless lenient."""
    with warnings.catch_warnings():
        if not lenient:
            warnings.simplefilter("error", Ignored)
        yield


def parse_cfg(text: str, name: str = "cfg") -> Network:
    """Text of a .cfg -> typed sections.  `name` stands in messages.
    Raises ValueError `name:line: ...` for what is not supported, mistyped or not a value."""
    sections = []
    for kind, line, options in raw_sections(text, name):
        kind = SHORT.get(kind, kind)
        if kind not in KINDS:
            expected = ", ".join(KINDS)
            raise ValueError(f"{name}:{line}: [{kind[:40]}] is not supported, expected {expected}")
        values = section_values(kind, options, name)
        for key in {"layers", "from", "anchors"} & _keys(kind).keys() - options.keys():
            raise ValueError(f"{name}:{line}: [{kind}] has no {key}")
        lines = {"": line} | {key: number for key, (_, number) in options.items()}
        count, anchors = values.get("num", 1), values.get("anchors", ())
        if kind == "yolo" and len(anchors) != count:  # as in Darknet
            warnings.warn(f"{name}:{line}: [yolo] has {len(anchors)} anchors, but num={count}")
            values["anchors"] = (*anchors, *[(0.5, 0.5)] * count)[:count]
        sections.append(KINDS[kind](**values, lines=lines))
    if not sections or not isinstance(net := sections.pop(0), Net):
        raise ValueError(f"{name}: does not start with [net], expected a Darknet .cfg")
    return checked(Network(net, tuple(sections), name))


def checked(network):
    """The network.  Raises ValueError for keys that do not fit each other."""
    net = network.net
    for section in network.sections:
        counters = getattr(section, "counters_per_class", ())
        if counters and len(counters) != section.classes:
            raise ValueError(
                f"{network.where(section, 'counters_per_class')} counters_per_class has "
                f"{len(counters)} numbers, but classes={section.classes}"
            )
    if net.channels not in (1, 3):
        where = network.where(net, "channels")
        raise ValueError(f"{where} channels={net.channels}, expected 3 or, for grey images, 1")
    if net.policy == "steps" and len(net.steps) != len(net.scales):
        raise ValueError(
            f"{network.where(net, 'steps')} steps and scales differ in length: "
            f"{len(net.steps)} and {len(net.scales)}"
        )
    return network


def read_cfg(path: str | Path) -> Network:
    """Reads a .cfg file, or the project's own of that name; see `parse_cfg`."""
    path = own_file(path, ".cfg")
    return parse_cfg(read_text(path), str(path))


def raw_sections(text, name):
    """Text of a .cfg -> (kind, line of the header, options) of each section.
    options: key -> (text of its value, line)."""
    found = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.split("[#;]", raw.removeprefix(PRIVATE))[0].strip()
        if line.startswith("["):
            found.append((line.strip("[]").strip().lower(), number, {}))
        elif "=" in line and found:
            key, value = re.split(r"\s*=\s*", line, maxsplit=1)
            found[-1][2].setdefault(key.lower(), (value, number))  # Darknet takes the first of two
        elif line and not found:
            raise ValueError(f"{name}:{number}: found {line[:40]!r}, expected [section]")
        elif line:
            warnings.warn(f"{name}:{number}: {line[:40]!r} is passed over, expected key=value")
    return found


def section_values(kind, options, name):
    """Options of a section of KINDS, see `raw_sections` -> values of its fields."""
    if kind == "convolutional" and options.pop("cbn", "0")[0] != "0":
        options["batch_normalize"] = "2", 0
    known, ignored, values = _keys(kind), WITHOUT_EFFECT.get(kind, "").split(), {}
    for key, (text, number) in options.items():
        where = f"{name}:{number}: [{kind}] {key[:40]}={text[:60]}"
        if key in known:
            try:
                values[known[key].name] = _value(key, text, known[key].type, where)
            except ValueError as error:
                raise ValueError(f"{where}, expected {error}") from None
        elif key in ignored or text in ("0", "0.0", ""):
            continue
        elif key in NOT_SUPPORTED.split():
            raise ValueError(f"{where} is not supported")
        elif key in NOT_TRAINED.split():
            hint = HINTS.get(key, "")
            warnings.warn(f"{where} is passed over: not supported in training{hint}", Ignored)
        elif close := difflib.get_close_matches(key, known, 1):
            warnings.warn(f"{where} is passed over: did you mean {close[0]}?", Ignored)
        else:
            warnings.warn(f"{where} is passed over: nothing reads it")
    return values


def _keys(kind):
    """Key in a .cfg -> field of the section."""
    return {f.name.rstrip("_"): f for f in fields(KINDS[kind]) if f.name != "lines"}


def _value(key, text, hint, where=""):
    """Text of a value -> the type of its field; a number ends where its digits end, as in Darknet.
    Raises ValueError with what was expected."""
    if hint is bool or get_origin(hint) is Literal:
        choices = {str(choice): choice for choice in get_args(hint)} or {"0": False, "1": True}
        if text not in choices and key == "nms_kind":
            warnings.warn(f"{where} is read as default, expected one of {', '.join(choices)}")
            text = "default"
        if text not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return choices[text]
    if hint == Anchors:
        return parse_anchors(text)
    if get_origin(hint) is tuple:
        parts = text.strip(", ").split(",")
        return tuple(_value(key, part, get_args(hint)[0], where) for part in parts)
    low, high = RANGES.get(key, (-1e12, 1e12))
    try:
        value = hint(text)
    except ValueError:
        number = re.match(r"\s*[-+]?\d+" if hint is int else r"\s*[-+]?\d*\.?\d+", text)
        value = hint(number[0]) if number else float("nan")
        if number:
            warnings.warn(f"{where} is read as {value:g}")
    if not low <= value <= high:
        kind = "whole number" if hint is int else "number"
        raise ValueError(f"a {kind} in {low:g}..{high:g}")
    return value


def parse_anchors(text):
    """`12,16, 19,36` -> ((12, 16), (19, 36)), width and height in pixels of the network input.
    Raises ValueError with what was expected."""
    numbers = _value("anchors", text, tuple[float, ...], f"anchors {text[:40]}")
    if len(numbers) % 2:
        raise ValueError(f"pairs of width, height as anchors, found {text[:40]}")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def format_cfg(net: Net, sections: tuple[Section, ...]) -> str:
    """Typed sections -> text of a .cfg that `parse_cfg` reads back to equal sections."""

    def text(value):
        if isinstance(value, tuple):
            return (", " if value and isinstance(value[0], tuple) else ",").join(map(text, value))
        if not isinstance(value, float | bool):
            return str(value)
        short = f"{value:.9g}"
        # exact, and without exponents, which the maintained Darknet refuses
        return f"{Decimal(short if float(short) == value else repr(value)):f}"

    lines = []
    for section in (net, *sections):
        lines.append(f"[{section.kind}]")
        written = {}
        for key, f in _keys(section.kind).items():
            value = getattr(section, f.name)
            if key in ALWAYS_WRITTEN.split() or value != f.default:
                written[key] = f"{key}={text(value)}"
        if section is net:
            private = [
                key
                for key in written
                if key in NOT_DARKNETS.split()
                or net.policy not in OF_POLICY.get(key, net.policy).split()
            ]
            if net.policy in ("onecycle", "sig"):
                known = {"sig": "sigmoid"}.get(net.policy, "constant")
                lines += [PRIVATE + written["policy"]]
                written["policy"] = f"policy={known}"
            lines += [PRIVATE + written.pop(key) for key in private]
        lines += [*written.values(), ""]
    return "\n".join(lines)


def check_size(net, name):
    """Warns of a size that the maintained Darknet refuses."""
    if net.width % 32 or net.height % 32:
        size = f"{net.width}x{net.height}"
        warnings.warn(f"{name}: {size} is no multiple of 32: hank-ai's Darknet refuses it")


def read_data(path):
    """Reads a .data file as Darknet does: of two equal keys the first, comments only in lines of
    their own, lines without `=` passed over with a warning.  Paths are resolved by `locate`.
    Raises ValueError for a mistyped key."""
    options = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        key, sign, value = map(str.strip, line.partition("="))
        key = DATA_ALIASES.get(key.lower(), key.lower())
        if not key or key[0] in "#;":
            continue
        where = f"{path}:{number}: {key[:40]}"
        if not value:
            what = "is empty" if sign else "passed over, expected key = value"
            warnings.warn(f"{where} {what}")
        elif key not in DATA_KEYS and (close := difflib.get_close_matches(key, DATA_KEYS, 1, 0.75)):
            raise ValueError(f"{where} is not known: did you mean {close[0]}?")
        else:
            options.setdefault(key, value)
    paths = {key: str(locate(value, path)) for key, value in options.items() if key != "classes"}
    return options | paths


def read_names(path):
    """Class names, one per line, of a file or of the project's own .names of that name."""
    return read_lines(own_file(path, ".names"))


def names_of_classes(names, classes, where="names"):
    """Class names of a file, or those given; where there are none, with a warning, COCO's of 80
    classes, VOC's of 20, else their numbers.
    Raises ValueError with the file, or else `where`, unless there is one per class."""
    if not names and classes in KNOWN_NAMES:
        names = CONFIGS / KNOWN_NAMES[classes]
        warnings.warn(f"no class names given: taking those of {names}")
    if isinstance(names, str | Path):
        where, names = names, read_names(names)
    else:
        names = list(names or map(str, range(classes)))
    if len(names) != classes:
        raise ValueError(f"{where}: {len(names)} names, but the network has {classes} classes")
    if wrong := [
        name for name in names if not isinstance(name, str) or len(name.splitlines()) != 1
    ]:
        raise ValueError(f"{where}: name {wrong[0]!r}, expected one line of text")
    return names
