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

from minidet.assign import STRATEGIES, Assigner
from minidet.detectors.detector import Detector
from minidet.detectors.tensor_files import what_it_is
from minidet.detectors.yolof import YOLOFConfig
from minidet.detectors.yolox import YOLOXConfig
from minidet.detectors.zoo import create_model, model_card
from minidet.errors import MinidetError, WeightsError
from minidet.files import atomic_write

ASSIGNERS = {kind.__name__: kind for kind in STRATEGIES}


def model_description(model: Detector) -> dict[str, Any]:
    """Name, classes and settings of a model as plain JSON values; `model_from_description` builds it again."""
    return {"name": model.name, **config_description(model.config), "class_names": model.class_names}


def config_description(config: YOLOXConfig | YOLOFConfig) -> dict[str, Any]:
    """All settings of a model as plain JSON values."""
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in _rules(settings):
        settings[name] = {"type": type(settings[name]).__name__, **dataclasses.asdict(settings[name])}
    return settings


def model_from_description(description: dict[str, Any]) -> Detector:
    """A fresh model with the settings of `model_description`.

    Raises:
        MinidetError: it is not such a description; the text says in what.
    """
    assigner = description.get("assigner") if isinstance(description, dict) else None
    if not isinstance(assigner, dict) or "name" not in description:
        raise MinidetError('it is no object with "name" and "assigner"')
    settings = {key: value for key, value in description.items() if key != "name"}
    rules = {key: _make_rule(settings[key]) for key in _rules(settings)}
    return create_model(description["name"], **{**settings, **rules})


def _rules(settings: Mapping[str, Any]) -> list[str]:
    """Which settings are assigners."""
    return [name for name in settings if name.endswith("assigner")]


def _make_rule(description: Any) -> Assigner:
    kind = description.get("type") if isinstance(description, dict) else description
    if not isinstance(kind, str) or kind not in ASSIGNERS:
        raise MinidetError(f"there is no assigner {kind!r}; there are {', '.join(ASSIGNERS)}")
    arguments = {key: value for key, value in description.items() if key != "type"}
    known = [field.name for field in dataclasses.fields(ASSIGNERS[kind])]
    if not arguments.keys() <= set(known):
        raise MinidetError(f"{kind} has no setting {min(arguments.keys() - set(known))!r}; it has {', '.join(known)}")
    return ASSIGNERS[kind](
        **{key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    )


def save_weights(model: Detector, path: str | Path, half: bool = False) -> None:
    """Write a model's weights and description as a safetensors file, atomically.

    Args:
        model: any detector.
        path: where to; ends in .safetensors.
        half: write the weights of convolutions as float16, which halves the file and rounds each of them by at most one
            part in 2000. Norms and biases stay as they are: there are few, and a variance can be too large for float16.
            `load_model` makes float32 of them again.

    Raises:
        MinidetError: the file cannot be written, or the model comes from `minidet.optimize`.
    """
    if model.optimized:
        raise MinidetError(
            f"{path}: an optimized {model.name} is not saved: its norms are folded, so nothing could train it again; "
            "save the model that it was made from"
        )
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if half:
        state = {key: value.half() if value.ndim == 4 else value for key, value in state.items()}
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
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        found = what_it_is(path) or str(error).partition("deserializing header: ")[2] or error
        raise WeightsError(
            f"{path}: is not a whole safetensors file ({found}). Weights of minidet end in .safetensors; an official "
            "checkpoint (.pth) is read by `minidet import-official`."
        ) from error
    if text.get("format") != "minidet" or "model" not in text:
        raise WeightsError(f"{path}: holds tensors, but was not written by minidet.save_weights: it names no model.")
    try:
        description = json.loads(text["model"])
        with torch.device("meta"):  # first without memory: a description can ask for any size
            own = model_from_description(description)
    except (ValueError, RuntimeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: its description of the model cannot be understood ({error}). The file was written by a newer "
            "minidet or changed by hand: update minidet, or save the weights again."
        ) from error
    check_state(own, state, str(path))
    model = model_from_description(description)
    load_state(model, state, str(path))
    return model.to(device).eval()


def load_state(model: Detector, state: dict[str, torch.Tensor], source: str) -> None:
    """Copy `state` into `model`; every key must be there and fit.

    Raises:
        WeightsError: names every key that is missing, left over, of another shape or kind, or not finite.
    """
    check_state(model, state, source)
    model.load_state_dict(state)


def check_state(model: Detector, state: dict[str, torch.Tensor], source: str) -> None:
    """What `load_state` checks before it copies; the model may be one without memory (on the device "meta")."""
    problems = misfits(model.state_dict(), state, model.name)
    if problems:
        raise WeightsError(_explain(problems, source, model))
    bad = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise WeightsError(
            f"{source}: {len(bad)} of the weights hold NaN or infinite numbers ({', '.join(bad[:3])}"
            f"{', ...' if len(bad) > 3 else ''}), so the model could find nothing. Take an earlier file."
        )


def misfits(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], name: str) -> list[str]:
    """What in `state` is not as in `own`, the tensors of `name`: a line each for missing, left over, of other shape."""
    problems = [f"{key}: missing" for key in own if key not in state]
    problems += [f"{key}: not part of {name}" for key in state if key not in own]
    problems += [
        f"{key}: shape {list(value.shape)} in the file, {list(own[key].shape)} in the model"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    problems += [
        f"{key}: {value.dtype} in the file, {own[key].dtype} in the model"
        for key, value in state.items()
        if key in own and _kind_of_number(own[key]) != _kind_of_number(value)
    ]
    return problems


def _kind_of_number(tensor: torch.Tensor) -> str:
    """Within a kind (float16 and float32) values are converted; between two it would be another network."""
    if tensor.is_floating_point():
        return "float"
    return "complex" if tensor.is_complex() else "integer"


def transfer_weights(source: Detector, model: Detector, name: str) -> list[str]:
    """Fine-tuning: copy every tensor of `source` that fits into `model`.

    Args:
        source: a trained model of the same variant, perhaps for other classes.
        model: gets its weights.
        name: how an error calls the source.

    Returns:
        The keys that keep their fresh weights: none, or the class predictors where the number of classes differs, or
        the selector, where a detector with NMS goes on without it.

    Raises:
        WeightsError: anything else does not fit, so the variants differ.
    """
    own, theirs = model.state_dict(), source.state_dict()
    fitting = {key: value for key, value in theirs.items() if key in own and own[key].shape == value.shape}
    left_out = [key for key in own if key not in fitting]
    fresh = [key for key in left_out if "class_predictor" in key or (".selector." in key and key not in theirs)]
    unfit = len(fresh) < len(left_out) or not theirs.keys() <= own.keys()
    if unfit and source.name != model.name:
        raise WeightsError(
            f"{name}: holds a {source.name}, but a {model.name} is to be trained. Give weights of the same variant, or "
            f"train a {source.name}."
        )
    if unfit:
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
