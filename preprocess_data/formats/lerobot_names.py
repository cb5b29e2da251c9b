"""Interpret the names of a LeRobot column: which number is x, which the gripper, which are joints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from common.constants import CALVIN_STATE, CALVIN_STATE_DIM

AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
"""Dimensions of a 7-dimensional action, in order."""

_GRIPPER = re.compile(r"grip|finger|jaw|grasp")
_JOINT = re.compile(r"joint|shoulder|elbow|waist|forearm|upperarm|upper_arm|qpos|servo|wrist|(^|[_.])j_?\d+($|[_.])")
_OTHER_ROTATION = re.compile(r"quat|axis_?angle|rot_?vec|(^|[_.])q_?[wxyz]($|[_.])")
_ROTATION = {"rx": "roll", "ry": "pitch", "rz": "yaw"}
_NO_POSE = re.compile(r"vel|acc|force|torque|effort|current|target|goal")
_HAND_CAMERA = re.compile(r"wrist|hand|gripper|eye_in|tool")


def names_of(feature: Mapping[str, Any]) -> list[str] | None:
    """Return the name of each number of a column, or None if the data set does not name each one."""
    names: Any = feature.get("names")
    if isinstance(names, Mapping):
        if names and all(isinstance(index, int) for index in names.values()):
            names = [name for name, _ in sorted(names.items(), key=lambda pair: pair[1])]
        else:
            names = [name for group in names.values() if isinstance(group, list) for name in group]
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    shape = feature.get("shape")
    width = shape[0] if isinstance(shape, list) and len(shape) == 1 else None
    if not isinstance(names, list) or len(names) != width or not all(isinstance(name, str) for name in names):
        return None
    return names


def columns_by_name(feature: Mapping[str, Any], axes: tuple[str, ...], what: str) -> list[int] | None:
    """Return the index of each of ``axes`` in a column by its names; None if the names do not determine it.

    Raises ValueError if the names are of something else: joints, quaternions, or other axes.
    """
    names = names_of(feature)
    if names is None:
        return None
    listed = ", ".join(names)
    meanings = [_axis(name) for name in names]
    found = {axis: meanings.index(axis) for axis in axes if meanings.count(axis) == 1}
    if len(found) == len(axes):
        return [found[axis] for axis in axes]
    if "joint" in meanings:
        raise ValueError(
            f"{what} holds joints by its names ({listed}), but {', '.join(axes)} are needed; convert them first, "
            "docs/extending.md shows how"
        )
    if "rotation" in meanings:
        raise ValueError(
            f"{what} holds a rotation that is not roll, pitch, yaw by its names ({listed}); convert it to Euler angles"
        )
    ambiguous = any(meanings.count(axis) > 1 for axis in axes)
    if ambiguous or any(axes.index(axis) != index for axis, index in found.items()):
        raise ValueError(
            f"{what} names its numbers {listed}, which are not {', '.join(axes)} each once; rename or convert them"
        )
    return None


def state_declaration(feature: Mapping[str, Any], dim: int, robot: str = "") -> dict[str, Any]:
    """Return the declaration of a state of ``dim`` numbers in a contract, by the names of its column.

    Names of x, y and z declare a position; a rotation (roll, pitch, yaw, or another representation by its name) and
    grippers are declared beside one only, because the position of joints is unknown. Several arms have one of each
    axis each. Unnamed states of ``robot`` "... (CALVIN)" are ``robot_obs``; other unnamed numbers are not declared.
    """
    names = names_of({**feature, "shape": [dim]})
    if names is None:
        calvin = dim == CALVIN_STATE_DIM and "CALVIN" in robot
        return dict(CALVIN_STATE) if calvin else {"dim": dim, "groups": {}}
    meanings = [None if _NO_POSE.search(name.lower()) else _axis(name) for name in names]
    position, euler = _each_axis(meanings, AXES[:3]), _each_axis(meanings, AXES[3:6])
    if not position:
        return {"dim": dim, "groups": {}}
    others = [index for index, meaning in enumerate(meanings) if meaning == "rotation"]
    groups = {
        "position": position,
        "rotation": euler or others,
        "gripper": [index for index, meaning in enumerate(meanings) if meaning == "gripper"],
    }
    kind = "euler_xyz" if euler or not others else _representation(names[others[0]])
    return {"dim": dim, "groups": {name: indices for name, indices in groups.items() if indices}, "rotation": kind}


def _each_axis(meanings: list[str | None], axes: tuple[str, ...]) -> list[int]:
    """Return the indices of three axes, arm by arm; none if an axis is missing or occurs more often than another."""
    columns = [[index for index, meaning in enumerate(meanings) if meaning == axis] for axis in axes]
    if len({len(column) for column in columns}) != 1:
        return []
    return [index for arm in zip(*columns, strict=True) for index in arm]


def _representation(name: str) -> str:
    return "axis_angle" if re.search(r"axis|vec", name.lower()) else "quaternion"


def _axis(name: str) -> str | None:
    """Return the axis of a name, "joint", "rotation" (in another representation), or None."""
    text = name.lower()
    if _OTHER_ROTATION.search(text):
        return "rotation"
    if _GRIPPER.search(text):
        return "gripper"
    if _JOINT.search(text):
        return "joint"
    for word in reversed(re.split(r"[^a-z]+", text)):
        word = _ROTATION.get(word, word)
        if word in AXES:
            rotation = word in ("x", "y", "z") and re.search(r"rot|euler|orient|theta|ang", text)
            return AXES[AXES.index(word) + 3] if rotation else word
    return None


def static_camera(cameras: list[str]) -> str:
    """Return the first camera whose name is not of a camera on the hand, else the first; "" without cameras."""
    return next((name for name in cameras if not _HAND_CAMERA.search(name.lower())), next(iter(cameras), ""))
