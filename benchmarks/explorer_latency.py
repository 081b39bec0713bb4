"""How long from a mouse move to the picture that shows it, in a real browser against a live kernel; and memory.

    python benchmarks/explorer_latency.py

A JupyterLab and a headless Chromium are started on this machine (`apt install chromium`), a notebook with an assignment
explorer is run, and an object is dragged with the mouse, one move every 16 ms as a hand makes them. The page notes when
each `pointermove` arrives; the explorer tells which request goes out and which frame shows the answer. A move is over
when the frame that shows the first request sent after it has been handed to the compositor. So the whole way counts:
coalescing, both directions through Jupyter's server, the kernel, the assigner with its trace, and drawing.

YOLOX at 640 x 640 has 8400 slots; SimOTA on 2 cores, which server, kernel and browser share. Nothing else should run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from minidet.errors import MinidetError
from minidet.files import write_json
from minidet.training.hardware import choose_device, describe_hardware

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
WANTED = {20: {"p50": 60, "p95": 120}, 100: {"p95": 200}}  # milliseconds


@dataclass(frozen=True)
class Options:
    objects: tuple[int, ...] = (20, 100)  # ground truths in the picture
    moves: int = 400  # of the mouse for each of them
    drags: int = 1000  # for the memory of the kernel
    cores: int = 2  # that server, kernel and browser may use together, where the system can tell them
    out: Path = RESULTS / "explorer_latency.json"


CELL = """
import os
import numpy as np, torch, minidet
from minidet.explore import explore_assignment

torch.manual_seed(0)
random = np.random.default_rng(0)
model = minidet.create_model("yolox-nano", num_classes=80, input_hw=(640, 640))
center, half = random.uniform(0, 640, ({objects}, 2)), np.exp(random.uniform(2.5, 5.3, ({objects}, 2))) / 2
boxes = np.concatenate([center - half, center + half], axis=1)
boxes[0] = [280, 280, 360, 360]
labels = random.integers(0, 80, {objects})
picture = random.integers(0, 255, (640, 640, 3)).astype(np.uint8)
explorer = explore_assignment(model, (picture, {{"boxes": boxes, "labels": labels}}))
open("pid", "w").write(str(os.getpid()))
explorer
"""

MEASURE = """() => {
  const state = window.measured = { open: [], sent: [], done: [] };
  const root = document.querySelector(".minidet");
  const afterPaint = new MessageChannel();
  let seen = 0;
  // Tasks posted from a frame run after the frame's own work: style, layout, paint, and its hand-over.
  afterPaint.port1.onmessage = () => {
    const now = performance.now();
    while (state.sent.length && state.sent[0].seq <= seen) {
      for (const move of state.sent.shift().moves) state.done.push(now - move);
    }
  };
  window.addEventListener("pointermove", () => state.open.push(performance.now()), true);
  root.addEventListener("minidet:asked", ({ detail }) => {
    if (state.open.length) state.sent.push({ seq: detail.seq, moves: state.open.splice(0) });
  });
  root.addEventListener("minidet:drawn", ({ detail }) => { seen = detail.seq; afterPaint.port2.postMessage(0); });
}"""


def resident_mib(process: int) -> float:
    """What a process holds in memory, in MiB (Linux)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise MinidetError(f"/proc/{process}/status does not tell the memory of the process")


def kernel_process(folder: Path) -> int:
    return int((folder / "pid").read_text())


def drag(page, x: float, y: float, moves: int, pause_ms: float, radius: float = 120) -> None:
    """Move the mouse along a figure of eight, as fast as a hand."""
    for i in range(moves):
        turn = 2 * np.pi * i / 97
        page.mouse.move(x + radius * np.sin(turn), y + 0.6 * radius * np.sin(2 * turn))
        if pause_ms:
            page.wait_for_timeout(pause_ms)


def main(options: Options) -> None:
    sys.path.insert(0, str(ROOT))
    from tests.browser.jupyter import chromium, open_notebook, running_browser, running_lab

    if chromium() is None:
        raise MinidetError("there is no Chromium on this machine; on Debian or Ubuntu: apt install chromium")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    record = {"hardware": describe_hardware(choose_device("cpu")), "slots": 8400, "strategy": "SimOTA", "latency": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "notebooks"
        folder.mkdir()
        with running_lab(folder) as lab, running_browser() as browser:
            for objects in options.objects:
                cell = CELL.format(objects=objects)
                book = open_notebook(lab, browser, f"objects{objects}.ipynb", [cell])
                book.run_all()
                page = book.page
                stage = page.locator(".minidet-stage")
                stage.locator("canvas").wait_for()
                stage.scroll_into_view_if_needed()
                page.wait_for_timeout(1000)
                box = stage.bounding_box()
                x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
                page.mouse.move(x, y)
                page.mouse.down()
                drag(page, x, y, 40, 16)  # the first ones compile and cache
                page.evaluate(MEASURE)
                drag(page, x, y, options.moves, 16)
                page.wait_for_timeout(500)
                page.mouse.up()
                times = np.array(page.evaluate("() => window.measured.done"))
                row = {
                    "objects": objects,
                    "moves": len(times),
                    **{f"p{share}": round(float(np.percentile(times, share)), 1) for share in (50, 95, 99)},
                }
                row["within"] = all(row[name] <= most for name, most in WANTED.get(objects, {}).items())
                print(row)
                record["latency"].append(row)
                if objects == options.objects[0] and options.drags:
                    record["memory"] = memory_of_drags(page, folder, x, y, options.drags)
                    print(record["memory"])
                assert book.errors == [], book.errors
                book.close()
    write_json(options.out, record, indent=2)


def memory_of_drags(page, folder: Path, x: float, y: float, drags: int) -> dict[str, float]:
    """The memory of the kernel before and after so many drags of six moves each."""
    process = kernel_process(folder)
    before = resident_mib(process)
    for i in range(drags):
        page.mouse.move(x, y)
        page.mouse.down()
        drag(page, x, y, 5, 0, radius=20 + i % 60)
        page.mouse.move(x, y)
        page.mouse.up()
    page.wait_for_timeout(1000)
    after = resident_mib(process)
    return {
        "drags": drags,
        "before_mib": round(before),
        "after_mib": round(after),
        "grown_mib": round(after - before, 1),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
