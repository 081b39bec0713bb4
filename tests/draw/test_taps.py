"""Layers as dots and lines: the ways are those that a gradient counts, and every figure can be read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minidet.draw.look import DARK, LIGHT
from minidet.draw.taps import TapsPanel, count_ways, draw_taps
from tests.explore.pictures import assert_legible


def test_three_layers_without_stride_count_like_three_dice():
    pixels, first, second, top = count_ways([(3, 1, 1)] * 3)
    assert pixels.tolist() == [1, 3, 6, 7, 6, 3, 1]
    assert (first.tolist(), second.tolist(), top.tolist()) == ([1, 2, 3, 2, 1], [1, 1, 1], [1])


def test_no_layer_is_a_pixel_that_sees_itself():
    (pixels,) = count_ways([])
    assert pixels.tolist() == [1]


def test_a_dilation_leaves_holes_and_a_stack_fills_them():
    assert count_ways([(3, 1, 4)])[0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert count_ways([(3, 1, 1), (3, 1, 3)])[0].tolist() == [1] * 9


@pytest.mark.parametrize("seed", range(6))
def test_the_ways_are_the_gradient_of_weights_of_one(seed):
    random = torch.Generator().manual_seed(seed)
    layers = [
        tuple(int(torch.randint(1, high, (), generator=random)) for high in (5, 4, 4)) for _ in range(1 + seed % 4)
    ]
    pixels = count_ways(layers)[0]
    stack = nn.Sequential(*(nn.Conv1d(1, 1, k, s, dilation=d, bias=False) for k, s, d in layers))
    for conv in stack:
        nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, len(pixels), requires_grad=True)
    output = stack(x)
    assert output.shape == (1, 1, 1)
    output.sum().backward()
    assert x.grad[0, 0].tolist() == pixels.tolist()


@pytest.mark.parametrize("look", [LIGHT, DARK])
@pytest.mark.parametrize(
    "layers", [[], [(1, 1, 1)], [(3, 1, 1), (3, 2, 1), (3, 1, 1)], [(3, 1, 4)], [(2, 3, 1), (5, 1, 2)]]
)
def test_any_stack_can_be_drawn(layers, look):
    figure = draw_taps([TapsPanel("some layers", layers), TapsPanel("one", [(3, 1, 2)])], look)
    assert_legible(figure)
    assert f"one unit spans {len(count_ways(layers)[0])} pixels" in figure.alt
