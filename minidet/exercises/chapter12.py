"""The exercises of chapter 12: the learning rate of a step, an averaged weight, the closing phase, a member's plan."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from minidet.exercises.check import Exercise, Mistake

# ---- the learning rate of a step ------------------------------------------------------------------------------------


def scheduled_rate(
    step: int,
    steps_per_epoch: int,
    top: float,
    epochs: int,
    warmup_epochs: float,
    final_epochs: int,
    lowest_share: float,
) -> float:
    """The learning rate after `step` steps: a parabola up, half a cosine down, flat at `lowest_share` of the top."""
    return _rate_with()(step, steps_per_epoch, top, epochs, warmup_epochs, final_epochs, lowest_share)


def _rate_with(
    power: int = 2,
    down_to_zero: bool = False,
    after_warmup: bool = True,
    before_flat: bool = True,
    late: int = 0,
    guarded: bool = True,
    absolute: bool = False,
    whole_epochs: bool = False,
    flat: bool = True,
    flat_first: bool = False,
) -> Callable[..., float]:
    """`scheduled_rate`, or one that differs from it in one place."""

    def answer(
        step: int,
        steps_per_epoch: int,
        top: float,
        epochs: int,
        warmup_epochs: float,
        final_epochs: int,
        lowest_share: float,
    ) -> float:
        if whole_epochs:
            step = step // steps_per_epoch * steps_per_epoch
        lowest = lowest_share if absolute else top * lowest_share
        total, warmup, end = (each * steps_per_epoch for each in (epochs, warmup_epochs, final_epochs))
        if flat_first and step >= total - end:
            return lowest
        if step <= warmup and (warmup > 0 or not guarded):
            return top * ((step + late) / warmup) ** power
        if flat and step >= total - end:
            return lowest
        begin, length = (warmup if after_warmup else 0), total - (end if before_flat else 0)
        cosine = (1 + math.cos(math.pi * (step - begin) / (length - begin))) / 2
        return top * cosine if down_to_zero else lowest + (top - lowest) * cosine

    return answer


def _recipe(step: int, **changes: float) -> Callable[[Generator], tuple]:
    given = {"steps_per_epoch": 100, "top": 0.01, "epochs": 300, "warmup_epochs": 5, "final_epochs": 15}
    given |= {"lowest_share": 0.05, **changes}
    return lambda rng: (step, *given.values())


RATE = Exercise(
    answer=scheduled_rate,
    returns=("rate",),
    inputs={
        "in the middle of the warm-up": _recipe(250),
        "half-way down the cosine": _recipe(14500),
        "a third of the way down": _recipe(9833),
        "the very first step": _recipe(0),
        "the end of the warm-up": _recipe(500),
        "the first flat step": _recipe(28500),
        "the last step": _recipe(29999),
        "a batch of 8, so another top": _recipe(20000, top=0.00125),
        "the course's recipe": _recipe(999, steps_per_epoch=26, top=0.02, epochs=75, warmup_epochs=1, final_epochs=8),
        "half an epoch of warm-up": _recipe(30, epochs=4, warmup_epochs=0.5, final_epochs=1),
        "no warm-up, first step": _recipe(0, epochs=10, warmup_epochs=0, final_epochs=2),
        "no flat end": _recipe(900, epochs=10, warmup_epochs=1, final_epochs=0),
        "a run that ends within its warm-up": _recipe(250, epochs=3, warmup_epochs=5, final_epochs=2),
        "a run that ends within its final phase": _recipe(350, epochs=4, warmup_epochs=2, final_epochs=3),
    },
    mistakes=(
        Mistake(
            _rate_with(power=1),
            "Your warm-up is a straight line. YOLOX's is a parabola: half-way up it has a quarter of the top.",
        ),
        Mistake(
            _rate_with(down_to_zero=True),
            "Your cosine falls to 0 and then jumps up to the flat end. It falls from the top to the lowest rate: "
            "lowest + (top - lowest) times a number that goes from 1 to 0.",
        ),
        Mistake(
            _rate_with(after_warmup=False),
            "Your cosine starts at step 0, so at the end of the warm-up it is below the top. It starts where the "
            "warm-up ends: count its steps from there.",
        ),
        Mistake(
            _rate_with(before_flat=False),
            "Your cosine is stretched to the end of the run, so the rate jumps where the flat end begins. It has "
            "arrived at its lowest when the last `final_epochs` begin.",
        ),
        Mistake(
            _rate_with(flat=False),
            "There is no flat end: a cosine that goes on behind its lowest point rises again.",
        ),
        Mistake(
            _rate_with(late=1),
            "Your warm-up is one step ahead. The value for step i is set after step i, so the very first step runs at "
            "0.",
        ),
        Mistake(
            _rate_with(guarded=False),
            "Without a warm-up there is nothing to divide by: such a run starts at the top.",
        ),
        Mistake(
            _rate_with(absolute=True),
            "lowest_share is a share of the top, not a learning rate.",
        ),
        Mistake(
            _rate_with(whole_epochs=True),
            "Your rate changes once an epoch. It changes with every step.",
        ),
        Mistake(
            _rate_with(flat_first=True),
            "In a run this short the warm-up and the flat end overlap, and the warm-up is asked first.",
        ),
    ),
)

# ---- the moving average ---------------------------------------------------------------------------------------------


def ema_step(average: Tensor, value: Tensor, n: int, decay: float, ramp: float) -> Tensor:
    """Update number n = 1, 2, ... of one averaged entry of a state_dict: its new value, as a new tensor."""
    return _ema_with()(average, value, n, decay, ramp)


def _ema_with(
    ramped: bool = True,
    swapped: bool = False,
    late: int = 0,
    falling: bool = False,
    counters: str = "copied",
    in_place: bool = False,
    base_two: bool = False,
) -> Callable[..., Tensor]:
    """`ema_step`, or one that differs from it in one place."""

    def answer(average: Tensor, value: Tensor, n: int, decay: float, ramp: float) -> Tensor:
        if not average.is_floating_point() and counters in ("copied", "kept"):
            return (value if counters == "copied" else average).clone()
        share = math.exp(-(n - late) / ramp) if not base_two else 2 ** (-n / ramp)
        d = decay * (share if falling else 1 - share) if ramped else decay
        if swapped:
            d = 1 - d
        if in_place and average.is_floating_point():
            return average.mul_(d).add_(value, alpha=1 - d)
        mixed = d * average + (1 - d) * value
        return mixed.to(average.dtype) if counters == "rounded" else mixed

    return answer


def _weights(*shape: int, n: int = 300, decay: float = 0.9998, ramp: float = 2000) -> Callable[[Generator], tuple]:
    return lambda rng: (torch.randn(shape, generator=rng), torch.randn(shape, generator=rng), n, decay, ramp)


AVERAGE = Exercise(
    answer=ema_step,
    returns=("average",),
    inputs={
        "one number, after 2000 updates": lambda rng: (torch.tensor([10.0]), torch.tensor([20.0]), 2000, 0.9998, 2000),
        "one number, the first update": lambda rng: (torch.tensor([10.0]), torch.tensor([20.0]), 1, 0.9998, 2000),
        "a matrix, with the course's numbers": _weights(3, 4, n=500, decay=0.998, ramp=200),
        "a convolution's weights": _weights(8, 4, 3, 3),
        "a single number without axes": _weights(),
        "update one million": _weights(5, n=1_000_000),
        "a counter of batch norm": lambda rng: (torch.tensor(41), torch.tensor(42), 700, 0.9998, 2000),
        "whole numbers, far apart": lambda rng: (torch.tensor([3, 0]), torch.tensor([900, 7]), 2000, 0.9998, 2000),
        "no number at all": _weights(0),
    },
    mistakes=(
        Mistake(
            _ema_with(ramped=False),
            "The memory is full from the start. d(n) grows: it is decay times 1 - exp(-n / ramp).",
        ),
        Mistake(
            _ema_with(swapped=True),
            "The two shares are exchanged: d is the share of the *old average*, 1 - d that of the new value.",
        ),
        Mistake(
            _ema_with(late=1),
            "Your n starts at 0. The first update is n = 1, so it keeps a little of the old average.",
        ),
        Mistake(
            _ema_with(falling=True),
            "Your memory fades with time: exp(-n / ramp) is large in the beginning. It is 1 minus that.",
        ),
        Mistake(
            _ema_with(base_two=True),
            "The ramp is counted with e, not with 2: exp(-n / ramp).",
        ),
        Mistake(
            _ema_with(counters="averaged"),
            "A counter is a whole number, and half-way between two counts means nothing. Whole numbers are copied from "
            "the model (`average.is_floating_point()` tells).",
        ),
        Mistake(
            _ema_with(counters="rounded"),
            "You average whole numbers and cut off what is behind the point. They are counters: copy the model's.",
        ),
        Mistake(
            _ema_with(counters="kept"),
            "Your counters stand still. Whole numbers are copied from the model, not kept.",
        ),
    ),
)

# ---- the closing phase ----------------------------------------------------------------------------------------------


def closing_epochs(epochs: int, final_epochs: int) -> Tensor:
    """Which epochs belong to the closing phase: [epochs] bool, the first epoch at place 0."""
    return _closing_with()(epochs, final_epochs)


def _closing_with(shift: int = 1, always: bool = False, inverted: bool = False) -> Callable[..., Tensor]:
    """`closing_epochs`, or one that differs from it in one place."""

    def answer(epochs: int, final_epochs: int) -> Tensor:
        closing = torch.arange(epochs) + shift >= epochs - final_epochs
        if final_epochs == 0 and not always:
            closing = torch.zeros(epochs, dtype=torch.bool)
        return ~closing if inverted else closing

    return answer


def _closing_by_slice(epochs: int, final_epochs: int) -> Tensor:
    closing = torch.zeros(epochs, dtype=torch.bool)
    if final_epochs > 0:
        closing[epochs - final_epochs - 1 :] = True  # of a short run this starts from behind
    return closing


def _closing_counted_from_one(epochs: int, final_epochs: int) -> Tensor:
    closing = torch.arange(epochs + 1) >= epochs - final_epochs
    return closing & (final_epochs > 0)


CLOSING = Exercise(
    answer=closing_epochs,
    returns=("closing",),
    inputs={
        "four epochs, one of them flat": lambda rng: (4, 1),
        "the demo, 20 epochs": lambda rng: (20, 3),
        "the published 300": lambda rng: (300, 15),
        "no final phase": lambda rng: (10, 0),
        "a run of one epoch without final phase": lambda rng: (1, 0),
        "a final phase as long as the run": lambda rng: (6, 6),
        "a run one epoch longer than its final phase": lambda rng: (16, 15),
        "a final phase longer than the run": lambda rng: (5, 15),
    },
    mistakes=(
        Mistake(
            _closing_with(shift=0),
            "Your closing phase is as long as the flat learning rate. It is one epoch longer: the official test "
            "compares the epoch counted *from 1* with epochs - final_epochs.",
        ),
        Mistake(
            _closing_with(shift=2),
            "Your closing phase begins an epoch too early. It is one epoch longer than final_epochs, not two.",
        ),
        Mistake(
            _closing_with(always=True),
            "With final_epochs = 0 there is no closing phase at all, and yours has one epoch.",
        ),
        Mistake(
            _closing_with(inverted=True),
            "This marks the epochs with strong augmentation. Asked are the others.",
        ),
        Mistake(
            _closing_by_slice,
            "In a run shorter than its final phase a negative index counts from behind. Such a run is closing from its "
            "first epoch on.",
        ),
        Mistake(
            _closing_counted_from_one,
            "There is one place too many: the first epoch stands at place 0.",
        ),
    ),
)

# ---- the family -----------------------------------------------------------------------------------------------------


def member_plan(depth: float, width: float) -> tuple[Tensor, Tensor, int]:
    """What the two multipliers make of CSPDarknet and the pyramid.

    Returns:
        Channels of stem, dark2, ..., dark5 [5] int64; bottlenecks of dark2, ..., dark5 [4] int64; and those of every
        CSP layer of the pyramid.
    """
    return _plan_with()(depth, width)


def _plan_with(
    to_whole: Callable[[float], int] = int,
    count: Callable[[float], int] = round,
    at_least: int = 1,
    neck_at_least: int = 0,
    threefold_last: bool = False,
    triple_first: bool = False,
    each_by_itself: bool = False,
    exchanged: bool = False,
) -> Callable[..., tuple[Tensor, Tensor, int]]:
    """`member_plan`, or one that differs from it in one place."""

    def answer(depth: float, width: float) -> tuple[Tensor, Tensor, int]:
        if exchanged:
            depth, width = width, depth
        first = to_whole(64 * width)
        channels = [to_whole(64 * times * width) if each_by_itself else first * times for times in (1, 2, 4, 8, 16)]
        n = max(count(3 * depth), at_least)
        many = max(count(9 * depth), at_least) if triple_first else 3 * n
        bottlenecks = [n, many, many, 3 * n if threefold_last else n]
        return torch.tensor(channels), torch.tensor(bottlenecks), max(count(3 * depth), neck_at_least)

    return answer


PLAN = Exercise(
    answer=member_plan,
    returns=("channels", "bottlenecks", "neck"),
    inputs={
        "yolox-l": lambda rng: (1.0, 1.0),
        "yolox-s": lambda rng: (0.33, 0.5),
        "yolox-nano": lambda rng: (0.33, 0.25),
        "yolox-tiny": lambda rng: (0.33, 0.375),
        "yolox-m": lambda rng: (0.67, 0.75),
        "yolox-x": lambda rng: (1.33, 1.25),
        "a width that does not come out even": lambda rng: (0.33, 0.3),
        "a width just below a whole number": lambda rng: (0.33, 0.437),
        "a very shallow one": lambda rng: (0.1, 0.25),
        "a depth between two": lambda rng: (0.45, 0.5),
    },
    mistakes=(
        Mistake(
            _plan_with(to_whole=round),
            "64 * width is rounded to the nearest number. The published code cuts off: int().",
        ),
        Mistake(
            _plan_with(each_by_itself=True),
            "Each stage's channels are cut off by themselves. Only the stem's are; the others are 2, 4, 8 and 16 times "
            "as many.",
        ),
        Mistake(
            _plan_with(count=int),
            "3 * depth is cut off: 3 * 0.33 is 0.99 and becomes 0. It is rounded.",
        ),
        Mistake(
            _plan_with(count=math.ceil),
            "3 * depth is rounded up: 3 * 0.67 is 2.01 and becomes 3. It is rounded to the nearest number.",
        ),
        Mistake(
            _plan_with(at_least=0),
            "A stage of the backbone keeps at least one bottleneck, however shallow the network.",
        ),
        Mistake(
            _plan_with(neck_at_least=1),
            "The pyramid has no lower limit: with a depth near 0 its CSP layers have no bottleneck.",
        ),
        Mistake(
            _plan_with(threefold_last=True),
            "Only dark3 and dark4 have three times as many bottlenecks; dark5 has as many as dark2.",
        ),
        Mistake(
            _plan_with(triple_first=True),
            "dark3 has three times the *rounded* number: 3 * round(3 * depth), not round(9 * depth).",
        ),
        Mistake(
            _plan_with(exchanged=True),
            "The multipliers are exchanged: width is for channels, depth for bottlenecks.",
        ),
    ),
)

EXERCISES = (RATE, AVERAGE, CLOSING, PLAN)
