"""Sections -> a plan of layers: who reads whom, shapes, parameters, FLOPs; the heads with strides.
Source: the make_*_layer and parse_yolo functions of Darknet; BFLOPs as it prints them."""

import math
from typing import NamedTuple

from yolov4.cfg import (
    Avgpool,
    Convolutional,
    Head,
    Maxpool,
    Reorg,
    Reorg3d,
    Route,
    Sam,
    ScaleChannels,
    Section,
    Shortcut,
    Upsample,
    Yolo,
)

Shape = tuple[int, int, int]  # channels, height, width
IMAGE = -1  # the source that is the network's input
# What a network may ask for, checked before anything is allocated: layers; floats of weights, and
# of a layer's output for one image.  YOLOv4-P7, the largest known, has 290 million weights; YOLOv4
# at 4096 x 4096 has an output of 540 million values.
MAX_LAYERS, MAX_FLOATS = 10_000, 1 << 30


class Layer(NamedTuple):
    """A section in its place.  parameters: floats in the .weights file, running statistics
    included.  flops: a multiply-add counts as two."""

    index: int
    section: Section
    sources: tuple[int, ...]
    input_shape: Shape
    output_shape: Shape
    parameters: int
    flops: int
    frees: list[int]  # outputs that nothing reads after this layer


def plan_layers(network):
    """Raises ValueError `name:line: ...` where sections do not fit together."""
    net, sections, name = network
    image = net.channels, net.height, net.width
    if min(image) < 1:
        raise ValueError(
            f"{network.where(net)} channels, height, width {image}, expected 1 or more"
        )
    if not 0 < len(sections) <= MAX_LAYERS:
        raise ValueError(f"{name}: has {len(sections)} layers, expected 1..{MAX_LAYERS}")
    layers = []
    for index, section in enumerate(sections):
        try:
            sources = _sources(section, index)
            shapes = [image if s == IMAGE else layers[s].output_shape for s in sources]
            layers.append(Layer(index, section, sources, shapes[0], *_output(section, shapes), []))
        except ValueError as error:
            raise ValueError(f"{network.where(section)} {error}") from None
    if (floats := sum(layer.parameters for layer in layers)) > MAX_FLOATS:
        raise ValueError(
            f"{name}: has {floats:,} floats of weights, expected at most {MAX_FLOATS:,}"
        )
    last_reader = {source: layer for layer in layers for source in layer.sources}
    for source, layer in last_reader.items():
        layer.frees.append(source)
    return tuple(layers)


def find_heads(network, layers):
    """The heads in the order of the file.
    Raises ValueError `name:line: ...` where mask, anchors, filters or sizes do not fit together."""
    heads = []
    for layer in layers:
        yolo, (channels, rows, columns) = layer.section, layer.input_shape
        if not isinstance(yolo, Yolo):
            continue
        if len(yolo.anchors) != yolo.num:
            where = network.where(yolo, "anchors")
            raise ValueError(f"{where} has {len(yolo.anchors)} anchors, but num={yolo.num}")
        mask = yolo.mask or tuple(range(yolo.num))
        for anchor in mask:
            if not 0 <= anchor < yolo.num:
                where = network.where(yolo, "mask")
                raise ValueError(f"{where} mask {anchor}, but num={yolo.num} (0..{yolo.num - 1})")
        before = layers[layer.index - 1].section
        if channels != (expected := len(mask) * (yolo.classes + 5)):
            raise ValueError(
                f"{network.where(before, 'filters')} filters={channels} before a [yolo], expected "
                f"{expected} = {len(mask)} anchors * ({yolo.classes} classes + 5); `python -m "
                "yolov4 cfg yolov4 --classes N --out my.cfg` writes a cfg for N classes"
            )
        logistic = isinstance(before, Convolutional) and before.activation == "logistic"
        if yolo.new_coords and not logistic:
            raise ValueError(
                f"{network.where(before, 'activation')} before a [yolo] with new_coords=1, "
                "expected activation=logistic"
            )
        size = network.net.width, network.net.height
        stride = size[0] // columns
        if size != (stride * columns, stride * rows):
            stride = 2 ** math.ceil(math.log2(size[0] / columns))
        keys = vars(yolo) | {"mask": mask, "anchors": tuple(yolo.anchors[m] for m in mask)}
        keys |= {"stride": stride, "size": size, "cells": (columns, rows)}
        heads.append(Head(**keys, all_anchors=yolo.anchors, index=layer.index))
    return tuple(heads)


def _sources(section, index):
    """Absolute indices of the layers that `section` reads."""
    references = getattr(section, "layers", getattr(section, "from_", ()))
    references = (references,) if isinstance(references, int) else references
    found = tuple(r + index if r < 0 else r for r in references)
    for source in found:
        if not 0 <= source < index:
            raise ValueError(f"reads layer {source}, expected 0..{index - 1}")
    return found if isinstance(section, Route) else (index - 1, *found)


def _output(section, shapes):
    """Output shape, parameters and FLOPs of a section that reads layers of these shapes."""
    channels, height, width = shapes[0]
    if len({shape[1:] for shape in shapes}) > 1 and not isinstance(section, ScaleChannels):
        raise ValueError(f"joins layers of shapes {shapes}, expected one height and width")
    parameters = flops = 0
    match section:
        case Convolutional(groups=groups, filters=filters, size=size, dilation=dilation):
            padding = convolution_padding(section)
            dilated = dilation == 1 or 2 * padding == size - 1
            if size < 1 or not 0 <= padding <= size or not dilated:
                raise ValueError(f"{size=} does not go with {padding=} and {dilation=}")
            if channels % groups or filters % groups:
                raise ValueError(f"{groups=} does not divide {channels} channels, {filters=}")
            height, width = _windows(height, width, size, section.stride, 2 * padding)
            weights = filters * channels // groups * size**2
            parameters = weights + filters * (4 if section.batch_normalize else 1)
            flops, channels = 2 * weights * height * width, filters
        case Maxpool():
            size, stride, padding = maxpool_window(section)
            if not 0 <= padding <= size:
                raise ValueError(f"{size=} does not go with {padding=}")
            height, width = _windows(height, width, size, stride, padding)
            flops = size**2 * channels * height * width
        case Route(groups=groups, group_id=group_id):
            if any(shape[0] % groups for shape in shapes) or not 0 <= group_id < groups:
                raise ValueError(f"{groups=} {group_id=} does not split {channels} channels")
            channels = sum(shape[0] // groups for shape in shapes)
        case Shortcut(weights_type=kind):
            parameters = {"none": 0, "per_channel": channels}.get(kind, 1) * len(shapes)
            flops = channels * height * width * (len(shapes) - 1) * (2 if parameters else 1)
        case Upsample(stride=stride):
            height, width = height * stride, width * stride
        case Avgpool():
            height = width = 1
        case ScaleChannels() | Sam():
            expected = channels, height, width = shapes[1]
            if isinstance(section, ScaleChannels):
                expected = (1, height, width) if section.scale_wh else (channels, 1, 1)
            if shapes[0] != expected:
                raise ValueError(f"has factors of shape {shapes[0]}, expected {expected}")
        case Reorg(stride=stride) | Reorg3d(stride=stride):
            old = isinstance(section, Reorg)
            if height % stride or width % stride or (old and channels % stride**2):
                raise ValueError(f"{stride=} does not divide {width} x {height} x {channels}")
            channels, height, width = channels * stride**2, height // stride, width // stride
    if min(height, width) < 1 or channels * height * width > MAX_FLOATS:
        raise ValueError(f"has {width} x {height} x {channels} outputs, expected 1..{MAX_FLOATS:,}")
    return (channels, height, width), parameters, flops


def _windows(height, width, size, stride, padding):
    """Rows and columns of windows on a layer that is padded by `padding` in all, truncated."""
    return [(side + padding - size) // stride + 1 for side in (height, width)]


def convolution_padding(section):
    return section.size // 2 if section.pad else section.padding


def maxpool_window(section):
    """(size, stride, padding of both sides together)"""
    size = section.size or section.stride
    return size, section.stride, size - 1 if section.padding < 0 else section.padding
