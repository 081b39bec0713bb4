"""A detector on BCCD from scratch: the README's command for several seeds, and a record of what came out.

    python benchmarks/bccd.py --data data/bccd --seeds 0 1 2
    python benchmarks/bccd.py --data data/bccd --seeds 0 1 --model yolof-r18-c5 --epochs 60 --precision bf16

Writes benchmarks/results/bccd_MODEL.json: the command, the hardware, and for each seed AP, AP50 and the seconds that
training, evaluation and everything else took. One run at a time; nothing else should run on the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from minidet.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    data: Path = Path("data/bccd")  # made by `minidet data fetch bccd`
    model: str = "yolox-nano"  # which detector
    epochs: int = 75  # passes over the 205 training pictures
    precision: str = "fp32"  # of the network
    seeds: tuple[int, ...] = (0, 1, 2)  # one run each
    out: Path | None = None  # where the record goes, by default results/bccd_MODEL.json


def main(options: Options) -> None:
    command = ["train", str(options.data), "--model", options.model, "--recipe", "course", "--input-size", "256", "320"]
    command += ["--epochs", str(options.epochs), "--precision", options.precision]
    out = options.out or RESULTS / f"bccd_{options.model.replace('-', '_')}.json"
    record = {"command": " ".join(["minidet", *command]), "runs": []}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            words = [*command, "--seed", str(seed), "--out", str(run)]
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "minidet", *words], check=True)
            seconds = time.perf_counter() - started
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            config = read_json(run / "config.json")
        training = sum(row["seconds"] for row in rows)
        evaluation = sum(row.get("evaluation_seconds") or 0 for row in rows)
        record["hardware"] = config.get("hardware")
        record["versions"] = config.get("versions")
        record["runs"].append(
            {
                "seed": seed,
                "epochs": rows[-1]["epoch"],
                "iterations": rows[-1]["iteration"],
                "ap": round(rows[-1]["ap"], 4),
                "ap50": round(rows[-1]["ap50"], 4),
                "training_seconds": round(training, 1),
                "evaluation_seconds": round(evaluation, 1),
                "whole_command_seconds": round(seconds, 1),
            }
        )
        write_json(out, record, indent=2)
        print(record["runs"][-1])


if __name__ == "__main__":
    main(tyro.cli(Options))
