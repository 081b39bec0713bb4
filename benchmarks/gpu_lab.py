"""Six short trainings, five of them with one fault each: the recorded runs that chapter 13 looks at.

    python benchmarks/gpu_lab.py

Each has the weights of chapter 00 but for the last layer of the head, its predictors, which begin anew, and learns
drawn pictures of one class, 96 x 128. Four of them differ from the first in one setting of the recipe; the last has the
annotations of larger pictures.

Writes benchmarks/results/gpu_lab.json: under "named" runs of seed 0 by what was done to them, under "letters" all six
of seed 1 without a name, each with a checksum that tells a right answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

import minidet
from minidet.data.coco import CocoDataset, load_split
from minidet.data.shapes import ShapesConfig, make_shapes
from minidet.errors import RunError
from minidet.files import read_json, write_json
from minidet.training.hardware import describe_hardware
from minidet.training.loop import train
from minidet.training.recipe import LIGHT, Recipe, recipe_for
from minidet.training.run_folder import read_metrics

ROOT = Path(__file__).parent.parent
START = ROOT / "chapters" / "weights" / "yolox-nano-shapes.safetensors"
SHAPES = ShapesConfig(
    train=80, val=32, test=0, image_hw=(96, 128), seed=1313, objects=(1, 4), crowd_share=0, one_class=True
)
# What is changed, in the recipe; "wrong boxes" changes the training annotations instead.
FAULTS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "rate too high": {"base_lr": 12.5},
    "rate too low": {"base_lr": 0.0025},
    "no average": {"ema_decay": None},
    "no closing phase": {"final_epochs": 0},
    "wrong boxes": {},
}
NAMED = ("healthy", "rate too high", "no average", "no closing phase")
TOO_LARGE = 1.25  # the wrong boxes: those of pictures so much larger


@dataclass(frozen=True)
class Options:
    epochs: int = 12
    base_lr: float = 0.25  # for a batch of 64, so an eighth of it at a batch of 8
    final_epochs: int = 3  # of flat learning rate; the closing phase has one more
    threads: int = 1  # of the processor
    seeds: tuple[int, int] = (0, 1)  # of the named runs and of those with a letter
    folder: Path = Path("runs/gpu-lab")  # data and runs
    record: Path = Path(__file__).parent / "results" / "gpu_lab.json"


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    shutil.rmtree(options.folder, ignore_errors=True)
    make_shapes(options.folder / "data", SHAPES)
    named = {fault: run(fault, options.seeds[0], options) for fault in NAMED}
    hidden = {fault: run(fault, options.seeds[1], options) for fault in FAULTS}
    letters = {}
    for letter, fault in zip("ABCDEF", sorted(hidden, key=lambda name: digest("order", name)), strict=True):
        letters[letter] = {"answer": digest(letter, fault), "rows": hidden[fault]}
    record = {
        "what": f"six trainings of yolox-nano on {SHAPES}, from {START.name}",
        "command": "python benchmarks/gpu_lab.py",
        "settings": {"epochs": options.epochs, "base_lr": options.base_lr, "final_epochs": options.final_epochs},
        "faults": FAULTS,
        "wrong boxes": f"every number of the training boxes times {TOO_LARGE}",
        "hardware": describe_hardware(torch.device("cpu")),
        "torch": torch.__version__,
        "seeds": {"named": options.seeds[0], "letters": options.seeds[1]},
        "named": named,
        "letters": letters,
    }
    write_json(options.record, record, indent=None)


def digest(letter: str, fault: str) -> str:
    """What tells whether an answer is right without saying which one is."""
    return hashlib.sha256(f"{letter}: {fault}".encode()).hexdigest()[:12]


def run(fault: str, seed: int, options: Options) -> list[dict[str, Any]]:
    """One training, as rows of its losses and its AP."""
    data = options.folder / "data"
    train_data, val_data = load_split(data, "train"), load_split(data, "val")
    if fault == "wrong boxes":
        train_data = enlarged(data)
    torch.manual_seed(seed)
    model = minidet.create_model("yolox-nano", 1, class_names=train_data.class_names, input_hw=SHAPES.image_hw)
    known = minidet.load_model(START).state_dict()
    model.load_state_dict({k: v for k, v in known.items() if "predictor" not in k}, strict=False)
    out = options.folder / fault.replace(" ", "-") / str(seed)
    changes = {"epochs": options.epochs, "base_lr": options.base_lr, "final_epochs": options.final_epochs}
    options_of_run = {"device": "cpu", "workers": 0, "tensorboard": False, "progress": False}
    with contextlib.suppress(RunError):  # a fault can end a run; what it wrote down before counts
        train(
            model,
            replace(base_recipe(), **(changes | FAULTS[fault])),
            train_data,
            val_data,
            out,
            seed=seed,
            log=lambda line: print(f"{fault}, seed {seed}: {line}", flush=True),
            **options_of_run,
        )
    return [
        {
            "losses": {name: float(f"{value:.5g}") for name, value in row["losses"].items()},
            "ap": round(row["ap"] or 0.0, 4),
        }
        for row in read_metrics(out / "metrics.jsonl")
    ]


def base_recipe() -> Recipe:
    """The course's with mosaics until the closing phase and an average that suits 120 steps; judged every epoch."""
    course = recipe_for("course", "yolox-nano")
    return replace(course, augmentation=replace(LIGHT, mosaic_prob=1.0), eval_every=1, ema_decay=0.97, ema_ramp=20)


def enlarged(data: Path) -> CocoDataset:
    """The training pictures with the boxes of larger ones."""
    content = read_json(data / "annotations" / "instances_train.json")
    for annotation in content["annotations"]:
        annotation["bbox"] = [TOO_LARGE * value for value in annotation["bbox"]]
    path = data / "annotations" / "wrong.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return CocoDataset(path, data / "train")


if __name__ == "__main__":
    main(tyro.cli(Options))
