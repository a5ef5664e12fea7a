"""Memory that is freed and soon needed again stays with the process: the system would clear every page of it anew.
Source: mallopt(3) of glibc, M_TOP_PAD."""

import ctypes
import sys

M_TOP_PAD = -2


def keep_freed_memory(kept: int = 64 << 20) -> None:
    """From now on up to `kept` bytes at the end of the heap are not given back.  Without glibc nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_TOP_PAD, kept)
