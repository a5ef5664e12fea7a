"""The blocks that the networks of blueprint.py are made of, as sections of a .cfg.
Source: CSPNet (arXiv 1911.11929), SPP (1406.4729), PANet (1803.01534), in the order of Darknet's files."""

from collections.abc import Callable

from yolov4.sections import Anchors, Convolutional, Maxpool, Route, Section, Shortcut, Upsample, Yolo


class Layers:
    """Sections in the making.  A method appends one layer or a block of them, with the activation in force,
    and returns the index of the last; a block reads the layer before it unless a source is given."""

    def __init__(self, activation: str):
        self.sections: list[Section] = []
        self.activation = activation

    @property
    def last(self) -> int:
        return len(self.sections) - 1

    def add(self, section: Section) -> int:
        self.sections.append(section)
        return self.last

    def conv(self, filters: int, size: int = 1, stride: int = 1) -> int:
        keys = {"filters": filters, "size": size, "stride": stride, "activation": self.activation}
        return self.add(Convolutional(batch_normalize=True, pad=True, **keys))

    def convs(self, *filters: int) -> int:
        """1x1 and 3x3 in turn."""
        for turn, count in enumerate(filters):
            self.conv(count, 3 if turn % 2 else 1)
        return self.last

    def route(self, *sources: int, backbone: int | None = None, groups: int = 1, group_id: int = 0) -> int:
        """As upstream writes it: sources relative to this layer, one of the backbone by its own number."""
        relative = tuple(source - len(self.sections) for source in sources)
        references = relative if backbone is None else (*relative, backbone)
        return self.add(Route(layers=references, groups=groups, group_id=group_id))

    def upsample(self) -> int:
        return self.add(Upsample(stride=2))

    def residual(self, hidden: int, filters: int) -> int:
        """The layer before, plus 3x3(1x1(it))."""
        source = self.last
        self.convs(hidden, filters)
        return self.add(Shortcut(from_=(source - len(self.sections),)))

    def csp_stage(self, filters: int, blocks: int, branch: int = 0, hidden: int = 0) -> int:
        """Half the size; then a branch of residual blocks beside one that skips them, joined."""
        branch = branch or filters // 2
        source = self.conv(filters, 3, stride=2)
        skip = self.conv(branch)
        self.route(source)
        self.conv(branch)
        for _ in range(blocks):
            self.residual(hidden or branch, branch)
        self.route(self.conv(branch), skip)
        return self.conv(filters)

    def tiny_stage(self, filters: int) -> int:
        """The CSP block of yolov4-tiny, then half the size.  Returns the last layer of its branch."""
        source = self.conv(filters, 3)
        self.route(source, groups=2, group_id=1)
        first = self.conv(filters // 2, 3)
        self.route(self.conv(filters // 2, 3), first)
        branch = self.conv(filters)
        self.route(source, branch)
        self.add(Maxpool(size=2, stride=2))
        return branch

    def spp(self, sizes: tuple[int, ...] = (5, 9, 13)) -> int:
        """Max pooling of several sizes beside the layer before."""
        source, pooled = self.last, []
        for size in sizes:
            if pooled:
                self.route(source)
            pooled.append(self.add(Maxpool(size=size, stride=1)))
        return self.route(*reversed(pooled), source)

    def plain_block(self, filters: int) -> int:
        return self.convs(filters, 2 * filters, filters, 2 * filters, filters)

    def csp_block(self, filters: int) -> int:
        source = self.conv(filters)
        skip = self.conv(filters)
        self.route(source)
        self.route(self.convs(filters, filters, filters, filters), skip)
        return self.conv(filters)

    def csp_spp(self, filters: int) -> int:
        """The SPP inside a CSP block."""
        source = self.last
        skip = self.conv(filters)
        self.route(source)
        self.convs(filters, filters, filters)
        self.spp()
        self.route(self.convs(filters, filters), skip)
        return self.conv(filters)

    def top_down(self, filters: int, lateral: int, block: Callable[[int], int]) -> int:
        """PANet's way up: twice the size, beside the layer `lateral` of the backbone, then a block."""
        self.conv(filters)
        coarse = self.upsample()
        self.route(backbone=lateral)
        self.route(self.conv(filters), coarse)
        return block(filters)

    def bottom_up(self, filters: int, fine: int, coarse: int, block: Callable[[int], int]) -> int:
        """PANet's way down: `fine` at half the size, beside `coarse`, then a block."""
        self.route(fine)
        self.route(self.conv(filters, 3, stride=2), coarse)
        return block(filters)

    def head(self, filters: int, mask: tuple[int, ...], anchors: Anchors, classes: int, **keys) -> int:
        """3x3, 1x1 to A * (5 + C) logits, and [yolo] with `keys`."""
        self.conv(filters, 3)
        activation = "logistic" if keys.get("new_coords") else "linear"  # Darknet has it before a new_coords head
        self.add(Convolutional(filters=len(mask) * (5 + classes), pad=True, activation=activation))
        return self.add(Yolo(mask=mask, anchors=anchors, classes=classes, num=len(anchors), **keys))


def masks(anchors: Anchors, heads: int) -> list[tuple[int, ...]]:
    """The anchors in order, as many for each head.  Raises ValueError where they do not divide."""
    count, rest = divmod(len(anchors), heads)
    if rest or not count:
        raise ValueError(f"{len(anchors)} anchors for {heads} heads, expected a multiple of {heads}")
    return [tuple(range(count * head, count * (head + 1))) for head in range(heads)]
