#!/usr/bin/env python3
"""Draws what a network finds on pictures, videos, a camera: `python detect.py PHOTO --weights X.weights`.
Source: Darknet's src/detector.c, test_detector, for thresholds and the keys of the .json."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from yolov4.runs import network_files, one_line_errors, validation_list

SHOWN = 8  # pictures of the newest run's validation list, without arguments


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Finds objects, draws and saves them. Without arguments: the newest run's best weights on "
        f"{SHOWN} pictures of its validation list."
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="pictures, folders, .txt lists, globs, videos, a camera's number",
    )
    parser.add_argument("--weights", help=".weights, a .pt checkpoint, an .onnx (default: the newest run's)")
    parser.add_argument("--cfg", help="default: the .cfg beside the weights")
    parser.add_argument("--names", help="default: the .names beside the weights, else class numbers")
    parser.add_argument("--thresh", type=float, default=0.25, help="least confidence (default %(default)s)")
    parser.add_argument("--nms", type=float, default=0.45, help="0: no suppression (default %(default)s)")
    parser.add_argument(
        "--letter-box",
        action=argparse.BooleanOptionalAction,
        help="keep the aspect (default: as the cfg says)",
    )
    parser.add_argument("--batch", type=int, help="pictures at a time (default: 8 on a GPU, else 1)")
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


class Session:
    """One call of the script: detects, draws, saves, prints; counts what could not be read in `failed`."""

    def __init__(self, arguments: argparse.Namespace, detector, output):
        self.arguments, self.detector, self.output, self.failed = arguments, detector, output, 0

    def run(self, sources: list[str]) -> None:
        """Everything in order; ends early where the user closes the window."""
        from yolov4.sources import is_stream

        groups = ((streams, list(group)) for streams, group in groupby(sources, is_stream))
        for streams, group in groups:
            going = all(map(self.video, group)) if streams else self.pictures(group)
            if not going:
                break

    def pictures(self, sources: Iterable[str]) -> bool:
        """Pictures one after the other; False where the user has seen enough"""
        from yolov4.output import write_picture

        for prediction in self.stream(sources, on_error=self.skip):
            path = self.output.place(prediction.source, ".jpg")
            drawn = self.drawn(prediction)
            write_picture(path, drawn)
            self.output.add(prediction.source, path.stem, prediction.image.shape[1::-1], prediction.detections)
            found = zip(prediction.detections.labels.tolist(), prediction.detections.scores.tolist(), strict=True)
            text = ", ".join(f"{self.detector.names[label]}: {score * 100:.0f}%" for label, score in found)
            print(
                f"{prediction.source}: {text or 'nothing'}  ({prediction.milliseconds:.0f} ms) -> {path}",
                flush=True,
            )
            if not self.shown(drawn, wait=0):
                return False
        return True

    def video(self, source: str) -> bool:
        """A video or a camera, which Ctrl-C ends; False where the user has seen enough"""
        from yolov4.output import video_writer
        from yolov4.sources import Video, is_camera

        try:
            video = Video(source)
        except ValueError as error:
            self.skip(source, error)
            return True
        path = self.output.place(source, ".mp4")
        writer = video_writer(path, video.rate, video.size)
        frames, milliseconds, going = 0, 0.0, True
        predictions = self.stream(video, live=is_camera(source))
        try:
            for prediction in predictions:
                frames, milliseconds = frames + 1, milliseconds + prediction.milliseconds
                drawn = self.drawn(prediction)
                writer.write(drawn)
                self.output.add(source, f"{path.stem}_{frames:06}", video.size, prediction.detections)
                going = self.shown(drawn, wait=1)
                if not going:
                    break
        except KeyboardInterrupt:
            going = False
        finally:
            predictions.close()
            writer.release()
        print(f"{source}: {frames} frames  ({milliseconds / max(frames, 1):.0f} ms each) -> {path}", flush=True)
        return going

    def stream(self, sources: Iterable, **options) -> Iterator:
        given = self.arguments
        return self.detector.stream(sources, given.thresh, given.nms, given.batch, **options)

    def drawn(self, prediction):
        from yolov4.plots import draw_detections

        return draw_detections(prediction.image, prediction.detections, self.detector.names)

    def skip(self, source: str, error: Exception) -> None:
        self.failed += 1
        print(f"detect.py: {error}; skipped", file=sys.stderr, flush=True)

    def shown(self, image, wait: int) -> bool:
        """Shows it if asked, `wait` milliseconds or (0) until a key; False after q, Esc"""
        if not self.arguments.show:
            return True
        import cv2

        cv2.imshow("detect.py", image)
        return cv2.waitKey(wait) & 0xFF not in (27, ord("q"))


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("detect.py"):
        files = network_files(arguments.weights, arguments.cfg, arguments.names, arguments.runs, exported=True)
        sources = arguments.sources or pictures_of(files.run)
        print(
            files if arguments.sources else f"{files}; {len(sources)} pictures of its validation list",
            flush=True,
        )
        # after the checks: torch takes seconds to import
        from yolov4.output import Output
        from yolov4.predict import Detector
        from yolov4.sources import expand

        sources = [path for source in sources for path in expand(source)]
        detector = Detector(files.cfg, files.weights, files.names, arguments.device, arguments.letter_box)
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
