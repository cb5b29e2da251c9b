"""Where rays meet the desk's shapes, in plain numpy: planes, boxes, spheres, cylinders and capsules.

A ray is `origin + t * ray`, both in the shape's own frame; `ray` is three arrays of one picture region (R, C).
Every function returns `t` (R, C), +inf where the shape is missed. Pixels see only +, -, *, / and sqrt, which IEEE 754
defines to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # float32; numpy's types lose track of it in mixed arithmetic
Triple = tuple[Array, Array, Array]
Point = tuple[float, float, float]
Sizes = tuple[float, float, float]

_MISS = np.float32(np.inf)
NEAR = 0.004


def _seen(t: Array, hit: npt.NDArray[np.bool_]) -> Array:
    return np.where(hit & (t > NEAR), t, _MISS)


def plane(origin: Point, ray: Triple, size: Sizes) -> Array:
    """The plane z = 0, seen from above."""
    t = -origin[2] / ray[2]
    return _seen(t, ray[2] < 0)


def box(origin: Point, ray: Triple, size: Sizes) -> Array:
    """The box |x|, |y|, |z| <= size, from outside: the last of three slabs to be entered."""
    near: Array | None = None
    far: Array | None = None
    for o, r, h in zip(origin, ray, size, strict=True):
        inverse = 1 / r
        middle = -o * inverse
        half = h * np.abs(inverse)
        enter, leave = middle - half, middle + half
        near = enter if near is None else np.maximum(near, enter)
        far = leave if far is None else np.minimum(far, leave)
    assert near is not None
    assert far is not None
    return _seen(near, near <= far)


def _ball(origin: Point, ray: Triple, radius: float) -> Array:
    a = ray[0] * ray[0] + ray[1] * ray[1] + ray[2] * ray[2]
    b = origin[0] * ray[0] + origin[1] * ray[1] + origin[2] * ray[2]
    c = origin[0] ** 2 + origin[1] ** 2 + origin[2] ** 2 - radius**2
    inside = b * b - a * c
    return _seen((-b - np.sqrt(np.maximum(inside, 0))) / a, inside > 0)


def sphere(origin: Point, ray: Triple, size: Sizes) -> Array:
    return _ball(origin, ray, size[0])


def _tube(origin: Point, ray: Triple, radius: float, half: float) -> Array:
    """The curved side of a cylinder along z."""
    a = ray[0] * ray[0] + ray[1] * ray[1]
    b = origin[0] * ray[0] + origin[1] * ray[1]
    c = origin[0] ** 2 + origin[1] ** 2 - radius**2
    inside = b * b - a * c
    t = (-b - np.sqrt(np.maximum(inside, 0))) / a
    height = origin[2] + t * ray[2]
    return _seen(t, (inside > 0) & (np.abs(height) <= half))


def cylinder(origin: Point, ray: Triple, size: Sizes) -> Array:
    radius, half = size[0], size[1]
    side = _tube(origin, ray, radius, half)
    # Only the cap on the camera's side can be seen from outside.
    t = ((half if origin[2] > 0 else -half) - origin[2]) / ray[2]
    x, y = origin[0] + t * ray[0], origin[1] + t * ray[1]
    return np.minimum(side, _seen(t, x * x + y * y <= (radius**2)))


def capsule(origin: Point, ray: Triple, size: Sizes) -> Array:
    radius, half = size[0], size[1]
    x, y, z = origin
    ends = np.minimum(_ball((x, y, z - half), ray, radius), _ball((x, y, z + half), ray, radius))
    return np.minimum(_tube(origin, ray, radius, half), ends)


Intersection = Callable[[Point, Triple, Sizes], Array]
# By MuJoCo's mjtGeom number, as an int: comparing its enums changed between versions.
INTERSECTIONS: dict[int, Intersection] = {0: plane, 2: sphere, 3: capsule, 5: cylinder, 6: box}


def half_extent(kind: int, size: Sizes) -> Point:
    """Half edge lengths of the box around a shape (a plane has none: +inf)."""
    if kind == 6:
        return size
    if kind == 0:
        return (float("inf"),) * 3
    radius, half = size[0], size[1]
    return radius, radius, {2: radius, 3: half + radius, 5: half}[kind]


def normals(kind: int, size: Sizes, x: Array, y: Array, z: Array) -> Triple:
    """Outward unit normals at points (n,) of a sphere, cylinder or capsule."""
    if kind == 3:
        z = z - np.clip(z, -size[1], size[1])
    elif kind == 5:
        cap = np.abs(z) >= (size[1] * (1 - 1e-4))
        x, y = np.where(cap, 0, x).astype(np.float32), np.where(cap, 0, y).astype(np.float32)
        z = np.where(cap, np.sign(z), 0).astype(np.float32)
    length = np.maximum(np.sqrt(x * x + y * y + z * z), (1e-9))
    return x / length, y / length, z / length
