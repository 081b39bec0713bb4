"""Uniform matching: its steps by hand, its shortcuts against the long way, and the shares that were measured on it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidet.assign import BACKGROUND, IGNORED, DensePredictions, UniformMatching
from minidet.assign.uniform import (
    covering_slots,
    covering_slots_in_blocks,
    l1_distances,
    nearest_anchors,
    nearest_slots,
    nearest_slots_in_blocks,
    write_in_order,
    writing_order,
)
from minidet.boxes import cxcywh_to_xyxy, iou, pairwise_iou
from minidet.grid import make_grid


def predictions_on(grid, boxes=None) -> DensePredictions:
    boxes = (grid.anchors if boxes is None else boxes).expand(1, -1, -1)
    return DensePredictions(grid, torch.zeros_like(boxes), boxes, torch.zeros(*boxes.shape[:2], 2), None)


def target(*boxes):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.zeros(len(boxes), dtype=torch.int64)}


SMALL = make_grid([(3, 4)], [32], anchor_sizes=[(32.0, 64.0)])  # centres at 0, 32, 64, 96 and 0, 32, 64


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_distance_is_the_sum_of_the_differences_of_centre_and_size():
    distances = l1_distances(torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([[0.0, 0, 20, 20], [10, 10, 30, 50]]))
    assert distances.tolist() == [[10 + 20 + 0 + 20, 0]]  # centres (20, 30) and (10, 10), sizes 20 x 40 and 20 x 20


def test_pairs_are_written_rank_by_rank_list_by_list_object_by_object():
    predicted, anchors = torch.tensor([[[0, 1], [2, 3]]]), torch.tensor([[[4, 5], [6, 7]]])  # 2 objects, k = 2
    slot, gt = writing_order([predicted, anchors])
    assert slot.tolist() == [[0, 2, 4, 6, 1, 3, 5, 7]]
    assert gt.tolist() == [[0, 1, 0, 1, 0, 1, 0, 1]]


def test_the_last_write_to_a_slot_stays_and_pairs_that_do_not_exist_write_nothing():
    rows = torch.full((1, 4), BACKGROUND)
    slot, value = torch.tensor([[1, 2, 1, 3, 2]]), torch.tensor([[0, 1, 2, 3, IGNORED]])
    write_in_order(rows, slot, value, torch.tensor([[True, True, True, False, True]]))
    assert rows.tolist() == [[BACKGROUND, 2, IGNORED, BACKGROUND]]


def test_an_object_on_an_anchor_takes_it_first_and_its_pairs_come_twice_when_predictions_are_the_anchors():
    result = UniformMatching(k=1)(predictions_on(SMALL), [target((16.0, 16, 48, 48))])
    slot = (1 * 4 + 1) * 2 + 0  # row 1, column 1, the 32 px anchor
    assert result.pairs.slot.tolist() == [slot, slot]
    assert result.matched_gt[0, slot] == 0
    assert int(result.num_positives) == 1
    assert result.quality[0, slot] == 1


def test_with_untouched_predictions_both_lists_are_the_same_so_the_pairs_are_exactly_doubled():
    grid = make_grid([(7, 9)], [32], anchor_sizes=[(32.0, 64.0, 128.0)])
    objects = target((13.0, 17, 71, 92), (100.0, 90, 180, 160))
    both = UniformMatching(k=3)(predictions_on(grid), [objects])
    one = UniformMatching(k=3, sources=("anchors",))(predictions_on(grid), [objects])
    assert len(both.pairs) == 2 * len(one.pairs)
    assert torch.equal(both.matched_gt, one.matched_gt)


def test_thresholds_keep_what_equals_them():
    # 16 x 32 inside a 32 x 32 anchor has IoU exactly 0.5.
    half, prediction = target((16.0, 16, 32, 48)), predictions_on(SMALL)
    slot = (1 * 4 + 1) * 2
    at, above = (UniformMatching(k=1, min_anchor_iou=t, sources=("anchors",)) for t in (0.5, 0.5001))
    assert at(prediction, [half]).matched_gt[0, slot] == 0
    assert above(prediction, [half]).matched_gt[0, slot] == IGNORED
    assert len(above(prediction, [half]).pairs) == 0
    # A prediction elsewhere with IoU exactly 0.5 is background up to a threshold of 0.5, ignored below.
    boxes = SMALL.anchors.clone()
    boxes[-1] = torch.tensor([16.0, 16, 48, 48])
    for threshold, expected in ((0.5, BACKGROUND), (0.4999, IGNORED)):
        rule = UniformMatching(k=1, max_background_iou=threshold, sources=("anchors",))
        assert rule(predictions_on(SMALL, boxes), [half]).matched_gt[0, -1] == expected


def test_a_positive_overrides_ignored_and_an_ignored_pair_overrides_a_positive_that_was_written_before():
    prediction = predictions_on(SMALL)
    slot = (1 * 4 + 1) * 2
    exact, thin = (16.0, 16, 48, 48), (31.0, 16, 33, 48)  # the second has IoU 2 / 32 with the anchor
    rule = UniformMatching(k=1, sources=("anchors",))
    assert rule(prediction, [target(exact)]).matched_gt[0, slot] == 0  # although the prediction covers it
    assert rule(prediction, [target(thin, exact)]).matched_gt[0, slot] == 1
    result = rule(prediction, [target(exact, thin)])
    assert result.matched_gt[0, slot] == IGNORED
    assert result.pairs.slot.tolist() == [slot]  # the box loss sees the pair all the same


def test_k_beyond_the_number_of_slots_takes_all_of_them():
    grid = make_grid([(1, 1)], [16], anchor_sizes=[(16.0, 32, 64, 128, 256, 512)])
    result = UniformMatching(k=8, min_anchor_iou=0)(predictions_on(grid), [target((0.0, 0, 16, 16))])
    assert int(result.num_positives) == 6
    assert len(result.pairs) == 12


def test_each_source_alone_gives_its_own_list():
    boxes = SMALL.anchors.clone()
    far = (2 * 4 + 3) * 2  # the anchor in the last cell predicts the object in the first
    boxes[far] = torch.tensor([-16.0, -16, 16, 16])
    boxes[0] = torch.tensor([80.0, 48, 112, 80])
    objects = [target((-16.0, -16, 16, 16))]
    by_prediction = UniformMatching(k=1, min_anchor_iou=0, sources=("predictions",))(
        predictions_on(SMALL, boxes), objects
    )
    by_anchor = UniformMatching(k=1, min_anchor_iou=0, sources=("anchors",))(predictions_on(SMALL, boxes), objects)
    assert by_prediction.pairs.slot.tolist() == [far]
    assert by_anchor.pairs.slot.tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"sources": ()}, "sources are"),
        ({"sources": ("anchor",)}, "sources are"),
        ({"max_background_iou": 0.0}, "max_background_iou 0.0"),
        ({"min_anchor_iou": 1.5}, "min_anchor_iou is 1.5"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        UniformMatching(**changes)


# ---- shortcuts against the long way ---------------------------------------------------------------------------------

coordinates = st.floats(-300, 700, width=32)
sides = st.floats(0.5, 900, width=32)


@given(
    st.lists(st.tuples(coordinates, coordinates, sides, sides), min_size=1, max_size=5),
    st.integers(1, 9),
    st.sampled_from([(1, 1), (1, 7), (3, 4), (9, 2)]),
)
@settings(max_examples=500, deadline=None, derandomize=True)
def test_the_nearest_anchors_are_found_among_a_few_candidates(objects, k, shape):
    grid = make_grid([shape, (2, 3)], [32, 64], anchor_sizes=[(32.0, 64.0), (128.0, 256.0)])
    gt_boxes = cxcywh_to_xyxy(torch.tensor(objects))
    distances = l1_distances(gt_boxes, grid.anchors)
    found = nearest_anchors(grid, gt_boxes[None], k)[0]
    assert found.shape == (len(objects), min(k, len(grid)))
    assert all(len(set(row)) == len(row) for row in found.tolist())
    expected = distances.gather(1, nearest_slots(distances, k))
    torch.testing.assert_close(distances.gather(1, found), expected, atol=1e-3, rtol=1e-5)


def test_without_anchors_the_squares_around_the_cells_are_matched():
    grid = make_grid([(6, 8), (3, 4)], [16, 32])
    gt_boxes = torch.tensor([[10.0, 20, 70, 90], [60, 10, 121, 77]])
    distances = l1_distances(gt_boxes, grid.anchor_boxes)
    found = nearest_anchors(grid, gt_boxes[None], 4)[0]
    torch.testing.assert_close(distances.gather(1, found), distances.sort(dim=1).values[:, :4])


@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([(1, 40), (5, 8), (8, 5), (40, 1)]))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_the_nearest_slots_are_found_in_a_few_blocks(seed, k, shape):
    distances = torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(seed))
    blocks = distances.unflatten(-1, shape)
    found = nearest_slots_in_blocks(blocks, blocks.amin(dim=-1), k)
    assert torch.equal(found, nearest_slots(distances, k))


@given(st.integers(0, 2**31), st.floats(0.05, 1.0), st.sampled_from([1, 4, 40]))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_the_distance_rules_out_no_box_that_overlaps_enough(seed, threshold, blocks_of):
    generator = torch.Generator().manual_seed(seed)
    gt = torch.rand(6, 4, generator=generator) * torch.tensor([200.0, 200, 150, 150]) + 1
    # Boxes that differ from the objects by little or by much, in place, size and shape.
    noise = torch.randn(40, 4, generator=generator) * 10 ** (torch.rand(40, 1, generator=generator) * 4 - 2)
    boxes = gt.repeat(7, 1)[:40] + noise
    boxes[:, 2:] = boxes[:, 2:].abs() + 0.1
    boxes, gt = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(gt)
    blocks = l1_distances(gt, boxes)[None].unflatten(-1, (blocks_of, -1))
    covering = covering_slots_in_blocks(boxes[None], gt[None], blocks, blocks.amin(dim=-1), threshold)[0]
    assert torch.equal(covering, covering_slots(boxes[None], gt[None], threshold)[0])
    assert torch.equal(covering, (pairwise_iou(boxes, gt) > threshold).any(dim=1))


# ---- measured on the reference --------------------------------------------------------------------------------------

# side in pixels: (pairs kept, share of objects without any) for C5 with k = 4 and for DC5 with k = 8, anchors only.
MEASURED = {
    (4, 8): ((0.00, 1.00), (0.49, 0.52)),
    (8, 12): ((0.00, 1.00), (1.26, 0.02)),
    (12, 16): ((0.45, 0.55), (1.85, 0.00)),
    (16, 24): ((0.91, 0.15), (4.28, 0.00)),
    (24, 32): ((1.35, 0.02), (7.52, 0.00)),
    (32, 64): ((3.15, 0.00), (7.84, 0.00)),
    (64, 128): ((3.99, 0.00), (8.00, 0.00)),
    (128, 256): ((4.00, 0.00), (8.00, 0.00)),
    (256, 512): ((4.00, 0.00), (8.00, 0.00)),
}


@pytest.mark.parametrize("sides_px", MEASURED)
def test_small_objects_get_fewer_pairs_or_none_as_measured_on_the_reference(sides_px):
    generator = torch.Generator().manual_seed(sides_px[0])
    low, high = (math.log(side) for side in sides_px)
    side = torch.exp(low + (high - low) * torch.rand(2000, generator=generator))
    ratio = torch.exp((2 * torch.rand(2000, generator=generator) - 1) * math.log(2)).sqrt()
    size = torch.stack([side * ratio, side / ratio], dim=1)
    corner = torch.rand(2000, 2, generator=generator) * (torch.tensor([1344.0, 800]) - size)
    gt_boxes = torch.cat([corner, corner + size], dim=1)
    for (kept, none), (shape, stride, first, k, least) in zip(
        MEASURED[sides_px], [((25, 42), 32, 32.0, 4, 0.15), ((50, 84), 16, 16.0, 8, 0.1)], strict=True
    ):
        sizes = [s for s in (16.0, 32, 64, 128, 256, 512) if s >= first]
        grid = make_grid([shape], [stride], anchor_sizes=[sizes])
        slots = nearest_anchors(grid, gt_boxes[None], k)[0]
        ious = iou(gt_boxes[:, None], grid.anchors[slots])
        near_enough = (ious >= least).sum(dim=1).float()
        # 2000 objects were drawn there as well: three standard errors of a difference, and the rounding of the table.
        error = 3 * math.sqrt(2 / 2000)
        assert near_enough.mean().item() == pytest.approx(kept, abs=error * near_enough.std().item() + 0.015)
        share = (near_enough == 0).float().mean().item()
        assert share == pytest.approx(none, abs=error * math.sqrt(share * (1 - share)) + 0.01)
