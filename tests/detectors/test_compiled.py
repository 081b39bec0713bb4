"""A training step is one graph: nothing in it depends on a value that a device would have to be asked for."""

from __future__ import annotations

import copy

import pytest
import torch

import minidet
from minidet.assign import (
    ATSS,
    OTA,
    BestAnchor,
    CentreSampling,
    DensePredictions,
    MaxIoU,
    SimOTA,
    UniformMatching,
    pad_targets,
)
from minidet.grid import make_grid

STEPS = [
    ("yolox-tiny", SimOTA()),
    ("yolof-r18-c5", UniformMatching(min_anchor_iou=0)),  # no object is so small that nothing is positive
]
RULES = [
    SimOTA(),
    SimOTA.published(),
    OTA(iterations=5),
    UniformMatching(min_anchor_iou=0),
    MaxIoU(),
    BestAnchor(),
    ATSS(),
    CentreSampling(),
    CentreSampling(radius=1.5),
]


def small(name: str, **changes) -> minidet.detectors.Detector:
    """A detector with so few layers that it is translated within seconds."""
    if name.startswith("yolox"):
        changes |= {"width": 0.0625, "depth": 0.1}
    return minidet.create_model(name, num_classes=3, input_hw=(64, 96), **changes).train()


def random_targets(*counts: int) -> list[dict]:
    targets = []
    for count in counts:
        corner = 4 + 30 * torch.rand(count, 2)
        boxes = torch.cat([corner, corner + 8 + 20 * torch.rand(count, 2)], dim=1)
        targets.append({"boxes": boxes, "labels": torch.randint(3, (count,))})
    return targets


@pytest.mark.parametrize(("name", "assigner"), STEPS, ids=["YOLOX", "YOLOF"])
def test_a_compiled_step_is_one_graph_with_the_same_losses_and_gradients(name, assigner):
    torch.manual_seed(0)
    torch.compiler.reset()
    plain = small(name, assigner=assigner)
    plain.use_l1 = name.startswith("yolox")
    compiled = copy.deepcopy(plain)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled.compile(backend=backend)  # raises where a graph would break: at any .item(), nonzero or boolean index
    images = torch.rand(2, 3, 64, 96)
    for counts in ((3, 2), (20, 0), (4, 4)):  # with the second number of objects their number becomes a variable
        targets = random_targets(*counts)
        expected, losses = plain(images, targets), compiled(images, targets)
        assert plain.last_assignment.num_positives > 0
        assert torch.equal(compiled.last_assignment.matched_gt, plain.last_assignment.matched_gt)
        assert compiled.last_assignment.num_gt == counts
        torch.testing.assert_close(losses, expected)
        for each in (expected, losses):
            sum(each.values()).backward()
    assert len(graphs) <= 2
    ours = {name: value.grad for name, value in compiled.named_parameters() if value.grad is not None}
    theirs = {name: value.grad for name, value in plain.named_parameters() if value.grad is not None}
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("anchor_sizes", [None, [(16.0, 32.0)] * 3], ids=["without anchors", "two anchors a cell"])
def test_a_rule_is_one_graph_that_serves_any_number_of_objects(rule, anchor_sizes):
    torch.manual_seed(0)
    torch.compiler.reset()
    grid = make_grid([(8, 12), (4, 6), (2, 3)], (8, 16, 32), anchor_sizes=anchor_sizes)
    boxes = grid.anchor_boxes + torch.randn(2, len(grid), 4)
    logits = torch.randn(2, len(grid), 4)
    predictions = DensePredictions(grid, boxes, boxes, logits[..., 1:], logits[..., 0])
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda gt: rule(predictions, gt).matched_gt, fullgraph=True, backend=backend)
    for counts in ((3, 2), (5, 0), (4, 4), (7, 1), (2, 6)):
        gt = pad_targets(random_targets(*counts))
        plain = rule(predictions, gt)
        assert plain.num_positives > 0
        assert torch.equal(compiled(gt), plain.matched_gt)
    # The number as it is, as a variable, and perhaps as one that two steps compare. `cat` inside of `vmap`, as in
    # ATSS, takes every number as it is; rounded numbers (below) keep that few.
    assert len(graphs) <= (5 if isinstance(rule, ATSS) else 3)


def test_a_compiled_model_is_given_numbers_of_objects_in_steps_of_sixteen():
    model, images = small("yolox-tiny"), torch.zeros(2, 3, 64, 96)
    assert model.ground_truth(images, random_targets(3, 17)).boxes.shape == (2, 17, 4)
    model.compile(backend="eager")
    assert model.ground_truth(images, random_targets(3, 17)).boxes.shape == (2, 32, 4)
    assert model.ground_truth(images, random_targets(0, 0)).real.shape == (2, 16)


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights():
    torch.compiler.reset()
    model = small("yolox-tiny")
    model.compile(backend="eager")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for predictor in other.head.levels:
            predictor.box_predictor.bias.fill_(3.0)
    images, targets = torch.rand(2, 3, 64, 96), random_targets(3, 2)
    assert model(images, targets)["loss_box"] != other(images, targets)["loss_box"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("name", "assigner"), STEPS, ids=["YOLOX", "YOLOF"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_forward_assignment_losses_and_backward_never_wait(name, assigner, precision):
    model = small(name, assigner=assigner).cuda()
    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8).pin_memory()

    def step() -> None:
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            losses = model(images.cuda(non_blocking=True), random_targets(3, 2))
        sum(losses.values()).backward()

    step()  # allocates, and makes the grid
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
