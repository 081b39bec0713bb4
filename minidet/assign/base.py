"""Who learns what: the one result that every assignment strategy gives, whatever led to it.

Source: chapter 06; the strategies are in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minidet.boxes import iou
from minidet.grid import Grid

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class DensePredictions:
    """What a detector says at every slot, before anything is thrown away.

    Attributes:
        grid: where the A slots are.
        raw_boxes: [B, A, 4] float32, the box predictor's own numbers.
        boxes: [B, A, 4] float32 xyxy in pixels of the network input.
        class_logits: [B, A, C] float32.
        object_logits: [B, A] float32, or None for a detector without objectness.
    """

    grid: Grid
    raw_boxes: Tensor
    boxes: Tensor
    class_logits: Tensor
    object_logits: Tensor | None

    def class_scores(self) -> Tensor:
        """[B, A, C] score of each class: its probability, times that of an object where the detector tells."""
        scores = self.class_logits.sigmoid()
        return scores if self.object_logits is None else scores * self.object_logits.sigmoid()[..., None]

    @property
    def finite(self) -> Tensor:
        """[B, A] bool: every number of the slot is finite. Other slots are never given an object."""
        # A sum of numbers is finite if all of them are; testing the sums is forty times faster than testing each.
        total = self.boxes.sum(-1) + self.class_logits.sum(-1)
        return (total if self.object_logits is None else total + self.object_logits).isfinite()

    def detach(self) -> DensePredictions:
        """The same numbers, cut off from the computation of gradients."""
        objects = None if self.object_logits is None else self.object_logits.detach()
        return DensePredictions(
            self.grid, self.raw_boxes.detach(), self.boxes.detach(), self.class_logits.detach(), objects
        )


@dataclass(frozen=True)
class Pairs:
    """The P pairs (slot, ground truth) that the box loss sees; all [P] int64."""

    image: Tensor
    slot: Tensor
    gt: Tensor

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Assignment:
    """Which slot learns which object, for a batch.

    Attributes:
        matched_gt: [B, A] int64, row of the ground truth in its image's list, or BACKGROUND, or IGNORED.
        pairs: the pairs that the box loss sees. One a positive slot, unless a strategy keeps duplicates (YOLOF does).
        quality: [B, A] float32 in [0, 1], IoU of each positive slot's predicted box with its object, 0 elsewhere.
        num_gt: objects in each image.
        trace: for each image what led to the result, as named tensors; None unless it was asked for.
    """

    matched_gt: Tensor
    pairs: Pairs
    quality: Tensor
    num_gt: tuple[int, ...]
    trace: tuple[dict[str, Tensor], ...] | None = None

    @property
    def positive(self) -> Tensor:
        """[B, A] bool."""
        return self.matched_gt >= 0

    @property
    def num_positives(self) -> Tensor:
        """Positive slots in the batch, a scalar int64 tensor."""
        return self.positive.sum()


class Assigner(Protocol):
    """Anything that turns predictions and targets into an `Assignment`, without gradients."""

    def __call__(
        self, predictions: DensePredictions, targets: Sequence[dict[str, Tensor]], trace: bool = False
    ) -> Assignment: ...


def pairs_of(matched_gt: Tensor) -> Pairs:
    """The pairs of an assignment in which every positive slot has exactly one object, image by image, slot by slot."""
    image, slot = torch.nonzero(matched_gt >= 0, as_tuple=True)
    return Pairs(image, slot, matched_gt[image, slot])


def make_assignment(
    matched_gt: Tensor,
    predictions: DensePredictions,
    targets: Sequence[dict[str, Tensor]],
    pairs: Pairs | None = None,
    traces: Sequence[dict[str, Tensor]] | None = None,
) -> Assignment:
    """The result of a strategy that only decides who learns what: the quality of each positive slot is computed here.

    Args:
        matched_gt: [B, A] int64, row of the ground truth, BACKGROUND or IGNORED.
        predictions: of the same batch.
        targets: for each image `boxes` [G, 4] float xyxy in pixels and `labels` [G] int64.
        pairs: what the box loss sees; None: one pair for each positive slot.
        traces: for each image what led to the result.
    """
    owned = pairs_of(matched_gt)
    gt_boxes, _ = matched_targets(targets, owned)
    overlap = iou(predictions.boxes[owned.image, owned.slot], gt_boxes.float()).clamp(0, 1)
    quality = predictions.boxes.new_zeros(matched_gt.shape)
    quality[owned.image, owned.slot] = overlap
    num_gt = tuple(len(target["labels"]) for target in targets)
    return Assignment(
        matched_gt, owned if pairs is None else pairs, quality, num_gt, None if traces is None else tuple(traces)
    )


def give_to_best(wanted: Tensor, bids: Tensor) -> Tensor:
    """Each slot to the one object with the largest bid among those that want it; of equal bids to the first.

    Args:
        wanted: [G, A] bool.
        bids: [G, A] float.

    Returns:
        [A] int64, the object's row, or BACKGROUND where none wants the slot.
    """
    if not len(wanted):
        return wanted.new_full((wanted.shape[1],), BACKGROUND, dtype=torch.int64)
    best, owner = bids.masked_fill(~wanted, -torch.inf).max(dim=0)
    return torch.where(best > -torch.inf, owner, BACKGROUND)


def assign_by_grid(
    match: Callable[[Grid, Tensor], dict[str, Tensor]],
    predictions: DensePredictions,
    targets: Sequence[dict[str, Tensor]],
    trace: bool,
) -> Assignment:
    """The result of a rule that looks at grid and objects alone. Slots that are not finite become background.

    Args:
        match: gives for a grid and an image's boxes [G, 4] every step by name, `matched_gt` [A] among them.
        predictions: of the current forward pass.
        targets: for each image `boxes` [G, 4] float xyxy in pixels and `labels` [G] int64.
        trace: keep the steps of every image.
    """
    steps = [match(predictions.grid, target["boxes"].float()) for target in targets]
    matched_gt = torch.stack([step["matched_gt"] for step in steps])
    matched_gt[(matched_gt >= 0) & ~predictions.finite] = BACKGROUND
    return make_assignment(matched_gt, predictions, targets, traces=steps if trace else None)


def matched_targets(targets: Sequence[dict[str, Tensor]], pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Box [P, 4] and label [P] of the object in each pair."""
    all_boxes = torch.cat([target["boxes"] for target in targets])
    all_labels = torch.cat([target["labels"] for target in targets])
    counts = [len(target["labels"]) for target in targets]
    first = torch.tensor([0, *counts[:-1]], device=pairs.image.device).cumsum(0)  # row of each image's first object
    row = first[pairs.image] + pairs.gt
    return all_boxes[row], all_labels[row]


def pad_targets(targets: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """The ground truth of a batch as one tensor: boxes [B, G, 4] float xyxy, with zeros below, and which rows are real.

    G is the largest number of objects in an image; the second result is [B, G] bool.
    """
    boxes = torch.nn.utils.rnn.pad_sequence([target["boxes"].float() for target in targets], batch_first=True)
    counts = torch.tensor([len(target["labels"]) for target in targets], device=boxes.device)
    return boxes, torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]
