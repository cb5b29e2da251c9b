"""Names and words that robot data, models and policies share: cameras by name, the gripper's two numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

CAMERAS = ("rgb_static", "rgb_gripper")
"""Names of a model's camera views, in the order in which it reads them."""
ENV_CAMERAS = tuple(name.removeprefix("rgb_") for name in CAMERAS)
"""Names of the same cameras in CALVIN's environment."""
CALVIN_MAX_STEPS = 360
"""Control steps per task in CALVIN's evaluation."""
CODEBOOK_SIZE = 8192
"""Codes of the image tokenizer (MagVIT-v2): 13 bits each."""

Size = TypeVar("Size")
_GRIPPER = re.compile(r"([+-]?\d+(?:\.\d+)?) (closed|open), ([+-]?\d+(?:\.\d+)?) (closed|open)")


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
