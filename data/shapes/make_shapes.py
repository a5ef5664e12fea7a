"""Makes small pictures of circles, squares and triangles with VOC annotations, to try everything in minutes.
Source: none; drawn here from a seed.  Then: `python data/voc0712/voc_label.py OUT --names OUT/shapes.names`.
"""

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
    along = np.linspace(0, 1, width)[None, :] if rng.random() < 0.5 else np.linspace(0, 1, height)[:, None]
    share = np.broadcast_to(along, (height, width))[..., None]
    picture = start + (end - start) * share + rng.normal(0, 8, (height, width, 3))
    return picture.clip(0, 255).astype(np.uint8)


def draw_shape(picture, kind, left, top, side, colour):
    """Draws a shape that fills the square of `side` pixels at (left, top)."""
    right, bottom = left + side - 1, top + side - 1
    if kind == "circle":
        centre = [16 * left + 8 * (side - 1), 16 * top + 8 * (side - 1)]  # sixteenths of a pixel
        cv2.circle(picture, centre, 8 * (side - 1), colour, cv2.FILLED, cv2.LINE_AA, 4)
    elif kind == "square":
        cv2.rectangle(picture, (left, top), (right, bottom), colour, cv2.FILLED)
    else:
        corners = np.array([[(left + right) // 2, top], [left, bottom], [right, bottom]])
        cv2.fillPoly(picture, [corners], colour, cv2.LINE_AA)


def overlap(start, length, other_start, other_length):
    """Pixels that two spans share."""
    return max(0, min(start + length, other_start + other_length) - max(start, other_start))


def place(rng, taken, width, height):
    """A free (left, top, side), sharing at most a tenth of the smaller area with each of `taken`; or None."""
    shorter = min(width, height)
    for _ in range(20):
        side = int(rng.integers(shorter // 6, shorter * 9 // 20))
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        shares = [overlap(left, side, x, s) * overlap(top, side, y, s) / min(side, s) ** 2 for x, y, s in taken]
        if max(shares, default=0) <= 0.1:
            return left, top, side
    return None


def make_picture(rng, width, height):
    """A picture and its objects (name, xmin, ymin, xmax, ymax), in pixels that count from 1 as VOC does."""
    picture, taken, objects = draw_background(rng, width, height), [], []
    count = 0 if rng.random() < 0.1 else int(rng.integers(1, 6))
    for _ in range(count):
        spot = place(rng, taken, width, height)
        if spot is None:
            break
        left, top, side = spot
        hsv = np.uint8([[[rng.integers(180), rng.integers(120, 256), rng.integers(180, 256)]]])
        name = NAMES[rng.integers(len(NAMES))]
        draw_shape(picture, name, left, top, side, cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].tolist())
        taken.append(spot)
        objects.append((name, left + 1, top + 1, left + side, top + side))
    return picture, objects


def make_shapes(out, images=300, seed=0, size=(160, 128)):
    """Writes `images` pictures in VOC layout into `out`, every fifth of them for validation."""
    folders = out / "JPEGImages", out / "Annotations", out / "ImageSets" / "Main"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    sets = {"train": [], "val": []}
    for index in range(images):
        picture, objects = make_picture(np.random.default_rng((seed, index)), *size)
        name = f"shapes_{index:05d}"
        encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        (folders[0] / f"{name}.jpg").write_bytes(encoded.tobytes())
        text = ANNOTATION.format(name, *size, "".join(OBJECT.format(*item) for item in objects))
        (folders[1] / f"{name}.xml").write_text(text, encoding="utf-8")
        sets["val" if index % 5 == 4 else "train"].append(name)
    for set_name, names in sets.items():
        (folders[2] / f"{set_name}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    (out / "shapes.names").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")


def main():
    """Reads the command line, writes the pictures and says what comes next."""
    parser = argparse.ArgumentParser(description="pictures of shapes with VOC annotations")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "VOCshapes")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 128), metavar=("WIDTH", "HEIGHT"))
    arguments = parser.parse_args()
    if arguments.images < 5 or min(arguments.size) < 48:
        parser.error(f"found {arguments.images} images of {arguments.size}, expected 5 of 48 x 48 or more")
    make_shapes(arguments.out, arguments.images, arguments.seed, tuple(arguments.size))
    names = arguments.out / "shapes.names"
    print(f"{arguments.images} pictures in {arguments.out}")
    print(f"next: python data/voc0712/voc_label.py {arguments.out} --names {names}")


if __name__ == "__main__":
    main()
