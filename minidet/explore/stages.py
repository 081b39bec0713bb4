"""Weights of a model at several stages of its training, as `benchmarks/training_stages.py` stores them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minidet.detectors import Detector, load_model
from minidet.errors import WeightsError
from minidet.files import read_json


@dataclass(frozen=True)
class Stage:
    """One stored stage.

    Attributes:
        head: "decoupled" or "coupled".
        epoch: after which the weights were kept; 0: fresh ones.
        path: of the weights.
        ap, ap50: on the validation pictures.
    """

    head: str
    epoch: int
    path: Path
    ap: float
    ap50: float

    def load(self) -> Detector:
        """The model in evaluation mode."""
        return load_model(self.path)


def load_stages(folder: str | Path) -> list[Stage]:
    """The stages in a folder with a stages.json, by head and epoch.

    Raises:
        WeightsError: there is no such list, or it is not one of ours.
    """
    folder = Path(folder)
    index = read_json(folder / "stages.json")
    try:
        stages = [
            Stage(e["head"], int(e["epoch"]), folder / e["file"], float(e["ap"]), float(e["ap50"])) for e in index
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{folder / 'stages.json'}: is not a list of stages ({error}); benchmarks/training_stages.py writes one."
        ) from error
    return sorted(stages, key=lambda stage: (stage.head, stage.epoch))
