"""Files that are whole or not there: written beside their place, then renamed; text whose errors name the file.
No source: a kill in the middle of a write, a full disk and files of strangers are what it is for."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

MAX_TEXT = 1 << 28  # bytes of a cfg, list, label, XML or JSON file


@contextlib.contextmanager
def replacing(path: str | Path, keep: str | Path | None = None) -> Iterator[Path]:
    """Gives a path beside `path` to write to; when the block ends well, what was written takes the place of `path`.

    keep: where what was there before goes to.  Raises OSError with the path for a full disk and the like; then all is
    as it was.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        if keep and path.exists():
            _keep(path, Path(keep))
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            error.errno, f"could not be written ({reason}); what was there before is kept", str(path)
        ) from None
    finally:
        with contextlib.suppress(OSError):  # a folder that became read-only has its own error already
            beside.unlink(missing_ok=True)


def read_text(path: str | Path, errors: str = "strict") -> str:
    """Text of a file, UTF-8 with or without its mark.  Raises ValueError for other bytes and for more than MAX_TEXT."""
    with Path(path).open("rb") as file:  # not by its size: a device has none
        content = file.read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        raise ValueError(f"{path}: has more than {MAX_TEXT:,} bytes, expected a text file")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        found = f"byte {content[error.start]:#04x} at {error.start}"
        raise ValueError(f"{path}: is not text (UTF-8): {found}") from None


def _keep(path: Path, kept: Path) -> None:
    """A second name for the file, so that at no moment there is none of it; a copy where links are not known."""
    beside = kept.with_name(f".{kept.name}.part")
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:
        shutil.copyfile(path, beside)
    os.replace(beside, kept)


def _sync_folder(folder: Path) -> None:
    """The renaming itself has to reach the disk; not every system lets a folder be opened."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
