"""Anchors by k-means for a data set, as numbers and as a picture.

    minidet data shapes data/shapes
    python benchmarks/anchors.py

Takes the boxes of the training pictures in pixels of the network input. Nothing here depends on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from minidet.data.anchors import box_sizes, kmeans_anchors, mean_best_iou
from minidet.data.coco import load_split
from minidet.draw import draw_anchors, save_figure

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    data: Path = Path("data/shapes")
    input_hw: tuple[int, int] = (192, 256)  # height and width of the network input
    counts: tuple[int, ...] = (1, 3, 6, 9, 12)  # so many anchors; the picture shows nine
    seed: int = 0
    seeds: int = 20  # so many starts are compared, with nine anchors
    out: Path = RESULTS / "anchors.png"


def main(options: Options) -> None:
    sizes = box_sizes(load_split(options.data, "train"), options.input_hw)
    print(f"{len(sizes)} boxes")
    for count in options.counts:
        anchors = kmeans_anchors(sizes, count, options.seed)
        words = ", ".join(f"{width:.1f} x {height:.1f}" for width, height in anchors.tolist())
        print(f"{count:>2} anchors, mean best IoU {mean_best_iou(sizes, anchors):.3f}: {words}")
    fits = [mean_best_iou(sizes, kmeans_anchors(sizes, 9, seed)) for seed in range(options.seeds)]
    print(f"9 anchors, seeds 0 to {options.seeds - 1}: from {min(fits):.3f} to {max(fits):.3f}")
    save_figure(draw_anchors(sizes, kmeans_anchors(sizes, 9, options.seed)), options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
