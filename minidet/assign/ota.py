"""OTA: who learns what as a problem of transport. Objects supply labels, slots demand one each, each way has its price.

An object supplies as many labels as it deserves ("dynamic k"), the background supplies the rest, and the cheapest of
all plans that meet every supply and every demand is wanted. SimOTA looks at each object by itself and settles conflicts
afterwards; here an object that loses a slot gets the next best one in the same stroke.

Two ways to the plan: Sinkhorn-Knopp, which spreads labels a little (`epsilon`) so that a few rounds of rescaling rows
and columns find it, on any device, for all images at once; and the exact optimum, an oracle for small numbers.

Source: OTA, arXiv 2103.14259, section 3; Sinkhorn distances, arXiv 1306.0895; YOLOX, section 2.1; chapter 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minidet.assign.base import (
    BACKGROUND,
    Assignment,
    DensePredictions,
    Targets,
    pad_targets,
    pairs_of,
    places_of_true,
)
from minidet.assign.simota import (
    centre_candidates,
    cheapest,
    class_and_background_cost,
    dynamic_k,
    near_any_centre,
    owners,
    to_all_slots,
)
from minidet.boxes import pairwise_iou
from minidet.errors import MinidetError
from minidet.settings import check_settings


@dataclass(frozen=True)
class OTA:
    """The assigner, with the cost of SimOTA, so that both differ in nothing but how the slots are given away.

    This is the comparison that YOLOX makes ("OTA costs 25 % more training time"). The OTA paper's own setting is
    another one: focal loss as class cost, 1.5 as `iou_weight`, 20 as `max_k`. Its code has a radius of 2.5 cut off at
    the object's box, sums only IoUs inside it for k, and lets pairs outside cost 1e6 more instead of forbidding them.
    It divides every row of the plan by its largest share, and then each slot goes to the row with the largest. Here an
    object takes the k slots of which it has most: the published way gives it more than k where many slots are nearly
    equal, and without the division an object whose labels are spread thinly gets none (`benchmarks/transport.py`).

    Attributes:
        radius: half the side of the centre square, in strides. Pairs outside of their object's square are forbidden.
        iou_weight: weight of -log IoU beside the class cost.
        max_k: how many of the largest IoUs are summed to give k.
        epsilon: how much Sinkhorn's plan is spread, in units of cost; the smaller, the nearer to the optimum, and the
            more iterations it takes.
        iterations: of Sinkhorn-Knopp, each one all rows and all columns.
        solver: "sinkhorn", or "exact", image by image on the CPU; then `epsilon` and `iterations` have no effect.
    """

    radius: float = 1.5
    iou_weight: float = 3.0
    max_k: int = 10
    epsilon: float = 0.1
    iterations: int = 50
    solver: Literal["sinkhorn", "exact"] = "sinkhorn"

    def __post_init__(self) -> None:
        ranges = {"radius": (0, 1e6), "iou_weight": (0, 1e6), "max_k": (1, 10_000)}
        check_settings(self, "OTA", {**ranges, "epsilon": (1e-6, 1e6), "iterations": (1, 10_000)})

    @property
    def on_host(self) -> bool:
        """The exact optimum is found there."""
        return self.solver == "exact"

    @torch.no_grad()
    def __call__(self, predictions: DensePredictions, targets: Targets, trace: bool = False) -> Assignment:
        """Assign a batch.

        Args:
            predictions: decoded boxes and logits of the current forward pass.
            targets: for each image `boxes` [G, 4] float xyxy in pixels of the network input and `labels` [G] int64.
            trace: keep candidates, costs, dynamic k and the plan of every image.

        Returns:
            The assignment. A slot whose prediction is not finite is no candidate. No object has more than its k slots.
            Where several want more than there are, some have fewer, or none; so have, by Sinkhorn, exact duplicates
            after the first, whose shares are always the same. The trace has SimOTA's names:
            `cost` is that of all pairs, `free` tells which are allowed, `wanted` are the k cheapest of each object
            alone, `conflicts` the slots that several want so. `plan` [G + 1, K] has the background in its last row,
            whose costs are `background_cost` [K].
        """
        gt, grid = pad_targets(targets), predictions.grid
        slots, valid = places_of_true(*near_any_centre(grid, gt, self.radius))  # [B, K]; all others are background
        near = predictions.at(slots)
        valid = valid & near.finite
        is_pair = gt.real[:, :, None] & valid[:, None, :]  # [B, G, K]; all others fill up
        free = is_pair & centre_candidates(near.grid.centers, near.grid.strides, gt.boxes, self.radius)

        ious = pairwise_iou(gt.boxes, near.boxes).clamp_(max=1).masked_fill_(~is_pair, 0)  # [B, G, K]
        class_costs, background_costs = class_and_background_cost(near.class_logits, near.object_logits, gt.labels)
        costs = torch.add(ious, 1e-8).log_().mul_(-self.iou_weight).add_(class_costs)
        allowed = costs.masked_fill(~free, torch.inf)

        k = dynamic_k(ious, self.max_k, valid.sum(dim=1)) * gt.real  # [B, G]
        k = torch.minimum(k, free.sum(dim=2))
        rest = (valid.sum(dim=1) - k.sum(dim=1)).clamp(min=0)
        supply = torch.cat([k, rest[:, None]], dim=1)  # [B, G + 1]
        plan = self.transport(torch.cat([allowed, background_costs[:, None]], dim=1), supply, valid)  # [B, G + 1, K]
        owner = largest_shares(plan[:, :-1], k, self.max_k)  # [B, K], BACKGROUND where no object gets the slot

        matched_gt, quality = to_all_slots(owner, ious, slots, valid, len(grid))
        pairs = pairs_of(matched_gt, most=slots.shape[1])
        traces = None
        if trace:
            wanted, exists = cheapest(allowed, k, self.max_k)
            _, times = owners(wanted, exists, allowed)
            is_wanted = torch.zeros_like(free).scatter(2, wanted, exists)
            steps = {"free": free, "iou": ious, "class_cost": class_costs, "cost": costs, "wanted": is_wanted}
            traces = tuple(
                {
                    "candidates": slots[i, valid[i]],
                    **{name: step[i, : gt.counts[i], valid[i]] for name, step in steps.items()},
                    "background_cost": background_costs[i, valid[i]],
                    "dynamic_k": k[i, : gt.counts[i]],
                    "plan": torch.cat([plan[i, : gt.counts[i]], plan[i, -1:]])[:, valid[i]],
                    "conflicts": slots[i, valid[i] & (times[i] > 1)],
                    "taken": owner[i, valid[i]] == torch.arange(gt.counts[i], device=slots.device)[:, None],
                }
                for i in range(len(gt))
            )
        return Assignment(matched_gt, quality, pairs, pairs, gt, traces)

    def transport(self, costs: Tensor, supply: Tensor, valid: Tensor) -> Tensor:
        """The plan of every image by the chosen solver.

        Args:
            costs: [B, G + 1, K] float, inf where a pair is forbidden; the background is the last row.
            supply: [B, G + 1] int64.
            valid: [B, K] bool; a slot that only fills up demands nothing.

        Returns:
            [B, G + 1, K] float64.
        """
        if self.solver == "sinkhorn":
            return sinkhorn(costs, supply, valid, self.epsilon, self.iterations)
        plan = torch.zeros_like(costs, dtype=torch.float64)
        for i in range(len(plan)):
            plan[i, :, valid[i]] = serve_most(costs[i, :, valid[i]], supply[i])
        return plan


def sinkhorn(
    costs: Tensor, supply: Tensor, demand: Tensor, epsilon: float, iterations: int, halvings: int = 0
) -> Tensor:
    """A cheap plan of transport: the one with the smallest sum of costs less `epsilon` times its entropy.

    Such a plan is exp((row + column - cost) / epsilon) with one number for each row and each column, the potentials.
    Rows and columns are set in turn such that their sums are right. All is done with logarithms, in float64: costs may
    be thousands of times as large as epsilon.

    Args:
        costs: [..., N, M] float; inf where nothing may be sent.
        supply: [..., N], what each row has to send, 0 or more.
        demand: [..., M], what each column is to get, 0 or more.
        epsilon: in units of cost, above 0.
        iterations: how often all rows and then all columns are set, at least 1.
        halvings: start with epsilon doubled so many times, and halve it after every `iterations`. The potentials of a
            large epsilon, found quickly, are a good start for a smaller one.

    Returns:
        [..., N, M] float64, 0 where nothing may be sent. Demands are met up to rounding, unless nothing can reach a
        column, and supplies in the limit of many iterations, if they can be. There is no NaN in it in any case.

    Source: arXiv 1306.0895, algorithm 1; OTA, section 3.1 and appendix.
    """
    if not (epsilon > 0 and iterations >= 1 and halvings >= 0):
        raise MinidetError(
            f"sinkhorn: epsilon is {epsilon}, iterations {iterations} and halvings {halvings}; "
            "they must be above 0, at least 1, and at least 0"
        )
    kind = torch.float32 if costs.device.type == "mps" else torch.float64  # Apple's GPUs know no float64
    costs, log_supply, log_demand = costs.to(kind), supply.to(kind).log(), demand.to(kind).log()
    column = torch.where(demand > 0, 0.0, log_demand)  # [..., M], potentials in units of epsilon
    for halving in reversed(range(halvings + 1)):
        kernel = -costs / (epsilon * 2**halving)
        for _ in range(iterations):
            row = _less(log_supply, (kernel + column[..., None, :]).logsumexp(dim=-1))  # [..., N]
            column = _less(log_demand, (kernel + row[..., :, None]).logsumexp(dim=-2))
        if halving:
            row, column = 2 * row, 2 * column  # the same in the smaller units to come
    return (kernel + row[..., :, None] + column[..., None, :]).exp()


def _less(wanted: Tensor, found: Tensor) -> Tensor:
    """The difference of logarithms; a row or column that nothing can reach (-inf) stays empty."""
    return torch.where(found > -torch.inf, wanted - found, -torch.inf)


def exact_plan(costs: Tensor, supply: Tensor, demand: Tensor) -> Tensor:
    """The cheapest plan of transport, without any approximation.

    Where all demands are 1 and all supplies whole, it is an assignment of columns to rows that come as often as they
    supply. The row with the largest supply, usually the background, is left out of it: it gets all that remains, so
    that its costs are a start from which others differ. With 50 objects, 8400 slots are then no matter. Other supplies
    and demands are a linear program.

    Args:
        costs: [N, M] float; inf where nothing may be sent.
        supply: [N], what each row has to send, 0 or more.
        demand: [M], what each column is to get, 0 or more; the sum is that of `supply`.

    Returns:
        [N, M] float64, on the device of `costs`.

    Raises:
        MinidetError: the sums differ, or there is no plan, because too little may be sent to some columns.
    """
    from scipy.optimize import linear_sum_assignment  # here, because it takes 0.4 s that no other strategy needs

    costs, device = costs.detach().cpu().double(), costs.device
    supply, demand = (amount.detach().cpu().double() for amount in (supply, demand))
    if not torch.isclose(supply.sum(), demand.sum(), rtol=1e-9):
        raise MinidetError(f"exact_plan: the supplies sum to {supply.sum():g}, the demands to {demand.sum():g}")
    if not ((demand == 1).all() and (supply == supply.round()).all()):
        return _linear_program(costs, supply, demand).to(device)

    plan = torch.zeros_like(costs)
    count = supply.long()
    can_rest = costs.isfinite().all(dim=1)  # nothing is forbidden to such a row
    if can_rest.any():
        rest = int(count.where(can_rest, -1).argmax())
        plan[rest] = 1
        costs = costs - costs[rest]
        count[rest] = 0
    object_of = torch.arange(len(count)).repeat_interleave(count)  # [rows that are looked at]
    try:
        row, column = linear_sum_assignment(costs[object_of].numpy())
    except ValueError as error:
        raise MinidetError(f"exact_plan: no plan meets all supplies and demands ({error})") from error
    plan[:, column] = 0
    plan[object_of[row], column] = 1
    return plan.to(device)


def _linear_program(costs: Tensor, supply: Tensor, demand: Tensor) -> Tensor:
    """Minimise the sum of costs times plan, such that rows sum to supplies and columns to demands."""
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    row, column = (place.numpy() for place in costs.isfinite().nonzero(as_tuple=True))
    way, ones = np.arange(len(row)), np.ones(2 * len(row))
    sums = np.concatenate([row, len(supply) + column]), np.concatenate([way, way])  # each way is in two of them
    solution = linprog(
        costs[row, column].numpy(),
        A_eq=csr_array((ones, sums), shape=(len(supply) + len(demand), len(row))),
        b_eq=torch.cat([supply, demand]).numpy(),
    )
    if not solution.success:
        raise MinidetError(f"exact_plan: no plan meets all supplies and demands ({solution.message})")
    plan = torch.zeros_like(costs)
    plan[row, column] = torch.from_numpy(solution.x)
    return plan


def largest_shares(shares: Tensor, k: Tensor, max_k: int) -> Tensor:
    """From shares to owners: each object takes the k slots of which it has most, of a contested one who has most of it.

    Args:
        shares: [B, G, K] float, what each object sends to each slot; where that is nothing, it takes nothing.
        k: [B, G] int64, none above max_k.
        max_k: most that an object takes.

    Returns:
        [B, K] int64, BACKGROUND where no object takes the slot; of equal shares the first object's counts.
    """
    largest, place = shares.topk(min(max_k, shares.shape[2]), dim=2)
    counts = torch.arange(largest.shape[2], device=k.device) < k[..., None]
    bids = torch.zeros_like(shares).scatter(2, place, largest * counts)
    best, owner = bids.max(dim=1)
    return torch.where(best > 0, owner, BACKGROUND)


def serve_most(costs: Tensor, supply: Tensor) -> Tensor:
    """The exact plan of one image; where slots do not suffice, as many as possible are given to objects.

    Each object may keep a label for itself, at a price that nobody pays who has a choice.

    Args:
        costs: [G + 1, K] float, inf where a pair is forbidden; the background, to which nothing is, is the last row.
        supply: [G + 1] int64.

    Returns:
        [G + 1, K] float64, 0 or 1; columns sum to 1.
    """
    (objects, slots), labels = costs[:-1].shape, int(supply[:-1].sum())
    above = (costs[:-1] - costs[-1]).double()
    above = above[above.isfinite()]
    # Whoever keeps a label could change the ways of all others at most; the price is above what that could save.
    price = 1 + labels * float(above.max() - above.min()) + float(above.abs().max()) if len(above) else 1.0
    kept = costs.new_full((objects + 1, labels), price, dtype=torch.float64)
    kept[-1] = 0
    supply = torch.cat([supply[:-1], supply.new_tensor([slots])])  # enough background for every slot
    return exact_plan(torch.cat([costs.double(), kept], dim=1), supply, supply.new_ones(slots + labels))[:, :slots]
