"""An observation as a client sends it, in either protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.text import check_text
from policy_rollout.policies.interface import Observation, StateLayout
from policy_rollout.serving.wire import Limits, WireError, WireImage, check_image, pixels


@dataclass(frozen=True)
class Request:
    """One observation, its images not decoded yet. ``restart``: the client declares that a new episode starts;
    ``turned``: the policy reads images rotated by half a turn against those of the client."""

    instruction: str
    images: Mapping[str, WireImage]
    restart: bool = False
    state: NDArray[Any] | None = None
    turned: bool = False

    def observation(self, limits: Limits) -> Observation:
        """Decode the images and return the policy's observation. Raises `WireError` for a damaged image."""
        decoded = {camera: pixels(image, camera, limits) for camera, image in self.images.items()}
        if self.turned:
            decoded = {camera: np.ascontiguousarray(image[::-1, ::-1]) for camera, image in decoded.items()}
        return Observation(decoded["rgb_static"], self.instruction, decoded.get("rgb_gripper"), self.state)


def parse_request(
    instruction: object,
    found: Mapping[str, object],
    names: Mapping[str, str],
    cameras: Sequence[str],
    limits: Limits,
    restart: bool = False,
    state: NDArray[Any] | None = None,
) -> Request:
    """Check everything that can be checked without decoding. ``names``: the client's name of each camera; ``state``: as
    `parse_state` returns it.

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
        raise WireError(f"this model reads {', '.join(cameras)}; {missing[0]} is missing, sent: {sent}")
    images: dict[str, WireImage] = {}
    for camera in cameras:
        image = found[names[camera]]
        check_image(image, names[camera], limits)
        images[camera] = image  # type: ignore[assignment]  # check_image refuses all else
    return Request(instruction, images, restart, state)


def parse_state(value: object, layout: StateLayout, name: str) -> NDArray[Any]:
    """Return the robot's state in a message, an array or a list of numbers. Raises `WireError` naming the field."""
    if isinstance(value, list):
        if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value):
            raise WireError(f"{name} must be the robot's state, {layout.dim} numbers, got a list of other values")
        value = np.array(value, dtype=np.float64)
    try:
        return layout.check(value, name)  # type: ignore[arg-type]  # check refuses all else
    except ValueError as error:
        raise WireError(str(error)) from None
