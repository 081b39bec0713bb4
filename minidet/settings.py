"""What a setting may be is written once, in the annotation of its field: here values are held against it.

Settings come from command lines, from JSON inside weights files and from notebooks. A text where a number belongs is
refused where it is written down, not hours later where it is first used in a sum.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from minidet.errors import MinidetError

Ranges = Mapping[str, tuple[float, float]]  # field -> lowest and highest value; of a tuple, of each number in it


def check_settings(
    settings: Any, name: str, ranges: Ranges | None = None, error: type[MinidetError] = MinidetError
) -> None:
    """Hold every field of a dataclass against its annotation and its range.

    A whole number is good for a float, a list for a tuple; true and false are no numbers, and numbers are finite. Of a
    field that is a class of another kind (an assigner, an augmentation), the value must be an object of it.

    Args:
        settings: a dataclass.
        name: what a message calls it.
        ranges: of numbers.
        error: what is raised.

    Raises:
        MinidetError: as `error`; the text names the field, its value and what it must be.
    """
    hints = _hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not _fits(value, hints[field.name]):
            wanted = describe(hints[field.name])
            raise error(f"{name}: {field.name} is {_shown(value)}, but it must be {wanted}.")
        lowest, highest = (ranges or {}).get(field.name, (-math.inf, math.inf))
        parts = value if isinstance(value, (tuple, list)) else (value,)
        if any(_is_number(part) and not lowest <= part <= highest for part in parts):
            wanted = f"at least {lowest:g}" if highest == math.inf else f"from {_number(lowest)} to {_number(highest)}"
            raise error(f"{name}: {field.name} is {_shown(value)}, but it must be {wanted}.")


def describe(hint: Any) -> str:
    """An annotation in words: `tuple[int, int] | None` is "2 whole numbers or None"."""
    kinds = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", type(None): "None"}
    if hint in kinds:
        return kinds[hint]
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(each) for each in inside)
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin is tuple:
        kinds = {int: "whole numbers", float: "finite numbers", str: "texts"}
        many = kinds.get(inside[0]) or f"groups of {describe(inside[0])}"
        return many if inside[-1] is ... else f"{len(inside)} {many}"
    name = getattr(hint, "__name__", str(hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inside)
    if origin is Literal:
        return isinstance(value, str) and value in inside
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        if inside[-1] is ...:
            return all(_fits(each, inside[0]) for each in value)
        return len(value) == len(inside) and all(map(_fits, value, inside))
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return is_finite(value)
    if getattr(hint, "_is_protocol", False):  # an assigner is what can be called as one
        return callable(value) and not isinstance(value, type)
    return isinstance(value, hint)


def is_finite(value: Any) -> bool:
    """Whether this is a number that a float can hold; whole numbers, in JSON too, have any number of digits."""
    try:
        return _is_number(value) and math.isfinite(value)
    except OverflowError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
