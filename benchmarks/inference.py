#!/usr/bin/env python3
"""Speed of a network: torch as detect.py runs it, ONNX Runtime, OpenCV's dnn, OpenVINO, side by side on this CPU.
Every engine gets the same cfg, weights from a seed and the same input; they take turns, so that load is shared."""

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2
import torch
from common import PRODUCT_FLOPS, ROOT, machine, matrix_product, medians, seeded_network, table, with_torchs_mish

from yolov4 import Darknet, decode, save_weights
from yolov4.cfg import format_cfg
from yolov4.export import export_onnx
from yolov4.inference import for_inference
from yolov4.memory import keep_freed_memory
from yolov4.runs import one_line_errors
from yolov4.runtime import OnnxNetwork


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Milliseconds a batch, network and decoding, by every engine here.")
    parser.add_argument("--cfg", default=str(ROOT / "cfg/yolov4.cfg"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=416, help="width and height (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="pictures at a time (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="rounds; their median counts (default %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's, %(default)s")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes a minute before")
    return parser.parse_args()


def engines(model: Darknet, folder: Path, images: torch.Tensor, arguments) -> Iterator[tuple[str, Callable]]:
    """Name and call of every engine that is installed."""
    cfg, weights, exported = (folder / f"network.{suffix}" for suffix in ("cfg", "weights", "onnx"))
    cfg.write_text(format_cfg(*model.network[:2]), encoding="utf-8")
    save_weights(model, weights, seen=0)
    if hasattr(cv2.dnn, "readNetFromDarknet"):
        darknet = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
        outputs = darknet.getUnconnectedOutLayersNames()

        def opencv():
            darknet.setInput(images.numpy())
            return darknet.forward(outputs)

        yield "OpenCV, .weights", opencv
    yield from torch_engines(model, images, arguments.compile)
    if not find_spec("onnxscript"):
        return
    export_onnx(model, exported)
    if find_spec("onnxruntime"):
        network = OnnxNetwork(exported, arguments.threads)
        yield "ONNX Runtime, .onnx", lambda: network(images)
    if find_spec("openvino"):
        import openvino

        settings = {"INFERENCE_NUM_THREADS": arguments.threads, "PERFORMANCE_HINT": "LATENCY"}
        for precision, name in (("f32", "OpenVINO, .onnx"), ("bf16", "OpenVINO, .onnx, bf16")):
            settings["INFERENCE_PRECISION_HINT"] = precision  # by itself it takes bfloat16 where it is faster
            openvino_network = openvino.compile_model(str(exported), "CPU", settings)
            yield name, lambda network=openvino_network: network(images.numpy())


def torch_engines(model: Darknet, images: torch.Tensor, compiled: bool) -> Iterator[tuple[str, Callable]]:
    def decoding(network: Callable, x: torch.Tensor) -> Callable:
        return lambda: [decode(logits, head) for logits, head in zip(network(x), model.heads, strict=True)]

    device, last = torch.device("cpu"), images.to(memory_format=torch.channels_last)
    yield "torch, a plain port", decoding(with_torchs_mish(copy.deepcopy(model)), images)
    yield "torch, as detect.py", decoding(for_inference(copy.deepcopy(model), device), last)
    narrow = torch.bfloat16
    yield "torch, --half bf16", decoding(for_inference(copy.deepcopy(model), device, dtype=narrow), last.to(narrow))
    if compiled:
        yield "torch, --compile", decoding(for_inference(copy.deepcopy(model), device, compiled), last)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    keep_freed_memory()
    with one_line_errors("inference.py"), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = seeded_network(arguments.cfg, arguments.size)
        images = torch.rand(arguments.batch, model.net.channels, arguments.size, arguments.size)
        calls = {"product": matrix_product(), **dict(engines(model, Path(folder), images, arguments))}
        seconds = medians(calls, arguments.repeats)
    rate = PRODUCT_FLOPS / seconds.pop("product")
    flops = arguments.batch * sum(layer.flops for layer in model.plan)
    print(machine())
    print(f"{arguments.cfg} at {arguments.size}, {arguments.batch} pictures; {flops / 1e9:.1f} GFLOPs, at the "
          f"{rate / 1e9:.0f} GFLOP/s of a matrix product {flops / rate * 1e3:.0f} ms")  # fmt: skip
    others = {"OpenCV": seconds.get("OpenCV, .weights"), "OpenVINO": seconds.get("OpenVINO, .onnx")}
    others = {name: value for name, value in others.items() if value} | {"the product": flops / rate}
    rows = [
        (name, f"{value * 1e3:.0f}", *(f"{value / other:.2f}" for other in others.values()))
        for name, value in seconds.items()
    ]
    print(table(("", "ms", *(f"of {name}'s" for name in others)), rows))


if __name__ == "__main__":
    main()
