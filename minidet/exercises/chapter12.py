"""The exercises of chapter 12: the learning rate of a step, an averaged weight, the losses, a member's plan."""

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

# ---- the losses -----------------------------------------------------------------------------------------------------


def three_losses(
    object_logits: Tensor, class_logits: Tensor, kinds: Tensor, overlaps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Box, objectness and class loss of a batch, weighted, from what its slots say: [A], [A, C], [A] int64, [A].

    `kinds` is the class of the slot's object, -1 for a negative slot; `overlaps` the IoU of its box with that object,
    which means nothing for a negative one.
    """
    return _losses_with()(object_logits, class_logits, kinds, overlaps)


def _losses_with(
    box_weight: float = 5,
    power: int = 2,
    all_boxes: bool = False,
    soft_objectness: bool = False,
    positives_only: bool = False,
    soft_classes: bool = True,
    all_classes: bool = False,
    mean_of_classes: bool = False,
    by_slots: bool = False,
    at_least: int = 1,
    stable: bool = True,
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`three_losses`, or one that differs from it in one place."""

    def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
        if stable:
            return logits.clamp(min=0) - logits * wanted + torch.log1p(torch.exp(-logits.abs()))
        chance = logits.sigmoid()
        return -(wanted * chance.log() + (1 - wanted) * (1 - chance).log())

    def answer(
        object_logits: Tensor, class_logits: Tensor, kinds: Tensor, overlaps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        positive = kinds >= 0
        n = len(kinds) if by_slots else max(int(positive.sum()), at_least)
        box = box_weight * (1 - overlaps**power)
        objectness = cross_entropy(object_logits, positive * overlaps if soft_objectness else positive.float())
        own = kinds[:, None] == torch.arange(class_logits.shape[1])
        classes = cross_entropy(class_logits, own * overlaps[:, None] if soft_classes else own.float())
        terms = (
            box if all_boxes else box[positive],
            objectness[positive] if positives_only else objectness,
            classes if all_classes else classes[positive],
        )
        of_box, of_objectness, of_classes = (term.sum() / n for term in terms)
        return of_box, of_objectness, of_classes / class_logits.shape[1] if mean_of_classes else of_classes

    return answer


def _slots(slots: int, classes: int, share: float = 0.3, size: float = 2) -> Callable[[Generator], tuple]:
    def make(rng: Generator) -> tuple:
        kinds = torch.randint(classes, (slots,), generator=rng)
        kinds[torch.rand(slots, generator=rng) >= share] = -1
        logits = size * torch.randn(slots, classes + 1, generator=rng)
        return logits[:, 0], logits[:, 1:], kinds, torch.rand(slots, generator=rng)

    return make


LOSSES = Exercise(
    answer=three_losses,
    returns=("box", "objectness", "class_loss"),
    inputs={
        "three slots, all logits 0, two of them positive": lambda rng: (
            torch.zeros(3),
            torch.zeros(3, 2),
            torch.tensor([0, -1, 1]),
            torch.tensor([0.5, 0.0, 0.8]),
        ),
        "twelve slots, three classes": _slots(12, 3),
        "a thousand slots, few positive": _slots(1000, 8, 0.01),
        "one class": _slots(20, 1),
        "every slot positive": _slots(9, 4, 1.0),
        "a batch without objects": _slots(30, 5, 0.0),
        "very sure logits": _slots(40, 3, 0.3, 400),
        "no slot at all": _slots(0, 3),
    },
    mistakes=(
        Mistake(_losses_with(box_weight=1), "The box loss has the weight 5."),
        Mistake(_losses_with(power=1), "Your box loss is 1 - IoU. The IoU is squared first."),
        Mistake(
            _losses_with(all_boxes=True),
            "Negative slots have no object, so their boxes have no loss. Sum over the positive ones.",
        ),
        Mistake(
            _losses_with(soft_objectness=True),
            "Your objectness learns the IoU. It learns 1 for a positive slot; the IoU is the target of the class.",
        ),
        Mistake(
            _losses_with(positives_only=True),
            "Your objectness is summed over positive slots. It is the one term that all slots have: the negative "
            "ones learn 0.",
        ),
        Mistake(
            _losses_with(soft_classes=False),
            "Your class target is 1 for the own class. It is the IoU of the box.",
        ),
        Mistake(
            _losses_with(all_classes=True),
            "Negative slots have a class loss of yours. They learn nothing about classes.",
        ),
        Mistake(
            _losses_with(mean_of_classes=True),
            "Your class loss is a mean over the classes. They are summed, and only the positive slots divide.",
        ),
        Mistake(
            _losses_with(by_slots=True),
            "You divide by the number of all slots. Every term is divided by the number of positive ones.",
        ),
        Mistake(
            _losses_with(at_least=0),
            "Without a positive slot you divide by 0. N is at least 1.",
        ),
        Mistake(
            _losses_with(stable=False),
            "The logarithm of a sigmoid that has become 0 is minus infinity. "
            "`binary_cross_entropy_with_logits` computes it from the logit.",
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
    floor_last: bool = False,
) -> Callable[..., tuple[Tensor, Tensor, int]]:
    """`member_plan`, or one that differs from it in one place."""

    def answer(depth: float, width: float) -> tuple[Tensor, Tensor, int]:
        if exchanged:
            depth, width = width, depth
        first = to_whole(64 * width)
        channels = [to_whole(64 * times * width) if each_by_itself else first * times for times in (1, 2, 4, 8, 16)]
        n = max(count(3 * depth), at_least)
        many = max(count(9 * depth), at_least) if triple_first else 3 * n
        if floor_last:
            many = max(3 * count(3 * depth), at_least)
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
            _plan_with(floor_last=True),
            "At least one is meant before the tripling: three times a floor of one is three.",
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

EXERCISES = (RATE, AVERAGE, LOSSES, PLAN)
