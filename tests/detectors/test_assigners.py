"""Every assignment strategy in a detector, by one argument."""

from __future__ import annotations

import pytest
import torch

import minidet
from minidet.assign import ATSS, OTA, POTO, BestAnchor, CentreSampling, MaxIoU, OneToOne, SimOTA, UniformMatching

ASSIGNERS = [
    SimOTA(),
    SimOTA.published(),
    MaxIoU(),
    MaxIoU(positive_iou=0.6, negative_iou=0.3, low_quality=False),
    ATSS(),
    ATSS(candidates=15),
    CentreSampling(),
    CentreSampling(radius=1.5, level_limit=3.0),
    BestAnchor(),
    BestAnchor(ignore_iou=0.5),
    POTO(),
    POTO(alpha=0.5, radius=2.5),
    OneToOne(),
    OneToOne(class_weight=1.0, l1_weight=2.0),
    OTA(),
    OTA(epsilon=0.5, iterations=20, solver="exact"),
    UniformMatching(),
    UniformMatching(k=8, min_anchor_iou=0.1, sources=("anchors",)),
]


def make_model(assigner, name="yolox-nano"):
    torch.manual_seed(0)
    return minidet.create_model(name, num_classes=3, input_hw=(64, 96), assigner=assigner)


@pytest.mark.parametrize("name", ["yolox-nano", "yolof-r18-c5"])
@pytest.mark.parametrize("assigner", ASSIGNERS, ids=str)
def test_a_detector_trains_with_every_strategy(assigner, name):
    model = make_model(assigner, name).train()
    model.use_l1 = name.startswith("yolox")
    images = torch.rand(3, 3, 64, 96)
    targets = [
        {
            "boxes": torch.tensor([[5.0, 8, 40, 42], [30, 10, 90, 60], [6, 9, 41, 44]]),
            "labels": torch.tensor([0, 2, 1]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": torch.tensor([[50.0, 20, 66, 36]]), "labels": torch.tensor([1])},
    ]
    losses = model(images, targets)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    if model.last_assignment.num_positives:
        assert any(gradient.any() for name, gradient in gradients.items() if "box_predictor" in name)


@pytest.mark.parametrize("assigner", ASSIGNERS, ids=str)
def test_a_weights_file_brings_its_strategy_back(tmp_path, assigner):
    model = make_model(assigner)
    minidet.save_weights(model, tmp_path / "model.safetensors")
    loaded = minidet.load_model(tmp_path / "model.safetensors")
    assert loaded.config.assigner == assigner
    assert type(loaded.config.assigner) is type(assigner)
