"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from minidet.errors import DataError, MinidetError
from minidet.files import UMASK, atomic_write, read_json, write_json


def test_a_failure_in_the_middle_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"half of", "this is no bytes"])
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with pytest.raises(MinidetError, match=r"weights\.bin.*No space left.*unchanged"), atomic_write(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_place_of_the_folder_is_an_error_and_not_a_crash(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(MinidetError, match="cannot be written"), atomic_write(tmp_path / "x" / "y"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_result_is_readable_like_any_other_file(tmp_path):
    write_json(tmp_path / "a.json", [])
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~UMASK


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not valid JSON.*line 1, column 1"),
        (b'{"images": [', "not valid JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "cannot be read as JSON"),
    ],
)
def test_unreadable_json_is_explained(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"(?s)a.json.*{message}"):
        read_json(path)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json") == [1]


def test_numbers_that_json_has_no_word_for_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not (tmp_path / "a.json").exists()
