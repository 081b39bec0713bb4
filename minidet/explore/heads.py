"""The head explorer: what classification and localisation do to shared features, as training goes on (chapter 08)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minidet.draw import Drawing
from minidet.draw.heads import draw_heads
from minidet.draw.look import Look
from minidet.errors import MinidetError
from minidet.explore.figure_explorer import Control, FigureExplorer
from minidet.explore.head_maps import HeadLab
from minidet.explore.pictures import read_pictures
from minidet.explore.stages import Stage, load_stages
from minidet.layers.pyramid import LEVELS

PAIRS = (("class", "box"), ("class", "objectness"), ("box", "objectness"))
STRIDE_WORDS = {"p3": "p3, small objects", "p4": "p4", "p5": "p5, large objects"}


def explore_heads(stages: str | Path | Sequence[Stage], pictures: Any) -> HeadExplorer:
    """A `HeadExplorer`: as the last line of a cell it shows itself."""
    return HeadExplorer(stages, pictures)


class HeadExplorer(FigureExplorer):
    """A decoupled and a coupled head on the same picture, at stored stages of training.

    Args:
        stages: a folder as `benchmarks/training_stages.py` writes it, or what `load_stages` read there.
        pictures: one or several, in the forms of `minidet.explore.pictures.read_pictures`, all of one size.

    Values (`change`): picture (from 0), level, epoch, tasks (a pair in one text, such as "class and box"), point.

    Raises:
        WeightsError: the stages cannot be read.
        DataError: the pictures are not what they should be.

    Chapter 08.
    """

    words = "Explorer of decoupled and coupled heads"

    def __init__(self, stages: str | Path | Sequence[Stage], pictures: Any) -> None:
        stages = load_stages(stages) if isinstance(stages, str | Path) else stages
        read = read_pictures(pictures)
        if len({picture.image.shape for picture in read}) > 1:
            raise MinidetError("the pictures have different sizes; give pictures of one size to this explorer")
        self.lab = HeadLab(stages, read)
        height, width = self.lab.x.shape[-2:]
        values = {"picture": 0, "level": "p3", "epoch": self.lab.epochs[-1], "tasks": _in_words(PAIRS[0])}
        super().__init__({**values, "point": self._most_contested(0, "p3", PAIRS[0]) or (width / 2, height / 2)})

    def controls(self, _values: dict[str, Any]) -> list[Control]:
        pictures = tuple((number, f"{number + 1}") for number in range(len(self.lab.pictures)))
        levels = tuple((level, STRIDE_WORDS[level]) for level in LEVELS)
        epochs = tuple((epoch, f"{epoch}") for epoch in self.lab.epochs)
        pairs = tuple((_in_words(pair), _in_words(pair)) for pair in PAIRS)
        return [
            Control("picture", "Picture", "choice", choices=pictures),
            Control("level", "Level", "choice", choices=levels),
            Control("epoch", "Epochs of training", "steps", choices=epochs),
            Control("tasks", "Gradients of", "choice", choices=pairs),
        ]

    def draw(self, values: dict[str, Any], look: Look) -> Drawing:
        (height, width), (rows, columns) = self.lab.x.shape[-2:], self.lab.shape_of(values["level"])
        self.step = (width / columns, height / rows)
        tasks = tuple(values["tasks"].split(" and "))
        return draw_heads(
            self.lab.view(values["picture"], values["level"], values["epoch"], tasks, values["point"]), look
        )

    def in_words(self, _figure: Drawing) -> str:
        chosen = f"level {self.values['level']}, {self.values['epoch']} epochs of training"
        return f"{' and '.join(self.lab.heads)} head, {chosen}: gradients of {self.values['tasks']}."

    def _most_contested(self, picture: int, level: str, tasks: tuple[str, str]) -> tuple[float, float] | None:
        """A place worth looking at first: where the two gradients of the last stage point apart most, or None."""
        inside = self.lab.inside(self.lab.heads[-1], self.lab.epochs[-1])
        cosines = inside.cosines(level, *tasks)[picture]
        if not bool(cosines.isfinite().any()):
            return None
        row, column = divmod(int(cosines.nan_to_num(nan=2.0).argmin()), cosines.shape[1])
        (rows, columns), (height, width) = cosines.shape, self.lab.x.shape[-2:]
        return (column + 0.5) * width / columns, (row + 0.5) * height / rows


def _in_words(pair: tuple[str, str]) -> str:
    return f"{pair[0]} and {pair[1]}"
