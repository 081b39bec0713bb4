"""Small models and pictures that the tests of explorers share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import minidet
from minidet.data.shapes import CLASS_NAMES


@pytest.fixture(scope="session")
def nano():
    """A YOLOX of 126 slots on three levels; its random predictions lie around their cells."""
    torch.manual_seed(1)
    return minidet.create_model("yolox-nano", num_classes=8, class_names=CLASS_NAMES, input_hw=(64, 96)).eval()


@pytest.fixture(scope="session")
def yolof():
    """A YOLOF of 90 slots: five anchors in each cell of one level."""
    torch.manual_seed(2)
    model = minidet.create_model("yolof-r18-c5", num_classes=8, class_names=CLASS_NAMES, input_hw=(96, 192))
    return model.eval()


@pytest.fixture
def scene_of():
    """A grey picture of 64 x 96 with `count` random objects."""

    def make(count: int, seed: int = 0):
        random = np.random.default_rng(seed)
        corner = random.uniform(0, [88, 56], (count, 2))
        size = np.exp(random.uniform(1, 4, (count, 2)))
        boxes = np.concatenate([corner, np.minimum(corner + size, [96, 64])], axis=1).astype(np.float32)
        target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(random.integers(0, 8, count))}
        return torch.full((3, 64, 96), 120, dtype=torch.uint8), target

    return make
