"""Where predictions live: each cell of each feature map is one prediction slot, and a grid knows them all.

Slots are numbered level by level, finest first, and row by row inside a level. A is their number.

Source: YOLOX, section 2.1 "Anchor-free"; chapter 09.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """All prediction slots of one input size.

    Attributes:
        cells: [A, 2] float, column and row (gx, gy) of each slot in its level.
        strides: [A] float, pixels per cell.
        level_shapes: (rows, columns) of each level, finest first.
    """

    cells: Tensor
    strides: Tensor
    level_shapes: tuple[tuple[int, int], ...]

    @property
    def centers(self) -> Tensor:
        """[A, 2] float, centre of each cell in pixels. Decoding counts from the corner; assignment from here."""
        return (self.cells + 0.5) * self.strides[:, None]

    @property
    def levels(self) -> Tensor:
        """[A] int64, the level that each slot belongs to."""
        sizes = torch.tensor([rows * columns for rows, columns in self.level_shapes])
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(self.cells.device)

    def __len__(self) -> int:
        return len(self.cells)


def make_grid(
    level_shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device | str = "cpu"
) -> Grid:
    """The slots of feature maps with the given shapes.

    Args:
        level_shapes: (rows, columns) of each level, finest first.
        strides: pixels per cell of each level.
    """
    cells, slot_strides = [], []
    for (rows, columns), stride in zip(level_shapes, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        cells.append(torch.stack([x, y], dim=-1).reshape(-1, 2))
        slot_strides.append(torch.full((rows * columns,), stride, device=device))
    return Grid(torch.cat(cells).float(), torch.cat(slot_strides).float(), tuple(map(tuple, level_shapes)))
