#!/usr/bin/env python3
"""Images/s and memory of train.py, beside an eager port that takes turns with it; samples/s of the
data alone.  All through train.py and its results.csv, each round in a new process."""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from common import ROOT, machine, medians, plain_port, seeded_network, table, train

import yolov4

HEAD = """[convolutional]
filters=75
size=32
stride=32
activation=linear
[yolo]
mask=0,1,2
anchors=10,13, 16,30, 33,23
classes=20
num=3
jitter=.3
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "images", nargs="?", metavar="LIST", help="photographs (default: drawn ones)"
    )
    parser.add_argument("--cfg", default=str(ROOT / "cfg/yolov4.cfg"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=416, help="width and height (default 416)")
    parser.add_argument("--batch", type=int, default=2, help="images per iteration (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (default 3)")
    parser.add_argument("--repeats", type=int, default=6, help="iterations of each (default 6)")
    parser.add_argument("--samples", type=int, default=400, help="of the data alone (default 400)")
    return parser.parse_args()


def draw_pictures(folder: Path, classes: int, count: int = 50) -> Path:
    """A list of JPEGs of soft noise with ten labels each."""
    generator = np.random.default_rng(0)
    for number in range(count):
        noise = cv2.resize(generator.integers(0, 256, (47, 63, 3), dtype=np.uint8), (500, 375))
        cv2.imwrite(str(folder / f"{number}.jpg"), noise)
        boxes = np.c_[generator.integers(0, classes, 10), generator.uniform(0.1, 0.4, (10, 4))]
        np.savetxt(folder / f"{number}.txt", boxes, "%g")
    (folder / "list.txt").write_text("".join(f"{folder}/{n}.jpg\n" for n in range(count)))
    return folder / "list.txt"


def draw_batch(batch: int, size: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (batch, channels, size, size) in 0..1, and ten targets per image."""
    images = torch.rand(batch, channels, size, size)
    targets = torch.rand(10 * batch, 6) * torch.tensor([batch, 20, 1, 1, 0.4, 0.4])
    targets[:, :2].floor_()
    return images, targets


def plain_step(
    cfg: str, size: int, batch: int, device: str = "cpu", half: torch.dtype | None = None
) -> Callable:
    """An iteration of a plain port: forward, loss, backward, SGD.  half: of autocast."""
    model = plain_port(seeded_network(cfg, size)).train().to(device)
    loss = yolov4.DarknetLoss(model.heads, model.net)
    optimiser = torch.optim.SGD(model.parameters(), 1e-5, 0.9, weight_decay=5e-4)
    images, targets = draw_batch(batch, size, model.net.channels)
    images = images.to(device)

    def step():
        optimiser.zero_grad()
        with torch.autocast(device, half, enabled=half is not None):
            logits = model(images)
        loss(logits, targets).total.backward()
        optimiser.step()

    return step


def eager(cfg: str, size: int, batch: int, repeats: int, answer) -> None:
    """Seconds per iteration and GiB of a plain port."""
    seconds = medians({"step": plain_step(cfg, size, batch)}, repeats)["step"]
    answer.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def main() -> None:
    arguments = parse_arguments()
    net = yolov4.read_cfg(arguments.cfg)
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = draw_pictures(folder, 1)
        (folder / "x.names").write_text("".join(f"{n}\n" for n in range(net.sections[-1].classes)))
        (folder / "x.data").write_text(f"train={drawn}\nnames={folder}/x.names\n")
        text = Path(arguments.cfg).read_text().replace("random=1", "random=0")  # as the port
        (folder / "x.cfg").write_text(text)
        size, batch = arguments.size, arguments.batch
        common = f"--width {size} --height {size} --workers 0 --save-every 1000000".split()
        step = f"--data {folder}/x.data --cfg {folder}/x.cfg --batch {batch} --subdivisions 1 "
        step += f"--clear --max-batches {arguments.repeats + 1} --learning-rate 1e-9"
        for turn in range(arguments.rounds):
            for label, flags in (("train.py", []), ("train.py --amp bf16", ["--amp", "bf16"])):
                rows, peak = train(folder / f"{label}{turn}", *step.split(), *common, *flags)
                # without the wait for data, which is the data's own row
                seconds = [
                    arguments.batch / row["images_per_second"] * (1 - row["data_share"])
                    for row in rows[1:]
                ]
                found.setdefault(label, []).append((statistics.median(seconds), peak))
            context = multiprocessing.get_context("spawn")
            answer = context.Queue()
            context.Process(
                target=eager,
                args=(arguments.cfg, arguments.size, arguments.batch, arguments.repeats, answer),
            ).start()
            found.setdefault("a plain port", []).append(answer.get())
        print(machine())
        seconds = {label: statistics.median(s for s, _ in each) for label, each in found.items()}
        rows = []
        for label, each in found.items():
            rounds, peak = " ".join(f"{s:.2f}" for s, _ in each), max(peak for _, peak in each)
            rate = f"{arguments.batch / seconds[label]:.2f}"
            ratio = f"{seconds['a plain port'] / seconds[label]:.2f}"
            rows.append((label, f"{seconds[label]:.2f}", rounds, rate, ratio, f"{peak:.1f}"))
        print(f"{arguments.cfg} at {size}, {batch} images per iteration")
        print(table(("", "s", "rounds", "images/s", "of a plain port", "peak GiB"), rows))
        print(data_table(folder, arguments, common))


def data_table(folder: Path, arguments: argparse.Namespace, common: list[str]) -> str:
    """Samples/s of one process: a network of one layer waits for mosaics."""
    source = Path(arguments.images).resolve() if arguments.images else folder / "list.txt"
    (folder / "y.names").write_text("".join(f"{n}\n" for n in range(20)))
    (folder / "y.data").write_text(f"train={source}\nnames={folder}/y.names\n")
    recipe = "hue=.1\nsaturation=1.5\nexposure=1.5\nmosaic=1\nlearning_rate=1e-9\n"
    (folder / "y.cfg").write_text(f"[net]\nbatch=16\nwidth=416\nheight=416\n{recipe}{HEAD}")
    count = str(max(arguments.samples // 16, 3))
    flags = ["--data", f"{folder}/y.data", "--cfg", f"{folder}/y.cfg", "--max-batches", count]
    rows = []
    for label, cache in (("samples with mosaic", []), ("with --cache 1", ["--cache", "1"])):
        results, _ = train(folder / label, *flags, *common, *cache)
        waiting = [
            16 / row["images_per_second"] * row["data_share"]
            for row in results[len(results) // 3 :]
        ]
        rows.append((label, f"{16 / statistics.median(waiting):.0f}"))
    return "\n" + table(("one process", "a second"), rows)


if __name__ == "__main__":
    main()
