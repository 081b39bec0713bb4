"""YOLOF's parts, number by number against the official ones: encoder, head, box coder, matching, losses, detections.

The tests of the folder of golden tensors are skipped where it is absent; those of the same parts on figures that stand
here are in `test_yolof.py` and `tests/assign/test_uniform.py`.
"""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import minidet
from minidet.assign import BACKGROUND, IGNORED, DensePredictions, UniformMatching
from minidet.assign.uniform import l1_distances
from minidet.boxes import clip_boxes
from minidet.detectors.yolof import decode, encode, labels_of, postprocess, slots_first
from minidet.files import read_json
from minidet.grid import make_grid
from minidet.layers.dilated_encoder import DilatedEncoder
from minidet.layers.heads import AnchorHead
from minidet.losses import combine_logits

C5_SIZES, DC5_SIZES = (32, 64, 128, 256, 512), (16, 32, 64, 128, 256, 512)
MATCHING_CASES = "empty one tiny_huge_thin gt40 duplicates crowd mixed_batch dc5_k8 ties_on_grid zero_deltas".split()
INFERENCE_CASES = "dense sparse none topk_overflow dropped_boxes dc5".split()

# ---- encoder and head -----------------------------------------------------------------------------------------------

NAMES = (
    (r"^encoder\.lateral_conv\.", "0.lateral."),
    (r"^encoder\.lateral_norm\.", "0.lateral_norm."),
    (r"^encoder\.fpn_conv\.", "0.smooth."),
    (r"^encoder\.fpn_norm\.", "0.smooth_norm."),
    (r"^encoder\.dilated_encoder_blocks\.(\d+)\.conv(\d)\.0\.", r"0.blocks.\1.conv\2."),
    (r"^encoder\.dilated_encoder_blocks\.(\d+)\.conv(\d)\.1\.", r"0.blocks.\1.norm\2."),
    (r"^decoder\.cls_score\.", "1.class_predictor."),
    (r"^decoder\.bbox_pred\.", "1.box_predictor."),
    (r"^decoder\.object_pred\.", "1.object_predictor."),
)
BRANCHES = {"cls_subnet": "class_branch", "bbox_subnet": "box_branch"}


def our_name(official: str) -> str:
    """Names in a Sequential(encoder, head)."""
    found = re.match(r"^decoder\.(\w+_subnet)\.(\d+)\.(\w+)$", official)
    if found:  # convolution, norm, activation, convolution, ... in one row there, one block a convolution here
        block, part = divmod(int(found[2]), 3)
        return f"1.{BRANCHES[found[1]]}.{block}.{('conv', 'norm')[part]}.{found[3]}"
    for pattern, replacement in NAMES:
        official, changed = re.subn(pattern, replacement, official)
        if changed:
            return official
    raise AssertionError(f"no name for {official}")


def encoder_and_head(yolof_reference, case: str) -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    config = read_json(yolof_reference / "encdec.json")[case]["cfg"]
    data = load_file(yolof_reference / f"{case}.safetensors")
    activation = {"ReLU": "relu", "LeakyReLU": "leaky_relu"}[config["activation"]]
    model = nn.Sequential(
        DilatedEncoder(
            config["in_channels"], config["channels"], config["mid_channels"], config["dilations"], activation
        ),
        AnchorHead(
            config["channels"],
            config["num_anchors"],
            config["num_classes"],
            config["cls_convs"],
            config["reg_convs"],
            activation,
        ),
    )
    state = {our_name(k.removeprefix("state/")): v for k, v in data.items() if k.startswith("state/")}
    model.load_state_dict(state)
    return model, data


def combined_maps(class_maps, object_maps, num_anchors):
    """Combined logits in the reference's form, [B, n * C, H, W]."""
    split = class_maps.unflatten(1, (num_anchors, -1))
    return combine_logits(split, object_maps[:, :, None]).flatten(1, 2)


@pytest.mark.parametrize("case", ["encdec_small", "encdec_leaky"])
def test_encoder_and_head_equal_the_reference_in_evaluation(yolof_reference, case):
    model, data = encoder_and_head(yolof_reference, case)
    model.eval()
    encoded = model[0](data["c5"])
    class_maps, box_maps, object_maps = model[1](encoded)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(encoded, data["eval/encoder"], **close)
    torch.testing.assert_close(class_maps, data["eval/raw_cls"], **close)
    torch.testing.assert_close(object_maps, data["eval/raw_obj"], **close)
    torch.testing.assert_close(box_maps, data["eval/deltas"], **close)
    torch.testing.assert_close(
        combined_maps(class_maps, object_maps, object_maps.shape[1]), data["eval/logits"], **close
    )


def test_encoder_and_head_equal_the_reference_in_training_with_gradients_and_running_statistics(yolof_reference):
    model, data = encoder_and_head(yolof_reference, "encdec_small")
    model.train()
    c5 = data["c5"].clone().requires_grad_()
    encoded = model[0](c5)
    class_maps, box_maps, object_maps = model[1](encoded)
    logits = combined_maps(class_maps, object_maps, object_maps.shape[1])
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(encoded, data["train/encoder"], **close)
    torch.testing.assert_close(logits, data["train/logits"], **close)
    torch.testing.assert_close(box_maps, data["train/deltas"], **close)

    loss = logits.sigmoid().sum() + box_maps.square().sum()
    loss.backward()
    torch.testing.assert_close(loss.detach(), data["train/loss"], **close)
    gradients = {"c5": c5.grad, **{name: p.grad for name, p in model.named_parameters()}}
    expected = {"c5": data["train/grad_c5"]}
    expected |= {our_name(k.removeprefix("train/grad/")): v for k, v in data.items() if k.startswith("train/grad/")}
    assert set(gradients) == set(expected)
    before_norm = re.compile(r"(lateral|smooth|conv\d?)\.bias$")  # their gradient is zero but for rounding
    for name, gradient in gradients.items():
        tolerance = 2e-5 if before_norm.search(name) else 1e-3 * expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")

    after = {our_name(k.removeprefix("train/after/")): v for k, v in data.items() if k.startswith("train/after/")}
    assert after
    own = model.state_dict()
    for name, value in after.items():
        torch.testing.assert_close(own[name], value, **close)


# ---- anchors, box coder, combined logit -----------------------------------------------------------------------------


def test_anchors_equal_the_reference(yolof_reference):
    stored = load_file(yolof_reference / "anchors.safetensors")
    assert len(stored) == 7
    for name, anchors in stored.items():
        kind, rows, columns = re.match(r"(\w+)_(\d+)x(\d+)", name).groups()
        stride, sizes = (32, C5_SIZES) if kind == "C5" else (16, DC5_SIZES)
        grid = make_grid([(int(rows), int(columns))], [stride], anchor_sizes=[sizes])
        assert torch.equal(grid.anchors, anchors), name


@pytest.mark.parametrize(("limit", "key"), [(32, "decode_clamp"), (None, "decode_noclamp"), (16, "decode_clamp16")])
def test_decoding_equals_the_reference(yolof_reference, limit, key):
    data = load_file(yolof_reference / "box_coder.safetensors")
    deltas = data["deltas"].clone().requires_grad_()
    boxes = decode(deltas, data["anchors"], limit)
    torch.testing.assert_close(boxes.detach(), data[key], atol=2e-2, rtol=1e-5)
    if limit != 16:
        boxes.sum().backward()
        gradient = data["grad_clamp" if limit else "grad_noclamp"]
        torch.testing.assert_close(deltas.grad, gradient, atol=2e-2, rtol=1e-4)


def test_encoding_equals_the_reference(yolof_reference):
    data = load_file(yolof_reference / "box_coder.safetensors")
    torch.testing.assert_close(encode(data["targets"], data["anchors"]), data["encode"], atol=1e-4, rtol=1e-4)


def test_the_combined_logit_is_exact_everywhere(yolof_reference):
    data = load_file(yolof_reference / "stable_score.safetensors")
    class_logits, object_logits = (data[key].clone().requires_grad_() for key in ("cls", "obj"))
    logit = combine_logits(class_logits, object_logits)
    logit.sum().backward()
    torch.testing.assert_close(logit.detach().double(), data["exact_logit"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logit.detach().sigmoid().double(), data["exact_score"], atol=1e-6, rtol=0)
    torch.testing.assert_close(class_logits.grad.double(), data["exact_grad_cls"], atol=1e-5, rtol=0)
    torch.testing.assert_close(object_logits.grad.double(), data["exact_grad_obj"], atol=1e-5, rtol=0)


# ---- matching and losses --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matching(yolof_reference):
    return load_file(yolof_reference / "matching.safetensors"), read_json(yolof_reference / "matching.json")


def prepare(matching, case: str):
    """Predictions with gradients, targets and the assigner of a case."""
    data, meta = matching[0], matching[1][case]
    data = {k.removeprefix(f"{case}/"): v for k, v in data.items() if k.startswith(f"{case}/")}
    grid = make_grid([meta["feature_hw"]], [meta["stride"]], anchor_sizes=[meta["sizes"]])
    assert torch.equal(grid.anchors, data["anchors"])
    logits, deltas = data["logits"].clone().requires_grad_(), data["deltas"].clone().requires_grad_()
    raw_boxes = slots_first(deltas, len(meta["sizes"]))
    predictions = DensePredictions(
        grid, raw_boxes, decode(raw_boxes, grid.anchors), slots_first(logits, len(meta["sizes"])), None
    )
    targets = [{"boxes": data[f"{i}/gt_boxes"], "labels": data[f"{i}/gt_labels"].long()} for i in range(meta["images"])]
    assigner = UniformMatching(meta["k"], meta["pos_ignore"], meta["neg_ignore"])
    return data, meta, (logits, deltas), predictions, targets, assigner


@pytest.mark.parametrize("case", MATCHING_CASES)
def test_matching_pairs_equal_the_reference(matching, case):
    data, meta, _, predictions, targets, assigner = prepare(matching, case)
    torch.testing.assert_close(predictions.boxes.detach(), data["pred_boxes"], atol=2e-2, rtol=1e-5)
    result = assigner(predictions.detach(), targets, trace=True)
    for i, (trace, target) in enumerate(zip(result.trace, targets, strict=True)):
        slot, gt = data[f"{i}/pair_anchor"], data[f"{i}/pair_gt"]
        assert len(trace["pair_slot"]) == 2 * assigner.k * len(target["labels"]) == len(slot)
        if meta["order_unique"]:
            assert torch.equal(trace["pair_slot"], slot)
            assert torch.equal(trace["pair_gt"], gt)
            torch.testing.assert_close(trace["pair_iou"], data[f"{i}/pair_iou"], atol=1e-5, rtol=0)
        elif meta["set_unique"]:
            own = sorted(zip(trace["pair_gt"].tolist(), trace["pair_slot"].tolist(), strict=True))
            assert own == sorted(zip(gt.tolist(), slot.tolist(), strict=True))
        # Among equally near slots any may be chosen, but the distances of the chosen ones are the same.
        if len(target["labels"]):
            for source, boxes in (("anchors", predictions.grid.anchors), ("predictions", predictions.boxes[i])):
                distances = l1_distances(target["boxes"], boxes.detach())
                chosen = distances.gather(1, trace[f"nearest_{source}"]).sort(dim=1).values
                nearest = distances.sort(dim=1).values[:, : assigner.k]
                torch.testing.assert_close(chosen, nearest, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("case", MATCHING_CASES)
def test_labels_losses_and_gradients_equal_the_reference(matching, case):
    data, meta, (logits, deltas), predictions, targets, assigner = prepare(matching, case)
    result = assigner(predictions.detach(), targets)
    if not meta["robust"]:
        assert case == "ties_on_grid"  # the only one in which equals are chosen at will
        assert result.positive.any()
        return
    classes = labels_of(result.matched_gt, targets, meta["num_classes"])
    classes[result.matched_gt == IGNORED] = -1
    assert torch.equal(classes, data["gt_classes"])
    assert int(result.num_positives) == meta["num_pos"]
    assert len(result.pairs) == meta["num_box_pairs"]
    assert int((result.matched_gt == IGNORED).sum()) == meta["num_ignored_anchors"]

    model = minidet.create_model("yolof-r18-c5", meta["num_classes"])
    losses = model.losses_of(predictions, result, targets)
    torch.testing.assert_close(losses["loss_class"], data["loss_cls"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["loss_box"], data["loss_box"], atol=1e-5, rtol=1e-5)
    sum(losses.values()).backward()
    torch.testing.assert_close(logits.grad, data["grad_logits"], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(deltas.grad, data["grad_deltas"], atol=1e-5, rtol=1e-4)


def test_without_objects_the_reference_case_is_all_background(matching):
    _, _, _, predictions, targets, assigner = prepare(matching, "empty")
    assert (assigner(predictions.detach(), targets).matched_gt == BACKGROUND).all()


# ---- detections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", INFERENCE_CASES)
def test_detections_equal_the_reference(yolof_reference, case):
    data = load_file(yolof_reference / "inference.safetensors")
    meta = read_json(yolof_reference / "inference.json")[case]
    anchors = data[f"{case}/anchors"]
    per_cell = data[f"{case}/deltas"].shape[1] // 4
    boxes = decode(slots_first(data[f"{case}/deltas"], per_cell), anchors)[0]
    scores = slots_first(data[f"{case}/logits"], per_cell)[0].sigmoid()
    found = postprocess(boxes, scores, meta["score_thr"], meta["topk"], meta["nms_thr"], max_detections=meta["max_det"])
    assert len(found["scores"]) == meta["detections"]
    assert torch.equal(found["labels"], data[f"{case}/classes"])
    torch.testing.assert_close(found["scores"], data[f"{case}/scores"], atol=1e-6, rtol=0)
    torch.testing.assert_close(found["boxes"], data[f"{case}/boxes"], atol=1e-2, rtol=1e-5)

    (height, width), output_hw = meta["image_size_hw"], tuple(meta["output_size_hw"])
    scale = torch.tensor([output_hw[1] / width, output_hw[0] / height]).repeat(2)
    clipped = clip_boxes(found["boxes"] * scale, output_hw)
    kept = (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
    torch.testing.assert_close(clipped[kept], data[f"{case}/post_boxes"], atol=1e-2, rtol=1e-5)
    assert torch.equal(found["labels"][kept], data[f"{case}/post_classes"])
