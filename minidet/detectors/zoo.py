"""Every named variant, as data, and the function that builds one.

Source: YOLOX, sections 2 and 3, YOLOF, section 5, and the published model cards.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, replace
from typing import Any

from minidet.assign import UniformMatching
from minidet.detectors.detector import IMAGENET_STD, Detector
from minidet.detectors.yolof import YOLOF, YOLOFConfig
from minidet.detectors.yolox import YOLOX, YOLOXConfig
from minidet.errors import MinidetError
from minidet.settings import check_settings


@dataclass(frozen=True)
class ModelCard:
    """What was published about a variant. Figures are for 80 classes at the test size."""

    config: YOLOXConfig | YOLOFConfig
    params: int  # trained parameters; frozen ones are not among them
    gflops: float  # multiply and add count two; YOLOF's are measured at 800 x 1344 (cspdarknet53 608 x 608)
    ap: float | None  # COCO val2017 AP, in percent, of the published weights
    paper: str

    @property
    def input_hw(self) -> tuple[int, int]:
        return self.config.input_hw


_PAPER = "YOLOX, arXiv 2107.08430"
_YOLOF = "YOLOF, arXiv 2103.09460"

_DC5 = YOLOFConfig(
    dilated=True,
    dilations=(4, 8, 12, 16),
    anchor_sizes=(16, 32, 64, 128, 256, 512),
    assigner=UniformMatching(k=8, min_anchor_iou=0.1),
)
_CSP_DC5 = YOLOFConfig(
    backbone="cspdarknet53",
    dilated=True,
    dilations=(1, 2, 3, 4, 5, 6, 7, 8),
    activation="leaky_relu",
    anchor_sizes=(16, 32, 64, 128, 256, 512),
    assigner=UniformMatching(k=4, min_anchor_iou=0.1),  # the authors' first code has k = 8, their second 4
    input_hw=(608, 608),
    resize="stretch",
)
# For the course: everything learns from scratch, so nothing is frozen; and pictures are small, so that C5 has 6 to 10
# cells a side, not 25 to 42: with the published dilations most taps of the last blocks would lie outside. A thousand
# steps at a high learning rate have to do, so the encoder's blocks begin with longer weights.
_R18 = YOLOFConfig(
    backbone="resnet18",
    stride_in_1x1=False,
    frozen_norm=False,
    frozen_stages=0,
    dilations=(1, 2, 3, 4),
    encoder_init_std=None,
    width=256,
    mid_width=64,
    pixel_std=IMAGENET_STD,
    input_hw=(320, 320),
    resize="letterbox",
)

ZOO: dict[str, ModelCard] = {
    "yolox-nano": ModelCard(
        YOLOXConfig(depth=0.33, width=0.25, depthwise=True, input_hw=(416, 416)), 912_159, 1.08, 25.8, _PAPER
    ),
    "yolox-tiny": ModelCard(YOLOXConfig(depth=0.33, width=0.375, input_hw=(416, 416)), 5_055_855, 6.45, 32.8, _PAPER),
    "yolox-s": ModelCard(YOLOXConfig(depth=0.33, width=0.50), 8_968_255, 26.8, 40.5, _PAPER),
    "yolox-m": ModelCard(YOLOXConfig(depth=0.67, width=0.75), 25_326_495, 73.8, 46.9, _PAPER),
    "yolox-l": ModelCard(YOLOXConfig(depth=1.00, width=1.00), 54_208_895, 155.6, 49.7, _PAPER),
    "yolox-x": ModelCard(YOLOXConfig(depth=1.33, width=1.25), 99_071_455, 281.9, 51.1, _PAPER),
    "yolox-darknet53": ModelCard(YOLOXConfig(backbone="darknet53"), 63_724_767, 185.3, 47.7, _PAPER),
    "yolof-r18-c5": ModelCard(_R18, 16_705_257, 8.53, None, _YOLOF),
    "yolof-r50-c5": ModelCard(YOLOFConfig(), 43_890_601, 209.0, 37.7, _YOLOF),
    "yolof-r50-dc5": ModelCard(_DC5, 44_282_366, 436.6, 39.2, _YOLOF),
    "yolof-r101-c5": ModelCard(YOLOFConfig(backbone="resnet101"), 62_830_505, 368.2, 39.8, _YOLOF),
    "yolof-r101-dc5": ModelCard(replace(_DC5, backbone="resnet101"), 63_222_270, 595.6, 40.5, _YOLOF),
    "yolof-x101-c5": ModelCard(
        YOLOFConfig(backbone="resnext101-64x4d", stride_in_1x1=False), 101_463_977, 706.6, 42.2, _YOLOF
    ),
    "yolof-cspdarknet53-dc5": ModelCard(_CSP_DC5, 48_011_006, 174.6, 41.2, _YOLOF),
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(ZOO)


def model_card(name: str) -> ModelCard:
    """What was published about the variant called `name`.

    Raises:
        MinidetError: there is no such variant; the text lists those there are.
    """
    if not isinstance(name, str) or name not in ZOO:
        close = difflib.get_close_matches(str(name), ZOO, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise MinidetError(f"there is no model {name!r}.{hint} The names are {', '.join(ZOO)}.")
    return ZOO[name]


def create_model(name: str, num_classes: int = 80, **changes: Any) -> Detector:
    """Build a detector with fresh weights.

    Args:
        name: one of `list_models()`.
        num_classes: C.
        changes: fields of the variant's configuration that shall differ, such as `input_hw=(256, 320)`,
            `class_names=["cat", "dog"]` or `assigner=SimOTA.published()`.

    Raises:
        MinidetError: an unknown name or field, or a value that makes no sense.
    """
    card = model_card(name)
    fields = [field.name for field in dataclasses.fields(card.config)]
    unknown = sorted(set(changes) - set(fields))
    if unknown:
        raise MinidetError(
            f"{name} has no setting {', '.join(map(repr, unknown))}. Its settings are {', '.join(fields)}."
        )
    changes = {key: _frozen(value) for key, value in changes.items()}
    config = dataclasses.replace(card.config, num_classes=num_classes, **changes)
    _check(name, config)
    config = replace(config, input_hw=tuple(int(side) for side in config.input_hw))  # plain numbers, for JSON
    return YOLOX(config, name) if isinstance(config, YOLOXConfig) else YOLOF(config, name)


def _frozen(value: Any) -> Any:
    """Lists as tuples, also inside of each other."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _check(name: str, config: YOLOXConfig | YOLOFConfig) -> None:
    check_settings(config, name, _YOLOX_RANGES if isinstance(config, YOLOXConfig) else _YOLOF_RANGES)
    for rule in (config.assigner, getattr(config, "selector_assigner", None)):
        if dataclasses.is_dataclass(rule):
            check_settings(rule, f"{name}: {type(rule).__name__}")
    if config.class_names is not None and len(config.class_names) != config.num_classes:
        raise MinidetError(
            f"{name}: {len(config.class_names)} class names for num_classes={config.num_classes}; they must agree"
        )


# Lowest and highest. What lies above is a slip of the pen, and would only fill the memory.
_RANGES = {
    "num_classes": (1, 100_000),
    "pixel_std": (1e-6, 1e6),
    "score_threshold": (0, 1),
    "nms_threshold": (0, 1),
    "max_detections": (1, 10_000_000),
}
_YOLOX_RANGES = {**_RANGES, "depth": (0, 16), "width": (1 / 32, 16), "box_weight": (0, 1e6)}
_YOLOF_RANGES = {
    **_RANGES,
    "backbone_width": (1 / 64, 16),
    "dilations": (1, 1024),
    "encoder_init_std": (0, 1e3),
    "width": (1, 16_384),
    "mid_width": (1, 16_384),
    "class_convs": (0, 64),
    "box_convs": (0, 64),
    "anchor_sizes": (1e-3, 1e6),
    "center_limit": (0, 1e6),
    "focal_alpha": (0, 1),
    "focal_gamma": (0, 100),
    "candidates": (1, 10_000_000),
}
