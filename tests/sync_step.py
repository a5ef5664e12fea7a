"""One step through batch normalisation, alone or, started as a script, as one of several processes."""

import sys

import torch
from torch import nn

from yolov4.distributed import Processes


def step(processes: Processes) -> dict[str, torch.Tensor]:
    """Of this process' share of 8 images: output, gradient; of all: gradients of weights, rolling averages."""
    generator = torch.Generator().manual_seed(0)
    images, weights = (torch.randn(8, 3, 5, 4, generator=generator) for _ in range(2))
    images = 100 + images * torch.arange(1, 9).view(
        8, 1, 1, 1
    )  # the shares differ; the mean is far above the deviation
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.01), nn.Mish(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    processes.synchronise(model)
    share = slice(8 * processes.rank // processes.world, 8 * (processes.rank + 1) // processes.world)
    images = images[share].requires_grad_()
    output = model(images)
    (output * weights[share]).sum().backward()
    processes.sum(*(parameter.grad for parameter in model.parameters()))
    found = {"output": output.detach(), "images": images.grad}
    found |= {name: parameter.grad for name, parameter in model.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    half = model[0](images.detach().bfloat16())
    assert half.dtype == torch.bfloat16
    return found | {"bf16": half.detach().float(), "bf16 mean": model[0].running_mean}


def refused(processes: Processes, model: nn.Module, number: int) -> str:
    try:
        processes.check_same_start(model, 5, number)
    except ValueError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    processes = Processes(torch.device("cpu"))
    same, other = (nn.Linear(2, 2), nn.Linear(2, 2))
    nn.init.constant_(same.weight, 0.5), nn.init.constant_(same.bias, 0.5)
    messages = [refused(processes, same, 7), refused(processes, same, processes.rank), refused(processes, other, 7)]
    found = step(processes)
    processes.close()
    torch.save((found, messages), sys.argv[1])
