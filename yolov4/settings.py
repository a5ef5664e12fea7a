"""What a run adds to its cfg, and the cfg with that applied.
No source: flags of train.py; the cfg rules where none is given."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

from yolov4.recipe import read_recipe, with_recipe, with_yolov5_heads
from yolov4.sections import Network


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
    freeze: int = 0  # first layers that keep their weights and rolling averages
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
    subdivisions: int | None = None
    max_batches: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    policy: str | None = None
    width: int | None = None
    height: int | None = None


def configured(network: Network, settings: Settings, images: int, say: Callable[[str], None]) -> Network:
    """The network with its recipe and the settings that were given; `images` turns epochs into iterations.

    Where the number of iterations is given, the steps keep their place in it and burn-in keeps to its first tenth.
    """
    if settings.recipe:
        network = with_recipe(network, read_recipe(settings.recipe))
    net = network.net
    keys = ("batch", "subdivisions", "learning_rate", "policy", "width", "height")
    given = {key: getattr(settings, key) for key in keys if getattr(settings, key) is not None}
    batch = given.get("batch", net.batch)
    iterations = ceil(settings.epochs * images / batch) if settings.epochs else settings.max_batches or net.max_batches
    if iterations < 1:
        raise ValueError(f"{network.name}: [net] has no max_batches, expected it there, or --max-batches, or --epochs")
    if settings.epochs or settings.max_batches:
        given["max_batches"] = iterations
        if net.max_batches:
            given["steps"] = tuple(round(step * iterations / net.max_batches) for step in net.steps)
        given["burn_in"] = min(net.burn_in, ceil(iterations / 10))
    if given:
        say("instead of the cfg's: " + ", ".join(f"{key}={value}" for key, value in given.items()))
    net = replace(net, **given)
    if net.batch < 1 or net.subdivisions < 1 or net.batch % net.subdivisions:
        raise ValueError(
            f"{network.name}: batch={net.batch} and subdivisions={net.subdivisions}, expected it to be a multiple"
        )
    network = network._replace(net=net)
    return with_yolov5_heads(network) if settings.loss == "yolov5" else network
