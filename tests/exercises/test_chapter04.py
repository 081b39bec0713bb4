"""The exercises of chapter 04: the right answers, by the library and by hand, and what wrong ones are told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import minidet
from minidet.evaluation.receptive_field import (
    effective_receptive_field,
    encoder_receptive_fields,
    theoretical_receptive_field,
)
from minidet.exercises import EXERCISES, review
from minidet.exercises.chapter04 import RESNET_18
from minidet.explore.fields import BlockSetting, with_blocks
from minidet.layers.resnet import ResNet
from tests.exercises.told import assert_wrong, stub

NAMES = ("field_of_layers", "encoder_ranges", "effective_field")


# ---- the solutions --------------------------------------------------------------------------------------------------


def field_of_layers(layers):
    size, stride_so_far = 1, 1
    for kernel, stride, dilation in layers:
        size = size + (kernel - 1) * dilation * stride_so_far
        stride_so_far = stride_so_far * stride
    return size, stride_so_far


def field_from_the_top(layers):
    size, product = 1, 1
    for kernel, stride, dilation in reversed(layers):
        size = (size - 1) * stride + (kernel - 1) * dilation + 1
        product *= stride
    return size, product


def encoder_ranges(projector, stride, dilations, shortcuts):
    sizes = [projector]
    for dilation, shortcut in zip(dilations, shortcuts, strict=True):
        longer = [size + 2 * dilation * stride for size in sizes]
        sizes = sizes + longer if shortcut else longer
    return torch.tensor(sizes).unique()


def effective_field(network, x, cell):
    x = x.detach().clone().requires_grad_(True)
    unit = network(x)[0][:, cell[0], cell[1]]
    squares = torch.zeros_like(x[0, 0])
    for channel in range(len(unit)):
        (gradient,) = torch.autograd.grad(unit[channel], x, retain_graph=True)
        squares = squares + (gradient[0] ** 2).sum(0)
    field = squares.sqrt().detach()
    return field / field.max().clamp(min=1e-30)


@pytest.mark.parametrize(
    ("name", "stub"),
    [
        ("field_of_layers", lambda layers: stub()),
        ("encoder_ranges", lambda projector, stride, dilations, shortcuts: stub()),
        ("effective_field", lambda network, x, cell: stub()),
    ],
)
def test_a_stub_is_not_attempted(name, stub):
    assert review(EXERCISES[name], stub).status == "not attempted"


@pytest.mark.parametrize("answer", [field_of_layers, field_from_the_top])
def test_both_directions_of_counting_are_done(answer):
    assert review(EXERCISES["field_of_layers"], answer).text == "field_of_layers: done. Right on all 7 inputs."


def test_the_other_solutions_are_done():
    assert review(EXERCISES["encoder_ranges"], encoder_ranges).text == "encoder_ranges: done. Right on all 7 inputs."
    assert review(EXERCISES["effective_field"], effective_field).text == "effective_field: done. Right on all 5 inputs."


def test_what_is_shown_is_the_same_every_time():
    for name in NAMES:
        wrong = review(EXERCISES[name], lambda *arguments: 3)
        assert wrong == review(EXERCISES[name], lambda *arguments: 3)
        assert " at 0x" not in wrong.text


# ---- the right answers are the library's ----------------------------------------------------------------------------


def test_resnet_18_as_a_list_of_layers_is_the_network():
    with torch.device("meta"):
        field = theoretical_receptive_field(ResNet("resnet18"), "c5")
    assert EXERCISES["field_of_layers"].answer(RESNET_18) == (field.size, field.stride_hw[0]) == (435, 32)


@pytest.mark.parametrize("seed", range(8))
def test_random_stacks_see_what_the_library_says(seed):
    random = torch.Generator().manual_seed(seed)
    layers = [
        (int(k), int(s), int(d))
        for k, s, d in zip(
            torch.randint(1, 6, (6,), generator=random),
            torch.randint(1, 3, (6,), generator=random),
            torch.randint(1, 4, (6,), generator=random),
            strict=True,
        )
    ]
    stack = nn.Sequential(*(nn.Conv2d(1, 1, k, s, padding=k * d // 2, dilation=d) for k, s, d in layers))
    field = theoretical_receptive_field(stack, "output", channels=1)
    assert EXERCISES["field_of_layers"].answer(layers) == (field.size, field.stride_hw[0])


@pytest.mark.parametrize("seed", range(4))
def test_random_encoders_mix_what_the_library_says(seed):
    random = torch.Generator().manual_seed(seed)
    dilations = torch.randint(1, 9, (4,), generator=random).tolist()
    shortcuts = [bool(draw) for draw in torch.randint(0, 2, (4,), generator=random)]
    with torch.device("meta"):
        model = minidet.create_model("yolof-r18-c5", 2, dilations=tuple(dilations))
    model = with_blocks(model, [BlockSetting(True, d, s) for d, s in zip(dilations, shortcuts, strict=True)])
    assert EXERCISES["encoder_ranges"].answer(499, 32, dilations, shortcuts).tolist() == list(
        encoder_receptive_fields(model)
    )


def test_the_field_of_one_channel_is_the_librarys():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 1, 3, padding=1))
    x = torch.rand(1, 3, 14, 19)
    theirs = effective_receptive_field(network, "output", x, cell=(2, 6))
    torch.testing.assert_close(EXERCISES["effective_field"].answer(network, x, (2, 6)), theirs)


def test_the_library_estimates_the_field_of_many_channels():
    torch.manual_seed(0)
    network = nn.Conv2d(3, 5, 3, padding=1)
    x = torch.rand(1, 3, 7, 7)
    exact = EXERCISES["effective_field"].answer(network, x, (3, 3))
    estimated = effective_receptive_field(network, "output", x.expand(400, -1, -1, -1), cell=(3, 3))
    torch.testing.assert_close(estimated, exact, rtol=0, atol=0.08)


# ---- wrong answers --------------------------------------------------------------------------------------------------


def counts_its_own_stride(layers):
    size, jump = 1, 1
    for kernel, stride, dilation in layers:
        jump *= stride
        size += (kernel - 1) * dilation * jump
    return size, jump


def forgets_the_strides(layers):
    size, jump = 1, 1
    for kernel, stride, dilation in layers:
        size += (kernel - 1) * dilation
        jump *= stride
    return size, jump


def forgets_the_dilation(layers):
    return field_of_layers([(kernel, stride, 1) for kernel, stride, _ in layers])


def counts_taps_instead_of_steps(layers):
    size, jump = 1, 1
    for kernel, stride, dilation in layers:
        size += kernel * dilation * jump
        jump *= stride
    return size, jump


def stretches_the_taps(layers):
    return field_of_layers([(kernel * dilation, stride, 1) for kernel, stride, dilation in layers])


def starts_from_nothing(layers):
    size, stride = field_of_layers(layers)
    return size - 1, stride


def runs_the_other_way(layers):
    return field_from_the_top(list(reversed(layers)))


def adds_strides(layers):
    size, jump = 1, 1
    for kernel, stride, dilation in layers:
        size += (kernel - 1) * dilation * jump
        jump += stride
    return size, jump


def keeps_the_last_stride(layers):
    size, jump = 1, 1
    for kernel, stride, dilation in layers:
        size += (kernel - 1) * dilation * jump
        jump = stride
    return size, jump


def stride_first(layers):
    return tuple(reversed(field_of_layers(layers)))


def only_the_size(layers):
    return field_of_layers(layers)[0]


def as_tensors(layers):
    return torch.tensor(field_of_layers(layers)[0]), field_of_layers(layers)[1]


def uses_up_its_list(layers):
    size, jump = 1, 1
    while layers:
        kernel, stride, dilation = layers.pop(0)
        size += (kernel - 1) * dilation * jump
        jump *= stride
    return size, jump


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (counts_its_own_stride, "size is 11, not 9.", "Enlarge the size first, then multiply the stride."),
        (forgets_the_strides, "size is 7, not 9.", "one step on a map is several pixels of the picture"),
        (forgets_the_dilation, "size is 3, not 9.", "The dilation is missing"),
        (counts_taps_instead_of_steps, "size is 13, not 9.", "it adds kernel - 1, not kernel"),
        (stretches_the_taps, "size is 12, not 9.", "Dilation stretches the steps between the taps, not the taps"),
        (starts_from_nothing, "size is 8, not 9.", "Start with 1: without any layer a unit is a pixel"),
        (runs_the_other_way, "", "Go through them backwards"),
        (adds_strides, "", "Strides multiply"),
        (keeps_the_last_stride, "", "Only the last layer's stride is kept"),
        (stride_first, "size is 2, not 9.", "the size first, then the stride"),
        (only_the_size, "1 value came back, but 2 were expected.", "Return size, stride, in this order."),
        (as_tensors, "size is tensor(9), not 9.", ""),
        (uses_up_its_list, "other numbers stand in layers afterwards", "Make a new tensor instead"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_wrong_counts_are_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("field_of_layers", answer, difference, hint)


def one_after_the_other(projector, stride, dilations, shortcuts):
    steps = torch.tensor([0, *dilations]).cumsum(0)
    return (projector + 2 * stride * steps).unique()


def goes_round_everything(projector, stride, dilations, shortcuts):
    return encoder_ranges(projector, stride, dilations, [True] * len(dilations))


def only_the_longest(projector, stride, dilations, shortcuts):
    return torch.tensor([projector + 2 * stride * sum(dilations)])


def one_block_at_a_time(projector, stride, dilations, shortcuts):
    return torch.tensor([projector, *(projector + 2 * stride * d for d in dilations)]).unique()


def one_side(projector, stride, dilations, shortcuts):
    sizes = encoder_ranges(projector, stride, dilations, shortcuts)
    return projector + (sizes - projector) // 2


def whole_kernel(projector, stride, dilations, shortcuts):
    sizes = encoder_ranges(projector, stride, dilations, shortcuts)
    return projector + (sizes - projector) // 2 * 3


def in_cells(projector, stride, dilations, shortcuts):
    return encoder_ranges(projector, 1, dilations, shortcuts)


def with_repetitions(projector, stride, dilations, shortcuts):
    sizes = [projector]
    for dilation, shortcut in zip(dilations, shortcuts, strict=True):
        longer = [size + 2 * dilation * stride for size in sizes]
        sizes = sizes + longer if shortcut else longer
    return torch.tensor(sizes).sort().values


def without_the_empty_path(projector, stride, dilations, shortcuts):
    sizes = encoder_ranges(projector, stride, dilations, shortcuts)
    return sizes[sizes != projector]


def without_the_projector(projector, stride, dilations, shortcuts):
    return encoder_ranges(0, stride, dilations, shortcuts)


def downwards(projector, stride, dilations, shortcuts):
    return encoder_ranges(projector, stride, dilations, shortcuts).flip(0)


def as_floats(projector, stride, dilations, shortcuts):
    return encoder_ranges(projector, stride, dilations, shortcuts).float()


def as_a_list(projector, stride, dilations, shortcuts):
    return encoder_ranges(projector, stride, dilations, shortcuts).tolist()


def as_a_set(projector, stride, dilations, shortcuts):
    return set(as_a_list(projector, stride, dilations, shortcuts))


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (one_after_the_other, "sizes has the shape [3], not [4].", "take every subset of the blocks"),
        (goes_round_everything, "", "A block without a shortcut cannot be gone round"),
        (only_the_longest, "sizes has the shape [1], not [4].", "This is the longest path alone."),
        (one_block_at_a_time, "sizes has the shape [3], not [4].", "Only one block is taken at a time"),
        (one_side, "sizes[1] is 611, not 675.", "a block adds two dilations"),
        (whole_kernel, "sizes[1] is 739, not 675.", "(3 - 1) * dilation cells, not 3 * dilation"),
        (in_cells, "sizes[1] is 551, not 675.", "A cell of this map is `stride` pixels wide"),
        (with_repetitions, "sizes has the shape [8], not [5].", "two subsets may see equally far (1 + 1 = 2)"),
        (without_the_empty_path, "sizes has the shape [3], not [4].", "The path that goes round every block"),
        (without_the_projector, "sizes[0] is 0, not 547.", "What the projector sees is missing"),
        (downwards, "sizes[0] is 931, not 547.", ""),
        (as_floats, "sizes is float32, but int64 was expected.", "Which line made this type?"),
        (as_a_list, "4 values came back, but 1 were expected.", "Return sizes alone, as one value"),
        (as_a_set, "sizes is of type set, but a tensor was expected.", ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_sets_of_ranges_are_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("encoder_ranges", answer, difference, hint)


def adds_channels_first(network, x, cell):
    x = x.clone().requires_grad_()
    network(x)[0, :, cell[0], cell[1]].sum().backward()
    field = x.grad[0].pow(2).sum(0).sqrt()
    return field / field.max()


def the_shortest_that_comes_to_mind(network, x, cell):
    x = x.clone().requires_grad_()
    network(x)[0, :, cell[0], cell[1]].sum().backward()
    field = x.grad[0].abs().sum(0)
    return field / field.max()


def gradients_of(network, x, cell):
    x = x.clone().requires_grad_()
    unit = network(x)[0, :, cell[0], cell[1]]
    return torch.stack([torch.autograd.grad(value, x, retain_graph=True)[0][0] for value in unit])


def adds_gradients(network, x, cell):
    field = gradients_of(network, x, cell).sum((0, 1))
    return field / field.max()


def adds_absolute_values(network, x, cell):
    field = gradients_of(network, x, cell).abs().sum((0, 1))
    return field / field.max().clamp(min=1e-30)


def adds_colours_first(network, x, cell):
    field = gradients_of(network, x, cell).sum(1).square().sum(0).sqrt()
    return field / field.max()


def squares(network, x, cell):
    return effective_field(network, x, cell) ** 2


def all_units(network, x, cell):
    x = x.clone().requires_grad_()
    maps = network(x)[0]
    total = torch.zeros(x.shape[-2:])
    for each in maps:
        total += torch.autograd.grad(each.sum(), x, retain_graph=True)[0][0].square().sum(0)
    return total.sqrt() / total.sqrt().max().clamp(min=1e-30)


def not_normalised(network, x, cell):
    return gradients_of(network, x, cell).square().sum((0, 1)).sqrt()


def column_first(network, x, cell):
    return effective_field(network, x, cell[::-1])


def divides_by_zero(network, x, cell):
    field = not_normalised(network, x, cell)
    return field / field.max()


def keeps_the_colours(network, x, cell):
    field = gradients_of(network, x, cell).square().sum(0).sqrt()
    return field / field.max().clamp(min=1e-30)


def keeps_the_graph(network, x, cell):
    x.requires_grad_()
    unit = network(x)[0, :, cell[0], cell[1]]
    torch.autograd.grad(unit[0], x)
    return torch.autograd.grad(unit[-1], x)


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (adds_channels_first, "field[0, 0] is NaN", "The channels are added before the gradient is taken"),
        (the_shortest_that_comes_to_mind, "", "and the colours are added as absolute values"),
        (adds_gradients, "", "The gradients themselves are added up"),
        (adds_absolute_values, "", "Wanted is the root of the sum of squares"),
        (adds_colours_first, "", "The colours are added before they are squared"),
        (squares, "field[1, 2] is 0.5625, not 0.75.", "The root is missing"),
        (all_units, "", "Pick the unit first"),
        (not_normalised, "field[1, 2] is 3, not 0.75.", "so that the strongest pixel has 1"),
        (column_first, "", "Row and column are swapped"),
        (divides_by_zero, "field[0, 0] is NaN (not a number), not 0.", "Divide only if the largest value is above 0"),
        (keeps_the_colours, "field has the shape [1, 3, 4], not [3, 4].", "Add the squares over the colours too"),
        (keeps_the_graph, "your function raised RuntimeError", ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_fields_are_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("effective_field", answer, difference, hint)
