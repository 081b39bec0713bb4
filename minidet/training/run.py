"""A run in progress, epoch by epoch: steps, checkpoints, evaluation, what is written down, what goes wrong.

Source: YOLOX, section 2.1; chapter 11.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from minidet.data.coco import CocoDataset
from minidet.data.loader import TrainingLoader
from minidet.detectors import save_weights
from minidet.errors import MinidetError, RunError
from minidet.evaluation.average_precision import AveragePrecision, evaluate, score_rows
from minidet.evaluation.predict import predict_dataset
from minidet.training.bad_batch import Step, save_batch
from minidet.training.checkpoint import checkpoint_path, save_checkpoint
from minidet.training.distributed import Ranks, Stretch, span_of
from minidet.training.hardware import evaluation_workers
from minidet.training.interrupt import Interrupt
from minidet.training.out_of_memory import advice, give_back_memory, is_out_of_memory
from minidet.training.recipe import Recipe, learning_rate, set_learning_rate
from minidet.training.report import LossLog, NotFinite, TensorBoard, epoch_line, save_pictures
from minidet.training.run_folder import RunFolder
from minidet.training.state import TrainingState
from minidet.training.step import training_step

READ_EVERY = 20  # steps between two looks at the losses on a GPU


@dataclass
class Run:
    """A run in progress: its state and all that does not change."""

    state: TrainingState
    recipe: Recipe
    total: int  # steps of the whole run
    loader: TrainingLoader
    val_data: CocoDataset | None
    folder: RunFolder  # only the first rank opens and changes it
    seed: int
    device: torch.device
    precision: str
    log: Callable[[str], None]
    recovers: bool  # a step that does not fit into memory is taken again, in more parts
    evaluation: AveragePrecision | None = None
    skips_counted: int = 0  # skipped pictures that the state knows of, of those that this loader skipped

    @property
    def ranks(self) -> Ranks:
        return self.state.ranks

    @property
    def steps(self) -> int:
        """Steps of the current epoch."""
        return steps_of_epoch(self.state.epoch, len(self.loader), self.total)

    def epoch(self, interrupt: Interrupt, board: TensorBoard, bar: tqdm) -> int:
        """Train the rest of the current epoch, save, evaluate, write down. Not 0 when a signal ended it before."""
        state, recipe = self.state, self.recipe
        closing = recipe.is_closing(state.epoch)
        state.model.train()
        state.model.use_l1 = closing
        self.loader.set_epoch(state.epoch, strong=not closing, start=state.step, stop=self.steps)
        bar.set_description(f"epoch {state.epoch + 1}/{recipe.epochs}")
        started = time.perf_counter() - state.seconds
        complete = state.step == self.steps  # resumed from the checkpoint at the end of an epoch
        stopped_by = 0

        for images, targets in self._rest_of_epoch():
            rate = self._set_learning_rate()
            self._step(images, targets)
            state.step += 1
            state.iteration += 1
            state.seconds = time.perf_counter() - started
            bar.update()
            if state.iteration % READ_EVERY == 0:
                bar.set_postfix(
                    {name.removeprefix("loss_"): f"{value:.2f}" for name, value in state.losses.latest.items()}
                )
                board.add("step", {**state.losses.latest, "lr": rate}, state.iteration)
            stopped_by = self.ranks.agree(interrupt.requested)  # a signal may have reached one rank alone
            if stopped_by:
                break

        if stopped_by or (not complete and self._saves_after_epoch()):
            self._save()
        if not stopped_by:
            self._finish_epoch(interrupt, board, bar)
        return stopped_by

    def _rest_of_epoch(self) -> Iterator[tuple[Tensor, list[dict]]]:
        """The batches of this epoch that were not trained with yet."""
        if self.state.step == self.steps:
            return
        # The iterator draws a seed that nobody needs; a resumed run would draw it once more than an uninterrupted one.
        with torch.random.fork_rng(devices=[]):
            batches = iter(self.loader)
            first = next(batches)
        yield first
        yield from batches

    def _step(self, images: Tensor, targets: Sequence[dict]) -> None:
        """One step; where it may and must be, in twice as many parts, as often as it takes."""
        state = self.state
        ids = tuple(int(target["image_id"]) for target in targets)
        where = Step(state.epoch, state.step, state.iteration, ids)
        images = images.to(self.device, non_blocking=True)
        while True:
            try:
                return training_step(state, images, targets, self.precision, self.recipe.clip_grad_norm, where)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size_hw = images.shape[-2], images.shape[-1]
                text = advice(
                    where, self.recipe, self.ranks.size, state.accumulate, size_hw, self.device, self.precision
                )
                # Other ranks may be past this step, or wait in the midst of it: they cannot go back to its beginning.
                if not self.recovers or self.ranks.size > 1 or len(images) % (2 * state.accumulate):
                    raise RunError(text) from error
            give_back_memory(self.device)  # here the error is gone, and with it all that the failed step had kept
            state.accumulate *= 2
            self.log(
                f"{self.device} ran out of memory in {where}: from here on, batches of {len(images)} images are "
                f"computed in {state.accumulate} parts."
            )

    def _set_learning_rate(self) -> float:
        # The value of `learning_rate(i)` is for the step after the i-th, so the very first step runs at 0 in a warm-up.
        rate = learning_rate(self.state.iteration, len(self.loader), self.recipe, self.recipe.batch_size)
        set_learning_rate(self.state.optimizer, rate)
        return rate

    def _evaluates(self) -> bool:
        return self.val_data is not None and self.recipe.evaluates_after(self.state.epoch)

    def _saves_after_epoch(self) -> bool:
        number = self.state.epoch + 1
        return number % self.recipe.checkpoint_every == 0 or number == self.recipe.epochs or self._evaluates()

    def _finish_epoch(self, interrupt: Interrupt, board: TensorBoard, bar: tqdm) -> None:
        """What follows the checkpoint: evaluation, a line of metrics, pictures. A killed run does it after resuming."""
        state, number = self.state, self.state.epoch + 1
        if not self.ranks.share(any(row["epoch"] == number for row in self.folder.metrics)):
            state.losses.read()
            self._count_skipped()
            started = time.perf_counter()
            if self._evaluates():
                interrupt.at_once = True
                self._evaluate(progress=not bar.disable)
                interrupt.at_once = False
            self.ranks.at_first(lambda: self._write_down(board, started))
        state.epoch, state.step, state.seconds = number, 0, 0.0
        state.losses = LossLog(state.losses.read_every)

    def _evaluate(self, progress: bool) -> None:
        """Judge the kept weights; of several ranks, each looks at its stretch of the pictures."""
        options = {
            "batch_size": max(self.recipe.batch_size // self.ranks.size, 1),
            "progress": progress,
            "workers": evaluation_workers(self.device),
        }
        if self.ranks.size == 1:
            self.evaluation = evaluate(self.state.kept_model, self.val_data, **options)
            return
        judged = self.state.kept_model if self.ranks.first else copy.deepcopy(self.state.model)
        self.ranks.share_weights(judged)
        part = Stretch(self.val_data, span_of(len(self.val_data), self.ranks))
        rows = [row for rows in self.ranks.gather(predict_dataset(judged, part, **options)) for row in rows]
        if self.ranks.first:
            self.evaluation = score_rows(self.val_data, rows)

    def _write_down(self, board: TensorBoard, started: float) -> None:
        """The epoch's line of metrics, the best weights, and pictures."""
        state, number = self.state, self.state.epoch + 1
        row: dict[str, Any] = {
            "epoch": number,
            "iteration": state.iteration,
            "lr": state.optimizer.param_groups[0]["lr"],
            "losses": state.losses.means(),
            "positives_per_object": state.losses.positives / max(state.losses.objects, 1),
            "skipped_pictures": state.skipped,
            "strong_augmentation": not self.recipe.is_closing(state.epoch),
            "seconds": round(state.seconds, 3),
            "ap": None,
            "ap50": None,
        }
        if self._evaluates():
            best, found = self.folder.best(), self.evaluation
            ap, ap50 = (value if value >= 0 else None for value in (found.ap, found.ap50))
            if best is None or (ap is not None and ap > best[0]):
                save_weights(state.kept_model, self.folder.path / "best.safetensors")
            row |= {"ap": ap, "ap50": ap50, "evaluation_seconds": round(time.perf_counter() - started, 3)}
        self.folder.add_metrics(row)
        self.folder.prune(self.recipe.keep_last)
        self.log(epoch_line(row, self.recipe.epochs))
        board.add("epoch", {**row["losses"], "ap": row["ap"], "ap50": row["ap50"]}, state.iteration)
        if self._evaluates() or number == self.recipe.epochs:
            save_pictures(state.kept_model, self.val_data, self.folder.metrics, self.folder.path)

    def _save(self) -> None:
        """Write a checkpoint and the averaged weights, but only good ones."""
        self.state.losses.read()

        def write() -> None:
            state = self.state
            state.check_finite()
            complete = state.step == self.steps
            path = checkpoint_path(self.folder.path, state.epoch + complete, 0 if complete else state.step)
            save_checkpoint(path, state.state_dict())
            save_weights(state.kept_model, self.folder.path / "last.safetensors")
            self.folder.prune(self.recipe.keep_last)

        self._count_skipped()
        self.ranks.at_first(write)

    def _count_skipped(self) -> None:
        """Let the state know how many pictures were skipped, since the run began and by all ranks."""
        state, since_start = self.state, sum(self.loader.skipped.values())
        state.skipped += sum(self.ranks.gather(since_start - self.skips_counted))
        self.skips_counted = since_start

    def report_bad_batch(self, error: NotFinite) -> None:
        """Save the batch whose loss is not finite, and end the run with a word about it.

        A GPU tells many steps later, when the batch is gone. But (seed, epoch, place) decide everything about it, so it
        is made again; keeping the batches of all steps that were not looked at would take gigabytes.

        Raises:
            RunError: always.
        """
        where, text = error.where, None
        if error.ours:
            strong = not self.recipe.is_closing(where.epoch)
            images, targets = self.loader.batch(where.epoch, strong, where.number)
            name = "nan_batch" if self.ranks.size == 1 else f"nan_batch_rank{self.ranks.rank}"
            try:
                text = f"{error} " + save_batch(self.folder.path, name, images, targets, self.state.model.class_names)
            except MinidetError as fault:
                text = f"{error} (Its batch is lost: {fault})"
        texts = [each for each in self.ranks.gather(text) if each is not None]
        self.ranks.fail(" ".join([*(texts or [str(error)]), self.folder.last_good()]))


def steps_of_epoch(epoch: int, steps_per_epoch: int, total: int) -> int:
    """Steps that an epoch (from 0) has in a run of `total` steps: the last one may have fewer than the others."""
    return min(steps_per_epoch, total - epoch * steps_per_epoch)
