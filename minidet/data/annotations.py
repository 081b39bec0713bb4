"""What a COCO annotation file says, and which of its rows cannot be meant; for reader and checker (chapter 00)."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

LARGEST_SIDE = 1_000_000  # pixels; a height or width beyond it is a slip of the pen


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a data set: where, what, and what to do.

    A fatal fault stops training or evaluation. Any other is dealt with as `advice` says, or only looks wrong.
    """

    file: str
    image_id: int | None
    annotation_id: int | None
    problem: str
    advice: str
    fatal: bool


@dataclass(frozen=True)
class ImageRecord:
    """One picture as the annotation file describes it."""

    id: int
    file_name: str
    height: int
    width: int


@dataclass
class Annotations:
    """The usable rows of an annotation file; from `image_indices` on one entry a box, in the order of the file."""

    records: list[ImageRecord] = field(default_factory=list)
    categories: dict[int, str] = field(default_factory=dict)  # id -> name by increasing id, so the label is the rank
    image_indices: list[int] = field(default_factory=list)  # positions in `records`
    labels: list[int] = field(default_factory=list)
    boxes_xywh: list[list[float]] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)  # the file's "area", or w * h where it gives none
    crowd: list[bool] = field(default_factory=list)
    ids: list[int | None] = field(default_factory=list)


Problem = tuple[str, str, bool]  # problem, advice, fatal: a Fault without its place


def parse_annotations(content: Any, file: str) -> tuple[Annotations, list[Fault]]:
    """Sort the rows of a COCO annotation file into usable ones and faults. Nothing that JSON can hold makes it raise.

    Boxes of no size or outside their picture are usable rows here; `minidet.data.coco.why_left_out` decides about them.

    Args:
        content: what `json.load` returned.
        file: the name that the faults carry.

    Returns:
        The usable rows, and the faults in the order categories, images, annotations.

    Source: the COCO data format, "Object Detection"; chapter 00.
    """
    found, faults = Annotations(), []
    if not isinstance(content, dict):
        advice = 'COCO annotations are one object with the lists "images", "annotations" and "categories".'
        return found, [Fault(file, None, None, f"the file holds {_kind(content)}, not an object", advice, True)]

    def usable_rows(section: str, problems_of: Callable[[dict], Iterator[Problem]]) -> Iterator[dict]:
        """Note the faults of every row, pass on the rows that have no fatal one."""
        faults.extend(Fault(file, None, None, *problem) for problem in _section_problems(content, section))
        seen_ids: set[int] = set()
        for position, row in enumerate(_section(content, section)):
            usable = True
            for problem, advice, fatal in _row_problems(section, row, seen_ids, problems_of):
                usable = usable and not fatal
                image_id, annotation_id = _whose(section, row)
                if image_id is None and annotation_id is None:
                    problem = f"{section}[{position}]: {problem}"
                faults.append(Fault(file, image_id, annotation_id, problem, advice, fatal))
            if usable:
                yield row

    names: dict[int, str] = {}
    for row in usable_rows("categories", lambda row: _category_problems(row, names)):
        names[row["id"]] = row["name"]
    found.categories = dict(sorted(names.items()))

    file_ids: dict[str, int] = {}
    for row in usable_rows("images", lambda row: _image_problems(row, file_ids)):
        file_ids.setdefault(row["file_name"], row["id"])
        found.records.append(ImageRecord(row["id"], row["file_name"], int(row["height"]), int(row["width"])))

    # Ids of faulty images and categories are known too: their annotations are not to blame.
    image_ids, category_ids = _ids(content, "images"), _ids(content, "categories")
    index_of = {record.id: index for index, record in enumerate(found.records)}
    label_of = {category_id: label for label, category_id in enumerate(found.categories)}
    for row in usable_rows("annotations", lambda row: _annotation_problems(row, image_ids, category_ids)):
        if row["image_id"] not in index_of or row["category_id"] not in label_of:
            continue
        found.image_indices.append(index_of[row["image_id"]])
        found.labels.append(label_of[row["category_id"]])
        found.boxes_xywh.append(row["bbox"])
        found.areas.append(row["bbox"][2] * row["bbox"][3] if row.get("area") is None else row["area"])
        found.crowd.append(bool(row.get("iscrowd")))
        found.ids.append(_whose("annotations", row)[1])
    return found, faults


def _section(content: dict, section: str) -> list:
    rows = content.get(section)
    return rows if isinstance(rows, list) else []


def _ids(content: dict, section: str) -> set[int]:
    return {row["id"] for row in _section(content, section) if isinstance(row, dict) and _is_integer(row.get("id"))}


def _whose(section: str, row: Any) -> tuple[int | None, int | None]:
    """The image id and annotation id that a row names, where they are ids at all."""
    if section == "categories" or not isinstance(row, dict):
        return None, None
    own = row.get("id") if _is_integer(row.get("id")) else None
    if section == "images":
        return own, None
    return row.get("image_id") if _is_integer(row.get("image_id")) else None, own


def _section_problems(content: dict, section: str) -> Iterator[Problem]:
    if section == "annotations" and section not in content:
        advice = 'The data set has no boxes then. Write "annotations": [] if that is meant.'
        yield '"annotations" is missing', advice, False
    elif not isinstance(content.get(section), list):
        found = f"is {_kind(content[section])}" if section in content else "is missing"
        yield f'"{section}" {found}', f'Give the file a list "{section}" of objects.', True
    elif not content[section] and section != "annotations":
        yield f'"{section}" is empty', f'List at least one entry in "{section}".', True


def _row_problems(
    section: str, row: Any, seen_ids: set[int], problems_of: Callable[[dict], Iterator[Problem]]
) -> Iterator[Problem]:
    if not isinstance(row, dict):
        yield f"is {show(row)}", f'Every entry of "{section}" must be an object.', True
        return
    row_id = row.get("id")
    needed = section != "annotations"  # nothing here looks an annotation up by its id
    advice = f'Give every entry of "{section}" an integer id of its own.' if needed else NUMBERING
    if not _is_integer(row_id):
        yield f'"id" {_found(row, "id")}', advice, needed
    elif row_id in seen_ids:
        yield f"id {row_id} is taken already", advice, needed
    elif row_id == 0 and section == "annotations":
        yield "the id is 0", advice, False
    else:
        seen_ids.add(row_id)
    yield from problems_of(row)


NUMBERING = (
    "minidet numbers the boxes itself. For other tools number them from 1, each once: "
    "pycocotools mixes up equal ids and counts a match with id 0 as a miss."
)


def _category_problems(row: dict, names: dict[int, str]) -> Iterator[Problem]:
    name = row.get("name")
    if not _is_text(name):
        yield f'"name" {_found(row, "name")}', "Give every category a name.", True
    elif name in names.values():
        advice = "They stay two classes. Give them two names, or merge them."
        yield f"a second category is called {show(name)}", advice, False


def _image_problems(row: dict, file_ids: dict[str, int]) -> Iterator[Problem]:
    name = row.get("file_name")
    if not _is_text(name):
        yield f'"file_name" {_found(row, "file_name")}', "Give the name of the image file.", True
    elif _leaves_folder(name):
        advice = "Name files relative to the images folder, without a leading slash, a drive or '..'."
        yield f"{show(name)} leaves the images folder", advice, True
    elif name in file_ids:
        advice = "The picture is used twice. Keep one of the two entries, with all its boxes."
        yield f"{show(name)} is image {file_ids[name]} already", advice, False
    for side in ("height", "width"):
        value = row.get(side)
        if not (_is_number(value) and value == int(value) and 1 <= value <= LARGEST_SIDE):
            yield f'"{side}" {_found(row, side)}', "Give height and width in whole pixels.", True


def _annotation_problems(row: dict, image_ids: set[int], category_ids: set[int]) -> Iterator[Problem]:
    bbox, area = row.get("bbox"), row.get("area")
    if not _is_integer(row.get("image_id")) or row["image_id"] not in image_ids:
        advice = 'List the image in "images", correct image_id, or remove the annotation.'
        yield f'unknown image: "image_id" {_found(row, "image_id")}', advice, True
    if not _is_integer(row.get("category_id")) or row["category_id"] not in category_ids:
        advice = 'List the category in "categories", correct category_id, or remove the annotation.'
        yield f'unknown category: "category_id" {_found(row, "category_id")}', advice, True
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        advice = "Give four finite numbers [x, y, width, height] in pixels, or remove the annotation."
        yield f'"bbox" {_found(row, "bbox")}', advice, True
    if area is None:
        yield "there is no area", "minidet takes width x height. Write it down so that other tools agree.", False
    elif not _is_number(area):
        yield f'"area" {_found(row, "area")}', "Give a finite number, or leave it out to have width x height.", True
    if row.get("iscrowd", 0) not in (0, 1):
        advice = "Write 0 or 1. minidet reads null and empty as 0 and all else as 1: a crowd, left out of training."
        yield f'"iscrowd" {_found(row, "iscrowd")}', advice, False


def _leaves_folder(name: str) -> bool:
    """Read as either system would, so that a file made for one holds no surprise on the other."""
    return any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name)))


def _is_integer(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63  # type(): true and false are no ids


def _is_number(value: Any) -> bool:
    return math.isfinite(value) if type(value) is float else _is_integer(value)


def _is_text(value: Any) -> bool:
    """Neither empty nor impossible: JSON can escape halves of UTF-16 pairs and NUL, which no file system takes."""
    return (
        isinstance(value, str)
        and value.strip() != ""
        and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)
    )


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _found(row: dict, key: str) -> str:
    return f"is {show(row[key])}" if key in row else "is missing"


_short = reprlib.Repr()
_short.maxstring, _short.maxlevel = 80, 2


def show(value: Any) -> str:
    """A value of the file, cut to fit a line."""
    return _short.repr(value)
