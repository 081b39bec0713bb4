"""OTA beside SimOTA: what the optimum costs in time, how near Sinkhorn and dynamic k come to it, and a figure of that.

    minidet data shapes data/shapes
    python benchmarks/transport.py --data data/shapes

Time: SimOTA, OTA by Sinkhorn-Knopp and OTA by the exact solver in turn, on random predictions. Agreement: the stored
stages of a small YOLOX look at validation pictures of `shapes`, and every strategy assigns what they say. All have the
same candidates, pair costs and k. "SimOTA, background off its costs" is SimOTA's way, k cheapest and conflicts to the
cheaper object, on what a slot costs an object *more* than it costs the background: it tells how much of a difference
comes from the background row alone, and how much from settling conflicts together. "Sinkhorn, slots as published"
gives each slot to the row with the largest share of it, after dividing each row by its largest share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from minidet.assign import BACKGROUND, OTA, DensePredictions, SimOTA
from minidet.assign.simota import cheapest, owners
from minidet.data.coco import load_split
from minidet.draw import AgreementPanel, draw_agreement, save_figure
from minidet.evaluation.timing import time_in_turn
from minidet.explore.stages import load_stages
from minidet.files import read_json, write_json
from minidet.grid import make_grid
from minidet.training.hardware import choose_device, describe_hardware

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
STRIDES = (8, 16, 32)
GREEDY, GREEDY_ABOVE = "SimOTA", "SimOTA, background off its costs"
SINKHORN, LARGEST = "Sinkhorn", "Sinkhorn, slots as published"


@dataclass(frozen=True)
class Options:
    data: Path = Path("data/shapes")  # drawn by `minidet data shapes`
    pictures: int = 100  # of its val part
    head: str = "decoupled"  # of the stored stages
    objects: int = 50  # of each random image
    batches: tuple[int, ...] = (1, 8)  # images
    size: int = 640  # side of the network input, a multiple of 32: 640 has 8400 slots
    classes: int = 80
    seconds: float = 10  # about so long each solver is measured
    threads: int = 2  # of torch
    device: str = "cpu"  # for the times
    time_only: bool = False  # leave the agreement as it is recorded
    out: Path | None = None  # where the record goes; by default results/transport_DEVICE.json


# ---- time -----------------------------------------------------------------------------------------------------------


def random_batch(options: Options, batch: int, device: torch.device) -> tuple[DensePredictions, list[dict]]:
    """Predictions around their cells and objects of 12 to 200 px, as in the middle of a training."""
    grid = make_grid([(options.size // stride,) * 2 for stride in STRIDES], STRIDES, device)
    centers = grid.centers + 4 * torch.randn(batch, len(grid), 2, device=device)
    half = torch.exp(3 + 1.5 * torch.rand(batch, len(grid), 2, device=device)) / 2
    boxes = torch.cat([centers - half, centers + half], dim=2)
    logits = torch.randn(batch, len(grid), 1 + options.classes, device=device) - 3
    targets = []
    for _ in range(batch):
        center = options.size * torch.rand(options.objects, 2, device=device)
        half = torch.exp(2.5 + 2.8 * torch.rand(options.objects, 2, device=device)) / 2
        gt_boxes = torch.cat([center - half, center + half], dim=1).clamp(0, options.size)
        labels = torch.randint(options.classes, (options.objects,), device=device)
        targets.append({"boxes": gt_boxes, "labels": labels})
    return DensePredictions(grid, boxes, boxes, logits[..., 1:], logits[..., 0]), targets


def measure(options: Options) -> dict:
    device = choose_device(options.device)
    record = {"hardware": describe_hardware(device), "torch": torch.__version__, "threads": options.threads}
    record |= {"slots": sum((options.size // stride) ** 2 for stride in STRIDES), "objects": options.objects}
    record["milliseconds"] = []
    rules = {"SimOTA": SimOTA(), "OTA, Sinkhorn, 50 iterations": OTA(), "OTA, exact": OTA(solver="exact")}
    for batch in options.batches:
        predictions, targets = random_batch(options, batch, device)
        tasks = {name: lambda r=rule, p=predictions, t=targets: r(p, t) for name, rule in rules.items()}
        times = time_in_turn(tasks, device, options.seconds)
        row = {"batch": batch, **{name: round(each.ms, 2) for name, each in times.items()}}
        record["milliseconds"].append(row)
        print(row)
    return record


# ---- agreement ------------------------------------------------------------------------------------------------------


def agreement(options: Options) -> dict:
    data = load_split(options.data, "val")
    pictures = [data[i] for i in range(min(options.pictures, len(data)))]
    stages = []
    for stage in load_stages(ROOT / "chapters" / "weights" / "stages"):
        if stage.head != options.head:
            continue
        model = stage.load()
        found: dict[str, list[dict[str, float]]] = {}
        for image, target in pictures:
            with torch.no_grad():
                predictions = model.dense([image])
            gt = model.ground_truth([image], [target])
            if not gt.counts[0]:
                continue
            best = OTA(solver="exact")(predictions, gt, trace=True)
            for name, owner in ways(predictions, gt, best).items():
                found.setdefault(name, []).append(compare(owner, best))
        rows = {name: summary(rows) for name, rows in found.items()}
        stages.append({"epoch": stage.epoch, "ap50": stage.ap50, "ways": rows})
        for name, row in rows.items():
            print(stage.epoch, name, row)
    return {"pictures": len(pictures), "head": options.head, "stages": stages}


def ways(predictions: DensePredictions, gt, best) -> dict[str, Tensor]:
    """The owner of each of the best plan's K candidates, [K] int64, by every way."""
    trace = best.trace[0]
    slots, above = trace["candidates"], trace["cost"] - trace["background_cost"]
    above = above.masked_fill(~trace["free"], torch.inf)[None]
    greedy, _ = owners(*cheapest(above, trace["dynamic_k"][None], SimOTA().max_k), above)
    sinkhorn = OTA()(predictions, gt, trace=True)
    plan = sinkhorn.trace[0]["plan"]
    largest = (plan / plan.amax(dim=1, keepdim=True).clamp(min=1e-30)).argmax(dim=0)
    return {
        GREEDY: SimOTA()(predictions, gt).matched_gt[0, slots],
        GREEDY_ABOVE: greedy[0],
        SINKHORN: sinkhorn.matched_gt[0, slots],
        LARGEST: torch.where(largest < len(plan) - 1, largest, BACKGROUND),
    }


def compare(owner: Tensor, best) -> dict[str, float]:
    """One picture: counts, and where every object has exactly its k allowed slots, the cost above the optimum."""
    trace = best.trace[0]
    optimum = best.matched_gt[0, trace["candidates"]]
    given, wanted = (each == torch.arange(best.gt.counts[0])[:, None] for each in (owner, optimum))  # [G, K]
    number, k = given.sum(dim=1), trace["dynamic_k"]
    feasible = bool((number == k).all() and trace["free"][given].all())
    above = (trace["cost"] - trace["background_cost"]).double()
    return {
        "slots": int(((owner != BACKGROUND) | (optimum != BACKGROUND)).sum()),
        "same_slots": int(((owner == optimum) & (optimum != BACKGROUND)).sum()),
        "objects": len(k),
        "same_objects": int((given == wanted).all(dim=1).sum()),
        "without": int((number == 0).sum()),
        "fewer_than_k": int((number < k).sum()),
        "more_than_k": int((number > k).sum()),
        "labels": int(k.sum()),
        "positives": int(number.sum()),
        "feasible": int(feasible),
        "labels_there": int(k.sum()) if feasible else 0,
        "cost_above": float(above[given].sum() - above[wanted].sum()) if feasible else 0.0,
    }


def summary(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    total = {name: sum(row[name] for row in rows) for name in rows[0]}
    return {
        "same_owner": round(total["same_slots"] / total["slots"], 4),
        "same_set": round(total["same_objects"] / total["objects"], 4),
        # For each label that is given away, on pictures where every object has its k.
        "cost_above": round(total["cost_above"] / total["labels_there"], 4) if total["labels_there"] else None,
        "pictures_with_every_k": total["feasible"],
        **{name: total[name] for name in ("objects", "without", "fewer_than_k", "more_than_k", "labels", "positives")},
    }


def figure_of(record: dict) -> object:
    stages = record["stages"]

    def panel(title: str, key: str, percent: bool = True) -> AgreementPanel:
        return AgreementPanel(title, {n: [s["ways"][n][key] for s in stages] for n in stages[0]["ways"]}, percent)

    panels = [
        panel("slots with the owner of the optimum", "same_owner"),
        panel("objects with the slots of the optimum", "same_set"),
        panel("cost above the optimum, a positive slot", "cost_above", percent=False),
    ]
    note = (
        f"A small YOLOX on {record['pictures']} validation pictures of shapes. "
        "The cost is that of pictures where every object has its k."
    )
    return draw_agreement([str(stage["epoch"]) for stage in stages], panels, "epochs of training", note)


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    record = {"what": "OTA beside SimOTA", "command": "python benchmarks/transport.py --data data/shapes"}
    out = options.out or RESULTS / f"transport_{choose_device(options.device).type}.json"
    if not options.time_only:
        record["agreement"] = agreement(options)
    elif out.exists():
        record = read_json(out)
    if "agreement" in record:
        save_figure(figure_of(record["agreement"]), out.parent / "transport.png")
    write_json(out, record | {"time": measure(options)}, indent=1)


if __name__ == "__main__":
    main(tyro.cli(Options))
