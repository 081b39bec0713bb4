"""What the two tasks do inside a head: features, scores, and where their gradients point apart (chapter 08)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from minidet.draw.figure import Drawing, plain_style, shorten, text_width, write
from minidet.draw.look import LIGHT, MARGIN, Look, plain_axes, titled_figure
from minidet.draw.palette import PALETTE
from minidet.draw.picture_axes import DASHED, outline, picture_axes, show_picture

TILE, GAP, HEAD, CHART = 177, 10, 30, 176  # sides in pixels of the figure
CELL = "#56B4E9"  # outline of the chosen cell
COSINES = matplotlib.colormaps["PuOr"]  # purple agrees, orange fights; a cross says it without colour
SERIES = ((PALETTE[5], "s", (0, (6, 2))), (PALETTE[4], "o", "-"))  # of the curves: colour, mark, line


@dataclass(frozen=True)
class HeadMap:
    """One map of one level.

    Attributes:
        words: what it shows.
        values: [H, W] float; NaN where nothing is defined.
        kind: "strength" (from 0 to its largest value), "score" (0 to 1) or "cosine" (-1 to 1).
    """

    words: str
    values: np.ndarray
    kind: str


@dataclass(frozen=True)
class HeadRow:
    """One model: its maps side by side, and a sentence."""

    words: str
    maps: Sequence[HeadMap]
    note: str


@dataclass(frozen=True)
class HeadCurve:
    """Cosine of the two tasks over the course of training: one value an epoch of `epochs`, NaN where undefined."""

    words: str
    epochs: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class HeadView:
    """Several models at the same stage of training, on the same picture.

    Attributes:
        image: uint8 [H, W, 3], the network input.
        boxes: [N, 4] xyxy, the objects.
        cell: row and column of the chosen cell of the level.
        rows: one a model.
        tasks: the two whose gradients are compared, in words.
        level: which level.
        epoch: the stage that is shown.
        curves: of the chart.
    """

    image: np.ndarray
    boxes: np.ndarray
    cell: tuple[int, int]
    rows: Sequence[HeadRow]
    tasks: tuple[str, str]
    level: str
    epoch: int
    curves: Sequence[HeadCurve] = field(default_factory=tuple)


@plain_style
def draw_heads(view: HeadView, look: Look = LIGHT) -> Drawing:
    """A row of maps for each model under the same picture, and the cosine of the tasks' gradients as training went on.

    Chapter 08.
    """
    height_px, width_px = view.image.shape[:2]
    high = round(TILE * height_px / width_px)
    columns = 1 + max((len(row.maps) for row in view.rows), default=0)
    row_high = high + 62
    width = max(2 * MARGIN + columns * TILE + (columns - 1) * GAP, 760 if view.curves else 420)
    height = HEAD + row_high * len(view.rows) + (CHART + 58 if view.curves else 0) + 4
    after = "before training" if view.epoch == 0 else f"after {view.epoch} epoch{'s' if view.epoch > 1 else ''}"
    title = f"Level {view.level}, {after}: {view.tasks[0]} and {view.tasks[1]}"
    figure, canvas = titled_figure(width, height, look, title)

    for number, row in enumerate(view.rows):
        top = HEAD + number * row_high + 36
        write(canvas, MARGIN, top - 20, shorten(row.words, width - 2 * MARGIN, 13, bold=True), 13, look.ink, bold=True)
        axes = picture_axes(figure, (MARGIN, top, TILE, high), (height_px, width_px))
        show_picture(axes, view.image)
        for box in view.boxes:
            outline(axes, box, "#FFFFFF", 1, DASHED)
        write(canvas, MARGIN, top - 5, "picture and objects", 11, look.pale)
        shape = row.maps[0].values.shape if row.maps else (1, 1)
        _mark_cell(axes, view.cell, shape, (height_px, width_px))
        for place, each in enumerate(row.maps, start=1):
            left = MARGIN + place * (TILE + GAP)
            write(canvas, left, top - 5, shorten(each.words, TILE, 11), 11, look.pale)
            axes = picture_axes(figure, (left, top, TILE, high), (height_px, width_px))
            _draw_map(axes, each, (height_px, width_px), look)
            for box in view.boxes:
                outline(axes, box, "#FFFFFF", 0.8, DASHED)
            _mark_cell(axes, view.cell, each.values.shape, (height_px, width_px))
        write(canvas, MARGIN, top + high + 17, shorten(row.note, width - 2 * MARGIN, 11), 11, look.ink)
    if view.curves:
        _chart(figure, canvas, view, HEAD + row_high * len(view.rows) + 8, look)
    figure.alt = f"{title}. " + " ".join(f"{row.words}: {row.note}" for row in view.rows)
    return figure


def _draw_map(axes: Axes, each: HeadMap, size_hw: tuple[int, int], look: Look) -> None:
    height, width = size_hw
    values = np.asarray(each.values, dtype=float)
    known = np.isfinite(values)
    filled = np.where(known, values, 0)
    if each.kind == "cosine":
        colours = COSINES((1 + filled) / 2)
    else:
        top = 1.0 if each.kind == "score" else max(float(filled.max()), 1e-12)
        colours = matplotlib.colormaps["viridis"](filled.clip(0) / top)
    colours[~known] = (*to_rgb(look.faint), 1.0)
    axes.imshow(colours, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    if each.kind == "cosine":
        rows, columns = np.nonzero(known & (filled < 0))
        xs, ys = (columns + 0.5) * width / values.shape[1], (rows + 0.5) * height / values.shape[0]
        size = min(8.0, 0.55 * axes.get_window_extent().width / values.shape[1])
        axes.plot(xs, ys, "x", color="#000000", markersize=size, markeredgewidth=1, zorder=2)


def _mark_cell(axes: Axes, cell: tuple[int, int], shape: tuple[int, ...], size_hw: tuple[int, int]) -> None:
    high, wide = size_hw[0] / shape[0], size_hw[1] / shape[1]
    outline(axes, (cell[1] * wide, cell[0] * high, (cell[1] + 1) * wide, (cell[0] + 1) * high), CELL, 1.8)


def _chart(figure: Drawing, canvas: Axes, view: HeadView, top: float, look: Look) -> None:
    width, height = canvas.get_xlim()[1], canvas.get_ylim()[0]
    write(
        canvas, MARGIN, top + 12, "Do the tasks fight? Cosine of their gradients on this level", 13, look.ink, bold=True
    )
    left, wide, high = MARGIN + 34, 420, CHART - 40
    axes = figure.add_axes([left / width, 1 - (top + 26 + high) / height, wide / width, high / height])
    plain_axes(axes, look)
    epochs = sorted({epoch for curve in view.curves for epoch in curve.epochs})
    place = {epoch: number for number, epoch in enumerate(epochs)}  # stages stand at equal distances
    largest = max([abs(v) for curve in view.curves for v in curve.values if math.isfinite(v)], default=1.0)
    limit = next((limit for limit in (0.25, 0.5, 1.0) if largest <= limit), 1.0)
    axes.set(xlim=(-0.3, max(len(epochs) - 0.7, 0.3)), ylim=(-1.1 * limit, 1.1 * limit))
    axes.set_yticks([-limit, 0, limit])
    axes.set_xticks(list(place.values()), [str(epoch) for epoch in epochs])
    axes.set_xlabel("epochs of training", fontsize=11, color=look.pale)
    axes.axhline(0, color=look.pale, linewidth=1)
    if view.epoch in place:
        axes.axvline(place[view.epoch], color=CELL, linewidth=2, alpha=0.6, linestyle=DASHED)
    x, y = left + wide + 30, top + 44
    for curve, (colour, mark, line) in zip(view.curves, SERIES, strict=False):
        known = [(place[e], v) for e, v in zip(curve.epochs, curve.values, strict=True) if math.isfinite(v)]
        if known:
            axes.plot(*zip(*known, strict=True), color=colour, marker=mark, linestyle=line, markersize=7, linewidth=2)
        canvas.plot([x, x + 26], [y - 4] * 2, color=colour, linestyle=line, linewidth=2)
        canvas.plot([x + 13], [y - 4], mark, color=colour, markersize=7)
        now = dict(zip(curve.epochs, curve.values, strict=True)).get(view.epoch, math.nan)
        words = f"{curve.words}: {now:+.2f}" if math.isfinite(now) else f"{curve.words}: not defined"
        write(canvas, x + 34, y, words, 12, look.ink)
        y += 24
    _cosine_scale(figure, canvas, x, y + 14, look)


def _cosine_scale(figure: Drawing, canvas: Axes, x: float, y: float, look: Look) -> None:
    width, height = canvas.get_xlim()[1], canvas.get_ylim()[0]
    bar = figure.add_axes([x / width, 1 - (y + 12) / height, 180 / width, 12 / height])
    bar.imshow(COSINES(np.linspace(0, 1, 181))[None], aspect="auto", extent=(-1, 1, 0, 1))
    bar.plot(np.linspace(-0.9, -0.1, 6), [0.5] * 6, "x", color="#000000", markersize=5)
    bar.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(0, 1))
    bar.spines[:].set_visible(False)
    for place, words in ((0, "−1, fight"), (1, "+1, agree")):
        shift = 0 if not place else 180 - text_width(words, 11)
        write(canvas, x + shift, y + 26, words, 11, look.ink)
    write(canvas, x, y + 46, "empty: one has hardly any gradient", 11, look.pale)
