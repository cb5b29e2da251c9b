"""Decoded image files as a viewer shows them: the one way from a PIL image to RGB."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image

ORIENTATION, BITS, PHOTOMETRIC = 0x0112, 258, 262  # EXIF and TIFF tags
WHITE_IS_ZERO = 0
READING = 3
"""Version of how image files become pixels. Caches of what was made of image files carry it; raise it whenever a pixel
changes. 1 (of caches that name none): EXIF orientation and transparency were ignored, and 16 bits were cut to 8. 2: the
input of CLIP was turned twice by an EXIF orientation."""
BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""
TURNS: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_ITS_SIDE = (5, 6, 7, 8)
BROKEN_EXIF = (OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, struct.error, OverflowError)
"""What PIL raises for EXIF data that is damaged. Viewers show such an image as it is stored."""
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)


def as_shown(image: Image.Image) -> Image.Image:
    """Return an opened image in RGB, turned as its EXIF orientation asks, over white where it is transparent.

    Grey levels of 16 bits become their nearest of 8 bits. Of an animation or of several pages, this is the one that is
    opened (the first). Colour profiles are not applied. The result has no metadata, so it is not turned again.

    Raises:
        ValueError: numbers whose black and white are not known (floats outside 0..1 and 0..255, for example).
    """
    image.load()
    turn = TURNS.get(_orientation(image))
    shown = _rgb(image)
    shown = shown if turn is None else shown.transpose(turn)
    shown.info = {}
    return shown


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of ``as_shown``, from the head of the file."""
    height, width = image.height, image.width
    # PIL gives the size of a TIFF as it is shown.
    return (width, height) if image.format != "TIFF" and _orientation(image) in ON_ITS_SIDE else (height, width)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except BROKEN_EXIF:
        return 1
    return found if isinstance(found, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if image.format is None else image.convert("RGB")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_wide_grey(image)
    if image.mode in ("La", "RGBa") or image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        shown = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        shown.alpha_composite(image)
        return shown.convert("RGB")
    return image.convert("RGB")


def _from_wide_grey(image: Image.Image) -> Image.Image:
    """Return an image of one channel with more than 8 bits in RGB."""
    values = np.asarray(image).astype(np.float64)
    white = _white_level(image, values)
    grey = np.clip(values / white, 0.0, 1.0)
    if _tiff_tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO:
        grey = 1.0 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 1.0
    return Image.fromarray(np.rint(grey * 255).astype(np.uint8)).convert("RGB")


def _white_level(image: Image.Image, values: npt.NDArray[np.float64]) -> float:
    """Return the number that is shown as white; 0 is black."""
    if image.mode.startswith("I;16"):
        return float(2 ** _tiff_tag(image, BITS, 16) - 1)
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # PIL's way to hold 16 bits of these
        return 65535.0
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite; allowed: 0..1 or 0..255")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1 and image.mode == "F":
        return 1.0
    # Floats from 0 to 10 may be metres. Whole numbers, or some above half of the range, are levels of 8 bits.
    if low >= 0 and high <= 255 and (high >= 128 or bool((values % 1 == 0).all())):
        return 255.0
    kind = "floats" if image.mode == "F" else "32-bit integers"
    raise ValueError(
        f"it holds {kind} from {low:g} to {high:g}, and nothing says which is black and which is white; allowed: "
        f"{'0..1 or ' if image.mode == 'F' else ''}0..255; save it with 8 or 16 bits"
    )


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    tags = getattr(image, "tag_v2", None)
    found = default if tags is None else tags.get(tag, default)
    return int(found[0] if isinstance(found, tuple) else found)
