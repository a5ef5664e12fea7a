"""Pictures: boxes on photographs, contact sheets, the training chart, figures of results and data.
Source: Darknet's draw_detections and chart.png for what they show, not for how."""

import colorsys
import csv
import math
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from yolov4 import metrics
from yolov4.boxes import cxcywh_to_xyxy
from yolov4.data import load_image

SMALL = 0.01  # share of an image: objects below it are not covered by text
MISTAKES = 8  # of an image that are named
GREY = 114
POINTS = 10_000  # iterations that a chart shows, apart from those with a mAP
NAMED = 20  # classes up to which a legend names the curves
COUNTED = 26  # rows up to which the confusion matrix shows its counts
BARS = 40  # classes that the histogram shows
SIDE = 640  # pixels of the longer side of a picture with mistakes
TRUTH, FOUND = (255, 160, 0), (0, 140, 255)  # blue and orange, BGR: the colour-blind can tell them


def class_colour(label):
    """BGR 0..255, always the same for a class; the hue of the next one is far away."""
    rgb = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.8, 1)
    return tuple(round(each * 255) for each in reversed(rgb))


def font_of(text):
    """The file of a font that has all letters of a text: matplotlib's own, else one of the system;
    None where there is none."""
    letters = {letter for letter in text if not letter.isascii()}
    return _font_with("".join(sorted(letters)))


@cache
def _font_with(letters):
    own = Path(find_spec("matplotlib").origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    if not letters:
        return str(own)
    from matplotlib import font_manager, ft2font  # takes a while, and most names need it not

    for path in (str(own), *sorted(font_manager.findSystemFonts())):
        with suppress(OSError, RuntimeError):  # a font of pictures, of another format
            if set(map(ord, letters)) <= ft2font.FT2Font(path).get_charmap().keys():
                _font(path, 20)
                return path
    return None


@cache
def _font(path, size):
    return ImageFont.truetype(path, size)


def shown_names(names):
    """The names, and `class 3` for one that no font here can write."""
    return [name if font_of(name) else f"class {label}" for label, name in enumerate(names)]


def fonts(names):
    """A context in which matplotlib has the fonts for these names."""
    import matplotlib
    from matplotlib import font_manager

    families = []
    for path in dict.fromkeys(font_of(name) for name in ("", *names)):
        if path:
            font_manager.fontManager.addfont(path)
            families.append(font_manager.FontProperties(fname=path).get_name())
    return matplotlib.rc_context({"font.family": families})


def draw_detections(image, detections, names):
    """A copy of image, uint8 (H, W, 3) BGR, with a box and `name score%` for each, best on top."""
    (boxes, scores, labels), names = detections.numpy(), shown_names(names)
    texts = [f"{names[label]} {score:.0%}" for label, score in zip(labels, scores, strict=True)]
    return draw_boxes(image, boxes, map(class_colour, labels), texts)


def draw_labels(image, labels, names):
    """A copy of image, uint8 (H, W, 3) BGR, with labels (n, 5): class, cx, cy, w, h, relative."""
    boxes = cxcywh_to_xyxy(torch.from_numpy(labels[:, 1:])).numpy() * (image.shape[1::-1] * 2)
    classes, names = labels[:, 0].astype(int), shown_names(names)
    return draw_boxes(image, boxes, map(class_colour, classes), [names[each] for each in classes])


def draw_boxes(image, boxes, colours, texts):
    """A copy of image, uint8 (H, W, 3) BGR, with boxes (n, 4) xyxy in pixels, the first on top.

    colours: BGR 0..255, one per box; texts: "" for none, and for thin lines.
    """
    image = np.array(image, order="C")
    height, width = image.shape[:2]
    thickness, bold = max(2, round(min(height, width) / 400)), 2 if "" in texts else 1
    boxes = np.nan_to_num(boxes).clip(0, (width - 1, height - 1) * 2).round().astype(int).tolist()
    drawn = list(zip(boxes, colours, texts, strict=True))
    for box, colour, text in reversed(drawn):
        cv2.rectangle(image, box[:2], box[2:], colour, thickness * (bold if text else 1))
    taken = np.zeros((height, width), bool)
    for (left, top, right, bottom), *_ in drawn:
        if (right - left) * (bottom - top) < SMALL * height * width:
            taken[top : bottom + 1, left : right + 1] = True
    for box, colour, text in drawn:
        if text:
            _draw_text(image, box, colour, text, taken)
    return image


def _draw_text(image, box, colour, text, taken):
    """On a plate above the box, or where none of the small objects and of the plates before it is
    (taken): further down, else at the top of the image."""
    height, width = image.shape[:2]
    font = _font(font_of(text), round(min(48, max(11, min(height, width) / 32))))
    wide, high = math.ceil(font.getlength(text)) + 4, sum(font.getmetrics()) + 1
    left, lowest = max(0, min(box[0], width - wide)), max(0, height - high)
    first = min(max(0, box[1] - high), lowest)
    tops = *range(first, lowest + 1, high), *range(first - high, 0, -high), 0
    plates = [np.s_[top : top + high, left : left + wide] for top in tops]
    plate = next((plate for plate in plates if not taken[plate].any()), plates[0])
    letters = Image.new("L", (wide, high))
    ImageDraw.Draw(letters).text((2, 0), text, 255, font)
    ink = 0 if np.dot((0.114, 0.587, 0.299), colour) > 128 else 255
    rows, columns = taken[plate].shape
    share = np.asarray(letters)[:rows, :columns, None] / 255
    taken[plate], image[plate] = True, np.array(colour) * (1 - share) + ink * share


def contact_sheet(images, side=320):
    """Pictures uint8 (H, W, 3) BGR side by side -> one; their longer sides become `side` pixels."""
    columns = math.ceil(math.sqrt(len(images)))
    rows, fitted = math.ceil(len(images) / columns), [_fitted(image, side - 4) for image in images]
    tile = max(map(len, fitted)) + 4  # no higher than the highest needs
    sheet = np.full((rows, tile, columns, side, 3), GREY, np.uint8)
    for index, image in enumerate(fitted):
        height, width = image.shape[:2]
        top, left = (tile - height) // 2, (side - width) // 2
        place = np.s_[index // columns, top : top + height, index % columns, left : left + width]
        sheet[place] = image
    return sheet.reshape(rows * tile, columns * side, 3)


def _fitted(image, side):
    scale = side / max(image.shape[:2])
    size = [max(1, round(pixels * scale)) for pixels in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def draw_mistakes(record, pairing, names):
    """The record's image, uint8 (H, W, 3) BGR, its longer side SIDE pixels, with ground truth in
    blue and detections in orange; what is missed or false has a thick line and says so."""
    image, names = _fitted(load_image(record.path), SIDE), shown_names(names)
    size, labels = image.shape[1::-1] * 2, record.labels
    boxes = cxcywh_to_xyxy(labels[:, 1:]).numpy() * size
    found, scores, classes = record.detections.numpy()
    found = found * np.divide(size, record.image_size * 2)
    missed = {i: f"missed {names[int(labels[i, 0])]}" for i in pairing.missed}
    false = {i: f"false {names[classes[i]]} {scores[i]:.0%}" for i in pairing.false}
    chosen, objects = pairing.detections, range(len(boxes))
    texts = [missed.get(i, "") for i in objects] + [false.get(i, "") for i in chosen]
    named = [number for number, text in enumerate(texts) if text][MISTAKES:]
    texts = ["" if number in named else text for number, text in enumerate(texts)]
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
    iterations, losses = columns["iteration"], _smoothed(columns["loss"])
    if not len(losses):
        return
    figure = _figure(10, 9.5)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(5, 3, 1))
    top.semilogy(iterations, columns["loss"], "C0.", markersize=3, alpha=0.25, label="loss")
    top.plot(iterations, losses, "C0", label="loss, smoothed")
    title = f"{name}: iteration {iterations[-1]:.0f}, loss {losses[-1]:.3g}"
    measured = np.isfinite(columns["map"])
    if measured.any():
        places, maps = iterations[measured], columns["map"][measured]
        right = top.twinx()
        right.plot(places, maps, "C3o-", markersize=3, label="mAP")
        right.set(ylim=(0, 1.02), ylabel="mAP")
        best = places[maps == maps.max()][-1]  # the last of equals: its weights are kept
        title += f", mAP {maps[-1]:.1%}, best {maps.max():.1%} at {best:.0f}"
    terms = (key for key in columns if key.startswith(("class_loss", "iou_loss")))
    for colour, key in enumerate(terms, 4):
        style = f"C{colour}--" if key.startswith("iou") else f"C{colour}"
        middle.semilogy(iterations, _smoothed(columns[key]), style, label=key)
    bottom.plot(iterations, columns["rate"], "C2")
    top.set(title=title, ylabel="loss")
    middle.set(ylabel="loss terms, smoothed")
    bottom.set(xlabel="iteration", ylabel="learning rate", ylim=(0, None))
    _plain_ticks(top.yaxis, middle.yaxis)
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def _smoothed(values):
    """Running average of the logarithms, nine parts old and one new, of values of 0.001 or more."""
    logarithms = np.log(np.maximum(values, 1e-3))
    return np.exp(list(accumulate(logarithms, lambda old, new: 0.9 * old + 0.1 * new)))


def _plain_ticks(*axes):
    """Of logarithmic axes: 1, 2, 5, 10 ... as plain numbers."""
    from matplotlib.ticker import LogLocator

    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")


def _figure(width, height):
    """Of so many inches, without pyplot and its state."""
    from matplotlib.figure import Figure  # takes half a second, and detect.py draws none

    return Figure((width, height), layout="constrained")


def _draw_curves(result, names, curves, values, x):
    """curves (C, T) over x (T,) of the classes with ground truth, and their mean; values (C,): for
    the legend.  Returns a figure and its axes."""
    figure, names = _figure(6.4, 5.6), shown_names(names)
    axes, order = figure.subplots(), np.argsort(-values, kind="stable")
    order = order[result.objects[order] > 0]
    for label in order:
        named = {"label": f"{values[label]:.3f} {names[label]}"}
        style = named if len(order) <= NAMED else {"color": "0.8"}
        axes.plot(x, curves[label], drawstyle="steps-pre", linewidth=1, **style)
    axes.plot(x, curves[order].mean(0), "k", linewidth=2.5, label="mean of the classes")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure, axes


def precision_recall(result, names):
    """A figure with a curve per class, with its AP in the legend, and their mean."""
    pairs = ((each.hits, each.objects) for each in result.matches)
    curves = torch.stack([metrics.precision_at_recalls(*pair, 101) for pair in pairs])
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
    title = f"best mean F1 {mean[best]:.2f} at confidence > {x[best]:g}"
    axes.set(title=title, xlabel="confidence", ylabel="F1")
    axes.axvline(result.settings.confidence, color="grey", linestyle=":")
    return figure


def confusion(matrix, names):
    """A figure of `metrics.confusion`, (C + 1, C + 1): colours are shares of the row."""
    count, names = len(matrix), shown_names(names)
    side = min(16, 5 + 0.2 * count)
    figure = _figure(side * 1.08, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    image = axes.imshow(shares, "Blues", vmin=0, vmax=1)
    figure.colorbar(image, shrink=0.6, label="share of the row")
    axes.set_xticks(range(count), [*names, "missed"], rotation=90, fontsize=8)
    axes.set_yticks(range(count), [*names, "no object"], fontsize=8)
    for row, column in zip(*matrix.nonzero(), strict=True):
        if count <= COUNTED:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour)
    axes.set(xlabel="detected as", ylabel="ground truth")
    return figure


def data(labels, sizes, anchors, names, title):
    """A figure of a data set: its classes, box sizes against the anchors, centres.

    labels (n, 5): class, cx, cy, w, h, relative; sizes (n, 2): width, height in pixels of the
    network input; anchors: pairs of each head, in the same pixels.
    """
    names, counts = shown_names(names), np.bincount(labels[:, 0].astype(int), None, len(names))
    order = np.argsort(counts, kind="stable")[-BARS:]
    figure = _figure(6.4, 12 + 0.15 * len(order))
    figure.suptitle(title)
    heights = max(4, 0.2 * len(order)), 6, 5.5
    classes, boxes, centres = figure.subplots(3, 1, height_ratios=heights)
    classes.bar_label(classes.barh([names[label] for label in order], counts[order]))
    classes.set(
        title=f"Boxes of the {len(order)} most frequent classes", xlabel="boxes", xmargin=0.1
    )
    marks = np.concatenate((sizes, *anchors)).clip(1)
    edges = np.geomspace(marks.min() / 1.2, marks.max() * 1.2, 60)
    # from 0.2, so that a single box is grey
    boxes.hist2d(*sizes.clip(1).T, (edges, edges), cmap="Greys", norm="log", vmin=0.2, cmin=1)
    for head, own in enumerate(anchors, 1):
        boxes.plot(*np.transpose(own), "o", markersize=9, label=f"anchors of head {head}")
    boxes.set(xscale="log", yscale="log", aspect="equal", xlabel="width", ylabel="height",
              title="Box sizes in pixels of the network input")  # fmt: skip
    _plain_ticks(boxes.xaxis, boxes.yaxis)
    boxes.legend()
    *_, image = centres.hist2d(labels[:, 1], labels[:, 2], 16, range=((0, 1), (0, 1)))
    figure.colorbar(image, label="boxes")
    centres.set(title="Centres of the boxes, relative", aspect="equal", ylim=(1, 0))
    return figure
