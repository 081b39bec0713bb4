"""Readers meet input that nobody would write: they keep their promises about the result, or raise our own error.

How many examples each test draws stands in MINIDET_FUZZ (300 by default); a thorough run takes `MINIDET_FUZZ=20000`.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as tensors_to_bytes

import minidet
from minidet.data.annotations import parse_annotations
from minidet.data.check import check_dataset, format_faults
from minidet.data.coco import CocoDataset
from minidet.data.images import read_image
from minidet.data.voc import read_voc, voc_to_coco
from minidet.detectors.tensor_files import read_tensor_file
from minidet.errors import MinidetError
from minidet.evaluation.average_precision import evaluate_detections
from minidet.training.run_folder import read_metrics

EXAMPLES = int(os.environ.get("MINIDET_FUZZ", "300"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
some = settings(many, max_examples=max(EXAMPLES // 3, 1))  # where one example takes milliseconds

# ---- values that JSON can hold, and changes to a good value ----------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-3, 200),
    st.sampled_from(
        [0, -0.0, 1e308, -1e308, 5e-324, 2**31, 2**63, -(2**63) - 1, 10**400, math.nan, math.inf, -math.inf]
    ),
    st.floats(),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=6), st.sampled_from(["1.png", "../x", "\0", "\ud800"])
)
KEYS = st.sampled_from(
    ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "file_name", "height", "width", "name", "score"]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
ROWS = st.lists(st.one_of(st.dictionaries(KEYS, JSON, max_size=7), JSON), max_size=4)
ANYTHING = st.one_of(
    JSON,
    st.dictionaries(
        st.sampled_from(["images", "annotations", "categories", "info"]), st.one_of(ROWS, JSON), max_size=4
    ),
)
GOOD = {
    "images": [
        {"id": 1, "file_name": "1.png", "height": 48, "width": 64},
        {"id": 2, "file_name": "2.png", "height": 48, "width": 64},
    ],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0},
        {"id": 6, "image_id": 1, "category_id": 3, "bbox": [10.5, 20, 60, 70], "area": 4200, "iscrowd": 0},
        {"id": 7, "image_id": 2, "category_id": 3, "bbox": [0, 0, 64, 48], "area": 3072, "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
}
FOUND = [
    {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "score": 0.9},
    {"image_id": 2, "category_id": 3, "bbox": [0, 0, 64.0, 48], "score": 0.1},
]


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Every place in a value of lists and dictionaries, as the keys that lead there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inside for place in places(each, (*path, key)))]


@st.composite
def changed(draw: Callable, value: object) -> object:
    """A good value with some of its places replaced, removed, doubled or swapped for another's content."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 4))):
        there = places(value)
        path = draw(st.sampled_from(there))
        if not path:
            continue
        *parents, last = path
        container = functools.reduce(lambda inner, key: inner[key], parents, value)
        what = draw(st.sampled_from(["replace", "number", "remove", "double", "copy"]))
        if what == "remove":
            del container[last]
        elif what == "double" and isinstance(container, list):
            container.append(copy.deepcopy(container[last]))
        elif what == "copy":
            other = draw(st.sampled_from(there))
            container[last] = copy.deepcopy(functools.reduce(lambda inner, key: inner[key], other, value))
        else:
            container[last] = draw(JSON if what == "replace" else NUMBERS)
    return value


def flipped(good: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with some others written over them, cut out or put in."""
    edits = st.lists(
        st.tuples(st.integers(0, max(len(good) - 1, 0)), st.binary(max_size=9), st.integers(0, 12)),
        min_size=1,
        max_size=6,
    )

    def apply(edits: list[tuple[int, bytes, int]]) -> bytes:
        content = good
        for position, new, length in edits:
            content = content[:position] + new + content[position + length :]
        return content

    return st.one_of(edits.map(apply), st.integers(0, len(good)).map(lambda n: good[:n]))


def json_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures for the annotations; every example writes over the same annotation file."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "annotations").mkdir()
    (folder / "train").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (64, 48)).save(folder / "train" / name)
    return folder


# ---- COCO ------------------------------------------------------------------------------------------------------------


@many
@given(content=st.one_of(changed(GOOD).map(json_bytes), ANYTHING.map(json_bytes), flipped(json_bytes(GOOD))))
def test_coco_files_load_as_promised_or_are_refused(folder, content):
    path = folder / "annotations" / "instances_train.json"
    path.write_bytes(content)
    try:
        data = CocoDataset(path, folder / "train")
    except MinidetError as error:
        told = str(error)
        assert str(path) in told
        return
    assert len({record.id for record in data.records}) == len(data) > 0
    assert data.category_ids == sorted(set(data.category_ids))
    assert len(data.class_names) == len(data.category_ids) > 0
    for index, record in enumerate(data.records):
        boxes, labels = data.target(index)["boxes"], data.target(index)["labels"]
        assert boxes.dtype == torch.float32 and labels.dtype == torch.int64
        assert boxes.shape == (len(labels), 4)
        assert bool(boxes.isfinite().all())
        assert bool((boxes[:, 2:] > boxes[:, :2]).all())
        assert bool((boxes >= 0).all())
        assert bool((boxes[:, 2:] <= torch.tensor([record.width, record.height])).all())
        assert bool(((labels >= 0) & (labels < len(data.class_names))).all())


@some
@given(content=st.one_of(changed(GOOD).map(json_bytes), ANYTHING.map(json_bytes), flipped(json_bytes(GOOD))))
def test_the_checker_never_fails_and_agrees_with_the_reader(folder, content):
    path = folder / "annotations" / "instances_train.json"
    path.write_bytes(content)
    faults = check_dataset(folder, read_images=False)
    assert format_faults(faults)
    try:
        CocoDataset(path, folder / "train")
    except MinidetError:
        assert any(fault.fatal for fault in faults)


@many
@given(content=st.one_of(changed(GOOD), ANYTHING))
def test_rows_of_any_kind_are_sorted_into_usable_ones_and_faults(content):
    found, faults = parse_annotations(content, "x.json")
    counts = {
        len(each) for each in (found.labels, found.boxes_xywh, found.areas, found.crowd, found.ids, found.image_indices)
    }
    assert len(counts) == 1
    assert all(0 <= label < len(found.categories) for label in found.labels)
    assert all(fault.problem and fault.advice for fault in faults)


# ---- detections for eval ---------------------------------------------------------------------------------------------


@some
@given(
    rows=st.one_of(changed(FOUND), ROWS, JSON, st.just(FOUND)),
    truth=st.one_of(st.just(GOOD), changed(GOOD), ANYTHING),
)
def test_any_detections_against_any_truth_give_figures_or_our_error(folder, rows, truth):
    for name, value in (("rows.json", rows), ("truth.json", truth)):
        (folder / name).write_bytes(json_bytes(value))
    try:
        result = evaluate_detections(folder / "truth.json", folder / "rows.json")
    except MinidetError:
        return
    assert all(value == -1 or 0 <= value <= 1 for value in result.stats)
    assert result.table()
    assert json.dumps(result.to_dict(), allow_nan=False)


# ---- Pascal VOC ------------------------------------------------------------------------------------------------------

VOC = b"""<?xml version="1.0" encoding="utf-8"?>
<annotation><filename>a.png</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30.5</xmax><ymax>40</ymax></bndbox></object>
<object><name>d\xc3\xb6g</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></object></annotation>
"""
TAGS = ["annotation", "object", "name", "bndbox", "xmin", "xmax", "ymin", "ymax", "size", "width", "height", "x"]
PIECES = st.one_of(
    st.sampled_from([f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS]),
    st.sampled_from(["nan", "inf", "-1", "1e999", "7", "0x10", "&amp;", "&#0;", "&#x1F600;", "&x;", "<![CDATA[", "]]>",
                     "<!DOCTYPE a [<!ENTITY x 'y'>]>", "<?pi?>", "<!--", "-->", "xmlns='u'"]),
    st.text(max_size=8),
)  # fmt: skip


@pytest.fixture(scope="module")
def voc_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(folder / "JPEGImages" / "a.png")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return folder


@many
@given(content=st.one_of(flipped(VOC), st.lists(PIECES, max_size=25).map("".join).map(
    lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60)))  # fmt: skip
def test_voc_files_become_boxes_that_the_coco_reader_takes_or_are_refused(voc_folder, folder, content):
    (voc_folder / "Annotations" / "a.xml").write_bytes(content)
    try:
        read_voc(voc_folder / "Annotations" / "a.xml")
        coco = voc_to_coco(voc_folder)["train"]
    except MinidetError as error:
        told = str(error)
        assert "a.xml" in told or "JPEGImages" in told
        return
    text = json.dumps(coco, allow_nan=False)
    if coco["categories"]:
        path = folder / "annotations" / "instances_train.json"
        path.write_text(text)
        found, faults = parse_annotations(json.loads(text), "x.json")
        assert [fault for fault in faults if fault.fatal] == []
        assert len(found.labels) == len(coco["annotations"])


# ---- pictures --------------------------------------------------------------------------------------------------------


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@many
@given(
    content=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
    .map(encoded)
    .flatmap(flipped)
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pictures_are_read_or_refused(folder, content):
    (folder / "picture").write_bytes(content)
    try:
        image = read_image(folder / "picture")
    except MinidetError:
        return
    assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.numel() > 0


# ---- weights ---------------------------------------------------------------------------------------------------------


@functools.cache
def good_weights(kind: str) -> bytes:
    """Small files of every kind; our own for the smallest model that there is."""
    tensors = {"model": {"head.cls_preds.0.weight": torch.ones(3, 4, 1, 1), "b": torch.arange(4)}, "epoch": 3}
    if kind == "pth":
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        return buffer.getvalue()
    if kind == "legacy.pth":
        buffer = io.BytesIO()
        torch.save(tensors, buffer, _use_new_zipfile_serialization=False)
        return buffer.getvalue()
    if kind == "pkl":
        return pickle.dumps({"model": {"w": np.ones((2, 3), "f4")}, "__author__": "x"}, protocol=2)
    return tensors_to_bytes(tensors["model"], {"format": "minidet", "model": '{"name": "yolox-nano", "assigner": {}}'})


@many
@given(
    kind_content=st.sampled_from(["pth", "legacy.pth", "pkl", "safetensors"]).flatmap(
        lambda kind: st.tuples(st.just(kind), flipped(good_weights(kind)))
    )
)
def test_damaged_weights_are_read_or_refused_and_run_nothing(folder, kind_content):
    kind, content = kind_content
    path = folder / f"w.{kind.rpartition('.')[2]}"
    path.write_bytes(content)
    for read in (read_tensor_file, functools.partial(minidet.load_official, "yolox-nano"), minidet.load_model):
        with pytest.raises(MinidetError) if read is not read_tensor_file else _or_our_error():
            read(path)


class _or_our_error:
    """Lets `MinidetError` pass, and no other."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, MinidetError)


OPCODES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [
            b"cos\nsystem\n",
            b"cnumpy\nndarray\n",
            b"cnumpy.core.multiarray\n_reconstruct\n",
            b"ccollections\nOrderedDict\n",
            b"c_codecs\nencode\n",
            b"cnumpy\ndtype\n",
            b"\x8c\x02os",
            b"\x93",
            b"R",
            b"(",
            b"t",
            b"tR",
            b"b",
            b"}",
            b"]",
            b"K\x01",
            b"\x85",
            b"\x86",
            b"\x87",
            b"s",
            b"u",
            b"a",
            b"e",
            b"0",
            b"2",
            b"q\x00",
            b"h\x00",
            b"r\xff\xff\xff\x7f",
            b"U\x04true",
            b"X\x02\x00\x00\x00f4",
            b"\x81",
            b"\x92",
            b"i",
            b"o",
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"P",
            b"Q",
        ]
    ),
)


@many
@given(parts=st.lists(OPCODES, max_size=30), ends=st.booleans())
def test_no_pickle_program_does_more_than_fail(folder, parts, ends):
    (folder / "program.pkl").write_bytes(b"\x80\x02" + b"".join(parts) + b"." * ends)
    with _or_our_error():
        read_tensor_file(folder / "program.pkl")


@functools.cache
def own_description() -> dict:
    from minidet.detectors.weights import model_description

    return json.loads(
        json.dumps(model_description(minidet.create_model("yolof-r18-c5", num_classes=2, class_names=["a", "b"])))
    )


@some
@given(description=st.deferred(lambda: changed(own_description())))
def test_a_changed_description_of_a_model_is_understood_or_refused(folder, description):
    text = {"format": "minidet", "model": json.dumps(description)}
    (folder / "d.safetensors").write_bytes(tensors_to_bytes({"w": torch.zeros(1)}, text))
    with pytest.raises(MinidetError, match="d.safetensors"):
        minidet.load_model(folder / "d.safetensors")


# ---- files of a run --------------------------------------------------------------------------------------------------

LINE = json.dumps({"epoch": 1, "iterations": 3, "losses": {"loss_box": 1.5}, "ap": 0.25, "ap50": None}).encode() + b"\n"


@many
@given(content=st.one_of(flipped(LINE * 3), st.lists(JSON.map(json_bytes), max_size=4).map(b"\n".join)))
def test_metrics_of_any_bytes_are_rows_or_refused(folder, content):
    (folder / "metrics.jsonl").write_bytes(content)
    try:
        rows = read_metrics(folder / "metrics.jsonl")
    except MinidetError as error:
        told = str(error)
        assert "metrics.jsonl: line " in told
        return
    assert all(isinstance(row["epoch"], int) for row in rows)
    assert max((row["ap"] for row in rows if row.get("ap") is not None), default=0) is not None
