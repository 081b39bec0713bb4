"""Which device trains, and in which precision (chapter 11)."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch

from minidet.detectors.optimize import PRECISIONS
from minidet.errors import RunError


def choose_device(wish: str | torch.device = "auto") -> torch.device:
    """The device that is meant; "auto" takes CUDA before MPS before the CPU.

    Raises:
        RunError: there is no such device here.
    """
    mps = getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available()
    here = (["cuda"] if torch.cuda.is_available() else []) + (["mps"] if mps else []) + ["cpu"]
    if str(wish) == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(wish)
    except RuntimeError as error:
        raise RunError(f"device {str(wish)!r} is not known. Here are: auto, {', '.join(here)}.") from error
    too_high = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if device.type not in here or too_high:
        raise RunError(f"device {str(wish)!r} is not on this machine. Here are: auto, {', '.join(here)}.")
    return device


def choose_precision(wish: str, device: torch.device) -> str:
    """ "fp32", "bf16" or "fp16"; "auto" is bf16 on GPUs that can, else fp32.

    In the two short ones the network runs under autocast; weights, losses and the optimiser stay float32 in each.

    Raises:
        RunError: an unknown word, or one that this device cannot do.
    """
    bf16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    if wish == "auto":
        return "bf16" if device.type == "cuda" and bf16 else "fp32"
    if wish not in PRECISIONS:
        raise RunError(f"precision {wish!r} is not known. Choose auto, {', '.join(PRECISIONS)}.")
    if wish == "bf16" and not bf16:
        raise RunError(
            f"precision bf16 is not possible on {device}. Choose fp32" + (" or fp16." if device.type == "cuda" else ".")
        )
    if wish == "fp16" and device.type != "cuda":
        raise RunError(f"precision fp16 needs a CUDA GPU, but the device is {device}. Choose fp32.")
    return wish


def choose_workers(device: torch.device, trainers: int = 1) -> int:
    """Processes that prepare images: a GPU needs all the help it can get, a CPU that computes anyway is left one.

    `trainers` says how many processes train on this machine and share its cores.
    """
    cores = max((os.cpu_count() or 1) // trainers, 1)
    return min(cores - 1, 1) if device.type == "cpu" else min(cores, 16)


def evaluation_workers(device: torch.device) -> int:
    """Processes that read pictures to be judged: only a GPU would wait for them."""
    return 0 if device.type == "cpu" else choose_workers(device)


@contextlib.contextmanager
def computing(device: torch.device, deterministic: bool) -> Iterator[None]:
    """How kernels are chosen while the block runs: the fastest (a GPU tries them out), or those that always agree.

    On a CPU all are deterministic anyway. In deterministic mode PyTorch refuses what a GPU can only do in any order.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it when it starts
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """What a figure was measured on: device, processor, cores, threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": str(device), "name": name, "cpu_cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
