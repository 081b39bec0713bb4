"""The exercises of chapter 08: right answers, and what typical wrong ones are told."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from minidet.boxes import pairwise_iou
from minidet.evaluation.task_gradients import cosine
from minidet.exercises import EXERCISES, review
from minidet.layers.heads import DecoupledHead, DecoupledLevel, HeadStyle, slots_first
from tests.exercises.told import assert_wrong, prose, stub

NAMES = ("decoupled_macs", "head_rows", "cell_cosines", "found_and_named")


# ---- stubs and solutions --------------------------------------------------------------------------------------------


def macs_solution(channels, shapes, width, outputs):
    total = 0
    for c, (rows, columns) in zip(channels, shapes, strict=True):
        total += rows * columns * (c * width + 4 * 9 * width**2 + width * outputs)
    return total


def rows_solution(x, parts, training):
    x = parts["stem"](x)
    class_features, box_features = parts["class_branch"](x), parts["box_branch"](x)
    maps = [parts["box_predictor"](box_features), parts["object_predictor"](box_features)]
    maps.append(parts["class_predictor"](class_features))
    rows = torch.cat(maps, dim=1).flatten(2).transpose(1, 2).float()
    return rows if training else torch.cat([rows[..., :4], rows[..., 4:].sigmoid()], dim=2)


def rows_by_loops(x, parts, training):
    x = parts["stem"](x)
    of_class, of_box = parts["class_branch"](x), parts["box_branch"](x)
    box, thing, kind = (
        parts["box_predictor"](of_box),
        parts["object_predictor"](of_box),
        parts["class_predictor"](of_class),
    )
    pictures, _, height, width = box.shape
    rows = torch.empty(pictures, height * width, 5 + kind.shape[1])
    for row in range(height):
        for column in range(width):
            scores = torch.cat([thing[:, :, row, column], kind[:, :, row, column]], dim=1).float()
            rows[:, row * width + column, :4] = box[:, :, row, column].float()
            rows[:, row * width + column, 4:] = scores if training else scores.sigmoid()
    return rows


def cosines_solution(a, b):
    a, b = a.float(), b.float()
    return (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(dim=1)


def cosines_in_double(a, b):
    a, b = a.double(), b.double()
    return ((a * b).sum(dim=1) / (a.square().sum(dim=1).sqrt() * b.square().sum(dim=1).sqrt())).float()


def named_solution(boxes, scores, labels, gt_boxes, gt_labels):
    if len(boxes) == 0 or len(gt_boxes) == 0:
        return 0, 0
    near = pairwise_iou(gt_boxes.float(), boxes.float()) >= 0.5  # [G, N]
    found = near.any(dim=1)
    surest = torch.where(near, scores, -1.0).argmax(dim=1)
    return int(found.sum()), int((found & (labels[surest] == gt_labels)).sum())


def named_by_loops(boxes, scores, labels, gt_boxes, gt_labels):
    found = named = 0
    for (x1, y1, x2, y2), label in zip(gt_boxes.tolist(), gt_labels.tolist(), strict=True):
        best = None
        for (u1, v1, u2, v2), score, name in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            shared = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
            together = (x2 - x1) * (y2 - y1) + max(0, u2 - u1) * max(0, v2 - v1) - shared
            if shared / together >= 0.5 and (best is None or score > best[0]):
                best = score, name
        found += best is not None
        named += best is not None and best[1] == label
    return found, named


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_is_not_attempted(name):
    assert review(EXERCISES[name], stub).status == "not attempted"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("decoupled_macs", macs_solution),
        ("head_rows", rows_solution),
        ("head_rows", rows_by_loops),
        ("cell_cosines", cosines_solution),
        ("cell_cosines", cosines_in_double),
        ("found_and_named", named_solution),
        ("found_and_named", named_by_loops),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_solution_is_done(name, answer):
    verdict = review(EXERCISES[name], answer)
    assert verdict.status == "done", verdict.text


# ---- the right answers are the library's ----------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "width", "anchors"), [((8,), 8, 1), ((4, 6, 10), 12, 1), ((16, 32, 64), 24, 3)])
def test_multiply_adds_are_those_of_the_librarys_convolutions(channels, width, anchors):
    head = DecoupledHead(channels, HeadStyle(num_classes=3, width=width, anchors_per_cell=anchors))
    counted = 0

    def count(module, _inputs, output):
        nonlocal counted
        counted += output.numel() * module.weight[0].numel()

    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    shapes = [(12 // 2**n, 20 // 2**n) for n in range(len(channels))]
    head.eval()([torch.zeros(1, c, *shape) for c, shape in zip(channels, shapes, strict=True)])
    assert EXERCISES["decoupled_macs"].answer(channels, shapes, width, anchors * 8) == counted


@pytest.mark.parametrize("training", [True, False])
def test_rows_are_those_of_the_librarys_level(training):
    torch.manual_seed(0)
    level = DecoupledLevel(6, HeadStyle(num_classes=3, width=8)).eval()
    x = torch.randn(2, 6, 3, 5)
    class_maps, box_maps, object_maps = (slots_first(maps, 1) for maps in level(x))
    scores = torch.cat([object_maps, class_maps], dim=2)
    expected = torch.cat([box_maps, scores if training else scores.sigmoid()], dim=2)
    parts = dict(level.named_children())
    torch.testing.assert_close(EXERCISES["head_rows"].answer(x, parts, training), expected)


@pytest.mark.parametrize("seed", range(3))
def test_cosines_are_the_librarys(seed):
    rng = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(2, 16, 4, 6, generator=rng) for _ in range(2))
    a[0, :, 0] = 0
    found = EXERCISES["cell_cosines"].answer(a, b)
    torch.testing.assert_close(found, cosine(a, b, dim=1), equal_nan=True)
    assert found[0, 0].isnan().all()
    assert found[0, 1:].isfinite().all()


# ---- what wrong answers are told ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_is_told_its_own_hint(name):
    exercise = EXERCISES[name]
    for mistake in exercise.mistakes:
        assert_wrong(exercise, mistake.gives, prose(mistake.hint))


def macs_of_one_branch(channels, shapes, width, outputs):
    return sum(
        h * w * (c * width + 2 * 9 * width**2 + width * outputs) for c, (h, w) in zip(channels, shapes, strict=True)
    )


def macs_without_cells(channels, shapes, width, outputs):
    return sum(c * width + 36 * width**2 + width * outputs for c in channels)


def operations(channels, shapes, width, outputs):
    return 2 * macs_solution(channels, shapes, width, outputs)


def macs_as_a_tensor(channels, shapes, width, outputs):
    return torch.tensor(macs_solution(channels, shapes, width, outputs))


def rows_with_objectness_on_the_class_branch(x, parts, training):
    x = parts["stem"](x)
    of_class, of_box = parts["class_branch"](x), parts["box_branch"](x)
    maps = [parts["box_predictor"](of_box), parts["object_predictor"](of_class), parts["class_predictor"](of_class)]
    rows = torch.cat(maps, dim=1).flatten(2).transpose(1, 2).float()
    return rows if training else torch.cat([rows[..., :4], rows[..., 4:].sigmoid()], dim=2)


def rows_with_a_sigmoid_on_all(x, parts, training):
    rows = rows_solution(x, parts, True)
    return rows if training else rows.sigmoid()


def rows_by_reshape(x, parts, training):
    x = parts["stem"](x)
    of_class, of_box = parts["class_branch"](x), parts["box_branch"](x)
    maps = [parts["box_predictor"](of_box), parts["object_predictor"](of_box), parts["class_predictor"](of_class)]
    joined = torch.cat(maps, dim=1).float()
    rows = joined.reshape(len(joined), joined.shape[2] * joined.shape[3], joined.shape[1])
    return rows if training else torch.cat([rows[..., :4], rows[..., 4:].sigmoid()], dim=2)


def rows_as_maps(x, parts, training):
    return rows_solution(x, parts, training).transpose(1, 2)


def cosines_by_functional(a, b):
    return functional.cosine_similarity(a.float(), b.float(), dim=1)


def cosines_with_an_epsilon(a, b):
    a, b = a.float(), b.float()
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-12)


def cosines_in_place(a, b):
    if not a.is_floating_point():
        a, b = a.float(), b.float()
    a /= a.norm(dim=1, keepdim=True)
    b /= b.norm(dim=1, keepdim=True)
    return (a * b).sum(dim=1)


def cosines_without_keepdim(a, b):
    a, b = a.float(), b.float()
    return (a / a.norm(dim=1) * (b / b.norm(dim=1))).sum(dim=1)


def named_by_any(boxes, scores, labels, gt_boxes, gt_labels):
    if len(boxes) == 0 or len(gt_boxes) == 0:
        return 0, 0
    near = pairwise_iou(gt_boxes.float(), boxes.float()) >= 0.5
    return int(near.any(dim=1).sum()), int((near & (labels == gt_labels[:, None])).any(dim=1).sum())


def named_without_care(boxes, scores, labels, gt_boxes, gt_labels):
    near = pairwise_iou(gt_boxes.float(), boxes.float()) >= 0.5
    found, surest = near.any(dim=1), torch.where(near, scores, -1.0).argmax(dim=1)
    return int(found.sum()), int((found & (labels[surest] == gt_labels)).sum())


def named_as_tensors(boxes, scores, labels, gt_boxes, gt_labels):
    return tuple(torch.tensor(each) for each in named_solution(boxes, scores, labels, gt_boxes, gt_labels))


@pytest.mark.parametrize(
    ("name", "answer", "told"),
    [
        ("decoupled_macs", macs_of_one_branch, "two branches with two blocks each"),
        ("decoupled_macs", macs_without_cells, "multiply by the level's cells"),
        ("decoupled_macs", operations, "both together count one"),
        ("decoupled_macs", macs_as_a_tensor, "macs is tensor("),
        ("head_rows", rows_with_objectness_on_the_class_branch, "It stands on the box branch"),
        ("head_rows", rows_with_a_sigmoid_on_all, "box numbers went through the sigmoid"),
        ("head_rows", rows_by_reshape, "a row mixes cells"),
        ("head_rows", rows_as_maps, "has the shape [1, 7, 1], not [1, 1, 7]"),
        ("cell_cosines", cosines_by_functional, "never divides by less than its eps"),
        ("cell_cosines", cosines_with_an_epsilon, "A small number is added to the lengths"),
        ("cell_cosines", cosines_in_place, "your function changed its input"),
        ("cell_cosines", cosines_without_keepdim, "your function raised RuntimeError"),
        ("found_and_named", named_by_any, "Only the surest one counts"),
        ("found_and_named", named_without_care, "Settle the empty cases first"),
        ("found_and_named", named_as_tensors, "found is tensor("),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_typical_wrong_answers_are_told_what_is_wrong(name, answer, told):
    assert_wrong(name, answer, told)
