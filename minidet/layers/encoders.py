"""One level or many: the paper's four encoders, which differ only in how many maps come in and how many go out.

    MiMo   C3, C4, C5 -> P3 .. P7   a feature pyramid (FPN)
    SiMo           C5 -> P3 .. P7   several levels, nothing fused
    MiSo   C3, C4, C5 -> P5         fused, one level
    SiSo           C5 -> P5         the projector alone, from which YOLOF starts

All are made of the same two bricks, a 1 x 1 and a 3 x 3 convolution, each with a batch norm and no activation, so that
what differs between two encoders is the number of levels and nothing else. RetinaNet's own FPN has no norms.

Source: YOLOF, section 3 and figure 1, arXiv 2103.09460; the pyramid is that of FPN, arXiv 1612.03144; chapter 05.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from minidet.errors import MinidetError
from minidet.layers.blocks import init_keeping_scale

STAGES = ("c3", "c4", "c5")


class Projection(nn.Module):
    """Convolution with bias, then batch norm, no activation: [B, c_in, H, W] -> [B, c_out, H / stride, W / stride]."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(c_out)
        init_keeping_scale(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class MultipleOut(nn.Module):
    """Five levels P3 to P7: MiMo (the FPN) with all three inputs, SiMo with C5 alone.

    From C5 downwards each map is copied to the size of the next finer stage, where that stage is added if it is an
    input. P6 and P7 are made from P5 by strided convolutions, as in torchvision's RetinaNet; the original takes C5.

    Args:
        channels: width of each stage of the backbone, by name.
        width: channels of all outputs.
        strides: pixels per cell of each stage, by name.
        inputs: the stages that are looked at; of the others only the size counts.
    """

    def __init__(self, channels: dict[str, int], width: int, strides: dict[str, int], inputs: tuple[str, ...] = STAGES):
        super().__init__()
        self.lateral = nn.ModuleDict({stage: Projection(channels[stage], width, 1) for stage in inputs})
        self.smooth = nn.ModuleDict({stage: Projection(width, width, 3) for stage in STAGES})
        self.down6 = Projection(width, width, 3, stride=2)
        self.down7 = Projection(width, width, 3, stride=2)
        self.width = width
        # A dilated C5 has the stride of C4, so then there are two levels of that stride.
        self.strides = (*(strides[stage] for stage in STAGES), 2 * strides["c5"], 4 * strides["c5"])

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """P3 to P7, finest first, each [B, width, H / stride, W / stride] rounded up."""
        merged = self.lateral["c5"](features["c5"])
        p5 = self.smooth["c5"](merged)
        levels = [p5]
        for stage in ("c4", "c3"):
            merged = F.interpolate(merged, size=features[stage].shape[-2:], mode="nearest")
            if stage in self.lateral:
                merged = merged + self.lateral[stage](features[stage])
            levels.insert(0, self.smooth[stage](merged))
        p6 = self.down6(p5)
        return [*levels, p6, self.down7(F.relu(p6))]


class SingleOut(nn.Module):
    """One level, that of C5: MiSo with all three inputs, SiSo with C5 alone.

    The counterpart of the FPN: where that one copies a coarse cell to several fine ones, this one averages several fine
    cells into a coarse one, adds, and smooths the sum. SiSo is YOLOF's dilated encoder without its blocks.

    Args: as for `MultipleOut`.
    """

    def __init__(self, channels: dict[str, int], width: int, strides: dict[str, int], inputs: tuple[str, ...] = STAGES):
        super().__init__()
        self.lateral = nn.ModuleDict({stage: Projection(channels[stage], width, 1) for stage in inputs})
        self.smooth = Projection(width, width, 3)
        self.width = width
        self.strides = (strides["c5"],)

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """One map [B, width, H / stride, W / stride], rounded up."""
        size = features["c5"].shape[-2:]
        merged = sum(F.adaptive_avg_pool2d(lateral(features[stage]), size) for stage, lateral in self.lateral.items())
        return [self.smooth(merged)]


Encoder = MultipleOut | SingleOut

ENCODERS: dict[str, tuple[type[MultipleOut] | type[SingleOut], tuple[str, ...]]] = {
    "mimo": (MultipleOut, STAGES),
    "simo": (MultipleOut, ("c5",)),
    "miso": (SingleOut, STAGES),
    "siso": (SingleOut, ("c5",)),
}


def make_encoder(kind: str, channels: dict[str, int], width: int, strides: dict[str, int]) -> Encoder:
    """One of the four encoders, for a backbone with stages c3, c4 and c5.

    Args:
        kind: "mimo", "simo", "miso" or "siso".
        channels: width of each stage of the backbone, by name; more stages than c3 to c5 may be in it.
        width: channels of the maps that come out.
        strides: pixels per cell of each stage, by name.

    Returns:
        A module that maps the backbone's dict to a list of maps, finest first; its `strides` are theirs.

    Raises:
        MinidetError: there is no such encoder.
    """
    if kind not in ENCODERS:
        raise MinidetError(f"encoder {kind!r} is not known; choose {', '.join(map(repr, ENCODERS))}")
    encoder, inputs = ENCODERS[kind]
    return encoder(channels, width, strides, inputs)
