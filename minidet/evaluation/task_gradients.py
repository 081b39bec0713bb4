"""Where classification and localisation pull the same features in different directions.

A head reads one map of each level for two tasks, what an object is and where it is. Each task's loss has a gradient
with respect to that map: a vector of C numbers in every cell, along which the task would change the features. Their
cosine tells whether the tasks agree (1), ignore each other (0) or fight (-1). The paper gives this conflict as the
reason for a head with two branches.

Source: YOLOX, section 2.1 "Decoupled head"; Song et al., arXiv 2003.07540, for the conflict; chapter 08.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minidet.assign import Assignment, DensePredictions
from minidet.detectors import YOLOX, Detector
from minidet.detectors.detector import Images, Target
from minidet.errors import MinidetError
from minidet.evaluation.predict import evaluation_mode
from minidet.layers.pyramid import LEVELS

TASKS = ("class", "box", "objectness")
NOTICEABLE = 0.02


@dataclass(frozen=True)
class HeadInside:
    """What happens inside a head for a batch of B pictures.

    Attributes:
        class_features, box_features: of each level what the class predictor reads and what the predictors of box and
            objectness read, [B, D, H, W] float32, as in evaluation. In a coupled head both are the same numbers.
        predictions: as in evaluation.
        gradients: of each level and task, "class", "box" and "objectness", the gradient of that task's loss with
            respect to the map that the head reads, [B, C, H, W] float32; through the head of that level alone.
        losses: of each task its loss, weighted as in training.
        assignment: from which the losses are.
    """

    class_features: dict[str, Tensor]
    box_features: dict[str, Tensor]
    predictions: DensePredictions
    gradients: dict[str, dict[str, Tensor]]
    losses: dict[str, float]
    assignment: Assignment

    def strength(self, level: str, task: str) -> Tensor:
        """[B, H, W] length of a task's gradient in every cell."""
        return self.gradients[level][task].norm(dim=1)

    def cosines(self, level: str, one: str, other: str) -> Tensor:
        """[B, H, W] cosine of two tasks' gradients in every cell; NaN where one of them hardly has any.

        The norms' means let every cell feel the losses a little, so cells count in which both gradients have at least
        `NOTICEABLE` of their greatest length on the level.
        """
        cosines = cosine(self.gradients[level][one], self.gradients[level][other], dim=1)
        for task in (one, other):
            strength = self.strength(level, task)
            cosines = cosines.masked_fill(strength < NOTICEABLE * strength.max(), torch.nan)
        return cosines

    def cosine(self, level: str, one: str, other: str) -> float:
        """Cosine of two tasks' gradients on a whole level, all pictures and cells together; NaN where one is zero."""
        a, b = (self.gradients[level][task].flatten() for task in (one, other))
        return float(cosine(a, b, dim=0))

    def fighting(self, level: str, one: str, other: str) -> float:
        """Share of the cells in which two tasks' gradients point apart, among those of `cosines`; or NaN."""
        cosines = self.cosines(level, one, other)
        cosines = cosines[cosines.isfinite()]
        return float((cosines < 0).float().mean()) if len(cosines) else float("nan")

    def scores(self, level: str) -> Tensor:
        """[B, H, W] score of the best class, and of the best anchor where there are several, in every cell."""
        grid = self.predictions.grid
        number = LEVELS.index(level)
        best = self.predictions.class_scores().amax(dim=2)[:, grid.levels == number]
        return best.unflatten(1, (*grid.level_shapes[number], grid.anchors_per_cell)).amax(dim=3)


def look_into_head(model: Detector, images: Images, targets: Sequence[Target]) -> HeadInside:
    """Run a YOLOX over pictures, assign, and take the gradient of each task's loss on what the head reads.

    Features and predictions are those of evaluation. Losses and gradients are those of a training step on these
    pictures, so there the norms use the statistics of the pictures themselves. The levels are cut off from the network
    below: what p3 does to p4 on its way up is not the head's doing. Nothing in the model changes.

    Args:
        model: a YOLOX, its head decoupled or coupled.
        images, targets: as for training.

    Raises:
        MinidetError: the model is no YOLOX.

    Source: YOLOX, section 2.1; chapter 08.
    """
    if not isinstance(model, YOLOX):
        name = getattr(model, "name", type(model).__name__)
        raise MinidetError(f"{name} is no YOLOX; only its heads are looked into")
    x, _ = model.network_input(images)
    with evaluation_mode(model), torch.no_grad(), _kept_inputs(model) as read:
        predictions = model.dense_of(x)
    learner = copy.deepcopy(model).train()  # a training step moves the running statistics
    leaves: dict[str, Tensor] = {}

    def cut_off(_head: Any, inputs: tuple[list[Tensor]]) -> tuple[list[Tensor]]:
        leaves.update({name: level.detach().requires_grad_() for name, level in zip(LEVELS, inputs[0], strict=True)})
        return (list(leaves.values()),)

    learner.head.register_forward_pre_hook(cut_off)
    with torch.enable_grad():
        learned = learner.dense_of(x)
        gt = learner.ground_truth(images, targets)
        assignment = learner.assign_of(learned.detach(), gt, trace=False)
        losses = learner.losses_of(learned, assignment, gt)
    gradients: dict[str, dict[str, Tensor]] = {name: {} for name in LEVELS}
    for task in TASKS:
        of_task = torch.autograd.grad(
            losses[f"loss_{task}"], list(leaves.values()), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(LEVELS, of_task, strict=True):
            gradients[name][task] = torch.zeros_like(leaves[name]) if gradient is None else gradient
    return HeadInside(
        class_features={name: read[name, "class"] for name in LEVELS},
        box_features={name: read[name, "box"] for name in LEVELS},
        predictions=predictions,
        gradients=gradients,
        losses={task: float(losses[f"loss_{task}"].detach()) for task in TASKS},
        assignment=assignment,
    )


@contextmanager
def _kept_inputs(model: YOLOX) -> Iterator[dict[tuple[str, str], Tensor]]:
    """Keeps what the predictors of every level read, by (level, task)."""
    read: dict[tuple[str, str], Tensor] = {}

    def keep(*key: str) -> Any:
        def hook(_predictor: Any, inputs: tuple[Tensor]) -> None:
            read[key] = inputs[0].detach()

        return hook

    hooks = []
    for name, level in zip(LEVELS, model.head.levels, strict=True):
        hooks.append(level.class_predictor.register_forward_pre_hook(keep(name, "class")))
        hooks.append(level.box_predictor.register_forward_pre_hook(keep(name, "box")))
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def cosine(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Cosine of the angle between vectors along one dimension; NaN where one of them is zero."""
    directions = [each / each.norm(dim=dim, keepdim=True) for each in (a, b)]  # 0 / 0 is NaN
    return (directions[0] * directions[1]).sum(dim=dim).clamp(-1, 1)
