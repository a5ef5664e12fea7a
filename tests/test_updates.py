"""Updates against ten iterations of Darknet's training; what decays, what is frozen, the running average."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from yolov4 import Darknet, load_weights, save_weights
from yolov4.distributed import Processes
from yolov4.ema import Ema
from yolov4.updates import NonFiniteLoss, Updater

CFG = """
[net]
batch=4
subdivisions={subdivisions}
width=32
height=32
channels=3
momentum=0.9
decay=0.1
learning_rate=0.01
max_batches=3000
{net}
[convolutional]
batch_normalize=1
filters=4
size=3
stride=16
pad=1
activation=leaky
{convolution}
[convolutional]
filters=7
activation=linear
[yolo]
anchors=10,10
classes=2
num=1
iou_loss=ciou
"""


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


def updater(model, **options):
    return Updater(model, model.net, Processes(torch.device("cpu")), **options)


@pytest.mark.parametrize(("name", "tolerance"), [("plain", 1e-5), ("batchnorm", 5e-3)])
def test_ten_iterations_end_with_darknets_weights(golden, tmp_path, name, tolerance):
    case = golden(f"train/{name}.npz")
    model = Darknet.from_cfg(text=case["cfg"])
    header = np.array([0, 2, 5], "<i4").tobytes() + np.array([0], "<i8").tobytes()
    (tmp_path / "before.weights").write_bytes(header + case["weights_before"].tobytes())
    load_weights(model, tmp_path / "before.weights")
    rows = model.net.batch // model.net.subdivisions

    def mini_batches():
        for start in range(0, len(case["images"]), rows):
            targets = [
                [row, truth[4], *truth[:4]]
                for row, truths in enumerate(case["truths"][start : start + rows])
                for truth in truths[: np.argmax(truths[:, 0] == 0) if (truths[:, 0] == 0).any() else None]
            ]
            images = torch.from_numpy(case["images"][start : start + rows])
            yield images, torch.tensor(np.array(targets, "f4")).reshape(-1, 6), []

    trained, stream = updater(model), mini_batches()
    losses = [trained.update(iteration, stream).loss for iteration in range(1, case["iterations"] + 1)]
    save_weights(model, tmp_path / "after.weights", seen=int(case["seen_after"][0]))
    written = (tmp_path / "after.weights").read_bytes()
    after = np.frombuffer(written[20:], "<f4")
    change = np.abs(case["weights_after"] - case["weights_before"]).max()
    assert np.abs(after - case["weights_after"]).max() <= tolerance * change
    assert losses == pytest.approx(list(case["loss"]), rel=1e-3)
    assert np.frombuffer(written[:12], "<i4").tolist() == list(case["header_after"])
    assert np.frombuffer(written[12:20], "<i8")[0] == case["seen_after"][0]


def test_subdivisions_give_the_gradient_of_the_whole_batch():
    """Without batch normalisation two mini-batches of two images are one of four."""
    whole, cut = network(), network(subdivisions=2)
    for model in (whole, cut):
        model.layers[0][1] = torch.nn.Identity()
    ((images, targets, files),) = batches(1, 4)
    updater(whole).update(1, iter([(images, targets, files)]))
    halves = []
    for start in (0, 2):
        own = targets[(targets[:, 0] >= start) & (targets[:, 0] < start + 2)].clone()
        own[:, 0] -= start
        halves.append((images[start : start + 2], own, files[start : start + 2]))
    updater(cut).update(1, iter(halves))
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_mini_batch_of_more_images_is_an_update_of_their_mean():
    """dynamic_minibatch: six images in place of batch=4 move the weights as batch=6 does, decay included."""
    ((images, targets, files),) = batches(1, 6)
    models = [network(), network()]
    models[1].network = models[1].network._replace(net=replace(models[1].net, batch=6))
    for model in models:
        updater(model).update(1, iter([(images, targets, files)]))
    for grown, plain in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(grown, plain)


def test_decay_acts_on_convolutions_alone():
    model = network()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trained = updater(model)
    trained.loss = lambda logits, targets: type("Terms", (), {"total": sum(x.sum() for x in logits) * 0, "heads": []})()
    trained._report = lambda *_: (0.0, [])
    trained.update(1, batches(1, 4))
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.01 * 0.1) if parameter.dim() == 4 else before[name]
        assert torch.allclose(parameter, expected), name


def test_stopbackward_freezes_the_first_iterations():
    model = network(convolution="stopbackward=2", net="")
    trained, stream = updater(model), batches(3, 4)
    for group in trained.optimiser.param_groups:
        group["weight_decay"] = 0.0
    start = model.layers[0][0].weight.clone()
    trained.update(1, stream)
    trained.update(2, stream)
    assert torch.equal(model.layers[0][0].weight, start)
    trained.update(3, stream)
    assert not torch.equal(model.layers[0][0].weight, start)


def test_train_only_bn_keeps_all_weights_and_moves_the_rolling_averages():
    """Its name promises more: Darknet leaves scales and biases alone too, and lets nothing decay."""
    model = network(convolution="train_only_bn=1")
    before = {name: value.clone() for name, value in model.layers[0].state_dict().items()}
    head = model.layers[1][0].weight.clone()
    updater(model).update(1, batches(1, 4))
    for name, value in model.layers[0].state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(("1.running", "1.num")), name
    assert not torch.equal(model.layers[1][0].weight, head)


def test_mini_batches_are_counted_within_a_batch():
    """CmBN and DropBlock are told before each forward pass where training stands."""
    model = network(subdivisions=2, convolution="cbn=1")
    trained, seen = updater(model), []
    loss = trained.loss
    trained.loss = lambda *given: (seen.append(model.layers[0][1].mini_batch), loss(*given))[1]
    stream = batches(4, 2)
    trained.update(1, stream)
    trained.update(2, stream)
    assert seen == [0, 1, 0, 1]


def test_a_loss_that_is_no_number_names_everything_and_changes_nothing():
    model = network()
    with torch.no_grad():
        model.layers[1][0].bias[2] = float("inf")
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(NonFiniteLoss, match=r"iteration 7 with rate 0\.01 .*class_loss.*0\.jpg, 1\.jpg"):
        updater(model).update(7, batches(1, 4))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_ema_with_a_decay_follows_its_formula():
    model = network()
    average = Ema(model, model.net, decay=0.9)
    names = ("layers.1.0.bias", "layers.0.1.running_var")  # rolling averages are averaged too
    expected = {name: model.state_dict()[name].clone() for name in names}
    for iteration in (1, 2, 3):
        keep = 0.9 * (1 - math.exp(-iteration / 2000))
        for name in names:
            value = model.state_dict()[name].add_(1.0)
            expected[name] = keep * expected[name] + (1 - keep) * value
        average.update(model, iteration)
    for name in names:
        assert torch.allclose(average.model.state_dict()[name], expected[name]), name


def test_ema_alpha_runs_in_the_second_half_and_takes_over_before_the_end():
    model = network(net="ema_alpha=0.5")
    average, weight = Ema(model, model.net), model.layers[1][0].bias
    values = {}
    for iteration in (1499, 1500, 1501, 2000, 2001):
        with torch.no_grad():
            weight.fill_(float(iteration))
        average.update(model, iteration)
        values[iteration] = (average.model and average.model.layers[1][0].bias[0].item(), weight[0].item())
    assert values[1499] == (None, 1499)
    assert values[1500] == (1500, 1500)  # starts as a copy
    assert values[1501] == (1500.5, 1501)
    assert values[2000] == (1500.5, 1500.5)  # the average takes the place of the weights
    assert values[2001] == (1500.5, 2001)
