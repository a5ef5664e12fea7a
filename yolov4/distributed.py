"""Several processes that train one model, started by torchrun: gradients summed, rolling averages joined, or, with
SyncBatchNorm, shared.  Source: PyTorch's torch.distributed; the result is that of one process."""

import os
import time
import zlib
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yolov4.staged import CrossBatchNorm, NormaliseByGiven

PATIENCE = timedelta(minutes=30)  # that one process waits for another: the first one evaluates alone


class Processes:
    """The group this process belongs to, also where it is alone.  rank 0 writes and prints."""

    def __init__(self, device: torch.device):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def close(self) -> None:
        """Leaves the group; without it gloo's threads, which take the interpreter's lock to let go of the last tensors
        summed, may abort a process that ends."""
        if self.world > 1:
            time.sleep(0.1)  # for them: torch 2.5 joins them holding the lock, and waits forever for one that wants it
            dist.destroy_process_group()

    def sum(self, *tensors: Tensor) -> None:
        """Sums tensors over the processes, in place and in one message."""
        if self.world > 1:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(flat)
            for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def from_first(self, value: float, device: torch.device) -> float:
        """The value that the first process has; the others wait for it."""
        if self.world == 1:
            return value
        values = torch.tensor([value if self.first else 0.0], device=device, dtype=torch.float64)
        self.sum(values)
        return values.item()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        votes = torch.tensor([float(flag)], device=device)
        self.sum(votes)
        return bool(votes.item())

    def check_same_start(self, model: nn.Module, *numbers: int) -> None:
        """Raises ValueError, in every process, where not all have these numbers and weights: machines may have
        other files."""
        if self.world == 1:
            return
        checksum = 0
        for tensor in model.state_dict().values():
            checksum = zlib.crc32(tensor.cpu().numpy().tobytes(), checksum)
        device = next(model.parameters()).device
        own = torch.tensor([checksum, *numbers], dtype=torch.float64, device=device)
        total = own.clone()
        self.sum(total)
        if self.any(not torch.equal(total, own * self.world), device):
            raise ValueError(
                f"process {self.rank}: found another iteration, number of images, or weights than in other processes, "
                "expected the same files on every machine"
            )

    def synchronise(self, model: nn.Module) -> None:
        """Makes every batch normalisation a SyncBatchNorm where there are other processes; all names stay.
        Raises ValueError for CmBN, whose statistics are of other mini-batches."""
        normalisations = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        if any(isinstance(module, CrossBatchNorm) for module in normalisations):
            raise ValueError("--sync-bn: found CmBN in the cfg, expected batch_normalize=1 (no 2, no cbn=1)")
        for module in normalisations if self.world > 1 else ():
            module.__class__ = SyncBatchNorm  # the same parameters and buffers, nothing else

    def join_rolling(self, model: nn.Module, before: list[Tensor], mini_batches: int) -> None:
        """Rolling averages as if one process had seen the mini-batches of rank 0, then those of rank 1, and so on.

        Every process starts from `before` and sees as many mini-batches; each lets the old value decay by 1 - momentum.
        """
        own = rolling_averages(model)
        if self.world == 1 or not own:
            return
        decays = [(1 - momentum) ** mini_batches for _, momentum in own]
        with torch.no_grad():
            for (buffer, _), old, decay in zip(own, before, decays, strict=True):
                buffer.sub_(old, alpha=decay).mul_(decay ** (self.world - 1 - self.rank))
            self.sum(*(buffer for buffer, _ in own))
            for (buffer, _), old, decay in zip(own, before, decays, strict=True):
                buffer.add_(old, alpha=decay**self.world)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose mini-batch is those of all processes, equally large, joined.  Any device, float32
    statistics; torch's own refuses the CPU.  Source: Chan et al. 1979 for variances that join without cancelling."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            own = torch.stack(torch.var_mean(x.float(), (0, 2, 3), correction=0))
            everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, own)
            variances, means = torch.stack(everyone, 1)  # (W, C) each
            mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
            count = len(means) * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
            self.num_batches_tracked += 1
        inverse = (variance + self.eps).rsqrt()
        return NormaliseByGiven.apply(x, mean, inverse, self.weight, self.bias, mean_over_processes)


def mean_over_processes(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values / dist.get_world_size()


def rolling_averages(model: nn.Module) -> list[tuple[Tensor, float]]:
    """Means and variances that move, each by the own mini-batches of a process alone, with its momentum."""
    moving = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training)
    alone = [module for module in moving if not isinstance(module, SyncBatchNorm)]
    return [(buffer, module.momentum) for module in alone for buffer in (module.running_mean, module.running_var)]


def lost_another(error: RuntimeError) -> bool:
    """Whether torch says by this error that another process cannot be reached any more."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))
