"""Values are held against the annotations that stand beside their fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pytest

from minidet.errors import MinidetError, RunError
from minidet.settings import check_settings, describe


class Rule(Protocol):
    def __call__(self, x: int) -> int: ...


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Everything:
    flag: bool = False
    count: int = 3
    share: float = 0.5
    name: str = "x"
    maybe: int | None = None
    pair: tuple[int, int] = (1, 2)
    many: tuple[float, ...] = ()
    names: tuple[str, ...] | None = None
    word: Literal["a", "b"] = "a"
    sizes: tuple[int, int] | Literal["published"] | None = None
    inner: Inner | None = None
    rule: Rule = abs


RANGES = {"count": (1, 10), "share": (0, 1), "many": (0, float("inf")), "maybe": (1, 2)}


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"count": np.int64(3)},
        {"share": 1},
        {"share": np.float32(0.25)},
        {"maybe": 2},
        {"pair": [3, 4]},
        {"many": (1, 2.5)},
        {"names": ("a", "")},
        {"sizes": "published"},
        {"sizes": (1, 2)},
        {"inner": Inner()},
        {"rule": lambda x: x},
    ],
)
def test_what_the_annotation_allows_passes(fine):
    check_settings(Everything(**fine), "this", RANGES)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"flag": 1}, "this: flag is 1, but it must be true or false."),
        ({"count": 2.0}, "this: count is 2.0, but it must be a whole number."),
        ({"count": True}, "this: count is True, but it must be a whole number."),
        ({"count": 0}, "this: count is 0, but it must be from 1 to 10."),
        ({"count": 11}, "this: count is 11, but it must be from 1 to 10."),
        ({"share": "0.5"}, "this: share is '0.5', but it must be a finite number."),
        ({"share": float("nan")}, "this: share is nan, but it must be a finite number."),
        ({"share": float("inf")}, "this: share is inf, but it must be a finite number."),
        ({"share": False}, "this: share is False, but it must be a finite number."),
        ({"share": 1.5}, "this: share is 1.5, but it must be from 0 to 1."),
        ({"name": b"x"}, "this: name is b'x', but it must be a text."),
        ({"maybe": "1"}, "this: maybe is '1', but it must be a whole number or None."),
        ({"maybe": 3}, "this: maybe is 3, but it must be from 1 to 2."),
        ({"pair": 3}, "this: pair is 3, but it must be 2 whole numbers."),
        ({"pair": (1, 2, 3)}, "this: pair is (1, 2, 3), but it must be 2 whole numbers."),
        ({"pair": "ab"}, "this: pair is 'ab', but it must be 2 whole numbers."),
        ({"many": (1, -2)}, "this: many is (1, -2), but it must be at least 0."),
        ({"many": (1, "2")}, "this: many is (1, '2'), but it must be finite numbers."),
        ({"names": "ab"}, "this: names is 'ab', but it must be texts or None."),
        ({"word": "c"}, "this: word is 'c', but it must be 'a' or 'b'."),
        ({"word": ["a"]}, "this: word is ['a'], but it must be 'a' or 'b'."),
        ({"sizes": "x"}, "this: sizes is 'x', but it must be 2 whole numbers or 'published' or None."),
        ({"inner": {"depth": 1}}, "this: inner is {'depth': 1}, but it must be an Inner or None."),
        ({"rule": "abs"}, "this: rule is 'abs', but it must be a Rule."),
        ({"rule": int}, "this: rule is <class 'int'>, but it must be a Rule."),
        ({"name": 10**100}, f"this: name is {str(10**100)[:77]}..., but it must be a text."),
    ],
)
def test_what_it_does_not_allow_is_named_with_what_it_must_be(wrong, text):
    with pytest.raises(RunError) as raised:
        check_settings(Everything(**wrong), "this", RANGES, RunError)
    assert str(raised.value) == text


def test_the_error_is_minidets_own_when_none_is_given():
    with pytest.raises(MinidetError, match="count"):
        check_settings(Everything(count=None), "this")


def test_an_annotation_is_told_in_words():
    assert describe(tuple[int, ...] | None) == "whole numbers or None"
    assert describe(tuple[float, float, float]) == "3 finite numbers"
