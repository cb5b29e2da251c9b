"""Images for people: frames with a caption, contact sheets, animations. Pillow alone, and PyAV for mp4."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Frame = npt.NDArray[np.uint8]  # (height, width, 3)

PAPER, INK, FAINT = (250, 249, 246), (32, 34, 38), (120, 122, 128)
GREEN, RED = (24, 128, 56), (190, 40, 40)
_Colour = tuple[int, int, int]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def resized(frame: Frame, height: int) -> Frame:
    """`frame` at another height, same proportions."""
    if frame.shape[0] == height:
        return frame
    width = round(frame.shape[1] * height / frame.shape[0])
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def beside(frames: Sequence[Frame], height: int, gap: int = 4) -> Frame:
    """Frames in a row, all at one height."""
    parts: list[Frame] = []
    for frame in frames:
        if parts:
            parts.append(np.full((height, gap, 3), PAPER, np.uint8))
        parts.append(resized(frame, height))
    return np.concatenate(parts, axis=1)


def captioned(frame: Frame, text: str, note: str = "", colour: _Colour = FAINT) -> Frame:
    """`frame` above a strip with `text` (as many lines as it needs) and a coloured `note` below."""
    width = frame.shape[1]
    size = int(np.clip(width // 30, 11, 24))
    lines = _wrapped(text, width - 10, size)
    line = size + 4
    strip = Image.new("RGB", (width, line * (len(lines) + bool(note)) + 8), PAPER)
    draw = ImageDraw.Draw(strip)
    for i, words in enumerate(lines):
        draw.text((5, 3 + i * line), words, font=_font(size), fill=INK)
    if note:
        draw.text((5, 3 + len(lines) * line), note, font=_font(size), fill=colour)
    return np.concatenate([frame, np.asarray(strip)])


def _wrapped(text: str, width: int, size: int) -> list[str]:
    font, lines = _font(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def sheet(cells: Sequence[Frame], columns: int, gap: int = 8) -> Frame:
    """Cells in a grid, left to right and top to bottom, each row as high as its highest cell."""
    if not cells:
        raise ValueError("a contact sheet needs at least one image")
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


def level(frames: Sequence[Frame]) -> list[Frame]:
    """Frames all as high as the highest, as an animation needs them: captions differ in their number of lines."""
    height = max(frame.shape[0] for frame in frames)
    return [np.pad(f, ((0, height - f.shape[0]), (0, 0), (0, 0)), mode="edge") for f in frames]


def write_png(path: Path, frame: Frame) -> None:
    """The file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    Image.fromarray(frame).save(unfinished, format="PNG", optimize=True)
    os.replace(unfinished, path)


def write_gif(path: Path, frames: Sequence[Frame], fps: float = 15.0, colours: int = 128) -> None:
    """An endless animation, its last frame held for a second. One palette for all frames keeps it small and calm."""
    if not frames:
        raise ValueError(f"no frames to write to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = level(frames)
    some = [frames[i] for i in np.linspace(0, len(frames) - 1, min(8, len(frames))).astype(int)]
    # An octree keeps small patches of strong colour (a block, a lamp), which a median cut gives to the wood.
    palette = Image.fromarray(np.concatenate(some)).quantize(colours, Image.Quantize.FASTOCTREE)
    pages = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    ends = [10 * round(100 * i / fps) for i in range(len(pages))]  # GIF counts in hundredths of a second
    times = [*np.diff(ends).tolist(), 1000]
    unfinished = path.with_name(path.name + ".tmp")
    pages[0].save(unfinished, format="GIF", save_all=True, append_images=pages[1:], duration=times, loop=0)
    os.replace(unfinished, path)


def require_mp4(key: str) -> None:
    """Raises ``ValueError`` where `key` asks for what `write_mp4` cannot write here."""
    if find_spec("av") is None:
        raise ValueError(f"{key} needs the package PyAV: pip install 'av>=14,<19' (without it films are .gif)")


def write_mp4(path: Path, frames: Sequence[Frame], fps: float = 15.0) -> None:
    """H.264 in the colours that every player knows; the last frame is held for a second. Needs PyAV."""
    import av

    if not frames:
        raise ValueError(f"no frames to write to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = level(frames)
    height, width = (size + size % 2 for size in frames[0].shape[:2])  # yuv420p halves both
    unfinished = path.with_name(path.name + ".tmp")
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(unfinished), "w", format="mp4", options={"movflags": "+faststart"}) as film:
        stream = film.add_stream("libx264", rate=rate, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in [*frames, *[frames[-1]] * round(fps)]:
            even = np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)), mode="edge")
            film.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        film.mux(stream.encode(None))
    os.replace(unfinished, path)
