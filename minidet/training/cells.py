"""What ablations compare, as data: cells that differ in single settings of one detector.

Source: YOLOF, sections 3 and 5.2, arXiv 2103.09460; chapters 05 and 12.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minidet.assign import MaxIoU


@dataclass(frozen=True)
class Cell:
    """One setting of an ablation."""

    name: str  # of its folder
    words: str  # what is special about it, for table and plot
    changes: dict[str, Any] = field(default_factory=dict)  # fields of the model's configuration, as for create_model
    published_ap: float | None = None  # what the paper reports, in percent, on its own data


@dataclass(frozen=True)
class Ablation:
    """The cells that answer one question."""

    question: str
    cells: tuple[Cell, ...]
    source: str = ""  # of the published figures


# In "components" all but the two parts stays YOLOF's: head, anchors, and the limit of 32 pixels on how far a box's
# centre may lie from its anchor's, which max-IoU's positives at the rim of a large object cannot always meet.
# In "encoders" it is RetinaNet's head and rule, without that limit, which is too short for P7. Anchors are those of the
# model, all on one level or shared out over five.
_RETINANET: dict[str, Any] = {
    "class_convs": 4,
    "box_convs": 4,
    "implicit_objectness": False,
    "center_limit": None,
    "assigner": MaxIoU(),
}

YOLOF_ABLATIONS: dict[str, Ablation] = {
    "components": Ablation(
        question="What do the dilated encoder and uniform matching add?",
        cells=(
            Cell("baseline", "projector and max-IoU", {"dilations": (), "assigner": MaxIoU()}),
            Cell("dilated", "+ dilated encoder", {"assigner": MaxIoU()}),
            Cell("uniform", "+ uniform matching", {"dilations": ()}),
            Cell("both", "+ both (YOLOF)"),
        ),
    ),
    "encoders": Ablation(
        question="One level or many, fused or not?",
        cells=(
            Cell("mimo", "MiMo: C3, C4, C5 to P3 ... P7", {"encoder": "mimo", **_RETINANET}, 35.9),
            Cell("simo", "SiMo: C5 to P3 ... P7", {"encoder": "simo", **_RETINANET}, 35.0),
            Cell("miso", "MiSo: C3, C4, C5 to one level", {"encoder": "miso", **_RETINANET}, 23.9),
            Cell("siso", "SiSo: C5 to one level", {"encoder": "siso", **_RETINANET}, 23.7),
        ),
        source="The paper's: AP on COCO with RetinaNet-R50, as public summaries of arXiv 2103.09460 quote it.",
    ),
}

FAMILIES: dict[str, dict[str, Ablation]] = {"yolof": YOLOF_ABLATIONS}
