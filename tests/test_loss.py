"""The loss against Darknet's deltas, against the rules written out as loops, and at its edges."""

import contextlib
import math

import numpy as np
import pytest
import torch
from conftest import golden_names

from yolov4 import Darknet, DarknetLoss
from yolov4.assign import Positives, assign, in_rounds
from yolov4.boxes import box_iou, iou_gradient
from yolov4.decoding import Predictions
from yolov4.loss import class_multipliers
from yolov4.overlaps import best_overlaps
from yolov4.yolov5_loss import Yolov5Loss

CFG = """
[net]
width=96
height=64
channels=3
[convolutional]
size=1
stride=16
filters={filters}
activation=linear
[yolo]
mask=1,2
anchors=8,8, 20,14, 30,40
num=3
classes=2
iou_loss=ciou
iou_normalizer=0.07
ignore_thresh=0.7
{keys}
"""


def network(keys="iou_thresh=0.213\nscale_x_y=1.05\nmax_delta=5"):
    return Darknet.from_cfg(text=CFG.format(filters=14, keys=keys))


def rows_of(truths):
    """Darknet's lists of truths, each ended by cx = 0 -> targets (T, 6)"""
    rows = []
    for image, boxes in enumerate(truths):
        ends = np.flatnonzero(boxes[:, 0] == 0)
        rows += [[image, box[4], *box[:4]] for box in boxes[: ends[0] if len(ends) else None]]
    return torch.tensor(np.array(rows, "f4")).reshape(-1, 6)


def gradients(model, inputs, targets):
    """Gradient of the loss with respect to logits, for the sum over images instead of the mean."""
    logits = inputs.clone().requires_grad_()
    terms = DarknetLoss(model.heads, model.net)([logits], targets)
    terms.total.backward()
    return logits.grad * len(inputs), terms


@pytest.mark.parametrize("name", golden_names("loss"))
def test_delta_and_cost_are_darknets(golden, name):
    case = golden(f"loss/{name}.npz")
    model = Darknet.from_cfg(text=case["cfg"])
    values = torch.from_numpy(case["layer_input"]).requires_grad_()
    # with new_coords the values are those behind the logistic, and so is Darknet's delta
    logits = torch.logit(values) if model.heads[0].new_coords else values
    terms = DarknetLoss(model.heads, model.net)([logits], rows_of(case["truths"]))
    terms.total.backward()
    delta = case["delta"]
    away = np.abs(values.grad.numpy() * len(values) + delta)
    assert (away <= 1e-5 + 1e-4 * np.abs(delta)).all()
    assert terms.heads[0].cost.item() == pytest.approx(case["cost"], rel=1e-5)
    assert terms.total.item() == pytest.approx(case["cost"] / len(values), rel=1e-5)


def random_case(images=3, truths=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 14, 4, 6, generator=generator)
    targets = torch.rand(truths, 6, generator=generator)
    targets[:, 0], targets[:, 1] = torch.arange(truths) % images, (targets[:, 1] * 2).floor()
    targets[:, 4:] = targets[:, 4:] * 0.5 + 0.02
    return logits, targets


def test_a_batch_is_its_images():
    logits, targets = random_case()
    whole, _ = gradients(network(), logits, targets)
    for image in range(len(logits)):
        own = targets[targets[:, 0] == image].clone()
        own[:, 0] = 0
        alone, _ = gradients(network(), logits[image : image + 1], own)
        assert torch.allclose(whole[image], alone[0], atol=1e-6)


def test_order_of_targets_in_distinct_places_does_not_matter():
    logits, targets = random_case(truths=6)
    first, _ = gradients(network(), logits, targets)
    second, _ = gradients(network(), logits, targets.flip(0))
    assert torch.allclose(first, second, atol=1e-6)


def test_many_truths_in_one_place_follow_each_other():
    """Three truths of one shape in one cell: box deltas add up and are divided by the classes that answer; the first
    truth sets all class deltas, the others only their own."""
    model = network()
    logits = torch.zeros(1, 14, 4, 6)
    truth = [0, 0, 2.5 / 6, 1.5 / 4, 30 / 96, 40 / 64]
    same = torch.tensor([truth, truth, [0, 1, *truth[2:]]])
    delta = -gradients(model, logits, same)[0].view(2, 7, 4, 6)[1, :, 1, 2]
    alone = -gradients(model, logits, same[:1])[0].view(2, 7, 4, 6)[1, :, 1, 2]
    assert delta[4] == alone[4] == 0.5
    assert torch.allclose(delta[5:], torch.tensor([0.5, 0.5]))
    assert torch.allclose(alone[5:], torch.tensor([0.5, -0.5]))
    assert torch.allclose(delta[:4], alone[:4] * 3 / 2, atol=1e-7)


def test_no_truths_pull_objectness_down_and_nothing_else():
    model = network()
    logits, _ = random_case()
    gradient, terms = gradients(model, logits, torch.zeros(0, 6))
    parts = gradient.view(3, 2, 7, 4, 6)
    assert torch.allclose(parts[:, :, 4], logits.view(3, 2, 7, 4, 6)[:, :, 4].sigmoid())
    assert not parts[:, :, :4].any() and not parts[:, :, 5:].any()
    assert terms.heads[0].count == 0 and terms.heads[0].average_iou == 0


@pytest.mark.parametrize("box", [(1.0, 1.0, 0.3, 0.4), (1e-6, 1e-6, 0.3, 0.4), (0.5, 0.5, 1, 1), (0.99, 0.5, 0.02, 1)])
def test_truth_on_the_border_stays_in_the_grid(box):
    gradient, _ = gradients(network(), random_case()[0], torch.tensor([[0, 1, *box]]))
    assert gradient.isfinite().all()


def test_impossible_classes_are_passed_over():
    logits, targets = random_case()
    bad = torch.cat((targets, torch.tensor([[0, 2, 0.4, 0.4, 0.3, 0.3], [1, -1, 0.4, 0.4, 0.3, 0.3]])))
    assert torch.equal(gradients(network(), logits, bad)[0], gradients(network(), logits, targets)[0])


def test_half_precision_logits_get_a_float32_loss():
    logits, targets = random_case(images=2)
    with torch.autocast("cpu", torch.bfloat16):
        gradient, terms = gradients(network(), logits.bfloat16(), targets)
    exact, _ = gradients(network(), logits.bfloat16().float(), targets)
    assert terms.total.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, exact.bfloat16())


def test_multi_scale_input_takes_the_anchors_of_its_own_size():
    """At twice the size a truth of half the relative size has the same pixels, and so the same anchor."""
    model = network()
    row = torch.tensor([[0, 0, 0.3, 0.3, 30 / 96, 40 / 64]])
    half = row.clone()
    half[:, 4:] /= 2
    anchors = [
        assign(model.heads[0], truth, grid).places[1].tolist() for truth, grid in ((row, (4, 6)), (half, (8, 12)))
    ]
    assert anchors[0] == anchors[1] != []


def assigned_by_loops(head, targets, grid):
    """Truth by truth and anchor by anchor, as the rule reads."""
    found, (rows, columns) = [], grid
    for image, class_id, cx, cy, w, h in targets.tolist():

        def overlap(anchor, w=w, h=h):
            aw, ah = anchor[0] / (columns * head.stride), anchor[1] / (rows * head.stride)
            both = min(aw, w) * min(ah, h)
            return both / (aw * ah + w * h - both)

        best = max(range(len(head.all_anchors)), key=lambda n: overlap(head.all_anchors[n]))
        for place, anchor in enumerate(head.mask):
            if anchor == best or overlap(head.all_anchors[anchor]) > head.iou_thresh:
                found.append((int(image), place, int(cy * rows), int(cx * columns), int(class_id)))
    return found


def test_assignment_is_the_rule_written_as_loops():
    model = network()
    _, targets = random_case(truths=200, seed=3)
    positives = assign(model.heads[0], targets, (4, 6))
    vectorised = list(zip(*(p.tolist() for p in positives.places), positives.classes.tolist(), strict=True))
    assert vectorised == assigned_by_loops(model.heads[0], targets, (4, 6))


def test_iou_gradient_is_that_of_iou_where_boxes_overlap():
    """Of plain IoU Darknet's x and y agree with autograd, w and h are twice it."""
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.2], [0.45, 0.52, 0.2, 0.25]], requires_grad=True)
    truths = torch.tensor([[0.55, 0.47, 0.25, 0.3], [0.5, 0.5, 0.11, 0.1]])

    box_iou(boxes, truths).sum().backward()
    ours = iou_gradient(boxes.detach(), truths, "iou")
    assert torch.allclose(ours[:, :2], boxes.grad[:, :2], atol=1e-5)
    assert torch.allclose(ours[:, 2:], 2 * boxes.grad[:, 2:], atol=1e-5)


def test_giou_gradient_is_that_of_giou_apart():
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1]], requires_grad=True)
    truths = torch.tensor([[0.7, 0.6, 0.2, 0.1]])
    box_iou(boxes, truths, "giou").sum().backward()
    ours = iou_gradient(boxes.detach(), truths, "giou")
    assert torch.sign(ours).tolist() == torch.sign(boxes.grad).tolist()


def test_class_multipliers_by_hand():
    head = network("counters_per_class=100,10\nmax_delta=5").heads[0]
    assert class_multipliers(head).tolist() == [1, 5]


@pytest.mark.parametrize(("class_logit", "spared"), [(0.0, True), (-3.0, False)])
def test_a_good_box_is_no_negative_if_any_class_is_probable(class_logit, spared):
    """The truth is of class 0 and belongs to an anchor of another head; what counts is that class 1 is above 0.25."""
    logits = torch.full((1, 14, 4, 6), -6.0)
    mine = logits.view(2, 7, 4, 6)[0, :, 2, 3]  # anchor 20 x 14, the cell of column 3, row 2
    mine[:] = torch.tensor([0, 0, math.log(6 / 20), math.log(6 / 14), 1.0, -3, class_logit])
    truth = torch.tensor([[0, 0, 3.5 / 6, 2.5 / 4, 6 / 96, 6 / 64]])
    gradient, terms = gradients(network(), logits, truth)
    assert terms.heads[0].count == 0
    expected = 0 if spared else torch.tensor(1.0).sigmoid().item()
    assert gradient[0, 4, 2, 3].item() == pytest.approx(expected)


def test_objects_by_the_hundred():
    logits, targets = random_case(images=2, truths=700, seed=5)
    gradient, terms = gradients(network(), logits, targets)
    assert gradient.isfinite().all() and terms.heads[0].count > 300


def test_a_network_without_heads_is_refused():
    with pytest.raises(ValueError, match="no \\[yolo\\] layer"):
        DarknetLoss([], network().net)


def test_truths_in_one_place_come_in_rounds():
    places = tuple(torch.tensor(index) for index in ([0, 0, 1, 0, 0], [1, 0, 1, 1, 1], [2] * 5, [3] * 5))
    positives = Positives(places, torch.arange(20.0).view(5, 4), torch.arange(5))
    sorted_positives, rounds = in_rounds(positives, torch.Size((2, 2, 4, 6)))
    assert rounds == [3, 1, 1]
    parts = sorted_positives.split(rounds)
    assert [part.classes.tolist() for part in parts] == [[1, 0, 2], [3], [4]]
    assert [part.truths[:, 0].tolist() for part in parts] == [[4, 0, 8], [12], [16]]
    assert [part.places[1].tolist() for part in parts] == [[0, 1, 1], [1], [1]]


@pytest.mark.parametrize("thresh", [0.0, 0.1, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("keys", ["", "scale_x_y=2", "yolo_point=left_top"], ids=["plain", "scaled", "point"])
def test_overlaps_are_those_of_all_pairs_where_they_count(keys, thresh):
    """Every prediction with every truth of its image; below the threshold a smaller overlap may be given."""
    gaussian = "point" in keys
    text = CFG.format(filters=22 if gaussian else 14, keys=keys).replace("ignore_thresh=0.7", f"ignore_thresh={thresh}")
    model = Darknet.from_cfg(text=text.replace("[yolo]", "[Gaussian_yolo]") if gaussian else text)
    generator = torch.Generator().manual_seed(2)
    predictions = Predictions(torch.randn(3, 22 if gaussian else 14, 4, 6, generator=generator) * 3, model.heads[0])
    targets = torch.rand(300, 6, generator=generator)
    targets[:, 0] = (targets[:, 0] * 2).floor()  # the third image has none
    targets[:, 4:] = 1.5 * targets[:, 4:] ** 2
    near = torch.randint(48, (300,), generator=generator)
    copied = predictions.boxes.flatten(1, 3)[targets[:, 0].long(), near] * 1.01
    inside = ((copied[:, :2] >= 0) & (copied[:, :2] < 1)).all(1)
    targets[inside, 2:] = copied[inside]
    iou, best = best_overlaps(predictions, targets, which=True)
    pairs = box_iou(predictions.boxes[:, :, :, :, None], targets[:, 2:])  # (B, A, h, w, T)
    images = torch.arange(3)[:, None, None, None, None]
    dense, first = torch.where(targets[:, 0] == images, pairs, 0.0).max(-1)
    counts = dense > thresh
    assert counts.any() and torch.equal(iou[counts], dense[counts]) and torch.equal(best[counts], first[counts])
    assert (iou <= dense).all()


def test_what_the_crowd_costs_does_not_change_it(monkeypatch):
    logits, targets = random_case(truths=50)
    whole, _ = gradients(network(), logits, targets)
    monkeypatch.setattr("yolov4.overlaps.BLOCK", 7)
    assert torch.equal(gradients(network(), logits, targets)[0], whole)


@pytest.mark.parametrize("place", [0, 4, 6])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logit_that_is_no_number_shows_in_the_loss(place, value):
    """Even a class of a prediction that no truth has, at which the loss does not look."""
    logits, targets = random_case(truths=3)
    logits[2, place, 3, 5] = value
    assert not gradients(network(), logits, targets)[1].total.isfinite()


def waits():
    raise AssertionError("a tensor made of the host's values, for which it waits")


@pytest.mark.parametrize("keys", ["iou_thresh=0.2", "objectness_smooth=1\ncounters_per_class=3,4", "new_coords=1"])
@pytest.mark.parametrize("loss", [DarknetLoss, Yolov5Loss])
def test_the_host_does_not_wait_for_the_device(loss, keys, monkeypatch):
    """Tensors on "meta" have shapes and no values: whatever needs one on the host is an error there.  Only
    `new_tensor` is none, which waits too."""
    text = CFG.format(filters=14, keys=keys)
    model = Darknet.from_cfg(text=text.replace("linear", "logistic") if "new_coords" in keys else text)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # does not know "meta"
    made = torch.Tensor.new_tensor
    monkeypatch.setattr(torch.Tensor, "new_tensor", lambda self, *a: waits() if self.is_meta else made(self, *a), False)
    for truths in (0, 40):
        logits, targets = random_case(truths=truths)
        logits = logits.to("meta").requires_grad_()
        terms = loss(model.heads, model.net)([logits], targets)
        terms.total.backward()
        assert logits.grad.shape == logits.shape
        assert all(term.is_meta and not term.dim() for term in (terms.total, *terms.heads[0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("loss", [DarknetLoss, Yolov5Loss])
def test_the_host_does_not_wait_for_cuda(loss):
    model, (logits, targets) = network(), random_case(truths=40)
    expected = loss(model.heads, model.net)([logits], targets).total
    logits = logits.cuda().requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = loss(model.heads, model.net)([logits], targets)
        terms.total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-4)
