"""Intersections of rays with planes, boxes, spheres, cylinders and capsules, in numpy.

All arrays are flat (n,), with one entry per pair of a pixel and a shape. The ray of pair i is `origin[i] + t * ray[i]`
in the shape's own frame. Every function returns `t` (n,), +inf without a hit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # float32; numpy's type hints lose it in mixed arithmetic
Triple = tuple[Array, Array, Array]

# MuJoCo's mjtGeom numbers, as ints: comparing its enums changed between versions.
PLANE, SPHERE, CAPSULE, CYLINDER, BOX = 0, 2, 3, 5, 6
_MISS = np.float32(np.inf)
_NEAR = 0.004  # metres; nothing nearer to the camera is drawn


def _visible(t: Array, hit: npt.NDArray[np.bool_]) -> Array:
    return np.where(hit & (t > _NEAR), t, _MISS)


def plane(origin: Triple, ray: Triple, size: Triple) -> Array:
    """Intersect the plane z = 0 from above."""
    return _visible(-origin[2] / ray[2], ray[2] < 0)


def box(origin: Triple, ray: Triple, size: Triple) -> Array:
    """Intersect the box |x|, |y|, |z| <= size from outside: the last of three slabs to be entered."""
    enters, leaves = [], []
    for o, r, h in zip(origin, ray, size, strict=True):
        inverse = 1.0 / r
        middle, half = -o * inverse, h * np.abs(inverse)
        enters.append(middle - half)
        leaves.append(middle + half)
    enter = np.maximum(np.maximum(enters[0], enters[1]), enters[2])
    leave = np.minimum(np.minimum(leaves[0], leaves[1]), leaves[2])
    return _visible(enter, enter <= leave)


def _ball(origin: Triple, ray: Triple, radius: Array) -> Array:
    (x, y, z), (rx, ry, rz) = origin, ray
    a = rx * rx + ry * ry + rz * rz
    b = x * rx + y * ry + z * rz
    inside = b * b - a * (x * x + y * y + z * z - radius * radius)
    return _visible((-b - np.sqrt(np.maximum(inside, 0.0))) / a, inside > 0)


def sphere(origin: Triple, ray: Triple, size: Triple) -> Array:
    """Intersect a sphere of radius size[0]."""
    return _ball(origin, ray, size[0])


def _tube(origin: Triple, ray: Triple, radius: Array, half: Array) -> Array:
    """Intersect the curved side of a cylinder along z."""
    (x, y, z), (rx, ry, rz) = origin, ray
    a = rx * rx + ry * ry
    b = x * rx + y * ry
    inside = b * b - a * (x * x + y * y - radius * radius)
    t = (-b - np.sqrt(np.maximum(inside, 0.0))) / a
    return _visible(t, (inside > 0) & (np.abs(z + t * rz) <= half))


def cylinder(origin: Triple, ray: Triple, size: Triple) -> Array:
    """Intersect a cylinder along z of radius size[0] and half height size[1]."""
    (x, y, z), (rx, ry, rz), (radius, half, _) = origin, ray, size
    # Only the cap on the camera's side is visible from outside.
    t = (np.where(z > 0, half, -half) - z) / rz
    px, py = x + t * rx, y + t * ry
    return np.minimum(_tube(origin, ray, radius, half), _visible(t, px * px + py * py <= radius * radius))


def capsule(origin: Triple, ray: Triple, size: Triple) -> Array:
    """Intersect a capsule along z of radius size[0] and half cylinder height size[1]."""
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
    """Return half edge lengths of the bounding box of a shape (+inf for a plane)."""
    if kind == BOX:
        return size
    if kind == PLANE:
        return (float("inf"),) * 3
    radius, half = size[0], size[1]
    return radius, radius, {SPHERE: radius, CAPSULE: half + radius, CYLINDER: half}[kind]


def normals(kind: Array, size: Triple, spot: Triple) -> Triple:
    """Return outward unit normals at positions `spot` on spheres, cylinders and capsules."""
    (x, y, z), half = spot, size[1]
    cap = (kind == CYLINDER) & (np.abs(z) >= half * 0.9999)
    nx, ny = np.where(cap, 0.0, x), np.where(cap, 0.0, y)
    side = np.where(kind == CYLINDER, 0.0, z - np.where(kind == CAPSULE, np.clip(z, -half, half), 0.0))
    nz = np.where(cap, np.sign(z), side)
    length = np.maximum(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-9)
    return nx / length, ny / length, nz / length
