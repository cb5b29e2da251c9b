"""What a client shows and asks, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.text import check_text
from policy_rollout.policies.interface import Observation
from policy_rollout.serving.wire import Limits, Picture, WireError, check_picture, pixels


@dataclass(frozen=True)
class Look:
    """One observation as it came, its pictures not decoded yet. ``restart``: the client says that a new task begins."""

    instruction: str
    pictures: Mapping[str, Picture]
    restart: bool = False

    def observation(self, limits: Limits) -> Observation:
        """With decoded pictures, ready for a policy. Raises `WireError` for a damaged one."""
        seen = {camera: pixels(picture, camera, limits) for camera, picture in self.pictures.items()}
        return Observation(seen["rgb_static"], self.instruction, seen.get("rgb_gripper"))


def look(
    instruction: object,
    found: Mapping[str, object],
    names: Mapping[str, str],
    cameras: Sequence[str],
    limits: Limits,
    restart: bool = False,
) -> Look:
    """Checks everything that can be checked without decoding. ``names``: what the client calls each camera.

    Raises `WireError` naming what is missing or wrong.
    """
    if not isinstance(instruction, str) or len(instruction) > limits.instruction_chars:
        length = f"{len(instruction)} characters" if isinstance(instruction, str) else type(instruction).__name__
        raise WireError(
            f"the instruction must be a text of at most {limits.instruction_chars} characters, got {length}"
        )
    try:
        check_text(instruction)
    except ValueError as error:
        raise WireError(f"the instruction cannot be read: {error}") from None
    missing = [names[camera] for camera in cameras if found.get(names[camera]) is None]
    if missing:
        sent = ", ".join(str(name)[:40] for name in list(found)[:8]) or "none"
        raise WireError(f"this model looks through {', '.join(cameras)}; {missing[0]} is missing, sent: {sent}")
    pictures: dict[str, Picture] = {}
    for camera in cameras:
        picture = found[names[camera]]
        check_picture(picture, names[camera], limits)
        pictures[camera] = picture  # type: ignore[assignment]  # check_picture refuses all else
    return Look(instruction, pictures, restart)
