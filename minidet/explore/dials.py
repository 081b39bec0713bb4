"""The dials of every assignment strategy: which positions each of its parameters can be turned to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minidet.assign import (
    ATSS,
    OTA,
    POTO,
    Assigner,
    BestAnchor,
    CentreSampling,
    MaxIoU,
    OneToOne,
    SimOTA,
    UniformMatching,
)
from minidet.errors import MinidetError


@dataclass(frozen=True)
class Dial:
    """One parameter of a strategy.

    Attributes:
        name: the field of the strategy's dataclass.
        words: what it is, for people.
        values: its positions, in order. A dial only has positions that make sense.
    """

    name: str
    words: str
    values: tuple[Any, ...]

    @property
    def texts(self) -> list[str]:
        """What each position is called."""
        return [_text(value) for value in self.values]

    @property
    def is_switch(self) -> bool:
        """Whether it only knows no and yes."""
        return self.values == (False, True)


def _steps(first: float, last: float, step: float) -> tuple[float, ...]:
    return tuple(round(first + step * i, 4) for i in range(round((last - first) / step) + 1))


_WHOLE = tuple(range(1, 31))
_ABOVE_0 = _steps(0.05, 1, 0.05)
_WEIGHTS = _steps(0, 10, 0.5)
_BOTH = ("predictions", "anchors")

DIALS: dict[type, tuple[Dial, ...]] = {
    SimOTA: (
        Dial("radius", "radius of the centre square, strides", _steps(0.5, 5, 0.25)),
        Dial("box_candidates", "slots in the box are candidates too", (False, True)),
        Dial("outside_penalty", "cost of a pair outside the region", (0.0, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)),
        Dial("iou_weight", "weight of −log IoU", _WEIGHTS),
        Dial("max_k", "IoUs that are summed for k", _WHOLE),
    ),
    UniformMatching: (
        Dial("k", "k, slots that each list gives", _WHOLE),
        Dial("min_anchor_iou", "anchor IoU below this: ignored", _steps(0, 1, 0.05)),
        Dial("max_background_iou", "predicted IoU above this: ignored", _ABOVE_0),
        Dial("sources", "lists", (_BOTH[:1], _BOTH[1:], _BOTH)),
    ),
    MaxIoU: (
        Dial("positive_iou", "IoU from which on a slot is positive", _ABOVE_0),
        Dial("negative_iou", "IoU below which it is background", _ABOVE_0),
        Dial("low_quality", "the best anchors of an object too", (False, True)),
    ),
    ATSS: (Dial("candidates", "candidates on each level", _WHOLE),),
    CentreSampling: (
        Dial("radius", "radius of the centre square, strides", (None, *_steps(0.5, 5, 0.5))),
        Dial(
            "level_limit", "largest half side on a level, strides", (*map(float, range(1, 11)), 12.0, 16.0, 24.0, 32.0)
        ),
    ),
    BestAnchor: (Dial("ignore_iou", "predicted IoU above this: ignored", _ABOVE_0),),
    POTO: (
        Dial("alpha", "exponent of the overlap; the score's is the rest", _steps(0, 1, 0.05)),
        Dial("radius", "radius of the centre square, strides", _steps(0.5, 5, 0.25)),
    ),
    OneToOne: (
        Dial("class_weight", "weight of the class cost", _WEIGHTS),
        Dial("l1_weight", "weight of the L1 distance", _WEIGHTS),
        Dial("giou_weight", "weight of −GIoU", _WEIGHTS),
    ),
    OTA: (
        Dial("radius", "radius of the centre square, strides", _steps(0.5, 5, 0.25)),
        Dial("iou_weight", "weight of −log IoU", _WEIGHTS),
        Dial("max_k", "IoUs that are summed for k", _WHOLE),
        Dial("epsilon", "epsilon, how much the plan is spread", (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
        Dial("iterations", "iterations of Sinkhorn-Knopp", (1, 2, 5, 10, 20, 50, 100, 200, 500)),
        Dial("solver", "solver", ("sinkhorn", "exact")),
    ),
}


def dials_of(rule: Assigner) -> tuple[Dial, ...]:
    """The dials of a strategy; the values that `rule` has are among their positions.

    Raises:
        MinidetError: the strategy is none of those in `minidet.assign`.
    """
    if type(rule) not in DIALS:
        names = ", ".join(kind.__name__ for kind in DIALS)
        raise MinidetError(f"an assignment explorer shows {names}; it knows no dials for {type(rule).__name__}")
    return tuple(_with(dial, getattr(rule, dial.name)) for dial in DIALS[type(rule)])


def positions_of(rule: Assigner, dials: Sequence[Dial]) -> list[int]:
    """Where each dial stands for a strategy with these parameters."""
    return [dial.values.index(getattr(rule, dial.name)) for dial in dials]


def turn(rule: Assigner, dials: Sequence[Dial], positions: Sequence[int], moved: str | None = None) -> Assigner:
    """The strategy with its dials in other positions. Where two of them contradict, the one that moved has its way.

    Args:
        rule: the strategy, whatever its parameters.
        dials: of `dials_of`.
        positions: for each dial the number of its position.
        moved: the name of the dial that was turned last.

    Raises:
        MinidetError: there is no such position.
    """
    if len(positions) != len(dials) or any(
        not 0 <= position < len(dial.values) for position, dial in zip(positions, dials, strict=True)
    ):
        raise MinidetError(f"{type(rule).__name__}: {list(positions)} are no positions of its {len(dials)} dials")
    wanted = {dial.name: dial.values[position] for dial, position in zip(dials, positions, strict=True)}
    return type(rule)(**_fitting(type(rule), wanted, moved))


def _fitting(kind: type, wanted: dict[str, Any], moved: str | None) -> dict[str, Any]:
    """Parameters that the strategy accepts."""
    if kind is MaxIoU and wanted["negative_iou"] > wanted["positive_iou"]:
        # The lower threshold is not above the upper one: whichever was turned takes the other one along.
        value = wanted["negative_iou" if moved == "negative_iou" else "positive_iou"]
        return {**wanted, "negative_iou": value, "positive_iou": value}
    if kind is OneToOne and not any(wanted.values()):
        return {**wanted, moved or "class_weight": _WEIGHTS[1]}  # something has to cost something
    return wanted


def _with(dial: Dial, value: Any) -> Dial:
    if value in dial.values:
        return dial
    ordered = sorted({*dial.values, value} - {None})
    return dataclasses.replace(dial, values=((None,) if None in dial.values else ()) + tuple(ordered))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return " and ".join(value)
    if value is None:
        return "one cell"
    return f"{value:,g}" if abs(value) < 1e6 else f"{value:.0e}".replace("e+0", "e")
