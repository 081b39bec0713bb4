"""What training tells while it goes: losses read late, TensorBoard, pictures (chapter 11)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minidet.errors import RunError
from minidet.evaluation.predict import evaluation_mode


class NotFinite(RunError):
    """A loss term that is NaN or infinite.

    Attributes:
        where: the step, as the log was told.
        ours: the value comes from this rank's part of the batch.
    """

    def __init__(self, name: str, value: float, where: Any, ours: bool) -> None:
        super().__init__(
            f"{name} became {value} in {where}. Training stopped, and nothing was saved after that. "
            "Look at the boxes of these images, or start anew with a lower base_lr or with clip_grad_norm."
        )
        self.where, self.ours = where, ours


@dataclass
class LossLog:
    """The losses of one epoch, added up; values stay on the device and are read many at a time.

    Asking a GPU for a number makes it finish all its work first, so the numbers of `read_every` steps are fetched
    together. What is not finite is found then, and named.

    Attributes:
        read_every: steps between two readings; 1 on a CPU, where reading costs nothing.
        sums: for each loss term its sum over the steps that were read.
        steps: how many these are.
        positives: positive slots over all steps. objects: ground truths.
        latest: the terms of the last step that was read.
    """

    read_every: int = 1
    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    positives: float = 0.0
    objects: float = 0.0
    latest: dict[str, float] = field(default_factory=dict)
    _pending: list[tuple[Tensor, Tensor, list[str], Any]] = field(default_factory=list)

    def add(self, terms: Tensor, own_terms: Tensor, names: list[str], where: Any) -> None:
        """Take in one step.

        Args:
            terms: [T + 2] float, the T loss terms of the whole batch, its positive slots and its objects.
            own_terms: [T + 2] float, the same of this rank's part of the batch, to know whose value is bad.
            names: what the T terms are called.
            where: epoch, iteration and images, for the message that a bad value needs.

        Raises:
            NotFinite: a term of this step, or of one of those not read before, is NaN or infinite.
        """
        self._pending.append((terms, own_terms, names, where))
        if len(self._pending) >= self.read_every:
            self.read()

    def read(self) -> None:
        """Fetch what is pending; raises as `add` does."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        fetched = torch.cat([torch.cat([terms, own]) for terms, own, *_ in pending]).tolist()
        for _, _, names, where in pending:
            length = len(names) + 2
            *values, positives, objects = fetched[:length]
            own_values, fetched = fetched[length : 2 * length], fetched[2 * length :]
            self.latest = dict(zip(names, values, strict=True))
            for name, value in self.latest.items():
                if not math.isfinite(value):
                    raise NotFinite(name, value, where, ours=not all(map(math.isfinite, own_values)))
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.steps += 1
            self.positives += positives
            self.objects += objects

    def means(self) -> dict[str, float]:
        """The mean of each term over the epoch so far."""
        return {name: value / max(self.steps, 1) for name, value in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "steps": self.steps, "positives": self.positives, "objects": self.objects}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.steps = dict(state["sums"]), state["steps"]
        self.positives, self.objects = state["positives"], state["objects"]


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch in a line of text."""
    losses = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in row["losses"].items())
    found = "" if row["ap"] is None else f"  AP {row['ap']:.3f}  AP50 {row['ap50']:.3f}"
    skipped = f"  {row['skipped_pictures']} pictures skipped so far" if row["skipped_pictures"] else ""
    return f"epoch {row['epoch']:>3}/{epochs}  {losses}{found}  lr {row['lr']:.2g}  {row['seconds']:.0f} s{skipped}"


class TensorBoard:
    """Writes scalars where TensorBoard finds them; without the package it writes nothing and says so once."""

    def __init__(self, folder: Path, enabled: bool, from_iteration: int, log: Callable[[str], None]) -> None:
        self.writer = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional
        except ImportError:
            log("TensorBoard is not installed, so no event files are written (pip install tensorboard).")
            return
        self.writer = SummaryWriter(str(folder), purge_step=from_iteration or None)

    def add(self, group: str, values: dict[str, float | None], iteration: int) -> None:
        for name, value in values.items():
            if self.writer is not None and value is not None:
                self.writer.add_scalar(f"{group}/{name}", value, iteration)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def save_pictures(model: nn.Module, data: Any, metrics: list[dict[str, Any]], folder: Path, count: int = 8) -> None:
    """Draw `curves.png` and `predictions.png`: some pictures with what the model finds there (score 0.3 and more)."""
    from minidet.draw import Scene, draw_curves, draw_gallery, save_figure  # matplotlib loads slowly; only runs need it

    save_figure(draw_curves(metrics), folder / "curves.png")
    if data is None or len(data) == 0:
        return
    chosen = sorted({round(i * (len(data) - 1) / max(count - 1, 1)) for i in range(min(count, len(data)))})
    scenes = []
    for_ap = model.nms_threshold, model.class_agnostic
    if model.nms_threshold is not None:  # one box an object is what a person wants to see
        model.nms_threshold, model.class_agnostic = 0.45, True
    with evaluation_mode(model), torch.no_grad():  # not inference_mode: without an average, this model is still trained
        for index in chosen:
            image = data.image(index)
            (found,) = model([image])
            sure = found["scores"] >= 0.3
            scenes.append(Scene(image, {name: value[sure].cpu() for name, value in found.items()}, data.target(index)))
    model.nms_threshold, model.class_agnostic = for_ap
    save_figure(draw_gallery(scenes, class_names=data.class_names), folder / "predictions.png")
