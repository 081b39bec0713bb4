"""What there is to measure of a detector, and how: network, training step, assignment, loader, post-processing.

Everything runs on made-up input of the right size: its content changes little, but for the number of objects and of
boxes that pass the score threshold, which the rows name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from minidet.assign import DensePredictions
from minidet.data.coco import CocoDataset, load_split
from minidet.data.loader import training_loader
from minidet.data.shapes import ShapesConfig, make_shapes
from minidet.detectors import Detector, create_model, optimize
from minidet.detectors.optimize import PRECISIONS
from minidet.errors import MinidetError
from minidet.evaluation.speed import count_gflops
from minidet.evaluation.timing import Timing, peak_gflops, time_in_turn
from minidet.training.ema import Ema
from minidet.training.hardware import choose_device, choose_precision, describe_hardware
from minidet.training.recipe import make_optimizer, recipe_for
from minidet.training.state import TrainingState
from minidet.training.step import training_step

PartName = Literal["inference", "postprocessing", "assignment", "step", "loader"]
PARTS: tuple[PartName, ...] = get_args(PartName)


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        model: one of `list_models()`.
        input_hw: (height, width) of the network input; None: the model's own.
        batch_size: images a batch.
        objects: ground truths an image.
        device: where; "auto" takes CUDA before MPS before the CPU.
        compile: also measure `torch.compile`, which takes a minute or so before.
        seconds: about so long each row is measured.
        workers: processes of the loader.
        data: a folder in COCO format for the loader; None: 64 drawn pictures of 480 x 640.
        split: of that folder.
    """

    model: str = "yolox-s"
    input_hw: tuple[int, int] | None = None
    batch_size: int = 1
    objects: int = 20
    device: str = "auto"
    compile: bool = True
    seconds: float = 3.0
    workers: int = 0
    data: Path | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("objects", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise MinidetError(f"{name} is {getattr(self, name)}; it is at least {least}")
        if not 0 < self.seconds < float("inf"):
            raise MinidetError(f"seconds is {self.seconds}; measure each row for some time, such as 3")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        part: which part of the work.
        what: in which form.
        timing: of one batch; None where it could not be measured.
        images_per_second: that is the batch size by the time.
        gflops_per_second: operations of the convolutions by the time, a multiply and an add are two; a training step
            counts as three passes. None where no network runs.
        share_of_peak: of the most that this machine was seen to do in this precision.
        note: what else there is to know.
    """

    part: PartName
    what: str
    timing: Timing | None
    images_per_second: float | None = None
    gflops_per_second: float | None = None
    share_of_peak: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """All figures of one run, with what they were measured on."""

    setting: Setting
    input_hw: tuple[int, int]
    hardware: dict[str, Any]
    peak_gflops: dict[str, float]  # by precision
    rows: tuple[Row, ...]

    def table(self) -> str:
        """The result as aligned plain text."""
        height, width = self.input_hw
        hardware, cores = self.hardware, self.hardware["cpu_cores"]
        lines = [
            f"{self.setting.model}, batch {self.setting.batch_size}, {height} x {width}, "
            f"{self.setting.objects} objects an image",
            f"{hardware['name']}, {hardware['device']}, {hardware['threads']} threads of {cores} cores, "
            f"torch {hardware['torch']}",
            "",
            f"{'part':<16}{'':<24}{'ms':>9}{'fastest':>9}{'images/s':>10}{'GFLOP/s':>9}{'of peak':>9}{'MiB':>8}",
        ]
        for row in self.rows:
            line = f"{row.part:<16}{row.what:<24}"
            if row.timing is not None:
                line += f"{row.timing.ms:>9.2f}{row.timing.fastest_ms:>9.2f}{row.images_per_second:>10.1f}"
                line += _column(row.gflops_per_second, 9, "{:.0f}") + _column(row.share_of_peak, 9, "{:.0%}")
                line += _column(row.timing.memory_mib, 8, "{:.0f}")
            lines.append(f"{line}  {row.note}".rstrip())
        peaks = ", ".join(f"{name} {value:,.0f}" for name, value in self.peak_gflops.items())
        lines += ["", f"ms: median of the turns. Peak: the most GFLOP/s that this machine was seen to do, {peaks}."]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        result = asdict(self)
        result["setting"]["data"] = None if self.setting.data is None else str(self.setting.data)
        return result


def _column(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else form.format(value):>{width}}"


def bench(
    setting: Setting, parts: Sequence[PartName] = PARTS, log: Callable[[str], None] = lambda line: None
) -> Report:
    """Measure the parts of a detector's work on this machine.

    Args:
        setting: which detector, which sizes, where.
        parts: which parts; all by default.
        log: is told what is measured next.

    Raises:
        MinidetError: the setting is not possible here.
    """
    device = choose_device(setting.device)
    torch.manual_seed(0)
    changes = {} if setting.input_hw is None else {"input_hw": tuple(setting.input_hw)}
    model = create_model(setting.model, **changes).to(device)
    if device.type != "mps":
        model.to(memory_format=torch.channels_last)
    precisions = [name for name in PRECISIONS if _possible(name, device)]
    peaks = {name: peak_gflops(device, PRECISIONS[name]) for name in precisions}
    measure = {
        "inference": _inference,
        "postprocessing": _postprocessing,
        "assignment": _assignment,
        "step": _step,
        "loader": _loader,
    }
    rows: list[Row] = []
    for part in parts:
        log(f"measuring {part}")
        for row in measure[part](setting, model, precisions):
            rows.append(_with_rates(row, setting, model, peaks))
    hardware = {**describe_hardware(device), "torch": torch.__version__}
    return Report(setting, model.input_hw, hardware, peaks, tuple(rows))


def _possible(precision: str, device: torch.device) -> bool:
    try:
        return choose_precision(precision, device) == precision
    except MinidetError:
        return False


def _with_rates(row: Row, setting: Setting, model: Detector, peaks: dict[str, float]) -> Row:
    if row.timing is None:
        return row
    row = replace(row, images_per_second=1000 * setting.batch_size / row.timing.ms)
    passes = {"inference": 1, "step": 3}.get(row.part)  # the backward pass is two: for the input and for the weights
    if passes is None or not all(each.requires_grad for each in model.parameters()):
        return row
    rate = passes * count_gflops(model) * row.images_per_second
    return replace(row, gflops_per_second=rate, share_of_peak=rate / peaks[row.what.split()[-1]])


def _inference(setting: Setting, model: Detector, precisions: list[str]) -> Iterator[Row]:
    """The network and the decoding of its boxes: `model.dense`."""
    images = random_images(setting.batch_size, model)
    model = model.eval()
    tasks: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        tasks["as trained, fp32"] = lambda: model.dense(images)
        for precision in precisions:
            tasks[f"optimized, {precision}"] = _dense(optimize(model, precision), images)
        failures: dict[str, str] = {}
        for precision in precisions if setting.compile else ():
            name, task = f"compiled, {precision}", _dense(optimize(model, precision, compile=True), images)
            try:
                task()
                tasks[name] = task
            except MinidetError as error:
                failures[name] = str(error)
        timings = time_in_turn(tasks, model.device, setting.seconds)
    yield from (Row("inference", name, timing) for name, timing in timings.items())
    yield from (Row("inference", name, None, note=reason) for name, reason in failures.items())


def _dense(model: Detector, images: Tensor) -> Callable[[], object]:
    return lambda: model.dense(images)


def _postprocessing(setting: Setting, model: Detector, precisions: list[str]) -> Iterator[Row]:
    """From dense predictions to detections in the picture, at the model's own score threshold and at 0.3."""
    predictions = crowded_predictions(setting.batch_size, setting.objects, model)
    sizes, scales = [model.input_hw] * setting.batch_size, [(1.0, 1.0)] * setting.batch_size
    usual = model.score_threshold
    for threshold in (usual, 0.3):
        model.score_threshold = threshold

        def task() -> list[dict[str, Tensor]]:
            return model.select(predictions).in_pictures(sizes, scales).per_image(setting.batch_size)

        with torch.inference_mode():
            (timing,) = time_in_turn({"": task}, model.device, setting.seconds).values()
            kept = sum(len(found["scores"]) for found in task())
        candidates = int((predictions.class_scores().amax(dim=2) >= threshold).sum())
        note = f"{candidates} slots pass, {kept} boxes stay"
        yield Row("postprocessing", f"scores from {threshold:g}", timing, note=note)
    model.score_threshold = usual


def _assignment(setting: Setting, model: Detector, precisions: list[str]) -> Iterator[Row]:
    """Who learns what, from the predictions of a fresh model."""
    images, targets = random_images(setting.batch_size, model), random_targets(setting, model)
    gt = model.ground_truth(images, targets)
    with torch.no_grad():
        predictions = model.eval().dense(images)
        task = {"": lambda: model.assign_of(predictions, gt, trace=False)}
        (timing,) = time_in_turn(task, model.device, setting.seconds).values()
    yield Row("assignment", type(model.config.assigner).__name__, timing)


def _step(setting: Setting, model: Detector, precisions: list[str]) -> Iterator[Row]:
    """Forward, assignment, losses, backward, optimiser, moving average."""
    images, targets = random_images(setting.batch_size, model), random_targets(setting, model)
    recipe = recipe_for("course", setting.model)
    tasks = {}
    for precision in precisions:
        learner = create_model(setting.model, input_hw=model.input_hw).to(model.device).train()
        if model.device.type != "mps":
            learner.to(memory_format=torch.channels_last)
        state = TrainingState(
            model=learner,
            optimizer=make_optimizer(learner, recipe),
            ema=Ema(learner),
            scaler=torch.amp.GradScaler(model.device.type, enabled=precision == "fp16"),
        )
        tasks[precision] = _train(state, images, targets, precision)
    for name, timing in time_in_turn(tasks, model.device, setting.seconds).items():
        yield Row("step", name, timing)


def _train(state: TrainingState, images: Tensor, targets: list[dict], precision: str) -> Callable[[], object]:
    return lambda: training_step(state, images, targets, precision, None, "a step of the benchmark")


def _loader(setting: Setting, model: Detector, precisions: list[str]) -> Iterator[Row]:
    """Training batches with the recipe's augmentation, read from files; decoded pictures may be kept in memory."""
    with tempfile.TemporaryDirectory() as folder:
        if setting.data is None:
            config = ShapesConfig(train=max(64, setting.batch_size), val=0, test=0, image_hw=(480, 640))
            make_shapes(Path(folder) / "shapes", config)
            dataset = load_split(Path(folder) / "shapes", "train")
        else:
            dataset = load_split(setting.data, setting.split)
        yield _loader_row(setting, model, dataset)


def _loader_row(setting: Setting, model: Detector, dataset: CocoDataset) -> Row:
    recipe = recipe_for("course", setting.model).resolved(model.name, model.input_hw)
    loader = training_loader(
        dataset,
        recipe.augmentation,
        model.input_hw,
        setting.batch_size,
        workers=setting.workers,
        pin_memory=model.device.type == "cuda",
        resize=model.resize,
        fill=model.pad_rgb,
    )
    batches = _endless(loader)
    (timing,) = time_in_turn({"": lambda: next(batches)}, torch.device("cpu"), setting.seconds).values()
    where = "this process" if setting.workers == 0 else f"{setting.workers} processes"
    return Row("loader", where, timing, note=f"{len(dataset)} pictures")


def _endless(loader: Any) -> Iterator[Any]:
    epoch = 0
    while True:
        loader.set_epoch(epoch, strong=True)
        yield from loader
        epoch += 1


def random_images(batch_size: int, model: Detector) -> Tensor:
    """Noise as network input, [B, 3, H, W] uint8 on the model's device."""
    return torch.randint(256, (batch_size, 3, *model.input_hw), dtype=torch.uint8, device=model.device)


def random_targets(setting: Setting, model: Detector) -> list[dict[str, Tensor]]:
    """Objects of all sizes from 8 px to a quarter of the input, anywhere in it; on the CPU, as a loader gives them."""
    height, width = model.input_hw
    targets = []
    for _ in range(setting.batch_size):
        sides = 8 * (min(height, width) / 32) ** torch.rand(setting.objects, 2)
        corner = torch.rand(setting.objects, 2) * (torch.tensor([width, height]) - sides)
        labels = torch.randint(model.num_classes, (setting.objects,))
        targets.append({"boxes": torch.cat([corner, corner + sides], dim=1), "labels": labels})
    return targets


def crowded_predictions(batch_size: int, objects: int, model: Detector) -> DensePredictions:
    """What a trained detector might say: around every object some slots that are sure of it, elsewhere low scores.

    The scores of the rest are spread so that a few percent of the slots pass YOLOX's threshold of 0.001.
    """
    with torch.no_grad():
        dense = model.eval().dense(random_images(batch_size, model))
    slots, classes = dense.class_logits.shape[1:]
    boxes, logits = dense.boxes.cpu(), torch.randn(batch_size, slots, classes) - 10
    targets = random_targets(Setting(batch_size=batch_size, objects=objects), model)
    for image, target in enumerate(targets):
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            nearest = torch.randperm(slots)[:25]
            boxes[image, nearest] = box + 0.05 * (box[2:] - box[:2]).repeat(2) * torch.randn(25, 4)
            logits[image, nearest, label] = 3 * torch.randn(25)
    objectness = None if dense.object_logits is None else torch.full((batch_size, slots), 3.0, device=model.device)
    logits = logits.to(model.device)
    return replace(dense, boxes=boxes.to(model.device), class_logits=logits, object_logits=objectness)
