"""Centre sampling: an object belongs to the cell that its centre falls into, and perhaps to the cells around it.

Three steps for one image: each object goes to one level, by its size; there to the cell of its centre, or to a square
of cells; a cell that several objects want goes to the smallest. Nothing depends on what the network says.

Source: YOLOX, section 2.1, "Anchor-free" (one cell) and "Multi positives" (3 x 3), Table 2; levels by size and the rule
for conflicts are those of FCOS, arXiv 1904.01355, section 3.2; chapter 09.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from minidet.assign.base import Assignment, DensePredictions, Targets, assign_by_grid, give_to_best
from minidet.boxes import box_area
from minidet.errors import MinidetError
from minidet.grid import Grid
from minidet.settings import check_settings


@dataclass(frozen=True)
class CentreSampling:
    """The assigner.

    Attributes:
        radius: half the side of the centre square in strides: 1.5 for 3 x 3 cells. None: only the cell that the
            object's centre falls into.
        level_limit: which objects are large on a level: those whose half longest side is more than so many strides.
            An object goes to the finest level on which it is not large, and to the coarsest if it is large on all. The
            default gives FCOS's ranges: half longest sides up to 64 px at stride 8, 128 at 16, 256 at 32. They were
            made for pictures of 800 x 1333; for much smaller ones a smaller limit spreads the objects better.
    """

    radius: float | None = None
    level_limit: float = 8.0

    def __post_init__(self) -> None:
        check_settings(self, "CentreSampling")
        if self.radius is not None and not self.radius >= 0.5:
            raise MinidetError(f"CentreSampling: radius is {self.radius}; it is at least 0.5, or None for one cell")
        if not self.level_limit > 0:
            raise MinidetError(f"CentreSampling: level_limit is {self.level_limit}; it is above 0")

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, targets: Targets, trace: bool = False) -> Assignment:
        """Assign a batch. Only the grid and objects count; but a slot whose prediction is not finite is not positive.

        Args:
            predictions: of the current forward pass.
            targets: for each image `boxes` [G, 4] float xyxy in pixels of the network input and `labels` [G] int64.
            trace: keep levels, candidates and conflicts of every image.

        Returns:
            The assignment. An object is without a slot if its centre is outside the grid, or if smaller ones have its
            cells.
        """
        cells = 1 if self.radius is None else math.ceil(2 * self.radius)  # along each axis
        return assign_by_grid(self.match, predictions, targets, trace, most_each=cells**2)

    def match(self, grid: Grid, gt_boxes: Tensor) -> dict[str, Tensor]:
        """Who learns what in one image with the objects [G, 4], step by step, whatever the network says.

        Returns:
            `level` [G] int64, `near` [G, A] bool (cells of any level around the object's centre), `candidates` [G, A]
            bool (the slots that an object wants), `area` [G], `conflicts` [A] bool and `matched_gt` [A].
        """
        levels = grid.levels
        strides = torch.stack([strides[0] for strides in grid.strides.split(grid.level_sizes)])  # [L]
        level = level_by_size(gt_boxes, strides, self.level_limit)  # [G]

        near = centre_cells(grid, gt_boxes, 0.5 if self.radius is None else self.radius)  # [G, A]
        candidates = near & (levels == level[:, None])
        if grid.anchors_per_cell > 1:
            candidates = candidates & best_fitting_anchors(grid, gt_boxes)

        area = box_area(gt_boxes)  # [G]
        return {
            "level": level,
            "near": near,
            "candidates": candidates,
            "area": area,
            "conflicts": candidates.sum(dim=0) > 1,
            "matched_gt": give_to_best(candidates, -area[:, None].expand_as(candidates)),
        }


def level_by_size(gt_boxes: Tensor, level_strides: Tensor, limit: float) -> Tensor:
    """The level of each object: the finest on which half its longest side is at most `limit` strides, or the coarsest.

    FCOS compares the distance from a cell to the farthest side of the object. At the object's centre that is half its
    longest side, so one comparison serves all cells around it.

    Args:
        gt_boxes: [G, 4] float xyxy in pixels.
        level_strides: [L] float, finest first.
        limit: in strides.

    Returns:
        [G] int64.
    """
    half_side = (gt_boxes[:, 2:] - gt_boxes[:, :2]).amax(dim=1) / 2
    too_fine = half_side[:, None] > limit * level_strides[None, :-1]  # [G, L - 1]
    return too_fine.sum(dim=1)


def centre_cells(grid: Grid, gt_boxes: Tensor, radius: float) -> Tensor:
    """The slots of all levels within `radius` strides of each object's centre, in x and in y: [G, 4] -> [G, A] bool.

    The interval is half open, so a centre on the border of two cells belongs to the right or lower one alone: radius
    0.5 is one cell of each level and 1.5 is 3 x 3, wherever the centre is. (SimOTA's region is open on both sides, and
    has 2 cells an axis around such a centre.)
    """
    centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2  # [G, 2]
    offsets = centers[:, None] - grid.centers  # [G, A, 2]
    reach = radius * grid.strides[:, None]  # [A, 1]
    return ((-reach <= offsets) & (offsets < reach)).all(dim=-1)


def best_fitting_anchors(grid: Grid, gt_boxes: Tensor) -> Tensor:
    """In each cell the one anchor whose size is nearest to each object's: [G, 4] -> [G, A] bool.

    Nearest means the smallest sum of the squared logarithms of the two ratios, of widths and of heights. Without the
    squares all square anchors between an object's width and its height would fit it alike.
    """

    def log_size(boxes: Tensor) -> Tensor:
        return (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6).log()

    misfit = (log_size(gt_boxes)[:, None] - log_size(grid.anchor_boxes)).square().sum(dim=-1)  # [G, A]
    best = misfit.unflatten(1, (-1, grid.anchors_per_cell)).argmin(dim=2)  # [G, cells]
    return one_hot(best, grid.anchors_per_cell).bool().flatten(1)
