"""Files that others wrote, opened without running anything that is in them.

A pickle is a program. PyTorch reads its own files with a list of what may occur in them; for the older files that hold
numpy arrays this module does the same, and more strictly: nothing but inert stand-ins is ever called.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from minidet.errors import WeightsError


def read_tensor_file(path: Path) -> Any:
    """What is in a `.pth`, `.safetensors` or `.pkl` file, with arrays as tensors on the CPU.

    Args:
        path: `.safetensors` and `.pkl` (a pickle of numpy arrays) are known by their suffix; all else is PyTorch's.

    Raises:
        WeightsError: there is no such file, it is damaged, or it holds more than tensors, numbers and text.
    """
    if path.suffix == ".safetensors":
        read = _read_safetensors
    elif path.suffix == ".pkl":
        read = _read_numpy_pickle
    else:
        read = _read_torch
    try:
        return read(path)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: there is no such file. Check the path.") from error
    except Exception as error:  # on damaged bytes the readers fail with a dozen types
        other = what_it_is(path)
        if other is not None:
            raise WeightsError(
                f"{path}: is {other}, not a {_KIND[read]}. Check the path, and where the file came from."
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            raise WeightsError(
                f"{path}: holds more than tensors, numbers and text, or is damaged, so it is not opened: a pickle can "
                f"run any program. Get it from the original place again. (the reader says: {reason_of(error)})"
            ) from error
        raise WeightsError(f"{path}: is not a whole {_KIND[read]} ({reason_of(error)}). Download it again.") from error


def what_it_is(path: Path) -> str | None:
    """What a file is that was taken for weights, as far as its first bytes tell; None where they say nothing."""
    if path.is_dir():
        return "a folder"
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except (OSError, ValueError):
        return None
    if not start:
        return "an empty file"
    if start[8:9] == b"{" and start[6:8] == b"\0\0":  # after the length of the header
        return None if path.suffix == ".safetensors" else "a safetensors file under another name"
    if start.startswith(b"PK") and path.suffix in (".safetensors", ".pkl"):
        return "a zip archive, perhaps a PyTorch checkpoint (.pth)"
    return next((kind for magic, kind in _MAGIC.items() if start.lower().startswith(magic)), None)


_MAGIC = {
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML file",
    b"version https://": "a pointer of Git LFS, whose file was not fetched",
    b"\x89png": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x1f\x8b": "a gzip archive",
    b"\x89hdf": "an HDF5 file (Keras, MATLAB)",
    b"\x93numpy": "an array of numpy (.npy)",
    b"gguf": "a GGUF file",
    b"\x7felf": "a program",
}


def reason_of(error: Exception) -> str:
    """Why a reader gave up, in one line, without its advice to open the file all the same."""
    text = str(error)
    if isinstance(error, (KeyError, IndexError)):  # their text is a bare number
        return "its parts do not fit together"
    wanted = re.search(r"(?:GLOBAL|global:?)\s+(?:GLOBAL )?([\w.]+\.[\w.]+)", text)
    if wanted:
        return f"it wants to use {wanted[1]}"
    if "weights_only" in text:  # a page on how to go on with it switched off
        kind = re.search(r"TorchScript|legacy \.tar", text)
        return f"it is a {kind[0]} archive" if kind else "it is no list of tensors"
    first = re.split(r"\n|  |(?<=\.) ", text.strip())[0].rstrip(".")
    return first or type(error).__name__


def state_dict_in(checkpoint: Any, where: str, what: str = "a checkpoint") -> dict[str, Tensor]:
    """The tensors by name: the checkpoint itself, or what it has under "model" or "state_dict".

    Entries that are no tensors are left out where there are tensors beside them; "module." before a name goes.

    Raises:
        WeightsError: there are none.
    """
    state = checkpoint
    for key in ("model", "state_dict"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            state = checkpoint[key]
            break
    tensors = {}
    if isinstance(state, Mapping):
        tensors = {str(key).removeprefix("module."): v for key, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(
            f'{where}: is not {what}: no tensors by name, neither in it nor under its keys "model" and "state_dict".'
        )
    for key, value in tensors.items():
        if value.layout != torch.strided or value.device.type == "meta" or value.is_quantized:
            raise WeightsError(f"{where}: {key} is sparse, quantised or without values; save it as a plain tensor.")
    return tensors


def _read_torch(path: Path) -> Any:
    if path.is_file() and zipfile.is_zipfile(path):
        check_zip(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of an odd file, the errors say in plain words
        return torch.load(path, map_location="cpu", weights_only=True)


def check_zip(path: Path) -> None:
    """Compare the checksums of PyTorch's zip file, which `torch.load` does not.

    Raises:
        ValueError: one is wrong, or members are compressed, as PyTorch never writes them: it may be a bomb.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
            raise ValueError("its members are compressed, as PyTorch never writes them: it may be a zip bomb")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum in {damaged}")


def _read_safetensors(path: Path) -> Any:
    return load_file(path)


def _read_numpy_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return _with_tensors(_InertUnpickler(file, encoding="latin1").load())  # latin1: files of Python 2
        except (AttributeError, TypeError, AssertionError, MemoryError, OverflowError, RecursionError) as error:
            raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


_KIND = {
    _read_torch: "PyTorch checkpoint",
    _read_safetensors: "safetensors file",
    _read_numpy_pickle: "pickle of numpy arrays",
}


# Stand-ins for what a pickled numpy array calls: they note the bytes and do nothing.


class _Dtype:
    def __init__(self, code: str = "", *_: Any):
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


class _Array:
    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.column_major, self.data = state

    @classmethod
    def of(cls, data: bytes, dtype: _Dtype, shape: tuple[int, ...] = (), order: str = "C") -> _Array:
        array = cls()
        array.__setstate__((1, shape, dtype, order == "F", data))
        return array

    def tensor(self) -> Tensor:
        if self.dtype.code not in _NUMBERS:
            raise pickle.UnpicklingError(f"an array of type {self.dtype.code!r}; weights are numbers")
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data  # text: from Python 2
        order = {"|": "<", "=": "<"}.get(self.dtype.order, self.dtype.order)
        values = np.frombuffer(data, np.dtype(order + self.dtype.code))
        if len(values) != math.prod(self.shape):
            raise ValueError(f"{len(values)} numbers for an array of shape {self.shape}")
        values = values.reshape(self.shape, order="F" if self.column_major else "C")
        return torch.from_numpy(values.astype(self.dtype.code, order="C"))  # a copy, in this machine's byte order


_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # how older protocols write no bytes at all
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[_core + ".multiarray", "_reconstruct"] = _reconstruct
    _STAND_INS[_core + ".multiarray", "scalar"] = lambda dtype, data: _Array.of(data, dtype)
    _STAND_INS[_core + ".numeric", "_frombuffer"] = lambda data, dtype, shape, order: _Array.of(
        data, dtype, shape, order
    )


# The reader written in Python: that in C makes room for as many remembered objects as five bytes of a file ask for.
class _InertUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}")
        return _STAND_INS[module, name]


def _with_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_tensors(item) for key, item in value.items()}
    return value.tensor() if isinstance(value, _Array) else value
