"""From a data set on disk to batches: what is cached, what is drawn for whom, and in which order.

Chance is tied to the sample, not to the worker: (seed, epoch, index) decide everything that happens to a picture, so a
training run sees the same batches with any number of workers, and after a resume.

Pictures get their size in one of three ways (`fit_geometry`). "letterbox" and "stretch" make all of them the same size.
With "shorter_side" they keep their shapes: a batch then holds only landscape or only portrait pictures, and is padded
to its own largest sides, so that little of it is padding.

Source: YOLOX, section 2.1; YOLOF, section 5; chapter 10.
"""

from __future__ import annotations

import bisect
import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minidet.data.augment import (
    GREY,
    Augmentation,
    Fill,
    Sample,
    finish,
    fit_geometry,
    pad,
    random_affine,
    random_mixup,
    random_mosaic,
    resize,
)
from minidet.errors import DataError, MinidetError


class DetectionData(Protocol):
    """What a data set must offer; `minidet.data.coco.CocoDataset` does."""

    records: Sequence[Any]  # .id, .height, .width

    def __len__(self) -> int: ...

    def target(self, index: int) -> dict: ...  # boxes [N, 4] xyxy in pixels, labels [N], image_id

    def image(self, index: int) -> Tensor: ...  # uint8 [3, H, W]


class SampleKey(NamedTuple):
    """Names one training sample; the same key gives the same bytes in any process."""

    index: int  # of the picture in the data set
    epoch: int  # which turn through the data set this is, from 0
    strong: bool  # with mosaic, affine map and MixUp; False in the closing phase


class ResizedImages:
    """The pictures of a data set, resized as `fit_geometry` says; kept in memory if all of them fit into it.

    Args:
        dataset: the pictures.
        size_hw, resize: see `fit_geometry`.
        cache_bytes: memory that may be used; 0 reads every picture anew, every time.
        progress: show a bar while the memory is filled.

    Raises:
        DataError: a picture cannot be read.
    """

    def __init__(
        self,
        dataset: DetectionData,
        size_hw: tuple[int, int],
        cache_bytes: int = 0,
        progress: bool = False,
        resize: str = "letterbox",
    ):
        self.dataset = dataset
        self.sizes_hw = []
        self.scales = []  # (x, y) for boxes
        for record in dataset.records:
            resized_hw, scale = fit_geometry((record.height, record.width), size_hw, resize)
            self.scales.append(scale)
            self.sizes_hw.append(resized_hw)
        # One tensor for all: forked workers read the parent's pages, spawned ones are handed a single shared block.
        ends = np.cumsum([3 * height * width for height, width in self.sizes_hw], dtype=np.int64)
        self.starts = np.concatenate([[0], ends])
        self.pixels: Tensor | None = None
        if len(ends) and ends[-1] <= cache_bytes:
            pixels = torch.empty(int(ends[-1]), dtype=torch.uint8)
            for index in tqdm(range(len(dataset)), desc="reading images", unit=" images", disable=not progress):
                pixels[self.starts[index] : self.starts[index + 1]] = self._read(index).flatten()
            self.pixels = pixels

    def __getitem__(self, index: int) -> Tensor:
        """[3, h, w] uint8, the caller's own copy."""
        if self.pixels is None:
            return self._read(index)
        return self.pixels[self.starts[index] : self.starts[index + 1]].view(3, *self.sizes_hw[index]).clone()

    def _read(self, index: int) -> Tensor:
        return resize(self.dataset.image(index), self.sizes_hw[index])


class TrainingSamples(Dataset):
    """Pictures as training sees them: `samples[SampleKey(index, epoch, strong)]` -> (image, target).

    Args:
        dataset: pictures and boxes.
        augmentation: what may happen to them.
        size_hw: height and width of the network input, multiples of 32; with "shorter_side" shorter and longest side.
        seed: changes every draw.
        cache_bytes: see `ResizedImages`.
        progress: show a bar while pictures are read into memory.
        resize: "letterbox", "shorter_side" or "stretch", see `fit_geometry`. With "shorter_side" images have sizes of
            their own, and there can be no mosaic: its four pictures share one canvas of a fixed size.
        fill: colour of everything that no picture covers.

    Attributes:
        with_objects: indices of the pictures that have any.

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
        cache_bytes: int = 0,
        progress: bool = False,
        resize: str = "letterbox",
        fill: Fill = GREY,
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
        self.dataset = dataset
        self.augmentation = augmentation
        self.size_hw = size_hw
        self.seed = seed
        self.fill = fill
        self.with_objects = pictures_with_objects(dataset)  # MixUp's partners
        self.images = ResizedImages(dataset, size_hw, cache_bytes, progress, resize)

    def __len__(self) -> int:
        return len(self.dataset)

    def resized(self, index: int) -> Sample:
        """A picture that fits into the network input, not padded, with its boxes and labels."""
        target = self.dataset.target(index)
        x, y = self.images.scales[index]
        boxes = target["boxes"] * target["boxes"].new_tensor([x, y, x, y])
        return self.images[index], boxes, target["labels"]

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, dict]:
        index, epoch, strong = key
        a, fill = self.augmentation, self.fill
        rng = np.random.default_rng([self.seed, epoch, index])
        sample = self.resized(index)
        size_hw = tuple(sample[0].shape[-2:]) if self.own_sizes else self.size_hw
        if strong and rng.random() < a.mosaic_prob:
            others = [self.resized(int(other)) for other in rng.integers(len(self), size=3)]
            sample = random_mosaic([sample, *others], size_hw, a, rng, fill)
            if len(sample[1]) > 0 and rng.random() < a.mixup_prob:  # so there are partners, too
                partner = self.resized(int(rng.choice(self.with_objects)))
                sample = random_mixup(sample, partner, a, rng, fill)
        elif strong and rng.random() < a.affine_prob:
            sample = random_affine(sample, size_hw, a.affine_scale, a, rng, centred=True, fill=fill)
        image, boxes, labels = finish(sample, size_hw, a, rng, fill)
        return image, {"boxes": boxes, "labels": labels, "image_id": self.dataset.records[index].id}


def pictures_with_objects(dataset: DetectionData) -> np.ndarray:
    """Indices of the pictures that have objects, [N] int64; every box is checked on the way.

    Raises:
        DataError: a box is not finite, or has no area; the text names the picture and the box.
    """
    found = []
    for index in range(len(dataset)):
        boxes = dataset.target(index)["boxes"]
        if len(boxes) == 0:
            continue
        found.append(index)
        wrong = ~boxes.isfinite().all(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
        if wrong.any():
            box = int(wrong.nonzero()[0])
            raise DataError(
                f"image id {dataset.records[index].id}: box {box} is {[round(x, 3) for x in boxes[box].tolist()]}, but "
                "boxes are finite (x1, y1, x2, y2) with x1 < x2 and y1 < y2. Correct it or leave it out."
            )
    return np.asarray(found, dtype=np.int64)


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


class PartOfOrder:
    """Of every batch the same places: what one of several processes works on, while the others take the rest."""

    def __init__(self, order: TrainingOrder, part: slice):
        self.order, self.part = order, part

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for keys in self.order:
            yield keys[self.part]


class TrainingLoader:
    """Batches for training; made by `training_loader`.

    Call `set_epoch`, then iterate: each step gives images [B, 3, H, W] uint8 and a list of B targets.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        batch_size: int,
        workers: int = 0,
        pin_memory: bool = False,
        skip_empty: bool = False,
        part: slice = slice(None),
    ):
        self.samples = samples
        indices = samples.with_objects if skip_empty else np.arange(len(samples))
        if samples.own_sizes:
            records = [samples.dataset.records[index] for index in indices]
            portrait = np.asarray([record.width <= record.height for record in records], dtype=bool)
            self.order: TrainingOrder = GroupedOrder(portrait, batch_size, samples.seed, indices)
        else:
            self.order = TrainingOrder(len(indices), batch_size, samples.seed, indices)
        batches = {"batch_sampler": PartOfOrder(self.order, part), "collate_fn": partial(_pack, fill=samples.fill)}
        self._loader = _data_loader(samples, workers, pin_memory=pin_memory, **batches)
        self._here = _data_loader(samples, 0, generator=torch.Generator(), **batches)

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
        for batch in _raise_errors(self._loader):
            yield _unpack(*batch)

    def batch(self, epoch: int, strong: bool, number: int) -> tuple[Tensor, list[dict]]:
        """One batch of an epoch once more, the same bytes; no iteration may be going on any more."""
        self.set_epoch(epoch, strong, start=number, stop=number + 1)
        return _unpack(*next(_raise_errors(self._here)))


def training_loader(
    dataset: DetectionData,
    augmentation: Augmentation,
    size_hw: tuple[int, int],
    batch_size: int,
    seed: int = 0,
    workers: int = 0,
    cache_bytes: int = 2 * 2**30,
    pin_memory: bool = False,
    progress: bool = False,
    resize: str = "letterbox",
    fill: Fill = GREY,
    skip_empty: bool = False,
    part: slice = slice(None),
) -> TrainingLoader:
    """Batches of augmented pictures, all full, in the same order and with the same bytes whenever the seed is the same.

    Args:
        dataset: pictures and boxes.
        augmentation: what may happen to them.
        size_hw: height and width of the network input, multiples of 32; with "shorter_side" shorter and longest side.
        batch_size: images a batch.
        seed: changes order and chance.
        workers: processes that prepare batches; 0 prepares them in this one.
        cache_bytes: resized pictures stay in memory if they take no more than this.
        pin_memory: put batches into page-locked memory, for a GPU.
        progress: show a bar while pictures are read into memory.
        resize: how pictures get their size, see `fit_geometry`. With "shorter_side" landscape and portrait pictures
            come in batches of their own (see `GroupedOrder`), each padded to its own largest sides.
        fill: colour of the padding, one value or red, green and blue.
        skip_empty: leave out pictures without objects.
        part: which places of every batch to give; where several processes share a batch, each takes its own.

    Raises:
        DataError: the data set has no images, or one of them cannot be used (also while iterating, from any worker), or
            a box has no area or is not finite.
        MinidetError: an argument is not possible.

    Source: YOLOX, section 2.1; YOLOF, section 5; chapter 10.
    """
    samples = TrainingSamples(dataset, augmentation, size_hw, seed, cache_bytes, progress, resize, fill)
    return TrainingLoader(samples, batch_size, workers, pin_memory, skip_empty, part)


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
        return _raise_errors(self._loader)


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


def _first_error(samples: Sequence[Any]) -> MinidetError | None:
    return next((sample for sample in samples if isinstance(sample, MinidetError)), None)


def _raise_errors(loader: DataLoader) -> Iterator[Any]:
    for batch in loader:
        if isinstance(batch, MinidetError):
            raise batch
        yield batch


def _columns(samples: Sequence[Any]) -> Any:
    """[(image, target), ...] -> (images, targets)."""
    return _first_error(samples) or tuple(map(list, zip(*samples, strict=True)))


def _pack(samples: Sequence[Any], fill: Fill = GREY) -> Any:
    """Pad images to the largest sides of the batch, and put all its boxes into one tensor.

    Each tensor that crosses a process border costs a file descriptor.
    """
    error = _first_error(samples)
    if error is not None:
        return error
    images, targets = zip(*samples, strict=True)
    largest_hw = max(image.shape[1] for image in images), max(image.shape[2] for image in images)
    images = [pad(image, largest_hw, fill) for image in images]
    boxes = torch.cat([target["boxes"] for target in targets])
    labels = torch.cat([target["labels"] for target in targets])
    return torch.stack(images), boxes, labels, [(len(target["labels"]), target["image_id"]) for target in targets]


def _unpack(images: Tensor, boxes: Tensor, labels: Tensor, owners: list[tuple[int, int]]) -> tuple[Tensor, list[dict]]:
    counts = [count for count, _ in owners]
    rows = zip(boxes.split(counts), labels.split(counts), owners, strict=True)
    return images, [{"boxes": own, "labels": classes, "image_id": owner[1]} for own, classes, owner in rows]
