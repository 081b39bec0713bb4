"""Everything that changes while a detector is trained, in one place: what a checkpoint holds (chapter 11)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from minidet.errors import RunError
from minidet.training.checkpoint import random_state, set_random_state
from minidet.training.distributed import Ranks
from minidet.training.ema import Ema
from minidet.training.report import LossLog

FORMAT = 1


@dataclass
class TrainingState:
    """A training run between two steps.

    Attributes:
        model, optimizer, ema, scaler: what learns, and how; ema is None where no average is kept.
        ranks: the processes that train together; those beside the first keep no average.
        accumulate: parts in which a rank's images are computed, one after the other.
        network: what is called to compute: the model, or that which connects it with the models of the other ranks.
        epoch: the one that is going on, from 0.
        step: steps done in it; as many as an epoch has when it is complete.
        iteration: steps done in all.
        losses: what the steps of this epoch gave.
        seconds: time that this epoch took so far.
        skipped: pictures that could not be read and were replaced, since the run began.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    scaler: torch.amp.GradScaler
    ranks: Ranks = field(default_factory=Ranks)
    accumulate: int = 1
    network: nn.Module = None  # type: ignore[assignment]
    epoch: int = 0
    step: int = 0
    iteration: int = 0
    losses: LossLog = field(default_factory=LossLog)
    seconds: float = 0.0
    skipped: int = 0

    def __post_init__(self) -> None:
        if self.network is None:
            self.network = self.model

    @property
    def kept_model(self) -> nn.Module:
        """The model that is judged and saved: the average, or without one the trained model itself."""
        return self.model if self.ema is None else self.ema.model

    def state_dict(self) -> dict[str, Any]:
        """Plain values for `save_checkpoint`, the state of the random generators included."""
        return {
            "format": FORMAT,
            "epoch": self.epoch,
            "step": self.step,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "accumulate": self.accumulate,
            "losses": self.losses.state_dict(),
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(),
        }

    def checkpoint_bytes(self) -> int:
        """About what `state_dict` takes on disk: weights, their average, momentum."""
        return 3 * sum(value.nbytes for value in self.model.state_dict().values())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` gave.

        Raises:
            RunError: the state comes from another version of minidet, or does not fit the model.
        """
        if state.get("format") != FORMAT:
            raise RunError(f"the checkpoint has format {state.get('format')}, but this minidet reads format {FORMAT}.")
        try:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scaler.is_enabled() and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
            self.losses.load_state_dict(state["losses"])
            self.epoch, self.step, self.iteration = state["epoch"], state["step"], state["iteration"]
            self.seconds = state["seconds"]
            self.skipped = state.get("skipped", 0)
            self.accumulate = max(state.get("accumulate", 1), self.accumulate)  # what did not fit before never will
            set_random_state(state["random"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise RunError(f"the checkpoint does not fit this model: {error}") from error

    def check_finite(self) -> None:
        """Raise when a weight is NaN or infinite, so that no such state is ever saved.

        Raises:
            RunError: names the first such weight.
        """
        named = [(name, value) for name, value in self.model.state_dict().items() if value.is_floating_point()]
        finite = torch.stack([value.isfinite().all() for _, value in named]).tolist()  # one transfer for all
        for (name, _), good in zip(named, finite, strict=True):
            if not good:
                raise RunError(
                    f"the weight {name} became NaN or infinite in epoch {self.epoch + 1}, iteration {self.iteration}, "
                    "though the losses were finite. Start anew with a lower base_lr or with clip_grad_norm."
                )
