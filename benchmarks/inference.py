"""How long a network takes to answer, as trained and as `minidet.optimize` makes it, beside the official code.

    python benchmarks/inference.py                                  # yolox-s, 640 px, batch 1, on the CPU
    python benchmarks/inference.py --official PATH/TO/YOLOX         # beside the official code, in turn
    python benchmarks/inference.py --device cuda --batch 32

`--official` names a checkout of Megvii-BaseDetection/YOLOX (0.3.0 was tried) whose dependencies are installed. Measured
is the network with the decoding of its boxes, from pixels in memory to boxes before non-maximum suppression. Nothing
else should run on the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

import minidet
from minidet.detectors.optimize import PRECISIONS
from minidet.errors import MinidetError
from minidet.evaluation.speed import count_gflops
from minidet.evaluation.timing import Timing, peak_gflops, time_in_turn
from minidet.files import write_json
from minidet.training.hardware import choose_device, describe_hardware

RESULTS = Path(__file__).parent / "results"
OFFICIAL = "official code, fp32"


@dataclass(frozen=True)
class Options:
    model: str = "yolox-s"
    size: int = 640  # side of the network input
    batch: int = 1  # images
    precisions: tuple[str, ...] = ("fp32", "bf16")
    compiled: bool = True  # also with torch.compile, which takes a minute before
    seconds: float = 5.0  # about so long each is measured
    threads: int = 2  # of torch
    device: str = "cpu"
    official: Path | None = None  # a checkout of the official code
    out: Path | None = None  # where the record goes; by default results/inference_MODEL_DEVICE.json


def official_network(folder: Path, options: Options, images: Tensor) -> Callable[[], object]:
    sys.path.insert(0, str(folder))
    try:
        from yolox.exp import get_exp
    except ImportError as error:
        raise MinidetError(f"{folder}: cannot be used as a checkout of YOLOX ({error}).") from error
    model = get_exp(None, options.model).get_model().to(images.device).eval()
    pixels = images.float()
    return lambda: model(pixels)


def our_networks(options: Options, images: Tensor) -> dict[str, Callable[[], object]]:
    plain = minidet.create_model(options.model, input_hw=(options.size, options.size)).to(images.device).eval()

    def dense(model: minidet.detectors.Detector) -> Callable[[], object]:
        return lambda: model.dense(images)

    tasks = {"as trained, fp32": dense(plain)}
    for precision in options.precisions:
        tasks[f"optimized, {precision}"] = dense(minidet.optimize(plain, precision))
        if options.compiled:
            tasks[f"compiled, {precision}"] = dense(minidet.optimize(plain, precision, compile=True))
    return tasks


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = choose_device(options.device)
    images = torch.randint(256, (options.batch, 3, options.size, options.size), dtype=torch.uint8, device=device)
    tasks = {} if options.official is None else {OFFICIAL: official_network(options.official, options, images)}
    tasks |= our_networks(options, images)
    with torch.inference_mode():
        times: dict[str, Timing] = time_in_turn(tasks, device, options.seconds)
    work = count_gflops(minidet.create_model(options.model), (options.size, options.size)) * options.batch
    peaks = {precision: peak_gflops(device, PRECISIONS[precision]) for precision in options.precisions}
    rows = []
    for name, timing in times.items():
        rate = work / timing.ms * 1000
        row = {"what": name, **asdict(timing), "images_per_second": 1000 * options.batch / timing.ms}
        row |= {"gflops_per_second": rate, "share_of_peak": rate / peaks[name.split()[-1]]}
        if OFFICIAL in times:
            row["share_of_official"] = timing.ms / times[OFFICIAL].ms
        rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
        ratio = f"  {row['share_of_official']:.2f} of the official" if OFFICIAL in times else ""
        print(
            f"{name:<20}{timing.ms:8.1f} ms (fastest {timing.fastest_ms:.1f}){row['share_of_peak']:8.0%} of peak{ratio}"
        )
    record = {
        "hardware": {**describe_hardware(device), "torch": torch.__version__},
        "model": options.model,
        "size": options.size,
        "batch": options.batch,
        "gflops": round(work, 3),
        "peak_gflops": {name: round(value, 1) for name, value in peaks.items()},
        "rows": rows,
    }
    write_json(options.out or RESULTS / f"inference_{options.model}_{device.type}.json", record, indent=2)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except MinidetError as error:
        sys.exit(f"error: {error}")
