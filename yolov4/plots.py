"""Pictures: boxes on photographs, contact sheets, the training chart, figures of results and data.
Source: Darknet's draw_detections and chart.png for what they show, not for how."""

import colorsys
import csv
import math
import re
from contextlib import suppress
from functools import cache
from itertools import accumulate
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from yolov4 import metrics
from yolov4.boxes import box_iou, cxcywh_to_xyxy, xyxy_to_cxcywh
from yolov4.data import load_image
from yolov4.decoding import fitted_size
from yolov4.files import MARK, printable

GREY = 114
POINTS = 2_000  # iterations that a chart shows, apart from those with a mAP
NAMED = 20  # classes up to which a legend names the curves
COUNTED = 26  # rows up to which the confusion matrix shows its counts
BARS = 40  # classes that the histogram shows
SIDE = 640  # pixels of the longer side of a picture with mistakes
PLATES = 8  # mistakes of a picture that are named
PAIRS = 1_000_000  # of a text and a box that it may hide: of 10,000 boxes only 100 are named
TRUTH, FOUND = (255, 160, 0), (0, 140, 255)  # blue and orange, BGR: the colour-blind can tell them


def class_colour(label):
    """BGR 0..255, always the same for a class; the hue of the next one is far away."""
    rgb = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.8, 1)
    return tuple(round(each * 255) for each in reversed(rgb))


def _font_file(text):
    """Of a font that has all letters of a text; None if there is no such font."""
    return _file_with(re.sub("[ -~]", "", text))


@cache
def _file_with(letters):
    """The first font of DejaVu Sans and this system's, regular ones before bold, italic, ..."""
    from matplotlib import font_manager, ft2font, get_data_path  # takes 0.1 s

    files = sorted(font_manager.findSystemFonts(), key=lambda file: ("Regular" not in file, file))
    for file in (f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", *files):
        with suppress(OSError, RuntimeError):  # what is no font
            font = ft2font.FT2Font(file)
            usable = font.scalable and "LastResort" not in file  # of macOS: boxes for all letters
            if usable and font.get_charmap().keys() >= {*map(ord, letters + "a0%")}:
                return file


def drawable(names):
    """The names, and `class 3` for one with a letter that no font here has."""
    return [name if _font_file(name) else f"class {label}" for label, name in enumerate(names)]


def draw_detections(image, detections, names):
    """A copy of image, uint8 (H, W, 3) BGR, with a box and `name score%` for each, best on top."""
    (boxes, scores, labels), names = detections.numpy(), drawable(names)
    texts = [f"{names[label]} {score:.0%}" for label, score in zip(labels, scores, strict=True)]
    return draw_boxes(image, boxes, map(class_colour, labels), texts)


def draw_labels(image, labels, names):
    """A copy of image, uint8 (H, W, 3) BGR, with labels (n, 5): class, cx, cy, w, h, relative."""
    boxes = cxcywh_to_xyxy(torch.from_numpy(labels[:, 1:])).numpy() * (image.shape[1::-1] * 2)
    classes, names = labels[:, 0].astype(int), drawable(names)
    return draw_boxes(image, boxes, map(class_colour, classes), [names[each] for each in classes])


def draw_boxes(image, boxes, colours, texts):
    """A copy of image, uint8 (H, W, 3) BGR, with boxes (n, 4) xyxy in pixels, the first on top.

    colours: BGR 0..255, one per box; texts: "" for none, None for none and a line half as thick.
    """
    image = image.copy()
    height, width = image.shape[:2]
    thin = max(2, min(height, width) // 300)
    thick = thin * (1 + (None in texts))
    boxes = np.nan_to_num(boxes).clip(0, (width - 1, height - 1) * 2).round().astype(int).tolist()
    drawn = list(zip(boxes, colours, texts, strict=True))
    for box, colour, text in reversed(drawn):
        cv2.rectangle(image, box[:2], box[2:], colour, thin if text is None else thick)
    for box, colour, text in drawn[: PAIRS // max(1, len(drawn))]:
        if text:
            _draw_text(image, box, colour, text, boxes)
    return image


_font = cache(ImageFont.truetype)


def _draw_text(image, box, colour, text, taken):
    """On a plate above, below or inside the box, where it hides least of what is taken: boxes and
    plates, each xyxy; the plate joins them."""
    height, width = image.shape[:2]
    size = max(9, min(height, width) // 36)
    font = _font(_font_file(text), size)
    plate = Image.new("RGB", (round(font.getlength(text)) + 6, size + size // 3), colour)
    ink = "black" if sum(colour[1:]) > 200 else "white"  # blue alone looks dark
    ImageDraw.Draw(plate).text((3, size), text, ink, font, "ls")  # on its baseline
    plate = np.array(plate)[:height, :width]
    (left, top, _, bottom), (high, wide, _) = box, plate.shape
    left = min(left, width - wide)
    tops = max(0, top - high), min(bottom, height - high), *range(top, bottom - high, high)
    places = torch.tensor([(left, top, left + wide, top + high) for top in tops])  # (k, 4)
    hidden = box_iou(xyxy_to_cxcywh(places)[:, None], xyxy_to_cxcywh(torch.tensor(taken)))
    left, top, right, bottom = place = places[hidden.sum(1).argmin()].tolist()
    image[top:bottom, left:right] = plate
    taken += [place] * 4  # text on text is worst


def write_picture(path, image):
    """Encodes by the suffix; unlike cv2.imwrite, with names beyond ASCII on Windows too.
    Raises ValueError for sides that the format does not have."""
    encoded, content = cv2.imencode(path.suffix, image)
    if not encoded:
        raise ValueError(f"{path}: cannot be written with {image.shape[1]}x{image.shape[0]} pixels")
    path.write_bytes(content.tobytes() + MARK)


def contact_sheet(images, side=320):
    """Pictures uint8 (H, W, 3) BGR side by side -> one; their longer sides become `side` pixels."""
    columns = math.ceil(math.sqrt(len(images)))
    fitted = [_fitted(image, side - 4) for image in images]
    tile = max(map(len, fitted)) + 4  # no higher than the highest needs
    sheet = np.full((math.ceil(len(images) / columns), tile, columns, side, 3), GREY, np.uint8)
    for index, image in enumerate(fitted):
        sheet[index // columns, : len(image), index % columns, : image.shape[1]] = image
    return sheet.reshape(-1, columns * side, 3)


def _fitted(image, side):
    size = fitted_size(image.shape[1::-1], (side, side))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def draw_mistakes(record, pairing, names):
    """The record's image, uint8 (H, W, 3) BGR, its longer side SIDE pixels, with ground truth in
    blue and detections in orange; what is missed or false has a thick line, and the first PLATES
    of these say so."""
    image, names = _fitted(load_image(record.path), SIDE), drawable(names)
    size, labels = image.shape[1::-1] * 2, record.labels
    boxes = cxcywh_to_xyxy(labels[:, 1:]).numpy() * size
    found, scores, classes = record.detections.numpy()
    found = found * np.divide(size, record.image_size * 2)
    missed = {i: f"missed {names[int(labels[i, 0])]}" for i in pairing.missed}
    false = {i: f"false {names[classes[i]]} {scores[i]:.0%}" for i in pairing.false}
    chosen = pairing.detections
    texts = [*map(missed.get, range(len(boxes))), *map(false.get, chosen)]
    for index in np.flatnonzero(texts)[PLATES:]:
        texts[index] = ""
    colours = [TRUTH] * len(boxes) + [FOUND] * len(chosen)
    return draw_boxes(image, np.concatenate((boxes, found[chosen])), colours, texts)


def read_results(path):
    """Columns of a results.csv, NaN where a cell is empty; of a long training every n-th row,
    counted from the last, and all with a mAP."""
    with Path(path).open() as file:
        last = sum(1 for _ in file) - 2  # from 0, after the header
        file.seek(0)
        rows = csv.reader(file)
        header = next(rows)
        step, at = last // POINTS + 1, header.index("map")
        kept = [row for number, row in enumerate(rows, -last) if number % step == 0 or row[at]]
    values = np.array([[value or "nan" for value in row] for row in kept], float)
    return dict(zip(header, values.reshape(-1, len(header)).T, strict=True))


def training_chart(results, path, name=""):
    """Draws loss, mAP, the loss terms of each head and the learning rate of a results.csv.  The
    loss axes are logarithmic: the first iterations do not hide the others."""
    columns = read_results(results)
    iterations, loss, maps = columns["iteration"], columns["loss"], columns["map"]
    if not len(loss):
        return
    figure, smoothed = _figure(10, 9.5), _smoothed(loss)
    top, middle, bottom = figure.subplots(3, sharex=True, height_ratios=(5, 3, 1))
    _logarithmic(top.set_yscale, top.yaxis)
    _logarithmic(middle.set_yscale, middle.yaxis)
    top.plot(iterations, loss, "C0.", alpha=0.2, label="loss")
    top.plot(iterations, smoothed, "C0", label="loss, smoothed")
    title = f"{name}: iteration {iterations[-1]:.0f}, loss {smoothed[-1]:.3g}"
    measured = np.isfinite(maps)
    if measured.any():
        places, maps = iterations[measured], maps[measured]
        right = top.twinx()
        right.plot(places, maps, "C3.-", label="mAP")
        right.set(ylim=(0, 1.02), ylabel="mAP")
        best = places[maps == maps.max()][-1]  # the last of equals: its weights are kept
        title += f", mAP {maps[-1]:.1%}, best {maps.max():.1%} at {best:.0f}"
    for colour, key in enumerate(columns):
        if key.startswith(("class_loss", "iou_loss")):
            style = f"C{colour}--" if key.startswith("iou") else f"C{colour}"
            middle.plot(iterations, _smoothed(columns[key]), style, label=key)
    bottom.plot(iterations, columns["rate"], "C2")
    top.set(title=title, ylabel="loss")
    middle.set(ylabel="loss terms, smoothed")
    bottom.set(xlabel="iteration", ylabel="learning rate", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    _lettered(figure).savefig(path, dpi=110)


def _smoothed(values):
    """Running average of the logarithms, nine parts old and one new, of values of 0.001 or more."""
    logarithms = accumulate(
        np.log(np.maximum(values, 1e-3)), lambda old, new: 0.9 * old + 0.1 * new
    )
    return np.exp([*logarithms]).round(6)  # or an axis shows the error of one value, or warns


def _figure(width, height):
    """Of so many inches, without pyplot and its state."""
    from matplotlib.figure import Figure  # takes half a second, and detect.py draws none

    return Figure((width, height), layout="constrained")


def _logarithmic(set_scale, axis):
    """Plain numbers at 1, 2, 5, 10, ...; at others where the axis spans less."""
    set_scale("log", subs=(2, 5))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")
    axis.grid(alpha=0.3, which="both")


def _lettered(figure):
    """The figure, its texts as they are (no formulas between $) in fonts that have the letters."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(printable(text.get_text()))
        text.get_fontproperties().set_file(_font_file(text.get_text()))
    return figure


def _draw_curves(result, names, curves, values, x):
    """curves (C, T) over x (T,) of the classes with ground truth, and their mean; values (C,): for
    the legend.  Returns a figure and its axes."""
    figure, names = _figure(6.4, 5.6), drawable(names)
    axes, order = figure.subplots(), np.argsort(-values)
    order = order[result.objects[order] > 0]
    for label in order:
        named = {"label": f"{values[label]:.3f} {names[label]}"}
        style = named if len(order) <= NAMED else {"color": "0.8"}
        axes.plot(x, curves[label], drawstyle="steps-pre", **style)
    axes.plot(x, curves[order].mean(0), "k", linewidth=3, label="mean of the classes")
    axes.axis((0, 1.01, 0, 1.01))
    axes.grid()
    figure.legend(loc="outside lower center", ncols=2)
    return _lettered(figure), axes


def precision_recall(result, names):
    """A figure with a curve per class, with its AP in the legend, and their mean."""
    curves = torch.stack(
        [metrics.precision_at_recalls(each.hits, each.objects, 101) for each in result.matches]
    )
    figure, axes = _draw_curves(result, names, curves, result.ap, np.linspace(0, 1, 101))
    axes.set(xlabel="recall", ylabel="precision")
    return figure


def f1(result, names):
    """A figure with a curve per class, with its F1 at the best threshold in the legend, and their
    mean; the dot is the best threshold, the dotted line that of the table."""
    scores, mean = metrics.f1_scores(result.matches)
    x, best = metrics.THRESHOLDS, mean.argmax()
    figure, axes = _draw_curves(result, names, scores, scores[:, best], x)
    axes.plot(x[best], mean[best], "C3o")
    axes.set(
        title=f"best mean F1 {mean[best]:.2f} at confidence > {x[best]:g}",
        xlabel="confidence", ylabel="F1",
    )  # fmt: skip
    axes.axvline(result.settings.confidence, color="grey", linestyle=":")
    return figure


def confusion(matrix, names):
    """A figure of `metrics.confusion`, (C + 1, C + 1): colours are shares of the row."""
    count, names = len(matrix), drawable(names)
    side = min(16, 5 + 0.2 * count)
    figure = _figure(side, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    axes.imshow(shares, "Blues", vmin=0, vmax=1, alpha=0.6)  # pale: the counts are black
    axes.set_xticks(range(count), [*names, "missed"], rotation=90, fontsize=8)
    axes.set_yticks(range(count), [*names, "no object"], fontsize=8)
    for (row, column), boxes in np.ndenumerate(matrix):
        if boxes and count <= COUNTED:
            axes.text(column, row, boxes, ha="center", va="center")
    axes.set(xlabel="detected as", ylabel="ground truth")
    return _lettered(figure)


def data(labels, sizes, anchors, names, title):
    """A figure of a data set: its classes, box sizes against the anchors, centres.

    labels (n, 5): class, cx, cy, w, h, relative; sizes (n, 2): width, height in pixels of the
    network input; anchors: pairs of each head, in the same pixels.
    """
    names, counts = drawable(names), np.bincount(labels[:, 0].astype(int), None, len(names))
    order = np.argsort(counts)[-BARS:]
    figure = _figure(6.4, 12 + 0.15 * len(order))
    heights = max(4, 0.2 * len(order)), 6, 5.5
    classes, boxes, centres = figure.subplots(3, height_ratios=heights)
    shown = np.array(names)[order]
    classes.bar_label(classes.barh(range(len(order)), counts[order], tick_label=shown))
    classes.set(title=title, xlabel=f"the {len(order)} most frequent classes", xmargin=0.1)
    boxes.plot(*sizes.clip(1).T, "k.", alpha=0.2)
    for head, own in enumerate(anchors, 1):
        boxes.plot(*np.transpose(own), "o", label=f"anchors of head {head}")
    _logarithmic(boxes.set_xscale, boxes.xaxis)
    _logarithmic(boxes.set_yscale, boxes.yaxis)
    boxes.set(aspect="equal", xlabel="width in pixels of the network input", ylabel="height")
    boxes.legend()
    centres.hist2d(labels[:, 1], labels[:, 2], 16, range=((0, 1), (0, 1)))
    centres.set(title="Centres of the boxes, relative", aspect="equal", ylim=(1, 0))
    return _lettered(figure)
