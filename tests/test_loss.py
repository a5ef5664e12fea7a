"""The loss against Darknet's deltas, against the rules written out as loops, and at its edges."""

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import golden_names

from yolov4 import Darknet, DarknetLoss, decode
from yolov4.boxes import box_iou
from yolov4.loss import attack_deltas, attack_rate, best_iou
from yolov4.yolov5_loss import Yolov5Loss

CFG = """
[net] width=96 height=64 channels=3 max_batches=3000 burn_in=10 adversarial_lr=0.05
[convolutional] size=1 stride=16 filters=14 activation=linear
[yolo] mask=1,2 anchors=8,8,20,14,30,40 num=3 classes=2
iou_loss=ciou iou_normalizer=0.07 ignore_thresh=0.7
"""
KEYS = "iou_thresh=0.213 scale_x_y=1.05 max_delta=5"


def network(keys=KEYS):
    text = CFG.replace("ignore_thresh=0.7", keys) if "ignore_thresh" in keys else CFG + keys
    activation = "logistic" if "new_coords=1" in keys else "linear"
    return Darknet.from_cfg(text=text.replace("linear", activation).replace(" ", "\n"))


def rows_of(truths):
    """Darknet's lists of ground truth, each ended by cx = 0 -> targets (T, 6)"""
    rows = []
    for image, boxes in enumerate(truths):
        count = np.append(boxes[:, 0], 0).argmin()
        rows += [[image, box[4], *box[:4]] for box in boxes[:count]]
    return torch.tensor(np.array(rows, "f4")).reshape(-1, 6)


def gradients(model, inputs, targets):
    """Gradient of the loss with respect to logits, for the sum over images instead of the mean."""
    logits = inputs.clone().requires_grad_()
    terms = DarknetLoss(model.heads)([logits], targets)
    terms.total.backward()
    return logits.grad * len(inputs), terms


def golden_delta(case, device="cpu"):
    """What the layer receives, the delta that it passes back, and LossTerms."""
    model = Darknet.from_cfg(text=case["cfg"])
    values = torch.from_numpy(case["layer_input"]).to(device).requires_grad_()
    # with new_coords the values are those behind the logistic, and so is Darknet's delta
    logits = torch.logit(values) if model.heads[0].new_coords else values
    terms = DarknetLoss(model.heads, model.net)([logits], rows_of(case["truths"]))
    terms.total.backward()
    return values, -values.grad.cpu().numpy() * len(values), terms


@pytest.mark.parametrize("name", golden_names("loss"))
def test_delta_and_cost_are_darknets(golden, name):
    case = golden(f"loss/{name}.npz")
    values, delta, terms = golden_delta(case)
    assert (np.abs(delta - case["delta"]) <= 1e-5 + 1e-4 * np.abs(case["delta"])).all()
    assert terms.heads[0].cost.item() == pytest.approx(case["cost"], rel=1e-5)
    assert terms.total.item() == pytest.approx(case["cost"] / len(values), rel=1e-5)


def random_case(images=3, count=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 14, 4, 6, generator=generator)
    targets = torch.rand(count, 6, generator=generator)
    targets[:, 0], targets[:, 1] = torch.arange(count) % images, (targets[:, 1] * 2).floor()
    targets[:, 4:] = targets[:, 4:] * 0.5 + 0.02
    return logits, targets


def test_a_batch_is_its_images_whatever_the_order_of_targets():
    logits, targets = random_case(count=6)
    whole, _ = gradients(network(), logits, targets.flip(0))
    for image in range(len(logits)):
        own = targets[targets[:, 0] == image] * torch.tensor([0, 1, 1, 1, 1, 1])
        alone, _ = gradients(network(), logits[image : image + 1], own)
        assert torch.allclose(whole[image], alone[0], atol=1e-6)


def test_many_targets_of_one_prediction_follow_each_other():
    """Three targets of one shape in one cell: box deltas add up, divided by the number of positive
    classes; the first target sets all class deltas, the others only their own."""
    model, logits = network(), torch.zeros(1, 14, 4, 6)
    target = [0, 0, 2.5 / 6, 1.5 / 4, 30 / 96, 40 / 64]
    same = torch.tensor([target, target, [0, 1, *target[2:]]])
    delta = -gradients(model, logits, same)[0].view(2, 7, 4, 6)[1, :, 1, 2]
    alone = -gradients(model, logits, same[:1])[0].view(2, 7, 4, 6)[1, :, 1, 2]
    assert delta[4] == alone[4] == 0.5
    assert torch.allclose(delta[5:], torch.tensor([0.5, 0.5]))
    assert torch.allclose(alone[5:], torch.tensor([0.5, -0.5]))
    assert torch.allclose(delta[:4], alone[:4] * 3 / 2, atol=1e-7)


@pytest.mark.parametrize("seed", range(8))
def test_a_crowd_of_one_prediction_is_the_rule_written_as_a_loop(seed):
    """40 targets of two classes, of which one is sure, so that its delta is 0: the next target of
    that class takes it for the first one, and sets all."""
    classes = torch.rand(40, generator=torch.Generator().manual_seed(seed)) < seed / 8
    logits = torch.zeros(1, 14, 4, 6)
    logits[0, 13, 1, 2] = 100.0
    box = torch.tensor([[2.5 / 6, 1.5 / 4, 30 / 96, 40 / 64]]).expand(40, 4)
    crowd = torch.cat((torch.zeros(40, 1), classes[:, None], box), 1)
    delta, terms = gradients(network(), logits, crowd)
    expected = torch.zeros(2)
    for own in classes.long().tolist():
        wanted = torch.eye(2)[own] - torch.tensor([0.5, 1.0])
        if expected[own] == 0:
            expected = wanted
        else:
            expected[own] = wanted[own]
    assert torch.equal(-delta.view(2, 7, 4, 6)[1, 5:, 1, 2], expected)
    assert terms.heads[0].count == 2 * 40  # two anchors


def test_without_targets_objectness_goes_down_and_nothing_else():
    logits, _ = random_case()
    gradient, terms = gradients(network(), logits, torch.zeros(0, 6))
    parts = gradient.view(3, 2, 7, 4, 6)
    assert torch.allclose(parts[:, :, 4], logits.view(3, 2, 7, 4, 6)[:, :, 4].sigmoid())
    assert not parts[:, :, :4].any() and not parts[:, :, 5:].any()
    assert terms.heads[0].count == 0 and terms.heads[0].average_iou == 0


def test_half_precision_logits_get_a_float32_loss():
    logits, targets = random_case(images=2)
    with torch.autocast("cpu", torch.bfloat16):
        gradient, terms = gradients(network(), logits.bfloat16(), targets)
    exact, _ = gradients(network(), logits.bfloat16().float(), targets)
    assert terms.total.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, exact.bfloat16())


@pytest.mark.parametrize("grid", [(4, 6), (8, 12)])
def test_assignment_is_the_rule_written_as_loops(grid):
    """Target by target and anchor by anchor, at the network's size and at twice it."""
    model, targets, found = network(), random_case(count=60, seed=3)[1], []
    head = model.heads[0]
    for image, _, cx, cy, w, h in targets.tolist():
        overlaps = []
        for anchor in head.all_anchors:
            aw, ah = anchor[0] / (grid[1] * head.stride), anchor[1] / (grid[0] * head.stride)
            both = min(aw, w) * min(ah, h)
            overlaps.append(both / (aw * ah + w * h - both))
        for place, anchor in enumerate(head.mask):
            if overlaps[anchor] == max(overlaps) or overlaps[anchor] > head.iou_thresh:
                found.append((int(image), place, int(cy * grid[0]), int(cx * grid[1])))
    gradient, terms = gradients(model, torch.zeros(3, 14, *grid), targets)
    cells = gradient.view(3, 2, 7, *grid)[:, :, 5:].any(2).nonzero()  # that learn a class
    assert terms.heads[0].count == len(found) > 60 and set(map(tuple, cells.tolist())) == set(found)


@pytest.mark.parametrize(("class_logit", "ignored"), [(0.0, True), (-3.0, False)])
def test_a_good_box_is_no_negative_if_any_class_is_probable(class_logit, ignored):
    """The target is of class 0 and another head's; what counts is that class 1 is above 0.25."""
    logits = torch.full((1, 14, 4, 6), -6.0)
    mine = logits.view(2, 7, 4, 6)[0, :, 2, 3]  # anchor 20 x 14, the cell of column 3, row 2
    mine[:] = torch.tensor([0, 0, math.log(6 / 20), math.log(6 / 14), 1.0, -3, class_logit])
    target = torch.tensor([[0, 0, 3.5 / 6, 2.5 / 4, 6 / 96, 6 / 64]])
    gradient, terms = gradients(network(), logits, target)
    assert terms.heads[0].count == 0
    expected = 0 if ignored else torch.tensor(1.0).sigmoid().item()
    assert gradient[0, 4, 2, 3].item() == pytest.approx(expected)


@pytest.mark.parametrize("thresh", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("scale", [1, 2])
def test_best_iou_is_that_of_all_pairs_where_it_counts(scale, thresh, monkeypatch):
    """Every prediction with every target of its image, in blocks of 7 pairs; below the threshold a
    smaller overlap may be given."""
    monkeypatch.setattr("yolov4.loss.BLOCK", 7)
    head = network(f"ignore_thresh={thresh} scale_x_y={scale}").heads[0]
    generator = torch.Generator().manual_seed(2)
    boxes = decode(torch.randn(3, 14, 4, 6, generator=generator) * 3, head).boxes
    targets = torch.rand(300, 6, generator=generator)
    targets[:, 0] = (targets[:, 0] * 2).floor()  # the third image has none
    targets[:, 4:] = 1.5 * targets[:, 4:] ** 2
    near = torch.randint(48, (300,), generator=generator)
    copied = boxes.flatten(1, 3)[targets[:, 0].long(), near] * 1.01
    inside = ((copied[:, :2] >= 0) & (copied[:, :2] < 1)).all(1)
    targets[inside, 2:] = copied[inside]
    iou = best_iou(boxes, head, targets, targets)
    pairs = box_iou(boxes[:, :, :, :, None], targets[:, 2:])  # (B, A, h, w, T)
    dense = (pairs * (targets[:, 0] == torch.arange(3).view(3, 1, 1, 1, 1))).amax(-1)
    assert torch.equal(iou[dense > thresh], dense[dense > thresh]) and (iou <= dense).all()


def test_a_non_finite_logit_shows_in_the_loss():
    """Even a class of a prediction without target, at which the loss does not look."""
    for place, value in ((0, math.nan), (4, math.inf), (6, math.nan), (6, math.inf)):
        logits, targets = random_case(count=3)
        logits[2, place, 3, 5] = value
        assert not gradients(network(), logits, targets)[1].total.isfinite()


def refuse(tensor, *values):
    assert not tensor.is_meta, "new_tensor waits for the device"
    return torch.tensor(*values)


@pytest.mark.parametrize(
    "keys", ["iou_thresh=0.2", "objectness_smooth=1 counters_per_class=3,4", "new_coords=1"]
)
@pytest.mark.parametrize("loss", [DarknetLoss, Yolov5Loss])
def test_the_host_does_not_wait_for_the_device(loss, keys, monkeypatch):
    """Tensors on "meta" have shapes and no values: whatever needs one on the host is an error."""
    model = network(keys)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # no "meta"
    monkeypatch.setattr(torch.Tensor, "new_tensor", refuse, False)
    for count in (0, 40):
        logits, targets = random_case(count=count)
        logits = logits.to("meta").requires_grad_()
        terms = loss(model.heads)([logits], targets)
        terms.total.backward()
        assert logits.grad.shape == logits.shape
        assert all(term.is_meta and not term.dim() for term in (terms.total, *terms.heads[0]))


def attack_by_loops(logits, head):
    """Darknet's adversarial branch, value by value; the w, h of a box are those of `decode`."""
    delta, boxes = torch.zeros_like(logits), decode(logits, head).boxes
    for image, anchor, row, column in torch.ones(boxes.shape[:-1]).nonzero().tolist():
        at = (image, slice(anchor * 7, anchor * 7 + 7), row, column)
        p = logits[at].sigmoid().tolist()
        x, y = (head.scale_x_y * value - (head.scale_x_y - 1) / 2 for value in p[:2])
        w, h = p[2:4] if head.new_coords else logits[at][2:4].tolist()
        scale, objectness = boxes[image, anchor, row, column, 2:].prod().item() ** 0.5, p[4]
        seen = [value * objectness > 0.25 for value in p[5:]]
        found = [any(seen) * scale * (1 - s - value) for s, value in zip(seen, p[5:], strict=True)]
        share = max(sum(d > 0 for d in found), 1) if head.iou_thresh < 1 else 1
        box = [-any(seen) * scale * value / share for value in (x, y, w, h)]
        values = torch.tensor([*box, -scale * head.obj_normalizer * objectness, *found])
        slope = torch.tensor([value * (1 - value) for value in p]) if head.new_coords else 1
        delta[at] = values * slope
    return delta


@pytest.mark.parametrize("iou_thresh", [1, 0.2])
@pytest.mark.parametrize("new_coords", [0, 1])
def test_attack_is_darknets_loop_over_predictions(new_coords, iou_thresh):
    keys = f"new_coords={new_coords} iou_thresh={iou_thresh} scale_x_y=1.1 obj_normalizer=0.4"
    head, logits = network(keys).heads[0], 1.5 * random_case()[0] + 0.5
    expected, found = attack_by_loops(logits, head), attack_deltas(logits, head)
    assert (expected[:, 0] == 0).any() and (expected[:, 0] != 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    logits[0, 2:4, 0, 0] = 100  # exp(100) is infinite in float32: no gradient
    changed = attack_deltas(logits, head) != found
    assert attack_deltas(logits, head).isfinite().all() and not changed[:, :, 1:].any()


def test_attacks_begin_after_burn_in_and_grow():
    net = network().net
    assert [attack_rate(iteration, net) for iteration in (1, 11)] == [0, 0]
    assert attack_rate(12, net) == pytest.approx(0.05 * 11 / 3000)


def check_finite(targets, **keys):
    """Loss and gradient, for ordinary logits and for large ones, are finite: as in Darknet a delta
    that is not gives no gradient."""
    head = replace(network().heads[0], **keys)
    for size in (1, 8):
        logits = (random_case(images=2)[0] * size).requires_grad_()
        terms = DarknetLoss([head])([logits], targets)
        terms.total.backward()
        assert terms.total.isfinite() and logits.grad.isfinite().all() and logits.grad.any()


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


def test_box_deltas_of_a_crowd_add_up_in_one_order():
    """From 8,192 of them on torch would add by several threads, in the order in which these run."""
    boxes = torch.rand(20_000, 6, generator=torch.Generator().manual_seed(0))
    boxes[:, :2], logits = 0, random_case(images=1)[0]
    results = [gradients(network(), logits, boxes)[0] for _ in range(10)]
    assert all(torch.equal(results[0], each) for each in results)
