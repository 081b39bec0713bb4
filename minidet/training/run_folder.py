"""The folder of a training run: whose it is, how far it came, and what is kept in it (chapter 11).

config.json           model, recipe, data, versions, hardware, command
metrics.jsonl         one line an epoch
checkpoints/*.pt      everything that is needed to go on
best.safetensors      averaged weights with the highest AP; last.safetensors: those of the newest checkpoint
curves.png, predictions.png, tensorboard/
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision

from minidet.data.augment import Augmentation
from minidet.data.coco import CocoDataset
from minidet.detectors import Detector
from minidet.detectors.weights import config_description, model_description
from minidet.errors import RunError, WeightsError
from minidet.files import atomic_write, read_json, write_json
from minidet.training.checkpoint import checkpoint_path, checkpoints, load_checkpoint
from minidet.training.hardware import describe_hardware
from minidet.training.recipe import Recipe

# The parts of config.json in which a resumed run must agree, and those where other values give slightly other numbers.
IDENTITY = ("model", "recipe", "data", "seed")
MANNER = ("precision", "ranks", "accumulate", "sync_batch_norm")


class RunFolder:
    """One run's folder. `open` checks it, for a new run or for going on with an old one; `begin` writes first.

    Args:
        path: the folder; made when it is not there.
        config: what is run, as plain JSON values.
        defaults: what fields of `config` mean that an older version of minidet did not write down yet.

    Attributes:
        metrics: the epochs that are done.
        changes: in what else than its identity a resumed run differs from before, as lines of text.
    """

    def __init__(self, path: str | Path, config: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.config = config
        self.defaults = defaults or {}
        self.resumes = False
        self.metrics: list[dict[str, Any]] = []
        self.changes: list[str] = []

    def open(self, resume: bool) -> None:
        """See that the folder is free for a new run, or holds this very run to go on with; nothing is written.

        Raises:
            RunError: the folder holds another run or foreign files, there is nothing to resume, or nothing can be
                written there.
        """
        self.resumes = resume
        if resume:
            self._check_same_run()
            self.metrics = read_metrics(self.path / "metrics.jsonl")
        else:
            self._check_empty()
        check_writable(self.path)

    def check_space(self, checkpoint_bytes: int, keep_last: int) -> None:
        """See before training that the disk has room for all that is kept: the last checkpoints, the best, a new one.

        Raises:
            RunError: it has not.
        """
        there = sum(path.stat().st_size for path in checkpoints(self.path))
        needed = (keep_last + 2) * checkpoint_bytes - there
        free = shutil.disk_usage(_nearest_folder(self.path)).free
        if free < needed:
            raise RunError(
                f"{self.path}: its disk has {free / 1e6:,.0f} MB left, but the checkpoints of this run need "
                f"{needed / 1e6:,.0f} MB. Free some space, choose another folder, or lower keep_last (now {keep_last})."
            )

    def begin(self, epochs_done: int) -> None:
        """Claim the folder for a new run; tidy up an old one, whose epochs after `epochs_done` come again."""
        if not self.resumes:
            write_json(self.path / "config.json", self.config, indent=2)
            return
        for part in [*self.path.glob(".*.part"), *self.path.glob("checkpoints/.*.part")]:
            part.unlink(missing_ok=True)  # what a killed process left half written
        self.metrics = [row for row in self.metrics if row["epoch"] <= epochs_done]
        with atomic_write(self.path / "metrics.jsonl") as file:
            file.write("".join(_line(row) for row in self.metrics).encode())

    def _check_empty(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file, but a run needs a folder. Choose another name.")
        inside = (
            sorted(p.name for p in self.path.iterdir() if not p.name.endswith(".part")) if self.path.exists() else []
        )
        if "config.json" in inside:
            newest = next(iter(checkpoints(self.path)), None)
            reached = f", saved up to {newest.name}" if newest else ""
            raise RunError(
                f"{self.path}: holds another run already{reached}. Go on with that one (--resume, in Python "
                "resume=True) or choose another folder; nothing was changed."
            )
        if inside:
            shown = ", ".join(inside[:3]) + (", ..." if len(inside) > 3 else "")
            raise RunError(f"{self.path}: is not empty ({shown}). A run needs a folder of its own; choose another one.")

    def _check_same_run(self) -> None:
        if not (self.path / "config.json").is_file():
            raise RunError(
                f"{self.path}: there is no run to resume here (no config.json). Check the folder, or start anew."
            )
        saved = read_json(self.path / "config.json")
        saved = completed(saved, self.defaults) if isinstance(saved, dict) else {}
        found = differences({key: saved.get(key) for key in IDENTITY}, {key: self.config[key] for key in IDENTITY})
        if found:
            raise RunError(
                f"{self.path}: cannot be resumed, it holds a different run:\n"
                + "\n".join(f"  {line}" for line in found)
                + "\nGive the same settings as then (they stand in its config.json), or choose another folder."
            )
        keys = [key for key in MANNER if key in saved]
        found = differences({key: saved[key] for key in keys}, {key: self.config[key] for key in keys})
        self.changes = [f"{line}; the run goes on, but not bit for bit as it would have." for line in found]

    def newest_state(self, log: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None where there is none at all.

        Raises:
            RunError: there are checkpoints, but none can be read.
        """
        paths = checkpoints(self.path)
        for path in paths:
            try:
                state = load_checkpoint(path)
            except WeightsError as error:
                log(f"Skipping a checkpoint: {error}")
                continue
            log(f"Going on from {path}.")
            return state
        if paths:
            raise RunError(f"{self.path}: none of its {len(paths)} checkpoints can be read. Start a new run.")
        log(f"{self.path}: holds no checkpoint yet, so training starts from the beginning.")
        return None

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append one epoch's line; a kill in the midst of it leaves a torn last line, which reading skips."""
        self.metrics.append(row)
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(_line(row))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror or error}). {self.last_good()}") from error

    def best(self) -> tuple[float, int] | None:
        """Highest AP so far and its epoch (from 1)."""
        scored = [(row["ap"], -row["epoch"]) for row in self.metrics if row.get("ap") is not None]
        ap, epoch = max(scored, default=(math.nan, 0))
        return (ap, -epoch) if scored else None

    def prune(self, keep_last: int) -> None:
        """Delete all checkpoints but the newest ones and that of the best epoch."""
        best = self.best()
        kept = checkpoint_path(self.path, best[1]) if best else None
        for path in checkpoints(self.path)[keep_last:]:
            if path != kept:
                path.unlink(missing_ok=True)

    def last_good(self) -> str:
        """A sentence that says from where one can go on."""
        newest = next(iter(checkpoints(self.path)), None)
        return f"The last good checkpoint is {newest}." if newest else "There is no checkpoint yet."


def check_writable(folder: Path) -> None:
    """See that files can be written into a folder, or into the one that it will be made in; nothing stays there.

    Raises:
        RunError: they cannot.
    """
    try:
        with tempfile.TemporaryFile(dir=_nearest_folder(folder)) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"{folder}: nothing can be written there ({error.strerror or error}), so a run would be lost. Choose "
            "another folder (--out), or free some space."
        ) from error


def _nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(each for each in [path, *path.resolve().parents] if each.is_dir())


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a torn last line is left out.

    Raises:
        RunError: a line before the last one is not JSON, or no row of `RunFolder.add_metrics`.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}).") from error
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line break is torn or empty
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}: line {number} is not JSON. Remove the line.") from error
        known = isinstance(row, dict) and type(row.get("epoch")) is int
        if not known or not (row.get("ap") is None or type(row["ap"]) in (int, float)):
            raise RunError(f"{path}: line {number} is no row of an epoch with its number and AP. Remove the line.")
        rows.append(row)
    return rows


def differences(saved: Any, wanted: Any, name: str = "") -> list[str]:
    """In which keys two configurations differ, one text each: `recipe.epochs: the run has 300, now it is 100`."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        return [
            line
            for key in [*saved, *(key for key in wanted if key not in saved)]
            for line in differences(saved.get(key), wanted.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if saved == wanted else [f"{name}: the run has {saved!r}, now it is {wanted!r}"]


def completed(saved: Any, defaults: Any) -> Any:
    """A configuration with the keys that it lacks taken from `defaults`, into the depth."""
    if not (isinstance(saved, dict) and isinstance(defaults, dict)):
        return saved
    return defaults | {key: completed(value, defaults.get(key)) for key, value in saved.items()}


def default_config(model: Detector) -> dict[str, Any]:
    """The defaults of everything in "model" and "recipe" of `run_config`.

    A run that was begun before a setting existed lacks it in its config.json; it was run with what is the default now.
    """
    default = type(model.config)()
    description = config_description(default)
    for name in (each.name for each in dataclasses.fields(default) if each.name.endswith("assigner")):
        kind = type(getattr(model.config, name))
        if kind is not type(getattr(default, name)):  # a rule of another kind has defaults of its own
            description[name] = dataclasses.asdict(kind())
    defaults = {
        "model": description,
        "recipe": dataclasses.asdict(Recipe(augmentation=Augmentation())),
    }
    return json.loads(json.dumps(defaults))


def saved_batch_size(path: str | Path) -> int | None:
    """The batch size of the run in a folder, None where there is no run."""
    if not (Path(path) / "config.json").is_file():
        return None
    saved = read_json(Path(path) / "config.json")
    size = saved.get("recipe", {}).get("batch_size") if isinstance(saved, dict) else None
    if not isinstance(size, int):
        raise RunError(f"{path}/config.json: names no recipe.batch_size, so it is not one of a run. Start a new run.")
    return size


def run_config(
    model: Detector,
    recipe: Recipe,
    train_data: CocoDataset,
    val_data: CocoDataset | None,
    seed: int,
    device: torch.device,
    precision: str,
) -> dict[str, Any]:
    """What config.json says: the run's identity (model, recipe, data, seed), then where and by what it was run."""
    splits = {"train": train_data} | ({"val": val_data} if val_data is not None else {})
    config = {
        "model": model_description(model),
        "recipe": dataclasses.asdict(recipe),
        "data": {
            "class_names": list(train_data.class_names),
            **{f"{name}_images": len(each) for name, each in splits.items()},
        },
        "seed": seed,
        "fingerprints": {name: fingerprint(each) for name, each in splits.items()},
        "paths": {name: [str(each.annotations_path), str(each.images_path)] for name, each in splits.items()},
        "hardware": describe_hardware(device),
        "precision": precision,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "command": sys.argv,
    }
    return json.loads(json.dumps(config))  # tuples become lists, as they will be when it is read again


def fingerprint(data: CocoDataset) -> str:
    """What tells a data set from another: a checksum over its pictures' names and sizes, its boxes and their classes.

    Boxes count to a hundredth of a pixel, the order of pictures and of boxes does not, and pixels are not looked at: so
    the same data have the same fingerprint wherever they were drawn, fetched or written down.

    Returns:
        SHA-256 in hexadecimal.
    """
    lines = [f"{record.file_name} {record.width} {record.height}" for record in data.records]
    for index, record in enumerate(data.records):
        target = data.target(index)
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            corners = " ".join(f"{each:.2f}" for each in box)
            lines.append(f"{record.file_name} {data.class_names[label]} {corners}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
