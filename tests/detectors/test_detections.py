"""Detections of a batch at once, beside those of one image after the other, which the golden tests check."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minidet.assign import DensePredictions
from minidet.boxes import cxcywh_to_xyxy, nms, nms_in_groups
from minidet.detectors import yolof, yolox
from minidet.detectors.detections import Detections, best_class_of_slots, best_pairs, suppress
from minidet.files import read_json


def crowd(batch: int, slots: int, classes: int, with_objectness: bool) -> DensePredictions:
    """Predictions as of a trained detector: many slots around few objects, some of them far outside the picture."""
    centers = torch.rand(batch, 6, 2) * 300 - 50
    own = torch.randint(0, 6, (batch, slots))
    boxes_cxcywh = torch.cat(
        [
            centers.gather(1, own[..., None].expand(-1, -1, 2)) + 5 * torch.randn(batch, slots, 2),
            (3 + torch.rand(batch, slots, 2)).exp(),
        ],
        dim=2,
    )
    logits = 2 * torch.randn(batch, slots, classes) - 3
    logits.scatter_add_(2, own[..., None] % classes, 3 * torch.rand(batch, slots, 1))
    # As a network gives them: the slots innermost in memory.
    logits = logits.transpose(1, 2).contiguous().transpose(1, 2)
    boxes = cxcywh_to_xyxy(boxes_cxcywh)
    return DensePredictions(None, boxes, boxes, logits, torch.randn(batch, slots) if with_objectness else None)


def with_ties(predictions: DensePredictions) -> DensePredictions:
    """Logits in steps, and some so large that their scores are 1: many slots and classes score the same."""
    objects = predictions.object_logits
    logits = (predictions.class_logits * 2).round() / 2
    logits[:, ::7] += 40
    logits[:, 3] = torch.nan
    objects = None if objects is None else objects.round()
    return DensePredictions(None, predictions.raw_boxes, predictions.boxes, logits, objects)


def check_same(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours["labels"], theirs["labels"])
        assert torch.equal(ours["boxes"], theirs["boxes"])
        assert torch.equal(ours["scores"], theirs["scores"])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("with_objectness", [True, False])
@pytest.mark.parametrize(
    ("threshold", "agnostic", "limit"),
    [(0.001, False, None), (0.3, True, None), (0.0, False, 20), (0.999999, False, 5)],
)
def test_a_batch_of_yolox_is_its_images_one_by_one(ties, with_objectness, threshold, agnostic, limit):
    predictions = crowd(3, 400, 16, with_objectness)
    predictions = with_ties(predictions) if ties else predictions
    found = suppress(best_class_of_slots(predictions, threshold), 0.6, 16, agnostic, limit).per_image(3)
    scores = predictions.class_scores()
    expected = [
        yolox.postprocess(boxes, each, threshold, 0.6, agnostic, limit)
        for boxes, each in zip(predictions.boxes, scores, strict=True)
    ]
    check_same(found, expected)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("threshold", "count", "agnostic"),
    [(0.05, 1000, False), (0.0, 300, False), (0.3, 10**6, True), (0.99999, 50, False)],
)
def test_a_batch_of_yolof_is_its_images_one_by_one(ties, threshold, count, agnostic):
    predictions = crowd(3, 300, 16, False)
    predictions = with_ties(predictions) if ties else predictions
    found = suppress(best_pairs(predictions, threshold, count), 0.6, 16, agnostic, 100).per_image(3)
    scores = predictions.class_scores()
    expected = [
        yolof.postprocess(boxes, each, threshold, count, 0.6, agnostic, 100)
        for boxes, each in zip(predictions.boxes, scores, strict=True)
    ]
    check_same(found, expected)


def test_a_slot_whose_score_is_the_threshold_stays():
    predictions = crowd(2, 100, 16, True)
    threshold = predictions.class_scores()[1, 40].max().item()
    found = best_class_of_slots(predictions, threshold)
    assert found.scores.min().item() == threshold
    assert len(found) == int((predictions.class_scores().amax(dim=2) >= threshold).sum())


def test_where_scores_are_equal_the_first_class_wins_though_its_logit_is_smaller():
    logits = torch.tensor([[[20.0, 30.0]]])  # both sigmoids are 1 in float32
    predictions = DensePredictions(None, torch.zeros(1, 1, 4), torch.tensor([[[0.0, 0, 9, 9]]]), logits, None)
    assert best_class_of_slots(predictions, 0.5).labels.tolist() == [0]


@pytest.mark.parametrize("name", ["aware", "agnostic", "eval_like", "many", "none_and_one", "one_class"])
def test_the_official_cases_as_batches(yolox_reference, name):
    tensors = load_file(yolox_reference / "postprocess_cases.safetensors")
    meta = read_json(yolox_reference / "postprocess_cases.json")[name]
    rows = tensors[f"{name}.input"]
    boxes = cxcywh_to_xyxy(rows[..., :4])
    predictions = DensePredictions(None, boxes, boxes, rows[..., 5:].logit(), rows[..., 4].logit())
    candidates = best_class_of_slots(predictions, meta["conf_thre"])
    found = suppress(candidates, meta["nms_thre"], rows.shape[2] - 5, meta["class_agnostic"], None).per_image(len(rows))
    for i, each in enumerate(found):
        expected = tensors[f"{name}.output{i}"]
        torch.testing.assert_close(each["boxes"], expected[:, :4], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(each["scores"], expected[:, 4] * expected[:, 5])
        assert each["labels"].tolist() == expected[:, 6].long().tolist()


@pytest.mark.parametrize("case", "dense sparse none topk_overflow dropped_boxes dc5".split())
def test_yolofs_official_cases_as_batches_and_in_their_pictures(yolof_reference, case):
    data = load_file(yolof_reference / "inference.safetensors")
    meta = read_json(yolof_reference / "inference.json")[case]
    per_cell = data[f"{case}/deltas"].shape[1] // 4
    boxes = yolof.decode(yolof.slots_first(data[f"{case}/deltas"], per_cell), data[f"{case}/anchors"])
    logits = yolof.slots_first(data[f"{case}/logits"], per_cell)
    twice = DensePredictions(None, boxes.repeat(2, 1, 1), boxes.repeat(2, 1, 1), logits.repeat(2, 1, 1), None)
    candidates = best_pairs(twice, meta["score_thr"], meta["topk"])
    found = suppress(candidates, meta["nms_thr"], logits.shape[2], False, meta["max_det"])
    (height, width), output_hw = meta["image_size_hw"], tuple(meta["output_size_hw"])
    scale = (width / output_hw[1], height / output_hw[0])
    for each in found.per_image(2):
        assert torch.equal(each["labels"], data[f"{case}/classes"])
        torch.testing.assert_close(each["scores"], data[f"{case}/scores"], atol=1e-6, rtol=0)
        torch.testing.assert_close(each["boxes"], data[f"{case}/boxes"], atol=1e-2, rtol=1e-5)
    for each in found.in_pictures([output_hw] * 2, [scale] * 2).per_image(2):
        torch.testing.assert_close(each["boxes"], data[f"{case}/post_boxes"], atol=1e-2, rtol=1e-5)
        assert torch.equal(each["labels"], data[f"{case}/post_classes"])


def test_boxes_go_to_the_pixels_of_their_own_picture_and_what_lies_outside_goes():
    boxes = torch.tensor([[-10.0, 0, 20, 40], [0, 0, 10, 10], [30, 0, 40, 10], [50, 50, 90, 90]])
    found = Detections(torch.tensor([0, 1, 0, 1]), boxes, torch.ones(4), torch.arange(4))
    # picture 0: 30 high, 15 wide, enlarged twice; picture 1: 60 x 60, halved
    found = found.in_pictures([(30, 15), (60, 60)], [(2.0, 2.0), (0.5, 0.5)])
    assert found.image.tolist() == [0, 1]
    assert found.labels.tolist() == [0, 1]  # 30 / 2 = 15 is where picture 0 ends, 50 / 0.5 = 100 is outside picture 1
    assert found.boxes.tolist() == [[0, 0, 10, 20], [0, 0, 20, 20]]


def test_images_without_detections_have_empty_ones():
    predictions = crowd(3, 50, 4, True)
    predictions.object_logits[1] = -100
    found = suppress(best_class_of_slots(predictions, 0.3), 0.5, 4, False, None).per_image(3)
    assert [len(each["scores"]) > 0 for each in found] == [True, False, True]
    assert found[1]["boxes"].shape == (0, 4)

    nothing = suppress(best_class_of_slots(predictions, 2.0), 0.5, 4, False, 7).per_image(3)
    assert [each["labels"].tolist() for each in nothing] == [[], [], []]


def test_suppression_in_groups_is_that_of_each_group():
    predictions = crowd(1, 500, 5, True)
    boxes, scores = predictions.boxes[0], predictions.class_scores()[0].amax(dim=1)
    scores[::5] = 0.5
    groups = torch.randint(0, 7, (500,)) * 10**6
    kept = nms_in_groups(boxes, scores, groups, 0.5)
    assert kept.tolist() == sorted(nms(boxes, scores, groups, 0.5).tolist())
    assert nms_in_groups(boxes[:0], scores[:0], groups[:0], 0.5).tolist() == []
