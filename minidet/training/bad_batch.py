"""The batch whose loss became NaN or infinite, kept for inspection (chapter 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from minidet.files import atomic_write

DRAWN = 16  # pictures of it, at most


@dataclass(frozen=True)
class Step:
    """Names one step of a run, and its images."""

    epoch: int  # from 0
    number: int  # in its epoch, from 0
    iteration: int  # steps done before, in all
    image_ids: tuple[int, ...]

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, iteration {self.iteration + 1} (image ids {list(self.image_ids)})"


def save_batch(
    folder: Path, name: str, images: Tensor, targets: Sequence[dict[str, Any]], class_names: Sequence[str] | None
) -> str:
    """Write a batch as the network saw it, in numbers and as a picture.

    Args:
        folder: of the run.
        name: of the two files, NAME.safetensors (`images` [B, 3, H, W], `boxes` [N, 4] xyxy in pixels, `labels` [N],
            `image` [N], the row in `images` that each box belongs to, `image_ids` [B]) and NAME.png.
        images, targets: the batch, on any device.
        class_names: for the picture.

    Returns:
        Where they are, and how to look at them.
    """
    from minidet.draw import Scene, draw_gallery, save_figure  # matplotlib loads slowly; only a bad batch needs it

    images = images.cpu()
    boxes, labels = ([target[key].cpu() for target in targets] for key in ("boxes", "labels"))
    tensors = {
        "images": images,
        "boxes": torch.cat(boxes),
        "labels": torch.cat(labels),
        "image": torch.arange(len(images)).repeat_interleave(torch.tensor([len(each) for each in boxes])),
        "image_ids": torch.tensor([int(target["image_id"]) for target in targets]),
    }
    path = folder / f"{name}.safetensors"
    with atomic_write(path) as file:
        file.write(tensors_to_bytes({key: value.contiguous() for key, value in tensors.items()}))
    scenes = [
        Scene(image.clamp(0, 255).byte(), {"boxes": own, "labels": classes}, title=f"image id {target['image_id']}")
        for image, own, classes, target in zip(images[:DRAWN], boxes, labels, targets, strict=False)
    ]
    save_figure(draw_gallery(scenes, class_names=class_names), folder / f"{name}.png")
    return (
        f"The batch is drawn in {folder / name}.png; its exact numbers: "
        f"python -c \"from safetensors.torch import load_file; print(load_file('{path}'))\"."
    )
