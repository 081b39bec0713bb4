"""COCO AP: the published figures, a case worked out by hand, and what wrong input gets for an answer."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from minidet.errors import DataError
from minidet.evaluation.average_precision import (
    STATS,
    evaluate,
    evaluate_detections,
    evaluate_without_classes,
    predict_dataset,
)

PUBLISHED = {
    "instances_val2014_100.json": (
        "0.504581 0.696973 0.572982 0.585626 0.519400 0.501398 0.386813 0.593680 0.595353 0.639811 0.566421 0.564291"
    ),
    "instances_val2014_100_nocrowd_boxarea.json": (
        "0.503647 0.696973 0.571667 0.593252 0.557991 0.489363 0.386813 0.593680 0.595353 0.654764 0.603130 0.553744"
    ),
}


def ground_truth() -> dict:
    """Three objects of 100 x 100 pixels in two pictures; neither area nor iscrowd nor info, as many tools write it."""
    return {
        "images": [{"id": 7}, {"id": 3}],
        "categories": [{"id": 5, "name": "disc"}],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 5, "bbox": [0, 0, 100, 100]},
            {"id": 1, "image_id": 7, "category_id": 5, "bbox": [200, 0, 100, 100]},
            {"id": 2, "image_id": 3, "category_id": 5, "bbox": [0, 0, 100, 100]},
        ],
    }


def detections() -> list[dict]:
    """One exact, one beside everything, one whose IoU is 0.62; the third object is never found."""
    return [
        {"image_id": 7, "category_id": 5, "bbox": [0, 0, 100, 100], "score": 0.9},
        {"image_id": 3, "category_id": 5, "bbox": [300, 300, 50, 50], "score": 0.8},
        {"image_id": 7, "category_id": 5, "bbox": [200, 0, 100, 62], "score": 0.7},
    ]


def changed(rows: list[dict], position: int, **values: object) -> list[dict]:
    rows[position] |= values
    return rows


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_twelve_published_figures_come_out_to_six_digits(shared_data: Path, name: str):
    folder = shared_data / "eval_reference"
    result = evaluate_detections(folder / name, folder / "instances_val2014_fakebbox100_results.json")
    assert " ".join(f"{value:.6f}" for value in result.stats) == PUBLISHED[name]
    assert [group.ap for group in result.per_size] == pytest.approx(result.stats[3:6], abs=1e-12)
    assert [group.ar100 for group in result.per_size] == pytest.approx(result.stats[9:12], abs=1e-12)
    defined = [group.ap for group in result.per_class if group.num_gt]
    assert sum(defined) / len(defined) == pytest.approx(
        result.ap, abs=1e-12
    )  # AP is the mean over the classes that occur


def test_a_small_case_gives_what_the_definition_gives_by_hand():
    """Precision is read at the 101 recalls 0, 0.01, ..., 1; 34 of them are at most 1/3, 67 are at most 2/3.

    IoU 0.50, 0.55, 0.60: hit, miss, hit. Precision 1 up to recall 1/3, then 2/3 up to recall 2/3, which makes
    (34 + 33 * 2/3) / 101 = 56/101.
    The seven stricter ones: hit, miss, miss. Precision 1 up to recall 1/3: 34/101.
    Large only: misses that are not large themselves do not count, so it is 67/101 three times and 34/101 seven times.
    """
    result = evaluate_detections(ground_truth(), detections())
    expected = {
        "ap": (3 * 56 + 7 * 34) / 1010,
        "ap50": 56 / 101,
        "ap75": 34 / 101,
        "ap_small": -1,
        "ap_medium": -1,
        "ap_large": (3 * 67 + 7 * 34) / 1010,
        "ar1": 1 / 3,  # the surest of each picture: one hit among three objects
        "ar10": (3 * 2 / 3 + 7 / 3) / 10,
        "ar100": (3 * 2 / 3 + 7 / 3) / 10,
        "ar_small": -1,
        "ar_medium": -1,
        "ar_large": (3 * 2 / 3 + 7 / 3) / 10,
    }
    assert dict(zip(STATS, result.stats, strict=True)) == pytest.approx(expected, abs=1e-9)
    assert {name: getattr(result, name) for name in STATS} == pytest.approx(expected, abs=1e-9)
    (disc,) = result.per_class
    assert (disc.ap, disc.ap50, disc.ap75) == pytest.approx((406 / 1010, 56 / 101, 34 / 101), abs=1e-9)
    assert disc.ar100 == pytest.approx(13 / 30)
    assert (disc.name, disc.num_gt) == ("disc", 3)
    assert [(group.name, group.num_gt) for group in result.per_size] == [("small", 0), ("medium", 0), ("large", 3)]


def test_the_annotation_id_0_counts_like_any_other():
    """pycocotools by itself would take a match with it for a miss."""
    annotations = ground_truth()
    annotations["annotations"] = annotations["annotations"][:1]
    assert evaluate_detections(annotations, detections()[:1]).ap == pytest.approx(1)


def test_a_crowd_is_no_object_and_no_trap():
    annotations = ground_truth()
    annotations["annotations"].append(
        {"id": 3, "image_id": 3, "category_id": 5, "bbox": [290, 290, 200, 200], "iscrowd": 1}
    )
    result = evaluate_detections(annotations, detections())
    assert result.num_gt == 3
    assert result.ap50 == pytest.approx(67 / 101)  # the miss lies in the crowd now, so only two hits are left to count


def test_classes_come_by_category_id_and_an_absent_one_is_undefined_and_not_zero():
    annotations = ground_truth()
    annotations["categories"] = [{"id": 9, "name": "z"}, {"id": 5, "name": "disc"}, {"id": 2, "name": "a"}]
    rows = [*detections(), {"image_id": 3, "category_id": 9, "bbox": [0, 0, 9, 9], "score": 0.5}]
    result = evaluate_detections(annotations, rows)
    assert [(group.name, group.num_gt) for group in result.per_class] == [("a", 0), ("disc", 3), ("z", 0)]
    assert [group.ap for group in result.per_class] == pytest.approx([-1, 406 / 1010, -1])
    assert result.ap == pytest.approx(406 / 1010)


def test_no_detections_are_zero_where_there_are_objects_and_undefined_where_there_are_none():
    result = evaluate_detections(ground_truth(), [])
    assert result.to_dict() | {"per_class": None, "per_size": None} == {
        **{name: 0.0 for name in STATS},
        **{name: None for name in ("ap_small", "ap_medium", "ar_small", "ar_medium")},
        **{"num_images": 2, "num_gt": 3, "num_detections": 0, "per_class": None, "per_size": None},
    }


@pytest.mark.parametrize(
    "annotations",
    [
        {"images": []},
        {"images": [], "annotations": [], "categories": []},
        {"images": [{"id": 1}]},
        {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "x"}]},
    ],
)
def test_ground_truth_without_objects_is_undefined_everywhere_and_no_crash(annotations: dict):
    result = evaluate_detections(annotations, [])
    assert result.stats == (-1.0,) * 12
    assert "AP -   AP50 -" in result.table()
    assert set(map(result.to_dict().get, STATS)) == {None}


def test_neither_side_is_changed_and_nothing_is_printed(capsys: pytest.CaptureFixture):
    gt, dt = ground_truth(), detections()
    gt_before, dt_before = copy.deepcopy(gt), copy.deepcopy(dt)
    evaluate_detections(gt, dt)
    assert (gt, dt) == (gt_before, dt_before)
    assert capsys.readouterr() == ("", "")


def test_files_and_their_contents_give_the_same(tmp_path: Path):
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth()))
    (tmp_path / "dt.json").write_text(json.dumps(detections()))
    from_files = evaluate_detections(tmp_path / "gt.json", str(tmp_path / "dt.json"))
    assert from_files == evaluate_detections(ground_truth(), detections())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"annotations": []}, "detections: COCO results are a list .* this is an object"),
        (
            changed(detections(), 1, image_id=8),
            r"detection 1 \(image id 8\): image_id 8 is not among the 2 images .*7, 3",
        ),
        (changed(detections(), 1, image_id="7"), "image_id '7' is not among"),
        (changed(detections(), 1, image_id=[7]), r"image_id \[7\] is not among"),
        (changed(detections(), 2, category_id=0), r"detection 2 \(image id 7\): category_id 0 is not among .* \(5\)"),
        (changed(detections(), 0, score=float("nan")), "detection 0 .*score must be a finite number, not nan"),
        (changed(detections(), 0, score="0.5"), "detection 0 .*score must be a finite number, not '0.5'"),
        (changed(detections(), 0, bbox=[0, 0, float("inf"), 1]), "bbox must be four finite numbers"),
        (changed(detections(), 0, bbox=[0, 0, 1]), "bbox must be four finite numbers"),
        (changed(detections(), 0, bbox=[100, 100, -5, 20]), "negative size.*not two corners"),
        ([{"image_id": 7, "category_id": 5, "bbox": [0, 0, 1, 1]}], "score must be a finite number, not None"),
        ([{"image_id": 7, "bbox": [0, 0, 1, 1], "score": 1.0}], '"category_id" is missing'),
        ([{"category_id": 5, "bbox": [0, 0, 1, 1], "score": 1.0}], '"image_id" is missing'),
        ([None], "detection 0 is not an object"),
    ],
)
def test_a_wrong_detection_is_named(rows: object, message: str):
    with pytest.raises(DataError, match=message):
        evaluate_detections(ground_truth(), rows)


def broken(section: str, position: int, **values: object) -> dict:
    annotations = ground_truth()
    annotations[section][position] |= values
    return annotations


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], 'an object with a list "images"'),
        ({"images": {}}, 'an object with a list "images"'),
        (ground_truth() | {"categories": None}, '"categories" must be a list'),
        (broken("images", 1, id=7), 'the id 7 stands twice in "images"'),
        (broken("categories", 0, id=None), r"categories\[0\] has no integer"),
        (broken("annotations", 1, image_id=4), r"annotations\[1\] \(id 1, image id 4\): image_id 4 is not among"),
        (broken("annotations", 1, category_id=4), r"\(id 1, image id 7\): category_id 4 is not among"),
        (broken("annotations", 2, bbox=[0, 0, float("nan"), 1]), r"\(id 2, image id 3\): bbox must be four finite"),
        (broken("annotations", 2, area="big"), "area 'big' is not a finite number"),
    ],
)
def test_a_fault_of_the_ground_truth_is_named(annotations: object, message: str):
    with pytest.raises(DataError, match=message):
        evaluate_detections(annotations, [])


def test_an_error_names_the_files(tmp_path: Path):
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth()))
    (tmp_path / "found.json").write_text(json.dumps(changed(detections(), 0, image_id=99)))
    with pytest.raises(DataError, match=r"found\.json: detection 0 .* of .*truth\.json"):
        evaluate_detections(tmp_path / "truth.json", tmp_path / "found.json")


def test_the_table_is_aligned_whatever_the_classes_are_called():
    annotations = ground_truth()
    names = ["disc", "traffic light", "two\nlines", "café", "x" * 40]
    annotations["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=5)]
    lines = evaluate_detections(annotations, detections()).table().splitlines()
    assert lines[0] == "2 images, 3 objects, 3 detections"
    assert lines[2] == "AP 0.402   AP50 0.554   AP75 0.337   AR1 0.333   AR10 0.433   AR100 0.433"
    start = lines.index(next(line for line in lines if line.startswith("size")))
    rows = [line for line in lines[start : start + 5 + 1 + len(names)] if line]
    assert len({len(line) for line in rows}) == 1
    assert rows[3].split() == ["large", "over", "96x96", "0.435", "0.663", "0.337", "0.433", "3"]
    assert rows[5].split() == ["disc", "0.402", "0.554", "0.337", "0.433", "3"]
    assert rows[7].split() == ["two", "lines", "-", "-", "-", "-", "0"]


def test_wide_characters_take_two_columns_of_the_table():
    annotations = ground_truth()
    annotations["categories"] = [{"id": 5, "name": "细胞"}, {"id": 6, "name": "cell"}]
    *_, wide, narrow = [
        line for line in evaluate_detections(annotations, []).table().splitlines() if "cell" in line or "细" in line
    ]
    assert len(wide) == len(narrow) - 2


# The model's side


@dataclass
class Record:
    id: int


class Pictures:
    """Five pictures whose first pixel holds their number, over an annotation file with six."""

    class_names = ("disc", "star")
    category_ids = (5, 8)

    def __init__(self, folder: Path):
        self.annotations_path = folder / "truth.json"
        self.records = [Record(10 + 3 * index) for index in range(5)]
        self.annotations_path.write_text(
            json.dumps(
                {
                    "images": [{"id": record.id} for record in [*self.records, Record(99)]],
                    "categories": [{"id": 8, "name": "star"}, {"id": 5, "name": "disc"}],
                    "annotations": [
                        {"id": index, "image_id": record.id, "category_id": (5, 8)[index % 2], "bbox": [2, 3, 10, 20]}
                        for index, record in enumerate([*self.records, Record(99)])
                    ],
                }
            )
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        return self.image(index), {}

    def image(self, index: int) -> torch.Tensor:
        return torch.full((3, 32, 40), index, dtype=torch.uint8)


class Oracle(nn.Module):
    """Reads a picture's number from its first pixel and finds its object; remembers how it was called."""

    def __init__(self, class_names: list[str] | None = None, num_classes: int = 2):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.class_names, self.num_classes = class_names, num_classes
        self.batches: list[int] = []
        self.kept: torch.Tensor | None = None  # as a detector keeps its grid

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert not any(module.training for module in self.modules())
        assert not torch.is_grad_enabled()
        assert all(image.dtype == torch.uint8 for image in images)
        self.batches.append(len(images))
        self.kept = torch.ones(3)
        return [
            {
                "boxes": torch.tensor([[2.0, 3.0, 12.0, 23.0], [0.0, 0.0, 1 / 3, 2 / 3]]),
                "scores": torch.tensor([0.9, 1 / 3]),
                "labels": torch.tensor([int(image[0, 0, 0]) % 2, 0]),
            }
            for image in images
        ]


def test_predictions_become_rows_with_the_data_sets_own_ids(tmp_path: Path):
    model = Oracle()
    rows = predict_dataset(model, Pictures(tmp_path), batch_size=2, progress=False)
    assert model.batches == [2, 2, 1]
    assert rows[:4] == [
        {"image_id": 10, "category_id": 5, "bbox": [2.0, 3.0, 10.0, 20.0], "score": 0.9},
        {"image_id": 10, "category_id": 5, "bbox": [0.0, 0.0, 0.333, 0.667], "score": 0.333333},
        {"image_id": 13, "category_id": 8, "bbox": [2.0, 3.0, 10.0, 20.0], "score": 0.9},
        {"image_id": 13, "category_id": 5, "bbox": [0.0, 0.0, 0.333, 0.667], "score": 0.333333},
    ]
    assert [row["image_id"] for row in rows[::2]] == [10, 13, 16, 19, 22]
    assert json.loads(json.dumps(rows)) == rows


def test_every_module_has_its_own_mode_back_even_after_a_failure(tmp_path: Path):
    model, data = Oracle().train(), Pictures(tmp_path)
    model.layer[1].eval()  # a frozen batch norm in a model that trains
    before = [module.training for module in model.modules()]
    predict_dataset(model, data, progress=False)
    assert [module.training for module in model.modules()] == before
    data.image = lambda index: 1 / 0
    with pytest.raises(ZeroDivisionError):
        predict_dataset(model, data, progress=False)
    assert [module.training for module in model.modules()] == before


def test_what_a_model_keeps_from_predicting_serves_in_training(tmp_path: Path):
    model = Oracle()
    predict_dataset(model, Pictures(tmp_path), progress=False)
    (model.layer[1].weight * model.kept).sum().backward()
    assert model.layer[1].weight.grad.tolist() == [1, 1, 1]


def test_a_model_that_finds_everything_scores_1_on_the_pictures_of_the_data_set(tmp_path: Path):
    """The sixth picture of the annotation file is not in the data set, so its object is not missed."""
    data = Pictures(tmp_path)
    result = evaluate(Oracle(), data, progress=False)
    assert (result.num_images, result.num_gt, result.num_detections) == (5, 5, 10)
    assert result.ap == pytest.approx(1)
    data.records = data.records[:2]
    assert evaluate(Oracle(), data, progress=False).num_gt == 2


class Misnamer(Oracle):
    """Finds every object and gives it each wrong and right name, unless boxes of other classes suppress each other."""

    class_agnostic = False

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        found = super().forward(images)
        for each, image in zip(found, images, strict=True):
            each["boxes"] = each["boxes"][[0, 0]]
            each["scores"] = torch.tensor([0.9, 0.8])
            each["labels"] = torch.tensor([1, 0]) - int(image[0, 0, 0]) % 2 * torch.tensor([1, -1])  # wrong name first
        kept = slice(1 if self.class_agnostic else 2)
        return [{name: value[kept] for name, value in each.items()} for each in found]


def test_without_classes_an_object_under_a_wrong_name_is_found_and_a_second_name_is_no_false_alarm(tmp_path: Path):
    model, data = Misnamer(), Pictures(tmp_path)
    assert evaluate(model, data, progress=False).ap < 0.7
    found = evaluate_without_classes(model, data, progress=False)
    assert found.ap == pytest.approx(1)
    assert (found.num_gt, found.num_detections) == (5, 5)  # not 10: one box suppressed the other
    assert len(found.per_class) == 1


def test_a_model_is_as_class_agnostic_as_before_even_after_a_failure(tmp_path: Path):
    model, data = Misnamer(), Pictures(tmp_path)
    evaluate_without_classes(model, data, progress=False)
    assert model.class_agnostic is False
    data.image = lambda index: 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluate_without_classes(model, data, progress=False)
    assert model.class_agnostic is False


def test_nothing_is_printed_without_progress(tmp_path: Path, capsys: pytest.CaptureFixture):
    evaluate(Oracle(), Pictures(tmp_path), progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Oracle(num_classes=3), r"truth\.json: has 2 classes \(disc, star\), but the model has 3"),
        (Oracle(["a", "b", "c"], num_classes=3), r"but the model has 3 \(a, b, c\)"),
        (Oracle(["star", "disc"]), r"another order \(disc, star; the model: star, disc\)"),
    ],
)
def test_a_model_for_other_classes_is_refused_before_any_work(tmp_path: Path, model: Oracle, message: str):
    with pytest.raises(DataError, match=message):
        evaluate(model, Pictures(tmp_path), progress=False)
    assert model.batches == []


def test_a_model_whose_classes_only_have_other_names_is_evaluated(tmp_path: Path):
    assert evaluate(Oracle(["circle", "asterisk"]), Pictures(tmp_path), progress=False).ap == pytest.approx(1)
