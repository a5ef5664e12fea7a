#!/usr/bin/env python3
"""Speed of one picture through a network: torch, ONNX Runtime, OpenCV's dnn, OpenVINO, side by side on this CPU.
Every engine gets the same cfg, weights from a seed and the same input; they take turns, so that load is shared."""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from yolov4 import Darknet, save_weights
from yolov4.cfg import format_cfg, read_cfg
from yolov4.export import Decoding, export_onnx
from yolov4.runs import one_line_errors
from yolov4.runtime import OnnxNetwork

SIDE = 1024  # of the matrices whose product is the machine's rate


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Milliseconds a picture, network and decoding, by every engine here.")
    parser.add_argument("--cfg", default="cfg/yolov4.cfg", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=416, help="width and height (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="rounds; their median counts (default %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's, %(default)s")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes a minute before")
    return parser.parse_args()


def seeded_network(cfg: str, size: int) -> Darknet:
    """Fresh weights with rolling variances of 1, so that values neither vanish nor explode."""
    network = read_cfg(cfg)
    net = replace(network.net, width=size, height=size)
    model = Darknet(network._replace(net=net), torch.Generator().manual_seed(0)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1.0)
    return model


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
    decoding = Decoding(model.fuse()).to(memory_format=torch.channels_last)
    last = images.to(memory_format=torch.channels_last)
    yield "torch", lambda: decoding(last)
    if arguments.compile:
        compiled = torch.compile(decoding)
        yield "torch, compiled", lambda: compiled(last)
    if not find_spec("onnxscript"):
        return
    export_onnx(model, exported)
    if find_spec("onnxruntime"):
        network = OnnxNetwork(exported, arguments.threads)
        yield "ONNX Runtime, .onnx", lambda: network(images)
    if find_spec("openvino"):
        import openvino

        settings = {"INFERENCE_NUM_THREADS": arguments.threads, "PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_PRECISION_HINT"] = "f32"  # as all others; by itself it takes bfloat16 where it is faster
        openvino_network = openvino.compile_model(str(exported), "CPU", settings)
        yield "OpenVINO, .onnx", lambda: openvino_network(images.numpy())


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    matrix = torch.rand(SIDE, SIDE)
    with one_line_errors("inference.py"), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = seeded_network(arguments.cfg, arguments.size)
        images = torch.rand(1, model.net.channels, arguments.size, arguments.size)
        calls = {"matrix product": lambda: matrix @ matrix, **dict(engines(model, Path(folder), images, arguments))}
        seconds = {name: [] for name in calls}
        for turn in range(arguments.repeats + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rate, flops = 2 * SIDE**3 / median.pop("matrix product"), sum(layer.flops for layer in model.plan)
    versions = f"torch {torch.__version__}, OpenCV {cv2.__version__}"
    print(f"{arguments.cfg} at {arguments.size}, one picture, {arguments.threads} threads; {versions}")
    print(f"{flops / 1e9:.1f} GFLOPs; matrix products run at {rate / 1e9:.0f} GFLOP/s: {flops / rate * 1e3:.0f} ms")
    print(f"{'':22} {'ms':>8} {'of OpenCV':>10} {'of the rate':>12}")
    base = median.get("OpenCV, .weights", float("nan"))
    for name, value in median.items():
        print(f"{name:22} {value * 1e3:8.1f} {value / base:10.2f} {flops / value / rate:12.0%}")


if __name__ == "__main__":
    main()
