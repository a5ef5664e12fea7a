"""Logits -> boxes and probabilities, the only place; and from there to the detections of an image.
Source: Darknet's src/yolo_layer.c, get_yolo_box, get_yolo_detections, correct_yolo_boxes; gaussian_yolo_layer.c."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolov4.boxes import cxcywh_to_xyxy, nms
from yolov4.sections import GaussianHead, Head


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


def head_outputs(logits: Tensor, head: Head) -> Tensor:
    """logits (B, A * (5 + C), h, w) -> what Darknet's layer holds, float32 (B, A, h, w, 5 + C): x, y in cells from
    the cell's corner; w, h as logits, or after the logistic with new_coords; probabilities."""
    raw = _by_place(logits, head)
    if isinstance(head, GaussianHead):
        raw = torch.cat((raw[..., :8:2], raw[..., 8:]), -1)
    offsets = raw[..., :2].sigmoid() * head.scale_x_y - (head.scale_x_y - 1) / 2
    sizes = raw[..., 2:4].sigmoid() if head.new_coords else raw[..., 2:4]
    return torch.cat((offsets, sizes, raw[..., 4:].sigmoid()), -1)


def _by_place(logits: Tensor, head: Head) -> Tensor:
    """(B, A * (5 + C), h, w) -> float32 (B, A, h, w, 5 + C); of a [Gaussian_yolo] 9 + C"""
    values = logits.float().unflatten(1, (len(head.anchors), head.box_values + 1 + head.classes))
    return values.permute(0, 1, 3, 4, 2)


def decode(logits: Tensor, head: Head) -> Decoded | GaussianDecoded:
    """logits (B, A * (5 + C), h, w), before the logistic, of any float type -> Decoded in float32.

    A [Gaussian_yolo] has 9 + C: x, y, w, h are each followed by its uncertainty.
    """
    held = head_outputs(logits, head)  # (B, A, h, w, 5 + C)
    h, w = logits.shape[2:]
    columns, rows = torch.arange(w, device=held.device), torch.arange(h, device=held.device)
    cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (h, w, 2)
    grid = held.new_tensor((w, h))
    anchors = held.new_tensor(head.anchors)[:, None, None] / (grid * head.stride)  # (A, 1, 1, 2)
    sizes = (2 * held[..., 2:4]).square() if head.new_coords else held[..., 2:4].exp()  # in anchors
    points, sizes = (held[..., :2] + cells) / grid, sizes * anchors
    if not isinstance(head, GaussianHead):
        return Decoded(torch.cat((points, sizes), -1), held[..., 4], held[..., 5:])
    sigmas = _by_place(logits, head)[..., 1:8:2].sigmoid()
    return GaussianDecoded(torch.cat((points - head.shift * sizes, sizes), -1), held[..., 4], held[..., 5:], sigmas)


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
    batch = len(logits[0])
    sizes = [image_size] * batch if isinstance(image_size[0], int) else image_size
    network_size = (logits[0].shape[3] * heads[0].stride, logits[0].shape[2] * heads[0].stride)
    found = [_candidates(decode(each, head), thresh) for each, head in zip(logits, heads, strict=True)]
    images, boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    detections = []
    for image, size in enumerate(sizes):
        of_image = images == image
        picked = [values[of_image] for values in (boxes, scores, labels)]
        if letter_box:
            picked[0] = _undo_letterbox(picked[0], size, network_size)
        if nms_thresh:
            order = nms(*picked, nms_thresh, heads[-1].nms_kind, heads[-1].beta_nms)
        else:
            order = picked[1].argsort(descending=True, stable=True)
        pixels = picked[0].new_tensor((*size, *size))
        detections.append(Detections(cxcywh_to_xyxy(picked[0][order]) * pixels, picked[1][order], picked[2][order]))
    return detections


def _candidates(decoded: Decoded, thresh: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """image index (n,), boxes (n, 4) cxcywh, scores (n,), labels (n,) of all classes above thresh"""
    places = (decoded.objectness > thresh).nonzero(as_tuple=True)  # image, anchor, row, column
    scores = decoded.objectness[places][:, None] * decoded.classes[places]  # (m, C)
    if isinstance(decoded, GaussianDecoded):
        scores = scores * (1 - decoded.sigmas[places].mean(1, keepdim=True))
    rows, labels = (scores > thresh).nonzero(as_tuple=True)
    return places[0][rows], decoded.boxes[places][rows], scores[rows, labels], labels


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
