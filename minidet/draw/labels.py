"""Where each box's words go: inside the picture, on no other words, over no other object.

Everything is in pixels of the canvas, counted from the picture's upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minidet.draw.figure import text_width

LARGEST_SHARE = 0.2  # of the picture's area, for all labels together: who looks at a crowd wants to see the crowd


@dataclass(frozen=True)
class Label:
    """One line of text in a filled rectangle."""

    text: str
    x: int  # upper left corner
    y: int
    width: int
    height: int
    size: int  # of the font

    @property
    def rectangle(self) -> np.ndarray:
        return np.array([self.x, self.y, self.x + self.width, self.y + self.height])


def place_labels(boxes: np.ndarray, wordings: Sequence[tuple[str, ...]], width: int, height: int) -> list[Label | None]:
    """Find a place for the words of every box.

    Args:
        boxes: [N, 4] xyxy; the first is served first.
        wordings: what each box may say, from long to short.
        width, height: of the picture.

    Returns:
        One label a box, or None where nothing of its wording finds a place.
    """
    boxes = np.clip(boxes, 0, [width, height, width, height])
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1)
    taken = np.zeros((len(boxes), 4))
    labels: list[Label | None] = []
    room = LARGEST_SHARE * width * height
    for index, box in enumerate(boxes):
        labels.append(None)
        for text in wordings[index]:
            size = _font_size(box, max(width, height))
            for label in _places(box, text, size, width, height):
                covered = _overlap(label.rectangle, boxes) > 0.5 * areas
                covered[index] = False  # that it may lie on its own box is for _places to say
                if (
                    label.width * label.height <= room
                    and not covered.any()
                    and not _overlap(label.rectangle, taken).any()
                ):
                    labels[index] = label
                    break
            if labels[index] is not None:
                taken[index] = labels[index].rectangle
                room -= labels[index].width * labels[index].height
                break
    return labels


def _font_size(box: np.ndarray, longest_side: int) -> int:
    """Small objects and small pictures get small words."""
    short_side = min(box[2] - box[0], box[3] - box[1])
    if longest_side <= 400:
        return 10 if short_side >= 40 else 9
    return 12 if short_side >= 40 else 10 if short_side >= 24 else 9


def _places(box: np.ndarray, text: str, size: int, width: int, height: int) -> list[Label]:
    """Places around a box and, where it is roomy, in it, the best first; only those inside the picture."""
    label_width, label_height = math.ceil(text_width(text, size)) + 6, size + 4
    x1, y1, x2, y2 = (round(each) for each in box.tolist())
    left, right = x1 - 1, x2 + 1 - label_width  # flush with the outer edges of the box's line
    corners = [(left, y1 - label_height), (right, y1 - label_height)]
    roomy = x2 - x1 >= label_width and y2 - y1 >= 2.5 * label_height
    if roomy:
        corners += [(x1, y1), (x2 - label_width, y1)]
    corners += [(left, y2), (right, y2)]
    if roomy:
        corners += [(x1, y2 - label_height), (x2 - label_width, y2 - label_height)]
    corners += [(x2 + 1, y1), (left - label_width, y1)]
    if label_width > width:
        return []
    shifted = [(min(max(x, 0), width - label_width), y) for x, y in corners]
    return [Label(text, x, y, label_width, label_height, size) for x, y in shifted if 0 <= y <= height - label_height]


def _overlap(rectangle: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N] the area that a rectangle [4] shares with each of [N, 4]."""
    sides = np.minimum(rectangle[2:], others[:, 2:]) - np.maximum(rectangle[:2], others[:, :2])
    return sides.clip(min=0).prod(axis=1)
