"""The networks composed in Python, some 25 lines each, for any classes, anchors and size.
Source: YOLOv4 (arXiv 2004.10934) section 3.4, Scaled-YOLOv4 (2011.08036), Darknet's cfg files."""

from dataclasses import replace
from functools import partial

from yolov4.cfg import (
    Convolutional,
    Maxpool,
    Net,
    Network,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    format_cfg,
    parse_anchors,
    parse_cfg,
)
from yolov4.files import WRITTEN
from yolov4.graph import find_heads, plan_layers

COCO = parse_anchors("12,16, 19,36, 40,28, 36,75, 76,55, 72,146, 142,110, 192,243, 459,401")
TINY = parse_anchors("10,14, 23,27, 37,58, 81,82, 135,169, 344,319")
SHAPES = parse_anchors("20,20, 26,26, 32,32, 38,38, 46,46, 56,56")
NET = Net(
    batch=64, subdivisions=8, momentum=0.949, decay=0.0005, saturation=1.5, exposure=1.5, hue=0.1,
    burn_in=1000, max_batches=500_500, policy="steps", steps=(400_000, 450_000), scales=(0.1, 0.1),
    mosaic=True,
)  # fmt: skip
HEAD = {
    "jitter": 0.3, "ignore_thresh": 0.7, "iou_thresh": 0.213, "iou_normalizer": 0.07,
    "iou_loss": "ciou", "nms_kind": "greedynms", "max_delta": 5.0,
}  # fmt: skip


# The blocks: each returns a layer or a list of layers.
def conv(filters, size=1, stride=1):
    return Convolutional(
        filters=filters, size=size, stride=stride, batch_normalize=1, pad=True, activation="leaky"
    )


def down(filters):
    return conv(filters, 3, stride=2)


def convs(*filters):
    """1x1 and 3x3 in turn."""
    return [conv(n, 3 if turn % 2 else 1) for turn, n in enumerate(filters)]


def route(*layers, **keys):
    return Route(layers=layers, **keys)


SPP = [  # max pooling of several sizes beside the layer before, joined
    Maxpool(size=5), route(-2), Maxpool(size=9), route(-4),
    Maxpool(size=13), route(-1, -3, -5, -6),
]  # fmt: skip


def csp(filters, branch, body):
    """A CSP block on the layer before: `body` on a branch beside one that skips it, joined."""
    return [conv(branch), route(-2), *body, route(-1, -len(body) - 2), conv(filters)]


def csp_stage(filters, blocks, branch=0, hidden=0):
    """Half the size, then residual blocks inside a CSP block."""
    branch = branch or filters // 2
    residual = [*convs(hidden or branch, branch), Shortcut(from_=(-3,))]
    body = [conv(branch), *residual * blocks, conv(branch)]
    return [down(filters), *csp(filters, branch, body)]


def tiny_stage(filters):
    """The CSP block of yolov4-tiny, then half the size."""
    half = conv(filters // 2, 3)
    block = [conv(filters, 3), route(-1, groups=2, group_id=1), half, half, route(-1, -2)]
    return [*block, conv(filters), route(-6, -1), Maxpool(size=2, stride=2)]


def plain_block(filters):
    return convs(filters, 2 * filters, filters, 2 * filters, filters)


def csp_block(filters):
    return [conv(filters), *csp(filters, filters, convs(*[filters] * 4))]


def make_heads(anchors, classes, each, **common):
    """Heads from fine to coarse: 3x3 with the given filters, 1x1 to A * (5 + C) logits, and [yolo]
    with the keys of HEAD, the `common` ones and its own (each: filters -> keys).  The anchors are
    shared out in order, as many for each."""
    count, rest = divmod(len(anchors), len(each))
    if rest:
        raise ValueError(f"{len(anchors)} anchors, expected a multiple of {len(each)} heads")
    # Darknet's convolution before a new_coords head is logistic
    activation = "logistic" if "new_coords" in common else "linear"
    logits = Convolutional(filters=count * (5 + classes), pad=True, activation=activation)
    heads = []
    for number, (filters, own) in enumerate(each.items()):
        mask = tuple(range(number * count, (number + 1) * count))
        keys = {"mask": mask} | HEAD | common | own
        yolo = Yolo(anchors=anchors, num=len(anchors), classes=classes, **keys)
        heads.append([conv(filters, 3), logits, yolo])
    return heads


def panet(laterals, block, heads):
    """PANet on the layer before: up beside a layer of the backbone (laterals: its index, filters),
    there the PANet of the finer grids, then down again, joined with the layer before, to a head."""
    if not laterals:
        return heads[0]
    (lateral, filters), *finer = laterals
    layers = [conv(filters), Upsample(stride=2), route(lateral), conv(filters), route(-1, -3)]
    layers += block(filters) + panet(finer, block, heads[:-1])
    filters = heads[-1][0].filters // 2
    layers += [route(-4), down(filters)]  # before the finer head's three layers
    return [*layers, route(-1, -1 - len(layers)), *block(filters), *heads[-1]]


def activated(layers, activation):
    """The layers with another activation, the logits aside."""
    return [
        replace(layer, activation=activation) if getattr(layer, "batch_normalize", 0) else layer
        for layer in layers
    ]


def large(stem, middle, block, heads, activation, neck):
    """CSPDarknet53 after its first stage `stem`, SPP, and PANet to strides 8, 16 and 32."""
    stride8 = [*stem, *csp_stage(128, blocks=2), *csp_stage(256, blocks=8)]
    stride16 = stride8 + csp_stage(512, blocks=8)
    backbone = stride16 + csp_stage(1024, blocks=4)
    rest = middle + panet([(len(stride16) - 1, 256), (len(stride8) - 1, 128)], block, heads)
    return activated(backbone, activation) + activated(rest, neck)


def network(layers, classes, changes, **keys):
    """The layers with `keys` of [net], then `changes`.  Other than COCO's 80 classes are trained
    2,000 iterations each, never under 6,000 in all; steps follow a changed length at 80 and 90 %,
    and burn_in is at most a sixth of it."""
    net = replace(NET, **keys)
    if classes != 80:
        changes = {"max_batches": max(6000, 2000 * classes)} | changes
    if length := changes.get("max_batches"):
        steps = length * 8 // 10, length * 9 // 10
        changes = {"steps": steps, "burn_in": min(net.burn_in, length // 6)} | changes
    return Network(replace(net, **changes), tuple(layers))


def yolov4(*, classes=80, anchors=COCO, activation="mish", neck="leaky", **changes):
    """YOLOv4.  `activation`: of the backbone; `neck`: of the rest; `changes`: keys of [net]."""
    each = {
        256: {"scale_x_y": 1.2},
        512: {"scale_x_y": 1.1},
        1024: {"scale_x_y": 1.05, "random": 1.0},
    }
    stem = [conv(32, 3), *csp_stage(64, blocks=1, branch=64, hidden=32)]
    middle = [*convs(512, 1024, 512), *SPP, *convs(512, 1024, 512)]
    heads = make_heads(anchors, classes, each)
    layers = large(stem, middle, plain_block, heads, activation, neck)
    return network(layers, classes, changes, width=608, height=608, learning_rate=0.0013)


def yolov4_csp(*, classes=80, anchors=COCO, activation="mish", **changes):
    """Scaled-YOLOv4: CSP blocks in the neck too, and heads with logistic coordinates."""
    each = {
        256: {"obj_normalizer": 4.0},
        512: {"objectness_smooth": True},
        1024: {"objectness_smooth": True, "obj_normalizer": 0.4, "max_delta": 2.0},
    }
    heads = make_heads(
        anchors, classes, each, jitter=0.1, resize=1.5, iou_thresh=0.2, iou_normalizer=0.05,
        cls_normalizer=0.5, nms_kind="diounms", new_coords=True, scale_x_y=2.0,
    )  # fmt: skip
    stem = [conv(32, 3), down(64), *convs(32, 64), Shortcut(from_=(-3,))]
    middle = csp(512, 512, [*convs(512, 512, 512), *SPP, *convs(512, 512)])
    layers = large(stem, middle, csp_block, heads, activation, activation)
    return network(
        layers, classes, changes, width=512, height=512, letter_box=True, ema_alpha=0.9998
    )


def yolov4_tiny(*, classes=80, anchors=TINY, activation="leaky", **changes):
    """YOLOv4-tiny: three CSP blocks of half the channels, two heads."""
    # upstream leaves the smallest anchor without a head
    each = {256: {"mask": tuple(range(1, 1 + len(anchors) // 2))}, 512: {}}
    fine, coarse = make_heads(
        anchors, classes, each, resize=1.5, iou_thresh=1.0, max_delta=float("inf"), scale_x_y=1.05
    )
    backbone = [down(32), down(64), *tiny_stage(64), *tiny_stage(128), *tiny_stage(256)]
    stride16 = len(backbone) - 3  # before the last stage's route and pooling
    up = [route(-4), conv(128), Upsample(stride=2), route(-1, stride16)]
    return network(
        activated([*backbone, conv(512, 3), conv(256), *coarse, *up, *fine], activation),
        classes, changes, mosaic=False, subdivisions=1, width=416, height=416, momentum=0.9,
        learning_rate=0.00261, max_batches=2_000_200, steps=(1_600_000, 1_800_000),
    )  # fmt: skip


def yolov4_shapes(*, classes=3, anchors=SHAPES, activation="mish", **changes):
    """YOLOv4 in small to try on a CPU: the same stages, SPP, PANet and loss; strides 8 and 16."""
    heads = make_heads(anchors, classes, {48: {}, 64: {}}, resize=1.5, scale_x_y=1.05)
    stride8 = [down(16), *csp_stage(32, blocks=1), *csp_stage(48, blocks=1)]
    backbone = activated(stride8 + csp_stage(96, blocks=1), activation)
    neck = [conv(48), *SPP, conv(48), *panet([(len(stride8) - 1, 32)], csp_block, heads)]
    return network(
        backbone + neck, classes, {"max_batches": 1000} | changes, batch=16, subdivisions=1,
        width=160, height=128, momentum=0.9, learning_rate=0.002, burn_in=100,
    )  # fmt: skip


PRESETS = {
    "yolov4": yolov4,
    "yolov4-voc": partial(
        yolov4, classes=20, width=416, height=416, subdivisions=16, max_batches=50_000
    ),
    "yolov4-silu": partial(yolov4, activation="swish", neck="swish"),
    "yolov4-tiny": yolov4_tiny,
    "yolov4-tiny-voc": partial(yolov4_tiny, classes=20, max_batches=50_000),
    "yolov4-csp": yolov4_csp,
    "shapes": yolov4_shapes,
}


def build(name: str, **changes) -> Network:
    """The network of a preset, with changes: classes, anchors, or keys of [net] as width, height.
    Raises ValueError for a name that is not in PRESETS and for values that make no network."""
    if name not in PRESETS:
        raise ValueError(f"network {name!r} is not known, expected one of {', '.join(PRESETS)}")
    net, sections, _ = PRESETS[name](**changes)
    if net.width % 32 or net.height % 32:
        raise ValueError(f"{name}: size {net.width} x {net.height}, expected multiples of 32")
    network = parse_cfg(format_cfg(net, sections), name)  # checks every value
    find_heads(network, plan_layers(network))
    return network


def cfg_text(name, command, **changes):
    """Text of a .cfg whose first line is the command that writes it; `changes`: see `build`."""
    net, sections, _ = build(name, **changes)
    return f"{WRITTEN} cfg {command}\n{format_cfg(net, sections)}"


def project_files():
    """The networks of cfg/, file name -> text."""
    return {f"{name}.cfg": cfg_text(name, f"{name} --out cfg/{name}.cfg") for name in PRESETS}
