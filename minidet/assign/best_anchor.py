"""Best anchor: an object belongs to the one anchor whose shape fits it best, in the cell that holds its centre.

Three steps: each object is compared with the shapes of all anchors of all levels, as if they had a common centre; the
best one's level and the cell of the object's centre are its slot; then every other slot whose predicted box overlaps
some object well is left out of training, as calling it background would punish a good guess.

One slot an object, whatever its size: that is why YOLOv3 has few positives, and what the road map to YOLOX changes.

Source: YOLOv3, arXiv 1804.02767, section 2.1; the threshold of 0.7, and that it is held against predicted boxes, are
those of its published code (the paper compares anchors, with 0.5); YOLOX, Table 2 "baseline"; chapter 09.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from minidet.assign.base import (
    BACKGROUND,
    IGNORED,
    Assignment,
    DensePredictions,
    Targets,
    assign_by_grid,
    give_to_best,
    pad_targets,
)
from minidet.assign.centre import centre_cells
from minidet.boxes import pairwise_iou, shape_iou
from minidet.errors import MinidetError
from minidet.grid import Grid
from minidet.settings import check_settings


@dataclass(frozen=True)
class BestAnchor:
    """The assigner.

    Attributes:
        ignore_iou: a slot without an object whose predicted box overlaps any object by more than this is ignored.
    """

    ignore_iou: float = 0.7

    def __post_init__(self) -> None:
        check_settings(self, "BestAnchor")
        if not 0 < self.ignore_iou <= 1:
            raise MinidetError(f"BestAnchor: ignore_iou is {self.ignore_iou}; it lies between 0 and 1")

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, targets: Targets, trace: bool = False) -> Assignment:
        """Assign a batch. Who owns a slot depends on grid and objects alone, who is ignored on the predictions.

        Args:
            predictions: of the current forward pass.
            targets: for each image `boxes` [G, 4] float xyxy in pixels of the network input and `labels` [G] int64.
            trace: keep shapes, candidates and conflicts of every image, and `best_iou` [A], the largest overlap of each
                slot's predicted box with an object, 0 where the prediction is not finite.

        Returns:
            The assignment. An object is without a slot if its centre is outside the grid, or if another one, which fits
            the same anchor better, has the same cell.
        """
        gt = pad_targets(targets)
        owned = assign_by_grid(self.match, predictions, gt, trace, most_each=1)
        # Image by image: all pairs of a batch, with three anchors a cell, would need more memory than the network.
        best_iou = torch.stack(
            [pairwise_iou(gt.boxes[i], predictions.boxes[i]).amax(dim=0).clamp(max=1) for i in range(len(gt))]
        )
        best_iou = best_iou.where(predictions.finite, 0)
        ignored = (best_iou > self.ignore_iou) & (owned.matched_gt == BACKGROUND)
        steps = owned.trace and tuple(
            {**step, "best_iou": overlap} for step, overlap in zip(owned.trace, best_iou, strict=True)
        )
        return dataclasses.replace(owned, matched_gt=owned.matched_gt.where(~ignored, IGNORED), trace=steps)

    def match(self, grid: Grid, gt_boxes: Tensor) -> dict[str, Tensor]:
        """Who learns what in one image with the objects [G, 4], step by step, whatever the network says.

        Returns:
            `shape_iou` [G, K] with the K anchors of a cell on all levels, `anchor` [G] int64 the best of them,
            `candidates` [G, A] bool, the slot of each object, `conflicts` [A] bool and `matched_gt` [A].
        """
        shapes = grid.anchor_sizes[first_slots(grid)]  # [K, 2]
        fit = shape_iou(gt_boxes[:, 2:] - gt_boxes[:, :2], shapes)  # [G, K]
        best, anchor = fit.max(dim=1)
        position = torch.arange(len(grid), device=gt_boxes.device) % grid.anchors_per_cell
        kind = grid.levels * grid.anchors_per_cell + position  # [A], which of the K each slot has
        candidates = centre_cells(grid, gt_boxes, 0.5) & (kind == anchor[:, None])  # [G, A]
        return {
            "shape_iou": fit,
            "anchor": anchor,
            "candidates": candidates,
            "conflicts": candidates.sum(dim=0) > 1,
            "matched_gt": give_to_best(candidates, best[:, None].expand(candidates.shape)),
        }


def first_slots(grid: Grid) -> Tensor:
    """The slots of the first cell of each level: one of every anchor that there is, [L * n] int64."""
    slots, first = [], 0
    for size in grid.level_sizes:
        slots.append(torch.arange(first, first + grid.anchors_per_cell, device=grid.cells.device))
        first += size
    return torch.cat(slots)
