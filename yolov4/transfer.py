"""From the host to a device without waiting for it, so that a training step keeps it busy.
Source: CUDA's programming guide, copies from page-locked memory are asynchronous."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; itself where it is there.  `new_tensor` would wait for all that is queued."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
