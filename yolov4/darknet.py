"""Darknet's own command lines, with what they print: detector train, test, map, demo, calc_anchors;
partial.  Source: Darknet's src/detector.c, src/darknet.c (partial), src/image.c (what test prints).
"""

import re
import shutil
import sys
import tempfile
import warnings
from argparse import Namespace
from contextlib import closing
from pathlib import Path

from yolov4 import anchors, runs
from yolov4.data import label_path
from yolov4.detector import Detector, about
from yolov4.evaluation import collect
from yolov4.files import FOREIGN, foreign, fresh
from yolov4.model import Darknet
from yolov4.plots import draw_detections, write_picture
from yolov4.training import Training
from yolov4.video import Output, Session, label_text
from yolov4.weights import load_weights, save_weights

USED = {  # flags that mean something here
    "train": "map clear i dont_show",
    "test": "thresh ext_output out save_labels letter_box i dont_show",
    "map": "thresh iou_thresh points letter_box i dont_show",
    "demo": "thresh out_filename c letter_box i dont_show",
    "calc_anchors": "num_of_clusters width height show",
}
WITH_VALUE = """points mjpeg_port avgframes json_port http_post_host time_limit_sec out_filename out
json_file_output prefix thresh iou_thresh hier c s num_of_clusters width height chart mAP_epochs
gpus i""".split()  # noqa: SIM905


def detector(words):
    """`detector ACTION DATA CFG [WEIGHTS] [SOURCE]` with Darknet's flags, anywhere among them."""
    words, files, flags = iter(words), [], {}
    for word in words:
        if re.match("-[a-zA-Z]", word):
            flags[word[1:]] = next(words, "") if word[1:] in WITH_VALUE else True
        else:
            files.append(word)
    action, data, cfg, weights, source = (*files, *[None] * 5)[:5]
    if action not in USED or not data or not (cfg or action == "calc_anchors"):
        raise ValueError(f"expected {'|'.join(USED)} DATA CFG [WEIGHTS] [IMAGE or VIDEO] [-flags]")
    if unused := flags.keys() - set(USED[action].split()):
        warnings.warn(f"passed over: -{', -'.join(sorted(unused))}")
    data, flags = runs.data_options(data), Namespace(**dict.fromkeys(USED[action].split()) | flags)
    if action == "calc_anchors":
        return calc_anchors(data, flags)
    if action == "train":
        return train(files[1], data, cfg, weights, flags)
    flags.thresh = float(flags.thresh or 0.25)
    found = Detector(cfg, weights, data.get("names"), flags.i, flags.letter_box)
    {"test": test, "map": measure, "demo": demo}[action](found, data, source, flags)


def train(source, data, cfg, weights, flags):
    """Trains into the folder `backup` of the .data file; mAP with -map, else only at the end."""
    given = {"data": source, "cfg": cfg, "weights": weights, "device": flags.i}
    given |= {"eval_every": None if flags.map else 0, "clear": bool(flags.clear), "lenient": True}
    settings = runs.new_settings(given)
    folder = runs.new_run_folder(data.get("backup", "backup"), Path(cfg).stem)
    run = Training(settings, folder, log=True)
    print(f"Saving weights to {run.run()}")


def test(found, data, source, flags):
    """Prints what is found in an image, or in those whose names the standard input gives."""
    output, failed = Output(".", found.names, [], False, flags.out), []
    with closing(output):
        for number, path in enumerate([source] if source else asked(), 1):
            for each in found.stream([path], flags.thresh, on_error=failed.append):
                print_layers(found)
                print(f"{path}: Predicted in {each.milliseconds:f} milli-seconds.")
                print_objects(each.detections, flags.ext_output)
                output.add(path, Path(path).stem, each.image, each.detections, number)
                if flags.save_labels:
                    text = label_text(each.detections, each.image.shape[1::-1])
                    label_path(path).write_text(text, encoding="utf-8")
                try:
                    drawn = draw_detections(each.image, each.detections, found.names)
                    write_picture(fresh(Path("predictions.jpg"), "."), drawn)
                except Exception as error:
                    failed.append(about(path, error))
    if failed:
        raise ValueError("; ".join(map(str, failed)))


def asked():
    """Names of images, as Darknet asks for them."""
    while True:
        print("Enter Image Path: ", end="", flush=True)
        if not (line := sys.stdin.readline()):
            return
        yield line.strip()


def print_layers(found):
    for head in found.heads:
        print(f" Detection layer: {head.index} - type = 28 ")


def print_objects(detections, extended):
    """One line per object from left to right, then its other classes."""
    lefts, found = {}, [*zip(detections.prediction.tolist(), detections, strict=True)]
    for number, (*_, box) in found:
        lefts.setdefault(number, box[0])  # of each prediction, the first of which is its best class
    for _, (name, score, (left, top, right, bottom)) in sorted(found, key=lambda e: lefts[e[0]]):
        place = (
            f"\t(left_x: {left:4.0f}   top_y: {top:4.0f}   width: {right - left:4.0f}   "
            f"height: {bottom - top:4.0f})"
        )
        print(f"{name}: {score * 100:.0f}%{place if extended else ''}")


def measure(found, data, _, flags):
    """The mAP of the list `valid`."""
    print("\n calculation mAP (mean average precision)...")
    confidence, overlap = flags.thresh, float(flags.iou_thresh or 0.5)
    options, failed = {"difficult": data.get("difficult"), "confidence": confidence}, []
    evaluator = collect(found, data["valid"], on_error=failed.append, **options)
    result = evaluator.result(overlap, points := int(flags.points or 0))
    print_layers(found)
    print(
        f"\n detections_count = {result.detections}, unique_truth_count = {result.objects.sum()}  "
    )
    for label, row in enumerate(result.rows(found.names)[:-1]):
        print(
            f"class_id = {label}, name = {row['name']}, ap = {row['ap'] * 100:2.2f}%   \t "
            f"(TP = {row['tp']}, FP = {row['fp']}) "
        )
    points = f"{points} Recall-points" if points else "Area-Under-Curve for each unique Recall"
    tp, fp, missed = result.tp.sum(), result.fp.sum(), result.objects.sum() - result.tp.sum()
    where = f" for conf_thresh = {confidence:.2f},"
    print(
        f"\n{where} precision = {result.precision:.2f}, recall = {result.recall:.2f}, "
        f"F1-score = {result.f1:.2f} "
    )
    print(
        f"{where} TP = {tp}, FP = {fp}, FN = {missed}, "
        f"average IoU = {result.average_iou * 100:.2f} % "
    )
    print(f"\n IoU threshold = {overlap * 100:2.0f} %, used {points} ")
    mean = f"{result.map:f}, or {result.map * 100:2.2f} %"
    print(f" mean average precision (mAP@{overlap:.2f}) = {mean} ")
    if failed:
        raise ValueError("; ".join(map(str, failed)))


def demo(found, data, source, flags):
    """Draws the objects of a video, or of the camera -c, into -out_filename."""
    given = {"thresh": flags.thresh, "nms": 0.45, "batch": None, "every": 1}
    given |= {"reconnect": 60.0, "codec": None, "classes": None, "show": not flags.dont_show}
    if flags.out_filename and foreign(Path(flags.out_filename)):
        raise ValueError(f"{flags.out_filename}: {FOREIGN}")
    with tempfile.TemporaryDirectory() as folder:
        source = source or flags.c or "0"
        output = Output(folder, found.names, [source], False, None)
        session = Session(Namespace(**given), found, output)
        path = session.video(source)
        if session.failed:
            raise ValueError(f"{source}: not read to its end")
        if flags.out_filename:
            shutil.move(path, flags.out_filename)


def calc_anchors(data, flags):
    """Prints anchors for the list `train`, and writes them into anchors.txt."""
    size = int(flags.width or 416), int(flags.height or 416)
    count = int(flags.num_of_clusters or 5)
    print(f"\n num_of_clusters = {count}, width = {size[0]}, height = {size[1]} ")
    new, overlap, _ = anchors.fit(data["train"], size=size, count=count)
    text = ", ".join(f"{width:3.0f},{height:3.0f}" for width, height in new)
    print(f"\n avg IoU = {overlap * 100:2.2f} % \n\nSaving anchors to the file: anchors.txt ")
    print(f"anchors = {text}")
    Path("anchors.txt").write_text(text)


def partial(words):
    """`partial CFG WEIGHTS OUT N`: the first N layers, as yolov4.conv.137."""
    if len(words) != 4:
        raise ValueError("expected partial CFG WEIGHTS OUT N")
    cfg, weights, out, layers = words
    model = Darknet.from_cfg(cfg)
    load_weights(model, weights)
    save_weights(model, out, upto=int(layers))
