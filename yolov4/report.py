"""The report of an evaluation: tables, figures, the worst images, and one page of HTML that shows them all.
No source: yolov4.curves says what the numbers are."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from yolov4 import curves, figures, mistakes, page
from yolov4.curves import Matches, Pairing
from yolov4.files import replacing
from yolov4.plots import contact_sheet
from yolov4.result import Record, Result

WORST = 12  # images that are shown
CONFUSIONS = 10  # pairs of classes that are named
FORMATS = {
    "truths": "{}", "ap": "{:.2%}", "tp": "{}", "fp": "{}", "precision": "{:.2f}", "recall": "{:.2f}", "f1": "{:.2f}",
    "average_iou": "{:.1%}",
}  # fmt: skip


def write(
    folder: str | Path,
    records: Sequence[Record],
    result: Result,
    names: Sequence[str],
    *,
    notes: Sequence[str] = (),
    run: str | Path | None = None,
) -> Path:
    """Writes ap.txt, ap.csv, ap.json, precision_recall.png, f1.png, confusion.png, confusion.csv, worst.jpg and
    report.html, whose path is returned.

    records, result: of one `Evaluator`; the report takes IoU and confidence from the result.  notes: texts that the
    page shows as they are (tables of other protocols).  run: the folder of a training, of which the page shows chart,
    training pictures and settings.  Raises ValueError for an image that cannot be read any more.
    """
    folder, names = Path(folder), list(names)
    matches = curves.match(records, len(names), result.iou_thresh)
    pairings = [curves.pair(record, result.settings.confidence, result.iou_thresh) for record in records]
    title = f"Evaluation{f' of {Path(run).name}' if run else ''}: mAP {result.map:.2%} at IoU {result.iou_thresh:g}"
    parts = [
        _summary(result, matches),
        _classes(folder, result, names, notes),
        _curves(folder, matches, result, names),
        _confusion(folder, curves.confusion(records, pairings, len(names)), result, names),
        _worst(folder, records, pairings, names),
    ]
    text = page.document(title, parts + ([_run(Path(run))] if run else []))
    _save(folder / "report.html", text.encode("utf-8", "replace"))
    return folder / "report.html"


def _summary(result: Result, matches: Matches) -> str:
    settings, (threshold, f1) = result.settings, curves.best_threshold(matches)
    text = (
        f"mAP {result.map:.2%}. At confidence > {settings.confidence:g}: precision {result.precision:.2f}, "
        f"recall {result.recall:.2f}, F1 {result.f1:.2f}."
    )
    if f1:
        text += f" The mean F1 of the classes is best at confidence > {threshold:.3f}: {f1:.2f}."
    counts = f"{result.images} images, {result.truths.sum()} objects, {result.detections} detections."
    return page.paragraph(text, "big") + page.paragraph(counts) + page.paragraph(f"Protocol: {result.protocol}")


def _classes(folder: Path, result: Result, names: list[str], notes: Sequence[str]) -> str:
    values = result.to_json(names)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, values["classes"][0])
    writer.writeheader()
    writer.writerows(values["classes"])
    _save(folder / "ap.csv", stream.getvalue().encode())
    _save(folder / "ap.txt", ("\n\n".join((result.table(names), *notes)) + "\n").encode())
    _save(folder / "ap.json", json.dumps(values, indent=1).encode())

    def cells(name: str, row: dict) -> list[str]:
        return [name, *(form.format(row[key]) for key, form in FORMATS.items())]

    sums = {key: getattr(result, key).sum() for key in ("truths", "tp", "fp")}
    rows = [cells(each["name"], each) for each in values["classes"]]
    table = page.table(
        f"TP to IoU at confidence > {result.settings.confidence:g}; ratios 0 to 1",
        ("class", "objects", "AP", "TP", "FP", "precision", "recall", "F1", "IoU"),
        rows, cells("all", values | sums | {"ap": result.map}), bar=2,
    )  # fmt: skip
    return page.section("Classes", table, *map(page.preformatted, notes))


def _curves(folder: Path, matches: Matches, result: Result, names: list[str]) -> str:
    threshold, f1 = curves.best_threshold(matches)
    recall = _picture(folder, "precision_recall.png", figures.precision_recall(matches, result.ap, names),
                      f"Precision over recall of {len(names)} classes; the area under a curve is its AP of the table "
                      "above.")  # fmt: skip
    best = f"the mean is best, {f1:.2f}, at {threshold:.3f}" if f1 else "no detection finds anything"
    confidence = _picture(folder, "f1.png", figures.f1(matches, names, result.settings.confidence),
                          f"F1 over confidence; {best}.")  # fmt: skip
    return page.section("Curves", page.group("pair", recall, confidence))


def _confusion(folder: Path, matrix: np.ndarray, result: Result, names: list[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows([["truth", *names, "missed"]] + [
        [name, *row] for name, row in zip([*names, "no object"], matrix.tolist(), strict=True)
    ])  # fmt: skip
    _save(folder / "confusion.csv", stream.getvalue().encode())
    inner = matrix[:-1, :-1] * (1 - np.eye(len(names), dtype=int))
    order = np.argsort(-inner, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [(*np.unravel_index(index, inner.shape), inner.flat[index]) for index in order if inner.flat[index]]
    rows = [[names[truth], names[found], str(count), str(matrix[truth].sum())] for truth, found, count in pairs]
    alt = (
        f"Confusion matrix: of {matrix[:-1].sum()} objects {np.trace(matrix[:-1, :-1])} are found as what they are, "
        f"{inner.sum()} as another class, {matrix[:-1, -1].sum()} are missed; {matrix[-1].sum()} boxes are on no object"
    )
    how = (
        f"Detections above {result.settings.confidence:g} and truths in pairs, one to one, at IoU > "
        f"{result.iou_thresh:g}: equal classes first, then the others. A second box on an object that is found stands "
        "in the last row. TP and FP of the table are Darknet's: there a box belongs to the truth it overlaps most."
    )
    kind = "small" if len(names) < 8 else "wide huge" if len(names) > figures.COUNTED else "wide"
    parts = [page.paragraph(how), _picture(folder, "confusion.png", figures.confusion(matrix, names), alt, kind)]
    if rows:
        parts.append(page.table("Taken for another class most often", ("truth", "detected as", "times", "of"), rows))
    return page.section("Confusion", *parts)


def _worst(folder: Path, records: Sequence[Record], pairings: Sequence[Pairing], names: list[str]) -> str:
    legend = (
        '<p>Truths are <b class="truth">blue</b>, detections <b class="found">orange</b>; what is missed or false has '
        "a thick line and says so.</p>"
    )
    sheet, parts = [], []
    for record, pairing in mistakes.worst(records, pairings, WORST):
        sheet.append(mistakes.draw(record, pairing, names))
        caption = f"{record.path.name}: {mistakes.describe(record, pairing, names)}"
        parts.append(page.picture(_jpeg(sheet[-1]), f"{record.path.name} with truths and detections", caption))
    if not sheet:
        return page.section("Worst images", page.paragraph("No image has a missed or a false box."))
    _save(folder / "worst.jpg", _jpeg(contact_sheet(sheet, 480)))
    return page.section("Worst images", legend, page.group("sheet", *parts))


def _run(run: Path) -> str:
    """What a training left: its pictures and settings"""
    shown = {"data.png": "The training data: classes, box sizes against the anchors, positions"}
    shown |= {path.name: "Augmented training images with their boxes" for path in sorted(run.glob("train_batch*.jpg"))}
    shown = {"chart.png": "Loss, mAP, loss terms and learning rate over the iterations"} | shown
    found = [page.picture((run / name).read_bytes(), alt, alt) for name, alt in shown.items() if (run / name).exists()]
    parts = [*found[:1], page.group("pair", *found[1:])]
    if (run / "settings.json").exists():
        settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
        # where the files lie stays in settings.json: a report is for others too
        rows = [[key, Path(str(value)).name] for key, value in settings.items() if value is not None]
        parts.append(
            page.table("Settings, files by their names; the rest is as the cfg says", ("setting", "value"), rows)
        )
    return page.section("Training", *parts)


def _picture(folder: Path, name: str, figure: Figure, caption: str, kind: str = "") -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    _save(folder / name, stream.getvalue())
    return page.picture(stream.getvalue(), caption.split(";")[0].split(":")[0], caption, kind)


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 85))[1].tobytes()


def _save(path: Path, content: bytes) -> None:
    with replacing(path) as beside:
        beside.write_bytes(content)
