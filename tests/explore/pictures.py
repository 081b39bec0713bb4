"""What the tests of several explorers share: scenes, and ways to look at what was drawn."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from minidet.data.shapes import ShapesConfig, draw_scene
from minidet.draw import Drawing, figure_png
from minidet.explore.figure_explorer import FigureExplorer

REPOSITORY = Path(__file__).resolve().parent.parent.parent
NANO = REPOSITORY / "chapters" / "weights" / "yolox-nano-shapes.safetensors"
STAGES = REPOSITORY / "chapters" / "weights" / "stages"


def scenes(count: int, first: int = 338, **changes: Any) -> list:
    return [draw_scene(np.random.default_rng(first + i), ShapesConfig(**changes)) for i in range(count)]


def empty_picture(height: int = 192, width: int = 256) -> tuple[torch.Tensor, dict]:
    image = torch.full((3, height, width), 120, dtype=torch.uint8)
    return image, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def positions(explorer: FigureExplorer) -> Iterator[dict[str, Any]]:
    """Every position of every control, one control at a time."""
    for control in explorer.controls(explorer.values):
        if control.kind == "switch":
            places: list[Any] = [False, True]
        elif control.kind == "slider":
            count = round((control.high - control.low) / control.step)
            places = [round(control.low + control.step * i, 6) for i in range(count + 1)]
        else:
            places = [choice for choice, _ in control.choices]
        yield from ({control.name: place} for place in places)


def assert_legible(figure: Drawing) -> None:
    """Something is drawn, in words too, and no text leaves the figure."""
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, text.get_text()
    assert len(figure.alt) > 20


def pixels_of(png: bytes | Drawing) -> np.ndarray:
    data = figure_png(png) if isinstance(png, Drawing) else bytes(png)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
