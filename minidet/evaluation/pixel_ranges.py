"""Which pixels reach which units: every tensor of a forward pass is followed from the picture on.

For each row and column of a map the first and the last pixel are kept that reach it. Each operation of PyTorch that a
network may use on maps has a rule here for what it does to these ranges; one without a rule is an error, not a guess.

Source: the definition of a receptive field; chapter 04.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minidet.errors import MinidetError

# Of the rows and of the columns of a map: [2, n] float, first and last pixel that reaches each of them; (inf, -inf)
# where none does, which happens in padding.
Reach = tuple[np.ndarray, np.ndarray]


class PixelFollower(TorchDispatchMode):
    """Sees every operation of a forward pass and keeps, for each tensor made of pixels, which pixels reach it."""

    def __init__(self, x: Tensor):
        super().__init__()
        self._known: dict[int, tuple[Tensor, Reach]] = {}
        self._note(x, tuple(np.stack([np.arange(n)] * 2).astype(float) for n in x.shape[-2:]))

    def knows(self, tensor: Any) -> bool:
        return id(tensor) in self._known

    def reach_of(self, tensor: Tensor) -> Reach:
        return self._known[id(tensor)][1]

    def _note(self, tensor: Tensor, reach: Reach) -> None:
        self._known[id(tensor)] = (tensor, reach)  # the tensor too: its id must not be given to another

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        sources = [tensor for tensor in _tensors((args, kwargs)) if self.knows(tensor)]
        if not sources:
            return output
        name = func._schema.name.removeprefix("aten::")
        named = {**{a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}, **kwargs}
        named |= {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
        results = list(_tensors(output))
        if name.endswith("_") and any(result._base is not None for result in results):
            raise MinidetError(f"the network writes into a part of a map ({name}); ask for a map before that")
        if name in _ONLY_SHAPES:
            return output
        if name in _RULES:
            self._note(results[0], _RULES[name](self, named, results[0]))
        elif name.removesuffix("_") in _UNIT_BY_UNIT or torch.Tag.pointwise in func.tags:
            reaches = [self.reach_of(source) for source in sources]
            for result in results[:1] if name in _BATCH_NORMS else results:
                self._note(result, _merge(reaches, result, name))
        else:
            raise MinidetError(
                f"the network uses {name}, of which it is not known how far it looks; ask for a map before it"
            )
        return output


_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training")
# These take from a map its shape and its type, and nothing of what it shows.
_ONLY_SHAPES = {
    *(f"new_{what}" for what in ("ones", "zeros", "empty", "full")),
    *(f"{what}_like" for what in ("ones", "zeros", "empty", "full", "rand", "randn")),
}
# Each unit of the output depends on the same unit of the inputs, whatever happens to the channels.
_UNIT_BY_UNIT = {
    *_BATCH_NORMS,
    "view", "_unsafe_view", "_reshape_alias", "expand", "unsqueeze", "squeeze", "clone", "detach", "alias", "_to_copy",
    "split", "split_with_sizes", "unbind", "select", "copy", "channel_shuffle",
}  # fmt: skip


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _merge(reaches: list[Reach], result: Tensor, name: str) -> Reach:
    merged = []
    for axis, length in enumerate(result.shape[-2:] if result.ndim >= 2 else ()):
        parts = []
        for reach in reaches:
            part = reach[axis]
            if part.shape[1] not in (1, length):
                raise MinidetError(f"the network uses {name} to rearrange rows or columns; ask for a map before it")
            parts.append(np.broadcast_to(part, (2, length)))
        merged.append(_hull(np.stack(parts, axis=-1)))
    if not merged:
        raise MinidetError(f"the network uses {name} to drop rows and columns; ask for a map before it")
    return tuple(merged)


def _hull(ranges: np.ndarray) -> np.ndarray:
    """[2, n, k] ranges -> [2, n]: from the first of each unit's k ranges to the last."""
    return np.stack([ranges[0].min(axis=-1), ranges[1].max(axis=-1)])


def _gather(axis: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Units that depend on the units `sources` [n, k] of an axis; those outside of it are padding."""
    inside = (sources >= 0) & (sources < axis.shape[1])
    ranges = axis[:, sources.clip(0, axis.shape[1] - 1)]  # [2, n, k]
    nothing = np.array([math.inf, -math.inf])[:, None, None]
    return _hull(np.where(inside, ranges, nothing))


def _pair(value: Any, default: Any = None) -> tuple[int, int]:
    value = list(value) if isinstance(value, list | tuple) else [value]
    value = value or list(default)
    return (value[0], value[-1])


def _windows(reach: Reach, result: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Reach:
    kernel, padding, dilation = _pair(kernel), _pair(padding), _pair(dilation)
    stride = _pair(stride, kernel)
    axes = []
    for axis, length, k, s, p, d in zip(reach, result.shape[-2:], kernel, stride, padding, dilation, strict=True):
        axes.append(_gather(axis, np.arange(length)[:, None] * s - p + np.arange(k) * d))
    return tuple(axes)


def _convolution(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    reach, kernel = follower.reach_of(named["input"]), tuple(named["weight"].shape[-2:])
    if not named["transposed"]:
        return _windows(reach, result, kernel, named["stride"], named["padding"], named["dilation"])
    axes = []
    how = zip(*(_pair(named[key]) for key in ("stride", "padding", "dilation")), strict=True)
    for axis, length, k, (s, p, d) in zip(reach, result.shape[-2:], kernel, how, strict=True):
        numerator = np.arange(length)[:, None] + p - np.arange(k) * d  # output o hears input i where o = i s - p + k d
        axes.append(_gather(axis, np.where(numerator % s == 0, numerator // s, -1)))
    return tuple(axes)


def _max_pool(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    reach = follower.reach_of(named["self"])
    return _windows(reach, result, named["kernel_size"], named["stride"], named["padding"], named["dilation"])


def _average_pool(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    reach = follower.reach_of(named["self"])
    return _windows(reach, result, named["kernel_size"], named["stride"], named["padding"], 1)


def _adaptive_pool(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    axes = []
    for axis, length in zip(follower.reach_of(named["self"]), result.shape[-2:], strict=True):
        n = axis.shape[1]
        ranges = [axis[:, i * n // length : -(-(i + 1) * n // length)] for i in range(length)]
        axes.append(np.stack([_hull(part[:, None])[:, 0] for part in ranges], axis=1))
    return tuple(axes)


def _whole(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    """Every unit of the result depends on every unit of the map."""
    source = named.get("self", named.get("input"))
    lengths = result.shape[-2:] if result.ndim == source.ndim else None
    dims = [d % source.ndim for d in named.get("dim") or range(source.ndim)]
    if lengths is None:
        raise MinidetError("the network reduces a map to one number a channel; ask for a map before that")
    axes = []
    for i, (axis, length) in enumerate(zip(follower.reach_of(source), lengths, strict=True)):
        reduced = source.ndim - 2 + i in dims
        axes.append(np.repeat(_hull(axis[:, None]), length, axis=1) if reduced else axis)
    return tuple(axes)


def _cat(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    parts = [follower.reach_of(tensor) for tensor in named["tensors"] if follower.knows(tensor)]
    spatial = named["dim"] % result.ndim - (result.ndim - 2)
    if spatial < 0:
        return _merge(parts, result, "cat")
    if len(parts) != len(named["tensors"]):
        raise MinidetError("the network puts a constant beside a map (cat); ask for a map before that")
    axes = [_hull(np.stack([part[axis] for part in parts], axis=-1)) if axis != spatial else None for axis in (0, 1)]
    axes[spatial] = np.concatenate([part[spatial] for part in parts], axis=1)
    return tuple(axes)


def _rearrange(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    order = [d % result.ndim for d in named.get("dims", ())] or list(range(result.ndim))
    if "dim0" in named:
        a, b = named["dim0"] % result.ndim, named["dim1"] % result.ndim
        order[a], order[b] = order[b], order[a]
    if order[-2:] != [result.ndim - 2, result.ndim - 1]:
        raise MinidetError("the network moves rows and columns to another place (permute); ask for a map before that")
    return follower.reach_of(named["self"])


def _slice(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    axes = list(follower.reach_of(named["self"]))
    spatial = named["dim"] % result.ndim - (result.ndim - 2)
    if spatial >= 0:
        axes[spatial] = axes[spatial][:, slice(named["start"], named["end"], named["step"])]
    return tuple(axes)


def _pad(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    left, _, top, _ = [*named["pad"], 0, 0][:4]
    reach = follower.reach_of(named["self"])
    return tuple(
        _gather(axis, np.arange(length)[:, None] - before)
        for axis, length, before in zip(reach, result.shape[-2:], (top, left), strict=True)
    )


def _nearest(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    axes = []
    for axis, length in zip(follower.reach_of(named["self"]), result.shape[-2:], strict=True):
        axes.append(_gather(axis, (np.arange(length) * axis.shape[1] // length)[:, None]))
    return tuple(axes)


def _bilinear(follower: PixelFollower, named: dict[str, Any], result: Tensor) -> Reach:
    axes = []
    for axis, length in zip(follower.reach_of(named["self"]), result.shape[-2:], strict=True):
        n, i = axis.shape[1], np.arange(length)
        if named["align_corners"]:
            at = i * (n - 1) / max(length - 1, 1)
        else:
            at = ((i + 0.5) * n / length - 0.5).clip(0)
        axes.append(_gather(axis, np.stack([np.floor(at), np.ceil(at).clip(max=n - 1)], axis=1).astype(int)))
    return tuple(axes)


_RULES: dict[str, Callable[[PixelFollower, dict[str, Any], Tensor], Reach]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _max_pool,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "_adaptive_avg_pool2d": _adaptive_pool,
    "mean": _whole,
    "native_group_norm": _whole,
    "cat": _cat,
    "permute": _rearrange,
    "transpose": _rearrange,
    "slice": _slice,
    "constant_pad_nd": _pad,
    "upsample_nearest2d": _nearest,
    "upsample_bilinear2d": _bilinear,
}
