"""The exercises of chapter 05: which level an object belongs to, and what convolutions cost on each level."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from minidet.exercises.check import Exercise, Mistake

# ---- which level an object belongs to --------------------------------------------------------------------------------


def route_to_levels(boxes: Tensor, lowest: int, highest: int) -> Tensor:
    """The pyramid level of each object, by its size alone: [G, 4] xyxy in pixels, of any type -> [G] int64.

    A box of 224 x 224 goes to level 4, one of twice the side to the next coarser level. Sizes that would lie beyond the
    lowest or the highest level go there.

    Source: FPN, arXiv 1612.03144; chapter 05.
    """
    width, height = _sides(boxes)
    level = torch.floor(4 + torch.log2((width * height).sqrt() / 224))
    return level.clamp(lowest, highest).long()  # minus infinity, of a box without area, is no whole number


def _sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    boxes = boxes.float()
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


def _size(boxes: Tensor) -> Tensor:
    width, height = _sides(boxes)
    return (width * height).sqrt()


def _size_by_rows(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes.float()
    return ((x2 - x1) * (y2 - y1)).sqrt()


def _clamped(level: Tensor, lowest: int, highest: int) -> Tensor:
    return level.clamp(lowest, highest).long()


def _four_boxes(rng: Generator) -> tuple[Tensor, int, int]:
    boxes = [[10.0, 10, 70, 70], [0, 0, 150, 100], [20, 30, 260, 270], [100, 50, 600, 550]]
    return torch.tensor(boxes), 2, 5


def _random_boxes(count: int, lowest: int, highest: int, rng: Generator) -> tuple[Tensor, int, int]:
    corner = torch.rand(count, 2, generator=rng) * 400
    side = torch.exp(torch.rand(count, 2, generator=rng) * 5 + 2)  # 7 to 1,100 pixels
    return torch.cat([corner, corner + side], dim=1), lowest, highest


def _degenerate(rng: Generator) -> tuple[Tensor, int, int]:
    return torch.tensor([[5.0, 5, 5, 5], [0, 0, 0, 40], [0, 0, 300, 300]]), 3, 7


def _whole_numbers(rng: Generator) -> tuple[Tensor, int, int]:
    return torch.tensor([[0, 0, 225, 225], [0, 0, 113, 113], [7, 9, 907, 609]]), 2, 5


def _huge_whole_numbers(rng: Generator) -> tuple[Tensor, int, int]:
    return torch.tensor([[0, 0, 60_000, 60_000], [0, 0, 100, 100]], dtype=torch.int32), 2, 12


ROUTE = Exercise(
    answer=route_to_levels,
    returns=("levels",),
    inputs={
        "a small, a middling and two large boxes": _four_boxes,
        "two hundred random boxes": lambda rng: _random_boxes(200, 2, 5, rng),
        "the levels of RetinaNet, 3 to 7": lambda rng: _random_boxes(200, 3, 7, rng),
        "a single level": lambda rng: _random_boxes(5, 5, 5, rng),
        "whole numbers": _whole_numbers,
        "whole numbers whose product leaves int32": _huge_whole_numbers,
        "boxes without area": _degenerate,
        "no box at all": lambda rng: (torch.zeros(0, 4), 3, 7),
    },
    mistakes=(
        Mistake(
            lambda boxes, lowest, highest: torch.floor(4 + torch.log2(_size(boxes) / 224)).long(),
            "The clamp is missing: very small and very large objects are sent to levels that do not exist. The "
            "smallest belong to the lowest level, the largest to the highest.",
        ),
        Mistake(
            lambda boxes, lowest, highest: _clamped(torch.round(4 + torch.log2(_size(boxes) / 224)), lowest, highest),
            "This rounds to the nearest level. The rule takes the floor: from 224 up to 448 pixels it is level 4.",
        ),
        Mistake(
            lambda boxes, lowest, highest: _clamped((4 + torch.log2(_size(boxes) / 224)).ceil(), lowest, highest),
            "This rounds up. The rule takes the floor: from 224 up to 448 pixels it is level 4.",
        ),
        Mistake(
            lambda boxes, lowest, highest: _clamped(torch.floor(4 + torch.log(_size(boxes) / 224)), lowest, highest),
            "This is the natural logarithm. A level has twice the stride of the one below, so the rule needs log2: how "
            "often must 224 be doubled?",
        ),
        Mistake(
            lambda boxes, lowest, highest: _clamped(
                torch.floor(4 + torch.log2(_size(boxes) ** 2 / 224)), lowest, highest
            ),
            "The square root is missing: 224 is a side, so it must be compared with a side and not with an area.",
        ),
        Mistake(
            lambda boxes, lowest, highest: _clamped(
                torch.floor(4 + torch.log2(_size(boxes) ** 2 / 224**2)), lowest, highest
            ),
            "Area over area counts every doubling of the side twice. Take the square root of the area first.",
        ),
        Mistake(
            lambda boxes, lowest, highest: _clamped(
                torch.floor(4 + torch.log2(_size_by_rows(boxes) / 224)), lowest, highest
            ),
            "Unpacking runs along the first axis, so with four boxes you get four boxes and not four corners. Take the "
            "columns: boxes[:, 0] or boxes.unbind(dim=1).",
        ),
        Mistake(
            lambda boxes, lowest, highest: _clamped(
                torch.floor(4 + torch.log2((boxes.float()[:, 2] * boxes.float()[:, 3]).sqrt() / 224)), lowest, highest
            ),
            "x2 and y2 are corners, not width and height: these boxes are xyxy. A box far from the origin would count "
            "as large.",
        ),
        Mistake(
            lambda boxes, lowest, highest: _clamped(
                torch.floor(4 + torch.log2(torch.maximum(*_sides(boxes)) / 224)), lowest, highest
            ),
            "This takes the longer side. The rule takes the square root of width times height, so that a long thin box "
            "counts as small as its area is.",
        ),
        Mistake(
            lambda boxes, lowest, highest: _clamped(
                torch.floor(lowest + torch.log2(_size(boxes) / 224)), lowest, highest
            ),
            "224 pixels belong to level 4 whatever the lowest level is. `lowest` and `highest` only say where to stop.",
        ),
        Mistake(
            lambda boxes, lowest, highest: torch.floor(4 + torch.log2(_size(boxes) / 224)).clamp(lowest, highest),
            "The levels are right, but they are floats. They will be used as indices, so return int64.",
        ),
        Mistake(
            lambda boxes, lowest, highest: _clamped(
                torch.floor(4 + torch.log2(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt() / 224)),
                lowest,
                highest,
            ),
            "60,000 times 60,000 does not fit into int32: the area wraps around. Turn the boxes into floats before you "
            "multiply.",
        ),
    ),
)


# ---- what a stack of convolutions costs ------------------------------------------------------------------------------


def stack_macs(level_shapes: Tensor, widths: Sequence[int], kernel: int) -> Tensor:
    """Multiply-adds of a stack of convolutions that runs on every level: [L, 2] int -> [L] int64.

    Args:
        level_shapes: [L, 2] int, rows and columns of each level.
        widths: channels before the first convolution, between two, and after the last; one more than convolutions.
        kernel: side of each convolution's square kernel; stride 1, borders padded, so that the maps keep their size.

    Chapter 05.
    """
    cells = level_shapes.long().prod(dim=1)  # int64: the products are in the thousand millions
    return cells * kernel**2 * _joints(widths)


def _joints(widths: Sequence[int]) -> int:
    return sum(before * after for before, after in itertools.pairwise(widths))


def _cells(level_shapes: Tensor) -> Tensor:
    return level_shapes.long().prod(dim=1)


def _two_levels(rng: Generator) -> tuple[Tensor, list[int], int]:
    return torch.tensor([[4, 6], [2, 3]]), [2, 5], 3


def _pyramid(rng: Generator) -> tuple[Tensor, list[int], int]:
    return torch.tensor([[24, 32], [12, 16], [6, 8], [3, 4], [2, 2]]), [256, 256, 256, 256, 256, 4], 3


def _large(rng: Generator) -> tuple[Tensor, list[int], int]:
    shapes = torch.tensor([[100, 168], [50, 84], [25, 42], [13, 21], [7, 11]], dtype=torch.int32)
    return shapes, [256, 256, 256, 256, 256, 80], 3


STACK = Exercise(
    answer=stack_macs,
    returns=("macs",),
    inputs={
        "one convolution on two small levels": _two_levels,
        "the head on the five levels of a small picture": _pyramid,
        "a convolution of 1 x 1": lambda rng: (torch.tensor([[6, 8]]), [512, 256], 1),
        "widths that all differ": lambda rng: (torch.tensor([[5, 7], [3, 4], [2, 2]]), [8, 16, 4, 12], 5),
        "a large picture, shapes in int32": _large,
        "no convolution at all": lambda rng: (torch.tensor([[5, 7], [3, 4]]), [64], 3),
        "no level at all": lambda rng: (torch.zeros(0, 2, dtype=torch.int64), [8, 8], 3),
    },
    mistakes=(
        Mistake(
            lambda level_shapes, widths, kernel: _cells(level_shapes) * kernel * _joints(widths),
            "The kernel has kernel x kernel taps, not kernel: square it.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: _cells(level_shapes) * _joints(widths),
            "The taps of the kernel are missing: each output looks at kernel x kernel cells.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: 2 * _cells(level_shapes) * kernel**2 * _joints(widths),
            "This is twice too much: a multiply and its add count as one here. (Counted as two, they are FLOPs.)",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: (_cells(level_shapes) * kernel**2 * _joints(widths)).sum(),
            "This is the sum over all levels. Wanted is one number for each level.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: _cells(level_shapes) * kernel**2 * widths[0] * widths[-1],
            "Only the first and the last width are in it. Each convolution costs the product of the two widths beside "
            "it; add these products up.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: _cells(level_shapes) * kernel**2 * sum(widths),
            "The widths are added. A convolution mixes every channel before it into every channel behind it, so their "
            "number is multiplied.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: _cells(level_shapes) * kernel**2 * sum(widths[1:]),
            "Every output channel reads all channels that come in, so the width before the convolution is missing.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: _cells(level_shapes) * kernel**2 * sum(w * w for w in widths[:-1]),
            "This takes each width times itself. A convolution goes from one width to the next.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: level_shapes.long().sum(dim=1) * kernel**2 * _joints(widths),
            "Rows and columns are added. A map has rows times columns cells.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: level_shapes.long().prod(dim=0) * kernel**2 * _joints(widths),
            "The product runs over the levels. Rows times columns are the product along the last axis, dim=1.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: _cells(level_shapes).float() * kernel**2 * _joints(widths),
            "float32 has 24 binary digits, fewer than these counts need. Count in int64.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: (
                level_shapes[:, 0] * level_shapes[:, 1] * (kernel**2 * _joints(widths))
            ),
            "int32 ends at 2,147,483,647, and these counts go beyond: they wrap around. Turn the shapes into int64 "
            "before you multiply.",
        ),
        Mistake(
            lambda level_shapes, widths, kernel: _cells(level_shapes) * (kernel**2 * _joints(widths) + sum(widths[1:])),
            "Biases are counted too. They are additions without a multiplication, and left out here, as usual.",
        ),
    ),
)

EXERCISES = (ROUTE, STACK)
