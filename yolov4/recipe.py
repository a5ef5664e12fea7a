"""A run's settings, and recipes over a cfg (cfg/*.recipe): keys of [net] and [yolo], flags.
Source: each recipe names the run it follows; the yolov5-style heads are those of YOLOv5."""

from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

from yolov4.cfg import Yolo, checked, raw_sections, read_cfg, section_values, strict
from yolov4.files import own_file, read_text
from yolov4.graph import find_heads, plan_layers
from yolov4.networks import PRESETS, build

CFG, DATA, WEIGHTS = (
    "cfg/yolov4-voc.cfg",
    "cfg/voc.data",
    "pretrain/yolov4.conv.137",
)  # without flags


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run; settings.json holds it.  None leaves the cfg's value."""

    cfg: str
    train: str  # list of images
    names: str
    valid: str | None = None
    difficult: str | None = None
    data: str | None = None
    weights: str | None = None
    recipe: str | None = None
    loss: str = "darknet"
    clear: bool = False
    lenient: bool = False  # keys of the cfg that would change the training are passed over
    freeze: int = 0  # first layers that keep their weights and running statistics
    device: str | None = None
    amp: str = "off"
    sync_bn: bool = False
    ema: float = 0.0
    seed: int = 0
    workers: int = 0
    cache: float | None = None  # GB of decoded images in memory
    eval_every: int | None = None
    save_every: int = 100
    tensorboard: bool = False
    deterministic: bool = False
    patience: int = 0  # evaluations without a better mAP before it stops; 0: never
    batch: int | None = None
    subdivisions: int | str | None = None  # or "auto"
    max_batches: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    policy: str | None = None
    width: int | None = None
    height: int | None = None


class Recipe(NamedTuple):
    """Flags of train.py by name, and keys that replace those of a cfg's [net] and every [yolo]."""

    train: dict[str, str]
    net: dict
    yolo: dict


def read_recipe(name):
    """Reads cfg/NAME.recipe, or a file by its path.  Raises ValueError `file:line: ...`."""
    path = own_file(name, ".recipe")
    if not path.is_file():
        raise ValueError(f"--recipe {name}: no such file, and no recipe of that name")
    recipe = Recipe({}, {}, {})
    for kind, line, options in raw_sections(read_text(path), str(path)):
        if kind == "train":
            recipe.train.update((key, value) for key, (value, _) in options.items())
        elif kind in ("net", "yolo"):
            with strict():
                getattr(recipe, kind).update(section_values(kind, options, str(path)))
        else:
            raise ValueError(f"{path}:{line}: [{kind}], expected [train], [net] or [yolo]")
    return recipe


def network_for(cfg, classes, lenient=False):
    """The network of a .cfg file, `strict` unless lenient; by a name of PRESETS, the network for so
    many classes.  Raises ValueError for a network without [yolo]."""
    with strict(lenient):
        network = build(cfg, classes=classes) if cfg in PRESETS else read_cfg(cfg)
    if not any(isinstance(section, Yolo) for section in network.sections):
        raise ValueError(f"{network.name}: has no [yolo], expected one or more")
    return network


def with_recipe(network, recipe):
    """The network with the recipe's keys in [net] and in every [yolo]."""
    sections = (
        replace(section, **recipe.yolo) if isinstance(section, Yolo) else section
        for section in network.sections
    )
    net = replace(network.net, **recipe.net)
    return checked(network._replace(net=net, sections=tuple(sections)))


def with_yolov5_heads(network):
    """The network with heads as the yolov5-style loss has them: new_coords and scale_x_y=2 after a
    logistic convolution, gains as normalizers.  Raises ValueError for a head after others."""
    net, sections = network.net, list(network.sections)
    heads = sorted(find_heads(network, plan_layers(network)), key=lambda head: head.stride)
    # of objectness, from the finest head to the coarsest
    balance = (4.0, 1.0, 0.4) if len(heads) <= 3 else (4.0, 1.0, 0.25, 0.06, 0.02)
    for head, weight in zip(heads, balance, strict=False):
        place = slice(head.index - 1, head.index + 1)
        before, yolo = sections[place]
        if before.kind != "convolutional" or before.activation not in ("linear", "logistic"):
            where = network.where(yolo)
            raise ValueError(f"{where} is not after a linear or logistic convolution")
        share = 3 / len(heads)
        sections[place] = replace(before, activation="logistic"), replace(
            yolo, new_coords=True, scale_x_y=2.0, iou_normalizer=0.05 * share,
            obj_normalizer=weight * net.width * net.height / 640**2 * share,
            cls_normalizer=0.5 * yolo.classes / 80 * share,
        )  # fmt: skip
    return network._replace(sections=tuple(sections))


def configured(network, settings, images, say):
    """The network with its recipe and the given settings; `images` turns epochs into iterations.
    A given number of iterations moves the steps in proportion and limits burn-in to a tenth."""
    if settings.recipe:
        network = with_recipe(network, read_recipe(settings.recipe))
    net = network.net
    given = {
        key: value
        for key, value in vars(settings).items()
        if key in vars(net) and value is not None
    }
    if settings.subdivisions == "auto":
        given["subdivisions"] = 1  # training takes more where the memory of a GPU is full
    if settings.epochs:
        given["max_batches"] = ceil(settings.epochs * images / given.get("batch", net.batch))
    if iterations := given.get("max_batches"):
        length = net.max_batches or iterations
        given["steps"] = tuple(round(step * iterations / length) for step in net.steps)
        given["burn_in"] = min(net.burn_in, ceil(iterations / 10))
    if given:
        say("instead of the cfg's: " + ", ".join(f"{key}={value}" for key, value in given.items()))
    net = replace(net, **given)
    if net.max_batches < 1:
        raise ValueError(f"{network.name}: [net] has no max_batches, expected it or --max-batches")
    if not 0 < net.subdivisions <= net.batch or net.batch % net.subdivisions:
        found = f"batch={net.batch} and subdivisions={net.subdivisions}"
        where = network.where(net, "subdivisions")
        raise ValueError(f"{where} {found}, expected a multiple")
    network = network._replace(net=net)
    return with_yolov5_heads(network) if settings.loss == "yolov5" else network
