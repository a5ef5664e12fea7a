"""Self-adversarial training: the attack's deltas by Darknet's loop, and what the pass may change.
Source: Darknet's src/yolo_layer.c (process_batch), network_kernels.cu (train_network_datum_gpu)."""

import math

import pytest
import torch
from conftest import settled
from test_updates import batches, network, updater

from yolov4 import Darknet, decode
from yolov4.adversarial import attack_deltas, attack_rate

HEAD = """
[net]
width=96
height=64
channels=3
[convolutional]
size=1
stride=32
filters=16
activation={activation}
[yolo]
mask=1,2
anchors=10,10, 20,30, 60,40
classes=3
num=3
scale_x_y=1.1
obj_normalizer=0.4
iou_thresh={iou_thresh}
new_coords={new_coords}
"""


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def loop_over_predictions(logits, head):
    """Darknet's branch, value by value -> delta like logits; the w, h of a box are those of `decode`."""
    delta, sizes = torch.zeros_like(logits), decode(logits, head).boxes[..., 2:]
    for image, anchor, row, column in torch.ones_like(sizes[..., 0]).nonzero().tolist():
        at = (image, slice(anchor * 8, anchor * 8 + 8), row, column)
        raw = logits[at].tolist()
        held = [1.1 * sigmoid(v) - 0.05 for v in raw[:2]]
        held += [sigmoid(v) if head.new_coords else v for v in raw[2:4]] + [sigmoid(v) for v in raw[4:]]
        scale, objectness, classes = float(sizes[image, anchor, row, column].prod()) ** 0.5, held[4], held[5:]
        seen = [p * objectness > 0.25 for p in classes]
        found = [scale * ((0 if s else 1) - p) for s, p in zip(seen, classes, strict=True)] if any(seen) else [0] * 3
        share = max(sum(d > 0 for d in found), 1) if head.iou_thresh < 1 else 1
        box = [-scale * v / share if any(seen) else 0 for v in held[:4]]
        values = torch.tensor([*box, -scale * 0.4 * objectness, *found])
        slope = torch.tensor([sigmoid(v) * (1 - sigmoid(v)) for v in raw]) if head.new_coords else 1
        delta[at] = values * slope
    return delta


@pytest.mark.parametrize("iou_thresh", [1, 0.2])
@pytest.mark.parametrize("new_coords", [0, 1])
def test_attack_is_darknets_loop_over_predictions(new_coords, iou_thresh):
    keys = {"new_coords": new_coords, "iou_thresh": iou_thresh}
    model = Darknet.from_cfg(text=HEAD.format(activation="logistic" if new_coords else "linear", **keys))
    logits = torch.randn(2, 16, 2, 3, generator=torch.Generator().manual_seed(4)) * 1.5 + 0.5
    expected = loop_over_predictions(logits, model.heads[0])
    assert (expected.view(2, 2, 8, 2, 3)[:, :, 0] == 0).any() and (expected.view(2, 2, 8, 2, 3)[:, :, 0] != 0).any()
    torch.testing.assert_close(attack_deltas(logits, model.heads[0]), expected, rtol=1e-4, atol=1e-5)


def test_a_prediction_that_overflowed_pulls_nowhere():
    """Where no object is seen, a side of exp(100) is no number in float32; the others pull as they did."""
    model = Darknet.from_cfg(text=HEAD.format(activation="linear", new_coords=0, iou_thresh=1))
    logits = torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(4))
    before = attack_deltas(logits, model.heads[0])
    logits[0, 2, 0, 0], logits[0, 3, 0, 0] = 100, 100
    after = attack_deltas(logits, model.heads[0])
    assert after.isfinite().all() and not after[0, 4, 0, 0].any()
    after[0, :8, 0, 0] = before[0, :8, 0, 0]
    assert torch.equal(after, before)


def test_attacks_begin_after_burn_in_and_grow():
    net = network(net="adversarial_lr=0.05\nburn_in=10").net
    assert [attack_rate(iteration, net) for iteration in (1, 11)] == [0, 0]
    assert attack_rate(12, net) == pytest.approx(0.05 * 11 / 3000)
    assert attack_rate(3000, network().net) == 0


def attacking(monkeypatch, **options):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.zeros(()))  # every draw attacks
    return updater(settled(network(net="adversarial_lr=0.05", **options)))


def test_attack_moves_the_images_by_their_gradient_and_spares_the_weights(monkeypatch):
    trained = attacking(monkeypatch, subdivisions=2)
    model = trained.model
    ((images, _, _),) = batches(1, 4)
    images = images.float() / 255
    before = {name: value.clone() for name, value in model.state_dict().items()}
    altered = trained._attacked(images, 0.5)
    model.eval()
    probe = images.clone().requires_grad_()
    logits = model(probe)[0]
    logits.backward(attack_deltas(logits.detach(), model.heads[0]))
    torch.testing.assert_close(altered, (images + 0.5 * probe.grad).clamp(0, 1))
    assert not torch.equal(altered, images)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_attack_leaves_gradients_where_darknet_does(monkeypatch):
    """In the biases that no batch normalisation follows, and nowhere else."""
    trained = attacking(monkeypatch, subdivisions=2)
    ((images, _, _),) = batches(1, 4)
    model = trained.model
    trained._attacked(images.float() / 255, 0.5)
    with torch.no_grad():
        logits = model.eval()(images.float() / 255)[0]
    expected = -attack_deltas(logits, model.heads[0]).sum((0, 2, 3)) / 8  # batch of 8 images
    for name, parameter in model.named_parameters():
        wanted = expected if name == "layers.1.0.bias" else torch.zeros_like(parameter)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-7, msg=name)


def test_second_pass_trains_on_the_altered_images(monkeypatch):
    trained = attacking(monkeypatch)
    seen, forward = [], trained.model.forward
    trained.model.forward = lambda images: (seen.append((images.detach().clone(), trained.model.layers[0][1].training)),
                                            forward(images))[1]  # fmt: skip
    trained.update(3000, batches(1, 4))
    (first, training_first), (second, training_second) = seen
    assert not torch.equal(first, second) and (training_first, training_second) == (False, True)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.ones(()))
    trained.update(3000, batches(1, 4))
    assert len(seen) == 3


def test_images_stay_as_they_are_below_a_frozen_layer(monkeypatch):
    trained = attacking(monkeypatch, convolution="stopbackward=1")
    trained.model.frozen = 0
    ((images, _, _),) = batches(1, 4)
    images = images.float() / 255
    assert torch.equal(trained._attacked(images, 0.5), images)
