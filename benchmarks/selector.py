"""Taking NMS away from a finished detector: only a selector is trained, everything else stays frozen.

    minidet data shapes data/shapes
    python benchmarks/selector.py --data data/shapes

Takes the yolox-nano of chapter 00, gives it a selector, trains that alone for some hundred steps on pictures as they
are, and judges the same weights with NMS and without, before and after.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import minidet
from minidet.data.coco import CocoDataset, load_split
from minidet.detectors import YOLOX
from minidet.detectors.weights import transfer_weights
from minidet.evaluation.average_precision import score_rows
from minidet.evaluation.duplicates import count_rows
from minidet.evaluation.predict import predict_dataset
from minidet.layers.heads import Selector


@dataclass(frozen=True)
class Options:
    data: Path = Path("data/shapes")
    weights: Path = Path("chapters/weights/yolox-nano-shapes.safetensors")
    steps: int = 600
    batch_size: int = 8
    lr: float = 2e-3  # of Adam, falling to 0 in a straight line
    seed: int = 0


def judge(model: YOLOX, data: CocoDataset, when: str) -> None:
    """Print AP and duplicates per object that was found, with NMS and without."""
    model.eval()
    for words, threshold in (("with NMS", 0.65), ("without", None)):
        model.nms_threshold, model.max_detections = threshold, 100
        rows = predict_dataset(model, data, progress=False)
        duplicates = count_rows(data, rows).per_object
        print(f"{when:<8}{words:<10}AP {score_rows(data, rows).ap:.3f}, {duplicates:.2f} duplicates an object")


def main(options: Options) -> None:
    torch.manual_seed(options.seed)
    train, val = load_split(options.data, "train"), load_split(options.data, "val")
    detector = minidet.load_model(options.weights)
    model = minidet.create_model(
        detector.name, len(val.class_names), class_names=val.class_names, input_hw=detector.input_hw, nms_free=True
    )
    transfer_weights(detector, model, str(options.weights))
    judge(model, val, "before")

    selectors = [module for module in model.modules() if isinstance(module, Selector)]
    parameters = [parameter for selector in selectors for parameter in selector.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=options.lr)
    order = torch.randperm(len(train)).tolist()
    model.eval()  # the norms of the frozen part stay as they are
    for selector in selectors:
        selector.train()
    for step in range(options.steps):
        chosen = [order[(step * options.batch_size + i) % len(order)] for i in range(options.batch_size)]
        images, targets = [train.image(i) for i in chosen], [train.target(i) for i in chosen]
        predictions = model.dense_of(model.network_input(images)[0])
        loss = model.selector_loss(predictions, model.ground_truth(images, targets))
        optimizer.param_groups[0]["lr"] = options.lr * (1 - step / options.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    judge(model, val, "after")


if __name__ == "__main__":
    main(tyro.cli(Options))
