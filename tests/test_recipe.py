"""Recipes: what they hold, what they replace in a cfg, what overrides them."""

import pytest

from yolov4.cfg import Net, Yolo, format_cfg, parse_cfg, read_cfg
from yolov4.recipe import Settings, configured, network_for, read_recipe, with_recipe

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


def test_what_is_wrong_in_a_recipe_is_named(tmp_path):
    wrong = ("[train]\nloss=yolov5\n[net]\nbatsh=4", 4), ("[route]\nlayers=1", 1), ("batch=4", 1)
    for text, place in wrong:
        (tmp_path / "my.recipe").write_text(text)
        with pytest.raises(ValueError, match=rf"my\.recipe:{place}: "):
            read_recipe(str(tmp_path / "my.recipe"))


def test_keys_of_a_recipe_change_net_and_every_head_alone(tmp_path):
    (tmp_path / "my.recipe").write_text("[net]\nhue=.5\n[yolo]\njitter=.7")
    heads = "[yolo]\nanchors=1,1\n[yolo]\nanchors=2,2\nclasses=3"
    network = parse_cfg("[net]\nwidth=8\n[convolutional]\n" + heads)
    changed = with_recipe(network, read_recipe(str(tmp_path / "my.recipe")))
    assert changed.net == Net(width=8, hue=0.5)
    assert changed.sections[0] == network.sections[0]
    heads = (Yolo(anchors=((1, 1),), jitter=0.7), Yolo(anchors=((2, 2),), classes=3, jitter=0.7))
    assert changed.sections[1:] == heads


@pytest.mark.parametrize(("keys", "found"), [
    ("[net]\npolicy=steps\nsteps=1,2\nscales=.1", "steps"), ("[net]\nchannels=4", "channels=4"),
    ("[yolo]\ncounters_per_class=1,2,3", "counters_per_class"),
])  # fmt: skip
def test_keys_of_a_recipe_that_do_not_fit_the_cfg_are_refused(tmp_path, keys, found):
    (tmp_path / "my.recipe").write_text(keys)
    network = parse_cfg("[net]\nwidth=8\n[yolo]\nanchors=1,1\nclasses=1\n")
    with pytest.raises(ValueError, match=rf"^cfg:\d: \[\w+\] {found}"):
        with_recipe(network, read_recipe(str(tmp_path / "my.recipe")))


def test_flags_override_the_recipe_and_the_recipe_overrides_the_cfg(tmp_path):
    recipe = "# mine\n[train]\nepochs=50\n[net]\nbatch=2\nlearning_rate=.1 # fast\nhue=.3\n"
    (tmp_path / "my.recipe").write_text(recipe)
    given = {"recipe": str(tmp_path / "my.recipe"), "learning_rate": 0.001, "loss": "yolov5"}
    text = "[net] width=8 height=8 max_batches=5 [convolutional] filters=6 [yolo] anchors=1,1"
    net, sections, _ = applied(text.replace(" ", "\n") + "\nclasses=1", **given)
    assert (net.batch, net.hue, net.saturation, net.learning_rate) == (2, 0.3, 1, 0.001)
    assert sections[-1].new_coords


def test_the_fewest_subdivisions_start_with_one():
    text = "[net]\nbatch=4\nsubdivisions=2\nmax_batches=9\n"
    assert applied(text, subdivisions="auto").net.subdivisions == 1


def test_steps_and_burn_in_follow_a_given_length():
    text = "[net]\nbatch=4\nburn_in=200\nmax_batches=1000\nsteps=800,900\n"
    for given, expected in (
        ({}, (1000, (800, 900), 200)),
        ({"max_batches": 60}, (60, (48, 54), 6)),
        ({"epochs": 2.5, "batch": 8}, (10, (8, 9), 1)),  # of 32 images
    ):
        net = applied(text, images=32, **given).net
        assert (net.max_batches, net.steps, net.burn_in) == expected


def test_settings_that_cannot_be_trained_with_are_refused():
    many = "max_batches=5\nbatch=6"
    for keys, given in (("batch=4", {}), (many, {"batch": 0}), (many, {"subdivisions": 4})):
        with pytest.raises(ValueError, match=r"max_batches|batch=. and subdivisions=."):
            applied(f"[net]\n{keys}\n", **given)


def test_a_network_without_heads_is_not_trained(tmp_path):
    (tmp_path / "x.cfg").write_text("[net]\nwidth=8\nheight=8\n[maxpool]\nsize=2")
    with pytest.raises(ValueError, match=r"x\.cfg: has no \[yolo\]"):
        network_for(str(tmp_path / "x.cfg"), 1)
