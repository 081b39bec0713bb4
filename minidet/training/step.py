"""One step of training: the whole method. Everything else in this folder feeds it, watches it, or saves its result.

**A batch in parts.** Every loss term is a sum over a batch divided by N, its number of positive slots (at least 1).
When a batch is computed in parts, one after the other (`accumulate`) or on several ranks, each part's terms are
multiplied by the part's own N again, and the gradient and the terms, added up over all parts, are divided once by the N
of the whole batch: exactly the step that one large batch takes, apart from batch normalisation, which sees its own part
only. (The official codes divide by the N of each GPU and average, so that an object counts more where there are few.)
One term is no exact sum then: that of a selector (NMS-free YOLOX) is divided by the slots that it chose, so of parts it
is the mean, each weighted by its N.

Source: YOLOX, section 2.1; chapter 11.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minidet.training.hardware import PRECISIONS
from minidet.training.state import TrainingState


def training_step(
    state: TrainingState,
    images: Tensor,
    targets: Sequence[dict[str, Any]],
    precision: str,
    clip_grad_norm: float | None,
    where: Any,
) -> None:
    """One step: forward, losses, backward, optimiser, average. On a GPU nothing here waits for it to finish.

    Args:
        state: model, optimiser and average, which change; `state.accumulate` says in how many parts the images are
            computed, and `state.ranks` with whom.
        images: [B, 3, H, W] network input on the model's device; of several ranks each has its own.
        targets: for each image `boxes` [N, 4] xyxy in pixels and `labels` [N].
        precision: "fp32", "bf16" or "fp16" for the network.
        clip_grad_norm: longest gradient, or None.
        where: how a message about a bad loss calls this step.
    """
    state.optimizer.zero_grad(set_to_none=True)
    in_parts = state.accumulate > 1 or state.ranks.size > 1
    terms: Tensor | None = None  # [number of loss terms + 2]: the terms, positive slots, objects
    for part_images, part_targets, is_last in parts_of(images, targets, state.accumulate):
        # Ranks add their gradients up during the last backward pass; before that, each gathers its own.
        with contextlib.nullcontext() if is_last or state.ranks.size == 1 else state.network.no_sync():
            with torch.autocast(images.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
                losses = state.network(part_images, part_targets)
            assignment = state.model.last_assignment
            positives = assignment.num_positives
            if in_parts:
                losses = {name: loss * positives.clamp(min=1) for name, loss in losses.items()}
            state.scaler.scale(sum(losses.values())).backward()  # the scaler only does something in fp16
        found = [loss.detach().float() for loss in losses.values()]
        objects = found[0].new_full((), sum(assignment.num_gt))
        found = torch.stack([*found, positives.to(found[0]), objects])
        terms = found if terms is None else terms + found
    own_terms = terms
    if in_parts:
        terms = state.ranks.add_up(terms.clone())
        positives = terms[-2].clamp(min=1)
        gradients = [each.grad for each in state.model.parameters() if each.grad is not None]
        # Between ranks, DistributedDataParallel has averaged, but a sum is wanted. In fp16 the gradients are still
        # scaled, which a division does not mind: what is infinite stays so for the scaler to see.
        torch._foreach_mul_(gradients, state.ranks.size / positives)
        terms = torch.cat([terms[:-2] / positives, terms[-2:]])
    state.losses.add(terms, own_terms, list(losses), where)
    if clip_grad_norm is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema is not None:
        state.ema.update(state.model)


def parts_of(
    images: Tensor, targets: Sequence[dict[str, Any]], count: int
) -> Iterator[tuple[Tensor, Sequence[dict[str, Any]], bool]]:
    """Equal parts of a batch, in order: images, targets, and whether it is the last part."""
    size = len(images) // count
    for start in range(0, len(images), size):
        yield images[start : start + size], targets[start : start + size], start + size >= len(images)
