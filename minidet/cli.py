"""The command line: `minidet models`, `data`, `train`, `ablate`, `grade`, `eval`, `predict`, `bench`, `demo` and more.

Each command is a dataclass: its fields are the options, the comments behind them the help. Chapter 00 and the README
use them all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tyro.conf import Positional, arg, subcommand

from minidet.assign import (
    ATSS,
    OTA,
    POTO,
    Assigner,
    BestAnchor,
    CentreSampling,
    MaxIoU,
    OneToOne,
    SimOTA,
    UniformMatching,
)
from minidet.bench.parts import PARTS, PartName, Setting, bench
from minidet.data.anchors import box_sizes, kmeans_anchors
from minidet.data.check import check_dataset, format_faults
from minidet.data.coco import CocoDataset, load_split
from minidet.data.fetch import FETCHABLE, fetch
from minidet.data.images import read_image
from minidet.data.loader import BadImages
from minidet.data.picture_store import Cache
from minidet.data.shapes import ShapesConfig, make_shapes
from minidet.detectors import ZOO, Detector, create_model, load_model, load_official, optimize, save_weights
from minidet.detectors.detector import IMAGENET_STD
from minidet.detectors.imagenet import load_backbone_weights
from minidet.detectors.roadmap import Anchors, roadmap
from minidet.detectors.weights import transfer_weights
from minidet.detectors.yolox import SELECTED
from minidet.detectors.zoo import model_card
from minidet.errors import DataError, MinidetError, RunError
from minidet.evaluation.average_precision import AveragePrecision, evaluate, evaluate_detections
from minidet.evaluation.predict import predict_dataset
from minidet.files import atomic_write, write_json
from minidet.training.ablation import Study, ablate
from minidet.training.ablation_report import format_table
from minidet.training.cells import FAMILIES, YOLOF_ABLATIONS, yolox_ablations
from minidet.training.distributed import launched_ranks
from minidet.training.grade import Rules, format_grades, grade, mark_list, parse_requirements
from minidet.training.hardware import choose_device, choose_precision, evaluation_workers
from minidet.training.interrupt import EXIT_CODE, StopNow
from minidet.training.loop import TrainingResult, train
from minidet.training.recipe import FLIP_AND_COLOUR, RECIPES, Recipe, is_yolof, recipe_for

ModelName = Literal[tuple(ZOO)]  # type: ignore[valid-type]
RecipeName = Literal[tuple(RECIPES)]  # type: ignore[valid-type]
DataName = Literal[tuple(FETCHABLE)]  # type: ignore[valid-type]

ASSIGNERS: dict[str, Assigner] = {
    "simota": SimOTA(),
    "simota-published": SimOTA.published(),  # the version that all published YOLOX weights were trained with
    "uniform": UniformMatching(),
    "uniform-anchors": UniformMatching(sources=("anchors",)),  # as the paper's text has it, without the predictions
    "max-iou": MaxIoU(),
    "atss": ATSS(),
    "centre": CentreSampling(),  # with FCOS's ranges; the rungs of `roadmap` scale them to the input
    "centre-3x3": CentreSampling(radius=1.5),
    "best-anchor": BestAnchor(),
    "one-to-one": OneToOne(),
    "poto": POTO(),
    "ota": OTA(),
}
RungName = Literal[tuple(roadmap((640, 640)))]  # type: ignore[valid-type]
AssignerName = Literal[tuple(ASSIGNERS)]  # type: ignore[valid-type]
FamilyName = Literal[tuple(FAMILIES)]  # type: ignore[valid-type]
GridName = Literal[(*(name for names in FAMILIES.values() for name in names), "all")]  # type: ignore[valid-type]
DEFAULT_OF_FAMILY = {"yolof": "yolof-r18-c5", "yolox": "yolox-nano"}

MOST_PROCESSES = 1024  # and threads: more break the machine before they help

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
# Exit codes. 2 is an error that the user can mend; 130 (Ctrl-C) and 143 (SIGTERM) mean stopped, 128 + the signal.
DEFECTS_FOUND, INTERRUPTED, BROKEN_PIPE = 1, EXIT_CODE + signal.SIGINT, 141


@dataclass(frozen=True)
class Models:
    """List the detectors: size, work, input and published accuracy."""

    def run(self) -> int:
        print(f"{'name':<24}{'parameters':>12}{'GFLOPs':>9}{'input':>12}{'AP':>7}   paper")
        for name, card in ZOO.items():
            height, width = card.input_hw
            size, ap = f"{height} x {width}", "-" if card.ap is None else card.ap
            print(f"{name:<24}{card.params:>12,}{card.gflops:>9g}{size:>12}{ap:>7}   {card.paper}")
        print(
            "\nFor 80 classes; frozen parameters are not counted. GFLOPs of YOLOF: at 800 x 1344. AP: COCO val2017, in "
            "percent, of the\npublished weights (minidet import-official)."
        )
        return 0


@dataclass(frozen=True)
class Shapes:
    """Draw the shapes data set: eight classes, many sizes, crowds and occlusion. Needs no network."""

    folder: Positional[Path] = Path("data/shapes")  # where to
    config: Annotated[ShapesConfig, arg(name="")] = field(default_factory=ShapesConfig)

    def run(self) -> int:
        make_shapes(self.folder, self.config)
        print(f"{self.folder}: {self.config.train} train, {self.config.val} val and {self.config.test} test pictures")
        return 0


@dataclass(frozen=True)
class Check:
    """Report every fault of a data set in COCO format at once, with what to do.

    Exits with 1 when something must be corrected before training.
    """

    folder: Positional[Path]  # holds annotations/instances_{split}.json and the pictures in {split}/
    splits: tuple[str, ...] = ()  # which; by default all there are
    read_images: bool = True  # also decode every picture
    limit: int = 20  # places shown of each kind; 0 for all

    def run(self) -> int:
        faults = check_dataset(self.folder, self.splits or None, self.read_images, progress=sys.stderr.isatty())
        print(format_faults(faults, self.limit or None))
        return DEFECTS_FOUND if any(fault.fatal for fault in faults) else 0


@dataclass(frozen=True)
class Fetch:
    """Download a data set by name, check it, and turn it into COCO format. Goes on where a cut connection left off."""

    name: Positional[DataName]  # which
    folder: Path | None = None  # where to; by default data/NAME
    source: Annotated[Path | None, arg(name="from")] = None  # a local copy (folder or archive) in place of the network

    def run(self) -> int:
        fetch(self.name, self.folder or Path("data") / self.name, self.source)
        return 0


@dataclass(frozen=True)
class Train:
    """Train a detector on a data set in COCO format. Everything that comes of it goes into one folder.

    The folder gets metrics.jsonl, curves.png, predictions.png, best.safetensors, last.safetensors, checkpoints and
    TensorBoard files. Ctrl-C saves first; the same command with --resume goes on. With several GPUs:
    torchrun --nproc-per-node 4 -m minidet train ...
    """

    data: Positional[Path]  # holds annotations/instances_{split}.json and the pictures in {split}/
    model: ModelName = "yolox-nano"  # which detector
    recipe: RecipeName = "course"  # "course": small data, minutes; "yolox" and "yolof": as published, days
    out: Path | None = None  # the run's folder; by default runs/MODEL-DATA
    weights: Path | None = None  # start from these weights (.safetensors); other classes than theirs are learned anew
    backbone_weights: str | None = None
    """YOLOF: start the backbone from ImageNet: "imagenet" (torchvision downloads them once), or a file in
    torchvision's names (.pth, .safetensors)."""
    caffe: bool = False  # that file is of Caffe's ResNet, the published YOLOF's; otherwise the network is torchvision's
    resume: bool = False  # go on from the newest checkpoint in the run's folder
    input_size: tuple[int, int] | None = None
    """Height and width of the network input, multiples of 32; of a yolof that resizes by the shorter side, instead that
    side and the longest that the other may be."""
    epochs: int | None = None  # passes over the training pictures, instead of the recipe's
    batch_size: Annotated[int | Literal["auto"] | None, arg(aliases=["--batch"])] = None
    """Pictures a step over all processes, instead of the recipe's; the learning rate follows, in recipe yolof warm-up
    and length too. "auto": the largest that fits into memory."""
    accumulate: int = 1  # compute each batch in so many parts, one after the other: less memory, the same step
    sync_batch_norm: bool = False  # with torchrun: batch normalisation looks at the pictures of all processes
    set: tuple[str, ...] = ()
    """Other fields of the recipe, such as base_lr=0.02 multi_scale=[320,640] augmentation.mosaic_prob=0."""
    assigner: AssignerName | None = None  # who learns what, instead of the model's own rule
    head: Literal["decoupled", "coupled"] | None = None  # YOLOX: "coupled" is YOLOv3's, one branch for class and box
    rung: RungName | None = None
    """YOLOX: a step of the paper's road map from YOLOv3 ("baseline") to a detector without NMS ("nms-free"): head,
    anchors (found by k-means on these data), assignment and augmentation (the published one, below the third step flips
    and colours only). --assigner, --head and --set go before it."""
    train_split: str = "train"  # learn from this split
    val_split: str = "val"  # be judged by this one; "" for none
    seed: int = 0  # of weights, order and augmentation
    device: str = "auto"  # cpu, cuda, mps
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the network; losses are always float32
    cache: Cache = "auto"  # where decoded pictures are kept: "ram", "disk", "none", or the first that there is room for
    bad_images: BadImages = "stop"  # a picture that cannot be read: "skip" takes another one and counts
    compile: bool = False  # let torch.compile make the model faster; the first steps then take minutes
    deterministic: bool = False  # on a GPU too, the same seed gives the same bits; slower
    workers: int | None = None  # processes that prepare pictures
    threads: int | None = None  # CPU threads; by default as many as torch chooses

    def run(self) -> int:
        result = self.train()
        if result.interrupted:
            return EXIT_CODE + result.stopped_by
        if result.evaluation is not None:
            print(result.evaluation.table())
        print(f"\n{result.run_dir}: curves.png, predictions.png, best.safetensors, metrics.jsonl")
        return 0

    def train(self) -> TrainingResult:
        if self.threads is not None:
            torch.set_num_threads(_within("threads", self.threads, 1, MOST_PROCESSES))
        _within("seed", self.seed, 0, 2**63 - 1)
        if self.workers is not None:
            _within("workers", self.workers, 0, MOST_PROCESSES)
        train_data = load_split(self.data, self.train_split)
        val_data = load_split(self.data, self.val_split) if self.val_split else None
        torch.manual_seed(self.seed)
        random.seed(self.seed)  # nothing here draws from it, but its state stands in every checkpoint
        model = self.make_model(train_data)
        auto_batch = self.batch_size == "auto"
        changes = {"epochs": self.epochs, "batch_size": None if auto_batch else self.batch_size}
        recipe = recipe_for(self.recipe, self.model)
        if self.rung is not None:
            strong = roadmap(model.input_hw)[self.rung].strong_augmentation
            recipe = dataclasses.replace(recipe, augmentation=None if strong else FLIP_AND_COLOUR)
        recipe = dataclasses.replace(recipe, **{k: v for k, v in changes.items() if v is not None})
        return train(
            model,
            change_recipe(recipe, self.set, model),
            train_data,
            val_data,
            self.out or Path("runs") / f"{self.model}-{self.data.resolve().name}",
            device=self.device,
            precision=self.precision,
            resume=self.resume,
            seed=self.seed,
            workers=self.workers,
            auto_batch=auto_batch,
            accumulate=self.accumulate,
            sync_batch_norm=self.sync_batch_norm,
            deterministic=self.deterministic,
            compiled=self.compile,
            cache=self.cache,
            bad_images=self.bad_images,
        )

    def make_model(self, data: CocoDataset) -> Detector:
        changes: dict[str, Any] = {"class_names": data.class_names}
        if self.input_size is not None:
            changes["input_hw"] = self.input_size
        if self.rung is not None:
            if is_yolof(self.model):
                raise MinidetError(f"--rung {self.rung}: it is a step on the way to YOLOX, and {self.model} is none")
            input_hw = self.input_size or model_card(self.model).input_hw
            rungs = roadmap(input_hw)
            if "anchors" in rungs[self.rung].changes:
                rungs = roadmap(input_hw, find_anchors(data, input_hw))
            changes |= rungs[self.rung].changes
        if self.assigner is not None:
            changes["assigner"] = ASSIGNERS[self.assigner]
        if self.head is not None:
            changes["head"] = self.head
        if self.backbone_weights is not None and not is_yolof(self.model):
            raise MinidetError(f"--backbone-weights: they are for YOLOF's ResNets, and {self.model} has none")
        if self.caffe and self.backbone_weights is None:
            raise MinidetError("--caffe: it says what the file of --backbone-weights is; name that file too")
        if self.backbone_weights is not None and not self.caffe:
            changes |= {"stride_in_1x1": False, "pixel_std": IMAGENET_STD}
        model = create_model(self.model, len(data.class_names), **changes)
        if self.backbone_weights is not None:
            load_backbone_weights(model, self.backbone_weights, self.caffe)
            print(f"backbone from {self.backbone_weights}")
        if self.weights is not None:
            left_out = transfer_weights(load_model(self.weights), model, str(self.weights))
            note = f"; {len(left_out)} tensors of the class predictors start anew" if left_out else ""
            print(f"weights from {self.weights}{note}")
        return model


@dataclass(frozen=True)
class Ablate:
    """Train a detector with one part changed at a time, everything else equal, and compare: table, figures and plot.

    `minidet ablate yolox DATA` climbs the road map of the YOLOX paper, from YOLOv3 to a detector without NMS.

    Every cell has as many epochs, and as many runs as there are seeds. The same command goes on where it was stopped;
    with more seeds or another grid it adds to what is there.
    """

    family: Positional[FamilyName]  # whose parts
    data: Positional[Path]  # holds annotations/instances_{split}.json and the pictures in {split}/
    grid: GridName | None = None
    """yolof: "components" (the default; dilated encoder and uniform matching, without, one, the other, both),
    "encoders" (MiMo, SiMo, MiSo and SiSo under RetinaNet's head and rule). yolox: "roadmap" (the default; the paper's
    Table 2), "heads" (Table 1), "augmentation" (Table 5), "assignment" (one cell, 3 x 3, SimOTA, OTA), "nms-free"
    (selector, stop-gradient and one-to-one matching, with and without). Both: "all"."""
    seeds: tuple[int, ...] = (0, 1, 2)  # one run each in every cell
    epochs: int | None = None  # passes over the training pictures, instead of the recipe's
    model: ModelName | None = None  # which variant; by default yolof-r18-c5 or yolox-nano
    out: Path | None = None  # where runs, table.md, results.json and ablation.png go; by default runs/ablation-FAMILY
    input_size: tuple[int, int] | None = None  # height and width of the network input
    width: float | None = None  # instead of the model's: yolof channels of encoder and head, yolox a factor
    depth: float | None = None  # yolox: a factor of the layers, instead of the model's
    batch_size: int | None = None  # pictures a step, instead of the recipe's
    set: tuple[str, ...] = ()  # other fields of the recipe, as for train
    train_split: str = "train"  # learn from this split
    val_split: str = "val"  # be judged by this one
    device: str = "auto"  # cpu, cuda, mps
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the network; losses are always float32
    workers: int | None = None  # processes that prepare pictures
    threads: int | None = None  # CPU threads; by default as many as torch chooses

    def run(self) -> int:
        if self.threads is not None:
            torch.set_num_threads(_within("threads", self.threads, 1, MOST_PROCESSES))
        if self.workers is not None:
            _within("workers", self.workers, 0, MOST_PROCESSES)
        for seed in self.seeds:
            _within("seeds", seed, 0, 2**63 - 1)
        grids = FAMILIES[self.family]
        if self.grid not in (None, "all", *grids):
            raise MinidetError(f"--grid {self.grid}: those of a {self.family} are {', '.join(grids)} and all")
        name = self.model or DEFAULT_OF_FAMILY[self.family]
        if not name.startswith(self.family):
            raise MinidetError(f"--model {name}: the parts of a {self.family} are changed, so name one of those")
        width = int(self.width) if is_yolof(name) and self.width and self.width.is_integer() else self.width
        given = {"input_hw": self.input_size, "width": width, "depth": self.depth}
        changes = {key: value for key, value in given.items() if value is not None}
        model = create_model(name, **changes)
        if not all(parameter.requires_grad for parameter in model.parameters()):
            raise MinidetError(
                f"--model {name}: parts of it are frozen, so it needs pretrained weights, but all cells of an "
                "ablation learn from scratch. yolof-r18-c5 can."
            )
        budget = {"epochs": self.epochs, "batch_size": self.batch_size}
        budget = {name: value for name, value in budget.items() if value is not None}
        recipe = dataclasses.replace(recipe_for("course", name), **budget)
        train_data = load_split(self.data, self.train_split)
        if is_yolof(name):
            ablations = YOLOF_ABLATIONS
        else:
            if any(setting.startswith("augmentation.") for setting in self.set):
                raise MinidetError(
                    "--set augmentation: it is one of the things that these cells differ in, so it cannot be set for "
                    "all of them"
                )
            recipe = dataclasses.replace(recipe, augmentation=FLIP_AND_COLOUR)
            ablations = yolox_ablations(model.input_hw)
            names = grids if self.grid == "all" else [self.grid or grids[0]]
            if any("anchors" in cell.changes for name in names for cell in ablations[name].cells):
                anchors = find_anchors(train_data, model.input_hw)
                print(f"anchors by k-means, pixels: {', '.join(f'{w:g} x {h:g}' for w, h in anchors)}")
                ablations = yolox_ablations(model.input_hw, anchors)
        study = Study(
            model=name,
            recipe=change_recipe(recipe, self.set, model),
            train_data=train_data,
            val_data=load_split(self.data, self.val_split),
            out=self.out or Path(f"runs/ablation-{self.family}"),
            changes=changes,
            device=self.device,
            precision=self.precision,
            workers=self.workers,
        )
        names = grids if self.grid == "all" else [self.grid or grids[0]]
        result = ablate(study, ablations, names, self.seeds)
        if result.interrupted:
            return INTERRUPTED
        print(f"\n{format_table(result.results)}\n{study.out}: table.md, results.json, ablation.png")
        for text in result.failures:
            print(f"failed: {text}", file=sys.stderr)
        return DEFECTS_FOUND if result.failures else 0


@dataclass(frozen=True)
class Grade:
    """Check that run folders, as a class hands them in, are whole and honest runs: a line each, and what is wrong.

    Looks for missing, doubled and impossible lines of metrics.jsonl; steps and learning rates that are not the
    recipe's; weights that do not load, are not of the model in config.json or (with --data) do not reach the AP that is
    claimed; other data than those given out; and folders that hold the same. Interrupted and resumed runs are fine.
    Exits with 1 when there are findings.

    It cannot see everything: not who trained a run, unless the other folder is handed in too; not losses or an AP in
    between that were changed to others that could be; not figures made up with care to fit made-up weights; not a
    training on validation pictures that hides it. The same command and seed on like processors gives equal numbers, so
    give everybody a --seed of their own. Nothing in a folder is run: checkpoints are not even opened.
    """

    runs: Positional[tuple[Path, ...]]  # the folders of `minidet train`
    data: Path | None = (
        None  # the data set that was given out: compare, and measure AP anew; without, AP is taken on trust
    )
    train_split: str = "train"  # learned from this split of it; "" to compare none
    val_split: str = "val"  # judged by this one
    require: tuple[str, ...] = ()
    """Settings that must be there, such as model=yolox-nano epochs=20 recipe.base_lr=0.16: any key of config.json."""
    min_ap: float | None = None  # lowest AP, from 0 to 1, of the best epoch; measured, or without --data claimed
    min_ap50: float | None = None  # likewise at IoU 0.50
    tolerance: float = 0.005
    """By how much a measured AP may differ from the claimed one; another processor changes its last digits."""
    device: str = "auto"  # where AP is measured: cpu, cuda, mps
    json: Path | None = None  # also write all figures and findings as JSON
    csv: Path | None = None  # also write a mark list for a spreadsheet

    def run(self) -> int:
        require = parse_requirements(self.require)
        if not self.runs:
            raise MinidetError("name at least one run folder, before the options")
        rules = Rules(
            train_data=load_split(self.data, self.train_split) if self.data and self.train_split else None,
            val_data=load_split(self.data, self.val_split) if self.data else None,
            require=require,
            min_ap=self.min_ap,
            min_ap50=self.min_ap50,
            tolerance=self.tolerance,
            device=choose_device(self.device),
            progress=sys.stderr.isatty(),
        )
        graded = grade(self.runs, rules, log=lambda line: print(line, file=sys.stderr))
        print(format_grades(graded))
        if self.data is None:
            print("AP was not measured and the data were not compared: give --data.")
        if self.json is not None:
            write_json(self.json, [run.to_dict() for run in graded], indent=2)
        if self.csv is not None:
            with atomic_write(self.csv) as file:
                file.write(mark_list(graded))
        return DEFECTS_FOUND if any(run.findings for run in graded) else 0


@dataclass(frozen=True)
class Eval:
    """COCO's average precision, whole, by size and by class.

    Either of a model on a data set (--weights and --data), or of detections in COCO's result format against annotations
    (--detections and --annotations).
    """

    weights: Path | None = None  # .safetensors
    data: Path | None = None  # holds annotations/instances_{split}.json and the pictures in {split}/
    split: str = "val"  # which split of it
    detections: Path | None = None  # JSON list of {"image_id", "category_id", "bbox": [x, y, w, h], "score"}
    annotations: Path | None = None  # COCO JSON
    save_detections: Path | None = None  # also write what the model found, as such a list
    save_json: Path | None = None  # also write the figures as JSON
    score_threshold: float | None = None  # what scores less is left out, instead of the model's own (as published)
    nms_threshold: float | Literal["off"] | None = None
    """Boxes that overlap a better one of their class by more go; likewise. "off": the best 100 boxes as they are."""
    input_size: tuple[int, int] | None = None  # height and width, instead of the model's own
    batch_size: int = 8  # pictures at a time
    device: str = "auto"  # cpu, cuda, mps
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the network; the short ones are faster, and less exact

    def run(self) -> int:
        if self.weights and self.data and not (self.detections or self.annotations):
            result = self.of_model(self.weights, self.data)
        elif self.detections and self.annotations and not (self.weights or self.data):
            result = evaluate_detections(self.annotations, self.detections)
        else:
            raise MinidetError("give either --weights and --data, or --detections and --annotations")
        print(result.table())
        if self.save_json:
            write_json(self.save_json, result.to_dict(), indent=2)
        return 0

    def of_model(self, weights: Path, folder: Path) -> AveragePrecision:
        dataset = load_split(folder, self.split)
        device = choose_device(self.device)
        model = optimize(load_model(weights, device), choose_precision(self.precision, device))
        _set_up(model, self.score_threshold, self.nms_threshold, self.input_size)
        batch_size, workers = _positive("batch-size", self.batch_size), evaluation_workers(device)
        if self.save_detections is None:
            return evaluate(model, dataset, batch_size, workers=workers)
        rows = predict_dataset(model, dataset, batch_size, workers=workers)
        write_json(self.save_detections, rows)
        return evaluate_detections(dataset.annotations_path, rows)


@dataclass(frozen=True)
class Predict:
    """Find objects in images and folders of images; write pictures with boxes, and all boxes as JSON."""

    images: Positional[tuple[Path, ...]]  # files and folders
    weights: Path  # .safetensors
    out: Path = Path("predictions")  # gets NAME.png for each image, and predictions.json
    score_threshold: float = 0.3  # what scores less is left out
    nms_threshold: float | Literal["off"] | None = None
    """Boxes that overlap a better one by more go: 0.45, but a model without NMS stays without. "off": none go."""
    class_agnostic: bool = True  # also those of another class
    input_size: tuple[int, int] | None = None  # height and width, instead of the model's own
    pictures: bool = True  # write the pictures, not only the JSON
    device: str = "auto"  # cpu, cuda, mps
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the network; the short ones are faster, and less exact

    def run(self) -> int:
        from minidet.draw import describe_detections, draw_detections, save_figure  # matplotlib loads slowly

        files = find_images(self.images)
        device = choose_device(self.device)
        model = optimize(load_model(self.weights, device), choose_precision(self.precision, device))
        nms_threshold = self.nms_threshold
        if nms_threshold is None and model.nms_threshold is not None:
            nms_threshold = 0.45
        _set_up(model, self.score_threshold, nms_threshold, self.input_size)
        model.class_agnostic = self.class_agnostic
        names = model.class_names or [f"class {i}" for i in range(model.num_classes)]
        results, unreadable = [], []
        for file, picture_name in zip(files, picture_names(files), strict=True):
            try:
                image = read_image(file)
            except DataError as error:  # one bad file does not spoil the others
                unreadable.append(str(error))
                continue
            with torch.inference_mode():
                (found,) = model([image])
            found = {key: value.cpu() for key, value in found.items()}
            if self.pictures:
                figure = draw_detections(image, found["boxes"], found["labels"], found["scores"], names)
                save_figure(figure, self.out / picture_name)
            print(f"{file}: {describe_detections(found['labels'], found['scores'], names)}")
            results.append(
                {
                    "file": str(file),
                    "height": image.shape[1],
                    "width": image.shape[2],
                    "detections": [
                        {"label": names[label], "score": round(score, 6), "box_xyxy": [round(x, 3) for x in box]}
                        for box, score, label in zip(
                            found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
                        )
                    ],
                }
            )
        write_json(self.out / "predictions.json", results, indent=1)
        print(f"\n{self.out}: {len(results)} images, predictions.json")
        for text in unreadable:
            print(f"left out: {text}", file=sys.stderr)
        return DEFECTS_FOUND if unreadable else 0


@dataclass(frozen=True)
class Bench:
    """Measure how fast a detector is on this machine: network, post-processing, assignment, training step, loader.

    Prints a table with the hardware. Nothing else should run meanwhile.
    """

    model: Positional[ModelName] = "yolox-s"  # which detector
    parts: tuple[PartName, ...] = PARTS  # what to measure
    input_size: tuple[int, int] | None = None  # height and width of the network input, instead of the model's own
    batch_size: int = 1  # images at a time
    objects: int = 20  # ground truths an image
    compile: bool = True  # also measure torch.compile, which takes a minute or so before
    seconds: float = 3.0  # about so long each row is measured
    data: Path | None = None  # folder in COCO format for the loader; by default pictures of 480 x 640 are drawn
    split: str = "train"  # of that folder
    workers: int = 0  # processes of the loader; 0 for this one
    device: str = "auto"  # cpu, cuda, mps
    threads: int | None = None  # CPU threads; by default as many as torch chooses
    out: Path | None = None  # also write the figures as JSON

    def run(self) -> int:
        if self.threads is not None:
            torch.set_num_threads(_positive("threads", self.threads))
        setting = Setting(
            self.model,
            self.input_size,
            self.batch_size,
            self.objects,
            self.device,
            self.compile,
            self.seconds,
            self.workers,
            self.data,
            self.split,
        )
        report = bench(setting, self.parts, log=lambda line: print(line, file=sys.stderr))
        print(report.table())
        if self.out is not None:
            write_json(self.out, report.to_dict(), indent=2)
        return 0


@dataclass(frozen=True)
class ImportOfficial:
    """Turn a published YOLOX or YOLOF checkpoint (.pth, .pkl) into weights of minidet (.safetensors).

    The published files are linked in the READMEs of Megvii-BaseDetection/YOLOX, chensnathan/YOLOF and MMDetection. Only
    tensors, numbers and text are read.
    """

    model: Positional[ModelName]  # which variant the checkpoint is
    checkpoint: Positional[Path]  # such as yolox_s.pth
    out: Path | None = None  # by default the same name with .safetensors
    legacy: bool = False  # YOLOX weights of release 0.1.0 (July 2021), trained on normalised images
    class_names: tuple[str, ...] = ()  # names of the classes; for 80 classes COCO's, by default

    def run(self) -> int:
        if self.checkpoint.is_dir():
            raise MinidetError(f"{self.checkpoint}: is a folder; name the checkpoint file in it")
        out = self.out or self.checkpoint.with_suffix(".safetensors")
        if out.resolve() == self.checkpoint.resolve():
            raise MinidetError(f"{out} would replace the checkpoint that it is made from; give another path with --out")
        model = load_official(self.model, self.checkpoint, self.legacy, list(self.class_names) or None)
        save_weights(model, out)
        print(f"{out}: {self.model}, {model.num_classes} classes")
        return 0


@dataclass(frozen=True)
class Demo:
    """Draw the shapes data set and train a yolox-nano on it: some minutes on a laptop, without a network.

    Run it again to go on after Ctrl-C, or to see the result once more.
    """

    data: Path = Path("data/shapes")  # where the pictures go
    out: Path = Path("runs/demo")  # where the run goes
    epochs: int = 20  # passes over the 600 training pictures
    device: str = "auto"  # cpu, cuda, mps

    def run(self) -> int:
        make_shapes(self.data)
        resume = (self.out / "config.json").exists()
        command = Train(self.data, out=self.out, resume=resume, epochs=self.epochs, device=self.device, **DEMO_SETTINGS)
        result = command.train()
        if result.interrupted:
            return EXIT_CODE + result.stopped_by
        best = self.out / "best.safetensors"
        judged = result.evaluation or evaluate(load_model(best), load_split(self.data, "val"), progress=False)
        print(judged.table())
        print(
            f"""
Look at {self.out / "predictions.png"}: what your detector finds in pictures it was not trained on (dashed: the truth).
        {self.out / "curves.png"}: how it got there.

What next?
  minidet predict {self.data / "test"} --weights {best}          find objects in other pictures
  minidet eval --weights {best} --data {self.data} --split test   judge it on pictures nobody tuned it on
  make lab                                                        open chapter 00, the start of the course"""
        )
        return 0


# Drawn pictures have colours and places enough: augmentation would only slow so short a training down.
DEMO_SETTINGS: dict[str, Any] = {
    "input_size": (192, 256),
    "batch_size": 4,
    "set": ("base_lr=0.32", "final_epochs=3", "augmentation.affine_prob=0", "augmentation.hsv_prob=0"),
}


@dataclass(frozen=True)
class Data:
    """Make, fetch or check data sets."""

    command: (
        Annotated[Shapes, subcommand("shapes", prefix_name=False)]
        | Annotated[Fetch, subcommand("fetch", prefix_name=False)]
        | Annotated[Check, subcommand("check", prefix_name=False)]
    )

    def run(self) -> int:
        return self.command.run()


Command = (
    Annotated[Models, subcommand("models")]
    | Annotated[Data, subcommand("data")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Ablate, subcommand("ablate")]
    | Annotated[Grade, subcommand("grade")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Predict, subcommand("predict")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[ImportOfficial, subcommand("import-official")]
    | Annotated[Demo, subcommand("demo")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; errors that a user can mend are one clear text and exit code 2."""
    try:
        command = tyro.cli(
            Command,
            prog="minidet",
            description="YOLOF and YOLOX object detectors, small enough to read: train, judge and use them.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        with contextlib.ExitStack() as silence:
            if launched_ranks().rank > 0:  # of several processes, the first one speaks for all
                silence.enter_context(contextlib.redirect_stdout(silence.enter_context(open(os.devnull, "w"))))
            return command.run()
    except MinidetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `minidet models | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return BROKEN_PIPE
    except OSError as error:  # of the many calls that ask about a path
        print(
            f"error: {error.filename or 'the system'}: {error.strerror or error}. Check the path and its rights.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as stop:
        print("\nstopped", file=sys.stderr)
        return EXIT_CODE + (stop.number if isinstance(stop, StopNow) else signal.SIGINT)


def change_recipe(recipe: Recipe, settings: tuple[str, ...], model: Detector) -> Recipe:
    """A recipe with fields changed by texts such as "base_lr=0.02" or "augmentation.flip_prob=0".

    Raises:
        RunError: a text is not of this form, or there is no such field.
    """
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise RunError(f"--set {setting}: write FIELD=VALUE, such as base_lr=0.02")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if isinstance(value, list):
            value = tuple(value)
        if name.startswith("augmentation."):
            augmentation = recipe.resolved(model.name, model.input_hw).augmentation
            changed = _replace(augmentation, name.removeprefix("augmentation."), value, setting)
            recipe = dataclasses.replace(recipe, augmentation=changed)
        else:
            recipe = _replace(recipe, name, value, setting)
    return recipe


def find_anchors(data: CocoDataset, input_hw: tuple[int, int]) -> Anchors:
    """Nine anchors for a data set, smallest first, in whole pixels of the network input."""
    found = kmeans_anchors(box_sizes(data, input_hw))
    whole = [(float(max(round(width), 1)), float(max(round(height), 1))) for width, height in found.tolist()]
    return tuple(sorted(whole, key=math.prod))  # rounding may have changed the order of their areas


def _replace(config: Any, name: str, value: Any, setting: str) -> Any:
    names = [field.name for field in dataclasses.fields(config)]
    if name not in names:
        raise RunError(f"--set {setting}: there is no such field. There are {', '.join(names)}.")
    try:
        return dataclasses.replace(config, **{name: value})
    except TypeError as error:
        now = getattr(config, name)
        raise RunError(f"--set {setting}: this is not a value for {name}, which is {now!r} now.") from error


def find_images(paths: tuple[Path, ...]) -> list[Path]:
    """Image files among `paths`; a folder stands for all images directly in it, in the order of their names."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
            if not inside:
                raise DataError(f"{path}: there are no images in this folder ({', '.join(PICTURES)}).")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path}: there is no such file or folder.")
    if not files:
        raise DataError("name at least one image, or a folder of images")
    return files


def picture_names(files: list[Path]) -> list[str]:
    """A name for each file's picture; two files of the same name get numbers, so that none overwrites another."""
    names, taken = [], set()
    for file in files:
        name, number = f"{file.stem}.png", 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}.png"
        taken.add(name)
        names.append(name)
    return names


def _set_up(
    model: Detector,
    score_threshold: float | None,
    nms_threshold: float | Literal["off"] | None,
    input_hw: tuple[int, int] | None,
) -> None:
    if nms_threshold == "off":
        model.nms_threshold, model.max_detections, nms_threshold = None, model.max_detections or SELECTED, None
    for name, value in (("score_threshold", score_threshold), ("nms_threshold", nms_threshold)):
        if value is None:
            continue
        if not 0 <= value <= 1:
            raise MinidetError(f"--{name.replace('_', '-')} is {value}; it lies between 0 and 1")
        setattr(model, name, value)
    if input_hw is not None:
        model.set_input_size(input_hw)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise MinidetError(f"--{name} is {value}; it is at least 1")
    return value


def _within(name: str, value: int, lowest: int, highest: int) -> int:
    if not lowest <= value <= highest:
        raise MinidetError(f"--{name} is {value}; it lies between {lowest} and {highest}")
    return value
