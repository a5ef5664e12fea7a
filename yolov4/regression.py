"""The deltas of boxes towards their truths: squared error, the kinds of IoU, and Gaussian boxes.
Source: Darknet's src/yolo_layer.c (delta_yolo_box), gaussian_yolo_layer.c (delta_gaussian_yolo_box)."""

import math

import torch
from torch import Tensor

from yolov4.boxes import iou_gradient
from yolov4.decoding import Places, Predictions
from yolov4.sections import GaussianHead, Head

SIGMA = 0.3  # that Darknet adds to an uncertainty where it stands alone


def box_deltas(predictions: Predictions, places: Places, truths: Tensor, multipliers: Tensor) -> Tensor:
    """Minus the gradient of the box values in n places towards their truths, (n, 4), or (n, 8) in the order of the
    logits: each followed by its uncertainty.

    places: image, anchor, row, column, (n,) each; truths (n, 4) cxcywh; multipliers (n,) of the truths' classes.
    """
    head, grid, anchors = predictions.head, predictions.grid, predictions.anchors[places[1]]
    boxes, weight = predictions.boxes[places], head.iou_normalizer * multipliers[:, None]
    if isinstance(head, GaussianHead):
        sigmas = predictions.sigmas(places)
        return _finite(_gaussian_deltas(boxes, sigmas, truths, anchors, grid, head, weight), head.max_delta)
    if head.iou_loss == "mse":
        return _finite(_differences(boxes, truths, anchors, grid, head.new_coords) * _small_more(truths) * weight)
    return _finite(_iou_deltas(boxes, truths, anchors, head) * weight, head.max_delta)


def _finite(deltas: Tensor, limit: float = math.inf) -> Tensor:
    """What is no number, as the logarithm of a side of 0, pulls nowhere."""
    return deltas.nan_to_num(0, 0, 0).clamp(-limit, limit)


def _iou_deltas(boxes: Tensor, truths: Tensor, anchors: Tensor, head: Head) -> Tensor:
    # a side that vanished counts as 1: Darknet's way around a division by 0
    sides = torch.where(boxes[:, 2:] == 0, 1.0, boxes[:, 2:])
    deltas = iou_gradient(torch.cat((boxes[:, :2], sides), 1), truths, head.iou_loss)
    if head.new_coords:
        return deltas
    # the derivative of exp(t) belongs to w, h alone
    return torch.cat((deltas[:, :2], deltas[:, 2:] * boxes[:, 2:] / anchors), 1)


def _differences(boxes: Tensor, truths: Tensor, anchors: Tensor, grid: Tensor, new_coords: bool = False) -> Tensor:
    """Of x, y in cells, and of w, h as the head has them.  All (n, 4) or (n, 2)."""
    was, wanted = boxes[:, 2:] / anchors, truths[:, 2:] / anchors
    was, wanted = (was.sqrt() / 2, wanted.sqrt() / 2) if new_coords else (was.log(), wanted.log())
    return torch.cat(((truths[:, :2] - boxes[:, :2]) * grid, wanted - was), 1)


def _small_more(truths: Tensor) -> Tensor:
    return 2 - truths[:, 2:].prod(1, keepdim=True)


def _gaussian_deltas(
    boxes: Tensor, sigmas: Tensor, truths: Tensor, anchors: Tensor, grid: Tensor, head: GaussianHead, weight: Tensor
) -> Tensor:
    """Of x, y, w, h, each followed by that of its uncertainty (n, 8).  Where the loss is an IoU, only the latter are
    Gaussian."""
    points = [torch.cat((b[:, :2] + head.shift * b[:, 2:], b[:, 2:]), 1) for b in (boxes, truths)]
    away = _differences(*points, anchors, grid)
    deviations = away / sigmas
    density = (-deviations.square() / 2).exp() / (math.sqrt(2 * math.pi) * (sigmas + SIGMA))
    pull = density / (density + 1e-9) / 2 * _small_more(truths)
    if head.iou_loss == "mse":
        deltas = pull * deviations / sigmas
    else:
        gradient = iou_gradient(boxes, truths, head.iou_loss)
        deltas = _iou_deltas(boxes, truths, anchors, head)
        deltas[:, :2] += head.shift * gradient[:, 2:]
    uncertain = pull * (deviations.square() / sigmas - 1 / (sigmas + SIGMA))
    return torch.stack((deltas * weight, uncertain * head.uc_normalizer), 2).flatten(1)
