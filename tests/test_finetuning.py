"""From weights of other classes to one's own: what is loaded, what starts fresh, what stays frozen.
Source: Darknet's stopbackward and train_only_bn as users know them; `--freeze` keeps the rolling averages too."""

import dataclasses
import signal

import pytest
import torch
from conftest import shared_files
from test_training import finished, settings, started, wait_for, work, write_cfg  # noqa: F401

from yolov4.blueprint import build
from yolov4.cfg import read_cfg
from yolov4.distributed import rolling_averages
from yolov4.model import Darknet
from yolov4.sections import Convolutional, Yolo
from yolov4.training import Training
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


def assert_all_but_the_heads(loaded, source, fresh, upto=None):
    """`loaded` has the values of `source` below `upto`, but before its heads and beyond those of `fresh`."""
    before = {head.index - 1 for head in loaded.heads}
    for index, (module, its, untouched) in enumerate(zip(loaded.layers, source.layers, fresh.layers, strict=True)):
        expected = untouched if index in before or index >= (upto or len(loaded.plan)) else its
        for name, value in module.state_dict().items():
            if "num_batches" not in name:
                assert torch.equal(value, expected.state_dict()[name]), f"layer {index} {name}"


@pytest.mark.parametrize(("preset", "its_classes", "classes"), [("shapes", 80, 3), ("shapes", 3, 80),
                                                                ("shapes", 2, 1), ("yolov4-tiny", 80, 5)])  # fmt: skip
def test_weights_of_other_classes_bring_all_but_the_heads(tmp_path, write_seeded_weights, preset, its_classes, classes):
    write_seeded_weights(tmp_path / "x.weights", build(preset, classes=its_classes), 5)
    source = Darknet(build(preset, classes=its_classes))
    load_weights(source, tmp_path / "x.weights")
    save_weights(source, tmp_path / "x.weights", seen=640_000)
    fresh, model = (Darknet(build(preset, classes=classes), torch.Generator().manual_seed(1)) for _ in range(2))
    with pytest.raises(ValueError, match=rf"weights of {its_classes} classes, but .* has {classes} classes"):
        load_weights(model, tmp_path / "x.weights")
    record = load_weights(model, tmp_path / "x.weights", other_classes=True)
    assert_all_but_the_heads(model, source, fresh)
    assert (record.classes, record.layers, record.seen) == (its_classes, len(model.plan) - 2, 640_000)
    assert f"{its_classes} classes; the 2 before the heads start fresh" in str(record) and "the rest" not in str(record)
    assert model.seen == 0  # those images were of other data


@pytest.mark.parametrize("path", shared_files("models/*/*.weights"))
def test_real_weights_bring_all_but_the_heads(path):
    network = read_cfg(next(path.parent.glob("*.cfg")))
    source, other = Darknet(network), with_classes(network, 7)
    fresh, model = (Darknet(other, torch.Generator().manual_seed(1)) for _ in range(2))
    load_weights(source, path)
    assert load_weights(model, path, other_classes=True).classes == source.heads[0].classes
    assert_all_but_the_heads(model, source, fresh)


def test_partial_file_that_ends_between_the_heads(tmp_path, write_seeded_weights):
    path, network = tmp_path / "x.weights", build("shapes", classes=80)
    write_seeded_weights(path, network, 5)
    source = Darknet(network)
    load_weights(source, path)
    for upto in (55, 60, 66):
        save_weights(source, path, upto=upto)
        fresh, model = (Darknet(build("shapes", classes=3), torch.Generator().manual_seed(1)) for _ in range(2))
        record = load_weights(model, path, other_classes=True)
        assert (record.classes, record.layers, record.left_out) == (80, upto - 1, 1)
        assert "the rest keeps its values" in str(record)
        assert_all_but_the_heads(model, source, fresh, upto)


def test_file_cut_anywhere_never_brings_values_to_the_wrong_place(tmp_path, write_seeded_weights):
    """By its length alone many a file that was cut between the heads would be one of some other number of classes."""
    path, network = tmp_path / "x.weights", build("shapes", classes=80)
    write_seeded_weights(path, network, 5)
    source, refused, lengths = Darknet(network), 0, torch.Generator().manual_seed(0)
    load_weights(source, path)
    whole = path.read_bytes()
    fresh, model = (Darknet(build("shapes", classes=3), torch.Generator().manual_seed(1)) for _ in range(2))
    first = 20 + 4 * sum(layer.parameters for layer in model.plan[:54])  # the length decides before the first head
    for length in torch.randint(first, len(whole), (40,), generator=lengths).tolist():
        path.write_bytes(whole[: length - length % 4])
        try:
            record = load_weights(model, path, other_classes=True)
        except ValueError:
            refused += 1
        else:
            assert_all_but_the_heads(model, source, fresh, record.layers + record.left_out)
            model.load_state_dict(fresh.state_dict())
    assert refused > 35  # a cut within the first head is a head of fewer classes, and right up to there


def trained_elsewhere(work, classes=2):  # noqa: F811
    """Weights for the network of tiny.cfg, of `classes` classes, that have seen 64 images."""
    network = with_classes(read_cfg(work / "tiny.cfg"), classes)
    model = Darknet(network, torch.Generator().manual_seed(3))
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.5)
    save_weights(model, work / "start.weights", seen=64)
    return model, str(work / "start.weights")


def test_training_from_other_classes_starts_at_0_and_says_so(work):  # noqa: F811
    source, weights = trained_elsewhere(work, classes=9)
    said = []
    run = Training(settings(work, weights=weights), work / "runs/run", say=said.append)
    assert run.progress.iteration == 0
    line = next(line for line in said if line.startswith(weights))
    assert "loaded 4 of 5 layers of 9 classes; the 1 before the heads start fresh; from iteration 0" in line
    assert "other data" in line
    assert torch.equal(run.model.layers[2][0].weight, source.layers[2][0].weight)


@pytest.mark.parametrize("freeze", [1, 3])
def test_frozen_layers_keep_every_bit_and_the_others_learn(work, freeze):  # noqa: F811
    write_cfg(work, iterations=3)
    text = (work / "tiny.cfg").read_text().replace("burn_in=4", "burn_in=0\nadversarial_lr=.05")
    (work / "tiny.cfg").write_text(text)  # the third iteration starts with an attack
    source, weights = trained_elsewhere(work)
    run = Training(settings(work, weights=weights, freeze=freeze, ema=0.9, clear=True), work / "runs/run", say=print)
    run.run()
    for index, (module, before) in enumerate(zip(run.model.layers, source.layers, strict=True)):
        for (name, value), old in zip(module.state_dict().items(), before.state_dict().values(), strict=True):
            assert torch.equal(value, old) == (index < freeze), f"layer {index} {name}"
    ema, model = run.ema.model.layers[:freeze].state_dict(), source.layers[:freeze].state_dict()
    assert all(torch.equal(ema[key], model[key]) for key in model)


def test_killed_and_resumed_stays_frozen(root, work):  # noqa: F811
    write_cfg(work, iterations=20)
    source, weights = trained_elsewhere(work)
    process = started(root, work, "--weights", weights, "--clear", "--freeze", 1, "--save-every", 2, "--eval-every", 0)
    wait_for((work / "runs/tiny/last.pt").exists, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished(root, work, "--resume", "tiny")
    model = Darknet.from_cfg(work / "tiny.cfg")
    load_weights(model, work / "runs/tiny/tiny_last.weights")
    kept, old = model.layers[0].state_dict(), source.layers[0].state_dict()
    assert all(torch.equal(kept[key], old[key]) for key in kept)
    assert not torch.equal(model.layers[2][1].running_var, source.layers[2][1].running_var)


def test_rolling_averages_of_frozen_layers_are_not_joined_over_processes():
    """Joining rounds: what does not move is left out."""
    model = Darknet(build("shapes"))
    last = next(i for i in range(9, 0, -1) if isinstance(model.plan[i].section, Convolutional))
    model.layers[:last].eval()
    moving = {buffer.data_ptr() for buffer, _ in rolling_averages(model)}
    expected = model.layers[last:].named_buffers()
    assert moving == {buffer.data_ptr() for name, buffer in expected if name.endswith(("mean", "var"))}


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (4, r"--freeze 4, but the first head of .*tiny\.cfg is layer 4, expected 0\.\.3"),
        (-1, r"--freeze -1, but"),
        (3, r"--freeze 3, but 1 layers come from --weights, expected as many or more"),
    ],
)
def test_freezing_too_much_is_refused(work, freeze, message):  # noqa: F811
    model, weights = trained_elsewhere(work)
    save_weights(model, weights, upto=2)
    with pytest.raises(ValueError, match=message):
        Training(settings(work, weights=weights, freeze=freeze), work / "runs/run", say=print)


def test_fresh_weights_cannot_be_frozen(work):  # noqa: F811
    with pytest.raises(ValueError, match="--freeze 2, but 0 layers come from --weights"):
        Training(settings(work, freeze=2), work / "runs/run", say=print)


def test_checkpoint_as_weights_names_the_command_that_makes_them(work):  # noqa: F811
    torch.save({}, work / "last.pt")
    with pytest.raises(ValueError, match=r"a \.pt checkpoint .*`python cvt2darknet\.py .*last\.pt` writes one"):
        Training(settings(work, weights=str(work / "last.pt")), work / "runs/run", say=print)
