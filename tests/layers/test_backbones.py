"""ResNet and CSPDarkNet53: the published networks, parameter by parameter, and what is frozen in them."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from minidet.errors import MinidetError
from minidet.files import read_json
from minidet.layers.blocks import make_activation
from minidet.layers.darknet import CSPDarknet53
from minidet.layers.resnet import ResNet

PUBLISHED = {
    "R50-C5": lambda: ResNet("resnet50", stride_in_1x1=True),
    "R50-DC5": lambda: ResNet("resnet50", dilated=True, stride_in_1x1=True),
    "R101-C5": lambda: ResNet("resnet101", stride_in_1x1=True),
    "R101-DC5": lambda: ResNet("resnet101", dilated=True, stride_in_1x1=True),
    "X101-64x4d-C5": lambda: ResNet("resnext101-64x4d"),
    "CSPDarkNet53-DC5": lambda: CSPDarknet53(dilated=True),
}


@pytest.fixture(scope="module")
def small():
    """A ResNet-18 that learns everywhere; its running statistics are not the fresh ones."""
    network = ResNet("resnet18", frozen_norm=False, frozen_stages=0)
    network(torch.randn(4, 3, 64, 64))
    return network


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_the_published_backbone_is_there(name, yolof_reference):
    layout = read_json(yolof_reference / "layouts.json")[name]
    buffers, frozen = set(layout["buffers"]), set(layout["frozen_parameters"])
    shapes = {key: tuple(shape) for key, shape, _ in layout["keys"] if key.startswith("backbone.")}
    with torch.device("meta"):
        network = PUBLISHED[name]()
    parameters = list(network.parameters())
    assert sorted(tuple(p.shape) for p in parameters) == sorted(s for key, s in shapes.items() if key not in buffers)
    assert sorted(tuple(b.shape) for b in network.buffers()) == sorted(s for k, s in shapes.items() if k in buffers)
    without_gradient = sum(p.numel() for p in parameters if not p.requires_grad)
    assert without_gradient == sum(math.prod(shapes[key]) for key in frozen)


def test_stages_have_the_channels_and_strides_that_they_say():
    with torch.device("meta"):
        networks = [make() for make in PUBLISHED.values()] + [ResNet("resnet18", dilated=True), CSPDarknet53()]
        for network in networks:
            features = network(torch.zeros(2, 3, 800, 1333))
            assert list(features) == list(network.channels) == list(network.strides)
            for stage, x in features.items():
                stride = network.strides[stage]
                assert x.shape == (2, network.channels[stage], math.ceil(800 / stride), math.ceil(1333 / stride))
    assert networks[0].channels == {"stem": 64, "c2": 256, "c3": 512, "c4": 1024, "c5": 2048}
    assert [network.strides["c5"] for network in networks] == [32, 16, 32, 16, 32, 16, 16, 32]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_without_changes_it_is_torchvisions_network(name):
    theirs = torchvision.models.get_model(name, weights=None).eval()
    ours = ResNet(name, frozen_norm=False).eval()
    for stage, part in {"c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}.items():
        getattr(ours, stage).load_state_dict(getattr(theirs, part).state_dict())
    ours.stem.conv.load_state_dict(theirs.conv1.state_dict())
    x = torch.randn(2, 3, 64, 96)
    expected = theirs.layer2(theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))))
    with torch.no_grad():
        features = ours(x)
    torch.testing.assert_close(features["c3"], expected)
    torch.testing.assert_close(features["c5"], theirs.layer4(theirs.layer3(expected)))


def test_frozen_norms_compute_what_batch_norms_with_the_same_statistics_do(small):
    frozen = ResNet("resnet18", frozen_norm=True)
    frozen.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 64, 64)
    for stage, expected in small.eval()(x).items():
        torch.testing.assert_close(frozen(x)[stage], expected, rtol=1e-4, atol=1e-4)
    small.train()


def test_caffes_network_halves_the_resolution_in_the_first_1x1():
    caffe, torchvisions = ResNet("resnet50", stride_in_1x1=True), ResNet("resnet50")
    for stage in ("c3", "c4", "c5"):
        first = getattr(caffe, stage)[0]
        assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == ((2, 2), (1, 1), (2, 2))
        first = getattr(torchvisions, stage)[0]
        assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))


def test_in_caffes_network_dilation_adds_positions_and_changes_none():
    # The "hole" algorithm: with stride 1 and dilation 2 every second cell sees exactly what it saw with stride 2.
    plain = ResNet("resnet50", stride_in_1x1=True).double()
    dilated = ResNet("resnet50", dilated=True, stride_in_1x1=True).double()
    dilated.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 128, 160).double()
    with torch.no_grad():
        coarse, fine = plain(x)["c5"], dilated(x)["c5"]
    assert fine.shape[-2:] == (8, 10)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_every_3x3_of_a_dilated_stage_is_dilated_the_first_one_too(name):
    convolutions = [m for m in ResNet(name, dilated=True).c5.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.stride == (1, 1) for conv in convolutions)
    wide = [conv for conv in convolutions if conv.kernel_size == (3, 3)]
    assert len(wide) == {"resnet18": 4, "resnet50": 3}[name]
    assert all(conv.dilation == conv.padding == (2, 2) for conv in wide)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnext101-64x4d"])
def test_a_flavour_that_does_not_exist_is_refused(name):
    with pytest.raises(MinidetError, match=rf"{name} cannot have stride_in_1x1=True.*resnet50 and resnet101"):
        ResNet(name, stride_in_1x1=True)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext101-64x4d"])
def test_a_narrower_network_has_fewer_channels_and_is_otherwise_the_same(name):
    whole, half = ResNet(name, frozen_norm=False), ResNet(name, frozen_norm=False, width=0.5)
    assert half.channels == {stage: channels // 2 for stage, channels in whole.channels.items()}
    assert half.strides == whole.strides
    for (key, ours), (whole_key, theirs) in zip(half.named_modules(), whole.named_modules(), strict=True):
        assert (key, type(ours)) == (whole_key, type(theirs))
        if isinstance(ours, nn.Conv2d):
            assert (ours.kernel_size, ours.stride, ours.padding) == (theirs.kernel_size, theirs.stride, theirs.padding)
            assert ours.bias is None and ours.in_channels == max(3, theirs.in_channels // 2)
            fan_out = ours.weight[0].numel() // ours.weight.shape[1] * ours.out_channels / ours.groups
            if ours.weight.numel() > 4000:  # He's spread, by what goes out, as torchvision has it
                assert ours.weight.std().item() == pytest.approx((2 / (fan_out * ours.groups)) ** 0.5, rel=0.1)
    with torch.no_grad():
        features = half.eval()(torch.randn(1, 3, 64, 96))
    assert {stage: maps.shape[1] for stage, maps in features.items()} == half.channels


def test_a_width_of_one_changes_nothing():
    states = []
    for changes in ({}, {"width": 1.0}):
        torch.manual_seed(0)
        states.append(ResNet("resnet18", **changes).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_unknown_networks_and_stages_are_refused():
    with pytest.raises(MinidetError, match=r"no ResNet 'resnet19'; the names are resnet18, resnet34"):
        ResNet("resnet19")
    with pytest.raises(MinidetError, match=r"frozen_stages goes from 0 .* to 5 .*, not 6"):
        ResNet("resnet18", frozen_stages=6)
    with pytest.raises(MinidetError, match=r"frozen_stages goes from 0 .* to 5 .*, not -1"):
        CSPDarknet53(frozen_stages=-1)


@pytest.mark.parametrize(
    ("frozen_stages", "frozen"), [(0, set()), (1, {"stem"}), (2, {"stem", "c2"}), (5, {"stem", "c2", "c3", "c4", "c5"})]
)
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(frozen_stages, frozen):
    network = ResNet("resnet18", frozen_norm=False, frozen_stages=frozen_stages).train()
    before = {key: value.clone() for key, value in network.state_dict().items() if "running" in key}
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    network(images)["c5"].sum().backward()
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.grad is None} == frozen
    moved = {key.split(".")[0] for key, value in before.items() if not torch.equal(network.state_dict()[key], value)}
    assert moved == {"stem", "c2", "c3", "c4", "c5"} - frozen


def test_frozen_norms_are_constants_everywhere():
    network = ResNet("resnet18")
    norms = [m for m in network.modules() if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d)]
    assert {type(norm) for norm in norms} == {FrozenBatchNorm2d}
    assert {norm.eps for norm in norms} == {1e-5}
    assert not any("bn" in name for name, _ in network.named_parameters())


def test_norms_that_learn_are_pytorchs_own(small):
    norms = [m for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}


def test_every_norm_of_cspdarknet53_has_the_published_constants():
    with torch.device("meta"):
        network = CSPDarknet53()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-4, 0.03)}


@pytest.mark.parametrize(
    ("freeze", "moving"), [(False, {"stem", "c1", "c2", "c3", "c4", "c5"}), (True, {"c3", "c4", "c5"})]
)
def test_as_published_frozen_stages_of_cspdarknet53_still_move_their_statistics(freeze, moving):
    network = CSPDarknet53(freeze_norm_statistics=freeze).train()
    before = {key: value.clone() for key, value in network.state_dict().items() if "running" in key}
    network(torch.randn(2, 3, 64, 64))["c5"].sum().backward()
    assert {k.split(".")[0] for k, p in network.named_parameters() if p.grad is None} == {"stem", "c1", "c2"}
    assert {k.split(".")[0] for k, v in before.items() if not torch.equal(network.state_dict()[k], v)} == moving


def test_mish_is_x_times_tanh_of_softplus():
    x = torch.tensor([-3.0, 0.0, 0.5, 4.0])
    torch.testing.assert_close(make_activation("mish")(x), x * torch.tanh(torch.log1p(torch.exp(x))))
