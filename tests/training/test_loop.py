"""Training as a whole: what it leaves behind, and what it survives."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import minidet
from minidet.errors import DataError, RunError
from minidet.training import checkpoint
from minidet.training.checkpoint import checkpoints, latest_checkpoint, load_checkpoint
from minidet.training.hardware import choose_device, choose_precision
from minidet.training.loop import TrainingResult, train
from minidet.training.run_folder import read_metrics
from tests.training.squares import SMALL, assert_same_state, tiny_model, write_squares

REPOSITORY = Path(__file__).resolve().parents[2]


def run(folder: Path, data, recipe=SMALL, model=None, val_data="same", **options) -> TrainingResult:
    """Train the tiny model on the CPU, silently."""
    model = model or tiny_model()
    torch.manual_seed(5)
    random.seed(5)
    options = {
        "device": "cpu",
        "workers": 0,
        "tensorboard": False,
        "progress": False,
        "log": lambda text: None,
    } | options
    val_data = data if val_data == "same" else val_data
    return train(model, recipe, data, val_data, folder, **options)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Drawing takes longer than training here; the run `whole` is made before this takes effect, and has pictures."""
    monkeypatch.setattr("minidet.training.loop.save_pictures", lambda *args: None)


@pytest.fixture(scope="module")
def whole(squares, tmp_path_factory) -> TrainingResult:
    """A run that nothing interrupts: 4 epochs of 3 steps, evaluated after the second and the last."""
    return run(tmp_path_factory.mktemp("whole") / "run", squares, tensorboard=True)


def at_forward(model, number: int, action):
    """Do something in the midst of the n-th training step of a model."""
    calls = []

    def hook(module, inputs, output):
        if module.training:
            calls.append(1)
            if len(calls) == number:
                return action(output)
        return None

    model.register_forward_hook(hook)
    return model


def press_ctrl_c(output):
    signal.raise_signal(signal.SIGINT)


# What a run leaves behind ---------------------------------------------------------------------------------------------


def test_a_run_leaves_everything_that_its_folder_promises(whole):
    names = {str(path.relative_to(whole.run_dir)) for path in whole.run_dir.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("tensorboard")}
    assert len(events) == 1
    assert names - events == {
        "config.json",
        "metrics.jsonl",
        "curves.png",
        "predictions.png",
        "best.safetensors",
        "last.safetensors",
        *(f"checkpoints/{path.name}" for path in checkpoints(whole.run_dir)),
    }
    assert {"checkpoints/epoch_0003.pt", "checkpoints/epoch_0004.pt"} <= names
    assert not whole.interrupted
    assert whole.evaluation.num_images == 12


def test_the_metrics_have_one_line_an_epoch_and_l1_only_in_the_closing_phase(whole):
    rows = read_metrics(whole.run_dir / "metrics.jsonl")
    assert rows == whole.metrics
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["iteration"] for row in rows] == [3, 6, 9, 12]
    assert [row["ap"] is not None for row in rows] == [False, True, False, True]
    assert ["loss_l1" in row["losses"] for row in rows] == [False, False, True, True]  # final_epochs + 1 of them
    assert [row["strong_augmentation"] for row in rows] == [True, True, False, False]
    assert all(row["positives_per_object"] > 0 for row in rows)
    # Epoch 1 is all warm-up, and the rate of step 3 is that set after step 2: 0.08 * 4/64 * (2/3)^2.
    assert rows[0]["lr"] == pytest.approx(0.08 * 4 / 64 * 4 / 9)
    assert rows[3]["lr"] == pytest.approx(0.08 * 4 / 64 * 0.05)


def test_the_configuration_of_a_run_is_written_down_in_numbers(whole):
    config = json.loads((whole.run_dir / "config.json").read_text())
    assert config["model"]["name"] == "yolox-tiny"
    assert config["model"]["class_names"] == ["red", "green"]
    assert config["recipe"]["augmentation"]["mosaic_scale"] == [0.8, 1.2]
    assert config["data"] == {"class_names": ["red", "green"], "train_images": 12, "val_images": 12}
    assert config["precision"] == "fp32"
    assert set(config["versions"]) == {"python", "torch", "torchvision"}


def test_the_kept_weights_are_the_averaged_ones_and_load_as_a_model(whole):
    state = load_checkpoint(whole.run_dir / "checkpoints" / "epoch_0004.pt")
    model = minidet.load_model(whole.run_dir / "last.safetensors")
    assert model.class_names == ["red", "green"]
    assert all(torch.equal(value, state["ema"]["model"][key]) for key, value in model.state_dict().items())
    assert not all(torch.equal(value, state["model"][key]) for key, value in model.state_dict().items())
    assert minidet.load_model(whole.run_dir / "best.safetensors").num_classes == 2


def test_training_lowers_the_losses_also_without_validation_data(squares, tmp_path):
    recipe = dataclasses.replace(SMALL, epochs=20, base_lr=0.32, checkpoint_every=20)
    result = run(tmp_path / "run", squares, recipe, val_data=None)
    first, last = (row["losses"] for row in (result.metrics[0], result.metrics[-1]))
    assert sum(last.values()) - last["loss_l1"] < 0.75 * sum(first.values())
    assert [path.name for path in checkpoints(result.run_dir)] == ["epoch_0020.pt"]
    assert result.evaluation is None
    assert result.best_ap is None


def test_the_same_seed_gives_the_same_run_with_any_number_of_workers(whole, squares, tmp_path):
    run(tmp_path / "run", squares, workers=2)
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(whole.run_dir))


def test_every_choice_of_the_recipe_can_be_made_at_once(squares, tmp_path):
    recipe = dataclasses.replace(
        SMALL, epochs=2, multi_scale=(32, 96), multi_scale_every=1, clip_grad_norm=0.1, keep_last=1, warmup_epochs=0.5
    )
    result = run(tmp_path / "run", squares, recipe, precision="bf16", channels_last=False)
    assert len(result.metrics) == 2
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["epoch_0002.pt"]


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
from tests.training.test_loop import run
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


def test_another_run_in_the_folder_is_neither_overwritten_nor_resumed(whole, squares):
    with pytest.raises(RunError, match="holds another run already"):
        run(whole.run_dir, squares)
    with pytest.raises(RunError, match=r"recipe\.epochs: the run has 4, now it is 5"):
        run(whole.run_dir, squares, dataclasses.replace(SMALL, epochs=5), resume=True)
    other = minidet.create_model("yolox-tiny", num_classes=2, input_hw=(64, 64), width=0.125, depth=0.1)
    with pytest.raises(RunError, match=r"model\.width: the run has 0\.0625, now it is 0\.125"):
        run(whole.run_dir, squares, model=other, resume=True)


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


# What cannot be trained -----------------------------------------------------------------------------------------------


def test_a_model_for_other_classes_is_refused_before_anything_is_written(squares, tmp_path):
    model = minidet.create_model("yolox-nano", num_classes=80)
    with pytest.raises(RunError, match=r"made for 80 classes, but .*annotations\.json has 2 \(red, green\)"):
        run(tmp_path / "run", squares, model=model)
    assert not (tmp_path / "run").exists()


def test_validation_data_with_other_classes_are_refused(squares, tmp_path):
    other = write_squares(tmp_path / "other", 2)
    other.class_names = ["red", "blue"]
    with pytest.raises(RunError, match=r"\['red', 'blue'\] are not those of .*\['red', 'green'\]"):
        run(tmp_path / "run", squares, val_data=other)


def test_a_data_set_without_any_box_is_refused_and_leaves_no_folder(tmp_path):
    data = write_squares(tmp_path / "data", 4)
    content = json.loads(data.annotations_path.read_text())
    data.annotations_path.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(RunError, match=r"annotations\.json: no image has a box"):
        run(tmp_path / "run", type(data)(data.annotations_path, data.images_path))
    assert not (tmp_path / "run").exists()


def test_images_without_boxes_are_trained_with_like_others(tmp_path):
    data = write_squares(tmp_path / "data", 5)
    content = json.loads(data.annotations_path.read_text())
    data.annotations_path.write_text(json.dumps(content | {"annotations": content["annotations"][:1]}))
    data = type(data)(data.annotations_path, data.images_path)
    result = run(tmp_path / "run", data, dataclasses.replace(SMALL, epochs=1, batch_size=2))
    assert [row["iteration"] for row in result.metrics] == [3]


def test_an_image_that_cannot_be_read_is_named_before_the_folder_is_claimed(tmp_path):
    data = write_squares(tmp_path / "data", 4)
    (tmp_path / "data" / "3.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"3\.png"):
        run(tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_devices_and_precisions_that_are_not_there_are_refused_by_name():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(RunError, match=r"'gpu' is not known\. Here are: auto, .*cpu"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        assert choose_device("auto").type in ("cpu", "mps")
        with pytest.raises(RunError, match="'cuda' is not on this machine"):
            choose_device("cuda")
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == "fp32"
    with pytest.raises(RunError, match="fp16 needs a CUDA GPU"):
        choose_precision("fp16", cpu)
    with pytest.raises(RunError, match="'half' is not known"):
        choose_precision("half", cpu)


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
