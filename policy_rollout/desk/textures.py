"""Patterns: a small tile of colours per material, made from numbers drawn with a fixed seed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.looks import Look

Array = npt.NDArray[Any]  # float32


@dataclass(frozen=True)
class Tile:
    """Colours (V, U, 3) in [0, 1], U and V powers of two, and how many texels a metre has along u and v.

    u runs along the longer edge of a face, v across it.
    """

    colours: Array
    per_metre: tuple[float, float]

    def look_up(self, u: Array, v: Array) -> Array:
        """Colours (n, 3) at places (n,) in metres; the tile repeats."""
        rows, columns = self.colours.shape[:2]
        # Shifted far into the positive, because a cast to int rounds towards zero.
        i = (u * self.per_metre[0] + 2048.0).astype(np.int32) & (columns - 1)
        j = (v * self.per_metre[1] + 2048.0).astype(np.int32) & (rows - 1)
        out: Array = self.colours[j, i]
        return out


def _smooth(values: Array, times: int, axis: int) -> Array:
    for _ in range(times):
        values = (np.roll(values, 1, axis) + values + values + np.roll(values, -1, axis)) / np.float32(4)
    return values


def _stretch(values: Array) -> Array:
    low, high = values.min(), values.max()
    out: Array = (values - low) / (high - low)
    return out


def _wood(rng: np.random.Generator) -> Array:
    """Shades (64, 128) in [0, 1]: rings that wander slowly along the grain, with fine fibres."""
    rows, columns = 64, 128
    wander = _stretch(_smooth(_smooth(rng.random((rows, columns), np.float32), 60, 1), 12, 0))
    across = np.arange(rows, dtype=np.float32)[:, None] / np.float32(rows)
    phase = across * np.float32(7) + wander * np.float32(3)
    saw = phase - np.floor(phase)
    rings = np.where(saw < 0.75, saw / np.float32(0.75), (1 - saw) / np.float32(0.25))
    fibres = _stretch(_smooth(rng.random((rows, columns), np.float32), 8, 1))
    return np.clip(rings * np.float32(0.6) + fibres * np.float32(0.4), 0, 1)


def tile_of(name: str, look: Look) -> Tile | None:
    """The tile of one material, None for a plain one."""
    if look.pattern == "plain":
        return None
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    first, second = np.array(look.colour, np.float32), np.array(look.second, np.float32)
    if look.pattern == "wood":
        shade, per_metre = _wood(rng), (128 / (look.scale * 20), 64 / (look.scale * 7))
    elif look.pattern == "check":
        shade, per_metre = np.array([[0, 1], [1, 0]], np.float32), (1 / look.scale, 1 / look.scale)
    elif look.pattern == "stripe":
        shade, per_metre = np.array([[0], [1]], np.float32), (1.0, 1 / look.scale)
    elif look.pattern == "speckle":
        shade, per_metre = rng.random((64, 64), np.float32), (1 / look.scale, 1 / look.scale)
    else:
        raise AssertionError(look.pattern)
    return Tile(first + (second - first) * shade[..., None], per_metre)
