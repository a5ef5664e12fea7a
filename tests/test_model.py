"""The executor against Darknet's outputs and OpenCV's on real weights; sizes, fusing, gradients.
Source: golden/forward; ../shared/models."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import SHARED, golden_names, shared_files, write_seeded_weights

from yolov4.cfg import read_cfg
from yolov4.model import Darknet, summary
from yolov4.networks import build
from yolov4.weights import load_weights


def upstream(root, name):
    """Our own cfg where it equals upstream's, for a fresh clone; else that of ../shared."""
    path = root / f"cfg/{name}.cfg"
    if not path.exists() and not (path := SHARED / f"darknet/cfg/{name}.cfg").exists():
        pytest.skip(f"needs {path}, which is not here")
    return read_cfg(path)


def golden_outputs(expected, network, path, device="cpu"):
    """Pairs of what each head receives and what Darknet's receives, from weights by way of path."""
    width, height = map(int, expected["size"])
    network = network._replace(net=replace(network.net, width=width, height=height))
    model = Darknet(network).eval().to(device)
    write_seeded_weights(path, network, expected["seed"])
    assert sum(layer.parameters for layer in model.plan) == expected["floats"]
    assert path.stat().st_size == 20 + 4 * expected["floats"]
    load_weights(model, path)
    path.unlink()
    random = np.random.Generator(np.random.PCG64(1000 + expected["seed"]))
    images = torch.from_numpy(random.random((3, height, width), dtype=np.float32))[None]
    with torch.inference_mode():
        logits = model(images.to(device))
    assert len(logits) == len(model.heads) == sum(key.startswith("raw") for key in expected)
    for values, head in zip(logits, model.heads, strict=True):
        # Darknet's last convolution is logistic there
        found = (values.sigmoid() if head.new_coords else values)[0].cpu().numpy()
        yield found, expected[f"raw{head.index}"]


@pytest.mark.parametrize("name", golden_names("forward"))
def test_outputs_are_darknets(name, golden, root, tmp_path):
    network, path = upstream(root, name), tmp_path / "seeded.weights"
    for found, expected in golden_outputs(golden(f"forward/{name}.npz"), network, path):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_summary_lists_every_layer_and_the_totals(root):
    model = Darknet.from_cfg(root / "cfg/yolov4-tiny.cfg")
    lines = summary(model).splitlines()
    parameters = sum(p.numel() for p in model.parameters())
    assert len(lines) == 1 + 38 + 1 and f"38 layers, {parameters:,} parameters" in lines[-1]
    assert "6.91 BFLOPs" in lines[-1] and "255" in lines[1 + 29]  # as Darknet prints


@pytest.mark.parametrize("path", shared_files("models/*/*.cfg"))
def test_real_weights_give_opencvs_logits(path):
    weights = next(path.parent.glob("*.weights"))
    model = Darknet.from_cfg(path).eval()
    loaded = load_weights(model, weights)
    assert loaded.layers == loaded.of
    size = (1, 3, model.net.height // 2 // 32 * 32, model.net.width // 2 // 32 * 32)
    images = torch.rand(size, generator=torch.Generator().manual_seed(0))
    net = cv2.dnn.readNetFromDarknet(str(path), str(weights))
    net.setInput(images.numpy())
    expected = net.forward([f"conv_{head.index - 1}" for head in model.heads])
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        assert norm.eps == 1e-5  # Darknet's; OpenCV has its own, and some variances here are 0
        norm.eps = 1e-6
    with torch.inference_mode():
        logits = model(images)
    for values, reference in zip(logits, expected, strict=True):
        np.testing.assert_allclose(values.numpy(), reference, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def seeded_shapes(tmp_path_factory):
    """The shapes network with weights that make every layer count."""
    path = tmp_path_factory.mktemp("weights") / "shapes.weights"
    write_seeded_weights(path, build("shapes"), 5)
    model = Darknet(build("shapes")).eval()
    load_weights(model, path)
    return model


def random(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(128, 160), (96, 32), (16, 16)])
def test_any_input_size_works_and_equals_a_network_of_that_size(height, width, seeded_shapes):
    logits = seeded_shapes(random(1, 3, height, width))
    net = replace(seeded_shapes.net, width=width, height=height)
    other = Darknet(seeded_shapes.network._replace(net=net)).eval()
    other.load_state_dict(seeded_shapes.state_dict())
    expected = other(random(1, 3, height, width))
    for values, same, stride in zip(logits, expected, (8, 16), strict=True):
        assert values.shape == (1, 24, height // stride, width // stride)
        assert torch.equal(values, same)


@torch.no_grad()
def test_batch_of_two_equals_two_singles(seeded_shapes):
    images = random(2, 3, 64, 64)
    for values, one, two in zip(*map(seeded_shapes, (images, images[:1], images[1:])), strict=True):
        torch.testing.assert_close(values, torch.cat((one, two)), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(one, two, atol=1e-3)


@torch.no_grad()
def test_fused_equals_unfused(seeded_shapes):
    fused = Darknet(seeded_shapes.network)
    fused.load_state_dict(seeded_shapes.state_dict())
    assert fused.fuse() is fused
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    images = random(1, 3, 64, 64)
    for values, expected in zip(fused(images), seeded_shapes(images), strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)


def test_fresh_weights_are_darknets_and_follow_the_generator():
    first, second = (Darknet(build("shapes"), torch.Generator().manual_seed(3)) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    convolution, norm = first.layers[4][0], first.layers[4][1]
    bound = (2 / convolution.weight[0].numel()) ** 0.5
    assert 0.95 * bound < convolution.weight.abs().max() <= bound
    assert convolution.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert (norm.weight == 1).all() and (norm.bias == 0).all() and (norm.running_var == 0).all()
    assert (first.layers[54][0].bias == 0).all()


def test_batch_norm_trains_as_the_gpu_build():
    model, images = Darknet(build("shapes")), random(2, 3, 32, 32)
    model(images)
    convolution, norm = model.layers[0][0], model.layers[0][1]
    outputs = convolution(images).transpose(0, 1).flatten(1)  # (16, 2 * 16 * 16)
    torch.testing.assert_close(norm.running_mean, 0.01 * outputs.mean(1))
    torch.testing.assert_close(norm.running_var, 0.01 * outputs.var(1))
