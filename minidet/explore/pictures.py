"""Pictures with their objects, as models take them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minidet.errors import DataError

SMALLEST_SIDE = 1.0  # of a box, in pixels of the picture


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


def read_pictures(data: Any) -> tuple[Picture, ...]:
    """Pictures with their objects, in any of the forms that the library has them in.

    Args:
        data: one of these, or a list of them: a pair (picture, target) as a data set gives it, the picture uint8
            [3, H, W] or [H, W, 3] RGB, the target with "boxes" [G, 4] xyxy and "labels" [G]; or a scene of
            `minidet.data.shapes.draw_scene`.

    Raises:
        DataError: it is none of these, and which one is not.
    """
    is_one = hasattr(data, "image") or (isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], dict))
    if not is_one and not isinstance(data, Iterable):
        raise DataError(
            f"data: expected (picture, target), a drawn scene, or a list of them, not {type(data).__name__}"
        )
    pictures = tuple(_read(item, index) for index, item in enumerate([data] if is_one else data))
    if not pictures:
        raise DataError("there is no picture; give at least one (picture, target)")
    return pictures


def _read(item: Any, index: int) -> Picture:
    if hasattr(item, "image"):
        image, boxes, labels = item.image, item.boxes, item.labels
    elif isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], dict):
        image, (boxes, labels) = item[0], (item[1].get("boxes"), item[1].get("labels"))
    else:
        raise DataError(f"picture {index}: expected (picture, target) or a drawn scene, not {type(item).__name__}")
    pixels = torch.as_tensor(np.array(image) if not isinstance(image, Tensor) else image.detach().cpu())
    if pixels.ndim == 3 and pixels.shape[0] != 3 and pixels.shape[2] == 3:
        pixels = pixels.permute(2, 0, 1)
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype != torch.uint8:
        raise DataError(
            f"picture {index}: expected uint8 [3, H, W] or [H, W, 3], not {pixels.dtype} {list(pixels.shape)}"
        )
    boxes = np.asarray(boxes if boxes is not None else [], np.float32).reshape(-1, 4)
    labels = np.asarray(labels if labels is not None else [], np.int64).reshape(-1)
    if len(boxes) != len(labels):
        raise DataError(f"picture {index}: {len(boxes)} boxes, but {len(labels)} labels")
    boxes = tidy_boxes(boxes, tuple(pixels.shape[-2:]))
    return Picture(pixels.contiguous(), torch.from_numpy(boxes), torch.tensor(labels))


def tidy_boxes(boxes: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Boxes as a picture can hold them: inside it, corners in order, at least a pixel wide and high.

    Args:
        boxes: [G, 4] float xyxy.
        image_hw: height and width of the picture.

    Returns:
        [G, 4] float32. A box that lay outside is a pixel wide at the border; coordinates that are no numbers become 0.
    """
    extent = np.array(image_hw[::-1], np.float64)
    corners = np.nan_to_num(np.asarray(boxes, np.float64).reshape(-1, 2, 2), posinf=1e9, neginf=-1e9)
    low = np.minimum(corners[:, 0], corners[:, 1]).clip(0, extent - SMALLEST_SIDE)
    high = np.maximum(corners[:, 0], corners[:, 1]).clip(low + SMALLEST_SIDE, extent)
    return np.concatenate([low, high], axis=1).astype(np.float32)
