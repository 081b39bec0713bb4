"""COCO JSON and a folder of pictures become (image, target) pairs by the published YOLOX's rules (chapter 00).

The rules: crowds are left out, boxes are cut at the picture's edge, a label is the rank of its category id, a picture
without objects stays in. A value that cannot be meant is an error at loading, before any time is spent on training.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from minidet.data.annotations import Annotations, Fault, ImageRecord, parse_annotations
from minidet.data.images import read_image
from minidet.errors import DataError
from minidet.files import read_json

__all__ = ["CocoDataset", "Fault", "ImageRecord", "find_split", "load_split", "read_image", "split_names"]

# Why a box takes no part in training; the first reason that applies counts. `clip_boxes` returns places in this list.
REASONS = ("", "crowd", "negative size", "zero size", "outside the picture", "no area")
SHOWN_FAULTS = 5


class CocoDataset(Dataset):
    """Pictures with their boxes, read from one annotation file and one folder.

    Items are `(image, target)`: image [3, H, W] uint8 RGB; target a dict of "boxes" [N, 4] float32 xyxy in pixels,
    "labels" [N] int64 from 0, "image_id" int (the file's own). N may be 0. The order is that of the file's "images".

    Args:
        annotations: a COCO JSON file.
        images: the folder that its file names start from.

    Raises:
        DataError: the annotation file cannot be used as it is; the text holds the first faults.

    Source: the official YOLOX's COCO reader; chapter 00.
    """

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        self.annotations_path, self.images_path = Path(annotations), Path(images)
        found, faults = parse_annotations(read_json(self.annotations_path), str(self.annotations_path))
        _refuse_fatal(faults, self.annotations_path)
        self.records: list[ImageRecord] = found.records
        self.class_names: list[str] = list(found.categories.values())
        self.category_ids: list[int] = list(found.categories)

        boxes, reasons = clip_boxes(found)
        counts = np.bincount(reasons, minlength=len(REASONS)).tolist()
        # How many boxes take no part, by reason; "crowd" is as it should be, all else is a fault of the file.
        self.dropped: dict[str, int] = {name: n for name, n in zip(REASONS, counts, strict=True) if name and n}
        # All boxes in one array, sorted by picture: worker processes share that instead of copying a million objects.
        kept = np.flatnonzero(reasons == 0)
        image_indices = np.asarray(found.image_indices, dtype=np.int64)[kept]
        order = np.argsort(image_indices, kind="stable")
        self._boxes = boxes[kept][order]
        self._labels = np.asarray(found.labels, dtype=np.int64)[kept][order]
        self._starts = np.searchsorted(image_indices[order], np.arange(len(self.records) + 1))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        return self.image(index), self.target(index)

    def target(self, index: int) -> dict:
        """The boxes, labels and id of one picture, without reading its pixels; the tensors are the caller's own."""
        index = range(len(self))[index]  # counts negative numbers from the end, raises IndexError beyond it
        span = slice(self._starts[index], self._starts[index + 1])
        return {
            "boxes": torch.from_numpy(self._boxes[span].copy()),
            "labels": torch.from_numpy(self._labels[span].copy()),
            "image_id": self.records[index].id,
        }

    def image(self, index: int) -> Tensor:
        """The pixels of one picture: [3, H, W] uint8 RGB.

        Raises:
            DataError: the file cannot be read, or has not the size that the annotations were made for.
        """
        record = self.records[index]
        path = self.images_path / record.file_name
        image = read_image(path)
        mismatch = size_mismatch(record, (image.shape[1], image.shape[2]))
        if mismatch:
            raise DataError(f"{path} (image id {record.id}): {mismatch[0]}. {mismatch[1]}")
        return image


def clip_boxes(annotations: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """Cut every box at the edges of its picture, and say which boxes take no part in training.

    Returns:
        boxes: [N, 4] float32, xyxy in pixels, within the picture.
        reasons: [N] int64, indices into `REASONS`; 0 for a box that takes part.

    Source: the official YOLOX's COCO reader (crowd skipped, clipped, area > 0), and no box without inside; chapter 00.
    """
    xywh = np.asarray(annotations.boxes_xywh, dtype=np.float64).reshape(-1, 4)
    sizes_hw = np.asarray([(record.height, record.width) for record in annotations.records]).reshape(-1, 2)
    limits = sizes_hw[np.asarray(annotations.image_indices, dtype=np.int64)][:, ::-1]  # [N, 2] width, height
    with np.errstate(over="ignore"):  # numbers near 1e308 become infinite and are cut like any other
        corners = np.stack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)  # [N, 2 corners, 2]
    corners = np.clip(corners, 0, limits[:, None, :])
    boxes = corners.reshape(-1, 4).astype(np.float32)
    reasons = np.select(
        [
            np.asarray(annotations.crowd, dtype=bool),
            (xywh[:, 2:] < 0).any(axis=1),
            (xywh[:, 2:] == 0).any(axis=1),
            (corners[:, 1] <= corners[:, 0]).any(axis=1),
            (boxes[:, 2:] <= boxes[:, :2]).any(axis=1),  # narrower than float32 can tell
            np.asarray(annotations.areas, dtype=np.float64) <= 0,
        ],
        [
            REASONS.index(r)
            for r in ("crowd", "negative size", "zero size", "outside the picture", "zero size", "no area")
        ],
        default=0,
    )
    return boxes, reasons


def size_mismatch(record: ImageRecord, image_hw: tuple[int, int]) -> tuple[str, str] | None:
    """Problem and advice where a picture's size is not the one that its boxes were drawn on; None where it is."""
    expected_hw = (record.height, record.width)
    if image_hw == expected_hw:
        return None
    problem = (
        f"the picture is {image_hw[1]} x {image_hw[0]} pixels, the annotations say {record.width} x {record.height}"
    )
    if image_hw == expected_hw[::-1]:
        return problem, (
            "Perhaps the file has an EXIF rotation that the annotation tool ignored: save it upright and without EXIF, "
            "or swap height and width if the boxes fit the upright picture."
        )
    return problem, "Put back the picture that the boxes were drawn on, or correct height, width and boxes."


def find_split(folder: str | Path, split: str) -> tuple[Path, Path]:
    """Find the annotation file and the images folder of one split of a data set.

    Args:
        folder: the data set, with `annotations/instances_{split}.json` or `instances_{split}2017.json`.
        split: "train", "val", ...

    Returns:
        The annotation file, and the first that exists of `{split}/`, `{split}2017/`, `images/{split}/`, `images/`, or
        else the folder itself.

    Raises:
        DataError: there is no such file; the text lists what was looked for and which splits there are.

    Source: the layout of COCO's own archives; chapter 00.
    """
    folder = Path(folder)
    candidates = [folder / "annotations" / f"instances_{name}.json" for name in (split, f"{split}2017")]
    annotations = next((path for path in candidates if os.path.isfile(path)), None)  # also for names of any length
    if annotations is None:
        there_are = ", ".join(split_names(folder)) or (
            "none" if os.path.isdir(folder) else "none, nor is there such a folder"
        )
        raise DataError(
            f"{folder}: there is no split {split!r}. Looked for {' and '.join(str(path) for path in candidates)}. "
            f"Splits in the folder: {there_are}."
        )
    places = [folder / split, folder / f"{split}2017", folder / "images" / split, folder / "images", folder]
    return annotations, next(path for path in places if path.is_dir())


def split_names(folder: str | Path) -> list[str]:
    """The splits that a data set has, "train" and "val" first."""
    try:
        names = [path.stem.removeprefix("instances_") for path in Path(folder).glob("annotations/instances_*.json")]
    except OSError:  # a name that is too long, a folder that may not be listed
        return []
    return sorted(names, key=lambda name: (not name.startswith("train"), not name.startswith("val"), name))


def load_split(folder: str | Path, split: str) -> CocoDataset:
    """Open one split of a data set; `find_split` says where it is looked for.

    Raises:
        DataError: the split is not there, or its annotations cannot be used.
    """
    return CocoDataset(*find_split(folder, split))


def _refuse_fatal(faults: list[Fault], path: Path) -> None:
    fatal = [fault for fault in faults if fault.fatal]
    if not fatal:
        return
    lines = [f"{path}: {len(fatal)} fault{'s' if len(fatal) > 1 else ''} in the annotations:"]
    for fault in fatal[:SHOWN_FAULTS]:
        where = [f"image {fault.image_id}"] if fault.image_id is not None else []
        where += [f"annotation {fault.annotation_id}"] if fault.annotation_id is not None else []
        lines.append(f"  {', '.join(where) + ': ' if where else ''}{fault.problem}. {fault.advice}")
    if len(fatal) > SHOWN_FAULTS:
        lines.append(f"  ... and {len(fatal) - SHOWN_FAULTS} more")
    folder = path.parent.parent if path.parent.name == "annotations" else path.parent
    lines.append(f"`minidet data check {folder}` lists everything that is wrong with the data set.")
    raise DataError("\n".join(lines))
