"""Everything that is wrong with a data set, found at once: annotations, pictures, splits (chapter 00)."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from minidet.data.annotations import Annotations, Fault, ImageRecord, parse_annotations, show
from minidet.data.coco import REASONS, clip_boxes, find_split, size_mismatch, split_names
from minidet.data.images import read_image
from minidet.errors import DataError
from minidet.files import read_json

__all__ = ["Fault", "check_dataset", "format_faults"]

TOLERANCE = 1.0  # pixels that a box may stick out: rounding, and Pascal VOC's habit of counting from 1
LEFT_OUT = {
    "negative size": "The box is left out. Mind that COCO boxes are [x, y, width, height], not two corners.",
    "zero size": "The box is left out. Draw it again, or remove it.",
    "outside the picture": "The box is left out. Perhaps it belongs to another picture, or another size of this one.",
    "no area": 'The box is left out, as "area" is not above 0. Correct the area, or remove the annotation.',
}


def check_dataset(
    folder: str | Path, splits: Sequence[str] | None = None, read_images: bool = True, progress: bool = False
) -> list[Fault]:
    """Look for everything that could go wrong with a data set, and report all of it; no data makes it raise.

    Args:
        folder: a data set as `minidet.data.coco.find_split` expects it.
        splits: the splits to check; None for all that have an annotation file.
        read_images: whether every picture is decoded, which finds damaged files, wrong sizes and copies in two splits.
            Without it only the names are looked up.
        progress: whether a progress bar shows how many pictures are done.

    Returns:
        Faults in a fixed order: split by split annotations, boxes, pictures; then what the splits have in common.
        Files are named relative to `folder`. A data set without fatal faults can be trained on and evaluated.

    Source: chapter 00.
    """
    folder = Path(folder)
    names = split_names(folder) if splits is None else list(dict.fromkeys(splits))
    if not names:
        found = "there is no annotations/instances_*.json" if os.path.isdir(folder) else "there is no such folder"
        advice = "Give the folder that holds annotations/instances_train.json and the like."
        return [Fault(str(folder), None, None, found, advice, True)]
    faults: list[Fault] = []
    categories: dict[str, dict[int, str]] = {}
    pictures: dict[str, dict[str, str]] = {}
    for name in names:
        try:
            path, images = find_split(folder, name)
            content = read_json(path)
        except (ValueError, OSError) as error:  # DataError is a ValueError
            advice = "Write, copy or download the file again, or leave this split out."
            problem = str(error).partition(": ")[2] or str(error)  # the text begins with the path
            faults.append(Fault(f"annotations/instances_{name}.json", None, None, problem, advice, True))
            continue
        file = _relative(path, folder)
        found, row_faults = parse_annotations(content, file)
        faults += row_faults
        faults += _box_faults(found, file)
        pictures[name] = {}
        elsewhere = _pictures_elsewhere(found.records, images)
        faults += elsewhere
        present = [] if elsewhere else found.records
        for record in tqdm(present, desc=f"checking {name}", unit=" pictures", disable=not progress):
            faults += _picture_faults(record, images, folder, read_images, pictures[name])
        categories[file] = found.categories
    faults += _category_differences(categories)
    faults += _leaks(pictures)
    return faults


def _box_faults(found: Annotations, file: str) -> Iterator[Fault]:
    """What geometry says about rows that are well-formed."""
    _, reasons = clip_boxes(found)
    seen: set[tuple] = set()
    for i, (index, bbox) in enumerate(zip(found.image_indices, found.boxes_xywh, strict=True)):
        record = found.records[index]
        where = (file, record.id, found.ids[i])
        reason = REASONS[reasons[i]]
        if reason in LEFT_OUT:
            yield Fault(*where, f"{reason}: bbox {show(bbox)}", LEFT_OUT[reason], False)
        elif not reason and _overhang(bbox, record) > TOLERANCE:
            problem = f"bbox {show(bbox)} reaches beyond the {record.width} x {record.height} picture"
            advice = "The box is cut at the edge. If many are: COCO boxes are [x, y, width, height], not two corners."
            yield Fault(*where, problem, advice, False)
        same = (index, found.labels[i], *bbox, found.crowd[i])
        if same in seen:
            advice = "Both are used, so one of them can only be missed. Remove one."
            yield Fault(*where, f"bbox {show(bbox)} stands there twice with this category", advice, False)
        seen.add(same)
    empty = len(found.records) - len(set(found.image_indices))
    if empty:
        problem = f"{empty} of {len(found.records)} pictures have no box"
        advice = "They train as background. Make sure that nothing in them was forgotten."
        yield Fault(file, None, None, problem, advice, False)


def _overhang(bbox_xywh: list[float], record: ImageRecord) -> float:
    x, y, w, h = bbox_xywh
    return max(-x, -y, x + w - record.width, y + h - record.height)


def _pictures_elsewhere(records: list[ImageRecord], images: Path) -> list[Fault]:
    """One fault instead of one for every picture, where the folder is the wrong one."""
    if len(records) < 2 or any(os.path.isfile(images / record.file_name) for record in records):
        return []
    problem = f"there is none of the {len(records)} pictures, such as {show(records[0].file_name)}"
    advice = "Put the pictures into {split}/, {split}2017/, images/{split}/, images/ or the folder itself."
    return [Fault(str(images), None, None, problem, advice, True)]


def _picture_faults(
    record: ImageRecord, images: Path, folder: Path, read_images: bool, fingerprints: dict[str, str]
) -> Iterator[Fault]:
    """Check one file; `fingerprints` gains what tells it from other pictures, and its name."""
    path = images / record.file_name
    file = _relative(path, folder)
    if not os.path.isfile(path):
        advice = "Put the file there, or remove the image and its boxes from the annotations."
        yield Fault(file, record.id, None, "there is no such picture", advice, True)
    elif not read_images:
        fingerprints[os.path.realpath(path)] = file
    else:
        try:
            _, height, width = read_image(path).shape
            fingerprints[hashlib.blake2b(path.read_bytes()).hexdigest()] = file
        except (DataError, OSError) as error:
            advice = "Replace the file, or remove the image and its boxes from the annotations."
            yield Fault(file, record.id, None, str(error).removeprefix(f"{path}: "), advice, True)
            return
        mismatch = size_mismatch(record, (height, width))
        if mismatch:
            yield Fault(file, record.id, None, *mismatch, True)


def _category_differences(categories: dict[str, dict[int, str]]) -> Iterator[Fault]:
    (first, expected), *others = categories.items() or [("", {})]
    for file, found in others:
        for category_id in sorted(expected.keys() | found.keys()):
            here, there = (
                show(names[category_id]) if category_id in names else "missing" for names in (found, expected)
            )
            if here != there:
                problem = f"category {category_id} is {here} here, {there} in {first}"
                yield Fault(
                    file,
                    None,
                    None,
                    problem,
                    "Write the same categories into every split: labels follow their ids.",
                    True,
                )


def _leaks(pictures: dict[str, dict[str, str]]) -> Iterator[Fault]:
    owner: dict[str, tuple[str, str]] = {}
    for split, fingerprints in pictures.items():
        for fingerprint, file in fingerprints.items():
            other_split, other_file = owner.setdefault(fingerprint, (split, file))
            if other_split != split:
                where = "too" if other_file == file else f"as {other_file}"
                advice = "Keep every picture in one split only, or the evaluation sees what was learned by heart."
                yield Fault(file, None, None, f"is in {split} and in {other_split} {where}", advice, False)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def format_faults(faults: Sequence[Fault], limit: int | None = None) -> str:
    """Write faults for a person: a line that sums up, then a block for each thing to do, the fatal ones first.

    Args:
        faults: as `check_dataset` returns them.
        limit: at most so many places a block; None for all.

    Source: chapter 00.
    """
    if not faults:
        return "No faults found."
    fatal = sum(fault.fatal for fault in faults)
    lines = [
        f"{_count(fatal, 'fault')} to correct before training or evaluation, {_count(len(faults) - fatal, 'remark')}."
    ]
    blocks: dict[tuple[bool, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        blocks[not fault.fatal, fault.advice].append(fault)
    for (remark, advice), block in sorted(blocks.items(), key=lambda item: item[0][0]):
        lines += ["", f"{'remark' if remark else 'FAULT'} ({len(block)}): {advice}"]
        shown = block[:limit]
        width = max(len(_place(fault)) for fault in shown) if shown else 0
        lines += [f"    {_place(fault).ljust(width)}  {fault.problem}" for fault in shown]
        if len(shown) < len(block):
            lines.append(f"    ... and {len(block) - len(shown)} more")
    return "\n".join(lines)


def _place(fault: Fault) -> str:
    image = f", image {fault.image_id}" if fault.image_id is not None else ""
    annotation = f", annotation {fault.annotation_id}" if fault.annotation_id is not None else ""
    return f"{fault.file}{image}{annotation}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
