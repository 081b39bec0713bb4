"""The Darknets: CSPDarknet (yolox-nano to -x), Darknet-53 (yolox-darknet53) and CSPDarkNet53 (YOLOF's largest).

Each turns an image into stages of falling resolution. YOLOX's necks use the last three, of stride 8, 16 and 32; YOLOF
uses the last one alone.

Source: YOLOX, section 2.1 and 2.2; YOLOF, section 5, and its published code; chapter 12.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minidet.errors import MinidetError
from minidet.layers.blocks import SPP, ConvBlock, CSPLayer, Focus, ResidualLayer, conv3x3

STAGES = ("stem", "dark2", "dark3", "dark4", "dark5")


class CSPDarknet(nn.Module):
    """CSPDarknet as YOLOX uses it.

    Args:
        depth: multiplies the number of bottlenecks in a stage.
        width: multiplies the channels.
        depthwise: depthwise separable 3 x 3 convolutions (yolox-nano).

    `forward` maps [B, 3, H, W] to a dict of all five stages, strides 2, 4, 8, 16 and 32. `channels` has the widths of
    the last three.
    """

    def __init__(self, depth: float, width: float, depthwise: bool = False, activation: str = "silu"):
        super().__init__()
        c = int(width * 64)
        n = max(round(depth * 3), 1)
        self.channels = (4 * c, 8 * c, 16 * c)

        def stage(c_in: int, c_out: int, n: int, shortcut: bool = True, pool: bool = False) -> nn.Sequential:
            layers = [conv3x3(c_in, c_out, 2, depthwise, activation)]
            if pool:
                layers.append(SPP(c_out, c_out, activation))
            layers.append(CSPLayer(c_out, c_out, n, shortcut, depthwise, activation))
            return nn.Sequential(*layers)

        self.stem = Focus(3, c, activation)
        self.dark2 = stage(c, 2 * c, n)
        self.dark3 = stage(2 * c, 4 * c, 3 * n)
        self.dark4 = stage(4 * c, 8 * c, 3 * n)
        self.dark5 = stage(8 * c, 16 * c, n, shortcut=False, pool=True)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return _run_stages(self, images)


class Darknet53(nn.Module):
    """YOLOv3's Darknet-53 with spatial pyramid pooling, the backbone of the paper's road map (Table 2).

    Same contract as `CSPDarknet`; at full width the last stage ends at 512 channels.

    Args:
        depth: multiplies the number of residual layers in a stage; our own, for smaller networks than the paper's.
        width: multiplies the channels; our own too.
    """

    def __init__(self, depth: float = 1.0, width: float = 1.0, activation: str = "leaky_relu"):
        super().__init__()
        c = int(width * 32)
        self.channels = (8 * c, 16 * c, 16 * c)

        def group(c_in: int, n: int) -> list[nn.Module]:
            residuals = [ResidualLayer(2 * c_in, activation) for _ in range(max(round(depth * n), 1))]
            return [ConvBlock(c_in, 2 * c_in, 3, 2, activation=activation), *residuals]

        def conv(c_in: int, c_out: int, kernel: int) -> ConvBlock:
            return ConvBlock(c_in, c_out, kernel, activation=activation)

        self.stem = nn.Sequential(conv(3, c, 3), *group(c, 1))
        self.dark2 = nn.Sequential(*group(2 * c, 2))
        self.dark3 = nn.Sequential(*group(4 * c, 8))
        self.dark4 = nn.Sequential(*group(8 * c, 8))
        self.dark5 = nn.Sequential(
            *group(16 * c, 4),
            conv(32 * c, 16 * c, 1),
            conv(16 * c, 32 * c, 3),
            SPP(32 * c, 16 * c, activation),
            conv(16 * c, 32 * c, 3),
            conv(32 * c, 16 * c, 1),
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return _run_stages(self, images)


# Set on every batch norm of CSPDarkNet53; the momentum is YOLOX's.
CSP53_NORM_EPS = 1e-4
CSP53_STAGES = ("stem", "c1", "c2", "c3", "c4", "c5")


class CSPStage(nn.Module):
    """A stage of CSPDarkNet53: a 3 x 3 of stride 2, then two branches of which one has the residual layers.

    Unlike YOLOX's `CSPLayer`, both branches have a 1 x 1 at the end too.

    Args:
        c_in, c_out: channels that come in and go out.
        n: number of residual layers.
        branch: channels of each branch.
        hidden: channels inside a residual layer.
        stride, dilation: of the first 3 x 3; the dilation also of those in the residual layers.
    """

    def __init__(self, c_in: int, c_out: int, n: int, branch: int, hidden: int, stride: int = 2, dilation: int = 1):
        super().__init__()

        def conv(c_in: int, c_out: int) -> ConvBlock:
            return ConvBlock(c_in, c_out, 1, activation="mish", eps=CSP53_NORM_EPS)

        self.down = ConvBlock(c_in, c_out, 3, stride, activation="mish", dilation=dilation, eps=CSP53_NORM_EPS)
        self.bypass = conv(c_out, branch)
        self.enter = conv(c_out, branch)
        self.blocks = nn.Sequential(
            *(ResidualLayer(branch, "mish", hidden, dilation, CSP53_NORM_EPS) for _ in range(n))
        )
        self.leave = conv(branch, branch)
        self.fuse = conv(2 * branch, c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.fuse(torch.cat([self.leave(self.blocks(self.enter(x))), self.bypass(x)], dim=1))


class CSPDarknet53(nn.Module):
    """CSPDarkNet53 (YOLOv4's backbone), as the published YOLOF uses it; same contract as `ResNet`.

    Args:
        dilated: stage c5 keeps stride 16; its 3 x 3 convolutions have dilation 2 instead.
        frozen_stages: the stem and the stages up to c{frozen_stages} get no gradient, 0 none, 2 as published.
        freeze_norm_statistics: batch norms of frozen stages stay in evaluation mode. As published they do not: their
            running statistics go on moving in training, though nothing learns there.

    `forward` maps [B, 3, H, W] to a dict of all stages: "stem" of stride 1, "c1" 2, ... "c5" 32 (16 if dilated).
    `channels` and `strides` have the same keys.

    Raises:
        MinidetError: frozen_stages is not from 0 to 5.
    """

    def __init__(self, dilated: bool = False, frozen_stages: int = 2, freeze_norm_statistics: bool = False):
        super().__init__()
        if not 0 <= frozen_stages <= 5:
            raise MinidetError(f"CSPDarkNet53: frozen_stages goes from 0 (none) to 5 (stem to c5), not {frozen_stages}")
        self.frozen_stages = frozen_stages
        self.freeze_norm_statistics = freeze_norm_statistics

        self.stem = ConvBlock(3, 32, 3, activation="mish", eps=CSP53_NORM_EPS)
        self.c1 = CSPStage(32, 64, n=1, branch=64, hidden=32)  # the only one whose branches have the full width
        self.c2 = CSPStage(64, 128, n=2, branch=64, hidden=64)
        self.c3 = CSPStage(128, 256, n=8, branch=128, hidden=128)
        self.c4 = CSPStage(256, 512, n=8, branch=256, hidden=256)
        stride, dilation = (1, 2) if dilated else (2, 1)
        self.c5 = CSPStage(512, 1024, n=4, branch=512, hidden=512, stride=stride, dilation=dilation)

        for stage in self._frozen():
            stage.requires_grad_(False)
        self.channels = {"stem": 32, "c1": 64, "c2": 128, "c3": 256, "c4": 512, "c5": 1024}
        self.strides = {"stem": 1, "c1": 2, "c2": 4, "c3": 8, "c4": 16, "c5": 16 if dilated else 32}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return _run_stages(self, images, CSP53_STAGES)

    def train(self, mode: bool = True) -> CSPDarknet53:
        super().train(mode)
        if self.freeze_norm_statistics:
            for stage in self._frozen():
                stage.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        names = CSP53_STAGES[: self.frozen_stages + 1] if self.frozen_stages else ()
        return [getattr(self, name) for name in names]


def _run_stages(backbone: nn.Module, x: Tensor, names: tuple[str, ...] = STAGES) -> dict[str, Tensor]:
    features = {}
    for name in names:
        x = features[name] = getattr(backbone, name)(x)
    return features
