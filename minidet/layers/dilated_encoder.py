"""The dilated encoder: one feature map in, one out, but seen through many receptive fields.

A projector brings C5 to the encoder's width. Residual blocks follow, each with a dilated 3 x 3 convolution; as a block
can be gone round by its shortcut, the output is a sum over all subsets of blocks and so mixes many receptive fields.

Source: YOLOF, section 4.1 and figure 5, arXiv 2103.09460; chapter 04.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from minidet.layers.blocks import init_keeping_scale, make_activation


class DilatedBlock(nn.Module):
    """1 x 1 to fewer channels, dilated 3 x 3, 1 x 1 back, then the input is added; [B, C, H, W] keeps its shape.

    The activation comes before the addition, and none follows it.

    Args:
        width: channels that come in and go out.
        mid_width: channels of the 3 x 3 convolution.
        dilation: its step between taps, in cells.
        shortcut: whether the input is added; without it the block has to pass everything on itself.
    """

    def __init__(self, width: int, mid_width: int, dilation: int, activation: str = "relu", shortcut: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(width, mid_width, 1)
        self.norm1 = nn.BatchNorm2d(mid_width)
        self.conv2 = nn.Conv2d(mid_width, mid_width, 3, padding=dilation, dilation=dilation)
        self.norm2 = nn.BatchNorm2d(mid_width)
        self.conv3 = nn.Conv2d(mid_width, width, 1)
        self.norm3 = nn.BatchNorm2d(width)
        self.activation = make_activation(activation)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.activation(self.norm2(self.conv2(y)))
        y = self.activation(self.norm3(self.conv3(y)))
        return x + y if self.shortcut else y


class DilatedEncoder(nn.Module):
    """Projector and dilated residual blocks: [B, c_in, H, W] -> [B, width, H, W].

    Args:
        c_in: channels of the backbone's last stage.
        width: channels of the encoder.
        mid_width: channels inside the blocks.
        dilations: one block for each; none leaves the projector alone, the paper's SiSo encoder.
        activation: "relu", or "leaky_relu" (CSPDarknet-53).
        shortcut: see `DilatedBlock`.
        init_std: standard deviation of the blocks' first weights, as published; None: He's. A norm follows each of
            these convolutions, so at the start both compute the same; but a step of the same length turns short weights
            much further. Short trainings with a high learning rate need the longer ones.
    """

    def __init__(
        self,
        c_in: int,
        width: int = 512,
        mid_width: int = 128,
        dilations: Sequence[int] = (2, 4, 6, 8),
        activation: str = "relu",
        shortcut: bool = True,
        init_std: float | None = 0.01,
    ):
        super().__init__()
        self.lateral = nn.Conv2d(c_in, width, 1)
        self.lateral_norm = nn.BatchNorm2d(width)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)
        self.smooth_norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            *(DilatedBlock(width, mid_width, dilation, activation, shortcut) for dilation in dilations)
        )
        for conv in (self.lateral, self.smooth):
            init_keeping_scale(conv)
        for block in self.blocks:
            for conv in (block.conv1, block.conv2, block.conv3):
                if init_std is None:
                    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                else:
                    nn.init.normal_(conv.weight, std=init_std)
                nn.init.zeros_(conv.bias)

    def forward(self, c5: Tensor) -> Tensor:
        projected = self.smooth_norm(self.smooth(self.lateral_norm(self.lateral(c5))))  # no activation in between
        return self.blocks(projected)
