"""A moving average of the weights: the model that is evaluated and kept.

Source: YOLOX, section 2.1 ("EMA weights updating"); chapter 11.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn


class Ema:
    """A copy of a model whose weights follow the trained ones slowly.

    After update n the copy is `d(n) ema + (1 - d(n)) model` with `d(n) = decay (1 - exp(-n / ramp))`: at first it
    follows at once, later it remembers the last `1 / (1 - decay)` steps. Averaged are all floating-point entries of
    the state_dict, statistics of batch normalisation included; whole numbers (counters) are copied.

    Args:
        model: what is averaged. Move it to its device first.
        decay: the memory that is reached in the end.
        ramp: updates after which 63 % of it are reached.

    Attributes:
        model: the averaged model, in evaluation mode, without gradients.
        updates: how often it was updated.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9998, ramp: int = 2000) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.ramp = ramp
        self.updates = 0

    def decay_at(self, updates: int) -> float:
        """d(n), the weight of the old average in update n = 1, 2, ..."""
        return self.decay * (1 - math.exp(-updates / self.ramp))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model` as they are now."""
        self.updates += 1
        averages, values = [], []
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - self.decay_at(self.updates))  # all tensors in one call

    def state_dict(self) -> dict[str, Any]:
        """Averaged weights and the number of updates, for a checkpoint."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
