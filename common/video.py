"""Animations: GIF by Pillow, MP4 by PyAV. A file is written completely or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from common.files import atomic_path, write_bytes
from common.image_grid import RgbImage


def _pad_to_one_height(path: Path, frames: Sequence[RgbImage]) -> list[RgbImage]:
    """Return the frames at the height of the highest one (captions differ in their number of lines)."""
    if not frames:
        raise ValueError(f"no frames to write to {path}")
    height = max(frame.shape[0] for frame in frames)
    return [np.pad(frame, ((0, height - frame.shape[0]), (0, 0), (0, 0)), mode="edge") for frame in frames]


def write_gif(path: Path, frames: Sequence[RgbImage], fps: float = 15.0, colours: int = 128) -> None:
    """Write an endless animation that shows its last frame for a second.

    All frames share one palette, which keeps the file small and the colours constant.

    Raises:
        ValueError: If there are no frames.
    """
    frames = _pad_to_one_height(path, frames)
    sampled = [frames[i] for i in np.linspace(0, len(frames) - 1, min(8, len(frames))).astype(int)]
    # An octree keeps small areas of strong colour (a block, a lamp); a median cut gives their entries to the wood.
    palette = Image.fromarray(np.concatenate(sampled)).quantize(colours, Image.Quantize.FASTOCTREE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    ends = [10 * round(100 * i / fps) for i in range(len(images))]  # the unit of GIF is 1/100 s
    durations = [*np.diff(ends).tolist(), 1000]
    content = io.BytesIO()
    images[0].save(content, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    write_bytes(path, content.getvalue())


def require_mp4(key: str) -> None:
    """Raise ``ValueError``, which names ``key``, if PyAV is not installed."""
    if find_spec("av") is None:
        raise ValueError(f"{key} needs the package PyAV: pip install 'av>=14,<19' (without it films are .gif)")


def write_mp4(path: Path, frames: Sequence[RgbImage], fps: float = 15.0) -> None:
    """Write H.264 in yuv420p, which all players support; the last frame is shown for a second. Needs PyAV.

    Raises:
        ValueError: If there are no frames.
    """
    import av

    frames = _pad_to_one_height(path, frames)
    height, width = (size + size % 2 for size in frames[0].shape[:2])  # yuv420p halves both
    rate = Fraction(fps).limit_denominator(1000)
    options = {"movflags": "+faststart"}
    with atomic_path(path) as unfinished, av.open(str(unfinished), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in [*frames, *[frames[-1]] * round(fps)]:
            even = np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))
