"""Axes that hold a picture in its own pixel coordinates, with outlines that can be seen on any ground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from minidet.draw.figure import text_width, write
from minidet.draw.palette import text_colour

CLICKABLE = "picture"  # the gid of axes in which a place can be pointed at (minidet/explore/figure_explorer.py)
SOLID: tuple = (0, ())
DASHED: tuple = (0, (6, 4))
DOTTED: tuple = (0, (1.5, 3))


def picture_axes(figure: Figure, place: Sequence[float], size_hw: tuple[int, int]) -> Axes:
    """Axes at [left, top, width, height] in pixels of the figure, y downwards, in pixels of a picture of `size_hw`."""
    width, height = figure.get_size_inches() * figure.dpi
    left, top, wide, high = place
    axes = figure.add_axes([left / width, 1 - (top + high) / height, wide / width, high / height])
    axes.set_axis_off()
    axes.set(xlim=(0, size_hw[1]), ylim=(size_hw[0], 0))
    axes.set_gid(CLICKABLE)
    return axes


def show_picture(axes: Axes, image: np.ndarray, paleness: float = 0.0) -> None:
    """Draw a picture uint8 [H, W, 3] into `picture_axes`.

    Args:
        axes: of `picture_axes`.
        image: the picture.
        paleness: 0 leaves it as it is; towards 1 it becomes a light grey drawing on which colours stand out.
    """
    height, width = image.shape[:2]
    pixels = image.astype(float)
    if paleness:
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = (1 - paleness) * pixels + paleness * (170 + grey / 3)
    canvas = axes.get_window_extent()
    size = (max(1, round(canvas.width)), max(1, round(canvas.height)))
    shown = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    axes.imshow(np.asarray(shown), extent=(0, width, height, 0), interpolation="nearest", aspect="auto", zorder=0)


def outline(axes: Axes, box_xyxy: Sequence[float], line: str, width: float = 1.5, dashes: tuple = SOLID) -> None:
    """A box with a rim of the opposite brightness."""
    x1, y1, x2, y2 = (float(value) for value in box_xyxy)
    whole = {"dash_offset": 0, "dash_list": None}
    rim = patheffects.Stroke(linewidth=width + 2, foreground=text_colour(line), alpha=0.55, dashes=whole)
    style = {"edgecolor": line, "linewidth": width, "linestyle": dashes, "capstyle": "butt", "zorder": 3}
    axes.add_artist(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, path_effects=[rim, patheffects.Normal()], **style)
    )


def tag(axes: Axes, x: float, y: float, text: str, fill: str, size: float = 10) -> None:
    """Words on a filled ground; (x, y) is the upper left corner in the axes' own coordinates, pushed inside them."""
    canvas = axes.get_window_extent()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    per_x, per_y = (right - left) / canvas.width, (bottom - top) / canvas.height
    wide, high = (text_width(text, size) + 6) * per_x, (size + 4) * per_y
    x = min(max(x, left), right - wide)
    y = min(max(y, top), bottom - high)
    axes.add_artist(Rectangle((x, y), wide, high, facecolor=fill, linewidth=0, zorder=4))
    write(axes, x + 3 * per_x, y + size * per_y, text, size, text_colour(fill))
