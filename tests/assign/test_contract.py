"""What holds for every assignment strategy, on random and on nasty input."""

from __future__ import annotations

import pytest
import torch

from minidet.assign import BACKGROUND, IGNORED, DensePredictions, SimOTA
from minidet.grid import make_grid

STRATEGIES = {"SimOTA": SimOTA(), "SimOTA as published": SimOTA.published()}
STRIDES = (8, 16, 32)
NUM_CLASSES = 5
H, W = 192, 256


def predictions_for(batch: int, seed: int = 0) -> DensePredictions:
    """Random boxes of sensible size around each cell, random logits."""
    generator = torch.Generator().manual_seed(seed)
    grid = make_grid([(H // s, W // s) for s in STRIDES], STRIDES)
    size = grid.strides[:, None] * torch.exp(torch.randn(batch, len(grid), 2, generator=generator))
    center = grid.centers + grid.strides[:, None] * torch.randn(batch, len(grid), 2, generator=generator)
    boxes = torch.cat([center - size / 2, center + size / 2], dim=-1)
    logits = torch.randn(batch, len(grid), NUM_CLASSES + 1, generator=generator)
    return DensePredictions(grid, torch.zeros_like(boxes), boxes, logits[..., 1:], logits[..., 0])


def objects(boxes: list[list[float]], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64)}


def crowd(count: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([W - 20.0, H - 20.0])
    size = 2 + 40 * torch.rand(count, 2, generator=generator)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    return {"boxes": torch.cat([corner, corner + size], dim=1), "labels": labels}


NASTY = {
    "no object": objects([]),
    "one pixel": objects([[100, 100, 101, 101]]),
    "zero size": objects([[100, 100, 100, 100]]),
    "the whole picture": objects([[0, 0, W, H]]),
    "300 crowded objects": crowd(300),
    "exact duplicates": objects([[30, 30, 90, 80]] * 4, [1, 1, 1, 2]),
    "at the border": objects([[0, 0, 12, 9], [W - 9, H - 5, W, H], [0, H / 2, 1, H]]),
    "centre outside": objects([[W + 10, 20, W + 60, 90], [40, 40, 80, 80]]),
    "all far outside": objects([[5000, 5000, 5010, 5010]]),
}


@pytest.fixture(params=STRATEGIES, ids=lambda name: name)
def assigner(request):
    return STRATEGIES[request.param]


@pytest.mark.parametrize("target", NASTY.values(), ids=NASTY)
def test_invariants_on_nasty_objects(assigner, target):
    result = assigner(predictions_for(1), [target], trace=True)
    num_gt = len(target["labels"])
    assert result.num_gt == (num_gt,)
    assert result.matched_gt.min() >= IGNORED
    assert result.matched_gt.max() < max(num_gt, 1)
    assert ((result.quality >= 0) & (result.quality <= 1)).all()
    assert (result.quality[~result.positive] == 0).all()
    trace = result.trace[0]
    assert trace["cost"].isfinite().all()
    assert (trace["dynamic_k"] <= len(trace["candidates"])).all()
    assert (trace["taken"].sum(dim=0) <= 1).all()  # no slot has two owners


def test_without_objects_everything_is_background(assigner):
    result = assigner(predictions_for(2), [objects([]), objects([])])
    assert (result.matched_gt == BACKGROUND).all()
    assert len(result.pairs) == 0
    assert result.num_positives == 0


def test_pairs_say_the_same_as_the_matched_rows(assigner):
    result = assigner(predictions_for(2), [crowd(20), crowd(7, seed=2)])
    pairs = result.pairs
    assert len(pairs) == result.num_positives
    assert torch.equal(result.matched_gt[pairs.image, pairs.slot], pairs.gt)


def test_the_order_of_images_in_the_batch_does_not_matter(assigner):
    predictions = predictions_for(3)
    targets = [crowd(12), objects([]), crowd(5, seed=3)]
    order = [2, 0, 1]
    turned = DensePredictions(
        predictions.grid,
        predictions.raw_boxes[order],
        predictions.boxes[order],
        predictions.class_logits[order],
        predictions.object_logits[order],
    )
    straight = assigner(predictions, targets)
    result = assigner(turned, [targets[i] for i in order])
    assert torch.equal(result.matched_gt, straight.matched_gt[order])
    assert torch.equal(result.quality, straight.quality[order])


def test_moving_everything_by_one_coarsest_stride_moves_the_assignment_with_it(assigner):
    predictions, target = predictions_for(1), objects([[90, 70, 130, 120], [100, 60, 150, 90]], [0, 3])
    step = STRIDES[-1]
    moved = {name: [] for name in ("boxes", "class_logits", "object_logits")}
    start = 0
    for rows, columns in predictions.grid.level_shapes:
        cells = step * columns // W  # the same shift, in cells of this level
        for name, maps in moved.items():
            level = getattr(predictions, name)[:, start : start + rows * columns].unflatten(1, (rows, columns))
            maps.append(level.roll(cells, dims=2).flatten(1, 2))
        start += rows * columns
    shift = torch.tensor([step, 0.0, step, 0.0])
    shifted = DensePredictions(
        predictions.grid,
        predictions.raw_boxes,
        torch.cat(moved["boxes"], dim=1) + shift,
        torch.cat(moved["class_logits"], dim=1),
        torch.cat(moved["object_logits"], dim=1),
    )

    def where(result):  # (x, y, object) of every positive slot
        slots = result.pairs.slot
        return {
            (*(center.tolist()), gt.item())
            for center, gt in zip(predictions.grid.centers[slots], result.pairs.gt, strict=True)
        }

    before = where(assigner(predictions, [target]))
    after = where(assigner(shifted, [{**target, "boxes": target["boxes"] + shift}]))
    assert before
    assert after == {(x + step, y, gt) for x, y, gt in before}


def test_a_prediction_that_is_not_a_number_never_becomes_positive(assigner):
    predictions, target = predictions_for(1), crowd(10)
    slots = assigner(predictions, [target]).pairs.slot
    predictions.boxes[0, slots[0]] = float("nan")
    predictions.class_logits[0, slots[1]] = float("inf")
    predictions.object_logits[0, slots[2]] = float("nan")
    result = assigner(predictions, [target], trace=True)
    assert result.trace[0]["cost"].isfinite().all()
    assert not result.positive[0, slots[:3]].any()
    assert result.num_positives > 0


def test_a_trace_is_kept_only_on_request(assigner):
    assert assigner(predictions_for(1), [crowd(3)]).trace is None
