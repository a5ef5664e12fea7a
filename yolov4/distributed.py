"""Several processes, started by torchrun, that train one model.
Source: PyTorch's torch.distributed; DistributedDataParallel averages the gradients."""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(minutes=30)  # the others wait while the first process evaluates


def join(device):
    """Joins the group that torchrun started.  Returns this process' device, its rank and how many
    there are; rank 0 writes and prints."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return device, rank, world


def leave():
    """Leaves the group, once gloo's threads have released the last tensors; else they may abort
    a process that ends."""
    if dist.is_initialized():
        # they need the interpreter's lock for it, which torch 2.5 holds while it waits for them
        time.sleep(0.1)
        dist.destroy_process_group()


def in_any(flag, device):
    """Whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    votes = torch.tensor(float(flag), device=device)
    dist.all_reduce(votes)
    return votes.item() > 0


def same_in_all(number, device):
    """Whether a whole number is the same in all processes."""
    limits = torch.tensor((number, -number), device=device)
    if dist.is_initialized():
        dist.all_reduce(limits, dist.ReduceOp.MAX)
    return limits.sum().item() == 0


def lost_process(error):
    """Whether the error means that a process of the group died, or one that loads images did or
    hangs."""
    messages = "gloo", "DataLoader"
    return isinstance(error, dist.DistError) or any(text in str(error) for text in messages)
