"""Norms, stems and activations of a network that only predicts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minidet.errors import MinidetError
from minidet.layers.blocks import SPP, ConvBlock, Focus, make_activation
from minidet.layers.fold import activate_in_place, focus_to_convolution, fold_norms
from minidet.layers.heads import NormedConv


def test_a_folded_convolution_has_the_weights_that_one_computes_by_hand():
    block = ConvBlock(1, 1, 1, activation="relu", eps=0.0)
    nn.init.constant_(block.conv.weight, 6.0)
    block.bn.running_mean.fill_(4.0)
    block.bn.running_var.fill_(9.0)
    nn.init.constant_(block.bn.weight, 2.0)
    nn.init.constant_(block.bn.bias, 5.0)
    fold_norms(block.eval())
    # (6 x - 4) / 3 * 2 + 5 = 4 x + 7/3
    assert block.conv.weight.item() == pytest.approx(4)
    assert block.conv.bias.item() == pytest.approx(7 / 3)
    assert isinstance(block.bn, nn.Identity)


def test_a_norm_that_follows_no_convolution_is_named():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    with pytest.raises(MinidetError, match="^2: this norm does not stand right behind a convolution"):
        fold_norms(network)


def test_the_focus_stem_as_one_convolution_gives_the_same_map_also_at_the_border():
    network = nn.Sequential(Focus(3, 8)).eval()
    network[0].conv.bn.running_mean.normal_()
    network[0].conv.bn.running_var.uniform_(0.5, 2)
    images = torch.rand(2, 3, 10, 14) * 255
    with torch.no_grad():
        expected = network(images)
        fold_norms(network)
        focus_to_convolution(network)
        found = network(images)
    assert [type(module) for module in network[0]] == [nn.Conv2d, nn.SiLU]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["silu", "leaky_relu", "relu", "mish"])
def test_an_activation_in_place_overwrites_its_input_with_the_same_numbers(name):
    activation = make_activation(name)
    x = torch.randn(100)
    expected = activation(x.clone())
    activate_in_place(activation)
    assert activation(x) is x
    assert torch.equal(x, expected)


def test_maxima_over_5_9_and_13_cells_are_what_pooling_with_those_windows_gives():
    spp = SPP(4, 6).eval()
    spp.fuse = nn.Identity()
    for x in (torch.randn(2, 4, 20, 15), torch.full((1, 4, 3, 3), -7.0)):
        reduced = spp.reduce(x)
        pools = [nn.functional.max_pool2d(reduced, k, stride=1, padding=k // 2) for k in (5, 9, 13)]
        assert torch.equal(spp(x), torch.cat([reduced, *pools], dim=1))


def test_in_evaluation_levels_are_normed_one_by_one_as_they_are_together():
    block = NormedConv(4).eval()
    block.norm.running_mean.normal_()
    levels = [torch.randn(2, 4, 6, 5), torch.randn(2, 4, 3, 3)]
    joined = torch.cat([block.conv(level).flatten(2) for level in levels], dim=2)[..., None]
    expected = block.activation(block.norm(joined))[..., 0].split([30, 9], dim=2)
    for found, wanted in zip(block.on_levels(levels), expected, strict=True):
        torch.testing.assert_close(found.flatten(2), wanted)
