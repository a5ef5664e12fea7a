"""How much predictions overlap truths, compared only where they can overlap by more than a threshold.
Source: Darknet's src/yolo_layer.c, process_batch, the loop over predictions, which compares all with all."""

import warnings

import torch
from torch import Tensor

from yolov4.boxes import box_iou
from yolov4.decoding import Predictions
from yolov4.sections import GaussianHead, Head
from yolov4.transfer import sent

BLOCK = 1 << 17  # pairs of a truth and a cell that are compared at once, which bounds the memory of crowds


def best_overlaps(predictions: Predictions, targets: Tensor, which: bool) -> tuple[Tensor, Tensor | None]:
    """The highest IoU of each prediction with a truth of its image, exact where it is above ignore_thresh or
    truth_thresh; and with `which` the first truth that has it, an index into targets.  Both (B, A, h, w).

    targets (T, 6) image index, class, cx, cy, w, h, on the host; T is the index where there is no truth.
    """
    head, device, (images, anchors, *grid) = predictions.head, predictions.boxes.device, predictions.objectness.shape
    pairs = near_cells(head, targets, grid, min(head.ignore_thresh, head.truth_thresh))
    cells, truths = sent(torch.stack(pairs), device)
    truth_boxes, boxes = sent(targets[:, 2:], device), predictions.boxes.permute(0, 2, 3, 1, 4).flatten(0, 2)
    overlaps = [
        box_iou(boxes[some_cells], truth_boxes[some][:, None])
        for some_cells, some in zip(cells.split(BLOCK), truths.split(BLOCK), strict=True)
    ]
    overlap = torch.cat(overlaps)  # (n, A)
    iou = reduce_rows(boxes.new_zeros(boxes.shape[:2]), cells, overlap, "amax")  # (B * h * w, A)
    best = torch.full_like(iou, len(targets), dtype=torch.long) if which else None
    if which:
        reduce_rows(best, cells, torch.where(overlap == iou[cells], truths[:, None], len(targets)), "amin")
        best = best.view(images, *grid, anchors).permute(0, 3, 1, 2)
    return iou.view(images, *grid, anchors).permute(0, 3, 1, 2), best


def near_cells(head: Head, targets: Tensor, grid: tuple[int, int], overlap: float) -> tuple[Tensor, Tensor]:
    """Pairs of a truth and a cell whose predictions can reach an IoU above `overlap` with it, and some more.

    The IoU is above t only if in each direction the centres are less than (1 - t) * max(1, 1 / 2t) sides of the truth
    apart.  targets (T, 6); returns cells (n,), indices into (B, h, w), and truths (n,), indices into targets.
    """
    size, overlap = torch.tensor(grid[::-1]), max(overlap, 1e-9)  # columns, rows
    reach = targets[:, 4:] * (1 - overlap) * max(1, 0.5 / overlap)
    if isinstance(head, GaussianHead):  # the cell is that of another point of the box, which is 1 / t as large at most
        reach = reach + targets[:, 4:] * abs(head.shift) / overlap
    beyond = max(head.scale_x_y - 1, 0) / 2 + 0.01  # the cells that a centre may lie outside of its own, and rounding
    low = ((targets[:, 2:4] - reach) * size - beyond).floor().long().clamp(min=0)  # (T, 2) column, row
    high = torch.minimum(((targets[:, 2:4] + reach) * size + beyond).floor().long(), size - 1)
    sides = (high - low + 1).clamp(min=0)
    counts = sides.prod(1)
    truths = torch.arange(len(targets)).repeat_interleave(counts)  # (n,)
    number = torch.arange(len(truths)) - (counts.cumsum(0) - counts)[truths]  # of the cell among the truth's
    column, row = low[truths, 0] + number % sides[truths, 0], low[truths, 1] + number // sides[truths, 0]
    return (targets[truths, 0].long() * grid[0] + row) * grid[1] + column, truths


def reduce_rows(into: Tensor, rows: Tensor, values: Tensor, reduce: str) -> Tensor:
    """Fills rows of `into` (m, ...) with the "amax" or "amin" of themselves and the values (n, ...) of each, rows (n,).

    scatter_reduce_ does the same but is an error on a GPU with --deterministic; this one warns that it is in beta.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "index_reduce")
        return into.index_reduce_(0, rows, values, reduce)
