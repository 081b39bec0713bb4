"""Pictures of every kind become the RGB tensor that a person would see, or one clear error."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minidet.data.images import read_image
from minidet.errors import DataError

H, W = 24, 40
y, x = np.mgrid[:H, :W]
RGB = np.stack([x * 6, y * 10, x + y], axis=-1).astype(np.uint8)  # no symmetry: every rotation looks different
GREY = RGB[..., 0]
ALPHA = ((x + y) % 2 * 255).astype(np.uint8)

# What turns the stored pixels upright, by EXIF orientation: the table of the EXIF standard in numpy's words.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def deepen(pixels: np.ndarray) -> np.ndarray:
    """The same brightness in 16 bits, with other lower bits that must not come through."""
    return pixels.astype(np.uint16) * 256 + (255 - pixels)


def read(path: Path) -> np.ndarray:
    """The picture as [H, W, 3], after checking what holds for every tensor that comes out."""
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    assert image.permute(1, 2, 0).is_contiguous()  # as it is decoded, shown and convolved
    return image.permute(1, 2, 0).numpy()


def write_png(path: Path, pixels: np.ndarray, colour_type: int, bits: int) -> None:
    """A PNG written by hand, for kinds that Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_lossless_formats_give_back_the_exact_pixels(tmp_path, suffix):
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read(tmp_path / f"a.{suffix}"), RGB)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_baseline_and_progressive_differ_from_the_original_by_rounding_only(tmp_path, progressive):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", quality=100, subsampling=0, progressive=progressive)
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - RGB).max() <= 3


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path):
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - RGB).max() <= 3


def test_grey_becomes_three_equal_channels(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), np.dstack([GREY] * 3))


def test_one_bit_becomes_black_and_white(tmp_path):
    Image.fromarray(GREY > 100).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), np.dstack([(GREY > 100) * 255] * 3))


@pytest.mark.parametrize(("colour", "suffix"), [("RGBA", "png"), ("RGBA", "webp"), ("LA", "png")])
def test_transparency_is_dropped_and_the_colour_below_it_stays(tmp_path, colour, suffix):
    path = tmp_path / f"a.{suffix}"
    pixels = RGB if colour == "RGBA" else GREY
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(np.dstack([pixels, ALPHA]), colour).save(path, **options)
    assert np.array_equal(read(path), RGB if colour == "RGBA" else np.dstack([GREY] * 3))


@pytest.mark.parametrize("suffix", ["png", "gif"])
@pytest.mark.parametrize("transparency", [{}, {"transparency": 1}])
def test_a_palette_gives_the_colours_that_it_names(tmp_path, suffix, transparency):
    colours = np.array([[250, 0, 0], [0, 128, 7], [3, 2, 1], [255, 255, 255]], dtype=np.uint8)
    indices = ((x + 2 * y) % 4).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / f"a.{suffix}", **transparency)
    assert np.array_equal(read(tmp_path / f"a.{suffix}"), colours[indices])


def test_a_palette_png_with_half_transparent_entries_is_read_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray((x % 2).astype(np.uint8))
    image.putpalette(bytes([10, 20, 30, 40, 50, 60]))
    image.save(tmp_path / "a.png", transparency=bytes([128, 255]))
    assert read(tmp_path / "a.png")[0, :2].tolist() == [[10, 20, 30], [40, 50, 60]]
    assert not recwarn.list


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_to_8_bits_and_not_cut_off(tmp_path, suffix):
    deep = deepen(GREY)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read(tmp_path / f"a.{suffix}"), np.dstack([GREY] * 3))


@pytest.mark.parametrize(
    ("colour_type", "pixels"), [(2, RGB), (6, np.dstack([RGB, ALPHA])), (4, np.dstack([GREY, ALPHA]))]
)
def test_16_bit_colour_png_is_scaled_to_8_bits(tmp_path, colour_type, pixels):
    write_png(tmp_path / "a.png", deepen(pixels), colour_type, bits=16)
    assert np.array_equal(read(tmp_path / "a.png"), RGB if pixels.shape[2] > 2 else np.dstack([GREY] * 3))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_rotation_turns_the_picture_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    expected = UPRIGHT[orientation](RGB)
    pixels = read(tmp_path / f"a.{suffix}")
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= (3 if suffix == "jpg" else 0)


def test_16_bit_grey_with_exif_rotation_is_scaled_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(deepen(GREY)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), np.dstack([np.rot90(GREY, -1)] * 3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("exif", [b"garbage, not TIFF", b"MM\0*\0", b"MM\0*\0\0\0\x08\xff\xff\x01\x12"])
def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path, suffix, exif):
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + exif)
    assert read(tmp_path / f"a.{suffix}").shape == (H, W, 3)


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (W, H), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_a_picture_of_one_pixel_is_writable_like_any_other(tmp_path, recwarn):
    Image.new("RGB", (1, 1), (7, 8, 9)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    image += 1
    assert image.flatten().tolist() == [8, 9, 10]
    assert not recwarn.list


def test_a_name_without_a_suffix_or_with_the_wrong_one_is_read_by_its_content(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a", format="PNG")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a").read_bytes())
    assert np.array_equal(read(tmp_path / "a"), RGB)
    assert np.array_equal(read(tmp_path / "b.jpg"), RGB)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as raised:
        read_image(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    assert "no such image" in refusal(tmp_path / "a.jpg")


def test_an_empty_file_a_folder_and_a_text_are_told_apart(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    assert "it is empty" in refusal(tmp_path / "empty.jpg")
    assert "it is a folder" in refusal(tmp_path)
    assert "none of JPEG" in refusal(tmp_path / "text.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])
def test_a_file_that_breaks_off_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refusal(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow remarks on what it skips
def test_damaged_bytes_give_a_picture_or_a_data_error_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(RGB).save(path)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 5)] = rng.integers(0, 256, 5)
            path.write_bytes(damaged.tobytes())
            try:
                read(path)
            except DataError as error:
                assert str(path) in str(error)  # noqa: PT017 - either outcome is right


def test_a_picture_that_unpacks_to_a_billion_pixels_is_refused_before_it_fills_the_memory(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((1, 1, 3), np.uint8), colour_type=2, bits=8)
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 40_000, 40_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "a.png").write_bytes(bytes(content))
    assert "cut it into tiles" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70_000, np.int32)])
def test_pixels_deeper_than_16_bits_have_no_known_range_and_are_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert "more than 16 bits" in refusal(tmp_path / "a.tif")


def test_a_format_that_runs_programs_is_not_opened(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.eps")
    assert "it is none of JPEG" in refusal(tmp_path / "a.eps")


@pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 300 + ".jpg"])
def test_a_name_that_no_file_can_have_is_a_data_error(tmp_path, name):
    refusal(tmp_path / name)
