"""The exercises of chapter 01: a box in another format, GIoU, non-maximum suppression class by class."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torchvision import ops

from minidet import boxes as library
from minidet.exercises.check import Exercise, Mistake


def coco_to_xyxy(boxes: Tensor) -> Tensor:
    """COCO's top-left corner and size to corners, [..., 4] of any number type -> [..., 4] float32."""
    corner, size = boxes[..., :2].float(), boxes[..., 2:].float()
    return torch.cat([corner, corner + size], dim=-1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU with broadcasting, [..., 4] and [..., 4] xyxy of any number type -> [...] float32."""
    return library.giou(a.float(), b.float())


def nms_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes stay when boxes suppress only those of their own class: int64, by decreasing score."""
    return library.nms(boxes, scores, labels, iou_threshold)


# ---- boxes to try them on --------------------------------------------------------------------------------------------


def _random_boxes(rng: Generator, *shape: int, side: float = 100.0) -> Tensor:
    corner = torch.rand(*shape, 2, generator=rng) * side
    return torch.cat([corner, corner + (0.1 + torch.rand(*shape, 2, generator=rng)) * side / 2], dim=-1)


def _pairs(*pairs: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(side, dtype=torch.float32) for side in zip(*pairs, strict=True))


def _found(threshold: float, *rows: tuple[list[float], float, int]) -> tuple[Tensor, Tensor, Tensor, float]:
    boxes, scores, labels = zip(*rows, strict=True)
    return torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores), torch.tensor(labels), threshold


def _crowd(rng: Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    scores = torch.randperm(200, generator=rng) / 200  # no two alike
    return _random_boxes(rng, 200) - 40, scores, torch.randint(4, (200,), generator=rng), 0.45


LAST_AXIS = (
    "[:, 0] and [:, :2] go along the second axis. The four numbers stand on the last one, however many axes there are "
    "before it: use [..., 0], [..., :2] or unbind(-1), and dim=-1."
)

# ---- what people write -----------------------------------------------------------------------------------------------


def _in_place(boxes: Tensor) -> Tensor:
    boxes[..., 2:] += boxes[..., :2]
    return boxes.float()


def _parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, union and hull."""
    a, b = a.float(), b.float()
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return shared, library.box_area(a) + library.box_area(b) - shared, hull


def _giou_without_clamp(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.float(), b.float()
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).prod(-1)
    union = library.box_area(a) + library.box_area(b) - shared
    hull = _parts(a, b)[2]
    return shared / (union + 1e-16) - (hull - union) / (hull + 1e-16)


def _giou_of(shared: Tensor, union: Tensor, hull: Tensor) -> Tensor:
    return shared / (union + 1e-16) - (hull - union) / hull.clamp(min=1e-16)


def _giou_with_other_hull(a: Tensor, b: Tensor) -> Tensor:
    shared, union, _ = _parts(a, b)
    a, b = a.float(), b.float()
    hull = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).prod(-1)
    return shared / (union + 1e-16) - (hull - union) / hull


def _giou_of_sizes(a: Tensor, b: Tensor) -> Tensor:
    return library.giou(library.cxcywh_to_xyxy(a.float()), library.cxcywh_to_xyxy(b.float()))


def _giou_on_the_second_axis(a: Tensor, b: Tensor) -> Tensor:
    return library.giou(*(torch.stack([boxes[:, i] for i in range(4)], dim=-1).float() for boxes in (a, b)))


def _giou_inclusive(a: Tensor, b: Tensor) -> Tensor:
    one = torch.tensor([0.0, 0.0, 1.0, 1.0])
    return library.giou(a.float() + one, b.float() + one)


def _greedy(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    *,
    at_equal: bool = False,
    gone_still_suppress: bool = False,
    worst_first: bool = False,
    last_of_equals: bool = False,
    nan: bool = False,
) -> Tensor:
    """NMS with one fault at a time."""
    if last_of_equals:
        order = scores.flip(0).argsort(descending=True, stable=True)
        order = len(scores) - 1 - order
    else:
        order = scores.argsort(descending=not worst_first, stable=True)
    overlaps = library.iou(boxes[:, None], boxes[None], eps=0.0 if nan else 1e-16)
    kept: list[int] = []
    for place, i in enumerate(order.tolist()):
        judges = order[:place].tolist() if gone_still_suppress else kept
        same = [j for j in judges if labels[j] == labels[i]]
        values = [overlaps[i, j].item() for j in same]
        stays = all(v < iou_threshold if at_equal else v <= iou_threshold for v in values)
        if stays:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def _best_of_each_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    best = [(labels == label).nonzero().flatten()[scores[labels == label].argmax()] for label in labels.unique()]
    best = torch.stack(best) if best else torch.zeros(0, dtype=torch.int64)
    return best[scores[best].argsort(descending=True)]


def _mask(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    mask = torch.zeros(len(boxes), dtype=torch.bool)
    mask[library.nms(boxes, scores, labels, iou_threshold)] = True
    return mask


def _class_after_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    kept = [torch.zeros(0, dtype=torch.int64)]
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        kept.append(rows[ops.nms(boxes[rows], scores[rows], iou_threshold)])
    return torch.cat(kept)


EXERCISES = (
    Exercise(
        answer=coco_to_xyxy,
        returns=("corners",),
        inputs={
            "two boxes": lambda rng: (torch.tensor([[10.0, 20.0, 30.0, 50.0], [0.0, 5.0, 8.0, 4.0]]),),
            "one box, not in a list": lambda rng: (torch.tensor([10.0, 20.0, 30.0, 50.0]),),
            "whole numbers, as many JSON files have them": lambda rng: (torch.tensor([[10, 20, 30, 50]]),),
            "numbers of float64": lambda rng: (torch.tensor([[473.07, 395.93, 38.65, 28.67]], dtype=torch.float64),),
            "two pictures with three boxes each": lambda rng: (_random_boxes(rng, 2, 3),),
            "no box at all": lambda rng: (torch.zeros(0, 4),),
        },
        mistakes=(
            Mistake(
                lambda boxes: boxes.float(),
                "The numbers came back as they were. The last two are a width and a height; x2 = x1 + width.",
            ),
            Mistake(
                lambda boxes: coco_to_xyxy(boxes) - torch.tensor([0.0, 0.0, 1.0, 1.0]),
                "This counts the last pixel as inclusive. In continuous coordinates x2 = x1 + width, without the - 1.",
            ),
            Mistake(
                lambda boxes: library.cxcywh_to_xyxy(boxes.float()),
                "This takes x, y for the centre. In COCO's files they are the upper left corner.",
            ),
            Mistake(
                lambda boxes: library.xyxy_to_xywh(boxes.float()),
                "This is the other direction: it subtracts the corner. A size becomes a corner by adding.",
            ),
            Mistake(
                lambda boxes: torch.cat(
                    [boxes[..., :2].float(), (boxes[..., :2] + boxes[..., 2:].flip(-1)).float()], dim=-1
                ),
                "Width and height are swapped. The order is x, y, width, height; the width belongs to x.",
            ),
            Mistake(
                lambda boxes: torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1),
                "The numbers are right, but they keep the type that the file had. Everything behind this door expects "
                "float32: call .float().",
            ),
            Mistake(lambda boxes: torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).float(), LAST_AXIS),
            Mistake(lambda boxes: coco_to_xyxy(torch.stack([boxes[:, i] for i in range(4)], dim=1)), LAST_AXIS),
            Mistake(
                lambda boxes: _in_place(boxes),
                "boxes[..., 2:] += ... writes into the caller's tensor: whoever converts it a second time gets "
                "nonsense. Make a new tensor instead.",
            ),
        ),
    ),
    Exercise(
        answer=giou,
        returns=("giou",),
        inputs={
            "the two boxes of figure 3": lambda rng: _pairs(([0, 0, 4, 4], [2, 1, 6, 5])),
            "boxes apart": lambda rng: _pairs(([0, 0, 2, 2], [4, 0, 6, 2]), ([0, 0, 2, 2], [5, 3, 7, 9])),
            "one inside the other; equal; touching": lambda rng: _pairs(
                ([0, 0, 8, 8], [2, 2, 4, 6]), ([1, 2, 3, 4], [1, 2, 3, 4]), ([0, 0, 2, 2], [2, 0, 4, 2])
            ),
            "one pair, not in a list": lambda rng: (torch.tensor([0.0, 0, 4, 4]), torch.tensor([1.0, 1, 5, 7])),
            "every one of 3 with every one of 5": lambda rng: (_random_boxes(rng, 3, 1), _random_boxes(rng, 1, 5)),
            "4 boxes and a single one": lambda rng: (_random_boxes(rng, 4), _random_boxes(rng)),
            "boxes without area": lambda rng: _pairs(([2, 2, 2, 2], [5, 6, 5, 6]), ([1, 1, 1, 5], [0, 0, 4, 4])),
            "whole numbers": lambda rng: (torch.tensor([[0, 0, 4, 4]]), torch.tensor([[2, 1, 6, 5]])),
            "a thousand pairs in a large picture": lambda rng: (
                _random_boxes(rng, 1000, side=4000.0),
                _random_boxes(rng, 1000, side=4000.0),
            ),
            "no pair at all": lambda rng: (torch.zeros(0, 4), torch.zeros(0, 4)),
        },
        mistakes=(
            Mistake(
                _giou_without_clamp,
                "The clamp is missing. Boxes apart have a negative overlap in x or in y, and the product of two "
                "negative numbers looks like an area. Cut each side at 0 first.",
            ),
            Mistake(
                lambda a, b: _parts(a, b)[0] / (_parts(a, b)[1] + 1e-16),
                "This is the IoU. Subtract the share of the hull that neither box covers.",
            ),
            Mistake(
                lambda a, b: 1 - giou(a, b),
                "This is the loss, 1 - GIoU. Wanted is the GIoU itself: 1 for equal boxes.",
            ),
            Mistake(
                lambda a, b: (
                    _giou_of(_parts(a, b)[0], _parts(a, b)[1], _parts(a, b)[2])
                    + 2 * (_parts(a, b)[2] - _parts(a, b)[1]) / _parts(a, b)[2].clamp(min=1e-16)
                ),
                "The empty share is added. It is a penalty: subtract it.",
            ),
            Mistake(
                lambda a, b: (lambda s, u, h: s / (u + 1e-16) - (h - s) / h.clamp(min=1e-16))(*_parts(a, b)),
                "The empty part of the hull is hull - union; this subtracts the intersection in place of the union.",
            ),
            Mistake(
                lambda a, b: (lambda s, u, h: s / (u + 1e-16) - (h - u) / (u + 1e-16))(*_parts(a, b)),
                "The empty part is divided by the union. Its share is one of the hull, so divide by the hull.",
            ),
            Mistake(
                lambda a, b: (lambda s, u, h: _giou_of(s, u + s, h))(*_parts(a, b)),
                "The union is the two areas together minus the intersection, which is otherwise counted twice.",
            ),
            Mistake(
                _giou_with_other_hull,
                "Minimum and maximum are swapped in the hull. It goes from the smaller of the two x1 to the larger of "
                "the two x2: the other way round than the intersection.",
            ),
            Mistake(
                lambda a, b: (lambda s, u, h: s / u - (h - u) / h)(*_parts(a, b)),
                "Two boxes without area have the union 0, and 0/0 is NaN. Add a tiny number such as 1e-9 to what you "
                "divide by.",
            ),
            Mistake(
                lambda a, b: giou(a[..., :, None, :], b[..., None, :, :]),
                "Every box of a meets every box of b here. Wanted is plain broadcasting, a[i] with b[i]; a caller who "
                "wants all pairs adds the axes.",
            ),
            Mistake(
                _giou_on_the_second_axis,
                LAST_AXIS,
            ),
            Mistake(
                _giou_of_sizes,
                "The last two numbers are treated as width and height. They are the lower right corner: a width is "
                "x2 - x1.",
            ),
            Mistake(
                _giou_inclusive,
                "This adds a pixel to every side (x2 - x1 + 1). In continuous coordinates a box from 0 to 4 is 4 wide.",
            ),
        ),
    ),
    Exercise(
        answer=nms_by_class,
        returns=("stay",),
        inputs={
            "three boxes, two of them nearly equal": lambda rng: _found(
                0.5, ([20, 0, 30, 10], 0.6, 0), ([0, 0, 10, 9], 0.7, 0), ([0, 0, 10, 10], 0.9, 0)
            ),
            "a chain": lambda rng: _found(
                0.4, ([0, 0, 10, 10], 0.9, 0), ([4, 0, 14, 10], 0.8, 0), ([8, 0, 18, 10], 0.7, 0)
            ),
            "the same box with two classes": lambda rng: _found(
                0.5, ([0, 0, 10, 10], 0.8, 1), ([0, 0, 10, 10], 0.9, 0), ([0, 0, 10, 9], 0.7, 1)
            ),
            "an overlap of exactly the threshold": lambda rng: _found(
                0.5, ([0, 0, 10, 10], 0.9, 2), ([0, 0, 10, 5], 0.8, 2)
            ),
            "equal scores": lambda rng: _found(
                0.5,
                ([0, 0, 10, 9], 0.5, 0),
                ([0, 0, 10, 10], 0.5, 0),
                ([40, 0, 50, 9], 0.5, 1),
                ([40, 0, 50, 8], 0.5, 1),
            ),
            "two classes, one of them beyond the upper left corner": lambda rng: _found(
                0.5, ([0, 0, 40, 40], 0.9, 0), ([-41, -41, -1, -1], 0.8, 1)
            ),
            "boxes without area": lambda rng: _found(0.5, ([5, 5, 5, 5], 0.9, 0), ([5, 5, 5, 5], 0.8, 0)),
            "two hundred boxes of four classes": _crowd,
            "no box at all": lambda rng: (
                torch.zeros(0, 4),
                torch.zeros(0),
                torch.zeros(0, dtype=torch.int64),
                0.5,
            ),
        },
        mistakes=(
            Mistake(
                lambda boxes, scores, labels, iou_threshold: library.nms(boxes, scores, None, iou_threshold),
                "This never looks at the labels. A box may suppress only boxes of its own class.",
            ),
            Mistake(
                lambda *given: _greedy(*given, gone_still_suppress=True),
                "A box that is gone still suppresses others here. Only boxes that stay may: in a chain the first "
                "removes the second, and then nothing is left that overlaps the third.",
            ),
            Mistake(
                lambda *given: _greedy(*given, at_equal=True),
                "A box with an overlap of exactly the threshold goes here. It stays: only more than the threshold is "
                "too much.",
            ),
            Mistake(
                lambda *given: _greedy(*given, worst_first=True),
                "This begins with the least sure box. Sort by decreasing score: the surest box suppresses.",
            ),
            Mistake(
                lambda *given: _greedy(*given, last_of_equals=True),
                "Of two boxes with equal scores the first one counts as the surer. argsort(descending=True, "
                "stable=True) keeps the order of equals; an ascending order turned round does not.",
            ),
            Mistake(
                lambda *given: _greedy(*given, nan=True),
                "Two boxes without area have the IoU 0/0 = NaN, and a comparison with NaN is always false, so "
                "`iou <= threshold` throws the second box away. Add a tiny number to the union.",
            ),
            Mistake(
                ops.batched_nms,
                "Classes are moved apart by adding a multiple of the largest coordinate, and a box left of or above "
                "the picture then lands on another class. Compare labels, or go class by class.",
            ),
            Mistake(
                lambda *given: library.nms(*given).sort().values,
                "The right boxes, but in the order of the list. Return the surest first.",
            ),
            Mistake(
                _class_after_class,
                "The right boxes, but class after class. Sort what stays by decreasing score at the end.",
            ),
            Mistake(_mask, "This is a mask. Return the positions of the boxes that stay, the surest first."),
            Mistake(
                lambda *given: given[0][library.nms(*given)],
                "These are the boxes. Return their positions in the list, so that the caller can pick scores and "
                "labels as well.",
            ),
            Mistake(
                _best_of_each_class,
                "This keeps one box of each class. There may be many stars in a picture: a box goes only if it "
                "overlaps a better one.",
            ),
        ),
    ),
)
