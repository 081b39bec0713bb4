"""ImageNet weights for the ResNet backbones: every published detector with a ResNet starts from them.

Source: YOLOF, section 5; torchvision's model weights; chapter 04.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from minidet.detectors.detector import IMAGENET_MEAN, IMAGENET_STD
from minidet.detectors.tensor_files import read_tensor_file, reason_of, state_dict_in
from minidet.detectors.weights import misfits
from minidet.errors import WeightsError
from minidet.layers.resnet import ResNet

# What torchvision calls the weights: those of its first recipe, which detectors have been built on for years.
TORCHVISION_WEIGHTS = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
    "resnet101": "ResNet101_Weights.IMAGENET1K_V1",
    "resnext101-64x4d": "ResNeXt101_64X4D_Weights.IMAGENET1K_V1",
}
STAGE_NAMES = {"conv1": "stem.conv", "bn1": "stem.bn", "layer1": "c2", "layer2": "c3", "layer3": "c4", "layer4": "c5"}


def load_backbone_weights(
    model: nn.Module, source: str | Path | Mapping[str, Any] = "imagenet", caffe: bool = False
) -> None:
    """Give a detector's ResNet backbone the weights that it learned on ImageNet.

    Two flavours exist, alike in names and shapes, so no file can tell which it is:
    torchvision's has the stride of a stage in the 3 x 3 and sees RGB minus mean, divided by the standard deviation;
    Caffe's (that of the published YOLOF) has it in the first 1 x 1 and sees blue-green-red minus mean. In a network of
    the other flavour they load, and compute something else.

    Args:
        model: a detector whose `backbone` is a `ResNet`, or such a `ResNet` itself.
        source: "imagenet" for torchvision's own weights, which torchvision downloads once and keeps; or a `.pth`,
            `.safetensors` or `.pkl` file in torchvision's names; or its `state_dict`.
        caffe: the file is of Caffe's flavour; torchvision's own weights never are.

    Raises:
        WeightsError: the model has no ResNet, is of the other flavour, or normalises pixels in another way; the file
            cannot be read safely, or does not fit; the download failed. The model is then as it was before.
    """
    backbone = getattr(model, "backbone", model)
    if not isinstance(backbone, ResNet):
        raise WeightsError(
            f"ImageNet weights are there for ResNet backbones, this one is a {type(backbone).__name__}. "
            "Darknets start from a checkpoint of the whole detector, or from scratch."
        )
    downloaded = isinstance(source, str) and source == "imagenet"
    if downloaded and caffe:
        raise WeightsError("\"imagenet\" means torchvision's weights, which are not of Caffe's flavour: give a file.")
    _check_flavour(backbone, caffe)
    _check_pixels(model, caffe)

    where = str(source) if isinstance(source, str | Path) else "the state_dict"
    if downloaded:
        state = _download(backbone.name)
    else:
        checkpoint = read_tensor_file(Path(source)) if isinstance(source, str | Path) else source
        state = state_dict_in(checkpoint, where, "a checkpoint of weights")
    _load(backbone, {key: value for key, value in state.items() if not key.startswith("fc.")}, where, caffe)


def _check_flavour(backbone: ResNet, caffe: bool) -> None:
    if backbone.stride_in_1x1 and not caffe:
        raise WeightsError(
            f"{backbone.name} has stride_in_1x1=True (Caffe's flavour), torchvision's weights belong to a network with "
            "the stride in the 3 x 3: they would load and compute something else. Build the model with "
            f"stride_in_1x1=False, pixel_mean={IMAGENET_MEAN} and pixel_std={IMAGENET_STD}, or give a file of Caffe's "
            "flavour and caffe=True."
        )
    if caffe and not backbone.stride_in_1x1:
        raise WeightsError(
            f"{backbone.name} has stride_in_1x1=False (torchvision's flavour), but caffe=True says that the weights "
            "have the stride in the first 1 x 1. Build the model with stride_in_1x1=True."
        )


def _check_pixels(model: nn.Module, caffe: bool) -> None:
    config = getattr(model, "config", None)
    mean, std = getattr(config, "pixel_mean", None), getattr(config, "pixel_std", None)
    if mean is None or std is None:  # a backbone alone: whoever feeds it has to know
        return
    wanted_std = (1.0, 1.0, 1.0) if caffe else IMAGENET_STD
    if not torch.allclose(torch.tensor([mean, std]), torch.tensor([IMAGENET_MEAN, wanted_std]), atol=0.5):
        raise WeightsError(
            f"these weights expect pictures normalised with pixel_mean={IMAGENET_MEAN} and pixel_std={wanted_std}, the "
            f"model has {tuple(mean)} and {tuple(std)}. Build it with those settings."
        )


def _download(name: str) -> dict[str, Tensor]:
    weights = models.get_weight(TORCHVISION_WEIGHTS[name])
    try:
        # The hash is compared after a download, not for what lies in the cache: that must not run anything either.
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError) as error:
        # no network, or a file that is not what its name says
        raise WeightsError(
            f"{name}: torchvision could not download {weights.url} ({reason_of(error)}). Download the file "
            "elsewhere and give its path in place of 'imagenet'."
        ) from error


def _load(backbone: ResNet, state: Mapping[str, Tensor], where: str, caffe: bool) -> None:
    # Counters: frozen norms do not have them, old files lack them, and nothing reads them.
    own, renamed = (
        {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
        for tensors in (backbone.state_dict(), {_here(key): value for key, value in state.items()})
    )
    problems = misfits(own, renamed, backbone.name)
    if problems:
        lines = [f"{where}: {len(problems)} of the weights do not fit {backbone.name}:"]
        lines += [f"  {problem}" for problem in problems[:20]]
        lines += [f"  and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise WeightsError("\n".join([*lines, "The names are expected to be those of torchvision's ResNet."]))
    if caffe:
        renamed["stem.conv.weight"] = renamed["stem.conv.weight"].flip(1)  # blue-green-red there, red-green-blue here
    backbone.load_state_dict(renamed, strict=False)


def _here(key: str) -> str:
    first, _, rest = key.partition(".")
    return f"{STAGE_NAMES.get(first, first)}.{rest}"
