"""The exercises of chapter 13: right answers, and what typical wrong ones are told."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
from pathlib import Path

import pytest
import torch

from minidet.exercises import EXERCISES, review
from minidet.training.batch_size import largest
from minidet.training.recipe import RECIPES, scale_to_batch
from tests.exercises.told import assert_wrong, stub

ROOT = Path(__file__).parent.parent.parent
NAMES = ("batch_that_fits", "speed_up", "diagnose", "fit_to_batch")

# ---- stubs and solutions --------------------------------------------------------------------------------------------


def fits_solution(memory, fixed, each, parts, highest):
    if memory < fixed:
        return 0
    at_once = highest // parts
    if each > 0:
        at_once = min(at_once, (memory - fixed) // each)
    return at_once * parts


def fits_by_trying(memory, fixed, each, parts, highest):
    return parts * largest(lambda count: fixed + each * count <= memory, highest // parts)


def speed_solution(alone, together, ranks):
    def typical(seconds):
        kept = seconds[1:] if len(seconds) > 1 else seconds
        return kept.double().quantile(0.5).item()

    ratio = typical(alone) / typical(together)
    return ratio, ratio / ranks


def speed_by_statistics(alone, together, ranks):
    one, more = (statistics.median(each.tolist()[1:] or each.tolist()) for each in (alone, together))
    return one / more, one / more / ranks


def batch_solution(rate, warmup, iterations, old, new):
    factor = old / new
    warmup = max(round(warmup * factor), 1) if warmup else 0
    return rate / factor, warmup, max(round(iterations * factor), 1)


def batch_of_the_library(rate, warmup, iterations, old, new):
    recipe = dataclasses.replace(
        RECIPES["yolof"],
        base_lr=rate,
        warmup_iterations=warmup,
        warmup_factor=None,
        iterations=iterations,
        steps=(),
        schedule_batch=old,
    )
    scaled, _ = scale_to_batch(recipe, new)
    return scaled.base_lr, scaled.warmup_iterations, scaled.iterations


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_is_not_attempted(name):
    assert review(EXERCISES[name], stub_of(name)).status == "not attempted"


def stub_of(name):
    return {5: lambda a, b, c, d, e: stub(), 3: lambda a, b, c: stub(), 2: lambda a, b: stub()}[
        len(EXERCISES[name].parameters)
    ]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("batch_that_fits", fits_solution),
        ("batch_that_fits", fits_by_trying),
        ("speed_up", speed_solution),
        ("speed_up", speed_by_statistics),
        ("diagnose", lambda losses, ap: diagnose_solution(losses, ap)),
        ("fit_to_batch", batch_solution),
        ("fit_to_batch", batch_of_the_library),
    ],
)
def test_a_right_answer_is_done(name, answer):
    assert review(EXERCISES[name], answer).status == "done"


# ---- the reference is the library's ---------------------------------------------------------------------------------


def test_the_batch_is_the_one_that_the_librarys_search_finds():
    rng = torch.Generator().manual_seed(0)
    for _ in range(300):
        memory, fixed, each = (int(torch.randint(1, high, (), generator=rng)) for high in (4000, 1500, 90))
        parts = int(torch.randint(1, 5, (), generator=rng))
        arguments = memory, fixed, each, parts, int(torch.randint(1, 200, (), generator=rng))
        assert EXERCISES["batch_that_fits"].answer(*arguments) == fits_by_trying(*arguments)


def test_the_schedule_is_the_librarys():
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        warmup, iterations = (int(torch.randint(0, high, (), generator=rng)) for high in (3000, 90_000))
        old, new = (int(torch.randint(1, 300, (), generator=rng)) for _ in range(2))
        if old == new:  # the library leaves such a recipe as it is
            continue
        arguments = 0.05, warmup, iterations + 1, old, new
        assert EXERCISES["fit_to_batch"].answer(*arguments) == pytest.approx(batch_of_the_library(*arguments))


# ---- wrong answers --------------------------------------------------------------------------------------------------


def fits_with(memory, fixed, each, parts, highest, share=lambda room, each: room // each):
    at_once = min(share(memory - fixed, each), highest // parts) if each else highest // parts
    return max(at_once, 0) * parts if memory >= fixed else 0


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (lambda m, f, e, p, h: fits_with(m, 0, e, p, h), "batch is 60, not 57.", "Take `fixed` off first."),
        (
            lambda m, f, e, p, h: fits_with(m, f, e, p, h, lambda room, each: math.ceil(room / each)),
            "batch is 58, not 57.",
            "Round down.",
        ),
        (
            lambda m, f, e, p, h: fits_with(m, f, e, p, h, lambda room, each: int(room / each)),
            "The first of them: too large for a float.",
            "// stays exact",
        ),
        (
            lambda m, f, e, p, h: fits_solution(m, f, e, p, h) // p,
            "a batch in four parts",
            "number of pictures computed at once",
        ),
        (
            lambda m, f, e, p, h: fits_with(m, f, e, p, h, lambda room, each: room // each // p),
            "a batch in four parts",
            "one after the other",
        ),
        (
            lambda m, f, e, p, h: fits_with(m, f, e, p, h * p),
            "at most 30, in four parts",
            "a limit for the whole batch",
        ),
        (
            lambda m, f, e, p, h: fits_with(m, f, e, p, 2**62 * p),
            "memory for more than is wanted",
            "not be larger than `highest`",
        ),
        (
            lambda m, f, e, p, h: min((m - f) // e, h // p) * p if e else h // p * p,
            "the weights alone are too large",
            "return 0",
        ),
        (
            lambda m, f, e, p, h: min(max(m - f, 0) // e, h // p) * p,
            "ZeroDivisionError",
            "memory sets no limit",
        ),
        (
            lambda m, f, e, p, h: (
                2 ** int(math.log2(fits_solution(m, f, e, p, h) // p)) * p if fits_solution(m, f, e, p, h) else 0
            ),
            "batch is 32, not 57.",
            "need not be a power of two",
        ),
        (lambda m, f, e, p, h: float(fits_solution(m, f, e, p, h)), "batch is 57, not 57.", ""),
    ],
    ids="fixed up float part all once limit negative zero doubling kind".split(),
)
def test_a_wrong_batch_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("batch_that_fits", answer, difference, hint)


def speed_with(typical):
    def answer(alone, together, ranks):
        ratio = float(typical(alone.double()) / typical(together.double()))
        return ratio, ratio / ranks

    return answer


def later(seconds):
    return seconds[1:] if len(seconds) > 1 else seconds


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (speed_with(lambda s: s.quantile(0.5)), "speed_up is", "The first step is in it."),
        (speed_with(lambda s: later(s).mean()), "one step takes a pause", "one pause moves it"),
        (speed_with(lambda s: s.mean()), "speed_up is", "Leave that out, and take the median"),
        (speed_with(lambda s: later(s).sum()), "speed_up is", "need not have the same number of steps"),
        (speed_with(lambda s: later(s).min()), "speed_up is", "The fastest step is not the typical one."),
        (speed_with(lambda s: later(s).median()), "an even number of steps", "`quantile(0.5)`"),
        (
            lambda a, t, r: (1 / speed_solution(a, t, r)[0], 1 / speed_solution(a, t, r)[0] / r),
            "speed_up is 0.625, not 1.6.",
            "upside down",
        ),
        (
            lambda a, t, r: (speed_solution(a, t, r)[0], speed_solution(a, t, r)[0]),
            "efficiency is 1.6, not 0.8.",
            "as a share of what so many processes could give",
        ),
        (
            lambda a, t, r: (speed_solution(a, t, r)[0], speed_solution(a, t, r)[0] * r),
            "efficiency is 3.2, not 0.8.",
            "Divide instead.",
        ),
        (
            lambda a, t, r: (speed_solution(a, t, r)[0], 100 * speed_solution(a, t, r)[1]),
            "efficiency is 80, not 0.8.",
            "Wanted is a share",
        ),
        (
            speed_with(lambda s: s[1:].quantile(0.5)),
            "RuntimeError",
            "nothing is left",
        ),
        (lambda a, t, r: torch.tensor(speed_solution(a, t, r)), "1 value came back, but 2 were expected.", ""),
    ],
    ids="first mean both sum fastest lower inverse same times percent single tensor".split(),
)
def test_a_wrong_speed_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("speed_up", answer, difference, hint)


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (lambda r, w, i, o, n: (r, *batch_solution(r, w, i, o, n)[1:]), "rate is 0.12, not 0.015.", "half the rate"),
        (lambda r, w, i, o, n: batch_solution(r, w, i, n, o), "rate is 0.96, not 0.015.", "Everything goes the wrong"),
        (
            lambda r, w, i, o, n: (r * o / n, *batch_solution(r, w, i, o, n)[1:]),
            "rate is 0.96, not 0.015.",
            "The rate goes the wrong way",
        ),
        (
            lambda r, w, i, o, n: (r * n / o, *batch_solution(r, w, i, n, o)[1:]),
            "warmup is 188, not 12000.",
            "it takes more steps",
        ),
        (
            lambda r, w, i, o, n: (r * (n / o) ** 0.5, *batch_solution(r, w, i, o, n)[1:]),
            "rate is 0.04243, not 0.015.",
            "square root",
        ),
        (
            lambda r, w, i, o, n: (r * n / o, w, batch_solution(r, w, i, o, n)[2]),
            "warmup is 1500, not 12000.",
            "several points of AP",
        ),
        (
            lambda r, w, i, o, n: (*batch_solution(r, w, i, o, n)[:2], i),
            "iterations is 22500, not 180000.",
            "sees more or fewer pictures",
        ),
        (
            lambda r, w, i, o, n: (r * n / o, max(w * o // n, 1) if w else 0, max(i * o // n, 1)),
            "rounded down",
            "nearest whole number",
        ),
        (
            lambda r, w, i, o, n: (r * n / o, round(w * o / n), round(i * o / n)),
            "The first of them: a short warm-up and a huge batch.",
            "at least one step",
        ),
        (
            lambda r, w, i, o, n: (r * n / o, max(round(w * o / n), 1), max(round(i * o / n), 1)),
            "The first of them: without warm-up.",
            "none may come out",
        ),
    ],
    ids="rate all inverse iterations root warmup total floor zero invented".split(),
)
def test_a_wrong_schedule_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("fit_to_batch", answer, difference, hint)


def diagnose_with(
    high=lambda losses: not losses.isfinite().all() or losses.max() > 1.2 * losses[0],
    low=lambda losses: losses[-1] > 0.8 * losses[0],
    boxes=lambda ap: ap.max() < 0.2,
    step=lambda half: 1 - half[1:] / half[:-1],
    half=lambda losses: losses[(len(losses) + 1) // 2 - 1 :],
    fall=lambda ap: (ap[:-1] - ap[1:] > 0.03).any(),
    order=("rate too high", "rate too low", "wrong boxes", "no closing phase", "no average"),
):
    """A student's version, with one thing done differently."""

    def answer(losses, ap):
        losses, ap = losses.double(), ap.double()
        found = {
            "rate too high": high(losses),
            "rate too low": low(losses),
            "wrong boxes": boxes(ap),
            "no closing phase": not (step(half(losses)) >= 0.1).any(),
            "no average": fall(ap),
        }
        return next((word for word in order if found[word]), "healthy")

    return answer


diagnose_solution = diagnose_with()


def nan_is_not_larger(losses):
    return (losses > 1.2 * losses[0]).any()


def any_move(ap):
    return ((ap[1:] - ap[:-1]).abs() > 0.03).any()


USUAL = ["rate too high", "rate too low", "wrong boxes", "no closing phase", "no average"]


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (
            diagnose_with(high=nan_is_not_larger),
            "a loss that is not a number",
            "Ask `isfinite()` first.",
        ),
        (
            diagnose_with(low=lambda s: s[-1] > 0.8 * s.max()),
            "a second loss above the first",
            "against the first is asked",
        ),
        (diagnose_with(step=lambda h: h[:-1] - h[1:]), "no step down in the second half", "losses have no common unit"),
        (diagnose_with(half=lambda s: s), "no step down in the second half", "in the second half only"),
        (diagnose_with(boxes=lambda ap: ap[-1] < 0.2), "AP was there once", "look at the highest one"),
        (
            diagnose_with(fall=any_move),
            "a healthy run",
            "Only a fall is a sign.",
        ),
        (diagnose_with(fall=lambda ap: ap[0] - ap[-1] > 0.03), "an AP that jumps", "not from the first to the last"),
        (
            diagnose_with(order=[USUAL[2], USUAL[0], USUAL[1], *USUAL[3:]]),
            "losses that explode",
            "so the losses are asked first",
        ),
        (
            diagnose_with(order=[USUAL[0], USUAL[2], USUAL[1], *USUAL[3:]]),
            "losses that hardly fall",
            "asked for before AP is",
        ),
        (
            diagnose_with(order=[*USUAL[:3], USUAL[4], USUAL[3]]),
            "word is 'no average', not 'no closing phase'.",
            "asked for before the falls of AP",
        ),
        (lambda losses, ap: diagnose_solution(losses, ap).title(), "word is 'Healthy', not 'healthy'.", ""),
    ],
    ids="nan largest unit whole last rise ends boxes-first ap-first average-first case".split(),
)
def test_a_wrong_diagnosis_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("diagnose", answer, difference, hint)


# ---- the recorded runs ----------------------------------------------------------------------------------------------


def curves(rows):
    losses = [sum(value for name, value in row["losses"].items() if name != "loss_l1") for row in rows]
    return torch.tensor(losses), torch.tensor([float(row["ap"]) for row in rows])


def test_the_rules_name_every_recorded_run():
    record = json.loads((ROOT / "benchmarks" / "results" / "gpu_lab.json").read_text(encoding="utf-8"))
    for word, rows in record["named"].items():
        assert EXERCISES["diagnose"].answer(*curves(rows)) == word
    found = {letter: EXERCISES["diagnose"].answer(*curves(run["rows"])) for letter, run in record["letters"].items()}
    assert sorted(found.values()) == sorted(record["faults"])
    for letter, word in found.items():
        assert hashlib.sha256(f"{letter}: {word}".encode()).hexdigest()[:12] == record["letters"][letter]["answer"]
