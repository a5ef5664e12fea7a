#!/usr/bin/env python3
"""Milliseconds per batch, network and decoding: torch as detect.py runs it beside a plain port,
OpenCV's dnn, ONNX Runtime and OpenVINO, with the same cfg, weights and input, taking turns."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2
import torch
from common import ROOT, machine, medians, plain_port, seeded_network, table

import yolov4


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", default=str(ROOT / "cfg/yolov4.cfg"), help="default: %(default)s")
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
    x = images.to(detector.device, detector.dtype, memory_format=torch.channels_last)
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
    import onnxruntime

    from yolov4.export import export_onnx

    exported = str(weights.with_suffix(".onnx"))
    model = yolov4.Darknet.from_cfg(cfg)
    yolov4.load_weights(model, weights)
    export_onnx(model, exported)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    yield "ONNX Runtime, .onnx", lambda: session.run(None, {"images": pixels})
    if find_spec("openvino"):
        import openvino

        for precision in ("f32", "bf16"):
            hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
            network = openvino.compile_model(exported, "CPU", hints)
            yield f"OpenVINO, .onnx, {precision}", lambda network=network: network(pixels)


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        cfg, weights = Path(folder) / "x.cfg", Path(folder) / "x.weights"
        model = seeded_network(arguments.cfg, arguments.size)
        cfg.write_text(yolov4.format_cfg(model.net, model.sections))
        yolov4.save_weights(model, weights, seen=0)
        images = torch.rand(arguments.batch, model.net.channels, arguments.size, arguments.size)
        calls = dict(other_engines(cfg, weights, images))
        calls |= dict(torch_engines(cfg, weights, images, arguments.compile))
        seconds = medians(calls, arguments.repeats)
    flops = arguments.batch * sum(layer.flops for layer in model.plan)
    print(f"{machine()}\n{arguments.cfg} at {arguments.size}, batch {arguments.batch}")
    print(f"{flops / 1e9:.1f} GFLOPs")
    first = next(iter(seconds))
    rows = [(name, f"{s * 1e3:.1f}", f"{s / seconds[first]:.2f}") for name, s in seconds.items()]
    print(table(("", "ms", f"of {first}"), rows))


if __name__ == "__main__":
    main()
