from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.processing.image import (
    ClipImageSpec,
    as_pil,
    clip_pixels,
    fit,
    normalise,
    resize_and_crop,
    short_side_size,
    to_uint8,
)

OPENAI_FIELDS: dict[str, Any] = {
    "size": 24,
    "crop_size": 24,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(40, 40), (31, 57), (57, 31), (8, 9), (16, 16)])
def test_fit_gives_a_square_uint8_image_from_any_shape(shape: tuple[int, int]) -> None:
    picture = fit(noise(*shape), 16)
    assert picture.shape == (3, 16, 16)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous


def test_fit_leaves_an_image_of_the_right_size_alone() -> None:
    image = noise(16, 16)
    assert np.array_equal(fit(image, 16), image.transpose(2, 0, 1))


def test_fit_cuts_the_middle_out_and_rounds_the_offset_half_to_even() -> None:
    image = np.zeros((10, 13, 3), np.uint8)
    image[:, :, 0] = np.arange(13)
    assert fit(image, 10)[0, 0].tolist() == list(range(2, 12))  # surplus 3: round(1.5) = 2, not floor = 1
    assert fit(image[:, :11], 10)[0, 0].tolist() == list(range(10))  # surplus 1: round(0.5) = 0


SHAPES = [(480, 640), (640, 480), (768, 1024), (427, 640), (589, 453), (96, 300), (360, 330), (31, 57), (336, 500)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.NEAREST])
def test_what_is_cut_off_changes_no_pixel_of_the_rest(shape: tuple[int, int], resample: int) -> None:
    image = Image.fromarray(noise(*shape))
    for size in (short_side_size(image, 336), (340, 360), (336, 400), (400, 336)):
        left, top = (size[0] - 336) // 2, (size[1] - 336) // 2
        box = (left, top, left + 336, top + 336)
        whole = image.resize(size, Image.Resampling(resample)).crop(box)
        assert np.array_equal(np.asarray(resize_and_crop(image, size, box, resample)), np.asarray(whole))


def test_fit_writes_to_a_given_place_what_it_returns_without() -> None:
    for shape in ((40, 40), (31, 57), (16, 16)):
        image, place = noise(*shape), np.zeros((2, 3, 16, 16), np.uint8)
        fit(image, 16, out=place[1])
        assert np.array_equal(place[1], fit(image, 16))
        assert not place[0].any()


def test_fit_reads_arrays_and_pil_images_alike_whatever_their_mode() -> None:
    image = noise(20, 30)
    assert np.array_equal(fit(Image.fromarray(image), 16), fit(image, 16))
    assert np.array_equal(fit(Image.fromarray(image).convert("RGBA"), 16), fit(image, 16))
    assert fit(Image.fromarray(image).convert("L"), 16).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)]
)
def test_an_array_that_is_no_rgb_image_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        as_pil(bad)


def test_normalise_maps_0_and_255_to_the_ends_and_to_uint8_brings_every_value_back() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = normalise(values)
    assert floats.min() == -1
    assert floats.max() == 1
    back = to_uint8(floats).int() - values.int()
    assert back.abs().max() <= 1  # truncation, as in the original: rounding noise may cost one step
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 127, 255, 255]


def test_normalise_does_not_touch_its_input_and_refuses_floats() -> None:
    values = torch.full((3, 2, 2), 7, dtype=torch.uint8)
    normalise(values)
    assert (values == 7).all()
    with pytest.raises(ValueError, match="uint8"):
        normalise(torch.zeros(3, 2, 2))


@pytest.mark.parametrize("shape", [(50, 50), (33, 71), (90, 25), (24, 24), (10, 12)])
def test_clip_pixels_equal_those_of_transformers_own_processor(shape: tuple[int, int]) -> None:
    processor_class = pytest.importorskip("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil
    fields = {**OPENAI_FIELDS, "size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    image = noise(*shape)
    theirs = processor_class(**fields)(images=Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    ours = clip_pixels(image, ClipImageSpec.from_fields(fields))
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(50, 50), (33, 71), (90, 25), (24, 24)])
def test_the_table_of_clip_values_changes_no_bit_of_the_arithmetic(shape: tuple[int, int]) -> None:
    """float64 product, float32 storage, mean and deviation: pixel by pixel, as before there was a table."""
    spec = ClipImageSpec.from_fields({**OPENAI_FIELDS, "size": {"shortest_edge": 24}})
    image = Image.fromarray(noise(*shape))
    resized = image.resize(short_side_size(image, 24), Image.Resampling.BICUBIC)
    top, left = (resized.height - 24) // 2, (resized.width - 24) // 2
    pixels = np.asarray(resized)[top : top + 24, left : left + 24].astype(np.float64)
    scaled = (pixels * spec.scale).astype(np.float32)
    normal = (scaled - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    assert torch.equal(clip_pixels(image, spec), torch.from_numpy(normal.transpose(2, 0, 1).copy()))


def test_clip_spec_reads_plain_numbers_as_openai_writes_them(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OPENAI_FIELDS))
    spec = ClipImageSpec.from_dir(tmp_path)
    assert spec.resize == 24
    assert spec.crop == (24, 24)
    assert spec.scale == 1 / 255


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"crop_size": 30}, "larger"),
        ({"image_mean": None}, "image processor"),
    ],
)
def test_a_processor_config_that_cannot_be_followed_is_an_error_naming_the_file(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**OPENAI_FIELDS, **change}))
    with pytest.raises(ValueError, match=message) as caught:
        ClipImageSpec.from_dir(tmp_path)
    assert "preprocessor_config.json" in str(caught.value)


def test_a_missing_processor_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        ClipImageSpec.from_dir(tmp_path)
