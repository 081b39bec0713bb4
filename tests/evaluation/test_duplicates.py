"""Duplicates: which detection speaks of which object, which of them say it again, and how that is told."""

from __future__ import annotations

import json

import pytest
import torch

import minidet
from minidet.data.coco import load_split
from minidet.data.shapes import ShapesConfig, make_shapes
from minidet.errors import DataError, MinidetError
from minidet.evaluation.average_precision import score_rows
from minidet.evaluation.duplicates import Duplicates, count_duplicates, count_rows, measure_duplicates
from minidet.evaluation.predict import predict_dataset
from tests.explore.pictures import NANO

SQUARE = [0.0, 0.0, 10.0, 10.0]
IOU_08 = [0.0, 0.0, 10.0, 8.0]  # with SQUARE
IOU_05 = [0.0, 0.0, 10.0, 5.0]
IOU_04 = [0.0, 0.0, 10.0, 4.0]


class Answers(torch.nn.Module):
    """Says every object so many times, in the order in which the pictures come."""

    def __init__(self, data, times: int):
        super().__init__()
        self.data, self.times, self.seen = data, times, 0
        self.class_names, self.num_classes = getattr(data, "class_names", []), len(getattr(data, "class_names", []))

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        predictions = []
        for _ in images:
            target = self.data.target(self.seen)
            boxes, labels = target["boxes"].repeat(self.times, 1), target["labels"].repeat(self.times)
            predictions.append({"boxes": boxes, "labels": labels, "scores": torch.linspace(0.9, 0.6, len(labels))})
            self.seen += 1
        return predictions


def found(*rows: tuple[list[float], float, int]) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        "scores": torch.tensor([score for _, score, _ in rows]),
        "labels": torch.tensor([label for _, _, label in rows], dtype=torch.int64),
    }


def truth(*rows: tuple[list[float], int]) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([box for box, _ in rows]).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor([label for _, label in rows], dtype=torch.int64)}


def test_two_boxes_on_one_object_are_a_hit_and_a_duplicate():
    result = count_duplicates([found((SQUARE, 0.9, 0), (IOU_08, 0.8, 0))], [truth((SQUARE, 0))])
    assert result == Duplicates(per_object=1.0, objects_hit=1, objects=1, histogram=(0, 1))


def test_the_surest_is_the_hit_wherever_it_stands_and_however_well_it_fits():
    # were the exact box of score .3 the hit, the .5 and the .9 would both be duplicates; of .9 only the .5 is one
    rows = (SQUARE, 0.3, 0), (IOU_08, 0.9, 0), (IOU_08, 0.5, 0)
    assert count_duplicates([found(*rows)], [truth((SQUARE, 0))]).histogram == (0, 1)
    assert count_duplicates([found(*rows[::-1])], [truth((SQUARE, 0))]).histogram == (0, 1)


def test_one_box_on_each_object_is_no_duplicate():
    objects = (SQUARE, 0), ([20.0, 0, 30, 10], 0), ([40.0, 0, 50, 10], 1)
    result = count_duplicates([found(*((box, 0.5, label) for box, label in objects))], [truth(*objects)])
    assert result == Duplicates(0.0, 3, 3, (3,))


def test_of_near_objects_of_one_class_a_box_speaks_of_the_one_that_it_overlaps_most():
    # objects 0 to 10 and 2 to 12, IoU 2/3. The box from 1.5 to 11.5 has IoU 17/23 with the first and 19/21 with the
    # second, so it is the second's hit and not the first's duplicate.
    objects = (SQUARE, 0), ([2.0, 0, 12, 10], 0)
    between = [1.5, 0.0, 11.5, 10.0]
    result = count_duplicates([found((SQUARE, 0.9, 0), (between, 0.8, 0))], [truth(*objects)])
    assert result == Duplicates(0.0, 2, 2, (2,))
    # Without the second object it says the first again.
    assert count_duplicates([found((SQUARE, 0.9, 0), (between, 0.8, 0))], [truth(objects[0])]).histogram == (0, 1)


def test_a_box_of_another_class_speaks_of_no_object_of_this_one():
    assert count_duplicates([found((SQUARE, 0.9, 0), (SQUARE, 0.8, 1))], [truth((SQUARE, 0))]).histogram == (1,)
    # an object of another class in the same place does not draw it away either
    objects = truth(([0.0, 0, 10, 9], 0), (SQUARE, 1))
    assert count_duplicates([found((SQUARE, 0.9, 0), (SQUARE, 0.8, 0))], [objects]) == Duplicates(1.0, 1, 2, (0, 1))


@pytest.mark.parametrize(("score", "duplicates"), [(0.4, 1), (0.4 - 1e-6, 0), (0.8, 1)])
def test_half_of_the_hits_score_still_counts_and_less_does_not(score, duplicates):
    result = count_duplicates([found((SQUARE, 0.8, 0), (SQUARE, score, 0))], [truth((SQUARE, 0))])
    assert result.per_object == duplicates


def test_another_share_of_the_score_can_be_asked_for():
    prediction = found((SQUARE, 0.8, 0), (SQUARE, 0.7, 0), (SQUARE, 0.3, 0), (SQUARE, 0.001, 0))
    counted = [count_duplicates([prediction], [truth((SQUARE, 0))], score_share=share) for share in (1, 0.5, 0.25, 0)]
    assert [result.per_object for result in counted] == [0, 1, 2, 3]


@pytest.mark.parametrize(("box", "objects_hit"), [(IOU_05, 1), (IOU_04, 0)])
def test_an_iou_of_one_half_still_counts_and_less_does_not(box, objects_hit):
    assert count_duplicates([found((box, 0.9, 0))], [truth((SQUARE, 0))]).objects_hit == objects_hit


def test_another_iou_can_be_asked_for():
    prediction = found((SQUARE, 0.9, 0), (IOU_08, 0.9, 0), (IOU_04, 0.9, 0))
    counted = [count_duplicates([prediction], [truth((SQUARE, 0))], iou) for iou in (0.9, 0.6, 0.3)]
    assert [result.per_object for result in counted] == [0, 1, 2]


def test_without_objects_or_detections_there_is_nothing_to_average():
    nothing = Duplicates(-1.0, 0, 0, ())
    assert count_duplicates([], []) == nothing
    assert count_duplicates([found((SQUARE, 0.9, 0))], [truth()]) == nothing
    assert count_duplicates([found()], [truth((SQUARE, 0))]) == Duplicates(-1.0, 0, 1, ())


def test_pictures_are_counted_together_and_do_not_meet():
    predictions = [found((SQUARE, 0.9, 0)), found((SQUARE, 0.2, 0), (SQUARE, 0.2, 0), (SQUARE, 0.1, 0)), found()]
    result = count_duplicates(predictions, [truth((SQUARE, 0))] * 3)
    assert result == Duplicates(per_object=1.0, objects_hit=2, objects=3, histogram=(1, 0, 1))


def random_case(seed: int) -> tuple[list[dict], list[dict]]:
    """Crowds of three classes with detections around them, scores in steps of .1 so that there are ties."""
    random = torch.Generator().manual_seed(seed)
    predictions, targets = [], []
    for _ in range(6):
        count = int(torch.randint(0, 25, (), generator=random))
        corner = torch.rand(count, 2, generator=random) * 30
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=random) * 20], dim=1)
        targets.append({"boxes": boxes, "labels": torch.randint(0, 3, (count,), generator=random)})
        near = boxes.repeat(6, 1) + torch.randn(6 * count, 4, generator=random)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2])
        scores = torch.randint(1, 11, (len(near),), generator=random) / 10
        labels = torch.where(torch.rand(len(near), generator=random) < 0.8, targets[-1]["labels"].repeat(6), 1)
        predictions.append({"boxes": near, "scores": scores, "labels": labels})
    return predictions, targets


def iou_by_hand(a: list[float], b: list[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("seed", range(8))
def test_loops_over_everything_count_the_same(seed):
    predictions, targets = random_case(seed)
    counts = []
    for prediction, target in zip(predictions, targets, strict=True):
        objects = list(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True))
        scores_of: dict[int, list[float]] = {}
        for box, score, label in zip(*(prediction[key].tolist() for key in ("boxes", "scores", "labels")), strict=True):
            ious = [(iou_by_hand(box, gt_box), -n) for n, (gt_box, gt) in enumerate(objects) if gt == label]
            if ious and max(ious)[0] >= 0.5:
                scores_of.setdefault(-max(ious)[1], []).append(score)
        for scores in scores_of.values():
            hit, *others = sorted(scores, reverse=True)
            counts.append(sum(score >= 0.5 * hit for score in others))
    result = count_duplicates(predictions, targets)
    assert result.objects_hit == len(counts) > 5
    assert result.per_object == pytest.approx(sum(counts) / len(counts))
    assert list(result.histogram) == [counts.count(n) for n in range(max(counts) + 1)]
    assert result.objects == sum(len(target["boxes"]) for target in targets)


def test_neither_the_order_of_detections_nor_the_scale_of_scores_plays_a_part():
    predictions, targets = random_case(0)
    order = [torch.randperm(len(each["scores"])) for each in predictions]
    shuffled = [{k: v[rows] for k, v in each.items()} for each, rows in zip(predictions, order, strict=True)]
    fainter = [{**each, "scores": each["scores"] / 8} for each in predictions]
    assert count_duplicates(shuffled, targets) == count_duplicates(predictions, targets)
    assert count_duplicates(fainter, targets) == count_duplicates(predictions, targets)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(DataError, match="predictions for 1 pictures, but targets for 2"):
        count_duplicates([found()], [truth(), truth()])
    with pytest.raises(DataError, match=r"predictions\[1\] has a box or a score that is not finite"):
        count_duplicates([found(), found((SQUARE, float("nan"), 0))], [truth((SQUARE, 0))] * 2)
    for thresholds in ({"iou_threshold": 0}, {"iou_threshold": 1.1}, {"score_share": -0.1}, {"score_share": 2}):
        with pytest.raises(MinidetError, match="above 0 and at most 1"):
            count_duplicates([], [], **thresholds)


def test_the_table_counts_objects_by_their_duplicates():
    lines = Duplicates(28 / 1200, 1200, 1500, (1180, 16, 2, 0, 2)).table().splitlines()
    assert lines[0] == "1,500 objects, 1,200 found, 28 duplicates"  # 16 + 2 * 2 + 2 * 4 = 28
    assert lines[2] == "duplicates per object found 0.023"
    assert lines[5].split() == ["0", "1,180", "0.983"]
    assert len({len(line) for line in lines[4:]}) == 1
    assert len(lines) == 4 + 1 + 5


def test_the_table_puts_many_duplicates_into_one_row_and_says_when_nothing_was_found():
    long = Duplicates(1.0, 10, 10, (8, 0, 0, 0, 0, 1, 0, 0, 1)).table().splitlines()
    assert long[-1].split() == ["5", "or", "more", "2", "0.200"]
    assert "found -" in Duplicates(-1.0, 0, 3, ()).table()
    assert Duplicates(-1.0, 0, 1, ()).table().startswith("1 object, 0 found, 0 duplicates")


def test_the_result_is_plain_json_and_an_undefined_mean_is_none():
    result = Duplicates(0.5, 2, 3, (1, 1))
    expected = {"per_object": 0.5, "objects_hit": 2, "objects": 3, "histogram": [1, 1]}
    assert json.loads(json.dumps(result.to_dict())) == expected
    assert Duplicates(-1.0, 0, 3, ()).to_dict()["per_object"] is None


def test_a_trained_model_says_more_objects_twice_without_suppression(tmp_path):
    make_shapes(tmp_path / "shapes", ShapesConfig(train=0, val=8, test=0), progress=False)
    data = load_split(tmp_path / "shapes", "val")
    model = minidet.load_model(NANO)
    with_nms = measure_duplicates(model, data, batch_size=3, progress=False)
    model.nms_threshold = 1.0
    rows = predict_dataset(model, data, progress=False)
    without = count_rows(data, rows)
    assert without.objects == with_nms.objects == sum(len(data.target(n)["labels"]) for n in range(8))
    assert with_nms.per_object < 0.1 < 1 < without.per_object
    assert without == measure_duplicates(model, data, progress=False)
    assert score_rows(data, rows).num_gt == without.objects


def test_a_model_that_answers_with_the_truth_has_no_duplicates_and_twice_the_truth_one_each(tmp_path):
    make_shapes(tmp_path / "shapes", ShapesConfig(train=0, val=5, test=0, crowd_share=0), progress=False)
    data = load_split(tmp_path / "shapes", "val")
    model = Answers(data, times=1)
    objects = sum(len(data.target(n)["labels"]) for n in range(5))
    assert measure_duplicates(model, data, batch_size=2, progress=False) == Duplicates(
        0.0, objects, objects, (objects,)
    )
    twice = measure_duplicates(Answers(data, times=2), data, batch_size=2, progress=False)
    assert twice == Duplicates(1.0, objects, objects, (0, objects))


def test_a_wrong_threshold_is_refused_before_any_work(tmp_path):
    with pytest.raises(MinidetError, match="iou_threshold is 0"):
        measure_duplicates(Answers([], times=1), None, iou_threshold=0)
