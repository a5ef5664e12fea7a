"""`python -m yolov4.blueprint NAME` writes a network of networks.py as a .cfg, for any classes.
No source: the presets are those that Darknet's users know."""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

from yolov4.cfg import format_cfg, parse_cfg, read_names
from yolov4.networks import yolov4, yolov4_csp, yolov4_shapes, yolov4_tiny
from yolov4.plan import find_heads, plan_layers
from yolov4.sections import Network

PRESETS = {
    "yolov4": yolov4,
    "yolov4-voc": partial(yolov4, classes=20, width=416, height=416, subdivisions=16, max_batches=50_000),
    "yolov4-silu": partial(yolov4, activation="swish", neck="swish"),
    "yolov4-tiny": yolov4_tiny,
    "yolov4-tiny-voc": partial(yolov4_tiny, classes=20, max_batches=50_000),
    "yolov4-csp": yolov4_csp,
    "shapes": yolov4_shapes,
}


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
