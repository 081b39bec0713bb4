"""One official yolox-nano, number by number: outputs, losses, gradients, running statistics, optimiser steps.

The first test stands alone; the others need the folder of golden tensors.
"""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

import minidet
from minidet.assign import SimOTA
from minidet.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from minidet.detectors.official import translate_names
from minidet.detectors.yolox import postprocess
from minidet.files import read_json
from minidet.training.ema import Ema
from minidet.training.recipe import parameter_groups

LOSS_NAMES = {"loss_box": "iou_loss", "loss_objectness": "conf_loss", "loss_class": "cls_loss", "loss_l1": "l1_loss"}


@pytest.fixture(scope="module")
def case(yolox_reference):
    return load_file(yolox_reference / "nano_case.safetensors")


@pytest.fixture(scope="module")
def meta(yolox_reference):
    return read_json(yolox_reference / "nano_case.json")


@pytest.fixture(scope="module")
def state(yolox_reference):
    return load_file(yolox_reference / "nano_state.safetensors")


@pytest.fixture(scope="module")
def names(state):
    return translate_names(state)


@pytest.fixture
def model(state):
    return minidet.load_official("yolox-nano", {"model": state})


@pytest.fixture(scope="module")
def images(case):
    return case["input"].flip(1)  # stored blue-green-red


@pytest.fixture(scope="module")
def targets(case):
    rows = [labels[:count] for labels, count in zip(case["targets"], case["target_counts"], strict=True)]
    return [{"boxes": cxcywh_to_xyxy(r[:, 1:]), "labels": r[:, 0].long()} for r in rows]


def check_losses(losses, expected):
    assert math.isclose(sum(losses.values()).item(), expected["total_loss"], rel_tol=1e-5)
    for name, value in losses.items():
        assert math.isclose(value.item(), expected[LOSS_NAMES[name]], rel_tol=1e-5), name


def test_outputs_in_evaluation_mode(model, images, case):
    with torch.no_grad():
        dense = model.dense(images)
    probabilities = torch.cat([dense.object_logits[..., None], dense.class_logits], dim=-1).sigmoid()
    undecoded = torch.cat([dense.raw_boxes, probabilities], dim=-1)
    torch.testing.assert_close(undecoded, case["eval.undecoded"], rtol=0, atol=5e-5)
    decoded = torch.cat([xyxy_to_cxcywh(dense.boxes), probabilities], dim=-1)
    torch.testing.assert_close(decoded, case["eval.decoded"], rtol=1e-4, atol=2e-2)
    assert torch.equal(dense.grid.cells, torch.stack([case["grid.x_shifts"], case["grid.y_shifts"]], dim=1))
    assert torch.equal(dense.grid.strides, case["grid.expanded_strides"])


def test_feature_maps(model, images, case, meta):
    with torch.no_grad():
        features = model.features(images)
    for ours, theirs in [("p3", "pan_p3"), ("p4", "pan_p4"), ("p5", "pan_p5")]:
        torch.testing.assert_close(features[ours][:1], case[f"eval.{theirs}_img0"], rtol=1e-4, atol=1e-4)
    for name in ("stem", "dark3", "dark4", "dark5"):
        assert math.isclose(features[name].abs().mean().item(), meta["feature_stats"][name]["abs_mean"], rel_tol=1e-5)


def test_detections_after_nms(model, images, case):
    with torch.no_grad():
        dense = model.dense(images)
    for i in range(3):
        found = postprocess(dense.boxes[i], dense.class_scores()[i], score_threshold=0.25, nms_threshold=0.45)
        expected = case[f"eval.detections_img{i}"]
        torch.testing.assert_close(found["boxes"], expected[:, :4], rtol=1e-4, atol=2e-2)
        torch.testing.assert_close(found["scores"], expected[:, 4] * expected[:, 5], rtol=0, atol=5e-5)
        assert found["labels"].tolist() == expected[:, 6].long().tolist()


@pytest.mark.parametrize("case_name", ["no_l1", "l1"])
def test_losses_gradients_and_running_statistics(model, images, targets, case, meta, names, case_name):
    model.train()
    model.use_l1 = case_name == "l1"
    expected = meta["train"][case_name]
    losses = model(images, targets)
    check_losses(losses, expected["losses"])
    assignment = model.last_assignment
    assert torch.equal(assignment.matched_gt, case["train.matched_gt"].long())
    torch.testing.assert_close(assignment.quality, case["train.matched_iou"], rtol=0, atol=1e-5)
    assert assignment.positive.sum(dim=1).tolist() == expected["num_fg_per_image"]

    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    assert len(expected["grad_norm"]) == len(parameters)
    for key, norm in expected["grad_norm"].items():
        assert math.isclose(parameters[names[key]].grad.norm().item(), norm, rel_tol=5e-4, abs_tol=1e-7), key

    own = model.state_dict()
    statistics = {key.removeprefix("bn_after."): value for key, value in case.items() if key.startswith("bn_after.")}
    assert len(statistics) == 208
    for key, value in statistics.items():
        torch.testing.assert_close(own[names[key]], value, rtol=1e-5, atol=1e-6)


def test_training_outputs_before_the_assignment(model, images, case):
    with torch.no_grad():
        dense = model.train().dense(images)
    outputs = torch.cat([xyxy_to_cxcywh(dense.boxes), dense.object_logits[..., None], dense.class_logits], dim=-1)
    torch.testing.assert_close(outputs, case["train.outputs"], rtol=5e-4, atol=5e-2)
    torch.testing.assert_close(dense.raw_boxes, case["train.origin_preds"], rtol=5e-4, atol=1e-4)


def test_the_older_assigner_gives_the_older_losses(state, images, targets, case, meta):
    model = minidet.create_model("yolox-nano", assigner=SimOTA.published())
    model.load_state_dict(minidet.load_official("yolox-nano", {"model": state}).state_dict())
    losses = model.train()(images, targets)
    check_losses(losses, meta["train"]["no_l1_v030_assignment"]["losses"])
    assert torch.equal(model.last_assignment.matched_gt, case["train.v030.matched_gt"].long())


def test_a_batch_without_objects(model, images, meta):
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    check_losses(model.train()(images, [empty] * 3), meta["train"]["all_empty"]["losses"])


def test_three_optimiser_steps_with_moving_average(model, images, targets, meta, names):
    sgd = meta["sgd"]
    groups = parameter_groups(model, weight_decay=sgd["weight_decay_on_group_1"])
    where = {id(parameter): name for name, parameter in model.named_parameters()}
    for group, expected, decay in zip(groups, sgd["groups"], sgd["group_weight_decay"], strict=True):
        assert {where[id(p)] for p in group["params"]} == {names[key] for key in expected}
        assert group.get("weight_decay", 0) == decay
    optimizer = torch.optim.SGD(groups, lr=sgd["lr"], momentum=sgd["momentum"], nesterov=sgd["nesterov"])
    ema = Ema(model, decay=sgd["ema_decay"])
    model.train()
    for expected in sgd["losses_before_each_step"]:
        losses = model(images, targets)
        check_losses(losses, expected)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        ema.update(model)
    for module, norms in [(model, sgd["param_norm_after"]), (ema.model, sgd["ema_norm_after"])]:
        own = module.state_dict()
        for key, norm in norms.items():
            assert math.isclose(own[names[key]].double().norm().item(), norm, rel_tol=5e-4, abs_tol=1e-7), key
