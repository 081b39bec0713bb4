"""A model's detections on a whole data set, as rows of COCO's result format.

Here labels (0, 1, 2, ...) become the data set's own category ids again; reading the annotations made them labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minidet.data.loader import evaluation_loader
from minidet.errors import DataError

if TYPE_CHECKING:
    from minidet.data.coco import CocoDataset


def predict_dataset(
    model: nn.Module,
    dataset: CocoDataset,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
    workers: int = 0,
) -> list[dict[str, Any]]:
    """Detect objects in every picture of a data set.

    Args:
        model: a detector that takes a list of pictures. It computes in evaluation mode and is handed back in the mode
            in which it came; its thresholds are used as they stand.
        dataset: the pictures; `category_ids` says what each label is called in the result.
        batch_size: pictures that go through the network together.
        device: where to compute (the model is moved there); None means where the model is.
        progress: show a bar.
        workers: processes that read pictures ahead; worth it where a GPU would wait for them.

    Returns:
        One `{"image_id", "category_id", "bbox": [x, y, w, h], "score"}` a detection, in the order of the pictures and,
        within one, in the model's. Pixels are rounded to 3 decimals, scores to 6.

    Raises:
        DataError: the classes of model and data set differ, or a picture cannot be read.

    Source: COCO's result format.
    """
    _check_classes(model, dataset)
    if device is None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    model.to(device)
    rows: list[dict[str, Any]] = []
    with (
        evaluation_mode(model),
        torch.no_grad(),  # not inference_mode: a grid that a model keeps from here must still serve in training
        tqdm(total=len(dataset), desc="evaluating", unit="image", disable=not progress, leave=False) as bar,
    ):
        done = 0
        for images, _ in evaluation_loader(dataset, batch_size, workers):
            for prediction in model([image.to(device) for image in images]):
                rows += coco_rows(prediction, dataset.records[done].id, dataset.category_ids)
                done += 1
            bar.update(len(images))
    return rows


def coco_rows(prediction: dict[str, Tensor], image_id: int, category_ids: list[int]) -> list[dict[str, Any]]:
    """One picture's prediction as COCO result rows: xyxy becomes xywh, labels become category ids.

    Args:
        prediction: `boxes` [N, 4] float, xyxy in pixels; `scores` [N] float; `labels` [N] int64.
        image_id: the data set's id of the picture.
        category_ids: the data set's id of each label.
    """
    boxes = prediction["boxes"].detach().double().cpu()
    boxes_xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)  # [N, 4]
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(each, 3) for each in box],
            "score": round(score, 6),
        }
        for box, score, label in zip(
            boxes_xywh.tolist(), prediction["scores"].tolist(), prediction["labels"].tolist(), strict=True
        )
    ]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode; afterwards every module has its own former mode again, frozen ones included."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_classes(model: nn.Module, dataset: CocoDataset) -> None:
    ours, theirs = model.class_names, dataset.class_names
    if model.num_classes != len(theirs):
        raise DataError(
            f"{dataset.annotations_path}: has {len(theirs)} classes ({_few(theirs)}), but the model has "
            f"{model.num_classes}{f' ({_few(ours)})' if ours else ''}. Evaluate it on the data that it was trained for."
        )
    if ours and list(ours) != list(theirs) and sorted(ours) == sorted(theirs):
        raise DataError(
            f"{dataset.annotations_path}: has the model's classes in another order ({_few(theirs)}; the model: "
            f"{_few(ours)}), so labels would be taken for other classes. Number the categories as in training."
        )


def _few(names: list[str]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
