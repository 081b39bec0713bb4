"""Checkpoints: everything that training needs to go on as if it had never stopped, in a file that cannot run code.

A checkpoint is PyTorch's own zip format, holding tensors, numbers, texts, lists and dictionaries and nothing else. It
is written atomically, its checksums are verified before it is read, and reading uses `weights_only=True`.

Source: chapter 11.
"""

from __future__ import annotations

import pickle
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minidet.detectors.tensor_files import check_zip, reason_of
from minidet.errors import WeightsError
from minidet.files import atomic_write

FOLDER = "checkpoints"
_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?\.pt")


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a state of plain values (tensors, numbers, texts, lists, dictionaries) atomically.

    Raises:
        MinidetError: the disk is full or the folder cannot be written; what stood at `path` is untouched.
    """
    with atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides a full disk behind an internal error
                raise error.__context__ from None
            raise


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; code hidden in the file is refused, never run.

    Raises:
        WeightsError: the file is missing, damaged, or holds anything but plain values.
    """
    path = Path(path)
    try:
        check_zip(path)  # compares the checksum of every member; torch.load does not
        with path.open("rb") as file:  # of a path, torch.load looks at the suffix too
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: there is no such checkpoint.") from error
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"{path}: is not a whole checkpoint: it broke off while it was written, or is another kind of file."
        ) from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors, numbers and texts, and could run code when opened; it was not opened. "
            "Only use checkpoints that minidet wrote."
        ) from error
    except ValueError as error:
        raise WeightsError(f"{path}: is damaged ({error}). Use an older checkpoint.") from error
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint ({reason_of(error)}). Use an older checkpoint."
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, but a checkpoint is a dictionary.")
    return state


def checkpoint_path(run_dir: str | Path, epochs_done: int, step: int = 0) -> Path:
    """Where a checkpoint goes: `checkpoints/epoch_0012.pt`, or `epoch_0012_step_00034.pt` inside the next epoch."""
    inside = f"_step_{step:05d}" if step else ""
    return Path(run_dir) / FOLDER / f"epoch_{epochs_done:04d}{inside}.pt"


def checkpoints(run_dir: str | Path) -> list[Path]:
    """All checkpoints of a run, the newest one first."""
    found = []
    for path in (Path(run_dir) / FOLDER).glob("*.pt"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), int(match[2] or 0), path))
    return [path for _, _, path in sorted(found, reverse=True)]


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return next(iter(checkpoints(run_dir)), None)


def random_state() -> dict[str, Any]:
    """The state of the random generators of this process, as plain values; numpy's global one is never used here."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to what `random_state` gave; the GPUs' generators only where their number is the same."""
    torch.set_rng_state(state["torch"])
    cuda: list[Tensor] = state["cuda"]
    if cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
