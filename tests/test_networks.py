"""The networks are upstream's, their files are the committed ones, and OpenCV reads them.
Source: ../shared/darknet/cfg; OpenCV's readNetFromDarknet as a second implementation."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import shared_files, write_seeded_weights

from yolov4 import Darknet, DarknetLoss, decode, load_weights, save_weights
from yolov4.cfg import Convolutional, Yolo, format_cfg, parse_cfg, read_cfg
from yolov4.graph import find_heads, plan_layers
from yolov4.networks import PRESETS, build, cfg_text, project_files, yolov4


@pytest.mark.parametrize("name", ["yolov4", "yolov4-csp", "yolov4-tiny"])
def test_network_equals_upstream_section_by_section(name, shared):
    upstream, ours = read_cfg(shared / f"darknet/cfg/{name}.cfg"), build(name)
    assert ours.net == upstream.net
    assert len(ours.sections) == len(upstream.sections)
    for index, (section, expected) in enumerate(zip(ours.sections, upstream.sections, strict=True)):
        assert section == expected, f"layer {index}"


def test_committed_files_are_what_networks_writes(root):
    written = project_files()
    assert {path.name for path in (root / "cfg").glob("*.cfg")} == written.keys()
    for name, text in written.items():
        committed = (root / "cfg" / name).read_text(encoding="utf-8")
        assert committed == text, f"cfg/{name}: run `python -m yolov4 cfg --all cfg`"
        assert parse_cfg(committed)[:2] == PRESETS[name.removesuffix(".cfg")]()[:2]


@pytest.mark.parametrize("name", PRESETS)
def test_any_number_of_classes_and_size_fits_together(name):
    for classes in (1, 20):
        network = build(name, classes=classes, width=96, height=160)
        heads = find_heads(network, plan_layers(network))
        assert {head.classes for head in heads} == {classes}


def test_training_length_follows_the_classes_as_advised():
    for changes, expected in (
        ({"classes": 1}, (6000, (4800, 5400), 1000)),
        ({"classes": 10}, (20_000, (16_000, 18_000), 1000)),
        ({"classes": 10, "max_batches": 300}, (300, (240, 270), 50)),
        ({"max_batches": 300, "steps": (1, 2), "burn_in": 9}, (300, (1, 2), 9)),
    ):
        net = yolov4(**changes).net
        assert (net.max_batches, net.steps, net.burn_in) == expected


def test_what_makes_no_network_is_refused():
    few = {"anchors": ((1, 2), (3, 4))}
    for name, changes in (
        ("v5", {}),
        *(("yolov4", c) for c in ({"width": 600}, {"classes": 0}, few)),
    ):
        with pytest.raises(ValueError, match="expected"):
            build(name, **changes)


@pytest.mark.parametrize("name", ["shapes", "yolov4-tiny", "yolov4-csp"])
def test_opencv_reads_cfg_and_weights_and_computes_the_same(name, tmp_path):
    changes = {"classes": 3, "width": 64, "height": 96}
    network = build(name, **changes)
    model = Darknet(network).eval()
    seeded, weights, cfg = (tmp_path / file for file in ("seeded.weights", "x.weights", "x.cfg"))
    write_seeded_weights(seeded, network, seed=3)
    load_weights(model, seeded)
    save_weights(model, weights)
    cfg.write_text(cfg_text(name, name, **changes), encoding="utf-8")
    images = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    net.setInput(images.numpy())
    outputs = net.getUnconnectedOutLayersNames()
    outputs = dict(zip(outputs, net.forward(outputs), strict=True))
    with torch.no_grad():
        logits = model(images)
    assert outputs.keys() == {f"yolo_{head.index}" for head in model.heads}
    for values, head in zip(logits, model.heads, strict=True):
        # OpenCV's rows, cell by cell: cx, cy, w, h, objectness, objectness * class where above 0.2
        boxes, objectness, classes = decode(values, head)
        objectness = objectness[..., None]
        expected = torch.cat((boxes, objectness, objectness * classes), -1)[0]  # (A, h, w, 8)
        expected = expected.permute(1, 2, 0, 3).reshape(-1, 8).numpy()
        found = outputs[f"yolo_{head.index}"].reshape(-1, 8)
        dropped = np.zeros_like(found, bool)
        dropped[:, 5:] = expected[:, 5:] < 0.201
        assert (~dropped[:, 5:]).any() and (found[:, 5:][expected[:, 5:] < 0.199] == 0).all()
        np.testing.assert_allclose(found[~dropped], expected[~dropped], rtol=3e-4, atol=1e-4)


def thin(network):
    """The same layers at 128 x 128, with an eighth of the filters where they are not logits."""
    sections = list(network.sections)
    for index, (section, after) in enumerate(zip(sections, [*sections[1:], None], strict=True)):
        if isinstance(section, Convolutional) and not isinstance(after, Yolo):
            groups = max(1, section.groups // 8)
            sections[index] = replace(section, filters=section.filters // 8, groups=groups)
    net = replace(network.net, width=128, height=128, batch=2, subdivisions=1)
    return network._replace(net=net, sections=tuple(sections))


@pytest.mark.parametrize("path", shared_files("darknet/cfg/*.cfg"))
def test_network_of_the_family_has_gradients_everywhere_and_survives_weights(path, tmp_path):
    generator = torch.Generator().manual_seed(0)
    model = Darknet(thin(read_cfg(path)), generator)
    images = torch.rand(2, 3, 128, 128, generator=generator)
    targets = [[0, 0, 0.5, 0.4, 0.3, 0.5], [0, 1, 0.2, 0.8, 0.1, 0.1], [1, 2, 0.6, 0.6, 0.7, 0.8]]
    targets = torch.tensor(targets)
    DarknetLoss(model.heads, model.net)(model(images), targets).total.backward()
    assert not [name for name, p in model.named_parameters() if not p.grad.any()]
    weights = tmp_path / "thin.weights"
    save_weights(model, weights, seen=2)
    assert weights.stat().st_size == 20 + 4 * sum(layer.parameters for layer in model.plan)
    again = Darknet(parse_cfg(format_cfg(*model.network[:2])))
    assert load_weights(again, weights).layers == len(model.plan)
    own, read = model.state_dict(), again.state_dict()
    kept = [key for key in own if not key.endswith("num_batches_tracked")]
    assert all(torch.equal(own[key], read[key]) for key in kept)
