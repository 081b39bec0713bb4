"""The exercises of chapter 06: who is positive by IoU, by ATSS, by uniform matching; and who is too small for it."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from minidet.assign import BACKGROUND, IGNORED
from minidet.assign.atss import mean_and_std
from minidet.assign.uniform import l1_distances, nearest_slots
from minidet.boxes import cxcywh_to_xyxy, pairwise_iou, xyxy_to_cxcywh
from minidet.exercises.check import Exercise, Mistake

# ---- max-IoU --------------------------------------------------------------------------------------------------------


def match_max_iou(overlap: Tensor, positive_iou: float, negative_iou: float) -> Tensor:
    """What each anchor learns: [G, A] IoU of objects and anchors -> [A] int64, row of an object, -1 or -2.

    -1 is background, -2 ignored. Without the low-quality rule.
    """
    count, anchors = overlap.shape
    if count == 0:
        return torch.full((anchors,), BACKGROUND)
    best, owner = overlap.max(dim=0).values, overlap.argmax(dim=0)  # of equals the first
    ignored = torch.where(best >= negative_iou, IGNORED, BACKGROUND)
    return torch.where(best >= positive_iou, owner, ignored)


def _table(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows)


def _random_table(objects: int, anchors: int, rng: Generator) -> Tensor:
    return torch.rand(objects, anchors, generator=rng) ** 2


def _max_iou_with(
    above: bool = False, dim: int = 0, band: bool = True, swap: bool = False, last: bool = False, float_: bool = False
):
    """A wrong `match_max_iou` that differs from the right one in one place."""

    def answer(overlap: Tensor, positive_iou: float, negative_iou: float) -> Tensor:
        if dim == 0 and len(overlap) == 0:
            return torch.full((overlap.shape[1],), float(BACKGROUND) if float_ else BACKGROUND)
        best, owner = overlap.max(dim=dim).values, overlap.argmax(dim=dim)
        if last:
            owner = len(overlap) - 1 - overlap.flip(0).argmax(dim=0)
        nothing, middle = (IGNORED, BACKGROUND) if swap else (BACKGROUND, IGNORED)
        low = best > negative_iou if above else best >= negative_iou
        high = best > positive_iou if above else best >= positive_iou
        rest = torch.where(low, middle, nothing) if band else torch.full_like(owner, BACKGROUND)
        result = torch.where(high, owner, rest)
        return result.float() if float_ else result

    return answer


def _max_iou_low_quality(overlap: Tensor, positive_iou: float, negative_iou: float) -> Tensor:
    matched = match_max_iou(overlap, positive_iou, negative_iou)
    if len(overlap):
        forced = ((overlap == overlap.amax(dim=1, keepdim=True)) & (overlap > 0)).any(dim=0)
        matched = torch.where(forced, overlap.argmax(dim=0), matched)
    return matched


def _max_iou_no_empty(overlap: Tensor, positive_iou: float, negative_iou: float) -> Tensor:
    best, owner = overlap.max(dim=0).values, overlap.argmax(dim=0)
    return torch.where(best >= positive_iou, owner, torch.where(best >= negative_iou, IGNORED, BACKGROUND))


def _max_iou_any(overlap: Tensor, positive_iou: float, negative_iou: float) -> Tensor:
    matched = torch.full((overlap.shape[1],), BACKGROUND)
    for row, values in enumerate(overlap):
        matched[(values >= negative_iou) & (values < positive_iou)] = IGNORED
        matched[values >= positive_iou] = row
    return matched


def _max_iou_first(overlap: Tensor, positive_iou: float, negative_iou: float) -> Tensor:
    if len(overlap) == 0:
        return torch.full((overlap.shape[1],), BACKGROUND)
    best, first = overlap.max(dim=0).values, (overlap >= positive_iou).int().argmax(dim=0)
    return torch.where(best >= positive_iou, first, torch.where(best >= negative_iou, IGNORED, BACKGROUND))


MAX_IOU = Exercise(
    answer=match_max_iou,
    returns=("matched",),
    inputs={
        "two objects and six anchors": lambda rng: (
            _table([[0.62, 0.45, 0.10, 0.00, 0.60, 0.39], [0.20, 0.41, 0.30, 0.70, 0.55, 0.05]]),
            0.5,
            0.4,
        ),
        "IoUs that equal a threshold": lambda rng: (_table([[0.5, 0.25, 0.125], [0.25, 0.125, 0.0]]), 0.5, 0.25),
        "an anchor that overlaps two objects equally": lambda rng: (_table([[0.75, 0.25], [0.75, 0.5]]), 0.5, 0.25),
        "no anchor above the threshold": lambda rng: (_table([[0.1, 0.3, 0.45]]), 0.5, 0.4),
        "as many objects as anchors": lambda rng: (_random_table(5, 5, rng), 0.5, 0.4),
        "no band: both thresholds are equal": lambda rng: (_random_table(4, 30, rng), 0.3, 0.3),
        "other thresholds": lambda rng: (_random_table(7, 40, rng), 0.7, 0.3),
        "thirty objects and a thousand anchors": lambda rng: (_random_table(30, 1000, rng), 0.9, 0.8),
        "no object at all": lambda rng: (torch.zeros(0, 6), 0.5, 0.4),
    },
    mistakes=(
        Mistake(
            _max_iou_with(dim=1),
            "This is the best anchor of each object. Wanted is the best object of each anchor: go along the axis of "
            "the objects, the first one.",
        ),
        Mistake(
            _max_iou_with(above=True),
            "An anchor whose IoU equals a threshold has reached it: compare with >=.",
        ),
        Mistake(
            _max_iou_with(band=False),
            "The band is missing. An anchor from negative_iou up to positive_iou is neither positive nor background: "
            "it is ignored, -2.",
        ),
        Mistake(
            _max_iou_with(swap=True),
            "Background and ignored are exchanged: -1 is background (below the lower threshold), -2 is ignored.",
        ),
        Mistake(
            _max_iou_no_empty,
            "A picture without objects is a usual picture: all its anchors are background. max() over no rows has no "
            "answer, so treat this case first.",
        ),
        Mistake(
            _max_iou_with(last=True),
            "Of two objects that an anchor overlaps equally it learns the first. argmax() gives the first of equals.",
        ),
        Mistake(
            _max_iou_any,
            "Here the last object that reaches the threshold gets the anchor, or takes it away. The anchor learns the "
            "object that it overlaps *most*.",
        ),
        Mistake(
            _max_iou_first,
            "Here the first object that reaches the threshold gets the anchor. The anchor learns the object that it "
            "overlaps *most*.",
        ),
        Mistake(
            _max_iou_low_quality,
            "This has the low-quality rule in it: every object's best anchor is positive as well. Leave that out here.",
        ),
        Mistake(
            _max_iou_with(float_=True),
            "The numbers are right, but rows are counted in whole numbers: matched must be int64.",
        ),
    ),
)

# ---- ATSS -----------------------------------------------------------------------------------------------------------


def atss_threshold(overlap: Tensor) -> Tensor:
    """The IoU from which on each object's candidates are positive: [G, K] float -> [G] float, mean plus deviation."""
    mean, std = mean_and_std(overlap)
    return (mean + std).to(overlap)


def _spread(overlap: Tensor, correction: int, dim: int | None = 1) -> Tensor:
    """As std(), but it does not warn where it divides by 0."""
    squares = (overlap - overlap.mean(dim=dim, keepdim=True)).square()
    count = overlap.numel() if dim is None else overlap.shape[dim]
    return ((squares.sum() if dim is None else squares.sum(dim=dim)) / (count - correction)).sqrt()


ATSS_THRESHOLD = Exercise(
    answer=atss_threshold,
    returns=("threshold",),
    inputs={
        "one object, four candidates": lambda rng: (_table([[0.1, 0.2, 0.4, 0.8]]),),
        "two objects": lambda rng: (_table([[0.5, 0.25, 0.0, 0.25], [0.9, 0.6, 0.6, 0.3]]),),
        "as many objects as candidates": lambda rng: (torch.rand(9, 9, generator=rng),),
        "candidates that are all alike": lambda rng: (torch.full((2, 9), 0.3),),
        "three hundred objects": lambda rng: (torch.rand(300, 9, generator=rng),),
        "a single candidate": lambda rng: (_table([[0.4], [0.0]]),),
    },
    mistakes=(
        Mistake(
            lambda overlap: overlap.mean(dim=1),
            "This is the mean alone. Half of the candidates would pass; the standard deviation makes it stricter.",
        ),
        Mistake(
            lambda overlap: _spread(overlap, 1) if overlap.shape[1] > 1 else torch.zeros(len(overlap)),
            "This is the standard deviation alone; the mean is missing.",
        ),
        Mistake(
            lambda overlap: overlap.mean(dim=1) + _spread(overlap, 0),
            "The sum of squares is divided by K. A sample has K - 1 free deviations, and the published code divides by "
            "K - 1, as std() does by itself.",
        ),
        Mistake(
            lambda overlap: overlap.mean(dim=1) + _spread(overlap, 1).square(),
            "This adds the variance. Its square root is the standard deviation.",
        ),
        Mistake(
            lambda overlap: overlap.mean(dim=1) - _spread(overlap, 1),
            "Mean *minus* standard deviation lets nearly every candidate pass. It is a sum.",
        ),
        Mistake(
            lambda overlap: overlap.mean(dim=0) + _spread(overlap, 1, dim=0),
            "This is one threshold for each candidate. Wanted is one for each object: go along the candidates, dim=1.",
        ),
        Mistake(
            lambda overlap: (overlap.mean() + _spread(overlap, 1, dim=None)).expand(len(overlap)),
            "This is one threshold for all objects together. The idea of ATSS is that each object has its own: dim=1.",
        ),
        Mistake(
            lambda overlap: overlap.mean(dim=1) + _spread(overlap, 1),
            "Right, but for a single candidate: K - 1 is then 0, and 0 / 0 is NaN. One number has no spread, so let "
            "its standard deviation be 0.",
        ),
        Mistake(
            lambda overlap: atss_threshold(overlap)[:, None],
            "The numbers are right, but there is an axis too many: [G], not [G, 1].",
        ),
    ),
)

# ---- uniform matching -----------------------------------------------------------------------------------------------


def match_uniform(boxes: Tensor, anchors: Tensor, gt_boxes: Tensor, k: int, min_anchor_iou: float) -> Tensor:
    """Which slots each object takes: [A, 4], [A, 4] and [G, 4] xyxy -> [G, A] bool.

    The k slots whose predicted box is nearest, and the k slots whose anchor is nearest, by L1 distance of (cx, cy, w,
    h); of these only slots whose anchor has an IoU of at least `min_anchor_iou` with the object.
    """
    boxes, anchors, gt_boxes = boxes.float(), anchors.float(), gt_boxes.float()
    wanted = torch.zeros(len(gt_boxes), len(anchors), dtype=torch.bool)
    if wanted.numel():
        for candidates in (boxes, anchors):
            wanted.scatter_(1, nearest_slots(l1_distances(gt_boxes, candidates), k), True)
    return wanted & (pairwise_iou(gt_boxes, anchors) >= min_anchor_iou)


def _uniform_with(
    distance=l1_distances,
    lists: str = "both",
    join: str = "union",
    tested: str = "anchors",
    above: bool = False,
    farthest: bool = False,
    clamp: bool = True,
    across: bool = False,
    share: bool = False,
):
    """A wrong `match_uniform` that differs from the right one in one place."""

    def chosen(gt_boxes: Tensor, candidates: Tensor, k: int) -> Tensor:
        cost = distance(gt_boxes, candidates)  # [G, A]
        wanted = torch.zeros_like(cost, dtype=torch.bool)
        if across:
            return wanted.scatter(0, cost.topk(min(k, len(cost)), dim=0, largest=False).indices, True)
        most = min(k, cost.shape[1]) if clamp else k
        return wanted.scatter(1, cost.topk(most, dim=1, largest=farthest).indices, True)

    def answer(boxes: Tensor, anchors: Tensor, gt_boxes: Tensor, k: int, min_anchor_iou: float) -> Tensor:
        boxes, anchors, gt_boxes = boxes.float(), anchors.float(), gt_boxes.float()
        by_prediction, by_anchor = chosen(gt_boxes, boxes, k), chosen(gt_boxes, anchors, k)
        if lists != "both":
            wanted = by_prediction if lists == "predictions" else by_anchor
        elif share:
            cost = torch.minimum(distance(gt_boxes, boxes), distance(gt_boxes, anchors))
            wanted = torch.zeros_like(by_anchor).scatter(1, nearest_slots(cost, k), True)
        else:
            wanted = by_prediction & by_anchor if join == "intersection" else by_prediction | by_anchor
        if tested == "nothing":
            return wanted
        if tested == "own":
            overlap = [pairwise_iou(gt_boxes, each) >= min_anchor_iou for each in (boxes, anchors)]
            return (by_prediction & overlap[0]) | (by_anchor & overlap[1])
        overlap = pairwise_iou(gt_boxes, boxes if tested == "predictions" else anchors)
        return wanted & (overlap > min_anchor_iou if above else overlap >= min_anchor_iou)

    return answer


def _corner_distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, p=1.0)


def _straight_distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(xyxy_to_cxcywh(a), xyxy_to_cxcywh(b), p=2.0)


def _centre_distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(xyxy_to_cxcywh(a)[:, :2], xyxy_to_cxcywh(b)[:, :2], p=1.0)


def _misread_distance(a: Tensor, b: Tensor) -> Tensor:
    return _corner_distance(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))


def _boxes(count: int, rng: Generator, extent: float = 256, side: tuple[float, float] = (12, 160)) -> Tensor:
    """Boxes of any size anywhere, without ties between them."""
    low, high = (math.log(each) for each in side)
    size = torch.exp(low + (high - low) * torch.rand(count, 2, generator=rng))
    centre = torch.rand(count, 2, generator=rng) * extent
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def _random_slots(slots: int, objects: int, k: int, iou: float, rng: Generator) -> tuple:
    anchors = _boxes(slots, rng)
    moved = anchors + 24 * torch.randn(slots, 4, generator=rng)
    boxes = torch.cat([torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])], dim=1)
    return boxes, anchors, _boxes(objects, rng), k, iou


def _one_object(rng: Generator) -> tuple:
    gt = torch.tensor([[40.0, 40, 80, 80]])
    # The first two anchors are near; the prediction of the fourth is nearest; the third is near in place, not in size.
    anchors = torch.tensor([[38.0, 42, 78, 82], [48, 46, 88, 86], [58, 58, 62, 62], [70, 60, 130, 120], [0, 0, 9, 9]])
    boxes = torch.tensor([[20.0, 20, 60, 60], [44, 41, 84, 81], [10, 10, 14, 14], [41, 40, 81, 80], [0, 0, 30, 30]])
    return boxes, anchors, gt, 2, 0.05


def _exact_threshold(rng: Generator) -> tuple:
    gt = torch.tensor([[0.0, 0, 32, 32]])
    anchors = torch.tensor([[0.0, 0, 16, 32], [1, 1, 10, 10], [500, 500, 540, 540]])  # IoU 1/2, 81/1024, 0
    return anchors + torch.tensor([2.0, 0, 2, 0]), anchors, gt, 2, 0.5


def _whole_numbers(rng: Generator) -> tuple:
    boxes, anchors, gt, k, iou = _one_object(rng)
    return boxes.long(), anchors.long(), gt.long(), k, iou


UNIFORM = Exercise(
    answer=match_uniform,
    returns=("wanted",),
    inputs={
        "one object and five slots": _one_object,
        "an anchor whose IoU equals the threshold": _exact_threshold,
        "three objects and forty slots": lambda rng: _random_slots(40, 3, 4, 0.15, rng),
        "as many objects as slots": lambda rng: _random_slots(8, 8, 2, 0.15, rng),
        "twenty objects, a thousand slots": lambda rng: _random_slots(1000, 20, 8, 0.1, rng),
        "the predictions are the anchors": lambda rng: (anchors := _boxes(30, rng), anchors, _boxes(4, rng), 3, 0.15),
        "no threshold": lambda rng: _random_slots(60, 5, 4, 0.0, rng),
        "whole numbers": _whole_numbers,
        "fewer slots than k": lambda rng: _random_slots(3, 2, 4, 0.0, rng),
        "no object at all": lambda rng: _random_slots(10, 0, 4, 0.15, rng),
    },
    mistakes=(
        Mistake(
            _uniform_with(distance=_corner_distance),
            "The distance is taken between corners (x1, y1, x2, y2). Wanted is the one between (cx, cy, w, h): turn "
            "all boxes into that format first.",
        ),
        Mistake(
            _uniform_with(distance=_straight_distance),
            "This is the L2 distance, the root of the squares. Wanted is L1: add the absolute differences.",
        ),
        Mistake(
            _uniform_with(distance=_centre_distance),
            "Only the centres are compared. Width and height belong to the distance too, or a tiny anchor in the right "
            "place would be a good match for a huge object.",
        ),
        Mistake(
            _uniform_with(distance=_misread_distance),
            "The boxes are read as (cx, cy, w, h), but they come as xyxy: convert with xyxy_to_cxcywh, not back.",
        ),
        Mistake(
            _uniform_with(lists="anchors"),
            "The list of the predictions is missing. An object takes the k slots with the nearest anchors and the k "
            "slots with the nearest predicted boxes.",
        ),
        Mistake(
            _uniform_with(lists="predictions"),
            "The list of the anchors is missing. An object takes the k slots with the nearest predicted boxes and the "
            "k slots with the nearest anchors.",
        ),
        Mistake(
            _uniform_with(join="intersection"),
            "Only slots that are in both lists are left. One list is enough: the union, `|`, not `&`.",
        ),
        Mistake(
            _uniform_with(share=True),
            "The two distances are put together and the k smallest are taken from both. There are two lists, and each "
            "gives k slots of its own.",
        ),
        Mistake(
            _uniform_with(tested="predictions"),
            "The threshold is applied to the predicted boxes. It is the *anchor's* IoU that must reach it, whichever "
            "list the slot came from.",
        ),
        Mistake(
            _uniform_with(tested="own"),
            "Each list is judged by its own boxes. It is the *anchor's* IoU that must reach the threshold, whichever "
            "list the slot came from.",
        ),
        Mistake(
            _uniform_with(tested="nothing"),
            "The last step is missing: slots whose anchor overlaps the object less than min_anchor_iou do not count.",
        ),
        Mistake(
            _uniform_with(above=True),
            "An anchor whose IoU equals min_anchor_iou has reached it: compare with >=.",
        ),
        Mistake(
            _uniform_with(farthest=True),
            "topk() gives the largest numbers unless it is told largest=False: these are the farthest slots.",
        ),
        Mistake(
            _uniform_with(across=True),
            "Here each slot takes its k nearest objects. Wanted are the k nearest slots of each object: go along the "
            "axis of the slots, the second one.",
        ),
        Mistake(
            _uniform_with(clamp=False),
            "topk() cannot give more than there are. With fewer slots than k an object takes all of them: "
            "k = min(k, A).",
        ),
    ),
)

# ---- who is too small -----------------------------------------------------------------------------------------------


def blind_side(anchor_side: float, min_anchor_iou: float) -> float:
    """The side of the square, in pixels, below which an object has no positive slot wherever it lies.

    The smallest anchor is a square of `anchor_side`; positive is what reaches an IoU of `min_anchor_iou`.
    """
    return anchor_side * math.sqrt(min_anchor_iou)


BLIND = Exercise(
    answer=blind_side,
    returns=("side",),
    inputs={
        "an anchor of 100 px, threshold 0.25": lambda rng: (100.0, 0.25),
        "YOLOF on C5": lambda rng: (32.0, 0.15),
        "YOLOF on a dilated C5": lambda rng: (16.0, 0.1),
        "the threshold of RetinaNet": lambda rng: (32.0, 0.5),
        "no threshold": lambda rng: (32.0, 0.0),
        "only a perfect overlap counts": lambda rng: (64.0, 1.0),
    },
    mistakes=(
        Mistake(
            lambda anchor_side, min_anchor_iou: anchor_side * min_anchor_iou,
            "IoU compares areas, and an area is a side squared. So the sides are not in the proportion of the IoU.",
        ),
        Mistake(
            lambda anchor_side, min_anchor_iou: anchor_side**2 * min_anchor_iou,
            "This is the area of that square. Its side was asked for.",
        ),
        Mistake(
            lambda anchor_side, min_anchor_iou: math.sqrt(min_anchor_iou),
            "This is the side as a share of the anchor's. Multiply by the anchor's side to get pixels.",
        ),
        Mistake(
            lambda anchor_side, min_anchor_iou: math.sqrt(anchor_side) * min_anchor_iou,
            "The root belongs to the IoU, not to the side of the anchor: solve s * s / (a * a) = t for s.",
        ),
        Mistake(
            lambda anchor_side, min_anchor_iou: math.sqrt(anchor_side * min_anchor_iou),
            "The root is taken of too much: solve s * s / (a * a) = t for s, and check the unit: s is in pixels.",
        ),
        Mistake(
            lambda anchor_side, min_anchor_iou: anchor_side / math.sqrt(min_anchor_iou),
            "This is larger than the anchor: it is the *largest* square that still reaches the IoU, with the anchor "
            "inside it. (And a threshold of 0 would divide by 0.)",
        ),
        Mistake(
            lambda anchor_side, min_anchor_iou: anchor_side * math.sqrt(2 * min_anchor_iou / (1 + min_anchor_iou)),
            "The intersection is counted twice in the union. The small square lies inside the anchor, so the union is "
            "the anchor alone, a * a.",
        ),
        Mistake(
            lambda anchor_side, min_anchor_iou: anchor_side * (1 - math.sqrt(min_anchor_iou)),
            "This is how much smaller than the anchor the object may be. Asked is its side.",
        ),
    ),
)

EXERCISES = (MAX_IOU, ATSS_THRESHOLD, UNIFORM, BLIND)
