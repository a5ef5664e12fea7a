"""From weights of other classes to one's own: what is loaded, what starts fresh, what stays frozen.
Source: Darknet's stopbackward as users know it; --freeze keeps running statistics too."""
# ruff: noqa: F401, F811 (a fixture of another file)

import dataclasses

import pytest
import torch
from conftest import shared_files, write_seeded_weights
from test_training import trained, training, work, write_cfg

from yolov4.cfg import Yolo, read_cfg
from yolov4.model import Darknet
from yolov4.networks import build
from yolov4.weights import load_weights, save_weights


def with_classes(network, classes):
    """The network with other classes, its filters before the heads with them."""
    sections = list(network.sections)
    for index, section in enumerate(sections):
        if isinstance(section, Yolo):
            sections[index] = dataclasses.replace(section, classes=classes)
            filters = (len(section.mask) or section.num) * (5 + classes)
            sections[index - 1] = dataclasses.replace(sections[index - 1], filters=filters)
    return network._replace(sections=tuple(sections))


def seeded(network):
    return Darknet(network, torch.Generator().manual_seed(1))


def assert_all_but_the_heads(loaded, source, fresh, upto=None):
    """`loaded` has the values of `source`; before its heads and from `upto` on those of `fresh`."""
    before = {head.index - 1 for head in loaded.heads}
    layers = zip(loaded.layers, source.layers, fresh.layers, strict=True)
    for index, (module, its, untouched) in enumerate(layers):
        expected = untouched if index in before or index >= (upto or len(loaded.plan)) else its
        for name, value in module.state_dict().items():
            if "num_batches" not in name:
                assert torch.equal(value, expected.state_dict()[name]), f"layer {index} {name}"


@pytest.mark.parametrize("path", shared_files("models/*/*.weights"))
def test_real_weights_bring_all_but_the_heads(path):
    network = read_cfg(next(path.parent.glob("*.cfg")))
    source, other = Darknet(network), with_classes(network, 7)
    fresh, model = seeded(other), seeded(other)
    load_weights(source, path)
    record = load_weights(model, path, other_classes=True)
    assert (record.classes, model.seen) == (source.heads[0].classes, 0)  # seen were other images
    assert_all_but_the_heads(model, source, fresh)


def test_file_cut_anywhere_never_brings_values_to_the_wrong_place(tmp_path):
    """By its length alone many a cut file would be one of some other number of classes."""
    path, source = tmp_path / "x.weights", Darknet(build("shapes", classes=80))
    write_seeded_weights(path, source.network, 5)
    load_weights(source, path)
    whole, refused, random = path.read_bytes(), 0, torch.Generator().manual_seed(0)
    fresh, model = seeded(build("shapes", classes=3)), seeded(build("shapes", classes=3))
    # the length decides before the first head
    first = 20 + 4 * sum(layer.parameters for layer in model.plan[:54])
    for length in torch.randint(first, len(whole), (40,), generator=random).tolist():
        path.write_bytes(whole[: length - length % 4])
        try:
            record = load_weights(model, path, other_classes=True)
        except ValueError:
            refused += 1
        else:
            assert_all_but_the_heads(model, source, fresh, record.layers + record.left_out)
            model.load_state_dict(fresh.state_dict())
    assert refused > 35  # a cut within the first head is a head of fewer classes


def trained_elsewhere(work, classes=2):
    """Weights for the network of tiny.cfg, of `classes` classes, that have seen 64 images."""
    model = seeded(with_classes(read_cfg(work / "tiny.cfg"), classes))
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.5)
    save_weights(model, work / "start.weights", seen=64)
    return model, str(work / "start.weights")


def test_training_from_other_classes_starts_at_0_and_says_so(work):
    source, weights = trained_elsewhere(work, classes=9)
    said = []
    run = training(work, say=said.append, weights=weights)
    assert run.progress.iteration == 0
    line = next(line for line in said if line.startswith(weights))
    assert "4 of 5 layers of 9 classes" in line and "starts at iteration 0" in line
    assert torch.equal(run.model.layers[2][0].weight, source.layers[2][0].weight)


@pytest.mark.parametrize("freeze", [1, 3])
def test_frozen_layers_keep_every_bit_and_the_others_learn(work, freeze):
    write_cfg(work, iterations=3)
    text = (work / "tiny.cfg").read_text().replace("burn_in=4", "burn_in=0\nadversarial_lr=.05")
    (work / "tiny.cfg").write_text(text)  # the third iteration starts with an attack
    source, weights = trained_elsewhere(work)
    options = {"weights": weights, "freeze": freeze, "ema": 0.9, "clear": True, "valid": None}
    trained(work, "run", **options, save_every=2)
    (work / "runs/run/previous.pt").rename(work / "runs/run/last.pt")  # a resumed run goes on so
    run = training(work, resume=True, **options)
    run.run()
    averaged = run.updater.averaged.state_dict()
    before = source.state_dict()
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name]) == (int(name.split(".")[1]) < freeze), name
        assert torch.equal(averaged[name], value) or int(name.split(".")[1]) >= freeze, name


def test_freezing_too_much_is_refused(work):
    model, weights = trained_elsewhere(work)
    for freeze, upto in ((4, None), (-1, None), (3, 2), (1, 0)):
        save_weights(model, weights, upto=upto or None)
        with pytest.raises(ValueError, match=f"--freeze {freeze}"):
            training(work, weights=None if upto == 0 else weights, freeze=freeze)
