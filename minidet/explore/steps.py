"""From one step of a strategy to what is drawn and said about it. All numbers are those of the strategy's own trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minidet.assign import (
    ATSS,
    IGNORED,
    OTA,
    POTO,
    Assigner,
    Assignment,
    BestAnchor,
    CentreSampling,
    DensePredictions,
    MaxIoU,
    SimOTA,
    UniformMatching,
)
from minidet.boxes import pairwise_iou
from minidet.draw.assignment import (
    BY_ANCHOR,
    BY_PREDICTION,
    CANDIDATE,
    CONFLICT,
    DROPPED,
    HEATED,
    NO_VALUE,
    OTHER,
    POSITIVE,
    Marks,
)
from minidet.draw.assignment import IGNORED as IGNORED_MARK

NEAREST = 200  # slots of which the step "distances" tells how far they are; all others are farther
ROWS, COLUMNS = 12, 16  # most of a table
WORST = NO_VALUE - 1


@dataclass(frozen=True)
class Case:
    """What the steps look at: one picture, one model, one strategy, and what the strategy decided.

    Attributes:
        rule: the strategy.
        predictions: of one image.
        assignment: of that image, with its trace.
        names: what each object is called, "3 star".
        selected: row of the object that is looked at closely, or None where there is no object.
    """

    rule: Assigner
    predictions: DensePredictions
    assignment: Assignment
    names: Sequence[str]
    selected: int | None

    @cached_property
    def trace(self) -> dict[str, Tensor]:
        return self.assignment.trace[0]

    @cached_property
    def matched_gt(self) -> np.ndarray:
        return self.assignment.matched_gt[0].numpy()

    @cached_property
    def levels(self) -> np.ndarray:
        return self.predictions.grid.levels.numpy()

    @cached_property
    def claims(self) -> tuple[np.ndarray, np.ndarray]:
        """Who asked for what: slot [N] and object [N] of every request, by slot, then by object; none twice."""
        slot, gt = claims_of(self.rule, self.trace)
        count = max(len(self.names), 1)
        return np.divmod(np.unique(slot * count + gt), count)

    @cached_property
    def conflicts(self) -> np.ndarray:
        """The slots that several objects asked for, [N] ascending."""
        slot, _ = self.claims
        return np.unique(slot[1:][slot[1:] == slot[:-1]])

    def claimants(self, slot: int) -> list[int]:
        """The objects that asked for a slot."""
        slots, gts = self.claims
        return gts[slots == slot].tolist()

    def where(self, slot: int) -> str:
        """A slot in words: "slot 812 (stride 16)"."""
        return f"slot {slot} (stride {self.predictions.grid.strides[slot]:g})"

    def name(self, gt: int) -> str:
        return self.names[gt] if gt >= 0 else "ignored" if gt == IGNORED else "nobody"


@dataclass(frozen=True)
class Explanation:
    """What a step means here, for people.

    Attributes:
        text: sentences.
        columns: heads of the table's columns; the first is that of its rows.
        rows: for each row its cells: text, or [text, heat from 0 (best) to 1 (worst)].
    """

    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()

    def as_json(self) -> dict[str, Any]:
        return {"text": self.text, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}


Step = Callable[[Case], tuple[Marks, Explanation]]


def claims_of(rule: Assigner, trace: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Every request of an object for a slot, before conflicts are settled: slot [N] and object [N] int64.

    (numpy finds the few places that are true in a large mask many times faster than torch does.)
    """
    if isinstance(rule, UniformMatching):
        return trace["pair_slot"].numpy(), trace["pair_gt"].numpy()
    if isinstance(rule, SimOTA | OTA | ATSS):
        gt, column = np.nonzero(trace["wanted"].numpy())
        candidates = trace["candidates"].numpy()
        return (candidates[gt, column] if candidates.ndim == 2 else candidates[column]), gt
    if isinstance(rule, CentreSampling | BestAnchor):
        gt, slot = np.nonzero(trace["candidates"].numpy())
    elif isinstance(rule, MaxIoU):
        gt, slot = np.nonzero(((trace["iou"] >= rule.positive_iou) | trace["low_quality"]).numpy())
    else:  # one-to-one: all objects are served together
        gt, column = np.nonzero(trace["taken"].numpy())
        slot = trace["candidates"].numpy()[column]
    return slot, gt


# ---- every strategy's last step -------------------------------------------------------------------------------------


def result(case: Case) -> tuple[Marks, Explanation]:
    """Who learns what in the end."""
    matched = case.matched_gt
    positive, ignored = np.flatnonzero(matched >= 0), np.flatnonzero(matched == IGNORED)
    marks = [
        Marks.of(IGNORED_MARK, ignored),
        Marks.of(POSITIVE, positive, matched[positive]),
        Marks.of(CONFLICT, case.conflicts, matched[case.conflicts]),
    ]
    return Marks.joined(marks), Explanation("Filled slots learn the object of their number.", *_conflict_table(case))


def _conflict_table(case: Case) -> tuple[Sequence[str], list[list[Any]]]:
    if not len(case.conflicts):
        return (), []
    slots = sorted(case.conflicts.tolist(), key=lambda slot: case.selected not in case.claimants(slot))
    rows = [
        [
            case.where(slot),
            ", ".join(_bid(case, gt, slot) for gt in case.claimants(slot)),
            case.name(case.matched_gt[slot]),
        ]
        for slot in slots[:ROWS]
    ]
    if len(slots) > ROWS:
        rows.append([f"and {len(slots) - ROWS} more", "", ""])
    return ("contested", "wanted by", "goes to"), rows


def _bid(case: Case, gt: int, slot: int) -> str:
    """An object that wants a slot, with the number that decides where there is one."""
    if isinstance(case.rule, SimOTA | OTA):
        return f"{case.names[gt]} ({case.trace['cost'][gt, column_of(case.trace['candidates'], slot)]:.2f})"
    if isinstance(case.rule, MaxIoU):
        return f"{case.names[gt]} ({case.trace['iou'][gt, slot]:.2f})"
    if isinstance(case.rule, ATSS):
        return f"{case.names[gt]} ({case.trace['iou'][gt, column_of(case.trace['candidates'][gt], slot)]:.2f})"
    if isinstance(case.rule, CentreSampling):
        return f"{case.names[gt]} ({case.trace['area'][gt]:.0f} px²)"
    return case.names[gt]


def column_of(candidates: Tensor, slot: int) -> int | None:
    """Where a slot stands in a list of candidates, or None."""
    found = np.flatnonzero(candidates.numpy() == slot)
    return int(found[0]) if len(found) else None


# ---- SimOTA ---------------------------------------------------------------------------------------------------------


def simota_candidates(case: Case) -> tuple[Marks, Explanation]:
    """Step 1: which slots are looked at."""
    candidates, free = case.trace["candidates"].numpy(), case.trace["free"].numpy()
    marks = [Marks.of(OTHER, candidates)]
    if case.selected is None:
        return Marks.joined(marks), Explanation("There is no object, so there is no candidate.")
    own = candidates[free[case.selected]]
    marks.append(Marks.of(CANDIDATE, own, case.selected))
    strides = case.predictions.grid.strides.numpy()
    levels = [f"{np.count_nonzero(strides[own] == stride)} on stride {stride:g}" for stride in np.unique(strides)]
    text = (
        f"{len(candidates)} of {len(strides)} slots are candidates of some object, all others are background at once. "
        f"Object {case.names[case.selected]} has {len(own)} {_own(case.rule)}: {', '.join(levels)}."
    )
    return Marks.joined(marks), Explanation(text)


def _own(rule: Assigner) -> str:
    """What an object has in its own centre square, in words."""
    return "without penalty" if isinstance(rule, SimOTA) else "of its own"


def simota_costs(case: Case) -> tuple[Marks, Explanation]:
    """Step 2: what each pair costs."""
    if case.selected is None:
        return Marks.of(OTHER, np.zeros(0)), Explanation("There is no object, so nothing has a cost.")
    candidates, cost, free = (case.trace[name].numpy() for name in ("candidates", "cost", "free"))
    own = np.flatnonzero(free[case.selected])
    own = own[np.argsort(cost[case.selected, own], kind="stable")]
    marks = Marks.of(HEATED, candidates[own], case.selected, _scaled(cost[case.selected, own]))
    # The rows: the object, then those that could have one of its slots too.
    shown = own[:COLUMNS]
    rivals = [gt for gt in np.flatnonzero(free[:, shown].any(axis=1)).tolist() if gt != case.selected]
    matrix = cost[[case.selected, *rivals[: ROWS - 1]]][:, shown]
    low, high = _range(cost[case.selected, own])
    rows = [
        [case.names[gt], *([_cost_text(value), _share(value, low, high)] for value in line.tolist())]
        for gt, line in zip([case.selected, *rivals], matrix, strict=False)
    ]
    outside = f"{case.rule.outside_penalty:,.0f} more" if isinstance(case.rule, SimOTA) else "forbidden"
    text = (
        f"Cost = class cost + {case.rule.iou_weight:g} × (−log IoU), and {outside} outside the region. "
        f"The {len(shown)} cheapest slots of object {case.names[case.selected]}, and what they cost others:"
    )
    return marks, Explanation(text, ["object", *map(str, candidates[shown].tolist())], rows)


def simota_dynamic_k(case: Case) -> tuple[Marks, Explanation]:
    """Step 3: how many slots each object deserves."""
    if case.selected is None:
        return Marks.of(OTHER, np.zeros(0)), Explanation("There is no object, so there is no k.")
    candidates, iou = case.trace["candidates"].numpy(), case.trace["iou"][case.selected].numpy()
    best = np.argsort(-iou, kind="stable")[: case.rule.max_k]
    marks = Marks.of(HEATED, candidates[best], case.selected, np.round(WORST * (1 - iou[best])))
    sums = np.cumsum(iou[best])
    rows = [
        [rank, case.where(int(candidates[place])), [f"{iou[place]:.2f}", 1 - float(iou[place])], f"{total:.2f}"]
        for rank, (place, total) in enumerate(zip(best.tolist(), sums.tolist(), strict=True), 1)
    ]
    k = int(case.trace["dynamic_k"][case.selected])
    total = f"{sums[-1]:.2f}" if len(sums) else "0"
    text = (
        f"The {len(best)} largest IoUs of object {case.names[case.selected]} with predictions of candidates add up to "
        f"{total}. Rounded down, and at least 1 if there is a candidate: k = {k}."
    )
    return marks, Explanation(text, ("rank", "slot", "IoU", "sum"), rows)


def simota_conflicts(case: Case) -> tuple[Marks, Explanation]:
    """Step 4: slots that several objects take."""
    slot, gt = case.claims
    # Of a contested slot the selected object's request is drawn, if it is one of them.
    order = np.argsort(gt == case.selected, kind="stable") if case.selected is not None else np.arange(len(gt))
    marks = [Marks.of(POSITIVE, slot[order], gt[order]), Marks.of(CONFLICT, case.conflicts)]
    text = "Each object takes its k cheapest slots. "
    if len(case.conflicts):
        text += (
            f"{len(case.conflicts)} are taken by several (ringed). Such a slot goes to the object that it costs least, "
            "even one that did not ask for it."
        )
    else:
        text += "No slot is taken twice."
    return Marks.joined(marks), Explanation(text, *_conflict_table(case))


# ---- OTA ------------------------------------------------------------------------------------------------------------


def ota_plan(case: Case) -> tuple[Marks, Explanation]:
    """Step 4: how all labels are carried to slots at once."""
    if case.selected is None:
        return Marks.of(OTHER, np.zeros(0)), Explanation("There is no object, so there is nothing to carry.")
    candidates, plan = case.trace["candidates"].numpy(), case.trace["plan"].numpy().clip(0, 1)
    own = np.flatnonzero(case.trace["free"][case.selected].numpy())
    own = own[np.argsort(-plan[case.selected, own], kind="stable")]
    marks = Marks.of(HEATED, candidates[own], case.selected, np.round(WORST * (1 - plan[case.selected, own])))
    shown = own[:COLUMNS]
    rivals = [gt for gt in np.flatnonzero((plan[:-1, shown] > 0.005).any(axis=1)).tolist() if gt != case.selected]
    lines = [*((case.names[gt], plan[gt]) for gt in [case.selected, *rivals][: ROWS - 1]), ("background", plan[-1])]
    rows = [[name, *([f"{share:.2f}", 1 - share] for share in line[shown].tolist())] for name, line in lines]
    text = (
        "All objects and the background share out the slots in one plan. "
        f"Object {case.names[case.selected]} has {int(case.trace['dynamic_k'][case.selected])} to give and sends "
        f"{plan[case.selected].sum():.2f}. It takes so many slots as it has to give, those of which it has most."
    )
    return marks, Explanation(text, ["share of", *map(str, candidates[shown].tolist())], rows)


# ---- uniform matching -----------------------------------------------------------------------------------------------


def uniform_distances(case: Case) -> tuple[Marks, Explanation]:
    """Step 1: how far each prediction is from the object."""
    if case.selected is None:
        return Marks.of(OTHER, np.zeros(0)), Explanation("There is no object to be near to.")
    predicted, anchors = (case.trace[name][case.selected] for name in ("pred_distance", "anchor_distance"))
    near = predicted.topk(min(NEAREST, len(predicted)), largest=False).indices.numpy()[::-1]  # the nearest on top
    marks = Marks.of(HEATED, near, case.selected, _scaled(predicted.numpy()[near]))
    rows = [[case.where(slot), f"{predicted[slot]:.0f}", f"{anchors[slot]:.0f}"] for slot in near[::-1][:ROWS].tolist()]
    text = (
        "Distance = |Δx| + |Δy| + |Δw| + |Δh| in pixels of the network's input, once from the predicted box, once from "
        f"the anchor. The slots whose predictions are nearest to object {case.names[case.selected]}:"
    )
    return marks, Explanation(text, ("slot", "of the prediction", "of the anchor"), rows)


LISTS = {"predictions": ("nearest_predictions", BY_PREDICTION), "anchors": ("nearest_anchors", BY_ANCHOR)}


def uniform_nearest(case: Case) -> tuple[Marks, Explanation]:
    """Step 2: the k nearest predictions and the k nearest anchors."""
    slot, _ = case.claims
    marks = [Marks.of(OTHER, slot)]
    if case.selected is None:
        return Marks.joined(marks), Explanation("There is no object, so both lists are empty.")
    columns, lists = ["rank"], []
    for source in ("anchors", "predictions"):  # predictions are drawn last, on top
        if source in case.rule.sources:
            name, kind = LISTS[source]
            nearest = case.trace[name][case.selected].numpy()
            marks.append(Marks.of(kind, nearest, case.selected, np.arange(1, len(nearest) + 1)))
            columns.insert(1, f"by {source[:-1]}")
            lists.insert(0, nearest.tolist())
    rows = [[rank, *map(case.where, slots)] for rank, slots in enumerate(zip(*lists, strict=True), 1)]
    text = (
        f"Object {case.names[case.selected]} takes the {case.rule.k} nearest slots of each list, whatever they "
        "overlap; every object takes the same number. A slot can be in both lists."
    )
    return Marks.joined(marks), Explanation(text, columns, rows)


def uniform_thresholds(case: Case) -> tuple[Marks, Explanation]:
    """Step 3: which pairs are too poor to learn, and which background is too good to be called so."""
    slot, gt, overlap, dropped = (
        case.trace[name].numpy() for name in ("pair_slot", "pair_gt", "pair_iou", "pair_ignored")
    )
    covering = np.flatnonzero(case.trace["covering"].numpy())
    marks = [
        Marks.of(IGNORED_MARK, covering),
        Marks.of(DROPPED, slot[dropped], gt[dropped]),
        Marks.of(POSITIVE, slot[~dropped], gt[~dropped]),
    ]
    text = (
        f"{np.count_nonzero(dropped)} of {len(slot)} pairs have an anchor IoU below {case.rule.min_anchor_iou:g} and "
        f"are ignored; {len(covering)} slots predict a box with IoU above {case.rule.max_background_iou:g}, so as "
        "background they are ignored too."
    )
    own = np.flatnonzero(gt == case.selected)
    rows = [
        [case.where(int(slot[pair])), f"{overlap[pair]:.2f}", "ignored" if dropped[pair] else "positive"]
        for pair in own[np.argsort(-overlap[own], kind="stable")].tolist()
    ]
    return Marks.joined(marks), Explanation(text, ("pair", "anchor IoU", "is"), rows[: 2 * ROWS])


STEPS: dict[type, tuple[tuple[str, Step], ...]] = {
    SimOTA: (
        ("Candidates", simota_candidates),
        ("Costs", simota_costs),
        ("Dynamic k", simota_dynamic_k),
        ("Conflicts", simota_conflicts),
        ("Result", result),
    ),
    OTA: (
        ("Candidates", simota_candidates),
        ("Costs", simota_costs),
        ("Dynamic k", simota_dynamic_k),
        ("Plan", ota_plan),
        ("Result", result),
    ),
    UniformMatching: (
        ("Distances", uniform_distances),
        ("Nearest k", uniform_nearest),
        ("Thresholds", uniform_thresholds),
        ("Result", result),
    ),
}


def steps_of(rule: Assigner) -> tuple[tuple[str, Step], ...]:
    """The steps that a strategy can be followed through; the last one is its result."""
    return STEPS.get(type(rule), (("Result", result),))


# ---- one slot -------------------------------------------------------------------------------------------------------


def slot_numbers(case: Case, slot: int) -> tuple[str, list[str], list[list[Any]]]:
    """The numbers behind one slot: a line about it, and for every object a row of what the strategy looks at.

    Returns:
        Text, heads of the columns, and rows; a row begins with the object. Objects that are nearer to owning it come
        first.
    """
    predictions = case.predictions
    scores = predictions.class_scores()[0, slot]
    box, anchor = predictions.boxes[0, slot], predictions.grid.anchor_boxes[slot]
    text = f"{case.where(slot)}: {case.name(int(case.matched_gt[slot]))}"
    if case.matched_gt[slot] >= 0:
        text = f"{case.where(slot)} learns {case.name(int(case.matched_gt[slot]))}"
    text += (
        f". It predicts a box of {box[2] - box[0]:.0f} × {box[3] - box[1]:.0f} px around "
        f"({(box[0] + box[2]) / 2:.0f}, {(box[1] + box[3]) / 2:.0f}), best class score {scores.max():.2f}."
    )
    gt_boxes = case.assignment.gt.boxes_of(0)
    columns: dict[str, tuple[Tensor, str]] = {}
    order = None
    if isinstance(case.rule, SimOTA):
        place = column_of(case.trace["candidates"], slot)
        if place is None:
            text += " It is no candidate."
        else:
            cost, free = case.trace["cost"][:, place], case.trace["free"][:, place]
            columns = {
                "class cost": (case.trace["class_cost"][:, place], ".2f"),
                "IoU": (case.trace["iou"][:, place], ".2f"),
                "penalty": (torch.where(free, 0.0, case.rule.outside_penalty), ",.0f"),
                "cost": (cost, ",.2f"),
                "rank": ((case.trace["cost"] < cost[:, None]).sum(dim=1) + 1, "d"),
                "k": (case.trace["dynamic_k"], "d"),
                "wants it": (case.trace["wanted"][:, place], "yes"),
            }
            order = cost
    elif isinstance(case.rule, OTA):
        place = column_of(case.trace["candidates"], slot)
        if place is None:
            text += " It is no candidate."
        else:
            text += f" As background it costs {case.trace['background_cost'][place]:.2f}."
            columns = {
                "class cost": (case.trace["class_cost"][:, place], ".2f"),
                "IoU": (case.trace["iou"][:, place], ".2f"),
                "allowed": (case.trace["free"][:, place], "yes"),
                "cost": (case.trace["cost"][:, place], ",.2f"),
                "k": (case.trace["dynamic_k"], "d"),
                "share": (case.trace["plan"][:-1, place], ".2f"),
            }
            order = case.trace["cost"][:, place]
    elif isinstance(case.rule, UniformMatching):
        predicted, anchors = case.trace["pred_distance"], case.trace["anchor_distance"]
        columns = {
            "distance of the prediction": (predicted[:, slot], ".0f"),
            "its rank": ((predicted < predicted[:, slot, None]).sum(dim=1) + 1, "d"),
            "distance of the anchor": (anchors[:, slot], ".0f"),
            "rank": ((anchors < anchors[:, slot, None]).sum(dim=1) + 1, "d"),
            "anchor IoU": (pairwise_iou(gt_boxes, anchor[None])[:, 0], ".2f"),
            "predicted IoU": (pairwise_iou(gt_boxes, box[None])[:, 0], ".2f"),
        }
        order = torch.minimum(predicted[:, slot], anchors[:, slot])
    elif isinstance(case.rule, MaxIoU):
        overlap = case.trace["iou"]
        columns = {
            "anchor IoU": (overlap[:, slot], ".2f"),
            "rank": ((overlap > overlap[:, slot, None]).sum(dim=1) + 1, "d"),
            "best anchor": (case.trace["low_quality"][:, slot], "yes"),
        }
        order = -overlap[:, slot]
    elif isinstance(case.rule, ATSS):
        is_slot = case.trace["candidates"] == slot  # [G, K]
        chosen = is_slot.any(dim=1)
        place = is_slot.int().argmax(dim=1)[:, None]
        own = {name: case.trace[name].gather(1, place)[:, 0] for name in ("distance", "iou", "inside", "wanted")}
        columns = {
            "candidate": (chosen, "yes"),
            "distance": (own["distance"].where(chosen, torch.nan), ".0f"),
            "anchor IoU": (pairwise_iou(gt_boxes, anchor[None])[:, 0], ".2f"),
            "threshold": (case.trace["threshold"], ".2f"),
            "centre inside": (own["inside"] & chosen, "yes"),
            "wants it": (own["wanted"] & chosen, "yes"),
        }
        order = -columns["anchor IoU"][0]
    elif isinstance(case.rule, CentreSampling):
        level = torch.as_tensor(int(case.levels[slot]))
        columns = {
            "its level": (case.trace["level"] == level, "yes"),
            "near the centre": (case.trace["near"][:, slot], "yes"),
            "wants it": (case.trace["candidates"][:, slot], "yes"),
            "area, px²": (case.trace["area"], ".0f"),
        }
        order = case.trace["area"] - 1e9 * case.trace["candidates"][:, slot]
    elif isinstance(case.rule, BestAnchor):
        best = case.trace["shape_iou"].amax(dim=1)
        columns = {
            "shape IoU with its best anchor": (best, ".2f"),
            "wants it": (case.trace["candidates"][:, slot], "yes"),
            "predicted IoU": (pairwise_iou(gt_boxes, box[None])[:, 0], ".2f"),
        }
        order = -best - 2 * case.trace["candidates"][:, slot]
    elif isinstance(case.rule, POTO):
        place = column_of(case.trace["candidates"], slot)
        if place is None:
            text += " It is no candidate: it is near no object's centre, or its prediction is not finite."
        else:
            columns = {
                "near the centre": (case.trace["free"][:, place], "yes"),
                "score": (case.trace["score"][:, place], ".4f"),
                "IoU": (case.trace["iou"][:, place], ".2f"),
                "quality": (case.trace["quality"][:, place], ".3f"),
            }
            order = -case.trace["quality"][:, place] - case.trace["free"][:, place].float()
    else:
        place = column_of(case.trace["candidates"], slot)
        if place is None:
            text += " It is no candidate: its prediction is not finite."
        else:
            cost = case.trace["cost"][:, place]
            columns = {
                "class cost": (case.trace["class_cost"][:, place], ".2f"),
                "L1": (case.trace["l1_cost"][:, place], ".2f"),
                "−GIoU": (case.trace["giou_cost"][:, place], ".2f"),
                "cost": (cost, ".2f"),
                "rank": ((case.trace["cost"] < cost[:, None]).sum(dim=1) + 1, "d"),
            }
            order = cost
    if order is None or not case.names:
        return text, [], []
    owner = int(case.matched_gt[slot])
    ranked = sorted(torch.argsort(order, stable=True).tolist(), key=lambda gt: gt != owner)
    values = [(tensor.tolist(), form) for tensor, form in columns.values()]
    rows = [[case.names[gt], *(_cell(numbers[gt], form) for numbers, form in values)] for gt in ranked]
    return text, ["object", *columns], rows


def _cell(value: Any, form: str) -> str:
    if form == "yes":
        return "yes" if value else "–"
    return "–" if value != value else format(value, form)  # NaN alone is not itself


# ---- numbers to shades ----------------------------------------------------------------------------------------------


def _range(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def _share(value: float, low: float, high: float) -> float:
    """From 0 at `low` to 1 at `high` and above."""
    if not np.isfinite(value):
        return 1.0
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.0


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = _range(values)
    if high <= low:
        return np.zeros(len(values))
    return np.round(WORST * np.nan_to_num((values - low) / (high - low), nan=1.0, posinf=1.0).clip(0, 1))


def _cost_text(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0e}".replace("e+0", "e")
