"""POTO by hand and against brute force over all one-to-one matchings."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from minidet.assign import POTO, DensePredictions
from minidet.errors import MinidetError
from minidet.grid import make_grid

GRID = make_grid([(4, 4)], (16,))


def logit(probability: float) -> float:
    return torch.tensor(probability).logit().item()


def saying(boxes: dict[int, list[float]], scores: dict[int, float]) -> DensePredictions:
    """Boxes and class probabilities of single slots; all others are far away and sure of nothing."""
    all_boxes, logits = torch.zeros(1, 16, 4), torch.full((1, 16, 1), -20.0)
    for slot, box in boxes.items():
        all_boxes[0, slot] = torch.tensor(box)
    for slot, score in scores.items():
        logits[0, slot, 0] = logit(score)
    return DensePredictions(GRID, all_boxes, all_boxes, logits, None)


def owner_of(result, gt: int) -> list[int]:
    return (result.matched_gt[0] == gt).nonzero().flatten().tolist()


def test_quality_is_score_and_overlap_each_to_its_exponent(target):
    # The object's centre is (24, 24), in slot 5. Slot 5 is sure of half of it, slot 6 unsure of all of it.
    predictions = saying({5: [16, 16, 32, 24], 6: [16, 16, 32, 32]}, {5: 0.9, 6: 0.1})
    result = POTO()(predictions, [target([[16, 16, 32, 32]])], trace=True)
    trace, column = result.trace[0], result.trace[0]["candidates"].tolist()
    by_hand = {5: 0.9**0.2 * 0.5**0.8, 6: 0.1**0.2 * 1.0}  # 0.562 and 0.631
    for slot, quality in by_hand.items():
        assert trace["quality"][0, column.index(slot)].item() == pytest.approx(quality, rel=1e-4)
    assert owner_of(result, 0) == [6]
    assert owner_of(POTO(alpha=0.5)(predictions, [target([[16, 16, 32, 32]])]), 0) == [5]  # 0.671 and 0.316


def test_the_selector_and_objectness_are_part_of_the_score(target):
    predictions = saying({5: [16, 16, 32, 32], 6: [16, 16, 32, 32]}, {5: 0.9, 6: 0.8})
    gt = [target([[16, 16, 32, 32]])]
    assert owner_of(POTO()(predictions, gt), 0) == [5]
    doubt = torch.zeros(1, 16)
    doubt[0, 5] = logit(0.2)
    for name in ("object_logits", "selector_logits"):
        assert owner_of(POTO()(dataclasses.replace(predictions, **{name: doubt}), gt), 0) == [6]


def test_slots_far_from_the_centre_are_never_given_however_good_they_are(target):
    predictions = saying({15: [0, 0, 16, 16]}, {15: 0.99})
    result = POTO()(predictions, [target([[0, 0, 16, 16]])])
    assert owner_of(result, 0)[0] in (0, 1, 4, 5)  # within 1.5 strides of (8, 8)


def random_case(seed: int, count: int) -> tuple[DensePredictions, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = 64 * torch.rand(1, 16, 2, generator=generator)
    boxes = torch.cat([corner - 10, corner + 10], dim=-1)
    logits = torch.randn(1, 16, 2, generator=generator)
    centers = 12 + 40 * torch.rand(count, 2, generator=generator)
    gt = torch.cat([centers - 9, centers + 9], dim=1)
    return DensePredictions(GRID, boxes, boxes, logits, torch.randn(1, 16, generator=generator)), gt


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_of_qualities_is_the_largest_of_all_matchings(target, seed):
    predictions, gt = random_case(seed, count=3)
    trace = POTO()(predictions, [target(gt, [0, 1, 0])], trace=True).trace[0]
    quality = torch.where(trace["free"], trace["quality"], -torch.inf)
    columns = range(quality.shape[1])
    best = max(sum(quality[g, c] for g, c in enumerate(chosen)) for chosen in itertools.permutations(columns, 3))
    torch.testing.assert_close(trace["quality"][trace["taken"]].sum(), best)


def test_with_many_objects_and_an_untrained_network_the_sum_is_still_the_largest(target):
    grid = make_grid([(40, 40), (20, 20), (10, 10)], (8, 16, 32))
    generator = torch.Generator().manual_seed(0)
    centers = grid.centers + grid.strides[:, None] * torch.rand(len(grid), 2, generator=generator)
    boxes = torch.cat([centers - 2, centers + 2], dim=1)[None]
    logits = -4.6 + 0.1 * torch.randn(1, len(grid), 3, generator=generator)
    corner = 290 * torch.rand(100, 2, generator=generator)
    objects = target(torch.cat([corner, corner + 4 + 20 * torch.rand(100, 2, generator=generator)], dim=1), [1] * 100)
    trace = POTO()(DensePredictions(grid, boxes, boxes, logits, logits[..., 0]), [objects], trace=True).trace[0]
    allowed = np.where(trace["free"].numpy(), trace["quality"].double().numpy() + 100, 0)
    row, column = linear_sum_assignment(allowed, maximize=True)  # in double precision
    assert torch.equal(trace["taken"].nonzero(), torch.stack([torch.tensor(row), torch.tensor(column)], dim=1))


def test_objects_without_any_overlap_have_a_slot_each(target):
    result = POTO()(saying({}, {}), [target([[10, 10, 30, 30], [34, 34, 60, 60], [10, 10, 30, 30]])])
    assert sorted(result.matched_gt[0][result.positive[0]].tolist()) == [0, 1, 2]


def test_no_object_is_left_out_for_the_sake_of_better_pairs(target):
    # Object 0 reaches only slots 0, 1, 4 and 5; so many objects share them that all but four have none.
    boxes = [[0, 0, 16, 16]] * 6
    result = POTO()(saying({0: [0, 0, 16, 16]}, {0: 0.9}), [target(boxes)])
    assert result.num_positives == 4


@pytest.mark.parametrize("settings", [{"alpha": -0.1}, {"alpha": 1.1}, {"radius": -1.0}, {"alpha": "x"}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(MinidetError, match=f"POTO: {next(iter(settings))}"):
        POTO(**settings)
