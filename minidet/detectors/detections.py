"""From what a model says at every slot to detections: a whole batch at once, in one list of rows.

`postprocess` in `yolox.py` and `yolof.py` say the same for one image, in the order in which one explains it; the tests
hold both equal to the last bit. Here the images of a batch share every operation: one look at the device for the rows
that pass the threshold, one sort, one non-maximum suppression in which only boxes of the same image (and class) meet.

Source: YOLOX and YOLOF, published codes; chapters 00, 07 and 09.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minidet.assign import DensePredictions
from minidet.boxes import nms_in_groups

# The score of a slot is computed twice, of its best logit and of all its logits. Rounding may differ by a few units in
# the last of 24 bits; this much less than the threshold passes the first time.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Detections:
    """N found boxes of a batch.

    Attributes:
        image: [N] int64, which image of the batch a row belongs to.
        boxes: [N, 4] float32 xyxy in pixels.
        scores: [N] float32.
        labels: [N] int64.
    """

    image: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: Tensor) -> Detections:
        """Some of the rows, by index or by a mask."""
        return Detections(self.image[rows], self.boxes[rows], self.scores[rows], self.labels[rows])

    def best_of_each_image(self, count: int | None) -> Detections:
        """The `count` best rows of each image (None: all), image by image, by decreasing score; of equals the first."""
        rows = self.scores.argsort(descending=True, stable=True)
        ordered = self[rows[self.image[rows].argsort(stable=True)]]
        if count is None or not len(self):
            return ordered
        place = torch.arange(len(self), device=self.image.device)
        first = torch.searchsorted(ordered.image, ordered.image)  # where each row's image begins
        return ordered[place - first < count]

    def in_pictures(self, sizes_hw: Sequence[tuple[int, int]], scales: Sequence[tuple[float, float]]) -> Detections:
        """The same in the pixels of the pictures, cut off at their borders; what lies wholly outside is left out.

        Args:
            sizes_hw: (height, width) of each image's picture.
            scales: each image's factors (x, y), network input / picture.
        """
        device = self.boxes.device
        limits = torch.tensor([(w, h, w, h) for h, w in sizes_hw], dtype=torch.float32).to(device, non_blocking=True)
        factors = torch.tensor([(x, y, x, y) for x, y in scales], dtype=torch.float32).to(device, non_blocking=True)
        boxes = torch.minimum((self.boxes / factors[self.image]).clamp(min=0), limits[self.image])
        inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return Detections(self.image, boxes, self.scores, self.labels)[inside]

    def per_image(self, count: int) -> list[dict[str, Tensor]]:
        """A dict of `boxes`, `scores` and `labels` for each of the `count` images; the rows stand image by image."""
        sizes = torch.bincount(self.image, minlength=count).tolist()
        columns = (self.boxes.split(sizes), self.scores.split(sizes), self.labels.split(sizes))
        return [
            {"boxes": boxes, "scores": scores, "labels": labels} for boxes, scores, labels in zip(*columns, strict=True)
        ]


def best_class_of_slots(predictions: DensePredictions, score_threshold: float) -> Detections:
    """YOLOX's candidates: of each slot its best class, where that scores at least the threshold; slot by slot.

    Few slots pass, so few have the scores of all their classes computed: a score grows with its logit, and the best
    logit says which slots can pass at all.
    """
    objects = predictions.object_scores
    best = predictions.class_logits.amax(dim=2).sigmoid()  # [B, A]
    best = best if objects is None else best * objects
    image, slot = (best >= score_threshold * (1 - ROUNDING)).nonzero(as_tuple=True)
    class_scores = predictions.class_logits[image, slot].sigmoid()  # [N, C]
    class_scores = class_scores if objects is None else class_scores * objects[image, slot, None]
    scores, labels = class_scores.max(dim=1)  # not of the logits: two of them can have the same score
    found = Detections(image, predictions.boxes[image, slot], scores, labels)
    return found[scores >= score_threshold]


def best_pairs(predictions: DensePredictions, score_threshold: float, count: int) -> Detections:
    """YOLOF's candidates: the `count` best pairs (slot, class) of each image that score more than the threshold."""
    class_scores = predictions.class_scores()
    class_scores = class_scores.where(class_scores > score_threshold, 0)  # also what is not a number
    flat = class_scores.flatten(1)  # [B, A * C]
    last = flat.topk(min(count, flat.shape[1]), dim=1).values[:, -1:]  # the score of each image's last candidate
    image, pair = ((flat >= last) & (flat > 0)).nonzero(as_tuple=True)  # of equal scores too many, for the moment
    slot, label = pair // class_scores.shape[2], pair % class_scores.shape[2]
    found = Detections(image, predictions.boxes[image, slot], flat[image, pair], label)
    return found.best_of_each_image(count)


def suppress(
    found: Detections, nms_threshold: float | None, num_classes: int, class_agnostic: bool, max_detections: int | None
) -> Detections:
    """What non-maximum suppression leaves of each image, at most `max_detections`; by image, by decreasing score.

    Args:
        found: candidates in any order; of equal scores the first wins.
        nms_threshold: boxes that overlap a better one by more than this IoU go. None: nothing is suppressed.
        num_classes: C.
        class_agnostic: boxes of other classes suppress too.
        max_detections: of one image; None for all.
    """
    if nms_threshold is None:
        return found.best_of_each_image(max_detections)
    groups = found.image if class_agnostic else found.image * num_classes + found.labels
    return found[nms_in_groups(found.boxes, found.scores, groups, nms_threshold)].best_of_each_image(max_detections)
