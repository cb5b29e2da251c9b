"""Interpret the names of a LeRobot column: which number is x, which the gripper, which are joints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
"""Dimensions of a 7-dimensional action, in order."""

_GRIPPER = re.compile(r"grip|finger|jaw|grasp")
_JOINT = re.compile(r"joint|shoulder|elbow|waist|forearm|upperarm|upper_arm|qpos|servo|wrist|(^|[_.])j_?\d+($|[_.])")
_OTHER_ROTATION = re.compile(r"quat|axis_?angle|rot_?vec|(^|[_.])q_?[wxyz]($|[_.])")
_ROTATION = {"rx": "roll", "ry": "pitch", "rz": "yaw"}
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
    if "joint" in meanings:
        raise ValueError(
            f"{what} holds joints by its names ({listed}), but {', '.join(axes)} are needed; convert them first, "
            "docs/extending.md shows how"
        )
    found = {axis: meanings.index(axis) for axis in axes if meanings.count(axis) == 1}
    if len(found) == len(axes):
        return [found[axis] for axis in axes]
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
