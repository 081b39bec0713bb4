"""What an ablation found: every run a dot, so that the spread of equal runs stands beside the effect (chapter 12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from matplotlib.axes import Axes

from minidet.draw.figure import INK, PALE, Drawing, new_figure, overlay, plain_style, shorten, text_width, write
from minidet.draw.palette import PALETTE

DOT, MEAN = PALETTE[4], PALETTE[5]  # blue and vermilion, told apart with any colour vision; shapes differ as well
WIDTH, ROW, HEAD, FOOT = 960, 46, 62, 52  # of the figure, of a row, above the rows and below them, in pixels
LABELS, FIGURES, PAPER = 290, 140, 96  # of the columns: words, mean and spread, published figure


@dataclass(frozen=True)
class AblationRow:
    """One setting and what its runs reached."""

    words: str  # what is special about it
    values: Sequence[float]  # AP of each run, in percent
    published: float | None = None  # what a paper reports for it, in percent, on other data


@dataclass(frozen=True)
class AblationPanel:
    """The settings that answer one question."""

    question: str
    rows: Sequence[AblationRow]
    source: str = ""  # of the published figures
    steps: bool = False  # each row builds on the one above: what it adds stands behind its figures


@plain_style
def draw_ablation(panels: Sequence[AblationPanel], note: str = "") -> Drawing:
    """One panel for each question, one row for each setting: a dot for each run, a bar at their mean, both in figures.

    Args:
        panels: what was asked and found; a row without values says so.
        note: a line at the bottom, such as data set and length of training.

    Chapter 12.
    """
    heights = [HEAD + ROW * max(len(panel.rows), 1) + FOOT + (20 if panel.source else 0) for panel in panels]
    height = max(sum(heights) + (34 if note else 0), 80)
    figure = new_figure(WIDTH, height)
    canvas = overlay(figure, WIDTH, height)
    low, high = _limits([value for panel in panels for row in panel.rows for value in row.values])
    top = 0.0
    right = WIDTH - 24 - FIGURES - (PAPER if any(row.published for panel in panels for row in panel.rows) else 0)
    for panel, room in zip(panels, heights, strict=True):
        _panel(figure, canvas, panel, top, right, (low, high))
        top += room
    if note:
        write(canvas, 24, height - 16, shorten(note, WIDTH - 48, 12), 12, PALE)
    figure.alt = " ".join(f"{panel.question}: {'; '.join(map(_in_words, panel.rows))}." for panel in panels)
    return figure


def _panel(
    figure: Drawing, canvas: Axes, panel: AblationPanel, top: float, right: float, limits: tuple[float, float]
) -> None:
    left, height = LABELS, canvas.get_ylim()[0]
    rows_top, rows = top + HEAD, ROW * max(len(panel.rows), 1)
    write(canvas, 24, top + 28, shorten(panel.question, WIDTH - 48, 16, bold=True), 16, INK, bold=True)
    write(canvas, right + 16, rows_top - 8, "mean ± spread", 12, PALE)
    if any(row.published is not None for row in panel.rows):
        write(canvas, WIDTH - PAPER - 8, rows_top - 8, "the paper's", 12, PALE)

    box = (left / WIDTH, 1 - (rows_top + rows) / height, (right - left) / WIDTH, rows / height)
    axes = figure.add_axes(box)
    axes.set(xlim=limits, ylim=(max(len(panel.rows), 1) - 0.5, -0.5), yticks=[])
    axes.set_xlabel("AP on the validation pictures, %", fontsize=12, color=PALE)
    axes.tick_params(labelsize=11, colors=PALE, length=0)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")

    for index, row in enumerate(panel.rows):
        baseline = rows_top + ROW * (index + 0.5) + 5
        words = shorten(row.words, LABELS - 44, 13)
        write(canvas, LABELS - 16 - text_width(words, 13), baseline, words, 13, INK)
        figures = f"{_figures(row.values)}{_gain(panel, index)}"
        write(canvas, right + 16, baseline, figures, 13, INK if row.values else PALE)
        if row.published is not None:
            write(
                canvas,
                WIDTH - PAPER - 8,
                baseline,
                f"{row.published:.1f}{_gain(panel, index, published=True)}",
                13,
                PALE,
            )
        if row.values:
            axes.plot(row.values, [index] * len(row.values), "o", color=DOT, markersize=9, alpha=0.65, clip_on=False)
            axes.plot([mean(row.values)] * 2, [index - 0.3, index + 0.3], color=MEAN, linewidth=3, clip_on=False)
    _legend(canvas, 24, rows_top + rows + 31)
    if panel.source:
        write(canvas, 24, rows_top + rows + 62, shorten(panel.source, WIDTH - 48, 12), 12, PALE)


def _legend(canvas: Axes, x: float, y: float) -> None:
    canvas.plot([x + 5], [y - 4], "o", color=DOT, markersize=9, alpha=0.65, clip_on=False)
    write(canvas, x + 15, y, "one run", 12, PALE)
    canvas.plot([x + 84] * 2, [y - 11, y + 3], color=MEAN, linewidth=3, clip_on=False)
    write(canvas, x + 92, y, "their mean", 12, PALE)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis: round figures around all runs. It need not begin at 0, as dots have no length to compare."""
    if not values:
        return 0.0, 1.0
    margin = max(0.08 * (max(values) - min(values)), 0.5)
    return max(math.floor(min(values) - margin), 0), math.ceil(max(values) + margin)


def _figures(values: Sequence[float]) -> str:
    if not values:
        return "no run yet"
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{mean(values):.1f} (one run)"


def _gain(panel: AblationPanel, index: int, published: bool = False) -> str:
    """What a step adds to the row above, such as " (+1.2)"."""
    if not panel.steps or index == 0:
        return ""
    rows = panel.rows[index - 1], panel.rows[index]
    before, after = ((row.published if published else mean(row.values) if row.values else None) for row in rows)
    return "" if None in (before, after) else f" ({after - before:+.1f})"


def _in_words(row: AblationRow) -> str:
    runs = f", {len(row.values)} runs" if len(row.values) > 1 else ""
    paper = f" (the paper's: {row.published:.1f})" if row.published is not None else ""
    return f"{row.words} {_figures(row.values)}{runs}{paper}"
