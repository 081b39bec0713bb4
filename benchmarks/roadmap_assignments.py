"""Who learns what on four rungs of the road map: the same picture, each rung's own trained weights and rule.

    minidet ablate yolox data/shapes --out runs/ladder ...
    python benchmarks/roadmap_assignments.py --runs runs/ladder --data data/shapes

Prints for each rung how many slots an object has, over all validation pictures, and draws one picture.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from minidet.data.coco import load_split
from minidet.detectors import load_model
from minidet.detectors.roadmap import roadmap
from minidet.draw import save_figure
from minidet.draw.assignment import draw_assignment
from minidet.explore.assignment import AssignmentBench

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    runs: Path = Path("runs/ablation-yolox")  # the folder of the ablation
    data: Path = Path("data/shapes")
    seed: int = 0  # of the runs
    rungs: tuple[str, ...] = ("strong-augmentation", "anchor-free", "multi-positives", "simota")
    picture: int = 7  # of the validation pictures
    out: Path = RESULTS / "roadmap_assignments.png"


def main(options: Options) -> None:
    data = load_split(options.data, "val")
    words = {name: rung.words for name, rung in roadmap((640, 640)).items()}
    image, target = data.image(options.picture), data.target(options.picture)
    panels, strides = [], ()
    for name in options.rungs:
        model = load_model(options.runs / name / f"seed-{options.seed}" / "last.safetensors")
        counts = []
        for index in range(len(data)):
            matched = model.assign([data.image(index)], [data.target(index)], trace=False).matched_gt[0]
            objects = len(data.target(index)["labels"])
            counts.append(torch.bincount(matched[matched >= 0], minlength=objects))
        slots = torch.cat(counts)
        without = (slots == 0).double().mean().item()
        print(f"{words[name]:<40}{slots.double().mean():6.2f} slots an object, {100 * without:.1f} % without any")
        bench = AssignmentBench(model, (image, target), rules=[model.config.assigner])
        state = bench.first_state()
        (panel,) = bench.drawn(state, bench.numbers(state))
        panels.append(dataclasses.replace(panel, title=words[name].removeprefix("+ ").capitalize()))
        strides = bench.ground(0, 0).strides
    alt = f"One picture with {len(target['boxes'])} objects and the slots that learn them, on four rungs: "
    alt += "; ".join(f"{panel.title}: {panel.caption}" for panel in panels)
    pixels, boxes = image.permute(1, 2, 0).numpy(), target["boxes"].numpy().astype(np.float32)
    save_figure(draw_assignment(pixels, boxes, panels, strides, alt, side=384), options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
