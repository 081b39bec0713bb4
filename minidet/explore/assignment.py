"""The assignment explorer without its view: from a state (objects, strategies, dials, step) to numbers.

The network runs once for each picture and model. Its dense predictions are kept, and a state only asks a strategy of
`minidet.assign` about them; that takes milliseconds, so it can be asked while a box is being dragged (chapter 06).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from minidet.assign import (
    IGNORED,
    STRATEGIES,
    Assigner,
    Assignment,
    DensePredictions,
)
from minidet.detectors import Detector
from minidet.draw.assignment import AssignmentPanel, Marks
from minidet.errors import DataError, MinidetError
from minidet.explore.dials import Dial, dials_of, turn
from minidet.explore.pictures import read_pictures, tidy_boxes
from minidet.explore.steps import Case, Explanation, slot_numbers, steps_of

MOST_OBJECTS = 300
MOST_PANELS = 4
SIZES = (("small", "under 32²", 32**2), ("medium", "32² to 96²", 96**2), ("large", "over 96²", np.inf))  # COCO's


@dataclass(frozen=True)
class Choice:
    """What one panel shows.

    Attributes:
        model: which of the models.
        rule: which of the strategies.
        dials: positions of that strategy's dials.
        step: which of its steps.
        hidden: levels that are not drawn.
        moved: the name of the dial that was turned last.
    """

    model: int
    rule: int
    dials: tuple[int, ...]
    step: int
    hidden: tuple[int, ...] = ()
    moved: str | None = None


@dataclass(frozen=True)
class State:
    """Everything that a person can set.

    Attributes:
        image: which of the pictures.
        boxes: [G, 4] float32 xyxy in pixels of the picture.
        labels: [G] int64.
        panels: from left to right.
        selected: row of the object that is looked at closely, or -1 for none.
        hover: panel and slot whose numbers are asked for, or None.
    """

    image: int
    boxes: np.ndarray
    labels: np.ndarray
    panels: tuple[Choice, ...]
    selected: int = -1
    hover: tuple[int, int] | None = None


@dataclass(frozen=True)
class Ground:
    """Where the slots of one model are on one picture.

    Attributes:
        places: [A, 2] float32, where each is drawn, in pixels of the picture: the centre of its cell, and for several
            anchors in a cell around it.
        cells: [A] float32, the side of the room that it has there.
        levels: [A] int64.
        strides: of each level, in pixels of the network's input.
        boxes: [A, 4] float32 xyxy, the predicted boxes in pixels of the picture.
    """

    places: np.ndarray
    cells: np.ndarray
    levels: np.ndarray
    strides: tuple[int, ...]
    boxes: np.ndarray


@dataclass(frozen=True)
class PanelNumbers:
    """What one panel shows, in numbers.

    Attributes:
        rule: the strategy, with its dials as they stand.
        assignment: what it decided, with its trace.
        marks: what is drawn, of all levels.
        explanation: the step in words.
        per_level: [G, L] positive slots of each object on each level.
        ignored: number of ignored slots.
        conflicts: number of slots that several objects asked for.
        unowned: rows of the objects without any positive slot.
        hover: text, columns and rows about the slot that was asked for, or None.
    """

    rule: Assigner
    assignment: Assignment
    marks: Marks
    explanation: Explanation
    per_level: np.ndarray
    ignored: int
    conflicts: int
    unowned: tuple[int, ...]
    hover: tuple[str, list[str], list[list[Any]]] | None

    @property
    def positives(self) -> int:
        return int(self.per_level.sum())


class AssignmentBench:
    """Models, pictures and strategies, and the numbers of any state of them.

    Attributes:
        models: names and detectors; all with the same classes.
        pictures: with the objects that they come with.
        rules: the strategies, with the parameters that they start with.
        dials: for each strategy its dials.
    """

    def __init__(self, models: Any, data: Any, rules: Sequence[Assigner] | None = None):
        self.models = read_models(models)
        self.pictures = read_pictures(data)
        self.rules = tuple(rules) if rules is not None else usual_rules(self.models[0][1])
        if not self.rules:
            raise MinidetError("there is no strategy to show; leave `rules` out to have all of them")
        self.dials: tuple[tuple[Dial, ...], ...] = tuple(map(dials_of, self.rules))
        classes = {model.num_classes for _, model in self.models}
        if len(classes) > 1:
            raise MinidetError(f"the models have {sorted(classes)} classes; models side by side have the same ones")
        self.num_classes = classes.pop()
        for index, picture in enumerate(self.pictures):
            lowest, highest = (int(picture.labels.min()), int(picture.labels.max())) if len(picture.labels) else (0, 0)
            if not 0 <= lowest <= highest < self.num_classes:
                raise DataError(
                    f"picture {index}: labels go from 0 to {self.num_classes - 1}, these from {lowest} to {highest}"
                )
        names = next((model.class_names for _, model in self.models if model.class_names), None)
        self.class_names = list(names) if names else [f"class {label}" for label in range(self.num_classes)]
        self._dense: dict[tuple[int, int], DensePredictions] = {}
        self._ground: dict[tuple[int, int], Ground] = {}
        self._latest: dict[int, tuple[tuple, Assigner, Assignment]] = {}

    def dense(self, model: int, image: int) -> DensePredictions:
        """What a model says about a picture. The network runs the first time; what it learns later is not seen."""
        if (model, image) not in self._dense:
            network = self.models[model][1]
            was_training = network.training
            network.eval()  # in training mode it would learn the statistics of this one picture
            try:
                with torch.no_grad():
                    found = network.dense([self.pictures[image].image])
            finally:
                network.train(was_training)
            self._dense[model, image] = _on_host(found)
        return self._dense[model, image]

    def ground(self, model: int, image: int) -> Ground:
        """Where the slots of a model are on a picture."""
        if (model, image) not in self._ground:
            dense, detector = self.dense(model, image), self.models[model][1]
            grid, n = dense.grid, dense.grid.anchors_per_cell
            _, [scale] = detector.network_input([self.pictures[image].image])
            per_pixel = np.asarray(scale, np.float32)
            columns = int(np.ceil(np.sqrt(n)))
            anchor = np.arange(len(grid)) % n
            within = np.stack([anchor % columns, anchor // columns], axis=1) + 0.5
            within /= [columns, int(np.ceil(n / columns))]
            places = (grid.cells.numpy() + within) * grid.strides.numpy()[:, None] / per_pixel
            self._ground[model, image] = Ground(
                places.astype(np.float32),
                (grid.strides.numpy() / per_pixel.max() / columns).astype(np.float32),
                grid.levels.numpy(),
                tuple(int(strides[0]) for strides in grid.strides.split(grid.level_sizes)),
                (dense.boxes[0].numpy() / np.tile(per_pixel, 2)).astype(np.float32),
            )
        return self._ground[model, image]

    def first_state(self, side_by_side: bool = False) -> State:
        """The first picture as it came, and its result: one panel, or one for each model or, of one model, strategy."""
        wide = len(self.models) if len(self.models) > 1 else len(self.rules)
        if side_by_side:
            many = len(self.models) > 1
            panels = [self.first_choice(*((i, 0) if many else (0, i))) for i in range(min(wide, MOST_PANELS))]
        else:
            panels = [self.first_choice(len(self.models) - 1)]  # of stages of training the last
        first = self.pictures[0]
        return State(0, first.boxes.numpy(), first.labels.numpy(), tuple(panels))

    def first_choice(self, model: int = 0, rule: int = 0) -> Choice:
        """A panel with the result of a strategy as it was given."""
        dials = tuple(dial.values.index(getattr(self.rules[rule], dial.name)) for dial in self.dials[rule])
        return Choice(model, rule, dials, len(steps_of(self.rules[rule])) - 1)

    def checked(self, state: State) -> State:
        """The state with everything in its range: boxes inside the picture and at least a pixel wide and high.

        Raises:
            MinidetError: something cannot be put right: too many objects, a model, picture or label that is not there.
        """
        if not 0 <= state.image < len(self.pictures):
            raise MinidetError(f"there is no picture {state.image}; there are {len(self.pictures)}")
        if not 1 <= len(state.panels) <= MOST_PANELS:
            raise MinidetError(f"there are 1 to {MOST_PANELS} panels side by side, not {len(state.panels)}")
        if len(state.boxes) != len(state.labels):
            raise MinidetError(f"{len(state.boxes)} boxes, but {len(state.labels)} labels")
        if len(state.boxes) > MOST_OBJECTS:
            raise MinidetError(f"a picture has at most {MOST_OBJECTS} objects here, not {len(state.boxes)}")
        if len(state.labels) and not 0 <= state.labels.min() <= state.labels.max() < self.num_classes:
            raise MinidetError(f"labels go from 0 to {self.num_classes - 1}, these to {state.labels.max()}")
        for choice in state.panels:
            if not (0 <= choice.model < len(self.models) and 0 <= choice.rule < len(self.rules)):
                raise MinidetError(f"there is no model {choice.model} or no strategy {choice.rule}")
            if not 0 <= choice.step < len(steps_of(self.rules[choice.rule])):
                raise MinidetError(f"{type(self.rules[choice.rule]).__name__} has no step {choice.step}")
        boxes = tidy_boxes(state.boxes, tuple(self.pictures[state.image].image.shape[-2:]))
        selected = state.selected if 0 <= state.selected < len(boxes) else -1
        return State(state.image, boxes, state.labels, state.panels, selected, state.hover)

    def numbers(self, state: State) -> list[PanelNumbers]:
        """What every panel of a state shows; `state` is one that `checked` gave."""
        return [self._panel(state, index) for index in range(len(state.panels))]

    def _panel(self, state: State, index: int) -> PanelNumbers:
        choice = state.panels[index]
        rule, assignment = self._assigned(state, index)
        names = [f"{row + 1} {self.class_names[label]}" for row, label in enumerate(state.labels.tolist())]
        selected = state.selected if state.selected >= 0 else 0 if names else None
        case = Case(rule, self.dense(choice.model, state.image), assignment, names, selected)
        _, step = steps_of(rule)[choice.step]
        marks, explanation = step(case)

        matched, levels = case.matched_gt, case.levels
        positive = np.flatnonzero(matched >= 0)
        count = len(case.predictions.grid.level_shapes)
        per_level = np.bincount(matched[positive] * count + levels[positive], minlength=len(names) * count)
        per_level = per_level.reshape(len(names), count)
        hover = None
        if state.hover is not None and state.hover[0] == index and 0 <= state.hover[1] < len(matched):
            hover = slot_numbers(case, state.hover[1])
        return PanelNumbers(
            rule,
            assignment,
            marks,
            explanation,
            per_level,
            int(np.count_nonzero(matched == IGNORED)),
            len(case.conflicts),
            tuple(np.flatnonzero(per_level.sum(axis=1) == 0).tolist()),
            hover,
        )

    def _assigned(self, state: State, index: int) -> tuple[Assigner, Assignment]:
        """What the strategy of a panel decides; not asked again where only step, level or slot looked at changed."""
        choice = state.panels[index]
        key = (state.image, choice.model, choice.rule, choice.dials, choice.moved)
        key += (state.boxes.tobytes(), state.labels.tobytes())
        if index not in self._latest or self._latest[index][0] != key:
            rule = turn(self.rules[choice.rule], self.dials[choice.rule], choice.dials, choice.moved)
            detector, picture = self.models[choice.model][1], self.pictures[state.image]
            target = {"boxes": torch.from_numpy(state.boxes), "labels": torch.from_numpy(state.labels)}
            with torch.no_grad(), one_thread():
                # The detector itself brings the boxes to the size of its input.
                gt = detector.ground_truth([picture.image], [target])
                gt = [{"boxes": gt.boxes_of(0).cpu(), "labels": gt.labels_of(0).cpu()}]
                assignment = rule(self.dense(choice.model, state.image), gt, trace=True)
            self._latest[index] = (key, rule, assignment)
        return self._latest[index][1:]

    def drawn(self, state: State, numbers: Sequence[PanelNumbers]) -> list[AssignmentPanel]:
        """The panels as `draw_assignment` takes them."""
        panels = []
        for choice, panel in zip(state.panels, numbers, strict=True):
            ground = self.ground(choice.model, state.image)
            shown = ~np.isin(ground.levels[panel.marks.slot], choice.hidden)
            title = type(panel.rule).__name__
            if len(self.models) > 1:
                title = f"{self.models[choice.model][0]}: {title}"
            steps = steps_of(panel.rule)
            caption = in_words(panel)
            if choice.step < len(steps) - 1:
                caption = f"Step {choice.step + 1} of {len(steps)}: {steps[choice.step][0]}"
            panels.append(
                AssignmentPanel(
                    title,
                    caption,
                    ground.places,
                    ground.cells,
                    ground.levels,
                    panel.marks.where(shown),
                    panel.unowned,
                    ground.strides,
                )
            )
        return panels

    def alt(self, state: State, numbers: Sequence[PanelNumbers]) -> str:
        """The state in words, for those who cannot see it."""
        texts = [f"Assignment explorer: a picture with {_count(len(state.labels), 'object')}."]
        for choice, panel in zip(state.panels, numbers, strict=True):
            steps = steps_of(panel.rule)
            step = f", step {choice.step + 1}, {steps[choice.step][0]}" if choice.step < len(steps) - 1 else ""
            strides = self.ground(choice.model, state.image).strides
            name = f"{self.models[choice.model][0]}, {type(panel.rule).__name__}"
            texts.append(f"{name}{step}: {in_words(panel, strides)}")
        return " ".join(texts)


@contextmanager
def one_thread() -> Iterator[None]:
    """The tensors of one picture are so small that threads of PyTorch wait for each other, and for a busy browser."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_words(panel: PanelNumbers, strides: Sequence[int] = ()) -> str:
    """What came out, in one line; with `strides` also how many slots each level has."""
    positives = _count(panel.positives, "positive slot")
    if strides:
        counts = zip(panel.per_level.sum(axis=0), strides, strict=True)
        positives += f" ({', '.join(f'{count} on stride {stride}' for count, stride in counts)})"
    text = f"{positives}, {panel.ignored} ignored, {_count(panel.conflicts, 'conflict')}."
    if panel.unowned:
        rows = [str(row + 1) for row in panel.unowned]
        listed = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        text += f" Without any slot: {'object' if len(rows) == 1 else 'objects'} {listed}!"
    return text


def sizes_of(boxes: np.ndarray, counts: np.ndarray) -> list[dict[str, Any]]:
    """By COCO's three sizes: how many objects there are, how many slots they have, and how many have none.

    Args:
        boxes: [G, 4] float xyxy in pixels of the picture.
        counts: [G] int, positive slots of each object.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    groups, low = [], 0.0
    for name, words, high in SIZES:
        own = (low <= area) & (area < high)
        low = high
        groups.append(
            {
                "name": name,
                "words": words,
                "objects": int(own.sum()),
                "positives": int(counts[own].sum()),
                "without": int((counts[own] == 0).sum()),
            }
        )
    return groups


def usual_rules(model: Detector) -> tuple[Assigner, ...]:
    """All strategies: the model's own first (a selector's after it), then the others as they are by default."""
    own = model.assigners
    return (*own, *(kind() for kind in STRATEGIES if kind not in map(type, own)))


def read_models(models: Any) -> tuple[tuple[str, Detector], ...]:
    """One detector, or a list of (name, detector), as a list of the latter.

    Raises:
        MinidetError: it is neither.
    """
    if isinstance(models, Detector):
        return ((models.name, models),)
    listed = tuple(models) if isinstance(models, Sequence) else ()
    if not listed or not all(
        isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[1], Detector) for entry in listed
    ):
        raise MinidetError("models: give one detector, or a list of (name, detector), such as stages of a training")
    return tuple((str(name), model) for name, model in listed)


def _on_host(dense: DensePredictions) -> DensePredictions:
    """The same numbers where the assigner runs fastest for one picture, and numpy can read them."""
    if dense.boxes.device.type == "cpu":
        return dense
    grid = dense.grid
    anchors = None if grid.anchors is None else grid.anchors.cpu()
    here = type(grid)(grid.cells.cpu(), grid.strides.cpu(), grid.level_shapes, anchors, grid.anchors_per_cell)
    return dense.map(here, torch.Tensor.cpu)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
