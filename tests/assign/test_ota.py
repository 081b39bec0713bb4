"""OTA: Sinkhorn's plans by hand and against the optimum, the optimum against a linear program and trying all."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch.nn import functional as F

from minidet.assign import BACKGROUND, OTA, DensePredictions, SimOTA
from minidet.assign.ota import exact_plan, largest_shares, serve_most, sinkhorn
from minidet.assign.simota import class_and_background_cost
from minidet.errors import MinidetError
from minidet.grid import make_grid

INF = math.inf


def random_problems(kind: str, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Costs [count, N, M] in [0, 1], supplies and demands, as shares or as whole numbers with a background row."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    if kind == "shares":
        supply, demand = 0.1 + uniform(count, 3), 0.1 + uniform(count, 8)
        return uniform(count, 3, 8), supply / supply.sum(1, keepdim=True), demand / demand.sum(1, keepdim=True)
    k = torch.randint(1, 4, (count, 3), generator=generator)
    supply = torch.cat([k, 16 - k.sum(1, keepdim=True)], dim=1)
    return uniform(count, 4, 16), supply.double(), torch.ones(count, 16, dtype=torch.float64)


def made_feasible(plan: torch.Tensor, supply: torch.Tensor, demand: torch.Tensor) -> torch.Tensor:
    """The plan with what is too much taken away, and what is missing spread out (arXiv 1705.09634, algorithm 2)."""
    plan = plan * (supply / plan.sum(dim=-1)).clamp(max=1)[..., None]
    plan = plan * (demand / plan.sum(dim=-2)).clamp(max=1)[..., None, :]
    over, under = supply - plan.sum(dim=-1), demand - plan.sum(dim=-2)
    return plan + over[..., None] * under[..., None, :] / over.sum(-1).clamp(min=1e-12)[..., None, None]


def optimum_by_linprog(costs: torch.Tensor, supply: torch.Tensor, demand: torch.Tensor) -> float:
    """The smallest cost, the problem written out densely; a large finite cost stands for what is forbidden."""
    rows, columns = costs.shape
    sums = np.concatenate([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    prices = costs.clamp(max=1e6).flatten().numpy()
    return linprog(prices, A_eq=sums, b_eq=torch.cat([supply, demand]).numpy(), method="highs").fun


# ---- Sinkhorn-Knopp -------------------------------------------------------------------------------------------------


def test_one_iteration_on_two_rows_and_three_columns_by_hand():
    # exp(-cost) = [[1, 1/2, 1/4], [1, 1, 1]]. Rows, which supply 1 and 2, are scaled by 1 / 1.75 and 2 / 3; then the
    # columns have 4/7 + 2/3 = 26/21, 2/7 + 2/3 = 20/21 and 1/7 + 2/3 = 17/21, and are scaled to 1.
    costs = -torch.tensor([[1, 0.5, 0.25], [1, 1, 1]]).log()
    plan = sinkhorn(costs, torch.tensor([1, 2]), torch.ones(3), epsilon=1.0, iterations=1)
    expected = torch.tensor([[12 / 26, 6 / 20, 3 / 17], [14 / 26, 14 / 20, 14 / 17]], dtype=torch.float64)
    torch.testing.assert_close(plan, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0])
def test_two_rows_and_two_columns_share_as_the_logistic_function_says(epsilon):
    # By symmetry the plan is [[p, 1 - p], [1 - p, p]], and p / (1 - p) = exp(1 / epsilon).
    ones = torch.ones(2)
    plan = sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), ones, ones, epsilon, iterations=20)
    p = 1 / (1 + math.exp(-1 / epsilon))
    torch.testing.assert_close(plan, torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64))


def test_as_epsilon_falls_the_cost_comes_within_1e_4_of_the_optimum_on_200_problems():
    costs, supply, demand = random_problems("whole", 200)
    best = torch.stack([(each[0] * exact_plan(*each)).sum() for each in zip(costs, supply, demand, strict=True)])
    means = []
    for epsilon in (0.1, 0.03, 0.01, 0.001, 0.0001):
        plan = sinkhorn(costs, supply, demand, epsilon, iterations=1000, halvings=10)
        plan = made_feasible(plan, supply, demand)
        torch.testing.assert_close(plan.sum(dim=2), supply, rtol=0, atol=1e-9)
        torch.testing.assert_close(plan.sum(dim=1), demand, rtol=0, atol=1e-9)
        gap = (costs * plan).sum(dim=(1, 2)) - best
        assert gap.min() > -1e-9  # nothing is cheaper than the optimum
        means.append(float(gap.mean()))
    assert means == sorted(means, reverse=True)
    assert means[-1] < means[0] / 1000
    assert gap.max() < 1e-4


def test_demands_are_met_always_and_supplies_in_the_limit():
    costs, supply, demand = random_problems("whole", 20)
    short, long = (sinkhorn(costs, supply, demand, 0.1, iterations) for iterations in (2, 500))
    for plan in (short, long):
        torch.testing.assert_close(plan.sum(dim=1), demand)
    assert (short.sum(dim=2) - supply).abs().max() > 1e-3
    torch.testing.assert_close(long.sum(dim=2), supply)


def test_with_halvings_fewer_iterations_are_needed():
    costs, supply, demand = random_problems("whole", 20)
    plain = sinkhorn(costs, supply, demand, 0.01, iterations=100)
    halved = sinkhorn(costs, supply, demand, 0.01, iterations=20, halvings=4)
    errors = [(plan.sum(dim=2) - supply).abs().mean() for plan in (plain, halved)]
    assert errors[1] < errors[0] / 2
    # Both have one limit.
    plain, halved = sinkhorn(costs, supply, demand, 0.1, 2000), sinkhorn(costs, supply, demand, 0.1, 2000, halvings=2)
    torch.testing.assert_close(plain, halved)


def test_a_batch_is_solved_as_each_of_its_problems():
    costs, supply, demand = random_problems("shares", 6)
    together = sinkhorn(costs.view(2, 3, 3, 8), supply.view(2, 3, 3), demand.view(2, 3, 8), 0.1, 30)
    for i in range(6):
        alone = sinkhorn(costs[i], supply[i], demand[i], 0.1, 30)
        torch.testing.assert_close(together.flatten(0, 1)[i], alone)


def test_nothing_is_sent_where_it_is_forbidden_or_where_there_is_none():
    costs = torch.tensor([[1.0, INF, 2.0, 0.0], [0.0, 0.0, INF, 0.0], [3.0, 1.0, 2.0, 0.0]])
    plan = sinkhorn(costs, torch.tensor([1, 0, 2]), torch.tensor([1, 1, 1, 0]), 0.5, 100, halvings=1)
    assert (plan[1] == 0).all() and (plan[:, 3] == 0).all() and plan[0, 1] == 0
    torch.testing.assert_close(plan.sum(dim=1), torch.tensor([1.0, 0, 2], dtype=torch.float64))


@pytest.mark.parametrize("epsilon", [1e-6, 0.1, 1e6])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 8000.0])
def test_no_problem_gives_nan_however_large_its_costs_are_and_whether_or_not_it_can_be_solved(epsilon, scale):
    costs = scale * torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    costs[0] = INF  # nothing is allowed at all
    costs[1, :, 2], costs[1, 3] = INF, INF  # a column that nothing reaches, a row that reaches nothing
    supply = torch.tensor([[1.0, 2, 1, 2], [2, 2, 1, 1], [9, 9, 0, 0]])  # the last supplies three times the demand
    plan = sinkhorn(costs, supply, torch.ones(3, 6), epsilon, 50, halvings=2)
    assert plan.isfinite().all() and (plan >= 0).all()
    assert (plan[0] == 0).all()
    assert plan[1].sum(dim=0).tolist() == pytest.approx([1, 1, 0, 1, 1, 1])
    assert plan[2].sum(dim=0).tolist() == pytest.approx([1] * 6)


@pytest.mark.parametrize(("epsilon", "iterations", "halvings"), [(0, 5, 0), (-1, 5, 0), (1, 0, 0), (1, 5, -1)])
def test_settings_that_mean_nothing_are_refused(epsilon, iterations, halvings):
    with pytest.raises(MinidetError, match="sinkhorn"):
        sinkhorn(torch.zeros(2, 2), torch.ones(2), torch.ones(2), epsilon, iterations, halvings)


# ---- the optimum ----------------------------------------------------------------------------------------------------


def test_the_optimum_of_two_rows_and_three_columns_by_hand():
    # An object with 2 to give, and the background. Its two cheapest slots are 0 and 1, 1 + 2, but then slot 2 is
    # background for 3: 6 in all. Slots 0 and 2 cost 1 + 4, and slot 1 nothing: 5.
    costs, supply = torch.tensor([[1.0, 2, 4], [0, 0, 3]]), torch.tensor([2, 1])
    assert exact_plan(costs, supply, torch.ones(3)).tolist() == [[1, 0, 1], [0, 1, 0]]
    near = sinkhorn(costs, supply, torch.ones(3), epsilon=0.05, iterations=200, halvings=5)
    torch.testing.assert_close(near, exact_plan(costs, supply, torch.ones(3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["shares", "whole"])
@pytest.mark.parametrize("forbidden", [0.0, 0.3])
def test_the_optimum_is_that_of_a_linear_program(kind, forbidden):
    costs, supply, demand = random_problems(kind, 60, seed=1)
    chance = torch.rand(costs.shape, generator=torch.Generator().manual_seed(2))
    chance[:, -1] = 1  # the last row can reach everything
    costs[chance < forbidden] = INF
    for each in zip(costs, supply, demand, strict=True):
        best = optimum_by_linprog(*each)
        if best > each[2].sum():  # as only what is forbidden costs
            with pytest.raises(MinidetError, match="no plan"):
                exact_plan(*each)
            continue
        plan = exact_plan(*each)
        assert (plan[each[0] == INF] == 0).all()
        assert float(plan.where(plan > 0, 0).mul(each[0].nan_to_num(posinf=0)).sum()) == pytest.approx(best, abs=1e-7)
        torch.testing.assert_close(plan.sum(dim=1), each[1], rtol=0, atol=1e-7)
        torch.testing.assert_close(plan.sum(dim=0), each[2], rtol=0, atol=1e-7)


def test_rows_of_which_none_reaches_everything_have_an_optimum_too():
    costs = torch.tensor([[INF, 1.0, 2.0], [3.0, 1.0, INF]])
    assert exact_plan(costs, torch.tensor([2, 1]), torch.ones(3)).tolist() == [[0, 1, 1], [1, 0, 0]]


def test_a_problem_without_a_plan_is_refused_in_words():
    with pytest.raises(MinidetError, match="supplies sum to 3, the demands to 2"):
        exact_plan(torch.zeros(1, 2), torch.tensor([3]), torch.ones(2))
    for supply, demand in (([1, 1], [1, 1]), ([0.5, 0.5], [0.5, 0.5])):
        costs = torch.tensor([[0.0, INF], [0.0, INF]])  # nothing reaches the second column
        with pytest.raises(MinidetError, match="no plan meets"):
            exact_plan(costs, torch.tensor(supply), torch.tensor(demand))


@pytest.mark.parametrize("supply", [[1, 1, 4], [2, 3, 4], [3, 2, 0], [4, 4, 0], [0, 3, 2], [0, 0, 4]])
def test_where_slots_do_not_suffice_as_many_as_possible_are_given_away_for_the_least(supply):
    for seed in range(20):
        costs = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        costs[0, 3], costs[1, 0] = INF, INF
        plan = serve_most(costs, torch.tensor(supply))
        assert plan.sum(dim=0).tolist() == [1] * 4

        def judge(owners: tuple[int, ...], costs=costs) -> tuple[int, float]:
            return sum(owner == 2 for owner in owners), sum(float(costs[g, a]) for a, g in enumerate(owners))

        allowed = [
            owners
            for owners in itertools.product(range(3), repeat=4)
            if owners.count(0) <= supply[0] and owners.count(1) <= supply[1] and math.isfinite(judge(owners)[1])
        ]
        best = min(map(judge, allowed))  # fewest on the background, then cheapest
        assert judge(tuple(plan.argmax(dim=0).tolist())) == pytest.approx(best)


# ---- the assigner ---------------------------------------------------------------------------------------------------

GRID = make_grid([(8, 12), (4, 6), (2, 3)], (8, 16, 32))  # 96 px wide, 64 px high


def scene(count: int, seed: int, batch: int = 2) -> tuple[DensePredictions, list[dict[str, torch.Tensor]]]:
    """Predictions as of a detector that has learned something, and objects of 8 to 40 px."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for _ in range(batch):
        center = torch.rand(count, 2, generator=generator) * torch.tensor([96.0, 64.0])
        half = 4 + 16 * torch.rand(count, 2, generator=generator)
        boxes = torch.cat([center - half, center + half], dim=1)
        targets.append({"boxes": boxes, "labels": torch.randint(3, (count,), generator=generator)})
    center = GRID.centers + 4 * torch.randn(batch, len(GRID), 2, generator=generator)
    half = 4 + 16 * torch.rand(batch, len(GRID), 2, generator=generator)
    boxes = torch.cat([center - half, center + half], dim=2)
    logits = torch.randn(batch, len(GRID), 4, generator=generator)
    return DensePredictions(GRID, boxes, boxes, logits[..., 1:], logits[..., 0]), targets


def test_nothing_at_all_costs_the_cross_entropy_with_no_class():
    logits, objects = 4 * torch.randn(50, 7), 4 * torch.randn(50)
    score = (logits.sigmoid() * objects.sigmoid()[:, None]).sqrt()
    expected = F.binary_cross_entropy(score, torch.zeros(50, 7), reduction="none").sum(dim=1)
    _, costs = class_and_background_cost(logits[None], objects[None], torch.zeros(1, 1, dtype=torch.int64))
    torch.testing.assert_close(costs[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_with_a_small_epsilon_sinkhorn_assigns_as_the_optimum_does(count):
    predictions, targets = scene(count, seed=count)
    exact = OTA(solver="exact")(predictions, targets)
    near = OTA(epsilon=0.003, iterations=3000)(predictions, targets)
    assert exact.num_positives >= count
    assert torch.equal(near.matched_gt, exact.matched_gt)
    assert torch.equal(near.quality, exact.quality)


def test_each_object_gets_its_k_where_there_are_enough_slots():
    predictions, targets = scene(5, seed=7)
    trace = OTA(solver="exact")(predictions, targets, trace=True).trace
    for steps in trace:
        assert torch.equal(steps["taken"].sum(dim=1), steps["dynamic_k"])
        assert steps["plan"].sum() == len(steps["candidates"])
        assert (steps["plan"][:-1][~steps["free"]] == 0).all()


def test_the_total_cost_is_not_above_that_of_simota_where_that_serves_all():
    served = 0
    for seed in range(30):
        predictions, targets = scene(3, seed, batch=1)
        ours, theirs = (rule(predictions, targets, trace=True).trace[0] for rule in (OTA(solver="exact"), SimOTA()))
        assert torch.equal(ours["candidates"], theirs["candidates"])
        torch.testing.assert_close(ours["cost"][ours["free"]], theirs["cost"][ours["free"]])
        if torch.equal(theirs["taken"].sum(dim=1), ours["dynamic_k"]) and ours["free"][theirs["taken"]].all():
            served += 1
            above = ours["cost"] - ours["background_cost"]
            assert above[ours["taken"]].sum() <= above[theirs["taken"]].sum() + 1e-4
    assert served > 10


def test_one_object_before_an_even_background_gets_the_slots_of_simota(as_anchors, target):
    found = target([[20, 18, 60, 44]])
    predictions = as_anchors(GRID)
    expected = SimOTA()(predictions, [found])
    assert expected.num_positives > 1
    assert torch.equal(OTA(solver="exact")(predictions, [found]).matched_gt, expected.matched_gt)


def test_a_slot_that_would_be_costly_background_is_taken_before_one_that_is_as_cheap_for_the_object(target):
    """Two slots in one place on two levels predict the same box; one is sure of another class, so silence costs it."""
    grid = make_grid([(1, 2)], (32,))
    boxes = torch.tensor([[2.0, 2, 30, 30], [34, 2, 62, 30]])
    # Class costs with q = sqrt(sigmoid): slot 1's second class is dear whether the slot is the object's or not.
    logits = torch.tensor([[-2.0, -4.0], [-1.9, 3.0]])
    predictions = DensePredictions(grid, boxes[None], boxes[None], logits[None], None)
    found = target([[16, 2, 48, 30]])  # overlaps both boxes by the same
    simota, ota = (rule(predictions, [found], trace=True) for rule in (SimOTA(), OTA(solver="exact")))
    assert simota.trace[0]["dynamic_k"].tolist() == ota.trace[0]["dynamic_k"].tolist() == [1]
    assert simota.matched_gt.tolist() == [[0, BACKGROUND]]
    assert ota.matched_gt.tolist() == [[BACKGROUND, 0]]


def test_k_is_never_above_the_slots_of_the_objects_own_region(as_anchors, target):
    # The first object has its centre in the last cell's corner; SimOTA would count and give it slots of the second.
    found = target([[90, 58, 96, 64], [60, 30, 96, 64]])
    result = OTA(solver="exact")(as_anchors(GRID), [found], trace=True)
    steps = result.trace[0]
    assert (steps["dynamic_k"] <= steps["free"].sum(dim=1)).all()
    nowhere = OTA()(as_anchors(GRID), [target([[500, 500, 520, 520], [60, 30, 96, 64]])], trace=True)
    assert nowhere.trace[0]["dynamic_k"][0] == 0
    assert set(nowhere.matched_gt.unique().tolist()) == {BACKGROUND, 1}


def test_a_crowd_that_wants_more_than_there_is_gets_all_there_is_in_the_optimum(as_anchors, target):
    small = make_grid([(1, 2)], (32,))
    found = target([[2.0, 2, 62, 30]] * 7)
    assert OTA(solver="exact")(as_anchors(small), [found]).positive.all()


def test_an_object_takes_the_slots_of_which_it_has_most_and_a_contested_one_goes_to_the_larger_share():
    shares = torch.tensor([[0.3, 0.35, 0.35, 0.0], [0.6, 0.0, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0]])
    # The first takes slots 1 and 2, the second 0 and 2, of which it has more; the third has nothing of any.
    owners = largest_shares(shares[None], torch.tensor([[2, 2, 1]]), max_k=3)
    assert owners.tolist() == [[1, 0, 1, BACKGROUND]]
    assert largest_shares(shares[None, :1], torch.tensor([[0]]), max_k=3).tolist() == [[BACKGROUND] * 4]


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
def test_labels_that_are_spread_thinly_are_given_all_the_same(solver, as_anchors, target):
    # 9 slots of one level predict the same, so that each has a share of 1/9 for an object, and 8/9 for the background.
    grid = make_grid([(3, 3)], (32,))
    box = torch.tensor([42.0, 40, 66, 64])
    predictions = DensePredictions(grid, box.expand(1, 9, 4), box.expand(1, 9, 4), torch.full((1, 9, 1), -3.0), None)
    result = OTA(solver=solver)(predictions, [target([[41, 41, 55, 54]])], trace=True)
    assert result.trace[0]["dynamic_k"].tolist() == [2]
    assert result.num_positives == 2


def test_exact_duplicates_share_slots_in_the_optimum_and_sinkhorn_serves_the_first(as_anchors, target):
    found = target([[20, 18, 60, 44]] * 2)
    alone, both = (OTA()(as_anchors(GRID), [objects]).matched_gt for objects in (target([[20, 18, 60, 44]]), found))
    assert torch.equal(alone, both)
    steps = OTA(solver="exact")(as_anchors(GRID), [found], trace=True).trace[0]
    assert steps["dynamic_k"][0] > 1
    assert torch.equal(steps["taken"].sum(dim=1), steps["dynamic_k"])


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
def test_the_order_of_images_does_not_matter(solver):
    rule = OTA(solver=solver)
    predictions, targets = scene(6, seed=3, batch=3)
    targets[1] = {name: value[:2] for name, value in targets[1].items()}
    whole = rule(predictions, targets).matched_gt
    for i in range(3):
        alone = DensePredictions(
            GRID,
            predictions.raw_boxes[i : i + 1],
            predictions.boxes[i : i + 1],
            predictions.class_logits[i : i + 1],
            predictions.object_logits[i : i + 1],
        )
        assert torch.equal(rule(alone, targets[i : i + 1]).matched_gt[0], whole[i])


@pytest.mark.parametrize("settings", [{"epsilon": 0.0}, {"iterations": 0}, {"solver": "greedy"}, {"max_k": 0}], ids=str)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(MinidetError, match=f"OTA: {next(iter(settings))}"):
        OTA(**settings)
