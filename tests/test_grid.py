"""Where prediction slots are."""

from __future__ import annotations

import pytest

from minidet.grid import make_grid


def test_slots_run_level_by_level_and_row_by_row():
    grid = make_grid([(2, 3), (1, 2)], [8, 16])
    assert grid.cells.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1], [0, 0], [1, 0]]
    assert grid.strides.tolist() == [8] * 6 + [16] * 2
    assert grid.levels.tolist() == [0] * 6 + [1] * 2


def test_centres_are_half_a_stride_into_the_cell():
    grid = make_grid([(1, 2)], [8])
    assert grid.centers.tolist() == [[4, 4], [12, 4]]


@pytest.mark.parametrize(("side", "slots"), [(416, 3549), (640, 8400)])
def test_the_published_input_sizes_have_the_published_number_of_slots(side, slots):
    assert len(make_grid([(side // s, side // s) for s in (8, 16, 32)], [8, 16, 32])) == slots
