"""A [yolo] or [Gaussian_yolo] section -> a head in its place in a network, checked.
Source: Darknet's src/parser.c, parse_yolo, parse_gaussian_yolo."""

from dataclasses import fields

from yolov4.sections import Convolutional, GaussianHead, GaussianYolo, Head, Network, Section, Yolo


def check_head(yolo: Yolo, before: Section | None, channels: int, name: str) -> None:
    """Raises ValueError `name:line: ...` where mask, anchors, or what the layer before gives do not fit together."""
    line = yolo.lines.get("", 0)
    bad = [m for m in yolo.mask if not 0 <= m < yolo.num]
    if bad:
        at = yolo.lines.get("mask", line)
        raise ValueError(f"{name}:{at}: [{yolo.kind}] mask {bad[0]}, but num={yolo.num} (0..{yolo.num - 1})")
    if len(yolo.anchors) != yolo.num:
        found = f"{len(yolo.anchors)} anchors, but num={yolo.num}"
        raise ValueError(f"{name}:{yolo.lines.get('anchors', line)}: [{yolo.kind}] has {found}, expected as many")
    anchors, values = len(yolo.mask) or yolo.num, yolo.box_values + 1
    if channels != (expected := anchors * (yolo.classes + values)):
        at = before.lines.get("filters", before.lines.get("", 0)) if before else line
        raise ValueError(
            f"{name}:{at}: filters={channels} before the [{yolo.kind}] of line {line}, expected {expected} = "
            f"{anchors} anchors * ({yolo.classes} classes + {values}); "
            "`python -m yolov4.blueprint yolov4 --classes N --out my.cfg` writes a cfg for N classes"
        )
    if yolo.new_coords and not (isinstance(before, Convolutional) and before.activation == "logistic"):
        at = before.lines.get("activation", before.lines.get("", 0)) if before else line
        raise ValueError(f"{name}:{at}: the layer before a [yolo] with new_coords=1 has to have activation=logistic")


def make_head(network: Network, yolo: Yolo, index: int, grid: tuple[int, int]) -> Head:
    """The head that layer `index` is with a grid of (rows, columns)."""
    net, (rows, columns) = network.net, grid
    if net.width % columns or net.height % rows or net.width // columns != net.height // rows:
        raise ValueError(
            f"{network.name}:{yolo.lines.get('', 0)}: [{yolo.kind}] has {columns}x{rows} cells for a network of "
            f"{net.width}x{net.height}, expected a size that the stride divides (a multiple of 32 as a rule)"
        )
    keys = {f.name: getattr(yolo, f.name) for f in fields(yolo)}
    mask = yolo.mask or tuple(range(len(yolo.anchors)))
    keys |= {"mask": mask, "anchors": tuple(yolo.anchors[m] for m in mask), "all_anchors": yolo.anchors}
    kind = GaussianHead if isinstance(yolo, GaussianYolo) else Head
    return kind(**keys, index=index, stride=net.width // columns)
