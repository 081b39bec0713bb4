"""Object sizes against the ranges that a feature map covers, one row for each map (chapter 04)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minidet.draw.figure import Drawing, new_figure, overlay, plain_style, shorten, write
from minidet.draw.look import LIGHT, Look, plain_axes
from minidet.draw.receptive_field import COVERED, OPEN, RangeRow, is_covered, join_spans

WIDTH, ROW, TOP, FOOT, MARGIN = 820, 96, 12, 84, 22  # of the figure, in pixels


@plain_style
def draw_ranges(rows: Sequence[RangeRow], sizes: Sequence[float], slack: float, look: Look = LIGHT) -> Drawing:
    """For each row the ranges on a logarithmic axis of sizes, and above them the objects that they fit or do not fit.

    Args:
        rows: what a map can see; one receptive field or several.
        sizes: the objects' sizes in pixels, the same in every row.
        slack: a receptive field fits objects from its own size down to its size divided by this.

    Source: after YOLOF, figure 4, with receptive fields that are computed; chapter 04.
    """
    height = TOP + ROW * len(rows) + FOOT
    figure = new_figure(WIDTH, height, look.ground)
    canvas = overlay(figure, WIDTH, height)
    wide, high = WIDTH - 2 * MARGIN, ROW * len(rows)
    axes = figure.add_axes([MARGIN / WIDTH, 1 - (TOP + high) / height, wide / WIDTH, high / height])
    plain_axes(axes, look, "x")
    finite = [[size for size in row.sizes if math.isfinite(size)] for row in rows]
    everything = [*sizes, *(size for each in finite for size in each), 64]
    low = min([*sizes, *(size / slack for each in finite for size in each), 32])
    axes.set_xscale("log")
    axes.set(xlim=(low / 1.3, max(everything) * 1.2), ylim=(high, 0), yticks=[])
    ticks = [2**power for power in range(2, 16) if low / 1.3 <= 2**power <= max(everything) * 1.2]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("size of an object, or of a receptive field, in pixels (logarithmic)", fontsize=11, color=look.pale)
    alts = []
    for number, (row, fields) in enumerate(zip(rows, finite, strict=True)):
        y, fits = ROW * number, is_covered(np.asarray(sizes), fields, slack)
        edge, words = axes.get_xlim()[0], shorten(row.words, wide, 12.5, bold=True)
        axes.add_artist(Rectangle((edge, y + 1), max(everything) * 1.2 - edge, 21, facecolor=look.ground, linewidth=0))
        write(axes, edge, y + 16, words, 12.5, look.ink, bold=True)  # no grid line runs through it
        for start, end in join_spans([(size / slack, size) for size in fields]):
            bar = Rectangle((start, y + 54), end - start, 24, facecolor=COVERED, alpha=0.45, linewidth=0)
            axes.add_artist(bar)
        axes.vlines(fields, y + 51, y + 81, color=look.ink, linewidth=1.8)
        for size, good in zip(sizes, fits, strict=True):
            fill, shape, ring = (COVERED, "o", look.ink) if good else (look.ground, "s", OPEN)
            axes.plot([size], [y + 36], shape, markersize=11, color=fill, markeredgecolor=ring, markeredgewidth=1.5)
        words = ", ".join(f"{size:g}" for size in fields)
        missed = ", ".join(f"{size:g}" for size, good in zip(sizes, fits, strict=True) if not good)
        alts.append(f"{row.words}: receptive fields {words or 'none'} px; objects not fitted: {missed or 'none'}")
    _legend(canvas, height - 16, slack, look)
    figure.alt = ". ".join(alts)
    return figure


def _legend(canvas: Axes, y: float, slack: float, look: Look) -> None:
    canvas.plot([MARGIN + 6], [y - 4], "o", markersize=11, color=COVERED, markeredgecolor=look.ink)
    write(canvas, MARGIN + 18, y, "object that a range fits", 11, look.ink)
    canvas.plot(
        [MARGIN + 184], [y - 4], "s", markersize=11, color=look.ground, markeredgecolor=OPEN, markeredgewidth=1.5
    )
    write(canvas, MARGIN + 196, y, "object that none fits", 11, look.ink)
    canvas.plot([MARGIN + 352] * 2, [y - 11, y + 3], color=look.ink, linewidth=1.8)
    write(canvas, MARGIN + 360, y, "receptive field", 11, look.ink)
    canvas.add_artist(Rectangle((MARGIN + 470, y - 11), 24, 14, facecolor=COVERED, alpha=0.45, linewidth=0))
    write(canvas, MARGIN + 500, y, f"sizes it fits, from 1/{slack:g} of it", 11, look.ink)
