"""What the chapters' exercises are checked with (chapter 00): `check("score_slots", score_slots)`."""

from __future__ import annotations

from typing import Any

from minidet.errors import MinidetError
from minidet.exercises import (
    chapter00,
    chapter01,
    chapter04,
    chapter05,
    chapter06,
    chapter07,
    chapter08,
    chapter09,
    chapter10,
    chapter12,
    chapter13,
)
from minidet.exercises.check import Exercise, Mistake, Verdict, review

__all__ = ["EXERCISES", "Exercise", "Mistake", "Verdict", "check", "review"]

CHAPTERS = (
    chapter00,
    chapter01,
    chapter04,
    chapter05,
    chapter06,
    chapter07,
    chapter08,
    chapter09,
    chapter10,
    chapter12,
    chapter13,
)
EXERCISES = {exercise.name: exercise for chapter in CHAPTERS for exercise in chapter.EXERCISES}


def check(name: str, answer: Any) -> None:
    """Say how an exercise stands: done, not attempted, or wrong - and then on which input and what to look at.

    Args:
        name: of the exercise, as its chapter gives it.
        answer: the function that you have written.

    Raises:
        MinidetError: there is no such exercise.

    Chapter 00.
    """
    if name not in EXERCISES:
        raise MinidetError(f"there is no exercise {name!r}. The names are {', '.join(EXERCISES)}.")
    print(review(EXERCISES[name], answer).text)
