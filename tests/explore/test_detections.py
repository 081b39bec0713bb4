"""The detection explorer: what the model itself finds under the thresholds, and evaluate's own AP50."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import minidet
from minidet.data.coco import load_split
from minidet.data.shapes import ShapesConfig, make_shapes
from minidet.draw.look import DARK, LIGHT
from minidet.draw.thresholds import draw_thresholds
from minidet.errors import DataError, MinidetError
from minidet.evaluation.average_precision import evaluate
from minidet.explore.detections import DetectionExplorer
from minidet.explore.pictures import read_pictures
from minidet.explore.thresholds import ThresholdLab
from tests.explore.pictures import NANO, assert_legible, empty_picture, positions, scenes


@pytest.fixture(scope="module")
def model():
    return minidet.load_model(NANO)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, ShapesConfig(train=0, val=6, test=0), progress=False)
    return load_split(folder, "val")


@pytest.fixture(scope="module")
def lab(model, shapes):
    return ThresholdLab(model, read_pictures(shapes[i] for i in range(len(shapes))))


@pytest.mark.parametrize(("score", "nms", "agnostic"), [(0.3, 0.65, False), (0.05, 0.45, True), (0.6, 0.9, False)])
def test_the_boxes_shown_are_those_that_the_model_gives(model, shapes, lab, score, nms, agnostic):
    again = minidet.load_model(NANO)
    again.score_threshold, again.nms_threshold, again.class_agnostic = score, nms, agnostic
    for number in range(len(shapes)):
        with torch.no_grad():
            (wanted,) = again([shapes[number][0]])
        view = lab.view(number, score, nms, agnostic)
        assert len(view.boxes) == len(wanted["boxes"])
        np.testing.assert_allclose(view.boxes, wanted["boxes"], atol=2e-3)  # COCO's rows are rounded to 3 decimals
        np.testing.assert_allclose(view.scores, wanted["scores"], atol=1e-6)
        assert view.labels.tolist() == wanted["labels"].tolist()
        assert len(view.missed) + int(view.found.sum()) == len(shapes[number][1]["labels"])


@pytest.mark.parametrize(("nms", "agnostic"), [(0.65, False), (0.3, True)])
def test_the_curve_has_the_ap50_that_evaluate_reports_also_when_it_is_cut(model, shapes, lab, nms, agnostic):
    judged = minidet.load_model(NANO)
    judged.nms_threshold, judged.class_agnostic = nms, agnostic
    wanted = evaluate(judged, shapes, progress=False)
    view = lab.view(0, 0.01, nms, agnostic)
    assert view.ap50 == pytest.approx(wanted.ap50, abs=1e-9)
    assert view.envelope.mean() == pytest.approx(wanted.ap50, abs=1e-9)
    for label, group in enumerate(wanted.per_class):
        assert lab.view(0, 0.01, nms, agnostic, label).ap50 == pytest.approx(group.ap50, abs=1e-9)
    for score in (0.2, 0.5, 0.85):
        judged.score_threshold = score
        cut = evaluate(judged, shapes, progress=False)
        assert lab.view(0, score, nms, agnostic).cut_ap50 == pytest.approx(cut.ap50, abs=1e-9)


def test_precision_and_recall_move_along_the_curve(lab):
    recalls = []
    for score in np.arange(0.01, 1, 0.03):
        view = lab.view(0, float(score), 0.65)
        if view.point is None:
            continue
        recalls.append(view.point[0])
        distance = np.abs(np.column_stack([view.recall, view.precision]) - view.point).max(axis=1)
        assert distance.min() < 1e-9
    assert len(recalls) > 20 and sorted(recalls, reverse=True) == recalls


def test_the_model_keeps_its_own_thresholds(model):
    before = model.score_threshold, model.nms_threshold, model.class_agnostic
    explorer = DetectionExplorer(model, scenes(1))
    explorer.change(score=0.9, nms=0.1, class_aware=False)
    assert (model.score_threshold, model.nms_threshold, model.class_agnostic) == before


def test_every_position_of_every_control_draws_a_legible_figure(model):
    explorer = DetectionExplorer(model, [*scenes(1), empty_picture()])
    drawn = set()
    for changes in positions(explorer):
        assert_legible(explorer.draw({**explorer.values, **changes}, LIGHT))
        drawn |= changes.keys()
    assert drawn == set(explorer.values)


def test_pictures_without_objects_have_no_curve(model):
    lab = ThresholdLab(model, read_pictures([empty_picture()]))
    view = lab.view(0, 0.01, 0.65)
    assert view.point is None and view.ap50 == -1
    assert "0 missed" in draw_thresholds(view, DARK).alt


def test_another_detector_is_explored_the_same_way():
    torch.manual_seed(0)
    yolof = minidet.create_model("yolof-r18-c5", 8, input_hw=(96, 128), width=32, mid_width=16, score_threshold=0.005)
    explorer = DetectionExplorer(yolof.eval(), scenes(2))
    explorer.change(score=0.01, nms=0.6)
    assert_legible(explorer.figure())


def test_pictures_that_do_not_fit_are_refused(model):
    with pytest.raises(DataError, match="no picture"):
        DetectionExplorer(model, [])
    with pytest.raises(DataError, match="picture 1: expected"):
        DetectionExplorer(model, [*scenes(1), "a.jpg"])
    with pytest.raises(DataError, match="picture 0: expected uint8"):
        DetectionExplorer(model, [(torch.zeros(3, 8, 8), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)})])
    image, target = empty_picture()
    target = {"boxes": torch.tensor([[1.0, 1, 9, 9]]), "labels": torch.tensor([8])}
    with pytest.raises(MinidetError, match="picture 1 has a label beyond the 8 classes"):
        DetectionExplorer(model, [(image, target)])
    with pytest.raises(MinidetError, match="no picture 3"):
        ThresholdLab(model, read_pictures(scenes(1))).view(3, 0.3, 0.5)
