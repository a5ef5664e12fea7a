"""What is done with a hostile file: all that the package does with one of its kind, as far as it gets.
Source: the readers of yolov4/, of data/voc0712/voc_label.py and of data/coco/coco_label.py."""

import importlib.util
import random
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch

from yolov4.batches import TrainingSet
from yolov4.cfg import format_cfg, parse_cfg, read_cfg, read_data, read_names
from yolov4.checkpoint import load_network
from yolov4.coco import detection_entries, evaluate_coco, json_truths
from yolov4.data import inspect, label_path, load_image, read_image_list, read_labels
from yolov4.decoding import Detections
from yolov4.loss import DarknetLoss
from yolov4.model import Darknet
from yolov4.plan import find_heads, plan_layers
from yolov4.predict import letterbox_image, resize_image
from yolov4.result import Record, Settings
from yolov4.voc import read_annotation
from yolov4.weights import load_weights

cv2.setNumThreads(0)
ROOT = Path(__file__).resolve().parents[1]
TINY = """[net]
batch=2
width=32
height=32
mosaic=1
[convolutional]
batch_normalize=1
filters=4
size=3
stride=32
pad=1
activation=leaky
[convolutional]
filters=14
activation=linear
[yolo]
mask=0,1
anchors=8,8, 16,16
num=2
classes=2
jitter=.3
resize=1.5
"""


@cache
def tiny() -> Darknet:
    return Darknet(parse_cfg(TINY))


@cache
def tool(name: str):
    """data/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).name, ROOT / f"data/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cfg(path: Path, rng: random.Random) -> None:
    """Parsed, written and parsed again, planned, and where it is small run."""
    network = read_cfg(path)
    again = parse_cfg(format_cfg(network.net, network.sections))
    assert (again.net, again.sections) == (network.net, network.sections), "it is another when written and read again"
    layers = plan_layers(network)
    heads = find_heads(network, layers)
    values = sum(layer.output_shape[0] * layer.output_shape[1] * layer.output_shape[2] for layer in layers)
    if sum(layer.parameters for layer in layers) > 1e6 or values > 2e6 or sum(layer.flops for layer in layers) > 1e9:
        return
    model = Darknet(network)
    logits = model(torch.zeros(2, network.net.channels, network.net.height, network.net.width))
    assert [tuple(each.shape[2:]) for each in logits] == [layers[head.index].output_shape[1:] for head in heads]
    if heads:
        DarknetLoss(heads, network.net)(logits, torch.tensor([[0, 0, 0.5, 0.5, 0.2, 0.2]])).total.backward()


def weights(path: Path, rng: random.Random) -> None:
    model = Darknet(tiny().network)
    load_weights(model, path)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def data(path: Path, rng: random.Random) -> None:
    read_data(path)


def names(path: Path, rng: random.Random) -> None:
    read_names(path)


def image_list(path: Path, rng: random.Random) -> None:
    inspect(read_image_list(path), ["a", "b"], (32, 32), path).lines()


def labels(path: Path, rng: random.Random) -> None:
    """Read, augmented with a picture, and trained on."""
    rows = read_labels(path)
    assert np.isfinite(rows).all()
    picture = path.with_suffix(".png")
    if not picture.exists():
        cv2.imwrite(str(picture), np.full((40, 60, 3), 99, np.uint8))
    train_on(picture, rng)


def train_on(picture: Path, rng: random.Random) -> None:
    model = tiny()
    image, boxes, *_ = TrainingSet([picture], model.net, model.heads[-1], 0)[rng.randrange(1 << 30), (32, 32)]
    targets = torch.cat((torch.zeros(len(boxes), 1), boxes), 1)
    loss = DarknetLoss(model.heads, model.net)(model(image[None].expand(2, -1, -1, -1).float() / 255), targets).total
    assert loss.isfinite()


def image(path: Path, rng: random.Random) -> None:
    """Read, fitted into a network's input both ways, augmented."""
    picture = load_image(path)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    for fit in (resize_image, letterbox_image):
        assert fit(picture, (32, 32)).isfinite().all()
    train_on(path, rng)


def xml(path: Path, rng: random.Random) -> None:
    """By the evaluation and by the conversion to labels."""
    problems: list[str] = []
    for _, _, box in tool("voc0712/voc_label").read_annotation(path, problems):
        assert np.isfinite(np.float32(box)).all()
    assert np.isfinite([edges for _, _, edges in read_annotation(path)]).all()


def coco(path: Path, rng: random.Random) -> None:
    """By the conversion to labels, or by the evaluation."""
    if rng.random() < 0.5:
        (path.parent / "1.jpg").touch()
        _, lists = tool("coco/coco_label").convert([path], path.parent / "labelled")
        assert np.isfinite([read_labels(label_path(image)).sum() for image in lists["case"]]).all()
        return
    settings = Settings(size=(32, 32))
    found = Detections(torch.tensor([[1.0, 1, 9, 9]]), torch.tensor([0.5]), torch.tensor([0]))
    record = Record(Path("1.jpg"), (32, 32), found, torch.zeros(0, 5), torch.zeros(0, 5))
    truths = json_truths(path, [record], ["person", "car"])
    evaluate_coco(detection_entries([record], truths), truths, settings)


def checkpoint(path: Path, rng: random.Random) -> None:
    """Nothing may run, and what is loaded is what was saved."""
    canary = Path("canary")
    try:
        model, _ = load_network(path)
    finally:
        if canary.exists():
            canary.unlink()
            raise AssertionError("code in the checkpoint was run")
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved()[key]), f"{key} is another than the one that was saved"


@cache
def saved() -> dict:
    """The weights of the checkpoint that fuzz_files starts from."""
    return Darknet(parse_cfg(TINY), torch.Generator().manual_seed(1)).state_dict()


READERS = {
    "cfg": cfg, "weights": weights, "data": data, "names": names, "list": image_list, "labels": labels,
    "image": image, "xml": xml, "coco": coco, "checkpoint": checkpoint,
}  # fmt: skip
