"""The .weights files: order of the values, both headers, partial files, and every file that does not fit.
Source: ../shared/darknet.md (Files); Darknet's src/parser.c, save_weights_upto."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from conftest import shared_files

from yolov4.blueprint import build
from yolov4.model import Darknet
from yolov4.plan import plan_layers
from yolov4.weights import load_weights, save_weights

TINY = """[net]
width=8
height=8
channels=3
[convolutional]
batch_normalize=1
filters=2
size=1
activation=leaky
[convolutional]
filters=2
size=3
pad=1
groups=2
activation=linear
[shortcut]
from=-2
weights_type=per_channel
weights_normalization=softmax
activation=linear
"""


def write(path, values, version=(0, 2, 5), seen=0, wide=True):
    header = struct.pack("<3i", *version) + struct.pack("<q" if wide else "<i", seen)
    path.write_bytes(header + np.asarray(values, "<f4").tobytes())
    return path


def fresh(classes=3):
    return Darknet(build("shapes", classes=classes, max_batches=1000), torch.Generator().manual_seed(0))


def count(model, layers=None):
    return sum(layer.parameters for layer in model.plan[:layers])


@pytest.fixture
def seeded(tmp_path, write_seeded_weights):
    path = tmp_path / "seeded.weights"
    write_seeded_weights(path, build("shapes"), 5)
    return path


def test_values_are_in_darknets_order(tmp_path):
    model = Darknet.from_cfg(text=TINY)
    path = write(tmp_path / "x.weights", range(1, 39))
    record = load_weights(model, path)
    (convolution, normalisation, _), (grouped, _, _), shortcut = model.layers
    assert normalisation.bias.tolist() == [1, 2] and normalisation.weight.tolist() == [3, 4]
    assert normalisation.running_mean.tolist() == [5, 6] and normalisation.running_var.tolist() == [7, 8]
    assert convolution.weight.flatten(1).tolist() == [[9, 10, 11], [12, 13, 14]]
    assert grouped.bias.tolist() == [15, 16]
    assert grouped.weight.flatten(1).tolist() == [[*range(17, 26)], [*range(26, 35)]]
    assert shortcut.weight.tolist() == [[35, 36], [37, 38]]
    assert (record.layers, record.of) == (3, 3)


def test_implicit_values_stand_in_their_place(tmp_path):
    gate = "[implicit]\nfilters=2\n[scale_channels]\nfrom=0\n[shortcut]\nfrom=-4"
    model = Darknet.from_cfg(text=TINY.replace("[shortcut]\nfrom=-2", gate))
    path = write(tmp_path / "x.weights", range(1, 41))
    load_weights(model, path)
    assert model.layers[2].weight.flatten().tolist() == [35, 36]
    assert model.layers[4].weight.tolist() == [[37, 38], [39, 40]]
    save_weights(model, tmp_path / "y.weights")
    assert path.read_bytes() == (tmp_path / "y.weights").read_bytes()


def test_layer_that_a_file_lacks_keeps_its_values(tmp_path):
    """dontload=1: the file goes on with the next layer; so Darknet reads a file made for it."""
    text = TINY.replace("groups=2", "groups=2\ndontload=1")
    model = Darknet.from_cfg(text=text)
    before = model.layers[1][0].weight.clone()
    record = load_weights(model, write(tmp_path / "x.weights", range(1, 19)))
    assert (record.layers, record.of) == (2, 3)
    assert torch.equal(model.layers[1][0].weight, before)
    assert model.layers[2].weight.tolist() == [[15, 16], [17, 18]]
    save_weights(model, tmp_path / "whole.weights")  # what training writes holds every layer, and is read as such
    other = Darknet.from_cfg(text=text)
    assert load_weights(other, tmp_path / "whole.weights").layers == 3
    assert torch.equal(other.layers[1][0].weight, before)


def test_dontloadscales_leaves_scales_and_rolling_averages(tmp_path):
    model = Darknet.from_cfg(text=TINY.replace("size=1", "size=1\ndontloadscales=1", 1))
    load_weights(model, write(tmp_path / "x.weights", range(1, 33)))
    convolution, normalisation, _ = model.layers[0]
    assert normalisation.bias.tolist() == [1, 2] and normalisation.weight.tolist() == [1, 1]
    assert normalisation.running_mean.tolist() == [0, 0] and normalisation.running_var.tolist() == [0, 0]
    assert convolution.weight.flatten(1).tolist() == [[3, 4, 5], [6, 7, 8]]
    assert model.layers[2].weight.tolist() == [[29, 30], [31, 32]]


@pytest.mark.parametrize(
    ("version", "seen", "wide"),
    [
        ((0, 2, 5), 6_400_000, True),
        ((0, 2, 5), 2**40, True),
        ((1, 0, 0), 7, True),
        ((0, 1, 0), 32_013_312, False),
    ],
)
def test_load_then_save_gives_the_same_bytes(version, seen, wide, tmp_path):
    model = fresh()
    values = torch.rand(count(model), generator=torch.Generator().manual_seed(1)).numpy()
    path, again = write(tmp_path / "x.weights", values, version, seen, wide), tmp_path / "again.weights"
    record = load_weights(model, path)
    assert (record.seen, record.version, record.layers, record.of) == (
        seen,
        version,
        len(model.plan),
        len(model.plan),
    )
    save_weights(model, again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", shared_files("models/*/*.weights"))
def test_real_file_is_saved_as_the_same_bytes(path, tmp_path):
    model = Darknet.from_cfg(next(path.parent.glob("*.cfg")))
    load_weights(model, path)
    save_weights(model, tmp_path / "again.weights")
    assert (tmp_path / "again.weights").read_bytes() == path.read_bytes()


def test_saved_file_has_darknets_header_and_the_seen_asked_for(tmp_path):
    model, path = fresh(), tmp_path / "x.weights"
    save_weights(model, path)
    assert path.read_bytes()[:20] == struct.pack("<3iq", 0, 2, 5, 0)
    assert path.stat().st_size == 20 + 4 * count(model)
    save_weights(model, path, seen=64_000)
    assert load_weights(model, path).seen == 64_000
    save_weights(model, path)
    assert load_weights(fresh(), path).seen == 64_000
    assert [file.name for file in tmp_path.iterdir()] == ["x.weights"]


def test_sizes_of_the_published_files_fit():
    layers = plan_layers(build("yolov4"))
    assert 20 + 4 * sum(layer.parameters for layer in layers[:137]) == 170_038_676  # yolov4.conv.137
    assert 20 + 4 * sum(layer.parameters for layer in layers) == 257_717_640
    assert 20 + 4 * sum(layer.parameters for layer in plan_layers(build("yolov4-tiny"))) == 24_251_276


def test_partial_file_loads_the_first_layers_and_leaves_the_rest(tmp_path, seeded):
    whole, model, untouched = fresh(), fresh(), fresh()
    load_weights(whole, seeded)
    path = tmp_path / "x.conv.12"
    save_weights(whole, path, upto=12)
    assert path.stat().st_size == 20 + 4 * count(model, 12)
    record = load_weights(model, path)
    assert record.layers == 12 and record.of == len(model.plan) and f"12 of {record.of} layers" in str(record)
    for index in range(len(model.plan)):
        expected = (whole if index < 12 else untouched).layers[index].state_dict()
        for name, value in model.layers[index].state_dict().items():
            if "num_batches" not in name:
                assert torch.equal(value, expected[name]), f"layer {index} {name}"


def test_partial_file_serves_any_number_of_classes(tmp_path, seeded):
    whole, other = fresh(), fresh(classes=7)
    load_weights(whole, seeded)
    save_weights(whole, tmp_path / "x.conv.54", upto=54)
    load_weights(other, tmp_path / "x.conv.54")
    assert torch.equal(other.layers[53][0].weight, whole.layers[53][0].weight)


@pytest.mark.parametrize("upto", [0, -1, 10_000])
def test_upto_beyond_the_network_is_refused(upto, tmp_path):
    with pytest.raises(ValueError, match=r"upto=.*expected 1.."):
        save_weights(fresh(), tmp_path / "x.weights", upto=upto)
    assert not list(tmp_path.iterdir())


def test_fused_model_is_not_saved(tmp_path, seeded):
    # its convolutions have taken up the batch normalisation: no .cfg describes such a file
    model = fresh()
    load_weights(model, seeded)
    with pytest.raises(ValueError, match="fuse"):
        save_weights(model.fuse(), tmp_path / "x.weights")


def with_classes(path, seeded, classes):
    save_weights(fresh(classes), path)


def resized(floats, extra_bytes=0):
    def make(path, seeded):
        data = seeded.read_bytes()
        length = len(data) - 20 + 4 * floats + extra_bytes
        path.write_bytes(data[:20] + (data[20:] * 2)[:length])

    return make


def zipped(path, seeded):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", "x")


UNFIT = {
    "too long": (resized(1), "too long for"),
    "too long by a byte": (resized(0, 1), "too long for"),
    "cut by a float": (resized(-1), "cut in layer 69"),
    "cut by a byte": (resized(0, -1), "cut in layer 69"),
    "cut in layer 0": (lambda path, _: write(path, range(10)), "cut in layer 0"),
    "fewer classes": (lambda path, _: with_classes(path, _, 1), "weights of 1 classes, but .* has 3 classes"),
    "more classes": (
        lambda path, _: with_classes(path, _, 80),
        "weights of 80 classes, but .* has 3 classes",
    ),
    "HTML": (lambda path, _: path.write_text("<!DOCTYPE html><html>Quota exceeded</html>" * 99), "HTML page"),
    "a checkpoint": (lambda path, _: torch.save({"a": torch.zeros(9)}, path), r"\.pt checkpoint"),
    "a zip": (zipped, "zip"),
    "a cfg": (lambda path, _: path.write_text("[net]\nwidth=32\nheight=32\n"), r"is a \.cfg"),
    "empty": (lambda path, _: path.write_bytes(b""), "has 0 bytes, expected a header"),
    "only a header": (lambda path, _: path.write_bytes(struct.pack("<3iq", 0, 2, 5, 0)), "holds 0 floats"),
    "half a header": (lambda path, _: path.write_bytes(struct.pack("<4i", 0, 2, 5, 0)), "has 16 bytes"),
    "a photograph": (lambda path, _: path.write_bytes(b"\xff\xd8\xff\xe0" * 99), "starts with version"),
}


@pytest.mark.parametrize(("make", "message"), UNFIT.values(), ids=UNFIT)
def test_file_that_does_not_fit_is_refused_and_nothing_is_loaded(make, message, tmp_path, seeded):
    path, model = tmp_path / "bad.weights", fresh()
    make(path, seeded)
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(model, path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    for name, value in fresh().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    save_weights(model, path)
    assert path.read_bytes()[:20] == struct.pack("<3iq", 0, 2, 5, 0)


def test_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(OSError):
        load_weights(fresh(), tmp_path / "none.weights")
