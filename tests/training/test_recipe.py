"""Recipe, learning rate, image sizes, parameter groups."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import minidet
from minidet.errors import RunError
from minidet.training.recipe import (
    RECIPES,
    Recipe,
    learning_rate,
    make_optimizer,
    parameter_groups,
    published_augmentation,
    training_size,
)

# Learning rates of the official code: COCO, batch 64, 1849 iterations an epoch, the published 300 epochs.
COCO_RATES = {
    1: 1.1700008277755856e-10,
    1849: 0.0004000000000000001,
    9245: 0.01,
    9246: 0.009999999999912548,
    83205: 0.009529602122536491,
    277350: 0.004983665375623338,
    526964: 0.0005000000000874525,
    526965: 0.0005,
    554700: 0.0005,
}


def test_the_published_schedule_gives_the_official_rates():
    for iteration, rate in COCO_RATES.items():
        assert learning_rate(iteration, 1849, RECIPES["yolox"], 64) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    "setup", ["coco_batch64", "coco_batch128", "small_batch16", "short_batch8", "finetune_warmup1", "no_warmup"]
)
def test_every_official_schedule_is_reproduced(yolox_reference, setup):
    case = json.loads((yolox_reference / "schedule_ema.json").read_text())["lr"][setup]
    recipe = Recipe(
        epochs=case["max_epoch"],
        warmup_epochs=case["warmup_epochs"],
        final_epochs=case["no_aug_epochs"],
        min_lr_ratio=case["min_lr_ratio"],
    )
    for iteration, rate in case["iteration_to_lr"].items():
        ours = learning_rate(int(iteration), case["iters_per_epoch"], recipe, case["batch_size"])
        assert ours == pytest.approx(rate, rel=1e-12), iteration


def test_the_first_step_runs_at_rate_zero_when_there_is_a_warmup_and_at_the_top_without():
    assert learning_rate(0, 100, Recipe(), 64) == 0
    assert learning_rate(0, 100, Recipe(warmup_epochs=0), 64) == pytest.approx(0.01)
    model = nn.Linear(2, 2)
    assert make_optimizer(model, Recipe()).param_groups[0]["lr"] == 0
    assert make_optimizer(model, Recipe(warmup_epochs=0, batch_size=128)).param_groups[0]["lr"] == pytest.approx(0.02)


def test_a_run_shorter_than_its_phases_has_a_finite_rate_everywhere_and_says_what_will_happen():
    recipe = Recipe(epochs=10)  # 5 epochs of warm-up and 15 of final phase
    rates = [learning_rate(i, 7, recipe, 64) for i in range(71)]
    assert rates[35] == pytest.approx(0.01)  # the end of the warm-up
    assert rates[36:] == [pytest.approx(0.0005)] * 35
    assert len(recipe.warnings()) == 2
    assert "drops to its end" in recipe.warnings()[0]
    assert "no strong augmentation" in recipe.warnings()[1]
    assert "never reaches its top" in Recipe(epochs=3).warnings()[0]
    assert Recipe().warnings() == []
    assert all(recipe.warnings() == [] for recipe in RECIPES.values())


def test_the_closing_phase_has_one_epoch_more_than_the_flat_learning_rate():
    closing = [epoch for epoch in range(300) if RECIPES["yolox"].is_closing(epoch)]
    assert closing == list(range(284, 300))  # 16 epochs; the official test is epoch + 1 == 300 - 15


def test_a_run_of_at_most_fifteen_epochs_is_closing_from_the_start_and_none_is_without_a_final_phase():
    assert all(Recipe(epochs=15).is_closing(epoch) for epoch in range(15))
    assert not Recipe(epochs=17).is_closing(0)
    assert not any(Recipe(epochs=5, final_epochs=0).is_closing(epoch) for epoch in range(5))


def test_evaluation_comes_every_tenth_epoch_and_every_epoch_at_the_end():
    evaluated = [epoch + 1 for epoch in range(300) if RECIPES["yolox"].evaluates_after(epoch)]
    assert evaluated == [*range(10, 281, 10), *range(285, 301)]
    seldom = Recipe(epochs=25, eval_every=10, eval_closing=False)
    assert [epoch + 1 for epoch in range(25) if seldom.evaluates_after(epoch)] == [10, 20, 25]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("base_lr", 0.0),
        ("base_lr", -0.1),
        ("base_lr", math.nan),
        ("warmup_epochs", -1),
        ("final_epochs", -1),
        ("min_lr_ratio", 1.5),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("clip_grad_norm", 0.0),
        ("ema_decay", 1.0),
        ("ema_ramp", 0),
        ("multi_scale_every", 0),
        ("eval_every", 0),
        ("checkpoint_every", 0),
        ("keep_last", 0),
        ("multi_scale", (640, 320)),
        ("multi_scale", (300, 640)),
        ("multi_scale", (0, 640)),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(RunError, match=f"recipe: {field} is"):
        Recipe(**{field: value})


def test_the_published_augmentation_is_gentler_for_the_small_variants():
    # Table of the official experiment files: mosaic_prob, mosaic_scale, mixup_prob.
    expected = {
        "yolox-nano": (0.5, (0.5, 1.5), 0.0),
        "yolox-tiny": (1.0, (0.5, 1.5), 0.0),
        **dict.fromkeys(["yolox-s", "yolox-m", "yolox-l", "yolox-x", "yolox-darknet53"], (1.0, (0.1, 2.0), 1.0)),
    }
    for name, numbers in expected.items():
        ours = published_augmentation(name)
        assert (ours.mosaic_prob, ours.mosaic_scale, ours.mixup_prob) == numbers
        assert (ours.degrees, ours.translate, ours.shear) == (10.0, 0.1, 2.0)
        assert (ours.hsv_prob, ours.flip_prob, ours.max_labels) == (1.0, 0.5, 120)


def test_what_a_recipe_leaves_open_is_filled_in_for_the_model():
    nano = RECIPES["yolox"].resolved("yolox-nano", (416, 416))
    assert nano.multi_scale == (320, 640)
    assert nano.augmentation == published_augmentation("yolox-nano")
    assert RECIPES["yolox"].resolved("yolox-s", (640, 640)).multi_scale == (480, 800)
    assert RECIPES["yolox"].resolved("yolox-s", (96, 128)).multi_scale == (32, 256)
    chosen = dataclasses.replace(RECIPES["yolox"], multi_scale=(64, 96), augmentation=published_augmentation("yolox-x"))
    assert chosen.resolved("yolox-nano", (416, 416)) == chosen


def test_image_sizes_change_every_ten_steps_and_cover_the_whole_range():
    recipe = RECIPES["yolox"].resolved("yolox-s", (640, 640))
    sizes = [training_size(i, recipe, (640, 640), seed=3) for i in range(2000)]
    assert sizes[:10] == [(640, 640)] * 10  # the first draw comes after ten steps
    assert all(len(set(sizes[i : i + 10])) == 1 for i in range(0, 2000, 10))
    assert {height for height, _ in sizes} == set(range(480, 801, 32))
    assert all(height == width for height, width in sizes)
    assert [training_size(i, recipe, (640, 640), seed=3) for i in (1500, 20)] == [sizes[1500], sizes[20]]
    assert [training_size(i, recipe, (640, 640), seed=4) for i in range(2000)] != sizes


def test_image_sizes_keep_the_shape_of_the_input():
    recipe = Recipe(multi_scale=(128, 384))
    for i in range(10, 500, 10):
        height, width = training_size(i, recipe, (256, 320), seed=0)
        assert width == 32 * int(height / 32 * 320 / 256)
    assert training_size(500, Recipe(multi_scale=None), (256, 320), seed=0) == (256, 320)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("yolox-nano", (104, 113, 113)),
        ("yolox-s", (74, 83, 83)),
        ("yolox-l", (122, 131, 131)),
        ("yolox-darknet53", (85, 94, 94)),
    ],
)
def test_the_three_groups_have_the_official_number_of_tensors(name, counts):
    with torch.device("meta"):
        model = minidet.create_model(name)
    groups = parameter_groups(model, 5e-4)
    assert tuple(len(group["params"]) for group in groups) == counts
    assert [group["weight_decay"] for group in groups] == [0.0, 5e-4, 0.0]
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in model.parameters())


def test_groups_work_for_any_module_and_leave_frozen_and_repeated_parameters_out():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm([3, 4])  # its weight is a matrix, yet it does not decay
            self.first = nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.first.weight
            self.scale = nn.Parameter(torch.ones(()))
            self.attention = nn.MultiheadAttention(4, 1)
            self.frozen = nn.Conv2d(3, 4, 1).requires_grad_(False)

    model = Odd()
    names = {parameter: name for name, parameter in model.named_parameters()}
    norms, weights, biases = ([names[p] for p in group["params"]] for group in parameter_groups(model, 0.1))
    assert sorted(norms) == ["norm.weight", "scale"]
    assert sorted(weights) == ["attention.in_proj_weight", "attention.out_proj.weight", "first.weight"]
    assert sorted(biases) == [
        "attention.in_proj_bias",
        "attention.out_proj.bias",
        "first.bias",
        "norm.bias",
        "tied.bias",
    ]


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(RunError, match="all of them are frozen"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), Recipe())


def test_one_step_follows_nesterovs_formula_with_decay_on_weights_only():
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 3.0)
    optimizer = make_optimizer(model, Recipe(warmup_epochs=0, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # by hand: g = 1 + 0.5 * 2 = 2; momentum v = g; step g + 0.9 v = 3.8; rate 0.01. The bias: g = 1, step 1.9.
    assert model.weight.item() == pytest.approx(2.0 - 0.01 * 3.8)
    assert model.bias.item() == pytest.approx(3.0 - 0.01 * 1.9)
