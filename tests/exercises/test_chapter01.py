"""The exercises of chapter 01: right answers pass, and every usual mistake is told what it is."""

from __future__ import annotations

import pytest
import torch
from torchvision import ops

from minidet import boxes as library
from minidet.exercises import EXERCISES, review
from tests.exercises.told import assert_wrong, stub

CONVERT, GIOU, NMS = (EXERCISES[name] for name in ("coco_to_xyxy", "giou", "nms_by_class"))


def boxes_of(seed: int, *shape: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=rng) * 80 - 20
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2, generator=rng) * 50], dim=-1)


# ---- right answers ---------------------------------------------------------------------------------------------------


def convert_by_columns(boxes):
    x, y, w, h = boxes.to(torch.float32).unbind(-1)
    return torch.stack([x, y, x + w, y + h], dim=-1)


def giou_by_columns(a, b):
    ax1, ay1, ax2, ay2 = a.float().unbind(-1)
    bx1, by1, bx2, by2 = b.float().unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - width * height
    hull = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) * (torch.maximum(ay2, by2) - torch.minimum(ay1, by1))
    return width * height / (union + 1e-9) - (hull - union) / (hull + 1e-9)


def nms_in_a_loop(boxes, scores, labels, iou_threshold):
    order, stay = scores.argsort(descending=True, stable=True), []
    while len(order):
        best, others = order[0], order[1:]
        stay.append(best)
        repeats = (library.iou(boxes[best], boxes[others]) > iou_threshold) & (labels[others] == labels[best])
        order = others[~repeats]
    return torch.tensor(stay, dtype=torch.int64)


@pytest.mark.parametrize(
    ("exercise", "answer", "inputs"),
    [(CONVERT, convert_by_columns, 6), (GIOU, giou_by_columns, 10), (NMS, nms_in_a_loop, 9)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_stub_is_not_attempted_and_a_solution_is_done(exercise, answer, inputs):
    assert review(exercise, stub).status == "not attempted"
    verdict = review(exercise, answer)
    assert (verdict.status, verdict.text) == ("done", f"{exercise.name}: done. Right on all {inputs} inputs.")


def test_the_right_conversion_is_the_inverse_of_the_librarys_and_torchvisions_own():
    boxes = boxes_of(0, 50)
    xywh = library.xyxy_to_xywh(boxes)
    torch.testing.assert_close(CONVERT.answer(xywh), boxes)
    torch.testing.assert_close(CONVERT.answer(xywh), ops.box_convert(xywh, "xywh", "xyxy"))


def test_the_right_giou_is_the_librarys_and_torchvisions():
    a, b = boxes_of(1, 40), boxes_of(2, 40)
    assert torch.equal(GIOU.answer(a, b), library.giou(a, b))
    torch.testing.assert_close(GIOU.answer(a[:, None], b[None]), ops.generalized_box_iou(a, b))


def test_the_right_nms_is_the_librarys_and_for_boxes_inside_the_picture_torchvisions():
    boxes, labels = boxes_of(3, 300) + 20, torch.randint(5, (300,))
    scores = torch.randperm(300) / 300
    kept = NMS.answer(boxes, scores, labels, 0.4)
    assert torch.equal(kept, library.nms(boxes, scores, labels, 0.4))
    assert torch.equal(kept, ops.batched_nms(boxes, scores, labels, 0.4))
    assert 0 < len(kept) < 300


def test_the_first_giou_can_be_counted_by_eye():
    a, b = GIOU.cases()[0][1]
    # 2 x 3 squares shared, 16 + 16 - 6 = 26 covered, 6 x 5 = 30 in the hull
    assert GIOU.answer(a, b).item() == pytest.approx(6 / 26 - 4 / 30)


# ---- wrong answers: coco_to_xyxy -------------------------------------------------------------------------------------


def unchanged(boxes):
    return boxes.to(torch.float32)


def last_pixel_inclusive(boxes):
    x, y, w, h = boxes.float().unbind(-1)
    return torch.stack([x, y, x + w - 1, y + h - 1], -1)


def from_the_centre(boxes):
    xy, wh = boxes[..., :2].float(), boxes[..., 2:].float()
    return torch.cat([xy - wh / 2, xy + wh / 2], dim=-1)


def the_other_way(boxes):
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    return torch.stack([x1, y1, x2 - x1, y2 - y1], -1)


def swapped_sides(boxes):
    x, y, w, h = boxes.float().unbind(-1)
    return torch.stack([x, y, x + h, y + w], -1)


def the_type_of_the_file(boxes):
    x, y, w, h = boxes.unbind(-1)
    return torch.stack([x, y, x + w, y + h], -1)


def for_tables_only(boxes):
    boxes = boxes.float()
    return torch.stack([boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], dim=1)


def for_lists_only(boxes):
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).float()


def conversion_in_place(boxes):
    boxes[..., 2] += boxes[..., 0]
    boxes[..., 3] += boxes[..., 1]
    return boxes.float()


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (unchanged, "corners[0, 2] is 30, not 40.", "x2 = x1 + width"),
        (last_pixel_inclusive, "corners[0, 2] is 39, not 40.", "counts the last pixel as inclusive"),
        (from_the_centre, "corners[0, 0] is -5, not 10.", "takes x, y for the centre"),
        (the_other_way, "corners[0, 2] is 20, not 40.", "the other direction"),
        (swapped_sides, "corners[0, 2] is 60, not 40.", "Width and height are swapped"),
        (the_type_of_the_file, "corners is int64, but float32 was expected.", "they keep the type that the file had"),
        (for_tables_only, "raised IndexError", "The four numbers stand on the last one"),
        (for_lists_only, "raised IndexError", "The four numbers stand on the last one"),
        (conversion_in_place, "other numbers stand in boxes afterwards", "writes into the caller's tensor"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_conversion_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong(CONVERT, answer, difference, hint)


# ---- wrong answers: giou ---------------------------------------------------------------------------------------------


def pieces(a, b, clamp=True, eps=1e-9):
    a, b = a.float(), b.float()
    sides = torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])
    sides = sides.clamp(min=0) if clamp else sides
    shared = sides[..., 0] * sides[..., 1]
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    hull = (torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])).prod(-1)
    return shared, union + eps, hull + eps


def without_clamp(a, b):
    shared, union, hull = pieces(a, b, clamp=False)
    return shared / union - (hull - union) / hull


def plain_iou(a, b):
    shared, union, _ = pieces(a, b)
    return shared / union


def the_loss(a, b):
    return 1 - giou_by_columns(a, b)


def penalty_added(a, b):
    shared, union, hull = pieces(a, b)
    return shared / union + (hull - union) / hull


def hull_minus_intersection(a, b):
    shared, union, hull = pieces(a, b)
    return shared / union - (hull - shared) / hull


def divided_by_the_union(a, b):
    shared, union, hull = pieces(a, b, eps=1e-16)
    return shared / union - (hull - union) / union


def union_without_subtraction(a, b):
    shared, union, hull = pieces(a, b)
    return shared / (union + shared) - (hull - union - shared) / hull


def hull_the_wrong_way(a, b):
    shared, union, _ = pieces(a, b)
    a, b = a.float(), b.float()
    hull = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).prod(-1)
    return shared / union - (hull - union) / hull


def nothing_added(a, b):
    shared, union, hull = pieces(a, b, eps=0)
    return shared / union - (hull - union) / hull


def all_pairs(a, b):
    return giou_by_columns(a[..., :, None, :], b[..., None, :, :])


def for_lists_of_pairs_only(a, b):
    a, b = a.float(), b.float()
    x1, y1 = torch.max(a[:, 0], b[:, 0]), torch.max(a[:, 1], b[:, 1])
    x2, y2 = torch.min(a[:, 2], b[:, 2]), torch.min(a[:, 3], b[:, 3])
    shared = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
    union = library.box_area(a) + library.box_area(b) - shared + 1e-9
    width = torch.max(a[:, 2], b[:, 2]) - torch.min(a[:, 0], b[:, 0])
    height = torch.max(a[:, 3], b[:, 3]) - torch.min(a[:, 1], b[:, 1])
    return shared / union - (width * height - union) / (width * height + 1e-9)


def sizes_for_corners(a, b):
    return giou_by_columns(library.cxcywh_to_xyxy(a.float()), library.cxcywh_to_xyxy(b.float()))


def one_pixel_more(a, b):
    one = torch.tensor([0, 0, 1, 1])
    return giou_by_columns(a + one, b + one)


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (without_clamp, "The first of them: boxes apart.", "Cut each side at 0 first"),
        (plain_iou, "giou[0] is 0.2308, not 0.09744.", "This is the IoU."),
        (the_loss, "giou[0] is 0.9026, not 0.09744.", "This is the loss"),
        (penalty_added, "giou[0] is 0.3641, not 0.09744.", "It is a penalty: subtract it"),
        (hull_minus_intersection, "giou[0] is -0.5692", "in place of the union"),
        (divided_by_the_union, "giou[0] is 0.07692", "divide by the hull"),
        (union_without_subtraction, "giou[0] is 0.2542", "which is otherwise counted twice"),
        (hull_the_wrong_way, "giou[0] is 3.564", "Minimum and maximum are swapped in the hull"),
        (nothing_added, "giou[0] is NaN (not a number), not -1.", "0/0 is NaN"),
        (all_pairs, "giou has the shape [1, 1], not [1].", "a caller who wants all pairs adds the axes"),
        (for_lists_of_pairs_only, "raised IndexError", "The four numbers stand on the last one"),
        (sizes_for_corners, "giou[0] is", "treated as width and height"),
        (one_pixel_more, "giou[0] is", "x2 - x1 + 1"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_giou_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong(GIOU, answer, difference, hint)


# ---- wrong answers: nms_by_class -------------------------------------------------------------------------------------


def class_agnostic(boxes, scores, labels, iou_threshold):
    return ops.nms(boxes, scores, iou_threshold)


def by_a_matrix(boxes, scores, labels, iou_threshold):
    """The tempting one-liner: a box goes if any better one overlaps it."""
    order = scores.argsort(descending=True, stable=True)
    overlaps = library.pairwise_iou(boxes[order], boxes[order]) * (labels[order][:, None] == labels[order])
    return order[overlaps.triu(diagonal=1).amax(dim=0) <= iou_threshold] if len(order) else order


def loop(boxes, scores, labels, order, goes):
    stay = []
    while len(order):
        best, others = order[0], order[1:]
        stay.append(best)
        order = others[~(goes(library.iou(boxes[best], boxes[others])) & (labels[others] == labels[best]))]
    return torch.tensor(stay, dtype=torch.int64)


def at_the_threshold_gone(boxes, scores, labels, iou_threshold):
    order = scores.argsort(descending=True, stable=True)
    return loop(boxes, scores, labels, order, lambda overlap: overlap >= iou_threshold)


def least_sure_first(boxes, scores, labels, iou_threshold):
    return loop(boxes, scores, labels, scores.argsort(stable=True), lambda overlap: overlap > iou_threshold)


def ascending_turned_round(boxes, scores, labels, iou_threshold):
    order = scores.argsort(stable=True).flip(0)
    return loop(boxes, scores, labels, order, lambda overlap: overlap > iou_threshold)


def thrown_away_by_nan(boxes, scores, labels, iou_threshold):
    order, stay = scores.argsort(descending=True, stable=True), []
    while len(order):
        best, others = order[0], order[1:]
        stay.append(best)
        overlap = library.iou(boxes[best], boxes[others], eps=0.0)
        order = others[(overlap <= iou_threshold) | (labels[others] != labels[best])]
    return torch.tensor(stay, dtype=torch.int64)


def moved_apart(boxes, scores, labels, iou_threshold):
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64)
    return ops.nms(boxes + (labels * (boxes.max() + 1))[:, None], scores, iou_threshold)


def in_the_order_of_the_list(boxes, scores, labels, iou_threshold):
    return nms_in_a_loop(boxes, scores, labels, iou_threshold).sort().values


def class_after_class(boxes, scores, labels, iou_threshold):
    kept = [torch.zeros(0, dtype=torch.int64)]
    for label in range(int(labels.max()) + 1 if len(labels) else 0):
        rows = torch.where(labels == label)[0]
        kept.append(rows[ops.nms(boxes[rows], scores[rows], iou_threshold)])
    return torch.cat(kept)


def a_mask(boxes, scores, labels, iou_threshold):
    mask = torch.zeros(len(boxes)).bool()
    mask[nms_in_a_loop(boxes, scores, labels, iou_threshold)] = True
    return mask


def the_boxes(boxes, scores, labels, iou_threshold):
    return boxes[nms_in_a_loop(boxes, scores, labels, iou_threshold)]


def one_of_each_class(boxes, scores, labels, iou_threshold):
    order, stay, seen = scores.argsort(descending=True, stable=True).tolist(), [], set()
    for i in order:
        if int(labels[i]) not in seen:
            seen.add(int(labels[i]))
            stay.append(i)
    return torch.tensor(stay, dtype=torch.int64)


def a_list(boxes, scores, labels, iou_threshold):
    return nms_in_a_loop(boxes, scores, labels, iou_threshold).tolist()


def scores_overwritten(boxes, scores, labels, iou_threshold):
    stay = nms_in_a_loop(boxes, scores, labels, iou_threshold)
    gone = torch.ones(len(scores)).bool()
    gone[stay] = False
    scores[gone] = 0
    return stay


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (class_agnostic, "The first of them: the same box with two classes.", "never looks at the labels"),
        (by_a_matrix, "The first of them: a chain.", "Only boxes that stay may"),
        (at_the_threshold_gone, "an overlap of exactly the threshold", "only more than the threshold is too much"),
        (least_sure_first, "The first of them: three boxes", "begins with the least sure box"),
        (ascending_turned_round, "The first of them: equal scores.", "keeps the order of equals"),
        (thrown_away_by_nan, "The first of them: boxes without area.", "a comparison with NaN is always false"),
        (moved_apart, "one of them beyond the upper left corner", "lands on another class"),
        (ops.batched_nms, "one of them beyond the upper left corner", "lands on another class"),
        (in_the_order_of_the_list, "stay[0] is 0, not 2.", "in the order of the list"),
        (class_after_class, "wrong", "Sort what stays by decreasing score at the end"),
        (a_mask, "stay has the shape [3], not [2].", "This is a mask."),
        (the_boxes, "stay has the shape [2, 4], not [2].", "These are the boxes."),
        (one_of_each_class, "stay has the shape [1], not [2].", "There may be many stars in a picture"),
        (a_list, "values came back, but 1 were expected.", "Return stay"),
        (scores_overwritten, "other numbers stand in scores afterwards", "Make a new tensor instead"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_nms_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong(NMS, answer, difference, hint)
