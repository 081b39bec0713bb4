"""Explorers whose view is a figure with controls beside it: a person turns dials and points at places in the picture.

The figure is drawn by a pure function of `minidet.draw`; the view only shows it, in the ink of the front end's theme
and as sharp as the screen is, and tells where it was touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minidet.draw import Drawing, figure_png
from minidet.draw.figure import PIXELS_PER_INCH
from minidet.draw.look import DARK, LIGHT, Look
from minidet.draw.picture_axes import CLICKABLE
from minidet.errors import MinidetError
from minidet.explore import base

SHARPEST = 3  # pixels of the screen for one of the figure


@dataclass(frozen=True)
class Control:
    """Something to turn.

    Attributes:
        name: of the value.
        words: what a person reads.
        kind: "slider" (numbers from `low` to `high`), "steps" (a slider over `choices`), "choice" or "switch".
        low, high, step: of a slider.
        choices: (value, words) of the other kinds.
        group: controls of one group stand together under this heading.
    """

    name: str
    words: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    step: float = 1.0
    choices: tuple[tuple[Any, str], ...] = ()
    group: str = ""

    def check(self, value: Any) -> Any:
        """The value, if it is one that this control can have.

        Raises:
            MinidetError: it is not.
        """
        if self.kind == "switch" and isinstance(value, bool):
            return value
        if self.kind in ("choice", "steps") and any(value == choice for choice, _ in self.choices):
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.kind == "slider" and is_number and self.low <= value <= self.high:
            return int(value) if isinstance(self.step, int) and float(value).is_integer() else value
        allowed = {"switch": "true or false", "slider": f"a number from {self.low:g} to {self.high:g}"}
        listed = ", ".join(repr(choice) for choice, _ in self.choices)
        raise MinidetError(f"{self.name} is {value!r}; it must be {allowed.get(self.kind) or 'one of ' + listed}")


class FigureExplorer(base.Explorer):
    """Base of the explorers that show a figure. A subclass implements `controls` and `draw`.

    Attributes:
        values: the present value of every control, and of "point", where the subclass has one: (x, y) in the pixels
            of the pictures in the figure.
        step: how far an arrow key moves the point, (x, y) in the same pixels.
    """

    _esm = base.script("figure_explorer.js")
    _css = base.style("figure_explorer.css")
    words = "Explorer"  # a heading for screen readers

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}
        self.step = (1.0, 1.0)
        self._look, self._scale = LIGHT, 1.0
        self.scene = {"words": self.words}
        self._show(values)

    def controls(self, values: dict[str, Any]) -> Sequence[Control]:
        """What can be turned, given complete values."""
        raise NotImplementedError

    def complete(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values in which nothing is missing or left over from another choice; by default all are as they are."""
        return values

    def draw(self, values: dict[str, Any], look: Look) -> Drawing:
        """The figure for complete and checked values."""
        raise NotImplementedError

    def change(self, **values: Any) -> None:
        """Turn controls from Python; what is not named stays. Every view follows.

        Raises:
            MinidetError: there is no such control, or it cannot have this value; nothing changes.
        """
        unknown = sorted(set(values) - set(self.values))
        if unknown:
            raise MinidetError(f"there is no control {unknown[0]!r}; there are {', '.join(self.values)}")
        self._show({**self.values, **values})
        self.refresh()

    def compute(self, state: dict[str, Any], _buffers: Sequence[memoryview]) -> None:
        self._look = DARK if state.get("dark") else LIGHT
        self._scale = min(max(float(state.get("scale", 1)), 1.0), SHARPEST)
        self._show(state["values"])

    def figure(self) -> Drawing:
        figure = self.draw(self.values, LIGHT)
        figure.alt = self.in_words(figure)
        return figure

    def in_words(self, figure: Drawing) -> str:
        """The figure's text in a stored notebook: without figures that another processor may round otherwise."""
        return figure.alt

    def _show(self, values: dict[str, Any]) -> None:
        """Draw values and take them over; where that fails everything stays as it was."""
        values = self.complete(dict(values))
        controls = list(self.controls(values))
        checked = {control.name: control.check(values.get(control.name)) for control in controls}
        if "point" in values:
            checked["point"] = _point(values["point"])
        figure = self.draw(checked, self._look)
        width, height = (side * figure.dpi for side in figure.get_size_inches())
        figure.patch.set_alpha(0)  # the page's own ground shows through
        places = [_place(axes) for axes in figure.axes if axes.get_gid() == CLICKABLE]
        figure.set_dpi(PIXELS_PER_INCH * self._scale)
        self.picture = figure_png(figure, compression=1)
        self.values = checked
        self.answer = {
            "controls": [asdict(control) for control in controls],
            "values": {**checked, **({"point": list(checked["point"])} if "point" in checked else {})},
            "alt": figure.alt,
            "size": [float(width), float(height)],
            "places": places,
            "step": list(self.step),
        }


def _place(axes: Any) -> list[float]:
    """Where axes with a picture lie in the figure (left, top, width, height as shares), and the size (x, y) of it."""
    box = axes.get_position()
    sides = (box.x0, 1 - box.y1, box.width, box.height, axes.get_xlim()[1], axes.get_ylim()[0])
    return [float(side) for side in sides]


def _point(value: Any) -> tuple[float, float]:
    try:
        x, y = (float(each) for each in value)
    except (TypeError, ValueError) as error:
        raise MinidetError(f"point is {value!r}; it must be two numbers, x and y in pixels") from error
    return x, y
