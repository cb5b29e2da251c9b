"""Rotations in pybullet's conventions: extrinsic xyz Euler angles (as scipy's "xyz"), quaternions as x, y, z, w."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def euler_of(matrix: Array) -> tuple[float, float, float]:
    """Return Euler angles (roll, pitch, yaw) in rad of a rotation matrix (3, 3); roll and yaw in [-pi, pi]."""
    pitch = -math.asin(min(1.0, max(-1.0, float(matrix[2, 0]))))
    if abs(matrix[2, 0]) > 1.0 - 1e-9:  # gimbal lock: only the sum of the other two is defined
        return 0.0, pitch, math.atan2(-float(matrix[0, 1]), float(matrix[1, 1]))
    roll = math.atan2(float(matrix[2, 1]), float(matrix[2, 2]))
    return roll, pitch, math.atan2(float(matrix[1, 0]), float(matrix[0, 0]))


def matrix_of(euler: Array) -> Array:
    """Return the rotation matrix (3, 3) = Rz(yaw) Ry(pitch) Rx(roll)."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(a), math.sin(a)) for a in euler)
    return np.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ]
    )


def quaternion_of(euler: Array) -> tuple[float, float, float, float]:
    """Return the quaternion (w, x, y, z), MuJoCo's order, of Euler angles."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(a / 2), math.sin(a / 2)) for a in euler)
    return (
        cx * cy * cz + sx * sy * sz,
        sx * cy * cz - cx * sy * sz,
        cx * sy * cz + sx * cy * sz,
        cx * cy * sz - sx * sy * cz,
    )


def nearest_angle(angle: Array, reference: Array) -> Array:
    """Return `angle` plus multiples of 2 pi, within pi of `reference`, elementwise."""
    return reference + (angle - reference + math.pi) % (2 * math.pi) - math.pi
