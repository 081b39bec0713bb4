"""A data set and a model that are small enough to train for several epochs within a second."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import minidet
from minidet.data.augment import Augmentation
from minidet.data.coco import CocoDataset
from minidet.training.checkpoint import load_checkpoint
from minidet.training.loop import TrainingResult, train
from minidet.training.recipe import Recipe

SMALL = Recipe(
    epochs=4,
    batch_size=4,
    base_lr=0.08,
    warmup_epochs=1,
    final_epochs=1,
    ema_decay=0.9,
    ema_ramp=5,
    augmentation=Augmentation(mosaic_prob=0.5, mosaic_scale=(0.8, 1.2), mixup_prob=0.0),
    multi_scale=None,
    eval_every=2,
    eval_closing=False,
)


def write_squares(folder: Path, count: int) -> CocoDataset:
    """COCO files on disk: `count` dark pictures of 64 x 64 pixels, each with one red or one green square."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        rng = np.random.default_rng(number)
        side = int(rng.integers(16, 40))
        x, y = (int(each) for each in rng.integers(0, 64 - side, size=2))
        label = number % 2
        picture = np.full((64, 64, 3), 40, dtype=np.uint8)
        picture[y : y + side, x : x + side, label] = 220
        Image.fromarray(picture).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
        box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": label + 1, **box})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return CocoDataset(path, folder)


def tiny_model(**changes) -> minidet.detectors.Detector:
    """A YOLOX of 127 thousand weights, the same ones every time."""
    torch.manual_seed(1)
    settings = {"input_hw": (64, 64), "width": 0.0625, "depth": 0.1} | changes
    return minidet.create_model("yolox-tiny", num_classes=2, **settings)


def run(folder: Path, data, recipe=SMALL, model=None, val_data="same", **options) -> TrainingResult:
    """Train the tiny model on the CPU, silently."""
    model = model or tiny_model()
    torch.manual_seed(5)
    random.seed(5)
    options = {
        "device": "cpu",
        "workers": 0,
        "tensorboard": False,
        "progress": False,
        "log": lambda text: None,
    } | options
    val_data = data if val_data == "same" else val_data
    return train(model, recipe, data, val_data, folder, **options)


def at_forward(model, number: int, action):
    """Do something in the midst of the n-th training step of a model."""
    calls = []

    def hook(module, inputs, output):
        if module.training:
            calls.append(1)
            if len(calls) == number:
                return action(output)
        return None

    model.register_forward_hook(hook)
    return model


def press_ctrl_c(output=None):
    """In the midst of a training step, as an action for `at_forward`."""
    signal.raise_signal(signal.SIGINT)


def state_of(path: Path) -> dict:
    """A checkpoint as one flat dict, without what may differ between two equal runs: the clock."""
    return dict(flat(load_checkpoint(path)))


def flat(value, name: str = ""):
    if isinstance(value, dict):
        for key, each in value.items():
            if key != "seconds":
                yield from flat(each, f"{name}/{key}")
    elif isinstance(value, list):
        for position, each in enumerate(value):
            yield from flat(each, f"{name}/{position}")
    else:
        yield name, value


def assert_same_state(path: Path, other: Path) -> None:
    """Two checkpoints are equal, bit for bit: weights, average, momentum, random generators, counters."""
    first, second = state_of(path), state_of(other)
    assert first.keys() == second.keys()
    assert len(first) > 100
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name
