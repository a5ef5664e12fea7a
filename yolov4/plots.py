"""Pictures for people: boxes on photographs, contact sheets, the chart of a training.
Source: Darknet's draw_detections and chart.png for what they show, not for how."""

import colorsys
import csv
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from yolov4.decoding import Detections

FONT = cv2.FONT_HERSHEY_SIMPLEX
GREY = 114
POINTS = 10_000  # iterations that a chart shows at most, beside those with a mAP


def class_colour(label: int) -> tuple[int, int, int]:
    """BGR 0..255, always the same for a class, neighbours far apart: the hue goes on by the golden ratio."""
    value, saturation = ((1.0, 0.85), (0.8, 1.0), (1.0, 0.55))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, saturation, value)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw_detections(image: np.ndarray, detections: Detections, names: Sequence[str]) -> np.ndarray:
    """A copy of image, uint8 (H, W, 3) BGR, with a box and `name score%` for each; the best lie on top."""
    boxes, labels = detections.boxes.cpu().numpy(), detections.labels.tolist()
    texts = [
        f"{ascii_name(names, label)} {score * 100:.0f}%"
        for label, score in zip(labels, detections.scores.tolist(), strict=True)
    ]
    return draw_boxes(image, boxes[::-1], [class_colour(label) for label in labels[::-1]], texts[::-1])


def draw_labels(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """A copy of image, uint8 (H, W, 3) BGR, with labels (n, 5): class, cx, cy, w, h, relative."""
    height, width = image.shape[:2]
    centres, sides = np.asarray(labels)[:, 1:3], np.asarray(labels)[:, 3:5]
    boxes = np.concatenate((centres - sides / 2, centres + sides / 2), 1) * (width, height, width, height)
    classes = [int(label) for label in np.asarray(labels)[:, 0]]
    colours = [class_colour(label) for label in classes]
    return draw_boxes(image, boxes, colours, [ascii_name(names, label) for label in classes])


def contact_sheet(images: Sequence[np.ndarray], side: int = 320, columns: int | None = None) -> np.ndarray:
    """Pictures uint8 (H, W, 3) BGR of any sizes, side by side -> one picture; the longer sides become `side` pixels."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    scales = [(side - 4) / max(image.shape[:2]) for image in images]
    sizes = [tuple(max(1, round(pixels * scale)) for pixels in image.shape[1::-1])
             for image, scale in zip(images, scales, strict=True)]  # fmt: skip
    tile = max(height for _, height in sizes) + 4  # no higher than the highest needs
    sheet = np.full((math.ceil(len(images) / columns) * tile, columns * side, 3), GREY, np.uint8)
    for index, (image, scale, size) in enumerate(zip(images, scales, sizes, strict=True)):
        top = index // columns * tile + (tile - size[1]) // 2
        left = index % columns * side + (side - size[0]) // 2
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        sheet[top : top + size[1], left : left + size[0]] = cv2.resize(image, size, interpolation=method)
    return sheet


def training_chart(results: str | Path | Sequence[dict], path: str | Path, name: str = "") -> None:
    """Draws loss, mAP, the loss terms of each head and the learning rate over the iterations, as Darknet users know it
    from chart.png.

    results: results.csv or its rows; columns iteration, loss, rate, map (0..1, empty where not measured), and
    class_loss_N and iou_loss_N of the heads, where there are any.  The loss axes are logarithmic, so the high loss of
    the first iterations hides nothing.
    """
    if isinstance(results, str | Path):
        results = read_results(results)
    iterations, losses = _column(results, "loss")
    if not len(losses):
        return
    terms = [
        key for key in results[0] if key.startswith(("class_loss_", "iou_loss_")) and len(_column(results, key)[0])
    ]
    # not above: it takes half a second to import, and detect.py draws no chart
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((10, 9.5 if terms else 7), layout="constrained")
    FigureCanvasAgg(figure)
    top, *middle, bottom = figure.subplots(2 + bool(terms), 1, sharex=True, height_ratios=(5, *[3] * bool(terms), 1))
    handles = _draw_losses(top, iterations, losses)
    measured, maps = _column(results, "map")
    headline = f"iteration {iterations[-1]:.0f}, loss {_smoothed(losses)[-1]:.3g}"
    if len(maps):
        handles += _draw_maps(top.twinx(), measured, maps * 100)
        headline += _best(measured, maps * 100)
    top.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=4, frameon=False)
    top.set_title(f"{name}: {headline}" if name else headline)
    if terms:
        _draw_terms(middle[0], results, terms)
    rates = _column(results, "rate")
    bottom.plot(*rates, color="tab:green", linewidth=1.2)
    bottom.set(xlabel="iteration", ylabel="learning rate", ylim=(0, None))
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    bottom.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def read_results(path: str | Path) -> list[dict[str, str]]:
    """The rows of a results.csv that a chart shows: of a long training every n-th, counted from the last, and all with
    a mAP."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        last = sum(1 for _ in file) - 2  # from 0, after the header
        file.seek(0)
        rows = csv.reader(file)
        header = next(rows, [])
        step, at = last // POINTS + 1, header.index("map") if "map" in header else len(header)
        kept = (row for number, row in enumerate(rows) if (last - number) % step == 0 or any(row[at : at + 1]))
        return [dict(zip(header, row, strict=False)) for row in kept]


def _best(measured: np.ndarray, maps: np.ndarray) -> str:
    """The last mAP, and the best with its iteration, the last of equals, whose weights are kept"""
    return f", mAP {maps[-1]:.1f} %, best {maps.max():.1f} % at {measured[maps == maps.max()][-1]:.0f}"


def _draw_losses(axes, iterations: np.ndarray, losses: np.ndarray) -> list:
    positive = losses > 0
    dots = axes.plot(
        iterations[positive], losses[positive], ".", color="tab:blue", markersize=3, alpha=0.25, label="loss"
    )
    line = axes.plot(iterations, _smoothed(losses), color="tab:blue", linewidth=1.8, label="loss, smoothed")
    lowest, highest = losses[positive].min(initial=np.inf), losses[positive].max(initial=0)
    _logarithmic(axes, lowest, highest, "loss")
    return dots + line


def _draw_terms(axes, results: Sequence[dict], terms: Sequence[str]) -> None:
    """A colour a head: its class term (with objectness) as a line, its IoU term dashed"""
    heads, positive = list(dict.fromkeys(term.rpartition("_")[2] for term in terms)), []
    for term in terms:
        kind, _, head = term.rpartition("_")
        iterations, values = _column(results, term)
        smoothed = _smoothed(values)
        label = f"{'class and objectness' if kind == 'class_loss' else 'IoU'}, head {head}"
        style = {"color": f"C{heads.index(head)}", "linestyle": "-" if kind == "class_loss" else "--"}
        axes.plot(iterations, smoothed, linewidth=1.4, label=label, **style)
        positive.append(smoothed[smoothed > 1e-6])  # a term may be 0 where a head has nothing to learn
    shown = np.concatenate(positive)
    _logarithmic(axes, shown.min(initial=np.inf), shown.max(initial=0), "loss terms, smoothed")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), ncols=min(3, len(heads)), frameon=False, fontsize=9)


def _logarithmic(axes, lowest: float, highest: float, name: str) -> None:
    """The vertical axis from below the lowest to above the highest value"""
    many = highest > 1000 * lowest  # then a label a power of ten is enough
    axes.set_ylim((lowest / 1.2, highest * 1.2) if highest >= lowest else (0.1, 1))  # before the scale looks for limits
    axes.set(yscale="log", ylabel=name)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" and not many else "")
    axes.grid(alpha=0.3, which="both")


def _draw_maps(axes, iterations: np.ndarray, percents: np.ndarray) -> list:
    axes.set(ylim=(0, 100), ylabel="mAP %")
    axes.annotate(f"{percents[-1]:.1f}%", (iterations[-1], percents[-1]), (0, 7), textcoords="offset points",
                  color="tab:red", ha="right")  # fmt: skip
    return axes.plot(iterations, percents, "o-", color="tab:red", markersize=3, linewidth=1.5, label="mAP")


def _smoothed(values: np.ndarray, weight: float = 0.9) -> np.ndarray:
    """Running average of the logarithms, nine parts old and one new: one that follows the fall of the first loss"""
    smoothed = np.log(np.maximum(values, 1e-12))
    for index in range(1, len(smoothed)):
        smoothed[index] = weight * smoothed[index - 1] + (1 - weight) * smoothed[index]
    return np.exp(smoothed)


def _column(rows: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """iterations and values of the rows that have a finite number there"""
    pairs = [(float(row["iteration"]), float(row[key])) for row in rows if row.get(key) not in (None, "")]
    values = np.array(pairs, float).reshape(-1, 2)
    values = values[np.isfinite(values[:, 1])]
    return values[:, 0], values[:, 1]


def ascii_name(names: Sequence[str], label: int) -> str:
    """The class name, or `class 3`: OpenCV's font knows only ASCII."""
    return names[label] if names[label].isascii() else f"class {label}"


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, colours: Sequence[tuple[int, int, int]], texts: Sequence[str], weight: int = 1
) -> np.ndarray:
    """A copy of image, uint8 (H, W, 3) BGR, with boxes (n, 4) xyxy in pixels, the last on top.  colours: BGR 0..255;
    texts: "" for none; weight: lines so many times as thick."""
    image = np.ascontiguousarray(image).copy()
    height, width = image.shape[:2]
    thickness = weight * max(1, round(min(height, width) / 300))
    limits = (width - 1, height - 1, width - 1, height - 1)
    corners = np.nan_to_num(boxes).clip(-1, np.array(limits) + 1).round().astype(int).clip(0, limits)
    for (left, top, right, bottom), colour in zip(corners.tolist(), colours, strict=True):
        cv2.rectangle(image, (left, top), (right, bottom), colour, thickness)
    plates: list[tuple[int, int, int, int]] = []
    for box, colour, text in list(zip(corners.tolist(), colours, texts, strict=True))[::-1]:
        if text:
            _draw_text(image, box, colour, text, plates)
    return image


def _draw_text(image: np.ndarray, box: list[int], colour: tuple[int, int, int], text: str, plates: list) -> None:
    """On a plate above the box, or further down where a better box has its plate; always inside the picture"""
    height, width = image.shape[:2]
    scale = min(2.0, max(0.35, min(height, width) / 900))
    stroke = max(1, round(scale * 1.6))
    (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, stroke)
    if text_width + 4 > width:
        scale, stroke = max(0.1, scale * (width - 4) / text_width), 1
        (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, stroke)
    plate_width, plate_height = text_width + 4, text_height + below + 2
    left, lowest = max(0, min(box[0], width - plate_width)), max(0, height - plate_height)
    tops = [max(0, top) for top in range(box[1] - plate_height, lowest + 1, plate_height)] or [lowest]
    top = next((top for top in tops if not _overlaps(left, top, plate_width, plate_height, plates)), tops[0])
    plates.append((left, top, plate_width, plate_height))
    cv2.rectangle(image, (left, top), (left + plate_width - 1, top + plate_height - 1), colour, -1)
    blue, green, red = colour
    ink = (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 128 else (255, 255, 255)
    cv2.putText(image, text, (left + 2, top + text_height + 1), FONT, scale, ink, stroke, cv2.LINE_AA)


def _overlaps(left: int, top: int, width: int, height: int, plates: list) -> bool:
    return any(x < left + width and left < x + w and y < top + height and top < y + h for x, y, w, h in plates)
