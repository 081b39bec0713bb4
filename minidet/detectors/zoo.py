"""Every named variant, as data, and the function that builds one.

Source: YOLOX, sections 2 and 3, and the published model cards.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from minidet.detectors.detector import Detector
from minidet.detectors.yolox import YOLOX, YOLOXConfig
from minidet.errors import MinidetError


@dataclass(frozen=True)
class ModelCard:
    """What was published about a variant. Figures are for 80 classes at the test size."""

    config: YOLOXConfig
    params: int  # trained parameters
    gflops: float  # as published: multiply and add count two
    ap: float  # COCO val2017 AP, in percent, of the published weights
    paper: str

    @property
    def input_hw(self) -> tuple[int, int]:
        return self.config.input_hw


_PAPER = "YOLOX, arXiv 2107.08430"

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
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(ZOO)


def model_card(name: str) -> ModelCard:
    """What was published about the variant called `name`.

    Raises:
        MinidetError: there is no such variant; the text lists those there are.
    """
    if name not in ZOO:
        close = difflib.get_close_matches(name, ZOO, n=1, cutoff=0.5)
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
    if changes.get("class_names") is not None:
        changes["class_names"] = tuple(changes["class_names"])
    if "input_hw" in changes:
        changes["input_hw"] = tuple(int(side) for side in changes["input_hw"])
    config = dataclasses.replace(card.config, num_classes=num_classes, **changes)
    _check(name, config)
    return YOLOX(config, name)


def _check(name: str, config: YOLOXConfig) -> None:
    if config.num_classes < 1:
        raise MinidetError(f"{name}: num_classes is at least 1, not {config.num_classes}")
    if config.class_names is not None and len(config.class_names) != config.num_classes:
        raise MinidetError(
            f"{name}: {len(config.class_names)} class names for num_classes={config.num_classes}; they must agree"
        )
