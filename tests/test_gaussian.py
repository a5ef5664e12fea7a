"""[Gaussian_yolo] against Darknet's own layer, a cell worked by hand, and its place in a cfg.
Source: golden/gaussian: forward_gaussian_yolo_layer of Darknet's CPU library, called from a small C program on drawn
values and truths, with net.adversarial=1 and no truths for `attack`; get_gaussian_yolo_detections for `before`."""

import math

import numpy as np
import pytest
import torch
from conftest import golden_names
from test_decode import assert_same_rows, rows_of
from test_loss import rows_of as targets_of

from yolov4 import Darknet, DarknetLoss, decode, detections_from_logits
from yolov4.adversarial import attack_deltas
from yolov4.cfg import format_cfg, parse_cfg

CELL = """[net]
width=32
height=32
[convolutional]
filters=10
activation=linear
size=32
stride=32
[Gaussian_yolo]
anchors=10,20
classes=1
yolo_point={point}
"""


@pytest.mark.parametrize("name", golden_names("gaussian"))
def test_deltas_cost_and_attack_are_darknets(golden, name):
    case = golden(f"gaussian/{name}.npz")
    model = Darknet.from_cfg(text=case["cfg"])
    logits = torch.from_numpy(case["layer_input"]).requires_grad_()
    terms = DarknetLoss(model.heads, model.net)([logits], targets_of(case["truths"]))
    terms.total.backward()
    found = -logits.grad.numpy() * len(logits)
    np.testing.assert_allclose(found, case["delta"], rtol=2e-4, atol=1e-5)
    assert terms.heads[0].cost.item() == pytest.approx(case["cost"], rel=1e-5)
    attack = attack_deltas(logits.detach(), model.heads[0]).numpy()
    np.testing.assert_allclose(attack, case["attack"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", golden_names("gaussian"))
def test_detections_are_darknets(golden, name):
    case = golden(f"gaussian/{name}.npz")
    logits, heads = torch.from_numpy(case["layer_input"][:1]), Darknet.from_cfg(text=case["cfg"]).heads
    size = tuple(case["image_size"].tolist())
    (found,) = detections_from_logits([logits], heads, size, case["thresh"], 0, bool(case["letter_box"]))
    assert_same_rows(rows_of(found, size), case["before"])


@pytest.mark.parametrize(("point", "centre"), [
    ("center", (0.5, 0.75)), ("left_top", (0.5 + 0.625 / 2, 0.75 + 0.625 / 2)), ("right_bottom", (0.1875, 0.4375)),
])  # fmt: skip
def test_one_cell_by_hand(point, centre):
    """x 0.5 +- 0.5, y 0.75 +- 0.2, w 10 * 2 +- 0.5, h 20 +- 0.4; objectness 0.8, class 0.5: 0.8 * 0.5 * (1 - 0.4)"""
    head = Darknet.from_cfg(text=CELL.format(point=point)).heads[0]
    values = [0, 0, math.log(3), math.log(0.25), math.log(2), 0, 0, math.log(2 / 3), math.log(4), 0]
    logits = torch.tensor(values).view(1, 10, 1, 1)
    decoded = decode(logits, head)
    assert decoded.boxes.flatten().tolist() == pytest.approx([*centre, 0.625, 0.625])
    assert decoded.sigmas.flatten().tolist() == pytest.approx([0.5, 0.2, 0.5, 0.4])
    (found,) = detections_from_logits([logits], [head], (32, 32), thresh=0.2)
    assert found.scores.tolist() == pytest.approx([0.8 * 0.5 * 0.6])
    assert len(detections_from_logits([logits], [head], (32, 32), thresh=0.25)[0].scores) == 0


def test_section_is_written_in_darknets_spelling_and_read_back():
    network = parse_cfg(CELL.format(point="left_top"))
    text = format_cfg(network.net, network.sections)
    assert "[Gaussian_yolo]" in text and parse_cfg(text) == network


@pytest.mark.parametrize(("change", "message"), [
    (("filters=10", "filters=6"), r"filters=6 before the \[Gaussian_yolo\] of line 9, expected 10 = 1 anchors"),
    (("classes=1", "new_coords=1"), r"cfg:11: \[gaussian_yolo\] new_coords=1, expected 0: only \[yolo\]"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Darknet.from_cfg(text=CELL.format(point="center").replace(*change))
