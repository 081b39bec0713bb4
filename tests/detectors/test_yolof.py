"""YOLOF: its variants and their sizes, its settings, its parts on numbers small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch

import minidet
from minidet.assign import (
    BACKGROUND,
    IGNORED,
    Assignment,
    DensePredictions,
    Pairs,
    UniformMatching,
    pad_targets,
    pairs_of,
)
from minidet.detectors import ZOO
from minidet.detectors.yolof import decode, encode, labels_of, postprocess, share_out, slots_first
from minidet.evaluation.speed import count_parameters
from minidet.grid import make_grid
from minidet.losses import combine_logits

# Official models, 80 classes: trained parameters, all parameters, those of encoder and of head.
PARAMETERS = {
    "yolof-r50-c5": (43_890_601, 44_113_001, 4_534_272, 16_123_817),
    "yolof-r50-dc5": (44_282_366, 44_504_766, 4_534_272, 16_515_582),
    "yolof-r101-c5": (62_830_505, 63_052_905, 4_534_272, 16_123_817),
    "yolof-r101-dc5": (63_222_270, 63_444_670, 4_534_272, 16_515_582),
    "yolof-x101-c5": (101_463_977, 101_861_481, 4_534_272, 16_123_817),
    "yolof-cspdarknet53-dc5": (48_011_006, 48_266_078, 5_133_312, 16_515_582),
}


@pytest.fixture(scope="module", params=PARAMETERS)
def variant(request):
    """Each published variant, built once."""
    return minidet.create_model(request.param)


def test_each_variant_has_the_parameters_of_the_official_one(variant):
    trained, whole, encoder, head = PARAMETERS[variant.name]
    assert count_parameters(variant) == trained == ZOO[variant.name].params
    assert sum(parameter.numel() for parameter in variant.parameters()) == whole
    assert count_parameters(variant.encoder) == encoder
    assert count_parameters(variant.head) == head


def target(boxes=((10.0, 12, 50, 40),), labels=None):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels or [0] * len(boxes)).long()}


def test_each_variant_runs_forwards_and_backwards_and_answers(variant):
    variant.train().zero_grad()
    losses = variant(torch.rand(2, 3, 64, 96), [target(), target()])
    assert set(losses) == {"loss_class", "loss_box"}
    sum(losses.values()).backward()
    for key, parameter in variant.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        else:
            assert key.startswith("backbone.") and parameter.grad is None, key
    variant.eval().score_threshold = 0.0
    (found,) = variant(torch.rand(1, 3, 64, 96))
    assert len(found["boxes"]) > 0
    assert (found["scores"].diff() <= 0).all()


def tiny(**changes):
    torch.manual_seed(0)
    settings = {"num_classes": 3, "width": 16, "mid_width": 4, "input_hw": (64, 96), **changes}
    return minidet.create_model("yolof-r18-c5", **settings)


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "slots"),
    [
        ({}, 2 * 3 * 5),
        ({"encoder": "siso"}, 2 * 3 * 5),
        ({"encoder": "miso"}, 2 * 3 * 5),
        ({"encoder": "simo"}, 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1),
        ({"encoder": "mimo"}, 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1),
        ({"encoder": "mimo", "anchor_sizes": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)}, 2 * 129),
        ({"dilated": True}, 4 * 6 * 5),
        ({"anchor_sizes": (32, 64)}, 2 * 3 * 2),
    ],
)
def test_encoder_dilation_and_anchors_decide_how_many_slots_there_are(changes, slots):
    model = tiny(**changes)
    dense = model.eval().dense(torch.rand(1, 3, 64, 96))
    assert dense.boxes.shape == (1, slots, 4)
    assert len(dense.grid) == slots
    sum(model.train()(torch.rand(2, 3, 64, 96), [target(), target()]).values()).backward()


def test_several_levels_share_the_anchor_sizes_the_finest_gets_the_smallest():
    assert share_out((512, 32, 64, 128, 256, 16), 3) == ((16, 32), (64, 128), (256, 512))
    assert share_out((16, 32), 1) == ((16, 32),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "fpn"}, "fpn"),
        ({"backbone": "vgg"}, "vgg"),
        ({"resize": "crop"}, "crop"),
        ({"encoder": "mimo", "anchor_sizes": (32, 64)}, "5 levels need a multiple of 5"),
        ({"anchor_sizes": ()}, "must be positive"),
        ({"activation": "tanh"}, "tanh"),
        ({"stride_in_1x1": True}, "resnet18"),
        ({"input_hw": (0, 96)}, "input_hw is"),
    ],
)
def test_nonsense_is_refused_with_the_choices(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_the_parts_of_the_ablation_change_only_what_they_say():
    keys = set(tiny().state_dict())
    without_blocks = set(tiny(dilations=()).state_dict())
    assert {key for key in keys - without_blocks} == {key for key in keys if key.startswith("encoder.blocks.")}
    assert without_blocks < keys
    without_objectness = set(tiny(implicit_objectness=False).state_dict())
    assert keys - without_objectness == {"head.object_predictor.weight", "head.object_predictor.bias"}


def test_without_shortcuts_the_encoder_gives_only_what_its_last_block_says():
    x = torch.rand(1, 3, 64, 96)
    model = tiny().eval()
    residual = model.features(x)["encoder"]
    model.encoder.blocks[-1].shortcut = False
    last = model.features(x)["encoder"]
    before = model.encoder.blocks[:-1](_projected(model, x))
    torch.testing.assert_close(residual, before + last)


def _projected(model, x):
    encoder = model.encoder
    c5 = model.features(x)["c5"]
    return encoder.smooth_norm(encoder.smooth(encoder.lateral_norm(encoder.lateral(c5))))


def test_the_first_weights_of_the_blocks_are_as_published_or_as_he_has_them():
    block = minidet.create_model("yolof-r18-c5", encoder_init_std=0.01).encoder.blocks[0]
    assert block.conv2.weight.std().item() == pytest.approx(0.01, rel=0.03)
    block = minidet.create_model("yolof-r18-c5").encoder.blocks[0]
    assert block.conv2.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)  # He: 2 / fan-in


def test_a_fresh_model_scores_half_a_percent_everywhere():
    dense = tiny().eval().dense(torch.rand(1, 3, 64, 96))
    torch.testing.assert_close(dense.class_scores().mean(), torch.tensor(0.005), atol=2e-3, rtol=0)  # 0.01 * 0.5


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_the_shorter_side_is_scaled_and_the_batch_padded_with_the_mean_colour():
    model = tiny(resize="shorter_side", input_hw=(64, 96))
    wide, high = torch.rand(3, 32, 40), torch.rand(3, 100, 50)
    x, scales = model.network_input([wide, high])
    assert x.shape == (2, 3, 96, 80)
    assert scales == [(2.0, 2.0), (48 / 50, 96 / 100)]
    assert torch.equal(x[0, :, 64:, :], torch.tensor(model.config.pixel_mean).view(3, 1, 1).expand(3, 32, 80))
    assert torch.equal(x[1, :, :, 48:], torch.tensor(model.config.pixel_mean).view(3, 1, 1).expand(3, 96, 32))


def test_stretched_pictures_are_answered_in_their_own_pixels():
    model = tiny(resize="stretch").eval()
    model.score_threshold = 0
    picture = torch.rand(3, 200, 50)
    x, scales = model.network_input([picture])
    assert (x.shape, scales) == ((1, 3, 64, 96), [(96 / 50, 64 / 200)])
    (own,), (network,) = model([picture]), model(x / 255)
    scale = torch.tensor([96 / 50, 64 / 200, 96 / 50, 64 / 200])
    torch.testing.assert_close(own["boxes"] * scale, network["boxes"], atol=1e-2, rtol=1e-4)


def test_network_input_need_not_be_a_multiple_of_32():
    model = tiny()
    dense = model.dense(torch.rand(1, 3, 65, 97))
    assert dense.grid.level_shapes == ((3, 4),)  # every stride rounds up
    assert all(value.isfinite() for value in model(torch.rand(2, 3, 65, 33), [target(), target(())]).values())


def test_boxes_that_end_outside_the_picture_are_dropped():
    model = tiny(score_threshold=0.0, center_limit=None).eval()
    with torch.no_grad():
        model.head.box_predictor.bias[0::4] = 50.0  # everything lies far to the right
    (found,) = model([torch.rand(3, 64, 96)])
    assert len(found["boxes"]) == 0
    assert found["boxes"].shape == (0, 4)


# ---- parts, by hand -------------------------------------------------------------------------------------------------


def test_combined_logits_are_the_product_of_two_probabilities():
    class_logits = torch.tensor([17.0, 25.0, 60.0, 100.0, -1e4, 1e4, 1e4])
    object_logits = torch.tensor([-5.0, -5.0, -40.0, 0.0, 1e4, 1e4, -1e4])
    class_logits.requires_grad_()
    combined = combine_logits(class_logits[:, None], object_logits[:, None])[:, 0]
    # sigmoid(17) * sigmoid(-5) etc.; the last in logits: -1e4, 0.693 below 1e4, -1e4
    torch.testing.assert_close(
        combined.sigmoid(), torch.tensor([0.006693, 0.006693, 4.2e-18, 0.5, 0.0, 1.0, 0.0]), atol=1e-6, rtol=0.02
    )
    combined.sum().backward()
    assert class_logits.grad.isfinite().all()
    torch.testing.assert_close(class_logits.grad[3], torch.tensor(0.0))
    torch.testing.assert_close(class_logits.grad[4], torch.tensor(1.0))


def test_channels_become_rows_anchor_by_anchor():
    maps = torch.zeros(1, 2 * 3, 2, 2)
    maps[0, 1 * 3 + 2, 1, 0] = 7.0  # anchor 1, class 2, row 1, column 0
    rows = slots_first(maps, 2)
    assert rows.shape == (1, 8, 3)
    assert rows[0, (1 * 2 + 0) * 2 + 1, 2] == 7
    assert rows.sum() == 7


def test_a_centre_moves_at_most_32_pixels_and_a_side_grows_at_most_62_and_a_half_times():
    anchors = torch.tensor([[0.0, 0, 64, 64]]).expand(3, 4)
    raw = torch.tensor([[0.25, -0.25, 0, 0], [2.0, -2, 0, 0], [0, 0, 10, -10]])
    boxes = decode(raw, anchors)
    torch.testing.assert_close(boxes[0], torch.tensor([16.0, -16, 80, 48]))
    torch.testing.assert_close(boxes[1], torch.tensor([32.0, -32, 96, 32]))
    torch.testing.assert_close(boxes[2, 2] - boxes[2, 0], torch.tensor(64 * 62.5))
    torch.testing.assert_close(boxes[2, 3] - boxes[2, 1], torch.tensor(64 * math.exp(-10)), atol=1e-3, rtol=0)
    free = decode(raw, anchors, center_limit=None)
    torch.testing.assert_close(free[1], torch.tensor([128.0, -128, 192, -64]))


def test_encoding_is_the_inverse_of_decoding():
    anchors = torch.tensor([[0.0, 0, 64, 64], [32, 32, 64, 64]])
    boxes = torch.tensor([[10.0, 20, 70, 60], [40, 20, 80, 80]])
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes)


def dense_for(logits: torch.Tensor) -> DensePredictions:
    """Four 32 px anchors on a 2 x 2 map, predictions on the anchors."""
    grid = make_grid([(2, 2)], [32], anchor_sizes=[(32.0,)])
    return DensePredictions(grid, torch.zeros(1, 4, 4), grid.anchors[None].clone().requires_grad_(), logits, None)


def test_the_losses_by_hand_with_one_positive_one_ignored_and_a_duplicate():
    model = tiny(num_classes=1)
    predictions = dense_for(torch.zeros(1, 4, 1, requires_grad=True))
    matched = torch.tensor([[0, IGNORED, BACKGROUND, BACKGROUND]])
    zeros = torch.zeros(2, dtype=torch.int64)
    gt = pad_targets([target(((-16.0, -16, 16, 0),), [0])])
    pairs = Pairs(zeros, zeros, zeros, torch.tensor([True, True]))
    assignment = Assignment(matched, torch.zeros(1, 4), pairs_of(matched), pairs, gt)
    losses = model.losses_of(predictions, assignment, gt)
    # Probability 1/2 everywhere: alpha (1/2)^2 ln 2 for the positive, (1 - alpha) (1/2)^2 ln 2 for each background.
    expected = 0.25 * math.log(2) * (0.25 + 2 * 0.75)
    torch.testing.assert_close(losses["loss_class"].item(), expected)
    # The object is half of the anchor: IoU = GIoU = 1/2; two pairs, but one positive slot in the divisor.
    torch.testing.assert_close(losses["loss_box"].item(), 2 * 0.5)
    losses["loss_class"].backward()
    assert predictions.class_logits.grad[0, 1] == 0
    assert (predictions.class_logits.grad[0, 2:] > 0).all()
    assert predictions.class_logits.grad[0, 0] < 0


def test_a_batch_without_objects_has_a_box_loss_of_zero_with_a_gradient_path():
    model = tiny()
    losses = model(torch.rand(2, 3, 64, 96), [target(()), target(())])
    assert losses["loss_box"] == 0
    assert losses["loss_class"] > 0
    sum(losses.values()).backward()
    assert model.head.box_predictor.weight.grad is not None


def test_labels_of_slots():
    matched = torch.tensor([[0, 1, BACKGROUND, IGNORED], [BACKGROUND] * 4])
    targets = [target(((0.0, 0, 9, 9), (0.0, 0, 9, 9)), [2, 1]), target(())]
    assert labels_of(matched, targets, 3).tolist() == [[2, 1, 3, 3], [3, 3, 3, 3]]


def test_a_slot_may_answer_with_several_classes_and_only_the_best_candidates_count():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [100, 0, 110, 10]])
    scores = torch.tensor([[0.9, 0.8], [0.7, 0.1], [0.6, 0.05]])
    found = postprocess(boxes, scores, 0.05, 1000, 0.6)
    # The second box falls to the first in both classes (IoU 9/11), and 0.05 is not above 0.05.
    assert found["labels"].tolist() == [0, 1, 0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.8, 0.6]))
    assert len(postprocess(boxes, scores, 0.05, 2, 0.6)["scores"]) == 2
    assert len(postprocess(boxes, scores, 0.05, 1000, 0.6, max_detections=1)["scores"]) == 1
    assert postprocess(boxes, scores, 0.05, 1000, 0.6, class_agnostic=True)["labels"].tolist() == [0, 0]


def test_classes_with_huge_and_negative_coordinates_do_not_suppress_each_other():
    boxes = torch.tensor([[-40000.0, -40000, 40000, 40000], [-40000.0, -40000, 40000, 40000]])
    found = postprocess(boxes, torch.tensor([[0.9, 0.0], [0.0, 0.8]]), 0.05, 1000, 0.6)
    assert found["labels"].tolist() == [0, 1]


def test_saved_weights_bring_back_model_settings_and_answers(tmp_path):
    changes = {"assigner": UniformMatching(k=2, sources=("anchors",)), "dilations": (1, 3), "resize": "stretch"}
    model = tiny(class_names=["a", "b", "c"], **changes).eval()
    minidet.save_weights(model, tmp_path / "w.safetensors")
    again = minidet.load_model(tmp_path / "w.safetensors")
    assert again.config == model.config
    x = torch.rand(1, 3, 64, 96)
    assert torch.equal(again.dense(x).class_logits, model.dense(x).class_logits)
