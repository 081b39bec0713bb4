"""Pascal VOC annotations (one XML file a picture) become COCO JSON (one file a split), the form that everything here
reads.

The boxes stay as the annotator wrote them: x, y = xmin, ymin and w, h = xmax - xmin, ymax - ymin. Chapter 00 uses the
result.
"""

from __future__ import annotations

import itertools
import math
import reprlib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minidet.data.images import read_image
from minidet.errors import DataError

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LARGEST_XML = 16 * 2**20  # bytes; a real file has a few thousand
LARGEST_SIDE = 1_000_000  # pixels; beyond it a number is a slip of the pen


@dataclass(frozen=True)
class VocObject:
    """One object of a VOC file: its class, its box (xyxy as written) and whether it is marked as hard to recognise."""

    name: str
    box_xyxy: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VocAnnotation:
    """What one VOC file says."""

    file_name: str | None  # as written; often without extension, or another picture's
    size_hw: tuple[int, int] | None  # None where the file gives no size, or 0
    objects: tuple[VocObject, ...]


def read_voc(path: str | Path) -> VocAnnotation:
    """Read one VOC XML file.

    Tags are found in any spelling of upper and lower case. A document type is refused: it can define entities that
    expand to gigabytes, and no annotation needs one.

    Args:
        path: the XML file.

    Raises:
        DataError: the file is missing, no XML, no VOC annotation, or an object lacks a name or a box of four finite
            numbers in order; every fault of the file is in the text.
    """
    path = Path(path)
    root = _parse(path)
    if root.tag.lower() != "annotation":
        raise DataError(f"{path}: starts with <{root.tag}>, not with <annotation>. Is it a VOC file?")
    size = _child(root, "size")
    height, width = (_pixels(_text(size, tag)) for tag in ("height", "width"))
    objects, faults = [], []
    for number, element in enumerate((e for e in root if _tag(e) == "object"), 1):
        try:
            objects.append(_read_object(element))
        except ValueError as error:
            faults.append(f"object {number} {error}")
    if faults:
        raise DataError(f"{path}: {'; '.join(faults)}")
    return VocAnnotation(_text(root, "filename"), (height, width) if height and width else None, tuple(objects))


def voc_to_coco(
    folder: str | Path,
    splits: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    origin: float = 0.0,
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Turn a VOC folder into one COCO annotation object a split.

    The picture of an XML file is the one in `JPEGImages/` with the same stem; what <filename> says only decides between
    two. Boxes of zero width or height cannot be learnt: they are dropped, each with a line to `log`. Objects marked
    difficult are kept as ordinary ones with "difficult": 1 beside the box (VOC's own scoring leaves them out, COCO's
    has no such notion). The size is the written one; a picture is opened only where none is written.

    Args:
        folder: holds `Annotations/*.xml`, `ImageSets/Main/{split}.txt` (a stem a line) and `JPEGImages/`.
        splits: names of lists; those of train, val and test that are there when not given.
        class_names: the classes in the order of their category ids; every name in the files, sorted, when not given.
        origin: the coordinate of the first pixel, subtracted from every x and y. VOC's own sets count pixels from 1.
        log: called with a line for everything that was left out or looks wrong.

    Returns:
        {split: {"info", "images", "annotations", "categories"}}; "file_name" is relative to `JPEGImages/`, ids count
        from 1 and are unique across the splits.

    Raises:
        DataError: a list, an XML file or a picture is missing or faulty, a name is listed twice, a class isn't in
            `class_names`; the text lists the first faults of all files together.
    """
    folder = Path(folder)
    stems = _read_lists(folder, splits)
    _report_overlap(stems, log)
    pictures: dict[str, list[Path]] = {}
    for path in sorted(_listed(folder / "JPEGImages")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            pictures.setdefault(path.stem, []).append(path)

    faults: list[str] = []
    found: dict[str, list[tuple[Path, tuple[int, int], tuple[VocObject, ...]]]] = {split: [] for split in stems}
    for split, names in stems.items():
        for stem in names:
            try:
                annotation = read_voc(folder / "Annotations" / f"{stem}.xml")
                picture = _picture_of(stem, annotation, pictures.get(stem, []), folder)
                size_hw = annotation.size_hw or tuple(read_image(picture).shape[1:])
            except DataError as error:
                faults.append(str(error))
            else:
                found[split].append((picture, size_hw, annotation.objects))

    if class_names is None:
        class_names = sorted({o.name for rows in found.values() for _, _, objects in rows for o in objects})
    category_ids = {name: rank for rank, name in enumerate(class_names, 1)}
    for picture, _, objects in itertools.chain.from_iterable(found.values()):
        unknown = sorted({o.name for o in objects} - category_ids.keys())
        if unknown:
            faults.append(
                f"{folder / 'Annotations' / picture.stem}.xml: unknown class {', '.join(map(repr, unknown))}; "
                f"the classes are {', '.join(class_names)}"
            )
    if faults:
        more = f"\n... and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise DataError("\n".join(faults[:10]) + more)

    image_ids, annotation_ids = itertools.count(1), itertools.count(1)
    coco = {}
    for split, rows in found.items():
        images, annotations = [], []
        for picture, (height, width), objects in rows:
            image_id = next(image_ids)
            images.append({"id": image_id, "file_name": picture.name, "height": height, "width": width})
            for item in objects:
                x1, y1, x2, y2 = item.box_xyxy
                if x1 == x2 or y1 == y2:
                    log(f"{split}: {picture.name}: a {item.name} box of zero size at ({x1:g}, {y1:g}) was left out")
                    continue
                row = {
                    "id": next(annotation_ids),
                    "image_id": image_id,
                    "category_id": category_ids[item.name],
                    "bbox": [x1 - origin, y1 - origin, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
                annotations.append(row | {"difficult": 1} if item.difficult else row)
        categories = [{"id": number, "name": name} for name, number in category_ids.items()]
        coco[split] = {
            "info": {"description": f"{split}, from Pascal VOC XML"},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
    return coco


class _NoDoctype(ET.TreeBuilder):
    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> None:
        raise DataError(
            "declares a document type, which can hide an entity bomb and is not read. Remove the <!DOCTYPE> part."
        )


def _parse(path: Path) -> ET.Element:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_XML + 1)
        if len(content) > LARGEST_XML:
            raise DataError(f"is larger than {LARGEST_XML // 2**20} MiB. Is it a VOC file?")
        return ET.fromstring(content, parser=ET.XMLParser(target=_NoDoctype()))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such annotation file, but the split's list names it.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ET.ParseError as error:
        raise DataError(f"{path}: is not whole XML ({error}). If it breaks off there, get it again.") from error
    except (LookupError, ValueError) as error:  # an encoding that doesn't exist, or that the parser cannot do
        raise DataError(f"{path}: cannot be decoded ({error}). Save it as UTF-8.") from error


def _tag(element: ET.Element) -> str:
    return element.tag.lower()


def _child(element: ET.Element | None, tag: str) -> ET.Element | None:
    return None if element is None else next((e for e in element if _tag(e) == tag), None)


def _text(element: ET.Element | None, tag: str) -> str | None:
    child = _child(element, tag)
    return (child.text or "").strip() or None if child is not None else None


def _pixels(text: str | None) -> int:
    """A side of the picture; 0 where the file doesn't say."""
    try:
        side = float(text or 0)
    except ValueError:
        return 0
    return int(side) if 1 <= side <= LARGEST_SIDE else 0


def _read_object(element: ET.Element) -> VocObject:
    name = _text(element, "name")
    if name is None:
        raise ValueError("has no <name>")
    box = _child(element, "bndbox")
    if box is None:
        raise ValueError(f"({name}) has no <bndbox>")
    values = []
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        text = _text(box, tag)
        try:
            value = float(text if text is not None else "")
        except ValueError:
            value = math.nan
        if not abs(value) <= LARGEST_SIDE:  # also for NaN
            raise ValueError(f"({name}) has {tag} {reprlib.repr(text)}; it needs a number of pixels")
        values.append(value)
    x1, y1, x2, y2 = values
    if x1 > x2 or y1 > y2:
        raise ValueError(
            f"({name}) has its corners the wrong way round: x from {x1:g} to {x2:g}, y from {y1:g} to {y2:g}"
        )
    return VocObject(name, (x1, y1, x2, y2), (_text(element, "difficult") or "0").lower() in ("1", "true"))


def _read_lists(folder: Path, splits: Sequence[str] | None) -> dict[str, list[str]]:
    lists = folder / "ImageSets" / "Main"
    if splits is None:
        splits = [split for split in SPLITS if (lists / f"{split}.txt").is_file()]
        if not splits:
            raise DataError(
                f"{lists}: has none of {', '.join(f'{split}.txt' for split in SPLITS)}. Is {folder} a VOC folder?"
            )
    stems = {}
    for split in splits:
        path = lists / f"{split}.txt"
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: there is no such list. It should name the pictures of the split {split}, one a line."
            ) from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is not UTF-8 text (byte {error.start}).") from error
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(
                f"{path}: names {len(twice)} pictures twice ({', '.join(twice[:5])}). Remove the second lines."
            )
        outside = [name for name in names if "/" in name or "\\" in name or "\0" in name]
        if outside:
            raise DataError(
                f"{path}: {outside[0]!r} is a path. A line holds a file's name without folder and extension."
            )
        stems[split] = names
    return stems


def _report_overlap(stems: dict[str, list[str]], log: Callable[[str], None]) -> None:
    for first, second in itertools.combinations(stems, 2):
        common = sorted(set(stems[first]) & set(stems[second]))
        if common:
            log(f"{first} and {second} share {len(common)} pictures ({', '.join(common[:5])}): such scores say little")


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror or error}). A VOC folder has its pictures there."
        ) from error


def _picture_of(stem: str, annotation: VocAnnotation, candidates: list[Path], folder: Path) -> Path:
    if len(candidates) > 1:
        named = [path for path in candidates if path.name == annotation.file_name]
        if len(named) != 1:
            names = ", ".join(path.name for path in candidates)
            raise DataError(
                f"{folder / 'JPEGImages'}: {names}: which of them does {stem}.xml describe? Remove the others."
            )
        candidates = named
    if not candidates:
        raise DataError(
            f"{folder / 'JPEGImages'}: has no picture {stem}.jpg (or .png ...), but {stem}.xml describes one."
        )
    return candidates[0]
