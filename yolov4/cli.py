"""The commands train, val, detect, convert, export, anchors, labels, cfg: options, files, printing.
Source: Darknet's src/detector.c (train, map, test, demo, calc_anchors)."""

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import sys
import warnings
from argparse import BooleanOptionalAction
from contextlib import closing, contextmanager, nullcontext, suppress
from contextvars import copy_context
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from traceback import extract_tb
from typing import get_args, get_type_hints

from tqdm import tqdm

from yolov4.cfg import (
    Net,
    check_size,
    format_cfg,
    names_of_classes,
    parse_anchors,
    read_cfg,
    read_names,
)
from yolov4.files import (
    FORCE,
    PRETRAINED,
    READ,
    WRITTEN,
    own_file,
    pretrained,
    printable,
    replacing,
)
from yolov4.networks import PRESETS, cfg_text, project_files
from yolov4.recipe import CFG, DATA, WEIGHTS, read_recipe

# A command imports the rest after parsing: torch takes seconds, and --help does not need it.

MACHINE = {"device", "workers", "cache"}  # settings that may change when a run is resumed
QUIET = {  # unreadable files get a line of our own; CV_MJPEG prints bytes of them
    "OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "OPENCV_VIDEOIO_PRIORITY_CV_MJPEG": "0",
}  # fmt: skip
SHOWN = 8  # images of the validation list that detect takes without arguments
CALIBRATED, TIMED = 300, 50  # images for the ranges of an int8 network, at most, and for its time
OPENCV_LIMIT = 5e-5  # OpenCV rounds convolutions differently; wrong weights are off by far more


def say(line):
    """Prints above the progress bar, and at once where the output is a file."""
    try:
        tqdm.write(line)
        sys.stdout.flush()
    except OSError:  # nobody reads it: `| tee` was ended by the same Ctrl-C
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def write(path, text):
    with replacing(path) as part:
        part.write_text(text, "utf-8", "backslashreplace", "\n")


def expect_suffix(path, *suffixes):
    if (found := Path(path).suffix) not in suffixes:
        raise ValueError(f"{path}: found suffix {found!r}, expected {' or '.join(suffixes)}")


def make_printable(stream):
    """What is written to the stream is `printable`; once, however often this is called."""
    stream.reconfigure(errors="backslashreplace")
    write = type(stream).write
    stream.write = lambda text: write(stream, printable(text))


def complain(message, *_):
    """One line on stderr, above the progress bar."""
    if getattr(message, "filename", None):  # of an OSError
        message = f"{message.filename}: {message.strerror}"
    tqdm.write(f"{Path(sys.argv[0]).name}: {str(message) or repr(message)}", file=sys.stderr)


@contextmanager
def one_line_errors():
    """Warnings and errors as one line on stderr; exit code 1, or 130 for Ctrl-C."""
    warnings.showwarning = complain
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        complain(error)
        sys.exit(1)
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(130)
    except Exception as error:
        frame = extract_tb(error.__traceback__)[-1]
        where, reason = f"{Path(frame.filename).stem}:{frame.lineno}", " ".join(str(error).split())
        found = f"unexpected {type(error).__name__} at {where}: {reason[:200]}"
        complain(f"{found} (--traceback shows it)")
        sys.exit(1)


def reader(kind, expected):
    """`kind` of a flag's text; its ValueError becomes a sentence with what was expected."""

    def read(text):
        with suppress(ValueError, OverflowError):
            return kind(text)
        raise argparse.ArgumentTypeError(f"{text}: expected {expected}")

    return read


def within(kind, least, most):
    """A reader of numbers in least..most."""

    def number(text):
        if least <= (found := kind(text)) <= most:
            return found
        raise ValueError

    return reader(number, f"{kind.__name__} in {least}..{most}")


def pair(most):
    """A reader of WIDTHxHEIGHT, each in 1..most."""
    side = within(int, 1, most)

    def sides(text):
        width, height = map(side, text.lower().split("x"))
        return width, height

    return reader(sides, "two numbers such as 3x2")


LARGEST = 2**31 - 1  # of Darknet's int
count = within(int, 1, LARGEST)


def or_auto(read):
    return lambda text: text if text == "auto" else read(text)


def device(text):
    if re.fullmatch(r"cpu|mps|cuda|(cuda:)?\d+", text):
        return text
    raise ValueError


KINDS = {  # of values; others are text
    "COUNT": count, "INT": within(int, 0, LARGEST), "SEED": within(int, 0, 2**63 - 1),
    "FLOAT": within(float, 0, 1e6), "POSITIVE": within(float, 1e-9, 1e6),
    "SHARE": within(float, 0, 1), "SIZE": pair(32768), "TILES": or_auto(pair(256)),
    "NUMBER": or_auto(count),
    "WORKERS": within(int, 0, 256), "ANCHORS": reader(parse_anchors, "width,height, ... above 0"),
    "DEVICE": reader(device, "cuda, cuda:1 or 1, mps, cpu"),
}  # fmt: skip
POLICIES = "|".join(get_args(get_type_hints(Net)["policy"]))

DEVICE = """
--device DEVICE      cuda, cuda:1 or 1, mps, cpu (default: cuda, else mps, else cpu)
"""
INFERENCE = f"""{DEVICE}
--half bf16|fp16     half precision: faster on a GPU and on some CPUs; of an .onnx bf16
--compile            torch.compile: one more minute before the first image
--[no-]letter-box    keep the aspect ratio (default: the cfg's)
--batch COUNT        images at a time (default: 8 on a GPU and for an .onnx, else 1)
--tiles TILES=auto?   2x2: look at so many overlapping parts of each image besides the whole, for
                     small objects; without a value parts of the network's size
"""
RUNS = """
--runs FOLDER=runs   where the runs are
"""
FILES = f"""{RUNS}
--cfg FILE           default: the .cfg beside the weights
--names FILE         default: the .names beside the weights, else COCO's for 80 classes, VOC's for
                     20, class numbers
--download           download the weights if missing: {", ".join(PRETRAINED)}
"""


ROW = r"^(\S+)(?: (([^\s=?*+]+)(?:=([^\s?*+]+))?)([?*+]?))?  +(.+(?:\n +.+)*)"  # of a table


def new_parser(command, *tables):
    """A parser with the options of the tables; its description is the command's docstring.

    A table is the title of a group, or nothing, and rows `--flag KIND=DEFAULT  help`.  `a|b` are
    choices, no KIND is a switch, [no-] one with its opposite; * and + take several values;
    `KIND=VALUE?` is VALUE for the flag alone.
    """
    parser = argparse.ArgumentParser(Path(sys.argv[0]).name, description=command.__doc__)
    for title, rows in (table.split("\n", 1) for table in tables):
        group = parser.add_argument_group(title) if title else parser
        for flag, kind, name, value, nargs, text in re.findall(ROW, rows, re.M):
            if not kind:
                action = BooleanOptionalAction if "[no-]" in flag else "store_true"
                flag = flag.replace("[no-]", "")
                group.add_argument(flag, action=action, default=None, help=text)
                continue
            options = {"const": value} if nargs == "?" else {"default": value or None}
            options["choices"] = name.split("|") if "|" in name else None
            options |= {"type": KINDS.get(name), "nargs": nargs or None, "help": text}
            group.add_argument(flag, metavar=kind, **options)
    return parser


TRAIN = (
    f"""files{RUNS}
--data DATA          Darknet's .data file, a data.yaml, or the folder of an export: VOC XML, COCO
                     JSON, YOLO labels (default: {DATA})
--cfg FILE           the network and its recipe; or one of {", ".join(PRESETS)}, for as many classes
                     as DATA has (default: {CFG})
--weights FILE       .weights to start from, whole or partial
                     (default: {WEIGHTS} without --cfg, else none)
--recipe NAME        a file of flags and keys, or NAME of cfg/NAME.recipe; flags override it
--download           download pretrained weights if missing: {", ".join(PRETRAINED)}
--lenient            pass over mistyped keys of the cfg, as Darknet does, and those not supported
--clear              start at iteration 0 whatever the weights have seen
--freeze INT         so many first layers keep their weights
--name NAME          the run's folder in --runs (default: the recipe's or the cfg's name)
--resume RUN?        resume a run (default: the newest)
""",
    f"""instead of the cfg's
--batch COUNT        images of one update, summed over all processes; the learning rate is for one
                     update
--subdivisions NUMBER  mini-batches of one update: more need less memory; auto: the fewest that a
                     GPU has memory for
--max-batches COUNT  iterations
--epochs POSITIVE    the same, in passes over the images
--learning-rate POSITIVE  of one update
--policy {POLICIES}  of the learning rate; onecycle: half a cosine after burn-in
--loss darknet|yolov5  yolov5: targets assigned by the ratio of sides, autograd; heads and cfg are
                     changed to fit (default: darknet)
--width COUNT        of the network input, pixels
--height COUNT       of the network input, pixels
--ema SHARE=0.9999?  decay of an exponential moving average of the weights (default: none)
""",
    f"""running{DEVICE}
--amp off|bf16|fp16  mixed precision (default: off)
--sync-bn            with torchrun: batch normalisation over the mini-batches of all processes
--workers WORKERS    processes that prepare images (default: one per core, 8 at most)
--cache FLOAT        GB of memory for decoded images, shared by the workers (default: none; with
                     torchrun each process has its own)
--seed SEED          of weights and augmentation (default: 0)
--deterministic      the same weights from the same seed on a GPU too, but slower
--eval-every INT     iterations between evaluations, 0: only at the end (default: 4 epochs and at
                     least 100 iterations, after burn-in, as Darknet)
--save-every COUNT   iterations between checkpoints (default: 100)
--tensorboard        write TensorBoard events into the run's folder
--patience INT       stop after so many evaluations without a better mAP
""",
)


def train(words):
    """Trains a network. Without flags: cfg/yolov4-voc.cfg on cfg/voc.data from
    pretrain/yolov4.conv.137 with Darknet's loss. The cfg holds where no flag and no recipe says
    otherwise."""
    parser = new_parser(train, *TRAIN)
    known = parser.parse_known_args(words)[0]
    recipe = read_recipe(known.recipe).train if known.recipe else {}
    overridden = {"epochs": known.max_batches, "weights": known.cfg}
    recipe = {key: value for key, value in recipe.items() if not overridden.get(key)}
    given = parser.parse_args([*as_words(recipe), *words])
    if given.epochs and given.max_batches:
        parser.error("--epochs and --max-batches exclude each other")
    flags = {key: value for key, value in vars(given).items() if value is not None}
    resume = "resume" in flags
    if resume and (wrong := flags.keys() - MACHINE - {"resume", "runs", "name"}):
        flag = min(wrong).replace("_", "-")
        parser.error(f"--resume keeps the settings of the run, expected no --{flag} with it")

    from yolov4 import runs, training

    if resume:
        folder = runs.run_folder(given.runs, given.resume or given.name)
        settings = runs.resumed_settings(folder, say)
        settings = replace(settings, **{key: flags[key] for key in MACHINE & flags.keys()})
    else:
        settings = runs.new_settings(flags, say)
        stem = Path(settings.recipe or settings.cfg).stem
        folder = runs.new_run_folder(given.runs, given.name or stem)
    run = training.Training(settings, folder, resume, say)
    folder = run.run()
    weights = ", ".join(sorted(path.name for path in folder.glob("*.weights")))
    run.say(f"{folder}: chart.png, results.csv, {weights}, last.pt")
    return folder


def as_words(options):
    """{"max_batches": 10, "clear": True} -> the words of a command line."""
    return [
        f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
        for key, value in options.items()
        if value is not None and value is not False
    ]


def find_files(given):
    """The NetworkFiles of --weights, --cfg, --names, --runs; downloads the weights if asked to."""
    from yolov4.weights import network_files

    if missing := pretrained(given.weights, given.download):
        raise ValueError(missing)
    return network_files(given.weights, given.cfg, given.names, given.runs)


def make_detector(given, files):
    """The Detector that the options of INFERENCE ask for."""
    from yolov4.detector import Detector

    options = given.device, given.letter_box, given.compile, given.half, given.tiles
    detector = Detector(files.cfg, files.weights, files.names, *options)
    say(f"{files.weights}: {detector}")
    return detector


VAL = """
--weights FILE       .weights, a .pt checkpoint, an .onnx (default: the newest run's)
--data DATA          as train takes it: its valid, names, difficult
--images LIST        list of images, one per line, or a folder
--difficult LIST     list whose labels are the difficult objects
--iou-thresh SHARE=0.5  Darknet's
--points 0|11|101=0  Darknet's recall points; 0: area under the curve
--protocols darknet|voc|coco+  default: darknet, and voc where there is VOC XML or a list of
                     difficult objects; coco where one of its files is given
--coco-json FILE     COCO's ground truth (default: the label files)
--coco-results FILE  write the detections there, for COCO's server with --coco-json
--report FOLDER      write tables, curves, the worst images, report.html there
--json FILE          write the result there too
"""


def val(words):
    """mAP, precision, recall, F1 and average IoU as `darknet detector map` counts them; VOC's and
    COCO's figures from the same pass. Without arguments: the newest run's best weights on its
    validation list."""
    parser = new_parser(val, VAL, FILES, INFERENCE)
    given = parser.parse_args(words)
    if given.weights and not (given.data or given.images):
        parser.error("--weights without images to evaluate on: give --data or --images")

    from yolov4 import report, runs
    from yolov4.evaluation import collect
    from yolov4.protocols import check, measure, to_json

    data = runs.data_options(given.data, given.runs, say) if given.data else {}
    images = given.images or data.get("valid")
    if given.data and not images:
        raise ValueError(f"{given.data}: expected valid = LIST")
    given.names = given.names or data.get("names")
    files = find_files(given)
    if not images:
        images, data = runs.validation_list(files.run), runs.run_settings(files.run)
    print(f"{files}; images {images}", flush=True)
    coco = {"coco_json": given.coco_json, "coco_results": given.coco_results}
    protocols = given.protocols or (["coco"] if any(coco.values()) else [])
    check(protocols, given.coco_json)
    detector = make_detector(given, files)
    names, difficult = detector.names, given.difficult or data.get("difficult")
    left_out = []
    options = {"difficult": difficult, "batch": given.batch, "progress": True}
    options["on_error"] = lambda error: left_out.append(complain(error))
    evaluator = collect(detector, images, **options)
    limits = {"iou_thresh": given.iou_thresh, "points": int(given.points)}
    results = measure(evaluator, names, protocols, **limits, **coco)
    tables = {protocol: result.table(names) for protocol, result in results.items()}
    print("\n\n".join(tables.values()))
    if given.json:
        write(given.json, json.dumps(to_json(results, names), indent=1))
    if given.report:
        notes = [table for protocol, table in tables.items() if protocol != "darknet"]
        found = evaluator.records, evaluator.result(**limits), names
        print(report.write(given.report, *found, notes=notes, run=files.run))
    if left_out:
        sys.exit(1)


DETECT = """
sources SOURCE*       images, folders, .txt lists, globs, videos, a camera's number, addresses
                     (rtsp://, http://), - for a list on the standard input
--weights FILE       .weights, a .pt checkpoint, an .onnx (default: the newest run's)
--thresh SHARE=0.25  confidence threshold
--nms SHARE=0.45     IoU threshold, 0: no NMS
--every COUNT=1      N: of videos only the frames 1, 1 + N, 1 + 2N, ...; the video written has only
                     these and lasts as long
--reconnect FLOAT=60  seconds for which a camera or stream that breaks off is tried again
--classes NAME+      only objects of these classes, by name or number
--out FOLDER         for the images (default: runs/detect, then runs/detect-2 ...)
--save-crops         every object as OUT/crops/CLASS/NAME_NUMBER.jpg
--codec avc1|vp09|mp4v  of videos (default: the first that OpenCV writes here)
--save-txt           OUT/labels/NAME.txt: class cx cy w h, for training
--json FILE          all detections, with Darknet's keys
--show               open a window too; q or Esc ends
"""


def detect(words):
    """Finds objects, draws and saves them. Without arguments: the newest run's best weights on 8
    images of its validation list."""
    parser = new_parser(detect, DETECT, FILES, INFERENCE)
    given = parser.parse_args(words)
    if given.weights and not given.sources:
        parser.error("--weights without anything to detect on: give SOURCE")

    from yolov4.data import read_image_list
    from yolov4.runs import new_run_folder, validation_list
    from yolov4.video import Closed, Output, Session, expand, is_stream

    files = find_files(given)
    sources, note, unread = [], "", []
    for source in given.sources:
        try:
            sources += expand(source)
        except (ValueError, OSError) as error:
            unread.append(complain(error))
    if not given.sources:
        paths = read_image_list(validation_list(files.run))
        sources = [str(path) for path in paths[:: max(1, len(paths) // SHOWN)][:SHOWN]]
        note = f"; {len(sources)} images of its validation list"
    print(f"{files}{note}", flush=True)
    detector, inputs = make_detector(given, files), [*files[:3], *given.sources, *sources]
    output = Output(
        given.out or new_run_folder(given.runs, "detect"), detector.names, filter(None, inputs),
        given.save_txt, given.json, given.save_crops,
    )  # fmt: skip
    session = Session(given, detector, output, say, complain)
    with closing(output), suppress(Closed):
        for streams, group in groupby(sources, is_stream):
            if streams:
                for source in group:
                    session.video(source)
            else:
                session.images(list(group))
    if session.failed or unread:
        sys.exit(1)


CONVERT = """
weights IN?          .pt or .weights (default: the newest run's last.pt)
out OUT?             .weights or .pt (default: beside IN)
--ema                take the exponential moving average of the weights
--upto COUNT         write only so many first layers, as yolov4.conv.137
--verify IMAGE?      read the result again, compare bytes, run an image in OpenCV too
--data DATA          with --verify: measure the mAP on its valid list with both too
"""


def convert(words):
    """Converts a .pt checkpoint to Darknet's .weights, with .cfg and .names beside it, and back."""
    given = new_parser(convert, CONVERT, FILES).parse_args(words)

    from yolov4 import runs, weights

    if given.weights:
        source = Path(given.weights)
        suffix = ".pt" if source.suffix == ".weights" else ".weights"
        target = Path(given.out or source.with_suffix(suffix))
    else:
        run = runs.run_folder(given.runs, None)
        source, target = run / "last.pt", run / f"{run.name}.weights"
        given.weights = source
        print(f"taking the newest run: {source} -> {target}")
    if given.upto is None:
        expect_suffix(target, ".weights", ".pt")
    if target.resolve() == source.resolve():
        raise ValueError(f"{target}: is the source itself, expected another file")
    if given.ema and not weights.load_checkpoint(source)["ema"]:
        raise ValueError(f"{source}: has no running average of the weights, expected one (--ema)")
    files = find_files(given)
    model, names = weights.load_network(source, files.cfg, given.ema)
    names = names_of_classes(files.names or names, model.heads[-1].classes, source)
    net, layers, seen = model.net, len(model.plan), model.seen
    text = format_cfg(net, model.sections)
    check_size(net, target)
    if target.suffix == ".pt":
        state = {"cfg": text, "names": names, "model": model.state_dict(), "ema": None}
        state |= {"seen": seen, "iteration": seen // net.batch, "version": model.weights_version}
        weights.save_checkpoint(target, state)
        print(f"{target}: the network with cfg and names, {seen:,} images seen")
        return
    write(target.with_suffix(".names"), "".join(f"{name}\n" for name in names))
    write(target.with_suffix(".cfg"), f"{WRITTEN} convert\n{text}")
    weights.save_weights(model, target, seen, given.upto)
    layers = f"the first {given.upto} of {layers}" if given.upto else layers
    beside = f"{target.stem}.cfg and {target.stem}.names beside it"
    print(f"{target}: {layers} layers, {0 if given.upto else seen:,} images seen; {beside}")
    if given.verify is not None:
        print(weights.check_bytes(target.with_suffix(".cfg"), target, model))
        if not given.upto:
            compare_with_opencv(target, net, given.verify, source.parent, given.data)


def compare_with_opencv(weights, net, image, run, data):
    """Compares predictions on an image, else the run's first for validation, else on noise; and
    the mAP on a data set, if one is given."""
    import cv2
    import torch

    from yolov4.data import as_seen, load_image, read_image_list
    from yolov4.detector import Detector, resize_image
    from yolov4.evaluation import evaluate
    from yolov4.export import OpenCvNetwork, opencv_difference
    from yolov4.runs import data_options, validation_list

    cfg, name = weights.with_suffix(".cfg"), f"OpenCV {cv2.__version__}"
    with suppress(ValueError, OSError):  # the source is of no run, or its list is gone
        image = image or read_image_list(validation_list(run))[0]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(1, net.channels, net.height, net.width, generator=generator)
    if image:
        pixels = as_seen(load_image(image), net.channels)
        inputs = resize_image(pixels, (net.width, net.height))[None, : net.channels]
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        return say(f"{name}: reads no Darknet files; --verify runs an image with opencv-python<5")
    difference, shown = opencv_difference(cfg, weights, inputs), image or "noise"
    if difference > OPENCV_LIMIT:
        found = f"its predictions on {shown} differ by {difference:.3g}"
        raise ValueError(f"{name}: {found}, expected below {OPENCV_LIMIT}")
    say(f"{name}: the largest difference of its boxes and scores on {shown} is {difference:.2g}")
    if data:
        images = data_options(data).get("valid")
        for where, network in ("here", weights), (name, OpenCvNetwork(cfg, weights)):
            result = evaluate(Detector(None, network), images)
            say(f"{images}: mAP@0.50 {result.map:.2%}, {result.detections} detections, {where}")


EXPORT = """
weights WEIGHTS?     .weights or .pt (default: the newest run's)
out OUT?             default: beside the weights, with the suffix .onnx
--nms                NMS in the graph too -> boxes (n, 4), scores (n,), labels (n,), image_index
                     (n,). ONNX has plain IoU only: with nms_kind=greedynms or diounms it keeps
                     fewer boxes than Darknet. detect.py needs no --nms
--thresh SHARE=0.25  of --nms: confidence threshold
--nms-thresh SHARE=0.45  of --nms: IoU threshold
--int8 LIST          8-bit integers, with ranges of values from the images of LIST, some hundred;
                     its labels give the mAP before and after
"""


def export(words):
    """Writes an .onnx for any batch size: images (batch, 3, height, width), RGB 0..1 -> boxes
    (batch, N, 4), xyxy relative to the network input, and scores (batch, N, classes) = objectness *
    class probability."""
    given = new_parser(export, EXPORT, FILES).parse_args(words)

    from yolov4.export import LIMIT, OPSET, Suppression, export_onnx
    from yolov4.weights import load_network

    files = find_files(given)
    out = Path(given.out or files.weights.with_suffix(".onnx"))
    expect_suffix(out, ".onnx")
    print(files, flush=True)
    model, names = load_network(files.weights, files.cfg)
    nms = Suppression(given.thresh, given.nms_thresh) if given.nms else None
    exported = export_onnx(model, out, files.names or names, nms)
    net, head, boxes = model.net, model.heads[-1], exported.predictions
    images = f"(batch, {net.channels}, {net.height}, {net.width})"
    scores = f"(batch, {boxes}, {head.classes})"
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, opset {OPSET}, "
        f"images {images} -> boxes (batch, {boxes}, 4), scores {scores}"
    )
    if nms:
        print(
            f"{out}: then NMS in the graph at plain IoU > {given.nms_thresh:g} of scores > "
            f"{given.thresh:g}; the cfg's nms_kind is {head.nms_kind}"
        )
    print(
        f"{out}: ONNX Runtime and torch differ by {exported.boxes:.2g} in boxes and "
        f"{exported.scores:.2g} in scores at most (batches of 1 and 2, limit {LIMIT:g})"
    )
    if given.int8:
        to_int8(out, given.int8, nms._asdict() if nms else {})


def to_int8(path, images, thresholds):
    """Quantises an .onnx; prints size, mAP and time of both forms."""
    from yolov4.data import read_image_list
    from yolov4.detector import Detector
    from yolov4.evaluation import evaluate
    from yolov4.export import quantise

    paths = read_image_list(images)
    paths = paths[:: -(-len(paths) // CALIBRATED)]

    def measured():
        detector = Detector(None, path)
        mean_ap = evaluate(detector, images, **thresholds).map
        shown = detector.stream(paths[:TIMED], **thresholds, batch=1)
        time = statistics.median(each.milliseconds for each in shown)
        size = path.stat().st_size / 1e6
        say(
            f"{path}: {size:.1f} MB, mAP@0.50 {mean_ap:.2%} on {images}, {time:.1f} ms per image "
            f"in {detector.network.engine}"
        )
        return detector

    detector = measured()
    quantise(path, paths, lambda source: detector.read(source)[3])
    measured()


ADVICE = """\
New anchors help where the boxes are unlike COCO's (all tiny, all long) and the network is
trained from the weights of the backbone (conv.137) or from scratch. They do not help, and may
cost accuracy, where the heads are trained already: those weights belong to their anchors, and
fine-tuning starts with every box wrong. So no other command computes anchors. Darknet's own
advice is to change anchors only if you know what you do: then mask= should give anchors below
30x30 to the finest head, below 60x60 to the next, the rest to the last, and filters= before a
head has to be (classes + 5) * anchors of its mask. This command changes anchors= only; a box
whose best anchor is in no mask is trained by no head."""


ANCHORS = """
list LIST            list of images; labels as for training
--cfg FILE           the network whose anchors are compared
--size SIZE          WIDTHxHEIGHT of the network input (default: the cfg's)
--num COUNT          of anchors (default: the cfg's, else 9)
--seed SEED=0        of the k-means
--out FILE           write the cfg there with the new anchors, in whole pixels
--plot FILE          draw classes, box sizes against the cfg's anchors, positions there (.png)
--names FILE         class names of the plot (default: class numbers)
"""


def anchors(words):
    """Computes anchors for a list of images by k-means and compares them with those of a cfg."""
    parser = new_parser(anchors, ANCHORS)
    parser.epilog = ADVICE
    given = parser.parse_args(words)
    if not given.cfg and (given.out or given.plot or not given.size):
        parser.error("expected --cfg or --size, and --cfg with --out or --plot")
    if given.out and given.size:
        parser.error("--out keeps the size of --cfg, expected no --size")

    from yolov4.anchors import fit, heads, with_anchors
    from yolov4.data import read_image_list
    from yolov4.report import write_data

    given.cfg = given.cfg and own_file(given.cfg, ".cfg")
    if given.out:
        expect_suffix(given.out, ".cfg")
    network = read_cfg(given.cfg) if given.cfg else None
    new, _, lines = fit(given.list, network, given.size, given.num, given.seed)
    print(*lines, sep="\n")
    if given.out:
        text = with_anchors(network, Path(given.cfg).read_bytes().decode("utf-8-sig"), new)
        write(given.out, f"{WRITTEN} anchors\n{text}")
        print(f"written: {given.out}")
    if given.plot:
        names = names_of_classes(given.names, heads(network)[0].classes)
        paths = read_image_list(given.list)
        write_data(given.plot, paths, names, network)
        print(f"{given.plot}: the boxes of {len(paths)} images")


LABELS = """
sources SOURCE+      a folder of VOC XML (VOCdevkit, LabelImg, CVAT, Roboflow ...), COCO JSON or
                     YOLO labels; or a data.yaml, a .data file, JSON files, a list with boxes, and
                     the folder that has their images, where that is another
--download           download VOC 2007 and 2012 there first: 2.9 GB
--sets SET+          of VOC, such as 2012_train 2007_test (default: all found)
--names FILE         class names, or auto for those in use (default: those of the source)
--out FOLDER         default: data/ and the name of the source
--keep-difficult     of VOC: difficult objects count as others
--beside             write images (hard links) and labels into one folder, as every Darknet has them
--copy               the same with copies
"""


def labels(words):
    """Any data set -> Darknet's labels, lists of images, .names and .data, in a new folder."""
    given = new_parser(labels, LABELS).parse_args(words)

    from yolov4.labels import convert, download_voc, hard_link

    if given.download:
        download_voc(given.sources[0])
    names = [] if given.names == "auto" else given.names
    names = read_names(names) if names else names
    beside = shutil.copyfile if given.copy else hard_link if given.beside else None
    options = {"sets": given.sets, "keep_difficult": given.keep_difficult, "beside": beside}
    found = convert(given.sources, given.out, names=names, **options)
    print("\n".join(found.report()))


CFG_OPTIONS = f"""
name NAME?           {", ".join(PRESETS)}; or a .cfg, whose layers are printed
--all FOLDER         write every .cfg of the project there
--classes COUNT      number of classes
--names FILE         class names, one per line, instead of --classes
--anchors ANCHORS    "width,height, width,height, ..." in pixels of the network input
--width COUNT        of the network input
--height COUNT       of the network input
--max-batches COUNT  iterations
--batch COUNT        images of one update
--subdivisions COUNT  mini-batches of one update
--out FILE           default: it is printed
"""


def cfg(words):
    """Writes a network as a .cfg, for any classes, anchors, size; or prints a .cfg's layers."""
    parser = new_parser(cfg, CFG_OPTIONS)
    changes = {
        key: value for key, value in vars(parser.parse_args(words)).items() if value is not None
    }
    name, folder, names, out = (changes.pop(key, None) for key in ("name", "all", "names", "out"))
    if bool(name) == bool(folder) or (names and "classes" in changes):
        parser.error("expected NAME or --all FOLDER, and one of --classes and --names")
    if folder:
        for file, text in project_files().items():
            write(Path(folder, file), text)
        return
    if name.endswith(".cfg"):
        from yolov4.model import Darknet, summary

        return print(summary(Darknet.from_cfg(name)))
    if names:
        changes["classes"] = len(read_names(names))
    try:
        text = cfg_text(name, shlex.join(sys.argv[1:]), **changes)
    except ValueError as error:
        parser.error(error)
    if out:
        expect_suffix(out, ".cfg")
        write(out, text)
    else:
        sys.stdout.write(text)


def detector(words):
    """Darknet's own command lines: detector train|test|map|demo|calc_anchors DATA CFG ..."""
    from yolov4.darknet import detector

    detector(words)


def partial(words):
    """Darknet's: partial CFG WEIGHTS OUT N writes the first N layers."""
    from yolov4.darknet import partial

    partial(words)


def main(name: str | None = None) -> None:
    """`yolov4 COMMAND ...`, or a script's one command."""
    commands = train, val, detect, convert, export, anchors, labels, cfg, detector, partial
    commands = {command.__name__: command for command in commands}
    program, *words = (word for word in sys.argv if word not in ("--traceback", "--force"))
    if not name:
        parser = argparse.ArgumentParser(
            "yolov4",
            epilog="yolov4 COMMAND --help lists its options.  With all: --traceback shows where an "
            "error is, --force replaces what is read, and pictures, .cfg and .names of others.",
        )
        parser.add_argument("command", choices=commands)
        name, words = parser.parse_args(words[:1]).command, words[1:]
        program = f"yolov4 {name}"
    os.environ |= QUIET | os.environ
    context = copy_context()  # ends with the command
    force = "--force" in sys.argv or name == "train"
    context.run(FORCE.set, force)
    context.run(READ.set, None if force else {})
    for stream in "stdout", "stderr":
        if not getattr(sys, stream):  # closed
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        make_printable(getattr(sys, stream))
    with nullcontext() if "--traceback" in sys.argv else one_line_errors():
        sys.argv = [program, *words]  # for messages
        context.run(commands[name], words)
