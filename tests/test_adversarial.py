"""What self-adversarial training does in an update; the attack's deltas are in test_loss.py.
Source: Darknet's src/network_kernels.cu, train_network_datum_gpu."""

import copy

import pytest
import torch
from conftest import settled
from test_updates import batches, network

from yolov4 import DarknetLoss
from yolov4.loss import attack_deltas, attack_rate
from yolov4.training import Updater


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
