"""How well several ways to do a thing agree with the best, stage by stage: one panel for each way to count it.

Stages stand side by side at equal distances, whatever lies between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from minidet.draw.figure import INK, PALE, Drawing, new_figure, overlay, plain_style, shorten, text_width, write
from minidet.draw.look import LIGHT, plain_axes
from minidet.draw.palette import PALETTE

COLOURS = (PALETTE[5], PALETTE[2], PALETTE[4], PALETTE[7])  # vermilion, green, blue, dark red: for any colour vision
MARKERS = ("o", "s", "^", "D")
PANEL_WIDTH, PANEL_HEIGHT, LEFT, GAP, TOP, FOOT = 268, 200, 62, 62, 76, 48  # in pixels


@dataclass(frozen=True)
class AgreementPanel:
    """One way to count how well the best is met.

    Attributes:
        title: what is counted, with its unit.
        curves: name -> a value for each stage, None where there is none; up to four, the same names in the same order
            in every panel.
        percent: the values are shares, drawn on an axis from 0 to 100 %. Otherwise they begin at 0, and the axis is
            logarithmic from 0.01 on.
    """

    title: str
    curves: Mapping[str, Sequence[float | None]]
    percent: bool = True


@plain_style
def draw_agreement(stages: Sequence[str], panels: Sequence[AgreementPanel], grows: str = "", note: str = "") -> Drawing:
    """Panels side by side, a curve in each for every way that is compared.

    Args:
        stages: what the places on the x axis are called, from left to right.
        panels: what is drawn.
        grows: what the x axis is.
        note: a line at the bottom.

    Chapter 10.
    """
    width = LEFT + max(len(panels), 1) * (PANEL_WIDTH + GAP) - GAP + 24
    height = TOP + PANEL_HEIGHT + FOOT + (26 if note else 0)
    figure = new_figure(width, height)
    canvas = overlay(figure, width, height)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    x, room = LEFT - 30, width - LEFT + 20
    fits = sum(text_width(name, 12) + 54 for name in names) <= room
    for name, colour, marker in zip(names, COLOURS, MARKERS, strict=False):
        canvas.plot([x, x + 22], [22, 22], color=colour, marker=marker, markevery=[0], markersize=6, linewidth=1.8)
        text = shorten(name, room if fits else room / len(names) - 54, 12)
        write(canvas, x + 28, 26, text, 12, INK)
        x += 28 + text_width(text, 12) + 26
    for index, panel in enumerate(panels):
        left = LEFT + index * (PANEL_WIDTH + GAP)
        axes = figure.add_axes(
            [left / width, 1 - (TOP + PANEL_HEIGHT) / height, PANEL_WIDTH / width, PANEL_HEIGHT / height]
        )
        write(canvas, left - 30, TOP - 18, shorten(panel.title, PANEL_WIDTH + GAP - 6, 13, True), 13, INK, bold=True)
        _panel(axes, stages, panel, grows)
    if note:
        write(canvas, LEFT - 30, height - 12, shorten(note, width - 40, 12), 12, PALE)
    figure.alt = f"Agreement at {grows or 'stages'} {', '.join(stages)}. " + " ".join(map(_in_words, panels))
    return figure


def _panel(axes: Axes, stages: Sequence[str], panel: AgreementPanel, grows: str) -> None:
    scale = 100 if panel.percent else 1
    for values, colour, marker in zip(panel.curves.values(), COLOURS, MARKERS, strict=False):
        points = [(place, scale * value) for place, value in enumerate(values) if _is_number(value)]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=6, linewidth=1.8, zorder=3)
    axes.set_xlim(-0.25, max(len(stages) - 0.75, 0.25))
    axes.set_xticks(range(len(stages)), stages)
    axes.set_xlabel(grows, fontsize=12, color=PALE)
    if panel.percent:
        axes.set_ylim(0, 104)
        axes.set_yticks(range(0, 101, 20), [f"{share} %" for share in range(0, 101, 20)])
    else:
        top = max([value for values in panel.curves.values() for value in values if _is_number(value)], default=0)
        ticks = [0.0, *(value for value in (0.01, 0.1, 1, 10, 100, 1000, 10_000) if value <= max(top, 0.1))]
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(-0.0015, 1.5 * max(top, 0.1))
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_yticklabels([f"{value:,g}" for value in ticks])
    plain_axes(axes, LIGHT, grid="y")


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _in_words(panel: AgreementPanel) -> str:
    def text(value: float | None) -> str:
        return "–" if not _is_number(value) else f"{value:.0%}" if panel.percent else f"{value:.3g}"

    parts = [f"{name}: {', '.join(map(text, values))}" for name, values in panel.curves.items()]
    return f"{panel.title}: {'; '.join(parts) or 'nothing yet'}."
