"""Training that is interrupted, killed, damaged or spoilt: at most the time since the last checkpoint is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import minidet
from minidet.cli import main
from minidet.errors import DataError, RunError
from minidet.training import checkpoint
from minidet.training.checkpoint import checkpoint_path, latest_checkpoint, load_checkpoint
from minidet.training.report import LossLog
from minidet.training.run_folder import read_metrics
from tests.training.squares import (
    SMALL,
    assert_same_state,
    at_forward,
    press_ctrl_c,
    run,
    tiny_model,
    write_squares,
)

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


def press_sigterm(output=None):
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_saves_after_the_step_like_ctrl_c_and_is_told_apart_from_it(whole, squares, tmp_path):
    said: list[str] = []
    stopped = run(tmp_path / "run", squares, model=at_forward(tiny_model(), 5, press_sigterm), log=said.append)
    assert stopped.stopped_by == signal.SIGTERM == 15
    assert "Asked to end (SIGTERM)" in said[-2]
    assert load_checkpoint(latest_checkpoint(tmp_path / "run"))["iteration"] == 5
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    run(tmp_path / "run", squares, resume=True)
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(whole.run_dir))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_exits_with_the_code_of_the_signal(squares, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr("minidet.cli.load_split", lambda *args: squares)
    monkeypatch.setattr(
        "minidet.cli.Train.make_model",
        lambda self, data: at_forward(tiny_model(), 2, lambda output: signal.raise_signal(number)),
    )
    command = ["train", "data", "--out", str(tmp_path / "run"), "--device", "cpu", "--workers", "0"]
    assert main([*command, "--batch-size", "4", "--epochs", "2"]) == code
    assert load_checkpoint(latest_checkpoint(tmp_path / "run"))["iteration"] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups of this kind")
def test_a_scheduler_that_sends_sigterm_to_every_process_finds_a_checkpoint(whole, squares, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(command_of(squares, folder), cwd=REPOSITORY, start_new_session=True)
    while not latest_checkpoint(folder):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # its worker too, which must live until the last step has its pictures
    assert process.wait(timeout=50) == 143
    assert load_checkpoint(latest_checkpoint(folder))["iteration"] < 12
    run(folder, squares, resume=True)
    assert_same_state(latest_checkpoint(folder), latest_checkpoint(whole.run_dir))


PROGRAM = """
import sys
from pathlib import Path
from minidet.data.coco import CocoDataset
from minidet.training import loop
from tests.training.squares import run
loop.save_pictures = lambda *args: None
data = CocoDataset(Path(sys.argv[1]) / "annotations.json", Path(sys.argv[1]))
folder = Path(sys.argv[2])
result = run(folder, data, resume=(folder / "config.json").exists(), workers=1)
sys.exit(128 + result.stopped_by if result.interrupted else 0)
"""


def command_of(squares, folder: Path) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(squares.images_path), str(folder)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_killed_three_times_at_random_moments_ends_bit_for_bit_the_same(whole, squares, tmp_path):
    folder = tmp_path / "run"  # `benchmarks/kills.py` does this twenty times
    for victim, epochs in (("trainer", 1), ("worker", 2), ("trainer", 3)):
        process = subprocess.Popen(command_of(squares, folder), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        while not checkpoint_path(folder, epochs).exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(int.from_bytes(os.urandom(2), "big") / 65536 * 0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        worker = children.read_text().split() if victim == "worker" and children.exists() else []
        with contextlib.suppress(ProcessLookupError):  # it has come to its end
            os.kill(int(worker[0]) if worker else process.pid, signal.SIGKILL)
        process.wait(timeout=50)
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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_with_a_bad_loss_is_saved_as_it_was_even_when_that_is_found_steps_later(
    squares, tmp_path, monkeypatch, workers
):
    monkeypatch.setattr("minidet.training.loop.LossLog", lambda *args, **options: LossLog(20))  # as on a GPU
    seen = []

    def spoil(losses):
        return losses | {"loss_box": losses["loss_box"] * float("inf")}

    model = at_forward(tiny_model(), 5, spoil)
    model.register_forward_pre_hook(
        lambda module, inputs: seen.append((inputs[0].clone(), inputs[1])) if module.training else None
    )
    recipe = dataclasses.replace(SMALL, multi_scale=(32, 96), multi_scale_every=1)
    with pytest.raises(RunError) as caught:
        run(tmp_path / "run", squares, recipe, model=model, workers=workers)
    assert len(seen) == 6  # found when the epoch ended
    images, targets = seen[4]
    ids = [target["image_id"] for target in targets]
    assert f"loss_box became inf in epoch 2, iteration 5 (image ids {ids})" in str(caught.value)
    assert f"drawn in {tmp_path / 'run' / 'nan_batch.png'}" in str(caught.value)
    assert str(caught.value).endswith("epoch_0001.pt.")
    saved = load_file(tmp_path / "run" / "nan_batch.safetensors")
    assert torch.equal(saved["images"], images)
    assert saved["image_ids"].tolist() == ids
    assert torch.equal(saved["boxes"], torch.cat([target["boxes"] for target in targets]))
    assert torch.equal(saved["labels"], torch.cat([target["labels"] for target in targets]))
    assert [saved["image"].tolist().count(i) for i in range(4)] == [len(target["labels"]) for target in targets]
    assert (tmp_path / "run" / "nan_batch.png").stat().st_size > 1000


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


def test_a_disk_without_room_for_the_checkpoints_is_found_before_training(squares, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("minidet.training.run_folder.shutil.disk_usage", lambda path: usage._replace(free=2e6))
    # 127,000 weights of 4 bytes, thrice (average, momentum), in 2 + 2 checkpoints.
    with pytest.raises(
        RunError, match=r"has 2 MB left, but the checkpoints of this run need 6 MB.*keep_last \(now 2\)"
    ):
        run(tmp_path / "run", squares)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_found_before_training(squares, tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"nothing can be written there.*--out"):
        run(Path("/proc/minidet/run"), squares)

    def read_only(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("minidet.training.run_folder.tempfile.TemporaryFile", read_only)
    with pytest.raises(RunError, match="Read-only file system"):
        run(tmp_path / "run", squares)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_disk_that_fills_up_ends_the_run_with_one_clear_error(squares, tmp_path, tensorboard):
    # The system refuses what exceeds a limit, in the midst of a file, as it does on a full disk.
    code = PROGRAM.replace("workers=1", f"workers=0, tensorboard={tensorboard}").replace(
        "import sys\n",
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, 900_000))\n",
    )
    code = code.replace("result = ", "from minidet.errors import MinidetError\ntry:\n    result = ")
    code = code.replace("sys.exit(", "except MinidetError as error:\n    sys.exit(f'error: {error}')\nsys.exit(")
    command = [sys.executable, "-c", code, str(squares.images_path), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "epoch_0001.pt: cannot be written (File too large)" in done.stderr
    assert "There is no checkpoint yet." in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


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


# Pictures that cannot be read, workers that die -----------------------------------------------------------------------


def test_a_picture_that_cannot_be_read_stops_the_run_or_is_skipped_and_counted(tmp_path):
    data = write_squares(tmp_path / "data", 12)
    (tmp_path / "data" / "3.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"3\.png"):
        run(tmp_path / "stop", data, cache="none", val_data=None)
    said: list[str] = []
    options = {"cache": "none", "bad_images": "skip", "val_data": None}
    whole = run(tmp_path / "skip", data, log=said.append, **options)
    counts = [row["skipped_pictures"] for row in whole.metrics]
    assert counts[0] > 0  # picture 3 is part of every epoch
    assert counts == sorted(counts) and counts[-1] >= 4
    assert sum("3.png" in line for line in said) == 1
    assert said[-1].endswith(f"{counts[-1]} pictures skipped so far")
    run(tmp_path / "cut", data, model=at_forward(tiny_model(), 5, press_ctrl_c), **options)
    resumed = run(tmp_path / "cut", data, resume=True, **options)
    assert [row["skipped_pictures"] for row in resumed.metrics] == counts
    assert_same_state(latest_checkpoint(tmp_path / "cut"), latest_checkpoint(tmp_path / "skip"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("moment", ["in a step", "between two epochs"])
def test_a_loader_worker_that_dies_ends_the_run_with_the_last_checkpoint_named(
    whole, squares, tmp_path, monkeypatch, moment
):
    def kill(*args):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()

    model = tiny_model()
    if moment == "in a step":
        at_forward(model, 4, kill)
    else:
        monkeypatch.setattr("minidet.training.loop.epoch_line", kill)
    with pytest.raises(
        minidet.MinidetError, match=r"(?s)killed by SIGKILL.*last good checkpoint is .*epoch_000[12]\.pt"
    ):
        run(tmp_path / "run", squares, model=model, workers=1)
    monkeypatch.undo()
    monkeypatch.setattr("minidet.training.loop.save_pictures", lambda *args: None)
    run(tmp_path / "run", squares, resume=True)
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(whole.run_dir))
