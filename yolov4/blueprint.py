"""The networks composed in Python; `python -m yolov4.blueprint NAME` writes one as a .cfg, for any classes.
Source: YOLOv4 (arXiv 2004.10934) section 3.4, Scaled-YOLOv4 (arXiv 2011.08036), and Darknet's cfg files."""

import argparse
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from yolov4.blocks import Layers, masks
from yolov4.cfg import format_cfg, parse_cfg, read_names
from yolov4.plan import find_heads, plan_layers
from yolov4.sections import Anchors, Net, Network

COCO = ((12, 16), (19, 36), (40, 28), (36, 75), (76, 55), (72, 146), (142, 110), (192, 243), (459, 401))
TINY = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))
SHAPES = ((20, 20), (26, 26), (32, 32), (38, 38), (46, 46), (56, 56))

RECIPE = {
    "momentum": 0.949, "decay": 0.0005, "saturation": 1.5, "exposure": 1.5, "hue": 0.1,
    "policy": "steps", "scales": (0.1, 0.1),
}  # fmt: skip
LOSS = {
    "jitter": 0.3, "ignore_thresh": 0.7, "iou_thresh": 0.213, "iou_normalizer": 0.07, "iou_loss": "ciou",
    "nms_kind": "greedynms", "max_delta": 5.0,
}  # fmt: skip


def yolov4(*, classes=80, anchors: Anchors = COCO, activation="mish", neck="leaky", **changes) -> Network:
    """YOLOv4.  `activation` is that of the backbone, `neck` that of the rest; `changes` are keys of [net]."""
    layers = Layers(activation)
    head = partial(layers.head, anchors=anchors, classes=classes, **LOSS)
    small, medium, large = masks(anchors, heads=3)
    # backbone: CSPDarknet53
    layers.conv(32, 3)
    layers.csp_stage(64, blocks=1, branch=64, hidden=32)
    layers.csp_stage(128, blocks=2)
    stride8 = layers.csp_stage(256, blocks=8)
    stride16 = layers.csp_stage(512, blocks=8)
    layers.csp_stage(1024, blocks=4)
    # neck: SPP, then PANet's way back to stride 8
    layers.activation = neck
    layers.convs(512, 1024, 512)
    layers.spp()
    coarse = layers.convs(512, 1024, 512)
    middle = layers.top_down(256, stride16, layers.plain_block)
    fine = layers.top_down(128, stride8, layers.plain_block)
    # heads, on PANet's way down again
    head(256, small, scale_x_y=1.2)
    middle = layers.bottom_up(256, fine, middle, layers.plain_block)
    head(512, medium, scale_x_y=1.1)
    layers.bottom_up(512, middle, coarse, layers.plain_block)
    head(1024, large, scale_x_y=1.05, random=1.0)
    net = Net(
        batch=64, subdivisions=8, width=608, height=608, mosaic=True, learning_rate=0.0013, burn_in=1000,
        max_batches=500_500, steps=(400_000, 450_000), **RECIPE,
    )  # fmt: skip
    return Network(with_training(net, classes, changes), tuple(layers.sections))


def yolov4_csp(*, classes=80, anchors: Anchors = COCO, activation="mish", **changes) -> Network:
    """Scaled-YOLOv4: the neck is of CSP blocks too, and the heads take logistic coordinates."""
    layers = Layers(activation)
    loss = LOSS | {
        "jitter": 0.1, "resize": 1.5, "iou_thresh": 0.2, "iou_normalizer": 0.05, "cls_normalizer": 0.5,
        "nms_kind": "diounms", "new_coords": True, "scale_x_y": 2.0,
    }  # fmt: skip
    head = partial(layers.head, anchors=anchors, classes=classes)
    small, medium, large = masks(anchors, heads=3)
    # backbone: CSPDarknet53, its first stage a plain residual block
    layers.conv(32, 3)
    layers.conv(64, 3, stride=2)
    layers.residual(hidden=32, filters=64)
    layers.csp_stage(128, blocks=2)
    stride8 = layers.csp_stage(256, blocks=8)
    stride16 = layers.csp_stage(512, blocks=8)
    layers.csp_stage(1024, blocks=4)
    # neck: SPP inside a CSP block, then PANet
    coarse = layers.csp_spp(512)
    middle = layers.top_down(256, stride16, layers.csp_block)
    fine = layers.top_down(128, stride8, layers.csp_block)
    # heads
    head(256, small, **loss, obj_normalizer=4.0)
    middle = layers.bottom_up(256, fine, middle, layers.csp_block)
    head(512, medium, **loss, objectness_smooth=True)
    layers.bottom_up(512, middle, coarse, layers.csp_block)
    head(1024, large, **loss | {"max_delta": 2.0}, obj_normalizer=0.4, objectness_smooth=True)
    net = Net(
        batch=64, subdivisions=8, width=512, height=512, mosaic=True, letter_box=True, ema_alpha=0.9998,
        learning_rate=0.001, burn_in=1000, max_batches=500_500, steps=(400_000, 450_000), **RECIPE,
    )  # fmt: skip
    return Network(with_training(net, classes, changes), tuple(layers.sections))


def yolov4_tiny(*, classes=80, anchors: Anchors = TINY, activation="leaky", **changes) -> Network:
    """YOLOv4-tiny: three CSP blocks of half the channels, two heads."""
    layers = Layers(activation)
    loss = LOSS | {"resize": 1.5, "iou_thresh": 1.0, "max_delta": float("inf"), "scale_x_y": 1.05}
    head = partial(layers.head, anchors=anchors, classes=classes, **loss)
    small, large = masks(anchors, heads=2)
    layers.conv(32, 3, stride=2)
    layers.conv(64, 3, stride=2)
    layers.tiny_stage(64)
    layers.tiny_stage(128)
    stride16 = layers.tiny_stage(256)
    layers.conv(512, 3)
    coarse = layers.conv(256)
    head(512, large)
    layers.route(coarse)
    layers.conv(128)
    layers.route(layers.upsample(), backbone=stride16)
    head(256, tuple(m + 1 for m in small))  # upstream leaves the smallest anchor without a head
    net = Net(
        batch=64, subdivisions=1, width=416, height=416, learning_rate=0.00261, burn_in=1000,
        max_batches=2_000_200, steps=(1_600_000, 1_800_000), **RECIPE | {"momentum": 0.9},
    )  # fmt: skip
    return Network(with_training(net, classes, changes), tuple(layers.sections))


def yolov4_shapes(*, classes=3, anchors: Anchors = SHAPES, activation="mish", **changes) -> Network:
    """YOLOv4 in small, for a try on a CPU: the same CSP stages, SPP, PANet and loss, at strides 8 and 16."""
    layers = Layers(activation)
    head = partial(layers.head, anchors=anchors, classes=classes, **LOSS, resize=1.5, scale_x_y=1.05)
    small, large = masks(anchors, heads=2)
    layers.conv(16, 3, stride=2)
    layers.csp_stage(32, blocks=1)
    stride8 = layers.csp_stage(48, blocks=1)
    layers.csp_stage(96, blocks=1)
    layers.activation = "leaky"
    layers.conv(48)
    layers.spp()
    coarse = layers.conv(48)
    fine = layers.top_down(32, stride8, layers.csp_block)
    head(48, small)
    layers.bottom_up(32, fine, coarse, layers.csp_block)
    head(64, large)
    recipe = RECIPE | {"momentum": 0.9, "learning_rate": 0.002, "burn_in": 100}
    net = Net(batch=16, width=160, height=128, mosaic=True, **recipe)
    return Network(with_training(net, classes, {"max_batches": 1000} | changes), tuple(layers.sections))


PRESETS = {
    "yolov4": yolov4,
    "yolov4-voc": partial(yolov4, classes=20, width=416, height=416, subdivisions=16, max_batches=50_000),
    "yolov4-tiny": yolov4_tiny,
    "yolov4-tiny-voc": partial(yolov4_tiny, classes=20, max_batches=50_000),
    "yolov4-csp": yolov4_csp,
    "shapes": yolov4_shapes,
}


def with_training(net: Net, classes: int, changes: dict) -> Net:
    """`net` with keys changed.  Other than COCO's 80 classes are trained 2,000 iterations each, never under
    6,000 in all; steps follow a changed length at 80 and 90 %, and burn_in is at most a sixth of it."""
    if classes != 80:
        changes = {"max_batches": max(6000, 2000 * classes)} | changes
    if "max_batches" in changes:
        length = changes["max_batches"]
        steps = (length * 8 // 10, length * 9 // 10)
        changes = {"steps": steps, "burn_in": min(net.burn_in, length // 6)} | changes
    return replace(net, **changes)


def build(name: str, **changes) -> Network:
    """The network of a preset, with changes: classes, anchors, width, height, or other keys of [net].
    Raises ValueError for a name that is none of PRESETS and for values that make no network."""
    if name not in PRESETS:
        raise ValueError(f"network {name!r} is not known, expected one of {', '.join(PRESETS)}")
    if changes.get("classes", 1) < 1:
        raise ValueError(f"{name}: {changes['classes']} classes, expected 1 or more")
    network = PRESETS[name](**changes)._replace(name=name)
    if network.net.width % 32 or network.net.height % 32:
        raise ValueError(f"{name}: size {network.net.width} x {network.net.height}, expected multiples of 32")
    find_heads(network, plan_layers(network))
    return network


def cfg_text(name: str, command: str, **changes) -> str:
    """Text of a .cfg that says by which command it was written."""
    network = build(name, **changes)
    return f"# Written by: python -m yolov4.blueprint {command}\n{format_cfg(network.net, network.sections)}"


def project_files() -> dict[str, str]:
    """The files of cfg/, name -> text."""
    files = {f"{name}.cfg": cfg_text(name, f"{name} --out cfg/{name}.cfg") for name in PRESETS}
    voc = ("voc", 20, "data/voc0712", "train", "2007_test", "voc.names")
    coco = ("coco", 80, "data/coco", "train2017", "val2017", "coco.names")
    shapes = ("shapes", 3, "data/shapes", "train", "val", "VOCshapes/shapes.names")
    for name, classes, folder, train, valid, names in (voc, coco, shapes):
        lists = f"train={folder}/{train}.txt\nvalid={folder}/{valid}.txt\nnames={folder}/{names}\n"
        files[f"{name}.data"] = f"classes={classes}\n{lists}backup=runs\n"
    return files


def main() -> None:
    parser = argparse.ArgumentParser("python -m yolov4.blueprint", description="Writes a network as a .cfg.")
    parser.add_argument("name", nargs="?", choices=PRESETS)
    parser.add_argument("--all", metavar="FOLDER", help="write every cfg and data file of the project")
    parser.add_argument("--classes", type=int, help="number of classes")
    parser.add_argument("--names", help="file with a class name a line, in place of --classes")
    parser.add_argument("--anchors", help='"width,height, width,height, ..." in pixels of the network input')
    for key in ("width", "height", "max-batches", "batch", "subdivisions"):
        parser.add_argument(f"--{key}", type=int)
    parser.add_argument("--out", help="file to write, otherwise it is printed")
    options = vars(parser.parse_args())
    name, folder, names, out = (options.pop(key) for key in ("name", "all", "names", "out"))
    changes = {key: value for key, value in options.items() if value is not None}
    if (name is None) == (folder is None) or (names and "classes" in changes):
        parser.error("expected NAME or --all FOLDER, and one of --classes and --names")
    try:
        if folder:
            for file, text in project_files().items():
                (Path(folder) / file).write_text(text, encoding="utf-8", newline="\n")
            return
        if "anchors" in changes:
            changes["anchors"] = (
                parse_cfg(f"[net]\n[yolo]\nanchors={changes['anchors']}", "--anchors").sections[0].anchors
            )
        if names:
            changes["classes"] = len(read_names(names))
        text = cfg_text(name, shlex.join(sys.argv[1:]), **changes)
        Path(out).write_text(text, encoding="utf-8", newline="\n") if out else sys.stdout.write(text)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
