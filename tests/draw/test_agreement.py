"""Agreement by stage: every value stands where it belongs, gaps stay gaps, and any amount can be drawn and read."""

from __future__ import annotations

import math

import pytest

from minidet.draw import AgreementPanel, draw_agreement, figure_png
from tests.explore.pictures import assert_legible

CURVES = {"greedy": [0.7, 0.58, None, 0.8], "rounds": [0.72, 0.71, 0.98, 0.97]}
SHARES = AgreementPanel("slots with the same owner", CURVES)
COSTS = AgreementPanel("cost above the optimum", {"greedy": [3.0, 1.5, 0.2, 0.5], "rounds": [0.0] * 4}, percent=False)


def test_shares_are_drawn_in_per_cent_and_a_missing_value_leaves_a_gap():
    figure = draw_agreement(["0", "1", "4", "17"], [SHARES, COSTS], "epochs", "100 pictures")
    _, shares, costs = figure.axes
    greedy, rounds = shares.lines
    assert (greedy.get_xdata().tolist(), greedy.get_ydata().tolist()) == ([0, 1, 3], pytest.approx([70, 58, 80]))
    assert rounds.get_ydata().tolist() == pytest.approx([72, 71, 98, 97])
    assert costs.lines[0].get_ydata().tolist() == [3.0, 1.5, 0.2, 0.5]
    assert [label.get_text() for label in costs.get_xticklabels()] == ["0", "1", "4", "17"]
    assert shares.get_ylim()[1] > 100 and costs.get_ylim()[1] > 3
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"greedy", "rounds", SHARES.title, COSTS.title, "100 pictures"} <= texts


def test_curves_differ_by_mark_and_not_by_colour_alone():
    lines = draw_agreement(["0", "1", "4", "17"], [SHARES]).axes[1].lines
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 2


def test_the_values_are_told_in_words():
    alt = draw_agreement(["0", "1", "4", "17"], [SHARES, COSTS], "epochs").alt
    assert "Agreement at epochs 0, 1, 4, 17." in alt
    assert "slots with the same owner: greedy: 70%, 58%, –, 80%; rounds: 72%" in alt
    assert "cost above the optimum: greedy: 3, 1.5, 0.2, 0.5" in alt


@pytest.mark.parametrize(
    ("stages", "panels"),
    [
        (["0", "1", "4", "17"], [SHARES, COSTS, SHARES]),
        ([], []),
        (["0"], [AgreementPanel("one", {})]),
        (["0"], [AgreementPanel("one", {"a": [math.nan]}, percent=False)]),
        (["a", "b"], [AgreementPanel("long " * 30, {name * 9: [0.5, 1.0] for name in "abcd"})]),
    ],
)
def test_any_stages_and_panels_can_be_drawn(stages, panels):
    figure = draw_agreement(stages, panels, "epochs", "some pictures")
    assert_legible(figure)
    assert figure_png(figure) == figure_png(draw_agreement(stages, panels, "epochs", "some pictures"))
