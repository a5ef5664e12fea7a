#!/usr/bin/env python3
"""Converts a .pt checkpoint to Darknet's .weights, with .cfg and .names beside it, and back."""

import argparse
import sys
from pathlib import Path

from yolov4.runs import is_checkpoint, network_files, one_line_errors, run_folder, run_settings

LIMIT = 5e-3  # OpenCV's convolutions round differently; wrong weights are off by far more


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", metavar="IN", help=".pt or .weights (default: the newest run's last.pt)")
    parser.add_argument("target", nargs="?", metavar="OUT", help=".weights or .pt (default: runs/NAME/NAME.weights)")
    parser.add_argument("--cfg", help="of a .weights file (default: the .cfg beside it)")
    parser.add_argument("--names", help="class names (default: those of the source)")
    parser.add_argument("--ema", action="store_true", help="take the running average of the weights")
    parser.add_argument("--upto", type=int, metavar="N", help="write only the first N layers, as yolov4.conv.137")
    parser.add_argument("--verify", nargs="?", const="", metavar="PICTURE",
                        help="read the result again, compare bytes, run a picture in OpenCV too")  # fmt: skip
    parser.add_argument("--runs", default="runs", help="where runs are kept (default %(default)s)")
    return parser.parse_args()


def convert(source: Path, target: Path, arguments: argparse.Namespace) -> Path | None:
    """Writes the target and what belongs beside it; returns the cfg beside a .weights file."""
    from yolov4.cfg import format_cfg, read_names
    from yolov4.checkpoint import load_checkpoint, load_network, save_checkpoint
    from yolov4.files import replacing
    from yolov4.weights import save_weights

    if target.suffix not in (".weights", ".pt") and arguments.upto is None:
        raise ValueError(f"{target}: ends in {target.suffix or 'nothing'}, expected .weights or .pt")
    if target.resolve() == source.resolve():
        raise ValueError(f"{target}: is the source itself, expected another file")
    if arguments.ema and not (is_checkpoint(source) and load_checkpoint(source)["ema"]):
        raise ValueError(f"{source}: holds no running average (EMA), expected a checkpoint of a run with one")
    files = network_files(str(source), arguments.cfg, arguments.names, arguments.runs)
    model, names = load_network(source, files.cfg, ema=arguments.ema)
    names = read_names(files.names) if files.names else names
    names = names or [str(number) for number in range(model.heads[-1].classes)]
    text = format_cfg(model.net, model.sections)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".pt":
        state = {"cfg": text, "names": names, "model": model.state_dict(), "ema": None, "seen": model.seen}
        state |= {"iteration": model.seen // model.net.batch, "version": model.weights_version}
        save_checkpoint(target, state)
        print(f"{target}: the network with cfg and names, {model.seen:,} images seen")
        return None
    save_weights(model, target, model.seen, arguments.upto)
    beside = {".cfg": text, ".names": "".join(f"{name}\n" for name in names)}
    for suffix, content in beside.items():
        with replacing(target.with_suffix(suffix)) as part:
            part.write_text(content, encoding="utf-8")
    layers = (
        f"the first {arguments.upto} of {len(model.plan)} layers" if arguments.upto else f"{len(model.plan)} layers"
    )
    print(f"{target}: {layers}, {model.seen:,} images seen; {target.stem}.cfg and {target.stem}.names beside it")
    return target.with_suffix(".cfg")


def verify(source: Path, cfg: Path, target: Path, picture: str, arguments: argparse.Namespace) -> None:
    import cv2

    from yolov4.checkpoint import load_network
    from yolov4.data import load_image
    from yolov4.predict import resize_image
    from yolov4.verify import check_bytes, opencv_difference

    files = network_files(str(source), arguments.cfg, arguments.names, arguments.runs)
    model, _ = load_network(source, files.cfg, ema=arguments.ema)
    print(check_bytes(cfg, target, model))
    if arguments.upto:
        return
    size = (model.net.width, model.net.height)
    images = resize_image(load_image(picture), size)[None] if picture else noise(size)
    difference = opencv_difference(cfg, target, images)
    where = f"OpenCV {cv2.__version__}: "
    if difference is None:
        print(where + "has no Darknet importer (OpenCV 5 dropped it); with opencv-python<5 --verify runs a picture too")
    elif difference > LIMIT:
        raise ValueError(
            f"{where}its predictions on {picture or 'noise'} differ by {difference:.3g}, expected below {LIMIT}"
        )
    else:
        print(f"{where}the largest difference of its boxes and objectness on {picture or 'noise'} is {difference:.2g}")


def noise(size: tuple[int, int]):
    import torch

    return torch.rand(1, 3, size[1], size[0], generator=torch.Generator().manual_seed(0))


def default_picture(source: Path) -> str:
    """The first validation picture of the run that the source is of, if it is of one."""
    if not (source.parent / "settings.json").exists():
        return ""
    from yolov4.data import read_image_list

    images = run_settings(source.parent).get("valid")
    return str(read_image_list(images)[0]) if images and Path(images).exists() else ""


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("cvt2darknet.py"):
        if arguments.source:
            source = Path(arguments.source)
            target = Path(arguments.target or source.with_suffix(".pt" if source.suffix == ".weights" else ".weights"))
        else:
            run = run_folder(arguments.runs, None)
            source, target = run / "last.pt", run / f"{run.name}.weights"
            print(f"taking the newest run: {source} -> {target}")
        cfg = convert(source, target, arguments)
        if arguments.verify is not None and cfg:
            verify(source, cfg, target, arguments.verify or default_picture(source), arguments)


if __name__ == "__main__":
    sys.exit(main())
