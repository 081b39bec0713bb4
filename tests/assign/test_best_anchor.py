"""YOLOv3's rule by hand: the best shape, the cell of the centre, and who is left out of training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minidet.assign import BACKGROUND, IGNORED, BestAnchor, DensePredictions
from minidet.assign.best_anchor import first_slots
from minidet.errors import MinidetError
from minidet.grid import make_grid

# Two levels with two anchors each: 8 x 8 and 16 x 8 px on stride 8; 32 x 32 and 32 x 64 px on stride 16.
GRID = make_grid([(8, 8), (4, 4)], (8, 16), anchor_sizes=(((8, 8), (16, 8)), ((32, 32), (32, 64))), anchor_offset=0.5)


def slot(level: int, column: int, row: int, anchor: int) -> int:
    return (row * 8 + column) * 2 + anchor if level == 0 else 128 + (row * 4 + column) * 2 + anchor


def test_the_best_of_all_anchors_says_level_and_slot_and_the_centre_says_the_cell(as_anchors, target):
    boxes = [[0, 0, 16, 8], [20, 20, 28, 29], [10, 2, 38, 60]]  # 16 x 8; 8 x 9; 28 x 58
    result = BestAnchor(ignore_iou=1.0)(as_anchors(GRID), [target(boxes)])
    expected = {slot(0, 1, 0, 1): 0, slot(0, 3, 3, 0): 1, slot(1, 1, 1, 1): 2}  # centres (8, 4), (24, 24.5), (24, 31)
    found = {place: gt for place, gt in enumerate(result.matched_gt[0].tolist()) if gt >= 0}
    assert found == expected


def test_shapes_are_compared_as_if_they_had_one_centre(as_anchors, target):
    result = BestAnchor()(as_anchors(GRID), [target([[10, 2, 38, 60]])], trace=True)  # 28 x 58
    by_hand = [64 / (28 * 58), 128 / (28 * 58), 28 * 32 / (28 * 58 + 32 * 32 - 28 * 32), 28 * 58 / (32 * 64)]
    torch.testing.assert_close(result.trace[0]["shape_iou"][0], torch.tensor(by_hand))
    assert result.trace[0]["anchor"].tolist() == [3]


def test_of_two_objects_in_a_cell_the_one_that_fits_the_anchor_better_has_the_slot(as_anchors, target):
    boxes = [[16, 16, 25, 25], [16, 16, 24, 24]]
    for order in ([0, 1], [1, 0]):
        given = target([boxes[i] for i in order])
        result = BestAnchor(ignore_iou=1.0)(as_anchors(GRID), [given], trace=True)
        assert result.matched_gt[0, slot(0, 2, 2, 0)] == order.index(1)
        assert result.num_positives == 1
        assert result.trace[0]["conflicts"].nonzero().flatten().tolist() == [slot(0, 2, 2, 0)]


def test_a_slot_that_predicts_an_object_well_without_owning_it_is_ignored(as_anchors, target):
    predictions = as_anchors(GRID)
    boxes = predictions.boxes.clone()
    good, fair, owner = slot(0, 5, 5, 0), slot(0, 6, 6, 1), slot(0, 1, 0, 1)
    boxes[0, good] = torch.tensor([0.0, 0, 16, 9])  # IoU 128 / 144 = 0.89
    boxes[0, fair] = torch.tensor([0.0, 0, 16, 12])  # IoU 128 / 192 = 0.67
    predictions = dataclasses.replace(predictions, boxes=boxes)
    matched = BestAnchor()(predictions, [target([[0, 0, 16, 8]])]).matched_gt[0]
    assert (matched[owner], matched[good], matched[fair]) == (0, IGNORED, BACKGROUND)
    assert BestAnchor(ignore_iou=0.6)(predictions, [target([[0, 0, 16, 8]])]).matched_gt[0, fair] == IGNORED


def test_what_is_not_a_number_is_background(as_anchors, target):
    predictions = as_anchors(GRID)
    boxes = predictions.boxes.clone()
    boxes[0, slot(0, 1, 0, 1)] = torch.nan
    result = BestAnchor()(dataclasses.replace(predictions, boxes=boxes), [target([[0, 0, 16, 8]])])
    assert result.matched_gt[0, slot(0, 1, 0, 1)] == BACKGROUND


def test_an_object_has_one_slot_whatever_its_size(as_anchors, target):
    sides = torch.tensor([2.0, 5, 12, 30, 55, 64])
    for side in sides:
        assert BestAnchor()(as_anchors(GRID), [target([[0, 0, side, side]])]).num_positives == 1


def test_without_anchors_squares_of_four_strides_are_compared(as_anchors, target):
    grid = make_grid([(8, 8), (4, 4)], (8, 16))
    result = BestAnchor()(as_anchors(grid), [target([[10, 10, 38, 40], [0, 0, 60, 60]])])  # 28 x 30 and 60 x 60
    assert result.positive[0].nonzero().flatten().tolist() == [3 * 8 + 3, 64 + 4 + 1]


def test_the_first_slots_hold_one_of_every_anchor():
    assert first_slots(GRID).tolist() == [0, 1, 128, 129]
    assert GRID.anchor_sizes[first_slots(GRID)].tolist() == [[8, 8], [16, 8], [32, 32], [32, 64]]


def test_positives_are_the_same_whatever_the_network_says(target):
    generator = torch.Generator().manual_seed(3)
    corner = 40 * torch.rand(6, 2, generator=generator)
    objects = target(torch.cat([corner, corner + 4 + 20 * torch.rand(6, 2, generator=generator)], dim=1))
    results = []
    for seed in (0, 1):
        boxes = 64 * torch.rand(1, len(GRID), 4, generator=torch.Generator().manual_seed(seed))
        predictions = DensePredictions(GRID, boxes, boxes, torch.zeros(1, len(GRID), 1), None)
        results.append(BestAnchor()(predictions, [objects]))
    assert torch.equal(results[0].positive, results[1].positive)


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_a_threshold_that_is_no_share_is_refused(value):
    with pytest.raises(MinidetError, match="ignore_iou"):
        BestAnchor(ignore_iou=value)
