"""Freed memory stays: no page is asked of the system again.  Source: page faults that the system itself counts."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from yolov4.memory import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def pictures():
    return [np.ones(600_000, np.uint8) for _ in range(4)]
for _ in range(3):
    pictures()
before = faults()
for _ in range(20):
    pictures()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pictures_that_come_and_go_need_no_new_pages(root):
    def counted(*flags):
        command = [sys.executable, "-c", FAULTS, *flags]
        return int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)

    pages = 20 * 4 * 600_000 // 4096
    assert counted() > pages / 2 and counted("keep") < pages / 20
