"""Training a detector, from the first step to the last picture: the published loop, and what it takes to survive.

`training_step` is the whole method; everything around it feeds it, watches it, or writes down where it stands.

Source: YOLOX, section 2.1; chapter 11.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from minidet.data.augment import resize_batch
from minidet.data.coco import CocoDataset
from minidet.data.loader import TrainingLoader, pictures_with_objects, training_loader
from minidet.detectors import Detector, save_weights
from minidet.errors import MinidetError, RunError
from minidet.evaluation.average_precision import AveragePrecision, evaluate
from minidet.training.checkpoint import checkpoint_path, save_checkpoint
from minidet.training.ema import Ema
from minidet.training.hardware import PRECISIONS, choose_device, choose_precision, choose_workers, evaluation_workers
from minidet.training.interrupt import Interrupt, interruptible
from minidet.training.recipe import (
    PUBLISHED_MORE,
    Recipe,
    learning_rate,
    make_optimizer,
    scale_to_batch,
    scale_to_epochs,
    set_learning_rate,
    training_size,
)
from minidet.training.report import LossLog, TensorBoard, epoch_line, save_pictures
from minidet.training.run_folder import RunFolder, run_config
from minidet.training.state import TrainingState

READ_EVERY = 20  # steps between two looks at the losses on a GPU
MANY_EPOCHS = 100  # passes over a small data set that a schedule in iterations should not make unasked
NO_BOX = "no image has a box, so there is nothing to learn."


@dataclass(frozen=True)
class TrainingResult:
    """What came out of `train`.

    Attributes:
        run_dir: the run's folder.
        metrics: the rows of its metrics.jsonl, one an epoch.
        evaluation: the last evaluation of this call; None where there was none.
        interrupted: training was stopped by Ctrl-C and can be resumed.
    """

    run_dir: Path
    metrics: list[dict[str, Any]]
    evaluation: AveragePrecision | None
    interrupted: bool

    @property
    def best_ap(self) -> float | None:
        """The highest AP of all evaluations of the run."""
        return max((row["ap"] for row in self.metrics if row["ap"] is not None), default=None)


def train(
    model: Detector,
    recipe: Recipe,
    train_data: CocoDataset,
    val_data: CocoDataset | None,
    run_dir: str | Path,
    *,
    device: str | torch.device = "auto",
    precision: str = "auto",
    resume: bool = False,
    seed: int = 0,
    workers: int | None = None,
    channels_last: bool = True,
    tensorboard: bool = True,
    progress: bool = True,
    log: Callable[[str], None] = tqdm.write,
) -> TrainingResult:
    """Train a detector and keep everything that comes of it in a folder.

    Args:
        model: trained in place; for the same result twice, set the seed before making it.
        recipe: how. What it leaves open ("published") is filled in for this model; a schedule that counts iterations is
            scaled to its batch size and, where it names epochs, to the data, and what was done is told.
        train_data: pictures to learn from.
        val_data: pictures to be judged by; None means no evaluation.
        run_dir: a new or empty folder, or with `resume` that of the run to go on with.
        device: "auto" takes CUDA before MPS before the CPU.
        precision: "auto", "fp32", "bf16" or "fp16" (of the network; losses and weights are always float32).
        resume: go on from the newest checkpoint in `run_dir`, with the same model, recipe, data and seed.
        seed: of everything random in data and image sizes. On one machine the same seed gives the same run.
        workers: processes that prepare images; None chooses for this machine.
        channels_last: keep weights and feature maps with channels innermost, which most processors compute faster.
        tensorboard: write event files into `run_dir/tensorboard`.
        progress: show a bar.
        log: takes every line of text that is told.

    Returns:
        Metrics, the last evaluation, and whether Ctrl-C ended it: then a checkpoint was saved after the current step.

    Raises:
        RunError: the folder, the recipe or the device cannot be used, a loss became NaN, or a checkpoint could not be
            written; the text says which, and which checkpoint is the last good one.
        DataError: an image cannot be read.

    Source: YOLOX, section 2.1; chapter 11.
    """
    device = choose_device(device)
    precision = choose_precision(precision, device)
    check_classes(model, train_data, val_data)
    model.class_names = model.class_names or list(train_data.class_names)
    more = PUBLISHED_MORE.get(model.name) if recipe.augmentation is None else None
    recipe = recipe.resolved(model.name, model.input_hw)
    if model.resize == "shorter_side" and recipe.multi_scale is not None:
        raise RunError(
            f"recipe: multi_scale is {recipe.multi_scale}, but {model.name} resizes by the shorter side, so each batch "
            "has a size of its own already. Set multi_scale to None, or make the model with resize='letterbox'."
        )
    num_images = len(pictures_with_objects(train_data)) if recipe.skip_empty else len(train_data)
    if num_images == 0:
        raise RunError(f"{train_data.annotations_path}: {NO_BOX}")
    recipe, notes = scale_schedule(recipe, num_images)
    folder = RunFolder(run_dir, run_config(model, recipe, train_data, val_data, seed, device, precision), resume)
    if more:
        notes.append(f"{model.name} was published with {more}; here it trains with mirror and shift alone.")
    for note in [*notes, *left_out(train_data), *recipe.warnings()]:
        log(f"Note: {note}")
    steps_per_epoch = math.ceil(num_images / recipe.batch_size)
    if recipe.epochs is None:  # the loop goes by epochs, of which the last one may be cut short
        recipe = dataclasses.replace(recipe, epochs=math.ceil(recipe.iterations / steps_per_epoch))
    total = recipe.iterations or recipe.epochs * steps_per_epoch

    channels_last = channels_last and device.type != "mps"
    model.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format).train()
    state = TrainingState(
        model=model,
        optimizer=make_optimizer(model, recipe),
        ema=None if recipe.ema_decay is None else Ema(model, recipe.ema_decay, recipe.ema_ramp),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        losses=LossLog(read_every=1 if device.type == "cpu" else READ_EVERY),
    )
    saved = folder.newest_state(log) if resume else None
    if saved is not None:
        state.load_state_dict(saved)
    epochs_done = state.epoch + (state.step == steps_of_epoch(state.epoch, steps_per_epoch, total))
    if epochs_done == recipe.epochs and any(row["epoch"] == recipe.epochs for row in folder.metrics):
        log(f"{folder.path}: this run is finished ({recipe.epochs} epochs); nothing is left to do.")
        return TrainingResult(folder.path, folder.metrics, None, interrupted=False)
    loader = training_loader(
        train_data,
        recipe.augmentation,
        model.input_hw,
        recipe.batch_size,
        seed,
        choose_workers(device) if workers is None else workers,
        pin_memory=device.type == "cuda",
        progress=progress,
        resize=model.resize,
        fill=model.pad_rgb,
        skip_empty=recipe.skip_empty,
    )
    if not len(loader.samples.with_objects):
        raise RunError(f"{train_data.annotations_path}: {NO_BOX}")
    folder.begin(epochs_done)
    cut_short = "" if total == recipe.epochs * len(loader) else f"; the last one ends after {total:,} steps in all"
    log(
        f"Training {model.name} on {device} ({precision}): {recipe.epochs} epochs of {len(loader)} steps, "
        f"{recipe.batch_size} images each{cut_short}. Everything goes to {folder.path}."
    )
    run = Run(state, recipe, total, loader, val_data, folder, seed, device, precision, log)

    interrupted = False
    board = TensorBoard(folder.path / "tensorboard", tensorboard, state.iteration, log)
    with (
        interruptible(log) as interrupt,
        tqdm(total=total, initial=state.iteration, unit="step", disable=not progress) as bar,
    ):
        try:
            while state.epoch < recipe.epochs and not interrupted:
                interrupted = not run.epoch(interrupt, board, bar)
        except KeyboardInterrupt:
            if not interrupt.at_once:
                raise
            interrupted = True
        except MinidetError as error:
            raise type(error)(f"{error} {folder.last_good()}") from error
        finally:
            board.close()
    if interrupted:
        log(
            f"Stopped in epoch {state.epoch + 1} of {recipe.epochs}. {folder.last_good()} "
            "Go on by the same command with --resume (in Python: resume=True)."
        )
    return TrainingResult(folder.path, folder.metrics, run.evaluation, interrupted)


def training_step(
    state: TrainingState,
    images: Tensor,
    targets: Sequence[dict],
    precision: str,
    clip_grad_norm: float | None,
    where: str,
) -> None:
    """One step: forward, losses, backward, optimiser, average.

    Args:
        state: model, optimiser and average, which change.
        images: [B, 3, H, W] network input on the model's device.
        targets: for each image `boxes` [N, 4] xyxy in pixels and `labels` [N].
        precision: "fp32", "bf16" or "fp16" for the network.
        clip_grad_norm: longest gradient, or None.
        where: how a message about a bad loss calls this step.
    """
    with torch.autocast(images.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        losses = state.model(images, targets)
    state.losses.add(losses, state.model.last_assignment, where)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(sum(losses.values())).backward()  # the scaler only does something in fp16
    if clip_grad_norm is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema is not None:
        state.ema.update(state.model)


@dataclass
class Run:
    """A run in progress: its state and all that does not change."""

    state: TrainingState
    recipe: Recipe
    total: int  # steps of the whole run
    loader: TrainingLoader
    val_data: CocoDataset | None
    folder: RunFolder
    seed: int
    device: torch.device
    precision: str
    log: Callable[[str], None]
    evaluation: AveragePrecision | None = None

    def epoch(self, interrupt: Interrupt, board: TensorBoard, bar: tqdm) -> bool:
        """Train the rest of the current epoch, save, evaluate, write down. False when Ctrl-C ended it before."""
        state, recipe = self.state, self.recipe
        closing = recipe.is_closing(state.epoch)
        state.model.train()
        state.model.use_l1 = closing
        self.loader.set_epoch(state.epoch, strong=not closing, start=state.step, stop=self.steps)
        bar.set_description(f"epoch {state.epoch + 1}/{recipe.epochs}")
        started = time.perf_counter() - state.seconds
        complete = state.step == self.steps  # resumed from the checkpoint at the end of an epoch

        for images, targets in self._rest_of_epoch():
            rate = self._set_learning_rate()
            images, targets = self._to_size(images.to(self.device, non_blocking=True), targets)
            image_ids = [int(target["image_id"]) for target in targets]
            where = f"epoch {state.epoch + 1}, iteration {state.iteration + 1} (image ids {image_ids})"
            training_step(state, images, targets, self.precision, recipe.clip_grad_norm, where)
            state.step += 1
            state.iteration += 1
            state.seconds = time.perf_counter() - started
            bar.update()
            if state.iteration % READ_EVERY == 0:
                bar.set_postfix(
                    {name.removeprefix("loss_"): f"{value:.2f}" for name, value in state.losses.latest.items()}
                )
                board.add("step", {**state.losses.latest, "lr": rate}, state.iteration)
            if interrupt.requested:
                break

        if interrupt.requested or (not complete and self._saves_after_epoch()):
            self._save()
        if interrupt.requested:
            return False
        self._finish_epoch(interrupt, board, bar)
        return True

    @property
    def steps(self) -> int:
        """Steps of the current epoch."""
        return steps_of_epoch(self.state.epoch, len(self.loader), self.total)

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

    def _set_learning_rate(self) -> float:
        # The value of `learning_rate(i)` is for the step after the i-th, so the very first step runs at 0 in a warm-up.
        rate = learning_rate(self.state.iteration, len(self.loader), self.recipe, self.recipe.batch_size)
        set_learning_rate(self.state.optimizer, rate)
        return rate

    def _to_size(self, images: Tensor, targets: Sequence[dict]) -> tuple[Tensor, Sequence[dict]]:
        if self.recipe.multi_scale is None:
            return images, targets
        size_hw = training_size(self.state.iteration, self.recipe, self.state.model.input_hw, self.seed)
        return (images, targets) if tuple(images.shape[-2:]) == size_hw else resize_batch(images, targets, size_hw)

    def _evaluates(self) -> bool:
        return self.val_data is not None and self.recipe.evaluates_after(self.state.epoch)

    def _saves_after_epoch(self) -> bool:
        number = self.state.epoch + 1
        return number % self.recipe.checkpoint_every == 0 or number == self.recipe.epochs or self._evaluates()

    def _finish_epoch(self, interrupt: Interrupt, board: TensorBoard, bar: tqdm) -> None:
        """What follows the checkpoint: evaluation, a line of metrics, pictures. A killed run does it after resuming."""
        state, number = self.state, self.state.epoch + 1
        if not any(row["epoch"] == number for row in self.folder.metrics):
            state.losses.read()
            row: dict[str, Any] = {
                "epoch": number,
                "iteration": state.iteration,
                "lr": state.optimizer.param_groups[0]["lr"],
                "losses": state.losses.means(),
                "positives_per_object": state.losses.positives / max(state.losses.objects, 1),
                "strong_augmentation": not self.recipe.is_closing(state.epoch),
                "seconds": round(state.seconds, 3),
                "ap": None,
                "ap50": None,
            }
            if self._evaluates():
                interrupt.at_once = True
                row |= self._evaluate(progress=not bar.disable)
                interrupt.at_once = False
            self.folder.add_metrics(row)
            self.folder.prune(self.recipe.keep_last)
            self.log(epoch_line(row, self.recipe.epochs))
            board.add("epoch", {**row["losses"], "ap": row["ap"], "ap50": row["ap50"]}, state.iteration)
            if self._evaluates() or number == self.recipe.epochs:
                save_pictures(state.kept_model, self.val_data, self.folder.metrics, self.folder.path)
        state.epoch, state.step, state.seconds = number, 0, 0.0
        state.losses = LossLog(state.losses.read_every)

    def _evaluate(self, progress: bool) -> dict[str, float | None]:
        best, started = self.folder.best(), time.perf_counter()
        self.evaluation = evaluate(
            self.state.kept_model,
            self.val_data,
            batch_size=self.recipe.batch_size,
            progress=progress,
            workers=evaluation_workers(self.device),
        )
        ap, ap50 = (value if value >= 0 else None for value in (self.evaluation.ap, self.evaluation.ap50))
        if best is None or (ap is not None and ap > best[0]):
            save_weights(self.state.kept_model, self.folder.path / "best.safetensors")
        return {"ap": ap, "ap50": ap50, "evaluation_seconds": round(time.perf_counter() - started, 3)}

    def _save(self) -> None:
        """Write a checkpoint and the averaged weights, but only good ones."""
        state = self.state
        state.losses.read()
        state.check_finite()
        complete = state.step == self.steps
        path = checkpoint_path(self.folder.path, state.epoch + complete, 0 if complete else state.step)
        save_checkpoint(path, state.state_dict())
        save_weights(state.kept_model, self.folder.path / "last.safetensors")
        self.folder.prune(self.recipe.keep_last)


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


def steps_of_epoch(epoch: int, steps_per_epoch: int, total: int) -> int:
    """Steps that an epoch (from 0) has in a run of `total` steps: the last one may have fewer than the others."""
    return min(steps_per_epoch, total - epoch * steps_per_epoch)


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
