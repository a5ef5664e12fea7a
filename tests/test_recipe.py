"""Recipes: what they hold, what they replace in a cfg, what overrides them."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from yolov4.cfg import Net, Yolo, format_cfg, parse_cfg, read_cfg
from yolov4.networks import cfg_text
from yolov4.recipe import Settings, configured, read_recipe, with_recipe

RECIPES = ("voc-darknet", "voc-v5-ema", "coco-608", "coco-608-silu")


def applied(text, images=8, **given):
    settings = Settings(**{"cfg": "x.cfg", "train": "list.txt", "names": "x.names"} | given)
    return configured(parse_cfg(text), settings, images, lambda line: None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_own_cfg(name, root, monkeypatch):
    monkeypatch.chdir(root)
    recipe = read_recipe(name)
    network = with_recipe(read_cfg(recipe.train["cfg"]), recipe)
    assert parse_cfg(format_cfg(*network[:2]))[:2] == network[:2]
    assert network.net.batch % network.net.subdivisions == 0
    with pytest.raises(ValueError, match="--recipe voc: no such file"):
        read_recipe("voc")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nloss=yolov5\n[net]\nbatsh=4", r"my\.recipe:4: \[net\] batsh=4 is not supported"),
        ("[route]\nlayers=1", r"my\.recipe:1: \[route\], expected \[train\]"),
        ("batch=4", r"my\.recipe:1: found 'batch=4', expected \[section\]"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(tmp_path, text, message):
    (tmp_path / "my.recipe").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(str(tmp_path / "my.recipe"))


def test_keys_of_a_recipe_change_net_and_every_head_alone(tmp_path):
    (tmp_path / "my.recipe").write_text("[net]\nhue=.5\n[yolo]\njitter=.7")
    network = parse_cfg(
        "[net]\nwidth=8\n[convolutional]\n[yolo]\nanchors=1,1\n[yolo]\nanchors=2,2\nclasses=3"
    )
    changed = with_recipe(network, read_recipe(str(tmp_path / "my.recipe")))
    assert changed.net == Net(width=8, hue=0.5)
    assert changed.sections[0] == network.sections[0]
    heads = (Yolo(anchors=((1, 1),), jitter=0.7), Yolo(anchors=((2, 2),), classes=3, jitter=0.7))
    assert changed.sections[1:] == heads


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1000, (800, 900), 200)),
        ({"max_batches": 60}, (60, (48, 54), 6)),
        ({"epochs": 2.5, "batch": 8}, (10, (8, 9), 1)),  # of 32 images
    ],
)
def test_steps_and_burn_in_follow_a_given_length(given, expected):
    text = "[net]\nbatch=4\nburn_in=200\nmax_batches=1000\nsteps=800,900\n"
    net = applied(text, images=32, **given).net
    assert (net.max_batches, net.steps, net.burn_in) == expected


@pytest.mark.parametrize(
    ("keys", "given", "message"),
    [
        ("batch=4", {}, "has no max_batches"),
        ("max_batches=5", {"batch": 0}, "batch=0 and subdivisions=1"),
        ("max_batches=5\nbatch=6", {"subdivisions": 4}, "batch=6 and subdivisions=4"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(keys, given, message):
    with pytest.raises(ValueError, match=message):
        applied(f"[net]\n{keys}\n", **given)


def test_flags_override_the_recipe_and_the_recipe_overrides_the_cfg(root, tmp_path):
    (tmp_path / "my.recipe").write_text(
        "# mine\n[train]\nepochs=50\nweights=none.weights\nema=.9\nloss=yolov5\n"
        "[net]\nbatch=2\nlearning_rate=.1 # fast\nhue=.3\n[yolo]\nlabel_smooth_eps=.1\n"
    )
    (tmp_path / "x.cfg").write_text(cfg_text("shapes", "shapes", classes=1, width=64, height=64))
    (tmp_path / "x.names").write_text("thing\n")
    (tmp_path / "x.data").write_text("train=list.txt\nvalid=list.txt\nnames=x.names\n")
    (tmp_path / "list.txt").write_text("a.png\n")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((40, 60, 3), 90, np.uint8))
    (tmp_path / "a.txt").write_text("0 .5 .5 .3 .3\n")
    flags = "--data x.data --cfg x.cfg --recipe my.recipe --max-batches 2 --learning-rate .001"
    command = [sys.executable, root / "train.py", *flags.split(), "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    net, sections, _ = read_cfg(tmp_path / "runs/my/my.cfg")  # the run has the recipe's name
    assert (net.max_batches, net.batch, net.hue, net.saturation) == (2, 2, 0.3, 1.5)
    assert net.learning_rate == pytest.approx(0.001)
    assert sections[-1].label_smooth_eps == 0.1 and sections[-1].new_coords
    assert (tmp_path / "runs/my/my_ema.weights").exists()
