"""Checkpoints: written whole or not at all, read without running anything."""

from __future__ import annotations

import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from minidet.errors import MinidetError, WeightsError
from minidet.training.checkpoint import (
    checkpoint_path,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = {
        "tensor": torch.randn(3, 4),
        "half": torch.randn(5).bfloat16(),
        "strided": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "numbers": [1, 2.5, None, True],
        "text": "epoch",
        "random": random_state(),
    }
    save_checkpoint(tmp_path / "a.pt", state)
    back = load_checkpoint(tmp_path / "a.pt")
    for key in ("tensor", "half", "strided"):
        assert torch.equal(back[key], state[key])
        assert back[key].stride() == state[key].stride()
    assert back["numbers"] == state["numbers"]
    assert back["text"] == "epoch"
    assert back["random"]["python"] == state["random"]["python"]


@pytest.mark.parametrize("length", [0, 100, -1, 0.5])
def test_a_file_that_broke_off_is_named(tmp_path, length):
    path = tmp_path / "torn.pt"
    save_checkpoint(path, {"tensor": torch.randn(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * length) if isinstance(length, float) else length])
    with pytest.raises(WeightsError, match=r"torn\.pt: is not a whole checkpoint"):
        load_checkpoint(path)


def test_a_single_flipped_bit_is_found(tmp_path):
    path = tmp_path / "flipped.pt"
    save_checkpoint(path, {"tensor": torch.zeros(10_000)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match=r"flipped\.pt: is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("how", ["torch.save", "pickle", "zip with a plain pickle"])
def test_code_hidden_in_a_checkpoint_is_never_run(tmp_path, how):
    path, marker = tmp_path / "bomb.pt", tmp_path / "marker"
    state = {"format": 1, "model": Bomb(marker)}
    if how == "torch.save":
        torch.save(state, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(state, protocol=2))
            archive.writestr("archive/version", "3\n")
    with pytest.raises(WeightsError, match=r"bomb\.pt: "):
        load_checkpoint(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))  # the bomb does work
    assert marker.exists()


def test_the_text_about_a_bomb_says_what_it_is(tmp_path):
    torch.save({"model": Bomb(tmp_path / "marker")}, tmp_path / "bomb.pt")
    with pytest.raises(WeightsError, match="could run code when opened; it was not opened"):
        load_checkpoint(tmp_path / "bomb.pt")


def test_other_files_are_not_checkpoints(tmp_path):
    with pytest.raises(WeightsError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(WeightsError, match="not a whole checkpoint"):
        load_checkpoint(tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(WeightsError, match=r"zip\.pt"):
        load_checkpoint(tmp_path / "zip.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(WeightsError, match="holds a Tensor, but a checkpoint is a dictionary"):
        load_checkpoint(tmp_path / "tensor.pt")
    with pytest.raises(WeightsError):
        load_checkpoint(tmp_path)


def test_a_disk_that_fills_up_leaves_the_old_checkpoint_whole(tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"tensor": torch.ones(10)})
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))  # no file may grow beyond this, as on a full disk
    try:
        with pytest.raises(MinidetError, match=r"a\.pt: cannot be written") as caught:
            save_checkpoint(path, {"tensor": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))
    assert "disk space" in str(caught.value)
    assert torch.equal(load_checkpoint(path)["tensor"], torch.ones(10))
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]


def test_checkpoints_are_listed_by_how_far_they_got(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    paths = [checkpoint_path(tmp_path, *where) for where in ((2, 0), (10, 0), (9, 0), (9, 30), (9, 4))]
    assert [path.name for path in paths[:4]] == [
        "epoch_0002.pt",
        "epoch_0010.pt",
        "epoch_0009.pt",
        "epoch_0009_step_00030.pt",
    ]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "checkpoints" / "epoch_0099.pt.part").touch()
    (tmp_path / "checkpoints" / "mine.pt").touch()
    assert checkpoints(tmp_path) == [paths[i] for i in (1, 3, 4, 2, 0)]
    assert latest_checkpoint(tmp_path) == paths[1]


def test_random_generators_go_back_to_where_they_were(tmp_path):
    torch.rand(3), random.random()
    save_checkpoint(tmp_path / "a.pt", random_state())
    first = torch.rand(3), random.random(), random.gauss(0, 1)
    set_random_state(load_checkpoint(tmp_path / "a.pt"))
    again = torch.rand(3), random.random(), random.gauss(0, 1)
    assert torch.equal(first[0], again[0])
    assert first[1:] == again[1:]
