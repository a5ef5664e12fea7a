"""What the benchmarks share: calls that take turns, the machine's own rate and name, tables.
Nothing here is asserted anywhere: a figure holds for the machine and the run that it was printed in."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from yolov4 import Darknet  # noqa: E402
from yolov4.mish import Mish  # noqa: E402

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


def with_torchs_mish(model: Darknet) -> Darknet:
    """The model as a plain port has it."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Mish):
                setattr(module, name, nn.Mish())
    return model
