"""A data set that is drawn once for all tests of training."""

from __future__ import annotations

import pytest

from minidet.data.coco import CocoDataset
from tests.training.squares import write_squares


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Twelve pictures: three steps an epoch with `SMALL`."""
    return write_squares(tmp_path_factory.mktemp("squares"), 12)
