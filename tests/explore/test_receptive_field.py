"""The receptive-field explorer: the library's own numbers on the model as it is set, and the model itself stays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import minidet
from minidet.draw.look import DARK, LIGHT
from minidet.draw.receptive_field import FieldView, RangeRow, draw_receptive_field, is_covered
from minidet.errors import MinidetError
from minidet.evaluation.receptive_field import (
    effective_receptive_field,
    effective_size,
    encoder_receptive_fields,
    seen_by,
    theoretical_receptive_field,
)
from minidet.explore.fields import BlockSetting, FieldLab, block_settings, with_blocks
from minidet.explore.pictures import read_pictures
from minidet.explore.receptive_field import ReceptiveFieldExplorer
from tests.explore.pictures import NANO, assert_legible, empty_picture, positions, scenes


@pytest.fixture(scope="module")
def yolof():
    torch.manual_seed(0)
    return minidet.create_model("yolof-r18-c5", 8, input_hw=(96, 128), width=32, mid_width=16).eval()


@pytest.fixture(scope="module")
def picture():
    return read_pictures(scenes(1, image_hw=(96, 128), min_side=16))[0]


BLOCKS = (
    BlockSetting(True, 3, True),
    BlockSetting(False, 2, True),
    BlockSetting(True, 5, False),
    BlockSetting(True, 8),
)


@pytest.mark.parametrize("settings", [None, BLOCKS])
@pytest.mark.parametrize("stage", ["c3", "encoder.smooth_norm", "encoder.blocks.1", "encoder", "box_output"])
def test_what_is_shown_is_what_the_library_says_about_the_network(yolof, picture, settings, stage):
    lab = FieldLab(yolof, picture)
    model = yolof if settings is None else with_blocks(yolof, settings)
    for point in [(5, 5), (70, 40), (127, 95)]:
        view = lab.view(stage, point, settings)
        cell = lab.variant(settings).cell_at(stage, point)
        x1, y1, x2, y2 = view.unit
        assert x1 <= point[0] <= x2 and y1 <= point[1] <= y2
        assert view.field == seen_by(model, stage, cell, (96, 128))
        assert view.field_hw == theoretical_receptive_field(model, stage).size_hw
        heat = effective_receptive_field(model, stage, [picture.image], cell=cell)
        torch.testing.assert_close(torch.from_numpy(view.heat), heat)
        assert view.effective_px == effective_size(heat)
        assert view.ranges[1].sizes == encoder_receptive_fields(model)


def test_heat_lies_inside_the_square(yolof, picture):
    lab = FieldLab(yolof, picture)
    view = lab.view("c3", (20, 20))
    x1, y1, x2, y2 = view.field
    outside = view.heat.copy()
    outside[y1:y2, x1:x2] = 0
    assert view.heat.max() == 1 and not outside.any()


def test_an_encoder_set_otherwise_is_the_one_that_is_built_so(yolof, picture):
    settings = [BlockSetting(True, d, r) for d, r in ((8, True), (1, False), (2, True), (7, False))]
    changed = with_blocks(yolof, settings)
    built = minidet.create_model("yolof-r18-c5", 8, input_hw=(96, 128), width=32, mid_width=16, dilations=(8, 1, 2, 7))
    for block, setting in zip(built.encoder.blocks, settings, strict=True):
        block.shortcut = setting.residual
    built.load_state_dict(yolof.state_dict())
    with torch.no_grad():
        ours, theirs = changed.features([picture.image]), built.eval().features([picture.image])
    assert torch.equal(ours["encoder"], theirs["encoder"])
    assert block_settings(changed) == tuple(settings)


def test_without_blocks_the_projector_is_left(yolof, picture):
    nothing = with_blocks(yolof, [BlockSetting(False)] * 4)
    with torch.no_grad():
        expected = yolof.encoder.smooth_norm(
            yolof.encoder.smooth(
                yolof.encoder.lateral_norm(yolof.encoder.lateral(yolof.features([picture.image])["c5"]))
            )
        )
        assert torch.equal(nothing.features([picture.image])["encoder"], expected)
    assert encoder_receptive_fields(nothing) == (499,)


def test_the_model_that_is_explored_stays_as_it_was(yolof, picture):
    before, settings = {k: v.clone() for k, v in yolof.state_dict().items()}, block_settings(yolof)
    with torch.no_grad():
        features = yolof.features([picture.image])["encoder"]
    FieldLab(yolof, picture).view("encoder", (50, 50), BLOCKS)
    assert block_settings(yolof) == settings == tuple(BlockSetting(True, d) for d in (1, 2, 3, 4))
    assert all(torch.equal(value, before[key]) for key, value in yolof.state_dict().items())
    with torch.no_grad():
        assert torch.equal(yolof.features([picture.image])["encoder"], features)


def test_blocks_that_make_no_sense_are_refused(yolof):
    with pytest.raises(MinidetError, match="has 4 dilated blocks, but 2"):
        with_blocks(yolof, [BlockSetting()] * 2)
    with pytest.raises(MinidetError, match="at least 1, not 0"):
        with_blocks(yolof, [BlockSetting(dilation=0)] * 4)
    with pytest.raises(MinidetError, match="has 0 dilated blocks"):
        with_blocks(minidet.create_model("yolox-nano"), [BlockSetting()])


def test_a_range_fits_from_its_own_size_down_to_a_share_of_it():
    covered = is_covered(np.array([10.0, 24.9, 25, 100, 100.1, 399, 401]), [100, 400, np.inf], slack=4)
    assert covered.tolist() == [False, False, True, True, True, True, False]
    assert is_covered(np.array([50.0]), [100], 1).tolist() == [False]
    assert is_covered(np.zeros(0), [100], 4).tolist() == []


def test_without_residual_connections_one_range_is_left_and_small_objects_lose_theirs(yolof, picture):
    lab = FieldLab(yolof, picture)
    whole = lab.view("encoder", (50, 50), heat=False).ranges[1].sizes
    alone = (
        lab.view("encoder", (50, 50), [BlockSetting(True, d, False) for d in (1, 2, 3, 4)], heat=False).ranges[1].sizes
    )
    # stride 32: a block of dilation d adds 2 * 32 * d
    assert whole == tuple(range(499, 499 + 64 * 10 + 1, 64)) and alone == (499 + 64 * 10,)


def test_every_position_of_every_control_draws_a_legible_figure(yolof, picture):
    nano = minidet.load_model(NANO)
    explorer = ReceptiveFieldExplorer({"a yolof": yolof, "nano": nano}, [picture, empty_picture(96, 128)])
    drawn = set()
    for changes in positions(explorer):
        values = explorer.complete({**explorer.values, "heat": False, **changes})
        assert_legible(explorer.draw(values, LIGHT))
        drawn |= changes.keys()
    assert drawn == set(explorer.values) - {"point"}
    explorer.change(model="nano")
    for changes in positions(explorer):
        assert_legible(explorer.draw(explorer.complete({**explorer.values, "heat": False, **changes}), DARK))


@pytest.mark.parametrize("sizes", [(), (0.5, 3), (20, 20, 20, 20, 20, 20, 20, 20, 20, 20), (5000,)])
@pytest.mark.parametrize("heat", [None, np.zeros((60, 90), np.float32), np.eye(60, 90, dtype=np.float32)])
def test_any_objects_and_fields_can_be_drawn(sizes, heat):
    boxes = np.array([[10, 10, 10 + s, 10 + s / 2] for s in sizes], dtype=np.float32).reshape(-1, 4)
    rows = [RangeRow("finite", (31, 63)), RangeRow("endless", (np.inf,), True)]
    for field, field_hw, ranges in itertools.product(
        [None, (0, 0, 90, 60)], [(31, 31), (np.inf, np.inf)], [rows, [], [RangeRow("all", (31.0, 8000.0), True)]]
    ):
        view = FieldView(
            np.zeros((60, 90, 3), np.uint8), boxes, (8, 8, 16, 16), field, field_hw, heat, 12.0, ranges, 4, "words"
        )
        assert_legible(draw_receptive_field(view))


def test_turning_controls_from_python(yolof, picture):
    explorer = ReceptiveFieldExplorer({"yolof": yolof, "fresh yolox-nano": "yolox-nano"}, [picture])
    assert explorer.values["stage"] == "encoder" and explorer.values["block4_dilation"] == 4
    before = bytes(explorer.picture)
    explorer.change(block2_on=False)
    assert bytes(explorer.picture) != before
    stages = explorer.variant().stages  # three blocks are left; after the last of them the encoder ends
    assert "encoder.blocks.1" in stages and "encoder.blocks.2" not in stages
    assert explorer.variant().words("encoder.blocks.1") == "encoder after block 3"
    with pytest.raises(MinidetError, match="block1_dilation is 9"):
        explorer.change(block1_dilation=9)
    with pytest.raises(MinidetError, match="no control 'dilation'"):
        explorer.change(dilation=3)
    assert explorer.values["block1_dilation"] == 1
    explorer.change(model="fresh yolox-nano")
    assert explorer.values["stage"] == "p4" and "block1_on" not in explorer.values
    explorer.change(model="yolof")  # which begins as it is
    assert explorer.values["block2_on"] is True


@pytest.mark.parametrize("models", [{}, {"x": 3}, ["no-such-model"]])
def test_models_that_are_none_are_refused(models, picture):
    with pytest.raises(MinidetError):
        ReceptiveFieldExplorer(models, [picture])
