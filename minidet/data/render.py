"""Plans become pixels on the CPU: every picture is sampled once, straight into the frame, then blended and coloured.

OpenCV does the work: it is several times as fast as the same steps in torch on a CPU, and lets go of Python's lock, so
that threads of one process can paint side by side. `minidet.data.render_tensors` does the same for a whole batch on a
GPU, and `minidet.data.augment` step by step, to be read.

Pictures are [H, W, 3] here, as they are decoded, painted and convolved fastest.

Source: chapter 10.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from minidet.data.augment import GREY, Fill
from minidet.data.plan import Placement, Rect, SamplePlan, hull

# Our own threads and processes are the parallelism. OpenCV's would multiply with them, and a process that was forked
# while they ran could wait for them for ever.
cv2.setNumThreads(0)


LARGEST_DETOUR = 4  # times the frame, that a picture may be resized to before a part of it is taken


def render(
    plan: SamplePlan,
    pictures: Mapping[int, np.ndarray],
    frame: np.ndarray,
    fill: Fill = GREY,
) -> None:
    """Paint a training picture.

    Args:
        plan: what to paint.
        pictures: the stored pictures, [h, w, 3] uint8, by their index.
        frame: [H, W, 3] uint8, at least as large as the plan's; all of it is written.
        fill: colour of what no picture covers, one value or red, green and blue.
    """
    colour = fill_colour(fill)
    height, width = plan.canvas_hw
    x1, y1, x2, y2 = plan.content
    frame[height:] = colour  # padding
    frame[:height, width:] = colour
    if (x1, y1, x2, y2) != (0, 0, width, height):
        frame[:height, :width] = 0  # what a shift leaves
    content = frame[y1:y2, x1:x2]
    if content.size == 0:
        return
    content[:] = colour
    paint(content, (x1, y1), plan.tiles, pictures)
    if plan.partner_frame is not None:
        other = np.zeros_like(content)
        u1, v1, u2, v2 = plan.partner_frame
        other[v1 - y1 : v2 - y1, u1 - x1 : u2 - x1] = colour
        paint(other, (x1, y1), () if plan.partner is None else (plan.partner,), pictures)
        blend(content, other)
    if any(plan.hsv):
        jitter(content, plan.hsv)


def fill_colour(fill: Fill) -> np.ndarray:
    """[3] uint8 red, green and blue of a `Fill`."""
    return np.broadcast_to(np.rint(fill).astype(np.uint8), 3)


def paint(
    region: np.ndarray,
    corner_xy: tuple[int, int],
    placements: Sequence[Placement],
    pictures: Mapping[int, np.ndarray],
) -> None:
    """Lay pictures over a part of the frame, the later ones over the earlier.

    Args:
        region: [h, w, 3] uint8, that part; what no picture covers stays.
        corner_xy: its place in the frame.
        placements: which pictures, and where in the frame.
        pictures: by their index.
    """
    for placement in placements:
        matrix = placement.matrix - [[0, 0, corner_xy[0]], [0, 0, corner_xy[1]]]
        # All pixels whose centres may lie in the picture.
        x1, y1, x2, y2 = (math.ceil(side - 0.5) for side in hull(matrix, placement.window))
        x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, region.shape[1]), min(y2, region.shape[0])
        if x1 >= x2 or y1 >= y2:
            continue
        picture = pictures[placement.index]
        if not _resized_into(region, (x1, y1, x2, y2), matrix, picture):
            _warp_into(region[y1:y2, x1:x2], matrix - [[0, 0, x1], [0, 0, y1]], picture, placement.window)


def _resized_into(region: np.ndarray, rect: Rect, matrix: np.ndarray, picture: np.ndarray) -> bool:
    """Paint a picture that is neither turned nor sheared and lies on whole pixels; False for any other.

    Such a picture is only resized, perhaps mirrored, and cut, which is faster than the general map.
    """
    (scale_x, shear_x, x), (shear_y, scale_y, y) = matrix.tolist()
    if shear_x or shear_y or scale_y < 0:
        return False
    mirrored, scale_x = scale_x < 0, abs(scale_x)
    left = x + (scale_x - 1) / 2 if mirrored else x - (scale_x - 1) / 2  # of the resized picture, by a centre
    top = y - (scale_y - 1) / 2
    if abs(left - round(left)) > 1e-6 or abs(top - round(top)) > 1e-6:
        return False
    if scale_x * scale_y * picture.size > LARGEST_DETOUR * region.size:  # most of it would be cut away again
        return False
    resized = picture
    if (scale_x, scale_y) != (1, 1):
        resized = cv2.resize(picture, None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_LINEAR)
    left, top = round(left), round(top)
    if mirrored:
        resized = resized[:, ::-1]
        left -= resized.shape[1] - 1
    x1, y1, x2, y2 = max(rect[0], left), max(rect[1], top), *rect[2:]
    x2, y2 = min(x2, left + resized.shape[1]), min(y2, top + resized.shape[0])
    region[y1:y2, x1:x2] = resized[y1 - top : y2 - top, x1 - left : x2 - left]
    return True


def _warp_into(
    target: np.ndarray, matrix: np.ndarray, picture: np.ndarray, window: tuple[float, float, float, float]
) -> None:
    """Paint the window of a picture by any affine map.

    A border of one pixel is put around it: where nothing is known about a neighbour, OpenCV mixes in what stands in the
    target, and between two tiles of a mosaic that would be a line of grey.
    """
    u1, v1 = max(math.floor(window[0]), 0), max(math.floor(window[1]), 0)
    u2, v2 = math.ceil(window[2]), math.ceil(window[3])
    bordered = cv2.copyMakeBorder(picture[v1:v2, u1:u2], 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ [u1 - 1, v1 - 1]
    cv2.warpAffine(
        bordered,
        moved,
        (target.shape[1], target.shape[0]),
        dst=target,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_TRANSPARENT,
    )


def blend(frame: np.ndarray, other: np.ndarray) -> None:
    """The mean of two pictures, rounded down, replaces the first; both [h, w, 3] uint8."""
    cv2.addWeighted(frame, 0.5, other, 0.5, -0.25, dst=frame)  # halves less a quarter are rounded down


_STEPS = np.arange(256)


def jitter(frame: np.ndarray, hsv: tuple[int, int, int]) -> None:
    """Move the colours of a picture [h, w, 3] uint8 by steps of hue, saturation and value, see `augment.hsv_jitter`."""
    hue, saturation, value = hsv
    table = np.stack([(_STEPS + hue) % 180, (_STEPS + saturation).clip(0, 255), (_STEPS + value).clip(0, 255)], axis=-1)
    colours = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
    cv2.LUT(colours, table.astype(np.uint8)[None], dst=colours)
    cv2.cvtColor(colours, cv2.COLOR_HSV2RGB, dst=frame)
