"""What the tests of all chapters' exercises share."""

from __future__ import annotations

from collections.abc import Callable

from minidet.exercises import EXERCISES, Exercise, review


def stub(*arguments):
    """An exercise as a chapter gives it."""
    raise NotImplementedError


def prose(text: str) -> str:
    """The text without its line breaks and indents."""
    return " ".join(text.split())


def assert_wrong(exercise: Exercise | str, answer: Callable, *texts: str) -> None:
    """The answer is judged wrong, and whoever gave it is told each of these texts."""
    verdict = review(EXERCISES[exercise] if isinstance(exercise, str) else exercise, answer)
    assert verdict.status == "wrong"
    for text in texts:
        assert text in prose(verdict.text)
