"""YOLOX: anchor-free boxes, a decoupled head, SimOTA; and by single settings every step from YOLOv3 to it, and beyond.

With a coupled head, anchors and `BestAnchor()` the same class is the paper's YOLOv3 baseline; with a selector it needs
no NMS. `minidet.detectors.roadmap` names the steps.

Source: arXiv 2107.08430; chapters 08 to 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from minidet.assign import (
    IGNORED,
    POTO,
    Assigner,
    Assignment,
    DensePredictions,
    GroundTruth,
    SimOTA,
    Targets,
    labels_of,
    pad_targets,
)
from minidet.boxes import cxcywh_to_xyxy, nms
from minidet.detectors.detections import Detections, best_class_of_slots, suppress
from minidet.detectors.detector import MAX_LOG_SIZE, Detector, Prediction
from minidet.errors import MinidetError
from minidet.grid import Grid, cached_grid
from minidet.layers.darknet import CSPDarknet, Darknet53
from minidet.layers.heads import CoupledHead, DecoupledHead, HeadStyle, slots_first
from minidet.layers.pyramid import LEVELS, PAFPN, YOLOFPN
from minidet.losses import binary_cross_entropy, combine_logits, giou_loss, iou_loss, raw_box_targets

STRIDES = (8, 16, 32)
SELECTED = 100  # boxes of an image that a detector without NMS answers with, as for COCO's AP


@dataclass(frozen=True)
class YOLOXConfig:
    """One YOLOX. The defaults are those of the published code; `minidet.create_model` changes single fields."""

    num_classes: int = 80
    class_names: tuple[str, ...] | None = None
    backbone: str = "cspdarknet"  # or "darknet53"
    depth: float = 1.0  # multiplies the bottlenecks of a stage
    width: float = 1.0  # multiplies the channels
    depthwise: bool = False  # depthwise separable 3 x 3 convolutions (nano; cspdarknet and head)
    head: str = "decoupled"  # or "coupled", YOLOv3's: the start of the paper's Table 2
    anchors: tuple[tuple[float, float], ...] | None = None
    """None: one box a cell, from nothing. Or width and height of each anchor in pixels, smallest first, shared out
    evenly over the three levels: a cell then predicts one box for each of its anchors, as YOLOv3 does."""
    nms_free: bool = False  # a selector beside the box branch, trained one-to-one; the best 100 boxes are the answer
    stop_gradient: bool = True  # what the selector learns changes nothing else
    selector_assigner: Assigner = field(default_factory=POTO)  # which slots the selector learns to choose
    input_hw: tuple[int, int] = (640, 640)
    pixel_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # RGB, of 255; only the paper's "legacy" weights use it
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    assigner: Assigner = field(default_factory=SimOTA)
    box_loss: str = "iou"  # or "giou"
    box_weight: float = 5.0
    score_threshold: float = 0.001  # as for COCO's AP; raise it to look at pictures
    nms_threshold: float | None = 0.65  # of a detector with NMS; None suppresses nothing
    class_agnostic: bool = False  # True: boxes suppress each other whatever their classes
    max_detections: int | None = None  # None: as published, no limit; without NMS 100


class YOLOX(Detector):
    """A whole YOLOX. Build it with `minidet.create_model("yolox-s", num_classes=...)`."""

    def __init__(self, config: YOLOXConfig, name: str = "yolox"):
        super().__init__(config, name)
        if config.backbone == "cspdarknet":
            self.backbone = CSPDarknet(config.depth, config.width, config.depthwise)
            self.neck = PAFPN(self.backbone.channels, round(3 * config.depth), config.depthwise)
            activation = "silu"
        elif config.backbone == "darknet53":
            self.backbone = Darknet53(config.depth, config.width)
            self.neck, activation = YOLOFPN(self.backbone.channels), "leaky_relu"
        else:
            raise MinidetError(f"backbone {config.backbone!r} is not known; choose 'cspdarknet' or 'darknet53'")
        if config.box_loss not in ("iou", "giou"):
            raise MinidetError(f"box_loss {config.box_loss!r} is not known; choose 'iou' or 'giou'")
        if config.head not in ("decoupled", "coupled"):
            raise MinidetError(f"head {config.head!r} is not known; choose 'decoupled' or 'coupled'")
        self.anchors = None if config.anchors is None else share_anchors(config.anchors, len(STRIDES))
        style = HeadStyle(
            config.num_classes,
            int(256 * config.width),
            config.depthwise,
            activation,
            anchors_per_cell=1 if self.anchors is None else len(self.anchors[0]),
            selector=config.nms_free,
            stop_gradient=config.stop_gradient,
        )
        make_head = DecoupledHead if config.head == "decoupled" else CoupledHead
        self.head = make_head(self.neck.channels, style)
        if config.nms_free:
            self.nms_threshold = None
        if self.nms_threshold is None:
            self.max_detections = config.max_detections or SELECTED
        normalised = any(config.pixel_mean) or set(config.pixel_std) != {1.0}
        self.register_buffer(
            "pixel_mean", torch.tensor(config.pixel_mean).view(3, 1, 1) if normalised else None, persistent=False
        )
        self.register_buffer(
            "pixel_std", torch.tensor(config.pixel_std).view(3, 1, 1) if normalised else None, persistent=False
        )

    @property
    def assigners(self) -> tuple[Assigner, ...]:
        own = self.config.assigner
        return (own, self.config.selector_assigner) if self.config.nms_free else (own,)

    def features_of(self, x: Tensor) -> dict[str, Tensor]:
        if self.pixel_mean is not None:
            x = (x - self.pixel_mean) / self.pixel_std
        stages = self.backbone(x)
        return {**stages, **self.neck(stages)}

    def dense_of(self, x: Tensor) -> DensePredictions:
        features = self.features_of(x)
        levels = self.head([features[name] for name in LEVELS])
        shapes = tuple(tuple(maps[0].shape[-2:]) for maps in levels)
        grid = cached_grid(shapes, STRIDES, x.device, self.anchors, 0.5)

        def in_a_row(maps: tuple[Tensor, ...]) -> Tensor:  # L x [B, n * D, H, W] -> [B, A, D]
            if self.anchors is None:
                return torch.cat([m.flatten(2) for m in maps], dim=2).transpose(1, 2).float()
            return torch.cat([slots_first(m, grid.anchors_per_cell) for m in maps], dim=1)

        class_logits, raw_boxes, *single = (in_a_row(maps) for maps in zip(*levels, strict=True))
        boxes = decode(raw_boxes, grid)
        return DensePredictions(grid, raw_boxes, boxes, class_logits, *(logits[..., 0] for logits in single))

    def assign_of(self, predictions: DensePredictions, targets: Targets, trace: bool) -> Assignment:
        return self.config.assigner(predictions, targets, trace)

    def losses_of(self, predictions: DensePredictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        """The weighted terms, each a sum over the batch divided by the number of positive slots in it (at least 1)."""
        gt, pairs, owned = pad_targets(targets), assignment.box_pairs, assignment.owned
        positives = assignment.num_positives.clamp(min=1)

        def mean(terms: Tensor, exists: Tensor) -> Tensor:  # [P, ...], without rows that only fill up; per positive
            return terms.flatten(1).sum(dim=1).where(exists, 0).sum() / positives

        gt_boxes, boxes = gt.boxes[pairs.image, pairs.gt], predictions.boxes[pairs.image, pairs.slot]  # [P, 4]
        box_term = iou_loss if self.config.box_loss == "iou" else giou_loss

        # The class branch learns how well the slot's box fits, the objectness only whether there is an object.
        labels = gt.labels[owned.image, owned.gt]
        is_class = labels[:, None] == torch.arange(self.num_classes, device=labels.device)  # [P, C]
        class_targets = is_class * assignment.quality[owned.image, owned.slot, None]
        class_logits = predictions.class_logits[owned.image, owned.slot]
        object_terms = binary_cross_entropy(predictions.object_logits, assignment.positive)
        losses = {
            "loss_box": self.config.box_weight * mean(box_term(boxes, gt_boxes)[:, None], pairs.exists),
            "loss_objectness": object_terms.masked_fill(assignment.matched_gt == IGNORED, 0).sum() / positives,
            "loss_class": mean(binary_cross_entropy(class_logits, class_targets), owned.exists),
        }
        if self.use_l1:
            grid, raw = predictions.grid.at(pairs.slot), predictions.raw_boxes[pairs.image, pairs.slot]
            if grid.anchors is not None:  # the logit of an offset has no bounds, so the offsets are compared
                raw = torch.cat([raw[:, :2].sigmoid(), raw[:, 2:]], dim=1)
            wanted = raw_box_targets(gt_boxes, grid.cells, grid.strides, unit_sizes(grid))
            losses["loss_l1"] = mean((raw - wanted).abs(), pairs.exists)
        if self.config.nms_free:
            losses["loss_selector"] = self.selector_loss(predictions, gt)
        return losses

    def selector_loss(self, predictions: DensePredictions, gt: GroundTruth) -> Tensor:
        """Focal loss of the score that decides without NMS: class times objectness times selector.

        The selector's own rule says which one slot shall have this score for each object; everything else shall have 0.
        With `stop_gradient` class and objectness are constants here. The sum is divided by the number of chosen slots.

        Source: arXiv 2101.11782, section 3; YOLOX, section 2.1 "End-to-end YOLO".
        """
        chosen = self.config.selector_assigner(predictions.detach(), gt)
        logits = combine_logits(predictions.class_logits, predictions.object_logits[..., None])  # [B, A, C]
        if self.config.stop_gradient:
            logits = logits.detach()
        logits = combine_logits(logits, predictions.selector_logits[..., None])
        classes = labels_of(chosen.matched_gt, gt, self.num_classes)  # [B, A], num_classes where there is no object
        wanted = classes[..., None] == torch.arange(self.num_classes, device=classes.device)
        terms = sigmoid_focal_loss(logits, wanted.to(logits))
        ignored = (chosen.matched_gt == IGNORED)[..., None]
        return terms.masked_fill(ignored, 0).sum() / chosen.num_positives.clamp(min=1)

    def select(self, predictions: DensePredictions) -> Detections:
        """The detections of a batch: `postprocess` for all images together, or without NMS the best of each image."""
        found = best_class_of_slots(predictions, self.score_threshold)
        return suppress(found, self.nms_threshold, self.num_classes, self.class_agnostic, self.max_detections)


def share_anchors(anchors: tuple[tuple[float, float], ...], levels: int) -> tuple[tuple[tuple[float, float], ...], ...]:
    """The anchors of each level: each gets as many, the finest those that stand first.

    Raises:
        MinidetError: they cannot be shared evenly, one has no area, or they are not sorted by area.
    """
    if not anchors or len(anchors) % levels or not all(side > 0 for anchor in anchors for side in anchor):
        raise MinidetError(
            f"anchors are {anchors}; they are widths and heights in pixels, above 0, and {levels} levels need a "
            f"multiple of {levels} of them"
        )
    areas = [width * height for width, height in anchors]
    if areas != sorted(areas):
        raise MinidetError(
            f"anchors are {anchors}; they stand in the order of their areas, as the finest level comes first"
        )
    each = len(anchors) // levels
    sizes = tuple((float(width), float(height)) for width, height in anchors)
    return tuple(sizes[i : i + each] for i in range(0, len(sizes), each))


def unit_sizes(grid: Grid) -> Tensor:
    """What a raw size of 0 means: the anchor's width and height, and without anchors one stride; [A, 2] px."""
    return grid.strides[:, None].expand(-1, 2) if grid.anchors is None else grid.anchor_sizes


def decode(raw_boxes: Tensor, grid: Grid) -> Tensor:
    """From what the box predictor says to boxes in pixels.

    The centre counts from the corner of the cell, so a box centred in its cell has tx = ty = 0.5. With anchors, as in
    YOLOv3, a sigmoid holds the centre inside the cell. Sizes are exponentials, in strides or in sizes of the anchor,
    cut at 10,000 of these so that they stay finite.

    Args:
        raw_boxes: [B, A, 4] float32 (tx, ty, tw, th).
        grid: the A slots.

    Returns:
        [B, A, 4] float32 xyxy in pixels.

    Source: YOLOX, section 2.1 "Anchor-free"; YOLOv3, arXiv 1804.02767, section 2.1; chapter 09.
    """
    offsets = raw_boxes[..., :2] if grid.anchors is None else raw_boxes[..., :2].sigmoid()
    centers = (offsets + grid.cells) * grid.strides[:, None]
    sizes = raw_boxes[..., 2:].clamp(max=MAX_LOG_SIZE).exp() * unit_sizes(grid)
    return cxcywh_to_xyxy(torch.cat([centers, sizes], dim=-1))


def postprocess(
    boxes: Tensor,
    class_scores: Tensor,
    score_threshold: float,
    nms_threshold: float,
    class_agnostic: bool = False,
    max_detections: int | None = None,
) -> Prediction:
    """Detections of one image: the best class of each slot, those above the threshold, non-maximum suppression.

    Args:
        boxes: [A, 4] float xyxy.
        class_scores: [A, C] float, class probability times objectness.
        score_threshold: scores equal to it stay.
        nms_threshold: boxes that overlap a better one by more than this IoU go.
        class_agnostic: suppress across classes too.
        max_detections: keep at most so many.

    Returns:
        `boxes` [N, 4], `scores` [N] and `labels` [N] int64, by decreasing score.
    """
    scores, labels = class_scores.max(dim=1)
    kept = (scores >= score_threshold).nonzero().flatten()
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    order = nms(boxes, scores, None if class_agnostic else labels, nms_threshold)[:max_detections]
    return {"boxes": boxes[order], "scores": scores[order], "labels": labels[order]}
