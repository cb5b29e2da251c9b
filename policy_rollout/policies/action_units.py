"""From a policy's numbers to what a body executes: metres, radians, and a gripper that is open or closed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import robot
from policy_rollout.policies.interface import ActionConvention

OPEN, CLOSED = 1.0, -1.0
"""The gripper of a command, whatever sign the policy was trained with."""


def gripper_values(convention: ActionConvention) -> tuple[float, float]:
    """The numbers that mean closed and open. Raises `ValueError` where the convention's words are not understood."""
    values = robot.gripper_values(convention.gripper)
    if values is None:
        raise ValueError(
            f"the action convention says gripper: {convention.gripper!r}; understood are two different numbers, such "
            "as '-1 closed, +1 open'"
        )
    return values


def in_metres(actions: NDArray[Any], convention: ActionConvention) -> NDArray[np.float32]:
    """Return actions [..., A] of the convention in metres and radians, with grippers of exactly `OPEN` or `CLOSED`.

    A gripper takes the value that is nearer; half way is closed, as in CALVIN's wrapper. Numbers that belong to no
    group of the convention are returned unchanged.
    """
    layout = convention.layout
    if actions.shape[-1:] != (layout.dim,):
        raise ValueError(f"an action has {layout.dim} numbers, got shape {list(actions.shape)}")
    out = np.array(actions, dtype=np.float32)
    out[..., list(layout.position)] *= np.float32(convention.position_m_per_unit)
    out[..., list(layout.rotation)] *= np.float32(convention.rotation_rad_per_unit)
    if layout.gripper:
        closed, opened = gripper_values(convention)
        wish = actions[..., list(layout.gripper)]
        out[..., list(layout.gripper)] = np.where(np.abs(wish - opened) < np.abs(wish - closed), OPEN, CLOSED)
    return out
