#!/usr/bin/env python3
"""Writes a network as an .onnx with its decoding, checked against torch: `python export.py X.weights`.
Source: yolov4/export.py; `detect.py`, ONNX Runtime, OpenVINO and others run the result."""

import argparse
from pathlib import Path

from yolov4.runs import network_files, one_line_errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Writes an .onnx for any batch: images (batch, 3, height, width), RGB 0..1 -> boxes (batch, N, 4), "
        "xyxy relative to the network input, and scores (batch, N, classes) = objectness * class probability."
    )
    parser.add_argument("weights", nargs="?", metavar="WEIGHTS", help=".weights or .pt (default: the newest run's)")
    parser.add_argument("out", nargs="?", metavar="OUT", help="default: beside the weights, with the suffix .onnx")
    parser.add_argument("--cfg", help="default: the .cfg beside the weights")
    parser.add_argument("--names", help="default: the .names beside the weights, else class numbers")
    parser.add_argument(
        "--nms",
        action="store_true",
        help="suppress in the graph too -> boxes (n, 4), scores (n,), labels (n,), image_index (n,). ONNX knows plain "
        "IoU only: with nms_kind=greedynms or diounms it keeps fewer boxes than Darknet. detect.py needs no --nms",
    )
    parser.add_argument("--thresh", type=float, default=0.25, help="of --nms: least score (default %(default)s)")
    parser.add_argument("--nms-thresh", type=float, default=0.45, help="of --nms: largest IoU (default %(default)s)")
    parser.add_argument("--runs", default="runs", help="where runs are kept (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("export.py"):
        files = network_files(arguments.weights, arguments.cfg, arguments.names, arguments.runs)
        out = Path(arguments.out or files.weights.with_suffix(".onnx"))
        if out.suffix != ".onnx":
            raise ValueError(f"{out}: ends in {out.suffix or 'nothing'}, expected .onnx")
        print(files, flush=True)
        # after the checks: torch takes seconds to import
        from yolov4.cfg import read_names
        from yolov4.checkpoint import load_network
        from yolov4.export import LIMIT, OPSET, Suppression, export_onnx
        from yolov4.runtime import INSTALL

        model, names = load_network(files.weights, files.cfg)
        names = read_names(files.names) if files.names else names
        suppression = Suppression(arguments.thresh, arguments.nms_thresh) if arguments.nms else None
        exported = export_onnx(model, out, names, suppression)
        net, head, count = model.net, model.heads[-1], exported.predictions
        print(
            f"{out}: {out.stat().st_size / 1e6:.1f} MB, opset {OPSET}, "
            f"images (batch, {net.channels}, {net.height}, {net.width}) -> "
            f"boxes (batch, {count}, 4), scores (batch, {count}, {head.classes})"
        )
        if suppression:
            print(
                f"{out}: then NMS in the graph at plain IoU > {suppression.nms_thresh:g} of scores > "
                f"{suppression.thresh:g}; the cfg's nms_kind is {head.nms_kind}"
            )
        if exported.boxes is None:
            print(f"{out}: not checked, ONNX Runtime is not installed: {INSTALL}")
        else:
            print(
                f"{out}: ONNX Runtime and torch differ by {exported.boxes:.2g} in boxes and {exported.scores:.2g} in "
                f"scores at most (batches of 1 and 2, limit {LIMIT:g})"
            )


if __name__ == "__main__":
    main()
