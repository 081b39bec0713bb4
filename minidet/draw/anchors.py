"""Anchors beside the boxes that they stand for: where they lie among widths and heights, and what they look like."""

from __future__ import annotations

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from minidet.boxes import shape_iou
from minidet.data.anchors import mean_best_iou
from minidet.draw.figure import Drawing, plain_style, shorten, write
from minidet.draw.look import LIGHT, MARGIN, Look, plain_axes, titled_figure
from minidet.draw.palette import MARKS, PALETTE
from minidet.errors import MinidetError

COLOURS = (PALETTE[4], PALETTE[5], PALETTE[2], PALETTE[6])  # blue, vermilion, green, purple: for any colour vision
SIDE, HEAD, LEFT, GAP, FOOT, ROW = 400, 62, 58, 78, 62, 24  # of the figure, in pixels; ROW of a line of the legend
DRAWN = 4000  # boxes at most; more would only be a filled area
CORNERS = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
FREE = 14  # pixels between two numbers that do not lie on each other
TICKS = [mantissa * 10**power for power in range(-3, 6) for mantissa in (1, 2, 5)]


@plain_style
def draw_anchors(sizes: Tensor, anchors: Tensor, levels: int = 3, look: Look = LIGHT) -> Drawing:
    """On the left the widths and heights of boxes and anchors, on the right the anchors as rectangles of one centre.

    Anchors are numbered by increasing area. The finest level gets the first of them, the coarsest the last, all levels
    equally many as far as the numbers allow. A box has colour and mark of the level of its nearest anchor, which is
    that of highest IoU at one centre. Of many boxes every n-th is drawn; figures are those of all.

    Args:
        sizes: [N, 2] float, widths and heights of boxes in pixels, N at least 1.
        anchors: [K, 2] float, widths and heights in the same pixels.
        levels: maps that the anchors are shared out to, from 1 to 4.
        look: colours of everything but the data.

    Raises:
        MinidetError: `levels` is not from 1 to 4.
        DataError: there are no boxes, or a size is not finite or not above 0.

    Source: YOLOv3 (arXiv 1804.02767), section 2.3, "divide up the clusters evenly across scales".
    """
    if not 1 <= levels <= len(COLOURS):
        raise MinidetError(f"draw_anchors: levels is {levels}; it can draw 1 to {len(COLOURS)} of them.")
    sizes, anchors = sizes.detach().cpu().float(), anchors.detach().cpu().float()
    fit = mean_best_iou(sizes, anchors)
    anchors = anchors[anchors.prod(dim=1).argsort(stable=True)]
    level_of = np.arange(len(anchors)) * levels // len(anchors)  # [K]
    box_levels = level_of[shape_iou(sizes, anchors).argmax(dim=1).numpy()]  # [N]
    points, rectangles = sizes.numpy(), anchors.numpy()

    width, height = LEFT + SIDE + GAP + SIDE + 2 * MARGIN, HEAD + SIDE + FOOT + ROW * levels
    title = f"{_count(len(anchors), 'anchor')} for {_count(len(sizes), 'box', 'boxes')}"
    facts = f"IoU of a box with its best anchor, both at one centre: {fit:.2f} on the average"
    figure, canvas = titled_figure(width, height, look, title, facts)
    _scatter(_square(figure, LEFT), points, box_levels, rectangles, level_of, look)
    _rectangles(_square(figure, LEFT + SIDE + GAP), rectangles, level_of, look)

    words = []
    for level in range(levels):
        y = HEAD + SIDE + FOOT + ROW * level + 4
        canvas.plot([MARGIN + 8], [y - 4], MARKS[level], markersize=8, color=COLOURS[level])
        own = [f"{n + 1}: {w:.3g} x {h:.3g}" for n, (w, h) in enumerate(rectangles) if level_of[n] == level]
        share = f"{(box_levels == level).mean():.0%} of the boxes"
        write(canvas, MARGIN + 24, y, _name(level, levels), 12, look.ink, bold=True)
        write(canvas, MARGIN + 150, y, share, 12, look.ink)
        line = ", ".join(own) or "no anchor"
        write(canvas, MARGIN + 290, y, shorten(line, width - 2 * MARGIN - 290, 12), 12, look.ink)
        words.append(f"{_name(level, levels)}, {share}: {line}")
    figure.alt = f"{title}. {facts}. {'. '.join(words)}."
    return figure


def _square(figure: Drawing, left: float) -> Axes:
    width, height = figure.canvas.get_width_height()
    return figure.add_axes([left / width, 1 - (HEAD + SIDE) / height, SIDE / width, SIDE / height])


def _scatter(
    axes: Axes, points: np.ndarray, box_levels: np.ndarray, anchors: np.ndarray, level_of: np.ndarray, look: Look
) -> None:
    plain_axes(axes, look)
    everything = np.concatenate([points, anchors])
    low, high = everything.min() / 1.15, everything.max() * 1.15
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ticks = [tick for tick in TICKS if low <= tick <= high] or [float(f"{everything.mean():.3g}")]
    for axis, name in ((axes.xaxis, "width"), (axes.yaxis, "height")):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
        axis.set_label_text(f"{name}, px (logarithmic)", fontsize=11, color=look.pale)
    axes.plot([low, high], [low, high], color=look.faint, linewidth=0.8, zorder=0.5)  # squares

    every = np.linspace(0, len(points) - 1, min(len(points), DRAWN)).astype(int)
    for level in sorted(set(level_of.tolist())):
        own = points[every][box_levels[every] == level]
        style = {"markersize": 4, "alpha": 0.45, "markeredgewidth": 0, "zorder": 2}
        axes.plot(own[:, 0], own[:, 1], MARKS[level], color=COLOURS[level], **style)
    halo = [patheffects.withStroke(linewidth=4, foreground=look.ground)]
    style = {"markersize": 11, "markeredgewidth": 2, "zorder": 4, "path_effects": halo}
    axes.plot(anchors[:, 0], anchors[:, 1], "+", color=look.ink, **style)
    places = np.log(anchors / low) / np.log(high / low) * SIDE  # [K, 2] pixels, upwards
    corners = places[:, None, :] + 12 * CORNERS
    _numbers(axes, corners, places, look)


def _rectangles(axes: Axes, anchors: np.ndarray, level_of: np.ndarray, look: Look) -> None:
    plain_axes(axes, look)
    half = anchors.max() / 2 * 1.12
    axes.set(xlim=(-half, half), ylim=(-half, half))
    ticks = max((tick for tick in TICKS if tick <= half / 1.5), default=half)
    axes.set_xticks([-ticks, 0, ticks], [f"{tick:g}" for tick in (-ticks, 0, ticks)])
    axes.set_yticks([-ticks, 0, ticks], [f"{tick:g}" for tick in (-ticks, 0, ticks)])
    axes.set_xlabel("px from the centre, both ways to the same scale", fontsize=11, color=look.pale)
    for (width, height), level in zip(anchors, level_of, strict=True):
        style = {"edgecolor": COLOURS[level], "linewidth": 2, "zorder": 2}
        axes.add_patch(Rectangle((-width / 2, -height / 2), width, height, facecolor="none", **style))
    reach = anchors / half * SIDE / 4  # [K, 2] pixels from the centre
    reach = np.where((reach > 16).all(axis=1, keepdims=True), reach - 9, reach + 8)  # inside, or outside of small ones
    corners = SIDE / 2 + CORNERS * reach[:, None, :]
    _numbers(axes, corners, np.zeros((0, 2)), look)


def _numbers(axes: Axes, places: np.ndarray, taken: np.ndarray, look: Look) -> None:
    """Number things, each at the first of its places that is free or has a little room; where none has, there is none.

    Args:
        axes: a square of `SIDE` pixels.
        places: [K, places, 2] in pixels of the square, upwards.
        taken: [M, 2] places where something is already.
    """
    occupied = list(taken)
    halo = [patheffects.withStroke(linewidth=3, foreground=look.ground)]
    for number, candidates in enumerate(places, start=1):
        room = [min((np.abs(each - other).max() for other in occupied), default=FREE) for each in candidates]
        if max(room) < FREE / 2:
            continue
        x, y = candidates[np.minimum(room, FREE).argmax()]
        occupied.append(np.array([x, y]))
        style = {"ha": "center", "va": "center", "color": look.ink, "fontsize": 11, "fontweight": "bold"}
        axes.text(x / SIDE, y / SIDE, str(number), transform=axes.transAxes, path_effects=halo, zorder=5, **style)


def _name(level: int, levels: int) -> str:
    if levels == 1:
        return "one level"
    if levels == 3 and level == 1:
        return "middle level"
    return "finest level" if level == 0 else "coarsest level" if level == levels - 1 else f"level {level + 1}"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
