"""Boxes at the edge of what a label can be: loss and gradient stay numbers.
Source of what is expected: Darknet's rule (a delta that is no number pulls nowhere, fix_nan_inf)."""

from dataclasses import replace

import pytest
import torch
from fuzz_readers import TINY

from yolov4.cfg import parse_cfg
from yolov4.loss import DarknetLoss
from yolov4.model import Darknet

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
}  # fmt: skip


@pytest.mark.parametrize("kind", ["mse", "iou", "giou", "diou", "ciou"])
@pytest.mark.parametrize("boxes", DEGENERATE)
def test_degenerate_boxes_have_a_finite_gradient(boxes, kind):
    check_finite(torch.tensor(DEGENERATE[boxes]), iou_loss=kind)


@pytest.mark.parametrize("keys", [{}, {"focal_loss": True}, {"truth_thresh": 0.7}, {"objectness_smooth": True}])
def test_ten_thousand_boxes_have_a_finite_gradient(keys):
    boxes = torch.rand(10_000, 6, generator=torch.Generator().manual_seed(0))
    boxes[:, 0] = 0
    boxes[:, 1] = (boxes[:, 1] > 0.5).float()
    check_finite(boxes, **keys)


def test_one_class_and_one_anchor_have_a_finite_gradient():
    check_finite(torch.tensor([[0, 0, 0.4, 0.4, 0.2, 0.3]]), classes=1, mask=(0,), anchors=((8.0, 8.0),), num=1)


def check_finite(targets, **keys):
    """Loss and gradient of a head of 4 x 4 cells, for ordinary logits and for large ones."""
    network = parse_cfg(TINY.replace("stride=32", "stride=8"))
    keys = {"iou_loss": "ciou", "iou_thresh": 0.213, **keys}
    yolo = replace(network.sections[-1], **keys)
    filters = replace(network.sections[-2], filters=len(yolo.mask) * (yolo.classes + 5))
    model = Darknet(network._replace(sections=(*network.sections[:-2], filters, yolo)))
    for size in (1, 8):
        logits = torch.randn(2, filters.filters, 4, 4, generator=torch.Generator().manual_seed(1)) * size
        logits.requires_grad_()
        terms = DarknetLoss(model.heads, model.net)([logits], targets)
        terms.total.backward()
        assert terms.total.isfinite() and logits.grad.isfinite().all() and logits.grad.any()
