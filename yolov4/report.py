"""The report of an evaluation: tables, figures, the worst images, and a page that shows them all.
The page loads nothing: its pictures are data: URIs.  Also the picture of a data set."""

import base64
import csv
import io
import json
import math
from pathlib import Path

import cv2
import jinja2
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
    folder, names, confidence = Path(folder), list(names), result.settings.confidence
    pairings = [metrics.pair(record, confidence, result.iou_thresh) for record in records]
    matrix = metrics.confusion(pairings, len(names))
    plain = result.to_json(names)
    _save(folder / "ap.txt", "\n\n".join((result.table(names), *notes)) + "\n")
    _save(folder / "ap.json", json.dumps(plain, indent=1))
    rows = (row.values() for row in plain["classes"])
    _save(folder / "ap.csv", _csv([plain["classes"][0], *rows]))
    rows = ([name, *row] for name, row in zip([*names, "no object"], matrix.tolist(), strict=True))
    _save(folder / "confusion.csv", _csv([["ground truth", *names, "missed"], *rows]))
    other = matrix[:-1, :-1] * (1 - np.eye(len(names), dtype=int))
    confused = np.argwhere(other)[np.argsort(-other[other > 0], kind="stable")][:CONFUSED]
    mistakes = [len(pairing.missed) + len(pairing.false) for pairing in pairings]
    worst = np.argsort(np.negative(mistakes), kind="stable")[:WORST]
    worst = [(records[index], pairings[index]) for index in worst if mistakes[index]]
    images = [plots.draw_mistakes(*each, names) for each in worst]
    if images:
        _save(folder / "worst.jpg", _jpeg(plots.contact_sheet(images, 480)))
    _, f1 = metrics.f1_scores(result.matches)
    page = {
        "result": result, "names": names, "notes": notes, "matrix": matrix, "other": other,
        "best": (f1.max(), metrics.THRESHOLDS[f1.argmax()]), "confused": confused,
        "precision_recall": _picture(
            folder / "precision_recall.png", plots.precision_recall(result, names)
        ),
        "f1": _picture(folder / "f1.png", plots.f1(result, names)),
        "confusion": _picture(folder / "confusion.png", plots.confusion(matrix, names)),
        "worst": [
            (*each, _uri(_jpeg(image), ".jpg")) for each, image in zip(worst, images, strict=True)
        ],
    }  # fmt: skip
    if run:
        found = [
            (path, text)
            for name, text in RUN_PICTURES.items()
            for path in sorted(Path(run).glob(name))
        ]
        page |= {
            "run": Path(run).name,
            "pictures": [(_uri(path.read_bytes(), path.suffix), text) for path, text in found],
            "settings": json.loads((Path(run) / "settings.json").read_text(encoding="utf-8")),
        }
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    _save(
        folder / "report.html",
        jinja2.Template(template, autoescape=True, trim_blocks=True).render(page),
    )
    return folder / "report.html"


def _csv(rows):
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue()


def _jpeg(image):
    return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 85))[1].tobytes()


def _picture(path, figure):
    stream = io.BytesIO()
    figure.savefig(stream, dpi=150)
    _save(path, stream.getvalue())
    return _uri(stream.getvalue(), path.suffix)


def _uri(content, suffix):
    kind = "png" if suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _save(path, content):
    with replacing(path) as beside:
        beside.write_bytes(
            content.encode("utf-8", "replace") if isinstance(content, str) else content
        )


def write_data(path, images, names, network):
    """Draws the labels of images; sizes in pixels of the network's input, as its anchors are.
    Of more than SHOWN images it takes every second, third, ... and says so."""
    total, images = len(images), images[:: math.ceil(len(images) / SHOWN)]
    title = f"{total} images" if len(images) == total else f"{len(images)} of {total} images"
    labels = np.concatenate([read_labels(label_path(image)) for image in images])
    sizes = box_sizes(images, (network.net.width, network.net.height), network.net.letter_box)
    anchors = [
        np.array(head.anchors)[list(head.mask or range(len(head.anchors)))]
        for head in heads(network)
    ]
    with replacing(path) as beside:
        plots.data(labels, sizes, anchors, names, title).savefig(beside, dpi=120)
