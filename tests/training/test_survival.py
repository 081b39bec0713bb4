"""Training that is interrupted, killed, damaged or spoilt: at most the time since the last checkpoint is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import minidet
from minidet.errors import RunError
from minidet.training import checkpoint
from minidet.training.checkpoint import latest_checkpoint, load_checkpoint
from minidet.training.run_folder import read_metrics
from tests.training.squares import assert_same_state, at_forward, press_ctrl_c, run, tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Drawing takes longer than training here; the run `whole` is made before this takes effect, and has pictures."""
    monkeypatch.setattr("minidet.training.loop.save_pictures", lambda *args: None)


# Ctrl-C, SIGKILL, damaged files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [5, 6])  # within the second epoch; at its end, before its evaluation
def test_ctrl_c_saves_after_the_step_and_a_resumed_run_ends_bit_for_bit_the_same(whole, squares, tmp_path, step):
    said: list[str] = []
    stopped = run(tmp_path / "run", squares, model=at_forward(tiny_model(), step, press_ctrl_c), log=said.append)
    assert stopped.interrupted
    assert "Press Ctrl-C again" in said[-2]
    assert "--resume" in said[-1]
    assert load_checkpoint(latest_checkpoint(tmp_path / "run"))["iteration"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    resumed = run(tmp_path / "run", squares, resume=True)
    assert not resumed.interrupted
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(whole.run_dir))
    assert [strip_clock(row) for row in resumed.metrics] == [strip_clock(row) for row in whole.metrics]


def strip_clock(row: dict) -> dict:
    return {key: value for key, value in row.items() if "seconds" not in key}


def test_a_second_ctrl_c_stops_at_once(squares, tmp_path):
    def press_twice(output):
        press_ctrl_c(output)
        press_ctrl_c(output)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", squares, model=at_forward(tiny_model(), 5, press_twice))
    assert latest_checkpoint(tmp_path / "run").name == "epoch_0001.pt"


def test_ctrl_c_during_an_evaluation_need_not_wait_for_it(whole, squares, tmp_path, monkeypatch):
    monkeypatch.setattr("minidet.training.loop.evaluate", lambda *args, **options: press_ctrl_c(None))
    stopped = run(tmp_path / "run", squares)
    assert stopped.interrupted
    assert [row["epoch"] for row in stopped.metrics] == [1]
    assert latest_checkpoint(tmp_path / "run").name == "epoch_0002.pt"
    monkeypatch.undo()
    resumed = run(tmp_path / "run", squares, resume=True)
    assert [strip_clock(row) for row in resumed.metrics] == [strip_clock(row) for row in whole.metrics]
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(whole.run_dir))


PROGRAM = """
import sys
from pathlib import Path
from minidet.data.coco import CocoDataset
from minidet.training import loop
from tests.training.squares import run
loop.save_pictures = lambda *args: None
data = CocoDataset(Path(sys.argv[1]) / "annotations.json", Path(sys.argv[1]))
run(Path(sys.argv[2]), data, resume=len(sys.argv) > 3, workers=1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_killed_at_a_random_moment_resumes_and_ends_bit_for_bit_the_same(whole, squares, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, str(squares.images_path), str(folder)]
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)
    while not latest_checkpoint(folder):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(int.from_bytes(os.urandom(2), "big") / 65536 * 0.5)  # the other three epochs take longer
    os.killpg(process.pid, signal.SIGKILL)  # its worker dies with it
    assert process.wait() == -signal.SIGKILL
    run(folder, squares, resume=True)
    assert load_checkpoint(latest_checkpoint(folder))["epoch"] == 3
    assert_same_state(latest_checkpoint(folder), latest_checkpoint(whole.run_dir))
    assert [row["epoch"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_damaged_newest_checkpoint_costs_one_epoch_and_nothing_else(whole, squares, tmp_path):
    shutil.copytree(whole.run_dir, tmp_path / "run")
    newest = latest_checkpoint(tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:-100])
    said: list[str] = []
    result = run(tmp_path / "run", squares, resume=True, log=said.append)
    assert "epoch_0004.pt" in said[0]
    assert "epoch_0003.pt" in said[1]
    assert_same_state(newest, latest_checkpoint(whole.run_dir))
    assert [row["epoch"] for row in result.metrics] == [1, 2, 3, 4]


def test_a_run_without_a_checkpoint_is_resumed_from_the_beginning(whole, squares, tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", squares, model=at_forward(tiny_model(), 2, lambda output: 1 / 0))
    said: list[str] = []
    run(tmp_path / "run", squares, resume=True, log=said.append)
    assert "holds no checkpoint yet" in said[0]
    assert "4 epochs of 3 steps" in said[1]
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(whole.run_dir))


def test_a_finished_run_says_so_and_is_left_alone(whole, squares):
    before = {path: path.stat().st_mtime_ns for path in (whole.run_dir / "checkpoints").iterdir()}
    said: list[str] = []
    result = run(whole.run_dir, squares, resume=True, log=said.append)
    assert "this run is finished (4 epochs)" in said[-1]
    assert result.metrics == whole.metrics
    assert {path: path.stat().st_mtime_ns for path in (whole.run_dir / "checkpoints").iterdir()} == before


# Losses that are no numbers, disks that are full ----------------------------------------------------------------------


def test_a_loss_that_turns_nan_is_named_and_no_saved_weight_is_touched(squares, tmp_path):
    def spoil(losses):
        return losses | {"loss_class": losses["loss_class"] * float("nan")}

    with pytest.raises(RunError) as caught:
        run(tmp_path / "run", squares, model=at_forward(tiny_model(), 8, spoil))
    text = str(caught.value)
    assert "loss_class became nan in epoch 3, iteration 8 (image ids [" in text
    assert text.endswith("epoch_0002.pt.")
    assert latest_checkpoint(tmp_path / "run").name == "epoch_0002.pt"
    saved = load_checkpoint(latest_checkpoint(tmp_path / "run"))
    last = minidet.load_model(tmp_path / "run" / "last.safetensors").state_dict()
    for state in (saved["model"], saved["ema"]["model"], last):
        assert all(bool(value.isfinite().all()) for value in state.values())


def test_weights_that_turn_nan_behind_a_good_loss_are_never_saved(squares, tmp_path):
    def spoil(losses):  # the value stays, the gradient becomes infinite
        return losses | {
            "loss_box": losses["loss_box"] + 0 * losses["loss_box"].sub(losses["loss_box"].detach()).sqrt()
        }

    with pytest.raises(
        RunError, match=r"the weight \S+ became NaN or infinite in epoch 2, iteration 6.*epoch_0001\.pt"
    ):
        run(tmp_path / "run", squares, model=at_forward(tiny_model(), 6, spoil))
    assert latest_checkpoint(tmp_path / "run").name == "epoch_0001.pt"


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_named_and_whole(squares, tmp_path, monkeypatch):
    save = checkpoint.torch.save

    def full(state, file):
        if state["epoch"] == 1:
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(
        minidet.MinidetError, match=r"No space left on device.*last good checkpoint is .*epoch_0001\.pt"
    ):
        run(tmp_path / "run", squares)
    assert load_checkpoint(latest_checkpoint(tmp_path / "run"))["iteration"] == 3
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["epoch_0001.pt"]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_cuda
@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32"])
def test_a_gpu_trains_in_every_precision_and_resumes(squares, tmp_path, precision):
    options = {"device": "cuda", "precision": precision}
    stopped = run(tmp_path / "run", squares, model=at_forward(tiny_model(), 5, press_ctrl_c), **options)
    assert stopped.interrupted
    resumed = run(tmp_path / "run", squares, resume=True, **options)
    assert [row["epoch"] for row in resumed.metrics] == [1, 2, 3, 4]
    assert minidet.load_model(tmp_path / "run" / "last.safetensors").num_classes == 2


@needs_cuda
def test_a_gpu_finds_nan_before_it_saves(squares, tmp_path):
    def spoil(losses):
        return losses | {"loss_box": losses["loss_box"] * float("nan")}

    with pytest.raises(RunError, match="loss_box became nan in epoch 2, iteration 5"):
        run(tmp_path / "run", squares, model=at_forward(tiny_model(), 5, spoil), device="cuda")
    assert latest_checkpoint(tmp_path / "run").name == "epoch_0001.pt"
