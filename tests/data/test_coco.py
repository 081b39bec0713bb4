"""COCO files become targets by the published rules, and what cannot be meant is refused with its place."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from minidet.data.coco import CocoDataset, find_split, load_split, split_names
from minidet.errors import DataError

W, H = 64, 48


def image(image_id: int, **changes) -> dict:
    return {"id": image_id, "file_name": f"{image_id}.png", "height": H, "width": W} | changes


def box(annotation_id: int, bbox: list, image_id: int = 1, category_id: int = 1, **changes) -> dict:
    return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": bbox} | changes


def content(annotations: list, images: list | None = None, categories: list | None = None) -> dict:
    return {
        "images": [image(1)] if images is None else images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}] if categories is None else categories,
    }


def load(folder: Path, data) -> CocoDataset:
    path = folder / "annotations" / "instances_train.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))
    return CocoDataset(path, folder)


def refusal(folder: Path, data) -> str:
    with pytest.raises(DataError) as raised:
        load(folder, data)
    assert str(folder / "annotations" / "instances_train.json") in str(raised.value)
    assert f"minidet data check {folder}`" in str(raised.value)
    return str(raised.value)


# ---- the published rules


def test_boxes_become_corners_and_are_cut_at_the_picture(tmp_path):
    dataset = load(tmp_path, content([box(1, [10.5, 4, 20, 8]), box(2, [-5, -5, 100, 10]), box(3, [60, 40, 10, 10])]))
    target = dataset.target(0)
    assert target["boxes"].tolist() == [[10.5, 4, 30.5, 12], [0, 0, 64, 5], [60, 40, 64, 48]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64
    assert target["image_id"] == 1


def test_a_label_is_the_rank_of_the_category_id(tmp_path):
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 0, "name": "person"}]
    boxes = [box(i, [1, 1, 5, 5], category_id=c) for i, c in enumerate([3, 90, 0], start=1)]
    dataset = load(tmp_path, content(boxes, categories=categories))
    assert dataset.class_names == ["person", "car", "toothbrush"]
    assert dataset.category_ids == [0, 3, 90]
    assert dataset.target(0)["labels"].tolist() == [1, 2, 0]


def test_crowds_are_skipped_and_pictures_without_objects_stay(tmp_path):
    images = [image(7), image(1), image(3)]
    boxes = [box(1, [1, 1, 5, 5], image_id=1), box(2, [2, 2, 5, 5], image_id=3, iscrowd=1)]
    dataset = load(tmp_path, content(boxes, images))
    assert [record.id for record in dataset.records] == [7, 1, 3]  # the file's order
    assert [len(dataset.target(i)["boxes"]) for i in range(3)] == [0, 1, 0]
    assert dataset.target(0)["boxes"].shape == (0, 4)
    assert dataset.dropped == {"crowd": 1}


@pytest.mark.parametrize(
    ("bbox", "changes", "reason"),
    [
        ([5, 5, 0, 4], {}, "zero size"),
        ([5, 5, 4, 0], {"area": 9}, "zero size"),
        ([40, 5, 1e-9, 4], {}, "zero size"),  # float32 cannot hold its two sides apart
        ([5, 5, -3, 4], {}, "negative size"),
        ([64, 5, 3, 4], {}, "outside the picture"),
        ([5, -9, 3, 9], {}, "outside the picture"),
        ([1e308, 5, 1e308, 4], {}, "outside the picture"),
        ([5, 5, 4, 4], {"area": 0}, "no area"),
        ([5, 5, 4, 4], {"area": -16.0}, "no area"),
    ],
)
def test_a_box_without_inside_is_left_out_and_counted(tmp_path, bbox, changes, reason):
    dataset = load(tmp_path, content([box(1, bbox, **changes), box(2, [1, 1, 5, 5])]))
    assert dataset.target(0)["boxes"].tolist() == [[1, 1, 6, 6]]
    assert dataset.dropped == {reason: 1}


def test_missing_extras_and_ids_in_any_order_do_not_matter(tmp_path):
    images = [image(2**40), image(-5), image(0)]
    boxes = [box(9, [3, 0, 1, 1], image_id=0), box(2, [1, 0, 1, 1], image_id=-5), box(4, [4, 0, 1, 1], image_id=0)]
    boxes.append({"image_id": 2**40, "category_id": 1, "bbox": [2, 0, 1, 1], "area": None, "iscrowd": None})
    dataset = load(tmp_path, content(boxes, images))
    assert [dataset.target(i)["boxes"][:, 0].tolist() for i in range(3)] == [[2], [1], [3, 4]]
    assert dataset.dropped == {}


@pytest.mark.parametrize("missing", [False, True])
def test_a_data_set_without_boxes_loads(tmp_path, missing):
    data = content([], [image(1), image(2)])
    if missing:
        del data["annotations"]
    dataset = load(tmp_path, data)
    assert len(dataset) == 2
    assert dataset.class_names == ["cat"]
    assert dataset.target(1)["boxes"].shape == (0, 4)
    assert dataset.target(1)["labels"].shape == (0,)


def test_blood_cells_hold_the_boxes_that_stand_in_their_file(shared_data):
    for split, count in [("train", 2804), ("val", 1137), ("test", 945)]:
        path = shared_data / "bccd_expected" / f"instances_{split}.json"
        dataset = CocoDataset(path, shared_data / "bccd_voc" / "JPEGImages")
        assert sum(len(dataset.target(i)["labels"]) for i in range(len(dataset))) == count
        assert dataset.dropped == {}
    picture, target = dataset[0]
    rows = [row for row in json.loads(path.read_text())["annotations"] if row["image_id"] == target["image_id"]]
    assert picture.shape == (3, 480, 640)
    assert target["boxes"].tolist() == [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]


def test_coco_val_gives_what_pycocotools_finds(shared_data):
    from pycocotools.coco import COCO

    path = shared_data / "eval_reference" / "instances_val2014_100.json"
    dataset, coco = CocoDataset(path, "nowhere"), COCO(str(path))
    assert [record.id for record in dataset.records] == coco.getImgIds()
    assert dataset.category_ids == sorted(coco.getCatIds())
    for index, record in enumerate(dataset.records):
        rows = coco.loadAnns(coco.getAnnIds(imgIds=[record.id], iscrowd=False))
        target = dataset.target(index)
        expected = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        assert np.allclose(target["boxes"], expected.clip(0, [record.width, record.height] * 2), atol=1e-4)
        assert [dataset.category_ids[label] for label in target["labels"]] == [row["category_id"] for row in rows]
    assert dataset.dropped == {"crowd": 9}  # 839 annotations in this file, 830 in the one without crowds


# ---- as a torch data set


def write_picture(path: Path, width: int = W, height: int = H) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)).save(
        path
    )


def test_an_item_is_a_picture_with_its_target(tmp_path):
    write_picture(tmp_path / "1.png")
    picture, target = load(tmp_path, content([box(1, [1, 2, 3, 4])]))[0]
    assert picture.shape == (3, H, W)
    assert picture[:, 0, 1].tolist() == [3, 4, 5]
    assert target["boxes"].tolist() == [[1, 2, 4, 6]]


def test_changing_a_target_does_not_change_the_data_set(tmp_path):
    dataset = load(tmp_path, content([box(1, [1, 2, 3, 4])]))
    dataset.target(0)["boxes"].zero_()
    dataset.target(0)["labels"].fill_(9)
    assert dataset.target(0)["boxes"].tolist() == [[1, 2, 4, 6]]
    assert dataset.target(0)["labels"].tolist() == [0]


def test_indices_work_as_in_a_list(tmp_path):
    dataset = load(tmp_path, content([box(1, [1, 1, 2, 2], image_id=2)], [image(1), image(2)]))
    assert len(dataset.target(-1)["boxes"]) == 1
    assert len(dataset.target(np.int64(1))["boxes"]) == 1
    for index in (2, -3):
        with pytest.raises(IndexError):
            dataset.target(index)
        with pytest.raises(IndexError):
            dataset[index]


def test_it_survives_pickling_and_worker_processes(tmp_path):
    for name in ("1.png", "2.png"):
        write_picture(tmp_path / name)
    dataset = load(tmp_path, content([box(1, [1, 1, 2, 2], image_id=2)], [image(1), image(2)]))
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.target(1)["boxes"].tolist() == [[1, 1, 3, 3]]
    loaded = list(DataLoader(dataset, batch_size=None, num_workers=1))
    assert [target["image_id"] for _, target in loaded] == [1, 2]
    assert torch.equal(loaded[1][0], dataset.image(1))


@pytest.mark.parametrize(("size", "advice"), [((H, W), "EXIF"), ((W, H + 1), "Put back the picture")])
def test_a_picture_of_another_size_than_annotated_is_refused(tmp_path, size, advice):
    write_picture(tmp_path / "1.png", *size)
    dataset = load(tmp_path, content([box(1, [1, 1, 2, 2])]))
    with pytest.raises(DataError, match=advice) as raised:
        dataset[0]
    for part in (str(tmp_path / "1.png"), "image id 1", f"{size[0]} x {size[1]} pixels", f"say {W} x {H}"):
        assert part in str(raised.value)


def test_a_missing_or_damaged_picture_is_named_when_it_is_read(tmp_path):
    dataset = load(tmp_path, content([], [image(1), image(2)]))
    (tmp_path / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for index, name in enumerate(["1.png", "2.png"]):
        with pytest.raises(DataError, match=name):
            dataset[index]


# ---- what is refused


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "holds a list, not an object"),
        (None, "holds null"),
        ({}, '"images" is missing'),
        ({"images": {}, "categories": []}, '"images" is an object'),
        (content([], images=[]), '"images" is empty'),
        (content([], categories=[]), '"categories" is empty'),
        (content({}), '"annotations" is an object'),
        (content([5]), "annotations[0]: is 5"),
        (content([], images=[image(1), image(1)]), "image 1: id 1 is taken already"),
        (content([], images=[image("1")]), """images[0]: "id" is '1'"""),
        (content([], images=[image(True)]), '"id" is True'),
        (content([], images=[{"id": 4}]), 'image 4: "file_name" is missing'),
        (content([], images=[image(4, width=0)]), 'image 4: "width" is 0'),
        (content([], images=[image(4, height=-1)]), 'image 4: "height" is -1'),
        (content([], images=[image(4, height=47.5)]), 'image 4: "height" is 47.5'),
        (content([], categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "id 1 is taken already"),
        (content([], categories=[{"id": 1}]), 'categories[0]: "name" is missing'),
        (content([box(5, [1, 1, 1, 1], category_id=2)]), 'image 1, annotation 5: unknown category: "category_id" is 2'),
        (content([box(5, [1, 1, 1, 1], image_id=2)]), 'image 2, annotation 5: unknown image: "image_id" is 2'),
        (content([box(5, [1, 1, 1, 1], image_id=[])]), 'annotation 5: unknown image: "image_id" is []'),
        (content([box(5, [1, 1, 1, NAN])]), '"bbox" is [1, 1, 1, nan]'),
        (content([box(5, [-INFINITY, 1, 1, 1])]), '"bbox" is [-inf, 1, 1, 1]'),
        (content([box(5, [1, 1, 10**400, 1])]), '"bbox" is [1, 1, 100'),
        (content([box(5, [1, 1, "2", 1])]), """"bbox" is [1, 1, '2', 1]"""),
        (content([box(5, [1, 1, True, 1])]), '"bbox" is [1, 1, True, 1]'),
        (content([box(5, [1, 1, 1])]), '"bbox" is [1, 1, 1]'),
        (content([{"id": 5, "image_id": 1, "category_id": 1}]), '"bbox" is missing'),
        (content([box(5, [1, 1, 1, 1], area="large")]), """"area" is 'large'"""),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(tmp_path, data, words):
    assert words in refusal(tmp_path, data)


@pytest.mark.parametrize(
    "name",
    ["../1.png", "a/../../1.png", "/1.png", "C:\\1.png", "C:1.png", "\\1.png", "..\\1.png", "\\\\host\\share\\1.png"],
)
def test_a_file_name_may_not_leave_the_images_folder(tmp_path, name):
    assert "leaves the images folder" in refusal(tmp_path, content([], images=[image(1, file_name=name)]))


@pytest.mark.parametrize("name", ["", "  ", "a\0b.png", "\ud800.png", 5, None])
def test_a_file_name_that_no_file_can_have_is_refused(tmp_path, name):
    assert '"file_name" is' in refusal(tmp_path, content([], images=[image(1, file_name=name)]))


def test_a_folder_in_the_file_name_is_fine(tmp_path):
    write_picture(tmp_path / "deep" / "er..png")
    assert load(tmp_path, content([], images=[image(1, file_name="deep/er..png")]))[0][0].shape == (3, H, W)


def test_many_faults_are_counted_and_the_first_five_shown(tmp_path):
    text = refusal(tmp_path, content([box(i, [0, 0, NAN, 0]) for i in range(1, 13)]))
    assert "12 faults" in text
    assert text.count("annotation ") == 5
    assert "and 7 more" in text


def test_annotations_of_a_faulty_image_are_not_blamed(tmp_path):
    text = refusal(tmp_path, content([box(1, [1, 1, 1, 1])], images=[image(1, width=None)]))
    assert "1 fault in" in text


def test_missing_and_truncated_files_are_data_errors(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match="no such file"):
        CocoDataset(path, tmp_path)
    path.write_text(json.dumps(content([]))[:-20])
    with pytest.raises(DataError, match="line 1, column"):
        CocoDataset(path, tmp_path)


# ---- where a split lies


@pytest.mark.parametrize(
    ("annotations", "images", "expected"),
    [
        ("instances_val.json", ["val", "images/val", "images"], "val"),
        ("instances_val2017.json", ["val2017", "images"], "val2017"),
        ("instances_val.json", ["images/val", "images"], "images/val"),
        ("instances_val.json", ["images", "train"], "images"),
        ("instances_val.json", [], "."),
    ],
)
def test_a_split_is_found_in_the_usual_places(tmp_path, annotations, images, expected):
    for name in images:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / annotations
    path.write_text(json.dumps(content([])))
    assert find_split(tmp_path, "val") == (path, tmp_path / expected)
    assert load_split(str(tmp_path), "val").images_path == tmp_path / expected


def test_a_missing_split_says_what_was_looked_for_and_what_there_is(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name in ("test", "val", "train2017"):
        (tmp_path / "annotations" / f"instances_{name}.json").touch()
    assert split_names(tmp_path) == ["train2017", "val", "test"]
    with pytest.raises(DataError) as raised:
        load_split(tmp_path, "training")
    for part in ("instances_training.json", "instances_training2017.json", "train2017, val, test"):
        assert part in str(raised.value)
    with pytest.raises(DataError, match="nor is there such a folder"):
        load_split(tmp_path / "nowhere", "train")
