"""The `state_dict` of a published YOLOX in minidet's names.

Only names differ, and the order of colours: the official code feeds blue-green-red, this library red-green-blue, so the
first convolution's input channels are turned round once, here, and no other code knows.

Source: the `state_dict` layout of the official code, release 0.1.0 to the present; chapter 11.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from minidet.detectors.detector import IMAGENET_MEAN, IMAGENET_STD
from minidet.errors import WeightsError

Translated = tuple[dict[str, Tensor], int, dict[str, Any]]

# (official name, name here), applied in this order to every key.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.backbone\.", "backbone."),
    (r"^backbone\.(?=lateral_conv0|reduce_conv1|C3_|bu_conv|out1|out2)", "neck."),
    # PAFPN
    (r"\.lateral_conv0\.", ".lateral5."),
    (r"\.C3_p4\.", ".top_down4."),
    (r"\.reduce_conv1\.", ".lateral4."),
    (r"\.C3_p3\.", ".top_down3."),
    (r"\.bu_conv2\.", ".down3."),
    (r"\.C3_n3\.", ".bottom_up4."),
    (r"\.bu_conv1\.", ".down4."),
    (r"\.C3_n4\.", ".bottom_up5."),
    # YOLOFPN
    (r"\.out1_cbl\.", ".lateral5."),
    (r"\.out1\.", ".top_down4."),
    (r"\.out2_cbl\.", ".lateral4."),
    (r"\.out2\.", ".top_down3."),
    # head: a list a part there, a part a level here
    (r"^head\.stems\.(\d)\.", r"head.levels.\1.stem."),
    (r"^head\.cls_convs\.(\d)\.", r"head.levels.\1.class_branch."),
    (r"^head\.reg_convs\.(\d)\.", r"head.levels.\1.box_branch."),
    (r"^head\.cls_preds\.(\d)\.", r"head.levels.\1.class_predictor."),
    (r"^head\.reg_preds\.(\d)\.", r"head.levels.\1.box_predictor."),
    (r"^head\.obj_preds\.(\d)\.", r"head.levels.\1.object_predictor."),
    # bricks
    (r"\.dconv\.", ".depthwise."),
    (r"\.pconv\.", ".pointwise."),
    (r"\.layer1\.", ".conv1."),
    (r"\.layer2\.", ".conv2."),
)
# `conv1`, `conv2`, `conv3` and `m` mean different things in a CSP layer, in SPP and in a bottleneck.
CSP_NAMES = {"conv1": "enter", "conv2": "bypass", "conv3": "fuse", "m": "blocks"}
SPP_NAMES = {"conv1": "reduce", "conv2": "fuse"}


def translate_yolox(official: Mapping[str, Tensor], where: str, legacy: bool) -> Translated:
    """The weights in this library's names, the number of classes, and the settings that the model needs with them.

    Raises:
        WeightsError: there is no class predictor, so these are no weights of YOLOX.
    """
    names = translate_names(official)
    state = {names[key]: value for key, value in official.items()}
    num_classes = _num_classes(official, where)
    if legacy:
        return state, num_classes, {"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD}
    _blue_green_red_to_rgb(state)
    return state, num_classes, {}


def translate_names(official_names: Iterable[str]) -> dict[str, str]:
    """Where each entry of an official `state_dict` lives in a minidet model: official name -> name here."""
    official_names = list(official_names)
    # Only a CSP layer has a third convolution directly inside; longest prefix first, in case one lay in another.
    csp_layers = {name.rsplit(".conv3.", 1)[0] + "." for name in official_names if ".conv3." in name}
    return {name: _translate(name, sorted(csp_layers, key=len, reverse=True)) for name in official_names}


def _translate(name: str, csp_layers: list[str]) -> str:
    for layer in csp_layers:
        if name.startswith(layer):
            part, rest = name[len(layer) :].split(".", 1)
            name = f"{layer}{CSP_NAMES.get(part, part)}.{rest}"
            break
    # SPP is the second block of dark5 in CSPDarknet, and the eighth in Darknet-53.
    name = re.sub(r"(dark5\.[17]\.)(conv[12])(\.(?:conv|bn)\.)", lambda m: m[1] + SPP_NAMES[m[2]] + m[3], name)
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _num_classes(official: Mapping[str, Tensor], where: str) -> int:
    key = "head.cls_preds.0.weight"
    if key not in official or official[key].ndim != 4:
        raise WeightsError(f"{where}: has no {key} [C, width, 1, 1], so it is no YOLOX checkpoint.")
    return len(official[key])


def _blue_green_red_to_rgb(state: dict[str, Tensor]) -> None:
    for key in ("backbone.stem.conv.conv.weight", "backbone.stem.0.conv.weight"):
        if key in state:
            weight = state[key]  # [O, 3 phases, k, k] with phases = 4 (Focus) or 1 (darknet53)
            state[key] = weight.unflatten(1, (-1, 3)).flip(2).flatten(1, 2)
