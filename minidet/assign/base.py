"""Who learns what: the one result that every assignment strategy gives, whatever led to it.

Source: chapter 06; the strategies are in the modules beside this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from minidet.boxes import iou
from minidet.grid import Grid

BACKGROUND = -1
IGNORED = -2
FAR_AWAY = -1e6  # pixels; outside every picture


@dataclass(frozen=True)
class DensePredictions:
    """What a detector says at every slot, before anything is thrown away.

    Attributes:
        grid: where the A slots are.
        raw_boxes: [B, A, 4] float32, the box predictor's own numbers.
        boxes: [B, A, 4] float32 xyxy in pixels of the network input.
        class_logits: [B, A, C] float32.
        object_logits: [B, A] float32, or None for a detector without objectness.
        selector_logits: [B, A] float32, whether the slot speaks for its object alone, or None for a detector with NMS.
    """

    grid: Grid
    raw_boxes: Tensor
    boxes: Tensor
    class_logits: Tensor
    object_logits: Tensor | None
    selector_logits: Tensor | None = None

    @property
    def object_scores(self) -> Tensor | None:
        """[B, A] what the scores of all classes are multiplied by: the probabilities of an object and of selection."""
        scores = None if self.object_logits is None else self.object_logits.sigmoid()
        if self.selector_logits is None:
            return scores
        selected = self.selector_logits.sigmoid()
        return selected if scores is None else scores * selected

    def class_scores(self) -> Tensor:
        """[B, A, C] score of each class: its probability, times `object_scores` where the detector tells."""
        scores, factor = self.class_logits.sigmoid(), self.object_scores
        return scores if factor is None else scores * factor[..., None]

    @property
    def finite(self) -> Tensor:
        """[B, A] bool: every number of the slot is finite. Other slots are never given an object."""
        # A sum of numbers is finite if all of them are; testing the sums is forty times faster than testing each.
        total = self.boxes.sum(-1) + self.class_logits.sum(-1)
        for logits in (self.object_logits, self.selector_logits):
            total = total if logits is None else total + logits
        return total.isfinite()

    def at(self, slots: Tensor) -> DensePredictions:
        """The same numbers for some slots of each image, [B, K] int64; the grid's cells and strides are then [B, K]."""
        image = torch.arange(len(slots), device=slots.device)[:, None]
        return self.map(self.grid.at(slots), lambda values: values[image, slots])

    def detach(self) -> DensePredictions:
        """The same numbers, cut off from the computation of gradients."""
        return self.map(self.grid, Tensor.detach)

    def map(self, grid: Grid, change: Callable[[Tensor], Tensor]) -> DensePredictions:
        """The same for another grid, with every tensor changed."""
        return DensePredictions(grid, *(None if values is None else change(values) for values in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All numbers, in the order of the attributes."""
        return self.raw_boxes, self.boxes, self.class_logits, self.object_logits, self.selector_logits


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a batch of B images, filled up to the same number G in each, so that one tensor holds them all.

    Attributes:
        boxes: [B, G, 4] float32 xyxy in pixels of the network input; zeros where there is no object. G is at least 1.
        labels: [B, G] int64; 0 where there is no object.
        real: [B, G] bool, where there is one: the first `counts[i]` of image i.
        counts: objects in each image, numbers that are known without asking a device.
    """

    boxes: Tensor
    labels: Tensor
    real: Tensor
    counts: tuple[int, ...]

    def __len__(self) -> int:
        """Images."""
        return len(self.counts)

    def boxes_of(self, image: int) -> Tensor:
        """[N, 4], the boxes of one image, without what fills up."""
        return self.boxes[image, : self.counts[image]]

    def labels_of(self, image: int) -> Tensor:
        """[N], the labels of one image."""
        return self.labels[image, : self.counts[image]]


Targets = Sequence[dict[str, Tensor]] | GroundTruth  # a list of {"boxes", "labels"}, one an image, or the same padded


def pad_targets(targets: Targets, device: torch.device | None = None, multiple: int = 1) -> GroundTruth:
    """A list of targets as one `GroundTruth`; what is one already comes back as it is.

    Args:
        targets: for each image `boxes` [N, 4] float xyxy in pixels and `labels` [N] int64.
        device: where to; None leaves them where they are. Lists on the host are padded there and sent in one piece
            each, from page-locked memory, so that a GPU need not wait.
        multiple: G is rounded up to a multiple of this, so that fewer sizes occur.
    """
    if isinstance(targets, GroundTruth):
        return targets
    counts = tuple(len(target["labels"]) for target in targets)
    here = targets[0]["boxes"].device
    most = math.ceil(max(*counts, 1) / multiple) * multiple
    boxes = torch.zeros(len(targets), most, 4, device=here)
    labels = torch.zeros(len(targets), most, dtype=torch.int64, device=here)
    for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
        boxes[i, :count] = target["boxes"]
        labels[i, :count] = target["labels"]
    real = torch.arange(most) < torch.tensor(counts)[:, None]
    device = here if device is None else device
    return GroundTruth(*(to_device(tensor, device) for tensor in (boxes, labels, real)), counts)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a copy from the host to a GPU does not make either of them wait."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Pairs:
    """P pairs (slot, ground truth), of which some may only fill up; all [P].

    How many pairs there are is known on the device alone, and asking would make the host wait for it. So lists have
    the length that they can have at most.

    Attributes:
        image, slot, gt: int64; 0 in a row that only fills up.
        exists: bool, whether the row is a pair.
    """

    image: Tensor
    slot: Tensor
    gt: Tensor
    exists: Tensor

    def existing(self) -> Pairs:
        """The pairs alone."""
        return Pairs(*(values[self.exists] for values in (self.image, self.slot, self.gt, self.exists)))

    def __len__(self) -> int:
        """Rows, those that fill up included."""
        return len(self.image)


@dataclass(frozen=True)
class Assignment:
    """Which slot learns which object, for a batch.

    Attributes:
        matched_gt: [B, A] int64, row of the ground truth in its image's list, or BACKGROUND, or IGNORED.
        quality: [B, A] float32 in [0, 1], IoU of each positive slot's predicted box with its object, 0 elsewhere.
        owned: each positive slot with its object, image by image, slot by slot; may be filled up.
        box_pairs: what the box loss sees; may be filled up. The same, unless a strategy keeps duplicates (YOLOF's).
        gt: what was assigned.
        trace: for each image what led to the result, as named tensors; None unless it was asked for.
    """

    matched_gt: Tensor
    quality: Tensor
    owned: Pairs
    box_pairs: Pairs
    gt: GroundTruth
    trace: tuple[dict[str, Tensor], ...] | None = None

    @property
    def positive(self) -> Tensor:
        """[B, A] bool."""
        return self.matched_gt >= 0

    @property
    def num_positives(self) -> Tensor:
        """Positive slots in the batch, a scalar int64 tensor."""
        return self.positive.sum()

    @property
    def num_gt(self) -> tuple[int, ...]:
        """Objects in each image."""
        return self.gt.counts

    @property
    def pairs(self) -> Pairs:
        """`box_pairs` without what fills up: for looking at, as a GPU has to be asked how many there are."""
        return self.box_pairs.existing()


class Assigner(Protocol):
    """Anything that turns predictions and targets into an `Assignment`, without gradients.

    One whose `on_host` is true finds its matching on the host, so a GPU is waited for, and no graph can hold the step.
    """

    def __call__(self, predictions: DensePredictions, targets: Targets, trace: bool = False) -> Assignment: ...


def pairs_of(matched_gt: Tensor, most: int | None = None) -> Pairs:
    """The positive slots, each with its object, image by image, slot by slot.

    Args:
        matched_gt: [B, A] int64.
        most: positive slots that an image can have; the result has B * most rows. None: they are counted, for which a
            GPU has to be asked.
    """
    positive = matched_gt >= 0
    if most is None:
        image, slot = torch.nonzero(positive, as_tuple=True)
        return Pairs(image, slot, matched_gt[image, slot], torch.ones_like(image, dtype=torch.bool))
    slot, exists = places_of_true(positive, most)  # [B, most]
    gt = matched_gt.gather(1, slot).clamp(min=0)
    image = torch.arange(len(slot), device=slot.device)[:, None].expand_as(slot)
    return Pairs(image.flatten(), slot.flatten(), gt.flatten(), exists.flatten())


def labels_of(matched_gt: Tensor, targets: Targets, nothing: int) -> Tensor:
    """The class of the object that each slot was given, and `nothing` where it was given none; [B, A] int64."""
    labels = F.pad(pad_targets(targets).labels, (1, 0))  # column 0 is for slots without an object
    return labels.gather(1, (matched_gt + 1).clamp(min=0)).where(matched_gt >= 0, nothing)


def places_of_true(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Where each row is True, in order, as `nonzero` tells it, but of a size that is known beforehand.

    Args:
        mask: [B, N] bool with at most `most` True in a row; more are left out.
        most: length of the result's rows.

    Returns:
        [B, most] int64 places, and [B, most] bool which of them exist; the others are 0.
    """
    rank = mask.cumsum(dim=1)  # 1 for the first True
    column = torch.where(mask & (rank <= most), rank - 1, most)  # all others are written into a column too many
    numbers = torch.arange(mask.shape[1], device=mask.device).expand_as(rank)
    places = torch.zeros(len(mask), most + 1, dtype=torch.int64, device=mask.device).scatter(1, column, numbers)
    exists = torch.arange(most, device=mask.device) < rank[:, -1:]
    return places[:, :most] * exists, exists


def make_assignment(
    matched_gt: Tensor,
    predictions: DensePredictions,
    gt: GroundTruth,
    box_pairs: Pairs | None = None,
    traces: Sequence[dict[str, Tensor]] | None = None,
    most: int | None = None,
) -> Assignment:
    """The result of a strategy that only decides who learns what: the quality of each positive slot is computed here.

    Args:
        matched_gt: [B, A] int64, row of the ground truth, BACKGROUND or IGNORED.
        predictions: of the same batch.
        gt: the objects.
        box_pairs: what the box loss sees; None: one pair for each positive slot.
        traces: for each image what led to the result.
        most: positive slots that an image can have; see `pairs_of`.
    """
    owned = pairs_of(matched_gt, most)
    overlap = iou(predictions.boxes[owned.image, owned.slot], gt.boxes[owned.image, owned.gt]).clamp(0, 1)
    # Rows that fill up point at slot 0, so everything is added, and they add nothing.
    quality = torch.zeros(matched_gt.shape, device=matched_gt.device).index_put(
        (owned.image, owned.slot), torch.where(owned.exists, overlap, 0), accumulate=True
    )
    return Assignment(
        matched_gt,
        quality,
        owned,
        owned if box_pairs is None else box_pairs,
        gt,
        None if traces is None else tuple(traces),
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
    targets: Targets,
    trace: bool,
    most_each: int | None = None,
) -> Assignment:
    """The result of a rule that looks at grid and objects alone. Slots that are not finite become background.

    Args:
        match: gives for a grid and an image's boxes [G, 4] every step by name, `matched_gt` [A] among them. It is
            written for one image; `torch.vmap` lets it run for all of them at once.
        predictions: of the current forward pass.
        targets: for each image `boxes` [G, 4] float xyxy in pixels and `labels` [G] int64.
        trace: keep the steps of every image.
        most_each: slots that an object can have; None: any number.
    """
    gt = pad_targets(targets)
    # What fills up lies where no rule looks for anything.
    boxes = torch.where(gt.real[..., None], gt.boxes, FAR_AWAY)
    matched_gt = torch.vmap(lambda of_image: match(predictions.grid, of_image)["matched_gt"])(boxes)  # [B, A]
    matched_gt = torch.where((matched_gt >= 0) & ~predictions.finite, BACKGROUND, matched_gt)
    traces = [match(predictions.grid, gt.boxes_of(image)) for image in range(len(gt))] if trace else None
    on_cpu = matched_gt.device.type == "cpu" and not torch.compiler.is_compiling()
    most = matched_gt.shape[1]
    if most_each is not None:
        most = min(most, most_each * gt.boxes.shape[1])
    return make_assignment(matched_gt, predictions, gt, traces=traces, most=None if on_cpu else most)
