"""The two backbones of YOLOX: CSPDarknet (nano to x) and Darknet-53.

Each turns an image into stages of falling resolution; the necks use the last three, of stride 8, 16 and 32.

Source: YOLOX, section 2.1 and 2.2; chapter 08.
"""

from __future__ import annotations

from torch import Tensor, nn

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

    Same contract as `CSPDarknet`; the last stage ends at 512 channels.
    """

    channels = (256, 512, 512)

    def __init__(self, activation: str = "leaky_relu"):
        super().__init__()

        def group(c_in: int, n: int) -> list[nn.Module]:
            residuals = [ResidualLayer(2 * c_in, activation) for _ in range(n)]
            return [ConvBlock(c_in, 2 * c_in, 3, 2, activation=activation), *residuals]

        def conv(c_in: int, c_out: int, kernel: int) -> ConvBlock:
            return ConvBlock(c_in, c_out, kernel, activation=activation)

        self.stem = nn.Sequential(conv(3, 32, 3), *group(32, 1))
        self.dark2 = nn.Sequential(*group(64, 2))
        self.dark3 = nn.Sequential(*group(128, 8))
        self.dark4 = nn.Sequential(*group(256, 8))
        self.dark5 = nn.Sequential(
            *group(512, 4),
            conv(1024, 512, 1),
            conv(512, 1024, 3),
            SPP(1024, 512, activation),
            conv(512, 1024, 3),
            conv(1024, 512, 1),
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return _run_stages(self, images)


def _run_stages(backbone: nn.Module, x: Tensor) -> dict[str, Tensor]:
    features = {}
    for name in STAGES:
        x = features[name] = getattr(backbone, name)(x)
    return features
