"""One-to-one: every object gets exactly one slot, such that the costs of all objects together are smallest.

A detector that is trained so learns to stay silent at all other slots around an object, and needs no NMS.

Source: DETR, arXiv 2005.12872, section 3.1 (the idea, L1 and GIoU terms); the class term and the weights are those of
Deformable DETR, arXiv 2010.04159, whose classes are sigmoids like here; chapter 06.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from minidet.assign.base import BACKGROUND, Assignment, DensePredictions, Targets, make_assignment, pad_targets
from minidet.boxes import giou, xyxy_to_cxcywh
from minidet.errors import MinidetError
from minidet.grid import Grid
from minidet.losses import combine_logits
from minidet.settings import check_settings

FAR = 1e6  # pixels; a box that reaches farther out costs as much as one that ends here, so that areas stay finite


@dataclass(frozen=True)
class OneToOne:
    """The assigner.

    Attributes:
        class_weight: weight of the class cost, from focal loss with alpha 0.25 and gamma 2.
        l1_weight: weight of the L1 distance of centre, width and height, in shares of the grid's width and height.
        giou_weight: weight of -GIoU.
    """

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0

    on_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self, "OneToOne")
        weights = (self.class_weight, self.l1_weight, self.giou_weight)
        if min(weights) < 0 or not any(weights):
            raise MinidetError(f"OneToOne: the three weights are {weights}; none is below 0, and one at least is above")

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, targets: Targets, trace: bool = False) -> Assignment:
        """Assign a batch.

        Args:
            predictions: decoded boxes and logits of the current forward pass.
            targets: for each image `boxes` [G, 4] float xyxy in pixels of the network input and `labels` [G] int64.
            trace: keep all costs of every image.

        Returns:
            The assignment. A slot whose prediction is not finite is no candidate. With more objects than candidates
            some objects have none: those without which the rest is cheapest.
        """
        return assign_image_by_image(self.match, predictions, targets, trace)

    def match(
        self, predictions: DensePredictions, image: int, usable: Tensor, gt_boxes: Tensor, gt_labels: Tensor
    ) -> dict[str, Tensor]:
        """Who learns what in one image with objects [G, 4] and [G], step by step, on the K usable slots of the [A].

        Returns:
            `candidates` [K] int64 slots; `class_cost`, `l1_cost`, `giou_cost` and their weighted sum `cost`, all
            [G, K]; `taken` [G, K] bool; and `matched_gt` [A].
        """
        candidates = usable.nonzero().flatten()  # [K]
        boxes = predictions.boxes[image, candidates].clamp(-FAR, FAR)
        object_logits = None if predictions.object_logits is None else predictions.object_logits[image, candidates]
        class_costs = focal_class_cost(predictions.class_logits[image, candidates], object_logits, gt_labels)
        l1_costs = relative_l1(gt_boxes, boxes, predictions.grid)
        giou_costs = -giou(gt_boxes[:, None], boxes[None])
        costs = self.class_weight * class_costs + self.l1_weight * l1_costs + self.giou_weight * giou_costs  # [G, K]

        owner, column = cheapest_matching(costs)
        matched_gt = torch.full_like(usable, BACKGROUND, dtype=torch.int64)
        matched_gt[candidates[column]] = owner
        taken = torch.zeros_like(costs, dtype=torch.bool)
        taken[owner, column] = True
        return {
            "candidates": candidates,
            "class_cost": class_costs,
            "l1_cost": l1_costs,
            "giou_cost": giou_costs,
            "cost": costs,
            "taken": taken,
            "matched_gt": matched_gt,
        }


def assign_image_by_image(
    match: Callable[..., dict[str, Tensor]], predictions: DensePredictions, targets: Targets, trace: bool
) -> Assignment:
    """The result of a rule that is worked out for one image after the other.

    Args:
        match: gives for predictions, number of the image, its finite slots [A], its objects [G, 4] and their labels [G]
            every step by name, `matched_gt` [A] among them.
        predictions: of the current forward pass.
        targets: for each image `boxes` [G, 4] float xyxy in pixels and `labels` [G] int64.
        trace: keep the steps of every image.
    """
    gt, finite = pad_targets(targets), predictions.finite
    steps = [
        match(predictions, image, finite[image], gt.boxes_of(image), gt.labels_of(image)) for image in range(len(gt))
    ]
    matched_gt = torch.stack([step["matched_gt"] for step in steps])
    return make_assignment(matched_gt, predictions, gt, traces=steps if trace else None)


def focal_class_cost(
    class_logits: Tensor, object_logits: Tensor | None, gt_labels: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """What focal loss would say at a slot if it were positive for the object's class, less what it says as background.

    Args:
        class_logits: [K, C] float.
        object_logits: [K] float; the score is then the product of both probabilities. None: classes alone.
        gt_labels: [G] int64.
        alpha, gamma: of focal loss, arXiv 1708.02002.

    Returns:
        [G, K] float.
    """
    logits = class_logits[:, gt_labels].T  # [G, K]; of the other classes no column is needed
    if object_logits is not None:
        logits = combine_logits(logits, object_logits)
    score = logits.sigmoid()
    as_positive = alpha * (1 - score) ** gamma * F.softplus(-logits)  # softplus(-n) = -log(score)
    as_background = (1 - alpha) * score**gamma * F.softplus(logits)
    return as_positive - as_background


def relative_l1(gt_boxes: Tensor, boxes: Tensor, grid: Grid) -> Tensor:
    """|dcx| + |dw| in widths of the grid plus |dcy| + |dh| in heights: [G, 4] and [K, 4] xyxy -> [G, K]."""
    rows, columns = grid.level_shapes[0]
    stride = grid.strides[0]
    extent = torch.stack([columns * stride, rows * stride]).repeat(2)  # (width, height, width, height) in pixels
    return torch.cdist(xyxy_to_cxcywh(gt_boxes) / extent, xyxy_to_cxcywh(boxes) / extent, p=1.0)


def cheapest_matching(costs: Tensor) -> tuple[Tensor, Tensor]:
    """One column for each row, none twice, with the smallest sum of costs: the assignment problem ("Hungarian").

    Args:
        costs: [G, K] float, finite.

    Returns:
        row and column of each match, int64 [min(G, K)] each, by increasing row.
    """
    from scipy.optimize import linear_sum_assignment  # here, because it takes 0.4 s that no other strategy needs

    row, column = linear_sum_assignment(costs.cpu().double().numpy())
    return torch.from_numpy(row).to(costs.device), torch.from_numpy(column).to(costs.device)
