"""Memory that is freed and soon needed again stays with the process: the system would clear every page of it anew.
Source: mallopt(3) of glibc."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 << 20  # bytes of what comes from the heap; glibc allows no more


def keep_freed_memory(kept: int = 64 << 20) -> None:
    """From now on up to `kept` bytes at the end of the heap are not given back.  Without glibc nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, kept)
