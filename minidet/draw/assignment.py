"""Who learns what: a picture with its objects, and on it the slots that learn them, for one strategy or several.

An object is told by its number and colour, a level by the shape of its slots, and what became of a slot by how the
shape is filled: nothing by colour alone (chapter 06).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.patches import Rectangle
from PIL import Image

from minidet.draw.figure import INK, PALE, Drawing, new_figure, overlay, plain_style, shorten, text_width, write
from minidet.draw.palette import colour, heat, mark, text_colour

# What can be said about a slot. `Marks.kind` holds the place in this list, and so does the explorer's JavaScript.
KINDS = (
    "positive",  # learns an object
    "ignored",  # learns nothing, not even that it is background
    "conflict",  # several objects wanted it
    "candidate",  # of an object
    "other",  # candidate of some other object
    "heat",  # has a number, from best to worst
    "from predictions",  # in a list of nearest predictions, with its rank
    "from anchors",  # in a list of nearest anchors, with its rank
    "dropped",  # in a list, but did not pass the threshold
)
POSITIVE, IGNORED, CONFLICT, CANDIDATE, OTHER, HEATED, BY_PREDICTION, BY_ANCHOR, DROPPED = range(len(KINDS))
NO_VALUE = 255
GAP, MARGIN, CAPTION, LEGEND = 14, 10, 20, 24  # pixels of the canvas
SMALLEST, LARGEST = 5.0, 17.0  # sides of a mark
NUMBERED = 11.0  # marks from this size on carry their number
LISTED = 14.0  # marks of lists carry their rank in any case
ALARM = "#D55E00"


@dataclass(frozen=True)
class Marks:
    """What a picture says about M slots; one slot can have several marks, and later ones lie on top.

    Attributes:
        slot: [M] int64.
        owner: [M] int64, row of the object that it is about, or -1.
        kind: [M] uint8, place in `KINDS`.
        value: [M] uint8, NO_VALUE where there is none: of "heat" 0 (best) to 254 (worst), of lists the rank from 1.
    """

    slot: np.ndarray
    owner: np.ndarray
    kind: np.ndarray
    value: np.ndarray

    @classmethod
    def of(cls, kind: int, slot: np.ndarray, owner: np.ndarray | int = -1, value: np.ndarray | int = NO_VALUE) -> Marks:
        """Marks of one kind."""
        slot = np.asarray(slot, np.int64)
        owner, value = (np.broadcast_to(np.asarray(each), slot.shape) for each in (owner, value))
        return cls(slot, owner.astype(np.int64), np.full(slot.shape, kind, np.uint8), value.astype(np.uint8))

    @classmethod
    def joined(cls, parts: Sequence[Marks]) -> Marks:
        """All marks of the parts, in their order."""
        names = ("slot", "owner", "kind", "value")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def where(self, chosen: np.ndarray) -> Marks:
        """The marks that `chosen` [M] bool says."""
        return Marks(self.slot[chosen], self.owner[chosen], self.kind[chosen], self.value[chosen])

    def __len__(self) -> int:
        return len(self.slot)


@dataclass(frozen=True)
class AssignmentPanel:
    """One strategy on the picture.

    Attributes:
        title: which model and strategy.
        caption: what came out, in one line.
        places: [A, 2] float, where each slot is drawn, in pixels of the picture.
        cells: [A] float, how large its cell is there.
        levels: [A] int, the level of each slot.
        marks: what is drawn.
        unowned: rows of the objects that have no positive slot.
        strides: of its levels, for the legend where panels have different ones.
    """

    title: str
    caption: str
    places: np.ndarray
    cells: np.ndarray
    levels: np.ndarray
    marks: Marks
    unowned: Sequence[int] = field(default_factory=tuple)
    strides: Sequence[int] = field(default_factory=tuple)


@plain_style
def draw_assignment(
    image: np.ndarray,
    boxes: np.ndarray,
    panels: Sequence[AssignmentPanel],
    strides: Sequence[int] = (),
    alt: str = "",
    side: int = 480,
) -> Drawing:
    """The picture with its objects, once for each strategy, and the slots that learn them.

    Args:
        image: [H, W, 3] uint8 RGB.
        boxes: [G, 4] float xyxy in pixels of the picture.
        panels: what is drawn on it; side by side.
        strides: of the levels, for the legend, where the panels do not say that theirs differ.
        alt: the picture in words.
        side: the longer side of one drawn picture in pixels of the canvas.
    """
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    column = max(width, 300)
    total = column * len(panels) + GAP * (len(panels) - 1) + 2 * MARGIN
    top = MARGIN + CAPTION
    rows = _legend_rows(_legend(panels, strides), total - 2 * MARGIN)
    bottom = top + height + CAPTION + 6
    figure = new_figure(total, bottom + LEGEND * len(rows) + 4)
    canvas = overlay(figure, total, bottom + LEGEND * len(rows) + 4)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    for index, panel in enumerate(panels):
        left = MARGIN + index * (column + GAP)
        write(canvas, left, top - 8, shorten(panel.title, column, 13, bold=True), 13, INK, bold=True)
        x = left + (column - width) / 2
        shape = figure.get_size_inches() * figure.dpi
        axes = figure.add_axes((x / shape[0], 1 - (top + height) / shape[1], width / shape[0], height / shape[1]))
        axes.set_axis_off()
        axes.imshow(resized, extent=(0, width, height, 0), aspect="auto")
        axes.set(xlim=(0, width), ylim=(height, 0))
        _draw_objects(axes, boxes * scale, panel.unowned)
        _draw_marks(axes, panel, scale)
        alarm = bool(panel.unowned) and not panel.caption.startswith("Step")
        write(canvas, left, top + height + 16, shorten(panel.caption, column, 12), 12, ALARM if alarm else PALE)
    for number, row in enumerate(rows):
        _draw_legend(canvas, row, bottom + LEGEND * (number + 0.5))
    figure.alt = alt
    return figure


def mark_size(cell: np.ndarray | float) -> np.ndarray:
    """The side of a slot's mark for the side of its cell, both in pixels of the canvas."""
    return np.clip(0.62 * np.asarray(cell), SMALLEST, LARGEST)


def _draw_objects(axes: Axes, boxes: np.ndarray, unowned: Sequence[int]) -> None:
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    for row, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        lost = row in unowned
        line = ALARM if lost else colour(row)
        corner, sides = (x1, y1), (x2 - x1, y2 - y1)
        axes.add_artist(Rectangle(corner, *sides, fill=False, edgecolor="#000000", linewidth=4, alpha=0.45, zorder=2))
        style = {"linestyle": (0, (3, 2)) if lost else "-", "linewidth": 4 if lost else 2}
        axes.add_artist(Rectangle(corner, *sides, fill=False, edgecolor=line, zorder=2.1, **style))
        text = f"{row + 1} no slot!" if lost else f"{row + 1}"
        words = text_width(text, 11, bold=True) + 6
        x, y = min(max(x1 - 1, 0), max(width - words, 0)), min(max(y1 - 15, 0), height - 15)
        axes.add_artist(Rectangle((x, y), words, 15, facecolor=line, linewidth=0, zorder=6))
        write(axes, x + 3, y + 11.5, text, 11, text_colour(line), bold=True)
        axes.texts[-1].set_zorder(7)


def _draw_marks(axes: Axes, panel: AssignmentPanel, scale: float) -> None:
    marks = panel.marks
    numbered = len(marks) <= 500
    for kind in np.unique(marks.kind):
        for level in np.unique(panel.levels):
            chosen = marks.where((marks.kind == kind) & (panel.levels[marks.slot] == level))
            if len(chosen):
                size = mark_size(panel.cells[chosen.slot] * scale)
                if kind in (BY_PREDICTION, BY_ANCHOR):
                    size = size.clip(min=LISTED)
                x, y = (panel.places[chosen.slot] * scale).T
                _scatter(axes, int(kind), int(level), x, y, size, chosen)
                if numbered and kind in (POSITIVE, BY_PREDICTION, BY_ANCHOR):
                    _number(axes, int(kind), x, y, size, chosen)


def _scatter(axes: Axes, kind: int, level: int, x: np.ndarray, y: np.ndarray, size: np.ndarray, marks: Marks) -> None:
    """Marks of one kind and level; how each kind looks."""
    colours = [colour(owner) if owner >= 0 else "#BBBBBB" for owner in marks.owner.tolist()]
    shape, area = mark(level), size**2
    if kind == POSITIVE:
        _plot(axes, x, y, area, shape, face=colours, edge="black", width=1.0, order=4)
    elif kind == IGNORED:
        _plot(axes, x, y, 0.6 * area, "x", face="black", edge=None, width=3.0, order=3.4)
        _plot(axes, x, y, 0.6 * area, "x", face="white", edge=None, width=1.4, order=3.5)
    elif kind == CONFLICT:
        _plot(axes, x, y, 2.6 * area, "o", face="none", edge="black", width=3.0, order=4.4)
        _plot(axes, x, y, 2.6 * area, "o", face="none", edge="white", width=1.6, order=4.5, dashed=True)
    elif kind == OTHER:
        _plot(axes, x, y, 0.2 * area, "o", face="#DDDDDD", edge="#333333", width=0.6, order=3)
    elif kind == HEATED:
        faces = [heat(value / (NO_VALUE - 1)) for value in marks.value.tolist()]
        _plot(axes, x, y, area, shape, face=faces, edge="white", width=0.8, order=4)
    elif kind == BY_PREDICTION:
        _plot(axes, x, y, area, "o", face=colours, edge="black", width=1.2, order=4)
    elif kind == BY_ANCHOR:
        _plot(axes, x, y, area, "s", face=colours, edge="black", width=1.2, order=3.9)
    elif kind == DROPPED:
        _plot(axes, x, y, area, shape, face="white", edge=colours, width=1.6, order=3.8)
        _plot(axes, x, y, 0.7 * area, "x", face="black", edge=None, width=1.6, order=3.9)
    else:
        _plot(axes, x, y, area, shape, face="none", edge="black", width=3.2, order=3.6)
        _plot(axes, x, y, area, shape, face="none", edge=colours, width=1.8, order=3.7)


def _plot(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    area: np.ndarray,
    shape: str,
    *,
    face: list[str] | str,
    edge: list[str] | str | None,
    width: float,
    order: float,
    dashed: bool = False,
) -> PathCollection:
    style = {"linestyle": (0, (2, 1.5))} if dashed else {}
    edges = {} if edge is None else {"edgecolors": edge}
    return axes.scatter(x, y, s=area, marker=shape, c=face, linewidths=width, zorder=order, **edges, **style)


def _number(axes: Axes, kind: int, x: np.ndarray, y: np.ndarray, size: np.ndarray, marks: Marks) -> None:
    for place_x, place_y, side, owner, value in zip(x, y, size, marks.owner, marks.value, strict=True):
        text = str(owner + 1 if kind == POSITIVE else value)
        if side >= NUMBERED:
            font = 0.62 * side if len(text) < 3 else 0.45 * side
            ink = text_colour(colour(owner)) if owner >= 0 else "#000000"
            axes.text(place_x, place_y, text, size=font, color=ink, ha="center", va="center_baseline", zorder=5)


def _legend(panels: Sequence[AssignmentPanel], strides: Sequence[int]) -> list[tuple[str, int, int]]:
    """What the marks mean: text, kind, level, of all that occur."""
    entries = []
    shown = np.unique(np.concatenate([panel.levels[panel.marks.slot] for panel in panels] or [np.zeros(0, int)]))
    if len({tuple(panel.strides) for panel in panels if len(panel.strides)}) > 1:  # a shape means a level, not a stride
        for panel in panels:
            entries += [
                (f"{panel.title.split(':')[0]}: stride {panel.strides[level]}", POSITIVE, level)
                for level in np.unique(panel.levels[panel.marks.slot]).tolist()
                if level < len(panel.strides)
            ]
    elif len(strides) > 1:
        entries += [
            (f"stride {strides[level]}", POSITIVE, int(level)) for level in shown.tolist() if level < len(strides)
        ]
    kinds = np.unique(np.concatenate([panel.marks.kind for panel in panels] or [np.zeros(0, np.uint8)]))
    words = {
        POSITIVE: "positive, with the number of its object",
        IGNORED: "ignored",
        CONFLICT: "several objects wanted it",
        CANDIDATE: "candidate",
        OTHER: "candidate of another object",
        HEATED: "from best (light) to worst (dark)",
        BY_PREDICTION: "near by its prediction, with its rank",
        BY_ANCHOR: "near by its anchor, with its rank",
        DROPPED: "below the threshold, ignored",
    }
    return entries + [(words[kind], int(kind), 0) for kind in kinds.tolist()]


def _legend_rows(entries: list[tuple[str, int, int]], room: float) -> list[list[tuple[float, str, int, int]]]:
    rows: list[list[tuple[float, str, int, int]]] = []
    x = room + 1
    for text, kind, level in entries:
        needed = 22 + text_width(text, 11)
        if x + needed > room:
            rows.append([])
            x = 0.0
        rows[-1].append((x, text, kind, level))
        x += needed + 16
    return rows


def _draw_legend(canvas: Axes, row: list[tuple[float, str, int, int]], middle: float) -> None:
    for x, text, kind, level in row:
        owner = np.array([-1])
        marks = Marks(np.zeros(1, np.int64), owner, np.array([kind], np.uint8), np.array([60], np.uint8))
        _scatter(canvas, kind, level, np.array([MARGIN + x + 8]), np.array([middle]), np.array([11.0]), marks)
        write(canvas, MARGIN + x + 22, middle + 4, text, 11, INK)
