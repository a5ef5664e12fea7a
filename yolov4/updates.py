"""One update of the weights: forward, the loss' gradient, momentum and decay.
Source: Darknet's src/network.c, train_network_waitkey, update_network; update_convolutional_layer."""

import math
import os
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from yolov4.adversarial import attack_loss, attack_rate, moved
from yolov4.distributed import Processes, rolling_averages
from yolov4.layers import Add, Implicit
from yolov4.loss import DarknetLoss, HeadTerms
from yolov4.model import HALVES, Darknet
from yolov4.schedule import bias_rate, learning_rate, momentum
from yolov4.sections import Convolutional, Net
from yolov4.staged import growth, set_stage
from yolov4.yolov5_loss import Yolov5Loss

LOSSES = {"darknet": DarknetLoss, "yolov5": Yolov5Loss}
AMP_TYPES = {"off": None, **HALVES}
SMALLEST_SCALE = 2.0**-16  # of float16 gradients, which start at 2^16: below it none has fitted for long


def make_deterministic() -> None:
    """From here on every operation of this process gives the same bits each time, on a GPU too, or raises RuntimeError.
    To be called before CUDA starts.  Source: PyTorch's notes on reproducibility."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


class NonFiniteLoss(ArithmeticError):
    """The loss is not a number: what was seen where, in one sentence."""


class Update(NamedTuple):
    """What one update reports, as plain numbers; a mean over the mini-batches."""

    loss: float
    rate: float
    heads: list[HeadTerms]


class Updater:
    """Model, optimiser and scaler; `update` does one iteration of Darknet's training.

    The sum of the deltas of `batch` images is divided by batch, whatever the subdivisions and processes are; decay
    acts on the weights of convolutions and shortcuts, not on biases and batch normalisation; momentum is plain, or
    Nesterov's where [net] says so.
    freeze: the first layers, so many, keep weights and rolling averages.  Raises ValueError where that is too many.
    """

    def __init__(
        self,
        model: Darknet,
        net: Net,
        processes: Processes,
        *,
        amp: str = "off",
        loss: str = "darknet",
        freeze: int = 0,
    ):
        self.model, self.net, self.processes, self.freeze = model, net, processes, freeze
        first, name = model.heads[0].index, model.network.name
        if not 0 <= freeze < first:
            raise ValueError(
                f"--freeze {freeze}, but the first head of {name} is layer {first}, expected 0..{first - 1}"
            )
        self.device = next(model.parameters()).device
        self.loss = LOSSES[loss](model.heads, net)
        for layer in model.layers[: max(freeze, self._kept() + 1)]:
            layer.requires_grad_(False)
        self.optimiser = torch.optim.SGD(
            _groups(model, net.decay), lr=net.learning_rate, momentum=net.momentum, nesterov=net.nesterov
        )
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # a frozen layer still decays, as in Darknet
        self.amp = AMP_TYPES[amp]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        self.mini_batches = max(net.subdivisions, processes.world) // processes.world

    def update(self, iteration: int, batches: Iterable[tuple[Tensor, Tensor, list]]) -> Update:
        """Iteration counted from 1.  batches: images uint8 (B, 3, H, W) RGB, targets (T, 6), image files; this
        process' mini-batches are taken from it.  Raises NonFiniteLoss before the weights are changed."""
        self.model.train()
        self.model.layers[: self.freeze].eval()
        self.model.frozen = self._frozen(iteration)
        before = [buffer.clone() for buffer, _ in rolling_averages(self.model)] if self.processes.world > 1 else []
        self.optimiser.zero_grad(set_to_none=False)
        rate, reports, files = learning_rate(iteration, self.net), [], []
        grown, attack = growth(iteration, self.net.max_batches), attack_rate(iteration, self.net)
        for number, (images, targets, names) in zip(range(self.mini_batches), batches, strict=False):
            set_stage(self.model, grown, number)
            terms = self._backward(images, targets, attack)
            reports.append(torch.stack([terms.total.detach(), *(term for head in terms.heads for term in head)]))
            files.append(names)
        self.processes.sum(*(p.grad for p in self.model.parameters()))
        losses, heads = self._report(iteration, rate, torch.stack(reports), files)
        rates = (rate, rate, bias_rate(iteration, self.net))
        for group, its_rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"], group["momentum"] = its_rate, momentum(iteration, self.net)
        self.scaler.step(self.optimiser)  # leaves weights and momentum as they are where float16 was too small
        self.scaler.update()
        if self.scaler.get_scale() < SMALLEST_SCALE:
            found = f"no gradient fits into float16 any more at iteration {iteration} with rate {rate:.6g}"
            raise NonFiniteLoss(f"{found}, scaled by {self.scaler.get_scale():.3g}; expected --amp bf16 or off")
        self.processes.join_rolling(self.model, before, self.mini_batches)
        return Update(losses, rate, heads)

    def _backward(self, images: Tensor, targets: Tensor, attack: float):
        images = images.to(self.device, non_blocking=True).float().div_(255)
        images = images.to(memory_format=torch.channels_last)
        if attack and torch.rand(()) < 0.5:
            images = self._attacked(images, attack)
        terms = self.loss(self._logits(images), targets)
        self.scaler.scale(terms.total / (self.mini_batches * self.processes.world)).backward()
        return terms

    def _logits(self, images: Tensor) -> list[Tensor]:
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            return self.model(images)

    def _attacked(self, images: Tensor, rate: float) -> Tensor:
        """The images after one backward pass of the attack, in which batch normalisation only looks up.

        Darknet forgets to spare biases without batch normalisation and the weights of shortcuts in that pass.
        """
        images = images.detach().requires_grad_()
        normalisations = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        normalisations = [module for module in normalisations if module.training]
        for module in normalisations:
            module.eval()
        parts = self.mini_batches * self.processes.world
        loss = attack_loss(self._logits(images), self.model.heads) / parts
        touched = [p for module in self.model.modules() for p in _touched_by_attacks(module) if p.requires_grad]
        self.scaler.scale(loss).backward(inputs=[images, *touched])
        for module in normalisations:
            module.train()
        return moved(images.detach(), images.grad, rate * len(images) * parts / self.scaler.get_scale())

    def _report(self, iteration: int, rate: float, reports: Tensor, files: list) -> tuple[float, list[HeadTerms]]:
        """reports (mini-batches, 1 + heads * terms): the only place where the host waits for the device."""
        finite = reports[:, 0].isfinite()
        if not self.scaler.is_enabled():  # float16 overflows now and then, and its scaler sees to it
            norms = [torch.linalg.vector_norm(parameter.grad) for parameter in self.model.parameters()]
            finite = finite & torch.stack(norms).isfinite().all()
        rows = torch.cat((reports.mean(0), finite.float())).tolist()
        width = len(HeadTerms._fields)
        heads = [HeadTerms(*rows[i : i + width]) for i in range(1, reports.shape[1], width)]
        bad = [names for names, good in zip(files, rows[reports.shape[1] :], strict=True) if not good]
        if self.processes.any(bool(bad), self.device):
            shown = ", ".join(str(name) for image in bad[0] for name in image) if bad else "of another process"
            also = ", its gradient no number," if math.isfinite(rows[0]) else ""
            parts = "; ".join(
                f"head {h.index}: class_loss {t.class_loss:.4g}, iou_loss {t.iou_loss:.4g}"
                for h, t in zip(self.model.heads, heads, strict=True)
            )
            raise NonFiniteLoss(
                f"the loss is {rows[0]}{also} at iteration {iteration} with rate {rate:.6g} ({parts}), "
                f"expected a number; images: {shown}"
            )
        return rows[0], heads

    def _frozen(self, iteration: int) -> int:
        """The last layer without gradient: stopbackward=1 for ever, N > 1 during the first N iterations."""
        stops = [
            layer.index
            for layer in self.model.plan
            if isinstance(layer.section, Convolutional)
            and (layer.section.stopbackward == 1 or layer.section.stopbackward > iteration - 1)
        ]
        return max(stops, default=-1)

    def _kept(self) -> int:
        """The last layer with train_only_bn: up to there Darknet updates nothing but rolling averages."""
        return max(
            (layer.index for layer in self.model.plan if getattr(layer.section, "train_only_bn", False)), default=-1
        )


def _groups(model: Darknet, decay: float) -> list[dict]:
    """Weights of convolutions and shortcuts, scales of batch normalisation, biases: only the first decay."""
    learnt = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = [parameter for parameter in learnt.values() if parameter.dim() > 1]
    biases = [parameter for name, parameter in learnt.items() if name.endswith("bias")]
    scales = [p for name, p in learnt.items() if p.dim() <= 1 and not name.endswith("bias")]
    return [{"params": group, "weight_decay": decay * (group is weights)} for group in (weights, scales, biases)]


def _touched_by_attacks(module: nn.Module) -> list[nn.Parameter]:
    parameter = module.weight if isinstance(module, Add | Implicit) else getattr(module, "bias", None)
    return [] if parameter is None or isinstance(module, nn.BatchNorm2d) else [parameter]
