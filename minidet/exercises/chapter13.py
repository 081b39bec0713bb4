"""The exercises of chapter 13: a batch that fits, the worth of more processes, a fault by its curves, another batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from minidet.exercises.check import Exercise, Mistake

# ---- the largest batch that fits ------------------------------------------------------------------------------------


def batch_that_fits(memory: int, fixed: int, each: int, parts: int, highest: int) -> int:
    """Pictures of the largest batch, a multiple of `parts`, at most `highest`; 0 if not even one a part fits.

    `memory` bytes are free. `fixed` are taken whatever the batch; `each` by every picture that is computed at once, and
    of a batch in parts that is one part.
    """
    if memory < fixed:
        return 0
    at_once = highest // parts
    if each > 0:
        at_once = min(at_once, (memory - fixed) // each)
    return at_once * parts


def _fits_with(
    fixed_counts: bool = True,
    share: Callable[[int, int], int] = lambda room, each: room // each,
    whole: bool = True,
    limit: str = "total",
    floor: bool = True,
    zero: bool = True,
    doubling: bool = False,
    all_at_once: bool = False,
):
    """A wrong `batch_that_fits` that differs from the right one in one place."""

    def answer(memory: int, fixed: int, each: int, parts: int, highest: int) -> int:
        room = memory - (fixed if fixed_counts else 0)
        if room < 0 and floor:
            return 0
        limits = {"total": highest // parts, "at once": highest, "none": 2**62}
        at_once = limits[limit]
        if each > 0 or not zero:
            fits = share(room, each) // (parts if all_at_once else 1)
            at_once = min(at_once, fits)
        if doubling and at_once > 0:
            at_once = 2 ** (at_once.bit_length() - 1)
        return at_once * parts if whole else at_once

    return answer


GB = 10**9

FITS = Exercise(
    answer=batch_that_fits,
    returns=("batch",),
    inputs={
        "24 GB": lambda rng: (24 * GB, GB, 400_000_000, 1, 64),
        "the last picture just fits": lambda rng: (9 * GB, GB, GB, 1, 64),
        "memory for more than is wanted": lambda rng: (80 * GB, GB, 400_000_000, 1, 64),
        "a batch in four parts": lambda rng: (6 * GB, GB, 400_000_000, 4, 64),
        "at most 30, in four parts": lambda rng: (80 * GB, GB, 400_000_000, 4, 30),
        "no room for a picture": lambda rng: (GB + 1, GB, 400_000_000, 2, 64),
        "the weights alone are too large": lambda rng: (2 * GB, 5 * GB, 400_000_000, 1, 64),
        "a picture takes nothing": lambda rng: (2 * GB, GB, 0, 2, 64),
        "too large for a float": lambda rng: (2**60 + 2**10 - 1, 0, 2**10, 1, 2**60),
    },
    mistakes=(
        Mistake(
            _fits_with(fixed_counts=False),
            "Weights, gradients, momentum and average lie in memory before the first picture. Take `fixed` off first.",
        ),
        Mistake(
            _fits_with(share=lambda room, each: -(-room // each)),
            "This rounds up, so the last picture does not fit whole. Round down.",
        ),
        Mistake(
            _fits_with(share=lambda room, each: round(room / each)),
            "This rounds to the nearest number, which may be the next larger one. Round down.",
        ),
        Mistake(
            _fits_with(share=lambda room, each: int(room / each)),
            "The division / makes a float of 53 bits, so that large whole numbers come out wrong. // stays exact.",
        ),
        Mistake(
            _fits_with(whole=False),
            "This is the number of pictures computed at once. A batch in `parts` parts has so many times as many.",
        ),
        Mistake(
            _fits_with(all_at_once=True),
            "The parts are computed one after the other, so only one of them must fit at a time. That is what they "
            "are for.",
        ),
        Mistake(
            _fits_with(limit="at once"),
            "`highest` is a limit for the whole batch, and this holds it against one part.",
        ),
        Mistake(
            _fits_with(limit="none"),
            "The batch may not be larger than `highest`, however much memory there is.",
        ),
        Mistake(
            _fits_with(floor=False),
            "Where the weights alone are too large this is a negative batch. Nothing fits: return 0.",
        ),
        Mistake(
            _fits_with(zero=False),
            "If a picture takes nothing, memory sets no limit, and a division by 0 is no way to find out.",
        ),
        Mistake(
            _fits_with(doubling=True),
            "A batch need not be a power of two. 57 pictures are fine if 57 fit.",
        ),
    ),
)

# ---- more processes -------------------------------------------------------------------------------------------------


def speed_up(alone: Tensor, together: Tensor, ranks: int) -> tuple[float, float]:
    """Speed-up and efficiency of `ranks` processes that share a batch, from the seconds of steps [N] and [M].

    Each is told by its median, without its first step where there is more than one.
    """
    ratio = _typical(alone) / _typical(together)
    return ratio, ratio / ranks


def _typical(seconds: Tensor, first: bool = False, kind: str = "median") -> float:
    kept = seconds if first or len(seconds) == 1 else seconds[1:]
    kept = kept.double()
    if kind == "median":
        return kept.quantile(0.5).item()
    return {"mean": kept.mean, "lower": kept.median, "fastest": kept.min, "sum": kept.sum}[kind]().item()


def _speed_with(
    first: bool = False,
    kind: str = "median",
    inverse: bool = False,
    efficiency: str = "divided",
    one_step: bool = True,
    percent: bool = False,
):
    """A wrong `speed_up` that differs from the right one in one place."""

    def answer(alone: Tensor, together: Tensor, ranks: int) -> tuple[float, float]:
        if not one_step:
            alone, together = (each[1:].double().quantile(0.5).item() for each in (alone, together))
            return alone / together, alone / together / ranks
        one, more = _typical(alone, first, kind), _typical(together, first, kind)
        ratio = more / one if inverse else one / more
        share = {"divided": ratio / ranks, "same": ratio, "times": ratio * ranks}[efficiency]
        return ratio, 100 * share if percent else share

    return answer


def _steps(seconds: float, count: int, rng: Generator) -> Tensor:
    """Times of steps as they come: a slow first one, jitter, and now and then a pause."""
    times = seconds * (1 + 0.1 * torch.rand(count, generator=rng))
    times[torch.rand(count, generator=rng) < 0.05] *= 8
    times[0] *= 5
    return times


SPEED = Exercise(
    answer=speed_up,
    returns=("speed_up", "efficiency"),
    inputs={
        "two processes": lambda rng: (
            torch.tensor([3.0, 0.4, 0.4, 0.4, 0.4]),
            torch.tensor([5.0, 0.25, 0.25, 0.25]),
            2,
        ),
        "one step takes a pause": lambda rng: (
            torch.tensor([2.0, 0.4, 0.4, 4.0]),
            torch.tensor([2.0, 0.1, 0.1, 0.1]),
            8,
        ),
        "an even number of steps": lambda rng: (
            torch.tensor([9.0, 0.5, 0.7]),
            torch.tensor([9.0, 0.3, 0.3, 0.3]),
            4,
        ),
        "whole milliseconds": lambda rng: (torch.tensor([900, 400, 410]), torch.tensor([900, 205, 210, 215]), 2),
        "many steps": lambda rng: (_steps(0.4, 200, rng), _steps(0.12, 200, rng), 4),
        "slower than one alone": lambda rng: (torch.tensor([1.0, 0.2, 0.2]), torch.tensor([1.0, 0.5, 0.5]), 2),
        "a single step each": lambda rng: (torch.tensor([0.6]), torch.tensor([0.4]), 2),
    },
    mistakes=(
        Mistake(
            _speed_with(first=True),
            "The first step is in it. It loads kernels and fills caches, and says nothing of the steps to come.",
        ),
        Mistake(
            _speed_with(kind="mean"),
            "This is the mean, and one pause moves it as far as it likes. Take the median.",
        ),
        Mistake(
            _speed_with(first=True, kind="mean"),
            "This is the mean over all steps, the first one included. Leave that out, and take the median: one pause "
            "moves a mean as far as it likes.",
        ),
        Mistake(
            _speed_with(kind="sum"),
            "These are sums, and the two runs need not have the same number of steps. Compare typical steps.",
        ),
        Mistake(
            _speed_with(kind="fastest"),
            "The fastest step is not the typical one. Take the median.",
        ),
        Mistake(
            _speed_with(kind="lower"),
            "`torch.median` of an even number of values is the lower one of the two in the middle. Their mean is "
            "wanted: `quantile(0.5)`.",
        ),
        Mistake(
            _speed_with(inverse=True),
            "The ratio is upside down: fewer seconds are more speed, so the time alone is above.",
        ),
        Mistake(
            _speed_with(efficiency="same"),
            "The efficiency is the speed-up, but as a share of what so many processes could give at best.",
        ),
        Mistake(
            _speed_with(efficiency="times"),
            "At best, `ranks` processes are `ranks` times as fast; then the efficiency is 1. Divide instead.",
        ),
        Mistake(_speed_with(percent=True), "This is in percent. Wanted is a share: 1 is the best."),
        Mistake(
            _speed_with(one_step=False),
            "Of a single step nothing is left when the first one is taken off, and nothing has no median.",
        ),
    ),
)

# ---- a fault by its curves ------------------------------------------------------------------------------------------

RISE, REST, AT_ALL, STEP, DROP = 1.2, 0.8, 0.2, 0.1, 0.03  # the bounds of the five rules


def diagnose(losses: Tensor, ap: Tensor) -> str:
    """What is wrong with a run, by its losses [E] and its AP [E] after each epoch; the first rule that fits counts.

    A loss that is not finite, or above 1.2 times the first: "rate too high". The last loss above 0.8 times the first:
    "rate too low". AP never reaches 0.2: "wrong boxes". No epoch of the second half has a loss at least a tenth below
    that of the epoch before: "no closing phase". AP falls by more than 0.03 from one epoch to the next: "no average".
    Else "healthy".
    """
    return _diagnosis(losses, ap)


def _diagnosis(
    losses: Tensor,
    ap: Tensor,
    order: str = "high low boxes closing average",
    finite: bool = True,
    against_first: bool = True,
    absolute_step: bool = False,
    whole: bool = False,
    last_ap: bool = False,
    any_move: bool = False,
    ends: bool = False,
) -> str:
    """`diagnose`, by default as it should be; the options are the slips that one can make."""
    losses, ap = losses.double(), ap.double()
    half = losses if whole else losses[(len(losses) + 1) // 2 - 1 :]  # from the last epoch of the first half
    falls = half[:-1] - half[1:] if absolute_step else 1 - half[1:] / half[:-1]
    moves = ap[1:] - ap[:-1]
    if ends:
        moves = ap[-1:] - ap[:1]
    rules = {
        "high": bool((finite and not losses.isfinite().all()) or (losses > RISE * losses[0]).any()),
        "low": bool(losses[-1] > REST * (losses[0] if against_first else losses.max())),
        "boxes": bool((ap[-1] if last_ap else ap.max()) < AT_ALL),
        "closing": not bool((falls >= STEP).any()),
        "average": bool(((moves.abs() if any_move else -moves) > DROP).any()),
    }
    words = {
        "high": "rate too high",
        "low": "rate too low",
        "boxes": "wrong boxes",
        "closing": "no closing phase",
        "average": "no average",
    }
    return next((words[rule] for rule in order.split() if rules[rule]), "healthy")


def _diagnosis_with(**slips):
    """A wrong `diagnose` that differs from the right one in one place."""
    return lambda losses, ap: _diagnosis(losses, ap, **slips)


def _curves(losses: list[float], ap: list[float]) -> Callable[[Generator], tuple[Tensor, Tensor]]:
    return lambda rng: (torch.tensor(losses), torch.tensor(ap))


_AP = [0.0, 0.12, 0.2, 0.25, 0.3, 0.34]

DIAGNOSE = Exercise(
    answer=diagnose,
    returns=("word",),
    inputs={
        "a healthy run": _curves([11, 8.2, 6.5, 6.0, 4.4, 4.0], _AP),
        "losses that explode": _curves([9, 12, 900, 80, 9, 8.5], [0.0] * 6),
        "losses that hardly fall": _curves([11, 10.8, 10.6, 10.5, 9.3, 9.2], [0.0, 0.0, 0.01, 0.01, 0.02, 0.02]),
        "an AP near 0, whatever the losses": _curves([11, 8.2, 6.5, 6.0, 4.4, 4.0], [0, 0.01, 0.02, 0.04, 0.03, 0.05]),
        "no step down in the second half": _curves([11, 8.2, 6.5, 6.0, 5.8, 5.7], _AP),
        "an AP that jumps": _curves([11, 8.2, 6.5, 6.0, 4.4, 4.0], [0.0, 0.2, 0.12, 0.25, 0.3, 0.34]),
        "a loss that is not a number": _curves([11, 8, math.nan], [0.0, 0.1, 0.0]),
        "an infinite loss at the end": _curves([11, 8, 6, math.inf], [0.0, 0.1, 0.2, 0.0]),
        "large steps up": _curves([11, 8.2, 6.5, 6.0, 4.4, 4.0], [0.0, 0.25, 0.26, 0.32, 0.42, 0.5]),
        "AP was there once": _curves([11, 8.2, 6.5, 6.0, 4.4, 4.0], [0.0, 0.24, 0.22, 0.2, 0.18, 0.16]),
        "small losses": _curves([0.6, 0.4, 0.3, 0.28, 0.22, 0.2], _AP),
        "large losses without a step": _curves([60, 41, 30, 27.8, 27.2, 26.9], _AP),
        "an odd number of epochs": _curves([11, 8, 6, 4.8, 4.6], [0.0, 0.12, 0.2, 0.25, 0.3]),
        "a step in the first half only": _curves([11, 8, 7.9, 7.8, 7.7], [0.0, 0.12, 0.2, 0.25, 0.3]),
        "a second loss above the first": _curves([9.0, 10.5, 9.5, 9.0, 8.0, 7.6], [0.0, 0.0, 0.0, 0.01, 0.01, 0.02]),
        "no step, and an AP that jumps": _curves([11, 8.2, 6.5, 6.0, 5.8, 5.7], [0.0, 0.2, 0.12, 0.25, 0.3, 0.34]),
        "two epochs": _curves([10, 4], [0.1, 0.3]),
        "whole numbers": lambda rng: (torch.tensor([12, 9, 7, 6]), torch.tensor([0, 0, 0, 0])),
    },
    mistakes=(
        Mistake(
            _diagnosis_with(finite=False),
            "NaN is neither larger nor smaller than anything, so no comparison finds it. Ask `isfinite()` first.",
        ),
        Mistake(
            _diagnosis_with(against_first=False),
            "The last loss is held against the largest one; against the first is asked.",
        ),
        Mistake(
            _diagnosis_with(absolute_step=True),
            "A tenth of the loss before is meant, and not 0.1: losses have no common unit.",
        ),
        Mistake(
            _diagnosis_with(whole=True),
            "Every run falls fast at its beginning. Look for the step in the second half only.",
        ),
        Mistake(_diagnosis_with(last_ap=True), "AP never reaches 0.2: look at the highest one, not at the last."),
        Mistake(_diagnosis_with(any_move=True), "AP may rise as fast as it likes. Only a fall is a sign."),
        Mistake(
            _diagnosis_with(ends=True),
            "From one epoch to the next is meant, not from the first to the last: a jump down is made good later.",
        ),
        Mistake(
            _diagnosis_with(order="boxes high low closing average"),
            "The rules have an order. An AP of 0 has many causes, so the losses are asked first.",
        ),
        Mistake(
            _diagnosis_with(order="high boxes low closing average"),
            "The rules have an order: losses that hardly fall are asked for before AP is.",
        ),
        Mistake(
            _diagnosis_with(order="high low boxes average closing"),
            "The rules have an order: the step of the losses is asked for before the falls of AP.",
        ),
    ),
)

# ---- another batch --------------------------------------------------------------------------------------------------


def fit_to_batch(rate: float, warmup: int, iterations: int, old: int, new: int) -> tuple[float, int, int]:
    """A schedule for a batch of `new` pictures from that for `old`: learning rate, iterations of warm-up, and of all.

    The linear scaling rule. Iterations are rounded to the nearest whole number, at least 1; without warm-up none comes.
    """
    factor = old / new
    return rate / factor, max(round(warmup * factor), 1) if warmup else 0, max(round(iterations * factor), 1)


def _batch_with(
    scale: Callable[[float], float] = lambda factor: 1 / factor,
    warmup_scales: bool = True,
    all_scales: bool = True,
    whole: Callable[[float], int] = round,
    least: int = 1,
    invented: bool = False,
    upside_down: bool = False,
):
    """A wrong `fit_to_batch` that differs from the right one in one place."""

    def answer(rate: float, warmup: int, iterations: int, old: int, new: int) -> tuple[float, int, int]:
        factor = old / new
        longer = 1 / factor if upside_down else factor
        first = max(whole(warmup * longer), least) if warmup or invented else 0
        steps = max(whole(iterations * longer), least)
        return rate * scale(factor), first if warmup_scales else warmup, steps if all_scales else iterations

    return answer


BATCH = Exercise(
    answer=fit_to_batch,
    returns=("rate", "warmup", "iterations"),
    inputs={
        "YOLOF's schedule at a batch of 8": lambda rng: (0.12, 1500, 22_500, 64, 8),
        "a larger batch": lambda rng: (0.01, 1000, 90_000, 64, 256),
        "the same batch": lambda rng: (0.01, 300, 9000, 16, 16),
        "numbers that do not divide": lambda rng: (0.12, 1500, 22_500, 64, 44),
        "without warm-up": lambda rng: (0.02, 0, 5000, 32, 8),
        "a short warm-up and a huge batch": lambda rng: (0.001, 3, 40, 8, 4096),
    },
    mistakes=(
        Mistake(
            _batch_with(scale=lambda factor: 1.0),
            "The learning rate stayed as it was. With half the pictures a step, half the rate.",
        ),
        Mistake(
            _batch_with(scale=lambda factor: factor, upside_down=True),
            "Everything goes the wrong way: a smaller batch takes a lower rate and more iterations.",
        ),
        Mistake(
            _batch_with(scale=lambda factor: factor),
            "The rate goes the wrong way: fewer pictures a step, a lower rate.",
        ),
        Mistake(
            _batch_with(upside_down=True),
            "The iterations go the wrong way: with fewer pictures a step it takes more steps to see as many.",
        ),
        Mistake(
            _batch_with(scale=lambda factor: factor**-0.5),
            "This scales by the square root. There is such a rule, for Adam; the one of these recipes is linear.",
        ),
        Mistake(
            _batch_with(warmup_scales=False),
            "The warm-up kept its number of iterations, so it lasts for other numbers of pictures than it should. "
            "Forgetting this is what costs people several points of AP.",
        ),
        Mistake(
            _batch_with(all_scales=False),
            "The number of iterations in all stayed the same, so the run sees more or fewer pictures than before.",
        ),
        Mistake(
            _batch_with(whole=math.floor),
            "Iterations are rounded down here; take the nearest whole number.",
        ),
        Mistake(
            _batch_with(whole=math.ceil),
            "Iterations are rounded up here; take the nearest whole number.",
        ),
        Mistake(_batch_with(least=0), "0 iterations: a schedule that has a warm-up keeps at least one step of it."),
        Mistake(_batch_with(invented=True), "Where there is no warm-up, none may come out."),
    ),
)

EXERCISES = (FITS, SPEED, DIAGNOSE, BATCH)
