"""Two small YOLOX learn to find shapes, one with a decoupled head, one with a coupled: weights of several stages.

    minidet data shapes data/shapes
    python benchmarks/training_stages.py --data data/shapes

Recipe, pictures and seed are those of `minidet demo`; the network is yolox-nano at half its width, so that the weights
of all stages fit into the repository. They are the averaged weights after so many epochs, their convolutions stored as
float16. The explorers of assignment and of heads show them; the figures here are of the stored files, read again.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import minidet
from minidet.cli import DEMO_SETTINGS, change_recipe
from minidet.data.coco import load_split
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
NAME, WIDTH = "yolox-nano", 0.125
HEADS = ("decoupled", "coupled")


@dataclass(frozen=True)
class Options:
    data: Path = Path("data/shapes")  # drawn by `minidet data shapes`
    epochs: int = 17  # as the run that chapter 00 uses
    stages: tuple[int, ...] = (0, 1, 4, 17)  # epochs after which the weights are kept
    seed: int = 0  # of weights, order and mirroring
    runs: Path = Path("runs/stages")  # one run a head
    weights: Path = ROOT / "chapters" / "weights" / "stages"  # HEAD-EPOCH.safetensors and stages.json go there
    record: Path = Path(__file__).parent / "results" / "training_stages.json"


def main(options: Options) -> None:
    record = {
        "what": f"{NAME} of width {WIDTH} from scratch on shapes, decoupled and coupled head",
        "command": "python benchmarks/training_stages.py --data data/shapes",
        "hardware": describe_hardware(torch.device("cpu")),
        "torch": torch.__version__,
        "seed": options.seed,
        "heads": {head: run(head, options) for head in HEADS},
    }
    write_json(options.record, record, indent=1)
    index = [
        {"head": head, **{key: stage[key] for key in ("epoch", "file", "ap", "ap50")}}
        for head, result in record["heads"].items()
        for stage in result["stages"]
    ]
    write_json(options.weights / "stages.json", index, indent=1)


def run(head: str, options: Options) -> dict:
    """Train with one head, then store and judge the weights of every stage."""
    train_data, val_data = load_split(options.data, "train"), load_split(options.data, "val")
    torch.manual_seed(options.seed)
    model = minidet.create_model(
        NAME,
        len(train_data.class_names),
        class_names=train_data.class_names,
        width=WIDTH,
        head=head,
        input_hw=DEMO_SETTINGS["input_size"],
    )
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = dataclasses.replace(
        recipe_for("course", NAME),
        epochs=options.epochs,
        batch_size=DEMO_SETTINGS["batch_size"],
        checkpoint_every=1,
        keep_last=options.epochs + 1,  # one more where a run was stopped within an epoch
    )
    recipe = change_recipe(recipe, DEMO_SETTINGS["set"], model)
    folder = options.runs / head
    resume = (folder / "config.json").exists()
    result = train(model, recipe, train_data, val_data, folder, device="cpu", seed=options.seed, resume=resume)
    if result.interrupted:
        sys.exit("Stopped; the same command goes on.")

    stages = []
    for epoch in options.stages:
        if epoch:
            fresh_or_trained = load_checkpoint(checkpoint_path(folder, epoch))["ema"]["model"]
        else:
            fresh_or_trained = fresh
        load_state(model, fresh_or_trained, f"{head}, epoch {epoch}")
        file = f"{head}-{epoch:02d}.safetensors"
        minidet.save_weights(model, options.weights / file, half=True)
        stages.append({"epoch": epoch, "file": file, **judge(minidet.load_model(options.weights / file), val_data)})
        print(head, stages[-1])
    return {
        "parameters": count_parameters(model),
        "gflops": round(count_gflops(model), 4),
        "seconds": round(sum(row["seconds"] for row in result.metrics)),
        "losses": [{"epoch": row["epoch"], **row["losses"]} for row in result.metrics],
        "stages": stages,
    }


def judge(model: Detector, data) -> dict:
    found = evaluate(model, data, progress=False)
    return {"ap": round(found.ap, 4), "ap50": round(found.ap50, 4)}


if __name__ == "__main__":
    main(tyro.cli(Options))
