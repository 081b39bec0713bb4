"""Pickles of numpy arrays are read to the bit, and nothing in them ever runs."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from minidet.detectors.tensor_files import read_tensor_file, state_dict_in
from minidet.errors import WeightsError


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_kind_come_back_as_tensors(tmp_path, protocol):
    rng = np.random.default_rng(0)
    arrays = {
        "float": rng.normal(size=(2, 3, 4)).astype("f4"),
        "column by column": np.asfortranarray(rng.normal(size=(3, 5))),
        "other byte order": rng.normal(size=(4,)).astype(">f4"),
        "half": rng.normal(size=(3,)).astype("f2"),
        "long": np.array([[2**40, -1]]),
        "byte": np.arange(5, dtype="u1"),
        "empty": np.zeros((0, 3), "f4"),
        "number": np.array(7),
        "scalar": np.float32(2.5),
    }
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone", "n": 3}, protocol=protocol))
    read = read_tensor_file(path)
    assert (read["__author__"], read["n"]) == ("someone", 3)
    for key, array in arrays.items():
        expected = torch.from_numpy(np.array(array).astype(array.dtype.newbyteorder("=")))
        assert torch.equal(read["model"][key], expected), key
        assert read["model"][key].dtype == expected.dtype


def test_a_pickle_of_python_2_is_read(tmp_path):
    # Written out by hand: an array of the two little-endian float32 numbers 1.0 and -2.0, with byte strings throughout.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x80\x3f\x00\x00\x00\xc0tb"
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(b"\x80\x02}U\x01w" + array + b"s.")
    assert torch.equal(read_tensor_file(path)["w"], torch.tensor([1.0, -2.0]))


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


class Shell:
    def __reduce__(self):
        return (os.system, ("true",))


@pytest.mark.parametrize("what", ["bomb", "shell", "array of objects", "other numpy function", "class"])
def test_a_pickle_that_wants_more_than_arrays_is_refused_and_never_run(tmp_path, what):
    marker = tmp_path / "it ran"
    content = {
        "bomb": lambda: pickle.dumps({"model": {"w": Bomb(marker)}}),
        "shell": lambda: pickle.dumps(Shell()),
        "array of objects": lambda: pickle.dumps({"w": np.array([Bomb(marker)], dtype=object)}),
        "other numpy function": lambda: b"cnumpy\nload\n(S'x.npy'\ntR.",
        "class": lambda: pickle.dumps({"w": np.ma.array([1.0])}),
    }[what]()
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights.pkl: holds more than tensors"):
        read_tensor_file(path)
    assert not marker.exists()


def test_an_array_of_objects_without_foreign_classes_is_refused_too(tmp_path):
    path = tmp_path / "objects.pkl"
    path.write_bytes(pickle.dumps({"w": np.array([1, "text"], dtype=object)}))
    with pytest.raises(WeightsError, match="weights are numbers"):
        read_tensor_file(path)


@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.safetensors"])
def test_damaged_and_missing_files_are_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(WeightsError, match=f"{name}: there is no such file"):
        read_tensor_file(path)
    path.write_bytes(pickle.dumps({"w": np.zeros(100)})[:60])
    with pytest.raises(WeightsError, match=name):
        read_tensor_file(path)
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match=name):
        read_tensor_file(path)


def test_lies_about_a_shape_are_found(tmp_path):
    path = tmp_path / "shape.pkl"
    text = pickle.dumps({"w": np.zeros(3, "f4")}, protocol=2)
    assert text.count(b"K\x03\x85") == 1  # the shape (3,)
    path.write_bytes(text.replace(b"K\x03\x85", b"K\x07\x85"))
    with pytest.raises(WeightsError, match=r"3 numbers for an array of shape \(7,\)"):
        read_tensor_file(path)


def test_tensors_are_found_where_checkpoints_keep_them():
    w = torch.ones(1)
    for checkpoint in ({"w": w}, {"model": {"module.w": w}}, {"state_dict": {"w": w, "note": "text"}}):
        assert state_dict_in(checkpoint, "x.pth") == {"w": w}
    for nothing in ({}, {"model": {}}, [w], None, {"epoch": 3}):
        with pytest.raises(WeightsError, match="x.pth: is not a checkpoint: no tensors by name"):
            state_dict_in(nothing, "x.pth")
