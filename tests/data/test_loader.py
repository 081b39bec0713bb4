"""Loading: a key gives the same bytes everywhere, pictures are used equally often, errors arrive readable."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
import time
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from minidet.data import plan as plan_module
from minidet.data.augment import Augmentation, letterbox, resize_batch
from minidet.data.loader import (
    SampleKey,
    TrainingLoader,
    TrainingOrder,
    TrainingSamples,
    evaluation_loader,
    training_loader,
)
from minidet.errors import DataError, MinidetError
from tests.data.smooth import SmoothPictures

PUBLISHED = Augmentation()
STILL = Augmentation(mosaic_prob=0, mixup_prob=0, degrees=0, translate=0, shear=0, hsv_prob=0, flip_prob=0)
SIZE_HW = (64, 96)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Pictures(Dataset):
    """A data set in memory: noise of several sizes, a few boxes each, pictures of even index without any if asked."""

    def __init__(self, count: int, empty: str = "none", broken: int | None = None):
        rng = np.random.default_rng(count)
        sizes = [(48, 96), (80, 60), (64, 96), (33, 47)]
        self.records = [
            SimpleNamespace(id=1000 + i, height=sizes[i % 4][0], width=sizes[i % 4][1]) for i in range(count)
        ]
        self.broken = broken
        self.reads = Counter()
        self.pixels, self.targets = [], []
        for i, record in enumerate(self.records):
            pixels = rng.integers(0, 256, (3, record.height, record.width), dtype=np.uint8)
            self.pixels.append(torch.from_numpy(pixels))
            n = 0 if empty == "all" or (empty == "even" and i % 2 == 0) else 1 + i % 3
            corner = rng.uniform(0, 20, (n, 2))
            boxes = np.concatenate([corner, corner + rng.uniform(5, 12, (n, 2))], axis=1)
            target = {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.full((n,), i),
                "image_id": record.id,
            }
            self.targets.append(target)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int):
        return self.image(index), self.target(index)

    def image(self, index: int) -> torch.Tensor:
        self.reads[index] += 1
        if index == self.broken:
            raise DataError(f"{index}.jpg: is broken. Copy it again.")
        return self.pixels[index].clone()

    def target(self, index: int) -> dict:
        return {
            key: value.clone() if isinstance(value, torch.Tensor) else value
            for key, value in self.targets[index].items()
        }


def same_sample(a, b) -> bool:
    (image_a, target_a), (image_b, target_b) = a, b
    return torch.equal(image_a, image_b) and same_target(target_a, target_b)


def same_target(a: dict, b: dict) -> bool:
    return (
        torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["labels"], b["labels"]) and a["image_id"] == b["image_id"]
    )


def same_batches(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        torch.equal(images_a, images_b) and all(map(same_target, targets_a, targets_b))
        for (images_a, targets_a), (images_b, targets_b) in zip(a, b, strict=True)
    )


def two_epochs(data, workers: int, **options) -> list:
    loader = training_loader(data, PUBLISHED, SIZE_HW, batch_size=4, workers=workers, **options)
    batches = []
    for epoch, strong in ((0, True), (1, False)):
        loader.set_epoch(epoch, strong)
        batches += list(loader)
    return batches


# One sample ---------------------------------------------------------------------------------------------------------


def test_without_augmentation_a_sample_is_the_letterboxed_picture():
    data = Pictures(8)
    samples = TrainingSamples(data, STILL, SIZE_HW)
    for index in range(8):
        image, target = samples[SampleKey(index, epoch=3, strong=True)]
        expected, boxes, _ = letterbox(data.pixels[index], data.targets[index]["boxes"], SIZE_HW)
        assert (image.int() - expected.int()).abs().max() <= 1  # OpenCV and torch round differently when resizing
        if tuple(data.pixels[index].shape[-2:]) in ((48, 96), (64, 96)):  # these fit as they are
            assert torch.equal(image, expected)
        assert torch.equal(target["boxes"], boxes)
        assert torch.equal(target["labels"], data.targets[index]["labels"])
        assert target["image_id"] == 1000 + index


def test_the_same_key_gives_the_same_bytes_and_any_other_key_gives_others():
    data = Pictures(6)
    samples, again = (
        TrainingSamples(data, PUBLISHED, SIZE_HW, seed=5),
        TrainingSamples(data, PUBLISHED, SIZE_HW, seed=5),
    )
    key = SampleKey(2, epoch=1, strong=True)
    sample = samples[key]
    assert sample[0].dtype == torch.uint8
    assert sample[0].shape == (3, *SIZE_HW)
    samples[SampleKey(0, 0, True)]  # what was drawn in between does not matter
    assert same_sample(sample, samples[key])
    assert same_sample(sample, again[key])
    assert not same_sample(sample, TrainingSamples(data, PUBLISHED, SIZE_HW, seed=6)[key])
    for other in (key._replace(epoch=2), key._replace(index=3), key._replace(strong=False)):
        assert not torch.equal(sample[0], samples[other][0])


def test_samples_are_valid_whatever_chance_does():
    samples = TrainingSamples(Pictures(12, empty="even"), PUBLISHED, SIZE_HW)
    for epoch in range(8):
        for index in range(12):
            image, target = samples[SampleKey(index, epoch, strong=True)]
            boxes = target["boxes"]
            assert image.shape == (3, *SIZE_HW)
            assert boxes.dtype == torch.float32
            assert target["labels"].dtype == torch.int64
            assert len(boxes) == len(target["labels"])
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([96, 64, 96, 64])).all()


def test_the_closing_phase_has_colour_and_mirror_only():
    lively = dataclasses.replace(PUBLISHED, affine_prob=1.0, hsv_prob=0.0, flip_prob=1.0)
    data = Pictures(4)
    image, target = TrainingSamples(data, lively, SIZE_HW)[SampleKey(2, 0, strong=False)]  # 64 x 96 fits as it is
    assert torch.equal(image, data.pixels[2].flip(-1))
    assert len(target["boxes"]) == len(data.targets[2]["boxes"])


def test_mosaic_and_affine_come_as_often_as_their_probabilities_say(monkeypatch):
    calls = Counter()
    for name in ("draw_mosaic_centre", "draw_affine", "draw_mixup"):
        original = getattr(plan_module, name)

        def counted(*args, _name=name, _original=original, **kwargs):
            calls[_name] += 1
            return _original(*args, **kwargs)

        monkeypatch.setattr(plan_module, name, counted)
    some = dataclasses.replace(PUBLISHED, mosaic_prob=0.6, affine_prob=0.5, mixup_prob=0.25, mosaic_scale=(0.9, 1.1))
    samples = TrainingSamples(Pictures(4), some, SIZE_HW)
    for epoch in range(75):
        for index in range(4):
            samples[SampleKey(index, epoch, strong=True)]
    mosaics = calls["draw_mosaic_centre"]
    assert abs(mosaics / 300 - 0.6) < 0.12  # four standard errors
    assert abs((calls["draw_affine"] - mosaics) / 300 - 0.4 * 0.5) < 0.10  # a mosaic has one, too
    assert abs(calls["draw_mixup"] / 300 - 0.6 * 0.25) < 0.09


def test_the_partner_in_mixup_has_objects():
    data = Pictures(10, empty="all")
    data.targets[2] = {"boxes": torch.tensor([[0.0, 0, 96, 64]]), "labels": torch.tensor([7]), "image_id": 1002}
    exact = dataclasses.replace(STILL, mosaic_prob=1, mosaic_scale=(1, 1), mixup_prob=1, mixup_scale=(1, 1))
    samples = TrainingSamples(data, exact, SIZE_HW)
    for epoch in range(10):
        # The mosaic's top-left quarter shows part of the first picture, so there is always an object to mix with.
        _, target = samples[SampleKey(2, epoch, strong=True)]
        assert target["boxes"][-1].tolist() == [0, 0, 96, 64]
        assert len(target["boxes"]) >= 2


def test_a_light_affine_map_for_single_pictures_turns_about_the_centre():
    data = Pictures(4)
    data.targets[2]["boxes"] = torch.tensor([[10.0, 20, 50, 40]])
    data.targets[2]["labels"] = torch.tensor([1])
    half = dataclasses.replace(STILL, affine_prob=1.0, affine_scale=(0.5, 0.5))
    image, target = TrainingSamples(data, half, SIZE_HW)[SampleKey(2, 0, strong=True)]
    assert target["boxes"].tolist() == [[29, 26, 49, 36]]  # 48 + (x - 48) / 2, 32 + (y - 32) / 2
    assert (image[:, :15] == 114).all()
    assert (image[:, 49:] == 114).all()


@pytest.mark.parametrize("count", [1, 2])
def test_a_tiny_data_set_can_be_mixed_with_itself(count):
    batches = two_epochs(Pictures(count), workers=0)
    assert [images.shape for images, _ in batches] == [(4, 3, *SIZE_HW)] * 2


def test_a_data_set_without_any_box_trains_without_mixup():
    batches = two_epochs(Pictures(5, empty="all"), workers=0)
    assert len(batches) == 4
    assert all(target["boxes"].shape == (0, 4) for _, targets in batches for target in targets)


# Memory -------------------------------------------------------------------------------------------------------------


def test_pictures_in_memory_give_the_same_samples_and_are_read_once():
    data, kept = Pictures(6), Pictures(6)
    fresh = TrainingSamples(data, PUBLISHED, SIZE_HW)
    cached = TrainingSamples(kept, PUBLISHED, SIZE_HW, cache="ram")
    for index in range(6):
        for strong in (True, False):
            assert same_sample(fresh[SampleKey(index, 0, strong)], cached[SampleKey(index, 0, strong)])
    assert all(kept.reads[index] == 1 for index in range(6))
    assert all(data.reads[index] > 1 for index in range(6))


def test_pictures_are_not_kept_when_they_need_more_memory_than_allowed():
    # 80 x 60 is shrunk to fit into 64 x 96; 33 x 47 will be enlarged when it is painted, not before.
    needed = sum(3 * h * w for h, w in ((48, 96), (64, 48), (64, 96), (33, 47)))
    for room, kept_in in ((needed, "ram"), (needed - 1, "none")):
        samples = TrainingSamples(Pictures(4), STILL, SIZE_HW, cache="auto", cache_bytes=room)
        assert samples.pictures.kept_in == kept_in
        assert samples.pictures.bytes == needed


def test_changing_a_sample_does_not_change_the_picture_in_memory():
    samples = TrainingSamples(Pictures(4), STILL, SIZE_HW, cache="ram")
    key = SampleKey(2, 0, False)
    before = samples[key][0].clone()
    samples[key][0].zero_()
    assert torch.equal(samples[key][0], before)


# Order --------------------------------------------------------------------------------------------------------------


def test_every_turn_uses_every_picture_once_and_batches_are_full():
    order = TrainingOrder(num_images=10, batch_size=4, seed=0)
    batches = []
    for epoch in range(5):
        order.epoch = epoch
        batches += list(order)
    assert len(order) == 3
    assert [len(batch) for batch in batches] == [4] * 15
    keys = [key for batch in batches for key in batch]
    for turn in range(6):  # 5 epochs of 12 samples are 6 turns of 10 pictures
        part = keys[10 * turn : 10 * turn + 10]
        assert sorted(key.index for key in part) == list(range(10))
        assert {key.epoch for key in part} == {turn}
    assert len(set(keys)) == 60  # so no two samples are equal, though pictures come twice in an epoch


def test_the_order_depends_on_seed_and_turn():
    def indices(seed: int, epoch: int) -> list[int]:
        order = TrainingOrder(num_images=20, batch_size=5, seed=seed)
        order.epoch = epoch
        return [key.index for batch in order for key in batch]

    assert indices(0, 0) == indices(0, 0)
    assert indices(0, 0) != indices(0, 1)
    assert indices(0, 0) != indices(1, 0)
    assert indices(0, 0) != sorted(indices(0, 0))


def test_a_batch_larger_than_the_data_set_takes_pictures_again_with_other_chance():
    order = TrainingOrder(num_images=3, batch_size=8, seed=0)
    (batch,) = list(order)
    assert sorted(Counter(key.index for key in batch).values()) == [2, 3, 3]
    assert len(set(batch)) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_going_on_in_the_middle_of_an_epoch_gives_the_rest_of_it(workers):
    loader = training_loader(Pictures(10), PUBLISHED, SIZE_HW, batch_size=3, workers=workers)
    loader.set_epoch(2, strong=True)
    whole = list(loader)
    loader.set_epoch(2, strong=True, start=3)
    assert len(loader) == len(whole) == 4
    assert same_batches(list(loader), whole[3:])
    loader.set_epoch(2, strong=True, start=4)
    assert list(loader) == []


def test_batches_that_are_left_out_are_not_loaded():
    data = Pictures(12)
    loader = training_loader(data, STILL, SIZE_HW, batch_size=4, cache="none")
    loader.set_epoch(0, strong=True, start=2)
    assert len(list(loader)) == 1
    assert sum(data.reads.values()) == 4


# Processes ----------------------------------------------------------------------------------------------------------


def test_any_number_of_workers_gives_the_same_batches():
    alone = two_epochs(Pictures(10), workers=0)
    assert len(alone) == 6
    assert same_batches(alone, two_epochs(Pictures(10), workers=1))
    assert same_batches(alone, two_epochs(Pictures(10), workers=2, cache="none"))
    assert not same_batches(alone, two_epochs(Pictures(10), workers=0, seed=1))


def test_what_a_spawned_worker_gets_is_picklable_and_shares_the_pictures_in_memory():
    """Windows and macOS start workers by spawning: all that a worker needs is pickled, in just this way."""
    samples = TrainingSamples(Pictures(4), PUBLISHED, SIZE_HW, cache="ram")
    loader = TrainingLoader(samples, batch_size=4)._loader
    sent = ForkingPickler.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn))
    assert samples.pictures.pixels.is_shared()
    dataset, _, _ = pickle.loads(sent)
    samples.pictures.pixels.zero_()  # seen on the other side: there is only one copy
    assert dataset.dataset.samples.pictures.pixels.sum() == 0
    assert len(sent) < 100_000


def test_an_iteration_that_was_left_half_way_does_not_leak_into_the_next():
    loader = training_loader(Pictures(10), PUBLISHED, SIZE_HW, batch_size=2, workers=1)
    loader.set_epoch(0, strong=True)
    for _ in loader:
        break
    loader.set_epoch(1, strong=False)
    expected = training_loader(Pictures(10), PUBLISHED, SIZE_HW, batch_size=2)
    expected.set_epoch(1, strong=False)
    assert same_batches(list(loader), list(expected))


class Surroundings(Dataset):
    """Tells how the process that loads is set up."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        return torch.zeros(3, 4, 4), {"threads": torch.get_num_threads(), "ignores_ctrl_c": ignored}


def test_workers_use_one_thread_and_leave_ctrl_c_to_the_main_process():
    ((_, targets),) = list(evaluation_loader(Surroundings(), batch_size=1, workers=1))
    assert targets == [{"threads": 1, "ignores_ctrl_c": True}]
    ((_, targets),) = list(evaluation_loader(Surroundings(), batch_size=1, workers=0))
    assert targets[0]["ignores_ctrl_c"] is False


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_arrives_as_the_plain_error_from_any_process(workers):
    data = Pictures(6, broken=3)
    loader = training_loader(data, STILL, SIZE_HW, batch_size=2, workers=workers, cache="none")
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value) == "3.jpg: is broken. Copy it again."
    with pytest.raises(DataError) as caught:
        list(evaluation_loader(data, batch_size=2, workers=workers))
    assert str(caught.value) == "3.jpg: is broken. Copy it again."


def test_a_broken_picture_is_found_before_training_when_pictures_are_kept_in_memory():
    with pytest.raises(DataError, match=r"3\.jpg"):
        training_loader(Pictures(6, broken=3), STILL, SIZE_HW, batch_size=2)


# Steps of several sizes -----------------------------------------------------------------------------------------------


def changing_size(step: int) -> tuple[int, int]:
    return [(64, 96), (32, 64), (96, 128)][step // 2 % 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_each_step_gets_the_size_that_belongs_to_it_also_after_going_on(workers):
    loader = training_loader(Pictures(10), PUBLISHED, SIZE_HW, 3, workers=workers, size_for_step=changing_size)
    usual = training_loader(Pictures(10), PUBLISHED, SIZE_HW, 3)
    for epoch in (0, 1):  # four steps each
        loader.set_epoch(epoch, strong=True)
        usual.set_epoch(epoch, strong=True)
        batches = list(loader)
        assert [tuple(images.shape[-2:]) for images, _ in batches] == [changing_size(4 * epoch + i) for i in range(4)]
        for (images, targets), (usual_images, usual_targets) in zip(batches, usual, strict=True):
            _, expected = resize_batch(usual_images, usual_targets, tuple(images.shape[-2:]))
            assert all(map(same_target, targets, expected))
    loader.set_epoch(1, strong=True, start=2)
    assert same_batches(list(loader), batches[2:])


def test_pictures_that_keep_their_shape_cannot_change_size_by_step():
    still = dataclasses.replace(STILL)
    with pytest.raises(MinidetError, match="leave size_for_step out"):
        training_loader(Pictures(4), still, SIZE_HW, 2, resize="shorter_side", size_for_step=changing_size)


# Bad pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "cache"), [(0, "none"), (0, "ram"), (2, "none"), (1, "ram")])
def test_a_bad_picture_is_replaced_in_the_same_way_everywhere_counted_and_named_once(workers, cache):
    def batches(workers, cache):
        told = []
        loader = training_loader(
            Pictures(10, broken=3),
            PUBLISHED,
            SIZE_HW,
            4,
            workers=workers,
            cache=cache,
            bad_images="skip",
            log=told.append,
        )
        found = []
        for epoch in range(2):
            loader.set_epoch(epoch, strong=epoch == 0)
            found += list(loader)
        return found, told, loader.skipped

    expected, _, counted = batches(0, "none")
    found, told, skipped = batches(workers, cache)
    assert same_batches(found, expected)
    assert skipped == counted
    assert list(skipped) == [3]
    assert skipped[3] > 2
    assert told == [
        "Note: another picture takes the place of one that cannot be read. 3.jpg: is broken. Copy it again."
    ]
    ids = Counter(target["image_id"] for _, targets in found for target in targets)
    assert 1003 not in ids
    assert ids[1004] > ids[1005]  # the next one comes in its place


def test_a_bad_picture_does_not_change_samples_that_do_not_show_it():
    good = TrainingSamples(Pictures(10), PUBLISHED, SIZE_HW)
    bad = TrainingSamples(Pictures(10, broken=3), PUBLISHED, SIZE_HW, bad_images="skip")
    equal = 0
    for index in range(10):
        key = SampleKey(index, 0, True)
        shown = {placement.index for placement in good.planner.plan(key).placements}
        if 3 not in shown:
            equal += 1
            assert same_sample(good[key], bad[key])
    assert 2 < equal < 10


def test_a_data_set_without_a_readable_picture_is_an_error_also_where_bad_ones_are_skipped():
    data = Pictures(3)
    data.image = lambda index: (_ for _ in ()).throw(DataError(f"{index}.jpg: is broken."))
    loader = training_loader(data, STILL, SIZE_HW, 2, cache="none", bad_images="skip")
    with pytest.raises(DataError, match="none of 3 pictures with objects can be read"):
        list(loader)


def test_a_picture_of_another_size_than_its_record_says_is_refused():
    data = Pictures(4)
    data.records[2].height = 63
    with pytest.raises(DataError, match=r"image id 1002: the picture has \(3, 64, 96\) values"):
        list(training_loader(data, STILL, SIZE_HW, 4, cache="none"))


# Workers that die -----------------------------------------------------------------------------------------------------


class Deadly(Pictures):
    """Kills the process that reads a certain picture, unless it is the main one."""

    def image(self, index: int) -> torch.Tensor:
        if index == 3 and multiprocessing.parent_process() is not None and not self.tame.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(index)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("after_another_loader", [False, True])
def test_a_killed_worker_is_one_clear_error_at_the_next_batch_and_the_loader_lives_on(tmp_path, after_another_loader):
    if after_another_loader:  # with workers, a DataLoader raises an alarm wherever the main thread is when one dies
        assert len(list(torch.utils.data.DataLoader([1, 2], num_workers=1))) == 2
    data = Deadly(8)
    data.tame = tmp_path / "tame"
    loader = training_loader(data, STILL, SIZE_HW, batch_size=2, workers=2, cache="none")

    def training() -> None:
        for _ in loader:
            time.sleep(0.1)  # a step; it is not interrupted

    with pytest.raises(
        MinidetError, match=r"worker .* is gone \(process \d+, killed by SIGKILL\).*--workers"
    ) as caught:
        training()
    assert "\n" not in str(caught.value)
    data.tame.touch()
    assert same_batches(list(loader), list(training_loader(Pictures(8), STILL, SIZE_HW, batch_size=2)))


def test_an_error_in_the_code_of_a_worker_is_not_taken_for_its_death():
    data = Pictures(4)
    data.image = lambda index: (_ for _ in ()).throw(RuntimeError("a fault of the program"))
    with pytest.raises(RuntimeError, match="a fault of the program"):
        list(training_loader(data, STILL, SIZE_HW, batch_size=2, workers=1, cache="none"))


# Threads and devices --------------------------------------------------------------------------------------------------


def test_any_number_of_threads_gives_the_same_batches():
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(two_epochs(Pictures(10), workers=0, cache="none"))
    finally:
        torch.set_num_threads(before)
    assert same_batches(found[0], found[1])
    assert same_batches(found[0], found[2])


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_parts_make_up_the_whole_batch_and_any_batch_can_be_made_again(device):
    options = {"batch_size": 4, "size_for_step": changing_size, "device": device}
    whole, first, rest = (
        training_loader(Pictures(10), PUBLISHED, SIZE_HW, part=part, **options)
        for part in (slice(None), slice(0, 1), slice(1, 4))
    )
    for loader in (whole, first, rest):
        loader.set_epoch(1, strong=True)
    batches = list(whole)
    for (images, targets), (image, target), (others, other_targets) in zip(batches, first, rest, strict=True):
        assert same_batches([(images, targets)], [(torch.cat([image, others]), target + other_targets)])
    assert same_batches([whole.batch(1, True, 2)], [batches[2]])


@pytest.mark.parametrize("cache", ["none", "ram"])  # pictures are sent with a batch, or all kept by the painter
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_painted_on_a_device_have_the_same_boxes_and_nearly_the_same_pixels(cache, workers):
    device = torch.device("cpu")
    options = {"size_for_step": changing_size}
    on_cpu = two_epochs(SmoothPictures(10), workers=0, **options)
    painted = two_epochs(SmoothPictures(10), workers=workers, cache=cache, device=device, **options)
    assert same_batches(painted, two_epochs(SmoothPictures(10), workers=0, cache="none", device=device, **options))
    for (images, targets), (expected, expected_targets) in zip(painted, on_cpu, strict=True):
        assert all(map(same_target, targets, expected_targets))
        assert images.shape == expected.shape
        assert (images.int() - expected.int()).abs().float().mean() < 6  # of 255; edges differ, see test_render


def test_a_painter_takes_the_pictures_over_and_skips_bad_ones_all_the_same():
    data = Pictures(6, broken=3)
    options = {"cache": "ram", "bad_images": "skip", "log": lambda text: None}
    loader = training_loader(data, STILL, SIZE_HW, 6, device=torch.device("cpu"), **options)
    assert loader.samples.on_device
    assert loader.samples.pictures.pixels is None  # there is one copy
    ((_, targets),) = list(loader)
    assert sorted(target["image_id"] for target in targets) == [1000, 1001, 1002, 1004, 1004, 1005]
    assert loader.skipped == {3: 1}


@needs_cuda
@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_gpu_gets_its_batches_ahead_of_time_and_equal_to_those_of_tensors_on_the_cpu(cache):
    options = {"cache": cache, "size_for_step": changing_size}
    expected = two_epochs(SmoothPictures(10), workers=0, device=torch.device("cpu"), **options)
    found = two_epochs(SmoothPictures(10), workers=2, device=torch.device("cuda"), pin_memory=True, **options)
    for (images, targets), (on_cpu, cpu_targets) in zip(found, expected, strict=True):
        assert images.device.type == "cuda"
        assert ((images.cpu().int() - on_cpu.int()).abs() > 1).float().mean() < 0.001
        for target, cpu_target in zip(targets, cpu_targets, strict=True):
            assert torch.equal(target["boxes"].cpu(), cpu_target["boxes"])
            assert target["labels"].device.type == "cuda"


# Arguments and evaluation -------------------------------------------------------------------------------------------


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="no images"):
        training_loader(Pictures(0), STILL, SIZE_HW, batch_size=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_hw": (64, 100)}, r"\(64, 100\), but height and width must be multiples of 32"),
        ({"size_hw": (0, 64)}, "multiples of 32"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"bad_images": "ignore"}, "bad_images is 'ignore', but it must be 'stop' or 'skip'"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    arguments = {"size_hw": SIZE_HW, "batch_size": 2, "seed": 0, "workers": 0} | change
    with pytest.raises(MinidetError, match=message):
        training_loader(Pictures(2), STILL, **arguments)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_gives_every_picture_as_it_is_and_in_order(workers):
    data = Pictures(5)
    loader = evaluation_loader(data, batch_size=2, workers=workers)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    images = [image for images, _ in batches for image in images]
    targets = [target for _, targets in batches for target in targets]
    assert all(torch.equal(image, expected) for image, expected in zip(images, data.pixels, strict=True))
    assert all(map(same_target, targets, data.targets))


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_pictures_to_judge_a_model_leaves_the_random_state_alone(workers):
    before = torch.get_rng_state()
    list(evaluation_loader([(torch.zeros(3, 8, 8, dtype=torch.uint8), {})] * 3, batch_size=2, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
