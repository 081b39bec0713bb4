"""Figures without pyplot: sized in pixels, the same bytes every time, and able to show themselves in a notebook."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from typing import Any

import matplotlib.style
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure

from minidet.files import atomic_write

INK, PALE = "#1A1A1A", "#6B6B6B"
PIXELS_PER_INCH = 72  # matplotlib's point then is one pixel of the canvas, so every size below is in pixels
FALLBACK_FONTS = (  # for scripts that matplotlib's own font lacks; the ones that are installed are used
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)


plain_style = matplotlib.style.context(
    "default"
)  # a decorator: what runs under it does not see the user's own settings


class Drawing(Figure):
    """A matplotlib Figure that shows itself in a notebook, pixel for pixel, with a text for those who cannot see it."""

    alt = "a figure"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        width, height = (round(side * self.dpi) for side in self.get_size_inches())
        bundle = {"image/png": figure_png(self), "text/plain": self.alt}
        return bundle, {"image/png": {"width": width, "height": height, "alt": self.alt}}


def figure_png(figure: Figure, compression: int = 6) -> bytes:
    """The figure as PNG; the same figure gives the same bytes (no date, no version inside).

    Args:
        figure: any.
        compression: from 1 (fast, larger) to 9 (slow, smaller).
    """
    canvas, buffer = figure.canvas, io.BytesIO()
    style = matplotlib.style.context("default") if isinstance(figure, Drawing) else contextlib.nullcontext()
    with style, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box; no reason to fill a log
        FigureCanvasAgg(figure).print_png(
            buffer, metadata={"Software": None}, pil_kwargs={"compress_level": compression}
        )
    figure.set_canvas(canvas)  # a figure that belongs to a window goes on belonging to it
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure as PNG, whole or not at all.

    Raises:
        MinidetError: the file cannot be written.
    """
    png = figure_png(figure)
    with atomic_write(os.fspath(path)) as file:
        file.write(png)


def new_figure(width: float, height: float, ground: str = "white") -> Drawing:
    inches = (width / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
    figure = Drawing(figsize=inches, dpi=PIXELS_PER_INCH, facecolor=ground)
    FigureCanvasAgg(figure)
    return figure


def overlay(figure: Figure, width: float, height: float) -> Axes:
    """Axes over the whole figure in canvas pixels, y downwards."""
    canvas = figure.add_axes([0, 0, 1, 1], zorder=-1)
    canvas.set_axis_off()
    canvas.set(xlim=(0, width), ylim=(height, 0))
    return canvas


def write(axes: Axes, x: float, y: float, text: str, size: float, ink: str, bold: bool = False) -> None:
    font = {"family": list(_fonts()), "size": size, "weight": "bold" if bold else "normal"}
    axes.text(x, y, text, color=ink, va="baseline", parse_math=False, zorder=5, **font)


def shorten(text: str, room: float, size: float, bold: bool = False) -> str:
    """The text, cut with an ellipsis where it is wider than the room."""
    text = " ".join(text.split())
    if text_width(text, size, bold) <= room:
        return text
    while text and text_width(text + "…", size, bold) > room:
        text = text[:-1]
    return text + "…"


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    font = font_manager.FontProperties(family=list(_fonts()), size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        return RendererAgg(8, 8, PIXELS_PER_INCH).get_text_width_height_descent(text, font, ismath=False)[0]


@functools.lru_cache(maxsize=1)
def _fonts() -> tuple[str, ...]:
    """matplotlib's own font, the same on every machine, and for scripts that it lacks whatever is installed."""
    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed))
