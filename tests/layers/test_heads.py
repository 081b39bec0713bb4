"""The head of anchor detectors on one level and on several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import minidet
from minidet.layers.heads import AnchorHead

WIDTH = 6


def levels(*sizes: tuple[int, int], batch: int = 3) -> list[Tensor]:
    """Maps of different scale, as the levels of a pyramid have them."""
    return [torch.randn(batch, WIDTH, *size) * (1 + i) + 5 * i for i, size in enumerate(sizes)]


@pytest.mark.parametrize("mode", [True, False])
def test_one_level_in_a_list_is_that_level(mode):
    head = AnchorHead(WIDTH, 2, 3).train(mode)
    (alone,) = levels((4, 5))
    ((classes, boxes, objects),) = head([alone])
    assert (classes.shape, boxes.shape, objects.shape) == ((3, 6, 4, 5), (3, 8, 4, 5), (3, 2, 4, 5))
    for ours, theirs in zip((classes, boxes, objects), head(alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_in_evaluation_each_level_is_answered_as_if_it_were_alone():
    head = AnchorHead(WIDTH, 1, 3, objectness=False).eval()
    maps = levels((8, 12), (4, 6), (1, 1))
    for ours, level in zip(head(maps), maps, strict=True):
        classes, boxes, nothing = head(level)
        torch.testing.assert_close(ours[0], classes)
        torch.testing.assert_close(ours[1], boxes)
        assert ours[2] is nothing is None


def test_in_training_the_norms_take_the_cells_of_all_levels_together():
    head = AnchorHead(WIDTH, 1, 3, class_convs=1)
    block, maps = head.class_branch[0], levels((8, 12), (2, 3))
    cells = torch.cat([block.conv(level).transpose(0, 1).flatten(1) for level in maps], dim=1)  # [C, cells]
    mean, variance = cells.mean(dim=1), cells.var(dim=1, unbiased=False)

    head(maps)
    torch.testing.assert_close(block.norm.running_mean, 0.1 * mean)  # torch's momentum of 0.1, from 0
    (_, small) = block.on_levels(maps)
    expected = (block.conv(maps[1]) - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
    torch.testing.assert_close(small, expected.relu(), rtol=1e-4, atol=1e-5)


def test_training_on_a_pyramid_and_testing_on_it_agree():
    head, maps = AnchorHead(WIDTH, 1, 3), levels((8, 12), (4, 6), (1, 2))
    with torch.no_grad():
        for _ in range(150):  # running statistics need time to arrive
            trained = head.train()(maps)
        tested = head.eval()(maps)
    for (_, ours, _), (_, theirs, _) in zip(tested, trained, strict=True):
        difference = (ours - theirs).abs().max().item() / theirs.std().item()
        assert difference < 0.1  # with norms level by level 2 to 4


def test_levels_of_equal_stride_keep_their_own_names():
    model = minidet.create_model("yolof-r18-c5", 2, width=16, encoder="mimo").eval()
    assert model.level_names == ("p3", "p4", "p5", "p6", "p7")
    dilated = minidet.create_model(
        "yolof-r50-dc5", 2, width=16, encoder="simo", anchor_sizes=(16, 32, 64, 128, 256), frozen_norm=False
    ).eval()
    with torch.no_grad():
        maps = dilated.features_of(torch.zeros(1, 3, 64, 96))
    assert [tuple(maps[name].shape[-2:]) for name in dilated.level_names] == [(8, 12), (4, 6), (4, 6), (2, 3), (1, 2)]
