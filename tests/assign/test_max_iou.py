"""Max-IoU by hand, against torchvision's matcher, and as YOLOF's "imbalance problem"."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import Matcher

from minidet.assign import BACKGROUND, IGNORED, MaxIoU
from minidet.assign.max_iou import best_anchors
from minidet.boxes import pairwise_iou
from minidet.errors import MinidetError
from minidet.grid import make_grid

# One row of four anchors of 10 x 10, side by side: 0-10, 10-20, 20-30, 30-40 in x and -5 to 5 in y.
ROW = make_grid([(1, 4)], (10,), anchor_sizes=[(10,)])


def test_the_anchors_of_the_examples_stand_where_the_comment_says():
    assert ROW.anchor_boxes.tolist() == [[-5, -5, 5, 5], [5, -5, 15, 5], [15, -5, 25, 5], [25, -5, 35, 5]]


def test_two_thresholds_make_positive_ignored_and_background(as_anchors, target):
    # As high as the anchors, from the left edge of the first: IoU is the common width over the width of both together.
    result = MaxIoU(low_quality=False)(as_anchors(ROW), [target([[-5, -5, 15, 5]])])  # 10/20 and 10/20
    assert result.matched_gt[0].tolist() == [0, 0, BACKGROUND, BACKGROUND]
    result = MaxIoU(low_quality=False)(as_anchors(ROW), [target([[-1, -5, 9, 5]])])  # 6/14 = 0.43 and 4/16
    assert result.matched_gt[0].tolist() == [IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]
    result = MaxIoU(low_quality=False)(as_anchors(ROW), [target([[-5, -5, 20, 5]])])  # 10/25 = 0.4, 0.4, 5/30
    assert result.matched_gt[0].tolist() == [IGNORED, IGNORED, BACKGROUND, BACKGROUND]


def test_each_anchor_learns_the_object_that_it_overlaps_best(as_anchors, target):
    both = target([[-5, -5, 4, 5], [-5, -5, 5, 4.5]])  # 0.9 and 0.95 of the first anchor
    assert MaxIoU()(as_anchors(ROW), [both]).matched_gt[0].tolist() == [1, *[BACKGROUND] * 3]


def test_by_the_low_quality_rule_an_object_gets_all_its_equally_best_anchors_however_poor(as_anchors, target):
    small = target([[4, 0, 6, 2]])  # half of its 4 square pixels in the first anchor, half in the second: 2/102
    assert MaxIoU()(as_anchors(ROW), [small]).matched_gt[0].tolist() == [0, 0, BACKGROUND, BACKGROUND]
    assert MaxIoU(low_quality=False)(as_anchors(ROW), [small]).num_positives == 0


def test_the_low_quality_rule_overrules_the_ignored_band(as_anchors, target):
    one = target([[-1, -5, 9, 5]])
    assert MaxIoU()(as_anchors(ROW), [one]).matched_gt[0].tolist() == [0, *[BACKGROUND] * 3]


def test_an_anchor_that_a_poor_object_chooses_keeps_its_own_best_object(as_anchors, target):
    # Both objects overlap the first anchor most; it overlaps the large one best, so the small one stays without.
    result = MaxIoU()(as_anchors(ROW), [target([[-5, -5, 5, 5], [0, 0, 2, 2]])], trace=True)
    assert result.matched_gt[0].tolist() == [0, *[BACKGROUND] * 3]
    assert result.trace[0]["low_quality"].tolist() == [[True, False, False, False]] * 2


def test_an_object_that_no_anchor_touches_does_not_take_all_of_them(as_anchors, target):
    result = MaxIoU()(as_anchors(ROW), [target([[500, 500, 520, 520]])])
    assert (result.matched_gt == BACKGROUND).all()


def test_ties_are_all_among_the_best_anchors_and_zeros_never():
    overlap = torch.tensor([[0.2, 0.3, 0.3], [0.0, 0.0, 0.0]])
    assert best_anchors(overlap).tolist() == [[False, True, True], [False, False, False]]


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_matches_equal_those_of_torchvision(as_anchors, target, random_squarish, seed, low_quality):
    grid = make_grid([(25, 42)], (32,), anchor_sizes=[(32, 64, 128, 256, 512)])
    boxes = random_squarish(30, 12, 500, seed)
    # torchvision writes -1 for background and -2 for ignored, as we do.
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality)(pairwise_iou(boxes, grid.anchor_boxes))
    ours = MaxIoU(low_quality=low_quality)(as_anchors(grid), [target(boxes)]).matched_gt[0]
    assert (expected >= 0).sum() > 100
    assert (expected == -2).sum() > 20
    assert torch.equal(ours, expected)


def test_the_order_of_objects_does_not_matter(as_anchors, target, random_squarish):
    grid = make_grid([(25, 42)], (32,), anchor_sizes=[(32, 64, 128, 256, 512)])
    boxes, order = random_squarish(30, 12, 500, 7), torch.randperm(30)
    straight = MaxIoU()(as_anchors(grid), [target(boxes)]).matched_gt[0]
    shuffled = MaxIoU()(as_anchors(grid), [target(boxes[order])]).matched_gt[0]
    assert torch.equal(torch.where(shuffled >= 0, order[shuffled], shuffled), straight)


# Objects of YOLOF's C5 without the low-quality rule, 2000 a row: mean number of positives, share of objects without.
IMBALANCE = {
    (4, 8): (0.00, 1.00),
    (8, 12): (0.00, 1.00),
    (12, 16): (0.00, 1.00),
    (16, 24): (0.01, 0.99),
    (24, 32): (0.18, 0.82),
    (32, 64): (0.43, 0.58),
    (64, 128): (1.69, 0.19),
    (128, 256): (6.87, 0.04),
    (256, 512): (27.2, 0.01),
}


@pytest.mark.parametrize("sides", IMBALANCE, ids=str)
def test_on_one_level_large_objects_have_many_positives_and_small_ones_none(random_squarish, sides):
    grid = make_grid([(25, 42)], (32,), anchor_sizes=[(32, 64, 128, 256, 512)])
    rule, count = MaxIoU(low_quality=False), 300
    boxes = random_squarish(count, *sides, seed=0)
    positives = torch.tensor([(rule.match(grid, box[None])["matched_gt"] >= 0).sum() for box in boxes]).double()
    for sample, expected, rounding in (
        (positives, IMBALANCE[sides][0], 0.05 if sides[0] == 256 else 0.005),
        ((positives == 0).double(), IMBALANCE[sides][1], 0.005),
    ):
        # Both figures are means of a sample, so they differ by about their standard errors; four of them are allowed.
        # Where a share is 0 or 1 in our sample, 1 of 300 more could as well have happened.
        spread = max(sample.std().item(), count**-0.5)
        error = spread * (1 / count + 1 / 2000) ** 0.5
        assert sample.mean().item() == pytest.approx(expected, abs=4 * error + rounding)


@pytest.mark.parametrize("thresholds", [(0.4, 0.5), (1.2, 0.4), (0.5, 0.0)])
def test_thresholds_that_make_no_sense_are_refused(thresholds):
    positive, negative = thresholds
    with pytest.raises(MinidetError, match="MaxIoU"):
        MaxIoU(positive_iou=positive, negative_iou=negative)
