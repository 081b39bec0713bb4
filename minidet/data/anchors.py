"""Anchors that fit a data set: k-means over the widths and heights of its boxes, as YOLO has done since YOLO9000.

Two boxes are near where their shapes overlap much: the distance is 1 - IoU, both boxes moved to one centre. Libraries
for k-means, scikit-learn's among them, know the Euclidean distance only; by it a large box would count more than a
small one, because it errs by more pixels.

Source: YOLO9000 (arXiv 1612.08242), section 2, "Dimension Clusters"; YOLOv3 (arXiv 1804.02767), section 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minidet.boxes import shape_iou
from minidet.data.augment import fit_geometry
from minidet.data.plan import DetectionData
from minidet.errors import DataError, MinidetError


def kmeans_anchors(sizes: Tensor, count: int = 9, seed: int = 0, iterations: int = 300) -> Tensor:
    """Widths and heights that stand for those of many boxes: k-means with 1 - IoU as distance.

    It starts from sizes drawn as in k-means++, far ones with preference. Then by turns every box goes to the anchor of
    highest IoU, and every anchor becomes the mean width and height of its boxes, until no box changes its anchor.
    An anchor that lost all its boxes begins anew at the box that is fitted worst. The order of the boxes plays no part.

    Args:
        sizes: [N, 2] float, widths and heights in pixels of the network input, all above 0; see `box_sizes`.
        count: K, how many anchors. YOLOv3 has 9, three for each of its three levels.
        seed: changes the start, and with it perhaps the result: k-means finds a good solution, not the best.
        iterations: turns after which it ends, whether something still moves or not.

    Returns:
        [K, 2] float32 on the CPU, widths and heights in pixels, by increasing area.

    Raises:
        DataError: a size is not finite or not above 0, or there are fewer different sizes than anchors.
        MinidetError: `count`, `seed` or `iterations` is not possible.

    Source: YOLO9000, section 2, "Dimension Clusters"; YOLOv3, section 2.3; for the start Arthur and Vassilvitskii,
    "k-means++" (SODA 2007).
    """
    if count < 1 or iterations < 1 or seed < 0:
        raise MinidetError(
            f"anchors by k-means: count is {count}, iterations {iterations} and seed {seed}, but count and iterations "
            "must be at least 1, and seed 0 or more."
        )
    _check_sizes(sizes)
    # Each size once, with its number, as the start must not draw a size twice; in double precision, so that even
    # neighbours in single precision are not at distance 0.
    distinct, weights = sizes.detach().cpu().float().double().unique(dim=0, return_counts=True)  # [M, 2], [M]
    weights = weights.double()
    if len(distinct) < count:
        raise DataError(
            f"anchors by k-means: {count} anchors need as many different sizes of boxes, but the {len(sizes)} boxes "
            f"have {len(distinct)}. Give the boxes of more pictures, or ask for {len(distinct)} anchors at most."
        )

    anchors = _spread_start(distinct, weights, count, seed)
    nearest = torch.full((len(distinct),), -1)
    for _ in range(iterations):
        best, chosen = shape_iou(distinct, anchors).max(dim=1)
        _fill_empty(chosen, best, count)
        if torch.equal(chosen, nearest):
            break
        nearest = chosen
        sums = distinct.new_zeros(count, 2).index_add_(0, nearest, distinct * weights[:, None])
        anchors = sums / torch.bincount(nearest, weights, minlength=count)[:, None]
    anchors = anchors[anchors[:, 0].argsort(stable=True)]  # narrow ones first among those of one area
    return anchors[anchors.prod(dim=1).argsort(stable=True)].float()


def mean_best_iou(sizes: Tensor, anchors: Tensor) -> float:
    """How well anchors fit: the IoU of every box with its best anchor (both at one centre), averaged over the boxes.

    Args:
        sizes: [N, 2] float, widths and heights in pixels, N at least 1.
        anchors: [K, 2] float, in the same pixels.

    Raises:
        DataError: there is no size or no anchor, or one is not finite or not above 0.

    Source: the "Avg IOU" of YOLO9000, table 1.
    """
    _check_sizes(sizes)
    _check_sizes(anchors, "anchors")
    return shape_iou(sizes, anchors).amax(dim=1).mean().item()


def box_sizes(dataset: DetectionData, input_hw: tuple[int, int], resize: str = "letterbox") -> Tensor:
    """Widths and heights of all boxes of a data set as the network sees them, without augmentation.

    Args:
        dataset: its annotations are read, no picture.
        input_hw: height and width of the network input; with "shorter_side" shorter and longest side.
        resize: how pictures are brought to it, see `fit_geometry`.

    Returns:
        [N, 2] float32, in pixels of the network input, in the order of the pictures.

    Raises:
        MinidetError: `resize` is not known.
    """
    sizes = [torch.zeros(0, 2)]
    for index, record in enumerate(dataset.records):
        boxes = dataset.target(index)["boxes"]
        _, scale_xy = fit_geometry((record.height, record.width), input_hw, resize)
        sizes.append((boxes[:, 2:] - boxes[:, :2]) * boxes.new_tensor(scale_xy))
    return torch.cat(sizes)


def _spread_start(distinct: Tensor, weights: Tensor, count: int, seed: int) -> Tensor:
    """k-means++: sizes drawn one by one, each with a chance that grows with its squared distance from those before."""
    random = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(weights, 1, generator=random)
    while len(drawn) < count:
        distance = 1 - shape_iou(distinct, distinct[drawn]).amax(dim=1)
        distance[drawn] = 0
        drawn = torch.cat([drawn, torch.multinomial(weights * distance**2, 1, generator=random)])
    return distinct[drawn]


def _fill_empty(chosen: Tensor, best: Tensor, count: int) -> None:
    """Give every anchor that nobody chose the worst fitted size, but none that is the only one of its anchor."""
    for anchor in range(count):
        members = torch.bincount(chosen, minlength=count)
        if members[anchor] == 0:
            worst = best.masked_fill(members[chosen] == 1, torch.inf).argmin()
            chosen[worst], best[worst] = anchor, 1


def _check_sizes(sizes: Tensor, name: str = "sizes") -> None:
    if sizes.ndim != 2 or sizes.shape[1] != 2 or len(sizes) == 0:
        raise DataError(
            f"{name} must be [N, 2], width and height, N at least 1, but these are {list(sizes.shape)}. "
            "Give a data set that has boxes."
        )
    wrong = (~(sizes.isfinite() & (sizes > 0)).all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        width, height = sizes[wrong[0]].tolist()
        more = f", and {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        raise DataError(
            f"{name} must be finite and above 0, but {name}[{wrong[0]}] is {width:g} x {height:g}{more}. "
            "Leave such boxes out; `minidet data check FOLDER` lists those of a data set."
        )
