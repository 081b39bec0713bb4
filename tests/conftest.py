"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MINIDET_SHARED", REPOSITORY.parent / "shared"))


def _shared(*parts: str) -> Path:
    folder = SHARED.joinpath(*parts)
    if not folder.exists():
        pytest.skip(f"the reference folder {folder} is not on this machine; set MINIDET_SHARED to check against it")
    return folder


@pytest.fixture(scope="session")
def yolox_reference() -> Path:
    """The folder of golden tensors from the official YOLOX; the test is skipped, with a reason, where it is absent."""
    return _shared("reference", "yolox")


@pytest.fixture(scope="session")
def yolof_reference() -> Path:
    """The folder of golden tensors from the official YOLOFs; the test is skipped, with a reason, where it is absent."""
    return _shared("reference", "yolof")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (blood cells, an evaluation oracle); skipped, with a reason, where it is absent."""
    return _shared("data")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_threads():
    """No test leaves another number of threads behind: sums in another order are other bits in every later test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
