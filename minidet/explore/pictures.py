"""Pictures with their objects, as explorers are given them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minidet.data.shapes import Scene
from minidet.errors import DataError


@dataclass(frozen=True)
class Picture:
    """A picture and what is in it.

    Attributes:
        image: [3, H, W] uint8 RGB.
        boxes: [N, 4] float32 xyxy in pixels.
        labels: [N] int64.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor

    @property
    def target(self) -> dict[str, Tensor]:
        """As a model takes it."""
        return {"boxes": self.boxes, "labels": self.labels}


def read_pictures(pictures: Iterable[Any]) -> list[Picture]:
    """Drawn scenes (`minidet.data.shapes.draw_scene`), or pairs (image, target) as data sets give them.

    Raises:
        DataError: there is none, or one of them is something else; the text says which.
    """
    read = [_read(each, number) for number, each in enumerate(pictures, start=1)]
    if not read:
        raise DataError("there is no picture to explore; give at least one, such as a scene of draw_scene.")
    return read


def _read(given: Any, number: int) -> Picture:
    if isinstance(given, Picture):
        return given
    if isinstance(given, Scene):
        image = torch.from_numpy(given.image).permute(2, 0, 1).contiguous()
        boxes, labels = torch.from_numpy(given.boxes), torch.from_numpy(given.labels)
    else:
        try:
            image, target = given
            boxes, labels = target["boxes"], target["labels"]
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise DataError(
                f"picture {number} is neither a scene nor a pair (image, target) with 'boxes' and 'labels' in it."
            ) from error
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise DataError(f"picture {number}: an image is a tensor [3, H, W] of uint8.")
    if not isinstance(boxes, Tensor) or not isinstance(labels, Tensor) or boxes.shape != (len(labels), 4):
        raise DataError(f"picture {number}: boxes are a tensor [N, 4] and labels one of [N].")
    return Picture(image, boxes.float(), labels.long())
