"""Self-adversarial training: what an image has to become for the network to lose its objects in it.
Source: YOLOv4, section 3.3; Darknet's src/yolo_layer.c (process_batch, adversarial), network_kernels.cu."""

from collections.abc import Sequence

import torch
from torch import Tensor

from yolov4.decoding import box_outputs, decode, head_values
from yolov4.deltas import Deltas, average_boxes, of_logits, pulled
from yolov4.sections import GaussianHead, Head, Net

FOUND = 0.25  # objectness * probability above which the network sees an object


def attack_loss(logits: Sequence[Tensor], heads: Sequence[Head]) -> Tensor:
    """A scalar of which only the gradient counts: minus the deltas of the attack, over the images."""
    with torch.autocast(logits[0].device.type, enabled=False):
        deltas = [attack_deltas(*each) for each in zip(logits, heads, strict=True)]
        return pulled(logits[0].new_zeros((), dtype=torch.float32), deltas, logits)


@torch.no_grad()
def attack_deltas(logits: Tensor, head: Head) -> Tensor:
    """Darknet's delta of one head in adversarial mode, shaped as its logits (B, A * (5 + C), h, w).

    Large predictions count more.  Where the network sees an object, its classes go to 0, all others to 1 and the
    box's values to 0; everywhere objectness goes to 0.  There are no truths.  Of a [Gaussian_yolo] the objects' classes
    and objectness alone go to 0.
    """
    decoded, deltas = decode(logits, head), Deltas.zeros(logits, head)
    scale = decoded.boxes[..., 2:].prod(-1, keepdim=True).sqrt()  # (B, A, h, w, 1), relative
    scores = decoded.objectness[..., None] * decoded.classes
    seen = scores > FOUND
    some = seen.any(-1, keepdim=True)
    others = decoded.classes
    if not isinstance(head, GaussianHead):
        others = torch.where(some & (scores < FOUND), 1.0, others)
        deltas.boxes.copy_(-scale * box_outputs(head_values(logits, head), head) * some)
    deltas.objectness.copy_(-scale[..., 0] * head.obj_normalizer * decoded.objectness)
    deltas.classes.copy_(scale * (torch.where(seen, 0.0, others) - decoded.classes))
    if head.iou_thresh < 1:
        average_boxes(deltas, ...)
    return of_logits(deltas, logits, head).nan_to_num(0, 0, 0)  # a side that overflowed pulls nowhere


def attack_rate(iteration: int, net: Net) -> float:
    """How far the deltas move an image in an iteration counted from 1; 0 up to burn_in."""
    done = iteration - 1  # what Darknet counts
    return net.adversarial_lr * done / net.max_batches if done > net.burn_in else 0.0


def moved(images: Tensor, gradient: Tensor | None, rate: float) -> Tensor:
    """images (B, 3, H, W) in 0..1 against the gradient of the summed deltas; unchanged where none arrives."""
    return images if gradient is None else images.sub(gradient.nan_to_num(0, 0, 0), alpha=rate).clamp(0, 1)
