"""Boxes: formats, areas, the IoU family, clipping and non-maximum suppression.

Boxes are float32 `xyxy` in absolute pixels with continuous coordinates: a box from 0 to 10 is 10 wide.

Source: GIoU is from arXiv 1902.09630; chapter 01.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners to centre and size, [..., 4] -> [..., 4]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size to corners, [..., 4] -> [..., 4]."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Corners to COCO's top-left corner and size, [..., 4] -> [..., 4]."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Area in square pixels, [..., 4] xyxy -> [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection_area(a: Tensor, b: Tensor) -> Tensor:
    """Area that two boxes share, with broadcasting: [..., 4] and [..., 4] xyxy -> [...]."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.unbind(-1), b.unbind(-1)
    # relu rather than clamp: boxes that only touch get no gradient from an overlap that they do not have.
    width = F.relu(torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1))
    height = F.relu(torch.minimum(ay2, by2) - torch.maximum(ay1, by1))
    return width * height


def iou(a: Tensor, b: Tensor, eps: float = 1e-16) -> Tensor:
    """Intersection over union, with broadcasting: [..., 4] and [..., 4] xyxy -> [...] in [0, 1].

    Two boxes without any area have IoU 0, not NaN: `eps` is added to the union.
    """
    intersection = intersection_area(a, b)
    return intersection / (box_area(a) + box_area(b) - intersection + eps)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box in `a` with every box in `b`: [..., N, 4] and [..., M, 4] xyxy -> [..., N, M]."""
    return iou(a[..., :, None, :], b[..., None, :, :])


def shape_iou(sizes: Tensor, anchors: Tensor, eps: float = 1e-16) -> Tensor:
    """IoU of shapes alone, as if all boxes had one centre: [N, 2] and [K, 2] width and height -> [N, K] in [0, 1].

    Source: YOLO9000 (arXiv 1612.08242), section 2, "Dimension Clusters".
    """
    intersection = torch.minimum(sizes[:, None, :], anchors[None, :, :]).prod(dim=-1)  # [N, K]
    return intersection / (sizes.prod(dim=-1)[:, None] + anchors.prod(dim=-1)[None, :] - intersection + eps)


def giou(a: Tensor, b: Tensor, eps: float = 1e-16) -> Tensor:
    """Generalised IoU, with broadcasting: IoU minus the empty share of the smallest box around both, in (-1, 1]."""
    intersection = intersection_area(a, b)
    union = box_area(a) + box_area(b) - intersection
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull_area = hull.prod(dim=-1).clamp(min=eps)
    return intersection / (union + eps) - (hull_area - union) / hull_area


def clip_boxes(boxes: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Boxes cut off at the border of an image of (height, width), [N, 4] xyxy -> [N, 4]."""
    return ops.clip_boxes_to_image(boxes, image_hw)


def nms(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: [N, 4] float xyxy in pixels.
        scores: [N] float.
        labels: [N] int64 to let boxes suppress only boxes of their own class, or None for all of them alike.
        iou_threshold: a box goes when its IoU with a better one is above this.

    Returns:
        Indices of the boxes that stay, by decreasing score.
    """
    if labels is None:
        return ops.nms(boxes, scores, iou_threshold)
    # Class by class. `batched_nms` moves the classes apart by adding a large number to coordinates, which rounds them,
    # and does not separate boxes that reach below 0.
    kept = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        kept[members[ops.nms(boxes[members], scores[members], iou_threshold)]] = True
    kept = kept.nonzero().flatten()
    return kept[scores[kept].argsort(descending=True, stable=True)]


def nms_in_groups(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """`nms` for many groups at once, such as the classes of all images of a batch; only boxes of one group meet.

    Args:
        boxes: [N, 4] float xyxy in pixels.
        scores: [N] float.
        groups: [N] int64.
        iou_threshold: a box goes when its IoU with a better one of its group is above this.

    Returns:
        Indices of the boxes that stay, increasing.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]  # group by group, in each by decreasing score
    sizes = groups[order].unique_consecutive(return_counts=True)[1].tolist()
    parts = zip(order.split(sizes), boxes[order].split(sizes), scores[order].split(sizes), strict=True)
    # Few groups are large; whoever is alone in its group stays.
    kept = [rows if len(rows) == 1 else rows[ops.nms(*members, iou_threshold)] for rows, *members in parts]
    return torch.cat(kept).sort().values if kept else order
