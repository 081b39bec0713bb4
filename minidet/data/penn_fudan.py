"""Penn-Fudan's masks become COCO JSON: an instance is the set of pixels with one value, its box the smallest that holds
them.

The set is the one of torchvision's detection tutorial: 170 photos of pedestrians, small enough for any machine.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minidet.data.images import FORMATS
from minidet.errors import DataError

VAL_SHARE = (50, 170)  # val pictures, all pictures


def penn_fudan_to_coco(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Turn the unpacked PennFudanPed folder into one COCO annotation object a split.

    The set has no split of its own. Here every image whose rank by name crosses another 50/170 belongs to val: always
    the same 120 and 50, spread evenly over both cities' photos. The boxes come from the masks, so they also hold the
    small and hidden pedestrians that the set's text files leave out.

    Args:
        folder: holds `PNGImages/NAME.png` and `PedMasks/NAME_mask.png`, where a mask is 0 for background and 1, 2 ...
            for people.

    Returns:
        {"train": ..., "val": ...}, each {"info", "images", "annotations", "categories"}; "file_name" is relative to
        `PNGImages/`, the one class is "person", boxes are exact to the pixel: from the left edge of the first one to
        the right edge of the last one.

    Raises:
        DataError: no images, a mask is missing, damaged, in colour, or of another size than its image.
    """
    folder = Path(folder)
    paths = sorted(path for path in (folder / "PNGImages").glob("*.png") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder / 'PNGImages'}: has no .png images. Is {folder} the PennFudanPed folder?")
    annotation_ids = itertools.count(1)
    coco = {
        split: {
            "info": {"description": f"{split}, from the masks of Penn-Fudan"},
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "person"}],
        }
        for split in ("train", "val")
    }
    for rank, path in enumerate(paths):
        val, every = VAL_SHARE
        content = coco["val" if (rank + 1) * val // every > rank * val // every else "train"]
        mask = _read_mask(folder / "PedMasks" / f"{path.stem}_mask.png", path)
        height, width = mask.shape
        content["images"].append({"id": rank + 1, "file_name": path.name, "height": height, "width": width})
        for value in np.unique(mask[mask > 0]):
            rows, columns = np.nonzero(mask == value)
            x, y = int(columns.min()), int(rows.min())
            w, h = int(columns.max()) + 1 - x, int(rows.max()) + 1 - y
            content["annotations"].append(
                {
                    "id": next(annotation_ids),
                    "image_id": rank + 1,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": len(rows),  # pixels of the mask, as COCO counts it
                    "iscrowd": 0,
                }
            )
    return coco


def _read_mask(path: Path, image_path: Path) -> np.ndarray:
    """[H, W] uint8, the instance that each pixel belongs to."""
    try:
        with Image.open(image_path, formats=FORMATS) as image, Image.open(path, formats=FORMATS) as mask:
            if mask.mode not in ("L", "P"):
                raise DataError(f"{path}: is a picture of mode {mask.mode}; a mask has one channel of 8 bits.")
            if mask.size != image.size:
                raise DataError(
                    f"{path}: is {mask.size[0]}x{mask.size[1]}, its image {image.size[0]}x{image.size[1]} pixels."
                )
            return np.array(mask)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: there is no such file. Unpack the archive again.") from error
    except (
        Exception
    ) as error:  # Pillow's decoders fail with a dozen types on damaged files; each of them means the same here
        raise DataError(
            f"{path}: cannot be read, or {image_path.name} cannot ({error}). Unpack the archive again."
        ) from error
