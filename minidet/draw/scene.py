"""What is to be drawn: read, checked and put into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from minidet.errors import DataError


@dataclass(frozen=True)
class Scene:
    """A picture and what to draw on it; one tile of a gallery. All boxes are xyxy in pixels of the picture.

    Attributes:
        image: uint8 [3, H, W] or [H, W, 3], RGB; never changed.
        prediction: "boxes" [N, 4] and, where known, "labels" [N] and "scores" [N].
        target: "boxes" [G, 4], the ground truth; drawn white and dashed, below the prediction.
        title: a line above the picture.
    """

    image: Tensor | np.ndarray
    prediction: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    title: str | None = None


@dataclass
class Tile:
    """A checked scene, and where its parts lie on the canvas."""

    image: np.ndarray  # uint8 [H, W, 3]
    boxes: np.ndarray  # [N, 4] xyxy, pixels of the picture, by decreasing score
    labels: list[int | None]
    wordings: list[tuple[str, ...]]  # what each box may say, from long to short
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


def read_scene(scene: Scene, class_names: Sequence[str] | None, where: str) -> Tile:
    boxes = _read_boxes(scene.prediction.get("boxes"), "boxes", where)
    labels, scores = _read_labels(scene.prediction.get("labels"), scene.prediction.get("scores"), len(boxes), where)
    order = sorted(range(len(boxes)), key=lambda index: -(scores[index] or 0.0))
    labels, scores = [labels[index] for index in order], [scores[index] for index in order]
    gt_boxes = _read_boxes(scene.target.get("boxes"), "ground-truth boxes", where)

    wordings = []
    for label, score in zip(labels, scores, strict=True):
        texts = (_label_text(label, score, class_names), _label_text(label, None, class_names))
        wordings.append(tuple(dict.fromkeys(text for text in texts if text)))
    unlabelled = len(boxes) > 0 and None in labels
    alt = _count(len(boxes), "box", "boxes") if unlabelled else _describe(labels, scores, class_names)
    if scene.target.get("boxes") is not None:
        alt += f"; ground truth: {_count(len(gt_boxes), 'object')}"
    return Tile(
        image=_read_image(scene.image, where),
        boxes=boxes[order],
        labels=labels,
        wordings=wordings,
        names={label: _label_text(label, None, class_names) for label in labels if label is not None},
        gt_boxes=gt_boxes,
        title=scene.title,
        alt=alt,
    )


def describe_detections(
    labels: Any, scores: Any = None, class_names: Sequence[str] | None = None, limit: int = 8
) -> str:
    """Detections in words, as alternative text for a picture: "3 objects: circle 0.93, star 0.85, ring 0.20".

    Args:
        labels: [N] int, in the order in which they are to be named.
        scores: [N] float, or None.
        class_names: the name of each label; a label without one is called "class 7".
        limit: objects that are listed; the others are counted.
    """
    labels = () if labels is None else labels
    return _describe(*_read_labels(labels, scores, len(labels), "describe_detections"), class_names, limit)


def _describe(labels: list[int], scores: list[float | None], class_names: Sequence[str] | None, limit: int = 8) -> str:
    words = [_label_text(label, score, class_names) for label, score in zip(labels, scores, strict=True)]
    if not words:
        return "no objects"
    listed = ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
    return f"{_count(len(words), 'object')}: {listed}"


def _read_image(image: Any, where: str) -> np.ndarray:
    """[H, W, 3] uint8. Where both ends of the shape are 3, tensors have the channels first and arrays last."""
    channels_first = isinstance(image, Tensor)
    pixels = image.detach().cpu().numpy() if channels_first else np.asarray(image)
    shape = pixels.shape
    if pixels.ndim == 3 and shape[0] == 3 and (channels_first or shape[2] != 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in shape:
        raise DataError(
            f"{where}: a picture is uint8 [3, H, W] or [H, W, 3]; this is {pixels.dtype} {list(shape)}. "
            "Pictures from 0 to 1 become uint8 by (image * 255).round().to(torch.uint8)."
        )
    return np.ascontiguousarray(pixels)


def _read_labels(labels: Any, scores: Any, count: int, where: str) -> tuple[list, list]:
    """Labels and scores as lists of one entry a box, None where there are none."""
    given = {"labels": labels, "scores": scores}
    lists = {name: _array(each, name, where).ravel() for name, each in given.items() if each is not None}
    for name, values in lists.items():
        if len(values) != count:
            raise DataError(f"{where}: {count} boxes, but {len(values)} {name}; there must be one for each box.")
        if not np.isfinite(values).all():
            raise DataError(f"{where}: {name}[{int(np.argmin(np.isfinite(values)))}] is not a finite number.")
    labels = [int(label) for label in lists["labels"]] if "labels" in lists else [None] * count
    return labels, lists["scores"].tolist() if "scores" in lists else [None] * count


def _read_boxes(boxes: Any, name: str, where: str) -> np.ndarray:
    array = np.zeros((0, 4)) if boxes is None else _array(boxes, name, where)
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
        value = value.detach().cpu().double().numpy()
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


def _count(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
