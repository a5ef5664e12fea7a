"""The yolov5-style loss against its published formulas written out as loops, cases worked by hand, and its edges."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from yolov4 import Darknet, decode
from yolov4.cfg import parse_cfg
from yolov4.recipe import with_yolov5_heads
from yolov4.yolov5_loss import Yolov5Loss, match, prior_biases

CFG = """
[net]
width=96
height=64
channels=3
[convolutional]
size=1
stride=16
filters=24
activation=linear
[yolo]
mask=0,1,2
anchors=8,8, 20,14, 30,40, 60,50, 80,30, 90,60
num=6
classes=3
label_smooth_eps={eps}
[convolutional]
size=1
stride=2
filters=24
activation=linear
[yolo]
mask=3,4,5
anchors=8,8, 20,14, 30,40, 60,50, 80,30, 90,60
num=6
classes=3
label_smooth_eps={eps}
"""


def network(eps=0.0):
    text = CFG.format(eps=eps).replace(
        "[convolutional]\nsize=1\nstride=2", "[route]\nlayers=-2\n[convolutional]\nsize=1\nstride=2"
    )
    return Darknet(with_yolov5_heads(parse_cfg(text)))


def draw(model, images=2, truths=9, seed=0):
    """Logits of each head and targets (T, 6)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(images, 24, 64 // head.stride, 96 // head.stride) for head in model.heads]
    logits = [torch.randn(shape, generator=generator) for shape in shapes]
    targets = torch.rand(truths, 6, generator=generator)
    targets[:, 0] = torch.arange(truths) % images
    targets[:, 1] = torch.arange(truths) % 3
    targets[:, 4:] = 0.05 + 0.6 * targets[:, 4:]
    return logits, targets


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit, target):
    p = sigmoid(logit)
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def ciou(a, b):
    """Of two boxes cx, cy, w, h."""
    low = [max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)]
    high = [min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) for i in (0, 1)]
    overlap = max(0, high[0] - low[0]) * max(0, high[1] - low[1])
    iou = overlap / (a[2] * a[3] + b[2] * b[3] - overlap)
    sides = [
        max(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - min(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)
    ]
    distance = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (sides[0] ** 2 + sides[1] ** 2)
    v = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a[2] / a[3])) ** 2
    return iou - distance - v * v / (1 - iou + v + 1e-9)


def by_loops(model, logits, targets):
    """The loss of an image as the paper trail has it: gains 0.05, 0.5 classes / 80, (size / 640)^2, balance 4, 1."""
    total = 0.0
    for values, head, balance in zip(logits, model.heads, (4.0, 1.0), strict=True):
        batch, _, rows, columns = values.shape
        values = values.double().view(batch, 3, 8, rows, columns).numpy()
        wanted = np.zeros((batch, 3, rows, columns))
        boxes, classes = [], []
        for image, label, cx, cy, w, h in targets.double().tolist():
            x, y = cx * columns, cy * rows
            column, row = int(x), int(y)
            cells = [(column, row), (column + (1 if x - column >= 0.5 else -1), row)]
            cells += [(column, row + (1 if y - row >= 0.5 else -1))]
            for a, (aw, ah) in enumerate(head.anchors):
                if max(w * 96 / aw, aw / (w * 96), h * 64 / ah, ah / (h * 64)) >= 4:
                    continue
                for i, j in cells:
                    if not (0 <= i < columns and 0 <= j < rows):
                        continue
                    tx, ty, tw, th, _, *probabilities = values[int(image), a, :, j, i]
                    box = (
                        2 * sigmoid(tx) - 0.5 + i, 2 * sigmoid(ty) - 0.5 + j,
                        (2 * sigmoid(tw)) ** 2 * aw / head.stride, (2 * sigmoid(th)) ** 2 * ah / head.stride,
                    )  # fmt: skip
                    overlap = ciou(box, (x, y, w * columns, h * rows))
                    boxes.append(1 - overlap)
                    wanted[int(image), a, j, i] = max(wanted[int(image), a, j, i], overlap)
                    eps = head.label_smooth_eps
                    classes += [
                        cross_entropy(value, 1 - eps / 2 if c == label else eps / 2)
                        for c, value in enumerate(probabilities)
                    ]
        objectness = np.vectorize(cross_entropy)(values[:, :, 4], wanted).mean()
        share = 3 / 2  # two heads
        total += share * 0.05 * float(np.mean(boxes)) + share * 0.5 * 3 / 80 * float(np.mean(classes))
        total += share * balance * 96 * 64 / 640**2 * objectness
    return total


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_loss_is_the_published_one_written_out(eps, seed):
    model = network(eps)
    logits, targets = draw(model, seed=seed)
    assert Yolov5Loss(model.heads, model.net)(logits, targets).total.item() == pytest.approx(
        by_loops(model, logits, targets), rel=1e-5
    )


def test_gradient_is_that_of_64_images_with_overlaps_held_fixed():
    """By differences, in logits of class and objectness (a box's own overlap is also a target, which is held)."""
    model = network()
    logits, targets = draw(model)
    leaves = [each.clone().requires_grad_() for each in logits]
    Yolov5Loss(model.heads, model.net)(leaves, targets).total.backward()
    head, step = model.heads[0], 1e-2
    rows, columns = logits[0].shape[2:]
    places = match(head, targets, (rows, columns)).places
    image, anchor, row, column = (int(place[0]) for place in places)
    for channel in (4, 5, 7):
        at = (image, anchor * 8 + channel, row, column)
        values = []
        for sign in (1, -1):
            moved = [each.clone() for each in logits]
            moved[0][at] += sign * step
            values.append(by_loops(model, moved, targets))
        assert leaves[0].grad[at].item() == pytest.approx(64 * (values[0] - values[1]) / (2 * step), rel=1e-3)


def test_boxes_are_pulled_towards_their_truths():
    """Gradient descent on the logits alone ends with predictions that are the truths."""
    model = network()
    logits, _ = draw(model)
    targets = torch.tensor([[0, 2, 0.52, 0.3, 0.3, 0.4], [1, 0, 0.2, 0.71, 0.5, 0.6]])
    leaves = [each.clone().requires_grad_() for each in logits]
    optimiser, loss = torch.optim.Adam(leaves, 0.1), Yolov5Loss(model.heads, model.net)
    for _ in range(120):
        optimiser.zero_grad()
        terms = loss(leaves, targets)
        terms.total.backward()
        optimiser.step()
    assert all(head.average_iou > 0.9 for head in terms.heads)
    decoded = decode(leaves[0].detach(), model.heads[0])
    for image, truth in enumerate(targets):
        best = decoded.objectness[image].flatten().argmax()
        assert torch.allclose(decoded.boxes[image].flatten(0, 2)[best], truth[2:], atol=0.03)
        assert decoded.classes[image].flatten(0, 2)[best].argmax() == truth[1]


def places_of(head, *truths):
    targets = torch.tensor([[0, 0, *truth] for truth in truths], dtype=torch.float32)
    found = match(head, targets, (64 // head.stride, 96 // head.stride)).places
    return {tuple(int(v) for v in row) for row in torch.stack(found, 1)}


def test_a_truth_goes_to_its_cell_and_two_neighbours():
    head = network().heads[0]  # 6 x 4 cells of 16 pixels; anchors 8x8, 20x14, 30x40
    # centre at column 2.25, row 1.75; 20 x 14 pixels: less than 4 times all three anchors
    cells = {(1, 2), (1, 1), (2, 2)}  # (row, column): its own, the left one, the one below
    truth = (2.25 / 6, 1.75 / 4, 20 / 96, 14 / 64)
    assert places_of(head, truth) == {(0, anchor, *cell) for anchor in range(3) for cell in cells}


def test_sides_four_times_an_anchors_do_not_match():
    head = network().heads[0]
    # 32.5 pixels wide is more than 4 x 8; 10 high is less than 40 / 4 + a bit and not less than 10
    wide, flat = (0.5, 0.5, 32.5 / 96, 12 / 64), (0.5, 0.5, 20 / 96, 9.9 / 64)
    assert {place[1] for place in places_of(head, wide)} == {1, 2}
    assert {place[1] for place in places_of(head, flat)} == {0, 1}


@pytest.mark.parametrize(
    ("centre", "cells"),
    [((0, 0), {(0, 0)}), ((1, 1), {(3, 5)}), ((0.01, 0.5), {(2, 0), (1, 0)}), ((0.99, 0.4), {(1, 5), (2, 5)})],
)
def test_neighbours_stay_inside_the_grid(centre, cells):
    head = network().heads[0]
    assert {place[2:] for place in places_of(head, (*centre, 20 / 96, 14 / 64))} == cells


def test_a_head_that_cannot_reach_its_neighbours_keeps_to_the_cell():
    head = replace(network().heads[0], scale_x_y=1.2)
    assert {place[2:] for place in places_of(head, (0.4, 0.4, 0.2, 0.2))} == {(1, 2)}


@pytest.mark.parametrize("rows", [[], [[0, 0, 0.5, 0.5, 0, 0.2]], [[0, 7, 0.5, 0.5, 0.2, 0.2]], [[0, 0, 1, 1, 1, 1]]])
def test_edges_stay_finite(rows):
    """No truths, a side of zero, a class that is none, the whole image at the border."""
    model = network()
    logits = [each.requires_grad_() for each in draw(model)[0]]
    terms = Yolov5Loss(model.heads, model.net)(logits, torch.tensor(rows, dtype=torch.float32).reshape(-1, 6))
    terms.total.backward()
    assert terms.total.isfinite() and all(each.grad.isfinite().all() and each.grad.any() for each in logits)


def test_two_truths_in_one_place_whatever_their_order():
    model = network()
    logits, targets = draw(model, truths=4)
    targets[:, :1], targets[:, 2:] = 0, torch.tensor([0.4, 0.4, 0.2, 0.2])
    loss = Yolov5Loss(model.heads, model.net)
    assert loss(logits, targets).total.item() == pytest.approx(loss(logits, targets.flip(0)).total.item(), rel=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_the_loss_of_their_values(kind):
    model = network()
    logits, targets = draw(model)
    halves = [(20 * each).to(kind).requires_grad_() for each in logits]
    loss = Yolov5Loss(model.heads, model.net)
    with torch.autocast("cpu", dtype=kind):
        terms = loss(halves, targets)
    terms.total.backward()
    assert terms.total.dtype == torch.float32
    assert terms.total.item() == pytest.approx(loss([each.float() for each in halves], targets).total.item(), rel=1e-6)
    assert all(each.grad.isfinite().all() for each in halves)


def test_prior_biases_expect_8_objects_in_640_pixels():
    head = network().heads[0]
    probabilities = prior_biases(head).view(3, 8).sigmoid()
    assert torch.allclose(probabilities[:, 4], torch.tensor(8 / 40**2), rtol=0.01)
    assert torch.allclose(probabilities[:, 5:], torch.tensor(0.6 / (0.6 + 3 - 0.99)), rtol=1e-5)
    assert not prior_biases(head).view(3, 8)[:, :4].any()


def test_head_form_and_gains_are_written_into_the_cfg(root):
    network_ = with_yolov5_heads(parse_cfg((root / "cfg/yolov4-voc.cfg").read_text()))
    pairs = [(a, b) for a, b in zip(network_.sections, network_.sections[1:], strict=False) if b.kind == "yolo"]
    assert all(conv.activation == "logistic" and yolo.new_coords and yolo.scale_x_y == 2 for conv, yolo in pairs)
    size = (416 / 640) ** 2
    assert [yolo.obj_normalizer for _, yolo in pairs] == pytest.approx([4 * size, size, 0.4 * size])
    assert {(yolo.iou_normalizer, yolo.cls_normalizer) for _, yolo in pairs} == {(0.05, 0.125)}
    assert network_.sections[-1].random == 1  # what is not of the loss stays


def test_a_head_after_something_else_is_refused():
    text = CFG.format(eps=0).split("[convolutional]\nsize=1\nstride=2")[0].replace("linear", "leaky")
    with pytest.raises(ValueError, match=r"cfg:11: \[yolo\] comes after \[convolutional\], expected a linear"):
        with_yolov5_heads(parse_cfg(text))
