"""How cost grows with the work: one panel for each thing that grows, both axes logarithmic.

On such axes a cost that grows with the n-th power is a straight line of slope n; the pale lines have slope 1 or 2, for
comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from minidet.draw.figure import INK, PALE, Drawing, new_figure, overlay, plain_style, shorten, write
from minidet.draw.palette import PALETTE

COLOURS = (PALETTE[4], PALETTE[5], PALETTE[2], PALETTE[7])  # blue, vermilion, green, dark red: for any colour vision
MARKERS = ("o", "s", "^", "D")
PANEL_WIDTH, PANEL_HEIGHT, LABELS = 232, 210, 132  # of the axes, and of the words right of each, in pixels
LEFT, HEAD, FOOT, GAP = 66, 48, 58, 58


@dataclass(frozen=True)
class ScalingPanel:
    """What one thing costs as another grows.

    Attributes:
        cost: what is on the y axis, with its unit.
        grows: what is on the x axis, with its unit.
        curves: name -> points (x, y), all positive; up to four, the same names in the same order in every panel.
        power: slope of the pale lines: 1 for a cost that doubles with x, 2 for one that grows with its square; 0: none.
    """

    cost: str
    grows: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    power: int = 1


@plain_style
def draw_scaling(rows: Sequence[Sequence[ScalingPanel]], note: str = "") -> Drawing:
    """Panels in rows, a curve for each thing measured, its name at its end.

    Args:
        rows: the panels; those of a row share their y axis.
        note: a line at the bottom, such as the hardware.
    """
    columns = max((len(row) for row in rows), default=1)
    width = LEFT + columns * (PANEL_WIDTH + LABELS + GAP)
    height = len(rows) * (HEAD + PANEL_HEIGHT + FOOT) + (30 if note else 0)
    figure = new_figure(width, max(height, 60))
    canvas = overlay(figure, width, max(height, 60))
    for index, row in enumerate(rows):
        values = [y for panel in row for curve in panel.curves.values() for _, y in curve]
        limits = _limits(values)
        for column, panel in enumerate(row):
            left, top = LEFT + column * (PANEL_WIDTH + LABELS + GAP), index * (HEAD + PANEL_HEIGHT + FOOT) + HEAD
            axes = figure.add_axes(
                [left / width, 1 - (top + PANEL_HEIGHT) / height, PANEL_WIDTH / width, PANEL_HEIGHT / height]
            )
            title = shorten(panel.cost, PANEL_WIDTH + LABELS + 30, 13, bold=True)
            write(canvas, left - 40, top - 18, title, 13, INK, bold=True)
            _panel(axes, panel, limits)
            _name_curves(canvas, panel, (left + PANEL_WIDTH + 10, top), limits)
    if note:
        write(canvas, LEFT - 40, height - 14, shorten(note, width - 40, 12), 12, PALE)
    figure.alt = "Cost as work grows. " + " ".join(_in_words(panel) for row in rows for panel in row)
    return figure


def _panel(axes: Axes, panel: ScalingPanel, limits: tuple[float, float]) -> None:
    x = sorted({point[0] for curve in panel.curves.values() for point in curve})
    axes.set(xscale="log", yscale="log", ylim=limits, xlim=(x[0] / 1.12, x[-1] * 1.12) if x else (1, 10))
    axes.set_xlabel(panel.grows, fontsize=12, color=PALE)
    axes.xaxis.set_major_locator(FixedLocator(x))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{value:g}" for value in x])
    ticks = [value for value in _round_figures() if limits[0] <= value <= limits[1]]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticklabels([f"{value:,g}" for value in ticks])
    axes.tick_params(labelsize=11, colors=PALE, length=0)
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")
    if len(x) > 1 and panel.power:
        start = limits[0]
        while start < limits[1]:
            end = start * (x[-1] / x[0]) ** panel.power
            axes.plot([x[0], x[-1]], [start, end], color="#D8D8D8", linewidth=0.9, zorder=1)
            start *= 10
    for curve, colour, marker in zip(panel.curves.values(), COLOURS, MARKERS, strict=False):
        if curve:
            axes.plot(*zip(*curve, strict=True), color=colour, marker=marker, markersize=5, linewidth=1.8, zorder=3)


def _name_curves(canvas: Axes, panel: ScalingPanel, place: tuple[float, float], limits: tuple[float, float]) -> None:
    """Each curve's name beside its last point, moved apart where two would lie on each other."""
    ends = [
        (math.log(curve[-1][1] / limits[0]) / math.log(limits[1] / limits[0]), name, colour)
        for (name, curve), colour in zip(panel.curves.items(), COLOURS, strict=False)
        if curve
    ]
    lowest = math.inf
    placed = []
    for share, name, colour in sorted(ends):  # from below
        lowest = min(place[1] + PANEL_HEIGHT * (1 - share) + 4, lowest - 16)
        placed.append((lowest, name, colour))
    for y, name, colour in placed:
        write(canvas, place[0], y, shorten(name, LABELS, 12), 12, colour)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Round figures below the least and above the largest value."""
    if not values:
        return 1.0, 10.0
    figures = _round_figures()
    return max(f for f in figures if f <= min(values)), min(f for f in figures if f >= max(values) * 1.001)


def _round_figures() -> list[float]:
    return [mantissa * 10.0**exponent for exponent in range(-6, 12) for mantissa in (1, 2, 5)]


def _in_words(panel: ScalingPanel) -> str:
    parts = [
        f"{name}: {curve[0][1]:.3g} at {curve[0][0]:g}, {curve[-1][1]:.3g} at {curve[-1][0]:g}"
        for name, curve in panel.curves.items()
        if curve
    ]
    return f"{panel.cost} over {panel.grows}: {'; '.join(parts) or 'nothing yet'}."
