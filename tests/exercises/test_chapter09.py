"""The exercises of chapter 09: right answers, and what typical wrong ones are told."""

from __future__ import annotations

import math

import pytest
import torch

from minidet.assign import CentreSampling
from minidet.assign.centre import level_by_size
from minidet.detectors.yolox import decode
from minidet.exercises import EXERCISES, review
from minidet.grid import make_grid
from minidet.losses import raw_box_targets
from tests.exercises.told import assert_wrong, stub

NAMES = ("decode_cells", "raw_targets", "centre_positives", "outside_share")
GRID = make_grid([(24, 32), (12, 16), (6, 8)], (8, 16, 32))


def random_boxes(count: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * 200 - 10
    return torch.cat([corner, corner + 4 + 120 * torch.rand(count, 2, generator=rng)], dim=1)


# ---- stubs and solutions --------------------------------------------------------------------------------------------


def decode_solution(raw, cells, strides):
    unit = strides[:, None]
    centres = (raw[:, :2] + cells) * unit
    half = raw[:, 2:].clamp(max=math.log(10_000)).exp() * unit / 2
    return torch.cat([centres - half, centres + half], dim=1)


def decode_by_loops(raw, cells, strides):
    boxes = []
    for (tx, ty, tw, th), (column, row), stride in zip(raw.tolist(), cells.tolist(), strides.tolist(), strict=True):
        x, y = (column + tx) * stride, (row + ty) * stride
        w, h = (stride * math.exp(min(t, math.log(10_000))) for t in (tw, th))
        boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return torch.tensor(boxes).reshape(-1, 4)


def targets_solution(gt_boxes, cells, strides):
    gt_boxes, unit = gt_boxes.float(), strides[:, None].float()
    centres = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    sizes = gt_boxes[:, 2:] - gt_boxes[:, :2]
    return torch.cat([centres / unit - cells, torch.log(sizes / unit + 1e-8)], dim=1)


def targets_by_loops(gt_boxes, cells, strides):
    raw = []
    for (x1, y1, x2, y2), (column, row), s in zip(gt_boxes.tolist(), cells.tolist(), strides.tolist(), strict=True):
        sizes = [math.log((x2 - x1) / s + 1e-8), math.log((y2 - y1) / s + 1e-8)]
        raw.append([(x1 + x2) / 2 / s - column, (y1 + y2) / 2 / s - row, *sizes])
    return torch.tensor(raw).reshape(-1, 4)


def positives_solution(gt_boxes, gt_levels, cells, strides, slot_levels, radius):
    if len(gt_boxes) == 0:
        return torch.full((len(cells),), -1)
    gt_boxes = gt_boxes.float()
    centres = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    offsets = centres[:, None] / strides[:, None] - (cells + 0.5)
    near = ((offsets >= -radius) & (offsets < radius)).all(dim=-1)
    wanted = near & (gt_levels[:, None] == slot_levels)
    area = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(dim=1)
    owner = torch.where(wanted, area[:, None], torch.inf).argmin(dim=0)
    return torch.where(wanted.any(dim=0), owner, -1)


def positives_by_loops(gt_boxes, gt_levels, cells, strides, slot_levels, radius):
    matched = torch.full((len(cells),), -1)
    area = [float((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in gt_boxes.tolist()]
    slots = list(zip(cells.tolist(), strides.tolist(), slot_levels.tolist(), strict=True))
    for g in sorted(range(len(gt_boxes)), key=lambda g: (-area[g], -g)):
        (x1, y1, x2, y2), own_level = gt_boxes[g].tolist(), int(gt_levels[g])
        for a, ((column, row), stride, level) in enumerate(slots):
            dx, dy = (x1 + x2) / 2 / stride - column - 0.5, (y1 + y2) / 2 / stride - row - 0.5
            if level == own_level and -radius <= dx < radius and -radius <= dy < radius:
                matched[a] = g
    return matched


def share_solution(centres, gt_boxes, matched):
    positive = matched >= 0
    if not positive.any():
        return 0.0
    centres, own = centres[positive], gt_boxes[matched[positive]]
    inside = ((centres > own[:, :2]) & (centres < own[:, 2:])).all(dim=1)
    return 1 - inside.float().mean().item()


def share_by_loops(centres, gt_boxes, matched):
    outside = []
    for (x, y), g in zip(centres.tolist(), matched.tolist(), strict=True):
        if g >= 0:
            x1, y1, x2, y2 = gt_boxes[g].tolist()
            outside.append(not (x1 < x < x2 and y1 < y < y2))
    return sum(outside) / len(outside) if outside else 0.0


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_is_not_attempted(name):
    assert review(EXERCISES[name], stub).status == "not attempted"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("decode_cells", decode_solution),
        ("decode_cells", decode_by_loops),
        ("raw_targets", targets_solution),
        ("raw_targets", targets_by_loops),
        ("centre_positives", positives_solution),
        ("centre_positives", positives_by_loops),
        ("outside_share", share_solution),
        ("outside_share", share_by_loops),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_solution_is_done(name, answer):
    verdict = review(EXERCISES[name], answer)
    assert verdict.status == "done", verdict.text


# ---- the right answers are the library's ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_those_of_the_librarys_decoding(seed):
    raw = 3 * torch.randn(len(GRID), 4, generator=torch.Generator().manual_seed(seed))
    raw[:9, 2:] = 100.0  # cut
    ours = EXERCISES["decode_cells"].answer(raw, GRID.cells, GRID.strides)
    torch.testing.assert_close(ours, decode(raw[None], GRID)[0])
    assert ours.isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_targets_are_those_of_the_library_and_decode_to_their_boxes(seed):
    boxes = random_boxes(len(GRID), seed)
    ours = EXERCISES["raw_targets"].answer(boxes, GRID.cells, GRID.strides)
    torch.testing.assert_close(ours, raw_box_targets(boxes, GRID.cells, GRID.strides))
    torch.testing.assert_close(decode(ours[None], GRID)[0], boxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("radius", [None, 1.5, 2.5])
@pytest.mark.parametrize("limit", [1.92, 8.0])
def test_positives_are_those_of_the_librarys_centre_sampling(seed, radius, limit):
    boxes = random_boxes(15, seed)
    levels = level_by_size(boxes, torch.tensor([8.0, 16, 32]), limit)
    ours = EXERCISES["centre_positives"].answer(boxes, levels, GRID.cells, GRID.strides, GRID.levels, radius or 0.5)
    library = CentreSampling(radius, limit).match(GRID, boxes)["matched_gt"]
    assert torch.equal(ours, library)
    assert (ours >= 0).any()


def test_the_share_outside_follows_the_formula_of_the_chapter():
    """Of the 3 x 3 around a square of `a` strides 1 - (a / 3)^2 lie outside, on average over its places in a cell."""
    places = torch.cartesian_prod(torch.arange(0, 16, 2), torch.arange(0, 16, 2)) + 65.0  # of every second pixel
    cells, strides, levels = GRID.cells[768:960], GRID.strides[768:960], GRID.levels[768:960]
    for a in (1.0, 2.0, 3.0, 4.0):
        shares = []
        for x, y in places.tolist():
            box = torch.tensor([[x - 8 * a, y - 8 * a, x + 8 * a, y + 8 * a]])
            matched = EXERCISES["centre_positives"].answer(box, torch.tensor([1]), cells, strides, levels, 1.5)
            assert (matched == 0).sum() == 9
            shares.append(EXERCISES["outside_share"].answer((cells + 0.5) * 16, box, matched))
        assert sum(shares) / len(shares) == pytest.approx(max(1 - (a / 3) ** 2, 0), abs=0.01)


# ---- wrong answers --------------------------------------------------------------------------------------------------


def with_half(raw, cells, strides):
    return decode_solution(raw, cells + 0.5, strides)


def with_sigmoid(raw, cells, strides):
    return decode_solution(torch.cat([raw[:, :2].sigmoid(), raw[:, 2:]], dim=1), cells, strides)


def uncut(raw, cells, strides):
    unit = strides[:, None]
    centres, half = (raw[:, :2] + cells) * unit, raw[:, 2:].exp() * unit / 2
    return torch.cat([centres - half, centres + half], dim=1)


def cut_at_the_number_itself(raw, cells, strides):
    return uncut(raw.clamp(max=10_000), cells, strides)


def whole_size_to_each_side(raw, cells, strides):
    unit = strides[:, None]
    centres, size = (raw[:, :2] + cells) * unit, raw[:, 2:].clamp(max=math.log(1e4)).exp() * unit
    return torch.cat([centres - size, centres + size], dim=1)


def centres_and_sizes(raw, cells, strides):
    unit = strides[:, None]
    return torch.cat([(raw[:, :2] + cells) * unit, raw[:, 2:].clamp(max=math.log(1e4)).exp() * unit], dim=1)


def sizes_in_strides(raw, cells, strides):
    centres, half = (raw[:, :2] + cells) * strides[:, None], raw[:, 2:].clamp(max=math.log(1e4)).exp() / 2
    return torch.cat([centres - half, centres + half], dim=1)


def strides_on_the_wrong_axis(raw, cells, strides):
    centres, half = (raw[:, :2] + cells) * strides, raw[:, 2:].clamp(max=math.log(1e4)).exp() * strides / 2
    return torch.cat([centres - half, centres + half], dim=1)


def offset_in_pixels(raw, cells, strides):
    unit = strides[:, None]
    centres, half = raw[:, :2] + cells * unit, raw[:, 2:].clamp(max=math.log(1e4)).exp() * unit / 2
    return torch.cat([centres - half, centres + half], dim=1)


def rows_first(raw, cells, strides):
    return decode_solution(raw, cells[:, [1, 0]], strides)


def into_the_raw_numbers(raw, cells, strides):
    raw[:, :2] += cells
    unit = strides[:, None]
    half = raw[:, 2:].clamp(max=math.log(1e4)).exp() * unit / 2
    return torch.cat([raw[:, :2] * unit - half, raw[:, :2] * unit + half], dim=1)


def in_double(raw, cells, strides):
    return decode_solution(raw.double(), cells, strides)


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (with_half, "boxes[0, 0] is 32, not 24.", "there is no 0.5 in the decoding"),
        (with_sigmoid, "boxes[0, 0] is", "That is YOLOv3's"),
        (uncut, "The first of them: very large sizes.", "Sizes are not cut"),
        (cut_at_the_number_itself, "The first of them: very large sizes.", "cut it at ln(10,000)"),
        (whole_size_to_each_side, "boxes[0, 0] is 8, not 24.", "only half of the size"),
        (centres_and_sizes, "boxes[0, 0] is 40, not 24.", "Wanted are corners"),
        (sizes_in_strides, "boxes[0, 0] is 39, not 24.", "multiply them by the stride to have pixels"),
        (strides_on_the_wrong_axis, "The first of them: two slots of different levels.", "Write strides[:, None]."),
        (offset_in_pixels, "boxes[0, 0] is 16.5, not 24.", "The offset is counted in cells too"),
        (rows_first, "boxes[0, 0] is 8, not 24.", "a cell is (column, row)"),
        (into_the_raw_numbers, "other numbers stand in raw afterwards", "Make a new tensor instead"),
        (in_double, "boxes is float64, but float32 was expected.", ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_decoding_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("decode_cells", answer, difference, hint)


def minus_half(gt_boxes, cells, strides):
    return targets_solution(gt_boxes, cells + 0.5, strides)


def bare_logarithm(gt_boxes, cells, strides):
    raw = targets_solution(gt_boxes, cells, strides)
    sizes = (gt_boxes[:, 2:] - gt_boxes[:, :2]) / strides[:, None]
    return torch.cat([raw[:, :2], sizes.log()], dim=1)


def tiny_in_pixels(gt_boxes, cells, strides):
    raw = targets_solution(gt_boxes, cells, strides)
    sizes = gt_boxes[:, 2:] - gt_boxes[:, :2]
    return torch.cat([raw[:, :2], ((sizes + 1e-8) / strides[:, None]).log()], dim=1)


def no_logarithm(gt_boxes, cells, strides):
    raw = targets_solution(gt_boxes, cells, strides)
    return torch.cat([raw[:, :2], raw[:, 2:].exp()], dim=1)


def size_in_pixels(gt_boxes, cells, strides):
    raw = targets_solution(gt_boxes, cells, strides)
    return torch.cat([raw[:, :2], (gt_boxes[:, 2:] - gt_boxes[:, :2] + 1e-8).log()], dim=1)


def corner_of_the_box(gt_boxes, cells, strides):
    raw = targets_solution(gt_boxes, cells, strides)
    return torch.cat([gt_boxes[:, :2] / strides[:, None] - cells, raw[:, 2:]], dim=1)


def cell_forgotten(gt_boxes, cells, strides):
    return targets_solution(gt_boxes, torch.zeros_like(cells), strides)


def halves_lost(gt_boxes, cells, strides):
    raw = targets_solution(gt_boxes, cells, strides)
    both = gt_boxes[:, :2] + gt_boxes[:, 2:]
    centres = both / 2 if both.is_floating_point() else both // 2
    return torch.cat([centres / strides[:, None] - cells, raw[:, 2:]], dim=1)


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (minus_half, "raw[0, 0] is 0, not 0.5.", "there is no 0.5"),
        (bare_logarithm, "The first of them: an empty box.", "The logarithm of 0 is minus infinity."),
        (tiny_in_pixels, "The first of them: an empty box.", "divide first, then add"),
        (no_logarithm, "raw[0, 2] is 2, not 0.6931.", "take the logarithm of the sizes"),
        (size_in_pixels, "raw[0, 2] is 3.466, not 0.6931.", "Divide by the stride first"),
        (corner_of_the_box, "raw[0, 0] is -0.5, not 0.5.", "where its centre is"),
        (cell_forgotten, "raw[0, 0] is 2.5, not 0.5.", "Subtract the slot's own cell."),
        (halves_lost, "The first of them: boxes that are whole numbers.", "// rounds down"),
        (lambda b, c, s: targets_solution(b, c.flip(1), s), "raw[0, 0] is", "a cell is (column, row)"),
        (lambda b, c, s: targets_solution(b, c, s).double(), "raw is float64, but float32 was expected.", ""),
    ],
    ids="half bare pixels linear size corner cell halves rows double".split(),
)
def test_wrong_targets_are_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("raw_targets", answer, difference, hint)


def positives_with(
    offset=0.5,
    compare="half open",
    unit=True,
    level=True,
    inside=False,
    both=True,
    pick="smallest",
    none=True,
    empty=True,
):
    """A student's version, with one thing done differently."""

    def answer(gt_boxes, gt_levels, cells, strides, slot_levels, radius):
        if empty and not len(gt_boxes):
            return torch.full((len(cells),), -1)
        gt_boxes = gt_boxes.float()
        points = (cells + offset) * strides[:, None]
        offsets = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2 - points
        offsets = offsets / strides[:, None] if unit else offsets
        if compare == "circle":
            near = offsets.norm(dim=-1) < radius
        else:
            near = {
                "half open": (offsets >= -radius) & (offsets < radius),
                "closed": offsets.abs() <= radius,
                "open": offsets.abs() < radius,
            }[compare]
            near = near.all(dim=-1) if both else near.any(dim=-1)
        wanted = near & (gt_levels[:, None] == slot_levels) if level else near
        if inside:
            wanted &= ((points > gt_boxes[:, None, :2]) & (points < gt_boxes[:, None, 2:])).all(dim=-1)
        matched = torch.full((len(cells),), -1 if none else 0)
        area = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(dim=1).tolist()
        order = {
            "smallest": sorted(range(len(area)), key=lambda g: (-area[g], -g)),
            "last of the smallest": sorted(range(len(area)), key=lambda g: -area[g]),
            "largest": sorted(range(len(area)), key=lambda g: (area[g], -g)),
            "last": range(len(area)),
            "first": range(len(area))[::-1],
        }[pick]
        if not empty:
            torch.zeros(len(area), 3).argmin(dim=0)
        for g in order:
            matched[wanted[g]] = g
        return matched

    return answer


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (positives_with(offset=0.0), "matched", "The distance is taken from the cells' corners."),
        (positives_with(compare="closed"), "a centre on the border of cells", "belongs to both here"),
        (positives_with(compare="open"), "a centre on the border of cells", "belongs to neither here"),
        (positives_with(compare="circle"), "the same with radius 1.5", "This is a circle"),
        (positives_with(unit=False), "matched", "The radius is compared with pixels."),
        (positives_with(level=False), "three levels", "on its own level only"),
        (positives_with(both=False), "matched", "in x *or* in y"),
        (positives_with(inside=True), "matched", "only the distance counts"),
        (positives_with(pick="largest"), "a large object before a small one", "Here the largest object gets"),
        (positives_with(pick="last"), "a small object before a large one", "Here the last object"),
        (positives_with(pick="first"), "a large object before a small one", "Here the first object"),
        (positives_with(pick="last of the smallest"), "two objects of equal area", "the first gets the slot"),
        (positives_with(none=False), "matched[0] is 0, not -1.", "Make them -1."),
        (positives_with(empty=False), "no object at all", "A picture without objects is a usual picture"),
        (lambda *a: positives_solution(*a).float(), "matched is float32, but int64 was expected.", ""),
    ],
    ids="corner closed open circle pixels levels either inside largest last first ties unowned empty float".split(),
)
def test_wrong_positives_are_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("centre_positives", answer, difference, hint)


def share_of_all_slots(centres, gt_boxes, matched):
    positive = matched >= 0
    return share_solution(centres, gt_boxes, matched) * int(positive.sum()) / len(matched)


def share_inside(centres, gt_boxes, matched):
    return 1 - share_solution(centres, gt_boxes, matched) if (matched >= 0).any() else 0.0


def outside_both_ways(centres, gt_boxes, matched):
    positive = matched >= 0
    if not positive.any():
        return 0.0
    centres, own = centres[positive], gt_boxes[matched[positive]]
    return ((centres <= own[:, :2]) | (centres >= own[:, 2:])).all(dim=1).float().mean().item()


def edge_is_inside(centres, gt_boxes, matched):
    positive = matched >= 0
    if not positive.any():
        return 0.0
    centres, own = centres[positive], gt_boxes[matched[positive]]
    return 1 - ((centres >= own[:, :2]) & (centres <= own[:, 2:])).all(dim=1).float().mean().item()


def background_too(centres, gt_boxes, matched):
    if not len(gt_boxes):
        return 0.0
    own = gt_boxes[matched]
    return 1 - ((centres > own[:, :2]) & (centres < own[:, 2:])).all(dim=1).float().mean().item()


def in_any_object(centres, gt_boxes, matched):
    positive = matched >= 0
    if not positive.any():
        return 0.0
    points = centres[positive][:, None]
    inside = ((points > gt_boxes[:, :2]) & (points < gt_boxes[:, 2:])).all(dim=-1).any(dim=1)
    return 1 - inside.float().mean().item()


def mean_of_nothing(centres, gt_boxes, matched):
    positive = matched >= 0
    own = gt_boxes[matched[positive]]
    return 1 - ((centres[positive] > own[:, :2]) & (centres[positive] < own[:, 2:])).all(1).float().mean().item()


def divided_by_zero(centres, gt_boxes, matched):
    positive = matched >= 0
    own = gt_boxes[matched[positive]]
    inside = ((centres[positive] > own[:, :2]) & (centres[positive] < own[:, 2:])).all(dim=1)
    return (len(inside) - int(inside.sum())) / len(inside)


def first_object_forgotten(centres, gt_boxes, matched):
    return share_solution(centres, gt_boxes, torch.where(matched > 0, matched, -1))


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (share_of_all_slots, "share is 0.2, not 0.25.", "Divide by the number of positive ones."),
        (share_inside, "share is 0.75, not 0.25.", "This is the share inside."),
        (outside_both_ways, "share is 0, not 0.25.", "One of them is enough"),
        (edge_is_inside, "The first of them: a centre on the edge.", "compare with <= and >="),
        (background_too, "share is", "an index of -1 is the last object"),
        (in_any_object, "share is 0, not 0.25.", "It must lie in its own"),
        (mean_of_nothing, "The first of them: no positive slot.", "this is the mean of nothing"),
        (divided_by_zero, "The first of them: no positive slot.", "this divides by 0"),
        (first_object_forgotten, "share is 0, not 0.25.", "The slots of object 0 are missing"),
        (lambda *a: torch.tensor(share_solution(*a)), "share is tensor(0.2500), not 0.25.", ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_share_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("outside_share", answer, difference, hint)
