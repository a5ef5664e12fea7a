#!/usr/bin/env python3
"""All figures of a GPU in one call: Darknet's golden results on it, a first training, training and
inference beside a plain port.  One table, and a JSON that is written after each figure."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from common import ROOT, machine, medians, read_results, seeded_network, table, train

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "data/shapes")]


class Decorator:
    """In place of pytest where there is none: what it decorates stays as it is."""

    __spec__ = None

    def __getattr__(self, name: str) -> "Decorator":
        return self

    def __call__(self, *arguments, **options):
        return arguments[0] if arguments and callable(arguments[0]) else self


try:
    import pytest  # noqa: F401
except ImportError:
    sys.modules["pytest"] = Decorator()

import test_decode
import test_loss
import test_model
import test_training
import test_updates
from conftest import golden_names, load_golden
from inference import decoding, plain_engine, torch_engine
from make_shapes import NAMES, make_picture
from training import draw_batch, draw_pictures, plain_step

import yolov4
from yolov4.data import training_batches
from yolov4.recipe import Settings
from yolov4.training import Training

DEAREST = 10  # operations of the profile
PLAIN, GRAPH = "a plain port, bf16", "CUDA graph, bf16"


class Report:
    """What was asked for, and rows of what was measured."""

    def __init__(self, file: Path, workers: int, toy: bool):
        self.file, self.toy, self.part, self.rows = file, toy, 0, []
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.workers, self.size, self.batch = (1, 64, 2) if toy else (workers, 416, 64)
        self.network, self.repeats = ("yolov4-tiny", 1) if toy else ("yolov4", 20)
        self.cfg = str(ROOT / f"cfg/{self.network}.cfg")

    def add(self, name: str, value, unit: str = "", least=None, most=None, note: str = "") -> None:
        """least, most: what is aimed at."""
        aim, met = "", ""
        if least is not None:
            aim, met = f">= {least}", bool(value >= least)
        elif most is not None:
            aim, met = f"<= {most}", bool(value <= most)
        value = value if isinstance(value, int | str) else round(float(value), 4)
        row = {"part": self.part, "name": name, "value": value, "unit": unit}
        self.rows.append(row | {"aim": aim, "met": met, "note": note})
        print(*self.rows[-1].values(), flush=True)
        gpu = torch.cuda.get_device_name() if self.device == "cuda" else None
        self.file.parent.mkdir(parents=True, exist_ok=True)
        found = {"machine": machine(), "gpu": gpu, "toy": self.toy, "rows": self.rows}
        self.file.write_text(json.dumps(found, indent=1))

    def add_share(self, name: str, pairs, least: float) -> None:
        """The largest |found - expected| of pairs, where 1 is `least` + 1e-4 |expected|."""
        away = [(np.abs(a - b) / (least + 1e-4 * np.abs(b))).max() for a, b in pairs]
        self.add(name, max(away), "of tolerance", most=1)


def exactness(report: Report, folder: Path) -> None:
    """Darknet's golden results; --deterministic"""
    device = report.device
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for name in golden_names("loss"):
            case = load_golden(f"loss/{name}.npz")
            delta = test_loss.golden_delta(case, device)[1]
            report.add_share(f"deltas of {name}", [(delta, case["delta"])], 1e-5)
        for name, tolerance in test_updates.TOLERANCES.items():
            case = load_golden(f"train/{name}.npz")
            away = test_updates.golden_training(case, folder, device)[1]
            report.add(f"ten iterations, {name}", away / tolerance, "of tolerance", most=1)
        for name in ("yolov4-tiny", "yolov4", "yolov4-csp")[: 1 if report.toy else 3]:
            golden = load_golden(f"forward/{name}.npz"), yolov4.read_cfg(ROOT / f"cfg/{name}.cfg")
            pairs = test_model.golden_outputs(*golden, folder / "x.weights", device)
            report.add_share(f"outputs of {name}, float32", pairs, 1e-4)
    same_bits(report, test_training.write_pictures(folder / "same"))
    for name in golden_names("detections"):
        case = load_golden(f"detections/{name}.npz")
        for when in ("before", "after"):
            found, size = test_decode.golden_detections(case, when, device)
            test_decode.assert_same_rows(test_decode.rows_of(found, size), case[when])
            report.add(f"detections {when} NMS, {name}", len(found), "the same", least=1)


def same_bits(report: Report, work: Path) -> None:
    """--deterministic twice; and killed, then resumed."""
    (work / "tiny.data").write_text("train=list.txt\nnames=tiny.names\n")
    test_training.write_cfg(work, iterations=12 if report.toy else 60)
    flags = ["--device", report.device, "--deterministic", "--save-every", 4, "--workers", 1]
    runs = {name: test_training.started(work, *flags, runs=name) for name in ("one", "two", "cut")}
    with suppress(AssertionError):  # it was faster
        test_training.wait_for((work / "cut/run/last.pt").exists, runs["cut"])
        os.killpg(runs["cut"].pid, signal.SIGKILL)
    for process in runs.values():
        process.communicate()
    resume = map(str, [sys.executable, ROOT / "train.py", "--resume", work / "cut/run"])
    alike = {"cwd": work, "env": os.environ | {"OMP_NUM_THREADS": "1"}}  # as `started` has it
    said = subprocess.run([*resume], **alike, stdout=subprocess.PIPE, text=True).stdout
    said = "".join(line for line in said.splitlines() if line.startswith("resuming"))
    one, two, cut = ((work / name / "run/run_last.weights").read_bytes() for name in runs)
    report.add("--deterministic twice", int(one == two), "same bits", least=1)
    report.add("killed and resumed", int(one == cut), "same bits", least=1, note=said)


def draw_shapes(folder: Path) -> None:
    """The images that data/shapes/make_shapes.py draws, with their labels, in x.data."""
    lists = {"train": "", "valid": ""}
    for index in range(300):
        picture, objects = make_picture(np.random.default_rng((0, index)), 160, 128)
        path, rows = folder / f"{index}.jpg", []
        for name, *corners in objects:
            left, top, right, bottom = np.subtract(corners, (1, 1, 0, 0)) / (160, 128, 160, 128)
            centre = (left + right) / 2, (top + bottom) / 2
            rows.append((NAMES.index(name), *centre, right - left, bottom - top))
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        np.savetxt(path.with_suffix(".txt"), rows, "%g")
        lists["valid" if index % 5 == 4 else "train"] += f"{path}\n"
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "x.names").write_text("\n".join(NAMES))
    (folder / "x.data").write_text(f"train={folder}/train.txt\nnames={folder}/x.names\n")


def first_training(report: Report, folder: Path) -> None:
    """the README's training on shapes; its mAP in half precision"""
    draw_shapes(folder)
    flags = ["--data", folder / "x.data", "--cfg", "shapes", "--workers", report.workers]
    start = time.perf_counter()
    train(folder, *flags, *(["--max-batches", 8] if report.toy else []))
    report.add("training on shapes", time.perf_counter() - start, "s")
    run = folder / "run/run.cfg", folder / "run/run_last.weights"
    exact, bf16, fp16 = (
        yolov4.evaluate(yolov4.Detector(*run, half=half), folder / "valid.txt").map
        for half in (None, "bf16", "fp16")
    )
    report.add("mAP, float32", exact, least=0 if report.toy else 0.9)
    report.add("mAP, bf16, away from float32", abs(bf16 - exact), most=0.01)
    report.add("mAP, fp16, away from float32", abs(fp16 - exact), most=0.01)


def start_training(report: Report, folder: Path, iterations: int) -> tuple[Training, Callable]:
    """With mosaic, in bfloat16; and an update on one mini-batch, which can be repeated."""
    classes = yolov4.read_cfg(report.cfg).sections[-1].classes
    images, names = draw_pictures(folder, classes), folder / "x.names"
    names.write_text("".join(f"{number}\n" for number in range(classes)))
    text = Path(report.cfg).read_text().replace("random=1", "random=0")
    (folder / "x.cfg").write_text(text.replace("mosaic=0", "mosaic=1"))
    settings = Settings(
        cfg=str(folder / "x.cfg"), train=str(images), names=str(names), max_batches=iterations,
        batch=report.batch, subdivisions=1, width=report.size, height=report.size, amp="bf16",
        device=report.device, workers=report.workers, save_every=1000,
    )  # fmt: skip
    run = Training(settings, folder / "run", say=lambda line: None)
    images, targets = draw_batch(report.batch, report.size)
    images = (images * 255).byte()
    images = images.pin_memory() if report.device == "cuda" else images
    return run, lambda: run.updater.update(1, iter([(images, targets, [])]))


def training_speed(report: Report, folder: Path) -> None:
    """training: data, images/s, memory, operations"""
    run, step = start_training(report, folder, 3 if report.toy else 60)
    samples_per_second(report, run)
    run.run()
    rows = read_results(folder / "run")[1 if report.toy else 20 :]
    speed, waiting = (
        median(row[key] for row in rows) for key in ("images_per_second", "data_share")
    )
    report.add("training", speed, "images/s", least=800)
    report.add("waiting for data", waiting, "of the time", most=0.1)
    if report.device == "cuda":
        report.add("peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    plain = plain_step(report.cfg, report.size, report.batch, report.device, torch.bfloat16)
    seconds = medians({"without data": step, "of a plain port": plain}, report.repeats)
    del plain
    for name, each in seconds.items():
        report.add(f"training {name}", report.batch / each, "images/s")
    ratio = seconds["of a plain port"] / seconds["without data"]
    report.add("training without data", ratio, "of a plain port", least=1.5)
    profile(report, step)
    if report.device == "cuda":
        waits(report, step)
        less_memory(report, run, step)


def samples_per_second(report: Report, run: Training) -> None:
    """The loader alone, once every process has brought a mini-batch."""
    workers, head, cuda = report.workers, run.model.heads[-1], report.device == "cuda"
    loader = training_batches(run.paths, run.net, head, 0, 0, 4 * workers, workers, 0, 1, cuda)
    times = [time.perf_counter() for _ in loader]
    rate = 3 * workers * report.batch / (times[-1] - times[workers - 1])
    report.add(f"data alone, {workers} processes", rate, "images/s", least=800)
    report.add("data alone, one of them", rate / workers, "images/s")


def profile(report: Report, step: Callable) -> None:
    kind = "self_device_time_total" if report.device == "cuda" else "self_cpu_time_total"
    with torch.profiler.profile() as found:
        step()
    # kernels count in the operations that start them
    events = [each for each in found.key_averages() if each.device_type.name == "CPU"]
    total = sum(getattr(each, kind) for each in events)
    for each in sorted(events, key=lambda event: -getattr(event, kind))[:DEAREST]:
        note = f"{each.count} times"
        report.add(each.key[:60], getattr(each, kind) / total, "of a training step", note=note)


def waits(report: Report, step: Callable) -> None:
    """Where the host waits for the GPU in an update: `_report` alone should."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    places = {f"{Path(each.filename).name}:{each.lineno}" for each in found}
    report.add("the host waits in an update", len(found), "times", note=" ".join(sorted(places)))


def less_memory(report: Report, run: Training, step: Callable) -> None:
    """An update with two thirds of the memory that it took."""
    torch.cuda.reset_peak_memory_stats()
    step()
    share = torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share * 2 / 3)
    try:
        step()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    report.add("subdivisions in 2/3 of the memory", run.updater.net.subdivisions, least=2)


def captured(network: Callable, x: torch.Tensor) -> Callable:
    """The network as a CUDA graph, which always takes x as it is."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        network(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = network(x)
    return lambda _: graph.replay() or logits


def inference_engines(report: Report, cfg: Path, weights: Path) -> Iterator:
    """(images at a time, name), a call of network and decoding."""
    for batch in (1, 4 if report.toy else 32):
        images = torch.rand(batch, 3, report.size, report.size, device=report.device)
        yield (batch, PLAIN), plain_engine(cfg, weights, images.bfloat16())
        for half in ("bf16",) if batch == 1 else ("bf16", "fp16", None):
            network, x, heads = torch_engine(cfg, weights, images, half=half)
            yield (batch, f"eager, {half or 'float32'}"), decoding(network, x, heads)
            if batch == 1 and report.device == "cuda":
                yield (batch, GRAPH), decoding(captured(network, x), x, heads)
                engine = torch_engine(cfg, weights, images, half=half, compiled=True)
                yield (batch, "compiled, bf16"), decoding(*engine)


@torch.no_grad()
def inference_speed(report: Report, folder: Path) -> None:
    """inference: latency and throughput, yolov4 and yolov4-tiny"""
    torch.backends.cudnn.benchmark = True
    for name in dict.fromkeys((report.network, "yolov4-tiny")):
        cfg, weights = folder / f"{name}.cfg", folder / f"{name}.weights"
        model = seeded_network(str(ROOT / f"cfg/{name}.cfg"), report.size)
        cfg.write_text(yolov4.format_cfg(model.net, model.sections))
        yolov4.save_weights(model, weights, seen=0)
        seconds = medians(dict(inference_engines(report, cfg, weights)), report.repeats)
        aims = {(1, GRAPH): {"most": 2.5}, (32, "eager, bf16"): {"least": 3000}}
        for (batch, kind), each in seconds.items():
            aim = aims.get((batch, kind), {}) if name == "yolov4" else {}
            value, unit = (each * 1e3, "ms") if batch == 1 else (batch / each, "images/s")
            report.add(f"{name}, batch {batch}, {kind}", value, unit, **aim)
        for batch in dict.fromkeys(batch for batch, _ in seconds):
            best = min(seconds[key] for key in seconds if key[0] == batch and key[1] != PLAIN)
            ratio = seconds[batch, PLAIN] / best
            report.add(f"{name}, batch {batch}, the fastest", ratio, "of a plain port", least=1.5)


def compiled_training(report: Report, folder: Path) -> None:
    """torch.compile in training"""
    run, step = start_training(report, folder, 2)
    eager = medians({"": step}, report.repeats)[""]
    run.updater.parallel = torch.compile(run.model)
    start = time.perf_counter()
    step()
    report.add("compiling for training", time.perf_counter() - start, "s")
    compiled = medians({"": step}, report.repeats)[""]
    report.add("training without data, compiled", report.batch / compiled, "images/s")
    report.add("training without data, compiled", eager / compiled, "of eager")


PARTS = exactness, first_training, training_speed, inference_speed, compiled_training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = range(1, len(PARTS) + 1)
    help = "; ".join(
        f"{number}: {part.__doc__}" for number, part in zip(numbers, PARTS, strict=True)
    )
    parser.add_argument("--parts", type=int, nargs="+", choices=numbers, help=help)
    parser.add_argument("--json", type=Path, default="runs/gpu.json", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=14, help="for data (default: %(default)s)")
    parser.add_argument("--toy", action="store_true", help="parts 1 to 4, small, for a CPU")
    given = parser.parse_args()
    report, failed = Report(given.json, given.workers, given.toy), False
    for report.part in given.parts or numbers[: 4 if given.toy else None]:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                PARTS[report.part - 1](report, Path(folder))
            except (Exception, SystemExit) as error:  # the other parts go on
                traceback.print_exc()
                report.add("FAILED", f"{type(error).__name__}: {error}"[:200])
                failed = True
        report.add("the whole part", time.perf_counter() - start, "s")
    columns = "part", "name", "value", "unit", "aim", "met"
    print(machine())
    print(table(columns, ([row[each] for each in columns] for row in report.rows)))
    sys.exit(failed)


if __name__ == "__main__":
    main()
