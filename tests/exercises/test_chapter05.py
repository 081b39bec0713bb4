"""The exercises of chapter 05: every verdict, and what it tells whoever went wrong."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torchvision.ops.poolers import LevelMapper

from minidet.detectors import create_model
from minidet.evaluation.speed import count_cost
from minidet.exercises import EXERCISES, review
from minidet.training.cells import YOLOF_ABLATIONS
from tests.exercises.told import assert_wrong

ROUTE, STACK = EXERCISES["route_to_levels"], EXERCISES["stack_macs"]
CELLS = {cell.name: cell for cell in YOLOF_ABLATIONS["encoders"].cells}


# ---- route_to_levels ------------------------------------------------------------------------------------------------


def route_stub(boxes, lowest, highest):
    raise NotImplementedError


def route(boxes, lowest, highest):
    boxes = boxes.float()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    levels = torch.floor(4 + torch.log2((width * height).sqrt() / 224))
    return levels.clamp(lowest, highest).long()


def route_by_loops(boxes, lowest, highest):
    """The same by the definition, box by box: how often must 224 be doubled or halved?"""
    levels = []
    for x1, y1, x2, y2 in boxes.tolist():
        side, level, low = math.sqrt((x2 - x1) * (y2 - y1)), 4, 224.0
        while level < highest and side >= 2 * low:
            level, low = level + 1, 2 * low
        while level > lowest and side < low:
            level, low = level - 1, low / 2
        levels.append(min(max(level, lowest), highest))
    return torch.tensor(levels, dtype=torch.int64)


def corners(boxes):
    boxes = boxes.float()
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


def without_clamp(boxes, lowest, highest):
    width, height = corners(boxes)
    return (4 + (width * height).sqrt().div(224).log2()).floor().long()


def rounded(boxes, lowest, highest):
    width, height = corners(boxes)
    return (4 + (width * height).sqrt().div(224).log2()).round().clamp(lowest, highest).long()


def natural_logarithm(boxes, lowest, highest):
    width, height = corners(boxes)
    return (4 + torch.log((width * height).sqrt() / 224)).floor().clamp(lowest, highest).long()


def area_for_side(boxes, lowest, highest):
    width, height = corners(boxes)
    return (4 + torch.log2(width * height / 224)).floor().clamp(lowest, highest).long()


def area_over_area(boxes, lowest, highest):
    width, height = corners(boxes)
    return (4 + torch.log2(width * height / 224**2)).floor().clamp(lowest, highest).long()


def corner_for_size(boxes, lowest, highest):
    boxes = boxes.float()
    return (4 + torch.log2((boxes[:, 2] * boxes[:, 3]).sqrt() / 224)).floor().clamp(lowest, highest).long()


def longer_side(boxes, lowest, highest):
    return (4 + torch.log2(torch.stack(corners(boxes)).amax(0) / 224)).floor().clamp(lowest, highest).long()


def from_the_lowest(boxes, lowest, highest):
    width, height = corners(boxes)
    return (lowest + torch.log2((width * height).sqrt() / 224)).floor().clamp(lowest, highest).long()


def float_levels(boxes, lowest, highest):
    return route(boxes, lowest, highest).float()


def product_in_int32(boxes, lowest, highest):
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return torch.floor(4 + torch.log2((width * height).sqrt() / 224)).clamp(lowest, highest).long()


def boxes_as_columns(boxes, lowest, highest):
    x1, y1, x2, y2 = boxes.float()
    return torch.floor(4 + torch.log2(((x2 - x1) * (y2 - y1)).sqrt() / 224)).clamp(lowest, highest).long()


def in_place(boxes, lowest, highest):
    boxes[:, 2:] -= boxes[:, :2]
    levels = torch.floor(4 + torch.log2((boxes[:, 2].float() * boxes[:, 3].float()).sqrt() / 224))
    return levels.clamp(lowest, highest).long()


def test_the_stub_of_route_to_levels_is_not_attempted():
    assert review(ROUTE, route_stub).status == "not attempted"


@pytest.mark.parametrize("answer", [route, route_by_loops])
def test_a_solution_of_route_to_levels_is_done(answer):
    assert review(ROUTE, answer).text == "route_to_levels: done. Right on all 8 inputs."


@pytest.mark.parametrize(("lowest", "highest"), [(2, 5), (3, 7), (4, 4)])
def test_the_right_levels_are_those_of_torchvisions_pooler(lowest, highest):
    corner = torch.rand(500, 2) * 300
    boxes = torch.cat([corner, corner + torch.exp(torch.rand(500, 2) * 6 + 1)], dim=1)
    theirs = LevelMapper(lowest, highest)([boxes]) + lowest
    assert torch.equal(ROUTE.answer(boxes, lowest, highest), theirs)


@pytest.mark.parametrize(("side", "level"), [(10, 3), (112, 3), (113, 3), (223, 3), (224, 4), (447, 4), (448, 5)])
def test_levels_by_hand(side, level):
    assert ROUTE.answer(torch.tensor([[7, 9, 7 + side, 9 + side]]), 3, 7).tolist() == [level]


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (without_clamp, "wrong on 4 of 8 inputs", "The clamp is missing"),
        (rounded, "wrong on", "This rounds to the nearest level. The rule takes the floor"),
        (natural_logarithm, "wrong on", "This is the natural logarithm."),
        (area_for_side, "wrong on", "The square root is missing"),
        (area_over_area, "wrong on", "Area over area counts every doubling of the side twice."),
        (corner_for_size, "wrong on", "x2 and y2 are corners, not width and height"),
        (longer_side, "wrong on", "This takes the longer side."),
        (from_the_lowest, "wrong on", "224 pixels belong to level 4 whatever the lowest level is."),
        (float_levels, "levels is float32, but int64 was expected.", "so return int64"),
        (
            product_in_int32,
            "whole numbers whose product leaves int32",
            "Turn the boxes into floats before you multiply",
        ),
        (boxes_as_columns, "levels[1] is 2, not 3.", "Unpacking runs along the first axis"),
        (in_place, "other numbers stand in boxes afterwards", "Make a new tensor instead"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_answer_to_route_to_levels_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong(ROUTE, answer, difference, hint)


# ---- stack_macs -----------------------------------------------------------------------------------------------------


def stack_stub(level_shapes, widths, kernel):
    raise NotImplementedError


def stack(level_shapes, widths, kernel):
    joints = sum(before * after for before, after in itertools.pairwise(widths))
    return level_shapes.long().prod(dim=1) * kernel**2 * joints


def stack_by_loops(level_shapes, widths, kernel):
    """The same by the definition: every cell, every convolution, every output channel reads so many numbers."""
    macs = []
    for rows, columns in level_shapes.tolist():
        of_cell = 0
        for layer in range(len(widths) - 1):
            of_cell += widths[layer + 1] * (widths[layer] * kernel * kernel)
        macs.append(rows * columns * of_cell)
    return torch.tensor(macs, dtype=torch.int64)


def of_all(level_shapes, widths, kernel):
    return stack(level_shapes, widths, kernel).sum()


def flops(level_shapes, widths, kernel):
    return stack(level_shapes, widths, kernel) * 2


def a_line_for_a_square(level_shapes, widths, kernel):
    return stack(level_shapes, widths, 1) * kernel


def without_kernel(level_shapes, widths, kernel):
    return stack(level_shapes, widths, 1)


def first_and_last(level_shapes, widths, kernel):
    return level_shapes.long().prod(1) * (kernel**2 * widths[0] * widths[-1])


def widths_added(level_shapes, widths, kernel):
    return level_shapes.long().prod(1) * (kernel**2 * sum(widths))


def outputs_only(level_shapes, widths, kernel):
    return level_shapes.long().prod(1) * (kernel**2 * sum(widths[1:]))


def sides_added(level_shapes, widths, kernel):
    return level_shapes.long().sum(1) * stack(torch.tensor([[1, 1]]), widths, kernel)


def swapped_axes(level_shapes, widths, kernel):
    return level_shapes.long().prod(0) * stack(torch.tensor([[1, 1]]), widths, kernel)


def in_float32(level_shapes, widths, kernel):
    return stack(level_shapes, widths, kernel).float()


def in_int32(level_shapes, widths, kernel):
    joints = sum(before * after for before, after in itertools.pairwise(widths))
    return level_shapes[:, 0] * level_shapes[:, 1] * (kernel**2 * joints)


def with_biases(level_shapes, widths, kernel):
    return stack(level_shapes, widths, kernel) + level_shapes.long().prod(1) * sum(widths[1:])


def test_the_stub_of_stack_macs_is_not_attempted():
    assert review(STACK, stack_stub).status == "not attempted"


@pytest.mark.parametrize("answer", [stack, stack_by_loops])
def test_a_solution_of_stack_macs_is_done(answer):
    assert review(STACK, answer).text == "stack_macs: done. Right on all 7 inputs."


@pytest.mark.parametrize(("kind", "anchors"), [("mimo", 1), ("siso", 5)])
def test_the_right_counts_are_those_of_the_detectors_head(kind, anchors):
    height, width, classes = 173, 260, 3  # not multiples of 32
    model = create_model("yolof-r18-c5", classes, input_hw=(height, width), **CELLS[kind].changes)
    shapes = torch.tensor([(-(-height // stride), -(-width // stride)) for stride in model.strides])
    into_classes, into_boxes = [256] * 5 + [anchors * classes], [256] * 5 + [anchors * 4]
    by_hand = STACK.answer(shapes, into_classes, 3).sum() + STACK.answer(shapes, into_boxes, 3).sum()
    norms = 2 * 8 * 256 * shapes.prod(dim=1).sum()  # counted two for each number that comes out
    assert (by_hand + norms).item() / 1e9 == pytest.approx(count_cost(model).part("head").gmacs, rel=1e-6)


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (of_all, "macs has the shape [], not [2].", "Wanted is one number for each level."),
        (flops, "macs[0] is 4320, not 2160.", "a multiply and its add count as one here"),
        (a_line_for_a_square, "macs[0] is 720, not 2160.", "The kernel has kernel x kernel taps"),
        (without_kernel, "macs[0] is 240, not 2160.", "The taps of the kernel are missing"),
        (first_and_last, "the head on the five levels", "Only the first and the last width are in it."),
        (widths_added, "macs[0] is 1512, not 2160.", "The widths are added."),
        (outputs_only, "macs[0] is 1080, not 2160.", "the width before the convolution is missing"),
        (sides_added, "macs[0] is 900, not 2160.", "A map has rows times columns cells."),
        (swapped_axes, "macs[0] is 720, not 2160.", "Rows times columns are the product along the last axis"),
        (in_float32, "macs is float32, but int64 was expected.", "Count in int64."),
        (in_int32, "a large picture, shapes in int32", "int32 ends at 2,147,483,647"),
        (with_biases, "macs[0] is 2280, not 2160.", "Biases are counted too."),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_answer_to_stack_macs_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong(STACK, answer, difference, hint)
