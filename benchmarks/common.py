"""What the benchmarks share: calls that take turns, seconds in functions, networks, the machine's rate, tables.
Nothing here is asserted anywhere: a figure holds for the machine and the run that it was printed in."""

import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import cv2
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from yolov4 import Darknet  # noqa: E402
from yolov4.cfg import read_cfg  # noqa: E402
from yolov4.mish import Mish  # noqa: E402
from yolov4.sections import Network  # noqa: E402

SIDE = 1024  # of the matrices whose product is the machine's rate
PRODUCT_FLOPS = 2 * SIDE**3


def medians(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each call.  They take turns, so that other load is shared; the first round warms up."""
    seconds = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextmanager
def timed(parts: Mapping[str, tuple[object, str]]) -> Iterator[Counter]:
    """Seconds spent in functions: part -> (module or class, name of its function)."""
    seconds = Counter()

    def wrapped(part: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for part, (owner, name) in parts.items():
            stack.enter_context(patch.object(owner, name, wrapped(part, getattr(owner, name))))
        yield seconds


def matrix_product() -> Callable[[], torch.Tensor]:
    """A call to put among others, of PRODUCT_FLOPS in float32."""
    matrix = torch.rand(SIDE, SIDE)
    return lambda: matrix @ matrix


def machine() -> str:
    """One line: processor, threads, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, OpenCV {cv2.__version__}"
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {versions}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown, as the README has it; numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def at_size(network: Network, size: int, **options: object) -> Network:
    """The network for square images of so many pixels a side; options: further ones of [net]."""
    return network._replace(net=replace(network.net, width=size, height=size, **options))


def seeded_network(cfg: str, size: int) -> Darknet:
    """Fresh weights with rolling variances of 1, so that values neither vanish nor explode."""
    model = Darknet(at_size(read_cfg(cfg), size), torch.Generator().manual_seed(0)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1.0)
    return model


def with_torchs_mish(model: Darknet) -> Darknet:
    """The model as a plain port has it."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Mish):
                setattr(module, name, nn.Mish())
    return model
