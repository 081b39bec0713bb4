"""One-to-one matching: the costs term by term, and the optimum against trying everything."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from minidet.assign import BACKGROUND, DensePredictions, OneToOne
from minidet.assign.one_to_one import cheapest_matching, focal_class_cost, relative_l1
from minidet.errors import MinidetError
from minidet.grid import make_grid

GRID = make_grid([(2, 4)], (32,))  # 128 px wide, 64 px high


def test_the_matching_is_the_cheapest_of_all():
    for seed in range(20):
        costs = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        row, column = cheapest_matching(costs)
        best = min(
            sum(costs[g, a].item() for g, a in enumerate(chosen)) for chosen in itertools.permutations(range(6), 4)
        )
        assert row.tolist() == [0, 1, 2, 3]
        assert len(set(column.tolist())) == 4
        assert costs[row, column].sum().item() == pytest.approx(best)


def test_the_nearest_slot_may_go_to_the_object_that_has_no_other_choice():
    # Alone each row would take column 0; together it is cheaper to send the first row elsewhere.
    row, column = cheapest_matching(torch.tensor([[1.0, 1.5], [1.0, 9.0]]))
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_more_objects_than_slots_leave_the_dearest_objects_without():
    row, column = cheapest_matching(torch.tensor([[5.0], [1.0], [3.0]]))
    assert (row.tolist(), column.tolist()) == ([1], [0])


def test_the_class_cost_is_what_focal_loss_changes_when_the_slot_becomes_positive():
    logits, labels = 3 * torch.randn(7, 4), torch.tensor([2, 0, 2])
    as_positive = sigmoid_focal_loss(logits, torch.ones_like(logits))  # torchvision: alpha 0.25, gamma 2
    as_background = sigmoid_focal_loss(logits, torch.zeros_like(logits))
    expected = (as_positive - as_background)[:, labels].T
    torch.testing.assert_close(focal_class_cost(logits, None, labels), expected)


def test_with_objectness_the_class_cost_is_that_of_the_product_of_both_probabilities():
    logits, objectness, labels = 3 * torch.randn(7, 4), 3 * torch.randn(7), torch.tensor([2, 0, 2])
    product = (logits.double().sigmoid() * objectness.double().sigmoid()[:, None]).logit().float()
    expected = focal_class_cost(product, None, labels)
    torch.testing.assert_close(focal_class_cost(logits, objectness, labels), expected, rtol=1e-4, atol=1e-5)


def test_extreme_logits_have_finite_class_costs():
    logits = torch.tensor([[1e4], [-1e4], [100.0], [0.0]])
    for objectness in (None, torch.tensor([1e4, 1e4, -1e4, -1e4])):
        assert focal_class_cost(logits, objectness, torch.tensor([0])).isfinite().all()


def test_l1_is_counted_in_widths_and_heights_of_the_grid():
    # Centres 32 px apart in x (a quarter of 128) and 16 in y (a quarter of 64); 8 px wider (1/16), 8 px higher (1/8).
    cost = relative_l1(torch.tensor([[10.0, 10, 26, 26]]), torch.tensor([[38.0, 22, 62, 46]]), GRID)
    assert cost.tolist() == [[pytest.approx(0.25 + 0.25 + 1 / 16 + 1 / 8)]]


def test_the_cost_is_the_weighted_sum_and_each_object_gets_one_slot(as_anchors, target):
    logits, objects = torch.randn(8, 3), target([[20, 20, 60, 60], [30, 10, 110, 50]], [2, 0])
    predictions = as_anchors(GRID, class_logits=logits)
    result = OneToOne(class_weight=1.0, l1_weight=3.0, giou_weight=7.0)(predictions, [objects], trace=True)
    trace = result.trace[0]
    overlap = generalized_box_iou(objects["boxes"], GRID.anchor_boxes)
    torch.testing.assert_close(trace["giou_cost"], -overlap)
    torch.testing.assert_close(trace["cost"], trace["class_cost"] + 3 * trace["l1_cost"] - 7 * overlap)
    assert trace["taken"].sum(dim=1).tolist() == [1, 1]
    assert sorted(result.pairs.gt.tolist()) == [0, 1]
    assert result.matched_gt[0, trace["candidates"][trace["taken"].int().argmax(dim=1)]].tolist() == [0, 1]


def test_the_slot_that_predicts_an_object_exactly_gets_it(as_anchors, target):
    logits = torch.full((8, 2), -4.0)
    logits[5, 1] = 4.0
    found = target([GRID.anchor_boxes[5].tolist()], [1])
    result = OneToOne()(as_anchors(GRID, class_logits=logits), [found])
    assert result.matched_gt[0].tolist() == [*[BACKGROUND] * 5, 0, BACKGROUND, BACKGROUND]
    assert result.quality[0, 5].item() == pytest.approx(1)


def test_duplicates_of_one_object_go_to_different_slots(as_anchors, target):
    result = OneToOne()(as_anchors(GRID), [target([[20, 10, 60, 50]] * 3)])
    assert sorted(result.pairs.gt.tolist()) == [0, 1, 2]
    assert result.num_positives == 3


def test_with_more_objects_than_slots_every_slot_is_taken_once(as_anchors, target):
    boxes = torch.tensor([20.0, 10, 60, 50]) + torch.arange(12)[:, None]
    result = OneToOne()(as_anchors(GRID), [target(boxes)])
    assert result.positive.all()
    assert len(set(result.matched_gt[0].tolist())) == 8


def test_a_slot_that_is_not_finite_leaves_its_object_to_the_next_best(target):
    boxes = GRID.anchor_boxes.clone()
    boxes[5, 0] = math.nan
    predictions = DensePredictions(GRID, boxes[None], boxes[None], torch.zeros(1, 8, 2), None)
    result = OneToOne()(predictions, [target([GRID.anchor_boxes[5].tolist()])])
    assert result.num_positives == 1
    assert not result.positive[0, 5]


def test_weights_that_decide_nothing_are_refused():
    with pytest.raises(MinidetError, match="OneToOne"):
        OneToOne(class_weight=0, l1_weight=0, giou_weight=0)
    with pytest.raises(MinidetError, match="OneToOne"):
        OneToOne(l1_weight=-1)
