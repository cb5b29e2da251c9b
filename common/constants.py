"""Names and words that robot data, models and policies share: cameras by name, the gripper's two numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

CAMERAS = ("rgb_static", "rgb_gripper")
"""Names of a model's camera views, in the order in which it reads them."""
ENV_CAMERAS = tuple(name.removeprefix("rgb_") for name in CAMERAS)
"""Names of the same cameras in CALVIN's environment."""
CALVIN_MAX_STEPS = 360
"""Control steps per task in CALVIN's evaluation."""
CALVIN_ACTION_DIM = 7
"""Numbers of a CALVIN action: three of position, three of rotation, one gripper command."""
ACTION_GROUPS = ("position", "rotation", "gripper")
STATE_KEY = "robot_obs"
"""Name of the robot's state in CALVIN's frames and observations."""
CALVIN_STATE_DIM = 15
"""Numbers of CALVIN's ``robot_obs``: position, Euler angles, gripper width, seven joints, gripper command."""
CALVIN_STATE: dict[str, Any] = {
    "dim": CALVIN_STATE_DIM,
    "groups": {"position": [0, 1, 2], "rotation": [3, 4, 5], "gripper": [14]},
    "rotation": "euler_xyz",
}
"""Declaration of a state as in a contract: CALVIN's ``robot_obs``, in metres and radians."""
CODEBOOK_SIZE = 8192
"""Codes of the image tokenizer (MagVIT-v2): 13 bits each."""

Size = TypeVar("Size")
_GRIPPER = re.compile(r"([+-]?\d+(?:\.\d+)?) (closed|open), ([+-]?\d+(?:\.\d+)?) (closed|open)")


@dataclass(frozen=True)
class ActionLayout:
    """Number of values in an action or a state, and the indices of those whose meaning is declared."""

    dim: int
    position: tuple[int, ...] = ()
    rotation: tuple[int, ...] = ()
    gripper: tuple[int, ...] = ()

    @property
    def motion(self) -> tuple[int, ...]:
        """All indices except those of grippers."""
        return tuple(index for index in range(self.dim) if index not in self.gripper)


CALVIN_LAYOUT = ActionLayout(CALVIN_ACTION_DIM, (0, 1, 2), (3, 4, 5), (6,))


def action_layout(action: Mapping[str, Any], name: str = "action") -> ActionLayout:
    """Return the layout that an action convention declares by its ``dim`` and ``groups``.

    Without ``dim`` it is that of CALVIN's actions. Numbers of another size have the groups that are named, and no
    others. ``name``: what is declared, in messages.

    Raises:
        ValueError: a size below 1, or groups that are unknown, overlap or exceed the size; names the key.
    """
    dim, groups = action.get("dim", CALVIN_ACTION_DIM), action.get("groups")
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ValueError(f"{name}.dim must be an integer of at least 1, found {dim!r}")
    if groups is None:
        return CALVIN_LAYOUT if dim == CALVIN_ACTION_DIM else ActionLayout(dim)
    if not isinstance(groups, Mapping) or not all(isinstance(indices, (list, tuple)) for indices in groups.values()):
        raise ValueError(f"{name}.groups must be an object, group -> list of indices, found {groups!r}")
    unknown = sorted(set(groups) - set(ACTION_GROUPS))
    if unknown:
        raise ValueError(f"unknown {name}.groups.{unknown[0]}; allowed: {', '.join(ACTION_GROUPS)}")
    indices = [index for members in groups.values() for index in members]
    if not all(type(index) is int and 0 <= index < dim for index in indices) or len(set(indices)) < len(indices):
        raise ValueError(
            f"{name}.groups must hold different indices from 0 to {dim - 1} ({name}.dim is {dim}), found {groups!r}"
        )
    return ActionLayout(dim, *(tuple(groups.get(name, ())) for name in ACTION_GROUPS))


def by_view(cameras: Mapping[str, Size]) -> dict[str, Size]:
    """Return what belongs to each view of ``CAMERAS``, in their order.

    A camera with the name of a view belongs to it, wherever it is listed. Cameras with other names take the views that
    are left, in the order in which they are listed.
    """
    found = {name: size for name, size in cameras.items() if name in CAMERAS}
    others = [size for name, size in cameras.items() if name not in CAMERAS]
    found |= dict(zip([view for view in CAMERAS if view not in found], others, strict=False))
    return {view: found[view] for view in CAMERAS if view in found}


def gripper_values(text: str) -> tuple[float, float] | None:
    """Return the numbers that mean closed and open in words such as "-1 closed, +1 open"; None for other words."""
    match = _GRIPPER.fullmatch(text)
    named = {match[2]: float(match[1]), match[4]: float(match[3])} if match else {}
    if len(named) != 2 or named["closed"] == named["open"]:
        return None
    return named["closed"], named["open"]
