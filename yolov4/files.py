"""Files: atomic writes, bounded text, downloads that resume and are checked.
Source: curl(1); addresses from Darknet's README, sizes computed from its cfgs."""

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

MAX_TEXT = 1 << 28  # bytes of a cfg, list, label, XML or JSON file


@contextlib.contextmanager
def replacing(path, keep=None):
    """Gives a path beside `path` to write to; when the block ends well, it replaces `path`.

    keep: path for the file that was there before.  Raises OSError with the path (disk full, no
    permission); `path` is then as it was."""
    path = Path(path)
    beside = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        if keep and path.exists():  # a second link: at no moment is there no `path`
            Path(keep).unlink(missing_ok=True)
            try:
                os.link(path, keep)
            except OSError:  # a file system without links
                shutil.copyfile(path, keep)
        os.replace(beside, path)
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


def read_text(path, errors="strict"):
    """Text of a UTF-8 file, with or without a byte order mark.  Raises ValueError for other bytes
    and for more than MAX_TEXT."""
    with Path(path).open("rb") as file:  # not by its size: a device has none
        content = file.read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        raise ValueError(f"{path}: has more than {MAX_TEXT:,} bytes, expected a text file")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        found = f"byte {content[error.start]:#04x} at {error.start}"
        raise ValueError(f"{path}: is not text (UTF-8): {found}") from None


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
    )
}


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
    command = "curl", "-fL", "--retry", "5", "--speed-time", "30", "--continue-at", "-", "-o", part
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
