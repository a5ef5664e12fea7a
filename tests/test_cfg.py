"""Darknet's .cfg, .data and .names: every upstream file, round trips, and what an error says.
Source: ../shared/darknet/cfg, ../shared/models; Darknet's src/parser.c for the defaults."""

import pytest
from conftest import SHARED, shared_files

from yolov4.cfg import format_cfg, parse_cfg, read_cfg, read_data, read_names
from yolov4.plan import find_heads, plan_layers
from yolov4.sections import Convolutional, Maxpool, Net, Route, Yolo

SMALL = """[net]
width=64
height=32
channels=3
[convolutional]
filters=16
size=3
stride=2
pad=1
activation=leaky
[route]
layers=-1,0
[convolutional]
filters=21
activation=linear
[yolo]
mask=0,1,2
anchors=1,2, 3,4, 5,6, 7,8
classes=2
num=4
"""

ERRORS = {
    "unsupported section": (
        ("[route]", "[crnn]"),
        r"x.cfg:11: \[crnn\] is not supported, expected one of .*yolo",
    ),
    "mistyped key": (
        ("stride=2", "strid=2"),
        r"x.cfg:8: \[convolutional\] key strid .* did you mean stride\?",
    ),
    "unknown key": (("stride=2", "qqq=2"), r"x.cfg:8: \[convolutional\] key qqq is not supported$"),
    "not a number": (("size=3", "size=three"), r"x.cfg:7: .*size=three, expected a whole number"),
    "fraction": (("size=3", "size=3.5"), r"x.cfg:7: .*size=3.5, expected a whole number"),
    "not 0 or 1": (("pad=1", "pad=yes"), r"x.cfg:9: .*pad=yes, expected 0 or 1"),
    "unknown activation": (("leaky", "leeky"), r"x.cfg:10: .*activation=leeky, expected one of .*leaky"),
    "odd anchors": (("7,8", "7"), r"x.cfg:18: .*expected pairs"),
    "no anchors": (("anchors=1,2, 3,4, 5,6, 7,8\n", ""), r"x.cfg:16: \[yolo\] has no anchors"),
    "no layers": (("layers=-1,0\n", ""), r"x.cfg:11: \[route\] has no layers"),
    "wrong filters": (("filters=21", "filters=255"), "x.cfg:14: filters=255 .* expected 21 = 3 anchors"),
    "wrong classes": (("classes=2", "classes=3"), r"x.cfg:14: filters=21 .* expected 24"),
    "mask out of range": (("mask=0,1,2", "mask=0,1,4"), r"x.cfg:17: \[yolo\] mask 4, but num=4 \(0..3\)"),
    "num and anchors": (("num=4", "num=5"), r"x.cfg:18: \[yolo\] has 4 anchors, but num=5"),
    "reference ahead": (("layers=-1,0", "layers=2"), r"x.cfg:11: layer 1 \[route\] reads layer 2, expected"),
    "reference behind": (("layers=-1,0", "layers=-2"), r"x.cfg:11: layer 1 \[route\] reads layer -1"),
    "no size": (("width=64", "width=0"), r"x.cfg:1: \[net\] width=0 .*expected all above 0"),
    "logistic of new_coords": (("num=4", "num=4\nnew_coords=1"), r"x.cfg:15: .*activation=logistic"),
    "no such normalisation": (("pad=1", "batch_normalize=3"), r"x.cfg:9: .*batch_normalize=3, expected one of 0, 1, 2"),
    "cutmix": (("channels=3", "cutmix=1"), r"x.cfg:4: \[net\] cutmix=1, expected 0: .*classifiers"),
    "activation of a gate": (
        ("[route]\nlayers=-1,0", "[sam]\nfrom=-1\nactivation=mish"),
        r"x.cfg:13: \[sam\] activation=mish, expected one of",
    ),
    "sam without from": (("[route]\nlayers=-1,0", "[sam]"), r"x.cfg:11: \[sam\] has no from"),
    "stray text": (("pad=1", "pad"), r"x.cfg:9: found 'pad', expected"),
}

PAPER = """[net]
width=64
height=64
channels=3
adversarial_lr=0.05
attention=1
cutmix=0
[convolutional]
cbn=1
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=mish
train_only_bn=1
dontload=1
dontloadscales=1
[dropout]
probability=0.1
dropblock=1
dropblock_size_rel=0.25
dropblock_size_abs=3
[avgpool]
[scale_channels]
from=-2
activation=relu
[sam]
from=0
[reorg]
stride=2
[reorg3d]
stride=2
[implicit]
filters=128
mean=1
std=0.02
[scale_channels]
from=6
"""


def planned(text):
    network = parse_cfg(text, "x.cfg")
    layers = plan_layers(network)
    return network, layers, find_heads(network, layers)


def test_switches_of_the_paper_survive_a_round_trip():
    net, sections, _ = network = parse_cfg(PAPER)
    assert parse_cfg(format_cfg(net, sections))[:2] == network[:2]
    assert net.adversarial_lr == 0.05 and sections[0].batch_normalize == 2 and sections[1].dropblock_size_abs == 3
    assert [layer.sources for layer in plan_layers(network)] == [
        (-1,), (0,), (1,), (2, 1), (3, 0), (4,), (5,), (6,), (7, 6)
    ]  # fmt: skip


@pytest.mark.parametrize("path", shared_files("darknet/cfg/*.cfg", "models/*/*.cfg", "golden/training_bccd/*.cfg"))
def test_upstream_file_is_read_planned_and_written_back_equal(path):
    network = read_cfg(path)
    heads = find_heads(network, plan_layers(network))
    assert (
        heads
        and len(network.sections) == sum(line.strip().startswith("[") for line in path.read_text().splitlines()) - 1
    )
    again = parse_cfg(format_cfg(network.net, network.sections))
    assert (again.net, again.sections) == (network.net, network.sections)


@pytest.mark.parametrize(("change", "message"), ERRORS.values(), ids=ERRORS)
def test_error_names_the_line_and_what_was_expected(change, message):
    assert change[0] in SMALL
    planned(SMALL)  # is right before the change
    with pytest.raises(ValueError, match=message):
        planned(SMALL.replace(*change, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected \\[net\\]"),
        ("<!DOCTYPE html>\n<html>", "x.cfg:1: found '<!DOCTYPE html>'"),
        ("[convolutional]\nfilters=3\n", "starts with \\[convolutional\\], expected \\[net\\]"),
        ("[net]\nwidth=32\nheight=32\n", "has no layers"),
        ("a = 1\n[net]\n", "x.cfg:1: found 'a = 1'"),
    ],
)
def test_what_is_no_cfg_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        planned(text)


def test_binary_file_is_refused(tmp_path):
    path = tmp_path / "yolo.weights"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"yolo.weights: is not text"):
        read_cfg(path)


def test_steps_without_as_many_scales_is_refused():
    with pytest.raises(ValueError, match=r"x.cfg:6: 2 steps and 1 scales"):
        planned(
            SMALL.replace("channels=3\n", "channels=3\npolicy=steps\nsteps=1,2\nscales=.1\n").replace(
                "[net]", "[net]", 1
            )
        )


def test_line_ends_comments_spaces_and_case_do_not_matter(tmp_path):
    expected = parse_cfg(SMALL)
    messy = SMALL.replace("width=64", "# size\n ; of the input\nwidth = 64 # pixels").replace("[route]", " [Route] ")
    messy = messy.replace("mask=0,1,2", "mask = 0, 1 ,2").replace("[yolo]", "\n\n[yolo]").replace("\n", "\r\n")
    path = tmp_path / "messy.cfg"
    path.write_bytes(messy.encode())
    assert read_cfg(path)[:2] == expected[:2]


def test_first_of_two_equal_keys_counts_as_in_darknet():
    assert parse_cfg(SMALL.replace("classes=2", "classes=2\nclasses=7")).sections[-1].classes == 2


def test_defaults_are_those_of_darknet():
    network = parse_cfg("[net]\n[convolutional]\n[maxpool]\n[yolo]\nanchors=1,1\n")
    convolutional, maxpool, yolo = network.sections
    assert convolutional == Convolutional(activation="logistic", size=1, stride=1, pad=False, filters=1, groups=1)
    assert (maxpool.stride, maxpool.padding) == (Maxpool.stride, -1) == (1, -1)
    net = network.net
    assert (net.power, net.burn_in, net.momentum, net.decay, net.learning_rate_min) == (
        4,
        0,
        0.9,
        0.0001,
        1e-5,
    )
    assert (net.batch, net.subdivisions, net.flip, net.mosaic, net.letter_box) == (1, 1, True, False, False)
    assert (yolo.iou_loss, yolo.iou_normalizer, yolo.obj_normalizer) == ("mse", 0.75, 1)
    assert (yolo.ignore_thresh, yolo.truth_thresh, yolo.iou_thresh, yolo.scale_x_y) == (0.5, 1, 1, 1)
    assert (yolo.jitter, yolo.resize, yolo.random, yolo.nms_kind, yolo.beta_nms) == (
        0.2,
        1,
        0,
        "default",
        0.6,
    )
    assert yolo.max_delta == float("inf") and yolo.mask == ()


def test_values_are_read_as_written():
    network, layers, heads = planned(SMALL.replace("channels=3", "channels=3\nhue=.1\nlearning_rate=1e-3\nmosaic=1"))
    assert (network.net.hue, network.net.learning_rate, network.net.mosaic) == (0.1, 0.001, True)
    assert isinstance(network.net, Net) and network.sections[1] == Route(layers=(-1, 0))
    assert network.sections[3].anchors == ((1, 2), (3, 4), (5, 6), (7, 8))
    assert [layer.sources for layer in layers] == [(-1,), (0, 0), (1,), (2,)]
    assert [layer.output_shape for layer in layers] == [
        (16, 16, 32),
        (32, 16, 32),
        (21, 16, 32),
        (21, 16, 32),
    ]
    (head,) = heads
    assert isinstance(head, Yolo) and (head.stride, head.index) == (2, 3)
    assert head.anchors == ((1, 2), (3, 4), (5, 6)) and len(head.all_anchors) == 4


def test_head_without_a_mask_has_all_anchors():
    text = SMALL.replace("mask=0,1,2\n", "").replace("filters=21", "filters=28")
    assert planned(text)[2][0].anchors == ((1, 2), (3, 4), (5, 6), (7, 8))


def test_data_file_paths_resolve_beside_it_where_they_exist(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("")
    path = tmp_path / "x.data"
    path.write_text(
        "# mine\nclasses = 3\r\ntrain=lists\\train.txt\nvalid = elsewhere/val.txt\n\n names=x.names # mine\n"
    )
    assert read_data(path) == {
        "classes": "3",
        "train": str(tmp_path / "lists" / "train.txt"),
        "valid": "elsewhere/val.txt",
        "names": "x.names",
    }


def test_data_file_without_an_equals_sign_is_refused(tmp_path):
    path = tmp_path / "x.data"
    path.write_text("classes=3\ntrain.txt\n")
    with pytest.raises(ValueError, match=r"x.data:2: found 'train.txt', expected key = value"):
        read_data(path)


def test_names_are_read_a_line_each_with_their_spaces(tmp_path):
    path = tmp_path / "x.names"
    path.write_bytes("traffic light\r\nfire hydrant \r\n\r\nÄpfel".encode())
    assert read_names(path) == ["traffic light", "fire hydrant", "Äpfel"]


def test_coco_names_has_80_classes(shared):
    assert len(read_names(SHARED / "models/yolov3-tiny/coco.names")) == 80
