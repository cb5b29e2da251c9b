"""Convert CALVIN's relative and absolute actions to targets of the hand's servos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.layout import WORKSPACE
from policy_rollout.desk.rotation import nearest_angle

Array = npt.NDArray[np.float64]
Action = npt.ArrayLike | Mapping[str, Any]

MAX_REL_POS = 0.02  # metres per unit of a relative action
MAX_REL_ORN = 0.05  # rad per unit
WINDUP_POS = 0.04  # largest distance of the target from the tcp, metres per axis
WINDUP_ORN = 0.30  # rad per axis
_LOW, _HIGH = np.array(WORKSPACE[0]), np.array(WORKSPACE[1])


@dataclass
class HandTarget:
    """Target of the hand: position (3,), Euler angles (3,), gripper width in metres, last command +-1."""

    pos: Array
    orn: Array
    width: float
    gripper: float


def vector(values: npt.ArrayLike, size: int, what: str) -> Array:
    """Return a copy of `values` as float64 (size,). Raises ValueError, starting with `what`, for anything else."""
    try:
        out = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be {size} numbers, not {values!r:.80}") from error
    if out.shape != (size,):
        raise ValueError(f"{what} has {out.size} numbers, shape {out.shape}; the desk takes shape ({size},)")
    if not np.isfinite(out).all():
        raise ValueError(f"{what} has a value that is not finite: {out.tolist()}")
    return out


def _within(values: Array, low: Array, high: Array) -> Array:
    out: Array = np.minimum(np.maximum(values, low), high)  # np.clip takes five times as long for three numbers
    return out


def _gripper(value: float) -> float:
    if value not in (-1.0, 1.0):
        raise ValueError(f"the gripper command is {value:g}; it must be exactly -1 (close) or 1 (open)")
    return float(value)


def _split(action: Action) -> tuple[bool, Array]:
    """Return (is it absolute, the seven numbers)."""
    if isinstance(action, Mapping):
        kind = action.get("type")
        if kind not in ("cartesian_rel", "cartesian_abs") or "action" not in action:
            raise ValueError(
                f'an action dictionary needs type "cartesian_rel" or "cartesian_abs" and action, not {action}'
            )
        return kind == "cartesian_abs", vector(action["action"], 7, "the action")
    if isinstance(action, Sequence) and len(action) == 3:  # calvin_env's (position, orientation, gripper)
        return True, vector(np.concatenate([np.ravel(np.asarray(part)) for part in action]), 7, "the action")
    return False, vector(action, 7, "the action")


def apply_action(target: HandTarget, action: Action, tcp_pos: Array, angles: Array) -> HandTarget:
    """Return the target after one action.

    `tcp_pos` (3,) and `angles` (3,) are the current pose of the hand, with the hinges' angles (not wrapped).
    A relative action moves the target, not the hand, as in CALVIN. Unlike CALVIN's, the target stays in the workspace
    and close to the hand, so that no error accumulates while the hand pushes against the table.
    Raises ValueError for a wrong size, a number that is not finite, or a gripper command other than +-1.
    """
    absolute, values = _split(action)
    gripper = _gripper(values[6])
    if absolute:
        pos, orn = values[:3], nearest_angle(values[3:6], angles)
    else:
        pos = target.pos + values[:3] * MAX_REL_POS
        orn = target.orn + values[3:6] * MAX_REL_ORN
        pos = _within(pos, tcp_pos - WINDUP_POS, tcp_pos + WINDUP_POS)
        orn = _within(orn, angles - WINDUP_ORN, angles + WINDUP_ORN)
    pos = _within(pos, _LOW, _HIGH)
    return HandTarget(pos, orn, 0.08 if gripper > 0 else 0.0, gripper)
