"""What to do when a step does not fit into memory (chapter 11)."""

from __future__ import annotations

import gc

import torch

from minidet.training.recipe import Recipe


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU or this machine has no memory left."""
    # On a CPU, PyTorch has no class of its own for it.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def give_back_memory(device: torch.device) -> None:
    """Give back what a failed step has left behind; call it when the error itself is gone, for it holds tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def advice(
    where: object,
    recipe: Recipe,
    ranks: int,
    accumulate: int,
    size_hw: tuple[int, int],
    device: torch.device,
    precision: str,
) -> str:
    """What ran out, at which settings, and what to lower.

    Args:
        where: the step.
        recipe: of the run.
        ranks: processes of the run.
        accumulate: parts in which a rank computes its images.
        size_hw: of this step's network input.
        device, precision: of the network.
    """
    at_once = recipe.batch_size // (ranks * accumulate)
    shares = f" = {at_once} at a time x {accumulate} parts x {ranks} processes" if ranks * accumulate > 1 else ""
    height, width = size_hw
    ways = []
    if at_once > 1:
        ways += [
            f"--accumulate {2 * accumulate} (the same batch, computed in more parts)",
            f"--batch-size {recipe.batch_size // 2}",
            "--batch-size auto (the largest that fits)",
        ]
    ways.append("a smaller --input-size")
    if recipe.multi_scale is not None:
        ways.append(f"a lower multi_scale (now {recipe.multi_scale[0]} to {recipe.multi_scale[1]} px)")
    if precision == "fp32" and device.type == "cuda":
        ways.append("--precision bf16")
    return (
        f"{device} ran out of memory in {where}. Now: batch size {recipe.batch_size}{shares}, input {height} x {width},"
        f" {precision}. Lower one of these: {'; '.join(ways)}."
    )
