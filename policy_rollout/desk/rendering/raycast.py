"""Rendering by one ray per pixel, in numpy: no OpenGL, identical bytes in every process.

MuJoCo's own `mj_multiRay` intersects every ray with every body (27 ms an image; here 5), changes its arguments between
versions and misses shapes in some. Here a shape is intersected only with the pixels of its projected rectangle, and the
immovable background of the fixed camera is cached. Tests compare the distances with `mj_ray`'s. All pairs of a pixel
and a shape are computed in one array, because calls of numpy cost more than its arithmetic.

Shape letters: G geoms of the model, S image size, N pairs of a pixel and a shape, H pixels that are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.rendering.base import RenderedImage
from policy_rollout.desk.rendering.cameras import Jitter, View
from policy_rollout.desk.rendering.materials import BULB_ON, LED_ON, Material, materials_of
from policy_rollout.desk.rendering.shapes import BOX, INTERSECTIONS, PLANE, Triple, half_extent, normals
from policy_rollout.desk.rendering.textures import make_sheet

Array = npt.NDArray[Any]  # float32 where pixels are concerned
Ints = npt.NDArray[np.int64]

SUN = (0.40, -0.80, 1.55)  # direction of the light
AMBIENT, DIFFUSE, SKY, SHINE = 0.58, 0.45, 0.05, 0.25
GLOW = (0.80, 0.25)  # brightness of a lit lamp: emitted part, and reflected part
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_MAX_BACKGROUNDS = 4


@dataclass
class Canvas:
    """Distance along the optical axis (S * S,), +inf without a hit; red, green and blue (S * S,) each."""

    depth: npt.NDArray[np.float32]
    rgb: tuple[npt.NDArray[np.uint8], ...]

    @classmethod
    def blank(cls, size: int) -> Canvas:
        planes = tuple(np.full(size * size, 235, np.uint8) for _ in range(3))
        return cls(np.full(size * size, np.inf, np.float32), planes)

    def copy(self) -> Canvas:
        return Canvas(self.depth.copy(), tuple(plane.copy() for plane in self.rgb))

    def image(self, size: int) -> RenderedImage:
        return RenderedImage(np.stack(self.rgb, -1).reshape(size, size, 3), self.depth.reshape(size, size))


@dataclass(frozen=True)
class Light:
    sun: Array  # (3,), a unit vector
    brightness: float
    lit: tuple[str, ...]  # the lamps that are on

    @classmethod
    def make(cls, jitter: Jitter, led: int, bulb: int) -> Light:
        sun = np.add(SUN, jitter.light)
        lit = tuple(name for name, on in (("led", led), ("lightbulb", bulb)) if on)
        return cls(sun / np.sqrt((sun * sun).sum()), jitter.brightness, lit)


@dataclass(frozen=True)
class Poses:
    """Camera and light in the frame of each of G shapes; every triple is x, y, z, float32 (G,) each."""

    origin: Triple
    forward: Triple
    right: Triple
    up: Triple
    halfway: Triple  # between the light and the camera, for highlights
    sun: Triple
    vertical: Triple

    @classmethod
    def make(cls, positions: Array, frames: Array, view: View, light: Light) -> Poses:
        """Return the poses for positions (G, 3) and frames (G, 3, 3) of the shapes in the world."""
        half = light.sun - view.forward
        world = np.stack([view.forward, view.right, view.up, half / np.sqrt((half * half).sum()), light.sun])
        own = np.einsum("vi,nij->vjn", world, frames).astype(np.float32)
        origin = np.einsum("ni,nij->jn", view.pos - positions, frames).astype(np.float32)
        vertical = np.ascontiguousarray(frames[:, 2].T.astype(np.float32))
        return cls(*(_triple(rows) for rows in (origin, *own, vertical)))


@dataclass(frozen=True)
class Hits:
    """Candidate hits, (H,) each: flat pixel index, distance, shape, position on the shape."""

    pixel: Ints
    t: Array
    shape: Ints
    spot: Triple

    def pick(self, at: Ints) -> Hits:
        x, y, z = self.spot
        return Hits(self.pixel[at], self.t[at], self.shape[at], (x[at], y[at], z[at]))


class RayCaster:
    """Renderer "raycast" of one model."""

    def __init__(self, model: Any, scene: str) -> None:
        materials = materials_of(scene) | {"led on": Material(LED_ON), "lightbulb on": Material(BULB_ON)}
        names = list(materials)
        owners = [str(model.mat(int(m)).name) for m in model.geom_matid]
        self._kind = np.array(model.geom_type, np.int64)
        self._size = np.maximum(np.array(model.geom_size, np.float32), 1e-9)  # a plane's may be 0
        self._extent = np.array(
            [half_extent(k, tuple(s)) for k, s in zip(self._kind.tolist(), model.geom_size.tolist(), strict=True)]
        )
        self._sheet = make_sheet(materials)
        self._material = np.array([names.index(name) for name in owners])
        self._lamps = {name: (owners.index(name), names.index(f"{name} on")) for name in ("led", "lightbulb")}
        self._along, self._across = _grain(self._size)
        # No two boards have the same grain; the floor's pattern starts at the origin.
        number = np.where(self._kind == PLANE, 0, np.arange(len(self._kind)))
        self._shift = (number * 0.37).astype(np.float32), (number * 0.113).astype(np.float32)
        lamp = np.array([name in self._lamps for name in owners])
        moving = (np.array(model.body_weldid)[np.array(model.geom_bodyid)] != 0) | lamp
        self._fixed, self._moving = np.flatnonzero(~moving), np.flatnonzero(moving)
        self._backgrounds: dict[tuple[Any, ...], Canvas] = {}

    def close(self) -> None:
        self._backgrounds.clear()

    def render(self, data: Any, view: View, size: int, led: int, bulb: int, jitter: Jitter) -> RenderedImage:
        """Return an image of `size` by `size` pixels."""
        light = Light.make(jitter, led, bulb)
        if view.fixed:
            canvas = self._background(data, view, size, light, jitter).copy()
            self._draw(canvas, self._moving, data, view, size, light)
        else:
            canvas = Canvas.blank(size)
            self._draw(canvas, np.arange(len(self._kind)), data, view, size, light)
        return canvas.image(size)

    def _background(self, data: Any, view: View, size: int, light: Light, jitter: Jitter) -> Canvas:
        key = (size, jitter, tuple(view.pos.tolist()), tuple(view.forward.tolist()))
        if key not in self._backgrounds:
            while len(self._backgrounds) >= _MAX_BACKGROUNDS:
                self._backgrounds.pop(next(iter(self._backgrounds)))
            self._backgrounds[key] = Canvas.blank(size)
            self._draw(self._backgrounds[key], self._fixed, data, view, size, replace(light, lit=()))
        return self._backgrounds[key]

    def _draw(self, canvas: Canvas, geoms: Ints, data: Any, view: View, size: int, light: Light) -> None:
        """Draw the geoms where they are nearer than the canvas."""
        frames = np.array(data.geom_xmat[geoms]).reshape(-1, 3, 3)
        positions = np.array(data.geom_xpos[geoms])
        poses = Poses.make(positions, frames, view, light)
        regions = _regions(positions, frames, self._extent[geoms], view, size)
        found = []
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for kind in INTERSECTIONS:
                members = np.flatnonzero((self._kind[geoms] == kind) & (regions[:, 1] > regions[:, 0]))
                if len(members):
                    found.append(self._hits(canvas, kind, members, geoms, poses, regions[members], view, size))
        hits = _nearest(found, canvas.depth)
        canvas.depth[hits.pixel] = hits.t
        for plane, colour in zip(canvas.rgb, self._colours(hits, geoms, poses, light), strict=True):
            plane[hits.pixel] = np.clip(colour * 255.0 + 0.5, 0, 255).astype(np.uint8)

    def _hits(
        self, canvas: Canvas, kind: int, members: Ints, geoms: Ints, poses: Poses, regions: Ints, view: View, size: int
    ) -> Hits:
        """Return the hits of shapes of one kind that are nearer than the canvas."""
        area, column, row = _pairs(regions)

        def spread(values: Array) -> Array:  # (G,) -> (N,): the pairs of one shape are neighbours
            return np.repeat(values[members], area)

        axis = (((np.arange(size) + 0.5) / size * 2 - 1) * view.tan_half).astype(np.float32)
        across, down = axis[column], -axis[row]
        forwards, rights, ups = poses.forward, poses.right, poses.up
        x, y, z = (spread(forwards[k]) + across * spread(rights[k]) + down * spread(ups[k]) for k in range(3))
        start = spread(poses.origin[0]), spread(poses.origin[1]), spread(poses.origin[2])
        sizes = self._size[geoms].T
        t = INTERSECTIONS[kind](start, (x, y, z), (spread(sizes[0]), spread(sizes[1]), spread(sizes[2])))
        pixel = row * size + column
        at = np.flatnonzero(t < canvas.depth[pixel])
        t = t[at]
        spot = (start[0][at] + t * x[at], start[1][at] + t * y[at], start[2][at] + t * z[at])
        return Hits(pixel[at], t, np.repeat(members, area)[at], spot)

    def _colours(self, hits: Hits, geoms: Ints, poses: Poses, light: Light) -> list[Array]:
        """Return red, green and blue (H,), about 0 to 1."""
        geom = geoms[hits.shape]
        kind = self._kind[geom]
        (x, y, z), size = hits.spot, self._size.T
        # Visible are a box's faces towards the camera, and the floor's upper side.
        ax, ay, az = (np.abs(s) / h[geom] for s, h in ((x, size[0]), (y, size[1]), (z, size[2])))
        face = np.where((ax > ay) & (ax > az), 0, np.where(ay > az, 1, 2))
        face[kind == PLANE] = 2
        bright = _flat_light(self._kind[geoms], poses).take(hits.shape * 3 + face)
        shine = np.zeros(len(geom), np.float32)
        round_ = np.flatnonzero((kind != BOX) & (kind != PLANE))
        if len(round_):
            sizes = self._size[geom[round_]].T
            bright[round_], shine[round_] = _round_light(kind[round_], _triple(sizes), hits.pick(round_), poses)
        for name in light.lit:
            on = geom == self._lamps[name][0]
            bright[on] = GLOW[0] + GLOW[1] * bright[on]
        paint = self._paint(geom, face, hits.spot, light)
        return [(channel * bright + shine) * light.brightness for channel in paint]

    def _paint(self, geom: Ints, face: Ints, spot: Triple, light: Light) -> tuple[Array, ...]:
        """Return red, green and blue (H,) before lighting."""
        material = self._material.copy()
        for name in light.lit:
            where, tile = self._lamps[name]
            material[where] = tile
        side = geom * 3 + face
        u = np.choose(self._along.take(side), spot) + self._shift[0][geom]
        v = np.choose(self._across.take(side), spot) + self._shift[1][geom]
        return self._sheet.sample(material[geom], u, v)


def _triple(rows: Array) -> Triple:
    return rows[0], rows[1], rows[2]


def _regions(positions: Array, frames: Array, extents: Array, view: View, size: int) -> Ints:
    """Return first and last + 1 column and row (G, 4) of each shape's projection, with a margin of one pixel."""
    offsets = np.nan_to_num(extents, posinf=0.0)[:, None, :] * _CORNERS  # (G, 8, 3)
    corners = positions[:, None, :] + np.einsum("nij,nkj->nki", frames, offsets) - view.pos
    depth = corners @ view.forward
    scale = 1 / (np.maximum(depth, 1e-6) * view.tan_half)
    columns = ((corners @ view.right) * scale + 1) * (size / 2)
    rows = (1 - (corners @ view.up) * scale) * (size / 2)
    out = np.stack([columns.min(1) - 1, columns.max(1) + 2, rows.min(1) - 1, rows.max(1) + 2], 1)
    # A corner behind the camera has no projection, and a plane has no corners: use every pixel.
    everywhere = (depth.min(1) < 0.01) & (depth.max(1) > 0) | np.isinf(extents[:, 0])
    out[everywhere] = [0, size, 0, size]
    out[depth.max(1) <= 0] = 0
    whole: Ints = np.clip(out, 0, size).astype(np.int64)
    whole[whole[:, 3] <= whole[:, 2]] = 0
    return whole


def _pairs(regions: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the number of pixels of each region, and column and row of every pixel, (N,) each."""
    width, height = regions[:, 1] - regions[:, 0], regions[:, 3] - regions[:, 2]
    area = width * height
    number = np.arange(area.sum(), dtype=np.int32) - np.repeat((np.cumsum(area) - area).astype(np.int32), area)
    row, column = np.divmod(number, np.repeat(width.astype(np.int32), area))
    return area, column + np.repeat(regions[:, 0], area), row + np.repeat(regions[:, 2], area)


def _nearest(found: list[Hits], depth: Array) -> Hits:
    """Return the nearest hit of each pixel; of equal ones the last."""
    x, y, z = (np.concatenate([h.spot[k] for h in found]) for k in range(3))
    pixel, t = np.concatenate([h.pixel for h in found]), np.concatenate([h.t for h in found])
    hits = Hits(pixel, t, np.concatenate([h.shape for h in found]), (x, y, z))
    least = np.full_like(depth, np.inf)
    np.minimum.at(least, pixel, t)
    best = np.flatnonzero(t == least[pixel])
    winner = np.full(len(depth), -1)
    winner[pixel[best]] = best
    return hits.pick(winner[winner >= 0])


def _grain(sizes: Array) -> tuple[Ints, Ints]:
    """Return axes (G * 3,) of each face of a box: of its longer edge, along the grain, and of its shorter edge."""
    pairs = np.array([[1, 2], [0, 2], [0, 1]])
    swapped = sizes[:, pairs[:, 0]] < sizes[:, pairs[:, 1]]  # (G, 3)
    along, across = np.where(swapped, pairs[:, 1], pairs[:, 0]), np.where(swapped, pairs[:, 0], pairs[:, 1])
    return along.reshape(-1), across.reshape(-1)


def _flat_light(kind: Ints, poses: Poses) -> Array:
    """Return the brightness (G, 3) of the visible face across each axis."""
    columns = []
    for origin, sun, vertical in zip(poses.origin, poses.sun, poses.vertical, strict=True):
        side = np.where((kind == PLANE) | (origin > 0), np.float32(1), np.float32(-1))
        # A little darker underneath than above, as under a bright sky.
        columns.append(AMBIENT + DIFFUSE * np.maximum(sun * side, 0.0) + SKY * vertical * side)
    out: Array = np.stack(columns, 1)
    return out


def _round_light(kind: Ints, size: Triple, hits: Hits, poses: Poses) -> tuple[Array, Array]:
    """Return brightness (H,) and highlight (H,) at positions on round shapes."""
    normal = normals(kind, size, hits.spot)

    def along(direction: Triple) -> Array:
        nx, ny, nz = normal
        x, y, z = (d[hits.shape] for d in direction)
        out: Array = nx * x + ny * y + nz * z
        return out

    gleam = np.maximum(along(poses.halfway), 0.0)
    for _ in range(4):  # to the power of 16
        gleam = gleam * gleam
    bright: Array = AMBIENT + DIFFUSE * np.maximum(along(poses.sun), 0.0) + SKY * along(poses.vertical)
    return bright, gleam * SHINE
