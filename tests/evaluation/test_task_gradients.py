"""What the tasks do to the features that they share: equal to a direct computation, and nothing is changed."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import minidet
from minidet.boxes import iou
from minidet.errors import MinidetError
from minidet.evaluation.task_gradients import TASKS, cosine, look_into_head
from minidet.layers.pyramid import LEVELS

IMAGES = [(torch.arange(3 * 96 * 128) * step % 251).reshape(3, 96, 128).to(torch.uint8) for step in (7, 13)]
TARGETS = [
    {"boxes": torch.tensor([[10.0, 12, 50, 60], [60, 20, 124, 90]]), "labels": torch.tensor([0, 2])},
    {"boxes": torch.tensor([[30.0, 30, 46, 50]]), "labels": torch.tensor([1])},
]


def small_model(head: str) -> minidet.YOLOX:
    torch.manual_seed(0)
    model = minidet.create_model("yolox-nano", 3, width=0.125, input_hw=(96, 128), head=head)
    for module in model.modules():  # running statistics that differ from 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("head", ["decoupled", "coupled"])
def test_gradients_are_those_of_a_computation_written_down_step_by_step(head):
    model = small_model(head)
    inside = look_into_head(model, IMAGES, TARGETS)

    model.train()
    with torch.no_grad():
        features = model.features(IMAGES)
    leaves = [features[name].clone().requires_grad_() for name in LEVELS]
    rows, positive, matched = [], inside.assignment.positive, inside.assignment.matched_gt
    for leaf, level in zip(leaves, model.head.levels, strict=True):
        if head == "decoupled":
            stem = level.stem(leaf)
            class_side, box_side = level.class_branch(stem), level.box_branch(stem)
        else:
            class_side = box_side = level.branch(leaf)
        maps = level.box_predictor(box_side), level.object_predictor(box_side), level.class_predictor(class_side)
        rows.append(torch.cat(maps, dim=1).flatten(2).transpose(1, 2))
    raw = torch.cat(rows, dim=1)  # [B, A, 4 + 1 + C], the official order
    grid = inside.predictions.grid
    centers, sizes = (raw[..., :2] + grid.cells) * grid.strides[:, None], raw[..., 2:4].exp() * grid.strides[:, None]
    boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=2)
    count = positive.sum()
    wanted = {"class": raw.new_zeros(()), "box": raw.new_zeros(())}
    for image, target in enumerate(TARGETS):
        slots = positive[image].nonzero().flatten()
        gt = matched[image, slots]
        overlap = iou(boxes[image, slots], target["boxes"][gt])
        wanted["box"] = wanted["box"] + 5 * (1 - overlap**2).sum() / count
        one_hot = F.one_hot(target["labels"][gt], 3) * overlap.detach()[:, None]
        terms = F.binary_cross_entropy_with_logits(raw[image, slots, 5:], one_hot, reduction="sum")
        wanted["class"] = wanted["class"] + terms / count
    wanted["objectness"] = F.binary_cross_entropy_with_logits(raw[..., 4], positive.float(), reduction="sum") / count

    assert count >= 3  # every object has a slot
    for task in TASKS:
        assert inside.losses[task] == pytest.approx(float(wanted[task].detach()), rel=1e-5)
        expected = torch.autograd.grad(wanted[task], leaves, retain_graph=True, allow_unused=True)
        for name, gradient, leaf in zip(LEVELS, expected, leaves, strict=True):
            gradient = torch.zeros_like(leaf) if gradient is None else gradient
            torch.testing.assert_close(inside.gradients[name][task], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["decoupled", "coupled"])
def test_looking_changes_nothing_in_the_model(head):
    model = small_model(head).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    look_into_head(model, IMAGES, TARGETS)
    assert model.training and model.head.levels[0].class_predictor.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.head._forward_pre_hooks


def test_a_coupled_head_reads_one_map_for_both_tasks_and_a_decoupled_one_two():
    coupled, decoupled = (look_into_head(small_model(head), IMAGES, TARGETS) for head in ("coupled", "decoupled"))
    for name in LEVELS:
        assert torch.equal(coupled.class_features[name], coupled.box_features[name])
        assert not torch.equal(decoupled.class_features[name], decoupled.box_features[name])


def test_scores_of_a_level_are_the_models_own():
    model = small_model("decoupled").eval()
    inside = look_into_head(model, IMAGES, TARGETS)
    with torch.no_grad():
        scores = model.dense(IMAGES).class_scores().amax(dim=2)
    together = torch.cat([inside.scores(name).flatten(1) for name in LEVELS], dim=1)
    torch.testing.assert_close(together, scores)


def test_cosines_by_hand():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]), torch.tensor([[4.0, 3.0], [-2.0, 0.0], [1.0, 1.0]])
    one, two, undefined = cosine(a, b, dim=1).tolist()
    assert one == pytest.approx(24 / 25) and two == -1 and math.isnan(undefined)


def test_without_objects_no_task_but_objectness_pulls_and_no_cosine_exists():
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    inside = look_into_head(small_model("coupled"), IMAGES[:1], empty)
    assert inside.losses["class"] == inside.losses["box"] == 0 < inside.losses["objectness"]
    for name in LEVELS:
        assert not inside.gradients[name]["class"].any() and inside.gradients[name]["objectness"].any()
        assert math.isnan(inside.cosine(name, "class", "box")) and math.isnan(inside.fighting(name, "class", "box"))


def test_another_detector_is_refused():
    with pytest.raises(MinidetError, match="yolof-r18-c5 is no YOLOX"):
        look_into_head(minidet.create_model("yolof-r18-c5", 3), IMAGES, TARGETS)


def test_only_cells_with_a_noticeable_gradient_of_both_are_compared():
    inside = look_into_head(small_model("decoupled"), IMAGES, TARGETS)
    partly = []
    for level in LEVELS:
        pulls = [inside.strength(level, task) for task in ("class", "box")]
        counted = torch.stack([pull >= 0.02 * pull.max() for pull in pulls]).all(dim=0)
        cosines = inside.cosines(level, "class", "box")
        if not all(pull.any() for pull in pulls):
            assert not cosines.isfinite().any()
            continue
        assert torch.equal(cosines.isfinite(), counted)
        partly.append(not counted.all())
        a, b = (inside.gradients[level][task].movedim(1, -1)[counted] for task in ("class", "box"))
        torch.testing.assert_close(cosines[counted], F.cosine_similarity(a, b, dim=1))
        fighting = float((cosines[counted] < 0).float().mean())
        assert inside.fighting(level, "class", "box") == pytest.approx(fighting)
    assert any(partly)
