"""A moving average of the weights: the model that is evaluated and kept.

Source: YOLOX, section 2.1 ("EMA weights updating"); chapter 12.
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
        model: what is averaged. Move it to its device first, and not afterwards.
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
        self._followed: nn.Module | None = None  # the model whose tensors are listed below

    def decay_at(self, updates: int) -> float:
        """d(n), the weight of the old average in update n = 1, 2, ..."""
        return self.decay * (1 - math.exp(-updates / self.ramp))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model` as they are now; all tensors in two calls, and nothing waits for a GPU."""
        if model is not self._followed:
            self._list_tensors(model)
        self.updates += 1
        torch._foreach_lerp_(self._averages, self._values, 1 - self.decay_at(self.updates))
        if self._counters:
            torch._foreach_copy_(self._counters, self._counted)

    def _list_tensors(self, model: nn.Module) -> None:
        """Find what belongs together once, not in every step: walking through a state_dict takes milliseconds."""
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averages, self._values = ([pair[i] for pair in pairs if pair[0].is_floating_point()] for i in (0, 1))
        self._counters, self._counted = ([pair[i] for pair in pairs if not pair[0].is_floating_point()] for i in (0, 1))
        self._followed = model

    def state_dict(self) -> dict[str, Any]:
        """Averaged weights and the number of updates, for a checkpoint."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
