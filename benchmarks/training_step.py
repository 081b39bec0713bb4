"""A whole training step (forward, assignment, losses, backward, optimiser, average): how long it takes.

    python benchmarks/training_step.py                                  # yolox-nano, 416 px, batch 8, on the CPU
    python benchmarks/training_step.py --official PATH/TO/YOLOX         # beside the official code, in turn
    python benchmarks/training_step.py --model yolox-s --size 640 --batch 4
    python benchmarks/training_step.py --device cuda --batch 64 --model yolox-s --size 640 --precision bf16 --compiled

`--official` names a checkout of Megvii-BaseDetection/YOLOX (0.3.0 was tried) whose dependencies are installed: its
model, losses, optimiser and average are fed the same pictures and objects. Nothing else should run on the machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

import minidet
from minidet.boxes import xyxy_to_cxcywh
from minidet.errors import MinidetError
from minidet.files import write_json
from minidet.training.ema import Ema
from minidet.training.hardware import PRECISIONS, choose_device, describe_hardware
from minidet.training.recipe import RECIPES, make_optimizer

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    model: str = "yolox-nano"
    size: int = 416  # side of the network input
    batch: int = 8  # images
    objects: int = 7  # ground truths an image, as COCO has on average
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compiled: bool = False  # also with torch.compile
    repeat: int = 15  # steps of each, in turn, of which the median counts
    threads: int = 2  # of torch
    device: str = "cpu"
    official: Path | None = None  # a checkout of the official code
    out: Path | None = None  # where the record goes; by default results/training_step_MODEL_DEVICE.json


def random_batch(options: Options) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Noise, and objects of 12 to 150 px anywhere."""
    images = torch.randint(256, (options.batch, 3, options.size, options.size), dtype=torch.uint8)
    targets = []
    for _ in range(options.batch):
        center = 8 + (options.size - 16) * torch.rand(options.objects, 2)
        half = torch.exp(2.5 + 2.5 * torch.rand(options.objects, 2)) / 2
        boxes = torch.cat([center - half, center + half], dim=1).clamp(0, options.size)
        targets.append({"boxes": boxes, "labels": torch.randint(80, (options.objects,))})
    return images, targets


def our_step(options: Options, device: torch.device, images: Tensor, targets: list[dict], compiled: bool) -> Callable:
    model = minidet.create_model(options.model, input_hw=(options.size, options.size))
    model.to(device, memory_format=torch.channels_last).train()
    optimizer, average = make_optimizer(model, RECIPES["yolox"]), Ema(model)
    precision = PRECISIONS[options.precision]
    if compiled:
        model.compile()

    def step() -> None:
        with torch.autocast(device.type, precision, enabled=options.precision != "fp32"):
            losses = model(images.to(device, non_blocking=True), targets)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()
        average.update(model)

    return step


def official_step(options: Options, device: torch.device, images: Tensor, targets: list[dict]) -> Callable:
    """The official trainer's step: its labels are rows (class, centre, size), filled up with zeros to 120."""
    sys.path.insert(0, str(options.official))
    try:
        from yolox.exp import get_exp
        from yolox.utils import ModelEMA
    except ImportError as error:
        raise MinidetError(f"{options.official}: cannot be used as a checkout of YOLOX ({error}).") from error
    experiment = get_exp(None, options.model)
    model = experiment.get_model().to(device).train()
    optimizer, average = experiment.get_optimizer(options.batch), ModelEMA(model, 0.9998)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    rows = torch.zeros(options.batch, 120, 5)
    for row, target in zip(rows, targets, strict=True):
        row[: options.objects, 0] = target["labels"]
        row[: options.objects, 1:] = xyxy_to_cxcywh(target["boxes"])
    precision = PRECISIONS[options.precision]

    def step() -> None:
        with torch.autocast(device.type, precision, enabled=options.precision != "fp32"):
            loss = model(images.to(device).float(), rows.to(device))["total_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model)

    return step


def median_ms(steps: dict[str, Callable[[], None]], repeat: int, device: torch.device) -> dict[str, float]:
    """All in turn, so that a machine that slows down slows all of them; two steps each are not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeat + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                times[name].append(time.perf_counter() - started)
    return {name: round(1000 * sorted(each)[len(each) // 2], 1) for name, each in times.items()}


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = choose_device(options.device)
    images, targets = random_batch(options)
    if device.type == "cuda":
        images = images.pin_memory()
    steps = {"ours": our_step(options, device, images, targets, compiled=False)}
    if options.compiled:
        steps["ours, compiled"] = our_step(options, device, images, targets, compiled=True)
    if options.official:
        steps["official code"] = official_step(options, device, images, targets)
    milliseconds = median_ms(steps, options.repeat, device)
    settings = {name: getattr(options, name) for name in ("model", "size", "batch", "objects", "precision")}
    record = {"hardware": describe_hardware(device), "torch": torch.__version__, **settings}
    record["milliseconds"] = milliseconds
    if options.official:
        record["share_of_official"] = round(milliseconds["ours"] / milliseconds["official code"], 3)
    print(record)
    out = options.out or RESULTS / f"training_step_{options.model}_{device.type}.json"
    write_json(out, record, indent=2)


if __name__ == "__main__":
    main(tyro.cli(Options))
