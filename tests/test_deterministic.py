"""--deterministic: no layer in training uses a kernel that on a GPU adds in a random order.
Source of the list: the documentation of torch.use_deterministic_algorithms, torch 2.5 to 2.15."""

import os

import torch
from conftest import settled
from test_training import training, write_pictures
from torch.utils._python_dispatch import TorchDispatchMode

from yolov4 import detections_from_logits

EVERYTHING = """
[net] batch=4 subdivisions=2 width=32 height=32 mosaic=1 adversarial_lr=1 max_batches=6
[convolutional] batch_normalize=2 filters=8 size=3 stride=2 pad=1 activation=mish
[convolutional] batch_normalize=1 filters=8 size=3 stride=2 pad=1 activation=swish
[maxpool] size=5 stride=1
[maxpool] size=2 stride=1
[shortcut] from=-2,-3 weights_type=per_channel weights_normalization=softmax activation=leaky
[dropout] probability=.1
[dropout] dropblock=1 probability=.1 dropblock_size_abs=2
[avgpool]
[convolutional] filters=8 activation=logistic
[scale_channels] from=-3
[convolutional] filters=8 activation=logistic
[sam] from=-2
[reorg3d] stride=2
[route] layers=-1 groups=2 group_id=1
[upsample] stride=2
[route] layers=-4,-1
[convolutional] batch_normalize=1 filters=8 size=3 stride=2 pad=1 activation=hard_mish
[reorg] stride=2
[convolutional] filters=14 activation=linear
[yolo] mask=0,1 anchors=8,8,16,16 num=2 classes=2 iou_loss=ciou iou_thresh=0.2 truth_thresh=0.7
random=1
""".replace(" ", "\n")
RAISE = (  # on CUDA, where a gradient passes through them
    "adaptive_avg_pool2d_backward", "bincount", "cumsum", "grid_sampler_2d_backward", "histc",
    "kthvalue", "median", "nll_loss", "put_", "reflection_pad2d_backward", "scatter_reduce",
    "replication_pad2d_backward", "upsample_bicubic2d_backward", "upsample_bilinear2d_backward",
)  # fmt: skip


class Recorded(TorchDispatchMode):
    """The operations that run, forward and backward."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__.lstrip("_")
        integers = name == "cumsum" and not arguments[0].is_floating_point()
        counts = name == "bincount" and len(arguments) < 2  # without weights
        if not (integers or counts):
            self.names.add(name)
        return function(*arguments, **(options or {}))


def test_a_deterministic_training_has_a_deterministic_kernel_for_all_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr("os.environ", {})
    work = write_pictures(tmp_path)
    (work / "tiny.cfg").write_text(EVERYTHING)
    run = training(work, valid=None, deterministic=True, ema=0.99)
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    settled(run.model)  # an attack looks up running variances, and fresh ones are 0
    with Recorded() as recorded:
        run.run()
        logits = run.updater.averaged.eval()(torch.rand(1, 3, 32, 32))
        detections_from_logits(logits, run.model.heads, (32, 32), 0.001, 0.45, False)
    seen = {"convolution_backward", "max_pool2d_with_indices_backward", "index_put_"}
    assert seen | {"upsample_nearest2d_backward"} <= recorded.names
    assert not [name for name in recorded.names if name.startswith(RAISE)]
