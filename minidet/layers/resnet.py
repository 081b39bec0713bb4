"""ResNet and ResNeXt as a detector's backbone: torchvision's networks, cut into stages.

Three things differ from image classification: the norms may be frozen, the first stages may learn nothing, and the last
stage may keep its resolution ("DC5").

Source: YOLOF, section 5, and its published code (detectron2's ResNet); chapter 04.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from minidet.errors import MinidetError

# Name here -> what builds it in torchvision, whose own weights are called the same.
BUILDERS = {
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "resnet101": models.resnet101,
    "resnext101-64x4d": models.resnext101_64x4d,
}
WITH_STRIDE_IN_1X1 = ("resnet50", "resnet101")
STAGES = ("stem", "c2", "c3", "c4", "c5")


class ResNet(nn.Module):
    """A ResNet without its classifier.

    Args:
        name: "resnet18", "resnet34", "resnet50", "resnet101" or "resnext101-64x4d".
        dilated: stage c5 keeps stride 16; all its 3 x 3 convolutions, the first block's too, have dilation 2 instead.
        stride_in_1x1: a stage halves the resolution in the first 1 x 1 convolution, as the ResNets of Caffe and those
            of the published YOLOF, not in the 3 x 3 as torchvision's. Only "resnet50" and "resnet101" have it.
        frozen_norm: norms are fixed scales and offsets (buffers); otherwise they are batch norms that learn.
        frozen_stages: the stem and the stages up to c{frozen_stages} get no gradient: 0 none, 1 the stem, 2 stem and
            c2 (as published), up to 5. Batch norms in frozen stages stay in evaluation mode.
        width: channels, as a part of the published; below 1 the network is smaller than any that ImageNet weights fit.

    `forward` maps [B, 3, H, W] to a dict of all stages: "stem" and "c2" of stride 4, "c3" 8, "c4" 16, "c5" 32 (16 if
    dilated). `channels` and `strides` have the same keys. A side that a stride does not divide is rounded up.

    Raises:
        MinidetError: an unknown name, or a flavour that this network does not have.
    """

    def __init__(
        self,
        name: str,
        dilated: bool = False,
        stride_in_1x1: bool = False,
        frozen_norm: bool = True,
        frozen_stages: int = 2,
        width: float = 1.0,
    ):
        super().__init__()
        if name not in BUILDERS:
            raise MinidetError(f"there is no ResNet {name!r}; the names are {', '.join(BUILDERS)}")
        if stride_in_1x1 and name not in WITH_STRIDE_IN_1X1:
            raise MinidetError(
                f"{name} cannot have stride_in_1x1=True: {_why_not(name)}. "
                f"It is possible for {' and '.join(WITH_STRIDE_IN_1X1)}; leave it False here."
            )
        if not 0 <= frozen_stages <= 5:
            raise MinidetError(f"{name}: frozen_stages goes from 0 (none) to 5 (stem to c5), not {frozen_stages}")
        self.name = name
        self.stride_in_1x1 = stride_in_1x1
        self.frozen_stages = frozen_stages

        network = BUILDERS[name](weights=None, norm_layer=FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d)
        if width != 1:
            _change_width(network, width)
        self.stem = nn.Sequential(
            OrderedDict(conv=network.conv1, bn=network.bn1, activation=network.relu, pool=network.maxpool)
        )
        self.c2, self.c3, self.c4, self.c5 = network.layer1, network.layer2, network.layer3, network.layer4
        if stride_in_1x1:
            for stage in (self.c3, self.c4, self.c5):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        if dilated:
            _replace_stride_by_dilation(self.c5)

        for stage in self._frozen():
            stage.requires_grad_(False)
        expansion = self.c5[0].expansion
        published = {"stem": 64, **{f"c{i}": 2**i * 16 * expansion for i in (2, 3, 4, 5)}}
        self.channels = {stage: scaled(channels, width) for stage, channels in published.items()}
        self.strides = {"stem": 4, "c2": 4, "c3": 8, "c4": 16, "c5": 16 if dilated else 32}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features, x = {}, images
        for name in STAGES:
            x = features[name] = getattr(self, name)(x)
        return features

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        for stage in self._frozen():
            stage.eval()  # or the running statistics of a frozen stage would still move
        return self

    def _frozen(self) -> list[nn.Module]:
        return [getattr(self, name) for name in STAGES[: self.frozen_stages]]


def scaled(channels: int, width: float) -> int:
    """So many channels remain of `channels`, at least 1."""
    return max(1, round(channels * width))


def _change_width(module: nn.Module, width: float) -> None:
    """Put a convolution or norm of other width in the place of each, with fresh weights as torchvision draws them."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            groups = scaled(child.groups, width) if child.groups > 1 else 1  # of a ResNeXt: fewer groups, as wide
            conv = nn.Conv2d(
                3 if child.in_channels == 3 else scaled(child.in_channels, width),
                scaled(child.out_channels, width),
                child.kernel_size,
                child.stride,
                child.padding,
                child.dilation,
                groups,
                bias=False,
            )
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            setattr(module, name, conv)
        elif isinstance(child, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            setattr(module, name, type(child)(scaled(len(child.weight), width)))
        else:
            _change_width(child, width)


def _replace_stride_by_dilation(stage: nn.Sequential) -> None:
    # As published. torchvision's own switch leaves the first 3 x 3 as it is: right where that one had the stride.
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (2, 2)


def _why_not(name: str) -> str:
    if name in ("resnet18", "resnet34"):
        return "its blocks are two 3 x 3 convolutions, without a 1 x 1"
    return "the published ResNeXt has its strides in the 3 x 3"
