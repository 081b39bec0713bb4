"""Decoded pictures in the size that training needs, kept in memory, in a file that is mapped into memory, or nowhere.

Decoding a JPEG takes longer than anything else that happens to a training picture, and every picture is needed in every
epoch, four or five times over with mosaics. Kept is what a training picture is sampled from: [h, w, 3] bytes, shrunk
where the network input is smaller, so that every place to keep them gives the same bytes.

Source: chapter 10.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minidet.data.plan import DetectionData
from minidet.errors import DataError, MinidetError
from minidet.files import atomic_write

Cache = Literal["auto", "ram", "disk", "none"]
CACHES = ("auto", "ram", "disk", "none")
SHARE_OF_MEMORY = 0.5  # of what is free, and of the free disk space: others want some, too
UNKNOWN_MEMORY = 2 * 2**30  # bytes to work with where the system does not say what is free
FOLDER = ".minidet-cache"  # beside the annotation file
MAGIC = b"minidet pictures 1"
ABANDONED = 3600  # seconds without a write after which a half-built file is nobody's


class PictureStore:
    """The pictures of a data set, each in its stored size.

    Args:
        dataset: the pictures.
        stored_hw: height and width to keep each picture in; not more than it has.
        name: distinguishes files of one data set in several sizes, such as "letterbox-640x640".
        cache: "ram", "disk", "none"; "auto" takes the first of them that there is room for.
        memory_bytes: room in memory for "auto"; None: half of what is free now.
        threads: that read pictures when they are first put into a cache.
        progress: show a bar while they do.
        skip_bad: keep a note where a picture cannot be read, instead of stopping.
        log: takes every line of text that is told.

    Attributes:
        starts: [N + 1] int64, where each picture begins, counted in pixels.
        pixels: [starts[-1], 3] uint8, all of them where they are kept in memory, else None.
        kept_in: "ram", "disk" or "none".

    Raises:
        DataError: a picture cannot be read (when it is put into the cache, or asked for).
        MinidetError: the wished cache is not possible.
    """

    def __init__(
        self,
        dataset: DetectionData,
        stored_hw: Sequence[tuple[int, int]],
        name: str = "pictures",
        cache: Cache = "none",
        memory_bytes: int | None = None,
        threads: int = 1,
        progress: bool = False,
        skip_bad: bool = False,
        log: Callable[[str], None] = tqdm.write,
    ):
        if cache not in CACHES:
            raise MinidetError(f"cache is {cache!r}, but it must be one of {', '.join(CACHES)}.")
        self.dataset = dataset
        self.stored_hw = list(stored_hw)
        self.starts = np.concatenate([[0], np.cumsum([h * w for h, w in stored_hw], dtype=np.int64)])
        self.pixels: Tensor | None = None
        self.path: Path | None = None
        self.errors: dict[int, str] = {}  # pictures in the cache that are not there, and why
        self._mapped: np.memmap | None = None
        self._threads, self._progress, self._skip_bad = threads, progress, skip_bad
        self.kept_in = "none"
        if self._fits_memory(cache, memory_bytes):
            self._fill_memory()
        elif cache in ("auto", "disk"):
            self._use_disk(name, cache, log)

    @property
    def bytes(self) -> int:
        """What all pictures take."""
        return 3 * int(self.starts[-1])

    def __len__(self) -> int:
        return len(self.stored_hw)

    def __getitem__(self, index: int) -> np.ndarray:
        """[h, w, 3] uint8, not to be written to.

        Raises:
            DataError: it cannot be read.
        """
        if index in self.errors:
            raise DataError(self.errors[index])
        if self.kept_in == "none":
            return self.read(index)
        rows = self._rows()[self.starts[index] : self.starts[index + 1]]
        return rows.reshape(*self.stored_hw[index], 3)

    def read(self, index: int) -> np.ndarray:
        """Decode a picture, and shrink it to its stored size where it is larger; bilinear, as OpenCV's INTER_LINEAR."""
        record = self.dataset.records[index]
        image = self.dataset.image(index)
        if tuple(image.shape) != (3, record.height, record.width):
            raise DataError(
                f"image id {record.id}: the picture has {tuple(image.shape)} values, but its record says 3 x "
                f"{record.height} x {record.width}. Correct the record or the picture."
            )
        picture = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        height, width = self.stored_hw[index]
        if (height, width) != picture.shape[:2]:
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        return picture

    def to_device(self, device: torch.device) -> Tensor:
        """All pictures as `pixels` on another device; the copy in memory is given up."""
        pixels = torch.empty(int(self.starts[-1]), 3, dtype=torch.uint8, device=device)
        step = 2**26  # pixels at a time, so that a mapped file needs no memory of its own
        for start in range(0, len(pixels), step):
            pixels[start : start + step] = torch.from_numpy(np.array(self._rows()[start : start + step]))
        self.pixels, self._mapped = None, None
        return pixels

    # Memory and disk ------------------------------------------------------------------------------------------------

    def _rows(self) -> np.ndarray:
        """[starts[-1], 3]"""
        if self.pixels is not None:
            rows = self.pixels.numpy()
            rows.setflags(write=False)
            return rows
        if self._mapped is None:  # a spawned worker maps the file for itself
            self._mapped = np.memmap(self.path, dtype=np.uint8, mode="r", shape=(int(self.starts[-1]), 3))
        return self._mapped

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}

    def _fits_memory(self, cache: Cache, memory_bytes: int | None) -> bool:
        free = free_memory()
        if cache == "ram" and self.bytes > free:
            raise MinidetError(
                f"cache is 'ram', but the pictures take {_gigabytes(self.bytes)} and {_gigabytes(free)} of memory are "
                "free. Choose 'disk' or 'none', or a smaller input size."
            )
        room = SHARE_OF_MEMORY * free if memory_bytes is None else memory_bytes
        return cache == "ram" or (cache == "auto" and self.bytes <= room)

    def _fill_memory(self) -> None:
        # One tensor for all: forked workers read the parent's pages, spawned ones are handed a single shared block.
        pixels = torch.empty(int(self.starts[-1]), 3, dtype=torch.uint8)
        rows = pixels.numpy()
        for index, picture in self._read_all():
            rows[self.starts[index] : self.starts[index + 1]] = picture.reshape(-1, 3)
        self.pixels, self.kept_in = pixels, "ram"

    def _use_disk(self, name: str, cache: Cache, log: Callable[[str], None]) -> None:
        """Find the file, or build it; where neither is possible, say so and go on without."""
        annotations = getattr(self.dataset, "annotations_path", None)
        if annotations is None:
            if cache == "disk":
                raise MinidetError("cache is 'disk', but this data set has no annotation file to keep it beside.")
            return
        folder = Path(annotations).parent / FOLDER
        prefix = f"{Path(annotations).stem}-{name}-"
        path = folder / f"{prefix}{self._fingerprint()}.pixels"
        try:
            if not self._is_whole(path):
                self._build(path, prefix, cache)
            self.errors = self._footer(path)
        except DataError:
            raise
        except (MinidetError, OSError) as error:
            log(f"Note: pictures are not kept on disk: {error} Training goes on and decodes each of them every time.")
            return
        if self.errors and not self._skip_bad:
            raise DataError(next(iter(self.errors.values())))
        self.path, self.kept_in = path, "disk"
        self._rows()  # mapped now: forked workers share it, and it outlives the name of the file

    def _build(self, path: Path, prefix: str, cache: Cache) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.iterdir():  # of pictures that have changed since, or of a run that was killed
            # The file itself stays until it is replaced: another process may have just finished it.
            if other != path and other.name.lstrip(".").startswith(prefix):
                with contextlib.suppress(OSError):
                    if other.suffix != ".part" or time.time() - other.stat().st_mtime > ABANDONED:
                        other.unlink()
        free = shutil.disk_usage(path.parent).free
        if self.bytes > (free if cache == "disk" else SHARE_OF_MEMORY * free):
            raise MinidetError(
                f"{path.parent}: the pictures take {_gigabytes(self.bytes)}, and {_gigabytes(free)} are free."
            )
        with atomic_write(path) as file:
            for _, picture in self._read_all():
                file.write(picture.tobytes())
            footer = json.dumps({str(index): text for index, text in self.errors.items()}).encode()
            file.write(footer + len(footer).to_bytes(8, "little") + MAGIC)

    def _read_all(self) -> Iterator[tuple[int, np.ndarray]]:
        """Every picture in order, a black one for each that cannot be read and may be skipped."""

        def read(index: int) -> np.ndarray:
            try:
                return self.read(index)
            except DataError as error:
                if not self._skip_bad:
                    raise
                self.errors[index] = str(error)
                return np.zeros((*self.stored_hw[index], 3), dtype=np.uint8)

        bar = tqdm(total=len(self), desc="reading images", unit=" images", disable=not self._progress)
        with ThreadPoolExecutor(self._threads) as pool, bar:
            step = 16 * self._threads  # at a time, so that what is read ahead stays little
            for start in range(0, len(self), step):
                chunk = range(start, min(start + step, len(self)))
                for index, picture in zip(chunk, pool.map(read, chunk), strict=True):
                    yield index, picture
                    bar.update()

    def _fingerprint(self) -> str:
        """Changes with everything that decides the bytes: names, sizes and times of the files, and stored sizes."""
        digest = hashlib.sha256(MAGIC)
        folder = getattr(self.dataset, "images_path", Path())
        for record, size_hw in zip(self.dataset.records, self.stored_hw, strict=True):
            path = Path(folder) / record.file_name
            try:
                found = path.stat()
                of_file = (found.st_size, found.st_mtime_ns)
            except OSError:  # reading it will tell
                of_file = (-1, -1)
            digest.update(repr((str(path), of_file, record.height, record.width, size_hw)).encode())
        return digest.hexdigest()[:16]

    def _is_whole(self, path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                file.seek(-len(MAGIC), os.SEEK_END)
                return file.read() == MAGIC and file.tell() > self.bytes
        except OSError:
            return False

    def _footer(self, path: Path) -> dict[int, str]:
        with open(path, "rb") as file:
            file.seek(self.bytes)
            content = file.read()[: -len(MAGIC) - 8]
        try:
            return {int(index): text for index, text in json.loads(content or b"{}").items()}
        except ValueError as error:
            raise MinidetError(f"{path}: is damaged. Delete it.") from error


def free_memory() -> int:
    """Bytes of memory that can be taken now without anything being swapped out, as far as the system tells."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        found.append(1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError, StopIteration):  # a container may have less
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        given_up = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        found.append(int((group / "memory.max").read_text()) - used + given_up)
    return max(min(found, default=UNKNOWN_MEMORY), 0)


def _gigabytes(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
