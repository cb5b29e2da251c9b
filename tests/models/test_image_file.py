"""Image files are read as viewers show them, or refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin

from models.processing.image import ClipImageSpec, clip_pixels
from models.processing.image_file import ORIENTATION, as_shown, shown_size
from policy_rollout.serving.wire import EncodedImage, WireError
from training.data.readers import read_image, read_image_bytes

RAMP = np.linspace(0.0, 1.0, 64 * 64).reshape(64, 64)
GREY = np.rint(RAMP * 255)[..., None].repeat(3, axis=2)


def read(path: Path) -> np.ndarray:
    return np.asarray(read_image(path)).astype(int)


def tiff(path: Path, array: np.ndarray, **tags: int) -> Path:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[{"photometric": 262}[name]] = value
    Image.fromarray(array).save(path, tiffinfo=info)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_grey_of_16_bits_is_the_nearest_of_8(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"grey{suffix}"
    Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16)).save(path)
    assert np.abs(read(path) - GREY).max() <= 1


@pytest.mark.parametrize("top", [1, 255])
def test_floats_with_a_clear_range_are_shown(tmp_path: Path, top: int) -> None:
    assert np.abs(read(tiff(tmp_path / "float.tiff", (RAMP * top).astype(np.float32))) - GREY).max() <= 1


@pytest.mark.parametrize(
    ("array", "why"),
    [
        ((RAMP * 10).astype(np.float32), "floats from 0 to 10"),
        ((RAMP - 0.5).astype(np.float32), "floats from -0.5 to 0.5"),
        ((RAMP * 70000).astype(np.int32), "32-bit integers from 0 to 70000"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), "not finite"),
    ],
)
def test_numbers_whose_white_is_not_known_are_refused_in_one_line(tmp_path: Path, array: np.ndarray, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        read(tiff(tmp_path / "depth.tiff", array))
    assert "depth.tiff" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tiff_in_which_white_is_zero_is_no_negative(tmp_path: Path) -> None:
    path = tiff(tmp_path / "negative.tiff", np.rint((1 - RAMP) * 65535).astype(np.uint16), photometric=0)
    with Image.open(path) as opened:
        assert opened.tag_v2[262] == 0  # type: ignore[attr-defined]
    assert np.abs(read(path) - GREY).max() <= 1


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, format_: str, orientation: int) -> None:
    stored = Image.new("RGB", (48, 32), "blue")
    stored.paste("red", (0, 0, 16, 16))
    exif = stored.getexif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned.{format_.lower()}"
    stored.save(path, format_, exif=exif, **({"quality": 95} if format_ == "JPEG" else {}))
    expected = np.asarray(ImageOps.exif_transpose(_with(stored, orientation))).astype(int)
    found = read(path)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 20
    with Image.open(path) as opened:
        assert shown_size(opened) == found.shape[:2]


def _with(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[ORIENTATION] = orientation
    return image


def test_an_image_with_damaged_exif_is_shown_as_it_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "damaged.jpg"
    Image.new("RGB", (40, 20), "blue").save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read(path).shape == (20, 40, 3)


HIDDEN = np.zeros((8, 8, 4), np.uint8)
HIDDEN[..., 0] = 255
HIDDEN[2:6, 2:6] = (0, 255, 0, 255)
HIDDEN[7, 7] = (0, 0, 0, 128)


def test_transparent_pixels_are_white_and_half_transparent_ones_half(tmp_path: Path) -> None:
    Image.fromarray(HIDDEN).save(tmp_path / "clear.png")
    found = read(tmp_path / "clear.png")
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[3, 3].tolist() == [0, 255, 0]
    assert abs(found[7, 7] - 127).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "P", "1", "L", "RGB"])
def test_transparency_of_other_modes_is_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (4, 4), (0, 0) if mode == "LA" else 0)
    options = {} if mode == "LA" else {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    image.save(tmp_path / "clear.png", **options)
    assert read(tmp_path / "clear.png")[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "YCbCr"])
def test_opaque_modes_are_what_pil_makes_of_them(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    assert np.array_equal(np.asarray(as_shown(image)), np.asarray(image.convert("RGB")))


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "moving.gif")[0, 0].tolist() == [255, 0, 0]


def test_clip_sees_an_image_as_shown() -> None:
    spec = ClipImageSpec(8, (8, 8), 3, 1 / 255, (0.0,) * 3, (1.0,) * 3)
    deep = Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))
    flat = Image.fromarray(GREY.astype(np.uint8))
    torch.testing.assert_close(clip_pixels(deep, spec), clip_pixels(flat, spec), atol=2 / 255, rtol=0)


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_image_that_was_turned_once_is_not_turned_again(orientation: int) -> None:
    image = Image.new("RGB", (40, 20), "blue")
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    image.paste("red", (0, 0, 20, 20))
    content = io.BytesIO()
    image.save(content, "PNG", exif=exif)
    shown = read_image_bytes(content.getvalue(), "an image")
    assert np.array_equal(np.asarray(as_shown(shown)), np.asarray(shown))
    spec = ClipImageSpec(8, (8, 8), 3, 1 / 255, (0.0,) * 3, (1.0,) * 3)
    assert torch.equal(clip_pixels(shown, spec), clip_pixels(np.asarray(shown), spec))


def test_a_served_jpeg_is_turned_as_it_is_shown_or_refused() -> None:
    image = Image.new("RGB", (40, 20), "blue")
    exif = image.getexif()
    exif[ORIENTATION] = 3
    image.paste("red", (0, 0, 20, 20))
    content = io.BytesIO()
    image.save(content, "JPEG", exif=exif)
    shown = EncodedImage("jpeg", content.getvalue(), (20, 40, 3)).decoded()
    assert shown[10, 30, 0] > 200 > 50 > shown[10, 10, 0]
    exif[ORIENTATION] = 6
    content = io.BytesIO()
    image.save(content, "JPEG", exif=exif)
    with pytest.raises(WireError, match=r"is shown as \[40, 20, 3\]"):
        EncodedImage("jpeg", content.getvalue(), (20, 40, 3)).decoded()
