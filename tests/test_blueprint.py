"""The blueprint's networks are upstream's, its files are the committed ones, and OpenCV reads them.
Source: ../shared/darknet/cfg; OpenCV's readNetFromDarknet as a second implementation."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from yolov4.blueprint import PRESETS, build, cfg_text, main, project_files
from yolov4.cfg import parse_cfg, read_cfg, read_data, read_names
from yolov4.decoding import decode
from yolov4.model import Darknet
from yolov4.networks import yolov4, yolov4_csp, yolov4_tiny
from yolov4.plan import find_heads, plan_layers
from yolov4.sections import Convolutional, Yolo
from yolov4.weights import load_weights, save_weights


@pytest.mark.parametrize("compose", [yolov4, yolov4_csp, yolov4_tiny])
def test_blueprint_equals_upstream_section_by_section(compose, shared):
    upstream, ours = read_cfg(shared / f"darknet/cfg/{compose.__name__.replace('_', '-')}.cfg"), compose()
    assert ours.net == upstream.net
    assert len(ours.sections) == len(upstream.sections)
    for index, (section, expected) in enumerate(zip(ours.sections, upstream.sections, strict=True)):
        assert section == expected, f"layer {index}"


def test_committed_files_are_what_the_blueprint_writes(root):
    written = project_files()
    committed = {
        path.name: path.read_text(encoding="utf-8") for path in (root / "cfg").iterdir() if path.suffix != ".recipe"
    }
    assert committed.keys() == written.keys()
    for name, text in written.items():
        assert committed[name] == text, f"cfg/{name}: run `python -m yolov4.blueprint --all cfg`"


@pytest.mark.parametrize("name", PRESETS)
def test_written_file_reads_back_equal(name, root):
    read, built = read_cfg(root / f"cfg/{name}.cfg"), build(name)
    assert (read.net, read.sections) == (built.net, built.sections)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("classes", [1, 20])
def test_any_number_of_classes_and_size_fits_together(name, classes):
    network = build(name, classes=classes, width=96, height=160)
    heads = find_heads(network, plan_layers(network))
    assert {head.classes for head in heads} == {classes}
    logits = Darknet(network)(torch.zeros(1, 3, 160, 96)) if name == "shapes" else []
    for values, head in zip(logits, heads, strict=False):
        assert values.shape == (1, 3 * (5 + classes), 160 // head.stride, 96 // head.stride)


def test_other_anchors_go_to_every_head_in_order():
    anchors = tuple((float(side), float(side)) for side in range(10, 70, 10))
    heads = [section for section in yolov4(anchors=anchors).sections if isinstance(section, Yolo)]
    assert [head.mask for head in heads] == [(0, 1), (2, 3), (4, 5)]
    assert all(head.anchors == anchors and head.num == 6 for head in heads)
    before = [
        s.filters for s in yolov4(anchors=anchors).sections if isinstance(s, Convolutional) and s.activation == "linear"
    ]
    assert before == [2 * 85] * 3


def test_activation_can_be_changed_in_one_place():
    sections = yolov4(activation="swish", neck="swish").sections
    found = [section.activation for section in sections if isinstance(section, Convolutional)]
    assert found.count("swish") == len(found) - 3 and found.count("linear") == 3


def test_training_length_follows_the_classes_as_advised():
    def length(**changes):
        net = yolov4(**changes).net
        return net.max_batches, net.steps, net.burn_in

    assert length() == (500_500, (400_000, 450_000), 1000)
    assert length(classes=1) == (6000, (4800, 5400), 1000)
    assert length(classes=10) == (20_000, (16_000, 18_000), 1000)
    assert length(classes=10, max_batches=300) == (300, (240, 270), 50)
    assert length(classes=10, max_batches=300, steps=(1, 2), burn_in=9) == (300, (1, 2), 9)


def test_voc_recipe_is_darknets():
    net = build("yolov4-voc").net
    assert (net.batch, net.subdivisions, net.learning_rate, net.burn_in) == (64, 16, 0.0013, 1000)
    assert (net.max_batches, net.steps, net.width, net.height) == (50_000, (40_000, 45_000), 416, 416)


def test_shapes_is_small():
    assert sum(layer.parameters for layer in plan_layers(build("shapes"))) < 300_000


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("yolov5", {}, "'yolov5' is not known, expected one of yolov4, .*shapes"),
        ("yolov4", {"width": 600}, "600 x 608, expected multiples of 32"),
        ("yolov4", {"classes": 0}, "0 classes, expected 1 or more"),
        ("yolov4", {"anchors": ((1, 2), (3, 4))}, "2 anchors for 3 heads, expected a multiple of 3"),
    ],
)
def test_what_makes_no_network_is_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        build(name, **changes)


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["blueprint", *map(str, arguments)])
    main()


def test_command_line_writes_a_cfg_for_a_names_file(tmp_path, monkeypatch):
    names, out = tmp_path / "my.names", tmp_path / "my.cfg"
    names.write_text("red cell\nwhite cell\n")
    options = ["--width", 320, "--height", 256, "--batch", 32, "--subdivisions", 4, "--max-batches", 2000]
    run_main(
        monkeypatch,
        "yolov4-tiny",
        "--names",
        names,
        "--anchors",
        "1,2, 3,4, 5,6, 7,8",
        *options,
        "--out",
        out,
    )
    network = read_cfg(out)
    heads = find_heads(network, plan_layers(network))
    assert [head.mask for head in heads] == [(2, 3), (1, 2)] and heads[0].classes == 2
    net = network.net
    assert (net.width, net.height, net.batch, net.subdivisions, net.max_batches) == (320, 256, 32, 4, 2000)
    assert out.read_text().startswith("# Written by: python -m yolov4.blueprint yolov4-tiny --names ")


def test_command_line_writes_the_project_files(tmp_path, monkeypatch):
    run_main(monkeypatch, "--all", tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == project_files()


def test_command_line_prints_without_out(capsys, monkeypatch):
    run_main(monkeypatch, "shapes", "--classes", 5)
    assert parse_cfg(capsys.readouterr().out).sections[-1].classes == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["yolov5"], "choose from"),
        ([], "expected NAME or --all"),
        (["yolov4", "--all", "."], "expected NAME or --all"),
        (["yolov4", "--names", "a", "--classes", "1"], "one of --classes and --names"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run_main(monkeypatch, *arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_wrong_data_is_one_line_and_ends_with_1(root, tmp_path):
    command = [sys.executable, "-m", "yolov4.blueprint", "yolov4", "--names", str(tmp_path / "none.names")]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "none.names" in result.stderr


def test_voc_data_agrees_with_its_cfg_and_names(root):
    options = read_data(root / "cfg/voc.data")
    assert len(read_names(root / options["names"])) == int(options["classes"]) == 20
    assert read_cfg(root / "cfg/yolov4-voc.cfg").sections[-1].classes == 20


def test_shapes_data_names_the_files_that_the_tools_write(root, tmp_path):
    made = tmp_path / "data/shapes/VOCshapes"
    make = [sys.executable, root / "data/shapes/make_shapes.py", "--out", made, "--images", "5"]
    label = [sys.executable, root / "data/voc0712/voc_label.py", made, "--names", made / "shapes.names"]
    for command in (make, label):
        subprocess.run(command, check=True, capture_output=True)
    options = read_data(root / "cfg/shapes.data")
    assert all((tmp_path / options[key]).exists() for key in ("train", "valid", "names"))
    assert len(read_names(tmp_path / options["names"])) == int(options["classes"]) == 3


@pytest.mark.parametrize("name", ["shapes", "yolov4-tiny", "yolov4-csp"])
def test_opencv_reads_cfg_and_weights_and_computes_the_same(name, tmp_path, write_seeded_weights):
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
        expected = (
            torch.cat((boxes, objectness, objectness * classes), -1)[0].permute(1, 2, 0, 3).reshape(-1, 8).numpy()
        )
        found = outputs[f"yolo_{head.index}"].reshape(-1, 8)
        dropped = np.zeros_like(found, bool)
        dropped[:, 5:] = expected[:, 5:] < 0.201
        assert (~dropped[:, 5:]).any() and (found[:, 5:][expected[:, 5:] < 0.199] == 0).all()
        np.testing.assert_allclose(found[~dropped], expected[~dropped], rtol=3e-4, atol=1e-4)
