"""Ablations: equal runs of different cells, what survives a stop, and what is reported in the end."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import signal
import statistics

import pytest
import torch

import minidet
from minidet import cli
from minidet.assign import OTA, POTO, MaxIoU, SimOTA, UniformMatching
from minidet.cli import main
from minidet.draw import AblationPanel, AblationRow, draw_ablation
from minidet.errors import MinidetError, RunError
from minidet.evaluation.speed import count_parameters
from minidet.files import read_json, write_json
from minidet.training import ablation as module
from minidet.training.ablation import Study, ablate
from minidet.training.ablation_report import summary
from minidet.training.cells import FAMILIES, YOLOF_ABLATIONS, Ablation, Cell, yolox_ablations
from minidet.training.run_folder import read_metrics
from tests.training.squares import SMALL, assert_same_state, at_forward, tiny_model, write_squares

LOSSES = {"losses": Ablation("Which box loss?", (Cell("iou", "as it is"), Cell("giou", "GIoU", {"box_loss": "giou"})))}
ONE = {"losses": dataclasses.replace(LOSSES["losses"], cells=LOSSES["losses"].cells[:1])}
SHORT = dataclasses.replace(SMALL, epochs=2)
TRAINABLE = count_parameters(tiny_model())


@pytest.fixture(scope="module")
def study_of(squares):
    """Makes studies of a YOLOX of 127 thousand weights on twelve pictures; `told` collects what they say."""

    def make(out, told=None, **changes) -> Study:
        log = (lambda text: None) if told is None else told.append
        tiny = {"input_hw": (64, 64), "width": 0.0625, "depth": 0.1}
        study = Study("yolox-tiny", SHORT, squares, squares, out, tiny, "cpu", workers=0, progress=False, log=log)
        return dataclasses.replace(study, **changes)

    return make


@pytest.fixture(scope="module")
def finished(study_of, tmp_path_factory):
    """The folder of an ablation of two cells and two seeds, and its result."""
    out = tmp_path_factory.mktemp("ablation") / "whole"
    return out, ablate(study_of(out), LOSSES, ["losses"], [0, 1])


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "copy")


# ---- running --------------------------------------------------------------------------------------------------------


def test_every_cell_is_trained_once_with_each_seed_under_the_same_budget(finished):
    out, result = finished
    assert (result.failures, result.interrupted) == ([], False)
    configs = [read_json(out / cell / f"seed-{seed}" / "config.json") for cell in ("iou", "giou") for seed in (0, 1)]
    assert [config["seed"] for config in configs] == [0, 1, 0, 1]
    assert [config["model"]["box_loss"] for config in configs] == ["iou", "iou", "giou", "giou"]
    assert all(config["recipe"] == configs[0]["recipe"] and config["data"] == configs[0]["data"] for config in configs)
    for config in configs[2:]:  # nothing else differs
        assert config["model"] | {"box_loss": "iou"} == configs[0]["model"]


def test_figures_are_summed_up_from_the_last_epochs_of_the_runs(finished):
    out, result = finished
    assert result.results == read_json(out / "results.json")
    for cell in result.results["ablations"]["losses"]["cells"]:
        rows = [read_metrics(out / cell["name"] / f"seed-{seed}" / "metrics.jsonl") for seed in (0, 1)]
        last = [each[-1]["ap"] for each in rows]
        assert cell["ap"]["values"] == pytest.approx(last)
        assert cell["ap"]["mean"] == pytest.approx(sum(last) / 2)
        assert cell["ap"]["std"] == pytest.approx(abs(last[0] - last[1]) / math.sqrt(2))
        assert (cell["seeds"], cell["ap"]["n"]) == ([0, 1], 2)
        assert cell["seconds"]["values"] == pytest.approx([sum(row["seconds"] for row in each) for each in rows])
        assert sum(part["trainable"] for part in cell["cost"]["parts"]) == TRAINABLE
        assert cell["hardware"][0]["device"] == "cpu"


def test_the_table_has_a_row_for_each_cell_and_says_under_what_conditions(finished):
    out, result = finished
    text = (out / "table.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows] == 2 * ["", "---", "as it is", "GIoU"]
    assert [len(row) for row in rows] == 4 * [10] + 4 * [5]  # figures; costs
    cells = result.results["ablations"]["losses"]["cells"]
    for row, cell in zip(rows[2:4], cells, strict=True):
        ap = cell["ap"]
        assert row[1:3] == ["2", f"{100 * ap['mean']:.1f} ± {100 * ap['std']:.1f}"]
        assert row[4] == f"{100 * (ap['mean'] - cells[0]['ap']['mean']):+.1f}"
    parts = [f"{count_parameters(part):,}" for _, part in tiny_model().named_children()]
    assert rows[6][2] == f"{TRAINABLE:,}: {' + '.join(parts)} + 0"  # backbone, neck, head; nothing in decoding
    for fact in (
        "Which box loss?",
        "12 pictures to learn from",
        "2 epochs",
        "batches of 4",
        "input 64 x 64",
        "Command",
    ):
        assert fact in text
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")


def no_training(*_arguments, **_options):
    raise AssertionError("nothing is to be trained")


def test_finished_runs_are_skipped_and_the_report_is_written_anew_from_the_folders(copy, study_of, monkeypatch):
    for name in ("table.md", "results.json", "ablation.png"):
        (copy / name).unlink()
    before = read_json(copy / "iou" / "seed-0" / "result.json")
    write_json(copy / "iou" / "seed-0" / "result.json", before | {"evaluation": before["evaluation"] | {"ap": 0.75}})
    monkeypatch.setattr(module, "train", no_training)
    told: list[str] = []
    result = ablate(study_of(copy, told), LOSSES, ["losses"], [0])
    assert sum("is finished; skipped" in line for line in told) == 2
    values = result.results["ablations"]["losses"]["cells"][0]["ap"]["values"]
    assert values[0] == 0.75
    assert len(values) == 2  # the other seed's run counts, though it was not asked for now
    assert (copy / "table.md").exists() and (copy / "ablation.png").exists()


def test_more_seeds_add_to_what_is_there(copy, study_of):
    result = ablate(study_of(copy), ONE, ["losses"], [2, 1, 2])
    assert [cell["seeds"] for cell in result.results["ablations"]["losses"]["cells"]] == [[0, 1, 2]]


def breaking(monkeypatch, number: int, action) -> None:
    """Do something in the midst of the n-th step of the first run."""
    train, first = module.train, []

    def wrapped(model, *arguments, **options):
        if not first:
            first.append(at_forward(model, number, action))
        return train(model, *arguments, **options)

    monkeypatch.setattr(module, "train", wrapped)


def fail(_output) -> None:
    raise RuntimeError("out of memory, say")


def test_a_run_that_fails_is_named_does_not_stop_the_others_and_goes_on_next_time(
    finished, study_of, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    breaking(monkeypatch, 5, fail)  # in the second of two epochs of three steps
    result = ablate(study_of(out), LOSSES, ["losses"], [0])
    assert result.failures == ["iou, seed 0: RuntimeError: out of memory, say"]
    assert "Failed:\n- iou, seed 0" in (out / "table.md").read_text(encoding="utf-8")
    assert "Traceback" in (out / "iou" / "seed-0.error.txt").read_text(encoding="utf-8")
    assert [cell["seeds"] for cell in result.results["ablations"]["losses"]["cells"]] == [[], [0]]

    monkeypatch.undo()
    told: list[str] = []
    result = ablate(study_of(out, told), LOSSES, ["losses"], [0])
    assert any("Going on from" in line and "epoch_0001" in line for line in told)
    assert result.failures == []
    assert not (out / "iou" / "seed-0.error.txt").exists()
    newest = "iou/seed-0/checkpoints/epoch_0002.pt"
    assert_same_state(out / newest, finished[0] / newest)  # as if it had never stopped


def test_after_ctrl_c_the_same_call_goes_on(finished, study_of, tmp_path, monkeypatch):
    out = tmp_path / "out"
    breaking(monkeypatch, 2, lambda output: signal.raise_signal(signal.SIGINT))
    result = ablate(study_of(out), LOSSES, ["losses"], [0])
    assert (result.interrupted, result.failures) == (True, [])
    assert not (out / "giou").exists()

    monkeypatch.undo()
    result = ablate(study_of(out), ONE, ["losses"], [0])
    (cell,) = result.results["ablations"]["losses"]["cells"]
    assert cell["ap"]["values"] == finished[1].results["ablations"]["losses"]["cells"][0]["ap"]["values"][:1]


def test_a_run_that_was_stopped_before_its_result_was_written_is_only_judged_again(copy, study_of):
    path = copy / "giou" / "seed-1" / "result.json"
    before = read_json(path)
    path.unlink()
    result = ablate(study_of(copy), LOSSES, ["losses"], [1])
    assert result.failures == []
    assert read_json(path)["evaluation"] == before["evaluation"]
    assert read_json(path)["seconds"] == before["seconds"]


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_an_ablation_with_other_settings_is_refused_and_says_which(copy, study_of, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train", no_training)
    before = (copy / "results.json").read_bytes()
    others = {
        r"recipe.base_lr: the run has 0.08, now it is 0.5": {"recipe": dataclasses.replace(SHORT, base_lr=0.5)},
        r"changes.width: the run has 0.0625, now it is 0.125": {
            "changes": {"input_hw": (64, 64), "width": 0.125, "depth": 0.1}
        },
        r"data.val.images: the run has 12, now it is 5": {"val_data": write_squares(tmp_path / "five", 5)},
    }
    for message, changes in others.items():
        with pytest.raises(RunError, match=message):
            ablate(study_of(copy, **changes), LOSSES, ["losses"], [0])
    assert (copy / "results.json").read_bytes() == before


def test_a_foreign_folder_is_refused_and_left_as_it_is(study_of, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and holds no ablation"):
        ablate(study_of(tmp_path), LOSSES, ["losses"], [0])
    with pytest.raises(RunError, match="is a file"):
        ablate(study_of(tmp_path / "notes.txt"), LOSSES, ["losses"], [0])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_finished_run_of_another_model_does_not_count_for_a_cell(copy, study_of):
    changed = {"losses": Ablation("Which?", (Cell("iou", "with a weight", {"box_weight": 2.0}),))}
    (failure,) = ablate(study_of(copy), changed, ["losses"], [0]).failures
    assert "box_weight: the run has 5.0, now it is 2.0" in failure


def test_a_setting_that_makes_no_sense_is_found_before_anything_is_trained(study_of, tmp_path):
    bad = {"bad": Ablation("?", (Cell("fine", "as it is"), Cell("bad", "bad", {"box_loss": "none"})))}
    with pytest.raises(MinidetError, match="box_loss 'none' is not known"):
        ablate(study_of(tmp_path / "out"), bad, ["bad"], [0])
    with pytest.raises(RunError, match="at least one seed"):
        ablate(study_of(tmp_path / "out"), LOSSES, ["losses"], [])
    assert not (tmp_path / "out").exists()


# ---- what is compared -----------------------------------------------------------------------------------------------


def model_of(name: str) -> minidet.detectors.Detector:
    (cell,) = (c for ablation in YOLOF_ABLATIONS.values() for c in ablation.cells if c.name == name)
    torch.manual_seed(0)
    return minidet.create_model("yolof-r18-c5", 4, width=32, mid_width=8, **cell.changes).eval()


@pytest.fixture(scope="module")
def models():
    return {cell.name: model_of(cell.name) for ablation in YOLOF_ABLATIONS.values() for cell in ablation.cells}


def test_every_cell_has_a_name_of_its_own(models):
    assert len(models) == sum(len(ablation.cells) for ablation in YOLOF_ABLATIONS.values()) == 8


def test_the_components_are_switched_in_network_and_assignment_and_nothing_else_is(models):
    names = ("baseline", "dilated", "uniform", "both")
    blocks = [len(models[name].encoder.blocks) for name in names]
    assigners = [type(models[name].config.assigner) for name in names]
    assert blocks == [0, 4, 0, 4]
    assert assigners == [MaxIoU, MaxIoU, UniformMatching, UniformMatching]
    both = models["both"].config
    for name in names:
        same = {"dilations": both.dilations, "assigner": both.assigner}
        assert dataclasses.replace(models[name].config, **same) == both


def test_uniform_matching_evens_out_what_max_iou_gives_to_large_and_small_objects(models):
    image = torch.zeros(3, 320, 320, dtype=torch.uint8)
    boxes = torch.tensor([[30.0, 40.0, 280.0, 290.0], [200.0, 10.0, 224.0, 34.0]])  # 250 and 24 pixels wide
    target = {"boxes": boxes, "labels": torch.tensor([0, 1])}
    given = {}
    for name in ("baseline", "uniform"):
        matched = models[name].assign([image], [target]).matched_gt
        given[name] = [int((matched == row).sum()) for row in (0, 1)]
    large, small = given["baseline"]
    assert large > 10 * small
    large, small = given["uniform"]
    assert max(large, small) <= 8  # four predictions and four anchors
    assert min(large, small) >= 1


@pytest.mark.parametrize(
    ("name", "strides"),
    [("mimo", (8, 16, 32, 64, 128)), ("simo", (8, 16, 32, 64, 128)), ("miso", (32,)), ("siso", (32,))],
)
def test_the_encoders_stand_under_one_head_rule_and_set_of_anchors(models, name, strides):
    model, reference = models[name], models["siso"]
    assert model.encoder.strides == strides
    same = dataclasses.replace(model.config, encoder="siso")
    assert same == reference.config
    assert (len(model.head.class_branch), len(model.head.box_branch)) == (4, 4)
    assert model.head.object_predictor is None
    assert isinstance(model.config.assigner, MaxIoU)
    assert {len(level) for level in model.anchor_sizes} == {5 // len(strides)}
    assert tuple(size for level in model.anchor_sizes for size in level) == reference.config.anchor_sizes


def test_the_papers_figures_are_those_of_the_two_summaries():
    cells = YOLOF_ABLATIONS["encoders"].cells
    assert {cell.name: cell.published_ap for cell in cells} == {"mimo": 35.9, "simo": 35.0, "miso": 23.9, "siso": 23.7}
    assert all(cell.published_ap is None for cell in YOLOF_ABLATIONS["components"].cells)


# ---- what the YOLOX paper compares ----------------------------------------------------------------------------------

YOLOX_ABLATIONS = yolox_ablations((64, 96))
RUNGS = [cell.name for cell in YOLOX_ABLATIONS["roadmap"].cells]


def test_the_names_of_the_comparisons_are_those_of_the_command_line():
    assert {"yolof": tuple(YOLOF_ABLATIONS), "yolox": tuple(YOLOX_ABLATIONS)} == FAMILIES


def test_cells_of_one_name_are_the_same_in_every_comparison():
    seen: dict[str, tuple] = {}
    for ablation in YOLOX_ABLATIONS.values():
        for cell in ablation.cells:
            what = (cell.changes, cell.recipe)
            assert seen.setdefault(cell.name, what) == what
    assert len(seen) == 16


def test_the_ladder_changes_one_thing_at_a_time():
    fields = {"head": "decoupled", "anchors": None, "nms_free": False, "augmentation": "light"}
    settings = [{**fields, **cell.changes, **cell.recipe} for cell in YOLOX_ABLATIONS["roadmap"].cells]
    steps = [{k for k in new if old[k] != new[k]} for old, new in itertools.pairwise(settings)]
    assert steps == [{"head"}, {"augmentation"}, {"anchors", "assigner"}, {"assigner"}, {"assigner"}, {"nms_free"}]


def test_the_published_figures_are_those_of_the_three_tables():
    def published(name):
        return [cell.published_ap for cell in YOLOX_ABLATIONS[name].cells]

    assert published("roadmap") == [38.5, 39.6, 42.0, 42.9, 45.0, 47.3, 46.5]
    assert published("heads") == [38.5, 39.6, 34.3, 38.8]
    assert published("augmentation") == [25.3, None, 24.0]
    latencies = [cell.published.latency_ms for cell in YOLOX_ABLATIONS["roadmap"].cells]
    assert latencies == [10.5, 11.6, 11.6, 11.1, 11.1, 11.1, 13.5]


def test_what_lets_a_detector_do_without_nms_is_switched_one_by_one():
    by_name = {cell.name: cell.changes for cell in YOLOX_ABLATIONS["nms-free"].cells}
    assert by_name["nms-free-no-stop"] == by_name["nms-free"] | {"stop_gradient": False}
    assert by_name["nms-free-one-to-many"] == by_name["nms-free"] | {"selector_assigner": SimOTA()}
    assert by_name["one-to-one"] == {"assigner": POTO(), "nms_threshold": None}
    rules = [type(cell.changes["assigner"]) for cell in YOLOX_ABLATIONS["assignment"].cells]
    assert rules[-2:] == [SimOTA, OTA]


def test_a_cell_can_change_the_recipe_and_the_report_says_so(study_of, tmp_path):
    longer = {"lengths": Ablation("How long?", (Cell("two", "two epochs"), Cell("one", "one", recipe={"epochs": 1})))}
    result = ablate(study_of(tmp_path / "out"), longer, ["lengths"], [0])
    epochs = [len(read_metrics(tmp_path / "out" / name / "seed-0" / "metrics.jsonl")) for name in ("two", "one")]
    assert epochs == [2, 1]
    cells = result.results["ablations"]["lengths"]["cells"]
    assert [cell["changes"] for cell in cells] == [{}, {"epochs": "1"}]
    assert all(cell["latency_ms"] > 0 for cell in cells)


def test_the_finished_run_of_another_recipe_does_not_count_for_a_cell(study_of, tmp_path):
    def study(epochs):
        return {"one": Ablation("?", (Cell("one", "one", recipe={"epochs": epochs}),))}

    ablate(study_of(tmp_path / "out"), study(1), ["one"], [0])
    (failure,) = ablate(study_of(tmp_path / "out"), study(2), ["one"], [0]).failures
    assert "was trained in another way (epochs: the run has 1, now it is 2)" in failure


def test_a_cell_that_two_comparisons_share_is_trained_once(study_of, tmp_path):
    told: list[str] = []
    both = {"a": ONE["losses"], "b": dataclasses.replace(ONE["losses"], question="The same?")}
    result = ablate(study_of(tmp_path / "out", told), both, ["a", "b"], [0])
    assert sum(line.startswith("[") for line in told) == 1
    assert [len(each["cells"][0]["seeds"]) for each in result.results["ablations"].values()] == [1, 1]


def test_the_command_climbs_the_road_map_with_anchors_of_its_own_data(tmp_path, capsys):
    size = ["--train", "4", "--val", "2", "--test", "0", "--image-hw", "64", "96", "--objects", "3", "5"]
    assert main(["data", "shapes", str(tmp_path / "shapes"), *size]) == 0
    out = tmp_path / "out"
    command = ["ablate", "yolox", str(tmp_path / "shapes"), "--out", str(out), "--seeds", "0", "--epochs", "1"]
    command += ["--input-size", "64", "96", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    command += ["--model", "yolox-darknet53", "--width", "0.0625", "--depth", "0.1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    configs = [read_json(out / name / "seed-0" / "config.json") for name in RUNGS]
    anchors = configs[0]["model"]["anchors"]
    assert len(anchors) == 9
    assert "anchors by k-means, pixels: " + ", ".join(f"{w:g} x {h:g}" for w, h in anchors) in printed
    for text in (
        "YOLOv3: coupled head",
        "+ NMS-free",
        "against the row above",
        "39.6 (+1.1)",
        "width 0.0625, depth 0.1",
    ):
        assert text in printed
    augmentations = [config["recipe"]["augmentation"] for config in configs]
    assert [each["mosaic_prob"] for each in augmentations] == [0, 0, 1, 1, 1, 1, 1]
    assert all(each["hsv_prob"] == 1 and each["flip_prob"] == 0.5 for each in augmentations)
    assert main([*command, "--model", "yolof-r18-c5"]) == 2
    assert "name one of those" in capsys.readouterr().err
    assert main([*command, "--set", "augmentation.flip_prob=0"]) == 2
    assert "cannot be set for all of them" in capsys.readouterr().err


# ---- figures and picture --------------------------------------------------------------------------------------------


def test_a_figure_that_is_not_defined_is_left_out():
    assert summary([0.1, None, 0.4]) == {
        "values": [0.1, 0.4],
        "n": 2,
        "mean": 0.25,
        "std": pytest.approx(statistics.stdev([0.1, 0.4])),
        "min": 0.1,
        "max": 0.4,
    }
    assert summary([0.3])["std"] is None
    assert summary([None])["mean"] is None


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [a.get_xlabel() for a in figure.axes]


def test_the_plot_shows_each_run_and_the_mean_with_labels_in_words():
    rows = [AblationRow("one level", [10.0, 12.0], published=23.7), AblationRow("many levels", [30.5], published=35.9)]
    figure = draw_ablation([AblationPanel("One or many?", rows, "from a paper"), AblationPanel("Empty?", [])], "a note")
    found = texts(figure)
    for text in ("One or many?", "one level", "many levels", "11.0 ± 1.4", "30.5 (one run)", "23.7", "35.9", "a note"):
        assert text in found
    assert "AP on the validation pictures, %" in found
    panel = figure.axes[1]
    drawn = [
        (line.get_xdata().tolist() if hasattr(line.get_xdata(), "tolist") else list(line.get_xdata()))
        for line in panel.lines
    ]
    assert drawn == [[10.0, 12.0], [11.0, 11.0], [30.5], [30.5, 30.5]]
    low, high = panel.get_xlim()
    assert low < 10 and high > 30.5
    assert figure.alt.startswith("One or many?: one level 11.0 ± 1.4, 2 runs (the paper's: 23.7); many levels 30.5")


def test_steps_say_what_each_row_adds_to_the_one_above():
    rows = [AblationRow("a", [10.0, 12.0], 38.5), AblationRow("b", [14.0], 39.6), AblationRow("c", [], 42.0)]
    found = texts(draw_ablation([AblationPanel("What does each add?", rows, steps=True)]))
    for text in ("11.0 ± 1.4", "14.0 (one run) (+3.0)", "38.5", "39.6 (+1.1)", "no run yet", "42.0 (+2.4)"):
        assert text in found


def test_a_cell_without_a_run_says_so_and_long_words_stay_inside():
    row = AblationRow("a very long description of what is special about this cell of the ablation", [])
    figure = draw_ablation([AblationPanel("?", [row])])
    assert "no run yet" in texts(figure)
    figure.draw_without_rendering()
    width = figure.get_size_inches()[0] * figure.dpi
    for axes in figure.axes:
        for text in axes.texts:
            extent = text.get_window_extent()
            assert extent.x0 >= 0 and extent.x1 <= width


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_trains_compares_and_draws(tmp_path, capsys, monkeypatch):
    size = ["--train", "4", "--val", "2", "--test", "0", "--image-hw", "64", "96", "--objects", "1", "2"]
    assert main(["data", "shapes", str(tmp_path / "shapes"), *size]) == 0
    cells = tuple(
        dataclasses.replace(cell, changes=cell.changes | {"mid_width": 4})
        for cell in YOLOF_ABLATIONS["components"].cells
    )
    tiny = {"components": Ablation("What do they add?", cells[::3])}
    monkeypatch.setattr(cli, "YOLOF_ABLATIONS", tiny)
    out = tmp_path / "out"
    command = ["ablate", "yolof", str(tmp_path / "shapes"), "--out", str(out), "--seeds", "0", "--epochs", "1"]
    command += ["--input-size", "64", "96", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    command += ["--width", "16"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for text in (
        "projector and max-IoU",
        "+ both (YOLOF)",
        "input 64 x 96, width 16",
        f"{out}: table.md, results.json",
    ):
        assert text in printed
    written = {"settings.json", "table.md", "results.json", "latency.json", "ablation.png"}
    assert written | {"baseline", "both"} == {path.name for path in out.iterdir()}

    assert main([*command, "--set", "base_lr=0.5"]) == 2
    assert "holds an ablation with other settings" in capsys.readouterr().err
    assert main([*command, "--model", "yolox-nano"]) == 2
    assert "yolox-nano" in capsys.readouterr().err
    assert main([*command, "--grid", "roadmap"]) == 2
    assert "those of a yolof are components, encoders and all" in capsys.readouterr().err
    assert main([*command, "--model", "yolof-r50-c5"]) == 2
    assert "needs pretrained weights" in capsys.readouterr().err
    monkeypatch.setattr(module, "train", no_training)
    assert main([*command, "--seeds", "0", "1"]) == 1
    assert "failed: both, seed 1: AssertionError: nothing is to be trained" in capsys.readouterr().err
