"""Plans: boxes are those of the steps done one by one, maps are composed rightly, what is not seen is not read."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from minidet.data.augment import FLIP_AND_SHIFT, Augmentation, resize_batch
from minidet.data.loader import TrainingSamples
from minidet.data.plan import (
    Placement,
    Planner,
    SampleKey,
    compose,
    hull,
    inverse,
    is_seen,
    mirror,
    scaling,
    translation,
)
from minidet.errors import DataError
from tests.data.smooth import SmoothPictures

PUBLISHED = Augmentation()
EVERYTHING = dataclasses.replace(PUBLISHED, mosaic_prob=0.5, affine_prob=0.5, shift_prob=0.7, min_visible=0.1)
CASES = [
    (PUBLISHED, "letterbox", (128, 192)),
    (PUBLISHED, "stretch", (128, 128)),
    (EVERYTHING, "letterbox", (128, 192)),
    (dataclasses.replace(PUBLISHED, mosaic_scale=(1, 1), degrees=0, shear=0, translate=0), "letterbox", (128, 192)),
    (dataclasses.replace(PUBLISHED, min_box_side=20), "letterbox", (128, 192)),  # often no box is left
    (FLIP_AND_SHIFT, "letterbox", (128, 192)),
    (FLIP_AND_SHIFT, "shorter_side", (120, 200)),
    (dataclasses.replace(FLIP_AND_SHIFT, affine_prob=0.5, max_labels=2), "shorter_side", (120, 200)),
]


def some_keys(count: int, pictures: int) -> list[SampleKey]:
    """Of every picture, in several turns, one in four without strong augmentation."""
    return [SampleKey(i % pictures, i // pictures, i % 4 != 3) for i in range(count)]


@pytest.mark.parametrize(("augmentation", "resize", "size_hw"), CASES)
def test_boxes_and_labels_equal_those_of_the_steps_one_by_one(augmentation, resize, size_hw):
    samples = TrainingSamples(SmoothPictures(20), augmentation, size_hw, seed=3, resize=resize)
    seen = 0
    for key in some_keys(60, 20):
        plan = samples.planner.plan(key)
        image, target = samples.step_by_step(key)
        assert torch.equal(plan.boxes, target["boxes"])
        assert torch.equal(plan.labels, target["labels"])
        assert plan.size_hw == tuple(image.shape[-2:])
        seen += len(plan.boxes)
    assert seen > 40


def test_resizing_keeps_the_edges_of_a_picture_and_moves_the_centres_of_its_pixels():
    assert hull(scaling(2, 0.5), (0, 0, 10, 20)) == (0, 0, 20, 10)
    assert (scaling(2, 0.5) @ [0, 0, 1]).tolist() == [0.5, -0.25]  # the first pixel becomes the first two, or half one


def test_maps_are_composed_mirrored_and_inverted_as_by_hand():
    both = compose(mirror(100), compose(translation(10, 20), scaling(3, 3)))
    assert (both @ [4, 5, 1]).tolist() == [99 - (3 * 4 + 1 + 10), 3 * 5 + 1 + 20]
    turned = np.array([[0.8, -0.6, 5], [0.6, 0.8, -7]])
    back = compose(inverse(turned), turned)
    assert np.allclose(back, [[1, 0, 0], [0, 1, 0]], atol=1e-12)
    assert np.allclose(inverse(turned)[:, :2], [[0.8, 0.6], [-0.6, 0.8]])


@pytest.mark.parametrize("seed", range(40))
def test_a_picture_is_seen_exactly_where_the_frame_cuts_it(seed):
    rng = np.random.default_rng(seed)
    angle, scale = rng.uniform(-0.5, 0.5), rng.uniform(0.3, 2)
    matrix = np.array(
        [
            [scale * np.cos(angle), -scale * np.sin(angle), rng.uniform(-80, 80)],
            [scale * np.sin(angle), scale * np.cos(angle), rng.uniform(-80, 80)],
        ]
    )
    window, frame = (3.0, 2.0, 40.0, 30.0), (0, 0, 60, 50)
    x, y = np.meshgrid(np.linspace(2.51, 39.49, 200), np.linspace(1.51, 29.49, 200))
    moved_x, moved_y = np.tensordot(matrix, np.stack([x, y, np.ones_like(x)]), axes=1)
    cut = (moved_x > -0.5) & (moved_x < 59.5) & (moved_y > -0.5) & (moved_y < 49.5)
    assert is_seen(Placement(0, (30, 40), matrix, window), frame) == cut.any()


def test_of_the_four_pictures_of_a_mosaic_two_in_five_are_out_of_sight():
    data = SmoothPictures(20)
    for record in data.records:
        record.height, record.width = 480, 640
    planner = Planner(data, PUBLISHED, (640, 640))
    counts = Counter(len(planner.plan(key).tiles) for key in (SampleKey(i % 20, i // 20, True) for i in range(1000)))
    mean = sum(count * times for count, times in counts.items()) / 1000
    assert abs(mean - 2.46) < 0.17  # four standard errors; 2.46 by counting 4,000 mosaics in another program
    assert counts[4] > 300


def test_a_picture_is_read_in_the_size_that_it_has_or_needs_whichever_is_smaller():
    planner = Planner(SmoothPictures(5), PUBLISHED, (128, 192))
    assert planner.stored_hw == [(96, 192), (128, 96), (128, 192), (66, 94), (128, 85)]
    assert planner.fitted_hw == [(96, 192), (128, 96), (128, 192), (128, 182), (128, 85)]


def test_another_network_input_scales_boxes_as_the_published_step_does():
    planner = Planner(SmoothPictures(20), EVERYTHING, (128, 192))
    for key in some_keys(60, 20):
        plan = planner.plan(key)
        resized = plan.resized((96, 256))
        _, (expected,) = resize_batch(torch.zeros(1, 3, 128, 192), [{"boxes": plan.boxes}], (96, 256))
        assert torch.equal(resized.boxes, expected["boxes"])
        assert resized.size_hw == (96, 256)
        for before, after in zip(plan.placements, resized.placements, strict=True):
            x1, y1, x2, y2 = hull(before.matrix, before.window)
            scaled = (x1 * 256 / 192, y1 * 96 / 128, x2 * 256 / 192, y2 * 96 / 128)
            assert np.allclose(hull(after.matrix, after.window), scaled)
    assert planner.plan(key).resized((128, 192)).boxes is not None


def test_the_place_of_an_unusable_picture_is_taken_by_the_next_one_of_its_kind():
    data = SmoothPictures(6)
    empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    data.targets = [empty if i in (1, 4) else (torch.tensor([[1.0, 1, 9, 9]]), torch.tensor([i])) for i in range(6)]
    planner = Planner(data, PUBLISHED, (128, 192))
    assert planner.instead_of(2, frozenset({3})) == 2
    assert planner.instead_of(3, frozenset({3})) == 5  # 4 has no objects
    assert planner.instead_of(5, frozenset({5, 0})) == 2
    assert planner.instead_of(1, frozenset({1, 2})) == 3  # any will do for a picture without objects
    with pytest.raises(DataError, match=r"none of 4 pictures with objects can be read.*image id 102"):
        planner.instead_of(2, frozenset({0, 2, 3, 5}))


def test_no_plan_shows_an_unusable_picture():
    planner = Planner(SmoothPictures(6), PUBLISHED, (128, 192))
    unusable = frozenset({1, 4})
    for key in some_keys(100, 6):
        plan = planner.plan(key, unusable)
        assert plan.index not in unusable
        assert not {placement.index for placement in plan.placements} & unusable
