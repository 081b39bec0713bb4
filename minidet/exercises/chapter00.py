"""The exercise of chapter 00: from raw numbers to scores."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from minidet.exercises.check import Exercise, Mistake


def score_slots(object_logits: Tensor, class_logits: Tensor) -> tuple[Tensor, Tensor]:
    """How sure a detector is of each slot's best class: [A] and [A, C] float -> scores [A] float, labels [A] int64."""
    scores = object_logits.sigmoid()[:, None] * class_logits.sigmoid()  # [A, C]
    best = scores.max(dim=1)
    return best.values, best.indices


def _two_slots(rng: Generator) -> tuple[Tensor, Tensor]:
    object_probability = torch.tensor([0.5, 0.9])
    class_probability = torch.tensor([[0.3, 0.4, 0.8], [0.7, 0.6, 0.1]])
    return object_probability.logit(), class_probability.logit()


def _random(slots: int, classes: int, rng: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(slots, generator=rng) * 3, torch.randn(slots, classes, generator=rng) * 3


def _very_sure(rng: Generator) -> tuple[Tensor, Tensor]:
    return torch.tensor([100.0, 100.0, -100.0]), torch.tensor([[-100.0, 100.0], [-100.0, -3.0], [100.0, -100.0]])


def _by_exp(logits: Tensor) -> Tensor:
    return logits.exp() / (1 + logits.exp())


def _best(scores: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    return scores.max(dim=dim).values, scores.max(dim=dim).indices


EXERCISES = (
    Exercise(
        answer=score_slots,
        returns=("scores", "labels"),
        inputs={
            "two slots and three classes": _two_slots,
            "as many slots as classes": lambda rng: _random(4, 4, rng),
            "a single class": lambda rng: _random(5, 1, rng),
            "a thousand slots": lambda rng: _random(1000, 8, rng),
            "logits of 100 and -100": _very_sure,
            "no slot at all": lambda rng: _random(0, 8, rng),
        },
        mistakes=(
            Mistake(
                lambda objects, classes: _best(objects.sigmoid()[:, None] * classes.softmax(dim=1)),
                "This is what softmax gives. YOLOX asks a question of its own for every class (is it a star?), so the "
                "answers of a slot need not add up to 1: use the sigmoid for the classes as well.",
            ),
            Mistake(
                lambda objects, classes: _best(classes.sigmoid()),
                "The objectness is missing. A slot that sees no object must get a low score, whatever its class says.",
            ),
            Mistake(
                lambda objects, classes: (objects.sigmoid(), classes.argmax(dim=1)),
                "The class is missing from the score: this is the objectness alone.",
            ),
            Mistake(
                lambda objects, classes: _best((objects[:, None] + classes).sigmoid()),
                "The logits are added and then squashed. Turn each of the two into a probability, then multiply.",
            ),
            Mistake(
                lambda objects, classes: _best((objects[:, None] * classes).sigmoid()),
                "The logits are multiplied and then squashed, so two negative logits make a high score. Turn each of "
                "the two into a probability, then multiply.",
            ),
            Mistake(
                lambda objects, classes: _best(objects[:, None] * classes),
                "These are logits, not probabilities: the sigmoid is missing on both sides.",
            ),
            Mistake(
                lambda objects, classes: _best(objects.sigmoid()[:, None] * classes),
                "The class logits never went through the sigmoid.",
            ),
            Mistake(
                lambda objects, classes: _best(objects[:, None] * classes.sigmoid()),
                "The object logits never went through the sigmoid.",
            ),
            Mistake(
                lambda objects, classes: _best(objects.sigmoid() * classes.sigmoid()),
                "[A] times [A, C] lines the slots up with the classes, because broadcasting starts at the last axis. "
                "Give the objectness a second axis, so that it is [A, 1].",
            ),
            Mistake(
                lambda objects, classes: _best(objects.sigmoid()[:, None] * classes.sigmoid(), dim=0),
                "This is the best slot of each class. Wanted is the best class of each slot: go along the axis of the "
                "classes, the last one.",
            ),
            Mistake(
                lambda objects, classes: _best(objects.sigmoid()[:, None] * classes.sigmoid())[::-1],
                "The two values are in the wrong order: scores first, then labels.",
            ),
            Mistake(
                lambda objects, classes: (objects.sigmoid()[:, None] * classes.sigmoid(), classes.argmax(dim=1)),
                "scores holds a number for every class. Keep the best one of each slot.",
            ),
            Mistake(
                lambda objects, classes: _best(_by_exp(objects)[:, None] * _by_exp(classes)),
                "exp(100) is too large for float32, and inf / inf is NaN. 1 / (1 + exp(-x)) has no such place, and "
                "torch.sigmoid(x) does all this for you.",
            ),
        ),
    ),
)
