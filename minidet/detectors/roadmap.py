"""The road map of the YOLOX paper as settings: from YOLOv3 to a detector without NMS, one change at a time.

    rungs = roadmap((640, 640))
    model = create_model("yolox-darknet53", **rungs["multi-positives"].changes)

Each rung has all changes of those before it. Any YOLOX can climb: yolox-darknet53 is the paper's, yolox-nano trains on
a laptop, and yolox-darknet53 with `width=0.25` and `depth=0.33` is the paper's network at the size of a nano.

Source: YOLOX, section 2.1 and Table 2; chapters 08 to 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minidet.assign import BestAnchor, CentreSampling, SimOTA

Anchors = tuple[tuple[float, float], ...]

# Width and height in pixels of an input of 416 x 416, found by k-means on COCO: YOLOv3, section 2.3.
COCO_ANCHORS: Anchors = (
    *((10, 13), (16, 30), (33, 23)),
    *((30, 61), (62, 45), (59, 119)),
    *((116, 90), (156, 198), (373, 326)),
)
COCO_SIDE = 416
# FCOS's ranges, half longest sides of up to 8 strides, are for pictures whose shorter side is 800.
FCOS_LEVEL_LIMIT, FCOS_SIDE = 8.0, 800


@dataclass(frozen=True)
class Published:
    """What the paper says of a network: AP on COCO val2017 in percent, millions of parameters, GFLOPs at 640 x 640, and
    milliseconds on a V100 in fp16 for one image, without post-processing."""

    ap: float
    parameters: float
    gflops: float
    latency_ms: float


@dataclass(frozen=True)
class Rung:
    """One step of the road map.

    Attributes:
        words: what is new.
        changes: fields of `YOLOXConfig`, all that differ from the plain one, for `create_model`.
        strong_augmentation: trained with the augmentation that the model was published with (mosaic, MixUp); before
            that rung only with flips and colour jitter.
        published: the paper's figures, for yolox-darknet53.
    """

    words: str
    published: Published
    changes: dict[str, Any] = field(default_factory=dict)
    strong_augmentation: bool = True


def roadmap(input_hw: tuple[int, int], anchors: Anchors | None = None) -> dict[str, Rung]:
    """The rungs by name, lowest first.

    Args:
        input_hw: (height, width) of the network input: which objects are large for a level depends on it.
        anchors: width and height in pixels, smallest first, as `minidet.data.anchors.kmeans_anchors` finds them on the
            data at hand. None: COCO's, scaled to the input.
    """
    scale = min(input_hw) / COCO_SIDE
    anchors = anchors or tuple((width * scale, height * scale) for width, height in COCO_ANCHORS)
    limit = FCOS_LEVEL_LIMIT * min(input_hw) / FCOS_SIDE
    of_yolov3 = {"anchors": anchors, "assigner": BestAnchor()}
    one_cell = {"assigner": CentreSampling(level_limit=limit)}
    three_by_three = {"assigner": CentreSampling(radius=1.5, level_limit=limit)}
    return {
        "baseline": Rung(
            "YOLOv3: coupled head, anchors",
            Published(38.5, 63.00, 157.3, 10.5),
            {"head": "coupled", **of_yolov3},
            strong_augmentation=False,
        ),
        "decoupled-head": Rung(
            "+ decoupled head", Published(39.6, 63.86, 186.0, 11.6), of_yolov3, strong_augmentation=False
        ),
        "strong-augmentation": Rung("+ strong augmentation", Published(42.0, 63.86, 186.0, 11.6), of_yolov3),
        "anchor-free": Rung("+ anchor-free", Published(42.9, 63.72, 185.3, 11.1), one_cell),
        "multi-positives": Rung("+ multi positives (3 x 3)", Published(45.0, 63.72, 185.3, 11.1), three_by_three),
        "simota": Rung("+ SimOTA", Published(47.3, 63.72, 185.3, 11.1), {"assigner": SimOTA()}),
        "nms-free": Rung("+ NMS-free", Published(46.5, 67.27, 205.1, 13.5), {"assigner": SimOTA(), "nms_free": True}),
    }
