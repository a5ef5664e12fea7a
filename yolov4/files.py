"""Files: atomic writes, bounded text, paths that files name, downloads that resume, are checked.
Source: curl(1); addresses from Darknet's README, sizes computed from its cfgs."""

import codecs
import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

MAX_TEXT = 1 << 28  # bytes of a cfg, list, label, XML or JSON file
IMAGES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
PROTECTED = *IMAGES, *VIDEOS, ".cfg", ".data", ".names"
FORCE = ContextVar("FORCE", default=False)  # whether `foreign` files are replaced too
# real paths of a command: whether it read them before it wrote them; None: no record is kept
READ = ContextVar("READ", default=None)
WRITTEN = "# Written by: python -m yolov4"  # begins our .cfg and .data
MARK = b"\0\0\0\x0efreeyolov4"  # ends our pictures and videos; decoders pass over such a box
# \r moves the progress bar, alone at an end of what is written
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]|(?!\A)\r(?!\Z)")
FOREIGN = "is read here or written by others; --force replaces it"
HERE = Path(__file__).resolve().parent
# cfgs, recipes, .data and .names of the project: in the package, or beside it in a checkout
CONFIGS = next(filter(Path.is_dir, (HERE / "configs", HERE.parent / "cfg")))


@contextlib.contextmanager
def replacing(path, keep=None):
    """Gives a path beside `path` to write to; when the block ends well, it replaces `path`.

    keep: path for the file that was there before.  Raises OSError with the path (disk full, no
    permission); `path` is then as it was."""
    path = Path(path)
    # of this writer alone; `RunFolder` removes those of killed ones
    beside = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb+") as file:
            if path.suffix.lower() in IMAGES:
                file.seek(0, os.SEEK_END)
                file.write(MARK)
                file.flush()
            os.fsync(file.fileno())
        if foreign(path) and not (
            (_is_marked(path) and _is_marked(beside))  # a cfg of ours changed in its place
            or beside.read_bytes().endswith(path.read_bytes())
        ):
            raise OSError(errno.EEXIST, FOREIGN)
        if keep and path.exists():  # a second link: at no moment is there no `path`
            Path(keep).unlink(missing_ok=True)
            try:
                os.link(path, keep)
            except OSError:  # a file system without links
                shutil.copyfile(path, keep)
        os.replace(beside, path)
        if (read := READ.get()) is not None:
            read[os.path.realpath(path)] = False
        with contextlib.suppress(OSError):  # Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the rename itself
            os.close(folder)
    except OSError as error:
        reason = f"could not be written ({error.strerror or error}); what was there before is kept"
        raise OSError(error.errno, reason, str(path)) from None
    finally:
        with contextlib.suppress(OSError):  # a read-only folder has raised already
            beside.unlink(missing_ok=True)


def regular(path):
    """The path.  Raises ValueError for a FIFO, a device or a folder: reading may never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: is no regular file, expected one")
    if (read := READ.get()) is not None:
        read.setdefault(os.path.realpath(path), True)
    return Path(path)


def foreign(path):
    """Whether a file is there that this command reads; or a picture, video, .cfg, .data or .names
    that this package did not write, as a mark tells; that of a .names is in the .cfg or .data
    beside it.  Never with FORCE."""
    if FORCE.get() or not path.is_file():
        return False
    if (read := READ.get()) and read.get(os.path.realpath(path)):
        return True
    if path.suffix.lower() not in PROTECTED:
        return False
    suffixes = (".cfg", ".data") if path.suffix == ".names" else (path.suffix,)
    return not any(map(_is_marked, map(path.with_suffix, suffixes)))


def _is_marked(path):
    with contextlib.suppress(OSError), path.open("rb") as file:
        begin = file.read(len(WRITTEN))
        file.seek(-len(MARK), os.SEEK_END)
        return begin == WRITTEN.encode() or file.read() == MARK
    return False


def fresh(path, root):
    """The path, for a new file below the folder `root`, which is made; what is there goes, a link
    too.  Raises ValueError for what is `foreign` and for a folder that is a link out of root."""
    folder = os.path.realpath(path.parent)
    if not Path(folder).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"{path.parent}: leads to {folder}, expected a folder in {root}")
    if foreign(path):
        raise ValueError(f"{path}: {FOREIGN}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def read_bounded(path, most=MAX_TEXT):
    """Bytes of a regular file.  Raises ValueError for more than `most`."""
    with regular(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path}: has more than {most:,} bytes, expected a text file")
    return content


def read_text(path):
    """Text of a file in UTF-8 or UTF-16 with a byte order mark, UTF-8 or Latin-1 without one.
    Raises ValueError for bytes that are no text and for more than MAX_TEXT."""
    content = read_bounded(path)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if "\0" in text:
        raise ValueError(f"{path}: is not text: a zero byte at {content.index(0)}")
    return text


def read_lines(path):
    """The lines of a text file that are not blank, without spaces around."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def finite(value):
    """Plain values with None for NaN and infinities, which JSON does not have."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def locate(path, source):
    """Where a path that is written in the file `source` leads: from the folder of the file, from
    the current one, from the folder above; else without its first parts, since exports are unpacked
    anywhere.  The path itself if nothing is there."""
    folder = Path(source).parent

    def places(name):
        name = Path(name.replace("\\", "/"))
        yield from (folder / name, name, folder.absolute().parent / name)
        yield from (folder.joinpath(*name.parts[n:]) for n in range(1, len(name.parts)))

    raw = os.fsdecode(path.encode("latin-1", "replace"))  # as `read_text` takes what is no UTF-8
    there = filter(os.path.exists, chain(places(path), places(raw)))
    return next(there, Path(path.replace("\\", "/")))


@contextlib.contextmanager
def utf8_path(path):
    """The path as text for OpenCV, which others crash; a link where its name is no UTF-8."""
    name = str(path)
    if name == name.encode(errors="replace").decode():
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, f"link{Path(path).suffix}")
        link.symlink_to(os.path.abspath(path))
        yield str(link)


def printable(text):
    """The text with bytes that are no UTF-8 and control characters as escapes."""
    return UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]) & 255:02x}", text)


def own_file(path, suffix):
    """The path if there is such a file, else the project's own file of that name, if any:
    `yolov4-tiny`, `cfg/voc.data`."""
    own = CONFIGS / (Path(path).name.removesuffix(suffix) + suffix)
    return Path(path if os.path.isfile(path) or not own.is_file() else own)


class Remote(NamedTuple):
    """A file to download: its address and mirrors, its bytes, and its checksum where known."""

    urls: tuple[str, ...]
    size: int
    md5: str = ""

    def by_hand(self, path):
        """The command for a shell."""
        place = shlex.quote(str(path))
        return f"  curl -L --create-dirs -o {place} {self.urls[0]}   # {self.size} bytes"


RELEASES = "https://github.com/AlexeyAB/darknet/releases/download"
PRETRAINED = {  # no checksums of these are published
    name: Remote((f"{RELEASES}/{folder}/{name}",), size)
    for name, folder, size in (
        ("yolov4.conv.137", "darknet_yolo_v3_optimal", 170_038_676),
        ("yolov4-tiny.conv.29", "darknet_yolo_v4_pre", 19_789_716),
        ("yolov4-csp.conv.142", "darknet_yolo_v4_pre", 146_548_116),
        ("yolov4.weights", "darknet_yolo_v3_optimal", 257_717_640),
        ("yolov4-tiny.weights", "darknet_yolo_v4_pre", 24_251_276),
        ("yolov4-csp.weights", "darknet_yolo_v4_pre", 211_944_840),
    )
}


def pretrained(weights, wanted):
    """Downloads the file if it is one of PRETRAINED, missing, and wanted; returns what else to do,
    or nothing."""
    remote = PRETRAINED.get(Path(weights or "").name)
    if not remote or Path(weights).exists():
        return ""
    several = "WORLD_SIZE" in os.environ  # processes, which must not download one file at once
    if wanted and not several:
        download(remote, weights)
        return ""
    how = "download it first without torchrun" if several else "--download downloads it"
    return f"{weights} is missing: {how}, or by hand\n{remote.by_hand(weights)}"


def download(remote: Remote, path: str | Path) -> Path:
    """Downloads a file with curl unless it is there; `path`.part keeps what came for the next call.

    Raises ValueError, which ends with the command to do it by hand, if no mirror gives the file or
    if `path` is another one."""
    path, failures = Path(path), []
    if path.exists():
        if wrong := _difference(path, remote):
            raise ValueError(f"{path}: {wrong}; remove it to download it")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if part.is_symlink():  # curl would write to where it leads
        part.unlink()
    command = "curl", "-fL", "--proto", "=http,https", "--retry", "5", "--speed-time", "30"
    command += "--max-filesize", str(remote.size), "--continue-at", "-", "-o", part
    for url in remote.urls if shutil.which("curl") else ():
        code, had = 1, -1
        while code and had < _size(part) < remote.size:  # again as long as something comes
            had = _size(part)
            code = subprocess.run([*command, url], check=False).returncode
        wrong = _difference(part, remote)
        if not wrong:
            os.replace(part, path)
            return path
        failures.append(f"{url}: curl exit code {code}, {wrong}")
        if code == 0 or _size(part) >= remote.size:  # complete, but another file: a web page
            part.unlink()
    reason = "; ".join(failures) or "found no curl, expected it installed"
    raise ValueError(f"{path}: {reason}; by hand:\n{remote.by_hand(path)}")


def _difference(path, remote):
    """What is wrong with a file, or nothing."""
    if _size(path) != remote.size:
        return f"found {_size(path):,} bytes, expected {remote.size:,}"
    if remote.md5:
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != remote.md5:
            return f"found MD5 {digest.hexdigest()}, expected {remote.md5}"
    return ""


def _size(path):
    return path.stat().st_size if path.exists() else 0
