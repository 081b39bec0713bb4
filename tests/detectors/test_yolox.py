"""YOLOX as its users meet it: the torchvision contract, decoding, losses, post-processing."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

import minidet
from minidet.boxes import cxcywh_to_xyxy
from minidet.detectors.yolox import decode, postprocess
from minidet.files import read_json
from minidet.grid import make_grid


def tiny(**changes):
    return minidet.create_model("yolox-nano", num_classes=3, **{"input_hw": (96, 128), **changes})


def target(boxes=((10.0, 12.0, 60.0, 70.0),), labels=(1,)):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def test_decoding_counts_from_the_corner_of_the_cell_and_takes_exponentials():
    grid = make_grid([(2, 2)], [8])
    raw = torch.zeros(1, 4, 4)
    raw[0, 3] = torch.tensor([0.5, 0.5, math.log(2), math.log(4)])
    boxes = decode(raw, grid)
    assert boxes[0, 0].tolist() == [-4, -4, 4, 4]  # centre at the corner (0, 0), one stride wide
    torch.testing.assert_close(boxes[0, 3], torch.tensor([12.0 - 8, 12 - 16, 12 + 8, 12 + 16]))


def test_absurd_sizes_stay_finite():
    boxes = decode(torch.full((1, 4, 4), 1e6), make_grid([(2, 2)], [8]))
    assert boxes.isfinite().all()


def test_an_untrained_model_believes_in_nothing():
    scores = tiny().eval().dense(torch.rand(1, 3, 64, 64)).class_scores()
    assert scores.mean().item() == pytest.approx(1e-4, rel=0.5)  # prior 0.01 for the class times 0.01 for an object


def test_a_batch_without_any_object_costs_about_84_an_image_at_the_start():
    model = minidet.create_model("yolox-nano").train()
    for level in model.head.levels:
        torch.nn.init.zeros_(level.object_predictor.weight)  # the prior in the bias alone speaks
    losses = model(torch.rand(2, 3, 640, 640), [target((), ())] * 2)
    # 8400 slots x -log(1 - 0.01), divided by one because nothing is positive
    assert losses["loss_objectness"].item() / 2 == pytest.approx(8400 * -math.log(0.99), rel=1e-4)
    assert losses["loss_box"].item() == losses["loss_class"].item() == 0


def test_pictures_of_any_size_are_answered_in_their_own_pixels():
    model = tiny().eval()
    model.score_threshold = 0.0
    pictures = [
        torch.randint(256, (3, 50, 200), dtype=torch.uint8),
        torch.randint(256, (3, 300, 90), dtype=torch.uint8),
    ]
    for picture, found in zip(pictures, model(pictures), strict=True):
        height, width = picture.shape[-2:]
        assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) > 0
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"][:, 0::2] <= width).all()
        assert (found["boxes"][:, 1::2] <= height).all()
        assert (found["scores"].diff() <= 0).all()


def test_a_picture_twice_as_large_gives_boxes_twice_as_large():
    model = tiny().eval()
    model.score_threshold = 0.0
    picture = torch.randint(256, (3, 96, 128), dtype=torch.uint8)
    doubled = picture.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    small, large = model([picture])[0], model([doubled])[0]
    torch.testing.assert_close(2 * small["boxes"], large["boxes"], rtol=1e-3, atol=1e-2)


def test_bytes_and_fractions_of_one_mean_the_same():
    model = tiny().eval()
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    a, b = model.dense(images), model.dense(images.float() / 255)
    torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-3, atol=1e-3)
    pictures = [torch.randint(256, (3, 50, 80), dtype=torch.uint8)]  # with a letterbox around
    a, b = model.dense(pictures), model.dense([pictures[0].float() / 255])
    torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-2, atol=1e-1)


def test_training_on_pictures_equals_training_on_their_letterboxed_batch():
    model = tiny().train()
    picture = torch.randint(256, (3, 48, 64), dtype=torch.uint8)
    batch, scales = model.network_input([picture])
    assert scales == [(2.0, 2.0)]
    on_picture = model([picture], [target(((5.0, 6.0, 30.0, 35.0),))])
    on_batch = model(batch / 255, [target(((10.0, 12.0, 60.0, 70.0),))])
    for name, value in on_picture.items():
        torch.testing.assert_close(value, on_batch[name], rtol=1e-3, atol=1e-4)


def test_the_inside_can_be_asked_for_by_name():
    model = tiny().eval()
    features = model.features(torch.rand(1, 3, 64, 96))
    assert {name: tuple(map.shape[-2:]) for name, map in features.items()} == {
        "stem": (32, 48),
        "dark2": (16, 24),
        "dark3": (8, 12),
        "dark4": (4, 6),
        "dark5": (2, 3),
        "p3": (8, 12),
        "p4": (4, 6),
        "p5": (2, 3),
    }
    dense = model.dense(torch.rand(1, 3, 64, 96))
    assert dense.boxes.shape == (1, 8 * 12 + 4 * 6 + 2 * 3, 4)
    assignment = model.assign(torch.rand(1, 3, 64, 96), [target()])
    assert {"candidates", "cost", "dynamic_k", "conflicts"} <= set(assignment.trace[0])


def test_losses_are_those_of_the_assignment_kept_on_the_model():
    model = tiny().train()
    model(torch.rand(2, 3, 64, 96), [target(), target((), ())])
    assert model.last_assignment.num_gt == (1, 0)
    assert 1 <= model.last_assignment.num_positives <= 27


def test_training_works_after_inference_at_the_same_size():
    model = tiny()
    with torch.inference_mode():
        model.eval()(torch.rand(1, 3, 64, 160))
    model.use_l1 = True
    sum(model.train()(torch.rand(1, 3, 64, 160), [target()]).values()).backward()


def test_the_box_loss_can_be_giou():
    torch.manual_seed(0)
    a = tiny()
    b = tiny(box_loss="giou")
    b.load_state_dict(a.state_dict())
    images = torch.rand(1, 3, 64, 96)
    assert a(images, [target()])["loss_box"] != b(images, [target()])["loss_box"]


def test_normalisation_belongs_to_the_model():
    plain, normalised = tiny(), tiny(pixel_mean=(10.0, 20.0, 30.0), pixel_std=(2.0, 2.0, 2.0))
    normalised.load_state_dict(plain.state_dict())
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    by_hand = (images.float() - torch.tensor([10.0, 20, 30]).view(3, 1, 1)) / 2 / 255
    torch.testing.assert_close(normalised.eval().dense(images).boxes, plain.eval().dense(by_hand).boxes)


BAD = {
    "labels too large": ([target(labels=(3,))], "labels go from 0 to 2 .*these from 3 to 3"),
    "labels negative": ([target(labels=(-1,))], "these from -1"),
    "NaN": ([target(((float("nan"), 0.0, 1.0, 1.0),))], r"targets\[0\]: a box has NaN"),
    "turned round": ([target(((50.0, 0.0, 1.0, 9.0),))], r"x1 < x2 and y1 < y2; boxes\[0\] is \[50.0, 0.0, 1.0, 9.0\]"),
    "no width": (
        [target(((0.0, 0.0, 5.0, 9.0), (7.0, 0.0, 7.0, 9.0)), (1, 2))],
        r"boxes\[1\] is \[7.0, 0.0, 7.0, 9.0\]",
    ),
    "no labels": ([{"boxes": torch.zeros(0, 4)}], "needs 'boxes' and 'labels'"),
    "shapes differ": ([{"boxes": torch.zeros(2, 4), "labels": torch.zeros(1, dtype=torch.int64)}], "these are"),
    "float labels": ([{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)}], "int64"),
    "too few": ([], "1 images, but 0 targets"),
    "none": (None, "needs targets"),
}


@pytest.mark.parametrize(("targets", "message"), BAD.values(), ids=BAD)
def test_bad_targets_are_named(targets, message):
    with pytest.raises(ValueError, match=message):
        tiny().train()(torch.rand(1, 3, 64, 64), targets)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no image"),
        ([torch.zeros(1, 20, 20)], r"images\[0\].*\[3, H, W\]"),
        (torch.zeros(3, 64, 64), r"\[B, 3, H, W\]"),
        (torch.zeros(1, 3, 50, 64), "multiples of 32, these are 50 x 64"),
    ],
)
def test_bad_images_are_named(images, message):
    with pytest.raises(ValueError, match=message):
        tiny().eval()(images)


def test_postprocessing_keeps_a_score_on_the_threshold_and_one_class_a_slot():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 30]])
    scores = torch.tensor([[0.5, 0.4], [0.1, 0.25], [0.2, 0.24]])
    found = postprocess(boxes, scores, score_threshold=0.25, nms_threshold=0.5)
    assert found["labels"].tolist() == [0, 1]
    assert found["scores"].tolist() == [0.5, 0.25]


def test_at_most_max_detections_are_given():
    boxes = torch.arange(40.0).reshape(10, 4).cumsum(0)
    boxes[:, 2:] = boxes[:, :2] + 1
    found = postprocess(boxes, torch.rand(10, 2), 0.0, 0.5, max_detections=4)
    assert len(found["boxes"]) == 4


@pytest.mark.parametrize(
    "name", ["aware", "agnostic", "eval_like", "many", "none_and_one", "on_threshold", "one_class"]
)
def test_postprocessing_equals_the_official_one(yolox_reference, name):
    tensors = load_file(yolox_reference / "postprocess_cases.safetensors")
    meta = read_json(yolox_reference / "postprocess_cases.json")[name]
    for i, rows in enumerate(tensors[f"{name}.input"]):
        found = postprocess(
            cxcywh_to_xyxy(rows[:, :4]),
            rows[:, 5:] * rows[:, 4:5],
            meta["conf_thre"],
            meta["nms_thre"],
            meta["class_agnostic"],
        )
        expected = tensors[f"{name}.output{i}"]
        torch.testing.assert_close(found["boxes"], expected[:, :4], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found["scores"], expected[:, 4] * expected[:, 5])
        assert found["labels"].tolist() == expected[:, 6].long().tolist()
