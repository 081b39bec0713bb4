"""Measuring time so that two figures can be compared: warm, in turn, with medians; and what a machine can do at most.

A machine that other programs share, or that grows hot, slows down by itself. What is compared therefore runs in turn,
A B A B, so that both meet the same conditions, and the median of the turns counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from minidet.errors import MinidetError

WARM_UP = 2  # turns that do not count: memory is allocated, kernels are chosen
FEWEST_TURNS = 3


@dataclass(frozen=True)
class Timing:
    """How long a task takes.

    Attributes:
        ms: median of its turns, in milliseconds.
        fastest_ms, slowest_ms: of its turns.
        turns: how many were measured.
        memory_mib: most GPU memory in use while it ran, its inputs and weights included; None on other devices.
    """

    ms: float
    fastest_ms: float
    slowest_ms: float
    turns: int
    memory_mib: float | None


def time_in_turn(
    tasks: Mapping[str, Callable[[], object]], device: torch.device, seconds: float = 3.0
) -> dict[str, Timing]:
    """Run several tasks in turn and take the time of each.

    On a CUDA device the time is that between two events of its stream, so waiting for the host counts, queueing not.

    Args:
        tasks: by name; each is called without arguments, again and again.
        device: where they compute.
        seconds: about so long each task is measured, at least three turns.

    Raises:
        MinidetError: seconds is not positive.
    """
    if not seconds > 0:
        raise MinidetError(f"seconds is {seconds}; measure for some time, such as 3")
    memory = {name: _warm_up(task, device) for name, task in tasks.items()}
    times: dict[str, list[float]] = {name: [] for name in tasks}
    started = time.perf_counter()
    turns = 0
    while turns < FEWEST_TURNS or time.perf_counter() - started < seconds * len(tasks):
        for name, task in tasks.items():
            times[name].append(_milliseconds(task, device))
        turns += 1
    return {
        name: Timing(sorted(each)[turns // 2], min(each), max(each), turns, memory[name])
        for name, each in times.items()
    }


def _warm_up(task: Callable[[], object], device: torch.device) -> float | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(WARM_UP):
        task()
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def _milliseconds(task: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        first.record()
        task()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)
    started = time.perf_counter()
    task()
    if device.type == "mps":
        torch.mps.synchronize()
    return 1000 * (time.perf_counter() - started)


def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """The most operations a second (in 10^9, a multiply and an add are two) that this machine was seen to do.

    The faster one of a product of large matrices and a 3 x 3 convolution of many channels: nothing that a network does
    can be much faster.
    """
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device).to(dtype)
    channels, cells = (512, 128) if device.type == "cuda" else (256, 40)
    maps = torch.randn(1, channels, cells, cells, device=device).to(dtype).to(memory_format=torch.channels_last)
    weights = torch.randn(channels, channels, 3, 3, device=device).to(dtype).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        tasks = {"product": lambda: matrix @ matrix, "convolution": lambda: F.conv2d(maps, weights, padding=1)}
        times = time_in_turn(tasks, device, seconds=0.5)
    work = {"product": 2 * side**3, "convolution": 2 * cells**2 * channels**2 * 9}
    return max(work[name] / times[name].fastest_ms / 1e6 for name in tasks)
