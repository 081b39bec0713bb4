"""The head explorer: what `look_into_head` says at every stored stage, for a decoupled and a coupled head."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import minidet
from minidet.draw.heads import HeadCurve, HeadMap, HeadRow, HeadView, draw_heads
from minidet.draw.look import DARK, LIGHT
from minidet.errors import MinidetError, WeightsError
from minidet.evaluation.task_gradients import look_into_head
from minidet.explore.head_maps import HeadLab
from minidet.explore.heads import PAIRS, HeadExplorer
from minidet.explore.pictures import read_pictures
from minidet.explore.stages import load_stages
from minidet.files import read_json
from minidet.layers.pyramid import LEVELS
from tests.explore.pictures import REPOSITORY, STAGES, assert_legible, empty_picture, positions, scenes


@pytest.fixture(scope="module")
def stages():
    return load_stages(STAGES)


@pytest.fixture(scope="module")
def lab(stages):
    return HeadLab(stages, read_pictures([*scenes(2), empty_picture()]))


def test_the_stored_stages_are_two_heads_at_the_same_epochs_and_small(stages):
    assert {(stage.head, stage.epoch) for stage in stages} == set(
        itertools.product(("coupled", "decoupled"), (0, 1, 4, 17))
    )
    for stage in stages:
        model = stage.load()
        assert model.config.head == stage.head and model.num_classes == 8
    assert sum(path.stat().st_size for path in STAGES.iterdir()) < 5_000_000


def test_the_stored_stages_are_those_of_the_record(stages):
    record = read_json(REPOSITORY / "benchmarks" / "results" / "training_stages.json")
    for stage in stages:
        (row,) = [each for each in record["heads"][stage.head]["stages"] if each["epoch"] == stage.epoch]
        assert (row["file"], row["ap"], row["ap50"]) == (stage.path.name, stage.ap, stage.ap50)
    for head in ("coupled", "decoupled"):
        ap50 = [stage.ap50 for stage in stages if stage.head == head]
        assert ap50[0] < 0.01 and ap50 == sorted(ap50)


def test_what_is_shown_is_what_a_look_into_the_head_says(stages, lab):
    for stage in stages[::3]:
        inside = look_into_head(stage.load(), [p.image for p in lab.pictures], [p.target for p in lab.pictures])
        for level, tasks in itertools.product(LEVELS, PAIRS):
            view = lab.view(1, level, stage.epoch, tasks, (100, 60))
            row = view.rows[lab.heads.index(stage.head)]
            assert f"AP50 on the validation pictures {stage.ap50:.2f}" in row.words
            class_map, box_map, scores, cosines = (each.values for each in row.maps)
            np.testing.assert_allclose(cosines, inside.cosines(level, *tasks)[1], atol=1e-5)
            np.testing.assert_allclose(scores, inside.scores(level)[1], atol=1e-6)
            np.testing.assert_allclose(
                class_map, inside.class_features[level][1].square().mean(dim=0).sqrt(), rtol=1e-4
            )
            np.testing.assert_allclose(box_map, inside.box_features[level][1].square().mean(dim=0).sqrt(), rtol=1e-4)
            curve = view.curves[lab.heads.index(stage.head)]
            shown = curve.values[list(curve.epochs).index(stage.epoch)]
            assert shown == pytest.approx(inside.cosine(level, *tasks), abs=1e-5, nan_ok=True)


def test_every_position_of_every_control_draws_a_legible_figure(stages):
    explorer = HeadExplorer(stages, scenes(2))
    drawn = set()
    for changes in positions(explorer):
        for look in (LIGHT, DARK):
            assert_legible(explorer.draw({**explorer.values, **changes}, look))
        drawn |= changes.keys()
    assert drawn == set(explorer.values) - {"point"}


def test_a_picture_without_objects_has_no_contest(stages):
    view = HeadLab(stages, read_pictures([empty_picture()])).view(0, "p3", 17, ("class", "box"), (0, 0))
    for row in view.rows:
        assert not np.isfinite(row.maps[3].values).any() and "hardly any of one" in row.note
    assert_legible(draw_heads(view))


def test_fighting_cells_are_crossed_out_not_only_coloured():
    values = np.array([[1.0, -0.5], [math.nan, -1.0]])
    row = HeadRow("a head", [HeadMap("cosine", values, "cosine")], "note")
    figure = draw_heads(HeadView(np.zeros((64, 64, 3), np.uint8), np.zeros((0, 4)), (0, 0), [row], ("a", "b"), "p3", 1))
    crosses = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "x"]
    (cross,) = crosses
    assert list(zip(*cross.get_data(), strict=True)) == [(48.0, 16.0), (48.0, 48.0)]


def test_a_chart_without_any_value_can_be_drawn():
    curves = [HeadCurve("one", (0, 4), (math.nan, math.nan)), HeadCurve("two", (0,), (0.5,))]
    image = np.zeros((64, 64, 3), np.uint8)
    assert_legible(draw_heads(HeadView(image, np.zeros((0, 4)), (0, 0), [], ("a", "b"), "p3", 4, curves)))


def test_input_that_makes_no_sense_is_refused(stages, lab, tmp_path):
    with pytest.raises(MinidetError, match="different sizes"):
        HeadExplorer(stages, [*scenes(1), *scenes(1, image_hw=(96, 128), min_side=16)])
    with pytest.raises(MinidetError, match="none of decoupled after 17"):
        HeadLab(stages[:-1], read_pictures(scenes(1)))
    with pytest.raises(MinidetError, match="there are none"):
        HeadLab([], read_pictures(scenes(1)))
    with pytest.raises(MinidetError, match="no picture 9"):
        lab.view(9, "p3", 0, ("class", "box"), (0, 0))
    with pytest.raises(MinidetError, match="tasks are two different"):
        lab.view(0, "p3", 0, ("class", "class"), (0, 0))
    with pytest.raises(MinidetError, match="no stage of coupled after 3"):
        lab.inside("coupled", 3)
    (tmp_path / "stages.json").write_text('[{"head": "coupled"}]')
    with pytest.raises(WeightsError, match=r"stages.json: is not a list of stages"):
        load_stages(tmp_path)
    with pytest.raises(MinidetError, match=r"stages.json"):
        load_stages(tmp_path / "nowhere")


def test_weights_stored_in_half_are_as_good_as_whole_ones(tmp_path):
    torch.manual_seed(0)
    model = minidet.create_model("yolox-nano", 8, width=0.125, head="coupled").eval()
    minidet.save_weights(model, tmp_path / "whole.safetensors")
    minidet.save_weights(model, tmp_path / "half.safetensors", half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    again = minidet.load_model(tmp_path / "half.safetensors").state_dict()
    for key, value in model.state_dict().items():
        assert again[key].dtype == value.dtype
        if value.ndim == 4:
            torch.testing.assert_close(again[key], value, rtol=1 / 2000, atol=1e-7)
        else:
            assert torch.equal(again[key], value)
