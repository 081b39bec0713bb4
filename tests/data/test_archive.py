"""Archives that are honest, broken, hostile, or too much."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidet.data.archive import unpack
from minidet.errors import FetchError

FILES = {"set/readme.txt": b"hello", "set/images/1.png": b"\x89PNG" * 300, "set/empty": b""}
LEADS_OUT = [
    "../evil",
    "a/../../evil",
    "/evil",
    "\\evil",
    "..\\evil",
    "C:evil",
    "C:\\evil",
    "//host/evil",
    "a/b:stream",
]


def zip_bytes(files, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as content:
        for name, data in files.items():
            content.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def tar_bytes(files, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as content:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            content.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


MAKERS = {"zip": zip_bytes, "tar": tar_bytes, "tar.gz": lambda files: tar_bytes(files, "w:gz")}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.fixture
def attempt(tmp_path):
    """Unpack bytes that must be refused, from a file whose name says nothing; checks that nothing is left behind."""

    def attempt(content, match, **limits):
        path = tmp_path / "archive"
        path.write_bytes(content)
        with pytest.raises(FetchError, match=match) as info:
            unpack(path, tmp_path / "inner" / "out", progress=False, **limits)
        assert str(path) in str(info.value)
        assert sorted(p.name for p in tmp_path.rglob("*")) in (["archive"], ["archive", "inner"])

    return attempt


def listing(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_archive_unpacks_to_what_was_packed(make, tmp_path):
    (tmp_path / "archive").write_bytes(make(FILES))
    assert unpack(tmp_path / "archive", tmp_path / "out", progress=False) == tmp_path / "out"
    assert listing(tmp_path / "out") == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "out"]


def test_folders_and_windows_separators_are_understood(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive", "w") as content:
        content.mkdir("set") if hasattr(content, "mkdir") else content.writestr("set/", "")
        info = zipfile.ZipInfo("x")
        info.filename = "set\\inner\\1.txt"
        content.writestr(info, "one")
    unpack(tmp_path / "archive", tmp_path / "out", progress=False)
    assert listing(tmp_path / "out") == {"set/inner/1.txt": b"one"}


def test_rights_in_the_archive_are_ignored(tmp_path):
    with tarfile.open(tmp_path / "archive", "w") as content:
        info = tarfile.TarInfo("set")
        info.type, info.mode = tarfile.DIRTYPE, 0
        content.addfile(info)
        info = tarfile.TarInfo("set/tool")
        info.mode, info.size = 0o6777, 1
        content.addfile(info, io.BytesIO(b"x"))
    unpack(tmp_path / "archive", tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "set" / "tool").stat().st_mode & (stat.S_ISUID | stat.S_ISGID | 0o111) == 0
    assert listing(tmp_path / "out") == {"set/tool": b"x"}


@pytest.mark.parametrize("name", LEADS_OUT)
def test_names_that_lead_out_are_refused(make, attempt, name):
    attempt(make({"fine": b"1", name: b"2"}), "leads out of the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(attempt, kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as content:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        content.addfile(info)
    attempt(buffer.getvalue(), "link or a device")


def test_links_in_a_zip_are_refused(attempt):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        info = zipfile.ZipInfo("link")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        content.writestr(info, "/etc/passwd")
    attempt(buffer.getvalue(), "link or a device")


def test_a_bomb_is_refused_by_what_it_would_unpack_to(make, attempt):
    content = make({f"{n}": bytes(100_000) for n in range(10)})
    attempt(content, "holds more than 999,999 bytes", max_bytes=999_999)
    attempt(content, "or 9 files", max_files=9)


def test_a_zip_that_understates_its_size_does_not_unpack_more(attempt):
    content = bytearray(zip_bytes({"a": bytes(100_000)}))
    understated = content.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    attempt(bytes(understated), "damaged", max_bytes=1000)


def test_a_tar_whose_names_are_a_bomb_is_refused_before_they_are_read(attempt):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 4 * 2**20
    first = tar_bytes({"a": b"1"})[:1024]
    attempt(gzip.compress(first + name.tobuf(tarfile.GNU_FORMAT) + bytes(name.size)), "a header of 4,194,304 bytes")


def test_the_same_name_twice_is_refused(make, attempt):
    attempt(make({"a": b"1", "./a": b"2"}), "same file twice")
    attempt(make({"a": b"1", "a/b": b"2"}), "same file twice")


def test_an_encrypted_zip_says_so(attempt):
    content = bytearray(zip_bytes({"a": b"1"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    attempt(bytes(content), "is encrypted")


def test_an_archive_that_breaks_off_is_refused_wherever_it_does(make, tmp_path):
    content = make(FILES)
    path = tmp_path / "archive"
    refused = []
    for length in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        try:
            unpack(path, tmp_path / f"{length}", progress=False)
        except FetchError as error:
            refused.append(str(error))
        else:  # a plain tar cut between two members is a shorter tar; cut in its padding it still has everything
            assert make is tar_bytes
            found = listing(tmp_path / f"{length}")
            assert found == FILES or (length % 512 == 0 and found.items() <= FILES.items())
    assert len(refused) > 15
    assert all("damaged" in text for text in refused)


def test_a_damaged_header_in_a_tar_is_not_taken_for_its_end(attempt):
    content = bytearray(tar_bytes({"a": b"1", "b": b"2"}))
    content[1024:1030] = b"!!!!!!"
    attempt(bytes(content), "damaged")


def test_a_zip_with_wrong_contents_is_refused(attempt):
    content = zip_bytes({"a": b"right contents"}, zipfile.ZIP_STORED).replace(b"right", b"wrong")
    attempt(content, "damaged.*CRC")


def test_a_page_instead_of_an_archive_is_refused(attempt):
    attempt(b"<html>Not found</html>" * 100, "is no zip, tar or tar.gz")
    attempt(b"", "is no zip, tar or tar.gz")


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(FetchError, match=r"nowhere\.zip: there is no such file"):
        unpack(tmp_path / "nowhere.zip", tmp_path / "out")


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "archive").write_bytes(zip_bytes(FILES))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(FetchError, match="is there already"):
        unpack(tmp_path / "archive", tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "keep"


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    (tmp_path / "archive").write_bytes(zip_bytes(FILES))
    (tmp_path / ".out.unpacking").mkdir()
    (tmp_path / ".out.unpacking" / "half").write_text("x")
    unpack(tmp_path / "archive", tmp_path / "out", progress=False)
    assert listing(tmp_path / "out") == FILES


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_a_fetch_error_or_files_inside(tmp_path, data):
    content = bytearray(MAKERS[data.draw(st.sampled_from(sorted(MAKERS)))](FILES))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    (tmp_path / "archive").write_bytes(content)
    target = tmp_path / "inner" / "out"
    try:
        unpack(tmp_path / "archive", target, progress=False)
    except FetchError:
        assert not target.exists()
    finally:
        shutil.rmtree(target, ignore_errors=True)
    assert [path.name for path in tmp_path.iterdir() if path.name != "inner"] == ["archive"]
