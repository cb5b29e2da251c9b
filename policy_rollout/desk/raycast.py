"""Pictures by casting one ray per pixel, in numpy: no OpenGL, the same bytes in every process.

MuJoCo's own `mj_multiRay` asks every body about every ray. Here a shape is only asked about the pixels of the rectangle
that it projects to, and what the fixed camera sees of what never moves is kept. Tests compare the distances with
`mj_multiRay`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.cameras import Jitter, View
from policy_rollout.desk.looks import BULB_ON, LED_ON, looks_of
from policy_rollout.desk.render import Picture
from policy_rollout.desk.shapes import INTERSECTIONS, Point, Sizes, Triple, half_extent, normals
from policy_rollout.desk.textures import Tile, tile_of

Array = npt.NDArray[Any]  # float32; numpy's types lose track of it in mixed arithmetic
Float64 = npt.NDArray[np.float64]

SUN = (0.40, -0.80, 1.55)  # where the light comes from
AMBIENT, DIFFUSE, SKY, SHINE = 0.58, 0.45, 0.05, 0.25
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_KEPT_BACKGROUNDS = 4


@dataclass(frozen=True)
class Shape:
    """One geom of the model, ready to be drawn."""

    kind: int
    size: Sizes
    extent: Point
    tile: Tile | None
    plain: Array  # (1, 3)
    grain: list[tuple[int, int]]
    shift: tuple[float, float]  # of the texture, so that no two boards have the same grain
    lamp: str  # "led", "lightbulb" or ""


@dataclass
class Canvas:
    """Distance along the optical axis (S, S), +inf where nothing was drawn, and colours (S, S, 3), 0 to 255."""

    depth: Array
    rgb: npt.NDArray[np.uint8]

    def copy(self) -> Canvas:
        return Canvas(self.depth.copy(), self.rgb.copy())


@dataclass(frozen=True)
class Pose:
    """The camera and the light in one shape's own frame, as plain numbers."""

    origin: Point
    forward: Point
    right: Point
    up: Point
    sun: Point
    half: Point  # halfway between the light and the camera, for highlights
    vertical: Point


@dataclass(frozen=True)
class Light:
    sun: Float64  # (3,), a unit vector
    brightness: float
    led: int
    bulb: int

    @classmethod
    def make(cls, jitter: Jitter, led: int, bulb: int) -> Light:
        sun = np.add(SUN, jitter.light)
        return cls(sun / np.sqrt((sun * sun).sum()), jitter.brightness, led, bulb)


class RayCaster:
    """Renderer "raycast" of one model."""

    def __init__(self, model: Any, scene: str) -> None:
        self._shapes = _shapes(model, scene)
        fixed = [int(model.body_weldid[b]) == 0 for b in model.geom_bodyid]
        self._fixed = [g for g, still in enumerate(fixed) if still and not self._shapes[g].lamp]
        self._moving = [g for g, still in enumerate(fixed) if not still or self._shapes[g].lamp]
        self._extents = np.array([shape.extent for shape in self._shapes])
        self._backgrounds: dict[tuple[Any, ...], Canvas] = {}

    def close(self) -> None:
        self._backgrounds.clear()

    def shoot(self, data: Any, view: View, size: int, led: int, bulb: int, jitter: Jitter) -> Picture:
        """One picture of `size` by `size` pixels."""
        light = Light.make(jitter, led, bulb)
        if view.fixed:
            key = (size, jitter, tuple(view.pos.tolist()), tuple(view.forward.tolist()))
            if key not in self._backgrounds:
                while len(self._backgrounds) >= _KEPT_BACKGROUNDS:
                    self._backgrounds.pop(next(iter(self._backgrounds)))
                self._backgrounds[key] = self._draw(_blank(size), self._fixed, data, view, light)
            canvas = self._backgrounds[key].copy()
        else:
            canvas = self._draw(_blank(size), self._fixed, data, view, light)
        self._draw(canvas, self._moving, data, view, light)
        return Picture(canvas.rgb, canvas.depth)

    def _draw(self, canvas: Canvas, geoms: list[int], data: Any, view: View, light: Light) -> Canvas:
        size = len(canvas.depth)
        frames = np.array(data.geom_xmat[geoms]).reshape(-1, 3, 3)
        places = np.array(data.geom_xpos[geoms])
        regions = _regions(places, frames, self._extents[geoms], view, size)
        half = light.sun - view.forward
        in_world = np.stack([view.forward, view.right, view.up, light.sun, half / np.sqrt((half * half).sum())])
        vectors = np.einsum("vi,nij->nvj", in_world, frames).tolist()
        origins = np.einsum("ni,nij->nj", view.pos - places, frames).tolist()
        ups = frames[:, 2].tolist()
        axis = ((np.arange(size) + 0.5) / size * 2 - 1) * view.tan_half
        across, down = axis.astype(np.float32)[None, :], (-axis).astype(np.float32)[:, None]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for i, (c0, c1, r0, r1) in enumerate(regions.tolist()):
                if c0 >= c1 or r0 >= r1:
                    continue
                forward, right, up, sun, halfway = vectors[i]
                pose = Pose(origins[i], forward, right, up, sun, halfway, ups[i])
                drawn = _look_at(
                    self._shapes[geoms[i]], pose, across[:, c0:c1], down[r0:r1], canvas.depth[r0:r1, c0:c1]
                )
                if drawn is not None:
                    inside, t, spot = drawn
                    at = (inside // (c1 - c0) + r0) * size + inside % (c1 - c0) + c0
                    canvas.depth.reshape(-1)[at] = t
                    canvas.rgb.reshape(-1, 3)[at] = _colours(self._shapes[geoms[i]], spot, pose, light)
        return canvas


def _blank(size: int) -> Canvas:
    return Canvas(np.full((size, size), np.inf, np.float32), np.full((size, size, 3), 235, np.uint8))


def _shapes(model: Any, scene: str) -> list[Shape]:
    looks = looks_of(scene)
    tiles = {name: tile_of(name, look) for name, look in looks.items()}
    out = []
    for g in range(int(model.ngeom)):
        kind = int(model.geom_type[g])
        x, y, z = model.geom_size[g].tolist()
        name = str(model.mat(int(model.geom_matid[g])).name)
        lamp = name if name in ("led", "lightbulb") else ""
        shift = (0.0, 0.0) if kind == 0 else (0.37 * g, 0.113 * g)
        sizes, plain = (x, y, z), np.array([looks[name].colour], np.float32)
        out.append(Shape(kind, sizes, half_extent(kind, sizes), tiles[name], plain, _grain(sizes), shift, lamp))
    return out


def _regions(places: Float64, frames: Float64, extents: Float64, view: View, size: int) -> npt.NDArray[np.int64]:
    """First and last + 1 column and row (n, 4) that each of n shapes may cover, a pixel wider on every side."""
    offsets = np.nan_to_num(extents, posinf=0.0)[:, None, :] * _CORNERS  # (n, 8, 3)
    corners = places[:, None, :] + np.einsum("nij,nkj->nki", frames, offsets) - view.pos
    depth = corners @ view.forward
    scale = 1 / (np.maximum(depth, 1e-6) * view.tan_half)
    columns = ((corners @ view.right) * scale + 1) * (size / 2)
    rows = (1 - (corners @ view.up) * scale) * (size / 2)
    out = np.stack([columns.min(1) - 1, columns.max(1) + 2, rows.min(1) - 1, rows.max(1) + 2], 1)
    # A corner behind the camera projects to nowhere, and a plane has no corners: look at every pixel.
    everywhere = (depth.min(1) < 0.01) & (depth.max(1) > 0) | np.isinf(extents[:, 0])
    out[everywhere] = [0, size, 0, size]
    out[depth.max(1) <= 0] = 0
    whole: npt.NDArray[np.int64] = np.clip(out, 0, size).astype(np.int64)
    return whole


def _look_at(
    shape: Shape, pose: Pose, across: Array, down: Array, depth: Array
) -> tuple[npt.NDArray[np.intp], Array, Triple] | None:
    """The pixels of a region (flat index) where the shape is nearer than `depth`: how far, and where on the shape."""
    x, y, z = ((f + across * r) + down * u for f, r, u in zip(pose.forward, pose.right, pose.up, strict=True))
    t = INTERSECTIONS[shape.kind](pose.origin, (x, y, z), shape.size)
    inside = np.flatnonzero(t < depth)
    if not len(inside):
        return None
    t = t.reshape(-1)[inside]
    ox, oy, oz = pose.origin
    spot = (ox + t * x.reshape(-1)[inside], oy + t * y.reshape(-1)[inside], oz + t * z.reshape(-1)[inside])
    return inside, t, spot


def _colours(shape: Shape, spot: Triple, pose: Pose, light: Light) -> npt.NDArray[np.uint8]:
    """Colours (n, 3) of the places `spot` (n,) on one shape."""
    on = bool(shape.lamp) and bool(light.led if shape.lamp == "led" else light.bulb)
    face = _face(shape, spot) if shape.kind == 6 else None
    if shape.kind in (0, 6):
        lit = _flat_light(shape, pose, light, face)
        shine: Array | float = 0.0
    else:
        lit, shine = _round_light(shape, spot, pose, light)
    if on:
        paint = np.array([LED_ON if shape.lamp == "led" else BULB_ON], np.float32)
        lit = 0.8 + 0.25 * lit
    else:
        paint = _paint(shape, spot, face)
    colours = paint * lit[:, None] + (shine if isinstance(shine, float) else shine[:, None])
    out: npt.NDArray[np.uint8] = np.clip(colours * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return out


def _face(shape: Shape, spot: Triple) -> npt.NDArray[np.intp]:
    """Which axis (n,) is normal to the face of a box that each place lies on."""
    x, y, z = (np.abs(s) * (1.0 / h) for s, h in zip(spot, shape.size, strict=True))
    out: npt.NDArray[np.intp] = np.where(x > y, np.where(x > z, 0, 2), np.where(y > z, 1, 2))
    return out


def _flat_light(shape: Shape, pose: Pose, light: Light, face: npt.NDArray[np.intp] | None) -> Array:
    """How bright (n,) the places on a box, or (1,) on a plane, are. The camera sees the faces that are turned to it."""
    table = []
    for k in range(3):
        side = 1.0 if shape.kind == 0 or pose.origin[k] > 0 else -1.0
        # A little darker underneath than above, as under a bright sky.
        table.append(AMBIENT + DIFFUSE * max(0.0, pose.sun[k] * side) + SKY * pose.vertical[k] * side)
    shades = np.array(table, np.float32) * light.brightness
    return shades[face] if face is not None else shades[2:]


def _round_light(shape: Shape, spot: Triple, pose: Pose, light: Light) -> tuple[Array, Array]:
    """How bright (n,) the places on a round shape are, and the highlight on them (n,)."""
    x, y, z = normals(shape.kind, shape.size, *spot)
    towards = x * pose.sun[0] + y * pose.sun[1] + z * pose.sun[2]
    gleam = np.maximum(x * pose.half[0] + y * pose.half[1] + z * pose.half[2], 0.0)
    for _ in range(4):  # to the power of 16, exactly
        gleam = gleam * gleam
    above = x * pose.vertical[0] + y * pose.vertical[1] + z * pose.vertical[2]
    lit = AMBIENT + DIFFUSE * np.maximum(towards, 0.0) + SKY * above
    return lit * light.brightness, gleam * (SHINE * light.brightness)


def _paint(shape: Shape, spot: Triple, face: npt.NDArray[np.intp] | None) -> Array:
    """Colours (n, 3), or (1, 3) where all are the same, before lighting."""
    if shape.tile is None:
        return shape.plain
    u, v = spot[0], spot[1]
    if face is not None:
        pairs = shape.grain
        u = np.choose(face, [spot[i] for i, _ in pairs])
        v = np.choose(face, [spot[j] for _, j in pairs])
    return shape.tile.look_up(u + shape.shift[0], v + shape.shift[1])


def _grain(size: Sizes) -> list[tuple[int, int]]:
    """For the three faces of a box: its longer edge, along which the grain runs, then the shorter."""
    pairs = []
    for k in range(3):
        i, j = (a for a in range(3) if a != k)
        pairs.append((i, j) if size[i] >= size[j] else (j, i))
    return pairs
