"""What a network is made of: typed sections with Darknet's keys and defaults.
Source: the parse_* functions of Darknet's src/parser.c."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Activation = Literal[
    "logistic", "linear", "leaky", "mish", "swish", "relu", "relu6", "elu", "selu", "gelu", "tanh", "hard_mish"
]  # fmt: skip
GateActivation = Literal["logistic", "linear", "leaky", "relu", "relu6", "tanh"]
IouKind = Literal["iou", "giou", "diou", "ciou"]
Anchors = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One [section]; `lines` maps a key (or "" for the header) to its line in the file, 0 if there is none."""

    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def kind(self) -> str:
        return kind_name(type(self))


def kind_name(section: type[Section]) -> str:
    """ScaleChannels -> scale_channels"""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", section.__name__).lower()


@dataclass(frozen=True, kw_only=True)
class Net(Section):
    batch: int = 1  # images of one update
    subdivisions: int = 1  # mini-batches the batch is cut into
    width: int = 0
    height: int = 0
    channels: int = 3
    momentum: float = 0.9
    decay: float = 0.0001
    saturation: float = 1.0
    exposure: float = 1.0
    hue: float = 0.0
    flip: bool = True
    blur: int = 0
    gaussian_noise: int = 0
    mixup: int = 0
    mosaic: bool = False
    mosaic_bound: bool = False
    dynamic_minibatch: bool = False  # more images in a mini-batch of smaller ones, where `random` changes the size
    letter_box: bool = False
    learning_rate: float = 0.001
    learning_rate_min: float = 0.00001
    burn_in: int = 0
    power: float = 4.0
    max_batches: int = 0
    policy: Literal["constant", "step", "steps", "exp", "poly", "sig", "sigmoid", "sgdr", "onecycle"] = "constant"
    steps: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    step: int = 1
    scale: float = 1.0
    gamma: float = 1.0
    sgdr_cycle: int = 0  # 0: max_batches
    sgdr_mult: int = 2
    # of recipes after Darknet, which passes over these keys and the policy
    final_fraction: float = 0.01  # of learning_rate, at the end of policy=onecycle
    nesterov: bool = False
    burn_in_momentum: float = 0.0  # where momentum starts in burn-in; 0: as it goes on
    burn_in_bias_rate: float = 0.0  # where the rate of biases starts in burn-in; 0: as all others
    mixup_share: float = 0.0  # of samples, mosaics too, that are blended with another one
    resize_step: int = 32
    ema_alpha: float = 0.0
    adversarial_lr: float = 0.0  # self-adversarial training: how far an image moves at the end of training


@dataclass(frozen=True, kw_only=True)
class Convolutional(Section):
    batch_normalize: Literal[0, 1, 2] = 0  # 2: over the mini-batches of one batch; `cbn=1` is read as 2
    filters: int = 1
    size: int = 1
    groups: int = 1
    dilation: int = 1
    stride: int = 1
    pad: bool = False  # padding = size // 2
    padding: int = 0
    activation: Activation = "logistic"
    stopbackward: int = 0  # no gradient for this layer and all before it in the first iterations
    train_only_bn: bool = False  # this layer and all before it keep their weights, rolling averages aside
    dontload: bool = False  # a .weights file does not hold this layer
    dontloadscales: bool = False  # nor its scales and rolling averages


@dataclass(frozen=True, kw_only=True)
class Maxpool(Section):
    size: int = 0  # 0: stride
    stride: int = 1
    padding: int = -1  # of both sides together; -1: size - 1


@dataclass(frozen=True, kw_only=True)
class Route(Section):
    layers: tuple[int, ...]
    groups: int = 1
    group_id: int = 0


@dataclass(frozen=True, kw_only=True)
class Shortcut(Section):
    from_: tuple[int, ...]  # the key is `from`
    activation: Activation = "linear"
    weights_type: Literal["none", "per_feature", "per_layer", "per_channel"] = "none"
    weights_normalization: Literal["none", "relu", "avg_relu", "softmax"] = "none"


@dataclass(frozen=True, kw_only=True)
class Upsample(Section):
    stride: int = 2


@dataclass(frozen=True, kw_only=True)
class Dropout(Section):
    probability: float = 0.2
    dropblock: bool = False  # one block a channel, of a size and probability that grow over training
    dropblock_size_rel: float = 0.0  # of the layer's width and height
    dropblock_size_abs: int = 0  # cells; 7 where neither is given


@dataclass(frozen=True, kw_only=True)
class Avgpool(Section):
    pass


@dataclass(frozen=True, kw_only=True)
class ScaleChannels(Section):
    from_: int  # the layer that the previous one scales
    scale_wh: bool = False  # a factor a cell; else a factor a channel
    activation: GateActivation = "linear"


@dataclass(frozen=True, kw_only=True)
class Sam(Section):
    from_: int
    activation: GateActivation = "linear"


@dataclass(frozen=True, kw_only=True)
class Reorg(Section):
    stride: int = 1


@dataclass(frozen=True, kw_only=True)
class Reorg3d(Section):
    stride: int = 1


@dataclass(frozen=True, kw_only=True)
class Implicit(Section):
    filters: int = 128
    atoms: int = 1
    mean: float = 0.0
    std: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Yolo(Section):
    mask: tuple[int, ...] = ()  # empty: all anchors
    anchors: Anchors
    classes: int = 20
    num: int = 1
    jitter: float = 0.2
    resize: float = 1.0
    random: float = 0.0
    ignore_thresh: float = 0.5
    truth_thresh: float = 1.0
    iou_thresh: float = 1.0
    iou_thresh_kind: IouKind = "iou"
    iou_loss: Literal["mse", "iou", "giou", "diou", "ciou"] = "mse"
    iou_normalizer: float = 0.75
    obj_normalizer: float = 1.0
    cls_normalizer: float = 1.0
    max_delta: float = float("inf")
    label_smooth_eps: float = 0.0
    objectness_smooth: bool = False
    focal_loss: bool = False
    counters_per_class: tuple[float, ...] = ()
    scale_x_y: float = 1.0
    new_coords: bool = False
    nms_kind: Literal["default", "greedynms", "diounms"] = "default"
    beta_nms: float = 0.6

    box_values = 4  # x, y, w, h


@dataclass(frozen=True, kw_only=True)
class GaussianYolo(Yolo):
    uc_normalizer: float = 1.0
    yolo_point: Literal["center", "left_top", "right_bottom"] = "center"  # which point of a box x, y are

    kind = "Gaussian_yolo"  # Darknet minds the case
    box_values = 8  # an uncertainty behind each of x, y, w, h


@dataclass(frozen=True, kw_only=True)
class Head(Yolo):
    """A [yolo] in its place in a network: `anchors` (A, 2) are those of its mask, in pixels of the network input."""

    all_anchors: Anchors  # (N, 2)
    index: int  # of the layer, counted from 0 after [net]
    stride: int  # pixels of the network input a cell


@dataclass(frozen=True, kw_only=True)
class GaussianHead(Head, GaussianYolo):
    """A [Gaussian_yolo] in its place."""

    @property
    def shift(self) -> float:
        """From a box's centre to its point, in widths and heights."""
        return {"center": 0.0, "left_top": -0.5, "right_bottom": 0.5}[self.yolo_point]


class Network(NamedTuple):
    """What a .cfg says: [net], then the layers in order, and the file's name for messages."""

    net: Net
    sections: tuple[Section, ...]
    name: str = "cfg"
