"""Anchors as a picture: levels are shared out evenly, boxes belong to the nearest, and every figure can be read."""

from __future__ import annotations

import matplotlib.colors
import numpy as np
import pytest
import torch

from minidet.draw import draw_anchors, figure_png
from minidet.draw.anchors import COLOURS, DRAWN
from minidet.draw.look import DARK, LIGHT
from minidet.errors import DataError, MinidetError
from tests.explore.pictures import assert_legible

SQUARES = torch.tensor([[90.0, 90.0], [10.0, 10.0], [30.0, 30.0]])
BOXES = torch.tensor([[10.0, 11.0], [9.0, 10.0], [12.0, 10.0], [29.0, 30.0], [33.0, 30.0], [100.0, 80.0]])


def some_sizes(count: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return 4 * 2 ** (7 * torch.rand(count, 2, generator=random))


def lines_of(axes, colour: str, marker: str) -> list:
    return [line for line in axes.lines if line.get_color() == colour and line.get_marker() == marker]


def test_the_text_names_every_anchor_under_its_level_with_the_share_of_its_boxes():
    alt = draw_anchors(BOXES, SQUARES).alt
    assert "3 anchors for 6 boxes" in alt
    assert "finest level, 50% of the boxes: 1: 10 x 10. middle level, 33% of the boxes: 2: 30 x 30. " in alt
    assert "coarsest level, 17% of the boxes: 3: 90 x 90." in alt
    # 100/110, 90/100, 100/120, 870/900, 900/990 and, of 100 x 80 with 90 x 90, 7200/8900: .89 on the average
    assert "both at one centre: 0.89 on the average" in alt


def test_a_box_stands_at_its_width_and_height_in_the_colour_of_its_nearest_anchors_level():
    _, scatter, _ = draw_anchors(BOXES, SQUARES).axes
    for level, (marker, boxes) in enumerate(zip("os^", (BOXES[:3], BOXES[3:5], BOXES[5:]), strict=True)):
        (points,) = lines_of(scatter, COLOURS[level], marker)
        assert np.column_stack(points.get_data()).tolist() == boxes.tolist()
    (crosses,) = lines_of(scatter, LIGHT.ink, "+")
    assert sorted(np.column_stack(crosses.get_data()).tolist()) == sorted(SQUARES.tolist())


def test_the_rectangles_are_true_to_scale_around_one_centre():
    anchors = torch.tensor([[20.0, 60.0], [80.0, 30.0], [10.0, 10.0]])
    rectangles = draw_anchors(BOXES, anchors).axes[2]
    found = {}
    for patch in rectangles.patches:
        assert patch.get_center().tolist() == pytest.approx([0, 0])
        box = patch.get_window_extent()
        colour = matplotlib.colors.to_hex(patch.get_edgecolor()).upper()
        found[colour] = (box.width, box.height)
    pixels_per_pixel = found[COLOURS[0]][0] / 10
    for level, size in enumerate(([10, 10], [20, 60], [80, 30])):
        assert [side / pixels_per_pixel for side in found[COLOURS[level]]] == pytest.approx(size)


@pytest.mark.parametrize(("count", "levels", "shares"), [(9, 3, [3, 3, 3]), (5, 3, [2, 2, 1]), (2, 3, [1, 1, 0])])
def test_anchors_are_shared_out_evenly(count, levels, shares):
    alt = draw_anchors(some_sizes(50), some_sizes(count, 1), levels).alt
    assert [words.count(" x ") for words in alt.split(". ") if "level, " in words] == shares


@pytest.mark.parametrize("look", [LIGHT, DARK])
@pytest.mark.parametrize(
    ("boxes", "count", "levels"), [(1, 1, 1), (3, 1, 3), (40, 9, 3), (300, 16, 4), (5, 20, 2), (9, 2, 4)]
)
def test_any_boxes_and_anchors_can_be_drawn(boxes, count, levels, look):
    assert_legible(draw_anchors(some_sizes(boxes), some_sizes(count, 1), levels, look))


def test_anchors_that_are_all_the_same_can_be_drawn():
    assert_legible(draw_anchors(torch.full((4, 2), 7.0), torch.full((9, 2), 7.0)))


def test_of_very_many_boxes_some_are_drawn_and_all_are_counted():
    figure = draw_anchors(some_sizes(3 * DRAWN), some_sizes(3, 1))
    scatter = figure.axes[1]
    points = sum(len(line.get_xdata()) for line in scatter.lines if line.get_marker() in ("o", "s", "^"))
    assert points == DRAWN
    assert "3 anchors for 12,000 boxes" in figure.alt


def test_the_same_anchors_give_the_same_picture_in_any_order():
    first, second = (figure_png(draw_anchors(BOXES, each)) for each in (SQUARES, SQUARES.flip(0)))
    assert first == second


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(MinidetError, match="levels is 5"):
        draw_anchors(BOXES, SQUARES, levels=5)
    with pytest.raises(DataError, match="N at least 1"):
        draw_anchors(torch.zeros(0, 2), SQUARES)
    with pytest.raises(DataError, match="anchors.*N at least 1"):
        draw_anchors(BOXES, torch.zeros(0, 2))
