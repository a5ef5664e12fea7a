#!/usr/bin/env python3
"""Milliseconds per batch, network and decoding: torch as detect.py runs it beside a plain port,
OpenCV's dnn, ONNX Runtime and OpenVINO, with the same cfg, weights and input, taking turns.
`python benchmarks/inference.py` prints the table of docs/speed.md."""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2
import torch
from common import ROOT, machine, medians, plain_port, seeded_network, table

import yolov4
from yolov4.export import OnnxNetwork, export_onnx, quantise

CALIBRATED = 4  # images; random ones, since only the time counts


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    both = [str(ROOT / f"cfg/{name}.cfg") for name in ("yolov4", "yolov4-tiny")]
    parser.add_argument("--cfg", nargs="+", default=both, help="default: yolov4 and yolov4-tiny")
    parser.add_argument("--size", type=int, default=416, help="width and height (default 416)")
    parser.add_argument("--batch", type=int, default=1, help="pictures at a time (default 1)")
    parser.add_argument("--repeats", type=int, default=20, help="rounds (default 20)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: a minute more")
    return parser.parse_args()


def decoding(network: Callable, x: torch.Tensor, heads) -> Callable:
    return lambda: [yolov4.decode(*each) for each in zip(network(x), heads, strict=True)]


def plain_engine(cfg: Path, weights: Path, images: torch.Tensor) -> Callable:
    """An eager port on the device and in the type of the images."""
    plain = plain_port(yolov4.Darknet.from_cfg(cfg)).eval()
    yolov4.load_weights(plain, weights)
    return decoding(plain.to(images.device, images.dtype), images, plain.heads)


def torch_engine(cfg: Path, weights: Path, images: torch.Tensor, **options) -> tuple:
    """Network, its input and heads, as a Detector with these options has them."""
    detector = yolov4.Detector(cfg, weights, **options)
    x = images.to(detector.device, memory_format=torch.channels_last)
    return detector.network, x, detector.heads


def torch_engines(cfg: Path, weights: Path, images: torch.Tensor, compiled: bool) -> Iterator:
    yield "torch, a plain port", plain_engine(cfg, weights, images)
    variants = {"torch, as detect.py": {}, "torch, --half bf16": {"half": "bf16"}}
    for name, options in (
        variants | ({"torch, --compile": {"compiled": True}} if compiled else {})
    ).items():
        yield name, decoding(*torch_engine(cfg, weights, images, device="cpu", **options))


def other_engines(cfg: Path, weights: Path, images: torch.Tensor) -> Iterator[tuple[str, Callable]]:
    pixels = images.numpy()
    if hasattr(cv2.dnn, "readNetFromDarknet"):
        darknet = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
        outputs = darknet.getUnconnectedOutLayersNames()
        yield "OpenCV, .weights", lambda: (darknet.setInput(pixels), darknet.forward(outputs))
    if not (find_spec("onnxscript") and find_spec("onnxruntime")):
        return
    exported, int8 = weights.with_suffix(".onnx"), weights.with_name("int8.onnx")
    model = yolov4.Darknet.from_cfg(cfg)
    yolov4.load_weights(model, weights)
    export_onnx(model, exported)
    shutil.copy(exported, int8)
    forms = {".onnx": (exported, None)}
    if find_spec("nncf"):
        quantise(int8, range(CALIBRATED), lambda _: torch.rand_like(images[:1]))
        forms[".onnx in int8"] = int8, None
    for name, (path, _) in forms.items():
        network = OnnxNetwork(path, openvino=False)
        yield f"ONNX Runtime, {name}", lambda network=network: network(images)
    if find_spec("openvino"):
        for name, (path, half) in (forms | {".onnx in bfloat16": (exported, "bf16")}).items():
            network = OnnxNetwork(path, half)
            yield f"OpenVINO, {name}", lambda network=network: network(images)


def measure(cfg: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each engine."""
    with tempfile.TemporaryDirectory() as folder:
        path, weights = Path(folder) / "x.cfg", Path(folder) / "x.weights"
        model = seeded_network(cfg, arguments.size)
        path.write_text(yolov4.format_cfg(model.net, model.sections))
        yolov4.save_weights(model, weights, seen=0)
        images = torch.rand(arguments.batch, model.net.channels, arguments.size, arguments.size)
        calls = dict(other_engines(path, weights, images))
        calls |= dict(torch_engines(path, weights, images, arguments.compile))
        return medians(calls, arguments.repeats)


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments()
    found = {Path(cfg).stem: measure(cfg, arguments) for cfg in arguments.cfg}
    print(f"{machine()}\n{arguments.size} x {arguments.size}, batch {arguments.batch}")
    header, (first, *_) = [""], next(iter(found.values()))
    for name in found:
        header += [f"{name}, ms", f"of {first}"]
    rows = [
        [engine]
        + [text for each in found.values()
           for text in (f"{each[engine] * 1e3:.1f}", f"{each[engine] / each[first]:.2f}")]
        for engine in next(iter(found.values()))
    ]  # fmt: skip
    print(table(header, rows))


if __name__ == "__main__":
    main()
