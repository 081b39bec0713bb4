"""The decoupled head: what an object is and where it is are read off by two branches that share only a 1 x 1 stem.

Source: YOLOX, section 2.1 "Decoupled head", Figure 2; chapter 09.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from minidet.layers.blocks import ConvBlock, conv3x3

PRIOR_PROBABILITY = 0.01  # what class and objectness say before training; keeps the first losses small


class DecoupledLevel(nn.Module):
    """The head of one pyramid level; levels share no weights.

    `forward` maps [B, c_in, H, W] to class logits [B, C, H, W], raw boxes [B, 4, H, W] and objectness logits
    [B, 1, H, W].
    """

    def __init__(self, c_in: int, width: int, num_classes: int, depthwise: bool = False, activation: str = "silu"):
        super().__init__()

        def branch() -> nn.Sequential:
            return nn.Sequential(*(conv3x3(width, width, 1, depthwise, activation) for _ in range(2)))

        self.stem = ConvBlock(c_in, width, 1, activation=activation)
        self.class_branch = branch()
        self.box_branch = branch()
        self.class_predictor = nn.Conv2d(width, num_classes, 1)
        self.box_predictor = nn.Conv2d(width, 4, 1)
        self.object_predictor = nn.Conv2d(width, 1, 1)
        for predictor in (self.class_predictor, self.object_predictor):
            nn.init.constant_(predictor.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x)
        class_logits = self.class_predictor(self.class_branch(x))
        box_features = self.box_branch(x)
        # Objectness sits on the box branch: how good a box is depends on where it is (the paper's "IoU branch").
        return class_logits, self.box_predictor(box_features), self.object_predictor(box_features)


class DecoupledHead(nn.Module):
    """One `DecoupledLevel` for each level of the pyramid.

    Args:
        channels: width of each level that comes in.
        width: width inside the head, the same on all levels.
        num_classes: C.

    `forward` takes the levels, finest first, and returns for each the three maps of `DecoupledLevel`.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        width: int,
        num_classes: int,
        depthwise: bool = False,
        activation: str = "silu",
    ):
        super().__init__()
        self.levels = nn.ModuleList(DecoupledLevel(c, width, num_classes, depthwise, activation) for c in channels)

    def forward(self, pyramid: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [level(x) for level, x in zip(self.levels, pyramid, strict=True)]
