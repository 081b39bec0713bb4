"""The loss terms of both detectors, without reduction, and the numbers that they are computed from.

Everything here computes in float32: in half precision box corners are rounded so coarsely that an IoU can exceed 1.

Source: YOLOX, section 2.1; chapter 09.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from minidet.boxes import giou, iou, xyxy_to_cxcywh


def iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU^2 of each box with its target, [P, 4] and [P, 4] xyxy -> [P]. Disjoint boxes cost 1, without gradient."""
    return 1 - iou(boxes.float(), targets.float()) ** 2


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU of each box with its target, [P, 4] and [P, 4] xyxy -> [P] in [0, 2]."""
    return 1 - giou(boxes.float(), targets.float()).clamp(-1, 1)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid cross entropy with soft targets in [0, 1], elementwise."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")


def raw_box_targets(gt_boxes: Tensor, cells: Tensor, strides: Tensor, units: Tensor | None = None) -> Tensor:
    """What the box predictor would have to say, before decoding, to hit its target exactly.

    Args:
        gt_boxes: [P, 4] float xyxy in pixels.
        cells: [P, 2] float, (gx, gy) of the slots.
        strides: [P] float.
        units: [P, 2] float, what widths and heights are measured in, in pixels: the anchor's. None: strides.

    Returns:
        [P, 4] float (tx, ty, tw, th): centre from the cell's corner in strides, logarithm of the size in units. With
        anchors the offsets are what a sigmoid makes of the predictor's numbers.
    """
    gt_cxcywh = xyxy_to_cxcywh(gt_boxes)
    offsets = gt_cxcywh[:, :2] / strides[:, None] - cells
    sizes = gt_cxcywh[:, 2:] / (strides[:, None] if units is None else units)
    return torch.cat([offsets, torch.log(sizes + 1e-8)], dim=1)


def combine_logits(class_logits: Tensor, object_logits: Tensor) -> Tensor:
    """The logit of "this class and an object": sigmoid(result) = sigmoid(class) * sigmoid(object), for all numbers.

    The published formula c + o - log(1 + exp(c) + exp(o)) overflows; with the logarithm of the sum taken as a whole it
    is exact, and so is its gradient.

    Args:
        class_logits: [..., C] float32.
        object_logits: [..., 1] float32.

    Returns:
        [..., C] float32.

    Source: YOLOF, published code ("implicit objectness"); chapter 07.
    """
    return class_logits + object_logits - F.softplus(torch.logaddexp(class_logits, object_logits))
