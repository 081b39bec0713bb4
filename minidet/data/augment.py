"""How a training picture is made out of one, four or five: size, mosaic, affine map, MixUp, colour, mirror, shift.

The functions above `Augmentation` have no randomness: what they do is in their arguments. The `draw_*` functions below
it draw those arguments as the official training does, and the `random_*` functions do both.

Here every step makes a picture of its own, which is easy to follow and slow. Training itself composes the steps first
and touches each pixel once: `minidet.data.plan` and `minidet.data.render`. Both share the arithmetic of boxes and the
draws that stand here.

Source: YOLOX, section 2.1, "strong data augmentation"; YOLOF, section 5 (random shift); chapter 12.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minidet.boxes import box_area
from minidet.errors import MinidetError

LARGEST = 1e9  # of any number of an augmentation; what lies above is a slip of the pen
GREY = 114  # what YOLOX fills empty space with

RESIZES = ("letterbox", "shorter_side", "stretch")  # the ways of `fit_geometry`

Sample = tuple[Tensor, Tensor, Tensor]  # image uint8 [3, H, W], boxes float [N, 4] xyxy, labels int64 [N]
Fill = float | Sequence[float]  # of empty space: one value for all channels, or one each for red, green and blue


# Size ---------------------------------------------------------------------------------------------------------------


def letterbox_geometry(image_hw: tuple[int, int], size_hw: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """How far a picture must be scaled to fit into a frame, and how large it is then.

    Args:
        image_hw: height and width of the picture.
        size_hw: height and width of the frame.

    Returns:
        The ratio for boxes, and the new (height, width). Both are cut off to whole pixels, so even the long side may
        end one pixel short of the frame; a very thin picture keeps at least one pixel.

    Source: YOLOX, official code; chapter 10.
    """
    ratio = min(size_hw[0] / image_hw[0], size_hw[1] / image_hw[1])
    return ratio, (max(int(image_hw[0] * ratio), 1), max(int(image_hw[1] * ratio), 1))


def fit_geometry(
    image_hw: tuple[int, int], size_hw: tuple[int, int], resize: str
) -> tuple[tuple[int, int], tuple[float, float]]:
    """How large a picture becomes in the three ways of preparing network input.

    Args:
        image_hw: height and width of the picture.
        size_hw: of the frame; for "shorter_side" instead the wanted shorter side, and the longest that the longer side
            may have, such as (800, 1333).
        resize: "letterbox" keeps the shape and fits into the frame (YOLOX); "shorter_side" keeps the shape and scales
            one side (YOLOF); "stretch" fills the frame (YOLOF with CSPDarknet-53).

    Returns:
        The new (height, width), and the factors (x, y) for boxes.

    Source: YOLOX and YOLOF, official codes (for the latter detectron2's ResizeShortestEdge); chapter 07.
    """
    if resize == "letterbox":
        ratio, resized_hw = letterbox_geometry(image_hw, size_hw)
        return resized_hw, (ratio, ratio)
    if resize == "stretch":
        height, width = size_hw
    elif resize == "shorter_side":
        shorter, longest = size_hw
        scale = shorter / min(image_hw)
        height, width = (shorter if side == min(image_hw) else side * scale for side in image_hw)
        if max(height, width) > longest:  # in this order, so that halves are rounded as by the official code
            scale = longest / max(height, width)
            height, width = height * scale, width * scale
        height, width = max(int(height + 0.5), 1), max(int(width + 0.5), 1)
    else:
        raise MinidetError(f"resize {resize!r} is not known; choose one of {', '.join(RESIZES)}")
    return (height, width), (width / image_hw[1], height / image_hw[0])


def resize(images: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Bilinear resizing without antialiasing, as OpenCV's INTER_LINEAR.

    Args:
        images: [3, H, W] or [B, 3, H, W], uint8 or float, on any device.
        size_hw: new height and width.

    Returns:
        The same dtype and device; the images themselves where the size is right already.
    """
    if images.shape[-2:] == tuple(size_hw):
        return images
    batch = images if images.dim() == 4 else images[None]
    as_float = batch.dtype == torch.uint8 and batch.device.type != "cpu"  # only the CPU resizes uint8 directly
    resized = F.interpolate(
        batch.float() if as_float else batch, size=tuple(size_hw), mode="bilinear", align_corners=False
    )
    if as_float:
        resized = resized.round().to(torch.uint8)
    return resized if images.dim() == 4 else resized[0]


def pad(image: Tensor, size_hw: tuple[int, int], fill: Fill = GREY) -> Tensor:
    """Put [3, H, W] into the top-left corner of a frame of at least its size."""
    if image.shape[-2:] == tuple(size_hw):
        return image
    frame = empty_frame(image, size_hw, fill)
    frame[:, : image.shape[1], : image.shape[2]] = image
    return frame


def empty_frame(like: Tensor, size_hw: tuple[int, int], fill: Fill = GREY) -> Tensor:
    """[C, *size_hw] of one colour, with the channels, dtype and device of an image [C, H, W]."""
    return _colour(fill, like).expand(like.shape[0], *size_hw).clone()


def _colour(fill: Fill, like: Tensor) -> Tensor:
    """[1 or 3, 1, 1], in the image's dtype and on its device; rounded where those are whole numbers."""
    colour = torch.as_tensor(fill, dtype=torch.float32, device=like.device).view(-1, 1, 1)
    return (colour if like.is_floating_point() else colour.round()).to(like.dtype)


def letterbox(
    image: Tensor, boxes: Tensor, size_hw: tuple[int, int], fill: Fill = GREY
) -> tuple[Tensor, Tensor, float]:
    """Scale a picture to fit into a frame, keeping its shape, and fill the rest on the right or below.

    Args:
        image: [3, H, W], uint8 or float.
        boxes: [N, 4] float, xyxy in pixels of `image`.
        size_hw: height and width of the frame.
        fill: value of the empty space, or its red, green and blue, in the image's own range (114 of 255).

    Returns:
        The frame [3, *size_hw], the boxes in its pixels, and the ratio: dividing boxes by it leads back.

    Source: YOLOX, official code; chapter 10.
    """
    ratio, resized_hw = letterbox_geometry(tuple(image.shape[-2:]), size_hw)
    return pad(resize(image, resized_hw), size_hw, fill), boxes * ratio, ratio


def resize_batch(images: Tensor, targets: Sequence[dict], size_hw: tuple[int, int]) -> tuple[Tensor, list[dict]]:
    """The step of multi-scale training: a finished batch in another size, stretched if the shape differs.

    Args:
        images: [B, 3, H, W], uint8 or float, on any device.
        targets: B dicts with `boxes` [N, 4] float xyxy; other entries are kept.
        size_hw: new height and width, multiples of 32.

    Returns:
        Images and targets in the new size. The arguments are not changed.

    Source: YOLOX, section 2.1; chapter 11.
    """
    height, width = images.shape[-2:]
    scale_y, scale_x = size_hw[0] / height, size_hw[1] / width
    scaled = []
    for target in targets:
        boxes = target["boxes"]
        scaled.append({**target, "boxes": boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])})
    return resize(images, size_hw), scaled


# Boxes at a border --------------------------------------------------------------------------------------------------


def cut_boxes(
    boxes: Tensor, labels: Tensor, size_hw: tuple[int, int], min_visible: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Clip boxes to a frame, and drop those of which too little is left.

    Args:
        boxes: [N, 4] float, xyxy in pixels of the frame, possibly outside it.
        labels: [N] int64.
        size_hw: height and width of the frame.
        min_visible: smallest share of its area that a box must keep. 0 keeps every box, even one without any area, as
            YOLOX does; `finish` drops those later.

    Returns:
        Boxes and labels that are kept, in their order.
    """
    height, width = size_hw
    clipped = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    if min_visible == 0:
        return clipped, labels
    keep = box_area(clipped) >= min_visible * box_area(boxes)
    return clipped[keep], labels[keep]


# Mirror, shift and colour -------------------------------------------------------------------------------------------


def flip_horizontal(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror left and right: [3, H, W] and xyxy boxes [N, 4]; x becomes width - x."""
    return image.flip(-1), flip_boxes(boxes, image.shape[-1])


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes [N, 4] xyxy in a picture of this width, mirrored left and right."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def shift(sample: Sample, offset_xy: tuple[int, int]) -> Sample:
    """Move a picture inside its own canvas, with its objects; what leaves the canvas is lost, what it leaves is black.

    YOLOF's anchors stand 32 pixels apart, so a shift of up to 32 shows it every object at every place within a cell.

    Args:
        sample: image [3, H, W], boxes [N, 4] float xyxy, labels [N].
        offset_xy: whole pixels to the right and down; negative ones go left and up.

    Returns:
        Image [3, H, W]; the boxes, clipped, without those of which nothing is left; their labels.

    Source: YOLOF, section 5, numbers from the official code; chapter 10.
    """
    image, boxes, labels = sample
    (x, y), (height, width) = offset_xy, image.shape[-2:]
    seen = image[:, max(-y, 0) : max(height - y, 0), max(-x, 0) : max(width - x, 0)]
    moved = torch.zeros_like(image)
    if seen.numel() > 0:
        moved[:, max(y, 0) : max(y, 0) + seen.shape[1], max(x, 0) : max(x, 0) + seen.shape[2]] = seen
    return moved, *shift_boxes(boxes, labels, offset_xy, (height, width))


def shift_boxes(
    boxes: Tensor, labels: Tensor, offset_xy: tuple[int, int], size_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """What `shift` does to boxes [N, 4] xyxy and labels [N] in a picture of `size_hw`: moves, clips, drops empty."""
    x, y = offset_xy
    boxes, labels = cut_boxes(boxes + boxes.new_tensor([x, y, x, y]), labels, size_hw)
    keep = shorter_side(boxes) > 0
    return boxes[keep], labels[keep]


def rgb_to_hsv(image: Tensor) -> Tensor:
    """Hue, saturation and value in OpenCV's 8-bit form, equal to its numbers for every colour.

    Args:
        image: [3, H, W] or [B, 3, H, W], uint8 RGB.

    Returns:
        The same shape, int32: hue in steps of two degrees, 0 to 179 (red 0, green 60, blue 120, grey 0); saturation and
        value from 0 to 255.
    """
    red, green, blue = image.to(torch.int32).unbind(-3)
    value = image.amax(-3).to(torch.int32)
    spread = value - image.amin(-3)
    sixth = torch.where(  # hue in sixths of the circle, times spread
        value == red, green - blue, torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    )
    hue = (sixth * _reciprocal(30, spread) + 2048) >> 12
    saturation = (spread * _reciprocal(255, value) + 2048) >> 12
    return torch.stack([torch.where(hue < 0, hue + 180, hue), saturation, value], dim=-3)


def _reciprocal(number: int, divisors: Tensor) -> Tensor:
    """number / divisors in units of 1/4096. OpenCV divides by a table of these, and its rounding makes its colours."""
    divisors = divisors.clamp(min=1)
    return (2 * 4096 * number + divisors) // (2 * divisors)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """The way back from `rgb_to_hsv`; fractions are cut off, as OpenCV does, whose numbers it meets within 1 of 255.

    Args:
        hsv: [3, H, W] or [B, 3, H, W] integers; hue 0 to 179, saturation and value 0 to 255.

    Returns:
        The same shape, uint8 RGB.
    """
    hue, saturation, value = hsv.to(torch.float32).split(1, dim=-3)
    sixth = hue / 30  # 0 to 6 around the circle: red at 0, green at 2, blue at 4
    # The pure colour of this hue: each channel is full within one sixth of its own colour, and gone two sixths away.
    pure = torch.cat([(sixth - 3).abs() - 1, 2 - (sixth - 2).abs(), 2 - (sixth - 4).abs()], dim=-3).clamp_(0, 1)
    faded = pure.sub_(1).mul_(saturation / 255).add_(1)  # towards white as saturation falls
    return faded.mul_(value).to(torch.uint8)


def hsv_jitter(image: Tensor, hue: int | Tensor, saturation: int | Tensor, value: int | Tensor) -> Tensor:
    """Shift the colours of a picture by whole steps of 8-bit HSV.

    Args:
        image: [3, H, W] or [B, 3, H, W], uint8 RGB.
        hue: added, in steps of two degrees; runs around the circle. For a batch it may be [B, 1, 1] integers.
        saturation, value: added likewise; the results are held between 0 and 255.

    Returns:
        The same shape, uint8 RGB.

    Source: YOLOX, official code (0.2.0 and later; before that the three were factors); chapter 10.
    """
    h, s, v = rgb_to_hsv(image).unbind(-3)
    moved = [(h + hue) % 180, (s + saturation).clamp(0, 255), (v + value).clamp(0, 255)]
    return hsv_to_rgb(torch.stack(moved, dim=-3))


# Affine map ---------------------------------------------------------------------------------------------------------


def affine_matrix(
    angle: float,
    scale: float,
    shear_x: float,
    shear_y: float,
    translate_x: float,
    translate_y: float,
    size_hw: tuple[int, int],
    centred: bool = False,
) -> Tensor:
    """The map from a picture to the frame that training sees: turn and scale, then shear, then shift.

    Args:
        angle: degrees, counter-clockwise as seen.
        scale: factor.
        shear_x, shear_y: degrees.
        translate_x, translate_y: shift, as a share of the frame's width and height.
        size_hw: height and width of the frame.
        centred: turn and scale about the frame's centre. False is YOLOX's way: about the top-left corner.

    Returns:
        [2, 3] float64: new (x, y) = matrix @ (x, y, 1).

    Source: YOLOX, official code (OpenCV's getRotationMatrix2D about the origin, then two shears); chapter 10.
    """
    height, width = size_hw
    cosine, sine = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    turn = torch.tensor([[cosine, sine], [-sine, cosine]], dtype=torch.float64)  # y points down
    shear = torch.tensor(
        [[1, math.tan(math.radians(shear_y))], [math.tan(math.radians(shear_x)), 1]], dtype=torch.float64
    )
    linear = shear @ turn
    shift = torch.tensor([translate_x * width, translate_y * height], dtype=torch.float64)
    if centred:
        centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
        shift = shift + centre - linear @ centre
    return torch.cat([linear, shift[:, None]], dim=1)


def warp_affine(image: Tensor, matrix: Tensor, size_hw: tuple[int, int], fill: Fill = GREY) -> Tensor:
    """Move a picture by an affine map; bilinear, with whole coordinates at pixel centres, as OpenCV's warpAffine.

    The result is within 1 of 255 of OpenCV 5's; earlier versions round positions to 1/32 pixel and differ more.

    Args:
        image: [3, H, W] uint8.
        matrix: [2, 3] float, from image to frame; it must be invertible.
        size_hw: height and width of the frame.
        fill: value (or red, green, blue) around the image; the outermost pixels blend into it.

    Returns:
        [3, *size_hw] uint8.

    Source: YOLOX, official code; chapter 10.
    """
    back = torch.linalg.inv(matrix[:, :2].double())  # where does each pixel of the frame come from?
    shift = -back @ matrix[:, 2].double()
    (a, b, u), (c, d, v) = torch.cat([back, shift[:, None]], dim=1).tolist()
    x = torch.arange(size_hw[1], dtype=torch.float32)
    y = torch.arange(size_hw[0], dtype=torch.float32)[:, None]
    source_x, source_y = a * x + (b * y + u), c * x + (d * y + v)  # [H, W]
    height, width = image.shape[-2:]
    grid = torch.stack([(2 * source_x + 1) / width - 1, (2 * source_y + 1) / height - 1], dim=-1)  # edges at -1 and 1
    around = _colour(fill, image).float()
    centred = image[None].float() - around  # so that the zeros that grid_sample finds outside mean `fill`
    warped = F.grid_sample(centred, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return (warped[0] + around).round_().to(torch.uint8)


def transform_boxes(boxes: Tensor, matrix: Tensor) -> Tensor:
    """The upright hull of each box's four mapped corners.

    A turned box grows: the hull of its corners is wider than that of the object. It is one reason why YOLOX trains its
    last epochs without mosaic.

    Args:
        boxes: [N, 4] float, xyxy.
        matrix: [2, 3] float.

    Returns:
        [N, 4] of the boxes' dtype, xyxy, not clipped.
    """
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].to(matrix).view(-1, 4, 2)  # [N, 4 corners, (x, y)]
    moved = corners @ matrix[:, :2].T + matrix[:, 2]
    return torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=1).to(boxes)


# Several pictures in one --------------------------------------------------------------------------------------------


def mosaic_tile(
    position: int, centre_xy: tuple[int, int], tile_hw: tuple[int, int], size_hw: tuple[int, int]
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Where one of the four pictures lies on the mosaic, and which part of it is seen.

    Args:
        position: 0 top-left, 1 top-right, 2 bottom-left, 3 bottom-right of the centre.
        centre_xy: where the four meet, in pixels of the canvas.
        tile_hw: height and width of the picture.
        size_hw: height and width of the network input; the canvas is twice as high and wide.

    Returns:
        x1, y1, x2, y2 on the canvas and in the picture, whole pixels.

    Source: YOLOX, official code; chapter 10.
    """
    (x, y), (height, width) = centre_xy, tile_hw
    left, top = x - width if position in (0, 2) else x, y - height if position in (0, 1) else y
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + width, 2 * size_hw[1]), min(top + height, 2 * size_hw[0])
    return (x1, y1, x2, y2), (x1 - left, y1 - top, x2 - left, y2 - top)


def mosaic(
    tiles: Sequence[Sample],
    centre_xy: tuple[int, int],
    size_hw: tuple[int, int],
    min_visible: float = 0.0,
    fill: Fill = GREY,
) -> Sample:
    """Four pictures around a point, on a plain canvas of twice the input's height and width.

    Args:
        tiles: four (image, boxes, labels): top-left, top-right, bottom-left, bottom-right of the centre.
        centre_xy: where their corners meet, in pixels of the canvas.
        size_hw: height and width of the network input.
        min_visible: see `cut_boxes`.
        fill: colour of the canvas.

    Returns:
        Canvas [3, 2H, 2W] and all boxes, clipped to it, with their labels.

    Source: YOLOX, section 2.1 (Mosaic is YOLOv4's and ultralytics-YOLOv3's idea); chapter 10.
    """
    canvas = empty_frame(tiles[0][0], (2 * size_hw[0], 2 * size_hw[1]), fill)
    places = [mosaic_tile(i, centre_xy, tuple(tile[0].shape[-2:]), size_hw) for i, tile in enumerate(tiles)]
    for ((x1, y1, x2, y2), (u1, v1, u2, v2)), (image, _, _) in zip(places, tiles, strict=True):
        canvas[:, y1:y2, x1:x2] = image[:, v1:v2, u1:u2]
    boxes, labels = [tile[1] for tile in tiles], [tile[2] for tile in tiles]
    return canvas, *mosaic_boxes(boxes, labels, places, size_hw, min_visible)


def mosaic_boxes(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    places: Sequence[tuple[tuple[int, int, int, int], tuple[int, int, int, int]]],
    size_hw: tuple[int, int],
    min_visible: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The boxes of the four pictures, moved with them onto the canvas and clipped to it.

    Args:
        boxes, labels: of each picture [N, 4] float xyxy and [N].
        places: of each picture what `mosaic_tile` says.
        size_hw, min_visible: as for `mosaic`.

    Returns:
        All boxes in pixels of the canvas, and their labels.
    """
    moved = [
        own + own.new_tensor([x1 - u1, y1 - v1, x1 - u1, y1 - v1])
        for own, ((x1, y1, _, _), (u1, v1, _, _)) in zip(boxes, places, strict=True)
    ]
    return cut_boxes(torch.cat(moved), torch.cat(list(labels)), (2 * size_hw[0], 2 * size_hw[1]), min_visible)


def mixup(
    sample: Sample,
    other: Sample,
    scale: float,
    flip: bool,
    offset_xy: tuple[int, int] = (0, 0),
    min_visible: float = 0.0,
) -> Sample:
    """Two pictures, half transparent, one over the other; the objects of both count in full.

    Args:
        sample: image [3, H, W] uint8, boxes, labels.
        other: the same, with an image of the same H and W.
        scale: the other picture is resized by it; where it is smaller than the frame, black fills the rest.
        flip: mirror the other picture.
        offset_xy: top-left corner of the H x W window that is cut out of it, where it is larger.
        min_visible: see `cut_boxes`.

    Returns:
        The mean of both pictures (rounded down), and the boxes and labels of both.

    Source: YOLOX, section 2.1, after arXiv 1710.09412; chapter 10.
    """
    image, boxes, labels = sample
    height, width = image.shape[-2:]
    other_image = resize(other[0], scaled_size((height, width), scale))
    if flip:
        other_image = other_image.flip(-1)
    x, y = offset_xy
    window = pad(other_image[:, y : y + height, x : x + width], (height, width), fill=0)
    other_boxes, other_labels = mixup_boxes(other[1], other[2], (height, width), scale, flip, offset_xy, min_visible)
    blend = ((image.to(torch.int16) + window) >> 1).to(torch.uint8)
    return blend, torch.cat([boxes, other_boxes]), torch.cat([labels, other_labels])


def mixup_boxes(
    boxes: Tensor,
    labels: Tensor,
    size_hw: tuple[int, int],
    scale: float,
    flip: bool,
    offset_xy: tuple[int, int],
    min_visible: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """What `mixup` does to the boxes [N, 4] and labels [N] of the other picture in a frame of `size_hw`."""
    boxes = boxes * scale
    if flip:
        boxes = flip_boxes(boxes, scaled_size(size_hw, scale)[1])
    x, y = offset_xy
    return cut_boxes(boxes - boxes.new_tensor([x, y, x, y]), labels, size_hw, min_visible)


def scaled_size(size_hw: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width times a factor, cut off to whole pixels, at least one."""
    return max(int(size_hw[0] * scale), 1), max(int(size_hw[1] * scale), 1)


# Chance -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training picture, and how far. The defaults are those of yolox-s and larger.

    `Augmentation(mosaic_prob=0, hsv_prob=0, flip_prob=0)` leaves pictures as they are; YOLOF's is `FLIP_AND_SHIFT`. A
    range is (lowest, highest); a single number means "up to this far either way".

    Raises:
        MinidetError: a value makes no sense; the text names the field.

    Source: YOLOX, section 2.1 and table 5, numbers from the official code; chapter 10.
    """

    mosaic_prob: float = 1.0  # four pictures in one, then the affine map (tiny 1, nano 0.5)
    mosaic_scale: tuple[float, float] = (0.1, 2.0)  # factors of that affine map (tiny and nano 0.5 to 1.5)
    mixup_prob: float = 1.0  # a fifth picture laid over a mosaic (tiny and nano 0)
    mixup_scale: tuple[float, float] = (0.5, 1.5)  # factors of the fifth picture
    affine_prob: float = 0.0  # not in YOLOX: an affine map about the centre, for a picture without mosaic
    affine_scale: tuple[float, float] = (0.8, 1.25)  # factors of that one
    degrees: float = 10.0  # turn of both affine maps
    translate: float = 0.1  # shift of both, as a share of width and height
    shear: float = 2.0  # of both, in degrees
    hsv_prob: float = 1.0  # colour jitter
    hsv_gains: tuple[int, int, int] = (5, 30, 30)  # up to so many 8-bit steps of hue, saturation, value
    flip_prob: float = 0.5  # mirror
    shift_prob: float = 0.0  # YOLOF (0.5): the picture moves inside its own canvas
    shift_max: int = 32  # pixels of that, from -32 to 31 along each axis
    min_box_side: float = 1.0  # pixels; a box must be wider and higher than this
    min_visible: float = 0.0  # not in YOLOX: smallest share of its area that a box must keep at each cut
    max_labels: int = (
        120  # objects a picture; more are left out (the official code takes 50 when mosaic is off for good)
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, (tuple, list)) else (value,)
            wanted = len(field.default) if isinstance(field.default, tuple) else 1
            if len(numbers) != wanted or not all(type(n) in (int, float) and abs(n) <= LARGEST for n in numbers):
                kind = "a number" if wanted == 1 else f"{wanted} numbers"
                raise MinidetError(f"augmentation: {field.name} is {value!r}, but it must be {kind}.")
            if field.name.endswith(("_prob", "_visible")) and not 0 <= value <= 1:
                raise MinidetError(f"augmentation: {field.name} is {value}, but it must lie between 0 and 1.")
            if field.name.endswith("_scale") and not 0 < value[0] <= value[1]:
                raise MinidetError(
                    f"augmentation: {field.name} is {value}, but it must be two factors above 0, the smaller one first."
                )
            if min(numbers) < 0:
                raise MinidetError(f"augmentation: {field.name} is {value}, but it must not be negative.")
        if self.shear >= 45:  # two shears of 45 degrees flatten a picture to a line
            raise MinidetError(f"augmentation: shear is {self.shear} degrees, but it must be below 45.")
        for name in ("max_labels", "shift_max"):
            value = getattr(self, name)
            if value < 1 or value != int(value):
                raise MinidetError(f"augmentation: {name} is {value}, but it must be a whole number, at least 1.")


# YOLOF's published augmentation, all of it: a mirror and a shift, and boxes of any size count.
FLIP_AND_SHIFT = Augmentation(mosaic_prob=0, mixup_prob=0, hsv_prob=0, shift_prob=0.5, min_box_side=0)


def draw_affine(
    size_hw: tuple[int, int],
    scale_range: tuple[float, float],
    augmentation: Augmentation,
    rng: np.random.Generator,
    centred: bool = False,
) -> Tensor:
    """The matrix [2, 3] of an affine map with random numbers, see `affine_matrix`."""
    a = augmentation
    return affine_matrix(
        angle=rng.uniform(-a.degrees, a.degrees),
        scale=rng.uniform(*scale_range),
        shear_x=rng.uniform(-a.shear, a.shear),
        shear_y=rng.uniform(-a.shear, a.shear),
        translate_x=rng.uniform(-a.translate, a.translate),
        translate_y=rng.uniform(-a.translate, a.translate),
        size_hw=size_hw,
        centred=centred,
    )


def draw_mosaic_centre(size_hw: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Where the four pictures meet: (x, y) from the middle half of the canvas."""
    height, width = size_hw
    y = int(rng.uniform(0.5 * height, 1.5 * height))
    x = int(rng.uniform(0.5 * width, 1.5 * width))
    return x, y


def draw_mixup(
    size_hw: tuple[int, int], augmentation: Augmentation, rng: np.random.Generator
) -> tuple[float, bool, tuple[int, int]]:
    """Scale, mirror and window (x, y) of the other picture in MixUp."""
    scale = rng.uniform(*augmentation.mixup_scale)
    flip = bool(rng.random() < 0.5)
    y = int(rng.integers(max(int(size_hw[0] * scale) - size_hw[0], 1)))
    x = int(rng.integers(max(int(size_hw[1] * scale) - size_hw[1], 1)))
    return scale, flip, (x, y)


def draw_hsv(augmentation: Augmentation, rng: np.random.Generator) -> tuple[int, int, int]:
    """Steps of hue, saturation and value: each is shifted or, one time in two, left alone."""
    offsets = rng.uniform(-1, 1, 3) * augmentation.hsv_gains * rng.integers(0, 2, 3)
    hue, saturation, value = (int(offset) for offset in offsets)  # cut towards 0, as the official code does
    return hue, saturation, value


def draw_shift(augmentation: Augmentation, rng: np.random.Generator) -> tuple[int, int]:
    """Whole pixels (x, y), uniform from -shift_max to shift_max - 1 along each axis; (0, 0) where nothing moves."""
    if rng.random() >= augmentation.shift_prob:
        return 0, 0
    x, y = rng.integers(-augmentation.shift_max, augmentation.shift_max, size=2)
    return int(x), int(y)


def random_affine(
    sample: Sample,
    size_hw: tuple[int, int],
    scale_range: tuple[float, float],
    augmentation: Augmentation,
    rng: np.random.Generator,
    centred: bool = False,
    fill: Fill = GREY,
) -> Sample:
    """An affine map with random numbers: `sample` of any size becomes a frame of `size_hw`, with its boxes clipped."""
    image, boxes, labels = sample
    matrix = draw_affine(size_hw, scale_range, augmentation, rng, centred)
    boxes, labels = cut_boxes(transform_boxes(boxes, matrix), labels, size_hw, augmentation.min_visible)
    return warp_affine(image, matrix, size_hw, fill), boxes, labels


def random_mosaic(
    tiles: Sequence[Sample],
    size_hw: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
    fill: Fill = GREY,
) -> Sample:
    """Four pictures around a random point, and of that canvas what a random affine map shows: [3, *size_hw]."""
    canvas = mosaic(tiles, draw_mosaic_centre(size_hw, rng), size_hw, augmentation.min_visible, fill)
    return random_affine(canvas, size_hw, augmentation.mosaic_scale, augmentation, rng, fill=fill)


def random_mixup(
    sample: Sample, other: Sample, augmentation: Augmentation, rng: np.random.Generator, fill: Fill = GREY
) -> Sample:
    """MixUp with a random size, mirror and window. `other` is a picture that fits into the frame of `sample`."""
    size_hw = tuple(sample[0].shape[-2:])
    scale, flip, offset_xy = draw_mixup(size_hw, augmentation, rng)
    other = pad(other[0], size_hw, fill), other[1], other[2]
    return mixup(sample, other, scale, flip, offset_xy, augmentation.min_visible)


def finish(
    sample: Sample,
    size_hw: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
    fill: Fill = GREY,
) -> Sample:
    """The last steps, which every training picture goes through: colour, mirror, shift, padding, choice of boxes.

    A picture without objects is only padded. Where no box is large enough in the end, the picture without colour and
    mirror is taken, with all its boxes, small ones included (but none without area: nothing could be learned from it).
    The shift comes after that choice and may push the last box out of the picture, as in YOLOF's official code.

    Args:
        sample: image [3, h, w] uint8 that fits into the frame, boxes in its pixels, labels.
        size_hw: height and width of the network input.
        augmentation: hsv, flip, shift, min_box_side and max_labels are used.
        rng: source of chance.
        fill: colour of the padding.

    Returns:
        Image [3, *size_hw] uint8, at most `max_labels` boxes, and their labels.

    Source: YOLOX, official code; chapter 10.
    """
    image, boxes, labels = sample
    if len(boxes) > 0:
        if rng.random() < augmentation.hsv_prob:
            image = hsv_jitter(image, *draw_hsv(augmentation, rng))
        if rng.random() < augmentation.flip_prob:
            image, boxes = flip_horizontal(image, boxes)
        keep = shorter_side(boxes) > augmentation.min_box_side
        if not keep.any():
            image, boxes, labels = sample
            keep = shorter_side(boxes) > 0
        boxes, labels = boxes[keep], labels[keep]
        if augmentation.shift_prob > 0:  # YOLOX draws no number for it
            offset_xy = draw_shift(augmentation, rng)
            if offset_xy != (0, 0):
                image, boxes, labels = shift((image, boxes, labels), offset_xy)
    most = augmentation.max_labels
    return pad(image, size_hw, fill), boxes[:most], labels[:most]


def random_size(rng: np.random.Generator, heights: tuple[int, int], input_hw: tuple[int, int]) -> tuple[int, int]:
    """A network input size for multi-scale training: the height uniform among multiples of 32, the width in proportion.

    Args:
        rng: source of chance.
        heights: lowest and highest height, multiples of 32.
        input_hw: the usual size, whose shape is kept as far as multiples of 32 allow.

    Returns:
        Height and width.

    Source: YOLOX, section 2.1; chapter 11.
    """
    rows = int(rng.integers(heights[0] // 32, heights[1] // 32 + 1))
    return 32 * rows, 32 * max(int(rows * input_hw[1] / input_hw[0]), 1)


def shorter_side(boxes: Tensor) -> Tensor:
    """[N], the smaller one of width and height of each box [N, 4] xyxy."""
    return (boxes[:, 2:] - boxes[:, :2]).amin(dim=1)
