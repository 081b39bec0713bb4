"""The YOLOX family on one machine: what depth and width cost, and what they bring.

    python benchmarks/family.py

Parameters, GFLOPs and the time of one picture through each variant as it is published (80 classes, its own test size,
fp32, folded by `minidet.optimize`, post-processing included), all variants in turn; the published AP beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro

import minidet
from minidet.detectors.zoo import model_card
from minidet.evaluation.speed import count_gflops, count_parameters
from minidet.evaluation.timing import time_in_turn
from minidet.files import write_json
from minidet.training.hardware import describe_hardware

FAMILY = ("yolox-nano", "yolox-tiny", "yolox-s", "yolox-m", "yolox-l", "yolox-x")


@dataclass(frozen=True)
class Options:
    seconds: float = 6.0  # of measuring for each variant
    out: Path = Path(__file__).parent / "results" / "family.json"


def main(options: Options) -> None:
    rows, tasks = [], {}
    for name in FAMILY:
        torch.manual_seed(0)
        model = minidet.create_model(name).eval()
        height, width = model.input_hw
        config = model.config
        rows.append(
            {
                "name": name,
                "depth": config.depth,
                "width": config.width,
                "input_hw": [height, width],
                "parameters": count_parameters(model),
                "gflops": round(count_gflops(model), 3),
                "ap": model_card(name).ap,
            }
        )
        picture = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        tasks[name] = partial(minidet.optimize(model), [picture])
    with torch.inference_mode():
        timings = time_in_turn(tasks, torch.device("cpu"), options.seconds)
    for row in rows:
        row["latency_ms"] = round(timings[row["name"]].ms, 1)
        print(f"{row['name']:<12} {row['parameters']:>11,} {row['gflops']:>8.2f} GFLOPs {row['latency_ms']:>8.1f} ms")
    record = {
        "what": "one picture through each YOLOX, fp32, folded, with post-processing; fresh weights",
        "command": "python benchmarks/family.py",
        "hardware": describe_hardware(torch.device("cpu")),
        "torch": torch.__version__,
        "models": rows,
    }
    write_json(options.out, record, indent=1)


if __name__ == "__main__":
    main(tyro.cli(Options))
