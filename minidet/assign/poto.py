"""POTO, "prediction-aware one-to-one": each object gets the one slot near its centre that already says most about it.

How good a slot is for an object is a product: its score for the object's class, and the overlap of its box, weighted
against each other by an exponent. Of all ways to give every object a slot of its own, the one with the largest sum of
qualities is taken.

Source: arXiv 2012.03544, section 3.1; YOLOX, section 2.1 "End-to-end YOLO", which takes the matching from there by way
of arXiv 2101.11782; chapter 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minidet.assign.base import BACKGROUND, Assignment, DensePredictions, Targets
from minidet.assign.one_to_one import assign_image_by_image, cheapest_matching
from minidet.assign.simota import centre_candidates
from minidet.boxes import pairwise_iou
from minidet.errors import MinidetError
from minidet.settings import check_settings

LEAST_IOU = 1e-4  # where no box overlaps an object yet, scores alone decide


@dataclass(frozen=True)
class POTO:
    """The assigner.

    Attributes:
        alpha: exponent of the overlap; that of the score is 1 - alpha.
        radius: half the side of the centre square, in strides; only slots in it may be given to an object.
    """

    alpha: float = 0.8
    radius: float = 1.5

    on_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self, "POTO", {"radius": (0, 1e6)})
        if not 0 <= self.alpha <= 1:
            raise MinidetError(f"POTO: alpha is {self.alpha}; it lies between 0 (scores alone) and 1 (overlap alone)")

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, targets: Targets, trace: bool = False) -> Assignment:
        """Assign a batch. The matching is found on the host, so a GPU is waited for.

        Args:
            predictions: decoded boxes and logits of the current forward pass.
            targets: for each image `boxes` [G, 4] float xyxy in pixels of the network input and `labels` [G] int64.
            trace: keep all qualities of every image.

        Returns:
            The assignment: as many objects as possible have a slot. A slot whose prediction is not finite is no
            candidate.
        """
        return assign_image_by_image(self.match, predictions, targets, trace)

    def match(
        self, predictions: DensePredictions, image: int, usable: Tensor, gt_boxes: Tensor, gt_labels: Tensor
    ) -> dict[str, Tensor]:
        """Who learns what in one image with objects [G, 4] and [G], step by step, on the usable of the [A] slots.

        Returns:
            `candidates` [K] int64 slots near any object; `free` [G, K] bool, near this one; `score`, `iou` and
            `quality`, all [G, K]; `taken` [G, K] bool; and `matched_gt` [A].
        """
        grid = predictions.grid
        near = centre_candidates(grid.centers, grid.strides, gt_boxes, self.radius) & usable  # [G, A]
        candidates = near.any(dim=0).nonzero().flatten()  # [K]
        free = near[:, candidates]
        score = predictions.class_logits[image, candidates].sigmoid().T[gt_labels]  # [G, K]
        if predictions.object_scores is not None:
            score = score * predictions.object_scores[image, candidates]
        overlap = pairwise_iou(gt_boxes, predictions.boxes[image, candidates]).clamp(max=1)
        quality = score ** (1 - self.alpha) * overlap.clamp(min=LEAST_IOU) ** self.alpha

        # Each allowed pair counts so much that no sum of qualities is worth leaving an object out for.
        worth = torch.where(free, quality.cpu().double() + len(gt_boxes), 0) if len(free) else quality
        owner, column = cheapest_matching(-worth)
        allowed = free[owner, column]
        owner, column = owner[allowed], column[allowed]
        matched_gt = torch.full_like(usable, BACKGROUND, dtype=torch.int64)
        matched_gt[candidates[column]] = owner
        taken = torch.zeros_like(free)
        taken[owner, column] = True
        return {
            "candidates": candidates,
            "free": free,
            "score": score,
            "iou": overlap,
            "quality": quality,
            "taken": taken,
            "matched_gt": matched_gt,
        }
