"""Plans become pixels on a GPU, a whole batch at a time: look up where every pixel comes from, fetch it, blend, colour.

The pictures lie in one long row of pixels. That is either every picture of the data set, kept on the device, or those
that the batch needs, sent with it. Nothing here asks the device for a number, so the work can be queued ahead while the
network computes; the same code runs on a CPU, where `minidet.data.render` is faster.

Source: chapter 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minidet.data.augment import hsv_jitter
from minidet.data.plan import SamplePlan, inverse

TILES = 4  # pictures in the first layer; MixUp's partner comes after them


class PlanTensors(NamedTuple):
    """A batch of plans in numbers; P = 5 counts the places for pictures: four tiles and MixUp's partner.

    Attributes:
        starts: [B, P] int64, where the stored pictures begin, in pixels.
        sizes: [B, P, 2] int64, their height and width.
        maps: [B, P, 2, 3] float32, from centres of pixels in the frame to those in the picture.
        windows: [B, P, 4] float32, the part that is shown, from the edge of the picture; x1 = x2 for no picture.
        rects: [B, 3, 4] int32, canvas, content and MixUp's frame as x1, y1, x2, y2; x1 = x2 for no MixUp.
        hsv: [B, 3] int32.
    """

    starts: Tensor
    sizes: Tensor
    maps: Tensor
    windows: Tensor
    rects: Tensor
    hsv: Tensor


def plan_tensors(plans: Sequence[SamplePlan], starts: Sequence[Mapping[int, int]]) -> PlanTensors:
    """Plans as tensors on the CPU.

    Args:
        plans: B of them.
        starts: for each plan the first pixel of every picture in it, by the picture's index.
    """
    places = TILES + 1
    first = np.zeros((len(plans), places), dtype=np.int64)
    sizes = np.ones((len(plans), places, 2), dtype=np.int64)
    maps = np.zeros((len(plans), places, 2, 3), dtype=np.float32)
    windows = np.zeros((len(plans), places, 4), dtype=np.float32)
    rects = np.zeros((len(plans), 3, 4), dtype=np.int32)
    for b, plan in enumerate(plans):
        placed = dict(enumerate(plan.tiles)) | ({} if plan.partner is None else {TILES: plan.partner})
        for p, placement in placed.items():
            first[b, p] = starts[b][placement.index]
            sizes[b, p] = placement.picture_hw
            maps[b, p] = inverse(placement.matrix)
            windows[b, p] = placement.window
        rects[b] = (0, 0, plan.canvas_hw[1], plan.canvas_hw[0]), plan.content, plan.partner_frame or (0, 0, 0, 0)
    hsv = np.asarray([plan.hsv for plan in plans], dtype=np.int32)
    return PlanTensors(*map(torch.from_numpy, (first, sizes, maps, windows, rects, hsv)))


def render_batch(pixels: Tensor, plans: PlanTensors, size_hw: tuple[int, int], fill: Tensor) -> Tensor:
    """Paint a batch of training pictures.

    Args:
        pixels: [N, 3] uint8, all pictures one after the other, each row by row.
        plans: of B pictures, on the same device.
        size_hw: height and width of the frames.
        fill: [3] uint8 on the same device, what no picture covers.

    Returns:
        [B, 3, *size_hw] uint8, channels innermost in memory.
    """
    x = torch.arange(size_hw[1], device=pixels.device)
    y = torch.arange(size_hw[0], device=pixels.device)[:, None]
    canvas, content, partner_frame = (_inside(rect, x, y) for rect in plans.rects.unbind(1))  # [B, H, W, 1] each
    nothing = fill.new_zeros(3)

    frames = _layer(pixels, plans, slice(0, TILES), x, y, fill)
    other = _layer(pixels, plans, slice(TILES, TILES + 1), x, y, torch.where(partner_frame, fill, nothing))
    has_partner = (plans.rects[:, 2, 2] > plans.rects[:, 2, 0]).view(-1, 1, 1, 1)
    frames = torch.where(has_partner, ((frames.to(torch.int16) + other) >> 1).to(torch.uint8), frames)

    frames = frames.permute(0, 3, 1, 2)  # [B, 3, H, W]
    moves = plans.hsv.view(-1, 3, 1, 1)
    coloured = hsv_jitter(frames, *moves.unbind(1))
    frames = torch.where((moves != 0).any(dim=1, keepdim=True), coloured, frames).permute(0, 2, 3, 1)
    frames = torch.where(content, frames, torch.where(canvas, nothing, fill))
    return frames.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _inside(rect: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[B, H, W, 1] bool: the pixels in a rectangle [B, 4]."""
    x1, y1, x2, y2 = rect.view(-1, 4, 1, 1).unbind(1)
    return ((x >= x1) & (x < x2) & (y >= y1) & (y < y2))[..., None]


def _layer(pixels: Tensor, plans: PlanTensors, places: slice, x: Tensor, y: Tensor, background: Tensor) -> Tensor:
    """Sample some of the pictures over a background, the later ones over the earlier: [B, H, W, 3] uint8."""
    source_x = source_y = pixels.new_zeros((), dtype=torch.float32)
    start = height = width = pixels.new_zeros((), dtype=torch.int64)
    covered = pixels.new_zeros((), dtype=torch.bool)
    for p in range(places.start, places.stop):
        (a, b, u), (c, d, v) = (row.unbind(1) for row in plans.maps[:, p, :, :, None, None].unbind(1))
        at_x, at_y = a * x + (b * y + u), c * x + (d * y + v)  # [B, H, W]: where does each pixel come from?
        x1, y1, x2, y2 = (plans.windows[:, p, :, None, None] - 0.5).unbind(1)
        here = (at_x >= x1) & (at_x < x2) & (at_y >= y1) & (at_y < y2)
        source_x, source_y = torch.where(here, at_x, source_x), torch.where(here, at_y, source_y)
        start = torch.where(here, plans.starts[:, p, None, None], start)
        height = torch.where(here, plans.sizes[:, p, 0, None, None], height)
        width = torch.where(here, plans.sizes[:, p, 1, None, None], width)
        covered = here | covered
    left, top = source_x.floor(), source_y.floor()
    weight_x, weight_y = (source_x - left)[..., None], (source_y - top)[..., None]
    last_x, last_y = (width - 1).clamp(min=0), (height - 1).clamp(min=0)
    left, top = left.to(torch.int64), top.to(torch.int64)

    def row(line: Tensor) -> Tensor:
        begin = start + line.clamp(min=0).minimum(last_y) * width
        near = pixels[begin + left.clamp(min=0).minimum(last_x)].float()  # [B, H, W, 3]
        far = pixels[begin + (left + 1).clamp(min=0).minimum(last_x)].float()
        return near + (far - near) * weight_x

    above = row(top)
    sampled = above + (row(top + 1) - above) * weight_y
    return torch.where(covered[..., None], sampled.round().to(torch.uint8), background)
