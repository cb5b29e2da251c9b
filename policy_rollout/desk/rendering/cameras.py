"""The two cameras: CALVIN's static camera, and one on the wrist."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# CALVIN's static camera: far away with a narrow view.
STATIC_FROM = (2.871459009488717, -2.166602199425597, 2.555159848480571)
STATIC_AT = (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459)
STATIC_UP = (0.4041403970338857, 0.22629790978217404, 0.8862616969685161)
STATIC_FOV = 10.0
# The wrist camera in the frame of the tcp: behind the hand, tilted by 0.27 rad towards the fingers.
GRIPPER_POS = (-0.1, 0.0, -0.14)
GRIPPER_TILT = math.pi / 2 - 1.3
GRIPPER_FOV = 75.0


MAX_JITTER = 3.0  # beyond this, the desk leaves the image or is dark


def checked_jitter(value: float, name: str) -> float:
    """Return `value`. Raises ValueError naming the argument if it is out of range."""
    if not 0.0 <= value <= MAX_JITTER:
        raise ValueError(f"{name} is {value:g}; it must be from 0 (none) to {MAX_JITTER:g} (1 is clearly visible)")
    return value


@dataclass(frozen=True)
class Jitter:
    """Random change of the static camera (metres) and of the light (direction and strength)."""

    look_from: tuple[float, float, float] = (0.0, 0.0, 0.0)
    look_at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    light: tuple[float, float, float] = (0.0, 0.0, 0.0)
    brightness: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator, camera: float, light: float) -> Jitter:
        noise = rng.uniform(-1.0, 1.0, (3, 3))
        bright = 1.0 + 0.25 * light * float(rng.uniform(-1.0, 1.0))

        def scaled(row: int, size: float) -> tuple[float, float, float]:
            x, y, z = (noise[row] * size).tolist()
            return x, y, z

        return cls(scaled(0, 0.15 * camera), scaled(1, 0.008 * camera), scaled(2, 0.6 * light), bright)


@dataclass(frozen=True)
class View:
    """A pinhole camera: position and the three unit axes (3,) in the world, tangent of half the field of view."""

    pos: Array
    right: Array
    up: Array
    forward: Array
    tan_half: float
    fixed: bool

    def project(self, point: npt.ArrayLike, size: int) -> tuple[float, float]:
        """Return column and row, in pixels, of a world position (3,)."""
        ray = np.asarray(point, dtype=np.float64) - self.pos
        depth = float(ray @ self.forward) * self.tan_half
        return (float(ray @ self.right) / depth + 1) * size / 2, (1 - float(ray @ self.up) / depth) * size / 2


def static_camera(jitter: Jitter | None = None) -> View:
    """Return the static camera."""
    change = jitter or Jitter()
    pos = np.add(STATIC_FROM, change.look_from)
    forward = np.add(STATIC_AT, change.look_at) - pos
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, STATIC_UP)
    right /= np.linalg.norm(right)
    return View(pos, right, np.cross(right, forward), forward, math.tan(math.radians(STATIC_FOV / 2)), True)


def gripper_camera(tcp: Array, axes: Array) -> View:
    """Return the wrist camera for a hand at `tcp` (3,) with the rotation matrix `axes` (3, 3)."""
    forward = axes @ np.array([math.sin(GRIPPER_TILT), 0.0, math.cos(GRIPPER_TILT)])
    up = axes @ np.array([math.cos(GRIPPER_TILT), 0.0, -math.sin(GRIPPER_TILT)])
    tan_half = math.tan(math.radians(GRIPPER_FOV / 2))
    return View(tcp + axes @ np.array(GRIPPER_POS), np.cross(forward, up), up, forward, tan_half, False)
