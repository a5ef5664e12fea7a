"""What the tests share: where the material lies, Darknet's golden results, weights from a seed.
Source: ../shared/golden/README.md; a copy of the small golden files is in tests/golden."""

import json
import runpy
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from yolov4 import cli
from yolov4.cfg import Convolutional, Network, Shortcut
from yolov4.decoding import Detections
from yolov4.graph import plan_layers
from yolov4.metrics import Record

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# a script's background jobs ignore Ctrl-C, and what they start would too
signal.signal(signal.SIGINT, signal.default_int_handler)


def shared_files(*patterns: str) -> list:
    """Parameters for a test on files of ../shared; one that is skipped if there are none."""
    found = [path for pattern in patterns for path in sorted(SHARED.glob(pattern))]
    missing = pytest.param(None, marks=pytest.mark.skip(reason=f"no {patterns} in {SHARED}"))
    return [pytest.param(path, id=path.stem) for path in found] or [missing]


def golden_names(folder: str) -> list[str]:
    """Names of the golden files NAME.npz of a folder, wherever they lie."""
    places = (place / "golden" / folder for place in (ROOT / "tests", SHARED))
    return sorted({path.stem for place in places for path in place.glob("*.npz")})


def settled(model):
    """The model with running variances of 1: with fresh ones, 0 as in Darknet, outputs explode."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1.0)
    return model


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared, or the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}, which is not here")
    return SHARED


def load_golden(name: str):
    """A result of Darknet: .json, or .npz -> dict of arrays and plain values."""
    places = [place / "golden" / name for place in (ROOT / "tests", SHARED)]
    path = next((path for path in places if path.exists()), None)
    if path is None:
        pytest.skip(f"needs {places[1]}, which is not here")
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with np.load(path) as arrays:
        return {key: each if each.ndim else each.item() for key, each in arrays.items()}


@pytest.fixture(scope="session")
def golden():
    return load_golden


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """call("detect", *arguments) or call("detect.py", ...) -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(program: str, *arguments) -> tuple[int, str, str]:
        script, code = program.endswith(".py"), 0
        words = [program] if script else ["yolov4", program]
        monkeypatch.setattr(sys, "argv", [*words, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / program), run_name="__main__") if script else cli.main()
        except SystemExit as error:
            code = error.code or 0
        return code, *capsys.readouterr()

    return run


def draw(path: Path, size=(80, 60), grey=90) -> Path:
    """A picture of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size[::-1], 3), grey, np.uint8))
    return path


def write_seeded_weights(path: Path, network: Network, seed: int) -> None:
    """The weights behind the golden results."""
    random = np.random.Generator(np.random.PCG64(seed))

    def uniform(count: int, low: float, high: float) -> np.ndarray:
        return random.random(count, dtype=np.float32) * np.float32(high - low) + np.float32(low)

    with path.open("wb") as file:
        np.array([0, 2, 5, 0, 0], "<i4").tofile(file)
        for layer in plan_layers(network):
            section = layer.section
            if not isinstance(section, Convolutional):
                continue
            fan_in = layer.input_shape[0] // section.groups * section.size**2
            limits = [(-0.1, 0.1), (0.5, 1.5)] * 2 if section.batch_normalize else [(-0.5, 0.5)]
            for low, high in limits:
                uniform(section.filters, low, high).tofile(file)
            bound = (6 / fan_in) ** 0.5 if section.batch_normalize else 0.5 * (3 / fan_in) ** 0.5
            if isinstance(network.sections[layer.index + 1], Shortcut):
                bound *= 0.2  # the sums of deep networks stay near 1
            uniform(section.filters * fan_in, -bound, bound).tofile(file)


def make_record(found, truths, difficult=(), path="a.jpg", size=(100, 100)) -> Record:
    """found: (class, score, left), truths and difficult: (class, left); boxes of 10 x 10 pixels in
    one row of an image of size"""
    values = torch.tensor(found, dtype=torch.float32).reshape(-1, 3)
    boxes = values[:, 2:] * torch.tensor((1, 0, 1, 0)) + torch.tensor((0, 0, 10, 10))

    def labels(rows) -> torch.Tensor:
        rows = [(label, left + 5, 5, 10, 10) for label, left in rows]
        return torch.tensor(rows).reshape(-1, 5) / torch.tensor((1, *size, *size))

    detections = Detections(boxes, values[:, 1], values[:, 0].long())
    return Record(Path(path), size, detections, labels(truths), labels(difficult))
