"""A data set and a run that all tests of training share."""

from __future__ import annotations

import pytest

from minidet.data.coco import CocoDataset
from minidet.training.loop import TrainingResult
from tests.training.squares import run, write_squares


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Twelve pictures: three steps an epoch with `SMALL`."""
    return write_squares(tmp_path_factory.mktemp("squares"), 12)


@pytest.fixture(scope="session")
def whole(squares, tmp_path_factory) -> TrainingResult:
    """A run that nothing interrupts: 4 epochs of 3 steps, evaluated after the second and the last."""
    return run(tmp_path_factory.mktemp("whole") / "run", squares, tensorboard=True)
