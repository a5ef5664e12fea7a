"""Recipes: what they hold, what they put over a cfg, what stands over them; each of them trains."""

import subprocess
import sys

import pytest
from test_training import finished, settings, trained, write_pictures

from yolov4 import Darknet, load_weights
from yolov4.cfg import format_cfg, parse_cfg, read_cfg
from yolov4.recipe import read_recipe, with_recipe
from yolov4.sections import Net, Yolo
from yolov4.settings import configured
from yolov4.training import Training

RECIPES = ("voc-darknet", "voc-v5-ema", "coco-608", "coco-608-silu")


@pytest.fixture
def work(tmp_path):
    return write_pictures(tmp_path)


@pytest.fixture
def at_root(root, monkeypatch):
    monkeypatch.chdir(root)


def test_these_are_the_recipes(root):
    assert {path.stem for path in (root / "cfg").glob("*.recipe")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_own_cfg(at_root, name):
    recipe = read_recipe(name)
    network = with_recipe(read_cfg(recipe.train["cfg"]), recipe)
    assert parse_cfg(format_cfg(network.net, network.sections)).sections == network.sections
    assert network.net.batch % network.net.subdivisions == 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_darknets_form_of_it_is_read_again(root, work, name):
    """Its own flags and keys, on a small network: what it ends with is a network as its cfg says."""
    recipe = read_recipe(str(root / f"cfg/{name}.recipe"))
    flags = {key: value for key, value in recipe.train.items() if key in ("loss", "ema")}
    flags |= {"ema": float(flags.get("ema", 0))}
    changes = {"batch": 4, "subdivisions": 2, "max_batches": 12, "eval_every": 0}
    trained(work, "run", recipe=str(root / f"cfg/{name}.recipe"), **flags, **changes)
    model = Darknet.from_cfg(work / "runs/run/run.cfg")
    assert load_weights(model, work / "runs/run/run_last.weights").seen == 48
    assert model.heads[0].new_coords == (flags.get("loss") == "yolov5")
    assert model.net.nesterov == recipe.net.get("nesterov", False) and model.net.burn_in <= 4


def test_the_yolov5_loss_learns_and_opencv_reads_the_result(root, work):
    flags = ("--loss", "yolov5", "--learning-rate", 0.02, "--max-batches", 60, "--eval-every", 0, "--name", "run")
    finished(root, work, *flags, "--policy", "onecycle")
    rows = (work / "runs/run/results.csv").read_text().splitlines()
    column = rows[0].split(",").index("loss")
    losses = [float(row.split(",")[column]) for row in rows[1:]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    done = subprocess.run(
        [sys.executable, str(root / "cvt2darknet.py"), "--verify", "--runs", str(work / "runs")],
        cwd=work, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout and "OpenCV" in done.stdout


def test_killed_and_resumed_keeps_the_recipe(work):
    """Halves of a run, cut where momentum and the rate of biases still climb, are the whole."""
    (work / "my.recipe").write_text(
        "[net]\nburn_in=6\nburn_in_momentum=.5\nburn_in_bias_rate=.1\nnesterov=1\nmixup_share=.5\n"
    )
    common = {"recipe": str(work / "my.recipe"), "loss": "yolov5", "ema": 0.99, "eval_every": 0, "save_every": 1}
    whole = trained(work, "whole", **common, max_batches=60)
    run = Training(settings(work, **common, max_batches=60), work / "runs/cut", say=lambda line: None)
    reasons = iter([""] * 3 + ["as asked"])
    run._reason_to_stop = lambda requested: next(reasons)
    run.run()
    (work / "my.recipe").unlink()  # the checkpoint has it
    Training(settings(work, **common, max_batches=60), work / "runs/cut", resume=True, say=lambda line: None).run()
    assert (work / "runs/cut/cut_last.weights").read_bytes() == whole


def test_flags_stand_above_the_recipe_and_the_recipe_above_the_cfg(root, work):
    (work / "my.recipe").write_text(
        "# mine\n[train]\nepochs=50\nweights=none.weights\nema=.9\n[net]\nbatch=2\nlearning_rate=.1 # fast\nhue=.3\n"
        "[yolo]\nlabel_smooth_eps=.1\n"
    )
    finished(root, work, "--recipe", "my.recipe", "--max-batches", 2, "--learning-rate", 0.001, "--eval-every", 0)
    network = read_cfg(work / "runs/my/my.cfg")  # the run has the recipe's name
    net = network.net
    assert (net.max_batches, net.batch, net.hue, net.saturation) == (2, 2, 0.3, 1.5)
    assert net.learning_rate == pytest.approx(0.001) and network.sections[-1].label_smooth_eps == 0.1
    assert (work / "runs/my/my_ema.weights").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[train]\nloss=yolov5\n[net]\nbatsh=4",
            r"my\.recipe:4: \[net\] key batsh is not supported, did you mean batch\?",
        ),
        ("[net]\nmomentum=7", r"my\.recipe:2: \[net\] momentum=7, expected 0\.\.1"),
        ("[route]\nlayers=1", r"my\.recipe:1: found \[route\], expected one of \[train\], \[net\], \[yolo\]"),
        ("batch=4", r"my\.recipe:1: found 'batch=4', expected \[section\]"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(tmp_path, text, message):
    (tmp_path / "my.recipe").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(str(tmp_path / "my.recipe"))


def test_a_recipe_that_is_not_there_names_those_that_are(at_root):
    with pytest.raises(ValueError, match=r"--recipe voc: not found, expected a file or one of coco-608, "):
        read_recipe("voc")


def test_an_unknown_flag_in_a_recipe_is_an_error(root, work):
    (work / "my.recipe").write_text("[train]\nlosses=yolov5\n")
    _, errors = finished(root, work, "--recipe", "my.recipe", code=2)
    assert "--losses=yolov5" in errors


def test_keys_of_a_recipe_change_net_and_every_head_alone(tmp_path):
    (tmp_path / "my.recipe").write_text("[net]\nhue=.5\n[yolo]\njitter=.7")
    network = parse_cfg("[net]\nwidth=8\n[convolutional]\n[yolo]\nanchors=1,1\n[yolo]\nanchors=2,2\nclasses=3")
    changed = with_recipe(network, read_recipe(str(tmp_path / "my.recipe")))
    assert changed.net == Net(width=8, hue=0.5)
    assert changed.sections[1:] == (Yolo(anchors=((1, 1),), jitter=0.7), Yolo(anchors=((2, 2),), classes=3, jitter=0.7))
    assert changed.sections[0] == network.sections[0]


def test_burn_in_is_at_most_a_tenth_of_a_length_that_is_given(work):
    (work / "my.recipe").write_text("[net]\nburn_in=1000")
    given = settings(work, recipe=str(work / "my.recipe"), max_batches=60)
    assert configured(read_cfg(work / "tiny.cfg"), given, 8, lambda line: None).net.burn_in == 6
