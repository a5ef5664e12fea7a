"""The yolov5-style loss against its published formulas written out as loops, and its edges."""

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
[net] width=96 height=64 channels=3
[convolutional] size=1 stride=16 filters=24 activation=linear
[yolo] mask=0,1,2 anchors=8,8,20,14,30,40,60,50,80,30,90,60 num=6 classes=3 label_smooth_eps={eps}
[route] layers=-2
[convolutional] size=1 stride=2 filters=24 activation=linear
[yolo] mask=3,4,5 anchors=8,8,20,14,30,40,60,50,80,30,90,60 num=6 classes=3 label_smooth_eps={eps}
""".replace(" ", "\n")


def network(eps=0.0):
    return Darknet(with_yolov5_heads(parse_cfg(CFG.format(eps=eps))))


def draw(model, images=2, count=9):
    """Logits of each head and targets (T, 6)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, 24, 64 // head.stride, 96 // head.stride) for head in model.heads]
    logits = [torch.randn(shape, generator=generator) for shape in shapes]
    targets = torch.rand(count, 6, generator=generator)
    targets[:, 0], targets[:, 1] = torch.arange(count) % images, torch.arange(count) % 3
    targets[:, 4:] = 0.05 + 0.6 * targets[:, 4:]
    return logits, targets


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit, target):
    p = sigmoid(logit)
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def ciou(a, b):
    """Of two boxes cx, cy, w, h."""
    low, high = ([box[i] + s * box[i + 2] / 2 for box in (a, b) for i in (0, 1)] for s in (-1, 1))
    overlap = math.prod(max(0, min(high[i::2]) - max(low[i::2])) for i in (0, 1))
    diagonal = sum((max(high[i::2]) - min(low[i::2])) ** 2 for i in (0, 1))
    iou = overlap / (a[2] * a[3] + b[2] * b[3] - overlap)
    v = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a[2] / a[3])) ** 2
    return iou - math.dist(a[:2], b[:2]) ** 2 / diagonal - v * v / (1 - iou + v + 1e-9)


def by_loops(model, logits, targets):
    """The loss per image: gains 0.05, 0.5 classes / 80, (size / 640)^2, balance 4, 1."""
    total = 0.0
    for values, head, balance in zip(logits, model.heads, (4.0, 1.0), strict=True):
        batch, _, rows, columns = values.shape
        values = values.double().view(batch, 3, 8, rows, columns).numpy()
        wanted, distances, classes = np.zeros((batch, 3, rows, columns)), [], []
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
                    centre = 2 * sigmoid(tx) - 0.5 + i, 2 * sigmoid(ty) - 0.5 + j
                    sides = (2 * sigmoid(tw)) ** 2 * aw, (2 * sigmoid(th)) ** 2 * ah
                    box = (*centre, sides[0] / head.stride, sides[1] / head.stride)
                    overlap = ciou(box, (x, y, w * columns, h * rows))
                    distances.append(1 - overlap)
                    wanted[int(image), a, j, i] = max(wanted[int(image), a, j, i], overlap)
                    for c, value in enumerate(probabilities):
                        smooth = head.label_smooth_eps / 2
                        classes.append(cross_entropy(value, 1 - smooth if c == label else smooth))
        objectness = np.vectorize(cross_entropy)(values[:, :, 4], wanted).mean()
        share = 3 / 2  # two heads
        total += share * (0.05 * np.mean(distances) + 0.5 * 3 / 80 * np.mean(classes))
        total += share * balance * 96 * 64 / 640**2 * objectness
    return total


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_loss_is_the_published_one_written_out(eps):
    model = network(eps)
    logits, targets = draw(model)
    total = Yolov5Loss(model.heads)(logits, targets).total.item()
    assert total == pytest.approx(by_loops(model, logits, targets), rel=1e-5)


def test_gradient_is_that_of_64_images_with_overlaps_held_fixed():
    """By differences, of objectness and classes (a box' own overlap is a target, held fixed)."""
    model, step = network(), 1e-2
    logits, targets = draw(model)
    leaves = [each.clone().requires_grad_() for each in logits]
    Yolov5Loss(model.heads)(leaves, targets).total.backward()
    _, image, anchor, row, column = match(model.heads[0], targets, logits[0].shape[2:])[:, 0]
    for channel in (4, 5, 7):
        at, values = (image, anchor * 8 + channel, row, column), []
        for sign in (1, -1):
            changed = [each.clone() for each in logits]
            changed[0][at] += sign * step
            values.append(by_loops(model, changed, targets))
        slope = (values[0] - values[1]) / (2 * step)
        assert leaves[0].grad[at].item() == pytest.approx(64 * slope, rel=1e-3)


def test_descent_on_the_logits_ends_with_predictions_that_are_the_targets():
    model = network()
    targets = torch.tensor([[0, 2, 0.52, 0.3, 0.3, 0.4], [1, 0, 0.2, 0.71, 0.5, 0.6]])
    leaves = [each.requires_grad_() for each in draw(model)[0]]
    optimiser, loss = torch.optim.Adam(leaves, 0.1), Yolov5Loss(model.heads)
    for _ in range(80):
        optimiser.zero_grad()
        loss(leaves, targets).total.backward()
        optimiser.step()
    decoded = decode(leaves[0].detach(), model.heads[0])
    for image, target in enumerate(targets):
        best = decoded.objectness[image].flatten().argmax()
        assert torch.allclose(decoded.boxes[image].flatten(0, 2)[best], target[2:], atol=0.03)
        assert decoded.classes[image].flatten(0, 2)[best].argmax() == target[1]


def matches(target, **keys):
    """{(anchor, row, column)} of the first head: 6 x 4 cells; anchors 8x8, 20x14, 30x40"""
    head = replace(network().heads[0], **keys)
    found = match(head, torch.tensor([[0, 0, *target]]), (4, 6))
    return {tuple(each[2:]) for each in found.T.tolist()}


SIDES = (20 / 96, 14 / 64)  # less than 4 times all three anchors


@pytest.mark.parametrize(("centre", "scale", "cells"), [
    ((2.25 / 6, 1.75 / 4), 2, {(1, 2), (1, 1), (2, 2)}),  # (row, column): own, left, below
    ((0, 0), 2, {(0, 0)}), ((1, 1), 2, {(3, 5)}),  # inside the grid
    ((0.01, 0.5), 2, {(2, 0), (1, 0)}), ((0.99, 0.4), 2, {(1, 5), (2, 5)}),
    ((0.4, 0.4), 1.2, {(1, 2)}),  # this head cannot reach the neighbours
])  # fmt: skip
def test_a_target_goes_to_its_cell_and_two_neighbours(centre, scale, cells):
    expected = {(anchor, *cell) for anchor in range(3) for cell in cells}
    assert matches((*centre, *SIDES), scale_x_y=scale) == expected


def test_sides_four_times_an_anchors_do_not_match():
    # 32.5 pixels wide is more than 4 x 8; 9.9 high is less than 40 / 4
    wide, flat = (0.5, 0.5, 32.5 / 96, 12 / 64), (0.5, 0.5, 20 / 96, 9.9 / 64)
    assert [{each[0] for each in matches(target)} for target in (wide, flat)] == [{1, 2}, {0, 1}]


@pytest.mark.parametrize(
    "rows", [[], [[0, 0, 0.5, 0.5, 0, 0.2]], [[0, 7, 0.5, 0.5, 0.2, 0.2]], [[0, 0, 1, 1, 1, 1]]]
)
def test_edges_stay_finite(rows):
    """No targets, a side of zero, an impossible class, the whole image at the border; float16."""
    model = network()
    logits = [(20 * each).half().requires_grad_() for each in draw(model)[0]]
    with torch.autocast("cpu", torch.bfloat16):
        total = Yolov5Loss(model.heads)(logits, torch.tensor(rows).view(-1, 6)).total
    total.backward()
    assert total.isfinite() and total.dtype == torch.float32
    assert all(each.grad.isfinite().all() and each.grad.any() for each in logits)


def test_targets_of_one_prediction_in_any_order():
    model = network()
    logits, targets = draw(model, count=4)
    targets[:, :1], targets[:, 2:] = 0, torch.tensor([0.4, 0.4, 0.2, 0.2])
    first, second = (Yolov5Loss(model.heads)(logits, t).total for t in (targets, targets.flip(0)))
    torch.testing.assert_close(first, second)


def test_prior_biases_expect_8_objects_in_640_pixels():
    biases = prior_biases(network().heads[0]).view(3, 8)
    probabilities = biases.sigmoid()
    assert torch.allclose(probabilities[:, 4], torch.tensor(8 / 40**2), rtol=0.01)
    assert torch.allclose(probabilities[:, 5:], torch.tensor(0.6 / (0.6 + 3 - 0.99)), rtol=1e-5)
    assert not biases[:, :4].any()
