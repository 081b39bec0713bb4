"""Augmentation against the official geometry, OpenCV's numbers, Python's colorsys and arithmetic by hand."""

from __future__ import annotations

import colorsys
import json
import math

import numpy as np
import pytest
import torch

from minidet.data.augment import (
    Augmentation,
    affine_matrix,
    cut_boxes,
    draw_hsv,
    finish,
    flip_horizontal,
    hsv_jitter,
    hsv_to_rgb,
    letterbox,
    letterbox_geometry,
    mixup,
    mosaic,
    mosaic_tile,
    pad,
    random_affine,
    random_mixup,
    random_mosaic,
    random_size,
    resize,
    resize_batch,
    rgb_to_hsv,
    transform_boxes,
    warp_affine,
)
from minidet.errors import MinidetError

NO_BOXES = torch.zeros(0, 4)
NO_LABELS = torch.zeros(0, dtype=torch.int64)
STILL = Augmentation(mosaic_prob=0, mixup_prob=0, degrees=0, translate=0, shear=0, hsv_prob=0, flip_prob=0)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def colours(*rgb: tuple[int, int, int]) -> torch.Tensor:
    """Colours as an image of one row, [3, 1, N]."""
    return torch.tensor(rgb, dtype=torch.uint8).T[:, None, :]


def rows(image: torch.Tensor) -> list[list[int]]:
    """An image of one row as a list of its colours."""
    return image[:, 0, :].T.tolist()


def cases(folder, name: str) -> list[dict]:
    found = json.loads((folder / "data_cases.json").read_text(encoding="utf-8"))[name]
    assert found
    return found


# Size ---------------------------------------------------------------------------------------------------------------


def test_letterbox_geometry_equals_the_official_one(yolox_reference):
    for case in cases(yolox_reference, "letterbox"):
        ratio, resized_hw = letterbox_geometry(tuple(case["image_hw"]), tuple(case["input_hw"]))
        assert ratio == pytest.approx(case["ratio"], rel=1e-12)
        assert list(resized_hw) == case["resized_hw"]


@pytest.mark.parametrize(
    ("image_hw", "size_hw", "ratio", "resized_hw"),
    [
        ((427, 640), (416, 416), 0.65, (277, 416)),  # 277.55 is cut off
        ((100, 37), (320, 512), 3.2, (320, 118)),
        ((375, 1242), (384, 640), 0.5152979, (193, 640)),
        ((360, 333), (416, 416), 1.1555556, (415, 384)),  # 360 * (416 / 360) is a hair below 416
        ((3, 2000), (256, 320), 0.16, (1, 320)),  # 0.48 would be no picture at all
    ],
)
def test_letterbox_cuts_sizes_off_to_whole_pixels(image_hw, size_hw, ratio, resized_hw):
    assert letterbox_geometry(image_hw, size_hw) == (pytest.approx(ratio, rel=1e-6), resized_hw)


def test_letterbox_puts_the_picture_top_left_on_grey():
    image = torch.full((3, 50, 100), 7, dtype=torch.uint8)
    framed, boxes, ratio = letterbox(image, torch.tensor([[10.0, 20, 30, 40]]), (64, 64))
    assert ratio == 0.64
    assert (framed[:, :32, :] == 7).all()
    assert (framed[:, 32:, :] == 114).all()
    torch.testing.assert_close(boxes, torch.tensor([[6.4, 12.8, 19.2, 25.6]]))


def test_letterbox_takes_float_pictures_with_their_own_grey():
    framed, _, _ = letterbox(torch.full((3, 32, 64), 0.5), NO_BOXES, (64, 64), fill=0.25)
    assert framed.dtype == torch.float32
    assert (framed[:, :32] == 0.5).all()
    assert (framed[:, 32:] == 0.25).all()


def test_resizing_interpolates_between_the_two_nearest_pixels_only():
    image = torch.tensor([0, 10, 30, 90, 200, 40, 60, 0], dtype=torch.uint8).expand(3, 2, 8)
    # To a quarter: new centres at 1.5 and 5.5. Antialiasing would mix in pixels 0, 3, 4 and 7.
    assert resize(image, (2, 2))[0, 0].tolist() == [20, 50]
    assert resize(image.float(), (2, 2))[0, 0].tolist() == [20, 50]


def test_resizing_a_batch_equals_the_official_multi_scale_step(yolox_reference):
    for case in cases(yolox_reference, "resize_targets"):
        images = torch.zeros(1, 3, *case["from_hw"], dtype=torch.uint8)
        _, cx, cy, w, h = torch.tensor(case["labels_in"][0])
        box = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])[None]
        resized, targets = resize_batch(images, [{"boxes": box}], tuple(case["to_hw"]))
        assert list(resized.shape) == case["image_shape"]
        _, cx, cy, w, h = case["labels_out"][0]
        assert targets[0]["boxes"].tolist() == [[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]]


def test_resizing_a_batch_scales_x_and_y_apart_and_keeps_the_rest():
    images = torch.stack([noise(64, 96, 1), noise(64, 96, 2)])
    box, labels = torch.tensor([[10.0, 20, 30, 40]]), torch.tensor([3])
    targets = [{"boxes": box, "labels": labels, "image_id": 5}, {"boxes": NO_BOXES, "labels": NO_LABELS}]
    resized, scaled = resize_batch(images, targets, (32, 192))
    assert resized.shape == (2, 3, 32, 192)
    assert resized.dtype == torch.uint8
    assert scaled[0]["boxes"].tolist() == [[20, 10, 60, 20]]
    assert scaled[0]["labels"] is labels
    assert scaled[0]["image_id"] == 5
    assert scaled[1]["boxes"].shape == (0, 4)
    assert targets[0]["boxes"].tolist() == [[10, 20, 30, 40]]
    same, _ = resize_batch(images, targets, (64, 96))
    assert torch.equal(same, images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_resizing_on_a_gpu_gives_the_cpu_result_within_rounding():
    images = torch.stack([noise(64, 96)])
    on_gpu, _ = resize_batch(images.cuda(), [{"boxes": NO_BOXES.cuda()}], (96, 128))
    on_cpu, _ = resize_batch(images, [{"boxes": NO_BOXES}], (96, 128))
    assert on_gpu.dtype == torch.uint8
    assert (on_gpu.cpu().int() - on_cpu.int()).abs().max() <= 1


# Boxes at a border --------------------------------------------------------------------------------------------------


def test_cut_boxes_keeps_everything_unless_told_otherwise():
    boxes = torch.tensor([[-10.0, 0, 10, 10], [0, 0, 40, 40], [90, 90, 95, 99]])
    labels = torch.tensor([4, 5, 6])
    kept, kept_labels = cut_boxes(boxes, labels, (30, 50))
    assert kept.tolist() == [[0, 0, 10, 10], [0, 0, 40, 30], [50, 30, 50, 30]]
    assert kept_labels.tolist() == [4, 5, 6]


def test_min_visible_drops_boxes_of_which_less_is_left():
    boxes = torch.tensor([[-10.0, 0, 10, 10], [-11, 0, 10, 10], [0, 0, 40, 40], [90, 90, 95, 99]])
    labels = torch.tensor([4, 5, 6, 7])
    kept, kept_labels = cut_boxes(boxes, labels, (30, 50), min_visible=0.5)  # visible: 1/2, 10/21, 3/4, 0
    assert kept_labels.tolist() == [4, 6]
    assert kept.tolist() == [[0, 0, 10, 10], [0, 0, 40, 30]]


# Mirror and colour --------------------------------------------------------------------------------------------------


def test_mirror_equals_the_official_one(yolox_reference):
    for case in cases(yolox_reference, "mirror"):
        image = torch.zeros(3, 240, case["width"], dtype=torch.uint8)
        _, boxes = flip_horizontal(image, torch.tensor(case["boxes_xyxy_in"]))
        assert boxes.tolist() == case["boxes_xyxy_out"]


def test_mirror_moves_pixels_and_boxes_together_and_back():
    image = torch.zeros(3, 8, 20, dtype=torch.uint8)
    image[:, 2:5, 1:7] = 255
    boxes = torch.tensor([[1.0, 2, 7, 5]])
    mirrored, moved = flip_horizontal(image, boxes)
    assert moved.tolist() == [[13, 2, 19, 5]]
    assert (mirrored[:, 2:5, 13:19] == 255).all()
    assert mirrored.sum() == image.sum()
    back, boxes_back = flip_horizontal(mirrored, moved)
    assert torch.equal(back, image)
    assert torch.equal(boxes_back, boxes)


def test_hsv_equals_opencvs_numbers():
    rgb = colours(
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0), (255, 255, 255), (77, 77, 77),
        (12, 200, 99), (101, 33, 77), (250, 128, 114), (64, 224, 208), (75, 0, 130),
    )  # fmt: skip
    expected = [  # cv2.cvtColor(..., cv2.COLOR_RGB2HSV), OpenCV 5.0.0
        [0, 255, 255], [60, 255, 255], [120, 255, 255], [30, 255, 255], [0, 0, 0], [0, 0, 255], [0, 0, 77],
        [74, 240, 200], [161, 172, 101], [3, 139, 250], [87, 182, 224], [137, 255, 130],
    ]  # fmt: skip
    assert rows(rgb_to_hsv(rgb)) == expected


def test_hsv_agrees_with_colorsys_within_one_step_both_ways():
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 256, (2000, 3))
    hsv = np.array(rows(rgb_to_hsv(colours(*rgb.tolist()))))
    expected = np.array([colorsys.rgb_to_hsv(*(colour / 255)) for colour in rgb]) * [180, 255, 255]
    off = np.abs(hsv - expected)
    off[:, 0] = np.minimum(off[:, 0], 180 - off[:, 0])  # hue is a circle
    assert off.max() <= 0.6  # rounded to whole steps
    steps = rng.integers(0, [180, 256, 256], (2000, 3))
    back = np.array(rows(hsv_to_rgb(torch.from_numpy(steps).T[:, None, :])))
    expected = np.array([colorsys.hsv_to_rgb(*(step / [180, 255, 255])) for step in steps]) * 255
    assert (expected - back).min() >= -1e-3  # cut off, never rounded up
    assert (expected - back).max() < 1.001


def test_colour_jitter_goes_round_the_hue_circle_and_stops_at_the_ends():
    red, blue, grey, white = (255, 0, 0), (0, 0, 255), (100, 100, 100), (255, 255, 255)
    assert rows(hsv_jitter(colours(blue, red), 60, 0, 0)) == [[255, 0, 0], [0, 255, 0]]
    assert rows(hsv_jitter(colours(red), -60, 0, 0)) == [[0, 0, 255]]
    assert rows(hsv_jitter(colours(grey, white), 40, -30, 30)) == [[130, 130, 130], [255, 255, 255]]
    assert rows(hsv_jitter(colours(grey, red), 0, 0, -120)) == [[0, 0, 0], [135, 0, 0]]
    assert rows(hsv_jitter(colours(red), 0, -255, 0)) == [[255, 255, 255]]


def test_a_batch_of_pictures_changes_colour_as_each_of_them_alone():
    batch = torch.stack([noise(8, 12, seed) for seed in range(3)])
    steps = torch.tensor([[5, -20, 30], [-3, 0, 0], [0, 9, -30]])
    jittered = hsv_jitter(batch, *(steps[:, i].view(3, 1, 1) for i in range(3)))
    for image, own, expected in zip(batch, steps.tolist(), jittered, strict=True):
        assert torch.equal(hsv_jitter(image, *own), expected)


# Affine map ---------------------------------------------------------------------------------------------------------


def test_affine_matrix_and_boxes_equal_the_official_ones(yolox_reference):
    for case in cases(yolox_reference, "affine"):
        width, height = case["target_wh"]
        matrix = affine_matrix(
            case["angle_degrees"],
            case["scale"],
            case["shear_x_degrees"],
            case["shear_y_degrees"],
            case["translate_x_fraction"],
            case["translate_y_fraction"],
            (height, width),
        )
        torch.testing.assert_close(matrix, torch.tensor(case["matrix_2x3"], dtype=torch.float64), rtol=0, atol=1e-12)
        boxes = torch.tensor(case["boxes_xyxy_in"])
        clipped, _ = cut_boxes(transform_boxes(boxes, matrix), torch.zeros(len(boxes)), (height, width))
        torch.testing.assert_close(clipped, torch.tensor(case["boxes_xyxy_out"]), rtol=1e-5, atol=1e-4)


def test_affine_matrix_and_box_equal_one_official_case():
    matrix = affine_matrix(-4, 1.7, 1.5, -1.2, 0.08, -0.05, (480, 640))
    expected = [[1.6933748627, -0.1541091850, 51.2], [0.1629936331, 1.6927536016, -24.0]]
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    hull = transform_boxes(torch.tensor([[10.0, 20, 110, 220]]), matrix)
    torch.testing.assert_close(hull, torch.tensor([[34.229728, 11.485008, 234.389051, 366.335092]]), rtol=0, atol=1e-4)


def test_a_centred_map_leaves_the_centre_where_it_is():
    matrix = affine_matrix(33, 1.4, 5, -3, 0, 0, (100, 200), centred=True)
    centre = torch.tensor([100.0, 50, 1], dtype=torch.float64)
    torch.testing.assert_close(matrix @ centre, centre[:2])
    shifted = affine_matrix(33, 1.4, 5, -3, 0.1, -0.2, (100, 200), centred=True)
    torch.testing.assert_close(shifted @ centre, torch.tensor([120.0, 30], dtype=torch.float64))


def test_warping_equals_opencvs_numbers():
    image = (torch.arange(48, dtype=torch.uint8) * 5).view(4, 4, 3).permute(2, 0, 1)
    matrix = torch.tensor([[1.5, 0.25, -1], [-0.25, 1.25, 0.5]])
    expected = [  # cv2.warpAffine(..., borderValue=(114, 114, 114)), OpenCV 5.0.0, first channel
        [37, 32, 30, 47, 76],
        [40, 57, 75, 92, 108],
        [84, 102, 119, 136, 152],
        [129, 146, 164, 181, 198],
    ]
    assert warp_affine(image, matrix, (4, 5))[0].tolist() == expected


def test_warping_by_nothing_changes_nothing_and_grey_surrounds_the_picture():
    image = noise(50, 70)
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    assert torch.equal(warp_affine(image, identity, (50, 70)), image)
    assert torch.equal(warp_affine(image, identity, (96, 96)), pad(image, (96, 96)))
    moved = warp_affine(image, torch.tensor([[1.0, 0, 5], [0, 1, 9]]), (64, 64))
    assert torch.equal(moved[:, 9:59, 5:64], image[:, :, :59])
    assert (moved[:, :9] == 114).all()
    assert (moved[:, 59:] == 114).all()


def test_warping_by_half_a_pixel_averages_neighbours_and_blends_the_border_with_grey():
    image = torch.tensor([10, 20, 40], dtype=torch.uint8).expand(3, 1, 3)
    moved = warp_affine(image, torch.tensor([[1.0, 0, 0.5], [0, 1, 0]]), (1, 5))
    assert moved[0, 0].tolist() == [62, 15, 30, 77, 114]  # (114 + 10) / 2, (10 + 20) / 2, ..., (40 + 114) / 2


@pytest.mark.parametrize("seed", range(20))
def test_a_warped_rectangle_lies_in_its_transformed_box(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(20, 120, 2)
    box = torch.tensor([[x, y, x + rng.uniform(15, 60), y + rng.uniform(15, 60)]]).round()
    image = torch.zeros(3, 256, 256, dtype=torch.uint8)
    x1, y1, x2, y2 = box[0].int().tolist()
    image[:, y1:y2, x1:x2] = 255
    matrix = affine_matrix(
        *rng.uniform([-10, 0.5, -5, -5, 0, 0.1], [10, 1.5, 5, 5, 0.1, 0.2]), size_hw=(224, 320), centred=bool(seed % 2)
    )
    hull, _ = cut_boxes(transform_boxes(box, matrix), NO_LABELS, (224, 320))
    lit_y, lit_x = (warp_affine(image, matrix, (224, 320), fill=0)[0] > 127).nonzero().unbind(1)
    seen = torch.tensor([lit_x.min(), lit_y.min(), lit_x.max() + 1, lit_y.max() + 1])
    assert (seen - hull[0]).abs().max() < 2


def test_warping_does_not_depend_on_the_number_of_threads():
    matrix = affine_matrix(7, 1.3, 2, -1, 0.1, 0, (128, 160))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(hsv_jitter(warp_affine(resize(noise(300, 401), (128, 171)), matrix, (128, 160)), 3, 20, -9))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# Mosaic -------------------------------------------------------------------------------------------------------------


def test_mosaic_tiles_lie_where_the_official_ones_do(yolox_reference):
    for case in cases(yolox_reference, "mosaic_tiles"):
        canvas, source = mosaic_tile(
            case["tile_index"], tuple(case["centre_xy"]), tuple(case["tile_hw"]), tuple(case["input_hw"])
        )
        assert list(canvas) == case["canvas_x1y1x2y2"]
        assert list(source) == case["source_x1y1x2y2"]
        assert [canvas[0] - source[0], canvas[1] - source[1]] == case["box_shift_xy"]


@pytest.mark.parametrize(
    ("position", "canvas", "source"),
    [
        (0, (300, 0, 700, 200), (0, 120, 400, 320)),
        (1, (700, 0, 1024, 200), (0, 120, 324, 320)),
        (2, (300, 200, 700, 520), (0, 0, 400, 320)),
        (3, (700, 200, 1024, 520), (0, 0, 324, 320)),
    ],
)
def test_each_mosaic_tile_touches_the_centre_with_its_own_corner(position, canvas, source):
    assert mosaic_tile(position, (700, 200), (320, 400), (320, 512)) == (canvas, source)


def test_mosaic_carries_every_object_with_its_box():
    tiles = []
    for value, (height, width) in zip((10, 60, 160, 210), ((64, 50), (40, 96), (64, 96), (64, 80)), strict=True):
        image = torch.full((3, height, width), value, dtype=torch.uint8)
        image[:, 12:30, 5:45] = value + 5
        tiles.append((image, torch.tensor([[5.0, 12, 45, 30]]), torch.tensor([value])))
    canvas, boxes, labels = mosaic(tiles, (80, 70), (64, 96))
    assert canvas.shape == (3, 128, 192)
    assert labels.tolist() == [10, 60, 160, 210]
    assert [canvas[0, y, x].item() for y, x in ((69, 79), (69, 80), (70, 79), (70, 80))] == [10, 60, 160, 210]
    for (x1, y1, x2, y2), value in zip(boxes.int().tolist(), labels.tolist(), strict=True):
        inside = canvas[:, y1:y2, x1:x2]
        assert (inside == value + 5).all()
        assert inside.numel() == (canvas == value + 5).sum()
    assert boxes[2, 0] == 0  # the third picture is wider than the space left of the centre: its object is cut
    assert (canvas[:, :6, :80] == 114).all()


def test_random_mosaic_draws_its_centre_from_the_middle_half_of_the_canvas():
    tiles = [(torch.full((3, 64, 96), i, dtype=torch.uint8), NO_BOXES, NO_LABELS) for i in range(4)]
    whole = Augmentation(mosaic_scale=(0.5, 0.5), degrees=0, shear=0, translate=0)  # the frame shows the whole canvas
    centres = []
    for seed in range(200):
        frame, boxes, labels = random_mosaic(tiles, (64, 96), whole, np.random.default_rng(seed))
        assert frame.shape == (3, 64, 96)
        assert len(boxes) == len(labels) == 0
        top_left = (frame[0] == 0).nonzero()
        centres.append((2 * (top_left[:, 0].max() + 1).item(), 2 * (top_left[:, 1].max() + 1).item()))
    rows_, columns = map(np.array, zip(*centres, strict=True))
    assert 32 <= rows_.min() < 36
    assert 92 < rows_.max() <= 96
    assert 48 <= columns.min() < 53
    assert 139 < columns.max() <= 144
    assert abs(rows_.mean() - 64) < 6  # four standard errors: 4 * 64 / sqrt(12 * 200)
    assert abs(columns.mean() - 96) < 9


# MixUp --------------------------------------------------------------------------------------------------------------


def test_mixup_is_the_mean_of_both_and_keeps_all_objects():
    a, b = noise(32, 48, 1), noise(32, 48, 2)
    box_a, box_b = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[10.0, 5, 30, 20]])
    image, boxes, labels = mixup((a, box_a, torch.tensor([1])), (b, box_b, torch.tensor([2])), scale=1, flip=False)
    assert torch.equal(image.int(), (a.int() + b.int()) // 2)
    assert boxes.tolist() == [[1, 2, 3, 4], [10, 5, 30, 20]]
    assert labels.tolist() == [1, 2]


def test_mixup_mirrors_the_pixels_and_boxes_of_the_partner_only():
    a, b = noise(32, 48, 1), noise(32, 48, 2)
    box = torch.tensor([[10.0, 5, 30, 20]])
    image, boxes, _ = mixup((a, box, torch.tensor([1])), (b, box, torch.tensor([2])), scale=1, flip=True)
    assert torch.equal(image.int(), (a.int() + b.flip(-1).int()) // 2)
    assert boxes.tolist() == [[10, 5, 30, 20], [18, 5, 38, 20]]


def test_mixup_pads_a_smaller_partner_with_black():
    a, b = noise(32, 48, 1), torch.full((3, 32, 48), 200, dtype=torch.uint8)
    image, boxes, _ = mixup(
        (a, NO_BOXES, NO_LABELS), (b, torch.tensor([[10.0, 4, 30, 20]]), torch.tensor([2])), scale=0.5, flip=True
    )
    assert torch.equal(image[:, :16, :24].int(), (a[:, :16, :24].int() + 200) // 2)
    assert torch.equal(image[:, 16:], a[:, 16:] // 2)
    assert torch.equal(image[:, :, 24:], a[:, :, 24:] // 2)
    assert boxes.tolist() == [[24 - 15, 2, 24 - 5, 10]]  # mirrored in the half-size picture, 24 wide


def test_mixup_cuts_a_window_out_of_a_larger_partner():
    a, b = torch.zeros(3, 32, 48, dtype=torch.uint8), torch.zeros(3, 32, 48, dtype=torch.uint8)
    b[:, 8:16, 20:40] = 100
    partner = (b, torch.tensor([[20.0, 8, 40, 16], [0, 0, 10, 8]]), torch.tensor([7, 8]))
    image, boxes, labels = mixup((a, NO_BOXES, NO_LABELS), partner, scale=2, flip=False, offset_xy=(30, 10))
    assert boxes.tolist() == [[10, 6, 48, 22], [0, 0, 0, 6]]  # the second ends 10 px left of the window
    assert labels.tolist() == [7, 8]
    assert (image[0, 8:20, 12:46] == 50).all()  # two pixels inside the box, away from the blur of enlarging
    assert (image[0, 25:] == 0).all()
    _, boxes, labels = mixup((a, NO_BOXES, NO_LABELS), partner, 2, False, (30, 10), min_visible=0.1)
    assert labels.tolist() == [7]


def test_random_mixup_keeps_its_window_inside_the_partner():
    sample = (torch.zeros(3, 32, 48, dtype=torch.uint8), NO_BOXES, NO_LABELS)
    partner = (torch.full((3, 32, 48), 200, dtype=torch.uint8), torch.tensor([[0.0, 0, 48, 32]]), torch.tensor([1]))
    large = Augmentation(mixup_scale=(1.5, 1.5))
    for seed in range(50):
        image, boxes, _ = random_mixup(sample, partner, large, np.random.default_rng(seed))
        assert (image == 100).all()  # a window that stuck out would show black
        assert boxes.tolist() == [[0, 0, 48, 32]]
    narrow = (partner[0][:, :, :20], torch.tensor([[0.0, 0, 20, 32]]), torch.tensor([1]))
    image, _, _ = random_mixup(sample, narrow, Augmentation(mixup_scale=(1, 1)), np.random.default_rng(0))
    assert set(image.unique().tolist()) == {57, 100}  # the partner is letterboxed first: half of 114, half of 200


# Chance -------------------------------------------------------------------------------------------------------------


def test_random_affine_stays_within_its_ranges_and_reaches_them():
    image, box = torch.zeros(3, 100, 200, dtype=torch.uint8), torch.tensor([[40.0, 30, 80, 60]])
    shift_only = Augmentation(degrees=0, shear=0, translate=0.1)
    corners = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        _, boxes, _ = random_affine((image, box, torch.tensor([0])), (100, 200), (0.5, 1.5), shift_only, rng)
        corners.append(boxes[0].numpy())
    corners = np.array(corners)
    scale = (corners[:, 2] - corners[:, 0]) / 40
    shift_x, shift_y = corners[:, 0] - 40 * scale, corners[:, 1] - 30 * scale
    for drawn, low, high in ((scale, 0.5, 1.5), (shift_x, -20, 20), (shift_y, -10, 10)):
        span = high - low
        assert low - 1e-4 <= drawn.min() < low + 0.05 * span
        assert high - 0.05 * span < drawn.max() <= high + 1e-4
        assert abs(drawn.mean() - (low + high) / 2) < 4 * span / math.sqrt(12 * 300)


def test_drawn_colours_shift_each_part_half_of_the_time_by_up_to_its_gain():
    start = np.array([90, 128, 128])
    image = hsv_to_rgb(torch.from_numpy(start)[:, None, None])
    seen = rgb_to_hsv(image)[:, 0, 0].numpy()
    shifts = []
    for seed in range(600):
        steps = draw_hsv(Augmentation(hsv_gains=(20, 60, 60)), np.random.default_rng(seed))
        shifted = hsv_jitter(image, *steps)
        shifts.append(rgb_to_hsv(shifted)[:, 0, 0].numpy() - seen)
    shifts = np.abs(np.array(shifts))
    assert (shifts.max(axis=0) <= [21, 62, 60]).all()  # hue and saturation are read back with rounding
    assert (shifts.max(axis=0) >= [18, 55, 55]).all()
    changed = (shifts[:, 2] > 0).mean()
    assert abs(changed - 0.5 * 59 / 60) < 0.08  # four standard errors; a shift under one step is cut to none


def test_finish_drops_boxes_that_are_not_wider_and_higher_than_one_pixel():
    boxes = torch.tensor([[0.0, 0, 1, 9], [0, 0, 1.5, 1.5], [0, 0, 9, 1], [5, 5, 5, 9], [2, 2, 20, 20]])
    _, kept, labels = finish((noise(32, 32), boxes, torch.arange(5)), (32, 32), STILL, np.random.default_rng(0))
    assert labels.tolist() == [1, 4]
    assert torch.equal(kept, boxes[[1, 4]])


def test_finish_takes_the_plain_picture_where_no_box_is_large_enough():
    image = noise(20, 32)
    boxes = torch.tensor([[3.0, 3, 3.5, 9], [7, 7, 7, 20]])  # the second has no area at all
    lively = Augmentation(hsv_prob=1, flip_prob=1)
    for seed in range(5):
        result, kept, labels = finish((image, boxes, torch.arange(2)), (32, 32), lively, np.random.default_rng(seed))
        assert torch.equal(result, pad(image, (32, 32)))
        assert kept.tolist() == [[3, 3, 3.5, 9]]
        assert labels.tolist() == [0]


def test_finish_only_pads_a_picture_without_objects():
    lively = Augmentation(hsv_prob=1, flip_prob=1)
    image, boxes, labels = finish((noise(20, 32), NO_BOXES, NO_LABELS), (32, 64), lively, np.random.default_rng(1))
    assert torch.equal(image, pad(noise(20, 32), (32, 64)))
    assert boxes.shape == (0, 4)
    assert len(labels) == 0


def test_finish_mirrors_before_it_pads_so_grey_stays_at_the_right():
    image, box = torch.full((3, 32, 20), 9, dtype=torch.uint8), torch.tensor([[2.0, 0, 10, 30]])
    mirror = Augmentation(hsv_prob=0, flip_prob=1)
    result, boxes, _ = finish((image, box, torch.tensor([0])), (32, 64), mirror, np.random.default_rng(0))
    assert (result[:, :, :20] == 9).all()
    assert (result[:, :, 20:] == 114).all()
    assert boxes.tolist() == [[10, 0, 18, 30]]


def test_finish_keeps_at_most_so_many_objects_in_their_order():
    boxes = torch.tensor([[0.0, 0, 8, 8]]).repeat(200, 1)
    sample = (noise(32, 32), boxes, torch.arange(200))
    _, kept, labels = finish(sample, (32, 32), STILL, np.random.default_rng(0))
    assert len(kept) == 120
    assert labels.tolist() == list(range(120))


def test_random_sizes_are_multiples_of_32_in_the_range_and_keep_the_shape():
    rng = np.random.default_rng(0)
    square = {random_size(rng, (320, 640), (416, 416)) for _ in range(300)}
    assert square == {(32 * k, 32 * k) for k in range(10, 21)}
    wide = {random_size(rng, (192, 320), (256, 320)) for _ in range(200)}
    assert wide == {(192, 224), (224, 256), (256, 320), (288, 352), (320, 384)}  # width int(k * 1.25) * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mosaic_prob": 1.5}, "mosaic_prob is 1.5, but it must lie between 0 and 1"),
        ({"min_visible": -0.1}, "min_visible is -0.1, but it must lie between 0 and 1"),
        ({"mosaic_scale": (2, 0.1)}, "two factors above 0, the smaller one first"),
        ({"mixup_scale": (0, 1)}, "two factors above 0"),
        ({"mosaic_scale": 0.5}, "mosaic_scale is 0.5, but it must be 2 numbers"),
        ({"hsv_gains": (1, 2)}, "hsv_gains is \\(1, 2\\), but it must be 3 numbers"),
        ({"degrees": float("nan")}, "degrees is nan, but it must be a number"),
        ({"translate": -1}, "translate is -1, but it must not be negative"),
        ({"shear": 45}, "shear is 45 degrees, but it must be below 45"),
        ({"max_labels": 0}, "max_labels is 0"),
    ],
)
def test_an_impossible_augmentation_is_refused_by_name(change, message):
    with pytest.raises(MinidetError, match=message):
        Augmentation(**change)
