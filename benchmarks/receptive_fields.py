"""Receptive fields of a detector: what its layers allow, and what fresh weights make of it.

    python benchmarks/receptive_fields.py --model yolof-r50-c5

The effective field is that of random weights, as `create_model` gives them, on pictures of noise; training widens it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import minidet
from minidet.evaluation.receptive_field import (
    central_side,
    effective_receptive_field,
    effective_size,
    encoder_receptive_fields,
    theoretical_receptive_field,
)
from minidet.files import write_json
from minidet.training.hardware import describe_hardware

RESULTS = Path(__file__).parent / "results"
MAPS = {
    "c5": "C5",
    "encoder.smooth_norm": "projector",
    "encoder": "encoder",
    "class_output": "class output",
    "box_output": "box output",
}


@dataclass(frozen=True)
class Options:
    model: str = "yolof-r50-c5"  # one with a dilated encoder
    side: int = 1280  # of the square pictures of noise, in pixels
    pictures: int = 4  # so many are averaged
    out: Path | None = None  # where the record goes, by default results/receptive_fields_MODEL.json


def main(options: Options) -> None:
    torch.manual_seed(0)
    model = minidet.create_model(options.model)
    record = {
        "model": options.model,
        "weights": "random (seed 0)",
        "pictures": options.pictures,
        "side": options.side,
        "hardware": describe_hardware(torch.device("cpu")),
        "encoder_ranges": encoder_receptive_fields(model),
        "rows": [],
    }
    for stage, words in MAPS.items():
        started = time.perf_counter()
        field = effective_receptive_field(model, stage, options.pictures, (options.side, options.side))
        row = {
            "map": words,
            "theoretical_px": theoretical_receptive_field(model, stage).size,
            "effective_size_px": round(effective_size(field)),
            "central_side_px": central_side(field),
            "seconds": round(time.perf_counter() - started, 1),
        }
        record["rows"].append(row)
        print(row)
    out = options.out or RESULTS / f"receptive_fields_{options.model.replace('-', '_')}.json"
    write_json(out, record, indent=2)


if __name__ == "__main__":
    main(tyro.cli(Options))
