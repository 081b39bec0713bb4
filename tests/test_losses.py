"""Loss terms, by hand and against the official ones."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from minidet.boxes import cxcywh_to_xyxy
from minidet.losses import binary_cross_entropy, giou_loss, iou_loss, raw_box_targets


def test_iou_loss_is_one_minus_the_square():
    box, target = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 5]])
    assert iou_loss(box, target).item() == pytest.approx(1 - 0.5**2)


def test_giou_loss_of_distant_boxes_exceeds_one_and_has_a_gradient():
    box = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
    loss = giou_loss(box, torch.tensor([[90.0, 0, 100, 10]]))  # hull 100 x 10, union 200: 1 - (0 - 0.8)
    assert loss.item() == pytest.approx(1.8)
    loss.sum().backward()
    assert box.grad.abs().max() > 0


def test_cross_entropy_takes_soft_targets():
    # logit 0 is probability 1/2: -0.25 log 0.5 - 0.75 log 0.5 = log 2, whatever the target
    assert binary_cross_entropy(torch.zeros(1), torch.tensor([0.25])).item() == pytest.approx(math.log(2))


def test_losses_are_float32_also_for_half_precision_input():
    boxes = torch.tensor([[600.0, 600, 620, 620]], dtype=torch.float16)
    assert iou_loss(boxes, boxes).dtype == torch.float32


def test_raw_targets_of_a_box_centred_in_its_cell():
    targets = raw_box_targets(torch.tensor([[4.0, 4, 20, 36]]), torch.tensor([[1.0, 2]]), torch.tensor([8.0]))
    # centre (12, 20) = (1.5, 2.5) strides; size 16 x 32 = 2 x 4 strides
    torch.testing.assert_close(targets, torch.tensor([[0.5, 0.5, math.log(2), math.log(4)]]))


@pytest.mark.parametrize(("name", "loss"), [("iou", iou_loss), ("giou", giou_loss)])
def test_box_losses_and_gradients_equal_the_official_ones(yolox_reference, name, loss):
    case = load_file(yolox_reference / "iou_loss_cases.safetensors")
    pred = case["pred"].clone().requires_grad_()
    values = loss(cxcywh_to_xyxy(pred), cxcywh_to_xyxy(case["target"]))
    values.sum().backward()
    torch.testing.assert_close(values, case[f"{name}_loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pred.grad, case[f"{name}_grad_pred"], rtol=1e-3, atol=1e-5)
