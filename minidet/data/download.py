"""A large file over a bad line: the download goes on where it was cut, is verified, and gets its name when it is whole.

The papers take their data for granted; here is one of the two things that can go wrong on the way to it (chapter 00).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from minidet.errors import FetchError

CHUNK = 1 << 18  # bytes read at a time
LONGEST_WAIT = 30.0  # seconds between two attempts
TRY_LATER = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers that may be different in a moment
BY_HAND = "Or download the file with a browser and name it with --from."


def download(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    progress: bool = True,
    retries: int = 5,
    timeout: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Load a file over HTTP(S); after a cut connection or a killed process it goes on where it stopped.

    What arrives is collected in `path` + ".part". A note beside it keeps the server's version mark (ETag or
    Last-Modified), so that a file which changed meanwhile starts again instead of being glued together. A file already
    at `path` that passes the checks is kept without asking the network; one that doesn't is replaced once the new one
    is whole.

    Args:
        url: http:// or https:// address. Redirects are followed to http(s) only, and never from https back to http.
        path: where the file goes; the folder is made.
        sha256, md5: checksum in hexadecimal. md5 protects against accidents, not against a forger.
        size: length in bytes; an offer of another length is refused before anything is loaded.
        progress: show a progress bar.
        retries: attempts in a row that may bring nothing new before giving up.
        timeout: seconds of silence after which a connection counts as cut.
        sleep: what waits between attempts, 1, 2, 4 ... seconds.

    Returns:
        `path`.

    Raises:
        FetchError: the address, the network, the server, the disk or a check stood in the way; the text says which and
            what to do. What had arrived is kept for the next call, except after a failed check.
    """
    path = Path(path)
    _check_address(url)
    try:
        if path.is_file() and _mismatch(path, sha256, md5, size, progress) is None:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tqdm(desc=path.name, unit="B", unit_scale=True, unit_divisor=1024, disable=not progress) as bar:
            transfer = _Transfer(url, path, size, timeout, bar)
            _keep_trying(transfer, retries, sleep)
        fault = _mismatch(transfer.part, sha256, md5, size, progress)
        if fault is not None:
            transfer.forget()
            raise FetchError(
                f"{url}: what arrived {fault}. It was deleted; try again. "
                f"If that doesn't help, the published file was changed. {BY_HAND}"
            )
        os.replace(transfer.part, path)
        transfer.forget()
    except OSError as error:  # the network's own are dealt with below
        raise FetchError(
            f"{error.filename or path}: cannot be written ({error.strerror or error}). "
            "Free some space or choose another folder. What has arrived is kept: run the same again to go on."
        ) from error
    return path


def _keep_trying(transfer: _Transfer, retries: int, sleep: Callable[[float], None]) -> None:
    furthest, failures, arrived = transfer.have(), 0, False
    while True:
        try:
            return transfer.attempt()
        except _TryAgain as problem:
            have = transfer.have()
            if have > furthest:
                furthest, failures, arrived = have, 0, True
            failures += 1
            if failures > retries or (problem.hopeless and not arrived):
                kept = f"The {have:,} bytes that arrived are kept: run the same again to go on." if have else ""
                raise FetchError(f"{transfer.url}: {problem}. {kept or 'Try again later.'} {BY_HAND}") from problem
            transfer.bar.set_postfix_str(f"{problem}; attempt {failures + 1}")
            sleep(min(2.0 ** (failures - 1), LONGEST_WAIT))


class _TryAgain(Exception):
    """An attempt failed, another may not; one called hopeless is repeated only if data has come before."""

    def __init__(self, reason: str, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_address(newurl, came_from=req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str, came_from: str = "") -> None:
    try:
        parts = urlsplit(url)
        usable = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and parts.port != 0
            and url.isascii()
            and " " not in url
        )
    except ValueError:
        usable = False
    if not usable:
        where = f"{came_from} sends on to {url!r}, which" if came_from else f"{url!r}"
        raise FetchError(f"{where} is no http or https address; nothing else is downloaded from.")
    if came_from.startswith("https:") and parts.scheme != "https":
        raise FetchError(f"{came_from} sends on to {url}, which is not encrypted; that is not followed. {BY_HAND}")


@dataclass
class _Transfer:
    """One file on its way; `attempt` is one connection."""

    url: str
    path: Path
    size: int | None
    timeout: float
    bar: tqdm

    def __post_init__(self) -> None:
        self.part = self.path.with_name(self.path.name + ".part")
        self.note = self.path.with_name(self.path.name + ".part.json")
        self.opener = urllib.request.build_opener(_HttpOnly)

    def have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def attempt(self) -> None:
        """Load the rest of the file, or raise `_TryAgain` (part kept) or FetchError (no use trying)."""
        have, noted = self.have(), self._noted()
        version, total = noted.get("version"), noted.get("total")
        if have and total == have:  # the last run ended between the last byte and the renaming
            return
        if have and version is None:  # nothing ties the beginning to what the server has now
            have = 0
        headers = {"User-Agent": "minidet", "Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": version}
        with self._open(urllib.request.Request(self.url, headers=headers)) as response:
            if response.status == 206:
                start, total = _content_range(response.headers.get("Content-Range", ""))
                if start != have or _version(response.headers) not in (version, None):
                    self.forget()
                    raise _TryAgain("the server continued another file than the one begun")
            elif response.status == 200:  # from the start: first contact, no Range support, or the file changed
                have, total = 0, _whole_number(response.headers.get("Content-Length"))
            else:
                raise FetchError(f"{self.url}: the server answered {response.status}, which is no file. {BY_HAND}")
            if self.size is not None and total is not None and total != self.size:
                raise FetchError(
                    f"{self.url}: the server offers {total:,} bytes, the published file has {self.size:,}. "
                    f"It changed, or something between here and there sends a page instead. {BY_HAND}"
                )
            if response.status == 200:
                self._write_note(_version(response.headers), total)
            self._check_room((total or self.size or 0) - have)
            self.bar.total, self.bar.n = total or self.size, have
            self.bar.refresh()
            have = self._receive(response, have, total)
        expected = total if total is not None else self.size
        if expected is not None and have < expected:
            raise _TryAgain(f"the connection was cut after {have:,} of {expected:,} bytes")

    def _open(self, request: urllib.request.Request) -> Any:
        try:
            return self.opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416:  # what we hold is longer than what the server has
                    self.forget()
                    raise _TryAgain("the server has no such part of the file") from error
                if error.code in TRY_LATER:
                    raise _TryAgain(f"the server answered {error.code} {error.reason}") from error
                what = {
                    404: "there is no such file",
                    410: "the file is gone",
                    401: "access is refused",
                    403: "access is refused",
                }
                raise FetchError(
                    f"{self.url}: {what.get(error.code, 'the server refuses')} (HTTP {error.code} {error.reason}). "
                    f"The file may have moved: look for it on the data set's page. {BY_HAND}"
                ) from error
        except urllib.error.URLError as error:
            cause = error.reason
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise FetchError(
                    f"{self.url}: the server's certificate cannot be verified ({cause.verify_message}). "
                    f"Point SSL_CERT_FILE to an up-to-date list of authorities. {BY_HAND}"
                ) from error
            if isinstance(cause, socket.gaierror):
                raise _TryAgain("the host name is not known here (is this machine online?)", hopeless=True) from error
            raise _TryAgain(_said(cause)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgain(_said(error)) from error

    def _receive(self, response: Any, have: int, total: int | None) -> int:
        limit = total if total is not None else self.size
        with self.part.open("r+b" if have else "wb") as file:
            file.seek(have)
            while limit is None or have < limit:
                try:
                    chunk = response.read1(CHUNK if limit is None else min(CHUNK, limit - have))
                except (OSError, http.client.HTTPException) as error:
                    raise _TryAgain(_said(error)) from error
                if not chunk:
                    break
                file.write(chunk)
                have += len(chunk)
                self.bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        return have

    def _noted(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            note = json.loads(self.note.read_text(encoding="utf-8"))
            if isinstance(note, dict) and note.get("url") == self.url:
                return note
        return {}

    def _write_note(self, version: str | None, total: int | None) -> None:
        self.part.unlink(missing_ok=True)  # first, so that an old part never stands beside a new note
        self.note.write_text(json.dumps({"url": self.url, "version": version, "total": total}), encoding="utf-8")

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if needed > free:
            where = self.part.parent
            raise FetchError(
                f"{where}: {in_words(needed)} are still to come, {in_words(free)} are free. Free some space."
            )


def _version(headers: Any) -> str | None:
    """The server's mark for this version of the file; a weak ETag doesn't promise equal bytes, so it counts as none."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _content_range(text: str) -> tuple[int | None, int | None]:
    """'bytes 5-9/10' -> (5, 10)"""
    unit, _, rest = text.strip().partition(" ")
    span, _, total = rest.partition("/")
    return (_whole_number(span.partition("-")[0]) if unit == "bytes" else None), _whole_number(total)


def _whole_number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isascii() and text.strip().isdigit() else None


def _said(error: Any) -> str:
    if isinstance(error, TimeoutError):
        return "the server fell silent"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was cut"
    return f"the connection failed ({getattr(error, 'strerror', None) or error or type(error).__name__})"


def _mismatch(path: Path, sha256: str | None, md5: str | None, size: int | None, progress: bool) -> str | None:
    """What is wrong with a file, or None."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found:,} bytes instead of {size:,}"
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is None:
            continue
        digest = hashlib.new(name, usedforsecurity=False)
        bar = tqdm(total=found, desc=f"verifying {path.name}", unit="B", unit_scale=True, disable=not progress)
        with path.open("rb") as file, bar:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                bar.update(len(chunk))
        if digest.hexdigest() != expected.lower():
            return f"has the {name} {digest.hexdigest()} instead of {expected.lower()}"
    return None


def in_words(count: int) -> str:
    """A number of bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
