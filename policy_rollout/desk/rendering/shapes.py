"""Where rays meet the desk's shapes, in plain numpy: planes, boxes, spheres, cylinders and capsules.

Everything is a flat array (n,), one entry for every pair of a pixel and a shape that may be seen there. The ray of pair
i is `origin[i] + t * ray[i]` in the shape's own frame. Every function returns `t` (n,), +inf where the shape is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # float32; numpy's types lose track of it in mixed arithmetic
Triple = tuple[Array, Array, Array]

# MuJoCo's mjtGeom numbers, as ints: comparing its enums changed between versions.
PLANE, SPHERE, CAPSULE, CYLINDER, BOX = 0, 2, 3, 5, 6
_MISS = np.float32(np.inf)
_NEAR = 0.004  # metres; nothing nearer to the camera is drawn


def _seen(t: Array, hit: npt.NDArray[np.bool_]) -> Array:
    return np.where(hit & (t > _NEAR), t, _MISS)


def plane(origin: Triple, ray: Triple, size: Triple) -> Array:
    """The plane z = 0, seen from above."""
    return _seen(-origin[2] / ray[2], ray[2] < 0)


def box(origin: Triple, ray: Triple, size: Triple) -> Array:
    """The box |x|, |y|, |z| <= size, from outside: the last of three slabs to be entered."""
    enters, leaves = [], []
    for o, r, h in zip(origin, ray, size, strict=True):
        inverse = 1.0 / r
        middle, half = -o * inverse, h * np.abs(inverse)
        enters.append(middle - half)
        leaves.append(middle + half)
    enter = np.maximum(np.maximum(enters[0], enters[1]), enters[2])
    leave = np.minimum(np.minimum(leaves[0], leaves[1]), leaves[2])
    return _seen(enter, enter <= leave)


def _ball(origin: Triple, ray: Triple, radius: Array) -> Array:
    (x, y, z), (rx, ry, rz) = origin, ray
    a = rx * rx + ry * ry + rz * rz
    b = x * rx + y * ry + z * rz
    inside = b * b - a * (x * x + y * y + z * z - radius * radius)
    return _seen((-b - np.sqrt(np.maximum(inside, 0.0))) / a, inside > 0)


def sphere(origin: Triple, ray: Triple, size: Triple) -> Array:
    return _ball(origin, ray, size[0])


def _tube(origin: Triple, ray: Triple, radius: Array, half: Array) -> Array:
    """The curved side of a cylinder along z."""
    (x, y, z), (rx, ry, rz) = origin, ray
    a = rx * rx + ry * ry
    b = x * rx + y * ry
    inside = b * b - a * (x * x + y * y - radius * radius)
    t = (-b - np.sqrt(np.maximum(inside, 0.0))) / a
    return _seen(t, (inside > 0) & (np.abs(z + t * rz) <= half))


def cylinder(origin: Triple, ray: Triple, size: Triple) -> Array:
    (x, y, z), (rx, ry, rz), (radius, half, _) = origin, ray, size
    # Only the cap on the camera's side can be seen from outside.
    t = (np.where(z > 0, half, -half) - z) / rz
    px, py = x + t * rx, y + t * ry
    return np.minimum(_tube(origin, ray, radius, half), _seen(t, px * px + py * py <= radius * radius))


def capsule(origin: Triple, ray: Triple, size: Triple) -> Array:
    (x, y, z), (radius, half, _) = origin, size
    ends = np.minimum(_ball((x, y, z - half), ray, radius), _ball((x, y, z + half), ray, radius))
    return np.minimum(_tube(origin, ray, radius, half), ends)


INTERSECTIONS: dict[int, Callable[[Triple, Triple, Triple], Array]] = {
    PLANE: plane,
    SPHERE: sphere,
    CAPSULE: capsule,
    CYLINDER: cylinder,
    BOX: box,
}


def half_extent(kind: int, size: tuple[float, float, float]) -> tuple[float, float, float]:
    """Half edge lengths of the box around a shape (a plane has none: +inf)."""
    if kind == BOX:
        return size
    if kind == PLANE:
        return (float("inf"),) * 3
    radius, half = size[0], size[1]
    return radius, radius, {SPHERE: radius, CAPSULE: half + radius, CYLINDER: half}[kind]


def normals(kind: Array, size: Triple, spot: Triple) -> Triple:
    """Outward unit normals at the places `spot` of spheres, cylinders and capsules."""
    (x, y, z), half = spot, size[1]
    cap = (kind == CYLINDER) & (np.abs(z) >= half * 0.9999)
    nx, ny = np.where(cap, 0.0, x), np.where(cap, 0.0, y)
    side = np.where(kind == CYLINDER, 0.0, z - np.where(kind == CAPSULE, np.clip(z, -half, half), 0.0))
    nz = np.where(cap, np.sign(z), side)
    length = np.maximum(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-9)
    return nx / length, ny / length, nz / length
