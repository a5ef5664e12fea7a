"""IoU, its gradient and NMS of every kind: by hand, by autograd, and against the double loop.
Source: Darknet's src/box.c."""

import math

import pytest
import torch
from slow_map import iou

from yolov4 import boxes as formats
from yolov4.boxes import box_iou, iou_gradient, nms

SQUARE = (0.4, 0.4, 0.2, 0.2)
PAIRS = {  # second box: iou, giou, diou with exponent 1, worked by hand against SQUARE
    "the same": (SQUARE, 1, 1, 1),
    "half over": ((0.5, 0.4, 0.2, 0.2), 1 / 3, 1 / 3, 1 / 3 - 0.01 / 0.13),
    "inside": ((0.4, 0.4, 0.1, 0.1), 0.25, 0.25, 0.25),
    "diagonal": ((0.5, 0.5, 0.2, 0.2), 1 / 7, 1 / 7 - 2 / 9, 1 / 7 - 0.02 / 0.18),
    "touching": ((0.6, 0.4, 0.2, 0.2), 0, 0, -0.04 / 0.2),
    "apart": ((0.8, 0.4, 0.2, 0.2), 0, -1 / 3, -0.16 / 0.4),
}


@pytest.mark.parametrize(("box", "iou", "giou", "diou"), PAIRS.values(), ids=PAIRS)
def test_iou_kinds_by_hand(box, iou, giou, diou):
    a, b = torch.tensor(SQUARE, dtype=torch.float64), torch.tensor(box, dtype=torch.float64)
    powered = iou - (iou - diou) ** 0.6
    expected = [iou, giou, diou, powered, diou]  # squares have one aspect, so CIoU is DIoU
    for first, second in ((a, b), (b, a)):
        kinds = ("iou",), ("giou",), ("diou", 1.0), ("diou",), ("ciou",)
        found = [box_iou(first, second, *kind).item() for kind in kinds]
        assert found == pytest.approx(expected, abs=1e-9)


def test_ciou_takes_the_aspect_into_account():
    a, b = torch.tensor([0.5, 0.5, 0.4, 0.2]), torch.tensor([0.5, 0.5, 0.2, 0.4])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    expected = 1 / 3 - v * v / (1 - 1 / 3 + v + 1e-6)
    assert box_iou(a, b, "ciou").item() == pytest.approx(expected, abs=1e-6)


def random_boxes(count, seed=0):
    values = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    return torch.cat((values[:, :2] * 0.6 + 0.2, values[:, 2:] * 0.3 + 0.05), 1)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_iou_broadcasts_and_boxes_of_no_size_are_finite(kind):
    boxes = random_boxes(5)
    boxes[3, 3 if kind == "ciou" else slice(2, 4)] = 0  # a point has no aspect
    table = box_iou(boxes[:, None], boxes[None], kind)
    assert table.shape == (5, 5) and torch.isfinite(table).all()
    torch.testing.assert_close(table[1, 3], box_iou(boxes[1], boxes[3], kind))
    assert box_iou(torch.zeros(0, 1, 4), boxes[None], kind).shape == (0, 5)


def test_gradient_of_iou_is_autograds_with_w_and_h_doubled():
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.2], [0.45, 0.52, 0.2, 0.25]], requires_grad=True)
    targets = torch.tensor([[0.55, 0.47, 0.25, 0.3], [0.5, 0.5, 0.11, 0.1]])
    box_iou(boxes, targets).sum().backward()
    ours = iou_gradient(boxes.detach(), targets, "iou")
    assert torch.allclose(ours, boxes.grad * torch.tensor([1, 1, 2, 2]), atol=1e-5)


def overlap(a, b, kind, beta):
    (ax, ay, aw, ah), (bx, by, bw, bh), value = a, b, iou(a, b)
    if kind == "default":
        return value
    across = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    along = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    exponent = beta if kind == "diounms" else 0.6
    return value - (((ax - bx) ** 2 + (ay - by) ** 2) / (across**2 + along**2)) ** exponent


def naive_nms(boxes, scores, labels, thresh, kind, beta):
    """Darknet's double loop: by falling score, what stays removes the worse ones of its class."""
    boxes, kept = boxes.double().tolist(), []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        same = [other for other in kept if labels[other] == labels[index]]
        if all(overlap(boxes[other], boxes[index], kind, beta) <= thresh for other in same):
            kept.append(index)
    return kept


@pytest.mark.parametrize("kind", ["default", "greedynms", "diounms"])
@pytest.mark.parametrize(("count", "classes"), [(0, 1), (1, 1), (60, 1), (600, 2), (40, 80)])
def test_nms_is_the_double_loop(kind, count, classes):
    generator = torch.Generator().manual_seed(count)
    boxes, scores = random_boxes(count, seed=count), torch.rand(count, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    kept = nms(boxes, scores, labels, 0.3, kind, 0.8)
    assert kept.dtype == torch.int64
    assert kept.tolist() == naive_nms(boxes, scores, labels, 0.3, kind, 0.8)


def test_nms_keeps_equal_boxes_of_different_classes_and_the_first_of_equal_scores():
    boxes, labels = torch.tensor([SQUARE] * 4), torch.tensor([0, 1, 0, 0])
    assert nms(boxes, torch.tensor([0.5, 0.9, 0.5, 0.8]), labels, 0.45).tolist() == [1, 3]
    assert nms(boxes, torch.full((4,), 0.5), labels, 0.45).tolist() == [0, 1]


@pytest.mark.parametrize("between", [0, 600])  # 600: in different blocks
def test_nms_at_exactly_the_threshold_keeps(between):
    points = torch.cat((random_boxes(between)[:, :2], torch.zeros(between, 2)), 1)
    ends = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.25]])  # IoU 0.5
    boxes = torch.cat((ends[:1], points, ends[1:]))
    scores, labels = torch.linspace(0.9, 0.1, len(boxes)), torch.zeros(len(boxes)).long()
    assert len(nms(boxes, scores, labels, 0.5)) == len(boxes)
    assert nms(boxes, scores, labels, 0.499).tolist() == list(range(len(boxes) - 1))


def test_boxes_change_their_format():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.0, 0.25, 1.0, 0.5]])
    corners = torch.tensor([[0.4, 0.3, 0.6, 0.7], [-0.5, 0.0, 0.5, 0.5]])
    torch.testing.assert_close(formats.cxcywh_to_xyxy(boxes), corners)
    torch.testing.assert_close(formats.xyxy_to_cxcywh(corners), boxes)
    torch.testing.assert_close(formats.relative_boxes(corners * 10, (10, 10)), boxes)
