"""Figures of an evaluation and of a data set: curves, the confusion matrix, boxes against anchors.
No source: the views of this project; yolov4.curves has the numbers."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

from yolov4 import curves
from yolov4.curves import Matches

NAMED = 12  # classes that a legend names; with more of them the five best and the five worst
COUNTED = 25  # classes up to which the confusion matrix shows its counts
BARS = 40  # classes that the histogram names


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, with a canvas of its own: no state of pyplot."""
    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def texts(names: Sequence[str], longest: int = 24) -> list[str]:
    """Names as matplotlib can draw them: `class 3` where the font has no such letters, no formulas, not too long."""
    glyphs = _glyphs()
    known = [name if all(ord(letter) in glyphs for letter in name) else f"class {i}" for i, name in enumerate(names)]
    short = [name if len(name) <= longest else f"{name[: longest - 1]}…" for name in known]
    return [f" {name}".replace("$", r"\$") if name.startswith("_") else name.replace("$", r"\$") for name in short]


def precision_recall(matches: Matches, ap: np.ndarray, names: Sequence[str]) -> Figure:
    """A curve a class and, in bold, their mean; ap (C,) in 0..1 stands in the legend."""
    figure = new_figure(6.4, 5.6)
    axes = figure.subplots()
    shown, texts_ = _colours(ap, matches.truths), texts(names)
    for label in matches.truths.nonzero()[0]:
        recall, precision = curves.precision_recall(matches, label)
        # the curve ends where the detections do
        recall, precision = np.append(recall, recall[-1]), np.append(precision, 0)
        axes.plot(recall, precision, drawstyle="steps-pre", linewidth=1, **shown[label])
    for label in [label for label in np.argsort(-ap, kind="stable") if shown[label]["zorder"] == 3]:
        axes.plot([], [], color=shown[label]["color"], label=f"{texts_[label]} {ap[label] * 100:.1f}")
    axes.plot(curves.RECALLS, curves.mean_precision(matches), "k", linewidth=2.5, zorder=4, label="mean of the classes")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01), title="Precision over recall")
    return _finished(figure, axes, "AP %")


def f1(matches: Matches, names: Sequence[str], confidence: float) -> Figure:
    """F1 over confidence, a line a class and the mean in bold; the best threshold and the one in use are marked."""
    figure = new_figure(6.4, 5.6)
    axes = figure.subplots()
    scores, mean = curves.f1_scores(matches)
    best, shown, texts_ = mean.argmax(), _colours(scores.max(1), matches.truths), texts(names)
    for label in matches.truths.nonzero()[0]:
        axes.plot(curves.THRESHOLDS, scores[label], linewidth=1, **shown[label])
    tops = np.where(matches.truths > 0, scores[:, best], -1)
    for label in [label for label in np.argsort(-tops, kind="stable") if shown[label]["zorder"] == 3]:
        axes.plot([], [], color=shown[label]["color"], label=f"{texts_[label]} {scores[label, best]:.2f}")
    axes.plot(curves.THRESHOLDS, mean, "k", linewidth=2.5, zorder=4, label=f"mean {mean[best]:.2f}")
    axes.axvline(confidence, color="grey", linestyle=":", label=f"threshold {confidence:g} of the table")
    axes.plot(curves.THRESHOLDS[best], mean[best], "o", color="tab:red", markersize=9, zorder=5,
              label=f"best threshold {curves.THRESHOLDS[best]:.3f}")  # fmt: skip
    axes.set(xlabel="confidence", ylabel="F1", xlim=(0, 1), ylim=(0, 1.01), title="F1 over confidence")
    return _finished(figure, axes, "F1 at the best threshold")


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """matrix (C + 1, C + 1) of `curves.confusion`; the shade is the share of the row, the number is the count."""
    count = len(matrix)
    side = min(16.0, max(5.5, 2 + 0.42 * count))
    figure = new_figure(side * 1.08, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    image = axes.imshow(shares, "Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the row")
    size = 9 if count <= COUNTED else 7
    labels = texts(names, 16)
    axes.set_xticks(range(count), [*labels, "missed"], rotation=90, fontsize=size)
    axes.set_yticks(range(count), [*labels, "no object"], fontsize=size)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.axhline(count - 1.5, color="0.4", linewidth=1)
    axes.axvline(count - 1.5, color="0.4", linewidth=1)
    if count <= COUNTED + 1:
        for row, column in zip(*matrix.nonzero(), strict=True):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=ink, fontsize=size - 1)
    axes.set(xlabel="detected as", ylabel="truth", title="Confusion matrix")
    return figure


def data(
    labels: np.ndarray, sizes: np.ndarray, anchors: Sequence[np.ndarray], names: Sequence[str], title: str = ""
) -> Figure:
    """What a data set is like: classes, box sizes against the anchors, positions.

    labels (n, 5): class, cx, cy, w, h, relative; sizes (n, 2): width, height in pixels of the network input; anchors:
    (A, 2) of each head, in the same pixels.
    """
    figure = new_figure(6.4, 13 + max(0, min(BARS, len(names)) - 20) * 0.15)
    figure.suptitle(title)
    bars, boxes, places = figure.subplots(3, 1, height_ratios=(max(4, 0.2 * min(BARS, len(names))), 6, 5.5))
    _draw_histogram(bars, labels, names)
    _draw_sizes(boxes, sizes, anchors)
    centres = np.clip(labels[:, 1:3], 0, 1)
    cells = 32 if len(labels) > 5000 else 16
    grid, _, _ = np.histogram2d(centres[:, 1], centres[:, 0], cells, ((0, 1), (0, 1)))
    image = places.imshow(grid, "viridis", extent=(0, 1, 1, 0))
    figure.colorbar(image, ax=places, label="boxes")
    places.set(title="Centres of the boxes", xlabel="x, share of the width", ylabel="y, share of the height")
    return figure


def _draw_histogram(axes, labels: np.ndarray, names: Sequence[str]) -> None:
    counts = np.bincount(labels[:, 0].astype(int), minlength=len(names))[: len(names)]
    order = np.argsort(-counts, kind="stable")[:BARS]
    labels_ = texts(names)
    bars = axes.barh(range(len(order)), counts[order], color="tab:blue")
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(range(len(order)), [labels_[label] for label in order], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    more = f" (the {BARS} most frequent of {len(names)} classes)" if len(names) > BARS else ""
    axes.set(title=f"Boxes of each class{more}", xlabel="boxes")


def _draw_sizes(axes, sizes: np.ndarray, anchors: Sequence[np.ndarray]) -> None:
    sizes = np.maximum(sizes, 1)
    marks = np.concatenate([sizes, *anchors]) if len(anchors) else sizes
    edges = np.geomspace(max(1, marks.min() / 1.2), marks.max() * 1.2, 60) if len(marks) else np.geomspace(1, 512, 60)
    if len(sizes):
        axes.hist2d(
            sizes[:, 0], sizes[:, 1], (edges, edges), cmap="Greys", norm=LogNorm(0.2, None), cmin=1
        )  # one box is grey
    for index, each in enumerate(anchors):
        marker = {"color": f"C{index}", "marker": "osD^v"[index % 5], "markersize": 12 - 2 * (index % 5)}
        label = f"anchors of head {index + 1}"
        axes.plot(*np.transpose(each), linestyle="", markeredgecolor="white", label=label, **marker)
    axes.set(xscale="log", yscale="log", aspect="equal", title="Box sizes in pixels of the network input",
             xlabel="width", ylabel="height")  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.grid(alpha=0.3)
    if len(anchors):
        axes.legend(fontsize=9, loc="upper left")  # widths and heights are alike: it is empty there


def _colours(values: np.ndarray, truths: np.ndarray) -> list[dict]:
    """How each class is drawn: in colour where the legend names it, else in grey behind those; values (C,)"""
    known = truths.nonzero()[0]
    order = known[np.argsort(-values[known], kind="stable")]
    named = order if len(order) <= NAMED else np.concatenate((order[:5], order[-5:]))
    styles = [{"color": "0.8", "zorder": 2} for _ in values]
    for place, label in enumerate(named):
        styles[label] = {"color": colormaps["tab20" if len(named) > 10 else "tab10"](place), "zorder": 3}
    return styles


def _finished(figure: Figure, axes, title: str) -> Figure:
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, title=title, frameon=False)
    return figure


@lru_cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(findfont("DejaVu Sans")).get_charmap())
