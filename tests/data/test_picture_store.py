"""Kept pictures: the same bytes from everywhere, files that are whole or not there, no surprise where room is short."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minidet.data import picture_store as module
from minidet.data.coco import CocoDataset
from minidet.data.picture_store import FOLDER, PictureStore
from minidet.errors import DataError, MinidetError

SIZES = [(20, 30), (16, 16), (40, 25)]  # height, width
STORED = [(20, 30), (16, 16), (20, 12)]
SPACE = namedtuple("SPACE", "total used free")


def write_data(folder: Path) -> CocoDataset:
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    images = []
    for i, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "train" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
    path = folder / "annotations" / "instances_train.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}))
    return CocoDataset(path, folder / "train")


@pytest.fixture
def data(tmp_path) -> CocoDataset:
    return write_data(tmp_path / "data")


def store(data: CocoDataset, cache: str = "disk", name: str = "small", log=None, **options) -> PictureStore:
    return PictureStore(data, STORED, name, cache, log=log or pytest.fail, **options)


def files(data: CocoDataset) -> list[str]:
    return sorted(path.name for path in (data.annotations_path.parent / FOLDER).iterdir())


def reads(data: CocoDataset, monkeypatch) -> list[int]:
    """Indices of the pictures that are decoded from here on."""
    done, original = [], data.image
    monkeypatch.setattr(data, "image", lambda index: done.append(index) or original(index))
    return done


def test_every_cache_gives_the_same_bytes(data):
    plain, kept, mapped = store(data, "none"), store(data, "ram"), store(data, "disk")
    assert [each.kept_in for each in (plain, kept, mapped)] == ["none", "ram", "disk"]
    for index, size_hw in enumerate(STORED):
        assert plain[index].shape == (*size_hw, 3)
        assert np.array_equal(plain[index], kept[index])
        assert np.array_equal(plain[index], mapped[index])
    assert np.array_equal(plain[0], np.asarray(Image.open(data.images_path / "0.png")))
    assert mapped.bytes == 3 * (20 * 30 + 16 * 16 + 20 * 12)
    assert not kept[0].flags.writeable
    assert not mapped[0].flags.writeable


def test_a_file_is_built_once_and_found_by_every_later_run(data, monkeypatch):
    decoded = reads(data, monkeypatch)
    store(data)
    assert decoded == [0, 1, 2]
    again = store(data)
    assert np.array_equal(again[2], store(data, "none").read(2))
    assert decoded == [0, 1, 2, 2]
    assert len(files(data)) == 1


def test_a_file_that_is_replaced_or_removed_stays_readable_for_the_run_that_uses_it(data):
    pictures = store(data)
    expected = np.array(pictures[0])
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(data.images_path / "0.png")
    assert not store(data)[0].any()
    assert np.array_equal(pictures[0], expected)


def test_threads_that_fill_a_cache_change_nothing(data):
    alone, together = store(data, "ram"), store(data, "ram", threads=3)
    assert alone.pixels.equal(together.pixels)


def test_a_changed_picture_makes_a_new_file_and_removes_the_old_one(data):
    store(data)
    store(data, name="other-size")
    (before,) = (name for name in files(data) if "small" in name)
    path = data.images_path / "1.png"
    Image.fromarray(np.full((16, 16, 3), 7, dtype=np.uint8)).save(path)
    assert (store(data)[1] == 7).all()
    (after,) = (name for name in files(data) if "small" in name)
    assert after != before
    assert len(files(data)) == 2  # that of the other size stays
    os.utime(path, ns=(0, 0))  # the same bytes at another time: better read again than be wrong
    store(data)
    assert after not in files(data)


def test_a_torn_file_is_built_anew(data, monkeypatch):
    store(data)
    (path,) = (data.annotations_path.parent / FOLDER).iterdir()
    content = path.read_bytes()
    decoded = reads(data, monkeypatch)
    for torn in (content[:100], content[:-3], b"", content[-60:]):
        path.write_bytes(torn)
        assert np.array_equal(store(data)[0], np.asarray(Image.open(data.images_path / "0.png")))
    assert decoded == [0, 1, 2] * 4
    assert path.read_bytes() == content


def test_what_a_killed_run_left_behind_is_removed_once_it_is_old(data):
    store(data)
    folder = data.annotations_path.parent / FOLDER
    for name, age in ((".instances_train-small-x.pixels.a.part", 7200), (".instances_train-small-y.pixels.b.part", 5)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    (folder / files(data)[-1]).write_bytes(b"torn")
    store(data)
    assert [name for name in files(data) if name.endswith(".part")] == [".instances_train-small-y.pixels.b.part"]


@pytest.mark.parametrize("cache", ["disk", "auto"])
def test_a_full_disk_is_reported_and_training_goes_on_without_a_file(data, monkeypatch, cache):
    told = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SPACE(10**6, 10**6, 1000))
    pictures = store(data, cache, log=told.append, memory_bytes=0)
    assert pictures.kept_in == "none"
    assert pictures[0].shape == (20, 30, 3)
    assert len(told) == 1
    assert "not kept on disk" in told[0] and "the pictures take" in told[0]
    assert files(data) == []


def test_a_disk_that_fills_up_while_the_file_is_written_leaves_nothing_behind(data, monkeypatch):
    told = []

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    pictures = store(data, log=told.append)
    assert pictures.kept_in == "none"
    assert "No space left on device" in told[0]
    assert files(data) == []


def test_a_folder_that_cannot_be_written_is_reported_and_not_used(data):
    (data.annotations_path.parent / FOLDER).write_text("a file where the folder should be")
    told = []
    assert store(data, log=told.append).kept_in == "none"
    assert FOLDER in told[0]


def test_auto_takes_memory_before_disk_before_neither(data, monkeypatch):
    needed = store(data, "none").bytes
    assert store(data, "auto", memory_bytes=needed).kept_in == "ram"
    assert store(data, "auto", memory_bytes=needed - 1).kept_in == "disk"
    monkeypatch.setattr(module, "free_memory", lambda: 2 * needed)
    assert store(data, "auto").kept_in == "ram"
    monkeypatch.setattr(module, "free_memory", lambda: 2 * needed - 2)  # half of what is free is too little
    assert store(data, "auto").kept_in == "disk"


def test_wishes_that_cannot_be_fulfilled_are_refused(data, monkeypatch):
    with pytest.raises(MinidetError, match="cache is 'gpu', but it must be one of auto, ram, disk, none"):
        store(data, "gpu")
    monkeypatch.setattr(module, "free_memory", lambda: 100)
    with pytest.raises(MinidetError, match=r"cache is 'ram', but the pictures take 0\.0 GiB.*Choose 'disk'"):
        store(data, "ram")


def test_free_memory_is_less_than_the_machine_has():
    assert 2**20 < module.free_memory() < 2**50


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_picture_that_cannot_be_read_stops_the_filling_or_is_noted(data, cache):
    (data.images_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png: cannot be read"):
        store(data, cache)
    for _ in range(2):  # built, and found
        pictures = store(data, cache, skip_bad=True)
        assert pictures.kept_in == cache
        assert list(pictures.errors) == [1]
        with pytest.raises(DataError, match=r"1\.png: cannot be read"):
            pictures[1]
        assert np.array_equal(pictures[2], store(data, "none").read(2))
    with pytest.raises(DataError, match=r"1\.png: cannot be read"):
        store(data, cache)


def test_a_worker_is_sent_the_name_of_the_file_and_not_its_content(data):
    pictures = store(data)
    expected = np.array(pictures[2])
    sent = pickle.dumps(pictures)
    assert expected.tobytes() not in sent
    assert np.array_equal(pickle.loads(sent)[2], expected)
