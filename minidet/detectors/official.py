"""Published YOLOX checkpoints become minidet models.

Only names differ, and the order of colours: the official code feeds blue-green-red, this library red-green-blue, so the
first convolution's input channels are turned round once, here, and no other code knows.

Source: the `state_dict` layout of the official code, release 0.1.0 to the present; chapter 11.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minidet.detectors.detector import Detector
from minidet.detectors.weights import load_state
from minidet.detectors.zoo import create_model, model_card
from minidet.errors import WeightsError

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

# The 80 classes of COCO in the order of their category ids, which is the order of the published class predictors.
COCO_CLASSES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag "
    "tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
    "tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot "
    "hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv laptop mouse remote "
    "keyboard cell_phone microwave oven toaster sink refrigerator book clock vase scissors teddy_bear "
    "hair_drier toothbrush"
).split()
COCO_CLASSES = tuple(name.replace("_", " ") for name in COCO_CLASSES)

LEGACY_MEAN = (123.675, 116.28, 103.53)  # ImageNet's, RGB, of 255
LEGACY_STD = (58.395, 57.12, 57.375)


def load_official(
    name: str, source: str | Path | Mapping[str, Any], legacy: bool = False, class_names: list[str] | None = None
) -> Detector:
    """Build a minidet model from a published YOLOX checkpoint.

    Args:
        name: the variant, such as "yolox-s".
        source: a `.pth` file, or what `torch.load` gave: the checkpoint, or its `state_dict` itself.
        legacy: the weights are of the paper's first release (0.1.0, July 2021), trained on normalised RGB. They have
            the same names and shapes as the current ones, so a file cannot tell.
        class_names: C names; for 80 classes COCO's by default, otherwise the model knows numbers only.

    Returns:
        The model in evaluation mode, for RGB pictures; the number of classes is read off the weights.

    Raises:
        WeightsError: the file cannot be read safely, or keys do not fit; each such key is named.
    """
    model_card(name)  # an unknown name is the first thing to say
    where = str(source) if isinstance(source, str | Path) else "the state_dict"
    checkpoint = _read(Path(source)) if isinstance(source, str | Path) else source
    official = _state_dict(checkpoint, where)
    names = translate_names(official)
    state = {names[key]: value for key, value in official.items()}

    num_classes = _num_classes(official, where)
    if class_names is None and num_classes == len(COCO_CLASSES):
        class_names = list(COCO_CLASSES)
    changes: dict[str, Any] = {"class_names": class_names}
    if legacy:
        changes |= {"pixel_mean": LEGACY_MEAN, "pixel_std": LEGACY_STD}
    model = create_model(name, num_classes, **changes)
    if not legacy:
        _blue_green_red_to_rgb(state)
    load_state(model, state, where)
    return model.eval()


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


def _read(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of an odd file, the errors below say in plain words
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: there is no such file. Check the path.") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors, numbers and text, or is damaged, so it is not opened: a pickle can run "
            f"any program. Get it from the original place again. (torch says: {str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise WeightsError(f"{path}: is not a whole PyTorch checkpoint ({error}). Download it again.") from error


def _state_dict(checkpoint: Any, where: str) -> dict[str, Tensor]:
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f'{where}: is no YOLOX checkpoint: no tensors by name, neither in it nor under its key "model".'
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


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
