"""What a training starts from: data that were looked through, weights, or the checkpoint of a run that goes on.
Source: Darknet's src/detector.c, train_detector (seen / batch is the iteration)."""

from collections.abc import Callable
from pathlib import Path

from yolov4.cfg import read_names
from yolov4.data import inspect, read_image_list
from yolov4.ema import Ema
from yolov4.model import Darknet
from yolov4.progress import Progress
from yolov4.settings import Settings
from yolov4.updates import Updater
from yolov4.weights import VERSION, load_weights
from yolov4.yolov5_loss import prior_biases

Say = Callable[[str], None]


def class_names(settings: Settings, model: Darknet) -> list[str]:
    """Of the names file.  Raises ValueError where they are not as many as the network's classes."""
    names, classes = read_names(settings.names), model.heads[-1].classes
    if len(names) != classes:
        found = f"{len(names)} names, but {model.network.name} has {classes} classes"
        raise ValueError(f"{settings.names}: {found}, expected as many: `python -m yolov4.blueprint` takes --names")
    return names


def usable_images(
    paths: list[Path], settings: Settings, names: list[str], size: tuple[int, int], say: Say
) -> list[Path]:
    """Prints what the data are like before any time is spent; those of the training images `paths` that can be used.
    Raises ValueError for lists that nothing can be trained or measured with."""
    reports = [inspect(paths, names, size, settings.train)]
    if settings.valid:
        reports.append(inspect(read_image_list(settings.valid), names, size, settings.valid))
    for each in reports:
        say("\n".join(each.lines()))
        each.check()
    return reports[0].usable


def from_weights(model: Darknet, ema: Ema, settings: Settings, say: Say) -> Progress:
    """From fresh weights, from a partial file, or on from the iteration that seen / batch of a file says."""
    net, weights, freeze = model.net, settings.weights, settings.freeze
    if settings.loss == "yolov5":
        model.set_head_biases(prior_biases)  # what a file holds takes their place
    loaded = load_weights(model, weights, other_classes=True) if weights else None
    ema.restart(model)
    if freeze > (layers := loaded.layers if loaded else 0):
        raise ValueError(f"--freeze {freeze}, but {layers} layers come from --weights, expected as many or more")
    if not loaded:
        say("from fresh weights (no --weights)")
        return Progress()
    iteration = 0 if settings.clear or loaded.classes else loaded.seen // net.batch
    model.weights_version = VERSION
    start = f"{loaded.seen:,} images seen, so on from iteration {iteration} of {net.max_batches}"
    if not iteration:
        start = "from iteration 0" + (", what it has seen was other data" if loaded.classes else "")
    say(f"{weights}: {loaded}; {start}" + (f"; the first {freeze} layers stay frozen" if freeze else ""))
    return Progress(iteration)


def from_checkpoint(checkpoint: dict, path: Path, updater: Updater, ema: Ema) -> Progress:
    """Puts model, optimiser, scaler and average where the checkpoint of `path` says.  Raises ValueError where it lacks
    any of them."""
    if missing := {"optimiser", "scaler", *Progress.__dataclass_fields__} - checkpoint.keys():
        raise ValueError(f"{path}: has no {min(missing)}, expected a checkpoint of train.py, whole")
    updater.model.load_state_dict(checkpoint["model"])
    updater.optimiser.load_state_dict(checkpoint["optimiser"])
    updater.scaler.load_state_dict(checkpoint["scaler"])
    ema.load(updater.model, checkpoint["ema"])
    return Progress(**{key: checkpoint[key] for key in Progress.__dataclass_fields__})
