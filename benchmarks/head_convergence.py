"""Two heads converge: AP after every epoch, at equal epochs and at equal compute, for several seeds.

    minidet data shapes data/shapes
    python benchmarks/head_convergence.py --data data/shapes

The network is the YOLOX paper's YOLOv3, a quarter as wide and a third as deep, with anchors found on these pictures:
the two lowest rungs of the road map. After each epoch the averaged weights are judged on the validation pictures: AP,
and AP if classes did not count (every object and every detection has the same one, and boxes suppress each other
whatever they are called); with the decoupled head also the trained weights themselves, before averaging. Each run is
an ordinary run folder, so a stopped one goes on with the same command, and seeds can be trained in processes of their
own (`--seeds 1 --no-record`) and collected afterwards.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

import minidet
from minidet.cli import DEMO_SETTINGS, find_anchors
from minidet.data.coco import CocoDataset, load_split
from minidet.detectors import Detector
from minidet.detectors.roadmap import roadmap
from minidet.detectors.weights import load_state
from minidet.evaluation.average_precision import evaluate, evaluate_without_classes
from minidet.evaluation.speed import count_gflops, count_parameters
from minidet.files import read_json, write_json
from minidet.training.checkpoint import checkpoint_path, load_checkpoint
from minidet.training.hardware import describe_hardware
from minidet.training.loop import train
from minidet.training.recipe import FLIP_AND_COLOUR, recipe_for

NAME, WIDTH, DEPTH = "yolox-darknet53", 0.25, 0.33
INPUT_HW = DEMO_SETTINGS["input_size"]


@dataclass(frozen=True)
class Setting:
    """One curve."""

    name: str
    words: str
    rung: str
    epochs: int
    judge_trained: bool = False  # the weights before averaging too


SETTINGS = (
    Setting("decoupled", "decoupled, 24 epochs", "decoupled-head", 24, judge_trained=True),
    Setting("coupled", "coupled, 24 epochs", "baseline", 24),
    # 0.9717 GFLOPs a picture against 0.7546
    Setting("coupled-equal-compute", "coupled, 31 epochs: as much compute", "baseline", 31),
)


@dataclass(frozen=True)
class Options:
    data: Path = Path("data/shapes")  # drawn by `minidet data shapes`
    settings: tuple[str, ...] = tuple(setting.name for setting in SETTINGS)  # of these alone, by name
    seeds: tuple[int, ...] = (0, 1, 2)  # of weights, order and augmentation
    threads: int = 1
    runs: Path = Path("runs/head-convergence")  # one run a setting and seed
    record: bool = True  # write --out when all is done
    out: Path = Path(__file__).parent / "results" / "head_convergence.json"


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    train_data, val_data = load_split(options.data, "train"), load_split(options.data, "val")
    results = []
    for setting in SETTINGS:
        if setting.name not in options.settings:
            continue
        runs = [run(setting, seed, options.runs, train_data, val_data) for seed in options.seeds]
        model = make_model(setting, train_data)
        results.append(
            {
                "name": setting.name,
                "words": setting.words,
                "parameters": count_parameters(model),
                "gflops": round(count_gflops(model), 4),
                "runs": runs,
            }
        )
        finals = ", ".join(f"{100 * each['curve'][-1]['ap']:.1f}" for each in runs)
        print(f"{setting.words}: AP {finals}")
    if options.record:
        record = {
            "what": "The YOLOX paper's YOLOv3 with either head, a quarter as wide and a third as deep, from scratch on "
            "shapes: AP after every epoch",
            "command": "python benchmarks/head_convergence.py --data data/shapes",
            "hardware": describe_hardware(torch.device("cpu")),
            "torch": torch.__version__,
            "settings": results,
        }
        write_json(options.out, record, indent=1)


def make_model(setting: Setting, data: CocoDataset) -> Detector:
    changes = roadmap(INPUT_HW, find_anchors(data, INPUT_HW))[setting.rung].changes
    names = data.class_names
    return minidet.create_model(
        NAME, len(names), class_names=names, input_hw=INPUT_HW, width=WIDTH, depth=DEPTH, **changes
    )


def run(setting: Setting, seed: int, runs: Path, train_data: CocoDataset, val_data: CocoDataset) -> dict[str, Any]:
    """Train one setting with one seed, judge the weights of every epoch, and keep the curve beside the run."""
    folder = runs / setting.name / f"seed-{seed}"
    finished = folder / "curve.json"
    if finished.exists():
        return read_json(finished)
    torch.manual_seed(seed)
    model = make_model(setting, train_data)
    recipe = dataclasses.replace(
        recipe_for("course", NAME),
        epochs=setting.epochs,
        batch_size=DEMO_SETTINGS["batch_size"],
        base_lr=0.32,
        final_epochs=3,
        augmentation=FLIP_AND_COLOUR,
        checkpoint_every=1,
        keep_last=setting.epochs + 1,  # one more where a run was stopped within an epoch
    )
    resume = (folder / "config.json").exists()
    result = train(
        model, recipe, train_data, val_data, folder, device="cpu", seed=seed, resume=resume, workers=0, progress=False
    )
    if result.interrupted:
        sys.exit("Stopped; the same command goes on.")
    curve = []
    for row in result.metrics:
        checkpoint = load_checkpoint(checkpoint_path(folder, row["epoch"]))
        load_state(model, checkpoint["ema"]["model"], f"{folder}, epoch {row['epoch']}")
        point = {"epoch": row["epoch"], **judge(model, val_data)}
        if setting.judge_trained:
            load_state(model, checkpoint["model"], f"{folder}, epoch {row['epoch']}")
            point["ap_trained"] = judge(model, val_data)["ap"]
        curve.append({**point, **{name: round(value, 4) for name, value in row["losses"].items()}})
    record = {"seed": seed, "seconds": round(sum(row["seconds"] for row in result.metrics)), "curve": curve}
    write_json(finished, record, indent=1)
    return record


def judge(model: Detector, data: CocoDataset) -> dict[str, float]:
    found = evaluate(model, data, progress=False)
    anyhow = evaluate_without_classes(model, data, progress=False)
    figures = {"ap": found.ap, "ap50": found.ap50, "ap_without_classes": anyhow.ap}
    return {name: round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    main(tyro.cli(Options))
