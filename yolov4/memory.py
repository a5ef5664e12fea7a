"""Memory that a step frees stays with the process for the next: on a CPU a fresh page costs a fault.
Source: glibc's mallopt(3)."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
INT_MAX = 2**31 - 1


def keep_freed_memory() -> None:
    """From here on this process gives nothing back to a Linux system before it ends; elsewhere nothing changes.
    The memory it holds is then the most that it ever needed.  For scripts: it concerns the whole process."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, INT_MAX)
