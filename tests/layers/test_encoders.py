"""The four encoders: how many maps come in, how many go out, and what is in them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from minidet.errors import MinidetError
from minidet.layers.dilated_encoder import DilatedEncoder
from minidet.layers.encoders import ENCODERS, make_encoder

CHANNELS = {"stem": 4, "c2": 4, "c3": 6, "c4": 10, "c5": 14}
STRIDES = {"stem": 2, "c2": 4, "c3": 8, "c4": 16, "c5": 32}
DILATED = STRIDES | {"c5": 16}
WIDTH = 12


def stages(height: int, width: int, strides: dict[str, int] = STRIDES, batch: int = 2) -> dict[str, torch.Tensor]:
    """What a backbone gives for a picture: each layer of stride 2 rounds up."""
    sizes = {stage: (-(-height // stride), -(-width // stride)) for stage, stride in strides.items()}
    return {stage: torch.randn(batch, CHANNELS[stage], *size).requires_grad_() for stage, size in sizes.items()}


def read_by(maps: list[torch.Tensor], features: dict[str, torch.Tensor]) -> list[str]:
    """The stages that the values of the maps depend on."""
    total = sum((each * torch.randn_like(each)).sum() for each in maps)
    gradients = torch.autograd.grad(total, list(features.values()), allow_unused=True)
    return [stage for stage, gradient in zip(features, gradients, strict=True) if gradient is not None]


@pytest.mark.parametrize(
    ("kind", "inputs", "strides"),
    [
        ("mimo", ["c3", "c4", "c5"], (8, 16, 32, 64, 128)),
        ("simo", ["c5"], (8, 16, 32, 64, 128)),
        ("miso", ["c3", "c4", "c5"], (32,)),
        ("siso", ["c5"], (32,)),
    ],
)
def test_each_encoder_reads_and_writes_the_levels_that_the_papers_figure_1_draws(kind, inputs, strides):
    encoder = make_encoder(kind, CHANNELS, WIDTH, STRIDES)
    features = stages(256, 384)
    maps = encoder(features)
    assert encoder.strides == strides
    assert [tuple(each.shape) for each in maps] == [(2, WIDTH, 256 // stride, 384 // stride) for stride in strides]
    assert read_by(maps, features) == inputs


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("size", [(100, 150), (33, 500), (1, 1), (800, 1333)])
def test_sides_need_not_be_multiples_of_32(kind, size):
    encoder = make_encoder(kind, CHANNELS, WIDTH, STRIDES).eval()
    shapes = [tuple(each.shape[-2:]) for each in encoder(stages(*size, batch=1))]
    assert shapes == [(-(-size[0] // stride), -(-size[1] // stride)) for stride in encoder.strides]


@pytest.mark.parametrize(("kind", "strides"), [("mimo", (8, 16, 16, 32, 64)), ("miso", (16,)), ("siso", (16,))])
def test_with_a_dilated_c5_the_levels_have_its_stride(kind, strides):
    encoder = make_encoder(kind, CHANNELS, WIDTH, DILATED).eval()
    maps = encoder(stages(128, 192, DILATED))
    assert encoder.strides == strides
    assert [tuple(each.shape[-2:]) for each in maps] == [(128 // stride, 192 // stride) for stride in strides]


def without_norms(encoder: nn.Module) -> nn.Module:
    for module in encoder.modules():
        if hasattr(module, "norm"):
            module.norm = nn.Identity()
    return encoder


@pytest.mark.parametrize("size", [(256, 384), (100, 150)])
def test_mimo_without_its_norms_is_torchvisions_pyramid_of_retinanet(size):
    mimo = without_norms(make_encoder("mimo", CHANNELS, WIDTH, STRIDES))
    fpn = FeaturePyramidNetwork([CHANNELS[c] for c in ("c3", "c4", "c5")], WIDTH, LastLevelP6P7(WIDTH, WIDTH))
    for i, stage in enumerate(("c3", "c4", "c5")):
        fpn.inner_blocks[i][0].load_state_dict(mimo.lateral[stage].conv.state_dict())
        fpn.layer_blocks[i][0].load_state_dict(mimo.smooth[stage].conv.state_dict())
    fpn.extra_blocks.p6.load_state_dict(mimo.down6.conv.state_dict())
    fpn.extra_blocks.p7.load_state_dict(mimo.down7.conv.state_dict())

    features = {stage: each for stage, each in stages(*size).items() if stage in ("c3", "c4", "c5")}
    assert fpn.extra_blocks.use_P5
    for ours, theirs in zip(mimo(features), fpn(features).values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_simo_is_mimo_with_nothing_from_c3_and_c4():
    mimo = without_norms(make_encoder("mimo", CHANNELS, WIDTH, STRIDES))
    simo = without_norms(make_encoder("simo", CHANNELS, WIDTH, STRIDES))
    left_over = simo.load_state_dict(mimo.state_dict(), strict=False)
    assert left_over.missing_keys == []
    features = stages(128, 192)
    alone = features | {stage: torch.zeros_like(features[stage]) for stage in ("c3", "c4")}  # all biases are 0
    for ours, fused in zip(simo(features), mimo(alone), strict=True):
        torch.testing.assert_close(ours, fused)


def test_miso_adds_the_mean_of_the_fine_cells_to_the_coarse_one():
    miso = without_norms(make_encoder("miso", {"c3": 1, "c4": 1, "c5": 1}, 1, STRIDES))
    for conv in (*(lateral.conv for lateral in miso.lateral.values()), miso.smooth.conv):
        nn.init.dirac_(conv.weight)  # passes its input on
    c3 = torch.arange(16.0).view(1, 1, 4, 4)  # over one cell of C5 its mean is 7.5
    c4 = torch.tensor([[[[100.0, 200.0], [300.0, 400.0]]]])  # 250
    (p5,) = miso({"c3": c3, "c4": c4, "c5": torch.tensor([[[[1000.0]]]])})
    torch.testing.assert_close(p5, torch.tensor([[[[1257.5]]]]))


@pytest.mark.parametrize("mode", [True, False])
def test_siso_is_the_dilated_encoder_without_its_blocks(mode):
    siso = make_encoder("siso", CHANNELS, WIDTH, STRIDES).train(mode)
    projector = DilatedEncoder(CHANNELS["c5"], WIDTH, mid_width=4, dilations=()).train(mode)
    names = {
        "lateral": siso.lateral["c5"].conv,
        "lateral_norm": siso.lateral["c5"].norm,
        "smooth": siso.smooth.conv,
        "smooth_norm": siso.smooth.norm,
    }
    for name, ours in names.items():
        getattr(projector, name).load_state_dict(ours.state_dict())
    features = stages(96, 128)
    assert sum(p.numel() for p in siso.parameters()) == sum(p.numel() for p in projector.parameters())
    torch.testing.assert_close(siso(features)[0], projector(features["c5"]))


def test_fresh_convolutions_keep_the_scale_of_a_map():
    encoder = make_encoder("mimo", {"c3": 128, "c4": 256, "c5": 512}, 64, STRIDES)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):  # Xavier: variance 1 / fan_in, uniform
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.05)
            assert module.weight.abs().max().item() <= (3 / fan_in) ** 0.5
            assert not module.bias.any()


def test_an_unknown_encoder_is_refused_with_the_names_that_there_are():
    with pytest.raises(MinidetError, match="'fpn' is not known; choose 'mimo', 'simo', 'miso', 'siso'"):
        make_encoder("fpn", CHANNELS, WIDTH, STRIDES)
