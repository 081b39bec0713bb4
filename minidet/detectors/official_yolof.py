"""The `state_dict` of a published YOLOF in minidet's names, from the authors' detectron2 code or from mmdetection.

Names differ, and the order of colours: both see blue-green-red, this library red-green-blue, so the first convolution's
input channels are turned round once, here. mmdetection leaves out the biases before a norm, which are zeros then.

Source: the `state_dict` layouts of both codes; chapter 07.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from minidet.detectors.detector import IMAGENET_MEAN
from minidet.detectors.yolof import YOLOFConfig
from minidet.errors import WeightsError

# (official name, name here), applied in this order to every key.
RESNET_OF_DETECTRON2 = (
    (r"^backbone\.stem\.conv1\.norm\.", "backbone.stem.bn."),
    (r"^backbone\.stem\.conv1\.", "backbone.stem.conv."),
    (r"^backbone\.res(\d)\.", r"backbone.c\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^(backbone\..*)\.conv(\d)\.norm\.", r"\1.bn\2."),
)
RESNET_OF_MMDET = (
    (r"^backbone\.conv1\.", "backbone.stem.conv."),
    (r"^backbone\.bn1\.", "backbone.stem.bn."),
    *((rf"^backbone\.layer{i}\.", f"backbone.c{i + 1}.") for i in (1, 2, 3, 4)),
)
CSPDARKNET53 = (
    (r"^backbone\.conv1\.", "backbone.stem.conv."),
    (r"^backbone\.bn1\.", "backbone.stem.bn."),
    (r"^backbone\.layer(\d)\.", r"backbone.c\1."),
    (r"\.stage_layers\.0\.downsample\.", ".enter."),  # the first block has it there, but it serves all
    (r"\.stage_layers\.(\d+)\.conv(\d)\.", r".blocks.\1.conv\2.conv."),
    (r"\.stage_layers\.(\d+)\.bn(\d)\.", r".blocks.\1.conv\2.bn."),
    (r"\.base_layer\.", ".down."),
    (r"\.partial_transition1\.", ".bypass."),
    (r"\.partial_transition2\.", ".leave."),
    (r"\.fuse_transition\.", ".fuse."),
    (r"^(backbone\.c\d\.(?:down|bypass|enter|leave|fuse))\.0\.", r"\1.conv."),
    (r"^(backbone\.c\d\.(?:down|bypass|enter|leave|fuse))\.1\.", r"\1.bn."),
)
ENCODER_AND_HEAD = (
    (r"^neck\.", "encoder."),  # mmdetection's words for encoder and decoder
    (r"^(?:decoder|bbox_head)\.", "head."),
    (r"^encoder\.lateral_conv\.", "encoder.lateral."),
    (r"^encoder\.fpn_conv\.", "encoder.smooth."),
    (r"^encoder\.fpn_norm\.", "encoder.smooth_norm."),
    (r"^encoder\.dilated_encoder_blocks\.(\d+)\.conv(\d)\.(?:0|conv)\.", r"encoder.blocks.\1.conv\2."),
    (r"^encoder\.dilated_encoder_blocks\.(\d+)\.conv(\d)\.(?:1|bn)\.", r"encoder.blocks.\1.norm\2."),
    (r"^head\.cls_subnet\.", "head.class_branch."),
    (r"^head\.bbox_subnet\.", "head.box_branch."),
    (r"^(head\.\w+_branch\.\d+)\.bn\.", r"\1.norm."),
    (r"^head\.cls_score\.", "head.class_predictor."),
    (r"^head\.bbox_pred\.", "head.box_predictor."),
    (r"^head\.object_pred\.", "head.object_predictor."),
)
LAYERS_OF_A_BLOCK = ("conv", "norm", "activation")  # detectron2's branches count them all in one row


def translate_yolof(
    official: Mapping[str, Tensor], config: YOLOFConfig, where: str
) -> tuple[dict[str, Tensor], int, dict[str, Any]]:
    """The weights in this library's names, the number of classes, and the settings that the model needs with them.

    Args:
        official: tensors by their official names.
        config: of the variant; says how many anchors a cell has.
        where: what an error calls the weights.

    Raises:
        WeightsError: there is no class predictor that fits the variant, so these are no weights of it.
    """
    names = translate_yolof_names(official)
    # `weight_order` stands in the file of the ResNeXt's ImageNet weights; norms that are frozen here need no counter.
    frozen = config.frozen_norm and config.backbone != "cspdarknet53"
    state = {
        names[key]: value
        for key, value in official.items()
        if key not in ("pixel_mean", "pixel_std", "weight_order")
        and not (frozen and key.startswith("backbone.") and key.endswith(".num_batches_tracked"))
    }
    num_classes = _num_classes(state, config, where)
    if any(key.startswith("bbox_head.") for key in official):
        _add_missing_biases(state)
    changes, sees_rgb = _pixels(official, where)
    stem = "backbone.stem.conv.weight"
    if stem in state and state[stem].ndim == 4 and not sees_rgb:
        state[stem] = state[stem].flip(1)
    return state, num_classes, changes


def translate_yolof_names(official_names: Iterable[str]) -> dict[str, str]:
    """Where each entry of an official `state_dict` lives in a minidet model: official name -> name here."""
    official_names = list(official_names)
    if any(".base_layer." in name for name in official_names):
        backbone = CSPDARKNET53
    elif any(name.startswith("backbone.layer") for name in official_names):
        backbone = RESNET_OF_MMDET
    else:
        backbone = RESNET_OF_DETECTRON2
    return {name: _translate(name, (*backbone, *ENCODER_AND_HEAD)) for name in official_names}


def _translate(name: str, renames: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    row = re.match(r"^(head\.\w+_branch)\.(\d+)\.(?!conv|norm)(\w+)$", name)
    if row:
        block, layer = divmod(int(row[2]), len(LAYERS_OF_A_BLOCK))
        name = f"{row[1]}.{block}.{LAYERS_OF_A_BLOCK[layer]}.{row[3]}"
    return name


def _num_classes(state: Mapping[str, Tensor], config: YOLOFConfig, where: str) -> int:
    key, anchors = "head.class_predictor.weight", len(config.anchor_sizes)
    if key not in state or state[key].ndim != 4:
        raise WeightsError(f"{where}: has no class predictor (cls_score), so it is no YOLOF checkpoint.")
    channels = len(state[key])
    objects = state.get("head.object_predictor.weight")
    if channels % anchors or (objects is not None and len(objects) != anchors):
        there = channels if objects is None else len(objects)
        raise WeightsError(
            f"{where}: its predictors have {channels} class channels"
            f"{'' if objects is None else f' and {there} anchors a cell'}, this variant has {anchors} anchors a cell. "
            "C5 variants have 5, DC5 variants 6: is it another variant?"
        )
    return channels // anchors


def _add_missing_biases(state: dict[str, Tensor]) -> None:
    """A convolution without bias is one whose bias is zero."""
    before_a_norm = re.compile(r"^(encoder\.blocks\.\d+\.conv\d|head\.\w+_branch\.\d+\.conv)\.weight$")
    for key in list(state):
        if before_a_norm.match(key):
            state.setdefault(key.removesuffix("weight") + "bias", state[key].new_zeros(len(state[key])))


def _pixels(official: Mapping[str, Tensor], where: str) -> tuple[dict[str, Any], bool]:
    """How the pictures are normalised, as settings; and whether the network sees red first, which the mean tells."""
    if "pixel_mean" not in official or "pixel_std" not in official:
        return {}, False  # mmdetection keeps them in its configuration: the same as published
    mean, std = (official[key].float().flatten() for key in ("pixel_mean", "pixel_std"))
    if len(mean) != 3 or len(std) != 3 or not bool((std > 0).all()):
        raise WeightsError(f"{where}: pixel_mean and pixel_std are three numbers each, these are {mean} and {std}.")
    sees_rgb = torch.allclose(mean, torch.tensor(IMAGENET_MEAN), atol=0.5)
    if not sees_rgb:
        mean, std = mean.flip(0), std.flip(0)
    as_setting = {"pixel_mean": mean, "pixel_std": std}
    return {key: tuple(round(x, 3) for x in value.tolist()) for key, value in as_setting.items()}, sees_rgb
