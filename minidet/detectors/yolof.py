"""YOLOF: one feature map, a dilated encoder, anchors, uniform matching; and by a few settings what it is compared with.

With `encoder="mimo"` and a rule like `MaxIoU()` the same class is a RetinaNet: so the paper's question can be asked by
changing one part at a time.

Source: arXiv 2103.09460; chapters 05 to 07.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from minidet.assign import (
    IGNORED,
    Assigner,
    Assignment,
    DensePredictions,
    Targets,
    UniformMatching,
    labels_of,
    pad_targets,
)
from minidet.boxes import cxcywh_to_xyxy, nms, xyxy_to_cxcywh
from minidet.detectors.detections import Detections, best_pairs, suppress
from minidet.detectors.detector import IMAGENET_MEAN, Detector, Prediction
from minidet.errors import MinidetError
from minidet.grid import cached_grid
from minidet.layers.darknet import CSPDarknet53
from minidet.layers.dilated_encoder import DilatedEncoder
from minidet.layers.encoders import make_encoder
from minidet.layers.heads import AnchorHead, slots_first
from minidet.layers.resnet import ResNet
from minidet.losses import combine_logits, giou_loss

MAX_LOG_SCALE = math.log(1000 / 16)  # a box is at most 62.5 times as wide or high as its anchor


@dataclass(frozen=True)
class YOLOFConfig:
    """One YOLOF. The defaults are those of the published R50-C5; `minidet.create_model` changes single fields."""

    num_classes: int = 80
    class_names: tuple[str, ...] | None = None
    backbone: str = "resnet50"  # a name of `minidet.layers.resnet.BUILDERS`, or "cspdarknet53"
    backbone_width: float = 1.0  # a ResNet's channels, as a part of the published; below 1 it learns from scratch
    dilated: bool = False  # DC5: the last stage keeps stride 16 and dilates its convolutions instead
    stride_in_1x1: bool = True  # Caffe's ResNet, for which the published weights are; False: torchvision's
    frozen_norm: bool = True  # the backbone's norms are constants; needs pretrained weights (not for cspdarknet53)
    frozen_stages: int = 2  # how many of its first stages get no gradient: the stem and c2
    freeze_statistics: bool = False  # cspdarknet53: also keep the running statistics of the frozen stages
    encoder: str = "dilated"  # or the paper's "mimo", "simo", "miso", "siso"
    dilations: tuple[int, ...] = (2, 4, 6, 8)  # one residual block each; () leaves the projector, which is "siso"
    encoder_shortcut: bool = True  # the residual connection of those blocks
    encoder_init_std: float | None = 0.01  # of their first weights; None: He's, for short trainings
    width: int = 512  # channels of encoder and head
    mid_width: int = 128  # channels inside a residual block
    activation: str = "relu"  # of encoder and head
    class_convs: int = 2  # 3 x 3 convolutions of the class branch
    box_convs: int = 4  # and of the box branch
    implicit_objectness: bool = True  # multiply class scores by an objectness that no loss looks at by itself
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)  # px, shared out evenly over the encoder's levels
    center_limit: float | None = 32  # px that a box's centre may lie from its anchor's in x and y; None: no limit
    assigner: Assigner = field(default_factory=UniformMatching)
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN  # RGB, of 255
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    input_hw: tuple[int, int] = (800, 1333)  # with "shorter_side": that side, and the most for the longer one
    resize: str = "shorter_side"  # or "letterbox", "stretch"
    score_threshold: float = 0.05
    candidates: int = 1000  # so many best (slot, class) pairs enter non-maximum suppression
    nms_threshold: float = 0.6
    class_agnostic: bool = False  # True: boxes suppress each other whatever their classes
    max_detections: int | None = 100


class YOLOF(Detector):
    """A whole YOLOF. Build it with `minidet.create_model("yolof-r50-c5", num_classes=...)`."""

    size_divisor = 1  # every layer rounds up

    def __init__(self, config: YOLOFConfig, name: str = "yolof"):
        self.resize = config.resize
        super().__init__(config, name)
        self.pad_rgb = config.pixel_mean  # so padding is 0 for the network
        if config.backbone == "cspdarknet53":
            self.backbone: nn.Module = CSPDarknet53(
                config.dilated, config.frozen_stages, freeze_norm_statistics=config.freeze_statistics
            )
        else:
            self.backbone = ResNet(
                config.backbone,
                config.dilated,
                config.stride_in_1x1,
                config.frozen_norm,
                config.frozen_stages,
                config.backbone_width,
            )
        channels, strides = self.backbone.channels, self.backbone.strides
        if config.encoder == "dilated":
            self.encoder: nn.Module = DilatedEncoder(
                channels["c5"],
                config.width,
                config.mid_width,
                config.dilations,
                config.activation,
                config.encoder_shortcut,
                config.encoder_init_std,
            )
            self.strides: tuple[int, ...] = (strides["c5"],)
        else:
            self.encoder = make_encoder(config.encoder, channels, config.width, strides)
            self.strides = self.encoder.strides
        self.anchor_sizes = share_out(config.anchor_sizes, len(self.strides))
        self.head = AnchorHead(
            config.width,
            len(self.anchor_sizes[0]),
            config.num_classes,
            config.class_convs,
            config.box_convs,
            config.activation,
            config.implicit_objectness,
        )
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).view(3, 1, 1), persistent=False)

    @property
    def level_names(self) -> tuple[str, ...]:
        """What `features` calls the encoder's levels: "encoder" for a single one, otherwise "p3" to "p7"."""
        if len(self.strides) == 1:
            return ("encoder",)
        return tuple(
            f"p{3 + level}" for level in range(len(self.strides))
        )  # also where a dilated C5 shares C4's stride

    def features_of(self, x: Tensor) -> dict[str, Tensor]:
        stages = self.backbone((x - self.pixel_mean) / self.pixel_std)
        levels = [self.encoder(stages["c5"])] if self.config.encoder == "dilated" else self.encoder(stages)
        return {**stages, **dict(zip(self.level_names, levels, strict=True))}

    def dense_of(self, x: Tensor) -> DensePredictions:
        features = self.features_of(x)
        levels = [features[name] for name in self.level_names]
        shapes = tuple(tuple(level.shape[-2:]) for level in levels)
        grid = cached_grid(shapes, self.strides, x.device, self.anchor_sizes)

        rows = [self._rows(*maps) for maps in self.head(levels)]
        class_logits, raw_boxes = (torch.cat(parts, dim=1) for parts in zip(*rows, strict=True))
        return DensePredictions(
            grid, raw_boxes, decode(raw_boxes, grid.anchors, self.config.center_limit), class_logits, None
        )

    def _rows(self, class_maps: Tensor, box_maps: Tensor, object_maps: Tensor | None) -> tuple[Tensor, Tensor]:
        """The maps of a level slot by slot: combined class logits [B, A, C] and raw boxes [B, A, 4], float32."""
        n = len(self.anchor_sizes[0])
        class_logits = slots_first(class_maps, n)
        if object_maps is not None:
            class_logits = combine_logits(class_logits, slots_first(object_maps, n))
        return class_logits, slots_first(box_maps, n)

    def assign_of(self, predictions: DensePredictions, targets: Targets, trace: bool) -> Assignment:
        return self.config.assigner(predictions, targets, trace)

    def losses_of(self, predictions: DensePredictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        """Focal loss over all slots that are not ignored, and 1 - GIoU over all pairs, both per positive slot.

        A slot that two objects want counts once in the divisor and twice in the box loss, as published.

        Source: YOLOF, section 4.3, and its published code; chapter 07.
        """
        gt, pairs, matched_gt = pad_targets(targets), assignment.box_pairs, assignment.matched_gt
        positives = assignment.num_positives.clamp(min=1)

        classes = labels_of(matched_gt, gt, self.num_classes)  # [B, A], num_classes where there is no object
        wanted = classes[..., None] == torch.arange(self.num_classes, device=classes.device)  # [B, A, C]
        focal = sigmoid_focal_loss(
            predictions.class_logits,
            wanted.to(predictions.class_logits),
            self.config.focal_alpha,
            self.config.focal_gamma,
        )  # [B, A, C]
        boxes = predictions.boxes[pairs.image, pairs.slot]  # [P, 4]
        box_terms = giou_loss(boxes, gt.boxes[pairs.image, pairs.gt]).where(pairs.exists, 0)
        return {
            "loss_class": focal.masked_fill((matched_gt == IGNORED)[..., None], 0).sum() / positives,
            "loss_box": box_terms.sum() / positives,
        }

    def select(self, predictions: DensePredictions) -> Detections:
        """The detections of a batch: `postprocess` for all images together."""
        found = best_pairs(predictions, self.score_threshold, self.config.candidates)
        return suppress(found, self.nms_threshold, self.num_classes, self.class_agnostic, self.max_detections)


def decode(raw_boxes: Tensor, anchors: Tensor, center_limit: float | None = 32) -> Tensor:
    """From what the box predictor says to boxes in pixels.

    Args:
        raw_boxes: [..., A, 4] float32 (dx, dy, dw, dh): shift of the centre in anchor sizes, logarithm of the scale.
        anchors: [A, 4] float xyxy.
        center_limit: most that a centre may be shifted in x and in y, in pixels; beyond it there is no gradient.

    Returns:
        [..., A, 4] float32 xyxy in pixels, not clipped.

    Source: YOLOF, section 4.3 and published code; chapter 07.
    """
    anchors_cxcywh = xyxy_to_cxcywh(anchors)
    shift = raw_boxes[..., :2] * anchors_cxcywh[..., 2:]
    if center_limit is not None:
        shift = shift.clamp(-center_limit, center_limit)
    size = anchors_cxcywh[..., 2:] * raw_boxes[..., 2:].clamp(max=MAX_LOG_SCALE).exp()
    return cxcywh_to_xyxy(torch.cat([anchors_cxcywh[..., :2] + shift, size], dim=-1))


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """What the box predictor would have to say to hit `boxes`: the inverse of `decode` within its limits.

    Args:
        boxes: [..., A, 4] float xyxy with area.
        anchors: [A, 4] float xyxy.

    Returns:
        [..., A, 4] float (dx, dy, dw, dh).
    """
    boxes_cxcywh, anchors_cxcywh = xyxy_to_cxcywh(boxes), xyxy_to_cxcywh(anchors)
    shift = (boxes_cxcywh[..., :2] - anchors_cxcywh[..., :2]) / anchors_cxcywh[..., 2:]
    return torch.cat([shift, (boxes_cxcywh[..., 2:] / anchors_cxcywh[..., 2:]).log()], dim=-1)


def share_out(anchor_sizes: Sequence[float], levels: int) -> tuple[tuple[float, ...], ...]:
    """The anchor sizes of each level: one level gets them all; of several each gets as many, the finest the smallest.

    Raises:
        MinidetError: they cannot be shared evenly.
    """
    if not anchor_sizes or len(anchor_sizes) % levels or min(anchor_sizes) <= 0:
        raise MinidetError(
            f"anchor_sizes are {tuple(anchor_sizes)}; they must be positive, and {levels} levels need a multiple of "
            f"{levels} of them"
        )
    sizes, each = sorted(float(size) for size in anchor_sizes), len(anchor_sizes) // levels
    return tuple(tuple(sizes[i : i + each]) for i in range(0, len(sizes), each))


def postprocess(
    boxes: Tensor,
    class_scores: Tensor,
    score_threshold: float,
    candidates: int,
    nms_threshold: float,
    class_agnostic: bool = False,
    max_detections: int | None = None,
) -> Prediction:
    """Detections of one image: the best (slot, class) pairs above the threshold, non-maximum suppression, the best.

    A slot may answer with several classes.

    Args:
        boxes: [A, 4] float xyxy.
        class_scores: [A, C] float.
        score_threshold: scores must be above it.
        candidates: pairs that enter non-maximum suppression.
        nms_threshold: boxes that overlap a better one by more than this IoU go.
        class_agnostic: suppress across classes too.
        max_detections: keep at most so many.

    Returns:
        `boxes` [N, 4], `scores` [N] and `labels` [N] int64, by decreasing score.

    Source: YOLOF, published code; chapter 07.
    """
    slot, label = (class_scores > score_threshold).nonzero(as_tuple=True)
    scores, order = class_scores[slot, label].sort(descending=True, stable=True)  # stable: the same result every time
    scores, order = scores[:candidates], order[:candidates]
    boxes, labels = boxes[slot[order]], label[order]
    kept = nms(boxes, scores, None if class_agnostic else labels, nms_threshold)[:max_detections]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
