"""Behind the figures of the road map: what each rung's weights can and cannot do, and who learns what.

    minidet ablate yolox data/shapes --out runs/ladder ...
    python benchmarks/roadmap.py --runs runs/ladder --data data/shapes

For each rung, over the validation pictures: AP, AP if classes did not count (every object and every detection has the
same one, and boxes suppress each other whatever they are called), and how many slots learn an object. Figures go to a
JSON file, and one picture shows four rungs' slots.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import tyro

from minidet.data.coco import CocoDataset, load_split
from minidet.detectors import Detector, load_model
from minidet.detectors.roadmap import Rung, roadmap
from minidet.draw import save_figure
from minidet.draw.assignment import AssignmentPanel, draw_assignment
from minidet.evaluation.average_precision import evaluate, evaluate_without_classes
from minidet.explore.assignment import AssignmentBench
from minidet.files import write_json

RESULTS = Path(__file__).parent / "results"
DRAWN = ("strong-augmentation", "anchor-free", "multi-positives", "simota")


@dataclass(frozen=True)
class Options:
    runs: Path = Path("runs/ablation-yolox")  # the folder of the ablation
    data: Path = Path("data/shapes")
    picture: int = 7  # of the validation pictures, the one that is drawn
    out: Path = RESULTS / "roadmap.json"
    figure: Path = RESULTS / "roadmap_assignments.png"


def slots_per_object(model: Detector, data: CocoDataset) -> list[int]:
    """How many slots learn each object of a data set."""
    counts = []
    for index in range(len(data)):
        matched = model.assign([data.image(index)], [data.target(index)], trace=False).matched_gt[0]
        counts.append(torch.bincount(matched[matched >= 0], minlength=len(data.target(index)["labels"])))
    return torch.cat(counts).tolist()


def panel_of(model: Detector, picture: tuple, title: str) -> tuple[AssignmentPanel, tuple[int, ...]]:
    """A picture's slots by the model's own rule, as `draw_assignment` takes them, and its strides."""
    bench = AssignmentBench(model, picture, rules=[model.config.assigner])
    state = bench.first_state()
    (panel,) = bench.drawn(state, bench.numbers(state))
    return dataclasses.replace(panel, title=title), bench.ground(0, 0).strides


def title_of(rung: Rung) -> str:
    words = rung.words.removeprefix("+ ")
    return words[0].upper() + words[1:]


def main(options: Options) -> None:
    data = load_split(options.data, "val")
    image, target = data.image(options.picture), data.target(options.picture)
    results, panels, strides = [], [], ()
    print("| | runs | AP | AP if classes did not count | slots an object | objects without any |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, rung in roadmap((640, 640)).items():
        runs = []
        for path in sorted((options.runs / name).glob("seed-*/result.json")):
            model = load_model(path.parent / "last.safetensors")
            slots = slots_per_object(model, data)
            figures = {
                "ap": evaluate(model, data, progress=False).ap,
                "ap_without_classes": evaluate_without_classes(model, data, progress=False).ap,
                "slots": mean(slots),
                "without": slots.count(0) / len(slots),
            }
            runs.append({"run": path.parent.name, **figures})
            if name in DRAWN and len(runs) == 1:
                panel, strides = panel_of(model, (image, target), title_of(rung))
                panels.append(panel)
        if not runs:
            continue
        results.append({"rung": name, "words": rung.words, "runs": runs})
        ap, anyhow, slots, without = (mean(run[key] for run in runs) for key in figures)
        columns = f"{100 * ap:.1f} | {100 * anyhow:.1f} | {slots:.1f} | {100 * without:.1f} %"
        print(f"| {rung.words} | {len(runs)} | {columns} |")
    write_json(options.out, results, indent=2)
    alt = f"One picture with {len(target['boxes'])} objects and the slots that learn them. "
    alt += " ".join(f"{panel.title}: {panel.caption}" for panel in panels)
    pixels, boxes = image.permute(1, 2, 0).numpy(), target["boxes"].numpy().astype(np.float32)
    save_figure(draw_assignment(pixels, boxes, panels, strides, alt, side=384), options.figure)


if __name__ == "__main__":
    main(tyro.cli(Options))
