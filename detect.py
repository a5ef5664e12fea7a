#!/usr/bin/env python3
"""Draws what a network finds on pictures, videos, streams: `python detect.py PHOTO --weights X.weights`.
Source: Darknet's src/detector.c, test_detector, for thresholds and the keys of the .json."""

import argparse
import os
import sys
from pathlib import Path

from yolov4.runs import network_files, one_line_errors, validation_list

SHOWN = 8  # pictures of the newest run's validation list, without arguments


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Finds objects, draws and saves them. Without arguments: the newest run's best weights on "
        f"{SHOWN} pictures of its validation list."
    )
    sources = "pictures, folders, .txt lists, globs, videos, a camera's number, addresses (rtsp://, http://)"
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=sources)
    parser.add_argument("--weights", help=".weights, a .pt checkpoint, an .onnx (default: the newest run's)")
    parser.add_argument("--cfg", help="default: the .cfg beside the weights")
    parser.add_argument("--names", help="default: the .names beside the weights, else class numbers")
    parser.add_argument("--thresh", type=float, default=0.25, help="least confidence (default %(default)s)")
    parser.add_argument("--nms", type=float, default=0.45, help="0: no suppression (default %(default)s)")
    letter_box = "keep the aspect (default: as the cfg says)"
    parser.add_argument("--letter-box", action=argparse.BooleanOptionalAction, help=letter_box)
    parser.add_argument("--batch", type=positive, help="pictures at a time (default: 8 on a GPU, else 1)")
    every = "of videos only frames 1, 1 + N, 1 + 2N, ...; what comes back has these alone, and plays as long"
    parser.add_argument("--every", type=positive, default=1, metavar="N", help=every)
    reconnect = "how long a camera or stream that breaks off is tried again (default %(default)s)"
    parser.add_argument("--reconnect", type=float, default=60, metavar="SECONDS", help=reconnect)
    parser.add_argument("--compile", action="store_true", help="by torch.compile: a minute more before the first image")
    parser.add_argument("--half", choices=("bf16", "fp16"), help="half precision: faster on a GPU and on some CPUs")
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu (default: the best there is)")
    parser.add_argument("--out", default="runs/detect", help="folder for the pictures (default %(default)s)")
    parser.add_argument("--save-txt", action="store_true", help="OUT/labels/NAME.txt: class cx cy w h, for training")
    parser.add_argument("--json", metavar="FILE", help="all detections, with Darknet's keys")
    parser.add_argument("--show", action="store_true", help="a window too; q or Esc ends")
    parser.add_argument("--runs", default="runs", help="where runs are kept (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.weights and not arguments.sources:
        parser.error("--weights without anything to detect on: give SOURCE")
    return arguments


def pictures_of(run: Path) -> list[str]:
    """Some pictures of a run's validation list, evenly spread"""
    from yolov4.data import read_image_list

    paths = read_image_list(validation_list(run))
    return [str(path) for path in paths[:: max(1, len(paths) // SHOWN)][:SHOWN]]


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("detect.py"):
        files = network_files(arguments.weights, arguments.cfg, arguments.names, arguments.runs, exported=True)
        sources = arguments.sources or pictures_of(files.run)
        print(files if arguments.sources else f"{files}; {len(sources)} pictures of its validation list", flush=True)
        for variable, quiet in (("OPENCV_LOG_LEVEL", "SILENT"), ("OPENCV_FFMPEG_LOGLEVEL", "-8")):
            os.environ.setdefault(variable, quiet)  # bad files have a line of our own
        # after the checks: torch takes seconds to import
        from yolov4.memory import keep_freed_memory
        from yolov4.output import Output
        from yolov4.predict import Detector
        from yolov4.session import Session
        from yolov4.sources import expand

        sources = [path for source in sources for path in expand(source)]
        keep_freed_memory()
        detector = Detector(
            files.cfg, files.weights, files.names, arguments.device, arguments.letter_box, arguments.compile,
            arguments.half,
        )  # fmt: skip
        output = Output(arguments.out, detector.names, sources, arguments.save_txt, arguments.json)
        session = Session(arguments, detector, output)
        try:
            session.run(sources)
        finally:
            output.close()
    if session.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
