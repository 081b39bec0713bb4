"""Several processes that train together: the same steps as one, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import minidet
from minidet.data.loader import TrainingOrder, _Steps
from minidet.errors import RunError
from minidet.evaluation.average_precision import evaluate
from minidet.training.checkpoint import checkpoints, latest_checkpoint, load_checkpoint
from minidet.training.distributed import Ranks, Stretch, choose_rank_device, launched_ranks, span_of
from minidet.training.preparation import check_parts
from minidet.training.run_folder import read_metrics
from minidet.training.sync_batch_norm import SyncBatchNorm2d, synchronise_batch_norm
from tests.training.squares import assert_same_state, run, tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not torch.distributed.is_available(), reason="needs gloo, and signals"
)


def start(ranks: int, squares, folder: Path, options: dict, restarts: int = 0) -> subprocess.CompletedProcess:
    """Let torchrun start the program `ranks.py`; with one rank it is started without torchrun."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["--max-restarts", str(restarts), "--monitor-interval", "0.1"]
    command += ["tests/training/ranks.py", str(squares.images_path), str(folder), json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def losses_of(ranks: int, squares, folder: Path, options: dict) -> list[dict[str, float]]:
    """What the steps of a run gave."""
    done = start(ranks, squares, folder, options)
    assert done.returncode == 0, done.stderr
    return json.loads(folder.with_suffix(".losses.json").read_text())


# The same steps as one process ----------------------------------------------------------------------------------------


def test_two_processes_with_common_batch_norm_take_the_steps_that_one_takes_with_the_whole_batch(squares, tmp_path):
    # In double precision: the first steps of a network without training multiply a difference of rounding by 2 to 30
    # each, in one process as in two, so in single precision only the first step could be compared.
    recipe = {"epochs": 7, "base_lr": 0.16, "clip_grad_norm": 0.1, "final_epochs": 0, "checkpoint_every": 7}
    options = {"double": True, "recipe": recipe, "train": {"val_data": None}}
    together = options | {"train": {"val_data": None, "sync_batch_norm": True}}
    one = np.array([list(step.values()) for step in losses_of(1, squares, tmp_path / "one", options)])
    two = np.array([list(step.values()) for step in losses_of(2, squares, tmp_path / "two", together)])
    assert one.shape == (21, 3)
    assert abs(one - two).max() < 1e-5
    assert abs(one - one[0]).max() > 0.1  # the steps are not all the same one


@pytest.fixture(scope="module")
def two(squares, tmp_path_factory) -> Path:
    """A whole run of two processes: 4 epochs of 3 steps."""
    folder = tmp_path_factory.mktemp("ranks") / "two"
    losses_of(2, squares, folder, {})
    return folder


def test_two_processes_take_bit_for_bit_the_steps_of_one_that_computes_its_batches_in_two_parts(two, squares, tmp_path):
    one = losses_of(1, squares, tmp_path / "one", {"train": {"accumulate": 2}})
    assert one == json.loads(two.with_suffix(".losses.json").read_text())
    assert len(one) == 12
    theirs, ours = (load_checkpoint(latest_checkpoint(folder))["model"] for folder in (two, tmp_path / "one"))
    weights = [name for name, _ in tiny_model().named_parameters()]
    assert all(torch.equal(theirs[name], ours[name]) for name in weights)
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (two, tmp_path / "one")]
    assert [row["losses"] for row in rows[0]] == [row["losses"] for row in rows[1]]
    assert [row["positives_per_object"] for row in rows[0]] == [row["positives_per_object"] for row in rows[1]]


def test_what_all_processes_find_together_is_what_one_finds_alone(two, squares):
    alone = evaluate(minidet.load_model(two / "last.safetensors"), squares, batch_size=2, progress=False)
    row = read_metrics(two / "metrics.jsonl")[-1]
    assert (row["ap"], row["ap50"]) == (max(alone.ap, 0), max(alone.ap50, 0))
    assert alone.num_images == 12


@pytest.mark.parametrize(("count", "size"), [(12, 2), (13, 4), (2, 3), (0, 2)])
def test_every_picture_is_judged_by_exactly_one_process(count, size):
    spans = [span_of(count, Ranks(rank, size)) for rank in range(size)]
    assert [index for span in spans for index in span] == list(range(count))


def test_a_stretch_of_a_data_set_is_that_part_of_it(squares):
    part = Stretch(squares, range(3, 7))
    assert len(part) == 4
    assert [record.id for record in part.records] == [4, 5, 6, 7]
    assert part[1][1]["image_id"] == 5


def test_the_parts_of_a_batch_together_are_the_batch(squares):
    order = TrainingOrder(12, batch_size=6, seed=3)
    whole = list(order)
    parts = [[keys for keys, _ in _Steps(order, slice(start, start + 2), None)] for start in (0, 2, 4)]
    assert [[key for part in parts for key in part[number]] for number in range(len(order))] == whole


# Batch normalisation --------------------------------------------------------------------------------------------------


def test_common_batch_norm_of_one_process_is_batch_norm():
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64).mul(3).add(2).requires_grad_()
    plain, ours = torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.03).double(), torch.nn.Sequential()
    ours.add_module("norm", torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.03).double())
    with torch.no_grad():
        for norm in (plain, ours.norm):
            norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
            norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0]))
    names = list(ours.state_dict())
    synchronise_batch_norm(ours, torch.device("cpu"))
    assert type(ours.norm) is SyncBatchNorm2d
    assert list(ours.state_dict()) == names
    weights = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    gradients = []
    for norm in (plain, ours.norm):
        (norm(x) * weights).sum().backward()
        gradients.append((x.grad.clone(), norm.weight.grad, norm.bias.grad, *norm.buffers()))
        x.grad = None
    for theirs, mine in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


# What happens to one happens to all -----------------------------------------------------------------------------------


def test_a_killed_process_is_started_again_and_the_run_ends_bit_for_bit_the_same(two, squares, tmp_path):
    done = start(2, squares, tmp_path / "run", {"signal": "SIGKILL", "rank": 1, "at": 7}, restarts=1)
    assert done.returncode == 0, done.stderr
    assert "Going on from" in done.stdout
    assert "epoch_0002.pt" in done.stdout
    assert [row["epoch"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(two))


def test_a_signal_to_one_process_stops_all_after_the_same_step(two, squares, tmp_path):
    done = start(2, squares, tmp_path / "run", {"signal": "SIGTERM", "rank": 1, "at": 4})
    assert "exitcode  : 143" in done.stderr
    assert "Stopped in epoch 2 of 4" in done.stdout
    assert latest_checkpoint(tmp_path / "run").name == "epoch_0001_step_00002.pt"
    start(2, squares, tmp_path / "run", {"train": {"resume": True}})
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(two))


def test_a_bad_loss_of_one_process_ends_all_and_its_batch_is_saved(squares, tmp_path):
    done = start(2, squares, tmp_path / "run", {"nan_at": 5, "rank": 1})
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "became nan in epoch 2, iteration 6 (image ids [" in errors[0]
    assert "nan_batch_rank1.png" in errors[0]
    assert errors[0].endswith("epoch_0001.pt.")
    names = {path.name for path in (tmp_path / "run").glob("nan_batch*")}
    assert names == {"nan_batch_rank1.png", "nan_batch_rank1.safetensors"}
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["epoch_0001.pt"]


def test_processes_with_different_settings_are_told_so_before_anything_is_written(squares, tmp_path):
    done = start(2, squares, tmp_path / "run", {"other_recipe": True})
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "rank 1 was started with other settings than rank 0" in errors[0]
    assert "recipe.base_lr: the run has 0.08, now it is 0.5" in done.stderr
    assert not (tmp_path / "run").exists()


# What is refused ------------------------------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_shared_evenly_is_refused_with_the_nearest_that_can():
    check_parts(16, ranks=4, accumulate=2)
    with pytest.raises(RunError, match=r"10 images cannot be shared evenly by 4 processes x 2 parts.*8 or 16"):
        check_parts(10, ranks=4, accumulate=2)
    with pytest.raises(RunError, match=r"--batch-size 8, or other numbers"):
        check_parts(3, ranks=4, accumulate=2)
    with pytest.raises(RunError, match="accumulate is 0"):
        check_parts(4, ranks=1, accumulate=0)


def test_the_ranks_are_those_of_torchrun(monkeypatch):
    assert launched_ranks() == Ranks()
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    assert launched_ranks() == Ranks(5, 8, 1, 4)
    monkeypatch.delenv("RANK")
    with pytest.raises(RunError, match=r"'RANK' is not as it should be.*torchrun"):
        launched_ranks()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_rank_device("auto", Ranks(3, 4, 1, 2)) == torch.device("cuda", 1)
    with pytest.raises(RunError, match="4 processes were started on this machine, but it has 2 GPUs"):
        choose_rank_device("cuda", Ranks(0, 4, 0, 4))
    with pytest.raises(RunError, match="cuda:1 cannot be shared by 2 processes"):
        choose_rank_device("cuda:1", Ranks(0, 2, 0, 2))
    assert choose_rank_device("cpu", Ranks(0, 4, 0, 4)) == torch.device("cpu")


def test_an_ablation_is_not_for_several_processes(monkeypatch, squares, tmp_path):
    from minidet.training.ablation import Study, ablate
    from minidet.training.recipe import RECIPES

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    study = Study("yolox-nano", RECIPES["course"], squares, squares, tmp_path / "out")
    with pytest.raises(RunError, match="Start it without torchrun"):
        ablate(study, {}, [], [0])


def test_one_process_under_torchrun_is_an_ordinary_run(monkeypatch, squares, tmp_path):
    monkeypatch.setattr("minidet.training.loop.save_pictures", lambda *args: None)
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert len(run(tmp_path / "run", squares).metrics) == 4
    assert not torch.distributed.is_initialized()
