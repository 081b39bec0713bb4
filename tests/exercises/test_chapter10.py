"""The exercises of chapter 10: right answers, and what typical wrong ones are told."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from minidet.assign import OTA, DensePredictions, SimOTA
from minidet.exercises import EXERCISES, review
from minidet.grid import make_grid
from tests.exercises.told import assert_wrong, stub

NAMES = ("pair_prices", "match_by_dynamic_k", "sinkhorn_plan", "slots_of_each")


# ---- stubs and solutions --------------------------------------------------------------------------------------------


def prices_solution(overlap, scores, labels, free, weight=3.0, reduction="sum"):
    count = (*overlap.shape, scores.shape[1])
    one_hot = F.one_hot(labels, scores.shape[1]).float()
    terms = F.binary_cross_entropy(scores[None].expand(count), one_hot[:, None].expand(count), reduction="none")
    return getattr(terms, reduction)(dim=2) - weight * (overlap + 1e-8).log() + 1e6 * ~free


def prices_factorised(overlap, scores, labels, free):
    present, absent = (-each.log().clamp(min=-100) for each in (scores, 1 - scores))
    classes = absent.sum(dim=1) + (present - absent)[:, labels].T
    return torch.where(free, 0.0, 1e6) + classes - 3 * (overlap + 1e-8).log()


def match_solution(prices, overlap, max_k):
    objects, slots = prices.shape
    if objects == 0 or slots == 0:
        return torch.full((slots,), -1)
    k = overlap.topk(min(max_k, slots), dim=1).values.sum(dim=1).long().clamp(min=1)
    wanted = torch.zeros(objects, slots, dtype=torch.bool)
    for g in range(objects):
        wanted[g, prices[g].topk(int(k[g]), largest=False).indices] = True
    owner = torch.where(wanted.any(dim=0), wanted.int().argmax(dim=0), -1)
    return torch.where(wanted.sum(dim=0) > 1, prices.argmin(dim=0), owner)


def match_by_loops(prices, overlap, max_k):
    wanted = [[] for _ in range(prices.shape[1])]
    for g, row in enumerate(prices.tolist()):
        k = max(1, int(torch.tensor(sorted(overlap[g].tolist())[::-1][:max_k]).sum()))
        for slot in sorted(range(len(row)), key=row.__getitem__)[:k]:
            wanted[slot].append(g)
    owner = [
        -1 if not who else who[0] if len(who) == 1 else int(prices[:, slot].argmin()) for slot, who in enumerate(wanted)
    ]
    return torch.tensor(owner, dtype=torch.int64)


def plan_solution(prices, supply, demand, epsilon, rounds):
    kernel = -prices.double() / epsilon
    log_supply, log_demand = supply.double().log(), demand.double().log()
    u, v = torch.zeros_like(log_supply), torch.zeros_like(log_demand)
    for _ in range(rounds):
        u = log_supply - (kernel + v).logsumexp(dim=1)
        v = log_demand - (kernel + u[:, None]).logsumexp(dim=0)
    return (kernel + u[:, None] + v).exp()


def slots_solution(owner, objects):
    return torch.bincount(owner[owner >= 0], minlength=objects)


def slots_by_comparing(owner, objects):
    return (owner[:, None] == torch.arange(objects)).sum(dim=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_is_not_attempted(name):
    assert review(EXERCISES[name], stub).status == "not attempted"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("pair_prices", prices_solution),
        ("pair_prices", prices_factorised),
        ("match_by_dynamic_k", match_solution),
        ("match_by_dynamic_k", match_by_loops),
        ("sinkhorn_plan", plan_solution),
        ("slots_of_each", slots_solution),
        ("slots_of_each", slots_by_comparing),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_solution_is_done(name, answer):
    verdict = review(EXERCISES[name], answer)
    assert verdict.status == "done", verdict.text


# ---- the right answers are the library's ----------------------------------------------------------------------------


def random_picture(seed: int, objects: int = 8):
    torch.manual_seed(seed)
    grid = make_grid([(24, 32), (12, 16), (6, 8)], (8, 16, 32))
    centers = grid.centers + 6 * torch.randn(len(grid), 2)
    half = torch.exp(2.5 + 1.5 * torch.rand(len(grid), 2)) / 2
    boxes = torch.cat([centers - half, centers + half], dim=1)[None]
    middle = torch.rand(objects, 2) * torch.tensor([200.0, 140]) + 25
    side = torch.exp(2.5 + 1.5 * torch.rand(objects, 2)) / 2
    target = {"boxes": torch.cat([middle - side, middle + side], dim=1), "labels": torch.randint(8, (objects,))}
    return DensePredictions(grid, boxes, boxes, torch.randn(1, len(grid), 8), torch.randn(1, len(grid))), [target]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", [SimOTA(), SimOTA.published()], ids=["new", "published"])
def test_prices_and_owners_are_those_of_the_librarys_simota(seed, rule):
    predictions, targets = random_picture(seed)
    assignment = rule(predictions, targets, trace=True)
    (steps,) = assignment.trace
    near = steps["candidates"]
    scores = (predictions.class_logits[0, near].sigmoid() * predictions.object_logits[0, near, None].sigmoid()).sqrt()
    prices = EXERCISES["pair_prices"].answer(steps["iou"], scores, targets[0]["labels"], steps["free"])
    new = prices + (~steps["free"]) * (rule.outside_penalty - 1e6)
    torch.testing.assert_close(new, steps["cost"], rtol=1e-4, atol=0.1)
    owner = EXERCISES["match_by_dynamic_k"].answer(steps["cost"], steps["iou"], rule.max_k)
    assert torch.equal(owner, assignment.matched_gt[0, near])
    assert len(owner.unique()) > 5
    counts = EXERCISES["slots_of_each"].answer(assignment.matched_gt[0], 8)
    assert torch.equal(counts, steps["taken"].sum(dim=1))


@pytest.mark.parametrize("seed", range(3))
def test_the_plan_is_that_of_the_librarys_ota(seed):
    predictions, targets = random_picture(seed)
    rule = OTA()
    (steps,) = rule(predictions, targets, trace=True).trace
    prices = torch.cat([steps["cost"].masked_fill(~steps["free"], torch.inf), steps["background_cost"][None]])
    slots = prices.shape[1]
    supply = torch.cat([steps["dynamic_k"], (slots - steps["dynamic_k"].sum())[None]])
    plan = EXERCISES["sinkhorn_plan"].answer(prices, supply, torch.ones(slots), rule.epsilon, rule.iterations)
    torch.testing.assert_close(plan, steps["plan"])


def test_no_input_has_a_tie_that_decides():
    for description, (prices, overlap, max_k) in EXERCISES["match_by_dynamic_k"].cases():
        if prices.numel():
            k = overlap.topk(min(max_k, overlap.shape[1]), dim=1).values.sum(dim=1)
            assert ((k - k.round()).abs() > 1e-4).all(), description
            in_row, in_column = prices.sort(dim=1).values, prices.sort(dim=0).values
            if len(prices) > 1:
                assert (in_column[1] - in_column[0] > 1e-6).all(), description
            for row, count in zip(in_row, k.long().clamp(min=1).tolist(), strict=True):
                assert count == len(row) or row[count] - row[count - 1] > 1e-6, description


# ---- wrong answers --------------------------------------------------------------------------------------------------


def own_class_only(overlap, scores, labels, free):
    return -scores[:, labels].T.log().clamp(min=-100) - 3 * (overlap + 1e-8).log() + 1e6 * ~free


def averaged(overlap, scores, labels, free):
    return prices_solution(overlap, scores, labels, free, reduction="mean")


def weight_one(overlap, scores, labels, free):
    return prices_solution(overlap, scores, labels, free, weight=1.0)


def wrong_sign(overlap, scores, labels, free):
    return prices_solution(overlap, scores, labels, free, weight=-3.0)


def inverted_mask(overlap, scores, labels, free):
    return prices_solution(overlap, scores, labels, ~free)


def no_penalty(overlap, scores, labels, free):
    return prices_solution(overlap, scores, labels, torch.ones_like(free))


def no_epsilon(overlap, scores, labels, free):
    return prices_factorised(overlap, scores, labels, free) + 3 * (overlap + 1e-8).log() - 3 * overlap.log()


def no_clamp(overlap, scores, labels, free):
    one_hot = F.one_hot(labels, scores.shape[1]).bool()[:, None]
    classes = -torch.where(one_hot, scores.log(), (1 - scores).log()).sum(dim=2)
    return classes - 3 * (overlap + 1e-8).log() + 1e6 * ~free


def one_minus_iou(overlap, scores, labels, free):
    return prices_solution(overlap, scores, labels, free, weight=0.0) + 3 * (1 - overlap)


def transposed(overlap, scores, labels, free):
    return prices_solution(overlap, scores, labels, free).T


def into_the_overlap(overlap, scores, labels, free):
    overlap += 1e-8
    return prices_solution(overlap, scores, labels, free)


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (own_class_only, "prices[0, 0] is", "Only the object's own class is charged."),
        (averaged, "prices[0, 0] is", "The cross entropy is averaged over the classes."),
        (weight_one, "prices[0, 0] is", "three times -log IoU"),
        (wrong_sign, "prices[0, 0] is", "A good overlap makes your pair dearer."),
        (one_minus_iou, "prices[0, 0] is", "This charges 1 - IoU."),
        (inverted_mask, "prices[0, 0] is", "The million is charged where the pair is free."),
        (no_penalty, "prices[0, ", "The centre prior is missing"),
        (no_epsilon, "inf", "An IoU of 0 has no logarithm"),
        (no_clamp, "scores of exactly 0 and 1", "Cut the logarithms at -100"),
        (transposed, "prices has the shape [2, 1], not [1, 2].", "swapped"),
        (into_the_overlap, "other numbers stand in overlap afterwards", "Make a new tensor instead"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_price_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("pair_prices", answer, difference, hint)


def match_with(
    least=1, conflict="all", top=True, rounding=torch.floor, fixed=False, largest=False, empty=True, most=True
):
    """A student's version, with one thing done differently."""

    def answer(prices, overlap, max_k):
        objects, slots = prices.shape
        if (empty and objects == 0) or slots == 0:
            return torch.full((slots,), -1)
        count = min(max_k, slots) if most else max_k
        sums = overlap.topk(count, dim=1).values.sum(dim=1) if top else overlap.sum(dim=1)
        k = torch.full((objects,), max_k) if fixed else rounding(sums).long()
        k = k.clamp(min=least, max=slots)
        wanted = torch.zeros(objects, slots, dtype=torch.bool)
        for g in range(objects):
            wanted[g, prices[g].sort(descending=largest).indices[: int(k[g])]] = True
        times, owner = wanted.sum(dim=0), wanted.int().argmax(dim=0)
        if conflict == "all":
            owner = torch.where(times > 1, prices.argmin(dim=0), owner)
        elif conflict == "wanting":
            owner = prices.masked_fill(~wanted, 1e9).argmin(dim=0)
        elif conflict == "everywhere":
            owner = prices.argmin(dim=0)
        elif conflict == "overlap":
            owner = torch.where(times > 1, overlap.argmax(dim=0), owner)
        elif conflict == "last":
            owner = objects - 1 - wanted.flip(0).int().argmax(dim=0)
        elif conflict == "nobody":
            owner = torch.where(times > 1, -1, owner)
        return torch.where(times > 0, owner, -1)

    return answer


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (match_with(conflict="wanting"), "cheapest for somebody who did not ask", "even one that did not ask"),
        (match_with(conflict="everywhere"), "owner", "That is right for contested slots only"),
        (match_with(conflict="overlap"), "owner", "gives contested slots to the best overlap."),
        (match_with(conflict="first"), "owner[1] is 0, not 1.", "gives contested slots to the first object."),
        (match_with(conflict="last"), "owner[2] is 2, not 1.", "gives contested slots to the last object"),
        (match_with(conflict="nobody"), "owner[1] is -1, not 1.", "gives contested slots to nobody."),
        (match_with(least=0), "IoUs that are all small", "Every object asks for at least one slot."),
        (match_with(rounding=torch.round), "owner", "is rounded to the nearest number"),
        (match_with(rounding=torch.ceil), "owner", "The sum of IoUs is rounded up."),
        (match_with(top=False), "owner", "Only the max_k largest of an object count"),
        (match_with(fixed=True), "owner", "k is dynamic"),
        (match_with(largest=True), "owner", "unless it is told largest=False"),
        (match_with(empty=False), "no object at all", "A picture without objects is a usual picture"),
        (match_with(most=False), "selected index k out of range", "topk() cannot give more than there are"),
        (lambda *a: match_solution(*a).float(), "owner is float32, but int64 was expected.", ""),
    ],
    ids="wanting everywhere overlap first last nobody least round ceil all fixed dearest empty many float".split(),
)
def test_a_wrong_match_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("match_by_dynamic_k", answer, difference, hint)


def plan_with(logs=True, columns_first=False, sign=-1, epsilon_used=True, rounds_used=True, ones=False, kind=None):
    """A student's version, with one thing done differently."""

    def answer(prices, supply, demand, epsilon, rounds):
        kernel = sign * prices.double() / (epsilon if epsilon_used else 1)
        supply, demand = supply.double(), demand.double()
        if ones:
            supply, demand = torch.ones_like(supply), torch.ones_like(demand)
        if not logs:
            kernel, u, v = kernel.exp(), torch.ones_like(supply), torch.ones_like(demand)
            for _ in range(rounds):
                u = supply / (kernel @ v)
                v = demand / (kernel.T @ u)
            return u[:, None] * kernel * v
        u, v = torch.zeros_like(supply), torch.zeros_like(demand)
        for _ in range(rounds if rounds_used else 1):
            if columns_first:
                v = demand.log() - (kernel + u[:, None]).logsumexp(dim=0)
                u = supply.log() - (kernel + v).logsumexp(dim=1)
            else:
                u = supply.log() - (kernel + v).logsumexp(dim=1)
                v = demand.log() - (kernel + u[:, None]).logsumexp(dim=0)
        plan = (kernel + u[:, None] + v).exp()
        return plan if kind is None else plan.to(kind)

    return answer


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (plan_with(logs=False), "a very small epsilon", "Keep the logarithm of the plan"),
        (plan_with(columns_first=True), "plan[0, 0] is", "Your function sets columns before rows."),
        (plan_with(sign=1), "plan[0, 0] is", ""),
        (plan_with(epsilon_used=False), "plan[0, 0] is", "epsilon is missing"),
        (plan_with(rounds_used=False), "plan[0, 0] is", "One round is not enough"),
        (plan_with(ones=True), "plan[0, 0] is", "A row has to sum to its supply"),
        (plan_with(kind=torch.float32), "plan is float32, but float64 was expected.", "the plan must be float64"),
        (lambda *a: plan_solution(*a).T, "plan has the shape [3, 2], not [2, 3].", "swapped"),
    ],
    ids="multiplied columns sign epsilon once ones float32 transposed".split(),
)
def test_a_wrong_plan_is_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("sinkhorn_plan", answer, difference, hint)


@pytest.mark.parametrize(
    ("answer", "difference", "hint"),
    [
        (lambda o, g: torch.bincount(o[o >= 0]), "counts has the shape [2], not [4].", "bincount() has a `minlength`"),
        (lambda o, g: torch.bincount((o + 1).clamp(min=0), minlength=g + 1), "counts has", "counts background"),
        (lambda o, g: torch.bincount(o.clamp(min=0), minlength=g), "counts[0] is 5, not 2.", "Background is counted"),
        (lambda o, g: o[o >= 0].unique(return_counts=True)[1], "counts has the shape", "so the others move up"),
        (lambda o, g: torch.bincount(o.abs(), minlength=g)[:g], "counts[1] is 5, not 2.", "-1 and -2 are taken"),
        (lambda o, g: torch.bincount(o[o != -1].clamp(min=0), minlength=g), "ignored slots", "Ignored slots, -2"),
        (lambda o, g: (slots_solution(o, g) > 0).long(), "counts[0] is 1, not 2.", "Asked is how many."),
        (lambda o, g: slots_solution(o, g).float(), "counts is float32, but int64 was expected.", "must be int64"),
    ],
    ids="shorter shifted clamped unique absolute ignored any float".split(),
)
def test_wrong_counts_are_told_what_differs_and_why(answer, difference, hint):
    assert_wrong("slots_of_each", answer, difference, hint)
