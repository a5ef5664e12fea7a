"""Hostile files: a corpus of good ones, mutated, and some made from nothing that are known to be cruel.
Each maker takes random.Random and returns the bytes of a file."""

import io
import json
import pickle
import random
import re
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from fuzz_readers import ROOT, TINY, saved

NUMBERS = ["0", "-1", "1", "2", "3", "7", "32", "255", "1000000000", "-1000000000", "1e9", "nan", "inf", "-inf",
           "1e400", "9" * 400, "0.5", "1e-30", "", " ", "x", "0x10", "1,2,3", "1_0", "\u0663", "0 " * 99]  # fmt: skip
TOKENS = ["\0", "\n", "\r", "\x85", "\u2028", "[", "]", "=", "#", ";", ",", "/", "..", "\\", "{", "}", "<", ">", "&",
          '"', "[net]", "[yolo]", "[route]", "a" * 5000, "[" * 3000, "\ufeff", "\ud7ff"]  # fmt: skip


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut, doubled, removed, put in."""
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


def with_values(rng: random.Random, text: str, split: str) -> str:
    """Some numbers of a text, as `split` finds them, become other ones."""
    share = rng.choice((0.01, 0.05, 0.3))
    return re.sub(split, lambda found: rng.choice(NUMBERS) if rng.random() < share else found[0], text)


def text_file(rng: random.Random, text: str) -> bytes:
    if rng.random() < 0.5:
        text = with_values(rng, text, r"(?<![\w.])-?\d+(\.\d+)?")
    content = text.encode(rng.choices(("utf-8", "utf-8-sig", "utf-16", "latin-1"), (20, 1, 1, 1))[0], "replace")
    return mutated(rng, content) if rng.random() < 0.3 else content


@cache
def corpus() -> list[str]:
    return [TINY, TINY, TINY, *(path.read_text() for path in sorted((ROOT / "cfg").glob("*.cfg")))]


SECTIONS = {
    "convolutional": ("batch_normalize", "filters", "size", "groups", "dilation", "stride", "pad", "padding"),
    "maxpool": ("size", "stride", "padding"), "route": ("layers", "groups", "group_id"), "shortcut": ("from",),
    "upsample": ("stride",), "dropout": ("probability",), "yolo": ("mask", "num", "classes", "anchors"),
}  # fmt: skip


def cfg(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.5:
        return text_file(rng, rng.choice(corpus()))
    if kind < 0.51:
        return ("[net]\nwidth=8\nheight=8\n" + "[route]\nlayers=-1,-1\n" * 20000).encode()
    small = ["-1", "-2", "0", "1", "1", "2", "3", "4", "8", "32", "1000000000", "65536"]
    lines = ["[net]", "width=" + rng.choice(("32", "8", "64", "1", "1000000000")), "height=32", "channels=3"]
    for _ in range(rng.randrange(1, 8)):
        section = rng.choice(list(SECTIONS))
        lines.append(f"[{section}]")
        required = {"route": "-1", "shortcut": "-2", "yolo": "8,8"}
        for key in SECTIONS[section]:
            if rng.random() < 0.5 or key in ("layers", "from", "anchors"):
                value = required.get(section, "1") if key in ("layers", "from", "anchors") else rng.choice(small)
                lines.append(f"{key}={value if rng.random() < 0.8 else rng.choice(small)}")
        if section in ("convolutional", "shortcut"):
            lines.append(f"activation={rng.choice(('leaky', 'mish', 'linear', 'logistic'))}")
    return "\n".join(lines).encode()


def weights(rng: random.Random) -> bytes:
    body = np.concatenate([v.numpy().ravel() for k, v in saved().items() if v.is_floating_point()]).astype("<f4")
    return mutated(rng, struct.pack("<iiiq", 0, 2, 5, rng.choice((0, 640, -1, 1 << 62))) + body.tobytes())


def data(rng: random.Random) -> bytes:
    return text_file(rng, "classes = 2\ntrain = train.txt\nvalid = valid.txt\nnames = x.names\nbackup = backup/\n")


def names(rng: random.Random) -> bytes:
    return text_file(rng, "cat\ndog\nfire hydrant\n")


def image_list(rng: random.Random) -> bytes:
    return text_file(
        rng, "images/1.jpg\n/data/2 b.png\n./3.jpg\nC:\\x\\4.jpg\n" + rng.choice(("", ".\n", "/\n", "..\n"))
    )


def labels(rng: random.Random) -> bytes:
    values = ["0", "1", "0.5", "1e-9", "1.5", "-0.2", "1e9", "0.999999"]
    rows = (" ".join(["0", *rng.choices(values, k=4)]) for _ in range(rng.choice((1, 2, 300))))
    return text_file(rng, "1 .5 .5 .2 .2\n0 0.1 0.9 1 1\n" + rng.choice(("", "\n".join(rows))))


def xml(rng: random.Random) -> bytes:
    edges = {"xmin": 3, "ymin": 4, "xmax": 50, "ymax": 60}
    box = "".join(f"<{key}>{value}</{key}>" for key, value in edges.items())
    item = f"<object><name>cat</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
    text = f"<annotation><size><width>100</width><height>80</height></size>{item * rng.choice((1, 3))}</annotation>"
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    head = rng.choices(
        ("", '<?xml version="1.0" encoding="klingon"?>', '<?xml version="1.0" encoding="utf-7"?>',
         f'<!DOCTYPE a [<!ENTITY e0 "ha">{entities}]>', '<!DOCTYPE a [<!ENTITY e11 SYSTEM "file:///etc/passwd">]>',
         '<!DOCTYPE a SYSTEM "http://localhost:9/x.dtd">'), (10, 1, 1, 1, 1, 1))[0]  # fmt: skip
    if head.startswith("<!DOCTYPE a ["):
        text = text.replace("cat", "&e11;")
    if rng.random() < 0.02:
        text = "<a>" * 100000 + text
    return text_file(rng, head + text)


def coco(rng: random.Random) -> bytes:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 9], "area": 72, "iscrowd": 0}
    image = {"id": 1, "file_name": "1.jpg", "width": 32, "height": 32}
    dataset = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "person"}]}
    strange = [None, [], {}, "x", -1, 1e308, float("nan"), 10**400, True, [1], [1, 2, "3", 4], 1 << 70]
    for part in (annotation, image, dataset["categories"][0], dataset):
        for key in list(part):
            if rng.random() < 0.08:
                part[key] = rng.choice(strange)
            elif rng.random() < 0.04:
                del part[key]
    text = json.dumps(rng.choice([dataset] * 20 + strange))
    return text_file(rng, "[" * 200000 if rng.random() < 0.01 else text)


def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose head says more than it holds."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")


@cache
def images() -> list[bytes]:
    """One of each kind; Pillow (matplotlib brings it) writes what OpenCV does not."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 4), np.uint8)
    encoded = [cv2.imencode(end, pixels[..., :3])[1].tobytes() for end in (".jpg", ".png", ".bmp", ".webp", ".tiff")]
    encoded += [cv2.imencode(".png", array)[1].tobytes() for array in (
        pixels, pixels[..., 0], pixels[..., :3].astype(np.uint16) * 257, pixels[:1, :1, :3],
        np.zeros((1, 20000, 3), np.uint8), np.zeros((20000, 1, 3), np.uint8))]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.fromarray(np.roll(pixels[..., :3], shift)) for shift in range(3)]
    for picture, options in (
        (frames[0].convert("CMYK"), {"format": "JPEG"}), (frames[0], {"format": "JPEG", "exif": exif}),
        (frames[0], {"format": "GIF", "save_all": True, "append_images": frames[1:]}),
        (frames[0].convert("L"), {"format": "JPEG"}), (frames[0].convert("P"), {"format": "PNG"}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        picture.save(buffer, **options)
        encoded.append(buffer.getvalue())
    return [*encoded, b"", b"GIF89a", b"\x76\x2f\x31\x01" + bytes(99), png(60000, 60000), png(16000, 16000),
            png(1 << 31, 1), png(0, 0), b"P6\n100000 100000\n255\n", b"P6\n-1 9\n255\n",
            b"BM" + b"\xff" * 60]  # fmt: skip


def image(rng: random.Random) -> bytes:
    content = rng.choice(images())
    return mutated(rng, content) if rng.random() < 0.7 else content


class Runs:
    """Pickled, it runs code where it is loaded."""

    def __init__(self, place: str):
        self.place = place

    def __reduce__(self):
        return Path.touch, (Path(self.place),)


@cache
def checkpoint_bytes() -> bytes:
    buffer = io.BytesIO()
    state = {"cfg": TINY, "names": ["a", "b"], "model": saved(), "ema": None, "iteration": 3, "seen": 6}
    torch.save(state, buffer)
    return buffer.getvalue()


def checkpoint(rng: random.Random) -> bytes:
    kind, buffer = rng.random(), io.BytesIO()
    if kind < 0.7:
        return mutated(rng, checkpoint_bytes())
    if kind < 0.9:
        state = {"cfg": TINY, "names": ["a", "b"], "model": saved(), "ema": None, "iteration": 3, "seen": 6}
        key = rng.choice(list(state))
        state[key] = rng.choice((None, 3, "x", [], {}, {"layers.0.0.weight": 3}, torch.zeros(2), {1: torch.zeros(1)}))
        torch.save(state, buffer)
        return buffer.getvalue()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        if kind < 0.95:
            archive.writestr("archive/data.pkl", pickle.dumps({"cfg": Runs("canary")}, 2))
            archive.writestr("archive/version", "3\n")
        else:
            archive.writestr("archive/data.pkl", bytes(20_000_000))
    return buffer.getvalue()


KINDS = {
    "cfg": (".cfg", cfg), "weights": (".weights", weights), "data": (".data", data), "names": (".names", names),
    "list": (".list", image_list), "labels": (".txt", labels), "image": (".png", image), "xml": (".xml", xml),
    "coco": (".json", coco), "checkpoint": (".pt", checkpoint),
}  # fmt: skip
