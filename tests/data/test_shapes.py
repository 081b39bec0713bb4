"""The drawn data set: reproducible, honest about its boxes, varied, and safe to interrupt."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import masks_to_boxes

from minidet.data import shapes
from minidet.data.shapes import CLASS_NAMES, ShapesConfig, draw_scene, make_shapes
from minidet.errors import DataError

SMALL = ShapesConfig(train=4, val=2, test=1, image_hw=(96, 128))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("shapes") / "small", SMALL, progress=False)


@pytest.fixture(scope="module")
def scenes() -> list[shapes.Scene]:
    return [draw_scene(np.random.default_rng([7, index])) for index in range(100)]


# ---------------------------------------------------------------------------------------- the same seed, the same files


def test_another_process_draws_the_same_bytes(finished, tmp_path):
    code = (
        "import sys; from minidet.data.shapes import *\n"
        "make_shapes(sys.argv[1], ShapesConfig(train=4, val=2, test=1, image_hw=(96, 128)), progress=False)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True)
    assert files(tmp_path / "again") == files(finished)


def test_a_picture_does_not_depend_on_how_many_are_drawn(finished, tmp_path):
    fewer = make_shapes(tmp_path, ShapesConfig(train=2, val=0, test=0, image_hw=(96, 128)), progress=False)
    for name in ("000001.jpg", "000002.jpg"):
        assert (fewer / "train" / name).read_bytes() == (finished / "train" / name).read_bytes()
    assert sorted(files(fewer)) == [
        "annotations/instances_train.json",
        "shapes.json",
        "train/000001.jpg",
        "train/000002.jpg",
    ]


def test_another_seed_and_another_split_give_other_pictures(finished, tmp_path):
    other = make_shapes(tmp_path, ShapesConfig(train=1, val=1, test=0, image_hw=(96, 128), seed=1), progress=False)
    first = [folder / split / "000001.jpg" for folder in (finished, other) for split in ("train", "val")]
    assert len({path.read_bytes() for path in first}) == 4


# ------------------------------------------------------------------------------------------------------------ the boxes


def test_boxes_are_the_tight_hulls_of_the_masks(scenes):
    checked = 0
    for scene in scenes:
        if len(scene.boxes):
            expected = masks_to_boxes(torch.from_numpy(scene.masks)) + torch.tensor(
                [0.0, 0, 1, 1]
            )  # its x2, y2: last pixel
            assert torch.equal(torch.from_numpy(scene.boxes), expected)
            checked += len(scene.boxes)
    assert checked > 500


def test_the_finished_picture_shows_what_boxes_and_masks_say(monkeypatch):
    # White paper, and each object in a colour of its own: red, green, yellow, blue, magenta, cyan, as painting goes on.
    painted = itertools.count(1)
    bits = np.array([1, 2, 4])
    monkeypatch.setattr(shapes, "_paper", lambda rng, height, width, palette: np.ones((3, height, width), np.float32))
    monkeypatch.setattr(shapes, "_fill", lambda *_: (next(painted) & bits > 0).astype(np.float32)[:, None, None])
    config = ShapesConfig(image_hw=(128, 160), objects=(1, 6), crowd_share=0, empty_share=0)
    alone = set()
    for index in range(120):
        painted = itertools.count(1)
        scene = draw_scene(np.random.default_rng([11, index]), config)
        image = scene.image.astype(float)
        code = (image > 0.5 * image.max(axis=-1, keepdims=True)) @ bits  # 7: white paper, in shadow or not
        for number, mask in enumerate(scene.masks, start=1):
            in_sight = mask & ~scene.masks[number:].any(axis=0)  # later objects lie in front
            assert ((code == number) & in_sight).sum() > 0.8 * in_sight.sum()  # the rest is smooth edge
        if len(scene.boxes) == 1:  # with several, an edge between two colours can look like a third
            rows, columns = np.nonzero((code == 1).any(axis=1))[0], np.nonzero((code == 1).any(axis=0))[0]
            measured = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(scene.boxes[0], measured, atol=1)
            alone.update(scene.labels.tolist())
    assert alone == set(range(8))


def test_boxes_lie_inside_the_picture_and_some_objects_are_cut_by_its_border(scenes):
    cut = 0
    for scene in scenes:
        assert (scene.boxes >= 0).all() and (scene.boxes <= [256, 192, 256, 192]).all()
        assert (scene.boxes[:, 2:] - scene.boxes[:, :2] >= 3).all()
        cut += (scene.masks.sum(axis=(1, 2)) < scene.full).sum()
    assert cut > 20


def test_what_can_hardly_be_seen_is_not_drawn_and_some_objects_are_partly_hidden(scenes):
    partly_hidden = 0
    for scene in scenes:
        for index, mask in enumerate(scene.masks):
            in_sight = mask & ~scene.masks[index + 1 :].any(axis=0)  # later objects lie in front
            assert in_sight.sum() == scene.visible[index] >= 0.3 * scene.full[index]
            partly_hidden += in_sight.sum() < 0.8 * mask.sum()
    assert partly_hidden > 30


def lens(r: float, s: float, apart: float) -> float:
    """The area that two discs have in common."""
    root = (-apart + r + s) * (apart + r - s) * (apart - r + s) * (apart + r + s)
    first = r**2 * np.arccos((apart**2 + r**2 - s**2) / (2 * apart * r))
    return first + s**2 * np.arccos((apart**2 + s**2 - r**2) / (2 * apart * s)) - 0.5 * np.sqrt(root)


def rounded(area: float, perimeter: float, by: float = 0.02) -> float:
    """The area of a polygon that is shrunk to 1 - by and then widened by as much all round (Steiner's formula)."""
    return area * (1 - by) ** 2 + perimeter * (1 - by) * by + np.pi * by**2


@pytest.mark.parametrize("label", range(8), ids=CLASS_NAMES)
def test_each_outline_encloses_the_area_that_geometry_gives_it(label):
    axis = (np.arange(600, dtype=np.float32) + 0.5) / 200 - 1.5
    distance = shapes._outline(label, 0.0, axis[None, :], axis[:, None])
    star_edge = np.sqrt(1 + 0.42**2 - 2 * 0.42 * np.cos(np.pi / 5))
    expected = {
        "circle": np.pi,
        "square": 4 - (4 - np.pi) * 0.02**2,  # what rounding takes from four right angles
        "triangle": rounded(0.75 * np.sqrt(3), 3 * np.sqrt(3)),  # inscribed in the unit circle
        "star": rounded(5 * 0.42 * np.sin(np.pi / 5), 10 * star_edge),  # ten triangles with sides 1 and 0.42
        "heart": 1.24**2 + np.pi * 0.62**2,  # a square and two half discs
        "ring": np.pi * (1 - 0.66**2),
        "cross": 4 * 0.52 - 0.52**2,
        "moon": np.pi * 1.03**2 - lens(1.03, 0.77, np.hypot(0.4, 0.12)),
    }[CLASS_NAMES[label]]
    assert 9 * float((distance <= 0).mean()) == pytest.approx(expected, rel=0.005)
    slope = np.hypot(*np.gradient(distance, 1 / 200))
    assert np.median(slope) == pytest.approx(1, abs=0.01)  # so that it is a distance


# ---------------------------------------------------------------------------------------------------------- the variety


def test_sizes_span_more_than_a_factor_of_64_in_area(scenes):
    areas = np.concatenate([scene.full for scene in scenes])
    assert areas.max() >= 64 * areas.min()
    sides = np.concatenate([(scene.boxes[:, 2:] - scene.boxes[:, :2]).max(axis=1) for scene in scenes])
    assert sides.max() > 0.75 * 192
    assert 0.6 < np.mean((sides >= 32) & (sides <= 128)) < 0.9


def test_no_whole_object_is_smaller_than_asked_for(scenes):
    for scene in scenes:
        whole = scene.masks.sum(axis=(1, 2)) == scene.full
        sides = (scene.boxes[:, 2:] - scene.boxes[:, :2]).max(axis=1)
        assert (sides[whole] >= 20 - 1.5).all()  # the grid of pixels takes up to one, the measuring of tips a little


def test_all_classes_are_about_equally_frequent(scenes):
    counts = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=8)
    assert len(counts) == len(CLASS_NAMES) == 8
    assert counts.min() > 0.7 * counts.mean() and counts.max() < 1.3 * counts.mean()


def test_colour_does_not_tell_the_class(scenes):
    colours = [[] for _ in CLASS_NAMES]
    for scene in scenes:
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            colours[label].append(scene.image[mask].mean(axis=0))
    means = np.array([np.mean(rows, axis=0) for rows in colours])
    assert np.abs(means - means.mean(axis=0)).max() < 25  # of 255; within a class they spread by about 60
    assert min(np.std(rows, axis=0).min() for rows in colours) > 35


def test_a_crowd_is_many_small_objects_close_together():
    config = ShapesConfig(objects=(0, 0), crowd_share=1, empty_share=0)
    nearest, overlapping = [], 0
    for index in range(30):
        boxes = draw_scene(np.random.default_rng([3, index]), config).boxes
        sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        assert 4 <= len(sides) <= 16 and sides.max() <= 78  # drawn are 6 to 16 of up to 75 pixels; some may be hidden
        centers = (boxes[:, 2:] + boxes[:, :2]) / 2
        gaps = np.linalg.norm(centers[:, None] - centers, axis=-1) + np.diag(np.full(len(centers), np.inf))
        nearest.append(np.median(gaps.min(axis=1) / sides))
        overlapping += (gaps.min(axis=1) < 0.7 * sides).sum()
    assert np.median(nearest) < 1.2 and overlapping > 30


def test_the_number_of_objects_is_as_asked():
    config = ShapesConfig(objects=(3, 5), crowd_share=0, empty_share=0, max_side=0.2, min_visible=0.01)
    counts = {len(draw_scene(np.random.default_rng(index), config).boxes) for index in range(30)}
    assert counts == {3, 4, 5}


def test_a_picture_without_objects_is_a_whole_picture():
    scene = draw_scene(np.random.default_rng(0), ShapesConfig(empty_share=1))
    assert scene.image.shape == (192, 256, 3) and scene.image.dtype == np.uint8 and scene.image.std() > 2
    assert scene.boxes.shape == (0, 4) and scene.boxes.dtype == np.float32
    assert scene.labels.shape == (0,) and scene.labels.dtype == np.int64
    assert scene.masks.shape == (0, 192, 256)


@pytest.mark.parametrize("image_hw", [(64, 64), (65, 333), (300, 90)])
def test_any_picture_size_works(image_hw):
    for index in range(10):
        scene = draw_scene(
            np.random.default_rng(index), ShapesConfig(image_hw=image_hw, objects=(0, 30), crowd_share=1)
        )
        assert scene.image.shape == (*image_hw, 3)


# ------------------------------------------------------------------------------------------------------------ the files


def test_the_annotations_load_in_pycocotools_and_agree_with_the_scenes(finished):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(finished / "annotations" / "instances_train.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASS_NAMES)
    assert coco.getCatIds() == list(range(1, 9)) and coco.getImgIds() == [1, 2, 3, 4]
    for image_id, image in coco.imgs.items():
        scene = draw_scene(np.random.default_rng([0, 0, image_id]), SMALL)
        with Image.open(finished / "train" / image["file_name"]) as picture:
            assert picture.format == "JPEG" and picture.size == (image["width"], image["height"]) == (128, 96)
            assert np.abs(np.asarray(picture).astype(int) - scene.image).mean() < 5  # what JPEG loses
        rows = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        xywh = scene.boxes - np.pad(scene.boxes[:, :2], ((0, 0), (2, 0)))
        assert [row["bbox"] for row in rows] == xywh.tolist()
        assert [row["category_id"] - 1 for row in rows] == scene.labels.tolist()
        assert [row["area"] for row in rows] == scene.visible.tolist()
        assert all(row["iscrowd"] == 0 for row in rows)


def test_a_data_set_of_empty_pictures_is_valid(tmp_path):
    make_shapes(tmp_path, ShapesConfig(train=2, val=0, test=0, image_hw=(64, 64), empty_share=1), progress=False)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "annotations" / "instances_train.json"))
    assert len(coco.imgs) == 2 and len(coco.anns) == 0 and len(coco.cats) == 8


def test_a_finished_folder_is_left_alone(finished, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    monkeypatch.setattr(shapes, "draw_scene", lambda *_: pytest.fail("drew again"))
    assert make_shapes(finished, SMALL) == finished
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize("after", [0, 2, 5])
def test_after_ctrl_c_nothing_is_half_written_and_the_next_call_finishes(finished, tmp_path, monkeypatch, after):
    folder, whole, calls = tmp_path / "cut", files(finished), itertools.count()

    def interrupted(rng, config):
        if next(calls) == after:
            raise KeyboardInterrupt
        return draw_scene(rng, config)

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_shapes(folder, SMALL, progress=False)
    left = files(folder)
    marker = left.pop("shapes.unfinished.json")
    assert marker == whole["shapes.json"] and "shapes.json" not in left
    assert left.items() <= whole.items() and len(left) == after + (after > 4)  # with 5, the train annotations are there

    make_shapes(folder, SMALL, progress=False)
    assert files(folder) == whole


def test_a_lost_picture_is_drawn_again(tmp_path, finished):
    make_shapes(tmp_path, SMALL, progress=False)
    (tmp_path / "val" / "000002.jpg").unlink()
    make_shapes(tmp_path, SMALL, progress=False)
    assert files(tmp_path) == files(finished)


def test_a_folder_with_another_configuration_is_refused_with_the_difference(finished):
    before = files(finished)
    with pytest.raises(DataError, match=r"seed is 0 there, 3 asked for.*another folder, or delete this one") as error:
        make_shapes(finished, ShapesConfig(train=4, val=2, test=1, image_hw=(96, 128), seed=3))
    assert str(finished) in str(error.value)
    assert files(finished) == before


def test_a_folder_drawn_by_another_version_is_refused(tmp_path):
    make_shapes(tmp_path, ShapesConfig(train=1, val=0, test=0, image_hw=(64, 64)), progress=False)
    manifest = json.loads((tmp_path / "shapes.json").read_text())
    (tmp_path / "shapes.json").write_text(json.dumps({**manifest, "version": 0}))
    with pytest.raises(DataError, match="version 0 of the drawing"):
        make_shapes(tmp_path, ShapesConfig(train=1, val=0, test=0, image_hw=(64, 64)))


def test_a_folder_with_other_files_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(thesis\.tex\).*another folder"):
        make_shapes(tmp_path, SMALL)
    assert files(tmp_path) == {"thesis.tex": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="is no folder to draw shapes into"):
        make_shapes(tmp_path / "file", SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": -1}, "train is -1; it needs a whole number, 0 or more"),
        ({"val": 2.5}, "val is 2.5; it needs a whole number"),
        ({"test": True}, "test is True; it needs a whole number"),
        ({"seed": -1}, "seed is -1; it needs a whole number, 0 or more"),
        ({"image_hw": (63, 320)}, "at least 64 pixels each"),
        ({"image_hw": 320}, "image_hw is 320; it needs two whole numbers"),
        ({"image_hw": (256.0, 320)}, "it needs two whole numbers"),
        ({"objects": (5, 2)}, "0 <= fewest <= most <= 100"),
        ({"objects": (0, 101)}, "0 <= fewest <= most <= 100"),
        ({"objects": (1, 2, 3)}, "objects is .* it needs two whole numbers"),
        ({"crowd_share": 1.5}, "crowd_share is 1.5; a share lies between 0 and 1"),
        ({"empty_share": -0.1}, "empty_share is -0.1; a share lies between 0 and 1"),
        ({"empty_share": float("nan")}, "empty_share is nan"),
        ({"min_visible": 0}, "min_visible is 0; it needs a share above 0"),
        ({"max_side": 1.2}, "max_side is 1.2; it needs a share above 0, 1 at most"),
        ({"min_side": 3}, "min_side is 3; it needs at least 6 pixels"),
        ({"min_side": 300}, "at most the largest side, here 0.95 x 192 = 182.4 pixels"),
        ({"min_side": "10"}, "min_side is '10'; it needs a number"),
    ],
)
def test_a_bad_configuration_is_refused_with_a_reason(change, message):
    with pytest.raises(DataError, match=message):
        ShapesConfig(**change)


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(DataError, match="all 0: there is nothing to draw"):
        make_shapes(tmp_path / "none", ShapesConfig(train=0, val=0, test=0))
    assert not (tmp_path / "none").exists()


def test_lists_from_a_command_line_or_json_make_the_same_configuration():
    assert ShapesConfig(image_hw=[96, 128], objects=[1, 2]) == ShapesConfig(image_hw=(96, 128), objects=(1, 2))


def test_with_one_class_only_the_labels_differ(tmp_path):
    settings = {"train": 2, "val": 0, "test": 0, "image_hw": (64, 96), "min_side": 12}
    many = make_shapes(tmp_path / "many", ShapesConfig(**settings), progress=False)
    one = make_shapes(tmp_path / "one", ShapesConfig(**settings, one_class=True), progress=False)
    documents = [json.loads((folder / "annotations" / "instances_train.json").read_text()) for folder in (many, one)]
    assert [category["name"] for category in documents[1]["categories"]] == ["shape"]
    assert {annotation["category_id"] for annotation in documents[1]["annotations"]} == {1}
    assert [a["bbox"] for a in documents[0]["annotations"]] == [a["bbox"] for a in documents[1]["annotations"]]
    assert (many / "train" / "000001.jpg").read_bytes() == (one / "train" / "000001.jpg").read_bytes()
    assert "one_class" not in json.loads((many / "shapes.json").read_text())["config"]
    with pytest.raises(DataError, match="one_class is None there, True asked for"):
        make_shapes(many, ShapesConfig(**settings, one_class=True), progress=False)
