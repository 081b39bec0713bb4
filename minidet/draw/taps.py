"""Layers as dots and lines: which pixels of a row reach one unit, and on how many ways (chapter 04)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import LineCollection

from minidet.draw.figure import Drawing, new_figure, overlay, plain_style, shorten, text_width, write
from minidet.draw.look import LIGHT, Look
from minidet.draw.palette import PALETTE

UNIT, SEEN = PALETTE[1], PALETTE[5]
DOT, ROW, LABELS, HEAD, FOOT = 22, 58, 118, 46, 64  # pixels of the figure: from dot to dot, row to row, and margins


@dataclass(frozen=True)
class TapsPanel:
    """One stack of layers over a row of pixels.

    Attributes:
        title: what is special about it.
        layers: (kernel, stride, dilation) of each, from the picture upwards.
    """

    title: str
    layers: Sequence[tuple[int, int, int]]


def count_ways(layers: Sequence[tuple[int, int, int]]) -> list[np.ndarray]:
    """On how many ways each unit of each row is connected to one unit at the top.

    Args:
        layers: (kernel, stride, dilation) of each, from the picture upwards.

    Returns:
        For the row of pixels and the row after each layer an int64 array [n], just as wide as the unit can see; 0 in a
        hole that a dilation leaves.

    Chapter 04.
    """
    rows = [np.ones(1, dtype=np.int64)]
    for kernel, stride, dilation in reversed(layers):
        above = rows[0]
        below = np.zeros((len(above) - 1) * stride + (kernel - 1) * dilation + 1, dtype=np.int64)
        for tap in range(kernel):
            start = tap * dilation
            below[start : start + (len(above) - 1) * stride + 1 : stride] += above
        rows.insert(0, below)
    return rows


@plain_style
def draw_taps(panels: Sequence[TapsPanel], look: Look = LIGHT) -> Drawing:
    """Below the pixels, above the one unit; lines for the weights on the way, under each pixel how many ways lead up.

    Pixels and units that reach the unit are filled, those in the holes of a dilation are rings.

    Chapter 04.
    """
    ways = [count_ways(panel.layers) for panel in panels]
    widths = [max(len(rows[0]) * DOT + 20, 150) for rows in ways]
    high = max(len(rows) for rows in ways) - 1
    width, height = LABELS + sum(widths), HEAD + high * ROW + FOOT
    figure = new_figure(width, height, look.ground)
    canvas = overlay(figure, width, height)
    left = float(LABELS)
    for panel, rows, wide in zip(panels, ways, widths, strict=True):
        title = shorten(panel.title, wide - 6, 12, bold=True)
        start = left + wide / 2 - 10 - text_width(title, 12, bold=True) / 2
        write(canvas, start, 18, title, 12, look.ink, bold=True)
        places = _places(rows, panel.layers, left + wide / 2 - 10)
        ys = [HEAD + high * ROW - level * ROW for level in range(len(rows))]
        for level, (kernel, _, dilation) in enumerate(panel.layers):
            lines = []
            for n, x in enumerate(places[level + 1]):
                if rows[level + 1][n]:
                    first = n * panel.layers[level][1]
                    below = [places[level][first + tap * dilation] for tap in range(kernel)]
                    lines += [[(x, ys[level + 1]), (each, ys[level])] for each in below]
            canvas.add_collection(LineCollection(lines, colors=look.pale, linewidths=0.8, alpha=0.7, zorder=1))
        for level, (row, xs, y) in enumerate(zip(rows, places, ys, strict=True)):
            colour = SEEN if level == 0 else UNIT
            for count, x in zip(row, xs, strict=True):
                style = {"color": colour, "markeredgecolor": look.ink if count else look.pale, "zorder": 2}
                fill = colour if count else look.ground
                canvas.plot([x], [y], "s" if level == 0 else "o", markersize=11, markerfacecolor=fill, **style)
                if level == 0:
                    canvas.text(x, y + 25, str(count), fontsize=10, ha="center", color=look.ink)
        canvas.text(
            left + wide / 2 - 10, ys[0] + 46, f"spans {len(rows[0])} pixels", fontsize=11, ha="center", color=look.ink
        )
        left += wide
    for level in range(high + 1):
        words = "pixels" if level == 0 else f"after layer {level}"
        write(canvas, 10, HEAD + (high - level) * ROW + 4, words, 11, look.ink)
    write(canvas, 10, HEAD + high * ROW + 25, "ways to the top", 11, look.pale)
    figure.alt = ". ".join(
        f"{panel.title}: one unit spans {len(rows[0])} pixels in a row, on {', '.join(map(str, rows[0]))} ways"
        for panel, rows in zip(panels, ways, strict=True)
    )
    return figure


def _places(rows: Sequence[np.ndarray], layers: Sequence[tuple[int, int, int]], middle: float) -> list[np.ndarray]:
    """x of every dot of every row: a unit stands over the middle of its taps."""
    places = [middle + (np.arange(len(rows[0])) - (len(rows[0]) - 1) / 2) * DOT]
    for row, (kernel, stride, dilation) in zip(rows[1:], layers, strict=True):
        first = np.arange(len(row)) * stride
        places.append((places[-1][first] + places[-1][first + (kernel - 1) * dilation]) / 2)
    return places
