"""The four encoders as a picture: which maps come in, which go out, and what flows where (chapter 05)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from minidet.draw.figure import INK, PALE, Drawing, new_figure, overlay, plain_style, text_width, write
from minidet.draw.palette import PALETTE, text_colour
from minidet.errors import MinidetError
from minidet.layers.encoders import ENCODERS, STAGES, MultipleOut

LEVELS = ("p3", "p4", "p5", "p6", "p7")
NAMES = {"mimo": "MiMo", "simo": "SiMo", "miso": "MiSo", "siso": "SiSo"}
INPUT, OUTPUT, HEAD = PALETTE[4], PALETTE[0], PALETTE[7]
PANEL, TOP, MARGIN, GAP, ROW = 216, 268, 12, 16, 28  # width of a panel, height above the legend, ... in pixels
BOTTOM, STEP, BAR = 236, 42, 24  # of the lowest map; from a map to the next; height of a map
WIDTHS = {"3": 66, "4": 52, "5": 40, "6": 30, "7": 30}  # of a map by its level: the finer, the wider
INPUTS_AT, OUTPUTS_AT, HEADS_AT = 44, 140, 196


@plain_style
def draw_encoders(kinds: Sequence[str] = tuple(ENCODERS)) -> Drawing:
    """What comes in on the left, what goes out on the right, coarse maps above fine ones; one panel for each encoder.

    Args:
        kinds: names of `minidet.layers.encoders.ENCODERS`.

    Raises:
        MinidetError: there is no such encoder, or none was asked for.

    Source: after YOLOF, figure 1; chapter 05.
    """
    unknown = [kind for kind in kinds if kind not in ENCODERS]
    if unknown or not kinds:
        raise MinidetError(f"draw_encoders draws any of {', '.join(map(repr, ENCODERS))}, not {list(kinds)}")
    width = len(kinds) * PANEL + (len(kinds) - 1) * GAP + 2 * MARGIN
    rows = _legend_rows(width - 2 * MARGIN)
    height = TOP + ROW * len(rows)
    figure = new_figure(width, height)
    canvas = overlay(figure, width, height)
    for index, kind in enumerate(kinds):
        _panel(canvas, kind, MARGIN + index * (PANEL + GAP))
    for number, row in enumerate(rows):
        _draw_legend(canvas, row, TOP + ROW * (number + 0.5))
    figure.alt = " ".join(_in_words(kind) for kind in kinds)
    return figure


def _panel(canvas: Axes, kind: str, left: float) -> None:
    builder, inputs = ENCODERS[kind]
    levels = LEVELS if builder is MultipleOut else ("p5",)
    write(canvas, left, 20, NAMES[kind], 15, INK, bold=True)
    count = "one map" if len(levels) == 1 else f"{len(levels)} maps"
    came = "one stage" if len(inputs) == 1 else f"{len(inputs)} stages"
    write(canvas, left + 60, 20, f"{came} in, {count} out", 11, PALE)
    for stage in STAGES:
        _map(canvas, left + INPUTS_AT, stage, INPUT, used=stage in inputs)
    for level in levels:
        x, y = left + OUTPUTS_AT, _height(level)
        _map(canvas, x, level, OUTPUT)
        _arrow(canvas, (x + WIDTHS[level[1]] / 2 + 1, y), (left + HEADS_AT - 8, y), INK)
        canvas.plot([left + HEADS_AT], [y], marker="D", markersize=11, color=HEAD, zorder=3)
    for stage in inputs:
        target = stage.replace("c", "p") if len(levels) > 1 else "p5"
        start = (left + INPUTS_AT + WIDTHS[stage[1]] / 2 + 1, _height(stage))
        _arrow(canvas, start, (left + OUTPUTS_AT - WIDTHS[target[1]] / 2 - 1, _height(target)), INPUT)
    if len(levels) > 1:
        for above, below in (("p5", "p4"), ("p4", "p3")):  # copied downwards, added where there is an input
            _arrow(canvas, _edge(left, above, 1), _edge(left, below, -1), INK)
        for below, above in (("p5", "p6"), ("p6", "p7")):  # made by strided convolutions
            _arrow(canvas, _edge(left, below, -1), _edge(left, above, 1), INK)


def _height(name: str) -> float:
    return BOTTOM - STEP * (int(name[1]) - 3)


def _edge(left: float, level: str, side: int) -> tuple[float, float]:
    """Middle of a map's lower (1) or upper (-1) edge."""
    return left + OUTPUTS_AT, _height(level) + side * (BAR / 2 + 1)


def _map(canvas: Axes, x: float, name: str, fill: str, used: bool = True) -> None:
    wide, y = WIDTHS[name[1]], _height(name)
    style = (
        {"facecolor": fill, "linewidth": 0} if used else {"fill": False, "edgecolor": PALE, "linestyle": (0, (3, 2))}
    )
    canvas.add_artist(Rectangle((x - wide / 2, y - BAR / 2), wide, BAR, zorder=3, **style))
    words = name.upper()
    ink = text_colour(fill) if used else PALE
    write(canvas, x - text_width(words, 12, bold=True) / 2, y + 4.5, words, 12, ink, bold=True)


def _arrow(canvas: Axes, start: tuple[float, float], end: tuple[float, float], ink: str) -> None:
    canvas.add_artist(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=ink, linewidth=1.6, zorder=2)
    )


def _legend_rows(room: float) -> list[list[tuple[str, str, str]]]:
    """Colour, shape and words of the legend, in as many rows as it needs."""
    entries = (
        (INPUT, "s", "backbone stage (dashed: unused)"),
        (OUTPUT, "s", "map that comes out"),
        (HEAD, "D", "head (the same weights)"),
    )
    rows: list[list[tuple[str, str, str]]] = [[]]
    for entry in entries:
        if rows[-1] and sum(_legend_width(each) for each in (*rows[-1], entry)) > room:
            rows.append([])
        rows[-1].append(entry)
    return rows


def _legend_width(entry: tuple[str, str, str]) -> float:
    return text_width(entry[2], 11) + 40


def _draw_legend(canvas: Axes, row: Sequence[tuple[str, str, str]], y: float) -> None:
    x: float = MARGIN
    for entry in row:
        fill, shape, words = entry
        canvas.plot([x + 6], [y], marker=shape, markersize=10, color=fill)
        write(canvas, x + 18, y + 4, words, 11, INK)
        x += _legend_width(entry)


def _in_words(kind: str) -> str:
    builder, inputs = ENCODERS[kind]
    out = "P3, P4, P5, P6 and P7" if builder is MultipleOut else "P5 alone"
    return f"{NAMES[kind]}: {', '.join(stage.upper() for stage in inputs)} in, {out} out."
