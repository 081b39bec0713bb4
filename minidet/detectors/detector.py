"""What every detector of this library can do, whatever is inside: the contract of `torchvision.models.detection`.

    model.train(); losses = model(images, targets)
    model.eval(); predictions = model(images)

and, for those who want to look inside: `features`, `dense` and `assign`. Chapter 00 uses it all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minidet.assign import Assigner, Assignment, DensePredictions, GroundTruth, Targets, pad_targets
from minidet.data.augment import GREY, RESIZES, fit_geometry
from minidet.data.augment import resize as resize_image
from minidet.detectors.detections import Detections
from minidet.errors import MinidetError

Images = Sequence[Tensor] | Tensor
Target = dict[str, Any]
Prediction = dict[str, Tensor]


IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB, of 255


LARGEST_INPUT = 16_384  # pixels a side; a network input beyond it fits into no memory


class Detector(nn.Module):
    """Base of the detectors. A subclass implements `features_of`, `dense_of`, `assign_of`, `losses_of` and `select`.

    Attributes:
        name: the variant's name in `minidet.list_models()`.
        num_classes: C.
        class_names: C names, or None when nobody told.
        input_hw: (height, width) that pictures are brought to; see `resize`.
        resize: how; one of the three ways of `minidet.data.augment.fit_geometry`. In "shorter_side" `input_hw` is the
            wanted shorter side and the most that the longer side may have.
        pad_rgb: colour (of 255) of what is added on the right and below, where a picture does not fill its frame.
        size_divisor: the sides of a network input are multiples of this.
        nms_threshold: of non-maximum suppression; None suppresses nothing.
        use_l1: adds the L1 term to the losses; YOLOX's recipe turns it on for the last epochs.
        last_assignment: who learned what in the latest training step.
        optimized: made by `minidet.optimize`; it predicts only.
    """

    resize: str = "letterbox"
    pad_rgb: tuple[float, float, float] = (GREY, GREY, GREY)
    size_divisor = 32

    def __init__(self, config: Any, name: str):
        super().__init__()
        self.config = config
        self.name = name
        self.num_classes: int = config.num_classes
        self.class_names: list[str] | None = list(config.class_names) if config.class_names else None
        self.set_input_size(config.input_hw)
        self.score_threshold = config.score_threshold
        self.nms_threshold: float | None = config.nms_threshold
        self.class_agnostic = config.class_agnostic
        self.max_detections = config.max_detections
        self.use_l1 = False
        self.last_assignment: Assignment | None = None
        self.optimized = False
        self._learn = type(self).learn  # or, after `compile`, the same translated
        self._gt_multiple = 1
        self._dense = type(self).dense_of  # likewise, after `minidet.optimize`

    # What a subclass fills in; `x` is [B, 3, H, W] float32, RGB, 0 to 255.

    def features_of(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def dense_of(self, x: Tensor) -> DensePredictions:
        raise NotImplementedError

    def assign_of(self, predictions: DensePredictions, targets: Targets, trace: bool) -> Assignment:
        raise NotImplementedError

    def losses_of(self, predictions: DensePredictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        raise NotImplementedError

    def select(self, predictions: DensePredictions) -> Detections:
        raise NotImplementedError

    # What a user calls.

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> dict[str, Tensor] | list[Prediction]:
        """Losses in training mode, predictions in evaluation mode.

        Args:
            images: pictures, or network input.
                A list of [3, H, W] tensors of any size is pictures: each is brought to `input_hw`; targets and
                predictions are in the picture's own pixels. One tensor [B, 3, H, W] is network input, used as it is; H
                and W are multiples of `size_divisor`. Both RGB, uint8 from 0 to 255 or float from 0 to 1.
            targets: in training, for each image `boxes` [N, 4] float xyxy in pixels and `labels` [N] int64. N may be 0.

        Returns:
            In training a dict of scalar losses, weighted and ready to be summed. In evaluation for each image a dict of
            `boxes` [N, 4] float xyxy in pixels, inside the picture, `scores` [N] and `labels` [N], by decreasing score.

        Raises:
            ValueError: images or targets are not of this form; the text names the image.
        """
        if self.training:
            if targets is None:
                raise ValueError("a model in training mode needs targets; call model.eval() first to get predictions")
            x, _ = self.network_input(images)
            losses, self.last_assignment = self._learn(self, x, self.ground_truth(images, targets))
            return losses

        x, scales = self.network_input(images)
        found = self.select(self._dense(self, x))
        found = found.in_pictures([tuple(image.shape[-2:]) for image in images], scales)
        return found.per_image(len(images))

    def train(self, mode: bool = True) -> Detector:
        """Training mode, or with False evaluation mode.

        Raises:
            MinidetError: the model comes from `minidet.optimize`.
        """
        if mode and self.optimized:
            raise MinidetError(f"{self.name}: an optimized model only predicts; train the one that it was made from")
        return super().train(mode)

    def features(self, images: Images) -> dict[str, Tensor]:
        """The feature maps of every stage of backbone and neck, by name, each [B, channels, rows, columns]."""
        return self.features_of(self.network_input(images)[0])

    def dense(self, images: Images) -> DensePredictions:
        """What the model says at every slot, in pixels of the network input, before any is thrown away."""
        return self._dense(self, self.network_input(images)[0])

    def assign(self, images: Images, targets: Sequence[Target], trace: bool = True) -> Assignment:
        """Which slot would learn which object from these images, with everything that led to it."""
        x, _ = self.network_input(images)
        with torch.no_grad(), _full_precision(x):
            return self.assign_of(self.dense_of(x), self.ground_truth(images, targets), trace)

    def learn(self, x: Tensor, gt: GroundTruth) -> tuple[dict[str, Tensor], Assignment]:
        """The computation of a training step, network input in, losses out.

        Nothing in it asks a GPU for a number, unless an assigner matches on the host (`OneToOne`, `POTO`, exact `OTA`).
        """
        predictions = self.dense_of(x)
        with _full_precision(x):
            assignment = self.assign_of(predictions.detach(), gt, trace=False)
            return self.losses_of(predictions, assignment, gt), assignment

    def compile(self, **options: Any) -> None:
        """Let `torch.compile` translate the computation of a training step as one graph; predictions stay as they are.

        Args:
            options: of `torch.compile`, such as `backend` or `mode`.

        Raises:
            MinidetError: an assigner finds its matching on the host, so that no graph can hold the step.
        """
        for rule in self.assigners:
            if getattr(rule, "on_host", False):
                raise MinidetError(
                    f"{self.name}: {type(rule).__name__} finds its matching on the host (scipy), so a training step is "
                    "no single graph. Train without compiling, or choose another assigner."
                )
        self._learn = torch.compile(type(self).learn, fullgraph=True, **options)
        self._gt_multiple = 16  # a graph is made for each size, or at least for the first ones

    # From pictures to network input.

    def set_input_size(self, input_hw: Sequence[int]) -> None:
        """Bring pictures to another (height, width) from now on.

        Raises:
            MinidetError: the network cannot take it.
        """
        if self.resize not in RESIZES:
            raise MinidetError(f"{self.name}: resize {self.resize!r} is not known; choose one of {', '.join(RESIZES)}")
        divisor = 1 if self.resize == "shorter_side" else self.size_divisor
        if len(input_hw) != 2 or any(side < 1 or side % divisor for side in input_hw):
            raise MinidetError(
                f"{self.name}: input_hw is (height, width), multiples of {divisor}, not {tuple(input_hw)}"
            )
        if max(input_hw) > LARGEST_INPUT:
            raise MinidetError(
                f"{self.name}: input_hw is {tuple(input_hw)}; a side has {LARGEST_INPUT:,} pixels at most"
            )
        self.input_hw: tuple[int, int] = (int(input_hw[0]), int(input_hw[1]))

    @property
    def assigners(self) -> tuple[Assigner, ...]:
        """The rules that decide in training who learns what."""
        return (self.config.assigner,)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def network_input(self, images: Images) -> tuple[Tensor, list[tuple[float, float]]]:
        """What the network sees, float [B, 3, H, W] from 0 to 255; and each image's factors (x, y), input / picture."""
        if isinstance(images, Tensor):
            self._check_batch(images)
            return _to_255(images.to(self.device, non_blocking=True)), [(1.0, 1.0)] * len(images)
        if not images:
            raise ValueError("there is no image in the list; give at least one [3, H, W] tensor")
        resized, scales = [], []
        for index, image in enumerate(images):
            _check_picture(image, index)
            size_hw, scale = fit_geometry(tuple(image.shape[-2:]), self.input_hw, self.resize)
            resized.append(_to_255(resize_image(image.to(self.device), size_hw)))
            scales.append(scale)
        frame_hw = self.input_hw
        if self.resize == "shorter_side":  # as large as this batch needs
            frame_hw = tuple(max(picture.shape[axis] for picture in resized) for axis in (1, 2))
        x = resized[0].new_tensor(self.pad_rgb).view(1, 3, 1, 1).repeat(len(resized), 1, *frame_hw)
        for place, picture in zip(x, resized, strict=True):
            place[:, : picture.shape[1], : picture.shape[2]] = picture
        return x, scales

    def ground_truth(self, images: Images, targets: Sequence[Target]) -> GroundTruth:
        """The targets in pixels of the network input, checked, in one piece on the model's device."""
        if len(targets) != len(images):
            raise ValueError(f"{len(images)} images, but {len(targets)} targets; give one target an image")
        scaled = []
        for index, (image, target) in enumerate(zip(images, targets, strict=True)):
            self._check_target(target, index)
            boxes = target["boxes"].float()
            if not isinstance(images, Tensor):
                _, (x, y) = fit_geometry(tuple(image.shape[-2:]), self.input_hw, self.resize)
                boxes = torch.stack([boxes[:, 0] * x, boxes[:, 1] * y, boxes[:, 2] * x, boxes[:, 3] * y], dim=1)
            scaled.append({"boxes": boxes, "labels": target["labels"]})
        return pad_targets(scaled, self.device, self._gt_multiple)

    def _check_batch(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"a batch of network input has the shape [B, 3, H, W], this one {list(images.shape)}")
        if any(side % self.size_divisor for side in images.shape[-2:]):
            raise ValueError(
                f"the sides of a network input are multiples of {self.size_divisor}, these are "
                f"{images.shape[-2]} x {images.shape[-1]}; pictures of any size go into a list, model([image, ...])"
            )

    def _check_target(self, target: Target, index: int) -> None:
        image_id = target.get("image_id")
        where = f"targets[{index}]" + (f" (image id {image_id})" if image_id is not None else "")
        boxes, labels = target.get("boxes"), target.get("labels")
        if boxes is None or labels is None:
            raise ValueError(f"{where} needs 'boxes' and 'labels'; it has {sorted(target)}")
        if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
            raise ValueError(
                f"{where}: boxes are [N, 4] and labels [N], these are {list(boxes.shape)} and {list(labels.shape)}; "
                "an image without objects has boxes [0, 4] and labels [0]"
            )
        if labels.dtype != torch.int64:
            raise ValueError(f"{where}: labels are int64, these are {labels.dtype}")
        if boxes.device.type == "cpu" and len(boxes):  # looking at values on a GPU would make it wait
            if not bool(boxes.isfinite().all()):
                raise ValueError(f"{where}: a box has NaN or infinite coordinates")
            wrong = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1).nonzero().flatten().tolist()
            if wrong:
                raise ValueError(
                    f"{where}: boxes are (x1, y1, x2, y2) with x1 < x2 and y1 < y2; boxes[{wrong[0]}] is "
                    f"{[round(x, 3) for x in boxes[wrong[0]].tolist()]}. Leave boxes without area out."
                )
            if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
                raise ValueError(
                    f"{where}: labels go from 0 to {self.num_classes - 1} (num_classes={self.num_classes}), "
                    f"these from {int(labels.min())} to {int(labels.max())}"
                )


def _check_picture(image: Tensor, index: int) -> None:
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        shape = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"images[{index}]: a picture is a tensor [3, H, W] (RGB), this is {shape}")


def _to_255(images: Tensor) -> Tensor:
    return images * 255.0 if images.is_floating_point() else images.float()


def _full_precision(x: Tensor) -> torch.autocast:
    """Assignment and losses are computed in float32, also where the network runs in half precision."""
    return torch.autocast(x.device.type, enabled=False)


# exp of a raw size is cut here: at 10,000 strides even the area of a box is far from overflowing in float32.
MAX_LOG_SIZE = math.log(1e4)
