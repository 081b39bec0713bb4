"""Kills a training run at random moments, goes on with it each time, and compares the end with an undisturbed run.

    python benchmarks/kills.py                 # 20 kills, some minutes; results/kills.json
    python benchmarks/kills.py --kills 100 --seed 7

Killed (SIGKILL, which no program can answer) is the trainer, or the process that prepares its pictures: by turns, at a
moment drawn evenly from the whole life of the process, start-up, evaluation and the writing of files included. Then the
same command goes on with `--resume`. A run that has come to its end is compared bit for bit with the undisturbed one:
weights, average, momentum, counters and random states of the last checkpoint, both weight files, every figure of
metrics.jsonl but the clock's. Linux only.
"""

from __future__ import annotations

import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors.torch import load_file

from minidet.data.shapes import ShapesConfig, make_shapes
from minidet.files import read_json, write_json
from minidet.training.checkpoint import latest_checkpoint, load_checkpoint
from minidet.training.run_folder import read_metrics

EPOCHS = 16


@dataclass(frozen=True)
class Options:
    kills: int = 20
    seed: int = 0  # of the moments
    out: Path = Path(__file__).parent / "results" / "kills.json"


def main(options: Options) -> None:
    chance = random.Random(options.seed)
    record: dict[str, Any] = {"kills": [], "runs": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shapes(folder / "data", ShapesConfig(train=32, val=8, test=0, image_hw=(96, 128), objects=(1, 4)))
        started = time.perf_counter()
        assert start(folder / "data", folder / "reference").wait() == 0
        whole = time.perf_counter() - started
        config = read_json(folder / "reference" / "config.json")
        record |= {"command": "minidet " + " ".join(arguments("DATA", "RUN")), "seconds_undisturbed": round(whole, 1)}
        record |= {"hardware": config["hardware"], "versions": config["versions"], "system": platform.platform()}
        print(f"undisturbed: {whole:.1f} s")
        while len(record["kills"]) < options.kills:
            run = folder / f"run-{len(record['runs'])}"
            lives = disturbed(folder / "data", run, options.kills, whole, chance, record["kills"])
            found = differences(folder / "reference", run)
            record["runs"].append({"lives": lives, "different": found})
            print(f"run {len(record['runs'])}: ended after {lives} lives, {len(found)} differences {found[:3]}")
    survived = sum(run["lives"] - 1 for run in record["runs"] if not run["different"])
    record["survived"] = f"{survived} of {len(record['kills'])}"
    write_json(options.out, record, indent=1)
    print(f"{record['survived']} kills survived with bit-identical results; {options.out}")
    sys.exit(survived != len(record["kills"]))


def disturbed(data: Path, run: Path, most: int, whole: float, chance: random.Random, kills: list[dict]) -> int:
    """Start, kill and resume a run until it comes to its end; the number of times that it was started."""
    lives = 0
    while True:
        lives += 1
        process = start(data, run, resume=(run / "config.json").exists())
        if len(kills) == most:
            assert process.wait() == 0, "the last life must come to its end"
            return lives
        started, moment = time.perf_counter(), chance.uniform(0, 0.8 * whole)
        victim = "trainer" if len(kills) % 2 == 0 else "worker"
        while time.perf_counter() - started < moment and process.poll() is None:
            time.sleep(0.002)
        if process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if victim == "worker" and not children:
                victim = "trainer"  # too early or too late: there is no worker
            os.kill(int(children[0]) if victim == "worker" else process.pid, signal.SIGKILL)
        code = process.wait(timeout=120)
        if code == 0 and not killed_in_vain(run):
            return lives
        newest = latest_checkpoint(run)
        kills.append(
            {
                "victim": victim,
                "after_seconds": round(time.perf_counter() - started, 2),
                "exit_code": code,
                "said": last_words(run),
                "newest_checkpoint": newest.name if newest else None,
                "epochs_written": len(read_metrics(run / "metrics.jsonl")),
            }
        )
        print(f"kill {len(kills)}: {kills[-1]}", flush=True)


def last_words(run: Path) -> str | None:
    """The error that the process told, if it had the time; a traceback would be a fault."""
    lines = run.with_suffix(".said").read_text(errors="replace").splitlines()
    found = [line for line in lines if line.startswith(("error:", "Traceback"))]
    return found[0].replace(str(run), "RUN") if found else None


def killed_in_vain(run: Path) -> bool:
    """Whether a run that says it is done is not."""
    return len(read_metrics(run / "metrics.jsonl")) != EPOCHS


def arguments(data: Path | str, run: Path | str) -> list[str]:
    words = ["train", str(data), "--out", str(run), "--input-size", "96", "128", "--epochs", str(EPOCHS)]
    words += ["--batch-size", "8", "--workers", "1", "--threads", "1", "--device", "cpu", "--set", "final_epochs=4"]
    return [*words, "multi_scale=[96,128]", "augmentation.mosaic_prob=0.5", "eval_every=4", "ema_ramp=20"]


def start(data: Path, run: Path, resume: bool = False) -> subprocess.Popen:
    command = [sys.executable, "-m", "minidet", *arguments(data, run), *(["--resume"] if resume else [])]
    with open(run.with_suffix(".said"), "wb") as said:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)


def differences(reference: Path, run: Path) -> list[str]:
    """What two finished runs do not have in common, bit for bit."""

    def content(folder: Path) -> dict[str, Any]:
        # Tensors of the weight files, not their bytes: safetensors writes the lines of its header in any order.
        names = "last.safetensors", "best.safetensors"
        weights = {f"{name}/{key}": each for name in names for key, each in load_file(folder / name).items()}
        return weights | dict(flat(load_checkpoint(latest_checkpoint(folder))))

    ours, theirs = content(run), content(reference)
    found = sorted(ours.keys() ^ theirs.keys())
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
            found.append(name)
    rows = [
        [{key: value for key, value in row.items() if "seconds" not in key} for row in read_metrics(each)]
        for each in (run / "metrics.jsonl", reference / "metrics.jsonl")
    ]
    return found + (["metrics.jsonl"] if rows[0] != rows[1] else [])


def flat(value: Any, name: str = "checkpoint") -> Any:
    """A checkpoint's values by name, without the one that tells the time."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            if key != "seconds":
                yield from flat(each, f"{name}/{key}")
    else:
        yield name, value


if __name__ == "__main__":
    main(tyro.cli(Options))
