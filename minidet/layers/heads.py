"""Heads: YOLOX's with a branch for what an object is and one for where it is, YOLOv3's with one for both, what either
needs to do without NMS, and the head of anchor detectors.

Source: YOLOX, section 2.1 "Decoupled head", Figure 2, and "End-to-end YOLO", chapter 08; YOLOF, section 4.1, chapter
07.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minidet.layers.blocks import ConvBlock, conv3x3, make_activation

PRIOR_PROBABILITY = 0.01  # what class and objectness say before training; keeps the first losses small
PRIOR_LOGIT = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)


@dataclass(frozen=True)
class HeadStyle:
    """What the levels of a YOLO head have in common.

    Attributes:
        num_classes: C.
        width: channels inside the branches of a decoupled head, and inside a selector.
        depthwise: depthwise separable 3 x 3 convolutions.
        activation: of every block.
        anchors_per_cell: n, predictions of each cell. Channel a * D + d of a map is number d of anchor a.
        selector: predict one logit more for each slot; see `Selector`.
        stop_gradient: of the selector.
    """

    num_classes: int
    width: int
    depthwise: bool = False
    activation: str = "silu"
    anchors_per_cell: int = 1
    selector: bool = False
    stop_gradient: bool = True

    def block(self, c_in: int, c_out: int) -> nn.Module:
        """A 3 x 3 block of this style."""
        return conv3x3(c_in, c_out, 1, self.depthwise, self.activation)


class Selector(nn.Module):
    """Two blocks and one logit that let a detector do without NMS: is this the one slot that speaks for its object?

    It reads the features of the box branch. With `stop_gradient` it does not change them: everything else in the
    network then learns just what it would learn without a selector (unless gradients are clipped, all together).

    `forward` maps [B, c_in, H, W] to logits [B, n, H, W].

    Source: YOLOX, section 2.1 "End-to-end YOLO"; "positive sample selector", arXiv 2101.11782, section 3.
    """

    def __init__(self, c_in: int, style: HeadStyle):
        super().__init__()
        self.stop_gradient = style.stop_gradient
        self.branch = nn.Sequential(style.block(c_in, style.width), style.block(style.width, style.width))
        self.predictor = nn.Conv2d(style.width, style.anchors_per_cell, 1)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, box_features: Tensor) -> Tensor:
        return self.predictor(self.branch(box_features.detach() if self.stop_gradient else box_features))


class _Level(nn.Module):
    """The head of one pyramid level; levels share no weights."""

    def make_predictors(self, c_in: int, style: HeadStyle) -> None:
        """The last convolutions, 1 x 1, on features of `c_in` channels."""
        n = style.anchors_per_cell
        self.class_predictor = nn.Conv2d(c_in, n * style.num_classes, 1)
        self.box_predictor = nn.Conv2d(c_in, n * 4, 1)
        self.object_predictor = nn.Conv2d(c_in, n, 1)
        for predictor in (self.class_predictor, self.object_predictor):
            nn.init.constant_(predictor.bias, PRIOR_LOGIT)
        self.selector = Selector(c_in, style) if style.selector else None

    def predict(self, class_features: Tensor, box_features: Tensor) -> tuple[Tensor, ...]:
        """Class logits [B, n * C, H, W], raw boxes [B, n * 4, H, W], objectness logits [B, n, H, W] and, of a head with
        a selector, its logits [B, n, H, W]."""
        # Objectness sits on the box branch: how good a box is depends on where it is (the paper's "IoU branch").
        class_logits = self.class_predictor(class_features)
        maps = class_logits, self.box_predictor(box_features), self.object_predictor(box_features)
        return maps if self.selector is None else (*maps, self.selector(box_features))


class DecoupledLevel(_Level):
    """One level of a decoupled head: two 3 x 3 blocks for the class, two for box and objectness.

    `forward` maps [B, c_in, H, W] to the three or four maps of `predict`.
    """

    def __init__(self, c_in: int, style: HeadStyle):
        super().__init__()

        def branch() -> nn.Sequential:
            return nn.Sequential(*(style.block(style.width, style.width) for _ in range(2)))

        self.stem = ConvBlock(c_in, style.width, 1, activation=style.activation)
        self.class_branch = branch()
        self.box_branch = branch()
        self.make_predictors(style.width, style)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        return self.predict(self.class_branch(x), self.box_branch(x))


class CoupledLevel(_Level):
    """One level of the head that YOLOv3 has: one 3 x 3 block to twice the channels, one 1 x 1 convolution.

    The block serves both tasks, so what an object is and where it is are read from the same features. The 1 x 1
    convolution to n * (4 + 1 + C) channels is kept in three parts, each called by what it says, as in `DecoupledLevel`:
    that is the same map, and new classes can be learned without forgetting boxes.

    `forward` maps as `DecoupledLevel` does.
    """

    def __init__(self, c_in: int, style: HeadStyle):
        super().__init__()
        self.branch = style.block(c_in, 2 * c_in)
        self.make_predictors(2 * c_in, style)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.branch(x)
        return self.predict(x, x)


class DecoupledHead(nn.Module):
    """One `DecoupledLevel` for each level of the pyramid.

    Args:
        channels: width of each level that comes in.
        style: of the levels.

    `forward` takes the levels, finest first, and returns for each the maps of `DecoupledLevel`.
    """

    def __init__(self, channels: tuple[int, ...], style: HeadStyle):
        super().__init__()
        self.levels = nn.ModuleList(DecoupledLevel(c, style) for c in channels)

    def forward(self, pyramid: list[Tensor]) -> list[tuple[Tensor, ...]]:
        return [level(x) for level, x in zip(self.levels, pyramid, strict=True)]


class CoupledHead(nn.Module):
    """One `CoupledLevel` for each level of the pyramid; what the paper starts from.

    Args:
        channels: width of each level that comes in.
        style: of the levels.

    `forward` takes the levels, finest first, and returns for each the maps of `CoupledLevel`.

    Source: YOLOX, section 2.1, Table 2; YOLOv3, arXiv 1804.02767, section 2.3.
    """

    def __init__(self, channels: tuple[int, ...], style: HeadStyle):
        super().__init__()
        self.levels = nn.ModuleList(CoupledLevel(c, style) for c in channels)

    def forward(self, pyramid: list[Tensor]) -> list[tuple[Tensor, ...]]:
        return [level(x) for level, x in zip(self.levels, pyramid, strict=True)]


class NormedConv(nn.Module):
    """3 x 3 convolution with bias, batch norm, activation; the channels stay the same."""

    def __init__(self, width: int, activation: str = "relu"):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.activation = make_activation(activation)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))

    def on_levels(self, levels: list[Tensor]) -> list[Tensor]:
        """The same for several levels at once, whose cells the norm takes together.

        Normalised level by level, training would use each level's own mean and spread, but testing one running average
        that fits none of them.
        """
        if len(levels) == 1 or not self.norm.training:
            return [self(level) for level in levels]
        cells = [self.conv(level).flatten(2) for level in levels]  # [B, C, H * W] each
        joined = self.activation(self.norm(torch.cat(cells, dim=2)[..., None]))[..., 0]
        parts = joined.split([each.shape[2] for each in cells], dim=2)
        return [part.unflatten(2, level.shape[-2:]) for part, level in zip(parts, levels, strict=True)]


class AnchorHead(nn.Module):
    """The head of anchor detectors, the same weights for every level: YOLOF's decoder, or RetinaNet's head.

    YOLOF's has two convolutions in the class branch, four in the box branch, and an objectness that no loss looks at by
    itself ("implicit"). RetinaNet's has four in both and no objectness.

    Args:
        width: channels that come in and that the branches have.
        anchors_per_cell: n.
        num_classes: C.
        class_convs, box_convs: 3 x 3 convolutions in each branch.
        activation: of the branches.
        objectness: predict one logit more for each anchor, on the box branch.

    `forward` maps [B, width, H, W] to class logits [B, n * C, H, W], raw boxes [B, n * 4, H, W] and objectness logits
    [B, n, H, W] or None. Channel a * C + c is class c of anchor a. A list of levels gives a list of such results.
    """

    def __init__(
        self,
        width: int,
        anchors_per_cell: int,
        num_classes: int,
        class_convs: int = 2,
        box_convs: int = 4,
        activation: str = "relu",
        objectness: bool = True,
    ):
        super().__init__()
        self.class_branch = nn.Sequential(*(NormedConv(width, activation) for _ in range(class_convs)))
        self.box_branch = nn.Sequential(*(NormedConv(width, activation) for _ in range(box_convs)))
        self.class_predictor = nn.Conv2d(width, anchors_per_cell * num_classes, 3, padding=1)
        self.box_predictor = nn.Conv2d(width, anchors_per_cell * 4, 3, padding=1)
        self.object_predictor = nn.Conv2d(width, anchors_per_cell, 3, padding=1) if objectness else None
        for predictor in (self.class_predictor, self.box_predictor, self.object_predictor):
            if predictor is not None:
                nn.init.normal_(predictor.weight, std=0.01)
                nn.init.zeros_(predictor.bias)
        nn.init.constant_(self.class_predictor.bias, PRIOR_LOGIT)

    def forward(self, maps: Tensor | list[Tensor]) -> Any:
        if isinstance(maps, Tensor):
            return self.forward([maps])[0]
        class_levels = box_levels = maps
        for block in self.class_branch:
            class_levels = block.on_levels(class_levels)
        for block in self.box_branch:
            box_levels = block.on_levels(box_levels)
        return [self._predict(*features) for features in zip(class_levels, box_levels, strict=True)]

    def _predict(self, class_features: Tensor, box_features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        object_logits = None if self.object_predictor is None else self.object_predictor(box_features)
        return self.class_predictor(class_features), self.box_predictor(box_features), object_logits


def slots_first(maps: Tensor, anchors_per_cell: int) -> Tensor:
    """Rows for slots: [B, n * D, H, W] of any precision -> [B, H * W * n, D] float32."""
    return maps.unflatten(1, (anchors_per_cell, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3).float()
