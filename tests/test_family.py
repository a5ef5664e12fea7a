"""Every network of Darknet's YOLO family that is at hand: runs, trains a step, and survives .weights.
Source: ../shared/darknet/cfg, the networks of an eighth of their width."""

from dataclasses import fields, replace

import pytest
import torch
from conftest import shared_files

from yolov4 import Darknet, load_weights, save_weights
from yolov4.blueprint import build
from yolov4.cfg import format_cfg, parse_cfg, read_cfg
from yolov4.distributed import Processes
from yolov4.sections import Convolutional, GaussianYolo, Network, Yolo
from yolov4.updates import Updater


def thin(network: Network, times: int = 8) -> Network:
    """The same layers for pictures of 128 x 128, with fewer filters where they are no logits."""
    sections = list(network.sections)
    for index, (section, after) in enumerate(zip(sections, [*sections[1:], None], strict=True)):
        if isinstance(section, Convolutional) and not isinstance(after, Yolo):
            groups = max(1, section.groups // times)
            sections[index] = replace(section, filters=section.filters // times, groups=groups)
    small = {"width": 128, "height": 128, "batch": 2, "subdivisions": 1, "burn_in": 0, "max_batches": 10}
    return network._replace(net=replace(network.net, **small), sections=tuple(sections))


def trained(network: Network) -> Darknet:
    """After one update, in which all layers took part that the cfg lets."""
    model = Darknet(network, torch.Generator().manual_seed(0))
    updater, before = Updater(model, model.net, Processes(torch.device("cpu"))), [p.clone() for p in model.parameters()]
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[0, 0, 0.5, 0.4, 0.3, 0.5], [0, 1, 0.2, 0.8, 0.1, 0.1], [1, 2, 0.6, 0.6, 0.7, 0.8]])
    update = updater.update(1, [(images, targets, ["a", "b"])])
    assert 0 < update.loss < float("inf") and len(update.heads) == len(model.heads)
    assert sum(head.count for head in update.heads) > 0
    names = [name for name, _ in model.named_parameters() if int(name.split(".")[1]) > model.frozen]
    moved = {name for (name, p), was in zip(model.named_parameters(), before, strict=True) if not torch.equal(p, was)}
    assert not set(names) - moved
    return model


def assert_survives(model: Darknet, path) -> None:
    """The file has what the plan says; a fresh model that reads it is the same."""
    save_weights(model, path, seen=2)
    assert path.stat().st_size == 20 + 4 * sum(layer.parameters for layer in model.plan)
    again = Darknet(parse_cfg(format_cfg(*model.network[:2])))
    assert load_weights(again, path).layers == len(model.plan)
    own, read = model.state_dict(), again.state_dict()
    assert all(torch.equal(own[key], read[key]) for key in own if not key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("path", shared_files("darknet/cfg/*.cfg"))
def test_network_of_the_family_trains_a_step_and_survives_weights(path, tmp_path):
    assert_survives(trained(thin(read_cfg(path))), tmp_path / "thin.weights")


def test_gaussian_network_trains_a_step_and_survives_weights(tmp_path):
    network = build("shapes")
    sections = list(network.sections)
    for index, section in enumerate(sections):
        if isinstance(section, Yolo):
            sections[index] = GaussianYolo(**{f.name: getattr(section, f.name) for f in fields(section)})
            sections[index - 1] = replace(sections[index - 1], filters=3 * (9 + section.classes))
    assert_survives(trained(thin(network._replace(sections=tuple(sections)), 1)), tmp_path / "gaussian.weights")
