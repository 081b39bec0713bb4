"""What the detection explorer computes: what a model finds under given thresholds, and how right that is.

The network runs once. Non-maximum suppression and COCO's matching run once for every NMS threshold that is tried; a
score threshold only says how far down the ranking one reads.

Source: COCO's evaluation code; chapter 00.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from minidet.detectors import Detector
from minidet.detectors.detector import Prediction
from minidet.draw.thresholds import ThresholdView
from minidet.errors import MinidetError
from minidet.evaluation.precision_recall import RECALLS, PrecisionRecall, Ranking, precision_recall
from minidet.evaluation.predict import coco_rows, evaluation_mode
from minidet.explore.pictures import Picture

KEPT = 24  # combinations of NMS settings whose curves stay in memory


class ThresholdLab:
    """What one model finds in a few pictures.

    Args:
        model: any detector; never changed. Its own `score_threshold` is where rankings end.
        pictures: with their objects.
    """

    def __init__(self, model: Detector, pictures: Sequence[Picture]):
        self.model = copy.copy(model)  # the same network; thresholds of its own
        self.pictures = list(pictures)
        self.class_names = model.class_names or [f"class {label}" for label in range(model.num_classes)]
        wrong = [
            n for n, p in enumerate(self.pictures, 1) if len(p.labels) and int(p.labels.max()) >= model.num_classes
        ]
        if wrong:
            raise MinidetError(f"picture {wrong[0]} has a label beyond the {model.num_classes} classes of {model.name}")
        with evaluation_mode(model), torch.no_grad():
            self._dense = []
            for picture in self.pictures:
                x, (scale,) = model.network_input([picture.image])
                self._dense.append((model.dense_of(x), scale))
        self._results: dict[tuple[float, bool], PrecisionRecall] = {}

    def detections(self, picture: int, score: float, nms: float, class_agnostic: bool) -> Prediction:
        """What the model itself gives for a picture under these thresholds; as `model([image])`."""
        self.model.score_threshold, self.model.nms_threshold = score, nms
        self.model.class_agnostic = class_agnostic
        predictions, scale = self._dense[picture]
        found = self.model.select(predictions)
        return found.in_pictures([tuple(self.pictures[picture].image.shape[-2:])], [scale]).per_image(1)[0]

    def result(self, nms: float, class_agnostic: bool) -> PrecisionRecall:
        """The rankings of all detections down to the model's own score threshold."""
        key = (float(nms), bool(class_agnostic))
        if key not in self._results:
            while len(self._results) >= KEPT:
                del self._results[next(iter(self._results))]
            self._results[key] = precision_recall(self.truth(), self.rows(*key))
        return self._results[key]

    def rows(self, nms: float, class_agnostic: bool) -> list[dict[str, Any]]:
        """All detections in COCO's result format; image ids count the pictures, category ids are the labels."""
        lowest = float(self.model.config.score_threshold)
        rows: list[dict[str, Any]] = []
        for number in range(len(self.pictures)):
            found = self.detections(number, lowest, nms, class_agnostic)
            rows += coco_rows(found, number, list(range(self.model.num_classes)))
        return rows

    def truth(self) -> dict[str, Any]:
        """The objects of all pictures as a COCO annotation file has them."""
        annotations = []
        for number, picture in enumerate(self.pictures):
            boxes = picture.boxes.double()
            sizes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
            for box, label in zip(sizes, picture.labels.tolist(), strict=True):
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box}
                annotations.append(entry)
        return {
            "images": [{"id": number} for number in range(len(self.pictures))],
            "categories": [{"id": label, "name": name} for label, name in enumerate(self.class_names)],
            "annotations": annotations,
        }

    def view(
        self, picture: int, score: float, nms: float, class_agnostic: bool = False, label: int | None = None
    ) -> ThresholdView:
        """Everything that the picture shows.

        Args:
            picture: which one, from 0.
            score: detections that score less are left out.
            nms: boxes that overlap a better one by more than this IoU go.
            class_agnostic: also those of another class.
            label: the curve of one class; None: of all.

        Raises:
            MinidetError: there is no such picture or class.
        """
        if not 0 <= picture < len(self.pictures) or (label is not None and not 0 <= label < len(self.class_names)):
            raise MinidetError(f"there is no picture {picture} or no class {label}")
        result = self.result(nms, class_agnostic)
        ranking = result.all_classes if label is None else result.per_class[label]
        here, shown = result.pictures[picture], self.pictures[picture]
        kept = here.scores >= score
        found = set(here.gt[kept].tolist())
        missed = [number for number in range(len(shown.boxes)) if number not in found]
        across = "whatever their classes" if class_agnostic else "within a class"
        return ThresholdView(
            image=shown.image.permute(1, 2, 0).numpy(),
            boxes=here.boxes[kept],
            labels=here.labels[kept],
            scores=here.scores[kept],
            found=here.gt[kept] >= 0,
            missed=shown.boxes[missed].numpy(),
            missed_labels=shown.labels[missed].numpy(),
            class_names=self.class_names,
            recall=ranking.recall,
            precision=ranking.precision,
            curve_scores=ranking.scores,
            recalls=RECALLS,
            envelope=ranking.envelope,
            counts=ranking.at(score),
            ap50=ranking.ap50,
            cut_ap50=self.cut_ap50(result, score, label),
            score_threshold=score,
            of_what="all classes" if label is None else self.class_names[label],
            mean_of="" if label is not None else " (mean of the classes)",
            words=f"Score at least {score:.2f}; boxes overlapping by more than IoU {nms:.2f} suppressed {across}.",
        )

    def cut_ap50(self, result: PrecisionRecall, score: float, label: int | None) -> float:
        """AP50 when everything below a score is left out: as `evaluate` with that score threshold."""
        rankings = result.per_class if label is None else [result.per_class[label]]
        values = [_ap50_above(ranking, score) for ranking in rankings if ranking.num_gt]
        return float(np.mean(values)) if values else -1.0


def _ap50_above(ranking: Ranking, score: float) -> float:
    kept = ranking.scores >= score
    recall, precision = ranking.recall[kept], ranking.precision[kept]
    # COCO's reading: at each recall the best precision at this one or a higher one.
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(best, 0.0)[places].mean())
