"""YOLOF's preparation of pictures against the reference: sizes, random shift, colours of empty space."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minidet.data.augment import (
    FLIP_AND_SHIFT,
    Augmentation,
    draw_shift,
    empty_frame,
    finish,
    fit_geometry,
    letterbox,
    letterbox_geometry,
    pad,
    random_affine,
    shift,
)
from minidet.errors import MinidetError

STILL = Augmentation(mosaic_prob=0, mixup_prob=0, degrees=0, translate=0, shear=0, hsv_prob=0, flip_prob=0)
MEAN = (123.675, 116.28, 103.53)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 256, (3, height, width), dtype=np.uint8))


# Size -----------------------------------------------------------------------------------------------------------------


def test_the_shorter_side_gives_the_reference_sizes(yolof_reference):
    listed = json.loads((yolof_reference / "data.json").read_text(encoding="utf-8"))["resize_shortest_edge_800_1333"]
    assert len(listed) == 12
    for image_hw, expected_hw in listed:
        assert fit_geometry(tuple(image_hw), (800, 1333), "shorter_side")[0] == tuple(expected_hw)


def test_halves_of_pixels_are_rounded_in_the_order_of_the_official_operations():
    # 800 / 22 * 124 is above 1333, so both shrink by 1333 / 4509.09...: 800 becomes 236.5 less a rounding error.
    assert fit_geometry((22, 124), (800, 1333), "shorter_side")[0] == (236, 1333)


def test_boxes_follow_the_pixels_where_a_picture_is_stretched_or_rounded():
    size_hw, (x, y) = fit_geometry((300, 1500), (800, 1333), "shorter_side")
    assert size_hw == (267, 1333)
    assert (x, y) == (1333 / 1500, 267 / 300)
    assert fit_geometry((100, 400), (608, 608), "stretch") == ((608, 608), (608 / 400, 608 / 100))
    ratio, resized_hw = letterbox_geometry((300, 1500), (608, 608))
    assert fit_geometry((300, 1500), (608, 608), "letterbox") == (resized_hw, (ratio, ratio))


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 5000), (5000, 1), (2000, 3), (37, 1000), (20, 20)])
@pytest.mark.parametrize("resize", ["letterbox", "shorter_side", "stretch"])
def test_no_picture_is_too_small_or_too_thin_to_be_fitted(image_hw, resize):
    (height, width), scales = fit_geometry(image_hw, (64, 96), resize)
    assert 1 <= height <= 96
    assert 1 <= width <= 96
    assert all(0 < scale < 100 for scale in scales)


def test_an_unknown_way_of_resizing_is_refused_by_name():
    with pytest.raises(MinidetError, match=r"resize 'crop' is not known; choose .*letterbox"):
        fit_geometry((10, 10), (32, 32), "crop")


# Shift ----------------------------------------------------------------------------------------------------------------


def test_every_reference_shift_is_met_exactly(yolof_reference):
    data = load_file(yolof_reference / "data.safetensors")
    offsets = json.loads((yolof_reference / "data.json").read_text(encoding="utf-8"))["shifts_xy"]
    image, boxes = data["shift/image"].permute(2, 0, 1), data["shift/boxes"].float()
    assert len(offsets) == 6
    for x, y in offsets:
        moved, kept, labels = shift((image, boxes, torch.arange(len(boxes))), (x, y))
        keep = data[f"shift/{x}_{y}/keep"]
        assert torch.equal(moved, data[f"shift/{x}_{y}/image"].permute(2, 0, 1))
        assert torch.equal(kept, data[f"shift/{x}_{y}/boxes"][keep].float())
        assert torch.equal(labels, keep.nonzero().flatten())


def test_a_picture_shifted_out_of_its_canvas_is_black_and_empty():
    image, boxes, labels = shift((noise(20, 8), torch.tensor([[1.0, 2, 5, 9]]), torch.tensor([3])), (9, -4))
    assert not image.any()
    assert image.shape == (3, 20, 8)
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)


def test_shifts_are_drawn_from_minus_32_to_31_for_one_picture_in_two():
    rng = np.random.default_rng(0)
    x, y = np.asarray([draw_shift(FLIP_AND_SHIFT, rng) for _ in range(3000)]).T
    assert (x.min(), x.max(), y.min(), y.max()) == (
        -32,
        31,
        -32,
        31,
    )  # missing one of the four: 4 * (63/64)^1500 < 1e-9
    assert set(x) == set(y) == set(range(-32, 32))
    still = np.mean((x == 0) & (y == 0))
    assert abs(still - 0.5) < 0.04  # four standard errors
    assert abs(np.corrcoef(x[(x != 0) | (y != 0)], y[(x != 0) | (y != 0)])[0, 1]) < 0.11  # the axes are independent


def test_shifting_is_off_for_yolox_and_draws_no_number_there():
    sample = noise(32, 32), torch.tensor([[4.0, 4, 20, 20]]), torch.tensor([0])
    rng, same = np.random.default_rng(7), np.random.default_rng(7)
    finish(sample, (32, 32), Augmentation(hsv_prob=0), rng)
    same.random(2)  # colour, mirror
    assert rng.random() == same.random()


def test_the_last_steps_shift_with_their_probability_and_after_the_mirror():
    image, box = noise(40, 60), torch.tensor([[10.0, 10, 50, 30]])
    lively = dataclasses.replace(FLIP_AND_SHIFT, flip_prob=1, shift_prob=1, shift_max=5)
    found = set()
    for seed in range(20):
        result, boxes, _ = finish((image, box, torch.tensor([0])), (40, 60), lively, np.random.default_rng(seed))
        x, y = (boxes[0, :2] - 10).int().tolist()
        found.add((x, y))
        assert torch.equal(result, shift((image.flip(-1), box, torch.tensor([0])), (x, y))[0])
    assert len(found) > 10
    result, boxes, _ = finish((image, box, torch.tensor([0])), (40, 60), STILL, np.random.default_rng(0))
    assert torch.equal(result, image)
    assert torch.equal(boxes, box)


def test_a_box_of_half_a_pixel_counts_for_yolof_and_not_for_yolox():
    tiny = noise(32, 32), torch.tensor([[4.0, 4, 4.5, 4.5], [1, 1, 9, 9]]), torch.tensor([0, 1])
    for augmentation, labels in ((dataclasses.replace(FLIP_AND_SHIFT, shift_prob=0), [0, 1]), (STILL, [1])):
        assert finish(tiny, (32, 32), augmentation, np.random.default_rng(0))[2].tolist() == labels


def test_shifts_that_make_no_sense_are_refused_by_name():
    for field, value in (("shift_prob", 1.5), ("shift_max", 0), ("shift_max", 2.5)):
        with pytest.raises(MinidetError, match=f"augmentation: {field} is"):
            Augmentation(**{field: value})


# Colour of empty space ------------------------------------------------------------------------------------------------


def test_empty_space_takes_a_colour_that_is_rounded_for_whole_numbers():
    frame = pad(noise(2, 3), (4, 5), MEAN)
    assert torch.equal(frame[:, :2, :3], noise(2, 3))
    assert frame[:, 3, 4].tolist() == [124, 116, 104]
    assert frame.dtype == torch.uint8
    as_float = empty_frame(torch.zeros(3, 1, 1), (2, 2), MEAN)
    assert as_float[:, 1, 1].tolist() == pytest.approx(MEAN)
    boxed, _, _ = letterbox(noise(16, 32), torch.zeros(0, 4), (32, 32), MEAN)
    assert boxed[:, 20, 5].tolist() == [124, 116, 104]


def test_an_affine_map_shows_the_colour_around_the_picture():
    half = dataclasses.replace(STILL, affine_prob=1)
    sample = noise(32, 32), torch.tensor([[4.0, 4, 20, 20]]), torch.tensor([0])
    image, _, _ = random_affine(sample, (32, 32), (0.5, 0.5), half, np.random.default_rng(0), centred=True, fill=MEAN)
    assert image[:, 2, 2].tolist() == [124, 116, 104]
    grey, _, _ = random_affine(sample, (32, 32), (0.5, 0.5), half, np.random.default_rng(0), centred=True)
    assert grey[:, 2, 2].tolist() == [114, 114, 114]
    assert torch.equal(image[:, 10:22, 10:22], grey[:, 10:22, 10:22])  # and nothing else changes
