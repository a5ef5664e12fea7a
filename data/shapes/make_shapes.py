"""Small pictures of circles, squares and triangles with VOC annotations, to try everything in
minutes.  Then: `python train.py --data OUT --cfg shapes`."""

import argparse
from pathlib import Path

import cv2
import numpy as np

NAMES = ("circle", "square", "triangle")
OBJECT = """\t<object>
\t\t<name>{}</name>
\t\t<difficult>0</difficult>
\t\t<bndbox>
\t\t\t<xmin>{}</xmin>
\t\t\t<ymin>{}</ymin>
\t\t\t<xmax>{}</xmax>
\t\t\t<ymax>{}</ymax>
\t\t</bndbox>
\t</object>
"""
ANNOTATION = """<annotation>
\t<folder>JPEGImages</folder>
\t<filename>{}.jpg</filename>
\t<size>
\t\t<width>{}</width>
\t\t<height>{}</height>
\t\t<depth>3</depth>
\t</size>
{}</annotation>
"""


def draw_background(rng, width, height):
    """A gradient between two dim colours with noise, uint8 (height, width, 3)."""
    start, end = rng.uniform(20, 110, (2, 3))
    across = rng.random() < 0.5
    share = (
        np.linspace(0, 1, width)[:, None] if across else np.linspace(0, 1, height)[:, None, None]
    )
    picture = start + (end - start) * share + rng.normal(0, 8, (height, width, 3))
    return picture.clip(0, 255).astype(np.uint8)


def draw_shape(picture, kind, left, top, side, colour):
    """Draws a shape that fills the square of `side` pixels at (left, top)."""
    right, bottom, radius = left + side - 1, top + side - 1, 8 * (side - 1)
    if kind == "circle":  # in sixteenths of a pixel
        centre = 16 * left + radius, 16 * top + radius
        cv2.circle(picture, centre, radius, colour, cv2.FILLED, cv2.LINE_AA, 4)
    elif kind == "square":
        cv2.rectangle(picture, (left, top), (right, bottom), colour, cv2.FILLED)
    else:
        corners = np.array([[(left + right) // 2, top], [left, bottom], [right, bottom]])
        cv2.fillPoly(picture, [corners], colour, cv2.LINE_AA)


def place(rng, taken, width, height):
    """A (left, top, side) that shares at most a tenth of the smaller area with each of `taken`."""
    shorter = min(width, height)
    for _ in range(20):
        side = int(rng.integers(shorter // 6, shorter * 9 // 20))
        spot = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        for *other, length in taken:
            spans = [
                min(a + side, b + length) - max(a, b) for a, b in zip(spot, other, strict=True)
            ]
            if min(spans) > 0 and spans[0] * spans[1] / min(side, length) ** 2 > 0.1:
                break
        else:
            return *spot, side
    return None


def make_picture(rng, width, height):
    """A picture and its objects (name, xmin, ymin, xmax, ymax), in VOC's pixels from 1."""
    picture, taken, objects = draw_background(rng, width, height), [], []
    for _ in range(0 if rng.random() < 0.1 else int(rng.integers(1, 6))):
        spot = place(rng, taken, width, height)
        if spot is None:
            break
        left, top, side = spot
        hsv = np.uint8([[[rng.integers(180), rng.integers(120, 256), rng.integers(180, 256)]]])
        colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].tolist()
        name = NAMES[rng.integers(len(NAMES))]
        draw_shape(picture, name, *spot, colour)
        taken.append(spot)
        objects.append((name, left + 1, top + 1, left + side, top + side))
    return picture, objects


def make_shapes(out, images=300, seed=0, size=(160, 128)):
    """Writes `images` pictures in VOC layout into `out`, every fifth of them for validation."""
    sets = {"train": "", "val": ""}
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for index in range(images):
        picture, objects = make_picture(np.random.default_rng((seed, index)), *size)
        name = f"shapes_{index:05d}"
        encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        encoded.tofile(out / f"JPEGImages/{name}.jpg")
        text = ANNOTATION.format(name, *size, "".join(OBJECT.format(*item) for item in objects))
        (out / f"Annotations/{name}.xml").write_text(text)
        sets["val" if index % 5 == 4 else "train"] += f"{name}\n"
    for name, text in sets.items():
        (out / f"ImageSets/Main/{name}.txt").write_text(text)
    (out / "shapes.names").write_text("\n".join(NAMES) + "\n")


def main():
    parser = argparse.ArgumentParser(description="pictures of shapes with VOC annotations")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "VOCshapes")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    size = {"nargs": 2, "default": (160, 128), "metavar": ("WIDTH", "HEIGHT")}
    parser.add_argument("--size", type=int, **size)
    given = parser.parse_args()
    if given.images < 5 or min(given.size) < 48:
        found = f"found {given.images} images of {given.size}"
        parser.error(f"{found}, expected 5 of 48 x 48 or more")
    make_shapes(given.out, given.images, given.seed, tuple(given.size))
    print(f"{given.images} pictures in {given.out}")
    print(f"next: python train.py --data {given.out} --cfg shapes")


if __name__ == "__main__":
    main()
