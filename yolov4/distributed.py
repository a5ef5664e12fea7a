"""Several processes that train one model, started by torchrun: gradients summed, rolling averages joined.
Source: PyTorch's torch.distributed; the result is that of one process with as many mini-batches."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

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
        # gloo needs no farewell, and its own hangs now and then when both sides leave at once (seen with torch 2.6)
        if self.world > 1 and dist.get_backend() == "nccl":
            dist.destroy_process_group()

    def sum(self, *tensors: Tensor) -> None:
        """Sums tensors over the processes, in place and in one message.  Raises ConnectionError where one is gone."""
        if self.world > 1:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            try:
                dist.all_reduce(flat)
            except RuntimeError as error:
                lost = f"process {self.rank} of {self.world} lost another one ({str(error).splitlines()[0][:120]})"
                raise ConnectionError(f"{lost}, expected all to live; --resume goes on from last.pt") from None
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

    def join_rolling(self, model: nn.Module, before: dict[str, Tensor], mini_batches: int) -> None:
        """Rolling averages as if one process had seen the mini-batches of rank 0, then those of rank 1, and so on.

        Every process starts from `before` and sees as many mini-batches; each lets the old value decay by 1 - momentum.
        """
        if self.world == 1:
            return
        buffers = rolling_averages(model)
        decay = (1 - 0.01) ** mini_batches
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.sub_(before[name], alpha=decay).mul_(decay ** (self.world - 1 - self.rank))
            self.sum(*buffers.values())
            for name, buffer in buffers.items():
                buffer.add_(before[name], alpha=decay**self.world)


def rolling_averages(model: nn.Module) -> dict[str, Tensor]:
    """Means and variances of all batch normalisations."""
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))}


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))
