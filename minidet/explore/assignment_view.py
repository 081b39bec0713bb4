"""The assignment explorer: drag an object, turn a dial, and watch who learns what (chapter 06).

The view is in assignment.js; every number that it shows comes from `minidet.explore.assignment`, which asks the
strategies of `minidet.assign` about the predictions of a real model.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import traitlets
from PIL import Image
from torch import Tensor

from minidet.assign import Assigner, Assignment
from minidet.draw import Drawing
from minidet.draw.assignment import KINDS, draw_assignment
from minidet.draw.palette import HEAT, MARKS, PALETTE, text_colour
from minidet.explore.assignment import (
    MOST_OBJECTS,
    MOST_PANELS,
    AssignmentBench,
    Choice,
    PanelNumbers,
    State,
    in_words,
    sizes_of,
)
from minidet.explore.base import Explorer, pack, script, style
from minidet.explore.dials import positions_of
from minidet.explore.pictures import SMALLEST_SIDE
from minidet.explore.steps import steps_of


class AssignmentExplorer(Explorer):
    """A picture whose objects can be dragged, resized, added and deleted, and the slots that learn them, live.

    The models are not changed, and each looks at a picture once: what one learns afterwards is not seen.
    """

    _esm = script("assignment.js")
    _css = style("assignment.css")

    # Where the slots of the models in use are on the picture; changes with the picture alone.
    ground = traitlets.Dict().tag(sync=True)
    places = traitlets.Bytes().tag(sync=True)

    def __init__(
        self, models: Any, data: Any, rules: Sequence[Assigner] | None = None, side_by_side: bool = False
    ) -> None:
        """
        Args:
            models: a detector, or a list of (name, detector) with the same classes, such as stages of a training.
            data: a picture with its objects, or a list of them; see `minidet.explore.pictures.read_pictures`.
            rules: the strategies to choose from, with the parameters to start with; None: the model's own, and all
                others of `minidet.assign`.
            side_by_side: begin with a panel for each model, or, of a single model, for each strategy; four at most.

        Raises:
            MinidetError: models, pictures or strategies are not of these forms.
        """
        self._bench = AssignmentBench(models, data, rules)
        self._edited: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # boxes and labels of the pictures seen so far
        bench = self._bench
        self.scene = {
            "models": [name for name, _ in bench.models],
            "images": [list(picture.image.shape[-2:]) for picture in bench.pictures],
            "classes": bench.class_names,
            "rules": [
                {
                    "name": type(rule).__name__,
                    "steps": [name for name, _ in steps_of(rule)],
                    "dials": [
                        {"name": dial.name, "words": dial.words, "texts": dial.texts, "is_switch": dial.is_switch}
                        for dial in dials
                    ],
                    "start": positions_of(rule, dials),
                }
                for rule, dials in zip(bench.rules, bench.dials, strict=True)
            ],
            "kinds": list(KINDS),
            "palette": [[colour, text_colour(colour)] for colour in PALETTE],
            "heat": list(HEAT),
            "shapes": list(MARKS),
            "most_objects": MOST_OBJECTS,
            "most_panels": MOST_PANELS,
            "smallest_side": SMALLEST_SIDE,
        }
        self._show(bench.first_state(side_by_side))
        super().__init__()  # opens the way to the front end, which so begins with everything that was set above

    @property
    def target(self) -> dict[str, Tensor]:
        """The objects as they are now: "boxes" [G, 4] float32 xyxy in pixels of the picture, "labels" [G] int64."""
        return {
            "boxes": torch.from_numpy(self._state.boxes.copy()),
            "labels": torch.from_numpy(self._state.labels.copy()),
        }

    @property
    def assignments(self) -> list[Assignment]:
        """What each panel shows, from left to right: the assigner's own result for this picture, with its trace."""
        return [panel.assignment for panel in self._panels]

    @property
    def rules(self) -> list[Assigner]:
        """The strategy of each panel, with its dials as they stand."""
        return [panel.rule for panel in self._panels]

    def compute(self, state: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        """See `Explorer.compute`. Without buffers the objects are those that the picture had when it was last shown."""
        image = int(state["image"])
        if buffers:
            boxes = np.frombuffer(buffers[0], np.float32).reshape(-1, 4)
            labels = np.frombuffer(buffers[1], np.int32).astype(np.int64)
        else:
            boxes, labels = self._objects(image)
        panels = tuple(
            Choice(
                int(panel["model"]),
                int(panel["rule"]),
                tuple(int(position) for position in panel["dials"]),
                int(panel["step"]),
                tuple(int(level) for level in panel["hidden"]),
                panel["moved"],
            )
            for panel in state["panels"]
        )
        hover = None if state["hover"] is None else (int(state["hover"][0]), int(state["hover"][1]))
        self._show(State(image, boxes, labels, panels, int(state["selected"]), hover))

    def figure(self) -> Drawing:
        """See `Explorer.figure`."""
        state, bench = self._state, self._bench
        pixels = bench.pictures[state.image].image.permute(1, 2, 0).numpy()
        strides = bench.ground(state.panels[0].model, state.image).strides
        panels = bench.drawn(state, self._panels)
        side = {1: 512, 2: 448}.get(len(panels), 384)
        return draw_assignment(pixels, state.boxes, panels, strides, bench.alt(state, self._panels), side)

    def _objects(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        if image in self._edited:
            return self._edited[image]
        picture = self._bench.pictures[
            min(max(image, 0), len(self._bench.pictures) - 1)
        ]  # a wrong one is refused later
        return picture.boxes.numpy(), picture.labels.numpy()

    def _show(self, state: State) -> None:
        """Compute everything that follows from a state, then set the traits; if that fails, none of them."""
        bench = self._bench
        state = bench.checked(state)
        panels = bench.numbers(state)
        arrays = {"boxes": state.boxes.ravel(), "labels": state.labels.astype(np.int32)}
        for index, panel in enumerate(panels):
            arrays |= _arrays(f"{index}.", panel)
        layout, numbers = pack(arrays)
        answer = {
            "layout": layout,
            "image": state.image,
            "selected": state.selected,
            "hover": state.hover,
            "panels": [
                _panel_json(bench, state, choice, panel) for choice, panel in zip(state.panels, panels, strict=True)
            ],
        }
        self._lay_ground(state)
        self._state, self._panels = state, panels
        self._edited[state.image] = (state.boxes, state.labels)
        self.numbers, self.answer = numbers, answer

    def _lay_ground(self, state: State) -> None:
        """Send picture and places of slots, if the view does not have them."""
        models = sorted({choice.model for choice in state.panels})
        if self.ground.get("image") == state.image and set(map(str, models)) <= set(self.ground["strides"]):
            return
        if self.ground.get("image") != state.image:
            self.picture = _png(self._bench.pictures[state.image].image)
        else:
            models = sorted({*models, *map(int, self.ground["strides"])})
        arrays, strides = {}, {}
        for model in models:
            ground = self._bench.ground(model, state.image)
            strides[str(model)] = list(ground.strides)
            arrays[f"{model}.places"] = ground.places.ravel()
            arrays[f"{model}.cells"] = ground.cells
            arrays[f"{model}.levels"] = ground.levels.astype(np.uint8)
            arrays[f"{model}.boxes"] = ground.boxes.ravel()
        layout, self.places = pack(arrays)
        self.ground = {"image": state.image, "strides": strides, "layout": layout}


def explore_assignment(
    models: Any, data: Any, rules: Sequence[Assigner] | None = None, side_by_side: bool = False
) -> AssignmentExplorer:
    """An explorer of who learns what; as the last line of a cell it shows itself. For the arguments see the class."""
    return AssignmentExplorer(models, data, rules, side_by_side)


def _arrays(prefix: str, panel: PanelNumbers) -> dict[str, np.ndarray]:
    marks = panel.marks
    return {
        f"{prefix}slot": marks.slot.astype(np.uint32),
        f"{prefix}owner": marks.owner.astype(np.int16),
        f"{prefix}kind": marks.kind,
        f"{prefix}value": marks.value,
        f"{prefix}counts": panel.per_level.ravel().astype(np.uint16),
    }


def _panel_json(bench: AssignmentBench, state: State, choice: Choice, panel: PanelNumbers) -> dict[str, Any]:
    hover = None
    if panel.hover is not None:
        text, columns, rows = panel.hover
        hover = {"text": text, "columns": columns, "rows": rows}
    return {
        "model": choice.model,
        "rule": choice.rule,
        "dials": positions_of(panel.rule, bench.dials[choice.rule]),
        "step": choice.step,
        "hidden": list(choice.hidden),
        "positives": panel.positives,
        "ignored": panel.ignored,
        "conflicts": panel.conflicts,
        "unowned": list(panel.unowned),
        "words": in_words(panel),
        "levels": panel.per_level.sum(axis=0).tolist(),
        "sizes": sizes_of(state.boxes, panel.per_level.sum(axis=1)),
        "explanation": panel.explanation.as_json(),
        "hover": hover,
    }


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
