"""Marking run folders: each forgery is made for real on a real run, and a sound run passes."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minidet
from minidet.cli import main
from minidet.data.augment import Augmentation
from minidet.data.coco import CocoDataset, load_split
from minidet.errors import RunError
from minidet.training.grade import FINDINGS, GradedRun, Rules, format_grades, grade, mark_list, parse_requirements
from minidet.training.run_folder import fingerprint
from tests.training.squares import SMALL, at_forward, press_ctrl_c, run, tiny_model, write_squares

# Steps enough for an AP above zero: large squares of one colour in nearly one place, and no augmentation.
RECIPE = dataclasses.replace(
    SMALL,
    epochs=6,
    batch_size=2,
    base_lr=0.6,
    warmup_epochs=0.5,
    ema_decay=0.5,
    eval_every=3,
    checkpoint_every=100,
    augmentation=Augmentation(mosaic_prob=0, hsv_prob=0, flip_prob=0),
)


def write_data(folder: Path, without_object: int = 0) -> Path:
    """A data set of 8 pictures, both its splits the same; the last ones without their object."""
    for split in ("train", "val"):
        content = json.loads(write_squares(folder / split, 8).annotations_path.read_text())
        for number, row in enumerate(content["annotations"]):
            x, y, side = 6 + number % 4, 9 - number % 3, 40 + number % 5
            row.update(bbox=[x, y, side, side], area=side * side, category_id=1)
            picture = np.full((64, 64, 3), 40, np.uint8)
            picture[y : y + side, x : x + side, 0] = 220
            Image.fromarray(picture).save(folder / split / f"{number + 1}.png")
        content["annotations"] = content["annotations"][: 8 - without_object]
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def train_one(out: Path, data: Path, recipe=RECIPE, seed: int = 0, **options) -> Path:
    """A run whose norms learn their statistics in a few steps."""
    model = tiny_model()
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3
    run(out, load_split(data, "train"), recipe, model, load_split(data, "val"), seed=seed, **options)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def rules(data) -> Rules:
    return Rules(load_split(data, "train"), load_split(data, "val"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    """Two honest runs, of seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: train_one(folder / name, data, seed=seed) for seed, name in enumerate(("anna", "ben"))}


@pytest.fixture
def handed_in(runs, tmp_path) -> Path:
    """A copy of anna's run, to be tampered with."""
    return Path(shutil.copytree(runs["anna"], tmp_path / "handed in"))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_rows(folder: Path, rows: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_row(folder: Path, number: int, **changes) -> None:
    rows = rows_of(folder)
    rows[number].update(changes)
    write_rows(folder, rows)


def change_config(folder: Path, part: str, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config if part == "" else config[part]).update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def graded(folder: Path, rules: Rules = Rules()) -> GradedRun:  # noqa: B008 - frozen
    (result,) = grade([folder], rules)
    assert set(result.names) <= set(FINDINGS)
    return result


def text_of(result: GradedRun, name: str) -> str:
    """The one finding that there must be, and nothing beside it."""
    assert result.names == [name], result.findings
    return "\n".join(finding.text for finding in result.findings)


# ---- sound runs -----------------------------------------------------------------------------------------------------


def test_sound_runs_pass_and_their_weights_reach_what_they_claim(runs, rules):
    results = grade([*runs.values()], rules)
    assert [(result.findings, result.notes) for result in results] == [([], [])] * 2
    for result, folder in zip(results, runs.values(), strict=True):
        last = rows_of(folder)[-1]
        assert last["ap"] > 0.02  # or the other tests would compare nothing with nothing
        assert (result.judged["last"].epoch, result.judged["last"].ap) == (6, last["ap"])
        assert result.judged["last"].measured_ap == pytest.approx(last["ap"], abs=1e-9)
        assert result.judged["last"].measured_ap50 == pytest.approx(last["ap50"], abs=1e-9)
        assert (result.model, result.epochs, result.epochs_done) == ("yolox-tiny", 6, 6)


def test_a_run_whose_best_epoch_is_not_its_last_passes(whole, squares):
    result = graded(whole.run_dir, Rules(squares, squares))
    assert result.findings == []
    assert (result.judged["best"].epoch, result.judged["last"].epoch) == (2, 4)
    assert result.weights["best"] != result.weights["last"]


def test_a_resumed_run_is_fine_and_said_to_be_resumed_and_one_that_was_left_is_unfinished(squares, tmp_path):
    out = tmp_path / "run"
    run(out, squares, model=at_forward(tiny_model(), 5, press_ctrl_c), tensorboard=True)
    left = graded(out, Rules(squares, squares))
    assert "ends after epoch 1 of 4" in text_of(left, "unfinished")
    assert left.notes == ["the run is not whole, so last.safetensors is held against no AP"]
    run(out, squares, resume=True, tensorboard=True)
    result = graded(out, Rules(squares, squares))
    assert result.findings == []
    assert result.notes == ["was stopped and resumed (begun 2 times), which is fine"]


def test_a_schedule_in_iterations_that_leaves_out_empty_pictures_and_cuts_the_last_epoch_passes(tmp_path):
    data = write_data(tmp_path / "data", without_object=3)  # 5 pictures with objects: 3 steps an epoch, not 4
    recipe = dataclasses.replace(
        RECIPE,
        epochs=None,
        schedule="steps",
        warmup_epochs=0,
        final_epochs=0,
        iterations=5,
        warmup_iterations=2,
        steps=(4,),
        schedule_batch=2,
        base_lr=0.05,
        skip_empty=True,
    )
    folder = train_one(tmp_path / "run", data, recipe)
    result = graded(folder, Rules(load_split(data, "train"), load_split(data, "val")))
    assert [row["iteration"] for row in rows_of(folder)] == [3, 5]
    assert (result.findings, result.epochs, result.epochs_done) == ([], 2, 2)
    change_row(folder, 1, lr=0.05)  # as if it had never fallen to a tenth
    assert "epoch 2 has lr 0.05, the recipe gives 0.005" in text_of(graded(folder), "schedule")


def test_a_run_without_validation_pictures_is_whole_but_not_good_enough(data, rules, tmp_path):
    folder = tmp_path / "run"
    run(folder, load_split(data, "train"), dataclasses.replace(SMALL, epochs=1, final_epochs=0), val_data=None)
    assert graded(folder).findings == []
    assert "AP was not found out" in text_of(graded(folder, Rules(min_ap=0.1)), "low AP")
    assert "names no validation pictures" in text_of(graded(folder, rules), "data")


def test_a_run_from_before_fingerprints_is_compared_by_classes_and_numbers(handed_in, rules):
    config = json.loads((handed_in / "config.json").read_text())
    del config["fingerprints"], config["recipe"]["nesterov"], config["model"]["box_weight"]
    del config["model"]["nms_free"], config["model"]["selector_assigner"]
    (handed_in / "config.json").write_text(json.dumps(config))
    result = graded(handed_in, rules)
    assert result.findings == []
    assert ["no fingerprint" in note for note in result.notes] == [True]


def test_a_selector_with_a_rule_of_another_kind_than_the_default_passes(squares, tmp_path):
    recipe = dataclasses.replace(SMALL, epochs=1, final_epochs=0)
    changes = {"nms_free": True, "selector_assigner": minidet.assign.SimOTA()}
    run(tmp_path / "run", squares, recipe, tiny_model(**changes), val_data=None)
    assert graded(tmp_path / "run").findings == []
    run(tmp_path / "run", squares, recipe, tiny_model(**changes), val_data=None, resume=True)  # nor is this refused


# ---- metrics that were changed --------------------------------------------------------------------------------------


def test_a_raised_ap_is_found_by_measuring(handed_in, rules):
    claimed = rows_of(handed_in)[-1]["ap"]
    change_row(handed_in, -1, ap=claimed + 0.1)
    assert graded(handed_in).findings == []  # without data it is taken on trust
    text = text_of(graded(handed_in, rules), "AP")
    assert f"AP {claimed + 0.1:.4f} is claimed, {claimed:.4f} is reached" in text
    assert "AP50" not in text
    change_row(handed_in, -1, ap=claimed + 0.004)  # as another processor might round
    assert graded(handed_in, rules).findings == []
    assert graded(handed_in, dataclasses.replace(rules, tolerance=0.001)).names == ["AP"]


def test_an_ap50_that_was_raised_alone_is_found_too(handed_in, rules):
    change_row(handed_in, -1, ap50=0.9)
    assert "AP50 0.9000 is claimed" in text_of(graded(handed_in, rules), "AP")


def test_a_deleted_epoch_is_named(handed_in):
    rows = rows_of(handed_in)
    write_rows(handed_in, rows[:2] + rows[3:])
    result = graded(handed_in)
    assert "epoch 3 is missing" in text_of(result, "epochs")
    assert result.epochs_done == 5
    write_rows(handed_in, rows[:5])
    text = text_of(graded(handed_in), "unfinished")
    assert "ends after epoch 5 of 6" in text
    assert "--resume" in text


def test_doubled_and_exchanged_epochs_are_named(handed_in):
    rows = rows_of(handed_in)
    write_rows(handed_in, [*rows[:2], *rows[1:]])
    assert "epoch 2 stands there 2 times" in text_of(graded(handed_in), "epochs")
    write_rows(handed_in, [rows[1], rows[0], *rows[2:]])
    assert "out of order" in text_of(graded(handed_in), "epochs")
    change_row(handed_in, 0, epoch=-1)
    assert "epoch -1 is none of the 6" in text_of(graded(handed_in), "epochs")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"losses": {"loss_box": float("nan")}}, "epoch 2 has nan for loss_box"),
        ({"losses": {"loss_box": float("inf"), "loss_class": 1.0}}, "epoch 2 has inf for loss_box"),
        ({"losses": {}}, "epoch 2 has {} for losses"),
        ({"losses": "low"}, "epoch 2 has 'low' for losses"),
        ({"losses": {"loss_box": -1.0}}, "epoch 2 has -1 for loss_box"),
        ({"seconds": None}, "epoch 2 has None for seconds"),
        ({"seconds": 10**400}, "epoch 2 has 1000"),
    ],
)
def test_figures_that_cannot_be_are_named(handed_in, changes, expected):
    change_row(handed_in, 1, **changes)
    assert expected in text_of(graded(handed_in), "not finite")


def test_an_ap_that_cannot_be_is_named(handed_in, rules):
    change_row(handed_in, -1, ap=float("nan"))
    assert "epoch 6 has nan for ap" in text_of(graded(handed_in), "not finite")
    change_row(handed_in, -1, ap=41.5)
    assert "epoch 6 has 41.5 for ap" in text_of(graded(handed_in), "not finite")
    assert graded(handed_in, rules).names == ["not finite", "AP"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lr": 0.02}, "epoch 2 has lr 0.02, the recipe gives"),
        ({"iteration": 9}, "epoch 2 has iteration 9, the recipe gives 8"),  # 8 pictures in batches of 2
        ({"strong_augmentation": False}, "epoch 2 has strong_augmentation False, the recipe gives True"),
        ({"ap": 0.5}, "epoch 2 was evaluated, against the recipe"),
    ],
)
def test_figures_that_the_recipe_does_not_lead_to_are_named(handed_in, changes, expected):
    change_row(handed_in, 1, **changes)
    result = graded(handed_in)
    assert expected in next(finding.text for finding in result.findings if finding.name == "schedule")


def test_a_removed_evaluation_is_named(handed_in):
    rows = rows_of(handed_in)
    del rows[2]["evaluation_seconds"]
    rows[2]["ap"] = None
    write_rows(handed_in, rows)
    assert "epoch 3 was not evaluated, against the recipe" in text_of(graded(handed_in), "schedule")


def test_the_learning_rate_is_that_of_the_papers_cosine(handed_in):
    # 24 steps: half an epoch of warm-up, the last epoch flat. The last step of epoch 2 follows 7 others, of which 2
    # are warm-up, on the way through 18 steps of cosine.
    top = 0.6 / 64 * 2
    rate = 0.05 * top + 0.95 * top * (1 + np.cos(np.pi * (7 - 2) / (24 - 2 - 4))) / 2
    change_row(handed_in, 1, lr=rate)
    assert graded(handed_in).findings == []
    change_row(handed_in, 1, lr=rate * 1.0001)
    assert graded(handed_in).names == ["schedule"]


def test_a_file_that_breaks_off_is_named(handed_in):
    path = handed_in / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    result = graded(handed_in)
    assert result.names == ["folder", "unfinished"]
    assert "breaks off within a line" in result.findings[0].text
    path.write_bytes(whole.replace(b'{"epoch": 2', b'"epoch": 2'))
    assert "line 2 is not JSON" in graded(handed_in).findings[0].text
    path.write_bytes(b"")
    assert "ends after epoch 0 of 6" in graded(handed_in).findings[0].text
    path.unlink()
    assert "metrics.jsonl: there is no such file" in graded(handed_in).findings[0].text


# ---- config.json that was changed -----------------------------------------------------------------------------------


def test_a_config_that_was_made_to_look_as_required_does_not_fit_the_figures(handed_in):
    change_config(handed_in, "recipe", base_lr=0.16)
    rules = Rules(require=parse_requirements(["recipe.base_lr=0.16"]))
    assert "has lr" in text_of(graded(handed_in, rules), "schedule")
    change_config(handed_in, "recipe", base_lr=0.6, epochs=4)
    assert graded(handed_in).names == ["epochs", "schedule"]


def test_a_config_of_another_model_does_not_fit_the_weights(handed_in):
    change_config(handed_in, "model", depth=0.33, head="coupled")
    text = text_of(graded(handed_in), "weights")
    assert "best.safetensors: is not of the model of config.json: depth is 0.1, not 0.33; head is 'decoupled'" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not valid JSON"),
        (b"[]", "has no model, recipe, data, seed"),
        (b'{"model": {}, "recipe": {}, "data": {}, "seed": true}', "has no seed"),
        (b'{"model": {}, "recipe": {}, "data": {}, "seed": 0}', "its model cannot be understood"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * 1_000_001, "far more than a run writes"),
    ],
)
def test_a_config_that_is_none_is_named(handed_in, content, expected):
    (handed_in / "config.json").write_bytes(content)
    assert expected in text_of(graded(handed_in), "folder")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"momentum": "much"}, "momentum is 'much'"),
        ({"tricks": 1}, "unknown fields (tricks)"),
        ({"augmentation": {"rain": 1}}, "rain"),
        ({"augmentation": 3}, "augmentation is 3"),
    ],
)
def test_a_recipe_that_is_none_is_named(handed_in, changes, expected):
    change_config(handed_in, "recipe", **changes)
    assert expected in text_of(graded(handed_in), "folder")


# ---- weights that were changed --------------------------------------------------------------------------------------


def test_weights_of_another_run_do_not_reach_the_ap_that_is_claimed(runs, handed_in, rules):
    for name in ("best.safetensors", "last.safetensors"):
        shutil.copy(runs["ben"] / name, handed_in / name)
    assert graded(handed_in).findings == []  # without data and without ben's folder nothing tells
    result = graded(handed_in, rules)
    anna, ben = (rows_of(runs[name])[-1]["ap"] for name in ("anna", "ben"))
    assert abs(anna - ben) > 0.01
    text = text_of(result, "AP")
    assert f"best.safetensors, epoch 6 of metrics.jsonl: AP {anna:.4f} is claimed, {ben:.4f} is reached" in text
    assert "last.safetensors, epoch 6" in text
    both = grade([handed_in, runs["ben"]], Rules())
    assert [result.names for result in both] == [["copy"], ["copy"]]
    assert "weights are those of" in both[0].findings[0].text
    assert "while figures differ: one is a copy" in both[0].findings[0].text


def test_one_exchanged_file_of_two_that_must_be_equal_is_seen_without_data(runs, handed_in):
    shutil.copy(runs["ben"] / "best.safetensors", handed_in / "best.safetensors")
    assert "best.safetensors and last.safetensors hold the same weights after a run" in text_of(
        graded(handed_in), "weights"
    )


def test_weights_that_cannot_be_loaded_are_named(handed_in, rules):
    path = handed_in / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "last.safetensors: is not a whole safetensors file" in text_of(graded(handed_in, rules), "weights")
    path.unlink()
    assert "last.safetensors: there is no such file" in text_of(graded(handed_in, rules), "weights")
    minidet.save_weights(minidet.create_model("yolox-nano", 2), path)
    assert "name is 'yolox-nano', not 'yolox-tiny'" in text_of(graded(handed_in, rules), "weights")


def test_an_input_that_fills_the_memory_is_not_computed(handed_in, rules):
    model = minidet.load_model(handed_in / "best.safetensors")
    model.config = dataclasses.replace(model.config, input_hw=(16384, 16384))
    for name in ("best", "last"):
        minidet.save_weights(model, handed_in / f"{name}.safetensors")
    change_config(handed_in, "model", input_hw=[16384, 16384])
    assert "16384 x 16384 pixels, too large to be marked" in text_of(graded(handed_in, rules), "weights")


# ---- copies ---------------------------------------------------------------------------------------------------------


def test_a_copied_folder_is_named_in_both(runs, handed_in):
    anna, ben, copy = grade([runs["anna"], runs["ben"], handed_in], Rules())
    assert ben.findings == []
    text = text_of(copy, "copy")
    assert f"weights and figures and the seconds that epochs took are those of {runs['anna']}: one is a copy" in text
    assert str(handed_in) in text_of(anna, "copy")


def test_a_copy_with_other_figures_fewer_epochs_and_other_weights_is_known_by_its_times(runs, handed_in):
    rows = rows_of(handed_in)
    write_rows(handed_in, [{**row, "losses": {"loss_box": 1.0}} for row in rows[:4]])
    for name in ("best.safetensors", "last.safetensors"):
        shutil.copy(runs["ben"] / name, handed_in / name)
    result = grade([runs["anna"], handed_in], Rules())[1]
    assert result.names == ["unfinished", "copy"]
    assert f": the seconds that epochs took are those of {runs['anna']}" in result.findings[1].text


def test_weights_that_were_saved_anew_are_still_known_as_a_copy(runs, handed_in):
    for name in ("best", "last"):
        path = handed_in / f"{name}.safetensors"
        old = path.read_bytes()
        model = minidet.load_model(path)
        while path.read_bytes() == old:  # the order of the header's entries is open
            minidet.save_weights(model, path)
    assert [result.names for result in grade([runs["anna"], handed_in], Rules())] == [["copy"], ["copy"]]


def test_equal_numbers_with_other_times_may_also_be_two_runs_of_one_seed(runs, handed_in):
    rows = [{**row, "seconds": row["seconds"] + 1} for row in rows_of(handed_in)]
    write_rows(handed_in, rows)
    text = text_of(grade([runs["anna"], handed_in], Rules())[1], "copy")
    assert "two runs of the same settings and seed on like processors" in text
    assert "--seed of their own" in text
    write_rows(handed_in, rows[:4])  # one of them was stopped
    assert "two runs of the same settings" in grade([runs["anna"], handed_in], Rules())[1].findings[-1].text
    write_rows(handed_in, [{**row, "skipped_pictures": 1} for row in rows])
    text = text_of(grade([runs["anna"], handed_in], Rules())[1], "copy")
    assert "weights are those of" in text
    assert "two runs" not in text


def test_a_folder_named_twice_is_no_copy_of_itself(runs):
    assert len(grade([runs["anna"], runs["anna"]], Rules())) == 1


# ---- data -----------------------------------------------------------------------------------------------------------


def test_training_on_other_data_is_named(runs, data, tmp_path):
    other = Path(shutil.copytree(data, tmp_path / "other"))
    path = other / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][3]["bbox"][0] += 1
    path.write_text(json.dumps(content))
    text = text_of(graded(runs["anna"], Rules(load_split(other, "train"), load_split(other, "val"))), "data")
    assert "its train data are not those of" in text
    assert "the fingerprint differs" in text
    content["images"].pop()
    content["annotations"].pop()
    content["categories"][0]["name"] = "crimson"
    path.write_text(json.dumps(content))
    text = text_of(graded(runs["anna"], Rules(load_split(other, "train"))), "data")
    assert "classes ['red', 'green'] instead of ['crimson', 'green']; 8 pictures instead of 7" in text


def test_the_same_data_written_down_otherwise_have_the_same_fingerprint(data, tmp_path):
    content = json.loads((data / "annotations" / "instances_train.json").read_text())
    before = fingerprint(load_split(data, "train"))
    shuffle = random.Random(1).shuffle
    shuffle(content["images"])
    shuffle(content["annotations"])
    for category in content["categories"]:
        category["id"] += 40
    for row in content["annotations"]:
        row["category_id"] += 40
        row["bbox"] = [each + 1e-6 for each in row["bbox"]]
    (tmp_path / "a.json").write_text(json.dumps(content, indent=3))
    assert fingerprint(CocoDataset(tmp_path / "a.json", data / "train")) == before
    content["annotations"][0]["category_id"] = 42
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert fingerprint(CocoDataset(tmp_path / "a.json", data / "train")) != before


# ---- what the teacher asks for --------------------------------------------------------------------------------------


def test_required_settings_are_found_by_their_key_or_their_last_name(runs):
    words = ["model=yolox-tiny", "epochs=6", "recipe.momentum=0.9", "input_hw=[64,64]", "seed=0", "precision=fp32"]
    words += ["model.assigner.type=SimOTA", "recipe.clip_grad_norm=null", "nesterov=true", "train_images=8"]
    assert graded(runs["anna"], Rules(require=parse_requirements(words))).findings == []
    result = graded(runs["anna"], Rules(require=parse_requirements(["model=yolox-nano", "epochs=20", "nesterov=1"])))
    assert [finding.name for finding in result.findings] == ["setting"] * 3
    assert "model.name is 'yolox-tiny', but model must be 'yolox-nano'" in result.findings[0].text


def test_a_required_setting_that_there_is_not_is_refused_with_the_choices(runs):
    with pytest.raises(RunError, match=r"--require recipe\.base_ler: .* recipe\.base_lr, "):
        grade([runs["anna"]], Rules(require=parse_requirements(["recipe.base_ler=0.1"])))
    with pytest.raises(RunError, match="write KEY=VALUE"):
        parse_requirements(["runs/anna"])


def test_an_ap_that_is_too_low_is_named_as_claimed_or_as_measured(handed_in, rules):
    ap = rows_of(handed_in)[-1]["ap"]
    assert graded(handed_in, dataclasses.replace(rules, min_ap=ap - 0.001)).findings == []
    assert f"AP is {ap:.3f} (measured), but at least 0.900" in text_of(
        graded(handed_in, dataclasses.replace(rules, min_ap=0.9)), "low AP"
    )
    change_row(handed_in, -1, ap=0.95)
    assert graded(handed_in, Rules(min_ap=0.9)).findings == []
    assert "AP50 is" in text_of(graded(handed_in, Rules(min_ap50=0.99)), "low AP")
    assert graded(handed_in, dataclasses.replace(rules, min_ap=0.9)).names == ["AP", "low AP"]
    with pytest.raises(RunError, match="--min-ap is 40; it lies between 0 and 1"):
        Rules(min_ap=40)


# ---- what somebody may hand in --------------------------------------------------------------------------------------


def test_no_broken_folder_ends_the_others(runs, rules, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run.zip").write_bytes(b"PK")
    names = ["missing", "empty", "run.zip"]
    if hasattr(os, "mkfifo"):
        names.append("pipe")
        (tmp_path / "pipe").mkdir()
        os.mkfifo(tmp_path / "pipe" / "config.json")  # reading it would wait for ever
    results = grade([*(tmp_path / name for name in names), runs["anna"]], rules)
    assert [result.names for result in results] == [["folder"]] * len(names) + [[]]

    def explode(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr("minidet.training.grade.evaluate", explode)
    text = text_of(grade([runs["anna"], tmp_path / "empty"], rules)[0], "error")
    assert "looking at it failed (MemoryError: no room)" in text


def test_a_link_to_a_file_elsewhere_is_not_followed(runs, handed_in):
    path = handed_in / "best.safetensors"
    path.unlink()
    try:
        path.symlink_to(runs["ben"] / "best.safetensors")
    except OSError:
        pytest.skip("links cannot be made here")
    assert "is a link, so it is not opened" in text_of(graded(handed_in), "weights")


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_programs_in_place_of_weights_and_checkpoints_do_not_run(handed_in, rules, tmp_path):
    marker = tmp_path / "it ran"
    payload = pickle.dumps(Payload(marker))
    for path in [*handed_in.glob("checkpoints/*.pt"), handed_in / "best.safetensors", handed_in / "last.safetensors"]:
        path.write_bytes(payload)
    assert graded(handed_in, rules).names == ["weights"]
    assert not marker.exists()
    pickle.loads(payload)  # it would have worked
    assert marker.exists()


def test_words_of_others_neither_move_the_cursor_nor_become_formulas(handed_in, tmp_path):
    change_config(handed_in, "recipe", tricks=1, **{"\x1b[31mred": 1})
    folder = handed_in.rename(tmp_path / "=1+1\x1b[2J") if os.name != "nt" else handed_in
    results = grade([Path(os.path.relpath(folder, tmp_path)), folder], Rules())
    text = format_grades(results) + json.dumps([result.to_dict() for result in results], ensure_ascii=False)
    assert "\x1b" not in text
    assert "\\x1b[31mred" in text
    rows = list(csv.reader(mark_list(results).decode("utf-8-sig").splitlines()))
    assert all(cell[:1] not in set("=+-@") for row in rows for cell in row)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_line_each_and_writes_a_mark_list(runs, handed_in, data, tmp_path, capsys):
    change_row(handed_in, -1, ap=0.99)
    words = ["--data", data, "--require", "model=yolox-tiny", "epochs=6", "--device", "cpu"]
    assert main(["grade", *map(str, [*runs.values(), *words])]) == 0
    out = capsys.readouterr().out
    assert [line.split()[-1] for line in out.splitlines()[1:3]] == ["fine", "fine"]
    assert out.endswith("2 runs: 2 fine, 0 with findings\n")

    files = ["--json", tmp_path / "marks.json", "--csv", tmp_path / "marks.csv"]
    assert main(["grade", *map(str, [runs["ben"], handed_in, tmp_path / "nobody", *words, *files])]) == 1
    captured = capsys.readouterr()
    assert "[2/3]" in captured.err
    assert "AP: " in captured.out
    assert "3 runs: 1 fine, 2 with findings" in captured.out
    marks = json.loads((tmp_path / "marks.json").read_text())
    assert [(mark["fine"], [each["name"] for each in mark["findings"]]) for mark in marks] == [
        (True, []),
        (False, ["AP", "AP"]),  # of the best and of the last weights
        (False, ["folder"]),
    ]
    table = list(csv.DictReader((tmp_path / "marks.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [row["fine"] for row in table] == ["yes", "no", "no"]
    assert float(table[1]["ap_claimed"]) == 0.99
    assert float(table[1]["ap_measured"]) == pytest.approx(rows_of(runs["anna"])[-1]["ap"], abs=1e-4)


def test_without_data_the_command_says_what_was_not_looked_at(runs, capsys):
    assert main(["grade", str(runs["anna"])]) == 0
    assert "AP was not measured and the data were not compared: give --data." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "name at least one run folder"),
        (["--require", "epochs=6", "{run}"], "Folders go before the options"),
        (["{run}", "--require", "epoch=6"], "recipe.epochs"),
        (["{run}", "--min-ap", "40"], "--min-ap is 40.0; it lies between 0 and 1"),
        (["{run}", "--tolerance", "nan"], "--tolerance is nan"),
        (["{run}", "--data", "{run}"], "there is no split 'train'"),
        (["{run}", "--device", "abacus"], "device 'abacus' is not known"),
    ],
)
def test_bad_usage_is_an_error_of_the_command(runs, words, expected, capsys):
    assert main(["grade", *(word.format(run=runs["anna"]) for word in words)]) == 2
    assert expected in capsys.readouterr().err
