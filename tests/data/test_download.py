"""Downloads against a small server on this machine that cuts, changes, redirects and lies."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from minidet.data import download as module
from minidet.data.download import download
from minidet.errors import FetchError

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes
OTHER = BODY[::-1]


class Web:
    """A server of one file, and what to do wrong with it."""

    def __init__(self):
        self.body = BODY
        self.etag = '"first"'
        self.ranges = True  # understands Range
        self.length = True  # announces Content-Length
        self.chunked = False
        self.cuts = []  # for each coming answer: bytes after which the connection is cut
        self.reset = False  # cut by a reset instead of a close
        self.statuses = []  # for each coming answer: an error instead of the file
        self.location = None  # redirect /from to here
        self.silent = False  # accept, then say nothing
        self.asked = []  # (path, Range header) of every request
        self.quiet = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                web.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.base = f"http://127.0.0.1:{self.server.server_port}"
        self.url = self.base + "/file.zip"

    def stop(self):
        self.quiet.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, handler):
        handler.close_connection = True
        self.asked.append((handler.path, handler.headers.get("Range")))
        if self.silent:
            self.quiet.wait(5)
            return
        if self.statuses and (status := self.statuses.pop(0)) is not None:
            handler.send_error(status)
            return
        if handler.path == "/from":
            handler.send_response(302)
            handler.send_header("Location", self.location)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start = 0
        asked = handler.headers.get("Range")
        if asked and self.ranges and handler.headers.get("If-Range") in (None, self.etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
            if start >= len(self.body):
                handler.send_response(416)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        else:
            handler.send_response(200)
        content = self.body[start:]
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        elif self.length:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        if self.chunked:
            handler.wfile.write(b"%x\r\n" % len(content))
        handler.wfile.write(content[:cut])
        if self.chunked and cut is None:
            handler.wfile.write(b"\r\n0\r\n\r\n")
        handler.wfile.flush()
        if cut is not None and self.reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()


def holds(folder, content):
    """Whether the file is exactly that; a bare == would make pytest explain a megabyte byte by byte when it fails."""
    return (folder / "file.zip").read_bytes() == content


@pytest.fixture
def web():
    server = Web()
    yield server
    server.stop()


@pytest.fixture
def get(tmp_path, web):
    """Download into tmp_path without waiting; `get.waits` lists how long it would have waited."""

    def get(url=None, **options):
        get.waits = []
        return download(
            url or web.url, tmp_path / "file.zip", progress=False, **({"sleep": get.waits.append} | options)
        )

    return get


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(get, tmp_path):
    sums = {"sha256": hashlib.sha256(BODY).hexdigest(), "md5": hashlib.md5(BODY).hexdigest().upper()}
    assert get(**sums, size=len(BODY)) == tmp_path / "file.zip"
    assert holds(tmp_path, BODY)
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


def test_a_file_that_stands_there_and_verifies_is_not_loaded_again(get, web):
    get()
    get(size=len(BODY), md5=hashlib.md5(BODY).hexdigest())
    assert len(web.asked) == 1


def test_a_file_that_stands_there_and_does_not_verify_is_replaced(get, web, tmp_path):
    (tmp_path / "file.zip").write_bytes(b"half a fi")
    get(size=len(BODY))
    assert holds(tmp_path, BODY)


@pytest.mark.parametrize("reset", [False, True])
def test_cut_connections_are_taken_up_where_they_broke(get, web, tmp_path, reset):
    web.cuts, web.reset = [300_000, 400_000], reset
    get(sha256=hashlib.sha256(BODY).hexdigest())
    assert holds(tmp_path, BODY)
    assert web.asked[0][1] is None
    if not reset:  # a reset may throw away what was still on its way
        assert [asked for _, asked in web.asked[1:]] == ["bytes=300000-", "bytes=700000-"]
    assert get.waits == [1.0, 1.0]  # each attempt brought something new, so the waiting starts over


def test_an_interrupted_download_goes_on_in_the_next_call(get, web, tmp_path):
    web.cuts = [250_000]
    with pytest.raises(FetchError, match="cut after 250,000 of 1,024,000 bytes.*are kept"):
        get(retries=0)
    assert (tmp_path / "file.zip.part").stat().st_size == 250_000
    assert not (tmp_path / "file.zip").exists()
    get()
    assert web.asked[-1][1] == "bytes=250000-"
    assert holds(tmp_path, BODY)


def test_a_download_killed_before_its_last_step_needs_no_network(get, web, tmp_path):
    web.cuts = [250_000]
    with pytest.raises(FetchError):
        get(retries=0)
    (tmp_path / "file.zip.part").write_bytes(BODY)
    asked = len(web.asked)
    get()
    assert len(web.asked) == asked
    assert holds(tmp_path, BODY)


def test_a_file_that_changed_meanwhile_starts_again(get, web, tmp_path):
    web.cuts = [250_000]
    with pytest.raises(FetchError):
        get(retries=0)
    web.body, web.etag = OTHER, '"second"'
    get()
    assert holds(tmp_path, OTHER)


def test_a_kill_between_the_new_versions_note_and_its_first_byte_glues_nothing(get, web, tmp_path, monkeypatch):
    web.cuts = [250_000]
    with pytest.raises(FetchError):
        get(retries=0)
    web.body, web.etag = OTHER, '"second"'

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Transfer, "_check_room", killed)  # the step after the note is written
        with pytest.raises(KeyboardInterrupt):
            get()
    get()
    assert holds(tmp_path, OTHER)


def test_a_server_that_continues_another_file_is_not_believed(get, web, tmp_path):
    web.cuts = [250_000]
    with pytest.raises(FetchError):
        get(retries=0)
    web.body = OTHER
    old, web.etag = web.etag, '"second"'
    real = web.answer

    def careless(handler):  # ignores If-Range
        if handler.headers.get("If-Range") == old:
            handler.headers.replace_header("If-Range", '"second"')
        real(handler)

    web.answer = careless
    get()
    assert [asked for _, asked in web.asked[1:]] == ["bytes=250000-", None]
    assert holds(tmp_path, OTHER)


def test_a_file_that_became_shorter_starts_again(get, web, tmp_path):
    web.cuts = [250_000]
    with pytest.raises(FetchError):
        get(retries=0)
    web.body = BODY[:1000]  # same ETag: the server is wrong, and answers 416
    get()
    assert holds(tmp_path, BODY[:1000])


@pytest.mark.parametrize("etag", ['"first"', None, 'W/"weak"'])
def test_without_ranges_or_a_version_mark_the_file_starts_again_and_comes_out_right(get, web, tmp_path, etag):
    web.ranges, web.etag, web.cuts = etag is None, etag, [300_000]
    get(sha256=hashlib.sha256(BODY).hexdigest())
    assert holds(tmp_path, BODY)
    assert len(web.asked) == 2
    assert (web.asked[1][1] is not None) == (etag == '"first"')


def test_a_part_of_another_address_is_not_continued(get, web, tmp_path):
    web.cuts = [250_000]
    with pytest.raises(FetchError):
        get(retries=0)
    get(web.base + "/other.zip")
    assert web.asked[-1] == ("/other.zip", None)


def test_a_chunked_answer_that_breaks_off_is_noticed(get, web, tmp_path):
    web.chunked, web.cuts = True, [300_000]
    get()
    assert holds(tmp_path, BODY)
    assert len(web.asked) == 2


def test_an_answer_without_length_is_measured_by_the_published_size(get, web, tmp_path):
    web.length, web.cuts = False, [300_000]
    get(size=len(BODY))
    assert holds(tmp_path, BODY)


def test_an_offer_of_another_length_is_refused_before_loading(get, web, tmp_path):
    with pytest.raises(FetchError, match="offers 1,024,000 bytes, the published file has 999"):
        get(size=999)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sha256", "md5"])
def test_a_wrong_checksum_is_one_error_and_leaves_nothing(get, web, tmp_path, name):
    with pytest.raises(FetchError, match=f"has the {name} .* instead of 00") as info:
        get(**{name: "00" * 16})
    assert web.url in str(info.value)
    assert not any(tmp_path.iterdir())
    assert len(web.asked) == 1


@pytest.mark.parametrize(("status", "words"), [(404, "there is no such file"), (403, "access is refused")])
def test_a_refusal_is_final_and_says_what_to_do(get, web, status, words):
    web.statuses = [status] * 9
    with pytest.raises(FetchError, match=f"{words} .HTTP {status}.*--from") as info:
        get()
    assert web.url in str(info.value)
    assert len(web.asked) == 1


def test_a_server_in_trouble_is_asked_again_with_longer_and_longer_waits(get, web, tmp_path):
    web.statuses = [503, 500, 429, None]
    get()
    assert get.waits == [1.0, 2.0, 4.0]
    assert holds(tmp_path, BODY)


def test_trying_again_has_an_end(get, web):
    web.statuses = [503] * 9
    with pytest.raises(FetchError, match="503"):
        get(retries=3)
    assert len(web.asked) == 4


def test_a_silent_server_is_given_up(get, web):
    web.silent = True
    with pytest.raises(FetchError, match="fell silent"):
        get(timeout=0.05, retries=1)
    assert len(web.asked) == 2


def test_a_closed_door_is_an_error_with_the_address(get, web):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    with pytest.raises(FetchError, match=re.escape(url)):
        get(url, retries=1)


def test_an_unknown_host_is_not_asked_for_twice(get, monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FetchError, match=r"data\.example/x\.zip: the host name is not known.*--from"):
        get("http://data.example/x.zip")
    assert get.waits == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "x.zip", "http://", "http://[", "http://h/a b"])
def test_only_web_addresses_are_loaded_from(get, url):
    with pytest.raises(FetchError, match="no http or https address"):
        get(url)


def test_a_redirect_is_followed(get, web, tmp_path):
    web.location = "/file.zip"
    web.cuts = [300_000]
    get(web.base + "/from")
    assert holds(tmp_path, BODY)
    assert web.asked[-1] == ("/file.zip", "bytes=300000-")


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_off_the_web_is_refused(get, web, tmp_path, location):
    web.location = location
    with pytest.raises(FetchError, match="sends on to|is not allowed"):
        get(web.base + "/from")
    assert not (tmp_path / "file.zip").exists()


def test_a_redirect_out_of_encryption_is_refused():
    with pytest.raises(FetchError, match="not encrypted"):
        module._check_address("http://host/x", came_from="https://host/x")
    module._check_address("https://other/x", came_from="http://host/x")


def test_too_little_room_is_noticed_before_loading(get, web, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000))
    with pytest.raises(FetchError, match=r"1\.0 MB are still to come, 0\.5 MB are free"):
        get()
    assert not (tmp_path / "file.zip").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_error(web, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FetchError, match="cannot be written"):
        download(web.url, tmp_path / "file" / "x.zip", progress=False)


def test_an_empty_file_is_a_file(get, web, tmp_path):
    web.body = b""
    get()
    assert holds(tmp_path, b"")
