"""Marking: are the run folders that a class hands in whole and honest runs?

What is claimed is worked out again: epochs, steps and learning rates from the recipe, average precision from the
weights. A slip and a simple forgery are found; who takes the trouble to make up everything so that it fits, or really
trains but on pictures that were not to be seen, is not. Whether somebody else trained it shows only where both folders
are handed in.

Nothing in a folder can run code: of what is in it, JSON and safetensors are opened, and checkpoints are not.

Chapter 13.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import hashlib
import io
import json
import math
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minidet.data.augment import Augmentation
from minidet.data.coco import CocoDataset
from minidet.detectors import Detector, load_model
from minidet.detectors.weights import model_description, model_from_description
from minidet.errors import MinidetError, RunError
from minidet.evaluation.average_precision import evaluate
from minidet.files import read_json
from minidet.settings import is_finite
from minidet.training.hardware import evaluation_workers
from minidet.training.recipe import Recipe, learning_rate
from minidet.training.run import steps_of_epoch
from minidet.training.run_folder import completed, default_config, differences, fingerprint, read_metrics

# Bytes of a file that is opened, and pixels a side that are computed: no run of the course comes near to them, and what
# is larger would fill the memory and end the marking of all others.
MOST_CONFIG, MOST_METRICS, MOST_WEIGHTS = 10**6, 10**8, 10**9
LARGEST_SIDE = 2048
SAME_RATE = 1e-6  # relative; the last bits of a cosine may differ between machines
TIMES = ("seconds", "evaluation_seconds")  # what no two runs have in common


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run folder.

    Attributes:
        name: its kind, one of `FINDINGS`.
        text: what, where, and what to do.
    """

    name: str
    text: str


FINDINGS = {
    "folder": "it is no run folder, or a file of it is missing or cannot be read",
    "unfinished": "the last epochs are missing",
    "epochs": "an epoch is missing in the midst, or stands there twice or out of order",
    "not finite": "a loss or another figure is NaN, infinite, missing or impossible",
    "schedule": "steps, learning rates or evaluations are not those of the recipe",
    "weights": "the weights cannot be loaded, or are not of the model of config.json",
    "AP": "the weights do not reach the AP that is claimed",
    "data": "it was trained on other data",
    "setting": "a required setting is not there",
    "low AP": "the AP is lower than it must be",
    "copy": "another folder holds the same",
    "error": "looking at it failed",
}


@dataclass
class Judged:
    """One of the two weights files: what metrics.jsonl says of it, and what it reaches; None where it is not known."""

    epoch: int
    ap: float | None
    ap50: float | None
    measured_ap: float | None = None
    measured_ap50: float | None = None


@dataclass
class GradedRun:
    """What was found in one folder.

    Attributes:
        folder: as it was named.
        config: the content of its config.json, completed by the defaults; None where it cannot be read.
        epochs: of the recipe. epochs_done: rows of metrics.jsonl that count.
        rows: the rows of metrics.jsonl.
        judged: "best" and "last", as far as there is a claim.
        weights: by file name, a checksum over all numbers in it.
        findings: what is wrong. notes: what is not, but should be known.
    """

    folder: Path
    config: dict[str, Any] | None = None
    epochs: int | None = None
    epochs_done: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    judged: dict[str, Judged] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        self.findings.append(Finding(name, printable(text)))

    @property
    def model(self) -> str | None:
        return None if self.config is None else self.config["model"]["name"]

    @property
    def names(self) -> list[str]:
        """The kinds of its findings, each once."""
        return list(dict.fromkeys(finding.name for finding in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {
            "folder": printable(str(self.folder)),
            "fine": not self.findings,
            "model": self.model,
            "seed": None if self.config is None else self.config["seed"],
            "epochs": self.epochs,
            "epochs_done": self.epochs_done,
            "judged": {name: dataclasses.asdict(each) for name, each in self.judged.items()},
            "weights": self.weights,
            "findings": [dataclasses.asdict(each) for each in self.findings],
            "notes": self.notes,
        }


@dataclass(frozen=True)
class Rules:
    """What a run is held against.

    Args:
        train_data, val_data: the data that it must have been trained and judged on; None is not compared. Without
            `val_data` the AP is not measured.
        require: settings that it must have, as `parse_requirements` gives them.
        min_ap, min_ap50: what its best weights must reach: as measured, or else as claimed.
        tolerance: by how much a measured AP may differ from the claimed one. The same weights on the same machine give
            the same AP; another processor or a GPU rounds otherwise, and boxes of nearly equal score change places.
        device: where AP is measured.
        progress: show a bar while it is.

    Raises:
        RunError: a number lies outside of 0 to 1.
    """

    train_data: CocoDataset | None = None
    val_data: CocoDataset | None = None
    require: tuple[tuple[str, Any], ...] = ()
    min_ap: float | None = None
    min_ap50: float | None = None
    tolerance: float = 0.005
    device: torch.device | str = "cpu"
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("min_ap", "min_ap50", "tolerance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise RunError(f"--{name.replace('_', '-')} is {value}; it lies between 0 and 1.")

    @property
    def data(self) -> dict[str, CocoDataset]:
        splits = {"train": self.train_data, "val": self.val_data}
        return {name: each for name, each in splits.items() if each is not None}


def grade(folders: Sequence[Path], rules: Rules, log: Callable[[str], None] = lambda text: None) -> list[GradedRun]:
    """Look at run folders, each for itself and then beside the others. A broken one does not end the rest.

    Args:
        folders: of `train`; one that is named twice is looked at once.
        rules: what they are held against.
        log: is told which folder is looked at.

    Returns:
        One result a folder, in the order given.

    Raises:
        RunError: a required setting is not one of any of these runs.

    Source: chapter 13.
    """
    folders = list(dict.fromkeys(folders))
    fingerprints = {name: fingerprint(each) for name, each in rules.data.items()}
    runs = [GradedRun(folder) for folder in folders]
    for run in runs:  # a slip in the teacher's own words is told before anything takes time
        _guarded(run, _read_config)
    require = _resolve(rules.require, runs)
    for number, run in enumerate(runs, 1):
        log(f"[{number}/{len(runs)}] {printable(str(run.folder))}")
        if run.config is not None:
            _guarded(run, lambda run: _check(run, rules, fingerprints, require))
    _find_copies(runs)
    return runs


def _guarded(run: GradedRun, look: Callable[[GradedRun], None]) -> None:
    try:
        look(run)
    except MinidetError as error:
        run.add("folder", str(error))
    except Exception as error:  # whatever it is, the other folders are to be marked
        run.add("error", f"{run.folder}: looking at it failed ({type(error).__name__}: {error}). Look by hand.")


def _check(run: GradedRun, rules: Rules, fingerprints: dict[str, str], require: Sequence[tuple[str, str, Any]]) -> None:
    """Everything that can be said about one folder alone; what one look cannot do without ends that look only."""
    _check_requirements(run, require)
    same_data = _check_data(run, rules, fingerprints)
    _guarded(run, _check_metrics)
    models: dict[str, Detector] = {}
    _guarded(run, lambda run: models.update(_load_weights(run)))
    for which, model in models.items():
        _guarded(run, lambda run, which=which, model=model: _measure(run, which, model, rules, same_data))
    _check_lowest(run, rules)
    _note_resumptions(run)


# ---- config.json ----------------------------------------------------------------------------------------------------


def _read_config(run: GradedRun) -> None:
    if not run.folder.is_dir():
        raise RunError(f"{run.folder}: is no folder. Unpack what was handed in, and name the folder of the run.")
    path = run.folder / "config.json"
    config = read_json(own_file(path, MOST_CONFIG))
    parts = {"model": dict, "recipe": dict, "data": dict, "seed": int}
    wrong = [key for key, kind in parts.items() if not isinstance(config, dict) or type(config.get(key)) is not kind]
    if wrong:
        raise RunError(
            f"{path}: has no {', '.join(wrong)}, so it is not one of `minidet train`. Ask for the whole run."
        )
    try:
        with torch.device("meta"):  # a description can ask for any size
            model = model_from_description(config["model"])
    except (ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise RunError(
            f"{path}: its model cannot be understood ({error}). It was changed, or minidet is older."
        ) from error
    run.config = completed(config, default_config(model))


def _recipe_of(run: GradedRun) -> Recipe:
    """The recipe of a config.json, and with it how many epochs there are to be."""
    where = f"{run.folder / 'config.json'}: its recipe"
    saved = _tuples(run.config["recipe"])
    unknown = sorted(set(saved) - {each.name for each in dataclasses.fields(Recipe)})
    if unknown:
        raise RunError(f"{where} has unknown fields ({', '.join(unknown)}). It was changed, or minidet is older.")
    try:
        if isinstance(saved["augmentation"], dict):
            saved["augmentation"] = Augmentation(**saved["augmentation"])
        return Recipe(**saved)
    except (TypeError, MinidetError) as error:
        raise RunError(f"{where} cannot be understood ({error}). It was changed, or minidet is older.") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def parse_requirements(texts: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """Texts such as "model=yolox-nano" or "recipe.multi_scale=[320,640]" as key path and value.

    Raises:
        RunError: a text is not of this form.
    """
    found = []
    for text in texts:
        path, equals, value = text.partition("=")
        if not (path and equals):
            raise RunError(f"--require {text}: write KEY=VALUE, such as epochs=20. Folders go before the options.")
        try:
            found.append((path, json.loads(value)))
        except ValueError:
            found.append((path, value))
    return tuple(found)


def _resolve(require: Sequence[tuple[str, Any]], runs: Sequence[GradedRun]) -> list[tuple[str, str, Any]]:
    """Requirements as (what was written, full key path, value).

    Raises:
        RunError: no run has such a key.
    """
    known = dict.fromkeys(path for run in runs if run.config is not None for path in _paths(run.config))
    found = []
    for written, value in require:
        candidates = ["model.name"] if written == "model" else [written, *(f"{part}.{written}" for part in _PARTS)]
        path = next((each for each in candidates if each in known), written)
        if known and path not in known:
            parent = written.rpartition(".")[0]
            near = difflib.get_close_matches(written, known, n=3, cutoff=0.5)
            beside = [each for each in known if each.rpartition(".")[0] == parent]
            choices = list(dict.fromkeys([*near, *beside]))[:60] or [*_PARTS]
            raise RunError(
                f"--require {written}: no config.json of these runs has this key. There are, among others, "
                f"{', '.join(map(printable, choices))}; the parts are {', '.join(_PARTS)}."
            )
        found.append((written, path, value))
    return found


_PARTS = ("recipe", "model", "data")  # in which a key without a dot is looked for


def _paths(config: dict[str, Any], parent: str = "") -> Iterator[str]:
    """The dotted key of every value."""
    for key, value in config.items():
        yield from _paths(value, f"{parent}{key}.") if isinstance(value, dict) else [f"{parent}{key}"]


def _value_at(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _check_requirements(run: GradedRun, require: Sequence[tuple[str, str, Any]]) -> None:
    for written, path, wanted in require:
        value = _value_at(run.config, path)
        if _equal(value, wanted) or (isinstance(value, str) and isinstance(wanted, float) and value == str(wanted)):
            continue
        text = f"{run.folder / 'config.json'}: {path} is {_short(value)}, but {written} must be {_short(wanted)}."
        run.add("setting", f"{text} Train again with it.")


def _equal(value: Any, wanted: Any) -> bool:
    """Equal, and no number for a truth value."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


# ---- data -----------------------------------------------------------------------------------------------------------


def _check_data(run: GradedRun, rules: Rules, fingerprints: dict[str, str]) -> bool:
    """Whether the run was judged on the given data, as far as config.json tells; whatever differs is a finding."""
    saved, where = run.config["data"], run.folder / "config.json"
    prints = run.config.get("fingerprints")
    same = True
    for split, data in rules.data.items():
        key = f"{split}_images"
        if split == "val" and key not in saved:
            run.add("data", f"{where}: names no validation pictures, so nothing was judged. Train with --val-split.")
            same = False
            continue
        told = []
        if saved.get("class_names") != list(data.class_names):
            told.append(f"classes {_short(saved.get('class_names'))} instead of {_short(list(data.class_names))}")
        if saved.get(key) != len(data):
            told.append(f"{_short(saved.get(key))} pictures instead of {len(data)}")
        if isinstance(prints, dict) and prints.get(split) != fingerprints[split] and not told:
            told.append("other pictures or boxes (the fingerprint differs)")
        if told:
            same = same and split != "val"
            text = f"{where}: its {split} data are not those of {data.annotations_path}: {'; '.join(told)}."
            run.add("data", f"{text} Train again on the data that were given out.")
    if rules.data and not isinstance(prints, dict):
        run.notes.append("its config.json has no fingerprint of the data: only classes and numbers were compared")
    return same


# ---- metrics.jsonl --------------------------------------------------------------------------------------------------


def _check_metrics(run: GradedRun) -> None:
    """What can be said about a run's recipe and metrics.jsonl."""
    recipe = _recipe_of(run)
    _read_rows(run, recipe)
    _check_figures(run)
    _check_schedule(run, recipe)


def _read_rows(run: GradedRun, recipe: Recipe) -> None:
    """Read the rows, and see that there is one for every epoch, in order."""
    path = own_file(run.folder / "metrics.jsonl", MOST_METRICS)
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        torn = file.read(1) not in (b"\n", b"")
    run.rows = read_metrics(path)
    run.epochs = recipe.epochs or math.ceil(recipe.iterations / _steps_per_epoch(run, recipe))
    if torn:
        run.add("folder", f"{path}: breaks off within a line; that line does not count. Ask for the whole file.")
    numbers = [row["epoch"] for row in run.rows]
    told = [f"epoch {n} stands there {count} times" for n, count in Counter(numbers).items() if count > 1]
    told += [f"epoch {n} is none of the {run.epochs}" for n in dict.fromkeys(numbers) if not 1 <= n <= run.epochs]
    reached = max((n for n in numbers if n <= run.epochs), default=0)
    missing = sorted(set(range(1, reached + 1)) - set(numbers))
    told += [f"epoch {n} is missing" for n in missing]
    if not told and numbers != sorted(numbers):
        told.append("epochs are out of order")
    run.epochs_done = len(set(numbers) & set(range(1, run.epochs + 1)))
    if told:
        run.add(
            "epochs", f"{path}: {_first(told)}. `minidet train` writes each epoch once, in order: ask what happened."
        )
    if reached < run.epochs:
        run.add(
            "unfinished",
            f"{path}: ends after epoch {reached} of {run.epochs}. The run was not finished (the same command with "
            "--resume goes on), or its last lines are gone.",
        )


def _steps_per_epoch(run: GradedRun, recipe: Recipe) -> int:
    images = run.config["data"].get("train_images")
    if type(images) is not int or images < 1:
        raise RunError(f"{run.folder / 'config.json'}: data.train_images is {_short(images)}. Ask for the whole run.")
    steps = math.ceil(images / recipe.batch_size)
    if recipe.skip_empty and run.rows:  # config.json does not say how many pictures have objects
        first = run.rows[0]
        told = first.get("iteration")
        if type(told) is int and first["epoch"] > 0 and 1 <= told // first["epoch"] <= steps:
            return told // first["epoch"]
    return steps


def _check_figures(run: GradedRun) -> None:
    """Losses and all other figures are numbers that can be."""
    told = []
    for row in run.rows:
        losses = row.get("losses")
        figures = {key: row.get(key) for key in ("iteration", "lr", "positives_per_object", "seconds")}
        figures |= losses if isinstance(losses, dict) and losses else {"losses": losses}
        told += [
            f"epoch {row['epoch']} has {_short(value)} for {key}"
            for key, value in figures.items()
            if not (is_finite(value) and value >= 0)
        ]
        told += [
            f"epoch {row['epoch']} has {_short(row[key])} for {key}"
            for key in ("ap", "ap50")
            if row.get(key) is not None and not (is_finite(row[key]) and 0 <= row[key] <= 1)
        ]
    if told:
        where = run.folder / "metrics.jsonl"
        run.add("not finite", f"{where}: {_first(told)}. `minidet train` writes no such figure: the file was changed.")


def _check_schedule(run: GradedRun, recipe: Recipe) -> None:
    """Steps, learning rate, phase and evaluations of every epoch are those that the recipe leads to."""
    steps = _steps_per_epoch(run, recipe)
    recipe = dataclasses.replace(recipe, epochs=run.epochs)
    total = recipe.iterations or run.epochs * steps
    has_val = "val_images" in run.config["data"]
    told = []
    for row in run.rows:
        number = row["epoch"]
        if not 1 <= number <= run.epochs:
            continue
        done = (number - 1) * steps + steps_of_epoch(number - 1, steps, total)
        rate = learning_rate(done - 1, steps, recipe, recipe.batch_size)
        wanted = {"iteration": done, "lr": rate, "strong_augmentation": not recipe.is_closing(number - 1)}
        told += [
            f"epoch {number} has {key} {_short(row.get(key))}, the recipe gives {_short(value)}"
            for key, value in wanted.items()
            if not _near(row.get(key), value)
        ]
        evaluated = row.get("ap") is not None or "evaluation_seconds" in row
        if evaluated != (has_val and recipe.evaluates_after(number - 1)):
            told.append(f"epoch {number} was {'' if evaluated else 'not '}evaluated, against the recipe")
    if told:
        text = (
            f"{run.folder / 'metrics.jsonl'}: {_first(told)}. The figures, or the recipe in config.json, were changed."
        )
        run.add("schedule", text)


def _near(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, float):
        return is_finite(value) and math.isclose(value, wanted, rel_tol=SAME_RATE, abs_tol=1e-15)
    return _equal(value, wanted)


# ---- weights --------------------------------------------------------------------------------------------------------


def _load_weights(run: GradedRun) -> dict[str, Detector]:
    """The weights that metrics.jsonl says something about, as far as they can be used; sets `judged` and `weights`."""
    scored = [row for row in run.rows if is_finite(row.get("ap"))]
    whole = run.epochs is not None and [row["epoch"] for row in run.rows] == list(range(1, run.epochs + 1))
    if scored:
        run.judged["best"] = _claim(max(scored, key=lambda row: (row["ap"], -row["epoch"])))
    if whole and scored and scored[-1] is run.rows[-1]:
        run.judged["last"] = _claim(run.rows[-1])
    elif not whole:
        run.notes.append("the run is not whole, so last.safetensors is held against no AP")
    models = {}
    for which in ("best", "last"):
        path = run.folder / f"{which}.safetensors"
        if which == "best" and not scored and not path.exists():
            continue
        try:
            model = load_model(own_file(path, MOST_WEIGHTS))
            run.weights[which] = checksum(model)
            _check_model(run, which, model)
            models[which] = model
        except MinidetError as error:
            run.add("weights", str(error))
    best_is_last = len(run.judged) == 2 and run.judged["best"].epoch == run.judged["last"].epoch
    if best_is_last and len(set(run.weights.values())) == 2:
        run.add(
            "weights",
            f"{run.folder}: the last epoch has the highest AP, so best.safetensors and last.safetensors hold the same "
            "weights after a run, but these differ. One of them, or metrics.jsonl, was changed.",
        )
    return {which: model for which, model in models.items() if which in run.judged}


def _claim(row: dict[str, Any]) -> Judged:
    ap50 = row.get("ap50")
    return Judged(row["epoch"], float(row["ap"]), float(ap50) if is_finite(ap50) else None)


def checksum(model: Detector) -> str:
    """SHA-256 over the names, shapes and numbers of all weights, in hexadecimal.

    Not over the file: the same weights saved twice need not give the same bytes, as the order of a safetensors file's
    header is open.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_model(run: GradedRun, which: str, model: Detector) -> None:
    """See that the model in a weights file is that of config.json, and of a size that can be computed."""
    own = json.loads(json.dumps(model_description(model)))
    found = [line.partition(":")[0] for line in differences(own, run.config["model"])]
    if found:
        told = [
            f"{key} is {_short(_value_at(own, key))}, not {_short(_value_at(run.config['model'], key))}"
            for key in found
        ]
        raise RunError(
            f"{run.folder}/{which}.safetensors: is not of the model of config.json: {_first(told)}. One of the two "
            "files was changed or comes from another run."
        )
    if max(model.input_hw) > LARGEST_SIDE:
        raise RunError(
            f"{run.folder}/{which}.safetensors: its input is {model.input_hw[0]} x {model.input_hw[1]} pixels, too "
            f"large to be marked (at most {LARGEST_SIDE} a side). Look by hand."
        )


def _measure(run: GradedRun, which: str, model: Detector, rules: Rules, compare: bool) -> None:
    """Evaluate weights anew, and compare with the claim if that was made on the same data."""
    if rules.val_data is None or (not compare and model.num_classes != len(rules.val_data.class_names)):
        return
    judged = run.judged[which]
    other = run.judged["best"]
    if other.measured_ap is not None and run.weights.get("best") == run.weights["last"]:
        judged.measured_ap, judged.measured_ap50 = other.measured_ap, other.measured_ap50
    else:
        result = evaluate(
            model.to(rules.device),
            rules.val_data,
            batch_size=_batch_size(run, model),
            progress=rules.progress,
            workers=evaluation_workers(torch.device(rules.device)),
        )
        judged.measured_ap, judged.measured_ap50 = (max(value, 0.0) for value in (result.ap, result.ap50))
    pairs = {"AP": (judged.ap, judged.measured_ap), "AP50": (judged.ap50, judged.measured_ap50)}
    told = [
        f"{name} {'none' if claimed is None else f'{claimed:.4f}'} is claimed, {measured:.4f} is reached"
        for name, (claimed, measured) in pairs.items()
        if claimed is None or abs(claimed - measured) > rules.tolerance
    ]
    if told and compare:
        run.add(
            "AP",
            f"{run.folder}/{which}.safetensors, epoch {judged.epoch} of metrics.jsonl: {'; '.join(told)} (tolerance "
            f"{rules.tolerance:g}). The weights or the figures are not of this run: ask for the folder as it was made.",
        )


def _batch_size(run: GradedRun, model: Detector) -> int:
    """That of the training where pictures are padded to the largest of their batch, so that padding is the same."""
    if model.resize != "shorter_side":
        return 8
    ranks = run.config.get("ranks")
    ranks = ranks if type(ranks) is int and ranks > 0 else 1
    return min(max(run.config["recipe"]["batch_size"] // ranks, 1), 64)


def _check_lowest(run: GradedRun, rules: Rules) -> None:
    """See that the best weights are good enough."""
    best = run.judged.get("best")
    for name, lowest in (("ap", rules.min_ap), ("ap50", rules.min_ap50)):
        if lowest is None:
            continue
        measured, claimed = (getattr(best, key, None) for key in (f"measured_{name}", name))
        value = claimed if measured is None else measured
        if value is None or value < lowest:
            reached = "was not found out" if value is None else f"is {value:.3f}"
            how = "" if value is None else " (claimed)" if measured is None else " (measured)"
            run.add("low AP", f"{run.folder}: {name.upper()} {reached}{how}, but at least {lowest:.3f} is asked for.")


def _note_resumptions(run: GradedRun) -> None:
    begun = len(list((run.folder / "tensorboard").glob("events.out.tfevents.*")))  # one a time that it was begun
    if begun > 1:
        run.notes.append(f"was stopped and resumed (begun {begun} times), which is fine")


# ---- copies ---------------------------------------------------------------------------------------------------------


def _find_copies(runs: Sequence[GradedRun]) -> None:
    """Name folders that hold the same weights or the same metrics. Which of them was first cannot be seen."""
    for run in runs:
        others: dict[str, list[str]] = {}
        for other in runs:
            if other is not run and (text := _in_common(run, other)):
                others.setdefault(text, []).append(str(other.folder))
        for text, folders in others.items():
            run.add("copy", f"{run.folder}: {text.format(others=_first(folders, ', '))}")


def _in_common(run: GradedRun, other: GradedRun) -> str | None:
    """What two folders share, as a text with a place for {others}; None for nothing."""
    pairs = _common_epochs(run, other)
    weights = bool(set(run.weights.values()) & set(other.weights.values()))
    metrics = bool(pairs) and all(_without_times(one) == _without_times(two) for one, two in pairs)
    times = sum(_times(one) == _times(two) != [None, None] for one, two in pairs) > len(pairs) / 2
    what = " and ".join(name for name, same in (("weights", weights), ("figures", metrics)) if same)
    if times:
        what = f"{what} and the seconds" if what else "the seconds"
        return f"{what} that epochs took are those of {{others}}: one is a copy. Ask both."
    if metrics:
        return (
            f"{what} are those of {{others}}, number for number, but not the seconds that epochs took: a copy with "
            "other times, or two runs of the same settings and seed on like processors, which give the same numbers. "
            "Ask both, and give everybody a --seed of their own."
        )
    return (
        "weights are those of {others}, number for number, while figures differ: one is a copy. Ask both."
        if weights
        else None
    )


def _common_epochs(run: GradedRun, other: GradedRun) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of rows of the same epoch: of a copy, some may have been left out."""
    theirs = {row["epoch"]: row for row in other.rows}
    return [(row, theirs[row["epoch"]]) for row in run.rows if row["epoch"] in theirs]


def _without_times(row: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in row.items() if key not in TIMES}, sort_keys=True)


def _times(row: dict[str, Any]) -> list[Any]:
    return [row.get(key) for key in TIMES]


# ---- what is told ---------------------------------------------------------------------------------------------------


def format_grades(runs: Sequence[GradedRun]) -> str:
    """A table with a line a folder, and below it what is wrong with each."""
    rows = [("folder", "model", "epochs", "AP claimed", "measured", "findings")]
    rows += [
        (
            printable(str(run.folder)),
            run.model or "-",
            f"{run.epochs_done}/{run.epochs}" if run.epochs else "-",
            *(_figure(getattr(run.judged.get("best"), name, None)) for name in ("ap", "measured_ap")),
            ", ".join(run.names) or "fine",
        )
        for run in runs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
            + [row[column].rjust(widths[column]) for column in (2, 3, 4)]
            + [row[5]]
        )
        for row in rows
    ]
    for run in runs:
        if run.findings or run.notes:
            lines += ["", printable(str(run.folder))]
            lines += [f"  {finding.name}: {finding.text}" for finding in run.findings]
            lines += [f"  (note) {note}" for note in run.notes]
    wrong = sum(bool(run.findings) for run in runs)
    lines += ["", f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {len(runs) - wrong} fine, {wrong} with findings"]
    return "\n".join(lines)


def mark_list(runs: Sequence[GradedRun]) -> bytes:
    """The same as a CSV file in UTF-8 (with the mark by which spreadsheets know it), a line a folder."""
    text = io.StringIO()
    writer = csv.writer(text)
    figures = ("ap", "measured_ap", "ap50", "measured_ap50")
    names = ("ap_claimed", "ap_measured", "ap50_claimed", "ap50_measured")
    writer.writerow(["folder", "fine", "model", "seed", "epochs_done", "epochs", *names, "findings", "texts"])
    for run in runs:
        told = run.to_dict()
        best = told["judged"].get("best", {})
        numbers = [None if best.get(name) is None else round(best[name], 4) for name in figures]
        words = ["; ".join(run.names), "\n".join(finding.text for finding in run.findings)]
        start = [_cell(told["folder"]), "yes" if told["fine"] else "no"]
        middle = [told[name] for name in ("model", "seed", "epochs_done", "epochs")]
        writer.writerow([*start, *middle, *numbers, *map(_cell, words)])
    return text.getvalue().encode("utf-8-sig")


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def own_file(path: Path, most_bytes: int) -> Path:
    """An ordinary file of sensible size, not a link to somewhere else, nor a pipe that never ends.

    Raises:
        RunError: it is not there, or something else.
    """
    try:
        status = path.lstat()
    except OSError as error:
        raise RunError(f"{path}: there is no such file ({error.strerror}). Ask for the whole run folder.") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "no ordinary file"
        raise RunError(f"{path}: is {kind}, so it is not opened. Ask for the file itself.")
    if status.st_size > most_bytes:
        raise RunError(f"{path}: has {status.st_size:,} bytes, far more than a run writes, so it is not opened.")
    return path


def printable(text: str) -> str:
    """A text that moves no cursor and changes no colour: names and values in a folder are somebody else's words."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first(texts: Sequence[str], separator: str = "; ") -> str:
    """The first three of many."""
    more = f"{separator}and {len(texts) - 3} more" if len(texts) > 3 else ""
    return separator.join(texts[:3]) + more


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
