"""Our own weights files: safetensors, which hold tensors and text and nothing that could run.

The text says which model it is, so that `load_model(path)` needs no further word.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes

from minidet.assign import ATSS, CentreSampling, MaxIoU, OneToOne, SimOTA, UniformMatching
from minidet.detectors.detector import Detector
from minidet.detectors.zoo import create_model, model_card
from minidet.errors import MinidetError, WeightsError
from minidet.files import atomic_write

ASSIGNERS = {kind.__name__: kind for kind in (ATSS, CentreSampling, MaxIoU, OneToOne, SimOTA, UniformMatching)}


def model_description(model: Detector) -> dict[str, Any]:
    """Name, classes and settings of a model as plain JSON values; `model_from_description` builds it again."""
    config = {f.name: getattr(model.config, f.name) for f in dataclasses.fields(model.config)}
    assigner = config.pop("assigner")
    config["assigner"] = {"type": type(assigner).__name__, **dataclasses.asdict(assigner)}
    config["class_names"] = model.class_names
    return {"name": model.name, **config}


def model_from_description(description: dict[str, Any]) -> Detector:
    """A fresh model with the settings of `model_description`."""
    settings = dict(description)
    name = settings.pop("name")
    assigner = {key: tuple(value) if isinstance(value, list) else value for key, value in settings["assigner"].items()}
    settings["assigner"] = ASSIGNERS[assigner.pop("type")](**assigner)
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}  # no lists
    return create_model(name, **tuples)


def save_weights(model: Detector, path: str | Path) -> None:
    """Write a model's weights and description as a safetensors file, atomically.

    Raises:
        MinidetError: the file cannot be written, or the model comes from `minidet.optimize`.
    """
    if model.optimized:
        raise MinidetError(
            f"{path}: an optimized {model.name} is not saved: its norms are folded, so nothing could train it again; "
            "save the model that it was made from"
        )
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    text = {"format": "minidet", "model": json.dumps(model_description(model))}
    with atomic_write(path) as file:
        file.write(tensors_to_bytes(state, metadata=text))


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Detector:
    """Build the model that a file of `save_weights` describes, with its weights, in evaluation mode.

    Raises:
        WeightsError: the file is missing, damaged, not one of ours, or does not fit; the text says which.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: there is no such file. Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: is not a whole safetensors file ({error}). Weights of minidet end in .safetensors; an official "
            "checkpoint (.pth) is read by `minidet import-official`."
        ) from error
    if text.get("format") != "minidet" or "model" not in text:
        raise WeightsError(f"{path}: holds tensors, but was not written by minidet.save_weights: it names no model.")
    try:
        model = model_from_description(json.loads(text["model"]))
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its description cannot be understood ({error}).") from error
    load_state(model, state, str(path))
    return model.to(device).eval()


def load_state(model: Detector, state: dict[str, torch.Tensor], source: str) -> None:
    """Copy `state` into `model`; every key must be there and fit.

    Raises:
        WeightsError: names every key that is missing, left over or of another shape.
    """
    problems = misfits(model.state_dict(), state, model.name)
    if problems:
        raise WeightsError(_explain(problems, source, model))
    model.load_state_dict(state)


def misfits(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], name: str) -> list[str]:
    """What in `state` is not as in `own`, the tensors of `name`: a line each for missing, left over, of other shape."""
    problems = [f"{key}: missing" for key in own if key not in state]
    problems += [f"{key}: not part of {name}" for key in state if key not in own]
    problems += [
        f"{key}: shape {list(value.shape)} in the file, {list(own[key].shape)} in the model"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    return problems


def transfer_weights(source: Detector, model: Detector, name: str) -> list[str]:
    """Fine-tuning: copy every tensor of `source` that fits into `model`.

    Args:
        source: a trained model of the same variant, perhaps for other classes.
        model: gets its weights.
        name: how an error calls the source.

    Returns:
        The keys that keep their fresh weights: none, or the class predictors where the number of classes differs.

    Raises:
        WeightsError: anything else does not fit, so the variants differ.
    """
    own, theirs = model.state_dict(), source.state_dict()
    fitting = {key: value for key, value in theirs.items() if key in own and own[key].shape == value.shape}
    left_out = [key for key in own if key not in fitting]
    if len(theirs) != len(own) or any("class_predictor" not in key for key in left_out):
        load_state(model, theirs, name)  # says key by key what does not fit
    model.load_state_dict(fitting, strict=False)
    return left_out


def _explain(problems: list[str], source: str, model: Detector) -> str:
    lines = [f"{source}: {len(problems)} of the weights do not fit {model.name} with {model.num_classes} classes:"]
    lines += [f"  {problem}" for problem in problems]
    if all("class_predictor" in problem for problem in problems):
        lines.append("Only the class predictors differ, so it is num_classes that does not match the weights.")
    lines.append(f"Is it really {model.name}? Published variants: {model_card(model.name).paper}.")
    return "\n".join(lines)
