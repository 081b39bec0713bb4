"""How an exercise is checked: run the answer on inputs from simple to nasty, and explain the first one that goes wrong.

An exercise is data: the right answer, inputs made from seeds, and the mistakes that people make - each as the function
that somebody who makes it has written. An answer that behaves like one of them on every input gets that mistake's hint.

Source: the course's own; chapter 00.
"""

from __future__ import annotations

import copy
import inspect
import linecache
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

RELATIVE, ABSOLUTE = 1e-4, 1e-6  # how far a number may be from the expected one
SHOWN = 24  # tensors with more numbers than this are summed up
WIDTH = 100  # of the longest line of prose
NUMBERS = 80  # of the longest line of numbers


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that people give, and what to tell them.

    Attributes:
        gives: what they wrote, with the parameters of the right answer.
        hint: what is wrong about it and where to look, without the solution itself.
    """

    gives: Callable[..., Any]
    hint: str


@dataclass(frozen=True)
class Exercise:
    """A function to fill in. Its name and its parameters are those of the right answer.

    Attributes:
        answer: the right one.
        returns: what each returned value is called.
        inputs: by description, how to make the arguments; the simplest first, because the first that fails is shown.
        mistakes: the first that fits an answer is named.
    """

    answer: Callable[..., Any]
    returns: tuple[str, ...]
    inputs: Mapping[str, Callable[[Generator], tuple[Any, ...]]]
    mistakes: tuple[Mistake, ...] = ()

    @property
    def name(self) -> str:
        return self.answer.__name__

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.answer).parameters)

    def cases(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Every input with its description; the same ones every time."""
        return [
            (description, make(Generator().manual_seed(seed)))
            for seed, (description, make) in enumerate(self.inputs.items())
        ]


@dataclass(frozen=True)
class Verdict:
    """What `check` prints."""

    status: Literal["done", "not attempted", "wrong"]
    text: str


def review(exercise: Exercise, answer: Any) -> Verdict:
    """Try an answer on every input of an exercise; an error that it raises becomes part of the verdict."""
    name, parameters = exercise.name, exercise.parameters
    if not callable(answer):
        say = f'pass the function itself, check("{name}", {name}), and not what it returns.'
        return Verdict("wrong", f"{name}: wrong. This is of type {_kind(answer)}; {say}")
    if not _takes(answer, len(parameters)):
        say = f"your function must take {len(parameters)} arguments, ({', '.join(parameters)})."
        return Verdict("wrong", f"{name}: wrong. {say[0].upper()}{say[1:]}")

    cases = exercise.cases()
    outcomes = [_run(answer, arguments) for _, arguments in cases]
    if any(isinstance(outcome.error, NotImplementedError) for outcome in outcomes):
        say = "Replace the line `raise NotImplementedError` by your own code, then run this cell again."
        return Verdict("not attempted", f"{name}: not attempted yet. {say}")

    right = [_run(exercise.answer, arguments) for _, arguments in cases]
    faults = [
        _fault(exercise, outcome, expected, arguments)
        for outcome, expected, (_, arguments) in zip(outcomes, right, cases, strict=True)
    ]
    wrong = [number for number, fault in enumerate(faults) if fault]
    if not wrong:
        return Verdict("done", f"{name}: done. Right on all {len(cases)} inputs.")

    first = wrong[0]
    description, arguments = cases[first]
    difference, advice = faults[first]
    for mistake in exercise.mistakes:
        if all(_alike(outcomes[i], _run(mistake.gives, cases[i][1])) for i in range(len(cases))):
            advice = mistake.hint
            break
    came_back = outcomes[first].values
    lines = [f"{name}: wrong on {len(wrong)} of {len(cases)} inputs. The first of them: {description}.", ""]
    lines += _table("input", parameters, arguments)
    lines += _table("came back", exercise.returns, came_back) if came_back else []
    lines += _table("expected", exercise.returns, right[first].values)
    lines += _paragraph("wrong", difference)
    lines += _paragraph("hint", advice)
    return Verdict("wrong", "\n".join(lines))


# ---- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    """What a function did with its own copy of the arguments."""

    values: tuple[Any, ...] = ()
    error: Exception | None = None
    line: str = ""  # the function's own line that raised the error
    changed: tuple[int, ...] = ()  # positions of the arguments that it wrote into


def _run(function: Callable[..., Any], arguments: Sequence[Any]) -> _Outcome:
    copies = copy.deepcopy(tuple(arguments))
    try:
        returned = function(*copies)
    except Exception as error:
        return _Outcome(error=error, line=_line_of(function, error))
    values = tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)
    changed = [
        i for i, (old, new) in enumerate(zip(arguments, copies, strict=True)) if not _equal(old, new, exact=True)
    ]
    return _Outcome(values, changed=tuple(changed))


def _line_of(function: Callable[..., Any], error: Exception) -> str:
    """The last line of the function's own that was running, as it stands in the source."""
    code, found, step = getattr(inspect.unwrap(function), "__code__", None), "", error.__traceback__
    while step is not None:
        if step.tb_frame.f_code is code:
            found = linecache.getline(code.co_filename, step.tb_lineno).strip()
        step = step.tb_next
    return found


def _takes(answer: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(answer).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # some functions that are written in C do not tell
        return True
    return True


# ---- comparing -------------------------------------------------------------------------------------------------------


def _fault(
    exercise: Exercise, outcome: _Outcome, expected: _Outcome, arguments: Sequence[Any]
) -> tuple[str, str] | None:
    """What is wrong about one outcome and what may help, or None."""
    if outcome.error is not None:
        place = f", in the line `{outcome.line}`" if outcome.line else ""
        said = " ".join(str(outcome.error).split()) or "no message"
        return (
            f"your function raised {type(outcome.error).__name__}{place}: {said}",
            "Run your function on this input in a cell of its own and print the shape of every tensor on the way.",
        )
    names = ", ".join(exercise.returns)
    if len(outcome.values) == 1 and outcome.values[0] is None:
        return f"your function returned None instead of {names}.", "Does it end with `return`?"
    if len(outcome.values) != len(expected.values):
        count = f"{len(outcome.values)} value{'' if len(outcome.values) == 1 else 's'}"
        one = f"Return {names} alone, as one value: a list or a tuple counts as several."
        advice = one if len(expected.values) == 1 else f"Return {names}, in this order."
        return f"{count} came back, but {len(expected.values)} were expected.", advice
    for name, value, wanted in zip(exercise.returns, outcome.values, expected.values, strict=True):
        fault = _difference(name, value, wanted)
        if fault:
            return fault
    if outcome.changed:
        changed = " and ".join(exercise.parameters[i] for i in outcome.changed)
        return (
            f"the result is right, but your function changed its input: other numbers stand in {changed} afterwards.",
            "A method whose name ends in _ (such as sigmoid_), an assignment to a part (x[0] = ...) and x *= ... write "
            "into the caller's tensor. Make a new tensor instead.",
        )
    return None


def _difference(name: str, value: Any, wanted: Any) -> tuple[str, str] | None:
    if not isinstance(wanted, Tensor):
        if _equal(value, wanted):
            return None
        return f"{name} is {_short(value)}, not {_short(wanted)}.", NO_HINT
    if not isinstance(value, Tensor):
        return (
            f"{name} is of type {_kind(value)}, but a tensor was expected.",
            "Work with torch functions throughout.",
        )
    if value.shape != wanted.shape:
        swapped = value.ndim > 1 and value.shape == wanted.shape[::-1]
        return (
            f"{name} has the shape {list(value.shape)}, not {list(wanted.shape)}.",
            "Two axes are swapped: look at each `dim=`, or transpose." if swapped else
            "Write the shape behind each line of your function, and look where an axis comes or goes.",
        )  # fmt: skip
    if value.dtype != wanted.dtype:
        return (
            f"{name} is {_dtype(value)}, but {_dtype(wanted)} was expected.",
            "A mixture of types takes the larger one, and floats for labels cannot be used as an index. "
            "Which line made this type?",
        )
    if _equal(value, wanted):
        return None
    strange = value.isnan() & ~wanted.isnan() if value.is_floating_point() else torch.zeros_like(value).bool()
    if strange.any():
        index = _index(strange)
        return (
            f"{name}{index} is NaN (not a number), not {_number(wanted[tuple(index)])}.",
            "NaN comes from 0/0, inf/inf or inf - inf; look for an exp that overflows, a log of 0 or a division by 0.",
        )
    unequal = ~_close(value, wanted)
    index = _index(unequal)
    share = f" {int(unequal.sum())} of {value.numel()} numbers differ." if value.numel() > 1 else ""
    return f"{name}{index} is {_number(value[tuple(index)])}, not {_number(wanted[tuple(index)])}.{share}", NO_HINT


NO_HINT = "None of the usual mistakes gives this. Compute the first number that differs by hand, step by step."


def _alike(one: _Outcome, other: _Outcome) -> bool:
    """Whether two functions did the same: the same values, changes of the input, or kind of error."""
    if one.error is not None or other.error is not None:
        return type(one.error) is type(other.error)
    return (
        len(one.values) == len(other.values)
        and one.changed == other.changed
        and all(_equal(a, b) for a, b in zip(one.values, other.values, strict=True))
    )


def _equal(a: Any, b: Any, exact: bool = False) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return torch.equal(a.nan_to_num(), b.nan_to_num()) if exact else bool(_close(a, b).all())
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    if isinstance(a, float) and isinstance(b, float):
        return bool(_close(torch.tensor(a), torch.tensor(b)))
    return type(a) is type(b) and np.array_equal(a, b)


def _close(a: Tensor, b: Tensor) -> Tensor:
    return torch.isclose(a.detach().double(), b.detach().double(), RELATIVE, ABSOLUTE, equal_nan=True)


def _index(where: Tensor) -> list[int]:
    return where.nonzero()[0].tolist()


# ---- putting into words ----------------------------------------------------------------------------------------------


def _table(title: str, names: Sequence[str], values: Sequence[Any]) -> list[str]:
    named = list(zip(names, values, strict=False)) if len(names) == len(values) else [("", value) for value in values]
    width = max((len(name) + 2 for name, _ in named if name), default=0)
    lines = []
    for row, (name, value) in enumerate(named):
        first, *rest = _long(value)
        lines.append(f"  {title if row == 0 else '':<10} {name:<{width}}{first}")
        lines += [" " * (13 + width) + line for line in rest]
    return lines


def _paragraph(title: str, text: str) -> list[str]:
    return textwrap.fill(text, WIDTH, initial_indent=f"  {title:<10} ", subsequent_indent=" " * 13).split("\n")


def _long(value: Any) -> list[str]:
    if not isinstance(value, Tensor):
        return [_short(value)]
    head = f"{_dtype(value)} {list(value.shape)}"
    if value.numel() == 0:
        return [head]
    if value.numel() > SHOWN:
        low, high = value.double().min(), value.double().max()
        return [f"{head}, numbers from {_number(low)} to {_number(high)}"]
    if value.ndim == 2:
        return [head, *(_row(row) for row in value)]
    if value.ndim == 0:
        return [f"{head}  {_number(value)}"]
    line = f"{head}  {_row(value.flatten())}"
    return [line] if len(line) <= NUMBERS else [head, *textwrap.wrap(_row(value.flatten()), NUMBERS)]


def _row(values: Tensor) -> str:
    return "[" + "  ".join(_number(value) for value in values) + "]"


def _number(value: Tensor) -> str:
    number = value.item()
    return f"{number + 0.0:.4g}" if isinstance(number, float) else str(number)  # + 0.0 makes 0 of -0


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return textwrap.shorten(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)), 60, placeholder=" ...")


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _kind(value: Any) -> str:
    return type(value).__name__
