"""Loading for YOLOF: pictures that keep their shape, batches of one shape, padding in the model's colour."""

from __future__ import annotations

import dataclasses
from collections import Counter
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from minidet.data.augment import FLIP_AND_SHIFT, Augmentation, fit_geometry, resize
from minidet.data.loader import GroupedOrder, SampleKey, TrainingOrder, TrainingSamples, training_loader
from minidet.errors import DataError, MinidetError
from tests.data.test_loader import Pictures, same_batches, same_sample

STILL = Augmentation(mosaic_prob=0, mixup_prob=0, degrees=0, translate=0, shear=0, hsv_prob=0, flip_prob=0)
MEAN = (123.675, 116.28, 103.53)
SIZES = (64, 96)  # shorter and longest side


def nearly_equal(image: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for rounding, which OpenCV and torch do differently when they resize."""
    return image.shape == expected.shape and (image.int() - expected.int()).abs().max() <= 1


def batches_of(data, epochs=(0,), **options) -> list:
    loader = training_loader(data, **({"augmentation": STILL, "size_hw": SIZES, "batch_size": 4} | options))
    found = []
    for epoch in epochs:
        loader.set_epoch(epoch, strong=True)
        found += list(loader)
    return found


# One sample -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_with_the_shorter_side_a_picture_keeps_its_shape_and_is_not_padded(cache):
    data = Pictures(4)
    samples = TrainingSamples(data, STILL, SIZES, cache=cache, resize="shorter_side")
    expected = [(48, 96), (85, 64), (64, 96), (64, 91)]  # of 48 x 96, 80 x 60, 64 x 96, 33 x 47; by hand
    for index, size_hw in enumerate(expected):
        image, target = samples[SampleKey(index, 0, strong=True)]
        assert image.shape == (3, *size_hw)
        assert nearly_equal(image, resize(data.pixels[index], size_hw))
        record = data.records[index]
        x, y = size_hw[1] / record.width, size_hw[0] / record.height
        assert torch.allclose(target["boxes"], data.targets[index]["boxes"] * torch.tensor([x, y, x, y]))


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_stretched_pictures_fill_the_frame_and_their_boxes_follow(cache):
    data = Pictures(4)
    samples = TrainingSamples(data, STILL, (64, 64), cache=cache, resize="stretch")
    for index, record in enumerate(data.records):
        image, target = samples[SampleKey(index, 0, strong=True)]
        assert nearly_equal(image, resize(data.pixels[index], (64, 64)))
        scale = torch.tensor([64 / record.width, 64 / record.height] * 2)
        assert torch.allclose(target["boxes"], data.targets[index]["boxes"] * scale)


def test_a_light_affine_map_stays_within_the_pictures_own_size():
    half = dataclasses.replace(STILL, affine_prob=1.0, affine_scale=(0.5, 0.5))
    data = Pictures(4)
    samples = TrainingSamples(data, half, SIZES, resize="shorter_side", fill=MEAN)
    image, target = samples[SampleKey(1, 0, strong=True)]  # 85 x 64
    assert image.shape == (3, 85, 64)
    assert image[:, 2, 2].tolist() == [124, 116, 104]
    _, scale = fit_geometry((80, 60), SIZES, "shorter_side")
    x1 = data.targets[1]["boxes"][0, 0].item() * scale[0]
    assert target["boxes"][0, 0].item() == pytest.approx(32 + (x1 - 32) / 2, abs=1e-4)


def test_mosaics_of_pictures_without_a_common_size_are_refused_with_a_way_out():
    with pytest.raises(MinidetError, match=r"mosaic_prob is 1\.0.*'shorter_side'.*resize='letterbox'"):
        TrainingSamples(Pictures(4), Augmentation(), SIZES, resize="shorter_side")
    for resized in ("letterbox", "stretch"):
        samples = TrainingSamples(Pictures(4), Augmentation(), (64, 96), resize=resized)
        assert samples[SampleKey(0, 0, strong=True)][0].shape == (3, 64, 96)


@pytest.mark.parametrize("size_hw", [(0, 96), (100, 96)])
def test_impossible_sides_are_refused(size_hw):
    with pytest.raises(MinidetError, match="shorter and the longest side"):
        TrainingSamples(Pictures(2), STILL, size_hw, resize="shorter_side")


@pytest.mark.parametrize(
    "box", [[5, 5, 5, 9], [5, 5, 9, 5], [9, 5, 5, 9], [5, float("nan"), 9, 9], [5, 5, float("inf"), 9]]
)
@pytest.mark.parametrize("resized", ["letterbox", "shorter_side"])
def test_a_box_without_area_or_with_nan_is_refused_by_image_and_number_before_training(box, resized):
    data = Pictures(4)
    data.targets[2]["boxes"][1] = torch.tensor(box)
    with pytest.raises(DataError, match=r"image id 1002: box 1 is \[.*x1 < x2"):
        training_loader(data, STILL, (64, 96), 2, resize=resized)


# Batches --------------------------------------------------------------------------------------------------------------


def test_a_batch_is_padded_to_its_own_largest_sides_in_the_given_colour():
    data = Pictures(8)
    heights = set()
    for images, targets in batches_of(data, resize="shorter_side", fill=MEAN, epochs=range(4), batch_size=3):
        own = [
            fit_geometry(tuple(data.image(t["image_id"] - 1000).shape[1:]), SIZES, "shorter_side")[0] for t in targets
        ]
        assert tuple(images.shape[-2:]) == (max(h for h, _ in own), max(w for _, w in own))
        heights.add(images.shape[-2])
        for image, target, (height, width) in zip(images, targets, own, strict=True):
            expected = resize(data.pixels[target["image_id"] - 1000], (height, width))
            assert nearly_equal(image[:, :height, :width], expected)
            for empty in (image[:, height:], image[:, :, width:]):
                assert (empty == torch.tensor([124, 116, 104], dtype=torch.uint8).view(3, 1, 1)).all()
    assert len(heights) > 1


def test_a_batch_holds_landscape_or_portrait_pictures_only():
    data = Pictures(20)  # every fourth picture is higher than wide
    seen = set()
    for _, targets in batches_of(data, resize="shorter_side", epochs=range(4)):
        shapes = {data.records[t["image_id"] - 1000].width > data.records[t["image_id"] - 1000].height for t in targets}
        assert len(shapes) == 1
        seen |= shapes
    assert seen == {True, False}
    mixed = [{t["image_id"] % 4 == 1 for t in targets} for _, targets in batches_of(data, epochs=range(4))]
    assert {True, False} in mixed  # with the letterbox shapes mix


def test_letterboxed_training_pads_in_the_given_colour_as_well():
    (image,) = batches_of(Pictures(1), batch_size=1, size_hw=(96, 96), fill=MEAN)[0][0]  # 48 x 96 in 96 x 96
    assert image[:, 90, 5].tolist() == [124, 116, 104]


def test_pictures_without_objects_can_be_left_out():
    data = Pictures(10, empty="even")
    kept = {t["image_id"] for _, ts in batches_of(data, skip_empty=True, epochs=range(3), batch_size=2) for t in ts}
    assert kept == {1001, 1003, 1005, 1007, 1009}
    assert len(training_loader(data, STILL, SIZES, 2, skip_empty=True)) == 3
    assert len(training_loader(data, STILL, SIZES, 2)) == 5
    every = {t["image_id"] for _, ts in batches_of(data, epochs=range(3), batch_size=2) for t in ts}
    assert len(every) == 10


def test_any_number_of_workers_gives_the_same_batches_in_every_way_of_resizing():
    for resized in ("shorter_side", "stretch"):
        options = {"resize": resized, "augmentation": FLIP_AND_SHIFT, "size_hw": (64, 96), "epochs": (0, 1)}
        alone = batches_of(Pictures(10), **options)
        assert same_batches(alone, batches_of(Pictures(10), workers=2, cache="none", **options))
        assert not same_batches(alone, batches_of(Pictures(10), seed=1, **options))


def test_shifting_changes_samples_and_the_same_key_gives_the_same_bytes():
    data = Pictures(4)
    shifted, still = (
        TrainingSamples(
            data, dataclasses.replace(FLIP_AND_SHIFT, flip_prob=0, shift_prob=p), SIZES, resize="shorter_side"
        )
        for p in (1.0, 0.0)
    )
    key = SampleKey(0, 3, True)
    assert same_sample(shifted[key], shifted[key])
    assert not torch.equal(shifted[key][0], still[key][0])


def test_what_a_spawned_worker_gets_is_picklable():
    loader = training_loader(Pictures(4), STILL, SIZES, 2, resize="shorter_side", fill=MEAN)._loader
    assert len(ForkingPickler.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn))) < 100_000


# Order ----------------------------------------------------------------------------------------------------------------


def waiting_queues(portrait: np.ndarray, batch_size: int, seed: int, count: int) -> list:
    """The first batches as detectron2 makes them: one endless row, two queues, a batch whenever one is full."""
    row, queues, batches, turn = TrainingOrder(len(portrait), batch_size, seed), ([], []), [], 0
    while len(batches) < count:
        for index in row.shuffled(turn):
            queue = queues[int(portrait[index])]
            queue.append((int(index), turn))
            if len(queue) == batch_size:
                batches.append(list(queue))
                queue.clear()
        turn += 1
    return batches[:count]


@pytest.mark.parametrize(
    ("images", "portraits", "batch_size"),
    [(10, 3, 4), (7, 0, 3), (7, 7, 3), (41, 1, 8), (3, 1, 8), (1, 1, 4), (1, 0, 1), (100, 40, 64), (12, 6, 3)],
)
def test_batches_are_those_of_two_waiting_queues_from_any_place_on(images, portraits, batch_size):
    portrait = np.arange(images) < portraits
    order = GroupedOrder(portrait, batch_size, seed=5)
    found = []
    for order.epoch in range(9):
        found += [[(key.index, key.epoch) for key in batch] for batch in order]
    assert len(found) == 9 * len(order)
    assert found == waiting_queues(portrait, batch_size, 5, len(found))
    fresh = GroupedOrder(portrait, batch_size, seed=5)
    fresh.epoch, fresh.start = 7, len(fresh) - 1
    assert [[(key.index, key.epoch) for key in batch] for batch in fresh] == [found[8 * len(fresh) - 1]]


def test_every_picture_is_seen_equally_often_whatever_its_shape():
    portrait = np.arange(30) < 3  # three portraits wait for a batch of 8
    order, seen = GroupedOrder(portrait, 8, seed=1), Counter()
    for order.epoch in range(60):
        seen.update(key.index for batch in order for key in batch)
    # 60 epochs of 4 batches of 8 are 64 turns of 30; of each shape, fewer than a batch is still waiting.
    assert all(60 <= seen[index] <= 68 for index in range(30))


def test_with_one_shape_alone_the_order_is_the_plain_one():
    for portrait in (np.zeros(10, dtype=bool), np.ones(10, dtype=bool)):
        grouped, plain = GroupedOrder(portrait, 4, seed=2), TrainingOrder(10, 4, seed=2)
        for epoch in range(5):
            grouped.epoch = plain.epoch = epoch
            assert list(grouped) == list(plain)


def test_the_grouped_order_depends_on_its_seed():
    portrait = np.arange(20) % 3 == 0
    assert (
        list(GroupedOrder(portrait, 4, 0)) == list(GroupedOrder(portrait, 4, 0)) != list(GroupedOrder(portrait, 4, 1))
    )


@pytest.mark.parametrize("resized", ["letterbox", "shorter_side"])
def test_an_epoch_can_begin_later_and_end_earlier(resized):
    loader = training_loader(Pictures(20), STILL, (64, 96), batch_size=3, resize=resized)
    loader.set_epoch(2, strong=True)
    whole = list(loader)
    loader.set_epoch(2, strong=True, start=2, stop=5)
    assert len(loader) == len(whole) == 7
    assert same_batches(list(loader), whole[2:5])
    loader.set_epoch(2, strong=True)  # the next epoch is whole again
    assert len(list(loader)) == 7
