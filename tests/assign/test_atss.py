"""ATSS step by step on numbers small enough to check by eye, and on YOLOF's one level."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from minidet.assign import ATSS, BACKGROUND
from minidet.assign.atss import inside_by, k_nearest, mean_and_std
from minidet.errors import MinidetError
from minidet.grid import make_grid

YOLOF = make_grid([(25, 42)], (32,), anchor_sizes=[(32, 64, 128, 256, 512)])


def test_the_nearest_slots_come_in_order_and_of_equals_the_first():
    distances = torch.tensor([[3.0, 1.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert k_nearest(distances, 3).tolist() == [[1, 2, 3], [0, 1, 2]]
    assert k_nearest(distances, 9).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert k_nearest(distances[:0], 3).shape == (0, 3)


def test_the_threshold_is_mean_plus_sample_standard_deviation():
    overlap = torch.tensor([[0.5, 0.25, 0.0, 0.25], [0.1, 0.2, 0.4, 0.8]])
    mean, std = mean_and_std(overlap)
    assert mean.tolist() == pytest.approx([statistics.mean(row) for row in overlap.tolist()])
    assert std.tolist() == pytest.approx([statistics.stdev(row) for row in overlap.tolist()])


def test_candidates_that_are_all_alike_all_reach_the_threshold():
    overlap = torch.rand(200, 1).expand(200, 9)
    mean, std = mean_and_std(overlap)
    assert (overlap >= (mean + std)[:, None]).all()
    assert mean_and_std(torch.tensor([[0.3]]))[1].item() == 0  # one candidate has no spread


def test_a_point_is_inside_only_beyond_the_margin():
    points = torch.tensor([[[0.005, 5], [0.02, 5], [9.995, 5], [9.98, 9.98], [5, -1]]])
    assert inside_by(points, torch.tensor([[0.0, 0, 10, 10]]), 0.01).tolist() == [[False, True, False, True, False]]


def test_one_object_by_hand(as_anchors, target):
    # Anchors of 16 x 16 around (0, 0), (8, 0), ... ; the object is 16 x 16 around (8, 8), the place of one of them.
    grid = make_grid([(3, 3)], (8,), anchor_sizes=[(16,)])
    result = ATSS()(as_anchors(grid), [target([[0, 0, 16, 16]])], trace=True)
    # Half shifted in one axis: 8 * 16 / (512 - 128) = 1/3; in both: 64 / (512 - 64) = 1/7.
    overlap = [1 / 7, 1 / 3, 1 / 7, 1 / 3, 1, 1 / 3, 1 / 7, 1 / 3, 1 / 7]
    trace = result.trace[0]
    assert trace["candidates"].tolist() == [list(range(9))]
    assert trace["iou"][0].tolist() == pytest.approx(overlap)
    assert trace["distance"][0, :2].tolist() == pytest.approx([8 * math.sqrt(2), 8])
    assert trace["threshold"].item() == pytest.approx(statistics.mean(overlap) + statistics.stdev(overlap))  # 0.59
    assert result.matched_gt[0].tolist() == [*[BACKGROUND] * 4, 0, *[BACKGROUND] * 4]


def test_an_anchor_whose_centre_is_not_inside_is_no_positive_whatever_it_overlaps(as_anchors, target):
    grid = make_grid([(1, 5)], (8,), anchor_sizes=[(16,)])
    beside = target([[9, -8, 15, 8]])  # in the second and the third anchor, between their centres
    result = ATSS()(as_anchors(grid), [beside], trace=True)
    assert result.trace[0]["iou"].tolist() == [pytest.approx([0, 0.375, 0.375, 0, 0])]
    assert result.trace[0]["threshold"].item() == pytest.approx(0.15 + 0.375 * math.sqrt(0.3))  # 0.355
    assert result.num_positives == 0


def test_each_level_gives_its_own_candidates(as_anchors, target):
    grid = make_grid([(16, 16), (8, 8), (2, 2)], (8, 16, 64))
    trace = ATSS()(as_anchors(grid), [target([[40, 40, 72, 76]])], trace=True).trace[0]
    level = grid.levels[trace["candidates"][0]]
    assert [(level == i).sum().item() for i in range(3)] == [9, 9, 4]  # the coarsest level has no more


def test_a_contested_slot_goes_to_the_object_that_it_overlaps_more(as_anchors, target):
    grid = make_grid([(3, 3)], (8,), anchor_sizes=[(16,)])
    objects = target([[0, 0, 18, 18], [0, 0, 17, 17]])  # 256/324 and 256/289 of the middle anchor
    result = ATSS()(as_anchors(grid), [objects], trace=True)
    assert result.trace[0]["wanted"][:, 4].tolist() == [True, True]
    assert result.matched_gt[0, 4] == 1


def test_on_one_level_the_nearest_nine_are_one_cell_and_a_part_of_the_next(as_anchors, target):
    # The centre (100, 70) is nearest to the corner (96, 64) of cell (3, 2), then to (96, 96) of cell (3, 3).
    trace = ATSS()(as_anchors(YOLOF), [target([[80, 60, 120, 80]])], trace=True).trace[0]
    cells = YOLOF.cells[trace["candidates"][0]].tolist()
    assert cells == [[3, 2]] * 5 + [[3, 3]] * 4


# Objects of YOLOF's C5 with the top 9, 2000 a row: mean number of positives, share of objects without.
ONE_LEVEL = {
    (4, 8): (0.03, 0.97),
    (8, 12): (0.10, 0.90),
    (12, 16): (0.19, 0.81),
    (16, 24): (0.39, 0.61),
    (24, 32): (0.82, 0.29),
    (32, 64): (1.65, 0.03),
    (64, 128): (1.93, 0.00),
    (128, 256): (2.00, 0.00),
    (256, 512): (1.93, 0.00),
}


@pytest.mark.parametrize("sides", ONE_LEVEL, ids=str)
def test_on_one_level_every_object_of_some_size_has_about_two_positives(random_squarish, sides):
    rule, count = ATSS(), 300
    boxes = random_squarish(count, *sides, seed=0)
    positives = torch.tensor([(rule.match(YOLOF, box[None])["matched_gt"] >= 0).sum() for box in boxes]).double()
    for sample, expected in zip((positives, (positives == 0).double()), ONE_LEVEL[sides], strict=True):
        # Both figures are means of a sample, so they differ by about their standard errors; four of them are allowed.
        # Where a share is 0 or 1 in our sample, 1 of 300 more could as well have happened.
        spread = max(sample.std().item(), count**-0.5)
        error = spread * (1 / count + 1 / 2000) ** 0.5
        assert sample.mean().item() == pytest.approx(expected, abs=4 * error + 0.005)


def test_without_a_candidate_there_is_no_rule():
    with pytest.raises(MinidetError, match="candidates is 0"):
        ATSS(candidates=0)
