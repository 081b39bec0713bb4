"""SimOTA: how long a batch takes, beside the published way of computing the same thing, in one run.

    python benchmarks/simota.py --threads 2
    python benchmarks/simota.py --official PATH/TO/YOLOX     # also the official code itself
    python benchmarks/simota.py --device cuda --batch 32     # for CUDA, also without synchronisation

The published way goes image by image, compares every slot with every object, computes the class cost of every
(object, candidate, class), and resolves k object by object. That both give the same is checked. `--official` names a
checkout of Megvii-BaseDetection/YOLOX (0.3.0 was tried) whose dependencies are installed; it is then run on the same
tensors, with the assignment of that release, beside our version of it. Nothing else should run on the machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from minidet.assign import BACKGROUND, DensePredictions, SimOTA
from minidet.assign.simota import centre_candidates
from minidet.boxes import pairwise_iou, xyxy_to_cxcywh
from minidet.errors import MinidetError
from minidet.files import write_json
from minidet.grid import make_grid
from minidet.training.hardware import choose_device, describe_hardware

RESULTS = Path(__file__).parent / "results"
STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Options:
    objects: tuple[int, ...] = (20, 100)  # ground truths an image
    batch: int = 8  # images
    size: int = 640  # side of the network input, a multiple of 32: 640 has 8400 slots
    classes: int = 80
    repeat: int = 30  # turns, of which the median counts
    threads: int = 2  # of torch
    device: str = "cpu"
    official: Path | None = None  # a checkout of the official code
    out: Path | None = None  # where the record goes; by default results/simota_DEVICE.json


def published_way(predictions: DensePredictions, targets: list[dict[str, Tensor]], rule: SimOTA) -> Tensor:
    """Matched ground truths [B, A] of the version in use since 2023, computed as it is published."""
    grid = predictions.grid
    matched = torch.full(predictions.boxes.shape[:2], BACKGROUND, device=grid.cells.device)
    for i, target in enumerate(targets):
        near = centre_candidates(grid.centers, grid.strides, target["boxes"], rule.radius)
        candidates = near.any(dim=0).nonzero().flatten()
        free = near[:, candidates]
        overlap = pairwise_iou(target["boxes"], predictions.boxes[i, candidates])
        score = predictions.class_logits[i, candidates].sigmoid()
        score = (score * predictions.object_logits[i, candidates, None].sigmoid()).sqrt()
        one_hot = F.one_hot(target["labels"], score.shape[1]).float()
        count = len(one_hot), len(candidates), -1
        cost = F.binary_cross_entropy(score[None].expand(count), one_hot[:, None].expand(count), reduction="none").sum(
            dim=2
        )
        cost = cost - rule.iou_weight * (overlap + 1e-8).log() + rule.outside_penalty * ~free
        k = overlap.topk(min(rule.max_k, len(candidates)), dim=1).values.sum(dim=1).int().clamp(min=1)
        wanted = torch.zeros_like(free)
        for gt in range(len(cost)):
            wanted[gt, cost[gt].topk(int(k[gt]), largest=False).indices] = True
        contested = wanted.sum(dim=0) > 1
        wanted[:, contested] = False
        wanted[cost[:, contested].argmin(dim=0), contested] = True
        taken = wanted.any(dim=0)
        matched[i, candidates[taken]] = wanted[:, taken].int().argmax(dim=0)
    return matched


def official_way(folder: Path, predictions: DensePredictions, targets: list[dict[str, Tensor]]) -> Callable[[], Tensor]:
    """The assignment of the official code's head, image by image as its loss calls it; gives numbers of positives."""
    sys.path.insert(0, str(folder))
    try:
        from yolox.models import YOLOXHead
    except ImportError as error:
        raise MinidetError(f"{folder}: cannot be used as a checkout of YOLOX ({error}).") from error
    grid, classes = predictions.grid, predictions.class_logits.shape[2]
    head = YOLOXHead(classes)
    x, y = (grid.cells[None, :, axis] for axis in (0, 1))
    boxes, objects = xyxy_to_cxcywh(predictions.boxes), predictions.object_logits[..., None]

    def assign() -> Tensor:
        found = []
        for i, target in enumerate(targets):
            result = head.get_assignments(
                i, len(target["labels"]), len(grid), xyxy_to_cxcywh(target["boxes"]), target["labels"].float(),
                boxes[i], grid.strides[None], x, y, predictions.class_logits, boxes, objects, None, None,
                "gpu",  # its other mode moves results to a GPU, here or not
            )  # fmt: skip
            found.append(result[4])
        return torch.tensor(found)

    return assign


def random_batch(options: Options, objects: int) -> tuple[DensePredictions, list[dict[str, Tensor]]]:
    """Predictions around their cells and objects of 12 to 200 px, as in the middle of a training."""
    grid = make_grid([(options.size // stride,) * 2 for stride in STRIDES], STRIDES)
    centers = grid.centers + 4 * torch.randn(options.batch, len(grid), 2)
    half = torch.exp(3 + 1.5 * torch.rand(options.batch, len(grid), 2)) / 2
    boxes = torch.cat([centers - half, centers + half], dim=2)
    logits = torch.randn(options.batch, len(grid), 1 + options.classes) - 3
    targets = []
    for _ in range(options.batch):
        center, half = options.size * torch.rand(objects, 2), torch.exp(2.5 + 2.8 * torch.rand(objects, 2)) / 2
        gt_boxes = torch.cat([center - half, center + half], dim=1).clamp(0, options.size)
        targets.append({"boxes": gt_boxes, "labels": torch.randint(options.classes, (objects,))})
    return DensePredictions(grid, boxes, boxes, logits[..., 1:], logits[..., 0]), targets


def to(device: torch.device, predictions: DensePredictions, targets: list[dict[str, Tensor]]) -> tuple:
    grid = make_grid(predictions.grid.level_shapes, STRIDES, device)
    tensors = (predictions.raw_boxes, predictions.boxes, predictions.class_logits, predictions.object_logits)
    moved = DensePredictions(grid, *(tensor.to(device) for tensor in tensors))
    return moved, [{key: value.to(device) for key, value in target.items()} for target in targets]


def median_ms(tasks: dict[str, Callable[[], object]], repeat: int, device: torch.device) -> dict[str, float]:
    """The tasks in turn, A B C A B C ..., so that a machine that slows down slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeat + 1):
        for name, task in tasks.items():
            if "ours" not in name and turn > max(repeat // 4, 3):
                continue
            started = time.perf_counter()
            task()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: round(1000 * sorted(each)[len(each) // 2], 2) for name, each in times.items()}


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = choose_device(options.device)
    rule, older = SimOTA(), SimOTA.published()
    record = {"hardware": describe_hardware(device), "torch": torch.__version__, "batch": options.batch}
    record |= {"slots": sum((options.size // stride) ** 2 for stride in STRIDES), "milliseconds": []}
    for objects in options.objects:
        predictions, targets = to(device, *random_batch(options, objects))
        assert torch.equal(rule(predictions, targets).matched_gt, published_way(predictions, targets, rule))
        tasks = {
            "ours": lambda p=predictions, t=targets: rule(p, t),
            "published way": lambda p=predictions, t=targets: published_way(p, t, rule),
        }
        if options.official:
            tasks["ours, as up to 0.3.0"] = lambda p=predictions, t=targets: older(p, t)
            tasks["official code"] = official_way(options.official, predictions, targets)
            same = older(predictions, targets).positive.sum(dim=1).cpu()
            assert torch.equal(same, tasks["official code"]()), "the official code finds other numbers of positives"
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
            try:
                rule(predictions, targets)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        row = {"objects": objects, **median_ms(tasks, options.repeat, device)}
        record["milliseconds"].append(row)
        print(row)
    write_json(options.out or RESULTS / f"simota_{device.type}.json", record, indent=2)


if __name__ == "__main__":
    main(tyro.cli(Options))
