"""Uniform matching: how long a batch takes, beside the published way of computing the same thing, in one run.

    python benchmarks/uniform_matching.py --threads 2

The published way computes the distances of all images of the batch to all objects of the batch, for predictions and for
anchors, keeps what belongs together, searches all of them for the k smallest, and computes every IoU. Both give the
same assignment but for ties, which either may break as it likes (tests/detectors/test_yolof_reference.py compares with
the published results). Nothing else should run on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from minidet.assign import BACKGROUND, IGNORED, DensePredictions, UniformMatching
from minidet.boxes import pairwise_iou, xyxy_to_cxcywh
from minidet.files import write_json
from minidet.grid import make_grid
from minidet.training.hardware import describe_hardware

RESULTS = Path(__file__).parent / "results" / "uniform_matching.json"


@dataclass(frozen=True)
class Options:
    objects: tuple[int, ...] = (7, 20, 100)  # ground truths an image
    batch: int = 8  # images
    repeat: int = 100  # turns, of which the median counts
    threads: int = 2  # of torch
    out: Path = RESULTS  # where the record goes


def published_way(predictions: DensePredictions, targets: list[dict[str, Tensor]], rule: UniformMatching) -> Tensor:
    """Matched ground truths [B, A], computed as the published code does."""
    anchors, boxes = predictions.grid.anchors, predictions.boxes
    batch, slots = boxes.shape[:2]
    gt_boxes = torch.cat([target["boxes"] for target in targets])
    counts = [len(target["labels"]) for target in targets]
    nearest = []
    for candidates in (boxes.flatten(0, 1), anchors.repeat(batch, 1)):
        costs = torch.cdist(xyxy_to_cxcywh(candidates), xyxy_to_cxcywh(gt_boxes), p=1).view(batch, slots, -1)
        own = [block[i] for i, block in enumerate(costs.split(counts, dim=-1))]  # [A, G] each
        nearest.append([cost.topk(rule.k, dim=0, largest=False).indices for cost in own])  # [k, G] each
    matched = boxes.new_full((batch, slots), BACKGROUND, dtype=torch.int64)
    for i, target in enumerate(targets):
        matched[i, pairwise_iou(boxes[i], target["boxes"]).amax(dim=1) > rule.max_background_iou] = IGNORED
        slot = torch.cat([nearest[0][i], nearest[1][i]], dim=1).flatten()
        gt = torch.arange(counts[i]).repeat(2 * rule.k)
        overlap = pairwise_iou(anchors, target["boxes"])[slot, gt]
        matched[i, slot] = torch.where(overlap < rule.min_anchor_iou, IGNORED, gt)
    return matched


def random_batch(batch: int, objects: int) -> tuple[DensePredictions, list[dict[str, Tensor]]]:
    """800 x 1333 images at stride 32: 5250 slots, predictions around their anchors, objects of 8 to 400 pixels."""
    grid = make_grid([(25, 42)], [32], anchor_sizes=[(32.0, 64.0, 128.0, 256.0, 512.0)])
    boxes = grid.anchors + 10 * torch.randn(batch, len(grid), 4)
    targets = []
    for _ in range(batch):
        center = torch.rand(objects, 2) * torch.tensor([1333.0, 800.0])
        size = torch.exp(2 + 4 * torch.rand(objects, 2))
        targets.append(
            {"boxes": torch.cat([center - size / 2, center + size / 2], dim=1), "labels": torch.zeros(objects).long()}
        )
    return DensePredictions(grid, boxes, boxes, torch.zeros(batch, len(grid), 80), None), targets


def median_ms(task: Callable[[], object], repeat: int) -> float:
    task()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        task()
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times)[repeat // 2]


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rule = UniformMatching()
    record = {"hardware": describe_hardware(torch.device("cpu")), "batch": options.batch, "rows": []}
    for objects in options.objects:
        predictions, targets = random_batch(options.batch, objects)
        own = median_ms(lambda p=predictions, t=targets: rule(p, t), options.repeat)
        published = median_ms(lambda p=predictions, t=targets: published_way(p, t, rule), max(options.repeat // 4, 1))
        row = {"objects": objects, "ms": round(own, 2), "published_way_ms": round(published, 2)}
        record["rows"].append(row | {"ratio": round(published / own, 1)})
        print(record["rows"][-1])
    write_json(options.out, record, indent=2)


if __name__ == "__main__":
    main(tyro.cli(Options))
