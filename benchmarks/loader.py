"""Augmented training pictures a second, from JPEG files and from memory, and what the time goes into.

    python benchmarks/loader.py --official PATH

Writes JPEG files of 640 x 480 as they are in COCO (drawn from a seed; about 150 KB, seven objects), and makes training
pictures of them by the recipe of yolox-s: mosaic, affine map, MixUp, colour, mirror, 640 x 640. One process, as many
threads as --threads says. PATH is a checkout of Megvii-BaseDetection/YOLOX: then its pipeline runs on the same files in
turn with ours, with as many threads, and the statistics of both are set side by side. What it needs (loguru, tabulate,
thop) must be importable. Nothing else should run on the machine.

    python benchmarks/loader.py --device cuda

measures painting on a GPU: plans from worker processes, pictures kept on the GPU and sent with each batch.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import tyro

from minidet.data import render as render_module
from minidet.data.augment import Augmentation
from minidet.data.coco import CocoDataset
from minidet.data.loader import SampleKey, TrainingSamples, training_loader
from minidet.files import write_json
from minidet.training.hardware import choose_device, choose_workers, describe_hardware

RESULTS = Path(__file__).parent / "results" / "loader.json"
SIZE_HW = (640, 640)
RECIPE = Augmentation()  # the defaults are those of yolox-s
BATCH = 16


@dataclass(frozen=True)
class Options:
    images: int = 128  # files
    samples: int = 256  # training pictures a turn
    turns: int = 3  # of each way, by turns; the median counts
    threads: int = 2
    official: Path | None = None  # a checkout of Megvii-BaseDetection/YOLOX to be measured beside
    device: str = "cpu"  # "cuda" measures painting on a GPU instead
    batch: int = 64  # pictures a batch on a GPU
    compile: bool = False  # of the painting, on a GPU
    out: Path = RESULTS  # where the record goes


# Files like COCO's --------------------------------------------------------------------------------------------------


def draw_picture(rng: np.random.Generator) -> tuple[np.ndarray, list[list[float]]]:
    """[480, 640, 3] with as much detail at every scale as photographs have, and objects on it, as [x, y, w, h]."""
    picture = np.full((480, 640, 3), rng.uniform(60, 190, 3), dtype=np.float32)
    for rows, strength in ((3, 40), (12, 30), (48, 20), (160, 13), (480, 9)):
        noise = rng.normal(0, strength, (rows, rows * 4 // 3, 3)).astype(np.float32)
        noise = noise.mean(axis=2, keepdims=True) + 0.4 * noise  # brightness varies more than colour
        picture += cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    boxes = []
    for _ in range(1 + rng.poisson(6.3)):
        side = np.exp(rng.uniform(np.log(12), np.log(360), 2))  # of COCO's boxes too, small ones are the most
        width, height = (float(min(s, limit)) for s, limit in zip(side, (620, 460), strict=True))
        x, y = float(rng.uniform(0, 640 - width)), float(rng.uniform(0, 480 - height))
        centre, axes = (round(x + width / 2), round(y + height / 2)), (round(width / 2), round(height / 2))
        colour = rng.uniform(0, 255, 3)
        shape = np.zeros((480, 640), dtype=np.uint8)
        cv2.ellipse(shape, centre, axes, 0, 0, 360, 255, -1, cv2.LINE_AA)
        share = (shape / 255 * 0.7)[..., None].astype(np.float32)
        picture += share * (colour - picture)
        boxes.append([x, y, width, height])
    return picture.clip(0, 255).astype(np.uint8), boxes


def write_files(folder: Path, count: int) -> CocoDataset:
    """COCO files, in the layout that the official code reads, too."""
    (folder / "train2017").mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        picture, boxes = draw_picture(np.random.default_rng(number))
        name = f"{number:012}.jpg"
        _, file = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        (folder / "train2017" / name).write_bytes(file.tobytes())
        images.append({"id": number, "file_name": name, "height": 480, "width": 640})
        for x, y, w, h in boxes:
            category = 1 + len(annotations) % 80
            row = {"image_id": number, "category_id": category, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **row})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    path = folder / "annotations" / "instances_train2017.json"
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    return CocoDataset(path, folder / "train2017")


# Our pipeline -------------------------------------------------------------------------------------------------------


def keys(count: int, images: int) -> list[SampleKey]:
    return [SampleKey(number % images, number // images, True) for number in range(count)]


def seconds_of(samples: TrainingSamples, count: int) -> tuple[float, float]:
    """Time for so many training pictures in batches, as training gets them: by the clock, and of all processors."""
    wanted = keys(count, len(samples))
    started = time.perf_counter(), time.process_time()
    for start in range(0, count, BATCH):
        samples.batch(wanted[start : start + BATCH])
    return time.perf_counter() - started[0], time.process_time() - started[1]


def breakdown(samples: TrainingSamples, count: int) -> dict[str, float]:
    """Milliseconds of one thread a training picture, by what they go into."""
    spent = dict.fromkeys(["plan", "decode", "geometry", "blend", "colour"], 0.0)

    def timed(name: str, function: Callable) -> Callable:
        def wrapper(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            spent[name] += time.perf_counter() - started
            return result

        return wrapper

    parts = {"geometry": "paint", "blend": "blend", "colour": "jitter"}
    originals = {part: getattr(render_module, part) for part in parts.values()}
    plan, pictures = samples.planner.plan, samples.pictures
    threads = torch.get_num_threads()
    try:
        for name, part in parts.items():
            setattr(render_module, part, timed(name, originals[part]))
        samples.planner.plan = timed("plan", plan)
        samples.pictures = _Timed(pictures, timed("decode", pictures.__getitem__))
        torch.set_num_threads(1)
        whole, _ = seconds_of(samples, count)
    finally:
        for part, original in originals.items():
            setattr(render_module, part, original)
        samples.planner.plan, samples.pictures = plan, pictures
        torch.set_num_threads(threads)
    rest = whole - sum(spent.values())
    return {name: round(1000 * value / count, 3) for name, value in {**spent, "batch and rest": rest}.items()}


class _Timed:
    def __init__(self, pictures: Any, get: Callable):
        self.errors, self.get = pictures.errors, get

    def __getitem__(self, index: int) -> np.ndarray:
        return self.get(index)


# The official one ---------------------------------------------------------------------------------------------------


def official_datasets(path: Path, folder: Path) -> dict[str, Any]:
    """Its data set as its own experiment file makes it, from files and with its cache."""
    sys.path.insert(0, str(path))
    from yolox.data import COCODataset, MosaicDetection, TrainTransform

    def make(cache: bool) -> Any:
        data = COCODataset(
            data_dir=str(folder),
            json_file="instances_train2017.json",
            img_size=SIZE_HW,
            preproc=TrainTransform(max_labels=50, flip_prob=0.5, hsv_prob=1.0),
            cache=cache,
        )
        return MosaicDetection(
            data,
            mosaic=True,
            img_size=SIZE_HW,
            preproc=TrainTransform(max_labels=120, flip_prob=0.5, hsv_prob=1.0),
            degrees=10.0,
            translate=0.1,
            mosaic_scale=(0.1, 2),
            mixup_scale=(0.5, 1.5),
            shear=2.0,
            enable_mixup=True,
            mosaic_prob=1.0,
            mixup_prob=1.0,
        )

    found = {"disk": make(False)}
    found["ram"] = make(True)  # its cache is a mapped file, which stays in memory after the first turn
    return found


def official_seconds(dataset: Any, count: int, threads: int) -> tuple[float, float]:
    """The same number of pictures in batches of float32, as its loader collates them."""
    wanted = [(True, number % len(dataset)) for number in range(count)]
    started = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, BATCH):
            rows = list(pool.map(dataset.__getitem__, wanted[start : start + BATCH]))
            torch.stack([torch.from_numpy(row[0]) for row in rows])
            torch.stack([torch.from_numpy(row[1]) for row in rows])
    return time.perf_counter() - started[0], time.process_time() - started[1]


# Statistics ---------------------------------------------------------------------------------------------------------


def statistics(images_and_boxes: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, list[float]]:
    """Mean and standard error, over pictures, of what describes them.

    Args:
        images_and_boxes: [3, H, W] red, green, blue from 0 to 255, and boxes [N, 4] xyxy.
    """
    rows = []
    for image, boxes in images_and_boxes:
        sides = boxes[:, 2:] - boxes[:, :2]
        centres = (boxes[:, 2:] + boxes[:, :2]) / 2
        mean = [np.nan, np.nan, np.nan] if len(boxes) == 0 else [np.sqrt(sides.prod(1)).mean(), *centres.mean(0)]
        rows.append([len(boxes), *mean, *image.reshape(3, -1).mean(1), image.std()])
    names = ["boxes", "side of a box", "x of a box", "y of a box", "red", "green", "blue", "spread of colour"]
    values = np.asarray(rows, dtype=np.float64)
    means, errors = np.nanmean(values, axis=0), np.nanstd(values, axis=0) / np.sqrt((~np.isnan(values)).sum(axis=0))
    return {name: [round(m, 3), round(e, 3)] for name, m, e in zip(names, means.tolist(), errors.tolist(), strict=True)}


def ours(make: Callable, count: int, images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for key in keys(count, images):
        image, target = make(key)
        yield image.numpy(), target["boxes"].numpy()


def theirs(dataset: Any, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number in range(count):
        image, labels, _, _ = dataset[(True, number % len(dataset))]
        boxes = labels[labels[:, 3] > 0, 1:]
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        yield image[::-1], corners  # its pictures are blue, green, red


# On a GPU -----------------------------------------------------------------------------------------------------------


def measure_gpu(options: Options, data: CocoDataset) -> dict[str, Any]:
    """Training pictures a second that arrive on a GPU, and milliseconds that painting a batch takes there."""
    from minidet.data import loader as loader_module

    device = choose_device(options.device)
    found: dict[str, Any] = {"compiled": options.compile, "batch": options.batch}
    for kept in ("gpu", "sent"):
        loader_module.SHARE_OF_GPU = 0.3 if kept == "gpu" else 0.0
        loader = training_loader(
            data,
            RECIPE,
            SIZE_HW,
            options.batch,
            workers=choose_workers(device),
            pin_memory=True,
            cache="ram",
            device=device,
            compile=options.compile,
        )
        batches = max(options.samples // options.batch, 4)
        times = []
        for turn in range(options.turns + 1):  # the first one starts processes and compiles
            loader.set_epoch(turn, strong=True)
            torch.cuda.synchronize()
            started, seen = time.perf_counter(), 0
            for images, _ in loader:
                seen += len(images)
                if seen >= batches * options.batch:
                    break
            torch.cuda.synchronize()
            times.append((time.perf_counter() - started) / seen)
        painter = loader._painter
        batch = loader.samples.batch(keys(options.batch, len(data)), painted=False)
        for _ in range(3):
            painter.paint(batch)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(10):
            painter.paint(batch)
        end.record()
        torch.cuda.synchronize()
        found[kept] = {
            "pictures a second": round(1 / float(np.median(times[1:])), 1),
            "ms of painting a batch": round(begin.elapsed_time(end) / 10, 3),
        }
    return found


def measure(options: Options, folder: Path) -> dict[str, Any]:
    data = write_files(folder, options.images)
    sizes = [path.stat().st_size for path in (folder / "train2017").iterdir()]
    record: dict[str, Any] = {
        "files": {"count": len(sizes), "kilobytes": round(sum(sizes) / len(sizes) / 1000, 1)},
        "threads": options.threads,
    }
    if options.device != "cpu":
        return record | {"gpu": measure_gpu(options, data)}
    samples = {
        "disk": TrainingSamples(data, RECIPE, SIZE_HW),
        "ram": TrainingSamples(data, RECIPE, SIZE_HW, cache="ram"),
    }
    official = {} if options.official is None else official_datasets(options.official, folder)
    times: dict[str, list[tuple[float, float]]] = {}  # seconds a picture, by the clock and of all processors
    few = max(options.samples // 2, BATCH)
    for turn in range(options.turns + 1):  # the first one warms up
        for place, of_ours in samples.items():
            taken = {f"minidet, {place}": (seconds_of(of_ours, options.samples), options.samples)}
            if official:
                random.seed(turn)
                taken[f"official, {place}"] = (official_seconds(official[place], few, options.threads), few)
            for name, (seconds, count) in taken.items():
                times.setdefault(name, []).append((seconds[0] / count, seconds[1] / count))
    medians = {name: np.median(each[1:], axis=0) for name, each in times.items()}
    record["pictures a second"] = {name: round(1 / float(each[0]), 1) for name, each in medians.items()}
    record["ms of processor time a picture"] = {name: round(1000 * float(each[1]), 2) for name, each in medians.items()}
    record["ms of one thread a picture"] = {
        place: breakdown(of_ours, min(options.samples, 128)) for place, of_ours in samples.items()
    }
    shown = options.samples
    record["mean and standard error"] = {
        "painted in one pass": statistics(ours(samples["ram"].__getitem__, shown, options.images)),
        "step by step": statistics(ours(samples["ram"].step_by_step, shown, options.images)),
    }
    if official:
        random.seed(0)
        record["mean and standard error"]["official"] = statistics(theirs(official["ram"], shown))
    return record


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        record = measure(options, Path(folder) / "coco")
    record["hardware"] = describe_hardware(choose_device(options.device))
    record["versions"] = {"torch": torch.__version__, "opencv": cv2.__version__, "numpy": np.__version__}
    write_json(options.out, record, indent=2)
    for name, value in record.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, each in value.items():
                print(f"  {key:<24}{each}")
        else:
            print(f"{name}: {value}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
