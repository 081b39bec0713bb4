"""Pictures of detections and curves of training: pure functions, data in, matplotlib `Figure` out (chapter 00).

Nothing is told by colour alone: every box carries its class in words, or, where there is no room, a mark that the legend explains.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from minidet.errors import DataError
from minidet.files import atomic_write

# The seven colours of Okabe and Ito ("Color Universal Design", 2008) and a dark red: told apart with any colour vision.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#882255")
# One mark a class for boxes without room for a word; as 7 is no multiple of 8, colour and mark together repeat after 56 classes.
MARKS = ("o", "s", "^", "D", "v", "P", "X")

INK, PALE, GT_COLOUR = "#1A1A1A", "#6B6B6B", "#FFFFFF"
PIXELS_PER_INCH = 72  # matplotlib's point then is one pixel of the canvas, so every size below is in pixels
FALLBACK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Malgun Gothic",
                  "WenQuanYi Zen Hei", "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Devanagari")  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A picture and what to draw on it; one tile of a gallery."""

    image: Tensor | np.ndarray  # uint8 [3, H, W] or [H, W, 3], RGB
    prediction: dict[str, Any] = field(default_factory=dict)  # "boxes" [N, 4] xyxy, "labels" [N], "scores" [N]; any may be absent
    target: dict[str, Any] = field(default_factory=dict)  # "boxes" [G, 4] xyxy: the ground truth, drawn white and dashed
    title: str | None = None


class Drawing(Figure):
    """A matplotlib Figure that shows itself in a notebook, pixel for pixel, with a text for those who cannot see it."""

    alt = "a figure"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        width, height = (round(side * self.dpi) for side in self.get_size_inches())
        bundle = {"image/png": figure_png(self), "text/plain": self.alt}
        return bundle, {"image/png": {"width": width, "height": height, "alt": self.alt}}


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
    tile = _read_scene(Scene(image, prediction, target, title), class_names, "draw_detections")
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
        columns: tiles in a row; None makes the gallery about square, with at most four.
        class_names: the name of each label.
        title: a line above all.
        tile_width: width of a tile in pixels; every picture is scaled to it.

    Raises:
        DataError: there is nothing to draw, or a picture is faulty; the text says which.

    Chapter 00.
    """
    tiles = [_read_scene(item, class_names, f"draw_gallery, picture {number}") for number, item in enumerate(items, 1)]
    if not tiles:
        raise DataError("draw_gallery: there is no picture to draw; hand over at least one Scene.")
    for tile in tiles:
        tile.scale(tile_width / max(tile.image.shape[1], tile.image.shape[0] * 3 / 4))
    if columns is None:
        columns = min(4, math.ceil(math.sqrt(len(tiles))))
    return _compose(tiles, max(1, min(columns, len(tiles))), margin=10, title=title)


def draw_curves(metrics: Sequence[dict[str, Any]], title: str | None = None) -> Drawing:
    """Losses, average precision and learning rate over the course of training.

    Args:
        metrics: the rows of `metrics.jsonl`, in order: `{"epoch": int, "iteration": int, "lr": float, "losses": {name: float},
            "ap": float | None, "ap50": float | None}`. What is missing or not finite leaves a gap.
        title: a line above all.

    Chapter 00.
    """
    epochs = [row.get("epoch") for row in metrics]
    by_epoch = None not in epochs and len(set(epochs)) == len(epochs)
    x = [row.get("epoch" if by_epoch else "iteration", position) for position, row in enumerate(metrics)]
    loss_names = list(dict.fromkeys(name for row in metrics for name in row.get("losses") or {}))
    losses = {name.removeprefix("loss_"): [_value((row.get("losses") or {}).get(name)) for row in metrics] for name in loss_names}
    precision = {name: [_value(row.get(key), low=0) for row in metrics] for name, key in (("AP", "ap"), ("AP50", "ap50"))}
    rate = {"learning rate": [_value(row.get("lr")) for row in metrics]}

    with matplotlib.style.context("default"):
        top = 30 if title else 0
        figure = _figure(990, 300 + top)
        for index, (name, curves) in enumerate((("losses", losses), ("average precision", precision), ("learning rate", rate))):
            left, width = 52 + index * 330, 262
            axes = figure.add_axes([left / 990, 44 / (300 + top), width / 990, 220 / (300 + top)])
            _panel(axes, name, "epoch" if by_epoch else "iteration", x, curves)
        figure.axes[1].set_ylim(0, 1)
        if title:
            canvas = _overlay(figure, 990, 300 + top)
            _text(canvas, 16, 22, _shorten(title, 958, 14, bold=True), 14, INK, bold=True)
        best = max((value for value in precision["AP"] if math.isfinite(value)), default=None)
        last = "" if not metrics else f"; {'epoch' if by_epoch else 'iteration'} {x[-1]} is the last"
        figure.alt = f"Training curves: losses, average precision, learning rate{last}" + (
            f"; best AP {best:.3f}." if best is not None else "."
        )
    return figure


def describe_detections(labels: Any, scores: Any = None, class_names: Sequence[str] | None = None, limit: int = 8) -> str:
    """Detections in words, as alternative text for a picture: "3 objects: circle 0.93, star 0.85, ring 0.20".

    Args:
        labels: [N] int. scores: [N] float or None. class_names: the name of each label.
        limit: objects that are listed; the others are counted.
    """
    labels = [] if labels is None else _array(labels, "labels", "describe_detections").astype(int).ravel().tolist()
    scores = [None] * len(labels) if scores is None else _array(scores, "scores", "describe_detections").ravel().tolist()
    if not labels:
        return "no objects"
    words = [_label_text(label, score, class_names) for label, score in zip(labels, scores, strict=True)]
    listed = ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
    return f"{len(words)} object{'' if len(words) == 1 else 's'}: {listed}"


def colour(label: int) -> str:
    """The colour of a class, "#RRGGBB"; classes beyond the palette begin it again, with another mark."""
    return PALETTE[int(label) % len(PALETTE)]


def mark(label: int) -> str:
    """The matplotlib marker of a class."""
    return MARKS[int(label) % len(MARKS)]


def text_colour(background: str) -> str:
    """Black or white, whichever is read more easily on a colour (WCAG 2.2, contrast ratio)."""
    channels = [int(background[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#FFFFFF"


def figure_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes (no date, no version inside)."""
    canvas = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write the figure as PNG, whole or not at all.

    Raises:
        MinidetError: the file cannot be written.
    """
    png = figure_png(figure)
    with atomic_write(path) as file:
        file.write(png)
    return Path(path)


# ---------------------------------------------------------------------------------------------------------------------------------
# Reading what is to be drawn


@dataclass
class _Tile:
    """A checked scene, and where its parts lie on the canvas."""

    image: np.ndarray  # uint8 [H, W, 3]
    boxes: np.ndarray  # [N, 4] xyxy, pixels of the picture, by decreasing score
    labels: list[int | None]
    texts: list[tuple[str, ...]]  # what each box may say, from long to short
    names: dict[int, str]  # of the labels that occur
    gt_boxes: np.ndarray  # [G, 4]
    title: str | None
    alt: str
    width: int = 0  # on the canvas
    height: int = 0

    def scale(self, factor: float) -> None:
        self.height, self.width = (max(1, round(side * factor)) for side in self.image.shape[:2])

    @property
    def per_pixel(self) -> np.ndarray:
        """[4] canvas pixels per pixel of the picture, as a factor for xyxy."""
        return np.array([self.width / self.image.shape[1], self.height / self.image.shape[0]] * 2)


def _read_scene(scene: Scene, class_names: Sequence[str] | None, where: str) -> _Tile:
    boxes = _read_boxes(scene.prediction.get("boxes"), "boxes", where)
    count = len(boxes)
    values: dict[str, np.ndarray | None] = {}
    for name in ("labels", "scores"):
        value = scene.prediction.get(name)
        values[name] = None if value is None else _array(value, name, where).ravel()
        if value is not None and len(values[name]) != count:
            raise DataError(f"{where}: {count} boxes, but {len(values[name])} {name}; there must be one for each box.")
    labels = [None] * count if values["labels"] is None else [int(each) for each in values["labels"]]
    scores = [None] * count if values["scores"] is None else values["scores"].tolist()
    if any(score is not None and not math.isfinite(score) for score in scores):
        raise DataError(f"{where}: a score is not a finite number.")
    order = range(count) if values["scores"] is None else np.argsort(-values["scores"], kind="stable").tolist()
    labels, scores = [labels[index] for index in order], [scores[index] for index in order]
    texts = []
    for label, score in zip(labels, scores, strict=True):
        long = _label_text(label, score, class_names)
        short = "" if label is None else _label_text(label, None, class_names)
        texts.append(tuple(dict.fromkeys(text for text in (long, short) if text)))
    named = [0 if label is None else label for label in labels]
    gt_boxes = _read_boxes(scene.target.get("boxes"), "ground-truth boxes", where)
    alt = describe_detections(named, None if values["scores"] is None else scores, class_names)
    if values["labels"] is None:
        alt = f"{count} box{'' if count == 1 else 'es'}"
    if scene.target.get("boxes") is not None:
        alt += f"; ground truth: {len(gt_boxes)} object{'' if len(gt_boxes) == 1 else 's'}"
    return _Tile(
        image=_read_image(scene.image, where),
        boxes=boxes[list(order)],
        labels=labels,
        texts=texts,
        names={label: _label_text(label, None, class_names) for label in sorted({each for each in labels if each is not None})},
        gt_boxes=gt_boxes,
        title=scene.title,
        alt=alt,
    )


def _read_image(image: Any, where: str) -> np.ndarray:
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise DataError(
            f"{where}: a picture is uint8 [3, H, W] or [H, W, 3]; this is {pixels.dtype} {list(pixels.shape)}. "
            "Pictures from 0 to 1 become uint8 by (image * 255).round().to(torch.uint8)."
        )
    return np.ascontiguousarray(pixels)


def _read_boxes(boxes: Any, name: str, where: str) -> np.ndarray:
    array = np.zeros((0, 4)) if boxes is None else _array(boxes, name, where).astype(float)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise DataError(f"{where}: {name} must be [N, 4] (x1, y1, x2, y2), not {list(array.shape)}.")
    for index, box in enumerate(array):
        if not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            raise DataError(
                f"{where}: {name}[{index}] is {box.round(2).tolist()}; expected finite x1 <= x2 and y1 <= y2 in pixels."
            )
    return array


def _array(value: Any, name: str, where: str) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().to(torch.float64).numpy()
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {name} are not numbers ({error}).") from error


def _label_text(label: int | None, score: float | None, class_names: Sequence[str] | None) -> str:
    if label is None:
        name = ""
    elif class_names is not None and 0 <= label < len(class_names):
        name = " ".join(str(class_names[label]).split())  # a line break inside a name would break the label's box
    else:
        name = f"class {label}"
    return " ".join(part for part in (name, "" if score is None else f"{score:.2f}") if part)


# ---------------------------------------------------------------------------------------------------------------------------------
# Laying out: all in pixels of the canvas


@dataclass(frozen=True)
class _Label:
    text: str
    x: float  # upper left corner, pixels from the picture's upper left corner
    y: float
    width: float
    height: float
    size: int  # of the font


def _place_labels(tile: _Tile) -> list[_Label | None]:
    """A free place for each box's words, the surest boxes first; None where there is none, and the box gets a mark instead.

    A label lies wholly inside the picture, on no other label, and hides no other object.
    """
    boxes = np.clip(tile.boxes * tile.per_pixel, 0, [tile.width, tile.height] * 2)
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1)
    taken = np.zeros((0, 4))
    labels: list[_Label | None] = []
    for index, (box, texts) in enumerate(zip(boxes, tile.texts, strict=True)):
        others = np.arange(len(boxes)) != index
        label = None
        for text in texts:
            label = _first_free(box, text, tile, taken, boxes[others], areas[others])
            if label is not None:
                taken = np.vstack([taken, [label.x, label.y, label.x + label.width, label.y + label.height]])
                break
        labels.append(label)
    return labels


def _first_free(
    box: np.ndarray, text: str, tile: _Tile, taken: np.ndarray, others: np.ndarray, other_areas: np.ndarray
) -> _Label | None:
    x1, y1, x2, y2 = box
    short_side = min(x2 - x1, y2 - y1)
    size = 12 if short_side >= 56 else 11 if short_side >= 28 else 9
    width, height = math.ceil(_text_width(text, size)) + 6, size + 5
    left, right = x1 - 1, x2 + 1 - width
    roomy = x2 - x1 >= width and y2 - y1 >= 2.5 * height
    places = [(left, y1 - height), (right, y1 - height)]
    places += [(x1, y1), (x2 - width, y1)] if roomy else []
    places += [(left, y2), (right, y2)]
    places += [(x1, y2 - height), (x2 - width, y2 - height)] if roomy else []
    places += [(x2 + 1, y1), (left - width, y1)]
    for x, y in places:
        x, y = round(min(max(x, 0), tile.width - width)), round(y)
        if x < 0 or y < 0 or y + height > tile.height:
            continue
        place = np.array([x, y, x + width, y + height])
        if _overlap(place, taken).any() or (_overlap(place, others) > 0.5 * other_areas).any():
            continue
        return _Label(text, x, y, width, height, size)
    return None


def _overlap(place: np.ndarray, others: np.ndarray) -> np.ndarray:
    sides = np.minimum(place[2:], others[:, 2:]) - np.maximum(place[:2], others[:, :2])
    return sides.clip(min=0).prod(axis=1)


# ---------------------------------------------------------------------------------------------------------------------------------
# Drawing


def _compose(tiles: list[_Tile], columns: int, margin: int, title: str | None) -> Drawing:
    """The figure: a title, rows of tiles with their titles, and a legend of what the words do not say."""
    labels = [_place_labels(tile) for tile in tiles]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    gap = 10
    column_width = max(tile.width for tile in tiles)
    width = max(column_width * columns + gap * (columns - 1) + 2 * margin, 200)
    legend = _legend_rows(tiles, labels, width - 2 * max(margin, 6))
    head = 32 if title else 0
    title_heights = [24 if any(tile.title for tile in row) else 0 for row in rows]
    row_heights = [max(tile.height for tile in row) for row in rows]
    height = 2 * margin + head + sum(title_heights) + sum(row_heights) + gap * (len(rows) - 1)
    height += 22 * len(legend) + (8 if legend else 0)

    with matplotlib.style.context("default"):
        figure = _figure(width, height)
        canvas_texts = []
        y = margin + head
        for row_number, row in enumerate(rows):
            y += title_heights[row_number]
            for column, tile in enumerate(row):
                x = margin + column * (column_width + gap) + (column_width - tile.width) // 2
                if columns == 1:
                    x = (width - tile.width) // 2
                axes = figure.add_axes([x / width, 1 - (y + tile.height) / height, tile.width / width, tile.height / height])
                _draw_tile(axes, tile, labels[row_number * columns + column])
                if tile.title:
                    canvas_texts.append((x + (2 if margin == 0 else 0), y - 8, tile.title, column_width - 4, 12))
            y += row_heights[row_number] + gap
        canvas = _overlay(figure, width, height)
        if title:
            _text(canvas, margin, margin + 18, _shorten(title, width - 2 * margin, 15, bold=True), 15, INK, bold=True)
        for text_x, text_y, text, room, size in canvas_texts:
            _text(canvas, text_x, text_y, _shorten(text, room, size, bold=True), size, INK, bold=True)
        _draw_legend(canvas, legend, max(margin, 6), height - margin - 22 * len(legend))
    parts = [": ".join(part for part in (tile.title, tile.alt) if part) for tile in tiles]
    figure.alt = parts[0] if len(parts) == 1 else f"{title or 'Gallery'}: {len(parts)} pictures. " + ". ".join(parts)
    return figure


def _draw_tile(axes: Axes, tile: _Tile, labels: list[_Label | None]) -> None:
    height, width = tile.image.shape[:2]
    axes.set_axis_off()
    axes.imshow(_resized(tile), extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set(xlim=(0, width), ylim=(height, 0))
    for box in tile.gt_boxes:
        _draw_box(axes, box, GT_COLOUR, 1.5, dashed=True)
    ranked = list(zip(tile.boxes, tile.labels, labels, strict=True))
    for box, label, _ in reversed(ranked):  # the surest lies on top
        short_side = ((box[2:] - box[:2]) * tile.per_pixel[:2]).min()
        _draw_box(axes, box, PALETTE[0] if label is None else colour(label), 2.0 if short_side >= 24 else 1.5)
    sx, sy = tile.per_pixel[:2]
    for box, label, words in reversed(ranked):
        fill = PALETTE[0] if label is None else colour(label)
        if words is not None:
            axes.add_patch(
                Rectangle((words.x / sx, words.y / sy), words.width / sx, words.height / sy, facecolor=fill, linewidth=0, zorder=4)
            )
            _text(axes, (words.x + 3) / sx, (words.y + words.size + 0.5) / sy, words.text, words.size, text_colour(fill))
        elif label is not None:
            x, y = np.clip(box[:2], [4 / sx, 4 / sy], [width - 4 / sx, height - 4 / sy])
            _draw_mark(axes, x, y, label)


def _draw_box(axes: Axes, box: np.ndarray, line: str, line_width: float, dashed: bool = False) -> None:
    """A thin line with a dark rim on both sides, visible on light and on dark."""
    rim = patheffects.Stroke(linewidth=line_width + 1.5, foreground="black", alpha=0.55)
    axes.add_patch(
        Rectangle(
            box[:2],
            *(box[2:] - box[:2]),
            fill=False,
            edgecolor=line,
            linewidth=line_width,
            linestyle=(0, (4, 2.5)) if dashed else "-",
            joinstyle="miter",
            capstyle="butt",
            path_effects=[rim, patheffects.Normal()],
            zorder=2 if dashed else 3,
        )
    )


def _draw_mark(axes: Axes, x: float, y: float, label: int) -> None:
    axes.plot([x], [y], marker=mark(label), markersize=7, color=colour(label), markeredgecolor="black", markeredgewidth=0.8, zorder=3.5)


def _resized(tile: _Tile) -> np.ndarray:
    """The picture in canvas pixels: smooth for photographs, in hard squares when single pixels are to be seen."""
    enlarged = tile.width / tile.image.shape[1]
    method = Image.Resampling.NEAREST if enlarged >= 6 else Image.Resampling.BICUBIC if enlarged >= 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(tile.image).resize((tile.width, tile.height), method))


def _legend_rows(tiles: list[_Tile], labels: list[list[_Label | None]], room: float) -> list[list[tuple[float, str, str, int]]]:
    """Entries (x, kind, text, label) in rows: the classes that some mark stands for, and what dashed and solid lines are."""
    marked: dict[int, str] = {}
    for tile, places in zip(tiles, labels, strict=True):
        marked |= {
            label: tile.names[label]
            for label, words in zip(tile.labels, places, strict=True)
            if words is None and label is not None
        }
    entries = [("mark", name, label) for label, name in sorted(marked.items())]
    if any(len(tile.gt_boxes) for tile in tiles):
        entries += [("gt", "ground truth (dashed)", 0)]
        entries += [("box", "detection (solid)", 0)] if any(len(tile.boxes) for tile in tiles) else []
    rows: list[list[tuple[float, str, str, int]]] = []
    x = math.inf
    for kind, text, label in entries:
        text = _shorten(text, room - 24, 11)
        needed = 24 + _text_width(text, 11)
        if x + needed > room:
            rows.append([])
            x = 0.0
        rows[-1].append((x, kind, text, label))
        x += needed + 16
    return rows


def _draw_legend(canvas: Axes, rows: list[list[tuple[float, str, str, int]]], left: float, top: float) -> None:
    for number, row in enumerate(rows):
        middle = top + 22 * number + 11
        for x, kind, text, label in row:
            if kind == "mark":
                _draw_mark(canvas, left + x + 8, middle, label)
            else:
                canvas.add_patch(Rectangle((left + x, middle - 7), 18, 14, facecolor=PALE, linewidth=0))
                inner = np.array([left + x + 3, middle - 4, left + x + 15, middle + 4])
                _draw_box(canvas, inner, GT_COLOUR if kind == "gt" else PALETTE[0], 1.5, dashed=kind == "gt")
            _text(canvas, left + x + 24, middle + 4, text, 11, INK)


CURVES = (("#0072B2", "-"), ("#D55E00", (0, (6, 2))), ("#009E73", (0, (6, 2, 1.5, 2))), ("#882255", (0, (1.5, 1.5))))


def _panel(axes: Axes, name: str, x_name: str, x: list[float], curves: dict[str, list[float]]) -> None:
    axes.set_title(name, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_xlabel(x_name, fontsize=11, color=PALE)
    axes.tick_params(labelsize=10, colors=PALE, length=0)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")
    for (curve_name, values), (line, style) in zip(curves.items(), CURVES * (len(curves) // len(CURVES) + 1), strict=False):
        points = [(at, value) for at, value in zip(x, values, strict=True) if math.isfinite(value)]
        if points:
            few = len(points) <= 20
            axes.plot(*zip(*points, strict=True), color=line, linestyle=style, linewidth=1.8, marker="o" if few else None,
                      markersize=3.5, label=curve_name)  # fmt: skip
    if not axes.lines:
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", fontsize=11, color=PALE)
        axes.set(xlim=(0, 1), ylim=(0, 1))
    else:
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    if len(axes.lines) > 1:
        axes.legend(fontsize=10, frameon=False, labelcolor=INK, handlelength=2.6)


def _value(value: Any, low: float = -math.inf) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) and value >= low else math.nan


def _figure(width: float, height: float) -> Drawing:
    figure = Drawing(figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH), dpi=PIXELS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _overlay(figure: Figure, width: float, height: float) -> Axes:
    """Axes over the whole figure in canvas pixels, y downwards."""
    canvas = figure.add_axes([0, 0, 1, 1], zorder=-1)
    canvas.set_axis_off()
    canvas.set(xlim=(0, width), ylim=(height, 0))
    return canvas


def _text(axes: Axes, x: float, y: float, text: str, size: float, ink: str, bold: bool = False) -> None:
    axes.text(x, y, text, size=size, color=ink, family=list(_fonts()), weight="bold" if bold else "normal", va="baseline",
              ha="left", parse_math=False, zorder=5)  # fmt: skip


def _shorten(text: str, room: float, size: float, bold: bool = False) -> str:
    """The text, cut with an ellipsis where it is wider than the room."""
    text = " ".join(text.split())
    if _text_width(text, size, bold) <= room:
        return text
    while text and _text_width(text + "…", size, bold) > room:
        text = text[:-1]
    return text + "…"


@functools.lru_cache(maxsize=4096)
def _text_width(text: str, size: float, bold: bool = False) -> float:
    font = font_manager.FontProperties(family=list(_fonts()), size=size, weight="bold" if bold else "normal")
    return RendererAgg(8, 8, PIXELS_PER_INCH).get_text_width_height_descent(text, font, ismath=False)[0]


@functools.lru_cache(maxsize=1)
def _fonts() -> tuple[str, ...]:
    """matplotlib's own font, the same on every machine, and for scripts that it lacks whatever is installed."""
    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed))
