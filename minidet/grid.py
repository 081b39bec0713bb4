"""Where predictions live: each cell of each feature map holds one prediction slot, or one for each of its anchors.

Slots are numbered level by level, finest first, row by row inside a level, and anchor by anchor inside a cell. A is
their number.

Source: YOLOX, section 2.1 "Anchor-free"; YOLOF, section 4.2 and its published code for anchors; chapters 06 and 09.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

AnchorSize = float | tuple[float, float]  # of a square, or width and height


@dataclass(frozen=True)
class Grid:
    """All prediction slots of one input size.

    Attributes:
        cells: [A, 2] float, column and row (gx, gy) of each slot in its level.
        strides: [A] float, pixels per cell.
        level_shapes: (rows, columns) of each level, finest first.
        anchors: [A, 4] float xyxy in pixels, not clipped; None for a detector without anchors.
        anchors_per_cell: slots of each cell.
    """

    cells: Tensor
    strides: Tensor
    level_shapes: tuple[tuple[int, int], ...]
    anchors: Tensor | None = None
    anchors_per_cell: int = 1

    @property
    def centers(self) -> Tensor:
        """[A, 2] float, centre of each cell in pixels. Decoding counts from the corner; assignment from here."""
        return (self.cells + 0.5) * self.strides[..., None]

    @property
    def level_sizes(self) -> list[int]:
        """Number of slots in each level."""
        return [rows * columns * self.anchors_per_cell for rows, columns in self.level_shapes]

    @property
    def anchor_sizes(self) -> Tensor:
        """[A, 2] float, width and height in pixels of `anchor_boxes`."""
        return self.anchor_boxes[..., 2:] - self.anchor_boxes[..., :2]

    @property
    def levels(self) -> Tensor:
        """[A] int64, the level that each slot belongs to."""
        device = self.cells.device
        return torch.cat([torch.full((size,), level, device=device) for level, size in enumerate(self.level_sizes)])

    @property
    def anchor_boxes(self) -> Tensor:
        """[A, 4] float xyxy, what rules about anchors compare objects with.

        For a detector without anchors these are squares of four strides around the cell centres: RetinaNet's base size.
        """
        if self.anchors is not None:
            return self.anchors
        half = 2 * self.strides[:, None]
        return torch.cat([self.centers - half, self.centers + half], dim=1)

    def at(self, slots: Tensor) -> Grid:
        """Cells, strides and anchors of some slots, which are any [...] int64; they form no levels."""
        anchors = None if self.anchors is None else self.anchors[slots]
        return Grid(self.cells[slots], self.strides[slots], (), anchors, self.anchors_per_cell)

    def __len__(self) -> int:
        return len(self.cells)


def make_grid(
    level_shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    device: torch.device | str = "cpu",
    anchor_sizes: Sequence[Sequence[AnchorSize]] | None = None,
    anchor_offset: float = 0.0,
) -> Grid:
    """The slots of feature maps with the given shapes.

    Args:
        level_shapes: (rows, columns) of each level, finest first.
        strides: pixels per cell of each level.
        anchor_sizes: for each level its anchors in pixels, (width, height) or the side of a square, as many on each
            level; None for a grid without anchors.
        anchor_offset: where anchors stand, in strides: 0 around the top-left corner of their cell (YOLOF), 0.5 around
            its middle (YOLOv3).
    """
    per_cell = 1 if anchor_sizes is None else len(anchor_sizes[0])
    cells, slot_strides, anchors = [], [], []
    for level, ((rows, columns), stride) in enumerate(zip(level_shapes, strides, strict=True)):
        y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        level_cells = torch.stack([x, y], dim=-1).reshape(-1, 2).repeat_interleave(per_cell, dim=0).float()
        cells.append(level_cells)
        slot_strides.append(torch.full((len(level_cells),), float(stride), device=device))
        if anchor_sizes is not None:
            sides = [size if isinstance(size, Sequence) else (size, size) for size in anchor_sizes[level]]
            numbers = [float(side) for size in sides for side in size]
            sizes = torch.cat([torch.full((1,), number, device=device) for number in numbers]).view(-1, 2)
            half = sizes.repeat(rows * columns, 1) / 2
            middle = (level_cells + anchor_offset) * stride
            anchors.append(torch.cat([middle - half, middle + half], dim=1))
    return Grid(
        torch.cat(cells),
        torch.cat(slot_strides),
        tuple(map(tuple, level_shapes)),
        torch.cat(anchors) if anchors else None,
        per_cell,
    )


@lru_cache(maxsize=64)  # multi-scale training meets a dozen sizes
@torch.inference_mode(False)  # a grid that inference made must serve training too
def _kept_grid(
    level_shapes: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    device: torch.device,
    anchor_sizes: tuple[tuple[AnchorSize, ...], ...] | None,
    anchor_offset: float,
) -> Grid:
    return make_grid(level_shapes, strides, device, anchor_sizes, anchor_offset)


def cached_grid(
    level_shapes: tuple[tuple[int, int], ...],
    strides: tuple[int, ...],
    device: torch.device,
    anchor_sizes: tuple[tuple[AnchorSize, ...], ...] | None = None,
    anchor_offset: float = 0.0,
) -> Grid:
    """`make_grid`, once for each input size; a compiled graph makes it as part of itself."""
    make = make_grid if torch.compiler.is_compiling() else _kept_grid
    return make(level_shapes, strides, device, anchor_sizes, anchor_offset)
