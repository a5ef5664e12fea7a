"""Which files belong together: a network's beside its weights, labels beside a picture.
Source: how Darknet names its weights."""

import pytest
import torch

from yolov4.decoding import Detections
from yolov4.output import label_lines
from yolov4.runs import network_files


def test_labels_for_training_are_cut_at_the_edges():
    boxes = torch.tensor([[-10.0, 10, 50, 120], [-10, 10, 50, 120], [-20, -20, -5, -5]])
    lines = label_lines((100, 100), Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 0])))
    assert lines == "1 0.250000 0.550000 0.500000 0.900000\n"


@pytest.fixture
def weights(tmp_path):
    for name in ("x_best.weights", "x.cfg", "x.names"):
        (tmp_path / name).write_text("something")
    return tmp_path / "x_best.weights"


def test_files_beside_weights(weights):
    files = network_files(str(weights))
    assert (files.cfg.name, files.names.name) == ("x.cfg", "x.names")
    (weights.parent / "x_best.cfg").write_text("[net]")
    assert network_files(str(weights)).cfg.name == "x_best.cfg"
    for path in weights.parent.glob("*.cfg"):
        path.unlink()
    with pytest.raises(ValueError, match=r"x_best\.cfg, x\.cfg"):
        network_files(str(weights))
    with pytest.raises(ValueError, match="expected --weights too"):
        network_files(None, "x.cfg")
