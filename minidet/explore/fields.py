"""What the receptive-field explorer computes: for a unit of a real model what it can see and what it looks at.

A dilated encoder can be changed on the way: blocks taken out, other dilations, without a residual connection. That
gives another detector that shares every weight with the first; the network itself is followed and differentiated, so
whatever is changed is seen at once.

Source: YOLOF, section 4.1; chapter 04.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minidet.detectors import YOLOX, Detector
from minidet.draw.receptive_field import FieldView, RangeRow
from minidet.errors import MinidetError
from minidet.evaluation.pixel_ranges import Reach
from minidet.evaluation.receptive_field import (
    ReceptiveField,
    UnitGradients,
    effective_size,
    encoder_receptive_fields,
    seen_ranges,
    theoretical_receptive_fields,
)
from minidet.explore.pictures import Picture
from minidet.layers.dilated_encoder import DilatedEncoder
from minidet.layers.pyramid import LEVELS

KEPT = 12  # variants of a model whose fields stay in memory, and so many ways to a map


@dataclass(frozen=True)
class BlockSetting:
    """How one block of a dilated encoder is set."""

    on: bool = True  # else it is taken out
    dilation: int = 1
    residual: bool = True  # whether its input is added


def block_settings(model: nn.Module) -> tuple[BlockSetting, ...]:
    """The blocks as the model has them; none where it has no dilated encoder."""
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, DilatedEncoder):
        return ()
    return tuple(BlockSetting(True, block.conv2.dilation[0], block.shortcut) for block in encoder.blocks)


def with_blocks(model: Detector, settings: Sequence[BlockSetting]) -> Detector:
    """A detector that shares all weights with `model` but whose encoder's blocks are set otherwise; `model` stays.

    Args:
        model: one with a dilated encoder.
        settings: one for each block.

    Raises:
        MinidetError: it has no dilated encoder or another number of blocks, or a dilation is not positive.
    """
    present = block_settings(model)
    if not isinstance(getattr(model, "encoder", None), DilatedEncoder) or len(settings) != len(present):
        raise MinidetError(f"{model.name} has {len(present)} dilated blocks, but {len(settings)} settings were given")
    if any(setting.dilation < 1 for setting in settings):
        raise MinidetError(f"a dilation is at least 1, not {min(setting.dilation for setting in settings)}")
    changed, encoder = _twin(model), _twin(model.encoder)
    blocks = []
    for block, setting in zip(model.encoder.blocks, settings, strict=True):
        if setting.on:
            block, conv = _twin(block), _twin(block.conv2)
            conv.dilation = conv.padding = (setting.dilation,) * 2
            block.conv2, block.shortcut = conv, setting.residual
            blocks.append(block)
    encoder.blocks = nn.Sequential(*blocks)
    changed.encoder = encoder
    return changed


def _twin(module: nn.Module) -> nn.Module:
    """The same module once more, with the same parts and parameters, but able to get others."""
    twin = copy.copy(module)
    for name in ("_modules", "_parameters", "_buffers"):
        twin.__dict__[name] = dict(twin.__dict__[name])
    return twin


class FieldLab:
    """Fields of one model on one picture; what was computed once is kept.

    Args:
        model: any detector. It is never changed.
        picture: what it looks at.
    """

    def __init__(self, model: Detector, picture: Picture):
        self.model, self.picture = model, picture
        self.x, ((scale_x, scale_y),) = model.network_input([picture.image])
        self.input_hw: tuple[int, int] = tuple(self.x.shape[-2:])
        self.boxes: Tensor = picture.boxes * torch.tensor([scale_x, scale_y, scale_x, scale_y])
        self._variants: dict[tuple[BlockSetting, ...], Variant] = {}
        self._looked: Variant | None = None  # the one whose way to a map is kept

    def variant(self, settings: Sequence[BlockSetting] | None = None) -> Variant:
        """The model with its encoder's blocks set so; None: as they are."""
        settings = block_settings(self.model) if settings is None else tuple(settings)
        if settings not in self._variants:
            while len(self._variants) >= KEPT:
                del self._variants[next(iter(self._variants))]  # the oldest
            model = with_blocks(self.model, settings) if settings else self.model
            self._variants[settings] = Variant(model, self.x, [n for n, each in enumerate(settings, 1) if each.on])
        return self._variants[settings]

    def view(
        self,
        stage: str,
        point: tuple[float, float],
        settings: Sequence[BlockSetting] | None = None,
        heat: bool = True,
        slack: float = 4.0,
    ) -> FieldView:
        """Everything that the picture shows.

        Args:
            stage: one of `Variant.stages`.
            point: (x, y) in pixels of the network input; the unit whose cell holds it is taken.
            settings: of the encoder's blocks.
            heat: also compute what the unit looks at.
            slack: see `FieldView`.
        """
        variant = self.variant(settings)
        cell = variant.cell_at(stage, point)
        field = variant.field_of(stage)
        if heat and self._looked is not variant:
            if self._looked is not None:
                self._looked.forget_way()
            self._looked = variant
        effective = variant.effective(stage, cell) if heat else None
        image = self.x[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
        return FieldView(
            image=image.cpu().numpy(),
            boxes=self.boxes.numpy(),
            unit=variant.place_of(stage, cell),
            field=variant.seen_by(stage, cell),
            field_hw=field.size_hw,
            heat=None if effective is None else effective.numpy(),
            effective_px=0.0 if effective is None else effective_size(effective),
            ranges=variant.ranges(stage),
            slack=slack,
            words=f"{self.model.name}: {variant.words(stage)}, row {cell[0]}, column {cell[1]}",
        )


class Variant:
    """One model's maps, fields and ranges.

    Args:
        model: any detector.
        x: network input [1, 3, H, W].
        block_numbers: of the blocks that its encoder has, as they are called in words.
    """

    def __init__(self, model: Detector, x: Tensor, block_numbers: Sequence[int] = ()):
        self.model, self._x = model, x
        self._numbers = tuple(block_numbers)
        self.stages = self._name_stages()
        # One pass over shapes alone for each: where every unit of every map looks, in this picture and without borders.
        self._reach: dict[str, Reach] = seen_ranges(model, tuple(x.shape[-2:]), self.stages)
        self._fields = theoretical_receptive_fields(model, self.stages)
        self._ways: dict[str, UnitGradients] = {}
        self._effective: dict[tuple[str, tuple[int, int]], Tensor] = {}

    def _name_stages(self) -> tuple[str, ...]:
        maps = list(seen_ranges(self.model, (64, 64)))
        if isinstance(getattr(self.model, "encoder", None), DilatedEncoder):
            inside = ["encoder.smooth_norm", *(f"encoder.blocks.{i}" for i in range(len(self.model.encoder.blocks)))]
            at = maps.index("encoder")
            maps[at:at] = inside[:-1] if len(inside) > 1 else []  # after the last of them the encoder ends
        return tuple(maps)

    def words(self, stage: str) -> str:
        """A map's name for people."""
        if stage == "encoder.smooth_norm":
            return "projector of the encoder"
        if stage.startswith("encoder.blocks."):
            return f"encoder after block {self._numbers[int(stage.rsplit('.', 1)[1])]}"
        if stage in ("encoder", *LEVELS):
            return {"encoder": "encoder, whole"}.get(stage, f"pyramid level {stage}")
        return stage.replace("_", " ").replace(".", " of ")

    def shape_of(self, stage: str) -> tuple[int, int]:
        """Rows and columns of a map."""
        rows, columns = self._reach_of(stage)
        return rows.shape[1], columns.shape[1]

    def cell_at(self, stage: str, point: tuple[float, float]) -> tuple[int, int]:
        """Row and column of the unit whose share of the picture holds a point (x, y), or of the nearest."""
        (rows, columns), (height, width) = self.shape_of(stage), self._x.shape[-2:]
        row, column = int(point[1] * rows / height), int(point[0] * columns / width)
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)

    def place_of(self, stage: str, cell: tuple[int, int]) -> tuple[float, float, float, float]:
        """The unit's share of the picture, xyxy."""
        (rows, columns), (height, width) = self.shape_of(stage), self._x.shape[-2:]
        high, wide = height / rows, width / columns
        return cell[1] * wide, cell[0] * high, (cell[1] + 1) * wide, (cell[0] + 1) * high

    def seen_by(self, stage: str, cell: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """The pixels of this picture that a unit can see, xyxy; as `receptive_field.seen_by`."""
        rows, columns = self._reach_of(stage)
        (y1, y2), (x1, x2) = rows[:, cell[0]], columns[:, cell[1]]
        return None if y2 < y1 or x2 < x1 else (int(x1), int(y1), int(x2) + 1, int(y2) + 1)

    def field_of(self, stage: str) -> ReceptiveField:
        """What a unit of the map could see in a picture without borders."""
        return self._fields[stage]

    def effective(self, stage: str, cell: tuple[int, int]) -> Tensor:
        """[H, W] what a unit looks at; as `effective_receptive_field` of this picture gives it."""
        if (stage, cell) not in self._effective:
            if stage not in self._ways:
                self._ways = {stage: UnitGradients(self.model, stage, self._x)}  # one at a time: it is large
            while len(self._effective) >= KEPT:
                del self._effective[next(iter(self._effective))]
            self._effective[stage, cell] = self._ways[stage].effective_field(cell)
        return self._effective[stage, cell]

    def forget_way(self) -> None:
        """Free what `effective` keeps between units: hundreds of megabytes in a large network."""
        self._ways = {}

    def ranges(self, stage: str) -> list[RangeRow]:
        """The receptive fields that matter for objects: an encoder's set of ranges, or one of each level."""
        if isinstance(getattr(self.model, "encoder", None), DilatedEncoder):
            sizes = encoder_receptive_fields(self.model)
            return [
                RangeRow("C5, from the backbone", (self._fields["c5"].size,), stage in ("c5",)),
                RangeRow("encoder, all its paths", sizes, stage not in ("c5",)),
            ]
        names = LEVELS if isinstance(self.model, YOLOX) else self.model.level_names
        chosen = [name for name in names if stage == name or stage.endswith(f".{name}")] or list(names)
        return [RangeRow(self.words(name), (self._fields[name].size,), name in chosen) for name in names]

    def _reach_of(self, stage: str) -> Reach:
        if stage not in self._reach:
            raise MinidetError(f"there is no map {stage!r}; there are {', '.join(self.stages)}")
        return self._reach[stage]
