"""The detection explorer: turn the thresholds, and see boxes vanish and the curve's point move (chapter 00)."""

from __future__ import annotations

from typing import Any

from minidet.detectors import Detector
from minidet.draw import Drawing
from minidet.draw.look import Look
from minidet.draw.thresholds import draw_thresholds
from minidet.explore.figure_explorer import Control, FigureExplorer
from minidet.explore.pictures import read_pictures
from minidet.explore.thresholds import ThresholdLab

ALL = -1  # in place of a label


def explore_detections(model: Detector, pictures: Any) -> DetectionExplorer:
    """A `DetectionExplorer`: as the last line of a cell it shows itself."""
    return DetectionExplorer(model, pictures)


class DetectionExplorer(FigureExplorer):
    """Score threshold, NMS threshold, class-aware or not; what they do to a picture, and to precision and recall.

    Args:
        model: any detector. It is not changed.
        pictures: one or several, in the forms of `minidet.explore.pictures.read_pictures`; precision and
            recall are those of all of them.

    Values (`change`): picture (from 0), score, nms, class_aware, label (-1: all classes).

    Raises:
        DataError, MinidetError: the pictures are not what they should be.

    Chapter 00.
    """

    words = "Detection explorer"

    def __init__(self, model: Detector, pictures: Any) -> None:
        self.lab = ThresholdLab(model, read_pictures(pictures))
        super().__init__({"picture": 0, "score": 0.3, "nms": 0.65, "class_aware": True, "label": ALL})

    def controls(self, _values: dict[str, Any]) -> list[Control]:
        pictures = tuple((number, f"{number + 1}") for number in range(len(self.lab.pictures)))
        classes = ((ALL, "all classes"), *enumerate(self.lab.class_names))
        return [
            Control("picture", "Picture", "choice", choices=pictures),
            Control("score", "Score at least", "slider", low=0.01, high=1.0, step=0.01),
            Control("nms", "NMS: most overlap (IoU)", "slider", low=0.0, high=1.0, step=0.05),
            Control("class_aware", "boxes suppress only their own class", "switch"),
            Control("label", "Curve of", "choice", choices=classes),
        ]

    def draw(self, values: dict[str, Any], look: Look) -> Drawing:
        label = None if values["label"] == ALL else values["label"]
        view = self.lab.view(values["picture"], values["score"], values["nms"], not values["class_aware"], label)
        return draw_thresholds(view, look)
