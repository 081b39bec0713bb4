"""Published YOLOF checkpoints: every tensor of the seven layouts arrives, and the network computes what it should.

What it should compute is written down here by itself, in plain functions that look weights up by their official names.
"""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import minidet
from minidet.detectors.official_yolof import translate_yolof_names
from minidet.errors import WeightsError
from minidet.files import read_json
from minidet.layers.dilated_encoder import DilatedEncoder

VARIANTS = {
    "R50-C5": "yolof-r50-c5",
    "R50-DC5": "yolof-r50-dc5",
    "R101-C5": "yolof-r101-c5",
    "R101-DC5": "yolof-r101-dc5",
    "X101-64x4d-C5": "yolof-x101-c5",
    "CSPDarkNet53-DC5": "yolof-cspdarknet53-dc5",
    "mmdet-R50-C5": "yolof-r50-c5",
}
MEAN_BGR = (103.53, 116.28, 123.675)


@pytest.fixture(scope="module")
def layouts(yolof_reference):
    return {name: layout["keys"] for name, layout in read_json(yolof_reference / "layouts.json").items()}


def random_state(keys):
    """Weights of a layout, of a size that keeps activations near 1."""
    state = {}
    for key, shape, dtype in keys:
        if key in ("pixel_mean", "pixel_std"):
            value = torch.tensor(MEAN_BGR if key == "pixel_mean" else (1.0, 1.0, 1.0)).view(3, 1, 1)
        elif dtype == "int64":
            value = torch.tensor(1234)
        elif len(shape) == 4:
            value = torch.randn(shape) / np.sqrt(np.prod(shape[1:]))
        elif key.endswith("running_var"):
            value = torch.rand(shape) + 0.5
        elif key.endswith("weight"):
            value = 0.7 + 0.1 * torch.randn(shape)
        else:
            value = 0.1 * torch.randn(shape)
        state[key] = value
    return state


@pytest.fixture(scope="module")
def r50(layouts):
    """A detectron2-style R50-C5."""
    torch.manual_seed(1)
    return random_state(layouts["R50-C5"])


# ---- the reference's network, by official names ---------------------------------------------------------------------


def norm(state, key, x, eps=1e-5):
    values = (state[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *values, eps=eps)


def conv(state, key, x, stride=1, dilation=1, groups=1):
    weight = state[f"{key}.weight"]
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, state.get(f"{key}.bias"), stride, padding, dilation, groups)


def resnet_c5(state, x, names, blocks=(3, 4, 6, 3), dilated=False, caffe=True, groups=1):
    """C5 of a bottleneck ResNet. `names(stage, block, part)` gives the keys of a convolution and its norm."""

    def layer(x, where, **how):
        convolution, its_norm = names(*where)
        return norm(state, its_norm, conv(state, convolution, x, **how))

    x = F.max_pool2d(layer(x, (1, 0, "stem"), stride=2).relu(), 3, 2, 1)
    for stage, count in enumerate(blocks, start=2):
        dilation = 2 if dilated and stage == 5 else 1
        for block in range(count):
            stride = 2 if block == 0 and stage > 2 and dilation == 1 else 1
            first, second = (stride, 1) if caffe else (1, stride)
            y = layer(x, (stage, block, "conv1"), stride=first).relu()
            y = layer(y, (stage, block, "conv2"), stride=second, dilation=dilation, groups=groups).relu()
            y = layer(y, (stage, block, "conv3"))
            x = (y + (layer(x, (stage, block, "shortcut"), stride=stride) if block == 0 else x)).relu()
    return x


def detectron2_names(stage, block, part):
    key = "backbone.stem.conv1" if part == "stem" else f"backbone.res{stage}.{block}.{part}"
    return key, f"{key}.norm"


def mmdet_names(stage, block, part):
    if part == "stem":
        return "backbone.conv1", "backbone.bn1"
    at = f"backbone.layer{stage - 1}.{block}"
    if part == "shortcut":
        return f"{at}.downsample.0", f"{at}.downsample.1"
    return f"{at}.{part}", f"{at}.bn{part[-1]}"


def darknet_c5(state, x):
    """C5 of CSPDarkNet53, dilated."""

    def layer(x, convolution, its_norm, **how):
        x = norm(state, its_norm, conv(state, convolution, x, **how), eps=1e-4)
        return x * torch.tanh(F.softplus(x))

    def pair(x, key, **how):
        return layer(x, f"{key}.0", f"{key}.1", **how)

    x = layer(x, "backbone.conv1", "backbone.bn1")
    for stage, count in enumerate((1, 2, 8, 8, 4), start=1):
        at = f"backbone.layer{stage}"
        stride, dilation = (1, 2) if stage == 5 else (2, 1)
        x = pair(x, f"{at}.base_layer", stride=stride, dilation=dilation)
        y = pair(x, f"{at}.stage_layers.0.downsample")
        for i in range(count):
            z = layer(y, f"{at}.stage_layers.{i}.conv1", f"{at}.stage_layers.{i}.bn1")
            y = y + layer(z, f"{at}.stage_layers.{i}.conv2", f"{at}.stage_layers.{i}.bn2", dilation=dilation)
        y = pair(y, f"{at}.partial_transition2")
        x = pair(torch.cat([y, pair(x, f"{at}.partial_transition1")], dim=1), f"{at}.fuse_transition")
    return x


def head_maps(state, c5, dilations, activation, mmdet=False):
    """Encoder output, class logits, objectness logits and deltas."""
    encoder, decoder, first, second = ("neck", "bbox_head", "conv", "bn") if mmdet else ("encoder", "decoder", "0", "1")
    x = norm(state, f"{encoder}.lateral_norm", conv(state, f"{encoder}.lateral_conv", c5))
    x = norm(state, f"{encoder}.fpn_norm", conv(state, f"{encoder}.fpn_conv", x))
    for i, dilation in enumerate(dilations):
        y = x
        for part, how in (("conv1", {}), ("conv2", {"dilation": dilation}), ("conv3", {})):
            at = f"{encoder}.dilated_encoder_blocks.{i}.{part}"
            y = activation(norm(state, f"{at}.{second}", conv(state, f"{at}.{first}", y, **how)))
        x = x + y

    def branch(name, count):
        y = x
        for i in range(count):
            at = f"{decoder}.{name}"
            keys = (f"{at}.{i}.conv", f"{at}.{i}.bn") if mmdet else (f"{at}.{3 * i}", f"{at}.{3 * i + 1}")
            y = activation(norm(state, keys[1], conv(state, keys[0], y)))
        return y

    boxes = branch("bbox_subnet", 4)
    classes = conv(state, f"{decoder}.cls_score", branch("cls_subnet", 2))
    return x, classes, conv(state, f"{decoder}.object_pred", boxes), conv(state, f"{decoder}.bbox_pred", boxes)


def reference_maps(variant, state, bgr):
    """All maps of a variant from blue-green-red pixels, 0 to 255."""
    x = bgr - torch.tensor(MEAN_BGR).view(1, 3, 1, 1)
    if variant == "CSPDarkNet53-DC5":
        return head_maps(state, darknet_c5(state, x), range(1, 9), lambda x: F.leaky_relu(x, 0.1))
    mmdet, dilated = variant.startswith("mmdet"), variant.endswith("DC5")
    c5 = resnet_c5(
        state,
        x,
        mmdet_names if mmdet else detectron2_names,
        blocks=(3, 4, 23, 3) if "101" in variant else (3, 4, 6, 3),
        dilated=dilated,
        caffe=not variant.startswith("X101"),
        groups=64 if variant.startswith("X101") else 1,
    )
    return head_maps(state, c5, (4, 8, 12, 16) if dilated else (2, 4, 6, 8), F.relu, mmdet)


# ---- every layout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_gives_the_network_that_it_came_from(variant, layouts):
    official = random_state(layouts[variant])
    model = minidet.load_official(VARIANTS[variant], official)
    assert not model.training
    assert (model.num_classes, model.class_names[0]) == (80, "person")

    own = model.state_dict()
    arrived = Counter(fingerprint(value) for value in own.values())
    for key, value in official.items():
        stem = key in ("backbone.stem.conv1.weight", "backbone.conv1.weight")  # turned round
        frozen_counter = key.startswith("backbone.") and "num_batches" in key and "CSP" not in variant
        if not stem and not frozen_counter and not key.startswith("pixel_"):
            assert arrived[fingerprint(value)] >= 1, key

    images = torch.rand(1, 3, 72, 104)
    with torch.no_grad():
        features = model.features(images)
        maps = (features["encoder"], *(model.head(features["encoder"])[i] for i in (0, 2, 1)))
        expected = reference_maps(variant, official, images.flip(1) * 255)
    for ours, theirs in zip(maps, expected, strict=True):
        tolerance = 1e-4 * theirs.abs().max().item()
        assert theirs.std() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def fingerprint(value):
    return tuple(value.shape), value.double().sum().item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_official_name_has_a_place_of_its_own_here(variant, layouts):
    with torch.device("meta"):
        own = minidet.create_model(VARIANTS[variant]).state_dict()
    names = translate_yolof_names(key for key, _, _ in layouts[variant] if not key.startswith("pixel_"))
    assert len(set(names.values())) == len(names)
    without_counters = {name for name in names.values() if name in own or "num_batches" not in name}
    missing = set(own) - without_counters
    assert without_counters <= set(own)
    if variant == "mmdet-R50-C5":  # 4 blocks of 3 convolutions and 2 + 4 in the branches stand before a norm
        assert len(missing) == 18
        assert all(name.endswith((".conv1.bias", ".conv2.bias", ".conv3.bias", ".conv.bias")) for name in missing)
    else:
        assert missing == set()


def test_biases_that_mmdetection_leaves_out_are_zeros(layouts):
    model = minidet.load_official("yolof-r50-c5", {"state_dict": random_state(layouts["mmdet-R50-C5"])})
    before_a_norm = [block.conv for branch in (model.head.class_branch, model.head.box_branch) for block in branch]
    before_a_norm += [conv for b in model.encoder.blocks for conv in (b.conv1, b.conv2, b.conv3)]
    assert len(before_a_norm) == 18
    assert all(conv.bias.abs().max() == 0 for conv in before_a_norm)
    assert model.encoder.lateral.bias.abs().max() > 0


def test_the_reference_encoder_comes_out_of_translated_names(yolof_reference):
    data = load_file(yolof_reference / "encdec_small.safetensors")
    config = read_json(yolof_reference / "encdec.json")["encdec_small"]["cfg"]
    official = {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}
    names = translate_yolof_names(official)
    encoder = DilatedEncoder(config["in_channels"], config["channels"], config["mid_channels"], config["dilations"])
    prefix = "encoder."
    encoder.load_state_dict(
        {names[key].removeprefix(prefix): value for key, value in official.items() if key.startswith(prefix)}
    )
    torch.testing.assert_close(encoder.eval()(data["c5"]), data["eval/encoder"], rtol=1e-5, atol=1e-5)


# ---- colours and pixels ---------------------------------------------------------------------------------------------


def test_the_stem_is_turned_round_and_the_pixel_buffers_become_settings(r50):
    changed = {**r50, "pixel_mean": torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)}
    changed["pixel_std"] = torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1)
    model = minidet.load_official("yolof-r50-c5", changed)
    assert model.config.pixel_mean == (3.0, 2.0, 1.0)
    assert model.config.pixel_std == pytest.approx((58.395, 57.12, 57.375))
    assert torch.equal(model.backbone.stem.conv.weight, r50["backbone.stem.conv1.weight"][:, [2, 1, 0]])


def test_weights_whose_mean_says_red_first_are_not_turned_round(r50):
    rgb = {**r50, "pixel_mean": torch.tensor(MEAN_BGR[::-1]).view(3, 1, 1)}
    model = minidet.load_official("yolof-r50-c5", rgb)
    assert model.config.pixel_mean == pytest.approx((123.675, 116.28, 103.53))
    assert torch.equal(model.backbone.stem.conv.weight, r50["backbone.stem.conv1.weight"])


def test_a_mean_that_is_none_is_refused(r50):
    with pytest.raises(WeightsError, match="three numbers each"):
        minidet.load_official("yolof-r50-c5", {**r50, "pixel_std": torch.zeros(3, 1, 1)})


# ---- what does not fit is named -------------------------------------------------------------------------------------


def test_missing_foreign_and_misshapen_keys_are_named(r50):
    broken = dict(r50)
    broken["encoder.fpn_norm.gain"] = broken.pop("encoder.fpn_norm.weight")
    broken["backbone.res3.0.conv2.weight"] = torch.zeros(128, 128, 1, 1)
    with pytest.raises(WeightsError) as caught:
        minidet.load_official("yolof-r50-c5", broken)
    text = str(caught.value)
    assert "3 of the weights do not fit" in text
    assert "encoder.smooth_norm.weight: missing" in text
    assert "encoder.smooth_norm.gain: not part of yolof-r50-c5" in text
    assert "backbone.c3.0.conv2.weight: shape [128, 128, 1, 1] in the file, [128, 128, 3, 3] in the model" in text


def test_a_missing_bias_before_a_norm_is_an_error_in_the_authors_layout(r50):
    broken = {key: value for key, value in r50.items() if key != "decoder.cls_subnet.0.bias"}
    with pytest.raises(WeightsError, match=r"head.class_branch.0.conv.bias: missing"):
        minidet.load_official("yolof-r50-c5", broken)


def test_weights_of_another_variant_are_recognised(r50):
    with pytest.raises(WeightsError, match=r"5 anchors a cell, this variant has 6 .* another variant"):
        minidet.load_official("yolof-r50-dc5", r50)
    with pytest.raises(WeightsError, match=r"backbone.c4.6.conv1.weight: missing"):
        minidet.load_official("yolof-r101-c5", r50)
    with pytest.raises(WeightsError, match="no YOLOX checkpoint"):
        minidet.load_official("yolox-nano", r50)


def test_other_detectors_weights_are_refused():
    nano = minidet.create_model("yolox-nano", 2).state_dict()
    with pytest.raises(WeightsError, match="no class predictor .* no YOLOF checkpoint"):
        minidet.load_official("yolof-r50-c5", nano)
    with pytest.raises(WeightsError, match="not a YOLOF checkpoint: no tensors by name"):
        minidet.load_official("yolof-r50-c5", {"model": {}, "meta": "text"})


def test_legacy_is_a_word_of_yolox(r50):
    with pytest.raises(WeightsError, match="legacy=True is for the first release of YOLOX"):
        minidet.load_official("yolof-r50-c5", r50, legacy=True)


# ---- files ----------------------------------------------------------------------------------------------------------


def as_arrays(state):
    return {key: value.numpy() for key, value in state.items()}


@pytest.mark.parametrize("kind", ["detectron2.pth", "mmdet.pth", "plain.safetensors", "zoo.pkl"])
def test_files_of_every_published_kind_are_read(kind, r50, tmp_path):
    path = tmp_path / kind
    if kind == "detectron2.pth":
        torch.save({"model": r50, "iteration": 22499, "optimizer": {"state": {}}}, path)
    elif kind == "mmdet.pth":
        torch.save({"meta": {"epoch": 12, "CLASSES": ("person",)}, "state_dict": r50}, path)
    elif kind == "plain.safetensors":
        save_file(r50, path)
    else:
        extra = {"weight_order": b"conv1 first"}
        path.write_bytes(pickle.dumps({"model": {**as_arrays(r50), **extra}, "__author__": "third_party"}))
    model = minidet.load_official("yolof-r50-c5", path)
    assert torch.equal(model.head.box_predictor.weight, r50["decoder.bbox_pred.weight"])
    assert torch.equal(model.backbone.c5[2].bn3.running_var, r50["backbone.res5.2.conv3.norm.running_var"])
    assert model.encoder.lateral_norm.num_batches_tracked.item() == 1234


def test_the_weight_order_of_the_resnext_file_is_no_weight(r50):
    model = minidet.load_official("yolof-r50-c5", {**r50, "weight_order": torch.zeros(3)})
    assert torch.equal(model.head.object_predictor.bias, r50["decoder.object_pred.bias"])
