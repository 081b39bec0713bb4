"""A network for prediction alone: the same map in fewer operations.

Once nothing learns any more, a batch norm is a fixed scale and offset for each channel, and so is what a convolution's
weights and bias can do themselves: w' = w * gamma / sqrt(variance + eps), b' = beta + (b - mean) * gamma / sqrt(...).

Source: batch norm is arXiv 1502.03167; torch.nn.utils.fusion does the arithmetic.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

from minidet.errors import MinidetError
from minidet.layers.blocks import Focus

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def fold_norms(network: nn.Module) -> None:
    """Turn every convolution and the norm behind it into one convolution with bias, in place; the network must be in
    evaluation mode.

    Which norm belongs to which convolution is seen from the modules alone: everywhere in this library, and in
    torchvision's ResNets, a norm is declared right behind the convolution that it follows.

    Raises:
        MinidetError: a norm stands somewhere else.
    """
    for parent in list(network.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, NORMS):
                # In float64, so that the only rounding is that of the weights which come out.
                setattr(parent, conv_name, fuse_conv_bn_eval(conv.double(), norm.double()).float())
                setattr(parent, norm_name, nn.Identity())
    left = [name for name, module in network.named_modules() if isinstance(module, NORMS)]
    if left:
        raise MinidetError(
            f"{left[0]}: this norm does not stand right behind a convolution in its module, so it cannot be folded; "
            "declare it there, or predict with the model as it is"
        )


def focus_to_convolution(network: nn.Module) -> None:
    """Turn every Focus stem, its norm folded, into the one 6 x 6 convolution of stride 2 that it equals, in place."""
    for parent in list(network.modules()):
        for name, focus in list(parent.named_children()):
            if isinstance(focus, Focus):
                old = focus.conv.conv
                conv = nn.Conv2d(old.in_channels // 4, old.out_channels, 6, stride=2, padding=2)
                conv.load_state_dict({"weight": focus.as_conv6x6(), "bias": old.bias})
                setattr(parent, name, nn.Sequential(conv.to(old.weight.device), focus.conv.activation))


def activate_in_place(network: nn.Module) -> None:
    """Let activations overwrite what they are given: without gradients nobody needs it any more."""
    for module in network.modules():
        if isinstance(module, nn.SiLU | nn.Mish | nn.ReLU | nn.LeakyReLU):
            module.inplace = True
