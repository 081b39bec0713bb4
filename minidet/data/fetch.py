"""Real data sets by name: downloaded or taken from a local copy, verified, and laid out as COCO JSON and pictures.

`FETCHABLE` is the table of what there is; every row is a card that says where a set comes from and what it must hold.
Whatever a set looks like at home, here it is `annotations/instances_{split}.json` and `{split}/*.jpg` (chapter 00).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minidet.data.archive import unpack
from minidet.data.download import download, in_words
from minidet.data.penn_fudan import penn_fudan_to_coco
from minidet.data.voc import voc_to_coco
from minidet.errors import DataError, FetchError
from minidet.files import read_json, write_json

__all__ = ["FETCHABLE", "Archive", "DataCard", "Split", "content_digest", "download", "fetch", "unpack", "voc_to_coco"]

MARKER = "fetched.json"  # written last: where it stands, the data set is whole
WORK = ".fetch"  # downloads and unpacked archives, inside the data set's folder until it is finished
Log = Callable[[str], None]


@dataclass(frozen=True)
class Archive:
    """A file to download, and how to know that it is the right one."""

    url: str
    file_name: str  # as a browser saves it
    size: int | None = None  # bytes; None: not fixed
    md5: str | None = None  # None: nobody publishes one, or the server packs anew; then the contents are checked


@dataclass(frozen=True)
class Split:
    """One split, ready to be laid out."""

    annotations: dict[str, Any] | Path  # a COCO object, or the published file that holds one
    images: list[Path]


@dataclass(frozen=True)
class DataCard:
    """What a data set is, where it comes from, and what it must hold."""

    name: str
    title: str
    homepage: str
    licence: str
    note: str
    archives: tuple[Archive, ...]
    unpacked_bytes: int  # roughly, rounded up
    images: dict[str, int]  # split -> pictures; the keys name the folders and annotation files
    convert: Callable[[Path, DataCard, Log], dict[str, Split]]  # the unpacked folder -> splits
    boxes: dict[str, int] | None = None  # split -> boxes
    digest: str | None = None  # content_digest of the right pictures and boxes

    @property
    def download_bytes(self) -> int:
        return sum(archive.size or self.unpacked_bytes for archive in self.archives)

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {count:,}" for split, count in self.images.items())
        size = f"; download {in_words(self.download_bytes)}" if all(a.size for a in self.archives) else ""
        return (
            f"{self.name}: {self.title}\n  pictures: {splits}{size}\n  {self.homepage}\n"
            f"  licence: {self.licence}\n  {self.note}"
        )


def fetch(
    name: str,
    folder: str | Path,
    source: str | Path | None = None,
    progress: bool = True,
    *,
    log: Log | None = None,
) -> Path:
    """Bring a data set into `folder`; a second call finishes what the first one began, or finds nothing to do.

    Args:
        name: a key of `FETCHABLE`.
        folder: where it goes: a new or empty folder, or one that an earlier call left unfinished.
        source: instead of the network: the unpacked set, its archive, or a folder that holds the archives under their
            published names. It is only read; its pictures are copied.
        progress: show progress bars.
        log: called with lines for the user; with progress they are printed between the bars when not given.

    Returns:
        `folder`, holding `annotations/instances_{split}.json` and the pictures in `{split}/`.

    Raises:
        FetchError: unknown name, a folder with other contents, too little disk space, or anything that `download` and
            `unpack` raise.
        DataError: what came isn't the data set: pieces missing, damaged or other than published.
    """
    log = log or (tqdm.write if progress else lambda text: None)
    card = FETCHABLE.get(name)
    if card is None:
        raise FetchError(f"{name!r} is no data set that can be fetched. There are: {', '.join(FETCHABLE)}.")
    folder = Path(folder)
    if "\0" in str(folder):
        raise FetchError(f"{str(folder)!r}: no folder can have this name. Choose another one.")
    if _is_finished(card, folder):
        shutil.rmtree(folder / WORK, ignore_errors=True)
        log(f"{folder}: {name} is there already; nothing to do")
        return folder
    work = folder / WORK
    with _disk_errors(folder):
        local = None if source is None else _local_files(card, Path(source), folder)
        _begin(card, folder, work)
        if local is None:
            unpacked = _download(card, work, progress)
        elif local == [Path(source)] and local[0].is_dir():
            unpacked = local[0]
        else:
            unpacked = _unpack_all(card, local, work / "local", progress)
        ours = unpacked.is_relative_to(work)
        try:
            splits = card.convert(unpacked, card, log)
            _check(card, splits)
        except DataError:
            if ours:  # the next call must not build on it
                shutil.rmtree(unpacked, ignore_errors=True)
            raise
        for split, content in splits.items():
            _lay_out(split, content, folder, may_link=ours, progress=progress)
        about = {"name": name, "images": card.images, "homepage": card.homepage, "licence": card.licence}
        write_json(folder / MARKER, about, indent=2)
        shutil.rmtree(work, ignore_errors=True)
    counts = ", ".join(f"{split} {count:,}" for split, count in card.images.items())
    log(f"{folder}: {name} is ready; pictures: {counts}")
    return folder


def content_digest(splits: dict[str, Split]) -> str:
    """One number for all pictures (their bytes) and boxes, whatever archive they came in and whatever ids they have.

    Returns:
        sha256, in hexadecimal, over the sorted lines "split/file sha256-of-file" and "split/file class x y w h".
    """
    lines = []
    for split, content in splits.items():
        coco = read_json(content.annotations) if isinstance(content.annotations, Path) else content.annotations
        classes = {row["id"]: row["name"] for row in coco["categories"]}
        files = {row["id"]: f"{split}/{row['file_name']}" for row in coco["images"]}
        lines += [f"{split}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in content.images]
        for row in coco["annotations"]:
            box = " ".join(f"{value:g}" for value in row["bbox"])
            lines.append(f"{files[row['image_id']]} {classes[row['category_id']]} {box}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------ the steps


def _is_finished(card: DataCard, folder: Path) -> bool:
    if not os.path.isfile(folder / MARKER):
        return False
    held = read_json(folder / MARKER)
    held = held.get("name") if isinstance(held, dict) else None
    if held != card.name:
        raise FetchError(f"{folder}: holds the data set {held!r}. Choose another folder for {card.name}.")
    missing = [split for split in card.images if not (folder / "annotations" / f"instances_{split}.json").is_file()]
    if missing:
        raise FetchError(
            f"{folder}: annotations/instances_{missing[0]}.json was removed. Delete the folder and fetch again."
        )
    return True


def _begin(card: DataCard, folder: Path, work: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FetchError(f"{folder}: is a file. Choose a folder.")
    note = work / "name"
    if not work.is_dir() and folder.is_dir() and any(folder.iterdir()):
        raise FetchError(f"{folder}: is not empty. Choose a new folder, so that nothing of yours gets mixed up.")
    work.mkdir(parents=True, exist_ok=True)
    if note.is_file() and (begun := note.read_text(encoding="utf-8").strip()) != card.name:
        raise FetchError(
            f"{folder}: a fetch of {begun!r} was begun here. Finish it, delete the folder, or choose another one."
        )
    note.write_text(card.name, encoding="utf-8")


def _download(card: DataCard, work: Path, progress: bool) -> Path:
    used = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    needed = card.download_bytes + card.unpacked_bytes - used
    free = shutil.disk_usage(work).free
    if needed > free:
        raise FetchError(
            f"{work.parent}: {card.name} needs {in_words(needed)} while it is fetched, {in_words(free)} are free. "
            "Free some space, or choose a folder on another disk."
        )
    unpacked = work / "unpacked"
    for archive in card.archives:
        if (unpacked / archive.file_name).is_dir():
            continue
        path = download(archive.url, work / archive.file_name, md5=archive.md5, size=archive.size, progress=progress)
        try:
            unpack(path, unpacked / archive.file_name, max_bytes=2 * card.unpacked_bytes, progress=progress)
        except FetchError:
            if archive.md5 is None:  # it may be the download that is damaged; with a checksum it is the disk
                path.unlink(missing_ok=True)
            raise
        path.unlink()
    return unpacked


def _local_files(card: DataCard, source: Path, folder: Path) -> list[Path]:
    """The archives of a local copy, in the card's order; or one folder, which holds the set unpacked."""
    names = [archive.file_name for archive in card.archives]
    if not source.exists():
        raise FetchError(
            f"{source}: there is no such folder or archive. Name a local copy of {card.name}, or leave --from out."
        )
    if not source.is_dir():
        if len(names) > 1:
            raise FetchError(
                f"{source}: {card.name} has {len(names)} archives: {', '.join(names)}. Name the folder that holds them."
            )
        return [source]
    if all((source / name).is_file() for name in names):
        return [source / name for name in names]
    if folder.resolve().is_relative_to(source.resolve()):
        raise FetchError(f"{folder}: lies inside {source}, which is only read. Choose a folder elsewhere.")
    return [source]


def _unpack_all(card: DataCard, paths: list[Path], unpacked: Path, progress: bool) -> Path:
    shutil.rmtree(unpacked, ignore_errors=True)  # an earlier call may have had another source
    for path, archive in zip(paths, card.archives, strict=True):
        unpack(path, unpacked / archive.file_name, max_bytes=2 * card.unpacked_bytes, progress=progress)
    return unpacked


def _check(card: DataCard, splits: dict[str, Split]) -> None:
    for split, expected in card.images.items():
        content = splits[split]
        if len(content.images) != expected:
            raise DataError(
                f"{card.name}: {split} has {len(content.images):,} pictures, published are {expected:,}. "
                "Get it again; for a set of your own make COCO JSON with minidet.data.voc.voc_to_coco."
            )
        if card.boxes is not None and len(content.annotations["annotations"]) != card.boxes[split]:
            found = len(content.annotations["annotations"])
            raise DataError(
                f"{card.name}: {split} has {found:,} boxes, published are {card.boxes[split]:,}. Get it again."
            )
    if card.digest is not None and content_digest(splits) != card.digest:
        raise DataError(
            f"{card.name}: the counts are right, but a picture or a box is other than published. Get it again."
        )


def _lay_out(split: str, content: Split, folder: Path, may_link: bool, progress: bool) -> None:
    (folder / split).mkdir(exist_ok=True)
    for path in tqdm(content.images, desc=split, unit=" pictures", disable=not progress):
        target = folder / split / path.name
        if target.exists():  # whole, because it got its name last
            continue
        if may_link:
            with contextlib.suppress(OSError):  # some file systems have no links
                os.link(path, target)
                continue
        _copy(path, target)
    target = folder / "annotations" / f"instances_{split}.json"
    if isinstance(content.annotations, Path):
        target.parent.mkdir(exist_ok=True)
        _copy(content.annotations, target)
    else:
        write_json(target, content.annotations)


def _copy(path: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(path, part)
    os.replace(part, target)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise FetchError(
            f"{where}: {error.strerror or error}. Free some space or check the rights; then run the same again."
        ) from error


# ----------------------------------------------------------------------------------- from each set's own form to splits


def _find(root: Path, wanted: tuple[str, ...], card: DataCard) -> Path:
    """The folder that has all of `wanted` (patterns) in it: `root` or the nearest below, three folders down at most."""
    level = [root]
    for _ in range(4):
        found = [folder for folder in level if all(any(folder.glob(name)) for name in wanted)]
        if len(found) > 1:
            names = " and ".join(str(folder.relative_to(root)) for folder in found)
            raise DataError(f"{root}: holds {names}, each with {wanted[0]}. Name one of them.")
        if found:
            return found[0]
        level = [
            Path(entry)
            for folder in level
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
            if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
        ]
    names = ", ".join(archive.file_name for archive in card.archives)
    raise DataError(
        f"{root}: has no folder with {', '.join(wanted)}, and not the archives {names}. Is it {card.name} as published?"
    )


def _from_voc(
    source: Path, card: DataCard, log: Log, *, class_names: tuple[str, ...], origin: float
) -> dict[str, Split]:
    root = _find(source, ("Annotations", "ImageSets/Main", "JPEGImages"), card)
    coco = voc_to_coco(root, tuple(card.images), class_names, origin, log)
    return {
        split: Split(content, [root / "JPEGImages" / row["file_name"] for row in content["images"]])
        for split, content in coco.items()
    }


def _from_penn_fudan(source: Path, card: DataCard, log: Log) -> dict[str, Split]:
    root = _find(source, ("PNGImages", "PedMasks"), card)
    return {
        split: Split(content, [root / "PNGImages" / row["file_name"] for row in content["images"]])
        for split, content in penn_fudan_to_coco(root).items()
    }


def _from_coco(source: Path, card: DataCard, log: Log) -> dict[str, Split]:
    splits = {}
    for split in card.images:
        name = f"annotations/instances_{split}.json"
        pictures = sorted(_find(source, (f"{split}/*.jpg",), card).glob(f"{split}/*.jpg"))
        splits[split] = Split(_find(source, (name,), card) / name, pictures)
    return splits


# ------------------------------------------------------------------------------------------------------- the data cards

# GitHub packs an archive anew on request and doesn't promise equal bytes; counts and digest check what is in it.
_BCCD_COMMIT = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"
_BCCD = DataCard(
    name="bccd",
    title="Blood cells under the microscope: red, white, platelets",
    homepage="https://github.com/Shenggan/BCCD_Dataset",
    licence="MIT",
    note="The author's own splits, at a fixed commit. Two boxes of zero size are left out; other slips are kept.",
    archives=(
        Archive(
            f"https://github.com/Shenggan/BCCD_Dataset/archive/{_BCCD_COMMIT}.zip", f"BCCD_Dataset-{_BCCD_COMMIT}.zip"
        ),
    ),
    unpacked_bytes=50_000_000,
    images={"train": 205, "val": 87, "test": 72},
    boxes={"train": 2804, "val": 1137, "test": 945},
    digest="679a107b2b0ed86d047aa53984f6709ba5b5ac7e9317ef1134d64685e9483b00",
    convert=partial(_from_voc, class_names=("RBC", "WBC", "Platelets"), origin=0.0),
)

# Sizes as the server announces them. COCO itself publishes no checksums; these stand in many libraries' tables.
_COCO_ANNOTATIONS = Archive(
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    "annotations_trainval2017.zip",
    size=252_907_541,
    md5="f4bbac642086de4f52a3fdda2de5fa2c",
)
_COCO_VAL = Archive(
    "http://images.cocodataset.org/zips/val2017.zip",
    "val2017.zip",
    size=815_585_330,
    md5="442b8da7639aecaf257c1dceb8ba8c80",
)
_COCO_TRAIN = Archive(
    "http://images.cocodataset.org/zips/train2017.zip",
    "train2017.zip",
    size=19_336_861_798,
    md5="cced6f7f71b7629ddf16f17bbcfab6b2",
)
_COCO_LICENCE = "annotations CC BY 4.0; the pictures under Flickr's terms, each one's licence in the JSON"
_COCO_VAL_ONLY = DataCard(
    name="coco2017-val",
    title="COCO 2017, the validation split alone",
    homepage="https://cocodataset.org",
    licence=_COCO_LICENCE,
    note="Enough to evaluate published weights. To train on COCO as well, fetch coco2017 into a folder of its own.",
    archives=(_COCO_ANNOTATIONS, _COCO_VAL),
    unpacked_bytes=2_000_000_000,
    images={"val2017": 5_000},
    convert=_from_coco,
)
_COCO = DataCard(
    name="coco2017",
    title="COCO 2017: 80 classes of everyday things",
    homepage="https://cocodataset.org",
    licence=_COCO_LICENCE,
    note="The set of both papers. A COCO folder that you have already needs no fetching: it is read as it is.",
    archives=(_COCO_ANNOTATIONS, _COCO_VAL, _COCO_TRAIN),
    unpacked_bytes=22_000_000_000,
    images={"train2017": 118_287, "val2017": 5_000},
    convert=_from_coco,
)

# The zip's own checksums and the counts verify it; nobody publishes another.
_PENN_FUDAN = DataCard(
    name="penn-fudan",
    title="Pedestrians on two campuses, boxes from masks",
    homepage="https://www.cis.upenn.edu/~jshi/ped_html/",
    licence="none stated; made for research (Wang et al., ACCV 2007)",
    note="The set of torchvision's detection tutorial. It has no split of its own: val is 50 fixed pictures of 170.",
    archives=(
        Archive("https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip", "PennFudanPed.zip", size=53_723_336),
    ),
    unpacked_bytes=100_000_000,
    images={"train": 120, "val": 50},
    convert=_from_penn_fudan,
)

_VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# Address and md5 as in torchvision.datasets.VOCDetection; host.robots.ox.ac.uk sends on to the same server.
_VOC2012 = DataCard(
    name="voc2012",
    title="Pascal VOC 2012: 20 classes",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    licence="the pictures under Flickr's terms",
    note="train and val; the labels of its test pictures are not public. Objects marked difficult are kept.",
    archives=(
        Archive(
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "VOCtrainval_11-May-2012.tar",
            size=1_999_639_040,
            md5="6cd6e144f989b92b3379bac3b3de84fd",
        ),
    ),
    unpacked_bytes=2_100_000_000,
    images={"train": 5_717, "val": 5_823},
    convert=partial(_from_voc, class_names=_VOC_CLASSES, origin=1.0),  # VOC's first pixel is 1
)

FETCHABLE: dict[str, DataCard] = {card.name: card for card in (_BCCD, _COCO_VAL_ONLY, _COCO, _PENN_FUDAN, _VOC2012)}
