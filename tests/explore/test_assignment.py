"""The assignment explorer's numbers are the assigner's, for whatever a person can set."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import minidet
from minidet.assign import (
    ATSS,
    IGNORED,
    OTA,
    POTO,
    BestAnchor,
    CentreSampling,
    MaxIoU,
    OneToOne,
    SimOTA,
    UniformMatching,
)
from minidet.boxes import pairwise_iou
from minidet.data.shapes import draw_scene
from minidet.draw import figure_png
from minidet.draw.assignment import CONFLICT, POSITIVE, draw_assignment
from minidet.draw.assignment import IGNORED as IGNORED_MARK
from minidet.errors import DataError, MinidetError
from minidet.explore.assignment import AssignmentBench, State, sizes_of
from minidet.explore.pictures import read_pictures, tidy_boxes
from minidet.explore.steps import claims_of, steps_of

RULES = (
    SimOTA(),
    UniformMatching(),
    MaxIoU(),
    ATSS(),
    CentreSampling(radius=1.5),
    OneToOne(),
    OTA(),
    BestAnchor(),
    POTO(),
)


def only(bench: AssignmentBench, rule: int = 0, model: int = 0, **changes) -> State:
    """The state of one panel with one strategy."""
    state = bench.first_state()
    return bench.checked(replace(state, panels=(replace(bench.first_choice(model, rule), **changes),)))


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_numbers_equal_the_assigner_on_200_random_scenes(nano, yolof, scene_of):
    random = np.random.default_rng(0)
    pictures = [torch.from_numpy(random.integers(0, 255, (3, 64, 96)).astype(np.uint8)) for _ in range(10)]
    benches = [AssignmentBench(m, [(p, scene_of(0)[1]) for p in pictures], rules=RULES) for m in (nano, yolof)]
    with torch.no_grad():
        said = [[model.dense([picture]) for picture in pictures] for model in (nano, yolof)]
    for seed in range(200):
        model, image, number = seed % 2, seed // 2 % 10, seed // 20 % len(RULES)
        scene = scene_of(count=seed % 23, seed=seed)
        boxes, labels = (scene[1][name].numpy() for name in ("boxes", "labels"))
        choice = benches[model].first_choice(0, number)
        (panel,) = benches[model].numbers(benches[model].checked(State(image, boxes, labels, (choice,))))

        predictions, gt = said[model][image], (nano, yolof)[model].ground_truth([scene[0]], [scene[1]])
        with torch.no_grad():
            expected = RULES[number](predictions, gt)
        matched = expected.matched_gt[0].numpy()
        assert np.array_equal(panel.assignment.matched_gt[0].numpy(), matched)
        assert torch.equal(panel.assignment.quality, expected.quality)

        # What is counted and drawn, counted again slot by slot.
        levels = predictions.grid.levels.numpy()
        for gt_row in range(len(scene[1]["labels"])):
            for level in range(len(predictions.grid.level_shapes)):
                count = sum(1 for slot in range(len(levels)) if matched[slot] == gt_row and levels[slot] == level)
                assert panel.per_level[gt_row, level] == count
        drawn = dict(
            zip(*(getattr(panel.marks.where(panel.marks.kind == POSITIVE), k) for k in ("slot", "owner")), strict=True)
        )
        assert drawn == {slot: matched[slot] for slot in np.flatnonzero(matched >= 0)}
        ignored = panel.marks.where(panel.marks.kind == IGNORED_MARK).slot
        assert set(ignored.tolist()) == set(np.flatnonzero(matched == IGNORED).tolist())
        assert panel.ignored == len(ignored)
        assert set(panel.unowned) == set(range(len(scene[1]["labels"]))) - set(matched[matched >= 0].tolist())


def test_models_and_stages_are_asked_for_their_own_predictions(nano, scene_of):
    torch.manual_seed(5)
    later = minidet.create_model("yolox-nano", num_classes=8, input_hw=(64, 96)).eval()
    for name, weight in later.named_parameters():
        if name.endswith("box_predictor.weight"):
            torch.nn.init.normal_(weight)  # as if it had learned something
    scene = scene_of(6)
    bench = AssignmentBench([("before", nano), ("after", later)], scene, rules=[SimOTA()])
    state = bench.first_state(side_by_side=True)
    panels = bench.numbers(bench.checked(state))
    for model, panel in zip((nano, later), panels, strict=True):
        expected = model.assign([scene[0]], [scene[1]]).matched_gt  # with the model's own rule, SimOTA
        assert torch.equal(panel.assignment.matched_gt, expected)
    assert not torch.equal(*(panel.assignment.matched_gt for panel in panels))


def test_the_network_runs_once_for_a_picture_and_is_left_as_it_was(nano, scene_of, monkeypatch):
    runs = []
    monkeypatch.setattr(nano, "dense", lambda images, dense=nano.dense: runs.append(1) or dense(images))
    nano.train()
    before = {name: tensor.clone() for name, tensor in nano.state_dict().items()}
    bench = AssignmentBench(nano, [scene_of(3), scene_of(4, seed=1)])
    for image, rule in itertools.product((0, 1, 0), range(len(bench.rules))):
        scene = bench.pictures[image]
        bench.numbers(
            bench.checked(State(image, scene.boxes.numpy(), scene.labels.numpy(), (bench.first_choice(0, rule),)))
        )
    assert len(runs) == 2
    assert nano.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in nano.state_dict().items())
    nano.eval()


def test_objects_are_drawn_in_pixels_of_the_picture_and_assigned_in_those_of_the_input(nano, scene_of):
    image, target = scene_of(5)
    large = image.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)  # 128 x 192, brought to 64 x 96
    scene = (large, {"boxes": target["boxes"] * 2, "labels": target["labels"]})
    bench = AssignmentBench(nano, scene)
    (panel,) = bench.numbers(only(bench))
    assert torch.equal(panel.assignment.matched_gt, nano.assign([large], [scene[1]]).matched_gt)
    ground = bench.ground(0, 0)
    assert ground.places[0].tolist() == [8, 8]  # the middle of an 8 px cell, twice as large
    assert ground.cells[0] == 16
    assert ground.strides == (8, 16, 32)


def test_the_anchors_of_a_cell_are_drawn_beside_each_other_in_it(yolof, scene_of):
    bench = AssignmentBench(yolof, scene_of(2))
    ground, grid = bench.ground(0, 0), bench.dense(0, 0).grid
    _, [scale] = yolof.network_input([bench.pictures[0].image])
    cells = np.floor(ground.places * np.array(scale) / 32)
    assert np.array_equal(cells, grid.cells.numpy())
    assert len(np.unique(ground.places, axis=0)) == len(grid)


def test_conflicts_are_slots_that_several_objects_asked_for():
    """Two objects of one class on one spot want the same slots; a third stands far away."""
    torch.manual_seed(3)
    model = minidet.create_model("yolox-nano", num_classes=8, input_hw=(64, 96)).eval()
    boxes = [[20, 20, 44, 44], [20, 20, 44, 44], [70, 10, 90, 30]]
    scene = (torch.zeros(3, 64, 96, dtype=torch.uint8), {"boxes": torch.tensor(boxes), "labels": torch.zeros(3)})
    bench = AssignmentBench(model, scene, rules=RULES)
    for number, rule in enumerate(RULES):
        (panel,) = bench.numbers(only(bench, number))
        slots, gts = claims_of(rule, panel.assignment.trace[0])
        asked = {slot: {gt for other, gt in zip(slots, gts, strict=True) if other == slot} for slot in slots.tolist()}
        contested = {slot for slot, by in asked.items() if len(by) > 1}
        assert panel.conflicts == len(contested)
        assert set(panel.marks.where(panel.marks.kind == CONFLICT).slot.tolist()) == contested
        assert (panel.conflicts > 0) == (not isinstance(rule, OneToOne | POTO))
        assert all(2 not in asked[slot] for slot in contested)


def test_objects_without_a_slot_are_named_in_words(nano):
    boxes = [[10, 10, 12, 12], [30, 20, 70, 50]]  # no anchor of 32 px overlaps 2 px by half
    scene = (np.zeros((64, 96, 3), np.uint8), {"boxes": boxes, "labels": [0, 1]})
    bench = AssignmentBench(nano, scene, rules=[MaxIoU(low_quality=False)])
    state = only(bench)
    (panel,) = bench.numbers(state)
    assert panel.unowned == (0,)
    assert "Without any slot: object 1!" in bench.alt(state, [panel])


def test_sizes_are_those_of_coco():
    boxes = np.array([[0, 0, 31, 32], [0, 0, 32, 32], [0, 0, 96, 95], [0, 0, 96, 96]])
    found = sizes_of(boxes, np.array([0, 2, 3, 4]))
    assert [(each["objects"], each["positives"], each["without"]) for each in found] == [
        (1, 0, 1),
        (2, 5, 0),
        (1, 4, 0),
    ]


# ---- step by step ---------------------------------------------------------------------------------------------------


def test_simota_is_told_in_its_four_steps_and_the_result(nano, scene_of):
    bench = AssignmentBench(nano, scene_of(4), rules=[SimOTA()])
    assert [name for name, _ in steps_of(SimOTA())] == ["Candidates", "Costs", "Dynamic k", "Conflicts", "Result"]
    candidates, costs, dynamic_k, conflicts, _ = (bench.numbers(only(bench, step=i))[0] for i in range(5))
    trace = candidates.assignment.trace[0]

    free = trace["candidates"][trace["free"][0]].tolist()  # without a selected object the first is looked at
    own = candidates.marks.where(candidates.marks.owner == 0).slot
    assert sorted(own.tolist()) == sorted(free)
    assert f"has {len(free)} without penalty" in candidates.explanation.text

    order = trace["cost"][0].argsort(stable=True)[: len(free)]
    assert costs.marks.slot.tolist() == trace["candidates"][order].tolist()  # cheapest first
    assert costs.marks.value[0] == 0 and costs.marks.value.max() == 254
    head, *first = costs.explanation.rows[0]
    assert head.startswith("1 ")
    assert float(first[0][0]) == pytest.approx(float(trace["cost"][0].min()), abs=0.06)

    best = trace["iou"][0].sort(descending=True).values[:10]
    assert f"k = {max(int(best.sum()), 1)}." in dynamic_k.explanation.text
    assert float(dynamic_k.explanation.rows[-1][-1]) == pytest.approx(float(best.sum()), abs=0.006)

    asked = conflicts.marks.where(conflicts.marks.kind == POSITIVE)
    assert len(asked) == int(trace["wanted"].sum()) == int(trace["dynamic_k"].sum())


def test_uniform_matching_is_told_in_its_three_steps_and_the_result(yolof, scene_of):
    rule = UniformMatching(k=3, min_anchor_iou=0.3)
    bench = AssignmentBench(yolof, scene_of(4), rules=[rule])
    assert [name for name, _ in steps_of(rule)] == ["Distances", "Nearest k", "Thresholds", "Result"]
    distances, nearest, thresholds, _ = (bench.numbers(only(bench, step=i))[0] for i in range(4))
    trace = distances.assignment.trace[0]

    assert distances.marks.slot[-1] == int(trace["pred_distance"][0].argmin())  # the nearest lies on top
    assert distances.explanation.rows[0][1] == f"{float(trace['pred_distance'][0].min()):.0f}"

    ranked = nearest.marks.where(nearest.marks.owner == 0)
    wanted = [*trace["nearest_anchors"][0].tolist(), *trace["nearest_predictions"][0].tolist()]
    assert ranked.slot.tolist() == wanted
    assert ranked.value.tolist() == [1, 2, 3, 1, 2, 3]

    dropped = int(trace["pair_ignored"].sum())
    assert f"{dropped} of {2 * 3 * 4} pairs" in thresholds.explanation.text
    assert len(thresholds.explanation.rows) == 2 * 3


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_numbers_behind_a_slot_are_those_of_the_trace(rule, nano, scene_of):
    bench = AssignmentBench(nano, scene_of(5), rules=[rule])
    state = only(bench)
    (panel,) = bench.numbers(state)
    slot = int(panel.marks.where(panel.marks.kind == POSITIVE).slot[0])
    owner = int(panel.assignment.matched_gt[0, slot])
    (panel,) = bench.numbers(replace(state, hover=(0, slot)))
    text, columns, rows = panel.hover
    assert text.startswith(f"slot {slot} (stride 8) learns {owner + 1} ")
    assert len(rows) == 5 and all(len(row) == len(columns) for row in rows)
    assert rows[0][0].startswith(f"{owner + 1} ")  # the owner comes first

    shown = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
    gts = [int(row[0].split()[0]) - 1 for row in rows]
    trace, dense = panel.assignment.trace[0], bench.dense(0, 0)
    gt_boxes = panel.assignment.gt.boxes_of(0)
    if isinstance(rule, SimOTA):
        column = trace["candidates"].tolist().index(slot)
        assert shown["IoU"] == [f"{float(x):.2f}" for x in pairwise_iou(gt_boxes, dense.boxes[0, slot][None])[gts, 0]]
        assert shown["cost"] == [f"{float(x):,.2f}" for x in trace["cost"][gts, column]]
        ranks = [sorted(trace["cost"][gt].tolist()).index(float(trace["cost"][gt, column])) + 1 for gt in gts]
        assert shown["rank"] == [str(rank) for rank in ranks]
    elif isinstance(rule, UniformMatching):
        assert shown["distance of the prediction"] == [f"{float(x):.0f}" for x in trace["pred_distance"][gts, slot]]
    elif isinstance(rule, OTA):
        column = trace["candidates"].tolist().index(slot)
        assert shown["cost"] == [f"{float(x):,.2f}" for x in trace["cost"][gts, column]]
        assert shown["share"] == [f"{float(x):.2f}" for x in trace["plan"][gts, column]]
    elif isinstance(rule, POTO):
        column = trace["candidates"].tolist().index(slot)
        assert shown["quality"] == [f"{float(x):.3f}" for x in trace["quality"][gts, column]]
        assert shown["near the centre"][0] == "yes"
    elif isinstance(rule, OneToOne):
        assert shown["cost"] == [f"{float(x):.2f}" for x in trace["cost"][gts, slot]]
        assert shown["rank"][0] == "1"
    else:
        anchors = pairwise_iou(gt_boxes, dense.grid.anchor_boxes[slot][None])[gts, 0]
        if "anchor IoU" in shown:
            assert shown["anchor IoU"] == [f"{float(x):.2f}" for x in anchors]
        if "wants it" in shown:
            assert shown["wants it"][0] == "yes"


def test_any_slot_can_be_looked_at_and_none_that_is_not_there(nano, yolof, scene_of):
    for model, rule in itertools.product((nano, yolof), RULES):
        for count in (0, 4):
            bench = AssignmentBench(model, scene_of(count), rules=[rule])
            state = only(bench)
            slots = len(bench.dense(0, 0).grid)
            for slot in range(0, slots, 7):
                (panel,) = bench.numbers(replace(state, hover=(0, slot)))
                assert panel.hover[0].startswith(f"slot {slot} ")
            for slot in (-1, slots, 10**6):
                assert bench.numbers(replace(state, hover=(0, slot)))[0].hover is None


# ---- every position of every control --------------------------------------------------------------------------------


def picture_of(bench: AssignmentBench, state: State, side: int = 96):
    state = bench.checked(state)
    numbers = bench.numbers(state)
    pixels = bench.pictures[state.image].image.permute(1, 2, 0).numpy()
    strides = bench.ground(state.panels[0].model, state.image).strides
    return draw_assignment(pixels, state.boxes, bench.drawn(state, numbers), strides, bench.alt(state, numbers), side)


@pytest.mark.parametrize("number", range(len(RULES)), ids=[type(rule).__name__ for rule in RULES])
def test_every_position_of_every_dial_at_every_step_can_be_drawn(number, nano, scene_of):
    bench = AssignmentBench(nano, scene_of(4), rules=RULES)
    start = bench.first_choice(0, number)
    last = len(steps_of(RULES[number])) - 1
    positions = [(i, p) for i, dial in enumerate(bench.dials[number]) for p in range(len(dial.values))]
    for turn, (dial, position) in enumerate(positions):
        dials = (*start.dials[:dial], position, *start.dials[dial + 1 :])
        choice = replace(start, dials=dials, moved=bench.dials[number][dial].name)
        # The steps in turn, so that each of them meets many positions.
        state = replace(bench.first_state(), panels=(replace(choice, step=turn % (last + 1)),))
        drawing = picture_of(bench, state)
        assert drawing.axes and type(RULES[number]).__name__ in drawing.alt


@pytest.mark.parametrize("number", range(len(RULES)), ids=[type(rule).__name__ for rule in RULES])
def test_every_step_class_level_object_and_model_can_be_drawn(number, nano, yolof, scene_of):
    bench = AssignmentBench([("nano", nano), ("yolof", yolof)], [scene_of(3), scene_of(0)], rules=RULES)
    for model, image, step in itertools.product((0, 1), (0, 1), range(len(steps_of(RULES[number])))):
        scene = bench.pictures[image]
        choice = replace(bench.first_choice(model, number), step=step)
        for selected in range(-1, len(scene.labels)):
            state = State(image, scene.boxes.numpy(), scene.labels.numpy(), (choice,), selected)
            assert len(figure_png(picture_of(bench, state))) > 500
        for hidden in ((0,), (1, 2), (0, 1, 2)):
            panels = (replace(choice, hidden=hidden),)
            state = bench.checked(State(image, scene.boxes.numpy(), scene.labels.numpy(), panels))
            (drawn,) = bench.drawn(state, bench.numbers(state))
            assert not set(drawn.levels[drawn.marks.slot].tolist()) & set(hidden)
            picture_of(bench, state)
    for label in range(8):
        labels = np.full(3, label)
        picture_of(bench, State(0, bench.pictures[0].boxes.numpy(), labels, (bench.first_choice(0, number),)))


def test_a_picture_is_the_same_every_time_and_tells_owners_in_numbers(nano):
    scene = draw_scene(np.random.default_rng([2024, 3]))
    bench = AssignmentBench(nano, scene)
    state = bench.first_state()
    drawing = picture_of(bench, state, 640)
    assert figure_png(drawing) == figure_png(picture_of(bench, state, 640))
    words = {text.get_text() for axes in drawing.axes for text in axes.texts}
    assert {str(row + 1) for row in range(len(scene.labels))} <= {word.split()[0] for word in words}
    assert any("ignored" in word and "conflict" in word for word in words)


def test_where_models_have_different_strides_the_legend_says_whose_level_a_shape_is(nano, yolof, scene_of):
    bench = AssignmentBench([("nano", nano), ("yolof", yolof)], scene_of(3), rules=[MaxIoU()])
    state = bench.first_state(side_by_side=True)

    def legend(state):
        words = {text.get_text() for axes in picture_of(bench, state).axes for text in axes.texts}
        return {word for word in words if "stride" in word}

    assert "yolof: stride 32" in legend(state)
    assert {word.split(":")[0] for word in legend(state)} == {"nano", "yolof"}
    assert legend(replace(state, panels=state.panels[:1])) <= {"stride 8", "stride 16", "stride 32"}


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-50, -50, 20, 30], [0, 0, 20, 30]),  # dragged half out of the picture: cut off at its border
        ([200, 200, 300, 300], [95, 63, 96, 64]),  # dragged out of it: a pixel is left
        ([-9, -9, -5, -5], [0, 0, 1, 1]),
        ([30, 40, 30, 40], [30, 40, 31, 41]),  # no size: a pixel
        ([40, 40, 20, 10], [20, 10, 40, 40]),  # corners the wrong way round
        ([np.nan, 5, np.inf, 10], [0, 5, 96, 10]),
    ],
)
def test_a_box_stays_in_the_picture_and_has_a_pixel_at_least(box, expected, nano, scene_of):
    assert tidy_boxes(np.array([box]), (64, 96)).tolist() == [expected]
    bench = AssignmentBench(nano, scene_of(0), rules=RULES)
    for number in range(len(RULES)):
        state = State(0, np.array([box]), np.array([3]), (bench.first_choice(0, number),))
        state = bench.checked(state)
        assert state.boxes.tolist() == [expected]
        bench.numbers(state)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_no_objects_and_300_objects_are_fine_with_every_strategy(count, nano, scene_of):
    bench = AssignmentBench(nano, scene_of(count), rules=RULES)
    for number in range(len(RULES)):
        for step in range(len(steps_of(RULES[number]))):
            (panel,) = bench.numbers(only(bench, number, step=step))
            assert panel.per_level.shape == (count, 3)


def test_what_a_view_could_ask_for_wrongly_is_refused_in_words(nano, scene_of):
    bench = AssignmentBench(nano, scene_of(2))
    good = bench.first_state()
    choice = good.panels[0]
    many = np.tile(good.boxes, (200, 1))
    for state, words in [
        (replace(good, boxes=many, labels=np.zeros(400, int)), "at most 300 objects"),
        (replace(good, image=3), "no picture 3"),
        (replace(good, labels=np.array([0, 8])), "labels go from 0 to 7"),
        (replace(good, labels=np.array([0])), "2 boxes, but 1 labels"),
        (replace(good, panels=()), "1 to 4 panels"),
        (replace(good, panels=(choice,) * 5), "1 to 4 panels"),
        (replace(good, panels=(replace(choice, model=1),)), "no model 1"),
        (replace(good, panels=(replace(choice, rule=9),)), "no strategy 9"),
        (replace(good, panels=(replace(choice, step=5),)), "no step 5"),
    ]:
        with pytest.raises(MinidetError, match=words):
            bench.checked(state)
    assert bench.checked(replace(good, selected=7)).selected == -1  # such as after a deletion


def test_models_pictures_and_strategies_of_wrong_forms_are_refused_in_words(nano, scene_of):
    other = minidet.create_model("yolox-nano", num_classes=3)
    scene = scene_of(2)
    for arguments, words in [
        (("yolox-nano", scene), "give one detector"),
        (([], scene), "give one detector"),
        (([nano], scene), "give one detector"),
        (([("a", nano), ("b", other)], scene), r"\[3, 8\] classes"),
        ((nano, []), "there is no picture"),
        ((nano, [3]), "picture 0: expected"),
        ((nano, scene, []), "no strategy"),
        ((other, (scene[0], {"boxes": [[0, 0, 9, 9]], "labels": [3]})), "labels go from 0 to 2"),
        ((nano, (torch.rand(3, 8, 8), {"boxes": [], "labels": []})), "uint8"),
        ((nano, (scene[0], {"boxes": [[0, 0, 9, 9]], "labels": []})), "1 boxes, but 0 labels"),
    ]:
        with pytest.raises(MinidetError, match=words):
            AssignmentBench(*arguments)
    with pytest.raises(DataError):
        read_pictures(5)


def test_pictures_come_in_every_form_that_the_library_has_them_in(nano):
    drawn = draw_scene(np.random.default_rng(0))
    pair = (torch.from_numpy(drawn.image).permute(2, 0, 1), {"boxes": drawn.boxes, "labels": drawn.labels})
    for data in (drawn, [drawn], pair, [pair], [(drawn.image, pair[1])]):
        (scene,) = read_pictures(data)
        assert torch.equal(scene.image, pair[0])
        assert np.array_equal(scene.boxes.numpy(), drawn.boxes.astype(np.float32))
        assert np.array_equal(scene.labels.numpy(), drawn.labels)


def test_a_choice_that_only_looks_elsewhere_does_not_assign_again(nano, scene_of, monkeypatch):
    asked = []
    call = SimOTA.__call__
    monkeypatch.setattr(SimOTA, "__call__", lambda self, *a, **k: asked.append(1) or call(self, *a, **k))
    bench = AssignmentBench(nano, scene_of(3), rules=[SimOTA()])
    state = only(bench)
    for other in (state, replace(state, hover=(0, 3)), replace(state, selected=1), only(bench, step=1, hidden=(0,))):
        bench.numbers(other)
    assert len(asked) == 1
    bench.numbers(replace(state, boxes=state.boxes + 1))
    assert len(asked) == 2
