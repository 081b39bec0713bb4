"""How time and memory grow with images a batch, size of the input and objects an image; training step and prediction.

    python benchmarks/scaling.py                                  # on the CPU, some minutes
    python benchmarks/scaling.py --device cuda --precision bf16 --batches 1 4 16 64 256 --sides 320 480 640 800 960

Writes scaling_DEVICE.json and the log-log plot scaling_DEVICE.png. Every point is measured in a process of its own, so
that none profits from another's memory. Peak memory is, on a GPU, the most that torch's allocator held; on a CPU the
highest resident set of that process (VmHWM) from the first step on, less what it held before, when torch, model and
input were loaded. Time is the median of the turns. Nothing else should run on the machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

import minidet
from minidet.bench.parts import Setting, random_images, random_targets
from minidet.draw import ScalingPanel, draw_scaling, save_figure
from minidet.errors import MinidetError
from minidet.evaluation.timing import time_in_turn
from minidet.files import write_json
from minidet.training.ema import Ema
from minidet.training.hardware import choose_device, choose_precision, describe_hardware
from minidet.training.recipe import make_optimizer, recipe_for
from minidet.training.state import TrainingState
from minidet.training.step import training_step

RESULTS = Path(__file__).parent / "results"
WORDS = {"batch": "images a batch", "side": "side of the input, px", "objects": "objects an image"}


@dataclass(frozen=True)
class Options:
    models: tuple[str, ...] = ("yolox-s", "yolox-nano")  # at most two
    batches: tuple[int, ...] = (1, 2, 4, 8)
    sides: tuple[int, ...] = (128, 192, 256, 384)
    objects: tuple[int, ...] = (1, 4, 16, 64, 256)
    usual: tuple[int, int, int] = (2, 256, 16)  # batch, side and objects where another one grows
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seconds: float = 1.5  # about so long each point is measured
    threads: int = 2  # of torch
    device: str = "cpu"
    out: Path = RESULTS  # folder of the record and the plot


@dataclass(frozen=True)
class Point:
    """What is measured at one place."""

    model: str
    task: str  # "step" or "predict"
    batch: int
    side: int
    objects: int


def task_of(point: Point, precision: str, device: torch.device) -> Callable[[], object]:
    model = minidet.create_model(point.model, input_hw=(point.side, point.side)).to(device)
    model.to(memory_format=torch.channels_last)
    setting = Setting(point.model, batch_size=point.batch, objects=point.objects)
    images, targets = random_images(point.batch, model), random_targets(setting, model)
    if point.task == "predict":
        fast = minidet.optimize(model, precision)
        return torch.inference_mode()(lambda: fast(images))
    state = TrainingState(
        model=model.train(),
        optimizer=make_optimizer(model, recipe_for("course", point.model)),
        ema=Ema(model),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
    )
    return lambda: training_step(state, images, targets, precision, None, "a step of the benchmark")


def measure(point: Point, options: Options) -> dict[str, Any]:
    """Runs in a process of its own."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = choose_device(options.device)
    task = task_of(point, choose_precision(options.precision, device), device)
    gc.collect()
    before = None if device.type == "cuda" else forget_peak()
    (timing,) = time_in_turn({"": task}, device, options.seconds).values()
    memory = timing.memory_mib if before is None else most_resident_mib() - before
    return {**asdict(point), "ms": round(timing.ms, 3), "turns": timing.turns, "memory_mib": round(memory, 1)}


def forget_peak() -> float:
    """Set the largest resident set back to the present one, and return it in MiB (Linux).

    Making and folding a model takes more memory for a moment than predicting with it, which would hide the prediction.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is freed goes back to the system, so that taking it again counts
    with contextlib.suppress(OSError):  # Linux does it since 4.0; elsewhere reading the peak says what is missing
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return most_resident_mib()


def most_resident_mib() -> float:
    """The largest resident set that this process has had since `forget_peak`, in MiB (Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration) as error:
        raise MinidetError(
            "memory is measured by /proc/self/status, which only Linux has; or use --device cuda"
        ) from error


def points_of(options: Options) -> list[tuple[str, Point]]:
    """What grows, and the points at which everything else stays as usual."""
    batch, side, objects = options.usual
    found = []
    for model in options.models:
        for task in ("step", "predict"):
            found += [("batch", Point(model, task, value, side, objects)) for value in options.batches]
            found += [("side", Point(model, task, batch, value, objects)) for value in options.sides]
            if task == "step":  # a prediction knows of no objects
                found += [("objects", Point(model, task, batch, side, value)) for value in options.objects]
    return found


def plot(record: dict[str, Any]) -> None:
    rows = []
    for key, cost in (("ms", "time, ms"), ("memory_mib", "peak memory, MiB")):
        panels = []
        for grows, words in WORDS.items():
            curves: dict[str, list[tuple[float, float]]] = {
                f"{model}, {task}": [] for model in record["options"]["models"] for task in ("step", "predict")
            }
            for row in record["rows"]:
                if row["grows"] == grows and row[key] > 0:
                    curves[f"{row['model']}, {row['task']}"].append((row[grows], row[key]))
            panels.append(ScalingPanel(cost, words, curves, {"batch": 1, "side": 2, "objects": 0}[grows]))
        rows.append(panels)
    batch, side, objects = record["options"]["usual"]
    hardware = record["hardware"]
    note = (
        f"Where another grows: {batch} images, {side} px, {objects} objects. Pale lines: proportional, for the side to "
        f"its square. {hardware['name']}, {hardware['threads']} threads, {record['options']['precision']}."
    )
    save_figure(draw_scaling(rows, note), Path(record["options"]["out"]) / f"scaling_{hardware['device']}.png")


def main(options: Options) -> None:
    if not 1 <= len(options.models) <= 2:
        raise MinidetError(f"--models names {len(options.models)} models; the plot has room for one or two")
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    hardware = {**describe_hardware(device), "torch": torch.__version__}
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    record: dict[str, Any] = {"hardware": hardware, "options": settings, "rows": []}
    context = multiprocessing.get_context("spawn")
    for grows, point in points_of(options):
        with context.Pool(1) as pool:
            row = {"grows": grows, **pool.apply(measure, (point, options))}
        record["rows"].append(row)
        print(row, flush=True)
    settings["out"] = "results"
    write_json(options.out / f"scaling_{hardware['device']}.json", record, indent=2)
    settings["out"] = str(options.out)
    plot(record)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except MinidetError as error:
        sys.exit(f"error: {error}")
