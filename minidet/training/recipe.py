"""How a detector is trained, as plain numbers: recipe, learning rate, image sizes, and the optimiser's groups.

Source: YOLOX, sections 2.1 and 3; chapter 11.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from minidet.data.augment import Augmentation, random_size
from minidet.errors import RunError

NORMALISATIONS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how training goes, apart from the model and the data.

    Raises:
        RunError: a number makes no sense; the text names the field, its value and what is possible.

    Source: YOLOX, section 2.1 "implementation details"; chapter 11.
    """

    epochs: int = 300  # passes over the training set
    batch_size: int = 64  # images a step
    base_lr: float = 0.01  # learning rate for a batch of 64; another batch size scales it linearly
    warmup_epochs: float = 5  # the learning rate rises to its top as a parabola
    final_epochs: int = 15  # flat learning rate at the end; the closing phase covers one epoch more (see is_closing)
    min_lr_ratio: float = 0.05  # the flat end, as a part of the top
    momentum: float = 0.9  # of SGD, in Nesterov's form
    weight_decay: float = 5e-4  # on weights only; normalisation and biases are left alone
    clip_grad_norm: float | None = None  # longest gradient; None: gradients stay as they are (published)
    ema_decay: float = 0.9998  # the averaged weights' memory, reached slowly ...
    ema_ramp: int = 2000  # ... over about so many steps
    augmentation: Augmentation | None = None  # None: the published one of the model
    multi_scale: tuple[int, int] | Literal["published"] | None = (
        "published"  # lowest and highest height; None: one size
    )
    multi_scale_every: int = 10  # steps between two sizes
    eval_every: int = 10  # epochs between two evaluations; the last epoch is always evaluated
    eval_closing: bool = True  # evaluate every epoch of the closing phase
    checkpoint_every: int = 1  # epochs between two checkpoints
    keep_last: int = 2  # checkpoints kept, besides the best one

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= lowest):
                raise RunError(f"recipe: {name} is {value}, but it must be a finite number, {lowest} or more.")
        for name in ("base_lr", "clip_grad_norm"):
            if getattr(self, name) == 0:
                raise RunError(f"recipe: {name} is 0, so nothing could be learned. Choose a positive number.")
        for name in ("momentum", "min_lr_ratio", "ema_decay"):
            if getattr(self, name) > 1 or (name != "min_lr_ratio" and getattr(self, name) == 1):
                raise RunError(f"recipe: {name} is {getattr(self, name)}, but it is a share and must lie below 1.")
        if isinstance(self.multi_scale, (tuple, list)):
            low, high = self.multi_scale
            if not 32 <= low <= high or low % 32 or high % 32:
                raise RunError(
                    f"recipe: multi_scale is ({low}, {high}), but it needs two heights in pixels, the lower one first, "
                    "both multiples of 32: for example (320, 640)."
                )

    def is_closing(self, epoch: int) -> bool:
        """Whether an epoch (from 0) belongs to the closing phase: no strong augmentation, and the L1 loss is on.

        The official test compares the 1-based epoch with `epochs - final_epochs`, so the phase is one epoch longer
        than the flat learning rate: 16 of 300. A run no longer than that is closing from its first epoch.
        """
        return self.final_epochs > 0 and epoch + 1 >= self.epochs - self.final_epochs

    def evaluates_after(self, epoch: int) -> bool:
        """Whether the averaged model is evaluated when this epoch (from 0) is over."""
        return (
            (epoch + 1) % self.eval_every == 0
            or epoch + 1 == self.epochs
            or (self.eval_closing and self.is_closing(epoch))
        )

    def resolved(self, model_name: str, input_hw: tuple[int, int]) -> Recipe:
        """The same recipe with everything that is "published" or None put in numbers for one model."""
        return dataclasses.replace(
            self,
            augmentation=self.augmentation or published_augmentation(model_name),
            multi_scale=published_sizes(model_name, input_hw) if self.multi_scale == "published" else self.multi_scale,
        )

    def warnings(self) -> list[str]:
        """What will surprise somebody who runs this recipe: phases that do not fit into its epochs."""
        notes = []
        if self.epochs < self.warmup_epochs:
            notes.append(
                f"the run ends ({self.epochs} epochs) before the warm-up does ({self.warmup_epochs:g}), so the "
                "learning rate never reaches its top. Lower warmup_epochs."
            )
        elif self.epochs < self.warmup_epochs + self.final_epochs:
            notes.append(
                f"warm-up ({self.warmup_epochs:g} epochs) and final phase ({self.final_epochs}) do not fit into "
                f"{self.epochs} epochs, so the learning rate drops to its end after the warm-up. Lower one of them."
            )
        if self.is_closing(0):
            notes.append(
                f"all {self.epochs} epochs belong to the closing phase, so there is no strong augmentation at all "
                f"(final_epochs is {self.final_epochs})."
            )
        return notes


_LOWEST = {
    "epochs": 1,
    "batch_size": 1,
    "base_lr": 0,
    "warmup_epochs": 0,
    "final_epochs": 0,
    "min_lr_ratio": 0,
    "momentum": 0,
    "weight_decay": 0,
    "clip_grad_norm": 0,
    "ema_decay": 0,
    "ema_ramp": 1,
    "multi_scale_every": 1,
    "eval_every": 1,
    "checkpoint_every": 1,
    "keep_last": 1,
}

# A short run has no time for mosaics: every second picture is scaled and shifted a little instead, and none is turned,
# so that boxes stay tight.
LIGHT = Augmentation(mosaic_prob=0, mixup_prob=0, affine_prob=0.5, degrees=0, shear=0)

RECIPES: dict[str, Recipe] = {
    # What the published models were trained with.
    "yolox": Recipe(),
    # Small data and minutes instead of days: the same ideas, every phase shorter.
    "course": Recipe(
        epochs=75,
        batch_size=8,  # where time is short, many small steps teach more than few large ones
        base_lr=0.16,  # so 0.02 at this batch size, far above the published one: a few thousand steps have to do
        warmup_epochs=1,
        final_epochs=8,
        ema_decay=0.998,
        ema_ramp=200,
        augmentation=LIGHT,
        multi_scale=None,
        eval_every=1000,  # the last epoch is always evaluated; more would cost a short run its time
        eval_closing=False,
    ),
}


def published_augmentation(model_name: str) -> Augmentation:
    """The augmentation that a variant was published with: the smaller the model, the gentler.

    Source: YOLOX, table 5; the numbers are those of the official experiment files.
    """
    if model_name == "yolox-nano":
        return Augmentation(mosaic_prob=0.5, mosaic_scale=(0.5, 1.5), mixup_prob=0.0)
    if model_name == "yolox-tiny":
        return Augmentation(mosaic_prob=1.0, mosaic_scale=(0.5, 1.5), mixup_prob=0.0)
    return Augmentation(mosaic_prob=1.0, mosaic_scale=(0.1, 2.0), mixup_prob=1.0)


def published_sizes(model_name: str, input_hw: tuple[int, int]) -> tuple[int, int]:
    """Lowest and highest height of multi-scale training: 320 and 640 for nano and tiny at 416, else 160 px around."""
    height = input_hw[0]
    if model_name in ("yolox-nano", "yolox-tiny") and height == 416:
        return 320, 640
    return max(32, height - 160), height + 160


def learning_rate(iteration: int, iterations_per_epoch: int, recipe: Recipe, batch_size: int) -> float:
    """Learning rate that is set after an iteration: a parabola up, half a cosine down, then flat.

    The official code sets the value for iteration i *after* step i, so step i + 1 is the first to use it. The very
    first step therefore runs at `learning_rate(0, ...)`: 0 when there is a warm-up, so it only fills the momentum.

    Args:
        iteration: 1-based; 0 gives the rate of the very first step.
        iterations_per_epoch: steps an epoch.
        recipe: base_lr, epochs, warmup_epochs, final_epochs and min_lr_ratio are used.
        batch_size: images a step over all processes; the rate is proportional to it.

    Source: YOLOX, section 2.1; chapter 11.
    """
    top = recipe.base_lr / 64 * batch_size
    lowest = top * recipe.min_lr_ratio
    total = recipe.epochs * iterations_per_epoch
    warmup = recipe.warmup_epochs * iterations_per_epoch
    flat = recipe.final_epochs * iterations_per_epoch
    if iteration <= warmup and warmup > 0:
        return top * (iteration / warmup) ** 2
    if iteration >= total - flat:
        return lowest
    return lowest + 0.5 * (top - lowest) * (1 + math.cos(math.pi * (iteration - warmup) / (total - warmup - flat)))


def training_size(iteration: int, recipe: Recipe, input_hw: tuple[int, int], seed: int) -> tuple[int, int]:
    """Network input size (height, width) of a step, counted from 0: a new one every `multi_scale_every` steps.

    Heights are drawn uniformly from the multiples of 32 in the recipe's range, widths follow the shape of `input_hw`;
    the steps before the first draw use `input_hw` itself. The draw depends on seed and step alone.

    Source: YOLOX, section 2.1; the order of draws is our own.
    """
    draw = iteration // recipe.multi_scale_every
    if recipe.multi_scale is None or draw == 0:
        return input_hw
    return random_size(np.random.default_rng([seed, draw]), recipe.multi_scale, input_hw)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Sort the trainable parameters into three groups, of which only the second one decays.

    Args:
        model: any module; frozen parameters are left out, shared ones appear once.
        weight_decay: of the second group.

    Returns:
        Groups for a torch optimiser, always in this order: "norms" (weights of normalisation layers, and whatever
        else is a vector or a number), "weights" (of convolutions and linear layers), "biases". A group may be empty.

    Source: YOLOX, official code; chapter 11.
    """
    norms, weights, biases = [], [], []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            if name.endswith("bias"):
                biases.append(parameter)
            elif isinstance(module, NORMALISATIONS) or parameter.ndim < 2:
                norms.append(parameter)
            else:
                weights.append(parameter)
    return [
        {"name": "norms", "params": norms, "weight_decay": 0.0},
        {"name": "weights", "params": weights, "weight_decay": weight_decay},
        {"name": "biases", "params": biases, "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov's momentum over the three parameter groups; the rate is that of the very first step."""
    groups = parameter_groups(model, recipe.weight_decay)
    if not any(group["params"] for group in groups):
        raise RunError("the model has no parameter that can be trained: all of them are frozen.")
    rate = learning_rate(0, 1, recipe, recipe.batch_size)
    # One fused pass over all tensors takes a third of the time that a loop over them takes.
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=fused)
