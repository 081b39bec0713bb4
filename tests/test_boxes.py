"""Boxes: formats, IoU, GIoU, NMS."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torchvision import ops

from minidet.boxes import (
    clip_boxes,
    cxcywh_to_xyxy,
    giou,
    iou,
    nms,
    pairwise_iou,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)


def test_formats_convert_by_hand_and_back():
    xyxy = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert xyxy_to_cxcywh(xyxy).tolist() == [[20, 40, 20, 40]]
    assert xyxy_to_xywh(xyxy).tolist() == [[10, 20, 20, 40]]
    assert torch.equal(cxcywh_to_xyxy(xyxy_to_cxcywh(xyxy)), xyxy)


def test_iou_of_two_boxes_that_share_a_quarter_of_each_is_one_seventh():
    a, b = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 1, 3, 3])
    assert iou(a, b).item() == pytest.approx(1 / 7)
    # hull 3 x 3 = 9, union 7: two ninths of the hull are empty
    assert giou(a, b).item() == pytest.approx(1 / 7 - 2 / 9)


def test_boxes_without_area_have_iou_zero_and_not_nan():
    point = torch.tensor([5.0, 5, 5, 5])
    assert iou(point, point).item() == 0
    assert torch.isfinite(giou(point, point))


def test_pairwise_iou_agrees_with_torchvision():
    corner = torch.rand(40, 2) * 100
    boxes = torch.cat([corner, corner + torch.rand(40, 2) * 50], dim=1)
    torch.testing.assert_close(pairwise_iou(boxes[:15], boxes), ops.box_iou(boxes[:15], boxes))


def test_boxes_that_only_touch_pull_at_nothing():
    a = torch.tensor([0.0, 0, 10, 10], requires_grad=True)
    iou(a, torch.tensor([10.0, 0, 20, 10])).backward()
    assert a.grad.abs().max() == 0


def test_clipping_cuts_at_width_and_height():
    assert clip_boxes(torch.tensor([[-5.0, -5, 50, 50]]), (20, 30)).tolist() == [[0, 0, 30, 20]]


def test_nms_by_class_keeps_the_other_class_and_without_does_not():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    labels = torch.tensor([0, 0, 1])
    assert nms(boxes, scores, labels, 0.5).tolist() == [1, 2]
    assert nms(boxes, scores, None, 0.5).tolist() == [1]


def test_pairwise_iou_equals_the_official_one(yolox_reference):
    case = load_file(yolox_reference / "iou_loss_cases.safetensors")
    a, b = cxcywh_to_xyxy(case["pair_a_cxcywh"]), cxcywh_to_xyxy(case["pair_b_cxcywh"])
    torch.testing.assert_close(pairwise_iou(a, b), case["pairwise_iou"], rtol=1e-5, atol=1e-6)
