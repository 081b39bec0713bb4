"""SimOTA: every object looks for the slots that already predict it best, and takes as many as they deserve.

Four steps: candidates near the object's centre; the cost of every (object, candidate) pair; a number of slots for each
object, from how well the candidates overlap it ("dynamic k"); the cheapest k, conflicts to the cheaper owner.

All images of a batch go through them at once, and only candidates are looked at. Images have different numbers of
objects and candidates, so both are filled up, to G and K; what fills up is never cheap enough to be taken. No size
depends on what is in a tensor, so a GPU is never asked, and never waited for.

Source: YOLOX, section 2.1 "SimOTA"; OTA is arXiv 2103.14259; chapter 10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minidet.assign.base import (
    BACKGROUND,
    Assignment,
    DensePredictions,
    GroundTruth,
    Targets,
    pad_targets,
    pairs_of,
    places_of_true,
)
from minidet.boxes import pairwise_iou
from minidet.grid import Grid
from minidet.settings import check_settings


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

    def __post_init__(self) -> None:
        ranges = {"radius": (0, 1e6), "outside_penalty": (0, 1e30), "iou_weight": (0, 1e6), "max_k": (1, 10_000)}
        check_settings(self, "SimOTA", ranges)

    @classmethod
    def published(cls) -> SimOTA:
        """The version up to release 0.3.0, with which the paper's numbers and all published weights were made."""
        return cls(radius=2.5, box_candidates=True, outside_penalty=1e5)

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, targets: Targets, trace: bool = False) -> Assignment:
        """Assign a batch.

        Args:
            predictions: decoded boxes and logits of the current forward pass.
            targets: for each image `boxes` [G, 4] float xyxy in pixels of the network input and `labels` [G] int64.
            trace: keep candidates, costs, dynamic k and conflicts of every image.

        Returns:
            The assignment. A slot whose prediction is not finite is no candidate. An object can end without a slot when
            all that it wanted went to others.
        """
        gt, grid = pad_targets(targets), predictions.grid
        slots, valid = self.candidates(grid, gt)  # [B, K]: only these slots are looked at from here on
        near = predictions.at(slots)
        valid = valid & near.finite
        is_pair = gt.real[:, :, None] & valid[:, None, :]  # [B, G, K]; all others fill up
        free = self.free_pairs(near.grid, gt.boxes)  # [B, G, K]

        # The tensors of all pairs are large, so they are changed in place where that can be done.
        ious = pairwise_iou(gt.boxes, near.boxes).clamp_(max=1).masked_fill_(~is_pair, 0)  # [B, G, K]
        class_costs = class_cost(near.class_logits, near.object_logits, gt.labels)  # [B, G, K]
        costs = torch.add(ious, 1e-8).log_().mul_(-self.iou_weight).add_(class_costs)
        costs = torch.where(free, costs, costs + self.outside_penalty).masked_fill_(~is_pair, torch.inf)

        k = dynamic_k(ious, self.max_k, valid.sum(dim=1)) * gt.real  # [B, G]
        wanted, exists = cheapest(costs, k, self.max_k)  # [B, G, at most max_k]
        owner, times = owners(wanted, exists, costs)  # [B, K], BACKGROUND where nobody wants the slot

        matched_gt, quality = to_all_slots(owner, ious, slots, valid, len(grid))
        pairs = pairs_of(matched_gt, most=min(gt.boxes.shape[1] * self.max_k, slots.shape[1]))
        traces = None
        if trace:
            is_wanted = torch.zeros_like(free).scatter(2, wanted, exists)
            steps = {"free": free, "iou": ious, "class_cost": class_costs, "cost": costs, "wanted": is_wanted}
            traces = tuple(
                {
                    "candidates": slots[i, valid[i]],
                    **{name: step[i, : gt.counts[i], valid[i]] for name, step in steps.items()},
                    "dynamic_k": k[i, : gt.counts[i]],
                    "conflicts": slots[i, valid[i] & (times[i] > 1)],
                    "taken": owner[i, valid[i]] == torch.arange(gt.counts[i], device=slots.device)[:, None],
                }
                for i in range(len(gt))
            )
        return Assignment(matched_gt, quality, pairs, pairs, gt, traces)

    def candidates(self, grid: Grid, gt: GroundTruth) -> tuple[Tensor, Tensor]:
        """Step 1: the slots that are looked at, in order: [B, K] int64, and [B, K] bool which of them are not filling.

        K is the number of slots that the objects' centre squares can hold, or A where boxes count too.
        """
        near, most = near_any_centre(grid, gt, self.radius)
        if self.box_candidates:
            in_box = inside_box(grid.centers, gt.boxes) & gt.real[..., None]  # [B, G, A]
            return places_of_true(near | in_box.any(dim=1), len(grid))
        return places_of_true(near, most)

    def free_pairs(self, grid: Grid, gt_boxes: Tensor) -> Tensor:
        """Which pairs are free of the penalty.

        Args:
            grid: cells and strides [..., K] of the candidates.
            gt_boxes: [..., G, 4] float xyxy.

        Returns:
            [..., G, K] bool.
        """
        free = centre_candidates(grid.centers, grid.strides, gt_boxes, self.radius)
        return free & inside_box(grid.centers, gt_boxes) if self.box_candidates else free


def near_any_centre(grid: Grid, gt: GroundTruth, radius: float) -> tuple[Tensor, int]:
    """The slots near the centre of any object of their image: [B, A] bool, and how many of an image can be at most.

    Args:
        grid: all slots.
        gt: the objects.
        radius: half the side of the centre square, in strides.
    """
    slots, inside = slots_around(grid, gt.boxes, radius)  # [B, G, N]
    near = inside & gt.real[..., None]
    column = torch.where(near, slots, len(grid)).flatten(1)  # what is outside goes into a column too many
    is_near = torch.zeros(len(slots), len(grid) + 1, dtype=torch.bool, device=slots.device)
    return is_near.scatter(1, column, True)[:, :-1], min(column.shape[1], len(grid))


def slots_around(grid: Grid, gt_boxes: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The slots near each object's centre, found by arithmetic: nobody else is asked whether it is near.

    Args:
        grid: all slots.
        gt_boxes: [..., G, 4] float xyxy in pixels.
        radius: half the side of the centre square, in strides.

    Returns:
        [..., G, N] int64 slots, the same number from each level, and [..., G, N] bool which of them exist and are
        `centre_candidates`; the others are 0.
    """
    centers = (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2
    side = math.ceil(2 * radius)  # so many cell centres can lie in an open interval of 2 radius strides
    offsets = torch.arange(side, device=gt_boxes.device)
    anchors = torch.arange(grid.anchors_per_cell, device=gt_boxes.device)
    slots, inside, first = [], [], 0
    for (rows, columns), size in zip(grid.level_shapes, grid.level_sizes, strict=True):
        stride = grid.strides[first]
        position = centers / stride  # in cells
        corner = (position - radius - 0.5).floor() + 1  # the first cell whose centre is less than radius away
        cells = corner[..., None] + offsets  # [..., G, (x, y), side]
        near = ((cells + 0.5) * stride - centers[..., None]).abs() < radius * stride
        x, y = cells[..., 0, None, :], cells[..., 1, :, None]  # [..., G, 1, side], [..., G, side, 1]
        on_map = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        on_map = on_map & near[..., 0, None, :] & near[..., 1, :, None]  # [..., G, side, side]
        slot = torch.where(on_map, y * columns + x, 0).long()[..., None] * grid.anchors_per_cell + anchors
        slots.append((first + slot).flatten(-3))
        inside.append(on_map[..., None].expand_as(slot).flatten(-3))
        first += size
    inside = torch.cat(inside, dim=-1)
    return torch.cat(slots, dim=-1) * inside, inside


def centre_candidates(points: Tensor, strides: Tensor, gt_boxes: Tensor, radius: float) -> Tensor:
    """Which slots may learn which object: those whose cell centre lies near the object's centre.

    Args:
        points: [..., A, 2] float, cell centres (x, y) in pixels.
        strides: [..., A] float, pixels per cell of the level that each point belongs to.
        gt_boxes: [..., G, 4] float, xyxy in pixels.
        radius: half the side of the centre square, in strides.

    Returns:
        [..., G, A] bool. A row may be all False: an object can have no candidate.

    Source: YOLOX, section 2.1, "multi positives"; chapter 09.
    """
    centers = (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2
    reach = radius * strides[..., None, :]  # [..., 1, A]
    near_x, near_y = ((points[..., None, :, i] - centers[..., :, None, i]).abs() < reach for i in (0, 1))
    return near_x & near_y


def inside_box(points: Tensor, gt_boxes: Tensor) -> Tensor:
    """Which points lie strictly inside which box: [..., A, 2] and [..., G, 4] xyxy -> [..., G, A] bool."""
    x, y = points[..., None, :, 0], points[..., None, :, 1]
    x1, y1, x2, y2 = gt_boxes[..., None].unbind(-2)  # [..., G, 1] each
    return (x > x1) & (x < x2) & (y > y1) & (y < y2)


def class_cost(class_logits: Tensor, object_logits: Tensor | None, gt_labels: Tensor) -> Tensor:
    """Cross entropy between each slot's class scores and each object's one-hot class, summed over classes.

    The sum over C classes is the cost of "nothing at all", the same for every object, plus a correction in the one
    column of the object's class. So [G, K, C] numbers are never made.

    Args:
        class_logits: [B, K, C] float.
        object_logits: [B, K] float; None for a detector without objectness, whose class scores are taken as they are.
        gt_labels: [B, G] int64.

    Returns:
        [B, G, K] float.
    """
    return class_and_background_cost(class_logits, object_logits, gt_labels)[0]


def class_and_background_cost(
    class_logits: Tensor, object_logits: Tensor | None, gt_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """`class_cost` [B, G, K], and beside it what "nothing at all" costs at each slot, [B, K]."""
    score = class_logits.transpose(1, 2).contiguous().sigmoid_()  # [B, C, K]
    if object_logits is not None:
        score = score.mul_(object_logits.sigmoid()[:, None]).sqrt_()
    log_present = score.log().clamp_(min=-100)
    log_absent = score.neg_().log1p_().clamp_(min=-100)
    image = torch.arange(len(score), device=score.device)[:, None]
    nothing = log_absent.sum(dim=1).neg_()  # [B, K]
    correction = log_present.neg_().add_(log_absent)[image, gt_labels]  # [B, G, K]
    return correction.add_(nothing[:, None]), nothing


def dynamic_k(ious: Tensor, max_k: int, candidates: Tensor) -> Tensor:
    """How many slots each object may take: the sum of its largest IoUs, rounded down, at least 1.

    Args:
        ious: [..., G, K] float, 0 where a candidate only fills up.
        max_k: so many IoUs are summed.
        candidates: [...] int64, how many there are; k is never more than that, and 0 without any.

    Returns:
        [..., G] int64.
    """
    largest = ious.topk(min(max_k, ious.shape[-1]), dim=-1).values
    return torch.minimum(largest.sum(dim=-1).long().clamp(min=1), candidates[..., None])


def cheapest(costs: Tensor, k: Tensor, max_k: int) -> tuple[Tensor, Tensor]:
    """The k cheapest slots of each object, cheapest first.

    Args:
        costs: [B, G, K] float.
        k: [B, G] int64, none above max_k.
        max_k: most that an object takes.

    Returns:
        [B, G, min(max_k, K)] int64 slots, and bool which of them the object wants: its first k.
    """
    most = min(max_k, costs.shape[-1])
    slots = costs.topk(most, dim=-1, largest=False).indices
    return slots, torch.arange(most, device=k.device) < k[..., None]


def owners(wanted: Tensor, exists: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """The object that gets each slot: the one that wants it or, of a contested slot, the one that it costs least.

    As published that is the cheapest of *all* objects, even one that did not ask for the slot.

    Args:
        wanted: [B, G, W] int64, slots that each object wants.
        exists: [B, G, W] bool, which of these entries count.
        costs: [B, G, K] float.

    Returns:
        [B, K] int64, BACKGROUND where no object wants the slot, and [B, K] int64 how many want it.
    """
    batch, count, slots = costs.shape
    place = torch.where(exists, wanted, slots).flatten(1)  # entries that do not count go into a column too many
    object_of = torch.arange(count, device=costs.device)[:, None].expand_as(wanted[0]).flatten().expand_as(place)
    empty = torch.full((batch, slots + 1), BACKGROUND, device=costs.device)
    wanter = empty.scatter_reduce(1, place, object_of, "amax")[:, :-1]
    times = torch.zeros_like(empty).scatter_add(1, place, torch.ones_like(place))[:, :-1]
    return torch.where(times > 1, costs.argmin(dim=1), wanter), times


def to_all_slots(owner: Tensor, ious: Tensor, slots: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Back from the K candidates of each image to all A slots.

    Args:
        owner: [B, K] int64, the object that gets each candidate, or BACKGROUND.
        ious: [B, G, K] float.
        slots: [B, K] int64, which slot each candidate is.
        valid: [B, K] bool, which of them do not only fill up.
        count: A.

    Returns:
        [B, A] int64 matched objects and [B, A] float IoUs with them, BACKGROUND and 0 elsewhere.
    """
    column = torch.where(valid, slots, count)  # what fills up is written into a column too many
    matched_gt = torch.full((len(slots), count + 1), BACKGROUND, device=slots.device).scatter(1, column, owner)[:, :-1]
    overlap = ious.gather(1, owner.clamp(min=0)[:, None])[:, 0] * (owner >= 0)  # [B, K]
    quality = torch.zeros(len(slots), count + 1, device=slots.device).scatter(1, column, overlap)[:, :-1]
    return matched_gt, quality
