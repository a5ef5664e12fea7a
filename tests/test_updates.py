"""Updates against ten iterations of Darknet's training; decay, stopbackward, averaged weights,
self-adversarial training.  Source: Darknet's src/network_kernels.cu, train_network_datum_gpu."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import settled
from test_loss import rows_of

from yolov4 import Darknet, DarknetLoss, load_weights, save_weights
from yolov4.loss import attack_deltas, attack_rate
from yolov4.training import Updater

CFG = """
[net] batch=4 subdivisions={subdivisions} width=32 height=32 channels=3 momentum=0.9 decay=0.1
learning_rate=0.01 max_batches=3000 {net}
[convolutional] batch_normalize=1 filters=4 size=3 stride=16 pad=1 activation=leaky {convolution}
[convolutional] filters=7 activation=linear
[yolo] anchors=10,10 classes=2 num=1 iou_loss=ciou
""".replace(" ", "\n")


def network(subdivisions=1, net="", convolution=""):
    text = CFG.format(subdivisions=subdivisions, net=net, convolution=convolution)
    model = Darknet.from_cfg(text=text)
    model.reset_parameters(torch.Generator().manual_seed(1))
    return model


def batches(count, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        images = torch.randint(0, 256, (rows, 3, 32, 32), dtype=torch.uint8, generator=generator)
        targets = torch.tensor([[row, row % 2, 0.3, 0.6, 0.3, 0.4] for row in range(rows)])
        yield images, targets, [[f"{row}.jpg"] for row in range(rows)]


def golden_training(case, folder, device="cpu"):
    """The .weights file after it, the largest change not Darknet's as a share of the largest that
    is, and the losses."""
    model = Darknet.from_cfg(text=case["cfg"]).to(device)
    header = np.array([0, 2, 5, 0, 0], "<i4").tobytes()
    (folder / "before.weights").write_bytes(header + case["weights_before"].tobytes())
    load_weights(model, folder / "before.weights")
    rows = model.net.batch // model.net.subdivisions

    def mini_batches():
        for start in range(0, len(case["images"]), rows):
            images = torch.from_numpy(case["images"][start : start + rows])
            yield images, rows_of(case["truths"][start : start + rows]), []

    trained, stream = Updater(model), mini_batches()
    losses = [trained.update(i + 1, stream).loss for i in range(case["iterations"])]
    save_weights(model, folder / "after.weights", seen=int(case["seen_after"][0]))
    written = (folder / "after.weights").read_bytes()
    away = np.abs(np.frombuffer(written[20:], "<f4") - case["weights_after"]).max()
    change = np.abs(case["weights_after"] - case["weights_before"]).max()
    return written, away / change, losses


TOLERANCES = {"plain": 1e-5, "batchnorm": 5e-3}


@pytest.mark.parametrize("name", TOLERANCES)
def test_ten_iterations_end_with_darknets_weights(golden, tmp_path, name):
    case = golden(f"train/{name}.npz")
    written, away, losses = golden_training(case, tmp_path)
    assert away <= TOLERANCES[name]
    assert losses == pytest.approx(list(case["loss"]), rel=1e-3)
    assert np.frombuffer(written[:12], "<i4").tolist() == list(case["header_after"])
    assert np.frombuffer(written[12:20], "<i8")[0] == case["seen_after"][0]


def test_subdivisions_give_the_gradient_of_the_whole_batch():
    """Without batch normalisation two mini-batches of two images are one of four."""
    whole, cut = network(), network(subdivisions=2)
    for model in (whole, cut):
        model.layers[0][1] = torch.nn.Identity()
    ((images, targets, files),) = batches(1, 4)
    Updater(whole).update(1, iter([(images, targets, files)]))
    first, second = targets.split(2)
    second = second - torch.eye(6)[0] * 2  # the index of the image
    parts = zip(images.split(2), (first, second), (files[:2], files[2:]), strict=True)
    Updater(cut).update(1, parts)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_decay_acts_on_convolutions_alone(monkeypatch):
    model = network()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trained = Updater(model)
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_, **__: None)
    trained.update(1, batches(1, 4))
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.01 * 0.1) if parameter.dim() == 4 else before[name]
        assert torch.allclose(parameter, expected), name


def test_stopbackward_freezes_the_first_iterations():
    model = network(convolution="stopbackward=2")
    trained, stream, weight = Updater(model), batches(3, 4), model.layers[0][0].weight
    trained.optimiser.param_groups[0]["weight_decay"] = 0.0
    start = weight.clone()
    for iteration in (1, 2, 3):
        trained.update(iteration, stream)
        assert torch.equal(weight, start) == (iteration < 3)


def test_mini_batches_are_counted_within_a_batch():
    """CmBN and DropBlock are told before each forward pass where training stands."""
    model = network(subdivisions=2, convolution="cbn=1")
    trained, stream, seen = Updater(model), batches(4, 2), []
    model.register_forward_pre_hook(lambda *_: seen.append(model.layers[0][1].mini_batch))
    trained.update(1, stream)
    trained.update(2, stream)
    assert seen == [0, 1, 0, 1]


@pytest.mark.parametrize("name", ["layers.1.0.bias", "layers.0.1.running_var"])
def test_averaged_weights_with_a_decay_follow_its_formula(name):
    model = network()
    trained, stream = Updater(model, ema=0.9), batches(3, 4)
    expected = model.state_dict()[name].clone()
    for iteration in (1, 2, 3):
        keep = 0.9 * (1 - math.exp(-iteration / 2000))
        trained.update(iteration, stream)
        expected = keep * expected + (1 - keep) * model.state_dict()[name]
    assert torch.allclose(trained.averaged.state_dict()[name], expected)


def test_ema_alpha_averages_the_second_half_and_takes_over_before_the_end():
    model = network(net="ema_alpha=0.5")
    trained, weight, values = Updater(model), model.layers[1][0].bias, {}
    for iteration in (1499, 1500, 1501, 2000, 2001):
        torch.nn.init.constant_(weight, iteration)
        trained._average(iteration)
        averaged = trained.averaged and trained.averaged.layers[1][0].bias[0].item()
        values[iteration] = averaged, weight[0].item()
    expected = {1499: (None, 1499), 1500: (1500, 1500), 1501: (1500.5, 1501)}  # starts as a copy
    expected |= {2000: (1500.5, 1500.5), 2001: (1500.5, 2001)}  # in 2000 it replaces the weights
    assert values == expected


@pytest.mark.parametrize("convolution", ["", "stopbackward=1"])
def test_an_update_trains_on_attacked_images(convolution, monkeypatch):
    """The first pass, with batch norm in eval mode, moves the images along the deltas and leaves
    gradients in biases without batch norm; below a stopped layer the images stay."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.zeros(()))  # every draw attacks
    model = settled(network(net="adversarial_lr=0.5", convolution=convolution))
    before, seen = copy.deepcopy(model), []
    model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().clone()))
    ((images, targets, files),) = batches(1, 4)
    Updater(model).update(3000, iter([(images, targets, files)]))
    first, second = seen
    assert torch.equal(first, images / 255)

    first.requires_grad_()
    logits = before.eval()(first)[0]
    deltas = attack_deltas(logits.detach(), model.heads[0])
    logits.backward(deltas)
    rate = attack_rate(3000, model.net)
    moved = first.detach() if convolution else (first + rate * first.grad).clamp(0, 1).detach()
    torch.testing.assert_close(second, moved)

    before.zero_grad()
    before.train()
    before.frozen = model.frozen
    DarknetLoss(model.heads)(before(second), targets).total.backward()
    before.layers[1][0].bias.grad -= deltas.sum((0, 2, 3)) / 4
    for (name, found), expected in zip(model.named_parameters(), before.parameters(), strict=True):
        wanted = torch.zeros_like(found) if expected.grad is None else expected.grad
        torch.testing.assert_close(found.grad, wanted, rtol=1e-4, atol=1e-7, msg=name)


def fill_memory(model, images, times=2):
    """From so many mini-batches of more than so many images on, backward finds memory full."""
    large = []

    def forward(_, arguments, output):
        if len(output) > images and output.requires_grad:
            large.append(output)
            if len(large) >= times:
                output.register_hook(full)

    def full(_):
        raise torch.OutOfMemoryError

    model.layers[-2].register_forward_hook(forward)


def cut(batches, rows):
    for images, targets, files in batches:
        for first in range(0, len(images), rows):
            own = targets[(targets[:, 0] >= first) & (targets[:, 0] < first + rows)].clone()
            own[:, 0] -= first
            yield images[first : first + rows], own, files[first : first + rows]


@pytest.mark.parametrize(("batch", "rows", "less"), [(8, 4, 1), (12, 6, 3), (18, 9, 3)])
def test_an_update_without_memory_is_the_same_in_smaller_mini_batches(batch, rows, less):
    """Bit for bit, although it had changed gradients and running statistics, and drawn numbers."""
    models = []
    for images in (rows, less):
        model = network(batch // images, convolution="cbn=1\n[dropout]\nprobability=.5")
        models.append(model)
        model.network = model.network._replace(net=replace(model.net, batch=batch))
        if images == rows:
            fill_memory(model, less)
        trained, stream = Updater(model), cut(batches(6, rows), images)
        for iteration in (1, 2, 3):
            trained.update(iteration, stream)
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert models[0].net == models[1].net
