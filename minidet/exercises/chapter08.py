"""The exercises of chapter 08: what a head costs, what it says, whether two tasks agree, and found but not named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from minidet.boxes import pairwise_iou
from minidet.evaluation.task_gradients import cosine
from minidet.exercises.check import Exercise, Mistake
from minidet.layers.heads import slots_first

# ---- what a head costs ----------------------------------------------------------------------------------------------


def decoupled_macs(channels: Sequence[int], shapes: Sequence[tuple[int, int]], width: int, outputs: int) -> int:
    """Multiply-adds of a decoupled head's convolutions for one picture.

    `channels` and `shapes` (rows, columns) are those of the levels that come in, `width` that of stem and branches, and
    `outputs` is what all predictors together say in each cell, n * (4 + 1 + C).
    """
    return _macs_with()(channels, shapes, width, outputs)


def _macs_with(
    kernel: int = 9,
    stem_kernel: int = 1,
    predictor_kernel: int = 1,
    blocks: int = 4,
    stem: bool = True,
    reads_stem: bool = True,
    predictors: bool = True,
    biases: bool = False,
    operations: int = 1,
    cells: Callable[[int, int], int] = lambda rows, columns: rows * columns,
):
    """A `decoupled_macs` that differs from the right one in one place, or in none."""

    def answer(channels: Sequence[int], shapes: Sequence[tuple[int, int]], width: int, outputs: int) -> int:
        total = 0
        for c_in, (rows, columns) in zip(channels, shapes, strict=True):
            each = stem_kernel * c_in * width if stem else 0
            first = min(blocks, 2) * kernel * (width if reads_stem else c_in) * width
            each += first + (blocks - min(blocks, 2)) * kernel * width * width
            each += predictor_kernel * width * outputs if predictors else 0
            each += outputs if biases else 0
            total += cells(rows, columns) * each
        return operations * total

    return answer


MACS = Exercise(
    answer=decoupled_macs,
    returns=("macs",),
    inputs={
        "one cell, all widths 8": lambda rng: ([8], [(1, 1)], 8, 8),
        "one level, 4 channels, 2 x 3 cells": lambda rng: ([4], [(2, 3)], 8, 8),
        "three levels": lambda rng: ([4, 8, 16], [(8, 12), (4, 6), (2, 3)], 8, 8),
        "the paper's, three anchors, 640 x 640": lambda rng: (
            [128, 256, 512],
            [(80, 80), (40, 40), (20, 20)],
            256,
            255,
        ),
        "YOLOX-x without anchors, 1280 x 1920": lambda rng: (
            [320, 640, 1280],
            [(160, 240), (80, 120), (40, 60)],
            320,
            85,
        ),
        "no level at all": lambda rng: ([], [], 8, 8),
    },
    mistakes=(
        Mistake(
            _macs_with(kernel=1),
            "The blocks of the branches are 3 x 3: each output channel reads nine cells of every input channel.",
        ),
        Mistake(
            _macs_with(kernel=3),
            "A 3 x 3 kernel has nine weights for each pair of channels, not three.",
        ),
        Mistake(_macs_with(stem=False), "The stem is missing: 1 x 1, from the level's channels to the width."),
        Mistake(_macs_with(stem_kernel=9), "The stem is 1 x 1, not 3 x 3."),
        Mistake(_macs_with(blocks=2), "There are two branches with two blocks each, so four blocks."),
        Mistake(
            _macs_with(reads_stem=False),
            "The branches read the stem's output, so each of their blocks goes from width to width.",
        ),
        Mistake(_macs_with(predictors=False), "The predictors are missing: 1 x 1, from the width to the outputs."),
        Mistake(_macs_with(predictor_kernel=9), "The predictors are 1 x 1, not 3 x 3."),
        Mistake(_macs_with(biases=True), "A bias is added, not multiplied: it is no multiply-add."),
        Mistake(
            _macs_with(operations=2),
            "These are operations, in which a multiply and an add count two. Here both together count one.",
        ),
        Mistake(
            _macs_with(cells=lambda rows, columns: 1),
            "These are the weights. Each of them works once in every cell: multiply by the level's cells.",
        ),
        Mistake(
            _macs_with(cells=lambda rows, columns: rows * rows),
            "The cells of a level are rows times columns; a map need not be square.",
        ),
    ),
)

# ---- what a head says -----------------------------------------------------------------------------------------------

Parts = dict[str, Callable[[Tensor], Tensor]]


def head_rows(x: Tensor, parts: Parts, training: bool) -> Tensor:
    """What a decoupled head says of one level: [B, c, H, W] -> [B, H * W, 5 + C] float32, a row for each cell.

    A row is x, y, w, h, objectness, classes; the last 1 + C are logits in training and probabilities otherwise.
    """
    x = parts["stem"](x)
    class_features, box_features = parts["class_branch"](x), parts["box_branch"](x)
    scores = torch.cat([parts["object_predictor"](box_features), parts["class_predictor"](class_features)], dim=1)
    boxes, scores = slots_first(parts["box_predictor"](box_features), 1), slots_first(scores, 1)
    return torch.cat([boxes, scores if training else scores.sigmoid()], dim=2)


def _rows_with(
    stem: tuple[bool, bool] = (True, True),
    class_reads: str = "class",
    object_reads: str = "box",
    box_reads: str = "box",
    order: tuple[int, ...] = (0, 1, 2),
    squash: str = "in evaluation",
    rows: str = "cells",
    early: bool = False,
    exact: bool = True,
):
    """A wrong `head_rows` that differs from the right one in one place."""

    def answer(x: Tensor, parts: Parts, training: bool) -> Tensor:
        reduced = parts["stem"](x)
        features = {
            name: parts[f"{name}_branch"](reduced if through else x[:, : reduced.shape[1]])
            for name, through in zip(("class", "box"), stem, strict=True)
        }
        maps = [
            parts["box_predictor"](features[box_reads]),
            parts["object_predictor"](features[object_reads]),
            parts["class_predictor"](features[class_reads]),
        ]
        if exact and not early:
            maps = [each.float() for each in maps]
        if squash == "always" or (squash in ("in evaluation", "everything") and not training):
            maps = [each.sigmoid() if n or squash == "everything" else each for n, each in enumerate(maps)]
        elif squash == "only in training" and training:
            maps = [maps[0], *(each.sigmoid() for each in maps[1:])]
        joined = torch.cat([maps[n] for n in order], dim=1)  # [B, 5 + C, H, W]
        if exact:
            joined = joined.float()
        if rows == "reshaped":
            mixed = joined.reshape(joined.shape[0], joined.shape[2] * joined.shape[3], joined.shape[1])
            late = squash == "afterwards" and not training
            return torch.cat([mixed[..., :4], mixed[..., 4:].sigmoid()], dim=2) if late else mixed
        if rows == "columns":
            return joined.transpose(2, 3).flatten(2).transpose(1, 2)
        if rows == "channels":
            return joined.flatten(2)
        return joined.flatten(2).transpose(1, 2)

    return answer


def _parts(c_in: int, width: int, num_classes: int, rng: Generator) -> Parts:
    """The parts of one level as plain functions, with weights of their own."""

    def part(inner: int, outer: int, kernel: int, active: bool) -> Callable[[Tensor], Tensor]:
        weight = torch.randn(outer, inner, kernel, kernel, generator=rng) / (inner * kernel) ** 0.5
        bias = torch.randn(outer, generator=rng)

        def apply(x: Tensor) -> Tensor:
            y = functional.conv2d(x.float(), weight, bias, padding=kernel // 2)
            return (functional.silu(y) if active else y).to(x.dtype)

        return apply

    return {
        "stem": part(c_in, width, 1, True),
        "class_branch": part(width, width, 3, True),
        "box_branch": part(width, width, 3, True),
        "class_predictor": part(width, num_classes, 1, False),
        "box_predictor": part(width, 4, 1, False),
        "object_predictor": part(width, 1, 1, False),
    }


def _level(
    shape: tuple[int, ...], num_classes: int, training: bool, rng: Generator, dtype: torch.dtype = torch.float32
):
    x = torch.randn(*shape, generator=rng).to(dtype)
    return x, _parts(shape[1], max(2, shape[1] - 2), num_classes, rng), training


RESHAPED = (
    "reshape reads the numbers in the order in which they lie, channel by channel, so a row mixes cells. Flatten H and "
    "W, then transpose."
)

ROWS = Exercise(
    answer=head_rows,
    returns=("rows",),
    inputs={
        "one picture, one cell, training": lambda rng: _level((1, 4, 1, 1), 2, True, rng),
        "one picture, one cell, evaluation": lambda rng: _level((1, 4, 1, 1), 2, False, rng),
        "2 x 3 cells, training": lambda rng: _level((1, 4, 2, 3), 2, True, rng),
        "two pictures, 4 x 6 cells, evaluation": lambda rng: _level((2, 6, 4, 6), 3, False, rng),
        "one class": lambda rng: _level((1, 6, 3, 2), 1, False, rng),
        "a level of 32 channels and 80 classes": lambda rng: _level((2, 32, 6, 8), 80, False, rng),
        "features in half precision": lambda rng: _level((1, 8, 3, 4), 3, False, rng, torch.bfloat16),
        "no picture": lambda rng: _level((0, 4, 2, 3), 2, False, rng),
    },
    mistakes=(
        Mistake(
            _rows_with(object_reads="class"),
            "The objectness reads the class branch. It stands on the box branch.",
        ),
        Mistake(
            _rows_with(class_reads="box"),
            "The classes read the box branch. They have a branch of their own.",
        ),
        Mistake(_rows_with(class_reads="box", box_reads="class", object_reads="class"), "The branches are exchanged."),
        Mistake(_rows_with(box_reads="class"), "The box reads the class branch."),
        Mistake(_rows_with(stem=(False, False)), "The branches read x itself. The stem comes first."),
        Mistake(
            _rows_with(stem=(True, False)),
            "The box branch reads x itself. Both branches read the stem's output.",
        ),
        Mistake(
            _rows_with(stem=(False, True)),
            "The class branch reads x itself. Both branches read the stem's output.",
        ),
        Mistake(
            _rows_with(squash="never"),
            "In evaluation objectness and classes are probabilities: there the sigmoid is missing.",
        ),
        Mistake(
            _rows_with(squash="always"),
            "In training the losses want logits: there must be no sigmoid.",
        ),
        Mistake(
            _rows_with(squash="only in training"),
            "It is the other way round: logits in training, probabilities in evaluation.",
        ),
        Mistake(
            _rows_with(squash="everything"),
            "The box numbers went through the sigmoid too. They are no probabilities; decoding takes them as they are.",
        ),
        Mistake(
            _rows_with(order=(0, 2, 1)),
            "The classes come before the objectness. A row is x, y, w, h, objectness, classes.",
        ),
        Mistake(
            _rows_with(order=(1, 0, 2)),
            "The objectness comes first. A row is x, y, w, h, objectness, classes.",
        ),
        Mistake(
            _rows_with(order=(2, 0, 1)),
            "The classes come first. A row is x, y, w, h, objectness, classes.",
        ),
        Mistake(_rows_with(rows="reshaped"), RESHAPED),
        Mistake(_rows_with(rows="reshaped", squash="afterwards"), RESHAPED),
        Mistake(
            _rows_with(rows="columns"),
            "The cells come column by column. They come row by row.",
        ),
        Mistake(
            _rows_with(rows="channels"),
            "These are the maps, [B, 5 + C, H * W]. A row belongs to a cell: transpose.",
        ),
        Mistake(
            _rows_with(early=True),
            "The sigmoid ran in half precision. Make float32 first: near 1 a bfloat16 has steps of 0.004.",
        ),
        Mistake(
            _rows_with(exact=False),
            "The rows kept the features' half precision. Decoding and losses want float32: .float(), before the "
            "sigmoid.",
        ),
    ),
)

# ---- do two tasks agree? --------------------------------------------------------------------------------------------


def cell_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two gradients in every cell: [B, C, H, W] each -> [B, H, W] float32; NaN where one of them is zero."""
    return cosine(a.float(), b.float(), dim=1)


def _cosines_with(
    dim: int = 1,
    normalise: str = "both",
    tiny: float = 0.0,
    zero: float | None = None,
    squares: bool = False,
    product: bool = False,
):
    """A wrong `cell_cosines` that differs from the right one in one place."""

    def answer(a: Tensor, b: Tensor) -> Tensor:
        a, b = a.float(), b.float()
        if squares:
            found = (a * b).sum(dim) / (a.square().sum(dim) * b.square().sum(dim)).sqrt()
        elif product:
            found = (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + tiny)
        else:
            lengths = [each.norm(dim=dim, keepdim=True) for each in (a, b)]
            one = a / (lengths[0] + tiny) if normalise in ("both", "a") else a
            other = b / (lengths[1] + tiny) if normalise in ("both", "b") else b
            found = (one * other).sum(dim)
        return found if zero is None else found.nan_to_num(nan=zero)

    return answer


def _cosines_of_functional(a: Tensor, b: Tensor) -> Tensor:
    return functional.cosine_similarity(a.float(), b.float(), dim=1)


def _cosine_of_level(a: Tensor, b: Tensor) -> Tensor:
    return cosine(a.float().flatten(), b.float().flatten(), dim=0)


def _cosine_of_pictures(a: Tensor, b: Tensor) -> Tensor:
    return cosine(a.float().flatten(1), b.float().flatten(1), dim=1)


def _angle(a: Tensor, b: Tensor) -> Tensor:
    return torch.rad2deg(cell_cosines(a, b).acos())


def _size(a: Tensor, b: Tensor) -> Tensor:
    return cell_cosines(a, b).abs()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - cell_cosines(a, b)


def _gradients(shape: tuple[int, ...], rng: Generator, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    shared = torch.randn(*shape, generator=rng)
    return tuple(scale * (torch.randn(*shape, generator=rng) + 0.5 * sign * shared) for sign in (1, -1))


def _mostly_zero(rng: Generator) -> tuple[Tensor, Tensor]:
    a, b = _gradients((2, 8, 4, 6), rng)
    return a * (torch.rand(2, 1, 4, 6, generator=rng) < 0.5), b * (torch.rand(2, 1, 4, 6, generator=rng) < 0.5)


ADDED = (
    "A small number is added to the lengths. Gradients may be shorter than it, and then the cosine is nearly 0, "
    "whatever their directions. 0/0 gives the NaN that is wanted."
)

COSINES = Exercise(
    answer=cell_cosines,
    returns=("cosines",),
    inputs={
        "three cells by hand": lambda rng: (
            torch.tensor([[3.0, 3.0, 3.0], [4.0, 4.0, 4.0]]).view(1, 2, 1, 3),
            torch.tensor([[4.0, 4.0, -4.0], [3.0, -3.0, -3.0]]).view(1, 2, 1, 3),
        ),
        "as many channels as columns": lambda rng: _gradients((1, 4, 3, 4), rng),
        "two pictures": lambda rng: _gradients((2, 16, 5, 7), rng),
        "whole numbers": lambda rng: (
            torch.tensor([[1, 0], [2, 5]]).view(1, 2, 1, 2),
            torch.tensor([[2, 3], [1, 0]]).view(1, 2, 1, 2),
        ),
        "cells without a gradient": _mostly_zero,
        "small gradients, 1e-9": lambda rng: _gradients((1, 8, 3, 4), rng, 1e-9),
        "very small gradients, 1e-15": lambda rng: _gradients((1, 8, 3, 4), rng, 1e-15),
        "very large gradients": lambda rng: _gradients((1, 8, 3, 4), rng, 1e14),
        "no picture": lambda rng: (torch.zeros(0, 8, 3, 4), torch.zeros(0, 8, 3, 4)),
    },
    mistakes=(
        Mistake(
            _cosines_of_functional,
            "functional.cosine_similarity never divides by less than its eps, 1e-8. Gradients may be shorter than "
            "that, and then it says nearly 0, whatever their directions. Zero gradients get a 0 too; wanted is NaN.",
        ),
        Mistake(
            _cosines_with(tiny=1e-8),
            ADDED,
        ),
        Mistake(
            _cosines_with(tiny=1e-12),
            ADDED,
        ),
        Mistake(
            _cosines_with(tiny=1e-8, product=True),
            ADDED,
        ),
        Mistake(
            _cosines_with(tiny=1e-12, product=True),
            ADDED,
        ),
        Mistake(
            _cosines_with(zero=0.0),
            "Cells without a gradient have 0, as if the tasks stood at right angles there. Wanted is NaN: there is no "
            "direction.",
        ),
        Mistake(
            _cosines_with(squares=True),
            "The product of the squared lengths underflows to 0, or overflows, in float32. Divide each gradient by its "
            "own length first.",
        ),
        Mistake(
            _cosines_with(normalise="none"),
            "This is the dot product. Divide by both lengths, or long gradients look as if they agreed more.",
        ),
        Mistake(
            _cosines_with(normalise="a"),
            "Only the first gradient is divided by its length.",
        ),
        Mistake(
            _cosines_with(normalise="b"),
            "Only the second gradient is divided by its length.",
        ),
        Mistake(
            _cosines_with(dim=-1),
            "The sum runs over the columns. The channels are axis 1.",
        ),
        Mistake(
            _cosine_of_level,
            "This is one number for all cells. Sum over the channels alone, dim=1.",
        ),
        Mistake(
            _cosine_of_pictures,
            "This is one number for each picture. Sum over the channels alone, dim=1.",
        ),
        Mistake(_angle, "This is the angle. Wanted is its cosine."),
        Mistake(_size, "The sign is lost: -1 (they fight) and +1 (they agree) became the same."),
        Mistake(_distance, "This is 1 minus the cosine, a distance."),
    ),
)

# ---- found, but not named -------------------------------------------------------------------------------------------


def found_and_named(
    boxes: Tensor, scores: Tensor, labels: Tensor, gt_boxes: Tensor, gt_labels: Tensor
) -> tuple[int, int]:
    """How many objects of a picture are found, and how many of these are named.

    An object is found if some detection has an IoU of at least 0.5 with it, and named if the surest of these (the first
    of equals) has its class.
    """
    return _counts_with()(boxes, scores, labels, gt_boxes, gt_labels)


def _counts_with(
    edge: bool = True,
    by: str = "score",
    of: str = "found",
    same_class: bool = False,
    threshold: float = 0.5,
    empty: bool = True,
    share: bool = False,
):
    """A `found_and_named` that differs from the right one in one place, or in none."""

    def answer(boxes: Tensor, scores: Tensor, labels: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> tuple[int, int]:
        if empty and (not len(boxes) or not len(gt_boxes)):
            return 0, 0
        overlap = pairwise_iou(gt_boxes.float(), boxes.float())  # [G, N]
        near = overlap >= threshold if edge else overlap > threshold
        if same_class:
            near = near & (gt_labels[:, None] == labels)
        found = near.any(dim=1)
        if by == "any":
            named = (near & (gt_labels[:, None] == labels)).any(dim=1)
        else:
            bid = scores.float() if by == "score" else overlap
            rank = torch.where(near, bid, -1.0) if of == "found" else bid.expand(overlap.shape)
            named = labels[rank.argmax(dim=1)] == gt_labels
        if of != "all":
            named = named & found
        counted = int(found.sum()), int(named.sum())
        return (counted[0], counted[0] - counted[1]) if share else counted

    return answer


def _counts_of_detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, gt_boxes: Tensor, gt_labels: Tensor
) -> tuple[int, int]:
    if not len(boxes) or not len(gt_boxes):
        return 0, 0
    near = pairwise_iou(gt_boxes.float(), boxes.float()) >= 0.5
    return int(near.any(dim=0).sum()), int((near & (gt_labels[:, None] == labels)).any(dim=0).sum())


def _detected(objects: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Objects, and three detections of each that miss it more or less and often have another class."""
    corner = torch.rand(objects, 2, generator=rng) * 200
    gt_boxes = torch.cat([corner, corner + 10 + 50 * torch.rand(objects, 2, generator=rng)], dim=1)
    gt_labels = torch.randint(4, (objects,), generator=rng)
    boxes = gt_boxes.repeat(3, 1) + 7 * torch.randn(3 * objects, 4, generator=rng)
    labels = torch.where(torch.rand(3 * objects, generator=rng) < 0.5, gt_labels.repeat(3), 3 - gt_labels.repeat(3))
    return boxes, torch.rand(3 * objects, generator=rng), labels, gt_boxes, gt_labels


_SQUARE = torch.tensor([[0.0, 0.0, 10.0, 10.0]])

NAMED = Exercise(
    answer=found_and_named,
    returns=("found", "named"),
    inputs={
        "two objects, one named": lambda rng: (
            torch.tensor([[0.0, 0.0, 10.0, 9.0], [21.0, 20.0, 40.0, 40.0], [60.0, 60.0, 70.0, 70.0]]),
            torch.tensor([0.4, 0.8, 0.9]),
            torch.tensor([1, 2, 0]),
            torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]]),
            torch.tensor([1, 3]),
        ),
        "several detections of one object": lambda rng: (
            torch.tensor([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 4.0]]),
            torch.tensor([0.6, 0.5, 0.9]),
            torch.tensor([1, 2, 2]),
            _SQUARE,
            torch.tensor([1]),
        ),
        "the surest has another class": lambda rng: (
            torch.tensor([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 10.0]]),
            torch.tensor([0.6, 0.5]),
            torch.tensor([2, 1]),
            _SQUARE,
            torch.tensor([1]),
        ),
        "an IoU of exactly 0.5, whole numbers": lambda rng: (
            torch.tensor([[0, 0, 10, 5]]),
            torch.tensor([0.3]),
            torch.tensor([0]),
            torch.tensor([[0, 0, 10, 10]]),
            torch.tensor([0]),
        ),
        "forty objects": lambda rng: _detected(40, rng),
        "three hundred objects": lambda rng: _detected(300, rng),
        "nothing detected": lambda rng: (
            torch.zeros(0, 4),
            torch.zeros(0),
            torch.zeros(0, dtype=torch.int64),
            _SQUARE,
            torch.tensor([1]),
        ),
        "nothing to find": lambda rng: (
            _SQUARE,
            torch.tensor([0.9]),
            torch.tensor([1]),
            torch.zeros(0, 4),
            torch.zeros(0, dtype=torch.int64),
        ),
    },
    mistakes=(
        Mistake(
            _counts_with(edge=False),
            "An IoU of exactly 0.5 is enough: compare with >=.",
        ),
        Mistake(
            _counts_with(by="overlap"),
            "The name is taken from the detection with the highest IoU. It is the surest one that speaks.",
        ),
        Mistake(
            _counts_with(by="any"),
            "An object counts as named if *any* of its detections has its class. Only the surest one counts.",
        ),
        Mistake(
            _counts_with(of="picture"),
            "The surest detection of the whole picture gives the name. Look only at those that overlap the object.",
        ),
        Mistake(
            _counts_with(of="all"),
            "The surest detection of the whole picture gives the name, even to objects that nobody found.",
        ),
        Mistake(
            _counts_with(same_class=True),
            "Only detections of the right class count as found. An object is found whatever it is called; that is the "
            "point.",
        ),
        Mistake(
            _counts_of_detections,
            "These are detections. Count objects: several detections of one object count once.",
        ),
        Mistake(
            _counts_with(threshold=0.0),
            "Any overlap counts here. Wanted is an IoU of at least 0.5.",
        ),
        Mistake(
            _counts_with(share=True),
            "The second number is how many are *not* named.",
        ),
        Mistake(
            _counts_with(empty=False),
            "Right, but a picture without detections has no surest one. Settle the empty cases first.",
        ),
    ),
)

EXERCISES = (MACS, ROWS, COSINES, NAMED)
