"""Memory that runs out: what is said, what is tried instead, and how large a batch may be."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from minidet.errors import RunError
from minidet.training.batch_size import Trial, largest, largest_batch
from minidet.training.checkpoint import latest_checkpoint, load_checkpoint
from minidet.training.out_of_memory import is_out_of_memory
from minidet.training.recipe import RECIPES
from tests.training.squares import SMALL, assert_same_state, at_forward, press_ctrl_c, run, tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("minidet.training.run.save_pictures", lambda *args: None)


def with_room_for(images: int, from_step: int = 0):
    """The tiny model on a device whose memory takes so many images at once."""
    model, calls = tiny_model(), []

    def hook(module, inputs, output):
        calls.append(1)
        if module.training and len(inputs[0]) > images and len(calls) > from_step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    model.register_forward_hook(hook)
    return model


# The largest batch that fits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 9, 31, 63, 64, 65, 1000])
def test_the_largest_size_is_found_in_a_few_trials(limit):
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert largest(fits, highest=64) == min(limit, 64)
    assert len(tried) == len(set(tried)) <= 12
    assert max(tried) <= 64


def test_on_a_cpu_the_batch_follows_from_what_an_image_keeps_and_what_is_free():
    model = tiny_model().train()
    trial = Trial(model, SMALL, (64, 64), CPU, "fp32")
    weights = sum(value.nbytes for value in model.state_dict().values())
    assert trial.weight_bytes == 4 * weights
    each = trial.kept_bytes(3) - trial.kept_bytes(2)
    # Of each picture the first convolution keeps at least its input and its output: 12 channels in (64 / 2 squared
    # places), 4 out, as float32.
    assert each > 4 * 32 * 32 * (12 + 4)
    assert trial.kept_bytes(5) - trial.kept_bytes(2) == pytest.approx(3 * each, rel=0.01)
    for images in (1, 5, 20):
        memory = int(trial.weight_bytes + images * 1.5 * each * 1.01)
        assert largest_batch(model, SMALL, 64, CPU, "fp32", memory) == images
    assert largest_batch(model, SMALL, 64, CPU, "fp32", trial.weight_bytes) == 0
    assert largest_batch(model, SMALL, 64, CPU, "fp32") == 64  # this machine has room for so many


def test_trials_change_neither_the_model_nor_chance():
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    largest_batch(model, SMALL, 8, CPU, "fp32")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_trial_takes_the_largest_size_of_multi_scale_training():
    model = tiny_model()
    sizes = []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    largest_batch(model, dataclasses.replace(SMALL, multi_scale=(32, 128)), 1, CPU, "fp32")
    assert sizes == [(128, 128)]


def test_an_automatic_batch_is_told_written_down_and_kept_by_a_resumed_run(squares, tmp_path, monkeypatch):
    trial = Trial(tiny_model().train(), SMALL, (64, 64), CPU, "fp32")
    each = 1.5 * (trial.kept_bytes(2) - trial.kept_bytes(1))
    memory = (trial.weight_bytes + 5.5 * each) / 0.9
    monkeypatch.setattr("minidet.training.batch_size.free_memory", lambda: memory)
    said: list[str] = []
    recipe = dataclasses.replace(SMALL, epochs=1)
    run(tmp_path / "run", squares, recipe, auto_batch=True, log=said.append)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["batch_size"] == 5
    # 0.08 for a batch of 64.
    assert said[0] == "Note: batch size auto: 5 images, the most that cpu has memory for; top learning rate 0.00625."
    monkeypatch.setattr("minidet.training.batch_size.free_memory", lambda: 10 * memory)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    resumed = run(tmp_path / "run", squares, recipe, auto_batch=True, resume=True)
    assert len(resumed.metrics) == 1


def test_an_automatic_batch_is_no_larger_than_the_data_and_the_recipe_allow(squares, tmp_path):
    for recipe, expected in ((SMALL, 12), (dataclasses.replace(SMALL, schedule_batch=8), 8)):
        folder = tmp_path / str(expected)
        run(folder, squares, dataclasses.replace(recipe, epochs=1), auto_batch=True, val_data=None)
        assert json.loads((folder / "config.json").read_text())["recipe"]["batch_size"] == expected


def test_an_automatic_batch_scales_a_schedule_of_steps(squares, tmp_path):
    said: list[str] = []
    recipe = dataclasses.replace(
        RECIPES["yolof"], epochs=1, augmentation=SMALL.augmentation, iterations=10, warmup_iterations=1, steps=(5,)
    )
    run(tmp_path / "run", squares, recipe, auto_batch=True, val_data=None, log=said.append)
    assert any("batch 12 instead of 64: learning rate 0.12 -> 0.0225" in line for line in said)


def test_no_room_for_a_single_image_is_an_error(squares, tmp_path):
    with pytest.raises(RunError, match="not even one image .* fits into the memory of cpu"):
        run(tmp_path / "run", squares, model=with_room_for(0), auto_batch=True)
    assert not (tmp_path / "run").exists()


# A step that does not fit ---------------------------------------------------------------------------------------------


def test_a_step_without_memory_says_what_to_lower_and_where_it_stands(squares, tmp_path):
    recipe = dataclasses.replace(SMALL, multi_scale=(32, 96), multi_scale_every=100)
    with pytest.raises(RunError) as caught:
        run(tmp_path / "run", squares, recipe, with_room_for(2, from_step=5), val_data=None)
    text = str(caught.value)
    assert "cpu ran out of memory in epoch 2, iteration 6 (image ids [" in text
    assert "batch size 4, input 64 x 64, fp32" in text
    assert "--accumulate 2" in text
    assert "--batch-size 2" in text
    assert "--batch-size auto" in text
    assert "--input-size" in text
    assert "multi_scale (now 32 to 96 px)" in text
    assert text.endswith("epoch_0001.pt.")


def test_the_advice_helps_the_same_run_goes_on_in_more_parts(squares, tmp_path):
    with pytest.raises(RunError, match="ran out of memory"):
        run(tmp_path / "run", squares, model=with_room_for(2, from_step=5))
    said: list[str] = []
    result = run(tmp_path / "run", squares, model=with_room_for(2), resume=True, accumulate=2, log=said.append)
    assert [row["epoch"] for row in result.metrics] == [1, 2, 3, 4]
    assert "Note: accumulate: the run has 1, now it is 2; the run goes on, but not bit for bit" in said[0]


def test_with_an_automatic_batch_a_step_without_memory_is_taken_in_parts_from_then_on(squares, tmp_path):
    said: list[str] = []
    recipe = dataclasses.replace(SMALL, batch_size=4, schedule_batch=4)
    result = run(tmp_path / "run", squares, recipe, with_room_for(1, from_step=9), auto_batch=True, log=said.append)
    assert [row["iteration"] for row in result.metrics] == [3, 6, 9, 12]
    told = [line for line in said if "ran out of memory" in line]
    assert [line.split(": ")[1] for line in told] == [
        "from here on, batches of 4 images are computed in 2 parts.",
        "from here on, batches of 4 images are computed in 4 parts.",
    ]
    assert load_checkpoint(latest_checkpoint(tmp_path / "run"))["accumulate"] == 4
    assert said.count(told[0]) == 1


def test_a_resumed_run_computes_in_as_many_parts_as_before(squares, tmp_path):
    run(tmp_path / "whole", squares, accumulate=2)
    # Two forward passes a step: the ninth belongs to the fifth step.
    stopped = run(tmp_path / "run", squares, model=at_forward(tiny_model(), 9, press_ctrl_c), accumulate=2)
    assert stopped.interrupted
    assert load_checkpoint(latest_checkpoint(tmp_path / "run"))["iteration"] == 5
    run(tmp_path / "run", squares, resume=True, accumulate=2)
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(tmp_path / "whole"))


def test_errors_of_memory_are_told_from_others():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_cuda
def test_on_a_gpu_sizes_are_tried_until_one_does_not_fit():
    device = torch.device("cuda")
    model = tiny_model().to(device).train()
    all_of_it = largest_batch(model, SMALL, 64, device, "fp32")
    assert all_of_it == 64
    small = largest_batch(model, SMALL, 64, device, "fp32", memory=30e6)
    assert 0 < small < 64
