"""Sections -> a plan of layers: who reads whom, shapes, parameters, cost; the yolo heads with their strides.
Source: the make_*_layer functions of Darknet; BFLOPs are counted as it prints them."""

from typing import NamedTuple

from yolov4.heads import check_head, make_head
from yolov4.sections import (
    Avgpool,
    Convolutional,
    Head,
    Implicit,
    Maxpool,
    Network,
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

IMAGE = -1  # the source that is no layer
# What a network may ask for, checked before any of it is allocated: layers, floats of weights, values of a layer for
# one image.  YOLOv4-P7, the largest known, has 290 million floats; YOLOv4 at 4096 x 4096 a layer of 540 million values.
MAX_LAYERS, MAX_FLOATS, MAX_VALUES = 10_000, 1 << 30, 1 << 30


class Layer(NamedTuple):
    """A section in its place.

    Shapes are (channels, height, width).  parameters: floats in the .weights file, rolling averages included.  flops:
    a multiply-add counts as two.
    """

    index: int
    section: Section
    sources: tuple[int, ...]
    input_shape: Shape
    output_shape: Shape
    parameters: int
    flops: int
    frees: tuple[int, ...]  # outputs that nothing reads after this layer


def plan_layers(network: Network) -> tuple[Layer, ...]:
    """Raises ValueError `name:line: ...` where sections do not fit together."""
    net, sections, name = network
    if min(net.width, net.height, net.channels) < 1:
        size = f"width={net.width} height={net.height} channels={net.channels}"
        raise ValueError(f"{name}:{net.lines.get('', 0)}: [net] {size}, expected all above 0")
    if not sections:
        raise ValueError(f"{name}: has no layers, expected [convolutional] and the like after [net]")
    if len(sections) > MAX_LAYERS:
        raise ValueError(f"{name}: has {len(sections)} layers, expected at most {MAX_LAYERS}")
    layers: list[Layer] = []
    for index, section in enumerate(sections):
        try:
            sources = _sources(section, index)
            shapes = [layers[s].output_shape if s >= 0 else (net.channels, net.height, net.width) for s in sources]
            layers.append(_layer(index, section, sources, shapes))
            if isinstance(section, Yolo):
                check_head(section, layers[-2].section if index else None, shapes[0][0], name)
        except ValueError as error:
            line = section.lines.get("", 0)
            raise error if str(error).startswith(f"{name}:") else ValueError(f"{name}:{line}: {error}") from None
    if (floats := sum(layer.parameters for layer in layers)) > MAX_FLOATS:
        raise ValueError(f"{name}: asks for {floats:,} floats of weights, expected at most {MAX_FLOATS:,}")
    last_reader = {source: layer.index for layer in layers for source in layer.sources}
    frees: list[list[int]] = [[] for _ in layers]
    for source, reader in last_reader.items():
        frees[reader].append(source)
    return tuple(layer._replace(frees=tuple(frees[layer.index])) for layer in layers)


def find_heads(network: Network, layers: tuple[Layer, ...]) -> tuple[Head, ...]:
    """The heads in the order of the file."""
    yolos = (layer for layer in layers if isinstance(layer.section, Yolo))
    return tuple(make_head(network, layer.section, layer.index, layer.output_shape[1:]) for layer in yolos)


def _sources(section: Section, index: int) -> tuple[int, ...]:
    """Absolute indices of the layers that `section` reads."""
    match section:
        case Route(layers=references) | Shortcut(from_=references):
            pass
        case ScaleChannels(from_=reference) | Sam(from_=reference):
            references = (reference,)
        case _:
            references = ()
    found = tuple(r + index if r < 0 else r for r in references)
    for source in found:
        if not 0 <= source < index:
            raise ValueError(f"layer {index} [{section.kind}] reads layer {source}, expected 0..{index - 1}")
    return found if isinstance(section, Route) else (index - 1, *found)


def _layer(index: int, section: Section, sources: tuple[int, ...], shapes: list[Shape]) -> Layer:
    channels, height, width = shapes[0]
    if any(shape[1:] != (height, width) for shape in shapes) and not isinstance(section, ScaleChannels):
        sizes = ", ".join(f"{shape[2]}x{shape[1]}" for shape in shapes)
        raise ValueError(f"layer {index} [{section.kind}] joins layers of {sizes}, expected one size")
    _check_window(section, shapes[0])
    parameters = flops = 0
    match section:
        case Convolutional(groups=groups, filters=filters, size=size, stride=stride):
            if min(groups, filters) < 1 or channels % groups or filters % groups:
                raise ValueError(f"groups={groups}, expected a divisor of {channels} channels and {filters} filters")
            pad = 2 * convolution_padding(section)
            height, width = (height + pad - size) // stride + 1, (width + pad - size) // stride + 1
            weights = filters * channels // groups * size * size
            parameters = weights + filters * (4 if section.batch_normalize else 1)
            flops, channels = 2 * weights * height * width, filters
        case Maxpool():
            size, stride, padding = maxpool_window(section)
            height, width = (height + padding - size) // stride + 1, (width + padding - size) // stride + 1
            flops = size * size * channels * height * width
        case Route(groups=groups, group_id=group_id):
            if groups < 1 or any(shape[0] % groups for shape in shapes) or not 0 <= group_id < groups:
                raise ValueError(f"groups={groups} group_id={group_id} does not cut {channels} channels")
            channels = sum(shape[0] // groups for shape in shapes)
        case Shortcut(weights_type=weights_type):
            parameters = {"none": 0, "per_channel": channels}.get(weights_type, 1) * len(sources)
            flops = channels * height * width * (len(sources) - 1) * (2 if parameters else 1)
        case Upsample(stride=stride):
            height, width = height * stride, width * stride
        case Avgpool():
            height = width = 1
        case ScaleChannels() | Sam():
            channels, height, width = _scaled_shape(section, *shapes)
        case Reorg() | Reorg3d():
            channels, height, width = _reorganised_shape(section, shapes[0])
        case Implicit(filters=filters, atoms=atoms):
            (channels, height, width), parameters = (filters, atoms, 1), filters * atoms
    shape = (channels, height, width)
    _check_outputs(shape, f"layer {index} [{section.kind}]")
    return Layer(index, section, sources, shapes[0], shape, parameters, flops, ())


def _check_outputs(shape: Shape, where: str) -> None:
    if min(shape[1:]) < 1:
        raise ValueError(f"{where} has {shape[2]}x{shape[1]} outputs: the network is too small")
    if (values := shape[0] * shape[1] * shape[2]) > MAX_VALUES:
        raise ValueError(f"{where} has {values:,} values, expected at most {MAX_VALUES:,}")


def _scaled_shape(section: ScaleChannels | Sam, factors: Shape, scaled: Shape) -> Shape:
    a_cell, a_channel = (1, *scaled[1:]), (scaled[0], 1, 1)
    expected = scaled if isinstance(section, Sam) else a_cell if section.scale_wh else a_channel
    if factors != expected:
        found, wanted = ("{2} x {1} x {0}".format(*shape) for shape in (factors, expected))
        raise ValueError(f"[{section.kind}] has {found} factors, expected {wanted}")
    return scaled


def _reorganised_shape(section: Reorg | Reorg3d, shape: Shape) -> Shape:
    (channels, height, width), stride = shape, section.stride
    if stride < 1 or height % stride or width % stride or (isinstance(section, Reorg) and channels % stride**2):
        raise ValueError(f"[{section.kind}] stride={stride} does not divide {width} x {height} x {channels}")
    return channels * stride**2, height // stride, width // stride


def convolution_padding(section: Convolutional) -> int:
    return section.size // 2 if section.pad else section.padding


def maxpool_window(section: Maxpool) -> tuple[int, int, int]:
    """(size, stride, padding of both sides together)"""
    size = section.size or section.stride
    return size, section.stride, size - 1 if section.padding < 0 else section.padding


def _check_window(section: Section, shape: tuple[int, int, int]) -> None:
    """Whether the window of a convolution or a pooling can be put on its input."""
    match section:
        case Convolutional(size=size, stride=stride, dilation=dilation):
            padding = convolution_padding(section)
            if dilation > 1 and 2 * padding != size - 1:
                raise ValueError(f"dilation={dilation} with size={size} and padding={padding}, expected pad=1 and odd")
            room = padding * max(dilation, 1)
        case Maxpool():
            size, stride, both = maxpool_window(section)
            padding = room = both
        case Upsample(stride=stride):
            size, padding, room = 1, 0, 0
        case _:
            return
    if min(size, stride) < 1 or not 0 <= padding <= size:
        raise ValueError(f"size={size} stride={stride} padding={padding}, expected 1.., 1.. and 0..size")
    if (values := shape[0] * (shape[1] + 2 * room) * (shape[2] + 2 * room)) > MAX_VALUES:
        raise ValueError(f"its padded input has {values:,} values, expected at most {MAX_VALUES:,}")
