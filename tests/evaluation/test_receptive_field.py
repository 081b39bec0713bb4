"""Receptive fields: the published table, brute force on small networks, and gradients that are known by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import minidet
from minidet.errors import MinidetError
from minidet.evaluation.receptive_field import (
    central_side,
    effective_receptive_field,
    effective_size,
    encoder_receptive_fields,
    seen_by,
    seen_ranges,
    theoretical_receptive_field,
    theoretical_receptive_fields,
)
from minidet.layers.blocks import SPP, CSPLayer, Focus
from minidet.layers.resnet import ResNet

# px: C5, projector, encoder, class output, box output; measured on the reference modules
TABLE = {
    "yolof-r50-c5": (483, 547, 1827, 2019, 2147),
    "yolof-r50-dc5": (483, 515, 1795, 1891, 1955),
    "yolof-r101-c5": (1027, 1091, 2371, 2563, 2691),
    "yolof-r101-dc5": (1027, 1059, 2339, 2435, 2499),
    "yolof-x101-c5": (971, 1035, 2315, 2507, 2635),
    "yolof-cspdarknet53-dc5": (757, 789, 1941, 2037, 2101),
}
COLUMNS = ("c5", "encoder.smooth_norm", "encoder", "class_output", "box_output")


def without_weights(name, **changes):
    with torch.device("meta"):
        return minidet.create_model(name, 4, **changes)


# ---- the theoretical field ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_every_variant_has_the_published_receptive_fields(name):
    model = without_weights(name)
    fields = theoretical_receptive_fields(model, COLUMNS)
    assert tuple(fields[column].size for column in COLUMNS) == TABLE[name]
    stride = 16 if "dc5" in name else 32
    for column in COLUMNS:
        assert fields[column].size_hw[0] == fields[column].size_hw[1]
        assert fields[column].stride_hw == (stride, stride)
        assert fields[column].offset_hw == (0.5, 0.5)  # the top-left pixel of the cell, where the anchors stand


def test_the_encoder_mixes_eleven_fields():
    assert encoder_receptive_fields(without_weights("yolof-r50-c5")) == tuple(547 + 128 * n for n in range(11))


def test_without_shortcuts_the_encoder_has_one_field_and_without_blocks_the_projectors():
    assert encoder_receptive_fields(without_weights("yolof-r50-c5", encoder_shortcut=False)) == (1827,)
    assert encoder_receptive_fields(without_weights("yolof-r50-c5", dilations=())) == (547,)
    # 1 + 1 = 2: of eight subsets two see equally far
    assert encoder_receptive_fields(without_weights("yolof-r50-c5", dilations=(1, 2, 1))) == tuple(
        547 + 64 * n for n in range(5)
    )
    with pytest.raises(MinidetError, match="yolox-nano has no dilated encoder"):
        encoder_receptive_fields(without_weights("yolox-nano"))


def test_resnet_18_by_hand():
    # 7/2: 7. pool 3/2: 7 + 2 * 2 = 11. c2, four 3x3 at stride 4: + 4 * 2 * 4 = 43. c3, 3/2 and three more: + 2 * 4 +
    # 3 * 2 * 8 = 99. c4: + 2 * 8 + 3 * 2 * 16 = 211. c5: + 2 * 16 + 3 * 2 * 32 = 435.
    with torch.device("meta"):
        fields = theoretical_receptive_fields(ResNet("resnet18"))
    assert [fields[stage].size for stage in ("stem", "c2", "c3", "c4", "c5")] == [11, 43, 99, 211, 435]


class Toy(nn.Module):
    """Two branches of different depth, and rows that are treated unlike columns."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 2))
        self.deep = nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        x = self.first(x)
        return {"sum": x + self.deep(x), "parts": torch.cat([x[:, :2], F.avg_pool2d(x, 2, 1, 1)[:, :2, 1:, 1:]], dim=1)}


class Upsampler(nn.Module):
    def __init__(self, mode, size=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, stride=2, padding=1)
        self.how = {"mode": mode, **({"size": size} if size else {"scale_factor": 2.0})}

    def forward(self, x):
        y = F.interpolate(self.conv(x), **self.how)
        return y if "size" in self.how else torch.cat([y, x], dim=1)


class Shuffle(nn.Module):
    """Leading dimensions change places, rows and columns stay."""

    def forward(self, x):
        x = F.pad(F.conv2d(x, x.new_ones(4, x.shape[1], 2, 3)), (1, 2, 3, 0))
        left, right = x.unflatten(1, (2, 2)).transpose(1, 2).permute(0, 2, 1, 3, 4).unbind(1)
        return left.clamp(min=0) * right.sigmoid()


def positive(module):
    """A copy in which every weight counts: all positive, maxima replaced by means."""
    module = copy.deepcopy(module).double().eval()
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.MaxPool2d):
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(
                parent,
                name.rpartition(".")[2],
                nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode),
            )
    for parameter in module.parameters():
        size = parameter[0].numel() if parameter.ndim == 4 else 1
        parameter.data = (torch.rand(parameter.shape, dtype=torch.float64) + 0.5) / size
    return module


def brute_force(value, pixels, cell):
    """Which pixels have a gradient: the definition of a receptive field."""
    (gradient,) = torch.autograd.grad(value[..., cell[0], cell[1]].sum(), pixels, retain_graph=True, allow_unused=True)
    seen = gradient[0].abs().amax(dim=0) > 0
    if not seen.any():
        return None
    ys, xs = seen.any(dim=1).nonzero().flatten().tolist(), seen.any(dim=0).nonzero().flatten().tolist()
    return xs[0], ys[0], xs[-1] + 1, ys[-1] + 1


def box(rows, columns, y, x):
    """The ranges of one unit as xyxy."""
    if rows[0, y] > rows[1, y] or columns[0, x] > columns[1, x]:
        return None
    return columns[0, x], rows[0, y], columns[1, x] + 1, rows[1, y] + 1


TOYS = {
    "branches": Toy,
    "nearest": lambda: Upsampler("nearest"),
    "bilinear": lambda: Upsampler("bilinear"),
    "nearest to a size": lambda: Upsampler("nearest", (11, 17)),
    "bilinear to a size": lambda: Upsampler("bilinear", (11, 17)),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 2, 3, 3), nn.ConvTranspose2d(2, 2, (2, 3), stride=2, padding=(0, 1), dilation=(2, 1))
    ),
    "strides with gaps": lambda: nn.Sequential(nn.Conv2d(3, 2, 1, 3), nn.MaxPool2d(2, 2, ceil_mode=True)),
    "focus": lambda: Focus(3, 4),
    "csp": lambda: CSPLayer(3, 4, n=2),
    "spp": lambda: SPP(3, 2),
    "adaptive": lambda: nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d((3, 4))),
    "whole map": lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.GroupNorm(1, 2)),
    "padding beyond the map": lambda: nn.Conv2d(3, 2, 1, padding=2),
    "shuffle": Shuffle,
}


@pytest.mark.parametrize("toy", TOYS)
def test_every_unit_sees_what_brute_force_says(toy):
    module = TOYS[toy]()
    pixels = torch.rand(1, 3, 14, 18, dtype=torch.float64, requires_grad=True)
    outputs, seen = positive(module)(pixels), seen_ranges(module, (14, 18))
    for name, value in (outputs if isinstance(outputs, dict) else {"output": outputs}).items():
        rows, columns = seen[name]
        assert (rows.shape, columns.shape) == ((2, value.shape[-2]), (2, value.shape[-1]))
        for y, x in {(y, x) for y in (0, 1, rows.shape[1] // 2, -1) for x in (0, 1, columns.shape[1] // 2, -1)}:
            assert box(rows, columns, y, x) == brute_force(value, pixels, (y, x)), (name, y, x)


@pytest.mark.parametrize(
    ("name", "changes", "units"),
    [  # in a pyramid units differ by their place in a cell of the coarsest level: four of them
        ("yolox-nano", {}, 4),
        ("yolof-r18-c5", {"dilated": True, "dilations": (2, 4), "width": 16, "mid_width": 8}, 1),
        ("yolof-r18-c5", {"encoder": "mimo", "width": 8, "anchor_sizes": (16, 32, 64, 128, 256)}, 4),
    ],
)
def test_whole_detectors_see_what_brute_force_says(name, changes, units):
    model = minidet.create_model(name, 2, **changes)
    hw = (32, 2048)  # one dimension is enough, and the other is cut off at both ends
    strict = positive(model)
    pixels = torch.rand(1, 3, *hw, dtype=torch.float64, requires_grad=True)
    maps = strict.features_of(pixels)
    if name == "yolox-nano":
        outputs = strict.head([maps["p3"], maps["p4"], maps["p5"]])
        maps |= {f"class_output.p{i}": output[0] for i, output in enumerate(outputs, start=3)}
        maps |= {f"box_output.p{i}": output[1] for i, output in enumerate(outputs, start=3)}
    elif "encoder" in maps:
        maps["class_output"], maps["box_output"], _ = strict.head(maps["encoder"])
    fields, seen = theoretical_receptive_fields(model), seen_ranges(model, hw)
    for stage, value in maps.items():
        if changes.get("encoder") == "mimo" and not stage.startswith("p"):
            continue  # the backbone is the same
        places = range(value.shape[-1] // 2, value.shape[-1] // 2 + units)
        found = [brute_force(value, pixels, (0, x)) for x in places]
        assert [box(*seen[stage], 0, x) for x in places] == found, stage
        widths = [x2 - x1 for x1, _, x2, _ in found if x1 > 0 and x2 < hw[1]]
        if len(widths) == units:  # otherwise the field is wider than this picture
            assert fields[stage].size_hw[1] == max(widths), stage


def test_units_lie_where_stride_and_offset_say():
    module = nn.Sequential(nn.Conv2d(3, 2, 5, 2), nn.Conv2d(2, 2, 3, 3))  # no padding: 9 px, every 6 px
    field = theoretical_receptive_field(module, "output")
    assert (field.size, field.stride_hw, field.offset_hw) == (9, (6, 6), (4.5, 4.5))
    assert seen_by(module, "output", (2, 1), (64, 64)) == (6, 12, 15, 21)
    assert seen_by(nn.Conv2d(3, 1, 1, padding=2), "output", (0, -3), (8, 8)) is None  # all padding


def test_who_looks_at_the_whole_picture_has_an_infinite_field():
    module = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.GroupNorm(1, 2))
    fields = theoretical_receptive_fields(nn.ModuleDict({"a": module})["a"])
    assert fields["output"].size == math.inf
    assert theoretical_receptive_field(module, "0").size == 3  # the submodule before it


def test_a_submodules_map_is_what_it_gave_whatever_follows_in_place():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 5, padding=2)

        def forward(self, x):
            y = self.narrow(x)
            y += self.wide(x)
            return y

    module = InPlace()
    fields = theoretical_receptive_fields(module, ("narrow", "output"), channels=1)
    assert (fields["narrow"].size, fields["output"].size) == (1, 5)
    assert (effective_receptive_field(module, "narrow", torch.rand(1, 1, 7, 7)) > 0).sum() == 1
    assert (effective_receptive_field(module, "output", torch.rand(1, 1, 7, 7)) > 0).sum() == 25


@pytest.mark.parametrize(
    ("forward", "text"),
    [
        (lambda x: x.flip(-1), "uses flip"),
        (lambda x: x.transpose(-1, -2), "moves rows and columns"),
        (lambda x: x.permute(0, 2, 3, 1), "moves rows and columns"),
        (lambda x: x.flatten(2), "uses view|uses _reshape"),
        (lambda x: x.mean(dim=(2, 3)), "one number a channel"),
        (lambda x: x.clone()[..., :8].mul_(2), "writes into a part"),
    ],
)
def test_what_cannot_be_followed_is_an_error_and_not_a_guess(forward, text):
    module = nn.Conv2d(3, 3, 1)
    module.forward = lambda x: forward(nn.Conv2d.forward(module, x))
    with pytest.raises(MinidetError, match=text):
        seen_by(module, "output", (0, 0), (16, 16))


def test_an_unknown_map_is_named_with_those_there_are():
    with pytest.raises(MinidetError, match=r"no map 'c6'; there are stem, c2, c3, c4, c5, encoder, class_output"):
        theoretical_receptive_field(without_weights("yolof-r18-c5"), "c6")


def test_measuring_leaves_the_model_as_it_was():
    model = minidet.create_model("yolox-nano", 2).train()
    model.head.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    theoretical_receptive_fields(model)
    effective_receptive_field(model, "dark3", 1, (64, 64))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.training, model.backbone.training, model.head.training) == (True, True, False)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


# ---- the effective field --------------------------------------------------------------------------------------------


def stack_of_ones(layers):
    module = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(layers)))
    for conv in module:
        nn.init.ones_(conv.weight)
    return module


def test_a_stack_of_equal_weights_sees_like_a_sum_of_dice():
    # Three throws of a three-sided die: 1 3 6 7 6 3 1 ways, in each direction.
    field = effective_receptive_field(stack_of_ones(3), "output", torch.rand(2, 1, 11, 13), channels=1)
    ways = torch.tensor([0.0, 0, 1, 3, 6, 7, 6, 3, 1, 0, 0]) / 7
    torch.testing.assert_close(field, torch.outer(ways, F.pad(ways, (1, 1))))


def test_the_effective_field_grows_with_the_root_of_the_depth_and_the_theoretical_with_the_depth():
    sizes = {}
    for layers in (10, 40):
        module = stack_of_ones(layers).double()
        field = effective_receptive_field(module, "output", torch.rand(1, 1, 101, 101).double())
        sizes[layers] = effective_size(field), theoretical_receptive_field(module, "output", channels=1).size
    assert sizes[40][1] - 1 == 4 * (sizes[10][1] - 1) == 80
    assert sizes[40][0] / sizes[10][0] == pytest.approx(2, rel=0.05)


@pytest.fixture(scope="module")
def bell():
    """A normal distribution of standard deviation 20 px, a little off the middle."""
    y, x = torch.meshgrid(torch.arange(301.0), torch.arange(321.0), indexing="ij")
    return torch.exp(-((y - 140) ** 2 + (x - 170) ** 2) / (2 * 20**2))


def test_the_size_of_a_bell_by_hand(bell):
    # Above 0.0455 of the peak: a disc of radius sigma * sqrt(-2 ln 0.0455).
    assert effective_size(bell) == pytest.approx(math.sqrt(math.pi * -2 * math.log(0.0455)) * 20, rel=0.01)
    assert effective_size(bell, share=0.5) == pytest.approx(math.sqrt(math.pi * 2 * math.log(2)) * 20, rel=0.01)


def test_the_square_that_holds_a_share_of_a_bell_by_hand(bell):
    for share, half_in_sigmas in ((0.9545, 2.2739), (0.4661, 1.0)):  # erf(1 / sqrt 2)^2 = 0.6827^2 = 0.4661
        assert math.erf(half_in_sigmas / math.sqrt(2)) ** 2 == pytest.approx(share, abs=1e-3)
        assert central_side(bell, share) == pytest.approx(2 * half_in_sigmas * 20, abs=2)


def test_sizes_of_nothing_and_of_one_pixel():
    nothing, one = torch.zeros(5, 7), torch.zeros(5, 7)
    one[1, 2] = 3.0
    assert (effective_size(nothing), central_side(nothing)) == (0.0, 0)
    assert (effective_size(one), central_side(one)) == (1.0, 1)


def test_channels_do_not_cancel():
    module = nn.Conv2d(1, 2, 1, bias=False)
    module.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    field = effective_receptive_field(module, "output", torch.rand(8, 1, 3, 3))
    assert field[1, 1] == 1


@pytest.mark.parametrize("stage", ["c3", "c5", "encoder", "encoder.smooth_norm", "class_output", "box_output"])
def test_a_detector_looks_nowhere_outside_its_theoretical_field(stage):
    model = minidet.create_model("yolof-r18-c5", 2, dilations=(1,), class_convs=0, box_convs=1, width=16, mid_width=8)
    hw, cell = (96, 640), (0, 1)
    field = effective_receptive_field(model, stage, 2, hw, cell)
    x1, y1, x2, y2 = seen_by(model, stage, cell, hw)
    assert field.shape == hw
    assert field.max() == 1
    inside = torch.zeros(hw, dtype=torch.bool)
    inside[y1:y2, x1:x2] = True
    assert x2 < 640
    assert field[~inside].max() == 0
    assert (field[inside] > 0).float().mean() > 0.5


def test_pictures_batches_and_counts_are_taken_and_seeds_repeat():
    model = minidet.create_model("yolox-nano", 2, input_hw=(64, 96))
    picture = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    for images in ([picture], torch.rand(1, 3, 64, 96), 1):
        first = effective_receptive_field(model, "p4", images)
        assert first.shape == (64, 96)
        assert torch.equal(effective_receptive_field(model, "p4", images), first)
    assert not torch.equal(effective_receptive_field(model, "p4", 1, seed=1), first)
    with pytest.raises(MinidetError, match="give input_hw"):
        effective_receptive_field(nn.Conv2d(3, 1, 1), "output")
