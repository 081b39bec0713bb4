"""Ranges against object sizes: what is fitted is what the explorer calls so, and every figure can be read."""

from __future__ import annotations

import math

import pytest

from minidet.draw.look import DARK, LIGHT
from minidet.draw.ranges import draw_ranges
from minidet.draw.receptive_field import RangeRow, join_spans
from tests.explore.pictures import assert_legible

ROWS = [
    RangeRow("one", (547,)),
    RangeRow("far", (1827,)),
    RangeRow("many", tuple(range(547, 1828, 128))),
    RangeRow("endless", (math.inf,)),
]


def test_the_text_says_which_objects_are_fitted():
    alt = draw_ranges(ROWS, [64, 320, 640, 2000], slack=4).alt
    assert "one: receptive fields 547 px; objects not fitted: 64, 640, 2000" in alt
    assert "far: receptive fields 1827 px; objects not fitted: 64, 320, 2000" in alt
    assert "1699, 1827 px; objects not fitted: 64, 2000" in alt
    assert "endless: receptive fields none px; objects not fitted: 64, 320, 640, 2000" in alt


@pytest.mark.parametrize("look", [LIGHT, DARK])
@pytest.mark.parametrize(("rows", "sizes", "slack"), [(ROWS, [3, 5000], 1), (ROWS[:1], [], 16), (ROWS[3:], [100], 4)])
def test_any_rows_and_sizes_can_be_drawn(rows, sizes, slack, look):
    assert_legible(draw_ranges(rows, sizes, slack, look))


def test_spans_that_touch_or_overlap_become_one():
    assert join_spans([(5, 7), (1, 3), (2, 4)]) == [(1, 4), (5, 7)]
    assert join_spans([(1, 9), (2, 3), (9, 10)]) == [(1, 10)]
    assert join_spans([]) == []
