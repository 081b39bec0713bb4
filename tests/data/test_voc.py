"""Pascal VOC XML to COCO JSON: by hand-written files, by fuzzing, and by the published blood cells."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minidet.data.voc import read_voc, voc_to_coco
from minidet.errors import DataError

SIZE = "<size><width>64</width><height>48</height><depth>3</depth></size>"


def box(x1, y1, x2, y2):
    return f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"


def thing(name, *corners, extra=""):
    return f"<object><name>{name}</name>{extra}{box(*corners)}</object>"


def xml(*objects, size=SIZE, file_name=""):
    return f"<annotation><filename>{file_name}</filename>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """Builds a VOC folder from {stem: XML}; every picture is 64 x 48 pixels, all of them are in train unless told."""

    def build(files, suffixes=(".jpg",), **splits):
        for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for stem, text in files.items():
            content = text if isinstance(text, bytes) else text.encode()
            (tmp_path / "Annotations" / f"{stem}.xml").write_bytes(content)
            for suffix in suffixes:
                Image.new("RGB", (64, 48)).save(tmp_path / "JPEGImages" / f"{stem}{suffix}")
        for split, stems in (splits or {"train": list(files)}).items():
            (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        return tmp_path

    return build


def test_boxes_are_corners_and_differences_and_ids_are_unique_across_splits(voc):
    folder = voc(
        {"a": xml(thing("cat", 1, 2, 11, 22), thing("dog", 0, 0, 64, 48)), "b": xml(thing("cat", 3, 4, 5, 7))},
        train=["a"],
        val=["b"],
    )
    coco = voc_to_coco(folder)
    assert list(coco) == ["train", "val"]
    assert coco["train"]["images"] == [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}]
    assert coco["train"]["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 64, 48], "area": 3072, "iscrowd": 0},
    ]
    assert coco["val"]["images"][0]["id"] == 2
    assert coco["val"]["annotations"][0] == {
        "id": 3, "image_id": 2, "category_id": 1, "bbox": [3, 4, 2, 3], "area": 6, "iscrowd": 0,
    }  # fmt: skip
    for split in coco.values():
        assert split["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_a_set_that_counts_from_one_is_moved_to_zero(voc):
    coco = voc_to_coco(voc({"a": xml(thing("cat", 1, 1, 33, 17))}), origin=1.0)
    assert coco["train"]["annotations"][0]["bbox"] == [0, 0, 32, 16]


def test_the_given_classes_fix_the_category_ids_even_of_unused_ones(voc):
    coco = voc_to_coco(voc({"a": xml(thing("cat", 1, 2, 3, 4))}), class_names=["dog", "cat"])
    assert coco["train"]["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert coco["train"]["annotations"][0]["category_id"] == 2


def test_unknown_classes_of_all_files_are_listed_in_one_error(voc):
    folder = voc({"a": xml(thing("cow", 1, 2, 3, 4)), "b": xml(thing("Cat", 1, 2, 3, 4), thing("cat", 1, 2, 3, 4))})
    with pytest.raises(DataError) as info:
        voc_to_coco(folder, class_names=["cat"])
    first, second = str(info.value).splitlines()
    assert first.endswith("a.xml: unknown class 'cow'; the classes are cat")
    assert second.endswith("b.xml: unknown class 'Cat'; the classes are cat")


def test_boxes_of_zero_size_are_left_out_and_told(voc):
    lines = []
    folder = voc({"a": xml(thing("cat", 5, 6, 5, 9), thing("cat", 5, 6, 8, 6), thing("dog", 1, 2, 3, 4))})
    coco = voc_to_coco(folder, log=lines.append)
    assert [row["bbox"] for row in coco["train"]["annotations"]] == [[1, 2, 2, 2]]
    assert len(lines) == 2
    assert "train: a.jpg: a cat box of zero size at (5, 6)" in lines[0]


@pytest.mark.parametrize(
    ("corners", "words"),
    [
        ((9, 2, 3, 4), "the wrong way round: x from 9 to 3"),
        ((1, 9, 3, 4), "the wrong way round: x from 1 to 3, y from 9 to 4"),
        (("nan", 2, 3, 4), "xmin 'nan'"),
        ((1, 2, "inf", 4), "xmax 'inf'"),
        ((1, 2, 3, "1e300"), "ymax '1e300'"),
        ((1, "two", 3, 4), "ymin 'two'"),
        ((1, "", 3, 4), "ymin None"),
    ],
)
def test_a_box_that_cannot_be_meant_is_an_error_with_file_and_object(voc, corners, words):
    with pytest.raises(DataError, match=r"a\.xml: object 2 \(dog\) .*" + words):
        voc_to_coco(voc({"a": xml(thing("cat", 1, 2, 3, 4), thing("dog", *corners))}))


def test_objects_without_name_or_box_are_named_together(voc):
    folder = voc({"a": xml(f"<object>{box(1, 2, 3, 4)}</object>", "<object><name>cat</name></object>")})
    with pytest.raises(DataError, match=r"a\.xml: object 1 has no <name>; object 2 \(cat\) has no <bndbox>"):
        voc_to_coco(folder)


def test_a_long_list_of_faults_is_cut(voc):
    with pytest.raises(DataError, match=r"... and 2 more$") as info:
        voc_to_coco(voc({f"{n:02}": "<annotation>" for n in range(12)}))
    assert len(str(info.value).splitlines()) == 11


def test_coordinates_may_be_fractions_and_outside_the_picture(voc):
    coco = voc_to_coco(voc({"a": xml(thing("cat", " 1.5 ", -2, "70.25", 4))}))
    assert coco["train"]["annotations"][0]["bbox"] == [1.5, -2, 68.75, 6]


def test_tags_are_found_in_any_case_and_parts_are_no_objects(voc):
    part = f"<part><name>head</name>{box(1, 1, 2, 2)}</part>"
    text = f"<Annotation><Size><Width>64</Width><Height>48</Height></Size>{thing('cat', 1, 2, 3, 4, extra=part)}"
    text = text.replace("bndbox", "BndBox", 4).replace("object>", "Object>") + "</Annotation>"
    coco = voc_to_coco(voc({"a": text}))
    assert [row["bbox"] for row in coco["train"]["annotations"]] == [[1, 2, 2, 2]]


@pytest.mark.parametrize(
    "size", ["", "<size/>", SIZE.replace("64", "0"), SIZE.replace("48", "-1"), SIZE.replace("48", "many")]
)
def test_a_missing_size_is_read_from_the_picture(voc, size):
    coco = voc_to_coco(voc({"a": xml(size=size)}))
    assert coco["train"]["images"] == [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}]


def test_a_size_that_is_written_is_taken_and_no_picture_is_opened(voc):
    folder = voc({"a": xml(size=SIZE.replace("64", "65"))})
    (folder / "JPEGImages" / "a.jpg").write_bytes(b"no picture")
    assert voc_to_coco(folder)["train"]["images"] == [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 65}]


def test_a_rotated_picture_without_size_has_the_size_of_the_upright_one(voc):
    folder = voc({"a": xml(size="")})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(folder / "JPEGImages" / "a.jpg", exif=exif)
    assert voc_to_coco(folder)["train"]["images"][0] == {"id": 1, "file_name": "a.jpg", "height": 64, "width": 48}


def test_difficult_objects_are_kept_and_marked(voc):
    def difficult(text):
        return thing("cat", 1, 2, 3, 4, extra=f"<difficult>{text}</difficult>")

    coco = voc_to_coco(voc({"a": xml(difficult(1), difficult(0), difficult("Unspecified"))}))
    assert [row.get("difficult") for row in coco["train"]["annotations"]] == [1, None, None]
    assert [row["iscrowd"] for row in coco["train"]["annotations"]] == [0, 0, 0]


@pytest.mark.parametrize("file_name", ["", "a", "a.png", "somebody_elses.jpg", "/home/x/a.jpg"])
def test_the_picture_is_found_by_the_stem_whatever_the_file_says(voc, file_name):
    coco = voc_to_coco(voc({"a": xml(file_name=file_name)}, suffixes=[".PNG"]))
    assert coco["train"]["images"][0]["file_name"] == "a.PNG"


def test_of_two_pictures_the_named_one_is_taken(voc):
    coco = voc_to_coco(voc({"a": xml(file_name="a.png")}, suffixes=[".jpg", ".png"]))
    assert coco["train"]["images"][0]["file_name"] == "a.png"


def test_two_pictures_and_no_word_which_is_an_error(voc):
    with pytest.raises(DataError, match=r"a\.jpg, a\.png: which of them does a\.xml describe"):
        voc_to_coco(voc({"a": xml(file_name="a")}, suffixes=[".jpg", ".png"]))


def test_missing_pictures_files_lists_and_folders_are_named(voc, tmp_path):
    with pytest.raises(DataError, match="has none of train.txt, val.txt, test.txt"):
        voc_to_coco(tmp_path)
    folder = voc({"a": xml()}, suffixes=[], train=["a", "b"])
    with pytest.raises(DataError) as info:
        voc_to_coco(folder)
    assert "has no picture a.jpg" in str(info.value)
    assert "b.xml: there is no such annotation file" in str(info.value)
    with pytest.raises(DataError, match=r"val\.txt: there is no such list"):
        voc_to_coco(folder, splits=["val"])
    (folder / "JPEGImages").rmdir()
    with pytest.raises(DataError, match="JPEGImages: cannot be listed"):
        voc_to_coco(folder)


def test_a_picture_listed_twice_is_an_error(voc):
    with pytest.raises(DataError, match=r"train\.txt: names 1 pictures twice \(a\)"):
        voc_to_coco(voc({"a": xml(), "b": xml()}, train=["a", "b", "a"]))


def test_a_picture_in_two_splits_is_told(voc):
    lines = []
    voc_to_coco(voc({"a": xml(), "b": xml()}, train=["a", "b"], test=["b"]), log=lines.append)
    assert lines == ["train and test share 1 pictures (b): such scores say little"]


@pytest.mark.parametrize("stem", ["../a", "/etc/passwd", "..\\a"])
def test_a_list_cannot_lead_to_other_folders(voc, stem):
    with pytest.raises(DataError, match="is a path"):
        voc_to_coco(voc({"a": xml()}, train=[stem]))


def test_a_set_without_objects_is_a_set(voc):
    coco = voc_to_coco(voc({"a": xml()}))
    assert coco["train"]["annotations"] == coco["train"]["categories"] == []


LAUGHS = (
    '<!DOCTYPE annotation [<!ENTITY l0 "ha">'
    + "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    + "]><annotation>&l9;</annotation>"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        '<!DOCTYPE annotation SYSTEM "file:///etc/passwd"><annotation/>',
        '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>',
    ],
)
def test_documents_that_can_define_entities_are_refused(tmp_path, text, encoding):
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"a\.xml: declares a document type"):
        read_voc(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not whole XML"),
        (xml(thing("cat", 1, 2, 3, 4)).encode()[:-5], "is not whole XML"),
        (b"\xff\xfe\x00", "is not whole XML"),
        (b'<?xml version="1.0" encoding="martian"?><annotation/>', "cannot be decoded"),
        (b'<?xml version="1.0" encoding="utf-7"?><annotation/>', "cannot be decoded"),
        (b"<html/>", "starts with <html>"),
        (b"<annotation>" + b" " * 2**24 + b"</annotation>", "is larger than 16 MiB"),
    ],
)
def test_what_is_no_voc_file_is_one_error(tmp_path, content, words):
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.xml: {words}"):
        read_voc(tmp_path / "a.xml")


NUMBERS = st.one_of(
    st.integers(-5, 70).map(str), st.floats().map(str), st.text(max_size=4), st.sampled_from(["1" * 5000, "0x1", "1_0"])
)
TAGS = [
    "annotation",
    "object",
    "name",
    "bndbox",
    "xmin",
    "ymin",
    "xmax",
    "ymax",
    "size",
    "width",
    "height",
    "difficult",
]


@st.composite
def elements(draw, depth=4):
    """Nested tags of VOC in any order and number."""
    tag = draw(st.sampled_from(TAGS))
    if depth == 0 or tag in ("xmin", "ymin", "xmax", "ymax", "width", "height", "name"):
        text = draw(NUMBERS).replace("&", "").replace("<", "")
    else:
        text = "".join(draw(st.lists(elements(depth=depth - 1), max_size=4)))
    return f"<{tag}>{text}</{tag}>"


DOCUMENTS = st.one_of(
    st.binary(max_size=60),
    st.lists(elements(), max_size=4).map(
        lambda inner: f"<annotation>{''.join(inner)}</annotation>".encode(errors="replace")
    ),
    st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS).map(
        lambda n: xml(thing("cat", *n[:4]), size=SIZE.replace("64", n[4])).encode(errors="replace")
    ),
    st.tuples(st.integers(0, 300), st.integers(0, 255)).map(
        lambda p: (text := xml(thing("cat", 1, 2, 3, 4)).encode())[: p[0]] + bytes([p[1]]) + text[p[0] + 1 :]
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=DOCUMENTS)
def test_any_document_gives_boxes_that_json_can_hold_or_a_data_error(voc, content):
    folder = voc({"a": content})
    try:
        coco = voc_to_coco(folder)
    except DataError as error:
        coco, text = None, str(error)
    if coco is None:
        assert "a.xml" in text
    else:
        json.dumps(coco, allow_nan=False)
        assert all(row["bbox"][2] > 0 and row["bbox"][3] > 0 for row in coco["train"]["annotations"])


def by_file(coco):
    """{file: (size, multiset of (class, box))}, whatever the ids are."""
    names = {row["id"]: row["name"] for row in coco["categories"]}
    files = {row["id"]: row["file_name"] for row in coco["images"]}
    boxes = {row["file_name"]: ((row["height"], row["width"]), Counter()) for row in coco["images"]}
    for row in coco["annotations"]:
        boxes[files[row["image_id"]]][1][names[row["category_id"]], tuple(row["bbox"])] += 1
    return boxes


def test_the_blood_cells_come_out_as_expected(shared_data):
    lines = []
    coco = voc_to_coco(shared_data / "bccd_voc", log=lines.append)
    assert {split: len(content["annotations"]) for split, content in coco.items()} == {
        "train": 2804,
        "val": 1137,
        "test": 945,
    }
    for split, content in coco.items():
        expected = json.loads((shared_data / "bccd_expected" / f"instances_{split}.json").read_text())
        assert by_file(content) == by_file(expected)
    assert len(lines) == 2
    assert "BloodImage_00343.jpg" in lines[0]
    assert "BloodImage_00338.jpg" in lines[1]
