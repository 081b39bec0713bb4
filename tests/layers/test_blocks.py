"""The bricks, one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minidet.layers.blocks import (
    SPP,
    Bottleneck,
    ConvBlock,
    CSPLayer,
    DepthwiseBlock,
    Focus,
    make_activation,
    space_to_depth,
)


def test_a_convolution_block_has_no_bias_and_the_papers_batch_norm():
    block = ConvBlock(3, 8, 3, stride=2)
    assert block.conv.bias is None
    assert (block.bn.eps, block.bn.momentum) == (1e-3, 0.03)
    assert block(torch.zeros(1, 3, 7, 8)).shape == (1, 8, 4, 4)


def test_depthwise_costs_a_fraction_of_dense():
    # 9 * 16 + 16 * 32 weights, and two numbers a channel for each batch norm
    assert sum(p.numel() for p in DepthwiseBlock(16, 32, 3).parameters()) == 9 * 16 + 16 * 32 + 2 * 16 + 2 * 32


def test_the_bottleneck_adds_its_input_only_with_a_shortcut():
    with_shortcut, without = Bottleneck(4).eval(), Bottleneck(4, shortcut=False).eval()
    without.load_state_dict(with_shortcut.state_dict())
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(with_shortcut(x), without(x) + x)


def test_half_of_a_csp_layer_goes_round_the_bottlenecks():
    layer = CSPLayer(8, 8, n=2).eval()
    for bottleneck in layer.blocks:
        nn.init.zeros_(bottleneck.conv2.conv.weight)  # each bottleneck is now the identity
    x = torch.randn(2, 8, 4, 4)
    expected = layer.fuse(torch.cat([layer.enter(x), layer.bypass(x)], dim=1))
    torch.testing.assert_close(layer(x), expected)


def test_spp_sees_the_maximum_over_thirteen_cells():
    spp = SPP(2, 2).eval()
    seen = []
    spp.fuse.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 2, 13, 13)
    spp(x)
    reduced, pooled13 = seen[0][:, :1], seen[0][:, 3:]
    assert pooled13[0, 0, 6, 6] == reduced.max()


def test_pixel_phases_go_down_before_right():
    image = torch.tensor([[[[0.0, 1], [2, 3]]]])
    assert space_to_depth(image).flatten().tolist() == [0, 2, 1, 3]


def test_focus_equals_one_strided_six_by_six_convolution():
    focus = Focus(3, 8)
    images = torch.randn(2, 3, 32, 48)
    expected = F.conv2d(images, focus.as_conv6x6(), stride=2, padding=2)
    torch.testing.assert_close(focus.conv.conv(space_to_depth(images)), expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="'gelu' is not known"):
        make_activation("gelu")
