"""What a client shows and asks, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.text import check_text
from policy_rollout.policies.interface import Observation
from policy_rollout.serving.wire import Limits, WireError, WireImage, check_image, pixels


@dataclass(frozen=True)
class NeedsChunk:
    """One observation as it came, its images not decoded yet. ``restart``: the client says that a new task begins."""

    instruction: str
    images: Mapping[str, WireImage]
    restart: bool = False

    def observation(self, limits: Limits) -> Observation:
        """With decoded images, ready for a policy. Raises `WireError` for a damaged one."""
        seen = {camera: pixels(image, camera, limits) for camera, image in self.images.items()}
        return Observation(seen["rgb_static"], self.instruction, seen.get("rgb_gripper"))


def look(
    instruction: object,
    found: Mapping[str, object],
    names: Mapping[str, str],
    cameras: Sequence[str],
    limits: Limits,
    restart: bool = False,
) -> NeedsChunk:
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
    images: dict[str, WireImage] = {}
    for camera in cameras:
        image = found[names[camera]]
        check_image(image, names[camera], limits)
        images[camera] = image  # type: ignore[assignment]  # check_image refuses all else
    return NeedsChunk(instruction, images, restart)
