"""Files are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys

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


# ---- disks and folders that refuse ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "The disk is full: free some space"),
        (errno.EDQUOT, "Your share of the disk is used up"),
        (errno.EFBIG, "allow no file so large"),
        (errno.EROFS, "mounted for reading only"),
        (errno.EACCES, "You may not write there"),
        (errno.EPERM, "change its rights"),
        (errno.EIO, "Check the path, its rights and the disk"),
    ],
)
@pytest.mark.parametrize("call", ["tempfile.mkstemp", "os.fsync", "os.replace"])
def test_whatever_the_system_refuses_is_told_with_what_to_do(tmp_path, monkeypatch, number, advice, call):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        with pytest.raises(MinidetError) as raised:
            write_json(path, {"new": 2})
    for part in (str(path), os.strerror(number), advice, "a file that stood there before is unchanged"):
        assert part in str(raised.value)
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


FILL = """
import resource, signal, sys
from minidet.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with atomic_write(sys.argv[1]) as file:
        file.write(bytes(1_000_000))
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limits of this kind")
def test_a_file_beyond_the_systems_limit_is_told_and_the_old_one_stays(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FILL, path], capture_output=True, text=True, check=True)
    assert "w.bin: cannot be written (File too large)" in done.stdout
    assert "ulimit -f" in done.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@contextlib.contextmanager
def mounted(folder, options: str):
    """A small file system of its own; only root can have one."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems can only be mounted by root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def write_twice(path, size: int) -> None:
    with atomic_write(path) as file:
        file.write(bytes(size))
        file.flush()
        file.write(bytes(100_000))


def test_a_disk_that_is_really_full_is_told_and_holds_no_rubbish(tmp_path):
    with mounted(tmp_path, "size=64k") as folder:
        write_json(folder / "a.json", [1])
        for size in (100_000, 60_000):
            with pytest.raises(MinidetError, match="No space left on device.*The disk is full"):
                write_twice(folder / "a.json", size)
        assert [path.name for path in folder.iterdir()] == ["a.json"]
        assert read_json(folder / "a.json") == [1]


def test_a_disk_mounted_for_reading_is_told(tmp_path):
    with mounted(tmp_path, "ro,size=64k") as folder, pytest.raises(MinidetError, match="Read-only.*for reading only"):
        write_json(folder / "deep" / "a.json", [1])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere, Windows has other rights")
def test_a_folder_without_rights_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MinidetError, match="Permission denied.*You may not write there"):
        write_json(tmp_path / "a.json", [1])


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["with blanks.json", "-rf", "ünïcödé 圖.json", "new\nline.json", "%s{x}$(id).json", "'\"`.json", "." * 3 + "json"],
)
def test_odd_names_are_names(tmp_path, name):
    write_json(tmp_path / name, [1])
    assert read_json(tmp_path / name) == [1]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_longest_name_that_the_disk_takes_can_be_written(tmp_path):
    name = "n" * 255  # the temporary name must not be longer
    write_json(tmp_path / name, [1])
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["n" * 256, "a\0b", "x/y.json", "", "."])
def test_names_that_no_file_can_have_are_refused_without_rubbish(tmp_path, name):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(MinidetError, match="cannot be written|no file can have this name"):
        write_json(tmp_path / name, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_in_the_place_of_the_file_is_left_alone(tmp_path):
    (tmp_path / "a.json" / "inside").mkdir(parents=True)
    with pytest.raises(MinidetError, match="a folder of this name|cannot be written"):
        write_json(tmp_path / "a.json", [1])
    assert [path.name for path in tmp_path.rglob("*")] == ["a.json", "inside"]


# ---- power cuts ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no folder")
def test_contents_are_on_the_disk_before_the_name_and_the_name_before_success(tmp_path, monkeypatch):
    happened = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("rename"), replace(a, b)))
    write_json(tmp_path / "a.json", [1])
    assert happened == ["file", "rename", "folder"]


def test_a_file_system_that_cannot_flush_folders_keeps_the_file(tmp_path, monkeypatch):
    fsync = os.fsync

    def only_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    write_json(tmp_path / "a.json", [1])
    assert read_json(tmp_path / "a.json") == [1]


KILLED = """
import os, signal, sys
from minidet.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_what_a_killed_process_leaves_is_hidden_and_in_nobodys_way(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[1]")
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    left = [each.name for each in tmp_path.iterdir() if each != path]
    assert len(left) == 1 and left[0].startswith(".a.json.") and left[0].endswith(".part")
    assert read_json(path) == [1]
    write_json(path, [2])
    assert read_json(path) == [2]
