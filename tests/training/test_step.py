"""One step of training: whole batches and batches in parts, and a GPU that nothing waits for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import minidet
from minidet.training.ema import Ema
from minidet.training.recipe import Recipe, make_optimizer
from minidet.training.report import LossLog
from minidet.training.state import TrainingState
from minidet.training.step import parts_of, training_step
from tests.training.squares import tiny_model

RECIPE = Recipe(warmup_epochs=0, batch_size=64)  # learning rate 0.01 from the first step on


def batch(objects=(1, 3, 0, 2)) -> tuple[torch.Tensor, list[dict]]:
    """Four pictures with different numbers of objects."""
    random = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (len(objects), 3, 64, 64), dtype=torch.uint8, generator=random)
    targets = []
    for count in objects:
        corners = torch.rand(count, 2, generator=random) * 30
        boxes = torch.cat([corners, corners + 10 + torch.rand(count, 2, generator=random) * 20], dim=1)
        targets.append({"boxes": boxes, "labels": torch.randint(0, 2, (count,), generator=random)})
    return images, targets


def state_for(model: minidet.detectors.Detector, device: str = "cpu", **options) -> TrainingState:
    model = copy.deepcopy(model).to(device).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the one thing that looks at the part instead of the batch
    scaler = torch.amp.GradScaler(device, enabled=options.pop("fp16", False))
    return TrainingState(model, make_optimizer(model, RECIPE), Ema(model), scaler, **options)


@pytest.mark.parametrize("name", ["yolox", "yolof"])
@pytest.mark.parametrize(
    ("accumulate", "objects"), [(2, (1, 3, 0, 2)), (4, (1, 3, 0, 2)), (2, (0, 0, 5, 0)), (4, (0,) * 4)]
)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_batch_in_parts_is_the_step_of_the_whole_batch(name, accumulate, objects, clip):
    torch.manual_seed(2)
    model = tiny_model() if name == "yolox" else minidet.create_model("yolof-r18-c5", num_classes=2, input_hw=(64, 64))
    model.use_l1 = name == "yolox"
    whole, parts = state_for(model), state_for(model, accumulate=accumulate)
    for state in (whole, parts):
        training_step(state, *batch(objects), "fp32", clip, "here")
    assert parts.losses.positives == whole.losses.positives
    if name == "yolox":  # a YOLOF may find no slot good enough for an object
        assert (whole.losses.positives > 0) == (sum(objects) > 0)
    assert parts.losses.objects == whole.losses.objects == sum(objects)
    assert parts.losses.latest == pytest.approx(whole.losses.latest, rel=1e-5)
    before = dict(model.named_parameters())
    theirs = dict(parts.model.named_parameters())
    for key, value in whole.model.named_parameters():
        step = float((value - before[key]).detach().abs().max())
        torch.testing.assert_close(theirs[key], value, rtol=1.2e-7, atol=2e-4 * step + 1e-8)  # one bit of the weight
    assert any(not torch.equal(value, before[key]) for key, value in whole.model.named_parameters())


def test_without_the_number_of_positives_of_each_part_the_step_would_be_another():
    # The mean of the parts' own losses, which is what adding up gradients amounts to, for one object against three.
    model = tiny_model()
    state = state_for(model)
    images, targets = batch((1, 3))
    training_step(state, images, targets, "fp32", None, "both")
    both, positives = state.losses.latest, state.losses.positives
    parts = []
    for place in (0, 1):
        state = state_for(model)
        training_step(state, images[place : place + 1], targets[place : place + 1], "fp32", None, "one")
        parts.append((state.losses.latest, state.losses.positives))
    assert sum(count for _, count in parts) == positives
    for name in both:
        weighted = sum(losses[name] * count for losses, count in parts) / positives
        assert both[name] == pytest.approx(weighted, rel=1e-5)
    mean = sum(losses["loss_objectness"] for losses, _ in parts) / 2
    assert abs(mean / both["loss_objectness"] - 1) > 0.02


def test_parts_are_equal_and_in_order():
    images, targets = torch.arange(6), list(range(6))
    parts = list(parts_of(images, targets, 3))
    assert [part[0].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert [part[1] for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert [part[2] for part in parts] == [False, False, True]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_cuda
@pytest.mark.parametrize("name", ["yolox", "yolof"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_on_a_gpu_waits_for_nothing(name, precision, accumulate, clip):
    model = tiny_model() if name == "yolox" else minidet.create_model("yolof-r18-c5", num_classes=2, input_hw=(64, 64))
    model.use_l1 = name == "yolox"
    log = LossLog(read_every=1000)
    state = state_for(model, "cuda", fp16=precision == "fp16", accumulate=accumulate, losses=log)
    images, targets = batch()
    images = images.cuda()
    targets = [{key: value.pin_memory() for key, value in target.items()} for target in targets]
    training_step(state, images, targets, precision, clip, "the first step, in which libraries are loaded")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(state, images, targets, precision, clip, "the second step")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    log.read()
    assert log.steps == 2


@needs_cuda
def test_a_gpu_in_deterministic_mode_gives_the_same_bits_twice(squares, tmp_path):
    from minidet.training.checkpoint import latest_checkpoint
    from tests.training.squares import assert_same_state, run

    for name in ("one", "two"):
        run(tmp_path / name, squares, device="cuda", deterministic=True)
    assert_same_state(latest_checkpoint(tmp_path / "one"), latest_checkpoint(tmp_path / "two"))
