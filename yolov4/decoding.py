"""Logits -> boxes and probabilities, the only place; and from there to the detections of an image.
Source: Darknet's src/yolo_layer.c, get_yolo_box, get_yolo_detections, correct_yolo_boxes; gaussian_yolo_layer.c."""

from collections.abc import Sequence
from types import EllipsisType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from yolov4.boxes import cxcywh_to_xyxy, nms
from yolov4.sections import GaussianHead, Head
from yolov4.transfer import sent

Places = tuple[Tensor, ...] | EllipsisType  # image, anchor, row, column, (n,) each; or everywhere


class Decoded(NamedTuple):
    """Predictions of one head: boxes cxcywh relative to the network input, probabilities in 0..1."""

    boxes: Tensor  # (B, A, h, w, 4)
    objectness: Tensor  # (B, A, h, w)
    classes: Tensor  # (B, A, h, w, C)


class GaussianDecoded(NamedTuple):
    """Those of a [Gaussian_yolo], and how uncertain x, y, w, h are, in 0..1."""

    boxes: Tensor
    objectness: Tensor
    classes: Tensor
    sigmas: Tensor  # (B, A, h, w, 4)


class Detections(NamedTuple):
    """What was found in one image, by falling score."""

    boxes: Tensor  # (n, 4) xyxy, pixels of the original image
    scores: Tensor  # (n,)
    labels: Tensor  # (n,) int64

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """boxes, scores, labels as plain arrays, on the CPU."""
        boxes, scores, labels = (values.cpu().numpy() for values in self)
        return boxes, scores, labels


class Candidates(NamedTuple):
    """What is above the threshold in a batch, a row for each class, before the suppression."""

    images: Tensor  # (n,) number in the batch
    boxes: Tensor  # (n, 4) cxcywh relative to the network input
    scores: Tensor  # (n,)
    labels: Tensor  # (n,) int64


class Predictions:
    """One head's predictions in float32: boxes and objectness, and the classes, by far the most, where they are asked
    for.

    logits (B, A * (5 + C), h, w), before the logistic, of any float type.
    """

    def __init__(self, logits: Tensor, head: Head):
        self.head, device = head, logits.device
        self.values = head_values(logits, head)  # (B, A, h, w, 5 + C)
        h, w = logits.shape[2:]
        grid = torch.tensor((w, h), dtype=torch.float32)
        self.grid = sent(grid, device)
        self.anchors = sent(torch.tensor(head.anchors) / (grid * head.stride), device)  # (A, 2) relative
        columns, rows = torch.arange(w, device=device), torch.arange(h, device=device)
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (h, w, 2)
        self.boxes = _boxes(box_outputs(self.values, head), cells, self.anchors[:, None, None], self.grid, head)
        if isinstance(head, GaussianHead):
            self.boxes = torch.cat((self.boxes[..., :2] - head.shift * self.boxes[..., 2:], self.boxes[..., 2:]), -1)
        self.objectness = self.values[..., head.box_values].float().sigmoid()  # (B, A, h, w)

    def at(self, places: Places = ...) -> Decoded | GaussianDecoded:
        """Those in some places (n,), or all (B, A, h, w)."""
        decoded = Decoded(self.boxes[places], self.objectness[places], self.classes(places))
        return GaussianDecoded(*decoded, self.sigmas(places)) if isinstance(self.head, GaussianHead) else decoded

    def classes(self, places: Places) -> Tensor:
        """(..., C) probabilities"""
        return self.values[..., self.head.box_values + 1 :][places].float().sigmoid()

    def sigmas(self, places: Places) -> Tensor:
        """(..., 4) uncertainties of x, y, w, h, of a [Gaussian_yolo]"""
        return self.values[..., 1:8:2][places].float().sigmoid()

    def most_probable(self) -> Tensor:
        """The probability of the likeliest class, (B, A, h, w)."""
        return self.values[..., self.head.box_values + 1 :].amax(-1).float().sigmoid()


def head_values(logits: Tensor, head: Head) -> Tensor:
    """logits (B, A * (5 + C), h, w) -> a view of them by anchor and cell (B, A, h, w, 5 + C); of a [Gaussian_yolo]
    9 + C: x, y, w, h are each followed by its uncertainty."""
    values = logits.unflatten(1, (len(head.anchors), head.box_values + 1 + head.classes))
    return values.permute(0, 1, 3, 4, 2)


def decode(logits: Tensor, head: Head) -> Decoded | GaussianDecoded:
    """logits (B, A * (5 + C), h, w), before the logistic, of any float type -> Decoded in float32."""
    return Predictions(logits, head).at()


def decode_places(values: Tensor, places: tuple[Tensor, ...], grid: tuple[int, int], head: Head) -> Tensor:
    """Boxes (n, 4) cxcywh relative of single predictions, of which a gradient is asked: `decode` for some of them.

    values (n, 4+): logits of the box in front; places: image, anchor, row, column, (n,) each; grid (columns, rows).
    """
    _, anchor, row, column = places
    size = torch.tensor(grid, dtype=torch.float32)
    anchors = sent(torch.tensor(head.anchors) / (size * head.stride), values.device)[anchor]
    return _boxes(box_outputs(values, head), torch.stack((column, row), 1), anchors, sent(size, values.device), head)


def box_outputs(values: Tensor, head: Head) -> Tensor:
    """(..., 4+) logits as `head_values` -> what Darknet's layer holds, float32 (..., 4), without uncertainties: x, y in
    cells from the cell's corner; w, h as logits, or after the logistic with new_coords."""
    box = values[..., : head.box_values : head.box_values // 4].float()
    offsets = box[..., :2].sigmoid() * head.scale_x_y - (head.scale_x_y - 1) / 2
    return torch.cat((offsets, box[..., 2:].sigmoid() if head.new_coords else box[..., 2:]), -1)


def _boxes(held: Tensor, cells: Tensor, anchors: Tensor, grid: Tensor, head: Head) -> Tensor:
    """(..., 4) of `box_outputs`, cells (..., 2) column, row, anchors (..., 2) relative -> cxcywh relative (..., 4)"""
    sizes = (2 * held[..., 2:]).square() if head.new_coords else held[..., 2:].exp()  # in anchors
    return torch.cat(((held[..., :2] + cells) / grid, sizes * anchors), -1)


def detections_from_logits(
    logits: Sequence[Tensor],
    heads: Sequence[Head],
    image_size: tuple[int, int] | Sequence[tuple[int, int]],
    thresh: float = 0.25,
    nms_thresh: float = 0.45,
    letter_box: bool = False,
) -> list[Detections]:
    """logits of each head -> one Detections an image.

    image_size: (width, height) of the original image in pixels, or one a picture of the batch.  A prediction counts
    where objectness > thresh, with every class whose objectness * probability > thresh (of a [Gaussian_yolo] times
    1 - mean uncertainty).  The last head's nms_kind and beta_nms hold, as in Darknet; nms_thresh 0 leaves the
    suppression out.
    """
    network_size = (logits[0].shape[3] * heads[0].stride, logits[0].shape[2] * heads[0].stride)
    found = [_candidates(Predictions(each, head), thresh) for each, head in zip(logits, heads, strict=True)]
    candidates = Candidates(*map(torch.cat, zip(*found, strict=True)))
    sizes = [image_size] * len(logits[0]) if isinstance(image_size[0], int) else image_size
    return detections_from_candidates(candidates, heads[-1], sizes, network_size, nms_thresh, letter_box)


def detections_from_candidates(
    candidates: Candidates,
    head: Head,
    image_sizes: Sequence[tuple[int, int]],
    network_size: tuple[int, int],
    nms_thresh: float,
    letter_box: bool,
) -> list[Detections]:
    """Candidates of a batch -> one Detections an image; sizes are (width, height) in pixels.  The head's nms_kind and
    beta_nms hold; nms_thresh 0 leaves the suppression out."""
    detections = []
    for image, size in enumerate(image_sizes):
        of_image = candidates.images == image
        boxes, scores, labels = (values[of_image] for values in candidates[1:])
        if letter_box:
            boxes = _undo_letterbox(boxes, size, network_size)
        if nms_thresh:
            order = nms(boxes, scores, labels, nms_thresh, head.nms_kind, head.beta_nms)
        else:
            order = scores.argsort(descending=True, stable=True)
        pixels = boxes.new_tensor((*size, *size))
        detections.append(Detections(cxcywh_to_xyxy(boxes[order]) * pixels, scores[order], labels[order]))
    return detections


def class_scores(decoded: Decoded | GaussianDecoded) -> Tensor:
    """Objectness * probability, of a [Gaussian_yolo] times 1 - mean uncertainty; (..., C)."""
    scores = decoded.objectness[..., None] * decoded.classes
    if isinstance(decoded, GaussianDecoded):
        scores = scores * (1 - decoded.sigmas.mean(-1, keepdim=True))
    return scores


def _candidates(predictions: Predictions, thresh: float) -> Candidates:
    """All classes above thresh of one head's predictions."""
    places = (predictions.objectness > thresh).nonzero(as_tuple=True)  # image, anchor, row, column
    decoded = predictions.at(places)
    scores = class_scores(decoded)  # (m, C)
    rows, labels = (scores > thresh).nonzero(as_tuple=True)
    return Candidates(places[0][rows], decoded.boxes[rows], scores[rows, labels], labels)


def fitted_size(image_size: tuple[int, int], network_size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an image in the letter box of a network: the whole of it, its aspect kept, truncated."""
    (width, height), (network_width, network_height) = image_size, network_size
    if network_width / width < network_height / height:
        return network_width, max(1, height * network_width // width)
    return max(1, width * network_height // height), network_height


def _undo_letterbox(boxes: Tensor, image_size: tuple[int, int], network_size: tuple[int, int]) -> Tensor:
    """Boxes cxcywh relative to the network input -> relative to the image that was fitted into it."""
    ratio = boxes.new_tensor(fitted_size(image_size, network_size)) / boxes.new_tensor(network_size)
    return torch.cat(((boxes[:, :2] - (1 - ratio) / 2) / ratio, boxes[:, 2:] / ratio), 1)
