"""Anchors by k-means: right by hand, better than chance, and nothing that one box could do would make them better."""

from __future__ import annotations

import itertools

import pytest
import torch

from minidet.boxes import cxcywh_to_xyxy, pairwise_iou, shape_iou
from minidet.data.anchors import box_sizes, kmeans_anchors, mean_best_iou
from minidet.data.augment import Augmentation, letterbox
from minidet.data.plan import Planner
from minidet.errors import DataError, MinidetError
from tests.data.smooth import SmoothPictures


def some_sizes(count: int, seed: int = 0) -> torch.Tensor:
    """From 8 to 400 pixels a side on the average, evenly on a logarithmic scale, up to four times as wide as high."""
    random = torch.Generator().manual_seed(seed)
    side = 8 * (400 / 8) ** torch.rand(count, 1, generator=random)
    stretch = 2 ** (2 * torch.rand(count, 1, generator=random) - 1)
    return torch.cat([side * stretch, side / stretch], dim=1)


def test_two_shapes_that_cross_share_what_both_cover():
    # 10 x 20 and 20 x 10 share 10 x 10 of 200 + 200 - 100; 5 x 10 is a quarter of 10 x 20 and lies inside
    sizes, anchors = torch.tensor([[10.0, 20.0]]), torch.tensor([[20.0, 10.0], [5.0, 10.0], [10.0, 20.0]])
    assert shape_iou(sizes, anchors).tolist() == [pytest.approx([1 / 3, 1 / 4, 1])]


def test_the_iou_of_shapes_is_that_of_boxes_with_one_centre():
    sizes, anchors = some_sizes(50), some_sizes(7, seed=1)
    centred = [cxcywh_to_xyxy(torch.cat([torch.zeros_like(each), each], dim=1)) for each in (sizes, anchors)]
    torch.testing.assert_close(shape_iou(sizes, anchors), pairwise_iou(*centred))


@pytest.mark.parametrize("seed", range(5))
def test_three_groups_far_apart_are_found_exactly(seed):
    tall = torch.tensor([[9.0, 40.0], [10.0, 41.0], [11.0, 42.0], [10.0, 41.0]])  # mean 10 x 41
    wide = torch.tensor([[60.0, 20.0], [64.0, 20.0], [62.0, 23.0]])  # mean 62 x 21
    large = torch.tensor([[300.0, 290.0], [304.0, 310.0]])  # mean 302 x 300
    anchors = kmeans_anchors(torch.cat([large, tall, wide]), 3, seed=seed)
    torch.testing.assert_close(anchors, torch.tensor([[10.0, 41.0], [62.0, 21.0], [302.0, 300.0]]))


def test_as_many_anchors_as_sizes_are_the_sizes_by_area():
    sizes = torch.tensor([[50.0, 50.0], [8.0, 6.0], [6.0, 8.0], [30.0, 2.0], [8.0, 6.0]])
    assert kmeans_anchors(sizes, 4).tolist() == [[6, 8], [8, 6], [30, 2], [50, 50]]


def test_one_anchor_is_the_mean_of_all_boxes_and_a_size_counts_as_often_as_it_occurs():
    sizes = torch.tensor([[10.0, 10.0], [10.0, 10.0], [10.0, 10.0], [50.0, 30.0]])
    assert kmeans_anchors(sizes, 1).tolist() == [[20, 15]]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [2, 3, 9])
def test_in_the_end_no_box_would_be_better_off_with_another_anchor(count, seed):
    sizes = some_sizes(120, seed)
    anchors = kmeans_anchors(sizes, count, seed)
    groups: list[list[int]] = [[] for _ in range(count)]
    for number, (width, height) in enumerate(sizes.tolist()):
        ious = []
        for anchor_width, anchor_height in anchors.tolist():
            shared = min(width, anchor_width) * min(height, anchor_height)
            ious.append(shared / (width * height + anchor_width * anchor_height - shared))
        groups[ious.index(max(ious))].append(number)
    # An anchor is the mean of those that prefer it: so they all have the anchor that they prefer.
    means = torch.stack([sizes[group].mean(dim=0) for group in groups])
    torch.testing.assert_close(anchors, means)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_is_at_rest_as_all_groupings_tried_one_by_one_say(seed):
    sizes = some_sizes(9, seed)
    at_rest = []
    for grouping in itertools.product(range(3), repeat=len(sizes)):
        members = torch.tensor(grouping)
        if len(set(grouping)) == 3 and grouping[0] == 0:  # that the first group is the first box's: names play no part
            anchors = torch.stack([sizes[members == k].mean(dim=0) for k in range(3)])
            if torch.equal(shape_iou(sizes, anchors).argmax(dim=1), members):
                at_rest.append(mean_best_iou(sizes, anchors))
    found = [mean_best_iou(sizes, kmeans_anchors(sizes, 3, start)) for start in range(20)]
    assert all(min(abs(each - known) for known in at_rest) < 1e-5 for each in found)


def test_the_anchors_fit_better_than_any_of_many_random_choices():
    sizes = some_sizes(500)
    random = torch.Generator().manual_seed(0)
    choices = [sizes[torch.randperm(len(sizes), generator=random)[:9]] for _ in range(200)]
    assert mean_best_iou(sizes, kmeans_anchors(sizes, 9)) > max(mean_best_iou(sizes, choice) for choice in choices)


def test_the_mean_best_iou_by_hand():
    sizes, anchors = torch.tensor([[10.0, 10.0], [20.0, 20.0]]), torch.tensor([[10.0, 10.0], [20.0, 10.0]])
    assert mean_best_iou(sizes, anchors) == pytest.approx((1 + 0.5) / 2)


def test_the_same_seed_gives_the_same_anchors_in_any_order_of_boxes_and_another_seed_may_not():
    sizes = some_sizes(300)
    first = kmeans_anchors(sizes, 9, seed=1)
    assert torch.equal(first, kmeans_anchors(sizes.flip(0), 9, seed=1))
    assert any(not torch.equal(first, kmeans_anchors(sizes, 9, seed=seed)) for seed in range(2, 6))
    assert (first.prod(dim=1).diff() >= 0).all()
    assert first.dtype == torch.float32


def test_chance_elsewhere_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    kmeans_anchors(some_sizes(50), 5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_very_small_and_very_large_sizes_are_nothing_special(scale):
    sizes = some_sizes(60)
    torch.testing.assert_close(kmeans_anchors(sizes * scale, 4), kmeans_anchors(sizes, 4) * scale, rtol=1e-3, atol=0)


@pytest.mark.parametrize("seed", range(20))
def test_sizes_that_are_nearly_one_still_give_as_many_anchors(seed):
    sizes = torch.cat([10 + torch.arange(6)[:, None] * torch.tensor([[1e-6, 2e-6]]), torch.tensor([[90.0, 5.0]])])
    anchors = kmeans_anchors(sizes, len(sizes.unique(dim=0)), seed)
    assert torch.equal(anchors.unique(dim=0), sizes.unique(dim=0))


def test_too_few_different_sizes_are_named_with_what_can_be_done():
    sizes = torch.tensor([[10.0, 20.0]] * 50 + [[20.0, 10.0]])
    with pytest.raises(DataError, match="9 anchors need .* 51 boxes have 2. Give .* more pictures, or ask for 2"):
        kmeans_anchors(sizes)


@pytest.mark.parametrize("wrong", [0.0, -3.0, float("nan"), float("inf")])
def test_a_size_that_cannot_be_is_named(wrong):
    sizes = some_sizes(20)
    sizes[7, 1] = wrong
    with pytest.raises(DataError, match=r"sizes\[7\] is .* x (0|-3|nan|inf)\. Leave"):
        kmeans_anchors(sizes)
    with pytest.raises(DataError, match=r"sizes\[7\]"):
        mean_best_iou(sizes, some_sizes(2))


@pytest.mark.parametrize("sizes", [torch.zeros(0, 2), torch.ones(3, 4), torch.ones(4)])
def test_what_is_no_list_of_sizes_is_refused(sizes):
    with pytest.raises(DataError, match=r"\[N, 2\]"):
        kmeans_anchors(sizes)


@pytest.mark.parametrize("options", [{"count": 0}, {"iterations": 0}, {"seed": -1}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(MinidetError, match="must be at least 1"):
        kmeans_anchors(some_sizes(20), **options)


def test_boxes_are_measured_in_pixels_of_the_letterboxed_input():
    dataset = SmoothPictures(12)
    expected = []
    for index in range(len(dataset)):
        boxes = letterbox(dataset.image(index), dataset.target(index)["boxes"], (128, 192))[1]
        expected.append(boxes[:, 2:] - boxes[:, :2])
    torch.testing.assert_close(box_sizes(dataset, (128, 192)), torch.cat(expected))


@pytest.mark.parametrize("resize", ["letterbox", "stretch", "shorter_side"])
def test_boxes_are_as_large_as_training_sees_them(resize):
    dataset = SmoothPictures(12)
    planner = Planner(dataset, Augmentation(mosaic_prob=0), (128, 192), 0, resize)
    boxes = torch.cat([planner.fitted(index)[0] for index in range(len(dataset))])
    torch.testing.assert_close(box_sizes(dataset, (128, 192), resize), boxes[:, 2:] - boxes[:, :2])


def test_pictures_without_boxes_have_no_sizes():
    dataset = SmoothPictures(3)
    dataset.targets = [(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))] * 3
    assert box_sizes(dataset, (128, 192)).shape == (0, 2)
