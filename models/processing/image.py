"""Preprocessing of images, the same for training and acting.

Two paths, both bit-compatible with the original system:

* VQ path: `fit` (uint8 in, uint8 out, so that frames can be stored and shipped small), then `normalise` on the device;
* CLIP path: `clip_pixels`, CLIPImageProcessor's arithmetic on PIL and NumPy. Written here because which processor class
  transformers offers depends on what else is installed, and its torchvision variant gives other pixels.

Shape letters: R resolution, S side of CLIP's input, H/W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from common.files import read_object
from models.processing.image_file import as_shown

Uint8Array = npt.NDArray[np.uint8]


def as_pil(image: Image.Image | Uint8Array) -> Image.Image:
    """Return an RGB PIL image from any PIL image, as displayed, or from a uint8 array [H,W,3]; not to be written to.

    Raises:
        ValueError: the array has another dtype or shape.
    """
    if isinstance(image, Image.Image):
        shown = image.mode == "RGB" and image.format is None and not image.info  # as ``as_shown`` returns it
        return image if shown else as_shown(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image array must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}")
    return Image.fromarray(np.ascontiguousarray(image))


def short_side_size(image: Image.Image, short: int) -> tuple[int, int]:
    """Return (width, height) with a short side of `short`; the long side is truncated to a whole pixel."""
    width, height = image.size
    long = int(short * max(width, height) / min(width, height))
    return (short, long) if width <= height else (long, short)


def resize_and_crop(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], resample: int
) -> Image.Image:
    """Return ``image.resize(size, resample).crop(box)``; what is cut off is not computed where that changes no pixel.

    Only columns are left out. If their edges are whole pixels of the image, PIL resizes that part alone. Otherwise the
    second pass (PIL resizes columns, rounds, and resizes rows) leaves them out. Pillow 13 begins with the rows if that
    leaves fewer pixels; then the whole image is resized.
    """
    (width, height), (left, top, right, bottom), filtered = image.size, box, Image.Resampling(resample)
    kept = (right - left, bottom - top)
    if kept[0] == size[0] or size[0] * height > width * size[1] or filtered == Image.Resampling.NEAREST:
        image = image.resize(size, filtered)
        return image if kept == size else image.crop(box)
    if kept[1] == size[1] and not left * width % size[0] and not right * width % size[0]:
        return image.resize(kept, filtered, box=(left * width // size[0], 0, right * width // size[0], height))
    image = image.resize((size[0], height), filtered).crop((left, 0, right, height))
    image = image.resize((kept[0], size[1]), filtered)
    return image if kept[1] == size[1] else image.crop((0, top, kept[0], bottom))


def fit(image: Image.Image | Uint8Array, resolution: int, out: Uint8Array | None = None) -> Uint8Array:
    """Return a square uint8 image [3,R,R]: short side resized bicubically to `resolution`, then a centre crop.

    The crop offset is `round(surplus / 2)`, Python's half-to-even rounding, as the original has it (CLIP's floors).
    `out`: where to write it, uint8 [3,R,R].
    """
    pixels = np.empty((3, resolution, resolution), dtype=np.uint8) if out is None else out
    if isinstance(image, np.ndarray) and image.shape == (resolution, resolution, 3) and image.dtype == np.uint8:
        pixels[...] = image.transpose(2, 0, 1)  # resizing to its own size changes nothing
        return pixels
    pil_image = as_pil(image)
    size = short_side_size(pil_image, resolution)
    left, top = (round((side - resolution) / 2) for side in size)
    box = (left, top, left + resolution, top + resolution)
    pil_image = resize_and_crop(pil_image, size, box, Image.Resampling.BICUBIC)
    for colour, band in zip(pixels, pil_image.split(), strict=True):  # faster than turning [R,R,3] around
        colour[...] = np.asarray(band)
    return pixels


def normalise(pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Map uint8 [...,3,R,R] to floats in [-1,1], the VQ tokenizer's input: computed in float32, cast to `dtype`."""
    if pixels.dtype != torch.uint8:
        raise ValueError(f"normalise takes uint8 pixels, not {pixels.dtype}")
    return pixels.to(torch.float32).div_(255).sub_(0.5).div_(0.5).to(dtype)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Map floats of nominal range [-1,1] to uint8: clipped, then truncated (not rounded)."""
    return ((pixels.detach().float() + 1) / 2).clamp_(0, 1).mul_(255).to(torch.uint8)


@dataclass(frozen=True)
class ClipImageSpec:
    """Settings in the `preprocessor_config.json` of a CLIPImageProcessor."""

    resize: int | tuple[int, int]  # short side, or exact (height, width)
    crop: tuple[int, int]  # height, width
    resample: int  # PIL's number: 3 is bicubic
    scale: float  # factor on the 0..255 values
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_dir(cls, path: str | Path) -> ClipImageSpec:
        """Read `<path>/preprocessor_config.json`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not JSON, or asks for something that CLIP's vision tower never needs (no resize, no crop).
        """
        file = Path(path) / "preprocessor_config.json"
        fields = read_object(file, "a CLIP directory has one")
        try:
            return cls.from_fields(fields)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"{file} does not describe a CLIP image processor: {error}") from error

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> ClipImageSpec:
        """Build the settings from the JSON's fields; `size` and `crop_size` may be numbers, as in OpenAI's uploads."""
        for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if not fields.get(step, True):
                raise ValueError(f"{step} is false, but all four steps are needed")
        size = fields["size"]
        if isinstance(size, Mapping) and "shortest_edge" in size:
            size = size["shortest_edge"]
        crop = fields["crop_size"]
        return cls(
            resize=(int(size["height"]), int(size["width"])) if isinstance(size, Mapping) else int(size),
            crop=(int(crop["height"]), int(crop["width"])) if isinstance(crop, Mapping) else (int(crop), int(crop)),
            resample=int(fields.get("resample", Image.Resampling.BICUBIC)),
            scale=float(fields.get("rescale_factor", 1 / 255)),
            mean=tuple(float(x) for x in fields["image_mean"]),
            std=tuple(float(x) for x in fields["image_std"]),
        )

    def __post_init__(self) -> None:
        smallest = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        if smallest[0] < self.crop[0] or smallest[1] < self.crop[1]:
            raise ValueError(f"crop_size {self.crop} is larger than the resized image {smallest}")


def clip_pixels(image: Image.Image | Uint8Array, spec: ClipImageSpec) -> torch.Tensor:
    """Return CLIP's input, float32 [3,S,S], from any PIL image or a uint8 array [H,W,3].

    Same order and precision as CLIPImageProcessor on PIL: resize, floored centre crop, scale, mean and deviation.
    """
    pil_image = as_pil(image)
    if isinstance(spec.resize, int):
        size = short_side_size(pil_image, spec.resize)
    else:
        size = (spec.resize[1], spec.resize[0])
    height, width = spec.crop
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    bands = resize_and_crop(pil_image, size, (left, top, left + width, top + height), spec.resample).split()
    pixels = np.empty((3, height, width), dtype=np.float32)
    for colour, values, band in zip(pixels, _clip_values(spec), bands, strict=True):
        np.take(values, np.asarray(band), out=colour, mode="clip")  # without clip, NumPy takes a buffer
    return torch.from_numpy(pixels)


@lru_cache
def _clip_values(spec: ClipImageSpec) -> npt.NDArray[np.float32]:
    """Return CLIP's input for each of the 256 values of the three colours, [3,256]."""
    scaled = (np.arange(256) * spec.scale).astype(
        np.float32
    )  # the processor multiplies in float64, then stores float32
    mean, std = (np.asarray(values, np.float32)[:, None] for values in (spec.mean, spec.std))
    return (scaled - mean) / std
