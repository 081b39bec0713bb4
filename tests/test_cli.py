"""The command line, as it is typed: what it prints, what it leaves behind, how it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

import minidet
from minidet.assign import ATSS, BestAnchor, SimOTA
from minidet.cli import Train, change_recipe, find_anchors, find_images, main, picture_names
from minidet.data.coco import load_split
from minidet.errors import MinidetError
from minidet.files import read_json
from minidet.training.recipe import RECIPES


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A small shapes data set: 12 pictures to learn from, 4 to be judged by."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    command = ["data", "shapes", str(folder), "--train", "12", "--val", "4", "--test", "0", "--image-hw", "96", "128"]
    assert main([*command, "--objects", "1", "3"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """One epoch on it."""
    out = tmp_path_factory.mktemp("runs") / "one"
    assert main(train_command(shapes, out)) == 0
    return out


def train_command(shapes, out, *more):
    size = ["--input-size", "96", "128", "--epochs", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu"]
    return ["train", str(shapes), "--out", str(out), *size, *more]


def fails(capsys, *command) -> str:
    """Run a command that must fail with exit code 2, and return its one error."""
    assert main([str(word) for word in command]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_models_lists_every_variant_with_its_published_figures(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:15]] == minidet.list_models()
    assert lines[1].split()[1:7] == ["912,159", "1.08", "416", "x", "416", "25.8"]
    assert lines[9].split()[:7] == ["yolof-r50-c5", "43,890,601", "209", "800", "x", "1333", "37.7"]


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["data"],
        ["data", "shapes"],
        ["train"],
        ["ablate"],
        ["grade"],
        ["eval"],
        ["predict"],
        ["import-official"],
        ["demo"],
    ],
)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: minidet" in text
    assert "{None}|{None}" not in text


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "minidet", "eval"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: give either --weights and --data, or --detections and --annotations"


def test_training_leaves_a_model_curves_and_pictures(run, capsys):
    assert {
        "config.json",
        "metrics.jsonl",
        "curves.png",
        "predictions.png",
        "best.safetensors",
        "last.safetensors",
    } <= {path.name for path in run.iterdir()}
    model = minidet.load_model(run / "best.safetensors")
    assert model.class_names[0] == "circle"
    assert model.input_hw == (96, 128)


def test_a_folder_with_another_run_is_refused_and_the_same_run_resumed(run, shapes, capsys):
    assert "resume" in fails(capsys, *train_command(shapes, run))
    assert "epochs" in fails(capsys, *train_command(shapes, run, "--resume", "--set", "base_lr=0.5", "epochs=3"))
    assert main(train_command(shapes, run, "--resume")) == 0  # finished already


def test_a_yolof_is_trained_with_another_rule_from_imagenet_weights_and_judged_by_its_own_thresholds(
    shapes, tmp_path, capsys
):
    imagenet = resnet18().state_dict()
    torch.save(imagenet, tmp_path / "resnet18.pth")
    words = ["--model", "yolof-r18-c5", "--assigner", "atss", "--backbone-weights", str(tmp_path / "resnet18.pth")]
    assert main(train_command(shapes, tmp_path / "run", *words, "--set", "base_lr=1e-9")) == 0
    model = minidet.load_model(tmp_path / "run" / "last.safetensors")
    assert model.config.assigner == ATSS()
    torch.testing.assert_close(model.backbone.c4[0].conv1.weight, imagenet["layer3.0.conv1.weight"])
    assert (model.score_threshold, model.nms_threshold) == (0.05, 0.6)
    rows = tmp_path / "rows.json"
    command = ["eval", "--weights", tmp_path / "run" / "last.safetensors", "--data", shapes, "--save-detections", rows]
    assert main([str(word) for word in command]) == 0
    assert all(row["score"] > 0.05 for row in read_json(rows))
    assert main([str(word) for word in [*command, "--score-threshold", "0"]]) == 0
    assert len(read_json(rows)) > 0


def test_a_yolox_can_have_yolov3s_head_and_a_yolof_cannot(shapes):
    data = load_split(shapes, "train")
    assert Train(shapes, head="coupled").make_model(data).config.head == "coupled"
    assert Train(shapes).make_model(data).config.head == "decoupled"
    with pytest.raises(MinidetError, match="yolof-r18-c5 has no setting 'head'"):
        Train(shapes, model="yolof-r18-c5", head="coupled").make_model(data)


def test_a_yolox_can_stand_on_a_rung_of_the_road_map_and_a_yolof_cannot(shapes):
    data = load_split(shapes, "train")
    model = Train(shapes, rung="baseline", input_size=(64, 96)).make_model(data)
    assert (model.config.head, model.config.assigner) == ("coupled", BestAnchor())
    assert model.config.anchors == find_anchors(data, (64, 96))
    other = Train(shapes, rung="baseline", head="decoupled", assigner="simota", input_size=(64, 96)).make_model(data)
    assert (other.config.head, other.config.assigner, len(other.config.anchors)) == ("decoupled", SimOTA(), 9)
    assert Train(shapes, rung="nms-free").make_model(data).config.nms_free
    with pytest.raises(MinidetError, match="--rung baseline: .* yolof-r18-c5 is none"):
        Train(shapes, model="yolof-r18-c5", rung="baseline").make_model(data)


def test_the_same_weights_are_judged_and_used_with_nms_and_without(shapes, tmp_path, capsys):
    model = minidet.create_model("yolox-nano", 8, class_names=load_split(shapes, "train").class_names, nms_free=True)
    model.set_input_size((96, 128))
    minidet.save_weights(model, tmp_path / "free.safetensors")
    found = {}
    for option in ("0", "off", None):
        rows = tmp_path / "rows.json"
        command = ["eval", "--weights", tmp_path / "free.safetensors", "--data", shapes, "--save-detections", rows]
        command += ["--score-threshold", "0", "--device", "cpu", *(["--nms-threshold", option] if option else [])]
        assert main([str(word) for word in command]) == 0
        found[option] = read_json(rows)
    assert found["off"] == found[None]
    assert len(found["off"]) == 4 * 100  # the best hundred of each picture
    assert found["0"] != found["off"]  # no two boxes of a class may touch
    picture = next((shapes / "val").iterdir())
    predicted = []
    for option in ([], ["--nms-threshold", "off"], ["--nms-threshold", "0"]):
        command = ["predict", picture, "--weights", tmp_path / "free.safetensors", "--out", tmp_path / "found"]
        assert main([str(word) for word in [*command, "--score-threshold", "0", "--no-pictures", *option]]) == 0
        predicted.append(read_json(tmp_path / "found" / "predictions.json"))
    assert predicted[0] == predicted[1] != predicted[2]  # a model without NMS stays without
    capsys.readouterr()
    assert "lies between 0 and 1" in fails(capsys, *command, "--nms-threshold", "7")


def test_imagenet_weights_are_refused_for_a_model_without_a_resnet(shapes, tmp_path, capsys):
    words = ["--model", "yolox-nano", "--backbone-weights", "imagenet"]
    assert "yolox-nano has none" in fails(capsys, *train_command(shapes, tmp_path / "run", *words))


def test_evaluation_prints_a_table_and_writes_what_is_asked(run, shapes, tmp_path, capsys):
    rows, figures = tmp_path / "rows.json", tmp_path / "figures.json"
    command = ["eval", "--weights", run / "best.safetensors", "--data", shapes, "--score-threshold", "0"]
    assert main([str(word) for word in [*command, "--save-detections", rows, "--save-json", figures]]) == 0
    table = capsys.readouterr().out
    assert "circle" in table
    again = ["eval", "--detections", rows, "--annotations", shapes / "annotations" / "instances_val.json"]
    assert main([str(word) for word in again]) == 0
    assert capsys.readouterr().out == table
    assert set(read_json(rows)[0]) == {"image_id", "category_id", "bbox", "score"}
    assert "per_class" in read_json(figures)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (
            "instances_val2014_100.json",
            "0.504581 0.696973 0.572982 0.585626 0.519400 0.501398 "
            "0.386813 0.593680 0.595353 0.639811 0.566421 0.564291",
        ),
        (
            "instances_val2014_100_nocrowd_boxarea.json",
            "0.503647 0.696973 0.571667 0.593252 0.557991 0.489363 "
            "0.386813 0.593680 0.595353 0.654764 0.603130 0.553744",
        ),
    ],
)
def test_the_published_figures_of_cocos_own_example_come_out(shared_data, tmp_path, annotations, expected):
    folder, out = shared_data / "eval_reference", tmp_path / "figures.json"
    detections = folder / "instances_val2014_fakebbox100_results.json"
    command = ["eval", "--detections", detections, "--annotations", folder / annotations, "--save-json", out]
    assert main([str(word) for word in command]) == 0
    figures = [value for name, value in read_json(out).items() if name.startswith(("ap", "ar"))]
    assert " ".join(f"{figure:.6f}" for figure in figures) == expected


def test_predict_takes_files_and_folders_and_survives_a_bad_one(run, shapes, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    out = tmp_path / "out"
    one = next((shapes / "val").iterdir())
    command = ["predict", folder, one, "--weights", run / "best.safetensors", "--out", out, "--score-threshold", "0"]
    assert main([str(word) for word in command]) == 1
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err
    results = read_json(out / "predictions.json")
    assert [result["file"] for result in results] == [str(folder / "grey.png"), str(one)]
    assert results[0]["height"] == 40
    assert {"label", "score", "box_xyxy"} == set(results[1]["detections"][0])
    assert {path.name for path in out.iterdir()} == {"grey.png", f"{one.stem}.png", "predictions.json"}


def test_two_pictures_of_one_name_do_not_overwrite_each_other(tmp_path):
    files = [tmp_path / "a" / "x.jpg", tmp_path / "b" / "x.png", tmp_path / "x.bmp"]
    assert picture_names(files) == ["x.png", "x-2.png", "x-3.png"]


def test_an_imported_checkpoint_is_never_replaced_by_its_import(tmp_path, capsys):
    path = tmp_path / "published.safetensors"
    path.write_bytes(b"somebody's weights")
    assert main(["import-official", "yolof-r50-c5", str(path)]) == 2
    assert "give another path with --out" in capsys.readouterr().err
    assert path.read_bytes() == b"somebody's weights"


def test_an_official_checkpoint_is_imported_and_then_predicts(tmp_path, shapes, capsys, yolox_reference):
    from safetensors.torch import load_file

    torch.save({"model": load_file(yolox_reference / "nano_state.safetensors")}, tmp_path / "yolox_nano.pth")
    assert main(["import-official", "yolox-nano", str(tmp_path / "yolox_nano.pth")]) == 0
    model = minidet.load_model(tmp_path / "yolox_nano.safetensors")
    assert (model.num_classes, model.class_names[0], model.class_names[79]) == (80, "person", "toothbrush")


def test_fine_tuning_starts_from_other_weights(run, shapes, tmp_path, capsys):
    other = minidet.create_model("yolox-nano", num_classes=3, input_hw=(96, 128))
    minidet.save_weights(other, tmp_path / "three.safetensors")
    command = train_command(shapes, tmp_path / "run", "--weights", str(tmp_path / "three.safetensors"))
    assert main(command) == 0
    assert "6 tensors of the class predictors start anew" in capsys.readouterr().out


def test_check_names_all_faults_at_once(shapes, tmp_path, capsys):
    assert main(["data", "check", str(shapes)]) == 0
    broken = json.loads((shapes / "annotations" / "instances_val.json").read_text(encoding="utf-8"))
    broken["annotations"][0]["category_id"] = 99
    broken["images"][1]["file_name"] = "gone.jpg"
    shutil.copytree(shapes / "val", tmp_path / "val")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(broken), encoding="utf-8")
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path)]) == 1
    report = capsys.readouterr().out
    assert "99" in report
    assert "gone.jpg" in report
    assert f"annotation {broken['annotations'][0]['id']}" in report


def test_bad_input_gets_one_clear_error(run, shapes, tmp_path, capsys):
    weights = run / "best.safetensors"
    assert "there is no split 'train'" in fails(capsys, "train", tmp_path / "nowhere")
    assert "no such file" in fails(capsys, "eval", "--weights", tmp_path / "w.safetensors", "--data", shapes)
    assert "between 0 and 1" in fails(capsys, "predict", shapes / "val", "--weights", weights, "--score-threshold", "7")
    assert "no such file or folder" in fails(capsys, "predict", tmp_path / "x.jpg", "--weights", weights)
    assert "at least one image" in fails(capsys, "predict", "--weights", weights)
    assert "multiples of 32" in fails(
        capsys, "eval", "--weights", weights, "--data", shapes, "--input-size", "50", "50"
    )
    assert "batch-size is 0" in fails(capsys, "eval", "--weights", weights, "--data", shapes, "--batch-size", "0")
    assert "no such field" in fails(capsys, *train_command(shapes, tmp_path / "r", "--set", "momentun=0.5"))
    assert "FIELD=VALUE" in fails(capsys, *train_command(shapes, tmp_path / "r", "--set", "momentum"))
    assert "nowhere" in fails(capsys, *train_command(shapes, tmp_path / "r", "--val-split", "nowhere"))
    assert not (tmp_path / "r").exists()


def test_weights_for_other_classes_are_named(shapes, tmp_path, capsys):
    minidet.save_weights(minidet.create_model("yolox-nano", num_classes=3), tmp_path / "w.safetensors")
    text = fails(capsys, "eval", "--weights", tmp_path / "w.safetensors", "--data", shapes)
    assert "3" in text
    assert "8" in text


def test_recipe_fields_are_set_by_text():
    model = minidet.create_model("yolox-nano")
    settings = ("base_lr=0.5", "multi_scale=[320, 640]", "augmentation.flip_prob=0", "clip_grad_norm=null")
    recipe = change_recipe(RECIPES["yolox"], settings, model)
    assert (recipe.base_lr, recipe.multi_scale, recipe.clip_grad_norm) == (0.5, (320, 640), None)
    assert (recipe.augmentation.flip_prob, recipe.augmentation.mosaic_prob) == (0, 0.5)  # nano's own, one field changed
    with pytest.raises(MinidetError, match="base_lr"):
        change_recipe(RECIPES["yolox"], ("base_lr=much",), model)


def test_only_images_are_taken_from_a_folder(tmp_path):
    for name in ("b.JPG", "a.png", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in find_images((tmp_path,))] == ["a.png", "b.JPG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MinidetError, match="no images in this folder"):
        find_images((tmp_path / "empty",))
