"""What the head explorer computes: the inside of a decoupled and of a coupled head at every stored stage of training.

Source: YOLOX, section 2.1; chapter 08.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minidet.draw.heads import HeadCurve, HeadMap, HeadRow, HeadView
from minidet.errors import MinidetError
from minidet.evaluation.task_gradients import TASKS, HeadInside, look_into_head
from minidet.explore.pictures import Picture
from minidet.explore.stages import Stage
from minidet.layers.pyramid import LEVELS


class HeadLab:
    """The inside of heads on a few pictures, at every stage; what was computed once is kept.

    Args:
        stages: of one or more heads, each at the same epochs.
        pictures: all of one size, so that they go through a network together.
    """

    def __init__(self, stages: Sequence[Stage], pictures: Sequence[Picture]):
        self.pictures = list(pictures)
        self.heads = list(dict.fromkeys(stage.head for stage in stages))
        self.epochs = sorted({stage.epoch for stage in stages})
        self._stages = {(stage.head, stage.epoch): stage for stage in stages}
        missing = [(head, epoch) for head in self.heads for epoch in self.epochs if (head, epoch) not in self._stages]
        if missing or not self.heads:
            raise MinidetError(
                f"stages: there is none of {missing[0][0]} after {missing[0][1]} epochs; give all heads the same epochs"
                if missing
                else "stages: there are none; benchmarks/training_stages.py makes them"
            )
        self._inside: dict[tuple[str, int], HeadInside] = {}
        self._class_names: Sequence[str] = ()
        model = self._stages[self.heads[0], self.epochs[0]].load()
        x, scales = model.network_input([picture.image for picture in self.pictures])
        self.x = x.round().clamp(0, 255).to(torch.uint8)
        self._scales = scales

    def inside(self, head: str, epoch: int) -> HeadInside:
        """What `look_into_head` says of all pictures at a stage."""
        if (head, epoch) not in self._inside:
            if (head, epoch) not in self._stages:
                raise MinidetError(f"there is no stage of {head} after {epoch} epochs; there are {self.epochs}")
            images, targets = [p.image for p in self.pictures], [p.target for p in self.pictures]
            self._inside[head, epoch] = look_into_head(self._stages[head, epoch].load(), images, targets)
        return self._inside[head, epoch]

    def shape_of(self, level: str) -> tuple[int, int]:
        """Rows and columns of a level."""
        return tuple(self.inside(self.heads[0], self.epochs[0]).class_features[level].shape[-2:])

    def cell_at(self, level: str, point: tuple[float, float]) -> tuple[int, int]:
        """Row and column of the cell that holds a point (x, y) of the network input, or of the nearest."""
        (rows, columns), (height, width) = self.shape_of(level), self.x.shape[-2:]
        row, column = int(point[1] * rows / height), int(point[0] * columns / width)
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)

    def view(
        self, picture: int, level: str, epoch: int, tasks: tuple[str, str], point: tuple[float, float]
    ) -> HeadView:
        """Everything that the picture shows.

        Args:
            picture: which one, from 0.
            level: "p3", "p4" or "p5".
            epoch: one of `epochs`.
            tasks: two of "class", "box" and "objectness".
            point: (x, y) in pixels of the network input; its cell is told about in numbers.

        Raises:
            MinidetError: there is no such picture, level, stage or task.
        """
        if not 0 <= picture < len(self.pictures) or level not in LEVELS:
            raise MinidetError(f"there is no picture {picture} or no level {level}")
        if tasks[0] == tasks[1] or not set(tasks) <= set(TASKS):
            raise MinidetError(f"tasks are two different ones of {', '.join(TASKS)}, not {' and '.join(tasks)}")
        cell = self.cell_at(level, point)
        scale_x, scale_y = self._scales[picture]
        return HeadView(
            image=self.x[picture].permute(1, 2, 0).numpy(),
            boxes=(self.pictures[picture].boxes * torch.tensor([scale_x, scale_y, scale_x, scale_y])).numpy(),
            cell=cell,
            rows=[self._row(head, epoch, picture, level, tasks, cell) for head in self.heads],
            tasks=tasks,
            level=level,
            epoch=epoch,
            curves=[
                HeadCurve(
                    f"{head} head", self.epochs, [self.inside(head, each).cosine(level, *tasks) for each in self.epochs]
                )
                for head in self.heads
            ],
        )

    def _row(
        self, head: str, epoch: int, picture: int, level: str, tasks: tuple[str, str], cell: tuple[int, int]
    ) -> HeadRow:
        inside, stage = self.inside(head, epoch), self._stages[head, epoch]
        class_side, box_side = inside.class_features[level][picture], inside.box_features[level][picture]
        shared = torch.equal(class_side, box_side)
        scores, cosines = inside.scores(level)[picture], inside.cosines(level, *tasks)[picture]
        maps = [
            HeadMap("features that both read" if shared else "features that class reads", _rms(class_side), "strength"),
            HeadMap("(the same, for the box)" if shared else "features that box reads", _rms(box_side), "strength"),
            HeadMap(f"score, highest {float(scores.max()):.2f}", scores.numpy(), "score"),
            HeadMap(f"cosine of {tasks[0]} and {tasks[1]}", cosines.numpy(), "cosine"),
        ]
        pulls = [float(inside.strength(level, task)[picture][cell]) for task in tasks]
        angle = float(cosines[cell])
        verdict = "hardly any of one" if not np.isfinite(angle) else f"cosine {angle:+.2f}"
        share = inside.fighting(level, *tasks)
        fights = "" if not np.isfinite(share) else f" On all pictures they fight in {share:.0%} of the cells."
        note = (
            f"Row {cell[0]}, column {cell[1]}: gradient of {tasks[0]} {pulls[0]:.2g}, of {tasks[1]} {pulls[1]:.2g}, "
            f"{verdict}; score {float(scores[cell]):.2f}.{fights}"
        )
        return HeadRow(f"{head.capitalize()} head; AP50 on the validation pictures {stage.ap50:.2f}", maps, note)


def _rms(features: Tensor) -> np.ndarray:
    """[H, W] root of the mean square over the channels of [D, H, W]."""
    return features.square().mean(dim=0).sqrt().numpy()
