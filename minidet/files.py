"""Files that are either whole or not there: written to a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minidet.errors import DataError, MinidetError

# Asking for it means setting it, for the whole process: once, before there are threads.
UMASK = os.umask(0)
os.umask(UMASK)


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` only when everything was written.

    Args:
        path: the final name; missing parent folders are made.

    Yields:
        A binary file under a temporary name in the same folder.

    Raises:
        MinidetError: the folder cannot be written or the disk is full. Whatever stood at `path` before is untouched.
    """
    path = Path(path)
    if "\0" in str(path):
        raise MinidetError(f"{str(path)!r}: no file can have this name. Choose another one.")
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp makes the file private; a result is an ordinary file
        os.replace(temporary, path)
        temporary = None
        _flush_folder(path.parent)
    except OSError as error:
        raise MinidetError(
            f"{path}: cannot be written ({error.strerror or error}). {_remedy(error)}; a file that stood there before "
            "is unchanged."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space or choose a folder on another disk",
    errno.EDQUOT: "Your share of the disk is used up: free some space or choose a folder on another disk",
    errno.EFBIG: "Disk or limits (ulimit -f) allow no file so large: free some disk space or choose another folder",
    errno.EROFS: "The disk is mounted for reading only: choose a folder on another disk",
    errno.EACCES: "You may not write there: choose another folder, or change its rights",
    errno.EPERM: "You may not write there: choose another folder, or change its rights",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ENOTDIR: "A part of the path is a file: choose another folder",
    errno.EEXIST: "A part of the path is a file: choose another folder",
    errno.EISDIR: "There is a folder of this name: choose another name",
}


def _remedy(error: OSError) -> str:
    return REMEDIES.get(error.errno, "Check the path, its rights and the disk, or choose another folder")


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power cut too; a file system that cannot do it keeps the file all the same."""
    if os.name == "nt":  # Windows opens no folder
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write `value` as UTF-8 JSON, atomically; NaN and infinity are refused because JSON has no word for them."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read a UTF-8 JSON file.

    Raises:
        DataError: the file is missing, unreadable, not UTF-8, or not whole JSON; the text names the place.
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file. Check the path.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}). Is it really a JSON file?") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. "
            "If the file breaks off there, copy or download it again."
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply to be an annotation file.") from error
    except ValueError as error:  # such as a number of more digits than Python reads
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from error
