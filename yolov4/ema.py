"""The running average of weights, by Darknet's ema_alpha or as other recipes have it.
Source: Darknet's src/network.c, ema_update, ema_apply; YOLOv5's ramp."""

import copy
import math

import torch
from torch import Tensor

from yolov4.model import Darknet
from yolov4.sections import Net


class Ema:
    """A running average of the weights.

    Without `decay` as [net] ema_alpha does it: from half of max_batches on, until 1,000 iterations before the end,
    where the average takes the place of the weights and the rolling averages settle.  With `decay` (--ema) from the
    first iteration on, rising as decay * (1 - exp(-iteration / 2000)), beside the weights; rolling averages too.
    """

    def __init__(self, model: Darknet, net: Net, decay: float = 0.0):
        self.net, self.decay, self.model = net, decay, None
        if decay:
            self._start(model)

    def update(self, model: Darknet, iteration: int) -> None:
        if self.decay:
            keep = self.decay * (1 - math.exp(-iteration / 2000))
            _move(self.model.state_dict(), model.state_dict(), keep)
        elif self.net.ema_alpha and iteration >= self.net.max_batches // 2:
            if self.model is None:
                self._start(model)
            if iteration == self.net.max_batches - 1000:
                for ours, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
                    theirs.data.copy_(ours)
            elif iteration < self.net.max_batches - 1000:
                _move(dict(self.model.named_parameters()), dict(model.named_parameters()), self.net.ema_alpha)

    def restart(self, model: Darknet) -> None:
        """After weights were loaded into the model: an average that already runs takes them too."""
        if self.model is not None:
            self.model.load_state_dict(model.state_dict())

    def load(self, model: Darknet, state: dict[str, Tensor] | None) -> None:
        if state:
            self._start(model)
            self.model.load_state_dict(state)

    def _start(self, model: Darknet) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def _move(ours: dict[str, Tensor], theirs: dict[str, Tensor], keep: float) -> None:
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[name], 1 - keep)
        else:  # a count
            tensor.copy_(theirs[name])
