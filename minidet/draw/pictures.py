"""Pictures with boxes on them, alone or in a gallery (chapter 00).

Nothing is told by colour alone: every box carries its class in words, or, where there is no room, a mark that the
legend explains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from PIL import Image
from torch import Tensor

from minidet.draw.figure import INK, PALE, Drawing, new_figure, overlay, plain_style, shorten, text_width, write
from minidet.draw.labels import Label, place_labels
from minidet.draw.palette import PALETTE, colour, mark, text_colour
from minidet.draw.scene import Scene, Tile, read_scene
from minidet.errors import DataError

GT_COLOUR = "#FFFFFF"
GAP = 10  # between tiles; all sizes are in pixels of the canvas
LEGEND_ROW, SWATCH = 22, 28  # height of a row of the legend; width of the mark or line before each of its texts


def draw_detections(
    image: Tensor | np.ndarray,
    boxes: Any = (),
    labels: Any = None,
    scores: Any = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    gt_boxes: Any = None,
    side: int = 640,
) -> Drawing:
    """One picture with boxes on it, each with its class and score in words.

    Args:
        image: uint8 [3, H, W] or [H, W, 3], RGB; never changed.
        boxes: [N, 4] float, xyxy in pixels of the picture. What lies outside the picture is cut off.
        labels: [N] int, or None for boxes without a class.
        scores: [N] float, or None (ground truth has none).
        class_names: the name of each label; a label without one is called "class 7".
        title: a line above the picture.
        gt_boxes: [G, 4] float, xyxy: ground truth, drawn white and dashed under the detections.
        side: the longer side of the drawn picture in pixels; small pictures are enlarged by a whole number up to it.

    Returns:
        A figure whose first axes have the picture's own pixel coordinates; `.alt` describes it in words.

    Raises:
        DataError: the image is no picture, or boxes, labels and scores do not fit together.

    Chapter 00.
    """
    prediction = {"boxes": boxes, "labels": labels, "scores": scores}
    target = {} if gt_boxes is None else {"boxes": gt_boxes}
    tile = read_scene(Scene(image, prediction, target, title), class_names, "draw_detections")
    height, width = tile.image.shape[:2]
    scale = side / max(height, width)
    tile.scale(math.floor(scale) if scale >= 1 else scale)
    return _compose([tile], columns=1, margin=0, title=None)


def draw_gallery(
    items: Iterable[Scene],
    columns: int | None = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    tile_width: int = 320,
) -> Drawing:
    """Several pictures side by side, each as `draw_detections` draws it.

    Args:
        items: the pictures with predictions, ground truth and titles.
        columns: tiles in a row; None takes the three or four that leave fewer gaps in the last row.
        class_names: the name of each label.
        title: a line above all.
        tile_width: width of a tile in pixels; every picture is scaled to it.

    Raises:
        DataError: there is nothing to draw, or a picture is faulty; the text says which.

    Chapter 00.
    """
    tiles = [read_scene(item, class_names, f"draw_gallery, picture {number}") for number, item in enumerate(items, 1)]
    if not tiles:
        raise DataError("draw_gallery: there is no picture to draw; hand over at least one Scene.")
    for tile in tiles:
        tile.scale(tile_width / max(tile.image.shape[1], tile.image.shape[0] * 3 / 4))
    count = len(tiles)
    if columns is None:
        columns = {1: 1, 2: 2, 3: 3, 4: 2}.get(count) or min((4, 3), key=lambda each: -count % each)
    return _compose(tiles, max(1, min(columns, count)), margin=10, title=title)


@plain_style
def _compose(tiles: list[Tile], columns: int, margin: int, title: str | None) -> Drawing:
    """The figure: a title, rows of tiles with their titles, and a legend of what the words do not say."""
    labels = [place_labels(tile.boxes * tile.per_pixel, tile.wordings, tile.width, tile.height) for tile in tiles]
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    inset = max(margin, 4)  # of all text from the edge
    column_width = max(tile.width for tile in tiles)
    entries = _legend_entries(tiles, labels)
    if columns == 1 and (entries or any(tile.title for tile in tiles)):
        column_width = max(column_width, 200)  # room for the words even where the picture is narrow
    width = column_width * columns + GAP * (columns - 1) + 2 * margin
    legend = _legend_rows(entries, width - 2 * inset)

    corners, y = [], margin + (30 if title else 0)  # upper left corners of the tiles on the canvas
    for row in rows:
        y += 24 if any(tiles[index].title for index in row) else 0
        for column, index in enumerate(row):
            slack = column_width - tiles[index].width
            corners.append((margin + column * (column_width + GAP) + slack // 2, y))
        y += max(tiles[index].height for index in row) + GAP
    legend_top = y - GAP + (6 if legend else 0)
    height = legend_top + LEGEND_ROW * len(legend) + margin

    figure = new_figure(width, height)
    for tile, words, (x, y) in zip(tiles, labels, corners, strict=True):
        place = [x / width, 1 - (y + tile.height) / height, tile.width / width, tile.height / height]
        _draw_tile(figure.add_axes(place), tile, words)
    canvas = overlay(figure, width, height)
    if title:
        write(canvas, inset, margin + 16, shorten(title, width - 2 * inset, 15, bold=True), 15, INK, bold=True)
    for tile, (x, y) in zip(tiles, corners, strict=True):
        if tile.title:
            left, room = (inset, width - 2 * inset) if columns == 1 else (x, tile.width)
            write(canvas, left, y - 8, shorten(tile.title, room, 12, bold=True), 12, INK, bold=True)
    _draw_legend(canvas, legend, inset, legend_top)
    alts = [": ".join(part for part in (tile.title, tile.alt) if part) for tile in tiles]
    figure.alt = alts[0] if len(alts) == 1 else f"{title or 'Gallery'}, {len(alts)} pictures. " + ". ".join(alts)
    return figure


def _draw_tile(axes: Axes, tile: Tile, labels: list[Label | None]) -> None:
    height, width = tile.image.shape[:2]
    axes.set_axis_off()
    axes.imshow(_resized(tile), extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set(xlim=(0, width), ylim=(height, 0))
    for box in tile.gt_boxes:
        _draw_box(axes, box, GT_COLOUR, 1, dashed=True)
    ranked = list(zip(tile.boxes, tile.labels, labels, strict=True))
    for box, label, _ in reversed(ranked):  # the surest lies on top
        short_side = ((box[2:] - box[:2]) * tile.per_pixel[:2]).min()
        _draw_box(axes, box, PALETTE[0] if label is None else colour(label), 2 if short_side >= 16 else 1)
    sx, sy = tile.per_pixel[:2]
    for box, label, words in reversed(ranked):
        fill = PALETTE[0] if label is None else colour(label)
        if words is not None:
            corner, sides = (words.x / sx, words.y / sy), (words.width / sx, words.height / sy)
            axes.add_artist(Rectangle(corner, *sides, facecolor=fill, linewidth=0, zorder=4))
            write(axes, (words.x + 3) / sx, (words.y + words.size) / sy, words.text, words.size, text_colour(fill))
        elif label is not None:
            x, y = np.clip(box[:2], [4 / sx, 4 / sy], [width - 4 / sx, height - 4 / sy])
            _draw_mark(axes, x, y, label)


def _draw_box(axes: Axes, box: np.ndarray, line: str, line_width: int, dashed: bool = False) -> None:
    style = _line_style(line, line_width, dashed)
    axes.add_artist(Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, joinstyle="miter", **style))


def _line_style(line: str, line_width: int, dashed: bool) -> dict[str, Any]:
    """A thin line between dark rims, or light ones if it is dark: to be seen on any ground. Dashed lies below."""
    whole = {"dash_offset": 0, "dash_list": None}
    rim = patheffects.Stroke(linewidth=line_width + 2, foreground=text_colour(line), alpha=0.5, dashes=whole)
    return {
        "edgecolor": line,
        "linewidth": line_width,
        "linestyle": (0, (6, 4)) if dashed else "-",
        "capstyle": "butt",
        "path_effects": [rim, patheffects.Normal()],
        "zorder": 2 if dashed else 3,
    }


def _draw_mark(axes: Axes, x: float, y: float, label: int) -> None:
    style = {"color": colour(label), "markeredgecolor": "black", "markeredgewidth": 0.8}
    axes.add_artist(Line2D([x], [y], marker=mark(label), markersize=7, zorder=3.5, **style))


def _resized(tile: Tile) -> np.ndarray:
    """The picture in canvas pixels: smooth for photographs, in hard squares when single pixels are to be seen."""
    enlarged = tile.width / tile.image.shape[1]
    filters = Image.Resampling
    smooth = filters.BICUBIC if enlarged >= 1 else filters.LANCZOS
    method = filters.NEAREST if enlarged >= 6 else smooth
    return np.asarray(Image.fromarray(tile.image).resize((tile.width, tile.height), method))


@dataclass(frozen=True)
class _LegendEntry:
    text: str
    x: float = 0  # within its row
    label: int | None = None  # of the class whose mark this is; None for a kind of line
    dashed: bool = False


def _legend_entries(tiles: list[Tile], labels: list[list[Label | None]]) -> list[_LegendEntry]:
    """What the words in the pictures leave open: the classes that a mark stands for, and what dashed and solid mean."""
    marked: dict[int, str] = {}
    for tile, places in zip(tiles, labels, strict=True):
        for label, words in zip(tile.labels, places, strict=True):
            if words is None and label is not None:
                marked[label] = tile.names[label]
    entries = [_LegendEntry(name, label=label) for label, name in sorted(marked.items())]
    if any(len(tile.gt_boxes) for tile in tiles):
        entries.append(_LegendEntry("dashed: ground truth", dashed=True))
        if any(len(tile.boxes) for tile in tiles):
            entries.append(_LegendEntry("solid: detection"))
    return entries


def _legend_rows(entries: list[_LegendEntry], room: float) -> list[list[_LegendEntry]]:
    rows: list[list[_LegendEntry]] = []
    x = math.inf
    for entry in entries:
        text = shorten(entry.text, room - SWATCH, 11)
        needed = SWATCH + text_width(text, 11)
        if x + needed > room:
            rows.append([])
            x = 0.0
        rows[-1].append(replace(entry, text=text, x=x))
        x += needed + 16
    return rows


def _draw_legend(canvas: Axes, rows: list[list[_LegendEntry]], left: float, top: float) -> None:
    for number, row in enumerate(rows):
        middle = round(top + LEGEND_ROW * (number + 0.5))
        for entry in row:
            x = left + entry.x
            if entry.label is not None:
                _draw_mark(canvas, x + SWATCH / 2 - 2, middle, entry.label)
            else:
                canvas.add_artist(Rectangle((x, middle - 6), SWATCH - 6, 12, facecolor=PALE, linewidth=0))
                style = _line_style(GT_COLOUR, 1, True) if entry.dashed else _line_style(PALETTE[0], 2, False)
                line = [(x + 1, middle), (x + SWATCH - 7, middle)]
                canvas.add_artist(Polygon(line, closed=False, fill=False, **style))
            write(canvas, x + SWATCH, middle + 4, entry.text, 11, INK)
