"""Convert a policy's actions to metres, radians, and a gripper that is open or closed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import constants
from policy_rollout.policies.interface import ActionConvention

OPEN, CLOSED = 1.0, -1.0
"""Gripper values of a command, for any sign convention of the policy."""


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
    """Return actions [..., A] of the convention in metres and radians, with grippers of exactly `OPEN` or `CLOSED`.

    A gripper takes the nearer value; half way is closed, as in CALVIN's wrapper. Numbers that belong to no group of the
    convention are returned unchanged.
    """
    layout = convention.layout
    if actions.shape[-1:] != (layout.dim,):
        raise ValueError(f"an action has {layout.dim} numbers, got shape {list(actions.shape)}")
    out = np.array(actions, dtype=np.float32)
    out[..., list(layout.position)] *= np.float32(convention.position_m_per_unit)
    out[..., list(layout.rotation)] *= np.float32(convention.rotation_rad_per_unit)
    if layout.gripper:
        closed, opened = gripper_values(convention)
        command = actions[..., list(layout.gripper)]
        out[..., list(layout.gripper)] = np.where(np.abs(command - opened) < np.abs(command - closed), OPEN, CLOSED)
    return out
