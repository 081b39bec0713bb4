"""An archive from a stranger becomes a folder: nothing in it leads out of that folder, and nothing of it is half there.

The papers take their data for granted; here is one of the two things that can go wrong on the way to it (chapter 00).
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from minidet.errors import FetchError

CHUNK = 1 << 18  # bytes read at a time


def unpack(
    archive: str | Path,
    folder: str | Path,
    *,
    max_bytes: int = 64 * 2**30,
    max_files: int = 500_000,
    progress: bool = True,
) -> Path:
    """Unpack a zip, tar or tar.gz archive into a new folder, and nowhere else.

    Only plain files and folders are made, with the names' own contents and nothing of the archive's rights, owners or
    times. Everything goes to a temporary folder beside `folder` first, which gets its name when all of it is there.

    Args:
        archive: the file; its kind is read from its first bytes, not from its name.
        folder: a folder that doesn't exist yet, or is empty.
        max_bytes, max_files: an archive that holds more is refused (it may be a bomb).
        progress: show a progress bar.

    Returns:
        `folder`.

    Raises:
        FetchError: the archive is no archive, damaged, broken off, encrypted, too large, or holds a link, a device, a
            name that leads out of the folder or the same name twice (in whatever case). Nothing is left behind.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    if folder.exists():
        raise FetchError(
            f"{folder}: is there already. Remove it, or choose another folder to unpack {archive.name} into."
        )
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
    try:
        temporary.mkdir(parents=True)
        _unpack_members(archive, temporary, max_bytes, max_files, progress)
        os.rename(temporary, folder)
    except FetchError:
        raise
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        name = Path(error.filename or "").name
        raise FetchError(f"{archive}: names the same file twice ({name}); such an archive is not unpacked.") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not archive.exists():
            raise FetchError(f"{archive}: there is no such file. Check the path.") from error
        if isinstance(error, gzip.BadGzipFile) or error.errno in (None, errno.EINVAL):
            raise FetchError(_damaged(archive, error)) from error
        raise FetchError(
            f"{archive}: cannot be unpacked to {folder} ({error.strerror}). Free some space or choose another folder."
        ) from error
    except Exception as error:  # damaged bytes make the standard library raise a dozen types; all mean the same here
        raise FetchError(_damaged(archive, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _damaged(archive: Path, error: Exception) -> str:
    return f"{archive}: is damaged or broken off ({str(error) or type(error).__name__}). Get the file again."


@dataclass(frozen=True)
class _Member:
    name: str
    is_folder: bool
    size: int
    open: Callable[[], BinaryIO]


def _unpack_members(archive: Path, folder: Path, max_bytes: int, max_files: int, progress: bool) -> None:
    total, seen = 0, set()
    with (
        _members(archive) as members,
        tqdm(desc=f"unpacking {archive.name}", unit=" files", disable=not progress) as bar,
    ):
        for count, member in enumerate(members, 1):
            total += member.size
            if total > max_bytes or count > max_files:
                raise FetchError(
                    f"{archive}: holds more than {max_bytes:,} bytes or {max_files:,} files, far more than expected; "
                    "it is not unpacked. Get it from a place that you trust."
                )
            target = folder.joinpath(*_parts_inside(member.name, archive))
            if member.is_folder:
                target.mkdir(parents=True, exist_ok=True)
                continue
            spelled = unicodedata.normalize("NFC", target.relative_to(folder).as_posix()).casefold()
            if spelled in seen:  # Windows and macOS take A and a for one name
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            seen.add(spelled)
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, CHUNK)  # to the end: there the zip's checksum is compared
            if target.stat().st_size != member.size:
                raise EOFError(f"{member.name} is {target.stat().st_size:,} bytes long instead of {member.size:,}")
            bar.update()


def _parts_inside(name: str, archive: Path) -> list[str]:
    """The folders and file of a member's name, or a refusal; a backslash separates too, because on Windows it does."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or any(":" in part or "\0" in part for part in parts):
        raise FetchError(
            f"{archive}: the member {name!r} leads out of the folder; the archive is not unpacked. Mistrust its source."
        )
    return [part for part in parts if part not in ("", ".")]


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    with archive.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic[:2] == b"PK":
            with zipfile.ZipFile(file) as content:
                yield _zip_members(archive, content)
            return
        with gzip.GzipFile(fileobj=file) if magic[:2] == b"\x1f\x8b" else contextlib.nullcontext(file) as stream:
            reader = _TarReader(stream)
            try:
                content = tarfile.open(fileobj=reader, mode="r:")  # noqa: SIM115 - closed below
            except tarfile.ReadError as error:
                raise FetchError(
                    f"{archive}: is no zip, tar or tar.gz archive, or it is damaged at its start. Get it again."
                ) from error
            with content:
                yield _tar_members(archive, content, reader)


def _zip_members(archive: Path, content: zipfile.ZipFile) -> Iterator[_Member]:
    for info in content.infolist():
        if info.flag_bits & 0x1:
            raise FetchError(f"{archive}: is encrypted; unpack it yourself and name the folder with --from.")
        kind = stat.S_IFMT(info.external_attr >> 16)  # of Unix; other systems leave it 0
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _no_plain_file(archive, info.filename)
        yield _Member(info.filename, info.is_dir(), info.file_size, lambda info=info: content.open(info))


def _tar_members(archive: Path, content: tarfile.TarFile, reader: _TarReader) -> Iterator[_Member]:
    for info in content:
        if not (info.isreg() or info.isdir()):
            raise _no_plain_file(archive, info.name)
        yield _Member(
            info.name, info.isdir(), info.size if info.isreg() else 0, lambda info=info: content.extractfile(info)
        )
    # Python takes a broken header for the end of the archive; the true end is a block of zeros, or the end of the file.
    if reader.latest.strip(b"\0"):
        raise tarfile.ReadError(f"no valid header at byte {content.offset:,}")
    while reader.read(CHUNK):  # gzip compares its checksum at the very end
        pass


def _no_plain_file(archive: Path, name: str) -> FetchError:
    return FetchError(
        f"{archive}: the member {name!r} is a link or a device, not a plain file; the archive is not unpacked."
    )


class _TarReader(io.RawIOBase):
    """What tarfile reads through. Large reads are refused: a name is read in one piece, and a bomb's has gigabytes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.latest = b""  # what the latest read gave: after the last member, the block where the archive ends

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 4 * CHUNK:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self.latest = self._stream.read(size)
        return self.latest

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()
