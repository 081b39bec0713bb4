"""Every data set's whole way, from made-up archives of the published form on a server on this machine to COCO JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from minidet.data import fetch as module
from minidet.data.fetch import FETCHABLE, content_digest, fetch
from minidet.data.penn_fudan import penn_fudan_to_coco
from minidet.errors import DataError, FetchError


def png(pixels, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


def picture(seed, form="JPEG"):
    return png(np.random.default_rng(seed).integers(0, 256, (12, 16, 3)), form)


def voc_xml(name, *boxes):
    objects = "".join(
        f"<object><name>{kind}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for kind, x1, y1, x2, y2 in boxes
    )
    size = "<size><width>16</width><height>12</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>".encode()


BCCD = {
    **{f"BCCD/JPEGImages/B{n}.jpg": picture(n) for n in range(4)},
    "BCCD/Annotations/B0.xml": voc_xml("B0.jpg", ("RBC", 1, 2, 5, 9), ("WBC", 3, 3, 3, 3)),
    "BCCD/Annotations/B1.xml": voc_xml("B1", ("Platelets", 0, 0, 16, 12)),
    "BCCD/Annotations/B2.xml": voc_xml("B2.jpg", ("RBC", 1, 1, 2, 3), ("RBC", 1, 1, 2, 3)),
    "BCCD/Annotations/B3.xml": voc_xml("B3.jpg", ("WBC", 1, 1, 2, 2)),
    "BCCD/ImageSets/Main/train.txt": b"B0\nB2\n",
    "BCCD/ImageSets/Main/val.txt": b"B1\n",
    "BCCD/ImageSets/Main/test.txt": b"B3\n",
    "BCCD/ImageSets/Main/trainval.txt": b"B0\nB1\nB2\n",
    "README.md": b"# BCCD",
    ".gitignore": b"*.pyc",
}
VOC = {
    **{f"VOCdevkit/VOC2012/JPEGImages/2012_{n}.jpg": picture(n) for n in range(4)},
    "VOCdevkit/VOC2012/Annotations/2012_0.xml": voc_xml("2012_0.jpg", ("person", 1, 1, 16, 12), ("cat", 2, 3, 4.5, 6)),
    "VOCdevkit/VOC2012/Annotations/2012_1.xml": voc_xml("2012_1.jpg", ("tvmonitor", 5, 5, 9, 9)),
    "VOCdevkit/VOC2012/ImageSets/Main/train.txt": b"2012_0\n",
    "VOCdevkit/VOC2012/ImageSets/Main/val.txt": b"2012_1\n",
    "VOCdevkit/VOC2012/ImageSets/Main/cat_train.txt": b"2012_0  1\n",
    "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": b"2012_3\n",
}
MASK = np.zeros((12, 16))
MASK[2:9, 1:5] = 1
MASK[4:5, 3:7] = 2  # takes four pixels in front of the first one
PENN = {
    **{f"PennFudanPed/PNGImages/{name}.png": picture(n, "PNG") for n, name in enumerate("abcdefg")},
    **{f"PennFudanPed/PedMasks/{name}_mask.png": png(MASK) for name in "abcdef"},
    "PennFudanPed/PedMasks/g_mask.png": png(np.zeros((12, 16))),
    "PennFudanPed/readme.txt": b"1. Database description",
}


def coco_json(*files):
    return json.dumps(
        {
            "images": [{"id": n, "file_name": file, "height": 12, "width": 16} for n, file in enumerate(files, 7)],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
            ],
            "categories": [{"id": 90, "name": "toothbrush"}],
        }
    ).encode()


COCO_JSON = {
    "annotations/instances_train2017.json": coco_json("000000000009.jpg", "000000000025.jpg"),
    "annotations/instances_val2017.json": coco_json("000000000139.jpg"),
    "annotations/captions_val2017.json": b"{}",
}
COCO_TRAIN = {f"train2017/{name:012}.jpg": picture(name) for name in (9, 25)}
COCO_VAL = {"val2017/000000000139.jpg": picture(139)}


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        for name, data in files.items():
            content.writestr(name, data)
    return buffer.getvalue()


def tarred(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as content:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            content.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def inside(folder, files):
    return {f"{folder}/{name}": data for name, data in files.items()}


BCCD_AS_VOC2007 = {name.replace("BCCD/", "VOCdevkit/VOC2007/"): data for name, data in BCCD.items()}
BCCD_ZIP = FETCHABLE["bccd"].archives[0].file_name
ARCHIVES = {  # data set -> {published file name: bytes}
    "bccd": {BCCD_ZIP: zipped(inside(BCCD_ZIP.removesuffix(".zip"), BCCD))},
    "voc2012": {"VOCtrainval_11-May-2012.tar": tarred(VOC)},
    "penn-fudan": {"PennFudanPed.zip": zipped(PENN)},
    "coco2017-val": {"annotations_trainval2017.zip": zipped(COCO_JSON), "val2017.zip": zipped(COCO_VAL)},
    "coco2017": {
        "annotations_trainval2017.zip": zipped(COCO_JSON),
        "val2017.zip": zipped(COCO_VAL),
        "train2017.zip": zipped(COCO_TRAIN),
    },
}
IMAGES = {
    "bccd": {"train": 2, "val": 1, "test": 1},
    "voc2012": {"train": 1, "val": 1},
    "penn-fudan": {"train": 5, "val": 2},
    "coco2017-val": {"val2017": 1},
    "coco2017": {"train2017": 2, "val2017": 1},
}


@pytest.fixture
def web(tmp_path):
    """A server of the made-up archives; `web.asked` lists what was asked for."""
    folder, asked = tmp_path / "web", []
    folder.mkdir()
    for archives in ARCHIVES.values():
        for name, content in archives.items():
            (folder / name).write_bytes(content)

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *args):
            asked.append(self.path.lstrip("/"))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield SimpleNamespace(base=f"http://127.0.0.1:{server.server_port}", folder=folder, asked=asked)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def tiny(web, monkeypatch):
    """The table with every set shrunk to its made-up archives: only sizes, sums, counts and addresses differ."""
    for name, archives in ARCHIVES.items():
        card = FETCHABLE[name]
        assert [archive.file_name for archive in card.archives] == list(archives)
        changed = tuple(
            dataclasses.replace(
                archive,
                url=f"{web.base}/{archive.file_name}",
                size=archive.size and len(archives[archive.file_name]),
                md5=archive.md5 and hashlib.md5(archives[archive.file_name]).hexdigest(),
            )
            for archive in card.archives
        )
        images, boxes = IMAGES[name], card.boxes and {"train": 3, "val": 1, "test": 1}
        small = dataclasses.replace(
            card, archives=changed, images=images, boxes=boxes, digest=None, unpacked_bytes=1_000_000
        )
        monkeypatch.setitem(FETCHABLE, name, small)
    return web


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def coco_of(folder, split):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def boxes_of(folder, split):
    coco = coco_of(folder, split)
    names = {row["id"]: row["name"] for row in coco["categories"]}
    files = {row["id"]: row["file_name"] for row in coco["images"]}
    return sorted((files[r["image_id"]], names[r["category_id"]], *r["bbox"]) for r in coco["annotations"])


def get(name, folder, source=None, **options):
    return fetch(name, folder, source, progress=False, **options)


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_every_set_becomes_coco_json_and_pictures_and_nothing_else(tiny, tmp_path, name):
    folder = get(name, tmp_path / "out")
    assert folder == tmp_path / "out"
    files = tree(folder)
    assert json.loads(files.pop("fetched.json"))["name"] == name
    for split, count in IMAGES[name].items():
        coco = json.loads(files.pop(f"annotations/instances_{split}.json"))
        listed = {f"{split}/{row['file_name']}" for row in coco["images"]}
        assert len(listed) == count
        assert listed == {file for file in files if file.startswith(f"{split}/")}
        for row in coco["images"]:
            image = Image.open(io.BytesIO(files.pop(f"{split}/{row['file_name']}")))
            assert image.size == (row["width"], row["height"])
    assert not files
    assert not (folder / ".fetch").exists()


def test_bccd_holds_the_authors_splits_and_corners(tiny, tmp_path):
    lines = []
    folder = get("bccd", tmp_path / "out", log=lines.append)
    assert boxes_of(folder, "train") == [
        ("B0.jpg", "RBC", 1, 2, 4, 7),
        ("B2.jpg", "RBC", 1, 1, 1, 2),
        ("B2.jpg", "RBC", 1, 1, 1, 2),
    ]
    assert boxes_of(folder, "val") == [("B1.jpg", "Platelets", 0, 0, 16, 12)]
    assert boxes_of(folder, "test") == [("B3.jpg", "WBC", 1, 1, 1, 1)]
    assert (folder / "val" / "B1.jpg").read_bytes() == BCCD["BCCD/JPEGImages/B1.jpg"]
    assert any("B0.jpg: a WBC box of zero size" in line for line in lines)


def test_voc_counts_its_pixels_from_one_and_keeps_its_twenty_classes(tiny, tmp_path):
    folder = get("voc2012", tmp_path / "out")
    assert boxes_of(folder, "train") == [("2012_0.jpg", "cat", 1, 2, 2.5, 3), ("2012_0.jpg", "person", 0, 0, 15, 11)]
    assert boxes_of(folder, "val") == [("2012_1.jpg", "tvmonitor", 4, 4, 4, 4)]
    assert len(coco_of(folder, "train")["categories"]) == len(coco_of(folder, "val")["categories"]) == 20


def test_penn_fudan_boxes_hold_the_pixels_of_each_value(tiny, tmp_path):
    folder = get("penn-fudan", tmp_path / "out")
    # of 7 pictures 7 * 50 // 170 = 2 are val: the ranks r for which (r + 1) * 50 // 170 goes up by one are 3 and 6
    assert [row["file_name"] for row in coco_of(folder, "val")["images"]] == ["d.png", "g.png"]
    assert boxes_of(folder, "val") == [("d.png", "person", 1, 2, 4, 7), ("d.png", "person", 3, 4, 4, 1)]
    assert [row["area"] for row in coco_of(folder, "val")["annotations"]] == [7 * 4 - 2, 4]
    assert len(boxes_of(folder, "train")) == 10


def test_coco_annotations_stay_as_published(tiny, tmp_path):
    files = tree(get("coco2017", tmp_path / "out"))
    for split in ("train2017", "val2017"):
        assert files[f"annotations/instances_{split}.json"] == COCO_JSON[f"annotations/instances_{split}.json"]


def test_a_finished_set_is_left_alone_and_asks_nobody(tiny, tmp_path):
    get("bccd", tmp_path / "out")
    before, asked, lines = tree(tmp_path / "out"), len(tiny.asked), []
    get("bccd", tmp_path / "out", log=lines.append)
    assert tree(tmp_path / "out") == before
    assert len(tiny.asked) == asked
    assert lines == [f"{tmp_path / 'out'}: bccd is there already; nothing to do"]


def test_a_fetch_that_broke_off_between_two_archives_loads_only_the_rest(tiny, tmp_path, monkeypatch):
    (tiny.folder / "val2017.zip").rename(tiny.folder / "away")
    with pytest.raises(FetchError, match="val2017.zip: there is no such file"):
        get("coco2017-val", tmp_path / "out")
    assert not (tmp_path / "out" / "fetched.json").exists()
    assert not list((tmp_path / "out" / ".fetch").glob("*.zip"))  # what is unpacked takes no room twice
    (tiny.folder / "away").rename(tiny.folder / "val2017.zip")
    get("coco2017-val", tmp_path / "out")
    assert tiny.asked == ["annotations_trainval2017.zip", "val2017.zip", "val2017.zip"]
    assert len(coco_of(tmp_path / "out", "val2017")["images"]) == 1


@pytest.mark.parametrize("steps", range(6))
def test_a_fetch_killed_while_laying_out_is_finished_by_the_next(tiny, tmp_path, monkeypatch, steps):
    whole = tree(get("bccd", tmp_path / "whole"))
    left, link, write_json = [steps], os.link, module.write_json

    def count(function, *args, **options):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "link", partial(count, link))
        patch.setattr(module, "write_json", partial(count, write_json))
        with pytest.raises(KeyboardInterrupt):
            get("bccd", tmp_path / "out")
    assert not (tmp_path / "out" / "fetched.json").exists()
    asked = len(tiny.asked)
    get("bccd", tmp_path / "out")
    assert tree(tmp_path / "out") == whole
    assert len(tiny.asked) == asked


def test_without_hard_links_pictures_are_copied(tiny, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(module.os, "link", refuse)
    assert (get("bccd", tmp_path / "out") / "val" / "B1.jpg").read_bytes() == BCCD["BCCD/JPEGImages/B1.jpg"]


LOCAL = [
    ("bccd", "BCCD", BCCD),  # the VOC folder itself
    ("bccd", "", BCCD),  # a clone of the repository
    ("voc2012", "", VOC),
    ("penn-fudan", "PennFudanPed", PENN),
    ("coco2017", "", COCO_JSON | COCO_TRAIN | COCO_VAL),
    ("coco2017-val", "", COCO_JSON | inside("images", COCO_TRAIN | COCO_VAL)),
]


@pytest.mark.parametrize(("name", "below", "files"), LOCAL)
def test_an_unpacked_local_copy_is_converted_and_not_touched(tiny, tmp_path, name, below, files):
    source = write(tmp_path / "copy", files)
    stamps = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    local = tree(get(name, tmp_path / "local", source / below))
    assert not tiny.asked
    assert tree(source) == files
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == stamps
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "local").rglob("*.jpg"))  # copies, not links
    assert local == tree(get(name, tmp_path / "web-made"))


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_archives_loaded_by_hand_are_taken_from_their_folder(tiny, tmp_path, name):
    write(tmp_path / "Downloads", ARCHIVES[name] | {"other.txt": b"mine"})
    local = tree(get(name, tmp_path / "Downloads" / "out", tmp_path / "Downloads"))
    assert not tiny.asked
    assert local == tree(get(name, tmp_path / "web-made"))


def test_one_archive_under_any_name_is_enough_where_the_set_has_one(tiny, tmp_path):
    write(tmp_path, {"download(3)": ARCHIVES["voc2012"]["VOCtrainval_11-May-2012.tar"]})
    get("voc2012", tmp_path / "out", tmp_path / "download(3)")
    assert len(boxes_of(tmp_path / "out", "train")) == 2


def test_one_archive_of_several_is_not_enough(tiny, tmp_path):
    write(tmp_path, ARCHIVES["coco2017-val"])
    with pytest.raises(FetchError, match=r"2 archives: annotations_trainval2017.zip, val2017.zip\. Name the folder"):
        get("coco2017-val", tmp_path / "out", tmp_path / "val2017.zip")


def test_a_damaged_local_archive_is_an_error_and_a_good_one_then_works(tiny, tmp_path):
    content = ARCHIVES["bccd"][BCCD_ZIP]
    write(tmp_path, {"bad.zip": content[: len(content) // 2], "good.zip": content})
    with pytest.raises(FetchError, match=r"bad\.zip: is damaged"):
        get("bccd", tmp_path / "out", tmp_path / "bad.zip")
    get("bccd", tmp_path / "out", tmp_path / "good.zip")
    assert (tmp_path / "out" / "fetched.json").exists()


def test_a_damaged_download_without_published_checksum_is_loaded_again(tiny, tmp_path):
    good = (tiny.folder / BCCD_ZIP).read_bytes()
    (tiny.folder / BCCD_ZIP).write_bytes(good[:-100])
    with pytest.raises(FetchError, match="is damaged"):
        get("bccd", tmp_path / "out")
    (tiny.folder / BCCD_ZIP).write_bytes(good)
    get("bccd", tmp_path / "out")
    assert (tmp_path / "out" / "fetched.json").exists()


def test_a_download_with_other_contents_is_not_built_upon(tiny, tmp_path):
    good = (tiny.folder / BCCD_ZIP).read_bytes()
    (tiny.folder / BCCD_ZIP).write_bytes(zipped(BCCD | {"BCCD/ImageSets/Main/train.txt": b"B0\n"}))
    with pytest.raises(DataError, match="train has 1 pictures"):
        get("bccd", tmp_path / "out")
    (tiny.folder / BCCD_ZIP).write_bytes(good)
    get("bccd", tmp_path / "out")
    assert (tmp_path / "out" / "fetched.json").exists()


def test_a_download_with_a_wrong_checksum_is_an_error(tiny, tmp_path):
    changed = bytearray((tiny.folder / "VOCtrainval_11-May-2012.tar").read_bytes())
    changed[-1] = 1
    (tiny.folder / "VOCtrainval_11-May-2012.tar").write_bytes(changed)
    with pytest.raises(FetchError, match="md5"):
        get("voc2012", tmp_path / "out")


def without(files, *names):
    return {name: data for name, data in files.items() if not name.endswith(names)}


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("bccd", BCCD | {"BCCD/ImageSets/Main/train.txt": b"B0\n"}, "train has 1 pictures, published are 2"),
        ("bccd", BCCD | {"BCCD/Annotations/B3.xml": voc_xml("B3.jpg")}, "test has 0 boxes, published are 1"),
        ("bccd", BCCD | {"BCCD/Annotations/B3.xml": voc_xml("B3.jpg", ("cow", 1, 1, 2, 2))}, "unknown class 'cow'"),
        ("bccd", without(BCCD, "B3.jpg"), "has no picture B3.jpg"),
        ("bccd", without(BCCD, "B3.xml"), "B3.xml: there is no such annotation file"),
        ("bccd", PENN, "has no folder with Annotations, ImageSets/Main, JPEGImages, and not the archives BCCD_Data"),
        ("voc2012", VOC | BCCD_AS_VOC2007, "holds .*VOC2007 and .*VOC2012, each with Anno.* Name one"),
        ("penn-fudan", without(PENN, "c_mask.png"), "c_mask.png: there is no such file"),
        ("penn-fudan", PENN | {"PennFudanPed/PedMasks/c_mask.png": b"no"}, "c_mask.png: cannot be read"),
        ("penn-fudan", PENN | {"PennFudanPed/PedMasks/c_mask.png": picture(1)}, "of mode RGB"),
        ("penn-fudan", PENN | {"PennFudanPed/PedMasks/c_mask.png": png(np.ones((5, 9)))}, "is 9x5, its image 16x12"),
        ("penn-fudan", without(PENN, "a.png", "b.png"), "pictures, published are 5"),
        ("penn-fudan", {"PNGImages/x.txt": b"", "PedMasks/x.txt": b""}, "has no .png images"),
        ("coco2017-val", COCO_JSON, "no folder with val2017/"),
        ("coco2017-val", COCO_VAL, "no folder with annotations/instances_val2017.json"),
    ],
)
def test_what_is_not_the_published_set_is_refused_by_name(tiny, tmp_path, name, files, words):
    source = write(tmp_path / "copy", files)
    with pytest.raises(DataError, match=words):
        get(name, tmp_path / "out", source)
    assert not (tmp_path / "out" / "fetched.json").exists()
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_changed_picture_or_box_is_noticed_by_the_digest(tiny, tmp_path, monkeypatch):
    card = FETCHABLE["bccd"]
    source = write(tmp_path / "copy", BCCD)
    digest = content_digest(card.convert(source, card, print))
    monkeypatch.setitem(FETCHABLE, "bccd", dataclasses.replace(card, digest=digest))
    get("bccd", tmp_path / "right", source)
    for number, change in enumerate(
        [
            {"BCCD/JPEGImages/B1.jpg": picture(99)},
            {"BCCD/Annotations/B1.xml": voc_xml("B1", ("Platelets", 0, 0, 16, 11))},
            {"BCCD/Annotations/B1.xml": voc_xml("B1", ("RBC", 0, 0, 16, 12))},
        ]
    ):
        write(source, BCCD | change)
        with pytest.raises(DataError, match="a picture or a box is other than published"):
            get("bccd", tmp_path / f"wrong{number}", source)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(FetchError, match=r"'imagenet' .* bccd, coco2017-val, coco2017, penn-fudan, voc2012"):
        get("imagenet", tmp_path / "out")


def test_a_folder_with_other_contents_is_left_alone(tiny, tmp_path):
    write(tmp_path / "out", {"thesis.tex": b"mine"})
    with pytest.raises(FetchError, match="is not empty"):
        get("bccd", tmp_path / "out")
    assert tree(tmp_path / "out") == {"thesis.tex": b"mine"}
    with pytest.raises(FetchError, match="is a file"):
        get("bccd", tmp_path / "out" / "thesis.tex")


def test_a_folder_is_for_one_set(tiny, tmp_path):
    get("bccd", tmp_path / "out")
    with pytest.raises(FetchError, match="holds the data set 'bccd'"):
        get("voc2012", tmp_path / "out")
    (tmp_path / "out" / "annotations" / "instances_val.json").unlink()
    with pytest.raises(FetchError, match=r"instances_val\.json was removed"):
        get("bccd", tmp_path / "out")
    (tiny.folder / BCCD_ZIP).unlink()
    with pytest.raises(FetchError, match="404"):
        get("bccd", tmp_path / "begun")
    with pytest.raises(FetchError, match="a fetch of 'bccd' was begun here"):
        get("voc2012", tmp_path / "begun")


def test_a_local_copy_is_not_written_into(tiny, tmp_path):
    source = write(tmp_path / "copy", BCCD)
    with pytest.raises(FetchError, match="which is only read"):
        get("bccd", source / "out", source)
    with pytest.raises(FetchError, match="there is no such folder or archive"):
        get("bccd", tmp_path / "out", tmp_path / "nowhere")
    assert tree(source) == BCCD
    assert not (tmp_path / "out").exists()


def test_too_little_room_is_told_with_both_figures_before_loading(tiny, tmp_path, monkeypatch):
    card = dataclasses.replace(module._COCO)
    monkeypatch.setitem(FETCHABLE, "coco2017", card)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=9 * 10**9))
    with pytest.raises(FetchError, match=r"coco2017 needs 42\.4 GB while it is fetched, 9\.0 GB are free"):
        get("coco2017", tmp_path / "out")
    assert not tiny.asked


def test_a_full_disk_while_laying_out_is_one_clear_error(tiny, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(module.os, "link", full)
    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(FetchError, match="No space left on device. Free some space"):
        get("bccd", tmp_path / "out")


def test_every_card_says_where_from_how_much_and_under_which_licence():
    for name, card in FETCHABLE.items():
        assert card.name == name
        text = str(card)
        assert card.homepage in text
        assert card.licence in text
        for archive in card.archives:
            assert archive.url.startswith(("https://", "http://images.cocodataset.org/"))
            assert archive.url.startswith("https://") or archive.md5
    assert "train 118,287, val 5,000" in str(FETCHABLE["coco2017"]).replace("2017 ", " ")
    assert "download 20.4 GB" in str(FETCHABLE["coco2017"])
    assert "not public" in str(FETCHABLE["voc2012"])


def test_voc_is_the_file_that_torchvision_knows():
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    known, archive = DATASET_YEAR_DICT["2012"], FETCHABLE["voc2012"].archives[0]
    assert (archive.file_name, archive.md5) == (known["filename"], known["md5"])


def test_penn_fudan_splits_all_its_pictures_into_120_and_50(tmp_path):
    for n in range(170):
        write(tmp_path, {f"PNGImages/{n:03}.png": PENN["PennFudanPed/PNGImages/a.png"]})
        write(tmp_path, {f"PedMasks/{n:03}_mask.png": PENN["PennFudanPed/PedMasks/a_mask.png"]})
    coco = penn_fudan_to_coco(tmp_path)
    assert {split: len(content["images"]) for split, content in coco.items()} == FETCHABLE["penn-fudan"].images
    ids = [row["id"] for content in coco.values() for row in content["annotations"]]
    assert len(set(ids)) == len(ids) == 340


def test_the_published_blood_cells_pass_their_own_card(shared_data, tmp_path):
    folder = get("bccd", tmp_path / "out", shared_data / "bccd_voc")
    counts = {split: len(coco_of(folder, split)["annotations"]) for split in ("train", "val", "test")}
    assert counts == {"train": 2804, "val": 1137, "test": 945}
    assert len(list(folder.rglob("*.jpg"))) == 364
