"""Broken and hostile input of every kind, each with the text that a person gets: what is wrong, where, what to do.

A case makes its input in an empty folder and reads it as a user would. Expected are parts of the one error's text, the
place among them; any other exception, and any half-written result, fails the test.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as tensors_to_bytes

import minidet
from minidet.assign import ATSS, OTA, POTO, BestAnchor, CentreSampling, MaxIoU, OneToOne, SimOTA, UniformMatching
from minidet.cli import change_recipe, main
from minidet.data.archive import unpack
from minidet.data.augment import Augmentation
from minidet.data.check import check_dataset, format_faults
from minidet.data.coco import CocoDataset, load_split
from minidet.data.fetch import fetch
from minidet.data.images import read_image
from minidet.data.penn_fudan import penn_fudan_to_coco
from minidet.data.shapes import ShapesConfig, make_shapes
from minidet.data.voc import read_voc, voc_to_coco
from minidet.detectors.tensor_files import read_tensor_file
from minidet.detectors.weights import model_description
from minidet.errors import MinidetError
from minidet.evaluation.average_precision import evaluate_detections
from minidet.files import read_json
from minidet.training.checkpoint import load_checkpoint
from minidet.training.recipe import RECIPES
from minidet.training.run_folder import read_metrics

NAN, INF = float("nan"), float("inf")
CASES: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {}  # name -> part, what is done, words


def case(part: str, name: str, act: Callable[[Path], object], *words: str) -> None:
    assert name not in CASES, name
    CASES[name] = (part, act, words)


# ---- annotations: COCO JSON ------------------------------------------------------------------------------------------

IMAGE = {"id": 1, "file_name": "1.png", "height": 48, "width": 64}
BOX = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0}
GOOD = {"images": [IMAGE], "annotations": [BOX], "categories": [{"id": 1, "name": "cat"}]}


def coco(content: object) -> Callable[[Path], object]:
    """Load a data set whose annotation file holds this: JSON value or bytes."""

    def act(folder: Path) -> object:
        path = folder / "annotations" / "instances_train.json"
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return load_split(folder, "train")

    return act


def with_image(**changes: object) -> dict:
    return {**GOOD, "images": [{**IMAGE, **changes}]}


def with_box(**changes: object) -> dict:
    return {**GOOD, "annotations": [{**BOX, **changes}]}


def without(row: dict, key: str) -> dict:
    return {name: value for name, value in row.items() if name != key}


FILE = "instances_train.json"
for name, content, words in [
    ("coco: an empty file", b"", ("is not valid JSON", "copy or download it again")),
    ("coco: it breaks off", json.dumps(GOOD).encode()[:60], ("is not valid JSON", "line 1, column")),
    ("coco: a picture instead", b"\x89PNG\r\n\x1a\n", ("is not UTF-8 text", "Is it really a JSON file?")),
    ("coco: 100,000 brackets", b"[" * 100_000, ("nested too deeply",)),
    ("coco: a number of 5,000 digits", b"9" * 5000, ("cannot be read as JSON",)),
    ("coco: a list", [], ("holds a list, not an object", 'the lists "images"')),
    ("coco: null", None, ("holds null, not an object",)),
    ("coco: no images", without(GOOD, "images"), ('"images" is missing', 'Give the file a list "images"')),
    ("coco: images is a text", {**GOOD, "images": "x"}, ('"images" is a text',)),
    ("coco: no categories", {**GOOD, "categories": []}, ('"categories" is empty', "List at least one entry")),
    ("coco: annotations is null", {**GOOD, "annotations": None}, ('"annotations" is null',)),
    ("coco: an image is a number", {**GOOD, "images": [3]}, ("images[0]: is 3", "must be an object")),
    ("coco: an image id is a text", with_image(id="1"), ("\"id\" is '1'", "integer id of its own")),
    ("coco: an image id is true", with_image(id=True), ('"id" is True', "integer id of its own")),
    ("coco: an image id of 70 bits", with_image(id=2**70), ('"id" is', "integer id of its own")),
    ("coco: two images of one id", {**GOOD, "images": [IMAGE, IMAGE]}, ("image 1: id 1 is taken already",)),
    ("coco: no file name", {**GOOD, "images": [without(IMAGE, "file_name")]}, ('image 1: "file_name" is missing',)),
    ("coco: a name that climbs", with_image(file_name="../1.png"), ("leaves the images folder", "relative to")),
    ("coco: a name from the root", with_image(file_name="/etc/passwd"), ("leaves the images folder",)),
    ("coco: a name on a drive", with_image(file_name="C:\\1.png"), ("leaves the images folder", "a drive")),
    ("coco: NUL in a name", with_image(file_name="a\0.png"), ('"file_name" is', "name of the image file")),
    ("coco: height 0", with_image(height=0), ('image 1: "height" is 0', "whole pixels")),
    ("coco: width -5", with_image(width=-5), ('"width" is -5', "whole pixels")),
    ("coco: height NaN", with_image(height=NAN), ('"height" is nan', "whole pixels")),
    ("coco: width 1e308", with_image(width=1e308), ('"width" is 1e+308', "whole pixels")),
    ("coco: height a text", with_image(height="48"), ("\"height\" is '48'",)),
    ("coco: a box of an unknown image", with_box(image_id=9), ("annotation 5: unknown image", "correct image_id")),
    ("coco: a box of an unknown class", with_box(category_id=9), ("unknown category", "correct category_id")),
    ("coco: no bbox", {**GOOD, "annotations": [without(BOX, "bbox")]}, ('annotation 5: "bbox" is missing',)),
    ("coco: three numbers", with_box(bbox=[1, 2, 3]), ('"bbox" is [1, 2, 3]', "four finite numbers")),
    ("coco: NaN in a box", with_box(bbox=[1, 2, NAN, 3]), ("nan", "four finite numbers")),
    ("coco: infinity in a box", with_box(bbox=[1, 2, INF, 3]), ("inf", "four finite numbers")),
    ("coco: a text in a box", with_box(bbox=[1, 2, "3", 4]), ("'3'", "four finite numbers")),
    ("coco: a box is an object", with_box(bbox={"x": 1}), ("{'x': 1}", "four finite numbers")),
    ("coco: area NaN", with_box(area=NAN), ('"area" is nan', "leave it out")),
    ("coco: an area in words", with_box(area="large"), ("\"area\" is 'large'", "leave it out")),
    ("coco: a class without name", {**GOOD, "categories": [{"id": 1}]}, ('categories[0]: "name" is missing',)),
    ("coco: a class name of blanks", {**GOOD, "categories": [{"id": 1, "name": " "}]}, ('"name" is',)),
]:
    case("annotations", name, coco(content), FILE, *words)
case("annotations", "coco: no such split", lambda f: load_split(f, "trian"), "no split 'trian'", "Looked for")
case("annotations", "coco: a name of 300 letters", lambda f: load_split(f / ("n" * 300), "train"), "nor is there such")
case("annotations", "coco: a folder as file", lambda f: CocoDataset(f, f), "cannot be read", "Is a directory")


# ---- annotations: Pascal VOC ----------------------------------------------------------------------------------------

VOC_BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{xmax}</xmax><ymax>9</ymax></bndbox>"


def voc(text: str | bytes) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        (folder / "a.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_voc(folder / "a.xml")

    return act


def voc_object(inside: str) -> str:
    return f"<annotation><object>{inside}</object></annotation>"


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
for name, text, words in [
    ("voc: an entity bomb", f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l9;</annotation>', ("entity bomb",)),
    (
        "voc: a file as entity",
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        ("declares a document type", "Remove the <!DOCTYPE> part"),
    ),
    (
        "voc: an address as document type",
        '<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd"><annotation/>',
        ("document type",),
    ),
    ("voc: an entity nobody defined", "<annotation>&x;</annotation>", ("is not whole XML", "undefined entity")),
    ("voc: it breaks off", "<annotation><object>", ("is not whole XML", "line 1")),
    ("voc: an empty file", "", ("is not whole XML", "get it again")),
    ("voc: a web page", "<html/>", ("starts with <html>, not with <annotation>", "Is it a VOC file?")),
    ("voc: wrong bytes", b"<annotation>\xff\xfe</annotation>", ("is not whole XML",)),
    ("voc: an encoding nobody knows", b'<?xml version="1.0" encoding="klingon"?><annotation/>', ("encoding",)),
    ("voc: 17 MiB", b"<annotation>" + b" " * (17 * 2**20), ("is larger than 16 MiB",)),
    ("voc: an object without name", voc_object(VOC_BOX.format(xmax=5)), ("object 1 has no <name>",)),
    ("voc: an object without box", voc_object("<name>cat</name>"), ("object 1 (cat) has no <bndbox>",)),
    ("voc: corners the wrong way round", voc_object("<name>cat</name>" + VOC_BOX.format(xmax=0)), ("wrong way round",)),
    ("voc: a corner is NaN", voc_object("<name>cat</name>" + VOC_BOX.format(xmax="nan")), ("it needs a number",)),
    ("voc: a corner is 1e300", voc_object("<name>cat</name>" + VOC_BOX.format(xmax="1e300")), ("it needs a number",)),
    ("voc: a corner in words", voc_object("<name>cat</name>" + VOC_BOX.format(xmax="ten")), ("xmax 'ten'",)),
    ("voc: a corner is missing", voc_object("<name>cat</name><bndbox><xmin>1</xmin></bndbox>"), ("has ymin None",)),
]:
    case("annotations", name, voc(text), "a.xml", *words)


def voc_folder(lists: dict[str, bytes], splits: tuple[str, ...] | None = None) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (folder / name).mkdir(parents=True)
        for name, content in lists.items():
            (folder / "ImageSets" / "Main" / name).write_bytes(content)
        return voc_to_coco(folder, splits)

    return act


case("annotations", "voc: no lists", voc_folder({}), "has none of train.txt", "Is", "a VOC folder?")
case("annotations", "voc: a list of paths", voc_folder({"train.txt": b"../a\n"}), "train.txt", "'../a' is a path")
case("annotations", "voc: a list in UTF-16", voc_folder({"train.txt": b"\xff\xfea\0"}), "train.txt: is not UTF-8")
case("annotations", "voc: listed twice", voc_folder({"train.txt": b"a\na\n"}), "names 1 pictures twice", "Remove")
case("annotations", "voc: no XML", voc_folder({"train.txt": b"a\n"}), "a.xml: there is no such annotation file")
case("annotations", "voc: no such list", voc_folder({}, ("train",)), "train.txt: there is no such list", "one a line")
case("annotations", "voc: NUL in a list", voc_folder({"train.txt": b"a\0b\n"}), "train.txt", "is a path")


# ---- annotations: Penn-Fudan ----------------------------------------------------------------------------------------


def png(mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def penn_fudan(image: bytes, mask: bytes | None) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        for name, content in {"PNGImages/a.png": image, "PedMasks/a_mask.png": mask}.items():
            (folder / name).parent.mkdir()
            if content is not None:
                (folder / name).write_bytes(content)
        return penn_fudan_to_coco(folder)

    return act


case("annotations", "penn-fudan: nothing there", penn_fudan_to_coco, "has no .png images", "PennFudanPed folder?")
case("annotations", "penn-fudan: no mask", penn_fudan(png(), None), "a_mask.png: there is no such file")
case("annotations", "penn-fudan: a mask in colour", penn_fudan(png(), png("RGB")), "a_mask.png", "one channel of 8")
case("annotations", "penn-fudan: another size", penn_fudan(png(), png("L", (9, 6))), "a_mask.png: is 9x6", "8x6")
case(
    "annotations",
    "penn-fudan: a torn mask",
    penn_fudan(png(size=(64, 48)), encoded("PNG", "L")[:900]),
    "a_mask.png",
    "Unpack the archive",
)
EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%ImageData: 8 6 8 1 0 1 1 "beginimage"\n'
case("annotations", "penn-fudan: a program as mask", penn_fudan(png(), EPS), "a_mask.png", "Unpack the archive")
case("annotations", "penn-fudan: a text as mask", penn_fudan(png(), b"0 1 0"), "a_mask.png", "Unpack the archive")


# ---- detections for eval ---------------------------------------------------------------------------------------------

FOUND = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "score": 0.5}


def detections(rows: object, truth: object = GOOD) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        for name, content in {"truth.json": truth, "rows.json": rows}.items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return evaluate_detections(folder / "truth.json", folder / "rows.json")

    return act


for name, rows, words in [
    ("eval: an object instead of a list", {}, ("rows.json: COCO results are a list", "this is an object")),
    ("eval: a row is a number", [3], ("rows.json: detection 0 is not an object",)),
    ("eval: no image_id", [without(FOUND, "image_id")], ("detection 0", '"image_id" is missing')),
    ("eval: an unknown image", [{**FOUND, "image_id": 9}], ("image_id 9 is not among the 1 images", "truth.json")),
    ("eval: an image id that is a list", [{**FOUND, "image_id": [1]}], ("image_id [1] is not among",)),
    ("eval: an unknown class", [{**FOUND, "category_id": 0}], ("category_id 0 is not among", "same data set?")),
    ("eval: a score in words", [{**FOUND, "score": "high"}], ("the score must be a finite number",)),
    ("eval: a score of NaN", [{**FOUND, "score": NAN}], ("the score must be a finite number, not nan",)),
    ("eval: a box of two corners", [{**FOUND, "bbox": [30, 20, -29, -18]}], ("negative size", "not two corners")),
    ("eval: a box of three", [{**FOUND, "bbox": [1, 2, 3]}], ("bbox must be four finite numbers",)),
    ("eval: infinity in a box", [{**FOUND, "bbox": [1, 2, INF, 3]}], ("bbox must be four finite numbers",)),
]:
    case("detections", name, detections(rows), *words)
case("detections", "eval: torn rows", detections(b"[{"), "rows.json: is not valid JSON")
case("detections", "eval: truth is a list", detections([], []), "truth.json: a COCO annotation file is an object")
case("detections", "eval: NaN in the truth", detections([], with_box(bbox=[1, 2, NAN, 3])), "annotations[0] (id 5")


# ---- pictures --------------------------------------------------------------------------------------------------------


def picture(content: bytes, name: str = "a.jpg") -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        (folder / name).write_bytes(content)
        return read_image(folder / name)

    return act


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size, of any contents."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"):
    whole = encoded(kind)
    case(
        "pictures",
        f"{kind}: two thirds of a file",
        picture(whole[: len(whole) * 2 // 3]),
        "a.jpg: cannot be read",
        "Replace the file, or leave it out",
    )
    case("pictures", f"{kind}: the first 12 bytes", picture(whole[:12]), "a.jpg: cannot be read as an image")
FRAMES = [Image.new("P", (64, 48), n) for n in range(3)]
for name, content, words in [
    ("picture: no bytes", b"", ("it is empty",)),
    ("picture: zeros", bytes(5000), ("it is none of JPEG, PNG",)),
    ("picture: a text", b"hello", ("it is none of JPEG, PNG",)),
    ("picture: a web page", b"<html>not found</html>", ("it is none of",)),
    ("picture: SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>', ("it is none of",)),
    (
        "picture: PostScript, whose reading starts an interpreter",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        ("it is none of",),
    ),
    ("picture: PDF", b"%PDF-1.4\n", ("it is none of",)),
    ("picture: a Windows metafile", b"\xd7\xcd\xc6\x9a" + bytes(80), ("it is none of",)),
    ("picture: 30,000 x 30,000 pixels in 70 bytes", png_of(30_000, 30_000), ("more pixels than a picture", "tiles")),
    ("picture: 2^31 pixels wide", png_of(2**31 - 1, 2**31 - 1), ("a.jpg:",)),
    ("picture: 0 x 0 pixels", png_of(0, 0), ("cannot be read as an image",)),
    ("picture: fewer rows than it claims", png_of(64, 48, bytes(100)), ("cannot be read as an image",)),
    ("picture: a torn CMYK", encoded("JPEG", "CMYK")[:900], ("cannot be read as an image",)),
    ("picture: a torn 16-bit PNG", encoded("PNG", "I;16")[:300], ("cannot be read as an image",)),
    ("picture: numbers of 32 bits", encoded("TIFF", "F"), ("more than 16 bits", "8 bits a channel")),
    (
        "picture: the EXIF block swallows the file",
        encoded("JPEG")[:2] + b"\xff\xe1\xff\xffExif\0\0" + encoded("JPEG")[2:],
        ("cannot be read as an image",),
    ),
    ("picture: a torn animation", encoded("GIF", "P", save_all=True, append_images=FRAMES)[:400], ("cannot be read",)),
]:
    case("pictures", name, picture(content), "a.jpg", *words)
case("pictures", "picture: a folder", read_image, "it is a folder")
case("pictures", "picture: not there", lambda f: read_image(f / "b.png"), "b.png: there is no such image", "Check")
case("pictures", "picture: NUL in the name", lambda f: read_image(f / "a\0.png"), "cannot be read as an image")


# ---- archives --------------------------------------------------------------------------------------------------------


def archive(content: bytes, **limits: int) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        (folder / "a.zip").write_bytes(content)
        return unpack(folder / "a.zip", folder / "out", progress=False, **limits)

    return act


def zipped(*names: str, content: bytes = b"1", compression: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            file.writestr(info, content, compression)
    return buffer.getvalue()


def tarred(*members: tuple[str, bytes, str], content: bytes = b"1") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(content) if kind == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


REGULAR = tarfile.REGTYPE
OUT = ("leads out of the folder", "Mistrust its source")
for name, content, words in [
    ("archive: no bytes", b"", ("is no zip, tar or tar.gz",)),
    ("archive: a web page", b"<html>" * 200, ("is no zip, tar or tar.gz", "Get it again")),
    ("zip: half of it", zipped("a", content=bytes(5000))[:90], ("damaged or broken off", "Get the file again")),
    ("zip: ../", zipped("../a"), OUT),
    ("zip: a/../../", zipped("a/../../b"), OUT),
    ("zip: from the root", zipped("/etc/cron.d/a"), OUT),
    ("zip: backslashes", zipped("..\\a"), OUT),
    ("zip: a drive", zipped("C:\\a"), OUT),
    ("zip: a second stream", zipped("a.txt:hidden"), OUT),
    ("zip: a link", zipped("a", mode=0o120777), ("is a link or a device",)),
    ("zip: a device", zipped("a", mode=0o020666), ("is a link or a device",)),
    (
        "zip: encrypted",
        zipped("a").replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"),
        ("is encrypted", "--from"),
    ),
    ("zip: one name twice", zipped("a", "./a"), ("names the same file twice",)),
    ("zip: file and folder of one name", zipped("a", "a/b"), ("names the same file twice",)),
    ("zip: two names that are one on Windows and macOS", zipped("A/x", "a/X"), ("names the same file twice",)),
    ("zip: a name of 300 letters", zipped("n" * 300), ("cannot be unpacked", "File name too long")),
    (
        "zip: a compression nobody knows",
        zipped("a", compression=0).replace(b"\x14\0\0\0\0\0", b"\x14\0\0\0\x63\0"),
        ("damaged",),
    ),
    (
        "zip: it lies about sizes",
        zipped("a", content=bytes(9999)).replace(struct.pack("<I", 9999), struct.pack("<I", 9)),
        ("damaged",),
    ),
    ("zip: other contents", zipped("a", content=b"right", compression=0).replace(b"right", b"wrong"), ("CRC",)),
    ("tar: ../", tarred(("../a", REGULAR, "")), OUT),
    ("tar: a link out", tarred(("a", tarfile.SYMTYPE, "/etc")), ("is a link or a device",)),
    ("tar: a hard link", tarred(("a", tarfile.LNKTYPE, "/etc/passwd")), ("is a link or a device",)),
    ("tar: a device", tarred(("a", tarfile.CHRTYPE, "")), ("is a link or a device",)),
    ("tar: a pipe", tarred(("a", tarfile.FIFOTYPE, "")), ("is a link or a device",)),
    ("tar: through a link", tarred(("a", tarfile.SYMTYPE, "/tmp"), ("a/b", REGULAR, "")), ("is a link or a device",)),
    ("tar: one name twice", tarred(("a", REGULAR, ""), ("a", REGULAR, "")), ("names the same file twice",)),
    (
        "tar.gz: half of it",
        gzip.compress(tarred(("a", REGULAR, ""), content=np.random.default_rng(0).bytes(9999)))[:5000],
        ("damaged",),
    ),
]:
    case("archives", name, archive(content), "a.zip", *words)
BOMB = zipped("a", content=bytes(2_000_000))
case("archives", "zip: a bomb", archive(BOMB, max_bytes=1_000_000), "holds more than 1,000,000 bytes", "trust")
case(
    "archives",
    "tar.gz: a bomb",
    archive(gzip.compress(tarred(("a", REGULAR, ""), content=bytes(2_000_000))), max_bytes=1_000_000),
    "holds more than 1,000,000 bytes",
)
case("archives", "zip: 1,001 files", archive(zipped(*map(str, range(1001))), max_files=1000), "or 1,000 files")
case("archives", "archive: not there", lambda f: unpack(f / "b.zip", f / "out"), "b.zip: there is no such file")
case("archives", "fetch: no such set", lambda f: fetch("cocoa", f), "'cocoa' is no data set", "There are: bccd")
case("archives", "fetch: from nowhere", lambda f: fetch("bccd", f / "d", f / "x", False), "no such folder or archive")


# ---- checkpoints and weights -----------------------------------------------------------------------------------------


class Program:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple:
        return (open, ("it_ran", "w"))


@pytest.fixture(scope="module", autouse=True)
def _small_model() -> None:
    """One set of weights for all cases; made when the tests run, not when they are collected."""
    torch.manual_seed(0)
    model = minidet.create_model("yolox-nano", num_classes=1, class_names=["cat"], input_hw=(64, 64))
    SMALL.update(state=dict(model.state_dict()), description=model_description(model))


SMALL: dict[str, dict] = {}


def bytes_of(value: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def tensor_file(name: str, content: Callable[[], bytes] | bytes) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content())
        return read_tensor_file(folder / name)

    return act


def weights(content: Callable[[], bytes] | bytes) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        (folder / "w.safetensors").write_bytes(content if isinstance(content, bytes) else content())
        return minidet.load_model(folder / "w.safetensors")

    return act


def described(change: Callable[[dict], object]) -> Callable[[], bytes]:
    """Our own weights file with another description; `change` edits it, or returns what stands in its place."""

    def make() -> bytes:
        description = json.loads(json.dumps(SMALL["description"]))
        other = change(description)
        text = json.dumps(description if other is None else other)
        return tensors_to_bytes(SMALL["state"], metadata={"format": "minidet", "model": text})

    return make


def stated(change: Callable[[dict], object]) -> Callable[[], bytes]:
    """Our own weights file with other tensors."""

    def make() -> bytes:
        state = {key: value.clone() for key, value in SMALL["state"].items()}
        change(state)
        text = {"format": "minidet", "model": json.dumps(SMALL["description"])}
        return tensors_to_bytes(state, metadata=text)

    return make


def header(text: bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


PREDICTOR = "head.levels.0.class_predictor.weight"
NOT_OPENED = ("holds more than tensors", "so it is not opened")
HARMLESS = bytes_of({"w": torch.zeros(300)})
for name, content, words in [
    ("pth: no bytes", b"", ("is an empty file",)),
    ("pth: a text", b"hello world", ("is not a whole PyTorch checkpoint", "Download it again")),
    (
        "pth: a web page",
        b"<!DOCTYPE html><html>",
        ("is a web page, not a PyTorch checkpoint", "where the file came from"),
    ),
    ("pth: a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\n", ("pointer of Git LFS",)),
    ("pth: a picture", png(), ("is a picture",)),
    ("pth: half of it", HARMLESS[:700], ("is not a whole PyTorch checkpoint", "Download it again")),
    ("pth: one bit is wrong", HARMLESS.replace(bytes(1000), bytes(999) + b"\1", 1), ("wrong checksum",)),
    ("pth: another zip", zipped("readme.txt"), ("is not a whole PyTorch checkpoint",)),
    ("pth: a zip bomb", zipped("archive/data.pkl", content=bytes(10_000_000)), ("may be a zip bomb",)),
    ("pth: a program", bytes_of({"model": Program()}), (*NOT_OPENED, "it wants to use")),
    ("pth: a program in the old form", pickle.dumps({"model": Program()}), NOT_OPENED),
    ("pth: a whole module", bytes_of(torch.nn.Linear(1, 1)), (*NOT_OPENED, "torch.nn.modules.linear.Linear")),
    ("pth: a plain pickle", pickle.dumps({"a": 1}), NOT_OPENED),
    ("pth: safetensors under another name", tensors_to_bytes({"w": torch.zeros(1)}), ("is a safetensors file under",)),
]:
    case("checkpoints", name, tensor_file("w.pth", content), "w.pth", *words)
for name, content, words in [
    ("pkl: a program", pickle.dumps({"w": Program()}), (*NOT_OPENED, "it wants to use")),
    ("pkl: objects in an array", pickle.dumps(np.array([Program()], dtype=object)), NOT_OPENED),
    ("pkl: another function of numpy", b"cnumpy\nload\n(S'x.npy'\ntR.", ("it wants to use numpy.load",)),
    ("pkl: a name inside an allowed module", b"cnumpy\nndarray.tofile\n.", ("it wants to use",)),
    ("pkl: a name by the stack", b"\x80\x04\x8c\x02os\x8c\x06system\x93.", ("it wants to use os.system",)),
    ("pkl: room for two billion objects asked for in ten bytes", b"\x80\x02Nr\xff\xff\xff\x7f", ("w.pkl",)),
    ("pkl: a text of 2^60 bytes", b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.", ("w.pkl",)),
    ("pkl: half of it", pickle.dumps({"w": np.zeros(100)})[:150], ("w.pkl",)),
    (
        "pkl: it lies about a shape",
        pickle.dumps({"w": np.zeros(3, "f4")}, 2).replace(b"K\x03\x85", b"K\x07\x85"),
        ("3 numbers for an array of shape (7,)",),
    ),
    ("pkl: a PyTorch file", HARMLESS, ("is a zip archive",)),
]:
    case("checkpoints", name, tensor_file("w.pkl", content), "w.pkl", *words)
for name, content, words in [
    ("safetensors: no bytes", b"", ("an empty file",)),
    ("safetensors: a header of 100 GB", header(b"{}", length=100 * 10**9), ("header too large",)),
    ("safetensors: a header longer than the file", header(b"{}", length=900), ("is not a whole safetensors file",)),
    ("safetensors: a header that is no JSON", header(b"{nonsense}"), ("is not a whole safetensors file",)),
    ("safetensors: a header that is a list", header(b"[1, 2]"), ("is not a whole safetensors file",)),
    (
        "safetensors: tensors beyond the end",
        header({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
        ("is not a whole safetensors file",),
    ),
    (
        "safetensors: a shape that does not fit its bytes",
        header({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, bytes(4)),
        ("is not a whole safetensors file",),
    ),
    (
        "safetensors: 2^64 numbers",
        header({"w": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 4]}}, bytes(4)),
        ("is not a whole safetensors file",),
    ),
    (
        "safetensors: a type nobody knows",
        header({"w": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        ("is not a whole safetensors file",),
    ),
    ("safetensors: a PyTorch checkpoint", HARMLESS, ("a zip archive", "minidet import-official")),
    ("safetensors: foreign", tensors_to_bytes({"w": torch.zeros(1)}), ("was not written by minidet.save_weights",)),
    (
        "safetensors: foreign with a format",
        tensors_to_bytes({"w": torch.zeros(1)}, {"format": "pt"}),
        ("it names no model",),
    ),
    ("safetensors: half of it", lambda: described(lambda d: None)()[:-5000], ("is not a whole safetensors file",)),
]:
    case("checkpoints", name, weights(content), "w.safetensors", *words)
UNDERSTOOD = ("description of the model cannot be understood", "update minidet, or save the weights again")
for name, change, words in [
    ("description: a list", lambda d: [1], UNDERSTOOD),
    ("description: a number", lambda d: 7, UNDERSTOOD),
    ("description: no name", lambda d: d.__delitem__("name"), UNDERSTOOD),
    (
        "description: a name nobody knows",
        lambda d: d.update(name="yolox-huge"),
        ("no model 'yolox-huge'", "Did you mean"),
    ),
    ("description: a name that is a list", lambda d: d.update(name=["yolox-s"]), ("there is no model",)),
    (
        "description: a setting of a newer version",
        lambda d: d.update(attention=True),
        ("no setting 'attention'", *UNDERSTOOD),
    ),
    (
        "description: an assigner of a newer version",
        lambda d: d["assigner"].update(type="Better"),
        ("no assigner 'Better'",),
    ),
    (
        "description: a setting of a newer assigner",
        lambda d: d["assigner"].update(temperature=1),
        ("no setting 'temperature'",),
    ),
    (
        "description: an assigner with a text for a number",
        lambda d: d["assigner"].update(max_k="ten"),
        ("max_k is 'ten'",),
    ),
    (
        "description: classes are a text",
        lambda d: d.update(num_classes="80"),
        ("num_classes is '80'", "a whole number"),
    ),
    ("description: no classes", lambda d: d.update(num_classes=0), ("num_classes is 0", "from 1 to 100,000")),
    ("description: a billion classes", lambda d: d.update(num_classes=10**9), ("num_classes is 1000000000",)),
    ("description: names that are numbers", lambda d: d.update(class_names=[1]), ("class_names is", "texts or None")),
    (
        "description: two names for one class",
        lambda d: d.update(class_names=["a", "b"]),
        ("2 class names for num_classes=1",),
    ),
    (
        "description: a width that fills any memory",
        lambda d: d.update(width=16.0, depth=16.0),
        ("shape", "in the file"),
    ),
    ("description: an odd input size", lambda d: d.update(input_hw=[50, 64]), ("multiples of 32",)),
    ("description: one side", lambda d: d.update(input_hw=[64]), ("input_hw is", "2 whole numbers")),
    ("description: a NaN threshold", lambda d: d.update(score_threshold=NAN), ("score_threshold is nan",)),
    ("description: deviations of zero", lambda d: d.update(pixel_std=[0, 0, 0]), ("pixel_std is",)),
    (
        "description: classes that the weights have not",
        lambda d: d.update(num_classes=9, class_names=None),
        ("num_classes that does not match",),
    ),
]:
    case("checkpoints", name, weights(described(change)), "w.safetensors", *words)
for name, change, words in [
    ("weights: a tensor is missing", lambda s: s.pop(PREDICTOR), (f"{PREDICTOR}: missing",)),
    ("weights: one too many", lambda s: s.update(extra=torch.zeros(1)), ("extra: not part of yolox-nano",)),
    (
        "weights: another shape",
        lambda s: s.update({PREDICTOR: torch.zeros(2, 64, 1, 1)}),
        ("[2, 64, 1, 1] in the file",),
    ),
    (
        "weights: whole numbers",
        lambda s: s.update({PREDICTOR: s[PREDICTOR].to(torch.int32)}),
        ("torch.int32 in the file, torch.float32 in",),
    ),
    (
        "weights: complex numbers",
        lambda s: s.update({PREDICTOR: s[PREDICTOR].to(torch.complex64)}),
        ("torch.complex64 in the file",),
    ),
    (
        "weights: NaN",
        lambda s: s[PREDICTOR].fill_(NAN),
        ("1 of the weights hold NaN", PREDICTOR, "Take an earlier file"),
    ),
    ("weights: infinite", lambda s: s[PREDICTOR].fill_(INF), ("hold NaN or infinite numbers",)),
]:
    case("checkpoints", name, weights(stated(change)), "w.safetensors", *words)


def official(value: object, name: str = "yolox-nano") -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        torch.save(value, folder / "o.pth")
        return minidet.load_official(name, folder / "o.pth")

    return act


CLASSES = "head.cls_preds.0.weight"
for name, value, words in [
    ("official: a list", [1, 2], ("is not a YOLOX checkpoint", "no tensors by name")),
    ("official: no tensors", {"model": {}}, ("no tensors by name",)),
    ("official: of something else", {"model": {"w": torch.zeros(3)}}, (f"has no {CLASSES}", "no YOLOX checkpoint")),
    ("official: no classes", {CLASSES: torch.zeros(0, 64, 1, 1)}, ("num_classes is 0", "Is it another variant?")),
    ("official: the class predictor alone", {CLASSES: torch.zeros(3, 64, 1, 1)}, ("missing",)),
    (
        "official: a stem of one number",
        {CLASSES: torch.zeros(3, 64, 1, 1), "backbone.backbone.stem.conv.conv.weight": torch.tensor(1.0)},
        ("cannot be turned into a yolox-nano",),
    ),
    (
        "official: a key that ends early",
        {CLASSES: torch.zeros(3, 64, 1, 1), "a.conv3.x": torch.zeros(1), "a.b": torch.zeros(1)},
        ("o.pth",),
    ),
    ("official: sparse", {"w": torch.eye(3).to_sparse()}, ("w is sparse",)),
    ("official: without values", {"w": torch.zeros(3, device="meta")}, ("w is sparse, quantised or without values",)),
]:
    case("checkpoints", name, official(value), "o.pth", *words)
case(
    "checkpoints",
    "official: YOLOX as YOLOF",
    official({CLASSES: torch.zeros(3, 64, 1, 1)}, "yolof-r18-c5"),
    "o.pth",
    "no YOLOF checkpoint",
)
case(
    "checkpoints",
    "official: a predictor of nothing",
    official(
        {"decoder.cls_score.weight": torch.zeros(5, 4, 3, 3), "decoder.object_pred.weight": torch.tensor(1.0)},
        "yolof-r18-c5",
    ),
    "o.pth",
)
case("checkpoints", "weights: a folder", lambda f: minidet.load_model(f), "a folder", "end in .safetensors")
case("checkpoints", "weights: not there", lambda f: minidet.load_model(f / "w.safetensors"), "there is no such file")


def checkpoint(content: bytes) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        (folder / "epoch_0001.pt").write_bytes(content)
        return load_checkpoint(folder / "epoch_0001.pt")

    return act


for name, content, words in [
    ("checkpoint: no bytes", b"", ()),
    ("checkpoint: half of it", HARMLESS[:700], ()),
    ("checkpoint: one bit is wrong", HARMLESS.replace(bytes(1000), bytes(999) + b"\1", 1), ("checksum",)),
    ("checkpoint: a program", bytes_of({"model": Program()}), ()),
    ("checkpoint: a list", bytes_of([1, 2]), ("dictionary",)),
]:
    case("checkpoints", name, checkpoint(content), "epoch_0001.pt", *words)
case("checkpoints", "checkpoint: not there", lambda f: load_checkpoint(f / "a.pt"), "a.pt: there is no such checkpoint")


# ---- settings --------------------------------------------------------------------------------------------------------


def setting(text: str, recipe: str = "course") -> Callable[[Path], object]:
    return lambda _: change_recipe(RECIPES[recipe], (text,), minidet.create_model("yolox-nano"))


for text, words in [
    ("base_lr=much", ("base_lr is 'much'", "a finite number")),
    ("base_lr=null", ("base_lr is None", "a finite number")),
    ("base_lr=NaN", ("base_lr is nan", "a finite number")),
    ("base_lr=1e400", ("base_lr is inf", "a finite number")),
    ("base_lr=true", ("base_lr is True", "a finite number")),
    ("base_lr=0", ("base_lr is 0, so nothing could be learned", "positive number")),
    ("epochs=1.5", ("epochs is 1.5", "a whole number or None")),
    ("epochs=0", ("epochs is 0", "from 1 to 1,000,000")),
    ("epochs=1e99", ("epochs is 1e+99", "a whole number")),
    ('batch_size="4"', ("batch_size is '4'", "a whole number")),
    ("batch_size=0", ("batch_size is 0", "from 1 to 10,000,000")),
    ("multi_scale=[320]", ("multi_scale is (320,)", "2 whole numbers or 'published' or None")),
    ("multi_scale=large", ("multi_scale is 'large'", "2 whole numbers")),
    ("multi_scale=[320,321]", ("multi_scale is (320, 321)", "multiples of 32")),
    ("schedule=linear", ("schedule is 'linear'", "'cosine' or 'steps'")),
    ("steps=[3]", ("steps is (3,)", "Take schedule='steps'")),
    ("momentum=1", ("momentum is 1", "must lie below 1")),
    ("weight_decay=-1", ("weight_decay is -1", "at least 0")),
    ("nesterov=no", ("nesterov is 'no'", "true or false")),
    ("ema_ramp=0.5", ("ema_ramp is 0.5", "a whole number")),
    ("keep_last=0", ("keep_last is 0",)),
    ("eval_every=1.5", ("eval_every is 1.5", "a whole number")),
    ("clip_grad_norm=0", ("clip_grad_norm is 0, so nothing could be learned",)),
    ("augmentation=none", ("augmentation is 'none'", "an Augmentation or None")),
    ("augmentation.flip_prob=2", ("flip_prob is 2", "between 0 and 1")),
    ("augmentation.flip_prob=true", ("flip_prob is True", "a number")),
    ("augmentation.mosaic_scale=[2,1]", ("mosaic_scale is (2, 1)", "the smaller one first")),
    ("augmentation.max_labels=1.5", ("max_labels is 1.5", "a whole number")),
    ("augmentation.mosaik=1", ("there is no such field", "There are mosaic_prob")),
    ("momentun=1", ("there is no such field", "There are epochs")),
    ("momentum", ("write FIELD=VALUE",)),
]:
    case("settings", f"--set {text}", setting(text), *words)


def model_with(name: str, **changes: object) -> Callable[[Path], object]:
    return lambda _: minidet.create_model(name, **changes)


for name, changes, words in [
    ("yolox-nano", {"num_classes": "3"}, ("num_classes is '3'", "a whole number")),
    ("yolox-nano", {"num_classes": True}, ("num_classes is True",)),
    ("yolox-nano", {"class_names": "cat"}, ("class_names is 'cat'", "texts or None")),
    ("yolox-nano", {"class_names": ["cat"]}, ("1 class names for num_classes=80",)),
    ("yolox-nano", {"input_hw": 64}, ("input_hw is 64", "2 whole numbers")),
    ("yolox-nano", {"input_hw": (64.5, 64)}, ("input_hw is (64.5, 64)",)),
    ("yolox-nano", {"input_hw": (64, 50)}, ("multiples of 32",)),
    ("yolox-nano", {"input_hw": (32 * 10**6, 64)}, ("16,384 pixels at most",)),
    ("yolox-nano", {"depth": -1}, ("depth is -1", "from 0 to 16")),
    ("yolox-nano", {"width": 0}, ("width is 0",)),
    ("yolox-nano", {"depthwise": "no"}, ("depthwise is 'no'", "true or false")),
    ("yolox-nano", {"backbone": "vgg"}, ("'vgg' is not known", "choose 'cspdarknet'")),
    ("yolox-nano", {"box_loss": "l2"}, ("'l2' is not known", "choose 'iou'")),
    ("yolox-nano", {"assigner": "simota"}, ("assigner is 'simota'", "an Assigner")),
    ("yolox-nano", {"assigner": SimOTA}, ("assigner is <class",)),
    ("yolox-nano", {"pixel_mean": (1, 2)}, ("pixel_mean is (1, 2)", "3 finite numbers")),
    ("yolox-nano", {"score_threshold": 2}, ("score_threshold is 2", "from 0 to 1")),
    ("yolox-nano", {"nms_threshold": NAN}, ("nms_threshold is nan",)),
    ("yolox-nano", {"max_detections": 0}, ("max_detections is 0",)),
    ("yolox-nano", {"sise": 3}, ("no setting 'sise'", "Its settings are")),
    ("yolof-r18-c5", {"backbone": "vgg"}, ("'vgg'",)),
    ("yolof-r18-c5", {"encoder": "fpn"}, ("'fpn'",)),
    ("yolof-r18-c5", {"dilations": (0,)}, ("dilations is (0,)", "from 1 to")),
    ("yolof-r18-c5", {"dilations": 3}, ("dilations is 3", "whole numbers")),
    ("yolof-r18-c5", {"anchor_sizes": ()}, ("anchor_sizes",)),
    ("yolof-r18-c5", {"anchor_sizes": (NAN,)}, ("anchor_sizes is (nan,)",)),
    ("yolof-r18-c5", {"activation": "tanh"}, ("'tanh' is not known", "choose 'silu'")),
    ("yolof-r18-c5", {"class_convs": -1}, ("class_convs is -1",)),
    ("yolof-r18-c5", {"focal_alpha": 2}, ("focal_alpha is 2",)),
    ("yolof-r18-c5", {"frozen_stages": 9}, ("frozen_stages", "9")),
    ("yolox-nano", {"anchors": ((10, 10), (20, 20))}, ("anchors are ((10, 10), (20, 20))", "a multiple of 3")),
    ("yolox-nano", {"anchors": (10, 20, 30)}, ("anchors is (10, 20, 30)", "groups of 2 finite numbers")),
    ("yolox-nano", {"anchors": ((10, 0),) * 3}, ("above 0",)),
    ("yolox-nano", {"nms_free": "yes"}, ("nms_free is 'yes'", "true or false")),
    ("yolox-nano", {"selector_assigner": "poto"}, ("selector_assigner is 'poto'",)),
    ("yolof-r18-c5", {"resize": "crop"}, ("'crop' is not known", "letterbox")),
    ("yolof-r18-c5", {"candidates": 0}, ("candidates is 0",)),
    ("yolox_s", {}, ("no model 'yolox_s'", "Did you mean 'yolox-s'?")),
    (None, {}, ("no model None", "The names are")),
]:
    case("settings", f"create_model({name!r}, {changes})", model_with(name, **changes), *words)
for kind, changes, words in [
    (SimOTA, {"radius": "x"}, ("SimOTA: radius is 'x'",)),
    (SimOTA, {"max_k": 0}, ("SimOTA: max_k is 0",)),
    (SimOTA, {"iou_weight": NAN}, ("SimOTA: iou_weight is nan",)),
    (UniformMatching, {"k": 1.5}, ("UniformMatching: k is 1.5",)),
    (UniformMatching, {"k": 0}, ("k is 0", "at least 1")),
    (UniformMatching, {"sources": "anchors"}, ("sources is 'anchors'", "texts")),
    (UniformMatching, {"sources": ("gt",)}, ("sources are 'predictions', 'anchors' or both",)),
    (MaxIoU, {"positive_iou": 2}, ("MaxIoU",)),
    (MaxIoU, {"low_quality": "x"}, ("low_quality is 'x'", "true or false")),
    (ATSS, {"candidates": "9"}, ("ATSS: candidates is '9'",)),
    (CentreSampling, {"radius": 0}, ("radius is 0", "at least 0.5")),
    (OneToOne, {"class_weight": NAN}, ("class_weight is nan",)),
    (BestAnchor, {"ignore_iou": 2}, ("ignore_iou is 2", "between 0 and 1")),
    (POTO, {"alpha": "much"}, ("POTO: alpha is 'much'",)),
    (POTO, {"radius": -1}, ("POTO: radius is -1", "from 0")),
    (OTA, {"epsilon": 0}, ("OTA: epsilon is 0",)),
    (OTA, {"iterations": 0}, ("OTA: iterations is 0",)),
    (OTA, {"solver": "greedy"}, ("OTA: solver is 'greedy'", "'sinkhorn' or 'exact'")),
]:
    case("settings", f"{kind.__name__}({changes})", lambda _, kind=kind, changes=changes: kind(**changes), *words)
for field, value, words in [
    ("train", -1, ("ShapesConfig.train is -1",)),
    ("image_hw", (10, 10), ("at least 64 pixels",)),
    ("image_hw", (10**5, 10**5), ("8,192 pixels at most",)),
    ("crowd_share", NAN, ("a share lies between 0 and 1",)),
    ("min_side", NAN, ("at least 6 pixels",)),
    ("objects", (5, 2), ("fewest <= most",)),
]:
    case(
        "settings",
        f"ShapesConfig({field}={value})",
        lambda f, k=field, v=value: make_shapes(f, ShapesConfig(**{k: v})),
        *words,
    )
case("settings", "Augmentation(degrees=NaN)", lambda _: Augmentation(degrees=NAN), "degrees is nan", "a number")


# ---- the folder of a run ---------------------------------------------------------------------------------------------


def metrics(content: bytes) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        (folder / "metrics.jsonl").write_bytes(content)
        return read_metrics(folder / "metrics.jsonl")

    return act


for name, content, words in [
    ("metrics: a line is no JSON", b'{"epoch": 1}\nnonsense\n{"epoch": 3}\n', ("line 2", "Remove the line")),
    ("metrics: binary", b"\xff\xfe\n\0\n", ("line 1",)),
    ("metrics: a line is a number", b'{"epoch": 1, "ap": null}\n7\n', ("line 2",)),
    ("metrics: a line without epoch", b'{"ap": 0.5}\n', ("line 1",)),
    ("metrics: an epoch in words", b'{"epoch": "one"}\n', ("line 1",)),
    ("metrics: an AP in words", b'{"epoch": 1, "ap": "high"}\n', ("line 1",)),
    ("metrics: 100,000 brackets", b"[" * 100_000 + b"\n", ("line 1",)),
]:
    case("runs", name, metrics(content), "metrics.jsonl", *words)
case("runs", "metrics: a folder", lambda f: read_metrics(f), "cannot be read")
case("runs", "json: not there", lambda f: read_json(f / "a.json"), "a.json: there is no such file", "Check the path")


# ---- every case ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_malformed_input_is_one_clear_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, act, words = CASES[name]
    with pytest.raises(MinidetError) as raised:
        act(tmp_path)
    text = str(raised.value)
    assert [each for each in words if each not in text] == [], text
    assert "\x1b" not in text, "colours of a library's own message"
    assert "weights_only" not in text, "no error may advise to open a file unsafely"
    assert not (tmp_path / "it_ran").exists()
    assert not (tmp_path / "out").exists()


def test_there_are_more_than_eighty_of_them_and_some_of_every_kind():
    counts = Counter(part for part, _, _ in CASES.values())
    assert sum(counts.values()) >= 80
    assert min(counts[part] for part in ("annotations", "pictures", "archives", "checkpoints", "settings")) >= 10
    assert all(any(len(word) >= 5 for word in words) for _, _, words in CASES.values()), "a text is asserted of each"


# ---- the same through the command line -------------------------------------------------------------------------------

TRAIN = [
    "train",
    "{data}",
    "--out",
    "{out}",
    "--device",
    "cpu",
    "--workers",
    "0",
    "--epochs",
    "1",
    "--input-size",
    "64",
    "64",
]
WEIGHTS = ["--weights", "{weights}"]
TRUTH = "{data}/annotations/instances_val.json"


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """A sound data set and a sound model, and things that are neither."""
    folder = tmp_path_factory.mktemp("places")
    config = ShapesConfig(train=2, val=1, test=0, image_hw=(64, 64), objects=(1, 2))
    make_shapes(folder / "data", config, progress=False)
    minidet.save_weights(minidet.create_model("yolox-nano", num_classes=8, input_hw=(64, 64)), folder / "w.safetensors")
    (folder / "text").write_text("hello")
    (folder / "folders" / "a.jpg").mkdir(parents=True)
    return {
        "data": str(folder / "data"),
        "weights": str(folder / "w.safetensors"),
        "text": str(folder / "text"),
        "folders": str(folder / "folders"),
        "nowhere": str(folder / "nowhere"),
        "out": str(folder / "out"),
        "begun": str(folder / "begun"),
        "long": str(folder / ("n" * 300)),
    }


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["data", "shapes", "{text}"], ["Not a directory", "Choose another"]),
        (["data", "shapes", "{out}", "--train", "-1"], ["ShapesConfig.train is -1"]),
        (["data", "shapes", "{out}", "--image-hw", "99999", "99999"], ["8,192 pixels"]),
        (["data", "shapes", "{long}"], ["File name too long"]),
        (["data", "fetch", "bccd", "--from", "{nowhere}", "--folder", "{out}"], ["no such folder or archive"]),
        (["data", "fetch", "bccd", "--from", "{text}", "--folder", "{begun}"], ["is no zip, tar or tar.gz"]),
        (["data", "fetch", "bccd", "--from", "{data}", "--folder", "{text}"], ["is a file"]),
        (["data", "fetch", "bccd", "--from", "{data}", "--folder", "{long}"], ["File name too long"]),
        (["train", "{nowhere}"], ["there is no split 'train'"]),
        (["train", "{long}"], ["there is no split 'train'"]),
        ([*TRAIN, "--train-split", "x"], ["no split 'x'", "train, val"]),
        ([*TRAIN, "--device", "cuda:99"], ["device 'cuda:99'", "Here are"]),
        ([*TRAIN, "--device", "toaster"], ["'toaster' is not known"]),
        ([*TRAIN, "--threads", "1000000000"], ["--threads is 1000000000", "between 1 and"]),
        ([*TRAIN, "--workers", "-1"], ["workers is -1"]),
        ([*TRAIN, "--seed", str(2**70)], ["--seed is"]),
        ([*TRAIN, "--epochs", "0"], ["epochs is 0"]),
        ([*TRAIN, "--batch-size", "0"], ["batch_size is 0"]),
        ([*TRAIN, "--caffe"], ["--caffe", "--backbone-weights"]),
        ([*TRAIN, "--weights", "{text}"], ["is not a whole safetensors file"]),
        ([*TRAIN, "--weights", "{folders}"], ["a folder"]),
        ([*TRAIN, "--model", "yolox-tiny", *WEIGHTS], ["holds a yolox-nano", "a yolox-tiny is to be trained"]),
        ([*TRAIN, "--resume"], ["no run to resume"]),
        (["train", "{data}", "--out", "{text}", "--device", "cpu"], ["is a file, but a run needs a folder"]),
        (["train", "{data}", "--out", "{data}", "--device", "cpu"], ["is not empty"]),
        (["ablate", "yolof", "{data}", "--model", "yolox-nano"], ["yolox-nano"]),
        (["ablate", "yolof", "{data}", "--seeds", "-1"], ["--seeds is -1"]),
        (["ablate", "yolof", "{nowhere}"], ["there is no split 'train'"]),
        (["eval"], ["give either --weights and --data"]),
        (["eval", "--weights", "{text}", "--data", "{data}"], ["is not a whole safetensors file"]),
        (["eval", *WEIGHTS, "--data", "{data}", "--score-threshold", "nan"], ["between 0 and 1"]),
        (["eval", *WEIGHTS, "--data", "{data}", "--input-size", "64", "-32"], ["multiples of 32"]),
        (["eval", "--detections", "{text}", "--annotations", TRUTH], ["is not valid JSON"]),
        (["eval", "--detections", TRUTH, "--annotations", TRUTH], ["COCO results are a list"]),
        (["eval", "--detections", "{folders}", "--annotations", TRUTH], ["cannot be read"]),
        (["predict", "{nowhere}", *WEIGHTS], ["no such file or folder"]),
        (["predict", "{long}", *WEIGHTS], ["File name too long"]),
        (["predict", "{data}", *WEIGHTS], ["no images in this folder"]),
        (["predict", "{data}/val", *WEIGHTS, "--input-size", "3200000", "3200000"], ["16,384 pixels at most"]),
        (["predict", "{data}/val", *WEIGHTS, "--out", "{text}"], ["text", "another folder"]),
        (["import-official", "yolox-nano", "{text}"], ["is not a whole PyTorch checkpoint"]),
        (["import-official", "yolox-nano", "{nowhere}"], ["there is no such file"]),
        (["import-official", "yolox-nano", "{folders}"], ["is a folder"]),
        (["import-official", "yolox-nano", "."], ["is a folder"]),
        (["demo", "--data", "{text}"], ["Not a directory"]),
    ],
    ids=lambda value: " ".join(value)[:70],
)
def test_a_bad_command_ends_in_one_clear_error_and_leaves_nothing(command, words, places, capsys):
    assert main([word.format(**places) for word in command]) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.rpartition("error: ")[2].strip()
    assert [word for word in words if word not in text] == [], text
    assert not Path(places["out"]).exists()


@pytest.fixture(scope="module")
def run(places, tmp_path_factory) -> Path:
    """A run of one epoch."""
    out = tmp_path_factory.mktemp("runs") / "sound"
    assert main([word.format(**{**places, "out": str(out)}) for word in TRAIN]) == 0
    return out


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("config.json", lambda old: b"", ["is not valid JSON"]),
        ("config.json", lambda old: old[:200], ["is not valid JSON", "copy or download it again"]),
        ("config.json", lambda old: b"\xff\xfe" + old, ["is not UTF-8 text"]),
        ("config.json", lambda old: b"[" * 100_000, ["nested too deeply"]),
        ("config.json", lambda old: b"[]", ["holds a different run", "model"]),
        ("config.json", lambda old: b"{}", ["holds a different run", "seed: the run has None, now it is 0"]),
        (
            "config.json",
            lambda old: old.replace(b'"epochs": 1', b'"epochs": 9'),
            ["recipe.epochs: the run has 9, now it is 1"],
        ),
        ("config.json", lambda old: old.replace(b'"seed": 0', b'"seed": "0"'), ["seed: the run has '0'"]),
        ("metrics.jsonl", lambda old: b"nonsense\n" + old, ["line 1 is not JSON", "Remove the line"]),
        ("metrics.jsonl", lambda old: b"\xff\n", ["line 1 is not JSON"]),
        ("metrics.jsonl", lambda old: b"7\n", ["line 1 is no row"]),
        ("metrics.jsonl", lambda old: old.replace(b'"epoch": 1', b'"epoch": "1"'), ["line 1 is no row"]),
    ],
)
def test_a_damaged_folder_is_not_resumed_and_stays_as_it_is(run, places, tmp_path, capsys, name, damage, words):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / name).write_bytes(damage((out / name).read_bytes()))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main([word.format(**{**places, "out": str(out)}) for word in [*TRAIN, "--resume"]]) == 2
    text = capsys.readouterr().err
    assert [word for word in [name, *words] if word not in text and name != "config.json"] == [], text
    assert [word for word in words if word not in text] == [], text
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data", "check", "{nowhere}"], "there is no such folder"),
        (["data", "check", "{long}"], "there is no such folder"),
        (["data", "check", "{data}", "--splits", "x"], "there is no split 'x'"),
    ],
)
def test_the_checker_reports_instead_of_failing(words, expected, places, capsys):
    assert main([word.format(**places) for word in words]) == 1
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, (part, _, _) in CASES.items() if name.startswith("coco: ") and part])
def test_what_the_reader_refuses_the_checker_calls_a_fault(name, tmp_path):
    _, act, _ = CASES[name]
    with pytest.raises(MinidetError):
        act(tmp_path)
    faults = check_dataset(tmp_path)
    assert any(fault.fatal for fault in faults), format_faults(faults)
