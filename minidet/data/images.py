"""One picture file becomes one RGB tensor, the right way up, whatever the file looks like inside (chapter 00)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minidet.errors import DataError

# Pillow reads all of these as it should. torchvision.io is .3 ms faster on a 640 x 480 JPEG, but has no BMP and TIFF,
# ignores the rotation of a WebP, hands out 16-bit PNG as uint16, and is deprecated.
# The list also keeps out formats like EPS, whose reading starts an interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

# EXIF tag 0x0112 says how the camera was held: what to do with the stored pixels so that the picture stands upright.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

JPEG_END = b"\xff\xd9"


def read_image(path: str | Path) -> Tensor:
    """Read a picture as a person sees it: RGB, 8 bits, turned upright as its EXIF tag says.

    Grey becomes three equal channels, a palette its colours, 16 bits their upper 8. Transparency is dropped, the colour
    below it stays (as OpenCV and torchvision do). Of an animation the first frame is read.

    Args:
        path: a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or JPEG 2000 file.

    Returns:
        [3, H, W] uint8, the three channels of a pixel side by side in memory, as they are decoded.

    Raises:
        DataError: the file is missing, empty, broken off, damaged, no picture or too large; the text says which.

    Source: chapter 00.
    """
    path = Path(path)
    try:
        with Image.open(path, formats=FORMATS) as file:
            pixels = _jpeg_pixels(file, path)
            if pixels is None:
                file.load()
                pixels = _pixels(_upright(file))
            return torch.from_numpy(pixels).permute(2, 0, 1)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such image. Check the name and the folder.") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: unpacks to more pixels than a picture should have ({error}). "
            "If it really is that large, cut it into tiles."
        ) from error
    except Exception as error:  # on damaged files Pillow's decoders fail with a dozen types that all mean the same
        raise DataError(
            f"{path}: cannot be read as an image ({_reason(path, error)}). Replace the file, or leave it out."
        ) from error


def _jpeg_pixels(file: Image.Image, path: Path) -> np.ndarray | None:
    """[H, W, 3] of a usual JPEG, by OpenCV: the same library and numbers as Pillow's, in three quarters of the time.

    None for all that needs a closer look: other colours than red, green and blue, a turned picture, an end that is
    missing (OpenCV would fill up what is not there).
    """
    if file.format != "JPEG" or file.mode != "RGB" or _turn(file) is not None:
        return None
    content = path.read_bytes()
    if not content.endswith(JPEG_END):
        return None
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return pixels if pixels is not None and pixels.shape == (file.height, file.width, 3) else None


def _turn(image: Image.Image) -> Image.Transpose | None:
    with contextlib.suppress(Exception):  # a damaged EXIF block says nothing about the pixels
        return UPRIGHT.get(image.getexif().get(ORIENTATION))
    return None


def _upright(image: Image.Image) -> Image.Image:
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _pixels(image: Image.Image) -> np.ndarray:
    """[H, W, 3] uint8, the caller's own."""
    if image.mode.startswith(("I", "F")):  # one channel, 16 bits or more; convert() would cut off instead of scaling
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError("its pixels have more than 16 bits: save it with 8 bits a channel")
        pixels = np.repeat((pixels >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    else:
        image.info.pop("transparency", None)  # it is dropped anyway, and Pillow warns about it in a palette
        pixels = np.asarray(image.convert("RGB"))
    return np.array(pixels, order="C")


def _reason(path: Path, error: Exception) -> str:
    if os.path.isdir(path):
        return "it is a folder"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "it is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is none of " + ", ".join(FORMATS)
    return str(error) or type(error).__name__
