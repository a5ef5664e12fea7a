"""The .weights files: order of the values, both headers, partial files, every file that is unfit.
Source: ../shared/darknet.md (Files); Darknet's src/parser.c, save_weights_upto."""

import struct

import numpy as np
import pytest
import torch
from conftest import shared_files, write_seeded_weights

from yolov4.graph import plan_layers
from yolov4.model import Darknet
from yolov4.networks import build
from yolov4.weights import load_weights, save_weights

TINY = """[net] width=8 height=8 channels=3
[convolutional] batch_normalize=1 filters=2
[convolutional] filters=2 size=3 pad=1 groups=2
[shortcut] from=-2 weights_type=per_channel""".replace(" ", "\n")


def write(path, values, version=(0, 2, 5), seen=0, wide=True):
    header = struct.pack("<3i" + ("q" if wide else "i"), *version, seen)
    path.write_bytes(header + np.asarray(values, "<f4").tobytes())
    return path


def fresh(classes=3, seed=0):
    return Darknet(build("shapes", classes=classes), torch.Generator().manual_seed(seed))


def count(model, layers=None):
    return sum(layer.parameters for layer in model.plan[:layers])


def values(model, start=0, end=None):
    """Parameters and running statistics of some layers, in one dict."""
    state = torch.nn.ModuleList(model.layers[start:end]).state_dict()
    return {key: value for key, value in state.items() if "num_batches" not in key}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def seeded(tmp_path):
    path = tmp_path / "seeded.weights"
    write_seeded_weights(path, build("shapes"), 5)
    return path


def test_values_are_in_darknets_order(tmp_path):
    model = Darknet.from_cfg(text=TINY)
    record = load_weights(model, write(tmp_path / "x.weights", range(1, 39)))
    (convolution, norm, _), (grouped, _, _), shortcut = model.layers
    assert norm.bias.tolist() == [1, 2] and norm.weight.tolist() == [3, 4]
    assert norm.running_mean.tolist() == [5, 6] and norm.running_var.tolist() == [7, 8]
    assert convolution.weight.flatten(1).tolist() == [[9, 10, 11], [12, 13, 14]]
    assert grouped.bias.tolist() == [15, 16]
    assert grouped.weight.flatten(1).tolist() == [[*range(17, 26)], [*range(26, 35)]]
    assert shortcut.weight.tolist() == [[35, 36], [37, 38]]
    assert (record.layers, record.of) == (3, 3)


@pytest.mark.parametrize(
    ("version", "seen", "wide"),
    [((0, 2, 5), 2**40, True), ((1, 0, 0), 7, True), ((0, 1, 0), 32_013_312, False)],
)
def test_load_then_save_gives_the_same_bytes(version, seen, wide, tmp_path):
    model, path, again = fresh(), tmp_path / "x.weights", tmp_path / "again.weights"
    write(path, np.random.default_rng(1).random(count(model)), version, seen, wide)
    record = load_weights(model, path)
    assert (record.seen, record.layers, record.of) == (seen, len(model.plan), len(model.plan))
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
    for name, size in (("yolov4", 257_717_640), ("yolov4-tiny", 24_251_276)):
        assert 20 + 4 * sum(layer.parameters for layer in plan_layers(build(name))) == size


@pytest.mark.parametrize(("upto", "classes"), [(12, 3), (54, 7)])
def test_partial_file_loads_the_first_layers_for_any_classes(upto, classes, tmp_path, seeded):
    whole, model, untouched = fresh(), fresh(classes), fresh(classes)
    load_weights(whole, seeded)
    path = tmp_path / "x.conv"
    save_weights(whole, path, upto=upto)
    assert path.stat().st_size == 20 + 4 * count(model, upto)
    record = load_weights(model, path)
    assert record.layers == upto and f"{upto} of {len(model.plan)} layers" in str(record)
    assert same(values(model, 0, upto), values(whole, 0, upto))
    assert same(values(model, upto), values(untouched, upto))


def test_what_cannot_be_saved_leaves_the_file_before(tmp_path, seeded):
    model, before = fresh(), seeded.read_bytes()
    load_weights(model, seeded)
    for upto in (0, -1, 10_000):
        with pytest.raises(ValueError, match="upto="):
            save_weights(model, seeded, upto=upto)
    with pytest.raises(ValueError, match="fused"):
        save_weights(model.fuse(), seeded)
    model = fresh()
    model.layers[0][1].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="layer 0 has non-finite values"):
        save_weights(model, seeded)
    assert seeded.read_bytes() == before and [seeded] == list(tmp_path.iterdir())


UNFIT = {
    "too long": lambda path: path.write_bytes(path.read_bytes() + bytes(4)),
    "too long by a byte": lambda path: path.write_bytes(path.read_bytes() + bytes(1)),
    "cut by a float": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "only a header": lambda path: write(path, []),
    "empty": lambda path: path.write_bytes(b""),
    "other classes": lambda path: save_weights(fresh(80), path),
    "NaN": lambda path: write(path, [np.nan] * count(fresh())),
    "seen below 0": lambda path: path.write_bytes(
        path.read_bytes()[:12] + bytes([255] * 8) + path.read_bytes()[20:]
    ),
    "HTML": lambda path: path.write_text("\n<!DOCTYPE html><html>Quota exceeded"),
    "a checkpoint": lambda path: torch.save({"a": torch.zeros(9)}, path),
    "a photograph": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" * 99),
}


@pytest.mark.parametrize("make", UNFIT.values(), ids=UNFIT)
def test_file_that_does_not_fit_is_refused_and_nothing_is_loaded(make, seeded):
    model = fresh()
    make(seeded)
    with pytest.raises(ValueError) as caught:
        load_weights(model, seeded)
    assert str(caught.value).startswith(f"{seeded}: ") and "\n" not in str(caught.value)
    assert same(values(model), values(fresh()))
    save_weights(model, seeded)
    assert seeded.read_bytes()[:20] == struct.pack("<3iq", 0, 2, 5, 0)
