"""The bricks of YOLOX's networks: convolution blocks, CSP layers, spatial pyramid pooling, the Focus stem.

Source: YOLOX, section 2.1 (the networks are those of YOLOv3 and YOLOv5); chapters 08 and 09.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from minidet.errors import MinidetError

# Set on every batch norm of YOLOX. PyTorch's own defaults are 1e-5 and 0.1; imported weights go wrong with them.
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.03


def make_activation(name: str) -> nn.Module:
    """The activation called `name`.

    "silu" is YOLOX's, "leaky_relu" (slope 0.1) Darknet-53's, "relu" YOLOF's, "mish" that of YOLOF's CSPDarkNet53.
    """
    if name == "silu":
        return nn.SiLU()  # not in place: its gradient needs the input, and autograd would keep a copy
    if name == "leaky_relu":
        return nn.LeakyReLU(0.1, inplace=True)
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "mish":
        return nn.Mish()
    raise MinidetError(f"activation {name!r} is not known; choose 'silu', 'leaky_relu', 'relu' or 'mish'")


def init_keeping_scale(conv: nn.Conv2d) -> None:
    """First weights of a convolution without activation behind it: variance 1 / fan-in, so its map keeps the scale."""
    bound = math.sqrt(3 / conv.weight[0].numel())
    nn.init.uniform_(conv.weight, -bound, bound)
    nn.init.zeros_(conv.bias)


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, activation: [B, c_in, H, W] -> [B, c_out, H / stride, W / stride]."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: str = "silu",
        dilation: int = 1,
        eps: float = BATCH_NORM_EPS,
    ):
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=eps, momentum=BATCH_NORM_MOMENTUM)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.bn(self.conv(x)))


class DepthwiseBlock(nn.Module):
    """A k x k convolution per channel, then a 1 x 1 across channels: what yolox-nano uses in place of `ConvBlock`."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, activation: str = "silu"):
        super().__init__()
        self.depthwise = ConvBlock(c_in, c_in, kernel, stride, groups=c_in, activation=activation)
        self.pointwise = ConvBlock(c_in, c_out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


def conv3x3(c_in: int, c_out: int, stride: int = 1, depthwise: bool = False, activation: str = "silu") -> nn.Module:
    """The 3 x 3 block of a network: dense, or depthwise separable in yolox-nano."""
    block = DepthwiseBlock if depthwise else ConvBlock
    return block(c_in, c_out, 3, stride, activation=activation)


class Bottleneck(nn.Module):
    """1 x 1, then 3 x 3; adds its input when `shortcut` is on. Inside a CSP layer the width stays the same."""

    def __init__(self, channels: int, shortcut: bool = True, depthwise: bool = False, activation: str = "silu"):
        super().__init__()
        self.conv1 = ConvBlock(channels, channels, 1, activation=activation)
        self.conv2 = conv3x3(channels, channels, depthwise=depthwise, activation=activation)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CSPLayer(nn.Module):
    """Cross-stage partial layer: half of the channels pass through `n` bottlenecks, the other half goes round them.

    Args:
        c_in, c_out: channels that come in and go out.
        n: number of bottlenecks.
        shortcut: whether each bottleneck adds its input (backbone: yes, neck: no).
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        n: int = 1,
        shortcut: bool = True,
        depthwise: bool = False,
        activation: str = "silu",
    ):
        super().__init__()
        hidden = c_out // 2
        self.enter = ConvBlock(c_in, hidden, 1, activation=activation)
        self.blocks = nn.Sequential(*(Bottleneck(hidden, shortcut, depthwise, activation) for _ in range(n)))
        self.bypass = ConvBlock(c_in, hidden, 1, activation=activation)
        self.fuse = ConvBlock(2 * hidden, c_out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([self.blocks(self.enter(x)), self.bypass(x)], dim=1))


class SPP(nn.Module):
    """Spatial pyramid pooling: the maxima over 5, 9 and 13 cells beside the features themselves; H and W stay."""

    def __init__(self, c_in: int, c_out: int, activation: str = "silu"):
        super().__init__()
        hidden = c_in // 2
        self.reduce = ConvBlock(c_in, hidden, 1, activation=activation)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.fuse = ConvBlock(4 * hidden, c_out, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        over5 = self.pool(x)
        over9 = self.pool(over5)  # the largest of 5 x 5 neighbours, of which each is the largest of 5 x 5
        return self.fuse(torch.cat([x, over5, over9, self.pool(over9)], dim=1))


def space_to_depth(images: Tensor) -> Tensor:
    """The four pixel phases of an image as channels: [B, 3, H, W] -> [B, 12, H/2, W/2].

    The order is (row, column) = (even, even), (odd, even), (even, odd), (odd, odd): down before right, not as
    `torch.nn.functional.pixel_unshuffle` has it. Published weights depend on it.
    """
    phases = [images[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return torch.cat(phases, dim=1)


class Focus(nn.Module):
    """The stem of CSPDarknet: halves the resolution without losing a pixel, then one 3 x 3 block on the 12 channels.

    The same map as one 6 x 6 convolution of stride 2 and padding 2 (`as_conv6x6`).
    """

    def __init__(self, c_in: int, c_out: int, activation: str = "silu"):
        super().__init__()
        self.conv = ConvBlock(4 * c_in, c_out, 3, activation=activation)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(space_to_depth(images))

    def as_conv6x6(self) -> Tensor:
        """Weights [c_out, c_in, 6, 6] of the strided convolution that equals phases + 3 x 3."""
        w3 = self.conv.conv.weight  # [O, 4 phases * C, 3, 3]
        phases = w3.unflatten(1, (2, 2, -1))  # [O, dx, dy, C, 3, 3]: `space_to_depth` goes down first
        return phases.permute(0, 3, 4, 2, 5, 1).flatten(4, 5).flatten(2, 3)  # [O, C, 3 dy, 3 dx]


class ResidualLayer(nn.Module):
    """Darknet-53's residual layer: 1 x 1 to half the channels (or to `hidden`), 3 x 3 back, plus the input."""

    def __init__(
        self,
        channels: int,
        activation: str = "leaky_relu",
        hidden: int | None = None,
        dilation: int = 1,
        eps: float = BATCH_NORM_EPS,
    ):
        super().__init__()
        hidden = channels // 2 if hidden is None else hidden
        self.conv1 = ConvBlock(channels, hidden, 1, activation=activation, eps=eps)
        self.conv2 = ConvBlock(hidden, channels, 3, activation=activation, dilation=dilation, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))
