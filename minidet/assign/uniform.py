"""Uniform matching: every object, large or small, gets the same number of slots.

By an IoU threshold a large object has many positive anchors on a single feature map and a small one none. Here each
object takes the k predictions and the k anchors that lie nearest to it, whatever they overlap, and IoU only has the
last word: a nearest anchor that hardly touches its object is ignored, and so is a background slot whose prediction
already covers an object.

Source: YOLOF, section 4.2, arXiv 2103.09460; the two lists and the order of writing are those of the published code;
chapter 06.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minidet.assign.base import (
    BACKGROUND,
    IGNORED,
    Assignment,
    DensePredictions,
    Pairs,
    Targets,
    make_assignment,
    pad_targets,
)
from minidet.boxes import iou, pairwise_iou, xyxy_to_cxcywh
from minidet.errors import MinidetError
from minidet.grid import Grid
from minidet.settings import check_settings

FAR = 1e12  # distance of a slot whose prediction is not finite: beyond all others, but a number


@dataclass(frozen=True)
class UniformMatching:
    """The assigner. The defaults are those of YOLOF on a C5 of stride 32.

    Attributes:
        k: how many slots each list gives to each object.
        min_anchor_iou: a pair whose *anchor* overlaps the object less than this is ignored.
        max_background_iou: a background slot whose *predicted* box overlaps an object more than this is ignored.
        sources: the lists: "predictions", "anchors", or both (published). With both, an object has 2k pairs, and a slot
            that is in both lists has two of them.
    """

    k: int = 4
    min_anchor_iou: float = 0.15
    max_background_iou: float = 0.7
    sources: tuple[str, ...] = ("predictions", "anchors")

    def __post_init__(self) -> None:
        check_settings(self, "UniformMatching")
        if self.k < 1:
            raise MinidetError(f"UniformMatching: k is {self.k}; an object takes at least 1 slot")
        if not (0 < self.max_background_iou <= 1 and 0 <= self.min_anchor_iou <= 1):
            raise MinidetError(
                f"UniformMatching: min_anchor_iou is {self.min_anchor_iou} and max_background_iou "
                f"{self.max_background_iou}; they lie between 0 and 1, and the second is not 0"
            )
        if not self.sources or set(self.sources) - {"predictions", "anchors"}:
            raise MinidetError(f"UniformMatching: sources are 'predictions', 'anchors' or both, not {self.sources}")

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, targets: Targets, trace: bool = False) -> Assignment:
        """Assign a batch.

        Args:
            predictions: decoded boxes of the current forward pass.
            targets: for each image `boxes` [G, 4] float xyxy in pixels of the network input and `labels` [G] int64.
            trace: keep distances, both lists, overlaps and thresholds of every image.

        Returns:
            The assignment. Several objects can want one slot; the last one in the order of writing gets it, while the
            box loss sees all of these pairs. A slot whose prediction is not finite is never positive.
        """
        grid, boxes, finite = predictions.grid, predictions.boxes, predictions.finite
        ground_truth = pad_targets(targets)
        gt_boxes, real = ground_truth.boxes, ground_truth.real  # [B, G, 4], [B, G]
        distances = l1_distances(gt_boxes, boxes.masked_fill(~finite[..., None], FAR))  # [B, G, A]
        blocks = in_blocks(distances, grid)  # [B, G, blocks, slots a block]
        best = blocks.amin(dim=-1)  # [B, G, blocks]; most blocks need no second look

        nearest = {}
        if "predictions" in self.sources:
            nearest["predictions"] = nearest_slots_in_blocks(blocks, best, self.k)
        if "anchors" in self.sources:
            nearest["anchors"] = nearest_anchors(grid, gt_boxes, self.k)
        slot, gt = writing_order(list(nearest.values()))  # [B, P] each
        exists = real.gather(1, gt) & finite.gather(1, slot)  # [B, P]
        pair_iou = iou(grid.anchor_boxes[slot], gt_boxes.gather(1, gt[..., None].expand(-1, -1, 4)))  # [B, P]
        near_enough = pair_iou >= self.min_anchor_iou

        if boxes.device.type == "cpu" and not torch.compiler.is_compiling():
            covering = covering_slots_in_blocks(boxes, gt_boxes, blocks, best, self.max_background_iou)
        else:  # fewer and larger steps, whose sizes do not depend on what is found
            covering = covering_slots(boxes, gt_boxes, self.max_background_iou)
        covering = covering & finite
        matched_gt = torch.where(covering, IGNORED, BACKGROUND)  # [B, A]
        write_in_order(matched_gt, slot, torch.where(near_enough, gt, IGNORED), exists)

        image = torch.arange(len(slot), device=slot.device)[:, None].expand_as(slot)
        pairs = Pairs(*(values.flatten() for values in (image, slot, gt, exists & near_enough)))
        traces = None
        if trace:
            traces = [
                {
                    "pred_distance": distances[i, :count],
                    "anchor_distance": l1_distances(gt_boxes[i, :count], grid.anchor_boxes),
                    **{f"nearest_{source}": slots[i, :count] for source, slots in nearest.items()},
                    "pair_slot": slot[i, exists[i]],
                    "pair_gt": gt[i, exists[i]],
                    "pair_iou": pair_iou[i, exists[i]],
                    "pair_ignored": ~near_enough[i, exists[i]],
                    "covering": covering[i],
                }
                for i, count in enumerate(ground_truth.counts)
            ]
        most = min(slot.shape[1], len(grid))  # each pair makes at most one slot positive
        return make_assignment(matched_gt, predictions, ground_truth, pairs, traces, most)


def l1_distances(gt_boxes: Tensor, boxes: Tensor) -> Tensor:
    """How far each box is from each object, |dcx| + |dcy| + |dw| + |dh| in pixels.

    Args:
        gt_boxes: [..., G, 4] float xyxy.
        boxes: [..., A, 4] float xyxy.

    Returns:
        [..., G, A] float.
    """
    return torch.cdist(xyxy_to_cxcywh(gt_boxes), xyxy_to_cxcywh(boxes), p=1.0)


def nearest_slots(distances: Tensor, k: int) -> Tensor:
    """The k slots nearest to each object, nearest first; among equals any may come.

    Args:
        distances: [..., G, A] float.
        k: how many.

    Returns:
        [..., G, min(k, A)] int64.
    """
    return distances.topk(min(k, distances.shape[-1]), dim=-1, largest=False).indices


def in_blocks(distances: Tensor, grid: Grid) -> Tensor:
    """Distances row of cells by row of cells, [..., A] -> [..., rows, A / rows]; one block where there are levels."""
    blocks = grid.level_shapes[0][0] if len(grid.level_shapes) == 1 else 1
    return distances.unflatten(-1, (blocks, -1))


def nearest_slots_in_blocks(blocks: Tensor, best: Tensor, k: int) -> Tensor:
    """The same as `nearest_slots`, several times faster.

    Each of the k nearest slots lies in one of the k blocks whose nearest slots are nearest: a block outside of these
    holds nothing nearer than k others.

    Args:
        blocks: [..., N, S] float, distances of N blocks of S slots.
        best: [..., N] float, the smallest of each block.
        k: how many.

    Returns:
        [..., min(k, N * S)] int64.
    """
    size = blocks.shape[-1]
    chosen = nearest_slots(best, k)  # [..., K]
    few = blocks.gather(-2, chosen[..., None].expand(*chosen.shape, size)).flatten(-2)  # [..., K * S]
    nearest = nearest_slots(few, k)
    return chosen.gather(-1, nearest // size) * size + nearest % size


def nearest_anchors(grid: Grid, gt_boxes: Tensor, k: int) -> Tensor:
    """The k anchors nearest to each object by L1 distance, nearest first, without looking at all of them.

    The anchors of a level stand in rows and columns. If an anchor is among the k nearest, so is its column among the k
    nearest columns: were k others nearer, then each held, in the same row, a nearer anchor of the same size. With rows
    it is the same, so k x k cells of each level are enough.

    Args:
        grid: the slots.
        gt_boxes: [B, G, 4] float xyxy.
        k: how many.

    Returns:
        [B, G, min(k, A)] int64 slots.
    """
    centers = (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2  # [B, G, 2]
    candidates, first = [], 0
    for (rows, columns), size in zip(grid.level_shapes, grid.level_sizes, strict=True):
        n = grid.anchors_per_cell
        # The first anchor is in cell (0, 0), so its centre is where counting starts.
        position = (centers - xyxy_to_cxcywh(grid.anchor_boxes[first])[:2]) / grid.strides[first]
        column = _nearest_integers(position[..., 0], k, columns)  # [B, G, k]
        row = _nearest_integers(position[..., 1], k, rows)
        cell = (row[..., :, None] * columns + column[..., None, :]).flatten(2)  # [B, G, k * k]
        anchor = torch.arange(n, device=cell.device)
        candidates.append(first + (cell[..., None] * n + anchor).flatten(2))
        first += size
    slots = torch.cat(candidates, dim=2)  # [B, G, K]
    distances = l1_distances(gt_boxes[..., None, :], grid.anchor_boxes[slots])[..., 0, :]  # [B, G, K]
    return slots.gather(2, nearest_slots(distances, k))


def _nearest_integers(position: Tensor, k: int, count: int) -> Tensor:
    """The k numbers among 0 to count - 1 that lie nearest to each position: [...] -> [..., min(k, count)] int64."""
    k = min(k, count)
    start = (position - k / 2).ceil().clamp(0, count - k).long()
    return start[..., None] + torch.arange(k, device=position.device)


def writing_order(lists: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """All pairs of an image in the published order: rank by rank, in a rank list by list, in a list object by object.

    Args:
        lists: each [B, G, k] int64 slots.

    Returns:
        slot and gt, [B, P] int64 with P = number of lists * k * G.
    """
    slots = torch.stack(list(lists), dim=1)  # [B, lists, G, k]
    gt = torch.arange(slots.shape[2], device=slots.device)[None, None, :, None].expand_as(slots)
    return slots.permute(0, 3, 1, 2).flatten(1), gt.permute(0, 3, 1, 2).flatten(1)


def write_in_order(rows: Tensor, slot: Tensor, value: Tensor, exists: Tensor) -> None:
    """rows[b, slot] = value for all pairs that exist, and where a slot comes several times the last value stays.

    Writing with repeated indices has no order on a GPU. So the last place of each slot is looked for first.

    Args:
        rows: [B, A] int64, changed in place.
        slot, value: [B, P] int64.
        exists: [B, P] bool.
    """
    place = torch.arange(slot.shape[1], device=slot.device).expand_as(slot)
    last = torch.full_like(rows, -1).scatter_reduce(1, slot, torch.where(exists, place, -1), "amax")  # [B, A]
    if slot.shape[1]:
        torch.where(last >= 0, value.gather(1, last.clamp(min=0)), rows, out=rows)


def covering_slots(boxes: Tensor, gt_boxes: Tensor, iou_threshold: float) -> Tensor:
    """Which predicted boxes overlap some object by more than the threshold: [B, A, 4] and [B, G, 4] -> [B, A] bool."""
    return (pairwise_iou(gt_boxes, boxes) > iou_threshold).any(dim=1)


def covering_slots_in_blocks(
    boxes: Tensor, gt_boxes: Tensor, blocks: Tensor, best: Tensor, iou_threshold: float
) -> Tensor:
    """The same as `covering_slots`, for a CPU, which is fast at looking where it is worth while.

    IoU is looked at only where it can be so high. Let t be the threshold and w, w' the widths. The overlap is at least
    t times the wider one, so the centres differ by at most (w + w') / 2 - t max(w, w') in x, and as the narrower one
    has at least t times the width of the wider one, |dcx| + |dw| is at most 1.5 (1 - t) max(w, w'), which is at most
    1.5 (1 / t - 1) w, where w is the object's. With the same in y, the L1 distance bounds IoU.

    Args:
        boxes: [B, A, 4] float xyxy.
        gt_boxes: [B, G, 4] float xyxy.
        blocks: [B, G, N, S] float, `l1_distances` between them in N blocks of S slots.
        best: [B, G, N] float, the smallest of each block.
        iou_threshold: above 0, at most 1.

    Returns:
        [B, A] bool.
    """
    covering = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    reach = 1.5 * (1 / iou_threshold - 1) * (gt_boxes[..., 2:] - gt_boxes[..., :2]).sum(dim=-1, keepdim=True)
    reach = 1.001 * reach + 1e-3  # a little more, for rounding
    image, gt, block = (best <= reach).nonzero(as_tuple=True)
    found, place = (blocks[image, gt, block] <= reach[image, gt]).nonzero(as_tuple=True)
    image, gt, slot = image[found], gt[found], block[found] * blocks.shape[-1] + place
    covers = iou(boxes[image, slot], gt_boxes[image, gt]) > iou_threshold
    covering[image[covers], slot[covers]] = True
    return covering
