"""A slice of tests/fuzz.py, and the cruellest files by hand: before, each was an exception of
another kind, a wrong result, or memory without end."""

import io
import pickle
import time
import zipfile

import fuzz
import pytest
import torch

from yolov4.cfg import parse_cfg, read_cfg
from yolov4.data import load_image, read_image_list, read_labels
from yolov4.graph import plan_layers
from yolov4.labels import read_annotation
from yolov4.weights import load_network


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
    start, memory = time.perf_counter(), fuzz.peak()
    with pytest.raises(ValueError, match=r"^x\.cfg") as caught:
        plan_layers(parse_cfg(CONVOLUTION.replace(old, new), "x.cfg"))
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
    assert time.perf_counter() - start < 2 and fuzz.peak() - memory < 1e8


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path):
    buffer, model = io.BytesIO(), fuzz.tiny()
    state = {"model": model.state_dict(), "ema": None, "iteration": 3, "seen": 6}
    torch.save({"cfg": fuzz.TINY, "names": ["a", "b"], **state}, buffer)
    content = bytearray(buffer.getvalue())
    load_network(write(tmp_path / "whole.pt", content))
    place = content.index(model.layers[0][0].weight.detach().numpy().tobytes())
    content[place + 5] ^= 4
    with pytest.raises(ValueError, match=r"flipped\.pt: .*checksum"):
        load_network(write(tmp_path / "flipped.pt", content))
    with pytest.raises(ValueError, match=r"short\.pt: "):
        load_network(write(tmp_path / "short.pt", content[: len(content) // 2]))


def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("bad.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(fuzz.Canary(), 2))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(ValueError, match=r"bad\.pt: "):
        load_network("bad.pt")
    assert not (tmp_path / "canary").exists()


def test_labels_beyond_float32_are_refused(tmp_path):
    for label in ("9" * 400 + " .5 .5 .1 .1", "0 1e39 .5 .1 .1", "99999999 1 1 1 1"):
        with pytest.raises(ValueError, match=r"a\.txt:1: "):
            read_labels(write(tmp_path / "a.txt", label.encode()))


def test_pictures_that_lie_about_their_size(tmp_path):
    for content in (fuzz.png(60000, 60000), b"\x76\x2f\x31\x01" + bytes(99), b"", b"no image"):
        with pytest.raises(ValueError, match=r"bad\.png"):
            load_image(write(tmp_path / "bad.png", content))
    for picture in fuzz.images()[:9]:
        assert load_image(write(tmp_path / "good.png", picture)).ndim == 3


def test_texts_of_another_encoding_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"list\.txt: "):
        read_image_list(write(tmp_path / "list.txt", "b\xe4r.jpg".encode("latin-1")))
    marked = write(tmp_path / "mark.cfg", b"\xef\xbb\xbf" + fuzz.TINY.encode())
    assert read_cfg(marked).net.width == 32


@pytest.mark.parametrize("entity", ['SYSTEM "file:///etc/hostname"', '"ha"'])
def test_xml_with_entities_is_refused(tmp_path, entity):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    text = f"<!DOCTYPE a [<!ENTITY e {entity}>]><a><size><width>9</width><height>9</height></size>"
    text += f"<object><name>&e;</name>{box}</object></a>"
    with pytest.raises(ValueError, match=r"a\.xml: "):
        read_annotation(write(tmp_path / "a.xml", text.encode()))
