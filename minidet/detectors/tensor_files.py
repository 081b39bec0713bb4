"""Files that others wrote, opened without running anything that is in them.

A pickle is a program. PyTorch reads its own files with a list of what may occur in them; for the older files that hold
numpy arrays this module does the same, and more strictly: nothing but inert stand-ins is ever called.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
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
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors, numbers and text, or is damaged, so it is not opened: a pickle can run "
            f"any program. Get it from the original place again. (the reader says: {str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
        raise WeightsError(f"{path}: is not a whole {_KIND[read]} ({error}). Download it again.") from error


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
    return tensors


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of an odd file, the errors say in plain words
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    return load_file(path)


def _read_numpy_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return _with_tensors(_InertUnpickler(file, encoding="latin1").load())  # latin1: files of Python 2
        except (AttributeError, TypeError, MemoryError, OverflowError, RecursionError) as error:
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


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}")
        return _STAND_INS[module, name]


def _with_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_tensors(item) for key, item in value.items()}
    return value.tensor() if isinstance(value, _Array) else value
