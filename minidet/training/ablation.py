"""Ablations: the same detector trained again and again, with one part changed at a time and everything else equal.

A cell is one setting, a folder of runs under the same budget, one for each seed. What a part contributes is the
difference between two cells, and whether that is more than chance is seen against the spread inside them.

    OUT/settings.json                  what all runs have in common; another ablation is refused
    OUT/CELL/seed-0/                   an ordinary run (`minidet.training.run_folder`) ...
    OUT/CELL/seed-0/result.json        ... and, once it is finished, its figures
    OUT/latency.json                   how long one image takes, all cells measured in turn
    OUT/table.md, results.json, ablation.png

Source: YOLOF, sections 3 and 5.2; YOLOX, section 2; chapter 12.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minidet.data.coco import CocoDataset
from minidet.detectors import Detector, create_model, load_model
from minidet.detectors.weights import model_description
from minidet.errors import MinidetError, RunError
from minidet.evaluation.average_precision import evaluate
from minidet.evaluation.speed import count_cost
from minidet.evaluation.timing import time_in_turn
from minidet.files import atomic_write, read_json, write_json
from minidet.training.ablation_report import draw, write_report
from minidet.training.cells import Ablation, Cell
from minidet.training.distributed import launched_ranks
from minidet.training.hardware import choose_device, choose_precision, describe_hardware, evaluation_workers
from minidet.training.loop import train
from minidet.training.recipe import Recipe, published_augmentation
from minidet.training.run_folder import differences, read_metrics


@dataclass(frozen=True)
class AblationResult:
    """What came out of `ablate`.

    Attributes:
        results: the content of results.json.
        failures: which runs failed and why, one text each.
        interrupted: Ctrl-C ended it; the same call goes on.
    """

    results: dict[str, Any]
    failures: list[str]
    interrupted: bool


@dataclass(frozen=True)
class Study:
    """What all runs of an ablation have in common.

    Args:
        model: a name of `list_models()`.
        recipe: how each cell is trained.
        train_data, val_data: pictures to learn from, and to be judged by.
        out: the folder of the whole ablation.
        changes: fields of the model's configuration that differ in every cell, such as `input_hw`.
        device, precision, workers, progress, log: as for `train`.
    """

    model: str
    recipe: Recipe
    train_data: CocoDataset
    val_data: CocoDataset
    out: Path
    changes: dict[str, Any] = field(default_factory=dict)
    device: str | torch.device = "auto"
    precision: str = "auto"
    workers: int | None = None
    progress: bool = True
    log: Callable[[str], None] = tqdm.write

    @property
    def settings(self) -> dict[str, Any]:
        """What must be equal for two runs to be compared, as plain JSON values."""
        data = {"train": self.train_data, "val": self.val_data}
        settings = {
            "model": self.model,
            "changes": self.changes,
            "recipe": dataclasses.asdict(self.recipe),
            "data": {name: _fingerprint(each) for name, each in data.items()},
            "precision": choose_precision(self.precision, choose_device(self.device)),
        }
        return json.loads(json.dumps(settings, default=repr))  # as it will be when it is read again

    @property
    def description(self) -> dict[str, Any]:
        """The settings, and where and by which command they were used."""
        data = {"train": self.train_data, "val": self.val_data}
        paths = {name: str(each.annotations_path) for name, each in data.items()}
        return {"settings": self.settings, "paths": paths, "command": ["minidet", *sys.argv[1:]]}

    def make_model(self, cell: Cell, seed: int) -> Detector:
        """The detector of a cell with fresh weights, for the same seed always the same ones."""
        torch.manual_seed(seed)
        names = self.train_data.class_names
        return create_model(self.model, len(names), **{"class_names": names, **self.changes, **cell.changes})

    def recipe_of(self, cell: Cell) -> Recipe:
        """How a cell is trained."""
        return dataclasses.replace(self.recipe, **cell.recipe)

    def run_folder(self, cell: Cell, seed: int) -> Path:
        return self.out / cell.name / f"seed-{seed}"


def ablate(study: Study, ablations: dict[str, Ablation], names: Sequence[str], seeds: Sequence[int]) -> AblationResult:
    """Train the cells of an ablation and write down what they reach.

    Every run is an ordinary one in a folder of its own. A finished one is skipped and a stopped one is resumed, so the
    same call goes on after Ctrl-C or a crash, and a call with more seeds or another ablation adds to what is there. The
    table is written after each run, from all the runs in the folder, and the plot at the end.

    Args:
        study: what the runs have in common.
        ablations: those that there are, by name; the report shows all that have a finished run.
        names: those that are run now.
        seeds: of weights, order and augmentation; one run each.

    Returns:
        All figures. A run that fails does not end the others: its error is kept, beside its folder too.

    Raises:
        RunError: the folder holds something else, or an ablation with other settings; nothing was changed.
        MinidetError: a model cannot be built, or there is no such device or precision.

    Source: YOLOF, sections 3 and 5.2; chapter 12.
    """
    if launched_ranks().size > 1:
        raise RunError(
            "an ablation trains its cells one after the other in one process. Start it without torchrun; for several "
            "GPUs, start one ablation on each, with seeds and --out of its own."
        )
    cells = list({cell.name: cell for name in names for cell in ablations[name].cells}.values())
    seeds = list(dict.fromkeys(seeds))
    if not cells or not seeds:
        raise RunError("an ablation needs at least one seed and one cell; nothing was run.")
    for cell in cells:
        study.make_model(cell, seed=0)  # a setting that makes no sense is found before anything is trained
    _claim(study)
    failures: list[str] = []
    interrupted = False
    runs = [(cell, seed) for seed in seeds for cell in cells]  # one whole comparison first, then the next
    for number, (cell, seed) in enumerate(runs, 1):
        study.log(f"[{number}/{len(runs)}] {cell.name}, seed {seed}: {cell.words}")
        error_file = study.out / cell.name / f"seed-{seed}.error.txt"
        try:
            interrupted = not _run(study, cell, seed)
        except Exception as error:  # whatever it is, the other runs are worth having
            failures.append(_in_short(cell, seed, error))
            study.log(f"failed: {failures[-1]}")
            with atomic_write(error_file) as file:
                file.write(traceback.format_exc().encode())
        else:
            error_file.unlink(missing_ok=True)
        gc.collect()  # a failed run's tensors hang on its traceback
        results = write_report(study.out, ablations, study.description, failures)
        if interrupted:
            break
    if not interrupted:
        _measure_latency(study, [cell for ablation in ablations.values() for cell in ablation.cells])
        results = write_report(study.out, ablations, study.description, failures)
    draw(results, study.out / "ablation.png")
    return AblationResult(results, failures, interrupted)


def _run(study: Study, cell: Cell, seed: int) -> bool:
    """One run, as far as it is not done yet; False if Ctrl-C ended it."""
    folder = study.run_folder(cell, seed)
    model = study.make_model(cell, seed)
    if (folder / "result.json").exists():
        _check_same_run(folder, model, {name: getattr(study.recipe_of(cell), name) for name in cell.recipe})
        study.log(f"{folder}: is finished; skipped.")
        return True
    result = train(
        model,
        study.recipe_of(cell),
        study.train_data,
        study.val_data,
        folder,
        device=study.device,
        precision=study.precision,
        resume=(folder / "config.json").exists(),
        seed=seed,
        workers=study.workers,
        progress=study.progress,
        log=study.log,
    )
    if result.interrupted:
        return False
    found = result.evaluation
    if found is None:  # trained to the end before, but stopped before its result was written down
        device = choose_device(study.device)
        found = evaluate(
            load_model(folder / "last.safetensors", device),
            study.val_data,
            batch_size=study.recipe.batch_size,
            progress=study.progress,
            workers=evaluation_workers(device),
        )
    config = read_json(folder / "config.json")
    write_json(
        folder / "result.json",
        {
            "cell": cell.name,
            "seed": seed,
            "evaluation": found.to_dict(),
            "cost": count_cost(model).to_dict(),
            "seconds": round(sum(row["seconds"] for row in read_metrics(folder / "metrics.jsonl")), 3),
            "hardware": config["hardware"],
            "precision": config["precision"],
            "versions": config["versions"],
        },
        indent=2,
    )
    return True


def _measure_latency(study: Study, cells: Sequence[Cell]) -> None:
    """How long the networks of all cells with a finished run take for one image, without post-processing, in turn."""
    trained = {cell.name: cell for cell in cells if any((study.out / cell.name).glob("seed-*/result.json"))}
    if not trained:
        return
    device = choose_device(study.device)
    models = {name: study.make_model(cell, seed=0).to(device).eval() for name, cell in trained.items()}
    image = torch.zeros(1, 3, *next(iter(models.values())).input_hw, device=device)
    with torch.inference_mode():
        times = time_in_turn({name: partial(model.dense, image) for name, model in models.items()}, device, seconds=1)
    write_json(
        study.out / "latency.json",
        {"hardware": describe_hardware(device), "ms": {name: round(each.ms, 3) for name, each in times.items()}},
        indent=2,
    )


def _claim(study: Study) -> None:
    """Make the folder this ablation's, or see that it is."""
    path, settings = study.out / "settings.json", study.settings
    if path.is_file():
        found = differences(read_json(path), settings)
        if found:
            raise RunError(
                f"{study.out}: holds an ablation with other settings, and runs can only be compared under equal ones:\n"
                + "\n".join(f"  {line}" for line in found)
                + "\nGive the same settings as then, or choose another folder; nothing was changed."
            )
        return
    inside = sorted(p.name for p in study.out.iterdir()) if study.out.is_dir() else []
    if inside or study.out.is_file():
        found = "is not empty and holds no ablation" if inside else "is a file"
        raise RunError(f"{study.out}: {found}. An ablation needs a folder of its own; choose another one.")
    write_json(path, settings, indent=2)


def _check_same_run(folder: Path, model: Detector, recipe: dict[str, Any]) -> None:
    """A finished run counts for a cell if its model and what the cell changes in the recipe are the cell's."""
    saved = read_json(folder / "config.json")
    found = differences(saved.get("model"), json.loads(json.dumps(model_description(model))))
    if found:
        raise RunError(f"{folder}: holds the run of a different model ({'; '.join(found)}). Choose another folder.")
    if "augmentation" in recipe:
        recipe = {**recipe, "augmentation": recipe["augmentation"] or published_augmentation(model.name)}
    wanted = json.loads(json.dumps(recipe, default=dataclasses.asdict))
    found = differences({name: saved.get("recipe", {}).get(name) for name in wanted}, wanted)
    if found:
        raise RunError(f"{folder}: was trained in another way ({'; '.join(found)}). Choose another folder.")


def _fingerprint(data: CocoDataset) -> dict[str, Any]:
    """What tells a data set from another: its classes, its size, and a checksum of its annotations."""
    checksum = hashlib.sha256(data.annotations_path.read_bytes()).hexdigest()
    return {"classes": list(data.class_names), "images": len(data), "sha256": checksum}


def _in_short(cell: Cell, seed: int, error: Exception) -> str:
    kind = "" if isinstance(error, MinidetError) else f"{type(error).__name__}: "
    return f"{cell.name}, seed {seed}: {kind}{error}"
