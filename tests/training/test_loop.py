"""Training as a whole: what it leaves behind, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import minidet
from minidet.errors import DataError, RunError
from minidet.training.checkpoint import checkpoints, latest_checkpoint, load_checkpoint
from minidet.training.hardware import choose_device, choose_precision
from minidet.training.run_folder import read_metrics
from tests.training.squares import SMALL, assert_same_state, run, tiny_model, write_squares


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Drawing takes longer than training here; the run `whole` is made before this takes effect, and has pictures."""
    monkeypatch.setattr("minidet.training.run.save_pictures", lambda *args: None)


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


def test_another_run_in_the_folder_is_neither_overwritten_nor_resumed(whole, squares):
    with pytest.raises(RunError, match="holds another run already"):
        run(whole.run_dir, squares)
    with pytest.raises(RunError, match=r"recipe\.epochs: the run has 4, now it is 5"):
        run(whole.run_dir, squares, dataclasses.replace(SMALL, epochs=5), resume=True)
    other = minidet.create_model("yolox-tiny", num_classes=2, input_hw=(64, 64), width=0.125, depth=0.1)
    with pytest.raises(RunError, match=r"model\.width: the run has 0\.0625, now it is 0\.125"):
        run(whole.run_dir, squares, model=other, resume=True)


def test_deterministic_mode_lasts_as_long_as_the_run_and_gives_the_same_bits_on_a_cpu(whole, squares, tmp_path):
    seen = []
    model = tiny_model()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(torch.are_deterministic_algorithms_enabled()))
    run(tmp_path / "run", squares, model=model, deterministic=True)
    assert set(seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same_state(latest_checkpoint(tmp_path / "run"), latest_checkpoint(whole.run_dir))
