"""What holds for every assignment strategy, on random and on nasty input, with anchors and without."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidet.assign import (
    ATSS,
    BACKGROUND,
    IGNORED,
    OTA,
    POTO,
    Assignment,
    BestAnchor,
    CentreSampling,
    DensePredictions,
    MaxIoU,
    OneToOne,
    SimOTA,
    UniformMatching,
    pairs_of,
)
from minidet.assign.simota import inside_box
from minidet.grid import Grid, make_grid

STRATEGIES = {
    "SimOTA": SimOTA(),
    "SimOTA as published": SimOTA.published(),
    "max-IoU": MaxIoU(),
    "max-IoU without low quality": MaxIoU(low_quality=False),
    "ATSS": ATSS(),
    "centre, 1 cell": CentreSampling(),
    "centre, 3x3": CentreSampling(radius=1.5),
    "best anchor": BestAnchor(),
    "one to one": OneToOne(),
    "POTO": POTO(),
    "OTA": OTA(iterations=10),
    "OTA, exact": OTA(solver="exact"),
    "uniform": UniformMatching(),
    "uniform, k=8": UniformMatching(k=8, min_anchor_iou=0.1),
    "uniform, anchors only": UniformMatching(sources=("anchors",)),
    "uniform, predictions only": UniformMatching(sources=("predictions",)),
}
NUM_CLASSES = 5
H, W = 192, 256
GRIDS = {
    "without anchors": make_grid([(24, 32), (12, 16), (6, 8)], (8, 16, 32)),
    "five anchors a cell": make_grid([(12, 16)], (16,), anchor_sizes=[(16, 32, 64, 128, 256)]),
    "three anchors on each of three levels": make_grid(
        [(24, 32), (12, 16), (6, 8)],
        (8, 16, 32),
        anchor_sizes=[
            ((10, 14), (16, 30), (34, 24)),
            ((30, 60), (62, 46), (60, 118)),
            ((116, 90), (156, 198), (180, 180)),
        ],
        anchor_offset=0.5,
    ),
}
STEP = 32  # pixels: one stride of the coarsest level without anchors, two of the level with them

# All coordinates here are multiples of 1/16 px. Then sums and differences of coordinates have no rounding, and moving
# everything changes no bit of an overlap or a distance.
FINE = 16


def predictions_for(grid: Grid, batch: int, seed: int = 0, objectness: bool = True) -> DensePredictions:
    """Random boxes around each slot's anchor (or the square that stands for it), random logits."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, len(grid), 4 + NUM_CLASSES + 1, generator=generator)
    center, side = (grid.anchor_boxes[:, :2] + grid.anchor_boxes[:, 2:]) / 2, grid.anchor_boxes[:, 2:3]
    side = side - grid.anchor_boxes[:, :1]
    center = center + side / 4 * noise[..., :2]
    half = side / 2 * torch.exp(noise[..., 2:4] / 2)
    boxes = torch.cat([center - half, center + half], dim=-1).mul(FINE).round() / FINE
    objects = noise[..., 4] if objectness else None
    return DensePredictions(grid, torch.zeros_like(boxes), boxes, noise[..., 5:], objects)


def objects(boxes: list[list[float]], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64)}


def crowd(count: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([W - 20.0, H - 20.0])
    size = 2 + 40 * torch.rand(count, 2, generator=generator)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    return {"boxes": torch.cat([corner, corner + size], dim=1), "labels": labels}


NASTY = {
    "no object": objects([]),
    "one pixel": objects([[100, 100, 101, 101]]),
    "zero size": objects([[100, 100, 100, 100]]),
    "the whole picture": objects([[0, 0, W, H]]),
    "a line": objects([[0, 90, W, 91]]),
    "300 crowded objects": crowd(300),
    "exact duplicates": objects([[30, 30, 90, 80]] * 4, [1, 1, 1, 2]),
    "at the border": objects([[0, 0, 12, 9], [W - 9, H - 5, W, H], [0, H / 2, 1, H]]),
    "centre outside": objects([[W + 10, 20, W + 60, 90], [40, 40, 80, 80]]),
    "all far outside": objects([[5000, 5000, 5010, 5010]]),
}


@pytest.fixture(params=STRATEGIES, ids=lambda name: name)
def assigner(request):
    return STRATEGIES[request.param]


@pytest.fixture(params=GRIDS, ids=lambda name: name)
def grid(request):
    return GRIDS[request.param]


def pair_codes(pairs, result: Assignment) -> torch.Tensor:
    """One number for each (image, slot, object)."""
    return (pairs.image * result.matched_gt.shape[1] + pairs.slot) * (max(result.num_gt) + 1) + pairs.gt


def distinct(rows: torch.Tensor) -> bool:
    """No number comes twice in a row."""
    return bool((rows.sort(dim=1).values.diff(dim=1) > 0).all())


def check_invariants(assigner, predictions: DensePredictions, targets, result: Assignment) -> None:
    """What design and docstrings promise for any input; `result` has a trace."""
    slots = len(predictions.grid)
    assert result.matched_gt.shape == predictions.boxes.shape[:2]
    assert result.num_gt == tuple(len(target["labels"]) for target in targets)
    assert result.matched_gt.min() >= IGNORED
    counts = torch.tensor(result.num_gt)[:, None]
    assert (result.matched_gt < counts.clamp(min=0)).all()
    assert (result.matched_gt[~predictions.finite] < 0).all()
    assert ((result.quality >= 0) & (result.quality <= 1)).all()
    assert (result.quality[~result.positive] == 0).all()

    # A slot has one owner. Only uniform matching shows the box loss more pairs than that, and the owner's among them.
    owned, seen = pair_codes(pairs_of(result.matched_gt), result), pair_codes(result.pairs, result)
    if isinstance(assigner, UniformMatching):
        assert torch.isin(owned, seen).all()
        assert predictions.finite[result.pairs.image, result.pairs.slot].all()
    else:
        assert torch.equal(owned, seen)

    for i, (trace, num_gt) in enumerate(zip(result.trace, result.num_gt, strict=True)):
        for name, value in trace.items():
            assert value.dtype == torch.bool or value.isfinite().all(), name
            if name.endswith("iou"):
                assert ((value >= 0) & (value <= 1)).all(), name
        check_counts(assigner, predictions.grid, trace, result.matched_gt[i], num_gt, slots)


def check_counts(assigner, grid: Grid, trace, matched_gt: torch.Tensor, num_gt: int, slots: int) -> None:
    """No object looks at more slots than there are, takes more than it may, or takes what it did not look at."""
    slot = (matched_gt >= 0).nonzero().flatten()
    gt = matched_gt[slot]
    if isinstance(assigner, SimOTA):
        assert (trace["dynamic_k"] <= len(trace["candidates"])).all()
        assert (trace["taken"].sum(dim=0) <= 1).all()
        assert torch.isin(slot, trace["candidates"]).all()
    elif isinstance(assigner, OTA):
        assert (trace["dynamic_k"] <= trace["free"].sum(dim=1)).all()
        assert (trace["taken"].sum(dim=0) <= 1).all()
        assert (trace["free"] | ~trace["taken"]).all()
        assert torch.isin(slot, trace["candidates"]).all()
        assert (trace["taken"].sum(dim=1) <= trace["dynamic_k"]).all()
    elif isinstance(assigner, MaxIoU):
        assert (trace["iou"][gt, slot] > 0).all()
        assert (trace["iou"][gt, slot] == trace["best_iou"][slot]).all()
    elif isinstance(assigner, ATSS):
        assert trace["candidates"].shape == (num_gt, sum(min(assigner.candidates, size) for size in grid.level_sizes))
        assert distinct(trace["candidates"])
        assert (trace["candidates"][gt] == slot[:, None]).any(dim=1).all()
    elif isinstance(assigner, CentreSampling):
        cells = 1 if assigner.radius is None else 9
        assert (trace["candidates"].sum(dim=1) <= cells).all()
        assert trace["candidates"][gt, slot].all()
    elif isinstance(assigner, BestAnchor):
        assert (trace["candidates"].sum(dim=1) <= 1).all()
        assert trace["candidates"][gt, slot].all()
        ignored = trace["best_iou"][(matched_gt == IGNORED)]
        assert (ignored > assigner.ignore_iou).all()
    elif isinstance(assigner, POTO):
        assert (trace["taken"].sum(dim=0) <= 1).all()
        assert (trace["taken"].sum(dim=1) <= 1).all()
        assert not (trace["taken"] & ~trace["free"]).any()
    elif isinstance(assigner, OneToOne):
        assert (trace["taken"].sum(dim=0) <= 1).all()
        assert (trace["taken"].sum(dim=1) <= 1).all()
        assert len(slot) == min(num_gt, len(trace["candidates"]))
    else:
        for source in assigner.sources:
            assert trace[f"nearest_{source}"].shape == (num_gt, min(assigner.k, slots))
            assert distinct(trace[f"nearest_{source}"])


# ---- nasty input, each by itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", NASTY.values(), ids=NASTY)
def test_invariants_on_nasty_objects(assigner, grid, target):
    for objectness in (True, False):
        predictions = predictions_for(grid, 1, objectness=objectness)
        check_invariants(assigner, predictions, [target], assigner(predictions, [target], trace=True))


def test_without_objects_everything_is_background(assigner, grid):
    result = assigner(predictions_for(grid, 2), [objects([]), objects([])])
    assert (result.matched_gt == BACKGROUND).all()
    assert len(result.pairs) == 0
    assert result.num_positives == 0


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("anchor_sizes", [None, [(16, 32, 64, 128, 256)]], ids=["one slot", "five slots"])
def test_a_single_cell_serves_any_number_of_objects(assigner, anchor_sizes, count):
    small = make_grid([(1, 1)], (32,), anchor_sizes=anchor_sizes)
    predictions, target = predictions_for(small, 1), objects([[2, 4, 30, 28]] * count)
    result = assigner(predictions, [target], trace=True)
    check_invariants(assigner, predictions, [target], result)


def test_predictions_of_any_size_give_finite_costs(assigner, grid):
    predictions = predictions_for(grid, 1)
    predictions.boxes[0, 0::3] *= 1e30
    predictions.boxes[0, 1::3] = 0
    predictions.class_logits[0, 0::2] *= 1e4
    predictions.object_logits[0, 1::2] *= 1e4
    target = crowd(10)
    check_invariants(assigner, predictions, [target], assigner(predictions, [target], trace=True))


def test_when_no_prediction_is_finite_nothing_is_positive(assigner, grid):
    predictions = predictions_for(grid, 1)
    predictions.boxes[:] = float("nan")
    result = assigner(predictions, [crowd(5)], trace=True)
    check_invariants(assigner, predictions, [crowd(5)], result)
    assert result.num_positives == 0


def test_a_trace_is_kept_only_on_request(assigner, grid):
    assert assigner(predictions_for(grid, 1), [crowd(3)]).trace is None


def test_every_strategy_finds_slots_for_ordinary_objects(assigner, grid):
    # Guards the tests of this file against an assigner that never assigns.
    target = objects([[40, 40, 104, 100], [100, 60, 170, 120]], [0, 3])
    assert set(assigner(predictions_for(grid, 1), [target]).matched_gt[0].tolist()) >= {0, 1}


# ---- random input ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """One example: everything that the invariants are checked on."""

    grid: str
    seed: int
    objectness: bool
    anywhere: list[tuple[int, int, int, int, int]]  # x, y, width, height in 1/16 px; class
    central: list[tuple[int, int, int, int, int]]  # centre x and y, width, height; class
    downwards: bool  # the direction of the move
    bad: tuple[float, str]  # a number that is none, and where it appears


def sixteenths(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low * FINE, high * FINE)


classes = st.integers(0, NUM_CLASSES - 1)
SCENES = st.builds(
    Scene,
    grid=st.sampled_from(list(GRIDS)),
    seed=st.integers(0, 10**6),
    objectness=st.booleans(),
    # Inside, at the border, outside; down to zero size and up to larger than the picture.
    anywhere=st.lists(
        st.tuples(sixteenths(-80, W), sixteenths(-80, H), *[sixteenths(0, 300)] * 2, classes), max_size=5
    ),
    # Far enough from the border that the cells around each object exist before and after the move, and large enough
    # that SimOTA has cells without a penalty: penalised costs are rounded to 1/16 and tie.
    central=st.lists(
        st.tuples(sixteenths(80, 144), sixteenths(64, 96), *[sixteenths(24, 90)] * 2, classes), min_size=1, max_size=3
    ),
    downwards=st.booleans(),
    bad=st.tuples(
        st.sampled_from([float("nan"), float("inf"), float("-inf")]),
        st.sampled_from(["boxes", "class_logits", "object"]),
    ),
)


def anywhere(scene: Scene) -> dict[str, torch.Tensor]:
    rows = [[x, y, x + w, y + h] for x, y, w, h, _ in scene.anywhere]
    return objects([[value / FINE for value in row] for row in rows], [row[-1] for row in scene.anywhere])


def central(scene: Scene) -> dict[str, torch.Tensor]:
    rows = [[x - w // 2, y - h // 2, x - w // 2 + w, y - h // 2 + h] for x, y, w, h, _ in scene.central]
    return objects([[value / FINE for value in row] for row in rows], [row[-1] for row in scene.central])


def roll(values: torch.Tensor, grid: Grid, downwards: bool) -> torch.Tensor:
    """Each level's map [..., A, ...] (slots in dimension 0) moved by STEP pixels; what leaves comes in opposite."""
    maps = []
    for level, (rows, columns) in zip(values.split(grid.level_sizes), grid.level_shapes, strict=True):
        cells = level.unflatten(0, (rows, columns, grid.anchors_per_cell))
        maps.append(cells.roll(STEP * columns // W, dims=0 if downwards else 1).flatten(0, 2))
    return torch.cat(maps)


def rows_of(predictions: DensePredictions, rows: list[int]) -> DensePredictions:
    return DensePredictions(
        predictions.grid,
        predictions.raw_boxes[rows],
        predictions.boxes[rows],
        predictions.class_logits[rows],
        None if predictions.object_logits is None else predictions.object_logits[rows],
    )


def break_slots(predictions: DensePredictions, image: int, slots: torch.Tensor, number: float, where: str) -> None:
    if where == "boxes":
        predictions.boxes[image, slots, 1] = number
    elif where == "class_logits" or predictions.object_logits is None:
        predictions.class_logits[image, slots, 2] = number
    else:
        predictions.object_logits[image, slots] = number


def same_after_the_move(assigner, grid: Grid, scene: Scene, result: Assignment, before: int, after: int) -> None:
    def moved(values: torch.Tensor) -> torch.Tensor:
        return roll(values, grid, scene.downwards)

    if isinstance(assigner, UniformMatching):
        # Which of two equally near slots comes into a list is not defined, and on a grid equals are common. What is
        # defined is the list's distances. Where the lists agree slot by slot, the rest must agree too.
        old, new = result.trace[before], result.trace[after]
        where_to = torch.empty(len(grid), dtype=torch.int64)
        where_to[moved(torch.arange(len(grid)))] = torch.arange(len(grid))  # slot -> slot after the move
        agree = True
        for source, distances in (("predictions", "pred_distance"), ("anchors", "anchor_distance")):
            if source in assigner.sources:
                old_slots, new_slots = old[f"nearest_{source}"], new[f"nearest_{source}"]
                assert torch.equal(old[distances].gather(1, old_slots), new[distances].gather(1, new_slots))
                agree = agree and torch.equal(where_to[old_slots], new_slots)
        if not agree:
            return
    # All others resolve ties by the order of slots, which the move keeps, or by costs that don't tie.
    assert torch.equal(result.matched_gt[after], moved(result.matched_gt[before]))
    assert torch.equal(result.quality[after], moved(result.quality[before]))


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "max-IoU without low quality"])
def test_invariants_on_random_scenes(name):
    assigner = STRATEGIES[name]

    @settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(scene=SCENES)
    def check(scene: Scene) -> None:
        # Image 0: objects anywhere. 1: objects in the middle. 2: the same after the move. 3: the same as 1 with bad
        # numbers in all slots around the first object, which are those that strategies like.
        grid, middle = GRIDS[scene.grid], central(scene)
        shift = torch.tensor([0.0, STEP] if scene.downwards else [STEP, 0.0]).repeat(2)
        predictions = rows_of(predictions_for(grid, 2, scene.seed, scene.objectness), [0, 1, 1, 1])
        for values in (predictions.boxes, predictions.class_logits, predictions.object_logits):
            if values is not None:
                values[2] = roll(values[1], grid, scene.downwards)
        predictions.boxes[2] += shift
        bad = inside_box(grid.centers, middle["boxes"][:1])[0]
        break_slots(predictions, 3, bad, *scene.bad)
        targets = [anywhere(scene), middle, {**middle, "boxes": middle["boxes"] + shift}, middle]

        result = assigner(predictions, targets, trace=True)
        check_invariants(assigner, predictions, targets, result)
        assert not result.positive[3, bad].any()
        same_after_the_move(assigner, grid, scene, result, before=1, after=2)

        order = [1, 0]
        turned = assigner(rows_of(predictions, order), [targets[i] for i in order])
        assert torch.equal(turned.matched_gt, result.matched_gt[order])
        assert torch.equal(turned.quality, result.quality[order])

    check()
