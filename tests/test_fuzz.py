"""A slice of tests/fuzz.py, and the cruellest files by hand: before, each was an exception of
another kind, a wrong result, or memory without end."""

import time

import fuzz
import pytest

from yolov4.cfg import parse_cfg
from yolov4.graph import plan_layers


def write(path, content):
    path.write_bytes(bytes(content))
    return path


def test_hostile_files_end_in_success_or_in_one_line():
    counts, bugs = fuzz.fuzz(1000, 7, sorted(fuzz.KINDS))
    assert not bugs, "\n".join(bugs[:5])
    for kind in fuzz.KINDS:  # else it tests one side only
        assert counts[kind, "success"] and counts[kind, "refused"], kind


CONVOLUTION = "[net]\nwidth=64\nheight=64\n[convolutional]\nfilters=8\nsize=3\npad=1\nstride=2\n"


@pytest.mark.parametrize(("old", "new"), [
    ("filters=8", "filters=1000000000"), ("filters=8", "filters=0"), ("size=3", "size=-3"),
    ("width=64", "width=1000000000"), ("stride=2", "stride=0"), ("size=3", "size=1000000000"),
    ("pad=1", "padding=1000000000"), ("pad=1", "padding=-1"), ("pad=1", "pad=1\ndilation=100000"),
    ("stride=2\n", "stride=2\n" + "[upsample]\nstride=4096\n" * 4),
    ("stride=2\n", "stride=2\n[route]\nlayers=-1\ngroups=0\n"),
    ("stride=2\n", "stride=2\n[maxpool]\nsize=2\npadding=9\n"),
    ("stride=2\n", "stride=2\n" + "[route]\nlayers=-1,-1\n" * 300),
    ("stride=2\n", "stride=2\n" + "[dropout]\n" * 20000), ("width=64", "width=64\nmomentum=1e400"),
    ("width=64", "width=64\nlearning_rate=nan"),
    ("width=64", "width=32768\nheight=32768\nchannels=64"),
])  # fmt: skip
def test_a_cfg_that_asks_for_the_impossible_is_refused_before_it_allocates(old, new):
    start, memory = time.process_time(), fuzz.peak()
    with pytest.raises(ValueError, match=r"^x\.cfg") as caught:
        plan_layers(parse_cfg(CONVOLUTION.replace(old, new), "x.cfg"))
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
    assert time.process_time() - start < 2 and fuzz.peak() - memory < 1e8
