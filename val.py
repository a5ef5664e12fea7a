#!/usr/bin/env python3
"""Measures mAP as Darknet, the VOC devkit and COCO do: `python val.py --data X.data --cfg X.cfg --weights X.weights`.
Source: Darknet's src/detector.c, validate_detector_map; yolov4/evaluation.py and protocols.py do the work."""

import argparse
import json
import sys
import warnings
from pathlib import Path

from yolov4.cfg import read_data
from yolov4.runs import network_files, one_line_errors, run_settings, validation_list


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="mAP, precision, recall, F1 and average IoU, as `darknet detector map` counts them; VOC's and "
        "COCO's figures from the same pass. Without arguments: the newest run's best weights on its validation list."
    )
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--data", help="Darknet's .data file: its valid, names, difficult")
    images.add_argument("--images", metavar="LIST", help="list of images, one a line")
    parser.add_argument("--weights", help=".weights, or a .pt checkpoint (default: the newest run's)")
    parser.add_argument("--cfg", help="default: the .cfg beside the weights")
    parser.add_argument("--names", help="default: that of --data, else the .names beside the weights")
    parser.add_argument("--difficult", metavar="LIST", help="list whose labels are the difficult objects")
    parser.add_argument("--iou-thresh", type=float, default=0.5, help="Darknet's (default %(default)s)")
    parser.add_argument(
        "--points", type=int, choices=(0, 11, 101), default=0, help="Darknet's recall points; 0: area under the curve"
    )
    parser.add_argument(
        "--protocols", nargs="+", choices=("darknet", "voc", "coco"), default=[], help="whose rules to count by "
        "(default: darknet, and voc where there is VOC XML or a list of difficult objects)"
    )  # fmt: skip
    parser.add_argument("--coco-json", metavar="FILE", help="COCO's truths (default: those of the label files)")
    parser.add_argument("--coco-results", metavar="FILE", help="write the detections there, for COCO's server")
    parser.add_argument("--batch", type=int, help="images at a time (default: 8 on a GPU, else 1)")
    parser.add_argument("--compile", action="store_true", help="by torch.compile: a minute more before the first image")
    parser.add_argument("--half", choices=("bf16", "fp16"), help="half precision: faster on a GPU and on some CPUs")
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the best there is)")
    parser.add_argument(
        "--letter-box",
        action=argparse.BooleanOptionalAction,
        help="keep the aspect (default: as the cfg says)",
    )
    parser.add_argument("--report", metavar="FOLDER", help="write tables, curves, the worst images, report.html there")
    parser.add_argument("--json", metavar="FILE", help="write the result there too")
    parser.add_argument("--runs", default="runs", help="where runs are kept (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.weights and not (arguments.data or arguments.images):
        parser.error("--weights without images to evaluate on: give --data or --images")
    if (arguments.coco_json or arguments.coco_results) and "coco" not in arguments.protocols:
        parser.error("--coco-json, --coco-results without coco: give --protocols coco")
    return arguments


def image_lists(arguments: argparse.Namespace, run: Path | None) -> tuple[str, str | None, str | None]:
    """list of images, list of difficult objects, .names or None"""
    if arguments.images:
        return arguments.images, arguments.difficult, arguments.names
    if arguments.data:
        data = read_data(arguments.data)
        if "valid" not in data:
            raise ValueError(f"{arguments.data}: has no valid, expected `valid = LIST`")
        return (
            data["valid"],
            arguments.difficult or data.get("difficult"),
            arguments.names or data.get("names"),
        )
    difficult = arguments.difficult or run_settings(run).get("difficult")
    return str(validation_list(run)), difficult, arguments.names


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("val.py"):
        files = network_files(arguments.weights, arguments.cfg, arguments.names, arguments.runs)
        images, difficult, names = image_lists(arguments, files.run)
        print(f"{files}; images {images}", flush=True)
        # after the checks: torch takes seconds to import
        from yolov4.evaluation import collect
        from yolov4.memory import keep_freed_memory
        from yolov4.predict import Detector
        from yolov4.protocols import check, measure, to_json

        warnings.showwarning = lambda message, *_: print(f"val.py: {message}", file=sys.stderr)
        check(arguments.protocols, arguments.coco_json)
        keep_freed_memory()
        detector = Detector(
            files.cfg, files.weights, names or files.names, arguments.device, arguments.letter_box, arguments.compile,
            arguments.half,
        )  # fmt: skip
        evaluator = collect(detector, images, difficult=difficult, batch=arguments.batch, progress=True)
        results = measure(
            evaluator, detector.names, arguments.protocols, iou_thresh=arguments.iou_thresh, points=arguments.points,
            coco_json=arguments.coco_json, coco_results=arguments.coco_results,
        )  # fmt: skip
        print("\n\n".join(result.table(detector.names) for result in results.values()))
        if arguments.report:
            from yolov4 import report

            darknet = results.get("darknet") or evaluator.result(arguments.iou_thresh, arguments.points)
            notes = [each.table(detector.names) for name, each in results.items() if name != "darknet"]
            folder, records = arguments.report, evaluator.records
            print(report.write(folder, records, darknet, detector.names, notes=notes, run=files.run))
        if arguments.json:
            plain = to_json(results, detector.names)
            Path(arguments.json).write_text(json.dumps(plain, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
