"""Times taken in turn, and the most that the machine can do."""

from __future__ import annotations

import time

import pytest
import torch

from minidet.errors import MinidetError
from minidet.evaluation.timing import FEWEST_TURNS, WARM_UP, peak_gflops, time_in_turn

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_tasks_run_in_turn_after_warming_up_and_each_gets_its_own_time():
    calls = []

    def task(name: str, seconds: float):
        def run():
            calls.append(name)
            time.sleep(seconds)

        return run

    times = time_in_turn({"short": task("short", 0.002), "long": task("long", 0.02)}, CPU, seconds=0.05)
    turns = times["short"].turns
    assert turns == times["long"].turns >= FEWEST_TURNS
    assert calls == ["short"] * WARM_UP + ["long"] * WARM_UP + ["short", "long"] * turns
    assert times["long"].ms >= 20  # a sleep is never shorter
    assert times["short"].ms >= 2
    assert times["short"].fastest_ms <= times["short"].ms <= times["short"].slowest_ms
    assert times["short"].memory_mib is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_to_measure_is_refused(seconds):
    with pytest.raises(MinidetError, match="seconds is"):
        time_in_turn({"a": lambda: None}, CPU, seconds)


def test_the_peak_is_at_least_what_a_small_product_reaches():
    matrix = torch.randn(256, 256)
    (timing,) = time_in_turn({"": lambda: matrix @ matrix}, CPU, seconds=0.2).values()
    assert peak_gflops(CPU, torch.float32) > 0.3 * 2 * 256**3 / timing.fastest_ms / 1e6


@needs_cuda
def test_on_a_gpu_the_work_is_timed_and_not_its_queueing():
    device = torch.device("cuda")
    matrix = torch.randn(8192, 8192, device=device)
    (timing,) = time_in_turn({"": lambda: matrix @ matrix}, device, seconds=0.5).values()
    assert timing.ms > 5  # 1.1e12 operations; no GPU does 2e14 float32 operations a second outside tensor cores
    assert timing.memory_mib >= 2 * 256
