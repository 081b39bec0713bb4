"""Every named variant: it builds, it has the published size, it costs what was published."""

from __future__ import annotations

import pytest
import torch

import minidet
from minidet.assign import SimOTA
from minidet.detectors import ZOO
from minidet.evaluation.speed import count_gflops, count_parameters

# Table of the official model cards, 80 classes: parameters (whole, backbone, neck, head) and GFLOPs.
PUBLISHED = {
    "yolox-nano": (912_159, 459_968, 347_424, 104_767, 1.08),
    "yolox-tiny": (5_055_855, 2_372_304, 1_596_096, 1_087_455, 6.45),
    "yolox-s": (8_968_255, 4_212_672, 2_834_688, 1_920_895, 26.8),
    "yolox-m": (25_326_495, 12_352_992, 8_679_168, 4_294_335, 73.8),
    "yolox-l": (54_208_895, 27_075_968, 19_523_072, 7_609_855, 155.6),
    "yolox-x": (99_071_455, 50_301_600, 36_902_400, 11_867_455, 281.9),
    "yolox-darknet53": (63_724_767, 52_651_744, 3_692_544, 7_380_479, 185.3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_variant_has_the_published_parameters_and_operations(name):
    whole, backbone, neck, head, gflops = PUBLISHED[name]
    model = minidet.create_model(name)
    assert count_parameters(model) == whole == ZOO[name].params
    assert [count_parameters(part) for part in (model.backbone, model.neck, model.head)] == [backbone, neck, head]
    assert ZOO[name].gflops == gflops
    assert count_gflops(model) == pytest.approx(gflops, rel=0.002)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_variant_runs_forwards_and_backwards(name):
    model = minidet.create_model(name, num_classes=2)
    model.use_l1 = True
    targets = [{"boxes": torch.tensor([[10.0, 12, 50, 40]]), "labels": torch.tensor([1])}] * 2
    losses = model(torch.rand(2, 3, 64, 64), targets)
    assert set(losses) == {"loss_box", "loss_objectness", "loss_class", "loss_l1"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


YOLOF_NAMES = "r18-c5 r50-c5 r50-dc5 r101-c5 r101-dc5 x101-c5 cspdarknet53-dc5".split()


# Multiply-adds of the official models in units of 10^9, measured at this input.
YOLOF_GMACS = {
    "r50-c5": (104.5, (800, 1344)),
    "r50-dc5": (218.3, (800, 1344)),
    "r101-c5": (184.1, (800, 1344)),
    "r101-dc5": (297.8, (800, 1344)),
    "x101-c5": (353.3, (800, 1344)),
    "cspdarknet53-dc5": (87.3, (608, 608)),
}


@pytest.mark.parametrize("name", YOLOF_GMACS)
def test_each_yolof_costs_what_the_official_one_does(name):
    gmacs, input_hw = YOLOF_GMACS[name]
    gflops = count_gflops(minidet.create_model(f"yolof-{name}"), input_hw)
    assert gflops / 2 == pytest.approx(gmacs, abs=0.051)
    assert ZOO[f"yolof-{name}"].gflops == pytest.approx(2 * gmacs, abs=0.01)


def test_the_figures_of_the_small_yolof_are_those_of_its_own_input():
    card = ZOO["yolof-r18-c5"]
    model = minidet.create_model("yolof-r18-c5")
    assert (count_parameters(model), round(count_gflops(model), 2)) == (card.params, card.gflops)


def test_the_list_of_names_is_the_zoo():
    assert minidet.list_models() == [*PUBLISHED, *(f"yolof-{name}" for name in YOLOF_NAMES)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "yolox-nanno"}, "Did you mean 'yolox-nano'"),
        ({"name": "yolox-s", "colour": 3}, "has no setting 'colour'. Its settings are num_classes"),
        ({"name": "yolox-s", "num_classes": 0}, "num_classes is 0, but it must be from 1 to 100,000"),
        ({"name": "yolox-s", "num_classes": 3, "class_names": ["a", "b"]}, "2 class names for num_classes=3"),
        ({"name": "yolox-s", "input_hw": (100, 320)}, "multiples of 32, not (100, 320)"),
        ({"name": "yolox-s", "box_loss": "l2"}, "box_loss 'l2' is not known"),
        ({"name": "yolox-s", "backbone": "vgg"}, "backbone 'vgg' is not known"),
    ],
)
def test_nonsense_is_refused_with_the_choices(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        minidet.create_model(**arguments)


def test_settings_reach_the_model():
    model = minidet.create_model(
        "yolox-nano", 2, class_names=["cat", "dog"], input_hw=(64, 96), assigner=SimOTA.published(), class_agnostic=True
    )
    assert (model.name, model.num_classes, model.class_names, model.input_hw) == (
        "yolox-nano",
        2,
        ["cat", "dog"],
        (64, 96),
    )
    assert model.config.assigner.radius == 2.5
    assert model.class_agnostic
