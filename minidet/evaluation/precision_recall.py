"""Precision and recall behind an AP50: which detection found an object, which is a false alarm, and the curve of both.

Which detection meets which object is decided by `pycocotools`, once for all score thresholds: it goes through the
detections of a picture and class from the surest down, so what is less sure changes nothing. A score threshold only
says how far down the ranking one reads.

Source: COCO's evaluation code; YOLOX, tables 2 onwards; chapter 00.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minidet.evaluation.average_precision import UNDEFINED, coco_evaluation

Array = NDArray[Any]
IOU = 0.5  # from which a detection meets an object
RECALLS = np.linspace(0, 1, 101)  # where COCO reads the curve


@dataclass(frozen=True)
class Ranking:
    """Detections from the surest to the least sure, and whether each of them found an object.

    Attributes:
        scores: [N] float, falling.
        hits: [N] bool; the others are false alarms.
        num_gt: objects that could be found.
        envelope: [101] float, COCO's curve: at each recall of `RECALLS` the highest precision at this recall or a
            higher one, 0 where it is not reached. Of several classes the mean of theirs. Its mean is AP50.
        ap50: that mean; -1 where there is no object.
    """

    scores: Array
    hits: Array
    num_gt: int
    envelope: Array
    ap50: float

    @property
    def recall(self) -> Array:
        """[N] share of the objects that is found by this detection and all surer ones."""
        return self.hits.cumsum() / max(self.num_gt, 1)

    @property
    def precision(self) -> Array:
        """[N] share of hits among this detection and all surer ones."""
        return self.hits.cumsum() / np.arange(1, len(self.hits) + 1)

    def at(self, score_threshold: float) -> tuple[int, int, int]:
        """Found objects, false alarms and missed objects when everything below a score is left out."""
        kept = int((self.scores >= score_threshold).sum())
        found = int(self.hits[:kept].sum())
        return found, kept - found, self.num_gt - found


@dataclass(frozen=True)
class PictureResult:
    """The detections of one picture, from the surest to the least sure.

    Attributes:
        boxes: [N, 4] float xyxy in pixels.
        scores: [N] float.
        labels: [N] int, positions in the data set's list of classes.
        gt: [N] int, the object that a detection found, as a row of the picture's annotations; -1 for a false alarm.
    """

    boxes: Array
    scores: Array
    labels: Array
    gt: Array


@dataclass(frozen=True)
class PrecisionRecall:
    """What came of all detections on all pictures.

    Attributes:
        all_classes: all detections in one ranking; its envelope is the mean of the classes'.
        per_class: one ranking each, in the order of the labels.
        pictures: by image id.
    """

    all_classes: Ranking
    per_class: list[Ranking]
    pictures: dict[int, PictureResult]


def precision_recall(gt: dict[str, Any], rows: list[dict[str, Any]]) -> PrecisionRecall:
    """Match detections with objects at an IoU of 0.5, as COCO does, and rank them.

    Args:
        gt: content of a COCO annotation file.
        rows: content of a COCO result file, such as `predict_dataset` gives.

    Raises:
        DataError: either side is not what it should be.
    """
    evaluation = coco_evaluation("ground truth", gt, "detections", rows, (IOU,))
    parameters, precision = evaluation.params, evaluation.eval["precision"]  # [1 IoU, 101, classes, sizes, limits]
    cells = iter(evaluation.evalImgs)  # class by class, size by size, picture by picture
    place: dict[int, int] = {}  # of an annotation among its picture's; pycocotools numbers them from 1, in their order
    count: Counter[int] = Counter()
    for number, annotation in enumerate(gt.get("annotations", []), start=1):
        place[number] = count[annotation["image_id"]]
        count[annotation["image_id"]] += 1

    found: dict[int, list[tuple]] = {image_id: [] for image_id in parameters.imgIds}
    per_class, pooled = [], []
    for label in range(len(parameters.catIds)):
        ranked, num_gt = [], 0
        for size in range(len(parameters.areaRng)):
            for image_id in parameters.imgIds:
                cell = next(cells)
                if size or cell is None:  # size 0 is "all"
                    continue
                num_gt += int((~cell["gtIgnore"].astype(bool)).sum())
                for row, score, gt_id, ignored in zip(
                    cell["dtIds"], cell["dtScores"], cell["dtMatches"][0], cell["dtIgnore"][0], strict=True
                ):
                    if ignored:  # it lies on a crowd, and counts neither way
                        continue
                    ranked.append((score, gt_id > 0))
                    found[image_id].append((rows[int(row) - 1], score, label, place[int(gt_id)] if gt_id > 0 else -1))
        pooled += ranked
        envelope = precision[0, :, label, 0, -1]
        per_class.append(_ranking(ranked, num_gt, envelope))

    defined = [ranking.envelope for ranking in per_class if ranking.num_gt]
    mean = np.mean(defined, axis=0) if defined else np.full(len(RECALLS), UNDEFINED)
    everything = _ranking(pooled, sum(ranking.num_gt for ranking in per_class), mean)
    return PrecisionRecall(everything, per_class, {image_id: _picture(entries) for image_id, entries in found.items()})


def _ranking(ranked: list[tuple[float, bool]], num_gt: int, envelope: Array) -> Ranking:
    scores = np.array([score for score, _ in ranked], dtype=float)
    order = np.argsort(-scores, kind="mergesort")  # COCO's: of equal scores the first picture's first
    hits = np.array([hit for _, hit in ranked], dtype=bool)
    ap50 = float(envelope.mean()) if num_gt else UNDEFINED
    return Ranking(scores[order], hits[order], num_gt, envelope, ap50)


def _picture(entries: list[tuple]) -> PictureResult:
    entries = sorted(entries, key=lambda entry: -entry[1])
    boxes = np.array([entry[0]["bbox"] for entry in entries], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores, labels, gt = ([entry[column] for entry in entries] for column in (1, 2, 3))
    return PictureResult(boxes, np.array(scores, dtype=float), np.array(labels, dtype=int), np.array(gt, dtype=int))
