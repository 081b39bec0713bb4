"""The exercises of chapter 07: one logit of two, boxes of raw numbers, the class loss, a kernel larger than its map."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torchvision.ops import sigmoid_focal_loss

from minidet.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from minidet.detectors.yolof import MAX_LOG_SCALE, decode
from minidet.exercises.check import Exercise, Mistake
from minidet.losses import combine_logits

# ---- one logit of two ------------------------------------------------------------------------------------------------


def joint_logit(class_logits: Tensor, object_logits: Tensor) -> Tensor:
    """The logit of "an object, and of this class": [A, C] and [A] float -> [A, C] float32."""
    return combine_logits(class_logits.float(), object_logits.float()[:, None])


def _random_logits(slots: int, classes: int, rng: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(slots, classes, generator=rng) * 3, torch.randn(slots, generator=rng) * 3


def _very_sure(rng: Generator) -> tuple[Tensor, Tensor]:
    class_logits = torch.tensor([[25.0, 60.0], [100.0, -100.0], [40.0, 1000.0], [-30.0, 15.0]])
    return class_logits, torch.tensor([-5.0, 0.0, 45.0, -40.0])


def _half(rng: Generator) -> tuple[Tensor, Tensor]:
    return torch.tensor([[12.0, -3.0], [0.5, 20.0]]).half(), torch.tensor([-5.0, 30.0]).half()


def _joint(formula):
    return lambda classes, objects: formula(classes.float(), objects.float()[:, None])


JOINT = Exercise(
    answer=joint_logit,
    returns=("logits",),
    inputs={
        "two slots and two classes": lambda rng: (torch.tensor([[2.0, 0.0], [-1.0, 3.0]]), torch.tensor([1.0, 0.0])),
        "random logits": lambda rng: _random_logits(6, 3, rng),
        "as many slots as classes": lambda rng: _random_logits(4, 4, rng),
        "logits of 25, 100 and 1000": _very_sure,
        "logits in half precision": _half,
        "no slot at all": lambda rng: _random_logits(0, 3, rng),
    },
    mistakes=(
        Mistake(
            _joint(lambda c, o: c + o - (1 + c.exp().clamp(max=1e8) + o.exp().clamp(max=1e8)).log()),
            "This is the published code. Its limit of 1e8 keeps the logarithm finite, but above a logit of 18.4 the "
            "formula no longer holds. Take the logarithm of the sum as a whole: torch.logaddexp, or torch.logsumexp.",
        ),
        Mistake(
            _joint(lambda c, o: c + o - (1 + c.exp() + o.exp()).log()),
            "The formula is right, the computation is not: exp(89) is too large for float32. Take the logarithm of the "
            "sum of exponentials as a whole: torch.logaddexp, or torch.logsumexp.",
        ),
        Mistake(
            _joint(lambda c, o: c + o - (1 + c.clamp(max=18).exp() + o.clamp(max=18).exp()).log()),
            "Cutting the logits before exp keeps everything finite, but above the cut the result is wrong: it goes on "
            "rising where it should level off at the other logit.",
        ),
        Mistake(
            _joint(lambda c, o: (c.sigmoid() * o.sigmoid()).logit()),
            "Right as long as nobody is very sure. A probability of float32 rounds to exactly 1 from a logit of 17 on, "
            "and the logit of 1 is infinite. Stay with logits from beginning to end.",
        ),
        Mistake(
            _joint(lambda c, o: torch.nn.functional.logsigmoid(c) + torch.nn.functional.logsigmoid(o)),
            "This is ln(p), the logarithm of the probability. The logit is ln(p) - ln(1 - p).",
        ),
        Mistake(
            _joint(lambda c, o: c + o),
            "Adding logits is not multiplying probabilities: two logits of 0 are twice 0.5, so the product is 0.25, "
            "but your sum is 0, which is 0.5 again.",
        ),
        Mistake(
            _joint(lambda c, o: c + o - torch.logaddexp(c, o)),
            "Nearly. Of the three terms in the logarithm, 1 + exp(c) + exp(o), the 1 is missing.",
        ),
        Mistake(
            _joint(torch.minimum),
            "The smaller logit is what the result comes near to when the two differ much. Where they are alike, the "
            "product of both probabilities is lower than either.",
        ),
        Mistake(
            lambda classes, objects: combine_logits(classes, objects[:, None]),
            "Right, but in the precision that came in. In float16 the result keeps three digits; begin with .float().",
        ),
        Mistake(
            lambda classes, objects: combine_logits(classes.float(), objects.float()),
            "[A] beside [A, C] lines the slots up with the classes, because broadcasting starts at the last axis. Give "
            "the objectness a second axis, so that it is [A, 1].",
        ),
        Mistake(
            lambda classes, objects: combine_logits(classes.float(), objects.float()[:, None]).sigmoid(),
            "This is the probability. Wanted is its logit, because that is what the loss takes.",
        ),
    ),
)

# ---- boxes of raw numbers --------------------------------------------------------------------------------------------


def boxes_from_raw(raw_boxes: Tensor, anchors: Tensor) -> Tensor:
    """What raw numbers mean in pixels: raw boxes [A, 4] float and anchors [A, 4] xyxy -> boxes [A, 4] float32 xyxy."""
    return decode(raw_boxes.float(), anchors.float())


def _by_hand(rng: Generator) -> tuple[Tensor, Tensor]:
    raw = torch.tensor([[0.25, -0.5, 0.0, 0.0], [0.0, 0.0, math.log(2), math.log(0.5)]])
    return raw, torch.tensor([[0.0, 0.0, 64.0, 64.0], [16.0, 16.0, 48.0, 48.0]])


def _random_anchors(slots: int, rng: Generator) -> Tensor:
    corner, size = torch.rand(slots, 2, generator=rng) * 300, 16 + torch.rand(slots, 2, generator=rng) * 200
    return torch.cat([corner, corner + size], dim=1)


def _random_raw(slots: int, scale: float, rng: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(slots, 4, generator=rng) * scale, _random_anchors(slots, rng)


def _decoded(shift, scale):
    def gives(raw: Tensor, anchors: Tensor) -> Tensor:
        anchor = xyxy_to_cxcywh(anchors.float())
        size = anchor[:, 2:] * scale(raw[:, 2:])
        return cxcywh_to_xyxy(torch.cat([anchor[:, :2] + shift(raw[:, :2], anchor[:, 2:]), size], dim=1))

    return gives


def _shift(raw: Tensor, size: Tensor) -> Tensor:
    return (raw * size).clamp(-32, 32)


def _scale(raw: Tensor) -> Tensor:
    return raw.clamp(max=MAX_LOG_SCALE).exp()


def _twice_as_large(raw: Tensor, anchors: Tensor) -> Tensor:
    box = xyxy_to_cxcywh(decode(raw, anchors.float()))
    return torch.cat([box[:, :2] - box[:, 2:], box[:, :2] + box[:, 2:]], dim=1)


def _from_the_corner(raw: Tensor, anchors: Tensor) -> Tensor:
    anchors = anchors.float()
    half = (anchors[:, 2:] - anchors[:, :2]) / 2
    return decode(raw, anchors) - torch.cat([half, half], dim=1)


BOXES = Exercise(
    answer=boxes_from_raw,
    returns=("boxes",),
    inputs={
        "two anchors, numbers that can be checked by hand": _by_hand,
        "anchors that are not square": lambda rng: _random_raw(6, 0.1, rng),
        "centres that want to move far": lambda rng: _random_raw(6, 3.0, rng),
        "centres that want to move 40 anchors": lambda rng: _random_raw(3, 40.0, rng),
        "a log-scale of 5 and one of -50": lambda rng: (
            torch.tensor([[0.0, 0.0, 5.0, 200.0], [0.0, 0.0, -50.0, -5.0]]),
            _random_anchors(2, rng),
        ),
        "anchors of whole numbers": lambda rng: (torch.randn(5, 4, generator=rng), _random_anchors(5, rng).long()),
        "a thousand slots": lambda rng: _random_raw(1000, 1.0, rng),
        "no slot at all": lambda rng: _random_raw(0, 1.0, rng),
    },
    mistakes=(
        Mistake(
            _decoded(lambda raw, size: raw * size, _scale),
            "The clamp is missing: a centre may move by at most 32 pixels to each side, whatever the network says.",
        ),
        Mistake(
            _decoded(lambda raw, size: raw.clamp(-32, 32) * size, _scale),
            "The limit of 32 is in pixels. Multiply dx and dy by the anchor's size first, then clamp.",
        ),
        Mistake(
            _decoded(lambda raw, size: (raw * size).clamp(max=32), _scale),
            "Clamped on one side only. A centre may not move by more than 32 pixels to the left or up either.",
        ),
        Mistake(
            _decoded(_shift, torch.exp),
            "The log-scale has no limit, and exp(200) is infinite. dw and dh are cut at ln(1000 / 16) from above.",
        ),
        Mistake(
            _decoded(_shift, lambda raw: raw.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()),
            "dw and dh have an upper limit only. Nothing bad comes of a very small exponential.",
        ),
        Mistake(
            _decoded(lambda raw, size: (raw * 32).clamp(-32, 32), _scale),
            "dx and dy are counted in anchor sizes, not in strides as YOLOX counts them.",
        ),
        Mistake(
            _decoded(lambda raw, size: (raw * size.flip(1)).clamp(-32, 32), _scale),
            "Width and height are swapped: dx goes with the anchor's width, dy with its height.",
        ),
        Mistake(
            _decoded(_shift, lambda raw: raw.clamp(max=MAX_LOG_SCALE)),
            "The exponential is missing: dw is the logarithm of box width over anchor width, so dw = 0 keeps the size.",
        ),
        Mistake(
            lambda raw, anchors: xyxy_to_cxcywh(decode(raw, anchors.float())),
            "These are centre and size. Turn them into corners, (x1, y1, x2, y2).",
        ),
        Mistake(
            _twice_as_large,
            "The boxes are twice as wide and high as they should be: a corner is half a width from the centre.",
        ),
        Mistake(
            _from_the_corner,
            "The shift counts from the anchor's centre. Yours starts at its upper left corner.",
        ),
    ),
)

# ---- the class loss --------------------------------------------------------------------------------------------------


def class_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """YOLOF's class loss: [A, C] float and [A] int64 (C: background, -1: ignored) -> one float32 number."""
    return _focal(class_logits, labels)


def _focal(
    logits: Tensor,
    labels: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    ignore: bool = True,
) -> Tensor:
    terms = sigmoid_focal_loss(logits, _wanted(logits, labels), alpha, gamma)
    terms = terms[labels >= 0] if ignore else terms
    return terms.sum() / _positives(logits, labels).clamp(min=1)


def _wanted(logits: Tensor, labels: Tensor) -> Tensor:
    return (labels[:, None] == torch.arange(logits.shape[1])).to(logits)


def _positives(logits: Tensor, labels: Tensor) -> Tensor:
    return ((labels >= 0) & (labels < logits.shape[1])).sum()


def _by_logarithms(logits: Tensor, labels: Tensor) -> Tensor:
    wanted, p = _wanted(logits, labels), logits.sigmoid()
    terms = -0.25 * wanted * (1 - p) ** 2 * p.log() - 0.75 * (1 - wanted) * p**2 * (1 - p).log()
    return terms[labels >= 0].sum() / _positives(logits, labels).clamp(min=1)


def _divided(logits: Tensor, labels: Tensor, by: Tensor | int) -> Tensor:
    return sigmoid_focal_loss(logits, _wanted(logits, labels))[labels >= 0].sum() / by


def _wrong_weight(logits: Tensor, labels: Tensor) -> Tensor:
    wanted, p = _wanted(logits, labels), logits.sigmoid()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    p_t = p * wanted + (1 - p) * (1 - wanted)
    terms = (0.25 * wanted + 0.75 * (1 - wanted)) * p_t**2 * entropy
    return terms[labels >= 0].sum() / _positives(logits, labels).clamp(min=1)


def _some_labels(slots: int, classes: int, rng: Generator) -> tuple[Tensor, Tensor]:
    logits = torch.randn(slots, classes, generator=rng) * 2 - 2
    return logits, torch.randint(-1, classes + 1, (slots,), generator=rng)


CLASS_LOSS = Exercise(
    answer=class_loss,
    returns=("loss",),
    inputs={
        "two slots, one class: an object and a background": lambda rng: (
            torch.tensor([[0.0], [0.0]]),
            torch.tensor([0, 1]),
        ),
        "two objects, two backgrounds, two ignored slots": lambda rng: (
            torch.randn(6, 3, generator=rng),
            torch.tensor([0, 2, 3, 3, -1, -1]),
        ),
        "random": lambda rng: _some_labels(200, 4, rng),
        "background only": lambda rng: (torch.randn(5, 2, generator=rng), torch.full((5,), 2)),
        "every slot ignored": lambda rng: (torch.randn(5, 2, generator=rng), torch.full((5,), -1)),
        "logits of 200 and -200": lambda rng: (
            torch.tensor([[200.0, -200.0], [-200.0, 200.0], [-200.0, -200.0]]),
            torch.tensor([0, 0, 2]),
        ),
        "no slot at all": lambda rng: _some_labels(0, 3, rng),
    },
    mistakes=(
        Mistake(
            lambda logits, labels: _focal(logits, labels, ignore=False),
            "Slots with the label -1 are in your sum as background. Ignored means: left out altogether.",
        ),
        Mistake(
            lambda logits, labels: _focal(logits, labels, alpha=0.75),
            "Alpha is on the wrong side: an object's term weighs 0.25 and a background's 0.75, not the reverse.",
        ),
        Mistake(
            lambda logits, labels: _focal(logits, labels, alpha=-1),
            "Alpha is missing: an object's term weighs 0.25 and a background's 0.75.",
        ),
        Mistake(
            lambda logits, labels: _focal(logits, labels, gamma=0),
            "This is weighted cross entropy. The factor (1 - p_t) ** 2, which quietens the easy slots, is missing.",
        ),
        Mistake(
            lambda logits, labels: _focal(logits, labels, gamma=1),
            "The exponent gamma is 2, not 1.",
        ),
        Mistake(
            _wrong_weight,
            "The factor is p_t ** 2, so the easy slots speak loudest. It has to be (1 - p_t) ** 2.",
        ),
        Mistake(
            lambda logits, labels: _divided(logits, labels, _positives(logits, labels)),
            "Right, unless there is no object: then you divide by 0. The divisor is at least 1.",
        ),
        Mistake(
            lambda logits, labels: _divided(logits, labels, max(len(labels), 1)),
            "You divide by the number of slots. Divide by the number of slots that have an object: nearly all others "
            "are easy background, and would make the loss of the few objects tiny.",
        ),
        Mistake(
            lambda logits, labels: _divided(logits, labels, 1),
            "The division is missing: by the number of slots that have an object, at least 1.",
        ),
        Mistake(
            lambda logits, labels: _divided(logits, labels, (labels >= 0).sum().clamp(min=1)),
            "Background slots are in your divisor. Only slots with a label from 0 to C - 1 count.",
        ),
        Mistake(
            lambda logits, labels: sigmoid_focal_loss(logits, _wanted(logits, labels))[labels >= 0].mean(),
            "This is the mean over slots and classes. Wanted is the sum, divided by the number of slots with an "
            "object.",
        ),
        Mistake(
            _by_logarithms,
            "The logarithm of a probability: at a logit of -200 the probability is 0 in float32, and 0 times the "
            "logarithm of 0 is NaN. F.logsigmoid(x), or binary_cross_entropy_with_logits, works from the logit.",
        ),
        Mistake(
            lambda logits, labels: torch.nn.functional.cross_entropy(
                torch.cat([logits, logits.new_zeros(len(logits), 1)], dim=1), labels, ignore_index=-1
            ),
            "This is softmax cross entropy. Here every class answers a question of its own with a sigmoid, and "
            "background is the answer no to all of them.",
        ),
    ),
)

# ---- a kernel that misses its map ------------------------------------------------------------------------------------


def taps_on_map(rows: int, columns: int, dilation: int) -> float:
    """The share of a dilated 3 x 3 kernel's nine taps that lie on a map of rows x columns, averaged over all cells."""
    down = (rows + 2 * max(rows - dilation, 0)) / (3 * rows)
    across = (columns + 2 * max(columns - dilation, 0)) / (3 * columns)
    return down * across


TAPS = Exercise(
    answer=taps_on_map,
    returns=("share",),
    inputs={
        "a map of 2 x 2 cells": lambda rng: (2, 2, 1),
        "a map of 6 x 8 cells": lambda rng: (6, 8, 2),
        "a dilation larger than the map": lambda rng: (6, 8, 9),
        "one row of cells": lambda rng: (1, 40, 3),
        "a single cell": lambda rng: (1, 1, 1),
        "the map of a picture of 800 x 1333 pixels": lambda rng: (25, 42, 8),
    },
    mistakes=(
        Mistake(
            lambda rows, columns, dilation: (rows - 2 * dilation) * (columns - 2 * dilation) / (rows * columns),
            "This is the share of cells whose whole kernel lies on the map. Count taps: a cell at the border still has "
            "some of its nine on the map.",
        ),
        Mistake(
            lambda rows, columns, dilation: taps_on_map(rows, columns, 1),
            "The dilation does not matter in your result. The outer taps are that many cells from the middle one.",
        ),
        Mistake(
            lambda rows, columns, dilation: (
                (3 * rows - 2 * dilation) * (3 * columns - 2 * dilation) / (9 * rows * columns)
            ),
            "Right on maps that are larger than the dilation. On a smaller one all outer taps miss, but no more than "
            "all: rows - dilation may not go below 0.",
        ),
        Mistake(
            lambda rows, columns, dilation: (
                (rows + max(rows - dilation, 0)) * (columns + max(columns - dilation, 0)) / (9 * rows * columns)
            ),
            "An axis has three taps: the middle one, one before it and one behind it. You have counted one of the "
            "outer ones.",
        ),
        Mistake(
            lambda rows, columns, dilation: (9 * taps_on_map(rows, columns, dilation) - 1) / 8,
            "The middle tap is missing: it is one of the nine, and always on the map.",
        ),
        Mistake(
            lambda rows, columns, dilation: 9 * taps_on_map(rows, columns, dilation),
            "This is the number of taps. Wanted is their share of nine.",
        ),
        Mistake(
            lambda rows, columns, dilation: 100 * taps_on_map(rows, columns, dilation),
            "This is in percent. Wanted is a share between 0 and 1.",
        ),
        Mistake(
            lambda rows, columns, dilation: torch.tensor(taps_on_map(rows, columns, dilation)),
            "The number is right, but it comes as a tensor. Wanted is a plain number: `.item()` makes one of it.",
        ),
        Mistake(
            lambda rows, columns, dilation: 1 - taps_on_map(rows, columns, dilation),
            "This is the share that misses the map.",
        ),
        Mistake(
            lambda rows, columns, dilation: rows * columns * 9 * taps_on_map(rows, columns, dilation),
            "This is the number of taps of all cells together. Divide by nine times the number of cells.",
        ),
        Mistake(
            lambda rows, columns, dilation: taps_on_map(rows, rows, dilation),
            "Your map has as many columns as rows. Use both numbers.",
        ),
    ),
)

EXERCISES = (JOINT, BOXES, CLASS_LOSS, TAPS)
