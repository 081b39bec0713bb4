"""The exercises of chapter 07: solutions pass, usual mistakes get their own hint, and the answers are the library's."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import minidet
from minidet.assign import IGNORED
from minidet.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from minidet.detectors.yolof import decode
from minidet.exercises import EXERCISES, review
from minidet.losses import combine_logits
from tests.exercises.told import assert_wrong, stub

NAMES = ("joint_logit", "boxes_from_raw", "class_loss", "taps_on_map")


# ---- one logit of two ------------------------------------------------------------------------------------------------


def joint_logit(class_logits, object_logits):
    c, o = class_logits.float(), object_logits.float()[:, None]
    c, o = torch.broadcast_tensors(c, o)
    return c + o - torch.logsumexp(torch.stack([torch.zeros_like(c), c, o]), dim=0)


def joint_by_minimum(class_logits, object_logits):
    c, o = torch.broadcast_tensors(class_logits.float(), object_logits.float()[:, None])
    low, high = torch.minimum(c, o), torch.maximum(c, o)
    return low - torch.where(
        high > 0, torch.log1p((low - high).exp() + (-high).exp()), torch.log1p(low.exp() + high.exp()) - high
    )


def published(class_logits, object_logits):
    c, o = class_logits.float(), object_logits.float().unsqueeze(1)
    return c + o - torch.log(1.0 + torch.clamp(torch.exp(c), max=1e8) + torch.clamp(torch.exp(o), max=1e8))


def plain_exponentials(class_logits, object_logits):
    c, o = class_logits.float(), object_logits.float().view(-1, 1)
    return c + o - torch.log(c.exp() + o.exp() + 1)


def clamped_first(class_logits, object_logits):
    c, o = class_logits.float(), object_logits.float()[:, None]
    return c + o - torch.log(1 + c.clamp(max=18).exp() + o.clamp(max=18).exp())


def through_probabilities(class_logits, object_logits):
    return torch.logit(torch.sigmoid(class_logits.float()) * torch.sigmoid(object_logits.float())[:, None])


def log_probability(class_logits, object_logits):
    return F.logsigmoid(class_logits.float()) + F.logsigmoid(object_logits.float())[:, None]


def logits_added(class_logits, object_logits):
    return class_logits.float() + object_logits.float()[:, None]


def joint_in_half(class_logits, object_logits):
    return combine_logits(class_logits, object_logits[:, None])


def joint_without_axis(class_logits, object_logits):
    return combine_logits(class_logits.float(), object_logits.float())


def joint_probability(class_logits, object_logits):
    return class_logits.float().sigmoid() * object_logits.float().sigmoid()[:, None]


def joint_in_place(class_logits, object_logits):
    result = joint_logit(class_logits, object_logits)
    class_logits.copy_(result)
    return result


# ---- boxes of raw numbers --------------------------------------------------------------------------------------------


def boxes_from_raw(raw_boxes, anchors):
    x1, y1, x2, y2 = anchors.float().unbind(1)
    dx, dy, dw, dh = raw_boxes.unbind(1)
    width, height = x2 - x1, y2 - y1
    center_x = (x1 + x2) / 2 + (dx * width).clamp(-32, 32)
    center_y = (y1 + y2) / 2 + (dy * height).clamp(-32, 32)
    limit = math.log(1000 / 16)
    width, height = width * dw.clamp(max=limit).exp(), height * dh.clamp(max=limit).exp()
    return torch.stack(
        [center_x - width / 2, center_y - height / 2, center_x + width / 2, center_y + height / 2], dim=1
    )


def without_clamp(raw_boxes, anchors):
    return decode(raw_boxes, anchors.float(), center_limit=None)


def clamped_in_anchor_sizes(raw_boxes, anchors):
    raw_boxes = torch.cat([raw_boxes[:, :2].clamp(-32, 32), raw_boxes[:, 2:]], dim=1)
    return decode(raw_boxes, anchors.float(), center_limit=None)


def without_log_limit(raw_boxes, anchors):
    anchor = xyxy_to_cxcywh(anchors.float())
    center = anchor[:, :2] + (raw_boxes[:, :2] * anchor[:, 2:]).clamp(-32, 32)
    return cxcywh_to_xyxy(torch.cat([center, anchor[:, 2:] * raw_boxes[:, 2:].exp()], dim=1))


def in_strides(raw_boxes, anchors):
    anchor = xyxy_to_cxcywh(anchors.float())
    size = anchor[:, 2:] * raw_boxes[:, 2:].clamp(max=math.log(62.5)).exp()
    return cxcywh_to_xyxy(torch.cat([anchor[:, :2] + (raw_boxes[:, :2] * 32).clamp(-32, 32), size], dim=1))


def centre_and_size(raw_boxes, anchors):
    return xyxy_to_cxcywh(boxes_from_raw(raw_boxes, anchors))


def boxes_in_place(raw_boxes, anchors):
    raw_boxes[:, 2:] = raw_boxes[:, 2:].clamp(max=math.log(62.5))
    return boxes_from_raw(raw_boxes, anchors)


def double_boxes(raw_boxes, anchors):
    return boxes_from_raw(raw_boxes, anchors).double()


# ---- the class loss --------------------------------------------------------------------------------------------------


def class_loss(class_logits, labels):
    classes = torch.arange(class_logits.shape[1])
    wanted = labels[:, None] == classes  # [A, C]
    p = class_logits.sigmoid()
    p_t = torch.where(wanted, p, 1 - p)
    log_p_t = F.logsigmoid(torch.where(wanted, class_logits, -class_logits))
    terms = -torch.where(wanted, 0.25, 0.75) * (1 - p_t) ** 2 * log_p_t
    terms = terms * (labels != -1)[:, None]
    return terms.sum() / wanted.sum().clamp(min=1)


def with_ignored(class_logits, labels):
    return class_loss(class_logits, torch.where(labels == -1, class_logits.shape[1], labels))


def alpha_swapped(class_logits, labels):
    wanted = (labels[:, None] == torch.arange(class_logits.shape[1])).float()
    p_t = class_logits.sigmoid() * wanted + (1 - class_logits.sigmoid()) * (1 - wanted)
    entropy = F.binary_cross_entropy_with_logits(class_logits, wanted, reduction="none")
    terms = (0.75 * wanted + 0.25 * (1 - wanted)) * (1 - p_t) ** 2 * entropy
    return terms[labels >= 0].sum() / wanted.sum().clamp(min=1)


def without_at_least_one(class_logits, labels):
    wanted = labels[:, None] == torch.arange(class_logits.shape[1])
    return class_loss(class_logits, labels) * wanted.sum().clamp(min=1) / wanted.sum()


def over_all_slots(class_logits, labels):
    wanted = labels[:, None] == torch.arange(class_logits.shape[1])
    return class_loss(class_logits, labels) * wanted.sum().clamp(min=1) / max(len(labels), 1)


def weighted_entropy(class_logits, labels):
    wanted = (labels[:, None] == torch.arange(class_logits.shape[1])).float()
    terms = F.binary_cross_entropy_with_logits(class_logits, wanted, reduction="none")
    terms = terms * (0.25 * wanted + 0.75 * (1 - wanted))
    return terms[labels >= 0].sum() / wanted.sum().clamp(min=1)


def logarithm_of_probability(class_logits, labels):
    wanted = (labels[:, None] == torch.arange(class_logits.shape[1])).float()
    p = class_logits.sigmoid()
    terms = -0.25 * wanted * (1 - p) ** 2 * p.log() - 0.75 * (1 - wanted) * p**2 * (1 - p).log()
    return terms[labels >= 0].sum() / wanted.sum().clamp(min=1)


def loss_as_number(class_logits, labels):
    return class_loss(class_logits, labels).item()


# ---- a kernel that misses its map ------------------------------------------------------------------------------------


def taps_on_map(rows, columns, dilation):
    on_map = 0
    for y in range(rows):
        for x in range(columns):
            for dy in (-dilation, 0, dilation):
                for dx in (-dilation, 0, dilation):
                    on_map += 0 <= y + dy < rows and 0 <= x + dx < columns
    return on_map / (9 * rows * columns)


def taps_by_convolution(rows, columns, dilation):
    ones = torch.ones(1, 1, rows, columns)
    return (F.conv2d(ones, torch.ones(1, 1, 3, 3), padding=dilation, dilation=dilation).mean() / 9).item()


def whole_kernels(rows, columns, dilation):
    return (rows - 2 * dilation) * (columns - 2 * dilation) / (rows * columns)


def below_zero(rows, columns, dilation):
    return (3 * rows - 2 * dilation) / (3 * rows) * ((3 * columns - 2 * dilation) / (3 * columns))


def without_the_middle(rows, columns, dilation):
    return (9 * taps_on_map(rows, columns, dilation) - 1) / 8


def number_of_taps(rows, columns, dilation):
    return 9 * taps_on_map(rows, columns, dilation)


def taps_that_miss(rows, columns, dilation):
    return 1 - taps_on_map(rows, columns, dilation)


def a_square_map(rows, columns, dilation):
    return taps_on_map(rows, rows, dilation)


def as_tensor(rows, columns, dilation):
    return torch.tensor(taps_on_map(rows, columns, dilation))


# ---- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_is_not_attempted(name):
    parameters = ", ".join(EXERCISES[name].parameters)
    unwritten = eval(f"lambda {parameters}: stub()", {"stub": stub})
    assert review(EXERCISES[name], unwritten).status == "not attempted"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("joint_logit", joint_logit),
        ("joint_logit", joint_by_minimum),
        ("boxes_from_raw", boxes_from_raw),
        ("boxes_from_raw", lambda raw, anchors: decode(raw, anchors)),
        ("class_loss", class_loss),
        ("taps_on_map", taps_on_map),
        ("taps_on_map", taps_by_convolution),
    ],
)
def test_a_solution_is_done(name, answer):
    assert review(EXERCISES[name], answer).status == "done", review(EXERCISES[name], answer).text


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("joint_logit", published, "above a logit of 18.4 the formula no longer holds"),
        ("joint_logit", plain_exponentials, "exp(89) is too large for float32"),
        ("joint_logit", clamped_first, "above the cut the result is wrong"),
        ("joint_logit", through_probabilities, "the logit of 1 is infinite"),
        ("joint_logit", log_probability, "The logit is ln(p) - ln(1 - p)"),
        ("joint_logit", logits_added, "Adding logits is not multiplying probabilities"),
        ("joint_logit", joint_in_half, "begin with .float()"),
        ("joint_logit", joint_without_axis, "Give the objectness a second axis"),
        ("joint_logit", joint_probability, "This is the probability. Wanted is its logit"),
        ("joint_logit", joint_in_place, "Make a new tensor instead"),
        ("boxes_from_raw", without_clamp, "The clamp is missing"),
        ("boxes_from_raw", clamped_in_anchor_sizes, "The limit of 32 is in pixels"),
        ("boxes_from_raw", without_log_limit, "exp(200) is infinite"),
        ("boxes_from_raw", in_strides, "counted in anchor sizes, not in strides"),
        ("boxes_from_raw", centre_and_size, "These are centre and size"),
        ("boxes_from_raw", boxes_in_place, "Make a new tensor instead"),
        ("boxes_from_raw", double_boxes, "boxes is float64, but float32 was expected"),
        ("class_loss", with_ignored, "Ignored means: left out altogether"),
        ("class_loss", alpha_swapped, "Alpha is on the wrong side"),
        ("class_loss", without_at_least_one, "The divisor is at least 1"),
        ("class_loss", over_all_slots, "You divide by the number of slots."),
        ("class_loss", weighted_entropy, "The factor (1 - p_t) ** 2"),
        ("class_loss", logarithm_of_probability, "0 times the logarithm of 0 is NaN"),
        ("class_loss", loss_as_number, "a tensor was expected"),
        ("taps_on_map", whole_kernels, "a cell at the border still has some of its nine on the map"),
        ("taps_on_map", below_zero, "rows - dilation may not go below 0"),
        ("taps_on_map", without_the_middle, "The middle tap is missing"),
        ("taps_on_map", number_of_taps, "Wanted is their share of nine"),
        ("taps_on_map", taps_that_miss, "This is the share that misses the map"),
        ("taps_on_map", a_square_map, "Use both numbers"),
        ("taps_on_map", as_tensor, "Wanted is a plain number"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_answer_is_told_why(name, answer, hint):
    assert_wrong(name, answer, hint)


# ---- the answers are the library's -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_yolof():
    torch.manual_seed(0)
    return minidet.create_model(
        "yolof-r18-c5", 3, backbone_width=0.125, width=16, mid_width=4, input_hw=(96, 128)
    ).eval()


def test_the_class_loss_is_what_the_detector_computes(small_yolof):
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    targets = [
        {"boxes": torch.tensor([[10.0, 20, 70, 90], [60, 5, 120, 50]]), "labels": torch.tensor([2, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    with torch.no_grad():
        x, _ = small_yolof.network_input(list(images))
        predictions, gt = small_yolof.dense_of(x), small_yolof.ground_truth(list(images), targets)
        assignment = small_yolof.assign_of(predictions, gt, trace=False)
        losses = small_yolof.losses_of(predictions, assignment, gt)
    owners = assignment.matched_gt
    labels = torch.full_like(owners, 3)
    labels[owners >= 0] = targets[0]["labels"][owners[owners >= 0]]
    labels[owners == IGNORED] = -1
    torch.testing.assert_close(
        class_loss(predictions.class_logits.flatten(0, 1), labels.flatten()), losses["loss_class"]
    )


def test_logits_and_boxes_are_what_the_detector_decodes(small_yolof):
    with torch.no_grad():
        x = torch.rand(1, 3, 96, 128) * 255
        dense = small_yolof.dense_of(x)
        features = small_yolof.features_of(x)["encoder"]
        class_maps, _, object_maps = small_yolof.head(features)
    answer = EXERCISES["boxes_from_raw"].answer
    torch.testing.assert_close(answer(dense.raw_boxes[0], dense.grid.anchors), dense.boxes[0])
    classes = class_maps[0].view(5, 3, 3, 4).permute(2, 3, 0, 1).reshape(-1, 3)
    objects = object_maps[0].permute(1, 2, 0).reshape(-1)
    torch.testing.assert_close(EXERCISES["joint_logit"].answer(classes, objects), dense.class_logits[0])


@pytest.mark.parametrize("size", [(6, 8), (25, 42), (1, 1), (3, 20)])
@pytest.mark.parametrize("dilation", [1, 2, 4, 8])
def test_the_taps_are_those_of_a_convolution(size, dilation):
    assert EXERCISES["taps_on_map"].answer(*size, dilation) == pytest.approx(taps_by_convolution(*size, dilation))
