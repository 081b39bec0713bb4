"""Bad input meets YOLOF: what is refused by name, what is left out and told, and what simply works."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import minidet
from minidet.data.check import check_dataset
from minidet.data.coco import CocoDataset
from minidet.data.loader import training_loader
from minidet.errors import DataError
from minidet.losses import combine_logits
from minidet.training.recipe import YOLOF_COURSE, recipe_for
from tests.training.squares import run

ODD_SIZES = [(37, 1000), (1000, 37), (2000, 3), (5, 5), (1, 1), (64, 96), (120, 80), (31, 33)]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("minidet.training.run.save_pictures", lambda *args: None)


def small_yolof(**changes) -> minidet.detectors.Detector:
    """A YOLOF of few weights, the same ones every time."""
    torch.manual_seed(1)
    settings = {"input_hw": (64, 96), "width": 32, "mid_width": 8, "class_convs": 1, "box_convs": 1} | changes
    return minidet.create_model("yolof-r18-c5", num_classes=2, **settings)


def write_data(folder, sizes_hw, boxes=None, **annotation) -> CocoDataset:
    """Pictures of the given sizes; each has one box over its middle half, or that of `boxes` (None: no box)."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes_hw, 1):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "train" / f"{number}.png")
        images.append({"id": 100 + number, "file_name": f"{number}.png", "height": height, "width": width})
        box = [width / 4, height / 4, width / 2, height / 2] if boxes is None else boxes[number - 1]
        if box is not None:
            row = {"bbox": box, "area": 9, "iscrowd": 0, "category_id": 1 + number % 2} | annotation
            annotations.append({"id": 900 + number, "image_id": 100 + number, **row})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    path = folder / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    return CocoDataset(path, folder / "train")


# Boxes and labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([5.0, 5, 5, 9], 0, r"x1 < x2"),
        ([5.0, 9, 9, 9], 0, r"y1 < y2"),
        ([9.0, 5, 5, 9], 0, r"x1 < x2"),
        ([5.0, math.nan, 9, 9], 0, "NaN or infinite"),
        ([5.0, 5, math.inf, 9], 0, "NaN or infinite"),
        ([5.0, 5, 9, 9], 2, r"labels go from 0 to 1 .*these from 0 to 2"),
        ([5.0, 5, 9, 9], -1, r"labels go from 0 to 1 .*these from -1 to 0"),
    ],
)
def test_a_training_batch_with_a_bad_box_or_label_is_refused_with_the_images_name(box, label, message):
    model = small_yolof().train()
    good = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([0]), "image_id": 7}
    bad = {"boxes": torch.tensor([[5.0, 5, 40, 40], box]), "labels": torch.tensor([0, label]), "image_id": 8}
    model(torch.rand(2, 3, 64, 96), [good, good])
    with pytest.raises(ValueError, match=rf"targets\[1\] \(image id 8\).*{message}"):
        model(torch.rand(2, 3, 64, 96), [good, bad])
    with pytest.raises(ValueError, match=message):
        model([torch.rand(3, 30, 50), torch.rand(3, 50, 30)], [good, bad])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_annotations_that_are_no_numbers_are_refused_with_file_image_and_annotation(tmp_path, bad):
    with pytest.raises(DataError, match=r"instances_train\.json.*\n.*image 102, annotation 902: \"bbox\" is"):
        write_data(tmp_path, [(64, 96)] * 2, boxes=[[1, 1, 9, 9], [1, 1, bad, 9]])


def test_a_class_that_is_not_listed_is_refused_with_file_image_and_annotation(tmp_path):
    with pytest.raises(DataError, match=r"image 101, annotation 901: unknown category: \"category_id\" is 3"):
        write_data(tmp_path, [(64, 96)], category_id=3)


def test_boxes_without_area_are_left_out_of_training_counted_told_and_named_by_the_checker(tmp_path):
    good = [10, 10, 40, 30]
    data = write_data(tmp_path / "data", [(64, 96)] * 4, boxes=[good, [10, 10, 0, 30], [40, 10, -30, 30], good])
    assert data.dropped == {"zero size": 1, "negative size": 1}
    assert [len(data.target(index)["labels"]) for index in range(4)] == [1, 0, 0, 1]
    said: list[str] = []
    recipe = dataclasses.replace(YOLOF_COURSE, epochs=1, batch_size=2)
    run(tmp_path / "run", data, recipe, model=small_yolof(), val_data=None, log=said.append)
    assert any("instances_train.json: 2 boxes are left out (1 negative size, 1 zero size)" in text for text in said)
    named = {(fault.image_id, fault.annotation_id) for fault in check_dataset(tmp_path / "data")}
    assert {(102, 902), (103, 903)} <= named


# Nothing to learn from ------------------------------------------------------------------------------------------------


def test_a_batch_without_any_box_trains():
    model = small_yolof().train()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model(torch.rand(2, 3, 64, 96), [nothing, nothing])
    assert losses["loss_box"].item() == 0
    assert 0 < losses["loss_class"].item() < math.inf
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or "backbone" in name or "box_predictor" in name, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_a_run_goes_on_over_batches_without_any_box(tmp_path):
    data = write_data(tmp_path / "data", [(64, 96)] * 4, boxes=[[10, 10, 40, 30], None, None, None])
    recipe = dataclasses.replace(YOLOF_COURSE, epochs=1, batch_size=1)
    result = run(tmp_path / "run", data, recipe, model=small_yolof(), val_data=None)
    assert result.metrics[-1]["iteration"] == 4
    assert all(math.isfinite(value) for value in result.metrics[-1]["losses"].values())


# Odd pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["letterbox", "shorter_side", "stretch"])
def test_pictures_of_any_size_and_shape_go_through_model_in_training_and_evaluation(resize):
    model = small_yolof(resize=resize)
    pictures = [torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8) for size_hw in ODD_SIZES]
    targets = [
        {"boxes": torch.tensor([[w / 4, h / 4, w * 3 / 4, h * 3 / 4]]), "labels": torch.tensor([0])}
        for h, w in ODD_SIZES
    ]
    losses = model.train()(pictures, targets)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    model.eval().score_threshold = 0.0
    for (height, width), picture in zip(ODD_SIZES, pictures, strict=True):
        (alone,) = model([picture])
        assert alone["boxes"].isfinite().all()
        assert (alone["boxes"] >= 0).all()
        assert (alone["boxes"] <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize("resize", ["letterbox", "shorter_side", "stretch"])
def test_pictures_of_any_size_and_shape_go_through_loader_and_training(tmp_path, resize):
    data = write_data(tmp_path / "data", ODD_SIZES)
    assert sum(len(data.target(index)["labels"]) for index in range(len(data))) == len(ODD_SIZES)
    model = small_yolof(resize=resize)
    recipe = dataclasses.replace(recipe_for("yolof", model.name), epochs=1, batch_size=3)
    loader = training_loader(data, recipe.resolved(model.name, model.input_hw).augmentation, (64, 96), 3, resize=resize)
    for epoch in range(3):
        loader.set_epoch(epoch, strong=True)
        for images, targets in loader:
            height, width = images.shape[-2:]
            assert max(height, width) <= 96
            for target in targets:
                assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
                assert (target["boxes"] <= torch.tensor([width, height, width, height])).all()
    result = run(tmp_path / "run", data, recipe, model=model, val_data=None)
    assert result.metrics[-1]["iteration"] == 3  # 8 pictures, 3 a step


@pytest.mark.parametrize("size_hw", [(1, 1), (20, 20), (7, 96), (33, 65)])
def test_network_input_smaller_than_a_stride_or_no_multiple_of_it_works(size_hw):
    model = small_yolof()
    x = torch.rand(2, 3, *size_hw)
    target = {"boxes": torch.tensor([[0.0, 0, size_hw[1], size_hw[0]]]), "labels": torch.tensor([1])}
    losses = model.train()(x, [target, target])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    rows, columns = (math.ceil(side / 32) for side in size_hw)
    assert model.eval().dense(x).boxes.shape == (2, rows * columns * 5, 4)


# Enormous numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_logit", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("object_logit", [-1e4, 0.0, 1e4])
def test_enormous_logits_give_finite_losses_scores_and_gradients(class_logit, object_logit):
    model = small_yolof().train()
    with torch.no_grad():
        for predictor, value in (
            (model.head.class_predictor, class_logit),
            (model.head.object_predictor, object_logit),
            (model.head.box_predictor, class_logit),
        ):
            predictor.bias.fill_(value)
    target = {"boxes": torch.tensor([[5.0, 5, 60, 40]]), "labels": torch.tensor([1])}
    losses = model(torch.rand(2, 3, 64, 96), [target, target])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    scores = model.eval().dense(torch.rand(2, 3, 64, 96)).class_scores()
    # By hand: sigmoid(class) * sigmoid(objectness), which is 0, 0.25, 0.5 or 1 here; weights move it a little.
    expected = (0.5 if class_logit == 0 else float(class_logit > 0)) * (
        0.5 if object_logit == 0 else float(object_logit > 0)
    )
    assert (scores - expected).abs().max() < 0.2


@pytest.mark.parametrize("class_logit", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("object_logit", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_the_combined_logit_of_enormous_numbers_is_exact_and_so_is_its_gradient(class_logit, object_logit):
    c = torch.tensor([class_logit], requires_grad=True)
    o = torch.tensor([object_logit], requires_grad=True)
    combine_logits(c, o).backward()
    exact_c, exact_o = (
        torch.tensor([each], dtype=torch.float64, requires_grad=True) for each in (class_logit, object_logit)
    )
    exact = exact_c + exact_o - torch.logsumexp(torch.stack([torch.zeros_like(exact_c), exact_c, exact_o]), dim=0)
    exact.backward()
    assert combine_logits(c, o).item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-5)
    assert c.grad.item() == pytest.approx(exact_c.grad.item(), abs=1e-5)
    assert o.grad.item() == pytest.approx(exact_o.grad.item(), abs=1e-5)
