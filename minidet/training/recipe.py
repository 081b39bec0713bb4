"""How a detector is trained, as plain numbers: recipe, learning rate, image sizes, and the optimiser's groups.

The two papers count differently. YOLOX counts epochs, and its learning rate falls along a cosine. YOLOF counts steps of
the optimiser ("iterations") at a batch of 64, and its learning rate falls in two steps; `scale_to_batch` and
`scale_to_epochs` fit such a schedule to another batch and another data set.

Source: YOLOX, sections 2.1 and 3; YOLOF, section 5; chapters 07 and 11.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from minidet.data.augment import FLIP_AND_SHIFT, Augmentation, random_size
from minidet.errors import RunError
from minidet.settings import check_settings

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

    Source: YOLOX, section 2.1 "implementation details"; YOLOF, section 5; chapters 07 and 11.
    """

    epochs: int | None = 300  # passes over the training set; None: `iterations` says how long
    batch_size: int = 64  # images a step
    base_lr: float = 0.01  # learning rate for a batch of `schedule_batch`; another batch size scales it linearly
    schedule_batch: int = 64  # the batch that base_lr and the four numbers of "steps" are meant for
    schedule: Literal["cosine", "steps"] = "cosine"  # how the learning rate falls
    # of "cosine", in epochs:
    warmup_epochs: float = 5  # the learning rate rises to its top as a parabola
    final_epochs: int = 15  # flat learning rate at the end; the closing phase covers one epoch more (see is_closing)
    min_lr_ratio: float = 0.05  # the flat end, as a part of the top
    # of "steps", in iterations (steps of the optimiser):
    iterations: int | None = None  # in all
    warmup_iterations: int = 0  # the learning rate rises to its top in a straight line ...
    warmup_factor: float | None = None  # ... from this part of it; None: 1 / warmup_iterations
    steps: tuple[int, ...] = ()  # after so many iterations it falls ...
    step_factor: float = 0.1  # ... to this part of what it was
    momentum: float = 0.9  # of SGD
    nesterov: bool = True  # momentum in Nesterov's form
    weight_decay: float = 5e-4  # on weights; normalisation is left alone
    decay_biases: bool = False  # also on the biases of convolutions
    backbone_lr_factor: float = 1.0  # the backbone's learning rate, as a part of that of the rest
    clip_grad_norm: float | None = None  # longest gradient; None: gradients stay as they are (published)
    ema_decay: float | None = 0.9998  # the averaged weights' memory; None: no average, trained weights are judged, kept
    ema_ramp: int = 2000  # the average reaches that memory slowly, over about so many steps
    skip_empty: bool = False  # leave pictures without objects out of training
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
        check_settings(self, "recipe", _RANGES, RunError)
        for name in ("base_lr", "clip_grad_norm", "backbone_lr_factor", "step_factor"):
            if getattr(self, name) == 0:
                raise RunError(f"recipe: {name} is 0, so nothing could be learned. Choose a positive number.")
        for name in ("momentum", "min_lr_ratio", "ema_decay", "warmup_factor", "step_factor"):
            value = getattr(self, name)
            if value is not None and (value > 1 or (value == 1 and name in ("momentum", "ema_decay"))):
                raise RunError(f"recipe: {name} is {value}, but it is a share and must lie below 1.")
        self._check_schedule()
        if isinstance(self.multi_scale, (tuple, list)):
            low, high = self.multi_scale
            if not 32 <= low <= high or low % 32 or high % 32:
                raise RunError(
                    f"recipe: multi_scale is ({low}, {high}), but it needs two heights in pixels, the lower one first, "
                    "both multiples of 32: for example (320, 640)."
                )

    def _check_schedule(self) -> None:
        if self.schedule == "cosine":
            if self.epochs is None:
                raise RunError("recipe: epochs is None, but a cosine schedule is counted in epochs. Give a number.")
            for field in dataclasses.fields(self):
                if field.name in _OF_STEPS and getattr(self, field.name) != field.default:
                    raise RunError(
                        f"recipe: {field.name} is {getattr(self, field.name)}, but schedule is 'cosine', which does "
                        "not use it. Take schedule='steps', or the fields of the cosine (epochs, warmup_epochs, ...)."
                    )
            return
        if self.iterations is None:
            raise RunError(
                "recipe: iterations is None, but a schedule of steps needs the number that its steps are meant for."
            )
        if not all(step > 0 for step in self.steps) or list(self.steps) != sorted(self.steps):
            raise RunError(f"recipe: steps is {self.steps}, but it must be whole numbers above 0, the smallest first.")

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
        if self.schedule == "steps":
            if self.iterations >= self.warmup_iterations:
                return []
            return [
                f"the run ends ({self.iterations:,} iterations) before the warm-up does ({self.warmup_iterations:,}), "
                "so the learning rate never reaches its top. Lower warmup_iterations."
            ]
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


# Lowest and highest; what lies above is a slip of the pen, and would fill the memory before anything is learned.
_RANGES = {
    "epochs": (1, 1_000_000),
    "batch_size": (1, 10_000_000),
    "base_lr": (0, math.inf),
    "schedule_batch": (1, 10_000_000),
    "iterations": (1, 1_000_000_000),
    "warmup_iterations": (0, 1_000_000_000),
    "warmup_factor": (0, math.inf),
    "step_factor": (0, math.inf),
    "backbone_lr_factor": (0, math.inf),
    "warmup_epochs": (0, math.inf),
    "final_epochs": (0, math.inf),
    "min_lr_ratio": (0, math.inf),
    "momentum": (0, math.inf),
    "weight_decay": (0, math.inf),
    "clip_grad_norm": (0, math.inf),
    "ema_decay": (0, math.inf),
    "ema_ramp": (1, math.inf),
    "multi_scale": (32, 16_384),
    "multi_scale_every": (1, math.inf),
    "eval_every": (1, math.inf),
    "checkpoint_every": (1, math.inf),
    "keep_last": (1, 1_000_000),
}

_OF_STEPS = ("iterations", "warmup_iterations", "warmup_factor", "steps", "step_factor")

# A short run has no time for mosaics: every second picture is scaled and shifted a little instead, and none is turned,
# so that boxes stay tight.
LIGHT = Augmentation(mosaic_prob=0, mixup_prob=0, affine_prob=0.5, degrees=0, shear=0)

# What the baseline of YOLOX's road map was trained with: section 2, "YOLOv3 baseline".
FLIP_AND_COLOUR = Augmentation(mosaic_prob=0, mixup_prob=0)

RECIPES: dict[str, Recipe] = {
    # What the published models were trained with.
    "yolox": Recipe(),
    # The same for YOLOF on COCO: 22,500 iterations are 12.3 epochs of its 117,266 pictures with objects.
    "yolof": Recipe(
        epochs=None,
        base_lr=0.12,
        schedule="steps",
        warmup_epochs=0,
        final_epochs=0,
        iterations=22_500,
        warmup_iterations=1500,
        warmup_factor=0.00066667,  # 1 / 1500, as rounded by the authors
        steps=(15_000, 20_000),
        nesterov=False,
        weight_decay=1e-4,
        decay_biases=True,
        backbone_lr_factor=0.334,
        ema_decay=None,
        skip_empty=True,
        multi_scale=None,
        eval_every=1,
    ),
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


# "course" for a YOLOF: small data, from scratch, minutes. All that is tuned for it stands here.
YOLOF_COURSE = dataclasses.replace(
    RECIPES["course"],
    epochs=35,
    base_lr=0.16,  # so 0.02 at a batch of 8
    clip_grad_norm=10.0,
)

# Variants that were published with another schedule than the 1x of "yolof", which is meant for R50 and R101-C5.
_BATCH_32: dict[str, Any] = {
    "batch_size": 32,
    "schedule_batch": 32,
    "base_lr": 0.06,
    "iterations": 45_000,
    "warmup_iterations": 3000,
    "warmup_factor": 0.000334,
    "steps": (30_000, 40_000),
}
_PUBLISHED_YOLOF: dict[str, dict[str, Any]] = {
    "yolof-r101-dc5": _BATCH_32,
    "yolof-x101-c5": _BATCH_32,
    "yolof-cspdarknet53-dc5": {  # "3x"
        "base_lr": 0.04,
        "iterations": 67_500,
        "steps": (52_500, 62_500),
        "backbone_lr_factor": 1.0,
    },
}


# Variants whose published training did more to pictures than this library does, and what.
PUBLISHED_MORE = {
    "yolof-cspdarknet53-dc5": "jittered crops, sizes from 512 to 768, colour jitter and a mosaic of its own",
}


def recipe_for(name: str, model_name: str) -> Recipe:
    """The recipe called `name` for one model: "yolof" as its variant was published, "course" as its family needs it.

    Args:
        name: one of `RECIPES`.
        model_name: one of `minidet.list_models()`.

    Raises:
        RunError: there is no such recipe.

    Source: the official experiment files.
    """
    if name not in RECIPES:
        raise RunError(f"there is no recipe {name!r}. The names are {', '.join(RECIPES)}.")
    if name == "course" and is_yolof(model_name):
        return YOLOF_COURSE
    if name == "yolof":
        return dataclasses.replace(RECIPES[name], **_PUBLISHED_YOLOF.get(model_name, {}))
    return RECIPES[name]


def is_yolof(model_name: str) -> bool:
    """Whether a name of `minidet.list_models()` is one of the second family."""
    return model_name.startswith("yolof")


def scale_to_batch(recipe: Recipe, batch_size: int) -> tuple[Recipe, list[str]]:
    """The linear scaling rule: for half the batch, half the learning rate and twice of all that counts iterations.

    Warm-up belongs to it: who forgets that part loses several points of AP. Warm-up then starts from 1 / warm-up
    iterations. Numbers of iterations are rounded to the nearest whole one, and at least 1.

    Args:
        recipe: any; one of a cosine schedule, which counts epochs, changes in its batch_size alone.
        batch_size: images a step, over all processes.

    Returns:
        The recipe for this batch, and what was done, as lines of text. A recipe that is for this batch already comes
        back as it is, without a line.

    Source: YOLOF, rule of the authors for other numbers of GPUs; chapter 07.
    """
    scaled = dataclasses.replace(recipe, batch_size=batch_size)
    if recipe.schedule != "steps" or batch_size == recipe.schedule_batch:
        return scaled, []
    factor = recipe.schedule_batch / batch_size
    scaled = dataclasses.replace(
        scaled, schedule_batch=batch_size, base_lr=recipe.base_lr / factor, **_longer(recipe, factor)
    )
    line = (
        f"batch {batch_size} instead of {recipe.schedule_batch}: learning rate {recipe.base_lr:g} -> "
        f"{scaled.base_lr:g}, {_schedule_change(recipe, scaled)} (the linear scaling rule)"
    )
    return scaled, [line]


def scale_to_epochs(recipe: Recipe, num_images: int) -> tuple[Recipe, list[str]]:
    """Turn the epochs of a recipe of steps into iterations on a data set; its steps stay where they are in the run.

    A shorter run has a shorter warm-up, in proportion; a longer one keeps the warm-up as it is.

    Args:
        recipe: scaled to its batch already. Without epochs, its iterations stand.
        num_images: pictures that a pass over the training set takes.

    Returns:
        A recipe that counts in iterations alone (`epochs` is None), and what was done, as lines of text. A recipe of a
        cosine schedule comes back as it is.

    Source: our own; COCO's 1x schedule has 22,500 iterations, which smaller data would repeat for thousands of epochs.
    """
    if recipe.schedule != "steps" or recipe.epochs is None:
        return recipe, []
    steps_per_epoch = math.ceil(num_images / recipe.batch_size)
    factor = recipe.epochs * steps_per_epoch / recipe.iterations
    changes = _longer(recipe, factor)
    if factor > 1:
        changes |= {"warmup_iterations": recipe.warmup_iterations, "warmup_factor": recipe.warmup_factor}
    scaled = dataclasses.replace(recipe, epochs=None, **changes)
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    change = _schedule_change(recipe, scaled)
    return scaled, [f"{epochs} of {steps_per_epoch:,} steps on {num_images:,} images: {change}"]


def _longer(recipe: Recipe, factor: float) -> dict[str, Any]:
    """All numbers that count iterations, times a factor."""

    def scaled(iterations: int) -> int:
        return max(round(iterations * factor), 1) if iterations else 0

    return {
        "iterations": scaled(recipe.iterations),
        "warmup_iterations": scaled(recipe.warmup_iterations),
        "warmup_factor": None,  # 1 / warm-up iterations
        "steps": tuple(scaled(step) for step in recipe.steps),
    }


def _schedule_change(old: Recipe, new: Recipe) -> str:
    steps = [", ".join(f"{step:,}" for step in each.steps) or "none" for each in (old, new)]
    return (
        f"warm-up {old.warmup_iterations:,} -> {new.warmup_iterations:,} iterations, steps at {steps[0]} -> "
        f"{steps[1]}, in all {old.iterations:,} -> {new.iterations:,} iterations"
    )


def published_augmentation(model_name: str) -> Augmentation:
    """The augmentation that a variant was published with: YOLOX's is gentler for small models, YOLOF's always light.

    `PUBLISHED_MORE` names the one variant of which this is not the whole.

    Source: YOLOX, table 5; YOLOF, section 5; the numbers are those of the official experiment files.
    """
    if is_yolof(model_name):
        return FLIP_AND_SHIFT
    if model_name == "yolox-nano":
        return Augmentation(mosaic_prob=0.5, mosaic_scale=(0.5, 1.5), mixup_prob=0.0)
    if model_name == "yolox-tiny":
        return Augmentation(mosaic_prob=1.0, mosaic_scale=(0.5, 1.5), mixup_prob=0.0)
    return Augmentation(mosaic_prob=1.0, mosaic_scale=(0.1, 2.0), mixup_prob=1.0)


def published_sizes(model_name: str, input_hw: tuple[int, int]) -> tuple[int, int] | None:
    """Lowest and highest height of multi-scale training: 320 and 640 for nano and tiny at 416, else 160 px around.

    None for YOLOF, which was trained at one size.
    """
    if is_yolof(model_name):
        return None
    height = input_hw[0]
    if model_name in ("yolox-nano", "yolox-tiny") and height == 416:
        return 320, 640
    return max(32, height - 160), height + 160


def learning_rate(iteration: int, iterations_per_epoch: int, recipe: Recipe, batch_size: int) -> float:
    """Learning rate of the step that follows `iteration` others.

    "cosine" (YOLOX): a parabola up, half a cosine down, then flat. The official code sets the value for iteration i
    *after* step i, so step i + 1 is the first to use it. The very first step therefore runs at `learning_rate(0, ...)`:
    0 when there is a warm-up, so it only fills the momentum.
    "steps" (YOLOF): a straight line up, then flat, and a tenth of it after each of the recipe's steps.

    Args:
        iteration: steps done before; 0 gives the rate of the very first step.
        iterations_per_epoch: steps an epoch ("cosine" alone asks).
        recipe: base_lr and the numbers of its schedule are used. One of "steps" should be scaled to its batch first, by
            `scale_to_batch`: here only the rate is.
        batch_size: images a step over all processes; the rate is proportional to it.

    Source: YOLOX, section 2.1; YOLOF, section 5; chapters 07 and 11.
    """
    top = recipe.base_lr / recipe.schedule_batch * batch_size
    if recipe.schedule == "steps":
        warmup, factor = recipe.warmup_iterations, recipe.warmup_factor
        rate = top * recipe.step_factor ** sum(iteration >= step for step in recipe.steps)
        if iteration >= warmup:
            return rate
        factor = 1 / warmup if factor is None else factor
        return rate * (factor + (1 - factor) * iteration / warmup)
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


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_biases: bool = False, backbone_lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Sort the trainable parameters by what they are, and decay some of them.

    Args:
        model: any module; frozen parameters are left out, shared ones appear once.
        weight_decay: of the weights.
        decay_biases: False (YOLOX): biases do not decay, neither those of norms nor any other. True (YOLOF): all others
            do.
        backbone_lr_factor: where this is not 1, parameters of `model.backbone` have groups of their own.

    Returns:
        Groups for a torch optimiser, always in this order: "norms" (weights of normalisation layers, and whatever else
        is a vector or a number; with `decay_biases` also the norms' biases), "weights" (of convolutions and linear
        layers), "biases"; then, where they are apart, the same three of the backbone. A group may be empty.
        "lr_factor" says what a group's learning rate is multiplied by.

    Raises:
        RunError: there is a factor for the backbone, but no `model.backbone`.

    Source: YOLOX, official code; YOLOF, official code; chapters 07 and 11.
    """
    in_backbone: set[nn.Parameter] = set()
    if backbone_lr_factor != 1:
        if not isinstance(getattr(model, "backbone", None), nn.Module):
            raise RunError(
                f"recipe: backbone_lr_factor is {backbone_lr_factor}, but this model has no part called backbone. "
                "Set it to 1."
            )
        in_backbone = set(model.backbone.parameters())
    kinds = ("norms", "weights", "biases")
    sorted_parameters: dict[str, list[nn.Parameter]] = {kind: [] for kind in kinds}
    sorted_parameters |= {f"backbone {kind}": [] for kind in kinds}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        is_norm = isinstance(module, NORMALISATIONS)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            if name.endswith("bias") and not (is_norm and decay_biases):
                kind = "biases"
            elif is_norm or parameter.ndim < 2:
                kind = "norms"
            else:
                kind = "weights"
            sorted_parameters[f"backbone {kind}" if parameter in in_backbone else kind].append(parameter)
    decay = {"norms": 0.0, "weights": weight_decay, "biases": weight_decay if decay_biases else 0.0}
    groups = [
        {"name": kind, "params": sorted_parameters[kind], "weight_decay": decay[kind], "lr_factor": 1.0}
        for kind in kinds
    ]
    if backbone_lr_factor != 1:
        groups += [
            {**group, "name": f"backbone {kind}", "params": sorted_parameters[f"backbone {kind}"]}
            | {"lr_factor": backbone_lr_factor}
            for kind, group in zip(kinds, groups, strict=True)
        ]
    return groups


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD over the groups of parameters, with the recipe's kind of momentum; the rates are those of the first step."""
    groups = parameter_groups(model, recipe.weight_decay, recipe.decay_biases, recipe.backbone_lr_factor)
    if not any(group["params"] for group in groups):
        raise RunError("the model has no parameter that can be trained: all of them are frozen.")
    rate = learning_rate(0, 1, recipe, recipe.batch_size)
    # One fused pass over all tensors takes a third of the time that a loop over them takes.
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    nesterov = recipe.nesterov and recipe.momentum > 0
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=nesterov, fused=fused)
    set_learning_rate(optimizer, rate)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its learning rate: `rate` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)
