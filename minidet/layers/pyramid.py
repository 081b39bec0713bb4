"""Necks that mix the stages of a backbone into a pyramid: PAFPN (nano to x) and the YOLOv3 pyramid (darknet53).

Source: YOLOX, section 2.1 and 2.2; chapter 08.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidet.layers.blocks import ConvBlock, CSPLayer, conv3x3

LEVELS = ("p3", "p4", "p5")


def upsample2x(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling, [B, C, H, W] -> [B, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class PAFPN(nn.Module):
    """Path-aggregation pyramid: information flows down from stage 5 to stage 3, and up again.

    Args:
        channels: widths of the three stages (c3, c4, c5); the outputs have the same.
        n: bottlenecks in each CSP layer.

    `forward` takes the backbone's dict and returns {"p3", "p4", "p5"} of stride 8, 16 and 32.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        n: int,
        depthwise: bool = False,
        activation: str = "silu",
    ):
        super().__init__()
        c3, c4, c5 = self.channels = channels

        def csp(c_in: int, c_out: int) -> CSPLayer:
            return CSPLayer(c_in, c_out, n, shortcut=False, depthwise=depthwise, activation=activation)

        self.lateral5 = ConvBlock(c5, c4, 1, activation=activation)
        self.top_down4 = csp(2 * c4, c4)
        self.lateral4 = ConvBlock(c4, c3, 1, activation=activation)
        self.top_down3 = csp(2 * c3, c3)
        self.down3 = conv3x3(c3, c3, 2, depthwise, activation)
        self.bottom_up4 = csp(2 * c3, c4)
        self.down4 = conv3x3(c4, c4, 2, depthwise, activation)
        self.bottom_up5 = csp(2 * c4, c5)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        lateral5 = self.lateral5(features["dark5"])
        merged4 = self.top_down4(torch.cat([upsample2x(lateral5), features["dark4"]], dim=1))
        lateral4 = self.lateral4(merged4)
        p3 = self.top_down3(torch.cat([upsample2x(lateral4), features["dark3"]], dim=1))
        p4 = self.bottom_up4(torch.cat([self.down3(p3), lateral4], dim=1))
        p5 = self.bottom_up5(torch.cat([self.down4(p4), lateral5], dim=1))
        return {"p3": p3, "p4": p4, "p5": p5}


class YOLOFPN(nn.Module):
    """YOLOv3's pyramid on Darknet-53: top-down only; stage 5 itself is the coarsest level.

    Args:
        channels: widths of the backbone's three stages; at full width (256, 512, 512).
    """

    def __init__(self, channels: tuple[int, int, int], activation: str = "leaky_relu"):
        super().__init__()
        dark3, dark4, dark5 = channels
        c3, c4 = dark3 // 2, dark4 // 2
        self.channels = (c3, c4, dark5)

        def conv(c_in: int, c_out: int, kernel: int) -> ConvBlock:
            return ConvBlock(c_in, c_out, kernel, activation=activation)

        def five_blocks(c_in: int, c: int) -> nn.Sequential:
            return nn.Sequential(
                conv(c_in, c, 1), conv(c, 2 * c, 3), conv(2 * c, c, 1), conv(c, 2 * c, 3), conv(2 * c, c, 1)
            )

        self.lateral5 = conv(dark5, c4, 1)
        self.top_down4 = five_blocks(c4 + dark4, c4)
        self.lateral4 = conv(c4, c3, 1)
        self.top_down3 = five_blocks(c3 + dark3, c3)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        p5 = features["dark5"]
        p4 = self.top_down4(torch.cat([upsample2x(self.lateral5(p5)), features["dark4"]], dim=1))
        p3 = self.top_down3(torch.cat([upsample2x(self.lateral4(p4)), features["dark3"]], dim=1))
        return {"p3": p3, "p4": p4, "p5": p5}
