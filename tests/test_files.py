"""Downloads from a server on 127.0.0.1 that cuts connections and sends other files."""

import hashlib
import os
import random
import re
import shutil
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

from yolov4.cfg import read_cfg
from yolov4.data import load_image
from yolov4.files import PRETRAINED, Remote, download, locate, read_text, replacing
from yolov4.graph import plan_layers
from yolov4.labels import read_json
from yolov4.weights import load_checkpoint, load_network

CONTENT = random.Random(0).randbytes(502_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Gives `files` by name; each entry of `cuts` ends a connection after so many bytes."""

    def __init__(self, files, asked, cuts, *arguments):
        self.files, self.asked, self.cuts = files, asked, cuts
        super().__init__(*arguments)

    def do_GET(self):
        asked, name = self.headers["Range"], self.path[1:]
        self.asked.append((name, asked))
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        body = self.files.get(name, b"")[start:]
        self.send_response(404 if name not in self.files else 206 if asked else 200)
        if asked:
            end = len(self.files.get(name, b""))
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cuts.pop(0) if self.cuts else None])

    def log_message(self, *_):
        pass


class Server:
    def __init__(self):
        self.files, self.asked, self.cuts = {"file.bin": CONTENT}, [], []
        handler = partial(Handler, self.files, self.asked, self.cuts)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}/"

    def remote(self, *names, md5=MD5):
        urls = tuple(self.address + name for name in names or ("file.bin",))
        return Remote(urls, len(CONTENT), md5)


@pytest.fixture
def server():
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_takes_its_place_and_is_not_downloaded_again(server, tmp_path):
    path = tmp_path / "new folder" / "x.bin"
    for _ in range(2):
        assert download(server.remote(), path).read_bytes() == CONTENT
    assert server.asked == [("file.bin", None)] and names_in(path.parent) == ["x.bin"]


def test_a_connection_cut_twice_is_resumed(server, tmp_path):
    server.cuts += [100_000, 200_000]
    assert download(server.remote(), tmp_path / "x").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=100000-", "bytes=300000-"]


def test_what_came_waits_for_the_next_call_and_for_a_mirror(server, tmp_path):
    server.cuts += [100_000, 0]
    with pytest.raises(ValueError, match=r"file\.bin: curl exit code 18, found 100,000 bytes"):
        download(server.remote(), tmp_path / "x")
    assert names_in(tmp_path) == ["x.part"]
    mirrored = server.remote("gone.bin", "file.bin")
    assert download(mirrored, tmp_path / "x").read_bytes() == CONTENT
    assert server.asked[2:] == [("gone.bin", "bytes=100000-"), ("file.bin", "bytes=100000-")]


def test_another_file_is_refused_with_the_command_to_do_it_by_hand(server, tmp_path):
    html, longer, other = b"<!DOCTYPE html>", CONTENT + b"x", b"y" * len(CONTENT)
    by_hand = f"curl -L --create-dirs -o {tmp_path}/x {server.address}file.bin"
    for content in (html, longer, other, None):
        server.files.pop("file.bin")
        server.files |= {"file.bin": content} if content else {}
        with pytest.raises(ValueError, match=r"file\.bin: ") as caught:
            download(server.remote(), tmp_path / "x")
        assert by_hand in str(caught.value).splitlines()[-1] and not names_in(tmp_path)
        assert content is not longer or "exit code 63" in str(caught.value)  # nothing came


def test_a_part_of_another_file_is_found_by_the_checksum(server, tmp_path):
    (tmp_path / "x.part").write_bytes(b"other" * 1000)
    with pytest.raises(ValueError, match="found MD5"):
        download(server.remote(), tmp_path / "x")
    assert download(server.remote(), tmp_path / "x").read_bytes() == CONTENT


def test_another_file_in_the_place_is_not_overwritten(server, tmp_path):
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"x: found 4 bytes"):
        download(server.remote(), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"mine" and not server.asked


def test_only_http_is_followed_and_nothing_is_written_through_a_link(server, tmp_path):
    (tmp_path / "local").write_bytes(CONTENT)
    with pytest.raises(ValueError, match="curl exit code 1,"):
        download(Remote(((tmp_path / "local").as_uri(),), len(CONTENT)), tmp_path / "x")
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "x.part").symlink_to(tmp_path / "mine")
    download(server.remote(), tmp_path / "x")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert (tmp_path / "x").read_bytes() == CONTENT and not (tmp_path / "x").is_symlink()


def test_known_sizes_are_those_of_the_layers():
    for name, remote in PRETRAINED.items():
        cfg, _, count = name.partition(".conv.")
        cfg = ROOT / f"cfg/{cfg.removesuffix('.weights')}.cfg"
        layers = plan_layers(read_cfg(cfg))[: int(count) if count else None]
        assert remote.size == 20 + 4 * sum(layer.parameters for layer in layers)
        assert remote.urls[0].endswith(f"/{name}")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
def test_text_of_every_editor_is_read(tmp_path, encoding):
    path, text = tmp_path / "a.txt", "Größe é\r\n"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path.write_bytes(mark + text.encode(encoding))
    assert read_text(path) == text
    path.write_bytes(b"\x00\x01\xff")
    with pytest.raises(ValueError, match="is not text"):
        read_text(path)


def test_a_path_written_in_a_file_is_found_where_the_export_was_unpacked(tmp_path, monkeypatch):
    (tmp_path / "now").mkdir()
    monkeypatch.chdir(tmp_path / "now")
    source = tmp_path / "set/obj.data"
    assert locate("data/a.txt", source) == Path("data/a.txt")  # nowhere
    for place in ("set/a.txt", "data/a.txt", "now/data/a.txt", "set/data/a.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
        assert locate("data/a.txt", source).samefile(tmp_path / place)
    assert locate("..\\data\\a.txt", source).samefile(tmp_path / "data/a.txt")
    assert locate("D:\\x\\a.txt", source).samefile(tmp_path / "set/a.txt")


def test_a_fifo_is_an_error_and_is_not_waited_for(tmp_path):
    path = tmp_path / "x"
    os.mkfifo(path)
    for read in (read_text, load_network, load_checkpoint, load_image, read_json):
        with pytest.raises(ValueError, match="x: "):
            read(path)


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "x.txt"
    with replacing(path) as one:
        one.write_text("one")
        with replacing(path) as two:
            two.write_text("two")
        assert path.read_text() == "two"
    assert path.read_text() == "one" and names_in(tmp_path) == ["x.txt"]
