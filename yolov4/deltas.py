"""Darknet's deltas: minus the gradient, built by hand, and given to autograd as the gradient that it is.
Source: Darknet's src/yolo_layer.c, `l.delta`; averages_yolo_deltas."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolov4.decoding import Places, head_values
from yolov4.sections import Head


class Deltas(NamedTuple):
    """Minus the gradient with respect to a head's values, by part, filled in place: views of `whole`."""

    whole: Tensor  # (B, A * (5 + C), h, w), as the logits
    boxes: Tensor  # (B, A, h, w, 4), or 8: each followed by that of its uncertainty
    objectness: Tensor  # (B, A, h, w)
    classes: Tensor  # (B, A, h, w, C)

    @classmethod
    def zeros(cls, logits: Tensor, head: Head) -> "Deltas":
        whole = torch.zeros_like(logits, dtype=torch.float32)
        values, n = head_values(whole, head), head.box_values
        return cls(whole, values[..., :n], values[..., n], values[..., n + 1 :])


def average_boxes(deltas: Deltas, places: Places) -> None:
    """Divides box deltas by the number of classes that answer in their place.  The places are distinct."""
    classes = (deltas.classes[places] > 0).sum(-1)
    divisor = torch.where(deltas.objectness[places] != 0, classes.clamp(min=1), 1)
    deltas.boxes[places] /= divisor[..., None]


def of_logits(deltas: Deltas, logits: Tensor, head: Head) -> Tensor:
    """The deltas with respect to the logits (B, A * (5 + C), h, w)."""
    if not head.new_coords:
        return deltas.whole
    probabilities = logits.float().sigmoid()  # Darknet's delta is of the output of the logistic layer before the head
    return deltas.whole * probabilities * (1 - probabilities)


def pulled(value: Tensor, deltas: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """The value, with minus the deltas of each head over the images as its gradient.  It is no number where any logit
    is none, whether the loss looks at it or not."""
    seen = sum(each.detach().sum(dtype=torch.float32) for each in logits)
    return _Pulled.apply(value + 0 * seen, deltas, *logits)


class _Pulled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, deltas: Sequence[Tensor], *logits: Tensor) -> Tensor:
        ctx.deltas = deltas
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(delta * (-gradient / len(delta)) for delta in ctx.deltas)
