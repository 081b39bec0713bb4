"""A detection data set drawn from a seed: cut-out shapes on textured paper, from 20 pixels to nearly the whole picture.

Scale variation and ambiguity are what YOLOF and YOLOX are about, so the pictures have both: sizes drawn evenly on a
logarithmic scale, crowds, occlusion, objects cut by the border (chapter 00). Every object is a signed distance field -
at each pixel, how far to the outline, negative inside - and from that one array come its mask, its smooth edge, its rim
and its soft shadow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from minidet.errors import DataError
from minidet.files import atomic_write, read_json, write_json

Array = NDArray[Any]

CLASS_NAMES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ShapesConfig:
    """What to draw. Two equal configurations give the same files, byte for byte."""

    train: int = 600  # pictures to train on
    val: int = 150  # pictures to choose by
    test: int = 150  # pictures to report on
    image_hw: tuple[int, int] = (192, 256)  # height and width of every picture, in pixels
    seed: int = 0  # another seed, another world
    min_side: float = 20.0  # longer side of the smallest object, in pixels; below 8 nobody can tell the classes apart
    max_side: float = 0.95  # longer side of the largest object, as a share of the picture's shorter side
    objects: tuple[int, int] = (2, 9)  # fewest and most objects in a picture, a crowd not counted
    crowd_share: float = 0.15  # share of pictures with a crowd: 6 to 16 more objects, small and close together
    empty_share: float = 0.01  # share of pictures without any object
    min_visible: float = 0.3  # an object of which less than this share can be seen is not drawn at all
    one_class: bool = False  # call them all "shape": finding is learned in minutes, telling eight kinds apart is not

    def __post_init__(self) -> None:
        for name in ("image_hw", "objects"):  # a command line or a JSON file gives lists
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or len(value) != 2 or not all(_is_int(v) for v in value):
                raise DataError(f"ShapesConfig.{name} is {value!r}; it needs two whole numbers.")
            object.__setattr__(self, name, tuple(value))
        for name in (*SPLITS, "seed"):
            value = getattr(self, name)
            if not _is_int(value) or value < 0:
                raise DataError(f"ShapesConfig.{name} is {value!r}; it needs a whole number, 0 or more.")
        if min(self.image_hw) < 64:
            raise DataError(f"ShapesConfig.image_hw is {self.image_hw}; height and width need at least 64 pixels each.")
        if max(self.image_hw) > 8192:
            raise DataError(f"ShapesConfig.image_hw is {self.image_hw}; a side has 8,192 pixels at most.")
        low, high = self.objects
        if not 0 <= low <= high <= 100:
            raise DataError(f"ShapesConfig.objects is {self.objects}; it needs 0 <= fewest <= most <= 100.")
        if not isinstance(self.one_class, bool):
            raise DataError(f"ShapesConfig.one_class is {self.one_class!r}; it needs True or False.")
        for name in ("min_side", "max_side", "crowd_share", "empty_share", "min_visible"):
            if not isinstance(getattr(self, name), int | float) or isinstance(getattr(self, name), bool):
                raise DataError(f"ShapesConfig.{name} is {getattr(self, name)!r}; it needs a number.")
        for name in ("crowd_share", "empty_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"ShapesConfig.{name} is {getattr(self, name)!r}; a share lies between 0 and 1.")
        if not 0 < self.min_visible <= 1:
            raise DataError(f"ShapesConfig.min_visible is {self.min_visible!r}; it needs a share above 0, 1 at most.")
        if not 0 < self.max_side <= 1:
            raise DataError(f"ShapesConfig.max_side is {self.max_side!r}; it needs a share above 0, 1 at most.")
        if not 6 <= self.min_side <= self.max_side * min(self.image_hw):
            raise DataError(
                f"ShapesConfig.min_side is {self.min_side!r}; it needs at least 6 pixels and at most the largest side, "
                f"here {self.max_side:g} x {min(self.image_hw)} = {self.max_side * min(self.image_hw):g} pixels."
            )


@dataclass(frozen=True)
class Scene:
    """One picture and what is in it; the objects stand from the back to the front.

    A box is the tight hull of an object's own pixels inside the picture, those included that something covers.
    """

    image: Array  # uint8 [H, W, 3], RGB
    boxes: Array  # float32 [N, 4], xyxy in pixels
    labels: Array  # int64 [N], positions in CLASS_NAMES
    masks: Array  # bool [N, H, W], an object's pixels inside the picture before anything covers them
    visible: Array  # int64 [N], how many of them can be seen
    full: Array  # int64 [N], how many the whole object has, those outside the picture included


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------- outlines


def _star(x: Array, y: Array, points: int, waist: float) -> Array:
    """Signed distance to a star with its first tip at (0, -1) and its inner corners `waist` from the centre.

    All tips look alike, so every pixel is folded into one half of one tip, whose outline is a single line.
    """
    sector = 2 * math.pi / points
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - np.round(angle / sector) * sector)  # 0 on the axis of the nearest tip
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle) - 1, radius * np.sin(angle)  # seen from the tip
    corner_x, corner_y = waist * math.cos(sector / 2) - 1, waist * math.sin(sector / 2)
    length = math.hypot(corner_x, corner_y)
    t = np.clip((along * corner_x + across * corner_y) / length**2, 0, 1)
    distance = np.hypot(along - t * corner_x, across - t * corner_y)
    inside = across * corner_x > along * corner_y
    return np.where(inside, -distance, distance)


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)


def _outline(label: int, form: float, x: Array, y: Array) -> Array:
    """Signed distance to the outline of a class, about 1 from its centre, upright, with y downwards.

    `form` in [0, 1] is what may differ within the class: how thick a ring is, how round a corner, how full a moon.
    """
    name = CLASS_NAMES[label]
    if name == "circle":
        return np.hypot(x, y) - 1
    if name == "ring":
        thickness = 0.17 + 0.07 * form
        return np.abs(np.hypot(x, y) - (1 - thickness)) - thickness
    if name == "moon":
        bite = 0.8 - 0.06 * form
        return np.maximum(np.hypot(x, y) - 1, bite - np.hypot(x - 0.4 - 0.1 * form, y + 0.12)) - 0.03
    if name == "cross":
        thickness, corner = 0.26 + 0.08 * form, 0.03 + 0.06 * form
        reach = 1 - corner
        return np.minimum(_box(x, y, reach, thickness - corner), _box(x, y, thickness - corner, reach)) - corner
    if name == "heart":  # a square standing on its tip, with a disc on each upper side
        half = 0.62
        u, v = (x + y) * math.sqrt(0.5), (x - y) * math.sqrt(0.5)
        discs = np.minimum(np.hypot(u, v - half), np.hypot(u + half, v)) - half
        return np.minimum(_box(u, v, half - 0.05, half - 0.05) - 0.05, discs)
    corner = 0.02 + 0.1 * form
    if name == "square":
        return _box(x, y, 1 - corner, 1 - corner) - corner
    points, waist = (3, 0.5) if name == "triangle" else (5, 0.42 + 0.08 * form)  # a triangle is a star without a waist
    return _star(x / (1 - corner), y / (1 - corner), points, waist) * (1 - corner) - corner


# ------------------------------------------------------------------------------------------------ colours

# Each line is one mood: three colours of paper, then six inks for what lies on it. Which class gets which ink is left
# to chance, so colour tells nothing about the class. A colour is [3, 1, 1]: it broadcasts against pictures [3, H, W].
_PALETTES = tuple(
    np.array([list(bytes.fromhex(code)) for code in line.split()], dtype=np.float32)[..., None, None] / 255
    for line in (
        "f6f0e4 ebdfca fbf7ee e4572e 1ea896 ffbe0b 2e3440 4062bb 8f5db7",  # linen
        "2b2d42 3d405b 5c4b7d ef8354 f4d35e f25f5c 70c1b3 edf2f4 9bb1ff",  # dusk
        "d8f0e3 bfe3d0 eef8f2 ff6b6b 1a535c ffa62b 845ec2 2c73d2 d65db1",  # mint
        "ffe5d9 ffcdb2 fff1e6 7b2cbf 3a86ff d62828 2a9d8f 264653 f77f00",  # peach
        "0b3954 0f5c7a 087e8b ff6f61 ffd166 f2f7f2 bfd7ea f4a261 e5989b",  # sea
        "e4dcf1 cdc1e8 f3effa 5a189a ff6392 06a77d f5a300 1b7fc4 33312e",  # lavender
        "22392c 31572c 4f772d f9dc5c f4a261 f1e3c6 ef767a c8e6a0 90e0ef",  # forest
        "cfe8f7 a9d6ee e9f5fb ef476f f79d00 0f6c97 073b4c 7b2cbf 0a8f6c",  # sky
        "b5533c c4694b d58a66 f6e7cb 26343f f7cf7d 3d5a50 1d3557 fbfaf5",  # terracotta
        "3c4856 4f5d75 5f6f86 f7c59f ef8354 a8dadc f1faee ffd166 ff9fb2",  # slate
        "f9d5df f4bccb fceaf0 7d1d3f 2d6a6a e63946 3d5a98 e08700 5b8c4a",  # rose
        "e9c46a f0d48a dfb24d 264653 d62839 2a6f97 6d2e46 fffaec 2f6b3a",  # mustard
        "181d3f 242c66 38275e ff7ac6 7de3ff ffd93d 9bf6a5 ff9f68 f4f1ff",  # midnight
        "dcdcd8 c9c9c4 ececea d1495b 00798c e59f12 30638e 133c55 6b9b3a",  # clay
    )
)


def _mix(a: Array, b: Array | float, t: Array | float) -> Array:
    """From colour a (t = 0) to colour b (t = 1); t [H, W] gives a picture [3, H, W]."""
    return a + (b - a) * t


def _contrast(a: Array, b: Array) -> Array:
    """How different colours look, roughly: 0 equal, above 1 black on white; the eye sees brightness better than hue.

    a: [K, 3, 1] and b: [3, P], in [0, 1]; gives [K, P].
    """
    difference = a - b
    brightness = 0.3 * difference[:, 0] + 0.59 * difference[:, 1] + 0.11 * difference[:, 2]
    return np.abs(brightness) + 0.4 * np.sqrt((difference**2).sum(axis=1))


# --------------------------------------------------------------------------------------------- textures


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Array:
    """Smooth random hills in [0, 1], `cell` pixels from one to the next."""
    coarse = rng.random((math.ceil(height / cell) + 3, math.ceil(width / cell) + 3), dtype=np.float32)
    region = (1, 1, 1 + width / cell, 1 + height / cell)
    return np.clip(np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC, region)), 0, 1)


def _bands(u: Array, period: float, share: float) -> Array:
    """Stripes across u with soft edges: 1 in the middle `share` of each period, 0 between."""
    distance = np.abs(u / period - np.floor(u / period) - 0.5) * period
    return np.clip(share * period / 2 - distance + 0.5, 0, 1)


def _dots(u: Array, v: Array, spacing: float, radius: float) -> Array:
    """A lattice of dots, every second row shifted by half a step."""
    row = np.floor(v / spacing)
    du = (u / spacing + row / 2) % 1 - 0.5
    dv = v / spacing - row - 0.5
    return np.clip(radius - np.hypot(du, dv) * spacing + 0.5, 0, 1)


def _paper(rng: np.random.Generator, height: int, width: int, palette: Array) -> Array:
    """The background: a slow change between two papers, with a third in a pattern on top. [3, H, W] in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    first, second, third = palette[rng.permutation(3)]
    angle = rng.uniform(0, 2 * math.pi)
    u = (x - width / 2) * math.cos(angle) + (y - height / 2) * math.sin(angle)
    v = (y - height / 2) * math.cos(angle) - (x - width / 2) * math.sin(angle)
    diagonal = math.hypot(height, width)
    if rng.random() < 0.5:
        base = _mix(first, second, np.clip(u / diagonal + 0.5, 0, 1))
    else:
        base = _mix(first, second, _noise(rng, height, width, rng.uniform(0.25, 0.7) * diagonal))

    kind = rng.integers(10)
    period = float(rng.uniform(0.05, 0.16)) * diagonal
    if kind == 0:  # plain
        pattern = np.zeros_like(x)
    elif kind == 1:
        pattern = _bands(u, period, rng.uniform(0.2, 0.5))
    elif kind == 2:  # waves
        pattern = _bands(u + 0.25 * period * np.sin(v * (2 * math.pi / (2.5 * period))), period, rng.uniform(0.25, 0.5))
    elif kind == 3:  # small dots, too small to be taken for circles
        pattern = _dots(u, v, rng.uniform(12, 22), rng.uniform(1.2, 2.2))
    elif kind == 4:  # gingham
        pattern = (_bands(u, period, 0.5) + _bands(v, period, 0.5)) / 2
    elif kind == 5:  # squared paper
        pattern = np.maximum(_bands(u, period / 1.5, 2.0 / period), _bands(v, period / 1.5, 2.0 / period)) * 0.8
    elif kind == 6:  # rays from a point
        turn = np.arctan2(y - rng.uniform(0, height), x - rng.uniform(0, width)) / (2 * math.pi)
        rays = int(rng.integers(8, 17))
        pattern = np.clip((0.25 - np.abs(turn * rays % 1 - 0.5)) * 24 + 0.5, 0, 1)
    elif kind == 7:  # contour lines of a landscape
        hills = _noise(rng, height, width, rng.uniform(0.12, 0.25) * diagonal)
        pattern = np.clip(1.6 - np.abs(hills * 9 % 1 - 0.5) * 14, 0, 1)
    elif kind == 8:  # soft blobs
        pattern = np.clip((_noise(rng, height, width, rng.uniform(0.08, 0.2) * diagonal) - 0.5) * 6 + 0.5, 0, 1)
    else:  # flecks, as in handmade paper
        pattern = np.clip((_noise(rng, height, width, rng.uniform(4, 7)) - 0.83) * 12, 0, 1)
    ink = third if rng.random() < 0.7 else _mix(base, palette[rng.integers(3, len(palette))], 0.35)
    return _mix(base, ink, pattern * np.float32(rng.uniform(0.45, 0.9)))


_FILLS = {"plain": 0.24, "gradient": 0.22, "rim": 0.16, "stripes": 0.14, "dots": 0.1, "gingham": 0.06, "marble": 0.08}


def _fill(rng: np.random.Generator, item: _Item, window: tuple[slice, slice], first: Array, second: Array) -> Array:
    """An object's own surface inside its window, in coordinates that turn with it. [3, h, w]."""
    u, v, distance, side = item.u[window], item.v[window], item.distance[window], item.side
    tint = _mix(first, float(rng.random() < 0.6), float(rng.uniform(0.2, 0.45)))  # the same ink, lighter or darker
    other = second if rng.random() < 0.45 else tint
    kind = rng.choice(list(_FILLS), p=list(_FILLS.values()))
    if kind == "plain" or side < 16 or (side < 30 and kind not in ("gradient", "rim")):
        return np.broadcast_to(first, (3, *u.shape))
    if kind == "gradient":
        return _mix(first, other, np.clip(v / side + 0.5, 0, 1))
    if kind == "rim":
        width = max(1.5, side * float(rng.uniform(0.04, 0.07)))
        return _mix(first, other, np.clip(distance + width + 0.5, 0, 1))
    if kind == "stripes":
        return _mix(first, other, _bands(u, max(6.0, side * float(rng.uniform(0.12, 0.22))), 0.45))
    if kind == "dots":
        spacing = max(7.0, side * float(rng.uniform(0.12, 0.18)))
        return _mix(first, other, _dots(u, v, spacing, spacing * 0.27))
    if kind == "gingham":
        period = max(8.0, side * float(rng.uniform(0.14, 0.22)))
        return _mix(first, other, (_bands(u, period, 0.5) + _bands(v, period, 0.5)) / 2)
    return _mix(first, tint, np.clip((_noise(rng, *u.shape, side / 5) - 0.5) * 5 + 0.5, 0, 1))


# ------------------------------------------------------------------------------------------ composition


@dataclass
class _Item:
    """One object on its way into the picture: what it is, how large, and where its hull lies."""

    label: int
    form: float
    angle: float
    side: float  # longer side of the hull, in pixels
    scale: float  # pixels per unit of the outline
    width: float  # of the hull
    height: float
    offset: tuple[float, float]  # from the hull's left upper corner to the outline's origin
    left: float = 0.0
    top: float = 0.0
    # render() sets these, on a window [h, w] that may reach beyond the picture:
    x: int = field(init=False)  # the window's left upper corner
    y: int = field(init=False)
    u: Array = field(init=False)  # coordinates from the outline's origin that turn with the object, in pixels
    v: Array = field(init=False)
    distance: Array = field(init=False)  # to the outline, in pixels, negative inside

    @property
    def lift(self) -> float:
        """How far the object seems to lie above the paper, in pixels: decides its shadow."""
        return min(max(0.05 * self.side, 1.2), 7.0)

    def render(self) -> None:
        """Compute the distance field, on a window that has room for the shadow."""
        margin = 2.5 * self.lift + 2
        self.x, self.y = math.floor(self.left - margin), math.floor(self.top - margin)
        columns = np.arange(self.x, math.ceil(self.left + self.width + margin), dtype=np.float32)
        rows = np.arange(self.y, math.ceil(self.top + self.height + margin), dtype=np.float32)
        x = columns + 0.5 - (self.left + self.offset[0])
        y = rows[:, None] + 0.5 - (self.top + self.offset[1])
        self.u, self.v = _turn(x, y, self.angle)
        self.distance = _outline(self.label, self.form, self.u / self.scale, self.v / self.scale) * self.scale

    def crop(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of the window that lies in the picture, as slices of the picture and of the window."""
        h, w = self.distance.shape
        y1, y2, x1, x2 = max(self.y, 0), min(self.y + h, height), max(self.x, 0), min(self.x + w, width)
        return (slice(y1, y2), slice(x1, x2)), (slice(y1 - self.y, y2 - self.y), slice(x1 - self.x, x2 - self.x))


def _turn(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


_PROBE = np.linspace(-1.5, 1.5, 61, dtype=np.float32)


def _new_item(rng: np.random.Generator, side: float, label: int | None = None) -> _Item:
    """An object of some class, form and angle whose hull is `side` pixels long."""
    label = int(rng.integers(len(CLASS_NAMES))) if label is None else label
    form = float(rng.random())
    angle = float(rng.normal(0, 0.3))  # radians: mostly upright, as most things are
    inside = _outline(label, form, *_turn(_PROBE, _PROBE[:, None], angle)) <= float(_PROBE[1] - _PROBE[0]) / 2
    x1, y1, x2, y2 = _PROBE[_hull(inside) - np.array([0, 0, 1, 1])].tolist()
    scale = side / max(x2 - x1, y2 - y1)
    return _Item(label, form, angle, side, scale, (x2 - x1) * scale, (y2 - y1) * scale, (-x1 * scale, -y1 * scale))


def _hull(mask: Array) -> Array:
    """The tight box round the True pixels of a mask, xyxy."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _place(rng: np.random.Generator, item: _Item, placed: list[_Item], height: int, width: int) -> None:
    """Try a few places and take the one that hides least of what lies below; now and then, one that hides something."""
    wanted = 0.25 if rng.random() < 0.25 else 0.0
    tries = 12
    left = rng.uniform(0, max(width - item.width, 0), tries)
    top = rng.uniform(0, max(height - item.height, 0), tries)
    if item.side >= 24 and rng.random() < 0.12:  # a border cuts it, at most half of it beyond
        beyond = rng.uniform(0.1, 0.5)
        if rng.random() < 0.5:
            left[:] = -beyond * item.width if rng.random() < 0.5 else width - (1 - beyond) * item.width
        else:
            top[:] = -beyond * item.height if rng.random() < 0.5 else height - (1 - beyond) * item.height
    hidden = np.zeros(tries)
    for other in placed:
        across = np.minimum(left + item.width, other.left + other.width) - np.maximum(left, other.left)
        down = np.minimum(top + item.height, other.top + other.height) - np.maximum(top, other.top)
        overlap = np.maximum(across, 0) * np.maximum(down, 0)
        share = max(1 / (other.width * other.height), 0.3 / (item.width * item.height))
        hidden = np.maximum(hidden, overlap * share)
    best = int(np.abs(hidden - wanted).argmin())
    item.left, item.top = float(left[best]), float(top[best])


def _crowd(rng: np.random.Generator, config: ShapesConfig) -> Iterator[_Item]:
    """Small objects close together: thrown on a heap, or laid out along an arc."""
    height, width = config.image_hw
    low, high = config.min_side, config.max_side * min(height, width)
    side = math.exp(rng.uniform(math.log(low), math.log(min(3 * low, high))))
    count = int(rng.integers(6, 17))
    label = int(rng.integers(len(CLASS_NAMES))) if rng.random() < 0.4 else None
    center_x, center_y = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height
    if rng.random() < 0.35:
        radius = rng.uniform(2.5, 5) * side
        angles = rng.uniform(0, 2 * math.pi) + np.arange(count) * 1.1 * side / radius
        xs, ys = center_x + radius * np.cos(angles), center_y + radius * np.sin(angles)
    else:
        spread = side * math.sqrt(count) * rng.uniform(0.45, 0.8)
        xs, ys = rng.normal(center_x, spread, count), rng.normal(center_y, spread, count)
    for x, y in zip(xs, ys, strict=True):
        item = _new_item(rng, float(np.clip(side * rng.uniform(0.8, 1.25), low, high)), label)
        item.left = float(np.clip(x - item.width / 2, 0, width - item.width))
        item.top = float(np.clip(y - item.height / 2, 0, height - item.height))
        yield item


def _compose(rng: np.random.Generator, config: ShapesConfig) -> list[_Item]:
    """Choose the objects and where they lie, from the back to the front: large ones mostly behind small ones."""
    if rng.random() < config.empty_share:
        return []
    height, width = config.image_hw
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    low, high = config.min_side, config.max_side * min(height, width)
    sides = np.exp(rng.uniform(math.log(low), math.log(high), count))
    while count > 1 and (sides**2).sum() > 0.8 * height * width and sides.max() > 2 * low:  # leave room to see them all
        sides[sides.argmax()] /= 2
    items: list[_Item] = []
    for side in sides[np.argsort(-np.log(sides) + rng.normal(0, 0.4, count))]:
        item = _new_item(rng, float(side))
        _place(rng, item, items, height, width)
        items.append(item)
    if rng.random() < config.crowd_share:
        items.extend(_crowd(rng, config))
    return items


def _visible_only(items: list[_Item], config: ShapesConfig) -> list[tuple[_Item, Array, int, int]]:
    """Leave out what can hardly be seen, looking from the front to the back; what is left out hides nothing.

    Returns (item, mask [H, W], visible pixels, pixels of the whole object), from the back to the front.
    """
    taken = np.zeros(config.image_hw, dtype=bool)
    kept = []
    for item in reversed(items):
        item.render()
        inside = item.distance <= 0
        mask = np.zeros(config.image_hw, dtype=bool)
        picture, window = item.crop(*config.image_hw)
        mask[picture] = inside[window]
        visible, full = int((mask & ~taken).sum()), int(inside.sum())
        if visible >= max(config.min_visible * full, 1):
            kept.append((item, mask, visible, full))
            taken |= mask
    return kept[::-1]


# ----------------------------------------------------------------------------------------------- painting


def _paint(
    rng: np.random.Generator, canvas: Array, item: _Item, inks: Array, light: tuple[float, float], shade: float
) -> None:
    """Lay one object on the canvas [3, H, W], with its shadow."""
    picture, window = item.crop(*canvas.shape[1:])
    view, distance = canvas[(slice(None), *picture)], item.distance
    solid = np.clip(0.5 - distance, 0, 1)  # how much of each pixel the object covers
    alpha = solid[window]
    below = view[:, alpha >= 0.5]  # [3, P]
    inks = inks[rng.permutation(len(inks))]
    stands_out = np.quantile(_contrast(inks[..., 0], below[:, :: below.shape[1] // 40 + 1]), 0.25, axis=1)
    first = int((stands_out > 0.25).argmax()) if (stands_out > 0.25).any() else int(stands_out.argmax())
    surface = _fill(rng, item, window, inks[first], inks[(first + 1) % len(inks)])

    rows, columns = np.indices(alpha.shape, dtype=np.float32, sparse=True)
    glow = 1.06 - 0.12 * (light[0] * (columns / item.width - 0.5) + light[1] * (rows / item.height - 0.5))
    if item.side >= 20:  # the cut edge of the paper catches the light on one side
        toward = (1 if light[1] > 0 else -1, 1 if light[0] > 0 else -1)
        glow = glow + 0.25 * (solid - np.roll(solid, toward, axis=(0, 1)))[window]

    away = (round(light[1] * item.lift), round(light[0] * item.lift))
    shadow = np.clip(0.5 - np.roll(distance, away, axis=(0, 1))[window] / (2 * item.lift), 0, 1)
    view *= 1 - shade * shadow * shadow * (3 - 2 * shadow)
    view += (np.minimum(surface * glow, 1) - view) * alpha


def draw_scene(rng: np.random.Generator, config: ShapesConfig | None = None) -> Scene:
    """Draw one picture.

    Args:
        rng: where every random choice comes from; the same state gives the same picture.
        config: sizes and shares; its counts and its seed are not looked at.

    Returns:
        The picture with the boxes, labels and masks of its objects; N may be 0. Chapter 00 shows some.
    """
    config = config or ShapesConfig()
    height, width = config.image_hw
    palette = _PALETTES[rng.integers(len(_PALETTES))]
    angle = rng.uniform(0.2, 0.8) * math.pi
    light = (math.cos(angle), math.sin(angle))  # where the light goes: always downwards
    kept = _visible_only(_compose(rng, config), config)

    canvas = _paper(rng, height, width, palette)
    shade = float(rng.uniform(0.25, 0.5))
    for item, *_ in kept:
        _paint(rng, canvas, item, palette[3:], light, shade)
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope, vignette, grain = float(rng.uniform(0, 0.1)), float(rng.uniform(0, 0.08)), float(rng.uniform(0.005, 0.02))
    canvas *= 1 - slope * (light[0] * x + light[1] * y) - vignette * (x * x + y * y)
    canvas += rng.standard_normal((height, width), dtype=np.float32) * grain

    masks = np.array([mask for _, mask, _, _ in kept], dtype=bool).reshape(-1, height, width)
    return Scene(
        image=np.ascontiguousarray(np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)),
        boxes=np.array([_hull(mask) for mask in masks], dtype=np.float32).reshape(-1, 4),
        labels=np.array([item.label for item, *_ in kept], dtype=np.int64),
        masks=masks,
        visible=np.array([visible for *_, visible, _ in kept], dtype=np.int64),
        full=np.array([full for *_, full in kept], dtype=np.int64),
    )


# ------------------------------------------------------------------------------------------------- files


def make_shapes(folder: str | Path, config: ShapesConfig | None = None, progress: bool = True) -> Path:
    """Draw a whole data set into a folder, in the layout of COCO.

    Pictures are `train/000001.jpg`, ..., their boxes in `annotations/instances_train.json`, the same for val and test;
    a split of 0 pictures gets no files. In the annotations, `bbox` ignores what lies in front and `area` counts the
    visible pixels. Every file appears whole or not at all, `shapes.json` (the configuration) last: so a finished folder
    is left alone, and an interrupted one is finished. Every picture has its own seed, [config.seed, split, number].

    Args:
        folder: a new or empty folder, or one that this function has written to before.
        config: what to draw; default `ShapesConfig()`.
        progress: whether to show a bar.

    Returns:
        The folder.

    Raises:
        DataError: the folder holds other files, or shapes of another configuration.
        MinidetError: a file cannot be written.
    """
    folder, config = Path(folder), config or ShapesConfig()
    counts = {split: getattr(config, split) for split in SPLITS}
    if not any(counts.values()):
        raise DataError("ShapesConfig.train, .val and .test are all 0: there is nothing to draw.")
    settings = asdict(config)
    if not config.one_class:
        del settings["one_class"]  # folders that were drawn before there was a choice stay good
    manifest = json.loads(json.dumps({"dataset": "shapes", "version": _VERSION, "config": settings}))
    _claim(folder, manifest)
    missing = [split for split in SPLITS if not _is_whole(folder, split, counts[split])]
    total = sum(counts[split] for split in missing)
    with tqdm(
        total=total, desc="drawing shapes", unit=" pictures", mininterval=0.5, disable=not progress or not missing
    ) as bar:
        for split in missing:
            _draw_split(folder, split, config, bar)
    if not (folder / _FINISHED).exists():
        write_json(folder / _FINISHED, manifest, indent=2)
        (folder / _BEGUN).unlink(missing_ok=True)
    return folder


_VERSION = 1  # of the drawing: the same configuration of another version gives other pictures
_FINISHED, _BEGUN = "shapes.json", "shapes.unfinished.json"


def _claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Make sure that the folder is ours to write to, and say so in it."""
    remedy = "Choose another folder, or delete this one if nothing in it is needed."
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise DataError(f"{folder}: is no folder to draw shapes into ({error.strerror}). Choose another.") from error
    for name in (_FINISHED, _BEGUN):
        if name in names:
            found = read_json(folder / name)
            if found == manifest:
                return
            difference = _difference(found, manifest)
            raise DataError(f"{folder}: holds shapes of another configuration ({difference}). {remedy}")
    if names:
        raise DataError(f"{folder}: holds other files ({', '.join(names[:3])}); no shapes are drawn there. {remedy}")
    write_json(folder / _BEGUN, manifest, indent=2)


def _difference(found: Any, manifest: dict[str, Any]) -> str:
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        return f"its {_FINISHED} is not one that minidet writes"
    if found.get("version") != _VERSION:
        return f"drawn by version {found.get('version')} of the drawing, this is version {_VERSION}"
    there, here = found["config"], manifest["config"]
    names = [name for name in here | there if there.get(name) != here.get(name)]
    return "; ".join(f"{name} is {there.get(name)} there, {here.get(name)} asked for" for name in names)


def _paths(folder: Path, split: str, count: int) -> tuple[Path, list[Path]]:
    pictures = [folder / split / f"{number:06d}.jpg" for number in range(1, count + 1)]
    return folder / "annotations" / f"instances_{split}.json", pictures


def _is_whole(folder: Path, split: str, count: int) -> bool:
    annotations, pictures = _paths(folder, split, count)
    return count == 0 or (annotations.exists() and all(path.exists() for path in pictures))


def _draw_split(folder: Path, split: str, config: ShapesConfig, bar: tqdm) -> None:
    """Draw and write one split; the annotation file comes last."""
    annotations_path, pictures = _paths(folder, split, getattr(config, split))
    height, width = config.image_hw
    images, annotations = [], []
    for image_id, path in enumerate(pictures, start=1):
        scene = draw_scene(np.random.default_rng([config.seed, SPLITS.index(split), image_id]), config)
        with atomic_write(path) as file:  # full colour resolution (subsampling=0) keeps the edges clean
            Image.fromarray(scene.image).save(file, "JPEG", quality=92, subsampling=0)
        images.append({"id": image_id, "file_name": path.name, "height": height, "width": width, "license": 1})
        for box, label, visible in zip(scene.boxes.tolist(), scene.labels, scene.visible, strict=True):
            category = 1 if config.one_class else int(label) + 1
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category}
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            annotations.append({**annotation, "bbox": bbox, "area": int(visible), "iscrowd": 0})
        bar.update()
    names = ("shape",) if config.one_class else CLASS_NAMES
    categories = [{"id": k, "name": name, "supercategory": "shape"} for k, name in enumerate(names, start=1)]
    write_json(
        annotations_path,
        {
            "info": {"description": f"shapes, {split}: drawn by minidet, seed {config.seed}", "version": str(_VERSION)},
            "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
            "categories": categories,
            "images": images,
            "annotations": annotations,
        },
    )
