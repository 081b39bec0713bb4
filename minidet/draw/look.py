"""On white paper or on a dark screen: the inks of figures that are looked at in both."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes

from minidet.draw.figure import INK, PALE, Drawing, new_figure, overlay, shorten, write

MARGIN = 12  # pixels left free at the sides of a figure


@dataclass(frozen=True)
class Look:
    """The colours of everything but the data, "#RRGGBB"."""

    ground: str  # behind all
    ink: str  # text and what is drawn like it
    pale: str  # secondary text
    faint: str  # grid lines, empty cells


LIGHT = Look("#FFFFFF", INK, PALE, "#DEDEDE")
DARK = Look("#212121", "#ECECEC", "#B4B4B4", "#454545")  # the ground is that of JupyterLab's dark theme


def titled_figure(width: float, height: float, look: Look, title: str, facts: str = "") -> tuple[Drawing, Axes]:
    """An empty figure with a title and a line of facts at its top, and the axes over all of it, in canvas pixels."""
    figure = new_figure(width, height, look.ground)
    canvas = overlay(figure, width, height)
    for text, y, size, ink, bold in ((title, 20, 15, look.ink, True), (facts, 42, 12, look.pale, False)):
        if text:
            write(canvas, MARGIN, y, shorten(text, width - 2 * MARGIN, size, bold=bold), size, ink, bold=bold)
    return figure, canvas


def plain_axes(axes: Axes, look: Look, grid: str = "both") -> None:
    """A chart's frame: no box around it, thin lines behind, numbers in the look's ink."""
    axes.set_facecolor("none")
    axes.tick_params(labelsize=10, colors=look.pale, length=0)
    axes.grid(axis=grid, color=look.faint, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(look.pale)
