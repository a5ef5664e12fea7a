"""What the benchmarks share.  They use the scripts and public names alone; each figure holds for
the machine and the run that printed it, so compare ratios within one run."""

import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(os.environ.get("YOLOV4_ROOT", ROOT))))  # another checkout to compare
CHECKOUT = Path(sys.path[0])

import yolov4


def medians(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each call.  They take turns, so that other load is shared; the first round
    warms up."""
    seconds = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def seeded_network(cfg: str, size: int) -> yolov4.Darknet:
    """Fresh weights with running variances of 1, so that values neither vanish nor explode, and
    biases of the heads that find nothing."""
    text = Path(cfg).read_text()
    for key in ("width", "height"):
        text = text.replace(f"{key}={getattr(yolov4.parse_cfg(text).net, key)}", f"{key}={size}", 1)
    torch.manual_seed(0)
    model = yolov4.Darknet.from_cfg(text=text).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1.0)
    for name, parameter in model.named_parameters():
        if name.endswith("0.bias"):
            parameter.data.fill_(-8.0)
    return model


def plain_port(model: yolov4.Darknet) -> yolov4.Darknet:
    """The model as an eager port has it: torch's own Mish."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "Mish":
                setattr(module, name, torch.nn.Mish())
    return model


def train(folder: Path, *flags: str) -> tuple[list[dict[str, float]], float]:
    """Runs train.py -> its results.csv, one row per iteration, and the peak memory in GiB."""
    command = [sys.executable, CHECKOUT / "train.py", "--runs", folder, "--name", "run", *flags]
    process = subprocess.Popen([*map(str, command)], cwd=CHECKOUT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(status)
    return read_results(folder / "run"), usage.ru_maxrss / 2**20


def read_results(run: Path) -> list[dict[str, float]]:
    """results.csv of a run's folder."""
    with (run / "results.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def machine() -> str:
    """Processor, threads and versions in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    python, threads = platform.python_version(), torch.get_num_threads()
    versions = f"Python {python}, torch {torch.__version__}, OpenCV {cv2.__version__}"
    return f"{name}, {os.cpu_count()} cores, {threads} threads; {versions}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
