#!/usr/bin/env python3
"""Speed and memory of training, each variant in a process of its own, that take turns iteration by iteration; several
rounds with new processes, as one process keeps the luck that it had with its memory.
`plain` is what an eager PyTorch port does: torch's Mish, channels first, freed memory given back to the system."""

import argparse
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence

import torch
from common import PRODUCT_FLOPS, ROOT, at_size, machine, matrix_product, medians, table, with_torchs_mish

from yolov4.cfg import read_cfg
from yolov4.distributed import Processes
from yolov4.memory import keep_freed_memory
from yolov4.model import Darknet
from yolov4.plan import Layer, plan_layers
from yolov4.runs import one_line_errors
from yolov4.sections import Network
from yolov4.updates import Updater

VARIANTS = ("ours", "ours, --amp bf16", "plain")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Images a second of whole iterations: forward, loss, backward, SGD.")
    parser.add_argument("--cfg", default=str(ROOT / "cfg/yolov4.cfg"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=416, help="width and height (default %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images, in one mini-batch (default %(default)s)")
    parser.add_argument("--objects", type=int, default=10, help="truths an image (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of new processes (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="iterations a process (default %(default)s)")
    peer = 'another program to take turns with: prints {"seconds": of an iteration, "peak": bytes} as its last line'
    parser.add_argument("--peer", metavar="COMMAND", help=peer)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)  # the child of a round
    return parser.parse_args()


class Step:
    """An iteration on random images and truths, both from a seed."""

    def __init__(self, network: Network, size: int, batch: int, objects: int, plain: bool = False, amp: str = "off"):
        network = at_size(network, size, batch=batch, subdivisions=1, max_batches=1_000_000)
        generator = torch.Generator().manual_seed(0)
        self.model = Darknet(network, generator)
        if plain:
            with_torchs_mish(self.model)
            self.model.register_forward_pre_hook(lambda _, arguments: (arguments[0].contiguous(),))
        else:
            self.model.to(memory_format=torch.channels_last)
        self.updater = Updater(self.model, network.net, Processes(torch.device("cpu")), amp=amp)
        self.images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
        owners = torch.arange(batch).repeat_interleave(objects)[:, None]
        classes = torch.randint(0, self.model.heads[0].classes, (len(owners), 1), generator=generator)
        centres = 0.1 + 0.8 * torch.rand(len(owners), 2, generator=generator)
        sides = 0.02 + 0.2 * torch.rand(len(owners), 2, generator=generator).square()
        self.targets = torch.cat((owners, classes, centres, sides), 1)
        self.iteration = 0

    def __call__(self) -> None:
        self.iteration += 1
        self.updater.update(self.iteration, [(self.images, self.targets, [[]] * len(self.images))])

    @property
    def flops(self) -> int:
        return flops(self.model.plan, len(self.images))


def flops(plan: Sequence[Layer], images: int) -> int:
    """Of forward and backward, which is twice as much."""
    return 3 * images * sum(layer.flops for layer in plan)


def serve(arguments: argparse.Namespace) -> None:
    """In a child: an iteration for each line of the input; answers with the peak of its memory in bytes"""
    plain = arguments.variant == "plain"
    if not plain:
        keep_freed_memory()
    amp = "bf16" if arguments.variant.endswith("bf16") else "off"
    step = Step(read_cfg(arguments.cfg), arguments.size, arguments.batch, arguments.objects, plain, amp)
    for _ in sys.stdin:
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


class Child:
    """A process that waits for its turns."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak = 0

    def __call__(self) -> None:
        print(file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise ValueError(f"{shlex.join(self.process.args)}: ended, expected an iteration for each line of input")
        self.peak = int(answer)


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("training.py"):
        if arguments.variant:
            serve(arguments)
            return
        itself = [sys.executable, __file__, *sys.argv[1:], "--variant"]
        commands = {variant: [*itself, variant] for variant in VARIANTS}
        if arguments.peer:
            commands["peer"] = shlex.split(arguments.peer)
        rounds, peaks = zip(*(measure(commands, arguments.repeats) for _ in range(arguments.rounds)), strict=True)
    report(arguments, rounds, peaks)


def measure(commands: dict[str, list[str]], repeats: int) -> tuple[dict[str, float], dict[str, int]]:
    """One round: seconds of an iteration, of a matrix product too, and bytes at the peak."""
    children = {name: Child(command) for name, command in commands.items()}
    seconds = medians({"product": matrix_product(), **children}, repeats)
    for child in children.values():
        child.process.stdin.close()
        child.process.wait()
    return seconds, {name: child.peak for name, child in children.items()}


def report(arguments: argparse.Namespace, rounds: Sequence[dict[str, float]], peaks: Sequence[dict[str, int]]) -> None:
    seconds = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    rate = PRODUCT_FLOPS / seconds.pop("product")
    work = flops(plan_layers(at_size(read_cfg(arguments.cfg), arguments.size)), arguments.batch)
    ideal = work / rate
    print(machine())
    print(f"{arguments.cfg} at {arguments.size}, {arguments.batch} images of {arguments.objects} truths an iteration; "
          f"{work / 1e12:.3f} TFLOPs, at the {rate / 1e9:.0f} GFLOP/s of a matrix product {ideal:.2f} s")  # fmt: skip
    others = [name for name in ("plain", "peer") if name in seconds]
    rows = [
        (name, f"{value:.2f}", " ".join(f"{each[name]:.2f}" for each in rounds), f"{arguments.batch / value:.2f}",
         *(f"{seconds[other] / value:.2f}" for other in others), f"{ideal / value:.2f}",
         f"{max(each[name] for each in peaks) / 2**30:.2f}")
        for name, value in seconds.items()
    ]  # fmt: skip
    header = "", "s an iteration", "rounds", "images/s", *(f"of {other}" for other in others)
    print(table((*header, "of the product's rate", "peak GiB"), rows))


if __name__ == "__main__":
    main()
