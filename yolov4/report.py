"""The report of an evaluation: tables, figures, the worst images, and a page that shows them all.
The page loads nothing: its pictures are data: URIs.  Also the picture of a data set."""

import base64
import csv
import io
import json
import math
from pathlib import Path

import cv2
import numpy as np

from yolov4 import metrics, plots
from yolov4.anchors import box_sizes, heads
from yolov4.data import label_path, read_labels
from yolov4.files import replacing

WORST = 12  # images that are shown
CONFUSED = 10  # pairs of classes that are named
SHOWN = 5000  # images of which a data set is drawn
RUN_PICTURES = {
    "chart.png": "Loss, mAP, loss terms and learning rate over the iterations",
    "data.png": "The training data: classes, box sizes against the anchors, positions",
    "train_batch*.jpg": "Augmented training images with their boxes",
}


def write(folder, records, result, names, *, notes=(), run=None):
    """Writes ap.txt, ap.csv, ap.json, precision_recall.png, f1.png, confusion.png, confusion.csv,
    worst.jpg and report.html, whose path is returned.

    records, result: of one `Evaluator`.  notes: tables of other protocols.  run: the folder of a
    training, whose chart, pictures and settings the page shows.  Raises ValueError for an image
    that cannot be read any more.
    """
    folder, names = Path(folder), list(names)
    limits = result.settings.confidence, result.iou_thresh
    pairings = [metrics.pair(record, *limits) for record in records]
    matrix = metrics.confusion(pairings, len(names))
    plain = result.to_json(names)
    classes = [plain["classes"][0], *(row.values() for row in plain["classes"])]
    rows = np.column_stack(([*names, "no object"], matrix))
    mistakes = np.array([len(each.missed) + len(each.false) for each in pairings])
    worst = np.argsort(-mistakes, kind="stable")[:WORST]
    worst = [(records[index], pairings[index]) for index in worst if mistakes[index]]
    images = [plots.draw_mistakes(*each, names) for each in worst]
    files = {
        "ap.txt": "\n\n".join((result.table(names), *notes)) + "\n",
        "ap.json": json.dumps(plain, indent=1),
        "ap.csv": _csv(classes),
        "confusion.csv": _csv([["ground truth", *names, "missed"], *rows]),
        "precision_recall.png": _png(plots.precision_recall(result, names)),
        "f1.png": _png(plots.f1(result, names)),
        "confusion.png": _png(plots.confusion(matrix, names)),
    }
    if images:
        files["worst.jpg"] = _jpeg(plots.contact_sheet(images, 480))
    other = matrix[:-1, :-1].copy()  # class for class, without those that are right
    np.fill_diagonal(other, 0)
    _, f1 = metrics.f1_scores(result.matches)
    page = {
        "result": result, "names": names, "notes": notes, "matrix": matrix, "other": other,
        "confused": np.argwhere(other)[np.argsort(-other[other > 0], kind="stable")][:CONFUSED],
        "best": (f1.max(), metrics.THRESHOLDS[f1.argmax()]), "files": files, "uri": _uri,
        "worst": [(*each, _jpeg(image)) for each, image in zip(worst, images, strict=True)],
    }  # fmt: skip
    if run:
        run = Path(run)
        page |= {
            "run": run.name,
            "pictures": [
                (path.read_bytes(), text)
                for name, text in RUN_PICTURES.items()
                for path in sorted(run.glob(name))
                if path.is_file()
            ],
            "settings": json.loads((run / "settings.json").read_bytes()),
        }
    import jinja2  # training alone does without it

    template = Path(__file__).with_suffix(".html").read_text()
    template = jinja2.Template(template, autoescape=True, trim_blocks=True)
    files["report.html"] = template.render(page)
    for name, content in files.items():
        with replacing(folder / name) as beside:
            text = isinstance(content, str)
            beside.write_bytes(content.encode("utf-8", "backslashreplace") if text else content)
    return folder / "report.html"


def _csv(rows):
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue()


def _jpeg(image):
    return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 85))[1].tobytes()


def _png(figure):
    stream = io.BytesIO()
    figure.savefig(stream, dpi=150)
    return stream.getvalue()


def _uri(picture):
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def write_data(path, images, names, network):
    """Draws the labels of images; sizes in pixels of the network's input, as its anchors are.
    Of more than SHOWN images it takes every second, third, ... and says so."""
    total, images = len(images), images[:: math.ceil(len(images) / SHOWN)]
    title = f"{total} images" if len(images) == total else f"{len(images)} of {total} images"
    labels = np.concatenate([read_labels(label_path(image)) for image in images])
    sizes = box_sizes(images, (network.net.width, network.net.height), network.net.letter_box)
    anchors = [[yolo.anchors[i] for i in yolo.mask] or yolo.anchors for yolo in heads(network)]
    with replacing(path) as beside:
        plots.data(labels, sizes, anchors, names, title).savefig(beside, dpi=120)
