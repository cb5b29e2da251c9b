"""Textures: one small tile of colours per material, from fixed random numbers, all in one sheet."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.rendering.materials import Material

Array = npt.NDArray[Any]
_FAR = 2048.0  # texels; shifts positions to positive values, as a cast to int rounds towards zero


@dataclass(frozen=True)
class Sheet:
    """The tiles of M materials in one array.

    A tile has `rows[m]` by `columns[m]` texels, both powers of two, and `per_metre[:, m]` texels per metre along u (the
    longer edge of a face) and v (the shorter edge).
    """

    colours: npt.NDArray[np.float32]  # (3, texels), in [0, 1]
    first: npt.NDArray[np.int32]  # (M,)
    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]
    per_metre: npt.NDArray[np.float32]  # (2, M)

    def sample(self, material: Array, u: Array, v: Array) -> tuple[Array, Array, Array]:
        """Return red, green and blue (n,) of materials (n,) at u, v (n,) in metres; tiles repeat."""
        columns = self.columns[material]
        i = (u * self.per_metre[0][material] + _FAR).astype(np.int32) & (columns - 1)
        j = (v * self.per_metre[1][material] + _FAR).astype(np.int32) & (self.rows[material] - 1)
        at = self.first[material] + j * columns + i
        red, green, blue = self.colours
        return red[at], green[at], blue[at]


def make_sheet(materials: dict[str, Material]) -> Sheet:
    """Return the sheet with tile m for the m-th material."""
    tiles, scales = zip(*(_tile(name, material) for name, material in materials.items()), strict=True)
    shapes = np.array([tile.shape[:2] for tile in tiles], np.int32)
    first = np.concatenate([[0], np.cumsum(shapes.prod(1))[:-1]]).astype(np.int32)
    colours = np.concatenate([tile.reshape(-1, 3) for tile in tiles])
    per_metre = np.ascontiguousarray(np.array(scales, np.float32).T)
    return Sheet(np.ascontiguousarray(colours.T), first, shapes[:, 0], shapes[:, 1], per_metre)


def _tile(name: str, material: Material) -> tuple[Array, tuple[float, float]]:
    """Return a material's tile (V, U, 3) and its texels per metre along u and v."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    first, second = np.array(material.colour, np.float32), np.array(material.second, np.float32)
    if material.pattern == "plain":
        shade, per_metre = np.zeros((1, 1), np.float32), (1.0, 1.0)
    elif material.pattern == "wood":
        shade, per_metre = _wood(rng), (128 / (material.scale * 20), 64 / (material.scale * 7))
    elif material.pattern == "check":
        shade, per_metre = np.array([[0, 1], [1, 0]], np.float32), (1 / material.scale, 1 / material.scale)
    elif material.pattern == "stripe":
        shade, per_metre = np.array([[0], [1]], np.float32), (1.0, 1 / material.scale)
    else:
        assert material.pattern == "speckle", material.pattern
        shade, per_metre = rng.random((64, 64), np.float32), (1 / material.scale, 1 / material.scale)
    return first + (second - first) * shade[..., None], per_metre


def _wood(rng: np.random.Generator) -> Array:
    """Return shades (64, 128) in [0, 1]: wood rings along the grain, with fine fibres."""
    rows, columns = 64, 128
    wander = _stretch(_smooth(_smooth(rng.random((rows, columns), np.float32), 60, 1), 12, 0))
    across = np.arange(rows, dtype=np.float32)[:, None] / np.float32(rows)
    phase = across * np.float32(7) + wander * np.float32(3)
    saw = phase - np.floor(phase)
    rings = np.where(saw < 0.75, saw / np.float32(0.75), (1 - saw) / np.float32(0.25))
    fibres = _stretch(_smooth(rng.random((rows, columns), np.float32), 8, 1))
    return np.clip(rings * np.float32(0.6) + fibres * np.float32(0.4), 0, 1)


def _smooth(values: Array, times: int, axis: int) -> Array:
    for _ in range(times):
        values = (np.roll(values, 1, axis) + values + values + np.roll(values, -1, axis)) / np.float32(4)
    return values


def _stretch(values: Array) -> Array:
    low, high = values.min(), values.max()
    out: Array = (values - low) / (high - low)
    return out
