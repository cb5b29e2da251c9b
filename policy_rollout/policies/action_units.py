"""Convert a policy's actions to the units, rotation and gripper of another convention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import constants
from policy_rollout.policies.interface import ActionConvention

OPEN, CLOSED = 1.0, -1.0
"""Gripper values of a command, for any sign convention of the policy."""
METRES = ActionConvention(position_m_per_unit=1.0, rotation_rad_per_unit=1.0)
"""Metres, radians, and a gripper that is `OPEN` or `CLOSED`."""
CONVERTED_ROTATIONS = (("euler_xyz", "axis_angle"),)
"""Rotations that are converted, from and to; both describe the same turn."""


def gripper_values(convention: ActionConvention) -> tuple[float, float]:
    """Return the values of closed and open. Raises `ValueError` if the convention's text cannot be parsed."""
    values = constants.gripper_values(convention.gripper)
    if values is None:
        raise ValueError(
            f"the action convention has gripper: {convention.gripper!r}; expected are two different numbers, such "
            "as '-1 closed, +1 open'"
        )
    return values


def in_metres(actions: NDArray[Any], convention: ActionConvention) -> NDArray[np.float32]:
    """Return actions [..., A] of the convention in metres and radians, with grippers of exactly `OPEN` or `CLOSED`."""
    return converted(actions, convention, replace(METRES, rotation=convention.rotation))


def converted(actions: NDArray[Any], ours: ActionConvention, theirs: ActionConvention) -> NDArray[np.float32]:
    """Return actions [..., A] of ``ours`` in the units, rotation and gripper values of ``theirs``.

    A gripper takes the nearer value; half way is closed, as in CALVIN's wrapper. Numbers that belong to no group of the
    convention are returned unchanged. Raises `ValueError` for another size, and for rotations that are not converted.
    """
    layout = ours.layout
    if actions.shape[-1:] != (layout.dim,):
        raise ValueError(f"an action has {layout.dim} numbers, got shape {list(actions.shape)}")
    out = np.array(actions, dtype=np.float32)
    position, rotation, gripper = list(layout.position), list(layout.rotation), list(layout.gripper)
    out[..., position] *= np.float32(ours.position_m_per_unit / theirs.position_m_per_unit)
    if ours.rotation == theirs.rotation:
        out[..., rotation] *= np.float32(ours.rotation_rad_per_unit / theirs.rotation_rad_per_unit)
    elif (ours.rotation, theirs.rotation) in CONVERTED_ROTATIONS:
        vectors = _rotation_vectors(out[..., rotation] * ours.rotation_rad_per_unit)
        out[..., rotation] = vectors / theirs.rotation_rad_per_unit
    else:
        raise ValueError(f"rotations {ours.rotation} cannot be converted to {theirs.rotation}")
    if gripper:
        closed, opened = gripper_values(ours)
        command = actions[..., gripper]
        shut, wide = gripper_values(theirs)
        out[..., gripper] = np.where(np.abs(command - opened) < np.abs(command - closed), wide, shut)
    return out


def _rotation_vectors(euler: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the rotation vectors [..., 3] of extrinsic xyz Euler angles [..., 3]."""
    from scipy.spatial.transform import Rotation  # imported here: it takes as long as the rest of a client

    vectors = Rotation.from_euler("xyz", euler.reshape(-1, 3)).as_rotvec()
    return np.asarray(vectors, dtype=np.float64).reshape(euler.shape)
