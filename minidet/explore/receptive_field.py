"""The receptive-field explorer: point at a unit, and see what it can see and what it looks at (chapter 04)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from minidet.detectors import Detector, create_model
from minidet.draw import Drawing
from minidet.draw.look import Look
from minidet.draw.receptive_field import draw_receptive_field
from minidet.errors import MinidetError
from minidet.explore.fields import BlockSetting, FieldLab, Variant, block_settings
from minidet.explore.figure_explorer import Control, FigureExplorer
from minidet.explore.pictures import read_pictures

DILATIONS = 8  # as far as the dial goes; farther where a model itself has more
LABS = 3  # pairs of model and picture whose results stay in memory


def explore_receptive_fields(
    models: Mapping[str, Detector | str] | Iterable[str], pictures: Any
) -> ReceptiveFieldExplorer:
    """A `ReceptiveFieldExplorer`: as the last line of a cell it shows itself."""
    return ReceptiveFieldExplorer(models, pictures)


class ReceptiveFieldExplorer(FigureExplorer):
    """Choose a model, a map and a unit; of a YOLOF with a dilated encoder also what its blocks are like.

    Args:
        models: detectors by the words that they are to be called, or names of `minidet.list_models()`, which are built
            with fresh weights when they are first chosen.
        pictures: one or several, in the forms of `minidet.explore.pictures.read_pictures`.

    Values (`change`): model, picture (from 0), stage, heat, slack, point, and of block N of an encoder blockN_on,
    blockN_dilation and blockN_residual.

    Raises:
        MinidetError: there is no model, or one is neither a detector nor a name.
        DataError: the pictures are not what they should be.

    Chapter 04.
    """

    words = "Receptive-field explorer"

    def __init__(self, models: Mapping[str, Detector | str] | Iterable[str], pictures: Any) -> None:
        self._models = dict(models) if isinstance(models, Mapping) else {name: name for name in models}
        wrong = [words for words, model in self._models.items() if not isinstance(model, Detector | str)]
        if wrong or not self._models:
            raise MinidetError(f"models: {wrong[0] if wrong else 'there is none'}; give detectors or their names")
        self._pictures = read_pictures(pictures)
        self._labs: dict[tuple[str, int], FieldLab] = {}
        self.values: dict[str, Any] = {}
        super().__init__({"model": next(iter(self._models)), "picture": 0})

    def complete(self, values: dict[str, Any]) -> dict[str, Any]:
        lab = self._lab(values)
        present = block_settings(lab.model)
        fresh = values.get("model") != self.values.get("model")  # another model begins as it is
        for number, block in enumerate(present, start=1):
            for part in ("on", "dilation", "residual"):
                name = f"block{number}_{part}"
                if fresh or name not in values:
                    values[name] = getattr(block, part)
        variant = lab.variant(self._settings(values, len(present)))
        if values.get("stage") not in variant.stages:
            values["stage"] = "encoder" if "encoder" in variant.stages else "p4"
        values.setdefault("heat", True)
        values.setdefault("slack", 4.0)
        if values.get("point") is None:
            values["point"] = [float(lab.boxes[:1, 0::2].mean()), float(lab.boxes[:1, 1::2].mean())]
            if not len(lab.boxes):
                values["point"] = [lab.input_hw[1] / 2, lab.input_hw[0] / 2]
        return values

    def controls(self, values: dict[str, Any]) -> list[Control]:
        lab = self._lab(values)
        present = block_settings(lab.model)
        variant = lab.variant(self._settings(values, len(present)))
        stages = tuple((stage, variant.words(stage)) for stage in variant.stages)
        pictures = tuple((number, f"{number + 1}") for number in range(len(self._pictures)))
        found = [
            Control("model", "Model", "choice", choices=tuple((words, words) for words in self._models)),
            Control("picture", "Picture", "choice", choices=pictures),
            Control("stage", "Map", "choice", choices=stages),
            Control("heat", "show what the unit looks at", "switch"),
            Control("slack", "A range fits objects down to its size divided by", "slider", low=1, high=16, step=1),
        ]
        farthest = max([DILATIONS, *(block.dilation for block in present)])
        for number in range(1, len(present) + 1):
            group = f"block {number}"
            found += [
                Control(f"block{number}_on", "in use", "switch", group=group),
                Control(f"block{number}_dilation", "dilation", "slider", low=1, high=farthest, step=1, group=group),
                Control(f"block{number}_residual", "residual", "switch", group=group),
            ]
        return found

    def draw(self, values: dict[str, Any], look: Look) -> Drawing:
        lab = self._lab(values)
        settings = self._settings(values, len(block_settings(lab.model)))
        variant = lab.variant(settings)
        rows, columns = variant.shape_of(values["stage"])
        self.step = (lab.input_hw[1] / columns, lab.input_hw[0] / rows)
        view = lab.view(values["stage"], values["point"], settings, values["heat"], values["slack"])
        return draw_receptive_field(view, look)

    def in_words(self, figure: Drawing) -> str:
        return re.sub(r" It looks at about [^.]*\.", "", figure.alt)

    def variant(self) -> Variant:
        """The model as it is set now, with its maps, fields and ranges."""
        lab = self._lab(self.values)
        return lab.variant(self._settings(self.values, len(block_settings(lab.model))))

    def _settings(self, values: dict[str, Any], count: int) -> tuple[BlockSetting, ...]:
        return tuple(
            BlockSetting(*(values[f"block{number}_{part}"] for part in ("on", "dilation", "residual")))
            for number in range(1, count + 1)
        )

    def _lab(self, values: dict[str, Any]) -> FieldLab:
        words, picture = values.get("model"), values.get("picture")
        if words not in self._models or not isinstance(picture, int) or not 0 <= picture < len(self._pictures):
            raise MinidetError(f"there is no model {words!r} or no picture {picture!r}")
        if (words, picture) not in self._labs:
            while len(self._labs) >= LABS:
                del self._labs[next(iter(self._labs))]
            self._labs[words, picture] = FieldLab(self._model(words), self._pictures[picture])
        return self._labs[words, picture]

    def _model(self, words: str) -> Detector:
        model = self._models[words]
        if isinstance(model, str):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = self._models[words] = create_model(model).eval()
        return model
