"""A slice of tests/fuzz.py, and the cruellest files by hand.
What each was before: an exception of another kind, a wrong result, or memory without end."""

import struct
import time

import cv2
import fuzz
import fuzz_files
import numpy as np
import pytest
from fuzz_readers import TINY, tiny, tool

from yolov4.cfg import parse_cfg, read_cfg
from yolov4.checkpoint import load_network
from yolov4.data import load_image, read_image_list, read_labels
from yolov4.plan import plan_layers
from yolov4.voc import read_annotation
from yolov4.weights import load_weights


def test_hostile_files_end_in_success_or_in_one_line():
    counts, bugs = fuzz.fuzz(1000, 7, sorted(fuzz_files.KINDS))
    assert not bugs, "\n".join(bugs[:5])
    for kind in fuzz_files.KINDS:
        assert counts[kind, "success"] and counts[kind, "refused"], kind  # else it tests one side only


CONVOLUTION = "[net]\nwidth=64\nheight=64\n[convolutional]\nfilters=8\nsize=3\npad=1\nstride=2\nactivation=leaky\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("filters=8", "filters=1000000000"), ("filters=8", "filters=0"), ("width=64", "width=1000000000"),
        ("stride=2", "stride=0"), ("stride=2", "stride=-2"), ("size=3", "size=1000000000"), ("size=3", "size=-3"),
        ("pad=1", "padding=1000000000"), ("pad=1", "padding=-1"), ("pad=1", "pad=1\ndilation=100000"),
        ("size=3\npad=1", "size=3\ndilation=2"), ("leaky\n", "leaky\n" + "[upsample]\nstride=4096\n" * 4),
        ("leaky\n", "leaky\n[route]\nlayers=-1\ngroups=0\n"), ("leaky\n", "leaky\n[maxpool]\nsize=2\npadding=9\n"),
        ("leaky\n", "leaky\n" + "[route]\nlayers=-1,-1\n" * 300), ("leaky\n", "leaky\n" + "[dropout]\n" * 20000),
        ("leaky\n", "leaky\n[dropout]\nprobability=2\n"), ("width=64", "width=64\nlearning_rate=nan"),
        ("width=64", "width=64\nmomentum=1e400"), ("width=64", "width=32768\nheight=32768\nchannels=64"),
    ],
)  # fmt: skip
def test_a_cfg_that_asks_for_the_impossible_is_refused_before_it_allocates(old, new):
    assert old in CONVOLUTION
    start, memory = time.perf_counter(), fuzz.peak()
    with pytest.raises(ValueError, match=r"^x\.cfg") as caught:
        plan_layers(parse_cfg(CONVOLUTION.replace(old, new), "x.cfg"))
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
    assert time.perf_counter() - start < 2 and fuzz.peak() - memory < 1e8


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path):
    content = bytearray(fuzz_files.checkpoint_bytes())
    model, _ = load_network(write(tmp_path / "whole.pt", content))
    place = content.index(model.layers[0][0].weight.detach().numpy().tobytes())
    content[place + 5] ^= 4
    with pytest.raises(ValueError, match=r"flipped\.pt: .*checksum of .* is wrong"):
        load_network(write(tmp_path / "flipped.pt", content))
    with pytest.raises(ValueError, match=r"short\.pt: cannot be read as a checkpoint"):
        load_network(write(tmp_path / "short.pt", content[: len(content) // 2]))


def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch):
    import pickle
    import zipfile

    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("bad.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(fuzz_files.Runs("canary"), 2))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(ValueError, match=r"bad\.pt: cannot be read"):
        load_network("bad.pt")
    assert not (tmp_path / "canary").exists()


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    count = sum(layer.parameters for layer in tiny().plan)
    body = np.zeros(count, "<f4")
    path = write(tmp_path / "x.weights", struct.pack("<iiiq", 0, 2, 5, 0) + body.tobytes())
    model = type(tiny())(parse_cfg(TINY))
    load_weights(model, path)
    body[-1] = np.nan
    write(path, struct.pack("<iiiq", 0, 2, 5, 0) + body.tobytes())
    with pytest.raises(ValueError, match="in layer 1 that are no numbers"):
        load_weights(model, path)


@pytest.mark.parametrize("label", ["9" * 400 + " .5 .5 .1 .1", "0 1e39 .5 .1 .1", "0 nan .5 .1 .1", "99999999 1 1 1 1"])
def test_labels_beyond_float32_are_refused(tmp_path, label):
    with pytest.raises(ValueError, match=r"a\.txt:1: found"):
        read_labels(write(tmp_path / "a.txt", label.encode()))


def test_pictures_that_lie_about_their_size(tmp_path):
    for number, content in enumerate((fuzz_files.png(60000, 60000), b"\x76\x2f\x31\x01" + bytes(99), b"")):
        with pytest.raises(ValueError, match=rf"{number}\.png"):
            load_image(write(tmp_path / f"{number}.png", content))
    for picture in fuzz_files.images()[:16]:
        path = write(tmp_path / "good.png", picture)
        if not picture.startswith(b"GIF") or cv2.haveImageReader(str(path)):  # of OpenCV 4.12 on
            assert load_image(path).ndim == 3


def test_texts_of_another_encoding_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"list\.txt: is not text"):
        read_image_list(write(tmp_path / "list.txt", "b\xe4r.jpg".encode("latin-1")))
    assert read_cfg(write(tmp_path / "mark.cfg", b"\xef\xbb\xbf" + TINY.encode())).net.width == 32


def test_xml_with_entities_is_refused(tmp_path):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    secret = write(tmp_path / "secret", b"secret")
    for head in (f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{secret}">]>', '<!DOCTYPE a [<!ENTITY e "ha">]>'):
        text = f"{head}<a><size><width>9</width><height>9</height></size><object><name>&e;</name>{box}</object></a>"
        path = write(tmp_path / "a.xml", text.encode())
        for read in (read_annotation, lambda path: list(tool("voc0712/voc_label").read_annotation(path, []))):
            with pytest.raises(ValueError, match=r"a\.xml: .*DOCTYPE"):
                read(path)


def test_a_set_that_names_files_outside_writes_nothing_there(tmp_path):
    folder = tmp_path / "deep" / "VOC2007"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    text = f"<a><size><width>9</width><height>9</height></size><object><name>cat</name>{box}</object></a>"
    write(tmp_path / "evil.xml", text.encode())
    cv2.imwrite(str(tmp_path / "evil.jpg"), np.zeros((9, 9, 3), np.uint8))
    (folder / "ImageSets/Main/train.txt").write_text("../../../evil\n")
    converter, _ = tool("voc0712/voc_label").convert(folder.parent, names=["cat"])
    assert "found '../../../evil' in a set" in converter.problems[0]
    assert not (tmp_path / "evil.txt").exists()


def write(path, content):
    path.write_bytes(bytes(content))
    return path
