"""Logits to boxes and probabilities, the only place, and from there to the detections of an image.
Source: Darknet's src/yolo_layer.c, get_yolo_box, get_yolo_detections, correct_yolo_boxes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from yolov4.boxes import cxcywh_to_xyxy, nms, to_device
from yolov4.cfg import Head


class Decoded(NamedTuple):
    """Predictions of one head, float32."""

    boxes: Tensor  # (B, A, h, w, 4) cxcywh relative to the network input
    objectness: Tensor  # (B, A, h, w) probability
    classes: Tensor  # (B, A, h, w, C) probabilities


class Detection(NamedTuple):
    """One detection in plain values."""

    name: str
    score: float
    box: list[float]  # x1, y1, x2, y2 in pixels of the original image


@dataclass(eq=False)
class Detections:
    """What was found in one image, by falling score; `len` is the number of detections.

    Iterating gives a Detection each, and so does a number as index; a slice, a mask or a list of
    indices gives Detections.  prediction: which prediction each came from, numbered in Darknet's
    order; the classes of one prediction share it.  None: one each, in order.  names: of the
    classes, None for their numbers.
    """

    boxes: Tensor  # (n, 4) xyxy, pixels of the original image
    scores: Tensor  # (n,)
    labels: Tensor  # (n,) int64
    prediction: Tensor | None = None  # (n,) int64
    names: Sequence[str] | None = None

    def __post_init__(self):
        if self.prediction is None:
            self.prediction = torch.arange(len(self.scores), device=self.scores.device)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        labels = self.labels.tolist()
        names = [self.names[label] for label in labels] if self.names else map(str, labels)
        return map(Detection, names, self.scores.tolist(), self.boxes.tolist())

    def __getitem__(self, which) -> Any:
        if not self.scores[which].dim():
            return list(self)[which]
        return self._each(lambda values: values[which])

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {score:.2f}" for name, score, _ in self)
        return f"{len(self)} detection{'s' * (len(self) != 1)}: {found or 'none'}"

    def _each(self, change):
        """With every tensor changed."""
        *tensors, names = vars(self).values()
        return type(self)(*map(change, tensors), names)

    def cpu(self) -> "Detections":
        return self._each(Tensor.cpu)

    def numpy(self) -> tuple[np.ndarray, ...]:
        """boxes, scores, labels as arrays."""
        return tuple(each.cpu().numpy() for each in (self.boxes, self.scores, self.labels))

    def to_list(self) -> list[dict]:
        """A dict with name, score and box of each, ready for json.dumps."""
        return [each._asdict() for each in self]


def by_anchor(logits, head):
    """logits (B, A * (5 + C), h, w) -> a view (B, A, h, w, 5 + C)"""
    return logits.unflatten(1, (len(head.anchors), -1)).movedim(2, -1)


def decode(logits: Tensor, head: Head) -> Decoded:
    """logits (B, A * (5 + C), h, w), before the logistic, of any float type -> Decoded."""
    values = by_anchor(logits, head)
    boxes = decode_boxes(values, head, logits.shape[2:])
    return Decoded(boxes, values[..., 4].float().sigmoid(), values[..., 5:].float().sigmoid())


def decode_boxes(values, head, grid, indices=None):
    """Boxes (..., 4) cxcywh relative to the network input.  grid: (rows, columns).

    values: (B, A, h, w, 4+) of all predictions; or (n, 4+) of those at indices, (n,) each:
    anchor, row, column.
    """
    device = values.device
    if indices is None:
        axes = (torch.arange(length, device=device) for length in values.shape[1:4])
        indices = torch.meshgrid(*axes, indexing="ij")
    anchor, row, column = indices
    outputs = box_outputs(values, head)
    anchors = to_device(relative_anchors(head.anchors, head, grid), device)
    size = to_device(torch.tensor(grid[::-1]), device)
    centres = (outputs[..., :2] + torch.stack((column, row), -1)) / size
    sides = (2 * outputs[..., 2:]).square() if head.new_coords else outputs[..., 2:].exp()
    return torch.cat((centres, sides * anchors[anchor]), -1)


def relative_anchors(anchors, head, grid):
    """anchors (n, 2) in pixels -> relative to the network input of `grid` cells (rows, columns)"""
    return torch.tensor(anchors) / torch.tensor(head.input_size(*grid))


def box_outputs(values, head):
    """(..., 4+) logits -> (..., 4) as Darknet's layer holds them: x, y in cells from the cell's
    corner; w, h as logits, or after the logistic with new_coords."""
    centres, sides = values[..., :2].float().sigmoid(), values[..., 2:4].float()
    centres = centres * head.scale_x_y - (head.scale_x_y - 1) / 2
    return torch.cat((centres, sides.sigmoid() if head.new_coords else sides), -1)


def class_scores(decoded):
    """Objectness * class probability, (..., C)."""
    return decoded.objectness[..., None] * decoded.classes


def detections_from_logits(
    logits: Sequence[Tensor],
    heads: Sequence[Head],
    image_size: tuple[int, int] | Sequence[tuple[int, int]],
    thresh: float = 0.25,
    nms_thresh: float = 0.45,
    letter_box: bool = False,
) -> list[Detections]:
    """Logits, one per head -> Detections, one per image.

    image_size: (width, height) of the original image in pixels, or one per image of the batch.
    A prediction counts where objectness > thresh, with every class whose score > thresh.  As in
    Darknet, nms_kind and beta_nms are those of the last head; nms_thresh 0: no suppression.
    """
    network_size = heads[0].input_size(*logits[0].shape[2:])
    found, first = [], 0
    for each, head in zip(logits, heads, strict=True):
        values, grid = by_anchor(each, head), each.shape[2:]
        objectness = values[..., 4].float().sigmoid()
        indices = image, anchor, row, column = (objectness > thresh).nonzero(as_tuple=True)
        boxes = decode_boxes(values, head, grid)[indices]
        classes = values[..., 5:][indices].float().sigmoid()  # most are below the threshold
        scores = class_scores(Decoded(boxes, objectness[indices], classes))
        chosen, labels = (scores > thresh).nonzero(as_tuple=True)
        prediction = first + (anchor * grid[0] + row) * grid[1] + column
        found.append(
            (image[chosen], boxes[chosen], scores[chosen, labels], labels, prediction[chosen])
        )
        first += objectness[0].numel()
    candidates = map(torch.cat, zip(*found, strict=True))
    sizes = [image_size] * len(logits[0]) if isinstance(image_size[0], int) else image_size
    options = heads[-1], sizes, network_size, nms_thresh, letter_box
    return list(detections_from_candidates(candidates, *options))


def detections_from_candidates(candidates, head, image_sizes, network_size, nms_thresh, letter_box):
    """What is above the threshold in a batch -> Detections, one per image.

    candidates: the index (n,) in the batch, boxes (n, 4) cxcywh relative to the network input,
    scores (n,), labels (n,), and prediction (n,) among those of the image, one head after the
    other; a row per class.  Sizes are (width, height) in pixels.  Suppression as `suppressed`.
    """
    index, *columns = candidates
    for number, size in enumerate(image_sizes):
        boxes, scores, labels, prediction = (values[index == number] for values in columns)
        # Darknet sorts predictions by each class in turn, before NMS: in the end by the last class,
        # equal ones by the last but one, and so on
        known, owner = prediction.unique(return_inverse=True)
        probabilities = scores.new_zeros(len(known), head.classes)
        probabilities[owner, labels] = scores
        rank = np.lexsort(-probabilities.cpu().numpy().T).argsort()
        if letter_box:  # relative to the network input -> to the image that was fitted into it
            fitted = boxes.new_tensor(fitted_size(size, network_size))
            ratio = fitted / boxes.new_tensor(network_size)
            boxes[:, :2] -= (1 - ratio) / 2
            boxes /= ratio.repeat(2)
        pixels = cxcywh_to_xyxy(boxes) * boxes.new_tensor(size * 2)
        prediction = owner.new_tensor(rank)[owner]
        found = Detections(pixels, scores, labels, prediction)
        yield suppressed(found, boxes, nms_thresh, head)


def suppressed(found, boxes, nms_thresh, head):
    """The Detections that stay, by falling score.  boxes: theirs as cxcywh; nms_kind and beta_nms
    are the head's; nms_thresh 0: all stay."""
    if not nms_thresh:
        return found[found.scores.argsort(descending=True, stable=True)]
    columns = boxes, found.scores, found.labels
    return found[nms(*columns, nms_thresh, head.nms_kind, head.beta_nms)]


def fitted_size(image_size, network_size):
    """(width, height) of an image that fills a network's letter box, its aspect kept, truncated."""
    (width, height), (network_width, network_height) = image_size, network_size
    if network_width / width < network_height / height:
        return network_width, max(1, height * network_width // width)
    return max(1, width * network_height // height), network_height
