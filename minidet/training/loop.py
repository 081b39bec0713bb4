"""Training a detector: `train` brings together all that a run needs, lets it go, and says how it ended.

`minidet.training.step` is the whole method, `minidet.training.run` what is done around it epoch by epoch. Started by
torchrun, several processes do this together ("ranks"), and the first of them does all the writing.

Source: YOLOX, section 2.1; chapter 11.
"""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minidet.data.coco import CocoDataset
from minidet.data.loader import BadImages, pictures_with_objects, training_loader
from minidet.data.picture_store import SHARE_OF_MEMORY, Cache, free_memory
from minidet.detectors import Detector
from minidet.errors import MinidetError, RunError
from minidet.evaluation.average_precision import AveragePrecision
from minidet.training.distributed import (
    choose_rank_device,
    connected,
    launched_ranks,
    process_group,
    restarts,
)
from minidet.training.ema import Ema
from minidet.training.hardware import choose_precision, choose_workers, computing
from minidet.training.interrupt import StopNow, interruptible
from minidet.training.preparation import check_classes, check_parts, choose_batch_size, left_out, scale_schedule
from minidet.training.recipe import (
    PUBLISHED_MORE,
    Recipe,
    make_optimizer,
    training_size,
)
from minidet.training.report import LossLog, NotFinite, TensorBoard
from minidet.training.run import READ_EVERY, Run, steps_of_epoch
from minidet.training.run_folder import IDENTITY, RunFolder, default_config, differences, run_config
from minidet.training.state import TrainingState
from minidet.training.sync_batch_norm import synchronise_batch_norm

NO_BOX = "no image has a box, so there is nothing to learn."


@dataclass(frozen=True)
class TrainingResult:
    """What came out of `train`.

    Attributes:
        run_dir: the run's folder.
        metrics: the rows of its metrics.jsonl, one an epoch.
        evaluation: the last evaluation of this call; None where there was none.
        stopped_by: number of the signal that stopped training, which can be resumed; 0 if it came to its end.
    """

    run_dir: Path
    metrics: list[dict[str, Any]]
    evaluation: AveragePrecision | None
    stopped_by: int = 0

    @property
    def interrupted(self) -> bool:
        """Training was stopped by Ctrl-C or SIGTERM and can be resumed."""
        return self.stopped_by != 0

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
    auto_batch: bool = False,
    accumulate: int = 1,
    sync_batch_norm: bool = False,
    deterministic: bool = False,
    compiled: bool = False,
    cache: Cache = "auto",
    bad_images: BadImages = "stop",
    channels_last: bool = True,
    tensorboard: bool = True,
    progress: bool = True,
    log: Callable[[str], None] = tqdm.write,
) -> TrainingResult:
    """Train a detector and keep everything that comes of it in a folder.

    Started by torchrun, each process calls this with the same arguments, and all of them train together: the batch of
    the recipe is shared out between them. After one of them died and torchrun started all anew, the run goes on from
    its newest checkpoint.

    Args:
        model: trained in place; for the same result twice, set the seed before making it.
        recipe: how. What it leaves open ("published") is filled in for this model; a schedule that counts iterations is
            scaled to its batch size and, where it names epochs, to the data, and what was done is told.
        train_data: pictures to learn from.
        val_data: pictures to be judged by; None means no evaluation.
        run_dir: a new or empty folder, or with `resume` that of the run to go on with.
        device: "auto" takes CUDA before MPS before the CPU; of several processes on CUDA, each takes a GPU of its own.
        precision: "auto", "fp32", "bf16" or "fp16" (of the network; losses and weights are always float32).
        resume: go on from the newest checkpoint in `run_dir`, with the same model, recipe, data and seed.
        seed: of everything random in data and image sizes. On one machine the same seed gives the same run.
        workers: processes that prepare images, for each process that trains; None chooses for this machine.
        auto_batch: instead of the recipe's batch, take the largest that fits into memory, up to the one that its
            learning rate was chosen for; a resumed run keeps its batch. Should memory become short all the same,
            batches are computed in more parts from then on.
        accumulate: compute each batch in so many parts, one after the other: less memory, the same step.
        sync_batch_norm: batch normalisation looks at the images of all processes, not at those of each alone.
        deterministic: on a GPU too, the same seed gives the same bits; slower.
        compiled: let torch.compile make the model faster; the first steps then take minutes.
        cache: where decoded pictures are kept: "ram", "disk", "none", or "auto" for the first that there is room for.
        bad_images: "stop" with an error where a picture cannot be read, or "skip" it: another one takes its place, and
            metrics.jsonl counts.
        channels_last: keep weights and feature maps with channels innermost, which most processors compute faster.
        tensorboard: write event files into `run_dir/tensorboard`.
        progress: show a bar.
        log: takes every line of text that is told.

    Returns:
        Metrics, the last evaluation, and whether Ctrl-C or SIGTERM ended it: then a checkpoint was saved after the
        current step.

    Raises:
        RunError: the folder, the recipe or the device cannot be used, memory ran out, a loss became NaN, or a
            checkpoint could not be written; the text says which, and which checkpoint is the last good one.
        DataError: an image cannot be read.

    Source: YOLOX, section 2.1; chapter 11.
    """
    ranks = launched_ranks()
    device = choose_rank_device(device, ranks)
    precision = choose_precision(precision, device)
    if not ranks.first:
        progress, tensorboard, log = False, False, _say_nothing
    check_classes(model, train_data, val_data)
    model.class_names = model.class_names or list(train_data.class_names)
    more = PUBLISHED_MORE.get(model.name) if recipe.augmentation is None else None
    recipe = recipe.resolved(model.name, model.input_hw)
    if model.resize == "shorter_side" and recipe.multi_scale is not None:
        raise RunError(
            f"recipe: multi_scale is {recipe.multi_scale}, but {model.name} resizes by the shorter side, so each batch "
            "has a size of its own already. Set multi_scale to None, or make the model with resize='letterbox'."
        )
    if compiled and sync_batch_norm:
        raise RunError("compiled and sync_batch_norm exclude each other: a translated step cannot talk to other ranks.")
    num_images = len(pictures_with_objects(train_data)) if recipe.skip_empty else len(train_data)
    if num_images == 0:
        raise RunError(f"{train_data.annotations_path}: {NO_BOX}")
    channels_last = channels_last and device.type != "mps"
    model.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format).train()
    run_dir = Path(run_dir)

    with process_group(device, ranks), computing(device, deterministic):
        resume = resume or ranks.share(restarts() > 0 and (run_dir / "config.json").is_file())
        notes: list[str] = []
        if auto_batch:
            recipe, notes = choose_batch_size(
                model, recipe, num_images, run_dir if resume else None, device, precision, ranks, accumulate
            )
        ranks.at_first(lambda: check_parts(recipe.batch_size, ranks.size, accumulate))
        recipe, more_notes = scale_schedule(recipe, num_images)
        notes += more_notes
        config = run_config(model, recipe, train_data, val_data, seed, device, precision)
        config |= {"ranks": ranks.size, "accumulate": accumulate, "sync_batch_norm": sync_batch_norm}
        ranks.check_same({key: config[key] for key in (*IDENTITY, "precision", "accumulate")}, differences)
        folder = RunFolder(run_dir, config, default_config(model))
        ranks.at_first(lambda: folder.open(resume))
        notes += folder.changes
        if more:
            notes.append(f"{model.name} was published with {more}; here it trains with mirror and shift alone.")
        for note in [*notes, *left_out(train_data), *recipe.warnings()]:
            log(f"Note: {note}")
        steps_per_epoch = math.ceil(num_images / recipe.batch_size)
        if recipe.epochs is None:  # the loop goes by epochs, of which the last one may be cut short
            recipe = dataclasses.replace(recipe, epochs=math.ceil(recipe.iterations / steps_per_epoch))
        total = recipe.iterations or recipe.epochs * steps_per_epoch

        if sync_batch_norm:
            synchronise_batch_norm(model, device)
        averages = recipe.ema_decay is not None and ranks.first
        state = TrainingState(
            model=model,
            optimizer=make_optimizer(model, recipe),
            ema=Ema(model, recipe.ema_decay, recipe.ema_ramp) if averages else None,
            scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
            ranks=ranks,
            accumulate=accumulate,
            losses=LossLog(read_every=1 if device.type == "cpu" else READ_EVERY),
        )
        saved = ranks.share_state(ranks.at_first_only(lambda: folder.newest_state(log) if resume else None))
        if saved is not None:
            state.load_state_dict(saved)
        epochs_done = state.epoch + (state.step == steps_of_epoch(state.epoch, steps_per_epoch, total))
        if epochs_done == recipe.epochs and ranks.share(any(row["epoch"] == recipe.epochs for row in folder.metrics)):
            log(f"{run_dir}: this run is finished ({recipe.epochs} epochs); nothing is left to do.")
            return TrainingResult(run_dir, ranks.share(folder.metrics), None)
        ranks.at_first(lambda: folder.check_space(state.checkpoint_bytes(), recipe.keep_last))
        images_each = recipe.batch_size // ranks.size

        def size_for_step(step: int) -> tuple[int, int]:
            return training_size(step, recipe, model.input_hw, seed)

        loader = training_loader(
            train_data,
            recipe.augmentation,
            model.input_hw,
            recipe.batch_size,
            seed,
            choose_workers(device, ranks.local_size) if workers is None else workers,
            cache_bytes=int(SHARE_OF_MEMORY * free_memory() / ranks.local_size),
            pin_memory=device.type == "cuda",
            progress=progress,
            resize=model.resize,
            fill=model.pad_rgb,
            skip_empty=recipe.skip_empty,
            part=slice(ranks.rank * images_each, (ranks.rank + 1) * images_each),
            cache=cache,
            bad_images=bad_images,
            size_for_step=None if recipe.multi_scale is None else size_for_step,
            device=device if device.type == "cuda" else None,
            compile=compiled,
            log=log,
        )
        if not len(loader.samples.with_objects):
            raise RunError(f"{train_data.annotations_path}: {NO_BOX}")
        if compiled:
            model.compile()
        ranks.at_first(lambda: folder.begin(epochs_done))
        if ranks.size > 1:
            state.network = connected(model)
        cut_short = "" if total == recipe.epochs * len(loader) else f"; the last one ends after {total:,} steps in all"
        together = f" by {ranks.size} processes" if ranks.size > 1 else ""
        log(
            f"Training {model.name} on {device} ({precision}){together}: {recipe.epochs} epochs of {len(loader)} "
            f"steps, {recipe.batch_size} images each{cut_short}. Everything goes to {run_dir}."
        )
        run = Run(state, recipe, total, loader, val_data, folder, seed, device, precision, log, auto_batch)

        stopped_by = 0
        board = TensorBoard(run_dir / "tensorboard", tensorboard, state.iteration, log)
        with (
            interruptible(log) as interrupt,
            tqdm(total=total, initial=state.iteration, unit="step", disable=not progress) as bar,
        ):
            try:
                while state.epoch < recipe.epochs and not stopped_by:
                    stopped_by = run.epoch(interrupt, board, bar)
            except KeyboardInterrupt as stop:
                if not interrupt.at_once:
                    raise
                stopped_by = stop.number if isinstance(stop, StopNow) else signal.SIGINT
            except NotFinite as error:
                run.report_bad_batch(error)
            except MinidetError as error:
                raise type(error)(f"{error} {folder.last_good()}") from error
            finally:
                board.close()
        if stopped_by:
            log(
                f"Stopped in epoch {state.epoch + 1} of {recipe.epochs}. {folder.last_good()} "
                "Go on by the same command with --resume (in Python: resume=True)."
            )
        return TrainingResult(run_dir, ranks.share(folder.metrics), run.evaluation, int(stopped_by))


def _say_nothing(text: str) -> None:
    """What ranks beside the first one log."""
