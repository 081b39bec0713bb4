"""Receptive fields: which pixels a unit of a feature map can see, and which it looks at.

The theoretical field is what the layers allow. It is found here by following every tensor through the network: for each
row and column of a map the first and the last pixel that reach it. No number is computed (PyTorch's "meta" device), so
any size is cheap; and it is the network's own forward pass that is followed, so nobody has to describe the network.

The effective field is what the weights make of it: the gradient of one unit with respect to the picture.

Source: YOLOF, section 4.1 and figure 5; Luo et al., arXiv 1701.04128, for the effective field; chapter 04.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minidet.detectors import YOLOX, Detector
from minidet.detectors.detector import Images
from minidet.errors import MinidetError
from minidet.evaluation.pixel_ranges import PixelFollower, Reach
from minidet.evaluation.speed import without_weights
from minidet.layers.dilated_encoder import DilatedEncoder
from minidet.layers.pyramid import LEVELS

TWO_SIGMA = 0.9545  # the share of a normal distribution within two standard deviations
FIRST_SIDE, LAST_SIDE = 4096, 65536  # px; the input on which fields are measured grows until they fit in
MIDDLE = 8  # units on each side of the middle; units of a pyramid differ by their place in a coarser cell


@dataclass(frozen=True)
class ReceptiveField:
    """What a unit in the middle of a map can see; of units that differ (in a pyramid) the one that sees most.

    Attributes:
        size_hw: height and width in pixels; infinite where it grows with the picture, as after a mean over the map.
        stride_hw: pixels from one unit's field to the next one's.
        offset_hw: where the middle of the field of unit (0, 0) lies, in pixels: unit (y, x) looks at
            offset + (y, x) * stride. The middle of the first pixel is 0.5.
    """

    size_hw: tuple[float, float]
    stride_hw: tuple[float, float]
    offset_hw: tuple[float, float]

    @property
    def size(self) -> float:
        """The longer side in pixels."""
        return max(self.size_hw)


def theoretical_receptive_field(model: nn.Module, stage: str, channels: int = 3) -> ReceptiveField:
    """The theoretical receptive field of one map; see `theoretical_receptive_fields`.

    Args:
        model: a detector, or any module that takes one map [B, channels, H, W].
        stage: the name of a map, or of a submodule, such as "encoder.smooth_norm" (YOLOF's projector). Of a submodule
            that runs several times, the first run.
        channels: that the module takes.

    Raises:
        MinidetError: there is no such map, or the network does something that this module cannot follow.
    """
    return theoretical_receptive_fields(model, (stage,), channels)[stage]


def theoretical_receptive_fields(
    model: nn.Module, stages: Sequence[str] | None = None, channels: int = 3
) -> dict[str, ReceptiveField]:
    """The theoretical receptive field of every map by name, or of those in `stages`.

    The names are those of `Detector.features`, and for the head "class_output", "box_output" and "object_output" (with
    the level behind a dot where there are several: "class_output.p3"). The maps of any other module are "output", or
    the keys or numbers of what it returns. Names in `stages` may be those of submodules too.

    Weights count as not zero, and norms as in evaluation mode, where they look at nothing but their own unit.

    Raises:
        MinidetError: there is no such map, or the network does something that this module cannot follow.

    Source: YOLOF, section 4.1; chapter 04.
    """
    side, found = FIRST_SIDE, {}
    while True:
        hw = (side, side + FIRST_SIDE // 4)  # not a square: rows and columns that change places are noticed
        seen = seen_ranges(model, hw, stages, channels)
        for name, ranges in seen.items():
            axes = [_middle(axis, length) for axis, length in zip(ranges, hw, strict=True)]
            if all(axes):
                found.setdefault(name, ReceptiveField(*zip(*axes, strict=True)))
            elif side >= LAST_SIDE:
                found.setdefault(name, ReceptiveField((math.inf,) * 2, (math.nan,) * 2, (math.nan,) * 2))
        if len(found) == len(seen):
            return {name: found[name] for name in seen}
        side *= 2


def encoder_receptive_fields(model: Detector) -> tuple[int, ...]:
    """All receptive fields that a dilated encoder mixes, in pixels, ascending.

    Each residual block can be gone through or round, so its output is a sum over all subsets of blocks; a subset sees
    what the projector sees, plus what each of its blocks adds. Different subsets may see equally far.

    Raises:
        MinidetError: the model has no dilated encoder.

    Source: YOLOF, section 4.1 and figure 5; chapter 04.
    """
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, DilatedEncoder):
        raise MinidetError(f"{getattr(model, 'name', type(model).__name__)} has no dilated encoder; YOLOF has one")
    stages = ("encoder.smooth_norm", *(f"encoder.blocks.{i}" for i in range(len(encoder.blocks))))
    sizes = [int(field.size) for field in theoretical_receptive_fields(model, stages).values()]
    seen = {sizes[0]}
    for block, before, after in zip(encoder.blocks, sizes[:-1], sizes[1:], strict=True):
        through = {size + after - before for size in seen}
        seen = seen | through if block.shortcut else through
    return tuple(sorted(seen))


def seen_ranges(
    model: nn.Module, input_hw: tuple[int, int], stages: Sequence[str] | None = None, channels: int = 3
) -> dict[str, Reach]:
    """Which pixels reach every unit of the maps, inside a picture of the given size.

    Args:
        model, stages, channels: as for `theoretical_receptive_fields`.
        input_hw: height and width of the network input.

    Returns:
        For each map the ranges of its rows and of its columns, [2, rows] and [2, columns] float: first and last pixel
        row that reaches each row, the same for columns; (inf, -inf) where none does, which happens in padding.

    Raises:
        MinidetError: there is no such map, or the network does something that this module cannot follow.
    """
    shadow = without_weights(model).eval()
    x = torch.empty(1, channels, *input_hw, device="meta")
    with torch.no_grad(), PixelFollower(x) as follower:
        maps = _maps(shadow, x, stages)
        for stage in stages or ():
            if not follower.knows(maps[stage]):
                raise MinidetError(f"the map {stage!r} does not depend on the picture")
        return {name: follower.reach_of(value) for name, value in maps.items() if follower.knows(value)}


def seen_by(
    model: nn.Module, stage: str, cell: tuple[int, int], input_hw: tuple[int, int], channels: int = 3
) -> tuple[int, int, int, int] | None:
    """The pixels that one unit of one map can see, inside a picture of the given size.

    Args:
        model, stage, channels: as for `theoretical_receptive_field`.
        cell: row and column of the unit; negative ones count from the end.
        input_hw: height and width of the network input.

    Returns:
        xyxy in pixels, or None where it sees none.
    """
    rows, columns = seen_ranges(model, input_hw, (stage,), channels)[stage]
    (y1, y2), (x1, x2) = (axis[:, index] for axis, index in ((rows, cell[0]), (columns, cell[1])))
    if y2 < y1 or x2 < x1:
        return None
    return int(x1), int(y1), int(x2) + 1, int(y2) + 1


def effective_receptive_field(
    model: nn.Module,
    stage: str,
    images: Images | int = 8,
    input_hw: tuple[int, int] | None = None,
    cell: tuple[int, int] | None = None,
    channels: int = 3,
    seed: int = 0,
) -> Tensor:
    """How strongly each pixel moves one unit: the gradient of the unit with respect to the picture, over many pictures.

    A unit has many channels. They are added up with random signs, so that they do not cancel; squared and averaged over
    the pictures this is, in the mean, the sum of the squared gradients of the channels.

    Args:
        model: a detector, or any module that takes one map [B, channels, H, W]; used in evaluation mode, not changed.
        stage: as for `theoretical_receptive_field`.
        images: pictures or network input as a detector takes them; for another module [B, channels, H, W]; or how many
            pictures of noise to draw.
        input_hw: size of the noise; for a detector its own by default.
        cell: row and column of the unit, the middle one by default.
        seed: of noise and signs.

    Returns:
        [H, W] float32 on the CPU: the root of the mean square over pictures and colours, in units of the largest.
        All zero where the unit depends on no pixel.

    Source: Luo et al., arXiv 1701.04128, section 3; chapter 04.
    """
    random = torch.Generator().manual_seed(seed)
    x = _inputs(model, images, input_hw, channels, random)
    total = torch.zeros(x.shape[-2:], dtype=torch.float64)
    for picture in x:
        total += UnitGradients(model, stage, picture[None]).squared(cell, random)
    return _strength(total)


class UnitGradients:
    """One picture's way to one map, gone once and kept, so that many units of the map can be asked one after another.

    Args:
        model, stage: as for `effective_receptive_field`.
        x: network input [1, channels, H, W].

    Attributes:
        map_hw: rows and columns of the map.
    """

    def __init__(self, model: nn.Module, stage: str, x: Tensor):
        with _evaluation_mode(model), torch.enable_grad():
            self._x = x.detach().requires_grad_()
            self._map = _maps(model, self._x, (stage,))[stage]
        self.map_hw: tuple[int, int] = tuple(self._map.shape[-2:])

    def squared(self, cell: tuple[int, int] | None, random: torch.Generator) -> Tensor:
        """[H, W] float64 on the CPU: squared gradient of a unit, its channels added up with random signs."""
        row, column = cell if cell is not None else (self.map_hw[0] // 2, self.map_hw[1] // 2)
        unit = self._map[0, :, row, column]
        signs = torch.randint(0, 2, unit.shape, generator=random).mul(2).sub(1).to(unit)
        if not unit.requires_grad:
            return torch.zeros(self._x.shape[-2:], dtype=torch.float64)
        (gradient,) = torch.autograd.grad((unit * signs).sum(), self._x, retain_graph=True, allow_unused=True)
        if gradient is None:
            return torch.zeros(self._x.shape[-2:], dtype=torch.float64)
        return gradient[0].double().square().sum(dim=0).cpu()

    def effective_field(self, cell: tuple[int, int] | None, seed: int = 0) -> Tensor:
        """What `effective_receptive_field` gives for this one picture."""
        return _strength(self.squared(cell, torch.Generator().manual_seed(seed)))


def _strength(squared: Tensor) -> Tensor:
    field = squared.sqrt()
    return (field / field.max().clamp(min=torch.finfo(field.dtype).tiny)).float()


def effective_size(field: Tensor, share: float = TWO_SIGMA) -> float:
    """How large an effective field is, in pixels: the root of the number of pixels above 1 - `share` of the strongest.

    The measure of the paper, which compares with the pixel in the centre; here it is the strongest, as after a stride
    the two need not be the same.

    Source: Luo et al., arXiv 1701.04128, section 3.
    """
    return math.sqrt(int((field > (1 - share) * field.max()).sum()))


def central_side(field: Tensor, share: float = TWO_SIGMA) -> int:
    """The side in pixels of the smallest square that holds `share` of an effective field's sum.

    The square lies around the field's centre of mass, cut off where the picture ends.
    """
    field = field.double()
    total = field.sum()
    if total == 0:
        return 0
    ys, xs = (torch.arange(n, dtype=torch.float64) for n in field.shape)
    center_y, center_x = (field.sum(dim=1) * ys).sum() / total, (field.sum(dim=0) * xs).sum() / total
    distance = torch.maximum((ys - center_y).abs()[:, None], (xs - center_x).abs()[None, :])
    order = distance.flatten().argsort(stable=True)
    held = field.flatten()[order].cumsum(dim=0)
    last = int((held < share * total).sum())
    radius = float(distance.flatten()[order][min(last, len(order) - 1)])
    return math.floor(2 * radius + 1e-6) + 1


def _middle(axis: np.ndarray, side: int) -> tuple[float, float, float] | None:
    """Size, stride and offset along one axis; None if the field of a unit in the middle is cut off by the border."""
    middle = axis.shape[1] // 2
    if axis.shape[1] < 2 * MIDDLE + 1:
        return None
    first, last = axis[:, middle - MIDDLE : middle + MIDDLE + 1]
    if first.min() <= 0 or last.max() >= side - 1:
        return None
    sizes, centers = last - first + 1, (first + last + 1) / 2
    stride = (centers[-1] - centers[0]) / (2 * MIDDLE)
    largest = int(sizes.argmax())
    offset = centers[largest] - stride * (middle - MIDDLE + largest)
    size = float(sizes[largest])
    return (int(size) if size.is_integer() else size), float(stride), float(offset)


# ---- the maps of a model --------------------------------------------------------------------------------------------


def _maps(model: nn.Module, x: Tensor, stages: Sequence[str] | None) -> dict[str, Tensor]:
    """The maps called `stages`, or all that have names of their own."""
    captured: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and name not in captured:
                captured[name] = output.clone()  # what follows may work in place

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in stages or () if name in modules]
    try:
        named = _detector_maps(model, x) if isinstance(model, Detector) else _module_maps(model(x))
    finally:
        for hook in hooks:
            hook.remove()
    if stages is None:
        return named
    available = {**captured, **named}
    for stage in stages:
        if stage not in available:
            raise MinidetError(
                f"there is no map {stage!r}; there are {', '.join(named)}, and every submodule that gives one map"
            )
    return {stage: available[stage] for stage in stages}


def _detector_maps(model: Detector, x: Tensor) -> dict[str, Tensor]:
    maps = dict(model.features_of(x))
    if isinstance(model, YOLOX):
        names, outputs = LEVELS, model.head([maps[name] for name in LEVELS])
    else:
        names = model.level_names
        outputs = [model.head(maps[name]) for name in names]
    parts = ("class_output", "box_output", "object_output", "selector_output")
    for name, output in zip(names, outputs, strict=True):
        at = f".{name}" if len(names) > 1 else ""
        maps |= {f"{part}{at}": values for part, values in zip(parts, output, strict=False) if values is not None}
    return maps


def _module_maps(output: Any) -> dict[str, Tensor]:
    if isinstance(output, Tensor):
        return {"output": output}
    items = output.items() if isinstance(output, dict) else enumerate(output)
    return {str(key): value for key, value in items if isinstance(value, Tensor)}


def _inputs(
    model: nn.Module, images: Images | int, input_hw: tuple[int, int] | None, channels: int, random: torch.Generator
) -> Tensor:
    if isinstance(images, int):
        hw = input_hw or getattr(model, "input_hw", None)
        if hw is None:
            raise MinidetError("give input_hw=(height, width): how large the pictures of noise shall be")
        images = torch.rand((images, channels, *hw), generator=random)
    return model.network_input(images)[0] if isinstance(model, Detector) else images


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
