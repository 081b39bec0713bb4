"""The exercises of chapter 10: the price of a pair, SimOTA's way of giving slots away, Sinkhorn's, and who got what."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from minidet.assign import BACKGROUND
from minidet.assign.ota import sinkhorn
from minidet.assign.simota import cheapest, class_cost, dynamic_k, owners
from minidet.exercises.check import Exercise, Mistake

IOU_WEIGHT, PENALTY = 3.0, 1e6

# ---- the price of a pair --------------------------------------------------------------------------------------------


def pair_prices(overlap: Tensor, scores: Tensor, labels: Tensor, free: Tensor) -> Tensor:
    """What each pair costs: [G, K] IoU, [K, C] scores, [G] int64, [G, K] bool -> [G, K] float32.

    Cross entropy of the scores with the object's one-hot class, summed over classes, logarithms cut at -100; plus three
    times -log(IoU + 1e-8); plus a million where the pair is not free.
    """
    logits = torch.logit(scores.double()).float()[None]  # exactly 0 and 1 become infinite, as they should
    classes = class_cost(logits, None, labels[None])[0] if scores.numel() else scores.new_zeros(overlap.shape)
    return classes - IOU_WEIGHT * (overlap + 1e-8).log() + PENALTY * ~free


def _prices_with(
    weight: float = IOU_WEIGHT,
    sign: float = 1.0,
    epsilon: float = 1e-8,
    only_own: bool = False,
    mean: bool = False,
    penalise: Any = torch.logical_not,
    clamp: bool = True,
    linear: bool = False,
):
    """A wrong `pair_prices` that differs from the right one in one place."""

    def answer(overlap: Tensor, scores: Tensor, labels: Tensor, free: Tensor) -> Tensor:
        present, absent = scores.log(), (1 - scores).log()
        if clamp:
            present, absent = present.clamp(min=-100), absent.clamp(min=-100)
        one_hot = F.one_hot(labels, scores.shape[1]).bool()[:, None]  # [G, 1, C]
        terms = -torch.where(one_hot, present, 0 if only_own else absent)  # [G, K, C]
        classes = terms.mean(dim=2) if mean else terms.sum(dim=2)
        fit = 1 - overlap if linear else -(overlap + epsilon).log()
        return classes + sign * weight * fit + PENALTY * penalise(free)

    return answer


def _pairs(objects: int, slots: int, classes: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    overlap = torch.rand(objects, slots, generator=rng)
    overlap[torch.rand(objects, slots, generator=rng) < 0.2] = 0
    scores = torch.rand(slots, classes, generator=rng) * 0.98 + 0.01
    labels = torch.randint(classes, (objects,), generator=rng)
    return overlap, scores, labels, torch.rand(objects, slots, generator=rng) < 0.7


def _one_pair(rng: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores = torch.tensor([[0.5, 0.2, 0.1], [0.9, 0.3, 0.2]])
    return torch.tensor([[0.5, 0.8]]), scores, torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool)


def _sure(rng: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    return torch.full((2, 3), 0.5), scores, torch.tensor([0, 1]), torch.ones(2, 3, dtype=torch.bool)


PRICES = Exercise(
    answer=pair_prices,
    returns=("prices",),
    inputs={
        "one object and two slots": _one_pair,
        "two objects, four slots, three classes": lambda rng: _pairs(2, 4, 3, rng),
        "as many objects as slots and classes": lambda rng: _pairs(5, 5, 5, rng),
        "a single class": lambda rng: _pairs(3, 6, 1, rng),
        "scores of exactly 0 and 1": _sure,
        "forty objects, 300 slots, 80 classes": lambda rng: _pairs(40, 300, 80, rng),
        "no object at all": lambda rng: _pairs(0, 6, 4, rng),
        "no candidate at all": lambda rng: _pairs(3, 0, 4, rng),
    },
    mistakes=(
        Mistake(
            _prices_with(only_own=True),
            "Only the object's own class is charged. The cross entropy is summed over *all* classes: a slot that "
            "believes in another class pays for that too.",
        ),
        Mistake(
            _prices_with(mean=True),
            "The cross entropy is averaged over the classes. It is summed; F.binary_cross_entropy averages unless it "
            'is told reduction="none".',
        ),
        Mistake(_prices_with(weight=1.0), "The IoU part has a weight: three times -log IoU."),
        Mistake(
            _prices_with(sign=-1.0),
            "A good overlap makes your pair dearer. log IoU is negative; its part of the price is -log IoU.",
        ),
        Mistake(
            _prices_with(linear=True),
            "This charges 1 - IoU. The price of a poor overlap is its logarithm, three times -log(IoU + 1e-8).",
        ),
        Mistake(
            _prices_with(penalise=lambda free: free),
            "The million is charged where the pair is free. It belongs to the pairs that are *not* free.",
        ),
        Mistake(
            _prices_with(penalise=lambda free: 0),
            "The centre prior is missing: a pair that is not free costs a million more.",
        ),
        Mistake(
            _prices_with(epsilon=0.0),
            "An IoU of 0 has no logarithm: the price becomes infinite. Add 1e-8 to the IoU first.",
        ),
        Mistake(
            _prices_with(clamp=False),
            "A score of exactly 0 or 1 has an infinite logarithm. Cut the logarithms at -100, as "
            "F.binary_cross_entropy does.",
        ),
    ),
)

# ---- giving slots away ----------------------------------------------------------------------------------------------


def match_by_dynamic_k(prices: Tensor, overlap: Tensor, max_k: int) -> Tensor:
    """Who gets which slot by SimOTA: [G, K] prices and IoUs -> [K] int64, row of an object, -1 where nobody."""
    if prices.numel() == 0:
        return torch.full((prices.shape[1],), BACKGROUND)
    k = dynamic_k(overlap[None], max_k, torch.tensor([overlap.shape[1]]))
    return owners(*cheapest(prices[None], k, max_k), prices[None])[0][0]


def _match_with(
    k: str = "sum", least: int = 1, across: bool = False, largest: bool = False, conflict: str = "cheapest of all"
):
    """A wrong `match_by_dynamic_k` that differs from the right one in one place."""

    def answer(prices: Tensor, overlap: Tensor, max_k: int) -> Tensor:
        objects, slots = prices.shape
        if prices.numel() == 0:
            return torch.full((slots,), BACKGROUND)
        top = overlap.topk(min(max_k, slots), dim=1).values.sum(dim=1)
        counts = {
            "sum": top.long(),
            "all": overlap.sum(dim=1).long(),
            "round": top.round().long(),
            "up": top.ceil().long(),
            "fixed": torch.full((objects,), max_k),
        }[k].clamp(min=least, max=slots)
        wanted = torch.zeros(objects, slots, dtype=torch.bool)
        for row in range(objects):
            wanted[row, prices[row].topk(int(counts[row]), largest=largest).indices] = True
        if across:
            return torch.where(wanted.any(dim=0), prices.argmin(dim=0), BACKGROUND)
        times = wanted.sum(dim=0)
        bids = {
            "cheapest of all": prices,
            "cheapest of those": prices.masked_fill(~wanted, torch.inf),
            "best overlap": -overlap,
            "first": torch.arange(objects)[:, None].float().masked_fill(~wanted, torch.inf).expand_as(prices),
            "last": -torch.arange(objects)[:, None].float().masked_fill(~wanted, -torch.inf).expand_as(prices),
            "nobody": prices,
        }[conflict]
        owner = torch.where(times > 1, bids.argmin(dim=0), wanted.int().argmax(dim=0))
        if conflict == "nobody":
            owner = owner.masked_fill(times > 1, BACKGROUND)
        return owner.masked_fill(times == 0, BACKGROUND)

    return answer


def _match_no_empty(prices: Tensor, overlap: Tensor, max_k: int) -> Tensor:
    if len(prices) == 0:
        raise IndexError("argmin(): Expected reduction dim 0 to have non-zero size.")
    return match_by_dynamic_k(prices, overlap, max_k)


def _match_no_clamp(prices: Tensor, overlap: Tensor, max_k: int) -> Tensor:
    if prices.numel() and prices.shape[1] < max_k:
        raise RuntimeError("selected index k out of range")
    return match_by_dynamic_k(prices, overlap, max_k)


TOY_PRICES = [
    [1.0, 3, 9, 90, 91, 92, 93, 94],
    [80, 2, 3, 4, 7, 81, 82, 83],
    [70, 71, 4, 8, 6, 72, 73, 74],
]
TOY_IOUS = [[0.9, 0.7, 0.5, 0, 0, 0, 0, 0], [0, 0.8, 0.7, 0.6, 0.4, 0, 0, 0], [0, 0, 0.7, 0.4, 0.5, 0, 0, 0]]


def _bystander(rng: Generator) -> tuple[Tensor, Tensor, int]:
    # Slot 0 is wanted by the first two; the third wants slots 2 and 3, but slot 0 would cost it least of all three.
    prices = torch.tensor([[3.0, 9, 10, 11], [4.0, 8, 12, 13], [2.0, 14, 0.5, 1.0]])
    return prices, torch.tensor([[0.6, 0.5, 0, 0], [0.9, 0.3, 0, 0], [0.1, 0, 0.95, 0.97]]), 10


def _random_market(objects: int, slots: int, max_k: int, rng: Generator) -> tuple[Tensor, Tensor, int]:
    overlap = torch.rand(objects, slots, generator=rng) ** 2
    return 10 * torch.rand(objects, slots, generator=rng) + 5 * (1 - overlap), overlap, max_k


MATCH = Exercise(
    answer=match_by_dynamic_k,
    returns=("owner",),
    inputs={
        "the chapter's crowded toy": lambda rng: (torch.tensor(TOY_PRICES), torch.tensor(TOY_IOUS), 10),
        "a slot that is cheapest for somebody who did not ask": _bystander,
        "IoUs that are all small": lambda rng: (torch.tensor([[2.0, 1, 3]]), torch.tensor([[0.2, 0.1, 0.0]]), 10),
        "a sum of 1.9": lambda rng: (torch.tensor([[2.0, 1, 3]]), torch.tensor([[0.9, 0.7, 0.3]]), 10),
        "as many objects as slots": lambda rng: _random_market(6, 6, 3, rng),
        "five objects and forty slots": lambda rng: _random_market(5, 40, 10, rng),
        "fifty objects and 500 slots": lambda rng: _random_market(50, 500, 10, rng),
        "fewer candidates than max_k": lambda rng: _random_market(2, 4, 10, rng),
        "no object at all": lambda rng: (torch.zeros(0, 5), torch.zeros(0, 5), 10),
        "no candidate at all": lambda rng: (torch.zeros(2, 0), torch.zeros(2, 0), 10),
    },
    mistakes=(
        Mistake(
            _match_with(conflict="cheapest of those"),
            "Your function gives a contested slot to the cheapest of those who want it. As published it goes to the "
            "cheapest of *all* objects, even one that did not ask.",
        ),
        Mistake(
            _match_with(across=True),
            "Your function gives every wanted slot to the object that it costs least. That is right for contested "
            "slots only: a slot that a single object wants is its own.",
        ),
        Mistake(
            _match_with(conflict="best overlap"),
            "Your function gives contested slots to the best overlap. What decides is the price.",
        ),
        Mistake(
            _match_with(conflict="first"),
            "Your function gives contested slots to the first object. They go to the object that they cost least.",
        ),
        Mistake(
            _match_with(conflict="last"),
            "Your function gives contested slots to the last object, as if each wrote over the one before. They go to "
            "the object that they cost least.",
        ),
        Mistake(
            _match_with(conflict="nobody"),
            "Your function gives contested slots to nobody. The object that they cost least keeps them.",
        ),
        Mistake(
            _match_with(least=0),
            "An object whose IoUs sum to less than 1 has k = 0 in your function. Every object asks for at least "
            "one slot.",
        ),
        Mistake(_match_with(k="round"), "The sum of IoUs is rounded to the nearest number. k is rounded *down*."),
        Mistake(_match_with(k="up"), "The sum of IoUs is rounded up. k is rounded *down*."),
        Mistake(
            _match_with(k="all"),
            "Your function sums all IoUs. Only the max_k largest of an object count: topk() along the slots.",
        ),
        Mistake(
            _match_with(k="fixed"),
            "In your function every object takes max_k slots. k is dynamic: the sum of the object's max_k largest "
            "IoUs, rounded down.",
        ),
        Mistake(
            _match_with(largest=True),
            "topk() gives the largest numbers unless it is told largest=False: these are the dearest slots.",
        ),
        Mistake(
            _match_no_empty,
            "A picture without objects is a usual picture: all its slots are background. Treat this case first.",
        ),
        Mistake(
            _match_no_clamp,
            "topk() cannot give more than there are, and this error is one that users of the official code know well. "
            "Sum min(max_k, K) IoUs; k is never above K.",
        ),
    ),
)

# ---- Sinkhorn -------------------------------------------------------------------------------------------------------


def sinkhorn_plan(prices: Tensor, supply: Tensor, demand: Tensor, epsilon: float, rounds: int) -> Tensor:
    """A plan of transport: [N, M] prices (inf: forbidden), [N], [M] -> [N, M] float64.

    Each round sets all rows to their supply and then all columns to their demand, starting from exp(-price / epsilon).
    """
    return sinkhorn(prices, supply, demand, epsilon, rounds)


def _plan_with(
    order: str = "rows, columns",
    sign: float = -1.0,
    divide: bool = True,
    logs: bool = True,
    swap: bool = False,
    once: bool = False,
    normalise: bool = False,
    float32: bool = False,
):
    """A wrong `sinkhorn_plan` that differs from the right one in one place."""

    def answer(prices: Tensor, supply: Tensor, demand: Tensor, epsilon: float, rounds: int) -> Tensor:
        prices, supply, demand = prices.double(), supply.double(), demand.double()
        kernel = sign * prices / epsilon if divide else sign * prices
        if not logs:
            kernel, v = kernel.exp(), torch.ones_like(demand)
            for _ in range(rounds):
                u = supply / (kernel @ v)
                v = demand / (kernel.T @ u)
            return u[:, None] * kernel * v
        plan = kernel  # the logarithm of the plan
        for _ in range(1 if once else rounds):
            for step in order.split(", "):
                dim = (1 if step == "rows" else 0) ^ swap
                target = (supply if step == "rows" else demand).log()
                if normalise:
                    target = torch.zeros_like(target)
                total = plan.logsumexp(dim=dim)
                change = torch.where(total > -torch.inf, target - total, -torch.inf)
                plan = plan + change.unsqueeze(dim)
        return plan.exp().float() if float32 else plan.exp()

    return answer


def _market(rows: int, columns: int, epsilon: float, rounds: int, rng: Generator, forbidden: float = 0.0) -> tuple:
    prices = 10 * torch.rand(rows, columns, generator=rng)
    prices[torch.rand(rows, columns, generator=rng) < forbidden] = torch.inf
    prices[-1] = torch.rand(columns, generator=rng)  # the background may go everywhere
    supply = torch.randint(1, 4, (rows,), generator=rng)
    supply[-1] = columns - supply[:-1].sum()
    return prices, supply, torch.ones(columns), epsilon, rounds


def _two_by_three(rng: Generator) -> tuple:
    return torch.tensor([[0.0, 1, 2], [1.0, 1, 0]]), torch.tensor([1.0, 2]), torch.ones(3), 0.5, 5


def _small_epsilon(rng: Generator) -> tuple:
    # exp(-800) is 0 even in float64.
    return torch.tensor([[8.0, 9, 10], [9.0, 9, 8]]), torch.tensor([1, 2]), torch.ones(3), 0.01, 20


def _nothing_to_give(rng: Generator) -> tuple:
    return torch.tensor([[1.0, 2, 3], [1.0, 1, 0]]), torch.tensor([0, 3]), torch.ones(3), 0.5, 5


PLAN = Exercise(
    answer=sinkhorn_plan,
    returns=("plan",),
    inputs={
        "two rows and three columns": _two_by_three,
        "one round": lambda rng: (*_two_by_three(rng)[:4], 1),
        "three objects, background and eight slots": lambda rng: _market(4, 12, 0.3, 50, rng),
        "as many rows as columns": lambda rng: (
            10 * torch.rand(5, 5, generator=rng),
            torch.ones(5),
            torch.ones(5),
            1.0,
            20,
        ),
        "whole numbers": lambda rng: (torch.tensor([[0, 2, 5], [1, 1, 1]]), torch.tensor([1, 2]), torch.ones(3), 1, 10),
        "pairs that are forbidden": lambda rng: _market(4, 12, 0.3, 50, rng, 0.4),
        "a row with nothing to give": _nothing_to_give,
        "a very small epsilon": _small_epsilon,
        "ten objects and 300 slots": lambda rng: _market(11, 300, 0.2, 30, rng, 0.8),
    },
    mistakes=(
        Mistake(
            _plan_with(logs=False),
            "With a very small epsilon exp(-price / epsilon) is 0, and 0 / 0 is not a number. Keep the logarithm of "
            "the plan, add instead of multiplying, and sum with logsumexp().",
        ),
        Mistake(
            _plan_with(order="columns, rows"),
            "Your function sets columns before rows. A round sets the rows first and the columns last, so that at "
            "the end every slot has its demand.",
        ),
        Mistake(_plan_with(sign=1.0), "In your plan the dearest ways get most. It is exp of *minus* price / epsilon."),
        Mistake(_plan_with(divide=False), "epsilon is missing: the plan starts from exp(-price / epsilon)."),
        Mistake(
            _plan_with(once=True),
            "One round is not enough: setting the columns spoils the rows again. Repeat it `rounds` times.",
        ),
        Mistake(
            _plan_with(normalise=True),
            "Rows and columns are made to sum to 1. A row has to sum to its supply, a column to its demand.",
        ),
        Mistake(
            _plan_with(float32=True),
            "The numbers are right, but the plan must be float64: prices can be thousands of times epsilon.",
        ),
    ),
)

# ---- who got how many -----------------------------------------------------------------------------------------------


def slots_of_each(owner: Tensor, objects: int) -> Tensor:
    """How many slots each object got: [K] int64 (-1 background, -2 ignored), G -> [G] int64."""
    return torch.bincount(owner[owner >= 0], minlength=objects)


SLOTS = Exercise(
    answer=slots_of_each,
    returns=("counts",),
    inputs={
        "three objects, eight slots": lambda rng: (torch.tensor([0, 1, 1, -1, 2, -1, 0, -1]), 3),
        "an object in the middle that got nothing": lambda rng: (torch.tensor([0, 2, -1, 2]), 3),
        "the last object got nothing": lambda rng: (torch.tensor([0, 0, -1, 1]), 4),
        "ignored slots": lambda rng: (torch.tensor([0, -2, -2, 1, -1]), 2),
        "all background": lambda rng: (torch.full((5,), -1), 3),
        "no object at all": lambda rng: (torch.full((4,), -1), 0),
        "300 objects, 8400 slots": lambda rng: (torch.randint(-2, 300, (8400,), generator=rng), 300),
    },
    mistakes=(
        Mistake(
            lambda owner, objects: torch.bincount(owner[owner >= 0]),
            "The list ends with the last object that got something. An object without a slot counts too, with 0: "
            "bincount() has a `minlength`.",
        ),
        Mistake(
            lambda owner, objects: torch.bincount((owner + 1).clamp(min=0), minlength=objects + 1),
            "The first number counts background, not an object. Leave slots without an owner out first.",
        ),
        Mistake(
            lambda owner, objects: torch.bincount(owner.clamp(min=0), minlength=objects),
            "Background is counted for the first object. Leave slots without an owner out first.",
        ),
        Mistake(
            lambda owner, objects: owner[owner >= 0].unique(return_counts=True)[1],
            "Objects without a slot are missing, so the others move up. They count too, with 0.",
        ),
        Mistake(
            lambda owner, objects: torch.bincount(owner.abs(), minlength=objects)[:objects],
            "-1 and -2 are taken for objects 1 and 2. They mean background and ignored: leave them out.",
        ),
        Mistake(
            lambda owner, objects: torch.bincount(owner[owner != BACKGROUND].clamp(min=0), minlength=objects),
            "Ignored slots, -2, are counted for the first object. Only numbers from 0 on are objects.",
        ),
        Mistake(
            lambda owner, objects: (slots_of_each(owner, objects) > 0).long(),
            "This says who got anything. Asked is how many.",
        ),
        Mistake(
            lambda owner, objects: slots_of_each(owner, objects).float(),
            "The numbers are right, but slots are counted in whole numbers: counts must be int64.",
        ),
    ),
)

EXERCISES = (PRICES, MATCH, PLAN, SLOTS)
