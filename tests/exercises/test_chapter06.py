"""The exercises of chapter 06: right answers, and what typical wrong ones are told."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection._utils import Matcher

from minidet.assign import ATSS, DensePredictions, MaxIoU, UniformMatching
from minidet.boxes import pairwise_iou, xyxy_to_cxcywh
from minidet.exercises import EXERCISES, review
from minidet.grid import Grid, make_grid
from tests.exercises.told import assert_wrong, stub

YOLOF = make_grid([(25, 42)], (32,), anchor_sizes=[(32, 64, 128, 256, 512)])
NAMES = ("match_max_iou", "atss_threshold", "match_uniform", "blind_side")


def random_boxes(count: int, extent: float, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * extent
    return torch.cat([corner, corner + 10 + 300 * torch.rand(count, 2, generator=rng)], dim=1)


# ---- stubs and solutions --------------------------------------------------------------------------------------------


def max_iou_solution(overlap, positive_iou, negative_iou):
    if len(overlap) == 0:
        return torch.full((overlap.shape[1],), -1)
    best, owner = overlap.amax(dim=0), overlap.argmax(dim=0)
    matched = torch.where(best >= negative_iou, -2, -1)
    return torch.where(best >= positive_iou, owner, matched)


def max_iou_by_loops(overlap, positive_iou, negative_iou):
    matched = []
    for column in overlap.T.tolist():
        best = max(column, default=0.0)
        matched.append(column.index(best) if best >= positive_iou else -2 if best >= negative_iou else -1)
    return torch.tensor(matched, dtype=torch.int64)


def atss_solution(overlap):
    mean = overlap.mean(dim=1)
    return mean if overlap.shape[1] == 1 else mean + overlap.std(dim=1)


def atss_by_sums(overlap):
    mean = overlap.sum(dim=1) / overlap.shape[1]
    squares = ((overlap - mean[:, None]) ** 2).sum(dim=1)
    return mean + (squares / max(overlap.shape[1] - 1, 1)) ** 0.5


def uniform_solution(boxes, anchors, gt_boxes, k, min_anchor_iou):
    k = min(k, len(anchors))
    wanted = torch.zeros(len(gt_boxes), len(anchors), dtype=torch.bool)
    for candidates in (boxes, anchors):
        difference = xyxy_to_cxcywh(gt_boxes)[:, None] - xyxy_to_cxcywh(candidates)[None]
        wanted.scatter_(1, difference.abs().sum(dim=-1).topk(k, dim=1, largest=False).indices, True)
    return wanted & (pairwise_iou(gt_boxes, anchors) >= min_anchor_iou)


def uniform_by_loops(boxes, anchors, gt_boxes, k, min_anchor_iou):
    wanted = torch.zeros(len(gt_boxes), len(anchors), dtype=torch.bool)
    for g, (x1, y1, x2, y2) in enumerate(gt_boxes.tolist()):
        for candidates in (boxes, anchors):
            cost = [
                abs(a + c - x1 - x2) / 2 + abs(b + d - y1 - y2) / 2 + abs(c - a - x2 + x1) + abs(d - b - y2 + y1)
                for a, b, c, d in candidates.tolist()
            ]
            for slot in sorted(range(len(cost)), key=cost.__getitem__)[:k]:
                overlap = pairwise_iou(gt_boxes[g : g + 1].float(), anchors[slot : slot + 1].float())
                wanted[g, slot] |= bool(overlap >= min_anchor_iou)
    return wanted


def blind_solution(anchor_side, min_anchor_iou):
    return anchor_side * min_anchor_iou**0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_is_not_attempted(name):
    assert review(EXERCISES[name], stub).status == "not attempted"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("match_max_iou", max_iou_solution),
        ("match_max_iou", max_iou_by_loops),
        ("atss_threshold", atss_solution),
        ("atss_threshold", atss_by_sums),
        ("match_uniform", uniform_solution),
        ("match_uniform", uniform_by_loops),
        ("blind_side", blind_solution),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_solution_is_done(name, answer):
    verdict = review(EXERCISES[name], answer)
    assert (verdict.status, verdict.text.split(":")[1].split(".")[0]) == ("done", " done")


# ---- the right answers are the library's ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("positive", "negative"), [(0.5, 0.4), (0.7, 0.3), (0.4, 0.4)])
def test_max_iou_is_that_of_the_library_and_of_torchvision(seed, positive, negative):
    objects = random_boxes(20, 700, seed)
    overlap = pairwise_iou(objects, YOLOF.anchor_boxes)
    ours = EXERCISES["match_max_iou"].answer(overlap, positive, negative)
    library = MaxIoU(positive, negative, low_quality=False).match(YOLOF, objects)["matched_gt"]
    assert torch.equal(ours, library)
    assert torch.equal(ours, Matcher(positive, negative)(overlap))
    assert (ours >= 0).any() and (ours == -1).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_that_of_the_librarys_atss(seed):
    steps = ATSS().match(YOLOF, random_boxes(20, 700, seed))
    torch.testing.assert_close(EXERCISES["atss_threshold"].answer(steps["iou"]), steps["threshold"].float())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 4, 300])
def test_the_union_is_what_the_library_gives_to_the_box_loss(seed, k):
    # Anchors at random places, so that no two are equally far from an object.
    anchors, boxes, objects = (random_boxes(count, 400, 10 * seed + n) for n, count in enumerate((200, 200, 12)))
    grid = Grid(torch.zeros(200, 2), torch.ones(200), ((200, 1),), anchors)

    predictions = [
        DensePredictions(grid, torch.zeros(1, 200, 4), each[None], torch.zeros(1, 200, 1), None)
        for each in (boxes, anchors)
    ]
    library = torch.zeros(12, 200, dtype=torch.bool)
    for each in predictions:
        rule = UniformMatching(k=k, sources=("predictions",))
        pairs = rule(each, [{"boxes": objects, "labels": torch.zeros(12, dtype=torch.int64)}]).pairs
        library[pairs.gt, pairs.slot] = True
    assert torch.equal(EXERCISES["match_uniform"].answer(boxes, anchors, objects, k, 0.15), library)
    assert library.any()


def test_a_square_of_the_blind_side_just_reaches_the_threshold():
    for anchor, threshold in [(32.0, 0.15), (16.0, 0.1)]:
        side = EXERCISES["blind_side"].answer(anchor, threshold)
        boxes = torch.tensor([[0.0, 0, side, side], [0, 0, anchor, anchor]])
        assert pairwise_iou(boxes[:1], boxes[1:]).item() == pytest.approx(threshold)


def test_the_inputs_of_the_union_have_no_ties_at_the_last_rank():
    for description, (boxes, anchors, gt_boxes, k, _) in EXERCISES["match_uniform"].cases():
        for candidates in (boxes, anchors):
            difference = xyxy_to_cxcywh(gt_boxes)[:, None] - xyxy_to_cxcywh(candidates)[None]
            distance = difference.abs().sum(dim=-1).sort(dim=1).values
            if k < distance.shape[1]:
                assert (distance[:, k] - distance[:, k - 1] > 1e-4).all(), description


# ---- wrong answers --------------------------------------------------------------------------------------------------


def staircase(best, owner, positive_iou, negative_iou):
    return torch.where(best >= positive_iou, owner, torch.where(best >= negative_iou, -2, -1))


def along_the_wrong_axis(overlap, positive_iou, negative_iou):
    return staircase(overlap.amax(1), overlap.argmax(1), positive_iou, negative_iou)


def strictly_above(overlap, positive_iou, negative_iou):
    if not len(overlap):
        return torch.full((overlap.shape[1],), -1)
    best, owner = overlap.amax(0), overlap.argmax(0)
    return torch.where(best > positive_iou, owner, torch.where(best > negative_iou, -2, -1))


def no_band(overlap, positive_iou, negative_iou):
    if not len(overlap):
        return torch.full((overlap.shape[1],), -1)
    return torch.where(overlap.amax(0) >= positive_iou, overlap.argmax(0), -1)


def band_and_background_exchanged(overlap, positive_iou, negative_iou):
    if not len(overlap):
        return torch.full((overlap.shape[1],), -1)
    best = overlap.amax(0)
    return torch.where(best >= positive_iou, overlap.argmax(0), torch.where(best >= negative_iou, -1, -2))


def no_empty_picture(overlap, positive_iou, negative_iou):
    best, owner = overlap.max(dim=0)
    return staircase(best, owner, positive_iou, negative_iou)


def last_object_wins(overlap, positive_iou, negative_iou):
    matched = torch.full((overlap.shape[1],), -1)
    for g in range(len(overlap)):
        matched[(overlap[g] >= negative_iou) & (overlap[g] < positive_iou)] = -2
        matched[overlap[g] >= positive_iou] = g
    return matched


def low_quality_too(overlap, positive_iou, negative_iou):
    matched = max_iou_solution(overlap, positive_iou, negative_iou)
    for row in overlap:
        matched[(row == row.max()) & (row > 0)] = overlap[:, (row == row.max()) & (row > 0)].argmax(dim=0)
    return matched


def float_rows(overlap, positive_iou, negative_iou):
    return max_iou_solution(overlap, positive_iou, negative_iou).float()


def into_the_table(overlap, positive_iou, negative_iou):
    overlap[overlap < negative_iou] = 0
    return max_iou_solution(overlap, positive_iou, negative_iou)


def one_of_every_pair(overlap, positive_iou, negative_iou):
    return (overlap >= positive_iou).long()


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (along_the_wrong_axis, "matched has the shape [2], not [6].", "This is the best anchor of each object."),
        (strictly_above, "matched[0] is -2, not 0.", "compare with >="),
        (no_band, "matched[1] is -1, not -2.", "The band is missing."),
        (band_and_background_exchanged, "matched[1] is -1, not -2.", "Background and ignored are exchanged"),
        (no_empty_picture, "The first of them: no object at all.", "A picture without objects is a usual picture"),
        (last_object_wins, "matched[4] is 1, not 0.", "learns the object that it overlaps *most*"),
        (low_quality_too, "matched[2] is 0, not -2.", "This has the low-quality rule in it"),
        (float_rows, "matched is float32, but int64 was expected.", "matched must be int64"),
        (into_the_table, "other numbers stand in overlap afterwards", "Make a new tensor instead"),
        (one_of_every_pair, "matched has the shape [2, 6], not [6].", ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_max_iou_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("match_max_iou", answer, difference, hint)


def divided_by_k(overlap):
    return overlap.mean(dim=1) + overlap.std(dim=1, unbiased=False)


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # torch warns of what the answers do wrong
@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (divided_by_k, "threshold[0] is 0.6431, not 0.6846.", "A sample has K - 1 free deviations"),
        (lambda overlap: overlap.mean(1), "threshold[0] is 0.375, not 0.6846.", "This is the mean alone."),
        (lambda overlap: overlap.mean(1) - overlap.std(1, correction=1), "threshold[0] is", "It is a sum."),
        (lambda overlap: overlap.mean(1) + overlap.var(1), "threshold[0] is", "This adds the variance."),
        (lambda overlap: overlap.mean(0) + overlap.std(0), "threshold has the shape [4], not [1].", "go along the"),
        (lambda overlap: (overlap.mean() + overlap.std()).repeat(len(overlap)), "threshold[0] is", "its own: dim=1"),
        (lambda overlap: overlap.mean(1) + overlap.std(1), "The first of them: a single candidate.", "0 / 0 is NaN"),
        (lambda overlap: atss_solution(overlap)[:, None], "threshold has the shape [1, 1], not [1].", "not [G, 1]"),
        (lambda overlap: atss_solution(overlap).double(), "threshold is float64, but float32 was expected.", ""),
    ],
    ids=["biased", "mean", "minus", "variance", "axis", "one for all", "single", "axis too many", "float64"],
)
def test_a_wrong_threshold_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("atss_threshold", answer, difference, hint)


def uniform_with(distance=None, lists=(0, 1), join=torch.logical_or, tested=1, strict=False, most=None, largest=False):
    """A student's version, with one thing done differently."""

    def answer(boxes, anchors, gt_boxes, k, min_anchor_iou):
        both = (boxes.float(), anchors.float())
        gt = gt_boxes.float()
        masks = []
        for candidates in both:
            if distance is None:
                cost = (xyxy_to_cxcywh(gt)[:, None] - xyxy_to_cxcywh(candidates)).abs().sum(-1)
            else:
                cost = distance(gt[:, None], candidates)
            count = k if most else min(k, cost.shape[1])
            columns = cost.topk(count, dim=1, largest=largest).indices
            masks.append(torch.zeros_like(cost, dtype=torch.bool).scatter(1, columns, True))
        wanted = join(*masks) if len(lists) == 2 else masks[lists[0]]
        if tested is None:
            return wanted
        overlap = pairwise_iou(gt, both[tested])
        return wanted & ((overlap > min_anchor_iou) if strict else (overlap >= min_anchor_iou))

    return answer


def corners(a, b):
    return (a - b).abs().sum(-1)


def straight(a, b):
    return (xyxy_to_cxcywh(a) - xyxy_to_cxcywh(b)).square().sum(-1).sqrt()


def centres(a, b):
    return (xyxy_to_cxcywh(a) - xyxy_to_cxcywh(b))[..., :2].abs().sum(-1)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (uniform_with(distance=corners), "The distance is taken between corners"),
        (uniform_with(distance=straight), "This is the L2 distance"),
        (uniform_with(distance=centres), "Only the centres are compared."),
        (uniform_with(lists=(1,)), "The list of the predictions is missing."),
        (uniform_with(lists=(0,)), "The list of the anchors is missing."),
        (uniform_with(join=torch.logical_and), "Only slots that are in both lists are left."),
        (uniform_with(tested=0), "The threshold is applied to the predicted boxes."),
        (uniform_with(tested=None), "The last step is missing"),
        (uniform_with(strict=True), "compare with >="),
        (uniform_with(largest=True), "unless it is told largest=False"),
        (uniform_with(most=True), "k = min(k, A)"),
    ],
    ids="corners straight centres anchors predictions both tested untested strict largest most".split(),
)
def test_a_wrong_union_is_told_what_differs_and_why(answer, hint):
    assert_wrong("match_uniform", answer, "match_uniform: wrong on", hint)


def test_an_answer_of_slot_numbers_or_integers_is_told_the_shape_or_the_type():
    assert_wrong("match_uniform", lambda *a: uniform_solution(*a).long(), "wanted is int64, but bool was expected.", "")
    assert_wrong(
        "match_uniform", lambda *a: uniform_solution(*a).T, "wanted has the shape [5, 1], not [1, 5].", "swapped"
    )


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (lambda side, iou: side * iou, "side is 25, not 50.", "an area is a side squared"),
        (lambda side, iou: side * side * iou, "side is 2500, not 50.", "This is the area of that square."),
        (lambda side, iou: math.sqrt(iou), "side is 0.5, not 50.", "Multiply by the anchor's side"),
        (lambda side, iou: math.sqrt(side) * iou, "side is 2.5, not 50.", "The root belongs to the IoU"),
        (lambda side, iou: side / math.sqrt(iou), "side is 200, not 50.", "This is larger than the anchor"),
        (lambda side, iou: math.sqrt(side * iou), "side is 5, not 50.", "The root is taken of too much"),
        (lambda side, iou: torch.tensor(side * iou**0.5), "side is tensor(50.), not 50.", ""),
    ],
    ids=["no root", "area", "share", "root of the side", "divided", "root of both", "tensor"],
)
def test_a_wrong_side_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("blind_side", answer, difference, hint)
