"""What a unit can see, what it looks at, and which objects that fits (chapter 04)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minidet.draw.figure import Drawing, plain_style, shorten, text_width, write
from minidet.draw.look import LIGHT, MARGIN, Look, plain_axes, titled_figure
from minidet.draw.palette import PALETTE, text_colour
from minidet.draw.picture_axes import DASHED, outline, picture_axes, show_picture, tag

FIELD, UNIT, COVERED, OPEN = PALETTE[5], PALETTE[1], PALETTE[2], PALETTE[5]
PICTURE, CHART, GAP, HEAD = 512, 386, 24, 58  # sides of the parts, in pixels of the figure
ROW, DOT = 46, 17  # height of a row of ranges; room of one object


@dataclass(frozen=True)
class RangeRow:
    """What one map, or one path through an encoder, can see.

    Attributes:
        words: what it is.
        sizes: theoretical receptive fields in pixels, ascending; infinite ones are left out of the chart.
        chosen: whether it is the map that is looked at.
    """

    words: str
    sizes: tuple[float, ...]
    chosen: bool = False


@dataclass(frozen=True)
class FieldView:
    """One unit of one map, and the objects around it. All lengths are in pixels of the network input.

    Attributes:
        image: uint8 [H, W, 3], the network input.
        boxes: [N, 4] xyxy, the objects.
        unit: xyxy, where the unit's own cell lies.
        field: xyxy, the pixels that it can see inside the picture; None if none.
        field_hw: height and width of what it could see in a picture without borders; may be infinite.
        heat: [H, W] float in [0, 1], how strongly each pixel moves the unit; None: not shown.
        effective_px: size of that field.
        ranges: rows of the chart.
        slack: how many times as large as an object a range may be to count as fitting.
        words: which map of which model.
    """

    image: np.ndarray
    boxes: np.ndarray
    unit: tuple[float, float, float, float]
    field: tuple[float, float, float, float] | None
    field_hw: tuple[float, float]
    heat: np.ndarray | None
    effective_px: float
    ranges: Sequence[RangeRow]
    slack: float
    words: str

    @property
    def sizes(self) -> np.ndarray:
        """[N] the longer side of each object."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).max(axis=1) if len(self.boxes) else np.zeros(0)

    @property
    def covered(self) -> np.ndarray:
        """[N] bool, which objects the chosen rows have a fitting range for."""
        ranges = [size for row in self.ranges if row.chosen for size in row.sizes]
        return is_covered(self.sizes, ranges, self.slack)


def is_covered(sizes: np.ndarray, ranges: Sequence[float], slack: float) -> np.ndarray:
    """[N] bool: some range is at least as large as the object, and at most `slack` times as large."""
    sizes = np.asarray(sizes, dtype=float)[:, None]
    fields = np.asarray([size for size in ranges if math.isfinite(size)], dtype=float)[None]
    return ((fields >= sizes) & (fields <= slack * sizes)).any(axis=1)


@plain_style
def draw_receptive_field(view: FieldView, look: Look = LIGHT) -> Drawing:
    """The unit, its theoretical field as a square and its effective field as heat over the picture; beside it a chart
    of which object sizes the ranges of the model fit.

    Chapter 04.
    """
    height_px, width_px = view.image.shape[:2]
    scale = min(PICTURE / width_px, 420 / height_px)
    wide, high = round(width_px * scale), round(height_px * scale)
    rows = [row for row in view.ranges if any(map(math.isfinite, row.sizes))]
    stacks = _stacks(view.sizes)
    chart_high = ROW * max(len(rows), 1) + 34 + DOT * max(max(stacks, default=0) + 1, 3)
    width = MARGIN * 2 + wide + GAP + CHART
    height = HEAD + max(high + 30, chart_high + 112)
    figure, canvas = titled_figure(width, height, look, view.words, _facts(view))

    axes = picture_axes(figure, (MARGIN, HEAD, wide, high), (height_px, width_px))
    show_picture(axes, view.image, 0.75 if view.heat is not None else 0.0)
    if view.heat is not None:
        _draw_heat(axes, view.heat)
    for number, box in enumerate(view.boxes, start=1):
        outline(axes, box, "#FFFFFF", 1, DASHED)
        tag(axes, box[0], box[1], str(number), "#FFFFFF", 9)
    if view.field is not None:
        inset = 1.5 / scale  # so that a side on the picture's border can be seen
        x1, y1, x2, y2 = view.field
        outline(axes, (x1 + inset, y1 + inset, x2 - inset, y2 - inset), FIELD, 2.5)
    _draw_unit(axes, view.unit, scale)
    _legend(canvas, MARGIN, HEAD + high + 20, look, view.heat is not None)
    _chart(figure, canvas, view, rows, stacks, (MARGIN + wide + GAP, HEAD, CHART, chart_high), look)
    figure.alt = f"{view.words}. {_facts(view)} {_coverage(view)}"
    return figure


def _facts(view: FieldView) -> str:
    rows, columns = view.field_hw
    seen = f"{rows:.0f} × {columns:.0f} px" if math.isfinite(rows + columns) else "the whole picture, whatever its size"
    looks = "" if view.heat is None else f" It looks at about {view.effective_px:.0f} × {view.effective_px:.0f} px."
    cut = view.field is not None and max(rows, columns) > max(
        view.field[3] - view.field[1], view.field[2] - view.field[0]
    )
    return f"This unit can see {seen}{', cut off by the border' if cut else ''}.{looks}"


def _coverage(view: FieldView) -> str:
    covered = view.covered
    if not len(covered):
        return "There is no object in the picture."
    left = [str(number) for number, good in enumerate(covered, start=1) if not good]
    words = f"{int(covered.sum())} of {len(covered)} objects have a fitting range"
    return f"{words}; without: {', '.join(left)}." if left else f"{words}."


def _draw_heat(axes: Axes, heat: np.ndarray) -> None:
    height, width = heat.shape
    strength = np.sqrt(heat.clip(0, 1))  # most of a field is faint; the root makes it visible
    colours = matplotlib.colormaps["inferno"](1 - strength * 0.85)
    colours[..., 3] = 0.92 * strength
    axes.imshow(colours, extent=(0, width, height, 0), interpolation="bilinear", aspect="auto", zorder=1)


def _draw_unit(axes: Axes, unit: Sequence[float], scale: float) -> None:
    x1, y1, x2, y2 = unit
    grown = max(0.0, (8 / scale - (x2 - x1)) / 2)  # at least 8 pixels of the figure
    outline(axes, (x1 - grown, y1 - grown, x2 + grown, y2 + grown), UNIT, 2)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    for size, colour, line in ((13, "#000000", 4), (12, UNIT, 2)):
        axes.plot([x], [y], "+", color=colour, markersize=size, markeredgewidth=line, zorder=5, clip_on=False)


def _legend(canvas: Axes, x: float, y: float, look: Look, with_heat: bool) -> None:
    entries = [("+", UNIT, "the unit"), ("s", FIELD, "what it can see")]
    entries += [("o", "#2B0B3F" if look == LIGHT else "#F98E09", "what it looks at")] if with_heat else []
    for mark, colour, words in entries:
        fill = "none" if mark == "s" else colour
        canvas.plot(
            [x + 6], [y - 4], mark, color=colour, markerfacecolor=fill, markersize=10, markeredgewidth=2, clip_on=False
        )
        write(canvas, x + 18, y, words, 11, look.ink)
        x += 18 + text_width(words, 11) + 18
    canvas.plot([x, x + 16], [y - 4] * 2, color=look.pale, linewidth=1.5, linestyle=DASHED)
    write(canvas, x + 22, y, "objects", 11, look.ink)


def _chart(
    figure: Drawing,
    canvas: Axes,
    view: FieldView,
    rows: Sequence[RangeRow],
    stacks: list[int],
    place: tuple[float, float, float, float],
    look: Look,
) -> None:
    left, top, wide, high = place
    width, height = canvas.get_xlim()[1], canvas.get_ylim()[0]
    write(canvas, left, top + 12, "Which object sizes do the ranges fit?", 13, look.ink, bold=True)
    top += 24
    axes = figure.add_axes([left / width, 1 - (top + high) / height, wide / width, high / height])
    plain_axes(axes, look, "x")
    largest = max([*(s for row in rows for s in row.sizes if math.isfinite(s)), *view.sizes, 256])
    axes.set_xscale("log")
    axes.set(xlim=(8, largest * 1.25), ylim=(high, 0), yticks=[])
    ticks = [2**power for power in range(3, 15) if 2**power <= largest * 1.25]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("pixels of the network input", fontsize=11, color=look.pale)

    for number, row in enumerate(rows):
        y = ROW * number
        finite = [size for size in row.sizes if math.isfinite(size)]
        colour = COVERED if row.chosen else look.pale
        words = f"{row.words}: {_ranges_in_words(finite)}"
        write(axes, 8.2, y + 14, shorten(words, wide - 8, 11, bold=row.chosen), 11, look.ink, bold=row.chosen)
        for low, top_end in join_spans([(size / view.slack, size) for size in finite]):
            axes.add_artist(Rectangle((low, y + 20), top_end - low, 18, facecolor=colour, alpha=0.45, linewidth=0))
            if row.chosen:
                axes.add_artist(
                    Rectangle((low, y + 20), top_end - low, high, facecolor=colour, alpha=0.10, linewidth=0, zorder=0)
                )
        axes.vlines(finite, y + 18, y + 40, color=look.ink if row.chosen else look.pale, linewidth=1.6)
    objects_top = ROW * max(len(rows), 1)
    if view.heat is not None and view.effective_px > 8:
        axes.plot([view.effective_px] * 2, [0, high], color=UNIT, linewidth=2, linestyle=DASHED, zorder=2.5)
    write(axes, 8.2, objects_top + 14, "objects, by their longer side:", 11, look.ink)
    for number, (size, good, stack) in enumerate(zip(view.sizes, view.covered, stacks, strict=True), start=1):
        y = objects_top + 28 + DOT * stack
        fill, shape = (COVERED, "o") if good else (look.ground, "s")
        ring = look.ink if good else OPEN
        axes.plot([size], [y], shape, markersize=14, color=fill, markeredgecolor=ring, zorder=3, clip_on=False)
        ink = text_colour(COVERED) if good else look.ink
        axes.text(size, y + 0.5, str(number), fontsize=9, ha="center", va="center", color=ink, zorder=4)
    y = top + high + 46
    if view.heat is not None and view.effective_px > 8:
        canvas.plot([left, left + 14], [y + 34] * 2, color=UNIT, linewidth=2, linestyle=DASHED)
        write(canvas, left + 17, y + 38, f"what this unit looks at: {view.effective_px:.0f} px", 11, look.ink)
    canvas.plot([left + 6], [y - 4], "o", markersize=11, color=COVERED, markeredgecolor=look.ink)
    write(canvas, left + 17, y, f"fits: a range is 1 to {view.slack:g} times its size", 11, look.ink)
    x = left + 17 + text_width(f"fits: a range is 1 to {view.slack:g} times its size", 11) + 18
    canvas.plot([x + 6], [y - 4], "s", markersize=11, color=look.ground, markeredgecolor=OPEN, markeredgewidth=1.5)
    write(canvas, x + 17, y, "none fits", 11, look.ink)
    write(canvas, left, y + 19, shorten(_coverage(view), wide, 11), 11, look.pale)


def _ranges_in_words(sizes: Sequence[float]) -> str:
    if len(sizes) == 1:
        return f"{sizes[0]:.0f} px"
    return f"{len(sizes)} ranges, {min(sizes):.0f}–{max(sizes):.0f} px"


def join_spans(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans joined where they overlap, so that nothing is painted twice."""
    joined: list[tuple[float, float]] = []
    for low, high in sorted(spans):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined


def _stacks(sizes: np.ndarray, most: int = 8) -> list[int]:
    """On which line each object's dot goes, so that dots of like sizes do not hide one another."""
    last = [-math.inf] * most  # logarithm of the size of the last dot on each line
    stacks = [0] * len(sizes)
    for index in np.argsort(sizes, kind="stable").tolist():
        place = math.log(max(sizes[index], 1))
        free = [line for line in range(most) if place - last[line] > 0.17]
        stacks[index] = free[0] if free else min(range(most), key=lambda line: last[line])
        last[stacks[index]] = place
    return stacks
