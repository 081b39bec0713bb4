"""The exercises of chapter 09: boxes without anchors, there and back; nine cells an object, and which lie outside."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from minidet.assign import BACKGROUND
from minidet.assign.base import give_to_best
from minidet.boxes import box_area, cxcywh_to_xyxy, xyxy_to_cxcywh
from minidet.exercises.check import Exercise, Mistake
from minidet.losses import raw_box_targets

STRIDES = (8, 16, 32)

# ---- what the inputs are made of ------------------------------------------------------------------------------------


def _slots(shapes: tuple[tuple[int, int], ...], strides: tuple[int, ...] = STRIDES) -> tuple[Tensor, Tensor, Tensor]:
    """Cells [A, 2] float32 (column, row), strides [A] float32 and levels [A] int64 of all slots, row by row."""
    cells, sides, levels = [], [], []
    for level, ((rows, columns), stride) in enumerate(zip(shapes, strides, strict=False)):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        cells.append(torch.stack([x, y], dim=-1).reshape(-1, 2).float())
        sides.append(torch.full((rows * columns,), float(stride)))
        levels.append(torch.full((rows * columns,), level))
    return torch.cat(cells), torch.cat(sides), torch.cat(levels)


THREE_LEVELS = ((24, 32), (12, 16), (6, 8))


def _boxes(count: int, rng: Generator, extent: float = 240, side: tuple[float, float] = (6, 120)) -> Tensor:
    low, high = (math.log(each) for each in side)
    sizes = torch.exp(low + (high - low) * torch.rand(count, 2, generator=rng))
    centers = torch.rand(count, 2, generator=rng) * extent
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1)


# ---- decoding -------------------------------------------------------------------------------------------------------

LARGEST = math.log(10_000)


def decode_cells(raw: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    """Boxes of slots without anchors: raw numbers [A, 4], cells [A, 2] and strides [A] -> [A, 4] float32 xyxy.

    Sizes are cut from above at 10,000 strides.
    """
    unit = strides[:, None].float()
    sizes = raw[:, 2:].clamp(max=LARGEST).exp() * unit
    return cxcywh_to_xyxy(torch.cat([(raw[:, :2] + cells) * unit, sizes], dim=1))


def _decode_with(
    offset: float = 0.0,
    limit: float | None = LARGEST,
    squash: bool = False,
    halves: bool = True,
    corners: bool = True,
    unit_of_size: bool = True,
    unit_of_cell: bool = True,
    all_of_centre: bool = True,
    exponential: bool = True,
    flipped: bool = False,
):
    """A wrong `decode_cells` that differs from the right one in one place."""

    def answer(raw: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
        unit, cells = strides[:, None].float(), cells.flip(1) if flipped else cells
        shift = raw[:, :2].sigmoid() if squash else raw[:, :2]
        if not unit_of_cell:
            centers = shift + cells
        else:
            centers = (shift + cells + offset) * unit if all_of_centre else shift + cells * unit
        sizes = raw[:, 2:] if limit is None else raw[:, 2:].clamp(max=limit)
        sizes = (sizes.exp() if exponential else sizes) * (unit if unit_of_size else 1)
        if not corners:
            return torch.cat([centers, sizes], dim=1)
        reach = sizes / 2 if halves else sizes
        return torch.cat([centers - reach, centers + reach], dim=1)

    return answer


def _decode_unaxed(raw: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    sizes = raw[:, 2:].clamp(max=LARGEST).exp() * strides
    return cxcywh_to_xyxy(torch.cat([(raw[:, :2] + cells) * strides, sizes], dim=1))


def _raw(count: int, rng: Generator) -> Tensor:
    return torch.randn(count, 4, generator=rng) * torch.tensor([0.6, 0.6, 1.0, 1.0]) + 0.5


def _level_slots(rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    cells, strides, _ = _slots(THREE_LEVELS)
    return _raw(len(cells), rng), cells, strides


DECODE = Exercise(
    answer=decode_cells,
    returns=("boxes",),
    inputs={
        "one slot": lambda rng: (
            torch.tensor([[0.5, 0.25, math.log(2), 0.0]]),
            torch.tensor([[2.0, 1.0]]),
            torch.tensor([16.0]),
        ),
        "two slots of different levels": lambda rng: (
            torch.tensor([[0.5, 0.5, 1.0, 0.5], [-0.25, 1.5, 0.0, -1.0]]),
            torch.tensor([[3.0, 7.0], [1.0, 0.0]]),
            torch.tensor([8.0, 32.0]),
        ),
        "cells and strides that are whole numbers": lambda rng: (
            _raw(3, rng),
            torch.tensor([[4, 0], [5, 0], [6, 9]]),
            torch.tensor([8, 8, 16]),
        ),
        "the 1,008 slots of three levels": _level_slots,
        "very small sizes": lambda rng: (
            torch.tensor([[0.5, 0.5, -30.0, -8.0]]),
            torch.tensor([[9.0, 2.0]]),
            torch.tensor([8.0]),
        ),
        "very large sizes": lambda rng: (
            torch.tensor([[0.5, 0.5, 12.0, 200.0], [0.5, 0.5, 1.0, 9.0]]),
            torch.tensor([[2.0, 2.0], [3.0, 1.0]]),
            torch.tensor([8.0, 32.0]),
        ),
        "no slot at all": lambda rng: (torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(0)),
    },
    mistakes=(
        Mistake(
            _decode_with(offset=0.5),
            "The centre is counted from the cell's upper left corner: there is no 0.5 in the decoding. All boxes are "
            "half a stride too far to the right and too low.",
        ),
        Mistake(
            _decode_with(squash=True),
            "There is a sigmoid on the offset. That is YOLOv3's; here the raw number itself is the offset, in cells.",
        ),
        Mistake(
            _decode_with(limit=None),
            "Sizes are not cut in time: e^200 is infinite in float32. The raw number is the logarithm of the size, so "
            "cut it at ln(10,000), before the exponential.",
        ),
        Mistake(
            _decode_with(halves=False),
            "The box is twice as large as it should be: only half of the size lies on each side of the centre.",
        ),
        Mistake(
            _decode_with(corners=False),
            "These are centres and sizes. Wanted are corners: centre minus and plus half the size.",
        ),
        Mistake(
            _decode_with(unit_of_size=False),
            "The sizes are in strides; multiply them by the stride to have pixels.",
        ),
        Mistake(
            _decode_with(unit_of_cell=False),
            "The centres are in cells; multiply them by the stride to have pixels.",
        ),
        Mistake(
            _decode_with(all_of_centre=False),
            "The offset is counted in cells too: add it to the cell first, then multiply both by the stride.",
        ),
        Mistake(
            _decode_with(exponential=False),
            "The raw sizes are logarithms; without the exponential a width can be negative.",
        ),
        Mistake(
            _decode_with(flipped=True),
            "x and y are exchanged: a cell is (column, row), and the column belongs to x.",
        ),
        Mistake(
            _decode_unaxed,
            "The strides meet the wrong axis. [A] against [A, 2] is lined up at the right, so with two slots each "
            "coordinate got a stride instead of each slot. Write strides[:, None].",
        ),
    ),
)

# ---- and back -------------------------------------------------------------------------------------------------------


def raw_targets(gt_boxes: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    """What each slot should say for its box: [P, 4] xyxy, [P, 2] and [P] -> [P, 4] float32 (tx, ty, tw, th)."""
    return raw_box_targets(gt_boxes.float(), cells, strides).float()


def _targets_with(
    offset: float = 0.0,
    tiny: float = 1e-8,
    logarithm: bool = True,
    divided: bool = True,
    tiny_in_pixels: bool = False,
    middle: bool = True,
    minus_cell: bool = True,
    whole: bool = False,
    flipped: bool = False,
):
    """A wrong `raw_targets` that differs from the right one in one place."""

    def answer(gt_boxes: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
        unit, cells = strides[:, None].float(), cells.flip(1) if flipped else cells
        corners = gt_boxes if whole else gt_boxes.float()
        both = corners[:, :2] + corners[:, 2:]
        centers = (both // 2 if whole and not both.is_floating_point() else both / 2) if middle else corners[:, :2]
        shift = centers / unit - (cells + offset if minus_cell else 0)
        sizes = corners[:, 2:] - corners[:, :2]
        if tiny_in_pixels:
            sizes = (sizes + tiny) / unit
        else:
            sizes = (sizes / unit if divided else sizes) + tiny
        return torch.cat([shift, sizes.log() if logarithm else sizes], dim=1).float()

    return answer


def _pairs(count: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    cells, strides, _ = _slots(THREE_LEVELS)
    chosen = torch.randint(len(cells), (count,), generator=rng)
    return _boxes(count, rng), cells[chosen], strides[chosen]


TARGETS = Exercise(
    answer=raw_targets,
    returns=("raw",),
    inputs={
        "one box": lambda rng: (
            torch.tensor([[24.0, 12.0, 56.0, 28.0]]),
            torch.tensor([[2.0, 1.0]]),
            torch.tensor([16.0]),
        ),
        "two boxes on different levels": lambda rng: (
            torch.tensor([[10.0, 20.0, 34.0, 52.0], [0.0, 64.0, 128.0, 160.0]]),
            torch.tensor([[2.0, 4.0], [1.0, 3.0]]),
            torch.tensor([8.0, 32.0]),
        ),
        "slots beside the centre's cell": lambda rng: (
            torch.tensor([[24.0, 12.0, 56.0, 28.0]]).repeat(3, 1),
            torch.tensor([[1.0, 0.0], [3.0, 2.0], [2.0, 2.0]]),
            torch.tensor([16.0, 16.0, 16.0]),
        ),
        "boxes that are whole numbers": lambda rng: (
            torch.tensor([[3, 4, 10, 19], [7, 0, 24, 9]]),
            torch.tensor([[0, 1], [1, 0]]),
            torch.tensor([8, 8]),
        ),
        "two hundred pairs": lambda rng: _pairs(200, rng),
        "an empty box": lambda rng: (
            torch.tensor([[40.0, 40.0, 40.0, 48.0]]),
            torch.tensor([[5.0, 5.0]]),
            torch.tensor([8.0]),
        ),
        "no pair at all": lambda rng: (torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(0)),
    },
    mistakes=(
        Mistake(
            _targets_with(offset=0.5),
            "Decoding counts from the cell's upper left corner, so the inverse does too: there is no 0.5.",
        ),
        Mistake(
            _targets_with(tiny=0.0),
            "The logarithm of 0 is minus infinity. Add 1e-8 to the size in strides before it.",
        ),
        Mistake(
            _targets_with(tiny_in_pixels=True),
            "The 1e-8 is added in pixels. It belongs to the size in strides: divide first, then add.",
        ),
        Mistake(
            _targets_with(logarithm=False),
            "The inverse of the exponential is missing: take the logarithm of the sizes.",
        ),
        Mistake(
            _targets_with(divided=False),
            "This is the logarithm of the size in pixels. Divide by the stride first: w = s e^tw.",
        ),
        Mistake(
            _targets_with(middle=False),
            "This takes the box's upper left corner. tx and ty tell where its centre is.",
        ),
        Mistake(
            _targets_with(minus_cell=False),
            "This is the centre in cells, from the corner of the picture. Subtract the slot's own cell.",
        ),
        Mistake(
            _targets_with(whole=True),
            "Whole numbers lost their half: // rounds down. Make floats first, or divide with /.",
        ),
        Mistake(
            _targets_with(flipped=True),
            "x and y are exchanged: a cell is (column, row), and the column belongs to x.",
        ),
    ),
)

# ---- nine cells for everybody ---------------------------------------------------------------------------------------


def centre_positives(
    gt_boxes: Tensor, gt_levels: Tensor, cells: Tensor, strides: Tensor, slot_levels: Tensor, radius: float
) -> Tensor:
    """What each slot learns by centre sampling: -> [A] int64, the row of an object or -1.

    A slot is a candidate of an object on its level if the object's centre lies from -radius (included) to +radius
    (excluded) strides from the slot's centre, in x and in y. The smallest object gets it, of equals the first.
    """
    gt_boxes = gt_boxes.float()
    wanted = _near(gt_boxes, cells, strides, radius) & (gt_levels[:, None] == slot_levels)
    return give_to_best(wanted, -box_area(gt_boxes)[:, None].expand(wanted.shape))


def _near(
    gt_boxes: Tensor,
    cells: Tensor,
    strides: Tensor,
    radius: float,
    offset: float = 0.5,
    ends: str = "half open",
    pixels: bool = False,
    round_: bool = False,
    either: bool = False,
    corner: bool = False,
) -> Tensor:
    """[G, A] bool, whether an object's centre is near a slot's; by default as it should be."""
    centers = gt_boxes[:, :2] if corner else xyxy_to_cxcywh(gt_boxes)[:, :2]
    offsets = centers[:, None] - (cells + offset) * strides[:, None]  # [G, A, 2] pixels
    if not pixels:
        offsets = offsets / strides[:, None]
    if round_:
        return offsets.square().sum(dim=-1).sqrt() < radius
    low = offsets > -radius if ends == "open" else offsets >= -radius
    high = offsets <= radius if ends == "closed" else offsets < radius
    within = low & high
    return within.any(dim=-1) if either else within.all(dim=-1)


def _positives_with(owner: str = "smallest", levels: bool = True, empty: bool = True, inside: bool = False, **near):
    """A wrong `centre_positives` that differs from the right one in one place."""

    def answer(
        gt_boxes: Tensor, gt_levels: Tensor, cells: Tensor, strides: Tensor, slot_levels: Tensor, radius: float
    ) -> Tensor:
        if not len(gt_boxes):
            if not empty:
                return torch.zeros(0, len(cells)).argmin(dim=0)  # raises: no rows have no smallest
            return torch.full((len(cells),), BACKGROUND)
        gt_boxes = gt_boxes.float()
        wanted = _near(gt_boxes, cells, strides, radius, **near)
        if levels:
            wanted &= gt_levels[:, None] == slot_levels
        if inside:
            points = (cells + 0.5) * strides[:, None]
            within = (points > gt_boxes[:, None, :2]) & (points < gt_boxes[:, None, 2:])
            wanted &= within.all(dim=-1)
        area = box_area(gt_boxes)
        bids = {
            "smallest": -area,
            "last of the smallest": -area,
            "largest": area,
            "first": -torch.arange(len(gt_boxes)).float(),
            "last": torch.arange(len(gt_boxes)).float(),
        }[owner]
        if owner == "last of the smallest":
            matched = give_to_best(wanted.flip(0), bids.flip(0)[:, None].expand(wanted.shape))
            return torch.where(matched >= 0, len(gt_boxes) - 1 - matched, BACKGROUND)
        return give_to_best(wanted, bids[:, None].expand(wanted.shape))

    return answer


def _positives_unowned(
    gt_boxes: Tensor, gt_levels: Tensor, cells: Tensor, strides: Tensor, slot_levels: Tensor, radius: float
) -> Tensor:
    if not len(gt_boxes):
        return torch.full((len(cells),), BACKGROUND)
    return centre_positives(gt_boxes, gt_levels, cells, strides, slot_levels, radius).clamp(min=0)


def _levels_of(gt_boxes: Tensor, limit: float = 2.0) -> Tensor:
    half = (gt_boxes[:, 2:] - gt_boxes[:, :2]).amax(dim=1) / 2
    return (half[:, None] > limit * torch.tensor(STRIDES[:-1])).sum(dim=1)


def _scene(gt_boxes: Tensor, radius: float, shapes=THREE_LEVELS, levels: Tensor | None = None) -> tuple:
    cells, strides, slot_levels = _slots(shapes)
    return gt_boxes, _levels_of(gt_boxes) if levels is None else levels, cells, strides, slot_levels, radius


POSITIVES = Exercise(
    answer=centre_positives,
    returns=("matched",),
    inputs={
        "one object, one level, one cell": lambda rng: _scene(
            torch.tensor([[5.0, 3.0, 17.0, 15.0]]), 0.5, shapes=((4, 5),)
        ),
        "the same with radius 1.5": lambda rng: _scene(torch.tensor([[5.0, 3.0, 17.0, 15.0]]), 1.5, shapes=((4, 5),)),
        "a long object": lambda rng: _scene(
            torch.tensor([[0.0, 10.0, 38.0, 16.0]]), 1.5, shapes=((4, 5),), levels=torch.tensor([0])
        ),
        "a centre on the border of cells": lambda rng: _scene(
            torch.tensor([[10.0, 10.0, 22.0, 22.0]]), 0.5, shapes=((4, 5),)
        ),
        "a large object before a small one with the same centre": lambda rng: _scene(
            torch.tensor([[4.0, 0.0, 28.0, 24.0], [11.0, 7.0, 21.0, 17.0]]),
            1.5,
            shapes=((4, 5),),
            levels=torch.tensor([0, 0]),
        ),
        "a small object before a large one": lambda rng: _scene(
            torch.tensor([[11.0, 7.0, 21.0, 17.0], [4.0, 0.0, 28.0, 24.0]]),
            1.5,
            shapes=((4, 5),),
            levels=torch.tensor([0, 0]),
        ),
        "two objects of equal area": lambda rng: _scene(
            torch.tensor([[4.0, 4.0, 20.0, 20.0], [12.0, 4.0, 28.0, 20.0]]), 1.5, shapes=((4, 5),)
        ),
        "a picture with twelve objects on three levels": lambda rng: _scene(_boxes(12, rng, extent=190), 1.5),
        "boxes that are whole numbers": lambda rng: _scene(_boxes(9, rng, extent=180).long(), 1.5),
        "a hundred crowded objects": lambda rng: _scene(_boxes(100, rng, extent=120), 2.5),
        "a centre outside the picture": lambda rng: _scene(
            torch.tensor([[250.0, 20.0, 290.0, 60.0], [300.0, 300.0, 320.0, 320.0]]), 1.5
        ),
        "no object at all": lambda rng: _scene(torch.zeros(0, 4), 1.5, shapes=((4, 5),)),
    },
    mistakes=(
        Mistake(
            _positives_with(offset=0.0),
            "The distance is taken from the cells' corners. Assignment measures from their centres: cells + 0.5.",
        ),
        Mistake(
            _positives_with(ends="closed"),
            "A centre exactly on the border of two cells belongs to both here. Include one end of the interval, "
            "-radius, and exclude the other.",
        ),
        Mistake(
            _positives_with(ends="open"),
            "A centre exactly on the border of two cells belongs to neither here. Include one end of the interval: "
            "-radius.",
        ),
        Mistake(
            _positives_with(pixels=True),
            "The radius is compared with pixels. It is counted in strides: divide the offset by the slot's stride.",
        ),
        Mistake(
            _positives_with(levels=False),
            "The levels are missing: an object has candidates on its own level only.",
        ),
        Mistake(
            _positives_with(round_=True),
            "This is a circle around the centre. Wanted is a square: x and y are compared each for itself.",
        ),
        Mistake(
            _positives_with(either=True),
            "This lets pass what is near in x *or* in y, a cross through the whole level. Both must be: all(dim=-1).",
        ),
        Mistake(
            _positives_with(corner=True),
            "The distance is taken from the object's upper left corner. It is the object's centre that counts.",
        ),
        Mistake(
            _positives_with(inside=True),
            "Slots outside the object's box are left out. This rule does not ask for that: only the distance counts.",
        ),
        Mistake(
            _positives_with(owner="largest"),
            "Here the largest object gets a slot that several want. It belongs to the smallest, which has the fewest "
            "others.",
        ),
        Mistake(
            _positives_with(owner="last"),
            "Here the last object that wants a slot gets it. It belongs to the smallest; look at their areas.",
        ),
        Mistake(
            _positives_with(owner="first"),
            "Here the first object that wants a slot gets it. It belongs to the smallest; look at their areas.",
        ),
        Mistake(
            _positives_with(owner="last of the smallest"),
            "Of objects of equal area the first gets the slot. argmin() and min() over the objects do so by "
            "themselves; writing them one after another does not.",
        ),
        Mistake(
            _positives_unowned,
            "Slots that nobody wants learn object 0 here: argmin of a column of equal numbers is 0. Make them -1.",
        ),
        Mistake(
            _positives_with(empty=False),
            "A picture without objects is a usual picture: all its slots are -1. argmin over no rows has no answer, so "
            "treat this case first.",
        ),
    ),
)

# ---- how many lie outside -------------------------------------------------------------------------------------------


def outside_share(centres: Tensor, gt_boxes: Tensor, matched: Tensor) -> float:
    """Which share of the positive slots lies outside its object: [A, 2], [G, 4] xyxy and [A] int64 -> 0 to 1."""
    positive = matched >= 0
    if not positive.any():
        return 0.0
    return _outside(centres[positive], gt_boxes[matched[positive]]).double().mean().item()


def _outside(centres: Tensor, boxes: Tensor) -> Tensor:
    return ((centres <= boxes[:, :2]) | (centres >= boxes[:, 2:])).any(dim=1)


def _share_with(divide_by: str = "positives", edge: bool = False, either: bool = True, invert: bool = False):
    """A wrong `outside_share` that differs from the right one in one place."""

    def answer(centres: Tensor, gt_boxes: Tensor, matched: Tensor) -> float:
        positive = matched >= 0
        if not positive.any():
            return 0.0
        centres, own = centres[positive], gt_boxes[matched[positive]]
        if edge:
            wide = (centres < own[:, :2]) | (centres > own[:, 2:])
        else:
            wide = (centres <= own[:, :2]) | (centres >= own[:, 2:])
        outside = wide.any(dim=1) if either else wide.all(dim=1)
        outside = ~outside if invert else outside
        number = {"positives": len(outside), "slots": len(matched), "objects": len(gt_boxes)}[divide_by]
        return int(outside.sum()) / number

    return answer


def _share_of_all_slots(centres: Tensor, gt_boxes: Tensor, matched: Tensor) -> float:
    if not len(gt_boxes):
        return 0.0
    return _outside(centres, gt_boxes[matched]).double().mean().item()  # -1 is the last row


def _share_of_any_object(centres: Tensor, gt_boxes: Tensor, matched: Tensor) -> float:
    positive = matched >= 0
    if not positive.any():
        return 0.0
    inside = (centres[positive][:, None] > gt_boxes[:, :2]) & (centres[positive][:, None] < gt_boxes[:, 2:])
    return 1 - inside.all(dim=-1).any(dim=1).double().mean().item()


def _share_without_care(centres: Tensor, gt_boxes: Tensor, matched: Tensor) -> float:
    positive = matched >= 0
    return _outside(centres[positive], gt_boxes[matched[positive]]).double().mean().item()


def _share_without_care_divided(centres: Tensor, gt_boxes: Tensor, matched: Tensor) -> float:
    positive = matched >= 0
    return int(_outside(centres[positive], gt_boxes[matched[positive]]).sum()) / int(positive.sum())


def _share_without_zero(centres: Tensor, gt_boxes: Tensor, matched: Tensor) -> float:
    positive = matched > 0
    if not positive.any():
        return 0.0
    return _outside(centres[positive], gt_boxes[matched[positive]]).double().mean().item()


def _owned(gt_boxes: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """The centres of all slots, the objects, and what centre sampling gives them."""
    _, levels, cells, strides, slot_levels, _ = _scene(gt_boxes, radius)
    matched = centre_positives(gt_boxes, levels, cells, strides, slot_levels, radius)
    return (cells + 0.5) * strides[:, None], gt_boxes, matched


def _some_ignored(gt_boxes: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    centres, gt_boxes, matched = _owned(gt_boxes, radius)
    return centres, gt_boxes, matched.where(torch.arange(len(matched)) % 3 != 0, matched.clamp(max=-1) - 1)


_FIVE = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0], [28.0, 4.0], [36.0, 4.0]])

OUTSIDE = Exercise(
    answer=outside_share,
    returns=("share",),
    inputs={
        "two objects, four positive slots, one of them outside": lambda rng: (
            _FIVE,
            torch.tensor([[0.0, 0.0, 14.0, 8.0], [18.0, 1.0, 30.0, 7.0]]),
            torch.tensor([0, 0, 0, 1, -1]),
        ),
        "a centre on the edge": lambda rng: (
            _FIVE,
            torch.tensor([[4.0, 0.0, 24.0, 8.0]]),
            torch.tensor([0, 0, 0, -1, -1]),
        ),
        "an ignored slot among them": lambda rng: (
            _FIVE,
            torch.tensor([[0.0, 0.0, 14.0, 8.0], [18.0, 1.0, 30.0, 7.0]]),
            torch.tensor([0, -2, 0, 1, -2]),
        ),
        "twenty objects, 3 x 3": lambda rng: _owned(_boxes(20, rng, extent=190), 1.5),
        "twenty objects, 5 x 5, every third slot ignored": lambda rng: _some_ignored(_boxes(20, rng, extent=190), 2.5),
        "three hundred objects": lambda rng: _owned(_boxes(300, rng), 1.5),
        "no positive slot": lambda rng: (_FIVE, torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.full((5,), -1)),
        "no object at all": lambda rng: (_FIVE, torch.zeros(0, 4), torch.full((5,), -1)),
    },
    mistakes=(
        Mistake(
            _share_with(divide_by="slots"),
            "This is a share of all slots. Divide by the number of positive ones.",
        ),
        Mistake(
            _share_with(divide_by="objects"),
            "This is a number for each object. Divide by the number of positive slots.",
        ),
        Mistake(
            _share_with(invert=True),
            "This is the share inside. The share outside is what is left to 1.",
        ),
        Mistake(
            _share_with(either=False),
            "This counts slots that are outside in x *and* in y. One of them is enough: a centre above the box is "
            "outside, however well its x fits.",
        ),
        Mistake(
            _share_with(edge=True),
            "A centre exactly on the edge counts as outside: compare with <= and >=.",
        ),
        Mistake(
            _share_of_all_slots,
            "Background slots are counted too: an index of -1 is the last object, and -2 the one before it. Keep slots "
            "with matched >= 0 first.",
        ),
        Mistake(
            _share_of_any_object,
            "A slot counts as inside if it lies in *any* object. It must lie in its own, gt_boxes[matched].",
        ),
        Mistake(
            _share_without_zero,
            "The slots of object 0 are missing: rows are counted from 0, so positive is matched >= 0.",
        ),
        Mistake(
            _share_without_care,
            "Right, but without any positive slot this is the mean of nothing, NaN. Return 0.0 then.",
        ),
        Mistake(
            _share_without_care_divided,
            "Right, but without any positive slot this divides by 0. Return 0.0 then.",
        ),
    ),
)

EXERCISES = (DECODE, TARGETS, POSITIVES, OUTSIDE)
