"""YOLOF's recipe: a schedule in iterations, the linear scaling rule, groups of parameters, runs that end exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
from torch import nn

import minidet
from minidet.cli import main
from minidet.data.augment import FLIP_AND_SHIFT, Augmentation
from minidet.errors import RunError
from minidet.training.checkpoint import latest_checkpoint, load_checkpoint
from minidet.training.recipe import (
    RECIPES,
    YOLOF_COURSE,
    Recipe,
    learning_rate,
    make_optimizer,
    parameter_groups,
    recipe_for,
    scale_to_batch,
    scale_to_epochs,
    set_learning_rate,
)
from tests.training.squares import SMALL, assert_same_state, at_forward, press_ctrl_c, run, tiny_model

VARIANTS = {  # the reference's names and ours
    "R50-C5": "yolof-r50-c5",
    "R50-DC5": "yolof-r50-dc5",
    "R101-C5": "yolof-r101-c5",
    "R101-DC5": "yolof-r101-dc5",
    "X101-64x4d-C5": "yolof-x101-c5",
    "CSPDarkNet53-DC5": "yolof-cspdarknet53-dc5",
}

# As "yolof", but for a batch of 4 and a few pictures: 7 steps are two and a third epochs of three.
STEPS = dataclasses.replace(
    SMALL,
    epochs=None,
    schedule="steps",
    schedule_batch=4,
    base_lr=0.005,
    warmup_epochs=0,
    final_epochs=0,
    iterations=7,
    warmup_iterations=2,
    steps=(5, 6),
    nesterov=False,
)


def case_of(folder, variant: str) -> dict:
    return json.loads((folder / "schedule.json").read_text(encoding="utf-8"))[variant]


# What was published ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_the_published_rates_at_every_listed_iteration(yolof_reference, variant):
    case, recipe = case_of(yolof_reference, variant), recipe_for("yolof", VARIANTS[variant])
    optimizer = make_optimizer(WithBackbone(), recipe)
    assert len(case["lr_head_backbone"]) > 10
    for iteration, (head, backbone) in case["lr_head_backbone"].items():
        set_learning_rate(optimizer, learning_rate(int(iteration), 1, recipe, recipe.batch_size))
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates["weights"] == pytest.approx(head, rel=1e-6), iteration
        assert rates.get("backbone weights", rates["weights"]) == pytest.approx(backbone, rel=1e-6), iteration


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_the_published_solver_settings(yolof_reference, variant):
    case, recipe = case_of(yolof_reference, variant), recipe_for("yolof", VARIANTS[variant])
    assert (recipe.batch_size, recipe.schedule_batch, recipe.base_lr) == (case["batch"], case["batch"], case["base_lr"])
    assert (recipe.iterations, list(recipe.steps), recipe.step_factor) == (
        case["max_iter"],
        case["steps"],
        case["gamma"],
    )
    assert (recipe.warmup_iterations, recipe.warmup_factor) == (case["warmup_iters"], case["warmup_factor"])
    assert (recipe.momentum, recipe.nesterov) == (case["momentum"], case["nesterov"])
    assert recipe.weight_decay == case["weight_decay"]
    assert recipe.backbone_lr_factor == case["backbone_multiplier"]
    assert recipe.clip_grad_norm is None
    assert recipe.ema_decay is None
    assert recipe.skip_empty
    assert recipe.multi_scale is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_decays_as_many_tensors_and_numbers_as_published(yolof_reference, variant):
    case, recipe = case_of(yolof_reference, variant), recipe_for("yolof", VARIANTS[variant])
    with torch.device("meta"):
        model = minidet.create_model(VARIANTS[variant])
    backbone = set(model.backbone.parameters())
    found: dict[str, list[int]] = {}
    for group in parameter_groups(model, recipe.weight_decay, recipe.decay_biases, recipe.backbone_lr_factor):
        for parameter in group["params"]:
            part = "backbone" if parameter in backbone else "head"
            counts = found.setdefault(f"{part} weight_decay={group['weight_decay']:g}", [0, 0])
            counts[0] += 1
            counts[1] += parameter.numel()
            rate = recipe.base_lr * group["lr_factor"]
            assert rate == pytest.approx(case["param_groups"][f"{part} weight_decay={group['weight_decay']:g}"]["lr"])
    expected = {name: [group["tensors"], group["parameters"]] for name, group in case["param_groups"].items()}
    assert found == expected


def test_the_published_augmentation_of_yolof_is_mirror_and_shift_alone():
    recipe = RECIPES["yolof"].resolved("yolof-r50-c5", (800, 1333))
    a = recipe.augmentation
    assert (a.flip_prob, a.shift_prob, a.shift_max, a.min_box_side) == (0.5, 0.5, 32, 0)
    assert (a.mosaic_prob, a.mixup_prob, a.affine_prob, a.hsv_prob) == (0, 0, 0, 0)
    assert RECIPES["yolox"].resolved("yolox-s", (640, 640)).augmentation.shift_prob == 0
    assert RECIPES["yolox"].resolved("yolof-r50-c5", (800, 1333)).multi_scale is None


def test_each_family_has_a_course_recipe_of_its_own():
    assert recipe_for("course", "yolof-r18-c5") == YOLOF_COURSE
    assert recipe_for("course", "yolox-nano") == RECIPES["course"]
    assert recipe_for("yolox", "yolox-s") == RECIPES["yolox"]
    assert YOLOF_COURSE.warnings() == []
    with pytest.raises(RunError, match="no recipe 'yolov8'"):
        recipe_for("yolov8", "yolox-s")


# The linear scaling rule ----------------------------------------------------------------------------------------------


def test_a_smaller_batch_scales_rate_warmup_steps_and_length_together_and_says_so():
    recipe, lines = scale_to_batch(RECIPES["yolof"], 8)
    assert recipe.base_lr == pytest.approx(0.015)
    assert (recipe.batch_size, recipe.warmup_iterations, recipe.steps) == (8, 12_000, (120_000, 160_000))
    assert recipe.iterations == 180_000
    assert lines == [
        "batch 8 instead of 64: learning rate 0.12 -> 0.015, warm-up 1,500 -> 12,000 iterations, steps at 15,000, "
        "20,000 -> 120,000, 160,000, in all 22,500 -> 180,000 iterations (the linear scaling rule)"
    ]
    # By hand: the warm-up starts from 1 / 12,000 of the top and ends at the top.
    assert learning_rate(0, 1, recipe, 8) == pytest.approx(0.015 / 12_000)
    assert learning_rate(6000, 1, recipe, 8) == pytest.approx(0.015 * (1 / 12_000 + (1 - 1 / 12_000) / 2))
    assert learning_rate(12_000, 1, recipe, 8) == pytest.approx(0.015)
    assert learning_rate(160_000, 1, recipe, 8) == pytest.approx(0.00015)


def test_the_rule_gives_the_authors_own_schedule_for_a_batch_of_32():
    recipe, _ = scale_to_batch(RECIPES["yolof"], 32)
    published = recipe_for("yolof", "yolof-r101-dc5")
    for field in ("base_lr", "iterations", "warmup_iterations", "steps", "schedule_batch", "batch_size"):
        assert getattr(recipe, field) == pytest.approx(getattr(published, field))


def test_iterations_are_rounded_to_the_nearest_and_never_to_none():
    recipe, _ = scale_to_batch(RECIPES["yolof"], 48)  # times 4/3
    assert (recipe.iterations, recipe.warmup_iterations, recipe.steps) == (30_000, 2000, (20_000, 26_667))
    tiny, _ = scale_to_batch(RECIPES["yolof"], 10_000_000)
    assert (tiny.iterations, tiny.warmup_iterations) == (1, 1)


def test_a_recipe_for_this_batch_and_one_that_counts_epochs_are_left_as_they_are():
    assert scale_to_batch(RECIPES["yolof"], 64) == (RECIPES["yolof"], [])
    once, _ = scale_to_batch(RECIPES["yolof"], 8)
    assert scale_to_batch(once, 8) == (once, [])
    assert scale_to_batch(RECIPES["yolox"], 8) == (dataclasses.replace(RECIPES["yolox"], batch_size=8), [])


def test_scaling_there_and_back_gives_the_same_schedule():
    there, _ = scale_to_batch(RECIPES["yolof"], 8)
    back, _ = scale_to_batch(there, 64)
    assert (back.iterations, back.steps, back.warmup_iterations) == (22_500, (15_000, 20_000), 1500)
    assert back.base_lr == pytest.approx(0.12)


def test_epochs_fit_the_schedule_to_a_data_set_with_the_steps_at_the_same_place_in_the_run():
    recipe, _ = scale_to_batch(dataclasses.replace(RECIPES["yolof"], epochs=12), 8)
    fitted, lines = scale_to_epochs(recipe, 205)  # 26 steps an epoch, 312 in all; 312 / 180,000 of everything
    assert (fitted.epochs, fitted.iterations) == (None, 312)
    assert fitted.steps == (208, 277)  # two thirds, eight ninths
    assert fitted.warmup_iterations == 21  # a fifteenth
    assert lines == [
        "12 epochs of 26 steps on 205 images: warm-up 12,000 -> 21 iterations, steps at 120,000, 160,000 -> 208, 277, "
        "in all 180,000 -> 312 iterations"
    ]
    assert scale_to_epochs(fitted, 205) == (fitted, [])


def test_a_longer_run_keeps_its_warmup():
    fitted, _ = scale_to_epochs(dataclasses.replace(RECIPES["yolof"], epochs=36), 117_266)  # 1,833 steps an epoch
    assert (fitted.iterations, fitted.warmup_iterations, fitted.warmup_factor) == (65_988, 1500, 0.00066667)
    assert fitted.steps == (43_992, 58_656)


def test_a_schedule_that_ends_within_its_warmup_is_told():
    assert RECIPES["yolof"].warnings() == []
    (text,) = dataclasses.replace(RECIPES["yolof"], iterations=1000).warnings()
    assert "ends (1,000 iterations) before the warm-up does (1,500)" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "linear"),
        ("iterations", None),
        ("iterations", 0),
        ("warmup_iterations", -1),
        ("warmup_factor", 1.5),
        ("step_factor", 0.0),
        ("steps", (20_000, 15_000)),
        ("steps", (0.5,)),
        ("schedule_batch", 0),
        ("backbone_lr_factor", 0.0),
        ("backbone_lr_factor", math.inf),
    ],
)
def test_a_schedule_of_steps_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(RunError, match=f"recipe: {field} is"):
        dataclasses.replace(RECIPES["yolof"], **{field: value})


@pytest.mark.parametrize(("field", "value"), [("iterations", 100), ("steps", (5,)), ("warmup_iterations", 3)])
def test_numbers_of_the_other_schedule_are_refused_rather_than_ignored(field, value):
    with pytest.raises(RunError, match=f"recipe: {field} is .*schedule is 'cosine'"):
        Recipe(**{field: value})
    with pytest.raises(RunError, match="epochs is None"):
        Recipe(epochs=None)


# Groups of parameters and the optimiser's step ------------------------------------------------------------------------


class WithBackbone(nn.Module):
    """A backbone and a head of one convolution and one norm each."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))


def test_biases_of_convolutions_decay_with_their_weights_and_those_of_norms_never():
    model = WithBackbone()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {
        group["name"]: ([names[p] for p in group["params"]], group["weight_decay"], group["lr_factor"])
        for group in parameter_groups(model, 1e-4, decay_biases=True, backbone_lr_factor=0.334)
    }
    assert groups == {
        "norms": (["head.1.weight", "head.1.bias"], 0.0, 1.0),
        "weights": (["head.0.weight"], 1e-4, 1.0),
        "biases": (["head.0.bias"], 1e-4, 1.0),
        "backbone norms": (["backbone.1.weight", "backbone.1.bias"], 0.0, 0.334),
        "backbone weights": (["backbone.0.weight"], 1e-4, 0.334),
        "backbone biases": (["backbone.0.bias"], 1e-4, 0.334),
    }


def test_one_step_follows_plain_momentum_with_each_groups_own_rate_and_decay():
    model = WithBackbone()
    recipe = dataclasses.replace(RECIPES["yolof"], weight_decay=0.5, warmup_iterations=0, warmup_factor=None)
    optimizer = make_optimizer(model, recipe)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 2.0)
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # by hand: g = 1 + 0.5 * 2 = 2 (1 without decay), step 0.12 * g; the backbone's rate is 0.334 of that
    assert model.head[0].weight.flatten()[0].item() == pytest.approx(2 - 0.12 * 2)
    assert model.head[0].bias[0].item() == pytest.approx(2 - 0.12 * 2)
    assert model.head[1].bias[0].item() == pytest.approx(2 - 0.12)
    assert model.backbone[0].weight.flatten()[0].item() == pytest.approx(2 - 0.334 * 0.12 * 2)
    assert model.backbone[1].weight[0].item() == pytest.approx(2 - 0.334 * 0.12)


def test_a_backbone_factor_needs_a_backbone():
    with pytest.raises(RunError, match="no part called backbone"):
        make_optimizer(nn.Linear(2, 2), RECIPES["yolof"])


# A whole run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("minidet.training.run.save_pictures", lambda *args: None)


@pytest.fixture(scope="module")
def stepped(squares, tmp_path_factory):
    """Seven steps in epochs of three, without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minidet.training.run.save_pictures", lambda *args: None)
        return run(tmp_path_factory.mktemp("stepped") / "run", squares, STEPS)


def test_a_run_stops_exactly_at_its_iterations_in_the_midst_of_an_epoch(stepped, squares):
    assert [row["iteration"] for row in stepped.metrics] == [3, 6, 7]
    state = load_checkpoint(latest_checkpoint(stepped.run_dir))
    assert (state["iteration"], state["step"]) == (7, 1)
    assert latest_checkpoint(stepped.run_dir).name == "epoch_0003.pt"
    assert stepped.evaluation is not None  # the last epoch is evaluated, short as it is
    # The rates by hand: steps 3, 6 and 7 of a run that drops after 5 and after 6.
    assert [row["lr"] for row in stepped.metrics] == pytest.approx([0.005, 0.0005, 0.00005])
    said: list[str] = []
    again = run(stepped.run_dir, squares, STEPS, resume=True, log=said.append)
    assert "this run is finished (3 epochs)" in said[-1]
    assert again.metrics == stepped.metrics


@pytest.mark.parametrize("step", [2, 4, 7])
def test_an_interrupted_run_of_steps_resumes_and_ends_bit_for_bit_the_same(stepped, squares, tmp_path, step):
    stopped = run(tmp_path / "run", squares, STEPS, model=at_forward(tiny_model(), step, press_ctrl_c))
    assert stopped.interrupted
    assert load_checkpoint(latest_checkpoint(tmp_path / "run"))["iteration"] == step
    run(tmp_path / "run", squares, STEPS, resume=True)
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(stepped.run_dir))


def test_training_scales_the_schedule_by_itself_and_says_what_it_did(squares, tmp_path):
    recipe = dataclasses.replace(STEPS, schedule_batch=8, iterations=2, steps=(), warmup_iterations=1)
    said: list[str] = []
    result = run(tmp_path / "run", squares, recipe, val_data=None, log=said.append)
    assert result.metrics[-1]["iteration"] == 4
    assert any(
        "batch 4 instead of 8: learning rate 0.005 -> 0.0025, warm-up 1 -> 2 iterations" in text for text in said
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["recipe"]["iterations"], config["recipe"]["epochs"]) == (4, None)


def test_the_command_line_says_what_another_batch_size_changes(squares, tmp_path, capsys):
    (tmp_path / "annotations").mkdir()
    shutil.copy(squares.annotations_path, tmp_path / "annotations" / "instances_train.json")
    shutil.copytree(squares.images_path, tmp_path / "train")
    chosen = {"--model": "yolof-r18-c5", "--recipe": "yolof", "--batch-size": "8", "--epochs": "1", "--val-split": ""}
    chosen |= {"--input-size": ["64", "64"], "--out": str(tmp_path / "run"), "--device": "cpu", "--workers": "0"}
    words = [word for name, value in chosen.items() for word in (name, *([value] if isinstance(value, str) else value))]
    assert main(["train", str(tmp_path), *words]) == 0
    said = capsys.readouterr().out
    assert "Note: batch 8 instead of 64: learning rate 0.12 -> 0.015, warm-up 1,500 -> 12,000 iterations" in said
    assert "Note: 1 epoch of 2 steps on 12 images" in said
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["iterations"] == 2


def test_epochs_of_a_recipe_of_steps_are_counted_on_the_data(squares, tmp_path):
    said: list[str] = []
    result = run(tmp_path / "run", squares, dataclasses.replace(STEPS, epochs=2), val_data=None, log=said.append)
    assert [row["iteration"] for row in result.metrics] == [3, 6]
    assert any("2 epochs of 3 steps on 12 images" in text for text in said)


def test_a_schedule_made_for_much_more_data_is_told_before_it_starts(squares, tmp_path):
    said: list[str] = []
    with pytest.raises(ZeroDivisionError):
        run(
            tmp_path / "run",
            squares,
            dataclasses.replace(STEPS, iterations=3000),
            model=at_forward(tiny_model(), 1, lambda output: 1 / 0),
            log=said.append,
        )
    assert any("3,000 iterations are 1,000 epochs of 12 images" in text for text in said)


def test_a_variant_whose_published_augmentation_is_only_partly_here_says_so(squares, tmp_path):
    for augmentation, told in ((None, True), (FLIP_AND_SHIFT, False)):
        model, said = at_forward(tiny_model(), 1, lambda output: 1 / 0), []
        model.name = "yolof-cspdarknet53-dc5"
        recipe = dataclasses.replace(SMALL, augmentation=augmentation)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / str(told), squares, recipe, model=model, log=said.append)
        assert any("was published with jittered crops" in text for text in said) == told


def test_without_an_average_the_trained_weights_themselves_are_kept_and_training_resumes(squares, tmp_path):
    recipe = dataclasses.replace(SMALL, epochs=2, ema_decay=None, eval_every=1)
    whole = run(tmp_path / "whole", squares, recipe)
    state = load_checkpoint(latest_checkpoint(tmp_path / "whole"))
    assert state["ema"] is None
    kept = minidet.load_model(tmp_path / "whole" / "last.safetensors").state_dict()
    assert all(torch.equal(kept[name], value) for name, value in state["model"].items())
    averaged = run(tmp_path / "averaged", squares, dataclasses.replace(recipe, ema_decay=0.9))
    other = minidet.load_model(tmp_path / "averaged" / "last.safetensors").state_dict()
    assert any(not torch.equal(kept[name], other[name]) for name in kept)
    assert len(averaged.metrics) == 2
    # Judging the trained model itself leaves it in training: a resumed run ends the same.
    run(tmp_path / "run", squares, recipe, model=at_forward(tiny_model(), 4, press_ctrl_c))
    run(tmp_path / "run", squares, recipe, resume=True)
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(whole.run_dir))


def test_pictures_without_objects_can_be_left_out_of_training(squares, tmp_path):
    content = json.loads(squares.annotations_path.read_text())
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content | {"annotations": content["annotations"][:4]}))
    data = type(squares)(path, squares.images_path)
    seen: list[str] = []
    for skip, steps in ((False, 3), (True, 1)):
        recipe = dataclasses.replace(SMALL, epochs=1, skip_empty=skip)
        result = run(tmp_path / str(skip), data, recipe, val_data=None, log=seen.append)
        assert result.metrics[-1]["iteration"] == steps  # 12 pictures or 4, four a step
    path.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(RunError, match="no image has a box"):
        run(tmp_path / "none", type(squares)(path, squares.images_path), recipe)


def test_a_yolof_of_course_size_trains_with_the_published_recipe(squares, tmp_path):
    torch.manual_seed(1)
    model = minidet.create_model("yolof-r18-c5", num_classes=2, input_hw=(64, 96), width=32, mid_width=8)
    recipe = dataclasses.replace(recipe_for("yolof", model.name), batch_size=4, epochs=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said: list[str] = []
    result = run(tmp_path / "run", squares, recipe, model=model, val_data=None, log=said.append)
    assert result.metrics[-1]["iteration"] == 3
    assert any("batch 4 instead of 64" in text for text in said)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert Augmentation(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in config["recipe"]["augmentation"].items()}
    ) == (FLIP_AND_SHIFT)
    after = model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("head."))


def test_sizes_cannot_change_between_steps_where_every_batch_has_its_own(squares, tmp_path):
    small = {"input_hw": (64, 96), "width": 32, "mid_width": 8}
    model = minidet.create_model("yolof-r18-c5", num_classes=2, resize="shorter_side", **small)
    with pytest.raises(RunError, match=r"multi_scale is \(32, 96\).*shorter side"):
        run(tmp_path / "run", squares, dataclasses.replace(SMALL, multi_scale=(32, 96)), model=model)
    assert not (tmp_path / "run").exists()
