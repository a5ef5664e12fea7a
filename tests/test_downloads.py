"""Downloads from a server on 127.0.0.1 that cuts, lies and sends web pages; killed processes; VOC's archives.
Source of what is expected: RFC 9110, section 14; the layout of VOC's archives."""

import hashlib
import importlib
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT
from test_training import wait_for
from test_voc_label import CAT, CAT_TEXT, HARD_DOG, add_image, add_set, voc_label

import train
from yolov4 import downloads
from yolov4.cfg import read_cfg
from yolov4.downloads import PRETRAINED, DownloadError, Remote, download
from yolov4.plan import plan_layers

CONTENT = random.Random(0).randbytes(502_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Answer:
    """What the server does with one request."""

    status: int = 200
    cut: int | None = None  # bytes after which the connection is closed
    ranges: bool = True
    length: int | None = 0  # Content-Length; 0: the true one, None: not sent
    kind: str = "application/octet-stream"
    content: bytes | None = None
    shift: int = 0  # added to the first byte of the range
    waits_for: threading.Event | None = None  # before the part after `cut`


class Server:
    """Gives `files` by name.  answers: one a request, the last for all that follow.  ranges: what was asked for."""

    def __init__(self):
        self.files, self.answers, self.ranges, self.names = {"file.bin": CONTENT}, [Answer()], [], []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}/"

    def remote(self, md5=""):
        return Remote((self.address + "file.bin",), len(CONTENT), md5)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, owner, *arguments):
        self.owner = owner
        super().__init__(*arguments)

    def do_GET(self):
        owner = self.owner
        answer = owner.answers.pop(0) if len(owner.answers) > 1 else owner.answers[0]
        asked = self.headers["Range"]
        owner.ranges.append(asked)
        owner.names.append(self.path[1:])
        content = owner.files[self.path[1:]] if answer.content is None else answer.content
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + answer.shift if asked and answer.ranges else 0
        body = content[start:]
        self.send_response(206 if start and answer.status == 200 else answer.status)
        self.send_header("Content-Type", answer.kind)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if answer.length is not None:
            self.send_header("Content-Length", str(answer.length or len(body)))
        self.end_headers()
        self.wfile.write(body[: answer.cut])
        if answer.waits_for and answer.waits_for.wait(5):
            self.wfile.write(body[answer.cut :])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSES", (0, 0))
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def nobody():
    """An address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_is_whole_takes_its_place_and_is_not_asked_for_again(server, tmp_path):
    path = tmp_path / "new folder" / "x.bin"
    for _ in range(2):
        assert download(server.remote(MD5), path).read_bytes() == CONTENT
    assert server.ranges == [None] and names_in(path.parent) == ["x.bin"]


def test_a_connection_cut_twice_goes_on_where_it_broke_off(server, tmp_path):
    server.answers = [Answer(cut=100_000), Answer(cut=200_000), Answer()]
    assert download(server.remote(), tmp_path / "x").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=300000-"]


def test_a_server_that_knows_no_range_is_read_from_the_start(server, tmp_path):
    server.answers = [Answer(cut=100_000), Answer(ranges=False)]
    assert download(server.remote(), tmp_path / "x").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_tries_are_counted_anew_after_each_that_brought_something(server, tmp_path):
    server.answers = [Answer(cut=100_000), Answer(503), Answer(cut=100_000), Answer(503), Answer(cut=100), Answer()]
    assert download(server.remote(), tmp_path / "x").read_bytes() == CONTENT
    assert len(server.ranges) == 6


def test_a_server_that_always_cuts_is_given_up_and_what_came_waits_for_the_next_call(server, tmp_path):
    server.answers = [Answer(cut=100_000), Answer(cut=0)]
    with pytest.raises(DownloadError, match="cut at 100,000 of 502,000 bytes, which are kept"):
        download(server.remote(), tmp_path / "x")
    assert len(server.ranges) == 3 and names_in(tmp_path) == ["x.part"]
    server.answers = [Answer()]
    assert download(server.remote(), tmp_path / "x").read_bytes() == CONTENT
    assert server.ranges[3:] == ["bytes=100000-"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(length=600_000), "found a file of 600,000 bytes, expected 502,000"),
        (Answer(content=b"x" * 1000), "found a file of 1,000 bytes, expected 502,000"),
        (Answer(content=CONTENT + b"x", length=None), "sends more than the 502,000 bytes"),
        (Answer(content=b"x" * 1000, length=None), "the connection was cut at 1,000 of 502,000"),
        (Answer(kind="text/html; charset=utf-8"), r"found a web page \(HTML\)"),
        (Answer(content=b"\n<!DOCTYPE html><title>Sign in</title>"), r"found a web page \(HTML\)"),
        (Answer(404), "found HTTP 404 Not Found"),
        (Answer(503), "found HTTP 503"),
        (Answer(content=b"y" * len(CONTENT)), f"has the MD5 [0-9a-f]+, expected {MD5}"),
    ],
    ids=["too long", "too short", "longer than known", "ends early", "HTML", "HTML in disguise", "404", "503", "MD5"],
)
def test_what_is_not_the_file_is_one_sentence_with_the_address_and_two_lines(server, tmp_path, answer, message):
    server.answers = [answer]
    with pytest.raises(DownloadError, match=f"^{server.address}file.bin: {message}") as caught:
        download(server.remote(MD5), tmp_path / "x")
    _, curl, check = str(caught.value).splitlines()
    assert curl.split() == f"curl -L --create-dirs -o {tmp_path}/x {server.address}file.bin".split()
    assert check.split()[:3] == ["wc", "-c", f"{tmp_path}/x"] and check.endswith("502000")
    assert set(names_in(tmp_path)) <= {"x.part"}
    assert len(server.ranges) == 1 or answer.status == 200, "asked again what gave nothing"


def test_a_web_page_in_place_of_the_rest_does_not_spoil_what_came(server, tmp_path):
    server.answers = [Answer(cut=100_000), Answer(kind="text/html", content=b"<html>log in</html>", ranges=False)]
    with pytest.raises(DownloadError, match="web page"):
        download(server.remote(), tmp_path / "x")
    assert (tmp_path / "x.part").read_bytes() == CONTENT[:100_000]


def test_another_range_than_the_one_asked_for_is_refused(server, tmp_path):
    server.answers = [Answer(cut=100_000), Answer(shift=10, length=402_000)]
    with pytest.raises(DownloadError, match="range 'bytes 100010-501999/502000', expected bytes from 100000"):
        download(server.remote(), tmp_path / "x")


def test_what_was_left_of_another_file_is_found_by_the_checksum_and_brought_anew_once(server, tmp_path):
    (tmp_path / "x.part").write_bytes(b"other" * 1000)
    assert download(server.remote(MD5), tmp_path / "x").read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-", None]


@pytest.mark.parametrize("extra", [b"", b"x"])
def test_what_was_left_whole_needs_no_request_and_too_much_is_thrown_away(server, tmp_path, extra):
    (tmp_path / "x.part").write_bytes(CONTENT + extra)
    assert download(server.remote(MD5), tmp_path / "x").read_bytes() == CONTENT
    assert server.ranges == ([None] if extra else [])


def test_another_file_in_the_place_is_not_overwritten(server, tmp_path):
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"x: has 4 bytes, expected 502,000; remove it"):
        download(server.remote(), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"mine" and not server.ranges


def test_a_mirror_goes_on_with_what_the_first_address_brought(server, tmp_path):
    server.answers = [Answer(cut=100_000), Answer(404), Answer()]
    remote = Remote((server.address + "file.bin", server.address + "mirror.bin"), len(CONTENT), MD5)
    server.files["mirror.bin"] = CONTENT
    assert download(remote, tmp_path / "x").read_bytes() == CONTENT
    assert server.names == ["file.bin", "file.bin", "mirror.bin"] and server.ranges[2] == "bytes=100000-"


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "x.bin"])
def test_only_http_is_asked(tmp_path, url):
    with pytest.raises(DownloadError, match=f"^{url}: expected an address that starts with https"):
        download(Remote((url,), 10), tmp_path / "x")


def test_killed_in_the_middle_goes_on_from_there(server, tmp_path):
    server.answers = [Answer(cut=300_000, waits_for=threading.Event()), Answer()]
    code = f"from yolov4.downloads import *; download(Remote(('{server.address}file.bin',), {len(CONTENT)}), 'x')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    part = tmp_path / "x.part"
    wait_for(lambda: part.exists() and part.stat().st_size, process)
    process.kill()
    process.communicate()
    left = part.stat().st_size
    assert process.returncode == -signal.SIGKILL and 0 < left <= 300_000
    assert download(server.remote(MD5), tmp_path / "x").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={left}-"]


def test_processes_that_start_together_download_once(server, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    locked, real, waiting = [], fcntl.flock, threading.Event()

    def flock(*arguments):
        locked.append(arguments)
        if len(locked) == 2:
            waiting.set()
        real(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    server.answers = [Answer(cut=100_000, waits_for=waiting)]
    both = [threading.Thread(target=download, args=(server.remote(), tmp_path / "x")) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(20)
    assert (tmp_path / "x").read_bytes() == CONTENT and server.ranges == [None]


@pytest.mark.parametrize("name", PRETRAINED)
def test_known_sizes_are_those_of_the_first_layers(name):
    cfg, _, count = name.split(".")
    layers = plan_layers(read_cfg(ROOT / f"cfg/{cfg}.cfg"))[: int(count)]
    assert PRETRAINED[name].size == 20 + 4 * sum(layer.parameters for layer in layers)
    assert PRETRAINED[name].urls[0].endswith(f"/{name}")


@pytest.fixture
def work(tmp_path, monkeypatch, server):
    """A folder with data for train.py, which knows one file: the server's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "PRETRAINED", {"tiny.conv.1": server.remote()})
    (tmp_path / "x.data").write_text("train=list.txt\nnames=x.names\n")
    return tmp_path


def run_train(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", "x.data", "--cfg", "x.cfg", *flags])
    return train.main()


def test_train_brings_the_weights_it_knows_if_asked_to(work, server, monkeypatch, capsys):
    for flags in ((), ("--download",)):
        with pytest.raises(SystemExit, match="1"):  # there is no x.cfg
            run_train(monkeypatch, "--weights", "pretrain/tiny.conv.1", *flags)
        said = capsys.readouterr().err
        assert ("--download brings it, or by hand\n  curl -L" in said) == (not flags)
    assert (work / "pretrain/tiny.conv.1").read_bytes() == CONTENT and server.ranges == [None]


def test_train_offline_says_so_with_two_lines_and_no_traceback(work, monkeypatch, capsys):
    url = nobody() + "tiny.conv.1"
    monkeypatch.setattr(train, "PRETRAINED", {"tiny.conv.1": Remote((url,), 5)})
    with pytest.raises(SystemExit, match="1"):
        run_train(monkeypatch, "--weights", "tiny.conv.1", "--download")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0].startswith(f"train.py: {url}: cannot be reached ([Errno")
    assert lines[1].strip().startswith("curl") and lines[2].strip().startswith("wc -c tiny.conv.1")


def archive_of(folder, files):
    """A tar of a VOC folder's files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for file in files:
            tar.add(folder / file, f"VOCdevkit/{folder.name}/{file}")
    return stream.getvalue()


@pytest.fixture
def voc(monkeypatch, server, tmp_path):
    """data/voc0712/download.py with the tables of torchvision and its own changed to three small archives."""
    monkeypatch.syspath_prepend(ROOT / "data/voc0712")
    voc = importlib.import_module("download")
    source, parts, table = tmp_path / "source", {}, {}
    for key, (folder, name, _) in voc.PARTS.items():
        image, archive = f"{key}_0", f"{key}.tar"
        files = [f"JPEGImages/{image}.jpg", f"Annotations/{image}.xml"]
        add_image(source / folder, image, CAT, HARD_DOG)
        for listed in ("test",) if name == "test" else ("train", "trainval"):
            add_set(source / folder, listed, image)
            files.append(f"ImageSets/Main/{listed}.txt")
        content = archive_of(source / folder, files)
        server.files[archive] = content
        parts[key] = (folder, name, len(content))
        table[key] = {"url": nobody() + archive, "filename": archive, "md5": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(voc, "PARTS", parts)
    monkeypatch.setattr(voc, "DATASET_YEAR_DICT", table)
    monkeypatch.setattr(voc, "MIRROR", server.address)
    return voc


def run_voc_label(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["voc_label.py", *map(str, flags), "--download"])
    voc_label.main()


def test_voc_is_downloaded_from_the_mirror_unpacked_and_converted(voc, server, tmp_path, monkeypatch):
    devkit = tmp_path / "VOCdevkit"
    run_voc_label(monkeypatch, devkit)
    assert (devkit / "VOC2007/labels/2007-test_0.txt").read_text() == CAT_TEXT
    images = [f"{devkit}/VOC{year}/JPEGImages/{year}_0.jpg\n" for year in ("2007", "2012")]
    assert (devkit / "train.txt").read_text() == "".join(images)
    assert (devkit / "2007_test.txt").read_text() == f"{devkit}/VOC2007/JPEGImages/2007-test_0.jpg\n"
    assert server.names == ["2007.tar", "2007-test.tar", "2012.tar"]
    assert not [path for path in devkit.iterdir() if path.name.endswith(".part")]
    for archive in devkit.glob("*.tar"):
        archive.unlink()
    run_voc_label(monkeypatch, devkit)
    assert len(server.names) == 3, "what is there was downloaded again"


def test_voc_that_lost_a_picture_is_unpacked_again_from_the_archive_that_is_there(voc, server, tmp_path):
    devkit = tmp_path / "VOCdevkit"
    voc.download_voc(devkit)
    (devkit / "VOC2012/JPEGImages/2012_0.jpg").unlink()
    voc.download_voc(tmp_path)  # the folder that holds VOCdevkit is as good
    assert (devkit / "VOC2012/JPEGImages/2012_0.jpg").read_bytes() == b"picture" and len(server.names) == 3


def test_voc_offline_says_how_to_bring_each_archive_that_is_missing(voc, tmp_path, monkeypatch):
    devkit = tmp_path / "VOCdevkit"
    devkit.mkdir()
    monkeypatch.setattr(voc, "MIRROR", nobody())
    with pytest.raises(SystemExit) as stopped:
        run_voc_label(monkeypatch, devkit)
    lines = str(stopped.value.code).splitlines()
    assert len(lines) == 7 and lines[0].count("cannot be reached") == 2
    assert [line.split()[4] for line in lines[1::2]] == [str(devkit / f"{key}.tar") for key in voc.PARTS]


@pytest.mark.parametrize("kind", ["../evil", "VOCdevkit/../../evil", "link"])
def test_an_archive_with_a_path_outside_is_refused(voc, tmp_path, kind):
    devkit = tmp_path / "deep" / "VOCdevkit"
    devkit.mkdir(parents=True)
    with tarfile.open(devkit / "x.tar", "w") as tar:
        if kind == "link":
            member = tarfile.TarInfo("VOCdevkit/out")
            member.type, member.linkname = tarfile.SYMTYPE, "../../.."
            tar.addfile(member)
        member = tarfile.TarInfo("VOCdevkit/out/evil" if kind == "link" else kind)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ValueError, match=r"x\.tar: cannot be unpacked: .*outside"):
        voc.unpack(devkit / "x.tar", devkit)
    assert not list(tmp_path.rglob("evil")) and names_in(devkit) == ["x.tar"]
