"""From a policy's numbers to what a body executes: metres, radians, and a gripper that is open or closed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import constants
from policy_rollout.policies.interface import ACTION_SIZE, ActionConvention

OPEN, CLOSED = 1.0, -1.0
"""The gripper of a command, whatever sign the policy was trained with."""


def gripper_values(convention: ActionConvention) -> tuple[float, float]:
    """The numbers that mean closed and open. Raises `ValueError` where the convention's words are not understood."""
    values = constants.gripper_values(convention.gripper)
    if values is None:
        raise ValueError(
            f"the action convention says gripper: {convention.gripper!r}; understood are two different numbers, such "
            "as '-1 closed, +1 open'"
        )
    return values


def in_metres(actions: NDArray[Any], convention: ActionConvention) -> NDArray[np.float32]:
    """Actions [..., 7] of the convention as metres, radians, and a gripper of exactly `OPEN` or `CLOSED`.

    The gripper goes to the value that is nearer; half way is closed, as in CALVIN's wrapper.
    """
    if actions.shape[-1:] != (ACTION_SIZE,):
        raise ValueError(f"an action has {ACTION_SIZE} numbers, got shape {list(actions.shape)}")
    closed, opened = gripper_values(convention)
    out = np.array(actions, dtype=np.float32)
    out[..., :3] *= np.float32(convention.position_m_per_unit)
    out[..., 3:6] *= np.float32(convention.rotation_rad_per_unit)
    wish = actions[..., 6]
    out[..., 6] = np.where(np.abs(wish - opened) < np.abs(wish - closed), OPEN, CLOSED)
    return out
