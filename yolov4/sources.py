"""What detect.py is pointed at: pictures, folders, lists, globs, videos, cameras.
No source: Darknet takes one picture, a list on stdin, or a video by another command."""

from pathlib import Path
from urllib.parse import urlsplit

from yolov4.data import read_image_list

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def expand(source: str) -> list[str]:
    """A folder, a list or a glob -> its files, in order; whatever else stays as it is.  Raises ValueError for none."""
    path = Path(source)
    if path.is_dir():
        found = [str(each) for each in path.iterdir() if each.suffix.lower() in PICTURES + VIDEOS]
    elif path.suffix.lower() == ".txt" and "://" not in source:
        return [str(each) for each in read_image_list(path)]
    elif set(source) & set("*?[") and "://" not in source and not path.exists():
        root = Path(path.anchor)
        found = [str(each) for each in root.glob(str(path.relative_to(root)))]
    else:
        return [source]
    if not found:
        raise ValueError(f"{source}: found no picture and no video there, expected some")
    return sorted(found)


def is_stream(source: str) -> bool:
    """Whether it has frames: a camera's number, a video or an address of one."""
    return is_camera(source) or "://" in source or Path(source).suffix.lower() in VIDEOS


def is_camera(source: str) -> bool:
    return source.isdigit() and not Path(source).exists()


def is_live(source: str) -> bool:
    """Whether it may go on for ever: a camera, or an address that names no file of a known kind."""
    named = Path(urlsplit(source).path).suffix.lower() if "://" in source else ".mp4"
    return is_camera(source) or named not in PICTURES + VIDEOS
