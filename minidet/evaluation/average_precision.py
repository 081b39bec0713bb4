"""Average precision as COCO defines it: how many objects were found, at how many false alarms, at how tight a fit.

The figures are computed by `pycocotools`, the reference implementation, so that they can be set beside any paper's
(YOLOX, table 2 onwards); this module checks the input, and adds the same figures by class and by object size.
"""

from __future__ import annotations

import contextlib
import io
import numbers
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from minidet.errors import DataError
from minidet.evaluation.predict import predict_dataset
from minidet.files import read_json
from minidet.settings import is_finite

if TYPE_CHECKING:
    from minidet.data.coco import CocoDataset

__all__ = [
    "STATS",
    "AveragePrecision",
    "Group",
    "evaluate",
    "evaluate_detections",
    "evaluate_without_classes",
    "predict_dataset",
]

STATS = (  # the twelve figures, in the order in which COCO lists them
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
SIZES = {  # COCO's three object sizes, by area in square pixels
    "small": "small   up to 32x32",
    "medium": "medium  32x32 to 96x96",
    "large": "large   over 96x96",
}
UNDEFINED = -1.0  # COCO's word for "no such object in the ground truth, so there is nothing to average"


@dataclass(frozen=True)
class Group:
    """The figures of one class or of one object size; -1 where the ground truth has no such object."""

    name: str
    ap: float  # mean over the IoU thresholds 0.50, 0.55, ..., 0.95
    ap50: float
    ap75: float
    ar100: float  # mean recall over the same thresholds, with at most 100 detections an image and class
    num_gt: int  # objects in the ground truth, crowds not counted


@dataclass(frozen=True)
class AveragePrecision:
    """The result of one evaluation. Figures lie in [0, 1], or are -1 where the ground truth has no such object."""

    stats: tuple[float, ...]  # 12 floats, named by `STATS`
    per_class: list[Group]  # in the order of the category ids, which is the order of the labels
    per_size: list[Group]  # small, medium, large
    num_images: int
    num_gt: int  # crowds not counted
    num_detections: int

    ap = property(lambda self: self.stats[0], doc="AP, mean over IoU 0.50 to 0.95: the figure that papers report.")
    ap50 = property(lambda self: self.stats[1], doc="AP at IoU 0.50.")
    ap75 = property(lambda self: self.stats[2], doc="AP at IoU 0.75.")
    ap_small = property(lambda self: self.stats[3], doc="AP of objects of at most 32x32 pixels.")
    ap_medium = property(lambda self: self.stats[4], doc="AP of objects between 32x32 and 96x96 pixels.")
    ap_large = property(lambda self: self.stats[5], doc="AP of objects of at least 96x96 pixels.")
    ar1 = property(lambda self: self.stats[6], doc="Mean recall with one detection an image and class.")
    ar10 = property(lambda self: self.stats[7], doc="Mean recall with ten detections an image and class.")
    ar100 = property(lambda self: self.stats[8], doc="Mean recall with a hundred detections an image and class.")
    ar_small = property(lambda self: self.stats[9], doc="Mean recall of objects of at most 32x32 pixels.")
    ar_medium = property(lambda self: self.stats[10], doc="Mean recall of objects between 32x32 and 96x96 pixels.")
    ar_large = property(lambda self: self.stats[11], doc="Mean recall of objects of at least 96x96 pixels.")

    def table(self) -> str:
        """The whole result as aligned plain text: the headline, then by size, then by class."""
        headline = (("AP", self.ap), ("AP50", self.ap50), ("AP75", self.ap75))
        recalls = (("AR1", self.ar1), ("AR10", self.ar10), ("AR100", self.ar100))
        sizes = [(SIZES[group.name], group) for group in self.per_size]
        classes = [(" ".join(group.name.split()), group) for group in self.per_class]
        width = max(_columns(text) for text, _ in [*sizes, *classes])
        counts = ((self.num_images, "image"), (self.num_gt, "object"), (self.num_detections, "detection"))
        lines = [
            ", ".join(_count(number, noun) for number, noun in counts),
            "",
            "   ".join(f"{name} {_figure(value)}" for name, value in (*headline, *recalls)),
        ]
        for title, rows in (("size", sizes), ("class", classes)):
            if rows:
                lines += ["", _row(title, ("AP", "AP50", "AP75", "AR100", "objects"), width)]
                lines += [_row(text, _cells(group), width) for text, group in rows]
        lines += [
            "",
            "AP: mean over the IoU thresholds 0.50 to 0.95. AR100: mean recall over the same, at most 100 detections",
            "an image and class.",
        ]
        if any(value < 0 for value in self.stats) or any(group.num_gt == 0 for group in self.per_class):
            lines.append('"-": the ground truth has no such object.')
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values; undefined figures are None."""

        def known(value: float) -> float | None:
            return None if value < 0 else value

        def group_dict(group: Group) -> dict[str, Any]:
            figures = {name: known(getattr(group, name)) for name in ("ap", "ap50", "ap75", "ar100")}
            return {"name": group.name, **figures, "num_gt": group.num_gt}

        return {
            **{name: known(value) for name, value in zip(STATS, self.stats, strict=True)},
            "num_images": self.num_images,
            "num_gt": self.num_gt,
            "num_detections": self.num_detections,
            "per_size": [group_dict(group) for group in self.per_size],
            "per_class": [group_dict(group) for group in self.per_class],
        }


def evaluate_detections(ground_truth: Path | str | dict, detections: Path | str | list[dict]) -> AveragePrecision:
    """Score detections against ground truth, by COCO's rules for boxes.

    Args:
        ground_truth: COCO JSON, a file or its content: `images`, `annotations`, `categories`. Boxes are xywh in pixels;
            without `area` an object's size is w * h, without `iscrowd` it is no crowd. Every box counts, as in COCO's
            own code: one of no size is an object that nobody can find. Never changed.
        detections: COCO results, a file or its content: a list of `{"image_id", "category_id", "bbox": [x, y, w, h],
            "score"}`. May be empty. Never changed.

    Returns:
        The twelve figures of COCO, by class and by size as well.

    Raises:
        DataError: either side is not what it should be; the text names the file and the first wrong entry.

    Source: COCO's evaluation code, run unchanged.
    """
    return _score(*_read(ground_truth, "ground truth"), *_read(detections, "detections"))


def evaluate(
    model: torch.nn.Module,
    dataset: CocoDataset,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
    workers: int = 0,
) -> AveragePrecision:
    """Run the model over a data set and score what it finds against the data set's own annotation file.

    Args:
        model: a detector; its `score_threshold` and `nms_threshold` are used as they stand. YOLOX's published figures
            were made with 0.001 and 0.65.
        dataset: pictures and annotations; only its own records are scored, so a part of a split may be given.
        batch_size: pictures that go through the network together.
        device: where to compute; None means where the model is.
        progress: show a bar.
        workers: processes that read pictures ahead; worth it where a GPU would wait for them.

    Raises:
        DataError: the classes of model and data set differ, or the annotation file is not usable.
    """
    return score_rows(dataset, predict_dataset(model, dataset, batch_size, device, progress, workers))


def evaluate_without_classes(
    model: torch.nn.Module, dataset: CocoDataset, batch_size: int = 8, progress: bool = True
) -> AveragePrecision:
    """Judge a detector as if there were one class: does it find the objects, whatever it calls them?

    Every object and every detection gets the same class, and boxes suppress each other across classes: otherwise an
    object that two slots name differently would keep a box of each name, and one of them would be a false alarm.

    Args:
        model: a detector; its `class_agnostic` is set while it predicts, and is as before afterwards.
        dataset, batch_size, progress: as for `evaluate`.

    Raises:
        DataError: as for `evaluate`.

    Source: chapter 08.
    """
    before, model.class_agnostic = model.class_agnostic, True
    try:
        rows = predict_dataset(model, dataset, batch_size, progress=progress)
    finally:
        model.class_agnostic = before
    truth = annotations_of(dataset)
    one = {"category_id": dataset.category_ids[0]}
    truth["categories"] = [each for each in truth["categories"] if each["id"] == one["category_id"]]
    truth["annotations"] = [entry | one for entry in truth["annotations"]]
    rows = [row | one for row in rows]
    return _score(str(dataset.annotations_path), truth, "the model's detections", rows)


def score_rows(dataset: CocoDataset, rows: list[dict[str, Any]]) -> AveragePrecision:
    """Score the rows of `predict_dataset` against the data set's own annotation file; only its own records count."""
    return _score(str(dataset.annotations_path), annotations_of(dataset), "the model's detections", rows)


def annotations_of(dataset: CocoDataset) -> dict[str, Any]:
    """The content of a data set's annotation file, as far as it speaks of the pictures that are in the data set."""
    whole = read_json(dataset.annotations_path)
    ids = {record.id for record in dataset.records}
    return {
        "images": [image for image in whole["images"] if image["id"] in ids],
        "annotations": [entry for entry in whole.get("annotations", []) if entry["image_id"] in ids],
        "categories": whole["categories"],
    }


def coco_evaluation(gt_name: str, gt: Any, dt_name: str, dt: Any, ious: Sequence[float] | None = None) -> COCOeval:
    """COCO's own evaluation of detections, run and accumulated, over checked input.

    Args:
        gt_name, dt_name: what an error calls the two sides.
        gt, dt: content of a COCO annotation file and of a COCO result file.
        ious: at which IoU a box counts as found; None: COCO's ten thresholds.

    Raises:
        DataError: either side is not what it should be.
    """
    images, categories, annotations = _check_ground_truth(gt_name, gt)
    rows = _check_detections(dt_name, dt, gt_name, images, categories)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
        evaluation = COCOeval(
            _coco(images, categories, annotations),
            _coco(images, categories, rows),
            iouType="bbox",
        )
        if ious is not None:
            evaluation.params.iouThrs = np.array(ious)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _score(gt_name: str, gt: Any, dt_name: str, dt: Any) -> AveragePrecision:
    images, categories, annotations = _check_ground_truth(gt_name, gt)
    evaluation = coco_evaluation(gt_name, gt, dt_name, dt)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()

    counted = [annotation for annotation in annotations if not annotation["iscrowd"]]
    objects_of = Counter(annotation["category_id"] for annotation in counted)
    per_class = [
        _group(evaluation, categories[category_id], objects_of[category_id], category=index)
        for index, category_id in enumerate(evaluation.params.catIds)
    ]
    per_size = []
    for name in SIZES:
        index = evaluation.params.areaRngLbl.index(name)
        low, high = evaluation.params.areaRng[index]
        num_gt = sum(low <= annotation["area"] <= high for annotation in counted)
        per_size.append(_group(evaluation, name, num_gt, area=index))
    return AveragePrecision(
        stats=tuple(float(value) for value in evaluation.stats),
        per_class=per_class,
        per_size=per_size,
        num_images=len(images),
        num_gt=len(counted),
        num_detections=len(dt),
    )


def _group(evaluation: COCOeval, name: str, num_gt: int, category: int | None = None, area: int = 0) -> Group:
    """The figures of one class (all sizes) or one size (all classes), with at most 100 detections."""
    classes = slice(None) if category is None else slice(category, category + 1)
    precision = evaluation.eval["precision"][:, :, classes, area, -1]  # [10 IoU thresholds, 101 recalls, classes]
    recall = evaluation.eval["recall"][:, classes, area, -1]  # [10 IoU thresholds, classes]
    thresholds = evaluation.params.iouThrs

    def at(iou: float) -> np.ndarray:
        return precision[np.isclose(thresholds, iou)]

    return Group(name, _mean(precision), _mean(at(0.5)), _mean(at(0.75)), _mean(recall), num_gt)


def _mean(values: np.ndarray) -> float:
    defined = values[values > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def _coco(images: dict, categories: dict, entries: list[dict]) -> COCO:
    """A COCO index over fresh entries, numbered from 1: pycocotools takes the id 0 for "not matched"."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in images],
        "categories": [{"id": category_id, "name": name} for category_id, name in categories.items()],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(entries, start=1)],
    }
    coco.createIndex()
    return coco


def _read(source: Path | str | dict | list, name: str) -> tuple[str, Any]:
    if isinstance(source, (str, Path)):
        return str(source), read_json(source)
    return name, source


def _check_ground_truth(name: str, value: Any) -> tuple[dict, dict, list[dict]]:
    """The ground truth as {image id: file name}, {category id: name} and clean annotations."""
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        raise DataError(f'{name}: a COCO annotation file is an object with a list "images"; this is something else.')
    for key in ("annotations", "categories"):
        if not isinstance(value.get(key, []), list):
            raise DataError(f'{name}: "{key}" must be a list, not {type(value[key]).__name__}.')

    def by_id(key: str, text_key: str) -> dict:
        known: dict = {}
        for position, entry in enumerate(value.get(key, [])):
            entry_id = entry.get("id") if isinstance(entry, dict) else None
            if not isinstance(entry_id, numbers.Integral):
                raise DataError(f'{name}: {key}[{position}] has no integer "id"; give it one of its own.')
            if entry_id in known:
                raise DataError(f'{name}: the id {entry_id!r} stands twice in "{key}"; give every entry its own.')
            known[entry_id] = str(entry.get(text_key, entry_id))
        return known

    images, categories = by_id("images", "file_name"), by_id("categories", "name")
    annotations = []
    for position, entry in enumerate(value.get("annotations", [])):
        where = f"{name}: annotations[{position}]"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is not an object.")
        where += f" (id {entry.get('id')!r}, image id {entry.get('image_id')!r})"
        bbox = _check_entry(where, entry, images, categories, name)
        area = entry.get("area")
        if area is None:
            area = bbox[2] * bbox[3]
        elif not is_finite(area):
            raise DataError(f"{where}: area {area!r} is not a finite number; leave it out to have width x height.")
        annotations.append(
            {
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "bbox": bbox,
                "area": float(area),
                "iscrowd": int(bool(entry.get("iscrowd"))),
            }
        )
    return images, categories, annotations


def _check_detections(name: str, value: Any, gt_name: str, images: dict, categories: dict) -> list[dict]:
    """The detections as clean rows."""
    if not isinstance(value, list):
        raise DataError(
            f"{name}: COCO results are a list of objects with image_id, category_id, bbox and score; "
            f"this is {'an object' if isinstance(value, dict) else type(value).__name__}."
        )
    rows = []
    for position, entry in enumerate(value):
        where = f"{name}: detection {position}"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is not an object with image_id, category_id, bbox and score.")
        where += f" (image id {entry.get('image_id')!r})"
        bbox = _check_entry(where, entry, images, categories, gt_name)
        if bbox[2] < 0 or bbox[3] < 0:
            raise DataError(
                f"{where}: bbox {entry['bbox']!r} has a negative size. "
                "COCO boxes are [x, y, width, height], not two corners."
            )
        score = entry.get("score")
        if not is_finite(score):
            raise DataError(f"{where}: the score must be a finite number, not {score!r}.")
        rows.append(
            {
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "bbox": bbox,
                "area": bbox[2] * bbox[3],
                "iscrowd": 0,
                "score": float(score),
            }
        )
    return rows


def _check_entry(where: str, entry: dict, images: dict, categories: dict, gt_name: str) -> list[float]:
    """The box of an annotation or a detection, once its image, its category and its four numbers are in order."""
    for key, known, things in (("image_id", images, "images"), ("category_id", categories, "categories")):
        if key not in entry:
            raise DataError(f'{where}: "{key}" is missing.')
        if not isinstance(entry[key], Hashable) or entry[key] not in known:
            examples = ", ".join(repr(each) for each in list(known)[:5]) + (", ..." if len(known) > 5 else "")
            raise DataError(
                f"{where}: {key} {entry[key]!r} is not among the {len(known)} {things} of {gt_name} "
                f"({examples or 'none'}). Do both belong to the same data set?"
            )
    bbox = entry.get("bbox")
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4 or not all(is_finite(each) for each in bbox):
        raise DataError(f"{where}: bbox must be four finite numbers [x, y, width, height], not {bbox!r}.")
    return [float(each) for each in bbox]


def _figure(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cells(group: Group) -> tuple[str, ...]:
    return (*(_figure(value) for value in (group.ap, group.ap50, group.ap75, group.ar100)), f"{group.num_gt:,}")


def _row(title: str, cells: tuple[str, ...], width: int) -> str:
    padded = title + " " * (width - _columns(title))
    return f"{padded}  {cells[0]:>5}  {cells[1]:>5}  {cells[2]:>5}  {cells[3]:>5}  {cells[4]:>7}"


def _columns(text: str) -> int:
    """Columns that a text takes on a terminal: East Asian characters are two wide, accents that combine take none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)
