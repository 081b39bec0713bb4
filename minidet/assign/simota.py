"""SimOTA: every object looks for the slots that already predict it best, and takes as many as they deserve.

Four steps for one image: candidates near the object's centre; the cost of every (object, candidate) pair; a number of
slots for each object, from how well the candidates overlap it ("dynamic k"); the cheapest k, conflicts to the cheaper
owner.

Source: YOLOX, section 2.1 "SimOTA"; OTA is arXiv 2103.14259; chapter 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from minidet.assign.base import BACKGROUND, Assignment, DensePredictions, pairs_of
from minidet.boxes import pairwise_iou
from minidet.grid import Grid


@dataclass(frozen=True)
class SimOTA:
    """The assigner. The defaults are the version in use since January 2023; `SimOTA.published()` is the older one.

    Attributes:
        radius: half the side of the centre square, in strides.
        box_candidates: every slot inside an object's box is a candidate too, and a pair is free of the penalty only
            inside the box *and* the centre square. All published weights were trained so.
        outside_penalty: cost of a pair outside the region; large enough to be a last resort.
        iou_weight: weight of -log IoU beside the class cost.
        max_k: how many of the largest IoUs are summed to give k.
    """

    radius: float = 1.5
    box_candidates: bool = False
    outside_penalty: float = 1e6
    iou_weight: float = 3.0
    max_k: int = 10

    @classmethod
    def published(cls) -> SimOTA:
        """The version up to release 0.3.0, with which the paper's numbers and all published weights were made."""
        return cls(radius=2.5, box_candidates=True, outside_penalty=1e5)

    @torch.no_grad()
    def __call__(
        self, predictions: DensePredictions, targets: Sequence[dict[str, Tensor]], trace: bool = False
    ) -> Assignment:
        """Assign a batch.

        Args:
            predictions: decoded boxes and logits of the current forward pass.
            targets: for each image `boxes` [G, 4] float xyxy in pixels of the network input and `labels` [G] int64.
            trace: keep candidates, costs, dynamic k and conflicts of every image.

        Returns:
            The assignment. A slot whose prediction is not finite is no candidate. An object can end without a slot when
            all that it wanted went to others.
        """
        batch, slots = predictions.boxes.shape[:2]
        matched_gt = predictions.boxes.new_full((batch, slots), BACKGROUND, dtype=torch.int64)
        quality = predictions.boxes.new_zeros((batch, slots))
        finite, traces = predictions.finite, []
        for i, target in enumerate(targets):
            gt_boxes, gt_labels = target["boxes"].float(), target["labels"]
            matched_gt[i], quality[i], steps = self._assign_image(
                predictions.grid,
                predictions.boxes[i],
                predictions.class_logits[i],
                None if predictions.object_logits is None else predictions.object_logits[i],
                finite[i],
                gt_boxes,
                gt_labels,
            )
            traces.append(steps)
        num_gt = tuple(len(target["labels"]) for target in targets)
        return Assignment(matched_gt, pairs_of(matched_gt), quality, num_gt, tuple(traces) if trace else None)

    def regions(self, grid: Grid, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Step 1: which slots are candidates, and which pairs are free of the penalty.

        Returns:
            candidates [A] bool, and free [G, A] bool.
        """
        near = centre_candidates(grid.centers, grid.strides, gt_boxes, self.radius)  # [G, A]
        if not self.box_candidates:
            return near.any(dim=0), near
        inside = inside_box(grid.centers, gt_boxes)  # [G, A]
        return (near | inside).any(dim=0), near & inside

    def _assign_image(
        self,
        grid: Grid,
        boxes: Tensor,
        class_logits: Tensor,
        object_logits: Tensor | None,
        finite: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        # Only candidates are looked at from here on: K of the A slots.
        is_candidate, free = self.regions(grid, gt_boxes)
        candidates = (is_candidate & finite).nonzero().flatten()  # [K]
        free = free[:, candidates]  # [G, K]

        ious = pairwise_iou(gt_boxes, boxes[candidates]).clamp(max=1)  # [G, K]
        objectness = None if object_logits is None else object_logits[candidates]
        class_costs = class_cost(class_logits[candidates], objectness, gt_labels)  # [G, K]
        costs = class_costs - self.iou_weight * torch.log(ious + 1e-8) + self.outside_penalty * ~free

        k = dynamic_k(ious, self.max_k)  # [G]
        wanted = cheapest(costs, k)  # [G, K] bool
        taken, conflicts = resolve_conflicts(wanted, costs)

        matched = boxes.new_full((len(boxes),), BACKGROUND, dtype=torch.int64)
        quality = boxes.new_zeros(len(boxes))
        positive = taken.any(dim=0)  # [K]
        if len(gt_boxes):
            owner = taken.int().argmax(dim=0)  # [K]
            matched[candidates[positive]] = owner[positive]
            quality[candidates[positive]] = ious.gather(0, owner[None])[0, positive]
        steps = {
            "candidates": candidates,
            "free": free,
            "iou": ious,
            "class_cost": class_costs,
            "cost": costs,
            "dynamic_k": k,
            "wanted": wanted,
            "conflicts": candidates[conflicts],
            "taken": taken,
        }
        return matched, quality, steps


def centre_candidates(points: Tensor, strides: Tensor, gt_boxes: Tensor, radius: float) -> Tensor:
    """Which slots may learn which object: those whose cell centre lies near the object's centre.

    Args:
        points: [A, 2] float, cell centres (x, y) in pixels.
        strides: [A] float, pixels per cell of the level that each point belongs to.
        gt_boxes: [G, 4] float, xyxy in pixels.
        radius: half the side of the centre square, in strides.

    Returns:
        [G, A] bool. A row may be all False: an object can have no candidate.

    Source: YOLOX, section 2.1, "multi positives"; chapter 09.
    """
    centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    offset = (points[None, :, :] - centers[:, None, :]).abs()  # [G, A, 2]
    return (offset < radius * strides[None, :, None]).all(dim=-1)


def inside_box(points: Tensor, gt_boxes: Tensor) -> Tensor:
    """Which points lie strictly inside which box: [A, 2] and [G, 4] xyxy -> [G, A] bool."""
    beyond_top_left = points[None] > gt_boxes[:, None, :2]
    before_bottom_right = points[None] < gt_boxes[:, None, 2:]
    return (beyond_top_left & before_bottom_right).all(dim=-1)


def class_cost(class_logits: Tensor, object_logits: Tensor | None, gt_labels: Tensor) -> Tensor:
    """Cross entropy between each slot's class scores and each object's one-hot class, summed over classes.

    The sum over C classes is the cost of "nothing at all", the same for every object, plus a correction in the one
    column of the object's class. So [G, K, C] numbers are never made.

    Args:
        class_logits: [K, C] float.
        object_logits: [K] float; None for a detector without objectness, whose class scores are taken as they are.
        gt_labels: [G] int64.

    Returns:
        [G, K] float.
    """
    score = class_logits.sigmoid()  # [K, C]
    if object_logits is not None:
        score = (score * object_logits.sigmoid()[:, None]).sqrt()
    ones, zeros = torch.ones_like(score), torch.zeros_like(score)
    cost_if_present = F.binary_cross_entropy(score, ones, reduction="none")  # -log(score), at most 100
    cost_if_absent = F.binary_cross_entropy(score, zeros, reduction="none")  # -log(1 - score), at most 100
    correction = (cost_if_present - cost_if_absent)[:, gt_labels]  # [K, G]
    return (cost_if_absent.sum(dim=1, keepdim=True) + correction).T


def dynamic_k(ious: Tensor, max_k: int) -> Tensor:
    """How many slots each object may take: the sum of its largest IoUs, rounded down, at least 1; [G, K] -> [G] int64.

    With no candidate at all it is 0.
    """
    count = min(max_k, ious.shape[1])
    return ious.topk(count, dim=1).values.sum(dim=1).long().clamp(min=min(1, count), max=count)


def cheapest(costs: Tensor, k: Tensor) -> Tensor:
    """The k[g] cheapest slots of each object g: [G, K] and [G] -> [G, K] bool."""
    wanted = torch.zeros_like(costs, dtype=torch.bool)
    if costs.numel() == 0:
        return wanted
    most = int(k.max())
    slots = costs.topk(most, dim=1, largest=False).indices  # [G, most]
    within_k = torch.arange(most, device=k.device) < k[:, None]
    return wanted.scatter(1, slots, within_k)


def resolve_conflicts(wanted: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """Give each slot that several objects want to the one object whose cost there is smallest.

    As published that is the cheapest of *all* objects, even one that did not ask for the slot.

    Args:
        wanted: [G, K] bool.
        costs: [G, K] float.

    Returns:
        taken [G, K] bool with at most one owner a slot, and the contested slots [K] bool.
    """
    contested = wanted.sum(dim=0) > 1
    if not len(costs):
        return wanted, contested
    cheapest_owner = F.one_hot(costs.argmin(dim=0), len(costs)).bool().T  # [G, K]
    return torch.where(contested, cheapest_owner, wanted), contested
