"""Hostile files by the thousand: `python tests/fuzz.py --cases 20000 --seed 0`.
Each case ends in success or in a one-line ValueError or OSError that names the file; all else is a
bug.  KINDS: file suffix, what makes the bytes, what the package does with such a file."""

import argparse
import io
import json
import pickle
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from yolov4.cfg import format_cfg, parse_cfg, read_cfg, read_data, read_names
from yolov4.data import TrainingSet, inspect, load_image, read_image_list, read_labels
from yolov4.detector import letterbox_image, resize_image
from yolov4.graph import find_heads, plan_layers
from yolov4.labels import convert, read_annotation
from yolov4.loss import DarknetLoss
from yolov4.model import Darknet
from yolov4.weights import load_network, load_weights

SLOWEST, MEMORY = 5.0, 1.5e9  # CPU seconds of a case; bytes of the process above its start
TINY = """[net] batch=2 width=32 height=32 mosaic=1
[convolutional] batch_normalize=1 filters=4 size=3 stride=32 pad=1 activation=leaky
[convolutional] filters=14 activation=linear
[yolo] mask=0,1 anchors=8,8,16,16 num=2 classes=2 jitter=.3 resize=1.5
""".replace(" ", "\n")
TEXTS = [*[TINY] * 3, *(path.read_text() for path in sorted((ROOT / "cfg").glob("*.cfg")))]
PLAIN = "0|-1|1|3|32|1000000000|-1000000000|1e9|nan|inf|-inf|1e400|0.5|1e-30|| |x|0x10|1,2,3|1_0"
NUMBERS = [*PLAIN.split("|"), "\u0663", "9" * 400, "0 " * 99]
TOKENS = [*'\0\n\r\x85\u2028[]=#;,/\\{}<>&"\ufeff\ud7ff', "..", "[net]", "[yolo]"]
TOKENS += ["a" * 5000, "[" * 3000]


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut, doubled, removed, inserted."""
    content = bytearray(content)
    for _ in range(rng.choice((0, 1, 1, 2, 5, 20))):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 4, 30))
        match rng.randrange(6):
            case 0 if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                del content[at:]
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length] * rng.choice((1, 2, 50))
            case 4:
                content[at:at] = rng.randbytes(length)
            case 5:
                content[at:at] = rng.choice(NUMBERS + TOKENS).encode()
    return bytes(content)


def text_file(rng: random.Random, text: str) -> bytes:
    """The text with some of its numbers changed, in some encoding, some bytes mutated."""
    if rng.random() < 0.5:
        share, number = rng.choice((0.01, 0.05, 0.3)), r"(?<![\w.])-?\d+(\.\d+)?"
        text = re.sub(number, lambda m: rng.choice(NUMBERS) if rng.random() < share else m[0], text)
    encoding = rng.choices(("utf-8", "utf-8-sig", "utf-16", "latin-1"), (20, 1, 1, 1))[0]
    content = text.encode(encoding, "replace")
    return mutated(rng, content) if rng.random() < 0.3 else content


@cache
def tiny() -> Darknet:
    return Darknet(parse_cfg(TINY), torch.Generator().manual_seed(1))


def make_cfg(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return text_file(rng, rng.choice(TEXTS))
    keys = ["size", "stride", "pad", "padding", "groups", "dilation", "filters", "batch_normalize"]
    required = {"route": "layers=-1", "shortcut": "from=-2", "yolo": "anchors=8,8"}
    small = [-1, -2, 0, 1, 1, 2, 3, 4, 8, 32, 1000000000]
    text = f"[net]\nwidth={rng.choice((32, 8, 64, 1, 1000000000))}\nheight=32\nchannels=3\n"
    for _ in range(rng.randrange(1, 8)):
        kind = rng.choice(("convolutional", "maxpool", "upsample", "dropout", *required))
        known = keys[: {"convolutional": 8, "maxpool": 4}.get(kind, 0)]
        lines = [f"{key}={rng.choice(small)}" for key in known if rng.random() < 0.4]
        text += "\n".join([f"[{kind}]", required.get(kind, ""), *lines, ""])
    return text.encode()


def read_a_cfg(path: Path, rng: random.Random) -> None:
    """Parsed, written and parsed again, planned, and where it is small run."""
    network = read_cfg(path)
    again = parse_cfg(format_cfg(network.net, network.sections))
    assert (again.net, again.sections) == (network.net, network.sections), "changed by a round trip"
    layers = plan_layers(network)
    heads = find_heads(network, layers)
    values = sum(int(np.prod(layer.output_shape)) + layer.parameters for layer in layers)
    if values > 2e6 or sum(layer.flops for layer in layers) > 1e9:
        return
    net, targets = network.net, torch.tensor([[0, 0, 0.5, 0.5, 0.2, 0.2]])
    logits = Darknet(network)(torch.zeros(2, net.channels, net.height, net.width))
    if heads:
        DarknetLoss(heads, net)(logits, targets).total.backward()


def make_weights(rng: random.Random) -> bytes:
    tensors = (v.numpy().ravel() for v in tiny().state_dict().values() if v.is_floating_point())
    header = struct.pack("<iiiq", 0, 2, 5, rng.choice((0, 640, -1, 1 << 62)))
    return mutated(rng, header + np.concatenate([*tensors]).astype("<f4").tobytes())


def read_weights(path: Path, rng: random.Random) -> None:
    model = Darknet(tiny().network)
    load_weights(model, path)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def make_labels(rng: random.Random) -> bytes:
    values = ["0", "1", "0.5", "1e-9", "1.5", "-0.2", "1e9", "0.999999"]
    rows = (" ".join(["0", *rng.choices(values, k=4)]) for _ in range(rng.choice((1, 2, 300))))
    return text_file(rng, "1 .5 .5 .2 .2\n0 0.1 0.9 1 1\n" + rng.choice(("", "\n".join(rows))))


def read_some_labels(path: Path, rng: random.Random) -> None:
    assert np.isfinite(read_labels(path)).all()
    picture = path.with_suffix(".png")
    if not picture.exists():
        cv2.imwrite(str(picture), np.full((40, 60, 3), 99, np.uint8))
    train_on(picture, rng)


def train_on(picture: Path, rng: random.Random) -> None:
    model, index = tiny(), rng.randrange(1 << 30)
    image, boxes, *_ = TrainingSet([picture], model.net, model.heads[-1], 0)[index, (32, 32)]
    targets = torch.cat((torch.zeros(len(boxes), 1), boxes), 1)
    logits = model(image[None].expand(2, -1, -1, -1).float() / 255)
    assert DarknetLoss(model.heads, model.net)(logits, targets).total.isfinite()


def make_xml(rng: random.Random) -> bytes:
    box = "<xmin>3</xmin><ymin>4</ymin><xmax>50</xmax><ymax>60</ymax>"
    item = f"<object><name>cat</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
    size = "<size><width>100</width><height>80</height></size>"
    text = f"<annotation>{size}{item * rng.choice((1, 3))}</annotation>"
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    head = rng.choice([
        *[""] * 10, *(f'<?xml version="1.0" encoding="{e}"?>' for e in ("klingon", "utf-7")),
        f'<!DOCTYPE a [<!ENTITY e0 "ha">{entities}]>',
        '<!DOCTYPE a [<!ENTITY e11 SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE a [<!ENTITY e11 "grown">]>',
        '<!DOCTYPE a SYSTEM "http://localhost:9/x.dtd">',
    ])  # fmt: skip
    if head.startswith("<!DOCTYPE a ["):
        text = text.replace("cat", "&e11;")
    return text_file(rng, head + ("<a>" * 100000 if rng.random() < 0.02 else "") + text)


def read_xml(path: Path, rng: random.Random) -> None:
    _, objects = read_annotation(path)
    assert np.isfinite([box for _, _, box in objects]).all()
    assert all(name != "grown" for name, _, _ in objects), "an entity was expanded"


def make_coco(rng: random.Random) -> bytes:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 9], "area": 72}
    image = {"id": 1, "file_name": "1.jpg", "width": 32, "height": 32}
    category = {"id": 1, "name": "person"}
    dataset = {"images": [image], "annotations": [annotation], "categories": [category]}
    strange = [None, [], {}, "x", -1, 1e308, float("nan"), 10**400, True, [1, 2, "3", 4], 1 << 70]
    for part in (annotation, image, category, dataset):
        for key in list(part):
            if rng.random() < 0.08:
                part[key] = rng.choice(strange)
            elif rng.random() < 0.04:
                del part[key]
    text = json.dumps(rng.choice([dataset] * 20 + strange))
    return text_file(rng, "[" * 200000 if rng.random() < 0.01 else text)


def read_coco(path: Path, rng: random.Random) -> None:
    (path.parent / "1.jpg").touch()
    convert([path], path.parent / "labelled")
    for labels in (path.parent / "labelled").rglob("labels/*.txt"):
        assert np.isfinite(read_labels(labels)).all()


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims more than it holds."""

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for body in (b"IHDR" + head, b"IDAT" + zlib.compress(bytes(999)), b"IEND"):
        content += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content


@cache
def images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 4), np.uint8)
    good = [(end, pixels[..., :3]) for end in (".jpg", ".png", ".bmp", ".webp", ".tiff")]
    deep, flat = pixels[..., :3].astype(np.uint16) * 257, np.zeros((1, 20000, 3), np.uint8)
    good += [(".png", array) for array in (pixels, pixels[..., 0], deep, flat)]
    bad = [png(60000, 60000), png(16000, 16000), png(1 << 31, 1), png(0, 0), b"BM" + b"\xff" * 60]
    bad += [b"", b"GIF89a", b"\x76\x2f\x31\x01" + bytes(99), b"P6\n100000 100000\n255\n"]
    return [*(cv2.imencode(*each)[1].tobytes() for each in good), *bad]


def make_image(rng: random.Random) -> bytes:
    content = rng.choice(images())
    return mutated(rng, content) if rng.random() < 0.7 else content


def read_image(path: Path, rng: random.Random) -> None:
    picture = load_image(path)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    for fit in (resize_image, letterbox_image):
        assert fit(picture, (32, 32)).isfinite().all()
    train_on(path, rng)


class Canary:
    """Pickled, it runs code where it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("canary"),)


def make_checkpoint(rng: random.Random) -> bytes:
    state = {"cfg": TINY, "names": ["a", "b"], "ema": None, "iteration": 3, "seen": 6}
    state["model"], kind, buffer = tiny().state_dict(), rng.random(), io.BytesIO()
    if kind < 0.9:
        if kind > 0.7:
            strange = (None, 3, "x", [], {}, {"layers.0.0.weight": 3}, {1: torch.zeros(1)})
            state[rng.choice(list(state))] = rng.choice(strange)
        torch.save(state, buffer)
        return mutated(rng, buffer.getvalue()) if kind < 0.7 else buffer.getvalue()
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        code = pickle.dumps({"cfg": Canary()}, 2)
        archive.writestr("archive/data.pkl", code if kind < 0.95 else bytes(20_000_000))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def read_checkpoint(path: Path, rng: random.Random) -> None:
    """No code runs, and what is loaded is what was saved."""
    try:
        model, _ = load_network(path)
    finally:
        if Path("canary").exists():
            Path("canary").unlink()
            raise AssertionError("code in the checkpoint was run")
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, tiny().state_dict()[key]), f"{key} is not what was saved"


DATA = "classes = 2\ntrain = train.txt\nvalid = valid.txt\nnames = x.names\nbackup = backup/\n"
LIST = "images/1.jpg\n/data/2 b.png\n./3.jpg\nC:\\x\\4.jpg\n"
KINDS = {
    "cfg": (".cfg", make_cfg, read_a_cfg),
    "weights": (".weights", make_weights, read_weights),
    "data": (".data", lambda rng: text_file(rng, DATA), lambda p, _: read_data(p)),
    "names": (".names", lambda rng: text_file(rng, "cat\ndog\n"), lambda p, _: read_names(p)),
    "list": (".list", lambda rng: text_file(rng, LIST + rng.choice(("", ".\n", "/\n", "..\n"))),
             lambda path, _: inspect(read_image_list(path), ["a", "b"], (32, 32), path).lines()),
    "labels": (".txt", make_labels, read_some_labels),
    "image": (".png", make_image, read_image),
    "xml": (".xml", make_xml, read_xml),
    "coco": (".json", make_coco, read_coco),
    "checkpoint": (".pt", make_checkpoint, read_checkpoint),
}  # fmt: skip


def wrong_error(error: Exception, path: Path) -> str:
    """What is wrong with an error; empty where it is as it should be."""
    text = str(error)
    if not isinstance(error, ValueError | OSError):
        return f"{type(error).__name__}, expected ValueError or OSError"
    if len(text.splitlines()) != 1 or len(text) > 700:
        return f"{len(text.splitlines())} lines of {len(text)} characters, expected one line"
    named = str(path.parent) in text or isinstance(error, OSError)
    return "" if named else "does not name the file"


def run_case(kind: str, seed: str, folder: Path) -> tuple[str, str]:
    """One case -> ("success", "refused" or "BUG", what went wrong)."""
    rng = random.Random(f"{kind} {seed}")
    suffix, make, read = KINDS[kind]
    path = folder / f"case{suffix}"
    path.write_bytes(make(rng))
    start, outcome, wrong = time.process_time(), "success", ""
    try:
        read(path, rng)
    except Exception as error:
        outcome = "refused"
        if wrong := wrong_error(error, path):
            trace = "".join(traceback.format_tb(error.__traceback__)[-3:])
            wrong += f": {str(error)[:300]!r}\n{trace}"
    if (seconds := time.process_time() - start) > SLOWEST:
        wrong += f" took {seconds:.1f} s, expected at most {SLOWEST:g}"
    return ("BUG", wrong) if wrong else (outcome, "")


def peak() -> int:
    """The largest resident set so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(cases: int, seed: int, kinds: list[str]) -> tuple[Counter, list[str]]:
    """Runs cases of each kind in turn -> counts of (kind, outcome), a text for each bug."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # or threads that wait for each other count as slow
    counts, bugs, before = Counter(), [], peak()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(cases):
            kind = kinds[number % len(kinds)]
            outcome, wrong = run_case(kind, f"{seed} {number}", Path(folder))
            counts[kind, outcome] += 1
            if peak() - before > MEMORY:
                wrong, before = f"memory grew by {(peak() - before) / 1e9:.2f} GB", peak()
            if wrong:
                bugs.append(f"{kind}, --seed {seed} case {number}: {wrong}")
    torch.set_num_threads(threads)
    return counts, bugs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    arguments = parser.parse_args()
    counts, bugs = fuzz(arguments.cases, arguments.seed, arguments.kinds)
    for kind in arguments.kinds:
        print(f"{kind:12}", *(f"{counts[kind, o]:>7} {o}" for o in ("success", "refused", "BUG")))
    print("\n".join(bugs[:20]))
    all_of = {o: sum(counts[kind, o] for kind in arguments.kinds) for o in ("success", "refused")}
    print(
        f"{all_of['success']:,} read, {all_of['refused']:,} refused in one line, {len(bugs)} bugs"
    )
    sys.exit(len(bugs) > 0)


if __name__ == "__main__":
    main()
