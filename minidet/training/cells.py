"""What ablations compare, as data: cells that differ in single settings of one detector or of its training.

Source: YOLOF, sections 3 and 5.2, arXiv 2103.09460; YOLOX, section 2, arXiv 2107.08430; chapters 05, 08 to 12.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from minidet.assign import OTA, POTO, MaxIoU, SimOTA
from minidet.data.augment import Augmentation
from minidet.detectors.roadmap import Anchors, Published, roadmap


@dataclass(frozen=True)
class Cell:
    """One setting of an ablation."""

    name: str  # of its folder
    words: str  # what is special about it, for table and plot
    changes: dict[str, Any] = field(default_factory=dict)  # fields of the model's configuration, as for create_model
    published_ap: float | None = None  # what the paper reports, in percent, on its own data
    recipe: dict[str, Any] = field(default_factory=dict)  # fields of the recipe that differ
    published: Published | None = None  # what else it reports, of its own network


@dataclass(frozen=True)
class Ablation:
    """The cells that answer one question."""

    question: str
    cells: tuple[Cell, ...]
    source: str = ""  # of the published figures
    steps: bool = False  # each cell has the changes of those before it, so it is compared with the one above


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


def yolox_ablations(input_hw: tuple[int, int], anchors: Anchors | None = None) -> dict[str, Ablation]:
    """What the YOLOX paper compares; see `minidet.detectors.roadmap.roadmap` for the arguments.

    The recipe that these cells change is that of the lowest rung: flips and colour jitter, no mosaic. A cell of one
    name is the same in every comparison, so it is trained once.

    Source: YOLOX, Tables 1, 2 and 5; sections 2.1 "End-to-end YOLO" and "SimOTA" for the last two.
    """
    rungs = roadmap(input_hw, anchors)
    cells = {
        name: Cell(
            name,
            rung.words,
            rung.changes,
            rung.published.ap,
            recipe={"augmentation": None} if rung.strong_augmentation else {},
            published=rung.published,
        )
        for name, rung in rungs.items()
    }

    def without_nms(name: str, words: str, ap: float) -> Cell:
        return Cell(f"{name}-nms-free", words, {**rungs[name].changes, "nms_free": True}, ap)

    def augmented(name: str, words: str, ap: float | None, **changes: Any) -> Cell:
        return Cell(name, words, rungs["simota"].changes, ap, recipe={"augmentation": Augmentation(**changes)})

    def selecting(name: str, words: str, **changes: Any) -> Cell:
        return Cell(name, words, {**rungs["nms-free"].changes, **changes}, recipe={"augmentation": None})

    def renamed(name: str, words: str, ap: float | None = None) -> Cell:
        return dataclasses.replace(cells[name], words=words, published_ap=ap)

    return {
        "roadmap": Ablation(
            question="From YOLOv3 to YOLOX: what does each step add?",
            cells=tuple(cells.values()),
            source="The paper's: Table 2 of arXiv 2107.08430, Darknet-53 on COCO val2017, 640 x 640, 300 epochs.",
            steps=True,
        ),
        "heads": Ablation(
            question="Coupled or decoupled, with NMS and without?",
            cells=(
                renamed("baseline", "coupled", 38.5),
                renamed("decoupled-head", "decoupled", 39.6),
                without_nms("baseline", "coupled, NMS-free", 34.3),
                without_nms("decoupled-head", "decoupled, NMS-free", 38.8),
            ),
            source="The paper's: Table 1 of arXiv 2107.08430, Darknet-53 on COCO val2017.",
        ),
        "augmentation": Ablation(
            question="How strong should augmentation be?",
            cells=(
                augmented("mosaic-gentle", "mosaic 0.5 to 1.5, no MixUp", 25.3, mosaic_scale=(0.5, 1.5), mixup_prob=0),
                augmented("mosaic", "mosaic 0.1 to 2, no MixUp", None, mixup_prob=0),
                augmented("mosaic-mixup", "mosaic 0.1 to 2, MixUp", 24.0),
            ),
            source="The paper's: Table 5 of arXiv 2107.08430, nano on COCO val2017. Its l, second and third row: 48.6, "
            "49.5.",
        ),
        "assignment": Ablation(
            question="Who learns what: one cell, nine, SimOTA or OTA?",
            cells=(
                renamed("anchor-free", "the centre's cell", 42.9),
                renamed("multi-positives", "3 x 3 cells", 45.0),
                renamed("simota", "SimOTA", 47.3),
                Cell("ota", "OTA (Sinkhorn)", {"assigner": OTA()}, recipe={"augmentation": None}),
            ),
            source="The paper's: Table 2 of arXiv 2107.08430, Darknet-53 on COCO val2017; it gives no AP for OTA.",
        ),
        "nms-free": Ablation(
            question="What lets a detector do without NMS?",
            cells=(
                renamed("simota", "with NMS", 47.3),
                renamed("nms-free", "selector, one-to-one, stop-gradient", 46.5),
                selecting("nms-free-no-stop", "without stop-gradient", stop_gradient=False),
                selecting("nms-free-one-to-many", "selector learns SimOTA's slots", selector_assigner=SimOTA()),
                Cell(
                    "one-to-one",
                    "no selector, all one-to-one",
                    {"assigner": POTO(), "nms_threshold": None},
                    recipe={"augmentation": None},
                ),
            ),
            source="The paper's: Table 2 of arXiv 2107.08430, Darknet-53 on COCO val2017.",
        ),
    }


FAMILIES: dict[str, tuple[str, ...]] = {
    "yolof": tuple(YOLOF_ABLATIONS),
    "yolox": tuple(yolox_ablations((640, 640))),
}
