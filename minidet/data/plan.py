"""What a training picture will show and where its boxes lie, before any pixel is read: drawn, composed, written down.

Size, mosaic, affine map, MixUp, mirror and shift all move pixels, and each of them is an affine map. So for every
picture that takes part they are multiplied into one matrix, and `minidet.data.render` samples each pixel once. Pictures
that the frame does not show need not be read at all: of the four in a mosaic of yolox-s that is two in five.

`minidet.data.augment` holds the same steps one by one, with the draws and the arithmetic of boxes that are used here.

Source: YOLOX, section 2.1; YOLOF, section 5; chapter 10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from minidet.data.augment import (
    Augmentation,
    cut_boxes,
    draw_affine,
    draw_hsv,
    draw_mixup,
    draw_mosaic_centre,
    draw_shift,
    fit_geometry,
    flip_boxes,
    mixup_boxes,
    mosaic_boxes,
    mosaic_tile,
    scaled_size,
    shift_boxes,
    shorter_side,
    transform_boxes,
)
from minidet.errors import DataError

Rect = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels; the last two are the first outside


class DetectionData(Protocol):
    """What a data set must offer; `minidet.data.coco.CocoDataset` does."""

    records: Sequence[Any]  # .id, .height, .width

    def __len__(self) -> int: ...

    def target(self, index: int) -> dict: ...  # boxes [N, 4] xyxy in pixels, labels [N], image_id

    def image(self, index: int) -> Tensor: ...  # uint8 [3, H, W]


class SampleKey(NamedTuple):
    """Names one training sample; the same key gives the same bytes in any process."""

    index: int  # of the picture in the data set
    epoch: int  # which turn through the data set this is, from 0
    strong: bool  # with mosaic, affine map and MixUp; False in the closing phase


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the frame.

    Attributes:
        index: of the picture in the data set.
        picture_hw: height and width of the stored picture.
        matrix: [2, 3] float64; a pixel (x, y) of the stored picture has its centre at matrix @ (x, y, 1) in the frame.
            Whole numbers are the centres of pixels on both sides, as for OpenCV.
        window: x1, y1, x2, y2 of the part that is shown, in the stored picture, measured from its edge.
    """

    index: int
    picture_hw: tuple[int, int]
    matrix: np.ndarray
    window: tuple[float, float, float, float]


@dataclass(frozen=True)
class SamplePlan:
    """A training picture that has not been painted yet.

    Attributes:
        index: the picture in the data set that it counts for.
        size_hw: height and width of the frame.
        canvas_hw: the frame's top-left part that belongs to the picture; the rest is padding.
        content: the part of the canvas that shows anything. A shift leaves the rest of the canvas black.
        tiles: the pictures on the canvas that can be seen, one or up to four of a mosaic.
        partner_frame: MixUp's second layer as far as it reaches in the frame, None without MixUp.
        partner: the picture in that layer, None where it cannot be seen.
        hsv: steps of hue, saturation and value that colours move by.
        boxes: [N, 4] float32, xyxy in pixels of the frame.
        labels: [N] int64.
    """

    index: int
    size_hw: tuple[int, int]
    canvas_hw: tuple[int, int]
    content: Rect
    tiles: tuple[Placement, ...]
    partner_frame: Rect | None
    partner: Placement | None
    hsv: tuple[int, int, int]
    boxes: Tensor
    labels: Tensor

    @property
    def placements(self) -> tuple[Placement, ...]:
        """All pictures that must be read."""
        return self.tiles if self.partner is None else (*self.tiles, self.partner)

    def resized(self, size_hw: tuple[int, int]) -> SamplePlan:
        """The same picture for another network input, as multi-scale training wants it: one more factor in each map.

        Source: YOLOX, section 2.1; chapter 11.
        """
        if tuple(size_hw) == self.size_hw:
            return self
        y, x = size_hw[0] / self.size_hw[0], size_hw[1] / self.size_hw[1]

        def rect(r: Rect) -> Rect:
            return round(r[0] * x), round(r[1] * y), round(r[2] * x), round(r[3] * y)

        def placement(p: Placement) -> Placement:
            return dataclasses.replace(p, matrix=compose(scaling(x, y), p.matrix))

        return dataclasses.replace(
            self,
            size_hw=tuple(size_hw),
            canvas_hw=(round(self.canvas_hw[0] * y), round(self.canvas_hw[1] * x)),
            content=rect(self.content),
            tiles=tuple(placement(tile) for tile in self.tiles),
            partner_frame=None if self.partner_frame is None else rect(self.partner_frame),
            partner=None if self.partner is None else placement(self.partner),
            boxes=self.boxes * self.boxes.new_tensor([x, y, x, y]),
        )


# Affine maps of pixels, [2, 3] --------------------------------------------------------------------------------------


def scaling(x: float, y: float) -> np.ndarray:
    """A picture resized: its edges stay edges, so centres of pixels move by half a pixel less than the factor says."""
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1.0, y]])


def mirror(width: int) -> np.ndarray:
    """Left and right swapped in a picture of this width."""
    return np.array([[-1.0, 0, width - 1], [0, 1.0, 0]])


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """First `inner`, then `outer`."""
    (a, b, u), (c, d, v) = outer.tolist()
    (e, f, x), (g, h, y) = inner.tolist()  # for so few numbers this is faster than a product of matrices
    return np.array(
        [[a * e + b * g, a * f + b * h, a * x + b * y + u], [c * e + d * g, c * f + d * h, c * x + d * y + v]]
    )


def inverse(matrix: np.ndarray) -> np.ndarray:
    (a, b, u), (c, d, v) = matrix.tolist()
    area = a * d - b * c
    return np.array([[d, -b, b * v - d * u], [-c, a, c * u - a * v]]) / area


def hull(matrix: np.ndarray, rect: Sequence[float]) -> tuple[float, float, float, float]:
    """The upright hull of a mapped rectangle; both are measured from the edges of pixels, not from their centres."""
    (a, b, u), (c, d, v) = matrix.tolist()
    x1, y1, x2, y2 = (side - 0.5 for side in rect)
    xs = [a * x + b * y + u + 0.5 for x in (x1, x2) for y in (y1, y2)]
    ys = [c * x + d * y + v + 0.5 for x in (x1, x2) for y in (y1, y2)]
    return min(xs), min(ys), max(xs), max(ys)


def is_seen(placement: Placement, region: Rect) -> bool:
    """Whether a region of the frame shows anything of a picture: no side of either separates the two."""
    return _overlap(hull(placement.matrix, placement.window), region) and _overlap(
        hull(inverse(placement.matrix), region), placement.window
    )


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


# Plans --------------------------------------------------------------------------------------------------------------


class Planner:
    """Draws plans: (seed, turn, index) decide everything in them.

    Args:
        dataset: records and boxes are asked for, pixels never.
        augmentation: what may happen to a picture.
        size_hw: height and width of the network input, see `fit_geometry`.
        seed: changes every draw.
        resize: see `fit_geometry`; with "shorter_side" every picture has a frame of its own size.

    Attributes:
        fitted_hw: height and width of each picture in the network input.
        stored_hw: those that it is read and kept in: not more than it needs, not more than it has.
        scales: factors (x, y) of its boxes.
        with_objects: indices of the pictures that have any, MixUp's partners.

    Raises:
        DataError: a box has no area or is not finite.
    """

    def __init__(
        self,
        dataset: DetectionData,
        augmentation: Augmentation,
        size_hw: tuple[int, int],
        seed: int = 0,
        resize: str = "letterbox",
    ):
        self.dataset = dataset
        self.augmentation = augmentation
        self.size_hw = size_hw
        self.seed = seed
        self.own_sizes = resize == "shorter_side"
        self.with_objects = pictures_with_objects(dataset)
        self.fitted_hw, self.stored_hw, self.scales = [], [], []
        for record in dataset.records:
            fitted_hw, scale = fit_geometry((record.height, record.width), size_hw, resize)
            self.fitted_hw.append(fitted_hw)
            self.stored_hw.append((min(fitted_hw[0], record.height), min(fitted_hw[1], record.width)))
            self.scales.append(scale)

    def fitted(self, index: int) -> tuple[Tensor, Tensor]:
        """Boxes of a picture in pixels of the network input, and labels."""
        target = self.dataset.target(index)
        x, y = self.scales[index]
        return target["boxes"] * target["boxes"].new_tensor([x, y, x, y]), target["labels"]

    def plan(self, key: SampleKey, unusable: frozenset[int] = frozenset()) -> SamplePlan:
        """Draw everything about one sample.

        Args:
            key: of the sample.
            unusable: pictures that cannot be read; others take their places, always the same ones.
        """
        a = self.augmentation
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        index = self.instead_of(key.index, unusable)
        boxes, labels = self.fitted(index)
        fitted_hw = self.fitted_hw[index]
        size_hw = fitted_hw if self.own_sizes else self.size_hw
        tiles = [self._placement(index, self._fit(index))]
        canvas_hw, partner, partner_frame = size_hw, None, None
        if key.strong and rng.random() < a.mosaic_prob:
            others = [self.instead_of(int(other), unusable) for other in rng.integers(len(self.dataset), size=3)]
            tiles, boxes, labels = self._mosaic([index, *others], size_hw, rng)
            if len(boxes) > 0 and rng.random() < a.mixup_prob:  # so there are partners, too
                other = self.instead_of(int(rng.choice(self.with_objects)), unusable)
                partner, partner_frame, more_boxes, more_labels = self._mixup(other, size_hw, rng)
                boxes, labels = torch.cat([boxes, more_boxes]), torch.cat([labels, more_labels])
        elif key.strong and rng.random() < a.affine_prob:
            matrix = draw_affine(size_hw, a.affine_scale, a, rng, centred=True)
            boxes, labels = cut_boxes(transform_boxes(boxes, matrix), labels, size_hw, a.min_visible)
            tiles = [dataclasses.replace(tiles[0], matrix=compose(matrix.numpy(), tiles[0].matrix))]
        else:
            canvas_hw = fitted_hw
        whole = SamplePlan(
            index=index,
            size_hw=size_hw,
            canvas_hw=canvas_hw,
            content=(0, 0, canvas_hw[1], canvas_hw[0]),
            tiles=tuple(tiles),
            partner_frame=partner_frame,
            partner=partner,
            hsv=(0, 0, 0),
            boxes=boxes,
            labels=labels,
        )
        return _without_unseen(self._finish(whole, rng))

    def instead_of(self, index: int, unusable: frozenset[int]) -> int:
        """The picture itself or, where it is unusable, the next one that is not (with objects, if it has any).

        Raises:
            DataError: no other picture is usable.
        """
        if index not in unusable:
            return index
        place = int(np.searchsorted(self.with_objects, index))
        has_objects = place < len(self.with_objects) and self.with_objects[place] == index
        among = self.with_objects if has_objects else np.arange(len(self.dataset))
        for step in range(1, len(among)):
            other = int(among[((place if has_objects else index) + step) % len(among)])
            if other not in unusable:
                return other
        raise DataError(
            f"none of {len(among)} pictures{' with objects' if has_objects else ''} can be read, so none can take the "
            f"place of image id {self.dataset.records[index].id}. Check the folder of the pictures."
        )

    def _fit(self, index: int) -> np.ndarray:
        """From the stored picture to the network input."""
        (stored_h, stored_w), (fitted_h, fitted_w) = self.stored_hw[index], self.fitted_hw[index]
        return scaling(fitted_w / stored_w, fitted_h / stored_h)

    def _placement(
        self, index: int, matrix: np.ndarray, window: tuple[float, float, float, float] | None = None
    ) -> Placement:
        """A picture, or a window of it, under a map from its stored pixels."""
        height, width = self.stored_hw[index]
        return Placement(index, (height, width), matrix, window or (0.0, 0.0, float(width), float(height)))

    def _mosaic(
        self, indices: Sequence[int], size_hw: tuple[int, int], rng: np.random.Generator
    ) -> tuple[list[Placement], Tensor, Tensor]:
        a = self.augmentation
        centre_xy = draw_mosaic_centre(size_hw, rng)
        places = [mosaic_tile(i, centre_xy, self.fitted_hw[index], size_hw) for i, index in enumerate(indices)]
        boxes, labels = zip(*map(self.fitted, indices), strict=True)
        boxes, labels = mosaic_boxes(boxes, labels, places, size_hw, a.min_visible)
        matrix = draw_affine(size_hw, a.mosaic_scale, a, rng)
        boxes, labels = cut_boxes(transform_boxes(boxes, matrix), labels, size_hw, a.min_visible)
        tiles = []
        for index, ((x1, y1, _, _), (u1, v1, u2, v2)) in zip(indices, places, strict=True):
            fit = self._fit(index)
            on_canvas = compose(translation(x1 - u1, y1 - v1), fit)
            x, y = float(fit[0, 0]), float(fit[1, 1])
            window = u1 / x, v1 / y, u2 / x, v2 / y
            tiles.append(self._placement(index, compose(matrix.numpy(), on_canvas), window))
        return tiles, boxes, labels

    def _mixup(
        self, index: int, size_hw: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Placement, Rect, Tensor, Tensor]:
        scale, flip, (x, y) = draw_mixup(size_hw, self.augmentation, rng)
        boxes, labels = mixup_boxes(*self.fitted(index), size_hw, scale, flip, (x, y), self.augmentation.min_visible)
        (height, width), (new_height, new_width) = size_hw, scaled_size(size_hw, scale)
        matrix = compose(scaling(new_width / width, new_height / height), self._fit(index))
        if flip:
            matrix = compose(mirror(new_width), matrix)
        matrix = compose(translation(-x, -y), matrix)
        frame = 0, 0, min(new_width - x, width), min(new_height - y, height)
        return self._placement(index, matrix), frame, boxes, labels

    def _finish(self, plan: SamplePlan, rng: np.random.Generator) -> SamplePlan:
        """Colour, mirror, shift and choice of boxes, as `augment.finish`."""
        a, boxes, labels = self.augmentation, plan.boxes, plan.labels
        plain = plan
        if len(boxes) > 0:
            if rng.random() < a.hsv_prob:
                plan = dataclasses.replace(plan, hsv=draw_hsv(a, rng))
            if rng.random() < a.flip_prob:
                plan = _mirrored(plan)
                boxes = flip_boxes(boxes, plan.canvas_hw[1])
            keep = shorter_side(boxes) > a.min_box_side
            if not keep.any():
                plan, boxes, labels = plain, plain.boxes, plain.labels
                keep = shorter_side(boxes) > 0
            boxes, labels = boxes[keep], labels[keep]
            if a.shift_prob > 0:  # YOLOX draws no number for it
                offset_xy = draw_shift(a, rng)
                if offset_xy != (0, 0):
                    plan = _shifted(plan, offset_xy)
                    boxes, labels = shift_boxes(boxes, labels, offset_xy, plan.canvas_hw)
        return dataclasses.replace(plan, boxes=boxes[: a.max_labels], labels=labels[: a.max_labels])


def _moved(plan: SamplePlan, matrix: np.ndarray) -> SamplePlan:
    def move(placement: Placement) -> Placement:
        return dataclasses.replace(placement, matrix=compose(matrix, placement.matrix))

    return dataclasses.replace(
        plan,
        tiles=tuple(map(move, plan.tiles)),
        partner=None if plan.partner is None else move(plan.partner),
    )


def _mirrored(plan: SamplePlan) -> SamplePlan:
    width = plan.canvas_hw[1]
    frame = plan.partner_frame
    if frame is not None:
        frame = width - frame[2], frame[1], width - frame[0], frame[3]
    return dataclasses.replace(_moved(plan, mirror(width)), partner_frame=frame)


def _shifted(plan: SamplePlan, offset_xy: tuple[int, int]) -> SamplePlan:
    (x, y), (height, width) = offset_xy, plan.canvas_hw

    def clip(rect: Rect) -> Rect:
        x1, x2 = (min(max(side + x, 0), width) for side in (rect[0], rect[2]))
        y1, y2 = (min(max(side + y, 0), height) for side in (rect[1], rect[3]))
        return x1, y1, x2, y2

    return dataclasses.replace(
        _moved(plan, translation(x, y)),
        content=clip(plan.content),
        partner_frame=None if plan.partner_frame is None else clip(plan.partner_frame),
    )


def _without_unseen(plan: SamplePlan) -> SamplePlan:
    """Nothing of a picture in the frame: it need not be read."""
    partner = plan.partner if plan.partner is not None and is_seen(plan.partner, plan.content) else None
    tiles = tuple(tile for tile in plan.tiles if is_seen(tile, plan.content))
    return dataclasses.replace(plan, tiles=tiles, partner=partner)


def pictures_with_objects(dataset: DetectionData) -> np.ndarray:
    """Indices of the pictures that have objects, [N] int64; every box is checked on the way.

    Raises:
        DataError: a box is not finite, or has no area; the text names the picture and the box.
    """
    found = []
    for index in range(len(dataset)):
        boxes = dataset.target(index)["boxes"]
        if len(boxes) == 0:
            continue
        found.append(index)
        wrong = ~boxes.isfinite().all(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
        if wrong.any():
            box = int(wrong.nonzero()[0])
            raise DataError(
                f"image id {dataset.records[index].id}: box {box} is {[round(x, 3) for x in boxes[box].tolist()]}, but "
                "boxes are finite (x1, y1, x2, y2) with x1 < x2 and y1 < y2. Correct it or leave it out."
            )
    return np.asarray(found, dtype=np.int64)
