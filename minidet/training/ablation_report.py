"""What an ablation found, read from the folders of its runs: table, figures and plot (chapter 12)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from minidet.files import atomic_write, read_json, write_json
from minidet.training.cells import Ablation, Cell

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
READING = (
    "AP: COCO's, mean over the IoU thresholds 0.50 to 0.95, on the validation pictures, of the weights after the last",
    "epoch (their average, where the recipe keeps one); mean over the runs ± standard deviation. small, medium, large:",
    "AP by the object's size (up to 32 x 32 pixels, up to 96 x 96, more). GMACs (10^9 multiply-adds; twice as many",
    "GFLOPs) and activations (memory kept for the backward pass) are those of one image in float32; latency is that of",
    "its dense predictions.",
)


def write_report(
    out: Path, ablations: dict[str, Ablation], description: dict[str, Any], failures: Sequence[str] = ()
) -> dict[str, Any]:
    """Write table.md and results.json from the finished runs in a folder.

    Args:
        out: the ablation's folder.
        ablations: what was compared, by name; those without a finished run are left out.
        description: `settings`, `paths` and `command` of the runs, as plain JSON values.
        failures: which runs failed and why, one text each.

    Returns:
        What stands in results.json: the description, the failures, and for each ablation and cell all figures.
    """
    found = {}
    for name, ablation in ablations.items():
        cells = [collect_cell(out, cell) for cell in ablation.cells]
        if any(cell["seeds"] for cell in cells):
            found[name] = {
                "question": ablation.question,
                "source": ablation.source,
                "steps": ablation.steps,
                "cells": cells,
            }
    results = {**description, "ablations": found, "failures": list(failures)}
    write_json(out / "results.json", results, indent=2)
    with atomic_write(out / "table.md") as file:
        file.write(format_table(results).encode())
    return results


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the plot of the results, if there are any."""
    from minidet.draw import AblationPanel, AblationRow, draw_ablation, save_figure  # matplotlib loads slowly

    if not results["ablations"]:
        return
    panels = []
    for ablation in results["ablations"].values():
        rows = [
            AblationRow(cell["words"], [100 * value for value in cell["ap"]["values"]], cell["published_ap"])
            for cell in ablation["cells"]
        ]
        panels.append(AblationPanel(ablation["question"], rows, ablation["source"], ablation["steps"]))
    save_figure(draw_ablation(panels, in_one_line(results)), path)


def collect_cell(out: Path, cell: Cell) -> dict[str, Any]:
    """All figures of a cell's finished runs, each summarised over the seeds, as plain JSON values.

    AP goes from 0 to 1. It is that of the averaged weights after the last epoch, not of the best one, which would be
    chosen by the very pictures that it is judged by.
    """
    runs = [read_json(path) for path in (out / cell.name).glob("seed-*/result.json")]
    runs.sort(key=lambda run: run["seed"])
    figures = {name: summary([run["evaluation"][name] for run in runs]) for name in FIGURES}
    hardware = {json.dumps(run["hardware"], sort_keys=True): run["hardware"] for run in runs}
    latency = out / "latency.json"
    return {
        "name": cell.name,
        "words": cell.words,
        "changes": {name: repr(value) for name, value in {**cell.changes, **cell.recipe}.items()},
        "seeds": [run["seed"] for run in runs],
        **figures,
        "seconds": summary([run["seconds"] for run in runs]),
        "cost": runs[0]["cost"] if runs else None,
        "latency_ms": read_json(latency)["ms"].get(cell.name) if latency.is_file() else None,
        "hardware": list(hardware.values()),
        "published_ap": cell.published_ap,
        "published": None if cell.published is None else asdict(cell.published),
    }


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and spread of a figure over the runs. None, "not defined", is left out; `std` is that of the sample."""
    known = [value for value in values if value is not None]
    return {
        "values": known,
        "n": len(known),
        "mean": mean(known) if known else None,
        "std": stdev(known) if len(known) > 1 else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
    }


def format_table(results: dict[str, Any]) -> str:
    """The results as Markdown: for each ablation a table of what it reached and one of what it costs."""
    lines = [f"# Ablation of {results['settings']['model']}", "", in_one_line(results)]
    for ablation in results["ablations"].values():
        paper = any(cell["published_ap"] is not None for cell in ablation["cells"])
        against = "the row above" if ablation["steps"] else "the first row"
        head = ["", "runs", "AP, %", "lowest to highest", f"against {against}", "AP50", "small", "medium", "large"]
        head += ["training, s"] + (["the paper's AP"] if paper else [])
        lines += ["", f"## {ablation['question']}", "", *_markdown_head(head)]
        for number, cell in enumerate(ablation["cells"]):
            other = ablation["cells"][max(number - 1, 0) if ablation["steps"] else 0]
            gain = _difference(cell["ap"]["mean"], other["ap"]["mean"], 100)
            row = [cell["words"], str(len(cell["seeds"])), _percent(cell["ap"]), _range(cell["ap"]), gain]
            row += [_percent(cell[name]) for name in ("ap50", "ap_small", "ap_medium", "ap_large")]
            row.append(_seconds(cell["seconds"]))
            if paper:
                published, step = cell["published_ap"], ""
                if ablation["steps"] and number:
                    step = f" ({_difference(published, other['published_ap'])})"
                row.append("" if published is None else f"{published:.1f}{step}")
            lines.append(_markdown(row))
        if ablation["source"]:
            lines += ["", ablation["source"]]
        lines += ["", *_cost_table(ablation["cells"])]
    hardware = {
        f"{each['name']} ({each['device']}, {each['threads']} threads)"
        for ablation in results["ablations"].values()
        for cell in ablation["cells"]
        for each in cell["hardware"]
    }
    lines += [
        "",
        *READING,
        "",
        f"Hardware: {'; '.join(sorted(hardware)) or '-'}.",
        f"Command: `{' '.join(results['command'])}`",
    ]
    if results["failures"]:
        lines += ["", "Failed:", *(f"- {' '.join(text.split())}" for text in results["failures"])]
    return "\n".join(lines) + "\n"


def in_one_line(results: dict[str, Any]) -> str:
    """Model, data, budget, input size, and the width if it is not the model's own."""
    settings = results["settings"]
    recipe, data = settings["recipe"], settings["data"]
    costs = [c["cost"] for ablation in results["ablations"].values() for c in ablation["cells"] if c["cost"]]
    size = f", input {costs[0]['input_hw'][0]} x {costs[0]['input_hw'][1]}" if costs else ""
    for name in ("width", "depth"):
        size += f", {name} {settings['changes'][name]:g}" if name in settings["changes"] else ""
    count, unit = (recipe["epochs"], "epoch") if recipe["epochs"] else (recipe["iterations"], "iteration")
    length = f"{count} {unit}{'' if count == 1 else 's'}"
    return (
        f"{settings['model']}, {data['train']['images']} pictures to learn from, {data['val']['images']} to be judged "
        f"by, {length} with batches of {recipe['batch_size']}{size}"
    )


def _difference(value: float | None, other: float | None, factor: float = 1) -> str:
    return "" if None in (value, other) else f"{factor * (value - other):+.1f}"


def _cost_table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """What each cell's network costs, in all and part by part, its latency, and what the paper says of its own."""
    known = [cell for cell in cells if cell["cost"]]
    names = ", ".join(part["name"] for part in known[0]["cost"]["parts"])
    paper = any(cell["published"] for cell in known)
    work, macs = ("GFLOPs", 0.5) if paper else ("GMACs", 1)  # as the paper counts
    head = ["", *(f"{figure}: {names}" for figure in (work, "parameters", "activations, MiB")), "latency, ms"]
    lines = _markdown_head(head + (["the paper's M parameters", "its GFLOPs", "its ms (V100)"] if paper else []))
    for cell in known:
        row, parts = [cell["words"]], cell["cost"]["parts"]
        for figure, unit, form in (
            ("gmacs", macs, ".2f"),
            ("trainable", 1, ",.0f"),
            ("activation_bytes", 2**20, ".1f"),
        ):
            each = [part[figure] / unit for part in parts]
            row.append(f"{sum(each):{form}}: {' + '.join(f'{value:{form}}' for value in each)}")
        row.append("-" if cell["latency_ms"] is None else f"{cell['latency_ms']:.1f}")
        if paper:
            published = cell["published"] or {}
            row += [f"{published[name]:g}" if published else "" for name in ("parameters", "gflops", "latency_ms")]
        lines.append(_markdown(row))
    return lines


def _markdown_head(cells: Sequence[str]) -> list[str]:
    return [_markdown(cells), _markdown(["---", *["---:"] * (len(cells) - 1)])]


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(figure: dict[str, Any]) -> str:
    if figure["mean"] is None:
        return "-"
    return f"{100 * figure['mean']:.1f}" + (f" ± {100 * figure['std']:.1f}" if figure["std"] is not None else "")


def _range(figure: dict[str, Any]) -> str:
    return "-" if figure["mean"] is None else f"{100 * figure['min']:.1f} to {100 * figure['max']:.1f}"


def _seconds(figure: dict[str, Any]) -> str:
    return "-" if figure["mean"] is None else f"{figure['mean']:.0f}"
