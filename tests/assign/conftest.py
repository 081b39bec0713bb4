"""What the tests of single strategies share."""

from __future__ import annotations

import pytest
import torch

from minidet.assign import DensePredictions


@pytest.fixture
def as_anchors():
    """Predictions that say just their anchors; class logits [A, C] and objectness logits [A] may be given."""

    def make(grid, batch=1, class_logits=None, object_logits=None) -> DensePredictions:
        boxes = grid.anchor_boxes.expand(batch, len(grid), 4)
        logits = torch.zeros(len(grid), 1) if class_logits is None else class_logits
        return DensePredictions(
            grid,
            boxes,
            boxes,
            logits.expand(batch, *logits.shape),
            None if object_logits is None else object_logits[None],
        )

    return make


@pytest.fixture
def target():
    def make(boxes, labels=None) -> dict[str, torch.Tensor]:
        boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return {"boxes": boxes, "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64)}

    return make


@pytest.fixture
def random_squarish():
    """N objects somewhere in 1344 x 800, side sqrt(w h) and aspect ratio in [1/2, 2] both log-uniform: [N, 4]."""

    def make(count: int, low: float, high: float, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        u = torch.rand(4, count, generator=generator)
        side, ratio = low * (high / low) ** u[0], 2 ** (2 * u[1] - 1)
        size = torch.stack([side * ratio.sqrt(), side / ratio.sqrt()], dim=1)
        corner = u[2:].T * (torch.tensor([1344.0, 800.0]) - size)
        return torch.cat([corner, corner + size], dim=1)

    return make
