"""Painting in one pass against the steps one by one; OpenCV against tensors; and what both must not do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minidet.data.augment import FLIP_AND_SHIFT, Augmentation, hsv_jitter, resize_batch
from minidet.data.loader import TrainingSamples
from minidet.data.plan import SampleKey, SamplePlan
from minidet.data.render import blend, jitter, render
from minidet.data.render_tensors import PlanTensors, plan_tensors, render_batch
from tests.data.smooth import SmoothPictures
from tests.data.test_plan import CASES, PUBLISHED, some_keys

FILL = (124, 116, 104)
PLAIN = dataclasses.replace(PUBLISHED, hsv_prob=0)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def packed(planned: list[tuple]) -> tuple[torch.Tensor, PlanTensors]:
    """All pictures that some plans need, one after the other, and the plans in numbers."""
    parts, starts, end = [np.zeros((1, 3), dtype=np.uint8)], [], 1
    for _, pictures, _ in planned:
        starts.append({})
        for index, picture in pictures.items():
            starts[-1][index] = end
            parts.append(picture.reshape(-1, 3))
            end += len(parts[-1])
    return torch.from_numpy(np.concatenate(parts)), plan_tensors([plan for plan, _, _ in planned], starts)


def painted_by_tensors(planned: list[tuple], size_hw: tuple[int, int], device: str = "cpu") -> torch.Tensor:
    pixels, plans = packed(planned)
    fill = torch.tensor(FILL, dtype=torch.uint8).to(device)
    return render_batch(pixels.to(device), PlanTensors(*(each.to(device) for each in plans)), size_hw, fill).cpu()


def inner(plan: SamplePlan, pictures: dict, reach: int) -> torch.Tensor:
    """[H, W] bool: pixels that are farther than so many pixels from the edge of any picture or frame."""
    levels = (90, 110, 140, 180, 250)  # no two means of two of them are equal
    grey = {p: np.full_like(pictures[place.index], levels[p]) for p, place in enumerate(plan.placements)}
    own = [dataclasses.replace(place, index=p) for p, place in enumerate(plan.placements)]
    partner = None if plan.partner is None else own.pop()
    frame = np.empty((*plan.size_hw, 3), dtype=np.uint8)
    render(dataclasses.replace(plan, tiles=tuple(own), partner=partner, hsv=(0, 0, 0)), grey, frame, fill=30)
    values = torch.from_numpy(frame[:, :, 0]).float()[None, None]
    largest = F.max_pool2d(values, 2 * reach + 1, 1, reach)
    away = torch.zeros(plan.size_hw, dtype=torch.bool)  # an edge may lie just outside
    within = slice(reach, -reach), slice(reach, -reach)
    away[within] = (largest == -F.max_pool2d(-values, 2 * reach + 1, 1, reach))[0, 0][within]
    return away


@pytest.mark.parametrize(("augmentation", "resize", "size_hw"), CASES)
def test_painting_in_one_pass_equals_the_steps_one_by_one_away_from_edges(augmentation, resize, size_hw):
    augmentation = dataclasses.replace(augmentation, hsv_prob=0)
    samples = TrainingSamples(SmoothPictures(20), augmentation, size_hw, seed=1, resize=resize, fill=FILL)
    compared = total = 0
    for key in some_keys(32, 20):
        image, _ = samples[key]
        expected, _ = samples.step_by_step(key)
        plan, pictures, _ = samples.planned(key)
        away = inner(plan, pictures, 5)
        difference = (image.int() - expected.int()).abs().amax(0)
        assert difference[away].numel() == 0 or difference[away].max() <= 4
        compared += int(away.sum())
        total += away.numel()
    assert compared > 0.5 * total


@pytest.mark.parametrize(("augmentation", "resize", "size_hw"), CASES)
def test_tensors_paint_what_opencv_paints_away_from_edges(augmentation, resize, size_hw):
    augmentation = dataclasses.replace(augmentation, hsv_prob=0)
    samples = TrainingSamples(SmoothPictures(20), augmentation, size_hw, seed=2, resize=resize, fill=FILL)
    planned = [samples.planned(key) for key in some_keys(24, 20)]
    largest_hw = tuple(max(plan.size_hw[side] for plan, _, _ in planned) for side in (0, 1))
    batch = painted_by_tensors(planned, largest_hw)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for (plan, pictures, _), image in zip(planned, batch, strict=True):
        height, width = plan.size_hw
        frame = np.empty((*largest_hw, 3), dtype=np.uint8)
        render(plan, pictures, frame, FILL)
        difference = (image.int() - torch.from_numpy(frame).permute(2, 0, 1).int()).abs().amax(0)
        assert difference[height:].sum() + difference[:, width:].sum() == 0  # padding
        away = inner(plan, pictures, 5)
        assert away.sum() == 0 or difference[:height, :width][away].max() <= 2


def test_tensors_move_colours_as_the_step_by_step_form_does():
    data = SmoothPictures(3)
    data.targets[2] = torch.tensor([[5.0, 5, 50, 50]]), torch.tensor([0])
    samples = TrainingSamples(data, dataclasses.replace(PUBLISHED, flip_prob=0), (128, 192))
    planned = [samples.planned(SampleKey(2, turn, False)) for turn in range(8)]  # 128 x 192 fits as it is
    assert len({plan.hsv for plan, _, _ in planned}) > 5
    for (plan, _, _), image in zip(planned, painted_by_tensors(planned, (128, 192)), strict=True):
        assert torch.equal(image, hsv_jitter(data.pixels[2], *plan.hsv) if any(plan.hsv) else data.pixels[2])


def test_a_picture_of_the_right_size_is_copied_bit_by_bit_and_mirrored_so():
    data = SmoothPictures(3)
    still = Augmentation(mosaic_prob=0, mixup_prob=0, hsv_prob=0, flip_prob=0)
    for flip in (0, 1):
        samples = TrainingSamples(data, dataclasses.replace(still, flip_prob=flip), (128, 192))
        data.targets[2] = torch.tensor([[5.0, 5, 50, 50]]), torch.tensor([0])  # without objects nothing is mirrored
        expected = data.pixels[2].flip(-1) if flip else data.pixels[2]
        assert torch.equal(samples[SampleKey(2, 0, True)][0], expected)
        assert torch.equal(painted_by_tensors([samples.planned(SampleKey(2, 0, True))], (128, 192))[0], expected)


def test_there_is_no_line_between_the_tiles_of_a_mosaic():
    """Four white pictures on black: where three neighbours in a row or column are white, black and white, is a line."""
    data = SmoothPictures(5)
    data.pixels = [torch.full_like(pixels, 250) for pixels in data.pixels]
    white = dataclasses.replace(PLAIN, mixup_prob=0, mosaic_scale=(0.3, 2))
    samples = TrainingSamples(data, white, (128, 192))
    met = 0
    for key in some_keys(40, 5):
        plan, pictures, _ = samples.planned(key)
        frame = np.empty((128, 192, 3), dtype=np.uint8)
        render(plan, pictures, frame, fill=0)
        painted = [torch.from_numpy(frame)[:, :, 0], painted_by_tensors([(plan, pictures, [])], (128, 192))[0, 0]]
        for light in (painted[0].int(), painted[1].int().where(painted[1] == 250, 0)):
            for before, here, after in (
                (light[:, :-8], light[:, 4:-4], light[:, 8:]),
                (light[:-8], light[4:-4], light[8:]),
            ):
                between = (before == 250) & (after == 250)
                assert here[between].float().mean() > 249.5  # but for the tip of a wedge between two pictures
        met += len(plan.tiles) > 1
    assert met > 10


def test_blending_is_the_mean_rounded_down_for_all_values():
    a, b = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    frame, other = np.dstack([a, b, a]), np.dstack([b, a, b])
    expected = (frame.astype(int) + other) // 2
    blend(frame, other)
    assert np.array_equal(frame, expected)


@pytest.mark.parametrize("steps", [(5, 30, 30), (-5, -30, -30), (0, 0, -12), (3, 0, 0)])
def test_colours_move_as_in_the_step_by_step_form(steps):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = hsv_jitter(torch.from_numpy(picture).permute(2, 0, 1), *steps).permute(1, 2, 0).numpy()
    jitter(picture, steps)
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_every_pixel_of_a_frame_is_written_whatever_stood_there():
    samples = TrainingSamples(SmoothPictures(20), PUBLISHED, (128, 192), fill=FILL)
    moving = TrainingSamples(SmoothPictures(20), FLIP_AND_SHIFT, (120, 200), resize="shorter_side", fill=FILL)
    for of in (samples, moving):
        for key in some_keys(20, 20):
            plan, pictures, _ = of.planned(key)
            frames = [np.full((256, 256, 3), value, dtype=np.uint8) for value in (0, 255)]
            for frame in frames:
                render(plan, pictures, frame, FILL)
            assert np.array_equal(*frames)
            assert (frames[0][plan.canvas_hw[0] :] == FILL).all()
            assert (frames[0][:, plan.canvas_hw[1] :] == FILL).all()


def test_painting_in_another_size_equals_resizing_afterwards():
    samples = TrainingSamples(SmoothPictures(20), PLAIN, (128, 192), fill=FILL)
    for key in some_keys(24, 20):
        for size_hw in ((96, 160), (160, 224)):
            plan, pictures, _ = samples.planned(key, size_hw)
            frame = np.empty((*size_hw, 3), dtype=np.uint8)
            render(plan, pictures, frame, FILL)
            expected, _ = resize_batch(samples[key][0][None], [], size_hw)
            difference = (torch.from_numpy(frame).permute(2, 0, 1).int() - expected[0].int()).abs().amax(0)
            away = inner(plan, pictures, 6)
            assert difference[away].numel() == 0 or difference[away].max() <= 5
            # Blobs of light lie where they lay: the mean place of brightness moves by less than a fifth of a pixel.
            assert (brightness(frame) - brightness(expected[0].permute(1, 2, 0).numpy())).abs().max() < 0.3


def brightness(frame: np.ndarray) -> torch.Tensor:
    """The mean (x, y) of light in a picture [H, W, 3]."""
    light = torch.from_numpy(frame).double().sum(-1)
    x = (light.sum(0) * torch.arange(light.shape[1])).sum() / light.sum()
    y = (light.sum(1) * torch.arange(light.shape[0])).sum() / light.sum()
    return torch.stack([x, y])


def test_pictures_and_boxes_are_distributed_as_in_the_published_way():
    """Two independent draws of 240 pictures, one painted in one pass, the other step by step."""
    count = 240
    data = SmoothPictures(40, contrast=160)
    fast = TrainingSamples(data, PUBLISHED, (64, 64), seed=11)
    slow = TrainingSamples(data, PUBLISHED, (64, 64), seed=12)
    keys = [SampleKey(i % 40, i // 40, True) for i in range(count)]
    (images_a, rows_a), (images_b, rows_b) = (
        described(map(fast.__getitem__, keys)),
        described(map(slow.step_by_step, keys)),
    )
    for a, b in ((images_a, images_b), (rows_a, rows_b)):
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()
    # The same draws painted both ways: here chance cancels, so the mean colour can be compared far more closely.
    same, _ = described(map(fast.step_by_step, keys))
    paired = images_a - same
    assert (paired[:, 0] == 0).all()  # numbers of boxes
    assert paired[:, 1:4].mean(0).abs().max() < 0.2  # of 255
    assert paired[:, 4].mean().abs() < 0.2


def described(samples) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each picture number of boxes, red, green, blue, contrast; and of its boxes the mean log of area, x and y."""
    images, rows = [], []
    for image, target in samples:
        boxes = target["boxes"]
        pixels = image.double()
        images.append(torch.stack([torch.tensor(float(len(boxes))), *pixels.mean((1, 2)), pixels.std()]))
        sides = boxes[:, 2:] - boxes[:, :2]
        if len(boxes):  # boxes of one picture depend on one another: their mean counts once
            each = torch.cat([sides.prod(1, keepdim=True).log(), (boxes[:, 2:] + boxes[:, :2]) / 2], dim=1)
            rows.append(each.mean(0))
    return torch.stack(images), torch.stack(rows)


def test_painting_by_tensors_is_one_graph():
    samples = TrainingSamples(SmoothPictures(20), PUBLISHED, (64, 96))
    pixels, plans = packed([samples.planned(key) for key in some_keys(4, 20)])
    fill = torch.tensor(FILL, dtype=torch.uint8)
    compiled = torch.compile(render_batch, fullgraph=True, backend="eager")
    assert torch.equal(compiled(pixels, plans, (64, 96), fill), render_batch(pixels, plans, (64, 96), fill))


@needs_cuda
def test_a_gpu_paints_what_the_cpu_paints_without_being_asked_for_a_number():
    samples = TrainingSamples(SmoothPictures(20), PUBLISHED, (128, 192), fill=FILL)
    planned = [samples.planned(key) for key in some_keys(8, 20)]
    on_cpu = painted_by_tensors(planned, (128, 192))
    pixels, plans = packed(planned)
    pixels, fill = pixels.cuda(), torch.tensor(FILL, dtype=torch.uint8).cuda()
    plans = PlanTensors(*(each.cuda() for each in plans))
    render_batch(pixels, plans, (128, 192), fill)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = render_batch(pixels, plans, (128, 192), fill)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ((on_gpu.cpu().int() - on_cpu.int()).abs() > 1).float().mean() < 0.001
