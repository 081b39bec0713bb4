"""From a data set on disk to batches: what is cached, what is drawn for whom, in which order, and what may go wrong.

Chance is tied to the sample, not to the worker: (seed, epoch, index) decide everything that happens to a picture, so a
training run sees the same batches with any number of workers and threads, from any cache, and after a resume.

Pictures get their size in one of three ways (`fit_geometry`). "letterbox" and "stretch" make all of them the same size.
With "shorter_side" they keep their shapes: a batch then holds only landscape or only portrait pictures, and is padded
to its own largest sides, so that little of it is padding.

Source: YOLOX, section 2.1; YOLOF, section 5; chapter 10.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils.signal_handling import _set_SIGCHLD_handler
from tqdm import tqdm

from minidet.data.augment import (
    GREY,
    Augmentation,
    Fill,
    Sample,
    finish,
    random_affine,
    random_mixup,
    random_mosaic,
    resize,
)
from minidet.data.picture_store import Cache, PictureStore
from minidet.data.plan import DetectionData, Planner, SampleKey, SamplePlan, pictures_with_objects
from minidet.data.render import fill_colour, render
from minidet.data.render_tensors import PlanTensors, plan_tensors, render_batch
from minidet.errors import DataError, MinidetError

__all__ = [
    "DetectionData",
    "EvaluationLoader",
    "GroupedOrder",
    "SampleKey",
    "TrainingLoader",
    "TrainingOrder",
    "TrainingSamples",
    "evaluation_loader",
    "pictures_with_objects",
    "training_loader",
]

BadImages = Literal["stop", "skip"]  # what to do about a picture that cannot be read
SizeForStep = Callable[[int], tuple[int, int]]  # step of the run, from 0 -> height and width of the network input
SHARE_OF_GPU = 0.3  # of its free memory, that pictures may take: most of it is for the network


class Batch(NamedTuple):
    """What passes from the process that prepares a batch to the one that trains.

    Few tensors, because each that crosses a process border costs a file descriptor.

    Attributes:
        frames: [B, H, W, 3] uint8, or, to be painted on a GPU, the plans and the pixels that they need (None where the
            GPU has all pictures).
        size_hw: height and width of the frames.
        boxes: [N, 4] float32, of all pictures.
        labels: [N] int64.
        owners: for each picture the number of its boxes and its image id.
        skipped: pictures that could not be read, each with the reason, as often as one was met.
    """

    frames: Tensor | tuple[PlanTensors, Tensor | None]
    size_hw: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    owners: list[tuple[int, int]]
    skipped: list[tuple[int, str]]


class TrainingSamples(Dataset):
    """Pictures as training sees them: `samples[SampleKey(index, epoch, strong)]` -> (image, target).

    Args:
        dataset: pictures and boxes.
        augmentation: what may happen to them.
        size_hw: height and width of the network input, multiples of 32; with "shorter_side" shorter and longest side.
        seed: changes every draw.
        cache, cache_bytes: where decoded pictures are kept, and the room in memory for them, see `PictureStore`.
        progress: show a bar while pictures are read into the cache.
        resize: "letterbox", "shorter_side" or "stretch", see `fit_geometry`. With "shorter_side" images have sizes of
            their own, and there can be no mosaic: its four pictures share one canvas of a fixed size.
        fill: colour of everything that no picture covers.
        bad_images: "stop" with an error where a picture cannot be read, or "skip" it: another picture takes its place,
            always the same one.
        log: takes every line of text that is told.

    Attributes:
        with_objects: indices of the pictures that have any.
        on_device: all pictures are kept by whoever paints, so batches come without pixels.

    Raises:
        DataError: the data set has no images, one of them cannot be used, or a box has no area or is not finite.
        MinidetError: `size_hw`, `seed` or `resize` is not possible, or not with this augmentation.

    Source: YOLOX, section 2.1; YOLOF, section 5; chapter 10.
    """

    def __init__(
        self,
        dataset: DetectionData,
        augmentation: Augmentation,
        size_hw: tuple[int, int],
        seed: int = 0,
        cache: Cache = "none",
        cache_bytes: int | None = None,
        progress: bool = False,
        resize: str = "letterbox",
        fill: Fill = GREY,
        bad_images: BadImages = "stop",
        log: Callable[[str], None] = tqdm.write,
    ):
        if len(dataset) == 0:
            raise DataError("the training set has no images. Check its annotation file.")
        self.own_sizes = resize == "shorter_side"
        if self.own_sizes and not 1 <= size_hw[0] <= size_hw[1]:
            raise MinidetError(
                f"the input size is {size_hw}, but with resize 'shorter_side' it is the shorter and the longest side, "
                "such as (800, 1333)."
            )
        if self.own_sizes and augmentation.mosaic_prob > 0:
            raise MinidetError(
                f"augmentation: mosaic_prob is {augmentation.mosaic_prob}, but a mosaic lays four pictures on a canvas "
                "of one fixed size, and with resize 'shorter_side' every picture has its own. Set mosaic_prob to 0, or "
                "make the model with resize='letterbox'."
            )
        if not self.own_sizes and (min(size_hw) < 32 or size_hw[0] % 32 or size_hw[1] % 32):
            raise MinidetError(f"the input size is {size_hw}, but height and width must be multiples of 32, from 32.")
        if seed < 0:
            raise MinidetError(f"seed is {seed}, but it must be 0 or more.")
        if bad_images not in ("stop", "skip"):
            raise MinidetError(f"bad_images is {bad_images!r}, but it must be 'stop' or 'skip'.")
        self.dataset = dataset
        self.augmentation = augmentation
        self.size_hw = size_hw
        self.seed = seed
        self.fill = fill
        self.bad_images = bad_images
        self.planner = Planner(dataset, augmentation, size_hw, seed, resize)
        self.with_objects = self.planner.with_objects
        self.pictures = PictureStore(
            dataset,
            self.planner.stored_hw,
            f"{resize}-{size_hw[0]}x{size_hw[1]}",
            cache,
            cache_bytes,
            torch.get_num_threads(),
            progress,
            bad_images == "skip",
            log,
        )
        self.on_device = False
        self._pool: ThreadPoolExecutor | None = None
        self._threads = 1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, dict]:
        plan, pictures, _ = self.planned(key)
        frame = np.empty((*plan.size_hw, 3), dtype=np.uint8)
        render(plan, pictures, frame, self.fill)
        target = {"boxes": plan.boxes, "labels": plan.labels, "image_id": self.dataset.records[plan.index].id}
        return torch.from_numpy(frame).permute(2, 0, 1), target

    def planned(
        self, key: SampleKey, size_hw: tuple[int, int] | None = None
    ) -> tuple[SamplePlan, dict[int, np.ndarray], list[tuple[int, str]]]:
        """The plan of a sample, the stored pictures that it needs, and those that had to be replaced, with the reason.

        Whether a picture can be read is found out anew for each sample that shows it, so that it does not matter who
        met it before.

        Args:
            key: of the sample.
            size_hw: of the frame, where it is not the usual one.
        """
        skipped: dict[int, str] = {}
        while True:
            plan = self.planner.plan(key, frozenset(skipped))
            pictures: dict[int, np.ndarray] = {}
            for index in dict.fromkeys(placement.index for placement in plan.placements):
                try:
                    pictures[index] = self.pictures[index] if not self.on_device else self._known(index)
                except DataError as error:
                    if self.bad_images == "stop":
                        raise
                    skipped[index] = str(error)
                    break
            else:
                return plan if size_hw is None else plan.resized(size_hw), pictures, list(skipped.items())

    def _known(self, index: int) -> np.ndarray:
        """No pixels, but the same error as where there are some."""
        if index in self.pictures.errors:
            raise DataError(self.pictures.errors[index])
        return np.empty((0, 0, 3), dtype=np.uint8)

    def batch(self, keys: Sequence[SampleKey], size_hw: tuple[int, int] | None = None, painted: bool = True) -> Batch:
        """A batch of samples, each padded to the largest sides among them.

        In the main process as many threads work on it as torch may use; a worker process uses one.

        Args:
            keys: of B samples.
            size_hw: of the frames, where it is not the usual one.
            painted: with frames; else with plans and pixels for `render_batch`.
        """
        usual_hw = None if self.own_sizes else size_hw or self.size_hw
        whole = None if usual_hw is None or not painted else torch.empty(len(keys), *usual_hw, 3, dtype=torch.uint8)

        def prepare(row: int) -> tuple[SamplePlan, Any, list[tuple[int, str]]]:
            plan, pictures, skipped = self.planned(keys[row], size_hw)
            if not painted:
                return plan, pictures, skipped
            frame = np.empty((*plan.size_hw, 3), dtype=np.uint8) if whole is None else whole[row].numpy()
            render(plan, pictures, frame, self.fill)
            return plan, frame, skipped

        plans, pixels, skipped = zip(*self._map(prepare, range(len(keys))), strict=True)
        largest_hw = usual_hw or tuple(max(plan.size_hw[side] for plan in plans) for side in (0, 1))
        if not painted:
            frames: Any = self._unpainted(plans, pixels)
        else:
            frames = _padded(pixels, largest_hw, self.fill) if whole is None else whole
        return Batch(
            frames,
            largest_hw,
            torch.cat([plan.boxes for plan in plans]),
            torch.cat([plan.labels for plan in plans]),
            [(len(plan.labels), self.dataset.records[plan.index].id) for plan in plans],
            [each for own in skipped for each in own],
        )

    def _unpainted(
        self, plans: Sequence[SamplePlan], pictures: Sequence[dict[int, np.ndarray]]
    ) -> tuple[PlanTensors, Tensor | None]:
        if self.on_device:
            return plan_tensors(plans, [self.pictures.starts] * len(plans)), None
        starts, parts, end = [], [np.zeros((1, 3), dtype=np.uint8)], 1  # a batch may show no picture at all
        for of_plan in pictures:
            own = {}
            for index, picture in of_plan.items():
                own[index] = end
                parts.append(picture.reshape(-1, 3))
                end += len(parts[-1])
            starts.append(own)
        return plan_tensors(plans, starts), torch.from_numpy(np.concatenate(parts))

    def _map(self, function: Callable, items: Sequence) -> Iterator:
        threads = 1 if get_worker_info() is not None else torch.get_num_threads()
        if threads == 1 or len(items) == 1:
            return map(function, items)
        if threads != self._threads:
            self._pool, self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pictures"), threads
        return self._pool.map(function, items)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_threads": 1}  # a pool of threads belongs to its process

    def resized(self, index: int) -> Sample:
        """A picture that fits into the network input, not padded, with its boxes and labels."""
        picture = torch.from_numpy(np.array(self.pictures[index])).permute(2, 0, 1)
        return resize(picture, self.planner.fitted_hw[index]), *self.planner.fitted(index)

    def step_by_step(self, key: SampleKey) -> tuple[Tensor, dict]:
        """The same sample made the slow way, one step of `minidet.data.augment` after the other.

        Boxes and labels equal those of `samples[key]`. Pixels differ a little: here they are interpolated up to three
        times, and tiles of a mosaic blend into one another at their edges.

        Source: chapter 10.
        """
        index, epoch, strong = key
        a, fill = self.augmentation, self.fill
        rng = np.random.default_rng([self.seed, epoch, index])
        sample = self.resized(index)
        size_hw = tuple(sample[0].shape[-2:]) if self.own_sizes else self.size_hw
        if strong and rng.random() < a.mosaic_prob:
            others = [self.resized(int(other)) for other in rng.integers(len(self), size=3)]
            sample = random_mosaic([sample, *others], size_hw, a, rng, fill)
            if len(sample[1]) > 0 and rng.random() < a.mixup_prob:
                partner = self.resized(int(rng.choice(self.with_objects)))
                sample = random_mixup(sample, partner, a, rng, fill)
        elif strong and rng.random() < a.affine_prob:
            sample = random_affine(sample, size_hw, a.affine_scale, a, rng, centred=True, fill=fill)
        image, boxes, labels = finish(sample, size_hw, a, rng, fill)
        return image, {"boxes": boxes, "labels": labels, "image_id": self.dataset.records[index].id}


def _padded(frames: Sequence[np.ndarray], size_hw: tuple[int, int], fill: Fill) -> Tensor:
    """Pictures of several sizes in one tensor [B, *size_hw, 3]."""
    padded = np.empty((len(frames), *size_hw, 3), dtype=np.uint8)
    padded[:] = fill_colour(fill)
    for row, frame in zip(padded, frames, strict=True):
        row[: frame.shape[0], : frame.shape[1]] = frame
    return torch.from_numpy(padded)


class TrainingOrder:
    """Batches of keys: an endless row of shuffled turns through the data set, cut into epochs of equally full batches.

    An epoch has ceil(N / B) batches. Where B does not divide N it takes its last samples from the next turn, and the
    next epoch goes on from there; so every picture is seen equally often, even when there are fewer than B.

    Args:
        num_images: N.
        batch_size: B.
        seed: changes the order.
        indices: [N] what the keys call the pictures; None: 0 to N - 1.

    Source: YOLOX, official code; chapter 11.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, indices: np.ndarray | None = None):
        if batch_size < 1:
            raise MinidetError(f"the batch size is {batch_size}, but it must be at least 1.")
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.indices = np.arange(num_images) if indices is None else indices
        self.epoch, self.strong, self.start = 0, True, 0
        self.stop: int | None = None

    def __len__(self) -> int:
        return math.ceil(self.num_images / self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        turn, order = -1, None
        for batch in self.numbers():
            keys = []
            for place in range(batch * self.batch_size, (batch + 1) * self.batch_size):  # in the endless row
                if place // self.num_images != turn:
                    turn = place // self.num_images
                    order = self.shuffled(turn)
                keys.append(SampleKey(int(self.indices[order[place % self.num_images]]), turn, self.strong))
            yield keys

    def numbers(self) -> range:
        """The batches of this epoch that are wanted, counted from the first batch of the first epoch."""
        stop = len(self) if self.stop is None else self.stop
        return range(self.epoch * len(self) + self.start, self.epoch * len(self) + stop)

    def shuffled(self, turn: int) -> np.ndarray:
        """The order of the pictures in one turn through the data set, a permutation of 0 to N - 1."""
        return np.random.default_rng([self.seed, turn, self.num_images]).permutation(self.num_images)


class GroupedOrder(TrainingOrder):
    """The same endless row, but a batch holds only pictures that are wider than high, or only others.

    Pictures wait in one queue for each shape, and whenever a queue holds B of them they become a batch. What waits at
    the end of a turn or an epoch waits on: a picture may come a little later than in its turn, but none is left out and
    none comes twice before all others of its shape came once.

    Args:
        portrait: [N] bool, False for pictures that are wider than high. The others are as in `TrainingOrder`.

    Source: detectron2's aspect-ratio grouping, which YOLOF trains with; chapter 11.
    """

    def __init__(self, portrait: np.ndarray, batch_size: int, seed: int, indices: np.ndarray | None = None):
        super().__init__(len(portrait), batch_size, seed, indices)
        self.portrait = portrait
        self.per_turn = int((~portrait).sum()), int(portrait.sum())  # pictures of each shape
        # Any batch can be asked for at once, so that a run can be resumed there; in a row, nothing is computed twice.
        spanned = [math.ceil(batch_size / n) + 1 for n in self.per_turn if n > 0]  # turns that a batch can touch
        self._queue = lru_cache(maxsize=sum(spanned))(self._queue)
        self._batches = lru_cache(maxsize=1)(self._batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in self.numbers():
            # After so many turns so many batches are full; this one becomes full in the last turn before it counts.
            turns = range(self.batch_size * (batch + 2))
            turn = bisect.bisect_right(turns, batch, key=lambda turns: sum(self._full_after(turns))) - 1
            shape, number = self._batches(turn)[batch - sum(self._full_after(turn))]
            keys = []
            for place in range(number * self.batch_size, (number + 1) * self.batch_size):  # in the queue of this shape
                turn, position = divmod(place, self.per_turn[shape])
                keys.append(SampleKey(int(self.indices[self._queue(turn, shape)[0][position]]), turn, self.strong))
            yield keys

    def _full_after(self, turns: int) -> list[int]:
        """Batches of each shape that are full after so many whole turns."""
        return [turns * n // self.batch_size for n in self.per_turn]

    def _queue(self, turn: int, shape: int) -> tuple[np.ndarray, np.ndarray]:
        """What a turn adds to the queue of a shape: pictures in their order, and when in that turn each arrives."""
        order = self.shuffled(turn)
        arrivals = np.flatnonzero(self.portrait[order] == bool(shape))
        return order[arrivals], arrivals

    def _batches(self, turn: int) -> list[tuple[int, int]]:
        """The batches that become full in a turn, in that order: their shape, and number among those of that shape."""
        full = []
        for shape, (first, end) in enumerate(zip(self._full_after(turn), self._full_after(turn + 1), strict=True)):
            for number in range(first, end):
                last = (number + 1) * self.batch_size - 1 - turn * self.per_turn[shape]  # its last picture in the queue
                full.append((self._queue(turn, shape)[1][last], shape, number))
        return [(shape, number) for _, shape, number in sorted(full)]


class TrainingLoader:
    """Batches for training; made by `training_loader`.

    Call `set_epoch`, then iterate: each step gives images [B, 3, H, W] uint8 and a list of B targets.

    Attributes:
        skipped: pictures that could not be read and were replaced: index in the data set -> how often since the loader
            was made.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        batch_size: int,
        workers: int = 0,
        pin_memory: bool = False,
        skip_empty: bool = False,
        part: slice = slice(None),
        size_for_step: SizeForStep | None = None,
        device: torch.device | None = None,
        compile: bool = False,
        log: Callable[[str], None] = tqdm.write,
    ):
        self.samples = samples
        indices = samples.with_objects if skip_empty else np.arange(len(samples))
        if samples.own_sizes:
            records = [samples.dataset.records[index] for index in indices]
            portrait = np.asarray([record.width <= record.height for record in records], dtype=bool)
            self.order: TrainingOrder = GroupedOrder(portrait, batch_size, samples.seed, indices)
        else:
            self.order = TrainingOrder(len(indices), batch_size, samples.seed, indices)
        if size_for_step is not None and samples.own_sizes:
            raise MinidetError("with resize 'shorter_side' every batch has a size of its own: leave size_for_step out.")
        self.skipped: dict[int, int] = {}
        self.log = log
        self._painter = None if device is None else _Painter(samples, device, compile)
        self._steps = _Steps(self.order, part, size_for_step)
        self._loader = _data_loader(
            _Batches(samples, painted=device is None),
            workers,
            sampler=self._steps,
            batch_size=None,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
        )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.order)

    def set_epoch(self, epoch: int, strong: bool, start: int = 0, stop: int | None = None) -> None:
        """Choose what the next iteration gives.

        Args:
            epoch: from 0; decides order and chance.
            strong: with mosaic, affine map and MixUp.
            start: batches at the beginning of the epoch to leave out, for going on in its middle; they are not loaded.
            stop: the first batch at its end to leave out; None for none.
        """
        self.order.epoch, self.order.strong, self.order.start, self.order.stop = epoch, strong, start, stop

    def __iter__(self) -> Iterator[tuple[Tensor, list[dict]]]:
        batches = self._told(_results(self._loader))
        return map(_unpack, batches) if self._painter is None else self._painter.painted(batches)

    def batch(self, epoch: int, strong: bool, number: int) -> tuple[Tensor, list[dict]]:
        """One batch of an epoch once more, the same bytes; no iteration may be going on any more."""
        self.set_epoch(epoch, strong, start=number, stop=number + 1)
        ((keys, size_hw),) = self._steps
        batch = self.samples.batch(keys, size_hw, painted=self._painter is None)
        return _unpack(batch) if self._painter is None else self._painter.paint(batch)

    def _told(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Count the pictures that were skipped, and name each once."""
        for batch in batches:
            for index, reason in batch.skipped:
                if index not in self.skipped:
                    self.log(f"Note: another picture takes the place of one that cannot be read. {reason}")
                self.skipped[index] = self.skipped.get(index, 0) + 1
            yield batch


def training_loader(
    dataset: DetectionData,
    augmentation: Augmentation,
    size_hw: tuple[int, int],
    batch_size: int,
    seed: int = 0,
    workers: int = 0,
    cache_bytes: int | None = None,
    pin_memory: bool = False,
    progress: bool = False,
    resize: str = "letterbox",
    fill: Fill = GREY,
    skip_empty: bool = False,
    part: slice = slice(None),
    cache: Cache = "auto",
    bad_images: BadImages = "stop",
    size_for_step: SizeForStep | None = None,
    device: torch.device | None = None,
    compile: bool = False,
    log: Callable[[str], None] = tqdm.write,
) -> TrainingLoader:
    """Batches of augmented pictures, all full, in the same order and with the same bytes whenever the seed is the same.

    Args:
        dataset: pictures and boxes.
        augmentation: what may happen to them.
        size_hw: height and width of the network input, multiples of 32; with "shorter_side" shorter and longest side.
        batch_size: images a batch.
        seed: changes order and chance.
        workers: processes that prepare batches; 0 prepares them in this one, with as many threads as torch may use.
        cache_bytes: room in memory for decoded pictures; None: half of what is free.
        pin_memory: put batches into page-locked memory, for a GPU.
        progress: show a bar while pictures are read into the cache.
        resize: how pictures get their size, see `fit_geometry`. With "shorter_side" landscape and portrait pictures
            come in batches of their own (see `GroupedOrder`), each padded to its own largest sides.
        fill: colour of the padding, one value or red, green and blue.
        skip_empty: leave out pictures without objects.
        part: which places of every batch to give; where several processes share a batch, each takes its own.
        cache: where decoded pictures are kept: "ram", "disk", "none", or "auto" for the first that there is room for.
        bad_images: "stop" with an error where a picture cannot be read, or "skip" it.
        size_for_step: multi-scale training: the network input of each step of the run, counted from 0; pictures are
            painted in that size at once. None: always `size_hw`.
        device: a GPU that paints and then holds the batches; plans are drawn here. None: batches are painted on the
            CPU and stay there.
        compile: turn the painting on `device` into one kernel or two, which takes a minute when the first batch comes.
        log: takes every line of text that is told.

    Raises:
        DataError: the data set has no images, or one of them cannot be used (also while iterating, from any worker), or
            a box has no area or is not finite.
        MinidetError: an argument is not possible; while iterating, a worker process was killed.

    Source: YOLOX, section 2.1; YOLOF, section 5; chapter 10.
    """
    samples = TrainingSamples(
        dataset, augmentation, size_hw, seed, cache, cache_bytes, progress, resize, fill, bad_images, log
    )
    return TrainingLoader(
        samples, batch_size, workers, pin_memory, skip_empty, part, size_for_step, device, compile, log
    )


class _Painter:
    """Paints batches on a GPU, each while the network computes on the one before.

    All pictures are kept there if they fit; otherwise those that a batch needs come with it.
    """

    def __init__(self, samples: TrainingSamples, device: torch.device, compile: bool = False):
        self.device = device
        self.render = torch.compile(render_batch, dynamic=True) if compile else render_batch
        self.fill = torch.from_numpy(fill_colour(samples.fill).copy()).to(device)
        self.pixels: Tensor | None = None
        if samples.pictures.kept_in != "none" and samples.pictures.bytes <= SHARE_OF_GPU * _free_on(device):
            self.pixels = samples.pictures.to_device(device)
            samples.on_device = True

    def painted(self, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, list[dict]]]:
        if self.device.type != "cuda":
            for batch in batches:
                yield self.paint(batch)
            return
        training = torch.cuda.current_stream(self.device)
        own = torch.cuda.Stream(self.device)
        own.wait_stream(training)
        waiting = None
        for batch in batches:
            with torch.cuda.stream(own):
                images, targets = self.paint(batch)
                done = own.record_event()
            if waiting is not None:
                yield self._handed_over(*waiting)
            waiting = images, targets, done
        if waiting is not None:
            yield self._handed_over(*waiting)

    def paint(self, batch: Batch) -> tuple[Tensor, list[dict]]:
        def sent(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        plans, pixels = batch.frames
        pixels = self.pixels if pixels is None else sent(pixels)
        images = self.render(pixels, PlanTensors(*map(sent, plans)), tuple(batch.size_hw), self.fill)
        return images, _targets(sent(batch.boxes), sent(batch.labels), batch.owners)

    def _handed_over(self, images: Tensor, targets: list[dict], done: torch.cuda.Event) -> tuple[Tensor, list[dict]]:
        """The training stream waits for the painting, and the memory is not used again before it is done with it."""
        training = torch.cuda.current_stream(self.device)
        training.wait_event(done)
        images.record_stream(training)
        for target in targets:
            target["boxes"].record_stream(training)
            target["labels"].record_stream(training)
        return images, targets


def _free_on(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


class EvaluationLoader:
    """The pictures of a data set as they are, in order; made by `evaluation_loader`."""

    def __init__(self, dataset: Dataset, batch_size: int, workers: int = 0):
        if batch_size < 1:
            raise MinidetError(f"the batch size is {batch_size}, but it must be at least 1.")
        # DataLoader draws a seed for each pass; from a source of its own, so that judging a model does not change how
        # its training goes on.
        own = torch.Generator()
        self._loader = _data_loader(dataset, workers, batch_size=batch_size, collate_fn=_columns, generator=own)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[dict]]]:
        return _results(self._loader)


def evaluation_loader(dataset: Dataset, batch_size: int, workers: int = 0) -> EvaluationLoader:
    """Batches of (list of images uint8 [3, H, W] of any size, list of targets), in the data set's order, none left out.

    Args:
        dataset: gives (image, target) for an index.
        batch_size: images a batch; the last batch may be smaller.
        workers: processes that read images; 0 reads them in this one.

    Raises:
        DataError: while iterating, when an image cannot be read.
    """
    return EvaluationLoader(dataset, batch_size, workers)


# What passes between processes --------------------------------------------------------------------------------------


class _Steps:
    """What each step needs: the keys of its samples, and its size where that changes."""

    def __init__(self, order: TrainingOrder, part: slice, size_for_step: SizeForStep | None):
        self.order, self.part, self.size_for_step = order, part, size_for_step

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[list[SampleKey], tuple[int, int] | None]]:
        for step, keys in zip(self.order.numbers(), self.order, strict=True):
            yield keys[self.part], None if self.size_for_step is None else self.size_for_step(step)


class _Batches(Dataset):
    """Whole batches as the items of a data set, so that one process prepares one."""

    def __init__(self, samples: TrainingSamples, painted: bool):
        self.samples, self.painted = samples, painted

    def __getitem__(self, step: tuple[list[SampleKey], tuple[int, int] | None]) -> Batch:
        return self.samples.batch(*step, painted=self.painted)


class _ErrorsAsValues(Dataset):
    """Hands a MinidetError over like a sample: raised in a worker, its text would arrive buried in a traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except MinidetError as error:
            return error


def _data_loader(dataset: Dataset, workers: int, **options: Any) -> DataLoader:
    if workers < 0:
        raise MinidetError(f"workers is {workers}, but it must be 0 or more.")
    return DataLoader(
        _ErrorsAsValues(dataset),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        **options,
    )


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process: it saves, then ends its workers
    if hasattr(signal, "sigwaitinfo"):  # so is a scheduler's SIGTERM, which reaches all processes
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()


def _end_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _results(loader: DataLoader) -> Iterator[Any]:
    """What a loader gives; an error among it is raised, and so is the death of one of its processes.

    Raises:
        MinidetError: from a worker, or because one was killed.
    """
    results = None
    while True:
        try:
            if results is None:
                with _without_alarm():
                    results = iter(loader)  # asks workers from an earlier iteration whether they are ready
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            workers = getattr(results or loader._iterator, "_workers", [])
            dead = [process for process in workers if not process.is_alive()]
            if not dead and not re.match("DataLoader worker", str(error)):
                raise
            loader._iterator = None  # the next iteration starts new processes
            raise MinidetError(_obituary(dead)) from error
        if isinstance(result, MinidetError):
            raise result
        yield result


def _obituary(dead: Sequence[multiprocessing.process.BaseProcess]) -> str:
    def fate(code: int | None) -> str:
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"ended with code {code}"

    who = ", ".join(f"process {process.pid}, {fate(process.exitcode)}" for process in dead)
    return (
        f"a worker that prepares pictures is gone ({who or 'without a trace'}). Most often the system ends it for want "
        "of memory: take fewer workers (--workers), smaller batches, or --cache disk."
    )


@contextlib.contextmanager
def _without_alarm() -> Iterator[None]:
    """Keep torch from raising an error wherever the main thread happens to be when a worker dies.

    Without its signal handler the loader finds out at the next batch, which is where the error belongs: outside of a
    step that is half done.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", None) == _set_SIGCHLD_handler.__module__:
        before = signal.SIG_DFL  # another loader of this process has set the alarm already
    try:
        yield
    finally:
        if before is not None:  # None: another language's, which cannot be put back
            signal.signal(signal.SIGCHLD, before)


def _as_it_is(item: Any) -> Any:
    return item


def _columns(samples: Sequence[Any]) -> Any:
    """[(image, target), ...] -> (images, targets)."""
    error = next((sample for sample in samples if isinstance(sample, MinidetError)), None)
    return error or tuple(map(list, zip(*samples, strict=True)))


def _unpack(batch: Batch) -> tuple[Tensor, list[dict]]:
    return batch.frames.permute(0, 3, 1, 2), _targets(batch.boxes, batch.labels, batch.owners)


def _targets(boxes: Tensor, labels: Tensor, owners: list[tuple[int, int]]) -> list[dict]:
    counts = [count for count, _ in owners]
    rows = zip(boxes.split(counts), labels.split(counts), owners, strict=True)
    return [{"boxes": own, "labels": classes, "image_id": owner[1]} for own, classes, owner in rows]
