"""How often a detector says the same object twice: what NMS takes away, and what a detector without it must not say.

A detection speaks of the object of its class that it overlaps most, if their IoU is at least 0.5. The surest detection
of an object is the hit. Every other one whose score is at least half the hit's is a duplicate. That bound is a share of
the hit's score and not a score, because detectors are calibrated differently: one may give its hits .9 and their echoes
.1, another .3 and .03. No score would divide both alike, and a share does; multiplying all scores changes nothing.

Only what a detector reports is counted, so its `score_threshold` and `max_detections` play a part: compare detectors
with the same ones. With a very low threshold very unsure hits count as well, and what is half as sure as they are.

Source: this library's own measure, made for detectors without NMS as in YOLOX, section 2.1, "End-to-end YOLO".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minidet.boxes import pairwise_iou
from minidet.errors import DataError, MinidetError
from minidet.evaluation.average_precision import UNDEFINED
from minidet.evaluation.predict import predict_dataset

if TYPE_CHECKING:
    from minidet.data.coco import CocoDataset

LISTED = 5  # rows of the table; whoever has as many duplicates or more goes into the last


@dataclass(frozen=True)
class Duplicates:
    """How many duplicates the objects have that were found."""

    per_object: float  # mean over the objects that were found; -1 where none was
    objects_hit: int  # objects that were found
    objects: int  # in the ground truth, crowds not counted
    histogram: tuple[int, ...]  # [n] = objects that were found with n duplicates; no zeros at the end

    def table(self) -> str:
        """The whole result as aligned plain text: the headline, then objects by number of duplicates."""
        total = sum(number * objects for number, objects in enumerate(self.histogram))
        mean = "-" if self.per_object < 0 else f"{self.per_object:.3f}"
        lines = [
            f"{_count(self.objects, 'object')}, {self.objects_hit:,} found, {_count(total, 'duplicate')}",
            "",
            f"duplicates per object found {mean}",
        ]
        if self.histogram:
            rows = [(str(number), objects) for number, objects in enumerate(self.histogram[:LISTED])]
            if len(self.histogram) > LISTED:
                rows.append((f"{LISTED} or more", sum(self.histogram[LISTED:])))
            lines += ["", f"{'duplicates':<10}  {'objects':>7}  {'share':>5}"]
            lines += [f"{text:<10}  {objects:>7,}  {objects / self.objects_hit:>5.3f}" for text, objects in rows]
        else:
            lines.append('"-": no object was found.')
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values; an undefined mean is None."""
        return {
            "per_object": None if self.per_object < 0 else self.per_object,
            "objects_hit": self.objects_hit,
            "objects": self.objects,
            "histogram": list(self.histogram),
        }


def measure_duplicates(
    model: torch.nn.Module,
    dataset: CocoDataset,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
    workers: int = 0,
    iou_threshold: float = 0.5,
    score_share: float = 0.5,
) -> Duplicates:
    """Run the model over a data set and count how often it says the same object twice.

    Args:
        model: a detector; its thresholds are used as they stand. With `nms_threshold` None nothing is suppressed.
        dataset: pictures and boxes.
        batch_size: pictures that go through the network together.
        device: where to compute; None means where the model is.
        progress: show a bar.
        workers: processes that read pictures ahead; worth it where a GPU would wait for them.
        iou_threshold, score_share: see `count_duplicates`.

    Raises:
        DataError: the classes of model and data set differ, or a picture cannot be read.
        MinidetError: a threshold is not possible.
    """
    _check_thresholds(iou_threshold, score_share)
    rows = predict_dataset(model, dataset, batch_size, device, progress, workers)
    return count_rows(dataset, rows, iou_threshold, score_share)


def count_rows(
    dataset: CocoDataset, rows: Sequence[dict[str, Any]], iou_threshold: float = 0.5, score_share: float = 0.5
) -> Duplicates:
    """Count duplicates in the rows of `predict_dataset`; `score_rows` makes the AP of the same rows."""
    rows_of: dict[int, list[dict[str, Any]]] = {record.id: [] for record in dataset.records}
    label_of = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
    for row in rows:
        rows_of[row["image_id"]].append(row)
    predictions = []
    for own in rows_of.values():
        boxes_xywh = torch.tensor([row["bbox"] for row in own], dtype=torch.float64).reshape(-1, 4)
        predictions.append(
            {
                "boxes": torch.cat([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], dim=1),
                "scores": torch.tensor([row["score"] for row in own], dtype=torch.float64),
                "labels": torch.tensor([label_of[row["category_id"]] for row in own], dtype=torch.int64),
            }
        )
    targets = [dataset.target(index) for index in range(len(dataset.records))]
    return count_duplicates(predictions, targets, iou_threshold, score_share)


def count_duplicates(
    predictions: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    iou_threshold: float = 0.5,
    score_share: float = 0.5,
) -> Duplicates:
    """Count how often detections say the same object twice.

    Args:
        predictions: for each picture `boxes` [N, 4] float xyxy in pixels, `scores` [N] float and `labels` [N] int64, in
            any order.
        targets: for each picture `boxes` [G, 4] float xyxy in the same pixels and `labels` [G] int64.
        iou_threshold: from this IoU on a detection speaks of an object; above 0. Of several objects of its class it
            speaks of the one that it overlaps most, of equals of the first.
        score_share: a detection counts as a duplicate from this share of the hit's score on, from 0 (all of them) to 1
            (only equally sure ones).

    Returns:
        Figures over all pictures. A detection that speaks of no object is a false alarm and not counted.

    Raises:
        DataError: the pictures are not equally many on both sides, or a box or score is not finite.
        MinidetError: a threshold is not possible.
    """
    _check_thresholds(iou_threshold, score_share)
    if len(predictions) != len(targets):
        raise DataError(
            f"duplicates: there are predictions for {len(predictions)} pictures, but targets for {len(targets)}. "
            "Give one of each a picture, without detections or objects an empty one."
        )
    counts = [torch.zeros(0, dtype=torch.int64)]  # of each object that was found
    for index, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        boxes, scores = prediction["boxes"].detach().cpu().double(), prediction["scores"].detach().cpu().double()
        if not (boxes.isfinite().all() and scores.isfinite().all()):
            raise DataError(f"duplicates: predictions[{index}] has a box or a score that is not finite. Leave it out.")
        gt_boxes, gt_labels = target["boxes"].cpu().double(), target["labels"].cpu()
        if len(boxes) and len(gt_boxes):
            same_class = prediction["labels"].cpu()[:, None] == gt_labels[None, :]
            ious = pairwise_iou(boxes, gt_boxes) * same_class  # [N, G]
            counts.append(_of_one_picture(ious, scores, iou_threshold, score_share))
    found = torch.cat(counts)
    return Duplicates(
        per_object=found.double().mean().item() if len(found) else UNDEFINED,
        objects_hit=len(found),
        objects=sum(len(target["boxes"]) for target in targets),
        histogram=tuple(found.bincount().tolist()),
    )


def _of_one_picture(ious: Tensor, scores: Tensor, iou_threshold: float, score_share: float) -> Tensor:
    """The numbers of duplicates of those objects that were found, from IoU [N, G] and scores [N]."""
    iou, owner = ious.max(dim=1)  # of equals the first
    speaks = iou >= iou_threshold
    owner, scores = owner[speaks], scores[speaks]
    hit_scores = scores.new_zeros(ious.shape[1]).scatter_reduce_(0, owner, scores, "amax", include_self=False)  # [G]
    said = owner[scores >= score_share * hit_scores[owner]].bincount(minlength=ious.shape[1])  # the hit among them
    return said[said > 0] - 1


def _check_thresholds(iou_threshold: float, score_share: float) -> None:
    if not 0 < iou_threshold <= 1 or not 0 <= score_share <= 1:
        raise MinidetError(
            f"duplicates: iou_threshold is {iou_threshold} and score_share is {score_share}, but the first must be "
            "above 0 and at most 1, and the second from 0 to 1."
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
