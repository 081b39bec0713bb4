"""Work, parameters and memory of a detector, part by part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import minidet
from minidet.evaluation.speed import count_cost, count_gflops, count_parameters, without_weights


class Toy(nn.Module):
    """Small enough to count by hand: 3 x 3 of stride 2, norm, ReLU; then a 1 x 1."""

    input_hw = (5, 7)

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        )
        self.head = nn.Conv2d(4, 2, 1)

    def dense_of(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)).exp()


def test_a_small_network_costs_what_one_counts_by_hand():
    cost = count_cost(Toy())
    assert [part.name for part in cost.parts] == ["backbone", "head", "decode"]
    backbone, head, decode = cost.parts

    # 5 x 7 pixels become 3 x 4 cells of 4 channels. A convolution: 3 * 3 * 3 products an element. A norm: two.
    assert backbone.gmacs * 1e9 == pytest.approx(48 * 27 + 2 * 48)
    assert head.gmacs * 1e9 == pytest.approx(24 * 4)
    assert decode.gmacs == 0
    assert (backbone.trainable, head.trainable, decode.trainable) == (4 * 27 + 8, 4 * 2 + 2, 0)

    # Kept: the picture (for the convolution), the convolution's output and mean and spread of 4 channels for two
    # pictures (for the norm), the ReLU's output, which the head needs too, and the result of exp.
    assert backbone.activation_bytes == 4 * (3 * 35 + 48 + (4 + 4) // 2 + 48)
    assert head.activation_bytes == 0
    assert decode.activation_bytes == 4 * 24


def test_where_nothing_learns_nothing_is_kept():
    toy = Toy()
    toy.backbone.requires_grad_(False)
    backbone, head, _ = count_cost(toy).parts
    assert (backbone.trainable, backbone.frozen, backbone.activation_bytes) == (0, 4 * 27 + 8, 0)
    assert head.activation_bytes == 4 * 48  # what comes from the backbone is kept for the head now
    assert backbone.gmacs * 1e9 == pytest.approx(48 * 27 + 2 * 48)


def shapes_of(name: str) -> nn.Module:
    """A model without values, which is made faster."""
    with torch.device("meta"):
        return minidet.create_model(name)


@pytest.mark.parametrize(
    ("name", "size", "total", "parts", "trainable", "all_millions"),
    [  # measured on the reference implementation with fvcore
        ("yolof-r50-c5", (800, 1344), "104.5", "82.9 4.8 16.9", 43_890_601, "44.11"),
        ("yolof-r50-dc5", (800, 1344), "218.3", "129.9 19.0 69.4", 44_282_366, "44.50"),
        ("yolof-r101-c5", (800, 1344), "184.1", "162.4 4.8 16.9", 62_830_505, "63.05"),
        ("yolof-r101-dc5", (800, 1344), "297.8", "209.5 19.0 69.4", 63_222_270, "63.44"),
        ("yolof-x101-c5", (800, 1344), "353.3", "331.6 4.8 16.9", 101_463_977, "101.86"),
        ("yolof-cspdarknet53-dc5", (608, 608), "87.3", "56.1 7.4 23.8", 48_011_006, "48.27"),
    ],
)
def test_yolofs_variants_cost_what_their_reference_does(name, size, total, parts, trainable, all_millions):
    cost = count_cost(shapes_of(name), size)
    assert f"{cost.total.gmacs:.1f}" == total
    assert " ".join(f"{cost.part(part).gmacs:.1f}" for part in ("backbone", "encoder", "head")) == parts
    assert cost.total.trainable == trainable
    assert f"{(cost.total.trainable + cost.total.frozen) / 1e6:.2f}" == all_millions


def test_the_input_size_decides_also_where_layers_round_up():
    model = shapes_of("yolof-r50-c5")
    assert f"{count_cost(model, (800, 1216)).total.gmacs:.1f}" == "94.6"
    assert f"{count_cost(model, (640, 640)).total.gmacs:.1f}" == "39.8"
    # 801 x 1313 has 26 x 42 cells on C5, as 832 x 1344 has: the head's work is the same.
    assert count_cost(model, (801, 1313)).part("head") == count_cost(model, (832, 1344)).part("head")


@pytest.mark.parametrize("name", ["yolox-nano", "yolox-tiny"])
def test_gflops_are_twice_the_multiply_adds(name):
    model = minidet.create_model(name)
    cost = count_cost(model)
    assert [part.name for part in cost.parts] == ["backbone", "neck", "head", "decode"]
    assert 2 * cost.total.gmacs == pytest.approx(count_gflops(model), rel=1e-9)
    assert cost.total.trainable == count_parameters(model)


def test_the_memory_is_what_autograd_really_keeps():
    model = minidet.create_model("yolox-nano", input_hw=(64, 96))
    weights = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # the tensor too, so that its memory is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predictions = model.train().dense_of(torch.rand(2, 3, 64, 96))
    assert predictions.boxes.requires_grad
    really = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2
    assert count_cost(model).total.activation_bytes == pytest.approx(really, rel=1e-3)


def test_counting_changes_nothing():
    model = minidet.create_model("yolof-r18-c5", num_classes=2, width=32, mid_width=8).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_cost(model, (64, 96))
    assert not model.training
    assert all(len(module._forward_hooks) == 0 for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    shadow = without_weights(model)
    assert {tensor.device.type for tensor in (*shadow.parameters(), *shadow.buffers())} == {"meta"}
    assert model.device.type == "cpu"


def test_the_table_names_every_part_and_the_size_that_it_holds_for():
    cost = count_cost(shapes_of("yolof-r50-c5"), (800, 1344))
    lines = cost.table().splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["backbone", "encoder", "head", "decode", "total"]
    assert lines[1].split()[1:4] == ["82.9", "23,232,512", "222,400"]
    assert "800 x 1344" in lines[-1]
    assert [part["name"] for part in cost.to_dict()["parts"]] == ["backbone", "encoder", "head", "decode"]
