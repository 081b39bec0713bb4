"""The checker finds every fault at once, says where and what to do, and no data makes it fall over."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minidet.data.check import Fault, check_dataset, format_faults
from minidet.data.coco import CocoDataset
from minidet.errors import MinidetError

W, H = 64, 48
GOOD = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": H, "width": W} for i in (1, 2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [5.5, 2, 10, 10], "area": 80.5, "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
}


def write_picture(path: Path, seed: int, width: int = W, height: int = H) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_annotations(folder: Path, split: str, content) -> None:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data set without a fault: two splits of two pictures each."""
    for number, split in enumerate(("train", "val")):
        write_annotations(tmp_path, split, GOOD)
        for i in (1, 2):
            write_picture(tmp_path / split / f"{i}.png", seed=2 * number + i)
    return tmp_path


def changed(folder: Path, **sections) -> list[Fault]:
    write_annotations(folder, "train", GOOD | sections)
    return check_dataset(folder, ["train"])


def only(faults: list[Fault]) -> Fault:
    assert len(faults) == 1, format_faults(faults)
    assert faults[0].problem
    assert faults[0].advice
    return faults[0]


def row(section: str, index: int = 0, /, **changes) -> list[dict]:
    rows = copy.deepcopy(GOOD[section])
    rows[index] |= changes
    return rows


def test_a_sound_data_set_has_no_faults(folder):
    assert check_dataset(folder) == []
    assert check_dataset(str(folder), read_images=False) == []
    assert format_faults([]) == "No faults found."


# ---- annotation files


def test_a_folder_that_is_not_there_or_holds_no_annotations_is_one_fault(tmp_path):
    assert "no such folder" in only(check_dataset(tmp_path / "nowhere")).problem
    assert "no annotations/instances_" in only(check_dataset(tmp_path)).problem
    assert "no split 'dev'" in only(check_dataset(tmp_path, ["dev"])).problem


@pytest.mark.parametrize("text", ["", '{"images": [', "\xff", "[" * 100_000, "9" * 5000])
def test_an_unreadable_annotation_file_is_a_fault_and_the_other_split_is_still_checked(folder, text):
    (folder / "annotations" / "instances_train.json").write_bytes(text.encode("latin-1"))
    (folder / "val" / "2.png").unlink()
    broken, missing = check_dataset(folder)
    assert (broken.file, broken.fatal) == ("annotations/instances_train.json", True)
    assert (missing.file, missing.image_id, missing.fatal) == ("val/2.png", 2, True)


@pytest.mark.parametrize("content", [[], "text", 5, None, True])
def test_a_file_that_holds_no_object_is_a_fault(folder, content):
    write_annotations(folder, "train", content)
    assert "not an object" in only(check_dataset(folder, ["train"])).problem


def test_every_fault_of_a_file_is_reported_in_the_order_of_its_sections(folder):
    faults = changed(
        folder,
        categories=[*GOOD["categories"], {"id": 3, "name": "cow"}, {"id": 4}, {"id": 5, "name": "cat"}, "cow"],
        images=[*row("images", 1, width=None), {"id": 1}, {"file_name": "3.png", "height": H, "width": W}],
        annotations=[
            {"id": 1, "image_id": 9, "category_id": 9, "bbox": [0, 0, float("nan"), 1], "area": 1},
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "area": "big", "iscrowd": 2},
            {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"id": 0, "image_id": 1, "category_id": 1, "bbox": [5, 5, 5, 5], "area": 25},
        ],
    )
    assert [(f.image_id, f.annotation_id, f.problem, f.fatal) for f in faults] == [
        (None, None, "categories[2]: id 3 is taken already", True),
        (None, None, 'categories[3]: "name" is missing', True),
        (None, None, "categories[4]: a second category is called 'cat'", False),
        (None, None, "categories[5]: is 'cow'", True),
        (2, None, '"width" is None', True),
        (1, None, "id 1 is taken already", True),
        (1, None, '"file_name" is missing', True),
        (1, None, '"height" is missing', True),
        (1, None, '"width" is missing', True),
        (None, None, 'images[3]: "id" is missing', True),
        (9, 1, 'unknown image: "image_id" is 9', True),
        (9, 1, 'unknown category: "category_id" is 9', True),
        (9, 1, '"bbox" is [0, 0, nan, 1]', True),
        (1, 1, "id 1 is taken already", False),
        (1, 1, '"bbox" is [1, 2, 3]', True),
        (1, 1, "\"area\" is 'big'", True),
        (1, 1, '"iscrowd" is 2', False),
        (1, None, '"id" is missing', False),
        (1, None, "there is no area", False),
        (1, 0, "the id is 0", False),
    ]
    assert {f.file for f in faults} == {"annotations/instances_train.json"}


def test_a_name_used_by_two_images_is_remarked(folder):
    fault, *_ = changed(folder, images=row("images", 1, file_name="1.png"))
    assert (fault.image_id, fault.problem, fault.fatal) == (2, "'1.png' is image 1 already", False)


# ---- boxes


@pytest.mark.parametrize(
    ("bbox", "words"),
    [
        ([5, 5, 0, 3], "zero size"),
        ([5, 5, -1, 3], "negative size"),
        ([64, 5, 3, 3], "outside the picture"),
        ([60, 5, 6, 3], "beyond the 64 x 48 picture"),
        ([-2, 5, 6, 3], "beyond"),
        ([5, 5, 1e300, 3], "beyond"),
    ],
)
def test_a_box_that_is_left_out_or_cut_is_remarked(folder, bbox, words):
    fault = only(changed(folder, annotations=row("annotations", 0, bbox=bbox)))
    assert words in fault.problem
    assert (fault.image_id, fault.annotation_id, fault.fatal) == (1, 1, False)


def test_a_box_up_to_a_pixel_beyond_the_edge_passes(folder):
    assert changed(folder, annotations=row("annotations", 0, bbox=[-1, -0.5, 66, 49.5])) == []


def test_a_crowd_may_reach_beyond_the_edge(folder):
    assert (
        changed(folder, annotations=row("annotations", 1, bbox=[50, 5, 30, 3])) == []
    )  # it is not cut, it is left out


def test_the_same_box_in_two_categories_is_no_repetition(folder):
    both = [*GOOD["annotations"], GOOD["annotations"][0] | {"id": 3, "category_id": 3}]
    assert changed(folder, annotations=both) == []


def test_a_box_that_stands_there_twice_is_remarked_once(folder):
    twice = [*GOOD["annotations"], GOOD["annotations"][0] | {"id": 3}]
    fault = only(changed(folder, annotations=twice))
    assert (fault.annotation_id, fault.fatal) == (3, False)
    assert "twice" in fault.problem


def test_pictures_without_boxes_are_counted_in_one_remark(folder):
    fault = only(changed(folder, annotations=GOOD["annotations"][:1]))
    assert (fault.problem, fault.fatal) == ("1 of 2 pictures have no box", False)
    assert only(changed(folder, annotations=[])).problem == "2 of 2 pictures have no box"


# ---- pictures


def test_missing_damaged_and_resized_pictures_are_found_at_once(folder):
    (folder / "train" / "1.png").unlink()
    (folder / "train" / "2.png").write_bytes(b"nothing")
    write_picture(folder / "val" / "1.png", 5, width=H, height=W)
    write_picture(folder / "val" / "2.png", 6, width=W - 1)
    faults = check_dataset(folder)
    assert [(f.file, f.image_id, f.fatal) for f in faults] == [
        (f"{split}/{i}.png", i, True) for split in ("train", "val") for i in (1, 2)
    ]
    for fault, words in zip(faults, ["no such picture", "cannot be read", "48 x 64", "63 x 48"], strict=True):
        assert words in fault.problem
    assert check_dataset(folder) == faults  # the order is fixed
    assert [f.file for f in check_dataset(folder, read_images=False)] == ["train/1.png"]


def test_a_wrong_folder_is_one_fault_and_not_one_for_every_picture(folder):
    shutil.rmtree(folder / "train")
    fault = only(check_dataset(folder, ["train"]))
    assert "none of the 2 pictures" in fault.problem
    assert fault.fatal


def test_the_only_picture_of_a_data_set_is_named_when_it_is_missing(folder):
    (folder / "train" / "1.png").unlink()
    fault = only(changed(folder, images=GOOD["images"][:1], annotations=GOOD["annotations"][:1]))
    assert (fault.file, fault.image_id, fault.fatal) == ("train/1.png", 1, True)


def test_a_name_that_leaves_the_folder_is_not_opened(folder):
    fault = changed(folder, images=row("images", 0, file_name="../val/1.png"))[0]
    assert (fault.image_id, fault.fatal) == (1, True)
    assert "leaves the images folder" in fault.problem


def test_progress_is_shown_only_when_asked_for(folder, capsys):
    check_dataset(folder)
    assert capsys.readouterr().err == ""
    check_dataset(folder, progress=True)
    assert "2/2" in capsys.readouterr().err


# ---- splits among each other


def test_splits_that_number_their_categories_differently_are_a_fault(folder):
    write_annotations(folder, "val", GOOD | {"categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "dog"}]})
    faults = [f for f in check_dataset(folder) if f.fatal]
    assert [f.problem for f in faults] == ["category 1 is 'dog' here, 'cat' in annotations/instances_train.json"]
    write_annotations(folder, "val", GOOD | {"categories": [*GOOD["categories"], {"id": 2, "name": "cow"}]})
    assert "category 2 is 'cow' here, missing in" in only(check_dataset(folder)).problem


def test_the_order_of_categories_does_not_matter(folder):
    write_annotations(folder, "val", GOOD | {"categories": GOOD["categories"][::-1]})
    assert check_dataset(folder) == []


def test_a_picture_in_two_splits_is_remarked_even_under_another_name(folder):
    shutil.copy(folder / "train" / "1.png", folder / "val" / "2.png")
    fault = only(check_dataset(folder))
    assert (fault.file, fault.problem, fault.fatal) == ("val/2.png", "is in val and in train as train/1.png", False)


def test_the_same_file_in_two_splits_is_found_without_reading_it(folder):
    for split in ("train", "val"):
        shutil.rmtree(folder / split)
    for i in (1, 2):
        write_picture(folder / "images" / f"{i}.png", seed=i)
    faults = check_dataset(folder, read_images=False)
    assert [f.problem for f in faults] == ["is in val and in train too"] * 2


# ---- the report


def test_the_report_sums_up_and_groups_by_what_is_to_be_done():
    def fault(image_id, annotation_id, problem, advice, fatal):
        return Fault("a.json", image_id, annotation_id, problem, advice, fatal)

    faults = [
        fault(1, 10, "zero size: bbox [1, 2, 0, 4]", "Draw it again.", False),
        fault(None, None, '"images" is empty', "List images.", True),
        fault(222, None, "zero size: bbox [1, 2, 0, 5]", "Draw it again.", False),
    ]
    assert format_faults(faults).splitlines() == [
        "1 fault to correct before training or evaluation, 2 remarks.",
        "",
        "FAULT (1): List images.",
        '    a.json  "images" is empty',
        "",
        "remark (2): Draw it again.",
        "    a.json, image 1, annotation 10  zero size: bbox [1, 2, 0, 4]",
        "    a.json, image 222               zero size: bbox [1, 2, 0, 5]",
    ]
    assert format_faults(faults, limit=1).splitlines()[-1] == "    ... and 1 more"


def test_the_converted_blood_cells_are_sound(shared_data, tmp_path):
    (tmp_path / "annotations").mkdir()
    for path in (shared_data / "bccd_expected").glob("*.json"):
        shutil.copy(path, tmp_path / "annotations")
    (tmp_path / "images").symlink_to(shared_data / "bccd_voc" / "JPEGImages")
    assert check_dataset(tmp_path, read_images=False) == []


# ---- no data makes it raise

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 5)
    | st.floats()
    | st.text(max_size=5)
    | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PATHS = [
    (section, index, key) for section, rows in GOOD.items() for index in range(len(rows)) for key in [None, *rows[0]]
] + [(section, None, None) for section in GOOD]


@st.composite
def mutated(draw) -> dict:
    """The sound file with up to four values replaced by anything, or taken out."""
    content = copy.deepcopy(GOOD)
    for section, index, key in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=4)):
        place, name = content, section
        if index is not None and isinstance(content.get(section), list) and index < len(content[section]):
            place, name = content[section], index
            if key is not None and isinstance(content[section][index], dict):
                place, name = content[section][index], key
        value = draw(ANYTHING | st.just(...) | st.lists(st.floats() | st.integers(-100, 100), min_size=4, max_size=4))
        if value is not ...:
            place[name] = value
        elif name in place or isinstance(place, list):
            del place[name]
    return content


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for i in (1, 2):
        write_picture(folder / "images" / f"{i}.png", seed=i)
    return folder


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=mutated() | ANYTHING)
def test_any_json_is_checked_and_loaded_with_nothing_but_our_own_errors(fuzz_folder, content):
    write_annotations(fuzz_folder, "train", content)
    faults = check_dataset(fuzz_folder)
    assert format_faults(faults).encode()  # every line can be printed
    annotations_are_bad = any(f.fatal and f.file.startswith("annotations/") for f in faults)
    try:
        dataset = CocoDataset(fuzz_folder / "annotations" / "instances_train.json", fuzz_folder / "images")
    except MinidetError:
        assert annotations_are_bad
        return
    assert not annotations_are_bad
    for index, record in enumerate(dataset.records):
        boxes, labels = dataset.target(index)["boxes"], dataset.target(index)["labels"]
        assert boxes.isfinite().all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 0::2] <= record.width).all()
        assert (boxes[:, 1::2] <= record.height).all()
        assert ((labels >= 0) & (labels < len(dataset.class_names))).all()
