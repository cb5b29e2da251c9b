"""Images for reports: captions, rows and grids of RGB arrays, and PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from common.files import write_bytes

RgbImage = npt.NDArray[np.uint8]  # [height, width, 3]

PAPER, INK, FAINT = (250, 249, 246), (32, 34, 38), (120, 122, 128)
GREEN, RED = (24, 128, 56), (190, 40, 40)
_Colour = tuple[int, int, int]
_FACES = {"sans": "DejaVuSans", "bold": "DejaVuSans-Bold", "mono": "DejaVuSansMono"}


@cache
def font(size: int, face: str = "sans") -> ImageFont.FreeTypeFont:
    """Return DejaVu, which comes with matplotlib and has the symbols that we draw.

    Args:
        size: In pixels.
        face: sans, bold or mono.
    """
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"{_FACES[face]}.ttf"), size)


def resize_to_height(image: RgbImage, height: int) -> RgbImage:
    """Return the image at another height in pixels, with the same aspect ratio."""
    if image.shape[0] == height:
        return image
    width = round(image.shape[1] * height / image.shape[0])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def side_by_side(images: Sequence[RgbImage], height: int, gap: int = 4) -> RgbImage:
    """Return the images in a row, all resized to ``height``, ``gap`` pixels apart."""
    parts: list[RgbImage] = []
    for image in images:
        if parts:
            parts.append(np.full((height, gap, 3), PAPER, np.uint8))
        parts.append(resize_to_height(image, height))
    return np.concatenate(parts, axis=1)


def add_caption(image: RgbImage, text: str, note: str = "", colour: _Colour = FAINT) -> RgbImage:
    """Return the image above a strip with ``text`` and below it ``note`` in ``colour``, wrapped to its width."""
    width = image.shape[1]
    size = int(np.clip(width // 30, 11, 24))
    lines = [(line, INK) for line in _wrap(text, width - 10, font(size))]
    lines += [(line, colour) for line in _wrap(note, width - 10, font(size)) if note]
    line_height = size + 4
    strip = Image.new("RGB", (width, line_height * len(lines) + 8), PAPER)
    draw = ImageDraw.Draw(strip)
    for number, (line, ink) in enumerate(lines):
        draw.text((5, 3 + number * line_height), line, font=font(size), fill=ink)
    return np.concatenate([image, np.asarray(strip)])


def _wrap(text: str, width: int, face: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and face.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@dataclass(frozen=True)
class FrameErrors:
    """Mean absolute errors of pixels, of 255: of a predicted frame, and of the present frame in its place."""

    predicted: float
    present: float

    def __str__(self) -> str:
        return f"mean pixel error: prediction {self.predicted:.1f}, copy of the present frame {self.present:.1f} of 255"


def frame_errors(now: RgbImage, predicted: RgbImage, true: RgbImage) -> FrameErrors:
    """Return the errors of a predicted frame, and of the present one in its place. All images have the same size."""
    reference = true.astype(np.float64)
    return FrameErrors(*(float(np.abs(image.astype(np.float64) - reference).mean()) for image in (predicted, now)))


def mean_errors(errors: Sequence[FrameErrors]) -> FrameErrors:
    """Return the means over frames. Raises ``ValueError`` if there are none."""
    if not errors:
        raise ValueError("no frames, so no mean error")
    return FrameErrors(*(float(np.mean([getattr(e, name) for e in errors])) for name in ("predicted", "present")))


def image_grid(cells: Sequence[RgbImage], columns: int, gap: int = 8) -> RgbImage:
    """Return the cells in rows of ``columns``; a row is as high as its highest cell.

    Raises:
        ValueError: If there are no cells.
    """
    if not cells:
        raise ValueError("an image grid needs at least one image")
    width = max(cell.shape[1] for cell in cells)
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.shape[0] for cell in row) for row in rows]
    across = min(columns, len(cells))
    page = np.full((sum(heights) + gap * (len(rows) + 1), width * across + gap * (across + 1), 3), PAPER, np.uint8)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for i, cell in enumerate(row):
            x = gap + i * (width + gap)
            page[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
        y += height + gap
    return page


def image_url(image: RgbImage, quality: int | None = None) -> str:
    """Return a URL that contains an image, for an HTML page: a PNG, or a JPEG of ``quality``."""
    from common.html import data_url  # most users of this module make no page

    content = io.BytesIO()
    if quality is None:
        Image.fromarray(image).save(content, "PNG", optimize=True)
        return data_url(content.getvalue(), "image/png")
    Image.fromarray(image).save(content, "JPEG", quality=quality, optimize=True)
    return data_url(content.getvalue(), "image/jpeg")


def write_png(path: Path, image: RgbImage) -> None:
    """Write the image as a PNG file, completely or not at all."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG", optimize=True)
    write_bytes(path, content.getvalue())
