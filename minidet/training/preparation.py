"""What is looked at and worked out before the first step: do model, data, recipe and ranks fit together?

Chapter 11.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from minidet.data.coco import CocoDataset
from minidet.detectors import Detector
from minidet.errors import RunError
from minidet.training.batch_size import largest_batch
from minidet.training.distributed import Ranks
from minidet.training.recipe import Recipe, scale_to_batch, scale_to_epochs
from minidet.training.run_folder import saved_batch_size

MANY_EPOCHS = 100  # passes over a small data set that a schedule in iterations should not make unasked


def scale_schedule(recipe: Recipe, num_images: int) -> tuple[Recipe, list[str]]:
    """A recipe whose schedule fits its batch size and, where it counts iterations but names epochs, the data.

    Args:
        recipe: any.
        num_images: pictures that a pass over the training set takes.

    Returns:
        The recipe as it will be run, and what there is to say about it.
    """
    by_iterations = recipe.schedule == "steps" and recipe.epochs is None
    recipe, notes = scale_to_batch(recipe, recipe.batch_size)
    recipe, more = scale_to_epochs(recipe, num_images)
    notes += more
    if by_iterations:
        epochs = recipe.iterations * recipe.batch_size / num_images
        if epochs > MANY_EPOCHS:
            notes.append(
                f"{recipe.iterations:,} iterations are {epochs:,.0f} epochs of {num_images:,} images: this schedule is "
                "made for a larger data set. Give epochs (--epochs 50) to fit it to this one."
            )
    return recipe, notes


def choose_batch_size(
    model: Detector,
    recipe: Recipe,
    num_images: int,
    resumed: Path | None,
    device: torch.device,
    precision: str,
    ranks: Ranks,
    accumulate: int,
) -> tuple[Recipe, list[str]]:
    """The largest batch that fits into the memory of every rank, or that of the run that is resumed.

    It is never larger than the one that the recipe's learning rate is meant for, nor than the data set: more memory is
    no reason to take fewer steps.

    Returns:
        The recipe with that batch, and what there is to say about it.

    Raises:
        RunError: not even one image fits.
    """
    batch_size = ranks.at_first(lambda: saved_batch_size(resumed) if resumed else None)
    if batch_size is not None:
        return dataclasses.replace(recipe, batch_size=batch_size), []
    parts = ranks.size * accumulate
    highest = max(min(recipe.schedule_batch, num_images) // parts, 1)
    at_once = ranks.agree(largest_batch(model, recipe, highest, device, precision), smallest=True)
    if at_once == 0:
        ranks.fail(
            f"not even one image of the largest training size fits into the memory of {device}. Choose a smaller "
            "--input-size, a lower multi_scale, another --precision or a smaller model."
        )
    recipe = dataclasses.replace(recipe, batch_size=at_once * parts)
    shares = f" ({at_once} at a time in {parts} parts)" if parts > 1 else ""
    fits = "as many as the recipe is meant for" if at_once == highest else f"the most that {device} has memory for"
    rate = recipe.base_lr / recipe.schedule_batch * recipe.batch_size
    return recipe, [f"batch size auto: {recipe.batch_size} images{shares}, {fits}; top learning rate {rate:g}."]


def check_parts(batch_size: int, ranks: int, accumulate: int) -> None:
    """See that a batch can be cut into equal parts.

    Raises:
        RunError: it cannot; names the nearest sizes that can.
    """
    if accumulate < 1:
        raise RunError(f"accumulate is {accumulate}, but it is the number of parts of a batch: at least 1.")
    parts = ranks * accumulate
    if batch_size % parts:
        below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
        raise RunError(
            f"a batch of {batch_size} images cannot be shared evenly by {ranks} processes x {accumulate} parts. Choose "
            f"--batch-size {f'{below} or {above}' if below else above}, or other numbers of processes or parts."
        )


def left_out(data: CocoDataset) -> list[str]:
    """A line about boxes of the annotation file that take no part in training though they should; none is usual."""
    counts = {reason: count for reason, count in data.dropped.items() if reason != "crowd"}
    if not counts:
        return []
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    total = sum(counts.values())
    boxes = "1 box is" if total == 1 else f"{total} boxes are"
    return [f"{data.annotations_path}: {boxes} left out ({reasons}); `minidet data check` names them."]


def check_classes(model: Detector, train_data: CocoDataset, val_data: CocoDataset | None) -> None:
    """Model, training set and validation set must tell the same classes apart.

    Raises:
        RunError: they don't, or there is no image to learn from.
    """
    names = train_data.class_names
    if model.num_classes != len(names):
        raise RunError(
            f"the model was made for {model.num_classes} classes, but {train_data.annotations_path} has {len(names)} "
            f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}). Make it with num_classes={len(names)}."
        )
    if val_data is not None and list(val_data.class_names) != list(names):
        raise RunError(
            f"{val_data.annotations_path}: its classes {val_data.class_names} are not those of "
            f"{train_data.annotations_path}, {names}. Both need the same categories with the same ids."
        )
    if len(train_data) == 0:
        raise RunError(f"{train_data.annotations_path}: there is no image to learn from.")
