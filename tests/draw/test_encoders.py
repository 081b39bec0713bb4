"""The picture of the four encoders: what it says is what the encoders do, and it is legible."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.patches import FancyArrowPatch

from minidet.draw import draw_encoders, figure_png
from minidet.draw.figure import Drawing
from minidet.errors import MinidetError
from minidet.layers.encoders import ENCODERS


def words_in(figure: Drawing) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def arrows_in(figure: Drawing) -> int:
    return sum(isinstance(artist, FancyArrowPatch) for artist in figure.axes[0].artists + figure.axes[0].patches)


@pytest.mark.parametrize(
    ("kind", "maps", "arrows", "alt"),
    [
        # arrows: one from each stage that goes in, one to each head, and four between the levels of a pyramid
        ("mimo", 5, 3 + 5 + 4, "MiMo: C3, C4, C5 in, P3, P4, P5, P6 and P7 out."),
        ("simo", 5, 1 + 5 + 4, "SiMo: C5 in, P3, P4, P5, P6 and P7 out."),
        ("miso", 1, 3 + 1, "MiSo: C3, C4, C5 in, P5 alone out."),
        ("siso", 1, 1 + 1, "SiSo: C5 in, P5 alone out."),
    ],
)
def test_a_panel_has_the_maps_and_arrows_of_its_encoder(kind, maps, arrows, alt):
    figure = draw_encoders([kind])
    words = words_in(figure)
    assert sum(word in ("P3", "P4", "P5", "P6", "P7") for word in words) == maps
    assert sum(word in ("C3", "C4", "C5") for word in words) == 3
    assert arrows_in(figure) == arrows
    assert figure.alt == alt


@pytest.mark.parametrize("count", range(1, 5))
def test_all_text_lies_inside_and_on_no_other_text(count):
    figure = draw_encoders(tuple(ENCODERS)[:count])
    figure_png(figure)
    renderer = figure.canvas.get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("kinds", [[], ["fpn"], ["mimo", "MiSo"]])
def test_an_encoder_that_is_not_there_is_told_with_those_that_are(kinds):
    with pytest.raises(MinidetError, match="'mimo', 'simo', 'miso', 'siso'"):
        draw_encoders(kinds)
