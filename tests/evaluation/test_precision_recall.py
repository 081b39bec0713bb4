"""Precision and recall: COCO's own matching, a curve whose mean is AP50, and figures that can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import minidet
from minidet.data.coco import load_split
from minidet.data.shapes import ShapesConfig, make_shapes
from minidet.evaluation.average_precision import annotations_of, evaluate, evaluate_detections
from minidet.evaluation.precision_recall import RECALLS, precision_recall
from minidet.evaluation.predict import predict_dataset

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def row(image_id: int, category_id: int, bbox: list[float], score: float) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def truth(*objects: tuple[int, int, list[float]], crowds: tuple[int, ...] = ()) -> dict:
    return {
        "images": [{"id": 1}, {"id": 2}],
        "categories": CATEGORIES,
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": int(i in crowds)}
            for i, (image, category, box) in enumerate(objects)
        ],
    }


def test_a_ranking_counted_by_hand():
    gt = truth((1, 3, [0, 0, 10, 10]), (1, 3, [50, 0, 10, 10]), (2, 3, [0, 0, 10, 10]))
    result = precision_recall(
        gt,
        [
            row(1, 3, [0, 0, 10, 9], 0.9),  # finds the first
            row(1, 3, [0, 0, 10, 10], 0.8),  # the same object again: a false alarm
            row(2, 3, [30, 30, 10, 10], 0.7),  # nothing there
            row(2, 3, [1, 0, 10, 10], 0.6),  # finds the third
            row(2, 7, [0, 0, 10, 10], 0.5),  # a dog, where none is
        ],
    )
    cat, dog = result.per_class
    assert cat.hits.tolist() == [True, False, False, True]
    assert cat.recall.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert cat.precision.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 2])
    # COCO reads the curve at 0, .01, ..., 1: up to a third precision 1 (34 places), up to two thirds 1/2 (33), then 0.
    assert cat.ap50 == pytest.approx((34 * 1 + 33 * 0.5) / 101)
    assert dog.num_gt == 0 and dog.ap50 == -1 and dog.hits.tolist() == [False]

    assert [cat.at(t) for t in (0.95, 0.9, 0.65, 0.0)] == [(0, 0, 3), (1, 0, 2), (1, 2, 2), (2, 2, 1)]
    assert result.all_classes.hits.tolist() == [True, False, False, True, False]
    assert result.all_classes.num_gt == 3 and result.all_classes.ap50 == cat.ap50
    assert result.pictures[1].gt.tolist() == [0, -1]
    assert result.pictures[2].gt.tolist() == [-1, 0, -1]
    assert result.pictures[2].labels.tolist() == [0, 0, 1]
    assert result.pictures[2].boxes[1].tolist() == [1, 0, 11, 10]


def test_a_detection_on_a_crowd_counts_neither_way():
    gt = truth((1, 3, [0, 0, 100, 100]), (1, 3, [200, 0, 10, 10]), crowds=(0,))
    result = precision_recall(gt, [row(1, 3, [0, 0, 30, 30], 0.9), row(1, 3, [200, 0, 10, 10], 0.8)])
    assert result.per_class[0].hits.tolist() == [True] and result.per_class[0].num_gt == 1
    assert result.pictures[1].gt.tolist() == [1]


def test_nothing_found_and_nothing_to_find():
    nothing = precision_recall(truth((1, 3, [0, 0, 10, 10])), [])
    assert nothing.all_classes.at(0.5) == (0, 0, 1) and nothing.all_classes.ap50 == 0
    empty = precision_recall(truth(), [])
    assert empty.all_classes.ap50 == -1 and empty.all_classes.at(0.5) == (0, 0, 0)


def test_the_curve_means_what_evaluate_says_on_random_scenes():
    random = np.random.default_rng(0)
    for _ in range(20):
        boxes = np.round(np.column_stack([random.uniform(0, 80, (30, 2)), random.uniform(5, 40, (30, 2))]), 3)
        images, classes = random.integers(1, 3, 30).tolist(), random.choice([3, 7], 30).tolist()
        gt = truth(*zip(images, classes, boxes.tolist(), strict=True), crowds=(4, 9))
        rows = [
            row(images[i], classes[i], np.round(boxes[i] + random.uniform(0, 6, 4), 3).tolist(), round(score, 1))
            for i, score in zip(random.integers(0, 30, 60).tolist(), random.uniform(0, 1, 60).tolist(), strict=True)
        ]
        result, wanted = precision_recall(gt, rows), evaluate_detections(gt, rows)
        assert result.all_classes.ap50 == pytest.approx(wanted.ap50, abs=1e-12)
        for ranking, group in zip(result.per_class, wanted.per_class, strict=True):
            assert ranking.ap50 == pytest.approx(group.ap50, abs=1e-12)
            best = [ranking.precision[ranking.recall >= recall].max(initial=0) for recall in RECALLS]
            np.testing.assert_allclose(ranking.envelope, best, atol=1e-12)


def test_a_trained_models_curve_has_the_ap50_that_evaluate_reports(tmp_path):
    make_shapes(tmp_path / "shapes", ShapesConfig(train=0, val=8, test=0), progress=False)
    data = load_split(tmp_path / "shapes", "val")
    model = minidet.load_model(REPOSITORY / "chapters" / "weights" / "yolox-nano-shapes.safetensors")
    result = precision_recall(annotations_of(data), predict_dataset(model, data, progress=False))
    wanted = evaluate(model, data, progress=False)
    assert result.all_classes.ap50 == pytest.approx(wanted.ap50, abs=1e-12)
    assert [r.ap50 for r in result.per_class] == pytest.approx([g.ap50 for g in wanted.per_class], abs=1e-12)
