"""Pictures with their objects, as models take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minidet.explore.assignment import read_scenes


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


def read_pictures(data: Any) -> list[Picture]:
    """One picture or several, in any of the forms that `read_scenes` knows.

    Raises:
        DataError: there is none, or one of them is something else; the text says which.
    """
    scenes = read_scenes(data)
    return [Picture(s.image, torch.from_numpy(s.boxes), torch.from_numpy(s.labels)) for s in scenes]
