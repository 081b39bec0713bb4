"""The checker itself, on a small exercise, and what holds for every exercise of the course."""

from __future__ import annotations

import pytest
import torch

from minidet.exercises import EXERCISES, Exercise, Mistake, review
from tests.exercises.told import assert_wrong, prose


def halve(values):
    return values / 2


SMALL = Exercise(
    answer=halve,
    returns=("halves",),
    inputs={
        "a table": lambda rng: (torch.tensor([[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]),),
        "random numbers": lambda rng: (torch.randn(3, 3, generator=rng),),
    },
    mistakes=(
        Mistake(lambda values: values * 2, "That is twice as much."),
        Mistake(lambda values: values.nope(), "This has no such method."),
    ),
)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda values: values * 2, "That is twice as much."),
        (lambda values: values.missing(), "This has no such method."),
        (lambda values: values.missing() if values.shape == (3, 3) else values / 2, "wrong on 1 of 2 inputs"),
        (lambda values: values.T / 2, "Two axes are swapped"),
        (lambda values: values.double() / 2, "halves is float64, but float32 was expected."),
        (lambda values: values / 2 + 1e-3, "halves[0, 0] is 1.001, not 1. 6 of 6 numbers differ."),
        (lambda values: values.numpy() / 2, "halves is of type ndarray, but a tensor was expected."),
        (lambda values: (values / 2, values), "2 values came back, but 1 were expected."),
        (lambda values: 1 / 0, "your function raised ZeroDivisionError"),
    ],
)
def test_generic_mistakes_are_recognised_in_any_exercise(answer, text):
    assert_wrong(SMALL, answer, text)


def test_a_hint_needs_agreement_on_every_input():
    verdict = review(SMALL, lambda values: values * 2 if values.shape == (2, 3) else values * 3)
    assert "That is twice as much." not in verdict.text
    assert "None of the usual mistakes" in verdict.text


def test_tiny_differences_of_rounding_are_right():
    assert review(SMALL, lambda values: values * 0.5 * (1 + 1e-6)).status == "done"


def test_inputs_are_the_same_every_time_and_differ_from_each_other():
    one, other = EXERCISES["score_slots"].cases(), EXERCISES["score_slots"].cases()
    for (_, first), (_, second) in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(one[1][1][0], one[3][1][0][:4])


# ---- every exercise of the course -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda exercise: exercise.name)
def test_every_listed_mistake_is_wrong_and_gets_its_own_hint(exercise):
    assert review(exercise, exercise.answer).status == "done"
    for mistake in exercise.mistakes:
        verdict = review(exercise, mistake.gives)
        assert verdict.status == "wrong"
        assert prose(mistake.hint) in prose(verdict.text)
        assert max(len(line) for line in verdict.text.splitlines()) <= 120
