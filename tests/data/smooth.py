"""A data set of smooth pictures: sampling them once or three times gives nearly the same, so that geometry shows."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import torch

SIZES = [(96, 192), (160, 120), (128, 192), (66, 94), (300, 200)]  # height, width


class SmoothPictures:
    """Clouds of colour of several sizes, with up to three boxes each."""

    def __init__(self, count: int, contrast: int = 256):
        rng = np.random.default_rng(count)
        self.records, self.pixels, self.targets = [], [], []
        for i in range(count):
            height, width = SIZES[i % len(SIZES)]
            few = rng.integers(128 - contrast // 2, 128 + contrast // 2, (4, 5, 3)).astype(np.uint8)
            picture = cv2.resize(few, (width, height), interpolation=cv2.INTER_CUBIC)
            self.pixels.append(torch.from_numpy(picture).permute(2, 0, 1))
            self.records.append(SimpleNamespace(id=100 + i, height=height, width=width))
            corner = rng.uniform(0, 40, (int(rng.integers(0, 4)), 2))
            boxes = np.concatenate([corner, corner + rng.uniform(2, 25, corner.shape)], axis=1)
            self.targets.append((torch.tensor(boxes, dtype=torch.float32), torch.full((len(boxes),), i)))

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> torch.Tensor:
        return self.pixels[index].clone()

    def target(self, index: int) -> dict:
        boxes, labels = self.targets[index]
        return {"boxes": boxes.clone(), "labels": labels.clone(), "image_id": self.records[index].id}
