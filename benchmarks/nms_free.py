"""What a detector says with and without NMS, on the same weights: AP and duplicates of every run of an ablation.

    minidet ablate yolox data/shapes --grid nms-free --out runs/ladder ...
    python benchmarks/nms_free.py --runs runs/ladder --data data/shapes

Each run's last weights are judged twice on the validation pictures: with NMS at 0.65, and with the best 100 boxes of an
image as they are. Nothing else changes. A table goes to the screen, all figures to a JSON file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro

from minidet.data.coco import CocoDataset, load_split
from minidet.detectors import Detector, load_model
from minidet.evaluation.average_precision import score_rows
from minidet.evaluation.duplicates import count_rows
from minidet.evaluation.predict import predict_dataset
from minidet.files import read_json, write_json
from minidet.training.cells import yolox_ablations
from minidet.training.hardware import choose_device, describe_hardware

RESULTS = Path(__file__).parent / "results"
NMS, MOST = 0.65, 100


@dataclass(frozen=True)
class Options:
    runs: Path = Path("runs/ablation-yolox")  # the folder of the ablation
    data: Path = Path("data/shapes")
    split: str = "val"
    grid: str = "nms-free"
    device: str = "auto"
    out: Path = RESULTS / "nms_free.json"


def judge(model: Detector, data: CocoDataset, nms_threshold: float | None) -> dict[str, Any]:
    """AP and duplicates per object that was found, with NMS at a threshold or, for None, without."""
    model.nms_threshold, model.max_detections = nms_threshold, MOST
    rows = predict_dataset(model, data, progress=False)
    scores, duplicates = score_rows(data, rows), count_rows(data, rows)
    return {"ap": scores.ap, "ap50": scores.ap50, "duplicates": duplicates.to_dict()}


def summed_up(values: list[float], form: str) -> str:
    spread = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{spread}"


def main(options: Options) -> None:
    data, device = load_split(options.data, options.split), choose_device(options.device)
    cells = yolox_ablations((640, 640))[options.grid].cells  # only their names and words are used
    results = []
    for cell in cells:
        for path in sorted((options.runs / cell.name).glob("seed-*/result.json")):
            model = load_model(path.parent / "last.safetensors", device)
            figures = {"with": judge(model, data, NMS), "without": judge(model, data, None)}
            results.append({"cell": cell.name, "words": cell.words, "seed": read_json(path)["seed"], **figures})
            write_json(options.out, {"hardware": describe_hardware(device), "runs": results}, indent=2)
    print("| | runs | AP with NMS | without | difference | duplicates per object with NMS | without |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for cell in cells:
        runs = [run for run in results if run["cell"] == cell.name]
        if not runs:
            continue
        ap = {which: [100 * run[which]["ap"] for run in runs] for which in ("with", "without")}
        found = {which: [run[which]["duplicates"]["per_object"] or 0 for run in runs] for which in ap}  # None: nothing
        lost = [after - before for before, after in zip(ap["with"], ap["without"], strict=True)]
        columns = [summed_up(ap["with"], ".1f"), summed_up(ap["without"], ".1f"), summed_up(lost, "+.1f")]
        columns += [summed_up(found["with"], ".2f"), summed_up(found["without"], ".2f")]
        print(f"| {cell.words} | {len(runs)} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main(tyro.cli(Options))
