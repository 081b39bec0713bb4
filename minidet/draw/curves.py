"""The curves of a training run: is it learning, has it finished (chapter 00)?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from minidet.draw.figure import INK, PALE, Drawing, new_figure, overlay, plain_style, shorten, write

CURVES = (
    ("#0072B2", "-"),
    ("#D55E00", (0, (6, 2))),
    ("#009E73", (0, (6, 2, 1.5, 2))),
    ("#882255", (0, (1.5, 1.5))),
    ("#56B4E9", (0, (9, 2, 1.5, 2, 1.5, 2))),
)


@plain_style
def draw_curves(metrics: Sequence[dict[str, Any]], title: str | None = None) -> Drawing:
    """Losses, average precision and learning rate over the course of training.

    Args:
        metrics: the rows of `metrics.jsonl`, in order: `{"epoch": int, "iteration": int, "lr": float,
            "losses": {name: float}, "ap": float | None, "ap50": float | None}`. What is missing leaves a gap.
        title: a line above all.

    Chapter 00.
    """
    epochs = [row.get("epoch") for row in metrics]
    unit = "epoch" if None not in epochs and len(set(epochs)) == len(epochs) else "iteration"
    x = [row.get(unit, position) for position, row in enumerate(metrics)]
    terms = list(dict.fromkeys(name for row in metrics for name in row.get("losses") or {}))
    losses = {term.removeprefix("loss_"): [(row.get("losses") or {}).get(term) for row in metrics] for term in terms}
    precision = {}
    for name, key in (("AP", "ap"), ("AP50", "ap50")):
        values = [row.get(key) for row in metrics]
        defined = [value for value in values if _is_finite(value) and value >= 0]  # COCO writes -1 for "undefined"
        if defined:
            name += f" (best {max(defined):.3f})"
        precision[name] = [value if value in defined else None for value in values]
    rate = {"learning rate": [row.get("lr") for row in metrics]}

    head = 30 if title else 0
    width, height = 990, 290 + head
    figure = new_figure(width, height)
    panels = (("losses", losses), ("average precision", precision), ("learning rate", rate))
    for index, (name, curves) in enumerate(panels):
        box = [52 + 330 * index, 44, 262, 212]  # left, bottom, width, height
        axes = figure.add_axes([box[0] / width, box[1] / height, box[2] / width, box[3] / height])
        _panel(axes, name, unit, x, curves)
    figure.axes[1].set_ylim(0, 1)
    if title:
        write(overlay(figure, width, height), 52, 24, shorten(title, width - 104, 15, bold=True), 15, INK, bold=True)
    last = f", {unit}s {x[0]} to {x[-1]}" if x else ", no rows yet"
    figure.alt = f"Training curves{last}: {', '.join([*losses, *precision])}, learning rate."
    return figure


def _panel(axes: Axes, name: str, unit: str, x: list[float], curves: dict[str, list[float | None]]) -> None:
    axes.set_title(name, loc="left", fontsize=12, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(unit, fontsize=11, color=PALE)
    axes.tick_params(labelsize=10, colors=PALE, length=0)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")
    for (curve, values), (line, style) in zip(curves.items(), itertools.cycle(CURVES), strict=False):
        points = [point for point in zip(x, values, strict=True) if _is_finite(point[1])]
        if points:
            dots = {"marker": "o", "markersize": 3.5} if len(points) <= 20 else {}
            axes.plot(*zip(*points, strict=True), color=line, linestyle=style, linewidth=1.8, label=curve, **dots)
    if axes.lines:
        axes.set_ylim(bottom=0)
        margin = (max(x) - min(x)) * 0.03 or 0.5
        axes.set_xlim(min(x) - margin, max(x) + margin)  # the same in every panel
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    else:
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", fontsize=11, color=PALE)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
    if len(curves) > 1 and axes.lines:
        axes.legend(fontsize=10, frameon=False, labelcolor=INK, handlelength=2.6)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
