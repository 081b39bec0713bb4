"""The program that the tests of several processes start: torchrun runs it once for each rank.

    torchrun --standalone --nproc-per-node 2 tests/training/ranks.py DATA RUN '{"options of a run": ...}'

It trains as `squares.run` does, and writes the losses of every step, as rank 0 knows them, to RUN.losses.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import torch

from minidet.data.coco import CocoDataset
from minidet.errors import MinidetError
from minidet.training import run as progress
from tests.training.squares import SMALL, run, tiny_model

progress.save_pictures = lambda *args: None


@contextlib.contextmanager
def in_double_precision():
    """Let every step computed inside have twice the digits, also where the library says float()."""
    before, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    torch.Tensor.float = before


def main(data: Path, folder: Path, options: dict) -> int:
    torch.set_num_threads(1)
    rank, losses = int(os.environ.get("RANK", "0")), []
    step = progress.training_step

    def spied(state, *args):
        if options.get("signal") and state.iteration == options["at"] and rank == options["rank"]:
            first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
            if first_life:
                os.kill(os.getpid(), getattr(signal, options["signal"]))
        if options.get("nan_at") == state.iteration and rank == options["rank"]:
            args = (args[0].float() * float("nan"), *args[1:])
        with in_double_precision() if options.get("double") else contextlib.nullcontext():
            step(state, *args)
        losses.append(state.losses.latest)

    progress.training_step = spied
    recipe = dataclasses.replace(SMALL, **options.get("recipe", {}))
    model = tiny_model()
    if options.get("double"):  # what remains is not rounding, which a new network's first steps multiply, but logic
        model.double()
    if options.get("other_recipe") and rank == 1:
        recipe = dataclasses.replace(recipe, base_lr=0.5)
    try:
        result = run(
            folder,
            CocoDataset(data / "annotations.json", data),
            recipe,
            model,
            log=print if rank == 0 else lambda text: None,
            **options.get("train", {}),
        )
    except MinidetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rank == 0:
        folder.with_suffix(".losses.json").write_text(json.dumps(losses))
    return 128 + result.stopped_by if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
