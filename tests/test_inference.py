"""A packed network gives what it gave before; memory kept by the process is not faulted in again."""

import copy
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, settled, shared_files
from test_deterministic import EVERYTHING

from yolov4 import Darknet, save_weights
from yolov4.cfg import parse_cfg
from yolov4.inference import PackedConv2d, for_inference, pack
from yolov4.model import HALVES

CFG = """[net]
width=32
height=64
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=mish
[convolutional]
filters=8
groups=4
size=3
pad=1
activation=leaky
[convolutional]
filters=6
size=3
dilation=2
pad=1
activation=linear
[convolutional]
filters=7
size=1
activation=linear
[yolo]
mask=0
anchors=10,14
classes=2
num=1
"""
FAULTS = """
import resource, sys
import torch
sys.path.insert(0, {root!r})
from yolov4.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
layer = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.Mish())
images = torch.rand(2, 3, 512, 512)  # 64 MiB an output, beyond what malloc keeps by itself
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layer(images).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def same_outputs(model: Darknet, images: torch.Tensor) -> None:
    model = model.fuse().to(memory_format=torch.channels_last)
    packed = copy.deepcopy(model)
    pack(packed)
    with torch.no_grad():
        images = images.to(memory_format=torch.channels_last)
        for found, wanted in zip(packed(images), model(images), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert any(isinstance(module, PackedConv2d) for module in packed.modules()) == torch.backends.mkldnn.is_available()


@pytest.mark.parametrize("batch, size", [(1, (64, 32)), (3, (64, 32)), (2, (96, 160))])
def test_outputs_at_any_batch_and_size(batch, size):
    generator = torch.Generator().manual_seed(0)
    model = settled(Darknet(parse_cfg(CFG), generator))
    same_outputs(model, torch.rand(batch, 3, *size, generator=generator))


@pytest.mark.parametrize("path", shared_files("models/*/*.cfg"))
def test_outputs_of_real_networks(path):
    model = settled(Darknet.from_cfg(path))
    same_outputs(model, torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0)))


def same_in_half(model: Darknet, half: str, tolerance: float) -> None:
    """On the CPU; tolerance: of the root mean square, in standard deviations of the logits."""
    model, dtype = settled(model).eval(), HALVES[half]
    images = torch.rand(1, model.net.channels, 96, 128, generator=torch.Generator().manual_seed(0))
    halved = for_inference(copy.deepcopy(model), torch.device("cpu"), dtype=dtype)
    with torch.no_grad():
        for found, wanted in zip(halved(images.to(dtype)), model(images), strict=True):
            away = (found.float() - wanted).square().mean().sqrt() / wanted.std()
            assert found.dtype == dtype and away < tolerance, away


@pytest.mark.parametrize("path", shared_files("models/*/*.cfg"))
def test_half_precision_of_real_networks(path):
    same_in_half(Darknet.from_cfg(path), "bf16", 0.03)


@pytest.mark.parametrize(("half", "tolerance"), [("bf16", 0.03), ("fp16", 0.004)])
@pytest.mark.parametrize("text", [CFG, EVERYTHING], ids=["small", "every kind of layer"])
def test_half_precision_of_every_kind_of_layer(text, half, tolerance):
    same_in_half(Darknet(parse_cfg(text), torch.Generator().manual_seed(0)), half, tolerance)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_it_gives_the_same():
    generator = torch.Generator().manual_seed(0)
    model = settled(Darknet(parse_cfg(CFG), generator)).fuse()
    images = torch.rand(2, 3, 64, 32, generator=generator)
    with torch.no_grad():
        wanted = model(images)
        found = for_inference(model, torch.device("cpu"), compiled=True)(images)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_without_a_compiler_one_sentence_says_so(tmp_path):
    save_weights(Darknet(parse_cfg(CFG)), tmp_path / "x.weights")
    (tmp_path / "x.cfg").write_text(CFG, encoding="utf-8")
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((8, 8, 3), np.uint8))
    command = [sys.executable, ROOT / "detect.py", "x.png", "--weights", "x.weights", "--compile", "--device", "cpu"]
    environment = os.environ | {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "expected a compiler that torch can use" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_kept_memory_is_not_faulted_in_again():
    def faults(keep: bool) -> int:
        command = [sys.executable, "-c", FAULTS.format(root=str(ROOT), keep=keep)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults(keep=True) < faults(keep=False) / 4
