"""Boxes at the edge of what a label can be: loss and gradient stay finite.
Source of what is expected: Darknet's rule (a non-finite delta gives no gradient, fix_nan_inf)."""

from dataclasses import replace

import pytest
import torch

from yolov4.cfg import parse_cfg
from yolov4.loss import DarknetLoss
from yolov4.model import Darknet

CFG = """[net] width=32 height=32
[convolutional] filters=14 stride=8 activation=linear
[yolo] mask=0,1 anchors=8,8,16,16 num=2 classes=2 iou_thresh=.213""".replace(" ", "\n")
DEGENERATE = {
    "zero width": [[0, 0, 0.5, 0.5, 0, 0.3]],
    "a point": [[0, 0, 0.5, 0.5, 0, 0]],
    "at the corner": [[0, 0, 1, 1, 0.1, 0.1]],
    "the whole image": [[0, 0, 0.5, 0.5, 1, 1]],
    "larger": [[0, 0, 0.5, 0.5, 9, 9]],
    "tiny": [[0, 0, 0.5, 0.5, 1e-30, 1e-30]],
    "outside": [[0, 0, -3, 7, 0.2, 0.2]],
    "far outside": [[0, 0, 99, -99, 0.2, 0.2]],
    "identical": [[0, 0, 0.4, 0.4, 0.2, 0.3]] * 50,
}


@pytest.mark.parametrize("kind", ["mse", "iou", "giou", "diou", "ciou"])
@pytest.mark.parametrize("boxes", DEGENERATE)
def test_degenerate_boxes_have_a_finite_gradient(boxes, kind):
    check_finite(torch.tensor(DEGENERATE[boxes]), iou_loss=kind)


@pytest.mark.parametrize(
    "keys", [{}, {"focal_loss": True}, {"truth_thresh": 0.7}, {"objectness_smooth": True}]
)
def test_ten_thousand_boxes_have_a_finite_gradient(keys):
    boxes = torch.rand(10_000, 6, generator=torch.Generator().manual_seed(0))
    boxes[:, 0], boxes[:, 1] = 0, (boxes[:, 1] > 0.5).float()
    check_finite(boxes, iou_loss="ciou", **keys)


def check_finite(targets, **keys):
    """Loss and gradient of a head of 4 x 4 cells, for ordinary logits and for large ones."""
    network = parse_cfg(CFG)
    yolo = replace(network.sections[-1], **keys)
    model = Darknet(network._replace(sections=(*network.sections[:-1], yolo)))
    for size in (1, 8):
        generator = torch.Generator().manual_seed(1)
        logits = (torch.randn(2, 14, 4, 4, generator=generator) * size).requires_grad_()
        terms = DarknetLoss(model.heads, model.net)([logits], targets)
        terms.total.backward()
        assert terms.total.isfinite() and logits.grad.isfinite().all() and logits.grad.any()
