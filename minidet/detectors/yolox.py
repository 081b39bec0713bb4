"""YOLOX: anchor-free boxes, a decoupled head, SimOTA; and by one setting the coupled head that it is compared with.

Source: arXiv 2107.08430; chapters 08 to 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minidet.assign import IGNORED, Assigner, Assignment, DensePredictions, SimOTA, Targets, pad_targets
from minidet.boxes import cxcywh_to_xyxy, nms
from minidet.detectors.detections import Detections, best_class_of_slots, suppress
from minidet.detectors.detector import MAX_LOG_SIZE, Detector, Prediction
from minidet.errors import MinidetError
from minidet.grid import Grid, cached_grid
from minidet.layers.darknet import CSPDarknet, Darknet53
from minidet.layers.heads import CoupledHead, DecoupledHead
from minidet.layers.pyramid import LEVELS, PAFPN, YOLOFPN
from minidet.losses import binary_cross_entropy, giou_loss, iou_loss, raw_box_targets

STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class YOLOXConfig:
    """One YOLOX. The defaults are those of the published code; `minidet.create_model` changes single fields."""

    num_classes: int = 80
    class_names: tuple[str, ...] | None = None
    backbone: str = "cspdarknet"  # or "darknet53"
    depth: float = 1.0  # multiplies the bottlenecks of a stage (cspdarknet)
    width: float = 1.0  # multiplies the channels (cspdarknet and head)
    depthwise: bool = False  # depthwise separable 3 x 3 convolutions (nano)
    head: str = "decoupled"  # or "coupled", YOLOv3's: the start of the paper's Table 2
    input_hw: tuple[int, int] = (640, 640)
    pixel_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # RGB, of 255; only the paper's "legacy" weights use it
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    assigner: Assigner = field(default_factory=SimOTA)
    box_loss: str = "iou"  # or "giou"
    box_weight: float = 5.0
    score_threshold: float = 0.001  # as for COCO's AP; raise it to look at pictures
    nms_threshold: float = 0.65
    class_agnostic: bool = False  # True: boxes suppress each other whatever their classes
    max_detections: int | None = None  # None: as published, no limit


class YOLOX(Detector):
    """A whole YOLOX. Build it with `minidet.create_model("yolox-s", num_classes=...)`."""

    def __init__(self, config: YOLOXConfig, name: str = "yolox"):
        super().__init__(config, name)
        if config.backbone == "cspdarknet":
            self.backbone = CSPDarknet(config.depth, config.width, config.depthwise)
            self.neck = PAFPN(self.backbone.channels, round(3 * config.depth), config.depthwise)
            activation = "silu"
        elif config.backbone == "darknet53":
            self.backbone, self.neck, activation = Darknet53(), YOLOFPN(), "leaky_relu"
        else:
            raise MinidetError(f"backbone {config.backbone!r} is not known; choose 'cspdarknet' or 'darknet53'")
        if config.box_loss not in ("iou", "giou"):
            raise MinidetError(f"box_loss {config.box_loss!r} is not known; choose 'iou' or 'giou'")
        if config.head == "decoupled":
            self.head: nn.Module = DecoupledHead(
                self.neck.channels, int(256 * config.width), config.num_classes, config.depthwise, activation
            )
        elif config.head == "coupled":
            self.head = CoupledHead(self.neck.channels, config.num_classes, config.depthwise, activation)
        else:
            raise MinidetError(f"head {config.head!r} is not known; choose 'decoupled' or 'coupled'")
        normalised = any(config.pixel_mean) or set(config.pixel_std) != {1.0}
        self.register_buffer(
            "pixel_mean", torch.tensor(config.pixel_mean).view(3, 1, 1) if normalised else None, persistent=False
        )
        self.register_buffer(
            "pixel_std", torch.tensor(config.pixel_std).view(3, 1, 1) if normalised else None, persistent=False
        )

    def features_of(self, x: Tensor) -> dict[str, Tensor]:
        if self.pixel_mean is not None:
            x = (x - self.pixel_mean) / self.pixel_std
        stages = self.backbone(x)
        return {**stages, **self.neck(stages)}

    def dense_of(self, x: Tensor) -> DensePredictions:
        features = self.features_of(x)
        levels = self.head([features[name] for name in LEVELS])
        shapes = tuple(tuple(boxes.shape[-2:]) for _, boxes, _ in levels)
        grid = cached_grid(shapes, STRIDES, x.device)

        def in_a_row(maps: list[Tensor]) -> Tensor:  # L x [B, n, H, W] -> [B, A, n]
            return torch.cat([m.flatten(2) for m in maps], dim=2).transpose(1, 2).float()

        class_logits, raw_boxes, object_logits = (in_a_row(list(maps)) for maps in zip(*levels, strict=True))
        return DensePredictions(grid, raw_boxes, decode(raw_boxes, grid), class_logits, object_logits[..., 0])

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
            cells, strides = predictions.grid.cells[pairs.slot], predictions.grid.strides[pairs.slot]
            wanted = raw_box_targets(gt_boxes, cells, strides)
            off = (predictions.raw_boxes[pairs.image, pairs.slot] - wanted).abs()
            losses["loss_l1"] = mean(off, pairs.exists)
        return losses

    def select(self, predictions: DensePredictions) -> Detections:
        """The detections of a batch: `postprocess` for all images together."""
        found = best_class_of_slots(predictions, self.score_threshold)
        return suppress(found, self.nms_threshold, self.num_classes, self.class_agnostic, self.max_detections)


def decode(raw_boxes: Tensor, grid: Grid) -> Tensor:
    """From what the box predictor says to boxes in pixels.

    The centre counts from the corner of the cell, so a box centred in its cell has tx = ty = 0.5. Sizes are
    exponentials, cut at 10,000 strides so that they stay finite.

    Args:
        raw_boxes: [B, A, 4] float32 (tx, ty, tw, th).
        grid: the A slots.

    Returns:
        [B, A, 4] float32 xyxy in pixels.

    Source: YOLOX, section 2.1 "Anchor-free"; chapter 09.
    """
    centers = (raw_boxes[..., :2] + grid.cells) * grid.strides[:, None]
    sizes = raw_boxes[..., 2:].clamp(max=MAX_LOG_SIZE).exp() * grid.strides[:, None]
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
