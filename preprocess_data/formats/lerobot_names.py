"""What the names of a LeRobot column say of its numbers: which is x, which the gripper, and which are joints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
"""Of an action of seven numbers, in its order."""

_GRIPPER = re.compile(r"grip|finger|jaw|grasp")
_JOINT = re.compile(r"joint|shoulder|elbow|waist|forearm|upperarm|upper_arm|qpos|servo|wrist|(^|[_.])j_?\d+($|[_.])")
_OTHER_ROTATION = re.compile(r"quat|axis_?angle|rot_?vec|(^|[_.])q_?[wxyz]($|[_.])")
_ROTATION = {"rx": "roll", "ry": "pitch", "rz": "yaw"}
_HAND_CAMERA = re.compile(r"wrist|hand|gripper|eye_in|tool")


def names_of(feature: Mapping[str, Any]) -> list[str] | None:
    """Return the name of each number of a column; None where the data set does not name them one by one."""
    held: Any = feature.get("names")
    if isinstance(held, Mapping):
        if held and all(isinstance(place, int) for place in held.values()):
            held = [name for name, _ in sorted(held.items(), key=lambda pair: pair[1])]
        else:
            held = [name for names in held.values() if isinstance(names, list) for name in names]
    if isinstance(held, list) and len(held) == 1 and isinstance(held[0], list):
        held = held[0]
    shape = feature.get("shape")
    width = shape[0] if isinstance(shape, list) and len(shape) == 1 else None
    if not isinstance(held, list) or len(held) != width or not all(isinstance(name, str) for name in held):
        return None
    return held


def columns_by_name(feature: Mapping[str, Any], axes: tuple[str, ...], what: str) -> list[int] | None:
    """Return the place of each of ``axes`` in a column, as its names tell; None where they do not tell.

    Raises ValueError where names tell of something else: joints, quaternions, or axes that are missing.
    """
    names = names_of(feature)
    if names is None:
        return None
    said = ", ".join(names)
    meant = [_axis(name) for name in names]
    if "joint" in meant:
        raise ValueError(
            f"{what} holds joints by its names ({said}), but {', '.join(axes)} are needed; convert them first, "
            "docs/extending.md shows how"
        )
    found = {axis: meant.index(axis) for axis in axes if meant.count(axis) == 1}
    if len(found) == len(axes):
        return [found[axis] for axis in axes]
    if "rotation" in meant:
        raise ValueError(
            f"{what} holds a rotation that is not roll, pitch, yaw by its names ({said}); convert it to Euler angles"
        )
    if any(axes.index(axis) != place for axis, place in found.items()) or any(meant.count(axis) > 1 for axis in axes):
        raise ValueError(
            f"{what} names its numbers {said}, which are not {', '.join(axes)} each once; rename or convert them"
        )
    return None


def _axis(name: str) -> str | None:
    """The axis a name tells of, "joint", "rotation" (of another kind), or None."""
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
    """Return the first camera whose name does not tell that the hand carries it, else the first; "" without any."""
    return next((name for name in cameras if not _HAND_CAMERA.search(name.lower())), next(iter(cameras), ""))
