"""Coupled and decoupled heads, and the head of anchor detectors on one level and on several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import minidet
from minidet.detectors.weights import transfer_weights
from minidet.errors import MinidetError
from minidet.evaluation.speed import count_gflops, count_parameters
from minidet.layers.heads import AnchorHead, CoupledHead, HeadStyle

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


def test_a_coupled_head_is_a_block_to_twice_the_channels_and_one_convolution():
    torch.manual_seed(0)
    head = CoupledHead((8, 12), HeadStyle(num_classes=3, width=8)).eval()
    maps = [torch.randn(2, 8, 4, 6), torch.randn(2, 12, 2, 3)]
    for level, x, (classes, boxes, objects) in zip(head.levels, maps, head(maps), strict=True):
        predictors = (level.box_predictor, level.object_predictor, level.class_predictor)  # YOLOv3's order of channels
        one = torch.nn.Conv2d(2 * x.shape[1], 4 + 1 + 3, 1)
        one.weight.data = torch.cat([predictor.weight for predictor in predictors])
        one.bias.data = torch.cat([predictor.bias for predictor in predictors])
        torch.testing.assert_close(one(level.branch(x)), torch.cat([boxes, objects, classes], dim=1))
        assert level.branch.conv.kernel_size == (3, 3)


def test_the_coupled_head_has_the_parameters_and_work_of_the_papers_baseline():
    # Table 2, "YOLOv3 baseline": 63.00 M, 157.3 GFLOPs, with three anchors a cell, so 3 * 85 = 4 + 1 + 250 channels.
    model = minidet.create_model("yolox-darknet53", num_classes=250, head="coupled")
    assert round(count_parameters(model) / 1e6, 2) == 63.00
    assert count_gflops(model) == pytest.approx(157.3, rel=0.005)  # the paper's tool counts activations too


def test_a_coupled_head_is_one_word_away_and_comes_back_from_a_file(tmp_path):
    model = minidet.create_model("yolox-nano", 3, width=0.125, head="coupled", input_hw=(64, 96))
    assert isinstance(model.head, CoupledHead)
    images = torch.rand(2, 3, 64, 96)
    targets = [{"boxes": torch.tensor([[5.0, 5, 40, 50]]), "labels": torch.tensor([2])}] * 2
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    minidet.save_weights(model, tmp_path / "w.safetensors")
    again = minidet.load_model(tmp_path / "w.safetensors")
    assert again.config == model.config
    assert torch.equal(again.dense(images).class_logits, model.eval().dense(images).class_logits)


def test_a_coupled_head_learns_new_classes_and_keeps_its_boxes():
    trained, model = (minidet.create_model("yolox-nano", count, width=0.125, head="coupled") for count in (3, 5))
    left_out = transfer_weights(trained, model, "trained")
    assert len(left_out) == 6 and all("class_predictor" in key for key in left_out)
    box = "head.levels.0.box_predictor.weight"
    assert torch.equal(model.state_dict()[box], trained.state_dict()[box])


def test_another_head_is_refused():
    with pytest.raises(MinidetError, match="head"):
        minidet.create_model("yolox-nano", head="joined")
