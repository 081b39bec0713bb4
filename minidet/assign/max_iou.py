"""Max-IoU: every anchor looks for the object that it overlaps best, and two thresholds say what it learns.

Above the upper threshold an anchor is positive, below the lower one it is background, and between them it is ignored.
How many anchors an object gets is left to its size: on one feature map a large object has many, a small one none.

Source: RetinaNet, arXiv 1708.02002, section 4; the low-quality rule is from Faster R-CNN, arXiv 1506.01497, section
3.1.2; chapter 06.
"""

from __future__ import annotations

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
)
from minidet.boxes import pairwise_iou
from minidet.errors import MinidetError
from minidet.grid import Grid
from minidet.settings import check_settings


@dataclass(frozen=True)
class MaxIoU:
    """The assigner. The defaults are RetinaNet's.

    Attributes:
        positive_iou: an anchor that overlaps its best object at least so much is positive.
        negative_iou: one that overlaps its best object less than this is background; between the two it is ignored.
        low_quality: the anchors that overlap an object most are positive too, however little that is. Such an anchor
            learns the object that *it* overlaps best, as in detectron2 and torchvision. So the order of the objects
            does not matter, and an object can still end without a slot. (In mmdet the anchor learns the object that
            chose it, and of several the last.) An object that no anchor overlaps chooses none: its best IoU is 0, and
            all the anchors of the picture share it.
    """

    positive_iou: float = 0.5
    negative_iou: float = 0.4
    low_quality: bool = True

    def __post_init__(self) -> None:
        check_settings(self, "MaxIoU")
        if not 0 < self.negative_iou <= self.positive_iou <= 1:
            raise MinidetError(
                f"MaxIoU: negative_iou is {self.negative_iou} and positive_iou {self.positive_iou}; they lie between 0 "
                "and 1, and the first is not above the second"
            )

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, targets: Targets, trace: bool = False) -> Assignment:
        """Assign a batch. Only anchors and objects count; but a slot whose prediction is not finite is not positive.

        Args:
            predictions: of the current forward pass.
            targets: for each image `boxes` [G, 4] float xyxy in pixels of the network input and `labels` [G] int64.
            trace: keep overlaps, thresholds and low-quality matches of every image.
        """
        return assign_by_grid(self.match, predictions, targets, trace)

    def match(self, grid: Grid, gt_boxes: Tensor) -> dict[str, Tensor]:
        """Who learns what in one image with the objects [G, 4], step by step, whatever the network says.

        Returns:
            `iou` [G, A] of anchors and objects, `best_iou` [A] of each anchor, `threshold` [2] (lower and upper),
            `low_quality` [G, A] bool, the anchors that an object overlaps most, and `matched_gt` [A].
        """
        overlap = pairwise_iou(gt_boxes, grid.anchor_boxes).clamp(max=1)  # [G, A]
        positive = (overlap >= self.positive_iou).any(dim=0)  # [A]
        ignored = (overlap >= self.negative_iou).any(dim=0) & ~positive
        chosen = best_anchors(overlap) if self.low_quality else torch.zeros_like(overlap, dtype=torch.bool)
        best_object = give_to_best(overlap > 0, overlap)  # [A]
        matched_gt = torch.where(ignored, IGNORED, BACKGROUND)
        matched_gt = torch.where(positive | chosen.any(dim=0), best_object, matched_gt)
        return {
            "iou": overlap,
            "best_iou": overlap.amax(dim=0) if len(overlap) else overlap.new_zeros(len(grid)),
            "threshold": torch.linspace(self.negative_iou, self.positive_iou, 2, device=overlap.device),
            "low_quality": chosen,
            "matched_gt": matched_gt,
        }


def best_anchors(overlap: Tensor) -> Tensor:
    """The anchors that overlap each object most, ties included, and none that does not touch it: [G, A] -> [G, A] bool.

    Ties are common: every anchor of one size that holds a small object whole has the same IoU with it.
    """
    return (overlap == overlap.amax(dim=1, keepdim=True)) & (overlap > 0)
