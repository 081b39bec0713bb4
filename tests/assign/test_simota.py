"""SimOTA step by step on numbers small enough to check by eye, and against the official code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torchvision.ops import box_iou

import minidet
from minidet.assign import BACKGROUND, DensePredictions, SimOTA, pad_targets
from minidet.assign.simota import (
    centre_candidates,
    cheapest,
    class_cost,
    dynamic_k,
    inside_box,
    owners,
    slots_around,
)
from minidet.boxes import cxcywh_to_xyxy
from minidet.files import read_json
from minidet.grid import Grid, make_grid

VERSIONS = {"main": SimOTA(), "v030": SimOTA.published()}
CASES = [
    "empty",
    "one_medium",
    "one_tiny",
    "one_huge",
    "few_anchors",
    "non_square",
    "crowded60",
    "border",
    "thin",
    "concentric",
    "duplicates",
    "perfect",
    "centre_outside",
    "bystander",
]


def test_an_object_inside_a_cell_has_three_by_three_candidates_on_every_level():
    strides = (8, 16, 32)
    grid = make_grid([(256 // s, 256 // s) for s in strides], strides)
    inside_cells = torch.tensor([[125.0, 125, 131, 133]])  # centre (128 + ..., 129): not on a border of any level
    inside_cells += 5
    on_a_corner = torch.tensor([[120.0, 120, 136, 136]])  # centre (128, 128): a corner of cells on every level
    near = centre_candidates(grid.centers, grid.strides, torch.cat([inside_cells, on_a_corner]), radius=1.5)
    assert [near[0, grid.levels == level].sum().item() for level in range(3)] == [9, 9, 9]
    assert [near[1, grid.levels == level].sum().item() for level in range(3)] == [4, 4, 4]


def test_the_factorised_class_cost_equals_the_sum_over_classes():
    class_logits, object_logits = 4 * torch.randn(50, 7), 4 * torch.randn(50)
    labels = torch.tensor([0, 3, 6, 3])
    score = (class_logits.sigmoid() * object_logits.sigmoid()[:, None]).sqrt()
    one_hot = F.one_hot(labels, 7).float()[:, None].expand(4, 50, 7)
    expected = F.binary_cross_entropy(score[None].expand(4, 50, 7), one_hot, reduction="none").sum(-1)
    costs = class_cost(class_logits[None], object_logits[None], labels[None])
    torch.testing.assert_close(costs[0], expected, rtol=1e-5, atol=1e-5)


def test_k_is_the_truncated_sum_of_the_largest_overlaps_and_at_least_one():
    ious = torch.tensor([[0.9, 0.9, 0.9, 0.0], [0.1, 0.1, 0.1, 0.1], [1.0, 1.0, 1.0, 0.99]])
    assert dynamic_k(ious, 10, torch.tensor(4)).tolist() == [2, 1, 3]
    assert dynamic_k(ious, 2, torch.tensor(4)).tolist() == [1, 1, 2]
    assert dynamic_k(ious, 10, torch.tensor(1)).tolist() == [1, 1, 1]  # one candidate, the others only fill up
    assert dynamic_k(ious, 10, torch.tensor(0)).tolist() == [0, 0, 0]


def test_each_object_wants_its_k_cheapest_slots():
    costs = torch.tensor([[[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]]])
    slots, wanted = cheapest(costs, torch.tensor([[2, 1]]), max_k=10)
    assert slots.tolist() == [[[1, 2, 0], [0, 1, 2]]]
    assert wanted.tolist() == [[[True, True, False], [True, False, False]]]


def test_a_contested_slot_goes_to_the_cheapest_object_even_one_that_did_not_ask():
    costs = torch.tensor([[[5.0, 1.0, 0.0], [4.0, 9.0, 0.0], [3.0, 9.0, 0.0]]])
    wanted = torch.tensor([[[0, 1], [0, 2], [0, 1]]])
    exists = torch.tensor([[[True, True], [True, False], [False, False]]])
    owner, times = owners(wanted, exists, costs)
    assert owner.tolist() == [[2, 0, BACKGROUND]]
    assert times.tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.3, 1.5, 2.5])
def test_slots_found_by_arithmetic_are_those_whose_centre_is_near(radius):
    strides = (8, 16, 32)
    grid = make_grid([(256 // s, 320 // s) for s in strides], strides)
    corner = torch.rand(3, 40, 2) * 400 - 50  # some centres outside the picture
    corner[1] = (corner[1] / 8).round() * 8  # these lie on borders of cells
    gt_boxes = torch.cat([corner - 8, corner + 8], dim=-1)
    slots, exists = slots_around(grid, gt_boxes, radius)
    found = torch.zeros(3, 40, len(grid) + 1, dtype=torch.bool)
    found.scatter_(2, torch.where(exists, slots, len(grid)), True)
    assert torch.equal(found[..., :-1], centre_candidates(grid.centers, grid.strides, gt_boxes, radius))
    assert exists.sum() == found[..., :-1].sum()  # none comes twice


def one_by_one(rule: SimOTA, predictions: DensePredictions, target: dict, image: int) -> torch.Tensor:
    """SimOTA as it is told: one image, one object after the other, over all slots. Gives the matched objects [A]."""
    grid, labels = predictions.grid, target["labels"]
    near = centre_candidates(grid.centers, grid.strides, target["boxes"], rule.radius)  # [G, A]
    inside = inside_box(grid.centers, target["boxes"])
    candidate, free = (near | inside, near & inside) if rule.box_candidates else (near, near)
    candidate = candidate.any(dim=0).nonzero().flatten()
    score = predictions.class_logits[image].sigmoid() * predictions.object_logits[image].sigmoid()[:, None]
    score = score.sqrt()
    costs, wants, owner = [], {}, torch.full((len(grid),), BACKGROUND)
    for gt, box in enumerate(target["boxes"]):
        overlap = box_iou(box[None], predictions.boxes[image, candidate])[0]
        one_hot = F.one_hot(labels[gt], score.shape[1]).float().expand(len(candidate), -1)
        cost = F.binary_cross_entropy(score[candidate], one_hot, reduction="none").sum(dim=1)
        cost = cost - rule.iou_weight * (overlap + 1e-8).log() + rule.outside_penalty * ~free[gt, candidate]
        k = max(int(overlap.sort(descending=True).values[: rule.max_k].sum()), 1)
        costs.append(cost)
        for place in cost.argsort()[:k].tolist():
            wants.setdefault(place, []).append(gt)
    for place, wanting in wants.items():
        owner[candidate[place]] = wanting[0] if len(wanting) == 1 else torch.stack(costs)[:, place].argmin()
    return owner


@pytest.mark.parametrize("version", VERSIONS)
def test_a_batch_at_once_gives_what_one_object_after_the_other_gives(version):
    grid = make_grid([(24, 32), (12, 16), (6, 8)], (8, 16, 32))
    for seed in range(20):
        torch.manual_seed(seed)
        # Centres that are inside by more than two of the coarsest cells: penalised costs are rounded and tie.
        centers = [64 + torch.rand(count, 2) * torch.tensor([128.0, 64.0]) for count in (1, 3, 12, 30)]
        sizes = [torch.exp(3 + 2 * torch.rand(len(each), 2)) for each in centers]
        targets = [
            {"boxes": torch.cat([c - s / 2, c + s / 2], dim=1), "labels": torch.randint(5, (len(c),))}
            for c, s in zip(centers, sizes, strict=True)
        ]
        middle = grid.centers + 6 * torch.randn(4, len(grid), 2)
        half = torch.exp(3 + torch.rand(4, len(grid), 2)) / 2
        boxes = torch.cat([middle - half, middle + half], dim=-1)
        logits = torch.randn(4, len(grid), 6)
        predictions = DensePredictions(grid, boxes, boxes, logits[..., 1:], logits[..., 0])
        result = VERSIONS[version](predictions, targets)
        for image, target in enumerate(targets):
            expected = one_by_one(VERSIONS[version], predictions, target, image)
            assert torch.equal(result.matched_gt[image], expected)


def test_the_published_version_takes_slots_of_the_whole_box():
    grid = make_grid([(8, 8)], [8])
    whole = torch.tensor([[0.0, 0, 64, 64]])
    gt = pad_targets([{"boxes": whole, "labels": torch.tensor([0])}])
    assert SimOTA().candidates(grid, gt)[1].sum() == 4  # its centre is a corner of four cells
    assert SimOTA.published().candidates(grid, gt)[1].sum() == 64
    assert SimOTA.published().free_pairs(grid, whole).sum() == 16


def official_grid(case: dict) -> Grid:
    cells, strides = torch.stack([case["x_shifts"], case["y_shifts"]], dim=1), case["strides"]
    last_cells = [cells[strides == stride][-1].int().tolist() for stride in (8, 16, 32)]
    grid = make_grid([(row + 1, column + 1) for column, row in last_cells], (8, 16, 32))
    assert torch.equal(grid.cells, cells)
    assert torch.equal(grid.strides, strides)
    return grid


def official_case(folder, name) -> tuple[DensePredictions, dict, dict]:
    tensors, meta = load_file(folder / "assign_cases.safetensors"), read_json(folder / "assign_cases.json")[name]
    case = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    grid = official_grid(case)
    outputs = case["outputs"][None]
    predictions = DensePredictions(
        grid, case["origin_preds"][None], cxcywh_to_xyxy(outputs[..., :4]), outputs[..., 5:], outputs[..., 4]
    )
    rows = case["targets"][: meta["main"]["num_gt"]]
    case["target"] = {"boxes": cxcywh_to_xyxy(rows[:, 1:]), "labels": rows[:, 0].long()}
    return predictions, case, meta


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_assignments_equal_the_official_ones(yolox_reference, name, version):
    predictions, case, meta = official_case(yolox_reference, name)
    result = VERSIONS[version](predictions, [case["target"]], trace=True)
    trace, expected = result.trace[0], meta[version]
    assert torch.equal(result.matched_gt[0], case[f"{version}.matched_gt"].long())
    torch.testing.assert_close(result.quality[0], case[f"{version}.matched_iou"], rtol=0, atol=1e-5)
    assert trace["dynamic_k"].tolist() == expected.get("dynamic_k", [])
    assert len(trace["conflicts"]) == expected.get("conflicts", 0)
    if f"{version}.cost" in case:
        assert torch.equal(trace["candidates"], case[f"{version}.candidate_mask"].nonzero().flatten())
        step = 0.0625 if version == "main" else 0.0078125  # resolution of a penalised cost in float32
        free = trace["free"]
        torch.testing.assert_close(trace["cost"][free], case[f"{version}.cost"][free], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(trace["cost"][~free], case[f"{version}.cost"][~free], rtol=0, atol=step)
        torch.testing.assert_close(trace["iou"], case[f"{version}.pair_iou"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_on_these_assignments_equal_the_official_ones(yolox_reference, name):
    _, case, meta = official_case(yolox_reference, name)
    outputs, raw = case["outputs"].clone().requires_grad_(), case["origin_preds"].clone().requires_grad_()
    grid = official_grid(case)
    predictions = DensePredictions(
        grid, raw[None], cxcywh_to_xyxy(outputs[None, :, :4]), outputs[None, :, 5:], outputs[None, :, 4]
    )
    model = minidet.create_model("yolox-nano", num_classes=meta["num_classes"])
    model.use_l1 = True
    assignment = SimOTA()(predictions.detach(), [case["target"]])
    losses = model.losses_of(predictions, assignment, [case["target"]])
    expected = meta["main"]["losses"]
    for ours, theirs in [("box", "iou"), ("objectness", "conf"), ("class", "cls"), ("l1", "l1")]:
        assert losses[f"loss_{ours}"].item() == pytest.approx(expected[f"{theirs}_loss"], rel=1e-5), ours
    total = sum(losses.values())
    assert total.item() == pytest.approx(expected["total_loss"], rel=1e-5)
    total.backward()
    torch.testing.assert_close(outputs.grad, case["main.grad_outputs"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(raw.grad, case["main.grad_origin_preds"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_official_case_stands_here_for_those_without_the_reference_folder(version):
    case = read_json(Path(__file__).parent.parent / "golden" / "simota_few_anchors.json")
    outputs, rows = torch.tensor(case["outputs_cxcywh_object_classes"]), torch.tensor(case["targets_class_cxcywh"])
    predictions = DensePredictions(
        make_grid(case["level_shapes"], [8, 16, 32]),
        torch.tensor(case["raw_boxes"])[None],
        cxcywh_to_xyxy(outputs[None, :, :4]),
        outputs[None, :, 5:],
        outputs[None, :, 4],
    )
    target = {"boxes": cxcywh_to_xyxy(rows[:, 1:]), "labels": rows[:, 0].long()}
    expected = case[version]
    assignment = VERSIONS[version](predictions, [target], trace=True)
    assert assignment.matched_gt[0].tolist() == expected["matched_gt"]
    assert assignment.trace[0]["dynamic_k"].tolist() == expected["dynamic_k"]
    assert len(assignment.trace[0]["conflicts"]) == expected["conflicts"]

    model = minidet.create_model("yolox-nano", num_classes=case["num_classes"])
    model.use_l1 = True
    losses = model.losses_of(predictions, assignment, [target])
    for ours, theirs in [("box", "iou"), ("objectness", "conf"), ("class", "cls"), ("l1", "l1")]:
        assert losses[f"loss_{ours}"].item() == pytest.approx(expected["losses"][f"{theirs}_loss"], rel=1e-5), ours
