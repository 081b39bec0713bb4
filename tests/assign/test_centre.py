"""Centre sampling by hand: one cell and 3 x 3, levels, anchors and conflicts."""

from __future__ import annotations

import pytest
import torch

from minidet.assign import BACKGROUND, CentreSampling
from minidet.assign.centre import best_fitting_anchors, centre_cells, level_by_size
from minidet.errors import MinidetError
from minidet.grid import make_grid

PYRAMID = make_grid([(32, 32), (16, 16), (8, 8)], (8, 16, 32))


def cells(grid, mask) -> list[list[float]]:
    return grid.cells[mask].tolist()


def test_one_cell_is_the_one_that_the_centre_falls_into(as_anchors, target):
    result = CentreSampling()(as_anchors(PYRAMID), [target([[30, 46, 42, 50]])])  # centre (36, 48)
    assert cells(PYRAMID, result.positive[0]) == [[4, 6]]  # 36 / 8 = 4.5; 48 is where row 6 begins
    assert PYRAMID.levels[result.positive[0]].tolist() == [0]


@pytest.mark.parametrize("center", [(36, 44), (40, 48), (36, 48)])
def test_three_by_three_are_nine_cells_wherever_the_centre_is_in_its_cell(as_anchors, target, center):
    x, y = center
    result = CentreSampling(radius=1.5)(as_anchors(PYRAMID), [target([[x - 6, y - 6, x + 6, y + 6]])])
    around = [[x // 8 + dx, y // 8 + dy] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert cells(PYRAMID, result.positive[0]) == around


def test_at_the_corner_of_the_picture_the_cells_that_exist_remain(as_anchors, target):
    result = CentreSampling(radius=1.5)(as_anchors(PYRAMID), [target([[0, 0, 6, 6]])])
    assert cells(PYRAMID, result.positive[0]) == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_an_object_whose_centre_is_outside_has_no_cell(as_anchors, target):
    assert CentreSampling()(as_anchors(PYRAMID), [target([[-30, 10, 20, 40]])]).num_positives == 0


def test_the_square_of_radius_half_has_one_cell_on_each_level():
    boxes = 200 * torch.rand(50, 2).repeat(1, 2) + torch.tensor([0.0, 0, 9, 7])
    assert (centre_cells(PYRAMID, boxes, 0.5).sum(dim=1) == 3).all()


def test_levels_by_size_are_those_of_fcos():
    # FCOS: the farthest side at most 64 px away at stride 8, 128 at 16, 256 at 32, then the rest.
    strides = torch.tensor([8.0, 16, 32, 64, 128])
    sides = torch.tensor([1.0, 128, 129, 256, 257, 512, 513, 1024, 1025, 5000])
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides / 3], dim=1)
    assert level_by_size(boxes, strides, 8.0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert level_by_size(boxes, strides[:1], 8.0).tolist() == [0] * 10


def test_a_smaller_limit_sends_the_same_object_to_a_coarser_level(as_anchors, target):
    sixty = target([[60, 60, 120, 100]])  # half the longest side is 30 px: 3.75 strides of 8, 1.9 of 16
    for limit, level in [(8.0, 0), (3.0, 1), (1.0, 2)]:
        result = CentreSampling(level_limit=limit)(as_anchors(PYRAMID), [sixty])
        assert PYRAMID.levels[result.positive[0]].tolist() == [level]


def test_a_contested_cell_goes_to_the_smallest_object(as_anchors, target):
    nested = target([[20, 20, 60, 60], [30, 30, 50, 50], [25, 25, 55, 55]])  # one centre, (40, 40)
    result = CentreSampling()(as_anchors(PYRAMID), [nested], trace=True)
    assert result.matched_gt[0][result.positive[0]].tolist() == [1]
    assert cells(PYRAMID, result.trace[0]["conflicts"]) == [[5, 5]]
    assert result.trace[0]["area"].tolist() == [1600, 400, 900]


def test_with_anchors_the_best_fitting_one_of_the_cell_is_taken(as_anchors, target):
    grid = make_grid([(4, 4)], (32,), anchor_sizes=[(16, 32, 64, 128)])
    # In logarithms 45 is nearer to 32 than to 64 (1.406 against 1.422), 46 nearer to 64 (1.391).
    boxes = [[10, 10, 55, 55], [64, 64, 110, 110], [70, 10, 86, 26]]
    result = CentreSampling()(as_anchors(grid), [target(boxes)])
    slot = {gt: result.pairs.slot[result.pairs.gt == gt].item() for gt in range(3)}
    assert [grid.cells[slot[gt]].tolist() for gt in range(3)] == [[1, 1], [2, 2], [2, 0]]
    assert [slot[gt] % 4 for gt in range(3)] == [1, 2, 0]


def test_between_width_and_height_the_anchor_nearest_to_their_geometric_mean_fits_best():
    grid = make_grid([(1, 1)], (32,), anchor_sizes=[(32, 64, 128, 256)])
    long = torch.tensor([[0.0, 0, 256, 32], [0, 0, 32, 128]])  # 90.5 -> 64 or 128, nearer to 128 (ratio 1.414 each)
    fits = best_fitting_anchors(grid, long)
    assert fits.sum(dim=1).tolist() == [1, 1]
    assert fits[1].tolist() == [False, True, False, False]  # sqrt(32 * 128) = 64 exactly
    assert fits[0, 1] or fits[0, 2]


def test_two_objects_of_different_sizes_share_a_cell_of_several_anchors(as_anchors, target):
    grid = make_grid([(4, 4)], (32,), anchor_sizes=[(16, 32, 64, 128)])
    nested = target([[16, 16, 80, 80], [40, 40, 56, 56]])  # one centre, (48, 48); sides 64 and 16
    result = CentreSampling()(as_anchors(grid), [nested])
    assert sorted(zip(result.pairs.gt.tolist(), (result.pairs.slot % 4).tolist(), strict=True)) == [(0, 2), (1, 0)]


def test_what_the_network_says_plays_no_part(as_anchors, target):
    objects, predictions = target([[20, 20, 60, 60], [100, 30, 250, 220]]), as_anchors(PYRAMID)
    before = CentreSampling(radius=1.5)(predictions, [objects]).matched_gt
    other = as_anchors(PYRAMID, class_logits=torch.randn(len(PYRAMID), 4), object_logits=torch.randn(len(PYRAMID)))
    assert torch.equal(CentreSampling(radius=1.5)(other, [objects]).matched_gt, before)
    assert (before == BACKGROUND).any()


@pytest.mark.parametrize("settings", [{"radius": 0.2}, {"radius": float("nan")}, {"level_limit": 0.0}])
def test_settings_without_a_meaning_are_refused(settings):
    with pytest.raises(MinidetError, match=f"CentreSampling: {next(iter(settings))}"):
        CentreSampling(**settings)
