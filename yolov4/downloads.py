"""Files from the net: they go on where they broke off, and take their place only when they are whole.
Source: RFC 9110, section 14 (Range); addresses from Darknet's README, sizes worked out from the cfgs by plan.py."""

import contextlib
import hashlib
import http.client
import itertools
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

CHUNK = 1 << 18  # bytes
TIMEOUT = 30  # seconds without a byte
PAUSES = (0, 1, 2, 4, 8)  # seconds before the next try; from the first again whenever a try brought something


class DownloadError(ValueError):
    """The file could not be had; the last lines of the message bring it by hand."""


class Remote(NamedTuple):
    """A file that is known: where it lies (mirrors follow), its bytes, and its checksum where one is published."""

    urls: tuple[str, ...]
    size: int
    md5: str = ""

    def by_hand(self, path: str | Path) -> str:
        """The two lines for a shell."""
        place = shlex.quote(str(path))
        return f"  curl -L --create-dirs -o {place} {self.urls[0]}\n  wc -c {place}   # has to say {self.size}"


_RELEASES = "https://github.com/AlexeyAB/darknet/releases/download"
PRETRAINED = {  # no checksums of these are published
    "yolov4.conv.137": Remote((f"{_RELEASES}/darknet_yolo_v3_optimal/yolov4.conv.137",), 170_038_676),
    "yolov4-tiny.conv.29": Remote((f"{_RELEASES}/darknet_yolo_v4_pre/yolov4-tiny.conv.29",), 19_789_716),
    "yolov4-csp.conv.142": Remote((f"{_RELEASES}/darknet_yolo_v4_pre/yolov4-csp.conv.142",), 146_548_116),
}


def download(remote: Remote, path: str | Path) -> Path:
    """Brings a file to `path`, unless it is there.  What has come so far waits in `path`.part for the next call.

    Raises DownloadError, with the address, where no server gives the file or `path` holds another; OSError for a full
    disk and the like.
    """
    path, failures = Path(path), []
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(path.parent):
        if path.exists():
            if wrong := _difference(path, remote):
                raise DownloadError(f"{path}: {wrong}; remove it to download it")
            return path
        for url in remote.urls:
            try:
                _bring(url, part, remote)
            except DownloadError as error:
                failures.append(f"{url}: {error}")
            else:
                os.replace(part, path)
                return path
    raise DownloadError(f"{'; '.join(failures)}; by hand, and then the same command again:\n{remote.by_hand(path)}")


class _Cut(Exception):
    """What another try may mend."""


def _bring(url: str, part: Path, remote: Remote) -> None:
    """Fills `part`; once more from the first byte where what lay there was of another file."""
    resumed = _size(part) > 0
    _fill(url, part, remote.size)
    if wrong := _difference(part, remote):
        part.unlink()
        if not resumed:
            raise DownloadError(wrong)
        _bring(url, part, remote)


def _fill(url: str, part: Path, size: int) -> None:
    """Asks again as long as something comes; a server that brought nothing in this call is not asked twice."""
    most, pauses = _size(part), iter(())
    while _size(part) < size:
        try:
            _receive(url, part, size)
        except _Cut as cut:
            if _size(part) > most:
                most, pauses = _size(part), iter(PAUSES)
            pause = next(pauses, None)
            if pause is None:
                raise DownloadError(str(cut)) from None
            time.sleep(pause)


def _receive(url: str, part: Path, size: int) -> None:
    """One request: appends to `part`, or writes it anew where the server knows no Range."""
    with _answer(url, _size(part)) as response:
        start = _size(part) if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        chunks = _chunks(response)
        first = next(chunks, b"")
        _check_answer(response, first, start, size)
        try:
            with (
                part.open("ab" if start else "wb") as file,
                tqdm(total=size, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
            ):
                for chunk in itertools.chain((first,), chunks):
                    bar.update(file.write(chunk))
                    if file.tell() > size:
                        break
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = f"could not be written ({error.strerror}); what came is kept"
            raise OSError(error.errno, reason, str(part)) from None
    if _size(part) > size:
        part.unlink()
        raise DownloadError(f"sends more than the {size:,} bytes expected")
    if _size(part) < size:
        raise _Cut(f"the connection was cut at {_size(part):,} of {size:,} bytes, which are kept")


def _answer(url: str, start: int) -> http.client.HTTPResponse:
    """The response to a request for the bytes from `start` on, if the server can."""
    if not url.startswith(("https://", "http://")):
        raise DownloadError("expected an address that starts with https:// or http://")
    headers = {"User-Agent": "yolov4-darknet"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        kind = _Cut if error.code >= 500 else DownloadError
        raise kind(f"found HTTP {error.code} {error.reason}, expected the file") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"cannot be reached ({getattr(error, 'reason', error)})") from None


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes, to the end or to where the connection is cut: the length tells which."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        while chunk := response.read1(CHUNK):  # what has come so far is never held back
            yield chunk


def _check_answer(response: http.client.HTTPResponse, first: bytes, start: int, size: int) -> None:
    """Refuses what is not the file before a byte of it is written."""
    page = first.lstrip()[:9].lower().startswith((b"<!doctype", b"<html"))
    if response.headers.get_content_type() == "text/html" or (page and not start):
        raise DownloadError("found a web page (HTML), expected the file")
    length, span = response.headers["Content-Length"] or "", response.headers["Content-Range"] or ""
    if length.isdecimal() and start + int(length) != size:
        raise DownloadError(f"found a file of {start + int(length):,} bytes, expected {size:,}")
    if start and not span.startswith(f"bytes {start}-"):
        raise DownloadError(f"found the range {span!r}, expected bytes from {start}")


def _difference(path: Path, remote: Remote) -> str:
    """What is wrong with a file, or nothing."""
    if _size(path) != remote.size:
        return f"has {_size(path):,} bytes, expected {remote.size:,}"
    if not remote.md5:
        return ""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return "" if digest.hexdigest() == remote.md5 else f"has the MD5 {digest.hexdigest()}, expected {remote.md5}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits while another process downloads into the folder: torchrun starts train.py several times."""
    number = None
    with contextlib.suppress(ImportError, OSError):  # not every system can
        import fcntl

        number = os.open(folder, os.O_RDONLY)
        fcntl.flock(number, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if number is not None:
            os.close(number)
