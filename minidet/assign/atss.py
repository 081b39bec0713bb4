"""ATSS: each object sets its own IoU threshold, from the anchors around it.

Four steps for one image: on every level the anchors whose centres are nearest to the object's; the mean and the
standard deviation of their overlaps; positive are those that reach the sum of the two and whose centre is inside the
object; conflicts to the higher overlap.

Source: ATSS, arXiv 1912.02424, Algorithm 1; chapter 06.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minidet.assign.base import Assignment, DensePredictions, Targets, assign_by_grid, give_to_best
from minidet.boxes import iou
from minidet.errors import MinidetError
from minidet.grid import Grid
from minidet.settings import check_settings

INSIDE_MARGIN = 0.01  # pixels that an anchor's centre is inside its object, as in the published code


@dataclass(frozen=True)
class ATSS:
    """The assigner.

    Attributes:
        candidates: anchors that each object looks at on each level, the nearest ones. This is the only parameter, and
            the paper finds that it hardly matters. It was found with one anchor a cell. Where a cell has several, they
            share one centre, so the nearest 9 of YOLOF's are one whole cell and a part of the next.
    """

    candidates: int = 9

    def __post_init__(self) -> None:
        check_settings(self, "ATSS")
        if self.candidates < 1:
            raise MinidetError(f"ATSS: candidates is {self.candidates}; an object looks at 1 anchor a level at least")

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, targets: Targets, trace: bool = False) -> Assignment:
        """Assign a batch. Only anchors and objects count; but a slot whose prediction is not finite is not positive.

        Args:
            predictions: of the current forward pass.
            targets: for each image `boxes` [G, 4] float xyxy in pixels of the network input and `labels` [G] int64.
            trace: keep candidates, overlaps and thresholds of every image.
        """
        return assign_by_grid(self.match, predictions, targets, trace)

    def match(self, grid: Grid, gt_boxes: Tensor) -> dict[str, Tensor]:
        """Who learns what in one image with the objects [G, 4], step by step, whatever the network says.

        Returns:
            `candidates` [G, K] int64 slots, level by level; for each its `distance` in pixels, `iou`, `inside` and
            `wanted`, all [G, K]; `mean`, `std` and `threshold` [G]; and `matched_gt` [A].
        """
        anchors = grid.anchor_boxes
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2  # [A, 2]; of a YOLOF cell its corner
        offsets = centers - (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2  # [G, A, 2]
        distances = offsets.square().sum(dim=-1).sqrt()  # [G, A]

        first, candidates = 0, []
        for size in grid.level_sizes:
            candidates.append(first + k_nearest(distances[:, first : first + size], self.candidates))
            first += size
        candidates = torch.cat(candidates, dim=1)  # [G, K]

        overlap = iou(gt_boxes[:, None], anchors[candidates]).clamp(max=1)  # [G, K]
        mean, std = mean_and_std(overlap)
        inside = inside_by(centers[candidates], gt_boxes, INSIDE_MARGIN)
        good = (overlap >= (mean + std)[:, None]) & inside

        # From the candidates of each object to all slots; a slot is in a row of `candidates` once.
        wanted = torch.zeros_like(distances, dtype=torch.bool).scatter(1, candidates, good)
        bids = torch.zeros_like(distances).scatter(1, candidates, overlap)
        return {
            "candidates": candidates,
            "distance": distances.gather(1, candidates),
            "iou": overlap,
            "mean": mean,
            "std": std,
            "threshold": mean + std,
            "inside": inside,
            "wanted": good,
            "matched_gt": give_to_best(wanted, bids),
        }


def k_nearest(distances: Tensor, k: int) -> Tensor:
    """The k slots nearest to each object, in the order of slots; of equally near ones the first.

    `topk` would promise no order among equals, and they are common on a grid: all anchors of a cell are equally near.

    Args:
        distances: [G, A] float.
        k: how many; with fewer slots than that, all of them.

    Returns:
        [G, min(k, A)] int64.
    """
    k = min(k, distances.shape[1])
    farthest = distances.topk(k, dim=1, largest=False).values[:, -1:]  # [G, 1]
    nearer, equal = distances < farthest, distances == farthest
    room = k - nearer.sum(dim=1, keepdim=True)
    chosen = nearer | (equal & (equal.cumsum(dim=1) <= room))  # k in each row
    slots = torch.arange(distances.shape[1], device=distances.device)
    return torch.where(chosen, slots, len(slots)).topk(k, dim=1, largest=False).values  # numbers, and none comes twice


def mean_and_std(overlap: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n - 1) over each row's K numbers, [G, K] -> float64 [G] and [G].

    In float64 the mean of equal float32 numbers is exactly that number. So an object whose candidates are all alike
    keeps them, and rounding does not lift the threshold above all of them. One number alone has standard deviation 0.
    """
    overlap = overlap.double()
    mean = overlap.mean(dim=1)
    squares = (overlap - mean[:, None]).square().sum(dim=1)
    return mean, (squares / max(overlap.shape[1] - 1, 1)).sqrt()


def inside_by(points: Tensor, gt_boxes: Tensor, margin: float) -> Tensor:
    """Which points are inside their row's object by more than `margin` pixels: [G, K, 2], [G, 4] -> [G, K] bool."""
    from_top_left = points - gt_boxes[:, None, :2]
    to_bottom_right = gt_boxes[:, None, 2:] - points
    return (torch.minimum(from_top_left, to_bottom_right) > margin).all(dim=-1)
