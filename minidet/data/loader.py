"""From a data set on disk to batches: what is cached, what is drawn for whom, and in which order.

Chance is tied to the sample, not to the worker: (seed, epoch, index) decide everything that happens to a picture, so a
training run sees the same batches with any number of workers, and after a resume.

Source: YOLOX, section 2.1; chapter 10.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minidet.data.augment import (
    Augmentation,
    Sample,
    finish,
    letterbox_geometry,
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
    """The pictures of a data set, resized to fit the network input; kept in memory if all of them fit into it.

    Args:
        dataset: the pictures.
        size_hw: height and width of the network input.
        cache_bytes: memory that may be used; 0 reads every picture anew, every time.
        progress: show a bar while the memory is filled.

    Raises:
        DataError: a picture cannot be read.
    """

    def __init__(self, dataset: DetectionData, size_hw: tuple[int, int], cache_bytes: int = 0, progress: bool = False):
        self.dataset = dataset
        self.sizes_hw = []
        self.ratios = []
        for record in dataset.records:
            ratio, resized_hw = letterbox_geometry((record.height, record.width), size_hw)
            self.ratios.append(ratio)
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
        size_hw: height and width of the network input, multiples of 32.
        seed: changes every draw.
        cache_bytes: see `ResizedImages`.
        progress: show a bar while pictures are read into memory.

    Raises:
        DataError: the data set has no images, or one of them cannot be used.
        MinidetError: `size_hw` or `seed` is not possible.

    Source: YOLOX, section 2.1; chapter 10.
    """

    def __init__(
        self,
        dataset: DetectionData,
        augmentation: Augmentation,
        size_hw: tuple[int, int],
        seed: int = 0,
        cache_bytes: int = 0,
        progress: bool = False,
    ):
        if len(dataset) == 0:
            raise DataError("the training set has no images. Check its annotation file.")
        if min(size_hw) < 32 or size_hw[0] % 32 or size_hw[1] % 32:
            raise MinidetError(f"the input size is {size_hw}, but height and width must be multiples of 32, from 32.")
        if seed < 0:
            raise MinidetError(f"seed is {seed}, but it must be 0 or more.")
        self.dataset = dataset
        self.augmentation = augmentation
        self.size_hw = size_hw
        self.seed = seed
        self.images = ResizedImages(dataset, size_hw, cache_bytes, progress)
        has_objects = [len(dataset.target(index)["labels"]) > 0 for index in range(len(dataset))]
        self.with_objects = np.flatnonzero(has_objects)  # MixUp's partners

    def __len__(self) -> int:
        return len(self.dataset)

    def resized(self, index: int) -> Sample:
        """A picture that fits into the network input, not padded, with its boxes and labels."""
        target = self.dataset.target(index)
        return self.images[index], target["boxes"] * self.images.ratios[index], target["labels"]

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, dict]:
        index, epoch, strong = key
        a, size_hw = self.augmentation, self.size_hw
        rng = np.random.default_rng([self.seed, epoch, index])
        sample = self.resized(index)
        if strong and rng.random() < a.mosaic_prob:
            others = [self.resized(int(other)) for other in rng.integers(len(self), size=3)]
            sample = random_mosaic([sample, *others], size_hw, a, rng)
            if len(sample[1]) > 0 and rng.random() < a.mixup_prob:  # so there are partners, too
                partner = self.resized(int(rng.choice(self.with_objects)))
                sample = random_mixup(sample, partner, a, rng)
        elif strong and rng.random() < a.affine_prob:
            sample = random_affine(sample, size_hw, a.affine_scale, a, rng, centred=True)
        image, boxes, labels = finish(sample, size_hw, a, rng)
        return image, {"boxes": boxes, "labels": labels, "image_id": self.dataset.records[index].id}


class TrainingOrder:
    """Batches of keys: an endless row of shuffled turns through the data set, cut into epochs of equally full batches.

    An epoch has ceil(N / B) batches. Where B does not divide N it takes its last samples from the next turn, and the
    next epoch goes on from there; so every picture is seen equally often, even when there are fewer than B.

    Source: YOLOX, official code; chapter 11.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int):
        if batch_size < 1:
            raise MinidetError(f"the batch size is {batch_size}, but it must be at least 1.")
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch, self.strong, self.start = 0, True, 0

    def __len__(self) -> int:
        return math.ceil(self.num_images / self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        turn, order = -1, None
        for batch in range(self.start, len(self)):
            first = (self.epoch * len(self) + batch) * self.batch_size  # place in the endless row
            keys = []
            for place in range(first, first + self.batch_size):
                if place // self.num_images != turn:
                    turn = place // self.num_images
                    order = np.random.default_rng([self.seed, turn, self.num_images]).permutation(self.num_images)
                keys.append(SampleKey(int(order[place % self.num_images]), turn, self.strong))
            yield keys


class TrainingLoader:
    """Batches for training; made by `training_loader`.

    Call `set_epoch`, then iterate: each step gives images [B, 3, H, W] uint8 and a list of B targets.
    """

    def __init__(self, samples: TrainingSamples, batch_size: int, workers: int = 0, pin_memory: bool = False):
        self.samples = samples
        self.order = TrainingOrder(len(samples), batch_size, samples.seed)
        self._loader = _data_loader(samples, workers, batch_sampler=self.order, collate_fn=_pack, pin_memory=pin_memory)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.order)

    def set_epoch(self, epoch: int, strong: bool, start: int = 0) -> None:
        """Choose what the next iteration gives.

        Args:
            epoch: from 0; decides order and chance.
            strong: with mosaic, affine map and MixUp.
            start: batches at the beginning of the epoch to leave out, for going on in its middle; they are not loaded.
        """
        self.order.epoch, self.order.strong, self.order.start = epoch, strong, start

    def __iter__(self) -> Iterator[tuple[Tensor, list[dict]]]:
        for batch in _raise_errors(self._loader):
            yield _unpack(*batch)


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
) -> TrainingLoader:
    """Batches of augmented pictures, all full, in the same order and with the same bytes whenever the seed is the same.

    Args:
        dataset: pictures and boxes.
        augmentation: what may happen to them.
        size_hw: height and width of the network input, multiples of 32.
        batch_size: images a batch.
        seed: changes order and chance.
        workers: processes that prepare batches; 0 prepares them in this one.
        cache_bytes: resized pictures stay in memory if they take no more than this.
        pin_memory: put batches into page-locked memory, for a GPU.
        progress: show a bar while pictures are read into memory.

    Raises:
        DataError: the data set has no images, or one of them cannot be used (also while iterating, from any worker).
        MinidetError: an argument is not possible.

    Source: YOLOX, section 2.1; chapter 10.
    """
    samples = TrainingSamples(dataset, augmentation, size_hw, seed, cache_bytes, progress)
    return TrainingLoader(samples, batch_size, workers, pin_memory)


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


def _pack(samples: Sequence[Any]) -> Any:
    """One tensor for the boxes of a whole batch: each tensor that crosses a process border costs a file descriptor."""
    error = _first_error(samples)
    if error is not None:
        return error
    images, targets = zip(*samples, strict=True)
    boxes = torch.cat([target["boxes"] for target in targets])
    labels = torch.cat([target["labels"] for target in targets])
    return torch.stack(images), boxes, labels, [(len(target["labels"]), target["image_id"]) for target in targets]


def _unpack(images: Tensor, boxes: Tensor, labels: Tensor, owners: list[tuple[int, int]]) -> tuple[Tensor, list[dict]]:
    counts = [count for count, _ in owners]
    rows = zip(boxes.split(counts), labels.split(counts), owners, strict=True)
    return images, [{"boxes": own, "labels": classes, "image_id": owner[1]} for own, classes, owner in rows]
