"""A small YOLOF learns to find shapes, with and without the dilated blocks: the weights that chapter 07 loads.

    minidet data shapes data/shapes-large --one-class --min-side 48 --objects 1 5 --crowd-share 0
    python benchmarks/yolof_checkpoint.py --data data/shapes-large

Recipe and pictures are those of "YOLOF's parts on shapes", with two epochs of flat learning rate at the end. The
network is yolof-r18-c5 with fewer channels, so that the file fits into the repository. Kept are the averaged weights
after the last epoch, their convolutions stored as float16; the figures are those of the stored files, read again.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

import minidet
from minidet.cli import change_recipe
from minidet.data.coco import CocoDataset, load_split
from minidet.detectors import Detector
from minidet.detectors.weights import load_state
from minidet.evaluation.average_precision import evaluate
from minidet.evaluation.speed import count_gflops, count_parameters
from minidet.files import write_json
from minidet.training.checkpoint import checkpoint_path, load_checkpoint
from minidet.training.hardware import describe_hardware
from minidet.training.loop import train
from minidet.training.recipe import recipe_for

ROOT = Path(__file__).parent.parent
NAME = "yolof-r18-c5"
SMALLER: dict[str, Any] = {"backbone_width": 0.375, "width": 96, "mid_width": 24}
RUNS: dict[str, dict[str, Any]] = {"yolof": {}, "no-blocks": {"dilations": ()}}
SETTINGS = ("final_epochs=2", "augmentation.affine_prob=0", "augmentation.hsv_prob=0", "augmentation.shift_prob=0")


@dataclass(frozen=True)
class Options:
    data: Path = Path("data/shapes-large")  # drawn by `minidet data shapes`, see above
    epochs: tuple[int, ...] = (8, 16)  # a training of each length; the weights of the last are kept
    batch_size: int = 8
    input_size: tuple[int, int] = (192, 256)  # height and width
    seeds: tuple[int, ...] = (0, 1)  # of weights, order and mirroring; the weights of the first are kept
    threads: int = 1  # of the processor
    precision: str = "bf16"  # of the network in training
    only: str | None = None  # one of the two networks, "yolof" or "no-blocks"
    runs: Path = Path("runs/yolof-checkpoint")  # a folder for each run
    weights: Path = ROOT / "chapters" / "weights" / "yolof-r18-c5-shapes.safetensors"  # those of "yolof"
    record: Path = Path(__file__).parent / "results" / "yolof_checkpoint.json"


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    names = [options.only] if options.only else list(RUNS)
    record = {
        "what": f"{NAME} with {SMALLER} from scratch on large shapes, with and without dilated blocks",
        "command": "python benchmarks/yolof_checkpoint.py --data data/shapes-large",
        "hardware": describe_hardware(torch.device("cpu")),
        "torch": torch.__version__,
        "threads": options.threads,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "input_size": options.input_size,
        "runs": [
            run(name, epochs, seed, options) for epochs in options.epochs for name in names for seed in options.seeds
        ],
    }
    write_json(options.record, record, indent=1)


def run(name: str, epochs: int, seed: int, options: Options) -> dict[str, Any]:
    """Train one network, then store and judge its averaged weights."""
    train_data, val_data = load_split(options.data, "train"), load_split(options.data, "val")
    torch.manual_seed(seed)
    model = minidet.create_model(
        NAME,
        len(train_data.class_names),
        class_names=train_data.class_names,
        input_hw=options.input_size,
        **SMALLER,
        **RUNS[name],
    )
    recipe = dataclasses.replace(recipe_for("course", NAME), epochs=epochs, batch_size=options.batch_size)
    recipe = change_recipe(recipe, SETTINGS, model)
    folder = options.runs / f"{name}-{epochs}-{seed}"
    result = train(
        model,
        recipe,
        train_data,
        val_data,
        folder,
        device="cpu",
        precision=options.precision,
        seed=seed,
        workers=0,
        resume=(folder / "config.json").exists(),
    )
    if result.interrupted:
        sys.exit("Stopped; the same command goes on.")

    load_state(model, load_checkpoint(checkpoint_path(folder, epochs))["ema"]["model"], name)
    kept = (name, epochs, seed) == ("yolof", options.epochs[-1], options.seeds[0])
    file = options.weights if kept else folder / "half.safetensors"
    minidet.save_weights(model, file, half=True)
    stored = minidet.load_model(file)
    found = evaluate(stored, val_data, progress=False)
    judged = {key: round(value, 4) for key, value in found.to_dict().items() if key in FIGURES}
    print(name, epochs, seed, judged)
    return {
        "network": name,
        "epochs": epochs,
        "seed": seed,
        "parameters": count_parameters(model),
        "gflops": round(count_gflops(model), 4),
        "seconds": round(sum(row["seconds"] for row in result.metrics)),
        "losses": [{"epoch": row["epoch"], **row["losses"]} for row in result.metrics],
        "val": judged,
        "class_loss_by_running_averages": class_loss(stored, train_data, batch_statistics=False),
        "class_loss_by_batch_statistics": class_loss(stored, train_data, batch_statistics=True),
    }


@torch.no_grad()
def class_loss(model: Detector, data: CocoDataset, batch_statistics: bool, batches: int = 20) -> float:
    """The mean class loss of the first training pictures, with the norms of testing or with those of training."""
    twin, size, total = copy.deepcopy(model).train(batch_statistics), 8, 0.0
    for start in range(0, batches * size, size):
        images, targets = zip(*(data[index] for index in range(start, start + size)), strict=True)
        x, _ = twin.network_input(list(images))
        predictions, gt = twin.dense_of(x), twin.ground_truth(list(images), targets)
        losses = twin.losses_of(predictions, twin.assign_of(predictions, gt, trace=False), gt)
        total += losses["loss_class"].item()
    return round(total / batches, 4)


FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")

if __name__ == "__main__":
    main(tyro.cli(Options))
